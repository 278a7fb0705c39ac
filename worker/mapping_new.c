/*
 * mapping_new.c - how the rows of one table are written to new.
 *
 * Runs in the replicator.  Joins our configuration, old's descriptor and what
 * new has into a CutoverApplyTable and compiled expressions.  A mismatch does
 * not raise: it becomes the table's stop_reason, which says what to do.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "executor/spi.h"
#include "nodes/nodeFuncs.h"
#include "nodes/nodes.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "mapping.h"

/* One row of cutover._column, or of the default mapping. */
typedef struct MappedColumn
{
	char	   *new_column;
	AttrNumber	attnum;			/* 0: expr */
	Node	   *expr;
} MappedColumn;

/*
 * Live column of desc by name, 0 if there is none.
 */
static AttrNumber
mapping_attnum_by_name(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att->attnum;
	}
	return 0;
}

/*
 * Read the explicit mapping of a table; also its filter.
 */
static List *
mapping_read_columns(CutoverTable *table, Node **filter)
{
	Datum		args[1] = {Int32GetDatum(table->table_id)};
	Oid			types[1] = {INT4OID};
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;
	char	   *text;

	SPI_connect();
	if (SPI_execute_with_args("SELECT new_column, attnum, expr FROM cutover._column WHERE table_id = $1",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the columns");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		MappedColumn *col = palloc0(sizeof(MappedColumn));

		col->new_column = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		text = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2);
		if (text != NULL)
			col->attnum = pg_strtoint16(text);
		text = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3);
		if (text != NULL && col->attnum == 0)
			col->expr = stringToNode(text);
		result = lappend(result, col);
		MemoryContextSwitchTo(spi);
	}
	if (SPI_execute_with_args("SELECT row_filter_expr FROM cutover._table WHERE table_id = $1",
							  1, types, args, NULL, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read the row filter");
	text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (text != NULL)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		*filter = stringToNode(text);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return result;
}

/*
 * Attribute numbers used by an expression.
 */
static Bitmapset *
mapping_used_attnums(Node *expr)
{
	Bitmapset  *raw = NULL;
	Bitmapset  *result = NULL;
	int			i = -1;

	pull_varattnos(expr, 1, &raw);
	while ((i = bms_next_member(raw, i)) >= 0)
	{
		int			attnum = i + FirstLowInvalidHeapAttributeNumber;

		/* a whole-row reference uses everything; say so by attribute 0 */
		result = bms_add_member(result, Max(attnum, 0));
	}
	return result;
}

/*
 * Compile an expression over a row of the table.
 */
static ExprState *
mapping_compile(CutoverTable *table, Node *expr)
{
	return ExecInitExpr((Expr *) expression_planner((Expr *) expr), NULL);
}

/*
 * The columns of a table as its server describes them; for cutover_mapping_column.
 */
CutoverRows *
cutover_mapping_describe(CutoverEndpoint *ep, const char *schema, const char *name)
{
	const char *args[2] = {schema, name};

	return cutover_endpoint_exec_params(ep,
										"SELECT a.attname,"
										" pg_catalog.format_type(a.atttypid, a.atttypmod),"
										" a.attidentity = 'a', a.attgenerated <> '', a.attnotnull,"
	/* types of which equal values have equal bytes */
										" a.atttypid NOT IN (16, 17, 20, 21, 23, 26, 1082, 1083, 1114, 1184, 2950)"
										" AND (a.atttypid NOT IN (25, 1043) OR EXISTS (SELECT FROM pg_catalog.pg_collation l"
										"  WHERE l.oid = a.attcollation AND NOT l.collisdeterministic)),"
	/* equality of a type that came later than PostgreSQL itself */
										" (SELECT 'OPERATOR(' || pg_catalog.quote_ident(s.nspname) || '.' || o.oprname || ')'"
										"  FROM pg_catalog.pg_opclass oc JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree'"
										"  JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3"
										"   AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype"
										"  JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr"
										"  JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace"
										"  WHERE oc.opcdefault AND oc.opcintype = base.typ AND base.typ >= 16384),"
	/* a cast function from text may do other than the type's input; from bpchar there are none (but for name) */
										" CASE WHEN base.typ <> 19 AND EXISTS (SELECT FROM pg_catalog.pg_cast"
										"  WHERE castsource = 25 AND casttarget = base.typ AND castmethod = 'f')"
										"  THEN 'bpchar::' ELSE '' END || pg_catalog.format_type(base.typ, -1),"
										" c.relkind = 'r'"
										" FROM pg_catalog.pg_attribute a"
	/* domains may stand on domains */
										" CROSS JOIN LATERAL (WITH RECURSIVE t (typ, base) AS ("
										"   SELECT a.atttypid, (SELECT y.typbasetype FROM pg_catalog.pg_type y WHERE y.oid = a.atttypid)"
										"   UNION ALL SELECT t.base, (SELECT y.typbasetype FROM pg_catalog.pg_type y WHERE y.oid = t.base)"
										"    FROM t WHERE t.base <> 0)"
										"  SELECT t.typ FROM t WHERE t.base = 0) base"
										" JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
										" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
										" WHERE n.nspname = $1 AND c.relname = $2"
										" AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
										2, args);
}

/*
 * Fill a column from a row of that.
 */
void
cutover_mapping_column(CutoverColumn *col, CutoverRows *rows, int row)
{
	col->name = CUTOVER_CELL(rows, row, 0);
	col->type = CUTOVER_CELL(rows, row, 1);
	col->identity_always = CUTOVER_CELL(rows, row, 2)[0] == 't';
	col->notnull = CUTOVER_CELL(rows, row, 4)[0] == 't';
	col->inexact = CUTOVER_CELL(rows, row, 5)[0] == 't';
	col->equals = CUTOVER_CELL(rows, row, 6);
	col->cast_type = CUTOVER_CELL(rows, row, 7);
}

/*
 * Fill apply.cols from new's catalogs.  False if new lacks the table.
 */
static bool
mapping_fetch_new(CutoverTable *table, CutoverEndpoint *ep, List *mapped)
{
	CutoverRows *rows = cutover_mapping_describe(ep, table->apply.schema, table->apply.name);
	int			n = 0;

	table->apply.cols = palloc0(Max(rows->nrows, 1) * sizeof(CutoverColumn));
	table->col_attnum = palloc0(Max(rows->nrows, 1) * sizeof(AttrNumber));
	table->col_expr = palloc0(Max(rows->nrows, 1) * sizeof(ExprState *));
	table->col_expr_out = palloc0(Max(rows->nrows, 1) * sizeof(FmgrInfo));
	for (int i = 0; i < rows->nrows; i++)
	{
		CutoverColumn *col = &table->apply.cols[n];
		ListCell   *lc;
		bool		wanted = table->default_columns;

		if (CUTOVER_CELL(rows, i, 3)[0] == 't')
			continue;			/* generated there */
		foreach(lc, mapped)
			wanted |= strcmp(((MappedColumn *) lfirst(lc))->new_column, CUTOVER_CELL(rows, i, 0)) == 0;
		if (!wanted)
			continue;
		cutover_mapping_column(col, rows, i);
		table->apply.truncate_only = CUTOVER_CELL(rows, i, 8)[0] == 't';
		n++;
	}
	table->apply.ncols = n;
	return rows->nrows > 0;
}

/*
 * Connect the columns of new with old's; returns for each column whether it
 * is made of key columns only.
 */
static bool *
mapping_join_columns(CutoverTable *table, List *mapped)
{
	bool	   *from_key = palloc0(Max(table->apply.ncols, 1) * sizeof(bool));

	for (int i = 0; i < table->apply.ncols; i++)
	{
		CutoverColumn *col = &table->apply.cols[i];
		Bitmapset  *used = NULL;
		Bitmapset  *key = NULL;
		ListCell   *lc;

		for (int k = 0; k < table->nkeys; k++)
			key = bms_add_member(key, table->key_attnums[k]);
		if (table->default_columns)
			table->col_attnum[i] = mapping_attnum_by_name(table->desc, col->name);
		foreach(lc, mapped)
		{
			MappedColumn *m = lfirst(lc);

			if (table->default_columns || strcmp(m->new_column, col->name) != 0)
				continue;
			table->col_attnum[i] = m->attnum;
			if (m->expr != NULL)
			{
				Oid			out;
				bool		varlena;

				table->col_expr[i] = mapping_compile(table, m->expr);
				getTypeOutputInfo(exprType(m->expr), &out, &varlena);
				fmgr_info(out, &table->col_expr_out[i]);
				table->has_expressions = true;
				used = mapping_used_attnums(m->expr);
			}
		}
		if (table->col_attnum[i] > 0)
			used = bms_make_singleton(table->col_attnum[i]);
		from_key[i] = !bms_is_empty(used) && bms_is_subset(used, key);
	}
	return from_key;
}

/*
 * Choose the columns of new that identify a row: for each key column of old
 * its plain copy, else everything computed from key columns only.
 */
static void
mapping_choose_key(CutoverTable *table, const bool *from_key)
{
	CutoverApplyTable *apply = &table->apply;
	bool	   *chosen = palloc0(Max(apply->ncols, 1) * sizeof(bool));

	apply->keycols = palloc0(Max(apply->ncols, 1) * sizeof(int));
	apply->nkeys = 0;
	table->plain_key = true;
	for (int k = 0; k < table->nkeys; k++)
	{
		int			found = -1;

		for (int i = 0; i < apply->ncols && found < 0; i++)
		{
			if (table->col_attnum[i] == table->key_attnums[k])
				found = i;
		}
		if (found >= 0 && !chosen[found])
		{
			apply->keycols[apply->nkeys++] = found;
			chosen[found] = true;
			continue;
		}
		table->plain_key = false;
		for (int i = 0; i < apply->ncols; i++)
		{
			if (from_key[i] && !chosen[i] && table->col_expr[i] != NULL)
			{
				apply->keycols[apply->nkeys++] = i;
				chosen[i] = true;
			}
		}
	}
	for (int i = 0; i < apply->ncols; i++)
		apply->cols[i].is_key = chosen[i];
}

/*
 * Look for a unique index on exactly the key columns.
 */
void
cutover_mapping_find_arbiter(CutoverApplyTable *apply, CutoverEndpoint *ep)
{
	Datum	   *names = palloc(Max(apply->nkeys, 1) * sizeof(Datum));
	const char *args[3] = {apply->schema, apply->name, NULL};
	CutoverRows *rows;

	if (apply->nkeys == 0)
		return;
	for (int k = 0; k < apply->nkeys; k++)
		names[k] = CStringGetTextDatum(apply->cols[apply->keycols[k]].name);
	args[2] = OidOutputFunctionCall(F_ARRAY_OUT,
									PointerGetDatum(construct_array(names, apply->nkeys, TEXTOID, -1, false, TYPALIGN_INT)));
	rows = cutover_endpoint_exec_params(ep,
										"SELECT 1 FROM pg_catalog.pg_index i"
										" JOIN pg_catalog.pg_class c ON c.oid = i.indrelid"
										" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
										" WHERE n.nspname = $1 AND c.relname = $2"
										" AND i.indisunique AND i.indimmediate AND i.indisvalid"
										" AND i.indpred IS NULL AND i.indexprs IS NULL"
										" AND (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\")"
										"      FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid"
										"      AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))"
										" = (SELECT pg_catalog.array_agg(k ORDER BY k COLLATE \"C\")"
										"    FROM pg_catalog.unnest($3::text[]) k)",
										3, args);
	apply->has_arbiter = rows->nrows > 0;
}

/*
 * The keys with an open error, as jsonb text.
 */
static void
mapping_load_error_keys(CutoverTable *table, MemoryContext context)
{
	Datum		args[1] = {Int32GetDatum(table->table_id)};
	Oid			types[1] = {INT4OID};

	SPI_connect();
	if (SPI_execute_with_args("SELECT pg_catalog.md5(key::text) FROM cutover._apply_error"
							  " WHERE table_id = $1 AND direction = 'forward' AND key IS NOT NULL",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the apply errors");
	if (SPI_processed > 0)
	{
		HASHCTL		ctl = {.keysize = 33,.entrysize = 33,.hcxt = context};

		table->error_keys = hash_create("cutover error keys", 64, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	for (uint64 i = 0; i < SPI_processed; i++)
		hash_search(table->error_keys, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
					HASH_ENTER, NULL);
	SPI_finish();
}

/*
 * Prepare a table for writing its rows.
 */
bool
cutover_mapping_prepare(CutoverTable *table, CutoverEndpoint *ep)
{
	MemoryContext old;
	List	   *mapped;
	Node	   *filter = NULL;

	if (table->prepared || table->stop_reason != NULL)
		return table->stop_reason == NULL;

	old = MemoryContextSwitchTo(cutover_mapping_context());
	mapped = mapping_read_columns(table, &filter);
	if (!mapping_fetch_new(table, ep, mapped))
		table->stop_reason = psprintf("table %s does not exist on new: create it there",
									  quote_qualified_identifier(table->apply.schema, table->apply.name));
	else
	{
		bool	   *from_key = mapping_join_columns(table, mapped);

		mapping_choose_key(table, from_key);
		if (table->nkeys > 0 && table->apply.nkeys == 0)
			table->stop_reason = "no column of the key has a counterpart on new: add it there";
		else
			cutover_mapping_find_arbiter(&table->apply, ep);
	}
	if (filter != NULL)
	{
		table->filter = mapping_compile(table, filter);
		table->has_expressions = true;
	}
	table->estate = CreateExecutorState();
	table->slot = MakeSingleTupleTableSlot(table->desc, &TTSOpsVirtual);
	mapping_load_error_keys(table, cutover_mapping_context());
	table->prepared = true;
	MemoryContextSwitchTo(old);
	return table->stop_reason == NULL;
}
