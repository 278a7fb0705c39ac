/*
 * shadow_ring.c - the bounded ring between sessions and shadow workers.
 *
 * A place has a sequence number that tells whose turn it is: that of a writer
 * of round n, or of a reader (n + 1).  So nobody holds a lock, a full ring is
 * noticed at once, and several workers may read.  A worker makes the segment;
 * sessions attach to it when they have something to hand over, and let it go
 * when they see that the slot names another.
 */
#include "postgres.h"

#include <signal.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/dsm.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "launcher.h"
#include "shadow.h"

PG_FUNCTION_INFO_V1(cutover_shadow_lost);

#define RING_MAGIC 0x5AD0CA11

static const char *const skip_names[CUTOVER_SHADOW_SKIPS] = {
	[CUTOVER_SHADOW_TAKEN] = "taken",
	[CUTOVER_SHADOW_CURSOR] = "cursor",
	[CUTOVER_SHADOW_WROTE] = "transaction_wrote",
	[CUTOVER_SHADOW_LOCKS] = "row_lock",
	[CUTOVER_SHADOW_ROW_SECURITY] = "row_security",
	[CUTOVER_SHADOW_OTHER_TABLE] = "other_table",
	[CUTOVER_SHADOW_LARGE_RESULT] = "large_result",
	[CUTOVER_SHADOW_LONG_TEXT] = "long_text",
	[CUTOVER_SHADOW_NOT_SYNCED] = "not_synced",
	[CUTOVER_SHADOW_VOLATILE] = "volatile",
	[CUTOVER_SHADOW_OWN_CODE] = "function",
	[CUTOVER_SHADOW_UNDETERMINED] = "undetermined",
	[CUTOVER_SHADOW_MAPPING] = "mapping",
	[CUTOVER_SHADOW_EXCLUDED] = "excluded_column",
	[CUTOVER_SHADOW_NOT_A_SELECT] = "not_a_select",
	[CUTOVER_SHADOW_NOT_READ_AGAIN] = "not_read_again",
};

/* What this process is attached to: one ring for each slot. */
typedef struct RingAttached
{
	CutoverSlot *slot;			/* hash key */
	dsm_handle	handle;
	dsm_segment *segment;
	CutoverShadowRing *ring;
} RingAttached;

static HTAB *attached = NULL;

const char *
cutover_shadow_skip_name(CutoverShadowSkip why)
{
	return skip_names[why];
}

/*
 * What this process knows of a slot's ring.
 */
static RingAttached *
ring_entry(CutoverSlot *slot)
{
	RingAttached *entry;
	bool		found;

	if (attached == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(CutoverSlot *),.entrysize = sizeof(RingAttached)};

		attached = hash_create("cutover shadow rings", 4, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(attached, &slot, HASH_ENTER, &found);
	if (!found)
	{
		entry->handle = 0;
		entry->segment = NULL;
		entry->ring = NULL;
	}
	return entry;
}

/*
 * Attach to the segment that the slot names, if it still is there.  The
 * mapping stays for the life of the process, not of the statement.
 */
static void
ring_attach(RingAttached *entry, dsm_handle handle)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	if (entry->segment != NULL)
		dsm_detach(entry->segment);
	entry->segment = NULL;
	entry->ring = NULL;
	entry->handle = handle;
	if (handle == 0)
		return;
	CurrentResourceOwner = NULL;
	PG_TRY();
	{
		entry->segment = dsm_attach(handle);
		if (entry->segment != NULL)
			entry->ring = dsm_segment_address(entry->segment);
	}
	PG_CATCH();
	{
		/* no memory for the mapping: this session's samples are dropped */
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	if (entry->ring != NULL && entry->ring->magic != RING_MAGIC)
		entry->ring = NULL;
}

CutoverShadowRing *
cutover_shadow_ring_find(CutoverSlot *slot, int32 target_id)
{
	RingAttached *entry = ring_entry(slot);
	dsm_handle	handle = pg_atomic_read_u32(&slot->shadow_ring);

	if (handle == 0)
		(void) cutover_launcher_start_shadow(slot, target_id, 0);
	if (handle != entry->handle)
		ring_attach(entry, handle);
	return entry->ring;
}

/*
 * Fill a new segment.
 */
static void
ring_format(CutoverShadowRing *ring)
{
	memset(ring, 0, offsetof(CutoverShadowRing, cells));
	ring->magic = RING_MAGIC;
	pg_atomic_init_u32(&ring->sleeping, 0);
	pg_atomic_init_u64(&ring->head, 0);
	pg_atomic_init_u64(&ring->tail, 0);
	for (int i = 0; i < CUTOVER_SHADOW_SKIPS; i++)
		pg_atomic_init_u64(&ring->skipped[i], 0);
	pg_atomic_init_u64(&ring->dropped_others, 0);
	for (int i = 0; i < CUTOVER_SHADOW_DROPPED; i++)
	{
		pg_atomic_init_u64(&ring->dropped[i].text_hash, 0);
		pg_atomic_init_u64(&ring->dropped[i].n, 0);
	}
	for (int i = 0; i < CUTOVER_SHADOW_CELLS; i++)
		pg_atomic_init_u64(&ring->cells[i].c.seq, i);
}

CutoverShadowRing *
cutover_shadow_ring_open(CutoverSlot *slot)
{
	RingAttached *entry = ring_entry(slot);
	ResourceOwner owner = CurrentResourceOwner;
	dsm_segment *segment;
	uint32		none;

	ring_attach(entry, pg_atomic_read_u32(&slot->shadow_ring));
	if (entry->ring != NULL)
		return entry->ring;
	none = entry->handle;
	CurrentResourceOwner = NULL;
	segment = dsm_create(sizeof(CutoverShadowRing), DSM_CREATE_NULL_IF_MAXSEGMENTS);
	CurrentResourceOwner = owner;
	if (segment == NULL)
		return NULL;
	ring_format(dsm_segment_address(segment));
	/* another worker may have been faster */
	if (!pg_atomic_compare_exchange_u32(&slot->shadow_ring, &none, dsm_segment_handle(segment)))
	{
		dsm_detach(segment);
		ring_attach(entry, none);
		return entry->ring;
	}
	entry->handle = dsm_segment_handle(segment);
	entry->segment = segment;
	entry->ring = dsm_segment_address(segment);
	return entry->ring;
}

/*
 * Count a sample that found no room, by statement as far as there is room for that.
 */
static void
ring_drop(CutoverShadowRing *ring, uint64 text_hash)
{
	if (text_hash == 0)
		text_hash = 1;
	for (int i = 0; i < 8; i++)
	{
		CutoverShadowDropped *place = &ring->dropped[(text_hash + i) & (CUTOVER_SHADOW_DROPPED - 1)];
		uint64		there = pg_atomic_read_u64(&place->text_hash);

		if (there == 0 && pg_atomic_compare_exchange_u64(&place->text_hash, &there, text_hash))
			there = text_hash;
		if (there == text_hash)
		{
			pg_atomic_fetch_add_u64(&place->n, 1);
			return;
		}
	}
	pg_atomic_fetch_add_u64(&ring->dropped_others, 1);
}

CutoverShadowEntry *
cutover_shadow_ring_reserve(CutoverShadowRing *ring, uint64 text_hash)
{
	uint64		pos = pg_atomic_read_u64(&ring->head);

	for (;;)
	{
		CutoverShadowCell *cell = &ring->cells[pos & (CUTOVER_SHADOW_CELLS - 1)];
		int64		turn = (int64) (pg_atomic_read_u64(&cell->c.seq) - pos);

		if (turn < 0)
		{
			ring_drop(ring, text_hash);
			return NULL;
		}
		if (turn > 0)
			pos = pg_atomic_read_u64(&ring->head);
		else if (pg_atomic_compare_exchange_u64(&ring->head, &pos, pos + 1))
			return &cell->c.entry;
	}
}

void
cutover_shadow_ring_publish(CutoverShadowRing *ring, CutoverSlot *slot, CutoverShadowEntry *entry)
{
	CutoverShadowCell *cell = (CutoverShadowCell *) ((char *) entry - offsetof(CutoverShadowCell, c.entry));

	/* full barrier: the entry is complete before it is offered, and offered before we look who sleeps */
	pg_atomic_fetch_add_u64(&cell->c.seq, 1);
	if (pg_atomic_read_u32(&ring->sleeping) == 0 || pg_atomic_exchange_u32(&ring->sleeping, 0) == 0)
		return;
	for (int i = 0; i < CUTOVER_MAX_SHADOW_WORKERS; i++)
		if (slot->shadow[i].pid != 0)
			SetLatch(&ProcGlobal->allProcs[slot->shadow[i].procno].procLatch);
}

bool
cutover_shadow_ring_take(CutoverShadowRing *ring, CutoverShadowEntry *buf)
{
	uint64		pos = pg_atomic_read_u64(&ring->tail);

	for (;;)
	{
		CutoverShadowCell *cell = &ring->cells[pos & (CUTOVER_SHADOW_CELLS - 1)];
		int64		turn = (int64) (pg_atomic_read_u64(&cell->c.seq) - (pos + 1));

		if (turn < 0)
			return false;
		if (turn > 0)
			pos = pg_atomic_read_u64(&ring->tail);
		else if (pg_atomic_compare_exchange_u64(&ring->tail, &pos, pos + 1))
		{
			pg_read_barrier();
			memcpy(buf, &cell->c.entry, CUTOVER_SHADOW_ENTRY_SIZE(&cell->c.entry));
			pg_memory_barrier();
			pg_atomic_write_u64(&cell->c.seq, pos + CUTOVER_SHADOW_CELLS);
			return true;
		}
	}
}

bool
cutover_shadow_ring_has(CutoverShadowRing *ring)
{
	uint64		pos = pg_atomic_read_u64(&ring->tail);

	return (int64) (pg_atomic_read_u64(&ring->cells[pos & (CUTOVER_SHADOW_CELLS - 1)].c.seq) - (pos + 1)) >= 0;
}

void
cutover_shadow_ring_skip(CutoverShadowRing *ring, CutoverShadowSkip why)
{
	pg_atomic_fetch_add_u64(&ring->skipped[why], 1);
}

/*
 * cutover._shadow_lost(target_id int) RETURNS bigint: samples that found no
 * worker and have not been counted by one since.
 */
Datum
cutover_shadow_lost(PG_FUNCTION_ARGS)
{
	CutoverSlot *slot = cutover_shmem_slot(PG_GETARG_INT32(0), false);

	PG_RETURN_INT64(slot ? (int64) pg_atomic_read_u64(&slot->shadow_lost) : 0);
}
