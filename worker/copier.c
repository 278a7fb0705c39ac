/*
 * copier.c - the replicator's side of the first copy.
 *
 * Changes of phase that decide what the replicator does with a table's changes
 * (waiting to copying, copying to catching_up) are made here, in its own
 * process and between its transactions.  The work is done by copier processes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "copier.h"
#include "copier_prepare.h"
#include "copy_chunk.h"
#include "guc.h"
#include "launcher.h"
#include "local.h"
#include "retry.h"
#include "shmem.h"

#define TICK_MS 100
#define COUNT_MS 1000			/* how often new is asked what is still to be built */
#define RESTART_MS 1000			/* a copier is not started again sooner */
#define MAX_JOBS 64				/* limit of cutover.copy_jobs */

typedef struct CopierHandle
{
	BackgroundWorkerHandle *handle; /* NULL = none that we started */
	TimestampTz started;
} CopierHandle;

typedef struct TickTable
{
	int32		table_id;
	char		phase;			/* first letter, 'r' never stands here */
	bool		copy;
	int32		generation;
	int			open_chunks;	/* at most MAX_JOBS are counted */
	char	   *reason;
} TickTable;

typedef struct TickFailure
{
	int32		table_id;
	int			attempts;
	TimestampTz due;
} TickFailure;

static bool awake = true;
static TimestampTz next_look = 0;
static int32 driven_target = 0;
static CopierHandle handles[MAX_JOBS];
static int	live = 0;
static int	wanted = 0;
static bool no_slot = false;
static uint64 seen_phases = 0;	/* to notice what copiers changed */
static List *failures = NIL;	/* of TickFailure, in TopMemoryContext */
static char waiting_for[CUTOVER_TEXT_LEN];

void
cutover_copier_wake(void)
{
	awake = true;
	next_look = 0;
}

/* ---- copier processes ---- */

/*
 * Count copiers that live; free the handles of those that ended.
 */
static void
copier_reap(void)
{
	live = 0;
	for (int i = 0; i < MAX_JOBS; i++)
	{
		pid_t		pid;

		if (handles[i].handle == NULL)
			continue;
		if (GetBackgroundWorkerPid(handles[i].handle, &pid) == BGWH_STOPPED)
		{
			pfree(handles[i].handle);
			handles[i].handle = NULL;
		}
		else
			live++;
	}
}

/*
 * Start copier number i; false if there is no slot for it.
 */
static bool
copier_start(int i)
{
	CutoverWorkerArgs args = {.dboid = MyDatabaseId,.target_id = driven_target,.number = i};
	BackgroundWorker worker;
	MemoryContext old;
	bool		started;

	cutover_launcher_fill(&worker, "cutover_copier_main", "cutover copier", &args, BGW_NEVER_RESTART);
	worker.bgw_notify_pid = MyProcPid;
	old = MemoryContextSwitchTo(TopMemoryContext);
	started = RegisterDynamicBackgroundWorker(&worker, &handles[i].handle);
	MemoryContextSwitchTo(old);
	if (!started)
		handles[i].handle = NULL;
	handles[i].started = GetCurrentTimestamp();
	return started;
}

/*
 * Start copiers until there are as many as are wanted.
 */
static void
copier_start_wanted(void)
{
	/* other functions of ours need worker processes too */
	int			limit = Min(cutover_guc_copy_jobs, Max(1, max_worker_processes / 2));
	int			target = Min(wanted, limit);

	no_slot = false;
	for (int i = 0; i < target; i++)
	{
		if (handles[i].handle != NULL)
			continue;
		if (handles[i].started != 0 &&
			!TimestampDifferenceExceeds(handles[i].started, GetCurrentTimestamp(), RESTART_MS))
			continue;
		/* a copier of a replicator that died goes on under its number */
		if (!cutover_copy_lock_number(driven_target, i, false))
			continue;
		cutover_copy_unlock_number(driven_target, i);
		if (copier_start(i))
			live++;
		else
			no_slot = live == 0;
		if (handles[i].handle == NULL)
			return;
	}
}

/*
 * Start copiers again that died.
 */
void
cutover_copier_keep_alive(int32 target_id)
{
	driven_target = target_id;
	copier_reap();
	wanted = Max(wanted, 1);
	copier_start_wanted();
}

/*
 * Stop all copiers and wait for their end.
 */
void
cutover_copier_stop(void)
{
	for (int i = 0; i < MAX_JOBS; i++)
		if (handles[i].handle)
			TerminateBackgroundWorker(handles[i].handle);
	for (int i = 0; i < MAX_JOBS; i++)
	{
		if (handles[i].handle == NULL)
			continue;
		(void) WaitForBackgroundWorkerShutdown(handles[i].handle);
		pfree(handles[i].handle);
		handles[i].handle = NULL;
		handles[i].started = 0;
	}
	/* those of a former replicator notice by themselves that they are no longer wanted */
	for (int i = 0; driven_target != 0 && i < MAX_JOBS; i++)
	{
		(void) cutover_copy_lock_number(driven_target, i, true);
		cutover_copy_unlock_number(driven_target, i);
	}
	live = wanted = 0;
	awake = true;
	next_look = 0;
}

bool
cutover_copier_busy(int32 target_id)
{
	return awake || live > 0 || wanted > 0;
}

const char *
cutover_copier_waiting_for(void)
{
	if (no_slot)
		return "no free worker slot for a copier; raise max_worker_processes";
	return waiting_for[0] ? waiting_for : NULL;
}

/* ---- failures of a table, here ---- */

static TickFailure *
tick_find_failure(int32 table_id)
{
	ListCell   *lc;

	foreach(lc, failures)
		if (((TickFailure *) lfirst(lc))->table_id == table_id)
			return lfirst(lc);
	return NULL;
}

static void
tick_forget_failure(int32 table_id)
{
	TickFailure *failure = tick_find_failure(table_id);

	if (failure == NULL)
		return;
	failures = list_delete_ptr(failures, failure);
	pfree(failure);
}

static bool
tick_may_try(int32 table_id)
{
	TickFailure *failure = tick_find_failure(table_id);

	return failure == NULL || failure->due <= GetCurrentTimestamp();
}

/*
 * Remember and show that a table could not be prepared.
 */
static void
tick_note_failure(int32 table_id, ErrorData *error)
{
	TickFailure *failure = tick_find_failure(table_id);
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(table_id), 0};

	if (failure == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		failure = palloc0(sizeof(TickFailure));
		failure->table_id = table_id;
		failures = lappend(failures, failure);
		MemoryContextSwitchTo(old);
	}
	failure->attempts++;
	failure->due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   cutover_retry_delay(failure->attempts, cutover_guc_retry_max_delay));
	values[1] = CStringGetTextDatum(psprintf("%s (%s)", error->message, unpack_sql_state(error->sqlerrcode)));
	cutover_local_begin();
	cutover_local_run("UPDATE cutover._table SET phase_reason = $2 WHERE table_id = $1"
					  " AND phase IN ('waiting', 'copying') AND phase_reason IS DISTINCT FROM $2",
					  2, types, values, NULL);
	cutover_local_commit(false);
}

/* ---- looking ---- */

/*
 * Tables of the target that the copy is not over for, in mcxt.  Sets the text
 * of what is waited for and notices changes of phase.
 */
static List *
tick_read_tables(MemoryContext mcxt, bool *changed)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(driven_target)};
	List	   *result = NIL;
	MemoryContext old;
	uint64		phases = 0;
	uint64		n;

	cutover_local_begin();
	n = cutover_local_run("SELECT t.table_id, t.phase, t.copy, t.copy_generation, t.phase_reason,"
						  " CASE WHEN t.phase = 'copying' THEN (SELECT count(*) FROM (SELECT FROM cutover._chunk c"
						  " WHERE c.table_id = t.table_id AND c.generation = t.copy_generation AND c.state <> 'done'"
						  " LIMIT 64) x) ELSE 0 END"
						  " FROM cutover._table t WHERE t.target_id = $1"
						  " AND t.phase IN ('waiting', 'copying', 'catching_up', 'indexing') ORDER BY t.table_id",
						  1, types, args, NULL);
	old = MemoryContextSwitchTo(mcxt);
	waiting_for[0] = '\0';
	for (uint64 i = 0; i < n; i++)
	{
		TickTable  *table = palloc0(sizeof(TickTable));
		char	   *phase = cutover_local_text(i, 2);

		table->table_id = (int32) cutover_local_int(i, 1);
		table->phase = strcmp(phase, "catching_up") == 0 ? 'u' : phase[0];
		table->copy = cutover_local_int(i, 3) != 0;
		table->generation = (int32) cutover_local_int(i, 4);
		table->reason = cutover_local_text(i, 5);
		table->open_chunks = (int) cutover_local_int(i, 6);
		if (table->reason && waiting_for[0] == '\0')
			strlcpy(waiting_for, table->reason, sizeof(waiting_for));
		phases = (phases * 31 + table->table_id) * 31 + table->phase;
		phases = phases * 31 + table->generation;
		result = lappend(result, table);
	}
	MemoryContextSwitchTo(old);
	cutover_local_commit(false);
	*changed = phases != seen_phases;
	seen_phases = phases;
	return result;
}

/*
 * Index builds that are still to do on new, at least one for each table.
 */
static int
tick_count_builds(List *tables, CutoverEndpoint *ep)
{
	static TimestampTz counted_at = 0;
	static int	count = 0;
	StringInfoData ids;
	const char *args[1];
	int			indexing = 0;
	ListCell   *lc;

	initStringInfo(&ids);
	foreach(lc, tables)
	{
		TickTable  *table = lfirst(lc);

		if (table->phase != 'i')
			continue;
		indexing++;
		appendStringInfo(&ids, "%c%d", ids.len ? ',' : '{', table->table_id);
	}
	/* an index that is built on new keeps the changes of its table waiting; a dead host shows all the same */
	(void) cutover_endpoint_set_timeout(ep, indexing > 0 ? 0 : cutover_guc_network_timeout);
	if (indexing == 0)
		return 0;
	if (TimestampDifferenceExceeds(counted_at, GetCurrentTimestamp(), COUNT_MS))
	{
		appendStringInfoChar(&ids, '}');
		args[0] = ids.data;
		count = atoi(CUTOVER_CELL(cutover_endpoint_exec_params(ep,
															   "SELECT count(*) FROM cutover.deferred WHERE table_id = ANY ($1::int[])"
															   " AND kind IN ('index', 'unique', 'exclude')",
															   1, args), 0, 0));
		counted_at = GetCurrentTimestamp();
	}
	return Max(indexing, count);
}

/* ---- the tick ---- */

/*
 * Take one table one phase further, if it is its turn.
 */
static bool
tick_advance(TickTable *table, CutoverEndpoint *ep)
{
	MemoryContext mcxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	volatile bool changed = false;

	if (!(table->phase == 'w' || (table->phase == 'c' && table->open_chunks == 0)) || !tick_may_try(table->table_id))
		return false;
	PG_TRY();
	{
		if (table->phase == 'w')
			changed = cutover_copier_prepare(driven_target, table->table_id, table->generation, table->copy, ep);
		else
			changed = cutover_copier_complete(table->table_id, table->generation, ep);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(mcxt);
	if (error == NULL)
	{
		tick_forget_failure(table->table_id);
		return changed;
	}
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(mcxt);
	if (!cutover_endpoint_reset(ep) || cutover_retry_classify(error->sqlerrcode) == CUTOVER_ERROR_CONNECTION)
		ReThrowError(error);
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("copy of table %d can't go on yet: %s", table->table_id, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0));
	tick_note_failure(table->table_id, error);
	MemoryContextSwitchTo(mcxt);
	return false;
}

/*
 * Look at all tables: advance them, start copiers.
 */
static bool
copier_look(CutoverEndpoint *ep)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext mcxt = AllocSetContextCreate(TopMemoryContext, "cutover copier tick", ALLOCSET_SMALL_SIZES);
	bool		changed = false;
	bool		prepared = false;
	List	   *tables;
	ListCell   *lc;

	PG_TRY();
	{
		tables = tick_read_tables(mcxt, &changed);
		MemoryContextSwitchTo(mcxt);
		wanted = tick_count_builds(tables, ep);
		foreach(lc, tables)
		{
			TickTable  *table = lfirst(lc);

			wanted += table->open_chunks;
			/* emptying and planning take a moment: one table each time */
			if (table->phase == 'w' && prepared)
				continue;
			prepared |= table->phase == 'w' && tick_may_try(table->table_id);
			changed |= tick_advance(table, ep);
		}
		if (changed)
			next_look = 0;
		awake = tables != NIL || live > 0;
		copier_start_wanted();
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(caller);
		MemoryContextDelete(mcxt);
	}
	PG_END_TRY();
	return changed;
}

/*
 * One turn of the replicator's loop.
 */
bool
cutover_copier_tick(int32 target_id, CutoverEndpoint *ep)
{
	TimestampTz now;

	if (!awake)
		return false;
	now = GetCurrentTimestamp();
	if (now < next_look)
		return false;
	next_look = TimestampTzPlusMilliseconds(now, TICK_MS);
	driven_target = target_id;
	copier_reap();
	return copier_look(ep);
}

/*
 * Begin a table's copy anew.
 */
void
cutover_copier_restart_table(int32 table_id, int32 generation, const char *why)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(table_id), Int32GetDatum(generation), CStringGetTextDatum(why)};

	if (cutover_local_run("UPDATE cutover._table SET phase = 'waiting', copy_generation = copy_generation + 1,"
						  " phase_since = pg_catalog.clock_timestamp(), phase_reason = $3"
						  " WHERE table_id = $1 AND copy_generation = $2", 3, types, values, NULL) == 0)
		return;
	cutover_local_run("DELETE FROM cutover._chunk WHERE table_id = $1", 1, types, values, NULL);
	cutover_local_run("SELECT cutover._log_event('copy_restarted', pg_catalog.jsonb_build_object("
					  "'table', t.old_table::pg_catalog.regclass::text, 'reason', $3), t.target_id)"
					  " FROM cutover._table t WHERE t.table_id = $1 AND $2 IS NOT NULL", 3, types, values, NULL);
}
