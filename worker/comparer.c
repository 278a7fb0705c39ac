/*
 * comparer.c - the life of a comparer: one of the workers of one comparison.
 *
 * The worker of the action writes down what is to be compared (cutover._compare_run,
 * _compare_result), starts comparers and waits for them.  A comparer takes pieces of work, a
 * few at a time: a table that nobody has cut into chunks yet, or chunks.  What
 * is done stands in cutover._compare_chunk in the same transaction as its counts, so after a
 * crash a pass goes on where it was; a chunk under way is read again, which
 * does no harm.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "comparer.h"
#include "guc.h"
#include "local.h"

#define TURN_SECONDS 0.5
#define MAX_TURN_CHUNKS 64
#define IDLE_MS 20

/* Chunks of one table and method, taken together. */
typedef struct CompareTurn
{
	int32		table_id;
	char	   *method;
	bool		queue;			/* all tables whose changes are looked for at once */
	int32	   *table_ids;		/* of these */
	int			n;
	int		   *chunk_no;
	char	  **kind;
	char	  **lower;			/* text[] in text form, or NULL */
	char	  **upper;
	CompareCounts *counts;
} CompareTurn;

/* ---- taking work ---- */

/*
 * Take a table that is not cut yet.  Returns false if there is none.
 */
static bool
comparer_take_plan(Comparer *c, CompareTurn *turn, MemoryContext mcxt)
{
	Oid			types[] = {INT8OID};
	Datum		args[] = {Int64GetDatum(c->run)};
	bool		found;

	cutover_compare_begin();
	found = cutover_local_run("WITH o AS MATERIALIZED (SELECT table_id, method FROM cutover._compare_result"
							  "  WHERE run = $1 AND chunks_total IS NULL AND NOT planning"
							  "  ORDER BY table_id, method LIMIT 1 FOR UPDATE SKIP LOCKED)"
							  " UPDATE cutover._compare_result r SET planning = true FROM o"
							  " WHERE r.run = $1 AND r.table_id = o.table_id AND r.method = o.method RETURNING r.table_id, r.method",
							  1, types, args, NULL) > 0;
	if (found)
	{
		turn->table_id = (int32) cutover_local_int(0, 1);
		turn->method = MemoryContextStrdup(mcxt, cutover_local_text(0, 2));
	}
	cutover_compare_commit();
	return found;
}

/*
 * Take up to max chunks of one table.
 */
static bool
comparer_take_chunks(Comparer *c, CompareTurn *turn, int max, MemoryContext mcxt)
{
	Oid			types[] = {INT8OID, INT4OID, INT4OID};
	Datum		args[] = {Int64GetDatum(c->run), Int32GetDatum(max), Int32GetDatum(c->number)};
	MemoryContext old;

	cutover_compare_begin();
	turn->n = (int) cutover_local_run("WITH first AS MATERIALIZED (SELECT p.table_id, p.method, p.kind FROM cutover._compare_chunk p"
									  "  WHERE p.run = $1 AND p.state = 'pending' AND EXISTS (SELECT FROM cutover._compare_result r"
									  "   WHERE r.run = $1 AND r.table_id = p.table_id AND r.method = p.method AND r.chunks_total IS NOT NULL)"
									  "  ORDER BY p.table_id, p.method, p.chunk_no LIMIT 1 FOR UPDATE SKIP LOCKED),"
									  " taken AS MATERIALIZED (SELECT p.table_id, p.method, p.chunk_no FROM cutover._compare_chunk p JOIN first USING (table_id, method, kind)"
									  "  WHERE p.run = $1 AND p.state = 'pending' ORDER BY p.chunk_no LIMIT $2 FOR UPDATE OF p SKIP LOCKED)"
									  " UPDATE cutover._compare_chunk p SET state = 'running', worker = $3 FROM taken t"
									  " WHERE p.run = $1 AND p.table_id = t.table_id AND p.method = t.method AND p.chunk_no = t.chunk_no"
									  " RETURNING p.table_id, p.method, p.chunk_no, p.kind, p.lower, p.upper", 3, types, args, NULL);
	old = MemoryContextSwitchTo(mcxt);
	turn->chunk_no = palloc(Max(turn->n, 1) * sizeof(int));
	turn->table_ids = palloc(Max(turn->n, 1) * sizeof(int32));
	turn->kind = palloc(Max(turn->n, 1) * sizeof(char *));
	turn->lower = palloc(Max(turn->n, 1) * sizeof(char *));
	turn->upper = palloc(Max(turn->n, 1) * sizeof(char *));
	turn->counts = palloc0(Max(turn->n, 1) * sizeof(CompareCounts));
	for (int i = 0; i < turn->n; i++)
	{
		turn->table_id = turn->table_ids[i] = (int32) cutover_local_int(i, 1);
		turn->method = cutover_local_text(i, 2);
		turn->chunk_no[i] = (int) cutover_local_int(i, 3);
		turn->kind[i] = cutover_local_text(i, 4);
		turn->lower[i] = cutover_local_text(i, 5);
		turn->upper[i] = cutover_local_text(i, 6);
		turn->queue = strcmp(turn->kind[i], "queue") == 0;
	}
	MemoryContextSwitchTo(old);
	cutover_compare_commit();
	return turn->n > 0;
}

/*
 * Is there work that others have taken and not finished?
 */
static bool
comparer_others_work(Comparer *c)
{
	Oid			types[] = {INT8OID};
	Datum		args[] = {Int64GetDatum(c->run)};
	bool		result;

	cutover_compare_begin();
	result = cutover_local_run("SELECT 1 FROM cutover._compare_result WHERE run = $1 AND NOT complete LIMIT 1",
							   1, types, args, NULL) > 0;
	cutover_compare_commit();
	return result;
}

/* ---- doing it ---- */

/*
 * Know a table as it is now.
 */
void
cutover_compare_use_table(Comparer *c, int32 table_id)
{
	MemoryContext old;

	c->table = NULL;
	MemoryContextReset(c->table_context);
	old = MemoryContextSwitchTo(c->table_context);
	c->table = cutover_compare_load_table(c, table_id);
	MemoryContextSwitchTo(old);
}

/*
 * Cut a table into chunks.
 */
static void
comparer_plan(Comparer *c, CompareTurn *turn)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTOID};
	Datum		args[] = {Int64GetDatum(c->run), Int32GetDatum(turn->table_id), CStringGetTextDatum(turn->method)};

	cutover_compare_use_table(c, turn->table_id);
	/* what is left of a worker that died here */
	cutover_compare_begin();
	cutover_local_run("DELETE FROM cutover._compare_chunk WHERE run = $1 AND table_id = $2 AND method = $3", 3, types, args, NULL);
	cutover_compare_commit();
	cutover_compare_plan_one(c, turn->method, "keys", NULL, NULL);
	if (strcmp(turn->method, "known") == 0)
		;						/* nothing else */
	else if (strcmp(turn->method, "full") == 0)
		cutover_compare_plan_full(c, turn->method);
	else if (strcmp(turn->method, "changes") == 0)
		cutover_compare_plan_one(c, turn->method, "queue", NULL, NULL);
	else
		cutover_compare_plan_window(c);
	cutover_compare_begin();
	cutover_local_run("UPDATE cutover._compare_result r SET planning = false, chunks_total ="
					  " (SELECT count(*) FROM cutover._compare_chunk c WHERE c.run = $1 AND c.table_id = $2 AND c.method = $3)"
					  " WHERE r.run = $1 AND r.table_id = $2 AND r.method = $3", 3, types, args, NULL);
	cutover_compare_commit();
}

/*
 * Compare what one chunk stands for.
 */
static void
comparer_do_chunk(Comparer *c, CompareTurn *turn, int i)
{
	CompareScope scope = {0};

	c->known = strcmp(turn->kind[i], "keys") == 0;
	if (c->known)
	{
		cutover_compare_known(c, &turn->counts[i]);
		turn->counts[i].deferred = 0;
	}
	else if (strcmp(turn->kind[i], "time") == 0)
		cutover_compare_window(c, turn->lower[i], turn->upper[i], &turn->counts[i]);
	else
	{
		char	  **lower = cutover_compare_read_array(turn->lower[i], &scope.nbounds);
		char	  **upper = cutover_compare_read_array(turn->upper[i], &scope.nbounds);

		if (strcmp(turn->kind[i], "hash") == 0)
		{
			scope.value = strtoll(lower[0], NULL, 10);
			scope.mask = strtoll(upper[0], NULL, 10);
		}
		else
		{
			scope.lower = lower;
			scope.upper = upper;
		}
		cutover_compare_scope(c, &scope, &turn->counts[i]);
	}
}

/*
 * Write down what was found in one chunk; the last one completes the table.
 */
static void
comparer_finish_chunk(Comparer *c, CompareTurn *turn, int i)
{
	CompareCounts *n = &turn->counts[i];
	Oid			types[] = {INT8OID, INT4OID, TEXTOID, INT4OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, BOOLOID};
	Datum		args[] = {Int64GetDatum(c->run), Int32GetDatum(turn->table_ids[i]), CStringGetTextDatum(turn->method),
		Int32GetDatum(turn->chunk_no[i]), Int64GetDatum(n->rows), Int64GetDatum(n->missing), Int64GetDatum(n->extra),
		Int64GetDatum(n->different), Int64GetDatum(n->representation), Int64GetDatum(n->deferred), BoolGetDatum(n->capped)};

	/* nothing is counted twice, whoever else thinks that this chunk was his */
	if (cutover_local_run("UPDATE cutover._compare_chunk SET state = 'done', rows = $5, missing = $6, extra = $7, different = $8,"
						  " representation = $9, deferred = $10, capped = $11"
						  " WHERE run = $1 AND table_id = $2 AND method = $3 AND chunk_no = $4 AND state = 'running'",
						  11, types, args, NULL) == 0)
		return;
	cutover_local_run("UPDATE cutover._compare_result SET rows = rows + $5, missing = missing + $6, extra = extra + $7,"
					  " different = different + $8, representation = representation + $9, deferred = deferred + $10,"
					  " capped = capped OR $11, chunks_done = chunks_done + 1,"
					  " complete = chunks_done + 1 = chunks_total,"
					  " duration = pg_catalog.clock_timestamp() - started_at,"
					  " waiting_for = CASE WHEN chunks_done + 1 < chunks_total THEN waiting_for END"
					  " WHERE run = $1 AND table_id = $2 AND method = $3",
					  11, types, args, NULL);
}

/*
 * Compare some chunks, then rest.  Returns the seconds that it took.
 */
static double
comparer_turn(Comparer *c, CompareTurn *turn)
{
	TimestampTz start = GetCurrentTimestamp();
	int64		rows = 0;
	double		seconds;

	cutover_compare_look_at_target(c);
	c->method = turn->method;
	c->known = false;
	if (turn->queue)
		cutover_compare_changes(c, turn->n, turn->table_ids, turn->counts);
	else
		cutover_compare_use_table(c, turn->table_id);
	for (int i = 0; i < turn->n && !turn->queue; i++)
	{
		cutover_compare_check_run(c);
		comparer_do_chunk(c, turn, i);
		rows += turn->counts[i].rows;
	}
	seconds = (GetCurrentTimestamp() - start) / 1000000.0;
	cutover_compare_begin();
	for (int i = 0; i < turn->n; i++)
		comparer_finish_chunk(c, turn, i);
	cutover_compare_commit();
	cutover_compare_rest(c, rows, seconds);
	return seconds;
}

/*
 * Work until nothing is left.
 */
static void
comparer_work(Comparer *c)
{
	MemoryContext mcxt = AllocSetContextCreate(TopMemoryContext, "cutover comparer turn", ALLOCSET_DEFAULT_SIZES);
	double		chunks = 1;

	for (;;)
	{
		CompareTurn turn = {0};

		MemoryContextReset(mcxt);
		MemoryContextSwitchTo(mcxt);
		cutover_compare_check_run(c);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (comparer_take_chunks(c, &turn, (int) chunks, mcxt))
		{
			double		seconds = comparer_turn(c, &turn);

			/* as many chunks as will take about half a second, but no leaps */
			chunks = Max(1, Min(MAX_TURN_CHUNKS, Min(chunks * 3, turn.n * TURN_SECONDS / Max(seconds, 0.001))));
			pgstat_report_stat(false);
		}
		else if (comparer_take_plan(c, &turn, mcxt))
			comparer_plan(c, &turn);
		else if (!comparer_others_work(c))
			break;
		else
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, IDLE_MS, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
		}
	}
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDelete(mcxt);
}

/* ---- beginning and end ---- */

/*
 * Write an error down, so that whoever asked can be told.
 */
static void
comparer_fail(Comparer *c, ErrorData *error)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		args[] = {Int64GetDatum(c->run), CStringGetTextDatum(error->message ? error->message : "unknown error"),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
	error->detail ? CStringGetTextDatum(error->detail) : (Datum) 0, error->hint ? CStringGetTextDatum(error->hint) : (Datum) 0};
	char		nulls[] = {' ', ' ', ' ', error->detail ? ' ' : 'n', error->hint ? ' ' : 'n'};

	cutover_compare_begin();
	cutover_local_run("UPDATE cutover._compare_run SET state = 'failed', error = $2, sqlstate = $3, detail = $4, hint = $5"
					  " WHERE run = $1 AND state = 'running'", 5, types, args, nulls);
	cutover_compare_commit();
}

/*
 * Entry point.
 */
void
cutover_compare_main(Datum arg)
{
	CutoverCompareArgs args;
	Comparer	c = {0};
	MemoryContext mcxt;
	ErrorData  *volatile error = NULL;

	(void) cutover_launcher_worker_start();
	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	c.target_id = args.base.target_id;
	c.number = args.base.number;
	c.run = args.run;
	mcxt = AllocSetContextCreate(TopMemoryContext, "cutover comparer", ALLOCSET_DEFAULT_SIZES);
	c.table_context = AllocSetContextCreate(TopMemoryContext, "cutover comparer table", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		c.slot = cutover_shmem_slot(c.target_id, true);
		if (c.slot == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("no shared memory left for cutover"),
					 errdetail("Other libraries have taken what the server keeps for those that were not preloaded, or there are too many targets."),
					 errhint("Add cutover to shared_preload_libraries at the next restart.")));
		cutover_compare_connect(&c);
		comparer_work(&c);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		if (ProcDiePending)
			proc_exit(1);
		EmitErrorReport();
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error)
	{
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(mcxt);
		comparer_fail(&c, error);
	}
	cutover_endpoint_close(c.ep);
	proc_exit(0);
}
