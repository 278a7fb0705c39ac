/*
 * reverse.h - old follows new: the replicator while new is the master.
 */
#ifndef CUTOVER_REVERSE_H
#define CUTOVER_REVERSE_H

#include "session.h"

struct Replicator;

/* One turn of the loop; returns how long to wait, in milliseconds. */
extern int	cutover_reverse_turn(struct Replicator *r);

/* After an error: forget the step.  True if it should be tried again at once, row by row. */
extern bool cutover_reverse_failed(bool data_error);

/* Settings of this process for one direction or the other; forgets what was known of new. */
extern void cutover_reverse_enter(void);
extern void cutover_reverse_leave(void);

/*
 * Old is the master again: the forward direction begins where old was while new was the
 * master, whatever new has lost meanwhile.  In a local transaction.
 */
extern void cutover_reverse_resume_forward(CutoverSession *session);

#endif							/* CUTOVER_REVERSE_H */
