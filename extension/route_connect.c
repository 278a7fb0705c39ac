/*
 * route_connect.c - the connection to new that a session keeps for its reads.
 *
 * One for each target, made at first need and closed with the session.  It is
 * given up, not cleaned, where a local transaction ends in the middle of a
 * query: new may be unable to answer.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timeout.h"

#include "forward.h"
#include "guc.h"
#include "route_remote.h"

static HTAB *sessions = NULL;
static uint64 connections = 0;	/* numbers them */

/*
 * New's error that no local plan could answer for: what was read there is gone.
 */
CUTOVER_NORETURN static void
connect_raise_snapshot_lost(void)
{
	ereport(ERROR,
			errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			errmsg("could not read on from new in the same snapshot"),
			errdetail("This transaction has read from new, and the connection with its snapshot was lost."),
			errhint("Repeat the transaction."));
	pg_unreachable();
}

/*
 * Visitor: the foreign server of a target.
 */
static bool
connect_visit_target(Relation rel, HeapTuple tuple, void *arg)
{
	bool		isnull;

	*(char **) arg = pstrdup(NameStr(*DatumGetName(cutover_tracked_attr(tuple, RelationGetDescr(rel), "server", &isnull))));
	return false;
}

/*
 * Whose address and password are stored for the target: the extension's owner's.
 */
static Oid
connect_owner(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("cutover"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return owner;
}

/*
 * How long new may take until its first row, in ms; 0 = for ever.  A statement
 * that has a limit of its own must leave old the time to answer.
 */
int
cutover_route_limit(void)
{
	int			limit = cutover_guc_read_timeout;

	if (StatementTimeout > 0 && (limit == 0 || limit > StatementTimeout / 2))
		limit = Max(StatementTimeout / 2, 1);
	return limit;
}

/*
 * What is prepared on a connection is gone with it.
 */
static void
connect_forget_prepared(RouteSession *session)
{
	while (!dlist_is_empty(&session->prepared))
	{
		RouteStatement *statement = dlist_container(RouteStatement, lru, dlist_pop_head_node(&session->prepared));

		statement->prepared_on = 0;
	}
	session->nprepared = 0;
}

/*
 * Close the connection of a session.
 */
void
cutover_route_disconnect(RouteSession *session)
{
	CutoverEndpoint *ep = session->ep;

	if (session->in_xact)
		session->xact_failed = true;
	if (session->stream)
		session->stream->open = false;
	session->stream = NULL;
	session->ep = NULL;
	connect_forget_prepared(session);
	cutover_endpoint_abandon(ep);
}

/*
 * The session of a target, connected.
 */
RouteSession *
cutover_route_session(int32 target_id)
{
	bool		found;
	RouteSession *session;
	char	   *server = NULL;

	if (sessions == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int32), .entrysize = sizeof(RouteSession)};

		sessions = hash_create("cutover sessions", 4, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	session = hash_search(sessions, &target_id, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) session + sizeof(int32), 0, sizeof(*session) - sizeof(int32));
		dlist_init(&session->prepared);
	}
	if (session->xact_failed && session->forward)
		cutover_forward_raise_lost();
	else if (session->xact_failed)
		connect_raise_snapshot_lost();
	if (session->ep && !session->in_xact && session->stream == NULL &&
		(session->stale || !cutover_endpoint_is_usable(session->ep)))
		cutover_route_disconnect(session);
	if (session->ep)
		return session;
	cutover_tracked_scan("_target", "_target_pkey", "target_id", INT4OID, Int32GetDatum(target_id),
						 connect_visit_target, &server);
	if (server == NULL)
		ereport(ERROR,
				errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				errmsg("there is no target with number %d", target_id));
	session->stale = false;
	session->ep = cutover_endpoint_connect_as(server, "cutover reads", connect_owner(), cutover_route_limit());
	session->number = ++connections;
	session->fresh = true;
	session->collation = -1;
	if (session->settings)
		pfree(session->settings);
	if (session->path)
		pfree(session->path);
	session->settings = session->path = NULL;
	session->settings_refused = false;
	return session;
}

/*
 * The sessions, by target; NULL = there was none yet.
 */
HTAB *
cutover_route_sessions(void)
{
	return sessions;
}

/*
 * A server or a mapping has changed.
 */
static void
connect_address_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS seq;
	RouteSession *session;

	if (sessions == NULL)
		return;
	hash_seq_init(&seq, sessions);
	while ((session = hash_seq_search(&seq)) != NULL)
		session->stale = true;
}

/*
 * Set up.
 */
void
cutover_route_init_remote(void)
{
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, connect_address_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGUSERSERVER, connect_address_callback, (Datum) 0);
}
