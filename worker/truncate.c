/*
 * truncate.c - TRUNCATE of a set of tables.
 *
 * Runs in the replicator.  TRUNCATE fires one trigger for each table;
 * neighbours in one transaction are one statement and go to new as one, since
 * foreign keys among them allow nothing else.  (A partition truncated by itself
 * arrives as deleted rows.)
 */
#include "postgres.h"

#include "executor/spi.h"

#include "applier.h"

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
		CutoverLayout *layout = cutover_rowmap_get(lfirst_int(lc));
		CutoverTable *table = layout ? layout->table : NULL;

		if (!truncate_applies(applier, table) || list_member_ptr(whole, table))
			continue;
		if (!cutover_rowmap_resolve(layout, applier->session->ep))
			cutover_applier_stop(applier, table, table->stop_reason);
		else
			whole = lappend(whole, table);
	}
	if (whole != NIL)
	{
		set = palloc(list_length(whole) * sizeof(CutoverApplyTable *));
		foreach(lc, whole)
			set[n++] = &((CutoverTable *) lfirst(lc))->apply;
		cutover_applier_begin(applier);
		/* checks that are still to come keep TRUNCATE out; when old truncated, none was */
		if (!cutover_endpoint_is_replica(applier->session->ep))
			cutover_endpoint_queue(applier->session->ep, "SET CONSTRAINTS ALL IMMEDIATE", 0, NULL, false);
		cutover_apply_truncate(applier->apply, set, n, applier->truncate_restart);
		if (!cutover_endpoint_is_replica(applier->session->ep) && !applier->replay)
			cutover_endpoint_queue(applier->session->ep, "SET CONSTRAINTS ALL DEFERRED", 0, NULL, false);
	}
	applier->truncate_restart = false;
}
