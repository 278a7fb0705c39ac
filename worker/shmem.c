/*
 * shmem.c - the slots through which backends and workers wake and watch each other.
 *
 * Used by every process.  The segment is a few kilobytes from the server's
 * allowance for libraries that were not preloaded, made by whoever comes first.
 * One LWLock tranche guards the allocation of slots; each slot's stats have a
 * spinlock of their own; tickets are atomics.
 */
#include "postgres.h"

#include <sys/stat.h>
#include <unistd.h>

#include "common/hashfn.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "shmem.h"

typedef struct CutoverShared
{
	LWLock		lock;			/* protects the identity and worker fields of the slots */
	int			tranche;
	char		instance[64];
	CutoverSlot slots[CUTOVER_MAX_SLOTS];
} CutoverShared;

static CutoverShared *shared = NULL;
static bool attach_failed = false;

/*
 * Name this server so that a copy of its files has another name, wherever it
 * runs, and a restarted server the same: by machine, boot, and the data
 * directory's inode (two postmasters can't run in one directory).
 */
static void
shmem_describe_instance(char *buf, size_t len)
{
	char		host[32] = "";
	char		boot[64] = "";
	struct stat st = {0};
	char	   *identity;
	FILE	   *file = fopen("/proc/sys/kernel/random/boot_id", "r");

	if (file != NULL)
	{
		if (fgets(boot, sizeof(boot), file) == NULL)
			boot[0] = '\0';
		fclose(file);
	}
	gethostname(host, sizeof(host) - 1);
	if (stat(DataDir, &st) != 0)
		elog(DEBUG1, "could not stat the data directory");
	identity = psprintf("%s:%s:%llu:%llu:%s", host, boot, (unsigned long long) st.st_dev,
						(unsigned long long) st.st_ino, DataDir);
	snprintf(buf, len, "%s-%016llx", host,
			 (unsigned long long) DatumGetUInt64(hash_any_extended((unsigned char *) identity, strlen(identity), 0)));
	pfree(identity);
}

/*
 * Find or make the shared segment.
 */
bool
cutover_shmem_attach(void)
{
	bool		found;
	uint32		holdoff;
	MemoryContext context = CurrentMemoryContext;

	if (shared != NULL)
		return true;
	if (attach_failed || !IsUnderPostmaster)
		return false;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	holdoff = InterruptHoldoffCount;
	PG_TRY();
	{
		/* a library replaced under a running server makes a segment of its own */
		char		name[48];

		snprintf(name, sizeof(name), "cutover %d %zu", CUTOVER_SHMEM_VERSION, sizeof(CutoverShared));
		shared = ShmemInitStruct(name, sizeof(CutoverShared), &found);
	}
	PG_CATCH();
	{
		/* the allowance is used up: everything still works, by polling */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		/* the error reset what the lock still held will count down */
		InterruptHoldoffCount = holdoff;
		shared = NULL;
		attach_failed = true;
	}
	PG_END_TRY();
	if (shared != NULL && !found)
	{
		shared->tranche = LWLockNewTrancheId();
		LWLockInitialize(&shared->lock, shared->tranche);
		shmem_describe_instance(shared->instance, sizeof(shared->instance));
		for (int i = 0; i < CUTOVER_MAX_SLOTS; i++)
		{
			CutoverSlot *slot = &shared->slots[i];

			memset(slot, 0, sizeof(*slot));
			pg_atomic_init_u64(&slot->wanted, 0);
			pg_atomic_init_u64(&slot->served, 0);
			pg_atomic_init_u64(&slot->applied, 0);
			pg_atomic_init_u32(&slot->dual_failures, 0);
			pg_atomic_init_u64(&slot->breaker_since, 0);
			SpinLockInit(&slot->dual_mutex);
			pg_atomic_init_u32(&slot->dirty, 0);
			pg_atomic_init_u32(&slot->reread, 0);
			pg_atomic_init_u32(&slot->sending, 0);
			pg_atomic_init_u32(&slot->shadow_ring, 0);
			pg_atomic_init_u64(&slot->shadow_lost, 0);
			ConditionVariableInit(&slot->cv);
			SpinLockInit(&slot->mutex);
			pg_atomic_init_u32(&slot->read_failures, 0);
			pg_atomic_init_u64(&slot->read_breaker, 0);
			for (int k = 0; k < CUTOVER_READ_COUNTERS; k++)
				pg_atomic_init_u64(&slot->reads[k], 0);
		}
	}
	LWLockRelease(AddinShmemInitLock);

	if (shared != NULL)
		LWLockRegisterTranche(shared->tranche, "cutover");
	return shared != NULL;
}

/*
 * Reset what a slot says; the caller holds the lock exclusively.
 */
static void
shmem_clear_slot(CutoverSlot *slot, Oid dboid, int32 target_id)
{
	slot->dboid = dboid;
	slot->target_id = target_id;
	slot->pid = 0;
	slot->last_start = 0;
	pg_atomic_write_u32(&slot->shadow_ring, 0);
	pg_atomic_write_u64(&slot->shadow_lost, 0);
	memset(slot->shadow, 0, sizeof(slot->shadow));
	SpinLockAcquire(&slot->mutex);
	memset(&slot->stats, 0, sizeof(slot->stats));
	slot->stats.lag_us = -1;
	SpinLockRelease(&slot->mutex);
	pg_atomic_write_u32(&slot->read_failures, 0);
	pg_atomic_write_u64(&slot->read_breaker, 0);
	for (int i = 0; i < CUTOVER_READ_COUNTERS; i++)
		pg_atomic_write_u64(&slot->reads[i], 0);
}

/*
 * Give back the slots of databases that are gone: nobody has told us.
 */
static void
shmem_free_orphans(void)
{
	for (int i = 0; i < CUTOVER_MAX_SLOTS; i++)
	{
		CutoverSlot *slot = &shared->slots[i];
		Oid			dboid = slot->dboid;

		if (!OidIsValid(dboid) || dboid == MyDatabaseId ||
			SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(dboid)))
			continue;
		LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
		/* no worker can be there: the database could not have been dropped */
		if (slot->dboid == dboid)
			shmem_clear_slot(slot, InvalidOid, 0);
		LWLockRelease(&shared->lock);
	}
}

/*
 * Find the slot of a target of this database, or take a free one.
 */
static CutoverSlot *
shmem_find_slot(int32 target_id, bool create)
{
	CutoverSlot *free_slot = NULL;
	CutoverSlot *found = NULL;

	LWLockAcquire(&shared->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < CUTOVER_MAX_SLOTS && found == NULL; i++)
	{
		CutoverSlot *slot = &shared->slots[i];

		if (slot->dboid == MyDatabaseId && slot->target_id == target_id)
			found = slot;
		else if (free_slot == NULL && slot->dboid == InvalidOid)
			free_slot = slot;
	}
	if (found == NULL && create && free_slot != NULL)
	{
		shmem_clear_slot(free_slot, MyDatabaseId, target_id);
		found = free_slot;
	}
	LWLockRelease(&shared->lock);
	return found;
}

/*
 * The slot of a target of this database.
 */
CutoverSlot *
cutover_shmem_slot(int32 target_id, bool create)
{
	CutoverSlot *slot;

	if (!cutover_shmem_attach())
		return NULL;
	slot = shmem_find_slot(target_id, create);
	if (slot == NULL && create && IsTransactionState())
	{
		shmem_free_orphans();
		slot = shmem_find_slot(target_id, create);
	}
	return slot;
}

/*
 * Make the calling worker the one of this slot, unless another lives.
 */
bool
cutover_shmem_attach_worker(CutoverSlot *slot)
{
	bool		mine;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	mine = slot->pid == 0 || slot->pid == MyProcPid || kill(slot->pid, 0) != 0;
	if (mine)
	{
		slot->pid = MyProcPid;
		slot->procno = cutover_my_procno_compat();
		slot->generation++;
	}
	LWLockRelease(&shared->lock);
	return mine;
}

/*
 * Give the slot back; those who wait look again.
 */
void
cutover_shmem_detach_worker(CutoverSlot *slot)
{
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (slot->pid == MyProcPid)
		slot->pid = 0;
	LWLockRelease(&shared->lock);
	ConditionVariableBroadcast(&slot->cv);
}

/*
 * Make the calling process shadow worker n of this slot, unless another lives.
 */
bool
cutover_shmem_attach_shadow(CutoverSlot *slot, int n)
{
	CutoverShadowWorker *worker = &slot->shadow[n];
	bool		mine;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	mine = worker->pid == 0 || worker->pid == MyProcPid || kill(worker->pid, 0) != 0;
	if (mine)
	{
		worker->pid = MyProcPid;
		worker->procno = cutover_my_procno_compat();
	}
	LWLockRelease(&shared->lock);
	return mine;
}

/*
 * Give the place back.  The segment goes with the last process attached to
 * it, so nobody must find its handle any more.
 */
void
cutover_shmem_detach_shadow(CutoverSlot *slot, int n)
{
	bool		last = true;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (slot->shadow[n].pid == MyProcPid)
	{
		slot->shadow[n].pid = 0;
		for (int i = 0; i < CUTOVER_MAX_SHADOW_WORKERS; i++)
			if (slot->shadow[i].pid != 0 && kill(slot->shadow[i].pid, 0) == 0)
				last = false;
		if (last)
			pg_atomic_write_u32(&slot->shadow_ring, 0);
	}
	LWLockRelease(&shared->lock);
}

/*
 * Forget a target; a slot with a live worker stays until that ends.
 */
void
cutover_shmem_free_slot(int32 target_id)
{
	CutoverSlot *slot = cutover_shmem_slot(target_id, false);

	if (slot == NULL)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (slot->pid == 0 || kill(slot->pid, 0) != 0)
		shmem_clear_slot(slot, InvalidOid, 0);
	LWLockRelease(&shared->lock);
}

/*
 * Wake the worker.  A stale procno wakes an innocent process, which does no harm.
 */
void
cutover_shmem_wake(CutoverSlot *slot)
{
	if (slot == NULL || slot->pid == 0)
		return;
	SetLatch(&ProcGlobal->allProcs[slot->procno].procLatch);
}

/*
 * Read the stats of a slot as of one moment.
 */
void
cutover_shmem_get_stats(CutoverSlot *slot, CutoverStats *stats)
{
	SpinLockAcquire(&slot->mutex);
	*stats = slot->stats;
	SpinLockRelease(&slot->mutex);
}

/*
 * Publish the stats of a slot as a whole.
 */
void
cutover_shmem_set_stats(CutoverSlot *slot, const CutoverStats *stats)
{
	SpinLockAcquire(&slot->mutex);
	slot->stats = *stats;
	SpinLockRelease(&slot->mutex);
}

/*
 * How new the following side is, at least.
 */
TimestampTz
cutover_shmem_acked_at(CutoverSlot *slot)
{
	TimestampTz acked_at;

	SpinLockAcquire(&slot->mutex);
	acked_at = slot->stats.acked_at;
	SpinLockRelease(&slot->mutex);
	return acked_at;
}

/*
 * Name this running server.
 */
const char *
cutover_shmem_instance(void)
{
	static char buf[64];

	if (cutover_shmem_attach())
		return shared->instance;
	if (buf[0] == '\0')
		shmem_describe_instance(buf, sizeof(buf));
	return buf;
}
