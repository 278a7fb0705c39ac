/*
 * copier_prepare.c - the first and the last step of a table's copy, taken by the replicator.
 *
 * On new, the row (table, generation, -1) of cutover.chunk says that the copy
 * of this generation began.  Every copier shares it while it writes, so to
 * delete it is to wait for those of an earlier copy and to keep out any that come late.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "capture.h"
#include "chunk_plan.h"
#include "compat.h"
#include "copier.h"
#include "copier_prepare.h"
#include "deferred.h"
#include "guc.h"
#include "local.h"
#include "retry.h"

typedef struct PrepareTable
{
	int32		target_id;
	int32		table_id;
	int32		generation;
	char	   *new_table;		/* qualified and quoted */
	char	   *keys;			/* key columns on new, text form of an array; NULL = not plain columns there */
	char		relkind;		/* on new */
} PrepareTable;

/*
 * Set a table's phase; false if it is no longer where we think.
 */
static bool
prepare_set_phase(int32 table_id, int32 generation, const char *from, const char *to, const char *reason)
{
	Oid			types[] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(table_id), Int32GetDatum(generation), CStringGetTextDatum(from),
	CStringGetTextDatum(to), reason ? CStringGetTextDatum(reason) : (Datum) 0};

	return cutover_local_run("UPDATE cutover._table SET phase = $4, phase_reason = $5, phase_since = pg_catalog.clock_timestamp(),"
							 " copy_started_at = CASE WHEN $4 = 'copying' THEN pg_catalog.clock_timestamp() ELSE copy_started_at END"
							 " WHERE table_id = $1 AND copy_generation = $2 AND phase = $3",
							 5, types, values, reason ? NULL : "    n") == 1;
}

static void
prepare_log(PrepareTable *table, const char *kind, const char *names)
{
	Oid			types[] = {INT4OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int32GetDatum(table->table_id), CStringGetTextDatum(kind), CStringGetTextDatum(names)};

	cutover_local_run("SELECT cutover._log_event($2, pg_catalog.jsonb_build_object("
					  "'table', t.old_table::pg_catalog.regclass::text, 'objects', $3), t.target_id)"
					  " FROM cutover._table t WHERE t.table_id = $1", 3, types, values, NULL);
}

/*
 * What the copy needs to know of a table; false if it is gone.
 */
static bool
prepare_read(PrepareTable *table, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(table->table_id)};
	bool		found;
	MemoryContext old;

	cutover_local_begin();
	found = cutover_local_run("SELECT pg_catalog.quote_ident(t.new_schema) || '.' || pg_catalog.quote_ident(t.new_name),"
							  " CASE WHEN t.key_attnums = '{}' THEN ARRAY[]::text[]"
							  " WHEN t.default_columns THEN (SELECT pg_catalog.array_agg(a.attname::text) FROM pg_catalog.pg_attribute a"
							  "  WHERE a.attrelid = t.old_table AND a.attnum = ANY (t.key_attnums))"
							  " WHEN (SELECT count(DISTINCT c.attnum) FROM cutover._column c WHERE c.table_id = t.table_id"
							  "  AND c.attnum = ANY (t.key_attnums)) = pg_catalog.cardinality(t.key_attnums)"
							  " THEN (SELECT pg_catalog.array_agg(c.new_column::text) FROM cutover._column c WHERE c.table_id = t.table_id"
							  "  AND c.attnum = ANY (t.key_attnums)) END"
							  " FROM cutover._table t WHERE t.table_id = $1", 1, types, args, NULL) == 1;
	if (found)
	{
		old = MemoryContextSwitchTo(mcxt);
		table->new_table = cutover_local_text(0, 1);
		table->keys = cutover_local_text(0, 2);
		MemoryContextSwitchTo(old);
	}
	cutover_local_commit(false);
	MemoryContextSwitchTo(mcxt);
	return found;
}

/*
 * Kind of the table on new.
 */
static void
prepare_look_at_new(PrepareTable *table, CutoverEndpoint *ep)
{
	const char *args[] = {table->new_table};
	CutoverRows *rows = cutover_endpoint_exec_params(ep, "SELECT relkind FROM pg_catalog.pg_class"
													 " WHERE oid = pg_catalog.to_regclass($1)", 1, args);

	if (rows->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s does not exist on new", table->new_table),
				 errhint("Create it there, with the columns of the table on old.")));
	table->relkind = CUTOVER_CELL(rows, 0, 0)[0];
}

/*
 * Remove all rows of the table on new.
 */
static void
prepare_empty(PrepareTable *table, CutoverEndpoint *ep)
{
	MemoryContext mcxt = CurrentMemoryContext;
	const char *volatile only = table->relkind == 'p' ? "" : "ONLY ";
	volatile bool truncated = true;

	cutover_endpoint_exec(ep, "SAVEPOINT cutover_empty");
	PG_TRY();
	{
		cutover_endpoint_exec(ep, psprintf("TRUNCATE %s%s", only, table->new_table));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(mcxt);
		error = CopyErrorData();
		/* no privilege, or a foreign key that we may not take off */
		if (error->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE && error->sqlerrcode != ERRCODE_FEATURE_NOT_SUPPORTED)
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(error);
		truncated = false;
	}
	PG_END_TRY();
	if (truncated)
		return;
	cutover_endpoint_exec(ep, "ROLLBACK TO SAVEPOINT cutover_empty");
	cutover_endpoint_exec(ep, psprintf("DELETE FROM %s%s", only, table->new_table));
}

/*
 * On new, in one transaction: begin this generation, empty the table, take off
 * indexes.  Returns NULL, or why the table can't be copied as it is.
 */
static const char *
prepare_remote(PrepareTable *table, CutoverEndpoint *ep, List **kept)
{
	const char *args[] = {psprintf("%d", table->table_id), psprintf("%d", table->generation)};
	const char *only;
	CutoverRows *rows;

	cutover_endpoint_exec(ep, psprintf("BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = %d",
									   cutover_guc_lock_timeout));
	prepare_look_at_new(table, ep);
	only = table->relkind == 'p' ? "" : "ONLY ";
	cutover_endpoint_exec_params(ep, "DELETE FROM cutover.chunk WHERE table_id = $1 AND generation <> $2", 2, args);
	rows = cutover_endpoint_exec_params(ep, "INSERT INTO cutover.chunk (table_id, generation, chunk_no) VALUES ($1, $2, -1)"
										" ON CONFLICT DO NOTHING", 2, args);
	if (rows->affected == 1 && table->generation == 0)
	{
		rows = cutover_endpoint_exec(ep, psprintf("SELECT EXISTS (SELECT FROM %s%s)", only, table->new_table));
		if (CUTOVER_CELL(rows, 0, 0)[0] == 't')
		{
			cutover_endpoint_exec(ep, "ROLLBACK");
			return "The table on new is not empty. Empty it there, or let cutover_resync() do it.";
		}
	}
	else if (rows->affected == 0)
	{
		rows = cutover_endpoint_exec_params(ep, "SELECT EXISTS (SELECT FROM cutover.chunk WHERE table_id = $1 AND generation = $2"
											" AND chunk_no >= 0)", 2, args);
		if (CUTOVER_CELL(rows, 0, 0)[0] == 't')
		{
			cutover_endpoint_exec(ep, "ROLLBACK");
			return "";
		}
	}
	/* it was not there yet when the target was started, perhaps */
	cutover_endpoint_exec_params(ep, "SELECT cutover.install_guard($1::int, $3, coalesce($2::text[], '{}'))"
								 " WHERE NOT EXISTS (SELECT FROM cutover.guarded WHERE table_id = $1::int)",
								 3, (const char *const[]) {args[0], table->keys, table->new_table});
	*kept = cutover_deferred_take_off(ep, table->table_id, table->new_table, table->keys, !cutover_endpoint_is_replica(ep));
	if (table->generation > 0)
		prepare_empty(table, ep);
	cutover_endpoint_exec(ep, "COMMIT");
	return NULL;
}

/*
 * Names in one text.
 */
static char *
prepare_join(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, names)
		appendStringInfo(&buf, "%s%s", buf.len ? ", " : "", (char *) lfirst(lc));
	return buf.data;
}

/*
 * What we are about to do on new must not rest on a commit that old can still
 * lose: whoever set the phase may not have waited for the disk.
 */
static void
prepare_flush(MemoryContext mcxt)
{
	cutover_local_begin();
	cutover_local_run("SELECT pg_catalog.pg_logical_emit_message(true, 'cutover', '')", 0, NULL, NULL, NULL);
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
}

/*
 * Take a table from waiting to copying.
 */
bool
cutover_copier_prepare(int32 target_id, int32 table_id, int32 generation, bool copy, CutoverEndpoint *ep)
{
	MemoryContext mcxt = CurrentMemoryContext;
	PrepareTable table = {.target_id = target_id,.table_id = table_id,.generation = generation};
	List	   *kept = NIL;
	const char *reason = NULL;
	bool		changed;

	cutover_local_begin();
	changed = cutover_capture_no_gap(table_id);
	cutover_local_commit(false);
	if (!changed)
		return false;			/* asked again with the next tick */
	if (copy)
	{
		if (!prepare_read(&table, mcxt))
			return false;
		prepare_flush(mcxt);
		reason = prepare_remote(&table, ep, &kept);
	}
	cutover_local_begin();
	if (reason != NULL && reason[0] == '\0')
	{
		/* new already has chunks of a copy that old does not know of: old lost it */
		cutover_copier_restart_table(table_id, generation, "old lost a part of what was copied");
		changed = true;
	}
	else if (reason != NULL)
		changed = prepare_set_phase(table_id, generation, "waiting", "resync_needed", reason);
	else if (!copy)
		changed = prepare_set_phase(table_id, generation, "waiting", "catching_up", NULL);
	else
	{
		cutover_chunk_plan(table_id, generation);
		if (kept != NIL)
			prepare_log(&table, "index_kept", prepare_join(kept));
		changed = prepare_set_phase(table_id, generation, "waiting", "copying", NULL);
		if (!changed)			/* set to another generation meanwhile: its chunks are not these */
			elog(ERROR, "phase of table %d changed while its copy was planned", table_id);
	}
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
	return changed;
}

/*
 * All chunks are done: go on, unless new lost some (it was restored, or a
 * standby that lacked them took over).
 */
bool
cutover_copier_complete(int32 table_id, int32 generation, CutoverEndpoint *ep)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(table_id), Int32GetDatum(generation)};
	const char *args[] = {psprintf("%d", table_id), psprintf("%d", generation)};
	CutoverRows *rows;
	bool		changed = true;
	int64		chunks;

	rows = cutover_endpoint_exec_params(ep, "SELECT count(*) FROM cutover.chunk WHERE table_id = $1 AND generation = $2"
										" AND chunk_no >= 0 AND snapshot IS NOT NULL", 2, args);
	cutover_local_begin();
	cutover_local_run("SELECT count(*) FROM cutover._chunk WHERE table_id = $1 AND generation = $2", 2, types, values, NULL);
	chunks = cutover_local_int(0, 1);
	if (strtoi64(CUTOVER_CELL(rows, 0, 0), NULL, 10) == chunks)
		changed = prepare_set_phase(table_id, generation, "copying", "catching_up", NULL);
	else
		cutover_copier_restart_table(table_id, generation, "new lost a part of what was copied");
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
	return changed;
}

/*
 * The chunks of a table that new holds, by its answer (table_id, generation,
 * chunks); 0 if it says nothing of it.
 */
static int64
prepare_chunks_on_new(CutoverRows *rows, int32 table_id, int32 generation)
{
	for (int i = 0; i < rows->nrows; i++)
		if (atoi(CUTOVER_CELL(rows, i, 0)) == table_id && atoi(CUTOVER_CELL(rows, i, 1)) == generation)
			return strtoi64(CUTOVER_CELL(rows, i, 2), NULL, 10);
	return 0;
}

/*
 * New may have been set back (a restored backup, a standby that lagged) to
 * before the end of a table's copy that old has seen.  What it lost is done
 * again: chunks, changes that the chunks may hold already, indexes.
 */
void
cutover_copier_check_new(int32 target_id, int64 k, CutoverEndpoint *ep)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID, INT8OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(target_id), Int64GetDatum(k), 0};
	CutoverRows *chunks;
	CutoverRows *deferred;
	SPITupleTable *tables;
	uint64		n;

	chunks = cutover_endpoint_exec(ep, "SELECT table_id, generation, count(*) FROM cutover.chunk"
								   " WHERE chunk_no >= 0 AND snapshot IS NOT NULL GROUP BY 1, 2");
	deferred = cutover_endpoint_exec(ep, "SELECT coalesce(pg_catalog.array_agg(DISTINCT table_id), '{}') FROM cutover.deferred");
	values[2] = CStringGetTextDatum(CUTOVER_CELL(deferred, 0, 0));
	cutover_local_begin();
	cutover_local_run("UPDATE cutover._table SET phase = CASE WHEN caught_up_k > $2 THEN 'catching_up' ELSE 'indexing' END,"
					  " phase_since = pg_catalog.clock_timestamp() WHERE target_id = $1 AND (phase IN ('indexing', 'synced') AND"
					  " caught_up_k > $2 OR phase = 'synced' AND table_id = ANY ($3::int[]))", 3, types, values, NULL);
	n = cutover_local_run("SELECT t.table_id, t.copy_generation, (SELECT count(*) FROM cutover._chunk c WHERE c.table_id = t.table_id"
						  " AND c.generation = t.copy_generation AND c.state = 'done') FROM cutover._table t WHERE t.target_id = $1"
						  " AND t.copy AND t.phase IN ('copying', 'catching_up', 'indexing', 'synced')", 1, types, values, NULL);
	tables = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int32		table_id = DatumGetInt32(SPI_getbinval(tables->vals[i], tables->tupdesc, 1, &isnull));
		int32		generation = DatumGetInt32(SPI_getbinval(tables->vals[i], tables->tupdesc, 2, &isnull));

		if (prepare_chunks_on_new(chunks, table_id, generation) <
			DatumGetInt64(SPI_getbinval(tables->vals[i], tables->tupdesc, 3, &isnull)))
			cutover_copier_restart_table(table_id, generation, "new lost a part of what was copied");
	}
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
}
