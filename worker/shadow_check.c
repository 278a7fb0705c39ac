/*
 * shadow_check.c - may the result of a statement be compared, and how strictly.
 *
 * Two servers may answer the same SELECT differently and both be right: LIMIT
 * without a full order, aggregates that follow the order of their input,
 * functions of the session or the server.  A difference that is counted must
 * be one, so in doubt only the number of rows is compared, or nothing.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "route.h"
#include "shadow_worker.h"
#include "tracked.h"

/* What is known of a table that the statement reads. */
typedef struct CheckTable
{
	Oid			relid;
	bool		synced;
	Bitmapset  *excluded;		/* attnums */
} CheckTable;

typedef struct CheckContext
{
	int32		target_id;
	CutoverShadowSkip skip;
	bool		count_only;		/* values of the result depend on the plan */
	Query	   *top;
	List	   *tables;			/* of CheckTable */
	List	   *queries;		/* the levels above, innermost first */
	bool		in_result;		/* below the target list of the statement itself */
	bool	   *ignored;		/* by column of the result */
	bool		whole_row;		/* refers to whole rows */
} CheckContext;

static bool check_node(Node *node, void *arg);

/* ---- tables ---- */

/*
 * Read what we know of a table.  NULL: it is not under this migration.
 */
static CheckTable *
check_load_table(CheckContext *context, Oid relid)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[2] = {OIDOID, INT4OID};
	Datum		values[2] = {ObjectIdGetDatum(relid), Int32GetDatum(context->target_id)};
	CheckTable *table = NULL;
	Oid			userid;
	int			security;
	bool		isnull;

	/* the statement is read as the client's role, which may not look at our tables */
	GetUserIdAndSecContext(&userid, &security);
	SetUserIdAndSecContext(GetSessionUserId(), security);
	SPI_connect();
	if (SPI_execute_with_args("SELECT b.phase = 'synced',"
							  " ARRAY(SELECT a.attnum FROM cutover._shadow_exclude e JOIN pg_attribute a ON a.attrelid = b.old_table"
							  "  AND a.attname = ANY (e.columns) WHERE e.table_id = b.table_id)"
							  " FROM cutover._table b WHERE b.old_table = $1 AND b.target_id = $2",
							  2, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the tables");
	if (SPI_processed == 1)
	{
		HeapTuple	tuple = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(caller);
		ArrayType  *excluded = DatumGetArrayTypeP(SPI_getbinval(tuple, desc, 2, &isnull));

		table = palloc0(sizeof(CheckTable));
		table->relid = relid;
		table->synced = DatumGetBool(SPI_getbinval(tuple, desc, 1, &isnull));
		for (int i = 0; i < ArrayGetNItems(ARR_NDIM(excluded), ARR_DIMS(excluded)); i++)
			table->excluded = bms_add_member(table->excluded, ((int16 *) ARR_DATA_PTR(excluded))[i]);
		context->tables = lappend(context->tables, table);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	SetUserIdAndSecContext(userid, security);
	return table;
}

static CheckTable *
check_find_table(CheckContext *context, Oid relid)
{
	ListCell   *lc;

	foreach(lc, context->tables)
		if (((CheckTable *) lfirst(lc))->relid == relid)
			return lfirst(lc);
	return NULL;
}

/*
 * A table that the statement reads.
 */
static CutoverShadowSkip
check_relation(CheckContext *context, RangeTblEntry *rte)
{
	CheckTable *table;
	int32		table_id;
	Oid			root;

	if (rte->relkind == RELKIND_VIEW)
		return CUTOVER_SHADOW_TAKEN;	/* only says whose rights are checked */
	if (rte->tablesample != NULL)
		return CUTOVER_SHADOW_UNDETERMINED;
	table = check_find_table(context, rte->relid);
	if (table == NULL)
		table = check_load_table(context, rte->relid);
	if (table == NULL)
		/* new need not have the partitions of old */
		return cutover_tracked_find(rte->relid, &table_id, &root) ? CUTOVER_SHADOW_MAPPING : CUTOVER_SHADOW_OTHER_TABLE;
	if (!table->synced)
		return CUTOVER_SHADOW_NOT_SYNCED;
	if (cutover_route_table(rte->relid)->partial || (!rte->inh && has_subclass(rte->relid)))
		return CUTOVER_SHADOW_MAPPING;
	return CUTOVER_SHADOW_TAKEN;
}

/*
 * The relation that a variable is a column of; InvalidOid if it is none.
 */
static Oid
check_relation_of(CheckContext *context, Var *var)
{
	Query	   *query;
	RangeTblEntry *rte;

	if (var->varlevelsup >= list_length(context->queries))
		return InvalidOid;
	query = list_nth(context->queries, var->varlevelsup);
	if (var->varno < 1 || var->varno > list_length(query->rtable))
		return InvalidOid;
	rte = list_nth_node(RangeTblEntry, query->rtable, var->varno - 1);
	return rte->rtekind == RTE_RELATION && rte->relkind != RELKIND_VIEW ? rte->relid : InvalidOid;
}

/*
 * Does the variable stand for a column that may differ?
 */
static bool
check_var_is_excluded(CheckContext *context, Var *var)
{
	CheckTable *table = check_find_table(context, check_relation_of(context, var));

	if (table == NULL || table->excluded == NULL)
		return false;
	return var->varattno == 0 || bms_is_member(var->varattno, table->excluded);
}

/*
 * Is what the variable stands for to be had on new?
 */
static bool
check_var_is_mapped(CheckContext *context, Var *var)
{
	Oid			relid = check_relation_of(context, var);
	RouteTable *table;

	if (!OidIsValid(relid) || (table = cutover_route_table(relid))->same)
		return true;
	if (var->varattno > 0)
		return var->varattno <= table->natts && table->columns[var->varattno - 1] != NULL;
	for (int i = 0; i < table->natts; i++)
		if (table->columns[i] == NULL && get_atttype(relid, i + 1) != InvalidOid)
			return false;
	return true;
}

/* ---- functions ---- */

/*
 * check_functions_in_node callback.
 */
static bool
check_function(Oid funcid, void *arg)
{
	CheckContext *context = arg;

	if (funcid >= FirstUnpinnedObjectId)
		context->skip = CUTOVER_SHADOW_OWN_CODE;
	else
	{
		RouteVolatility where = cutover_route_function(funcid);

		/* the moments become parameters */
		if (where == ROUTE_NOWHERE || (where == ROUTE_FOLD && funcid != F_NOW && funcid != F_TRANSACTION_TIMESTAMP &&
									   funcid != F_STATEMENT_TIMESTAMP))
			context->skip = CUTOVER_SHADOW_VOLATILE;
	}
	return context->skip != CUTOVER_SHADOW_TAKEN;
}

/*
 * Something whose value depends on the order in which rows come.
 */
static bool
check_depends_on_order(CheckContext *context)
{
	if (!context->in_result)
	{
		context->skip = CUTOVER_SHADOW_UNDETERMINED;
		return true;
	}
	context->count_only = true;
	return false;
}

/*
 * Does an aggregate give another result if its input comes in another order?
 * Floats are added with rounding.
 */
static bool
check_aggregate_is_ordered(Aggref *agg)
{
	static const char *const collecting[] = {"array_agg", "string_agg", "json_", "jsonb_", "xmlagg"};
	char	   *name = get_func_name(agg->aggfnoid);
	ListCell   *lc;

	for (int i = 0; i < lengthof(collecting); i++)
		if (strncmp(name, collecting[i], strlen(collecting[i])) == 0)
			return true;
	if (strcmp(name, "min") == 0 || strcmp(name, "max") == 0 || strcmp(name, "count") == 0 || AGGKIND_IS_ORDERED_SET(agg->aggkind))
		return false;
	foreach(lc, agg->aggargtypes)
		if (lfirst_oid(lc) == FLOAT4OID || lfirst_oid(lc) == FLOAT8OID)
			return true;
	return false;
}

/*
 * A window function: ranks are the same for peers, others follow the order of rows.
 */
static bool
check_window(CheckContext *context, WindowFunc *function)
{
	Query	   *query = linitial(context->queries);
	WindowClause *clause = list_nth_node(WindowClause, query->windowClause, function->winref - 1);

	if (function->winfnoid == F_RANK_ || function->winfnoid == F_DENSE_RANK_ ||
		function->winfnoid == F_PERCENT_RANK_ || function->winfnoid == F_CUME_DIST_)
		return false;
	if (function->winagg && !(clause->frameOptions & FRAMEOPTION_ROWS))
	{
		char	   *name = get_func_name(function->winfnoid);

		if (strcmp(name, "count") == 0 || strcmp(name, "min") == 0 || strcmp(name, "max") == 0)
			return false;
		if (strcmp(name, "sum") == 0 || strcmp(name, "avg") == 0)
		{
			Oid			type = exprType(linitial(function->args));

			if (type != FLOAT4OID && type != FLOAT8OID)
				return false;
		}
	}
	return check_depends_on_order(context);
}

/* ---- queries ---- */

/*
 * LIMIT and DISTINCT ON of a query: which rows come is up to the plan, unless ORDER BY leaves no doubt.
 */
static CutoverShadowSkip
check_row_choice(CheckContext *context, Query *query)
{
	bool		limited = query->limitCount != NULL || query->limitOffset != NULL;

	if (limited && query->limitOption == LIMIT_OPTION_WITH_TIES && query->limitOffset == NULL)
		limited = false;
	if ((!limited && !query->hasDistinctOn) || cutover_shadow_sorts_totally(query))
		return CUTOVER_SHADOW_TAKEN;
	if (query != context->top || query->hasDistinctOn)
		return CUTOVER_SHADOW_UNDETERMINED;
	context->count_only = true;
	return CUTOVER_SHADOW_TAKEN;
}

/*
 * The columns of the result.
 */
static bool
check_result(CheckContext *context, Query *query)
{
	int			column = 0;
	bool		stop = false;
	ListCell   *lc;

	context->in_result = true;
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);
		bool		plain = !tle->resjunk && tle->ressortgroupref == 0 && query->setOperations == NULL &&
			IsA(tle->expr, Var) && ((Var *) tle->expr)->varattno != 0;

		if (plain && check_var_is_excluded(context, (Var *) tle->expr) && check_var_is_mapped(context, (Var *) tle->expr))
			context->ignored[column] = true;
		else if ((stop = check_node((Node *) tle->expr, context)))
			break;
		column += !tle->resjunk;
	}
	context->in_result = false;
	return stop;
}

/*
 * The statement itself: its tables first, as columns refer to them, and its result apart.
 */
static bool
check_top(CheckContext *context, Query *query)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_RELATION && check_node((Node *) rte, context))
			return true;
	}
	return check_result(context, query) ||
		range_table_walker(query->rtable, check_node, context, QTW_EXAMINE_RTES_BEFORE | QTW_IGNORE_JOINALIASES) ||
		check_node((Node *) query->jointree, context) ||
		check_node(query->setOperations, context) ||
		check_node(query->havingQual, context) ||
		check_node((Node *) query->cteList, context) ||
		check_node(query->limitCount, context) ||
		check_node(query->limitOffset, context) ||
		check_node((Node *) query->windowClause, context);
}

/*
 * A query at any level.
 */
static bool
check_query(CheckContext *context, Query *query)
{
	bool		in_result = context->in_result;
	bool		stop;

	if (query->commandType != CMD_SELECT || query->hasModifyingCTE)
		context->skip = CUTOVER_SHADOW_NOT_A_SELECT;
	else if (query->rowMarks != NIL)
		context->skip = CUTOVER_SHADOW_LOCKS;
	else if (query->hasRowSecurity)
		context->skip = CUTOVER_SHADOW_ROW_SECURITY;
	else
		context->skip = check_row_choice(context, query);
	if (context->skip != CUTOVER_SHADOW_TAKEN)
		return true;
	context->queries = lcons(query, context->queries);
	context->in_result = false;
	stop = query == context->top ? check_top(context, query) :
		query_tree_walker(query, check_node, context, QTW_EXAMINE_RTES_BEFORE | QTW_IGNORE_JOINALIASES);
	context->in_result = in_result;
	context->queries = list_delete_first(context->queries);
	return stop;
}

/*
 * A variable.
 */
static bool
check_var(CheckContext *context, Var *var)
{
	context->whole_row |= var->varattno == 0;
	if (var->varattno < 0)
		context->skip = CUTOVER_SHADOW_UNDETERMINED;
	else if (!check_var_is_mapped(context, var))
		context->skip = CUTOVER_SHADOW_MAPPING;
	else if (check_var_is_excluded(context, var))
		context->skip = CUTOVER_SHADOW_EXCLUDED;
	return context->skip != CUTOVER_SHADOW_TAKEN;
}

/*
 * Object ids mean something else on new.
 */
static bool
check_const(CheckContext *context, Const *constant)
{
	switch (constant->consttype)
	{
		case REGCLASSOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			if (constant->constisnull || DatumGetObjectId(constant->constvalue) >= FirstUnpinnedObjectId)
				context->skip = CUTOVER_SHADOW_VOLATILE;
			break;
		default:
			break;
	}
	return context->skip != CUTOVER_SHADOW_TAKEN;
}

/*
 * Walker; true stops it, with the reason in the context.
 */
static bool
check_node(Node *node, void *arg)
{
	CheckContext *context = arg;

	if (node == NULL)
		return false;
	if (check_functions_in_node(node, check_function, arg))
		return true;
	switch (nodeTag(node))
	{
		case T_Query:
			return check_query(context, (Query *) node);
		case T_RangeTblEntry:
			if (((RangeTblEntry *) node)->rtekind == RTE_RELATION)
				context->skip = check_relation(context, (RangeTblEntry *) node);
			else if (((RangeTblEntry *) node)->rtekind == RTE_NAMEDTUPLESTORE)
				context->skip = CUTOVER_SHADOW_OTHER_TABLE;
			return context->skip != CUTOVER_SHADOW_TAKEN;	/* the walker goes on below by itself */
		case T_Var:
			return check_var(context, (Var *) node);
		case T_Const:
			return check_const(context, (Const *) node);
		case T_SQLValueFunction:
			if (((SQLValueFunction *) node)->op > SVFOP_USER)
				context->skip = CUTOVER_SHADOW_VOLATILE;
			return context->skip != CUTOVER_SHADOW_TAKEN;
		case T_NextValueExpr:
			context->skip = CUTOVER_SHADOW_VOLATILE;
			return true;
		case T_Aggref:
			if (((Aggref *) node)->aggorder == NIL && check_aggregate_is_ordered((Aggref *) node) && check_depends_on_order(context))
				return true;
			break;
		case T_WindowFunc:
			if (check_window(context, (WindowFunc *) node))
				return true;
			break;
		default:
			break;
	}
	return expression_tree_walker(node, check_node, arg);
}

CutoverShadowSkip
cutover_shadow_check(Query *query, CutoverShadowQuery *q, int32 target_id, CutoverShadowFindings *findings)
{
	CheckContext context = {.target_id = target_id,.skip = CUTOVER_SHADOW_TAKEN,.top = query};
	ListCell   *lc;
	int			n = 0;

	context.ignored = palloc0(sizeof(bool) * Max(list_length(query->targetList), 1));
	if (check_node((Node *) query, &context))
		return context.skip == CUTOVER_SHADOW_TAKEN ? CUTOVER_SHADOW_UNDETERMINED : context.skip;
	q->relids = MemoryContextAlloc(q->context, sizeof(Oid) * Max(list_length(context.tables), 1));
	foreach(lc, context.tables)
		q->relids[n++] = ((CheckTable *) lfirst(lc))->relid;
	q->nrelids = n;
	findings->ignored = context.ignored;
	findings->whole_row = context.whole_row;
	q->compare = context.count_only ? CUTOVER_SHADOW_COUNT :
		query->sortClause != NIL && cutover_shadow_sorts_totally(query) ? CUTOVER_SHADOW_LIST : CUTOVER_SHADOW_SET;
	return CUTOVER_SHADOW_TAKEN;
}
