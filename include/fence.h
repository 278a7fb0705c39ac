/*
 * fence.h - who may write to tables under migration, and when.
 */
#ifndef CUTOVER_FENCE_H
#define CUTOVER_FENCE_H

#include "miscadmin.h"
#include "storage/lock.h"

#include "compat.h"
#include "tracked.h"

/* The lock that writers share and a switch takes for itself: the one on table cutover._fence_<target>. */
static inline void
cutover_fence_set_tag(LOCKTAG *tag, Oid fence)
{
	SET_LOCKTAG_RELATION(*tag, MyDatabaseId, fence);
}

/*
 * This transaction is about to write to relid, or has just done so: take the
 * fence of its target to the end of the transaction, or raise an error.
 */
extern void cutover_fence_take(CutoverTarget *target, Oid relid);

/* The same; costs next to nothing from the second call of a transaction on. */
static inline void
cutover_fence_enter(CutoverTarget *target, Oid relid)
{
	if (target->fenced != cutover_my_lxid_compat())
		cutover_fence_take(target, relid);
}

/*
 * For a write that can be forwarded: true = to new.  False: the fence is taken, the
 * write is old's.  Waits and raises errors as the above.
 */
extern bool cutover_fence_forwards(CutoverTarget *target, Oid relid);

/* The same for a schema change of relid; does nothing if it isn't under migration. */
extern void cutover_fence_ddl(Oid relid);

/*
 * Did this transaction look at tables of the target under another master?
 * own_subtransactions: how many of those that have ended were made by the fence.
 */
extern bool cutover_fence_is_stale(const CutoverTarget *target, Oid relid, int own_subtransactions);

/* Raise the error that fits. */
extern CUTOVER_NORETURN void cutover_fence_refuse(const CutoverTarget *target, Oid relid);
extern CUTOVER_NORETURN void cutover_fence_refuse_stale(const CutoverTarget *target, Oid relid);
extern CUTOVER_NORETURN void cutover_fence_refuse_in_doubt(const CutoverTarget *target, Oid relid);

#endif							/* CUTOVER_FENCE_H */
