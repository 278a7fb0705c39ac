/*
 * shmem.h - wake-ups, acknowledgements and counters shared by all processes.
 *
 * Nothing durable lives here and no correctness depends on it: a slot may be
 * lost at any time (server restart) and is then filled again.  The memory comes
 * from the server's allowance for libraries that were not preloaded, so it is
 * small and of fixed size.
 */
#ifndef CUTOVER_SHMEM_H
#define CUTOVER_SHMEM_H

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/spin.h"

#define CUTOVER_SHMEM_VERSION 4 /* +1 when a slot gets another layout */
#define CUTOVER_MAX_SLOTS 16
#define CUTOVER_TEXT_LEN 384
#define CUTOVER_DUAL_RING 64
#define CUTOVER_READ_COUNTERS 40 /* outcomes and reasons, see policy.h */
#define CUTOVER_MAX_SHADOW_WORKERS 4

/* What a replicator says of itself; copied in and out as a whole under the slot's mutex. */
typedef struct CutoverStats
{
	uint64		applied_changes;
	double		changes_per_s;
	uint64		retries;
	int64		lag_us;			/* microseconds; -1 = not measured yet */
	uint64		acked_k;		/* last window that new has confirmed */
	TimestampTz acked_at;		/* when the snapshot of that window was taken */
	TimestampTz last_error_at;
	char		waiting_for[CUTOVER_TEXT_LEN];
	char		last_error[CUTOVER_TEXT_LEN];
	bool		last_error_quotes;	/* it may hold row values */
	bool		reverse;		/* old follows; the next two are new's, as last seen */
	int64		queued;			/* changes; -1 = not known */
	int64		queue_bytes;
} CutoverStats;

/* A shadow worker; guarded by the state's lock. */
typedef struct CutoverShadowWorker
{
	pid_t		pid;			/* 0 = there is none */
	int			procno;
	TimestampTz last_start;
} CutoverShadowWorker;

/* One replicator (database, target).  dboid, target_id and pid are guarded by the state's lock. */
typedef struct CutoverSlot
{
	Oid			dboid;			/* InvalidOid = slot is free */
	int32		target_id;
	pid_t		pid;			/* 0 = no worker attached */
	int			procno;			/* of the worker; valid while pid != 0 */
	TimestampTz last_start;		/* paces restarts */
	uint32		generation;		/* +1 at every attach */
	pg_atomic_uint64 wanted;	/* tickets drawn by sessions that wait */
	pg_atomic_uint64 served;	/* highest ticket whose commits new has */
	pg_atomic_uint64 applied;	/* the same, of tables that are synced, whatever the others do */
	pg_atomic_uint32 dual_failures; /* commits in a row that new did not confirm */
	pg_atomic_uint64 breaker_since; /* commits do not wait since then; 0 = they do */
	slock_t		dual_mutex;		/* protects the next five fields */
	uint64		rejected[CUTOVER_DUAL_RING];	/* transactions with a row that new rejected, latest ones */
	uint32		next_rejected;
	uint64		late[CUTOVER_DUAL_RING];	/* transactions whose commit gave up waiting, for the worker */
	int			nlate;
	uint64		late_dropped;	/* those that had no room */
	pg_atomic_uint32 dirty;		/* somebody committed since the worker last looked */
	pg_atomic_uint32 reread;	/* the target's row has changed since the worker last read it */
	pg_atomic_uint32 sending;	/* copiers that send rows now */
	pg_atomic_uint32 shadow_ring;	/* handle of the segment for shadow reads; 0 = there is none */
	pg_atomic_uint64 shadow_lost;	/* samples that found no ring at all */
	CutoverShadowWorker shadow[CUTOVER_MAX_SHADOW_WORKERS];
	ConditionVariable cv;		/* broadcast when served moves or the worker's state does */
	slock_t		mutex;			/* protects stats only */
	CutoverStats stats;
	pg_atomic_uint32 read_failures; /* reads in a row that new did not answer */
	pg_atomic_uint64 read_breaker;	/* reads stay on old since then, or since the last attempt; 0 = they need not */
	pg_atomic_uint64 reads[CUTOVER_READ_COUNTERS];	/* since the server started */
} CutoverSlot;

/* Attach to the shared memory; false where the server has no room left for us. */
extern bool cutover_shmem_attach(void);

/* The slot of a target of this database, made if create; NULL if none or all are taken. */
extern CutoverSlot *cutover_shmem_slot(int32 target_id, bool create);

/* A worker takes a slot (false: another live worker has it) and gives it back. */
extern bool cutover_shmem_attach_worker(CutoverSlot *slot);
extern void cutover_shmem_detach_worker(CutoverSlot *slot);

/* The same for shadow worker number n; the last one to leave takes the ring away. */
extern bool cutover_shmem_attach_shadow(CutoverSlot *slot, int n);
extern void cutover_shmem_detach_shadow(CutoverSlot *slot, int n);

/* Forget a target. */
extern void cutover_shmem_free_slot(int32 target_id);

/* Wake the worker of a slot; cheap, callable after commit, never raises an error. */
extern void cutover_shmem_wake(CutoverSlot *slot);

extern void cutover_shmem_get_stats(CutoverSlot *slot, CutoverStats *stats);
extern void cutover_shmem_set_stats(CutoverSlot *slot, const CutoverStats *stats);

/* When the snapshot was taken that the following side is known to have; 0 = unknown. */
extern TimestampTz cutover_shmem_acked_at(CutoverSlot *slot);

/* A name that a copy of this server's files does not have; the same after a restart. */
extern const char *cutover_shmem_instance(void);

#endif							/* CUTOVER_SHMEM_H */
