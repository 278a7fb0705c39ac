/*
 * wait.c - a session waits until new has what was committed, and asks for workers.
 *
 * Runs in the caller's backend.  The replicator serves a ticket once everything
 * that was committed when it was drawn has been applied and committed on new.
 * Tickets and the condition variable live in the target's slot; where shared
 * memory has no room for slots there is nothing to wait on.
 */
#include "postgres.h"

#include <signal.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "endpoint.h"
#include "launcher.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(cutover_draw_ticket);
PG_FUNCTION_INFO_V1(cutover_await_ticket);
PG_FUNCTION_INFO_V1(cutover_start_replicator);
PG_FUNCTION_INFO_V1(cutover_replicator_pid);
PG_FUNCTION_INFO_V1(cutover_wake_replicator);
PG_FUNCTION_INFO_V1(cutover_stop_replicator);
PG_FUNCTION_INFO_V1(cutover_forget_target);
PG_FUNCTION_INFO_V1(cutover_remote_long);
PG_FUNCTION_INFO_V1(cutover_instance);

extern Datum cutover_remote(PG_FUNCTION_ARGS);

#define WAIT_STEP_MS 1000

static uint32 wait_event = 0;

/*
 * The slot of a target, which the server must have room for.
 */
static CutoverSlot *
wait_slot(int32 target_id)
{
	CutoverSlot *slot = cutover_shmem_slot(target_id, true);

	if (slot == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no shared memory left for cutover"),
				 errdetail("Other libraries have taken what the server keeps for those that were not preloaded, or there are too many targets."),
				 errhint("Add cutover to shared_preload_libraries at the next restart.")));
	return slot;
}

/*
 * Start the worker of a target if none lives.
 */
static void
wait_ensure_worker(int32 target_id)
{
	if (!cutover_launcher_start_replicator(target_id))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no free worker slot for the replicator"),
				 errdetail("The replicator is a background worker, and all of them are taken."),
				 errhint("Raise max_worker_processes, or try again when other workers have ended.")));
}

/*
 * cutover._draw_ticket(target_id int) RETURNS bigint
 */
Datum
cutover_draw_ticket(PG_FUNCTION_ARGS)
{
	CutoverSlot *slot = wait_slot(PG_GETARG_INT32(0));
	uint64		ticket = pg_atomic_add_fetch_u64(&slot->wanted, 1);

	cutover_shmem_wake(slot);
	PG_RETURN_INT64((int64) ticket);
}

/*
 * cutover._await_ticket(target_id int, ticket bigint, timeout_ms bigint, ensure boolean)
 * RETURNS boolean: true once it is served, false at the time-out.  With ensure
 * a worker that died is brought back.
 */
Datum
cutover_await_ticket(PG_FUNCTION_ARGS)
{
	int32		target_id = PG_GETARG_INT32(0);
	uint64		ticket = (uint64) PG_GETARG_INT64(1);
	int64		timeout_ms = PG_GETARG_INT64(2);
	bool		ensure = PG_GETARG_BOOL(3);
	CutoverSlot *slot = wait_slot(target_id);
	TimestampTz start = GetCurrentTimestamp();
	bool		served = false;

	ConditionVariablePrepareToSleep(&slot->cv);
	for (;;)
	{
		int64		left;

		served = pg_atomic_read_u64(&slot->served) >= ticket;
		if (served)
			break;
		left = timeout_ms - (GetCurrentTimestamp() - start) / 1000;
		if (left <= 0)
			break;
		if (ensure)
			wait_ensure_worker(target_id);
		cutover_shmem_wake(slot);
		(void) ConditionVariableTimedSleep(&slot->cv, (long) Min(left, WAIT_STEP_MS),
										   cutover_wait_event_compat(&wait_event, "CutoverWait"));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(served);
}

/*
 * cutover._start_replicator(target_id int) RETURNS boolean: false if no worker slot is free
 */
Datum
cutover_start_replicator(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(cutover_launcher_start_replicator(PG_GETARG_INT32(0)));
}

/*
 * Process id of the living worker in a slot, or 0.
 */
static int
wait_worker_pid(int32 target_id)
{
	CutoverSlot *slot = cutover_shmem_slot(target_id, false);
	int			pid = slot ? slot->pid : 0;

	return pid != 0 && kill(pid, 0) == 0 ? pid : 0;
}

/*
 * cutover._replicator_pid(target_id int) RETURNS int: NULL if there is none
 */
Datum
cutover_replicator_pid(PG_FUNCTION_ARGS)
{
	int			pid = wait_worker_pid(PG_GETARG_INT32(0));

	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/*
 * cutover._wake_replicator(target_id int): have it look at its tables again
 */
Datum
cutover_wake_replicator(PG_FUNCTION_ARGS)
{
	CutoverSlot *slot = cutover_shmem_slot(PG_GETARG_INT32(0), false);

	if (slot != NULL)
		pg_atomic_write_u32(&slot->reread, 1);
	cutover_shmem_wake(slot);
	PG_RETURN_VOID();
}

/*
 * cutover._stop_replicator(target_id int): SIGTERM, where waking it is not enough
 */
Datum
cutover_stop_replicator(PG_FUNCTION_ARGS)
{
	int			pid = wait_worker_pid(PG_GETARG_INT32(0));

	if (pid != 0)
		(void) kill(pid, SIGTERM);
	PG_RETURN_VOID();
}

/*
 * cutover._forget_target(target_id int): free the slot
 */
Datum
cutover_forget_target(PG_FUNCTION_ARGS)
{
	cutover_shmem_free_slot(PG_GETARG_INT32(0));
	PG_RETURN_VOID();
}

/*
 * cutover._remote_long(server name, sql text, VARIADIC args text[]): as
 * cutover._remote, for a statement that may rightly be silent for hours.
 */
Datum
cutover_remote_long(PG_FUNCTION_ARGS)
{
	CutoverEndpoint *ep = cutover_endpoint_in_xact(NameStr(*PG_GETARG_NAME(0)));
	int			saved = cutover_endpoint_set_timeout(ep, 0);
	volatile Datum result = (Datum) 0;

	PG_TRY();
	{
		result = cutover_remote(fcinfo);
	}
	PG_FINALLY();
	{
		(void) cutover_endpoint_set_timeout(ep, saved);
	}
	PG_END_TRY();
	return result;
}

/*
 * cutover._instance() RETURNS text
 */
Datum
cutover_instance(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(cutover_shmem_instance()));
}
