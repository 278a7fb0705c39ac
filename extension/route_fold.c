/*
 * route_fold.c - what old computes before a query goes to new.
 *
 * now(), current_user, current_setting('...') and whatever is made of such, of
 * constants and of parameters is computed on old at each execution and sent
 * as one more parameter, so that the text for new stays the same.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

#include "route.h"

typedef struct FoldContext
{
	int			first;			/* number of the first parameter added */
	List	   *folded;
	bool		conditional;
} FoldContext;

/*
 * Checker: true if old could not compute it beforehand; *arg is set by what is worth it.
 */
static bool
fold_function(Oid function, void *arg)
{
	RouteVolatility volatility = cutover_route_function(function);

	if (volatility == ROUTE_NOWHERE)
		return true;
	if (volatility != ROUTE_ANYWHERE)
		*(bool *) arg = true;
	return false;
}

/*
 * Walker: true if the expression depends on rows.
 */
static bool
fold_depends(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Const:
			return false;
		case T_Param:
			return ((Param *) node)->paramkind != PARAM_EXTERN;
		case T_SQLValueFunction:
			*(bool *) arg = true;
			return false;
		case T_FuncExpr:
			if (((FuncExpr *) node)->funcretset)
				return true;
			break;
		case T_OpExpr:
			if (((OpExpr *) node)->opretset)
				return true;
			break;
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_CaseExpr:
		case T_CaseWhen:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_ArrayExpr:
		case T_CollateExpr:
		case T_List:
			break;
		default:
			return true;
	}
	if (check_functions_in_node(node, fold_function, arg))
		return true;
	return expression_tree_walker(node, fold_depends, arg);
}

/*
 * Is this an expression that old should compute beforehand?  One that is not
 * computed always must not be one that can fail.
 */
bool
cutover_route_can_fold(Node *node, bool conditional)
{
	bool		worth = false;
	Oid			type;

	switch (nodeTag(node))
	{
		case T_SQLValueFunction:
			return true;
		case T_FuncExpr:
			if (conditional && ((FuncExpr *) node)->args != NIL)
				return false;
			break;
		case T_OpExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_CaseExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_ArrayExpr:
			if (conditional)
				return false;
			break;
		default:
			return false;
	}
	type = exprType(node);
	if (type >= FirstUnpinnedObjectId || get_typtype(type) == TYPTYPE_PSEUDO)
		return false;
	return !fold_depends(node, &worth) && worth;
}

/*
 * Mutator: put parameters in the place of what is computed beforehand.
 */
static Node *
fold_mutator(Node *node, FoldContext *cxt)
{
	bool		conditional = cxt->conditional;
	Node	   *result;

	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
	{
		cxt->conditional = false;
		result = (Node *) query_tree_mutator((Query *) node, fold_mutator, cxt, 0);
		cxt->conditional = conditional;
		return result;
	}
	if (IsA(node, RangeTblFunction))
	{
		RangeTblFunction *copy = makeNode(RangeTblFunction);

		*copy = *(RangeTblFunction *) node;
		copy->funcexpr = expression_tree_mutator(copy->funcexpr, fold_mutator, cxt);
		return (Node *) copy;
	}
	if (cutover_route_can_fold(node, cxt->conditional))
	{
		Param	   *param = makeNode(Param);
		int			n = 0;

		param->paramkind = PARAM_EXTERN;
		param->paramtype = exprType(node);
		param->paramtypmod = exprTypmod(node);
		param->paramcollid = exprCollation(node);
		param->location = -1;
		while (n < list_length(cxt->folded) && !equal(list_nth(cxt->folded, n), node))
			n++;
		param->paramid = cxt->first + n;
		if (n == list_length(cxt->folded))
			cxt->folded = lappend(cxt->folded, copyObject(node));
		return (Node *) param;
	}
	cxt->conditional |= IsA(node, CaseExpr) || IsA(node, CoalesceExpr);
	result = expression_tree_mutator(node, fold_mutator, cxt);
	cxt->conditional = conditional;
	return result;
}

/*
 * The query with parameters from number first on in the place of what old computes.
 */
Query *
cutover_route_fold(Query *query, int first, List **folded)
{
	FoldContext cxt = {.first = first};
	Query	   *result = query_tree_mutator(query, fold_mutator, &cxt, 0);

	*folded = cxt.folded;
	return result;
}

/*
 * Walker: true unless the expression can't fail.
 */
static bool
fold_may_fail(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_Const:
		case T_Param:
		case T_SQLValueFunction:
		case T_RelabelType:
			break;
		case T_FuncExpr:
			if (((FuncExpr *) node)->args != NIL)
				return true;
			break;
		case T_OpExpr:
			set_opfuncid((OpExpr *) node);
			switch (((OpExpr *) node)->opfuncid)
			{
				case F_TIMESTAMPTZ_MI_INTERVAL:
				case F_TIMESTAMPTZ_PL_INTERVAL:
				case F_DATE_MI_INTERVAL:
				case F_DATE_PL_INTERVAL:
				case F_DATE_MII:
				case F_DATE_PLI:
					break;
				default:
					return true;
			}
			break;
		default:
			return true;
	}
	return expression_tree_walker(node, fold_may_fail, arg);
}

/*
 * Could computing these fail?  Old might never have computed them.
 */
bool
cutover_route_fold_may_fail(List *folded)
{
	return fold_may_fail((Node *) folded, NULL) && folded != NIL;
}
