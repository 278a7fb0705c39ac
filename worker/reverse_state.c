/*
 * reverse_state.c - how far old follows new, as both sides have it.
 *
 * Runs in the replicator.  Before a step commits on old, new has durably noted
 * its number: so new can't lose, in a crash or a fail-over, what old has, and
 * nobody notice.  Old's own progress is in the transaction of the step.
 *
 *   new's number is old's, or higher    go on from where old is
 *   new's number is lower               new lost its tail: rewound
 *   new's queue does not reach back     old lost more than is still there: rewound
 *
 * Rewound: all keys that new's queue has are read once more; rows that nothing in
 * it tells of are for a comparison to find.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "local.h"
#include "reverse.h"
#include "reverse_state.h"

/* a snapshot that saw nothing */
#define SAW_NOTHING "1:1:"

/*
 * Remember a progress.
 */
void
cutover_reverse_state_confirm(CutoverReverseProgress *progress, const CutoverReverseProgress *next)
{
	MemoryContext fresh = AllocSetContextCreate(TopMemoryContext, "cutover reverse progress", ALLOCSET_SMALL_SIZES);
	CutoverReverseProgress copy = *next;

	copy.snapshot = MemoryContextStrdup(fresh, next->snapshot);
	copy.window = next->window ? MemoryContextStrdup(fresh, next->window) : NULL;
	copy.context = fresh;
	if (progress->context != NULL)
		MemoryContextDelete(progress->context);
	*progress = copy;
}

/*
 * Write old's progress.
 */
void
cutover_reverse_state_write(int32 target_id, const CutoverReverseProgress *next)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[5] = {INT4OID, INT8OID, TEXTOID, TEXTOID, INT8OID};
	Datum		args[5] = {Int32GetDatum(target_id), Int64GetDatum(next->k), CStringGetTextDatum(next->snapshot),
	CStringGetTextDatum(next->window ? next->window : ""), Int64GetDatum(next->done_id)};

	SPI_connect();
	if (cutover_local_run_kept(&plan, "UPDATE cutover._reverse_progress SET k = $2, snapshot = $3, window_snapshot = nullif($4, ''),"
							   " done_id = $5, applied_at = pg_catalog.clock_timestamp() WHERE target_id = $1",
							   5, types, args, false, 0) != SPI_OK_UPDATE || SPI_processed != 1)
		elog(ERROR, "could not write the progress of the way back");
	SPI_finish();
}

/*
 * Queue new's note of a step.  It must be on disk there before old commits: the
 * session waits for that.  Fails (1 / 0 rows) where another session has taken over.
 */
void
cutover_reverse_state_queue_marker(CutoverSession *session, const CutoverReverseProgress *next)
{
	char		k[24];
	char		id[24];
	CutoverParam params[5] = {{k}, {next->snapshot}, {next->window}, {id}, {session->token}};

	snprintf(k, sizeof(k), INT64_FORMAT, next->k);
	snprintf(id, sizeof(id), INT64_FORMAT, next->done_id);
	cutover_endpoint_queue(session->ep, "BEGIN", 0, NULL, false);
	cutover_endpoint_queue(session->ep,
						   "WITH u AS (UPDATE cutover.progress SET k = $1::bigint, snapshot = $2::text, window_snapshot = $3::text,"
						   " done_xid = $4::bigint, applied_at = pg_catalog.clock_timestamp()"
						   " WHERE direction = 'reverse' AND instance = $5::text RETURNING 1)"
						   " SELECT 1 / count(*) AS lease FROM u",
						   5, params, false);
	cutover_endpoint_queue(session->ep, "COMMIT", 0, NULL, false);
}

void
cutover_reverse_state_close(int32 table_id, const char *reason)
{
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		args[2] = {Int32GetDatum(table_id), CStringGetTextDatum(reason)};

	SPI_connect();
	SPI_execute_with_args("UPDATE cutover._table SET reverse_closed = $2 WHERE table_id = $1 AND reverse_closed IS NULL",
						  2, types, args, NULL, false, 0);
	if (SPI_processed > 0)
		SPI_execute_with_args("SELECT cutover._log_event('reverse_closed', pg_catalog.jsonb_build_object('table',"
							  " t.old_table::pg_catalog.regclass::text, 'reason', $2), t.target_id)"
							  " FROM cutover._table t WHERE t.table_id = $1", 2, types, args, NULL, false, 0);
	SPI_finish();
}

/*
 * Begin anew: everything that new's queue still has.
 */
static void
state_rewind(CutoverSession *session, CutoverReverseProgress *progress, const char *why)
{
	CutoverReverseProgress next = {.k = Max(progress->k, progress->new_k) + 1,.snapshot = SAW_NOTHING};
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		args[2] = {Int32GetDatum(session->target_id), CStringGetTextDatum(why)};

	ereport(LOG,
			(errmsg("target \"%s\": %s", session->target, why),
			 errhint("Compare its tables, then compensate.")));
	next.new_k = next.k;
	cutover_endpoint_exec_params(session->ep, "INSERT INTO cutover.progress (direction, k, snapshot, instance) VALUES ('reverse', $1, $2, $3)"
								 " ON CONFLICT (direction) DO UPDATE SET k = EXCLUDED.k, snapshot = EXCLUDED.snapshot, window_snapshot = NULL,"
								 " done_xid = NULL, instance = EXCLUDED.instance",
								 3, (const char *const[]) {psprintf(INT64_FORMAT, next.k), next.snapshot, session->token});
	cutover_reverse_state_write(session->target_id, &next);
	SPI_connect();
	SPI_execute_with_args("UPDATE cutover._target SET rewound = true, rewound_at = pg_catalog.clock_timestamp() WHERE target_id = $1", 1, types, args, NULL, false, 0);
	SPI_execute_with_args("UPDATE cutover._table SET clean_passes = 0,"
	/* a change that is counted twice makes another row */
						  " reverse_closed = CASE WHEN key_attnums = '{}' THEN coalesce(reverse_closed, $2) ELSE reverse_closed END"
						  " WHERE target_id = $1", 2, types, args, NULL, false, 0);
	SPI_execute_with_args("SELECT cutover._log_event('rewound', pg_catalog.jsonb_build_object('direction', 'reverse', 'reason', $2), $1)",
						  2, types, args, NULL, false, 0);
	SPI_finish();
	cutover_reverse_state_confirm(progress, &next);
}

/*
 * Read old's progress, and where old itself was when it began to follow.
 */
static bool
state_read_old(CutoverSession *session, CutoverReverseProgress *progress)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(session->target_id)};
	CutoverReverseProgress read = {0};
	bool		found;

	SPI_connect();
	SPI_execute_with_args("UPDATE cutover._reverse_progress SET forward_snapshot = pg_catalog.pg_current_snapshot()::text"
						  " WHERE target_id = $1 AND forward_snapshot IS NULL", 1, types, args, NULL, false, 0);
	if (SPI_execute_with_args("SELECT k, snapshot, window_snapshot, done_id FROM cutover._reverse_progress WHERE target_id = $1",
							  1, types, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the progress of the way back");
	found = SPI_processed == 1;
	if (found)
	{
		read.k = cutover_local_int(0, 1);
		read.snapshot = cutover_local_text(0, 2);
		read.window = cutover_local_text(0, 3);
		read.done_id = cutover_local_int(0, 4);
		cutover_reverse_state_confirm(progress, &read);
	}
	SPI_finish();
	return found;
}

/*
 * Both sides.
 */
bool
cutover_reverse_state_open(CutoverSession *session, CutoverReverseProgress *progress)
{
	const char *token[1] = {session->token};
	CutoverRows *rows;
	const char *why = NULL;

	if (!state_read_old(session, progress))
		return false;
	rows = cutover_endpoint_exec_params(session->ep, "UPDATE cutover.progress p SET instance = $1 FROM cutover.queue_state q"
										" WHERE direction = 'reverse' RETURNING p.k, p.snapshot, p.window_snapshot, q.truncated_k",
										1, token);
	if (rows->nrows == 0)
		why = "new lost transactions that old already has";
	else
	{
		progress->new_k = pg_strtoint64(CUTOVER_CELL(rows, 0, 0));
		if (progress->new_k < progress->k)
			why = "new lost transactions that old already has";
		else if (progress->new_k == progress->k && strcmp(CUTOVER_CELL(rows, 0, 1), progress->snapshot) != 0)
			why = "new went on differently after losing transactions that old already has";
		else if (progress->k < pg_strtoint64(CUTOVER_CELL(rows, 0, 3)))
			why = "old lost more than the queue on new still holds";
	}
	if (why != NULL)
		state_rewind(session, progress, why);
	return true;
}

/*
 * Old is the master again.  While it was not, nothing of it had to go to new: the
 * forward direction goes on from a snapshot of that time, under a number that
 * neither side has used, as new may have been set back meanwhile.
 */
void
cutover_reverse_resume_forward(CutoverSession *session)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(session->target_id)};
	CutoverProgress fresh = {0};

	SPI_connect();
	if (SPI_execute_with_args("SELECT p.forward_snapshot, greatest(m.k, r.truncated_k) FROM cutover._reverse_progress p"
							  " JOIN cutover._marker m ON m.target_id = p.target_id AND m.direction = 'forward'"
							  " LEFT JOIN cutover._rotation r ON r.target_id = p.target_id"
							  " WHERE p.target_id = $1 AND p.forward_snapshot IS NOT NULL",
							  1, types, args, NULL, true, 1) == SPI_OK_SELECT && SPI_processed == 1)
	{
		fresh.snapshot = cutover_local_text(0, 1);
		fresh.k = Max(cutover_local_int(0, 2), session->progress.k) + 1;
		cutover_session_mark(session, fresh.k, fresh.snapshot);
		cutover_session_queue_progress(session, &fresh);
		cutover_endpoint_sync(session->ep);
		cutover_session_confirm(session, &fresh);
		SPI_execute_with_args("UPDATE cutover._reverse_progress SET forward_snapshot = NULL WHERE target_id = $1",
							  1, types, args, NULL, false, 0);
	}
	SPI_finish();
}
