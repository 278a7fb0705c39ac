/*
 * tracked.c - caches of the configuration, one per backend.
 *
 * Filled with plain scans under a snapshot of their own: no SPI, no plan, no
 * dependence on the user's isolation level.  An entry is valid only once it is complete, so an error on
 * the way leaves nothing behind, and an invalidation that arrives during the
 * filling has it done again.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "tracked.h"

#define CONFIG_TABLES 5

static const char *const config_names[CONFIG_TABLES] = {"_target", "_table", "_column", "_member", "_rule"};

static HTAB *relations = NULL;
static HTAB *targets = NULL;
static HTAB *states = NULL;
static Oid	config_oids[CONFIG_TABLES]; /* InvalidOid = not looked up */
static uint64 invalidations = 0;	/* counts them, to notice one during a fill */
static uint64 generation = 1;	/* +1 at those of configuration tables; never 0 */
static int	any_known = -1;		/* is any table under migration?  -1 = to be looked up */
static int	any_forwards = -1;		/* does any target forward writes?  -1 = to be looked up */
static double shadow_ratio = -1;	/* the highest of all targets; -1 = to be looked up */

/*
 * Forget everything.
 */
static void
tracked_forget_all(void)
{
	HASH_SEQ_STATUS seq;
	CutoverRelation *entry;
	CutoverTarget *target;

	generation++;
	hash_seq_init(&seq, relations);
	while ((entry = hash_seq_search(&seq)) != NULL)
		entry->valid = false;
	hash_seq_init(&seq, targets);
	while ((target = hash_seq_search(&seq)) != NULL)
		target->valid = false;
	any_known = any_forwards = -1;
	shadow_ratio = -1;
}

/*
 * Relcache callback.  Only flags are set: entries may be in use.
 */
static void
tracked_relcache_callback(Datum arg, Oid relid)
{
	CutoverRelation *entry;

	invalidations++;
	if (OidIsValid(relid))
	{
		/* no tables of ours were there: this may be the first */
		if (!OidIsValid(config_oids[0]))
			shadow_ratio = any_forwards = -1;
		for (int i = 0; i < CONFIG_TABLES; i++)
			if (config_oids[i] == relid)
			{
				config_oids[i] = InvalidOid;
				tracked_forget_all();
				return;
			}
		entry = hash_search(relations, &relid, HASH_FIND, NULL);
		if (entry != NULL)
			entry->valid = false;
		return;
	}
	memset(config_oids, 0, sizeof(config_oids));
	tracked_forget_all();
}

/*
 * Make the hash tables and register the callback.
 */
void
cutover_tracked_init(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(CutoverRelation);
	relations = hash_create("cutover relations", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(CutoverTarget);
	targets = hash_create("cutover targets", 4, &ctl, HASH_ELEM | HASH_BLOBS);
	ctl.entrysize = sizeof(CutoverTableState);
	states = hash_create("cutover tables", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(tracked_relcache_callback, (Datum) 0);
}

/*
 * Forget one relation.
 */
void
cutover_tracked_forget(Oid relid)
{
	CutoverRelation *entry = hash_search(relations, &relid, HASH_FIND, NULL);

	if (entry != NULL)
		entry->valid = false;
}

/*
 * Look a relation of our schema up.
 */
Oid
cutover_tracked_config(const char *name)
{
	Oid			schema = get_namespace_oid("cutover", true);

	return OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
}

/*
 * Remember the configuration tables, so that the callback knows them.  False
 * if the extension isn't there.
 */
static bool
tracked_know_config(void)
{
	for (int i = 0; i < CONFIG_TABLES; i++)
	{
		if (!OidIsValid(config_oids[i]))
			config_oids[i] = cutover_tracked_config(config_names[i]);
		if (!OidIsValid(config_oids[i]))
			return false;
	}
	return true;
}

/*
 * Column of a configuration row, by name: the column order of our tables is
 * nobody's business.
 */
Datum
cutover_tracked_attr(HeapTuple tuple, TupleDesc desc, const char *name, bool *isnull)
{
	int			attnum = SPI_fnumber(desc, name);

	if (attnum <= 0)
		elog(ERROR, "cutover's table has no column \"%s\"", name);
	return heap_getattr(tuple, attnum, desc, isnull);
}

/*
 * Scan one of our tables.
 */
void
cutover_tracked_scan(const char *table, const char *index, const char *column,
					 Oid keytype, Datum key, CutoverRowVisitor visitor, void *arg)
{
	Oid			relid = cutover_tracked_config(table);
	Oid			indexid = index ? cutover_tracked_config(index) : InvalidOid;
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;
	ScanKeyData skey;
	int			nkeys = 0;

	if (!OidIsValid(relid))
		return;
	rel = table_open(relid, AccessShareLock);
	if (column != NULL)
	{
		ScanKeyInit(&skey, SPI_fnumber(RelationGetDescr(rel), column), BTEqualStrategyNumber,
					keytype == OIDOID ? F_OIDEQ : F_INT4EQ, key);
		nkeys = 1;
	}
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(rel, indexid, OidIsValid(indexid), snapshot, nkeys, &skey);
	while ((tuple = systable_getnext(scan)) != NULL)
		if (!visitor(rel, tuple, arg))
			break;
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/*
 * A column of type numeric.
 */
static double
tracked_ratio(HeapTuple tuple, TupleDesc desc, const char *column)
{
	bool		isnull;

	return DatumGetFloat8(DirectFunctionCall1(numeric_float8, cutover_tracked_attr(tuple, desc, column, &isnull)));
}

/*
 * Who is master, since when, and whether that is changing.
 */
static void
tracked_read_switch(CutoverTarget *target, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		value;
	char	   *word;

	target->epoch = DatumGetInt64(cutover_tracked_attr(tuple, desc, "epoch", &isnull));
	target->master_since = DatumGetTimestampTz(cutover_tracked_attr(tuple, desc, "master_since", &isnull));
	/* as the row was made */
	if (target->master_since == DatumGetTimestampTz(cutover_tracked_attr(tuple, desc, "created_at", &isnull)))
		target->master_since = DT_NOBEGIN;
	word = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "old_writes", &isnull));
	target->forward = strcmp(word, "forward") == 0;
	pfree(word);
	value = cutover_tracked_attr(tuple, desc, "switch_state", &isnull);
	target->switch_state = CUTOVER_SWITCH_NONE;
	if (!isnull)
	{
		word = TextDatumGetCString(value);
		target->switch_state = strcmp(word, "in_doubt") == 0 ? CUTOVER_SWITCH_IN_DOUBT : CUTOVER_SWITCH_PREPARING;
		pfree(word);
	}
}

/*
 * Visitor: a row of _target.
 */
static bool
tracked_visit_target(Relation rel, HeapTuple tuple, void *arg)
{
	CutoverTarget *target = arg;
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	char	   *desired;
	char	   *mode;

	desired = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "desired", &isnull));
	target->running = strcmp(desired, "running") == 0;
	target->active = target->running || strcmp(desired, "paused") == 0;
	/* a copy of the cluster captures, so that it may be adopted, but has no worker */
	target->ours = (uint64) DatumGetInt64(cutover_tracked_attr(tuple, desc, "system_identifier", &isnull)) == GetSystemIdentifier();
	target->running &= target->ours;
	target->rewound = DatumGetBool(cutover_tracked_attr(tuple, desc, "rewound", &isnull));
	target->segment = DatumGetInt32(cutover_tracked_attr(tuple, desc, "write_segment", &isnull));
	mode = TextDatumGetCString(cutover_tracked_attr(tuple, desc, "mode", &isnull));
	target->known = true;
	target->mode = strcmp(mode, "new_only") == 0 ? CUTOVER_MODE_NEW_ONLY :
		strcmp(mode, "dual_write") == 0 ? CUTOVER_MODE_DUAL_WRITE : CUTOVER_MODE_OLD_ONLY;
	target->dual_write = target->active && target->mode == CUTOVER_MODE_DUAL_WRITE;
	tracked_read_switch(target, tuple, desc);
	target->write_ratio = tracked_ratio(tuple, desc, "write_ratio");
	target->read_ratio = tracked_ratio(tuple, desc, "read_ratio");
	target->shadow_ratio = tracked_ratio(tuple, desc, "shadow_ratio");
	pfree(mode);
	pfree(desired);
	return false;
}

/*
 * The entry of a target.
 */
CutoverTarget *
cutover_tracked_target(int32 target_id)
{
	bool		found;
	CutoverTarget *target = hash_search(targets, &target_id, HASH_ENTER, &found);
	uint64		before;
	int			tries = 0;

	if (!found)
	{
		target->valid = false;
		target->slot = NULL;
		target->wrote_old = target->wrote_new = 0;
		target->policy = NULL;
		target->fenced = InvalidLocalTransactionId;
		target->forwarding = InvalidLocalTransactionId;
	}
	while (!target->valid)
	{
		before = invalidations;
		target->known = target->active = target->running = target->dual_write = target->ours = false;
		target->segment = 0;
		target->fence = InvalidOid;
		memset(target->queue, 0, sizeof(target->queue));
		if (tracked_know_config())
			cutover_tracked_scan("_target", "_target_pkey", "target_id", INT4OID,
								 Int32GetDatum(target_id), tracked_visit_target, target);
		for (int i = 0; i < CUTOVER_SEGMENTS && target->active; i++)
		{
			char		name[NAMEDATALEN];

			snprintf(name, sizeof(name), "_queue_%d_%d", target_id, i);
			target->queue[i] = cutover_tracked_config(name);
			if (!OidIsValid(target->queue[i]))
				target->active = false;
		}
		if (target->known)
		{
			char		name[NAMEDATALEN];

			snprintf(name, sizeof(name), "_fence_%d", target_id);
			target->fence = cutover_tracked_config(name);
		}
		target->valid = before == invalidations;
		if (++tries > 10)
			break;				/* good enough for now, looked up again next time */
	}
	return target;
}

/*
 * The entry of a target, if there is one.
 */
CutoverTarget *
cutover_tracked_met(int32 target_id)
{
	return hash_search(targets, &target_id, HASH_FIND, NULL);
}

/*
 * Which configuration is known.
 */
uint64
cutover_tracked_generation(void)
{
	return generation;
}

/*
 * Fill the entry of a relation from the tables; see tracked_relation.c.
 */
static void
tracked_fill(CutoverRelation *entry, Relation rel)
{
	bool		found;

	entry->active = entry->marked = false;
	entry->target = NULL;
	if (!tracked_know_config() || !cutover_tracked_read_relation(entry, rel))
		return;
	entry->state = hash_search(states, &entry->table_id, HASH_ENTER, &found);
	if (!found)
	{
		entry->state->lxid = InvalidLocalTransactionId;
		entry->state->last_cid = FirstCommandId;
	}
	entry->target = cutover_tracked_target(entry->target_id);
	entry->active = entry->target->active;
}

/*
 * The entry of a relation.
 */
CutoverRelation *
cutover_tracked_relation(Relation rel)
{
	static CutoverRelation *last = NULL;
	Oid			relid = RelationGetRelid(rel);
	CutoverRelation *entry = last;
	bool		found = true;
	uint64		before;
	int			tries = 0;

	if (entry == NULL || entry->relid != relid)
	{
		entry = hash_search(relations, &relid, HASH_ENTER, &found);
		if (!found)
		{
			entry->valid = false;
			entry->cxt = NULL;
		}
		last = entry;
	}
	while (!entry->valid && tries++ < 10)
	{
		before = invalidations;
		tracked_fill(entry, rel);
		entry->valid = before == invalidations;
	}
	return entry;
}

/*
 * Visitor: stop at the first row, having noticed it.
 */
static bool
tracked_visit_any(Relation rel, HeapTuple tuple, void *arg)
{
	*(bool *) arg = true;
	return false;
}

/*
 * Is there any table under migration?
 */
bool
cutover_tracked_any(void)
{
	uint64		before = invalidations;
	bool		any = false;

	if (any_known >= 0)
		return any_known > 0;
	if (!tracked_know_config())
		return false;
	cutover_tracked_scan("_table", NULL, NULL, InvalidOid, (Datum) 0, tracked_visit_any, &any);
	if (before == invalidations)
		any_known = any;
	return any;
}

/*
 * Visitor: the highest ratio of shadow reads.
 */
static bool
tracked_visit_shadow(Relation rel, HeapTuple tuple, void *arg)
{
	double	   *ratio = arg;

	*ratio = Max(*ratio, tracked_ratio(tuple, RelationGetDescr(rel), "shadow_ratio"));
	return true;
}

/*
 * Are there shadow reads at all?
 */
double
cutover_tracked_shadow_ratio(void)
{
	uint64		before = invalidations;
	double		ratio = 0;

	if (shadow_ratio >= 0)
		return shadow_ratio;
	if (tracked_know_config())
		cutover_tracked_scan("_target", NULL, NULL, InvalidOid, (Datum) 0, tracked_visit_shadow, &ratio);
	if (before == invalidations)
		shadow_ratio = ratio;
	return ratio;
}

/*
 * Visitor: does a target forward writes?
 */
static bool
tracked_visit_forwards(Relation rel, HeapTuple tuple, void *arg)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;

	*(bool *) arg = strcmp(TextDatumGetCString(cutover_tracked_attr(tuple, desc, "mode", &isnull)), "new_only") == 0 &&
		strcmp(TextDatumGetCString(cutover_tracked_attr(tuple, desc, "old_writes", &isnull)), "forward") == 0;
	return !*(bool *) arg;
}

/*
 * Does any target forward writes to new?
 */
bool
cutover_tracked_forwards(void)
{
	uint64		before = invalidations;
	bool		forwards = false;

	if (any_forwards >= 0)
		return any_forwards > 0;
	if (!IsTransactionState() || !tracked_know_config())
		return false;
	cutover_tracked_scan("_target", NULL, NULL, InvalidOid, (Datum) 0, tracked_visit_forwards, &forwards);
	if (before == invalidations)
		any_forwards = forwards;
	return forwards;
}
