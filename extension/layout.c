/*
 * layout.c - row layouts: found, or written the first time a shape is met.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "layout.h"

/* The array columns of cutover._layout. */
enum
{
	LAYOUT_NAME, LAYOUT_TYPE, LAYOUT_TYPMOD, LAYOUT_LEN, LAYOUT_BYVAL,
	LAYOUT_ALIGN, LAYOUT_STORAGE, LAYOUT_COLLATION, LAYOUT_ROOT, LAYOUT_ARRAYS
};

static const struct
{
	const char *column;
	Oid			type;
	int			len;
	bool		byval;
	char		align;
}			layout_arrays[LAYOUT_ARRAYS] = {
	{"attname", NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR},
	{"atttypid", OIDOID, sizeof(Oid), true, TYPALIGN_INT},
	{"atttypmod", INT4OID, sizeof(int32), true, TYPALIGN_INT},
	{"attlen", INT2OID, sizeof(int16), true, TYPALIGN_SHORT},
	{"attbyval", BOOLOID, 1, true, TYPALIGN_CHAR},
	{"attalign", CHAROID, 1, true, TYPALIGN_CHAR},
	{"attstorage", CHAROID, 1, true, TYPALIGN_CHAR},
	{"attcollation", OIDOID, sizeof(Oid), true, TYPALIGN_INT},
	{"root_attnum", INT2OID, sizeof(int16), true, TYPALIGN_SHORT},
};

/* Layouts written by this transaction: good only if it commits. */
typedef struct LayoutWritten
{
	Oid			relid;
	SubTransactionId subid;
} LayoutWritten;

static LayoutWritten *written = NULL;
static int	nwritten = 0;
static int	max_written = 0;

/* A layout looked for, and the id found. */
typedef struct LayoutSearch
{
	int32		table_id;
	ArrayType  *arrays[LAYOUT_ARRAYS];
	int32		layout_id;
} LayoutSearch;

/*
 * Fill in the values of one attribute.
 */
static void
layout_describe(Datum **values, int i, Form_pg_attribute att, Oid root, Oid relid)
{
	AttrNumber	root_attnum = 0;

	if (!att->attisdropped)
		root_attnum = root == relid ? att->attnum : get_attnum(root, NameStr(att->attname));
	values[LAYOUT_NAME][i] = NameGetDatum(&att->attname);
	values[LAYOUT_TYPE][i] = ObjectIdGetDatum(att->attisdropped ? InvalidOid : att->atttypid);
	values[LAYOUT_TYPMOD][i] = Int32GetDatum(att->atttypmod);
	values[LAYOUT_LEN][i] = Int16GetDatum(att->attlen);
	values[LAYOUT_BYVAL][i] = BoolGetDatum(att->attbyval);
	values[LAYOUT_ALIGN][i] = CharGetDatum(att->attalign);
	values[LAYOUT_STORAGE][i] = CharGetDatum(att->attstorage);
	values[LAYOUT_COLLATION][i] = ObjectIdGetDatum(att->attcollation);
	values[LAYOUT_ROOT][i] = Int16GetDatum(root_attnum < 0 ? 0 : root_attnum);
}

/*
 * The present layout of rel as arrays.
 */
static void
layout_build(LayoutSearch *search, Relation rel, Oid root)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values[LAYOUT_ARRAYS];

	for (int a = 0; a < LAYOUT_ARRAYS; a++)
		values[a] = palloc(sizeof(Datum) * Max(desc->natts, 1));
	for (int i = 0; i < desc->natts; i++)
		layout_describe(values, i, TupleDescAttr(desc, i), root, RelationGetRelid(rel));
	for (int a = 0; a < LAYOUT_ARRAYS; a++)
		search->arrays[a] = construct_array(values[a], desc->natts, layout_arrays[a].type,
											layout_arrays[a].len, layout_arrays[a].byval,
											layout_arrays[a].align);
}

/*
 * Visitor: a stored layout of the relation.  Arrays without NULLs are equal
 * exactly if their bytes are.
 */
static bool
layout_visit(Relation rel, HeapTuple tuple, void *arg)
{
	LayoutSearch *search = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;

	if (DatumGetInt32(cutover_tracked_attr(tuple, desc, "table_id", &isnull)) != search->table_id)
		return true;
	for (int a = 0; a < LAYOUT_ARRAYS; a++)
	{
		Datum		value = cutover_tracked_attr(tuple, desc, layout_arrays[a].column, &isnull);
		ArrayType  *array = DatumGetArrayTypeP(value);

		if (VARSIZE(array) != VARSIZE(search->arrays[a]) ||
			memcmp(array, search->arrays[a], VARSIZE(array)) != 0)
			return true;
	}
	search->layout_id = DatumGetInt32(cutover_tracked_attr(tuple, desc, "layout_id", &isnull));
	return false;
}

/*
 * Remember that a layout exists only if this (sub)transaction commits.
 */
static void
layout_remember(Oid relid)
{
	if (nwritten == max_written)
	{
		int			size = max_written == 0 ? 8 : max_written * 2;

		if (written == NULL)
			written = MemoryContextAlloc(TopMemoryContext, size * sizeof(LayoutWritten));
		else
			written = repalloc(written, size * sizeof(LayoutWritten));
		max_written = size;
	}
	written[nwritten].relid = relid;
	written[nwritten++].subid = GetCurrentSubTransactionId();
}

/*
 * Write a layout, past all privileges: whoever changes a row may be the first.
 */
static int32
layout_write(LayoutSearch *search, Oid relid)
{
	Relation	rel = table_open(cutover_tracked_config("_layout"), RowExclusiveLock);
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc0(sizeof(bool) * desc->natts);
	int32		layout_id = nextval_internal(cutover_tracked_config("_layout_id_seq"), false);
	HeapTuple	tuple;

#define LAYOUT_SET(name, value) values[SPI_fnumber(desc, name) - 1] = (value)
	LAYOUT_SET("layout_id", Int32GetDatum(layout_id));
	LAYOUT_SET("table_id", Int32GetDatum(search->table_id));
	LAYOUT_SET("relid", ObjectIdGetDatum(relid));
	LAYOUT_SET("created_at", TimestampTzGetDatum(GetCurrentTimestamp()));
	for (int a = 0; a < LAYOUT_ARRAYS; a++)
		LAYOUT_SET(layout_arrays[a].column, PointerGetDatum(search->arrays[a]));
#undef LAYOUT_SET
	tuple = heap_form_tuple(desc, values, nulls);
	layout_remember(relid);
	CatalogTupleInsert(rel, tuple);
	table_close(rel, NoLock);
	return layout_id;
}

/*
 * The layout id of rel as it is now.
 */
int32
cutover_layout_get(CutoverRelation *entry, Relation rel)
{
	LayoutSearch search = {0};
	MemoryContext cxt;
	MemoryContext old;

	if (entry->layout_id != 0)
		return entry->layout_id;
	cxt = AllocSetContextCreate(CurrentMemoryContext, "cutover layout", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(cxt);
	search.table_id = entry->table_id;
	layout_build(&search, rel, entry->root);
	cutover_tracked_scan("_layout", "_layout_relid_idx", "relid", OIDOID,
						 ObjectIdGetDatum(RelationGetRelid(rel)), layout_visit, &search);
	if (search.layout_id == 0)
		search.layout_id = layout_write(&search, RelationGetRelid(rel));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(cxt);
	entry->layout_id = search.layout_id;
	return entry->layout_id;
}

/*
 * Forget layouts that a rolled back subtransaction, or all of the
 * transaction, has written.
 */
void
cutover_layout_rollback(SubTransactionId subid)
{
	while (nwritten > 0 && written[nwritten - 1].subid >= subid)
		cutover_tracked_forget(written[--nwritten].relid);
}

/*
 * They are there to stay.
 */
void
cutover_layout_commit(void)
{
	nwritten = 0;
}

/*
 * An array column of a layout, deconstructed.
 */
static Datum *
layout_column(HeapTuple tuple, TupleDesc desc, int a, int *n)
{
	bool		isnull;
	Datum	   *values;
	ArrayType  *array = DatumGetArrayTypeP(cutover_tracked_attr(tuple, desc, layout_arrays[a].column, &isnull));

	deconstruct_array(array, layout_arrays[a].type, layout_arrays[a].len, layout_arrays[a].byval,
					  layout_arrays[a].align, &values, NULL, n);
	return values;
}

/*
 * Visitor: make a descriptor of a layout.
 */
static bool
layout_visit_read(Relation rel, HeapTuple tuple, void *arg)
{
	Datum	   *values[LAYOUT_ARRAYS];
	int			n = 0;
	TupleDesc	desc;

	for (int a = 0; a < LAYOUT_ARRAYS; a++)
		values[a] = layout_column(tuple, RelationGetDescr(rel), a, &n);
	desc = CreateTemplateTupleDesc(n);
	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		memset(att, 0, ATTRIBUTE_FIXED_PART_SIZE);
		namestrcpy(&att->attname, NameStr(*DatumGetName(values[LAYOUT_NAME][i])));
		att->attnum = i + 1;
		att->atttypid = DatumGetObjectId(values[LAYOUT_TYPE][i]);
		att->attisdropped = !OidIsValid(att->atttypid);
		att->atttypmod = DatumGetInt32(values[LAYOUT_TYPMOD][i]);
		att->attlen = DatumGetInt16(values[LAYOUT_LEN][i]);
		att->attbyval = DatumGetBool(values[LAYOUT_BYVAL][i]);
		att->attalign = DatumGetChar(values[LAYOUT_ALIGN][i]);
		att->attstorage = DatumGetChar(values[LAYOUT_STORAGE][i]);
		att->attcollation = DatumGetObjectId(values[LAYOUT_COLLATION][i]);
#if PG_VERSION_NUM < 180000
		att->attcacheoff = -1;
#else
		populate_compact_attribute(desc, i);
#endif
	}
	*(TupleDesc *) arg = desc;
	return false;
}

/*
 * A stored layout as a descriptor.
 */
TupleDesc
cutover_layout_read(int32 layout_id)
{
	TupleDesc	desc = NULL;

	cutover_tracked_scan("_layout", "_layout_pkey", "layout_id", INT4OID, Int32GetDatum(layout_id),
						 layout_visit_read, &desc);
	return desc;
}
