/*
 * apply_sql.c - the statements that write a set of rows.
 *
 * Each takes one text[] for every column in use and unnests them side by side
 * in a select list, which costs no intermediate storage.  A value is cast to
 * its column's type without length or precision: an explicit cast to
 * varchar(3) would cut, while the assignment to the column, which follows,
 * raises an error.  For the same reason a domain's value is cast to its base type.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "apply_private.h"

static const char *sql_output_type(const CutoverColumn *col);
static void sql_source(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, const char *extra);
static void sql_key_source(StringInfo buf, const CutoverApplyTable *table);
static void sql_columns(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent);
static void sql_values(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, bool output);
static bool sql_assignments(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, bool excluded);
static void sql_key_match(StringInfo buf, const CutoverApplyTable *table);
static void sql_identity_match(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, bool same);

/*
 * Whether column col is written.
 */
static inline bool
sql_uses(const Bitmapset *absent, int col)
{
	return !bms_is_member(col, absent);
}

/*
 * The table's name.
 */
char *
cutover_apply_sql_name(const CutoverApplyTable *table)
{
	return quote_qualified_identifier(table->schema, table->name);
}

/*
 * The type in which a value is compared with the column's own output: with its
 * scale or padding, but not with a length to which the cast would cut it.
 */
static const char *
sql_output_type(const CutoverColumn *col)
{
	if (strchr(col->type, '(') == NULL || strncmp(col->type, "character varying", 17) == 0 ||
		strncmp(col->type, "bit", 3) == 0)
		return col->cast_type;
	return col->type;
}

/*
 * "(SELECT unnest($1::text[]) AS c0, ...) AS u" of the columns in use.
 */
static void
sql_source(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, const char *extra)
{
	int			param = 0;

	appendStringInfoString(buf, "(SELECT ");
	for (int i = 0; i < table->ncols; i++)
		if (sql_uses(absent, i))
		{
			param++;
			appendStringInfo(buf, "%sunnest($%d::text[]) AS c%d", param > 1 ? ", " : "", param, i);
		}
	if (extra)
	{
		appendStringInfoString(buf, ", ");
		/* "%d" stands for the parameter after the columns */
		appendStringInfo(buf, extra, param + 1);
	}
	appendStringInfoString(buf, ") AS u");
}

/*
 * Likewise, of the key columns only, in key order.
 */
static void
sql_key_source(StringInfo buf, const CutoverApplyTable *table)
{
	appendStringInfoString(buf, "(SELECT ");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(buf, "%sunnest($%d::text[]) AS c%d", i > 0 ? ", " : "", i + 1, table->keycols[i]);
	appendStringInfoString(buf, ") AS u");
}

/*
 * Names of the columns in use.
 */
static void
sql_columns(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent)
{
	const char *sep = "";

	for (int i = 0; i < table->ncols; i++)
		if (sql_uses(absent, i))
		{
			appendStringInfo(buf, "%s%s", sep, quote_identifier(table->cols[i].name));
			sep = ", ";
		}
}

/*
 * The values of the columns in use, cast.
 */
static void
sql_values(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, bool output)
{
	const char *sep = "";

	for (int i = 0; i < table->ncols; i++)
		if (sql_uses(absent, i))
		{
			appendStringInfo(buf, "%su.c%d::%s", sep, i,
							 output ? sql_output_type(&table->cols[i]) : table->cols[i].cast_type);
			sep = ", ";
		}
}

/*
 * "col = value" for what may be updated; false if that is nothing.
 */
static bool
sql_assignments(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, bool excluded)
{
	bool		any = false;

	for (int i = 0; i < table->ncols; i++)
	{
		const CutoverColumn *col = &table->cols[i];
		const char *name = quote_identifier(col->name);

		if (!sql_uses(absent, i) || (col->is_key && !(excluded && col->inexact)) || col->identity_always)
			continue;
		if (excluded)
			appendStringInfo(buf, "%s%s = excluded.%s", any ? ", " : "", name, name);
		else
			appendStringInfo(buf, "%s%s = u.c%d::%s", any ? ", " : "", name, i, col->cast_type);
		any = true;
	}
	return any;
}

/*
 * "t.key = u.key AND ...".
 */
static void
sql_key_match(StringInfo buf, const CutoverApplyTable *table)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		const CutoverColumn *col = &table->cols[table->keycols[i]];

		appendStringInfo(buf, "%st.%s %s u.c%d::%s", i > 0 ? " AND " : "", quote_identifier(col->name),
						 col->equals ? col->equals : "=", table->keycols[i], col->cast_type);
	}
}

/*
 * Whether the row's GENERATED ALWAYS identity would have to change.
 */
bool
cutover_apply_sql_renumbers(const CutoverApplyTable *table, const Bitmapset *absent)
{
	for (int i = 0; i < table->ncols; i++)
		if (table->cols[i].identity_always && !table->cols[i].is_key && sql_uses(absent, i))
			return true;
	return false;
}

/*
 * " AND (same numbers)" or " AND (other numbers)".
 */
static void
sql_identity_match(StringInfo buf, const CutoverApplyTable *table, const Bitmapset *absent, bool same)
{
	for (int i = 0; i < table->ncols; i++)
		if (table->cols[i].identity_always && !table->cols[i].is_key && sql_uses(absent, i))
			/* there is one identity column at most, and it is an integer */
			appendStringInfo(buf, " AND t.%s %s u.c%d::%s", quote_identifier(table->cols[i].name),
							 same ? "=" : "<>", i, table->cols[i].cast_type);
}

/*
 * Rows that are not there.
 */
char *
cutover_apply_sql_insert(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "INSERT INTO %s AS t (", cutover_apply_sql_name(table));
	sql_columns(&buf, table, absent);
	appendStringInfoString(&buf, ") OVERRIDING SYSTEM VALUE SELECT ");
	sql_values(&buf, table, absent, false);
	appendStringInfoString(&buf, " FROM ");
	sql_source(&buf, table, absent, NULL);
	return buf.data;
}

/*
 * Rows that may be there; the key has a usable unique index.
 */
char *
cutover_apply_sql_upsert(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s ON CONFLICT (", cutover_apply_sql_insert(table, absent));
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", quote_identifier(table->cols[table->keycols[i]].name));
	appendStringInfoString(&buf, ") DO UPDATE SET ");
	if (!sql_assignments(&buf, table, absent, true))
	{
		buf.len -= strlen("UPDATE SET ");
		appendStringInfoString(&buf, "NOTHING");
	}
	return buf.data;
}

/*
 * Rows that should be there; returns the keys of those that are not.  A row
 * whose GENERATED ALWAYS number differs counts as not there: only a whole row can replace it.
 */
char *
cutover_apply_sql_update(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData set;
	StringInfoData buf;
	bool		any;

	initStringInfo(&set);
	any = sql_assignments(&set, table, absent, false);
	initStringInfo(&buf);
	appendStringInfoString(&buf, "WITH u AS MATERIALIZED (SELECT * FROM ");
	sql_source(&buf, table, absent, "generate_subscripts($1::text[], 1) AS n");
	if (any)
		appendStringInfo(&buf, "), done AS (UPDATE %s AS t SET %s FROM u WHERE ", cutover_apply_sql_name(table), set.data);
	else
		appendStringInfo(&buf, "), done AS (SELECT u.n FROM u, %s AS t WHERE ", cutover_apply_sql_name(table));
	sql_key_match(&buf, table);
	sql_identity_match(&buf, table, absent, true);
	appendStringInfo(&buf, "%s) SELECT ", any ? " RETURNING u.n" : "");
	for (int i = 0; i < table->nkeys; i++)
		appendStringInfo(&buf, "%su.c%d", i > 0 ? ", " : "", table->keycols[i]);
	appendStringInfoString(&buf, " FROM u WHERE u.n NOT IN (SELECT done.n FROM done)");
	return buf.data;
}

/*
 * Where ON CONFLICT can't be used: first half, the rows that are there.
 */
char *
cutover_apply_sql_update_existing(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "UPDATE %s AS t SET ", cutover_apply_sql_name(table));
	if (!sql_assignments(&buf, table, absent, false))
		return NULL;
	appendStringInfoString(&buf, " FROM ");
	sql_source(&buf, table, absent, NULL);
	appendStringInfoString(&buf, " WHERE ");
	sql_key_match(&buf, table);
	return buf.data;
}

/*
 * Second half: those that are not.
 */
char *
cutover_apply_sql_insert_missing(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s WHERE NOT EXISTS (SELECT FROM %s AS t WHERE ",
					 cutover_apply_sql_insert(table, absent), cutover_apply_sql_name(table));
	sql_key_match(&buf, table);
	appendStringInfoString(&buf, ")");
	return buf.data;
}

/*
 * Rows by key.
 */
char *
cutover_apply_sql_delete(const CutoverApplyTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "DELETE FROM %s AS t USING ", cutover_apply_sql_name(table));
	sql_key_source(&buf, table);
	appendStringInfoString(&buf, " WHERE ");
	sql_key_match(&buf, table);
	return buf.data;
}

/*
 * Rows about to be upserted whose GENERATED ALWAYS number is another now.
 */
char *
cutover_apply_sql_delete_renumbered(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "DELETE FROM %s AS t USING ", cutover_apply_sql_name(table));
	sql_source(&buf, table, absent, NULL);
	appendStringInfoString(&buf, " WHERE ");
	sql_key_match(&buf, table);
	sql_identity_match(&buf, table, absent, false);
	return buf.data;
}

/*
 * As many equal rows as the last parameter says, of a table without a key.
 * Rows are compared by their output text, made by new on both sides: types
 * without equality can be compared too, and one scan serves the whole set.
 */
char *
cutover_apply_sql_delete_rows(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;
	const char *name = cutover_apply_sql_name(table);
	const char *sep = "";

	initStringInfo(&buf);
	appendStringInfoString(&buf, "WITH u AS MATERIALIZED (SELECT ROW(");
	sql_values(&buf, table, absent, true);
	appendStringInfoString(&buf, ")::text AS r, u.n::bigint AS n FROM ");
	sql_source(&buf, table, absent, "unnest($%d::text[]) AS n");
	appendStringInfo(&buf, "), x AS MATERIALIZED (SELECT t.tableoid AS o, t.ctid AS c, u.n, "
					 "row_number() OVER (PARTITION BY u.r) AS i FROM %s AS t, u WHERE ROW(", name);
	for (int i = 0; i < table->ncols; i++)
		if (sql_uses(absent, i))
		{
			appendStringInfo(&buf, "%st.%s", sep, quote_identifier(table->cols[i].name));
			sep = ", ";
		}
	appendStringInfo(&buf, ")::text = u.r) DELETE FROM %s AS t USING x WHERE t.ctid = x.c AND t.tableoid = x.o AND x.i <= x.n",
					 name);
	return buf.data;
}

/*
 * How often each of some rows is there: (number of the row, copies), compared as above.
 */
char *
cutover_apply_sql_count_rows(const CutoverApplyTable *table)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "WITH u AS MATERIALIZED (SELECT ROW(");
	sql_values(&buf, table, NULL, true);
	appendStringInfoString(&buf, ")::text AS r, u.n FROM ");
	sql_source(&buf, table, NULL, "generate_subscripts($1::text[], 1) AS n");
	appendStringInfoString(&buf, ") SELECT u.n, count(*) FROM u JOIN (SELECT ROW(");
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(&buf, "%st.%s", i > 0 ? ", " : "", quote_identifier(table->cols[i].name));
	appendStringInfo(&buf, ")::text AS r FROM %s AS t) AS t ON t.r = u.r GROUP BY u.n", cutover_apply_sql_name(table));
	return buf.data;
}

/*
 * COPY of fresh rows.
 */
char *
cutover_apply_sql_copy(const CutoverApplyTable *table, const Bitmapset *absent)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "COPY %s (", cutover_apply_sql_name(table));
	sql_columns(&buf, table, absent);
	appendStringInfoString(&buf, ") FROM STDIN");
	return buf.data;
}
