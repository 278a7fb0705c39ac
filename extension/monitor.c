/*
 * monitor.c - what the replicators of this database say of themselves.
 *
 * Runs in the backend of whoever reads a view.  Functions in a view run with
 * the rights of the reader, and whoever may read the views may call this
 * directly too.  An error text from new may hold row values, so it is handed
 * out here only to those who may read every table of the target.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "launcher.h"
#include "shmem.h"

#define WORKER_STATS_COLS 14

typedef struct MonitorTarget
{
	int32		target_id;
	bool		readable;		/* the reader may see row values of every table */
	bool		secretive;		/* a table that the reader may not see waits for something */
	bool		running;		/* a replicator should live */
} MonitorTarget;

static const char monitor_hidden[] = "shown to those who may read every table of the target";

PG_FUNCTION_INFO_V1(cutover_worker_stats);

/*
 * Look up the owner of a function of ours, who may read our tables.
 */
static Oid
monitor_owner(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * List the targets, and whether the reader may see their row values.  The SQL
 * function has its search_path pinned.
 */
static MonitorTarget *
monitor_read_targets(Oid reader, int *ntargets)
{
	MemoryContext caller = CurrentMemoryContext;
	MonitorTarget *targets;
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(reader)};

	SPI_connect();
	if (SPI_execute_with_args("SELECT t.target_id, coalesce(bool_and(cutover._may_read($1, b.old_table)), true),"
							  " coalesce(bool_or(b.phase_reason IS NOT NULL AND NOT cutover._may_read($1, b.old_table)), false),"
							  " t.desired = 'running' AND cutover._is_this_cluster(t.system_identifier)"
							  " FROM cutover._target t LEFT JOIN cutover._table b USING (target_id)"
							  " GROUP BY t.target_id ORDER BY t.target_id",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the targets");

	*ntargets = (int) SPI_processed;
	targets = MemoryContextAlloc(caller, sizeof(MonitorTarget) * (SPI_processed + 1));
	for (int i = 0; i < *ntargets; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		targets[i].target_id = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		targets[i].readable = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
		targets[i].secretive = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
		targets[i].running = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull));
	}
	SPI_finish();
	return targets;
}

/*
 * Make the row of one slot.
 */
static void
monitor_put_slot(ReturnSetInfo *rsinfo, CutoverSlot *slot, const MonitorTarget *target)
{
	CutoverStats stats;
	pid_t		pid = slot->pid;
	Datum		values[WORKER_STATS_COLS] = {0};
	bool		nulls[WORKER_STATS_COLS] = {0};
	Interval   *lag = palloc0(sizeof(Interval));
	bool		hidden;

	cutover_shmem_get_stats(slot, &stats);
	/* what the worker waits for may be the next attempt after that error, or the reason of a table */
	hidden = stats.last_error_quotes && !target->readable;
	/* what another process wrote is not trusted to end */
	stats.waiting_for[CUTOVER_TEXT_LEN - 1] = '\0';
	stats.last_error[CUTOVER_TEXT_LEN - 1] = '\0';

	values[0] = Int32GetDatum(target->target_id);
	values[1] = Int32GetDatum((int32) pid);
	nulls[1] = pid == 0;
	values[2] = Int64GetDatum((int64) stats.applied_changes);
	values[3] = Float8GetDatum(stats.changes_per_s);
	values[4] = Int64GetDatum((int64) stats.retries);
	lag->time = Max(stats.lag_us, 0);
	values[5] = IntervalPGetDatum(lag);
	nulls[5] = stats.lag_us < 0;
	values[6] = Int64GetDatum((int64) stats.acked_k);
	values[7] = TimestampTzGetDatum(stats.acked_at);
	nulls[7] = stats.acked_at == 0;
	values[8] = CStringGetTextDatum(target->secretive || hidden ? monitor_hidden : stats.waiting_for);
	nulls[8] = stats.waiting_for[0] == '\0';
	values[9] = CStringGetTextDatum(hidden ? monitor_hidden : stats.last_error);
	nulls[9] = stats.last_error[0] == '\0';
	values[10] = TimestampTzGetDatum(stats.last_error_at);
	nulls[10] = stats.last_error_at == 0;
	values[11] = BoolGetDatum(stats.reverse);
	values[12] = Int64GetDatum(stats.queued);
	nulls[12] = !stats.reverse || stats.queued < 0;
	values[13] = Int64GetDatum(stats.queue_bytes);
	nulls[13] = !stats.reverse;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * cutover._worker_stats(): a row for each target whose replicator has run
 * since the server started.  Starts a replicator that should run and does not.
 */
Datum
cutover_worker_stats(PG_FUNCTION_ARGS)
{
	Oid			reader;
	int			sec_context;
	int			ntargets;
	MonitorTarget *targets;

	InitMaterializedSRF(fcinfo, 0);

	GetUserIdAndSecContext(&reader, &sec_context);
	SetUserIdAndSecContext(monitor_owner(fcinfo->flinfo->fn_oid),
						   sec_context | SECURITY_LOCAL_USERID_CHANGE);
	targets = monitor_read_targets(reader, &ntargets);
	SetUserIdAndSecContext(reader, sec_context);

	for (int i = 0; i < ntargets; i++)
	{
		CutoverSlot *slot = cutover_shmem_slot(targets[i].target_id, false);

		/* who looks first after a restart brings the worker back; without a free slot the view says what to do */
		if (targets[i].running && (slot == NULL || slot->pid == 0))
			(void) cutover_launcher_start_replicator(targets[i].target_id);

		if (slot != NULL)
			monitor_put_slot((ReturnSetInfo *) fcinfo->resultinfo, slot, &targets[i]);
	}
	return (Datum) 0;
}
