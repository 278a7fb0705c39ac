/*
 * rotate.c - queue segments are written in turn and truncated as a whole.
 *
 * Runs in the replicator.  Three segments: the one written to, the one before
 * it, which stays so that new may fall back (fail-over, restore) by a whole
 * segment, and the next, which is truncated just before it is used again.  The
 * truncation needs every transaction that wrote there to have ended (the lock
 * says so; it is only tried) and new to have had all of it when the present
 * segment was begun.
 *
 * Comparisons look at what changed: a segment with changes younger than
 * cutover.change_retention, or that a comparison under way still needs (its
 * pin), is not truncated either, and the present one grows.  Before that would
 * come near cutover.queue_limit they have to do without.
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
#include "utils/timestamp.h"

#include "guc.h"
#include "rotate.h"

/* Close a small segment too when it is this old, so that an idle queue shrinks. */
#define ROTATE_MIN_BYTES (INT64CONST(1024) * 1024)
#define ROTATE_MAX_AGE "60 s"
/* Where no limit is set, changes that new has are kept up to so many times the size of a segment. */
#define ROTATE_KEEP_SEGMENTS 16
/* A time is turned into a place in the queue by moments at least so far apart, in seconds. */
#define ROTATE_MOMENT_S 10

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
 * Size of the queue.
 */
static int64
rotate_total(CutoverSession *session)
{
	return rotate_bytes(session, 0) + rotate_bytes(session, 1) + rotate_bytes(session, 2);
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
		 rotate_total(session) >= limit / 4 * 3))
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
 * Forget the pins of comparisons that are gone; with all, of all.
 */
static void
rotate_drop_pins(CutoverSession *session, bool all)
{
	Oid			types[2] = {INT4OID, BOOLOID};
	Datum		args[2] = {Int32GetDatum(session->target_id), BoolGetDatum(all)};

	if (rotate_value(session, "SELECT 1 FROM cutover._compare_pin WHERE target_id = $1 LIMIT 1") == NULL)
		return;
	if (SPI_execute_with_args("DELETE FROM cutover._compare_pin p WHERE p.target_id = $1 AND ($2 OR NOT EXISTS (SELECT"
							  " FROM pg_catalog.pg_stat_get_activity(p.pid) a WHERE a.backend_start <= p.since))",
							  2, types, args, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not forget pins of comparisons");
}

/*
 * Do comparisons need a segment?  kept and since: a moment of which it holds
 * nothing later, if they don't; NULL where none is known.
 */
static bool
rotate_is_retained(CutoverSession *session, int segment, char **kept, char **since)
{
	int64		limit = (int64) cutover_guc_queue_limit * 1024 * 1024;
	int64		total = rotate_total(session);
	int64		most = limit > 0 ? limit / 2 : (int64) cutover_guc_queue_segment_size * 1024 * 1024 * ROTATE_KEEP_SEGMENTS;
	/* begin early: a rotation gives back but the oldest of three */
	bool		pressed = total >= most || (limit > 0 && rotate_bytes(session, (segment + 2) % 3) >= limit / 4);

	*kept = *since = NULL;
	rotate_drop_pins(session, limit > 0 && total >= limit / 8 * 7);
	if (cutover_guc_change_retention > 0 && !pressed)
	{
		char	   *sql = psprintf("SELECT %%s FROM cutover._queue_moment WHERE target_id = $1"
								   " AND at <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %d)"
								   " ORDER BY at DESC LIMIT 1", cutover_guc_change_retention);

		*kept = rotate_value(session, psprintf(sql, "snapshot"));
		if (*kept != NULL)
			*since = rotate_value(session, psprintf("SELECT at FROM cutover._queue_moment WHERE target_id = $1 AND snapshot::text = %s"
													" ORDER BY at DESC LIMIT 1", quote_literal_cstr(*kept)));
		if (rotate_is_needed(session, segment, *kept))
			return true;
	}
	for (int i = 0;; i++)
	{
		char	   *pin = rotate_value(session, psprintf("SELECT snapshot FROM cutover._compare_pin WHERE target_id = $1"
														 " ORDER BY pid OFFSET %d LIMIT 1", i));

		if (pin == NULL)
			return false;
		if (rotate_is_needed(session, segment, pin))
			return true;
	}
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
 * Empty a segment if nothing in it can be needed any more.  kept and since: what
 * is still there afterwards begins with this snapshot and time; NULL: nothing has gone.
 */
static bool
rotate_empty(CutoverSession *session, int segment, int64 bytes, char **kept, char **since)
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
	/* once more, now that nobody can add to it */
	if (rotate_is_retained(session, segment, kept, since))
		return false;
	if (!rotate_is_needed(session, segment, NULL))
		*kept = *since = NULL;	/* it is empty */
	else if (*kept == NULL)
	{
		*kept = began;
		*since = rotate_value(session, "SELECT rotated_at FROM cutover._target WHERE target_id = $1");
	}
	if (SPI_execute(psprintf("TRUNCATE cutover._queue_%d_%d", session->target_id, segment), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not empty a queue segment");
	return true;
}

/*
 * Write to the next segment from now on.
 */
static void
rotate_switch(CutoverSession *session, int next, const char *kept, const char *since)
{
	Oid			types[3] = {INT4OID, INT4OID, INT8OID};
	Datum		args[3] = {Int32GetDatum(session->target_id), Int32GetDatum(next), Int64GetDatum(session->progress.k)};
	Oid			types2[5] = {INT4OID, TEXTOID, INT8OID, TEXTOID, TEXTOID};
	Datum		args2[5] = {Int32GetDatum(session->target_id), CStringGetTextDatum(session->progress.snapshot), Int64GetDatum(session->progress.k)};
	char		nulls2[5] = {' ', ' ', ' ', kept ? ' ' : 'n', since ? ' ' : 'n'};

	if (SPI_execute_with_args("UPDATE cutover._target SET write_segment = $2, rotations = rotations + 1,"
							  " rotated_at = pg_catalog.clock_timestamp() WHERE target_id = $1",
							  2, types, args, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not switch the queue segment");
	args2[3] = kept ? CStringGetTextDatum(kept) : (Datum) 0;
	args2[4] = since ? CStringGetTextDatum(since) : (Datum) 0;
	if (SPI_execute_with_args("INSERT INTO cutover._rotation AS r (target_id, rotated_k, rotated_snapshot, truncated_k,"
							  " kept_snapshot, kept_since)"
							  " VALUES ($1, $3, $2::pg_snapshot, 0, $4::pg_snapshot, $5::timestamptz)"
							  " ON CONFLICT (target_id) DO UPDATE SET truncated_k = r.rotated_k,"
							  " rotated_k = EXCLUDED.rotated_k, rotated_snapshot = EXCLUDED.rotated_snapshot,"
							  /* what went once does not come back, though less is emptied now */
							  " kept_snapshot = CASE WHEN r.kept_since >= EXCLUDED.kept_since OR EXCLUDED.kept_since IS NULL"
							  " THEN r.kept_snapshot ELSE EXCLUDED.kept_snapshot END,"
							  " kept_since = GREATEST(r.kept_since, EXCLUDED.kept_since)",
							  5, types2, args2, nulls2, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not record the rotation");
	grow_to = 0;
}

/*
 * Now and then, while there are changes, note what can be seen.
 */
static void
rotate_note_moment(CutoverSession *session)
{
	static TimestampTz noted_at = 0;
	static int64 noted_k = -1;
	int			every = Max(1, Min(ROTATE_MOMENT_S, cutover_guc_change_retention / 10));
	TimestampTz now = GetCurrentTimestamp();
	Oid			types[2] = {INT4OID, INT4OID};
	Datum		args[2] = {Int32GetDatum(session->target_id), Int32GetDatum(cutover_guc_change_retention)};

	if (session->progress.k == noted_k || !TimestampDifferenceExceeds(noted_at, now, every * 1000))
		return;
	noted_at = now;
	noted_k = session->progress.k;
	if (SPI_execute_with_args("INSERT INTO cutover._queue_moment (target_id, at, snapshot)"
							  " SELECT $1, pg_catalog.clock_timestamp(), pg_catalog.pg_current_snapshot() WHERE $2 >= 0"
							  " ON CONFLICT DO NOTHING", 2, types, args, NULL, false, 0) != SPI_OK_INSERT ||
	/* the last one before the time of retention says where that begins */
		SPI_execute_with_args("DELETE FROM cutover._queue_moment m WHERE m.target_id = $1 AND m.at < (SELECT pg_catalog.max(n.at)"
							  " FROM cutover._queue_moment n WHERE n.target_id = $1"
							  " AND n.at <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2))",
							  2, types, args, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not note what can be seen");
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
	char	   *kept;
	char	   *since;

	if (session->progress.window_snapshot != NULL)
		return false;			/* half-way through a window */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	rotate_note_moment(session);
	segment = rotate_due(session, &bytes);
	if (segment >= 0 && !rotate_is_retained(session, (segment + 1) % 3, &kept, &since))
	{
		int			next = (segment + 1) % 3;

		/* what is about to be forgotten must be durable on new */
		cutover_session_flush(session);
		rotated = rotate_empty(session, next, bytes, &kept, &since);
		if (rotated)
			rotate_switch(session, next, kept, since);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	return rotated;
}
