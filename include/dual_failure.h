/*
 * dual_failure.h - commits in dual_write that new did not have in time, as rows.
 */
#ifndef CUTOVER_DUAL_FAILURE_H
#define CUTOVER_DUAL_FAILURE_H

#include "applier.h"
#include "shmem.h"

/*
 * Write down the changes of transactions whose commit gave up waiting, read
 * from the queue; new need not be there.  ep may be NULL.  Own transactions.
 * Returns true if there are open failures now.
 */
extern bool cutover_dual_failure_note_late(CutoverSession *session, CutoverSlot *slot, const char *why);

/* The same for a row that new rejected, within the step's local transaction (SPI). */
extern void cutover_dual_failure_note_rejected(CutoverApplier *applier, const CutoverFailure *failure);

/* Failures whose change new has by now are resolved.  Own transaction; false if none is left open. */
extern bool cutover_dual_failure_resolve(CutoverSession *session);

#endif							/* CUTOVER_DUAL_FAILURE_H */
