/*
 * batch.c - which blocks belong to a window, and in which order.
 *
 * Runs in the replicator.  The predicate is PgQ's: what is visible in one
 * snapshot and not in the one before, found through the index on xid by a list
 * (transactions that were under way) and a range (those that began later), so
 * that a transaction that stays open delays nobody but itself.
 *
 * Transactions are ordered by the WAL position of their last block, which was
 * read while their row locks were still held: of two that touched the same row
 * the one that committed first comes first.
 */
#include "postgres.h"

#include "access/xlogdefs.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "batch.h"

#define WINDOW_FETCH 5000
#define WINDOW_CURSOR "cutover_window"

/*
 * Begin with no window.
 */
void
cutover_window_init(CutoverWindow *window, int32 target_id)
{
	memset(window, 0, sizeof(*window));
	window->target_id = target_id;
	window->context = AllocSetContextCreate(TopMemoryContext, "cutover window", ALLOCSET_DEFAULT_SIZES);
}

/*
 * The one value of a query without parameters, in the caller's context.
 */
static char *
window_spi_value(const char *sql, MemoryContext context)
{
	char	   *result;

	SPI_connect();
	if (SPI_execute(sql, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "query returned no row: %s", sql);
	result = MemoryContextStrdup(context, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	SPI_finish();
	return result;
}

/*
 * The query for the blocks of a window.  Values are snapshots in text form,
 * made by the server, so quoting them is a formality.
 */
static char *
window_query(CutoverWindow *window)
{
	StringInfoData sql;
	char	   *prev = quote_literal_cstr(window->prev);
	char	   *cur = quote_literal_cstr(window->cur);

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT * FROM (SELECT segment, ctid, xid,"
						   " pg_catalog.max(lsn) OVER (PARTITION BY xid) AS last_lsn, seq, n FROM (");
	for (int s = 0; s < 3; s++)
	{
		for (int branch = 0; branch < 2; branch++)
		{
			appendStringInfo(&sql, "%sSELECT %d AS segment, ctid, xid, lsn, seq, n FROM cutover._queue_%d_%d WHERE ",
							 s + branch > 0 ? " UNION ALL " : "", s, window->target_id, s);
			if (branch == 0)
				appendStringInfo(&sql, "xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(%s::pg_snapshot)))", prev);
			else
				appendStringInfo(&sql, "xid >= pg_catalog.pg_snapshot_xmax(%s::pg_snapshot)", prev);
			appendStringInfo(&sql, " AND xid < pg_catalog.pg_snapshot_xmax(%s::pg_snapshot)", cur);
		}
	}
	appendStringInfo(&sql, ") b WHERE pg_catalog.pg_visible_in_snapshot(xid, %s::pg_snapshot)) t", cur);
	if (window->done_xid != 0)
		appendStringInfo(&sql, " WHERE (last_lsn, xid) > ('%X/%X'::pg_lsn, '" UINT64_FORMAT "'::xid8)",
						 LSN_FORMAT_ARGS(window->done_lsn), window->done_xid);
	appendStringInfoString(&sql, " ORDER BY last_lsn, xid, seq");
	return sql.data;
}

/*
 * Turn rows of the SPI result into refs.
 */
static void
window_keep_rows(CutoverWindow *window)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;

	window->refs = MemoryContextAlloc(window->context, Max(SPI_processed, 1) * sizeof(CutoverBlockRef));
	window->nrefs = SPI_processed;
	window->next = 0;
	for (int i = 0; i < window->nrefs; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		CutoverBlockRef *ref = &window->refs[i];
		bool		isnull;

		ref->segment = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
		ref->tid = *(ItemPointer) DatumGetPointer(SPI_getbinval(tup, desc, 2, &isnull));
		ref->xid = U64FromFullTransactionId(DatumGetFullTransactionId(SPI_getbinval(tup, desc, 3, &isnull)));
		ref->lsn = DatumGetLSN(SPI_getbinval(tup, desc, 4, &isnull));
		ref->seq = DatumGetInt32(SPI_getbinval(tup, desc, 5, &isnull));
		ref->n = DatumGetInt32(SPI_getbinval(tup, desc, 6, &isnull));
	}
}

/*
 * Open a window.
 */
bool
cutover_window_open(CutoverWindow *window, const char *prev, const char *cur,
					XLogRecPtr done_lsn, uint64 done_xid)
{
	char	   *query;

	cutover_window_close(window);
	window->prev = MemoryContextStrdup(window->context, prev);
	window->cur = cur ? MemoryContextStrdup(window->context, cur)
		: window_spi_value("SELECT pg_catalog.pg_current_snapshot()::text", window->context);
	window->taken_at = GetCurrentTimestamp();
	window->done_lsn = done_lsn;
	window->done_xid = done_xid;

	query = window_query(window);
	SPI_connect();
	if (SPI_execute(query, true, WINDOW_FETCH) != SPI_OK_SELECT)
		elog(ERROR, "could not read the queue");
	window->more = SPI_processed == WINDOW_FETCH;
	if (window->more)
	{
		char	   *declare = psprintf("DECLARE " WINDOW_CURSOR " NO SCROLL CURSOR WITH HOLD FOR %s", query);

		if (SPI_execute(declare, false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not keep the list of blocks");
		window->nrefs = window->next = 0;
	}
	else
		window_keep_rows(window);
	SPI_finish();
	window->open = window->more || window->nrefs > 0;
	return window->open;
}

/*
 * Fetch the next rows of the cursor.
 */
static void
window_fetch(CutoverWindow *window)
{
	Portal		portal;

	SPI_connect();
	portal = SPI_cursor_find(WINDOW_CURSOR);
	if (portal == NULL)
		elog(ERROR, "the list of blocks is gone");
	SPI_cursor_fetch(portal, true, WINDOW_FETCH);
	if (window->refs != NULL)
		pfree(window->refs);
	window_keep_rows(window);
	window->more = window->nrefs == WINDOW_FETCH;
	SPI_finish();
}

CutoverBlockRef *
cutover_window_peek(CutoverWindow *window)
{
	if (window->next >= window->nrefs && window->more)
		window_fetch(window);
	return window->next < window->nrefs ? &window->refs[window->next] : NULL;
}

void
cutover_window_take(CutoverWindow *window)
{
	window->seen += window->refs[window->next].n;
	window->next++;
}

/*
 * Forget the window, applied or not.
 */
void
cutover_window_close(CutoverWindow *window)
{
	Portal		portal = GetPortalByName(WINDOW_CURSOR);

	if (PortalIsValid(portal))
		PortalDrop(portal, false);
	MemoryContextReset(window->context);
	window->open = window->more = false;
	window->refs = NULL;
	window->nrefs = window->next = 0;
	window->prev = window->cur = NULL;
	window->seen = 0;
}
