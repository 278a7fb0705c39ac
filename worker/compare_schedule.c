/*
 * compare_schedule.c - comparisons in the background.
 *
 * A worker of its own for each pass of a target that has a schedule.  The
 * replicator starts it when one is due, so it comes and goes with replication.
 * Everything it knows is in cutover._compare_schedule, also why a pass failed.
 */
#include "postgres.h"

#include <signal.h>
#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "action_internal.h"
#include "compare_schedule.h"
#include "compat.h"
#include "launcher.h"

#define SCHEDULE_NAME "cutover compare schedule"
/* So often the worker looks whether it may begin. */
#define SCHEDULE_POLL_MS 1000
/* Pause between two attempts to start a worker. */
#define SCHEDULE_START_MS 1000
/* No lock that SQL's advisory functions could take: those have kind 1 or 2. */
#define SCHEDULE_LOCK_CLASS 0x6375746f
#define SCHEDULE_LOCK_KIND 0x6373

static int	worker_pid = 0;		/* in the replicator: of the schedule's worker, as far as known */
static uint32 wait_event = 0;

/*
 * End the worker.
 */
void
cutover_compare_schedule_stop(void)
{
	if (worker_pid != 0 && BackendPidGetProc(worker_pid) != NULL)
		(void) kill(worker_pid, SIGTERM);
	worker_pid = 0;
}

/*
 * Compare what runs with what should run.
 */
void
cutover_compare_schedule_tend(int32 target_id)
{
	static TimestampTz started_at = 0;
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(target_id)};
	CutoverWorkerArgs wargs = {.dboid = MyDatabaseId,.target_id = target_id};
	BackgroundWorker worker;
	bool		scheduled;
	bool		due = false;
	int			pid = 0;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT pid, next_at <= pg_catalog.clock_timestamp()"
							  " FROM cutover._compare_schedule WHERE target_id = $1",
							  1, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the schedule of comparisons");
	scheduled = SPI_processed == 1;
	if (scheduled)
	{
		bool		isnull;

		pid = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		if (isnull)
			pid = 0;
		due = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();

	if (!scheduled)
	{
		cutover_compare_schedule_stop();
		return;
	}
	if (pid != 0 && BackendPidGetProc(pid) != NULL)
	{
		worker_pid = pid;
		return;
	}
	worker_pid = 0;
	if (!due || !TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(), SCHEDULE_START_MS))
		return;
	started_at = GetCurrentTimestamp();
	cutover_launcher_fill(&worker, "cutover_compare_schedule_main", SCHEDULE_NAME, &wargs, BGW_NEVER_RESTART);
	/* without a free slot: tried again */
	(void) RegisterDynamicBackgroundWorker(&worker, NULL);
}

/*
 * Be the only one for this target.
 */
static bool
schedule_lock(int32 target_id)
{
	LOCKTAG		tag;
	bool		mine;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, SCHEDULE_LOCK_CLASS, (uint32) target_id, SCHEDULE_LOCK_KIND);
	StartTransactionCommand();
	mine = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	return mine;
}

/*
 * Run a statement about our target in a transaction of its own; its first
 * value as text, NULL if there is none.
 */
static char *
schedule_run(const char *sql, int32 target_id, const char *text)
{
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		args[2] = {Int32GetDatum(target_id), text ? CStringGetTextDatum(text) : (Datum) 0};
	char		nulls[2] = {' ', text ? ' ' : 'n'};
	MemoryContext caller = CurrentMemoryContext;
	char	   *result = NULL;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args(sql, 2, types, args, nulls, false, 1) < 0)
		elog(ERROR, "statement failed: %s", sql);
	if (SPI_processed == 1 && SPI_tuptable != NULL)
	{
		char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		if (value != NULL)
			result = MemoryContextStrdup(caller, value);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return result;
}

/*
 * Make a pass if one is due and nothing stands in its way.  Returns how long to wait; -1: there is nothing to do any more.
 */
static int
schedule_turn(int32 target_id, MemoryContext context)
{
	char	   *due = schedule_run("SELECT 'due' FROM cutover._compare_schedule s JOIN cutover._target t USING (target_id)"
								   " WHERE target_id = $1 AND t.desired = 'running' AND s.next_at <= pg_catalog.clock_timestamp()"
								   " AND $2 IS NULL", target_id, NULL);
	char	   *obstacle;
	char	   *args;

	if (due == NULL)
		return -1;
	obstacle = schedule_run("SELECT cutover._compare_obstacle($1, $2::int)", target_id,
							psprintf("%ld", Max(sysconf(_SC_NPROCESSORS_ONLN), 1)));
	schedule_run("UPDATE cutover._compare_schedule s SET waiting_for = $2"
				 " WHERE s.target_id = $1 AND s.waiting_for IS DISTINCT FROM $2", target_id, obstacle);
	if (obstacle != NULL)
		return SCHEDULE_POLL_MS;
	/* one argument: a byte that says it is not NULL, and the text */
	args = psprintf("\1%d", target_id);
	(void) cutover_action_execute("CALL cutover._scheduled_pass($1::int)", 1, args, context);
	return -1;
}

/*
 * Write down why a pass failed.
 */
static void
schedule_note_failure(int32 target_id, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(context);
	schedule_run("SELECT cutover._note_failed_pass($1, $2)", target_id, error->message);
}

/*
 * Entry point.
 */
void
cutover_compare_schedule_main(Datum arg)
{
	CutoverWorkerArgs args = cutover_launcher_worker_start();
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, SCHEDULE_NAME, ALLOCSET_DEFAULT_SIZES);
	bool		failed = false;

	if (!schedule_lock(args.target_id))
		proc_exit(0);			/* another one lives */
	schedule_run("UPDATE cutover._compare_schedule s SET pid = pg_catalog.pg_backend_pid(), running = false"
				 " WHERE s.target_id = $1 AND $2 IS NULL", args.target_id, NULL);
	while (!failed)
	{
		volatile int wait_ms = 0;

		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		PG_TRY();
		{
			wait_ms = schedule_turn(args.target_id, context);
		}
		PG_CATCH();
		{
			schedule_note_failure(args.target_id, context);
			failed = true;
		}
		PG_END_TRY();
		if (wait_ms < 0)
			break;
		if (wait_ms > 0 && !failed)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, wait_ms,
							 cutover_wait_event_compat(&wait_event, "CutoverCompareSchedule"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
	proc_exit(0);
}
