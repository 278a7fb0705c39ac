/*
 * shadow_order.c - does ORDER BY leave no doubt about the order of rows?
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "shadow_worker.h"

/*
 * Are two values of the type that sort alike the same value?
 */
static bool
order_type_is_exact(Oid type)
{
	switch (getBaseType(type))
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case UUIDOID:
		case TEXTOID:
		case VARCHAROID:
		case BYTEAOID:
			return true;
		default:
			return get_typtype(type) == TYPTYPE_ENUM;
	}
}

/*
 * Does ORDER BY name this entry of the target list?
 */
static bool
order_has(Query *query, TargetEntry *tle)
{
	ListCell   *lc;

	if (tle->ressortgroupref == 0)
		return false;
	foreach(lc, query->sortClause)
		if (lfirst_node(SortGroupClause, lc)->tleSortGroupRef == tle->ressortgroupref)
			return true;
	return false;
}

/*
 * Columns of a relation in ORDER BY.
 */
static Bitmapset *
order_columns(Query *query, Index varno)
{
	Bitmapset  *columns = NULL;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (IsA(tle->expr, Var) && ((Var *) tle->expr)->varno == varno && ((Var *) tle->expr)->varlevelsup == 0 &&
			((Var *) tle->expr)->varattno > 0 && order_has(query, tle))
			columns = bms_add_member(columns, ((Var *) tle->expr)->varattno);
	}
	return columns;
}

/*
 * Is there a unique index on some of these columns, none of them nullable?
 */
static bool
order_is_unique(Oid relid, Bitmapset *columns)
{
	Relation	rel = table_open(relid, AccessShareLock);
	List	   *indexes = RelationGetIndexList(rel);
	bool		unique = false;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;
		int			n = 0;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisunique && index->indisvalid && index->indimmediate && heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		{
			while (n < index->indnkeyatts && index->indkey.values[n] > 0 && bms_is_member(index->indkey.values[n], columns) &&
				   TupleDescAttr(RelationGetDescr(rel), index->indkey.values[n] - 1)->attnotnull)
				n++;
			unique |= n == index->indnkeyatts;
		}
		ReleaseSysCache(tuple);
	}
	table_close(rel, AccessShareLock);
	return unique;
}

/*
 * Does ORDER BY hold a key of every table of a plain join?
 */
static bool
order_has_keys(Query *query)
{
	Index		varno = 0;
	ListCell   *lc;

	if (query->hasAggs || query->groupClause != NIL || query->groupingSets != NIL || query->setOperations != NULL ||
		query->hasTargetSRFs || query->distinctClause != NIL)
		return false;
	foreach(lc, query->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		varno++;
		/* the missing side of an outer join has no key */
		if (rte->rtekind == RTE_JOIN && rte->jointype == JOIN_INNER)
			continue;
		/* sorting by a key of a table with children says nothing of those */
		if (rte->rtekind != RTE_RELATION || (rte->relkind != RELKIND_PARTITIONED_TABLE && rte->inh && has_subclass(rte->relid)) ||
			!order_is_unique(rte->relid, order_columns(query, varno)))
			return false;
	}
	return varno > 0;
}

/*
 * Is the whole row in ORDER BY, or what makes it one of its kind?
 */
static bool
order_has_row(Query *query)
{
	List	   *group = query->groupingSets == NIL && !query->hasTargetSRFs ? query->groupClause : NIL;
	bool		whole = true;
	bool		grouped = group != NIL;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (!tle->resjunk && !order_has(query, tle))
			whole = false;
		if (!tle->resjunk && !order_type_is_exact(exprType((Node *) tle->expr)))
			whole = false;
	}
	foreach(lc, group)
		if (!order_has(query, get_sortgroupref_tle(lfirst_node(SortGroupClause, lc)->tleSortGroupRef, query->targetList)))
			grouped = false;
	/* one row, whatever ORDER BY says */
	return whole || grouped || (query->hasAggs && group == NIL && query->groupingSets == NIL);
}

bool
cutover_shadow_sorts_totally(Query *query)
{
	if (query->sortClause == NIL)
		return query->hasAggs && query->groupClause == NIL && query->groupingSets == NIL && !query->hasTargetSRFs;
	return order_has_row(query) || order_has_keys(query);
}
