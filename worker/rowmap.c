/*
 * rowmap.c - from a captured image to a row of new.
 *
 * Runs in the replicator.  An image is read with the layout of its time; each
 * attribute then goes to the column of new that carries its name (or, after a
 * rename, the attribute's present name), or through the table's expressions.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "mapping.h"

static HTAB *layouts = NULL;
static MemoryContext layout_context = NULL;

/*
 * Drop all layouts; they are read again when met.
 */
void
cutover_rowmap_forget(void)
{
	if (layout_context != NULL)
		MemoryContextDelete(layout_context);
	layout_context = NULL;
	layouts = NULL;
}

static void
layout_make_cache(void)
{
	HASHCTL		ctl = {.keysize = sizeof(int32),.entrysize = sizeof(CutoverLayout)};

	layout_context = AllocSetContextCreate(TopMemoryContext, "cutover layouts", ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = layout_context;
	layouts = hash_create("cutover layouts", 128, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Elements of the array in column col of the SPI result's only row.
 */
static Datum *
layout_spi_array(int col, Oid type, int len, bool byval, char align, int *n)
{
	bool		isnull;
	Datum		array = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, col, &isnull);
	Datum	   *elems;

	deconstruct_array(DatumGetArrayTypeP(array), type, len, byval, align, &elems, NULL, n);
	return elems;
}

/*
 * Build the descriptor of the SPI result's only row.
 */
static void
layout_build(CutoverLayout *layout)
{
	int			n;
	Datum	   *name = layout_spi_array(3, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &n);
	Datum	   *typid = layout_spi_array(4, OIDOID, 4, true, TYPALIGN_INT, &n);
	Datum	   *typmod = layout_spi_array(5, INT4OID, 4, true, TYPALIGN_INT, &n);
	Datum	   *len = layout_spi_array(6, INT2OID, 2, true, TYPALIGN_SHORT, &n);
	Datum	   *byval = layout_spi_array(7, BOOLOID, 1, true, TYPALIGN_CHAR, &n);
	Datum	   *align = layout_spi_array(8, CHAROID, 1, true, TYPALIGN_CHAR, &n);
	Datum	   *storage = layout_spi_array(9, CHAROID, 1, true, TYPALIGN_CHAR, &n);
	Datum	   *collation = layout_spi_array(10, OIDOID, 4, true, TYPALIGN_INT, &n);
	Datum	   *root = layout_spi_array(11, INT2OID, 2, true, TYPALIGN_SHORT, &n);
	MemoryContext old = MemoryContextSwitchTo(layout_context);

	layout->desc = CreateTemplateTupleDesc(n);
	layout->root_attnum = palloc0(Max(n, 1) * sizeof(AttrNumber));
	layout->out = palloc0(Max(n, 1) * sizeof(FmgrInfo));
	layout->col = palloc0(Max(n, 1) * sizeof(int));
	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute att = TupleDescAttr(layout->desc, i);
		Oid			out;
		bool		varlena;

		memset(att, 0, ATTRIBUTE_FIXED_PART_SIZE);
		att->attnum = i + 1;
		namestrcpy(&att->attname, NameStr(*DatumGetName(name[i])));
		att->atttypid = DatumGetObjectId(typid[i]);
		att->atttypmod = DatumGetInt32(typmod[i]);
		att->attlen = DatumGetInt16(len[i]);
		att->attbyval = DatumGetBool(byval[i]);
		att->attalign = DatumGetChar(align[i]);
		att->attstorage = DatumGetChar(storage[i]);
		att->attcollation = DatumGetObjectId(collation[i]);
		att->attisdropped = !OidIsValid(att->atttypid);
#if PG_VERSION_NUM >= 180000
		populate_compact_attribute(layout->desc, i);
#else
		att->attcacheoff = -1;
#endif
		layout->root_attnum[i] = DatumGetInt16(root[i]);
		if (att->attisdropped)
			continue;
		getTypeOutputInfo(att->atttypid, &out, &varlena);
		fmgr_info_cxt(out, &layout->out[i], layout_context);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Find a layout in the cache or in cutover._layout.
 */
CutoverLayout *
cutover_rowmap_get(int32 layout_id)
{
	Datum		args[1] = {Int32GetDatum(layout_id)};
	Oid			types[1] = {INT4OID};
	CutoverLayout *layout;
	bool		found;

	if (layouts == NULL)
		layout_make_cache();
	layout = hash_search(layouts, &layout_id, HASH_FIND, NULL);
	if (layout != NULL)
		return layout;

	SPI_connect();
	if (SPI_execute_with_args("SELECT table_id, relid, attname, atttypid, atttypmod, attlen, attbyval, attalign,"
							  " attstorage, attcollation, root_attnum"
							  " FROM cutover._layout WHERE layout_id = $1",
							  1, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read layout %d", layout_id);
	if (SPI_processed == 1)
	{
		CutoverLayout fresh = {.layout_id = layout_id};
		bool		isnull;

		fresh.table_id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		fresh.relid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		layout_build(&fresh);
		fresh.table = cutover_mapping_table(fresh.table_id);
		layout = hash_search(layouts, &layout_id, HASH_ENTER, &found);
		*layout = fresh;
	}
	SPI_finish();
	return layout;
}

/*
 * Column of new by name, -1 if there is none.
 */
static int
layout_col_by_name(CutoverTable *table, const char *name)
{
	for (int i = 0; i < table->apply.ncols; i++)
	{
		if (strcmp(table->apply.cols[i].name, name) == 0)
			return i;
	}
	return -1;
}

/*
 * Where an attribute goes under the default mapping: by the name it had, else
 * by the name it has now.  -1: nowhere, which is fine for a column that was
 * dropped or is generated; else *missing is set.
 */
static int
layout_default_col(CutoverLayout *layout, int i, bool *missing)
{
	CutoverTable *table = layout->table;
	AttrNumber	root = layout->root_attnum[i];
	Form_pg_attribute now = root > 0 && root <= table->desc->natts ? TupleDescAttr(table->desc, root - 1) : NULL;
	int			col = layout_col_by_name(table, NameStr(TupleDescAttr(layout->desc, i)->attname));

	if (col < 0 && now != NULL && !now->attisdropped)
		col = layout_col_by_name(table, NameStr(now->attname));
	*missing = col < 0 && now != NULL && !now->attisdropped && now->attgenerated == '\0';
	return col;
}

/*
 * Find the columns of new for a layout.
 */
bool
cutover_rowmap_resolve(CutoverLayout *layout, CutoverEndpoint *ep)
{
	CutoverTable *table = layout->table;
	MemoryContext old;

	if (!cutover_mapping_prepare(table, ep))
		return false;
	if (layout->resolved)
		return true;

	old = MemoryContextSwitchTo(layout_context);
	layout->absent = table->apply.ncols > 0 ? bms_add_range(NULL, 0, table->apply.ncols - 1) : NULL;
	for (int i = 0; i < layout->desc->natts; i++)
	{
		bool		missing = false;

		layout->col[i] = -1;
		if (TupleDescAttr(layout->desc, i)->attisdropped)
			continue;
		if (table->default_columns)
			layout->col[i] = layout_default_col(layout, i, &missing);
		else
		{
			for (int c = 0; c < table->apply.ncols; c++)
			{
				if (layout->root_attnum[i] > 0 && table->col_attnum[c] == layout->root_attnum[i])
					layout->col[i] = c;
			}
		}
		if (missing)
		{
			MemoryContextSwitchTo(cutover_mapping_context());
			table->stop_reason =
				psprintf("column %s of %s does not exist on new: add it there, then SELECT cutover_resync('%s')",
						 quote_identifier(NameStr(TupleDescAttr(layout->desc, i)->attname)),
						 table->old_name, table->old_name);
			MemoryContextSwitchTo(old);
			return false;
		}
		if (layout->col[i] >= 0)
			layout->absent = bms_del_member(layout->absent, layout->col[i]);
	}
	for (int c = 0; c < table->apply.ncols; c++)
	{
		if (table->col_expr[c] != NULL)
			layout->absent = bms_del_member(layout->absent, c);
	}
	layout->resolved = true;
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * Convert a value to another type through its text form.
 */
static Datum
layout_convert(FmgrInfo *out, Datum value, Form_pg_attribute to)
{
	char	   *text = OutputFunctionCall(out, value);
	Oid			in,
				ioparam;

	getTypeInputInfo(to->atttypid, &in, &ioparam);
	return OidInputFunctionCall(in, text, ioparam, to->atttypmod);
}

/*
 * The image's values in the shape of the root as it is now.
 */
void
cutover_rowmap_root_values(CutoverLayout *layout, HeapTuple image, Datum *values, bool *nulls)
{
	TupleDesc	root = layout->table->desc;
	int			n = layout->desc->natts;
	Datum	   *v = palloc(Max(n, 1) * sizeof(Datum));
	bool	   *isnull = palloc(Max(n, 1) * sizeof(bool));

	heap_deform_tuple(image, layout->desc, v, isnull);
	for (int i = 0; i < root->natts; i++)
		values[i] = getmissingattr(root, i + 1, &nulls[i]);
	for (int i = 0; i < n; i++)
	{
		AttrNumber	r = layout->root_attnum[i];
		Form_pg_attribute to;

		if (r <= 0 || r > root->natts || TupleDescAttr(layout->desc, i)->attisdropped)
			continue;
		to = TupleDescAttr(root, r - 1);
		if (to->attisdropped)
			continue;
		nulls[r - 1] = isnull[i];
		if (isnull[i])
			values[r - 1] = (Datum) 0;
		else if (to->atttypid == TupleDescAttr(layout->desc, i)->atttypid)
			values[r - 1] = v[i];
		else
			values[r - 1] = layout_convert(&layout->out[i], v[i], to);
	}
}

/*
 * Run the table's filter and expressions over a slot, as the table's owner.
 */
static bool
layout_evaluate(CutoverTable *table, TupleTableSlot *slot, bool key_only, CutoverApplyRow *row)
{
	ExprContext *econtext = GetPerTupleExprContext(table->estate);
	bool		pass = true;
	Oid			user;
	int			sec;

	GetUserIdAndSecContext(&user, &sec);
	SetUserIdAndSecContext(table->owner, sec | SECURITY_RESTRICTED_OPERATION);
	econtext->ecxt_scantuple = slot;
	if (table->filter != NULL && !key_only)
	{
		bool		isnull;
		Datum		d = ExecEvalExprSwitchContext(table->filter, econtext, &isnull);

		pass = !isnull && DatumGetBool(d);
	}
	for (int c = 0; pass && c < table->apply.ncols; c++)
	{
		bool		isnull;
		Datum		d;

		if (table->col_expr[c] == NULL || (key_only && !table->apply.cols[c].is_key))
			continue;
		d = ExecEvalExprSwitchContext(table->col_expr[c], econtext, &isnull);
		row->values[c] = isnull ? NULL : OutputFunctionCall(&table->col_expr_out[c], d);
		row->lens[c] = isnull ? 0 : strlen(row->values[c]);
	}
	SetUserIdAndSecContext(user, sec);
	ResetExprContext(econtext);
	return pass;
}

/*
 * Turn an image into a row.
 */
bool
cutover_rowmap_row(CutoverLayout *layout, HeapTuple image, bool key_only,
				   Bitmapset *elided, CutoverApplyRow *row)
{
	CutoverTable *table = layout->table;
	int			n = layout->desc->natts;
	Datum		stack_values[64];
	bool		stack_nulls[64];
	Datum	   *values = n <= 64 ? stack_values : palloc(n * sizeof(Datum));
	bool	   *nulls = n <= 64 ? stack_nulls : palloc(n * sizeof(bool));
	int			i = -1;

	memset(row->values, 0, table->apply.ncols * sizeof(char *));
	row->absent = layout->absent;
	heap_deform_tuple(image, layout->desc, values, nulls);
	for (int a = 0; a < n; a++)
	{
		int			c = layout->col[a];

		if (c < 0 || nulls[a])
			continue;
		row->values[c] = OutputFunctionCall(&layout->out[a], values[a]);
		row->lens[c] = strlen(row->values[c]);
	}
	while ((i = bms_next_member(elided, i)) >= 0)
	{
		if (i > 0 && i <= n && layout->col[i - 1] >= 0)
		{
			if (row->absent == layout->absent)
				row->absent = bms_copy(layout->absent);
			row->absent = bms_add_member(row->absent, layout->col[i - 1]);
		}
	}
	if (!table->has_expressions)
		return true;

	ExecClearTuple(table->slot);
	cutover_rowmap_root_values(layout, image, table->slot->tts_values, table->slot->tts_isnull);
	ExecStoreVirtualTuple(table->slot);
	return layout_evaluate(table, table->slot, key_only, row);
}

/*
 * Turn a row of the root, read from old just now, into a row.
 */
static bool
layout_slot_row(CutoverTable *table, TupleTableSlot *slot, bool key_only, CutoverApplyRow *row)
{
	memset(row->values, 0, table->apply.ncols * sizeof(char *));
	row->absent = NULL;
	slot_getallattrs(slot);
	for (int c = 0; c < table->apply.ncols; c++)
	{
		AttrNumber	a = table->col_attnum[c];

		if (a <= 0)
		{
			if (table->col_expr[c] == NULL)
				row->absent = bms_add_member(row->absent, c);
			continue;
		}
		if (slot->tts_isnull[a - 1])
			continue;
		{
			Oid			out;
			bool		varlena;

			getTypeOutputInfo(TupleDescAttr(table->desc, a - 1)->atttypid, &out, &varlena);
			row->values[c] = OidOutputFunctionCall(out, slot->tts_values[a - 1]);
			row->lens[c] = strlen(row->values[c]);
		}
	}
	return !table->has_expressions || layout_evaluate(table, slot, key_only, row);
}

bool
cutover_table_row(CutoverTable *table, TupleTableSlot *slot, CutoverApplyRow *row)
{
	return layout_slot_row(table, slot, false, row);
}

bool
cutover_table_key_row(CutoverTable *table, TupleTableSlot *slot, CutoverApplyRow *row)
{
	return layout_slot_row(table, slot, true, row);
}

/*
 * The key of an image as JSON, for people and for cutover._apply_error.
 */
char *
cutover_rowmap_key_json(CutoverLayout *layout, HeapTuple image)
{
	CutoverTable *table = layout->table;
	int			n = layout->desc->natts;
	Datum	   *values = palloc(Max(n, 1) * sizeof(Datum));
	bool	   *nulls = palloc(Max(n, 1) * sizeof(bool));
	StringInfoData buf;
	const char *sep = "";

	heap_deform_tuple(image, layout->desc, values, nulls);
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < n; i++)
	{
		AttrNumber	root = layout->root_attnum[i];
		bool		wanted = table->nkeys == 0;

		for (int k = 0; k < table->nkeys; k++)
			wanted |= table->key_attnums[k] == root;
		if (!wanted || TupleDescAttr(layout->desc, i)->attisdropped)
			continue;
		appendStringInfoString(&buf, sep);
		sep = ", ";
		escape_json(&buf, NameStr(TupleDescAttr(layout->desc, i)->attname));
		appendStringInfoString(&buf, ": ");
		if (nulls[i])
			appendStringInfoString(&buf, "null");
		else
			escape_json(&buf, OutputFunctionCall(&layout->out[i], values[i]));
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}
