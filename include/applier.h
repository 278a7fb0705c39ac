/*
 * applier.h - one step: some blocks of a window, applied in one transaction on new.
 */
#ifndef CUTOVER_APPLIER_H
#define CUTOVER_APPLIER_H

#include "access/xlogdefs.h"

#include "apply.h"
#include "batch.h"
#include "session.h"

typedef struct CutoverApplier
{
	CutoverSession *session;
	CutoverWindow *window;
	CutoverApply *apply;
	bool		replay;			/* change by change, in savepoints */
	MemoryContext step_context; /* lists below; reset at every step */
	MemoryContext block_context;
	MemoryContext row_context;
	bool		remote_open;	/* BEGIN was sent */
	bool		lease_held;		/* that transaction has the lease's row locked */
	bool		had_partial;	/* UPDATEs that may have missed their row */
	bool		rebuild;		/* end the step at the next boundary: a schema change ran */
	List	   *refreshes;		/* CutoverRefresh */
	List	   *recounts;		/* of worker/recount.c */
	List	   *truncates;		/* CutoverLayout ids of neighbouring TRUNCATEs */
	bool		truncate_restart;
	List	   *stops;			/* CutoverStop: tables to be marked for resync */
	List	   *failures;		/* CutoverFailure: rows that new rejected */
	List	   *resolved;		/* CutoverRefresh that went through after a failure */
	uint64		changes;		/* in this step */
	XLogRecPtr	last_lsn;		/* of the last block taken in this step */
	uint64		last_xid;
	uint64		current_xid;	/* of the block being read */
	struct CutoverSlot *slot;	/* to say which commits failed; NULL = nobody listens */
	bool		ddl_done;		/* this step holds a schema change: what was said of its failure is settled */
	char	   *ddl_message;
	int			ddl_sqlstate;
	char	  **values;			/* scratch row */
	int		   *lens;
	int			ncols;
} CutoverApplier;

/* A key to be read again from old. */
typedef struct CutoverRefresh
{
	int32		table_id;
	Datum	   *key;			/* in the root's types and index order */
	bool	   *isnull;
	char	   *json;
	uint64		xid;			/* transaction that asks for it */
	bool		suspect;		/* new rejected it before: apply it by itself */
	bool		replace;		/* delete first: its unique value may have moved */
} CutoverRefresh;

typedef struct CutoverStop
{
	int32		table_id;
	char	   *reason;
} CutoverStop;

typedef struct CutoverFailure
{
	int32		table_id;
	uint64		xid;			/* transaction whose change was rejected */
	char	   *json;			/* key */
	int			sqlerrcode;
	char	   *message;
} CutoverFailure;

extern CutoverApplier *cutover_applier_create(CutoverSession *session, CutoverWindow *window);

/*
 * Apply the window from its next block to a boundary between transactions and
 * record the progress.  Opens and ends local transactions itself.  Returns true
 * when the window is finished.  After an error: cutover_applier_abandon, then
 * open the window again from the session's progress.
 */
extern bool cutover_applier_step(CutoverApplier *applier);
extern void cutover_applier_abandon(CutoverApplier *applier);

/* The transaction on new, begun when first needed. */
extern void cutover_applier_begin(CutoverApplier *applier);
extern void cutover_applier_flush(CutoverApplier *applier);

/* One row to new: collected, or in replay at once. */
extern void cutover_applier_emit(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image,
								 CutoverTable *table, CutoverApplyRow *row);

/* The scratch row, with room for a table. */
extern void cutover_applier_scratch(CutoverApplier *applier, CutoverTable *table, CutoverApplyRow *row);

/* Mark a table for resync as part of this step. */
extern void cutover_applier_stop(CutoverApplier *applier, CutoverTable *table, const char *reason);

/* ---- worker/refresh.c ---- */
extern bool cutover_refresh_is_ahead(const char *snapshot);
extern void cutover_refresh_add(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image,
								bool suspect, bool replace);
extern bool cutover_refresh_is_errored(CutoverLayout *layout, HeapTuple image);
extern void cutover_refresh_run(CutoverApplier *applier, bool suspects);
extern void cutover_refresh_missed(CutoverApplier *applier);
extern void cutover_refresh_fail(CutoverApplier *applier, int32 table_id, uint64 xid, const char *json,
								 int sqlerrcode, const char *message);
extern void cutover_refresh_save(CutoverApplier *applier);
extern void cutover_refresh_save_resolved(CutoverApplier *applier);

/* ---- worker/recount.c ---- */
extern void cutover_recount_add(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image);
extern void cutover_recount_run(CutoverApplier *applier, bool finished);

/* ---- worker/truncate.c ---- */
extern void cutover_truncate_run(CutoverApplier *applier, uint64 xid);

#endif							/* CUTOVER_APPLIER_H */
