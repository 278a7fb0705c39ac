/*
 * buffer.c - the changes of the current transaction, until they are queue blocks.
 *
 * Changes lie one after the other in a growing piece of memory for each target.
 * A run is a piece of it that belongs to one subtransaction and fits into a block.  Runs
 * of a rolled back subtransaction are a tail of the list, as subtransaction ids only
 * grow.  When there is too much, the tail that belongs to the current
 * subtransaction is written early (a spill): what belongs to an outer one must not be
 * written under the inner one's transaction id, it would be lost with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "block.h"
#include "buffer.h"
#include "clients.h"
#include "guc.h"
#include "launcher.h"
#include "layout.h"
#include "pack.h"
#include "policy.h"
#include "queue.h"
#include "shmem.h"
#include "tracked.h"

/* Changes in a block. */
#define BUFFER_BLOCK_SIZE cutover_pack_block_size()
/* Less than this isn't spilled, for lack of a tail worth a block. */
#define BUFFER_SPILL_MIN (8 * BUFFER_BLOCK_SIZE)
/* Memory that is kept for the next transaction. */
#define BUFFER_KEEP (64 * 1024)
/* How often a backend tries to start a worker that it can't see. */
#define BUFFER_START_PACE_MS 5000

typedef struct BufferRun
{
	Size		off;
	Size		len;
	int32		seq;
	int32		n;
	SubTransactionId subid;
	bool		strict;			/* holds what must not get lost */
} BufferRun;

/* Everything for one target. */
typedef struct ChangeBuffer
{
	int32		target_id;
	char	   *data;
	Size		len;
	Size		size;
	BufferRun  *runs;
	int			nruns;
	int			max_runs;
	int32	   *tables;			/* that have changes in this transaction */
	int			ntables;
	int			max_tables;
	int			released;		/* runs from here on were written by a subtransaction that is being released, or -1 */
	bool		wrote;			/* blocks, in this transaction */
	CutoverSlot *slot;			/* to wake after commit */
	struct ChangeBuffer *next;
} ChangeBuffer;

/* A table to be marked at the end of the transaction. */
typedef struct BufferMark
{
	int32		target_id;
	int32		table_id;
	SubTransactionId subid;
	char	   *reason;
	struct BufferMark *next;
} BufferMark;

static ChangeBuffer *buffers = NULL;
static ChangeBuffer *reserved = NULL; /* of the change being made */
static BufferMark *marks = NULL;
static int32 next_seq = 0;
static int32 written_seq = 0;	/* sequence numbers below are in blocks, and not used again */
static bool closing = false;	/* what comes now is written at once */
static bool touched = false;	/* anything to do at the end of the transaction? */

/*
 * The buffer of a target.
 */
static ChangeBuffer *
buffer_get(int32 target_id)
{
	ChangeBuffer *buf;

	for (buf = buffers; buf != NULL; buf = buf->next)
		if (buf->target_id == target_id)
			return buf;
	cutover_clients_enter();
	buf = MemoryContextAllocZero(TopMemoryContext, sizeof(ChangeBuffer));
	buf->target_id = target_id;
	buf->released = -1;
	buf->next = buffers;
	buffers = buf;
	return buf;
}

/*
 * Make room for len more bytes.
 */
static void
buffer_grow(ChangeBuffer *buf, Size len)
{
	Size		size = Max(buf->size, 4096);

	while (size < buf->len + len)
		size *= 2;
	if (buf->data == NULL)
		buf->data = MemoryContextAllocHuge(TopMemoryContext, size);
	else
		buf->data = repalloc_huge(buf->data, size);
	buf->size = size;
}

/*
 * Start a run.
 */
static BufferRun *
buffer_new_run(ChangeBuffer *buf, SubTransactionId subid)
{
	BufferRun  *run;

	if (buf->nruns == buf->max_runs)
	{
		int			size = buf->max_runs == 0 ? 16 : buf->max_runs * 2;

		if (buf->runs == NULL)
			buf->runs = MemoryContextAllocHuge(TopMemoryContext, size * sizeof(BufferRun));
		else
			buf->runs = repalloc_huge(buf->runs, size * sizeof(BufferRun));
		buf->max_runs = size;
	}
	run = &buf->runs[buf->nruns++];
	run->off = buf->len;
	run->len = 0;
	run->seq = next_seq;
	run->n = 0;
	run->subid = subid;
	run->strict = false;
	return run;
}

/*
 * Note that a table has changes in this transaction.
 */
static void
buffer_note_table(ChangeBuffer *buf, int32 table_id)
{
	for (int i = buf->ntables - 1; i >= 0; i--)
		if (buf->tables[i] == table_id)
			return;
	if (buf->ntables == buf->max_tables)
	{
		int			size = buf->max_tables == 0 ? 8 : buf->max_tables * 2;

		if (buf->tables == NULL)
			buf->tables = MemoryContextAlloc(TopMemoryContext, size * sizeof(int32));
		else
			buf->tables = repalloc(buf->tables, size * sizeof(int32));
		buf->max_tables = size;
	}
	buf->tables[buf->ntables++] = table_id;
}

/*
 * Room for one change.
 */
char *
cutover_buffer_reserve(int32 target_id, int32 table_id, Size len, bool strict)
{
	ChangeBuffer *buf = buffers;
	BufferRun  *run;
	SubTransactionId subid = GetCurrentSubTransactionId();
	char	   *place;

	if (buf == NULL || buf->target_id != target_id)
		buf = buffer_get(target_id);
	if (next_seq == PG_INT32_MAX - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many changes in one transaction"),
				 errdetail("A transaction can make at most %d changes of tables under migration.", PG_INT32_MAX - 1),
				 errhint("Split the transaction.")));
	touched = true;
	if (table_id != 0)
		buffer_note_table(buf, table_id);
	if (buf->len + len > buf->size)
		buffer_grow(buf, len);
	run = buf->nruns > 0 ? &buf->runs[buf->nruns - 1] : NULL;
	if (run == NULL || run->subid != subid || run->len + len > BUFFER_BLOCK_SIZE ||
		run->seq + run->n != next_seq)
		run = buffer_new_run(buf, subid);
	place = buf->data + buf->len;
	buf->len += len;
	run->len += len;
	run->n++;
	run->strict |= strict;
	next_seq++;
	reserved = buf;
	return place;
}

/*
 * Remember to mark a table by the end of the transaction.
 */
void
cutover_buffer_mark(int32 target_id, int32 table_id, const char *reason)
{
	BufferMark *mark;

	for (mark = marks; mark != NULL; mark = mark->next)
		if (mark->table_id == table_id && mark->subid <= GetCurrentSubTransactionId())
			return;
	mark = MemoryContextAllocZero(TopTransactionContext, sizeof(BufferMark));
	mark->target_id = target_id;
	mark->table_id = table_id;
	mark->subid = GetCurrentSubTransactionId();
	mark->reason = MemoryContextStrdup(TopTransactionContext, reason);
	mark->next = marks;
	marks = mark;
	touched = true;
}

/*
 * Combine the runs from first on to as few blocks as possible.
 */
static CutoverBlock *
buffer_blocks(ChangeBuffer *buf, int first, int *nblocks, bool *strict)
{
	CutoverBlock *blocks = palloc_extended((buf->nruns - first) * sizeof(CutoverBlock), MCXT_ALLOC_HUGE);
	CutoverBlock *block = NULL;
	int			n = 0;

	*strict = false;
	for (int i = first; i < buf->nruns; i++)
	{
		BufferRun  *run = &buf->runs[i];

		*strict |= run->strict;
		if (block == NULL || block->len + run->len > BUFFER_BLOCK_SIZE || block->seq + block->n != run->seq)
		{
			block = &blocks[n++];
			block->data = buf->data + run->off;
			block->len = 0;
			block->seq = run->seq;
			block->n = 0;
		}
		block->len += run->len;
		block->n += run->n;
	}
	*nblocks = n;
	return blocks;
}

/*
 * The changes of a transaction can't be captured: its tables are to be marked.
 */
static void
buffer_mark_all(ChangeBuffer *buf, const char *why)
{
	char	   *reason = psprintf("changes could not be captured: %s; cutover_resync() copies the table afresh", why);

	for (int i = 0; i < buf->ntables; i++)
		cutover_buffer_mark(buf->target_id, buf->tables[i], reason);
	ereport(LOG,
			(errmsg("changes of %d tables under migration could not be captured", buf->ntables),
			 errdetail("%s", why),
			 errhint("The tables are marked for resync; see cutover.tables.")));
	pfree(reason);
}

/*
 * Write blocks, or do what cutover.capture says about failing.
 */
static void
buffer_write_blocks(ChangeBuffer *buf, CutoverTarget *target, const CutoverBlock *blocks, int nblocks, bool strict)
{
	CutoverQueueState state = cutover_queue_look(target);
	char	   *message = "the queue has reached cutover.queue_limit";

	if (strict || cutover_guc_capture == CUTOVER_CAPTURE_STRICT)
	{
		if (state == CUTOVER_QUEUE_FULL && !strict)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("change could not be captured"),
					 errdetail("The queue of the migration target has reached cutover.queue_limit."),
					 errhint("See cutover.status for what holds the target up, raise cutover.queue_limit, or set cutover.capture to mark.")));
		cutover_queue_write(target, blocks, nblocks);
		buf->wrote = true;
		return;
	}
	if (state == CUTOVER_QUEUE_FULL)
	{
		buffer_mark_all(buf, message);
		return;
	}
	if (state == CUTOVER_QUEUE_DOUBTFUL || !cutover_queue_lock_conditional(target))
	{
		if (!cutover_queue_try_write(target, blocks, nblocks, &message))
		{
			buffer_mark_all(buf, message);
			return;
		}
	}
	else
		cutover_queue_write(target, blocks, nblocks);
	buf->wrote = true;
}

/*
 * See to it that somebody moves what this transaction writes.
 */
static void
buffer_find_worker(ChangeBuffer *buf, CutoverTarget *target)
{
	static TimestampTz tried_at = 0;

	if (target->slot == NULL)
	{
		TimestampTz now = GetCurrentTimestamp();

		/* no room in shared memory: the start isn't paced there, then */
		if (tried_at != 0 && now >= tried_at && !TimestampDifferenceExceeds(tried_at, now, BUFFER_START_PACE_MS))
			return;
		target->slot = cutover_shmem_slot(target->target_id, true);
		tried_at = target->slot == NULL ? now : 0;
	}
	buf->slot = target->slot;
	if (target->running && (target->slot == NULL || target->slot->pid == 0))
		cutover_launcher_start_replicator(target->target_id);
}

/*
 * Forget the runs from first on.
 */
static void
buffer_forget(ChangeBuffer *buf, int first)
{
	if (first < buf->nruns)
		buf->len = buf->runs[first].off;
	buf->nruns = first;
}

/*
 * Write the runs from first on.
 */
static void
buffer_write(ChangeBuffer *buf, int first)
{
	const BufferRun *last = &buf->runs[buf->nruns - 1];
	CutoverTarget *target;
	MemoryContext cxt;
	MemoryContext old;
	CutoverBlock *blocks;
	int			nblocks;
	bool		strict;

	target = cutover_tracked_target(buf->target_id);
	if (target->active)
	{
		cxt = AllocSetContextCreate(CurrentMemoryContext, "cutover flush", ALLOCSET_DEFAULT_SIZES);
		old = MemoryContextSwitchTo(cxt);
		blocks = buffer_blocks(buf, first, &nblocks, &strict);
		buffer_write_blocks(buf, target, blocks, nblocks, strict);
		buffer_find_worker(buf, target);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(cxt);
	}
	written_seq = Max(written_seq, last->seq + last->n);
}

/*
 * Write the runs from first on, and forget them.
 */
static void
buffer_flush(ChangeBuffer *buf, int first)
{
	if (first < buf->nruns)
	{
		buffer_write(buf, first);
		buffer_forget(buf, first);
	}
}

/*
 * The first run that belongs to the current subtransaction or to one that was released into it.
 */
static int
buffer_tail(ChangeBuffer *buf, SubTransactionId subid)
{
	int			first = buf->nruns;

	while (first > 0 && buf->runs[first - 1].subid >= subid)
		first--;
	return first;
}

/*
 * The reserved change is complete.  Write the tail if there is too much.
 */
void
cutover_buffer_done(void)
{
	ChangeBuffer *buf = reserved;
	Size		limit = closing ? 0 : (Size) cutover_guc_spill_size * 1024;
	int			first;

	if (buf->len < limit)
		return;
	first = buffer_tail(buf, GetCurrentSubTransactionId());
	if (first == buf->nruns || buf->len - buf->runs[first].off < Min(limit, BUFFER_SPILL_MIN))
		return;
	buffer_flush(buf, first);
}

/*
 * A subtransaction is about to be released into its parent.  If there is too
 * much, write what belongs to the parent or to those released into it before:
 * where every change is made in a subtransaction of its own, nobody else ever would.  It goes
 * under the inner transaction id, so it is forgotten only when the release is certain.
 */
static void
buffer_spill_released(SubTransactionId parent)
{
	for (ChangeBuffer *buf = buffers; buf != NULL; buf = buf->next)
	{
		CutoverTarget *target;
		int			first;

		buf->released = -1;
		if (buf->len < (Size) cutover_guc_spill_size * 1024)
			continue;
		first = buffer_tail(buf, parent);
		if (first == buf->nruns || buf->len - buf->runs[first].off < BUFFER_SPILL_MIN)
			continue;
		/* what may fail wants a subtransaction around it, which can't be begun here */
		target = cutover_tracked_target(buf->target_id);
		if (cutover_guc_capture != CUTOVER_CAPTURE_STRICT && target->active &&
			(cutover_queue_look(target) != CUTOVER_QUEUE_FINE || !cutover_queue_lock_conditional(target)))
			continue;
		buffer_write(buf, first);
		buf->released = first;
	}
}

/*
 * The subtransaction was released: forget what it wrote.
 */
static void
buffer_released(void)
{
	for (ChangeBuffer *buf = buffers; buf != NULL; buf = buf->next)
	{
		if (buf->released >= 0)
			buffer_forget(buf, buf->released);
		buf->released = -1;
	}
}

/*
 * A subtransaction was rolled back: so are its changes.
 */
static void
buffer_rollback(SubTransactionId subid)
{
	int32		seq = written_seq;

	for (ChangeBuffer *buf = buffers; buf != NULL; buf = buf->next)
	{
		int			first = buffer_tail(buf, subid);

		buffer_forget(buf, first);
		buf->released = -1;
		if (first > 0)
			seq = Max(seq, buf->runs[first - 1].seq + buf->runs[first - 1].n);
	}
	next_seq = seq;				/* no gap: savepoints don't make blocks smaller */
	while (marks != NULL && marks->subid >= subid)
		marks = marks->next;
}

/*
 * Ready for the next transaction.
 */
static void
buffer_reset(void)
{
	for (ChangeBuffer *buf = buffers; buf != NULL; buf = buf->next)
	{
		buf->len = 0;
		buf->nruns = 0;
		buf->ntables = 0;
		buf->wrote = false;
		if (buf->size > BUFFER_KEEP)
		{
			pfree(buf->data);
			buf->data = NULL;
			buf->size = 0;
		}
		if (buf->max_runs * sizeof(BufferRun) > BUFFER_KEEP)
		{
			pfree(buf->runs);
			buf->runs = NULL;
			buf->max_runs = 0;
		}
	}
	marks = NULL;
	next_seq = 0;
	written_seq = 0;
	closing = touched = false;
	cutover_queue_trying = false;
}

/*
 * Write all that is left, and mark tables of which something was not captured.
 */
static void
buffer_close(void)
{
	closing = true;
	for (ChangeBuffer *buf = buffers; buf != NULL; buf = buf->next)
		buffer_flush(buf, 0);
	while (marks != NULL)
	{
		BufferMark *mark = marks;

		cutover_queue_mark(mark->target_id, mark->table_id, mark->reason);
		marks = mark->next;
	}
}

/*
 * Wake the replicators of what was committed.
 */
static void
buffer_wake(void)
{
	for (ChangeBuffer *buf = buffers; buf != NULL; buf = buf->next)
	{
		if (buf->wrote)
			cutover_policy_committed(buf->target_id, buf->slot);
		if (buf->wrote && buf->slot != NULL)
		{
			pg_atomic_write_u32(&buf->slot->dirty, 1);
			cutover_shmem_wake(buf->slot);
		}
	}
}

/*
 * End of a transaction.
 */
static void
buffer_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (touched)
				buffer_close();
			break;
		case XACT_EVENT_COMMIT:
			cutover_layout_commit();
			if (touched)
			{
				buffer_wake();
				buffer_reset();
			}
			break;
		case XACT_EVENT_PREPARE:
			/* whether the layouts will ever be there is open */
		case XACT_EVENT_ABORT:
			cutover_layout_rollback(InvalidSubTransactionId);
			if (touched)
				buffer_reset();
			break;
		default:
			break;
	}
}

/*
 * End of a subtransaction.
 */
static void
buffer_subxact_callback(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	if (cutover_queue_trying)
		return;					/* the writer's own subtransaction */
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		cutover_layout_rollback(subid);
		if (touched)
			buffer_rollback(subid);
	}
	else if (touched && event == SUBXACT_EVENT_PRE_COMMIT_SUB)
		buffer_spill_released(parent);
	else if (touched && event == SUBXACT_EVENT_COMMIT_SUB)
		buffer_released();
}

/*
 * Register the transaction callbacks.
 */
void
cutover_buffer_init(void)
{
	RegisterXactCallback(buffer_xact_callback, NULL);
	RegisterSubXactCallback(buffer_subxact_callback, NULL);
}
