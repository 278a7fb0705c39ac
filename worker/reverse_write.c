/*
 * reverse_write.c - rows of new on their way to old.
 *
 * Runs in the replicator.  Part of a step (worker/reverse_apply.c): what new has
 * answered is collected by worker/apply.c, or, in replay, written row by row;
 * what the row filter or old refuses is noted.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "compat.h"
#include "guc.h"
#include "reverse_apply.h"
#include "reverse_private.h"

/*
 * What has to be put into new's queue to have an item looked at again.
 */
char *
cutover_reverse_source(char op, const char *old_key, const char *new_key)
{
	return psprintf("{\"op\": \"%c\", \"old\": %s, \"new\": %s}", op, old_key ? old_key : "null", new_key ? new_key : "null");
}

/*
 * The value of a key in a JSON object of texts; NULL for null.
 */
char *
cutover_reverse_json_value(Jsonb *object, const char *name)
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

Jsonb *
cutover_reverse_json(const char *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

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
void
cutover_reverse_note(CutoverReverseStep *step, ReverseItem *item, char **values, int sqlerrcode, const char *message)
{
	MemoryContext former = MemoryContextSwitchTo(step->context);
	CutoverReverseFailure *note = palloc0(sizeof(CutoverReverseFailure));

	note->table_id = item->table->table_id;
	note->key = values ? reverse_key_json(item->table, values) : pstrdup(item->json);
	if (message != NULL)
	{
		note->source = item->source ? item->source : cutover_reverse_source('R', NULL, item->json);
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
			cutover_reverse_note(step, item, row->values, ERRCODE_CHECK_VIOLATION, why);
		else if (table->has_errors)
			cutover_reverse_note(step, item, row->values, 0, NULL);
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
			cutover_reverse_note(step, item, row->values, error->sqlerrcode, error->message);
		return;
	}
	if (table->has_errors)
		cutover_reverse_note(step, item, row->values, 0, NULL);
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
		Jsonb	   *json = cutover_reverse_json(item->json);

		row->op = CUTOVER_APPLY_DELETE;
		for (int k = 0; k < table->apply.nkeys; k++)
		{
			int			col = table->apply.keycols[k];

			row->values[col] = cutover_reverse_json_value(json, table->captured[k]);
			row->lens[col] = row->values[col] ? strlen(row->values[col]) : 0;
		}
	}
	reverse_emit(step, item, row);
}

/*
 * Write what has come, in the order in which it was asked for.
 */
void
cutover_reverse_emit_fetched(CutoverReverseStep *step)
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
				cutover_reverse_note(step, item, item->values, error->sqlerrcode, error->message);
			else if (pass == 1 && item->table->has_errors)
				cutover_reverse_note(step, item, item->values, 0, NULL);
		}
	step->again = NIL;
}
