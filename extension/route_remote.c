/*
 * route_remote.c - queries on the connection that a session keeps to new.
 *
 * Rows are taken as they come; if another query needs the connection, what is
 * left of the present one is read into a tuple store first.  Under REPEATABLE
 * READ a transaction on new goes with the local one.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "forward.h"
#include "guc.h"
#include "route_fresh.h"
#include "route_remote.h"

/* Statements that are kept prepared on a connection. */
#define ROUTE_MAX_PREPARED 128

/*
 * The stream's memory goes away: with its statement, or with the transaction.
 */
static void
remote_stream_gone(void *arg)
{
	RouteStream *stream = arg;

	if (stream->open && stream->session->stream == stream && stream->session->forward)
		stream->session->stream = NULL; /* what goes on there ends with the (sub)transaction */
	else if (stream->open && stream->session->stream == stream)
		cutover_route_disconnect(stream->session);
	stream->open = false;
	if (stream->plan)
		cutover_route_release(stream->plan);
	stream->plan = NULL;
}

/*
 * The query has come to its end.
 */
void
cutover_route_ended(RouteStream *stream)
{
	stream->affected = cutover_endpoint_query_affected(stream->session->ep);
	stream->at_end = true;
	stream->open = false;
	stream->session->stream = NULL;
}

/*
 * Read the rest of the query that is under way ahead.
 */
void
cutover_route_free_connection(RouteSession *session)
{
	RouteStream *stream = session->stream;
	MemoryContext old;
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext row_cxt;

	if (stream == NULL)
		return;
	old = MemoryContextSwitchTo(stream->cxt);
	CurrentResourceOwner = stream->owner;
	PG_TRY();
	{
		if (stream->store == NULL)
			stream->store = tuplestore_begin_heap(false, false, work_mem);
		tuplestore_select_read_pointer(stream->store, stream->ahead);
		row_cxt = AllocSetContextCreate(CurrentMemoryContext, "cutover row", ALLOCSET_DEFAULT_SIZES);
		while (stream->open)
		{
			CutoverAnswer answer;

			for (; stream->row < stream->nrows; stream->row++)
			{
				MemoryContextReset(row_cxt);
				MemoryContextSwitchTo(row_cxt);
				cutover_route_read_row(stream, stream->row, stream->values, stream->nulls);
				tuplestore_putvalues(stream->store, stream->desc, stream->values, stream->nulls);
			}
			MemoryContextSwitchTo(stream->cxt);
			answer = cutover_endpoint_query_next(session->ep, 0);
			stream->row = 0;
			stream->nrows = answer == CUTOVER_ANSWER_ROWS ? cutover_endpoint_query_rows(session->ep) : 0;
			if (answer == CUTOVER_ANSWER_ROWS)
				continue;
			if (answer != CUTOVER_ANSWER_END)
				cutover_route_raise(stream);
			cutover_route_ended(stream);
		}
		MemoryContextDelete(row_cxt);
		tuplestore_select_read_pointer(stream->store, 0);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = owner;
		MemoryContextSwitchTo(old);
	}
	PG_END_TRY();
}

/*
 * Raise what new said.
 */
void
cutover_route_raise(RouteStream *stream)
{
	if (stream->session == NULL || stream->session->ep == NULL)
		ereport(ERROR,
				errcode(stream->sqlstate ? stream->sqlstate : ERRCODE_CONNECTION_FAILURE),
				errmsg("new did not answer in time"),
				errdetail("There was no row within the limit of cutover.read_timeout, and the transaction's earlier reads were answered by new."),
				errhint("Repeat the transaction."));
	cutover_endpoint_query_raise(stream->session->ep, stream->plan->statement->sql);
}

/*
 * New's answer to one of our own statements, as a start's result.
 */
static RouteStart
remote_failed(RouteStream *stream, CutoverAnswer answer)
{
	if (answer == CUTOVER_ANSWER_LATE)
		return ROUTE_LATE;
	stream->sqlstate = cutover_endpoint_query_sqlstate(stream->session->ep);
	return ROUTE_FAILED;
}

/*
 * Run a statement without rows.
 */
static CutoverAnswer
remote_command(RouteSession *session, const char *sql, TimestampTz deadline)
{
	CutoverQuery query = {.sql = sql};
	CutoverAnswer answer;

	if (!cutover_endpoint_query_send(session->ep, &query))
		return CUTOVER_ANSWER_LOST;
	while ((answer = cutover_endpoint_query_next(session->ep, deadline)) == CUTOVER_ANSWER_ROWS)
		;
	return answer;
}

/*
 * Have the statement prepared if it comes again.
 */
static CutoverAnswer
remote_prepare(RouteStream *stream, TimestampTz deadline)
{
	RouteSession *session = stream->session;
	RouteStatement *statement = stream->plan->statement;
	CutoverAnswer answer;
	Oid		   *types;

	if (statement->prepared_on == session->number)
	{
		if (dlist_head_node(&session->prepared) != &statement->lru)
			dlist_move_head(&session->prepared, &statement->lru);
		return CUTOVER_ANSWER_END;
	}
	if (statement->prepared_on != 0 || statement->uses == 0)
		return CUTOVER_ANSWER_END;
	if (session->nprepared >= ROUTE_MAX_PREPARED)
	{
		RouteStatement *oldest = dlist_container(RouteStatement, lru, dlist_tail_node(&session->prepared));

		answer = remote_command(session, psprintf("DEALLOCATE %s", oldest->name), deadline);
		if (answer != CUTOVER_ANSWER_END)
			return answer;
		dlist_delete(&oldest->lru);
		oldest->prepared_on = 0;
		session->nprepared--;
	}
	types = palloc(sizeof(Oid) * Max(stream->plan->nparams, 1));
	for (int i = 0; i < stream->plan->nparams; i++)
		types[i] = stream->plan->params[i].wire;
	snprintf(statement->name, sizeof(statement->name), "r" UINT64_FORMAT, statement->hash);
	if (!cutover_endpoint_query_prepare(session->ep, statement->name, statement->sql, stream->plan->nparams, types))
		return CUTOVER_ANSWER_LOST;
	answer = cutover_endpoint_query_next(session->ep, deadline);
	if (answer == CUTOVER_ANSWER_END)
	{
		statement->prepared_on = session->number;
		dlist_push_head(&session->prepared, &statement->lru);
		session->nprepared++;
	}
	return answer;
}

/*
 * Do the columns that new sends have the types that the plan has?
 */
bool
cutover_route_check_types(RouteStream *stream)
{
	RoutePlan  *plan = stream->plan;
	CutoverEndpoint *ep = stream->session->ep;

	if (cutover_endpoint_query_columns(ep) != plan->ncolumns)
		return false;
	for (int i = 0; i < plan->ncolumns; i++)
	{
		Oid			type = cutover_endpoint_query_type(ep, i);
		Oid			wire = plan->columns[i].wire;

		if (wire == type || (wire == TEXTOID && type == VARCHAROID) || (wire == VARCHAROID && type == TEXTOID))
			continue;
		/* a type by another number; but a number that we know is another type */
		if (OidIsValid(wire) || (type < FirstUnpinnedObjectId && type != RECORDOID))
			return false;
	}
	return true;
}

/*
 * Send the query and wait for its first rows.
 */
CutoverAnswer
cutover_route_query(RouteStream *stream, const Datum *values, const bool *nulls, TimestampTz deadline)
{
	RoutePlan  *plan = stream->plan;
	RouteSession *session = stream->session;
	const char **data = palloc(sizeof(char *) * (plan->nparams + 1));
	int		   *lengths = palloc(sizeof(int) * (plan->nparams + 1));
	int		   *formats = palloc(sizeof(int) * (plan->nparams + 1));
	CutoverQuery query = {.nparams = plan->nparams, .values = data, .lengths = lengths, .formats = formats,
	.binary = plan->binary};
	CutoverAnswer answer = remote_prepare(stream, deadline);

	if (answer != CUTOVER_ANSWER_END)
		return answer;
	cutover_route_send_values(plan, values, nulls, data, lengths, formats);
	if (plan->statement->prepared_on == session->number)
		query.name = plan->statement->name;
	else
	{
		Oid		   *types = palloc(sizeof(Oid) * (plan->nparams + 1));

		for (int i = 0; i < plan->nparams; i++)
			types[i] = plan->params[i].wire;
		query.sql = plan->statement->sql;
		query.types = types;
	}
	if (!cutover_endpoint_query_send(session->ep, &query))
		return CUTOVER_ANSWER_LOST;
	stream->open = true;
	session->stream = stream;
	return cutover_endpoint_query_next(session->ep, deadline);
}

/*
 * Note which changes of old are in the snapshot that new has just taken for us.
 * False if new does not know, or does not answer.
 */
static bool
remote_note_snapshot(RouteSession *session, TimestampTz deadline)
{
	char	   *snapshot = NULL;

	if (!cutover_route_ask(session, "SELECT snapshot FROM cutover.progress WHERE direction = 'forward'", deadline, &snapshot) ||
		snapshot == NULL)
		return false;
	cutover_route_note_snapshot(session->target_id, snapshot);
	return true;
}

/*
 * What the session and new must have in common before this query.
 */
static RouteStart
remote_make_ready(RouteStream *stream, bool collation, bool settings, TimestampTz deadline)
{
	RouteSession *session = stream->session;
	CutoverAnswer answer;

	if (stream->plan->refused_on == session->number)
	{
		stream->why = stream->plan->refused_why;
		return ROUTE_REFUSED;
	}
	if (collation && !cutover_route_same_collation(session, deadline))
	{
		if (!cutover_endpoint_is_usable(session->ep))
			return remote_failed(stream, CUTOVER_ANSWER_LOST);
		stream->why = CUTOVER_WHY(COLLATION);
		return ROUTE_REFUSED;
	}
	if (settings && !cutover_route_send_settings(session, deadline))
	{
		if (!cutover_endpoint_is_usable(session->ep))
			return remote_failed(stream, CUTOVER_ANSWER_LOST);
		stream->why = CUTOVER_WHY(SETTINGS);
		return ROUTE_REFUSED;
	}
	if (IsolationUsesXactSnapshot() && !session->in_xact)
	{
		bool		forward = cutover_policy_is_forward(cutover_tracked_target(session->target_id));

		answer = remote_command(session, forward ? cutover_forward_begin_sql() :
								"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", deadline);
		if (answer != CUTOVER_ANSWER_END)
			return remote_failed(stream, answer);
		session->in_xact = true;
		session->forward = forward;
		session->level = 1;
		if (!forward && !XactReadOnly && !remote_note_snapshot(session, deadline))
		{
			if (!cutover_endpoint_is_usable(session->ep))
				return remote_failed(stream, CUTOVER_ANSWER_LOST);
			session->in_xact = false;
			if (!cutover_endpoint_reset(session->ep))
				cutover_route_disconnect(session);
			stream->why = CUTOVER_WHY(ISOLATION);
			return ROUTE_REFUSED;
		}
	}
	/* an error must not cost more than it would here */
	if (session->forward)
		cutover_forward_enter(session);
	return ROUTE_STARTED;
}

/*
 * One attempt to run the query on the connection there is.
 */
static RouteStart
remote_attempt(RouteStream *stream, bool collation, bool settings, const Datum *values, const bool *nulls)
{
	RouteSession *session = stream->session;
	int			limit = session->forward ? 0 : cutover_route_limit();
	TimestampTz deadline = limit > 0 ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), limit) : 0;
	RouteStart	ready = remote_make_ready(stream, collation, settings, deadline);
	CutoverAnswer answer;

	if (ready != ROUTE_STARTED)
		return ready;
	answer = cutover_route_query(stream, values, nulls, deadline);
	if (answer != CUTOVER_ANSWER_ROWS && answer != CUTOVER_ANSWER_END)
	{
		if (answer == CUTOVER_ANSWER_FAILED)
		{
			stream->open = false;
			session->stream = NULL;
			if (session->in_xact && !session->forward)
				session->xact_failed = true;
		}
		return remote_failed(stream, answer);
	}
	if (!cutover_route_check_types(stream))
	{
		stream->plan->refused_on = session->number;
		stream->plan->refused_why = stream->why = CUTOVER_WHY(MAPPING);
		cutover_route_stop(stream);
		return ROUTE_REFUSED;
	}
	session->fresh = false;
	stream->plan->statement->uses++;
	stream->nrows = answer == CUTOVER_ANSWER_ROWS ? cutover_endpoint_query_rows(session->ep) : 0;
	stream->row = 0;
	if (answer == CUTOVER_ANSWER_END)
		cutover_route_ended(stream);
	return ROUTE_STARTED;
}

/*
 * Connect, where that may fail.
 */
static bool
remote_connect(RouteStream *stream, int32 target_id)
{
	MemoryContext cxt = CurrentMemoryContext;
	volatile bool ok = true;

	PG_TRY();
	{
		stream->session = cutover_route_session(target_id);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_CONNECTION_EXCEPTION || error->sqlerrcode == 0)
			PG_RE_THROW();
		FlushErrorState();
		stream->sqlstate = ERRCODE_CONNECTION_FAILURE;
		FreeErrorData(error);
		ok = false;
	}
	PG_END_TRY();
	return ok;
}

/*
 * Errors that the statement will always have there.
 */
static bool
remote_never_works(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION || category == ERRCODE_FEATURE_NOT_SUPPORTED;
}

/*
 * Bind a stream to its plan, and both to the stream's memory.
 */
void
cutover_route_attach(RouteStream *stream, RoutePlan *plan)
{
	stream->plan = plan;
	stream->owner = CurrentResourceOwner;
	stream->callback.func = remote_stream_gone;
	stream->callback.arg = stream;
	MemoryContextRegisterResetCallback(stream->cxt, &stream->callback);
}

/*
 * Run a plan's query on new.  A connection that has broken since it was last
 * used is made again.
 */
RouteStart
cutover_route_start(RouteStream *stream, CutoverTarget *target, bool collation, bool settings,
					const Datum *values, const bool *nulls)
{
	RoutePlan  *plan = stream->plan;
	RouteStart	result = ROUTE_FAILED;

	for (int attempt = 0; attempt < 2; attempt++)
	{
		bool		again;

		if (!remote_connect(stream, target->target_id))
			return ROUTE_FAILED;
		cutover_route_free_connection(stream->session);
		result = remote_attempt(stream, collation, settings, values, nulls);
		if (result == ROUTE_STARTED || result == ROUTE_REFUSED)
			return result;
		again = result == ROUTE_FAILED && !cutover_endpoint_is_usable(stream->session->ep) &&
			!stream->session->fresh && !stream->session->in_xact;
		if (!again)
			break;
		cutover_route_disconnect(stream->session);
	}
	if (result == ROUTE_FAILED && remote_never_works(stream->sqlstate))
	{
		plan->refused_on = stream->session->number;
		plan->refused_why = CUTOVER_WHY(ERROR);
	}
	if (result == ROUTE_LATE || (!cutover_endpoint_is_usable(stream->session->ep) && cutover_policy_may_fall_back(target)))
		cutover_route_disconnect(stream->session);
	return result;
}

/*
 * The next row.
 */
bool
cutover_route_fetch(RouteStream *stream, TupleTableSlot *slot)
{
	while (stream->row >= stream->nrows)
	{
		CutoverAnswer answer;

		if (stream->at_end)
			return false;
		/* gone with its connection, by an error elsewhere */
		if (!stream->open)
			ereport(ERROR,
					errcode(ERRCODE_CONNECTION_FAILURE),
					errmsg("lost the connection to new in the middle of a result"),
					errhint("Repeat the statement."));
		answer = cutover_endpoint_query_next(stream->session->ep, 0);
		if (answer == CUTOVER_ANSWER_LATE)
		{
			cutover_route_disconnect(stream->session);
			ereport(ERROR,
					errcode(ERRCODE_CONNECTION_FAILURE),
					errmsg("no answer from new in the middle of a result for %d s", cutover_guc_network_timeout),
					errdetail("Rows were returned already, so that the statement can't be answered by old."),
					errhint("Repeat the statement; \"cutover.network_timeout\" is the limit."));
		}
		if (answer == CUTOVER_ANSWER_FAILED || answer == CUTOVER_ANSWER_LOST)
			cutover_route_raise(stream);
		stream->row = 0;
		stream->nrows = answer == CUTOVER_ANSWER_ROWS ? cutover_endpoint_query_rows(stream->session->ep) : 0;
		if (answer == CUTOVER_ANSWER_END)
		{
			cutover_route_ended(stream);
			return false;
		}
	}
	ExecClearTuple(slot);
	cutover_route_read_row(stream, stream->row++, slot->tts_values, slot->tts_isnull);
	ExecStoreVirtualTuple(slot);
	return true;
}

/*
 * No more rows are wanted.
 */
void
cutover_route_stop(RouteStream *stream)
{
	RouteSession *session = stream->session;

	/* to cancel it would end new's transaction, or leave a write half done */
	while (stream->open && session->stream == stream && session->forward)
	{
		CutoverAnswer answer = cutover_endpoint_query_next(session->ep, 0);

		if (answer == CUTOVER_ANSWER_END)
			cutover_route_ended(stream);
		else if (answer != CUTOVER_ANSWER_ROWS)
			cutover_route_raise(stream);
	}
	if (stream->open && session->stream == stream)
	{
		stream->open = false;
		session->stream = NULL;
		if (!cutover_endpoint_query_end(session->ep))
			cutover_route_disconnect(session);
	}
	stream->at_end = true;
	stream->row = stream->nrows = 0;
}
