/*
 * comparer_plan.c - how a table is cut for a full pass.
 *
 * Runs in a comparer.  By ranges of the key where both sides can put it into
 * the same order (numbers, times, uuids ...; texts by their bytes), from a
 * sample of old's blocks; the first and the last range are open.  Else by the hash of the key,
 * or of the row where there is no key: each part then reads the whole table, so they are few.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "comparer.h"
#include "local.h"

#define CHUNK_ROWS 10000
#define CHUNK_BYTES (8.0 * 1024 * 1024)
#define MAX_CHUNKS 100000
#define SAMPLE_BLOCKS 3000
#define HASH_ROWS 200000
#define MAX_HASH_CHUNKS 256

typedef struct PlanSize
{
	double		rows;
	double		bytes;
	double		blocks;
} PlanSize;

/*
 * Size of a table and its partitions, and about how many rows.
 */
static PlanSize
plan_measure(Comparer *c)
{
	const char *relid = psprintf("%u", c->table->relid);
	PlanSize	size;
	CutoverRows *rows;

	rows = cutover_compare_run(c, COMPARE_OLD,
							   "SELECT COALESCE(sum(pg_catalog.pg_table_size(c.oid)), 0), COALESCE(sum(pg_catalog.pg_relation_size(c.oid)), 0),"
							   " COALESCE(sum(CASE WHEN c.reltuples <= 0 OR c.relpages = 0 THEN pg_catalog.pg_relation_size(c.oid) / 80"
							   "  ELSE c.reltuples / c.relpages * pg_catalog.pg_relation_size(c.oid)"
							   "  / pg_catalog.current_setting('block_size')::int8 END), 0)"
							   " FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.oid IN"
							   " (SELECT $1::oid UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid::pg_catalog.regclass))",
							   1, &relid);
	size.bytes = strtod(CUTOVER_CELL(rows, 0, 0), NULL);
	size.blocks = strtod(CUTOVER_CELL(rows, 0, 1), NULL) / BLCKSZ;
	size.rows = strtod(CUTOVER_CELL(rows, 0, 2), NULL);
	return size;
}

/*
 * Write chunks down; bounds are arrays in text form, NULL for open ones.
 */
static void
plan_store(Comparer *c, const char *method, const char *kind, char **lower, char **upper, int n)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		args[] = {Int64GetDatum(c->run), Int32GetDatum(c->table->table_id), CStringGetTextDatum(method),
		CStringGetTextDatum(kind), CStringGetTextDatum(cutover_compare_array(lower, n)),
	CStringGetTextDatum(cutover_compare_array(upper, n))};

	cutover_compare_begin();
	cutover_local_run("INSERT INTO cutover._compare_chunk (run, table_id, method, kind, chunk_no, lower, upper)"
					  " SELECT $1, $2, $3, $4, b.no + COALESCE((SELECT max(chunk_no) FROM cutover._compare_chunk"
					  "  WHERE run = $1 AND table_id = $2 AND method = $3), 0), b.lower::text[], b.upper::text[]"
					  " FROM ROWS FROM (pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::text[])) WITH ORDINALITY b (lower, upper, no)",
					  6, types, args, NULL);
	cutover_compare_commit();
}

/*
 * Ranges between keys found in a sample of old's blocks.
 */
static void
plan_ranges(Comparer *c, const char *method, PlanSize size)
{
	CompareTable *t = c->table;
	double		wanted = Min(Max(size.rows / CHUNK_ROWS, size.bytes / CHUNK_BYTES), MAX_CHUNKS);
	double		percent = 100.0 * Max(SAMPLE_BLOCKS, wanted * 4) / Max(size.blocks, 1);
	const char *count = psprintf("%d", (int) wanted + 1);
	StringInfoData sql;
	CutoverRows *rows;
	char	  **lower;
	char	  **upper;

	if (wanted <= 1)
	{
		char	   *open = NULL;

		plan_store(c, method, "range", &open, &open, 1);
		return;
	}
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT DISTINCT ON (\"cutover c\") \"cutover k\"::pg_catalog.text FROM (SELECT ARRAY[");
	for (int k = 0; k < t->nranges; k++)
		appendStringInfo(&sql, "%s%s", k > 0 ? ", " : "", t->keys[k].column->text[COMPARE_OLD]);
	appendStringInfoString(&sql, "]::pg_catalog.text[] AS \"cutover k\", pg_catalog.row_number() OVER \"cutover w\" AS \"cutover n\","
						   " (pg_catalog.row_number() OVER \"cutover w\") * $1::pg_catalog.text::pg_catalog.int8"
						   " / (pg_catalog.count(*) OVER () + 1) AS \"cutover c\"");
	appendStringInfo(&sql, " FROM %s", t->from[COMPARE_OLD]);
	if (percent < 100)
		appendStringInfo(&sql, " TABLESAMPLE SYSTEM (%.6f) REPEATABLE (20)", percent);
	if (t->filter)
		appendStringInfo(&sql, " WHERE (%s)", t->filter);
	appendStringInfoString(&sql, " WINDOW \"cutover w\" AS (ORDER BY ");
	for (int k = 0; k < t->nranges; k++)
		appendStringInfo(&sql, "%s%s", k > 0 ? ", " : "", t->keys[k].order[COMPARE_OLD]);
	appendStringInfoString(&sql, ")) AS \"cutover s\" WHERE \"cutover c\" > 0 ORDER BY \"cutover c\", \"cutover n\"");
	rows = cutover_compare_run_table(c, COMPARE_OLD, sql.data, 1, &count);

	lower = palloc0((rows->nrows + 1) * sizeof(char *));
	upper = palloc0((rows->nrows + 1) * sizeof(char *));
	for (int i = 0; i < rows->nrows; i++)
		lower[i + 1] = upper[i] = CUTOVER_CELL(rows, i, 0);
	plan_store(c, method, "range", lower, upper, rows->nrows + 1);
}

/*
 * By hash: lower is the value, upper the mask.
 */
static void
plan_hashes(Comparer *c, const char *method, PlanSize size)
{
	int			n = 1;
	char	  **lower;
	char	  **upper;

	while (n < MAX_HASH_CHUNKS && n * (double) HASH_ROWS < size.rows)
		n *= 2;
	lower = palloc(n * sizeof(char *));
	upper = palloc(n * sizeof(char *));
	for (int i = 0; i < n; i++)
	{
		lower[i] = psprintf("{%d}", i);
		upper[i] = psprintf("{%d}", n - 1);
	}
	plan_store(c, method, "hash", lower, upper, n);
}

/*
 * Plan every row of the table under way.
 */
void
cutover_compare_plan_full(Comparer *c, const char *method)
{
	PlanSize	size = plan_measure(c);

	if (c->table->nranges > 0)
		plan_ranges(c, method, size);
	else
		plan_hashes(c, method, size);
}

/*
 * Plan one piece of another kind.
 */
void
cutover_compare_plan_one(Comparer *c, const char *method, const char *kind, char *lower, char *upper)
{
	plan_store(c, method, kind, &lower, &upper, 1);
}

/*
 * Cut a window of time, so that each part has about as many rows as other chunks.
 */
void
cutover_compare_plan_between(Comparer *c, const char *since, const char *until)
{
	CompareTable *t = c->table;
	PlanSize	size = plan_measure(c);
	double		fraction = Min(1, SAMPLE_BLOCKS / Max(size.blocks, 1));
	const char *args[] = {since, until, psprintf("%.0f", Max(CHUNK_ROWS * fraction, 1))};
	const char *type = t->version_type == TIMESTAMPOID ? "pg_catalog.timestamp" : "pg_catalog.timestamptz";
	StringInfoData sql;
	CutoverRows *rows;
	char	  **lower;
	char	  **upper;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT DISTINCT \"cutover v\", ARRAY[\"cutover v\"::text]::text FROM (SELECT %s AS \"cutover v\","
					 " pg_catalog.row_number() OVER (ORDER BY %s) AS \"cutover n\" FROM %s", t->version_expr, t->version_expr, t->from[COMPARE_OLD]);
	if (fraction < 1)
		appendStringInfo(&sql, " TABLESAMPLE SYSTEM (%.6f) REPEATABLE (20)", fraction * 100);
	appendStringInfo(&sql, " WHERE ($1::text IS NULL OR %s > $1::text::%s) AND ($2::text IS NULL OR %s < $2::text::%s)) AS \"cutover s\""
					 " WHERE \"cutover n\" %% $3::text::int8 = 0 ORDER BY 1",
					 t->version_expr, type, t->version_expr, type);
	rows = cutover_compare_run_table(c, COMPARE_OLD, sql.data, 3, args);
	lower = palloc0((rows->nrows + 1) * sizeof(char *));
	upper = palloc0((rows->nrows + 1) * sizeof(char *));
	for (int i = 0; i < rows->nrows; i++)
		lower[i + 1] = upper[i] = CUTOVER_CELL(rows, i, 1);
	lower[0] = since ? cutover_compare_array((char **) &since, 1) : NULL;
	upper[rows->nrows] = until ? cutover_compare_array((char **) &until, 1) : NULL;
	plan_store(c, "window", "time", lower, upper, rows->nrows + 1);
}
