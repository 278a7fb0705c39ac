/*
 * recount.c - rows of a table without a key, counted afresh.
 *
 * Runs in the replicator.  Where there is no key a row can only be asked for
 * whole: how often is it there?  Old is counted now, which is later than the
 * step that is being applied, so what the queue holds of the time in between
 * is taken off again.  New is counted in the transaction that applies the
 * step, after all of its changes.  The difference is inserted or deleted
 * there: then both have as many, at this very position.
 *
 * Rows are compared as new would hold them, since two rows of old may become
 * one and the same.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "applier.h"
#include "block.h"

/* Rows of old fetched at once. */
#define RECOUNT_FETCH 1000

/* A row asked for. */
typedef struct Recount
{
	int32		table_id;
	uint64		xid;			/* transaction that asks */
	char	   *json;
	char	  **values;			/* as new holds it */
	int		   *lens;
	char	   *bytes;			/* the same in one piece, for lookup */
	Size		nbytes;
	int64		wanted;			/* copies */
	int64		there;
	struct Recount *next;		/* with the same hash */
} Recount;

/* The rows of one table by the hash of their bytes. */
typedef struct RecountEntry
{
	uint64		hash;
	Recount    *first;
} RecountEntry;

typedef struct RecountTable
{
	CutoverApplier *applier;
	CutoverTable *table;
	HTAB	   *hash;
	List	   *rows;			/* Recount, each row once */
	StringInfoData key;			/* scratch */
} RecountTable;

/*
 * All values of a row in one piece, each preceded by its length.
 */
static void
recount_bytes(CutoverTable *table, const CutoverApplyRow *row, StringInfo buf)
{
	resetStringInfo(buf);
	for (int i = 0; i < table->apply.ncols; i++)
	{
		int32		len = row->values[i] ? row->lens[i] : -1;

		appendBinaryStringInfo(buf, (char *) &len, sizeof(len));
		if (len > 0)
			appendBinaryStringInfo(buf, row->values[i], len);
	}
}

/*
 * Note that a row is to be counted afresh.
 */
void
cutover_recount_add(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image)
{
	CutoverTable *table = layout->table;
	ExprState  *filter = table->filter;
	CutoverApplyRow row;
	StringInfoData buf;
	MemoryContext old;
	Recount    *recount;

	cutover_applier_scratch(applier, table, &row);
	/* new may have it though the filter does not let it pass */
	table->filter = NULL;
	(void) cutover_rowmap_row(layout, image, false, NULL, &row);
	table->filter = filter;

	old = MemoryContextSwitchTo(applier->step_context);
	initStringInfo(&buf);
	recount_bytes(table, &row, &buf);
	recount = palloc0(sizeof(Recount));
	recount->table_id = table->table_id;
	recount->xid = applier->current_xid;
	recount->json = pstrdup(cutover_rowmap_key_json(layout, image));
	recount->bytes = buf.data;
	recount->nbytes = buf.len;
	recount->values = palloc0(sizeof(char *) * table->apply.ncols);
	recount->lens = palloc0(sizeof(int) * table->apply.ncols);
	for (int i = 0; i < table->apply.ncols; i++)
		if (row.values[i] != NULL)
		{
			recount->values[i] = pstrdup(row.values[i]);
			recount->lens[i] = row.lens[i];
		}
	applier->recounts = lappend(applier->recounts, recount);
	MemoryContextSwitchTo(old);
}

/*
 * The row asked for that has these values, or NULL.
 */
static Recount *
recount_find(RecountTable *rt, const CutoverApplyRow *row)
{
	RecountEntry *entry;
	uint64		hash;

	recount_bytes(rt->table, row, &rt->key);
	hash = hash_bytes_extended((unsigned char *) rt->key.data, rt->key.len, 0);
	entry = hash_search(rt->hash, &hash, HASH_FIND, NULL);
	for (Recount *r = entry ? entry->first : NULL; r != NULL; r = r->next)
		if (r->nbytes == rt->key.len && memcmp(r->bytes, rt->key.data, r->nbytes) == 0)
			return r;
	return NULL;
}

/*
 * Put the rows of one table into a hash; a row asked for twice counts once.
 */
static void
recount_collect(RecountTable *rt, CutoverApplier *applier, CutoverTable *table)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(RecountEntry),.hcxt = applier->step_context};
	ListCell   *lc;

	rt->applier = applier;
	rt->table = table;
	rt->rows = NIL;
	initStringInfo(&rt->key);
	rt->hash = hash_create("cutover recount", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, applier->recounts)
	{
		Recount    *recount = lfirst(lc);
		CutoverApplyRow row = {.values = recount->values,.lens = recount->lens};
		RecountEntry *entry;
		uint64		hash;
		bool		found;

		if (recount->table_id != table->table_id || recount_find(rt, &row) != NULL)
			continue;
		hash = hash_bytes_extended((unsigned char *) recount->bytes, recount->nbytes, 0);
		entry = hash_search(rt->hash, &hash, HASH_ENTER, &found);
		recount->next = found ? entry->first : NULL;
		entry->first = recount;
		rt->rows = lappend(rt->rows, recount);
	}
}

/*
 * Count the copies on old now.
 */
static void
recount_old(RecountTable *rt)
{
	CutoverTable *table = rt->table;
	Portal		portal;
	SPIPlanPtr	plan;
	char	   *sql = psprintf("SELECT * FROM %s%s",
							   get_rel_relkind(table->relid) == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ", table->old_name);

	SPI_connect();
	plan = SPI_prepare(sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not read %s", table->old_name);
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, RECOUNT_FETCH);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			MemoryContext spi = MemoryContextSwitchTo(rt->applier->row_context);
			CutoverApplyRow row;
			Recount    *recount;
			int			col = 0;

			cutover_applier_scratch(rt->applier, table, &row);
			ExecClearTuple(table->slot);
			for (int a = 0; a < table->desc->natts; a++)
			{
				table->slot->tts_isnull[a] = true;
				/* the result has no dropped columns */
				if (!TupleDescAttr(table->desc, a)->attisdropped)
					table->slot->tts_values[a] = heap_getattr(SPI_tuptable->vals[i], ++col, SPI_tuptable->tupdesc,
															  &table->slot->tts_isnull[a]);
			}
			ExecStoreVirtualTuple(table->slot);
			if (cutover_table_row(table, table->slot, &row) && (recount = recount_find(rt, &row)) != NULL)
				recount->wanted++;
			ExecClearTuple(table->slot);
			MemoryContextReset(rt->applier->row_context);
			MemoryContextSwitchTo(spi);
		}
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
	SPI_finish();
}

/*
 * Take one image of a later change off, or put it back.
 */
static bool
recount_undo_image(RecountTable *rt, CutoverLayout *layout, HeapTuple image, int64 copies)
{
	CutoverApplyRow row;
	Recount    *recount;

	if (image == NULL)
		return true;
	cutover_applier_scratch(rt->applier, rt->table, &row);
	if (!cutover_rowmap_row(layout, image, false, NULL, &row))
		return true;			/* filtered out */
	if (!bms_is_empty(row.absent))
		return false;
	recount = recount_find(rt, &row);
	if (recount != NULL)
		recount->wanted += copies;
	return true;
}

/*
 * Take off what happened after the step.  False: it can't be told.
 */
static bool
recount_undo_later(RecountTable *rt, bool finished)
{
	CutoverApplier *applier = rt->applier;
	CutoverBlockRef *refs;
	int			nrefs = cutover_window_later(applier->window, finished, applier->last_lsn, applier->last_xid, &refs);
	bool		ok = true;

	for (int i = 0; i < nrefs && ok; i++)
	{
		MemoryContext caller = MemoryContextSwitchTo(applier->block_context);
		CutoverReader reader;
		CutoverChange change;

		cutover_reader_open(&reader, applier->window, &refs[i]);
		while (ok && cutover_reader_next(&reader, &change))
		{
			if (change.op == CUTOVER_OP_CONTROL)
			{
				/* a schema change: old has another shape now */
				ok = change.kind != CUTOVER_CONTROL_DDL;
				continue;
			}
			if (change.layout->table != rt->table || change.op == CUTOVER_OP_REFRESH)
				continue;
			/* what a TRUNCATE took away can't be counted any more */
			ok = change.op != CUTOVER_OP_TRUNCATE && bms_is_empty(change.elided) &&
				cutover_rowmap_resolve(change.layout, applier->session->ep) &&
				recount_undo_image(rt, change.layout, change.old, 1) &&
				recount_undo_image(rt, change.layout, change.new, -1);
		}
		MemoryContextSwitchTo(caller);
		MemoryContextReset(applier->block_context);
		CHECK_FOR_INTERRUPTS();
	}
	return ok;
}

/*
 * Count the copies on new.
 */
static void
recount_new(RecountTable *rt)
{
	int			n = list_length(rt->rows);
	int			ncols = rt->table->apply.ncols;
	const char **params = palloc(sizeof(char *) * Max(ncols, 1));
	Datum	   *values = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	int			lower = 1;
	ArrayType  *array;
	CutoverRows *rows;

	for (int c = 0; c < ncols; c++)
	{
		for (int i = 0; i < n; i++)
		{
			Recount    *recount = list_nth(rt->rows, i);

			nulls[i] = recount->values[c] == NULL;
			values[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(recount->values[c]);
		}
		array = construct_md_array(values, nulls, 1, &n, &lower, TEXTOID, -1, false, TYPALIGN_INT);
		params[c] = OidOutputFunctionCall(F_ARRAY_OUT, PointerGetDatum(array));
	}
	rows = cutover_endpoint_exec_params(rt->applier->session->ep, cutover_apply_sql_count_rows(&rt->table->apply), ncols, params);
	for (int i = 0; i < rows->nrows; i++)
	{
		Recount    *recount = list_nth(rt->rows, pg_strtoint32(CUTOVER_CELL(rows, i, 0)) - 1);

		recount->there = strtoll(CUTOVER_CELL(rows, i, 1), NULL, 10);
	}
}

/*
 * Write one row as often as it lacks, or delete it as often as it is too much.
 */
static void
recount_write(RecountTable *rt, Recount *recount)
{
	CutoverApplier *applier = rt->applier;
	CutoverApplyTable *apply = &rt->table->apply;
	CutoverApplyRow row = {.values = recount->values,.lens = recount->lens};
	int64		n = recount->wanted - recount->there;
	bool		done = true;

	row.op = n > 0 ? CUTOVER_APPLY_INSERT : CUTOVER_APPLY_DELETE;
	for (int64 i = 0; done && i < (n > 0 ? n : -n); i++)
	{
		ErrorData  *error;
		bool		missed;

		if (!applier->replay)
			cutover_apply_add(applier->apply, apply, &row);
		else if (!cutover_apply_one(applier->apply, apply, &row, &error, &missed))
		{
			done = false;
			cutover_refresh_fail(applier, rt->table->table_id, recount->xid, recount->json, error->sqlerrcode, error->message);
		}
	}
	if (done && rt->table->error_keys != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(applier->step_context);
		CutoverRefresh *refresh = palloc0(sizeof(CutoverRefresh));

		refresh->table_id = rt->table->table_id;
		refresh->json = recount->json;
		applier->resolved = lappend(applier->resolved, refresh);
		MemoryContextSwitchTo(old);
	}
}

/*
 * Count and write the rows asked for of one table.
 */
static void
recount_table(CutoverApplier *applier, CutoverTable *table, bool finished)
{
	RecountTable rt;
	ListCell   *lc;

	recount_collect(&rt, applier, table);
	if (rt.rows == NIL)
		return;
	recount_old(&rt);
	if (!recount_undo_later(&rt, finished))
		return;					/* the difference stays open: whoever asked will ask again */
	cutover_applier_begin(applier);
	cutover_endpoint_sync(applier->session->ep);
	recount_new(&rt);
	foreach(lc, rt.rows)
		recount_write(&rt, lfirst(lc));
	cutover_applier_flush(applier);
}

/*
 * Serve all that was noted in this step, whose changes have been sent.
 */
void
cutover_recount_run(CutoverApplier *applier, bool finished)
{
	MemoryContext context;
	MemoryContext caller;
	ListCell   *lc;

	if (applier->recounts == NIL)
		return;
	context = AllocSetContextCreate(applier->step_context, "cutover recount", ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(context);
	foreach(lc, cutover_mapping_tables())
	{
		CutoverTable *table = lfirst(lc);

		/* one that is being copied has its rows from there */
		if (table->nkeys == 0 && (table->phase == CUTOVER_PHASE_SYNCED || table->phase == CUTOVER_PHASE_INDEXING))
			recount_table(applier, table, finished);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
}
