/*
 * policy_stats.c - what became of reads, and whether new is well enough for more.
 *
 * Runs in the client's backend; the counters are shared by all backends, and
 * begin with the server.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "guc.h"
#include "policy_private.h"

PG_FUNCTION_INFO_V1(cutover_read_counters);

#define READ_COLS 6

#define POLICY_WHY_NAME(symbol, name) name,
const char *const cutover_policy_why[CUTOVER_WHYS] = {CUTOVER_WHY_LIST(POLICY_WHY_NAME)};

StaticAssertDecl((int) CUTOVER_READ_OUTCOMES + (int) CUTOVER_WHYS <= CUTOVER_READ_COUNTERS, "more counters than places");

/*
 * The number of a reason.  Nearly always it is the very string of the list.
 */
static int
policy_why_index(const char *reason)
{
	for (int i = 0; i < CUTOVER_WHYS; i++)
		if (reason == cutover_policy_why[i])
			return i;
	for (int i = 0; i < CUTOVER_WHYS; i++)
		if (strcmp(reason, cutover_policy_why[i]) == 0)
			return i;
	return CUTOVER_WHYS - 1;
}

/*
 * New has answered: it is well again.
 */
static void
policy_is_well(CutoverSlot *slot)
{
	if (pg_atomic_read_u32(&slot->read_failures) != 0)
		pg_atomic_write_u32(&slot->read_failures, 0);
	if (pg_atomic_read_u64(&slot->read_breaker) != 0)
		pg_atomic_write_u64(&slot->read_breaker, 0);
}

/*
 * Count what became of a read.
 */
void
cutover_policy_count(CutoverTarget *target, CutoverReadOutcome outcome, const char *reason)
{
	CutoverPolicy *policy = target->policy;
	CutoverSlot *slot = cutover_policy_slot(target);

	if (outcome == CUTOVER_READ_ROUTED)
	{
		if (policy != NULL)
			policy->answered = true;
	}
	else if (policy != NULL && (outcome != CUTOVER_READ_KEPT || !policy->answered))
	{
		/* new was chosen and did not answer: the next reads of the transaction go where this one went */
		if (outcome != CUTOVER_READ_KEPT || IsolationUsesXactSnapshot())
			policy->side = CUTOVER_SIDE_OLD;
		if (outcome != CUTOVER_READ_KEPT)
			policy->automatic = true;
	}
	if (slot == NULL)
		return;
	pg_atomic_fetch_add_u64(&slot->reads[outcome], 1);
	if (outcome == CUTOVER_READ_TIMEOUT)
		pg_atomic_fetch_add_u64(&slot->reads[CUTOVER_READ_FALLBACK], 1);
	if (outcome == CUTOVER_READ_ROUTED)
		policy_is_well(slot);
	else if (reason != NULL)
		pg_atomic_fetch_add_u64(&slot->reads[CUTOVER_READ_OUTCOMES + policy_why_index(reason)], 1);
}

/*
 * Is this error new's fault, rather than the statement's?
 */
static bool
policy_blames_new(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_DATA_EXCEPTION:
		case ERRCODE_CARDINALITY_VIOLATION:
		case ERRCODE_RAISE_EXCEPTION:
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED:
			return false;
		default:
			/* class 40: it is asked to try again */
			return ERRCODE_TO_CATEGORY(sqlstate) != ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE);
	}
}

/*
 * New did not answer.  After so many times in a row reads stay on old, and an
 * attempt that fails has them wait once more.
 */
void
cutover_policy_failed(CutoverTarget *target, int sqlstate)
{
	CutoverSlot *slot = cutover_policy_slot(target);

	if (slot == NULL || !policy_blames_new(sqlstate))
		return;
	if (pg_atomic_add_fetch_u32(&slot->read_failures, 1) >= (uint32) cutover_guc_breaker_failures)
		pg_atomic_write_u64(&slot->read_breaker, (uint64) GetCurrentTimestamp());
}

/*
 * Do reads stay on old?  When the time is over one reader, and one only, gets
 * no for an answer and tries; should it never say how that went, another does after the same time.
 */
bool
cutover_policy_breaker_holds(CutoverSlot *slot)
{
	uint64		since = pg_atomic_read_u64(&slot->read_breaker);
	TimestampTz now;

	if (since == 0)
		return false;
	now = GetCurrentTimestamp();
	if (!TimestampDifferenceExceeds((TimestampTz) since, now, cutover_guc_breaker_cooldown * 1000))
		return true;
	return !pg_atomic_compare_exchange_u64(&slot->read_breaker, &since, (uint64) now);
}

/*
 * The reasons that occurred, as text of a JSON object.
 */
static char *
policy_reasons(CutoverSlot *slot)
{
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 0; i < CUTOVER_WHYS; i++)
	{
		uint64		n = pg_atomic_read_u64(&slot->reads[CUTOVER_READ_OUTCOMES + i]);

		if (n > 0)
			appendStringInfo(&json, "%s\"%s\": " UINT64_FORMAT, json.len > 0 ? ", " : "", cutover_policy_why[i], n);
	}
	return psprintf("{%s}", json.data);
}

/*
 * cutover._read_counters(target_id int, OUT routed bigint, OUT kept bigint, OUT fallbacks bigint,
 * OUT timeouts bigint, OUT reasons text, OUT breaker_since timestamptz)
 */
Datum
cutover_read_counters(PG_FUNCTION_ARGS)
{
	CutoverSlot *slot = cutover_shmem_slot(PG_GETARG_INT32(0), false);
	TupleDesc	desc;
	Datum		values[READ_COLS];
	bool		nulls[READ_COLS] = {0};
	uint64		since;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (slot == NULL)
		PG_RETURN_NULL();
	for (int i = 0; i < CUTOVER_READ_OUTCOMES; i++)
		values[i] = Int64GetDatum((int64) pg_atomic_read_u64(&slot->reads[i]));
	values[4] = CStringGetTextDatum(policy_reasons(slot));
	since = pg_atomic_read_u64(&slot->read_breaker);
	values[5] = TimestampTzGetDatum((TimestampTz) since);
	nulls[5] = since == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
