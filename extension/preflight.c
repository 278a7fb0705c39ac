/*
 * preflight.c - the type of a compiled expression.
 *
 * Runs in a client's backend.  Nothing is evaluated here.
 */
#include "postgres.h"

#include "funcapi.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(cutover_expression_type);

/*
 * cutover._expression_type(expr): result type and modifier.
 */
Datum
cutover_expression_type(PG_FUNCTION_ARGS)
{
	Node	   *expr = stringToNode(TextDatumGetCString(PG_GETARG_DATUM(0)));
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = ObjectIdGetDatum(exprType(expr));
	values[1] = Int32GetDatum(exprTypmod(expr));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
