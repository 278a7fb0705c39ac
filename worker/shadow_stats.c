/*
 * shadow_stats.c - what came of shadow reads, by query id.
 *
 * Counted in the worker's memory and added to cutover._shadow_read from time
 * to time, so that several workers may count one query.  Latencies are kept as
 * histograms of four buckets for each doubling: good for percentiles within a tenth.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "local.h"
#include "shadow_worker.h"

#define STATS_OCTAVES 28
#define STATS_BUCKETS (STATS_OCTAVES * 4)
#define STATS_MAX_QUERIES 1000	/* in the table; the rest is counted together, as query 0 */
#define STATS_MAX_TEXTS 4096
#define STATS_SAMPLE_ROWS 5
#define STATS_SAMPLE_TEXT 200

/* What has been counted and not yet written. */
typedef struct ShadowStat
{
	uint64		queryid;		/* hash key */
	char	   *query;			/* NULL = not known */
	CutoverShadowCompare compare;
	bool		dirty;
	uint64		calls;
	uint64		mismatches;
	uint64		errors;
	uint64		timeouts;
	uint64		dropped;
	uint64		unsettled;
	uint32		old_hist[STATS_BUCKETS];
	uint32		new_hist[STATS_BUCKETS];
	char		sqlstate[6];	/* of the last error; empty = none since the last time */
	char	   *message;
	int			nrelids;
	Oid		   *relids;
} ShadowStat;

/* Which query a text is; for samples that were dropped. */
typedef struct ShadowText
{
	uint64		text_hash;		/* hash key */
	uint64		queryid;
} ShadowText;

static int32 stats_target = 0;
static HTAB *stats = NULL;
static HTAB *texts = NULL;
static uint64 skipped[CUTOVER_SHADOW_SKIPS];
static MemoryContext stats_context = NULL;
static bool stats_dirty = false;

void
cutover_shadow_stats_init(int32 target_id)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(ShadowStat)};

	stats_target = target_id;
	stats_context = AllocSetContextCreate(TopMemoryContext, "cutover shadow statistics", ALLOCSET_DEFAULT_SIZES);
	stats = hash_create("cutover shadow statistics", 256, &ctl, HASH_ELEM | HASH_BLOBS);
	ctl.entrysize = sizeof(ShadowText);
	texts = hash_create("cutover shadow texts", 256, &ctl, HASH_ELEM | HASH_BLOBS);
}

/*
 * The entry of a query id, made if need be; about to be changed.
 */
static ShadowStat *
stats_find(uint64 queryid)
{
	bool		found;
	ShadowStat *stat = hash_search(stats, &queryid, HASH_ENTER, &found);

	if (!found)
	{
		memset(stat, 0, sizeof(*stat));
		stat->queryid = queryid;
	}
	stat->dirty = stats_dirty = true;
	return stat;
}

static ShadowStat *
stats_of(const CutoverShadowQuery *q)
{
	ShadowStat *stat = stats_find(q->queryid);

	if (stat->query == NULL && q->text != NULL)
	{
		stat->query = MemoryContextStrdup(stats_context, q->text);
		stat->compare = q->compare;
		stat->nrelids = q->nrelids;
		stat->relids = MemoryContextAlloc(stats_context, sizeof(Oid) * Max(q->nrelids, 1));
		memcpy(stat->relids, q->relids, sizeof(Oid) * q->nrelids);
	}
	return stat;
}

/*
 * Remember which query a text is.
 */
static void
stats_note_text(uint64 text_hash, uint64 queryid)
{
	ShadowText *text;
	HASH_SEQ_STATUS seq;

	if (hash_get_num_entries(texts) >= STATS_MAX_TEXTS)
	{
		hash_seq_init(&seq, texts);
		while ((text = hash_seq_search(&seq)) != NULL)
			hash_search(texts, &text->text_hash, HASH_REMOVE, NULL);
	}
	text = hash_search(texts, &text_hash, HASH_ENTER, NULL);
	text->queryid = queryid;
}

/*
 * The bucket of a time.
 */
static int
stats_bucket(int64 us)
{
	int			octave;

	if (us < 1)
		return 0;
	octave = pg_leftmost_one_pos64(us);
	if (octave >= STATS_OCTAVES)
		return STATS_BUCKETS - 1;
	return octave * 4 + (octave >= 2 ? (us >> (octave - 2)) & 3 : (us << (2 - octave)) & 3);
}

void
cutover_shadow_stats_call(const CutoverShadowQuery *q, uint64 text_hash, int64 old_us, int64 new_us)
{
	ShadowStat *stat = stats_of(q);

	stats_note_text(text_hash, q->queryid);
	stat->calls++;
	stat->old_hist[stats_bucket(old_us)]++;
	stat->new_hist[stats_bucket(new_us)]++;
}

void
cutover_shadow_stats_error(const CutoverShadowQuery *q, uint64 text_hash, int64 old_us, int64 new_us, bool timeout,
						   int sqlerrcode, const char *message)
{
	ShadowStat *stat = stats_of(q);

	stats_note_text(text_hash, q->queryid);
	stat->calls++;
	stat->old_hist[stats_bucket(old_us)]++;
	if (timeout)
	{
		/* it took at least so long */
		stat->timeouts++;
		stat->new_hist[stats_bucket(new_us)]++;
		return;
	}
	stat->errors++;
	strlcpy(stat->sqlstate, unpack_sql_state(sqlerrcode), sizeof(stat->sqlstate));
	if (stat->message)
		pfree(stat->message);
	stat->message = MemoryContextStrdup(stats_context, message);
}

void
cutover_shadow_stats_unsettled(uint64 queryid)
{
	stats_find(queryid)->unsettled++;
}

void
cutover_shadow_stats_dropped(uint64 n)
{
	if (n > 0)
		stats_find(0)->dropped += n;
}

void
cutover_shadow_stats_skip(CutoverShadowSkip why)
{
	skipped[why]++;
	stats_dirty = true;
}

/* ---- samples ---- */

/*
 * A value as JSON, shortened.
 */
static void
sample_value(StringInfo out, const char *value)
{
	if (value == NULL)
		appendStringInfoString(out, "null");
	else if (strlen(value) <= STATS_SAMPLE_TEXT)
		escape_json(out, value);
	else
	{
		char	   *part = pnstrdup(value, pg_mbcliplen(value, strlen(value), STATS_SAMPLE_TEXT));

		escape_json(out, psprintf("%s...", part));
	}
}

static void
sample_row(StringInfo out, const CutoverShadowQuery *q, char **row)
{
	appendStringInfoChar(out, '{');
	for (int i = 0; i < q->natts; i++)
	{
		appendStringInfoString(out, i ? ", " : "");
		escape_json(out, q->names[i]);
		appendStringInfoString(out, ": ");
		sample_value(out, row[i]);
	}
	appendStringInfoChar(out, '}');
}

/*
 * Are two rows the same, but for what may differ?
 */
static bool
sample_rows_equal(const CutoverShadowQuery *q, char **a, char **b)
{
	for (int i = 0; i < q->natts; i++)
	{
		if (q->output[i].form == CUTOVER_SHADOW_IGNORED)
			continue;
		if ((a[i] == NULL) != (b[i] == NULL) || (a[i] != NULL && strcmp(a[i], b[i]) != 0))
			return false;
	}
	return true;
}

/*
 * The first rows of a that b has not, each counted as often as it comes.
 */
static void
sample_difference(StringInfo out, const CutoverShadowQuery *q, const CutoverShadowRows *a, const CutoverShadowRows *b)
{
	bool	   *taken = palloc0(Max(b->nrows, 1));
	int			n = 0;
	int			from = 0;

	appendStringInfoChar(out, '[');
	for (int i = 0; i < a->nrows && n < STATS_SAMPLE_ROWS; i++)
	{
		int			k;

		CHECK_FOR_INTERRUPTS();
		while (from < b->nrows && taken[from])
			from++;
		for (k = from; k < b->nrows && (taken[k] || !sample_rows_equal(q, a->values[i], b->values[k])); k++)
			;
		if (k < b->nrows)
			taken[k] = true;
		else
		{
			appendStringInfoString(out, n++ ? ", " : "");
			sample_row(out, q, a->values[i]);
		}
	}
	appendStringInfoChar(out, ']');
}

/*
 * A few rows that differ.
 */
static char *
sample_make(const CutoverShadowQuery *q, const CutoverShadowRows *old_rows, const CutoverShadowRows *new_rows)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoString(&out, "{\"only_on_old\": ");
	sample_difference(&out, q, old_rows, new_rows);
	appendStringInfoString(&out, ", \"only_on_new\": ");
	sample_difference(&out, q, new_rows, old_rows);
	if (q->compare == CUTOVER_SHADOW_LIST)
		for (int i = 0; i < Min(old_rows->nrows, new_rows->nrows); i++)
			if (!sample_rows_equal(q, old_rows->values[i], new_rows->values[i]))
			{
				appendStringInfo(&out, ", \"first_different_row\": %d", i + 1);
				break;
			}
	appendStringInfoChar(&out, '}');
	return out.data;
}

/*
 * The session's parameters as a JSON array of texts.
 */
static char *
sample_params(const CutoverShadowEntry *entry)
{
	Oid		   *types = palloc(sizeof(Oid) * Max(entry->nparams, 1));
	const char **values = palloc(sizeof(char *) * Max(entry->nparams, 1));
	StringInfoData out;

	cutover_shadow_entry_params(entry, types, values);
	initStringInfo(&out);
	appendStringInfoChar(&out, '[');
	for (int i = 0; i < entry->nparams; i++)
	{
		appendStringInfoString(&out, i ? ", " : "");
		sample_value(&out, values[i]);
	}
	appendStringInfoChar(&out, ']');
	return out.data;
}

/*
 * Relations as an array literal.
 */
static char *
stats_relids(int n, const Oid *relids)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoChar(&out, '{');
	for (int i = 0; i < n; i++)
		appendStringInfo(&out, "%s%u", i ? "," : "", relids[i]);
	appendStringInfoChar(&out, '}');
	return out.data;
}

void
cutover_shadow_stats_mismatch(const CutoverShadowQuery *q, const CutoverShadowEntry *entry,
							  const CutoverShadowRows *old_rows, const CutoverShadowRows *new_rows)
{
	Oid			types[8] = {INT4OID, INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID, TEXTOID, TEXTOID};
	Datum		args[8] = {Int32GetDatum(stats_target), Int64GetDatum((int64) q->queryid), CStringGetTextDatum(entry->data),
		CStringGetTextDatum(sample_params(entry)), Int64GetDatum(old_rows->nrows), Int64GetDatum(new_rows->nrows),
	CStringGetTextDatum(sample_make(q, old_rows, new_rows)), CStringGetTextDatum(stats_relids(q->nrelids, q->relids))};
	MemoryContext caller = CurrentMemoryContext;

	stats_of(q)->mismatches++;
	cutover_local_begin();
	cutover_local_run("SELECT cutover._shadow_sample($1, $2, $3, $4::jsonb, $5, $6, $7::jsonb, $8::oid[])", 8, types, args, NULL);
	cutover_local_commit(false);
	MemoryContextSwitchTo(caller);
}

/* ---- writing ---- */

/*
 * Samples that found the ring full.
 */
static void
stats_harvest(CutoverSlot *slot, CutoverShadowRing *ring)
{
	uint64		others = pg_atomic_exchange_u64(&slot->shadow_lost, 0) + pg_atomic_exchange_u64(&ring->dropped_others, 0);

	for (int i = 0; i < CUTOVER_SHADOW_DROPPED; i++)
	{
		CutoverShadowDropped *place = &ring->dropped[i];
		uint64		text_hash = pg_atomic_read_u64(&place->text_hash);
		uint64		n = text_hash == 0 ? 0 : pg_atomic_exchange_u64(&place->n, 0);
		ShadowText *text;

		if (n == 0)
		{
			/* nobody needs the place now */
			if (text_hash != 0)
				pg_atomic_write_u64(&place->text_hash, 0);
			continue;
		}
		text = hash_search(texts, &text_hash, HASH_FIND, NULL);
		if (text == NULL)
			others += n;
		else
			stats_find(text->queryid)->dropped += n;
	}
	cutover_shadow_stats_dropped(others);
	for (int i = 0; i < CUTOVER_SHADOW_SKIPS; i++)
	{
		uint64		n = pg_atomic_exchange_u64(&ring->skipped[i], 0);

		skipped[i] += n;
		stats_dirty |= n > 0;
	}
}

static int
stats_compare(const void *a, const void *b)
{
	uint64		x = (*(ShadowStat *const *) a)->queryid;
	uint64		y = (*(ShadowStat *const *) b)->queryid;

	return x < y ? -1 : x > y;
}

static char *
stats_histogram(const uint32 *hist)
{
	StringInfoData out;

	initStringInfo(&out);
	for (int i = 0; i < STATS_BUCKETS; i++)
		appendStringInfo(&out, "%c%u", i ? ',' : '{', hist[i]);
	appendStringInfoChar(&out, '}');
	return out.data;
}

/*
 * Add one query's counts to its row.
 */
static void
stats_write_one(ShadowStat *stat)
{
	static const char *const compares[] = {"count", "rows", "order"};
	Oid			types[15] = {INT4OID, INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	char		nulls[15];
	Datum		args[15] = {Int32GetDatum(stats_target), Int64GetDatum((int64) stat->queryid),
		stat->query ? CStringGetTextDatum(stat->query) : (Datum) 0,
		stat->query ? CStringGetTextDatum(compares[stat->compare]) : (Datum) 0,
		Int64GetDatum(stat->calls), Int64GetDatum(stat->mismatches), Int64GetDatum(stat->errors),
		Int64GetDatum(stat->timeouts), Int64GetDatum(stat->dropped), Int64GetDatum(stat->unsettled),
		CStringGetTextDatum(stats_histogram(stat->old_hist)), CStringGetTextDatum(stats_histogram(stat->new_hist)),
		stat->message ? CStringGetTextDatum(stat->sqlstate) : (Datum) 0,
		stat->message ? CStringGetTextDatum(stat->message) : (Datum) 0,
	CStringGetTextDatum(stats_relids(stat->nrelids, stat->relids))};

	memset(nulls, ' ', sizeof(nulls));
	nulls[2] = nulls[3] = stat->query ? ' ' : 'n';
	nulls[12] = nulls[13] = stat->message ? ' ' : 'n';
	cutover_local_run("SELECT cutover._shadow_add($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,"
					  " $11::bigint[], $12::bigint[], $13, $14, $15::oid[])", 15, types, args, nulls);
}

/*
 * Forget counts that are written.
 */
static void
stats_clear(ShadowStat *stat)
{
	stat->dirty = false;
	stat->calls = stat->mismatches = stat->errors = stat->timeouts = stat->dropped = stat->unsettled = 0;
	memset(stat->old_hist, 0, sizeof(stat->old_hist));
	memset(stat->new_hist, 0, sizeof(stat->new_hist));
	if (stat->message)
		pfree(stat->message);
	stat->message = NULL;
}

/*
 * Forget queries once there are too many: their counts are in the table.
 */
static void
stats_make_room(void)
{
	HASH_SEQ_STATUS seq;
	ShadowStat *stat;

	if (hash_get_num_entries(stats) <= 2 * STATS_MAX_QUERIES)
		return;
	hash_seq_init(&seq, stats);
	while ((stat = hash_seq_search(&seq)) != NULL)
		hash_search(stats, &stat->queryid, HASH_REMOVE, NULL);
	MemoryContextReset(stats_context);
}

void
cutover_shadow_stats_write(CutoverSlot *slot, CutoverShadowRing *ring)
{
	MemoryContext caller = CurrentMemoryContext;
	HASH_SEQ_STATUS seq;
	ShadowStat *stat;
	ShadowStat **dirty;
	int			n = 0;

	stats_harvest(slot, ring);
	if (!stats_dirty)
		return;
	dirty = palloc(sizeof(ShadowStat *) * Max(hash_get_num_entries(stats), 1));
	hash_seq_init(&seq, stats);
	while ((stat = hash_seq_search(&seq)) != NULL)
		if (stat->dirty)
			dirty[n++] = stat;
	/* in one order in all workers: they meet in the same rows */
	qsort(dirty, n, sizeof(ShadowStat *), stats_compare);
	cutover_local_begin();
	for (int i = 0; i < n; i++)
		stats_write_one(dirty[i]);
	for (int i = 0; i < CUTOVER_SHADOW_SKIPS; i++)
		if (skipped[i] > 0)
		{
			Oid			types[3] = {INT4OID, TEXTOID, INT8OID};
			Datum		args[3] = {Int32GetDatum(stats_target), CStringGetTextDatum(cutover_shadow_skip_name(i)), Int64GetDatum(skipped[i])};

			cutover_local_run("INSERT INTO cutover._shadow_skipped AS s (target_id, reason, statements)"
							  " SELECT $1, $2, $3 WHERE EXISTS (SELECT FROM cutover._target t WHERE t.target_id = $1)"
							  " ON CONFLICT (target_id, reason) DO UPDATE SET statements = s.statements + excluded.statements",
							  3, types, args, NULL);
		}
	cutover_local_commit(false);
	MemoryContextSwitchTo(caller);
	for (int i = 0; i < n; i++)
		stats_clear(dirty[i]);
	memset(skipped, 0, sizeof(skipped));
	stats_dirty = false;
	stats_make_room();
}
