/*
 * replicator.c - the worker that moves one target's changes from old to new.
 *
 *   connect --> take the lease --> reconcile --> +-> window --> step ... step --+
 *      ^                                         |                              |
 *      |            error: back off              +------------------------------+
 *      +-----------------------------------------+
 *
 * A window is what became visible between two snapshots.  Before any of it
 * reaches new, old has durably committed a marker for it; the rows and the
 * progress then commit in one transaction on new.  Everything that the loop
 * keeps in memory can be lost at any instant: it is read again from old's
 * tables and new's progress.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "applier.h"
#include "capture.h"
#include "compare_schedule.h"
#include "compat.h"
#include "copier.h"
#include "copier_prepare.h"
#include "dual.h"
#include "dual_failure.h"
#include "guc.h"
#include "launcher.h"
#include "replicator.h"
#include "replicator_private.h"
#include "retry.h"
#include "reverse.h"
#include "rotate.h"
#include "session.h"
#include "shmem.h"

#define IDLE_MS 1000
/* no lock that SQL's advisory functions could take: those have kind 1 or 2 */
#define LOCK_CLASS 0x6375746f
#define LOCK_KIND 0x7265
#define COPY_POLL_MS 100
#define ROTATE_EVERY_MS 500
#define TARGET_EVERY_MS 200

static CutoverSlot *my_slot = NULL;
static uint32 wait_event_main = 0;

static void
replicator_detach(int code, Datum arg)
{
	if (my_slot != NULL)
		cutover_shmem_detach_worker(my_slot);
}

/*
 * Publish what the loop does or why it does not.
 */
void
cutover_replicator_report(Replicator *r, const char *waiting_for)
{
	strlcpy(r->stats.waiting_for, waiting_for ? waiting_for : "", CUTOVER_TEXT_LEN);
	if (r->slot != NULL)
		cutover_shmem_set_stats(r->slot, &r->stats);
}

/*
 * Wait for a commit, a signal, or the time to look by oneself.
 */
void
cutover_replicator_sleep(int ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					 cutover_wait_event_compat(&wait_event_main, "CutoverReplicatorMain"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

void
cutover_replicator_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
cutover_replicator_end(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/*
 * Read the target's row now and then.  False: there is nothing to do for this
 * worker any more.
 */
static bool
replicator_read_target(Replicator *r)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(r->target_id)};
	bool		running = false;
	TimestampTz now = GetCurrentTimestamp();

	if ((r->slot == NULL || pg_atomic_exchange_u32(&r->slot->reread, 0) == 0) &&
		!TimestampDifferenceExceeds(r->target_read_at, now, TARGET_EVERY_MS))
		return true;
	r->target_read_at = now;
	cutover_replicator_begin();
	SPI_connect();
	/* the extension may be gone altogether */
	if (SPI_execute("SELECT 1 WHERE pg_catalog.to_regclass('cutover._target') IS NOT NULL", true, 1) == SPI_OK_SELECT &&
		SPI_processed == 1 &&
		SPI_execute_with_args("SELECT target, server, migration_id::text, system_identifier, mode = 'dual_write', switch_state,"
							  " mode = 'new_only', epoch"
							  " FROM cutover._target"
							  " WHERE target_id = $1 AND desired = 'running'",
							  1, types, args, NULL, true, 1) == SPI_OK_SELECT && SPI_processed == 1)
	{
		HeapTuple	tup = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		running = true;
		r->dual = DatumGetBool(SPI_getbinval(tup, desc, 5, &isnull));
		(void) SPI_getbinval(tup, desc, 6, &isnull);
		r->switching = !isnull;
		r->reverse = DatumGetBool(SPI_getbinval(tup, desc, 7, &isnull));
		r->epoch = DatumGetInt64(SPI_getbinval(tup, desc, 8, &isnull));
		if (r->session.target == NULL)
		{
			r->session.target_id = r->target_id;
			r->session.target = MemoryContextStrdup(TopMemoryContext, SPI_getvalue(tup, desc, 1));
			r->session.server = MemoryContextStrdup(TopMemoryContext, SPI_getvalue(tup, desc, 2));
			r->session.migration_id = MemoryContextStrdup(TopMemoryContext, SPI_getvalue(tup, desc, 3));
		}
		if ((uint64) DatumGetInt64(SPI_getbinval(tup, desc, 4, &isnull)) != GetSystemIdentifier())
			running = false;	/* a copy: inert until cutover_adopt() */
	}
	SPI_finish();
	cutover_replicator_end();
	return running;
}

/*
 * Connect.  False: we may not work there now.
 */
static bool
replicator_open_session(Replicator *r)
{
	CutoverSessionState state;

	cutover_replicator_begin();
	state = cutover_session_open(&r->session);
	cutover_replicator_end();
	switch (state)
	{
		case CUTOVER_SESSION_READY:
			break;
		case CUTOVER_SESSION_LEASE_HELD:
			/* is it we who are of yesterday? */
			cutover_replicator_check_stale(r);
			cutover_replicator_report(r, "another instance of this server works on new: its lease there must run out first");
			return false;
		case CUTOVER_SESSION_NOT_ADOPTED:
			cutover_replicator_report(r, "this server is a copy of the one that works on new: cutover_adopt() makes it the real one");
			return false;
		case CUTOVER_SESSION_GONE:
			cutover_replicator_report(r, "new does not know this migration any more: cutover_cancel() gives it up");
			return false;
	}
	r->durable = false;
	r->agreed = false;
	return true;
}

/*
 * Get to know how far new is.  False: not yet.
 */
static bool
replicator_connect(Replicator *r)
{
	MemoryContext former;

	if (r->session.ep != NULL)
		return true;
	if (!replicator_open_session(r))
		return false;
	if (r->reverse)
		return true;
	r->applier->slot = NULL;
	if (r->applier->apply != NULL)
		cutover_apply_destroy(r->applier->apply);
	/* it lives as long as the connection; what is current after a commit depends on the server's version */
	former = MemoryContextSwitchTo(TopMemoryContext);
	r->applier->apply = cutover_apply_create(r->session.ep);
	MemoryContextSwitchTo(former);
	/* what must not hear us write is off again */
	cutover_endpoint_exec(r->session.ep, psprintf("BEGIN; SET LOCAL lock_timeout = %d; SELECT cutover.disarm()"
												  " WHERE EXISTS (SELECT FROM cutover.deferred WHERE armed)"
												  " AND EXISTS (SELECT FROM cutover.migration WHERE master = 'old'); COMMIT", cutover_guc_lock_timeout));
	cutover_replicator_begin();
	cutover_reverse_resume_forward(&r->session);
	cutover_replicator_end();
	cutover_replicator_begin();
	if (cutover_session_reconcile(&r->session))
		cutover_mapping_set_stale();
	cutover_replicator_end();
	cutover_copier_check_new(r->target_id, r->session.progress.k, r->session.ep);
	cutover_mapping_set_stale();
	cutover_copier_wake();
	return true;
}

/*
 * Remember which tables this window brings up to date: those whose copy was
 * complete when its snapshot was taken.
 */
static void
replicator_note_caught_up(Replicator *r)
{
	ListCell   *lc;

	list_free(r->caught_up);
	r->caught_up = NIL;
	cutover_mapping_refresh_phases();
	foreach(lc, cutover_mapping_tables())
	{
		CutoverTable *table = lfirst(lc);
		MemoryContext old;

		if (table->phase != CUTOVER_PHASE_CATCHING_UP)
			continue;
		old = MemoryContextSwitchTo(TopMemoryContext);
		r->caught_up = lappend_int(r->caught_up, table->table_id);
		r->caught_up = lappend_int(r->caught_up, table->copy_generation);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Tables that had been copied are now as old was at the window's snapshot.
 */
static void
replicator_advance_tables(Replicator *r)
{
	ListCell   *lc;
	Oid			types[3] = {INT4OID, INT4OID, INT8OID};

	if (r->caught_up == NIL)
		return;
	/* new must not forget this window: without the chunks its changes can't be told from copied ones */
	cutover_session_flush(&r->session);
	cutover_replicator_begin();
	SPI_connect();
	for (lc = list_head(r->caught_up); lc != NULL; lc = lnext(r->caught_up, lc))
	{
		Datum		args[3];

		args[0] = Int32GetDatum(lfirst_int(lc));
		lc = lnext(r->caught_up, lc);
		args[1] = Int32GetDatum(lfirst_int(lc));
		args[2] = Int64GetDatum(r->session.progress.k);
		SPI_execute_with_args("UPDATE cutover._table SET phase = 'indexing', caught_up_k = $3, phase_since = pg_catalog.clock_timestamp()"
							  " WHERE table_id = $1 AND phase = 'catching_up' AND copy_generation = $2",
							  3, types, args, NULL, false, 0);
	}
	SPI_finish();
	cutover_replicator_end();
	list_free(r->caught_up);
	r->caught_up = NIL;
	cutover_copier_wake();
}

/*
 * Is new the master by now?  Then who waits does so for the other direction, and
 * the target is to be read again.
 */
static bool
replicator_mode_changed(Replicator *r)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(r->target_id)};
	bool		changed;

	SPI_connect();
	changed = SPI_execute_with_args("SELECT FROM cutover._target WHERE target_id = $1 AND mode = 'new_only'",
									1, types, args, NULL, false, 1) == SPI_OK_SELECT && SPI_processed == 1;
	SPI_finish();
	if (changed)
		r->target_read_at = 0;
	return changed;
}

/*
 * Open the next window and promise it.  False: nothing new.
 */
static bool
replicator_open_window(Replicator *r)
{
	CutoverProgress *done = &r->session.progress;
	bool		found;

	if (r->slot != NULL)
	{
		r->ticket = pg_atomic_read_u64(&r->slot->wanted);
		pg_atomic_write_u32(&r->slot->dirty, 0);
	}
	cutover_replicator_begin();
	if (cutover_mapping_is_stale())
	{
		cutover_mapping_load(r->session.ep);
		if (replicator_mode_changed(r))
		{
			cutover_replicator_end();
			return true;
		}
	}
	if (done->window_snapshot != NULL)
	{
		/* go on with a window that was under way */
		(void) cutover_window_open(&r->window, done->snapshot, done->window_snapshot, done->done_lsn, done->done_xid);
		r->window.open = true;
		r->window.k = done->k;
		r->ticket = 0;
		found = true;
	}
	else
	{
		replicator_note_caught_up(r);
		found = cutover_window_open(&r->window, done->snapshot, NULL, 0, 0);
		r->window.k = done->k + 1;
		if (found)
			cutover_session_mark(&r->session, r->window.k, r->window.cur);
	}
	cutover_replicator_end();
	if (found && done->window_snapshot == NULL)
		cutover_session_marked(&r->session);
	return found;
}

/*
 * Does new have everything of every table?
 */
static bool
replicator_all_synced(void)
{
	ListCell   *lc;

	foreach(lc, cutover_mapping_tables())
	{
		CutoverTable *table = lfirst(lc);

		if (table->phase != CUTOVER_PHASE_SYNCED && table->phase != CUTOVER_PHASE_INDEXING)
			return false;
	}
	return true;
}

/*
 * New is as old was at the window's snapshot: tell those who wait.
 */
static void
replicator_window_done(Replicator *r)
{
	TimestampTz now = GetCurrentTimestamp();
	double		seconds = (now - r->rate_since) / 1e6;

	r->stats.acked_k = r->session.progress.k;
	r->stats.acked_at = r->window.taken_at;
	r->stats.lag_us = now - r->window.taken_at;
	if (seconds >= 1.0)
	{
		r->stats.changes_per_s = (r->stats.applied_changes - r->rate_changes) / seconds;
		r->rate_changes = r->stats.applied_changes;
		r->rate_since = now;
	}
	cutover_replicator_report(r, cutover_copier_waiting_for());
	if (r->slot != NULL && replicator_all_synced() && r->caught_up == NIL)
	{
		if (pg_atomic_read_u64(&r->slot->served) < r->ticket)
			pg_atomic_write_u64(&r->slot->served, r->ticket);
	}
	if (r->slot != NULL)
	{
		/* a commit waits only for tables that are synced, whatever the others do */
		if (pg_atomic_read_u64(&r->slot->applied) < r->ticket)
			pg_atomic_write_u64(&r->slot->applied, r->ticket);
		ConditionVariableBroadcast(&r->slot->cv);
		if (r->stats.lag_us < 1000000)
			cutover_dual_close_breaker(r->slot);
	}
	if (r->open_failures && TimestampDifferenceExceeds(r->resolved_at, now, TARGET_EVERY_MS))
	{
		r->open_failures = cutover_dual_failure_resolve(&r->session);
		r->resolved_at = now;
	}
	replicator_advance_tables(r);
	cutover_window_close(&r->window);
}

/*
 * The state rewound ends when of every table all rows have been compared since
 * and no difference is open, or it has been copied afresh.
 */
void
cutover_replicator_clear_rewound(Replicator *r)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(r->target_id)};

	cutover_replicator_begin();
	SPI_connect();
	SPI_execute_with_args("UPDATE cutover._target t SET rewound = false WHERE target_id = $1 AND rewound"
						  " AND NOT EXISTS (SELECT FROM cutover._table b WHERE b.target_id = t.target_id AND (b.phase <> 'synced'"
						  " OR NOT (coalesce(b.copy_ended_at > t.rewound_at, false)"
						  " OR (b.clean_passes > 0 AND NOT EXISTS (SELECT FROM cutover._divergence d WHERE d.table_id = b.table_id)"
						  " AND EXISTS (SELECT FROM cutover._compare_result c WHERE c.table_id = b.table_id AND c.method = 'full'"
						  " AND c.complete AND NOT c.capped AND c.started_at > t.rewound_at)))))",
						  1, types, args, NULL, false, 0);
	SPI_finish();
	cutover_replicator_end();
}

/*
 * Work that is due now and then, between windows.
 */
static void
replicator_housekeeping(Replicator *r)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(r->rotated_at, now, ROTATE_EVERY_MS))
		return;
	r->rotated_at = now;
	(void) cutover_rotate(&r->session);
	cutover_replicator_clear_rewound(r);
	cutover_compare_schedule_tend(r->target_id);
	pgstat_report_stat(true);
}

/*
 * Apply one step; afterwards decide whether replay is over.
 */
static void
replicator_step(Replicator *r)
{
	bool		finished;
	uint64		changes;

	r->applier->replay = r->replay_window || r->replay_lsn != 0;
	finished = cutover_applier_step(r->applier);
	changes = r->applier->changes;
	r->open_failures |= r->applier->slot != NULL && r->applier->failures != NIL;
	if (r->replay_lsn != 0 && r->applier->last_lsn >= r->replay_lsn)
		r->replay_lsn = 0;
	if (finished)
	{
		r->replay_lsn = 0;
		r->replay_window = false;
	}
	cutover_applier_abandon(r->applier);
	r->stats.applied_changes += changes;
	r->attempts = 0;
	if (finished)
		replicator_window_done(r);
	else
		cutover_replicator_report(r, NULL);
}

/*
 * What a session waited for must survive a crash of new; otherwise rows and
 * progress may be lost together.
 */
static void
replicator_set_durability(Replicator *r)
{
	if (r->durable == r->dual)
		return;
	cutover_endpoint_exec(r->session.ep, r->dual ? "SET synchronous_commit = on" : "SET synchronous_commit = off");
	r->durable = r->dual;
	r->applier->slot = r->dual ? r->slot : NULL;
}

/*
 * The direction is the other one now: nothing that is known of new counts.
 */
static void
replicator_turn_round(Replicator *r)
{
	if (r->reverse == r->reversed)
		return;
	if (r->session.ep != NULL)
		cutover_session_close(&r->session);
	cutover_applier_abandon(r->applier);
	cutover_window_close(&r->window);
	if (r->reverse)
		cutover_reverse_enter();
	else
		cutover_reverse_leave();
	r->stats.lag_us = -1;
	r->stats.queued = -1;
	r->stats.reverse = r->reverse;
	r->reversed = r->reverse;
}

/*
 * One turn of the loop; returns how long to wait, in milliseconds.
 */
static int
replicator_turn(Replicator *r)
{
	replicator_turn_round(r);
	if (!replicator_connect(r))
		return IDLE_MS;
	cutover_session_renew(&r->session);
	if (cutover_replicator_settle_master(r))
		return 0;
	if (r->reverse)
		return cutover_reverse_turn(r);
	replicator_set_durability(r);
	if (cutover_copier_tick(r->target_id, r->session.ep))
		cutover_mapping_set_stale();
	if (r->window.open)
	{
		replicator_step(r);
		/* under load there is always another window: don't wait for a moment without */
		if (!r->window.open)
			replicator_housekeeping(r);
		return 0;
	}
	if (replicator_open_window(r))
		return 0;
	r->attempts = 0;
	replicator_window_done(r);
	replicator_housekeeping(r);
	if (r->slot != NULL && pg_atomic_read_u32(&r->slot->dirty) != 0)
		return 0;
	if (r->switching)
		return TARGET_EVERY_MS;
	return r->slot == NULL || cutover_copier_busy(r->target_id) ? COPY_POLL_MS : IDLE_MS;
}

/*
 * Be the only replicator of this target, also where there is no shared memory
 * to see another one: a lock of the process, released when it ends.
 */
static bool
replicator_lock(int32 target_id)
{
	LOCKTAG		tag;
	bool		mine;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, LOCK_CLASS, (uint32) target_id, LOCK_KIND);
	StartTransactionCommand();
	mine = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	CommitTransactionCommand();
	return mine;
}

/*
 * Settings of this process only.
 */
static void
replicator_settings(void)
{
	/* the marker must not be lost; a stronger setting of the server stays */
	if (synchronous_commit < SYNCHRONOUS_COMMIT_ON)
		SetConfigOption("synchronous_commit", "on", PGC_SUSET, PGC_S_OVERRIDE);
	/* never-analyzed queue tables must be read through their index */
	SetConfigOption("enable_seqscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_bitmapscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	/* and our own statements are the same for any parameter */
	SetConfigOption("plan_cache_mode", "force_generic_plan", PGC_SUSET, PGC_S_OVERRIDE);
	cutover_capture_disabled = true;
}

/*
 * Entry point.
 */
void
cutover_replicator_main(Datum arg)
{
	CutoverWorkerArgs args = cutover_launcher_worker_start();
	Replicator *r;

	replicator_settings();
	if (!replicator_lock(args.target_id))
		proc_exit(0);			/* another one lives */
	r = MemoryContextAllocZero(TopMemoryContext, sizeof(Replicator));
	r->target_id = args.target_id;
	r->loop_context = AllocSetContextCreate(TopMemoryContext, "cutover replicator loop", ALLOCSET_DEFAULT_SIZES);
	r->stats.lag_us = -1;
	r->open_failures = true;	/* there may be some from before */
	r->rate_since = GetCurrentTimestamp();
	r->slot = cutover_shmem_slot(args.target_id, true);
	if (r->slot != NULL)
	{
		if (!cutover_shmem_attach_worker(r->slot))
			proc_exit(0);		/* another one lives */
		my_slot = r->slot;
		before_shmem_exit(replicator_detach, (Datum) 0);
	}
	cutover_window_init(&r->window, args.target_id);
	cutover_mapping_init(args.target_id);
	r->applier = cutover_applier_create(&r->session, &r->window);

	for (;;)
	{
		volatile int wait_ms = 0;
		volatile bool failed = false;

		MemoryContextSwitchTo(r->loop_context);
		MemoryContextReset(r->loop_context);
		PG_TRY();
		{
			if (!replicator_read_target(r))
			{
				cutover_copier_stop();
				cutover_compare_schedule_stop();
				proc_exit(0);
			}
			if (cutover_dual_failure_note_late(&r->session, r->slot, r->session.ep ? NULL : r->stats.last_error))
				r->open_failures = true;
			wait_ms = replicator_turn(r);
		}
		PG_CATCH();
		{
			wait_ms = cutover_replicator_recover(r);
			failed = true;
		}
		PG_END_TRY();
		if (failed)
			cutover_replicator_back_off(wait_ms);
		else if (wait_ms > 0)
			cutover_replicator_sleep(wait_ms);
		else
			CHECK_FOR_INTERRUPTS();
	}
}
