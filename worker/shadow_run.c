/*
 * shadow_run.c - a sampled statement is run on new, and again on old.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "shadow_worker.h"

/* Running again on old must not take for ever: ten times what it took, within these. */
#define RUN_OLD_MIN_MS 1000
#define RUN_OLD_MAX_MS 30000

/* Handed to the callback that gets new's rows. */
typedef struct RunTaker
{
	CutoverShadowQuery *q;
	CutoverShadowSum *sum;
	CutoverShadowRows *rows;
	MemoryContext context;
	bool		other_columns;
} RunTaker;

static char *run_server = NULL;
static CutoverEndpoint *run_ep = NULL;
static int	run_timeout = -1;	/* as new knows it, ms */
static char *run_settings = NULL;	/* the same, packed */
static int	run_settings_len = 0;

void
cutover_shadow_run_init(const char *server)
{
	run_server = MemoryContextStrdup(TopMemoryContext, server);
}

void
cutover_shadow_run_recover(bool close)
{
	if (run_ep != NULL && (close || !cutover_endpoint_reset(run_ep)))
	{
		cutover_endpoint_close(run_ep);
		run_ep = NULL;
	}
	/* what was set in the failed transaction may be gone */
	run_timeout = -1;
	run_settings_len = 0;
}

/*
 * Connect if need be, with the session's settings.
 */
static void
run_connect(const char *settings, int len)
{
	if (run_ep == NULL)
	{
		run_ep = cutover_endpoint_connect(run_server, "cutover shadow reader");
		(void) cutover_endpoint_exec(run_ep, "SET default_transaction_read_only = on");
		run_timeout = -1;
		run_settings_len = 0;
	}
	if (run_timeout != cutover_guc_read_timeout)
	{
		(void) cutover_endpoint_exec(run_ep, psprintf("SET statement_timeout = %d", cutover_guc_read_timeout));
		/* a server that is stopped does not even time out */
		(void) cutover_endpoint_set_timeout(run_ep, cutover_guc_read_timeout == 0 ? 0 : cutover_guc_read_timeout / 1000 + 1);
		run_timeout = cutover_guc_read_timeout;
	}
	if (run_settings_len != len || memcmp(run_settings, settings, len) != 0)
	{
		run_settings_len = 0;
		(void) cutover_endpoint_exec(run_ep, cutover_shadow_settings_sql(settings));
		run_settings = run_settings ? repalloc(run_settings, len) : MemoryContextAlloc(TopMemoryContext, len);
		memcpy(run_settings, settings, len);
		run_settings_len = len;
	}
}

void
cutover_shadow_run_connect(const CutoverShadowEntry *entry)
{
	run_connect(cutover_shadow_entry_settings(entry), entry->settings_len);
}

/*
 * A moment in a form that no setting changes the meaning of.
 */
static const char *
run_moment(TimestampTz moment)
{
	struct pg_tm tm;
	fsec_t		fsec;
	int			tz = 0;
	char	   *buf = palloc(MAXDATELEN + 1);
	const char *zone = NULL;

	if (timestamp2tm(moment, &tz, &tm, &fsec, &zone, pg_tzset("GMT")) != 0)
		elog(ERROR, "timestamp out of range");
	EncodeDateTime(&tm, fsec, true, tz, zone, USE_ISO_DATES, buf);
	return buf;
}

/*
 * Parameters of the statement, as text.
 */
static const char **
run_params(const CutoverShadowQuery *q, const CutoverShadowEntry *entry)
{
	const char **own = palloc(sizeof(char *) * Max(entry->nparams, 1));
	Oid		   *types = palloc(sizeof(Oid) * Max(entry->nparams, 1));
	const char **texts = palloc(sizeof(char *) * Max(q->nparams, 1));

	cutover_shadow_entry_params(entry, types, own);
	for (int i = 0; i < q->nparams; i++)
	{
		if (q->sources[i] == CUTOVER_SHADOW_XACT_AT)
			texts[i] = run_moment(entry->xact_at);
		else if (q->sources[i] == CUTOVER_SHADOW_STATEMENT_AT)
			texts[i] = run_moment(entry->statement_at);
		else
			texts[i] = own[q->sources[i]];
	}
	return texts;
}

/*
 * Callback: new's rows.
 */
static void
run_take(void *arg, CutoverRows *rows)
{
	RunTaker   *taker = arg;

	if (rows->ncols != taker->q->natts)
	{
		taker->other_columns = true;
		return;
	}
	for (int i = 0; i < rows->nrows; i++)
		cutover_shadow_hash_add(taker->sum,
								cutover_shadow_hash_texts(taker->q->input, rows->ncols, &CUTOVER_CELL(rows, i, 0)));
	if (taker->rows != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(taker->context);

		taker->rows->nrows = rows->nrows;
		taker->rows->values = palloc(sizeof(char **) * Max(rows->nrows, 1));
		for (int i = 0; i < rows->nrows; i++)
		{
			taker->rows->values[i] = palloc(sizeof(char *) * Max(rows->ncols, 1));
			for (int k = 0; k < rows->ncols; k++)
				taker->rows->values[i][k] = CUTOVER_CELL(rows, i, k) ? pstrdup(CUTOVER_CELL(rows, i, k)) : NULL;
		}
		MemoryContextSwitchTo(old);
	}
}

void
cutover_shadow_run_on_new(CutoverShadowQuery *q, const CutoverShadowEntry *entry, CutoverShadowSum *sum, CutoverShadowRows *rows)
{
	RunTaker	taker = {.q = q,.sum = sum,.rows = rows,.context = CurrentMemoryContext};
	const char **texts = run_params(q, entry);
	CutoverParam *params = palloc0(sizeof(CutoverParam) * Max(q->nparams, 1));

	memset(sum, 0, sizeof(*sum));
	for (int i = 0; i < q->nparams; i++)
		params[i].data = texts[q->new_params[i]];
	run_connect(cutover_shadow_entry_settings(entry), entry->settings_len);
	cutover_endpoint_queue_rows(run_ep, q->new_sql, q->nparams, params, run_take, &taker);
	(void) cutover_endpoint_sync(run_ep);
	if (taker.other_columns)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the result has another number of columns on new")));
}

/*
 * The rows of SPI's result, hashed and kept.
 */
static void
run_sum_old(CutoverShadowQuery *q, CutoverShadowSum *sum, CutoverShadowRows *rows, MemoryContext context)
{
	TupleDesc	desc = SPI_tuptable->tupdesc;
	Datum	   *values = palloc(sizeof(Datum) * Max(desc->natts, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(desc->natts, 1));

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		heap_deform_tuple(SPI_tuptable->vals[i], desc, values, nulls);
		cutover_shadow_hash_add(sum, cutover_shadow_hash_values(q->output, desc->natts, values, nulls));
	}
	if (rows != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		rows->nrows = SPI_processed;
		rows->values = palloc(sizeof(char **) * Max(SPI_processed, 1));
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			rows->values[i] = palloc(sizeof(char *) * Max(desc->natts, 1));
			for (int k = 0; k < desc->natts; k++)
				rows->values[i][k] = SPI_getvalue(SPI_tuptable->vals[i], desc, k + 1);
		}
		MemoryContextSwitchTo(old);
	}
}

/*
 * Run on old, within the transaction; false if there are too many rows.
 */
static bool
run_again(CutoverShadowQuery *q, const CutoverShadowEntry *entry, CutoverShadowSum *sum, CutoverShadowRows *rows, MemoryContext context)
{
	const char **texts = run_params(q, entry);
	Datum	   *values = palloc(sizeof(Datum) * Max(q->nparams, 1));
	char	   *nulls = palloc(Max(q->nparams, 1));
	bool		complete;

	for (int i = 0; i < q->nparams; i++)
	{
		Oid			input;
		Oid			ioparam;

		nulls[i] = texts[i] ? ' ' : 'n';
		getTypeInputInfo(q->types[i], &input, &ioparam);
		values[i] = texts[i] ? OidInputFunctionCall(input, (char *) texts[i], ioparam, -1) : (Datum) 0;
	}
	if (SPI_execute_with_args(q->old_sql, q->nparams, q->types, values, nulls, true, cutover_guc_shadow_max_rows + 1) != SPI_OK_SELECT)
		elog(ERROR, "could not run the statement again");
	complete = SPI_processed <= cutover_guc_shadow_max_rows && SPI_tuptable->tupdesc->natts == q->natts;
	if (complete)
		run_sum_old(q, sum, rows, context);
	return complete;
}

/*
 * Run on old, in a transaction that is read only and restricted.
 */
static bool
run_on_old(CutoverShadowQuery *q, const CutoverShadowEntry *entry, CutoverShadowSum *sum, CutoverShadowRows *rows, MemoryContext caller)
{
	Oid			userid;
	int			context;
	int			nest;
	bool		complete;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = true;
	SPI_connect();
	nest = NewGUCNestLevel();
	cutover_shadow_settings_apply(cutover_shadow_entry_settings(entry));
	(void) set_config_option("search_path", "pg_catalog", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	GetUserIdAndSecContext(&userid, &context);
	SetUserIdAndSecContext(userid, context | SECURITY_RESTRICTED_OPERATION);
	PushActiveSnapshot(GetTransactionSnapshot());
	enable_timeout_after(STATEMENT_TIMEOUT, Max(RUN_OLD_MIN_MS, Min(RUN_OLD_MAX_MS, entry->old_us / 100)));
	complete = run_again(q, entry, sum, rows, caller);
	disable_timeout(STATEMENT_TIMEOUT, false);
	PopActiveSnapshot();
	SetUserIdAndSecContext(userid, context);
	AtEOXact_GUC(false, nest);
	SPI_finish();
	CommitTransactionCommand();
	return complete;
}

bool
cutover_shadow_run_on_old(CutoverShadowQuery *q, const CutoverShadowEntry *entry, CutoverShadowSum *sum, CutoverShadowRows *rows)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool complete = false;

	memset(sum, 0, sizeof(*sum));
	PG_TRY();
	{
		complete = run_on_old(q, entry, sum, rows, caller);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* too slow, a lock, missing rights of the extension's owner: says nothing of new */
		disable_timeout(STATEMENT_TIMEOUT, false);
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		if (ProcDiePending)
			proc_exit(1);
		ereport(DEBUG1, (errmsg_internal("could not run a statement on old again: %s", error->message)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return complete;
}

bool
cutover_shadow_same(const CutoverShadowQuery *q, const CutoverShadowSum *a, const CutoverShadowSum *b)
{
	if (a->rows != b->rows)
		return false;
	switch (q->compare)
	{
		case CUTOVER_SHADOW_SET:
			return a->set_hash == b->set_hash;
		case CUTOVER_SHADOW_LIST:
			return a->list_hash == b->list_hash;
		default:
			return true;
	}
}
