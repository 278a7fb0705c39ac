/*
 * image.c - from a tuple as a trigger sees it to one that can be kept.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#include "compat.h"
#include "image.h"

/* A block must fit into one value, with some headers. */
#define IMAGE_MAX_SIZE (MaxAllocSize - 1024 * 1024)

/*
 * Add the values of a row that are stored out of line.
 */
bool
cutover_image_too_large(Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Size		size = tuple->t_len;

	if (!HeapTupleHasExternal(tuple))
		return size > IMAGE_MAX_SIZE;
	for (int i = 0; i < desc->natts; i++)
	{
		bool		isnull;
		Datum		value;

		if (TupleDescAttr(desc, i)->attlen != -1)
			continue;
		value = heap_getattr(tuple, i + 1, desc, &isnull);
		if (!isnull && VARATT_IS_EXTERNAL(DatumGetPointer(value)))
			size += toast_datum_size(value);
	}
	return size > IMAGE_MAX_SIZE;
}

/*
 * A tuple with nothing out of line and with all attributes.
 */
static HeapTuple
image_complete(Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);

	if (HeapTupleHeaderGetNatts(tuple->t_data) < desc->natts)
		tuple = heap_expand_tuple(tuple, desc);
	if (HeapTupleHasExternal(tuple))
		tuple = toast_flatten_tuple(tuple, desc);
	return tuple;
}

/*
 * Is this the same value, stored out of line, in both versions of the row?
 */
static bool
image_same_external(Datum value, Datum old)
{
	struct varlena *a = (struct varlena *) DatumGetPointer(value);
	struct varlena *b = (struct varlena *) DatumGetPointer(old);

	return VARATT_IS_EXTERNAL_ONDISK(a) && VARATT_IS_EXTERNAL_ONDISK(b) &&
		memcmp(a, b, VARSIZE_EXTERNAL(a)) == 0;
}

/*
 * The whole row.
 */
void
cutover_image_row(CutoverImage *image, const CutoverRelation *entry, Relation rel,
				  HeapTuple tuple, HeapTuple old)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values;
	Datum	   *old_values;
	bool	   *nulls;
	bool	   *old_nulls;

	image->nelided = 0;
	image->elided = NULL;
	if (old == NULL || !HeapTupleHasExternal(tuple) || !HeapTupleHasExternal(old))
	{
		image->tuple = image_complete(rel, tuple);
		return;
	}
	values = palloc(sizeof(Datum) * desc->natts * 2);
	nulls = palloc(sizeof(bool) * desc->natts * 2);
	old_values = values + desc->natts;
	old_nulls = nulls + desc->natts;
	heap_deform_tuple(tuple, desc, values, nulls);
	heap_deform_tuple(old, desc, old_values, old_nulls);
	image->elided = palloc(sizeof(int16) * desc->natts);
	for (int i = 0; i < desc->natts; i++)
	{
		if (nulls[i] || TupleDescAttr(desc, i)->attlen != -1 ||
			!VARATT_IS_EXTERNAL(DatumGetPointer(values[i])))
			continue;
		if (!old_nulls[i] && !bms_is_member(i + 1, entry->not_elidable) &&
			image_same_external(values[i], old_values[i]))
		{
			nulls[i] = true;
			image->elided[image->nelided++] = i + 1;
		}
		else
			values[i] = PointerGetDatum(detoast_external_attr((struct varlena *) DatumGetPointer(values[i])));
	}
	image->tuple = heap_form_tuple(desc, values, nulls);
}

/*
 * What identifies the old row.
 */
HeapTuple
cutover_image_old(const CutoverRelation *entry, Relation rel, HeapTuple tuple)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			natts;
	Datum	   *values;
	bool	   *nulls;

	if (entry->whole_old)
		return image_complete(rel, tuple);
	natts = entry->key_desc->natts;
	values = palloc(sizeof(Datum) * natts);
	nulls = palloc(sizeof(bool) * natts);
	memset(nulls, true, natts * sizeof(bool));
	for (int i = 0; i < entry->nkeys; i++)
	{
		int			att = entry->keys[i] - 1;

		values[att] = heap_getattr(tuple, att + 1, desc, &nulls[att]);
		if (!nulls[att] && TupleDescAttr(desc, att)->attlen == -1 &&
			VARATT_IS_EXTERNAL(DatumGetPointer(values[att])))
			values[att] = PointerGetDatum(detoast_external_attr((struct varlena *) DatumGetPointer(values[att])));
	}
	return heap_form_tuple(entry->key_desc, values, nulls);
}

/*
 * Did the key change?  Values that differ only in how they are stored count as
 * changed: that costs a little and does no harm.
 */
bool
cutover_image_key_changed(const CutoverRelation *entry, Relation rel, HeapTuple old, HeapTuple new)
{
	TupleDesc	desc = RelationGetDescr(rel);

	if (entry->hot_keeps_key && HeapTupleIsHeapOnly(new))
		return false;
	for (int i = 0; i < entry->nkeys; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, entry->keys[i] - 1);
		bool		old_null;
		bool		new_null;
		Datum		a = heap_getattr(old, entry->keys[i], desc, &old_null);
		Datum		b = heap_getattr(new, entry->keys[i], desc, &new_null);

		if (old_null != new_null || (!old_null && !datumIsEqual(a, b, att->attbyval, att->attlen)))
			return true;
	}
	return false;
}
