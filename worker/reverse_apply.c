/*
 * reverse_apply.c - changes of new's queue, written to old.
 *
 * Runs in the replicator.  Of most tables the queue has keys: each is read
 * again from new, in a snapshot that sees the change, and old's row becomes what
 * is there, so there is no order to get wrong.  Tables without a key, or whose key
 * on old is computed, come as rows, in order.  If old refuses a set, the
 * step is gone through once more, each row by itself in a savepoint.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "lib/stringinfo.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "compat.h"
#include "guc.h"
#include "retry.h"
#include "reverse_apply.h"
#include "reverse_private.h"
#include "reverse_state.h"

/* keys or rows that are asked for before waiting, at most; and how many bytes that should be */
#define READ_SLICE 1000
#define READ_BYTES (4 * 1024 * 1024)

void
cutover_reverse_begin_reading(CutoverEndpoint *new)
{
	cutover_endpoint_queue(new, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", 0, NULL, false);
}

/* ---- collecting ---- */

static ReverseWork *
reverse_work(CutoverReverseStep *step, CutoverReverseTable *table)
{
	ReverseWork *work;
	ListCell   *lc;

	foreach(lc, step->work)
		if (((ReverseWork *) lfirst(lc))->table == table)
			return lfirst(lc);
	work = palloc0(sizeof(ReverseWork));
	work->table = table;
	step->work = lappend(step->work, work);
	return work;
}

static ReverseItem *
reverse_add_item(CutoverReverseStep *step, CutoverReverseTable *table, char *json)
{
	ReverseWork *work = reverse_work(step, table);
	ReverseItem *item;

	if (work->nitems == work->maxitems)
	{
		work->maxitems = Max(64, work->maxitems * 2);
		work->items = work->items ? repalloc_huge(work->items, work->maxitems * sizeof(ReverseItem)) :
			palloc(work->maxitems * sizeof(ReverseItem));
	}
	item = &work->items[work->nitems++];
	memset(item, 0, sizeof(ReverseItem));
	item->table = table;
	item->json = json;
	return item;
}

/*
 * Old's table is emptied: rows outside the filter stay.  TRUNCATE would wait for
 * readers and keep others waiting; it is tried for a moment only.
 */
static void
reverse_truncate(CutoverReverseStep *step, CutoverReverseTable *table)
{
	MemoryContext former = CurrentMemoryContext;
	CutoverApplyTable *target = &table->apply;
	char	   *name = psprintf("%s%s", target->truncate_only ? "ONLY " : "", quote_qualified_identifier(target->schema, target->name));
	volatile bool done = false;

	if (table->filter != NULL)
	{
		cutover_endpoint_queue(step->old, psprintf("DELETE FROM %s WHERE %s", name, table->filter), 0, NULL, false);
		return;
	}
	cutover_endpoint_queue(step->old, CUTOVER_SAVEPOINT, 0, NULL, false);
	PG_TRY();
	{
		cutover_endpoint_queue(step->old, "SET LOCAL lock_timeout = 100", 0, NULL, false);
		cutover_endpoint_queue(step->old, psprintf("TRUNCATE %s", name), 0, NULL, false);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(former);
		error = CopyErrorData();
		/* a reader, or a foreign key from a table that stays here */
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE && error->sqlerrcode != ERRCODE_FEATURE_NOT_SUPPORTED &&
			error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED)
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(error);
	}
	PG_END_TRY();
	if (done)
	{
		cutover_endpoint_queue(step->old, "SET LOCAL lock_timeout = 0", 0, NULL, false);
		cutover_endpoint_queue(step->old, CUTOVER_SAVEPOINT_RELEASE, 0, NULL, false);
		return;
	}
	(void) cutover_endpoint_exec(step->old, CUTOVER_SAVEPOINT_ROLL_BACK);
	cutover_endpoint_queue(step->old, psprintf("DELETE FROM %s", name), 0, NULL, false);
}

/*
 * Take a change.
 */
void
cutover_reverse_take(CutoverReverseStep *step, CutoverReverseTable *table, char op, char *old_key, char *new_key)
{
	MemoryContext former = MemoryContextSwitchTo(step->context);

	if (op == 'T')
	{
		/* what came before does not matter any more; what is collected of it would be read as it is now */
		cutover_reverse_read(step);
		cutover_apply_flush(step->apply);
		cutover_endpoint_run_as(step->old, table->apply.run_as);
		reverse_truncate(step, table);
		cutover_endpoint_run_as(step->old, InvalidOid);
	}
	else if (!table->whole)
	{
		if (old_key != NULL)
			reverse_add_item(step, table, old_key);
		if (new_key != NULL)
			reverse_add_item(step, table, new_key);
	}
	else
	{
		char	   *source = cutover_reverse_source(op, old_key, new_key);

		if (old_key != NULL)
		{
			ReverseItem *item = reverse_add_item(step, table, old_key);

			item->gone = true;
			item->paired = new_key != NULL;
			item->source = source;
		}
		if (new_key != NULL)
			reverse_add_item(step, table, new_key)->source = source;
	}
	MemoryContextSwitchTo(former);
}

/* ---- reading ---- */

static int
reverse_item_cmp(const void *a, const void *b)
{
	return strcmp(((const ReverseItem *) a)->json, ((const ReverseItem *) b)->json);
}

/*
 * Each key once: however often it changed, it is read once.
 */
static void
reverse_unique(ReverseWork *work)
{
	int			n = 0;

	qsort(work->items, work->nitems, sizeof(ReverseItem), reverse_item_cmp);
	for (int i = 0; i < work->nitems; i++)
		if (n == 0 || strcmp(work->items[n - 1].json, work->items[i].json) != 0)
			work->items[n++] = work->items[i];
	work->nitems = n;
}

/*
 * Values as binary text[].
 */
static void
reverse_array(CutoverParam *param, char **values, int n)
{
	StringInfoData buf;
	bool		has_null = false;

	for (int i = 0; i < n; i++)
		has_null |= values[i] == NULL;
	initStringInfo(&buf);
	for (int i = 0; i < 5; i++)
	{
		uint32		word = i == 0 ? 1 : i == 1 ? has_null : i == 2 ? TEXTOID : i == 3 ? n : 1;

		word = pg_hton32(word);
		appendBinaryStringInfo(&buf, (char *) &word, sizeof(word));
	}
	for (int i = 0; i < n; i++)
	{
		int32		len = values[i] ? (int32) strlen(values[i]) : -1;
		uint32		word = pg_hton32((uint32) len);

		appendBinaryStringInfo(&buf, (char *) &word, sizeof(word));
		if (len > 0)
			appendBinaryStringInfo(&buf, values[i], len);
	}
	param->data = buf.data;
	param->len = buf.len;
	param->binary = true;
}

/*
 * Keep an answer until it is its turn.
 */
static void
reverse_fetched(void *arg, CutoverRows *rows)
{
	ReverseFetch *fetch = arg;
	MemoryContext former = MemoryContextSwitchTo(fetch->step->slice_context);
	CutoverRows *copy = palloc0(sizeof(CutoverRows));
	Size		bytes = 0;

	copy->nrows = rows->nrows;
	copy->ncols = rows->ncols;
	copy->values = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(char *) * Max((Size) rows->nrows * rows->ncols, 1));
	for (Size i = 0; i < (Size) rows->nrows * rows->ncols; i++)
	{
		copy->values[i] = rows->values[i] ? pstrdup(rows->values[i]) : NULL;
		bytes += rows->values[i] ? strlen(rows->values[i]) : 0;
	}
	fetch->rows = copy;
	/* grow slowly, shrink at once */
	if (rows->nrows > 0)
		fetch->table->slice = Max(1, Min(Min(READ_SLICE, 2 * fetch->table->slice), (int) (READ_BYTES / (bytes / rows->nrows + 1))));
	MemoryContextSwitchTo(former);
}

/*
 * Ask new for some items of a table.
 */
static void
reverse_ask(CutoverReverseStep *step, CutoverReverseTable *table, ReverseItem *items, int n)
{
	MemoryContext former = MemoryContextSwitchTo(step->slice_context);
	ReverseFetch *fetch = palloc0(sizeof(ReverseFetch));
	int			nparams = table->whole ? 1 : table->ncaptured;
	CutoverParam *params = palloc0(sizeof(CutoverParam) * nparams);
	char	 ***values = palloc(sizeof(char **) * nparams);

	for (int p = 0; p < nparams; p++)
		values[p] = palloc(sizeof(char *) * n);
	for (int i = 0; i < n; i++)
	{
		if (table->whole)
			values[0][i] = items[i].json;
		else
		{
			Jsonb	   *json = cutover_reverse_json(items[i].json);

			for (int p = 0; p < nparams; p++)
				values[p][i] = cutover_reverse_json_value(json, table->captured[p]);
		}
	}
	for (int p = 0; p < nparams; p++)
		reverse_array(&params[p], values[p], n);
	fetch->step = step;
	fetch->table = table;
	fetch->items = items;
	step->fetched = lappend(step->fetched, fetch);
	step->pending += n;
	cutover_endpoint_queue_rows(step->new, table->fetch, nparams, params, reverse_fetched, fetch);
	MemoryContextSwitchTo(former);
}

/*
 * In replay: one item by itself, as new may fail on it, too.
 */
static void
reverse_read_single(CutoverReverseStep *step, CutoverReverseTable *table, ReverseItem *items, int n)
{
	MemoryContext former = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		reverse_ask(step, table, items, n);
		cutover_endpoint_sync(step->new);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(former);
		error = CopyErrorData();
		if (cutover_retry_classify(error->sqlerrcode) != CUTOVER_ERROR_DATA)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error == NULL)
	{
		cutover_reverse_emit_fetched(step);
		return;
	}
	step->fetched = NIL;
	step->pending = 0;
	MemoryContextReset(step->slice_context);
	if (!cutover_endpoint_reset(step->new))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("lost the connection to new")));
	cutover_reverse_begin_reading(step->new);
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION)
	{
		/* no row of this table can be read */
		cutover_reverse_state_close(table->table_id, psprintf("its rows can not be read on new: %s", error->message));
		table->open = false;
		return;
	}
	cutover_reverse_note(step, &items[n - 1], NULL, error->sqlerrcode, error->message);
}

/*
 * Read what was collected.
 */
void
cutover_reverse_read(CutoverReverseStep *step)
{
	ListCell   *lc;

	foreach(lc, step->work)
	{
		ReverseWork *work = lfirst(lc);
		int			n;

		if (!work->table->whole)
			reverse_unique(work);
		for (int i = 0; i < work->nitems; i += n)
		{
			n = Min(work->nitems - i, step->replay ? 1 : work->table->slice);
			if (!work->table->open)
				break;
			/* what a row was and what it is stay together */
			if (work->items[i + n - 1].paired)
				n++;
			if (step->replay)
				reverse_read_single(step, work->table, &work->items[i], n);
			else
				reverse_ask(step, work->table, &work->items[i], n);
			/* several tables at once, as long as that is little */
			if (step->pending >= READ_SLICE || i + n < work->nitems)
			{
				cutover_endpoint_sync(step->new);
				cutover_reverse_emit_fetched(step);
			}
		}
	}
	if (step->pending > 0)
	{
		cutover_endpoint_sync(step->new);
		cutover_reverse_emit_fetched(step);
	}
	foreach(lc, step->work)
		if (((ReverseWork *) lfirst(lc))->items)
			pfree(((ReverseWork *) lfirst(lc))->items);
	step->work = NIL;
}
