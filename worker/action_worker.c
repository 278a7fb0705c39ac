/*
 * action_worker.c - the background worker of one action.
 *
 * Runs one statement, usually CALL of a procedure that commits in between, as
 * the extension's owner, through a portal at top level: only there may a
 * procedure end transactions.  Errors and notices go to the caller by the
 * segment's queue; after an error the process ends, which rolls back.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "libpq/pqformat.h"
#include "libpq/pqmq.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/shm_mq.h"
#include "storage/shm_toc.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "action_internal.h"
#include "compat.h"
#include "launcher.h"
#include "replicator.h"

/* Keeps the first column of the last row as text. */
typedef struct ActionReceiver
{
	DestReceiver pub;
	MemoryContext context;
	char	   *value;
} ActionReceiver;

Oid			cutover_action_caller = InvalidOid;
const char *cutover_action_caller_name = NULL;
char	   *cutover_action_on_error = NULL;

static bool
action_receive(TupleTableSlot *slot, DestReceiver *self)
{
	ActionReceiver *receiver = (ActionReceiver *) self;
	MemoryContext old;
	bool		isnull;
	Datum		value;
	Oid			typoutput;
	bool		varlena;

	receiver->value = NULL;
	if (slot->tts_tupleDescriptor->natts < 1)
		return true;
	value = slot_getattr(slot, 1, &isnull);
	if (isnull)
		return true;
	getTypeOutputInfo(TupleDescAttr(slot->tts_tupleDescriptor, 0)->atttypid, &typoutput, &varlena);
	old = MemoryContextSwitchTo(receiver->context);
	receiver->value = OidOutputFunctionCall(typoutput, value);
	MemoryContextSwitchTo(old);
	return true;
}

static void
action_receive_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
action_receive_end(DestReceiver *self)
{
}

/*
 * The arguments as parameters of the statement, all of type text.
 */
static ParamListInfo
action_params(int nargs, const char *p)
{
	ParamListInfo params;

	if (nargs == 0)
		return NULL;
	params = makeParamList(nargs);
	for (int i = 0; i < nargs; i++)
	{
		ParamExternData *param = &params->params[i];

		param->ptype = TEXTOID;
		param->pflags = PARAM_FLAG_CONST;
		param->isnull = *p++ == 0;
		param->value = (Datum) 0;
		if (!param->isnull)
		{
			param->value = CStringGetTextDatum(p);
			p += strlen(p) + 1;
		}
	}
	return params;
}

/*
 * Parse and plan one statement with the given parameters.  Everything lives
 * in the current context, which must outlast commits of the statement.
 */
static List *
action_plan(const char *sql, ParamListInfo params, CommandTag *tag)
{
	List	   *raw = pg_parse_query(sql);
	RawStmt    *stmt;
	Oid		   *types = NULL;
	int			ntypes = params ? params->numParams : 0;
	bool		snapshot;
	List	   *plans;

	if (list_length(raw) != 1)
		elog(ERROR, "an action is one statement");
	stmt = linitial_node(RawStmt, raw);
	*tag = CreateCommandTag(stmt->stmt);

	if (ntypes > 0)
		types = palloc(sizeof(Oid) * ntypes);
	for (int i = 0; i < ntypes; i++)
		types[i] = params->params[i].ptype;

	snapshot = analyze_requires_snapshot(stmt);
	if (snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	plans = pg_plan_queries(pg_analyze_and_rewrite_fixedparams(stmt, sql, types, ntypes, NULL),
							sql, CURSOR_OPT_PARALLEL_OK, params);
	if (snapshot)
		PopActiveSnapshot();
	return plans;
}

/*
 * Run the statement in a portal at top level; returns its result in context.
 */
char *
cutover_action_execute(const char *sql, int nargs, const char *args, MemoryContext context)
{
	ActionReceiver receiver = {
		.pub = {
			.receiveSlot = action_receive,
			.rStartup = action_receive_startup,
			.rShutdown = action_receive_end,
			.rDestroy = action_receive_end,
			.mydest = DestNone
		},
		.context = context,
		.value = NULL
	};
	ParamListInfo params;
	List	   *plans;
	CommandTag	tag;
	QueryCompletion qc;
	Portal		portal;
	MemoryContext old;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, sql);
	StartTransactionCommand();
	old = MemoryContextSwitchTo(context);
	params = action_params(nargs, args);
	plans = action_plan(sql, params, &tag);
	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, sql, tag, plans, NULL);
	PortalStart(portal, params, 0, InvalidSnapshot);
	InitializeQueryCompletion(&qc);
	(void) cutover_portal_run_compat(portal, (DestReceiver *) &receiver, &qc);
	PortalDrop(portal, false);
	MemoryContextSwitchTo(old);
	CommitTransactionCommand();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	return receiver.value;
}

/*
 * The action failed: put right what it has asked to be put right (the message
 * of its error is the statement's parameter), then raise the error.  What fails here is logged, and for others to mend.
 */
static void
action_clean_up(MemoryContext context)
{
	ErrorData  *error;
	const char *sql = cutover_action_on_error;
	char	   *arg;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	arg = psprintf("\001%s", error->message);
	FlushErrorState();
	AbortCurrentTransaction();
	cutover_action_on_error = NULL;
	PG_TRY();
	{
		(void) cutover_action_execute(sql, 1, arg, context);
	}
	PG_CATCH();
	{
		ErrorData  *another;

		MemoryContextSwitchTo(context);
		another = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		ereport(LOG,
				(errcode(another->sqlerrcode),
				 errmsg("could not clean up after a failed action: %s", another->message)));
	}
	PG_END_TRY();
	ReThrowError(error);
}

/*
 * Run it all.
 */
static char *
action_run(shm_toc *toc, const CutoverActionFixed *fixed, MemoryContext context)
{
	char	   *volatile result = NULL;

	PG_TRY();
	{
		result = cutover_action_execute(shm_toc_lookup(toc, CUTOVER_ACTION_KEY_SQL, false), fixed->nargs,
								shm_toc_lookup(toc, CUTOVER_ACTION_KEY_ARGS, false), context);
	}
	PG_CATCH();
	{
		if (cutover_action_on_error != NULL)
			action_clean_up(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return result;
}

/*
 * Hand the result to the caller.
 */
static void
action_send_result(const char *result)
{
	StringInfoData msg;

	pq_beginmessage(&msg, 'D');
	pq_sendbyte(&msg, result != NULL);
	if (result != NULL)
		appendBinaryStringInfo(&msg, result, strlen(result) + 1);
	pq_endmessage(&msg);
}

/*
 * Entry point of the worker.
 */
void
cutover_action_main(Datum arg)
{
	CutoverWorkerArgs wargs;
	dsm_segment *seg;
	shm_toc    *toc;
	shm_mq	   *queue;
	CutoverActionFixed *fixed;
	char	   *result;
	MemoryContext context;

	wargs = cutover_launcher_worker_start();
	CurrentResourceOwner = ResourceOwnerCreate(NULL, "cutover action");
	seg = dsm_attach(wargs.dsm);
	if (seg == NULL)
		proc_exit(0);			/* the caller is gone already */
	dsm_pin_mapping(seg);
	toc = shm_toc_attach(CUTOVER_ACTION_MAGIC, dsm_segment_address(seg));
	if (toc == NULL)
		elog(ERROR, "the segment of the action is not valid");
	fixed = shm_toc_lookup(toc, CUTOVER_ACTION_KEY_FIXED, false);
	queue = shm_toc_lookup(toc, CUTOVER_ACTION_KEY_QUEUE, false);
	shm_mq_set_sender(queue, MyProc);
	pq_redirect_to_shm_mq(seg, shm_mq_attach(queue, seg, NULL));

	context = AllocSetContextCreate(TopMemoryContext, "cutover action", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	cutover_action_caller = fixed->caller;
	cutover_action_caller_name = pstrdup(NameStr(fixed->caller_name));

	result = action_run(toc, fixed, context);
	action_send_result(result);
	proc_exit(0);
}
