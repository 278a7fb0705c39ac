/*
 * comparer_diff.c - the rows of a scope: first number and sum of digests on both
 * sides; where these differ, each row's digest, in parts that fit into memory.
 *
 * Runs in a comparer.  What looks different here may just be on its way to
 * new, or have changed between the two reads: only comparer_settle.c decides.
 *
 * Equal sums mean equal rows: each digest has 64 bits and is no linear function of
 * the row, so values that swapped places change the sum, and rows that come
 * twice change the number.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "comparer.h"

/* rows of one side that are held in memory at once */
#define PART_ROWS 20000

/* A key met on old, and what is left of it after new's rows were taken off. */
typedef struct DiffEntry
{
	char	  **key;			/* hash key: nkeys texts, or the digest */
	int			nkeys;
	uint64		hash;			/* sum of digests: old's less new's */
	int64		count;			/* rows: old's less new's */
} DiffEntry;

static uint32
diff_hash_key(const void *key, Size keysize)
{
	const DiffEntry *entry = key;
	uint32		hash = 0;

	for (int k = 0; k < entry->nkeys; k++)
		hash = hash_combine(hash, entry->key[k] ? string_hash(entry->key[k], strlen(entry->key[k]) + 1) : 1);
	return hash;
}

static int
diff_match_key(const void *a, const void *b, Size keysize)
{
	const DiffEntry *x = a;
	const DiffEntry *y = b;

	for (int k = 0; k < x->nkeys; k++)
	{
		if ((x->key[k] == NULL) != (y->key[k] == NULL) || (x->key[k] && strcmp(x->key[k], y->key[k]) != 0))
			return 1;
	}
	return 0;
}

/*
 * The hash is over the fields from key on: keep what dynahash copies simple.
 */
static void *
diff_copy_key(void *dest, const void *src, Size keysize)
{
	((DiffEntry *) dest)->key = ((const DiffEntry *) src)->key;
	((DiffEntry *) dest)->nkeys = ((const DiffEntry *) src)->nkeys;
	return dest;
}

/*
 * Add the rows of one side, with their sign.
 */
static void
diff_add_rows(HTAB *table, CompareTable *t, CutoverRows *rows, int sign)
{
	for (int i = 0; i < rows->nrows; i++)
	{
		DiffEntry	probe = {.nkeys = Max(t->nkeys, 1)};
		uint64		digest = (uint64) strtoll(CUTOVER_CELL(rows, i, 0), NULL, 10);
		int64		count = t->nkeys > 0 ? 1 : strtoll(CUTOVER_CELL(rows, i, 1), NULL, 10);
		DiffEntry  *entry;
		bool		found;

		probe.key = t->nkeys > 0 ? &CUTOVER_CELL(rows, i, 1) : &CUTOVER_CELL(rows, i, 0);
		entry = hash_search(table, &probe, HASH_ENTER, &found);
		if (!found)
			entry->hash = entry->count = 0;
		entry->hash += (uint64) sign * digest * (uint64) count;
		entry->count += sign * count;
	}
}

/*
 * Find the rows of a scope that look different, and have them settled.
 */
static void
diff_rows(Comparer *c, const CompareScope *scope, CompareCounts *counts)
{
	HASHCTL		ctl = {.keysize = offsetof(DiffEntry, hash),.entrysize = sizeof(DiffEntry),.hcxt = CurrentMemoryContext,
		.hash = diff_hash_key,.match = diff_match_key,.keycopy = diff_copy_key};
	HTAB	   *table = hash_create("cutover comparer rows", 1024, &ctl,
									HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_KEYCOPY | HASH_CONTEXT);
	CompareTable *t = c->table;
	const char *sql[2];
	const char *args[COMPARE_MAX_ARGS];
	CutoverRows *rows[2];
	HASH_SEQ_STATUS status;
	DiffEntry  *entry;
	char	 ***keys;
	int			n = 0;

	for (int side = 0; side < 2; side++)
		sql[side] = cutover_compare_sql_rows(t, side, scope);
	cutover_compare_run_both(c, sql, cutover_compare_scope_args(scope, args), args, rows);
	diff_add_rows(table, t, rows[COMPARE_OLD], 1);
	diff_add_rows(table, t, rows[COMPARE_NEW], -1);
	keys = palloc(Max(hash_get_num_entries(table), 1) * sizeof(char **));
	hash_seq_init(&status, table);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (entry->hash != 0 || entry->count != 0)
			keys[n++] = entry->key;
	if (n > 0)
		cutover_compare_settle(c, keys, NULL, n, counts);
	hash_destroy(table);
}

/*
 * Smallest power of two with which parts have at most PART_ROWS rows.
 */
static int64
diff_parts(int64 rows)
{
	int64		parts = 1;

	while (parts * PART_ROWS < rows)
		parts *= 2;
	return parts;
}

/*
 * Number and sum of digests of a scope on both sides; returns whether they are equal.
 */
static bool
diff_digests_equal(Comparer *c, const CompareScope *scope, int64 rows[2])
{
	const char *sql[2];
	const char *args[COMPARE_MAX_ARGS];
	CutoverRows *result[2];
	const char *sums[2];

	for (int side = 0; side < 2; side++)
		sql[side] = cutover_compare_sql_digest(c->table, side, scope);
	cutover_compare_run_both(c, sql, cutover_compare_scope_args(scope, args), args, result);
	for (int side = 0; side < 2; side++)
	{
		rows[side] = strtoll(CUTOVER_CELL(result[side], 0, 0), NULL, 10);
		sums[side] = CUTOVER_CELL(result[side], 0, 1);
	}
	return rows[0] == rows[1] && (rows[0] == 0 || strcmp(sums[0], sums[1]) == 0);
}

/*
 * Compare the rows of a scope; adds to counts.
 */
void
cutover_compare_scope(Comparer *c, const CompareScope *scope, CompareCounts *counts)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer scope", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	int64		rows[2];
	int64		parts;
	bool		equal = diff_digests_equal(c, scope, rows);

	counts->rows += rows[c->new_is_master ? COMPARE_NEW : COMPARE_OLD];
	/* parts are told apart by bits of the hash that the scope leaves free */
	parts = equal ? 0 : diff_parts(Max(rows[0], rows[1]));
	for (int64 part = 0; part < parts; part++)
	{
		MemoryContext inner = AllocSetContextCreate(mcxt, "cutover comparer part", ALLOCSET_DEFAULT_SIZES);
		CompareScope narrow = *scope;

		CHECK_FOR_INTERRUPTS();
		cutover_compare_check_run(c);
		MemoryContextSwitchTo(inner);
		if (parts > 1)
		{
			narrow.mask = (scope->mask + 1) * parts - 1;
			narrow.value = scope->value + part * (scope->mask + 1);
		}
		diff_rows(c, &narrow, counts);
		MemoryContextSwitchTo(mcxt);
		MemoryContextDelete(inner);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}
