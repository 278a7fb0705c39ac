/*
 * switcher.c - what a switch of the master needs beyond SQL.
 *
 * Runs in the action's worker, called from the procedures of switch.sql: a
 * connection to new that outlasts local transactions and has transactions of
 * its own, a way out when a step fails, and points at which tests can stop.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "action_internal.h"
#include "compat.h"
#include "guc.h"
#include "remote.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(cutover_new_open);
PG_FUNCTION_INFO_V1(cutover_new_exec);
PG_FUNCTION_INFO_V1(cutover_new_close);
PG_FUNCTION_INFO_V1(cutover_on_error);
PG_FUNCTION_INFO_V1(cutover_switch_step);
PG_FUNCTION_INFO_V1(cutover_applied_changes);

#define STOP_POLL_MS 50

static CutoverEndpoint *switcher_new = NULL;

/*
 * cutover._new_open(server name, timeout_s int): connect to new for the rest of
 * the action.  No answer within the time counts as a lost connection.
 */
Datum
cutover_new_open(PG_FUNCTION_ARGS)
{
	cutover_endpoint_close(switcher_new);
	switcher_new = NULL;
	switcher_new = cutover_endpoint_connect(NameStr(*PG_GETARG_NAME(0)), "cutover switch");
	cutover_endpoint_authorize(switcher_new);
	(void) cutover_endpoint_set_timeout(switcher_new, PG_GETARG_INT32(1));
	/* what is told to be committed must be; and should we vanish, nobody on new waits for our locks */
	(void) cutover_endpoint_exec(switcher_new, psprintf("SET synchronous_commit = on; SET idle_in_transaction_session_timeout = '%ds'",
														PG_GETARG_INT32(1) * 3));
	PG_RETURN_VOID();
}

/*
 * cutover._new_exec(sql text, VARIADIC args text[]): run a statement on that
 * connection, in no transaction but one that was begun there.
 */
Datum
cutover_new_exec(PG_FUNCTION_ARGS)
{
	if (switcher_new == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_DOES_NOT_EXIST),
				 errmsg("the connection to new is closed"),
				 errdetail("It was lost or given up earlier in this action."),
				 errhint("See the server log, then try again.")));
	PG_TRY();
	{
		cutover_remote_run(switcher_new, fcinfo, 0);
	}
	PG_CATCH();
	{
		/* whatever was begun there is rolled back */
		if (!cutover_endpoint_reset(switcher_new))
		{
			cutover_endpoint_close(switcher_new);
			switcher_new = NULL;
		}
		PG_RE_THROW();
	}
	PG_END_TRY();
	return (Datum) 0;
}

/*
 * cutover._new_close(): give the connection up; new rolls back what is open.
 */
Datum
cutover_new_close(PG_FUNCTION_ARGS)
{
	cutover_endpoint_close(switcher_new);
	switcher_new = NULL;
	PG_RETURN_VOID();
}

/*
 * The worker ends, perhaps in the middle: the replicator should look.
 */
static void
switcher_wake_replicator(int code, Datum arg)
{
	cutover_shmem_wake(cutover_shmem_slot(DatumGetInt32(arg), false));
}

/*
 * cutover._on_error(target_id int, sql text): the statement to run in a
 * transaction of its own should this action fail from now on; NULL = none.
 */
Datum
cutover_on_error(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	if (!registered)
		before_shmem_exit(switcher_wake_replicator, PG_GETARG_DATUM(0));
	registered = true;
	cutover_action_on_error = PG_ARGISNULL(1) ? NULL :
		MemoryContextStrdup(TopMemoryContext, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PG_RETURN_VOID();
}

/*
 * cutover._switch_step(step text): here a switch has come to this step.  Waits
 * for as long as cutover.switch_stop_at names it.
 */
Datum
cutover_switch_step(PG_FUNCTION_ARGS)
{
	static uint32 event = 0;
	char	   *step = text_to_cstring(PG_GETARG_TEXT_PP(0));

	/* what is said here can be seen in pg_stat_activity */
	pgstat_report_appname(psprintf("cutover switch: %s", step));
	ereport(DEBUG1, (errmsg_internal("switch: %s", step)));
	while (cutover_guc_switch_stop_at != NULL && strcmp(cutover_guc_switch_stop_at, step) == 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STOP_POLL_MS,
						 cutover_wait_event_compat(&event, "CutoverSwitchStop"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
	PG_RETURN_VOID();
}

/*
 * cutover._applied_changes(target_id int): what the replicator says it has
 * written since the server started.
 */
Datum
cutover_applied_changes(PG_FUNCTION_ARGS)
{
	CutoverSlot *slot = cutover_shmem_slot(PG_GETARG_INT32(0), false);
	CutoverStats stats;

	if (slot == NULL)
		PG_RETURN_INT64(0);
	cutover_shmem_get_stats(slot, &stats);
	PG_RETURN_INT64((int64) stats.applied_changes);
}
