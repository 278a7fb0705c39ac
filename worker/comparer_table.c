/*
 * comparer_table.c - what the comparer knows of a table: its columns on both
 * sides, what tells its rows apart, and the SQL that makes a row's digest.
 *
 * Runs in a comparer.  Read anew for each piece of work, so a schema change in
 * between is met with the table as it is then.  Expressions of the mapping
 * stand in the SQL as old's catalogs deparse them, every name qualified.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "nodes/nodeFuncs.h"
#include "nodes/nodes.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "comparer.h"

/* Attributes of a relation with the types that their domains stand on; the same text on both servers. */
#define TABLE_COLUMNS_SQL \
	"SELECT a.attname, a.attnum, b.typ, b.typmod, pg_catalog.format_type(b.typ, -1), pg_catalog.format_type(b.typ, b.typmod)," \
	" COALESCE(CASE WHEN l.oid = 100 THEN" \
	"  (SELECT d.datcollate IN ('C', 'POSIX') AND COALESCE(pg_catalog.to_jsonb(d)->>'datlocprovider', 'c') = 'c'" \
	"   FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())" \
	"  ELSE l.collprovider = 'c' AND l.collcollate IN ('C', 'POSIX') END, false)," \
	TABLE_EQUALS_SQL ", a.attgenerated, c.relkind, a.attcollation" \
	" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace" \
	" JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped" \
	" LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation" \
	" CROSS JOIN LATERAL (" TABLE_BASE_SQL("a.atttypid", "a.atttypmod") ") b" \
	" WHERE n.nspname = $1 AND c.relname = $2 ORDER BY a.attnum"

#define TABLE_BASE_SQL(typ, typmod) \
	"WITH RECURSIVE t (typ, typmod, base) AS (" \
	" SELECT y.oid, " typmod ", y.typbasetype FROM pg_catalog.pg_type y WHERE y.oid = " typ \
	" UNION ALL SELECT y.oid, t.typmod1, y.typbasetype FROM" \
	"  (SELECT t.base, (SELECT z.typtypmod FROM pg_catalog.pg_type z WHERE z.oid = t.typ) AS typmod1 FROM t WHERE t.base <> 0) t" \
	"  JOIN pg_catalog.pg_type y ON y.oid = t.base)" \
	" SELECT typ, typmod FROM t WHERE base = 0"

/* The equality of a type that came later than the server, wherever it lives. */
#define TABLE_EQUALS_SQL \
	" COALESCE((SELECT 'OPERATOR(' || pg_catalog.quote_ident(s.nspname) || '.' || o.oprname || ')'" \
	"  FROM pg_catalog.pg_opclass oc JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname IN ('btree', 'hash')" \
	"  JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = CASE am.amname WHEN 'btree' THEN 3 ELSE 1 END" \
	"   AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype" \
	"  JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace" \
	"  WHERE oc.opcdefault AND oc.opcintype = b.typ AND b.typ >= 16384 ORDER BY am.amname LIMIT 1), 'OPERATOR(pg_catalog.=)')"


typedef struct TableLoad
{
	Comparer   *c;
	CompareTable *t;
	CutoverRows *columns[2];
	CutoverRows *mapped;		/* new_column, attnum, expr, tree, attnums */
	bool		default_columns;
	char	   *keys;			/* int2[] */
	char	   *version;
	char	   *schema[2];
	char	   *name[2];
} TableLoad;

/*
 * Is a number in the text form of an int2[]?
 */
static bool
table_in_array(const char *array, int number)
{
	for (const char *p = array; *p; p++)
		if ((p[0] == '{' || p[0] == ',') && atoi(p + 1) == number && p[1] != '}')
			return true;
	return false;
}

/*
 * Are all numbers of one array in another?
 */
static bool
table_is_subset(const char *array, const char *of)
{
	bool		any = false;

	for (const char *p = array; *p; p++)
		if ((p[0] == '{' || p[0] == ',') && p[1] != '}')
		{
			any = true;
			if (!table_in_array(of, atoi(p + 1)))
				return false;
		}
	return any;
}

/*
 * The configuration of the table.
 */
static void
table_load_config(TableLoad *load)
{
	const char *id = psprintf("%d", load->t->table_id);
	const char *args[] = {id};
	CompareTable *t = load->t;
	CutoverRows *rows;

	rows = cutover_compare_run(load->c, COMPARE_OLD,
							   "SELECT t.old_table::oid, n.nspname, c.relname, t.new_schema, t.new_name, t.default_columns,"
							   " pg_catalog.pg_get_expr(t.row_filter_expr, t.old_table), t.version_column, t.key_attnums::text, c.relowner,"
							   " pg_catalog.pg_get_expr(t.final_when_expr, t.old_table), t.phase"
							   " FROM cutover._table t JOIN pg_catalog.pg_class c ON c.oid = t.old_table"
							   " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE t.table_id = $1::int4", 1, args);
	if (rows->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("a table under comparison is no longer under migration"),
				 errdetail("It was dropped or taken out since the comparison began."),
				 errhint("Compare the others again.")));
	t->relid = atooid(CUTOVER_CELL(rows, 0, 0));
	for (int side = 0; side < 2; side++)
	{
		load->schema[side] = CUTOVER_CELL(rows, 0, 1 + 2 * side);
		load->name[side] = CUTOVER_CELL(rows, 0, 2 + 2 * side);
	}
	t->old_relname = load->name[COMPARE_OLD];
	t->label = quote_qualified_identifier(load->schema[COMPARE_OLD], load->name[COMPARE_OLD]);
	load->default_columns = CUTOVER_CELL(rows, 0, 5)[0] == 't';
	t->filter = CUTOVER_CELL(rows, 0, 6);
	load->version = CUTOVER_CELL(rows, 0, 7);
	load->keys = CUTOVER_CELL(rows, 0, 8);
	t->final_when = CUTOVER_CELL(rows, 0, 10);
	if (t->filter || t->final_when)
		t->run_as = atooid(CUTOVER_CELL(rows, 0, 9));
	if (strcmp(CUTOVER_CELL(rows, 0, 11), "synced") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s is not synced", t->label),
				 errdetail("Its phase is %s.", CUTOVER_CELL(rows, 0, 11)),
				 errhint("Wait until cutover.progress says synced, then compare again.")));
	load->mapped = cutover_compare_run(load->c, COMPARE_OLD,
									   "SELECT c.new_column, c.attnum, pg_catalog.pg_get_expr(c.expr, t.old_table), c.expr::text,"
									   " cutover._expression_attnums(c.expr)::text"
									   " FROM cutover._column c JOIN cutover._table t USING (table_id) WHERE table_id = $1::int4",
									   1, args);
	for (int i = 0; i < load->mapped->nrows && !load->default_columns; i++)
		if (CUTOVER_CELL(load->mapped, i, 1) == NULL)
			t->run_as = atooid(CUTOVER_CELL(rows, 0, 9));
}

/*
 * The columns that both sides have.
 */
static void
table_load_columns(TableLoad *load)
{
	for (int side = 0; side < 2; side++)
	{
		const char *args[] = {load->schema[side], load->name[side]};
		CutoverRows *rows = cutover_compare_run(load->c, side, TABLE_COLUMNS_SQL, 2, args);

		if (rows->nrows == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("table %s does not exist on %s", quote_qualified_identifier(load->schema[side], load->name[side]),
							side == COMPARE_OLD ? "old" : "new"),
					 errdetail("The rows of %s can't be compared.", load->t->label),
					 errhint("Create it there, then copy it with cutover_resync().")));
		load->columns[side] = rows;
		load->t->from[side] = psprintf("%s%s", strchr("rf", CUTOVER_CELL(rows, 0, 9)[0]) ? "ONLY " : "",
									   quote_qualified_identifier(load->schema[side], load->name[side]));
	}
}

/*
 * Fill in a type from a row of TABLE_COLUMNS_SQL.
 */
static void
table_read_type(ComparerType *type, CutoverRows *rows, int row)
{
	type->oid = atooid(CUTOVER_CELL(rows, row, 2));
	type->typmod = atoi(CUTOVER_CELL(rows, row, 3));
	type->name = CUTOVER_CELL(rows, row, 4);
	type->full_name = CUTOVER_CELL(rows, row, 5);
	type->bytewise = CUTOVER_CELL(rows, row, 6)[0] == 't';
	type->equals = CUTOVER_CELL(rows, row, 7);
}

/*
 * The type that an expression over old's row has.
 */
static void
table_read_expression_type(TableLoad *load, ComparerType *type, const char *tree)
{
	Node	   *node = stringToNode(tree);
	const char *oid = psprintf("%u", exprType(node));
	const char *typmod = psprintf("%d", exprTypmod(node));
	const char *args[] = {oid, typmod};
	CutoverRows *rows;

	rows = cutover_compare_run(load->c, COMPARE_OLD,
							   "SELECT NULL, NULL, b.typ, b.typmod, pg_catalog.format_type(b.typ, -1), pg_catalog.format_type(b.typ, b.typmod),"
							   " false, " TABLE_EQUALS_SQL
							   " FROM (" TABLE_BASE_SQL("$1::oid", "$2::int4") ") b", 2, args);
	table_read_type(type, rows, 0);
}

/*
 * Row of the mapping for a column of new, -1 if there is none.
 */
static int
table_find_mapped(TableLoad *load, const char *name)
{
	for (int i = 0; i < load->mapped->nrows; i++)
		if (strcmp(CUTOVER_CELL(load->mapped, i, 0), name) == 0)
			return i;
	return -1;
}

/*
 * Row of old's columns by name or number, -1 if there is none.
 */
static int
table_find_old(TableLoad *load, const char *name, int attnum)
{
	CutoverRows *rows = load->columns[COMPARE_OLD];

	for (int i = 0; i < rows->nrows; i++)
		if (name ? strcmp(CUTOVER_CELL(rows, i, 0), name) == 0 : atoi(CUTOVER_CELL(rows, i, 1)) == attnum)
			return i;
	return -1;
}

/*
 * Join a column of new (row i of its columns) with old.  False if nothing of old goes there.
 */
static bool
table_join_column(TableLoad *load, int i, CompareColumn *col)
{
	CutoverRows *old_rows = load->columns[COMPARE_OLD];
	CutoverRows *new_rows = load->columns[COMPARE_NEW];
	char	   *name = CUTOVER_CELL(new_rows, i, 0);
	int			mapped = load->default_columns ? -1 : table_find_mapped(load, name);
	int			old = -1;

	if (CUTOVER_CELL(new_rows, i, 8)[0] != '\0')
		return false;			/* generated there */
	if (load->default_columns)
		old = table_find_old(load, name, 0);
	else if (mapped >= 0 && CUTOVER_CELL(load->mapped, mapped, 1))
		old = table_find_old(load, NULL, atoi(CUTOVER_CELL(load->mapped, mapped, 1)));
	if (old < 0 && (mapped < 0 || CUTOVER_CELL(load->mapped, mapped, 2) == NULL))
		return false;
	if (old >= 0 && CUTOVER_CELL(old_rows, old, 8)[0] == 'v')
		return false;			/* computed when read: never captured */

	col->name = name;
	table_read_type(&col->type[COMPARE_NEW], new_rows, i);
	col->expr[COMPARE_NEW] = pstrdup(quote_identifier(name));
	if (old >= 0)
	{
		table_read_type(&col->type[COMPARE_OLD], old_rows, old);
		col->attnum = atoi(CUTOVER_CELL(old_rows, old, 1));
		col->old_name = CUTOVER_CELL(old_rows, old, 0);
		col->equal_collation = atooid(CUTOVER_CELL(old_rows, old, 10));
		col->expr[COMPARE_OLD] = pstrdup(quote_identifier(col->old_name));
	}
	else
	{
		col->expr[COMPARE_OLD] = psprintf("(%s)", CUTOVER_CELL(load->mapped, mapped, 2));
		table_read_expression_type(load, &col->type[COMPARE_OLD], CUTOVER_CELL(load->mapped, mapped, 3));
	}
	cutover_compare_plan_column(col);
	return true;
}

/*
 * The columns of new that tell rows apart: for each column of old's key its
 * plain copy, else what is computed from the key alone.
 */
static void
table_find_keys(TableLoad *load)
{
	CompareTable *t = load->t;

	t->keys = palloc0(Max(t->ncols, 1) * sizeof(CompareKey));
	for (int i = 0; i < t->ncols; i++)
	{
		CompareColumn *col = &t->cols[i];
		bool		is_key = col->attnum > 0 && table_in_array(load->keys, col->attnum);

		if (col->attnum == 0)
		{
			char	   *used = CUTOVER_CELL(load->mapped, table_find_mapped(load, col->name), 4);

			is_key = used != NULL && table_is_subset(used, load->keys);
		}
		if (is_key)
			t->keys[t->nkeys++].column = col;
	}
	if (strcmp(load->keys, "{}") != 0 && t->nkeys == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("no column of the key of table %s has a counterpart on new", t->label),
				 errdetail("Its rows can't be told apart there."),
				 errhint("Add the column on new.")));
	t->all_key = t->nkeys > 0 && t->nkeys == t->ncols;
	t->nranges = 0;
	for (int k = 0; k < t->nkeys; k++)
	{
		cutover_compare_plan_key(&t->keys[k]);
		if (t->nranges == k && t->keys[k].order_type != NULL)
			t->nranges++;
	}
}

/*
 * SQL for the JSON object that names a row: column of old -> text.
 */
static void
table_plan_key_json(TableLoad *load)
{
	CompareTable *t = load->t;
	CutoverRows *rows = load->columns[COMPARE_OLD];
	StringInfoData names;
	StringInfoData values;

	initStringInfo(&names);
	initStringInfo(&values);
	t->source_attnum = palloc(Max(rows->nrows, 1) * sizeof(AttrNumber));
	t->source_name = palloc(Max(rows->nrows, 1) * sizeof(char *));
	t->source_type = palloc(Max(rows->nrows, 1) * sizeof(char *));
	for (int i = 0; i < rows->nrows; i++)
	{
		const char *sep = names.len ? ", " : "";

		if (t->nkeys > 0 ? !table_in_array(load->keys, atoi(CUTOVER_CELL(rows, i, 1))) : CUTOVER_CELL(rows, i, 8)[0] == 'v')
			continue;
		t->source_attnum[t->nsources] = atoi(CUTOVER_CELL(rows, i, 1));
		t->source_name[t->nsources] = CUTOVER_CELL(rows, i, 0);
		t->source_type[t->nsources++] = (char *) cutover_compare_key_type(OidIsValid(t->run_as) || t->nkeys == 0 ? InvalidOid :
																		  atooid(CUTOVER_CELL(rows, i, 2)), CUTOVER_CELL(rows, i, 4));
		appendStringInfo(&names, "%s%s", sep, quote_literal_cstr(CUTOVER_CELL(rows, i, 0)));
		appendStringInfo(&values, "%s%s", sep, cutover_compare_text(quote_identifier(CUTOVER_CELL(rows, i, 0)),
																	atooid(CUTOVER_CELL(rows, i, 2))));
	}
	t->key_json[COMPARE_OLD] = psprintf("pg_catalog.jsonb_object(ARRAY[%s]::pg_catalog.text[], ARRAY[%s]::pg_catalog.text[])",
										names.data, values.data);
	resetStringInfo(&names);
	resetStringInfo(&values);
	for (int i = 0; i < (t->nkeys > 0 ? t->nkeys : t->ncols); i++)
	{
		CompareColumn *col = t->nkeys > 0 ? t->keys[i].column : &t->cols[i];
		const char *sep = i > 0 ? ", " : "";

		appendStringInfo(&names, "%s%s", sep, quote_literal_cstr(col->old_name ? col->old_name : col->name));
		appendStringInfo(&values, "%s%s", sep, col->text[COMPARE_NEW]);
	}
	t->key_json[COMPARE_NEW] = psprintf("pg_catalog.jsonb_object(ARRAY[%s]::pg_catalog.text[], ARRAY[%s]::pg_catalog.text[])",
										names.data, values.data);
}

/*
 * SQL for the digest of a row, and of its key.
 */
static void
table_plan_hashes(TableLoad *load)
{
	CompareTable *t = load->t;
	const char *format = load->c->strong_hash ?
		"('x' || pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(%s), 'hex'), 16))::pg_catalog.bit(64)::pg_catalog.int8" :
		"pg_catalog.hash_array_extended(ARRAY[%s], 0)";

	for (int side = 0; side < 2; side++)
	{
		StringInfoData row;
		StringInfoData key;

		initStringInfo(&row);
		initStringInfo(&key);
		appendStringInfoString(&row, "pg_catalog.record_send(ROW(");
		for (int i = 0; i < t->ncols; i++)
			appendStringInfo(&row, "%s%s", i > 0 ? ", " : "", t->cols[i].digest[side]);
		appendStringInfoString(&row, "))");
		appendStringInfoString(&key, "pg_catalog.record_send(ROW(");
		for (int k = 0; k < t->nkeys; k++)
			appendStringInfo(&key, "%s%s", k > 0 ? ", " : "", t->keys[k].column->text[side]);
		appendStringInfoString(&key, "))");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		t->row_hash[side] = psprintf(format, row.data);
		t->key_hash[side] = t->nkeys > 0 ? psprintf(format, key.data) : t->row_hash[side];
#pragma GCC diagnostic pop
	}
}

/*
 * Load everything about a table, in the current context.
 */
CompareTable *
cutover_compare_load_table(Comparer *c, int32 table_id)
{
	TableLoad	load = {.c = c,.t = palloc0(sizeof(CompareTable))};
	CompareTable *t = load.t;

	t->table_id = table_id;
	table_load_config(&load);
	table_load_columns(&load);
	t->cols = palloc0(load.columns[COMPARE_NEW]->nrows * sizeof(CompareColumn));
	for (int i = 0; i < load.columns[COMPARE_NEW]->nrows; i++)
		if (table_join_column(&load, i, &t->cols[t->ncols]))
			t->ncols++;
	table_find_keys(&load);
	table_plan_key_json(&load);
	table_plan_hashes(&load);
	if (load.version != NULL)
	{
		int			old = table_find_old(&load, load.version, 0);

		if (old >= 0)
		{
			t->version_name = load.version;
			t->version_expr = pstrdup(quote_identifier(load.version));
			t->version_type = atooid(CUTOVER_CELL(load.columns[COMPARE_OLD], old, 2));
			for (int i = 0; i < t->ncols; i++)
				if (t->cols[i].attnum == atoi(CUTOVER_CELL(load.columns[COMPARE_OLD], old, 1)))
					t->version = &t->cols[i];
		}
	}
	return t;
}
