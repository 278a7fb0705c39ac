/*
 * refresh.c - keys read again from old, and rows that new rejected.
 *
 * Runs in the replicator.  A refresh reads its key in a snapshot that sees
 * every change of the window, and is written after all of them: it can't put
 * something old over something newer.  A key that new rejected is from then on
 * only refreshed, each time by itself, until it goes through or is skipped.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "common/md5.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "applier.h"
#include "dual_failure.h"
#include "guc.h"

/* How rows of a table are read by key. */
typedef struct RefreshPlan
{
	int32		table_id;		/* hash key */
	char	   *sql;			/* NULL: none yet */
	Oid			types[INDEX_MAX_KEYS];
	SPIPlanPtr	plan;
} RefreshPlan;

/* No transaction from this one on was seen by a refresh. */
static FullTransactionId read_until = {0};

/*
 * A key's JSON in the one form that jsonb gives it.
 */
static char *
refresh_normal_json(const char *json)
{
	Datum		jsonb = DirectFunctionCall1(jsonb_in, CStringGetDatum(json));

	return DatumGetCString(DirectFunctionCall1(jsonb_out, jsonb));
}

/*
 * Did new reject this key before?
 */
bool
cutover_refresh_is_errored(CutoverLayout *layout, HeapTuple image)
{
	char	   *json = refresh_normal_json(cutover_rowmap_key_json(layout, image));
	char	   *md5 = text_to_cstring(DatumGetTextPP(DirectFunctionCall1(md5_text, CStringGetTextDatum(json))));

	return hash_search(layout->table->error_keys, md5, HASH_FIND, NULL) != NULL;
}

/*
 * Note that the key of an image is to be read again.
 */
void
cutover_refresh_add(CutoverApplier *applier, CutoverLayout *layout, HeapTuple image, bool suspect, bool replace)
{
	CutoverTable *table = layout->table;
	Datum	   *values = palloc(table->desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(table->desc->natts * sizeof(bool));
	char	   *json = cutover_rowmap_key_json(layout, image);
	CutoverRefresh *refresh;
	MemoryContext old;

	cutover_rowmap_root_values(layout, image, values, nulls);
	old = MemoryContextSwitchTo(applier->step_context);
	refresh = palloc0(sizeof(CutoverRefresh));
	refresh->table_id = table->table_id;
	refresh->xid = applier->current_xid;
	refresh->suspect = suspect;
	refresh->replace = replace;
	refresh->json = pstrdup(json);
	refresh->key = palloc(Max(table->nkeys, 1) * sizeof(Datum));
	refresh->isnull = palloc(Max(table->nkeys, 1) * sizeof(bool));
	for (int k = 0; k < table->nkeys; k++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, table->key_attnums[k] - 1);

		refresh->isnull[k] = nulls[att->attnum - 1];
		refresh->key[k] = refresh->isnull[k] ? (Datum) 0 : datumCopy(values[att->attnum - 1], att->attbyval, att->attlen);
	}
	applier->refreshes = lappend(applier->refreshes, refresh);
	MemoryContextSwitchTo(old);
}

/*
 * The equality operator of a type, qualified: it may live in any schema.
 */
static char *
refresh_equals(Oid type)
{
	TypeCacheEntry *entry = lookup_type_cache(type, TYPECACHE_EQ_OPR);
	HeapTuple	tup = SearchSysCache1(OPEROID, ObjectIdGetDatum(entry->eq_opr));
	Form_pg_operator op;
	char	   *result;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "type %u has no equality operator", type);
	op = (Form_pg_operator) GETSTRUCT(tup);
	result = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(op->oprnamespace)), NameStr(op->oprname));
	ReleaseSysCache(tup);
	return result;
}

/*
 * May new have rows of transactions that come after this snapshot?  A refresh
 * reads what is there now.  Until a window begins that was taken later, the INSERT of a row may
 * meet the row itself, and one that is deleted again is not as if it had never been.
 * Of what the process before us has read nothing is known.
 */
bool
cutover_refresh_is_ahead(const char *snapshot)
{
	const char *xmax = snapshot != NULL ? strchr(snapshot, ':') : NULL;

	if (!FullTransactionIdIsValid(read_until))
		read_until = ReadNextFullTransactionId();
	return xmax == NULL || strtoull(xmax + 1, NULL, 10) < U64FromFullTransactionId(read_until);
}

/*
 * The plan that reads a row of a table by its key, kept: a repair may ask for all rows.
 */
static SPIPlanPtr
refresh_plan(CutoverTable *table)
{
	static HTAB *plans = NULL;
	RefreshPlan *plan;
	StringInfoData sql;
	Oid			types[INDEX_MAX_KEYS];
	bool		found;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT * FROM %s%s WHERE ",
					 get_rel_relkind(table->relid) == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ", table->old_name);
	for (int k = 0; k < table->nkeys; k++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, table->key_attnums[k] - 1);

		types[k] = att->atttypid;
		appendStringInfo(&sql, "%s%s %s $%d", k > 0 ? " AND " : "", quote_identifier(NameStr(att->attname)),
						 refresh_equals(att->atttypid), k + 1);
	}
	if (plans == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int32),.entrysize = sizeof(RefreshPlan)};

		plans = hash_create("cutover refresh plans", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	plan = hash_search(plans, &table->table_id, HASH_ENTER, &found);
	if (!found)
		plan->sql = NULL;
	/* the types follow from the table's columns, whose change the plan notices by itself */
	if (plan->sql == NULL || strcmp(plan->sql, sql.data) != 0 || memcmp(plan->types, types, table->nkeys * sizeof(Oid)) != 0)
	{
		if (plan->sql != NULL)
		{
			pfree(plan->sql);
			plan->sql = NULL;
			SPI_freeplan(plan->plan);
		}
		plan->plan = SPI_prepare(sql.data, table->nkeys, types);
		if (plan->plan == NULL || SPI_keepplan(plan->plan) != 0)
			elog(ERROR, "could not prepare to read rows of %s", table->old_name);
		memcpy(plan->types, types, table->nkeys * sizeof(Oid));
		plan->sql = MemoryContextStrdup(TopMemoryContext, sql.data);
	}
	return plan->plan;
}

/*
 * Read a row of old by its key into the table's slot.  False: there is none.
 */
static bool
refresh_read(CutoverTable *table, CutoverRefresh *refresh)
{
	char		nulls[INDEX_MAX_KEYS];
	MemoryContext caller = CurrentMemoryContext;
	bool		found;

	for (int k = 0; k < table->nkeys; k++)
		nulls[k] = refresh->isnull[k] ? 'n' : ' ';
	SPI_connect();
	if (SPI_execute_plan(refresh_plan(table), refresh->key, nulls, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read a row of %s", table->old_name);
	found = SPI_processed == 1;
	read_until = ReadNextFullTransactionId();
	ExecClearTuple(table->slot);
	if (found)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);
		HeapTuple	tup = heap_copytuple(SPI_tuptable->vals[0]);
		int			col = 0;

		for (int i = 0; i < table->desc->natts; i++)
		{
			bool		dropped = TupleDescAttr(table->desc, i)->attisdropped;
			bool		isnull = true;
			Datum		value = (Datum) 0;

			/* the result has no dropped columns */
			if (!dropped)
				value = heap_getattr(tup, ++col, SPI_tuptable->tupdesc, &isnull);
			table->slot->tts_values[i] = isnull ? (Datum) 0 : datumCopy(value, TupleDescAttr(table->desc, i)->attbyval,
																		TupleDescAttr(table->desc, i)->attlen);
			table->slot->tts_isnull[i] = isnull;
		}
		ExecStoreVirtualTuple(table->slot);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return found;
}

/*
 * A row that holds but the key of new, made from old's key.
 */
static void
refresh_key_row(CutoverTable *table, CutoverRefresh *refresh, CutoverApplyRow *row)
{
	ExecClearTuple(table->slot);
	memset(table->slot->tts_isnull, true, table->desc->natts * sizeof(bool));
	memset(table->slot->tts_values, 0, table->desc->natts * sizeof(Datum));
	for (int k = 0; k < table->nkeys; k++)
	{
		table->slot->tts_values[table->key_attnums[k] - 1] = refresh->key[k];
		table->slot->tts_isnull[table->key_attnums[k] - 1] = refresh->isnull[k];
	}
	ExecStoreVirtualTuple(table->slot);
	(void) cutover_table_key_row(table, table->slot, row);
	row->op = CUTOVER_APPLY_DELETE;
}

/*
 * Note that new rejects a key.
 */
void
cutover_refresh_fail(CutoverApplier *applier, int32 table_id, uint64 xid, const char *json, int sqlerrcode, const char *message)
{
	MemoryContext old = MemoryContextSwitchTo(applier->step_context);
	CutoverFailure *failure = palloc(sizeof(CutoverFailure));

	failure->table_id = table_id;
	failure->xid = xid;
	failure->json = pstrdup(json);
	failure->sqlerrcode = sqlerrcode;
	failure->message = pstrdup(message);
	applier->failures = lappend(applier->failures, failure);
	MemoryContextSwitchTo(old);
}

/*
 * Read a key and make of it what new is to have.  NULL: nothing to do.
 */
static CutoverTable *
refresh_make_row(CutoverApplier *applier, CutoverRefresh *refresh, CutoverApplyRow *row)
{
	CutoverTable *table = cutover_mapping_table(refresh->table_id);

	if (table == NULL || !cutover_mapping_prepare(table, applier->session->ep))
		return NULL;
	cutover_applier_scratch(applier, table, row);
	if (refresh_read(table, refresh) && cutover_table_row(table, table->slot, row))
		row->op = CUTOVER_APPLY_UPSERT;
	else
		refresh_key_row(table, refresh, row);
	/*
	 * Whatever the changes of the key in this window add up to was not all of
	 * it: the row may be there, though the first of them is an INSERT.
	 */
	table->apply.may_conflict = true;
	return table;
}

/*
 * Write a row by itself.  Returns NULL if that went well, else new's error.
 */
static ErrorData *
refresh_write(CutoverApplier *applier, CutoverTable *table, CutoverRefresh *refresh, CutoverApplyRow *row)
{
	ErrorData  *error = NULL;
	MemoryContext old;
	bool		missed;

	cutover_applier_begin(applier);
	old = MemoryContextSwitchTo(applier->step_context);
	if (cutover_apply_one(applier->apply, &table->apply, row, &error, &missed))
	{
		applier->resolved = lappend(applier->resolved, refresh);
		error = NULL;
	}
	MemoryContextSwitchTo(old);
	return error;
}

/*
 * In replay: write a key that was asked for.  What may succeed once other keys have been
 * written is put off until then: values may have moved from row to row, or a parent comes later.
 */
static void
refresh_write_first(CutoverApplier *applier, CutoverTable *table, CutoverRefresh *refresh, CutoverApplyRow *row)
{
	ErrorData  *error = refresh_write(applier, table, refresh, row);
	bool		unique;

	if (error == NULL)
		return;
	unique = error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION || error->sqlerrcode == ERRCODE_EXCLUSION_VIOLATION;
	if (unique || error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION)
	{
		refresh->suspect = true;
		refresh->replace = unique;
	}
	else
		cutover_refresh_fail(applier, table->table_id, refresh->xid, refresh->json, error->sqlerrcode, error->message);
}

/*
 * Delete the rows whose unique values may have moved, so that each can be
 * written as it is now.
 */
static void
refresh_clear_replaced(CutoverApplier *applier)
{
	ListCell   *lc;

	foreach(lc, applier->refreshes)
	{
		CutoverRefresh *refresh = lfirst(lc);
		CutoverTable *table = cutover_mapping_table(refresh->table_id);
		CutoverApplyRow row;
		ErrorData  *error;
		bool		missed;

		if (!refresh->replace || table == NULL || !cutover_mapping_prepare(table, applier->session->ep))
			continue;
		cutover_applier_scratch(applier, table, &row);
		refresh_key_row(table, refresh, &row);
		cutover_applier_begin(applier);
		(void) cutover_apply_one(applier->apply, &table->apply, &row, &error, &missed);
	}
}

/*
 * Order of suspects: parents first.
 */
static int
refresh_by_rank(const ListCell *a, const ListCell *b)
{
	CutoverTable *left = cutover_mapping_table(((CutoverRefresh *) lfirst(a))->table_id);
	CutoverTable *right = cutover_mapping_table(((CutoverRefresh *) lfirst(b))->table_id);

	return (left ? left->apply.fk_rank : 0) - (right ? right->apply.fk_rank : 0);
}

/*
 * Delete on new what old does not have, children before parents; returns the
 * other suspects.
 */
static List *
refresh_delete_suspects(CutoverApplier *applier, List *suspects)
{
	List	   *rest = NIL;

	for (int i = list_length(suspects) - 1; i >= 0; i--)
	{
		CutoverRefresh *refresh = list_nth(suspects, i);
		CutoverApplyRow row;
		CutoverTable *table = refresh_make_row(applier, refresh, &row);
		ErrorData  *error;

		if (table != NULL && row.op == CUTOVER_APPLY_DELETE)
		{
			error = refresh_write(applier, table, refresh, &row);
			if (error != NULL)
				cutover_refresh_fail(applier, table->table_id, refresh->xid, refresh->json, error->sqlerrcode, error->message);
		}
		else if (table != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(applier->step_context);

			rest = lcons(refresh, rest);
			MemoryContextSwitchTo(old);
		}
		MemoryContextReset(applier->row_context);
	}
	return rest;
}

/*
 * Write the suspects one by one, parents before children; those that lack a
 * row of their own table once more, as long as that helps.
 */
static void
refresh_run_suspects(CutoverApplier *applier)
{
	MemoryContext old = MemoryContextSwitchTo(applier->step_context);
	List	   *suspects = NIL;
	bool		progress = true;
	ListCell   *lc;

	foreach(lc, applier->refreshes)
		if (((CutoverRefresh *) lfirst(lc))->suspect)
			suspects = lappend(suspects, lfirst(lc));
	list_sort(suspects, refresh_by_rank);
	MemoryContextSwitchTo(old);
	suspects = refresh_delete_suspects(applier, suspects);
	while (suspects != NIL)
	{
		List	   *again = NIL;
		bool		last = !progress;

		progress = false;
		foreach(lc, suspects)
		{
			CutoverRefresh *refresh = lfirst(lc);
			CutoverApplyRow row;
			CutoverTable *table = refresh_make_row(applier, refresh, &row);
			ErrorData  *error = table ? refresh_write(applier, table, refresh, &row) : NULL;

			if (error == NULL)
				progress = true;
			else if (!last && error->sqlerrcode == ERRCODE_FOREIGN_KEY_VIOLATION)
			{
				old = MemoryContextSwitchTo(applier->step_context);
				again = lappend(again, refresh);
				MemoryContextSwitchTo(old);
			}
			else
				cutover_refresh_fail(applier, table->table_id, refresh->xid, refresh->json, error->sqlerrcode, error->message);
			MemoryContextReset(applier->row_context);
		}
		suspects = again;
	}
}

/*
 * Read the noted keys and write them: suspects one by one, the others with the set.
 */
void
cutover_refresh_run(CutoverApplier *applier, bool suspects)
{
	ListCell   *lc;
	MemoryContext caller = MemoryContextSwitchTo(applier->row_context);

	if (suspects)
	{
		if (applier->refreshes != NIL)
			cutover_applier_flush(applier);
		refresh_clear_replaced(applier);
		refresh_run_suspects(applier);
	}
	else
		foreach(lc, applier->refreshes)
		{
			CutoverRefresh *refresh = lfirst(lc);
			CutoverApplyRow row;
			CutoverTable *table = refresh->suspect ? NULL : refresh_make_row(applier, refresh, &row);

			if (table != NULL && applier->replay)
				refresh_write_first(applier, table, refresh, &row);
			else if (table != NULL)
				cutover_apply_add(applier->apply, &table->apply, &row);
			MemoryContextReset(applier->row_context);
			if (cutover_apply_memory(applier->apply) > (Size) cutover_guc_apply_memory * 512)
				cutover_applier_flush(applier);
		}
	MemoryContextSwitchTo(caller);
}

/*
 * UPDATEs that hit no row: the row is brought over whole.
 */
void
cutover_refresh_missed(CutoverApplier *applier)
{
	CutoverMissedKey *missed;
	int			n;

	cutover_endpoint_sync(applier->session->ep);
	n = cutover_apply_missed(applier->apply, &missed);
	applier->had_partial = false;
	for (int i = 0; i < n; i++)
	{
		CutoverTable *table = cutover_mapping_table(missed[i].table->table_id);
		CutoverRefresh refresh = {.table_id = table->table_id};
		CutoverApplyRow row;

		if (!table->plain_key)
		{
			cutover_applier_stop(applier, table, "a row is missing on new and its key can't be traced back to old");
			continue;
		}
		refresh.key = palloc(table->nkeys * sizeof(Datum));
		refresh.isnull = palloc0(table->nkeys * sizeof(bool));
		for (int k = 0; k < table->nkeys; k++)
		{
			Form_pg_attribute att = TupleDescAttr(table->desc, table->key_attnums[k] - 1);
			Oid			in,
						ioparam;

			getTypeInputInfo(att->atttypid, &in, &ioparam);
			refresh.key[k] = OidInputFunctionCall(in, missed[i].key[k], ioparam, att->atttypmod);
		}
		cutover_applier_scratch(applier, table, &row);
		if (!refresh_read(table, &refresh) || !cutover_table_row(table, table->slot, &row))
			continue;
		row.op = CUTOVER_APPLY_UPSERT;
		cutover_apply_add(applier->apply, &table->apply, &row);
	}
	cutover_applier_flush(applier);
}

/*
 * Write down on old what this step found: tables to stop, rows rejected.  Part
 * of the local transaction that commits before new does.
 */
void
cutover_refresh_save(CutoverApplier *applier)
{
	ListCell   *lc;

	if (applier->stops == NIL && applier->failures == NIL)
		return;
	SPI_connect();
	foreach(lc, applier->stops)
	{
		CutoverStop *stop = lfirst(lc);
		Datum		args[2] = {Int32GetDatum(stop->table_id), CStringGetTextDatum(stop->reason)};
		Oid			types[2] = {INT4OID, TEXTOID};

		SPI_execute_with_args("UPDATE cutover._table SET phase = 'resync_needed', phase_reason = $2,"
							  " phase_since = pg_catalog.clock_timestamp() WHERE table_id = $1",
							  2, types, args, NULL, false, 0);
		SPI_execute_with_args("SELECT cutover._log_event('resync_needed', pg_catalog.jsonb_build_object('table',"
							  " t.old_table::pg_catalog.regclass::text, 'reason', $2), t.target_id)"
							  " FROM cutover._table t WHERE t.table_id = $1",
							  2, types, args, NULL, false, 0);
	}
	foreach(lc, applier->failures)
	{
		CutoverFailure *failure = lfirst(lc);
		Datum		args[5] = {Int32GetDatum(applier->window->target_id), Int32GetDatum(failure->table_id),
			CStringGetTextDatum(failure->json), CStringGetTextDatum(unpack_sql_state(failure->sqlerrcode)),
		CStringGetTextDatum(failure->message)};
		Oid			types[5] = {INT4OID, INT4OID, TEXTOID, TEXTOID, TEXTOID};

		SPI_execute_with_args("INSERT INTO cutover._apply_error AS e (target_id, table_id, key, sqlstate, message)"
							  " VALUES ($1, $2, $3::jsonb, $4, $5)"
							  " ON CONFLICT (target_id, direction, table_id, key) DO UPDATE SET sqlstate = EXCLUDED.sqlstate,"
							  " message = EXCLUDED.message, attempts = e.attempts + 1, last_at = pg_catalog.clock_timestamp()",
							  5, types, args, NULL, false, 0);
		cutover_dual_failure_note_rejected(applier, failure);
	}
	SPI_finish();
	if (applier->failures != NIL)
		cutover_mapping_set_stale();
}

/*
 * Forget the errors of keys that went through.  After new's commit: an error
 * row too many costs a refresh, one too few would cost the order.
 */
void
cutover_refresh_save_resolved(CutoverApplier *applier)
{
	ListCell   *lc;

	if (applier->resolved == NIL && !applier->ddl_done)
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (applier->ddl_done)
	{
		Datum		args[1] = {Int32GetDatum(applier->window->target_id)};
		Oid			types[1] = {INT4OID};

		SPI_execute_with_args("DELETE FROM cutover._apply_error WHERE target_id = $1 AND table_id IS NULL",
							  1, types, args, NULL, false, 0);
		applier->ddl_done = false;
	}
	foreach(lc, applier->resolved)
	{
		CutoverRefresh *refresh = lfirst(lc);
		Datum		args[2] = {Int32GetDatum(refresh->table_id), CStringGetTextDatum(refresh->json)};
		Oid			types[2] = {INT4OID, TEXTOID};

		SPI_execute_with_args("DELETE FROM cutover._apply_error WHERE table_id = $1 AND key = $2::jsonb",
							  2, types, args, NULL, false, 0);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	cutover_mapping_set_stale();
}
