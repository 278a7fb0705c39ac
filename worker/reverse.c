/*
 * reverse.c - old follows new: the replicator while new is the master.
 *
 *   poll new's queue --> window --> step ... step
 *
 * A window is what became visible on new between two snapshots of it; a step, a part of
 * it that is read and applied at once.  Of a step:
 *
 *   1. on new, under one snapshot: entries of the queue, then the rows they are about
 *   2. on new: the step's number, on disk
 *   3. on old, in one transaction: the rows, and the progress
 *
 * What was read in a later snapshot than the window's is newer, never older, and will be
 * read again when its own window comes.  So a crash costs nothing but the step.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compare_schedule.h"
#include "guc.h"
#include "local.h"
#include "mapping.h"
#include "retry.h"
#include "replicator_private.h"
#include "reverse.h"
#include "reverse_apply.h"
#include "reverse_state.h"

#define NOT_READY_MS 1000
#define IDLE_FIRST_MS 2
#define IDLE_MAX_MS 100
#define HOUSEKEEPING_MS 500
#define CHECK_MS 5000

typedef struct Reverse
{
	bool		open;			/* progress is known, on this connection */
	CutoverReverseProgress progress;
	CutoverReverseStep step;
	bool		in_step;
	bool		replay;
	bool		busy;			/* the last turn had changes */
	int			idle_ms;
	TimestampTz kept_at;		/* last housekeeping */
	TimestampTz checked_at;
	char	   *shape;			/* of new's tables, as the map was made for */
} Reverse;

static Reverse rev;

/* An answer that is needed until the end of the step. */
typedef struct ReverseAnswer
{
	MemoryContext context;
	CutoverRows *rows;
} ReverseAnswer;

static void
reverse_keep(void *arg, CutoverRows *rows)
{
	ReverseAnswer *answer = arg;
	MemoryContext former = MemoryContextSwitchTo(answer->context);
	CutoverRows *copy = palloc0(sizeof(CutoverRows));

	copy->nrows = rows->nrows;
	copy->ncols = rows->ncols;
	copy->values = MemoryContextAllocHuge(answer->context, sizeof(char *) * Max((Size) rows->nrows * rows->ncols, 1));
	for (Size i = 0; i < (Size) rows->nrows * rows->ncols; i++)
		copy->values[i] = rows->values[i] ? pstrdup(rows->values[i]) : NULL;
	answer->rows = copy;
	MemoryContextSwitchTo(former);
}

/*
 * Triggers and foreign keys of old stay silent: on new they have been heard.
 */
void
cutover_reverse_enter(void)
{
	SetConfigOption("session_replication_role", "replica", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_hashjoin", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_mergejoin", "off", PGC_SUSET, PGC_S_OVERRIDE);
	if (rev.step.old == NULL)
	{
		MemoryContext former = MemoryContextSwitchTo(TopMemoryContext);

		rev.step.old = cutover_endpoint_local();
		rev.step.apply = cutover_apply_create(rev.step.old);
		rev.step.context = AllocSetContextCreate(TopMemoryContext, "cutover reverse step", ALLOCSET_DEFAULT_SIZES);
		rev.step.slice_context = AllocSetContextCreate(TopMemoryContext, "cutover reverse slice", ALLOCSET_DEFAULT_SIZES);
		MemoryContextSwitchTo(former);
	}
	rev.open = false;
	cutover_mapping_set_stale();
}

void
cutover_reverse_leave(void)
{
	SetConfigOption("session_replication_role", "origin", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_hashjoin", "on", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_mergejoin", "on", PGC_SUSET, PGC_S_OVERRIDE);
	rev.open = false;
	cutover_mapping_set_stale();
}

/*
 * Forget what the step holds.
 */
static void
reverse_forget_step(void)
{
	CutoverReverseStep *step = &rev.step;

	if (step->apply != NULL)
		cutover_apply_reset(step->apply);
	step->work = step->again = step->failures = step->resolved = step->fetched = NIL;
	step->pending = 0;
	cutover_endpoint_run_as(step->old, InvalidOid);
	MemoryContextReset(step->slice_context);
	MemoryContextReset(step->context);
	rev.in_step = false;
}

bool
cutover_reverse_failed(bool data_error)
{
	bool		again = data_error && rev.in_step && !rev.replay;

	reverse_forget_step();
	/* whatever is on its way to new: both sides say where they are */
	rev.open = false;
	rev.replay = again;
	return again;
}

/*
 * Is new the master still, as old has it?  As of now, not of when the transaction began.
 */
static bool
reverse_goes_on(Replicator *r)
{
	Oid			types[1] = {INT4OID};
	Datum		args[1] = {Int32GetDatum(r->target_id)};
	bool		goes_on;

	SPI_connect();
	goes_on = SPI_execute_with_args("SELECT FROM cutover._target WHERE target_id = $1 AND desired = 'running' AND mode = 'new_only'",
									1, types, args, NULL, false, 1) == SPI_OK_SELECT && SPI_processed == 1;
	SPI_finish();
	return goes_on;
}

/*
 * Begin a local transaction.  Whatever has been committed on old before the tickets that
 * this turn is going to serve were drawn is known in it.  False: new is not the master any more.
 */
static bool
reverse_begin(Replicator *r)
{
	cutover_replicator_begin();
	if (!cutover_mapping_is_stale())
		return true;
	cutover_mapping_load(NULL);
	cutover_reverse_map_load(r->target_id);
	/* in this order: what is said of the target before the load is not heard again */
	if (reverse_goes_on(r))
		return true;
	cutover_replicator_end();
	cutover_mapping_set_stale();
	r->target_read_at = 0;
	return false;
}

/*
 * Know where both sides are.
 */
static bool
reverse_open(Replicator *r)
{
	if (rev.open)
		return true;
	cutover_endpoint_exec(r->session.ep, "SET synchronous_commit = on");
	r->durable = true;
	cutover_replicator_begin();
	rev.open = cutover_reverse_state_open(&r->session, &rev.progress);
	cutover_replicator_end();
	cutover_mapping_set_stale();
	rev.busy = true;
	rev.step.new = r->session.ep;
	if (!rev.open)
		cutover_replicator_report(r, "the way back is not installed: old does not follow new");
	return rev.open;
}

/*
 * The entries of a window, by index, in any order; $1 is the snapshot before.
 */
static void
reverse_branches(StringInfo sql, const char *columns)
{
	for (int s = 0; s < 3; s++)
		for (int branch = 0; branch < 2; branch++)
			appendStringInfo(sql, "%sSELECT %s FROM cutover.queue_%d WHERE xid %s", s + branch > 0 ? " UNION ALL " : "", columns, s,
							 branch == 0 ? "= ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1::text::pg_snapshot)))" :
							 ">= pg_catalog.pg_snapshot_xmax($1::text::pg_snapshot)");
}

/*
 * Is there anything new on new?
 */
static bool
reverse_poll(Replicator *r)
{
	static char *sql = NULL;
	CutoverParam params[1] = {{rev.progress.snapshot}};
	ReverseAnswer answer = {rev.step.context, NULL};

	if (sql == NULL)
	{
		StringInfoData buf;

		initStringInfo(&buf);
		appendStringInfoString(&buf, "SELECT 1 FROM (");
		reverse_branches(&buf, "1");
		appendStringInfoString(&buf, ") q LIMIT 1");
		sql = MemoryContextStrdup(TopMemoryContext, buf.data);
	}
	cutover_endpoint_queue_rows(r->session.ep, sql, 1, params, reverse_keep, &answer);
	cutover_endpoint_sync(r->session.ep);
	return answer.rows->nrows > 0;
}

/* Of the entries in between those that fit into some bytes, one at least, and (last column) whether these are all. */
#define ENTRIES_HEAD "SELECT e.id, e.table_id, e.op, e.old_key, e.new_key, e.n = count(*) OVER () AND e.n < $2::text::int AS complete FROM (" \
	"SELECT q.*, count(*) OVER () AS n, row_number() OVER w AS i," \
	" sum(coalesce(pg_catalog.pg_column_size(q.old_key), 0) + coalesce(pg_catalog.pg_column_size(q.new_key), 0)) OVER w AS bytes FROM ("
#define ENTRIES_TAIL(limit) ") q WINDOW w AS (ORDER BY q.id)) e WHERE e.i = 1 OR e.bytes < " limit "::text::bigint ORDER BY e.id"

/*
 * Queue the query for the next entries: id, table_id, op, old_key, new_key, complete.
 */
static void
reverse_queue_entries(int limit, ReverseAnswer *answer)
{
	static char *first = NULL;
	char		id[24];
	char		n[16];
	char		bytes[24];
	CutoverParam params[5] = {{rev.progress.snapshot}, {n}};

	snprintf(n, sizeof(n), "%d", limit);
	snprintf(bytes, sizeof(bytes), INT64_FORMAT, (int64) cutover_guc_apply_memory * 1024 / 8);
	if (rev.progress.window == NULL)
	{
		if (first == NULL)
		{
			StringInfoData buf;

			initStringInfo(&buf);
			appendStringInfoString(&buf, ENTRIES_HEAD "SELECT * FROM (");
			reverse_branches(&buf, "id, table_id, op, old_key, new_key");
			/* sorted, not found by id: the index on xid knows what is new */
			appendStringInfoString(&buf, ") q ORDER BY q.id + 0 LIMIT $2::text::int" ENTRIES_TAIL("$3"));
			first = MemoryContextStrdup(TopMemoryContext, buf.data);
		}
		params[2].data = bytes;
		cutover_endpoint_queue_rows(rev.step.new, first, 3, params, reverse_keep, answer);
		return;
	}
	snprintf(id, sizeof(id), INT64_FORMAT, rev.progress.done_id);
	params[2].data = rev.progress.window;
	params[3].data = id;
	params[4].data = bytes;
	cutover_endpoint_queue_rows(rev.step.new, ENTRIES_HEAD
								"SELECT q.id, q.table_id, q.op, q.old_key, q.new_key FROM cutover.queue q WHERE q.id > $4::text::bigint"
								" AND NOT pg_catalog.pg_visible_in_snapshot(q.xid, $1::text::pg_snapshot)"
								" AND pg_catalog.pg_visible_in_snapshot(q.xid, $3::text::pg_snapshot)"
								" ORDER BY q.id LIMIT $2::text::int" ENTRIES_TAIL("$5"),
								5, params, reverse_keep, answer);
}

/*
 * Write down what old refused, and what it refuses no more.
 */
static void
reverse_save_failures(Replicator *r)
{
	CutoverReverseStep *step = &rev.step;
	ListCell   *lc;

	if (step->failures == NIL && step->resolved == NIL)
		return;
	SPI_connect();
	foreach(lc, step->resolved)
	{
		CutoverReverseFailure *note = lfirst(lc);
		Oid			types[2] = {INT4OID, TEXTOID};
		Datum		args[2] = {Int32GetDatum(note->table_id), CStringGetTextDatum(note->key)};

		SPI_execute_with_args("DELETE FROM cutover._apply_error WHERE direction = 'reverse' AND table_id = $1 AND key = $2::jsonb",
							  2, types, args, NULL, false, 0);
	}
	foreach(lc, step->failures)
	{
		CutoverReverseFailure *note = lfirst(lc);
		Oid			types[6] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
		Datum		args[6] = {Int32GetDatum(r->target_id), Int32GetDatum(note->table_id), CStringGetTextDatum(note->key),
			CStringGetTextDatum(unpack_sql_state(note->sqlerrcode)), CStringGetTextDatum(note->message),
		CStringGetTextDatum(note->source)};

		SPI_execute_with_args("INSERT INTO cutover._apply_error AS e (target_id, direction, table_id, key, sqlstate, message, source)"
							  " VALUES ($1, 'reverse', $2, $3::jsonb, $4, $5, $6::jsonb)"
							  " ON CONFLICT (target_id, direction, table_id, key) DO UPDATE SET sqlstate = EXCLUDED.sqlstate,"
							  " message = EXCLUDED.message, source = EXCLUDED.source, attempts = e.attempts + 1,"
							  " last_at = pg_catalog.clock_timestamp()",
							  6, types, args, NULL, false, 0);
	}
	SPI_finish();
	cutover_mapping_set_stale();
}

/*
 * Go through the entries.
 */
static void
reverse_take_entries(CutoverRows *entries)
{
	for (int i = 0; i < entries->nrows; i++)
	{
		int32		table_id = pg_strtoint32(CUTOVER_CELL(entries, i, 1));
		CutoverReverseTable *table = cutover_reverse_map_table(table_id, rev.step.new, rev.step.old);

		if (table != NULL)
			cutover_reverse_take(&rev.step, table, CUTOVER_CELL(entries, i, 2)[0], CUTOVER_CELL(entries, i, 3), CUTOVER_CELL(entries, i, 4));
	}
	cutover_reverse_read(&rev.step);
}

/*
 * Was a table of new altered since the map was made?
 */
static bool
reverse_shape_changed(const char *shape)
{
	if (shape == NULL)
		shape = "";
	if (rev.shape != NULL && strcmp(rev.shape, shape) == 0)
		return false;
	if (rev.shape != NULL)
		pfree(rev.shape);
	rev.shape = MemoryContextStrdup(TopMemoryContext, shape);
	cutover_mapping_set_stale();
	return true;
}

/*
 * One step, in the local transaction that is open.  Returns the number of changes; 0: there was nothing.
 */
static int
reverse_step(Replicator *r, bool *finished)
{
	CutoverReverseStep *step = &rev.step;
	CutoverReverseProgress next = {.k = Max(rev.progress.k, rev.progress.new_k) + 1};
	ReverseAnswer snapshot = {step->context, NULL};
	ReverseAnswer entries = {step->context, NULL};
	int			limit = step->replay ? Min(1000, cutover_guc_apply_batch_rows) : cutover_guc_apply_batch_rows;

	cutover_reverse_begin_reading(step->new);
	/* an altered table has another row in pg_class */
	cutover_endpoint_queue_rows(step->new, "SELECT pg_catalog.pg_current_snapshot(), (SELECT pg_catalog.string_agg(r.xmin::text, ' ' ORDER BY r.oid)"
								" FROM cutover.captured c JOIN pg_catalog.pg_class r ON r.oid = c.relid)", 0, NULL, reverse_keep, &snapshot);
	reverse_queue_entries(limit, &entries);
	cutover_endpoint_sync(step->new);
	if (reverse_shape_changed(CUTOVER_CELL(snapshot.rows, 0, 1)))
	{
		cutover_endpoint_queue(step->new, "COMMIT", 0, NULL, false);
		cutover_endpoint_sync(step->new);
		*finished = false;
		return 0;
	}
	*finished = entries.rows->nrows == 0 || CUTOVER_CELL(entries.rows, 0, 5)[0] == 't';
	if (entries.rows->nrows == 0 && rev.progress.window == NULL)
	{
		cutover_endpoint_queue(step->new, "COMMIT", 0, NULL, false);
		cutover_endpoint_sync(step->new);
		return 0;
	}
	reverse_take_entries(entries.rows);
	cutover_reverse_settle(step);
	cutover_endpoint_queue(step->new, "COMMIT", 0, NULL, false);

	next.new_k = next.k;
	next.snapshot = rev.progress.snapshot;
	next.window = rev.progress.window ? rev.progress.window : CUTOVER_CELL(snapshot.rows, 0, 0);
	if (*finished)
	{
		next.snapshot = next.window;
		next.window = NULL;
	}
	else
		next.done_id = pg_strtoint64(CUTOVER_CELL(entries.rows, entries.rows->nrows - 1, 0));
	cutover_reverse_state_queue_marker(&r->session, &next);
	/* new waits for its disk while old writes */
	cutover_endpoint_poll(step->new);
	cutover_apply_flush(step->apply);
	cutover_endpoint_sync(step->old);
	reverse_save_failures(r);
	cutover_reverse_state_write(r->target_id, &next);
	cutover_endpoint_sync(step->new);
	rev.progress.new_k = next.k;
	/* if old forgets it in a crash, it does so with the progress */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	cutover_replicator_end();
	cutover_reverse_state_confirm(&rev.progress, &next);
	return entries.rows->nrows;
}

/*
 * Old is as new was at a snapshot taken after the ticket was read: tell those who wait.
 */
static void
reverse_served(Replicator *r, uint64 ticket, TimestampTz taken_at)
{
	r->stats.acked_k = rev.progress.k;
	r->stats.acked_at = taken_at;
	r->stats.lag_us = GetCurrentTimestamp() - taken_at;
	r->stats.queued = 0;
	cutover_replicator_report(r, NULL);
	if (r->slot == NULL)
		return;
	if (pg_atomic_read_u64(&r->slot->served) < ticket)
		pg_atomic_write_u64(&r->slot->served, ticket);
	if (pg_atomic_read_u64(&r->slot->applied) < ticket)
		pg_atomic_write_u64(&r->slot->applied, ticket);
	ConditionVariableBroadcast(&r->slot->cv);
}

/*
 * Close tables of which new could not capture something.
 */
static void
reverse_note_closed(CutoverRows *rows, const char *reason)
{
	if (rows->nrows == 0)
		return;
	cutover_replicator_begin();
	for (int i = 0; i < rows->nrows; i++)
		cutover_reverse_state_close(pg_strtoint32(CUTOVER_CELL(rows, i, 0)), reason ? reason : CUTOVER_CELL(rows, i, 1));
	cutover_replicator_end();
	cutover_mapping_set_stale();
}

/*
 * What is due now and then: the queue's size and limits, its triggers, rotation.
 */
static void
reverse_housekeeping(Replicator *r)
{
	CutoverEndpoint *new = r->session.ep;
	TimestampTz now = GetCurrentTimestamp();
	double		seconds = (now - r->rate_since) / 1e6;
	CutoverRows *rows;

	if (seconds >= 1.0)
	{
		r->stats.changes_per_s = (r->stats.applied_changes - r->rate_changes) / seconds;
		r->rate_changes = r->stats.applied_changes;
		r->rate_since = now;
	}
	if (!TimestampDifferenceExceeds(rev.kept_at, now, HOUSEKEEPING_MS))
		return;
	rev.kept_at = now;
	cutover_replicator_clear_rewound(r);
	cutover_compare_schedule_tend(r->target_id);
	rows = cutover_endpoint_exec(new, "SELECT table_id, min(reason) FROM cutover.capture_closed GROUP BY 1");
	reverse_note_closed(rows, NULL);
	rows = cutover_endpoint_exec(new, "SELECT cutover.queue_bytes()");
	r->stats.queue_bytes = pg_strtoint64(CUTOVER_CELL(rows, 0, 0));
	if (r->stats.queue_bytes > (int64) cutover_guc_queue_segment_size * 1024 * 1024)
	{
		/* what new may forget old must not */
		XLogFlush(GetXLogWriteRecPtr());
		cutover_endpoint_exec_params(new, "SELECT cutover.rotate_queue($1::pg_snapshot, $2::bigint, $3::bigint)", 3,
									 (const char *const[]) {rev.progress.snapshot, psprintf(INT64_FORMAT, rev.progress.k),
										 psprintf(INT64_FORMAT, (int64) cutover_guc_queue_segment_size * 1024 * 1024)});
	}
	if (!TimestampDifferenceExceeds(rev.checked_at, now, CHECK_MS))
		return;
	rev.checked_at = now;
	cutover_endpoint_exec_params(new, "UPDATE cutover.queue_state SET queue_limit = $1::bigint, policy = $2"
								 " WHERE (queue_limit, policy) IS DISTINCT FROM ($1::bigint, $2)", 2,
								 (const char *const[]) {psprintf(INT64_FORMAT, (int64) cutover_guc_queue_limit * 1024 * 1024),
									 GetConfigOption("cutover.capture", false, false)});
	cutover_endpoint_exec(new, psprintf("BEGIN; SET LOCAL lock_timeout = %d", cutover_guc_lock_timeout));
	rows = cutover_endpoint_exec(new, "SELECT DISTINCT c.table_id FROM cutover.captured c CROSS JOIN LATERAL cutover.put_capture(c.table_id)");
	cutover_endpoint_exec(new, "COMMIT");
	reverse_note_closed(rows, "its capture trigger on new was missing or disabled for some time");
	pgstat_report_stat(true);
}

/*
 * How many changes wait, while a window is under way.
 */
static void
reverse_count_queued(Replicator *r)
{
	static TimestampTz counted_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	CutoverRows *rows;

	if (!TimestampDifferenceExceeds(counted_at, now, HOUSEKEEPING_MS))
		return;
	counted_at = now;
	rows = cutover_endpoint_exec_params(r->session.ep, "SELECT count(*) FROM cutover.queue q"
										" WHERE NOT pg_catalog.pg_visible_in_snapshot(q.xid, $1::text::pg_snapshot) AND ($2::text::bigint = 0"
										" OR q.id > $2::text::bigint OR NOT pg_catalog.pg_visible_in_snapshot(q.xid, $3::text::pg_snapshot))", 3,
										(const char *const[]) {rev.progress.snapshot, psprintf(INT64_FORMAT, rev.progress.done_id),
											rev.progress.window ? rev.progress.window : rev.progress.snapshot});
	r->stats.queued = pg_strtoint64(CUTOVER_CELL(rows, 0, 0));
}

/*
 * One turn.
 */
int
cutover_reverse_turn(Replicator *r)
{
	uint64		ticket = 0;
	TimestampTz taken_at;
	bool		finished = true;
	int			changes = 0;

	if (!reverse_open(r))
		return NOT_READY_MS;
	if (r->slot != NULL)
	{
		ticket = pg_atomic_read_u64(&r->slot->wanted);
		pg_atomic_write_u32(&r->slot->dirty, 0);
	}
	reverse_forget_step();
	rev.step.replay = rev.replay;
	if (!reverse_begin(r))
		return 0;
	taken_at = GetCurrentTimestamp();
	rev.in_step = true;
	if (rev.progress.window != NULL || rev.busy || reverse_poll(r))
		changes = reverse_step(r, &finished);
	if (changes == 0 && IsTransactionState())
		cutover_replicator_end();
	reverse_forget_step();
	r->stats.reverse = true;
	r->stats.applied_changes += changes;
	r->attempts = 0;
	if (finished)
	{
		rev.replay = false;
		reverse_served(r, ticket, taken_at);
	}
	else
	{
		reverse_count_queued(r);
		cutover_replicator_report(r, NULL);
	}
	reverse_housekeeping(r);
	rev.busy = changes > 0 || !finished;
	rev.idle_ms = rev.busy ? 0 : rev.idle_ms == 0 ? IDLE_FIRST_MS : Min(rev.idle_ms * 2, IDLE_MAX_MS);
	if (r->slot != NULL && pg_atomic_read_u32(&r->slot->dirty) != 0)
		return 0;
	return rev.idle_ms;
}
