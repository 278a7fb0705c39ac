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
#include "catalog/pg_type.h"
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
#include "local.h"

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
 * A snapshot taken now, in text form.
 */
static char *
window_snapshot(MemoryContext context)
{
	static SPIPlanPtr plan = NULL;
	char	   *result;

	SPI_connect();
	if (cutover_local_run_kept(&plan, "SELECT pg_catalog.pg_current_snapshot()", 0, NULL, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not take a snapshot");
	result = MemoryContextStrdup(context, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	SPI_finish();
	return result;
}

/*
 * The query for the blocks of a window; prev, cur, lsn and xid are SQL.
 */
static char *
window_query(CutoverWindow *window, const char *prev, const char *cur, const char *lsn, const char *xid)
{
	StringInfoData sql;

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
	appendStringInfo(&sql, ") b WHERE pg_catalog.pg_visible_in_snapshot(xid, %s::pg_snapshot)) t"
					 " WHERE (last_lsn, xid) > (%s::pg_lsn, %s::xid8) ORDER BY last_lsn, xid, seq", cur, lsn, xid);
	return sql.data;
}

/*
 * Run it with a plan that is kept: most windows are small, planning would
 * cost more than they do.
 */
static void
window_run(CutoverWindow *window)
{
	static SPIPlanPtr plan = NULL;
	static char *sql = NULL;
	Oid			types[4] = {TEXTOID, TEXTOID, LSNOID, XID8OID};
	Datum		values[4] = {CStringGetTextDatum(window->prev), CStringGetTextDatum(window->cur),
	LSNGetDatum(window->done_lsn), FullTransactionIdGetDatum(FullTransactionIdFromU64(window->done_xid))};

	if (sql == NULL)
		sql = MemoryContextStrdup(TopMemoryContext, window_query(window, "$1", "$2", "$3", "$4"));
	if (cutover_local_run_kept(&plan, sql, 4, types, values, true, WINDOW_FETCH) != SPI_OK_SELECT)
		elog(ERROR, "could not read the queue");
}

/*
 * Keep the list of a large window across transactions.
 */
static void
window_declare(CutoverWindow *window)
{
	char	   *query = window_query(window, quote_literal_cstr(window->prev), quote_literal_cstr(window->cur),
									 psprintf("'%X/%X'", LSN_FORMAT_ARGS(window->done_lsn)),
									 psprintf("'" UINT64_FORMAT "'", window->done_xid));

	if (SPI_execute(psprintf("DECLARE " WINDOW_CURSOR " NO SCROLL CURSOR WITH HOLD FOR %s", query), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not keep the list of blocks");
	window->nrefs = window->next = 0;
}

/*
 * Turn rows of the SPI result into refs, in a context.
 */
static CutoverBlockRef *
window_refs(MemoryContext context)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	CutoverBlockRef *refs = MemoryContextAllocHuge(context, Max(SPI_processed, 1) * sizeof(CutoverBlockRef));

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		CutoverBlockRef *ref = &refs[i];
		bool		isnull;

		ref->segment = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
		ref->tid = *(ItemPointer) DatumGetPointer(SPI_getbinval(tup, desc, 2, &isnull));
		ref->xid = U64FromFullTransactionId(DatumGetFullTransactionId(SPI_getbinval(tup, desc, 3, &isnull)));
		ref->lsn = DatumGetLSN(SPI_getbinval(tup, desc, 4, &isnull));
		ref->seq = DatumGetInt32(SPI_getbinval(tup, desc, 5, &isnull));
		ref->n = DatumGetInt32(SPI_getbinval(tup, desc, 6, &isnull));
	}
	return refs;
}

/*
 * Keep the rows of the SPI result as the window's list.
 */
static void
window_keep_rows(CutoverWindow *window)
{
	window->refs = window_refs(window->context);
	window->nrefs = SPI_processed;
	window->next = 0;
}

int
cutover_window_later(CutoverWindow *window, bool finished, XLogRecPtr lsn, uint64 xid, CutoverBlockRef **refs)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *cur = quote_literal_cstr(window->cur);
	char	   *query = window_query(window, quote_literal_cstr(window->prev), "pg_catalog.pg_current_snapshot()", "'0/0'", "'0'");
	int			nrefs;

	if (finished)
		query = psprintf("SELECT * FROM (%s) q WHERE NOT pg_catalog.pg_visible_in_snapshot(xid, %s::pg_snapshot)", query, cur);
	else
		query = psprintf("SELECT * FROM (%s) q WHERE NOT pg_catalog.pg_visible_in_snapshot(xid, %s::pg_snapshot)"
						 " OR (last_lsn, xid) > ('%X/%X'::pg_lsn, '" UINT64_FORMAT "'::xid8)", query, cur, LSN_FORMAT_ARGS(lsn), xid);
	SPI_connect();
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the queue");
	nrefs = SPI_processed;
	*refs = window_refs(caller);
	SPI_finish();
	return nrefs;
}

/*
 * Open a window.
 */
bool
cutover_window_open(CutoverWindow *window, const char *prev, const char *cur,
					XLogRecPtr done_lsn, uint64 done_xid)
{
	cutover_window_close(window);
	window->prev = MemoryContextStrdup(window->context, prev);
	window->cur = cur ? MemoryContextStrdup(window->context, cur)
		: window_snapshot(window->context);
	window->taken_at = GetCurrentTimestamp();
	window->done_lsn = done_lsn;
	window->done_xid = done_xid;

	SPI_connect();
	window_run(window);
	window->more = SPI_processed == WINDOW_FETCH;
	if (window->more)
		window_declare(window);
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
