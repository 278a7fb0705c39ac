/*
 * comparer_window.c - rows whose version lies in a window of time.
 *
 * Runs in a comparer.  On both sides the rows with a version in the window are
 * taken; a row that is in it on one side only looks different, and is settled by its key.  With final_when
 * only old can say which rows are finished, so these are looked up one by one
 * on new; of new's rows in the window those count that old does not have at all.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "comparer.h"

#define PART_ROWS 5000

/*
 * The window's bounds for a version column of the given type.
 */
static void
window_scope(Comparer *c, const char *since, const char *until, CompareScope *scope)
{
	int			n;

	scope->version_type = c->table->version_type == TIMESTAMPOID ? "pg_catalog.timestamp" :
		c->table->version_type == DATEOID ? "pg_catalog.date" : "pg_catalog.timestamptz";
	/* a day that is not over is compared again by the next window */
	scope->until_included = c->table->version_type == DATEOID;
	scope->since = since ? cutover_compare_read_array(since, &n)[0] : NULL;
	scope->until = until ? cutover_compare_read_array(until, &n)[0] : NULL;
}

/*
 * Does an index on either side lead with the version column?  If not every
 * part of a window would read the whole table.
 */
static bool
window_has_index(Comparer *c, CompareSide side)
{
	const char *args[] = {NULL, NULL};
	CutoverRows *rows;

	if (side == COMPARE_NEW && c->table->version == NULL)
		return true;
	args[0] = strncmp(c->table->from[side], "ONLY ", 5) == 0 ? c->table->from[side] + 5 : c->table->from[side];
	args[1] = side == COMPARE_NEW ? c->table->version->name : c->table->version_name;
	rows = cutover_compare_run(c, side,
							   "SELECT 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid"
							   " AND a.attnum = i.indkey[0] WHERE i.indrelid = $1::pg_catalog.regclass AND a.attname = $2 AND i.indisvalid"
							   " AND i.indpred IS NULL LIMIT 1", 2, args);
	return rows->nrows > 0;
}

/*
 * Cut a window into parts.
 */
void
cutover_compare_plan_window(Comparer *c)
{
	const char *args[] = {psprintf(INT64_FORMAT, c->run), psprintf("%d", c->table->table_id)};
	CutoverRows *rows;
	char	   *since;
	char	   *until;

	if (c->table->version_expr == NULL)
		return;					/* it was dropped meanwhile */
	rows = cutover_compare_run(c, COMPARE_OLD,
							   c->table->version_type == TIMESTAMPTZOID ?
							   "SELECT s.since::text, s.until::text FROM cutover._compare_result s WHERE s.run = $1::int8"
							   " AND s.table_id = $2::int4 AND s.method = 'window'" :
							   c->table->version_type == DATEOID ?
							   "SELECT (s.since AT TIME ZONE r.time_zone)::date::text, (s.until AT TIME ZONE r.time_zone)::date::text"
							   " FROM cutover._compare_result s JOIN cutover._compare_run r USING (run) WHERE s.run = $1::int8"
							   " AND s.table_id = $2::int4 AND s.method = 'window'" :
							   "SELECT (s.since AT TIME ZONE r.time_zone)::text, (s.until AT TIME ZONE r.time_zone)::text"
							   " FROM cutover._compare_result s JOIN cutover._compare_run r USING (run) WHERE s.run = $1::int8"
							   " AND s.table_id = $2::int4 AND s.method = 'window'", 2, args);
	since = CUTOVER_CELL(rows, 0, 0);
	until = CUTOVER_CELL(rows, 0, 1);
	if (since && until && strcmp(since, until) == 0 && c->table->version_type != DATEOID)
		return;					/* empty */
	/* days overlap at their ends: not cut */
	if (c->table->version_type != DATEOID && window_has_index(c, COMPARE_OLD) && window_has_index(c, COMPARE_NEW))
		cutover_compare_plan_between(c, since, until);
	else
		cutover_compare_plan_one(c, "window", "time", since ? cutover_compare_array(&since, 1) : NULL,
								 until ? cutover_compare_array(&until, 1) : NULL);
}

/*
 * The keys of a scope on one side, a part at a time.
 */
static void
window_probe(Comparer *c, CompareSide side, const CompareScope *scope, CompareCounts *counts)
{
	CompareTable *t = c->table;
	const char *args[COMPARE_MAX_ARGS];
	int			nargs = cutover_compare_scope_args(scope, args);
	CutoverRows *rows = cutover_compare_run_table(c, side, cutover_compare_sql_digest(t, side, scope), nargs, args);
	int64		total = strtoll(CUTOVER_CELL(rows, 0, 0), NULL, 10);
	int64		parts = 1;

	while (parts * PART_ROWS < total)
		parts *= 2;
	for (int64 part = 0; part < parts && total > 0; part++)
	{
		MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer window", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(mcxt);
		CompareScope narrow = *scope;
		char	 ***keys;
		int			n = 0;

		cutover_compare_check_run(c);
		narrow.mask = parts - 1;
		narrow.value = part;
		nargs = cutover_compare_scope_args(&narrow, args);
		rows = cutover_compare_run_table(c, side, cutover_compare_sql_rows(t, side, &narrow), nargs, args);
		keys = palloc(Max(rows->nrows, 1) * sizeof(char **));
		for (int i = 0; i < rows->nrows; i++)
			keys[n++] = t->nkeys > 0 ? &CUTOVER_CELL(rows, i, 1) : &CUTOVER_CELL(rows, i, 0);
		if (side == COMPARE_NEW)
			n = cutover_compare_keep_absent(c, keys, n);
		else
			counts->rows += rows->nrows;
		if (n > 0)
			cutover_compare_settle(c, keys, NULL, n, counts);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(mcxt);
	}
}

/*
 * Compare one part of a window.
 */
void
cutover_compare_window(Comparer *c, const char *since, const char *until, CompareCounts *counts)
{
	CompareScope scope = {0};

	if (c->table->version_expr == NULL)
		return;
	window_scope(c, since, until, &scope);
	if (c->table->version != NULL && c->table->final_when == NULL)
	{
		cutover_compare_scope(c, &scope, counts);
		return;
	}
	scope.final = true;
	window_probe(c, COMPARE_OLD, &scope, counts);
	if (c->table->version != NULL)
		window_probe(c, COMPARE_NEW, &scope, counts);
}
