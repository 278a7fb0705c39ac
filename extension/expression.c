/*
 * expression.c - SQL expressions over one row of a table on old.
 *
 * Runs in the caller's backend.  A text is parsed as one expression, resolved
 * against the table, checked (no other relation, no aggregate, nothing
 * volatile) and kept as a node tree; workers evaluate that.  Nothing is
 * executed here, and no dependency is recorded.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_relation.h"
#include "parser/parse_type.h"
#include "parser/parser.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "caller.h"
#include "compat.h"

PG_FUNCTION_INFO_V1(cutover_compile_expression);
PG_FUNCTION_INFO_V1(cutover_expression_attnums);
PG_FUNCTION_INFO_V1(cutover_expression_cast_source);


/* For the error context. */
typedef struct ExpressionSource
{
	const char *text;
	const char *what;			/* "column x", "row_filter" */
	const char *relname;
} ExpressionSource;

/*
 * A position in an error points into our text, not into the caller's statement.
 */
static void
expression_error_context(void *arg)
{
	ExpressionSource *source = arg;
	int			pos = geterrposition();

	if (pos > 0)
	{
		errposition(0);
		internalerrposition(pos);
		internalerrquery(source->text);
	}
	errcontext("expression for %s of table \"%s\"", source->what, source->relname);
}

/*
 * Raise what the parser raised, with what ours have too: where, and what to do.
 */
static void
expression_rethrow(ExpressionSource *source, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (error->detail == NULL)
		error->detail = psprintf("It is in the expression for %s of table \"%s\".", source->what, source->relname);
	if (error->hint == NULL)
		error->hint = pstrdup("Give one expression over the columns of the table, such as upper(code).");
	ReThrowError(error);
}

static void
expression_refuse(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("this is not one expression over a row"),
			 errdetail("%s", detail),
			 errhint("Give one expression over the columns of the table, such as upper(code).")));
}

/*
 * Parse the text, which must be nothing but one expression.
 */
static Node *
expression_parse(const char *text)
{
	List	   *raw = raw_parser(text, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *select;
	ResTarget  *target;

	if (list_length(raw) != 1 || !IsA(linitial_node(RawStmt, raw)->stmt, SelectStmt))
		expression_refuse("It is a statement.");
	select = (SelectStmt *) linitial_node(RawStmt, raw)->stmt;
	if (select->targetList == NIL)
		expression_refuse("It is empty.");
	if (list_length(select->targetList) != 1)
		expression_refuse("It is a list of several.");
	if (select->distinctClause || select->intoClause || select->fromClause || select->whereClause ||
		select->groupClause || select->havingClause || select->windowClause || select->valuesLists ||
		select->sortClause || select->limitOffset || select->limitCount || select->lockingClause ||
		select->withClause || select->op != SETOP_NONE)
		expression_refuse("It goes on after the expression.");
	target = linitial_node(ResTarget, select->targetList);
	if (target->name != NULL || target->indirection != NIL)
		expression_refuse("It has a name.");
	if (IsA(target->val, ColumnRef) && IsA(llast(((ColumnRef *) target->val)->fields), A_Star))
		expression_refuse("A star stands for several columns.");
	return target->val;
}

/*
 * Convert the expression to the type that is wanted, as an assignment would.
 */
static Node *
expression_coerce(ParseState *pstate, Node *expr, const char *typename)
{
	Oid			want;
	int32		typmod;
	Oid			have = exprType(expr);
	Node	   *result;

	cutover_parse_type_compat(typename, &want, &typmod);
	/* no length is enforced here: a value too long is new's to refuse */
	result = coerce_to_target_type(pstate, expr, have, want, -1, COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST, -1);
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the expression is of type %s, where %s is needed", format_type_be(have), format_type_be(want)),
				 errdetail("There is no assignment from the one type to the other."),
				 errhint("Add a cast: (...)::%s.", format_type_be(want))));
	return result;
}

/*
 * Refuse system columns: they mean nothing on new.
 */
static void
expression_check_columns(Node *expr)
{
	Bitmapset  *attnums = NULL;
	int			x = -1;

	pull_varattnos(expr, 1, &attnums);
	while ((x = bms_next_member(attnums, x)) >= 0)
	{
		AttrNumber	attnum = x + FirstLowInvalidHeapAttributeNumber;

		if (attnum < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("an expression cannot use system columns"),
					 errdetail("They say where a row is on old, which means nothing on new."),
					 errhint("Use the columns of the table.")));
	}
}

/*
 * Parse, resolve and check; returns the node tree.
 */
static Node *
expression_compile(Relation rel, const char *text, const char *typename)
{
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *nsitem;
	Node	   *expr;

	pstate->p_sourcetext = text;
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL, false, true);
	addNSItemToQuery(pstate, nsitem, false, true, true);
	/* of all kinds this one's messages fit: "... in transform expression" */
	expr = transformExpr(pstate, expression_parse(text), EXPR_KIND_ALTER_COL_TRANSFORM);
	if (typename != NULL)
		expr = expression_coerce(pstate, expr, typename);
	else if (exprType(expr) == UNKNOWNOID)
		expr = coerce_to_target_type(pstate, expr, UNKNOWNOID, TEXTOID, -1,
									 COERCION_IMPLICIT, COERCE_IMPLICIT_CAST, -1);
	assign_expr_collations(pstate, expr);
	expression_check_columns(expr);
	if (contain_volatile_functions(expr))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an expression cannot use volatile functions"),
				 errdetail("It is evaluated again whenever a row is copied, compared or repaired, and must give the same."),
				 errhint("Use immutable functions of the row's columns.")));
	return expr;
}

/*
 * cutover._compile_expression(rel regclass, expr text, expected_type text, what text)
 * RETURNS pg_node_tree
 */
Datum
cutover_compile_expression(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	char	   *typename = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	ExpressionSource source;
	ErrorContextCallback callback;
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	Node	   *volatile expr = NULL;
	int			level = NewGUCNestLevel();

	source.text = text_to_cstring(PG_GETARG_TEXT_PP(1));
	source.what = PG_ARGISNULL(3) ? "a column" : text_to_cstring(PG_GETARG_TEXT_PP(3));
	rel = table_open(relid, AccessShareLock);
	source.relname = RelationGetRelationName(rel);
	if (cutover_caller_path != NULL)
		(void) set_config_option("search_path", cutover_caller_path, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);

	callback.callback = expression_error_context;
	callback.arg = &source;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	PG_TRY();
	{
		expr = expression_compile(rel, source.text, typename);
	}
	PG_CATCH();
	{
		expression_rethrow(&source, context);
	}
	PG_END_TRY();
	error_context_stack = callback.previous;

	AtEOXact_GUC(true, level);
	table_close(rel, NoLock);
	PG_RETURN_TEXT_P(cstring_to_text(nodeToString(expr)));
}

/*
 * cutover._expression_attnums(expr pg_node_tree) RETURNS int2[]: the columns
 * that a compiled expression reads, 0 for the whole row.
 */
Datum
cutover_expression_attnums(PG_FUNCTION_ARGS)
{
	Node	   *expr = stringToNode(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	Bitmapset  *attnums = NULL;
	Datum	   *elems;
	int			n = 0;
	int			x = -1;

	pull_varattnos(expr, 1, &attnums);
	elems = palloc(sizeof(Datum) * Max(bms_num_members(attnums), 1));
	while ((x = bms_next_member(attnums, x)) >= 0)
		elems[n++] = Int16GetDatum(x + FirstLowInvalidHeapAttributeNumber);
	PG_RETURN_ARRAYTYPE_P(construct_array(elems, n, INT2OID, sizeof(int16), true, TYPALIGN_SHORT));
}

/*
 * The column that an expression is nothing but a cast of; 0 if it is something else.
 */
static AttrNumber
expression_cast_source(Node *node)
{
	while (!IsA(node, Var))
	{
		if (IsA(node, RelabelType))
			node = (Node *) ((RelabelType *) node)->arg;
		else if (IsA(node, CoerceViaIO))
			node = (Node *) ((CoerceViaIO *) node)->arg;
		else if (IsA(node, ArrayCoerceExpr))
			node = (Node *) ((ArrayCoerceExpr *) node)->arg;
		else if (IsA(node, CoerceToDomain))
			node = (Node *) ((CoerceToDomain *) node)->arg;
		else if (IsA(node, CollateExpr))
			node = (Node *) ((CollateExpr *) node)->arg;
		else if (IsA(node, FuncExpr) && ((FuncExpr *) node)->args != NIL &&
				 (((FuncExpr *) node)->funcformat == COERCE_EXPLICIT_CAST ||
				  ((FuncExpr *) node)->funcformat == COERCE_IMPLICIT_CAST))
			node = linitial(((FuncExpr *) node)->args);
		else
			return 0;
	}
	return ((Var *) node)->varattno;
}

/*
 * _cast_source(expr, OUT attnum, OUT type): the column of which a compiled
 * expression is a cast (NULL if it is no cast), and what it gives.
 */
Datum
cutover_expression_cast_source(PG_FUNCTION_ARGS)
{
	Node	   *expr = stringToNode(TextDatumGetCString(PG_GETARG_DATUM(0)));
	AttrNumber	attnum = expression_cast_source(expr);
	TupleDesc	desc;
	Datum		values[2] = {Int16GetDatum(attnum), ObjectIdGetDatum(exprType(expr))};
	bool		nulls[2] = {attnum <= 0, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
