/*
 * session.h - the replicator's session on new: lease, progress, marker.
 */
#ifndef CUTOVER_SESSION_H
#define CUTOVER_SESSION_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

#include "endpoint.h"

/* How far new is: everything visible in snapshot, and of window_snapshot what lies up to (done_lsn, done_xid). */
typedef struct CutoverProgress
{
	int64		k;				/* number of the window of window_snapshot, else of snapshot */
	char	   *snapshot;
	char	   *window_snapshot;	/* NULL: no window is half applied */
	XLogRecPtr	done_lsn;
	uint64		done_xid;
} CutoverProgress;

typedef struct CutoverSession
{
	int32		target_id;
	char	   *target;			/* name */
	char	   *server;
	char	   *migration_id;
	CutoverEndpoint *ep;		/* NULL = not connected */
	CutoverProgress progress;	/* what new has confirmed */
	char		window_name[2 * 16 + 1];	/* of the last marker; empty before the first */
	XLogRecPtr	marker_lsn;		/* of a marker that is committed and not flushed yet; 0 = none */
	TimestampTz lease_renewed;
	char		token[128];		/* names this connection in new's progress */
	MemoryContext context;		/* of progress' strings */
} CutoverSession;

typedef enum CutoverSessionState
{
	CUTOVER_SESSION_READY,
	CUTOVER_SESSION_LEASE_HELD, /* another instance works on new */
	CUTOVER_SESSION_NOT_ADOPTED,	/* this server is a copy */
	CUTOVER_SESSION_GONE		/* new no longer knows this migration */
} CutoverSessionState;

/* Connect, take the lease, read the progress (waits for a predecessor's COMMIT in flight). */
extern CutoverSessionState cutover_session_open(CutoverSession *session);
extern void cutover_session_close(CutoverSession *session);

/* Renew the lease if due; raises 55006 if it was lost. */
extern void cutover_session_renew(CutoverSession *session);

/* Queue a renewal as part of the transaction under way. */
extern void cutover_session_queue_lease(CutoverSession *session);

/* Queue the statement that records progress; the session remembers it after cutover_session_confirm. */
extern void cutover_session_queue_progress(CutoverSession *session, const CutoverProgress *progress);
extern void cutover_session_confirm(CutoverSession *session, const CutoverProgress *progress);

/* Have new flush everything committed so far. */
extern void cutover_session_flush(CutoverSession *session);

/*
 * Promise window k on old, in the caller's transaction, after whose commit
 * cutover_session_marked is called.  The promise must be durable before anything of the
 * window commits on new: cutover_session_await_marker sees to that.
 */
extern void cutover_session_mark(CutoverSession *session, int64 k, const char *snapshot);
extern void cutover_session_marked(CutoverSession *session);
extern void cutover_session_await_marker(CutoverSession *session);

/*
 * Compare new's progress with old's marker.  True if new has what old lost
 * (promotion, restore) or new went back further than the queue reaches: then
 * every table is marked for resync and progress starts anew.
 */
extern bool cutover_session_reconcile(CutoverSession *session);

#endif							/* CUTOVER_SESSION_H */
