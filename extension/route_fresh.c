/*
 * route_fresh.c - no lost update by transactions that read from new in one snapshot.
 *
 * Under REPEATABLE READ a transaction may rely on this: a row that it has read
 * and then changes was not changed by others in between, else it fails.  Old
 * sees to that for its own snapshot.  What was read on new may be older by the lag; so new is asked
 * which changes of old its snapshot has, and a version of a row that is not among them can't be replaced.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/subtrans.h"
#include "access/transam.h"
#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "route_fresh.h"

bool		cutover_route_reads_stale = false;

/* What new had of old when the transaction began to read there. */
typedef struct FreshSnapshot
{
	int32		target_id;
	uint64		xmin;			/* all before are there */
	uint64		xmax;			/* none from here on is */
	int			n;
	uint64	   *missing;		/* between the two: these aren't */
} FreshSnapshot;

static List *snapshots = NIL;	/* of this transaction, in its memory */

/*
 * Forget them with the transaction.
 */
static void
fresh_xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		cutover_route_reads_stale = false;
		snapshots = NIL;
	}
}

void
cutover_route_init_fresh(void)
{
	RegisterXactCallback(fresh_xact_callback, NULL);
}

/*
 * Remember a snapshot in the text form of pg_snapshot: xmin:xmax:xip,...
 */
void
cutover_route_note_snapshot(int32 target_id, const char *snapshot)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	FreshSnapshot *fresh = palloc0(sizeof(FreshSnapshot));
	char	   *next;

	fresh->target_id = target_id;
	fresh->xmin = strtou64(snapshot, &next, 10);
	if (*next == ':')
		fresh->xmax = strtou64(next + 1, &next, 10);
	if (*next != ':' || fresh->xmax == 0)
		elog(ERROR, "not a snapshot: %s", snapshot);
	fresh->missing = palloc(sizeof(uint64) * (strlen(next) / 2 + 1));
	while (*next && next[1])
		fresh->missing[fresh->n++] = strtou64(next + 1, &next, 10);
	snapshots = lappend(snapshots, fresh);
	cutover_route_reads_stale = true;
	MemoryContextSwitchTo(old);
}

/*
 * The whole number of a transaction that is not in the future.
 */
static uint64
fresh_full_xid(TransactionId xid)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return ((uint64) epoch << 32) | xid;
}

/*
 * Did new have what this transaction wrote?  Snapshots know of whole
 * transactions only; where a part can't be told from one any more, the answer is no.
 */
static bool
fresh_has(const FreshSnapshot *fresh, TransactionId xid)
{
	uint64		full = fresh_full_xid(xid);

	if (full < fresh->xmin)
		return true;
	if (full >= fresh->xmax || fresh->n > 0)
	{
		if (!TransactionIdFollowsOrEquals(xid, TransactionXmin))
			return false;
		full = fresh_full_xid(SubTransGetTopmostTransaction(xid));
		if (full >= fresh->xmax)
			return false;
	}
	for (int i = 0; i < fresh->n; i++)
		if (fresh->missing[i] == full)
			return false;
	return true;
}

/*
 * Check a version of a row that is being replaced.
 */
void
cutover_route_check_fresh(int32 target_id, HeapTuple version)
{
	TransactionId xmin = HeapTupleHeaderGetXmin(version->t_data);
	ListCell   *lc;

	if (!TransactionIdIsNormal(xmin) || TransactionIdIsCurrentTransactionId(xmin))
		return;
	foreach(lc, snapshots)
	{
		FreshSnapshot *fresh = lfirst(lc);

		if (fresh->target_id == target_id && !fresh_has(fresh, xmin))
			ereport(ERROR,
					errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					errmsg("could not serialize access due to an update that new did not have yet"),
					errdetail("This transaction has read from new, where the row was as it had been before."),
					errhint("Repeat the transaction."));
	}
}
