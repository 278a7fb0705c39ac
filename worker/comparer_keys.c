/*
 * comparer_keys.c - rows that are known by name: open differences, rows that new rejected or
 * had too late, keys that the queue has seen.
 *
 * Runs in a comparer.  Such a name is a set of texts, those of old's key or,
 * without one, of all its columns.  Old turns them into keys of new (or the
 * digest of the row) by the same expressions as it does with stored rows.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "comparer.h"
#include "local.h"

#define KEYS_FETCH 1000

/*
 * SQL that turns columns of old, given as arrays of texts, into number and key.
 */
static char *
keys_convert_sql(CompareTable *t)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT \"cutover i\"");
	for (int k = 0; k < t->nkeys; k++)
		appendStringInfo(&sql, ", %s", t->keys[k].column->text[COMPARE_OLD]);
	if (t->nkeys == 0)
		appendStringInfo(&sql, ", %s", t->row_hash[COMPARE_OLD]);
	appendStringInfoString(&sql, " FROM (SELECT \"cutover i\"");
	for (int k = 0; k < t->nsources; k++)
		appendStringInfo(&sql, ", \"cutover %d\"::%s AS %s", k + 1, t->source_type[k], quote_identifier(t->source_name[k]));
	appendStringInfoString(&sql, " FROM ROWS FROM (");
	for (int k = 0; k < t->nsources; k++)
		appendStringInfo(&sql, "%spg_catalog.unnest($%d::pg_catalog.text::pg_catalog.text[])", k > 0 ? ", " : "", k + 1);
	appendStringInfoString(&sql, ") WITH ORDINALITY AS \"cutover k\" (");
	for (int k = 0; k < t->nsources; k++)
		appendStringInfo(&sql, "\"cutover %d\", ", k + 1);
	appendStringInfo(&sql, "\"cutover i\")) AS %s", quote_identifier(t->old_relname));
	return sql.data;
}

/*
 * Settle n rows of the table under way; sources: the texts of nsources columns
 * of each; jsons, if given, their names in cutover._divergence.
 */
void
cutover_compare_named(Comparer *c, char ***sources, char **jsons, int n, CompareCounts *counts)
{
	CompareTable *t = c->table;
	const char **args = palloc(Max(t->nsources, 1) * sizeof(char *));
	char	  **column = palloc(n * sizeof(char *));
	CutoverRows *rows;
	char	 ***keys;
	char	  **names = jsons ? palloc(n * sizeof(char *)) : NULL;

	if (t->nsources == 0 || n == 0)
		return;
	if (t->nsources > COMPARE_MAX_ARGS)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("single rows of table %s can't be compared", t->label),
				 errdetail("It has no key, and more than %d columns.", COMPARE_MAX_ARGS),
				 errhint("Use method full.")));
	for (int k = 0; k < t->nsources; k++)
	{
		for (int i = 0; i < n; i++)
			column[i] = sources[i][k];
		args[k] = cutover_compare_array(column, n);
	}
	rows = cutover_compare_run_table(c, COMPARE_OLD, keys_convert_sql(t), t->nsources, args);
	keys = palloc(Max(rows->nrows, 1) * sizeof(char **));
	for (int i = 0; i < rows->nrows; i++)
	{
		keys[i] = &CUTOVER_CELL(rows, i, 1);
		if (names)
			names[i] = jsons[atoi(CUTOVER_CELL(rows, i, 0)) - 1];
	}
	cutover_compare_settle(c, keys, names, rows->nrows, counts);
}

/*
 * The next names of a table after *last: open differences, then keys that new
 * rejected, then commits that did not wait for new.
 */
static CutoverRows *
keys_fetch_known(Comparer *c, int source, char **last)
{
	static const char *const sql[] = {
		"SELECT divergence_id, key::text FROM cutover._divergence WHERE table_id = $1::int4 AND divergence_id > $2::int8"
		" ORDER BY divergence_id LIMIT $3::int4",
		"SELECT error_id, key::text FROM cutover._apply_error WHERE table_id = $1::int4 AND error_id > $2::int8 AND key IS NOT NULL"
		" ORDER BY error_id LIMIT $3::int4",
		"SELECT failure_id, key::text FROM cutover._dual_write_failure WHERE table_id = $1::int4 AND failure_id > $2::int8"
		" AND key IS NOT NULL AND state = 'pending' ORDER BY failure_id LIMIT $3::int4",
	};
	const char *args[] = {psprintf("%d", c->table->table_id), *last, psprintf("%d", KEYS_FETCH)};
	CutoverRows *rows;

	if (source >= lengthof(sql))
		return NULL;
	rows = cutover_compare_run(c, COMPARE_OLD, sql[source], 3, args);
	if (rows->nrows > 0)
		*last = CUTOVER_CELL(rows, rows->nrows - 1, 0);
	return rows;
}

/*
 * The texts of the source columns in a batch of names.
 */
static char ***
keys_read_names(Comparer *c, char **jsons, int n)
{
	CompareTable *t = c->table;
	const char *args[] = {cutover_compare_array(jsons, n), cutover_compare_array(t->source_name, t->nsources)};
	char	 ***sources = palloc(n * sizeof(char **));
	CutoverRows *rows;

	rows = cutover_compare_run(c, COMPARE_OLD,
							   "SELECT k.i, c.i, k.key::jsonb->>c.name FROM pg_catalog.unnest($1::text::text[]) WITH ORDINALITY k (key, i),"
							   " pg_catalog.unnest($2::text::text[]) WITH ORDINALITY c (name, i)", 2, args);
	for (int i = 0; i < n; i++)
		sources[i] = palloc0(Max(t->nsources, 1) * sizeof(char *));
	for (int i = 0; i < rows->nrows; i++)
		sources[atoi(CUTOVER_CELL(rows, i, 0)) - 1][atoi(CUTOVER_CELL(rows, i, 1)) - 1] = CUTOVER_CELL(rows, i, 2);
	return sources;
}

/*
 * Where differences are most likely: compare these first.
 */
void
cutover_compare_known(Comparer *c, CompareCounts *counts)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer keys", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = CurrentMemoryContext;

	for (int source = 0; source < 3; source++)
	{
		char		last[32] = "0";
		int			n;

		do
		{
			CutoverRows *rows;
			char	   *next = last;
			char	  **jsons;

			cutover_compare_check_run(c);
			MemoryContextSwitchTo(mcxt);
			rows = keys_fetch_known(c, source, &next);
			strlcpy(last, next, sizeof(last));
			n = rows->nrows;
			jsons = palloc(Max(n, 1) * sizeof(char *));
			for (int i = 0; i < n; i++)
				jsons[i] = CUTOVER_CELL(rows, i, 1);
			if (n > 0)
				cutover_compare_named(c, keys_read_names(c, jsons, n), jsons, n, counts);
			MemoryContextSwitchTo(old);
			MemoryContextReset(mcxt);
		} while (n == KEYS_FETCH);
	}
	MemoryContextDelete(mcxt);
}
