/*
 * partition.c - rows that come and go with a whole relation.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "block.h"
#include "capture.h"
#include "partition.h"
#include "tracked.h"

PG_FUNCTION_INFO_V1(cutover_partition_rows);

/*
 * Capture every row of rel.
 */
void
cutover_partition_capture_rows(Relation rel, char op)
{
	CutoverRelation *entry = cutover_tracked_relation(rel);
	MemoryContext cxt;
	MemoryContext old;
	TupleTableSlot *slot;
	Snapshot	snapshot;
	TableScanDesc scan;

	if (entry->active && entry->marked)
	{
		cutover_capture_lock_gap(entry->table_id);
		entry = cutover_tracked_relation(rel);
	}
	if (cutover_capture_disabled || !entry->active || entry->marked || entry->key_lost ||
		!RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind))
		return;
	cxt = AllocSetContextCreate(TopTransactionContext, "cutover rows", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(cxt);
	slot = table_slot_create(rel, NULL);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		free_tuple;
		HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, &free_tuple);

		CHECK_FOR_INTERRUPTS();
		/* the entry may have been forgotten meanwhile, never moved */
		cutover_capture_row(cutover_tracked_relation(rel), rel, op, tuple);
		if (free_tuple)
			heap_freetuple(tuple);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
}

/*
 * cutover._capture_rows(relid oid, op "char")
 */
Datum
cutover_partition_rows(PG_FUNCTION_ARGS)
{
	Relation	rel = try_relation_open(PG_GETARG_OID(0), ShareRowExclusiveLock);

	if (rel != NULL)
	{
		cutover_partition_capture_rows(rel, PG_GETARG_CHAR(1));
		relation_close(rel, NoLock);
	}
	PG_RETURN_VOID();
}
