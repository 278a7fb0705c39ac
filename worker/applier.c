/*
 * applier.c - one step of a window: changes in, one transaction on new out.
 *
 * Runs in the replicator.  A step reads blocks, turns their changes into rows
 * and collects them (worker/coalesce.c keeps the net effect); at a boundary
 * between transactions everything goes to new together with the progress.  A
 * transaction too large for the memory is sent in several sets and still
 * committed as one.  When new rejects data the same blocks are gone through
 * once more in replay: each change by itself, in its original place.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "applier.h"
#include "block.h"
#include "compat.h"
#include "guc.h"
#include "retry.h"

#define CHUNK_POLL_MS 10
#define CHUNK_PATIENCE_MS 5000

static uint32 wait_event_chunk = 0;

CutoverApplier *
cutover_applier_create(CutoverSession *session, CutoverWindow *window)
{
	CutoverApplier *applier = MemoryContextAllocZero(TopMemoryContext, sizeof(CutoverApplier));

	applier->session = session;
	applier->window = window;
	applier->step_context = AllocSetContextCreate(TopMemoryContext, "cutover step", ALLOCSET_DEFAULT_SIZES);
	applier->block_context = AllocSetContextCreate(TopMemoryContext, "cutover block", ALLOCSET_DEFAULT_SIZES);
	applier->row_context = AllocSetContextCreate(TopMemoryContext, "cutover row", ALLOCSET_DEFAULT_SIZES);
	return applier;
}

/*
 * Forget a step, done or failed.
 */
void
cutover_applier_abandon(CutoverApplier *applier)
{
	if (applier->apply != NULL)
		cutover_apply_reset(applier->apply);
	MemoryContextReset(applier->step_context);
	MemoryContextReset(applier->block_context);
	MemoryContextReset(applier->row_context);
	applier->refreshes = applier->recounts = applier->truncates = applier->stops = applier->failures = applier->resolved = NIL;
	applier->ddl_done = false;
	applier->values = NULL;
	applier->lens = NULL;
	applier->ncols = 0;
	applier->remote_open = applier->had_partial = applier->rebuild = false;
	applier->changes = 0;
	applier->last_lsn = 0;
	applier->last_xid = 0;
}

/*
 * Begin on new.  Where foreign keys are enforced there, those that may wait do
 * so; in replay none does, so that a failure shows at its row.
 */
void
cutover_applier_begin(CutoverApplier *applier)
{
	CutoverEndpoint *ep = applier->session->ep;

	if (applier->remote_open)
		return;
	cutover_endpoint_queue(ep, "BEGIN", 0, NULL, false);
	if (!cutover_endpoint_is_replica(ep))
		cutover_endpoint_queue(ep, applier->replay ? "SET CONSTRAINTS ALL IMMEDIATE" : "SET CONSTRAINTS ALL DEFERRED",
							   0, NULL, false);
	applier->remote_open = true;
	applier->lease_held = false;
}

/*
 * Keep the lease while a transaction on new takes long: the row stays locked to
 * its end, when the lease is renewed once more.
 */
static void
applier_hold_lease(CutoverApplier *applier)
{
	if (!applier->lease_held)
		cutover_session_queue_lease(applier->session);
	applier->lease_held = true;
}

void
cutover_applier_flush(CutoverApplier *applier)
{
	if (cutover_apply_rows(applier->apply) == 0)
		return;
	cutover_applier_begin(applier);
	cutover_apply_flush(applier->apply);
}

void
cutover_applier_scratch(CutoverApplier *applier, CutoverTable *table, CutoverApplyRow *row)
{
	if (table->apply.ncols > applier->ncols)
	{
		applier->ncols = Max(table->apply.ncols, 64);
		applier->values = MemoryContextAllocZero(applier->step_context, applier->ncols * sizeof(char *));
		applier->lens = MemoryContextAllocZero(applier->step_context, applier->ncols * sizeof(int));
	}
	memset(row, 0, sizeof(*row));
	row->values = applier->values;
	row->lens = applier->lens;
}

/*
 * Mark a table for resync: from here on its changes are dropped.
 */
void
cutover_applier_stop(CutoverApplier *applier, CutoverTable *table, const char *reason)
{
	MemoryContext old = MemoryContextSwitchTo(applier->step_context);
	CutoverStop *stop = palloc(sizeof(CutoverStop));

	stop->table_id = table->table_id;
	stop->reason = pstrdup(reason);
	applier->stops = lappend(applier->stops, stop);
	table->phase = CUTOVER_PHASE_RESYNC_NEEDED;
	MemoryContextSwitchTo(old);
}

void
cutover_applier_emit(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image,
					 CutoverTable *table, CutoverApplyRow *row)
{
	ErrorData  *error;
	bool		missed = false;

	if (!applier->replay)
	{
		applier->had_partial |= row->op == CUTOVER_APPLY_UPDATE;
		cutover_apply_add(applier->apply, &table->apply, row);
		return;
	}
	if (table->phase == CUTOVER_PHASE_RESYNC_NEEDED)
		return;					/* stopped by the change's other half */
	cutover_applier_begin(applier);
	if (cutover_apply_one(applier->apply, &table->apply, row, &error, &missed))
	{
		if (missed)
			cutover_refresh_add(applier, layout, image, false, false);
		return;
	}
	/* no row of this table can be written: the mapping was read afresh before the replay */
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION)
		cutover_applier_stop(applier, table, psprintf("new does not take its rows: %s", error->message));
	/* a unique value may still sit in a row that a later change takes it from; a parent may come later */
	else if (table->nkeys > 0 &&
		(error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION || error->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION))
		cutover_refresh_add(applier, layout, image, true, true);
	else if (table->nkeys > 0 && error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION)
		cutover_refresh_add(applier, layout, image, true, false);
	else
		cutover_refresh_fail(applier, table->table_id, applier->current_xid, cutover_rowmap_key_json(layout, image),
							 error->sqlerrcode, error->message);
}

/*
 * Wait until the chunks that were being copied when the map was read are
 * done.  No local transaction is open meanwhile.
 */
static void
applier_wait_for_chunks(CutoverApplier *applier, CutoverTable *table)
{
	int			waited = 0;
	int			left = 1;

	while (left > 0)
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		if (!applier->remote_open)
		{
			cutover_session_renew(applier->session);
			cutover_copier_keep_alive(applier->window->target_id);
		}
		else if (waited > CHUNK_PATIENCE_MS)
			/* its copier may be dead and only the main loop can send another */
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("a chunk of %s is still being copied", table->old_name)));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, CHUNK_POLL_MS,
						 cutover_wait_event_compat(&wait_event_chunk, "CutoverReplicatorChunk"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		waited += CHUNK_POLL_MS;
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		SPI_connect();
		left = cutover_chunk_map_refresh(table->chunks);
		SPI_finish();
	}
	if (left < 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the copy of %s was begun anew", table->old_name)));
}

/*
 * The chunk of a row; NULL if none covers it.
 */
static const CutoverChunk *
applier_find_chunk(CutoverLayout *layout, HeapTuple image, ItemPointer tid)
{
	CutoverTable *table = layout->table;
	Datum	   *values;
	bool	   *nulls;
	Datum		key[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	if (cutover_chunk_map_by_block(table->chunks))
		return cutover_chunk_map_find_ctid(table->chunks, layout->relid, ItemPointerGetBlockNumberNoCheck(tid));
	values = palloc(table->desc->natts * sizeof(Datum));
	nulls = palloc(table->desc->natts * sizeof(bool));
	cutover_rowmap_root_values(layout, image, values, nulls);
	for (int k = 0; k < table->nkeys; k++)
	{
		key[k] = values[table->key_attnums[k] - 1];
		isnull[k] = nulls[table->key_attnums[k] - 1];
	}
	return cutover_chunk_map_find(table->chunks, key, isnull);
}

/*
 * Is a change of this row contained in the copy, or will it be?
 */
static bool
applier_covered(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image, ItemPointer tid, uint64 xid)
{
	CutoverTable *table = layout->table;
	const CutoverChunk *chunk;

	if (table->chunks == NULL)
		return table->copy && (table->phase == CUTOVER_PHASE_WAITING || table->phase == CUTOVER_PHASE_COPYING);
	chunk = applier_find_chunk(layout, image, tid);
	if (chunk == NULL)
	{
		int			copying;

		/* a partition that came after the plan is in no chunk: its rows come through the queue only */
		return table->phase == CUTOVER_PHASE_COPYING && cutover_chunk_map_count(table->chunks, &copying) == 0;
	}
	if (chunk->state == CUTOVER_CHUNK_COPYING)
		applier_wait_for_chunks(applier, table);
	if (chunk->state == CUTOVER_CHUNK_PENDING)
		return true;
	return cutover_chunk_contains(chunk, FullTransactionIdFromU64(xid));
}

/*
 * A row that went: by key, or one equal row.
 */
static void
applier_gone(CutoverApplier *applier, CutoverChange *change, HeapTuple image)
{
	CutoverTable *table = change->layout->table;
	CutoverApplyRow row;

	cutover_applier_scratch(applier, table, &row);
	if (!cutover_rowmap_row(change->layout, image, table->nkeys > 0, NULL, &row))
		return;					/* without a key: filtered out, so it never was there */
	row.op = CUTOVER_APPLY_DELETE;
	cutover_applier_emit(applier, change->layout, image, table, &row);
}

/*
 * A row that came or changed.
 */
static void
applier_come(CutoverApplier *applier, CutoverChange *change)
{
	CutoverTable *table = change->layout->table;
	CutoverApplyRow row;

	cutover_applier_scratch(applier, table, &row);
	if (!cutover_rowmap_row(change->layout, change->new, false, change->elided, &row))
	{
		if (table->nkeys > 0 && change->op == CUTOVER_OP_UPDATE)
			applier_gone(applier, change, change->new);
		return;
	}
	if (change->op == CUTOVER_OP_INSERT || table->nkeys == 0)
		row.op = CUTOVER_APPLY_INSERT;
	else
		row.op = change->elided ? CUTOVER_APPLY_UPDATE : CUTOVER_APPLY_UPSERT;
	cutover_applier_emit(applier, change->layout, change->new, table, &row);
}

/*
 * A change of a row.
 */
static void
applier_row_change(CutoverApplier *applier, CutoverChange *change, uint64 xid)
{
	CutoverLayout *layout = change->layout;
	CutoverTable *table = layout->table;

	if (table->phase == CUTOVER_PHASE_RESYNC_NEEDED ||
		(table->phase == CUTOVER_PHASE_WAITING && table->copy))
		return;
	if (!cutover_rowmap_resolve(layout, applier->session->ep))
	{
		cutover_applier_stop(applier, table, table->stop_reason);
		return;
	}
	if (change->op == CUTOVER_OP_REFRESH)
	{
		if (table->nkeys == 0)
			cutover_recount_add(applier, layout, change->old);
		else if (!applier_covered(applier, layout, change->old, &change->old_tid, xid))
			cutover_refresh_add(applier, layout, change->old, table->error_keys != NULL, false);
		return;
	}
	if (table->error_keys != NULL && table->nkeys > 0)
	{
		bool		old_errored = change->old && cutover_refresh_is_errored(layout, change->old);
		bool		new_errored = change->new && cutover_refresh_is_errored(layout, change->new);

		if (old_errored || new_errored)
		{
			if (change->old)
				cutover_refresh_add(applier, layout, change->old, true, false);
			if (change->new)
				cutover_refresh_add(applier, layout, change->new, true, false);
			return;
		}
	}
	if (change->old != NULL && !applier_covered(applier, layout, change->old, &change->old_tid, xid))
		applier_gone(applier, change, change->old);
	if (change->new != NULL && !applier_covered(applier, layout, change->new, &change->new_tid, xid))
		applier_come(applier, change);
}

/*
 * Has the operator said that the schema change which new refused is to be left out?
 */
static bool
applier_ddl_skipped(int32 target_id)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(target_id)};
	bool		skipped;

	SPI_connect();
	skipped = SPI_execute_with_args("SELECT FROM cutover._apply_error WHERE target_id = $1 AND table_id IS NULL AND attempts < 0",
									1, types, args, NULL, true, 1) == SPI_OK_SELECT && SPI_processed > 0;
	SPI_finish();
	return skipped;
}

/*
 * A schema change: runs on new here, after what came before it.
 */
static void
applier_ddl(CutoverApplier *applier, CutoverChange *change)
{
	MemoryContext old;
	CutoverEndpoint *ep = applier->session->ep;
	int			timeout;

	applier->ddl_done = true;
	if (applier_ddl_skipped(applier->window->target_id))
		return;
	cutover_applier_flush(applier);
	cutover_applier_begin(applier);
	applier_hold_lease(applier);
	cutover_endpoint_sync(ep);
	old = CurrentMemoryContext;
	/* a rewrite may rightly be silent for hours */
	timeout = cutover_endpoint_set_timeout(ep, 0);
	PG_TRY();
	{
		(void) cutover_endpoint_exec(ep, change->text);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		cutover_endpoint_set_timeout(ep, timeout);
		MemoryContextSwitchTo(TopMemoryContext);
		error = CopyErrorData();
		if (cutover_retry_classify(error->sqlerrcode) == CUTOVER_ERROR_DATA)
		{
			applier->ddl_sqlstate = error->sqlerrcode;
			applier->ddl_message = error->message;
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
	cutover_endpoint_set_timeout(ep, timeout);
	MemoryContextSwitchTo(old);
	applier->rebuild = true;
	cutover_mapping_load(applier->session->ep);
}

/*
 * A control entry.
 */
static void
applier_control(CutoverApplier *applier, CutoverChange *change, uint64 xid)
{
	CutoverTable *table;

	switch (change->kind)
	{
		case CUTOVER_CONTROL_DDL:
			applier_ddl(applier, change);
			break;
		case CUTOVER_CONTROL_RESYNC:
			table = cutover_mapping_table(change->table_id);
			/* a table whose copy is yet to begin gets what this is about anyway */
			if (table != NULL && table->phase != CUTOVER_PHASE_WAITING)
				cutover_applier_stop(applier, table, change->text);
			break;
		case CUTOVER_CONTROL_REMOVED:
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("unknown control entry in the queue: %d", change->kind)));
	}
}

/*
 * One change of a block.
 */
static void
applier_change(CutoverApplier *applier, CutoverChange *change, uint64 xid)
{
	if (change->op == CUTOVER_OP_TRUNCATE)
	{
		MemoryContext old = MemoryContextSwitchTo(applier->step_context);

		applier->truncates = lappend_int(applier->truncates, change->layout->layout_id);
		applier->truncate_restart |= (change->flags & CUTOVER_CHANGE_RESTART_SEQS) != 0;
		MemoryContextSwitchTo(old);
		return;
	}
	if (applier->truncates != NIL)
		cutover_truncate_run(applier, xid);
	if (change->op == CUTOVER_OP_CONTROL)
		applier_control(applier, change, xid);
	else if (change->layout->table != NULL)
		applier_row_change(applier, change, xid);
}

/*
 * Send what is collected in the midst of a transaction, and give old's
 * snapshot back.
 */
static void
applier_relieve(CutoverApplier *applier)
{
	cutover_applier_flush(applier);
	if (applier->remote_open)
		applier_hold_lease(applier);
	PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Go through one block.
 */
static void
applier_block(CutoverApplier *applier, const CutoverBlockRef *where)
{
	CutoverBlockRef ref = *where;
	MemoryContext caller = MemoryContextSwitchTo(applier->block_context);
	CutoverReader reader;
	CutoverChange change;

	if (applier->truncates != NIL && applier->last_xid != ref.xid)
		cutover_truncate_run(applier, applier->last_xid);
	applier->current_xid = ref.xid;
	cutover_reader_open(&reader, applier->window, &ref);
	while (cutover_reader_next(&reader, &change))
	{
		MemoryContextSwitchTo(applier->row_context);
		applier_change(applier, &change, ref.xid);
		MemoryContextReset(applier->row_context);
		MemoryContextSwitchTo(applier->block_context);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(applier->block_context);
	applier->changes += ref.n;
	applier->last_lsn = ref.lsn;
	applier->last_xid = ref.xid;
}

/*
 * Commit on new, with the progress.
 */
static void
applier_commit(CutoverApplier *applier, bool finished)
{
	CutoverSession *session = applier->session;
	CutoverWindow *window = applier->window;
	CutoverProgress progress = {.k = window->k};

	if (finished)
		progress.snapshot = window->cur;
	else
	{
		progress.snapshot = window->prev;
		progress.window_snapshot = window->cur;
		progress.done_lsn = applier->last_lsn;
		progress.done_xid = applier->last_xid;
	}
	cutover_applier_begin(applier);
	if (applier->lease_held)
		cutover_session_queue_lease(session);
	cutover_session_queue_progress(session, &progress);
	cutover_session_await_marker(session);
	cutover_endpoint_queue(session->ep, "COMMIT", 0, NULL, false);
	cutover_endpoint_sync(session->ep);
	cutover_session_confirm(session, &progress);
}

/*
 * One step.
 */
bool
cutover_applier_step(CutoverApplier *applier)
{
	CutoverWindow *window = applier->window;
	CutoverBlockRef *ref;
	int			limit = applier->replay ? Min(1000, cutover_guc_apply_batch_rows) : cutover_guc_apply_batch_rows;
	bool		copying = false;
	bool		finished;
	ListCell   *lc;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (cutover_mapping_is_stale())
		cutover_mapping_load(applier->session->ep);
	else
		cutover_mapping_refresh_phases();
	/* a chunk may have to be waited for, with nothing under way on new */
	foreach(lc, cutover_mapping_tables())
	{
		CutoverTable *table = lfirst(lc);

		copying |= table->phase == CUTOVER_PHASE_COPYING;
		table->apply.may_conflict |= cutover_refresh_is_ahead(window->prev);
	}

	while ((ref = cutover_window_peek(window)) != NULL)
	{
		if (ref->xid != applier->last_xid && (applier->changes >= limit || applier->rebuild))
			break;
		/* new works on what is there while we go on */
		if (!copying && cutover_apply_wants_flush(applier->apply, ref->xid != applier->last_xid))
			cutover_applier_flush(applier);
		applier_block(applier, ref);
		cutover_window_take(window);
		if (cutover_apply_memory(applier->apply) > (Size) cutover_guc_apply_memory * 512)
			applier_relieve(applier);
	}
	finished = ref == NULL;
	if (applier->truncates != NIL)
		cutover_truncate_run(applier, applier->last_xid);
	cutover_refresh_run(applier, false);
	cutover_applier_flush(applier);
	if (applier->had_partial)
		cutover_refresh_missed(applier);
	cutover_refresh_run(applier, true);
	cutover_recount_run(applier, finished);
	cutover_refresh_save(applier);
	PopActiveSnapshot();
	CommitTransactionCommand();

	applier_commit(applier, finished);
	cutover_refresh_save_resolved(applier);
	return finished;
}
