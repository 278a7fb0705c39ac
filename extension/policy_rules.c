/*
 * policy_rules.c - what rules and ratio say of a reader.
 *
 * Runs in the client's backend.  Rules come before the ratio, and where several
 * match the one that says old wins: whoever was kept away from new stays away.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "clients.h"
#include "compat.h"
#include "guc.h"
#include "policy_private.h"

#define ERROR_INDEX "_apply_error_target_id_direction_table_id_key_key"

/* What the visitors fill. */
typedef struct PolicyFill
{
	CutoverPolicy *policy;
	int32		target_id;
	List	   *roots;			/* oids of tables, and in the same order ... */
	List	   *table_ids;
} PolicyFill;

/*
 * Visitor: a row of _table.
 */
static bool
policy_visit_table(Relation rel, HeapTuple tuple, void *arg)
{
	PolicyFill *fill = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	int32		table_id = DatumGetInt32(cutover_tracked_attr(tuple, desc, "table_id", &isnull));
	char	   *phase = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "phase", &isnull));

	fill->roots = lappend_oid(fill->roots, DatumGetObjectId(cutover_tracked_attr(tuple, desc, "old_table", &isnull)));
	fill->table_ids = lappend_int(fill->table_ids, table_id);
	if (strcmp(phase, "synced") != 0)
		fill->policy->not_synced = lappend_int(fill->policy->not_synced, table_id);
	pfree(phase);
	return true;
}

/*
 * Visitor of _apply_error: is there a row that new has rejected?
 */
static bool
policy_visit_error(Relation rel, HeapTuple tuple, void *arg)
{
	bool		isnull;
	char	   *direction = TextDatumGetCString(cutover_tracked_attr(tuple, RelationGetDescr(rel), "direction", &isnull));
	bool		forward = strcmp(direction, "forward") == 0;

	pfree(direction);
	*(bool *) arg |= forward;
	return !forward;
}

/*
 * Visitor of _apply_error: the same for a schema change.
 */
static bool
policy_visit_ddl_error(Relation rel, HeapTuple tuple, void *arg)
{
	bool		isnull;

	(void) cutover_tracked_attr(tuple, RelationGetDescr(rel), "table_id", &isnull);
	return isnull ? policy_visit_error(rel, tuple, arg) : true;
}

/*
 * Which tables new lacks a row of.  There may be many such rows, so they are
 * not all looked at.
 */
static void
policy_fill_rejected(PolicyFill *fill)
{
	bool		any = false;
	ListCell   *lc;

	cutover_tracked_scan("_apply_error", ERROR_INDEX, "target_id", INT4OID, Int32GetDatum(fill->target_id),
						 policy_visit_error, &any);
	if (!any)
		return;
	foreach(lc, fill->table_ids)
	{
		bool		rejected = false;

		cutover_tracked_scan("_apply_error", "_apply_error_table_id_idx", "table_id", INT4OID,
							 Int32GetDatum(lfirst_int(lc)), policy_visit_error, &rejected);
		if (rejected)
			fill->policy->rejected = lappend_int(fill->policy->rejected, lfirst_int(lc));
	}
	/* those of tables are many, if anything is */
	if (fill->policy->rejected == NIL)
		cutover_tracked_scan("_apply_error", ERROR_INDEX, "target_id", INT4OID, Int32GetDatum(fill->target_id),
							 policy_visit_ddl_error, &fill->policy->all_rejected);
}

/*
 * The tables that a rule names, by their ids.  One that has left the migration
 * is passed over.
 */
static List *
policy_rule_tables(PolicyFill *fill, ArrayType *oids)
{
	int			n = ArrayGetNItems(ARR_NDIM(oids), ARR_DIMS(oids));
	List	   *table_ids = NIL;

	for (int i = 0; i < n; i++)
	{
		ListCell   *root,
				   *table_id;

		forboth(root, fill->roots, table_id, fill->table_ids)
			if (lfirst_oid(root) == ((Oid *) ARR_DATA_PTR(oids))[i])
				table_ids = lappend_int(table_ids, lfirst_int(table_id));
	}
	return table_ids;
}

/*
 * Visitor: a row of _rule.
 */
static bool
policy_visit_rule(Relation rel, HeapTuple tuple, void *arg)
{
	PolicyFill *fill = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	PolicyRule *rule = palloc0(sizeof(PolicyRule));
	bool		isnull;
	Datum		value;
	char	   *read_from = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "read_from", &isnull));

	rule->to_new = strcmp(read_from, "new") == 0;
	value = cutover_tracked_attr(tuple, desc, "application", &isnull);
	if (!isnull)
		rule->application = TextDatumGetCString(value);
	value = cutover_tracked_attr(tuple, desc, "role", &isnull);
	if (!isnull)
		rule->role = DatumGetObjectId(value);
	value = cutover_tracked_attr(tuple, desc, "client", &isnull);
	if (!isnull)
		rule->client = (inet *) PG_DETOAST_DATUM_COPY(value);
	value = cutover_tracked_attr(tuple, desc, "tables", &isnull);
	rule->any_table = isnull;
	if (!isnull)
		rule->table_ids = policy_rule_tables(fill, DatumGetArrayTypeP(value));
	if (rule->to_new)
		fill->policy->rules = lappend(fill->policy->rules, rule);
	else
		fill->policy->rules = lcons(rule, fill->policy->rules);
	return true;
}

/*
 * Read the configuration.
 */
static void
policy_fill(CutoverPolicy *policy, int32 target_id)
{
	PolicyFill	fill = {.policy = policy, .target_id = target_id};
	MemoryContext old;

	MemoryContextReset(policy->cxt);
	policy->rules = policy->not_synced = policy->rejected = NIL;
	policy->all_rejected = false;
	old = MemoryContextSwitchTo(policy->cxt);
	cutover_tracked_scan("_table", "_table_target_id_idx", "target_id", INT4OID, Int32GetDatum(target_id),
						 policy_visit_table, &fill);
	cutover_tracked_scan("_rule", "_rule_pkey", "target_id", INT4OID, Int32GetDatum(target_id),
						 policy_visit_rule, &fill);
	policy_fill_rejected(&fill);
	MemoryContextSwitchTo(old);
}

/*
 * The policy of a target.
 */
CutoverPolicy *
cutover_policy_get(CutoverTarget *target)
{
	CutoverPolicy *policy = target->policy;

	if (policy == NULL)
	{
		policy = MemoryContextAllocZero(TopMemoryContext, sizeof(CutoverPolicy));
		policy->cxt = AllocSetContextCreate(TopMemoryContext, "cutover policy", ALLOCSET_SMALL_SIZES);
		policy->lxid = InvalidLocalTransactionId;
		target->policy = policy;
	}
	for (int tries = 0; policy->generation != cutover_tracked_generation() && tries < 10; tries++)
	{
		/* what arrives while we read has it done again */
		uint64		before = cutover_tracked_generation();

		policy->generation = 0;
		policy_fill(policy, target->target_id);
		policy->generation = before;
	}
	return policy;
}

/*
 * Does a rule speak of this reader?
 */
static bool
policy_rule_concerns(const PolicyRule *rule, const PolicyReader *reader)
{
	if (rule->application != NULL &&
		(reader->application == NULL || strcmp(rule->application, reader->application) != 0))
		return false;
	/* a superuser is not, for that, a member of everything */
	if (OidIsValid(rule->role) &&
		!is_member_of_role_nosuper(reader->session_role, rule->role) &&
		!is_member_of_role_nosuper(reader->current_role, rule->role))
		return false;
	if (rule->client != NULL)
	{
		if (reader->client == NULL || ip_family(reader->client) != ip_family(rule->client))
			return false;
		if (!DatumGetBool(DirectFunctionCall2(network_subeq, InetPGetDatum(reader->client), InetPGetDatum(rule->client))))
			return false;
	}
	return true;
}

/*
 * Does a rule speak of a statement that reads these tables?  It says old if any
 * table has to stay, and new only if all may go.  In a transaction with one
 * snapshot it is not the statement that counts, but all that may follow.
 */
static bool
policy_rule_covers(const PolicyRule *rule, List *table_ids)
{
	ListCell   *lc;

	if (rule->any_table)
		return true;
	if (IsolationUsesXactSnapshot())
		return !rule->to_new;
	foreach(lc, table_ids)
		if (list_member_int(rule->table_ids, lfirst_int(lc)) != rule->to_new)
			return !rule->to_new;
	return rule->to_new && table_ids != NIL;
}

/*
 * What the session, the rules, the ratio want.
 */
int
cutover_policy_wish(CutoverTarget *target, CutoverPolicy *policy, const PolicyReader *reader, List *table_ids)
{
	ListCell   *lc;

	if (reader->read_from != CUTOVER_READ_FROM_AUTO)
		return reader->read_from == CUTOVER_READ_FROM_NEW ? POLICY_NEW : CUTOVER_WHY_INDEX_READ_FROM;
	foreach(lc, policy->rules)
	{
		PolicyRule *rule = lfirst(lc);

		if (policy_rule_concerns(rule, reader) && policy_rule_covers(rule, table_ids))
			return rule->to_new ? POLICY_NEW : CUTOVER_WHY_INDEX_RULE;
	}
	if (target->read_ratio > 0 && cutover_clients_bucket(reader->hash, target->target_id) < target->read_ratio)
		return POLICY_NEW;
	return CUTOVER_WHY_INDEX_RATIO;
}
