/*
 * comparer_sql.c - the statements that read a table for comparing, the same
 * on both sides but for names and the mapping's expressions.
 *
 * Runs in a comparer.  A table is read without alias, since deparsed
 * expressions name its columns by themselves; our own names have a blank.
 * All parameters are texts.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "comparer.h"

/*
 * "k >= bound" or "k < bound" over the leading columns of the key.
 */
static void
sql_append_bound(StringInfo sql, CompareTable *t, CompareSide side, int first_param, const char *op)
{
	const char *open = t->nranges > 1 ? "ROW(" : "";
	const char *close = t->nranges > 1 ? ")" : "";

	appendStringInfoString(sql, open);
	for (int k = 0; k < t->nranges; k++)
		appendStringInfo(sql, "%s%s", k > 0 ? ", " : "", t->keys[k].order[side]);
	appendStringInfo(sql, "%s %s %s", close, op, open);
	for (int k = 0; k < t->nranges; k++)
		appendStringInfo(sql, "%s$%d::pg_catalog.text::%s", k > 0 ? ", " : "", first_param + k, t->keys[k].order_type);
	appendStringInfoString(sql, close);
}

/*
 * The condition of a scope, with its parameters from $1 on.
 */
static void
sql_append_scope(StringInfo sql, CompareTable *t, CompareSide side, const CompareScope *scope)
{
	const char *version = side == COMPARE_OLD ? t->version_expr : t->version ? t->version->expr[COMPARE_NEW] : NULL;
	int			param = 1;
	const char *sep = " WHERE ";

	if (side == COMPARE_OLD && t->filter)
	{
		appendStringInfo(sql, "%s(%s)", sep, t->filter);
		sep = " AND ";
	}
	if (side == COMPARE_OLD && scope->final && t->final_when)
	{
		appendStringInfo(sql, "%s(%s)", sep, t->final_when);
		sep = " AND ";
	}
	for (int i = 0; i < 2; i++)
	{
		if ((i == 0 ? scope->lower : scope->upper) == NULL)
			continue;
		appendStringInfoString(sql, sep);
		sql_append_bound(sql, t, side, param, i == 0 ? ">=" : "<");
		param += t->nranges;
		sep = " AND ";
	}
	for (int i = 0; i < 2; i++)
	{
		if ((i == 0 ? scope->since : scope->until) == NULL)
			continue;
		appendStringInfo(sql, "%s%s %s $%d::pg_catalog.text::%s", sep, version, i == 0 ? ">=" : scope->until_included ? "<=" : "<",
						 param++, side == COMPARE_OLD ? scope->version_type : t->version->type[COMPARE_NEW].name);
		sep = " AND ";
	}
	if (scope->mask != 0)
		appendStringInfo(sql, "%s(%s & $%d::pg_catalog.text::pg_catalog.int8) = $%d::pg_catalog.text::pg_catalog.int8", sep,
						 t->key_hash[side], param, param + 1);
}

/*
 * The parameters of a scope; returns their number.
 */
int
cutover_compare_scope_args(const CompareScope *scope, const char **args)
{
	int			n = 0;

	for (int i = 0; i < 2; i++)
	{
		char	  **bound = i == 0 ? scope->lower : scope->upper;

		for (int k = 0; bound != NULL && k < scope->nbounds; k++)
			args[n++] = bound[k];
	}
	if (scope->since)
		args[n++] = scope->since;
	if (scope->until)
		args[n++] = scope->until;
	if (scope->mask != 0)
	{
		args[n++] = psprintf(INT64_FORMAT, scope->mask);
		args[n++] = psprintf(INT64_FORMAT, scope->value);
	}
	return n;
}

/*
 * Rows of a scope, and the sum of their digests.
 */
char *
cutover_compare_sql_digest(CompareTable *t, CompareSide side, const CompareScope *scope)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT pg_catalog.count(*), pg_catalog.sum(%s) FROM %s", t->row_hash[side], t->from[side]);
	sql_append_scope(&sql, t, side, scope);
	return sql.data;
}

/*
 * Each row of a scope: digest, then its key as texts; without a key digest and
 * number of rows that have it.
 */
char *
cutover_compare_sql_rows(CompareTable *t, CompareSide side, const CompareScope *scope)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s", t->row_hash[side]);
	if (t->nkeys == 0)
		appendStringInfoString(&sql, ", pg_catalog.count(*)");
	for (int k = 0; k < t->nkeys; k++)
		appendStringInfo(&sql, ", %s", t->keys[k].column->text[side]);
	appendStringInfo(&sql, " FROM %s", t->from[side]);
	sql_append_scope(&sql, t, side, scope);
	if (t->nkeys == 0)
		appendStringInfoString(&sql, " GROUP BY 1");
	return sql.data;
}

/*
 * What the look-up of keys returns of each row: number of the key (or, without
 * one, the digest), digest, physical version; with detail the key as JSON and
 * the texts of all columns.
 */
static void
sql_append_found(StringInfo sql, CompareTable *t, CompareSide side, bool detail)
{
	appendStringInfo(sql, "%s AS \"cutover h\", pg_catalog.concat(tableoid, ':', ctid, ':', xmin) AS \"cutover v\"",
					 t->row_hash[side]);
	if (!detail)
		return;
	appendStringInfo(sql, ", %s", t->key_json[side]);
	for (int i = 0; i < t->ncols; i++)
		appendStringInfo(sql, ", %s", t->cols[i].text[side]);
}

/*
 * To what the text of a key is cast.  One side may have room for larger numbers; and a
 * cast of text to "char" takes the first byte, its input function knows better.
 */
const char *
cutover_compare_key_type(Oid type, const char *name)
{
	if (type == INT2OID || type == INT4OID)
		return "pg_catalog.int8";
	if (type == CHAROID)
		return "pg_catalog.bpchar::\"char\"";
	return name;
}

/*
 * The rows of a set of keys; $1, $2 ... are arrays with the columns of the key.
 */
static char *
sql_lookup_keyed(CompareTable *t, CompareSide side, bool detail)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT \"cutover i\", ");
	sql_append_found(&sql, t, side, detail);
	appendStringInfoString(&sql, " FROM ROWS FROM (");
	for (int k = 0; k < t->nkeys; k++)
		appendStringInfo(&sql, "%spg_catalog.unnest($%d::pg_catalog.text::pg_catalog.text[])", k > 0 ? ", " : "", k + 1);
	appendStringInfoString(&sql, ") WITH ORDINALITY AS \"cutover k\" (");
	for (int k = 0; k < t->nkeys; k++)
		appendStringInfo(&sql, "\"cutover %d\", ", k + 1);
	appendStringInfo(&sql, "\"cutover i\"), %s WHERE ", t->from[side]);
	for (int k = 0; k < t->nkeys; k++)
	{
		ComparerType *type = &t->keys[k].column->type[side];

		appendStringInfo(&sql, "%s%s %s \"cutover %d\"::%s", k > 0 ? " AND " : "", t->keys[k].column->expr[side],
						 type->equals, k + 1, cutover_compare_key_type(type->oid, type->name));
	}
	if (side == COMPARE_OLD && t->filter)
		appendStringInfo(&sql, " AND (%s)", t->filter);
	return sql.data;
}

/*
 * The rows that have one of a set of digests; $1 is an array of them.
 */
static char *
sql_lookup_unkeyed(CompareTable *t, CompareSide side, bool detail)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT \"cutover h\", \"cutover r\".* FROM (SELECT ");
	sql_append_found(&sql, t, side, detail);
	appendStringInfo(&sql, " FROM %s", t->from[side]);
	if (side == COMPARE_OLD && t->filter)
		appendStringInfo(&sql, " WHERE (%s)", t->filter);
	/* in a form that is looked up in a hash table, not joined */
	appendStringInfoString(&sql, " OFFSET 0) AS \"cutover r\" WHERE CASE WHEN \"cutover h\" IN"
						   " (SELECT pg_catalog.unnest($1::pg_catalog.text::pg_catalog.int8[])) THEN true ELSE false END");
	return sql.data;
}

char *
cutover_compare_sql_lookup(CompareTable *t, CompareSide side, bool detail)
{
	return t->nkeys > 0 ? sql_lookup_keyed(t, side, detail) : sql_lookup_unkeyed(t, side, detail);
}
