/*
 * deferred_build.c - tables that have caught up get their indexes and constraints back.
 *
 * Runs in copier processes, several at once: indexes in parallel, then for
 * each table one process does the rest (constraints on indexes, ANALYZE,
 * foreign keys) and makes it synced.  Claims are advisory locks on new, held
 * by the session there: a process that died while new still builds for it
 * keeps others off until that is over.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "copy_chunk.h"
#include "deferred.h"
#include "guc.h"
#include "local.h"

/* keys of advisory locks on new */
#define CLAIM_ITEM	1668641903	/* "cuto", and the number in cutover.deferred */
#define CLAIM_TABLE 1668641904	/* and table_id */

typedef struct BuildTable
{
	int32		table_id;
	int32		generation;
	char	   *new_table;
	bool		concurrently;	/* apply to tables that are in use must not stop */
	int			unbuilt;		/* indexes to build */
	bool		expressions;	/* some on expressions, which have statistics of their own */
	char	   *waits_for;		/* foreign keys: another table that isn't copied yet */
} BuildTable;

/* the table that this process analyzed and will finish; its claim is kept meanwhile */
static int32 kept_table = 0;
static int32 kept_generation;

void
cutover_deferred_forget_claims(void)
{
	kept_table = 0;
}

/*
 * Try to claim; the lock lives as long as the session on new.
 */
static bool
build_claim(CutoverEndpoint *ep, int class, const char *id)
{
	const char *args[] = {psprintf("%d", class), id};
	CutoverRows *rows = cutover_endpoint_exec_params(ep, "SELECT pg_catalog.pg_try_advisory_lock($1::int, $2::int)", 2, args);

	return CUTOVER_CELL(rows, 0, 0)[0] == 't';
}

static void
build_unclaim(CutoverEndpoint *ep, int class, const char *id)
{
	const char *args[] = {psprintf("%d", class), id};

	cutover_endpoint_exec_params(ep, "SELECT pg_catalog.pg_advisory_unlock($1::int, $2::int)", 2, args);
}

/*
 * Tables in phase indexing, in mcxt; unready gets the quoted names of tables
 * of the target whose rows aren't all there.
 */
static List *
build_read_tables(int32 target_id, const CutoverSkip *skip, List **unready, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(target_id)};
	List	   *result = NIL;
	MemoryContext old;
	uint64		n;

	cutover_local_begin();
	n = cutover_local_run("SELECT t.table_id, t.copy_generation,"
						  " pg_catalog.quote_ident(t.new_schema) || '.' || pg_catalog.quote_ident(t.new_name), t.phase = 'indexing',"
						  " EXISTS (SELECT FROM cutover._table o WHERE o.target_id = t.target_id AND o.phase = 'synced'"
						  " AND o.phase_since < t.copy_started_at)"
						  " FROM cutover._table t WHERE t.target_id = $1 AND t.phase <> 'synced' ORDER BY t.table_id",
						  1, types, args, NULL);
	old = MemoryContextSwitchTo(mcxt);
	*unready = NIL;
	for (uint64 i = 0; i < n; i++)
	{
		BuildTable *table = palloc0(sizeof(BuildTable));
		bool		skipped = false;

		table->table_id = (int32) cutover_local_int(i, 1);
		table->generation = (int32) cutover_local_int(i, 2);
		table->new_table = cutover_local_text(i, 3);
		table->concurrently = cutover_local_int(i, 5) != 0;
		for (int j = 0; j < skip->n; j++)
			skipped |= skip->table_ids[j] == table->table_id;
		if (cutover_local_int(i, 4) == 0)
			*unready = lappend(*unready, table->new_table);
		else if (!skipped)
			result = lappend(result, table);
	}
	MemoryContextSwitchTo(old);
	cutover_local_commit(false);
	MemoryContextSwitchTo(mcxt);
	return result;
}

static bool
build_is_index(CutoverDeferred *item)
{
	return strcmp(item->kind, "index") == 0 || strcmp(item->kind, "unique") == 0 || strcmp(item->kind, "exclude") == 0;
}

static BuildTable *
build_find_table(List *tables, int32 table_id)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		BuildTable *table = lfirst(lc);

		if (table->table_id == table_id)
			return table;
	}
	return NULL;
}

/*
 * Build one index that nobody builds.
 */
static bool
build_one_index(CutoverEndpoint *ep, List *tables, List *items, int32 *table_id)
{
	ListCell   *lc;

	foreach(lc, items)
	{
		CutoverDeferred *item = lfirst(lc);

		if (!build_is_index(item) || item->built || !build_claim(ep, CLAIM_ITEM, item->id))
			continue;
		*table_id = item->table_id;
		/* it may have been built between our look and the claim */
		{
			ListCell   *again;
			bool		open = false;

			foreach(again, cutover_deferred_read(ep, psprintf("{%d}", item->table_id)))
			{
				CutoverDeferred *now = lfirst(again);

				open |= strcmp(now->id, item->id) == 0 && !now->built;
			}
			if (open)
				cutover_deferred_build_index(ep, item, build_find_table(tables, item->table_id)->concurrently);
		}
		build_unclaim(ep, CLAIM_ITEM, item->id);
		return true;
	}
	return false;
}

/*
 * Count what each table still lacks, and find foreign keys that must wait.
 */
static void
build_survey(List *tables, List *items, List *unready)
{
	ListCell   *lc;
	ListCell   *name;

	foreach(lc, items)
	{
		CutoverDeferred *item = lfirst(lc);
		BuildTable *table = build_find_table(tables, item->table_id);

		if (table == NULL)
			continue;
		if (build_is_index(item) && !item->built)
		{
			table->unbuilt++;
			/* columns stand in the first parentheses: any others may be an expression */
			table->expressions |= strchr(strchr(item->definition, '(') + 1, '(') != NULL;
		}
		if (strcmp(item->kind, "foreign_key") != 0)
			continue;
		foreach(name, unready)
		{
			char	   *other = lfirst(name);

			if (strcmp(item->relation, other) == 0 || strstr(item->definition, psprintf(" REFERENCES %s(", other)))
				table->waits_for = psprintf("foreign key \"%s\" of %s waits for table %s", item->name, item->relation, other);
		}
	}
}

/*
 * Say in the table's row what it waits for.
 */
static void
build_report(BuildTable *table, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID, TEXTOID};
	Datum		values[] = {Int32GetDatum(table->table_id), CStringGetTextDatum(table->waits_for)};

	cutover_local_begin();
	cutover_local_run("UPDATE cutover._table SET phase_reason = $2 WHERE table_id = $1 AND phase = 'indexing'"
					  " AND phase_reason IS DISTINCT FROM $2", 2, types, values, NULL);
	cutover_local_commit(false);
	MemoryContextSwitchTo(mcxt);
}

static void
build_analyze(CutoverEndpoint *ep, BuildTable *table)
{
	int			limit = cutover_endpoint_set_timeout(ep, 0);

	cutover_endpoint_exec(ep, psprintf("ANALYZE %s", table->new_table));
	(void) cutover_endpoint_set_timeout(ep, limit);
}

/*
 * A foreign key that changes other rows by itself.  Where it can't be kept from
 * doing so it stays off as long as we write, as triggers do: the deletion of a
 * key that is then written again would take rows along that old still has.
 */
static bool
build_key_acts(CutoverEndpoint *ep, CutoverDeferred *item)
{
	if (cutover_endpoint_is_replica(ep))
		return false;
	for (const char *s = item->definition; (s = strstr(s, " ON ")) != NULL; s++)
	{
		const char *action = s + strlen(" ON DELETE ");

		if ((strncmp(s, " ON DELETE ", strlen(" ON DELETE ")) == 0 || strncmp(s, " ON UPDATE ", strlen(" ON UPDATE ")) == 0) &&
			(strncmp(action, "CASCADE", 7) == 0 || strncmp(action, "SET ", 4) == 0))
			return true;
	}
	return false;
}

/*
 * All indexes are there: the rest, and the table is synced.
 */
static void
build_finish_table(CutoverEndpoint *ep, BuildTable *table, bool analyzed, MemoryContext mcxt)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {Int32GetDatum(table->table_id), Int32GetDatum(table->generation)};
	List	   *items = cutover_deferred_read(ep, psprintf("{%d}", table->table_id));
	ListCell   *lc;

	foreach(lc, items)
		if (build_is_index(lfirst(lc)))
			cutover_deferred_finish(ep, lfirst(lc));
	if (!analyzed)
		build_analyze(ep, table);
	foreach(lc, items)
		if (strcmp(((CutoverDeferred *) lfirst(lc))->kind, "foreign_key") == 0 && !build_key_acts(ep, lfirst(lc)))
			cutover_deferred_add_foreign_key(ep, lfirst(lc));

	cutover_local_begin();
	cutover_local_run("UPDATE cutover._table SET phase = 'synced', phase_since = pg_catalog.clock_timestamp(),"
					  " phase_reason = NULL, copy_ended_at = pg_catalog.clock_timestamp()"
					  " WHERE table_id = $1 AND copy_generation = $2 AND phase = 'indexing'", 2, types, values, NULL);
	cutover_local_commit(true);
	MemoryContextSwitchTo(mcxt);
}

/*
 * Is this the table that we keep a claim of?
 */
static bool
build_is_kept(BuildTable *table)
{
	return kept_table == table->table_id && kept_generation == table->generation;
}

/*
 * Finish one table that lacks no index and waits for nothing; or have one
 * analyzed while others build its indexes.
 */
static bool
build_one_table(CutoverEndpoint *ep, List *tables, int32 *table_id, MemoryContext mcxt)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		BuildTable *table = lfirst(lc);
		char	   *id = psprintf("%d", table->table_id);

		if (table->unbuilt > 0 && (kept_table != 0 || table->expressions))
			continue;
		if (table->unbuilt == 0 && table->waits_for)
		{
			build_report(table, mcxt);
			continue;
		}
		if (!build_is_kept(table) && !build_claim(ep, CLAIM_TABLE, id))
			continue;
		*table_id = table->table_id;
		if (table->unbuilt > 0)
		{
			build_analyze(ep, table);
			kept_table = table->table_id;
			kept_generation = table->generation;
			return true;
		}
		build_finish_table(ep, table, build_is_kept(table), mcxt);
		build_unclaim(ep, CLAIM_TABLE, id);
		if (build_is_kept(table))
			kept_table = 0;
		return true;
	}
	return false;
}

/*
 * Give up the claim of a table that is no longer being indexed.
 */
static void
build_drop_stale_claim(CutoverEndpoint *ep, List *tables)
{
	BuildTable *table = build_find_table(tables, kept_table);

	if (kept_table == 0 || (table != NULL && build_is_kept(table)))
		return;
	build_unclaim(ep, CLAIM_TABLE, psprintf("%d", kept_table));
	kept_table = 0;
}

/*
 * The text form of the array of the tables' ids.
 */
static char *
build_ids(List *tables)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, tables)
		appendStringInfo(&buf, "%c%d", buf.len ? ',' : '{', ((BuildTable *) lfirst(lc))->table_id);
	appendStringInfoChar(&buf, '}');
	return buf.data;
}

/*
 * Do one step for some table in phase indexing.
 */
CutoverJobResult
cutover_deferred_build_next(CutoverEndpoint *ep, int32 target_id, const CutoverSkip *skip, int32 *table_id)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext mcxt = AllocSetContextCreate(caller, "cutover build", ALLOCSET_DEFAULT_SIZES);
	CutoverJobResult result = CUTOVER_JOB_NONE;
	List	   *tables;
	List	   *unready;
	List	   *items;

	MemoryContextSwitchTo(mcxt);
	tables = build_read_tables(target_id, skip, &unready, mcxt);
	build_drop_stale_claim(ep, tables);
	if (tables != NIL)
	{
		items = cutover_deferred_read(ep, build_ids(tables));
		build_survey(tables, items, unready);
		if (build_one_index(ep, tables, items, table_id) || build_one_table(ep, tables, table_id, mcxt))
			result = CUTOVER_JOB_DONE;
		else
			result = CUTOVER_JOB_BUSY;
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(mcxt);
	return result;
}
