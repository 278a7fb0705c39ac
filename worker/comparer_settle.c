/*
 * comparer_settle.c - is it a difference, or a change on its way?
 *
 * Runs in a comparer.  Both sides are written to all the time, so that a row
 * that looks different mostly is about to be equal.  M is the side that
 * is right (old, or new in new_only), F the one that follows.  Rounds:
 *
 *    M(1)   read the key on M, in a snapshot S(1)
 *    wait   until F has everything that S(1) saw
 *    F(1)   read the key on F
 *    M(2)   read the key on M again, in S(2) taken after F(1) ended
 *    wait, F(2), M(3) ...
 *
 * together with each row its physical version (table, place, transaction that wrote it).
 *
 * A row is there on M, and M(r) and M(r+1) saw the same versions: then it is
 * confirmed if F(r) differs.  Proof.  No transaction that S(r+1) sees changed
 * the key since S(r), since a change makes a new version, and one that was
 * undone by a later one makes another still.  At F(r), F had all that
 * S(r) saw.  It had nothing that S(r+1) does not see: whatever F has was
 * committed on M before, and S(r+1) was taken after.  So F(r) should have
 * been just the row that M has; nothing is on its way.
 *
 * No row on M, in M(r) and M(r+1), but one on F: there are no versions on M that could
 * tell, it may have come and gone in between.  Confirmed if F(r) and F(r+1) saw
 * the same versions.  Proof.  Say the row of F(r) came rightfully, by a transaction that S(r)
 * does not see.  M(r+1) found nothing, so the row was deleted by one that S(r+1) sees, and
 * F has that at F(r+1).  Had it been inserted once more after that, F would have another
 * version, since every write makes one.  (But where all columns are key, an
 * insert may find the very row and do nothing; such a key takes a round more,
 * and both reads of M at either end.)
 *
 * The proof does not look at the queue, at progress or at how changes are
 * applied, so it holds in both directions and whatever the mover does wrong.  What moves
 * on in every round is deferred: the next window, and the change log, have it again.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "comparer.h"

#define ROUNDS 5

/* keys that are looked up at once */
#define BATCH_KEYS 5000

/*
 * A physical version as a number that sums up in any order.
 */
static uint64
settle_version(const char *text)
{
	return DatumGetUInt64(hash_any_extended((const unsigned char *) text, strlen(text), 0));
}

typedef struct SettleDigest
{
	int64		digest;			/* hash key */
	int			index;
} SettleDigest;

/*
 * Number of each digest, for tables without a key.
 */
static HTAB *
settle_index_digests(CompareCandidate **candidates, int n)
{
	HASHCTL		ctl = {.keysize = sizeof(int64),.entrysize = sizeof(SettleDigest),.hcxt = CurrentMemoryContext};
	HTAB	   *result = hash_create("cutover comparer digests", n, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	for (int i = 0; i < n; i++)
	{
		int64		digest = strtoll(candidates[i]->key[0], NULL, 10);

		((SettleDigest *) hash_search(result, &digest, HASH_ENTER, NULL))->index = i;
	}
	return result;
}

/*
 * The arguments of a look-up; returns their number.
 */
int
cutover_compare_lookup_args(Comparer *c, CompareCandidate **candidates, int n, const char **args)
{
	int			ncols = Max(c->table->nkeys, 1);
	char	  **column = palloc(n * sizeof(char *));

	if (ncols > COMPARE_MAX_ARGS)
		elog(ERROR, "a key has too many columns");
	for (int k = 0; k < ncols; k++)
	{
		for (int i = 0; i < n; i++)
			column[i] = candidates[i]->key[k];
		args[k] = cutover_compare_array(column, n);
	}
	return ncols;
}

/*
 * Which candidate a row of a look-up belongs to.
 */
int
cutover_compare_lookup_index(Comparer *c, HTAB *digests, CutoverRows *rows, int row)
{
	int64		number = strtoll(CUTOVER_CELL(rows, row, 0), NULL, 10);

	if (c->table->nkeys > 0)
		return (int) number - 1;
	return ((SettleDigest *) hash_search(digests, &number, HASH_FIND, NULL))->index;
}

HTAB *
cutover_compare_lookup_digests(Comparer *c, CompareCandidate **candidates, int n)
{
	return c->table->nkeys > 0 ? NULL : settle_index_digests(candidates, n);
}

/*
 * Take a row of a look-up into the state of its key.
 */
void
cutover_compare_add_state(CompareState *state, CutoverRows *rows, int row)
{
	state->count++;
	state->hash += (uint64) strtoll(CUTOVER_CELL(rows, row, 1), NULL, 10);
	state->versions += settle_version(CUTOVER_CELL(rows, row, 2));
}

/*
 * Read candidates on one side.
 */
static void
settle_lookup(Comparer *c, CompareSide side, CompareCandidate **candidates, int n)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer look-up", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	const char *args[COMPARE_MAX_ARGS];
	int			nargs = cutover_compare_lookup_args(c, candidates, n, args);
	HTAB	   *digests = cutover_compare_lookup_digests(c, candidates, n);
	CutoverRows *rows = cutover_compare_run_table(c, side, cutover_compare_sql_lookup(c->table, side, false), nargs, args);

	for (int i = 0; i < n; i++)
		memset(&candidates[i]->now[side], 0, sizeof(CompareState));
	for (int i = 0; i < rows->nrows; i++)
		cutover_compare_add_state(&candidates[cutover_compare_lookup_index(c, digests, rows, i)]->now[side], rows, i);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

int
cutover_compare_keep_absent(Comparer *c, char ***keys, int n)
{
	CompareCandidate *candidates = palloc0(Max(n, 1) * sizeof(CompareCandidate));
	CompareCandidate **all = palloc(Max(n, 1) * sizeof(CompareCandidate *));
	int			left = 0;

	for (int i = 0; i < n; i++)
	{
		candidates[i].key = keys[i];
		all[i] = &candidates[i];
	}
	if (n > 0)
		settle_lookup(c, COMPARE_OLD, all, n);
	for (int i = 0; i < n; i++)
		if (candidates[i].now[COMPARE_OLD].count == 0)
			keys[left++] = keys[i];
	return left;
}

static bool
settle_same_rows(const CompareState *a, const CompareState *b)
{
	return a->count == b->count && a->hash == b->hash;
}

static bool
settle_same_versions(const CompareState *a, const CompareState *b)
{
	return a->count == b->count && a->versions == b->versions;
}

/*
 * M was just read again: what does that say of the round before?
 */
static void
settle_judge_master(Comparer *c, CompareCandidate *candidate)
{
	CompareSide m = c->new_is_master ? COMPARE_NEW : COMPARE_OLD;
	CompareSide f = 1 - m;

	if (candidate->rounds == 0 || !settle_same_versions(&candidate->state[m], &candidate->now[m]))
		return;
	if (candidate->now[m].count == 0)
		return;					/* F decides */
	if (!settle_same_rows(&candidate->state[m], &candidate->state[f]))
	{
		candidate->settled = candidate->confirmed = true;
		candidate->now[f] = candidate->state[f];
	}
}

/*
 * F was just read.
 */
static void
settle_judge_follower(Comparer *c, CompareCandidate *candidate)
{
	CompareSide m = c->new_is_master ? COMPARE_NEW : COMPARE_OLD;
	CompareSide f = 1 - m;

	if (settle_same_rows(&candidate->now[m], &candidate->now[f]))
	{
		candidate->settled = true;
		return;
	}
	if (candidate->rounds > 0 && candidate->now[m].count == 0 && candidate->state[m].count == 0 &&
		settle_same_versions(&candidate->state[f], &candidate->now[f]))
	{
		candidate->still++;
		if (candidate->still > (c->table->all_key ? 1 : 0))
			candidate->settled = candidate->confirmed = true;
	}
	else
		candidate->still = 0;
}

/*
 * The candidates that are still open, moved to the front; returns their number.
 */
static int
settle_open(CompareCandidate **open, int n)
{
	int			left = 0;

	for (int i = 0; i < n; i++)
	{
		if (!open[i]->settled)
			open[left++] = open[i];
	}
	return left;
}

/*
 * Go through the rounds with a batch of candidates; the first read of M is that of round 0.
 */
static void
settle_rounds(Comparer *c, CompareCandidate **candidates, int n)
{
	CompareSide m = c->new_is_master ? COMPARE_NEW : COMPARE_OLD;
	CompareCandidate **open = palloc(n * sizeof(CompareCandidate *));
	int			left = n;

	for (int i = 0; i < n; i++)
		open[i] = candidates[i];
	for (int round = 0; round < ROUNDS && left > 0; round++)
	{
		CHECK_FOR_INTERRUPTS();
		settle_lookup(c, m, open, left);
		for (int i = 0; i < left; i++)
			settle_judge_master(c, open[i]);
		left = settle_open(open, left);
		if (left == 0)
			break;
		cutover_compare_await_new(c);
		settle_lookup(c, 1 - m, open, left);
		for (int i = 0; i < left; i++)
		{
			settle_judge_follower(c, open[i]);
			memcpy(open[i]->state, open[i]->now, sizeof(open[i]->state));
			open[i]->rounds++;
		}
		left = settle_open(open, left);
	}
	pfree(open);
}

/*
 * One batch.
 */
static void
settle_batch(Comparer *c, char ***keys, char **jsons, int n, CompareCounts *counts)
{
	CompareCandidate *candidates = palloc(n * sizeof(CompareCandidate));
	CompareCandidate **all = palloc(n * sizeof(CompareCandidate *));
	CompareCandidate **confirmed = palloc(n * sizeof(CompareCandidate *));
	int			nconfirmed = 0;
	int			nequal = 0;

	/* if the sides switch in between, the proof is of no use: begin again */
	do
	{
		memset(candidates, 0, n * sizeof(CompareCandidate));
		for (int i = 0; i < n; i++)
		{
			candidates[i].key = keys[i];
			candidates[i].json = jsons ? jsons[i] : NULL;
			all[i] = &candidates[i];
		}
		settle_rounds(c, all, n);
	} while (!cutover_compare_same_epoch(c));
	for (int i = 0; i < n; i++)
	{
		if (!candidates[i].settled)
			counts->deferred++;
		else if (candidates[i].confirmed)
			confirmed[nconfirmed++] = &candidates[i];
		else
			all[nequal++] = &candidates[i];
	}
	if (nequal > 0)
		cutover_compare_close(c, all, nequal);
	if (nconfirmed > 0)
		cutover_compare_record(c, confirmed, nconfirmed, counts);
}

/*
 * Settle keys that look different; adds to counts.
 */
void
cutover_compare_settle(Comparer *c, char ***keys, char **jsons, int n, CompareCounts *counts)
{
	for (int done = 0; done < n; done += BATCH_KEYS)
	{
		MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer settle", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		cutover_compare_check_run(c);
		settle_batch(c, keys + done, jsons ? jsons + done : NULL, Min(BATCH_KEYS, n - done), counts);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(mcxt);
	}
}
