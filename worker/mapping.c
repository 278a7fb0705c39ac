/*
 * mapping.c - the replicator's view of the tables under migration.
 *
 * Runs in the replicator.  Tables are loaded from our configuration and old's
 * catalogs whenever a relcache invalidation said that one of them changed;
 * what new has is fetched when a table is first needed after that
 * (worker/mapping_new.c).
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "local.h"
#include "mapping.h"

static MemoryContext mapping_context = NULL;
static MemoryContext chunk_context = NULL;
static List *tables = NIL;
static int32 mapping_target = 0;
static bool stale = true;
static Oid	config_relids[3];

static const char *const phase_names[] = {
	"waiting", "copying", "catching_up", "indexing", "synced", "resync_needed"
};

/*
 * A relation changed.  Called at any moment, so it only sets a flag.
 */
static void
mapping_invalidated(Datum arg, Oid relid)
{
	ListCell   *lc;

	if (stale)
		return;
	stale = relid == InvalidOid || relid == config_relids[0] ||
		relid == config_relids[1] || relid == config_relids[2];
	foreach(lc, tables)
	{
		if (stale)
			return;
		stale = ((CutoverTable *) lfirst(lc))->relid == relid;
	}
}

/*
 * Begin with an empty cache.
 */
void
cutover_mapping_init(int32 target_id)
{
	mapping_target = target_id;
	mapping_context = AllocSetContextCreate(TopMemoryContext, "cutover mapping", ALLOCSET_DEFAULT_SIZES);
	chunk_context = AllocSetContextCreate(TopMemoryContext, "cutover chunk maps", ALLOCSET_DEFAULT_SIZES);
	CacheRegisterRelcacheCallback(mapping_invalidated, (Datum) 0);
}

bool
cutover_mapping_is_stale(void)
{
	return stale;
}

/*
 * Have everything loaded again, also what new has.
 */
void
cutover_mapping_set_stale(void)
{
	stale = true;
}

/*
 * Where long-lived parts of a table's entry are allocated.
 */
MemoryContext
cutover_mapping_context(void)
{
	return mapping_context;
}

static CutoverPhase
mapping_phase(const char *name)
{
	for (int i = 0; i < lengthof(phase_names); i++)
	{
		if (strcmp(name, phase_names[i]) == 0)
			return (CutoverPhase) i;
	}
	elog(ERROR, "unknown phase \"%s\"", name);
}

/*
 * Column col of row i of the SPI result as text, NULL for null.
 */
static char *
mapping_spi_text(uint64 i, int col)
{
	return SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, col);
}

/*
 * Fill key_attnums from an int2[] of the SPI result.
 */
static void
mapping_read_key(CutoverTable *table, uint64 i, int col)
{
	bool		isnull;
	Datum		array = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, col, &isnull);
	Datum	   *elems;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(array), INT2OID, 2, true, TYPALIGN_SHORT, &elems, NULL, &n);
	table->nkeys = n;
	table->key_attnums = MemoryContextAlloc(mapping_context, Max(n, 1) * sizeof(AttrNumber));
	for (int k = 0; k < n; k++)
		table->key_attnums[k] = DatumGetInt16(elems[k]);
}

/*
 * Make the entry of row i of the table query; NULL if the relation is gone.
 */
static CutoverTable *
mapping_read_table(uint64 i)
{
	Oid			relid = atooid(mapping_spi_text(i, 2));
	Relation	rel = try_table_open(relid, AccessShareLock);
	MemoryContext old;
	CutoverTable *table;

	if (rel == NULL)
		return NULL;
	old = MemoryContextSwitchTo(mapping_context);
	table = palloc0(sizeof(CutoverTable));
	table->table_id = pg_strtoint32(mapping_spi_text(i, 1));
	table->relid = relid;
	table->owner = rel->rd_rel->relowner;
	table->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
	table->old_name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												 RelationGetRelationName(rel));
	table->apply.table_id = table->table_id;
	table->apply.old_relid = relid;
	table->apply.schema = pstrdup(mapping_spi_text(i, 3));
	table->apply.name = pstrdup(mapping_spi_text(i, 4));
	table->default_columns = mapping_spi_text(i, 5)[0] == 't';
	mapping_read_key(table, i, 6);
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);
	return table;
}

/*
 * Parents before children: the longest path to a table through foreign keys on new.
 */
static void
mapping_rank_tables(CutoverEndpoint *ep)
{
	CutoverRows *fks;
	bool		changed = true;

	fks = cutover_endpoint_exec(ep,
								"SELECT cn.nspname, c.relname, pn.nspname, p.relname"
								" FROM pg_catalog.pg_constraint k"
								" JOIN pg_catalog.pg_class c ON c.oid = k.conrelid"
								" JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace"
								" JOIN pg_catalog.pg_class p ON p.oid = k.confrelid"
								" JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace"
								" WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid <> k.confrelid");
	/* a cycle never settles: bounded by the number of tables */
	for (int pass = 0; changed && pass < list_length(tables); pass++)
	{
		changed = false;
		for (int i = 0; i < fks->nrows; i++)
		{
			CutoverTable *child = NULL,
					   *parent = NULL;
			ListCell   *lc;

			foreach(lc, tables)
			{
				CutoverTable *t = lfirst(lc);

				if (strcmp(t->apply.schema, CUTOVER_CELL(fks, i, 0)) == 0 &&
					strcmp(t->apply.name, CUTOVER_CELL(fks, i, 1)) == 0)
					child = t;
				if (strcmp(t->apply.schema, CUTOVER_CELL(fks, i, 2)) == 0 &&
					strcmp(t->apply.name, CUTOVER_CELL(fks, i, 3)) == 0)
					parent = t;
			}
			if (child && parent && child->apply.fk_rank <= parent->apply.fk_rank)
			{
				child->apply.fk_rank = parent->apply.fk_rank + 1;
				changed = true;
			}
		}
	}
}

/*
 * Load all tables of the target; forgets rows, layouts and chunks that refer to them.
 */
void
cutover_mapping_load(CutoverEndpoint *ep)
{
	Oid			namespace_id = get_namespace_oid("cutover", false);
	Datum		args[1] = {Int32GetDatum(mapping_target)};
	Oid			types[1] = {INT4OID};

	config_relids[0] = get_relname_relid("_target", namespace_id);
	config_relids[1] = get_relname_relid("_table", namespace_id);
	config_relids[2] = get_relname_relid("_column", namespace_id);

	tables = NIL;
	cutover_rowmap_forget();
	MemoryContextReset(mapping_context);
	stale = false;				/* an invalidation from here on counts */

	SPI_connect();
	if (SPI_execute_with_args("SELECT table_id, old_table, new_schema, new_name, default_columns, key_attnums"
							  " FROM cutover._table WHERE target_id = $1 ORDER BY table_id",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the tables");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		CutoverTable *table = mapping_read_table(i);
		MemoryContext old = MemoryContextSwitchTo(mapping_context);

		if (table != NULL)
			tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	if (ep != NULL)				/* else loaded again once connected */
		mapping_rank_tables(ep);
	cutover_mapping_refresh_phases();
	cutover_copier_wake();		/* a table may have come, or wait for a copy */
}

/*
 * Read the phases, and the chunks of tables being copied, as of the active
 * snapshot.  States newer than the window's snapshot are as good: a pending
 * chunk's snapshot is later still, a finished one has its own.
 */
void
cutover_mapping_refresh_phases(void)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[1] = {Int32GetDatum(mapping_target)};
	Oid			types[1] = {INT4OID};
	ListCell   *lc;

	foreach(lc, tables)
		((CutoverTable *) lfirst(lc))->phase = CUTOVER_PHASE_SYNCED;

	SPI_connect();
	if (cutover_local_run_kept(&plan, "SELECT table_id, phase, copy, copy_generation"
							   " FROM cutover._table WHERE target_id = $1 AND phase <> 'synced'",
							   1, types, args, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the phases");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		CutoverTable *table = cutover_mapping_table(pg_strtoint32(mapping_spi_text(i, 1)));

		if (table == NULL)
			continue;
		table->phase = mapping_phase(mapping_spi_text(i, 2));
		table->copy = mapping_spi_text(i, 3)[0] == 't';
		table->copy_generation = pg_strtoint32(mapping_spi_text(i, 4));
	}

	MemoryContextReset(chunk_context);
	foreach(lc, tables)
	{
		CutoverTable *table = lfirst(lc);
		bool		in_copy = table->copy && (table->phase == CUTOVER_PHASE_COPYING ||
											  table->phase == CUTOVER_PHASE_CATCHING_UP);

		table->chunks = in_copy ? cutover_chunk_map_load(table->table_id, table->relid, chunk_context) : NULL;
		table->apply.may_conflict = table->phase != CUTOVER_PHASE_SYNCED && table->phase != CUTOVER_PHASE_INDEXING;
	}
	SPI_finish();
}

CutoverTable *
cutover_mapping_table(int32 table_id)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		if (((CutoverTable *) lfirst(lc))->table_id == table_id)
			return lfirst(lc);
	}
	return NULL;
}

List *
cutover_mapping_tables(void)
{
	return tables;
}
