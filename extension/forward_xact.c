/*
 * forward_xact.c - new's transaction, which goes with the local one.
 *
 * It begins with the first statement that needs it and commits just before the
 * local one does: if new refuses, the local transaction fails, too.  Savepoints
 * are set on new when something is sent below them.  Where the connection is lost
 * before COMMIT was sent, new rolls back; where it is lost in the middle of that,
 * nobody knows, and the error says so.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/hsearch.h"

#include "compat.h"
#include "forward.h"
#include "guc.h"

static bool interrupts_held = false;

/*
 * Raise that new's transaction is lost, and with it the local one.
 */
void
cutover_forward_raise_lost(void)
{
	ereport(ERROR,
			errcode(ERRCODE_CONNECTION_FAILURE),
			errmsg("lost the connection to new"),
			errdetail("What this transaction has written there is rolled back."),
			errhint("Run the transaction again."));
	pg_unreachable();
}

/*
 * Raise that nobody knows what became of it.
 */
void
cutover_forward_raise_unknown(void)
{
	ereport(ERROR,
			errcode(ERRCODE_CONNECTION_FAILURE),
			errmsg("lost the connection to new while it committed"),
			errdetail("Whether new has committed what this transaction wrote there is not known."),
			errhint("Look for its rows before you run the transaction again."));
	pg_unreachable();
}

/*
 * New has committed: the local transaction must come to its end.
 */
void
cutover_forward_hold_interrupts(void)
{
	HOLD_INTERRUPTS();
	interrupts_held = true;
	/* too late for it */
	QueryCancelPending = false;
}

/*
 * Run a statement whose rows, if any, nobody wants; returns new's answer.
 */
static CutoverAnswer
xact_run(RouteSession *session, const char *sql)
{
	CutoverQuery query = {.sql = sql};
	CutoverAnswer answer;

	if (!cutover_endpoint_query_send(session->ep, &query))
		return CUTOVER_ANSWER_LOST;
	while ((answer = cutover_endpoint_query_next(session->ep, 0)) == CUTOVER_ANSWER_ROWS)
		;
	return answer;
}

/*
 * The same, raising what goes wrong.
 */
void
cutover_forward_command(RouteSession *session, const char *sql)
{
	CutoverAnswer answer = xact_run(session, sql);

	if (answer == CUTOVER_ANSWER_FAILED)
		cutover_endpoint_query_raise(session->ep, sql);
	else if (answer != CUTOVER_ANSWER_END)
		cutover_forward_raise_lost();
}

/*
 * How new's transaction begins: as the local one is.
 */
const char *
cutover_forward_begin_sql(void)
{
	return psprintf("BEGIN ISOLATION LEVEL %s %s",
					XactIsoLevel == XACT_SERIALIZABLE ? "SERIALIZABLE" :
					XactIsoLevel == XACT_REPEATABLE_READ ? "REPEATABLE READ" : "READ COMMITTED",
					XactReadOnly ? "READ ONLY" : "READ WRITE");
}

/*
 * Begin, and set savepoints up to the local nesting level.
 */
void
cutover_forward_enter(RouteSession *session)
{
	int			level = GetCurrentTransactionNestLevel();

	if (session->xact_failed)
		cutover_forward_raise_lost();
	if (session->in_xact && !session->forward)
		ereport(ERROR,
				errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				errmsg("could not serialize access: the transaction has read from new before writes were forwarded"),
				errhint("Run the transaction again from its start."));
	if (!session->in_xact)
	{
		cutover_forward_command(session, cutover_forward_begin_sql());
		session->in_xact = session->forward = true;
		session->level = 1;
	}
	while (session->level < level)
	{
		cutover_forward_command(session, psprintf("SAVEPOINT s%d", session->level + 1));
		session->level++;
	}
}

/*
 * What new was given in a transaction that is rolled back is gone with it.
 */
static void
xact_forget_settings(RouteSession *session)
{
	if (session->settings)
		pfree(session->settings);
	if (session->path)
		pfree(session->path);
	session->settings = session->path = NULL;
}

/*
 * The local transaction knows nothing of new's any more.
 */
static void
xact_forget(RouteSession *session)
{
	session->in_xact = session->xact_failed = session->forward = session->wrote = false;
	session->level = 0;
}

/*
 * Roll new's transaction back, in which nothing was written.
 */
void
cutover_forward_leave(RouteSession *session)
{
	cutover_forward_command(session, "ROLLBACK");
	xact_forget_settings(session);
	xact_forget(session);
}

/*
 * Commit on new.
 */
static void
xact_commit(RouteSession *session)
{
	CutoverAnswer answer;

	if (session->xact_failed || session->ep == NULL || !cutover_endpoint_is_usable(session->ep))
		cutover_forward_raise_lost();
	if (session->stream)
		cutover_route_stop(session->stream);
	if (!cutover_endpoint_is_quiet(session->ep) || cutover_endpoint_transaction_failed(session->ep))
		ereport(ERROR,
				errcode(ERRCODE_IN_FAILED_SQL_TRANSACTION),
				errmsg("the transaction has failed on new"),
				errdetail("A statement was given up there."),
				errhint("Run the transaction again."));
	(void) cutover_endpoint_set_timeout(session->ep, cutover_guc_network_timeout);
	HOLD_INTERRUPTS();
	answer = xact_run(session, "COMMIT");
	RESUME_INTERRUPTS();
	if (answer == CUTOVER_ANSWER_END)
	{
		session->in_xact = false;
		cutover_forward_hold_interrupts();
		return;
	}
	if (answer == CUTOVER_ANSWER_FAILED && cutover_endpoint_is_usable(session->ep))
	{
		session->in_xact = false;
		cutover_endpoint_query_raise(session->ep, "COMMIT");
	}
	cutover_route_disconnect(session);
	cutover_forward_raise_unknown();
}

/*
 * Refuse PREPARE TRANSACTION.
 */
static void
xact_refuse_prepare(void)
{
	ereport(ERROR,
			errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			errmsg("cannot prepare a transaction that has worked on new"),
			errdetail("Statements of this transaction were forwarded to new."),
			errhint("Use COMMIT instead of PREPARE TRANSACTION."));
}

/*
 * The local transaction has ended: so does new's.  Must not raise.
 */
static void
xact_end(RouteSession *session, bool committed)
{
	/* a query in the middle, or nobody can say where: new may not even answer */
	if (session->ep && (session->stream || !cutover_endpoint_is_quiet(session->ep)))
		cutover_route_disconnect(session);
	else if (session->in_xact && session->ep)
		cutover_endpoint_send_off(session->ep, committed && !session->forward ? "COMMIT" : "ROLLBACK");
	if (session->ep)
		(void) cutover_endpoint_set_timeout(session->ep, cutover_guc_network_timeout);
	if (session->in_xact && !committed)
		xact_forget_settings(session);
	if (committed && session->wrote)
	{
		CutoverTarget *target = cutover_tracked_met(session->target_id);

		if (target)
			cutover_policy_committed_new(target);
	}
	xact_forget(session);
}

/*
 * End of the local transaction.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	HASH_SEQ_STATUS seq;
	RouteSession *session;

	if (cutover_route_sessions() == NULL)
		return;
	hash_seq_init(&seq, cutover_route_sessions());
	while ((session = hash_seq_search(&seq)) != NULL)
		switch (event)
		{
			case XACT_EVENT_PRE_COMMIT:
				if (session->in_xact && session->forward)
					xact_commit(session);
				break;
			case XACT_EVENT_PRE_PREPARE:
				if (session->in_xact && session->forward)
					xact_refuse_prepare();
				break;
			case XACT_EVENT_COMMIT:
			case XACT_EVENT_PREPARE:
				xact_end(session, true);
				break;
			case XACT_EVENT_ABORT:
				xact_end(session, false);
				break;
			default:
				break;
		}
	if (interrupts_held && (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT))
	{
		interrupts_held = false;
		QueryCancelPending = false;
		/* an error has reset the count */
		if (event == XACT_EVENT_COMMIT)
			RESUME_INTERRUPTS();
	}
}

/*
 * Part of the local transaction has ended; new's follows, if it got that far.
 */
static void
xact_end_sub(RouteSession *session, SubXactEvent event)
{
	int			level = GetCurrentTransactionNestLevel();

	if (session->level < level || session->ep == NULL || session->xact_failed)
		return;
	if (event == SUBXACT_EVENT_PRE_COMMIT_SUB)
	{
		cutover_route_free_connection(session);
		cutover_forward_command(session, psprintf("RELEASE SAVEPOINT s%d", level));
		session->level = level - 1;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		if (session->stream)
			session->stream->open = false;
		session->stream = NULL;
		if (!cutover_endpoint_roll_back_to(session->ep, psprintf("ROLLBACK TO SAVEPOINT s%d; RELEASE SAVEPOINT s%d", level, level)))
			session->xact_failed = true;
		xact_forget_settings(session);
		session->level = level - 1;
	}
}

/*
 * End of a local subtransaction.
 */
static void
xact_sub_callback(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	HASH_SEQ_STATUS seq;
	RouteSession *session;

	if (cutover_route_sessions() == NULL)
		return;
	hash_seq_init(&seq, cutover_route_sessions());
	while ((session = hash_seq_search(&seq)) != NULL)
		if (session->in_xact && session->forward)
			xact_end_sub(session, event);
		/* a query that the part was waiting for is of no use */
		else if (event == SUBXACT_EVENT_ABORT_SUB && session->ep && session->stream == NULL &&
				 !cutover_endpoint_is_quiet(session->ep))
			cutover_route_disconnect(session);
}

/*
 * Has the transaction under way worked on new in a way that only new knows?
 */
bool
cutover_forward_under_way(int32 target_id)
{
	RouteSession *session = cutover_route_sessions() == NULL ? NULL :
		hash_search(cutover_route_sessions(), &target_id, HASH_FIND, NULL);

	return session != NULL && session->forward && (session->in_xact || session->xact_failed);
}

/*
 * Set up.
 */
void
cutover_forward_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(xact_sub_callback, NULL);
}
