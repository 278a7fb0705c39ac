/*
 * dual.c - the wait of a commit for new.
 *
 * Runs in the client's backend.  The wait is a loop like that of synchronous
 * replication, entered from the resource release callback after locks.  An
 * ERROR there would be a PANIC, since the transaction is committed: so no
 * allocation of ours, no catalog, no connection, and warnings that are fixed
 * ASCII texts, which every client encoding can show.
 *
 * COMMIT PREPARED, parallel workers and our own workers do not wait.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/datum.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "dual.h"
#include "guc.h"

PG_FUNCTION_INFO_V1(cutover_degraded);

#define DUAL_MAX_TARGETS 8

/* A target that this transaction waits for. */
typedef struct DualWait
{
	CutoverSlot *slot;
	uint64		xid;
	uint64		ticket;			/* 0 = not drawn: the transaction has not committed */
} DualWait;

typedef enum DualResult
{
	DUAL_APPLIED,
	DUAL_REJECTED,
	DUAL_LATE
} DualResult;

static DualWait waits[DUAL_MAX_TARGETS];
static int	nwaits = 0;
static uint32 wait_event_dual = 0;

/*
 * A number from 0 to 100 that a key always has.
 */
static double
dual_key_bucket(CutoverRelation *entry, Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);
	uint64		hash = entry->table_id;

	for (int i = 0; i < entry->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, entry->keys[i] - 1);
		bool		isnull;
		Datum		value = heap_getattr(tuple, entry->keys[i], desc, &isnull);
		uint64		part = 0;

		if (!isnull && att->attbyval)
			part = hash_bytes_extended((unsigned char *) &value, sizeof(value), 0);
		else if (!isnull)
		{
			struct varlena *flat = att->attlen == -1 ? PG_DETOAST_DATUM_PACKED(value) : NULL;

			part = flat ? hash_bytes_extended((unsigned char *) VARDATA_ANY(flat), VARSIZE_ANY_EXHDR(flat), 0)
				: hash_bytes_extended((unsigned char *) DatumGetPointer(value),
									  datumGetSize(value, false, att->attlen), 0);
		}
		hash = hash_combine64(hash, part);
	}
	return (hash % 1000000) / 10000.0;
}

/*
 * Note that the commit has to wait for this row's target.
 */
void
cutover_dual_consider(CutoverRelation *entry, Relation rel, HeapTuple tuple)
{
	CutoverTarget *target = cutover_tracked_target(entry->target_id);

	if (!target->dual_write || entry->copying || entry->marked || IsParallelWorker())
		return;
	if (target->slot == NULL)
		target->slot = cutover_shmem_slot(target->target_id, true);
	if (target->slot == NULL || nwaits == DUAL_MAX_TARGETS)
		return;
	for (int i = 0; i < nwaits; i++)
		if (waits[i].slot == target->slot)
			return;
	if (target->write_ratio < 100 &&
		(tuple == NULL || entry->nkeys == 0 || dual_key_bucket(entry, rel, tuple) >= target->write_ratio))
		return;
	waits[nwaits].slot = target->slot;
	waits[nwaits].xid = 0;
	waits[nwaits].ticket = 0;
	nwaits++;
}

/*
 * Did new reject a row of this transaction?
 */
static bool
dual_was_rejected(CutoverSlot *slot, uint64 xid)
{
	bool		found = false;

	SpinLockAcquire(&slot->dual_mutex);
	for (int i = 0; i < CUTOVER_DUAL_RING; i++)
		found |= slot->rejected[i] == xid;
	SpinLockRelease(&slot->dual_mutex);
	return found;
}

/*
 * Tell the worker that a commit did not wait any longer.
 */
static void
dual_say_late(CutoverSlot *slot, uint64 xid)
{
	SpinLockAcquire(&slot->dual_mutex);
	if (slot->nlate < CUTOVER_DUAL_RING)
		slot->late[slot->nlate++] = xid;
	else
		slot->late_dropped++;
	SpinLockRelease(&slot->dual_mutex);
	cutover_shmem_wake(slot);
}

/*
 * Count a failure; after so many in a row commits cease to wait.
 */
static void
dual_count_failure(CutoverSlot *slot)
{
	if (pg_atomic_add_fetch_u32(&slot->dual_failures, 1) >= (uint32) cutover_guc_breaker_failures &&
		pg_atomic_read_u64(&slot->breaker_since) == 0)
		pg_atomic_write_u64(&slot->breaker_since, (uint64) GetCurrentTimestamp());
}

/*
 * Wait until new has this transaction, or for the reason not to.
 */
static DualResult
dual_wait(DualWait *wait, TimestampTz deadline)
{
	CutoverSlot *slot = wait->slot;
	DualResult	result = DUAL_LATE;

	for (;;)
	{
		long		left;
		int			rc;

		/* on the list before we look, so that no broadcast is missed */
		ConditionVariablePrepareToSleep(&slot->cv);
		if (pg_atomic_read_u64(&slot->applied) >= wait->ticket)
		{
			result = dual_was_rejected(slot, wait->xid) ? DUAL_REJECTED : DUAL_APPLIED;
			break;
		}
		if (ProcDiePending)
		{
			/* the commit stands; the client may learn it from the closed connection only */
			ereport(WARNING,
					(errcode(ERRCODE_ADMIN_SHUTDOWN),
					 errmsg_internal("terminating connection while waiting for new"),
					 errdetail_internal("The transaction has committed on old. New gets it later.")));
			whereToSendOutput = DestNone;
			break;
		}
		if (QueryCancelPending)
		{
			QueryCancelPending = false;
			break;
		}
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left <= 0)
			break;
		rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_POSTMASTER_DEATH, left,
					   cutover_wait_event_compat(&wait_event_dual, "CutoverDualWrite"));
		if (rc & WL_POSTMASTER_DEATH)
		{
			ProcDiePending = true;
			whereToSendOutput = DestNone;
			break;
		}
		ResetLatch(MyLatch);
	}
	ConditionVariableCancelSleep();
	return result;
}

/*
 * After the commit, with its locks released.
 */
static void
dual_release(ResourceReleasePhase phase, bool is_commit, bool is_top, void *arg)
{
	TimestampTz deadline;

	if (nwaits == 0 || phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_commit || !is_top ||
		CurrentResourceOwner != TopTransactionResourceOwner)
		return;
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), cutover_guc_dual_write_timeout);
	for (int i = 0; i < nwaits; i++)
	{
		DualWait   *wait = &waits[i];
		DualResult	result;

		if (wait->ticket == 0)
			continue;
		result = dual_wait(wait, deadline);
		if (result == DUAL_APPLIED)
		{
			if (pg_atomic_read_u32(&wait->slot->dual_failures) != 0)
				pg_atomic_write_u32(&wait->slot->dual_failures, 0);
			continue;
		}
		dual_count_failure(wait->slot);
		if (result == DUAL_LATE)
			dual_say_late(wait->slot, wait->xid);
		if (!ProcDiePending)
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg_internal("the transaction has committed on old, but not yet on new"),
					 errdetail_internal("The change stays queued. See cutover.dual_write_failure.")));
	}
	nwaits = 0;
}

/*
 * A commit takes its ticket when it is visible: the snapshot that serves the
 * ticket then sees it.
 */
static void
dual_xact_callback(XactEvent event, void *arg)
{
	if (nwaits == 0)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			for (int i = 0; i < nwaits; i++)
				waits[i].xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
			break;
		case XACT_EVENT_COMMIT:
			for (int i = 0; i < nwaits; i++)
			{
				if (waits[i].xid == 0 || pg_atomic_read_u64(&waits[i].slot->breaker_since) != 0)
					continue;
				waits[i].ticket = pg_atomic_add_fetch_u64(&waits[i].slot->wanted, 1);
				pg_atomic_write_u32(&waits[i].slot->dirty, 1);
				cutover_shmem_wake(waits[i].slot);
			}
			break;
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
			break;
		case XACT_EVENT_PRE_PREPARE:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
			nwaits = 0;
			break;
	}
}

void
cutover_dual_init(void)
{
	RegisterXactCallback(dual_xact_callback, NULL);
	RegisterResourceReleaseCallback(dual_release, NULL);
}

/*
 * cutover._degraded(target_id int) RETURNS boolean: commits have ceased to wait
 */
Datum
cutover_degraded(PG_FUNCTION_ARGS)
{
	CutoverSlot *slot = cutover_shmem_slot(PG_GETARG_INT32(0), false);

	PG_RETURN_BOOL(slot != NULL && pg_atomic_read_u64(&slot->breaker_since) != 0);
}

void
cutover_dual_reject(CutoverSlot *slot, uint64 xid)
{
	if (slot == NULL)
		return;
	SpinLockAcquire(&slot->dual_mutex);
	slot->rejected[slot->next_rejected++ % CUTOVER_DUAL_RING] = xid;
	SpinLockRelease(&slot->dual_mutex);
}

int
cutover_dual_take_late(CutoverSlot *slot, uint64 *xids, int max)
{
	int			n;

	if (slot == NULL || slot->nlate == 0)
		return 0;
	SpinLockAcquire(&slot->dual_mutex);
	n = Min(slot->nlate, max);
	memcpy(xids, slot->late, n * sizeof(uint64));
	memmove(slot->late, slot->late + n, (slot->nlate - n) * sizeof(uint64));
	slot->nlate -= n;
	SpinLockRelease(&slot->dual_mutex);
	return n;
}

void
cutover_dual_close_breaker(CutoverSlot *slot)
{
	uint64		since = slot ? pg_atomic_read_u64(&slot->breaker_since) : 0;

	if (since == 0 || !TimestampDifferenceExceeds((TimestampTz) since, GetCurrentTimestamp(),
												  cutover_guc_breaker_cooldown * 1000))
		return;
	pg_atomic_write_u32(&slot->dual_failures, 0);
	pg_atomic_write_u64(&slot->breaker_since, 0);
}
