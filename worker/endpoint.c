/*
 * endpoint.c - statements and COPY on a connection to new.
 *
 * Runs in client backends and in background workers.  libpq is always in
 * non-blocking mode and only this file waits: before every wait both
 * directions are drained, so that neither side can block the other with full
 * socket buffers.  The time limit counts from the last sign of life of the socket.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "endpoint_private.h"
#include "errors.h"

/* What came of a statement. */
typedef struct EndpointOutcome
{
	PGresult   *last;
	PGresult   *failed;
} EndpointOutcome;

CUTOVER_NORETURN static void endpoint_push_failed(CutoverEndpoint *ep);
static void endpoint_drain(CutoverEndpoint *ep, EndpointOutcome *outcome);
static CutoverRows *endpoint_collect_from(CutoverEndpoint *ep, const char *sql, EndpointOutcome *outcome);
static CutoverRows *endpoint_run(CutoverEndpoint *ep, const char *sql, int sent);
static bool endpoint_try_clean(CutoverEndpoint *ep, const char *savepoint_sql);
static bool endpoint_clean(CutoverEndpoint *ep, const char *savepoint_sql);
static void endpoint_end_copy_unsuccessfully(CutoverEndpoint *ep);
static void endpoint_discard_results(CutoverEndpoint *ep);
static bool endpoint_roll_back(CutoverEndpoint *ep);

/*
 * Wait until the socket can be read (or written, if writing), once.  Raises
 * if nothing at all comes within the limit.
 */
void
cutover_endpoint_wait_socket(CutoverEndpoint *ep, bool writing)
{
	static uint32 event = 0;
	TimestampTz deadline = ep->timeout > 0 && !ep->patient ?
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) ep->timeout * 1000) : 0;
	int			io = WL_SOCKET_READABLE | (writing ? WL_SOCKET_WRITEABLE : 0);

	for (;;)
	{
		long		wait_ms = deadline ? TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline) : -1;
		int			rc = WaitLatchOrSocket(MyLatch,
										   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | io | (deadline ? WL_TIMEOUT : 0),
										   PQsocket(ep->conn), wait_ms,
										   cutover_wait_event_compat(&event, "CutoverTargetResult"));

		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (rc & io)
			return;
		if (deadline && GetCurrentTimestamp() >= deadline)
		{
			ep->broken = ep->unanswered = true;
			ereport(ERROR,
					errcode(ERRCODE_CONNECTION_FAILURE),
					errmsg("no answer from \"%s\" for %d s", ep->label, ep->timeout),
					errdetail("The connection was given up."),
					errhint("Check the network and the load of that server, or raise \"cutover.network_timeout\"."));
		}
	}
}

/*
 * Raise an error if no statement can be sent now.
 */
void
cutover_endpoint_check_usable(CutoverEndpoint *ep)
{
	if (ep->broken || PQstatus(ep->conn) == CONNECTION_BAD)
		cutover_endpoint_raise_lost(ep, NULL);
	if (ep->sent_off && !cutover_endpoint_query_take_off(ep))
		cutover_endpoint_raise_lost(ep, NULL);
	if (ep->copying || (PQpipelineStatus(ep->conn) == PQ_PIPELINE_OFF &&
						PQtransactionStatus(ep->conn) == PQTRANS_ACTIVE))
		elog(ERROR, "connection to \"%s\" is in use and was not reset", ep->label);
}

/*
 * Raise that the connection is gone.
 */
void
cutover_endpoint_raise_lost(CutoverEndpoint *ep, const char *sql)
{
	char	   *text = cutover_endpoint_error_text(ep->conn);

	ep->broken = true;
	ereport(ERROR,
			errcode(ERRCODE_CONNECTION_FAILURE),
			errmsg("lost the connection to \"%s\"", ep->label),
			text[0] ? errdetail_internal("%s", text) : 0,
			sql ? errcontext("remote SQL command: %s", sql) : 0);
	pg_unreachable();
}

/*
 * Raise what new answered, with its SQLSTATE, detail, hint and context.
 */
void
cutover_endpoint_raise_result(CutoverEndpoint *ep, const PGresult *res, const char *sql)
{
	char	   *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	char	   *primary = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	char	   *detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	char	   *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	char	   *context = PQresultErrorField(res, PG_DIAG_CONTEXT);
	char	   *schema = PQresultErrorField(res, PG_DIAG_SCHEMA_NAME);
	char	   *table = PQresultErrorField(res, PG_DIAG_TABLE_NAME);
	char	   *column = PQresultErrorField(res, PG_DIAG_COLUMN_NAME);
	char	   *constraint = PQresultErrorField(res, PG_DIAG_CONSTRAINT_NAME);

	if (state == NULL || strlen(state) != 5 || primary == NULL)
		cutover_endpoint_raise_lost(ep, sql);
	/* libpq makes no SQLSTATE up: a FATAL of new was its last word */
	if (PQstatus(ep->conn) == CONNECTION_BAD)
		ep->broken = true;
	ereport(ERROR,
			errcode(CUTOVER_SQLSTATE(state)),
			errmsg_internal("%s", primary),
			detail ? errdetail_internal("%s", detail) : 0,
			hint ? errhint("%s", hint) : 0,
			schema ? err_generic_string(PG_DIAG_SCHEMA_NAME, schema) : 0,
			table ? err_generic_string(PG_DIAG_TABLE_NAME, table) : 0,
			column ? err_generic_string(PG_DIAG_COLUMN_NAME, column) : 0,
			constraint ? err_generic_string(PG_DIAG_CONSTRAINT_NAME, constraint) : 0,
			context ? errcontext("%s", context) : 0,
			errcontext("remote SQL command: %s", sql));
	pg_unreachable();
}

/*
 * Hand to the socket what libpq holds.  Waits for all of it if all, else only
 * while more is held than the limit.  Reads at the same time.
 */
void
cutover_endpoint_push(CutoverEndpoint *ep, bool all)
{
	for (;;)
	{
		int			rc = PQflush(ep->conn);

		/* a socket that always takes what we have never makes us wait */
		CHECK_FOR_INTERRUPTS();
		/* libpq throws away what it can't send any more, and calls that success */
		if (PQstatus(ep->conn) == CONNECTION_BAD)
			endpoint_push_failed(ep);
		if (rc == 0)
		{
			ep->unsent = 0;
			return;
		}
		if (!PQconsumeInput(ep->conn))
			endpoint_push_failed(ep);
		if (PQpipelineStatus(ep->conn) != PQ_PIPELINE_OFF)
			cutover_endpoint_take_results(ep, false);
		if (!all && ep->unsent < ENDPOINT_UNSENT_LIMIT)
			return;
		cutover_endpoint_wait_socket(ep, true);
	}
}

/*
 * The connection is gone; raise what new said last, if it did.
 */
static void
endpoint_push_failed(CutoverEndpoint *ep)
{
	ep->broken = true;
	if (PQpipelineStatus(ep->conn) != PQ_PIPELINE_OFF)
		cutover_endpoint_take_results(ep, true);
	else if (ep->copying)
	{
		ep->copying = false;
		(void) cutover_endpoint_collect(ep, "COPY");
	}
	cutover_endpoint_raise_lost(ep, NULL);
}

/*
 * PQgetResult that waits in our way.
 */
PGresult *
cutover_endpoint_get_result(CutoverEndpoint *ep)
{
	for (;;)
	{
		int			rc = PQflush(ep->conn);

		if (!PQconsumeInput(ep->conn) || rc < 0 || !PQisBusy(ep->conn))
			break;
		if (rc == 0)
			ep->unsent = 0;
		cutover_endpoint_wait_socket(ep, rc > 0);
	}
	return PQgetResult(ep->conn);
}

/*
 * Rows of a result, in one piece of the current memory context.
 */
CutoverRows *
cutover_endpoint_copy_rows(const PGresult *res)
{
	CutoverRows *rows = palloc0(sizeof(CutoverRows));
	Size		size = 0;
	char	   *next;

	rows->affected = strtoull(PQcmdTuples((PGresult *) res), NULL, 10);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		return rows;
	rows->nrows = PQntuples(res);
	rows->ncols = PQnfields(res);
	for (int j = 0; j < rows->ncols; j++)
	{
		size += strlen(PQfname(res, j)) + 1;
		for (int i = 0; i < rows->nrows; i++)
			size += PQgetlength(res, i, j) + 1;
	}
	rows->values = MemoryContextAllocHuge(CurrentMemoryContext,
										  sizeof(char *) * (rows->nrows + 1) * rows->ncols + size + 1);
	rows->names = rows->values + (Size) rows->nrows * rows->ncols;
	next = (char *) (rows->names + rows->ncols);
	for (int j = 0; j < rows->ncols; j++)
	{
		rows->names[j] = strcpy(next, PQfname(res, j));
		next += strlen(next) + 1;
	}
	for (int i = 0; i < rows->nrows; i++)
		for (int j = 0; j < rows->ncols; j++)
		{
			int			len = PQgetlength(res, i, j);

			if (PQgetisnull(res, i, j))
			{
				CUTOVER_CELL(rows, i, j) = NULL;
				continue;
			}
			memcpy(next, PQgetvalue(res, i, j), len + 1);
			CUTOVER_CELL(rows, i, j) = next;
			next += len + 1;
		}
	return rows;
}

/*
 * Wait for all results of what was sent; rows of the last, or the first error.
 */
CutoverRows *
cutover_endpoint_collect(CutoverEndpoint *ep, const char *sql)
{
	EndpointOutcome outcome = {0};

	return endpoint_collect_from(ep, sql, &outcome);
}

/*
 * The same with a result that was fetched already in outcome->last.
 */
static CutoverRows *
endpoint_collect_from(CutoverEndpoint *ep, const char *sql, EndpointOutcome *outcome)
{
	CutoverRows *volatile rows = NULL;

	PG_TRY();
	{
		endpoint_drain(ep, outcome);
		if (outcome->failed)
			cutover_endpoint_raise_result(ep, outcome->failed, sql);
		if (PQstatus(ep->conn) == CONNECTION_BAD)
			cutover_endpoint_raise_lost(ep, sql);
		rows = outcome->last ? cutover_endpoint_copy_rows(outcome->last) : palloc0(sizeof(CutoverRows));
	}
	PG_CATCH();
	{
		PQclear(outcome->last);
		PQclear(outcome->failed);
		PG_RE_THROW();
	}
	PG_END_TRY();
	PQclear(outcome->last);
	return rows;
}

/*
 * Take all results; keep the first failure and the last of the others.
 */
static void
endpoint_drain(CutoverEndpoint *ep, EndpointOutcome *outcome)
{
	PGresult   *res = outcome->last;

	outcome->last = NULL;
	if (res == NULL)
		res = cutover_endpoint_get_result(ep);
	for (; res != NULL; res = cutover_endpoint_get_result(ep))
	{
		ExecStatusType status = PQresultStatus(res);

		if (status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH)
		{
			PQclear(res);
			ep->broken = true;	/* nobody starts those: not worth the code to leave them */
			elog(ERROR, "unexpected COPY on \"%s\"", ep->label);
		}
		if (status == PGRES_FATAL_ERROR || status == PGRES_BAD_RESPONSE)
		{
			if (outcome->failed == NULL)
				outcome->failed = res;
			else
				PQclear(res);
			if (PQstatus(ep->conn) == CONNECTION_BAD)
				return;
			continue;
		}
		PQclear(outcome->last);
		outcome->last = res;
	}
}

/*
 * Collect after a PQsend function that returned sent.
 */
static CutoverRows *
endpoint_run(CutoverEndpoint *ep, const char *sql, int sent)
{
	if (!sent)
		cutover_endpoint_raise_lost(ep, sql);
	return cutover_endpoint_collect(ep, sql);
}

/*
 * Run one or several statements without parameters.
 */
CutoverRows *
cutover_endpoint_exec(CutoverEndpoint *ep, const char *sql)
{
	if (ep->local)
		return cutover_endpoint_local_exec(ep, sql, 0, NULL);
	cutover_endpoint_leave_pipeline(ep);
	cutover_endpoint_check_usable(ep);
	return endpoint_run(ep, sql, PQsendQuery(ep->conn, sql));
}

/*
 * Run one statement with text parameters.
 */
CutoverRows *
cutover_endpoint_exec_params(CutoverEndpoint *ep, const char *sql, int nparams, const char *const *values)
{
	if (ep->local)
	{
		CutoverParam *params = palloc0(sizeof(CutoverParam) * Max(nparams, 1));

		for (int i = 0; i < nparams; i++)
			params[i].data = values[i];
		return cutover_endpoint_local_exec(ep, sql, nparams, params);
	}
	cutover_endpoint_leave_pipeline(ep);
	cutover_endpoint_check_usable(ep);
	return endpoint_run(ep, sql, PQsendQueryParams(ep->conn, sql, nparams, NULL, values, NULL, NULL, 0));
}

/*
 * Start a COPY ... FROM STDIN.
 */
void
cutover_endpoint_copy_begin(CutoverEndpoint *ep, const char *sql)
{
	EndpointOutcome outcome = {0};
	PGresult   *res;

	cutover_endpoint_leave_pipeline(ep);
	cutover_endpoint_check_usable(ep);
	if (!PQsendQuery(ep->conn, sql))
		cutover_endpoint_raise_lost(ep, sql);
	res = cutover_endpoint_get_result(ep);
	if (PQresultStatus(res) == PGRES_COPY_IN)
	{
		PQclear(res);
		ep->copying = true;
		return;
	}
	outcome.last = res;
	(void) endpoint_collect_from(ep, sql, &outcome);
	elog(ERROR, "not a COPY FROM STDIN: %s", sql);
}

/*
 * Send a piece of COPY data.
 */
void
cutover_endpoint_copy_data(CutoverEndpoint *ep, const char *data, int len)
{
	int			rc;

	if (!ep->copying)
		elog(ERROR, "no COPY in progress on \"%s\"", ep->label);
	/* 0 = no memory for the buffer: make room and try once more */
	rc = PQputCopyData(ep->conn, data, len);
	if (rc == 0)
	{
		cutover_endpoint_push(ep, true);
		rc = PQputCopyData(ep->conn, data, len);
	}
	if (rc != 1)
	{
		/* new has ended the COPY, and says why */
		ep->copying = false;
		(void) cutover_endpoint_collect(ep, "COPY");
		cutover_endpoint_raise_lost(ep, "COPY");
	}
	ep->unsent += len;
	/* libpq sends by itself in the end, but late */
	if (ep->unsent >= 32 * 1024)
		cutover_endpoint_push(ep, false);
}

/*
 * End the COPY; rows that new has taken.
 */
uint64
cutover_endpoint_copy_end(CutoverEndpoint *ep)
{
	int			rc;

	if (!ep->copying)
		elog(ERROR, "no COPY in progress on \"%s\"", ep->label);
	while ((rc = PQputCopyEnd(ep->conn, NULL)) == 0)
		cutover_endpoint_push(ep, true);
	ep->copying = false;
	(void) rc;					/* an error shows in the result */
	return cutover_endpoint_collect(ep, "COPY")->affected;
}

/*
 * Bring the connection back to where a transaction can begin.  Never raises;
 * false means that it can only be closed.
 */
bool
cutover_endpoint_reset(CutoverEndpoint *ep)
{
	return endpoint_try_clean(ep, NULL);
}

/*
 * Stop the query that is under way, and keep new's transaction.
 */
bool
cutover_endpoint_stop(CutoverEndpoint *ep)
{
	return endpoint_try_clean(ep, "");
}

/*
 * Likewise back to a savepoint, by the statements given.
 */
bool
cutover_endpoint_roll_back_to(CutoverEndpoint *ep, const char *sql)
{
	return endpoint_try_clean(ep, sql);
}

/*
 * Clean up without raising, in limited time.
 */
static bool
endpoint_try_clean(CutoverEndpoint *ep, const char *savepoint_sql)
{
	MemoryContext cxt = CurrentMemoryContext;
	int			timeout = ep->timeout;
	volatile bool ok = false;

	if (ep->broken || PQstatus(ep->conn) == CONNECTION_BAD)
		return false;
	ep->timeout = ENDPOINT_CLEANUP_TIMEOUT;
	ep->patient = false;
	HOLD_INTERRUPTS();
	PG_TRY();
	{
		ok = endpoint_clean(ep, savepoint_sql);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		FlushErrorState();
	}
	PG_END_TRY();
	RESUME_INTERRUPTS();
	ep->timeout = timeout;
	if (!ok)
		ep->broken = true;
	return ok;
}

/*
 * Let nothing be under way, then roll back: all, or by savepoint_sql.
 */
static bool
endpoint_clean(CutoverEndpoint *ep, const char *savepoint_sql)
{
	bool		sent_off = ep->sent_off;

	cutover_endpoint_query_forget(ep);
	if (sent_off)
		endpoint_discard_results(ep);
	if (PQpipelineStatus(ep->conn) != PQ_PIPELINE_OFF)
		cutover_endpoint_drop_pipeline(ep);
	else if (ep->copying)
		endpoint_end_copy_unsuccessfully(ep);
	else if (PQtransactionStatus(ep->conn) == PQTRANS_ACTIVE)
	{
		cutover_endpoint_cancel(ep);
		endpoint_discard_results(ep);
	}
	if (savepoint_sql && savepoint_sql[0] == '\0')
		return true;
	if (savepoint_sql)
	{
		/* a late cancel may hit this; savepoints are too rare to try again */
		(void) cutover_endpoint_exec(ep, savepoint_sql);
		return true;
	}
	if (!endpoint_roll_back(ep))
		return false;
	if (ep->stale_statements)
	{
		(void) cutover_endpoint_exec(ep, "DEALLOCATE ALL");
		cutover_endpoint_forget_statements(ep);
		ep->stale_statements = false;
	}
	return true;
}

/*
 * Tell new that the COPY failed, and take its answer.
 */
static void
endpoint_end_copy_unsuccessfully(CutoverEndpoint *ep)
{
	while (PQputCopyEnd(ep->conn, "given up") == 0)
		cutover_endpoint_push(ep, true);
	ep->copying = false;
	endpoint_discard_results(ep);
}

/*
 * Read and forget results until there are none.
 */
static void
endpoint_discard_results(CutoverEndpoint *ep)
{
	PGresult   *res;

	while ((res = cutover_endpoint_get_result(ep)) != NULL)
	{
		ExecStatusType status = PQresultStatus(res);

		PQclear(res);
		if (PQstatus(ep->conn) == CONNECTION_BAD)
			cutover_endpoint_raise_lost(ep, NULL);
		if (status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH)
		{
			ep->broken = true;	/* nobody starts those: not worth the code to leave them */
			cutover_endpoint_raise_lost(ep, NULL);
		}
	}
}

/*
 * ROLLBACK if there is a transaction.  A cancel request may arrive late and hit it: then again.
 */
static bool
endpoint_roll_back(CutoverEndpoint *ep)
{
	for (int attempt = 0; attempt < 3; attempt++)
	{
		PGTransactionStatusType status = PQtransactionStatus(ep->conn);

		if (status == PQTRANS_IDLE)
			return true;
		if (status == PQTRANS_UNKNOWN || !PQsendQuery(ep->conn, "ROLLBACK"))
			return false;
		endpoint_discard_results(ep);
	}
	return PQtransactionStatus(ep->conn) == PQTRANS_IDLE;
}
