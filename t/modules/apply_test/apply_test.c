/*
 * apply_test.c - drives the apply path from SQL, without a replicator.
 *
 * apply_test(conninfo, columns, ops, batch, mode) reads columns (a query with
 * table_id, schema, name, column, type, key position or 0, identity_always,
 * has_arbiter, may_conflict, fk_rank, type to cast to) and ops (table_id, op, values, absent
 * column numbers from 1) and applies them, batch changes a transaction.  mode
 * is "set" or "one".  Returns milliseconds, failures and missed keys.
 */
#include "postgres.h"

#include <sys/resource.h>

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "portability/instr_time.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "apply.h"
#include "endpoint.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(apply_test);

typedef struct TestOp
{
	CutoverApplyTable *table;
	CutoverApplyRow row;
} TestOp;

static List *tables = NIL;

static char *
cell(int row, int col)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col);
}

static CutoverApplyTable *
find_table(int id)
{
	ListCell   *lc;

	foreach(lc, tables)
		if (((CutoverApplyTable *) lfirst(lc))->table_id == id)
			return lfirst(lc);
	return NULL;
}

static void
read_tables(const char *sql)
{
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "no columns");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int			id = atoi(cell(i, 1));
		CutoverApplyTable *t = find_table(id);
		CutoverColumn *col;
		int			key = atoi(cell(i, 6));

		if (t == NULL)
		{
			t = palloc0(sizeof(CutoverApplyTable));
			t->table_id = id;
			t->schema = cell(i, 2);
			t->name = cell(i, 3);
			t->cols = palloc0(sizeof(CutoverColumn) * 1700);
			t->keycols = palloc0(sizeof(int) * 1700);
			t->has_arbiter = cell(i, 8)[0] == 't';
			t->may_conflict = cell(i, 9)[0] == 't';
			t->fk_rank = atoi(cell(i, 10));
			tables = lappend(tables, t);
		}
		col = &t->cols[t->ncols++];
		col->name = cell(i, 4);
		col->type = cell(i, 5);
		col->cast_type = cell(i, 11);
		col->is_key = key > 0;
		col->identity_always = cell(i, 7)[0] == 't';
		if (key > 0)
		{
			t->keycols[key - 1] = t->ncols - 1;
			t->nkeys = Max(t->nkeys, key);
		}
	}
}

static TestOp *
read_ops(const char *sql, int *n)
{
	TestOp	   *ops;

	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "no ops");
	*n = SPI_processed;
	ops = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(TestOp) * Max(1, *n));
	memset(ops, 0, sizeof(TestOp) * *n);
	for (int i = 0; i < *n; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		bool		isnull;
		Datum	   *elems;
		bool	   *nulls;
		int			nelems;
		char	   *op = cell(i, 2);
		CutoverApplyRow *row = &ops[i].row;

		ops[i].table = find_table(atoi(cell(i, 1)));
		row->op = *op == 'I' ? CUTOVER_APPLY_INSERT : *op == 'P' ? CUTOVER_APPLY_UPSERT :
			*op == 'U' ? CUTOVER_APPLY_UPDATE : CUTOVER_APPLY_DELETE;
		deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(tup, SPI_tuptable->tupdesc, 3, &isnull)),
						  TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls, &nelems);
		row->values = palloc(sizeof(char *) * nelems);
		row->lens = palloc0(sizeof(int) * nelems);
		for (int j = 0; j < nelems; j++)
		{
			row->values[j] = nulls[j] ? NULL : TextDatumGetCString(elems[j]);
			row->lens[j] = nulls[j] ? 0 : strlen(row->values[j]);
		}
		SPI_getbinval(tup, SPI_tuptable->tupdesc, 4, &isnull);
		if (!isnull)
		{
			deconstruct_array(DatumGetArrayTypeP(SPI_getbinval(tup, SPI_tuptable->tupdesc, 4, &isnull)),
							  INT4OID, 4, true, TYPALIGN_INT, &elems, &nulls, &nelems);
			for (int j = 0; j < nelems; j++)
				row->absent = bms_add_member(row->absent, DatumGetInt32(elems[j]) - 1);
		}
	}
	return ops;
}

Datum
apply_test(PG_FUNCTION_ARGS)
{
	char	   *conninfo = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			batch = PG_GETARG_INT32(3);
	bool		one = strcmp(text_to_cstring(PG_GETARG_TEXT_PP(4)), "one") == 0;
	CutoverEndpoint *volatile ep = NULL;
	CutoverApply *apply;
	TestOp	   *ops;
	int			n;
	int			failures = 0;
	int			nmissed = 0;
	struct rusage before,
				after;
	instr_time	start,
				end;
	StringInfoData buf;
	MemoryContext cxt = CurrentMemoryContext;

	SPI_connect();
	tables = NIL;
	read_tables(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	ops = read_ops(text_to_cstring(PG_GETARG_TEXT_PP(2)), &n);
	PG_TRY();
	{
		ep = cutover_endpoint_connect_info(conninfo, "apply_test");
		cutover_endpoint_set_apply_mode(ep);
		apply = cutover_apply_create(ep);
		getrusage(RUSAGE_SELF, &before);
		INSTR_TIME_SET_CURRENT(start);
		for (int i = 0; i < n;)
		{
			cutover_endpoint_queue(ep, "BEGIN", 0, NULL, false);
			for (int j = 0; j < batch && i < n; j++, i++)
			{
				if (one)
				{
					ErrorData  *error;
					bool		missed;

					if (!cutover_apply_one(apply, ops[i].table, &ops[i].row, &error, &missed))
					{
						failures++;
						ereport(NOTICE, errmsg("%s: %s", unpack_sql_state(error->sqlerrcode), error->message));
					}
				}
				else
				{
					cutover_apply_add(apply, ops[i].table, &ops[i].row);
					if (cutover_apply_memory(apply) > 64 * 1024 * 1024)
						cutover_apply_flush(apply);
				}
			}
			cutover_apply_flush(apply);
			{
				CutoverMissedKey *missed;

				(void) cutover_endpoint_sync(ep);
				nmissed += cutover_apply_missed(apply, &missed);
			}
			cutover_endpoint_queue(ep, "COMMIT", 0, NULL, false);
			(void) cutover_endpoint_sync(ep);
		}
		INSTR_TIME_SET_CURRENT(end);
		getrusage(RUSAGE_SELF, &after);
		INSTR_TIME_SUBTRACT(end, start);
	}
	PG_FINALLY();
	{
		cutover_endpoint_close(ep);
	}
	PG_END_TRY();
	SPI_finish();
	MemoryContextSwitchTo(cxt);
	initStringInfo(&buf);
	appendStringInfo(&buf, "%.0f ms (%.0f cpu), %d changes, %d failures, %d missed", INSTR_TIME_GET_MILLISEC(end),
					 (after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1e3 +
					 (after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e3, n, failures, nmissed);
	PG_RETURN_TEXT_P(cstring_to_text(buf.data));
}
