/*
 * comparer_wait.c - a comparer waits: until new has what old had, and so as
 * not to be in anybody's way; and it looks whether it is still wanted.
 */
#include "postgres.h"

#include <unistd.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "comparer.h"
#include "guc.h"
#include "local.h"

#define LOOK_EVERY_MS 500		/* at the run */
#define WAIT_STEP_MS 100
#define SILENT_MS 2000			/* then it is said that we wait */
#define MAX_REST_S 10.0

static uint32 wait_event = 0;
static uint32 rest_event = 0;

/*
 * The target as it is now; raises if there is nothing to compare any more.
 */
void
cutover_compare_look_at_target(Comparer *c)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(c->target_id)};
	char	   *desired;

	cutover_compare_begin();
	if (cutover_local_run("SELECT desired, mode = 'new_only', epoch, target FROM cutover._target WHERE target_id = $1",
						  1, types, args, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the target is gone"),
				 errdetail("It was dropped or cancelled while it was compared."),
				 errhint("See cutover.status for the targets there are.")));
	desired = cutover_local_text(0, 1);
	if (strcmp(desired, "running") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("target \"%s\" does not run", cutover_local_text(0, 4)),
				 errdetail("Its state is %s; new would not get the changes that a comparison has to wait for.", desired),
				 errhint("Call cutover_resume(), then compare again: it goes on where it was.")));
	c->new_is_master = cutover_local_int(0, 2) != 0;
	c->epoch = cutover_local_int(0, 3);
	cutover_compare_commit();
}

/*
 * Is the side that is right still the same?
 */
bool
cutover_compare_same_epoch(Comparer *c)
{
	int64		epoch = c->epoch;

	cutover_compare_look_at_target(c);
	return c->epoch == epoch;
}

/*
 * Ends this process if its run has ended, or whoever coordinates it is gone.
 */
void
cutover_compare_check_run(Comparer *c)
{
	static TimestampTz looked_at = 0;
	Oid			types[] = {INT8OID};
	Datum		args[] = {Int64GetDatum(c->run)};
	TimestampTz now = GetCurrentTimestamp();
	bool		wanted;

	CHECK_FOR_INTERRUPTS();
	if (looked_at != 0 && !TimestampDifferenceExceeds(looked_at, now, LOOK_EVERY_MS))
		return;
	looked_at = now;
	cutover_compare_begin();
	wanted = cutover_local_run("SELECT pid FROM cutover._compare_run WHERE run = $1 AND state = 'running'", 1, types, args, NULL) > 0 &&
		BackendPidGetProc((int) cutover_local_int(0, 1)) != NULL;
	if (!wanted)
		cutover_local_run("UPDATE cutover._compare_run SET state = 'stopped', ended_at = pg_catalog.clock_timestamp(), pid = NULL"
						  " WHERE run = $1 AND state = 'running'", 1, types, args, NULL);
	cutover_compare_commit();
	if (!wanted)
		proc_exit(0);
}

/*
 * Say why it does not go on; NULL: it does.
 */
void
cutover_compare_say(Comparer *c, const char *why)
{
	static bool said = false;
	Oid			types[] = {INT8OID, INT4OID, TEXTOID};
	Datum		args[] = {Int64GetDatum(c->run), Int32GetDatum(c->table ? c->table->table_id : 0),
	why ? CStringGetTextDatum(why) : (Datum) 0};

	if (why == NULL && !said)
		return;
	said = why != NULL;
	cutover_compare_begin();
	cutover_local_run("UPDATE cutover._compare_result SET waiting_for = $3 WHERE run = $1 AND table_id = $2 AND NOT complete"
					  " AND waiting_for IS DISTINCT FROM $3", 3, types, args, why ? NULL : "  n");
	cutover_compare_commit();
}

/*
 * Wait until the side that follows has all that was committed on the other.
 */
void
cutover_compare_await_new(Comparer *c)
{
	TimestampTz start = GetCurrentTimestamp();
	uint64		ticket;
	bool		said = false;

	ticket = pg_atomic_add_fetch_u64(&c->slot->wanted, 1);
	cutover_shmem_wake(c->slot);
	ConditionVariablePrepareToSleep(&c->slot->cv);
	while (pg_atomic_read_u64(&c->slot->applied) < ticket)
	{
		(void) ConditionVariableTimedSleep(&c->slot->cv, WAIT_STEP_MS,
										   cutover_wait_event_compat(&wait_event, "CutoverCompareWait"));
		if (pg_atomic_read_u64(&c->slot->applied) >= ticket || !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), SILENT_MS))
			continue;
		ConditionVariableCancelSleep();
		if (!said)
			cutover_compare_say(c, "new to have what was committed on old");
		said = true;
		cutover_compare_check_run(c);
		cutover_compare_look_at_target(c);
		(void) cutover_launcher_start_replicator(c->target_id);
		cutover_shmem_wake(c->slot);
		ConditionVariablePrepareToSleep(&c->slot->cv);
	}
	ConditionVariableCancelSleep();
	if (said)
		cutover_compare_say(c, NULL);
}

/*
 * Sessions of clients that are at work on this server now.
 */
static double
wait_busy_sessions(void)
{
	double		result;

	cutover_compare_begin();
	cutover_local_run("SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE state = 'active'"
					  " AND backend_type = 'client backend'"
					  " AND (wait_event_type IS NULL OR wait_event_type IN ('IO', 'LWLock', 'BufferPin'))", 0, NULL, NULL, NULL);
	result = (double) cutover_local_int(0, 1);
	cutover_compare_commit();
	return result;
}

/*
 * Rest after a piece of work: not at all while old has processors to spare,
 * ever longer the busier it is; and as long as cutover.compare_max_rate wants.
 */
void
cutover_compare_rest(Comparer *c, int64 rows, double seconds)
{
	double		processors = Max(sysconf(_SC_NPROCESSORS_ONLN), 1);
	double		rest = 0;
	double		load;
	bool		by_rate = false;

	c->busy = c->measured ? c->busy * 0.6 + wait_busy_sessions() * 0.4 : wait_busy_sessions();
	c->measured = true;
	load = c->busy / processors;
	if (load > 0.3)
		rest = seconds * Min((load - 0.3) * 8, 9);
	if (cutover_guc_compare_max_rate > 0)
	{
		double		by = rows * (double) cutover_guc_compare_jobs / cutover_guc_compare_max_rate - seconds;

		by_rate = by > rest;
		rest = Max(rest, by);
	}
	if (rest < 0.005)
	{
		cutover_compare_say(c, NULL);
		return;
	}
	cutover_compare_say(c, by_rate ? "cutover.compare_max_rate" : "old to be less busy");
	rest = Min(rest, MAX_REST_S);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, (long) (rest * 1000),
					 cutover_wait_event_compat(&rest_event, "CutoverCompareRest"));
	ResetLatch(MyLatch);
	cutover_compare_check_run(c);
}
