/*
 * shadow_suspect.c - a difference counts only if it stands at a common position.
 *
 * Results that differ are no news while new lags.  So the statement is run
 * again on old, then on new once that has everything old had, then on old once
 * more: if old gave the same both times and new something else, twice in a
 * row, it is a mismatch.  Rows that change all the time never come to rest;
 * such a statement is given up and counted as unsettled.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "shadow_worker.h"

#define SUSPECT_MAX 64
#define SUSPECT_TRIES 10
#define SUSPECT_CONFIRMATIONS 2
#define SUSPECT_LIMIT_MS 60000

typedef struct Suspect
{
	dlist_node	node;
	MemoryContext context;
	CutoverShadowEntry *entry;
	uint64		queryid;
	CutoverShadowSum old_sum;	/* as last seen */
	uint64		ticket;			/* served when new has what old_sum was made of */
	TimestampTz since;
	int			tries;
	int			confirmations;
} Suspect;

static dlist_head suspects = DLIST_STATIC_INIT(suspects);
static int	nsuspects = 0;

/*
 * A ticket for everything that is committed now.
 */
static uint64
suspect_ticket(CutoverSlot *slot)
{
	uint64		ticket = pg_atomic_add_fetch_u64(&slot->wanted, 1);

	cutover_shmem_wake(slot);
	return ticket;
}

static void
suspect_forget(Suspect *suspect)
{
	dlist_delete(&suspect->node);
	nsuspects--;
	MemoryContextDelete(suspect->context);
}

void
cutover_shadow_suspect_add(CutoverSlot *slot, CutoverShadowQuery *q, const CutoverShadowEntry *entry)
{
	MemoryContext context;
	Suspect    *suspect;
	CutoverShadowSum sum;

	if (nsuspects >= SUSPECT_MAX || !cutover_shadow_run_on_old(q, entry, &sum, NULL))
	{
		cutover_shadow_stats_unsettled(q->queryid);
		return;
	}
	context = AllocSetContextCreate(TopMemoryContext, "cutover shadow suspect", ALLOCSET_SMALL_SIZES);
	suspect = MemoryContextAllocZero(context, sizeof(Suspect));
	suspect->context = context;
	suspect->entry = MemoryContextAlloc(context, CUTOVER_SHADOW_ENTRY_SIZE(entry));
	memcpy(suspect->entry, entry, CUTOVER_SHADOW_ENTRY_SIZE(entry));
	suspect->queryid = q->queryid;
	suspect->old_sum = sum;
	suspect->ticket = suspect_ticket(slot);
	suspect->since = GetCurrentTimestamp();
	dlist_push_tail(&suspects, &suspect->node);
	nsuspects++;
}

/*
 * New has what old had: look again.  True if the matter is settled, or given up.
 */
static bool
suspect_look(CutoverSlot *slot, Suspect *suspect, CutoverShadowQuery *q)
{
	bool		last = suspect->confirmations + 1 >= SUSPECT_CONFIRMATIONS;
	CutoverShadowRows old_rows = {0};
	CutoverShadowRows new_rows = {0};
	CutoverShadowSum new_sum;
	CutoverShadowSum old_sum;

	cutover_shadow_run_on_new(q, suspect->entry, &new_sum, last ? &new_rows : NULL);
	if (cutover_shadow_same(q, &new_sum, &suspect->old_sum))
		return true;
	if (!cutover_shadow_run_on_old(q, suspect->entry, &old_sum, last ? &old_rows : NULL) || ++suspect->tries > SUSPECT_TRIES)
	{
		cutover_shadow_stats_unsettled(q->queryid);
		return true;
	}
	if (!cutover_shadow_same(q, &old_sum, &suspect->old_sum))
		suspect->confirmations = 0;
	else if (cutover_shadow_query_is_stale())
		suspect->confirmations = 0; /* a table may no longer be synced */
	else if (++suspect->confirmations >= SUSPECT_CONFIRMATIONS)
	{
		cutover_shadow_stats_mismatch(q, suspect->entry, &old_rows, &new_rows);
		return true;
	}
	suspect->old_sum = old_sum;
	suspect->ticket = suspect_ticket(slot);
	return false;
}

bool
cutover_shadow_suspect_any(void)
{
	return nsuspects > 0;
}

void
cutover_shadow_suspect_end(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &suspects)
	{
		Suspect    *suspect = dlist_container(Suspect, node, iter.cur);

		cutover_shadow_stats_unsettled(suspect->queryid);
		suspect_forget(suspect);
	}
}

/*
 * Look at one of those that are due.
 */
bool
cutover_shadow_suspect_step(CutoverSlot *slot)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &suspects)
	{
		Suspect    *suspect = dlist_container(Suspect, node, iter.cur);
		CutoverShadowQuery *q;
		bool		served = pg_atomic_read_u64(&slot->applied) >= suspect->ticket;

		if (!served && !TimestampDifferenceExceeds(suspect->since, GetCurrentTimestamp(), SUSPECT_LIMIT_MS))
			continue;
		q = cutover_shadow_query_find(suspect->entry);
		if (q->skip != CUTOVER_SHADOW_TAKEN)
		{
			/* a table is no longer synced, or no more what it was */
			cutover_shadow_stats_skip(q->skip);
			suspect_forget(suspect);
		}
		else if (!served)
		{
			cutover_shadow_stats_unsettled(q->queryid);
			suspect_forget(suspect);
		}
		else
		{
			volatile bool done = true;

			PG_TRY();
			{
				done = suspect_look(slot, suspect, q);
			}
			PG_FINALLY();
			{
				/* an error of new is counted where it is caught, and ends the matter */
				if (done)
					suspect_forget(suspect);
			}
			PG_END_TRY();
		}
		return true;
	}
	return false;
}
