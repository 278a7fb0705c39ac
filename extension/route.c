/*
 * route.c - the hooks through which reads come by.
 *
 * The planner's hook puts a custom scan above SELECTs that could run on new.  The
 * other two know what goes on around a statement when the side is chosen: a
 * utility command, a statement that writes, or one that reads the same tables on old.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "tcop/utility.h"

#include "compat.h"
#include "forward.h"
#include "route.h"
#include "route_fresh.h"
#include "route_remote.h"
#include "route_scan.h"

/* Statements that are being executed, innermost first. */
typedef struct RouteActive
{
	QueryDesc  *desc;
	struct RouteActive *outer;
} RouteActive;

static planner_hook_type previous_planner = NULL;
static ExecutorStart_hook_type previous_start = NULL;
static ExecutorRun_hook_type previous_run = NULL;
static ProcessUtility_hook_type previous_utility = NULL;

static RouteActive *active = NULL;
static int	utility_depth = 0;	/* commands that must see old only */

/*
 * Could this session read on new at all?
 */
static bool
route_in_client(void)
{
	return MyBackendType == B_BACKEND && !IsParallelWorker() && IsTransactionState() && !RecoveryInProgress();
}

static inline bool
route_handles(CmdType command)
{
	return command == CMD_SELECT || command == CMD_INSERT || command == CMD_UPDATE || command == CMD_DELETE;
}

/*
 * The planner's hook.
 */
static PlannedStmt *
route_planner(Query *parse, const char *query_string, int cursor_options, ParamListInfo params)
{
	PlannedStmt *plan;
	Query	   *query = NULL;
	RouteCheck	check;
	int32		target_id = 0;

	if (route_handles(parse->commandType) && route_in_client() && cutover_tracked_any())
		target_id = cutover_route_reads_target(parse);
	if (target_id != 0)
	{
		query = parse->commandType != CMD_SELECT || parse->hasModifyingCTE ? cutover_forward_rewrite(parse) : parse;
		cutover_route_check(query, &check);
		/* the planner scribbles on what it gets */
		if (check.why != NULL)
			query = NULL;
		else if (query == parse)
			query = copyObject(parse);
		if (check.why != NULL && parse->commandType == CMD_SELECT)
			cutover_policy_count(cutover_tracked_target(target_id), CUTOVER_READ_KEPT, check.why);
	}
	if (previous_planner)
		plan = previous_planner(parse, query_string, cursor_options, params);
	else
		plan = standard_planner(parse, query_string, cursor_options, params);
	if (query != NULL)
		plan->planTree = cutover_route_wrap(plan->planTree, query, &check);
	return plan;
}

/*
 * Does a running statement read tables of the target on old?
 */
static bool
route_reads_old(QueryDesc *desc, CutoverTarget *target)
{
	ListCell   *lc;

	if (cutover_route_reads_new(desc->planstate))
		return false;
	foreach(lc, desc->plannedstmt->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);
		RouteTable *table;

		if (rte->rtekind != RTE_RELATION || rte->relkind == RELKIND_VIEW)
			continue;
		table = cutover_route_table(rte->relid);
		if (table->known && table->target_id == target->target_id)
			return true;
	}
	return false;
}

/*
 * Must what runs now stay on old, whatever it is?
 */
bool
cutover_route_forbidden(void)
{
	return utility_depth > 0 || !route_in_client() || InSecurityRestrictedOperation();
}

/*
 * The same for a read, on account of what it is part of.
 */
bool
cutover_route_context_forbids(CutoverTarget *target)
{
	if (cutover_route_forbidden())
		return true;
	for (RouteActive *a = active; a; a = a->outer)
		if (a->desc->operation != CMD_SELECT || a->desc->plannedstmt->hasModifyingCTE || route_reads_old(a->desc, target))
			return true;
	return false;
}

/*
 * How many statements are being executed, one inside the other?
 */
int
cutover_route_depth(void)
{
	int			depth = 0;

	for (RouteActive *a = active; a; a = a->outer)
		depth++;
	return depth;
}

/*
 * Choose the side of a statement that is about to start.
 */
static void
route_start(QueryDesc *desc, int eflags)
{
	cutover_route_before_start(desc, eflags);
	if (previous_start)
		previous_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
	if (cutover_tracked_forwards() && !(eflags & EXEC_FLAG_EXPLAIN_ONLY))
		cutover_forward_check_start(desc);
}

/*
 * Note that a statement runs.
 */
#if PG_VERSION_NUM >= 180000
static void
route_run(QueryDesc *desc, ScanDirection direction, uint64 count)
#else
static void
route_run(QueryDesc *desc, ScanDirection direction, uint64 count, bool once)
#endif
{
	RouteActive here = {desc, active};

	active = &here;
	PG_TRY();
	{
#if PG_VERSION_NUM >= 180000
		if (previous_run)
			previous_run(desc, direction, count);
		else
			standard_ExecutorRun(desc, direction, count);
#else
		if (previous_run)
			previous_run(desc, direction, count, once);
		else
			standard_ExecutorRun(desc, direction, count, once);
#endif
	}
	PG_FINALLY();
	{
		active = here.outer;
	}
	PG_END_TRY();
}

/*
 * Commands that only run queries, in the user's name.
 */
static bool
route_runs_queries(Node *command)
{
	switch (nodeTag(command))
	{
		case T_PrepareStmt:
		case T_ExecuteStmt:
		case T_DeallocateStmt:
		case T_DeclareCursorStmt:
		case T_FetchStmt:
		case T_ClosePortalStmt:
		case T_CallStmt:
		case T_DoStmt:
		case T_TransactionStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
			return true;
		case T_CopyStmt:
			return ((CopyStmt *) command)->query != NULL;
		case T_ExplainStmt:
			{
				Node	   *query = ((ExplainStmt *) command)->query;

				return !IsA(query, Query) || ((Query *) query)->commandType != CMD_UTILITY ||
					IsA(((Query *) query)->utilityStmt, ExecuteStmt) ||
					IsA(((Query *) query)->utilityStmt, DeclareCursorStmt);
			}
		default:
			return false;
	}
}

/*
 * Whatever else there is.
 */
static void
route_next_utility(PlannedStmt *plan, const char *query_string, bool read_only_tree, ProcessUtilityContext context,
				   ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = previous_utility ? previous_utility : standard_ProcessUtility;

	next(plan, query_string, read_only_tree, context, params, env, dest, qc);
}

/*
 * What other commands look at while they work (foreign keys of a new
 * constraint, the rows of a new table) is a matter of old.
 */
static void
route_utility(PlannedStmt *plan, const char *query_string, bool read_only_tree, ProcessUtilityContext context,
			  ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (IsA(plan->utilityStmt, CopyStmt) && cutover_tracked_forwards())
		cutover_forward_check_utility(plan->utilityStmt);
	if (route_runs_queries(plan->utilityStmt))
	{
		route_next_utility(plan, query_string, read_only_tree, context, params, env, dest, qc);
		return;
	}
	utility_depth++;
	PG_TRY();
	{
		route_next_utility(plan, query_string, read_only_tree, context, params, env, dest, qc);
	}
	PG_FINALLY();
	{
		utility_depth--;
	}
	PG_END_TRY();
}

/*
 * Set up: called when the library is loaded into a session.
 */
void
cutover_route_init(void)
{
	cutover_route_init_tables();
	cutover_route_init_scan();
	cutover_route_init_fresh();
	cutover_route_init_remote();
	cutover_forward_init();
	previous_planner = planner_hook;
	planner_hook = route_planner;
	previous_start = ExecutorStart_hook;
	ExecutorStart_hook = route_start;
	previous_run = ExecutorRun_hook;
	ExecutorRun_hook = route_run;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = route_utility;
}
