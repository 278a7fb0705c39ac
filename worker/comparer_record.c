/*
 * comparer_record.c - confirmed differences: of which kind, in which columns,
 * and into cutover._divergence with them.
 *
 * Runs in a comparer.  The rows are read once more, with all their columns, a
 * few at a time; only if they still are the versions that were confirmed do
 * they count for what they show.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "comparer.h"
#include "guc.h"
#include "local.h"

/* rows read at once: at first, at most, and by their size */
#define DETAIL_FIRST 32
#define DETAIL_MAX 1000
#define DETAIL_BYTES (4 * 1024 * 1024)

/* longest text of a value that is kept */
#define SHOWN_BYTES 10000

/* columns of a look-up before those of the table: number, digest, version, key */
#define DETAIL_COLUMN 4

/* What is shown of a candidate, by side. */
typedef struct RecordDetail
{
	CompareState state[2];
	CutoverRows *rows[2];
	int			row[2];			/* one of those found; -1 = none */
} RecordDetail;

typedef struct RecordCounter
{
	int64		open;			/* of this table in cutover._divergence */
	CompareCounts *counts;
} RecordCounter;

/*
 * Read the rows of some candidates with all columns.  Returns the bytes read.
 */
static Size
record_read(Comparer *c, CompareCandidate **candidates, int n, RecordDetail *details)
{
	const char *args[COMPARE_MAX_ARGS];
	int			nargs = cutover_compare_lookup_args(c, candidates, n, args);
	HTAB	   *digests = cutover_compare_lookup_digests(c, candidates, n);
	const char *sql[2];
	CutoverRows *rows[2];
	Size		bytes = 0;

	for (int side = 0; side < 2; side++)
		sql[side] = cutover_compare_sql_lookup(c->table, side, true);
	memset(details, 0, n * sizeof(RecordDetail));
	for (int i = 0; i < n; i++)
		details[i].row[0] = details[i].row[1] = -1;
	cutover_compare_run_both(c, sql, nargs, args, rows);
	for (int side = 0; side < 2; side++)
		for (int i = 0; i < rows[side]->nrows; i++)
		{
			RecordDetail *detail = &details[cutover_compare_lookup_index(c, digests, rows[side], i)];

			cutover_compare_add_state(&detail->state[side], rows[side], i);
			detail->rows[side] = rows[side];
			detail->row[side] = i;
			for (int k = DETAIL_COLUMN; k < rows[side]->ncols; k++)
				bytes += CUTOVER_CELL(rows[side], i, k) ? strlen(CUTOVER_CELL(rows[side], i, k)) : 0;
		}
	return bytes;
}

/*
 * A row as JSON, column of new -> text; very long texts are cut, and say so.
 */
static char *
record_row_json(CompareTable *t, const RecordDetail *detail, int side)
{
	StringInfoData buf;

	if (detail->row[side] < 0)
		return NULL;
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < t->ncols; i++)
	{
		char	   *value = CUTOVER_CELL(detail->rows[side], detail->row[side], DETAIL_COLUMN + i);
		Size		len = value ? strlen(value) : 0;

		if (i > 0)
			appendStringInfoString(&buf, ", ");
		escape_json(&buf, t->cols[i].name);
		appendStringInfoString(&buf, ": ");
		if (len > SHOWN_BYTES)
			value = psprintf("%.*s ... (%zu bytes)", pg_mbcliplen(value, len, SHOWN_BYTES), value, len);
		if (value)
			escape_json(&buf, value);
		else
			appendStringInfoString(&buf, "null");
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * Columns whose texts differ, as text[]; tells whether any is another value.
 */
static char *
record_columns(CompareTable *t, const RecordDetail *detail, bool *same_values)
{
	char	  **names = palloc(Max(t->ncols, 1) * sizeof(char *));
	int			n = 0;

	*same_values = true;
	for (int i = 0; i < t->ncols; i++)
	{
		const char *a = CUTOVER_CELL(detail->rows[COMPARE_OLD], detail->row[COMPARE_OLD], DETAIL_COLUMN + i);
		const char *b = CUTOVER_CELL(detail->rows[COMPARE_NEW], detail->row[COMPARE_NEW], DETAIL_COLUMN + i);

		if (a == NULL ? b == NULL : b != NULL && strcmp(a, b) == 0)
			continue;
		names[n++] = t->cols[i].name;
		if (*same_values && !cutover_compare_same_value(&t->cols[i], a, b))
			*same_values = false;
	}
	return cutover_compare_array(names, n);
}

/*
 * Does the side that follows have a later version of the row?
 */
static bool
record_is_newer(Comparer *c, const RecordDetail *detail)
{
	CompareSide f = c->new_is_master ? COMPARE_OLD : COMPARE_NEW;
	const char *text[2];

	if (c->table->version == NULL)
		return false;
	for (int side = 0; side < 2; side++)
		text[side] = CUTOVER_CELL(detail->rows[side], detail->row[side], DETAIL_COLUMN + (c->table->version - c->table->cols));
	return cutover_compare_is_later(c->table->version, text[f], text[1 - f]);
}

/*
 * Write or refresh one difference.  Returns whether it counts: not if this run
 * and method has counted it before, nor if it was open already and is only looked at again.
 */
static bool
record_save(Comparer *c, RecordCounter *counter, const char *key, const char *kind, const char *columns,
			const char *old_row, const char *new_row, bool deferred, int64 copies)
{
	static SPIPlanPtr update = NULL;
	static SPIPlanPtr insert = NULL;
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID, TEXTOID, INT4OID};
	Datum		args[] = {Int32GetDatum(c->table->table_id), CStringGetTextDatum(key), CStringGetTextDatum(kind),
		columns ? CStringGetTextDatum(columns) : (Datum) 0, old_row ? CStringGetTextDatum(old_row) : (Datum) 0,
		new_row ? CStringGetTextDatum(new_row) : (Datum) 0, CStringGetTextDatum(deferred ? "deferred" : "confirmed"),
	Int64GetDatum(copies), Int64GetDatum(c->run), CStringGetTextDatum(c->known ? "known" : c->method), Int32GetDatum(c->target_id)};
	char		nulls[] = {' ', ' ', ' ', columns ? ' ' : 'n', old_row ? ' ' : 'n', new_row ? ' ' : 'n', ' ', ' ', ' ', ' ', ' '};

	if (update == NULL)
	{
		update = SPI_prepare("UPDATE cutover._divergence d SET kind = $3, columns = $4::text[], old_row = $5::jsonb, new_row = $6::jsonb,"
							 " state = $7, copies = $8, run = $9, method = $10, last_seen = pg_catalog.clock_timestamp(),"
							 " times_seen = d.times_seen + CASE WHEN o.run = $9 THEN 0 ELSE 1 END"
							 " FROM (SELECT divergence_id, run, method FROM cutover._divergence WHERE table_id = $1"
							 "  AND jsonb_hash_extended(key, 0) = jsonb_hash_extended($2::jsonb, 0)"
							 "  AND jsonb_hash_extended(key, 1) = jsonb_hash_extended($2::jsonb, 1) FOR UPDATE) o"
							 " WHERE d.divergence_id = o.divergence_id AND $11 IS NOT NULL RETURNING o.run IS NOT DISTINCT FROM $9 AND o.method = $10",
							 lengthof(types), types);
		insert = SPI_prepare("INSERT INTO cutover._divergence (target_id, table_id, key, kind, columns, old_row, new_row, state, copies, run, method)"
							 " VALUES ($11, $1, $2::jsonb, $3, $4::text[], $5::jsonb, $6::jsonb, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
							 lengthof(types), types);
		if (update == NULL || insert == NULL || SPI_keepplan(update) != 0 || SPI_keepplan(insert) != 0)
			elog(ERROR, "SPI error %d", SPI_result);
	}
	if (SPI_execute_plan(update, args, nulls, false, 0) < 0)
		elog(ERROR, "could not update a divergence");
	if (SPI_processed > 0)
		return !c->known && !cutover_local_int(0, 1);
	args[9] = CStringGetTextDatum(c->method);
	if (counter->open >= cutover_guc_max_divergences)
	{
		counter->counts->capped = true;
		return true;
	}
	if (SPI_execute_plan(insert, args, nulls, false, 0) < 0)
		elog(ERROR, "could not insert a divergence");
	counter->open += SPI_processed;
	return true;
}

/*
 * One confirmed difference.
 */
static void
record_one(Comparer *c, RecordCounter *counter, CompareCandidate *candidate, RecordDetail *detail)
{
	CompareCounts *counts = counter->counts;
	int			old_count = candidate->now[COMPARE_OLD].count;
	int			new_count = candidate->now[COMPARE_NEW].count;
	int64	   *count;
	const char *kind;
	char	   *columns = NULL;
	char	   *rows[2];
	bool		newer = false;

	for (int side = 0; side < 2; side++)
	{
		if (detail->state[side].count != candidate->now[side].count ||
			detail->state[side].versions != candidate->now[side].versions)
		{
			counts->deferred++; /* it moved on */
			return;
		}
		rows[side] = record_row_json(c->table, detail, side);
	}
	if (old_count > new_count)
	{
		kind = "missing";
		count = &counts->missing;
	}
	else if (new_count > old_count)
	{
		kind = "extra";
		count = &counts->extra;
	}
	else
	{
		bool		same_values;

		columns = record_columns(c->table, detail, &same_values);
		kind = same_values ? "representation" : "different";
		count = same_values ? &counts->representation : &counts->different;
		newer = record_is_newer(c, detail);
	}
	{
		int			side = detail->row[COMPARE_OLD] >= 0 ? COMPARE_OLD : COMPARE_NEW;
		int64		copies = Max(old_count > new_count ? old_count - new_count : new_count - old_count, 1);

		if (record_save(c, counter, CUTOVER_CELL(detail->rows[side], detail->row[side], 3), kind, columns,
						rows[COMPARE_OLD], rows[COMPARE_NEW], newer, copies))
			*(newer ? &counts->deferred : count) += copies;
	}
}

/*
 * Write down confirmed differences; adds to counts.
 */
void
cutover_compare_record(Comparer *c, CompareCandidate **confirmed, int n, CompareCounts *counts)
{
	RecordCounter counter = {.counts = counts};
	int			batch = DETAIL_FIRST;
	int			done = 0;

	while (done < n)
	{
		MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer record", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(mcxt);
		int			now = Min(batch, n - done);
		RecordDetail *details = palloc(now * sizeof(RecordDetail));
		Size		bytes = record_read(c, confirmed + done, now, details);
		Oid			types[] = {INT4OID};
		Datum		args[] = {Int32GetDatum(c->table->table_id)};

		CHECK_FOR_INTERRUPTS();
		cutover_compare_begin();
		/* one at a time: together they must not go beyond the limit */
		cutover_local_run("SELECT pg_catalog.pg_advisory_xact_lock('cutover._divergence'::pg_catalog.regclass::oid::int4, $1)",
						  1, types, args, NULL);
		cutover_local_run("SELECT pg_catalog.count(*) FROM cutover._divergence WHERE table_id = $1", 1, types, args, NULL);
		counter.open = cutover_local_int(0, 1);
		PushActiveSnapshot(GetTransactionSnapshot());
		for (int i = 0; i < now; i++)
			record_one(c, &counter, confirmed[done + i], &details[i]);
		PopActiveSnapshot();
		cutover_compare_commit();
		done += now;
		batch = (int) Max(1, Min(DETAIL_MAX, DETAIL_BYTES / Max(bytes / now, 1)));
		MemoryContextSwitchTo(old);
		MemoryContextDelete(mcxt);
	}
}

/*
 * A key as it stands in cutover._divergence.
 */
static char *
record_key_json(CompareTable *t, char **key)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int k = 0; k < t->nkeys; k++)
	{
		CompareColumn *col = t->keys[k].column;

		appendStringInfoString(&buf, k > 0 ? ", " : "{");
		escape_json(&buf, col->old_name ? col->old_name : col->name);
		appendStringInfoString(&buf, ": ");
		if (key[k])
			escape_json(&buf, key[k]);
		else
			appendStringInfoString(&buf, "null");
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * Keys that were found equal: what was open about them is closed.
 */
void
cutover_compare_close(Comparer *c, CompareCandidate **equal, int n)
{
	CompareTable *t = c->table;
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		args[] = {Int32GetDatum(t->table_id), (Datum) 0};
	char	  **keys;

	if (t->nkeys == 0 && equal[0]->json == NULL)
		return;					/* the end of a full pass closes them */
	cutover_compare_begin();
	if (cutover_local_run("SELECT 1 FROM cutover._divergence WHERE table_id = $1 LIMIT 1", 1, types, args, NULL) > 0)
	{
		keys = palloc(n * sizeof(char *));
		for (int i = 0; i < n; i++)
		{
			keys[i] = equal[i]->json ? equal[i]->json : record_key_json(t, equal[i]->key);
		}
		args[1] = CStringGetTextDatum(cutover_compare_array(keys, n));
		/* key by key, through the index: where there are many and statistics know of few, all would be compared with all */
		cutover_local_run("DELETE FROM cutover._divergence d WHERE d.divergence_id IN (SELECT x.divergence_id"
						  " FROM (SELECT jsonb_hash_extended(n::jsonb, 0) AS h0, jsonb_hash_extended(n::jsonb, 1) AS h1"
						  "  FROM pg_catalog.unnest($2::text[]) n OFFSET 0) k CROSS JOIN LATERAL (SELECT o.divergence_id"
						  "  FROM cutover._divergence o WHERE o.table_id = $1 AND jsonb_hash_extended(o.key, 0) = k.h0"
						  "  AND jsonb_hash_extended(o.key, 1) = k.h1 OFFSET 0) x)", 2, types, args, NULL);
	}
	cutover_compare_commit();
}
