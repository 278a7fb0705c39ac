/*
 * comparer_equal.c - two texts of one type: other bytes, or another value?
 *
 * Runs in a comparer, in a transaction.  The equality is that of the type's
 * default btree or hash operator class.  Types without one (json, xml, box, whose
 * = compares areas) are what they print.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/typcache.h"

#include "comparer.h"

/*
 * The value of a text.
 */
static Datum
equal_input(const char *text, Oid type)
{
	Oid			in;
	Oid			ioparam;

	getTypeInputInfo(type, &in, &ioparam);
	return OidInputFunctionCall(in, (char *) text, ioparam, -1);
}

/*
 * Negative, zero or positive by the type's order, or its equality alone.
 */
static int
equal_compare(const char *a, const char *b, Oid type, Oid collation, bool order)
{
	TypeCacheEntry *entry = lookup_type_cache(type, order ? TYPECACHE_CMP_PROC_FINFO : TYPECACHE_EQ_OPR_FINFO);
	Oid			function = order ? entry->cmp_proc_finfo.fn_oid : entry->eq_opr_finfo.fn_oid;

	if (!OidIsValid(function))
		return order ? 0 : 1;
	if (!OidIsValid(collation) && OidIsValid(get_typcollation(type)))
		collation = DEFAULT_COLLATION_OID;
	if (order)
		return DatumGetInt32(FunctionCall2Coll(&entry->cmp_proc_finfo, collation, equal_input(a, type), equal_input(b, type)));
	return !DatumGetBool(FunctionCall2Coll(&entry->eq_opr_finfo, collation, equal_input(a, type), equal_input(b, type)));
}

/*
 * The same for a type of the user's, of which new may have values that old does not know.
 */
static int
equal_compare_guarded(const char *a, const char *b, Oid type, Oid collation)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile int result = 1;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		result = equal_compare(a, b, type, collation, false);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		/* what can't be read is another value; what ends us is no data error */
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return result;
}

/*
 * Are two different texts of a column the same value?
 */
bool
cutover_compare_same_value(const CompareColumn *col, const char *a, const char *b)
{
	if (!OidIsValid(col->equal_type) || a == NULL || b == NULL)
		return false;
	if (col->equal_type >= FirstNormalObjectId)
		return equal_compare_guarded(a, b, col->equal_type, col->equal_collation) == 0;
	return equal_compare(a, b, col->equal_type, col->equal_collation, false) == 0;
}

/*
 * Is version a later than b?
 */
bool
cutover_compare_is_later(const CompareColumn *col, const char *a, const char *b)
{
	if (!OidIsValid(col->equal_type) || a == NULL || b == NULL)
		return false;
	return equal_compare(a, b, col->equal_type, InvalidOid, true) > 0;
}
