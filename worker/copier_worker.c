/*
 * copier_worker.c - the process that copies chunks and builds indexes.
 *
 * Started by the replicator (copier.c), ends by itself when there is nothing to
 * do.  An error concerns one table: this process leaves that alone for a while and
 * goes on with others; a lost connection is made again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "copy_chunk.h"
#include "deferred.h"
#include "endpoint.h"
#include "guc.h"
#include "launcher.h"
#include "local.h"
#include "replicator.h"
#include "retry.h"
#include "shmem.h"

#define IDLE_POLL_MS 100
#define IDLE_END_MS 3000		/* a copier that found nothing to do for so long ends */
#define ORPHAN_END_MS 60000		/* and one whose replicator has been gone for so long */
#define MAX_FAILED 256			/* tables remembered as failing */

typedef struct FailedTable
{
	int32		table_id;
	int			attempts;
	TimestampTz due;
} FailedTable;

static CutoverWorkerArgs worker_args;
static char *server_name = NULL;
static FailedTable failed[MAX_FAILED];
static int	nfailed = 0;
static int	connect_attempts = 0;

/* ---- should this process go on? ---- */

/*
 * Is the target running, and are so many copiers wanted?
 */
static bool
worker_wanted(void)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(worker_args.target_id)};
	bool		wanted = false;

	if (worker_args.number >= cutover_guc_copy_jobs)
		return false;
	cutover_local_begin();
	if (cutover_local_run("SELECT server FROM cutover._target WHERE target_id = $1 AND desired = 'running'",
						  1, types, args, NULL) == 1)
	{
		wanted = true;
		if (server_name == NULL)
			server_name = MemoryContextStrdup(TopMemoryContext, cutover_local_text(0, 1));
	}
	cutover_local_commit(false);
	MemoryContextSwitchTo(TopMemoryContext);
	return wanted;
}

/*
 * Has nobody driven the copy for a long time?
 */
static bool
worker_orphaned(void)
{
	static TimestampTz gone_since = 0;
	CutoverSlot *slot = cutover_shmem_slot(worker_args.target_id, false);

	if (slot == NULL || slot->pid != 0)
	{
		gone_since = 0;
		return false;
	}
	if (gone_since == 0)
		gone_since = GetCurrentTimestamp();
	return TimestampDifferenceExceeds(gone_since, GetCurrentTimestamp(), ORPHAN_END_MS);
}

/*
 * Wait, but not through a signal.
 */
static void
worker_wait(int ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* ---- failures ---- */

static FailedTable *
worker_find_failed(int32 table_id)
{
	for (int i = 0; i < nfailed; i++)
		if (failed[i].table_id == table_id)
			return &failed[i];
	return NULL;
}

static void
worker_forget_failed(int32 table_id)
{
	FailedTable *f = worker_find_failed(table_id);

	if (f)
		*f = failed[--nfailed];
}

/*
 * Leave a table alone for a while.
 */
static void
worker_note_failed(int32 table_id)
{
	FailedTable *f = worker_find_failed(table_id);

	if (f == NULL)
	{
		/* more than can be remembered: the oldest gets its next attempt early */
		if (nfailed == MAX_FAILED)
			memmove(failed, failed + 1, sizeof(FailedTable) * --nfailed);
		f = &failed[nfailed++];
		f->table_id = table_id;
		f->attempts = 0;
	}
	f->attempts++;
	f->due = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										 cutover_retry_delay(f->attempts, cutover_guc_retry_max_delay));
}

/*
 * The tables that are not to be touched now.
 */
static CutoverSkip
worker_skipped(void)
{
	static int32 ids[MAX_FAILED];
	CutoverSkip skip = {.n = 0,.table_ids = ids};
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < nfailed; i++)
		if (failed[i].due > now)
			ids[skip.n++] = failed[i].table_id;
	return skip;
}

/*
 * Show the error in the table's row.  Its detail may hold rows, so it goes to the log only.
 */
static void
worker_report(int32 table_id, ErrorData *error)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(table_id), 0};
	char	   *text = psprintf("%s (%s)", error->message, unpack_sql_state(error->sqlerrcode));

	values[1] = CStringGetTextDatum(text);
	cutover_local_begin();
	cutover_local_run("UPDATE cutover._table SET phase_reason = $2 WHERE table_id = $1"
					  " AND phase IN ('copying', 'indexing') AND phase_reason IS DISTINCT FROM $2",
					  2, types, values, NULL);
	cutover_local_commit(false);
	MemoryContextSwitchTo(TopMemoryContext);
}

/*
 * After an error: clean up both sides, decide when to try again.
 */
static CutoverEndpoint *
worker_recover(CutoverEndpoint *ep, int32 table_id, ErrorData *error)
{
	CutoverErrorClass class = cutover_retry_classify(error->sqlerrcode);

	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(TopMemoryContext);
	cutover_deferred_forget_claims();
	/* new may go on with what we asked for; a fresh session waits for it by its locks */
	if (ep != NULL && (class == CUTOVER_ERROR_CONNECTION || !cutover_endpoint_reset(ep)))
	{
		cutover_endpoint_close(ep);
		ep = NULL;
	}
	else if (ep != NULL)
	{
		cutover_copy_chunk_put_back();
		MemoryContextSwitchTo(TopMemoryContext);
		/* claims of index builds are session locks */
		cutover_endpoint_exec(ep, "SELECT pg_catalog.pg_advisory_unlock_all()");
	}
	cutover_copy_chunk_release();
	if (table_id != 0)
	{
		worker_note_failed(table_id);
		worker_report(table_id, error);
	}
	if (class == CUTOVER_ERROR_CONNECTION || table_id == 0)
		worker_wait(cutover_retry_delay(++connect_attempts, cutover_guc_retry_max_delay));
	return ep;
}

/* ---- work ---- */

static CutoverEndpoint *
worker_connect(void)
{
	CutoverEndpoint *ep = cutover_endpoint_connect(server_name, "cutover copier");

	cutover_endpoint_authorize(ep);
	cutover_endpoint_set_apply_mode(ep);
	/* that fits single rows; validating a foreign key needs real joins */
	cutover_endpoint_exec(ep, "RESET enable_seqscan; RESET enable_hashjoin; RESET enable_mergejoin; RESET plan_cache_mode");
	return ep;
}

/*
 * Do one thing.  Errors are dealt with here.
 */
static CutoverJobResult
worker_step(CutoverEndpoint **epp)
{
	MemoryContext mcxt = AllocSetContextCreate(TopMemoryContext, "cutover copier step", ALLOCSET_DEFAULT_SIZES);
	CutoverEndpoint *volatile ep = *epp;
	volatile CutoverJobResult result = CUTOVER_JOB_NONE;
	ErrorData  *volatile error = NULL;
	CutoverSkip skip = worker_skipped();
	int32		table_id = 0;

	MemoryContextSwitchTo(mcxt);
	PG_TRY();
	{
		CutoverJobResult building = CUTOVER_JOB_NONE;

		if (ep == NULL)
			ep = worker_connect();
		connect_attempts = 0;
		/* an index build that failed left it lifted */
		(void) cutover_endpoint_set_timeout(ep, cutover_guc_network_timeout);
		result = cutover_copy_chunk_next(ep, worker_args.target_id, worker_args.number, &skip, &table_id);
		if (result != CUTOVER_JOB_DONE)
			building = cutover_deferred_build_next(ep, worker_args.target_id, &skip, &table_id);
		if (building > result)
			result = building;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(mcxt);
		EmitErrorReport();
		error = CopyErrorData();
		FlushErrorState();
		/* on our way out: no clean-up that waits */
		if (ProcDiePending)
			proc_exit(1);
	}
	PG_END_TRY();
	if (error)
	{
		ep = worker_recover(ep, table_id, error);
		result = CUTOVER_JOB_BUSY;
	}
	else if (result == CUTOVER_JOB_DONE)
		worker_forget_failed(table_id);
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDelete(mcxt);
	*epp = ep;
	return result;
}

/*
 * Entry point.
 */
void
cutover_copier_main(Datum arg)
{
	CutoverEndpoint *ep = NULL;
	TimestampTz last_work;

	worker_args = cutover_launcher_worker_start();
	/* one whose replicator died may still be at it under this number */
	if (!cutover_copy_lock_number(worker_args.target_id, worker_args.number, false))
		proc_exit(0);
	last_work = GetCurrentTimestamp();
	while (worker_wanted() && !worker_orphaned())
	{
		switch (worker_step(&ep))
		{
			case CUTOVER_JOB_DONE:
				last_work = GetCurrentTimestamp();
				worker_wait(0);
				break;
			case CUTOVER_JOB_BUSY:
				last_work = GetCurrentTimestamp();
				worker_wait(IDLE_POLL_MS);
				break;
			case CUTOVER_JOB_NONE:
				worker_wait(IDLE_POLL_MS);
				break;
		}
		if (TimestampDifferenceExceeds(last_work, GetCurrentTimestamp(), IDLE_END_MS))
			break;
	}
	if (ep)
		cutover_endpoint_close(ep);
	proc_exit(0);
}
