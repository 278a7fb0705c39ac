/*
 * shadow.h - SELECTs that are also run on new: what sessions hand over to shadow workers.
 *
 * A session hashes a sampled result while it goes to the client and puts an
 * entry into a ring; a worker of the target takes it from there.  The ring
 * lives in a DSM segment that the worker makes; its handle stands in the
 * target's slot.  No session ever waits for room.
 */
#ifndef CUTOVER_SHADOW_H
#define CUTOVER_SHADOW_H

#include "datatype/timestamp.h"
#include "port/atomics.h"

#include "shmem.h"

#define CUTOVER_SHADOW_CELLS 512	/* a power of two */
#define CUTOVER_SHADOW_CELL_SIZE 8192
#define CUTOVER_SHADOW_DROPPED 256	/* statements whose dropped samples are told apart; a power of two */

/* Why a sampled statement was not compared.  Names in extension/shadow_ring.c. */
typedef enum CutoverShadowSkip
{
	CUTOVER_SHADOW_TAKEN,
	/* seen by the session */
	CUTOVER_SHADOW_CURSOR,		/* read in parts */
	CUTOVER_SHADOW_WROTE,		/* the transaction has written: new has not what it sees */
	CUTOVER_SHADOW_LOCKS,		/* FOR UPDATE and its kin */
	CUTOVER_SHADOW_ROW_SECURITY,
	CUTOVER_SHADOW_OTHER_TABLE, /* not under migration, or another target's */
	CUTOVER_SHADOW_LARGE_RESULT,	/* more rows than cutover.shadow_max_rows, or a huge value */
	CUTOVER_SHADOW_LONG_TEXT,	/* text and parameters don't fit into a place of the ring */
	/* seen by the worker */
	CUTOVER_SHADOW_NOT_SYNCED,	/* a table is not complete on new */
	CUTOVER_SHADOW_VOLATILE,	/* a function gives another result each time, or on another server */
	CUTOVER_SHADOW_OWN_CODE,	/* a function or operator that is not built in */
	CUTOVER_SHADOW_UNDETERMINED,	/* which rows come is up to the plan */
	CUTOVER_SHADOW_MAPPING,		/* renamed or computed columns, a row filter, a partition by its name */
	CUTOVER_SHADOW_EXCLUDED,	/* a column that may differ decides about rows */
	CUTOVER_SHADOW_NOT_A_SELECT,
	CUTOVER_SHADOW_NOT_READ_AGAIN,	/* the text has another meaning by now */
	CUTOVER_SHADOW_SKIPS
} CutoverShadowSkip;

extern const char *cutover_shadow_skip_name(CutoverShadowSkip why);

/*
 * A statement that has been run on old.  data holds, one after the other, the
 * text (zero-terminated), the settings (see cutover_shadow_settings_*), and for each parameter its type, its
 * length (-1 = NULL) and its text (zero-terminated).
 */
typedef struct CutoverShadowEntry
{
	Oid			userid;
	uint64		queryid;		/* 0 = the server does not compute them */
	uint64		text_hash;
	uint64		rows;
	uint64		set_hash;		/* whatever the order of the rows */
	uint64		list_hash;		/* in order */
	int64		old_us;
	TimestampTz xact_at;
	TimestampTz statement_at;
	int32		nparams;
	int32		text_len;		/* with the zero byte, as the others */
	int32		settings_len;
	int32		params_len;
	char		data[FLEXIBLE_ARRAY_MEMBER];
} CutoverShadowEntry;

#define CUTOVER_SHADOW_ENTRY_SIZE(e) \
	(offsetof(CutoverShadowEntry, data) + (e)->text_len + (e)->settings_len + (e)->params_len)

/* A place in the ring; seq tells whose turn it is. */
typedef union CutoverShadowCell
{
	struct
	{
		pg_atomic_uint64 seq;
		CutoverShadowEntry entry;
	}			c;
	char		size[CUTOVER_SHADOW_CELL_SIZE];
} CutoverShadowCell;

#define CUTOVER_SHADOW_ENTRY_MAX \
	(CUTOVER_SHADOW_CELL_SIZE - offsetof(CutoverShadowCell, c.entry))

/* Samples of one statement that found the ring full. */
typedef struct CutoverShadowDropped
{
	pg_atomic_uint64 text_hash; /* 0 = free */
	pg_atomic_uint64 n;
} CutoverShadowDropped;

typedef struct CutoverShadowRing
{
	uint32		magic;
	pg_atomic_uint32 sleeping;	/* a worker waits for an entry */
	char		pad1[PG_CACHE_LINE_SIZE];
	pg_atomic_uint64 head;		/* next place to write */
	char		pad2[PG_CACHE_LINE_SIZE];
	pg_atomic_uint64 tail;		/* next place to read */
	char		pad3[PG_CACHE_LINE_SIZE];
	pg_atomic_uint64 skipped[CUTOVER_SHADOW_SKIPS];
	pg_atomic_uint64 dropped_others;
	CutoverShadowDropped dropped[CUTOVER_SHADOW_DROPPED];
	CutoverShadowCell cells[CUTOVER_SHADOW_CELLS];
} CutoverShadowRing;

/* ---- the ring, extension/shadow_ring.c ---- */

/* Worker: make the target's ring or attach to it; NULL without dynamic shared memory.  Gone with the last process attached. */
extern CutoverShadowRing *cutover_shadow_ring_open(CutoverSlot *slot);

/* Session: the target's ring, NULL if there is none now; starts a worker then.  Never raises. */
extern CutoverShadowRing *cutover_shadow_ring_find(CutoverSlot *slot, int32 target_id);

/*
 * Reserve a place (NULL: full, counted as dropped) and publish it.  Between
 * the two nothing may raise or wait.
 */
extern CutoverShadowEntry *cutover_shadow_ring_reserve(CutoverShadowRing *ring, uint64 text_hash);
extern void cutover_shadow_ring_publish(CutoverShadowRing *ring, CutoverSlot *slot, CutoverShadowEntry *entry);

extern void cutover_shadow_ring_skip(CutoverShadowRing *ring, CutoverShadowSkip why);

/* Worker: copy the next entry into buf (CUTOVER_SHADOW_ENTRY_MAX bytes); false if there is none. */
extern bool cutover_shadow_ring_take(CutoverShadowRing *ring, CutoverShadowEntry *buf);

/* Is there an entry to take? */
extern bool cutover_shadow_ring_has(CutoverShadowRing *ring);

/* ---- settings that a result depends on, extension/shadow_settings.c ---- */

/* Those of this session, packed: for each in turn its value, zero-terminated.  Valid until the next call. */
extern const char *cutover_shadow_settings_pack(int *len);

/* Worker: take them on until the current GUC nest level ends. */
extern void cutover_shadow_settings_apply(const char *packed);

/* Worker: the statement that gives new the settings that matter there. */
extern char *cutover_shadow_settings_sql(const char *packed);

/* Do text forms under these settings tell all of a float, or a point in time? */
extern void cutover_shadow_settings_forms(const char *packed, bool *floats, bool *times);

/* ---- sessions, extension/shadow.c ---- */

extern void cutover_shadow_init(void);

#endif							/* CUTOVER_SHADOW_H */
