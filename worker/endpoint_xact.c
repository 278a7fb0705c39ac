/*
 * endpoint_xact.c - connections to new whose transactions go with the local one.
 *
 * Runs in client backends.  A remote transaction begins at first use and
 * commits just before the local transaction does: if new refuses, the local
 * transaction fails too.  Should the local commit then fail, new keeps what it
 * has; what is done this way must bear to be done again.  Savepoints on new
 * follow the local ones.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

#include "endpoint_private.h"

typedef struct EndpointXact
{
	char	   *server;
	CutoverEndpoint *ep;
	int			level;			/* nesting: 1 = transaction, n = savepoint s<n> */
	bool		failed;			/* new's transaction is lost: the local one can't commit */
} EndpointXact;

static List *xact_endpoints = NIL;	/* in TopMemoryContext */

static void xact_set_level(EndpointXact *x, int level);
static void xact_callback(XactEvent event, void *arg);
static void xact_sub_callback(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg);
static void xact_roll_back_to(EndpointXact *x);

/*
 * The connection to a server for the rest of the local transaction.
 */
CutoverEndpoint *
cutover_endpoint_in_xact(const char *server)
{
	static bool registered = false;
	EndpointXact *x = NULL;
	MemoryContext cxt;
	CutoverEndpoint *ep;
	ListCell   *lc;

	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(xact_sub_callback, NULL);
		registered = true;
	}
	foreach(lc, xact_endpoints)
		if (strcmp(((EndpointXact *) lfirst(lc))->server, server) == 0)
			x = lfirst(lc);
	if (x == NULL)
	{
		ep = cutover_endpoint_connect(server, "cutover");
		cutover_endpoint_authorize(ep);
		cxt = MemoryContextSwitchTo(TopMemoryContext);
		x = palloc0(sizeof(EndpointXact));
		x->server = pstrdup(server);
		x->ep = ep;
		xact_endpoints = lappend(xact_endpoints, x);
		MemoryContextSwitchTo(cxt);
	}
	if (x->failed)
		cutover_endpoint_raise_lost(x->ep, NULL);
	xact_set_level(x, GetCurrentTransactionNestLevel());
	return x->ep;
}

/*
 * Begin, and set savepoints up to the local nesting level.
 */
static void
xact_set_level(EndpointXact *x, int level)
{
	while (x->level < level)
	{
		(void) cutover_endpoint_exec(x->ep, x->level == 0 ? "BEGIN" : psprintf("SAVEPOINT s%d", x->level + 1));
		x->level++;
	}
}

/*
 * End of the local transaction.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	ListCell   *lc;

	if (xact_endpoints == NIL)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			foreach(lc, xact_endpoints)
			{
				EndpointXact *x = lfirst(lc);

				if (x->failed)
					cutover_endpoint_raise_lost(x->ep, "COMMIT");
				if (x->level > 0)
					(void) cutover_endpoint_exec(x->ep, "COMMIT");
				x->level = 0;
			}
			break;
		case XACT_EVENT_PRE_PREPARE:
			ereport(ERROR,
					errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					errmsg("cannot prepare a transaction that has worked on new"),
					errdetail("The transaction called a function of cutover that changes the new database."),
					errhint("Use COMMIT instead of PREPARE TRANSACTION."));
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			cutover_endpoint_xact_close();
			break;
		default:
			break;
	}
}

/*
 * End of a local subtransaction.
 */
static void
xact_sub_callback(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();
	ListCell   *lc;

	foreach(lc, xact_endpoints)
	{
		EndpointXact *x = lfirst(lc);

		if (x->level < level)
			continue;			/* not used at this level */
		if (event == SUBXACT_EVENT_PRE_COMMIT_SUB)
		{
			(void) cutover_endpoint_exec(x->ep, psprintf("RELEASE SAVEPOINT s%d", level));
			x->level = level - 1;
		}
		else if (event == SUBXACT_EVENT_ABORT_SUB)
		{
			x->level = level;
			xact_roll_back_to(x);
			x->level = level - 1;
		}
	}
}

/*
 * Undo the savepoint of x's level.  Must not raise: what goes wrong makes the
 * commit fail later.
 */
static void
xact_roll_back_to(EndpointXact *x)
{
	if (!x->failed && !cutover_endpoint_roll_back_to(x->ep, psprintf("ROLLBACK TO SAVEPOINT s%d; RELEASE SAVEPOINT s%d",
																	 x->level, x->level)))
		x->failed = true;
}

/*
 * Forget all connections; new rolls back what is not committed.
 */
void
cutover_endpoint_xact_close(void)
{
	while (xact_endpoints != NIL)
	{
		EndpointXact *x = linitial(xact_endpoints);

		xact_endpoints = list_delete_first(xact_endpoints);
		cutover_endpoint_close(x->ep);
		pfree(x->server);
		pfree(x);
	}
}
