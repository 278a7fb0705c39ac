/*
 * block.c - a queue block in readable form, for operators and tests.
 *
 * Nothing in a block is trusted: every length is checked against what is left,
 * and only types whose output functions can take any bytes are shown as text.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupmacs.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

#include "block.h"
#include "pack.h"
#include "compat.h"
#include "layout.h"

PG_FUNCTION_INFO_V1(cutover_block_changes);

#define BLOCK_COLUMNS 6
/* Of a value, that much is shown. */
#define BLOCK_SHOW 64

/* A position in a block. */
typedef struct BlockReader
{
	const char *p;
	const char *end;
	bool		damaged;
} BlockReader;

/* A layout is asked for once. */
typedef struct BlockLayout
{
	int32		layout_id;
	TupleDesc	desc;			/* NULL = there is none */
	struct BlockLayout *next;
} BlockLayout;

/*
 * Take len bytes; NULL, and damaged set, if there aren't as many.
 */
static const char *
block_take(BlockReader *reader, Size len)
{
	const char *p = reader->p;

	if (reader->damaged || (Size) (reader->end - reader->p) < len)
	{
		reader->damaged = true;
		return NULL;
	}
	reader->p += len;
	return p;
}

/*
 * Take a fixed-size value; zeroes if damaged.
 */
static void
block_take_into(BlockReader *reader, void *to, Size len)
{
	const char *p = block_take(reader, len);

	if (p != NULL)
		memcpy(to, p, len);
	else
		memset(to, 0, len);
}

/*
 * Bytes as hexadecimal digits, not too many.
 */
static void
block_show_bytes(StringInfo out, const char *p, Size len)
{
	appendStringInfoString(out, "\\x");
	for (Size i = 0; i < len && i < BLOCK_SHOW; i++)
		appendStringInfo(out, "%02x", (unsigned char) p[i]);
	if (len > BLOCK_SHOW)
		appendStringInfo(out, "... (%zu bytes)", len);
}

/*
 * Characters, if they are valid ones; not too many.
 */
static void
block_show_text(StringInfo out, const char *p, Size len)
{
	if (!pg_verifymbstr(p, len, true))
	{
		block_show_bytes(out, p, len);
		return;
	}
	appendBinaryStringInfo(out, p, len > BLOCK_SHOW ? pg_mbcliplen(p, len, BLOCK_SHOW) : len);
	if (len > BLOCK_SHOW)
		appendStringInfo(out, "... (%zu bytes)", len);
}

/*
 * A variable-length value of size bytes at p, header included.
 */
static void
block_show_varlena(StringInfo out, Oid type, const char *p, Size size)
{
	bool		is_text = type == TEXTOID || type == VARCHAROID || type == BPCHAROID;

	if (VARATT_IS_COMPRESSED(p))
		appendStringInfo(out, "<compressed, %zu bytes>", size);
	else if (is_text)
		block_show_text(out, VARDATA_ANY(p), VARSIZE_ANY_EXHDR(p));
	else
		block_show_bytes(out, VARDATA_ANY(p), VARSIZE_ANY_EXHDR(p));
}

/*
 * A fixed-length value.
 */
static void
block_show_fixed(StringInfo out, Form_pg_attribute att, const char *p)
{
	Oid			function;
	bool		is_varlena;

	switch (att->atttypid)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case UUIDOID:
			if (att->attlen != get_typlen(att->atttypid) || att->attbyval != get_typbyval(att->atttypid))
				break;
			getTypeOutputInfo(att->atttypid, &function, &is_varlena);
			appendStringInfoString(out, OidOutputFunctionCall(function, fetch_att(p, att->attbyval, att->attlen)));
			return;
		default:
			break;
	}
	block_show_bytes(out, p, att->attlen);
}

/*
 * Size of the variable-length value at p, header included; 0 if it isn't one
 * that ends before end.
 */
static Size
block_varlena_size(const char *p, const char *end)
{
	Size		size;

	if (p >= end || VARATT_IS_1B_E(p))
		return 0;
	if (VARATT_IS_1B(p))
		size = VARSIZE_1B(p);
	else if (end - p < VARHDRSZ)
		return 0;
	else
	{
		size = VARSIZE_4B(p);
		if (size < (VARATT_IS_4B_C(p) ? VARHDRSZ_COMPRESSED : VARHDRSZ))
			return 0;
	}
	return size == 0 || size > (Size) (end - p) ? 0 : size;
}

/*
 * One attribute at *off of the tuple; false if it doesn't fit.
 */
static bool
block_show_attribute(StringInfo out, Form_pg_attribute att, const char *tuple, Size *off, Size len)
{
	Size		size;

	if (att->attlen == -1)
	{
		if (*off >= len)
			return false;
		*off = att_align_pointer(*off, att->attalign, -1, tuple + *off);
		if (*off >= len || (size = block_varlena_size(tuple + *off, tuple + len)) == 0)
			return false;
		block_show_varlena(out, att->atttypid, tuple + *off, size);
	}
	else if (att->attlen > 0)
	{
		*off = att_align_nominal(*off, att->attalign);
		size = att->attlen;
		if (*off > len || len - *off < size)
			return false;
		block_show_fixed(out, att, tuple + *off);
	}
	else
	{
		if (*off >= len)
			return false;
		size = strnlen(tuple + *off, len - *off) + 1;
		if (size > len - *off)
			return false;
		block_show_text(out, tuple + *off, size - 1);
	}
	*off += size;
	return true;
}

/*
 * An image as column=value pairs; NULL if it is damaged.
 */
static char *
block_show_image(TupleDesc desc, const char *image, uint32 len)
{
	StringInfoData out;
	HeapTupleHeader header;
	Size		total = CUTOVER_IMAGE_SKIP + (Size) len;
	Size		off;
	int			natts;

	initStringInfo(&out);
	if (len < SizeofHeapTupleHeader - CUTOVER_IMAGE_SKIP)
		return NULL;
	if (desc == NULL)
	{
		block_show_bytes(&out, image, len);
		return out.data;
	}
	header = palloc0(MAXALIGN(total));
	memcpy((char *) header + CUTOVER_IMAGE_SKIP, image, len);
	natts = HeapTupleHeaderGetNatts(header);
	off = header->t_hoff;
	if (natts > desc->natts || off > total || off != MAXALIGN(off) ||
		off < SizeofHeapTupleHeader + ((header->t_infomask & HEAP_HASNULL) ? BITMAPLEN(natts) : 0))
		return NULL;
	for (int i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		appendStringInfo(&out, "%s%s=", i > 0 ? " " : "", NameStr(att->attname));
		if ((header->t_infomask & HEAP_HASNULL) && att_isnull(i, header->t_bits))
			appendStringInfoString(&out, "NULL");
		else if (!block_show_attribute(&out, att, (char *) header, &off, total))
			return NULL;
	}
	return out.data;
}

/*
 * The descriptor of a layout.
 */
static TupleDesc
block_layout(BlockLayout **layouts, int32 layout_id)
{
	BlockLayout *layout;

	for (layout = *layouts; layout != NULL; layout = layout->next)
		if (layout->layout_id == layout_id)
			return layout->desc;
	layout = palloc0(sizeof(BlockLayout));
	layout->layout_id = layout_id;
	layout->desc = cutover_layout_read(layout_id);
	layout->next = *layouts;
	*layouts = layout;
	return layout->desc;
}

/*
 * Take and show an image.
 */
static char *
block_take_image(BlockReader *reader, TupleDesc desc)
{
	uint32		len;
	const char *image;
	char	   *shown;

	block_take_into(reader, &len, sizeof(len));
	image = block_take(reader, len);
	if (image == NULL)
		return NULL;
	shown = block_show_image(desc, image, len);
	if (shown == NULL)
		reader->damaged = true;
	return shown;
}

/*
 * Take what follows the images, and describe it.
 */
static void
block_take_rest(BlockReader *reader, uint8 op, uint8 flags, StringInfo detail)
{
	if (flags & CUTOVER_CHANGE_HAS_CTID)
	{
		ItemPointerData tids[2];

		block_take_into(reader, tids, sizeof(tids));
		for (int i = 0; i < 2; i++)
			appendStringInfo(detail, "%s(%u,%u)", i > 0 ? " -> " : "ctid ",
							 ItemPointerGetBlockNumberNoCheck(&tids[i]), ItemPointerGetOffsetNumberNoCheck(&tids[i]));
	}
	if (flags & CUTOVER_CHANGE_HAS_ELIDED)
	{
		uint16		count;
		int16		attnum;

		block_take_into(reader, &count, sizeof(count));
		appendStringInfoString(detail, detail->len > 0 ? ", left out" : "left out");
		for (int i = 0; i < count && !reader->damaged; i++)
		{
			block_take_into(reader, &attnum, sizeof(attnum));
			appendStringInfo(detail, " %d", attnum);
		}
	}
	if (op == CUTOVER_OP_CONTROL)
	{
		int32		table_id;
		char		kind;
		uint32		len;
		const char *p;

		block_take_into(reader, &table_id, sizeof(table_id));
		block_take_into(reader, &kind, sizeof(kind));
		block_take_into(reader, &len, sizeof(len));
		p = block_take(reader, len);
		if (p != NULL && kind >= ' ' && kind <= '~' && pg_verifymbstr(p, len, true))
		{
			appendStringInfo(detail, "%c %d ", kind, table_id);
			appendBinaryStringInfo(detail, p, len);
		}
		else
			reader->damaged = true;
	}
}

/*
 * cutover._block_changes(data bytea)
 */
Datum
cutover_block_changes(PG_FUNCTION_ARGS)
{
	Size		len = 0;
	const char *why;
	const char *start = cutover_unpack(PG_GETARG_BYTEA_PP(0), &len, &why);
	BlockReader reader = {.p = start, .end = start + len, .damaged = start == NULL};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	BlockLayout *layouts = NULL;

	InitMaterializedSRF(fcinfo, 0);
	while (reader.damaged || reader.p < reader.end)
	{
		Datum		values[BLOCK_COLUMNS] = {0};
		bool		nulls[BLOCK_COLUMNS];
		Size		at = reader.p - start;
		uint8		op;
		uint8		flags;
		int32		layout_id;
		char	   *row;
		StringInfoData detail;

		CHECK_FOR_INTERRUPTS();
		memset(nulls, true, sizeof(nulls));
		initStringInfo(&detail);
		block_take_into(&reader, &op, sizeof(op));
		block_take_into(&reader, &flags, sizeof(flags));
		block_take_into(&reader, &layout_id, sizeof(layout_id));
		if ((flags & CUTOVER_CHANGE_HAS_OLD) &&
			(row = block_take_image(&reader, block_layout(&layouts, layout_id))) != NULL)
		{
			values[3] = CStringGetTextDatum(row);
			nulls[3] = false;
		}
		if ((flags & CUTOVER_CHANGE_HAS_NEW) &&
			(row = block_take_image(&reader, block_layout(&layouts, layout_id))) != NULL)
		{
			values[4] = CStringGetTextDatum(row);
			nulls[4] = false;
		}
		block_take_rest(&reader, op, flags, &detail);
		if (reader.damaged)
		{
			memset(nulls, true, sizeof(nulls));
			resetStringInfo(&detail);
			appendStringInfo(&detail, "damaged from byte %zu on", at);
		}
		else
		{
			values[0] = CharGetDatum(op);
			values[1] = Int32GetDatum(flags);
			values[2] = Int32GetDatum(layout_id);
			nulls[0] = nulls[1] = nulls[2] = false;
		}
		if (detail.len > 0)
		{
			values[5] = CStringGetTextDatum(detail.data);
			nulls[5] = false;
		}
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		if (reader.damaged)
			break;
	}
	return (Datum) 0;
}
