/*
 * tracked_relation.c - what the configuration says of one relation.
 *
 * Finds the table under migration that a relation belongs to, and works out
 * which of its columns are the key and which values an image needs.  Called by
 * the cache in tracked.c, which decides when.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/partition.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "tracked.h"

/* What the visitors of _table and _column hand over. */
typedef struct TableRow
{
	bool		found;
	int32		table_id;
	int32		target_id;
	Oid			root;
	char	   *phase;
	bool		shard_by;
	int			nkeys;
	int16	   *keys;			/* of root */
	Bitmapset  *used;			/* attnums of root, offset as by pull_varattnos */
	MemoryContext cxt;
} TableRow;

/*
 * Collect the columns that a stored expression reads.
 */
static void
tracked_pull_expression(TableRow *row, HeapTuple tuple, TupleDesc desc, const char *column)
{
	bool		isnull;
	Datum		value = cutover_tracked_attr(tuple, desc, column, &isnull);

	if (!isnull)
	{
		char	   *nodes = TextDatumGetCString(value);

		pull_varattnos(stringToNode(nodes), 1, &row->used);
		pfree(nodes);
	}
}

/*
 * Visitor: a row of _table.
 */
static bool
tracked_visit_table(Relation rel, HeapTuple tuple, void *arg)
{
	TableRow   *row = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	MemoryContext old = MemoryContextSwitchTo(row->cxt);
	bool		isnull;
	ArrayType  *keys;

	row->found = true;
	row->table_id = DatumGetInt32(cutover_tracked_attr(tuple, desc, "table_id", &isnull));
	row->target_id = DatumGetInt32(cutover_tracked_attr(tuple, desc, "target_id", &isnull));
	row->root = DatumGetObjectId(cutover_tracked_attr(tuple, desc, "old_table", &isnull));
	row->phase = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "phase", &isnull));
	(void) cutover_tracked_attr(tuple, desc, "shard_by", &isnull);
	row->shard_by = !isnull;
	keys = DatumGetArrayTypePCopy(cutover_tracked_attr(tuple, desc, "key_attnums", &isnull));
	row->nkeys = ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys));
	row->keys = (int16 *) ARR_DATA_PTR(keys);
	tracked_pull_expression(row, tuple, desc, "row_filter_expr");
	MemoryContextSwitchTo(old);
	return false;
}

/*
 * Visitor: a row of _column.
 */
static bool
tracked_visit_column(Relation rel, HeapTuple tuple, void *arg)
{
	TableRow   *row = arg;
	MemoryContext old = MemoryContextSwitchTo(row->cxt);

	tracked_pull_expression(row, tuple, RelationGetDescr(rel), "expr");
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * Visitor: a row of _member.
 */
static bool
tracked_visit_member(Relation rel, HeapTuple tuple, void *arg)
{
	bool		isnull;

	*(int32 *) arg = DatumGetInt32(cutover_tracked_attr(tuple, RelationGetDescr(rel), "table_id", &isnull));
	return false;
}

/*
 * Find the table that a relation belongs to: as its member (which holds for a
 * partition until its detachment has been dealt with), as itself, by its
 * ancestors.
 */
static void
tracked_read_table(Oid relid, TableRow *row)
{
	int32		table_id = 0;
	List	   *ancestors;
	ListCell   *lc;

	cutover_tracked_scan("_member", "_member_pkey", "relid", OIDOID, ObjectIdGetDatum(relid),
						 tracked_visit_member, &table_id);
	if (table_id != 0)
		cutover_tracked_scan("_table", "_table_pkey", "table_id", INT4OID, Int32GetDatum(table_id),
							 tracked_visit_table, row);
	if (row->found)
		return;
	cutover_tracked_scan("_table", "_table_old_table_key", "old_table", OIDOID,
						 ObjectIdGetDatum(relid), tracked_visit_table, row);
	if (row->found || !get_rel_relispartition(relid))
		return;
	ancestors = get_partition_ancestors(relid);
	foreach(lc, ancestors)
	{
		cutover_tracked_scan("_table", "_table_old_table_key", "old_table", OIDOID,
							 ObjectIdGetDatum(lfirst_oid(lc)), tracked_visit_table, row);
		if (row->found)
			break;
	}
	list_free(ancestors);
}

/*
 * Number in relid of the column attnum of root; 0 if there is none.
 */
static AttrNumber
tracked_map_attnum(Oid root, Oid relid, AttrNumber attnum)
{
	char	   *name;
	AttrNumber	mapped;

	if (root == relid)
		return attnum;
	name = get_attname(root, attnum, true);
	if (name == NULL)
		return 0;
	mapped = get_attnum(relid, name);
	pfree(name);
	return mapped < 0 ? 0 : mapped;
}

/*
 * Is there a unique index on just the key that is checked row by row?  One
 * that is checked at the end of statement or transaction lets two rows have a key for a while.
 */
static bool
tracked_key_is_immediate(const CutoverRelation *entry, Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	bool		found = false;

	foreach(lc, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;
		int			matching = 0;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisunique && index->indimmediate && index->indisvalid && index->indnkeyatts == entry->nkeys &&
			heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
			for (int i = 0; i < entry->nkeys; i++)
				for (int k = 0; k < entry->nkeys; k++)
					matching += index->indkey.values[i] == entry->keys[k];
		found |= matching == entry->nkeys && entry->nkeys > 0;
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return found;
}

/*
 * Key columns in the numbering of rel, and what follows from them.
 */
static void
tracked_fill_key(CutoverRelation *entry, Relation rel, const TableRow *row)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			natts = 0;
	Bitmapset  *indexed;

	entry->nkeys = row->nkeys;
	entry->keys = palloc(sizeof(AttrNumber) * Max(row->nkeys, 1));
	entry->key_lost = false;
	entry->key_desc = NULL;
	entry->whole_old = row->nkeys == 0 || row->shard_by;
#if PG_VERSION_NUM >= 160000
	indexed = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_HOT_BLOCKING);
#else
	indexed = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_ALL);
#endif
	entry->hot_keeps_key = true;
	for (int i = 0; i < row->nkeys; i++)
	{
		AttrNumber	attnum = tracked_map_attnum(row->root, RelationGetRelid(rel), row->keys[i]);

		entry->keys[i] = attnum;
		if (attnum <= 0 || attnum > desc->natts || TupleDescAttr(desc, attnum - 1)->attisdropped)
		{
			entry->key_lost = true;
			return;
		}
		natts = Max(natts, attnum);
		if (!bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, indexed))
			entry->hot_keeps_key = false;
	}
	bms_free(indexed);
	entry->key_reused = !tracked_key_is_immediate(entry, rel);
	if (natts > 0)
	{
		entry->key_desc = CreateTemplateTupleDesc(natts);
		for (int i = 1; i <= natts; i++)
			TupleDescCopyEntry(entry->key_desc, i, desc, i);
#if PG_VERSION_NUM >= 190000
		TupleDescFinalize(entry->key_desc);
#endif
	}
}

/*
 * Columns that must stand in every image because an expression reads them.
 */
static void
tracked_fill_used(CutoverRelation *entry, Oid relid, const TableRow *row)
{
	int			bit = -1;

	entry->not_elidable = NULL;
	entry->none_elidable = row->shard_by || row->nkeys == 0;
	while ((bit = bms_next_member(row->used, bit)) >= 0)
	{
		AttrNumber	attnum = bit + FirstLowInvalidHeapAttributeNumber;

		if (attnum == InvalidAttrNumber)
			entry->none_elidable = true;	/* the row as a whole */
		if (attnum <= 0)
			continue;
		attnum = tracked_map_attnum(row->root, relid, attnum);
		if (attnum > 0)
			entry->not_elidable = bms_add_member(entry->not_elidable, attnum);
	}
	for (int i = 0; i < entry->nkeys; i++)
		if (entry->keys[i] > 0)
			entry->not_elidable = bms_add_member(entry->not_elidable, entry->keys[i]);
}

/*
 * Read what our tables say of rel into its entry.  False: it is not under migration.
 */
bool
cutover_tracked_read_relation(CutoverRelation *entry, Relation rel)
{
	TableRow	row = {0};
	MemoryContext old;

	if (entry->cxt == NULL)
		entry->cxt = AllocSetContextCreate(CacheMemoryContext, "cutover relation", ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(entry->cxt);
	entry->layout_id = 0;
	entry->nkeys = 0;
	entry->keys = NULL;
	entry->key_desc = NULL;
	entry->not_elidable = NULL;
	row.cxt = entry->cxt;
	tracked_read_table(RelationGetRelid(rel), &row);
	if (!row.found)
		return false;
	cutover_tracked_scan("_column", "_column_pkey", "table_id", INT4OID, Int32GetDatum(row.table_id),
						 tracked_visit_column, &row);
	old = MemoryContextSwitchTo(entry->cxt);
	entry->table_id = row.table_id;
	entry->target_id = row.target_id;
	entry->root = row.root;
	entry->marked = strcmp(row.phase, "resync_needed") == 0;
	entry->copying = strcmp(row.phase, "synced") != 0 && strcmp(row.phase, "indexing") != 0 &&
		strcmp(row.phase, "catching_up") != 0;
	tracked_fill_key(entry, rel, &row);
	tracked_fill_used(entry, RelationGetRelid(rel), &row);
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * The table that a relation belongs to.
 */
bool
cutover_tracked_find(Oid relid, int32 *table_id, Oid *root)
{
	TableRow	row = {0};

	row.cxt = CurrentMemoryContext;
	if (!OidIsValid(relid))
		return false;
	tracked_read_table(relid, &row);
	if (row.found)
	{
		*table_id = row.table_id;
		*root = row.root;
	}
	return row.found;
}

/*
 * The relation that a table id stands for.
 */
Oid
cutover_tracked_root(int32 table_id)
{
	TableRow	row = {0};

	row.cxt = CurrentMemoryContext;
	cutover_tracked_scan("_table", "_table_pkey", "table_id", INT4OID, Int32GetDatum(table_id),
						 tracked_visit_table, &row);
	return row.root;
}
