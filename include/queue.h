/*
 * queue.h - blocks into the queue tables, and what happens when that fails.
 */
#ifndef CUTOVER_QUEUE_H
#define CUTOVER_QUEUE_H

#include "tracked.h"

/* Changes that become one row of the queue. */
typedef struct CutoverBlock
{
	const char *data;			/* changes, without block header */
	Size		len;
	int32		seq;			/* of the first */
	int32		n;
} CutoverBlock;

typedef enum CutoverQueueState
{
	CUTOVER_QUEUE_FINE,			/* nothing speaks against writing */
	CUTOVER_QUEUE_DOUBTFUL,		/* might fail: little space, locked, failed before */
	CUTOVER_QUEUE_FULL			/* cutover.queue_limit is reached */
} CutoverQueueState;

extern CutoverQueueState cutover_queue_look(CutoverTarget *target);

/* Lock the segment that is written to, if that takes no waiting. */
extern bool cutover_queue_lock_conditional(CutoverTarget *target);

/* Write blocks in this order; raises what goes wrong. */
extern void cutover_queue_write(CutoverTarget *target, const CutoverBlock *blocks, int nblocks);

/* The current subtransaction is that of cutover_queue_try_write(). */
extern bool cutover_queue_trying;

/* The same in a subtransaction; false with the error's message in the current context if it failed. */
extern bool cutover_queue_try_write(CutoverTarget *target, const CutoverBlock *blocks, int nblocks, char **message);

/* Let phase of a table be resync_needed, in the current transaction. */
extern void cutover_queue_mark(int32 target_id, int32 table_id, const char *reason);

#endif							/* CUTOVER_QUEUE_H */
