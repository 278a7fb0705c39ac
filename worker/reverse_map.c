/*
 * reverse_map.c - how rows of new become rows of old.
 *
 * Runs in the replicator.  What the installation of the way back wrote down
 * (cutover._reverse_table, _reverse_column) becomes, for each table, a query
 * that new answers with rows in old's form, and the description of old's table
 * by which worker/apply.c writes them.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "mapping.h"
#include "reverse_map.h"
#include "reverse_state.h"

/* aliases that no expression over a row uses by accident */
#define ALIAS_KEY "\" key\""
#define ALIAS_ROW "\" row\""

/* What is known from our configuration before a table is first needed. */
typedef struct MapEntry
{
	CutoverReverseTable table;	/* first: they are cast */
	bool		prepared;
	bool		default_columns;	/* columns that come on both sides go by their names */
	Oid			relid;
	char	   *new_schema;
	char	   *new_name;
	bool		filter_mapped;	/* new has something of all its columns */
	int			nkeys;
	int			ncolumns;
	char	  **columns;		/* of old ... */
	char	  **expressions;	/* ... and what makes them */
	bool	   *is_key;
	char	  **keys;			/* columns of old's key, in its order */
} MapEntry;

static MemoryContext map_context = NULL;
static List *map_tables = NIL;

/*
 * A text[] of the SPI result as an array of strings in map_context.
 */
static char **
map_texts(uint64 row, int col, int *n)
{
	bool		isnull;
	Datum		array = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col, &isnull);
	Datum	   *elems;
	MemoryContext former;
	char	  **texts;

	*n = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &elems, NULL, n);
	former = MemoryContextSwitchTo(map_context);
	texts = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		texts[i] = TextDatumGetCString(elems[i]);
	MemoryContextSwitchTo(former);
	return texts;
}

/*
 * Column col of a row of the SPI result, in map_context.
 */
static char *
map_text(uint64 row, int col)
{
	char	   *text = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col);

	return text ? MemoryContextStrdup(map_context, text) : NULL;
}

/*
 * Read our configuration.
 */
void
cutover_reverse_map_load(int32 target_id)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(target_id)};

	if (map_context == NULL)
		map_context = AllocSetContextCreate(TopMemoryContext, "cutover reverse map", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(map_context);
	map_tables = NIL;
	SPI_connect();
	if (SPI_execute_with_args("SELECT t.table_id, t.old_table, t.new_schema, t.new_name, r.whole, r.columns,"
							  " pg_catalog.pg_get_expr(t.row_filter_expr, t.old_table),"
							  " NOT EXISTS (SELECT FROM pg_catalog.unnest(cutover._expression_attnums(t.row_filter_expr)) f"
							  "  WHERE f <> ALL (SELECT c.attnum FROM cutover._reverse_column c WHERE c.table_id = t.table_id)),"
							  " (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FROM cutover._reverse_column c"
							  "  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.old_table AND a.attnum = c.attnum AND NOT a.attisdropped"
							  "  WHERE c.table_id = t.table_id),"
							  " (SELECT pg_catalog.array_agg(c.expression ORDER BY a.attnum) FROM cutover._reverse_column c"
							  "  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.old_table AND a.attnum = c.attnum AND NOT a.attisdropped"
							  "  WHERE c.table_id = t.table_id),"
							  " (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.i) FROM pg_catalog.unnest(t.key_attnums) WITH ORDINALITY k (attnum, i)"
							  "  JOIN pg_catalog.pg_attribute a ON a.attrelid = t.old_table AND a.attnum = k.attnum),"
							  " EXISTS (SELECT FROM cutover._apply_error e WHERE e.table_id = t.table_id AND e.direction = 'reverse'), t.default_columns"
							  " FROM cutover._table t JOIN cutover._reverse_table r USING (table_id)"
							  " WHERE t.target_id = $1 AND t.reverse_closed IS NULL",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the way back");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MapEntry   *entry = MemoryContextAllocZero(map_context, sizeof(MapEntry));
		MemoryContext former;
		int			n;

		entry->table.table_id = pg_strtoint32(map_text(i, 1));
		entry->table.open = true;
		entry->table.slice = CUTOVER_REVERSE_FIRST_SLICE;
		entry->relid = atooid(map_text(i, 2));
		entry->new_schema = map_text(i, 3);
		entry->new_name = map_text(i, 4);
		entry->table.whole = map_text(i, 5)[0] == 't';
		entry->table.captured = map_texts(i, 6, &entry->table.ncaptured);
		entry->table.filter = map_text(i, 7);
		entry->filter_mapped = map_text(i, 8)[0] == 't';
		entry->columns = map_texts(i, 9, &entry->ncolumns);
		entry->expressions = map_texts(i, 10, &n);
		entry->keys = map_texts(i, 11, &entry->nkeys);
		entry->table.has_errors = map_text(i, 12)[0] == 't';
		entry->default_columns = map_text(i, 13)[0] == 't';
		former = MemoryContextSwitchTo(map_context);
		map_tables = lappend(map_tables, entry);
		MemoryContextSwitchTo(former);
	}
	SPI_finish();
}

/*
 * Row of a description by the column's name; -1 if there is none.
 */
static int
map_find(CutoverRows *rows, const char *name)
{
	for (int row = 0; row < rows->nrows; row++)
		if (strcmp(CUTOVER_CELL(rows, row, 0), name) == 0)
			return row;
	return -1;
}

/*
 * Columns that both sides have got since the way back was installed.
 */
static void
map_add_columns(MapEntry *entry, CutoverRows *old, CutoverRows *new)
{
	if (!entry->default_columns || entry->table.whole)
		return;
	for (int row = 0; row < old->nrows; row++)
	{
		char	   *name = CUTOVER_CELL(old, row, 0);
		bool		known = CUTOVER_CELL(old, row, 3)[0] == 't' || map_find(new, name) < 0;

		for (int i = 0; i < entry->ncolumns && !known; i++)
			known = strcmp(entry->columns[i], name) == 0;
		if (known)
			continue;
		entry->columns = repalloc(entry->columns, sizeof(char *) * (entry->ncolumns + 1));
		entry->expressions = repalloc(entry->expressions, sizeof(char *) * (entry->ncolumns + 1));
		entry->columns[entry->ncolumns] = name;
		entry->expressions[entry->ncolumns++] = pstrdup(quote_identifier(name));
	}
}

/*
 * What keeps a table of new from being followed as it is now; NULL = nothing.
 */
static const char *
map_new_problem(MapEntry *entry, CutoverRows *new)
{
	int			columns = 0;

	if (new->nrows == 0)
		return "it is gone on new";
	for (int i = 0; i < entry->table.ncaptured; i++)
		if (map_find(new, entry->table.captured[i]) < 0)
			return psprintf("column %s is gone on new", quote_identifier(entry->table.captured[i]));
	for (int row = 0; row < new->nrows; row++)
		columns += CUTOVER_CELL(new, row, 3)[0] != 't';
	if (entry->table.whole && columns > entry->table.ncaptured)
		return "it got another column on new, which is not captured of a table that is followed by whole rows";
	return NULL;
}

/*
 * The table of old, as apply.c wants it.  False if it is gone.
 */
static bool
map_describe_old(MapEntry *entry, CutoverEndpoint *old, CutoverRows *new)
{
	CutoverApplyTable *apply = &entry->table.apply;
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(entry->relid));
	Form_pg_class class;
	CutoverRows *rows;

	if (!HeapTupleIsValid(tuple))
		return false;
	class = (Form_pg_class) GETSTRUCT(tuple);
	apply->table_id = entry->table.table_id;
	apply->old_relid = entry->relid;
	apply->schema = get_namespace_name(class->relnamespace);
	apply->name = pstrdup(NameStr(class->relname));
	apply->truncate_only = class->relkind == RELKIND_RELATION;
	/* with row security even for the owner only we get at all rows */
	apply->run_as = class->relforcerowsecurity ? InvalidOid : class->relowner;
	apply->may_conflict = true;
	ReleaseSysCache(tuple);

	rows = cutover_mapping_describe(old, apply->schema, apply->name);
	map_add_columns(entry, rows, new);
	apply->cols = palloc0(Max(entry->ncolumns, 1) * sizeof(CutoverColumn));
	apply->keycols = palloc0(Max(entry->nkeys, 1) * sizeof(int));
	for (int i = 0; i < entry->ncolumns; i++)
	{
		int			row = map_find(rows, entry->columns[i]);

		if (row < 0)
			return false;
		cutover_mapping_column(&apply->cols[i], rows, row);
		for (int k = 0; k < entry->nkeys; k++)
			if (strcmp(entry->keys[k], entry->columns[i]) == 0)
			{
				apply->keycols[k] = i;
				apply->cols[i].is_key = true;
				apply->nkeys++;
			}
	}
	apply->ncols = entry->ncolumns;
	if (apply->nkeys != entry->nkeys)
		return false;
	cutover_mapping_find_arbiter(apply, old);
	return true;
}

/*
 * The expressions that make old's columns, as a select list.
 */
static void
map_add_expressions(StringInfo buf, MapEntry *entry)
{
	for (int i = 0; i < entry->ncolumns; i++)
		appendStringInfo(buf, ", (%s)", entry->expressions[i]);
}

/*
 * Captured column i as new describes it.
 */
static void
map_new_column(MapEntry *entry, CutoverRows *rows, int i, CutoverColumn *col)
{
	cutover_mapping_column(col, rows, map_find(rows, entry->table.captured[i]));
}

/*
 * Query by key: each key with its row, if there is one.
 */
static char *
map_fetch_by_key(MapEntry *entry, CutoverRows *rows)
{
	StringInfoData buf;
	StringInfoData match;

	initStringInfo(&buf);
	initStringInfo(&match);
	appendStringInfoString(&buf, "SELECT " ALIAS_KEY ".\" n\", " ALIAS_ROW ".* FROM (SELECT ");
	for (int i = 0; i < entry->table.ncaptured; i++)
	{
		CutoverColumn col;

		map_new_column(entry, rows, i, &col);
		appendStringInfo(&buf, "unnest($%d::text[]) AS \" k%d\", ", i + 1, i);
		appendStringInfo(&match, "%s" ALIAS_ROW ".%s %s " ALIAS_KEY ".\" k%d\"::%s", i > 0 ? " AND " : "",
						 quote_identifier(col.name), col.equals ? col.equals : "=", i, col.cast_type);
	}
	appendStringInfoString(&buf, "generate_subscripts($1::text[], 1) AS \" n\") AS " ALIAS_KEY " LEFT JOIN LATERAL (SELECT true");
	map_add_expressions(&buf, entry);
	appendStringInfo(&buf, " FROM %s%s AS " ALIAS_ROW " WHERE %s) AS " ALIAS_ROW " ON true",
					 CUTOVER_CELL(rows, 0, 8)[0] == 't' ? "ONLY " : "",
					 quote_qualified_identifier(entry->new_schema, entry->new_name), match.data);
	return buf.data;
}

/*
 * Query by whole rows: each as a row of old.
 */
static char *
map_fetch_whole(MapEntry *entry, CutoverRows *rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT " ALIAS_KEY ".\" n\", true");
	map_add_expressions(&buf, entry);
	appendStringInfoString(&buf, " FROM (SELECT unnest($1::text[])::jsonb AS \" i\", generate_subscripts($1::text[], 1) AS \" n\") AS "
						   ALIAS_KEY " CROSS JOIN LATERAL (SELECT ");
	for (int i = 0; i < entry->table.ncaptured; i++)
	{
		CutoverColumn col;

		map_new_column(entry, rows, i, &col);
		appendStringInfo(&buf, "%s(" ALIAS_KEY ".\" i\" ->> %s)::%s AS %s", i > 0 ? ", " : "",
						 quote_literal_cstr(col.name), col.cast_type, quote_identifier(col.name));
	}
	appendStringInfoString(&buf, ") AS " ALIAS_ROW);
	return buf.data;
}

/*
 * Queries that tell what the row filter says: of old's row with a key, and of a row that is to come.
 */
static void
map_filter(MapEntry *entry)
{
	CutoverApplyTable *apply = &entry->table.apply;
	StringInfoData buf;

	if (entry->table.filter == NULL)
		return;
	if (apply->nkeys > 0)
	{
		initStringInfo(&buf);
		appendStringInfo(&buf, "SELECT 1 FROM (SELECT * FROM %s%s WHERE NOT coalesce((%s), false)) AS t WHERE ",
						 apply->truncate_only ? "ONLY " : "", quote_qualified_identifier(apply->schema, apply->name), entry->table.filter);
		for (int k = 0; k < apply->nkeys; k++)
		{
			CutoverColumn *col = &apply->cols[apply->keycols[k]];

			appendStringInfo(&buf, "%st.%s %s $%d::%s", k > 0 ? " AND " : "", quote_identifier(col->name),
							 col->equals ? col->equals : "=", k + 1, col->cast_type);
		}
		entry->table.outside = buf.data;
	}
	if (!entry->filter_mapped)
		return;
	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT 1 FROM (SELECT ");
	for (int i = 0; i < apply->ncols; i++)
		appendStringInfo(&buf, "%s$%d::%s AS %s", i > 0 ? ", " : "", i + 1, apply->cols[i].cast_type,
						 quote_identifier(apply->cols[i].name));
	appendStringInfo(&buf, ") AS t WHERE (%s)", entry->table.filter);
	entry->table.inside = buf.data;
}

/*
 * A table, ready for use.
 */
CutoverReverseTable *
cutover_reverse_map_table(int32 table_id, CutoverEndpoint *new, CutoverEndpoint *old)
{
	MemoryContext former;
	MapEntry   *entry = NULL;
	const char *problem;
	CutoverRows *rows;
	ListCell   *lc;

	foreach(lc, map_tables)
		if (((MapEntry *) lfirst(lc))->table.table_id == table_id)
			entry = lfirst(lc);
	if (entry == NULL || !entry->table.open)
		return NULL;
	if (entry->prepared)
		return &entry->table;

	former = MemoryContextSwitchTo(map_context);
	rows = cutover_mapping_describe(new, entry->new_schema, entry->new_name);
	problem = map_new_problem(entry, rows);
	if (problem == NULL && !map_describe_old(entry, old, rows))
		problem = "old has lost columns that it was followed by";
	if (problem != NULL)
	{
		entry->table.open = false;
		cutover_reverse_state_close(table_id, problem);
	}
	else
	{
		entry->table.fetch = entry->table.whole ? map_fetch_whole(entry, rows) : map_fetch_by_key(entry, rows);
		map_filter(entry);
		entry->prepared = true;
	}
	MemoryContextSwitchTo(former);
	return entry->table.open ? &entry->table : NULL;
}

List *
cutover_reverse_map_tables(void)
{
	return map_tables;
}
