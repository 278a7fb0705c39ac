/*
 * apply.c - from collected rows to the order in which new gets them.
 *
 * Runs in the replicator.  Of all tables first the deletes, children before
 * parents; then the rest, parents before children, and of each table first
 * what changes rows (it may free a value of another unique index), then what adds them.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "apply_private.h"
#include "retry.h"

/* After so many rows the endpoint gets a chance to move bytes. */
#define APPLY_POLL_ROWS 128

/* So many rows are worth a flush: enough for several statements, few enough to be sent while the next are collected. */
#define APPLY_EAGER_ROWS 4000

static int	apply_by_rank(const void *a, const void *b);
static ApplyTable **apply_tables(CutoverApply *apply, int *n);
static List *apply_groups(ApplyTable *t);
static void apply_group_add(List **groups, CutoverApplyOp op, ApplyRow *row);
static void apply_send(CutoverApply *apply, CutoverApplyTable *table, List *groups, CutoverApplyOp op);
static void apply_send_single(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row);

/*
 * An empty collection.
 */
CutoverApply *
cutover_apply_create(CutoverEndpoint *ep)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "cutover apply", ALLOCSET_DEFAULT_SIZES);
	CutoverApply *apply = MemoryContextAllocZero(cxt, sizeof(CutoverApply));
	MemoryContext former = MemoryContextSwitchTo(cxt);

	apply->ep = ep;
	apply->cxt = cxt;
	apply->rows_cxt = AllocSetContextCreate(cxt, "cutover apply rows", ALLOCSET_DEFAULT_SIZES);
	apply->flush_cxt = AllocSetContextCreate(cxt, "cutover apply flush", ALLOCSET_DEFAULT_SIZES);
	apply->missed_cxt = AllocSetContextCreate(cxt, "cutover apply missed", ALLOCSET_SMALL_SIZES);
	initStringInfo(&apply->key);
	MemoryContextSwitchTo(former);
	return apply;
}

/*
 * Forget everything.
 */
void
cutover_apply_reset(CutoverApply *apply)
{
	cutover_coalesce_forget(apply);
	apply->missed = NIL;
	apply->awaited = 0;
	MemoryContextReset(apply->missed_cxt);
}

void
cutover_apply_destroy(CutoverApply *apply)
{
	MemoryContextDelete(apply->cxt);
}

/*
 * Add a change.
 */
void
cutover_apply_add(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row)
{
	cutover_coalesce_add(apply, table, row);
	if (++apply->polled >= APPLY_POLL_ROWS)
	{
		apply->polled = 0;
		cutover_endpoint_poll(apply->ep);
	}
}

Size
cutover_apply_memory(CutoverApply *apply)
{
	return apply->memory;
}

uint64
cutover_apply_rows(CutoverApply *apply)
{
	return apply->nrows;
}

/*
 * Whether to flush before the caller's limits say so.
 */
bool
cutover_apply_wants_flush(CutoverApply *apply, bool boundary)
{
	return apply->nrows >= APPLY_EAGER_ROWS && apply->nchanges < apply->nrows + apply->nrows / 4 &&
		(boundary || cutover_endpoint_is_replica(apply->ep));
}

/*
 * Order of tables: parents first.
 */
static int
apply_by_rank(const void *a, const void *b)
{
	const CutoverApplyTable *left = (*(ApplyTable *const *) a)->table;
	const CutoverApplyTable *right = (*(ApplyTable *const *) b)->table;

	if (left->fk_rank != right->fk_rank)
		return left->fk_rank < right->fk_rank ? -1 : 1;
	return left->table_id < right->table_id ? -1 : left->table_id > right->table_id;
}

/*
 * The tables that have rows, in that order.
 */
static ApplyTable **
apply_tables(CutoverApply *apply, int *n)
{
	ApplyTable **tables = palloc(sizeof(ApplyTable *) * hash_get_num_entries(apply->tables));
	HASH_SEQ_STATUS seq;
	ApplyTable *t;

	*n = 0;
	hash_seq_init(&seq, apply->tables);
	while ((t = hash_seq_search(&seq)) != NULL)
		tables[(*n)++] = t;
	qsort(tables, *n, sizeof(ApplyTable *), apply_by_rank);
	return tables;
}

/*
 * Rows of a table by what is done with them and by the columns they lack.
 */
static List *
apply_groups(ApplyTable *t)
{
	List	   *groups = NIL;

	for (int i = 0; i < t->nrows; i++)
	{
		ApplyRow   *row = t->rows[i];
		CutoverApplyOp op = row->op;

		if (row->op == APPLY_NOTHING)
			continue;
		if (op == CUTOVER_APPLY_INSERT && t->table->may_conflict && t->table->nkeys > 0)
			op = CUTOVER_APPLY_UPSERT;
		/* with no key there is nothing to conflict with */
		if (op == CUTOVER_APPLY_UPSERT && t->table->nkeys == 0)
			op = CUTOVER_APPLY_INSERT;
		apply_group_add(&groups, op, row);
	}
	return groups;
}

/*
 * Add a row to its group.
 */
static void
apply_group_add(List **groups, CutoverApplyOp op, ApplyRow *row)
{
	ApplyGroup *group = NULL;
	int64		times = 1;
	ListCell   *lc;

	foreach(lc, *groups)
	{
		ApplyGroup *g = lfirst(lc);

		if (g->op == op && bms_equal(g->absent, row->absent))
		{
			group = g;
			break;
		}
	}
	if (group == NULL)
	{
		group = palloc0(sizeof(ApplyGroup));
		group->op = op;
		group->absent = row->absent;
		group->only_key = row->only_key;
		*groups = lappend(*groups, group);
	}
	/* with INSERT each of several equal rows is written by itself */
	if (op == CUTOVER_APPLY_INSERT && row->count > 1)
		times = row->count;
	for (; times > 0; times--)
	{
		if (group->nrows == group->maxrows)
		{
			group->maxrows = Max(64, group->maxrows * 2);
			group->rows = group->rows ? repalloc_huge(group->rows, sizeof(ApplyRow *) * group->maxrows) :
				palloc(sizeof(ApplyRow *) * group->maxrows);
		}
		group->rows[group->nrows++] = row;
	}
}

/*
 * Queue the groups of one kind.
 */
static void
apply_send(CutoverApply *apply, CutoverApplyTable *table, List *groups, CutoverApplyOp op)
{
	ListCell   *lc;

	foreach(lc, groups)
	{
		ApplyGroup *group = lfirst(lc);

		if (group->op == op)
			cutover_apply_send_group(apply, table, group);
	}
}

/*
 * Queue everything, and forget it.
 */
void
cutover_apply_flush(CutoverApply *apply)
{
	static const CutoverApplyOp order[] = {CUTOVER_APPLY_UPDATE, CUTOVER_APPLY_UPSERT, CUTOVER_APPLY_INSERT};
	MemoryContext former;
	ApplyTable **tables;
	List	  **groups;
	int			n;

	if (apply->nrows == 0)
		return;
	/* what a failed flush left goes with the next */
	MemoryContextReset(apply->flush_cxt);
	former = MemoryContextSwitchTo(apply->flush_cxt);
	tables = apply_tables(apply, &n);
	groups = palloc(sizeof(List *) * n);
	for (int i = 0; i < n; i++)
		groups[i] = apply_groups(tables[i]);
	for (int i = n - 1; i >= 0; i--)
		apply_send(apply, tables[i]->table, groups[i], CUTOVER_APPLY_DELETE);
	for (int i = 0; i < n; i++)
		for (int j = 0; j < lengthof(order); j++)
			apply_send(apply, tables[i]->table, groups[i], order[j]);
	MemoryContextSwitchTo(former);
	MemoryContextReset(apply->flush_cxt);
	cutover_coalesce_forget(apply);
}

/*
 * Queue a TRUNCATE of all tables at once, so that foreign keys among them don't matter.
 */
void
cutover_apply_truncate(CutoverApply *apply, CutoverApplyTable **tables, int ntables, bool restart_seqs)
{
	StringInfoData sql;

	cutover_apply_flush(apply);
	if (ntables == 0)
		return;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "TRUNCATE ");
	for (int i = 0; i < ntables; i++)
		appendStringInfo(&sql, "%s%s%s", i > 0 ? ", " : "", tables[i]->truncate_only ? "ONLY " : "",
						 cutover_apply_sql_name(tables[i]));
	if (restart_seqs)
		appendStringInfoString(&sql, " RESTART IDENTITY");
	cutover_endpoint_queue(apply->ep, sql.data, 0, NULL, false);
	pfree(sql.data);
}

/*
 * Queue one row in a savepoint and wait for it.
 */
static void
apply_send_single(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row)
{
	ApplyTable	t = {.table = table,.nrows = 1};
	ApplyRow   *kept = cutover_coalesce_single(apply, table, row);
	List	   *groups;

	t.rows = &kept;
	groups = apply_groups(&t);
	cutover_endpoint_queue(apply->ep, CUTOVER_SAVEPOINT, 0, NULL, false);
	cutover_apply_send_group(apply, table, linitial(groups));
	cutover_endpoint_queue(apply->ep, CUTOVER_SAVEPOINT_RELEASE, 0, NULL, false);
	(void) cutover_endpoint_sync(apply->ep);
}

/*
 * One row by itself.
 */
bool
cutover_apply_one(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row,
				  ErrorData **error, bool *missed)
{
	MemoryContext former = CurrentMemoryContext;
	MemoryContext cxt = AllocSetContextCreate(former, "cutover apply one", ALLOCSET_DEFAULT_SIZES);
	int			before;
	volatile bool done = false;

	if (apply->nrows > 0)
		elog(ERROR, "rows are held back while one is applied by itself");
	/* an earlier failure must not be taken for one of this row */
	(void) cutover_endpoint_sync(apply->ep);
	before = list_length(apply->missed);
	*error = NULL;
	PG_TRY();
	{
		MemoryContextSwitchTo(cxt);
		apply_send_single(apply, table, row);
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(former);
		*error = CopyErrorData();
		if (cutover_retry_classify((*error)->sqlerrcode) != CUTOVER_ERROR_DATA)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(former);
	cutover_coalesce_forget(apply);
	MemoryContextDelete(cxt);
	if (!done)
		(void) cutover_endpoint_exec(apply->ep, CUTOVER_SAVEPOINT_ROLL_BACK);
	if (missed)
		*missed = list_length(apply->missed) > before;
	return done;
}

/*
 * Remember a key whose row was not there.
 */
void
cutover_apply_add_missed(CutoverApply *apply, CutoverApplyTable *table, char **key)
{
	MemoryContext former = MemoryContextSwitchTo(apply->missed_cxt);
	CutoverMissedKey *missed = palloc(sizeof(CutoverMissedKey));

	missed->table = table;
	missed->key = palloc(sizeof(char *) * table->nkeys);
	for (int i = 0; i < table->nkeys; i++)
		missed->key[i] = key[i] ? pstrdup(key[i]) : NULL;
	apply->missed = lappend(apply->missed, missed);
	MemoryContextSwitchTo(former);
}

/*
 * Hand out the missed keys known by now: after a sync, all.
 */
int
cutover_apply_missed(CutoverApply *apply, CutoverMissedKey **keys)
{
	int			n = list_length(apply->missed);
	ListCell   *lc;
	int			i = 0;

	*keys = palloc(sizeof(CutoverMissedKey) * Max(n, 1));
	foreach(lc, apply->missed)
	{
		CutoverMissedKey *from = lfirst(lc);

		(*keys)[i].table = from->table;
		(*keys)[i].key = palloc(sizeof(char *) * from->table->nkeys);
		for (int j = 0; j < from->table->nkeys; j++)
			(*keys)[i].key[j] = from->key[j] ? pstrdup(from->key[j]) : NULL;
		i++;
	}
	apply->missed = NIL;
	if (apply->awaited == 0)
		MemoryContextReset(apply->missed_cxt);
	return n;
}
