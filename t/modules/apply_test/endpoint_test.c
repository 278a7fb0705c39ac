/*
 * endpoint_test.c - what happens to a connection to new when something goes wrong.
 *
 * endpoint_test(conninfo, scenario) raises or returns what the scenario's name
 * promises; after an error it resets the connection and proves that it works.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "endpoint.h"

PG_FUNCTION_INFO_V1(endpoint_test);

static Size bytes_seen;

static void
count_bytes(void *arg, CutoverRows *rows)
{
	for (int i = 0; i < rows->nrows; i++)
		bytes_seen += strlen(CUTOVER_CELL(rows, i, 0));
}

static void
queue_text(CutoverEndpoint *ep, const char *sql, const char *value)
{
	CutoverParam param = {value, value ? strlen(value) : 0, false};

	cutover_endpoint_queue(ep, sql, 1, &param, true);
}

static char *
long_text(Size len)
{
	char	   *text = MemoryContextAllocHuge(CurrentMemoryContext, len + 1);

	memset(text, 'x', len);
	text[len] = '\0';
	return text;
}

static void
flood(CutoverEndpoint *ep)
{
	char	   *text = long_text(1000000);

	bytes_seen = 0;
	for (int i = 0; i < 100; i++)
	{
		CutoverParam param = {text, 1000000, true};

		cutover_endpoint_queue_rows(ep, "SELECT $1::text || 'y' FROM pg_catalog.generate_series(1, 3)", 1, &param, count_bytes, NULL);
	}
	cutover_endpoint_sync(ep);
}

static void
copy_bad(CutoverEndpoint *ep, int rows_before)
{
	cutover_endpoint_exec(ep, "CREATE TEMP TABLE copied (a int)");
	cutover_endpoint_copy_begin(ep, "COPY copied FROM STDIN");
	cutover_endpoint_copy_data(ep, "1\nbad\n", 6);
	for (int i = 0; i < rows_before; i++)
		cutover_endpoint_copy_data(ep, "12345678\n", 9);
	cutover_endpoint_copy_end(ep);
}

static char *
run(CutoverEndpoint *ep, const char *what)
{
	if (strcmp(what, "flood") == 0)
	{
		flood(ep);
		return psprintf("%zu bytes", bytes_seen);
	}
	if (strcmp(what, "many statements") == 0)
	{
		for (int i = 0; i < 3000; i++)
			queue_text(ep, psprintf("SELECT %d + pg_catalog.length($1::text)", i % 1200), "abc");
		return psprintf("%d", (int) cutover_endpoint_sync(ep));
	}
	if (strcmp(what, "pipeline error") == 0)
	{
		for (int i = 0; i < 1000; i++)
			queue_text(ep, "SELECT 10 / $1::int", i == 500 ? "0" : "1");
		cutover_endpoint_sync(ep);
	}
	else if (strcmp(what, "pipeline syntax") == 0)
	{
		queue_text(ep, "SELECT 10 / $1::int", "1");
		queue_text(ep, "SELEKT $1", "1");
		queue_text(ep, "SELECT 11 / $1::int", "1");
		cutover_endpoint_sync(ep);
	}
	else if (strcmp(what, "pipeline sleep") == 0)
	{
		for (int i = 0; i < 10; i++)
			queue_text(ep, "SELECT pg_catalog.pg_sleep($1::float8)", "3600");
		cutover_endpoint_sync(ep);
	}
	else if (strcmp(what, "copy error") == 0)
		copy_bad(ep, 0);
	else if (strcmp(what, "long copy error") == 0)
		copy_bad(ep, 5000000);
	else if (strcmp(what, "copy without end") == 0)
	{
		cutover_endpoint_exec(ep, "CREATE TEMP TABLE copied (a int)");
		cutover_endpoint_copy_begin(ep, "COPY copied FROM STDIN");
		for (;;)
			cutover_endpoint_copy_data(ep, "12345678\n", 9);
	}
	else if (strcmp(what, "error in copy statement") == 0)
		cutover_endpoint_copy_begin(ep, "COPY nowhere FROM STDIN");
	else if (strcmp(what, "not a copy") == 0)
		cutover_endpoint_copy_begin(ep, "SELECT 1");
	else
		return cutover_endpoint_exec(ep, what)->nrows > 0 ? "rows" : "no rows";
	return "no error";
}

Datum
endpoint_test(PG_FUNCTION_ARGS)
{
	CutoverEndpoint *ep = cutover_endpoint_connect_info(text_to_cstring(PG_GETARG_TEXT_PP(0)), "endpoint_test");
	char	   *what = text_to_cstring(PG_GETARG_TEXT_PP(1));
	MemoryContext cxt = CurrentMemoryContext;
	char	   *volatile result = NULL;

	PG_TRY();
	{
		cutover_endpoint_exec(ep, "BEGIN");
		result = run(ep, what);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		result = psprintf("%s %s (%s)", unpack_sql_state(error->sqlerrcode), error->message, error->context ? error->context : "");
		if (cutover_endpoint_reset(ep))
		{
			queue_text(ep, "SELECT 10 / $1::int", "2");
			queue_text(ep, "SELECT 11 / $1::int", "2");
			cutover_endpoint_sync(ep);
			if (strcmp(CUTOVER_CELL(cutover_endpoint_exec(ep, "SELECT pg_catalog.txid_current_if_assigned() IS NULL"), 0, 0), "t") != 0)
				elog(ERROR, "still in a transaction");
			result = psprintf("%s; reset", result);
		}
		else
			result = psprintf("%s; unusable", result);
	}
	PG_END_TRY();
	cutover_endpoint_close(ep);
	PG_RETURN_TEXT_P(cstring_to_text(result));
}
