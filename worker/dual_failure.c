/*
 * dual_failure.c - what became of commits that did not get new's word.
 *
 * Runs in the replicator.  A commit that gave up waiting can write nothing any
 * more; it leaves its transaction id in the slot, and the rows that it changed
 * are found in the queue.  A failure stays open until new has the change.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "block.h"
#include "dual.h"
#include "dual_failure.h"

/* Keys of one transaction that are written down; a bulk statement has no use for more. */
#define FAILURE_MAX_KEYS 100

/*
 * Insert a failure (SPI), unless the key has an open one.
 */
static void
failure_insert(int32 target_id, uint64 xid, int32 table_id, const char *json, const char *sqlstate, const char *message)
{
	Datum		args[6] = {Int32GetDatum(target_id), FullTransactionIdGetDatum(FullTransactionIdFromU64(xid)),
		Int32GetDatum(table_id), CStringGetTextDatum(json), CStringGetTextDatum(sqlstate),
	CStringGetTextDatum(message)};
	Oid			types[6] = {INT4OID, XID8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID};

	SPI_execute_with_args("INSERT INTO cutover._dual_write_failure (target_id, xid, table_id, key, sqlstate, message)"
						  " SELECT $1, $2, $3, $4::jsonb, $5, $6 WHERE NOT EXISTS ("
						  "  SELECT FROM cutover._dual_write_failure f WHERE f.target_id = $1 AND f.table_id = $3"
						  "  AND f.key = $4::jsonb AND f.xid = $2)",
						  6, types, args, NULL, false, 0);
}

void
cutover_dual_failure_note_rejected(CutoverApplier *applier, const CutoverFailure *failure)
{
	if (applier->slot == NULL || failure->xid == 0)
		return;
	failure_insert(applier->window->target_id, failure->xid, failure->table_id, failure->json,
				   unpack_sql_state(failure->sqlerrcode), failure->message);
	cutover_dual_reject(applier->slot, failure->xid);
}

/*
 * Blocks of a transaction, as refs in CurrentMemoryContext.
 */
static CutoverBlockRef *
failure_find_blocks(int32 target_id, uint64 xid, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[1] = {XID8OID};
	Datum		args[1] = {FullTransactionIdGetDatum(FullTransactionIdFromU64(xid))};
	CutoverBlockRef *refs;

	SPI_connect();
	if (SPI_execute_with_args(psprintf("SELECT 0, ctid, seq, n FROM cutover._queue_%1$d_0 WHERE xid = $1"
									   " UNION ALL SELECT 1, ctid, seq, n FROM cutover._queue_%1$d_1 WHERE xid = $1"
									   " UNION ALL SELECT 2, ctid, seq, n FROM cutover._queue_%1$d_2 WHERE xid = $1",
									   target_id),
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the queue");
	*n = SPI_processed;
	refs = MemoryContextAllocZero(caller, Max(*n, 1) * sizeof(CutoverBlockRef));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		refs[i].xid = xid;
		refs[i].segment = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
		refs[i].tid = *(ItemPointer) DatumGetPointer(SPI_getbinval(tup, desc, 2, &isnull));
		refs[i].seq = DatumGetInt32(SPI_getbinval(tup, desc, 3, &isnull));
		refs[i].n = DatumGetInt32(SPI_getbinval(tup, desc, 4, &isnull));
	}
	SPI_finish();
	return refs;
}

/*
 * Write down one late transaction.
 */
static void
failure_note_transaction(int32 target_id, uint64 xid, const char *sqlstate, const char *message)
{
	CutoverWindow window = {.target_id = target_id};
	int			n;
	int			keys = 0;
	CutoverBlockRef *refs = failure_find_blocks(target_id, xid, &n);

	for (int i = 0; i < n && keys < FAILURE_MAX_KEYS; i++)
	{
		CutoverReader reader;
		CutoverChange change;

		cutover_reader_open(&reader, &window, &refs[i]);
		while (keys < FAILURE_MAX_KEYS && cutover_reader_next(&reader, &change))
		{
			HeapTuple	image = change.new ? change.new : change.old;

			if (image == NULL || change.layout == NULL || change.layout->table == NULL)
				continue;
			SPI_connect();
			failure_insert(target_id, xid, change.layout->table_id, cutover_rowmap_key_json(change.layout, image),
						   sqlstate, message);
			SPI_finish();
			keys++;
		}
	}
}

bool
cutover_dual_failure_note_late(CutoverSession *session, CutoverSlot *slot, const char *why)
{
	uint64		xids[CUTOVER_DUAL_RING];
	int			n = slot == NULL ? 0 : cutover_dual_take_late(slot, xids, CUTOVER_DUAL_RING);
	bool		lost = why != NULL && why[0] != '\0';

	if (n == 0)
		return false;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (cutover_mapping_is_stale())
		cutover_mapping_load(session->ep);
	for (int i = 0; i < n; i++)
		failure_note_transaction(session->target_id, xids[i], lost ? "08006" : "57014",
								 lost ? why : "new did not confirm within cutover.dual_write_timeout");
	PopActiveSnapshot();
	CommitTransactionCommand();
	return true;
}

bool
cutover_dual_failure_resolve(CutoverSession *session)
{
	Datum		args[2] = {Int32GetDatum(session->target_id), CStringGetTextDatum(session->progress.snapshot)};
	Oid			types[2] = {INT4OID, TEXTOID};
	bool		open;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute_with_args("UPDATE cutover._dual_write_failure f SET state = 'resolved',"
						  " resolved_at = pg_catalog.clock_timestamp()"
						  " WHERE f.target_id = $1 AND f.state = 'pending'"
						  " AND pg_catalog.pg_visible_in_snapshot(f.xid, $2::pg_snapshot)"
						  " AND NOT EXISTS (SELECT FROM cutover._apply_error e"
						  "  WHERE e.target_id = f.target_id AND e.table_id = f.table_id AND e.key = f.key)",
						  2, types, args, NULL, false, 0);
	open = SPI_execute_with_args("SELECT FROM cutover._dual_write_failure WHERE target_id = $1 AND state = 'pending'",
								 1, types, args, NULL, true, 1) == SPI_OK_SELECT && SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return open;
}
