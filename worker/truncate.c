/*
 * truncate.c - TRUNCATE of a set of tables, and of single partitions.
 *
 * Runs in the replicator.  TRUNCATE fires one trigger for each relation, leaf
 * partitions included; neighbours in one transaction are one statement and go
 * to new as one, since foreign keys among them allow nothing else.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "applier.h"

/*
 * The text that a query with one int parameter gives, NULL if none.
 */
static char *
truncate_query(const char *sql, Datum arg, Oid type)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *result = NULL;

	SPI_connect();
	if (SPI_execute_with_args(sql, 1, &type, &arg, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "query failed: %s", sql);
	if (SPI_processed == 1)
	{
		char	   *text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		if (text != NULL)
			result = MemoryContextStrdup(caller, text);
	}
	SPI_finish();
	return result;
}

/*
 * Are all leaves of the table in the set?
 */
static bool
truncate_is_whole(CutoverTable *table, List *layout_ids)
{
	List	   *relids = NIL;
	ListCell   *lc;
	char	   *members;

	if (get_rel_relkind(table->relid) != RELKIND_PARTITIONED_TABLE)
		return true;
	foreach(lc, layout_ids)
	{
		CutoverLayout *layout = cutover_layout_get(lfirst_int(lc));

		if (layout != NULL && layout->table == table)
			relids = list_append_unique_oid(relids, layout->relid);
	}
	members = truncate_query("SELECT count(*) FROM cutover._member WHERE table_id = $1",
							 Int32GetDatum(table->table_id), INT4OID);
	return list_length(relids) >= pg_strtoint32(members);
}

/*
 * A single partition: delete what its bound says.
 */
static void
truncate_leaf(CutoverApplier *applier, CutoverLayout *layout)
{
	CutoverTable *table = layout->table;
	char	   *bound = truncate_query("SELECT pg_catalog.pg_get_partition_constraintdef($1)",
									   ObjectIdGetDatum(layout->relid), OIDOID);

	if (bound == NULL || !table->default_columns || strstr(bound, "satisfies_hash_partition") != NULL)
	{
		cutover_applier_stop(applier, table, "a partition was truncated whose bound can't be told to new");
		return;
	}
	cutover_applier_begin(applier);
	cutover_endpoint_queue(applier->session->ep,
						   psprintf("DELETE FROM %s WHERE %s",
									quote_qualified_identifier(table->apply.schema, table->apply.name), bound),
						   0, NULL, false);
}

/*
 * Does TRUNCATE reach this table, or is its copy yet to come?
 */
static bool
truncate_applies(CutoverApplier *applier, CutoverTable *table)
{
	if (table == NULL || table->phase == CUTOVER_PHASE_RESYNC_NEEDED)
		return false;
	if (table->copy && (table->phase == CUTOVER_PHASE_WAITING ||
						table->phase == CUTOVER_PHASE_COPYING || table->phase == CUTOVER_PHASE_CATCHING_UP))
	{
		/* some chunks may hold rows from before, others from after: begin anew, it is empty now */
		if (table->phase != CUTOVER_PHASE_WAITING)
		{
			SPI_connect();
			cutover_copier_restart_table(table->table_id, table->copy_generation, "it was truncated while being copied");
			SPI_finish();
			table->phase = CUTOVER_PHASE_WAITING;
			table->chunks = NULL;
			cutover_copier_wake();
		}
		return false;
	}
	return true;
}

/*
 * Run the collected TRUNCATEs.
 */
void
cutover_truncate_run(CutoverApplier *applier, uint64 xid)
{
	List	   *ids = applier->truncates;
	List	   *whole = NIL;
	CutoverApplyTable **set;
	int			n = 0;
	ListCell   *lc;

	applier->truncates = NIL;
	cutover_applier_flush(applier);
	foreach(lc, ids)
	{
		CutoverLayout *layout = cutover_layout_get(lfirst_int(lc));
		CutoverTable *table = layout ? layout->table : NULL;

		if (!truncate_applies(applier, table) || list_member_ptr(whole, table))
			continue;
		if (!cutover_layout_resolve(layout, applier->session->ep))
			cutover_applier_stop(applier, table, table->stop_reason);
		else if (truncate_is_whole(table, ids))
			whole = lappend(whole, table);
		else
			truncate_leaf(applier, layout);
	}
	if (whole != NIL)
	{
		set = palloc(list_length(whole) * sizeof(CutoverApplyTable *));
		foreach(lc, whole)
			set[n++] = &((CutoverTable *) lfirst(lc))->apply;
		cutover_applier_begin(applier);
		cutover_apply_truncate(applier->apply, set, n, applier->truncate_restart);
	}
	applier->truncate_restart = false;
}
