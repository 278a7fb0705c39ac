/*
 * fence.c - the fence, seen from a writer.
 *
 * The first write of a transaction to a table of a target takes ROW EXCLUSIVE
 * on the empty table cutover._fence_<target>, and keeps it to the end of the
 * transaction.  A switch takes EXCLUSIVE (fence_lock.c).  So after the lock has been had the mode
 * can't change until we have committed, and whoever writes under a mode is seen by the switch that
 * ends it.  Nobody else ever locks that table, and the lock is of the kind that
 * the server keeps in the backend's own memory: it costs a fraction of a microsecond.
 *
 * Where it is taken: by a trigger BEFORE each statement; by the capture
 * trigger for rows that come without a statement on their table (logical
 * replication, a child by way of its parent), where it is early enough as the transaction can't have
 * committed; by the event triggers (ddl.c).  A BEFORE ROW trigger would be the other
 * way, but has the server lock each row in a step of its own before it updates it,
 * and keeps COPY from inserting many rows at a time.  Where capture is gone, on a finished
 * target, there is one: nothing gets past it anyway.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "capture.h"
#include "compat.h"
#include "fence.h"
#include "guc.h"
#include "launcher.h"
#include "policy.h"
#include "tracked.h"

PG_FUNCTION_INFO_V1(cutover_fence_trigger);

/* How often a writer looks whether a switch in doubt has been decided, in ms. */
#define FENCE_LOOK_EVERY 20

static uint32 wait_event_fence = 0;

/* Subtransactions that fence_wait() made in this transaction. */
static int	own_subtransactions = 0;
static LocalTransactionId own_lxid = InvalidLocalTransactionId;

/*
 * Wait for the lock.  False if that took cutover.in_doubt_timeout.
 *
 * The user's lock_timeout is for locks that he knows of; here it gives way to ours.
 */
static bool
fence_wait(const LOCKTAG *tag)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			saved = LockTimeout;
	volatile bool got = true;

	if (own_lxid != cutover_my_lxid_compat())
		own_subtransactions = 0;
	own_lxid = cutover_my_lxid_compat();
	own_subtransactions++;
	/* an error while waiting leaves things that only the end of a subtransaction puts in order */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		LockTimeout = cutover_guc_in_doubt_timeout;
		CurrentResourceOwner = TopTransactionResourceOwner;
		(void) LockAcquire(tag, RowExclusiveLock, false, false);
		LockTimeout = saved;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		LockTimeout = saved;
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(error);
		FreeErrorData(error);
		got = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return got;
}

/*
 * Take the lock for the rest of the transaction: for the top-level one, as a
 * savepoint that is rolled back, or a block with EXCEPTION, must not drop it.
 */
static bool
fence_acquire(const LOCKTAG *tag)
{
	ResourceOwner owner = CurrentResourceOwner;
	LockAcquireResult result;

	CurrentResourceOwner = TopTransactionResourceOwner;
	result = LockAcquire(tag, RowExclusiveLock, false, true);
	CurrentResourceOwner = owner;
	return result != LOCKACQUIRE_NOT_AVAIL || fence_wait(tag);
}

/*
 * Give back what fence_acquire() took.
 */
static void
fence_release(const LOCKTAG *tag)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = TopTransactionResourceOwner;
	LockRelease(tag, RowExclusiveLock, false);
	CurrentResourceOwner = owner;
}

/*
 * Nobody knows who is master: wait until that is decided, without the lock,
 * as the decision needs it.  At the deadline, raise an error.
 */
static void
fence_await_decision(CutoverTarget *target, Oid relid, TimestampTz deadline)
{
	do
	{
		if (GetCurrentTimestamp() >= deadline)
			cutover_fence_refuse_in_doubt(target, relid);
		/* the replicator decides it, if it lives */
		if (target->running)
			cutover_launcher_start_replicator(target->target_id);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, FENCE_LOOK_EVERY,
						 cutover_wait_event_compat(&wait_event_fence, "CutoverInDoubt"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		AcceptInvalidationMessages();
		target = cutover_tracked_target(target->target_id);
	} while (target->known && target->switch_state == CUTOVER_SWITCH_IN_DOUBT);
}

/*
 * Take the fence and look who is master.  True if that is new and it is not
 * refused, as the caller can forward to it.
 */
static bool
fence_pass(CutoverTarget *target, Oid relid, bool may_forward)
{
	TimestampTz deadline = 0;
	LOCKTAG		tag;
	bool		locked;
	bool		got;

	for (;;)
	{
		if (!target->valid)
			target = cutover_tracked_target(target->target_id);
		locked = OidIsValid(target->fence);
		got = true;
		if (locked)
		{
			cutover_fence_set_tag(&tag, target->fence);
			got = fence_acquire(&tag);
			/* whatever was committed under the lock we waited for */
			AcceptInvalidationMessages();
			target = cutover_tracked_target(target->target_id);
		}
		if (!target->known)
			return false;		/* no longer under migration */
		if (got && target->switch_state != CUTOVER_SWITCH_IN_DOUBT)
			break;
		if (target->switch_state == CUTOVER_SWITCH_IN_DOUBT)
		{
			if (!got)
				cutover_fence_refuse_in_doubt(target, relid);
			if (locked)
				fence_release(&tag);
			if (deadline == 0)
				deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), cutover_guc_in_doubt_timeout);
			fence_await_decision(target, relid, deadline);
		}
	}
	if (target->mode == CUTOVER_MODE_NEW_ONLY || GetCurrentTransactionStartTimestamp() < target->master_since)
	{
		bool		stale = cutover_fence_is_stale(target, relid,
												   own_lxid == cutover_my_lxid_compat() ? own_subtransactions : 0);

		/* no reason to stand in anybody's way for the rest of the transaction */
		if (locked && (stale || target->mode == CUTOVER_MODE_NEW_ONLY))
			fence_release(&tag);
		if (stale)
			cutover_fence_refuse_stale(target, relid);
		if (target->mode == CUTOVER_MODE_NEW_ONLY && may_forward && cutover_policy_is_forward(target))
			return true;
		if (target->mode == CUTOVER_MODE_NEW_ONLY)
			cutover_fence_refuse(target, relid);
	}
	target->fenced = cutover_my_lxid_compat();
	return false;
}

/*
 * The same, where nothing is forwarded; see fence.h.
 */
void
cutover_fence_take(CutoverTarget *target, Oid relid)
{
	(void) fence_pass(target, relid, false);
}

/*
 * Is this write one for new?  If not, old is master and the fence is taken.
 */
bool
cutover_fence_forwards(CutoverTarget *target, Oid relid)
{
	return target->fenced != cutover_my_lxid_compat() && fence_pass(target, relid, true);
}


/*
 * Visitor: the target of a row of _table.
 */
static bool
fence_visit_table(Relation rel, HeapTuple tuple, void *arg)
{
	bool		isnull;

	*(int32 *) arg = DatumGetInt32(cutover_tracked_attr(tuple, RelationGetDescr(rel), "target_id", &isnull));
	return false;
}

/*
 * A schema change is about to change the rows of relid, or to drop them.
 */
void
cutover_fence_ddl(Oid relid)
{
	int32		table_id;
	int32		target_id = 0;
	Oid			root;

	/* a statement that cutover_run_ddl() runs for its caller goes with the queue, whoever is master */
	if (cutover_capture_disabled || cutover_capture_rewrite_is_ours || !cutover_tracked_any() ||
		!cutover_tracked_find(relid, &table_id, &root))
		return;
	cutover_tracked_scan("_table", "_table_pkey", "table_id", INT4OID, Int32GetDatum(table_id),
						 fence_visit_table, &target_id);
	if (target_id != 0)
		cutover_fence_enter(cutover_tracked_target(target_id), relid);
}

/*
 * cutover._fence() - trigger function
 */
Datum
cutover_fence_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	CutoverRelation *entry;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function cutover._fence() was not called as it should be"),
				 errdetail("It is a trigger function for BEFORE ... FOR EACH STATEMENT or ROW."),
				 errhint("Its triggers are made by cutover_start() and cutover_add_table().")));
	if (!cutover_capture_disabled)
	{
		entry = cutover_tracked_relation(data->tg_relation);
		if (entry->target != NULL)
			cutover_fence_enter(entry->target, RelationGetRelid(data->tg_relation));
	}
	if (TRIGGER_FIRED_FOR_STATEMENT(data->tg_event))
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple : data->tg_trigtuple);
}
