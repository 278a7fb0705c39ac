/*
 * policy.c - which side answers a read.
 *
 * Runs in the client's backend; see policy.h.
 */
#include "postgres.h"

#include "guc.h"
#include "policy.h"

#define POLICY_WHY_NAME(symbol, name) name,
const char *const cutover_policy_why[CUTOVER_WHYS] = {CUTOVER_WHY_LIST(POLICY_WHY_NAME)};

/*
 * Choose a side.
 */
CutoverSide
cutover_policy_decide(CutoverTarget *target, List *table_ids, const char **why_not)
{
	*why_not = NULL;
	if (cutover_guc_read_from == CUTOVER_READ_FROM_NEW)
		return CUTOVER_SIDE_NEW;
	*why_not = cutover_guc_read_from == CUTOVER_READ_FROM_OLD ? CUTOVER_WHY(READ_FROM) : CUTOVER_WHY(RATIO);
	return CUTOVER_SIDE_OLD;
}

/*
 * Count what became of a read.
 */
void
cutover_policy_count(CutoverTarget *target, CutoverReadOutcome outcome, const char *reason)
{
}

/*
 * New did not answer.
 */
void
cutover_policy_failed(CutoverTarget *target, int sqlstate)
{
}

/*
 * May old answer instead?
 */
bool
cutover_policy_may_fall_back(CutoverTarget *target)
{
	return true;
}

/*
 * A transaction's changes are visible on old.
 */
void
cutover_policy_committed(int32 target_id, CutoverSlot *slot)
{
}

/*
 * A transaction's forwarded changes are visible on new.
 */
void
cutover_policy_committed_new(CutoverTarget *target)
{
}

/*
 * Set up.
 */
void
cutover_policy_init(void)
{
}
