/*
 * comparer_start.c - the worker of an action starts comparers, and they end with it.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "utils/memutils.h"

#include "comparer.h"

PG_FUNCTION_INFO_V1(cutover_compare_start);
PG_FUNCTION_INFO_V1(cutover_compare_is_alive);
PG_FUNCTION_INFO_V1(cutover_compare_living);

static List *handles = NIL;

/*
 * Leave no comparer behind.
 */
static void
start_end_comparers(int code, Datum arg)
{
	ListCell   *lc;

	foreach(lc, handles)
		TerminateBackgroundWorker(lfirst(lc));
}

/*
 * cutover._start_comparer(target_id int, run bigint, number int) RETURNS boolean:
 * false without a free worker slot
 */
Datum
cutover_compare_start(PG_FUNCTION_ARGS)
{
	CutoverCompareArgs args = {
		.base = {.dboid = MyDatabaseId,.target_id = PG_GETARG_INT32(0),.number = PG_GETARG_INT32(2)},
		.run = PG_GETARG_INT64(1)
	};
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	MemoryContext old;

	StaticAssertStmt(sizeof(args) <= BGW_EXTRALEN, "worker arguments too large");
	cutover_launcher_fill(&worker, "cutover_compare_main", "cutover comparer", &args.base, BGW_NEVER_RESTART);
	memcpy(worker.bgw_extra, &args, sizeof(args));
	worker.bgw_notify_pid = MyProcPid;
	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		MemoryContextSwitchTo(old);
		PG_RETURN_BOOL(false);
	}
	if (handles == NIL)
		before_shmem_exit(start_end_comparers, (Datum) 0);
	handles = lappend(handles, handle);
	MemoryContextSwitchTo(old);
	PG_RETURN_BOOL(true);
}

/*
 * cutover._living_comparers() RETURNS int: of those that this process started
 */
Datum
cutover_compare_living(PG_FUNCTION_ARGS)
{
	ListCell   *lc;
	int			result = 0;

	foreach(lc, handles)
	{
		pid_t		pid;
		BgwHandleStatus status = GetBackgroundWorkerPid(lfirst(lc), &pid);

		result += status == BGWH_STARTED || status == BGWH_NOT_YET_STARTED;
	}
	PG_RETURN_INT32(result);
}

/*
 * cutover._is_backend(pid int) RETURNS boolean: does a process of this server have this number?
 */
Datum
cutover_compare_is_alive(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(BackendPidGetProc(PG_GETARG_INT32(0)) != NULL);
}
