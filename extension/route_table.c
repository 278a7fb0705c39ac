/*
 * route_table.c - what tables under migration are called on new.
 *
 * A cache over cutover._table and _column, one per backend, for the planner.
 * It is forgotten as a whole when the configuration changes, and by relation.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "route.h"

static HTAB *tables = NULL;
static uint64 generation = 1;	/* +1 whenever a name on either side may have changed */
static RouteTable *filling = NULL;	/* an entry that must stay where it is */
static Oid	config_table = InvalidOid;
static Oid	config_column = InvalidOid;

/*
 * Relcache callback: flags only, entries may be in use.
 */
static void
route_table_callback(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS seq;
	RouteTable *table;

	if (OidIsValid(relid) && relid != config_table && relid != config_column)
	{
		table = hash_search(tables, &relid, HASH_FIND, NULL);
		if (table == NULL)
			return;
		table->valid = false;
		if (table->known)
			generation++;
		else if (table != filling && table->cxt == NULL)
			(void) hash_search(tables, &relid, HASH_REMOVE, NULL);	/* temporary tables come and go */
		return;
	}
	generation++;
	config_table = config_column = InvalidOid;
	hash_seq_init(&seq, tables);
	while ((table = hash_seq_search(&seq)) != NULL)
		table->valid = false;
}

/*
 * Make the cache.
 */
void
cutover_route_init_tables(void)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(RouteTable)};

	tables = hash_create("cutover tables on new", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(route_table_callback, (Datum) 0);
}

/*
 * A number that changes with the names of anything.
 */
uint64
cutover_route_generation(void)
{
	return generation;
}

/*
 * Visitor: the row of _table.
 */
static bool
route_table_visit(Relation rel, HeapTuple tuple, void *arg)
{
	RouteTable *table = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	bool		shard_null;

	table->known = true;
	table->table_id = DatumGetInt32(cutover_tracked_attr(tuple, desc, "table_id", &isnull));
	table->target_id = DatumGetInt32(cutover_tracked_attr(tuple, desc, "target_id", &isnull));
	table->new_schema = MemoryContextStrdup(table->cxt,
											NameStr(*DatumGetName(cutover_tracked_attr(tuple, desc, "new_schema", &isnull))));
	table->new_name = MemoryContextStrdup(table->cxt,
										  NameStr(*DatumGetName(cutover_tracked_attr(tuple, desc, "new_name", &isnull))));
	/* with the same names for all columns: those added later follow */
	table->same = DatumGetBool(cutover_tracked_attr(tuple, desc, "default_columns", &isnull));
	(void) cutover_tracked_attr(tuple, desc, "row_filter", &isnull);
	(void) cutover_tracked_attr(tuple, desc, "shard_by", &shard_null);
	table->partial = !isnull || !shard_null;
	return false;
}

/*
 * Visitor: a row of _column, a plain column of old.
 */
static bool
route_table_visit_column(Relation rel, HeapTuple tuple, void *arg)
{
	RouteTable *table = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	AttrNumber	attnum = DatumGetInt16(cutover_tracked_attr(tuple, desc, "attnum", &isnull));

	table->computed |= isnull;
	if (!isnull && attnum >= 1 && attnum <= table->natts && table->columns[attnum - 1] == NULL)
		table->columns[attnum - 1] = MemoryContextStrdup(table->cxt,
														 NameStr(*DatumGetName(cutover_tracked_attr(tuple, desc, "new_column", &isnull))));
	return true;
}

/*
 * Names of the columns on new, and whether anything has another name there.
 */
static void
route_table_fill_columns(RouteTable *table, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		by_name = table->same;

	table->natts = desc->natts;
	table->computed = false;
	table->columns = MemoryContextAllocZero(table->cxt, sizeof(char *) * Max(desc->natts, 1));
	if (!by_name)
		cutover_tracked_scan("_column", "_column_pkey", "table_id", INT4OID, Int32GetDatum(table->table_id),
							 route_table_visit_column, table);
	table->same = strcmp(table->new_name, RelationGetRelationName(rel)) == 0 &&
		strcmp(table->new_schema, get_namespace_name(RelationGetNamespace(rel))) == 0;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		if (by_name)
			table->columns[i] = MemoryContextStrdup(table->cxt, NameStr(att->attname));
		else if (table->columns[i] == NULL || strcmp(table->columns[i], NameStr(att->attname)) != 0)
			table->same = false;
	}
}

/*
 * Fill the entry of a relation that is locked.
 */
static void
route_table_fill(RouteTable *table)
{
	Relation	rel;
	int32		table_id = 0;
	Oid			root = InvalidOid;

	table->known = false;
	if (table->cxt != NULL)
		MemoryContextReset(table->cxt);
	config_table = cutover_tracked_config("_table");
	config_column = cutover_tracked_config("_column");
	/* most tables are none of ours */
	if (!OidIsValid(config_table) || !cutover_tracked_find(table->relid, &table_id, &root) || root != table->relid)
		return;
	if (table->cxt == NULL)
		table->cxt = AllocSetContextCreate(CacheMemoryContext, "cutover table on new", ALLOCSET_SMALL_SIZES);
	cutover_tracked_scan("_table", "_table_pkey", "table_id", INT4OID, Int32GetDatum(table_id),
						 route_table_visit, table);
	if (!table->known)
		return;
	rel = table_open(table->relid, NoLock);
	route_table_fill_columns(table, rel);
	table_close(rel, NoLock);
}

/*
 * The entry of a relation that is locked; never NULL, but possibly not known.
 */
RouteTable *
cutover_route_table(Oid relid)
{
	bool		found;
	RouteTable *table = hash_search(tables, &relid, HASH_ENTER, &found);

	if (!found)
	{
		table->valid = false;
		table->known = false;
		table->cxt = NULL;
	}
	for (int tries = 0; !table->valid && tries < 10; tries++)
	{
		/* an invalidation that comes meanwhile clears this again */
		table->valid = true;
		filling = table;
		PG_TRY();
		{
			route_table_fill(table);
		}
		PG_CATCH();
		{
			filling = NULL;
			table->valid = false;
			PG_RE_THROW();
		}
		PG_END_TRY();
		filling = NULL;
	}
	return table;
}
