/*
 * policy.h - which side answers a read of tables under migration.
 *
 * Runs in the client's backend.  Whoever routes asks once for each execution of
 * a statement, runs it where it is told, and says how it went:
 *
 *	side = cutover_policy_decide(target, table_ids, &why_not)
 *	OLD: cutover_policy_count(target, CUTOVER_READ_KEPT, why_not), run the local plan
 *	NEW: new answered, and cutover_policy_confirm(): cutover_policy_count(target, CUTOVER_READ_ROUTED, NULL)
 *		 it failed before the first row, or took too long:
 *			cutover_policy_failed(target, sqlstate)
 *			if (cutover_policy_may_fall_back(target)) count FALLBACK or TIMEOUT, run the local plan
 *			else raise new's error
 *
 * Nothing here raises an error but out of memory and what reading our tables may raise.
 */
#ifndef CUTOVER_POLICY_H
#define CUTOVER_POLICY_H

#include "nodes/pg_list.h"

#include "tracked.h"

typedef enum CutoverSide
{
	CUTOVER_SIDE_OLD,
	CUTOVER_SIDE_NEW
} CutoverSide;

typedef enum CutoverReadOutcome
{
	CUTOVER_READ_ROUTED,		/* new has answered */
	CUTOVER_READ_KEPT,			/* old answers, for a reason */
	CUTOVER_READ_FALLBACK,		/* new failed, old answers */
	CUTOVER_READ_TIMEOUT,		/* the same because new took too long */
	CUTOVER_READ_OUTCOMES
} CutoverReadOutcome;

/*
 * Reasons for which old answers, as cutover.read_stats counts them.  What is
 * not in the list is counted as the last one; further details belong in EXPLAIN.
 * Entry: symbol, name.
 */
#define CUTOVER_WHY_LIST(entry) \
	/* of the policy */ \
	entry(RATIO, "ratio")					/* not in the share of sessions that read from new */ \
	entry(RULE, "rule")						/* a rule says old */ \
	entry(READ_FROM, "read_from")			/* the session says old */ \
	entry(MODE, "mode")						/* the target is finished, or gone */ \
	entry(STATE, "state")					/* not running: idle, paused, a copy of the cluster, a standby */ \
	entry(REWOUND, "rewound")				/* new has what old lost */ \
	entry(NOT_SYNCED, "not_synced")			/* a table that is not complete on new */ \
	entry(APPLY_ERROR, "apply_error")		/* new has rejected rows of a table */ \
	entry(LAG, "lag")						/* new is further behind than cutover.max_read_lag */ \
	entry(OWN_WRITE, "own_write")			/* new does not have yet what this session committed */ \
	entry(TRANSACTION_WROTE, "transaction_wrote")	/* the transaction has written */ \
	entry(TRANSACTION, "transaction")		/* the transaction has begun to read from old */ \
	entry(ISOLATION, "isolation")			/* serializable */ \
	entry(BREAKER, "breaker")				/* new failed too often */ \
	entry(NO_SHARED_MEMORY, "no_shared_memory")		/* nobody can say how far new is */ \
	/* of the router: the statement can't run on new */ \
	entry(FUNCTION, "function")				/* volatile, or not built in */ \
	entry(ROW_LOCK, "row_lock")				/* FOR UPDATE and its kin */ \
	entry(ROW_SECURITY, "row_security") \
	entry(OTHER_TABLE, "other_table")		/* a table that is not under migration, or of another target */ \
	entry(TEMP_TABLE, "temp_table") \
	entry(MAPPING, "mapping")				/* renamed or computed columns, a row filter */ \
	entry(TYPE, "type")						/* a type or operator that is not built in */ \
	entry(SYSTEM_COLUMN, "system_column") \
	entry(MODIFYING_CTE, "modifying_cte") \
	entry(COLLATION, "collation")			/* new orders text in another way */ \
	entry(SETTINGS, "settings")				/* new does not know a setting of this session */ \
	entry(CONTEXT, "context")				/* in a utility command, a parallel worker, a restricted operation */ \
	/* why new was left for old */ \
	entry(CONNECTION, "connection")			/* new can't be reached, or the connection broke */ \
	entry(ERROR, "error")					/* new raised an error */ \
	entry(TIMEOUT, "timeout")				/* cutover.read_timeout */ \
	entry(OTHER, "other")					/* keep this one last */

#define CUTOVER_WHY_SYMBOL(symbol, name) CUTOVER_WHY_INDEX_##symbol,
enum
{
	CUTOVER_WHY_LIST(CUTOVER_WHY_SYMBOL)
	CUTOVER_WHYS
};
#undef CUTOVER_WHY_SYMBOL

/* The names, in that order; cutover_policy_why[CUTOVER_WHY_INDEX_RATIO] is "ratio". */
extern const char *const cutover_policy_why[CUTOVER_WHYS];
#define CUTOVER_WHY(symbol) (cutover_policy_why[CUTOVER_WHY_INDEX_##symbol])

/* Do writes go on to new, and reads follow? */
extern bool cutover_policy_is_forward(CutoverTarget *target);

/* Define the module's hooks and callbacks. */
extern void cutover_policy_init(void);

/*
 * The side for a statement that reads these tables (integers, all of this
 * target).  For OLD, why_not is one of the reasons above.  The answer may differ at the next
 * statement; what it owes to the transaction's earlier reads is seen to here.
 */
extern CutoverSide cutover_policy_decide(CutoverTarget *target, List *table_ids, const char **why_not);

/*
 * To be asked when new has answered, before anything of it is used: may a read of these tables still
 * be answered by new?  If not, count it as KEPT and let old answer.
 */
extern bool cutover_policy_confirm(CutoverTarget *target, List *table_ids, const char **why_not);

/*
 * Count what became of a read, also of one that nobody was asked about because it can't run on new
 * (KEPT).  Reason: for KEPT, FALLBACK and TIMEOUT one of the names above, or NULL.
 * ROUTED, once new has answered (the first row or the end), also tells the breaker that new is well;
 * FALLBACK and TIMEOUT keep the rest of the transaction on old.
 */
extern void cutover_policy_count(CutoverTarget *target, CutoverReadOutcome outcome, const char *reason);

/*
 * New did not answer.  sqlstate: of its error, 0 for a time-out, ERRCODE_CONNECTION_FAILURE
 * where there is no connection.  Errors that the statement itself is to blame for don't count against new.
 */
extern void cutover_policy_failed(CutoverTarget *target, int sqlstate);

/*
 * May the local plan answer instead?  Not where the transaction has read from
 * new in a snapshot that it must keep, nor where old lacks what this session has committed on
 * new, nor where writes are forwarded and old is too far behind.  What a transaction has written on new and not
 * committed is the caller's business.
 */
extern bool cutover_policy_may_fall_back(CutoverTarget *target);

/*
 * A transaction that changed tables of the target on old has committed.  Called
 * after it is visible; can't fail.  slot may be NULL.
 */
extern void cutover_policy_committed(int32 target_id, CutoverSlot *slot);

/*
 * A transaction's forwarded writes have committed on new.  Called after that; can't fail.
 */
extern void cutover_policy_committed_new(CutoverTarget *target);

#endif							/* CUTOVER_POLICY_H */
