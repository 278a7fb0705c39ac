/*
 * chunk_plan.c - where to cut a table into chunks, and the SQL condition of each.
 *
 * With a key: ranges of the key, from a sample of blocks.  Without: ranges of
 * blocks of each relation that holds rows.  The order of keys is that of the
 * default btree operator class and the column's collation throughout: in the
 * sample, in the condition and in the replicator's look-up.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "chunk_plan.h"
#include "compat.h"
#include "guc.h"
#include "local.h"

#define SAMPLE_BLOCKS 3000		/* read for a plan at most; the replicator waits for it */
#define SMALL_CHUNK (8 * 1024 * 1024)	/* not cut finer than that to employ all copiers */

typedef struct PlanTable
{
	int32		table_id;
	int32		generation;
	Oid			relid;
	char		relkind;
	int			nkeys;
	int16	   *keys;
	bool		nullable;		/* a key column may be NULL */
	int64		bytes;			/* all of it */
	int64		heap_bytes;
	double		rows;
} PlanTable;

/* ---- conditions ---- */

/*
 * The operator of a btree strategy for a type, as SQL; NULL if there is none.
 */
static char *
plan_operator(Oid type, int strategy, bool *builtin)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY | TYPECACHE_CMP_PROC);
	Oid			oper;
	HeapTuple	tup;
	char	   *result;

	if (!OidIsValid(entry->btree_opf) || !OidIsValid(entry->cmp_proc))
		return NULL;
	oper = get_opfamily_member(entry->btree_opf, entry->btree_opintype, entry->btree_opintype, strategy);
	if (!OidIsValid(oper))
		return NULL;
	tup = SearchSysCache1(OPEROID, ObjectIdGetDatum(oper));
	if (!HeapTupleIsValid(tup))
		return NULL;
	*builtin = ((Form_pg_operator) GETSTRUCT(tup))->oprnamespace == PG_CATALOG_NAMESPACE;
	result = psprintf("OPERATOR(%s.%s)",
					  quote_identifier(get_namespace_name(((Form_pg_operator) GETSTRUCT(tup))->oprnamespace)),
					  NameStr(((Form_pg_operator) GETSTRUCT(tup))->oprname));
	ReleaseSysCache(tup);
	return result;
}

/*
 * Can keys be compared?
 */
static bool
plan_keys_ordered(PlanTable *table)
{
	bool		builtin;

	for (int i = 0; i < table->nkeys; i++)
	{
		Oid			type = get_atttype(table->relid, table->keys[i]);

		for (int strategy = BTLessStrategyNumber; strategy <= BTGreaterStrategyNumber; strategy++)
			if (plan_operator(type, strategy, &builtin) == NULL)
				return false;
	}
	return true;
}

/*
 * Append "key >= bound" or "key < bound", for a key of several columns in a
 * form that an index on it serves.
 */
static void
plan_append_bound(StringInfo sql, Oid relid, int nkeys, int16 *keys, Datum *bound, bool lower)
{
	char	  **column = palloc(sizeof(char *) * nkeys);
	char	  **value = palloc(sizeof(char *) * nkeys);
	Oid		   *type = palloc(sizeof(Oid) * nkeys);
	bool		all_builtin = true;
	bool		builtin;
	int			strict = lower ? BTGreaterStrategyNumber : BTLessStrategyNumber;
	int			last = lower ? BTGreaterEqualStrategyNumber : BTLessStrategyNumber;
	int			wide = lower ? BTGreaterEqualStrategyNumber : BTLessEqualStrategyNumber;

	for (int i = 0; i < nkeys; i++)
	{
		type[i] = get_atttype(relid, keys[i]);
		column[i] = pstrdup(quote_identifier(get_attname(relid, keys[i], false)));
		value[i] = psprintf("%s::%s", quote_literal_cstr(TextDatumGetCString(bound[i])),
							format_type_extended(type[i], -1, FORMAT_TYPE_FORCE_QUALIFY));
		(void) plan_operator(type[i], last, &builtin);
		all_builtin &= builtin;
	}
	if (nkeys > 1 && all_builtin)
	{
		appendStringInfoString(sql, "ROW(");
		for (int i = 0; i < nkeys; i++)
			appendStringInfo(sql, "%s%s", i ? ", " : "", column[i]);
		appendStringInfo(sql, ") %s ROW(", lower ? ">=" : "<");
		for (int i = 0; i < nkeys; i++)
			appendStringInfo(sql, "%s%s", i ? ", " : "", value[i]);
		appendStringInfoChar(sql, ')');
		return;
	}
	if (nkeys > 1)				/* what an index can use */
		appendStringInfo(sql, "%s %s %s AND ", column[0], plan_operator(type[0], wide, &builtin), value[0]);
	for (int i = 0; i < nkeys; i++)
	{
		if (i < nkeys - 1)
			appendStringInfo(sql, "(%s %s %s OR (%s %s %s AND ",
							 column[i], plan_operator(type[i], strict, &builtin), value[i],
							 column[i], plan_operator(type[i], BTEqualStrategyNumber, &builtin), value[i]);
		else
			appendStringInfo(sql, "%s %s %s", column[i], plan_operator(type[i], last, &builtin), value[i]);
	}
	for (int i = 0; i < nkeys - 1; i++)
		appendStringInfoString(sql, "))");
}

/*
 * Read a stored bound: text form of text[].
 */
static int
plan_read_bound(const char *text, Datum **bound)
{
	bool	   *nulls;
	int			n;
	Datum		array = OidInputFunctionCall(F_ARRAY_IN, (char *) text, TEXTOID, -1);

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, bound, &nulls, &n);
	for (int i = 0; i < n; i++)
		if (nulls[i])
			elog(ERROR, "malformed chunk bound");
	return n;
}

/*
 * The columns of a table's key.
 */
static int
plan_read_keys(int32 table_id, int16 **keys)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(table_id)};
	uint64		n = cutover_local_run("SELECT pg_catalog.unnest(key_attnums) FROM cutover._table WHERE table_id = $1",
									  1, types, args, NULL);

	*keys = palloc(sizeof(int16) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
		(*keys)[i] = (int16) cutover_local_int(i, 1);
	return (int) n;
}

/*
 * The WHERE condition of a chunk; blocks if the table has no key.
 */
char *
cutover_chunk_plan_condition(int32 table_id, Oid relid, const char *lower, const char *upper)
{
	StringInfoData sql;
	int16	   *keys;
	int			nkeys = plan_read_keys(table_id, &keys);
	const char *bounds[] = {lower, upper};

	initStringInfo(&sql);
	for (int i = 0; i < 2; i++)
	{
		Datum	   *bound;
		int			n;

		if (bounds[i] == NULL)
			continue;
		n = plan_read_bound(bounds[i], &bound);
		if (n != Max(nkeys, 1))
			elog(ERROR, "malformed chunk bound");
		if (sql.len > 0)
			appendStringInfoString(&sql, " AND ");
		if (nkeys > 0)
			plan_append_bound(&sql, relid, nkeys, keys, bound, i == 0);
		else
			appendStringInfo(&sql, "ctid %s '(%u,0)'::pg_catalog.tid", i == 0 ? ">=" : "<",
							 (BlockNumber) strtoul(TextDatumGetCString(bound[0]), NULL, 10));
	}
	return sql.len > 0 ? sql.data : NULL;
}

/* ---- planning ---- */

/*
 * Size of a table and its partitions, and what is known of its rows.
 */
static void
plan_measure(PlanTable *table)
{
	Oid			types[] = {OIDOID};
	Datum		args[] = {ObjectIdGetDatum(table->relid)};

	cutover_local_run("SELECT sum(pg_catalog.pg_table_size(c.oid))::int8, sum(pg_catalog.pg_relation_size(c.oid))::int8,"
					  " sum(CASE WHEN c.reltuples < 0 THEN NULL WHEN c.relpages = 0 THEN c.reltuples"
					  " ELSE c.reltuples / c.relpages * (pg_catalog.pg_relation_size(c.oid)"
					  " / pg_catalog.current_setting('block_size')::int8) END)::int8,"
					  " bool_or(c.reltuples < 0)"
					  " FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.oid IN"
					  " (SELECT $1 UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::pg_catalog.regclass))",
					  1, types, args, NULL);
	table->bytes = cutover_local_int(0, 1);
	table->heap_bytes = cutover_local_int(0, 2);
	table->rows = cutover_local_int(0, 4) ? -1 : (double) cutover_local_int(0, 3);
	table->relkind = get_rel_relkind(table->relid);
	table->nullable = false;
	for (int i = 0; i < table->nkeys; i++)
	{
		HeapTuple	tup = SearchSysCache2(ATTNUM, ObjectIdGetDatum(table->relid), Int16GetDatum(table->keys[i]));

		if (!HeapTupleIsValid(tup))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column %d of table \"%s\" does not exist", table->keys[i], get_rel_name(table->relid))));
		if (!((Form_pg_attribute) GETSTRUCT(tup))->attnotnull)
			table->nullable = true;
		ReleaseSysCache(tup);
	}
}

/*
 * How many chunks?
 */
static int
plan_chunk_count(PlanTable *table)
{
	int64		size = (int64) cutover_guc_copy_chunk_size * 1024 * 1024;
	int64		n = (table->bytes + size - 1) / size;
	int64		spread = Min(table->bytes / SMALL_CHUNK, cutover_guc_copy_jobs * 2);

	return (int) Min(Max(Max(n, spread), 1), INT_MAX / 2);
}

/*
 * "FROM x", the rows that belong to the table itself.
 */
static char *
plan_from(PlanTable *table)
{
	return psprintf("%s%s", table->relkind == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
					quote_qualified_identifier(get_namespace_name(get_rel_namespace(table->relid)),
											   get_rel_name(table->relid)));
}

/*
 * Insert the chunks between bounds found in a sample of the keys.
 */
static int
plan_by_key(PlanTable *table)
{
	StringInfoData sql;
	StringInfoData names;
	StringInfoData texts;
	Oid			types[] = {INT4OID, INT4OID, INT8OID};
	Datum		args[] = {Int32GetDatum(table->table_id), Int32GetDatum(table->generation), 0};
	int			nchunks = plan_chunk_count(table);
	double		percent = 100.0 * SAMPLE_BLOCKS / Max(table->heap_bytes / BLCKSZ, 1);

	if (nchunks == 1 || table->nullable || !plan_keys_ordered(table))
	{
		cutover_local_run("INSERT INTO cutover._chunk (table_id, generation, chunk_no) VALUES ($1, $2, 0)",
						  2, types, args, NULL);
		return 1;
	}
	initStringInfo(&names);
	initStringInfo(&texts);
	for (int i = 0; i < table->nkeys; i++)
	{
		const char *name = quote_identifier(get_attname(table->relid, table->keys[i], false));

		appendStringInfo(&names, "%s%s", i ? ", " : "", name);
		/* %s of format() is the output function */
		appendStringInfo(&texts, "%spg_catalog.format('%%s', %s)", i ? ", " : "", name);
	}
	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "WITH s AS (SELECT ARRAY[%s] AS k, row_number() OVER (ORDER BY %s) AS rn, count(*) OVER () AS n FROM %s",
					 texts.data, names.data, plan_from(table));
	if (percent < 100)
		appendStringInfo(&sql, " TABLESAMPLE SYSTEM (%.9f) REPEATABLE (20)", percent);
	appendStringInfoString(&sql,
						   "), b AS (SELECT k, row_number() OVER (ORDER BY rn) AS no FROM s"
						   " WHERE rn * $3 / n > (rn - 1) * $3 / n AND rn < n)"
						   " INSERT INTO cutover._chunk (table_id, generation, chunk_no, lower, upper)"
						   " SELECT $1, $2, COALESCE(l.no, 0), l.k, u.k"
						   " FROM b l FULL JOIN (SELECT no - 1 AS no, k FROM b) u ON u.no = l.no"
						   " UNION ALL SELECT $1, $2, 0, NULL, NULL WHERE NOT EXISTS (SELECT FROM b)");
	args[2] = Int64GetDatum(nchunks);
	return (int) cutover_local_run(sql.data, 3, types, args, NULL);
}

/*
 * Insert the chunks of a table without a key: blocks of each relation.
 */
static int
plan_by_block(PlanTable *table)
{
	Oid			types[] = {INT4OID, INT4OID, OIDOID, INT8OID};
	Datum		args[] = {Int32GetDatum(table->table_id), Int32GetDatum(table->generation),
	ObjectIdGetDatum(table->relid), 0};
	int64		blocks = table->heap_bytes / BLCKSZ / plan_chunk_count(table) + 1;

	args[3] = Int64GetDatum(blocks);
	return (int) cutover_local_run(
								   "INSERT INTO cutover._chunk (table_id, generation, chunk_no, relid, lower, upper, filenode)"
								   " SELECT $1, $2, row_number() OVER (ORDER BY c.oid, g) - 1, c.oid, ARRAY[g::text],"
								   " CASE WHEN g + $4 < c.blocks THEN ARRAY[(g + $4)::text] END, pg_catalog.pg_relation_filenode(c.oid)"
								   " FROM (SELECT oid, pg_catalog.pg_relation_size(oid) / pg_catalog.current_setting('block_size')::int8 AS blocks"
								   " FROM pg_catalog.pg_class WHERE relkind = 'r' AND oid IN"
								   " (SELECT $3 UNION SELECT relid FROM pg_catalog.pg_partition_tree($3::pg_catalog.regclass))) c,"
								   " pg_catalog.generate_series(0::int8, greatest(c.blocks - 1, 0), $4) g",
								   4, types, args, NULL);
}

/*
 * Estimates for the progress view; small tables that were never analyzed are counted.
 */
static void
plan_store_estimates(PlanTable *table)
{
	Oid			types[] = {INT4OID, INT8OID, INT8OID};
	Datum		args[] = {Int32GetDatum(table->table_id), 0, Int64GetDatum(table->bytes)};
	char		nulls[] = "   ";

	if (table->rows < 0 && table->heap_bytes < SMALL_CHUNK)
	{
		cutover_local_run(psprintf("SELECT count(*) FROM %s", plan_from(table)), 0, NULL, NULL, NULL);
		table->rows = (double) cutover_local_int(0, 1);
	}
	if (table->rows < 0)
		nulls[1] = 'n';
	else
		args[1] = Int64GetDatum((int64) table->rows);
	cutover_local_run("UPDATE cutover._table SET rows_total = $2, bytes_total = $3 WHERE table_id = $1",
					  3, types, args, nulls);
}

/*
 * Plan a table's copy.
 */
int
cutover_chunk_plan(int32 table_id, int32 generation)
{
	PlanTable	table = {.table_id = table_id,.generation = generation};
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(table_id)};

	if (cutover_local_run("SELECT t.old_table FROM cutover._table t JOIN pg_catalog.pg_class c ON c.oid = t.old_table"
						  " WHERE t.table_id = $1", 1, types, args, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("a table under migration no longer exists"),
				 errhint("Take it out of the migration with cutover_remove_table().")));
	table.relid = (Oid) cutover_local_int(0, 1);
	table.nkeys = plan_read_keys(table_id, &table.keys);
	plan_measure(&table);
	cutover_local_run("DELETE FROM cutover._chunk WHERE table_id = $1", 1, types, args, NULL);
	plan_store_estimates(&table);
	return table.nkeys > 0 ? plan_by_key(&table) : plan_by_block(&table);
}
