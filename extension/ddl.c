/*
 * ddl.c - event triggers: schema changes that capture must know of.
 *
 * They fire for every schema change of the database, so each leaves at once
 * unless the command concerns a table under migration.  What is to be done
 * then stands in cutover._reconcile(), run as the extension's owner.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/event_trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "block.h"
#include "capture.h"
#include "compat.h"
#include "fence.h"
#include "guc.h"
#include "partition.h"
#include "tracked.h"

PG_FUNCTION_INFO_V1(cutover_ddl_start);
PG_FUNCTION_INFO_V1(cutover_ddl_end);
PG_FUNCTION_INFO_V1(cutover_ddl_drop);
PG_FUNCTION_INFO_V1(cutover_ddl_rewrite);

/* A partition that the running command may drop. */
typedef struct DdlMember
{
	Oid			relid;
	Oid			toast;
	bool		done;			/* rows captured, or not to be */
} DdlMember;

static DdlMember *members = NULL;
static int	nmembers = 0;
static int	max_members = 0;
static bool drop_concerns = false;	/* the running command drops something of ours */
static bool drop_cascades = false;	/* it may drop more than it names */
static bool reconciling = false;
static object_access_hook_type next_object_access_hook = NULL;

/*
 * The event's data; an error if there is none.
 */
static EventTriggerData *
ddl_data(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by the event trigger manager"),
				 errdetail("It belongs to the event triggers of extension \"cutover\"."),
				 errhint("Don't call it.")));
	return (EventTriggerData *) fcinfo->context;
}

/*
 * Is there nothing for us to do?
 */
static bool
ddl_idle(void)
{
	return reconciling || cutover_capture_disabled || !cutover_tracked_any();
}

/*
 * Owner of schema cutover, which is the extension's.
 */
static Oid
ddl_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(NAMESPACENAME, CStringGetDatum("cutover"));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_namespace) GETSTRUCT(tuple))->nspowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/*
 * Compare a table (0 = all) with the catalogs and put right what differs.
 */
static void
ddl_reconcile(int32 table_id)
{
	Oid			type = INT4OID;
	Datum		arg = Int32GetDatum(table_id);
	Oid			user;
	int			context;
	Oid			owner = ddl_owner();

	if (!OidIsValid(owner))
		return;
	GetUserIdAndSecContext(&user, &context);
	reconciling = true;
	PG_TRY();
	{
		SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
		SPI_connect();
		if (SPI_execute_with_args("SELECT cutover._reconcile($1)", 1, &type, &arg,
								  table_id == 0 ? "n" : " ", false, 0) != SPI_OK_SELECT)
			elog(ERROR, "cutover._reconcile failed");
		SPI_finish();
	}
	PG_FINALLY();
	{
		reconciling = false;
		SetUserIdAndSecContext(user, context);
	}
	PG_END_TRY();
}

/*
 * Visitor: collect targets that are at work.
 */
static bool
ddl_visit_target(Relation rel, HeapTuple tuple, void *arg)
{
	TupleDesc	desc = RelationGetDescr(rel);
	StringInfo	names = arg;
	bool		isnull;
	char	   *desired = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "desired", &isnull));

	if (strcmp(desired, "running") == 0 || strcmp(desired, "paused") == 0)
		appendStringInfo(names, "%s\"%s\" (%s)", names->len > 0 ? ", " : "",
						 NameStr(*DatumGetName(cutover_tracked_attr(tuple, desc, "target", &isnull))), desired);
	return true;
}

/*
 * Once the extension has gone its library may go, and a session that is told
 * to load it could not even begin.
 */
static void
ddl_reset_database(void)
{
	SPI_connect();
	if (SPI_execute("SELECT cutover._disable_router(target_id) FROM cutover._router", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not disable the router");
	if (SPI_execute("SELECT cutover._set_old_read_only(target_id, false) FROM cutover._target WHERE old_read_only", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not make the database writable");
	SPI_finish();
}

/*
 * DROP EXTENSION cutover in the middle of a migration would leave new half
 * done, and nobody to finish it.
 */
static void
ddl_refuse_drop_extension(DropStmt *stmt)
{
	ListCell   *lc;
	StringInfoData names;

	foreach(lc, stmt->objects)
	{
		if (strcmp(strVal(lfirst(lc)), "cutover") != 0)
			continue;
		initStringInfo(&names);
		cutover_tracked_scan("_target", NULL, NULL, InvalidOid, (Datum) 0, ddl_visit_target, &names);
		if (names.len > 0)
			ereport(ERROR,
					(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
					 errmsg("extension \"cutover\" is in use and can't be dropped"),
					 errdetail("A migration is under way to target %s.", names.data),
					 errhint("End it with cutover_cancel() or cutover_finish() first.")));
		ddl_reset_database();
	}
}

/* What a command drops, as far as it can be told beforehand. */
typedef struct DdlDrop
{
	List	   *tables;			/* oids */
	List	   *schemas;
	List	   *roles;
	List	   *fenced;			/* oids of tables under migration, and of their partitions */
	bool		concerns;
} DdlDrop;

/*
 * Is this relation in what is dropped?
 */
static bool
ddl_is_dropped(const DdlDrop *drop, Oid relid)
{
	HeapTuple	tuple;
	Form_pg_class class;
	bool		dropped;

	if (list_member_oid(drop->tables, relid))
		return true;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(tuple))
		return false;
	class = (Form_pg_class) GETSTRUCT(tuple);
	dropped = list_member_oid(drop->schemas, class->relnamespace) ||
		list_member_oid(drop->roles, class->relowner);
	ReleaseSysCache(tuple);
	return dropped;
}

/*
 * Visitor of _table: does the command drop tables under migration as a whole?
 */
static bool
ddl_visit_dropped_table(Relation rel, HeapTuple tuple, void *arg)
{
	DdlDrop    *drop = arg;
	bool		isnull;
	Oid			relid = DatumGetObjectId(cutover_tracked_attr(tuple, RelationGetDescr(rel), "old_table", &isnull));

	if (ddl_is_dropped(drop, relid))
	{
		drop->concerns = true;
		drop->tables = list_append_unique_oid(drop->tables, relid);
		drop->fenced = lappend_oid(drop->fenced, relid);
	}
	return true;
}

/*
 * Visitor of _member: note partitions, with their TOAST tables, which go first.
 */
static bool
ddl_visit_member(Relation rel, HeapTuple tuple, void *arg)
{
	DdlDrop    *drop = arg;
	bool		isnull;
	Oid			relid = DatumGetObjectId(cutover_tracked_attr(tuple, RelationGetDescr(rel), "relid", &isnull));
	HeapTuple	class;
	int32		table_id;
	Oid			root;

	class = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	if (!HeapTupleIsValid(class))
		return true;
	if (cutover_tracked_find(relid, &table_id, &root) && root != relid)
	{
		if (nmembers == max_members)
		{
			int			size = max_members == 0 ? 64 : max_members * 2;

			members = members == NULL ? MemoryContextAlloc(TopMemoryContext, size * sizeof(DdlMember))
				: repalloc(members, size * sizeof(DdlMember));
			max_members = size;
		}
		members[nmembers].relid = relid;
		members[nmembers].toast = ((Form_pg_class) GETSTRUCT(class))->reltoastrelid;
		members[nmembers++].done = list_member_oid(drop->tables, root);
		if (ddl_is_dropped(drop, relid))
		{
			drop->concerns = true;
			drop->fenced = lappend_oid(drop->fenced, relid);
		}
	}
	ReleaseSysCache(class);
	return true;
}

/*
 * object_access_hook: before a partition's rows go with it, capture them as deleted.
 */
static void
ddl_object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (next_object_access_hook)
		next_object_access_hook(access, classId, objectId, subId, arg);
	if (access != OAT_DROP || classId != RelationRelationId || subId != 0 || nmembers == 0)
		return;
	/* of a TOAST table, its index goes first */
	if (get_rel_relkind(objectId) == RELKIND_INDEX)
		objectId = IndexGetRelation(objectId, true);
	for (int i = 0; i < nmembers; i++)
	{
		Relation	rel;

		if (members[i].relid != objectId && members[i].toast != objectId)
			continue;
		if (members[i].done || cutover_capture_disabled ||
			cutover_guc_partition_rows != CUTOVER_PARTITION_ROWS_APPLY)
			continue;
		members[i].done = true;
		rel = try_relation_open(members[i].relid, AccessShareLock);
		if (rel != NULL)
		{
			cutover_partition_capture_rows(rel, CUTOVER_OP_DELETE);
			relation_close(rel, NoLock);
		}
	}
}

/*
 * Be prepared for what a command drops.
 */
static void
ddl_prepare_drop(DdlDrop *drop)
{
	ListCell   *lc;

	nmembers = 0;
	cutover_tracked_scan("_table", NULL, NULL, InvalidOid, (Datum) 0, ddl_visit_dropped_table, drop);
	cutover_tracked_scan("_member", NULL, NULL, InvalidOid, (Datum) 0, ddl_visit_member, drop);
	/* before the command locks anything */
	foreach(lc, drop->fenced)
		cutover_fence_ddl(lfirst_oid(lc));
	drop_concerns = drop->concerns;
	if (nmembers > 0 && object_access_hook != ddl_object_access)
	{
		static bool installed = false;

		if (!installed)
		{
			next_object_access_hook = object_access_hook;
			object_access_hook = ddl_object_access;
			installed = true;
		}
	}
}

/*
 * DROP of something with a name: does it concern us?
 */
static void
ddl_before_drop(DropStmt *stmt)
{
	DdlDrop		drop = {0};
	ListCell   *lc;
	int32		table_id;
	Oid			root;

	foreach(lc, stmt->objects)
	{
		Oid			oid;

		if (stmt->removeType == OBJECT_SCHEMA)
		{
			oid = get_namespace_oid(strVal(lfirst(lc)), true);
			if (OidIsValid(oid))
				drop.schemas = lappend_oid(drop.schemas, oid);
		}
		else if (stmt->removeType == OBJECT_TABLE || stmt->removeType == OBJECT_FOREIGN_TABLE)
		{
			oid = RangeVarGetRelid(makeRangeVarFromNameList((List *) lfirst(lc)), NoLock, true);
			if (OidIsValid(oid))
				drop.tables = lappend_oid(drop.tables, oid);
			if (cutover_tracked_find(oid, &table_id, &root))
			{
				drop.concerns = true;
				drop.fenced = lappend_oid(drop.fenced, oid);
			}
		}
		else if (stmt->removeType == OBJECT_TRIGGER)
		{
			List	   *names = (List *) lfirst(lc);

			if (list_length(names) < 2)
				continue;
			oid = RangeVarGetRelid(makeRangeVarFromNameList(list_copy_head(names, list_length(names) - 1)),
								   NoLock, true);
			drop_concerns |= cutover_tracked_find(oid, &table_id, &root);
		}
	}
	if (stmt->removeType == OBJECT_SCHEMA || drop.concerns)
		ddl_prepare_drop(&drop);
}

/*
 * ALTER TABLE subcommands by which rows, or values of them, come or go.  Those
 * that rewrite the table have an event of their own.
 */
static bool
ddl_alter_changes_data(AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableType subtype = ((AlterTableCmd *) lfirst(lc))->subtype;

		if (subtype == AT_AttachPartition || subtype == AT_DetachPartition || subtype == AT_DropColumn)
			return true;
	}
	return false;
}

/*
 * cutover._ddl_start() - event trigger function
 */
Datum
cutover_ddl_start(PG_FUNCTION_ARGS)
{
	EventTriggerData *data = ddl_data(fcinfo);

	if (IsA(data->parsetree, DropStmt) && ((DropStmt *) data->parsetree)->removeType == OBJECT_EXTENSION)
		ddl_refuse_drop_extension((DropStmt *) data->parsetree);
	if (ddl_idle())
		PG_RETURN_VOID();
	drop_concerns = drop_cascades = false;
	nmembers = 0;
	if (IsA(data->parsetree, DropStmt))
	{
		ddl_before_drop((DropStmt *) data->parsetree);
		drop_cascades = ((DropStmt *) data->parsetree)->behavior == DROP_CASCADE;
	}
	else if (IsA(data->parsetree, AlterTableStmt))
	{
		AlterTableStmt *stmt = (AlterTableStmt *) data->parsetree;

		if (ddl_alter_changes_data(stmt))
			cutover_fence_ddl(RangeVarGetRelid(stmt->relation, NoLock, true));
	}
	else if (IsA(data->parsetree, DropOwnedStmt))
	{
		DdlDrop		drop = {0};
		ListCell   *lc;

		foreach(lc, ((DropOwnedStmt *) data->parsetree)->roles)
			drop.roles = lappend_oid(drop.roles, get_rolespec_oid(lfirst(lc), true));
		ddl_prepare_drop(&drop);
		drop_cascades = true;
	}
	PG_RETURN_VOID();
}

/*
 * Does ALTER TABLE have a subcommand that moves partitions or touches triggers?
 */
static bool
ddl_alter_concerns(AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		switch (((AlterTableCmd *) lfirst(lc))->subtype)
		{
			case AT_AttachPartition:
			case AT_DetachPartition:
			case AT_DetachPartitionFinalize:
			case AT_EnableTrig:
			case AT_EnableAlwaysTrig:
			case AT_EnableReplicaTrig:
			case AT_DisableTrig:
			case AT_EnableTrigAll:
			case AT_DisableTrigAll:
			case AT_EnableTrigUser:
			case AT_DisableTrigUser:
				return true;
			default:
				break;
		}
	}
	return false;
}

/*
 * cutover._ddl_end() - event trigger function
 */
Datum
cutover_ddl_end(PG_FUNCTION_ARGS)
{
	EventTriggerData *data = ddl_data(fcinfo);
	RangeVar   *relation = NULL;
	int32		table_id;
	Oid			root;

	if (ddl_idle())
		PG_RETURN_VOID();
	if (IsA(data->parsetree, AlterTableStmt))
	{
		if (ddl_alter_concerns((AlterTableStmt *) data->parsetree))
			relation = ((AlterTableStmt *) data->parsetree)->relation;
	}
	else if (IsA(data->parsetree, CreateStmt) || IsA(data->parsetree, CreateForeignTableStmt))
	{
		/* the latter begins with the former */
		if (((CreateStmt *) data->parsetree)->partbound != NULL)
			relation = ((CreateStmt *) data->parsetree)->relation;
	}
	else if (IsA(data->parsetree, CreateSchemaStmt))
	{
		if (((CreateSchemaStmt *) data->parsetree)->schemaElts != NIL)
			ddl_reconcile(0);
	}
	if (relation != NULL && cutover_tracked_find(RangeVarGetRelid(relation, NoLock, true), &table_id, &root))
		ddl_reconcile(table_id);
	PG_RETURN_VOID();
}

/*
 * The fence for what was dropped along with something else, a column with its
 * type for example.
 */
static void
ddl_fence_dropped(void)
{
	Oid			owner = ddl_owner();
	Oid			user;
	int			context;
	List	   *relids = NIL;
	ListCell   *lc;
	bool		isnull;
	MemoryContext cxt = CurrentMemoryContext;

	if (!OidIsValid(owner))
		return;
	GetUserIdAndSecContext(&user, &context);
	PG_TRY();
	{
		SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
		SPI_connect();
		if (SPI_execute("SELECT d.objid FROM pg_catalog.pg_event_trigger_dropped_objects() d"
						" WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass AND ("
						"EXISTS (SELECT FROM cutover._table t WHERE t.old_table OPERATOR(pg_catalog.=) d.objid)"
						" OR EXISTS (SELECT FROM cutover._member m WHERE m.relid OPERATOR(pg_catalog.=) d.objid))",
						true, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not look what was dropped");
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(cxt);

			relids = lappend_oid(relids, DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
																		1, &isnull)));
			MemoryContextSwitchTo(old);
		}
		SPI_finish();
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(user, context);
	}
	PG_END_TRY();
	foreach(lc, relids)
		cutover_fence_ddl(lfirst_oid(lc));
}

/*
 * cutover._ddl_drop() - event trigger function for sql_drop
 */
Datum
cutover_ddl_drop(PG_FUNCTION_ARGS)
{
	(void) ddl_data(fcinfo);
	if (!ddl_idle() && drop_cascades)
		ddl_fence_dropped();
	if (!ddl_idle() && drop_concerns)
		ddl_reconcile(0);
	drop_cascades = false;
	nmembers = 0;
	drop_concerns = false;
	PG_RETURN_VOID();
}

/*
 * Say once in a transaction that a table was rewritten, whatever the number of its partitions.
 */
static void
ddl_mark_rewritten(Oid relid, int32 table_id, Oid root)
{
	static LocalTransactionId last_lxid = InvalidLocalTransactionId;
	static int32 last_table = 0;
	Relation	rel;
	CutoverRelation *entry;
	char	   *name;

	if (last_lxid == cutover_my_lxid_compat() && last_table == table_id)
		return;
	rel = relation_open(relid, NoLock);
	entry = cutover_tracked_relation(rel);
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(root)), get_rel_name(root));
	if (entry->active)
		cutover_capture_control(entry->target_id, table_id, CUTOVER_CONTROL_RESYNC,
								psprintf("ALTER TABLE rewrote %s, which changes rows without firing triggers; SELECT cutover_resync(%s) copies it afresh",
										 name, quote_literal_cstr(name)));
	relation_close(rel, NoLock);
	last_lxid = cutover_my_lxid_compat();
	last_table = table_id;
}

/*
 * cutover._ddl_rewrite() - event trigger function for table_rewrite
 */
Datum
cutover_ddl_rewrite(PG_FUNCTION_ARGS)
{
	Oid			relid;
	int			reason;
	int32		table_id;
	Oid			root;

	(void) ddl_data(fcinfo);
	if (ddl_idle() || cutover_capture_rewrite_is_ours)
		PG_RETURN_VOID();
	relid = DatumGetObjectId(OidFunctionCall0(F_PG_EVENT_TRIGGER_TABLE_REWRITE_OID));
	reason = DatumGetInt32(OidFunctionCall0(F_PG_EVENT_TRIGGER_TABLE_REWRITE_REASON));
	if ((reason & (AT_REWRITE_DEFAULT_VAL | AT_REWRITE_COLUMN_REWRITE)) != 0 &&
		cutover_tracked_find(relid, &table_id, &root))
	{
		cutover_fence_ddl(relid);
		ddl_mark_rewritten(relid, table_id, root);
	}
	PG_RETURN_VOID();
}
