/*
 * forward_local.c - what a transaction with forwarded writes does on old.
 *
 * Two databases don't commit at once: a transaction that writes on both is
 * refused, unless the user accepts that.  And what it has written on new and not
 * committed nobody sees on old, so its statements must not read there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "capture.h"
#include "fence.h"
#include "forward.h"
#include "guc.h"
#include "route_scan.h"

/* What this transaction has written to on old. */
static LocalTransactionId local_lxid = InvalidLocalTransactionId;
static Oid	local_relid = InvalidOid;

/* The target whose tables it has written to on new. */
static LocalTransactionId remote_lxid = InvalidLocalTransactionId;
static int32 remote_target = 0;

/*
 * Refuse a transaction that writes in two places.
 */
static void
local_refuse_mixed(Oid relid, Oid other)
{
	if (cutover_guc_allow_mixed_transactions)
		return;
	ereport(ERROR,
			errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			errmsg("cannot write to table %s in a transaction that also writes to another database",
				   quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid))),
			OidIsValid(other) ? errdetail("The transaction has written to table %s, which is elsewhere.",
										  quote_qualified_identifier(get_namespace_name(get_rel_namespace(other)), get_rel_name(other))) :
			errdetail("The transaction has written to tables that have moved to new."),
			errhint("Use two transactions; or set \"cutover.allow_mixed_transactions\" if you accept that the two commits are not one."));
}

/*
 * About to write to a table on new.
 */
void
cutover_forward_check_mixed(CutoverTarget *target, Oid relid)
{
	LocalTransactionId lxid = cutover_my_lxid_compat();

	if (local_lxid == lxid)
		local_refuse_mixed(relid, local_relid);
	if (remote_lxid == lxid && remote_target != target->target_id)
		local_refuse_mixed(relid, InvalidOid);
	remote_lxid = lxid;
	remote_target = target->target_id;
}

/*
 * About to write to a table on old.
 */
static void
local_note_write(Oid relid)
{
	RouteTable *table;

	if (get_rel_persistence(relid) == RELPERSISTENCE_TEMP || get_rel_namespace(relid) == get_namespace_oid("cutover", true) ||
		IsCatalogNamespace(get_rel_namespace(relid)))
		return;
	/* those under migration are the fence's business */
	table = cutover_route_table(relid);
	if (table->known)
		return;
	if (remote_lxid == cutover_my_lxid_compat() && cutover_tracked_met(remote_target) &&
		cutover_tracked_met(remote_target)->forwarding == remote_lxid)
		local_refuse_mixed(relid, InvalidOid);
	local_lxid = cutover_my_lxid_compat();
	local_relid = relid;
}

/*
 * About to have old answer.
 */
void
cutover_forward_check_old(int32 target_id, Oid relid)
{
	if (!cutover_forward_under_way(target_id))
		return;
	ereport(ERROR,
			errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			errmsg("cannot read from old in a transaction that works on new"),
			OidIsValid(relid) ? errdetail("The statement reads table %s, and can't run on new. Old does not see what the transaction has written.",
										  quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid))) :
			errdetail("The statement can't run on new, and old does not see what the transaction has written."),
			errhint("EXPLAIN and cutover.read_stats say why it can't. Run it in another transaction, or connect to new."));
}

/*
 * A statement starts, and some target forwards writes.
 */
void
cutover_forward_check_start(QueryDesc *desc)
{
	PlannedStmt *plan = desc->plannedstmt;
	ListCell   *lc;

	if (cutover_route_reads_new(desc->planstate) || cutover_capture_disabled || cutover_route_forbidden() || InNoForceRLSOperation())
		return;
	foreach(lc, plan->resultRelations)
	{
		Oid			relid = rt_fetch(lfirst_int(lc), plan->rtable)->relid;

		/* the fence refuses it, and says more */
		if (cutover_route_table(relid)->known)
			return;
		local_note_write(relid);
	}
	foreach(lc, plan->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);
		RouteTable *table;
		CutoverTarget *target;

		if (rte->rtekind != RTE_RELATION || rte->relkind == RELKIND_VIEW || rte->relkind == RELKIND_COMPOSITE_TYPE)
			continue;
		table = cutover_route_table(rte->relid);
		if (!table->known)
			continue;
		target = cutover_tracked_target(table->target_id);
		if (!cutover_policy_is_forward(target))
			continue;
		cutover_forward_check_old(table->target_id, rte->relid);
		/* a lock on old keeps nobody from anything */
		if (plan->rowMarks != NIL && plan->commandType == CMD_SELECT)
			cutover_fence_refuse(target, rte->relid);
	}
}

/*
 * A utility command starts: one that brings rows.
 */
void
cutover_forward_check_utility(Node *command)
{
	CopyStmt   *copy = (CopyStmt *) command;
	Oid			relid;

	if (!IsA(command, CopyStmt) || !copy->is_from || copy->relation == NULL)
		return;
	relid = RangeVarGetRelid(copy->relation, NoLock, true);
	if (OidIsValid(relid))
		local_note_write(relid);
}
