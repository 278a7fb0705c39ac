/*
 * copier.h - the first copy: chunks, and what was taken off new while it runs.
 */
#ifndef CUTOVER_COPIER_H
#define CUTOVER_COPIER_H

#include "endpoint.h"

/*
 * Drive the copy of a target from the replicator's loop: plan chunks of tables
 * that wait, keep cutover.copy_jobs copier workers alive while there are
 * chunks, rebuild indexes and constraints of tables that have caught up.
 * Never waits long.  Returns true if it changed the phase of a table (the
 * replicator then reads its tables again).  Uses its own transactions.
 */
extern bool cutover_copier_tick(int32 target_id, CutoverEndpoint *ep);

/* True while copiers or index builders of the target run or must run. */
extern bool cutover_copier_busy(int32 target_id);

/* Stop all copiers of this target and wait for their end (pause, cancel). */
extern void cutover_copier_stop(void);

#endif							/* CUTOVER_COPIER_H */
