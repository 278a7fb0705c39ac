/*
 * deferred.c - taking indexes, constraints and triggers off new, and how each comes back.
 *
 * A definition and its removal commit together, so new's cutover.deferred
 * holds what is off at any moment; a definition is forgotten together with the last step of
 * bringing it back.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "deferred.h"
#include "guc.h"

#define THEN "'" CUTOVER_DEFERRED_THEN "'"

/*
 * What can be taken off a table of new: kind, relation, name, definition,
 * statement that removes it.  $1 table, $2 columns of the key (NULL unknown,
 * empty none), $3 triggers too.  Foreign keys come first: they need indexes.
 */
static const char list_sql[] =
"WITH rel AS (SELECT $1::pg_catalog.regclass::pg_catalog.oid AS oid"
" UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::pg_catalog.regclass)),"
" idx AS (SELECT i.*, con.oid AS conoid, con.contype, con.conname, con.condeferrable, con.condeferred,"
"  ic.relname, ic.relkind, am.amname, ts.spcname,"
"  pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.relname) AS relation,"
"  pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(ic.relname) AS qname,"
"  'CREATE ' || CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || pg_catalog.quote_ident(ic.relname) || ' ON ' AS prefix,"
"  pg_catalog.pg_get_indexdef(i.indexrelid) AS def,"
"  COALESCE(' WHERE ' || pg_catalog.pg_get_expr(i.indpred, i.indrelid), '') AS pred"
" FROM rel JOIN pg_catalog.pg_index i ON i.indrelid = rel.oid"
" JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid JOIN pg_catalog.pg_class t ON t.oid = i.indrelid"
" JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace JOIN pg_catalog.pg_am am ON am.oid = ic.relam"
" LEFT JOIN pg_catalog.pg_tablespace ts ON ts.oid = ic.reltablespace"
" LEFT JOIN pg_catalog.pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x')"
" WHERE NOT i.indisprimary AND NOT i.indisreplident AND i.indisvalid"
" AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid = i.indexrelid)"
" AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass"
"  AND d.objid = i.indexrelid AND d.deptype IN ('e', 'x'))"
 /* the index that rows are found by stays */
" AND CASE WHEN $2::text[] IS NULL THEN NOT i.indisunique WHEN $2::text[] = '{}' THEN i.indisunique"
"  ELSE NOT (i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL"
"  AND (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_catalog.pg_attribute a"
"   WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))"
"  = (SELECT pg_catalog.array_agg(k ORDER BY k COLLATE \"C\") FROM pg_catalog.unnest($2::text[]) k)) END),"
" def AS (SELECT idx.*,"
"  CASE WHEN relkind = 'I' THEN prefix || pg_catalog.substr(def, pg_catalog.length(prefix || 'ONLY ') + 1)"
"   WHEN spcname IS NULL OR pg_catalog.right(def, pg_catalog.length(pred)) <> pred THEN def"
"   ELSE pg_catalog.left(def, pg_catalog.length(def) - pg_catalog.length(pred)) || ' TABLESPACE ' || pg_catalog.quote_ident(spcname) || pred"
"  END AS build FROM idx)"
" SELECT 'foreign_key' AS kind, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.relname) AS relation,"
"  con.conname::text AS name,"
"  pg_catalog.format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, t.relname, con.conname, pg_catalog.pg_get_constraintdef(con.oid))"
"  || COALESCE(pg_catalog.format(" THEN " || 'COMMENT ON CONSTRAINT %I ON %I.%I IS ', con.conname, n.nspname, t.relname)"
"     || pg_catalog.quote_literal(pg_catalog.obj_description(con.oid, 'pg_constraint')), '') AS definition,"
"  pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT %I', n.nspname, t.relname, con.conname) AS undo, 0 AS turn"
" FROM pg_catalog.pg_constraint con JOIN pg_catalog.pg_class t ON t.oid = con.conrelid"
" JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace"
" WHERE con.contype = 'f' AND con.conparentid = 0"
"  AND (con.conrelid IN (SELECT oid FROM rel) OR con.confrelid IN (SELECT oid FROM rel))"
" UNION ALL SELECT CASE contype WHEN 'u' THEN 'unique' WHEN 'x' THEN 'exclude' ELSE 'index' END, relation, relname::text,"
"  CASE WHEN conoid IS NULL THEN build"
"   WHEN contype = 'u' AND relkind = 'i' AND amname = 'btree' THEN build || " THEN
"    || pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I UNIQUE USING INDEX %I%s%s', relation, conname, relname,"
"       CASE WHEN condeferrable THEN ' DEFERRABLE' ELSE '' END, CASE WHEN condeferred THEN ' INITIALLY DEFERRED' ELSE '' END)"
"   ELSE pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', relation, conname, pg_catalog.pg_get_constraintdef(conoid)) END"
"  || COALESCE(" THEN " || 'COMMENT ON INDEX ' || qname || ' IS ' || pg_catalog.quote_literal(pg_catalog.obj_description(indexrelid, 'pg_class')), '')"
"  || COALESCE(" THEN " || 'COMMENT ON CONSTRAINT ' || pg_catalog.quote_ident(conname) || ' ON ' || relation || ' IS '"
"     || pg_catalog.quote_literal(pg_catalog.obj_description(conoid, 'pg_constraint')), '')"
"  || CASE WHEN indisclustered THEN pg_catalog.format(" THEN " || 'ALTER TABLE %s CLUSTER ON %I', relation, relname) ELSE '' END"
"  || COALESCE((SELECT pg_catalog.string_agg(pg_catalog.format(" THEN " || 'ALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s',"
"     qname, a.attnum, a.attstattarget), '') FROM pg_catalog.pg_attribute a WHERE a.attrelid = indexrelid AND a.attstattarget >= 0), ''),"
"  CASE WHEN conoid IS NULL THEN 'DROP INDEX ' || qname ELSE 'ALTER TABLE ' || relation || ' DROP CONSTRAINT ' || pg_catalog.quote_ident(conname) END, 1"
" FROM def"
" UNION ALL SELECT 'trigger', pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.relname), tg.tgname::text,"
"  pg_catalog.format('ALTER TABLE %I.%I ENABLE %sTRIGGER %I', n.nspname, t.relname,"
"   CASE tg.tgenabled WHEN 'A' THEN 'ALWAYS ' WHEN 'R' THEN 'REPLICA ' ELSE '' END, tg.tgname),"
"  pg_catalog.format('ALTER TABLE %I.%I DISABLE TRIGGER %I', n.nspname, t.relname, tg.tgname), 2"
" FROM rel JOIN pg_catalog.pg_trigger tg ON tg.tgrelid = rel.oid JOIN pg_catalog.pg_class t ON t.oid = rel.oid"
" JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace JOIN pg_catalog.pg_proc p ON p.oid = tg.tgfoid"
" WHERE $3::boolean AND NOT tg.tgisinternal AND tg.tgenabled <> 'D' AND tg.tgparentid = 0"
"  AND p.pronamespace IS DISTINCT FROM pg_catalog.to_regnamespace('cutover')"
" ORDER BY turn, relation, name";

/*
 * Take one thing off and remember it; false if it must stay.
 */
static bool
deferred_take_one(CutoverEndpoint *ep, const char *table_id, CutoverRows *rows, int row)
{
	MemoryContext mcxt = CurrentMemoryContext;
	const char *args[] = {table_id, CUTOVER_CELL(rows, row, 0), CUTOVER_CELL(rows, row, 1),
	CUTOVER_CELL(rows, row, 2), CUTOVER_CELL(rows, row, 3)};
	volatile bool stays = false;

	cutover_endpoint_exec(ep, "SAVEPOINT cutover_take_off");
	PG_TRY();
	{
		cutover_endpoint_exec(ep, CUTOVER_CELL(rows, row, 4));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(mcxt);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_INSUFFICIENT_PRIVILEGE &&
			error->sqlerrcode != ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST &&
			error->sqlerrcode != ERRCODE_FEATURE_NOT_SUPPORTED)
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(error);
		stays = true;
	}
	PG_END_TRY();
	if (stays)
	{
		cutover_endpoint_exec(ep, "ROLLBACK TO SAVEPOINT cutover_take_off");
		return false;
	}
	cutover_endpoint_exec_params(ep, "INSERT INTO cutover.deferred (table_id, kind, relation, name, definition, taken_at)"
								 " SELECT $1::int, $2, $3, $4, $5, pg_catalog.now() WHERE NOT EXISTS (SELECT FROM cutover.deferred"
								 " WHERE kind = $2 AND relation = $3 AND name = $4)", 5, args);
	cutover_endpoint_exec(ep, "RELEASE SAVEPOINT cutover_take_off");
	return true;
}

/*
 * Take everything off a table.
 */
List *
cutover_deferred_take_off(CutoverEndpoint *ep, int32 table_id, const char *new_table, const char *keys, bool triggers)
{
	const char *args[] = {new_table, keys, triggers ? "true" : "false"};
	char	   *id = psprintf("%d", table_id);
	List	   *kept = NIL;
	CutoverRows *rows;

	/* names in definitions come out qualified */
	cutover_endpoint_exec(ep, "SET LOCAL search_path = pg_catalog");
	rows = cutover_endpoint_exec_params(ep, list_sql, 3, args);
	for (int i = 0; i < rows->nrows; i++)
		if (!deferred_take_one(ep, id, rows, i))
			kept = lappend(kept, psprintf("%s on %s", CUTOVER_CELL(rows, i, 2), CUTOVER_CELL(rows, i, 1)));
	return kept;
}

/* ---- bringing one back ---- */

/*
 * What is off, in the order in which it was taken off.
 */
List *
cutover_deferred_read(CutoverEndpoint *ep, const char *table_ids)
{
	const char *args[] = {table_ids};
	List	   *result = NIL;
	CutoverRows *rows;

	rows = cutover_endpoint_exec_params(ep,
										"SELECT d.id, d.table_id, d.kind, d.relation, d.name, d.definition,"
										" EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
										" WHERE d.kind IN ('index', 'unique', 'exclude') AND c.relname = d.name AND i.indisvalid"
										" AND i.indrelid = pg_catalog.to_regclass(d.relation))"
										" FROM cutover.deferred d WHERE $1::int[] IS NULL OR d.table_id = ANY ($1::int[]) ORDER BY d.id",
										1, args);
	for (int i = 0; i < rows->nrows; i++)
	{
		CutoverDeferred *item = palloc0(sizeof(CutoverDeferred));

		item->id = CUTOVER_CELL(rows, i, 0);
		item->table_id = atoi(CUTOVER_CELL(rows, i, 1));
		item->kind = CUTOVER_CELL(rows, i, 2);
		item->relation = CUTOVER_CELL(rows, i, 3);
		item->name = CUTOVER_CELL(rows, i, 4);
		item->definition = CUTOVER_CELL(rows, i, 5);
		item->built = CUTOVER_CELL(rows, i, 6)[0] == 't';
		result = lappend(result, item);
	}
	return result;
}

/*
 * The first statement of a definition, and what comes after it (NULL if nothing).
 */
static char *
deferred_first(const char *definition, const char **rest)
{
	const char *then = strstr(definition, CUTOVER_DEFERRED_THEN);

	*rest = then ? then + strlen(CUTOVER_DEFERRED_THEN) : NULL;
	return then ? pnstrdup(definition, then - definition) : pstrdup(definition);
}

/*
 * Build the index of an item.  What an earlier attempt left invalid goes first.
 */
void
cutover_deferred_build_index(CutoverEndpoint *ep, CutoverDeferred *item, bool concurrently)
{
	const char *args[] = {item->relation, item->name};
	const char *rest;
	char	   *sql = deferred_first(item->definition, &rest);
	char	   *on;
	CutoverRows *rows;
	int			limit;

	rows = cutover_endpoint_exec_params(ep, "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), t.relkind"
										" FROM pg_catalog.pg_class t LEFT JOIN (pg_catalog.pg_index i"
										" JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid AND c.relname = $2"
										" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) ON i.indrelid = t.oid AND NOT i.indisvalid"
										" WHERE t.oid = pg_catalog.to_regclass($1)", 2, args);
	if (rows->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s is gone from new", item->relation),
				 errhint("Its index \"%s\" is remembered in cutover.deferred on new.", item->name)));
	if (CUTOVER_CELL(rows, 0, 1)[0] == 'p')
		concurrently = false;
	limit = cutover_endpoint_set_timeout(ep, 0);
	if (CUTOVER_CELL(rows, 0, 0) != NULL)
		cutover_endpoint_exec(ep, psprintf("DROP INDEX %s%s", concurrently ? "CONCURRENTLY " : "", CUTOVER_CELL(rows, 0, 0)));
	on = strstr(sql, "INDEX ");
	if (concurrently && strncmp(sql, "CREATE ", 7) == 0 && on != NULL)
		sql = psprintf("%.*sINDEX CONCURRENTLY %s", (int) (on - sql), sql, on + 6);
	cutover_endpoint_exec(ep, sql);
	(void) cutover_endpoint_set_timeout(ep, limit);
	item->built = true;
}

/*
 * The rest of an item's definition, and forget it.
 */
void
cutover_deferred_finish(CutoverEndpoint *ep, CutoverDeferred *item)
{
	const char *args[] = {item->id};
	const char *rest = item->definition;
	char	   *sql;
	bool		first = strcmp(item->kind, "trigger") != 0;

	cutover_endpoint_exec(ep, psprintf("BEGIN; SET LOCAL lock_timeout = %d", cutover_guc_lock_timeout));
	while (rest != NULL)
	{
		sql = deferred_first(rest, &rest);
		if (!first)
			cutover_endpoint_exec(ep, sql);
		first = false;
	}
	cutover_endpoint_exec_params(ep, "DELETE FROM cutover.deferred WHERE id = $1", 1, args);
	cutover_endpoint_exec(ep, "COMMIT");
}

/*
 * A foreign key: added without a look at the rows, which needs its locks for a
 * moment only, then validated, which lets writers go on.
 */
void
cutover_deferred_add_foreign_key(CutoverEndpoint *ep, CutoverDeferred *item)
{
	const char *args[] = {item->relation, item->name};
	const char *rest;
	char	   *sql = deferred_first(item->definition, &rest);
	bool		not_valid = strstr(sql, " NOT VALID") != NULL || strstr(sql, " NOT ENFORCED") != NULL;
	CutoverRows *rows;
	int			limit;

	rows = cutover_endpoint_exec_params(ep, "SELECT t.relkind, con.convalidated FROM pg_catalog.pg_class t"
										" LEFT JOIN pg_catalog.pg_constraint con ON con.conrelid = t.oid AND con.conname = $2"
										" WHERE t.oid = pg_catalog.to_regclass($1)", 2, args);
	if (rows->nrows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s is gone from new", item->relation),
				 errhint("Its foreign key \"%s\" is remembered in cutover.deferred on new.", item->name)));
	limit = cutover_endpoint_set_timeout(ep, 0);
	if (CUTOVER_CELL(rows, 0, 1) == NULL)
	{
		bool		two_steps = !not_valid && CUTOVER_CELL(rows, 0, 0)[0] != 'p';

		cutover_endpoint_exec(ep, psprintf("BEGIN; SET LOCAL lock_timeout = %d", cutover_guc_lock_timeout));
		cutover_endpoint_exec(ep, psprintf("%s%s", sql, two_steps ? " NOT VALID" : ""));
		cutover_endpoint_exec(ep, "COMMIT");
		not_valid |= !two_steps;
	}
	else if (CUTOVER_CELL(rows, 0, 1)[0] == 't')
		not_valid = true;
	if (!not_valid)
		cutover_endpoint_exec(ep, psprintf("ALTER TABLE %s VALIDATE CONSTRAINT %s", item->relation, quote_identifier(item->name)));
	(void) cutover_endpoint_set_timeout(ep, limit);
	cutover_deferred_finish(ep, item);
}
