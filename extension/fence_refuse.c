/*
 * fence_refuse.c - writes that the fence does not let through, and what they are told.
 *
 * A transaction that read under one master must not write under the next: it
 * would write what it has computed from rows that others may have changed since.  It gets
 * 40001, the code on which applications run the transaction again.  One that
 * only comes too late gets 25006 at once, as it does on a standby.
 *
 * What a transaction has looked at is nowhere on record, and it may have looked
 * before this library was in its backend.  But it has locked what it looked at, and
 * its snapshot says what it can't see.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "fence.h"
#include "tracked.h"

/*
 * Is the write the statement that the client sent, by itself and in a
 * transaction of its own?  Then nothing came before it.
 */
static bool
fence_is_alone(Oid relid)
{
	PlannedStmt *stmt;
	ListCell   *lc;

	if (IsTransactionBlock() || ActivePortal == NULL || list_length(ActivePortal->stmts) != 1)
		return false;
	stmt = linitial_node(PlannedStmt, ActivePortal->stmts);
	foreach(lc, stmt->resultRelations)
		if (rt_fetch(lfirst_int(lc), stmt->rtable)->relid == relid)
			return true;
	return false;
}

/*
 * Does a snapshot that lasts as long as the transaction not see the present master?
 */
static bool
fence_snapshot_is_older(const CutoverTarget *target)
{
	Relation	rel;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	bool		isnull;
	bool		older = true;

	if (!IsolationUsesXactSnapshot() || !FirstSnapshotSet)
		return false;
	rel = table_open(cutover_tracked_config("_target"), AccessShareLock);
	ScanKeyInit(&key, SPI_fnumber(RelationGetDescr(rel), "target_id"), BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(target->target_id));
	scan = systable_beginscan(rel, cutover_tracked_config("_target_pkey"), true, GetTransactionSnapshot(), 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		older = DatumGetTimestampTz(cutover_tracked_attr(tuple, RelationGetDescr(rel), "master_since", &isnull)) <
			target->master_since;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return older;
}

/*
 * Has the transaction rolled a savepoint back, or may it have?  Locks that were taken there are gone.
 */
static bool
fence_had_subtransactions(int own)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bool		had;

	/* they are numbered from 1, which is the transaction itself; those open now are our ancestors */
	BeginInternalSubTransaction(NULL);
	had = GetCurrentSubTransactionId() > GetCurrentTransactionNestLevel() + own;
	ReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return had;
}

/* What is looked for among the relations of a target. */
typedef struct FenceSearch
{
	int32		target_id;
	List	   *table_ids;
	bool		held;
} FenceSearch;

/*
 * Does this transaction hold the lock that reading, or locking rows of, a
 * relation takes?  Both are kept to its end.
 */
static bool
fence_has_read(Oid relid)
{
	LOCKTAG		tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);
	return cutover_lock_held_compat(&tag, AccessShareLock) || cutover_lock_held_compat(&tag, RowShareLock);
}

/*
 * Visitor of _table.
 */
static bool
fence_visit_root(Relation rel, HeapTuple tuple, void *arg)
{
	FenceSearch *search = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;

	if (DatumGetInt32(cutover_tracked_attr(tuple, desc, "target_id", &isnull)) != search->target_id)
		return true;
	search->table_ids = lappend_int(search->table_ids,
									DatumGetInt32(cutover_tracked_attr(tuple, desc, "table_id", &isnull)));
	search->held |= fence_has_read(DatumGetObjectId(cutover_tracked_attr(tuple, desc, "old_table", &isnull)));
	return !search->held;
}

/*
 * Visitor of _member.
 */
static bool
fence_visit_member(Relation rel, HeapTuple tuple, void *arg)
{
	FenceSearch *search = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;

	if (list_member_int(search->table_ids, DatumGetInt32(cutover_tracked_attr(tuple, desc, "table_id", &isnull))))
		search->held |= fence_has_read(DatumGetObjectId(cutover_tracked_attr(tuple, desc, "relid", &isnull)));
	return !search->held;
}

/*
 * Has this transaction read tables of the target, other than to write to them?
 */
static bool
fence_has_read_any(int32 target_id)
{
	FenceSearch search = {.target_id = target_id};

	cutover_tracked_scan("_table", NULL, NULL, InvalidOid, (Datum) 0, fence_visit_root, &search);
	if (!search.held)
		cutover_tracked_scan("_member", NULL, NULL, InvalidOid, (Datum) 0, fence_visit_member, &search);
	list_free(search.table_ids);
	return search.held;
}

/*
 * Did this transaction look at tables of the target under another master?  See fence.h.
 *
 * Where old is not master the write is refused anyway, and only the code
 * depends on the answer; where it is, a doubt counts as yes.
 */
bool
cutover_fence_is_stale(const CutoverTarget *target, Oid relid, int own_subtransactions)
{
	bool		is_master = target->mode != CUTOVER_MODE_NEW_ONLY;

	if (GetCurrentTransactionStartTimestamp() >= target->master_since)
		return false;
	/* a snapshot older than the switch: of an earlier statement, if this one began after it */
	if (fence_snapshot_is_older(target) &&
		(is_master || GetCurrentStatementStartTimestamp() >= target->master_since))
		return true;
	if (fence_is_alone(relid))
		return false;
	return fence_has_read_any(target->target_id) ||
		(is_master && fence_had_subtransactions(own_subtransactions));
}

/* What a message says of a target. */
typedef struct FenceNames
{
	char	   *target;
	char	   *server;
	char	   *address;		/* of new, once the server is gone; NULL = it isn't */
} FenceNames;

/*
 * Visitor of _target.
 */
static bool
fence_visit_names(Relation rel, HeapTuple tuple, void *arg)
{
	FenceNames *names = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	Datum		address;

	names->target = pstrdup(NameStr(*DatumGetName(cutover_tracked_attr(tuple, desc, "target", &isnull))));
	names->server = pstrdup(NameStr(*DatumGetName(cutover_tracked_attr(tuple, desc, "server", &isnull))));
	address = cutover_tracked_attr(tuple, desc, "new_address", &isnull);
	names->address = isnull ? NULL : TextDatumGetCString(address);
	return false;
}

/*
 * Names of a target.
 */
static FenceNames
fence_names(int32 target_id)
{
	FenceNames	names = {"?", "", NULL};

	cutover_tracked_scan("_target", "_target_pkey", "target_id", INT4OID, Int32GetDatum(target_id),
						 fence_visit_names, &names);
	return names;
}

/*
 * Where new is, as far as everybody may know: never what is in the user mapping.
 */
static char *
fence_address(const char *server_name)
{
	static const char *const keywords[] = {"host", "hostaddr", "port", "dbname", "service"};
	ForeignServer *server = GetForeignServerByName(server_name, true);
	StringInfoData address;
	ListCell   *lc;

	initStringInfo(&address);
	for (int i = 0; server != NULL && i < lengthof(keywords); i++)
		foreach(lc, server->options)
		{
			DefElem    *option = lfirst_node(DefElem, lc);

			if (strcmp(option->defname, keywords[i]) == 0)
				appendStringInfo(&address, "%s%s=%s", address.len > 0 ? " " : "", keywords[i], defGetString(option));
		}
	return address.data;
}

/*
 * Name of a relation.
 */
static char *
fence_relation_name(Oid relid)
{
	char	   *name = get_rel_name(relid);

	return name == NULL ? psprintf("%u", relid) :
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), name);
}

/*
 * New is master.
 */
void
cutover_fence_refuse(const CutoverTarget *target, Oid relid)
{
	FenceNames	names = fence_names(target->target_id);
	char	   *address = names.address ? names.address : fence_address(names.server);

	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("cannot write to table %s: it has moved to another database", fence_relation_name(relid)),
			 target->forward ? errdetail("Table %s belongs to target \"%s\", which is in mode new_only, and this statement could not be forwarded.",
										 fence_relation_name(relid), names.target) :
			 errdetail("Table %s belongs to target \"%s\", which is in mode new_only.",
					   fence_relation_name(relid), names.target),
			 address[0] != '\0' ? errhint("Write to it there: %s", address) :
			 errhint("Write to it there; view cutover.status knows the target.")));
}

/*
 * The transaction began under another master.
 */
void
cutover_fence_refuse_stale(const CutoverTarget *target, Oid relid)
{
	FenceNames	names = fence_names(target->target_id);

	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("cannot write to table %s: the transaction began when another database had the last word",
					fence_relation_name(relid)),
			 errdetail("The transaction has used tables of target \"%s\" before the switch to mode %s.", names.target,
					   target->mode == CUTOVER_MODE_NEW_ONLY ? "new_only" :
					   target->mode == CUTOVER_MODE_DUAL_WRITE ? "dual_write" : "old_only"),
			 errhint("Run the transaction again from its start.")));
}

/*
 * Nobody knows who is master, and we have waited long enough.
 */
void
cutover_fence_refuse_in_doubt(const CutoverTarget *target, Oid relid)
{
	FenceNames	names = fence_names(target->target_id);

	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("cannot write to table %s while a switch is in doubt", fence_relation_name(relid)),
			 errdetail("The switch of target \"%s\" was cut off, and new can't be asked which side is master. Waited for cutover.in_doubt_timeout.",
					   names.target),
			 errhint("It resolves itself once new can be reached. If it is gone for good, make sure that nobody writes there and call cutover_resolve_switch(); see cutover.status.")));
}
