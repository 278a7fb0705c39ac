/*
 * route_session.c - what new is told of this session, and what it says of itself.
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "tsearch/ts_cache.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/xml.h"

#include "route_remote.h"

/* utils/pg_locale.h wants the headers of ICU, which need not be there */
extern PGDLLIMPORT char *locale_monetary;
extern PGDLLIMPORT char *locale_numeric;
extern PGDLLIMPORT char *locale_time;

/* Settings that stable built-in functions depend on, apart from those that only matter for words. */
static const char *const session_settings[] = {
	"TimeZone", "DateStyle", "IntervalStyle", "extra_float_digits", "bytea_output", "lc_monetary", "lc_numeric",
	"lc_time", "default_text_search_config", "xmlbinary", "xmloption"
};

static uint64 settings_changes = 1; /* counts them */

/* How a database orders text: provider, locale, classes, version of the library, encoding. */
#define COLLATION_SQL \
	"SELECT pg_catalog.concat_ws('/', coalesce(j ->> 'datlocprovider', 'c'), j ->> 'datcollate', j ->> 'datctype'," \
	" coalesce(j ->> 'datlocale', j ->> 'daticulocale'), pg_catalog.pg_encoding_to_char((j ->> 'encoding')::pg_catalog.int4)," \
	" CASE WHEN j ->> 'datcollate' IN ('C', 'POSIX') AND coalesce(j ->> 'datlocprovider', 'c') = 'c' THEN ''" \
	" ELSE (SELECT pg_catalog.pg_collation_actual_version(c.oid) FROM pg_catalog.pg_collation c" \
	" WHERE c.collprovider = coalesce(j ->> 'datlocprovider', 'c')::\"char\" AND c.collname NOT IN ('C', 'POSIX', 'ucs_basic', 'C.UTF-8', 'C.utf8')" \
	" AND pg_catalog.pg_collation_actual_version(c.oid) IS NOT NULL ORDER BY c.oid LIMIT 1) END)" \
	" FROM (SELECT pg_catalog.to_jsonb(d) AS j FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS x"

/*
 * Run a statement and wait for its end; false if it failed.  The first value of its
 * last row goes to *value if wanted.
 */
bool
cutover_route_ask(RouteSession *session, const char *sql, TimestampTz deadline, char **value)
{
	CutoverQuery query = {.sql = sql};
	CutoverAnswer answer;

	if (!cutover_endpoint_query_send(session->ep, &query))
		return false;
	while ((answer = cutover_endpoint_query_next(session->ep, deadline)) == CUTOVER_ANSWER_ROWS)
		if (value)
		{
			int			len;
			char	   *data = cutover_endpoint_query_value(session->ep, 0, 0, &len);

			*value = data ? pstrdup(data) : NULL;
		}
	return answer == CUTOVER_ANSWER_END;
}

/*
 * Have the settings changed since this was last asked?  Only their variables are
 * looked at: asking for them all by name takes longer than a short query.
 */
static bool
session_settings_changed(void)
{
	static struct
	{
		int			numbers[7];
		const void *zone;
		char		texts[4][NAMEDATALEN];
	}			last,
				now;
	const char *texts[4];

	memset(&now, 0, sizeof(now));
	now.numbers[0] = DateStyle;
	now.numbers[1] = DateOrder;
	now.numbers[2] = IntervalStyle;
	now.numbers[3] = extra_float_digits;
	now.numbers[4] = bytea_output;
	now.numbers[5] = xmlbinary;
	now.numbers[6] = xmloption;
	now.zone = session_timezone;
	texts[0] = locale_monetary;
	texts[1] = locale_numeric;
	texts[2] = locale_time;
	texts[3] = TSCurrentConfig;
	for (int i = 0; i < 4; i++)
		strlcpy(now.texts[i], texts[i] ? texts[i] : "", NAMEDATALEN);
	if (memcmp(&last, &now, sizeof(now)) == 0)
		return false;
	last = now;
	return true;
}

/*
 * The settings in one statement, as they are now.
 */
static char *
session_settings_sql(void)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < lengthof(session_settings); i++)
		appendStringInfo(&sql, "%spg_catalog.set_config(%s, %s, false)", i ? ", " : "",
						 quote_literal_cstr(session_settings[i]),
						 quote_literal_cstr(GetConfigOption(session_settings[i], false, false)));
	return sql.data;
}

/*
 * Let new have the settings of this session.  False if it refuses some of
 * them, or does not answer.
 */
bool
cutover_route_send_settings(RouteSession *session, TimestampTz deadline)
{
	char	   *sql;

	if (session_settings_changed())
		settings_changes++;
	if (session->settings && session->settings_changes == settings_changes)
		return !session->settings_refused;
	session->settings_changes = settings_changes;
	sql = session_settings_sql();
	if (session->settings && strcmp(session->settings, sql) == 0)
	{
		pfree(sql);
		return !session->settings_refused;
	}
	if (session->settings)
		pfree(session->settings);
	session->settings = NULL;
	session->settings_refused = true;
	/* words of a configuration that is not the server's own are another matter there */
	if (strncmp(GetConfigOption("default_text_search_config", false, false), "pg_catalog.", 11) == 0)
		session->settings_refused = !cutover_route_ask(session, sql, deadline, NULL);
	if (cutover_endpoint_is_usable(session->ep))
		session->settings = MemoryContextStrdup(TopMemoryContext, sql);
	pfree(sql);
	return !session->settings_refused;
}

/*
 * The same question here.
 */
static char *
session_own_collation(void)
{
	MemoryContext cxt = CurrentMemoryContext;
	char	   *result = NULL;

	SPI_connect();
	if (SPI_execute(COLLATION_SQL, true, 1) == SPI_OK_SELECT && SPI_processed == 1)
	{
		char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		result = value ? MemoryContextStrdup(cxt, value) : NULL;
	}
	SPI_finish();
	return result;
}

/*
 * Does new order text as we do?
 */
bool
cutover_route_same_collation(RouteSession *session, TimestampTz deadline)
{
	if (session->collation < 0)
	{
		char	   *theirs = NULL;
		char	   *ours;

		if (!cutover_route_ask(session, COLLATION_SQL, deadline, &theirs))
			return false;
		ours = session_own_collation();
		session->collation = ours && theirs && strcmp(ours, theirs) == 0;
	}
	return session->collation == 1;
}
