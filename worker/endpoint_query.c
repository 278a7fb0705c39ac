/*
 * endpoint_query.c - queries on new whose rows are taken as they come.
 *
 * Runs in client backends, once for each statement that new answers: no round
 * trip and no system call more than needed.  Rows come one by one (in chunks
 * where libpq can), so that a large result takes no memory here.
 */
#include "postgres.h"

#include <sched.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "endpoint_private.h"
#include "errors.h"
#include "guc.h"

/* What is taken of an unwanted result before it is cancelled. */
#define QUERY_UNWANTED_MS 5
#define QUERY_UNWANTED_ROWS 2000

/* How long an answer is watched for, how often in vain in a row, and when again after that. */
#define QUERY_WATCH_US 100
#define QUERY_WATCH_YIELD_US 10
#define QUERY_WATCH_TRIES 4
#define QUERY_WATCH_AGAIN 64

/* Rows in a chunk. */
#define QUERY_CHUNK 500

/*
 * Free what is kept of results.
 */
void
cutover_endpoint_query_forget(CutoverEndpoint *ep)
{
	PQclear(ep->rows);
	PQclear(ep->error);
	ep->rows = ep->error = NULL;
	ep->querying = ep->sent_off = false;
}

/*
 * The same at the end of the connection.
 */
void
cutover_endpoint_query_free(CutoverEndpoint *ep)
{
	cutover_endpoint_query_forget(ep);
	if (ep->wait_set)
		FreeWaitEventSet(ep->wait_set);
	ep->wait_set = NULL;
}

/*
 * An answer that comes in less time than it takes to go to sleep and be woken is
 * waited for awake, giving way to whoever has work; where answers take longer
 * as a rule, that is tried from time to time only.
 */
static void
query_watch(CutoverEndpoint *ep)
{
	instr_time	begun;
	instr_time	before;
	instr_time	now;

	ep->expecting = false;
	if (ep->slow_answers >= QUERY_WATCH_TRIES && ep->slow_answers++ % QUERY_WATCH_AGAIN != 0)
		return;
	INSTR_TIME_SET_CURRENT(begun);
	now = begun;
	while (PQconsumeInput(ep->conn) && PQisBusy(ep->conn))
	{
		instr_time	all;

		if (MyLatch->is_set)
			return;
		before = now;
		(void) sched_yield();
		INSTR_TIME_SET_CURRENT(now);
		all = now;
		INSTR_TIME_SUBTRACT(all, begun);
		INSTR_TIME_SUBTRACT(now, before);
		/* somebody else had work: there is no time to waste */
		if (INSTR_TIME_GET_MICROSEC(now) >= QUERY_WATCH_YIELD_US || INSTR_TIME_GET_MICROSEC(all) >= QUERY_WATCH_US)
		{
			ep->slow_answers++;
			return;
		}
		INSTR_TIME_ADD(now, before);
	}
	ep->slow_answers = 0;
}

/*
 * Wait until there is something to read (or room to write); false at the deadline.
 */
static bool
query_wait(CutoverEndpoint *ep, bool writing, TimestampTz deadline)
{
	static uint32 event = 0;
	WaitEvent	occurred;
	uint32		wanted = WL_SOCKET_READABLE | (writing ? WL_SOCKET_WRITEABLE : 0);
	long		wait_ms;

	if (ep->wait_set == NULL)
	{
		ep->wait_set = cutover_create_wait_set_compat(3);
		AddWaitEventToSet(ep->wait_set, WL_SOCKET_READABLE, PQsocket(ep->conn), NULL, NULL);
		AddWaitEventToSet(ep->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(ep->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	}
	if (writing || ep->wait_writing)
		ModifyWaitEvent(ep->wait_set, 0, wanted, NULL);
	ep->wait_writing = writing;
	for (;;)
	{
		wait_ms = deadline == 0 ? -1 : TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (WaitEventSetWait(ep->wait_set, wait_ms, &occurred, 1,
							 cutover_wait_event_compat(&event, "CutoverTargetRead")) == 0)
			return false;
		if (occurred.events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			if (ep->relay && !ep->relayed && (QueryCancelPending || ProcDiePending))
			{
				ep->relayed = true;
				cutover_endpoint_cancel(ep);
			}
		}
		if (occurred.events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE))
			return true;
	}
}

/*
 * When a wait that began now has lasted too long: 0 = never.
 */
static TimestampTz
query_patience(CutoverEndpoint *ep)
{
	return ep->timeout > 0 ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) ep->timeout * 1000) : 0;
}

/*
 * The connection is of no use any more.
 */
static CutoverAnswer
query_lost(CutoverEndpoint *ep)
{
	ep->broken = true;
	return CUTOVER_ANSWER_LOST;
}

/*
 * Wait for the next result; NULL with *answer set if that is the end, or nothing comes.
 */
static PGresult *
query_result(CutoverEndpoint *ep, TimestampTz deadline, CutoverAnswer *answer)
{
	PGresult   *res;
	TimestampTz until = deadline;

	if (ep->expecting && PQisBusy(ep->conn) && PQflush(ep->conn) == 0)
		query_watch(ep);
	while (PQisBusy(ep->conn))
	{
		int			rc = PQflush(ep->conn);

		if (rc < 0)
			break;				/* the result says what happened */
		if (until == 0)
			until = query_patience(ep);
		if (!query_wait(ep, rc > 0, until))
		{
			*answer = CUTOVER_ANSWER_LATE;
			return NULL;
		}
		if (!PQconsumeInput(ep->conn))
			break;
		if (deadline == 0)
			until = 0;
	}
	res = PQgetResult(ep->conn);
	if (res == NULL)
		*answer = CUTOVER_ANSWER_END;
	return res;
}

/*
 * Take the result of a statement that nobody waited for.
 */
bool
cutover_endpoint_query_take_off(CutoverEndpoint *ep)
{
	CutoverAnswer answer = CUTOVER_ANSWER_END;
	PGresult   *res;

	while ((res = query_result(ep, 0, &answer)) != NULL)
		PQclear(res);
	ep->sent_off = false;
	if (answer != CUTOVER_ANSWER_END || PQstatus(ep->conn) == CONNECTION_BAD)
		ep->broken = true;
	return !ep->broken;
}

/*
 * Can something be sent now?
 */
static bool
query_ready(CutoverEndpoint *ep)
{
	if (ep->broken || PQstatus(ep->conn) == CONNECTION_BAD)
		return false;
	if (ep->sent_off && !cutover_endpoint_query_take_off(ep))
		return false;
	if (ep->querying)
		elog(ERROR, "a query on \"%s\" is still under way", ep->label);
	PQclear(ep->error);
	ep->error = NULL;
	return true;
}

/*
 * Send a query.
 */
bool
cutover_endpoint_query_send(CutoverEndpoint *ep, const CutoverQuery *query)
{
	int			sent;

	if (!query_ready(ep))
		return false;
	if (query->sql == NULL)
		sent = PQsendQueryPrepared(ep->conn, query->name, query->nparams, query->values, query->lengths,
								   query->formats, query->binary);
	else
		sent = PQsendQueryParams(ep->conn, query->sql, query->nparams, query->types, query->values, query->lengths,
								 query->formats, query->binary);
	if (!sent)
		return query_lost(ep) != CUTOVER_ANSWER_LOST;
	ep->querying = ep->expecting = true;
#ifdef LIBPQ_HAS_CHUNK_MODE
	(void) PQsetChunkedRowsMode(ep->conn, QUERY_CHUNK);
#else
	(void) PQsetSingleRowMode(ep->conn);
#endif
	return true;
}

/*
 * Prepare a statement; its answer is END or an error.
 */
bool
cutover_endpoint_query_prepare(CutoverEndpoint *ep, const char *name, const char *sql, int nparams, const Oid *types)
{
	if (!query_ready(ep))
		return false;
	if (!PQsendPrepare(ep->conn, name, sql, nparams, types))
		return query_lost(ep) != CUTOVER_ANSWER_LOST;
	ep->querying = true;
	return true;
}

/*
 * The next rows.
 */
CutoverAnswer
cutover_endpoint_query_next(CutoverEndpoint *ep, TimestampTz deadline)
{
	CutoverAnswer answer = CUTOVER_ANSWER_END;
	PGresult   *res;

	for (;;)
	{
		PQclear(ep->rows);
		ep->rows = NULL;
		res = query_result(ep, deadline, &answer);
		if (res == NULL)
		{
			if (answer == CUTOVER_ANSWER_LATE)
				return answer;
			ep->querying = false;
			if (ep->error == NULL)
				return PQstatus(ep->conn) == CONNECTION_BAD ? query_lost(ep) : CUTOVER_ANSWER_END;
			if (PQstatus(ep->conn) == CONNECTION_BAD)
				ep->broken = true;
			return PQresultErrorField(ep->error, PG_DIAG_SQLSTATE) ? CUTOVER_ANSWER_FAILED : query_lost(ep);
		}
		switch (PQresultStatus(res))
		{
#ifdef LIBPQ_HAS_CHUNK_MODE
			case PGRES_TUPLES_CHUNK:
#endif
			case PGRES_SINGLE_TUPLE:
				ep->rows = res;
				return CUTOVER_ANSWER_ROWS;
			case PGRES_TUPLES_OK:
			case PGRES_COMMAND_OK:
			case PGRES_EMPTY_QUERY:
				/* types are known even where there are no rows */
				ep->rows = res;
				if (PQntuples(res) > 0)
					return CUTOVER_ANSWER_ROWS;
				/* the end comes without waiting, as a rule */
				res = query_result(ep, deadline, &answer);
				if (res == NULL && answer == CUTOVER_ANSWER_END && PQstatus(ep->conn) == CONNECTION_OK)
				{
					ep->querying = false;
					return CUTOVER_ANSWER_END;
				}
				if (res == NULL)
					return answer == CUTOVER_ANSWER_LATE ? answer : query_lost(ep);
				/* a statement that was done, and a transaction that then could not commit */
				PQclear(ep->error);
				ep->error = PQresultStatus(res) == PGRES_FATAL_ERROR ? res : NULL;
				if (ep->error == NULL)
					PQclear(res);
				continue;
			case PGRES_COPY_IN:
			case PGRES_COPY_OUT:
			case PGRES_COPY_BOTH:
				PQclear(res);
				return query_lost(ep);	/* nobody starts those */
			default:
				PQclear(ep->error);
				ep->error = res;
				continue;
		}
	}
}

int
cutover_endpoint_query_rows(CutoverEndpoint *ep)
{
	return PQntuples(ep->rows);
}

int
cutover_endpoint_query_columns(CutoverEndpoint *ep)
{
	return PQnfields(ep->rows);
}

Oid
cutover_endpoint_query_type(CutoverEndpoint *ep, int column)
{
	return PQftype(ep->rows, column);
}

char *
cutover_endpoint_query_value(CutoverEndpoint *ep, int row, int column, int *len)
{
	*len = PQgetlength(ep->rows, row, column);
	if (*len == 0 && PQgetisnull(ep->rows, row, column))
		return NULL;
	return PQgetvalue(ep->rows, row, column);
}

uint64
cutover_endpoint_query_affected(CutoverEndpoint *ep)
{
	return ep->rows ? strtoull(PQcmdTuples(ep->rows), NULL, 10) : 0;
}

/*
 * What went wrong.
 */
int
cutover_endpoint_query_sqlstate(CutoverEndpoint *ep)
{
	char	   *state = ep->error ? PQresultErrorField(ep->error, PG_DIAG_SQLSTATE) : NULL;

	return state && strlen(state) == 5 ? CUTOVER_SQLSTATE(state) : ERRCODE_CONNECTION_FAILURE;
}

/*
 * Raise it.
 */
void
cutover_endpoint_query_raise(CutoverEndpoint *ep, const char *sql)
{
	if (ep->error)
		cutover_endpoint_raise_result(ep, ep->error, sql);
	cutover_endpoint_raise_lost(ep, sql);
}

/*
 * End a query, whatever is left of it.
 */
bool
cutover_endpoint_query_end(CutoverEndpoint *ep)
{
	TimestampTz until;
	PGresult   *res = NULL;
	CutoverAnswer answer = CUTOVER_ANSWER_END;
	int			n = 0;

	if (!ep->querying)
	{
		PQclear(ep->rows);
		ep->rows = NULL;
		return !ep->broken;
	}
	if (ep->broken || PQstatus(ep->conn) == CONNECTION_BAD)
		return false;
	until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), QUERY_UNWANTED_MS);
	while (n < QUERY_UNWANTED_ROWS && (res = query_result(ep, until, &answer)) != NULL)
	{
		n += PQntuples(res);
		PQclear(res);
	}
	if (n < QUERY_UNWANTED_ROWS && res == NULL && answer == CUTOVER_ANSWER_END)
	{
		cutover_endpoint_query_forget(ep);
		return PQstatus(ep->conn) == CONNECTION_OK;
	}
	return cutover_endpoint_stop(ep);
}

void
cutover_endpoint_relay_cancel(CutoverEndpoint *ep, bool relay)
{
	ep->relay = relay;
	ep->relayed = false;
}

/*
 * Is an idle connection still there?
 */
bool
cutover_endpoint_is_alive(CutoverEndpoint *ep)
{
	char		byte;

	if (ep->broken || PQstatus(ep->conn) == CONNECTION_BAD)
		return false;
	if (recv(PQsocket(ep->conn), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
	/* its end, a farewell, or something harmless */
	if (!PQconsumeInput(ep->conn))
		return false;
	return PQstatus(ep->conn) == CONNECTION_OK && recv(PQsocket(ep->conn), &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0;
}

bool
cutover_endpoint_transaction_failed(CutoverEndpoint *ep)
{
	return PQtransactionStatus(ep->conn) == PQTRANS_INERROR;
}

bool
cutover_endpoint_is_usable(CutoverEndpoint *ep)
{
	return !ep->broken && PQstatus(ep->conn) == CONNECTION_OK;
}

bool
cutover_endpoint_is_quiet(CutoverEndpoint *ep)
{
	return !ep->querying;
}

bool
cutover_endpoint_in_transaction(CutoverEndpoint *ep)
{
	return PQtransactionStatus(ep->conn) != PQTRANS_IDLE;
}

/*
 * Send a statement whose result is taken later.
 */
void
cutover_endpoint_send_off(CutoverEndpoint *ep, const char *sql)
{
	if (ep->broken || PQstatus(ep->conn) == CONNECTION_BAD || ep->querying || ep->sent_off || !PQsendQuery(ep->conn, sql))
	{
		ep->broken = true;
		return;
	}
	ep->sent_off = true;
}
