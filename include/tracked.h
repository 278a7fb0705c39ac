/*
 * tracked.h - what a backend knows of tables under migration.
 *
 * Caches over cutover._target, _table, _column and _member, filled on first use
 * and forgotten by relcache invalidation.  Pointers stay good for the life of
 * the process; their contents are those of the last cutover_tracked_*() call.
 */
#ifndef CUTOVER_TRACKED_H
#define CUTOVER_TRACKED_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "nodes/bitmapset.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

#include "shmem.h"

#define CUTOVER_SEGMENTS 3

typedef enum CutoverMode
{
	CUTOVER_MODE_OLD_ONLY,
	CUTOVER_MODE_DUAL_WRITE,
	CUTOVER_MODE_NEW_ONLY
} CutoverMode;

typedef enum CutoverSwitchState
{
	CUTOVER_SWITCH_NONE,
	CUTOVER_SWITCH_PREPARING,	/* old's own to undo */
	CUTOVER_SWITCH_IN_DOUBT		/* new knows who is master */
} CutoverSwitchState;

/* A row of cutover._target. */
typedef struct CutoverTarget
{
	int32		target_id;		/* hash key */
	bool		valid;
	bool		known;			/* there is such a row; of one that is finished, too */
	bool		active;			/* exists, and changes are captured */
	CutoverMode mode;			/* meaningful while known */
	int64		epoch;
	CutoverSwitchState switch_state;
	bool		forward;		/* in new_only: writes go on to new instead of being refused */
	TimestampTz master_since;	/* when the side that accepts writes last changed; -infinity: never yet */
	LocalTransactionId fenced;	/* transaction that holds the fence, see fence.h */
	LocalTransactionId forwarding;	/* transaction that has writes on new, see forward.h */
	Oid			fence;			/* cutover._fence_<target_id>; InvalidOid = there is none */
	double		read_ratio;		/* in percent */
	double		shadow_ratio;
	bool		dual_write;		/* commits wait for new ... */
	double		write_ratio;	/* ... for this share of rows, in percent */
	bool		running;		/* a replicator ought to be at work */
	bool		ours;			/* this cluster is the one that may act */
	bool		rewound;		/* new had what old lost */
	int			segment;		/* that is written to */
	Oid			queue[CUTOVER_SEGMENTS];
	CutoverSlot *slot;			/* NULL = not looked up yet, or none to be had */
	uint64		wrote_old;		/* ticket of this session's last commit on old; 0 = none ... */
	uint64		wrote_new;		/* ... and of what it forwarded to new */
	struct CutoverPolicy *policy;	/* of its reads; NULL = never asked for */
} CutoverTarget;

/* A ticket that could not be drawn at commit: it is drawn when it is asked for. */
#define CUTOVER_TICKET_UNKNOWN PG_UINT64_MAX

/* What outlives the filling of a CutoverRelation; shared by the partitions of a table. */
typedef struct CutoverTableState
{
	int32		table_id;		/* hash key */
	LocalTransactionId lxid;	/* transaction that last_cid belongs to */
	CommandId	last_cid;		/* latest command of which a change was captured */
} CutoverTableState;

/* A relation whose changes belong to a table under migration. */
typedef struct CutoverRelation
{
	Oid			relid;			/* hash key */
	bool		valid;
	bool		active;			/* false: nothing to capture, and of what is below only target is set */
	bool		marked;			/* phase resync_needed: what happens now is in the next copy */
	bool		copying;		/* no value may be left out of an image */
	bool		hot_keeps_key;	/* a heap-only update can't have changed the key */
	bool		key_reused;		/* the key isn't unique at every moment: an old key may already be a newer row's */
	bool		whole_old;		/* old images are whole rows */
	bool		key_lost;		/* a key column was dropped */
	int32		table_id;
	int32		target_id;
	CutoverTarget *target;		/* of target_id; NULL = not under migration, else set even if not active */
	Oid			root;			/* the table itself, if this is a partition of it */
	int32		layout_id;		/* 0 = to be looked up */
	int			nkeys;
	AttrNumber *keys;			/* in this relation's numbering */
	TupleDesc	key_desc;		/* the columns up to the last of the key; NULL without key */
	Bitmapset  *not_elidable;	/* attnums that are read by expressions; NULL = none */
	bool		none_elidable;
	MemoryContext cxt;			/* of what is pointed to */
	CutoverTableState *state;
} CutoverRelation;

/* Registers the invalidation callback. */
extern void cutover_tracked_init(void);

/* For the cache: what our tables say of rel, into its entry but for target and state; false if nothing (tracked_relation.c). */
extern bool cutover_tracked_read_relation(CutoverRelation *entry, Relation rel);

/* The entry of a relation; never NULL, but possibly not active. */
extern CutoverRelation *cutover_tracked_relation(Relation rel);
extern CutoverTarget *cutover_tracked_target(int32 target_id);

/* The entry of a target that this backend has met, as it is, or NULL; can't fail. */
extern CutoverTarget *cutover_tracked_met(int32 target_id);

/* Another number after every change of the configuration that this backend has noticed. */
extern uint64 cutover_tracked_generation(void);

/* Forget what is known of a relation (its layout was rolled back, ...). */
extern void cutover_tracked_forget(Oid relid);

/* False if no table of this database is under migration; cheap after the first call. */
extern bool cutover_tracked_any(void);

/* Does any target forward writes to new?  Costs nothing after the first call. */
extern bool cutover_tracked_forwards(void);

/* The highest ratio of shadow reads of any target, in percent; costs nothing after the first call. */
extern double cutover_tracked_shadow_ratio(void);

/* True if the relation is the root or a member of a table under migration; takes no lock. */
extern bool cutover_tracked_find(Oid relid, int32 *table_id, Oid *root);

/* The relation that a table id stands for; InvalidOid if none. */
extern Oid	cutover_tracked_root(int32 table_id);

/* Relations of schema cutover, by name; InvalidOid if there is none. */
extern Oid	cutover_tracked_config(const char *name);

/* An attribute of a configuration row by its name. */
extern Datum cutover_tracked_attr(HeapTuple tuple, TupleDesc desc, const char *name, bool *isnull);

/*
 * Visit the rows of cutover.<table> where <column> equals key (all rows if
 * index is NULL), under a snapshot taken now.  The callback returns false to stop.
 */
typedef bool (*CutoverRowVisitor) (Relation rel, HeapTuple tuple, void *arg);
extern void cutover_tracked_scan(const char *table, const char *index, const char *column,
								 Oid keytype, Datum key, CutoverRowVisitor visitor, void *arg);

#endif							/* CUTOVER_TRACKED_H */
