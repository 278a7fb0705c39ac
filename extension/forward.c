/*
 * forward.c - a statement that writes, or locks rows, on new.
 *
 * A single statement that is a transaction of its own is sent as such: one round
 * trip, and new commits before it answers.  That is only done where nothing can
 * come between that and the end of the local transaction: the client has sent
 * nothing else that belongs to it, no rows come back, and from the moment it is sent a
 * request to cancel is passed to new instead of being heeded here.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "tcop/dest.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"

#include "capture.h"
#include "fence.h"
#include "forward.h"
#include "guc.h"

/* How often the side is chosen anew when new turns out not to be master. */
#define FORWARD_ATTEMPTS 5

/*
 * Which side?
 */
bool
cutover_forward_decide(CutoverTarget *target, Oid relid, bool only_locks)
{
	/* foreign keys are checked where their tables are */
	if (cutover_route_forbidden() || InNoForceRLSOperation() || cutover_capture_disabled)
		return false;
	AcceptInvalidationMessages();
	target = cutover_tracked_target(target->target_id);
	if (target->forwarding == cutover_my_lxid_compat())
		return true;
	if (only_locks)
		return cutover_policy_is_forward(target);
	if (cutover_policy_is_forward(target) && target->switch_state == CUTOVER_SWITCH_NONE)
	{
		/* new's own fence has the last word */
		if (cutover_fence_is_stale(target, relid, 0))
			cutover_fence_refuse_stale(target, relid);
		return true;
	}
	return cutover_fence_forwards(target, relid);
}

/*
 * Has the client sent nothing more that belongs to the transaction of this statement?
 */
static bool
forward_is_all(void)
{
	int			next;

	/* one simple query; with several statements that is a block */
	if (!ActivePortal->visible)
		return true;
	if (!cutover_client_sent_more_compat())
		return false;
	pq_startmsgread();
	next = pq_peekbyte();
	pq_endmsgread();
	return next == 'S';
}

/*
 * Is the statement a transaction of its own?
 */
static bool
forward_is_alone(RouteSession *session)
{
	return !session->in_xact && !IsTransactionBlock() && GetCurrentTransactionNestLevel() == 1 &&
		XactIsoLevel == XACT_READ_COMMITTED && cutover_route_depth() == 1 && whereToSendOutput == DestRemote &&
		ActivePortal != NULL && list_length(ActivePortal->stmts) == 1 &&
		linitial_node(PlannedStmt, ActivePortal->stmts)->commandType != CMD_UTILITY &&
		!TransactionIdIsValid(GetTopTransactionIdIfAny()) && forward_is_all();
}

/*
 * The connection, known to be alive before anything is sent that must not be sent twice.
 */
static RouteSession *
forward_session(int32 target_id)
{
	RouteSession *session = cutover_route_session(target_id);

	if (!session->in_xact && !session->fresh && session->stream == NULL && !cutover_endpoint_is_alive(session->ep))
	{
		cutover_route_disconnect(session);
		session = cutover_route_session(target_id);
	}
	/* it waits for other transactions as long as they take */
	(void) cutover_endpoint_set_timeout(session->ep, 0);
	return session;
}

/*
 * What triggers and defaults on new are to find as they would here.
 */
static void
forward_send_settings(RouteSession *session, bool needed)
{
	char	   *sql = psprintf("SELECT pg_catalog.set_config('search_path', %s, false), pg_catalog.set_config('lock_timeout', '%d', false),"
							   " pg_catalog.set_config('cutover.forwarded', 'on', false)",
							   quote_literal_cstr(namespace_search_path), LockTimeout);

	if (session->path == NULL || strcmp(session->path, sql) != 0)
	{
		cutover_forward_command(session, sql);
		if (session->path)
			pfree(session->path);
		session->path = MemoryContextStrdup(TopMemoryContext, sql);
	}
	pfree(sql);
	if (!cutover_route_send_settings(session, 0) && needed)
	{
		if (!cutover_endpoint_is_usable(session->ep))
			cutover_forward_raise_lost();
		ereport(ERROR,
				errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				errmsg("cannot forward this statement to new"),
				errdetail("It depends on settings of this session that new does not accept."),
				errhint("Connect to new for it, or use settings that both servers know."));
	}
}

/*
 * New's failure, raised.
 */
CUTOVER_NORETURN static void
forward_raise(RouteStream *stream)
{
	cutover_endpoint_query_raise(stream->session->ep, stream->plan->statement->sql);
}

/*
 * Send the statement by itself and wait until new has committed it.
 */
static CutoverAnswer
forward_run_alone(RouteStream *stream, const Datum *values, const bool *nulls)
{
	CutoverEndpoint *ep = stream->session->ep;
	CutoverAnswer answer;

	HOLD_INTERRUPTS();
	cutover_endpoint_relay_cancel(ep, true);
	answer = cutover_route_query(stream, values, nulls, 0);
	cutover_endpoint_relay_cancel(ep, false);
	if (answer == CUTOVER_ANSWER_END)
	{
		cutover_forward_hold_interrupts();
		RESUME_INTERRUPTS();
		return answer;
	}
	RESUME_INTERRUPTS();
	if (answer != CUTOVER_ANSWER_FAILED || !cutover_endpoint_is_usable(ep))
	{
		cutover_route_disconnect(stream->session);
		cutover_forward_raise_unknown();
	}
	/* what was cancelled for our sake is told in our words */
	CHECK_FOR_INTERRUPTS();
	return answer;
}

/*
 * New has failed: is it because it isn't master any more, and can that be mended?
 */
static bool
forward_lost_master(RouteStream *stream)
{
	RouteSession *session = stream->session;

	if (cutover_endpoint_query_sqlstate(session->ep) != ERRCODE_READ_ONLY_SQL_TRANSACTION || session->wrote ||
		IsolationUsesXactSnapshot() || ++stream->attempts >= FORWARD_ATTEMPTS)
		return false;
	if (session->in_xact)
		cutover_forward_leave(session);
	return true;
}

/*
 * The first rows have come, or the end.
 */
static void
forward_began(RouteStream *stream, CutoverTarget *target, const ForwardStatement *statement, CutoverAnswer answer)
{
	RouteSession *session = stream->session;

	if (!cutover_route_check_types(stream))
		ereport(ERROR,
				errcode(ERRCODE_DATATYPE_MISMATCH),
				errmsg("cannot forward this statement to new"),
				errdetail("Table %s has columns of other types there, and the statement returns them.",
						  quote_identifier(get_rel_name(statement->relid))),
				errhint("Connect to new for it, or leave RETURNING out."));
	session->fresh = false;
	stream->plan->statement->uses++;
	stream->nrows = answer == CUTOVER_ANSWER_ROWS ? cutover_endpoint_query_rows(session->ep) : 0;
	stream->row = 0;
	if (!statement->only_locks)
	{
		session->wrote = true;
		target->forwarding = cutover_my_lxid_compat();
	}
	if (answer == CUTOVER_ANSWER_END)
		cutover_route_ended(stream);
}

/*
 * Run a statement on new.
 */
RouteStart
cutover_forward_start(RouteStream *stream, CutoverTarget *target, const ForwardStatement *statement,
					  const Datum *values, const bool *nulls)
{
	RouteSession *session;
	CutoverAnswer answer;

	if (!statement->only_locks)
		cutover_forward_check_mixed(target, statement->relid);
	stream->session = session = forward_session(target->target_id);
	cutover_route_free_connection(session);
	forward_send_settings(session, statement->settings);
	if (!statement->only_locks && !statement->returns && forward_is_alone(session))
		answer = forward_run_alone(stream, values, nulls);
	else
	{
		cutover_forward_enter(session);
		answer = cutover_route_query(stream, values, nulls, 0);
	}
	if (answer == CUTOVER_ANSWER_ROWS || answer == CUTOVER_ANSWER_END)
	{
		forward_began(stream, target, statement, answer);
		return ROUTE_STARTED;
	}
	stream->open = false;
	session->stream = NULL;
	if (answer == CUTOVER_ANSWER_FAILED && forward_lost_master(stream))
		return ROUTE_REFUSED;
	forward_raise(stream);
}
