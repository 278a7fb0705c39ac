/*
 * route_deparse.c - a query as it is sent to new.
 *
 * The server's own deparser writes it, from a copy in which parameters are
 * numbered anew.  A table that has another name there, or other columns, is
 * replaced by a CTE that gives it the names it has on old:
 *
 *	WITH cutover_1 AS NOT MATERIALIZED (SELECT k AS id, n AS name FROM shop.item) SELECT ... FROM cutover_1 item
 *
 * so that all the rest of the query can stay as it is.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "route.h"

/* Translations that a session keeps. */
#define ROUTE_MAX_PLANS 256

typedef struct DeparseContext
{
	bool		whole_row;		/* rows as a whole have to have old's shape */
	List	   *externs;		/* numbers of the query's parameters, in new's order */
	List	   *types;			/* their types */
	List	   *ctes;			/* texts */
	List	   *names;			/* of tables that have a CTE: relids */
} DeparseContext;

static HTAB *plans = NULL;
static dlist_head lru;

/*
 * Does new know this type by the same number?
 */
static bool
deparse_known_type(Oid type)
{
	return type < FirstUnpinnedObjectId;
}

/*
 * A parameter under its new number; of a type that is not built in: cast, so
 * that new finds the type by its name.
 */
static Node *
deparse_param(Param *param, DeparseContext *cxt)
{
	Param	   *copy = copyObject(param);
	CoerceViaIO *cast;
	int			n = 0;

	while (n < list_length(cxt->externs) && list_nth_int(cxt->externs, n) != param->paramid)
		n++;
	copy->paramid = n + 1;
	if (n == list_length(cxt->externs))
	{
		cxt->externs = lappend_int(cxt->externs, param->paramid);
		cxt->types = lappend_oid(cxt->types, param->paramtype);
	}
	if (deparse_known_type(param->paramtype))
		return (Node *) copy;
	copy->paramtype = TEXTOID;
	copy->paramtypmod = -1;
	cast = makeNode(CoerceViaIO);
	cast->arg = (Expr *) copy;
	cast->resulttype = param->paramtype;
	cast->resultcollid = param->paramcollid;
	cast->coerceformat = COERCE_EXPLICIT_CAST;
	cast->location = -1;
	return (Node *) cast;
}

/*
 * Put a CTE in the place of a table.
 */
static void
deparse_rename(RangeTblEntry *rte, RouteTable *table, DeparseContext *cxt)
{
	StringInfoData sql;
	List	   *colnames = NIL;
	const char *sep = "";
	int			n = 1;

	while (n <= list_length(cxt->names) && list_nth_oid(cxt->names, n - 1) != rte->relid)
		n++;
	initStringInfo(&sql);
	appendStringInfo(&sql, "cutover_%d AS NOT MATERIALIZED (SELECT ", n);
	for (int i = 0; i < table->natts; i++)
	{
		char	   *name = get_attname(rte->relid, i + 1, true);

		if (get_atttype(rte->relid, i + 1) == InvalidOid)
			name = NULL;		/* dropped */
		colnames = lappend(colnames, makeString(name ? name : pstrdup("")));
		if (name == NULL || table->columns[i] == NULL)
			continue;
		appendStringInfo(&sql, "%s%s AS %s", sep, quote_identifier(table->columns[i]), quote_identifier(name));
		sep = ", ";
	}
	appendStringInfo(&sql, " FROM %s%s)", rte->inh ? "" : "ONLY ",
					 quote_qualified_identifier(table->new_schema, table->new_name));
	if (n > list_length(cxt->names))
	{
		cxt->names = lappend_oid(cxt->names, rte->relid);
		cxt->ctes = lappend(cxt->ctes, sql.data);
	}
	/* how it is called in the query must not depend on the name it lost */
	if (rte->alias == NULL)
		rte->alias = makeAlias(rte->eref->aliasname, NIL);
	else
		rte->alias = copyObject(rte->alias);
	rte->eref = makeAlias(rte->eref->aliasname, colnames);
	rte->rtekind = RTE_CTE;
	rte->ctename = psprintf("cutover_%d", n);
	rte->ctelevelsup = 0;
	rte->self_reference = false;
	rte->relid = InvalidOid;
	rte->relkind = 0;
	rte->inh = false;
#if PG_VERSION_NUM >= 160000
	rte->perminfoindex = 0;
#endif
}

/*
 * Mutator over the copy of the query.
 */
static Node *
deparse_mutator(Node *node, DeparseContext *cxt)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
	{
		Query	   *query = query_tree_mutator((Query *) node, deparse_mutator, cxt, 0);
		ListCell   *lc;

		foreach(lc, query->rtable)
		{
			RangeTblEntry *rte = lfirst(lc);
			RouteTable *table;

			if (rte->rtekind != RTE_RELATION || rte->relkind == RELKIND_VIEW || rte->tablesample)
				continue;
			table = cutover_route_table(rte->relid);
			if (table->known && (!table->same || cxt->whole_row))
				deparse_rename(rte, table, cxt);
		}
		return (Node *) query;
	}
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_EXTERN)
		return deparse_param((Param *) node, cxt);
	return expression_tree_mutator(node, deparse_mutator, cxt);
}

/*
 * The deparser locks tables as if it read them, and the fence goes by such
 * locks: give back those on tables that a statement only writes to.
 */
static List *
deparse_note_written(Query *query)
{
	List	   *written = NIL;
	LOCKTAG		tag;
	ListCell   *lc;

	if (query->commandType != CMD_SELECT && query->resultRelation > 0)
	{
		Oid			relid = rt_fetch(query->resultRelation, query->rtable)->relid;

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
		if (!cutover_lock_held_compat(&tag, AccessShareLock))
			written = list_make1_oid(relid);
	}
	foreach(lc, query->cteList)
		if (IsA(((CommonTableExpr *) lfirst(lc))->ctequery, Query))
			written = list_concat_unique_oid(written, deparse_note_written((Query *) ((CommonTableExpr *) lfirst(lc))->ctequery));
	return written;
}

/*
 * The text of a query, with names and constants in a form that means the same everywhere.
 */
static char *
deparse_query(Query *query)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog"}, {"DateStyle", "ISO"}, {"IntervalStyle", "postgres"}, {"extra_float_digits", "3"}
	};
	int			level = NewGUCNestLevel();
	List	   *written = deparse_note_written(query);
	LOCKTAG		tag;
	ListCell   *lc;
	char	   *sql;

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	sql = pg_get_querydef(query, false);
	AtEOXact_GUC(true, level);
	foreach(lc, written)
	{
		SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
		if (cutover_lock_held_compat(&tag, AccessShareLock))
			UnlockRelationOid(lfirst_oid(lc), AccessShareLock);
	}
	while (*sql == ' ' || *sql == '\n')
		sql++;
	return sql;
}

/*
 * Put our CTEs before those of the query.
 */
static char *
deparse_with(char *sql, List *ctes)
{
	StringInfoData result;
	const char *sep = "";
	ListCell   *lc;

	if (ctes == NIL)
		return sql;
	initStringInfo(&result);
	appendStringInfoString(&result, "WITH ");
	if (strncmp(sql, "WITH RECURSIVE ", 15) == 0)
		appendStringInfoString(&result, "RECURSIVE ");
	foreach(lc, ctes)
	{
		appendStringInfo(&result, "%s%s", sep, (char *) lfirst(lc));
		sep = ", ";
	}
	if (strncmp(sql, "WITH RECURSIVE ", 15) == 0)
		appendStringInfo(&result, ", %s", sql + 15);
	else if (strncmp(sql, "WITH ", 5) == 0)
		appendStringInfo(&result, ", %s", sql + 5);
	else
		appendStringInfo(&result, " %s", sql);
	return result.data;
}

/*
 * The highest number among the query's own parameters.
 */
static bool
deparse_max_param(Node *node, int *max)
{
	if (node == NULL)
		return false;
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_EXTERN)
		*max = Max(*max, ((Param *) node)->paramid);
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, deparse_max_param, max, 0);
	return expression_tree_walker(node, deparse_max_param, max);
}

/*
 * Text for new; what becomes of parameters is left in cxt, what old computes in folded.
 */
static char *
deparse_all(Query *query, bool whole_row, DeparseContext *cxt, int *max_param, List **folded)
{
	memset(cxt, 0, sizeof(*cxt));
	cxt->whole_row = whole_row;
	*max_param = 0;
	(void) deparse_max_param((Node *) query, max_param);
	query = cutover_route_fold(query, *max_param + 1, folded);
	query = (Query *) deparse_mutator((Node *) query, cxt);
	return deparse_with(deparse_query(query), cxt->ctes);
}

/*
 * The text of a query in which nothing is left to compute on old, and the
 * numbers of its parameters in the order that new's statement has them.
 */
char *
cutover_route_sql_unfolded(Query *query, bool whole_row, List **externs)
{
	DeparseContext cxt = {.whole_row = whole_row};
	char	   *sql;

	query = (Query *) deparse_mutator((Node *) query, &cxt);
	sql = deparse_with(deparse_query(query), cxt.ctes);
	*externs = cxt.externs;
	return sql;
}

/*
 * Only the text, for EXPLAIN.
 */
char *
cutover_route_sql(Query *query, bool whole_row)
{
	DeparseContext cxt;
	List	   *folded;
	int			max_param;

	return deparse_all(query, whole_row, &cxt, &max_param, &folded);
}

/*
 * Kinds of values that need no function call to be read or sent.
 */
static RouteKind
deparse_kind(Oid type)
{
	switch (type)
	{
		case INT2OID:
			return ROUTE_INT2;
		case INT4OID:
		case DATEOID:
			return ROUTE_INT4;
		case INT8OID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case TIMEOID:
			return ROUTE_INT8;
		case BOOLOID:
			return ROUTE_BOOL;
		case FLOAT8OID:
			return ROUTE_FLOAT8;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return ROUTE_TEXT;
		default:
			return ROUTE_OTHER;
	}
}

/*
 * Do the functions that make and read binary forms convert text to and from the
 * client's encoding?  They are made for talking to the client, not to new.
 */
static bool
deparse_converts(void)
{
	return pg_get_client_encoding() != GetDatabaseEncoding();
}

/*
 * Types whose binary form has no text in it.
 */
static bool
deparse_without_text(Oid type)
{
	switch (type)
	{
		case FLOAT4OID:
		case OIDOID:
		case BYTEAOID:
		case NUMERICOID:
		case UUIDOID:
		case INTERVALOID:
		case TIMETZOID:
		case INETOID:
		case CIDROID:
			return true;
		default:
			return deparse_kind(type) != ROUTE_OTHER;
	}
}

/*
 * Can values of this type travel in binary form, so that both sides mean the same?
 */
static bool
deparse_binary(Oid type)
{
	HeapTuple	tuple;
	Form_pg_type form;
	bool		result;

	if (deparse_converts() && !deparse_without_text(type))
		return false;
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_type) GETSTRUCT(tuple);
	if (form->typtype == TYPTYPE_ENUM)
		result = true;			/* its label */
	else
		result = deparse_known_type(type) && OidIsValid(form->typreceive) && OidIsValid(form->typsend) &&
			(form->typtype == TYPTYPE_BASE || form->typtype == TYPTYPE_RANGE || form->typtype == TYPTYPE_MULTIRANGE);
	ReleaseSysCache(tuple);
	return result;
}

/*
 * How the columns of the result are read.
 */
static void
deparse_columns(RoutePlan *plan, List *targetlist)
{
	ListCell   *lc;

	plan->columns = palloc0(sizeof(RouteColumn) * Max(list_length(targetlist), 1));
	plan->binary = true;
	foreach(lc, targetlist)
	{
		TargetEntry *tle = lfirst(lc);
		RouteColumn *column = &plan->columns[plan->ncolumns];

		if (tle->resjunk)
			continue;			/* new does not send it */
		column->type = getBaseType(exprType((Node *) tle->expr));
		column->wire = deparse_known_type(column->type) ? column->type : InvalidOid;
		column->typmod = -1;
		column->attno = tle->resno;
		plan->binary &= deparse_binary(column->type);
		plan->ncolumns++;
	}
	for (int i = 0; i < plan->ncolumns; i++)
	{
		RouteColumn *column = &plan->columns[i];
		Oid			fn;

		column->kind = plan->binary ? deparse_kind(column->type) : ROUTE_OTHER;
		if (plan->binary)
			getTypeBinaryInputInfo(column->type, &fn, &column->ioparam);
		else
			getTypeInputInfo(column->type, &fn, &column->ioparam);
		fmgr_info_cxt(fn, &column->fn, plan->cxt);
	}
}

/*
 * How a parameter is sent.
 */
static void
deparse_set_param(RouteColumn *param, Oid type, MemoryContext cxt)
{
	Oid			fn;
	bool		varlena;

	param->type = type;
	param->kind = deparse_kind(type);
	param->binary = deparse_known_type(type) && deparse_binary(type);
	if (param->binary)
	{
		param->wire = type;
		getTypeBinaryOutputInfo(type, &fn, &varlena);
	}
	else
	{
		/* as text; the cast says of which type it is */
		param->wire = deparse_known_type(type) ? type : InvalidOid;
		param->kind = ROUTE_OTHER;
		getTypeOutputInfo(type, &fn, &varlena);
	}
	fmgr_info_cxt(fn, &param->fn, cxt);
}

/*
 * Translate a query into the entry.
 */
static void
deparse_fill(RoutePlan *plan, Query *query, bool whole_row)
{
	MemoryContext old = MemoryContextSwitchTo(plan->cxt);
	DeparseContext cxt;
	int			max_param;
	int			i = 0;
	ListCell   *lc;
	char	   *sql = deparse_all(query, whole_row, &cxt, &max_param, &plan->folded);

	foreach(lc, plan->folded)
		lfirst(lc) = expression_planner(lfirst(lc));
	plan->folded_may_fail = cutover_route_fold_may_fail(plan->folded);
	plan->nparams = list_length(cxt.externs);
	plan->params = palloc0(sizeof(RouteColumn) * Max(plan->nparams, 1));
	plan->externs = palloc(sizeof(int) * Max(plan->nparams, 1));
	foreach(lc, cxt.externs)
	{
		/* ours have numbers from max_param + 1 on */
		plan->externs[i] = lfirst_int(lc) <= max_param ? lfirst_int(lc) : max_param - lfirst_int(lc);
		deparse_set_param(&plan->params[i], list_nth_oid(cxt.types, i), plan->cxt);
		i++;
	}
	deparse_columns(plan, query->commandType == CMD_SELECT ? query->targetList : query->returningList);
	plan->statement = cutover_route_statement(sql);
	MemoryContextSwitchTo(old);
}

/*
 * Drop an entry.
 */
static void
deparse_drop(RoutePlan *plan)
{
	if (plan->statement)
		cutover_route_release_statement(plan->statement);
	if (plan->cxt)
		MemoryContextDelete(plan->cxt);
	dlist_delete(&plan->lru);
	(void) hash_search(plans, &plan->id, HASH_REMOVE, NULL);
}

/*
 * Make room: those that were not used for longest go.
 */
static void
deparse_evict(void)
{
	dlist_node *node = dlist_is_empty(&lru) ? NULL : dlist_tail_node(&lru);

	while (node && hash_get_num_entries(plans) >= ROUTE_MAX_PLANS)
	{
		RoutePlan  *plan = dlist_container(RoutePlan, lru, node);

		node = dlist_has_prev(&lru, node) ? dlist_prev_node(&lru, node) : NULL;
		if (plan->users == 0)
			deparse_drop(plan);
	}
}

/*
 * The translation of a plan's query, made if need be.  Goes with cutover_route_release().
 */
RoutePlan *
cutover_route_translate(int64 id, Query *query, bool whole_row)
{
	RoutePlan  *plan;
	bool		found;
	uint64		now = cutover_route_generation();
	static int64 asides = 0;

	if (plans == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(RoutePlan)};

		plans = hash_create("cutover plans", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		dlist_init(&lru);
	}
	plan = hash_search(plans, &id, HASH_FIND, NULL);
	if (plan && plan->statement && plan->converting == deparse_converts() && plan->generation == now)
	{
		if (dlist_head_node(&lru) != &plan->lru)
			dlist_move_head(&lru, &plan->lru);
		plan->users++;
		return plan;
	}
	if (plan && plan->users > 0)
		id = --asides;			/* a cursor still has the old one */
	else if (plan)
		deparse_drop(plan);
	deparse_evict();
	plan = hash_search(plans, &id, HASH_ENTER, &found);
	memset((char *) plan + sizeof(plan->id), 0, sizeof(*plan) - sizeof(plan->id));
	dlist_push_head(&lru, &plan->lru);
	plan->generation = now;
	plan->converting = deparse_converts();
	plan->cxt = AllocSetContextCreate(TopMemoryContext, "cutover plan", ALLOCSET_SMALL_SIZES);
	deparse_fill(plan, query, whole_row);
	plan->users = 1;
	return plan;
}

void
cutover_route_release(RoutePlan *plan)
{
	plan->users--;
}
