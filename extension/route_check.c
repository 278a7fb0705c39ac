/*
 * route_check.c - can this query be run on new, with the same result?
 *
 * Looks at a query as the planner gets it: views are expanded, row security is
 * added.  All tables must be whole on new and of one target; everything that
 * computes must be built in.  Whatever is not known to be harmless stays on old.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "forward.h"
#include "route.h"

typedef struct CheckContext
{
	RouteCheck *check;
	List	   *queries;		/* innermost first, as varlevelsup counts */
	bool		folding;		/* parts that can be computed on old beforehand will be */
	bool		unstable;		/* saw something that is not immutable */
	bool		conditional;	/* in something that is not always computed */
	bool		writes;			/* rows may be changed and locked */
	RangeTblEntry *inserted;	/* the table of the INSERT that is looked at */
} CheckContext;

static bool check_query(Query *query, CheckContext *cxt);
static bool check_node(Node *node, CheckContext *cxt);

/*
 * Note why the query stays; true = stop.
 */
static bool
check_refuse(CheckContext *cxt, const char *why, char *detail)
{
	if (cxt->check->why == NULL)
	{
		cxt->check->why = why;
		cxt->check->detail = detail;
	}
	return true;
}

/*
 * Walker: find the target of the first table under migration.
 */
static bool
check_find_tracked(Node *node, int32 *target_id)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;
		RouteTable *table;

		if (rte->rtekind != RTE_RELATION || rte->relkind == RELKIND_VIEW)
			return false;
		table = cutover_route_table(rte->relid);
		*target_id = table->known ? table->target_id : 0;
		return table->known;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, check_find_tracked, target_id, QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, check_find_tracked, target_id);
}

/*
 * The target of the tables under migration that a query reads; 0 = it reads none.
 */
int32
cutover_route_reads_target(Query *query)
{
	int32		target_id = 0;

	(void) check_find_tracked((Node *) query, &target_id);
	return target_id;
}

/*
 * Types whose values are numbers of objects of this very database.
 */
static bool
check_names_objects(Oid type)
{
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return true;
		default:
			return false;
	}
}

/*
 * A table that is read.
 */
static bool
check_relation(RangeTblEntry *rte, CheckContext *cxt)
{
	RouteCheck *check = cxt->check;
	RouteTable *table;

	if (rte->relkind == RELKIND_VIEW || rte->relkind == RELKIND_COMPOSITE_TYPE)
		return false;			/* expanded; what is left of it is for permissions.  Or EXCLUDED */
	table = cutover_route_table(rte->relid);
	if (get_rel_persistence(rte->relid) == RELPERSISTENCE_TEMP)
		return check_refuse(cxt, CUTOVER_WHY(TEMP_TABLE), get_rel_name(rte->relid));
	if (!table->known || (check->target_id != 0 && check->target_id != table->target_id))
		return check_refuse(cxt, CUTOVER_WHY(OTHER_TABLE), get_rel_name(rte->relid));
	check->target_id = table->target_id;
	check->table_ids = list_append_unique_int(check->table_ids, table->table_id);
	if (table->partial || ((rte->tablesample || cxt->writes) && !table->same) ||
		(cxt->writes && table->computed))
		return check_refuse(cxt, CUTOVER_WHY(MAPPING), get_rel_name(rte->relid));
	if (rte == cxt->inserted)
		return false;
	/* children may be others there; ONLY means something else where one side is partitioned */
	if (rte->relkind == RELKIND_RELATION ? rte->inh && has_subclass(rte->relid) : !rte->inh)
		return check_refuse(cxt, CUTOVER_WHY(OTHER_TABLE), get_rel_name(rte->relid));
	if (rte->tablesample && rte->tablesample->tsmhandler >= FirstUnpinnedObjectId)
		return check_refuse(cxt, CUTOVER_WHY(FUNCTION), get_func_name(rte->tablesample->tsmhandler));
	return false;
}

/*
 * An entry of a range table.
 */
static bool
check_rte(RangeTblEntry *rte, CheckContext *cxt)
{
	/* what a view with a barrier hides could show in new's error messages */
	if (rte->securityQuals != NIL || rte->security_barrier)
		return check_refuse(cxt, CUTOVER_WHY(ROW_SECURITY), NULL);
	switch (rte->rtekind)
	{
		case RTE_RELATION:
			return check_relation(rte, cxt);
		case RTE_NAMEDTUPLESTORE:
			return check_refuse(cxt, CUTOVER_WHY(OTHER_TABLE), pstrdup(rte->enrname));
		case RTE_TABLEFUNC:
			cxt->check->settings = true;
			return false;
		default:
			return false;
	}
}

/*
 * A column, of this query or of one around it.
 */
static bool
check_var(Var *var, CheckContext *cxt)
{
	Query	   *query = list_nth(cxt->queries, var->varlevelsup);
	RangeTblEntry *rte = rt_fetch(var->varno, query->rtable);
	RouteTable *table;

	if (rte->rtekind == RTE_JOIN && !IS_SPECIAL_VARNO(var->varno))
	{
		CheckContext outer = *cxt;
		bool		stop;

		outer.queries = list_copy_tail(cxt->queries, var->varlevelsup);
		stop = check_node(var->varattno > 0 ? list_nth(rte->joinaliasvars, var->varattno - 1) : (Node *) rte->joinaliasvars,
						  &outer);
		cxt->unstable |= outer.unstable;
		return stop;
	}
	if (rte->rtekind != RTE_RELATION)
		return false;
	if (var->varattno < 0)
		return check_refuse(cxt, CUTOVER_WHY(SYSTEM_COLUMN), get_attname(rte->relid, var->varattno, true));
	table = cutover_route_table(rte->relid);
	if (!table->known)
		return false;			/* refused elsewhere */
	if (var->varattno == 0)
	{
		cxt->check->whole_row = true;
		if (rte->tablesample || cxt->writes)
			return check_refuse(cxt, CUTOVER_WHY(OTHER), NULL);
		for (int i = 0; i < table->natts; i++)
			if (table->columns[i] == NULL && get_attname(rte->relid, i + 1, true) != NULL &&
				get_atttype(rte->relid, i + 1) != InvalidOid)
				return check_refuse(cxt, CUTOVER_WHY(MAPPING), get_attname(rte->relid, i + 1, true));
		return false;
	}
	if (var->varattno > table->natts || table->columns[var->varattno - 1] == NULL)
		return check_refuse(cxt, CUTOVER_WHY(MAPPING), get_attname(rte->relid, var->varattno, true));
	return false;
}

/*
 * Checker for check_functions_in_node(): true = refuse, noted already.
 */
static bool
check_function(Oid function, void *arg)
{
	CheckContext *cxt = arg;

	if (cxt->writes && cutover_forward_function(function))
		return false;
	switch (cutover_route_function(function))
	{
		case ROUTE_ANYWHERE:
			return false;
		case ROUTE_SETTINGS:
			cxt->unstable = true;
			cxt->check->settings = true;
			return false;
		case ROUTE_FOLD:
			cxt->unstable = true;
			/* parts that can be computed beforehand don't come here while folding */
			if (!cxt->folding)
				return false;
			break;
		default:
			break;
	}
	return check_refuse(cxt, CUTOVER_WHY(FUNCTION), get_func_name(function));
}

/*
 * Checker: true if the function looks into text by its collation.
 */
static bool
check_minds_collation(Oid function, void *arg)
{
	return !cutover_route_ignores_collation(function);
}

/*
 * The collation that a node computes by.
 */
static bool
check_collation(Node *node, Oid collation, CheckContext *cxt)
{
	if (!OidIsValid(collation) || collation == C_COLLATION_OID)
		return false;
	if (collation != DEFAULT_COLLATION_OID)
	{
		if (collation < FirstUnpinnedObjectId)
			return false;
		return check_refuse(cxt, CUTOVER_WHY(TYPE), psprintf("collation \"%s\"", get_collation_name(collation)));
	}
	if (!cxt->check->collation &&
		(IsA(node, MinMaxExpr) || IsA(node, RowCompareExpr) || check_functions_in_node(node, check_minds_collation, cxt)))
		cxt->check->collation = true;
	return false;
}

/*
 * Operator of an expression or of a sort.
 */
static bool
check_operator(Oid opno, CheckContext *cxt)
{
	if (opno >= FirstUnpinnedObjectId)
		return check_refuse(cxt, CUTOVER_WHY(TYPE), psprintf("operator %s", get_opname(opno)));
	return false;
}

/*
 * The pairs of operators of a sort or group.
 */
static bool
check_sort_clause(SortGroupClause *clause, CheckContext *cxt)
{
	return check_operator(clause->eqop, cxt) || check_operator(clause->sortop, cxt);
}

/*
 * A list of sort clauses whose order shows.
 */
static bool
check_order(List *clauses, List *targetlist, CheckContext *cxt)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst(lc);
		Oid			collation = exprCollation((Node *) get_sortgroupclause_expr(clause, targetlist));

		if (collation == DEFAULT_COLLATION_OID)
			cxt->check->collation = true;
		else if (collation >= FirstUnpinnedObjectId)
			return check_refuse(cxt, CUTOVER_WHY(TYPE), psprintf("collation \"%s\"", get_collation_name(collation)));
	}
	return false;
}

/*
 * What is special about some kinds of nodes.
 */
static bool
check_special(Node *node, CheckContext *cxt)
{
	switch (nodeTag(node))
	{
		case T_Var:
			return check_var((Var *) node, cxt);
		case T_Param:
			if (((Param *) node)->paramkind == PARAM_SUBLINK || ((Param *) node)->paramkind == PARAM_MULTIEXPR)
				return false;	/* the column of a subquery */
			if (((Param *) node)->paramkind != PARAM_EXTERN)
				return check_refuse(cxt, CUTOVER_WHY(OTHER), NULL);
			if (check_names_objects(((Param *) node)->paramtype))
				return check_refuse(cxt, CUTOVER_WHY(TYPE), format_type_be(((Param *) node)->paramtype));
			return false;
		case T_Const:
			{
				Const	   *c = (Const *) node;

				if (check_names_objects(c->consttype) && !c->constisnull &&
					DatumGetObjectId(c->constvalue) >= FirstUnpinnedObjectId &&
					!(cxt->writes && cutover_forward_sequence(c)))
					return check_refuse(cxt, CUTOVER_WHY(TYPE), format_type_be(c->consttype));
				/* its text depends on a locale */
				if (c->consttype == MONEYOID)
					return check_refuse(cxt, CUTOVER_WHY(TYPE), format_type_be(c->consttype));
				return false;
			}
		case T_SortGroupClause:
			return check_sort_clause((SortGroupClause *) node, cxt);
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
			return check_operator(((OpExpr *) node)->opno, cxt);
		case T_ScalarArrayOpExpr:
			return check_operator(((ScalarArrayOpExpr *) node)->opno, cxt);
		case T_Aggref:
			return check_order(((Aggref *) node)->aggorder, ((Aggref *) node)->args, cxt);
		case T_CollateExpr:
			if (((CollateExpr *) node)->collOid >= FirstUnpinnedObjectId)
				return check_refuse(cxt, CUTOVER_WHY(TYPE),
									psprintf("collation \"%s\"", get_collation_name(((CollateExpr *) node)->collOid)));
			return false;
		case T_SubscriptingRef:
			if (((SubscriptingRef *) node)->refcontainertype >= FirstUnpinnedObjectId &&
				!OidIsValid(get_element_type(((SubscriptingRef *) node)->refcontainertype)))
				return check_refuse(cxt, CUTOVER_WHY(TYPE), format_type_be(((SubscriptingRef *) node)->refcontainertype));
			return false;
		case T_SQLValueFunction:
			cxt->unstable = true;
			return cxt->folding ? check_refuse(cxt, CUTOVER_WHY(FUNCTION), NULL) : false;
		case T_XmlExpr:
			cxt->check->settings = true;
			return false;
		case T_NextValueExpr:
			return cxt->writes ? false : check_refuse(cxt, CUTOVER_WHY(OTHER), NULL);
		case T_CurrentOfExpr:
		case T_ConvertRowtypeExpr:
			return check_refuse(cxt, CUTOVER_WHY(OTHER), NULL);
		default:
			return false;
	}
}

/*
 * Walker over expressions.  True = stop, refused.
 */
static bool
check_node(Node *node, CheckContext *cxt)
{
	bool		conditional = cxt->conditional;
	bool		stop;

	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return check_query((Query *) node, cxt);
	if (IsA(node, RangeTblEntry))
		return check_rte((RangeTblEntry *) node, cxt);
	if (IsA(node, OnConflictExpr))
	{
		/* not EXCLUDED's own columns: used or not, they are all there */
		OnConflictExpr *conflict = (OnConflictExpr *) node;

		return check_node((Node *) conflict->arbiterElems, cxt) || check_node(conflict->arbiterWhere, cxt) ||
			check_node((Node *) conflict->onConflictSet, cxt) || check_node(conflict->onConflictWhere, cxt);
	}
	if (IsA(node, RangeTblFunction) && cxt->folding)
	{
		/* its place is in FROM: what it is given may be folded, itself not */
		Node	   *call = ((RangeTblFunction *) node)->funcexpr;

		if (check_special(call, cxt) || check_functions_in_node(call, check_function, cxt) ||
			check_collation(call, exprInputCollation(call), cxt))
			return true;
		return expression_tree_walker(call, check_node, cxt);
	}
	if (cxt->folding && cutover_route_can_fold(node, cxt->conditional))
		return false;
	if (check_special(node, cxt) || check_functions_in_node(node, check_function, cxt) ||
		check_collation(node, exprInputCollation(node), cxt))
		return true;
	cxt->conditional |= IsA(node, CaseExpr) || IsA(node, CoalesceExpr);
	stop = expression_tree_walker(node, check_node, cxt);
	cxt->conditional = conditional;
	return stop;
}

/*
 * Could a query that changes or locks rows do so on new?
 */
static bool
check_write(Query *query, CheckContext *cxt)
{
	RowMarkClause *mark = query->rowMarks != NIL ? linitial(query->rowMarks) : NULL;

	if (mark != NULL && rt_fetch(mark->rti, query->rtable)->rtekind == RTE_RELATION && !OidIsValid(cxt->check->relid))
		cxt->check->relid = rt_fetch(mark->rti, query->rtable)->relid;
	if (query->commandType == CMD_SELECT)
		return true;
	cxt->check->relid = rt_fetch(query->resultRelation, query->rtable)->relid;
	return (query->commandType == CMD_INSERT || query->commandType == CMD_UPDATE || query->commandType == CMD_DELETE) &&
		query->withCheckOptions == NIL;
}

/*
 * Clauses of a query that are no expressions.
 */
static bool
check_clauses(Query *query, CheckContext *cxt)
{
	ListCell   *lc;

	if (cxt->writes ? !check_write(query, cxt) : query->commandType != CMD_SELECT || query->hasModifyingCTE)
		return check_refuse(cxt, CUTOVER_WHY(MODIFYING_CTE), NULL);
	if ((query->rowMarks != NIL || query->hasForUpdate) && !cxt->writes)
		return check_refuse(cxt, CUTOVER_WHY(ROW_LOCK), NULL);
	if (query->hasRowSecurity)
		return check_refuse(cxt, CUTOVER_WHY(ROW_SECURITY), NULL);
	if (check_order(query->sortClause, query->targetList, cxt))
		return true;
	if (query->hasDistinctOn && check_order(query->distinctClause, query->targetList, cxt))
		return true;
	foreach(lc, query->windowClause)
	{
		WindowClause *window = lfirst(lc);

		if (check_order(window->orderClause, query->targetList, cxt) ||
			(OidIsValid(window->startInRangeFunc) && check_function(window->startInRangeFunc, cxt)) ||
			(OidIsValid(window->endInRangeFunc) && check_function(window->endInRangeFunc, cxt)))
			return true;
	}
	return false;
}

/*
 * A query or subquery.
 */
static bool
check_query(Query *query, CheckContext *cxt)
{
	bool		conditional = cxt->conditional;
	RangeTblEntry *inserted = cxt->inserted;
	bool		stop;

	if (check_clauses(query, cxt))
		return true;
	cxt->queries = lcons(query, cxt->queries);
	cxt->conditional = false;
	/* it is named without its partitions */
	cxt->inserted = query->commandType == CMD_INSERT ? rt_fetch(query->resultRelation, query->rtable) : NULL;
	/* columns of joins are looked at where they are used */
	stop = query_tree_walker(query, check_node, cxt,
							 QTW_EXAMINE_RTES_BEFORE | QTW_EXAMINE_SORTGROUP | QTW_IGNORE_JOINALIASES);
	cxt->queries = list_delete_first(cxt->queries);
	cxt->conditional = conditional;
	cxt->inserted = inserted;
	return stop;
}

/*
 * Columns of the result must have values that can be read back here.
 */
static bool
check_result(Query *query, CheckContext *cxt)
{
	ListCell   *lc;

	foreach(lc, query->commandType == CMD_SELECT ? query->targetList : query->returningList)
	{
		TargetEntry *tle = lfirst(lc);
		Oid			type = exprType((Node *) tle->expr);

		if (!tle->resjunk && (get_typtype(getBaseType(type)) == TYPTYPE_PSEUDO || check_names_objects(getBaseType(type)) ||
							  check_names_objects(get_element_type(type))))
			return check_refuse(cxt, CUTOVER_WHY(TYPE), format_type_be(type));
	}
	return false;
}

/*
 * Check a query, which the planner has not touched yet.
 */
void
cutover_route_check(Query *query, RouteCheck *check)
{
	CheckContext cxt = {.check = check, .writes = query->commandType != CMD_SELECT};

	memset(check, 0, sizeof(*check));
	if (check_query(query, &cxt) && !cxt.writes &&
		(check->why == CUTOVER_WHY(ROW_LOCK) || check->why == CUTOVER_WHY(MODIFYING_CTE)))
	{
		/* once more: as what it is */
		memset(check, 0, sizeof(*check));
		memset(&cxt, 0, sizeof(cxt));
		cxt.check = check;
		cxt.writes = true;
		(void) check_query(query, &cxt);
	}
	check->writes = cxt.writes;
	if (check->why != NULL || check_result(query, &cxt))
		return;
	if (cxt.unstable)
	{
		/* once more: without what old computes beforehand */
		check->settings = false;
		cxt.folding = true;
		(void) check_query(query, &cxt);
	}
}
