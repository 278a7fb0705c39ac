/*
 * endpoint_pipeline.c - many statements on their way to new at once.
 *
 * A ring holds what was sent and not yet answered.  Statements are prepared
 * under their own names, the least recently used is given up when there are
 * too many.  After a failure new skips everything up to the next sync; we stop
 * sending as soon as we hear of it.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "endpoint_private.h"

#define ENDPOINT_MAX_STATEMENTS 500

static EndpointStatement *pipeline_statement(CutoverEndpoint *ep, const char *sql, int nparams);
static void pipeline_evict(CutoverEndpoint *ep);
static void pipeline_push_command(CutoverEndpoint *ep, EndpointCommandKind kind, EndpointStatement *stmt,
								  bool count, CutoverRowsFn fn, void *arg);
static void pipeline_queue(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params,
						   bool count, CutoverRowsFn fn, void *arg);
static void pipeline_handle(CutoverEndpoint *ep, PGresult *res);
static void pipeline_pop(CutoverEndpoint *ep);
static void pipeline_finish(CutoverEndpoint *ep);
static void pipeline_raise_failed(CutoverEndpoint *ep);

#define RING_AT(ep, i) (&(ep)->ring[((ep)->ring_head + (i)) % (ep)->ring_size])

/*
 * Queue a statement.
 */
void
cutover_endpoint_queue(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params, bool count)
{
	if (ep->local)
	{
		uint64		affected = cutover_endpoint_local_exec(ep, sql, nparams, params)->affected;

		ep->affected += count ? affected : 0;
		return;
	}
	pipeline_queue(ep, sql, nparams, params, count, NULL, NULL);
}

/*
 * Queue a statement whose rows are wanted.
 */
void
cutover_endpoint_queue_rows(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params,
							CutoverRowsFn fn, void *arg)
{
	if (ep->local)
		fn(arg, cutover_endpoint_local_exec(ep, sql, nparams, params));
	else
		pipeline_queue(ep, sql, nparams, params, false, fn, arg);
}

/*
 * The common part of the two above.
 */
static void
pipeline_queue(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params,
			   bool count, CutoverRowsFn fn, void *arg)
{
	EndpointStatement *stmt;
	const char **values;
	int		   *lens;
	int		   *formats;
	int			sent;

	cutover_endpoint_check_usable(ep);
	if (PQpipelineStatus(ep->conn) == PQ_PIPELINE_OFF && !PQenterPipelineMode(ep->conn))
		cutover_endpoint_raise_lost(ep, sql);
	if (ep->failed)
		return;					/* new would skip it */
	stmt = pipeline_statement(ep, sql, nparams);

	values = palloc(sizeof(char *) * Max(nparams, 1));
	lens = palloc(sizeof(int) * Max(nparams, 1));
	formats = palloc(sizeof(int) * Max(nparams, 1));
	for (int i = 0; i < nparams; i++)
	{
		values[i] = params[i].data;
		lens[i] = params[i].len;
		formats[i] = params[i].binary ? 1 : 0;
		if (params[i].data)
			ep->unsent += params[i].binary ? params[i].len : strlen(params[i].data);
	}
	sent = PQsendQueryPrepared(ep->conn, stmt->name, nparams, values, lens, formats, 0);
	pfree(values);
	pfree(lens);
	pfree(formats);
	if (!sent)
		cutover_endpoint_raise_lost(ep, sql);
	pipeline_push_command(ep, ENDPOINT_EXECUTE, stmt, count, fn, arg);
	cutover_endpoint_push(ep, false);
}

/*
 * The prepared statement with this text; queues its preparation if it is new.
 */
static EndpointStatement *
pipeline_statement(CutoverEndpoint *ep, const char *sql, int nparams)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) sql, strlen(sql), 0);
	EndpointStatement *stmt;

	if (ep->statements == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(EndpointStatement), .hcxt = ep->cxt};

		ep->statements = hash_create("cutover statements", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		dlist_init(&ep->lru);
	}
	/* two texts with one hash: the odds are nil, but a wrong statement is not an option */
	while ((stmt = hash_search(ep->statements, &hash, HASH_FIND, NULL)) != NULL && strcmp(stmt->sql, sql) != 0)
		hash++;
	if (stmt)
	{
		dlist_move_head(&ep->lru, &stmt->lru);
		if (!stmt->unprepared)
			return stmt;
	}
	else
	{
		char	   *copy = MemoryContextStrdup(ep->cxt, sql);

		if (hash_get_num_entries(ep->statements) >= ENDPOINT_MAX_STATEMENTS)
			pipeline_evict(ep);
		stmt = hash_search(ep->statements, &hash, HASH_ENTER, NULL);
		stmt->sql = copy;
		stmt->inflight = 0;
		dlist_push_head(&ep->lru, &stmt->lru);
	}
	snprintf(stmt->name, sizeof(stmt->name), "cutover_" UINT64_FORMAT, ++ep->next_name);
	stmt->unprepared = false;
	if (!PQsendPrepare(ep->conn, stmt->name, sql, nparams, NULL))
		cutover_endpoint_raise_lost(ep, sql);
	pipeline_push_command(ep, ENDPOINT_PREPARE, stmt, false, NULL, NULL);
	return stmt;
}

/*
 * Give up the least recently used statement that has nothing under way.
 */
static void
pipeline_evict(CutoverEndpoint *ep)
{
	dlist_node *node = dlist_tail_node(&ep->lru);

	for (;;)
	{
		EndpointStatement *stmt = dlist_container(EndpointStatement, lru, node);
		char		sql[64];

		if (stmt->inflight > 0)
		{
			if (!dlist_has_prev(&ep->lru, node))
				return;			/* all busy: keep one more */
			node = dlist_prev_node(&ep->lru, node);
			continue;
		}
		snprintf(sql, sizeof(sql), "DEALLOCATE %s", stmt->name);
		if (!PQsendQueryParams(ep->conn, sql, 0, NULL, NULL, NULL, NULL, 0))
			cutover_endpoint_raise_lost(ep, sql);
		pipeline_push_command(ep, ENDPOINT_DEALLOCATE, NULL, false, NULL, NULL);
		dlist_delete(&stmt->lru);
		pfree(stmt->sql);
		(void) hash_search(ep->statements, &stmt->hash, HASH_REMOVE, NULL);
		return;
	}
}

/*
 * Remember what was sent.
 */
static void
pipeline_push_command(CutoverEndpoint *ep, EndpointCommandKind kind, EndpointStatement *stmt,
					  bool count, CutoverRowsFn fn, void *arg)
{
	if (ep->ring_count == ep->ring_size)
	{
		int			size = Max(64, ep->ring_size * 2);
		EndpointCommand *ring = MemoryContextAlloc(ep->cxt, sizeof(EndpointCommand) * size);

		for (int i = 0; i < ep->ring_count; i++)
			ring[i] = *RING_AT(ep, i);
		if (ep->ring)
			pfree(ep->ring);
		ep->ring = ring;
		ep->ring_size = size;
		ep->ring_head = 0;
	}
	ep->ring_count++;
	*RING_AT(ep, ep->ring_count - 1) = (EndpointCommand)
	{
		.kind = kind,.count = count,.stmt = stmt,.fn = fn,.arg = arg
	};
	if (stmt)
		stmt->inflight++;
	ep->unsynced = true;
	ep->unsent += 64;
}

/*
 * The oldest command is done.
 */
static void
pipeline_pop(CutoverEndpoint *ep)
{
	EndpointCommand *command = RING_AT(ep, 0);

	if (command->stmt)
		command->stmt->inflight--;
	ep->ring_head = (ep->ring_head + 1) % ep->ring_size;
	ep->ring_count--;
}

/*
 * Take in results: those that are there, or (wait) all that are due.
 */
void
cutover_endpoint_take_results(CutoverEndpoint *ep, bool wait)
{
	int			idle = 0;

	while (ep->ring_count > 0)
	{
		PGresult   *res;

		if (!wait && PQisBusy(ep->conn))
			return;
		res = wait ? cutover_endpoint_get_result(ep) : PQgetResult(ep->conn);
		if (res != NULL)
		{
			idle = 0;
			pipeline_handle(ep, res);
			continue;
		}
		if (PQstatus(ep->conn) == CONNECTION_BAD)
		{
			ep->broken = true;
			pipeline_raise_failed(ep);	/* new's last words, if it had any */
			cutover_endpoint_raise_lost(ep, NULL);
		}
		/* NULL ends a command, but not a sync, which has a result of its own kind */
		if (RING_AT(ep, 0)->kind != ENDPOINT_SYNC)
			pipeline_pop(ep);
		else if (!wait)
			return;
		else if (++idle > 100)
			elog(ERROR, "pipeline to \"%s\" ended early", ep->label);
	}
}

/*
 * One result of the oldest command.  Frees it.
 */
static void
pipeline_handle(CutoverEndpoint *ep, PGresult *res)
{
	EndpointCommand *command = RING_AT(ep, 0);
	ExecStatusType status = PQresultStatus(res);

	switch (status)
	{
		case PGRES_PIPELINE_SYNC:
			if (command->kind == ENDPOINT_SYNC)
				pipeline_pop(ep);
			break;
		case PGRES_PIPELINE_ABORTED:
			if (command->kind == ENDPOINT_PREPARE)
				command->stmt->unprepared = true;
			break;
		case PGRES_COMMAND_OK:
		case PGRES_TUPLES_OK:
		case PGRES_EMPTY_QUERY:
			if (command->count)
				ep->affected += strtoull(PQcmdTuples(res), NULL, 10);
			if (command->fn && status == PGRES_TUPLES_OK)
			{
				CutoverRows *rows = NULL;
				CutoverRowsFn fn = command->fn;
				void	   *arg = command->arg;

				PG_TRY();
				{
					rows = cutover_endpoint_copy_rows(res);
				}
				PG_CATCH();
				{
					PQclear(res);
					PG_RE_THROW();
				}
				PG_END_TRY();
				PQclear(res);
				fn(arg, rows);
				pfree(rows->values);
				pfree(rows);
				return;
			}
			break;
		default:
			if (command->kind == ENDPOINT_PREPARE)
				command->stmt->unprepared = true;
			/* a pooler took our statements away */
			if (strcmp(PQresultErrorField(res, PG_DIAG_SQLSTATE) ? : "", "26000") == 0)
				ep->stale_statements = true;
			if (ep->failed == NULL)
			{
				ep->failed = res;
				ep->failed_sql = MemoryContextStrdup(ep->cxt, command->stmt ? command->stmt->sql : "DEALLOCATE");
				return;
			}
	}
	PQclear(res);
}

/*
 * Send a sync and wait until everything before it is answered.
 */
static void
pipeline_finish(CutoverEndpoint *ep)
{
	if (!PQpipelineSync(ep->conn))
		cutover_endpoint_raise_lost(ep, NULL);
	pipeline_push_command(ep, ENDPOINT_SYNC, NULL, false, NULL, NULL);
	cutover_endpoint_take_results(ep, true);
	ep->patient = ep->unsynced = false;
}

/*
 * No limit until then.
 */
void
cutover_endpoint_be_patient(CutoverEndpoint *ep)
{
	ep->patient = true;
}

/*
 * Raise the failure that take_results met, if any.
 */
static void
pipeline_raise_failed(CutoverEndpoint *ep)
{
	PGresult   *res = ep->failed;
	char	   *sql = ep->failed_sql;

	if (res == NULL)
		return;
	ep->failed = NULL;
	ep->failed_sql = NULL;
	ep->affected = 0;
	PG_TRY();
	{
		cutover_endpoint_raise_result(ep, res, pstrdup(sql));
	}
	PG_FINALLY();
	{
		PQclear(res);
		pfree(sql);
	}
	PG_END_TRY();
}

/*
 * Wait for all that was queued.
 */
uint64
cutover_endpoint_sync(CutoverEndpoint *ep)
{
	uint64		affected;

	if (!ep->local && PQpipelineStatus(ep->conn) != PQ_PIPELINE_OFF)
	{
		cutover_endpoint_check_usable(ep);
		if (ep->unsynced)
			pipeline_finish(ep);
		pipeline_raise_failed(ep);
	}
	affected = ep->affected;
	ep->affected = 0;
	return affected;
}

/*
 * Move bytes in both directions without waiting.
 */
void
cutover_endpoint_poll(CutoverEndpoint *ep)
{
	if (!ep->local && !ep->broken && PQpipelineStatus(ep->conn) != PQ_PIPELINE_OFF && ep->ring_count > 0)
	{
		cutover_endpoint_push(ep, false);
		if (PQconsumeInput(ep->conn))
			cutover_endpoint_take_results(ep, false);
	}
}

/*
 * Sync and go back to statement by statement.  Counts stay for the caller's sync.
 */
void
cutover_endpoint_leave_pipeline(CutoverEndpoint *ep)
{
	if (ep->broken || PQpipelineStatus(ep->conn) == PQ_PIPELINE_OFF)
		return;
	if (ep->unsynced)
		pipeline_finish(ep);
	pipeline_raise_failed(ep);
	if (!PQexitPipelineMode(ep->conn))
		cutover_endpoint_raise_lost(ep, NULL);
}

/*
 * Leave the pipeline after an error, whatever is under way.
 */
void
cutover_endpoint_drop_pipeline(CutoverEndpoint *ep)
{
	if (ep->unsynced)
	{
		/* nobody wants the rows any more, and who asked for them may be gone */
		for (int i = 0; i < ep->ring_count; i++)
			RING_AT(ep, i)->fn = NULL;
		cutover_endpoint_cancel(ep);
		pipeline_finish(ep);
	}
	if (ep->failed)
	{
		PQclear(ep->failed);
		pfree(ep->failed_sql);
		ep->failed = NULL;
		ep->failed_sql = NULL;
	}
	ep->affected = 0;
	if (!PQexitPipelineMode(ep->conn))
		cutover_endpoint_raise_lost(ep, NULL);
}

/*
 * New has none of our prepared statements any more.
 */
void
cutover_endpoint_forget_statements(CutoverEndpoint *ep)
{
	HASH_SEQ_STATUS seq;
	EndpointStatement *stmt;

	if (ep->statements == NULL)
		return;
	hash_seq_init(&seq, ep->statements);
	while ((stmt = hash_seq_search(&seq)) != NULL)
		pfree(stmt->sql);
	hash_destroy(ep->statements);
	ep->statements = NULL;
}
