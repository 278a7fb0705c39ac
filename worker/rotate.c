/*
 * rotate.c - queue segments are written in turn and truncated as a whole.
 *
 * Runs in the replicator.  Three segments: the one written to, the one before
 * it, which stays so that new may fall back (fail-over, restore) by a whole
 * segment, and the next, which is truncated just before it is used again.  The
 * truncation needs every transaction that wrote there to have ended (the lock
 * says so; it is only tried) and new to have had all of it when the present
 * segment was begun.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "guc.h"
#include "rotate.h"

/* Close a small segment too when it is this old, so that an idle queue shrinks. */
#define ROTATE_MIN_BYTES (INT64CONST(1024) * 1024)
#define ROTATE_MAX_AGE "60 s"

static int64 grow_to = 0;		/* size that the present segment may have before the next attempt */

static Oid
rotate_segment(CutoverSession *session, int segment)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "_queue_%d_%d", session->target_id, segment);
	return get_relname_relid(name, get_namespace_oid("cutover", false));
}

/*
 * Run a query about this target; column 1 of its only row, NULL if none.
 */
static char *
rotate_value(CutoverSession *session, const char *sql)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(session->target_id)};

	if (SPI_execute_with_args(sql, 1, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "query failed: %s", sql);
	return SPI_processed == 1 ? SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1) : NULL;
}

/*
 * Size of a segment, as capture counts it for cutover.queue_limit.
 */
static int64
rotate_bytes(CutoverSession *session, int segment)
{
	Relation	rel = RelationIdGetRelation(rotate_segment(session, segment));
	int64		bytes;
	Oid			toast;

	if (!RelationIsValid(rel))
		elog(ERROR, "queue segment %d of target %d is missing", segment, session->target_id);
	bytes = (int64) RelationGetNumberOfBlocks(rel) * BLCKSZ;
	toast = rel->rd_rel->reltoastrelid;
	RelationClose(rel);
	if (OidIsValid(toast))
	{
		rel = RelationIdGetRelation(toast);
		bytes += (int64) RelationGetNumberOfBlocks(rel) * BLCKSZ;
		RelationClose(rel);
	}
	return bytes;
}

/*
 * Which segment is written, if it is time for the next; else -1.
 */
static int
rotate_due(CutoverSession *session, int64 *size)
{
	int			segment = pg_strtoint32(rotate_value(session, "SELECT write_segment FROM cutover._target WHERE target_id = $1"));
	int64		bytes = *size = rotate_bytes(session, segment);
	int64		limit = (int64) cutover_guc_queue_limit * 1024 * 1024;
	char	   *old;

	if (bytes >= Max((int64) cutover_guc_queue_segment_size * 1024 * 1024, grow_to))
		return segment;
	/* three segments must fit below the limit; at the limit nothing is written that would fill this one */
	if (limit > 0 &&
		(bytes >= limit / 4 ||
		 bytes + rotate_bytes(session, (segment + 1) % 3) + rotate_bytes(session, (segment + 2) % 3) >= limit / 4 * 3))
		return segment;
	old = rotate_value(session, "SELECT rotated_at < pg_catalog.clock_timestamp() - interval '" ROTATE_MAX_AGE "'"
					   " FROM cutover._target WHERE target_id = $1");
	return bytes >= ROTATE_MIN_BYTES && old[0] == 't' ? segment : -1;
}

/*
 * Does a segment hold anything that is not visible in a snapshot?  NULL: anything at all.
 */
static bool
rotate_is_needed(CutoverSession *session, int segment, const char *snapshot)
{
	char	   *sql;
	bool		needed;

	if (snapshot == NULL)
		sql = psprintf("SELECT 1 FROM cutover._queue_%d_%d WHERE $1 IS NOT NULL LIMIT 1", session->target_id, segment);
	else
		sql = psprintf("SELECT 1 FROM cutover._queue_%d_%d"
					   " WHERE (xid >= pg_catalog.pg_snapshot_xmax(%s::pg_snapshot)"
					   " OR xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(%s::pg_snapshot)))) AND $1 IS NOT NULL LIMIT 1",
					   session->target_id, segment, quote_literal_cstr(snapshot), quote_literal_cstr(snapshot));
	/* the lock may have been given up by a commit that an older snapshot does not see */
	PushActiveSnapshot(GetLatestSnapshot());
	needed = rotate_value(session, sql) != NULL;
	PopActiveSnapshot();
	return needed;
}

/*
 * Count from now on what new may fall back by: a transaction that was open
 * when the present segment was begun keeps the next one from being emptied
 * for good else.
 */
static void
rotate_count_anew(CutoverSession *session, int64 bytes)
{
	Oid			types[3] = {INT4OID, TEXTOID, INT8OID};
	Datum		args[3] = {Int32GetDatum(session->target_id), CStringGetTextDatum(session->progress.snapshot), Int64GetDatum(session->progress.k)};

	if (SPI_execute_with_args("INSERT INTO cutover._rotation AS r (target_id, rotated_k, rotated_snapshot, truncated_k)"
							  " VALUES ($1, $3, $2::pg_snapshot, 0)"
							  " ON CONFLICT (target_id) DO UPDATE SET rotated_k = EXCLUDED.rotated_k,"
							  " rotated_snapshot = EXCLUDED.rotated_snapshot",
							  3, types, args, NULL, false, 0) != SPI_OK_INSERT ||
		SPI_execute_with_args("UPDATE cutover._target SET rotated_at = pg_catalog.clock_timestamp() WHERE target_id = $1",
							  1, types, args, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not record the rotation");
	grow_to = bytes + (int64) cutover_guc_queue_segment_size * 1024 * 1024;
}

/*
 * Empty a segment if nothing in it can be needed any more.
 */
static bool
rotate_empty(CutoverSession *session, int segment, int64 bytes)
{
	char	   *began;

	if (!ConditionalLockRelationOid(rotate_segment(session, segment), AccessExclusiveLock))
		return false;
	began = rotate_value(session, "SELECT rotated_snapshot FROM cutover._rotation WHERE target_id = $1");
	if (rotate_is_needed(session, segment, began))
	{
		if (!rotate_is_needed(session, segment, session->progress.snapshot))
			rotate_count_anew(session, bytes);
		return false;
	}
	if (SPI_execute(psprintf("TRUNCATE cutover._queue_%d_%d", session->target_id, segment), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not empty a queue segment");
	return true;
}

/*
 * Write to the next segment from now on.
 */
static void
rotate_switch(CutoverSession *session, int next)
{
	Oid			types[3] = {INT4OID, INT4OID, INT8OID};
	Datum		args[3] = {Int32GetDatum(session->target_id), Int32GetDatum(next), Int64GetDatum(session->progress.k)};
	Oid			types2[3] = {INT4OID, TEXTOID, INT8OID};
	Datum		args2[3] = {Int32GetDatum(session->target_id), CStringGetTextDatum(session->progress.snapshot), Int64GetDatum(session->progress.k)};

	if (SPI_execute_with_args("UPDATE cutover._target SET write_segment = $2, rotations = rotations + 1,"
							  " rotated_at = pg_catalog.clock_timestamp() WHERE target_id = $1",
							  2, types, args, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not switch the queue segment");
	if (SPI_execute_with_args("INSERT INTO cutover._rotation AS r (target_id, rotated_k, rotated_snapshot, truncated_k)"
							  " VALUES ($1, $3, $2::pg_snapshot, 0)"
							  " ON CONFLICT (target_id) DO UPDATE SET truncated_k = r.rotated_k,"
							  " rotated_k = EXCLUDED.rotated_k, rotated_snapshot = EXCLUDED.rotated_snapshot",
							  3, types2, args2, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not record the rotation");
	grow_to = 0;
}

/*
 * Rotate if due and possible.
 */
bool
cutover_rotate(CutoverSession *session)
{
	int			segment;
	int64		bytes;
	bool		rotated = false;

	if (session->progress.window_snapshot != NULL)
		return false;			/* half-way through a window */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	segment = rotate_due(session, &bytes);
	if (segment >= 0)
	{
		int			next = (segment + 1) % 3;

		/* what is about to be forgotten must be durable on new */
		cutover_session_flush(session);
		rotated = rotate_empty(session, next, bytes);
		if (rotated)
			rotate_switch(session, next);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return rotated;
}
