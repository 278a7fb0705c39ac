/*
 * dual.h - commits that wait for new.
 *
 * In dual_write a transaction that changed a table under migration commits on
 * old first: durable, visible, its locks released.  Only then does it wait, on
 * the replicator's acknowledgement in shared memory.  Nothing that happens in
 * that wait can undo the commit or raise an error.
 */
#ifndef CUTOVER_DUAL_H
#define CUTOVER_DUAL_H

#include "shmem.h"
#include "tracked.h"

/* Register the callbacks; before those of the buffer, which must have written when ours run. */
extern void cutover_dual_init(void);

/* A row of the relation was captured: its transaction may have to wait. */
extern void cutover_dual_consider(CutoverRelation *entry, Relation rel, HeapTuple tuple);

/* ---- the worker's side ---- */

/* New rejected a row of this transaction; said before the window is acknowledged. */
extern void cutover_dual_reject(CutoverSlot *slot, uint64 xid);

/* Transactions whose commits gave up waiting since the last call; returns how many were put into xids. */
extern int	cutover_dual_take_late(CutoverSlot *slot, uint64 *xids, int max);

/* New is up to date: commits may wait for it again, if they had ceased to long enough ago. */
extern void cutover_dual_close_breaker(CutoverSlot *slot);

#endif							/* CUTOVER_DUAL_H */
