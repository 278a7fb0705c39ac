/*
 * retry.c - which errors pass by themselves, and how long to wait.
 *
 * Pure functions, for any process.  Classes 08 and 40 are not taken as a
 * whole: 08P01 and 40002 will come again.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/elog.h"

#include "retry.h"

#define RETRY_FIRST_MS 100

static const int retry_connection[] = {
	ERRCODE_CONNECTION_EXCEPTION,
	ERRCODE_CONNECTION_DOES_NOT_EXIST,
	ERRCODE_CONNECTION_FAILURE,
	ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
	ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
	ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN,
	ERRCODE_DATABASE_DROPPED,	/* and perhaps made again */
	ERRCODE_READ_ONLY_SQL_TRANSACTION,	/* demoted: the address may lead to its successor */
	ERRCODE_IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
	MAKE_SQLSTATE('2', '5', 'P', '0', '4'), /* transaction_timeout, from 17 on */
	MAKE_SQLSTATE('5', '7', 'P', '0', '5')	/* idle_session_timeout */
};

static const int retry_transient[] = {
	ERRCODE_T_R_SERIALIZATION_FAILURE,
	ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN,
	ERRCODE_T_R_DEADLOCK_DETECTED,
	ERRCODE_LOCK_NOT_AVAILABLE,
	ERRCODE_OBJECT_IN_USE,
	ERRCODE_QUERY_CANCELED,		/* by somebody on new: says nothing of the row */
	ERRCODE_ADMIN_SHUTDOWN,
	ERRCODE_CRASH_SHUTDOWN,
	ERRCODE_CANNOT_CONNECT_NOW,
	ERRCODE_IN_FAILED_SQL_TRANSACTION,
	ERRCODE_INVALID_SQL_STATEMENT_NAME, /* a pooler dropped what we had prepared */
	ERRCODE_IO_ERROR,
	ERRCODE_INSUFFICIENT_PRIVILEGE	/* a matter between people: neither row nor table is at fault */
};

static bool retry_is_one_of(int code, const int *codes, int n);

/*
 * Class of an error.
 */
CutoverErrorClass
cutover_retry_classify(int sqlerrcode)
{
	if (retry_is_one_of(sqlerrcode, retry_connection, lengthof(retry_connection)))
		return CUTOVER_ERROR_CONNECTION;
	/* class 53: disk, memory, connections, limits */
	if (ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES ||
		retry_is_one_of(sqlerrcode, retry_transient, lengthof(retry_transient)))
		return CUTOVER_ERROR_TRANSIENT;
	return CUTOVER_ERROR_DATA;
}

/*
 * Whether a code stands in a list.
 */
static bool
retry_is_one_of(int code, const int *codes, int n)
{
	for (int i = 0; i < n; i++)
		if (codes[i] == code)
			return true;
	return false;
}

/*
 * Delay before an attempt: never above max_ms, up to a quarter below.
 */
int
cutover_retry_delay(int attempt, int max_ms)
{
	double		ms = RETRY_FIRST_MS;

	for (int i = 1; i < attempt && ms < max_ms; i++)
		ms *= 2;
	ms = Min(ms, (double) max_ms);
	return Max(1, (int) (ms * (1.0 - 0.25 * pg_prng_double(&pg_global_prng_state))));
}
