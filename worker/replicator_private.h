/*
 * replicator_private.h - what the parts of the replicator share.
 */
#ifndef CUTOVER_REPLICATOR_PRIVATE_H
#define CUTOVER_REPLICATOR_PRIVATE_H

#include "applier.h"
#include "batch.h"
#include "session.h"
#include "shmem.h"

typedef struct Replicator
{
	int32		target_id;
	CutoverSlot *slot;
	CutoverSession session;
	CutoverWindow window;
	CutoverApplier *applier;
	MemoryContext loop_context;
	uint64		ticket;			/* of those who wait for this window */
	int			attempts;		/* failures in a row */
	uint64		replay_lsn;		/* replay until the window is past this position */
	bool		dual;			/* mode is dual_write */
	bool		reverse;		/* mode is new_only: old follows */
	bool		reversed;		/* this process is set up for that */
	int64		epoch;
	bool		switching;		/* a switch is under way, or was left so */
	bool		agreed;			/* both sides know the same master, as far as we know */
	bool		durable;		/* commits on new are flushed, since sessions wait for them */
	bool		open_failures;	/* of dual writes */
	bool		replay_window;	/* ... or at its end */
	List	   *caught_up;		/* (table_id, generation) pairs that this window brings up to date */
	TimestampTz resolved_at;
	TimestampTz target_read_at;
	TimestampTz rotated_at;
	TimestampTz rate_since;
	uint64		rate_changes;
	CutoverStats stats;
} Replicator;

/* A short transaction on old, with a snapshot. */
extern void cutover_replicator_begin(void);
extern void cutover_replicator_end(void);

/* Publish what the loop does, or why it does not (NULL = it does). */
extern void cutover_replicator_report(Replicator *r, const char *waiting_for);

/*
 * Bring a switch that nobody drives to its end, and have both sides know the same
 * master.  True if that was looked at: the target is to be read again.
 */
extern bool cutover_replicator_settle_master(Replicator *r);
extern void cutover_replicator_check_stale(Replicator *r);

/* Wait for a commit, a signal, or the time to look by oneself. */
extern void cutover_replicator_sleep(int ms);

/* The state rewound ends when every table has been compared since. */
extern void cutover_replicator_clear_rewound(Replicator *r);

/* In a PG_CATCH: undo, classify, and get ready to try again.  Returns how long to wait, in milliseconds. */
extern int	cutover_replicator_recover(Replicator *r);

/* Sleep after an error, in parts, so that a wake-up by a commit does not cut it short. */
extern void cutover_replicator_back_off(int ms);

#endif							/* CUTOVER_REPLICATOR_PRIVATE_H */
