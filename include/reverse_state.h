/*
 * reverse_state.h - how far old follows new, as both sides have it.
 */
#ifndef CUTOVER_REVERSE_STATE_H
#define CUTOVER_REVERSE_STATE_H

#include "session.h"

/*
 * Old has everything that snapshot (of new) saw, and of what window saw the
 * part up to done_id.  k numbers the steps; new's number is written first, so it is
 * ahead of old's by the steps that did not come to their end.
 */
typedef struct CutoverReverseProgress
{
	int64		k;
	char	   *snapshot;
	char	   *window;			/* NULL: no window is half applied */
	int64		done_id;
	int64		new_k;			/* last number that new has */
	MemoryContext context;		/* of the strings */
} CutoverReverseProgress;

/* Read both sides, and put right what they disagree on.  False: the way back is not installed.  In a local transaction. */
extern bool cutover_reverse_state_open(CutoverSession *session, CutoverReverseProgress *progress);

/* Queue new's part of a step (after everything was read), and write old's in the local transaction. */
extern void cutover_reverse_state_queue_marker(CutoverSession *session, const CutoverReverseProgress *next);
extern void cutover_reverse_state_write(int32 target_id, const CutoverReverseProgress *next);

/* The step is committed. */
extern void cutover_reverse_state_confirm(CutoverReverseProgress *progress, const CutoverReverseProgress *next);

/* Old can't follow a table any more.  In a local transaction. */
extern void cutover_reverse_state_close(int32 table_id, const char *reason);

#endif							/* CUTOVER_REVERSE_STATE_H */
