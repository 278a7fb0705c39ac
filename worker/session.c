/*
 * session.c - the replicator's session on new: who may work there, and how far it is.
 *
 * Runs in the replicator.  The lease is one row on new: the instance that holds
 * it renews it; another instance (a clone of old's files, a restarted server)
 * gets it only after it ran out.  Each recorded progress names the instance, so
 * that one which lost the lease can't commit another batch.
 */
#include "postgres.h"

#include "access/timeline.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "replication/syncrep.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "local.h"
#include "session.h"
#include "shmem.h"

#define FIRST_VALUE(rows) ((rows)->nrows > 0 ? CUTOVER_CELL(rows, 0, 0) : NULL)

/*
 * Remember a progress in the session's own memory.
 */
void
cutover_session_confirm(CutoverSession *session, const CutoverProgress *progress)
{
	CutoverProgress copy = *progress;
	MemoryContext fresh = AllocSetContextCreate(TopMemoryContext, "cutover progress", ALLOCSET_SMALL_SIZES);

	copy.snapshot = MemoryContextStrdup(fresh, progress->snapshot);
	copy.window_snapshot = progress->window_snapshot ? MemoryContextStrdup(fresh, progress->window_snapshot) : NULL;
	if (session->context != NULL)
		MemoryContextDelete(session->context);
	session->context = fresh;
	session->progress = copy;
}

/*
 * Take the lease.  Returns false if another instance holds it.
 */
static CutoverSessionState
session_take_lease(CutoverSession *session)
{
	char		lease[16];
	const char *args[5] = {session->migration_id, cutover_shmem_instance(), lease, NULL,
	cutover_guc_protect_new ? "true" : "false"};
	char		sysid[32];
	CutoverRows *rows;

	snprintf(lease, sizeof(lease), "%d", cutover_guc_lease_time);
	snprintf(sysid, sizeof(sysid), UINT64_FORMAT, GetSystemIdentifier());
	args[3] = sysid;
	rows = cutover_endpoint_exec_params(session->ep,
										"SELECT old_system_identifier IS NULL OR old_system_identifier::text = $2"
										" FROM cutover.migration WHERE migration_id = $1::uuid",
										2, (const char *const[])
										{
											session->migration_id, sysid
										});
	if (rows->nrows == 0)
		return CUTOVER_SESSION_GONE;
	if (CUTOVER_CELL(rows, 0, 0)[0] != 't')
		return CUTOVER_SESSION_NOT_ADOPTED;

	rows = cutover_endpoint_exec_params(session->ep,
										"UPDATE cutover.migration SET instance = $2, old_system_identifier = $4::bigint, protect = $5::boolean,"
										" lease_until = pg_catalog.clock_timestamp() + $3::int * interval '1 second'"
										" WHERE migration_id = $1::uuid AND (instance IS NULL OR instance = $2"
										" OR lease_until IS NULL OR lease_until < pg_catalog.clock_timestamp())"
										" RETURNING 1", 5, args);
	if (rows->nrows == 0)
		return CUTOVER_SESSION_LEASE_HELD;
	session->lease_renewed = GetCurrentTimestamp();
	return CUTOVER_SESSION_READY;
}

/*
 * Read how far new is.  The row lock waits for a predecessor's COMMIT in flight.
 */
static void
session_read_progress(CutoverSession *session)
{
	const char *args[1] = {session->token};
	CutoverProgress progress = {0};
	CutoverRows *rows;

	/* what an earlier connection has sent and new has not run yet must not count any more */
	snprintf(session->token, sizeof(session->token), "%s/%d/" INT64_FORMAT,
			 cutover_shmem_instance(), MyProcPid, GetCurrentTimestamp());
	rows = cutover_endpoint_exec_params(session->ep,
										"UPDATE cutover.progress SET instance = $1 WHERE direction = 'forward'"
										" RETURNING k, snapshot, window_snapshot, done_lsn, done_xid, window_name", 1, args);
	if (rows->nrows != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("new has no progress of target \"%s\"", session->target),
				 errdetail("Table cutover.progress there is empty."),
				 errhint("Give the migration up with cutover_cancel() and start it again.")));
	progress.k = pg_strtoint64(CUTOVER_CELL(rows, 0, 0));
	progress.snapshot = CUTOVER_CELL(rows, 0, 1);
	progress.window_snapshot = CUTOVER_CELL(rows, 0, 2);
	if (progress.window_snapshot != NULL)
	{
		progress.done_lsn = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(CUTOVER_CELL(rows, 0, 3))));
		progress.done_xid = pg_strtoint64(CUTOVER_CELL(rows, 0, 4));
	}
	strlcpy(session->window_name, CUTOVER_CELL(rows, 0, 5) ? CUTOVER_CELL(rows, 0, 5) : "", sizeof(session->window_name));
	cutover_session_confirm(session, &progress);
}

/*
 * Become ready to apply.
 */
CutoverSessionState
cutover_session_open(CutoverSession *session)
{
	CutoverSessionState state;

	session->ep = cutover_endpoint_connect(session->server, "cutover replicator");
	cutover_endpoint_authorize(session->ep);
	cutover_endpoint_set_apply_mode(session->ep);
	cutover_endpoint_exec(session->ep, "SET synchronous_commit = off");
	state = session_take_lease(session);
	if (state == CUTOVER_SESSION_READY)
		session_read_progress(session);
	else
		cutover_session_close(session);
	return state;
}

void
cutover_session_close(CutoverSession *session)
{
	if (session->ep != NULL)
		cutover_endpoint_close(session->ep);
	session->ep = NULL;
}

/*
 * Renew the lease after a third of its time.
 */
void
cutover_session_renew(CutoverSession *session)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(session->lease_renewed, now, cutover_guc_lease_time * 1000 / 3))
		return;
	if (session_take_lease(session) != CUTOVER_SESSION_READY)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("the lease of target \"%s\" on new was lost", session->target),
				 errdetail("Another instance took it over.")));
}

void
cutover_session_queue_lease(CutoverSession *session)
{
	char		lease[16];
	CutoverParam params[3] = {{session->migration_id}, {cutover_shmem_instance()}, {lease}};

	snprintf(lease, sizeof(lease), "%d", cutover_guc_lease_time);
	cutover_endpoint_queue(session->ep,
						   "UPDATE cutover.migration SET lease_until ="
						   " pg_catalog.clock_timestamp() + $3::int * interval '1 second'"
						   " WHERE migration_id = $1::uuid AND instance = $2::text", 3, params, false);
	session->lease_renewed = GetCurrentTimestamp();
}

/*
 * Queue the statement that records progress.  Dividing by the number of rows
 * makes it fail where the connection is no longer the one that may write.
 */
void
cutover_session_queue_progress(CutoverSession *session, const CutoverProgress *progress)
{
	char		k[24];
	char		lsn[24];
	char		xid[24];
	CutoverParam params[7] = {{k}, {progress->snapshot}, {progress->window_snapshot}, {NULL}, {NULL},
	{session->token}, {session->window_name}};

	snprintf(k, sizeof(k), INT64_FORMAT, progress->k);
	if (progress->window_snapshot != NULL)
	{
		snprintf(lsn, sizeof(lsn), "%X/%X", LSN_FORMAT_ARGS(progress->done_lsn));
		snprintf(xid, sizeof(xid), UINT64_FORMAT, progress->done_xid);
		params[3].data = lsn;
		params[4].data = xid;
	}
	cutover_endpoint_queue(session->ep,
						   "WITH u AS (UPDATE cutover.progress SET k = $1::bigint, snapshot = $2::text,"
						   " window_snapshot = $3::text, done_lsn = $4::pg_lsn, done_xid = $5::bigint, window_name = $7::text,"
						   " applied_at = pg_catalog.clock_timestamp()"
						   " WHERE direction = 'forward' AND instance = $6::text RETURNING 1)"
						   " SELECT 1 / count(*) AS lease FROM u",
						   7, params, false);
}

/*
 * Make new's commits so far durable (they are written asynchronously, since
 * progress and rows can only be lost together).
 */
void
cutover_session_flush(CutoverSession *session)
{
	cutover_endpoint_exec(session->ep,
						  "BEGIN; SET LOCAL synchronous_commit = on;"
						  " UPDATE cutover.progress SET applied_at = pg_catalog.clock_timestamp()"
						  " WHERE direction = 'forward'; COMMIT");
}

/*
 * Promise window k.  Without a synchronous standby the flush is left to
 * cutover_session_await_marker: new works meanwhile.
 */
void
cutover_session_mark(CutoverSession *session, int64 k, const char *snapshot)
{
	static SPIPlanPtr plan = NULL;
	Datum		args[5] = {Int32GetDatum(session->target_id), Int64GetDatum(k),
	CStringGetTextDatum(snapshot), CStringGetTextDatum(session->progress.snapshot)};
	Oid			types[5] = {INT4OID, INT8OID, TEXTOID, TEXTOID, TEXTOID};
	char		random[16];

	if (!pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not draw a random number"),
				 errdetail("Each window has a name of its own."),
				 errhint("The replicator tries again.")));
	session->window_name[hex_encode(random, sizeof(random), session->window_name)] = '\0';
	args[4] = CStringGetTextDatum(session->window_name);

	if (SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0')
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	SPI_connect();
	if (cutover_local_run_kept(&plan, "INSERT INTO cutover._marker AS m (target_id, direction, k, snapshot, acked_snapshot, taken_at, name)"
							  " VALUES ($1, 'forward', $2, $3::pg_snapshot, $4::pg_snapshot, pg_catalog.clock_timestamp(), $5)"
							  " ON CONFLICT (target_id, direction) DO UPDATE SET k = EXCLUDED.k, snapshot = EXCLUDED.snapshot,"
							  " acked_snapshot = EXCLUDED.acked_snapshot, taken_at = EXCLUDED.taken_at, name = EXCLUDED.name",
							   5, types, args, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write the marker");
	SPI_finish();
}

void
cutover_session_marked(CutoverSession *session)
{
	session->marker_lsn = XactLastCommitEnd;
}

/*
 * Flush the marker, and with it everything that its window's snapshot saw.
 * What is queued for new is sent first.
 */
void
cutover_session_await_marker(CutoverSession *session)
{
	if (session->marker_lsn == 0)
		return;
	cutover_endpoint_poll(session->ep);
	XLogFlush(session->marker_lsn);
	session->marker_lsn = 0;
}

/*
 * True if new and old disagree on what was applied; the last number that
 * either of them has used.
 */
static bool
session_disagrees(CutoverSession *session, const char **why, int64 *last_k)
{
	Datum		args[1] = {Int32GetDatum(session->target_id)};
	Oid			types[1] = {INT4OID};
	const char *new_snapshot = session->progress.window_snapshot ? session->progress.window_snapshot : session->progress.snapshot;
	int64		k = 0;
	int64		truncated_k = 0;
	char	   *snapshot = NULL;
	char	   *name = NULL;

	*why = NULL;
	SPI_connect();
	if (SPI_execute_with_args("SELECT m.k, m.snapshot::text, coalesce(r.truncated_k, 0), coalesce(m.name, '') FROM cutover._marker m"
							  " LEFT JOIN cutover._rotation r USING (target_id)"
							  " WHERE m.target_id = $1 AND m.direction = 'forward'",
							  1, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the marker");
	if (SPI_processed == 1)
	{
		k = pg_strtoint64(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
		snapshot = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
		truncated_k = pg_strtoint64(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3));
		name = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4);
	}
	if (snapshot == NULL || session->progress.k > k)
		*why = "old lost transactions that new already has";
	/* the text of a snapshot alone doesn't tell: a copy of old goes on with the same transaction ids */
	else if (session->progress.k == k && (strcmp(snapshot, new_snapshot) != 0 || strcmp(name, session->window_name) != 0))
		*why = "old went on differently after losing transactions that new already has";
	else if (session->progress.k < truncated_k)
		*why = "new lost more than the queue on old still holds";
	*last_k = Max(session->progress.k, Max(k, truncated_k));
	SPI_finish();
	return *why != NULL;
}

/*
 * Compare both sides; where they disagree begin anew from now.
 */
bool
cutover_session_reconcile(CutoverSession *session)
{
	const char *why;
	int64		last_k;
	CutoverProgress fresh;
	Datum		args[2];
	Oid			types[2] = {INT4OID, TEXTOID};

	if (!session_disagrees(session, &why, &last_k))
		return false;

	ereport(LOG,
			(errmsg("target \"%s\": %s", session->target, why),
			 errhint("New is not relied on until all its tables were compared and repaired, or copied afresh.")));
	args[0] = Int32GetDatum(session->target_id);
	args[1] = CStringGetTextDatum(why);
	SPI_connect();
	SPI_execute_with_args("UPDATE cutover._target SET rewound = true, rewound_at = pg_catalog.clock_timestamp() WHERE target_id = $1",
						  1, types, args, NULL, false, 0);
	/* what is complete can be repaired; a copy under way can't be trusted */
	SPI_execute_with_args("UPDATE cutover._table SET phase = 'resync_needed', phase_since = pg_catalog.clock_timestamp(),"
						  " phase_reason = $2 WHERE target_id = $1 AND phase <> 'synced'", 2, types, args, NULL, false, 0);
	SPI_execute_with_args("UPDATE cutover._table SET last_compared_at = NULL, clean_passes = 0,"
						  " repaired_at = pg_catalog.clock_timestamp() WHERE target_id = $1", 1, types, args, NULL, false, 0);
	SPI_execute_with_args("SELECT cutover._log_event('rewound', pg_catalog.jsonb_build_object('reason', $2), $1)",
						  2, types, args, NULL, false, 0);
	SPI_execute("SELECT pg_catalog.pg_current_snapshot()::text", true, 1);
	fresh.snapshot = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	/* a number that neither side has used: else they would disagree again */
	fresh.k = last_k + 1;
	fresh.window_snapshot = NULL;
	fresh.done_lsn = 0;
	fresh.done_xid = 0;
	cutover_session_mark(session, fresh.k, fresh.snapshot);
	cutover_session_queue_progress(session, &fresh);
	cutover_endpoint_sync(session->ep);
	cutover_session_confirm(session, &fresh);
	SPI_finish();
	return true;
}
