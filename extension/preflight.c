/*
 * preflight.c - what a compiled expression is made of.
 *
 * Runs in a client's backend.  Nothing is evaluated here.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "nodes/bitmapset.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(cutover_expression_info);

/*
 * cutover._expression_info(expr): result type and modifier, and the columns
 * that it reads; 0 among them is the whole row.
 */
Datum
cutover_expression_info(PG_FUNCTION_ARGS)
{
	Node	   *expr = stringToNode(TextDatumGetCString(PG_GETARG_DATUM(0)));
	TupleDesc	desc;
	Bitmapset  *used = NULL;
	Datum	   *attnums;
	int			n = 0;
	int			member = -1;
	Datum		values[3];
	bool		nulls[3] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	pull_varattnos(expr, 1, &used);
	attnums = palloc(Max(bms_num_members(used), 1) * sizeof(Datum));
	while ((member = bms_next_member(used, member)) >= 0)
		attnums[n++] = Int16GetDatum((int16) (member + FirstLowInvalidHeapAttributeNumber));

	values[0] = ObjectIdGetDatum(exprType(expr));
	values[1] = Int32GetDatum(exprTypmod(expr));
	values[2] = PointerGetDatum(construct_array(attnums, n, INT2OID, sizeof(int16), true, TYPALIGN_SHORT));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
