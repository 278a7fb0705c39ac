/*
 * launcher.c - how background workers come to life.
 *
 * A replicator is a dynamic worker with a restart interval: the postmaster
 * brings it back after a crash.  Dynamic workers do not survive a restart of
 * the server; then either the launcher (with shared_preload_libraries) probes
 * every database once, or whatever of ours runs first in a backend starts the
 * replicator (cutover_launcher_start_replicator).
 */
#include "postgres.h"

#include <unistd.h>

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "launcher.h"
#include "replicator.h"
#include "shmem.h"

#define RESTART_SECONDS 5
#define START_PACE_MS 1000
#define UNSEEN_PACE_MS 10000

static bool worker_connected = false;

/*
 * End without a restart where the database is gone.
 *
 * A worker that can't connect dies with FATAL, which the postmaster takes for
 * a crash and answers with a restart, for ever once the database was dropped.
 * Shared memory has been cleaned up (shmem_exit) before these callbacks run.
 */
static void
launcher_exit_if_unconnected(int code, Datum arg)
{
	if (!worker_connected)
		_exit(0);
}

/*
 * Describe a dynamic worker.
 */
void
cutover_launcher_fill(BackgroundWorker *worker, const char *function, const char *what,
					  const CutoverWorkerArgs *args, int restart_s)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = restart_s;
	snprintf(worker->bgw_library_name, sizeof(worker->bgw_library_name), "cutover");
	snprintf(worker->bgw_function_name, sizeof(worker->bgw_function_name), "%s", function);
	snprintf(worker->bgw_name, sizeof(worker->bgw_name), "%s", what);
	snprintf(worker->bgw_type, sizeof(worker->bgw_type), "%s", what);
	StaticAssertStmt(sizeof(*args) <= BGW_EXTRALEN, "worker arguments too large");
	memcpy(worker->bgw_extra, args, sizeof(*args));
}

/*
 * Pin what our SQL and the text form of values depend on.
 */
static void
launcher_pin_settings(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"extra_float_digits", "3"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
		{"xmloption", "content"},
		{"row_security", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
#if PG_VERSION_NUM >= 170000
		{"transaction_timeout", "0"},
#endif
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"synchronize_seqscans", "off"},
		{"jit", "off"},
	};

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Become the owner of the extension, if it is there: the address of new is
 * mapped for that role.
 */
static void
launcher_become_owner(void)
{
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tup;
	char	   *owner = NULL;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("cutover"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tup = systable_getnext(scan);
	if (HeapTupleIsValid(tup))
		owner = GetUserNameFromId(((Form_pg_extension) GETSTRUCT(tup))->extowner, false);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (owner != NULL)
		SetConfigOption("session_authorization", owner, PGC_SUSET, PGC_S_OVERRIDE);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Common start of every worker of a database.
 */
CutoverWorkerArgs
cutover_launcher_worker_start(void)
{
	CutoverWorkerArgs args;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	on_proc_exit(launcher_exit_if_unconnected, 0);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(args.dboid, InvalidOid, 0);
	worker_connected = true;
	launcher_pin_settings();
	launcher_become_owner();
	pgstat_report_appname(MyBgworkerEntry->bgw_type);
	return args;
}

/*
 * Start the replicator of a target, at most once a second.
 */
bool
cutover_launcher_start_replicator(int32 target_id)
{
	CutoverSlot *slot = cutover_shmem_slot(target_id, true);
	CutoverWorkerArgs args = {.dboid = MyDatabaseId,.target_id = target_id};
	BackgroundWorker worker;
	TimestampTz now;

	if (RecoveryInProgress())
		return true;
	now = GetCurrentTimestamp();
	if (slot == NULL)
	{
		/* nobody can see whether one lives: one more ends by itself (replicator_lock) */
		static TimestampTz last_start = 0;

		if (last_start != 0 && !TimestampDifferenceExceeds(last_start, now, UNSEEN_PACE_MS))
			return true;
		last_start = now;
	}
	else
	{
		if (slot->pid != 0 && kill(slot->pid, 0) == 0)
			return true;
		if (slot->last_start != 0 &&
			!TimestampDifferenceExceeds(slot->last_start, now, START_PACE_MS))
			return true;
		slot->last_start = now;
	}
	cutover_launcher_fill(&worker, "cutover_replicator_main", "cutover replicator", &args, RESTART_SECONDS);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/*
 * Start a shadow worker, at most once a second.  It ends by itself and comes back when there are samples.
 */
bool
cutover_launcher_start_shadow(CutoverSlot *slot, int32 target_id, int n)
{
	CutoverWorkerArgs args = {.dboid = MyDatabaseId,.target_id = target_id,.number = n};
	CutoverShadowWorker *place = &slot->shadow[n];
	BackgroundWorker worker;
	TimestampTz now = GetCurrentTimestamp();

	if (RecoveryInProgress() || n >= CUTOVER_MAX_SHADOW_WORKERS || n >= cutover_guc_shadow_workers)
		return false;
	if (place->pid != 0 && kill(place->pid, 0) == 0)
		return true;
	if (place->last_start != 0 && !TimestampDifferenceExceeds(place->last_start, now, START_PACE_MS))
		return true;
	place->last_start = now;
	cutover_launcher_fill(&worker, "cutover_shadow_main", "cutover shadow reader", &args, BGW_NEVER_RESTART);
	return RegisterDynamicBackgroundWorker(&worker, NULL);
}

/*
 * Register the launcher, which runs once after every start of the server.
 */
void
cutover_launcher_init(void)
{
	BackgroundWorker worker;
	CutoverWorkerArgs args = {0};

	if (IsBinaryUpgrade)
		return;
	cutover_launcher_fill(&worker, "cutover_launcher_main", "cutover launcher", &args, RESTART_SECONDS);
	RegisterBackgroundWorker(&worker);
}

/*
 * List the databases that a worker may connect to, in the caller's context.
 */
static List *
launcher_databases(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tup;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tup = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tup);

		if (db->datallowconn && !db->datistemplate)
		{
			MemoryContext old = MemoryContextSwitchTo(caller);

			result = lappend_oid(result, db->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return result;
}

/*
 * Launcher: send a probe into every database, then end.
 */
void
cutover_launcher_main(Datum arg)
{
	List	   *databases;
	ListCell   *lc;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	databases = launcher_databases();

	foreach(lc, databases)
	{
		CutoverWorkerArgs args = {.dboid = lfirst_oid(lc)};
		BackgroundWorker worker;
		BackgroundWorkerHandle *handle;

		cutover_launcher_fill(&worker, "cutover_probe_main", "cutover probe", &args, BGW_NEVER_RESTART);
		worker.bgw_notify_pid = MyProcPid;
		while (!RegisterDynamicBackgroundWorker(&worker, &handle))
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 1000, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		/* one at a time: slots are few */
		if (WaitForBackgroundWorkerShutdown(handle) == BGWH_POSTMASTER_DIED)
			proc_exit(1);
	}
	proc_exit(0);
}

/*
 * Probe: start the replicators that should run in this database.
 */
void
cutover_probe_main(Datum arg)
{
	(void) cutover_launcher_worker_start();
	StartTransactionCommand();
	if (OidIsValid(get_extension_oid("cutover", true)))
	{
		SPI_connect();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (SPI_execute("SELECT target_id FROM cutover._target WHERE desired = 'running'", true, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not read the targets");
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;
			int32		target_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));

			if (!cutover_launcher_start_replicator(target_id))
				ereport(LOG,
						(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						 errmsg("no free worker slot for the replicator of target %d", target_id),
						 errhint("Raise max_worker_processes.")));
		}
		PopActiveSnapshot();
		SPI_finish();
	}
	CommitTransactionCommand();
	proc_exit(0);
}
