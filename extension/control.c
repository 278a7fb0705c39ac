/*
 * control.c - entries of the queue that aren't row changes, and small services for SQL functions.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "block.h"
#include "buffer.h"
#include "capture.h"
#include "tracked.h"

PG_FUNCTION_INFO_V1(cutover_control_caller);
PG_FUNCTION_INFO_V1(cutover_control_enqueue);
PG_FUNCTION_INFO_V1(cutover_control_invalidate);
PG_FUNCTION_INFO_V1(cutover_control_no_gap);
PG_FUNCTION_INFO_V1(cutover_control_refresh);

/*
 * Put a control entry into the queue.
 */
void
cutover_capture_control(int32 target_id, int32 table_id, char kind, const char *text)
{
	uint32		len = strlen(text);
	int32		layout_id = 0;
	char	   *p;

	if (!cutover_tracked_target(target_id)->active)
		return;
	p = cutover_buffer_reserve(target_id, table_id, 2 + sizeof(int32) + sizeof(int32) + 1 + sizeof(uint32) + len,
							   kind != CUTOVER_CONTROL_RESYNC);
	*p++ = CUTOVER_OP_CONTROL;
	*p++ = 0;
	memcpy(p, &layout_id, sizeof(int32));
	memcpy(p + 4, &table_id, sizeof(int32));
	p[8] = kind;
	memcpy(p + 9, &len, sizeof(uint32));
	memcpy(p + 13, text, len);
	cutover_buffer_done();
}

/*
 * cutover._caller() - the role that called the SECURITY DEFINER function we are in
 */
Datum
cutover_control_caller(PG_FUNCTION_ARGS)
{
	PG_RETURN_OID(GetOuterUserId());
}

/*
 * cutover._invalidate() - trigger function of the configuration tables
 */
Datum
cutover_control_invalidate(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function cutover._invalidate() was not called as a trigger"),
				 errdetail("It belongs to cutover's own tables."),
				 errhint("Don't call it.")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}

/*
 * cutover._enqueue_control(target_id int, table_id int, kind "char", text text)
 */
Datum
cutover_control_enqueue(PG_FUNCTION_ARGS)
{
	cutover_capture_control(PG_GETARG_INT32(0), PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1),
							PG_GETARG_CHAR(2), PG_ARGISNULL(3) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(3)));
	PG_RETURN_VOID();
}

/*
 * One value of a key given as JSON, by the type's input function.
 */
static Datum
control_key_value(Jsonb *key, Form_pg_attribute att, bool *isnull)
{
	LOCAL_FCINFO(fcinfo, 2);
	Datum		value;
	Oid			input;
	Oid			param;

	InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = JsonbPGetDatum(key);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = CStringGetTextDatum(NameStr(att->attname));
	fcinfo->args[1].isnull = false;
	value = jsonb_object_field_text(fcinfo);
	*isnull = fcinfo->isnull;
	if (*isnull)
		return (Datum) 0;
	getTypeInputInfo(att->atttypid, &input, &param);
	return OidInputFunctionCall(input, TextDatumGetCString(value), param, att->atttypmod);
}

/*
 * A row of which only the key (all columns, where there is no key) is set.
 */
static HeapTuple
control_key_tuple(CutoverRelation *entry, Relation rel, Jsonb *key)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * desc->natts);

	memset(nulls, true, sizeof(bool) * desc->natts);
	for (int i = 0; i < (entry->nkeys > 0 ? entry->nkeys : desc->natts); i++)
	{
		int			att = entry->nkeys > 0 ? entry->keys[i] - 1 : i;

		if (TupleDescAttr(desc, att)->attisdropped)
			continue;
		values[att] = control_key_value(key, TupleDescAttr(desc, att), &nulls[att]);
		if (nulls[att] && entry->nkeys > 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key has no value for column \"%s\"", NameStr(TupleDescAttr(desc, att)->attname)),
					 errdetail("The key of table \"%s\" has %d columns.", RelationGetRelationName(rel), entry->nkeys),
					 errhint("Give all of them as a JSON object, column name to value.")));
	}
	return heap_form_tuple(desc, values, nulls);
}

/*
 * cutover._enqueue_refresh(table_id int, key jsonb)
 */
Datum
cutover_control_refresh(PG_FUNCTION_ARGS)
{
	int32		table_id = PG_GETARG_INT32(0);
	Oid			root = cutover_tracked_root(table_id);
	Relation	rel;
	CutoverRelation *entry;

	rel = OidIsValid(root) ? try_relation_open(root, AccessShareLock) : NULL;
	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table %d is not under migration", table_id),
				 errdetail("It was dropped or taken out of the migration."),
				 errhint("See cutover.tables.")));
	entry = cutover_tracked_relation(rel);
	if (entry->active && !entry->marked && !entry->key_lost)
		cutover_capture_row(entry, rel, CUTOVER_OP_REFRESH,
							control_key_tuple(entry, rel, PG_GETARG_JSONB_P(1)));
	relation_close(rel, NoLock);
	PG_RETURN_VOID();
}

/*
 * cutover._no_gap(table_id int)
 */
Datum
cutover_control_no_gap(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(cutover_capture_no_gap(PG_GETARG_INT32(0)));
}
