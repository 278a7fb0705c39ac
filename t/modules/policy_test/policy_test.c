/*
 * policy_test.c - asks the read policy what it would do, without a statement to route.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "policy.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(policy_test);

/*
 * policy_test(target_id int, outcome text, tables oid) returns text
 *
 * Decides for a read of these tables ("new", or the reason for old), then says how that went:
 * "keep" not at all, as a router of a statement that can't run on new, "" nothing, "count" as a router does where all is well, "fail" or "slow"
 * as one whose connection broke, or who ran out of time ("stuck" where old may not answer).
 */
Datum
policy_test(PG_FUNCTION_ARGS)
{
	CutoverTarget *target = cutover_tracked_target(PG_GETARG_INT32(0));
	char	   *outcome = text_to_cstring(PG_GETARG_TEXT_PP(1));
	List	   *tables = NIL;
	const char *why;
	int32		table_id;
	Oid			root;

	for (int i = 2; i < PG_NARGS(); i++)
		if (cutover_tracked_find(PG_GETARG_OID(i), &table_id, &root))
			tables = lappend_int(tables, table_id);
	if (strcmp(outcome, "keep") == 0)
	{
		cutover_policy_count(target, CUTOVER_READ_KEPT, CUTOVER_WHY(ROW_LOCK));
		PG_RETURN_TEXT_P(cstring_to_text(CUTOVER_WHY(ROW_LOCK)));
	}
	if (cutover_policy_decide(target, tables, &why) == CUTOVER_SIDE_OLD)
	{
		if (outcome[0] != '\0')
			cutover_policy_count(target, CUTOVER_READ_KEPT, why);
		PG_RETURN_TEXT_P(cstring_to_text(why));
	}
	if (strcmp(outcome, "count") == 0)
		cutover_policy_count(target, CUTOVER_READ_ROUTED, NULL);
	else if (outcome[0] != '\0')
	{
		bool		slow = strcmp(outcome, "slow") == 0;

		cutover_policy_failed(target, slow ? 0 : ERRCODE_CONNECTION_FAILURE);
		if (!cutover_policy_may_fall_back(target))
			PG_RETURN_TEXT_P(cstring_to_text("stuck"));
		cutover_policy_count(target, slow ? CUTOVER_READ_TIMEOUT : CUTOVER_READ_FALLBACK,
							 slow ? CUTOVER_WHY(TIMEOUT) : CUTOVER_WHY(CONNECTION));
	}
	PG_RETURN_TEXT_P(cstring_to_text("new"));
}
