/*
 * capture.c - the trigger function: one row change becomes one entry of the buffer.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/partition.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "block.h"
#include "buffer.h"
#include "capture.h"
#include "compat.h"
#include "dual.h"
#include "fence.h"
#include "partition.h"
#include "guc.h"
#include "image.h"
#include "layout.h"
#include "route_fresh.h"
#include "tracked.h"

PG_FUNCTION_INFO_V1(cutover_capture_trigger);

bool		cutover_capture_disabled = false;
bool		cutover_capture_rewrite_is_ours = false;

/* A change must fit into one value, with some headers. */
#define CAPTURE_MAX_SIZE (MaxAllocSize - 1024 * 1024)
#define CAPTURE_TOO_LARGE "a row is too large to be captured; cutover_resync() copies the table afresh"

static MemoryContext image_cxt = NULL;	/* emptied after each change */

/* The parts of a change, as block.h has them. */
typedef struct Change
{
	uint8		op;
	uint8		flags;
	int32		layout_id;
	HeapTuple	old;
	HeapTuple	new;
	ItemPointerData old_ctid;
	ItemPointerData new_ctid;
	int			nelided;
	int16	   *elided;
} Change;

/*
 * Bytes of an image with its length.
 */
static inline Size
capture_image_size(HeapTuple tuple)
{
	return sizeof(uint32) + tuple->t_len - CUTOVER_IMAGE_SKIP;
}

/*
 * Write an image.
 */
static inline char *
capture_put_image(char *p, HeapTuple tuple)
{
	uint32		len = tuple->t_len - CUTOVER_IMAGE_SKIP;

	memcpy(p, &len, sizeof(len));
	memcpy(p + sizeof(len), (char *) tuple->t_data + CUTOVER_IMAGE_SKIP, len);
	return p + sizeof(len) + len;
}

/*
 * A change can't, or shall not, be captured: do what cutover.capture says.
 */
static void
capture_refuse(const CutoverRelation *entry, Relation rel, const char *reason)
{
	if (cutover_guc_capture == CUTOVER_CAPTURE_STRICT)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("change of table \"%s\" could not be captured", RelationGetRelationName(rel)),
				 errdetail("%s", reason),
				 errhint("With cutover.capture = mark the transaction succeeds and the table is marked for resync.")));
	cutover_buffer_mark(entry->target_id, entry->table_id, reason);
}

/*
 * Append a change to the buffer.
 */
static void
capture_append(const CutoverRelation *entry, Relation rel, Change *change)
{
	Size		len = 2 + sizeof(int32);
	char	   *p;

	if (change->old)
	{
		len += capture_image_size(change->old);
		change->flags |= CUTOVER_CHANGE_HAS_OLD;
	}
	if (change->new)
	{
		len += capture_image_size(change->new);
		change->flags |= CUTOVER_CHANGE_HAS_NEW;
	}
	if (change->flags & CUTOVER_CHANGE_HAS_CTID)
		len += 2 * sizeof(ItemPointerData);
	if (change->nelided > 0)
	{
		len += sizeof(uint16) + change->nelided * sizeof(int16);
		change->flags |= CUTOVER_CHANGE_HAS_ELIDED;
	}
	if (len > CAPTURE_MAX_SIZE)
	{
		capture_refuse(entry, rel, CAPTURE_TOO_LARGE);
		return;
	}
	p = cutover_buffer_reserve(entry->target_id, entry->table_id, len, false);
	*p++ = change->op;
	*p++ = change->flags;
	memcpy(p, &change->layout_id, sizeof(int32));
	p += sizeof(int32);
	if (change->old)
		p = capture_put_image(p, change->old);
	if (change->new)
		p = capture_put_image(p, change->new);
	if (change->flags & CUTOVER_CHANGE_HAS_CTID)
	{
		memcpy(p, &change->old_ctid, sizeof(ItemPointerData));
		memcpy(p + sizeof(ItemPointerData), &change->new_ctid, sizeof(ItemPointerData));
		p += 2 * sizeof(ItemPointerData);
	}
	if (change->nelided > 0)
	{
		uint16		count = change->nelided;

		memcpy(p, &count, sizeof(count));
		memcpy(p + sizeof(count), change->elided, count * sizeof(int16));
	}
	cutover_buffer_done();
}

/*
 * Was this version of the row already replaced by the transaction that made
 * it?  Then a trigger has come in between, and the newer image is captured already or will be.
 */
static inline bool
capture_superseded(HeapTuple tuple)
{
	uint16		infomask = tuple->t_data->t_infomask;

	if ((infomask & HEAP_XMAX_INVALID) || HEAP_XMAX_IS_LOCKED_ONLY(infomask))
		return false;
	return TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetUpdateXid(tuple->t_data));
}

/*
 * May an old key by now belong to a newer row?  It may if the key's constraint
 * is deferrable, and if a later command's change of this table was captured before this one:
 * then a trigger of the user ran in between.  Notes the command.
 */
static inline bool
capture_out_of_order(CutoverRelation *entry, CommandId cid)
{
	CutoverTableState *state = entry->state;
	LocalTransactionId lxid = cutover_my_lxid_compat();

	if (state->lxid == lxid && cid < state->last_cid)
		return true;
	state->lxid = lxid;
	state->last_cid = cid;
	return entry->key_reused;
}

/*
 * The commands that made and removed a version of a row; one of the current
 * transaction, even if COPY FREEZE has it look older.
 */
static inline CommandId
capture_cmin(HeapTuple tuple)
{
	if (tuple->t_data->t_infomask & HEAP_COMBOCID)
		return HeapTupleHeaderGetCmin(tuple->t_data);
	return HeapTupleHeaderGetRawCommandId(tuple->t_data);
}

static inline CommandId
capture_cmax(HeapTuple tuple)
{
	if (tuple->t_data->t_infomask & HEAP_COMBOCID)
		return HeapTupleHeaderGetCmax(tuple->t_data);
	return HeapTupleHeaderGetRawCommandId(tuple->t_data);
}

/*
 * An old key that may be in use again: new reads it afresh.
 */
static void
capture_refresh(CutoverRelation *entry, Relation rel, int32 layout_id, HeapTuple old)
{
	Change		change = {.op = CUTOVER_OP_REFRESH, .layout_id = layout_id};

	change.old = cutover_image_old(entry, rel, old);
	if (entry->whole_old)
		change.flags |= CUTOVER_CHANGE_OLD_IS_ROW;
	capture_append(entry, rel, &change);
}

/*
 * AFTER INSERT.
 */
static void
capture_insert(CutoverRelation *entry, Relation rel, HeapTuple tuple)
{
	Change		change = {.op = CUTOVER_OP_INSERT};
	CutoverImage image;

	(void) capture_out_of_order(entry, capture_cmin(tuple));
	if (entry->nkeys > 0 && capture_superseded(tuple))
		return;
	change.layout_id = cutover_layout_get(entry, rel);
	cutover_image_row(&image, entry, rel, tuple, NULL);
	change.new = image.tuple;
	if (entry->nkeys == 0)
	{
		change.flags = CUTOVER_CHANGE_HAS_CTID;
		ItemPointerSetInvalid(&change.old_ctid);
		change.new_ctid = tuple->t_self;
	}
	capture_append(entry, rel, &change);
}

/*
 * AFTER DELETE.
 */
static void
capture_delete(CutoverRelation *entry, Relation rel, HeapTuple tuple, bool out_of_order)
{
	Change		change = {.op = CUTOVER_OP_DELETE};

	change.layout_id = cutover_layout_get(entry, rel);
	if (out_of_order && entry->nkeys > 0)
	{
		capture_refresh(entry, rel, change.layout_id, tuple);
		return;
	}
	change.old = cutover_image_old(entry, rel, tuple);
	if (entry->whole_old)
		change.flags |= CUTOVER_CHANGE_OLD_IS_ROW;
	if (entry->nkeys == 0)
	{
		change.flags |= CUTOVER_CHANGE_HAS_CTID;
		change.old_ctid = tuple->t_self;
		ItemPointerSetInvalid(&change.new_ctid);
	}
	capture_append(entry, rel, &change);
}

/*
 * AFTER UPDATE of a table without key.
 */
static void
capture_update_keyless(CutoverRelation *entry, Relation rel, HeapTuple old, HeapTuple new)
{
	Change		change = {.op = CUTOVER_OP_UPDATE};
	CutoverImage image;

	change.flags = CUTOVER_CHANGE_OLD_IS_ROW | CUTOVER_CHANGE_HAS_CTID;
	change.layout_id = cutover_layout_get(entry, rel);
	change.old = cutover_image_old(entry, rel, old);
	cutover_image_row(&image, entry, rel, new, NULL);
	change.new = image.tuple;
	change.old_ctid = old->t_self;
	change.new_ctid = new->t_self;
	capture_append(entry, rel, &change);
}

/*
 * AFTER UPDATE.
 */
static void
capture_update(CutoverRelation *entry, Relation rel, HeapTuple old, HeapTuple new)
{
	Change		change = {.op = CUTOVER_OP_UPDATE};
	CutoverImage image;
	bool		key_changed;
	bool		out_of_order = capture_out_of_order(entry, capture_cmin(new));
	bool		superseded;

	if (entry->nkeys == 0)
	{
		capture_update_keyless(entry, rel, old, new);
		return;
	}
	key_changed = cutover_image_key_changed(entry, rel, old, new);
	superseded = capture_superseded(new);
	if (superseded && !key_changed)
		return;
	change.layout_id = cutover_layout_get(entry, rel);
	if (key_changed && (superseded || out_of_order))
	{
		capture_refresh(entry, rel, change.layout_id, old);
		if (superseded)
			return;
	}
	else if (key_changed || entry->whole_old)
	{
		change.old = cutover_image_old(entry, rel, old);
		if (entry->whole_old)
			change.flags |= CUTOVER_CHANGE_OLD_IS_ROW;
	}
	if (key_changed || entry->copying || entry->none_elidable ||
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(old->t_data)))
		cutover_image_row(&image, entry, rel, new, NULL);
	else
	{
		cutover_image_row(&image, entry, rel, new, old);
		change.nelided = image.nelided;
		change.elided = image.elided;
	}
	change.new = image.tuple;
	capture_append(entry, rel, &change);
}

/*
 * Capture a row that no trigger fired for.
 */
void
cutover_capture_row(CutoverRelation *entry, Relation rel, char op, HeapTuple tuple)
{
	MemoryContext old = MemoryContextSwitchTo(image_cxt);
	Change		change = {.op = op, .layout_id = cutover_layout_get(entry, rel)};
	CutoverImage image;

	if (op == CUTOVER_OP_INSERT)
	{
		cutover_image_row(&image, entry, rel, tuple, NULL);
		change.new = image.tuple;
	}
	else
	{
		change.old = cutover_image_old(entry, rel, tuple);
		if (entry->whole_old)
			change.flags |= CUTOVER_CHANGE_OLD_IS_ROW;
	}
	if (entry->nkeys == 0 && op != CUTOVER_OP_REFRESH)
	{
		change.flags |= CUTOVER_CHANGE_HAS_CTID;
		ItemPointerSetInvalid(&change.old_ctid);
		ItemPointerSetInvalid(&change.new_ctid);
		if (op == CUTOVER_OP_INSERT)
			change.new_ctid = tuple->t_self;
		else
			change.old_ctid = tuple->t_self;
	}
	capture_append(entry, rel, &change);
	MemoryContextSwitchTo(old);
	MemoryContextReset(image_cxt);
}

/*
 * Did the TRUNCATE that is just ending give sequences of the table a new start?  They
 * have a new file then, made in this subtransaction.
 */
static bool
capture_restarted_sequences(Relation rel)
{
	List	   *sequences = getOwnedSequences(RelationGetRelid(rel));
	ListCell   *lc;
	bool		restarted = false;

	foreach(lc, sequences)
	{
		Relation	seq = RelationIdGetRelation(lfirst_oid(lc));

		if (seq == NULL)
			continue;
		restarted |= cutover_newfile_subid_compat(seq) == GetCurrentSubTransactionId();
		RelationClose(seq);
	}
	list_free(sequences);
	return restarted;
}

/*
 * TRUNCATE.  An ordinary table: AFTER, one entry.  Of a partition tree the root
 * (BEFORE, and first) stands for all; a partition truncated by itself has its rows deleted one by one, as new may
 * be cut into other partitions or none.
 */
static void
capture_truncate(CutoverRelation *entry, Relation rel)
{
	static Oid	root_of_all = InvalidOid;
	static CommandId root_cid = 0;
	static LocalTransactionId root_lxid = InvalidLocalTransactionId;
	Change		change = {.op = CUTOVER_OP_TRUNCATE};

	if (entry->root != RelationGetRelid(rel))
	{
		if (root_of_all != entry->root || root_cid != GetCurrentCommandId(false) ||
			root_lxid != cutover_my_lxid_compat())
			cutover_partition_capture_rows(rel, CUTOVER_OP_DELETE);
		return;
	}
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		root_of_all = entry->root;
		root_cid = GetCurrentCommandId(false);
		root_lxid = cutover_my_lxid_compat();
	}
	else if (capture_restarted_sequences(rel))
		change.flags = CUTOVER_CHANGE_RESTART_SEQS;
	change.layout_id = cutover_layout_get(entry, rel);
	capture_append(entry, rel, &change);
}

/*
 * The lock of those who leave changes of a table out.
 */
static LOCKTAG
capture_gap_tag(int32 table_id)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, cutover_tracked_config("_table"), (uint32) table_id, 0);
	return tag;
}

/*
 * Say that this transaction leaves changes of a table out.
 */
void
cutover_capture_lock_gap(int32 table_id)
{
	LOCKTAG		tag = capture_gap_tag(table_id);

	(void) LockAcquire(&tag, RowExclusiveLock, false, false);
	AcceptInvalidationMessages();
}

/*
 * Is there no open transaction that did?
 */
bool
cutover_capture_no_gap(int32 table_id)
{
	LOCKTAG		tag = capture_gap_tag(table_id);

	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	LockRelease(&tag, ShareLock, false);
	return true;
}

/*
 * Does the table need a resync anyway?  Known for sure once we hold the lock:
 * a copy that begins later waits for us.
 */
static bool
capture_left_out(CutoverRelation *entry, Relation rel)
{
	if (!entry->marked)
		return false;
	cutover_capture_lock_gap(entry->table_id);
	entry = cutover_tracked_relation(rel);
	return !entry->active || entry->marked;
}

/*
 * Would the row, with what is stored out of line, be too large?
 */
static inline bool
capture_too_large(Relation rel, HeapTuple tuple)
{
	return HeapTupleHasExternal(tuple) && cutover_image_too_large(rel, tuple);
}

/*
 * Changes of a relation that can't, or shall not, be captured now.  True if
 * there is nothing more to do.
 */
static bool
capture_refused(CutoverRelation *entry, TriggerData *data)
{
	Relation	rel = data->tg_relation;
	const char *reason = NULL;

	if (capture_left_out(entry, rel))
		return true;
	if (cutover_guc_capture == CUTOVER_CAPTURE_OFF)
		reason = "changes were made while cutover.capture was off; cutover_resync() copies the table afresh";
	else if (entry->key_lost)
		reason = "a key column was dropped; cutover_remove_table() and cutover_add_table() take the table with its present key";
	else if (rel->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		reason = "rows of a partition that is a foreign table can't be captured; detach it, or leave the table out";
	else if (TRIGGER_FIRED_FOR_ROW(data->tg_event) &&
			 (((entry->whole_old || TRIGGER_FIRED_BY_INSERT(data->tg_event)) &&
			   capture_too_large(rel, data->tg_trigtuple)) ||
			  (TRIGGER_FIRED_BY_UPDATE(data->tg_event) && capture_too_large(rel, data->tg_newtuple))))
		reason = CAPTURE_TOO_LARGE;
	if (reason == NULL)
		return false;
	capture_refuse(entry, rel, reason);
	return true;
}

/*
 * cutover._capture() - trigger function
 */
Datum
cutover_capture_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	CutoverRelation *entry;
	MemoryContext old;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		(TRIGGER_FIRED_BY_TRUNCATE(data->tg_event) ? !TRIGGER_FIRED_FOR_STATEMENT(data->tg_event) :
		 !(TRIGGER_FIRED_FOR_ROW(data->tg_event) && TRIGGER_FIRED_AFTER(data->tg_event))))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function cutover._capture() was not called as it should be"),
				 errdetail("It is a trigger function for AFTER ... FOR EACH ROW and for TRUNCATE."),
				 errhint("Its triggers are made by cutover_start() and cutover_add_table().")));
	if (cutover_capture_disabled)
		return PointerGetDatum(NULL);
	entry = cutover_tracked_relation(data->tg_relation);
	/* logical replication, or a child by way of its parent: no statement trigger has done it */
	if (entry->target != NULL)
		cutover_fence_enter(entry->target, RelationGetRelid(data->tg_relation));
	if (!entry->active || capture_refused(entry, data))
		return PointerGetDatum(NULL);
	old = MemoryContextSwitchTo(image_cxt);
	if (cutover_route_reads_stale && TRIGGER_FIRED_FOR_ROW(data->tg_event) && !TRIGGER_FIRED_BY_INSERT(data->tg_event))
		cutover_route_check_fresh(entry->target_id, data->tg_trigtuple);
	if (TRIGGER_FIRED_BY_INSERT(data->tg_event))
		capture_insert(entry, data->tg_relation, data->tg_trigtuple);
	else if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
		capture_update(entry, data->tg_relation, data->tg_trigtuple, data->tg_newtuple);
	else if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		capture_delete(entry, data->tg_relation, data->tg_trigtuple,
					   capture_out_of_order(entry, capture_cmax(data->tg_trigtuple)));
	else
		capture_truncate(entry, data->tg_relation);
	if (!entry->target->valid || entry->target->dual_write)
		cutover_dual_consider(entry, data->tg_relation,
							  TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple : data->tg_trigtuple);
	MemoryContextSwitchTo(old);
	MemoryContextReset(image_cxt);
	return PointerGetDatum(NULL);
}

/*
 * Set everything up that lives in a client's backend.
 */
void
cutover_capture_init(void)
{
	image_cxt = AllocSetContextCreate(TopMemoryContext, "cutover image", ALLOCSET_DEFAULT_SIZES);
	cutover_tracked_init();
	cutover_dual_init();		/* its callbacks must run after those of the buffer */
	cutover_buffer_init();
}
