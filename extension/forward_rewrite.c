/*
 * forward_rewrite.c - what of a statement that writes can be computed on new.
 *
 * The planner gets an INSERT with all defaults written out.  Those that give
 * another value at each call (numbers from a sequence above all) or are made by
 * functions of the user are left out again, so that new's own defaults give them.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "forward.h"

/* Built-in functions with another result at each call that concern nothing but the row: the same anywhere. */
static const char *const anywhere[] = {
	"clock_timestamp", "currval", "gen_random_uuid", "nextval", "random", "random_normal", "timeofday", "uuidv4", "uuidv7"
};

/*
 * May this function be computed on new?
 */
bool
cutover_forward_function(Oid function)
{
	char	   *name = function < FirstUnpinnedObjectId && func_volatile(function) == PROVOLATILE_VOLATILE ?
		get_func_name(function) : NULL;
	bool		found = false;

	for (int i = 0; name && i < lengthof(anywhere) && !found; i++)
		found = strcmp(name, anywhere[i]) == 0;
	return found;
}

/*
 * Does a constant name a sequence of a table under migration?
 */
bool
cutover_forward_sequence(const Const *value)
{
	Oid			seq = DatumGetObjectId(value->constvalue);
	Oid			table;
	int32		column;

	return value->consttype == REGCLASSOID && get_rel_relkind(seq) == RELKIND_SEQUENCE &&
		(sequenceIsOwned(seq, DEPENDENCY_AUTO, &table, &column) || sequenceIsOwned(seq, DEPENDENCY_INTERNAL, &table, &column)) &&
		cutover_route_table(table)->known;
}

/*
 * Checker and walker: does an expression call functions of the user?
 */
static bool
rewrite_is_foreign(Oid function, void *arg)
{
	return function >= FirstUnpinnedObjectId;
}

static bool
rewrite_has_foreign(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	return check_functions_in_node(node, rewrite_is_foreign, NULL) || expression_tree_walker(node, rewrite_has_foreign, arg);
}

/*
 * Is this the column's default, and one that new should give?
 */
static bool
rewrite_is_left_to_new(Relation rel, TargetEntry *tle)
{
	return (contain_volatile_functions((Node *) tle->expr) || rewrite_has_foreign((Node *) tle->expr, NULL)) &&
		equal(tle->expr, build_column_default(rel, tle->resno));
}

/*
 * The source of rows, if the statement has one (several VALUES, or a SELECT): its number.
 */
static int
rewrite_source(Query *query)
{
	ListCell   *lc;

	foreach(lc, query->jointree->fromlist)
		if (IsA(lfirst(lc), RangeTblRef))
			return ((RangeTblRef *) lfirst(lc))->rtindex;
	return 0;
}

/*
 * Are the columns just those of the source?  Then the deparser can write it as it is.
 */
static bool
rewrite_is_plain(Query *query, int source)
{
	RangeTblEntry *rte = rt_fetch(source, query->rtable);
	int			n = 0;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		Var		   *var = (Var *) ((TargetEntry *) lfirst(lc))->expr;

		if (!IsA(var, Var) || var->varno != source || var->varattno != ++n)
			return false;
	}
	return n == list_length(rte->eref->colnames);
}

/*
 * Have another subquery compute the columns from the source.
 */
static void
rewrite_wrap(Query *query, int source)
{
	RangeTblEntry *rte = rt_fetch(source, query->rtable);
	RangeTblEntry *inner = copyObject(rte);
	Query	   *select = makeNode(Query);
	RangeTblRef *ref = makeNode(RangeTblRef);
	List	   *names = NIL;
	int			n = 0;
	ListCell   *lc;

	/* one level further away from what surrounds it */
	if (inner->rtekind == RTE_SUBQUERY)
		IncrementVarSublevelsUp((Node *) inner->subquery, 1, 1);
	else
		IncrementVarSublevelsUp((Node *) inner->values_lists, 1, 0);
	inner->inFromCl = true;
	ref->rtindex = 1;
	select->commandType = CMD_SELECT;
	select->canSetTag = true;
	select->hasSubLinks = query->hasSubLinks;
	select->rtable = list_make1(inner);
	select->jointree = makeFromExpr(list_make1(ref), NULL);
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst(lc);
		TargetEntry *copy = copyObject(tle);
		char	   *name = psprintf("c%d", ++n);

		ChangeVarNodes((Node *) copy->expr, source, 1, 0);
		copy->resno = n;
		copy->resname = name;
		select->targetList = lappend(select->targetList, copy);
		names = lappend(names, makeString(name));
		tle->expr = (Expr *) makeVar(source, n, exprType((Node *) copy->expr), exprTypmod((Node *) copy->expr),
									 exprCollation((Node *) copy->expr), 0);
	}
	rte->rtekind = RTE_SUBQUERY;
	rte->subquery = select;
	rte->values_lists = NIL;
	rte->coltypes = rte->coltypmods = rte->colcollations = NIL;
	rte->alias = makeAlias("cutover_rows", NIL);
	rte->eref = makeAlias("cutover_rows", names);
}

/*
 * Does any column get a part of its value only (an array's element, a field)?
 */
static bool
rewrite_has_parts(Query *query)
{
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		Expr	   *expr = ((TargetEntry *) lfirst(lc))->expr;

		if (IsA(expr, FieldStore) || (IsA(expr, SubscriptingRef) && ((SubscriptingRef *) expr)->refassgnexpr != NULL))
			return true;
	}
	return false;
}

/*
 * Leave to new what it should give, in one INSERT.
 */
static void
rewrite_insert(Query *query)
{
	RangeTblEntry *rte = rt_fetch(query->resultRelation, query->rtable);
	int			source = rewrite_source(query);
	Relation	rel;
	ListCell   *lc;

	if (rte->rtekind != RTE_RELATION)
		return;
	rel = table_open(rte->relid, NoLock);
	foreach(lc, query->targetList)
		if (rewrite_is_left_to_new(rel, lfirst(lc)))
			query->targetList = foreach_delete_current(query->targetList, lc);
	table_close(rel, NoLock);
	if (source != 0 && !rewrite_has_parts(query) && !rewrite_is_plain(query, source))
		rewrite_wrap(query, source);
}

/*
 * A statement that may hold INSERTs as new should get it.
 */
Query *
cutover_forward_rewrite(const Query *query)
{
	Query	   *result = copyObject(unconstify(Query *, query));
	ListCell   *lc;

	foreach(lc, result->cteList)
	{
		Query	   *part = (Query *) ((CommonTableExpr *) lfirst(lc))->ctequery;

		if (IsA(part, Query) && part->commandType == CMD_INSERT)
			rewrite_insert(part);
	}
	if (result->commandType == CMD_INSERT)
		rewrite_insert(result);
	/* a view's table is in the view's FROM, where the deparser would write it once more */
	if (result->commandType != CMD_SELECT)
		rt_fetch(result->resultRelation, result->rtable)->inFromCl = false;
	return result;
}
