/*
 * endpoint_private.h - what the files worker/endpoint*.c share.  Includes libpq: nobody else may use it.
 */
#ifndef CUTOVER_ENDPOINT_PRIVATE_H
#define CUTOVER_ENDPOINT_PRIVATE_H

#include "lib/ilist.h"
#include "libpq-fe.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "endpoint.h"

/* Bytes that may wait in libpq's buffer before we wait for the socket. */
#define ENDPOINT_UNSENT_LIMIT (4 * 1024 * 1024)

/* Seconds that clean-up after an error may take. */
#define ENDPOINT_CLEANUP_TIMEOUT 10

/* Seconds that the delivery of a request to cancel may take. */
#define ENDPOINT_CANCEL_TIMEOUT 5

/* A statement prepared on new; key of the hash is a hash of its text. */
typedef struct EndpointStatement
{
	uint64		hash;
	char	   *sql;
	char		name[32];
	int			inflight;		/* commands in the pipeline that name it */
	bool		unprepared;		/* new rejected or skipped its preparation */
	dlist_node	lru;			/* most recently used first */
} EndpointStatement;

typedef enum EndpointCommandKind
{
	ENDPOINT_PREPARE,
	ENDPOINT_EXECUTE,
	ENDPOINT_DEALLOCATE,
	ENDPOINT_SYNC
} EndpointCommandKind;

/* Something sent whose result has not come yet. */
typedef struct EndpointCommand
{
	EndpointCommandKind kind;
	bool		count;
	EndpointStatement *stmt;
	CutoverRowsFn fn;
	void	   *arg;
} EndpointCommand;

struct CutoverEndpoint
{
	struct EndpointLocal *local;	/* old itself: nothing below but cxt, label and affected is in use */
	dlist_node	node;			/* of all endpoints in this process */
	MemoryContext cxt;
	PGconn	   *conn;
	char	   *label;			/* for messages: server name or "new" */
	int			timeout;		/* s */
	bool		broken;			/* given up: never use conn again */
	bool		unanswered;		/* broken because new was silent: don't ask it to cancel */
	bool		copying;
	bool		patient;		/* until the pipeline is empty */
	bool		is_replica;
	size_t		unsent;			/* bytes queued since libpq's buffer was last empty */

	/* pipeline */
	HTAB	   *statements;
	dlist_head	lru;
	uint64		next_name;
	EndpointCommand *ring;
	int			ring_size;
	int			ring_head;
	int			ring_count;
	bool		unsynced;		/* something was sent since the last complete sync */
	uint64		affected;
	PGresult   *failed;			/* first failure since the last sync */
	char	   *failed_sql;
	bool		stale_statements;	/* what is prepared there is not what we think */

	/* queries whose rows are taken as they come */
	struct WaitEventSet *wait_set;	/* kept: making one costs as much as a short query */
	bool		wait_writing;	/* ... waits for room to write, too */
	bool		querying;		/* a query is under way */
	bool		expecting;		/* ... and has not been waited for yet */
	uint32		slow_answers;	/* queries in a row that were not worth watching for */
	bool		sent_off;		/* a statement whose result nobody waited for */
	bool		relay;			/* requests to cancel go to new ... */
	bool		relayed;		/* ... and one did */
	PGresult   *rows;			/* what came last */
	PGresult   *error;
};

/* endpoint.c */
extern PGresult *cutover_endpoint_get_result(CutoverEndpoint *ep);
extern void cutover_endpoint_wait_socket(CutoverEndpoint *ep, bool writing);
extern void cutover_endpoint_push(CutoverEndpoint *ep, bool all);
extern void cutover_endpoint_check_usable(CutoverEndpoint *ep);
CUTOVER_NORETURN extern void cutover_endpoint_raise_result(CutoverEndpoint *ep, const PGresult *res, const char *sql);
CUTOVER_NORETURN extern void cutover_endpoint_raise_lost(CutoverEndpoint *ep, const char *sql);
extern CutoverRows *cutover_endpoint_collect(CutoverEndpoint *ep, const char *sql);
extern CutoverRows *cutover_endpoint_copy_rows(const PGresult *res);

/* endpoint_pipeline.c */
extern void cutover_endpoint_take_results(CutoverEndpoint *ep, bool wait);
extern void cutover_endpoint_leave_pipeline(CutoverEndpoint *ep);
extern void cutover_endpoint_drop_pipeline(CutoverEndpoint *ep);
extern void cutover_endpoint_forget_statements(CutoverEndpoint *ep);

/* endpoint_query.c */
extern void cutover_endpoint_query_free(CutoverEndpoint *ep);
extern void cutover_endpoint_query_forget(CutoverEndpoint *ep);
extern bool cutover_endpoint_query_take_off(CutoverEndpoint *ep);

/* endpoint_connect.c */
extern void cutover_endpoint_cancel(CutoverEndpoint *ep);
extern char *cutover_endpoint_error_text(PGconn *conn);

/* endpoint_local.c */
extern CutoverRows *cutover_endpoint_local_exec(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params);
extern void cutover_endpoint_local_close(CutoverEndpoint *ep);

/* endpoint_xact.c */
extern void cutover_endpoint_xact_close(void);

#endif							/* CUTOVER_ENDPOINT_PRIVATE_H */
