/*
 * route_scan.c - the custom scan that runs a statement on old or on new.
 *
 * It stands above the finished local plan and decides when it is started, so
 * that a prepared statement follows the ratio.  On old it hands through the rows of the local
 * plan, which is not even initialized otherwise.  Until new has sent its first row
 * the local plan can still take over; not after that, so that no result is mixed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/explain.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/pathnodes.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "forward.h"
#include "route_remote.h"
#include "route_scan.h"

/* custom_private: the query; numbers by ScanPrivate; table ids */
enum ScanPrivate
{
	SCAN_ID, SCAN_TARGET, SCAN_WHOLE_ROW, SCAN_COLLATION, SCAN_SETTINGS,
	SCAN_WRITES, SCAN_RELID		/* changes or locks rows, of this table */
};

typedef enum ScanSide
{
	SCAN_LOCAL,
	SCAN_NEW,					/* chosen, not begun */
	SCAN_STREAMING				/* new has answered */
} ScanSide;

typedef struct RouteScanState
{
	CustomScanState css;
	CutoverTarget *target;
	ScanSide	side;
	const char *why;			/* of the local side */
	int			eflags;
	bool		keep;			/* rows may be asked for again */
	RouteStream *stream;
	TupleTableSlot *store_slot; /* for rows out of the store */
	Relation	saved_relation; /* what belongs in css.ss; see scan_show_position() */
	TupleTableSlot *saved_slot;
	bool		shown;
	List	   *writers;		/* parts of the local plan that would be run by themselves */
} RouteScanState;

/* The side that was chosen for a plan, between the choice and the start. */
static struct
{
	CustomScan *scan;			/* NULL = none */
	CutoverSide side;
	const char *why;
}			decided;

static Node *scan_create(CustomScan *plan);
static void scan_begin(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *scan_exec(CustomScanState *node);
static void scan_end(CustomScanState *node);
static void scan_rescan(CustomScanState *node);
static void scan_explain(CustomScanState *node, List *ancestors, ExplainState *es);

static const CustomScanMethods scan_methods = {"Cutover", scan_create};
static const CustomExecMethods scan_exec_methods = {
	.CustomName = "Cutover",
	.BeginCustomScan = scan_begin,
	.ExecCustomScan = scan_exec,
	.EndCustomScan = scan_end,
	.ReScanCustomScan = scan_rescan,
	.ExplainCustomScan = scan_explain,
};

/*
 * Set up.
 */
void
cutover_route_init_scan(void)
{
	RegisterCustomScanMethods(&scan_methods);
}

/*
 * A custom scan above a finished plan.
 */
Plan *
cutover_route_wrap(Plan *local, Query *query, const RouteCheck *check)
{
	static int	last_id = 0;
	CustomScan *scan = makeNode(CustomScan);
	List	   *numbers;
	ListCell   *lc;

	foreach(lc, local->targetlist)
	{
		TargetEntry *tle = lfirst(lc);
		Oid			type = exprType((Node *) tle->expr);
		int32		typmod = exprTypmod((Node *) tle->expr);
		Oid			collation = exprCollation((Node *) tle->expr);
		TargetEntry *entry = flatCopyTargetEntry(tle);

		entry->expr = (Expr *) makeNullConst(type, typmod, collation);
		scan->custom_scan_tlist = lappend(scan->custom_scan_tlist, entry);
		entry = flatCopyTargetEntry(tle);
		entry->expr = (Expr *) makeVar(INDEX_VAR, tle->resno, type, typmod, collation, 0);
		scan->scan.plan.targetlist = lappend(scan->scan.plan.targetlist, entry);
	}
	scan->scan.plan.startup_cost = local->startup_cost;
	scan->scan.plan.total_cost = local->total_cost;
	scan->scan.plan.plan_rows = local->plan_rows;
	scan->scan.plan.plan_width = local->plan_width;
	scan->scan.plan.plan_node_id = -1;
	scan->scan.plan.extParam = bms_copy(local->extParam);
	scan->scan.plan.allParam = bms_copy(local->allParam);
	scan->flags = ExecSupportsBackwardScan(local) ? CUSTOMPATH_SUPPORT_BACKWARD_SCAN : 0;
	scan->custom_plans = list_make1(local);
	last_id = last_id == INT_MAX ? 1 : last_id + 1;
	numbers = list_make5_int(last_id, check->target_id, check->whole_row, check->collation, check->settings);
	numbers = lappend_int(lappend_int(numbers, check->writes), (int) check->relid);
	scan->custom_private = list_make3(query, numbers, check->table_ids);
	scan->methods = &scan_methods;
	return (Plan *) scan;
}

/*
 * What cutover_route_wrap() has put there.
 */
static int
scan_number(RouteScanState *state, enum ScanPrivate which)
{
	return list_nth_int(lsecond(((CustomScan *) state->css.ss.ps.plan)->custom_private), which);
}

static Query *
scan_query(RouteScanState *state)
{
	return linitial_node(Query, ((CustomScan *) state->css.ss.ps.plan)->custom_private);
}

static List *
scan_tables(RouteScanState *state)
{
	return lthird(((CustomScan *) state->css.ss.ps.plan)->custom_private);
}

/*
 * Is this one of our scans?
 */
static bool
scan_is_ours(PlanState *planstate)
{
	return planstate && IsA(planstate, CustomScanState) && ((CustomScanState *) planstate)->methods == &scan_exec_methods;
}

/*
 * Does the statement read on new?
 */
bool
cutover_route_reads_new(PlanState *planstate)
{
	return scan_is_ours(planstate) && ((RouteScanState *) planstate)->side != SCAN_LOCAL;
}

static Node *
scan_create(CustomScan *plan)
{
	RouteScanState *state = (RouteScanState *) newNode(sizeof(RouteScanState), T_CustomScanState);

	state->css.methods = &scan_exec_methods;
	return (Node *) state;
}

/*
 * WHERE CURRENT OF looks for the scan of a table, and would not find it below
 * this node: let this one pass for it.
 */
static void
scan_show_position(RouteScanState *state, PlanState *child)
{
	if (!IsA(child, SeqScanState) && !IsA(child, IndexScanState) && !IsA(child, BitmapHeapScanState) &&
		!IsA(child, TidScanState) && !IsA(child, IndexOnlyScanState))
		return;
	state->saved_relation = state->css.ss.ss_currentRelation;
	state->saved_slot = state->css.ss.ss_ScanTupleSlot;
	state->css.ss.ss_currentRelation = ((ScanState *) child)->ss_currentRelation;
	state->css.ss.ss_ScanTupleSlot = ((ScanState *) child)->ss_ScanTupleSlot;
	state->shown = true;
}

/*
 * Have the local plan answer.
 */
static void
scan_go_local(RouteScanState *state, const char *why)
{
	EState	   *estate = state->css.ss.ps.state;
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	PlanState  *child;

	if (!(state->eflags & EXEC_FLAG_EXPLAIN_ONLY) && !scan_number(state, SCAN_WRITES))
		cutover_forward_check_old(state->target->target_id, InvalidOid);
	state->side = SCAN_LOCAL;
	state->why = why;
	estate->es_auxmodifytables = list_concat(state->writers, estate->es_auxmodifytables);
	state->writers = NIL;
	child = ExecInitNode(linitial(((CustomScan *) state->css.ss.ps.plan)->custom_plans), estate, state->eflags);
	state->css.custom_ps = list_make1(child);
	scan_show_position(state, child);
	MemoryContextSwitchTo(old);
}

/*
 * Does a statement only lock rows?
 */
static bool
scan_only_locks(CustomScan *scan)
{
	Query	   *query = linitial_node(Query, scan->custom_private);

	return query->commandType == CMD_SELECT && !query->hasModifyingCTE;
}

/*
 * The side of a statement that changes or locks rows.  To show it, EXPLAIN must not wait for anything.
 */
static CutoverSide
scan_decide_write(CustomScan *scan, CutoverTarget *target, bool show, const char **why)
{
	bool		only_locks = scan_only_locks(scan);

	if (show ? !cutover_route_forbidden() && cutover_policy_is_forward(target) :
		cutover_forward_decide(target, (Oid) list_nth_int(lsecond(scan->custom_private), SCAN_RELID), only_locks))
		return CUTOVER_SIDE_NEW;
	/* to be counted as a read that was kept, if it is one */
	if (linitial_node(Query, scan->custom_private)->commandType == CMD_SELECT)
		*why = only_locks ? CUTOVER_WHY(ROW_LOCK) : CUTOVER_WHY(MODIFYING_CTE);
	return CUTOVER_SIDE_OLD;
}

/*
 * Choose the side for an execution of a plan.
 */
static CutoverSide
scan_decide(CustomScan *scan, bool show, const char **why)
{
	CutoverTarget *target = cutover_tracked_target(list_nth_int(lsecond(scan->custom_private), SCAN_TARGET));

	if (list_nth_int(lsecond(scan->custom_private), SCAN_WRITES))
		return scan_decide_write(scan, target, show, why);
	if (!cutover_route_context_forbids(target))
		return cutover_policy_decide(target, lthird(scan->custom_private), why);
	*why = CUTOVER_WHY(CONTEXT);
	return CUTOVER_SIDE_OLD;
}

/*
 * Called before an execution begins.  If old answers, the local plan is put in
 * the place of ours, which then costs nothing; EXPLAIN gets ours, to see it.  If new
 * does, this process must stay free to do what parallel queries forbid.
 */
void
cutover_route_before_start(QueryDesc *desc, int eflags)
{
	CustomScan *scan = (CustomScan *) desc->plannedstmt->planTree;
	PlannedStmt *changed;

	decided.scan = NULL;
	if (!IsA(scan, CustomScan) || scan->methods != &scan_methods)
		return;
	decided.why = NULL;
	decided.side = scan_decide(scan, (eflags & EXEC_FLAG_EXPLAIN_ONLY) != 0, &decided.why);
	if (decided.side == CUTOVER_SIDE_OLD && decided.why && !(eflags & EXEC_FLAG_EXPLAIN_ONLY))
		cutover_policy_count(cutover_tracked_target(list_nth_int(lsecond(scan->custom_private), SCAN_TARGET)),
							 CUTOVER_READ_KEPT, decided.why);
	if (decided.side == CUTOVER_SIDE_OLD && (desc->instrument_options != 0 || (eflags & EXEC_FLAG_EXPLAIN_ONLY)))
	{
		decided.scan = scan;
		return;
	}
	changed = palloc(sizeof(PlannedStmt));
	*changed = *desc->plannedstmt;
	if (decided.side == CUTOVER_SIDE_OLD)
		changed->planTree = linitial(scan->custom_plans);
	else
	{
		changed->parallelModeNeeded = false;
		decided.scan = scan;
	}
	desc->plannedstmt = changed;
}

/*
 * Start of an execution of our node.
 */
static void
scan_begin(CustomScanState *node, EState *estate, int eflags)
{
	RouteScanState *state = (RouteScanState *) node;
	bool		is_decided = decided.scan == (CustomScan *) node->ss.ps.plan;

	decided.scan = NULL;
	state->eflags = eflags;
	state->keep = (eflags & (EXEC_FLAG_BACKWARD | EXEC_FLAG_REWIND)) != 0;
	state->target = cutover_tracked_target(scan_number(state, SCAN_TARGET));
	if (is_decided && decided.side == CUTOVER_SIDE_NEW)
	{
		state->side = SCAN_NEW;
		state->writers = estate->es_auxmodifytables;
		estate->es_auxmodifytables = NIL;
	}
	else
		scan_go_local(state, is_decided ? decided.why : CUTOVER_WHY(OTHER));
}

/*
 * One of the query's own parameters; false if there is no such value.
 */
static bool
scan_extern_param(ParamListInfo params, int number, Oid type, Datum *value, bool *isnull)
{
	ParamExternData data;
	ParamExternData *param;

	if (params == NULL || number > params->numParams)
		return false;
	if (params->paramFetch)
		param = params->paramFetch(params, number, false, &data);
	else
		param = &params->params[number - 1];
	if (!OidIsValid(param->ptype) || param->ptype != type)
		return false;
	*value = param->value;
	*isnull = param->isnull;
	return true;
}

/*
 * All parameters of new's statement.  False if one has no value.
 */
static bool
scan_params(RouteScanState *state, RoutePlan *plan, Datum *values, bool *nulls)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	EState	   *estate = state->css.ss.ps.state;

	for (int i = 0; i < plan->nparams; i++)
		if (plan->externs[i] > 0)
		{
			if (!scan_extern_param(estate->es_param_list_info, plan->externs[i], plan->params[i].type, &values[i], &nulls[i]))
				return false;
		}
		else
		{
			MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
			ExprState  *expr = ExecInitExpr(list_nth(plan->folded, -plan->externs[i] - 1), &state->css.ss.ps);

			MemoryContextSwitchTo(old);
			values[i] = ExecEvalExpr(expr, econtext, &nulls[i]);
		}
	return true;
}

/*
 * The same where computing some of them may fail: the local plan might never
 * compute those, so it shall decide.
 */
static bool
scan_params_guarded(RouteScanState *state, RoutePlan *plan, Datum *values, bool *nulls)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = false;

	/* a write has no local plan that could decide */
	if (!plan->folded_may_fail || scan_number(state, SCAN_WRITES))
		return scan_params(state, plan, values, nulls);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		ok = scan_params(state, plan, values, nulls);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(error);
		RollbackAndReleaseCurrentSubTransaction();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return ok;
}

/*
 * New did not answer: old does, if it may.
 */
static void
scan_fall_back(RouteScanState *state, RouteStart result)
{
	RouteStream *stream = state->stream;
	bool		late = result == ROUTE_LATE;
	const char *why = late ? CUTOVER_WHY(TIMEOUT) :
		ERRCODE_TO_CATEGORY(stream->sqlstate) == ERRCODE_CONNECTION_EXCEPTION ? CUTOVER_WHY(CONNECTION) : CUTOVER_WHY(ERROR);

	cutover_policy_failed(state->target, late ? 0 : stream->sqlstate);
	if (cutover_forward_under_way(state->target->target_id) || !cutover_policy_may_fall_back(state->target))
		cutover_route_raise(stream);
	cutover_policy_count(state->target, late ? CUTOVER_READ_TIMEOUT : CUTOVER_READ_FALLBACK, why);
	scan_go_local(state, why);
}

/*
 * Run a statement on new that changes or locks rows, or have the local plan do so
 * if it turns out that old is master again.
 */
static void
scan_start_write(RouteScanState *state, const Datum *values, const bool *nulls)
{
	CustomScan *scan = (CustomScan *) state->css.ss.ps.plan;
	EState	   *estate = state->css.ss.ps.state;
	const char *why = NULL;
	ForwardStatement statement = {.relid = (Oid) scan_number(state, SCAN_RELID), .settings = scan_number(state, SCAN_SETTINGS)};

	statement.only_locks = scan_only_locks(scan);
	statement.returns = estate->es_plannedstmt->commandType == CMD_SELECT || estate->es_plannedstmt->hasReturning;
	while (cutover_forward_start(state->stream, state->target, &statement, values, nulls) == ROUTE_REFUSED)
		if (scan_decide_write(scan, state->target, false, &why) == CUTOVER_SIDE_OLD)
		{
			scan_go_local(state, why);
			return;
		}
	state->side = SCAN_STREAMING;
	if (!statement.returns)
		estate->es_processed += state->stream->affected;
}

/*
 * Keep rows that may be asked for again.
 */
static void
scan_keep(RouteScanState *state)
{
	MemoryContext old = MemoryContextSwitchTo(state->css.ss.ps.state->es_query_cxt);

	state->stream->store = tuplestore_begin_heap(true, false, work_mem);
	state->stream->ahead = tuplestore_alloc_read_pointer(state->stream->store, 0);
	MemoryContextSwitchTo(old);
}

/*
 * First row: run the query on new.
 */
static void
scan_start(RouteScanState *state)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	EState	   *estate = state->css.ss.ps.state;
	RouteStream *stream;
	RoutePlan  *plan;
	RouteStart	result = ROUTE_REFUSED;
	MemoryContext old;
	Datum	   *values;
	bool	   *nulls;

	plan = cutover_route_translate(scan_number(state, SCAN_ID), scan_query(state), scan_number(state, SCAN_WHOLE_ROW));
	old = MemoryContextSwitchTo(estate->es_query_cxt);
	state->stream = stream = palloc0(sizeof(RouteStream));
	stream->cxt = estate->es_query_cxt;
	stream->desc = state->css.ss.ss_ScanTupleSlot->tts_tupleDescriptor;
	stream->values = palloc(sizeof(Datum) * (stream->desc->natts + 1));
	stream->nulls = palloc(sizeof(bool) * (stream->desc->natts + 1));
	cutover_route_attach(stream, plan);
	MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	values = palloc(sizeof(Datum) * (plan->nparams + 1));
	nulls = palloc(sizeof(bool) * (plan->nparams + 1));
	if (!scan_params_guarded(state, plan, values, nulls))
		stream->why = CUTOVER_WHY(OTHER);
	else if (scan_number(state, SCAN_WRITES))
	{
		scan_start_write(state, values, nulls);
		MemoryContextSwitchTo(old);
		if (state->side == SCAN_STREAMING && state->keep)
			scan_keep(state);
		return;
	}
	else
		result = cutover_route_start(stream, state->target,
									 scan_number(state, SCAN_COLLATION) && !cutover_policy_is_forward(state->target),
									 scan_number(state, SCAN_SETTINGS), values, nulls);
	MemoryContextSwitchTo(old);
	/* the side was chosen some time ago */
	if (result == ROUTE_STARTED && !cutover_policy_confirm(state->target, scan_tables(state), &stream->why))
	{
		cutover_route_stop(stream);
		result = ROUTE_REFUSED;
	}
	switch (result)
	{
		case ROUTE_STARTED:
			state->side = SCAN_STREAMING;
			cutover_policy_count(state->target, CUTOVER_READ_ROUTED, NULL);
			if (state->keep)
				scan_keep(state);
			break;
		case ROUTE_REFUSED:
			cutover_policy_count(state->target, CUTOVER_READ_KEPT, stream->why);
			scan_go_local(state, stream->why);
			break;
		default:
			scan_fall_back(state, result);
	}
}

/*
 * The next row from new; its values live until the next call.
 */
static bool
scan_fetch(RouteScanState *state, TupleTableSlot *slot)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	MemoryContext old;
	bool		found;

	ResetExprContext(econtext);
	old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	found = cutover_route_fetch(state->stream, slot);
	MemoryContextSwitchTo(old);
	return found;
}

/*
 * The next row through the store: as the executor's Material node does it.
 */
static TupleTableSlot *
scan_from_store(RouteScanState *state, TupleTableSlot *slot)
{
	RouteStream *stream = state->stream;
	bool		forward = ScanDirectionIsForward(state->css.ss.ps.state->es_direction);
	bool		ended = tuplestore_ateof(stream->store);

	if (!forward && ended)
	{
		/* the row before the one that was returned last */
		if (!stream->at_end && !tuplestore_advance(stream->store, false))
			return ExecClearTuple(slot);
		ended = false;
	}
	if (!ended)
	{
		if (state->store_slot == NULL)
			state->store_slot = ExecInitExtraTupleSlot(state->css.ss.ps.state, stream->desc, &TTSOpsMinimalTuple);
		if (tuplestore_gettupleslot(stream->store, forward, false, state->store_slot))
			return state->store_slot;
		if (!forward)
			return ExecClearTuple(slot);
	}
	if (stream->at_end || !scan_fetch(state, slot))
		return ExecClearTuple(slot);
	if (state->keep)
		tuplestore_puttupleslot(stream->store, slot);
	return slot;
}

/*
 * The next row.
 */
static TupleTableSlot *
scan_exec(CustomScanState *node)
{
	RouteScanState *state = (RouteScanState *) node;
	TupleTableSlot *slot = node->ss.ss_ScanTupleSlot;

	if (state->side == SCAN_NEW)
		scan_start(state);
	if (state->side == SCAN_LOCAL)
		return ExecProcNode(linitial(node->custom_ps));
	if (state->stream->store)
		slot = scan_from_store(state, slot);
	else if (!scan_fetch(state, slot))
		ExecClearTuple(slot);
	if (!TupIsNull(slot) && node->ss.ps.state->es_plannedstmt->commandType != CMD_SELECT)
		node->ss.ps.state->es_processed++;
	return slot;
}

/*
 * From the start again (a cursor that moves back).
 */
static void
scan_rescan(CustomScanState *node)
{
	RouteScanState *state = (RouteScanState *) node;

	if (state->side == SCAN_LOCAL)
		ExecReScan(linitial(node->custom_ps));
	else if (state->side == SCAN_STREAMING && state->keep)
		tuplestore_rescan(state->stream->store);
	else if (state->side == SCAN_STREAMING)
	{
		cutover_route_stop(state->stream);
		state->side = SCAN_NEW;
	}
}

/*
 * End of an execution.
 */
static void
scan_end(CustomScanState *node)
{
	RouteScanState *state = (RouteScanState *) node;

	if (state->shown)
	{
		node->ss.ss_currentRelation = state->saved_relation;
		node->ss.ss_ScanTupleSlot = state->saved_slot;
	}
	if (node->custom_ps != NIL)
		ExecEndNode(linitial(node->custom_ps));
	if (state->side == SCAN_STREAMING)
	{
		cutover_route_stop(state->stream);
		if (state->stream->store)
			tuplestore_end(state->stream->store);
	}
}

/*
 * EXPLAIN: where it runs, why, and what is sent.
 */
static void
scan_explain(CustomScanState *node, List *ancestors, ExplainState *es)
{
	RouteScanState *state = (RouteScanState *) node;

	ExplainPropertyText("Runs on", state->side == SCAN_LOCAL ? "old" : "new", es);
	if (state->side == SCAN_LOCAL && state->why)
		ExplainPropertyText("Reason", state->why, es);
	if (state->side != SCAN_LOCAL || es->verbose)
		ExplainPropertyText("Remote SQL", cutover_route_sql(scan_query(state), scan_number(state, SCAN_WHOLE_ROW)), es);
}
