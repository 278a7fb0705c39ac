/*
 * reader.c - the changes in a queue block.
 *
 * Runs in the replicator.  The bytes may be anything (a damaged page, a foreign
 * version): every length is checked against what is there before it is used,
 * and an image against its layout, so that damage ends in an error that says
 * where, never in a crash.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/tupmacs.h"
#include "catalog/namespace.h"
#include "executor/tuptable.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "batch.h"
#include "block.h"
#include "compat.h"
#include "pack.h"

/*
 * Complain about a block.
 */
static void
reader_damaged(const CutoverReader *reader, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("queue block (%u,%u) of segment %d does not decode: %s",
					ItemPointerGetBlockNumberNoCheck(&reader->ref->tid),
					ItemPointerGetOffsetNumberNoCheck(&reader->ref->tid),
					reader->ref->segment, what),
			 errdetail("It belongs to transaction " UINT64_FORMAT ", position %X/%X.",
					   reader->ref->xid, LSN_FORMAT_ARGS(reader->ref->lsn)),
			 errhint("Nothing from this block on is applied. Resolve the damage, or give up the queue: cutover_cancel(), then start again.")));
}

/*
 * Take n bytes.
 */
static void
reader_take(CutoverReader *reader, void *to, size_t n)
{
	if (n > (size_t) (reader->end - reader->p))
		reader_damaged(reader, "it ends too early");
	memcpy(to, reader->p, n);
	reader->p += n;
}

/*
 * Fetch a block's data by its place.
 */
void
cutover_reader_open(CutoverReader *reader, const CutoverWindow *window, const CutoverBlockRef *ref)
{
	char		name[NAMEDATALEN];
	Relation	rel;
	TupleTableSlot *slot;
	ItemPointerData tid = ref->tid;
	const char *why;
	Size		len;
	bool		isnull;

	reader->ref = ref;
	snprintf(name, sizeof(name), "_queue_%d_%d", window->target_id, ref->segment);
	rel = table_open(get_relname_relid(name, get_namespace_oid("cutover", false)), AccessShareLock);
	slot = table_slot_create(rel, NULL);
	if (!table_tuple_fetch_row_version(rel, &tid, GetActiveSnapshot(), slot))
		reader_damaged(reader, "it is not there");
	reader->p = cutover_unpack((struct varlena *) DatumGetPointer(slot_getattr(slot, 5, &isnull)), &len, &why);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);

	if (reader->p == NULL)
		reader_damaged(reader, why);
	reader->end = reader->p + len;
	reader->left = ref->n;
}

/*
 * Check that every attribute of an image lies within it.
 */
static bool
reader_image_fits(HeapTuple tup, TupleDesc desc)
{
	HeapTupleHeader td = tup->t_data;
	int			natts = HeapTupleHeaderGetNatts(td);
	const char *base = (const char *) td;
	uint32		off = td->t_hoff;

	if (natts > desc->natts || off > tup->t_len || off != MAXALIGN(off) ||
		off < MAXALIGN(SizeofHeapTupleHeader + (HeapTupleHasNulls(tup) ? BITMAPLEN(natts) : 0)))
		return false;
	for (int i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (HeapTupleHasNulls(tup) && att_isnull(i, td->t_bits))
			continue;
		if (att->attlen == -1)
		{
			off = att_align_pointer(off, att->attalign, -1, base + off);
			if (off >= tup->t_len || VARATT_IS_EXTERNAL(base + off) ||
				(!VARATT_IS_1B(base + off) && off + VARHDRSZ > tup->t_len) ||
				VARSIZE_ANY(base + off) < (VARATT_IS_1B(base + off) ? 1 : VARHDRSZ) ||
				VARSIZE_ANY(base + off) > tup->t_len - off)
				return false;
			off += VARSIZE_ANY(base + off);
		}
		else if (att->attlen == -2)
		{
			off = att_align_nominal(off, att->attalign);
			if (off >= tup->t_len || memchr(base + off, 0, tup->t_len - off) == NULL)
				return false;
			off += strlen(base + off) + 1;
		}
		else
		{
			off = att_align_nominal(off, att->attalign);
			off += att->attlen;
			if (off > tup->t_len)
				return false;
		}
	}
	return true;
}

/*
 * Read an image into a tuple of its own.
 */
static HeapTuple
reader_image(CutoverReader *reader, TupleDesc desc)
{
	uint32		len;
	HeapTuple	tup;

	reader_take(reader, &len, sizeof(len));
	if (len > (size_t) (reader->end - reader->p) ||
		len < SizeofHeapTupleHeader - CUTOVER_IMAGE_SKIP)
		reader_damaged(reader, "an image is too long or too short");
	tup = palloc0(HEAPTUPLESIZE + CUTOVER_IMAGE_SKIP + len);
	tup->t_len = CUTOVER_IMAGE_SKIP + len;
	tup->t_data = (HeapTupleHeader) ((char *) tup + HEAPTUPLESIZE);
	reader_take(reader, (char *) tup->t_data + CUTOVER_IMAGE_SKIP, len);
	if (!reader_image_fits(tup, desc))
		reader_damaged(reader, "an image does not fit its layout");
	return tup;
}

/*
 * Read the columns left out of an image.
 */
static Bitmapset *
reader_elided(CutoverReader *reader)
{
	Bitmapset  *result = NULL;
	uint16		count;

	reader_take(reader, &count, sizeof(count));
	for (int i = 0; i < count; i++)
	{
		int16		attnum;

		reader_take(reader, &attnum, sizeof(attnum));
		if (attnum <= 0)
			reader_damaged(reader, "a column number is not positive");
		result = bms_add_member(result, attnum);
	}
	return result;
}

/*
 * Read a control entry.
 */
static void
reader_control(CutoverReader *reader, CutoverChange *change)
{
	uint8		kind;
	uint32		len;

	reader_take(reader, &change->table_id, sizeof(change->table_id));
	reader_take(reader, &kind, sizeof(kind));
	reader_take(reader, &len, sizeof(len));
	if (len > (size_t) (reader->end - reader->p))
		reader_damaged(reader, "a text is too long");
	change->kind = kind;
	change->text = palloc(len + 1);
	reader_take(reader, change->text, len);
	change->text[len] = '\0';
}

/*
 * Read the next change; false at the end of the block.
 */
bool
cutover_reader_next(CutoverReader *reader, CutoverChange *change)
{
	uint8		op;
	int32		layout_id;

	memset(change, 0, sizeof(*change));
	if (reader->left == 0)
	{
		if (reader->p != reader->end)
			reader_damaged(reader, "it is longer than its changes");
		return false;
	}
	reader->left--;
	reader_take(reader, &op, sizeof(op));
	reader_take(reader, &change->flags, sizeof(change->flags));
	reader_take(reader, &layout_id, sizeof(layout_id));
	change->op = op;
	if (op == CUTOVER_OP_CONTROL)
	{
		reader_control(reader, change);
		return true;
	}
	if (op != CUTOVER_OP_INSERT && op != CUTOVER_OP_UPDATE && op != CUTOVER_OP_DELETE &&
		op != CUTOVER_OP_TRUNCATE && op != CUTOVER_OP_REFRESH)
		reader_damaged(reader, "an operation is unknown");
	change->layout = cutover_rowmap_get(layout_id);
	if (change->layout == NULL)
		reader_damaged(reader, "a layout is unknown");
	if (change->flags & CUTOVER_CHANGE_HAS_OLD)
		change->old = reader_image(reader, change->layout->desc);
	if (change->flags & CUTOVER_CHANGE_HAS_NEW)
		change->new = reader_image(reader, change->layout->desc);
	if (change->flags & CUTOVER_CHANGE_HAS_CTID)
	{
		reader_take(reader, &change->old_tid, sizeof(ItemPointerData));
		reader_take(reader, &change->new_tid, sizeof(ItemPointerData));
	}
	if (change->flags & CUTOVER_CHANGE_HAS_ELIDED)
		change->elided = reader_elided(reader);
	if ((op == CUTOVER_OP_INSERT || op == CUTOVER_OP_UPDATE) != (change->new != NULL) ||
		((op == CUTOVER_OP_DELETE || op == CUTOVER_OP_REFRESH) && change->old == NULL))
		reader_damaged(reader, "an image is missing");
	return true;
}
