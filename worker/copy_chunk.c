/*
 * copy_chunk.c - one chunk from old to new, exactly once.
 *
 * In this order, each step safe to die after:
 *   old  commit state "copying", flushed
 *   new  begin; share the row of the copy's generation (a copy that began anew
 *        waits for us, or we find that it did); insert the chunk's row (waits for a predecessor whose commit
 *        is under way; if it is there, that one made it: take its snapshot)
 *   old  lock the table, take the snapshot, send the rows to new
 *   new  complete the chunk's row
 *   old  commit, flushed: all that the snapshot saw is safe
 *   new  commit, flushed
 *   old  commit state "done"
 * The replicator drops changes of a pending chunk: the snapshot to come sees
 * them, as it is taken after "copying" is committed.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "chunk_plan.h"
#include "compat.h"
#include "copier.h"
#include "copy_chunk.h"
#include "copy_stream.h"
#include "guc.h"
#include "local.h"
#include "shmem.h"

/* advisory locks of our own kind: SQL functions use 1 and 2 in this field */
#define LOCK_CHUNK	7301
#define LOCK_NUMBER 7302
#define LOCK_HOLD	7303		/* exclusive: nobody copies this table */

#define CANDIDATES 100			/* more than there can be copiers */

typedef struct ChunkJob
{
	int32		target_id;
	int32		number;			/* of this copier */
	int32		table_id;
	int32		generation;
	int32		chunk_no;
	bool		was_pending;
	Oid			old_relid;
	char	   *new_table;		/* qualified and quoted */
	Oid			block_relid;	/* chunks by block */
	Oid			filenode;
	char	   *lower;
	char	   *upper;
	char	   *snapshot;
	uint64		rows;
	uint64		bytes;
} ChunkJob;

typedef struct ChunkColumns
{
	StringInfoData select;
	StringInfoData insert;
	int			n;
	Oid		   *new_types;
	bool		expressions;
} ChunkColumns;

static LOCKTAG held_chunk;
static bool chunk_held = false;
static bool may_go_back = false;	/* new has held_chunk only in our open transaction */
static int32 held_generation;
PG_FUNCTION_INFO_V1(cutover_copy_hold);

static CutoverSlot *sending = NULL; /* where we are counted */

static void chunk_end_sending(void);
static void chunk_end_sending_at_exit(int code, Datum arg);

/* ---- locks ---- */

bool
cutover_copy_lock_number(int32 target_id, int number, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, target_id, number, LOCK_NUMBER);
	return LockAcquire(&tag, ExclusiveLock, true, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

void
cutover_copy_unlock_number(int32 target_id, int number)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, target_id, number, LOCK_NUMBER);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

static bool
chunk_lock(int32 table_id, int32 chunk_no)
{
	SET_LOCKTAG_ADVISORY(held_chunk, MyDatabaseId, table_id, chunk_no, LOCK_CHUNK);
	chunk_held = LockAcquire(&held_chunk, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
	return chunk_held;
}

/*
 * Does somebody ask copiers to leave a table alone?
 */
static bool
chunk_on_hold(int32 table_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, table_id, 0, LOCK_HOLD);
	if (LockAcquire(&tag, ShareLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, true);
	return false;
}

/*
 * _hold_copy(table_id): no chunk of the table is begun until the end of this
 * transaction, and one that is being sent is given up.
 */
Datum
cutover_copy_hold(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, PG_GETARG_INT32(0), 0, LOCK_HOLD);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	PG_RETURN_VOID();
}

void
cutover_copy_chunk_release(void)
{
	chunk_end_sending();
	if (chunk_held)
		(void) LockRelease(&held_chunk, ExclusiveLock, true);
	chunk_held = may_go_back = false;
}

/*
 * Our transaction on new was rolled back: the chunk is as good as never begun.
 * The replicator would wait for one in copying, and it may have to bring what
 * the next attempt needs.
 */
void
cutover_copy_chunk_put_back(void)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID};
	Datum		values[] = {UInt32GetDatum(held_chunk.locktag_field2), UInt32GetDatum(held_chunk.locktag_field3),
	Int32GetDatum(held_generation)};

	if (!chunk_held || !may_go_back)
		return;
	cutover_local_begin();
	cutover_local_run("UPDATE cutover._chunk SET state = 'pending', copier = NULL, started_at = NULL"
					  " WHERE table_id = $1 AND chunk_no = $2 AND generation = $3 AND state = 'copying'",
					  3, types, values, NULL);
	cutover_local_commit(false);
	may_go_back = false;
}

/* ---- taking a chunk ---- */

static char *
chunk_keep(MemoryContext mcxt, const char *text)
{
	return text ? MemoryContextStrdup(mcxt, text) : NULL;
}

/*
 * Take one chunk if nobody has it: lock, look again, mark.
 */
static bool
chunk_take(ChunkJob *job, int32 table_id, int32 chunk_no, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID};
	Datum		args[] = {Int32GetDatum(table_id), Int32GetDatum(chunk_no), Int32GetDatum(job->number)};

	if (chunk_on_hold(table_id) || !chunk_lock(table_id, chunk_no))
		return false;
	/* the lock's last holder may have finished it since we looked */
	if (cutover_local_run("SELECT c.state = 'pending', c.generation, t.old_table,"
						  " pg_catalog.quote_ident(t.new_schema) || '.' || pg_catalog.quote_ident(t.new_name),"
						  " c.relid, c.filenode, c.lower, c.upper"
						  " FROM cutover._chunk c JOIN cutover._table t ON t.table_id = c.table_id"
						  " AND t.copy_generation = c.generation AND t.phase = 'copying'"
						  " WHERE c.table_id = $1 AND c.chunk_no = $2 AND c.state <> 'done'",
						  2, types, args, NULL) == 0)
	{
		cutover_copy_chunk_release();
		return false;
	}
	job->table_id = table_id;
	job->chunk_no = chunk_no;
	job->was_pending = cutover_local_int(0, 1) != 0;
	job->generation = (int32) cutover_local_int(0, 2);
	job->old_relid = (Oid) cutover_local_int(0, 3);
	job->new_table = chunk_keep(mcxt, cutover_local_text(0, 4));
	job->block_relid = (Oid) cutover_local_int(0, 5);
	job->filenode = (Oid) cutover_local_int(0, 6);
	job->lower = chunk_keep(mcxt, cutover_local_text(0, 7));
	job->upper = chunk_keep(mcxt, cutover_local_text(0, 8));
	cutover_local_run("UPDATE cutover._chunk SET state = 'copying', copier = $3, started_at = pg_catalog.clock_timestamp()"
					  " WHERE table_id = $1 AND chunk_no = $2", 3, types, args, NULL);
	return true;
}

/*
 * Find a chunk that nobody copies, those of dead copiers first.
 */
static CutoverJobResult
chunk_claim(ChunkJob *job, const CutoverSkip *skip, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(job->target_id)};
	CutoverJobResult result = CUTOVER_JOB_NONE;
	SPITupleTable *found;
	uint64		n;

	cutover_local_begin();
	n = cutover_local_run("SELECT s.table_id, s.chunk_no FROM cutover._table t, LATERAL ("
						  "(SELECT c.table_id, c.chunk_no, 0 AS turn FROM cutover._chunk c WHERE c.table_id = t.table_id"
						  " AND c.generation = t.copy_generation AND c.state = 'copying' ORDER BY c.table_id, c.chunk_no"
						  " LIMIT " CppAsString2(CANDIDATES) ") UNION ALL "
						  "(SELECT c.table_id, c.chunk_no, 1 FROM cutover._chunk c WHERE c.table_id = t.table_id"
						  " AND c.generation = t.copy_generation AND c.state = 'pending' ORDER BY c.table_id, c.chunk_no"
						  " LIMIT " CppAsString2(CANDIDATES) ")) s WHERE t.target_id = $1 AND t.phase = 'copying'"
						  " ORDER BY s.turn, t.bytes_total DESC NULLS LAST, s.table_id, s.chunk_no",
						  1, types, args, NULL);
	found = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int32		table_id = DatumGetInt32(SPI_getbinval(found->vals[i], found->tupdesc, 1, &isnull));
		int32		chunk_no = DatumGetInt32(SPI_getbinval(found->vals[i], found->tupdesc, 2, &isnull));
		bool		skipped = false;

		for (int j = 0; j < skip->n; j++)
			skipped |= skip->table_ids[j] == table_id;
		result = CUTOVER_JOB_BUSY;
		if (!skipped && chunk_take(job, table_id, chunk_no, mcxt))
		{
			result = CUTOVER_JOB_DONE;
			break;
		}
	}
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
	return result;
}

/* ---- on new ---- */

static const char *
chunk_number_text(int64 n)
{
	return psprintf(INT64_FORMAT, n);
}

/*
 * Begin on new.  Returns true if the chunk must be copied; false if not: then
 * job->snapshot says that it is there already, or NULL that the table's copy must begin anew.
 */
static bool
chunk_begin_remote(CutoverEndpoint *ep, ChunkJob *job)
{
	const char *args[4];
	CutoverRows *rows;

	/* synchronous: the rows of a chunk must not vanish once old takes it for done */
	cutover_endpoint_exec(ep, "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '10s'");
	args[0] = chunk_number_text(job->table_id);
	args[1] = chunk_number_text(job->generation);
	args[2] = chunk_number_text(job->chunk_no);
	args[3] = chunk_number_text(GetWALInsertionTimeLine());
	rows = cutover_endpoint_exec_params(ep, "SELECT 1 FROM cutover.chunk WHERE table_id = $1 AND generation = $2"
										" AND chunk_no = -1 FOR KEY SHARE", 2, args);
	if (rows->nrows == 0)
	{
		cutover_endpoint_exec(ep, "ROLLBACK");
		return false;
	}
	rows = cutover_endpoint_exec_params(ep, "INSERT INTO cutover.chunk (table_id, generation, chunk_no, timeline)"
										" VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", 4, args);
	if (rows->affected == 1)
	{
		held_generation = job->generation;
		may_go_back = true;
		cutover_endpoint_exec(ep, "SET LOCAL lock_timeout = 0");
		return true;
	}
	rows = cutover_endpoint_exec_params(ep, "SELECT snapshot, rows FROM cutover.chunk WHERE table_id = $1"
										" AND generation = $2 AND chunk_no = $3 AND timeline = $4", 4, args);
	/* a row from another life of old, or of a chunk that this old never began: old lost what new has */
	if (rows->nrows == 1 && !job->was_pending)
	{
		job->snapshot = CUTOVER_CELL(rows, 0, 0);
		job->rows = strtou64(CUTOVER_CELL(rows, 0, 1), NULL, 10);
	}
	cutover_endpoint_exec(ep, "ROLLBACK");
	return false;
}

/*
 * Columns of new that are written, and what they are made of.
 */
static void
chunk_read_columns(CutoverEndpoint *ep, ChunkJob *job, ChunkColumns *cols)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(job->table_id)};
	const char *params[] = {job->new_table};
	CutoverRows *new_cols;
	uint64		n;

	new_cols = cutover_endpoint_exec_params(ep, "SELECT a.attname, a.atttypid, a.attgenerated FROM pg_catalog.pg_attribute a"
											" WHERE a.attrelid = $1::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped",
											1, params);
	n = cutover_local_run("SELECT c.new_column, COALESCE(pg_catalog.quote_ident(a.attname),"
						  " '(' || pg_catalog.pg_get_expr(c.expr, t.old_table) || ')'), c.expr IS NOT NULL, false"
						  " FROM cutover._table t JOIN cutover._column c ON c.table_id = t.table_id"
						  " LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = t.old_table AND a.attnum = c.attnum"
						  " AND NOT a.attisdropped WHERE t.table_id = $1 AND NOT t.default_columns"
						  " UNION ALL SELECT a.attname, pg_catalog.quote_ident(a.attname), false, true"
						  " FROM cutover._table t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.old_table"
						  " AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
						  " WHERE t.table_id = $1 AND t.default_columns", 1, types, args, NULL);
	initStringInfo(&cols->select);
	initStringInfo(&cols->insert);
	cols->n = 0;
	cols->expressions = false;
	cols->new_types = palloc(sizeof(Oid) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		char	   *name = cutover_local_text(i, 1);
		char	   *source = cutover_local_text(i, 2);
		bool		by_name = cutover_local_int(i, 4) != 0;
		Oid			type = InvalidOid;
		bool		usable = true;
		bool		found = false;

		if (source == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of \"%s\" on new is made of a column that was dropped on old", name, job->new_table),
					 errhint("Take the table out of the migration and add it again.")));
		for (int j = 0; j < new_cols->nrows; j++)
			if (strcmp(CUTOVER_CELL(new_cols, j, 0), name) == 0)
			{
				type = (Oid) strtoul(CUTOVER_CELL(new_cols, j, 1), NULL, 10);
				usable = !by_name || CUTOVER_CELL(new_cols, j, 2)[0] == '\0';
				found = true;
			}
		/* to leave it out would lose it: a schema change may be on its way to new */
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of %s does not exist on new", name, job->new_table),
					 errhint("Add it there, or say with cutover_add_table() which columns to move.")));
		if (!usable)
			continue;
		appendStringInfo(&cols->select, "%s%s", cols->n ? ", " : "", source);
		appendStringInfo(&cols->insert, "%s%s", cols->n ? ", " : "", quote_identifier(name));
		cols->new_types[cols->n++] = type;
		cols->expressions |= cutover_local_int(i, 3) != 0;
	}
	if (cols->n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("table %s on new has no column to copy into", job->new_table),
				 errhint("Give it the columns of the table on old, or name them with cutover_add_table().")));
}

/*
 * Who removes the table has locked it, and our chunk's row, and then waits on
 * new for our transaction there: give way.
 */
static void
chunk_limit_lock_waits(void)
{
	(void) set_config_option("lock_timeout", "1s", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

/* ---- reading old ---- */

/*
 * Lock what is read before the snapshot is taken: a TRUNCATE or rewrite
 * between the two would empty the table under the snapshot's feet.  Returns
 * false if the blocks of the chunk are no longer what they were.
 */
static bool
chunk_lock_tables(ChunkJob *job)
{
	Oid			relid = OidIsValid(job->block_relid) ? job->block_relid : job->old_relid;
	Relation	rel = try_relation_open(relid, AccessShareLock);
	bool		same = true;

	if (rel == NULL)
		return false;
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
		(void) find_all_inheritors(relid, AccessShareLock, NULL);
	if (OidIsValid(job->block_relid))
		same = DatumGetObjectId(DirectFunctionCall1(pg_relation_filenode, ObjectIdGetDatum(relid))) == job->filenode;
	relation_close(rel, NoLock);
	return same;
}

/*
 * The query that reads the chunk, and who runs it.
 */
static char *
chunk_build_query(ChunkJob *job, ChunkColumns *cols, Oid *run_as)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(job->table_id)};
	Oid			relid = OidIsValid(job->block_relid) ? job->block_relid : job->old_relid;
	char	   *range = cutover_chunk_plan_condition(job->table_id, job->old_relid, job->lower, job->upper);
	StringInfoData sql;
	char	   *filter;

	if (cutover_local_run("SELECT c.relowner, pg_catalog.pg_get_expr(t.row_filter_expr, t.old_table)"
						  " FROM cutover._table t JOIN pg_catalog.pg_class c ON c.oid = t.old_table"
						  " WHERE t.table_id = $1", 1, types, args, NULL) == 0)
		return NULL;
	filter = cutover_local_text(0, 2);
	*run_as = (filter || cols->expressions) ? (Oid) cutover_local_int(0, 1) : InvalidOid;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM %s%s", cols->select.data,
					 get_rel_relkind(relid) == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid)));
	if (range || filter)
		appendStringInfo(&sql, " WHERE %s%s%s", range ? range : "", range && filter ? " AND " : "",
						 filter ? psprintf("(%s)", filter) : "");
	return sql.data;
}

/*
 * What this copier may send each second: its share among those that send.
 */
static double
chunk_rate(void)
{
	int			copiers = sending ? (int) pg_atomic_read_u32(&sending->sending) : cutover_guc_copy_jobs;

	return cutover_guc_copy_max_rate * 1024.0 / Max(copiers, 1);
}

/*
 * Called all the time while rows are sent.
 */
static void
chunk_check_hold(void *arg)
{
	ChunkJob   *job = arg;

	if (chunk_on_hold(job->table_id))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("the copy of \"%s\" gives way", get_rel_name(job->old_relid)),
				 errdetail("The table is being changed or taken out of the migration.")));
}

/*
 * Count this copier among those that send, and no longer.
 */
static void
chunk_begin_sending(int32 target_id)
{
	static bool registered = false;

	if (!registered)
		before_shmem_exit(chunk_end_sending_at_exit, 0);
	registered = true;
	sending = cutover_shmem_slot(target_id, false);
	if (sending)
		pg_atomic_fetch_add_u32(&sending->sending, 1);
}

static void
chunk_end_sending(void)
{
	if (sending)
		pg_atomic_fetch_sub_u32(&sending->sending, 1);
	sending = NULL;
}

static void
chunk_end_sending_at_exit(int code, Datum arg)
{
	chunk_end_sending();
}

/*
 * Read the chunk under a snapshot of its own and send it.  Returns false if
 * the table changed such that its copy must begin anew.
 */
static bool
chunk_send(CutoverEndpoint *ep, ChunkJob *job, MemoryContext mcxt)
{
	ChunkColumns cols;
	CutoverCopyStream stream = {.rate_fn = chunk_rate,.check_fn = chunk_check_hold,.check_arg = job};
	Datum		snapshot;

	cutover_local_begin();
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
	chunk_limit_lock_waits();
	if (!chunk_lock_tables(job))
	{
		cutover_local_commit(false);
		MemoryContextSwitchTo(mcxt);
		return false;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = DirectFunctionCall1(pg_current_snapshot, (Datum) 0);
	job->snapshot = chunk_keep(mcxt, DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot)));
	chunk_read_columns(ep, job, &cols);
	stream.query = chunk_build_query(job, &cols, &stream.run_as);
	if (stream.query == NULL)
		elog(ERROR, "table %d is gone", job->table_id);
	stream.copy = psprintf("COPY %s (%s) FROM STDIN", job->new_table, cols.insert.data);
	stream.ncols = cols.n;
	stream.new_types = cols.new_types;
	chunk_begin_sending(job->target_id);
	cutover_copy_stream_run(ep, &stream);
	chunk_end_sending();
	job->rows = stream.rows;
	job->bytes = stream.bytes;
	PopActiveSnapshot();
	cutover_local_commit(false);
	MemoryContextSwitchTo(mcxt);
	return true;
}

/* ---- finishing ---- */

/*
 * Commit on new: first the row of the chunk, then old's flush, then new.
 * Returns false if the copy began anew meanwhile.
 */
static bool
chunk_commit_remote(CutoverEndpoint *ep, ChunkJob *job, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID, INT8OID, INT8OID};
	Datum		values[] = {Int32GetDatum(job->table_id), Int32GetDatum(job->chunk_no), Int32GetDatum(job->generation),
	Int64GetDatum((int64) job->rows), Int64GetDatum((int64) job->bytes)};
	const char *args[5];
	uint64		n;

	args[0] = chunk_number_text(job->table_id);
	args[1] = chunk_number_text(job->generation);
	args[2] = chunk_number_text(job->chunk_no);
	args[3] = job->snapshot;
	args[4] = chunk_number_text((int64) job->rows);
	if (cutover_endpoint_exec_params(ep, "UPDATE cutover.chunk SET snapshot = $4, rows = $5,"
									 " copied_at = pg_catalog.clock_timestamp() WHERE table_id = $1 AND generation = $2"
									 " AND chunk_no = $3", 5, args)->affected != 1)
		elog(ERROR, "the row of chunk %d of table %d is gone", job->chunk_no, job->table_id);
	/* what would fail in COMMIT fails here */
	cutover_endpoint_exec(ep, "SET CONSTRAINTS ALL IMMEDIATE");
	cutover_local_begin();
	chunk_limit_lock_waits();
	n = cutover_local_run("UPDATE cutover._chunk SET rows = $4, bytes = $5 WHERE table_id = $1 AND chunk_no = $2"
						  " AND generation = $3 AND state = 'copying'", 5, types, values, NULL);
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
	may_go_back = false;		/* who knows, from here on */
	cutover_endpoint_exec(ep, n == 1 ? "COMMIT" : "ROLLBACK");
	return n == 1;
}

/*
 * New has it: the replicator may apply its later changes.
 */
static void
chunk_mark_done(ChunkJob *job, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID, TEXTOID, INT8OID};
	Datum		values[] = {Int32GetDatum(job->table_id), Int32GetDatum(job->chunk_no), Int32GetDatum(job->generation),
	CStringGetTextDatum(job->snapshot), Int64GetDatum((int64) job->rows)};

	cutover_local_begin();
	cutover_local_run("UPDATE cutover._chunk SET state = 'done', snapshot = $4::pg_catalog.pg_snapshot, rows = $5,"
					  " done_at = pg_catalog.clock_timestamp()"
					  " WHERE table_id = $1 AND chunk_no = $2 AND generation = $3 AND state = 'copying'",
					  5, types, values, NULL);
	/* an error that was shown for this table is over */
	cutover_local_run("UPDATE cutover._table SET phase_reason = NULL WHERE table_id = $1 AND copy_generation = $3"
					  " AND phase = 'copying' AND phase_reason IS NOT NULL", 3, types, values, NULL);
	cutover_local_commit(false);
	MemoryContextSwitchTo(mcxt);
}

static void
chunk_restart(ChunkJob *job, const char *why, MemoryContext mcxt)
{
	cutover_local_begin();
	cutover_copier_restart_table(job->table_id, job->generation, why);
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
}

/*
 * Copy the chunk of a job.
 */
static void
chunk_copy(CutoverEndpoint *ep, ChunkJob *job, MemoryContext mcxt)
{
	if (chunk_begin_remote(ep, job))
	{
		if (!chunk_send(ep, job, mcxt))
		{
			cutover_endpoint_exec(ep, "ROLLBACK");
			chunk_restart(job, "the table was rewritten or truncated while it was copied", mcxt);
			return;
		}
		if (!chunk_commit_remote(ep, job, mcxt))
			return;
	}
	if (job->snapshot)
		chunk_mark_done(job, mcxt);
	else
		chunk_restart(job, "one side lost a part of what was copied", mcxt);
}

/*
 * Take a chunk and copy it.
 */
CutoverJobResult
cutover_copy_chunk_next(CutoverEndpoint *ep, int32 target_id, int number, const CutoverSkip *skip, int32 *table_id)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext mcxt = AllocSetContextCreate(caller, "cutover chunk", ALLOCSET_DEFAULT_SIZES);
	ChunkJob	job = {.target_id = target_id,.number = number};
	CutoverJobResult result;

	MemoryContextSwitchTo(mcxt);
	result = chunk_claim(&job, skip, mcxt);
	if (result == CUTOVER_JOB_DONE)
	{
		*table_id = job.table_id;
		chunk_copy(ep, &job, mcxt);
		cutover_copy_chunk_release();
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(mcxt);
	return result;
}
