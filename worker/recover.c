/*
 * recover.c - what the replicator does after an error.
 *
 * Whatever failed, nothing of the step is kept: the window is opened again from
 * what new has confirmed.  Errors of connections, locks and resources are tried
 * again for ever; data that new rejects is gone through once more, change by
 * change, in replay.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "replicator_private.h"
#include "retry.h"
#include "reverse.h"

/*
 * A schema change that new rejected is shown like a row that new rejected.
 */
static void
replicator_save_ddl_error(Replicator *r)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTOID};
	Datum		args[3];

	if (r->applier->ddl_message == NULL)
		return;
	args[0] = Int32GetDatum(r->target_id);
	args[1] = CStringGetTextDatum(unpack_sql_state(r->applier->ddl_sqlstate));
	args[2] = CStringGetTextDatum(r->applier->ddl_message);
	cutover_replicator_begin();
	SPI_connect();
	SPI_execute_with_args("INSERT INTO cutover._apply_error AS e (target_id, table_id, key, sqlstate, message)"
						  " VALUES ($1, NULL, NULL, $2, $3)"
						  " ON CONFLICT (target_id, direction, table_id, key) DO UPDATE SET sqlstate = EXCLUDED.sqlstate,"
						  " message = EXCLUDED.message, attempts = e.attempts + 1, last_at = pg_catalog.clock_timestamp()",
						  3, types, args, NULL, false, 0);
	SPI_finish();
	cutover_replicator_end();
	r->applier->ddl_message = NULL;
}

/*
 * After an error: undo, classify, and get ready to try again.  Returns how
 * long to wait, in milliseconds.
 */
int
cutover_replicator_recover(Replicator *r)
{
	ErrorData  *error;
	CutoverErrorClass class;
	bool		in_window = r->window.open;
	bool		was_replay = r->applier->replay;
	XLogRecPtr	reached = r->applier->last_lsn;

	MemoryContextSwitchTo(r->loop_context);
	error = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(r->loop_context);
	class = cutover_retry_classify(error->sqlerrcode);

	/* the progress was not ours to write (1 / 0 rows): somebody else's is to be read first */
	if (error->sqlerrcode == ERRCODE_DIVISION_BY_ZERO && r->session.ep != NULL)
		cutover_session_close(&r->session);
	if (r->session.ep != NULL && (class == CUTOVER_ERROR_CONNECTION || !cutover_endpoint_reset(r->session.ep)))
		cutover_session_close(&r->session);
	cutover_applier_abandon(r->applier);
	cutover_window_close(&r->window);
	cutover_mapping_set_stale();
	if (r->reversed)
		r->stats.queued = -1;
	if (r->reversed && cutover_reverse_failed(class == CUTOVER_ERROR_DATA))
		return 0;

	r->attempts++;
	r->stats.retries++;
	/* the detail of a lost connection says why; that of other errors quotes rows */
	if (class == CUTOVER_ERROR_CONNECTION && error->detail != NULL)
		error->message = psprintf("%s: %s", error->message, error->detail);
	strlcpy(r->stats.last_error, error->message, CUTOVER_TEXT_LEN);
	r->stats.last_error_quotes = class == CUTOVER_ERROR_DATA && error->sqlerrcode != ERRCODE_DATA_CORRUPTED;
	r->stats.last_error_at = GetCurrentTimestamp();

	if (class == CUTOVER_ERROR_DATA && in_window && !was_replay)
	{
		/* the set failed: the same once more, change by change */
		r->replay_lsn = reached;
		r->replay_window = reached == 0;
		return 0;
	}
	replicator_save_ddl_error(r);
	cutover_replicator_report(r, psprintf("next attempt after: %s", error->message));
	if (r->attempts <= 3 || r->attempts % 20 == 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("replication of target \"%s\" failed and will be tried again: %s",
						r->session.target, error->message),
				 error->context ? errcontext("%s", error->context) : 0));
	return cutover_retry_delay(r->attempts, cutover_guc_retry_max_delay);
}

/*
 * Sleep after an error, in parts, so that a wake-up by a commit does not cut it short.
 */
void
cutover_replicator_back_off(int ms)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

		if (left <= 0)
			return;
		cutover_replicator_sleep(left);
	}
}
