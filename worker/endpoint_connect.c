/*
 * endpoint_connect.c - making, pinning and closing connections to new.
 *
 * Runs in client backends and in background workers.  The address comes from a
 * foreign server and a user mapping, or from a conninfo string that is split
 * here: libpq never sees the string itself, and its messages pass a filter.
 */
#include "postgres.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "access/xact.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#if __has_include("libpq/libpq-be-fe-helpers.h")
#include "libpq/libpq-be-fe-helpers.h"
#else
#error "cutover needs the latest minor release of this PostgreSQL: libpq/libpq-be-fe-helpers.h is missing"
#endif
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "endpoint_private.h"
#include "guc.h"

#define ENDPOINT_MAX_OPTIONS 100

typedef struct EndpointKeywords
{
	int			n;
	const char *keywords[ENDPOINT_MAX_OPTIONS + 1];
	const char *values[ENDPOINT_MAX_OPTIONS + 1];
} EndpointKeywords;

static dlist_head endpoint_all = DLIST_STATIC_INIT(endpoint_all);

static List *endpoint_server_options(const char *server, Oid user);
static const char *endpoint_find(List *options, const char *keyword);
static void endpoint_add(EndpointKeywords *k, List *options, const char *keyword, const char *value);
static int	endpoint_connect_seconds(List *options);
static CutoverEndpoint *endpoint_open(List *options, const char *label, const char *application, int limit_ms);
static void endpoint_poll_connection(CutoverEndpoint *ep, int limit_ms);
static void endpoint_pin(CutoverEndpoint *ep);
static void endpoint_ignore_notice(void *arg, const PGresult *res);
static void endpoint_exit(int code, Datum arg);
static char *endpoint_mask_quoted(const char *text);

/*
 * Connect to a foreign server.
 */
CutoverEndpoint *
cutover_endpoint_connect(const char *server, const char *application)
{
	return endpoint_open(endpoint_server_options(server, GetUserId()), server, application, 0);
}

/*
 * The same with the mapping of a given user, in limited time.
 */
CutoverEndpoint *
cutover_endpoint_connect_as(const char *server, const char *application, Oid user, int limit_ms)
{
	return endpoint_open(endpoint_server_options(server, user), server, application, limit_ms);
}

/*
 * Connect by a conninfo string.
 */
CutoverEndpoint *
cutover_endpoint_connect_info(const char *conninfo, const char *application)
{
	return endpoint_open(cutover_endpoint_parse(conninfo), "new", application, 0);
}

/*
 * Options of a server and of the mapping that a user has there.
 */
static List *
endpoint_server_options(const char *server, Oid user)
{
	MemoryContext cxt = CurrentMemoryContext;
	bool		own_xact = !IsTransactionState();
	List	   *result = NIL;
	ForeignServer *fs;
	UserMapping *um;
	ListCell   *lc;

	if (own_xact)
		StartTransactionCommand();
	fs = GetForeignServerByName(server, false);
	um = GetUserMapping(user, fs->serverid);
	MemoryContextSwitchTo(cxt);
	foreach(lc, list_concat_copy(fs->options, um->options))
	{
		DefElem    *def = lfirst(lc);
		CutoverOption *option = palloc0(sizeof(CutoverOption));

		option->keyword = pstrdup(def->defname);
		option->value = pstrdup(defGetString(def));
		result = lappend(result, option);
	}
	if (own_xact)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(cxt);
	}
	return result;
}

/*
 * The last value given for a keyword, or NULL.
 */
static const char *
endpoint_find(List *options, const char *keyword)
{
	const char *value = NULL;
	ListCell   *lc;

	foreach(lc, options)
	{
		CutoverOption *option = lfirst(lc);

		if (strcmp(option->keyword, keyword) == 0)
			value = option->value;
	}
	return value;
}

/*
 * Add a keyword unless options has it (options NIL: in any case).
 */
static void
endpoint_add(EndpointKeywords *k, List *options, const char *keyword, const char *value)
{
	if (endpoint_find(options, keyword) != NULL)
		return;
	if (k->n == ENDPOINT_MAX_OPTIONS)
		elog(ERROR, "too many connection options");
	k->keywords[k->n] = keyword;
	k->values[k->n++] = value;
}

/*
 * How long to wait for a connection: PQconnectPoll has no limit of its own,
 * and tries several hosts one after the other.
 */
static int
endpoint_connect_seconds(List *options)
{
	const char *given = endpoint_find(options, "connect_timeout");
	const char *host = endpoint_find(options, "host") ? : endpoint_find(options, "hostaddr");
	int			seconds = given ? atoi(given) : 0;
	int			hosts = 1;

	if (seconds <= 0)
		seconds = 10;
	for (; host && *host; host++)
		hosts += (*host == ',');
	/* the kernel gives a silent host up after tcp_user_timeout, only then comes the next */
	return hosts == 1 ? seconds : Max(seconds, 32) * hosts;
}

/*
 * Make the connection and pin its settings; limit_ms = 0: as long as it may take.
 */
static CutoverEndpoint *
endpoint_open(List *options, const char *label, const char *application, int limit_ms)
{
	static bool exit_registered = false;
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "cutover endpoint", ALLOCSET_DEFAULT_SIZES);
	CutoverEndpoint *ep = MemoryContextAllocZero(cxt, sizeof(CutoverEndpoint));
	EndpointKeywords k = {0};
	ListCell   *lc;

	ep->cxt = cxt;
	ep->label = MemoryContextStrdup(cxt, label);
	ep->timeout = cutover_guc_network_timeout;

	foreach(lc, options)
	{
		CutoverOption *option = lfirst(lc);

		endpoint_add(&k, NIL, option->keyword, option->value);
	}
	endpoint_add(&k, options, "keepalives_idle", "10");
	endpoint_add(&k, options, "keepalives_interval", "5");
	endpoint_add(&k, options, "keepalives_count", "3");
	endpoint_add(&k, options, "tcp_user_timeout", "30000");
	endpoint_add(&k, NIL, "fallback_application_name", application);
	endpoint_add(&k, NIL, "client_encoding", GetDatabaseEncodingName());

	if (!exit_registered)
	{
		before_shmem_exit(endpoint_exit, (Datum) 0);
		exit_registered = true;
	}
	libpqsrv_connect_prepare();
	PG_TRY();
	{
		ep->conn = PQconnectStartParams(k.keywords, k.values, 0);
		if (ep->conn == NULL)
			ereport(ERROR, errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory"));
		PQsetNoticeReceiver(ep->conn, endpoint_ignore_notice, NULL);
		endpoint_poll_connection(ep, limit_ms > 0 ? limit_ms : endpoint_connect_seconds(options) * 1000);
		dlist_push_head(&endpoint_all, &ep->node);
	}
	PG_CATCH();
	{
		ReleaseExternalFD();
		PQfinish(ep->conn);
		MemoryContextDelete(cxt);
		PG_RE_THROW();
	}
	PG_END_TRY();

	PG_TRY();
	{
		int			timeout = ep->timeout;

		if (limit_ms > 0)
			ep->timeout = Max(1, (limit_ms + 999) / 1000);
		endpoint_pin(ep);
		ep->timeout = timeout;
	}
	PG_CATCH();
	{
		cutover_endpoint_close(ep);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return ep;
}

/*
 * Drive a connection attempt to its end.
 */
static void
endpoint_poll_connection(CutoverEndpoint *ep, int limit_ms)
{
	static uint32 event = 0;
	PostgresPollingStatusType status = PQstatus(ep->conn) == CONNECTION_BAD ? PGRES_POLLING_FAILED : PGRES_POLLING_WRITING;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), limit_ms);

	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		int			io = status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		int			rc = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT | io,
										   PQsocket(ep->conn),
										   TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline),
										   cutover_wait_event_compat(&event, "CutoverTargetConnect"));

		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (rc & io)
			status = PQconnectPoll(ep->conn);
		else if (GetCurrentTimestamp() >= deadline)
			ereport(ERROR,
					errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					errmsg("could not connect to \"%s\"", ep->label),
					errdetail("There was no answer within %d ms.", limit_ms),
					errhint("Check the address, firewalls, and that the server runs; connect_timeout in the connection options is the limit."));
	}
	if (status == PGRES_POLLING_FAILED)
	{
		char	   *text = cutover_endpoint_error_text(ep->conn);

		ereport(ERROR,
				errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				errmsg("could not connect to \"%s\"", ep->label),
				errdetail_internal("%s", text[0] ? text : "No reason was given."),
				errhint("Check the address, the credentials, and pg_hba.conf of that server."));
	}
	if (PQsetnonblocking(ep->conn, 1) != 0)
		elog(ERROR, "could not make the connection non-blocking");
}

/*
 * Settings that make text forms the same everywhere and keep limits meant for
 * applications away from us.
 */
static void
endpoint_pin(CutoverEndpoint *ep)
{
	int			version = PQserverVersion(ep->conn);
	StringInfoData sql;
	PGresult   *res;

	initStringInfo(&sql);
	appendStringInfoString(&sql,
						   "SET search_path = pg_catalog; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';"
						   "SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content';"
						   "SET standard_conforming_strings = on; SET row_security = off; SET check_function_bodies = off;"
						   "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;"
						   "SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;"
						   "SET default_transaction_deferrable = off; SET synchronize_seqscans = off; SET client_min_messages = 'warning'");
	if (version >= 140000)
		appendStringInfoString(&sql, "; SET idle_session_timeout = 0");
	if (version >= 170000)
		appendStringInfoString(&sql, "; SET transaction_timeout = 0");
	(void) cutover_endpoint_exec(ep, sql.data);
	pfree(sql.data);

	/* new notices our death while it works for us; not every platform can */
	if (version >= 140000 && PQsendQuery(ep->conn, "SET client_connection_check_interval = '10s'"))
		while ((res = cutover_endpoint_get_result(ep)) != NULL)
			PQclear(res);
}

/*
 * Present a token to new's guard, another one each time.  In a transaction of
 * its own: a session that begins read-only isn't any more by now.
 */
void
cutover_endpoint_authorize(CutoverEndpoint *ep)
{
	uint8		random[16];
	char		token[2 * sizeof(random) + 1];

	if (!pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				errcode(ERRCODE_INTERNAL_ERROR),
				errmsg("could not generate a random token"));
	hex_encode((const char *) random, sizeof(random), token);
	token[sizeof(token) - 1] = '\0';
	(void) cutover_endpoint_exec(ep, psprintf("DO $$BEGIN IF NOT pg_catalog.pg_is_in_recovery() AND EXISTS (SELECT FROM pg_catalog.pg_proc p"
											  " JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'cutover' AND p.proname = 'authorize'"
											  " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE'))"
											  " THEN PERFORM cutover.authorize('%s'); END IF; END$$", token));
}

/*
 * Plans that stay right while tables grow, and silent triggers if allowed.
 */
void
cutover_endpoint_set_apply_mode(CutoverEndpoint *ep)
{
	PGresult   *res;

	(void) cutover_endpoint_exec(ep,
								 "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;"
								 "SET plan_cache_mode = force_generic_plan; SET jit = off");
	/* superuser, or granted from 15 on: asking is the only way to know */
	ep->is_replica = false;
	if (!PQsendQuery(ep->conn, "SET session_replication_role = 'replica'"))
		cutover_endpoint_raise_lost(ep, NULL);
	while ((res = cutover_endpoint_get_result(ep)) != NULL)
	{
		ep->is_replica = PQresultStatus(res) == PGRES_COMMAND_OK;
		PQclear(res);
	}
	if (PQstatus(ep->conn) == CONNECTION_BAD)
		cutover_endpoint_raise_lost(ep, NULL);
}

bool
cutover_endpoint_is_replica(CutoverEndpoint *ep)
{
	return ep->is_replica;
}

int
cutover_endpoint_server_version(CutoverEndpoint *ep)
{
	return PQserverVersion(ep->conn);
}

bool
cutover_endpoint_used_password(CutoverEndpoint *ep)
{
	return PQconnectionUsedPassword(ep->conn);
}

int
cutover_endpoint_set_timeout(CutoverEndpoint *ep, int seconds)
{
	int			former = ep->timeout;

	ep->timeout = seconds;
	return former;
}

#if PG_VERSION_NUM < 170000
/*
 * PQcancel waits without limit for a server that takes the connection and then
 * does not answer, and nothing interrupts it.  It may be called from a signal
 * handler, so it may be called in a fresh child, whose time is limited.
 */
static void
endpoint_cancel_in_child(CutoverEndpoint *ep)
{
	PGcancel   *cancel = PQgetCancel(ep->conn);
	sigset_t	blocked;
	sigset_t	saved;
	char		errbuf[256];
	pid_t		child;

	if (cancel == NULL)
		return;
	/* the child must not act on what the postmaster sends to all of us */
	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, &saved);
	child = fork();
	if (child == 0)
	{
		signal(SIGALRM, SIG_DFL);
		sigdelset(&blocked, SIGALRM);
		sigprocmask(SIG_SETMASK, &blocked, NULL);
		alarm(ENDPOINT_CANCEL_TIMEOUT);
		(void) PQcancel(cancel, errbuf, sizeof(errbuf));
		_exit(0);
	}
	sigprocmask(SIG_SETMASK, &saved, NULL);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	PQfreeCancel(cancel);
}
#endif

/*
 * Ask new to stop what it does for us.  Waits for the request to be delivered,
 * at most as long as clean-up may take where libpq lets us.
 */
void
cutover_endpoint_cancel(CutoverEndpoint *ep)
{
	if (ep->unanswered)
		return;
#if PG_VERSION_NUM >= 170000
	(void) libpqsrv_cancel(ep->conn, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ENDPOINT_CLEANUP_TIMEOUT * 1000));
#else
	endpoint_cancel_in_child(ep);
#endif
}

/*
 * Close, stopping what new still does for us.
 */
void
cutover_endpoint_close(CutoverEndpoint *ep)
{
	if (ep == NULL)
		return;
	if (ep->local)
	{
		cutover_endpoint_local_close(ep);
		return;
	}
	if (!ep->broken && PQstatus(ep->conn) == CONNECTION_OK && PQtransactionStatus(ep->conn) == PQTRANS_ACTIVE)
		cutover_endpoint_cancel(ep);
	PQclear(ep->failed);
	cutover_endpoint_query_free(ep);
	dlist_delete(&ep->node);
	libpqsrv_disconnect(ep->conn);
	MemoryContextDelete(ep->cxt);
}

/*
 * A request to cancel that nobody waits for: from a process of its own, which
 * is no child of ours and has nothing open but its connection.
 */
static void
endpoint_cancel_unattended(CutoverEndpoint *ep)
{
	PGcancel   *cancel = PQgetCancel(ep->conn);
	sigset_t	blocked;
	sigset_t	saved;
	char		errbuf[256];
	pid_t		child;

	if (cancel == NULL)
		return;
	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, &saved);
	child = fork();
	if (child == 0)
	{
		if (fork() != 0)
			_exit(0);
		for (int fd = 0; fd < 1024; fd++)
			(void) close(fd);
		signal(SIGALRM, SIG_DFL);
		sigdelset(&blocked, SIGALRM);
		sigprocmask(SIG_SETMASK, &blocked, NULL);
		alarm(ENDPOINT_CANCEL_TIMEOUT);
		(void) PQcancel(cancel, errbuf, sizeof(errbuf));
		_exit(0);
	}
	sigprocmask(SIG_SETMASK, &saved, NULL);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	PQfreeCancel(cancel);
}

/*
 * Close without waiting for anything.
 */
void
cutover_endpoint_abandon(CutoverEndpoint *ep)
{
	if (ep == NULL)
		return;
	if (PQstatus(ep->conn) == CONNECTION_OK && PQtransactionStatus(ep->conn) == PQTRANS_ACTIVE)
		endpoint_cancel_unattended(ep);
	ep->broken = true;
	cutover_endpoint_close(ep);
}

/*
 * The process ends: new must not go on with our statements.
 */
static void
endpoint_exit(int code, Datum arg)
{
	/* these would be closed a second time when the transaction is rolled back */
	cutover_endpoint_xact_close();
	while (!dlist_is_empty(&endpoint_all))
		cutover_endpoint_close(dlist_container(CutoverEndpoint, node, dlist_head_node(&endpoint_all)));
}

/*
 * Notices of new are not for our clients nor for our log.
 */
static void
endpoint_ignore_notice(void *arg, const PGresult *res)
{
}

/*
 * What libpq says went wrong, without line ends and without the password.
 */
char *
cutover_endpoint_error_text(PGconn *conn)
{
	char	   *text = pchomp(PQerrorMessage(conn));
	const char *password = PQpass(conn);

	if (password && password[0])
	{
		StringInfoData masked;
		Size		len = strlen(password);

		initStringInfo(&masked);
		for (char *p = text; *p;)
			if (strncmp(p, password, len) == 0)
			{
				appendStringInfoString(&masked, "********");
				p += len;
			}
			else
				appendStringInfoCharMacro(&masked, *p++);
		text = masked.data;
	}
	return text;
}

/*
 * A text with everything in double quotes made unreadable.
 */
static char *
endpoint_mask_quoted(const char *text)
{
	StringInfoData masked;
	const char *last = strrchr(text, '"');

	initStringInfo(&masked);
	for (const char *p = text; *p; p++)
		/* up to the last quote: a value may hold quotes itself */
		if (*p == '"' && p != last)
		{
			appendStringInfoString(&masked, "\"...\"");
			p = last;
		}
		else
			appendStringInfoCharMacro(&masked, *p);
	return masked.data;
}

/*
 * The keywords given in a conninfo string.
 */
List *
cutover_endpoint_parse(const char *conninfo)
{
	char	   *error = NULL;
	PQconninfoOption *options = PQconninfoParse(conninfo, &error);
	List	   *result = NIL;

	if (options == NULL)
	{
		char	   *text = pchomp(error ? error : "out of memory");

		if (error)
			PQfreemem(error);
		/* what the parser quotes may be part of a password */
		if (strstr(conninfo, "://") || strstr(conninfo, "pass"))
			text = endpoint_mask_quoted(text);
		ereport(ERROR,
				errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("invalid connection string"),
				errdetail_internal("%s", text),
				errhint("Give a libpq connection string, for example \"host=db2 dbname=shop user=mover\"."));
	}
	PG_TRY();
	{
		for (PQconninfoOption *o = options; o->keyword; o++)
			if (o->val != NULL)
			{
				CutoverOption *option = palloc(sizeof(CutoverOption));

				option->keyword = pstrdup(o->keyword);
				option->value = pstrdup(o->val);
				option->place = cutover_endpoint_option_place(o->keyword);
				if (option->place == CUTOVER_OPTION_REFUSED)
					ereport(ERROR,
							errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("connection option \"%s\" can't be used here", o->keyword),
							errdetail("It is set by cutover itself, or makes a connection that can't run statements."),
							errhint("Leave it out."));
				result = lappend(result, option);
			}
	}
	PG_FINALLY();
	{
		PQconninfoFree(options);
	}
	PG_END_TRY();
	return result;
}

/*
 * Where a keyword belongs.
 */
CutoverOptionPlace
cutover_endpoint_option_place(const char *keyword)
{
	static const char *const refused[] = {"client_encoding", "replication", "fallback_application_name"};
	static const char *const personal[] = {"user", "passfile", "options", "sslcert", "sslkey", "scram_client_key"};
	PQconninfoOption *options = PQconndefaults();
	CutoverOptionPlace place = CUTOVER_OPTION_UNKNOWN;

	for (PQconninfoOption *o = options; o && o->keyword; o++)
		if (strcmp(o->keyword, keyword) == 0)
			/* '*': libpq itself takes it for a secret */
			place = strchr(o->dispchar, '*') ? CUTOVER_OPTION_MAPPING : CUTOVER_OPTION_SERVER;
	if (options)
		PQconninfoFree(options);
	if (place == CUTOVER_OPTION_SERVER)
	{
		for (int i = 0; i < lengthof(refused); i++)
			if (strcmp(refused[i], keyword) == 0)
				return CUTOVER_OPTION_REFUSED;
		for (int i = 0; i < lengthof(personal); i++)
			if (strcmp(personal[i], keyword) == 0)
				return CUTOVER_OPTION_MAPPING;
	}
	return place;
}
