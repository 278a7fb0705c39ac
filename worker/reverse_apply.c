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
#include "reverse_state.h"

/* keys or rows that are asked for before waiting, at most; and how many bytes that should be */
#define READ_SLICE 1000
#define READ_BYTES (4 * 1024 * 1024)

/* Something to read: a key, or a row as it was or is. */
typedef struct ReverseItem
{
	CutoverReverseTable *table;
	char	   *json;
	bool		gone;			/* whole: the row as it was */
	bool		paired;			/* whole: the row that the next item is about, before */
	char	   *source;			/* JSON for cutover._apply_error */
	char	  **values;			/* again: the row */
} ReverseItem;

typedef struct ReverseWork
{
	CutoverReverseTable *table;
	ReverseItem *items;
	int			nitems;
	int			maxitems;
	bool		truncated;
} ReverseWork;

/* An answer of new. */
typedef struct ReverseFetch
{
	CutoverReverseStep *step;
	CutoverReverseTable *table;
	ReverseItem *items;			/* what was asked for */
	CutoverRows *rows;
} ReverseFetch;

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
 * What has to be put into new's queue to have an item looked at again.
 */
static char *
reverse_source(char op, const char *old_key, const char *new_key)
{
	return psprintf("{\"op\": \"%c\", \"old\": %s, \"new\": %s}", op, old_key ? old_key : "null", new_key ? new_key : "null");
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
		reverse_truncate(step, table);
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
		char	   *source = reverse_source(op, old_key, new_key);

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
 * The value of a key in a JSON object of texts; NULL for null.
 */
static char *
reverse_json_value(Jsonb *object, const char *name)
{
	JsonbValue	key = {.type = jbvString};
	JsonbValue *value;

	key.val.string.val = unconstify(char *, name);
	key.val.string.len = strlen(name);
	value = findJsonbValueFromContainer(&object->root, JB_FOBJECT, &key);
	if (value == NULL || value->type != jbvString)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static Jsonb *
reverse_json(const char *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
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
			Jsonb	   *json = reverse_json(items[i].json);

			for (int p = 0; p < nparams; p++)
				values[p][i] = reverse_json_value(json, table->captured[p]);
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

/* ---- writing ---- */

/*
 * The key of a row of old (or, without one, the row) as people see it.
 */
static char *
reverse_key_json(CutoverReverseTable *table, char **values)
{
	CutoverApplyTable *apply = &table->apply;
	int			n = apply->nkeys > 0 ? apply->nkeys : apply->ncols;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i++)
	{
		int			col = apply->nkeys > 0 ? apply->keycols[i] : i;

		appendStringInfoString(&buf, i > 0 ? ", " : "");
		escape_json(&buf, apply->cols[col].name);
		appendStringInfoString(&buf, ": ");
		if (values[col] == NULL)
			appendStringInfoString(&buf, "null");
		else
			escape_json(&buf, values[col]);
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * Remember what became of a row: refused, or (message NULL) accepted after it was refused before.
 */
static void
reverse_note(CutoverReverseStep *step, ReverseItem *item, char **values, int sqlerrcode, const char *message)
{
	MemoryContext former = MemoryContextSwitchTo(step->context);
	CutoverReverseFailure *note = palloc0(sizeof(CutoverReverseFailure));

	note->table_id = item->table->table_id;
	note->key = values ? reverse_key_json(item->table, values) : pstrdup(item->json);
	if (message != NULL)
	{
		note->source = item->source ? item->source : reverse_source('R', NULL, item->json);
		note->sqlerrcode = sqlerrcode;
		note->message = pstrdup(message);
		step->failures = lappend(step->failures, note);
	}
	else
		step->resolved = lappend(step->resolved, note);
	MemoryContextSwitchTo(former);
}

static void
reverse_count_rows(void *arg, CutoverRows *rows)
{
	*(int *) arg += rows->nrows;
}

/*
 * Does the row filter leave old's row alone, or refuse this one?  NULL = neither.
 */
static const char *
reverse_filtered(CutoverReverseStep *step, CutoverReverseTable *table, const CutoverApplyRow *row)
{
	CutoverApplyTable *apply = &table->apply;
	CutoverParam *params = palloc0(sizeof(CutoverParam) * Max(apply->ncols, 1));
	int			found = 0;
	const char *why = NULL;

	cutover_endpoint_run_as(step->old, apply->run_as);
	if (table->outside != NULL)
	{
		for (int k = 0; k < apply->nkeys; k++)
			params[k].data = row->values[apply->keycols[k]];
		cutover_endpoint_queue_rows(step->old, table->outside, apply->nkeys, params, reverse_count_rows, &found);
		if (found > 0)
			why = "old has a row with this key that the row filter leaves out of the migration";
	}
	if (why == NULL && table->inside != NULL && row->op != CUTOVER_APPLY_DELETE)
	{
		for (int i = 0; i < apply->ncols; i++)
			params[i].data = row->values[i];
		cutover_endpoint_queue_rows(step->old, table->inside, apply->ncols, params, reverse_count_rows, &found);
		if (found == 0)
			why = "the row filter leaves this row out of the migration";
	}
	cutover_endpoint_run_as(step->old, InvalidOid);
	return why;
}

/*
 * One row to old: collected, or in replay at once.
 */
static void
reverse_emit(CutoverReverseStep *step, ReverseItem *item, CutoverApplyRow *row)
{
	CutoverReverseTable *table = item->table;
	const char *why = table->filter != NULL ? reverse_filtered(step, table, row) : NULL;
	ErrorData  *error = NULL;
	bool		missed;

	if (why != NULL)
	{
		/* a row that old never had, and that is gone again, is none of its business */
		if (row->op != CUTOVER_APPLY_DELETE)
			reverse_note(step, item, row->values, ERRCODE_CHECK_VIOLATION, why);
		else if (table->has_errors)
			reverse_note(step, item, row->values, 0, NULL);
		return;
	}
	if (!step->replay)
		cutover_apply_add(step->apply, &table->apply, row);
	else if (!cutover_apply_one(step->apply, &table->apply, row, &error, &missed))
	{
		/* its unique value may sit in a row that is written later */
		if (table->apply.nkeys > 0 && row->op != CUTOVER_APPLY_DELETE &&
			(error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION || error->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION))
		{
			MemoryContext former = MemoryContextSwitchTo(step->context);
			ReverseItem *again = palloc(sizeof(ReverseItem));

			*again = *item;
			again->values = palloc(sizeof(char *) * table->apply.ncols);
			for (int i = 0; i < table->apply.ncols; i++)
				again->values[i] = row->values[i] ? pstrdup(row->values[i]) : NULL;
			step->again = lappend(step->again, again);
			MemoryContextSwitchTo(former);
		}
		else
			reverse_note(step, item, row->values, error->sqlerrcode, error->message);
		return;
	}
	if (table->has_errors)
		reverse_note(step, item, row->values, 0, NULL);
}

/*
 * Make row's scratch from an answer of new.
 */
static void
reverse_row(CutoverReverseTable *table, CutoverRows *rows, int i, CutoverApplyRow *row)
{
	for (int c = 0; c < table->apply.ncols; c++)
	{
		row->values[c] = CUTOVER_CELL(rows, i, c + 2);
		row->lens[c] = row->values[c] ? strlen(row->values[c]) : 0;
	}
}

/*
 * Do two answers have the same key?
 */
static bool
reverse_same_key(CutoverReverseTable *table, CutoverRows *rows, int a, int b)
{
	for (int k = 0; k < table->apply.nkeys; k++)
	{
		const char *left = CUTOVER_CELL(rows, a, table->apply.keycols[k] + 2);
		const char *right = CUTOVER_CELL(rows, b, table->apply.keycols[k] + 2);

		if (left == NULL || right == NULL || strcmp(left, right) != 0)
			return false;
	}
	return table->apply.nkeys > 0;
}

/*
 * A key, and the row that new has by now.
 */
static void
reverse_emit_key(CutoverReverseStep *step, ReverseItem *item, CutoverRows *rows, int i, CutoverApplyRow *row)
{
	CutoverReverseTable *table = item->table;

	row->op = CUTOVER_APPLY_UPSERT;
	reverse_row(table, rows, i, row);
	if (CUTOVER_CELL(rows, i, 1) == NULL)
	{
		Jsonb	   *json = reverse_json(item->json);

		row->op = CUTOVER_APPLY_DELETE;
		for (int k = 0; k < table->apply.nkeys; k++)
		{
			int			col = table->apply.keycols[k];

			row->values[col] = reverse_json_value(json, table->captured[k]);
			row->lens[col] = row->values[col] ? strlen(row->values[col]) : 0;
		}
	}
	reverse_emit(step, item, row);
}

/*
 * Write what has come, in the order in which it was asked for.
 */
static void
reverse_emit_fetched(CutoverReverseStep *step)
{
	ListCell   *lc;
	MemoryContext former = MemoryContextSwitchTo(step->slice_context);

	foreach(lc, step->fetched)
	{
		ReverseFetch *fetch = lfirst(lc);
		CutoverReverseTable *table = fetch->table;
		CutoverRows *rows = fetch->rows;
		CutoverApplyRow row = {0};
		int		   *place;

		row.values = palloc0(sizeof(char *) * Max(table->apply.ncols, 1));
		row.lens = palloc0(sizeof(int) * Max(table->apply.ncols, 1));
		/* answers come in any order */
		place = palloc(sizeof(int) * Max(rows->nrows, 1));
		memset(place, -1, sizeof(int) * Max(rows->nrows, 1));
		for (int i = 0; i < rows->nrows; i++)
			if (pg_strtoint32(CUTOVER_CELL(rows, i, 0)) <= rows->nrows)
				place[pg_strtoint32(CUTOVER_CELL(rows, i, 0)) - 1] = i;
		for (int n = 0; n < rows->nrows; n++)
		{
			ReverseItem *item = &fetch->items[n];

			if (place[n] < 0)
				continue;
			if (!table->whole)
			{
				reverse_emit_key(step, item, rows, place[n], &row);
				continue;
			}
			if (item->paired && n + 1 < rows->nrows && place[n + 1] >= 0 && reverse_same_key(table, rows, place[n], place[n + 1]))
				continue;		/* it becomes what the next item says */
			reverse_row(table, rows, place[n], &row);
			row.op = item->gone ? CUTOVER_APPLY_DELETE : table->apply.nkeys > 0 ? CUTOVER_APPLY_UPSERT : CUTOVER_APPLY_INSERT;
			reverse_emit(step, item, &row);
		}
	}
	step->fetched = NIL;
	step->pending = 0;
	MemoryContextSwitchTo(former);
	MemoryContextReset(step->slice_context);
	if (cutover_apply_memory(step->apply) > (Size) cutover_guc_apply_memory * 512)
		cutover_apply_flush(step->apply);
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
		reverse_emit_fetched(step);
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
	reverse_note(step, &items[n - 1], NULL, error->sqlerrcode, error->message);
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
				reverse_emit_fetched(step);
			}
		}
	}
	if (step->pending > 0)
	{
		cutover_endpoint_sync(step->new);
		reverse_emit_fetched(step);
	}
	foreach(lc, step->work)
		if (((ReverseWork *) lfirst(lc))->items)
			pfree(((ReverseWork *) lfirst(lc))->items);
	step->work = NIL;
}

/*
 * Rows that collided with others: first all of them go, then each comes.
 */
void
cutover_reverse_settle(CutoverReverseStep *step)
{
	ListCell   *lc;

	for (int pass = 0; pass < 2; pass++)
		foreach(lc, step->again)
		{
			ReverseItem *item = lfirst(lc);
			CutoverApplyTable *apply = &item->table->apply;
			CutoverApplyRow row = {.op = pass == 0 ? CUTOVER_APPLY_DELETE : CUTOVER_APPLY_UPSERT,.values = item->values};
			ErrorData  *error;
			bool		missed;

			row.lens = palloc0(sizeof(int) * Max(apply->ncols, 1));
			for (int i = 0; i < apply->ncols; i++)
				row.lens[i] = item->values[i] ? strlen(item->values[i]) : 0;
			if (!cutover_apply_one(step->apply, apply, &row, &error, &missed) && pass == 1)
				reverse_note(step, item, item->values, error->sqlerrcode, error->message);
			else if (pass == 1 && item->table->has_errors)
				reverse_note(step, item, item->values, 0, NULL);
		}
	step->again = NIL;
}
