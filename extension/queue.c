/*
 * queue.c - blocks into the queue tables, and what happens when that fails.
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/toast_compression.h"
#include "access/toast_internals.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "block.h"
#include "capture.h"
#include "compat.h"
#include "guc.h"
#include "pack.h"
#include "queue.h"

/* columns of a queue table */
#define QUEUE_COLUMNS 5

/* How often size and free space are looked at. */
#define QUEUE_LOOK_MS 200
/* Less than this free in the file system: be prepared for failure. */
#define QUEUE_LOW_SPACE (256 * INT64CONST(1024) * 1024)
/* Smaller blocks aren't worth compressing. */

bool		cutover_queue_trying = false;

static bool failed_before = false;	/* the last attempt of this backend failed */

/*
 * Pages of a relation and its TOAST table; 0 if somebody is just truncating it.
 */
static BlockNumber
queue_pages(Oid relid)
{
	BlockNumber pages = 0;
	Relation	rel;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return 0;
	rel = RelationIdGetRelation(relid);
	if (rel != NULL)
	{
		Oid			toast = rel->rd_rel->reltoastrelid;

		pages = RelationGetNumberOfBlocks(rel);
		RelationClose(rel);
		if (OidIsValid(toast))
			pages += queue_pages(toast);
	}
	UnlockRelationOid(relid, AccessShareLock);
	return pages;
}

/*
 * Is the file system of the database nearly full?
 */
static bool
queue_space_low(void)
{
	struct statvfs fs;

	if (DatabasePath == NULL || statvfs(DatabasePath, &fs) != 0)
		return false;
	return (int64) fs.f_bavail * (int64) fs.f_frsize < QUEUE_LOW_SPACE;
}

/*
 * May a write be expected to work?  Cheap: the costly questions are asked a few times a second.
 */
CutoverQueueState
cutover_queue_look(CutoverTarget *target)
{
	static TimestampTz looked_at = 0;
	static int32 looked_target = 0;
	static CutoverQueueState seen = CUTOVER_QUEUE_FINE;
	TimestampTz now = GetCurrentTimestamp();

	if (looked_target != target->target_id || now < looked_at ||
		now - looked_at > QUEUE_LOOK_MS * INT64CONST(1000))
	{
		looked_at = now;
		looked_target = target->target_id;
		seen = queue_space_low() ? CUTOVER_QUEUE_DOUBTFUL : CUTOVER_QUEUE_FINE;
		if (cutover_guc_queue_limit > 0)
		{
			uint64		pages = 0;

			for (int i = 0; i < CUTOVER_SEGMENTS; i++)
				pages += queue_pages(target->queue[i]);
			if (pages * BLCKSZ >= (uint64) cutover_guc_queue_limit * 1024 * 1024)
				seen = CUTOVER_QUEUE_FULL;
		}
	}
	if (seen != CUTOVER_QUEUE_FINE)
		return seen;
	return failed_before ? CUTOVER_QUEUE_DOUBTFUL : CUTOVER_QUEUE_FINE;
}

/*
 * Lock the segment that is written to.  Waiting for the lock may show that
 * meanwhile it is another one.  The lock stays to the end of the transaction: a segment
 * in which an open transaction has blocks isn't truncated.  InvalidOid: the target is gone.
 */
static Oid
queue_lock_segment(CutoverTarget *target)
{
	for (;;)
	{
		Oid			relid = target->queue[target->segment];

		LockRelationOid(relid, RowExclusiveLock);
		target = cutover_tracked_target(target->target_id);
		if (!target->active)
			return InvalidOid;
		if (target->queue[target->segment] == relid)
			return relid;
	}
}

/*
 * Lock the segment that is written to, if that takes no waiting.
 */
bool
cutover_queue_lock_conditional(CutoverTarget *target)
{
	return ConditionalLockRelationOid(target->queue[target->segment], RowExclusiveLock);
}

/*
 * Write blocks.
 */
void
cutover_queue_write(CutoverTarget *target, const CutoverBlock *blocks, int nblocks)
{
	Oid			relid;
	Relation	rel;
	CatalogIndexState indexes;
	Datum		values[QUEUE_COLUMNS];
	bool		nulls[QUEUE_COLUMNS] = {0};

	/* set until we know better: the transaction may end right here */
	failed_before = true;
	relid = queue_lock_segment(target);
	if (!OidIsValid(relid))
	{
		/* the migration was given up during this transaction: nobody asks for its changes any more */
		failed_before = false;
		return;
	}
	rel = table_open(relid, NoLock);
	indexes = CatalogOpenIndexes(rel);
	values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	for (int i = 0; i < nblocks; i++)
	{
		struct varlena *data = cutover_pack(blocks[i].data, blocks[i].len);
		HeapTuple	tuple;

		CHECK_FOR_INTERRUPTS();
		values[1] = LSNGetDatum(GetXLogInsertRecPtr());
		values[2] = Int32GetDatum(blocks[i].seq);
		values[3] = Int32GetDatum(blocks[i].n);
		values[4] = PointerGetDatum(data);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsertWithInfo(rel, tuple, indexes);
		heap_freetuple(tuple);
		pfree(data);
	}
	CatalogCloseIndexes(indexes);
	table_close(rel, NoLock);
	failed_before = false;
}

/*
 * Write blocks in a subtransaction, so that failing leaves the user's
 * transaction alive.  That costs a transaction id, so it isn't the normal way.
 */
bool
cutover_queue_try_write(CutoverTarget *target, const CutoverBlock *blocks, int nblocks, char **message)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	cutover_queue_trying = true;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		cutover_queue_write(target, blocks, nblocks);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		cutover_queue_trying = false;
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = owner;
		/* not failures of ours, but orders */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED || error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			error->sqlerrcode == ERRCODE_CRASH_SHUTDOWN)
			ReThrowError(error);
		*message = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
	cutover_queue_trying = false;
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return done;
}

/*
 * Lock the newest version of a table's row and copy it; NULL if it is gone or
 * (without wait) somebody else has it.
 */
static HeapTuple
queue_lock_row(Relation rel, int32 table_id, bool wait, bool *busy)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	HeapTuple	copy = NULL;

	*busy = false;
	ScanKeyInit(&key, SPI_fnumber(RelationGetDescr(rel), "table_id"), BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(table_id));
	scan = systable_beginscan(rel, cutover_tracked_config("_table_pkey"), true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (tuple != NULL)
	{
		TM_FailureData failure;
		ItemPointerData tid = tuple->t_self;
		TM_Result	result = table_tuple_lock(rel, &tid, snapshot, slot, GetCurrentCommandId(true),
											  LockTupleNoKeyExclusive,
											  wait ? LockWaitBlock : LockWaitSkip,
											  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);

		*busy = result == TM_WouldBlock;
		if (result == TM_Ok || result == TM_SelfModified)
			copy = result == TM_Ok ? ExecCopySlotHeapTuple(slot) : NULL;
	}
	systable_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	return copy;
}

/*
 * Set the phase of a table; false if (without wait) somebody else holds its row.
 */
static bool
queue_set_resync(int32 table_id, const char *reason, bool wait)
{
	Relation	rel = table_open(cutover_tracked_config("_table"), RowExclusiveLock);
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc0(sizeof(bool) * desc->natts);
	bool	   *replace = palloc0(sizeof(bool) * desc->natts);
	bool		busy;
	bool		isnull;
	HeapTuple	tuple = queue_lock_row(rel, table_id, wait, &busy);

	if (tuple != NULL)
	{
		char	   *phase = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "phase", &isnull));

		if (strcmp(phase, "resync_needed") != 0)
		{
#define QUEUE_SET(name, value) \
	do { int a = SPI_fnumber(desc, name) - 1; values[a] = (value); replace[a] = true; } while (0)
			QUEUE_SET("phase", CStringGetTextDatum("resync_needed"));
			QUEUE_SET("phase_reason", CStringGetTextDatum(reason));
			QUEUE_SET("phase_since", TimestampTzGetDatum(GetCurrentTimestamp()));
#undef QUEUE_SET
			CatalogTupleUpdate(rel, &tuple->t_self,
							   heap_modify_tuple(tuple, desc, values, nulls, replace));
			CacheInvalidateRelcache(rel);
			CommandCounterIncrement();
		}
	}
	table_close(rel, NoLock);
	return !busy;
}

/*
 * Mark a table for resync.  Its row in _table is written directly, which takes effect at once and
 * works without growing a file; if somebody else holds that row, a control
 * entry in the queue says the same without waiting for him.
 */
void
cutover_queue_mark(int32 target_id, int32 table_id, const char *reason)
{
	CutoverTarget *target = cutover_tracked_target(target_id);
	Size		len = strlen(reason);
	uint32		len32 = len;
	char	   *change;
	char	   *p;
	char	   *message;
	int32		layout_id = 0;
	CutoverBlock block;

	if (!OidIsValid(cutover_tracked_config("_table")))
		return;
	/* before the look at its phase: it may be marked already, and its copy about to begin */
	cutover_capture_lock_gap(table_id);
	if (queue_set_resync(table_id, reason, false))
		return;
	p = change = palloc(2 + 4 + 4 + 1 + 4 + len);
	*p++ = CUTOVER_OP_CONTROL;
	*p++ = 0;
	memcpy(p, &layout_id, 4);
	memcpy(p + 4, &table_id, 4);
	p[8] = CUTOVER_CONTROL_RESYNC;
	memcpy(p + 9, &len32, 4);
	memcpy(p + 13, reason, len);
	block.data = change;
	block.len = p + 13 + len - change;
	block.seq = PG_INT32_MAX - 1;	/* after all others */
	block.n = 1;
	if (target->active && cutover_queue_try_write(target, &block, 1, &message))
		return;
	(void) queue_set_resync(table_id, reason, true);
}
