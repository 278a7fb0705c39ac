/*
 * comparer_side.c - one statement on old, on new, or on both at the same time.
 *
 * Runs in a comparer.  Each statement has a transaction, and so a snapshot, of
 * its own: none lives longer than what it reads.  Where both sides are read, new is
 * sent its statement first and works while old's runs here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "comparer.h"
#include "local.h"

/* A statement's plan on old is kept: the same text comes again with other bounds. */
typedef struct SidePlan
{
	uint32		hash;			/* hash key: of sql */
	char	   *sql;
	SPIPlanPtr	plan;
} SidePlan;

#define MAX_PLANS 200

static HTAB *plans = NULL;
static MemoryContext plan_context = NULL;

static MemoryContext before = NULL;

/*
 * A transaction with SPI connected, and its end, which need not survive a crash.
 */
void
cutover_compare_begin(void)
{
	before = CurrentMemoryContext;
	cutover_local_begin();
}

void
cutover_compare_commit(void)
{
	cutover_local_commit(false);
	MemoryContextSwitchTo(before);
}

/*
 * Settings of a session that compares, on either side: ranges and keys go by
 * index, and one worker is one process.
 */
static const char *const side_settings[][2] = {
	{"enable_seqscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_mergejoin", "off"},
	{"max_parallel_workers_per_gather", "0"},
	{"plan_cache_mode", "force_generic_plan"},
	{"jit", "off"},
	{"extra_float_digits", "3"},
};

/*
 * Do both servers make the same digest of the same values, the fast way?
 * They do unless their byte orders differ, or new is no PostgreSQL.
 */
static bool
side_digests_agree(Comparer *c, const char *hash)
{
	char	   *sql = psprintf("SELECT %s FROM (SELECT pg_catalog.record_send(ROW(1::pg_catalog.int8, 'a'::pg_catalog.text,"
							   " 1.10::pg_catalog.numeric, NULL::pg_catalog.date, '{\"b\": 1.0, \"a\": null}'::pg_catalog.jsonb,"
							   " '2026-01-01 00:00:00.000001+00'::pg_catalog.timestamptz,"
							   " '1 mon 1 day'::pg_catalog.interval, 'x'::pg_catalog.\"char\"))) AS r (b)", hash);
	CutoverRows *old = cutover_compare_run(c, COMPARE_OLD, sql, 0, NULL);
	CutoverRows *new = cutover_compare_run(c, COMPARE_NEW, sql, 0, NULL);

	return strcmp(CUTOVER_CELL(old, 0, 0), CUTOVER_CELL(new, 0, 0)) == 0;
}

/*
 * Connect to new and set up both sessions.
 */
void
cutover_compare_connect(Comparer *c)
{
	const char *target = psprintf("%d", c->target_id);
	CutoverRows *rows;

	for (int i = 0; i < lengthof(side_settings); i++)
		SetConfigOption(side_settings[i][0], side_settings[i][1], PGC_SUSET, PGC_S_SESSION);
	rows = cutover_compare_run(c, COMPARE_OLD, "SELECT server FROM cutover._target WHERE target_id = $1::int4", 1, &target);
	if (rows->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the target is gone"),
				 errdetail("It was dropped or cancelled a moment ago."),
				 errhint("See cutover.status for the targets there are.")));
	c->ep = cutover_endpoint_connect(CUTOVER_CELL(rows, 0, 0), "cutover comparer");
	for (int i = 0; i < lengthof(side_settings); i++)
		cutover_endpoint_exec(c->ep, psprintf("SET %s = %s", side_settings[i][0], side_settings[i][1]));
	c->strong_hash = !side_digests_agree(c, "pg_catalog.hash_array_extended(ARRAY[b], 0)");
	if (c->strong_hash && !side_digests_agree(c, "pg_catalog.sha256(b)"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the digests of old and new can't be compared"),
				 errdetail("Both were asked for the digest of the same row and gave different answers."),
				 errhint("New has to be PostgreSQL 13 or later, or compatible with it in record_send() and sha256().")));
}

/*
 * The plan of a statement over texts.
 */
static SPIPlanPtr
side_plan(const char *sql, int nargs)
{
	HASHCTL		ctl = {.keysize = sizeof(uint32),.entrysize = sizeof(SidePlan)};
	uint32		hash = string_hash(sql, strlen(sql) + 1);
	Oid			types[COMPARE_MAX_ARGS];
	SidePlan   *entry;
	bool		found;

	if (plans != NULL && hash_get_num_entries(plans) >= MAX_PLANS)
	{
		HASH_SEQ_STATUS status;

		hash_seq_init(&status, plans);
		while ((entry = hash_seq_search(&status)) != NULL)
			if (entry->plan)
				SPI_freeplan(entry->plan);
		MemoryContextReset(plan_context);
		plans = NULL;
	}
	if (plans == NULL)
	{
		if (plan_context == NULL)
			plan_context = AllocSetContextCreate(TopMemoryContext, "cutover comparer plans", ALLOCSET_DEFAULT_SIZES);
		ctl.hcxt = plan_context;
		plans = hash_create("cutover comparer plans", MAX_PLANS, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(plans, &hash, HASH_ENTER, &found);
	if (found && entry->plan != NULL && strcmp(entry->sql, sql) == 0)
		return entry->plan;
	if (found && entry->plan != NULL)
		SPI_freeplan(entry->plan);
	entry->plan = NULL;
	entry->sql = MemoryContextStrdup(plan_context, sql);
	for (int i = 0; i < nargs; i++)
		types[i] = TEXTOID;
	entry->plan = SPI_prepare(sql, nargs, types);
	if (entry->plan == NULL || SPI_keepplan(entry->plan) != 0)
		elog(ERROR, "SPI error %d: %s", SPI_result, sql);
	return entry->plan;
}

/*
 * Copy the rows of SPI's last result into a context.
 */
static CutoverRows *
side_copy_result(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	CutoverRows *rows = palloc0(sizeof(CutoverRows));
	TupleDesc	desc = SPI_tuptable ? SPI_tuptable->tupdesc : NULL;

	rows->affected = SPI_processed;
	rows->nrows = desc ? (int) SPI_processed : 0;
	rows->ncols = desc ? desc->natts : 0;
	rows->values = palloc0(Max(rows->nrows * rows->ncols, 1) * sizeof(char *));
	for (int i = 0; i < rows->nrows; i++)
		for (int k = 0; k < rows->ncols; k++)
			rows->values[i * rows->ncols + k] = SPI_getvalue(SPI_tuptable->vals[i], desc, k + 1);
	MemoryContextSwitchTo(old);
	return rows;
}

/*
 * Run on old, with the rights of whoever wrote the table's expressions.
 */
static CutoverRows *
side_run_local(Comparer *c, const char *sql, int nargs, const char *const *args, bool as_owner)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[COMPARE_MAX_ARGS];
	char		nulls[COMPARE_MAX_ARGS];
	CutoverRows *rows;
	Oid			user;
	int			security;
	int			nest = 0;
	SPIPlanPtr	plan;
	int			rc;

	if (nargs > COMPARE_MAX_ARGS)
		elog(ERROR, "too many parameters");
	cutover_compare_begin();
	GetUserIdAndSecContext(&user, &security);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (as_owner)
	{
		nest = NewGUCNestLevel();
		SetUserIdAndSecContext(c->table->run_as, security | SECURITY_RESTRICTED_OPERATION | SECURITY_NOFORCE_RLS);
	}
	plan = side_plan(sql, nargs);
	for (int i = 0; i < nargs; i++)
	{
		nulls[i] = args[i] ? ' ' : 'n';
		values[i] = args[i] ? CStringGetTextDatum(args[i]) : (Datum) 0;
	}
	rc = SPI_execute_plan(plan, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI error %d: %s", rc, sql);
	if (as_owner)
	{
		AtEOXact_GUC(false, nest);
		SetUserIdAndSecContext(user, security);
	}
	rows = side_copy_result(context);
	PopActiveSnapshot();
	cutover_compare_commit();
	return rows;
}

/*
 * Run a statement on one side.
 */
CutoverRows *
cutover_compare_run(Comparer *c, CompareSide side, const char *sql, int nargs, const char *const *args)
{
	if (side == COMPARE_NEW)
		return cutover_endpoint_exec_params(c->ep, sql, nargs, args);
	return side_run_local(c, sql, nargs, args, false);
}

typedef struct SideResult
{
	MemoryContext context;
	CutoverRows *rows;
} SideResult;

/*
 * Keep the rows that new returned.
 */
static void
side_keep_rows(void *arg, CutoverRows *rows)
{
	SideResult *result = arg;
	MemoryContext old = MemoryContextSwitchTo(result->context);
	CutoverRows *copy = palloc0(sizeof(CutoverRows));
	int			n = rows->nrows * rows->ncols;

	copy->nrows = rows->nrows;
	copy->ncols = rows->ncols;
	copy->values = palloc0(Max(n, 1) * sizeof(char *));
	for (int i = 0; i < n; i++)
		copy->values[i] = rows->values[i] ? pstrdup(rows->values[i]) : NULL;
	result->rows = copy;
	MemoryContextSwitchTo(old);
}

/*
 * Run a table's statement on both sides at once, with the same parameters.
 */
void
cutover_compare_run_both(Comparer *c, const char *const sql[2], int nargs, const char *const *args, CutoverRows *rows[2])
{
	SideResult	result = {.context = CurrentMemoryContext};
	CutoverParam params[COMPARE_MAX_ARGS];

	for (int i = 0; i < nargs; i++)
		params[i] = (CutoverParam) {.data = args[i],.len = args[i] ? strlen(args[i]) : 0};
	cutover_endpoint_queue_rows(c->ep, sql[COMPARE_NEW], nargs, params, side_keep_rows, &result);
	cutover_endpoint_poll(c->ep);
	rows[COMPARE_OLD] = side_run_local(c, sql[COMPARE_OLD], nargs, args, c->table && OidIsValid(c->table->run_as));
	cutover_endpoint_sync(c->ep);
	rows[COMPARE_NEW] = result.rows;
}

/*
 * The same on one side, with the table's rights.
 */
CutoverRows *
cutover_compare_run_table(Comparer *c, CompareSide side, const char *sql, int nargs, const char *const *args)
{
	if (side == COMPARE_NEW)
		return cutover_endpoint_exec_params(c->ep, sql, nargs, args);
	return side_run_local(c, sql, nargs, args, OidIsValid(c->table->run_as));
}

/*
 * The text form of a text[].
 */
char *
cutover_compare_array(char **values, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoChar(&buf, ',');
		if (values[i] == NULL)
		{
			appendStringInfoString(&buf, "NULL");
			continue;
		}
		appendStringInfoChar(&buf, '"');
		for (const char *p = values[i]; *p; p++)
		{
			if (*p == '"' || *p == '\\')
				appendStringInfoChar(&buf, '\\');
			appendStringInfoChar(&buf, *p);
		}
		appendStringInfoChar(&buf, '"');
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * The elements of a text[] in text form; NULL for NULL.
 */
char **
cutover_compare_read_array(const char *array, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Datum	   *elems;
	bool	   *nulls;
	char	  **result;

	if (array == NULL)
		return NULL;
	cutover_compare_begin();
	deconstruct_array(DatumGetArrayTypeP(OidInputFunctionCall(F_ARRAY_IN, (char *) array, TEXTOID, -1)),
					  TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls, n);
	result = MemoryContextAllocZero(context, Max(*n, 1) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		if (!nulls[i])
			result[i] = MemoryContextStrdup(context, TextDatumGetCString(elems[i]));
	cutover_compare_commit();
	return result;
}
