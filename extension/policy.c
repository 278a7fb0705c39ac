/*
 * policy.c - which side answers a read.
 *
 * Runs in the client's backend.  What the session, rules and ratio want is one
 * half (policy_rules.c); whether new may answer at this moment is the other: it has
 * to be complete, new enough, have what this session wrote, and be well.
 *
 * A transaction is the unit.  In READ COMMITTED it may leave new for old, which
 * shows it nothing older, but never goes from old to new, unless the
 * session itself says so by cutover.read_from.  With one snapshot for the whole
 * transaction it stays where its first read was.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "clients.h"
#include "compat.h"
#include "guc.h"
#include "policy_private.h"
#include "route_scan.h"

/* An idle replicator looks once a second; what it saw that long ago is the present. */
#define POLICY_IDLE_US (2 * USECS_PER_SEC)

static ExecutorStart_hook_type previous_start = NULL;
static ProcessUtility_hook_type previous_utility = NULL;
static uint64 prepared_commits = 0; /* COMMIT PREPARED of this session */
static LocalTransactionId imported = InvalidLocalTransactionId; /* whose snapshot is another session's */

/*
 * Do reads follow forwarded writes to new?
 */
bool
cutover_policy_is_forward(CutoverTarget *target)
{
	return target->known && target->active && target->ours && target->mode == CUTOVER_MODE_NEW_ONLY &&
		target->forward && !RecoveryInProgress();
}

/*
 * Does the transaction share its snapshot with other sessions of old?  That is
 * how a parallel dump sees one state; new has no such snapshot.
 */
static bool
policy_shares_snapshot(void)
{
	return imported == cutover_my_lxid_compat() || XactHasExportedSnapshots();
}

/*
 * May any read of this target go to new?  POLICY_NEW, or why not.
 */
static int
policy_state(CutoverTarget *target)
{
	if (!target->known || (target->mode == CUTOVER_MODE_NEW_ONLY && !target->active))
		return CUTOVER_WHY_INDEX_MODE;
	/* once new is master it does not matter whether old follows */
	if (!target->active || !target->ours || RecoveryInProgress() ||
		(target->mode != CUTOVER_MODE_NEW_ONLY && !target->running))
		return CUTOVER_WHY_INDEX_STATE;
	return target->rewound ? CUTOVER_WHY_INDEX_REWOUND : POLICY_NEW;
}

/*
 * Does new hold the tables?  With all: and every other one of the target.
 */
static int
policy_tables(CutoverPolicy *policy, List *table_ids, bool all)
{
	ListCell   *lc;

	if (policy->all_rejected || (all && policy->rejected != NIL))
		return CUTOVER_WHY_INDEX_APPLY_ERROR;
	if (all && policy->not_synced != NIL)
		return CUTOVER_WHY_INDEX_NOT_SYNCED;
	foreach(lc, table_ids)
	{
		if (list_member_int(policy->not_synced, lfirst_int(lc)))
			return CUTOVER_WHY_INDEX_NOT_SYNCED;
		if (list_member_int(policy->rejected, lfirst_int(lc)))
			return CUTOVER_WHY_INDEX_APPLY_ERROR;
	}
	return POLICY_NEW;
}

/*
 * The slot of a target; one that was given to another target does not count.
 */
CutoverSlot *
cutover_policy_slot(CutoverTarget *target)
{
	if (target->slot == NULL)
		target->slot = cutover_shmem_slot(target->target_id, true);
	if (target->slot != NULL &&
		(target->slot->target_id != target->target_id || target->slot->dboid != MyDatabaseId))
		target->slot = cutover_shmem_slot(target->target_id, true);
	return target->slot;
}

/*
 * Has the other side applied what this session committed?  Once it has, the
 * ticket is forgotten.
 */
static bool
policy_has_own(CutoverSlot *slot, uint64 *ticket)
{
	if (*ticket == 0)
		return true;
	if (*ticket == CUTOVER_TICKET_UNKNOWN)
	{
		*ticket = pg_atomic_add_fetch_u64(&slot->wanted, 1);
		cutover_shmem_wake(slot);
		return false;
	}
	if (pg_atomic_read_u64(&slot->applied) < *ticket)
		return false;
	*ticket = 0;
	return true;
}

/*
 * How far behind is new?  Microseconds, negative if unknown.  Every commit of
 * changes draws a ticket, so where all are served new has everything.
 */
static int64
policy_lag(CutoverSlot *slot)
{
	TimestampTz acked_at = cutover_shmem_acked_at(slot);
	uint64		wanted = pg_atomic_read_u64(&slot->wanted);
	int64		lag;

	if (acked_at == 0)
		return -1;
	lag = Max(GetCurrentTimestamp() - acked_at, 0);
	if (pg_atomic_read_u64(&slot->applied) >= wanted)
		lag = Max(lag - POLICY_IDLE_US, 0);
	return lag;
}

/*
 * Is new as far as this session may ask?
 */
static int
policy_freshness(CutoverTarget *target, CutoverPolicy *policy, CutoverSlot *slot)
{
	uint64		ticket = target->wrote_old;
	int64		lag;

	if (policy->seen_prepared != prepared_commits)
	{
		policy->seen_prepared = prepared_commits;
		target->wrote_old = CUTOVER_TICKET_UNKNOWN;
	}
	if (!policy_has_own(slot, &target->wrote_old))
		return CUTOVER_WHY_INDEX_OWN_WRITE;
	if (ticket != 0)
	{
		/* it may have been rejected; that was said before the ticket was served */
		AcceptInvalidationMessages();
		if (policy->generation != cutover_tracked_generation())
			(void) cutover_policy_get(cutover_tracked_target(target->target_id));
	}
	if (cutover_guc_max_read_lag < 0)
		return POLICY_NEW;
	lag = policy_lag(slot);
	return lag < 0 || lag > cutover_guc_max_read_lag * INT64CONST(1000) ? CUTOVER_WHY_INDEX_LAG : POLICY_NEW;
}

/*
 * This session, as rules see it.
 */
static PolicyReader *
policy_myself(void)
{
	static PolicyReader reader;
	static bool client_known = false;

	if (!client_known)
	{
		LOCAL_FCINFO(fcinfo, 0);
		Datum		address;

		InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
		address = inet_client_addr(fcinfo);
		if (!fcinfo->isnull)
		{
			inet	   *client = DatumGetInetPP(address);

			reader.client = MemoryContextAlloc(TopMemoryContext, VARSIZE_ANY(client));
			memcpy(reader.client, client, VARSIZE_ANY(client));
		}
		client_known = true;
	}
	reader.read_from = cutover_guc_read_from;
	reader.hash = cutover_clients_hash();
	reader.application = application_name;
	reader.session_role = GetSessionUserId();
	reader.current_role = GetOuterUserId();
	return &reader;
}

/*
 * Reads after forwarded writes: new is the one that knows.  A session may
 * insist on old once old has what it wrote.
 */
static int
policy_decide_forward(CutoverTarget *target, CutoverPolicy *policy)
{
	CutoverSlot *slot;

	if (policy_shares_snapshot())
		return CUTOVER_WHY_INDEX_ISOLATION;
	/* its snapshot is older than the switch */
	if (IsolationUsesXactSnapshot() && policy->lxid == cutover_my_lxid_compat() && policy->side == CUTOVER_SIDE_OLD)
		return CUTOVER_WHY_INDEX_TRANSACTION;
	if (cutover_guc_read_from != CUTOVER_READ_FROM_OLD)
		return POLICY_NEW;
	slot = cutover_policy_slot(target);
	if (target->wrote_new != 0 && (slot == NULL || !policy_has_own(slot, &target->wrote_new)))
		return POLICY_NEW;
	return CUTOVER_WHY_INDEX_READ_FROM;
}

/*
 * May new answer this statement, whatever the transaction has read?
 */
static int
policy_gates(CutoverTarget *target, CutoverPolicy *policy, List *table_ids)
{
	int			why = policy_state(target);
	/* with one snapshot it is where all reads to come go, too */
	bool		all = IsolationUsesXactSnapshot();
	CutoverSlot *slot;

	if (why == POLICY_NEW)
		why = policy_tables(policy, table_ids, all);
	if (why != POLICY_NEW)
		return why;
	if (IsolationIsSerializable() || policy_shares_snapshot())
		return CUTOVER_WHY_INDEX_ISOLATION;
	slot = cutover_policy_slot(target);
	if (slot == NULL)
		return CUTOVER_WHY_INDEX_NO_SHARED_MEMORY;
	if (target->mode != CUTOVER_MODE_NEW_ONLY)
	{
		why = policy_freshness(target, policy, slot);
		/* what was read may have changed meanwhile */
		if (why == POLICY_NEW)
			why = policy_tables(policy, table_ids, all);
		if (why != POLICY_NEW)
			return why;
	}
	return cutover_policy_breaker_holds(slot) ? CUTOVER_WHY_INDEX_BREAKER : POLICY_NEW;
}

/*
 * What the transaction's earlier reads leave open: POLICY_NEW with *settled,
 * if it must be new; a reason, if it must be old; POLICY_NEW otherwise.
 */
static int
policy_transaction(CutoverPolicy *policy, bool *settled)
{
	*settled = false;
	if (policy->lxid != cutover_my_lxid_compat())
		return POLICY_NEW;
	if (IsolationUsesXactSnapshot())
	{
		*settled = policy->side == CUTOVER_SIDE_NEW;
		return *settled ? POLICY_NEW : CUTOVER_WHY_INDEX_TRANSACTION;
	}
	if (policy->side == CUTOVER_SIDE_OLD && policy->automatic && cutover_guc_read_from == CUTOVER_READ_FROM_AUTO)
		return CUTOVER_WHY_INDEX_TRANSACTION;
	return POLICY_NEW;
}

/*
 * The side of a statement: POLICY_NEW or why not.
 */
static int
policy_choose(CutoverTarget *target, CutoverPolicy *policy, List *table_ids)
{
	bool		settled;
	int			why;

	/* what the transaction wrote is on old only */
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return CUTOVER_WHY_INDEX_TRANSACTION_WROTE;
	why = policy_transaction(policy, &settled);
	/* a table that is copied afresh is empty there, for every snapshot */
	if (settled)
		why = policy_tables(policy, table_ids, false);
	if (settled || why != POLICY_NEW)
		return why;
	why = cutover_policy_wish(target, policy, policy_myself(), table_ids);
	return why == POLICY_NEW ? policy_gates(target, policy, table_ids) : why;
}

/*
 * The side for a statement.
 */
CutoverSide
cutover_policy_decide(CutoverTarget *target, List *table_ids, const char **why_not)
{
	LocalTransactionId lxid = cutover_my_lxid_compat();
	CutoverPolicy *policy;
	CutoverSide side;
	int			why;

	cutover_clients_enter();
	/* in a transaction that has its locks nobody else looks */
	AcceptInvalidationMessages();
	(void) cutover_tracked_target(target->target_id);
	policy = cutover_policy_get(target);
	if (cutover_policy_is_forward(target))
		why = policy_decide_forward(target, policy);
	else
		why = policy_choose(target, policy, table_ids);
	side = why == POLICY_NEW ? CUTOVER_SIDE_NEW : CUTOVER_SIDE_OLD;
	*why_not = why == POLICY_NEW ? NULL : cutover_policy_why[why];
	if (policy->lxid != lxid)
		policy->answered = false;
	policy->lxid = lxid;
	policy->side = side;
	policy->automatic = cutover_guc_read_from == CUTOVER_READ_FROM_AUTO;
	return side;
}

/*
 * Was new right to answer?  A fresh copy begins with an empty table there, and
 * that is said before it is done: so if nothing has been said by the time when new has
 * answered, and so holds its locks or is done, it was not too late.
 */
bool
cutover_policy_confirm(CutoverTarget *target, List *table_ids, const char **why_not)
{
	int			why;

	AcceptInvalidationMessages();
	(void) cutover_tracked_target(target->target_id);
	if (target->mode == CUTOVER_MODE_NEW_ONLY)
		return true;
	why = policy_tables(cutover_policy_get(target), table_ids, false);
	if (why == POLICY_NEW && target->rewound)
		why = CUTOVER_WHY_INDEX_REWOUND;
	*why_not = why == POLICY_NEW ? NULL : cutover_policy_why[why];
	return why == POLICY_NEW;
}

/*
 * Where another session's next read goes, as far as can be told.
 */
int
cutover_policy_side_of(CutoverTarget *target, const PolicyReader *reader)
{
	int			why;

	if (cutover_policy_is_forward(target))
		return reader->read_from == CUTOVER_READ_FROM_OLD ? CUTOVER_WHY_INDEX_READ_FROM : POLICY_NEW;
	why = policy_state(target);
	return why == POLICY_NEW ? cutover_policy_wish(target, cutover_policy_get(target), reader, NIL) : why;
}

/*
 * May the local plan answer instead of new?
 */
bool
cutover_policy_may_fall_back(CutoverTarget *target)
{
	CutoverPolicy *policy = target->policy;
	CutoverSlot *slot = cutover_policy_slot(target);
	int64		lag;

	/* one snapshot, and it is new's */
	if (policy != NULL && policy->lxid == cutover_my_lxid_compat() && policy->answered && IsolationUsesXactSnapshot())
		return false;
	if (target->wrote_new != 0 && (slot == NULL || !policy_has_own(slot, &target->wrote_new)))
		return false;
	if (!cutover_policy_is_forward(target))
		return true;
	/* old is the one that follows, and no longer the one that is asked */
	lag = slot != NULL ? policy_lag(slot) : -1;
	return cutover_guc_max_read_lag < 0 || (lag >= 0 && lag <= cutover_guc_max_read_lag * INT64CONST(1000));
}

/*
 * A transaction's changes are visible on old.  The ticket is drawn after that,
 * so the snapshot that serves it sees them.
 */
void
cutover_policy_committed(int32 target_id, CutoverSlot *slot)
{
	CutoverTarget *target = cutover_tracked_met(target_id);

	if (target == NULL)
		return;
	target->wrote_old = slot == NULL || slot->target_id != target_id ? CUTOVER_TICKET_UNKNOWN :
		pg_atomic_add_fetch_u64(&slot->wanted, 1);
	cutover_clients_wrote(target_id, target->epoch);
}

/*
 * A transaction's forwarded changes are visible on new.  The ticket is drawn when
 * it is asked for: to have each commit wake the replicator would make old follow in
 * steps of one transaction, each with a commit of its own on new.
 */
void
cutover_policy_committed_new(CutoverTarget *target)
{
	target->wrote_new = CUTOVER_TICKET_UNKNOWN;
	cutover_clients_wrote(target->target_id, target->epoch);
}

/*
 * Old answers in a transaction with one snapshot: if this is its first read, it stays there.
 */
static void
policy_pin(CutoverTarget *target)
{
	CutoverPolicy *policy = cutover_policy_get(target);

	if (policy->lxid == cutover_my_lxid_compat())
		return;
	policy->lxid = cutover_my_lxid_compat();
	policy->side = CUTOVER_SIDE_OLD;
	policy->automatic = true;
	policy->answered = false;
}

/*
 * A statement that old answers in a transaction with one snapshot, also one
 * that nobody asks about any more because its plan is kept.
 */
static void
policy_start(QueryDesc *desc, int eflags)
{
	ListCell   *lc;

	if (previous_start)
		previous_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
	if (!IsolationUsesXactSnapshot() || (eflags & EXEC_FLAG_EXPLAIN_ONLY) || MyBackendType != B_BACKEND ||
		!cutover_tracked_any() || cutover_route_reads_new(desc->planstate))
		return;
	foreach(lc, desc->plannedstmt->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);
		RouteTable *table;

		if (rte->rtekind != RTE_RELATION || rte->relkind == RELKIND_VIEW)
			continue;
		table = cutover_route_table(rte->relid);
		if (table->known)
			policy_pin(cutover_tracked_target(table->target_id));
	}
}

/*
 * A prepared transaction does not say what it changed: after its commit all
 * targets count as written to.  And a snapshot may come from another session.
 */
static void
policy_utility(PlannedStmt *pstmt, const char *query, bool readonly_tree, ProcessUtilityContext context,
			   ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (IsA(pstmt->utilityStmt, TransactionStmt) &&
		((TransactionStmt *) pstmt->utilityStmt)->kind == TRANS_STMT_COMMIT_PREPARED)
		prepared_commits++;
	if (IsA(pstmt->utilityStmt, VariableSetStmt) &&
		((VariableSetStmt *) pstmt->utilityStmt)->kind == VAR_SET_MULTI &&
		strcmp(((VariableSetStmt *) pstmt->utilityStmt)->name, "TRANSACTION SNAPSHOT") == 0)
		imported = cutover_my_lxid_compat();
	if (previous_utility)
		previous_utility(pstmt, query, readonly_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, readonly_tree, context, params, env, dest, qc);
}

/*
 * Set up.
 */
void
cutover_policy_init(void)
{
	previous_start = ExecutorStart_hook;
	ExecutorStart_hook = policy_start;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = policy_utility;
	cutover_clients_init();
}
