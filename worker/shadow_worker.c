/*
 * shadow_worker.c - the process that runs sampled SELECTs on new and compares.
 *
 * Started by the first session that has a sample and finds no ring; ends when
 * the ratio goes to zero or nothing has come for a while.  Takes one entry
 * after the other; while new is slow or away the ring fills up and samples are
 * dropped, which is counted, and nobody waits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "launcher.h"
#include "local.h"
#include "replicator.h"
#include "retry.h"
#include "shadow_worker.h"
#include "tracked.h"

#define TICK_MS 1000
#define NAP_MS 20				/* between looks while samples come: waking us costs a session more than the sample */
#define SLEEP_AFTER_MS 2000		/* nothing came for so long: from now on the next sample wakes us */
#define BUSY_WRITE_MS 5000		/* how often counts are written while there is work */
#define IDLE_END_MS 300000

static CutoverWorkerArgs worker_args;
static CutoverSlot *worker_slot = NULL;
static CutoverShadowRing *worker_ring = NULL;
static MemoryContext entry_context = NULL;
static CutoverShadowEntry *entry = NULL;
static int	connect_attempts = 0;
static TimestampTz connect_after = 0;	/* new was not to be reached: not before then */

/* ---- life ---- */

static void
worker_exit(int code, Datum arg)
{
	cutover_shmem_detach_shadow(worker_slot, worker_args.number);
}

/*
 * Are there shadow reads, and so many workers wanted?
 */
static bool
worker_wanted(void)
{
	static bool known = false;
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(worker_args.target_id)};
	bool		wanted = false;

	if (worker_args.number >= cutover_guc_shadow_workers)
		return false;
	cutover_local_begin();
	/* the extension may have been dropped */
	if (OidIsValid(cutover_tracked_config("_target")) &&
		cutover_local_run("SELECT server FROM cutover._target WHERE target_id = $1 AND desired = 'running'"
						  " AND shadow_ratio > 0 AND mode <> 'new_only'", 1, types, args, NULL) == 1)
	{
		wanted = true;
		if (!known)
			cutover_shadow_run_init(cutover_local_text(0, 1));
		known = true;
	}
	cutover_local_commit(false);
	MemoryContextSwitchTo(TopMemoryContext);
	return wanted;
}

/*
 * Wait for an entry, but not through a signal.
 */
static void
worker_wait(int ms)
{
	static uint32 event = 0;

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					 cutover_wait_event_compat(&event, "CutoverShadowWait"));
	ResetLatch(MyLatch);
}

static void
worker_check_signals(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* ---- one entry ---- */

/*
 * Run an entry on new and compare.
 */
static void
worker_compare(CutoverShadowQuery *q)
{
	CutoverShadowSum old_sum = {.rows = entry->rows,.set_hash = entry->set_hash,.list_hash = entry->list_hash};
	CutoverShadowSum new_sum;
	instr_time	start;
	instr_time	end;

	cutover_shadow_run_connect(entry);
	INSTR_TIME_SET_CURRENT(start);
	cutover_shadow_run_on_new(q, entry, &new_sum, NULL);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	connect_attempts = 0;
	cutover_shadow_stats_call(q, entry->text_hash, entry->old_us, INSTR_TIME_GET_MICROSEC(end));
	if (!cutover_shadow_same(q, &old_sum, &new_sum))
		cutover_shadow_suspect_add(worker_slot, q, entry);
}

/*
 * What to do about an error: of new in most cases, of old when a statement is
 * run again.
 */
static void
worker_failed(CutoverShadowQuery *q, ErrorData *error, int64 us)
{
	CutoverErrorClass class = cutover_retry_classify(error->sqlerrcode);
	bool		late = cutover_guc_read_timeout > 0 && us >= (int64) cutover_guc_read_timeout * 900;
	bool		connection = class == CUTOVER_ERROR_CONNECTION;
	/* a plan there that does not fit any more, and prepared statements that are gone */
	bool		stale = error->sqlerrcode == ERRCODE_FEATURE_NOT_SUPPORTED || error->sqlerrcode == ERRCODE_UNDEFINED_PSTATEMENT;

	AbortOutOfAnyTransaction();
	disable_timeout(STATEMENT_TIMEOUT, false);
	cutover_shadow_run_recover(connection || stale);
	MemoryContextSwitchTo(entry_context);
	if (q != NULL)
		cutover_shadow_stats_error(q, entry->text_hash, entry->old_us, us,
								   late && (connection || error->sqlerrcode == ERRCODE_QUERY_CANCELED),
								   error->sqlerrcode, error->message);
	if (connection)
	{
		if (connect_attempts == 0)
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("shadow reads: %s", error->message)));
		connect_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													cutover_retry_delay(++connect_attempts, cutover_guc_retry_max_delay));
	}
}

/*
 * Do one thing: the next entry, or if there is none, a suspect that is due.
 * False if there is neither.
 */
static bool
worker_step(void)
{
	CutoverShadowQuery *volatile q = NULL;
	ErrorData  *volatile error = NULL;
	volatile bool worked = true;
	instr_time	start;
	instr_time	end;

	if (connect_after != 0 && GetCurrentTimestamp() < connect_after)
		return false;
	connect_after = 0;
	MemoryContextReset(entry_context);
	MemoryContextSwitchTo(entry_context);
	INSTR_TIME_SET_CURRENT(start);
	PG_TRY();
	{
		/* in between: a busy ring must not keep suspects waiting until they are given up */
		static uint32 turn = 0;

		if (++turn % 16 == 0 && cutover_shadow_suspect_step(worker_slot))
			worked = true;
		else if (cutover_shadow_ring_take(worker_ring, entry))
		{
			CutoverShadowQuery *found = cutover_shadow_query_find(entry);

			if (found->skip != CUTOVER_SHADOW_TAKEN)
				cutover_shadow_stats_skip(found->skip);
			else
			{
				q = found;
				INSTR_TIME_SET_CURRENT(start);
				worker_compare(found);
			}
		}
		else
			worked = cutover_shadow_suspect_step(worker_slot);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(entry_context);
		error = CopyErrorData();
		FlushErrorState();
		if (ProcDiePending)
			proc_exit(1);
	}
	PG_END_TRY();
	if (error != NULL)
	{
		INSTR_TIME_SET_CURRENT(end);
		INSTR_TIME_SUBTRACT(end, start);
		worker_failed(q, error, INSTR_TIME_GET_MICROSEC(end));
	}
	MemoryContextSwitchTo(TopMemoryContext);
	return worked;
}

/* ---- the loop ---- */

/*
 * May another statement be run on new?  At most cutover.shadow_max_rate in a
 * second, what was not used in the last one may be used now.
 */
static bool
worker_has_turn(TimestampTz now)
{
	static TimestampTz filled = 0;
	static double turns = 0;
	double		rate = cutover_guc_shadow_max_rate;

	if (rate == 0)
		return true;
	turns = Min(rate, turns + rate * (now - filled) / 1000000.0);
	filled = now;
	if (turns < 1)
		return false;
	turns--;
	return true;
}

/*
 * Nothing to do: look again soon while samples come, else sleep.
 */
static void
worker_rest(TimestampTz idle_since)
{
	if (connect_after != 0 || cutover_shadow_ring_has(worker_ring) || cutover_shadow_suspect_any() ||
		!TimestampDifferenceExceeds(idle_since, GetCurrentTimestamp(), SLEEP_AFTER_MS))
	{
		worker_wait(cutover_shadow_suspect_any() ? NAP_MS / 2 : NAP_MS);
		return;
	}
	/* whoever publishes from now on sees that somebody sleeps */
	pg_atomic_exchange_u32(&worker_ring->sleeping, 1);
	if (!cutover_shadow_ring_has(worker_ring))
		worker_wait(TICK_MS);
}

/*
 * Write counts; a failure there (the target is just going) is no reason to end.
 */
static void
worker_write(void)
{
	MemoryContextReset(entry_context);
	MemoryContextSwitchTo(entry_context);
	PG_TRY();
	{
		cutover_shadow_stats_write(worker_slot, worker_ring);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(entry_context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		if (ProcDiePending)
			proc_exit(1);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(TopMemoryContext);
	pgstat_report_stat(true);
}

static void
worker_loop(void)
{
	TimestampTz last_work = GetCurrentTimestamp();
	TimestampTz last_tick = 0;
	TimestampTz last_write = last_work;

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		bool		worked;

		worker_check_signals();
		if (TimestampDifferenceExceeds(last_tick, now, TICK_MS))
		{
			last_tick = now;
			if (!worker_wanted() || TimestampDifferenceExceeds(last_work, now, IDLE_END_MS))
				break;
			if (worker_args.number == 0)
				for (int i = 1; i < cutover_guc_shadow_workers; i++)
					cutover_launcher_start_shadow(worker_slot, worker_args.target_id, i);
		}
		worked = worker_has_turn(now) && worker_step();
		if (worked)
			last_work = now;
		if (TimestampDifferenceExceeds(last_write, now, worked ? BUSY_WRITE_MS : TICK_MS))
		{
			worker_write();
			last_write = now;
		}
		if (!worked)
			worker_rest(last_work);
	}
}

/*
 * Count what will not be looked at any more.  Other workers may go on with the ring.
 */
static void
worker_end(void)
{
	uint64		left = 0;

	cutover_shadow_suspect_end();
	if (worker_args.number == 0)
		while (cutover_shadow_ring_take(worker_ring, entry))
			left++;
	cutover_shadow_stats_dropped(left);
	StartTransactionCommand();
	if (OidIsValid(cutover_tracked_config("_shadow_read")))
	{
		CommitTransactionCommand();
		worker_write();
	}
}

/*
 * Entry point.
 */
void
cutover_shadow_main(Datum arg)
{
	worker_args = cutover_launcher_worker_start();
	worker_slot = cutover_shmem_slot(worker_args.target_id, true);
	if (worker_slot == NULL || worker_args.number >= CUTOVER_MAX_SHADOW_WORKERS ||
		!cutover_shmem_attach_shadow(worker_slot, worker_args.number))
		proc_exit(0);
	before_shmem_exit(worker_exit, 0);
	worker_ring = cutover_shadow_ring_open(worker_slot);
	if (worker_ring == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("no dynamic shared memory left for shadow reads"),
				 errdetail("Samples are dropped."),
				 errhint("They take %zu kB for each target.", sizeof(CutoverShadowRing) / 1024)));
	entry_context = AllocSetContextCreate(TopMemoryContext, "cutover shadow entry", ALLOCSET_DEFAULT_SIZES);
	entry = MemoryContextAlloc(TopMemoryContext, CUTOVER_SHADOW_ENTRY_MAX);
	cutover_shadow_query_init(worker_args.target_id);
	cutover_shadow_stats_init(worker_args.target_id);
	MemoryContextSwitchTo(TopMemoryContext);
	worker_loop();
	worker_end();
	proc_exit(0);
}
