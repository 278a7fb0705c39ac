/*
 * shadow.c - sampling SELECTs: their result is hashed on its way to the client.
 *
 * Runs in client sessions.  ExecutorRun puts a receiver in front of the
 * client's, which adds up hashes of rows; afterwards text, parameters and hash
 * go into the ring of the target (shadow_ring.c).  The client gets the rows as
 * if nothing were there.  What is not to be seen from the plan (functions,
 * LIMIT, ...) is judged by the worker, which parses the text again: a sampled
 * statement costs the client as little as possible.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "common/pg_prng.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "nodes/pathnodes.h"
#include "portability/instr_time.h"
#include "tcop/dest.h"
#include "tcop/pquery.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/rel.h"

#include "capture.h"
#include "compat.h"
#include "guc.h"
#include "route_scan.h"
#include "shadow.h"
#include "shadow_hash.h"
#include "tracked.h"

/* Relations of a statement that are looked at; more of them is no read of an application. */
#define SHADOW_MAX_RELATIONS 200

/* Stands in front of the client's receiver. */
typedef struct ShadowReceiver
{
	DestReceiver pub;
	DestReceiver *inner;
	CutoverShadowColumn *columns;
	int			natts;
	MemoryContext context;		/* of values made text; NULL = none are */
	bool		floats;
	bool		times;
	bool		large;			/* too many rows, nothing is added up any more */
	CutoverShadowSum sum;
} ShadowReceiver;

/* A statement that was chosen. */
typedef struct ShadowSample
{
	CutoverTarget *target;
	CutoverShadowRing *ring;
	const char *settings;
	int			settings_len;
} ShadowSample;

static ExecutorRun_hook_type previous_executor_run = NULL;
static pg_prng_state shadow_prng;
static bool shadow_seeded = false;

/* ---- the receiver ---- */

static void
shadow_receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	ShadowReceiver *receiver = (ShadowReceiver *) self;
	Oid		   *types = palloc(sizeof(Oid) * Max(desc->natts, 1));

	for (int i = 0; i < desc->natts; i++)
		types[i] = TupleDescAttr(desc, i)->atttypid;
	receiver->natts = desc->natts;
	receiver->columns = cutover_shadow_hash_columns(desc->natts, types, receiver->floats, receiver->times, false);
	if (cutover_shadow_hash_allocates(receiver->columns, desc->natts))
		receiver->context = AllocSetContextCreate(CurrentMemoryContext, "cutover shadow row", ALLOCSET_DEFAULT_SIZES);
	pfree(types);
	receiver->inner->rStartup(receiver->inner, operation, desc);
}

/*
 * A row on its way.
 */
static bool
shadow_receiver_receive(TupleTableSlot *slot, DestReceiver *self)
{
	ShadowReceiver *receiver = (ShadowReceiver *) self;

	if (receiver->large)
		return receiver->inner->receiveSlot(slot, receiver->inner);
	slot_getallattrs(slot);
	if (receiver->sum.rows >= cutover_guc_shadow_max_rows ||
		cutover_shadow_hash_too_large(receiver->columns, receiver->natts, slot->tts_values, slot->tts_isnull))
		receiver->large = true;
	else
	{
		MemoryContext old = NULL;
		uint64		row;

		if (receiver->context)
			old = MemoryContextSwitchTo(receiver->context);
		row = cutover_shadow_hash_values(receiver->columns, receiver->natts, slot->tts_values, slot->tts_isnull);
		if (old)
			MemoryContextSwitchTo(old);
		cutover_shadow_hash_add(&receiver->sum, row);
		/* what values left behind, not for every row */
		if (receiver->context && receiver->sum.rows % 64 == 0)
			MemoryContextReset(receiver->context);
	}
	return receiver->inner->receiveSlot(slot, receiver->inner);
}

static void
shadow_receiver_shutdown(DestReceiver *self)
{
	ShadowReceiver *receiver = (ShadowReceiver *) self;

	receiver->inner->rShutdown(receiver->inner);
}

static void
shadow_receiver_destroy(DestReceiver *self)
{
	/* it lives on the stack of the hook */
}

/* ---- which statements ---- */

/*
 * Does the statement run for a client, at top level, from its start to its end?
 */
static bool
shadow_is_top_level(QueryDesc *desc)
{
	CommandDest dest = desc->dest->mydest;

	if (ActivePortal == NULL || ActivePortal->queryDesc != desc)
		return false;
	if (dest == DestRemote || dest == DestRemoteExecute || dest == DestRemoteSimple)
		return true;
	/* EXECUTE fills a store; so does FETCH, whose portal can be seen */
	return dest == DestTuplestore && !ActivePortal->visible;
}

/*
 * The target whose tables the statement reads, NULL if there is none, and
 * what is wrong with them.
 */
static CutoverTarget *
shadow_find_target(PlannedStmt *stmt, CutoverShadowSkip *why)
{
	Bitmapset  *children = NULL;
	CutoverTarget *target = NULL;
	Index		rti = 0;
	int			looked = 0;
	ListCell   *lc;

	foreach(lc, stmt->appendRelations)
		children = bms_add_member(children, lfirst_node(AppendRelInfo, lc)->child_relid);
	foreach(lc, stmt->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);
		CutoverRelation *entry;
		Relation	rel;

		rti++;
		if (rte->rtekind != RTE_RELATION || rte->relkind == RELKIND_VIEW || bms_is_member(rti, children))
			continue;
		if (++looked > SHADOW_MAX_RELATIONS)
			return NULL;
		/* the executor has its lock */
		rel = RelationIdGetRelation(rte->relid);
		if (rel == NULL)
			return NULL;
		entry = cutover_tracked_relation(rel);
		if (rel->rd_rel->relrowsecurity)
			*why = CUTOVER_SHADOW_ROW_SECURITY;
		RelationClose(rel);
		if (!entry->active || (target != NULL && target != entry->target))
			*why = CUTOVER_SHADOW_OTHER_TABLE;
		else
			target = entry->target;
	}
	return target;
}

/*
 * Why this statement can't be compared, as far as that can be seen at once.
 */
static CutoverShadowSkip
shadow_refuses(QueryDesc *desc, uint64 count)
{
	if (count != 0 || !ActivePortal->atStart)
		return CUTOVER_SHADOW_CURSOR;
	if (desc->plannedstmt->rowMarks != NIL)
		return CUTOVER_SHADOW_LOCKS;
	if (desc->plannedstmt->dependsOnRole)
		return CUTOVER_SHADOW_ROW_SECURITY;
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return CUTOVER_SHADOW_WROTE;
	return CUTOVER_SHADOW_TAKEN;
}

/*
 * Draw lots, and look whether the statement may be taken.
 */
static bool
shadow_choose(QueryDesc *desc, uint64 count, double highest, ShadowSample *sample)
{
	CutoverShadowSkip why = CUTOVER_SHADOW_TAKEN;
	CutoverTarget *target;
	double		lot;

	if (!shadow_seeded)
	{
		pg_prng_seed(&shadow_prng, pg_prng_uint64(&pg_global_prng_state) ^ MyProcPid);
		shadow_seeded = true;
	}
	lot = pg_prng_double(&shadow_prng) * 100;
	if (lot >= highest || !shadow_is_top_level(desc) || !cutover_tracked_any() || cutover_route_reads_new(desc->planstate))
		return false;
	target = shadow_find_target(desc->plannedstmt, &why);
	if (target == NULL || lot >= target->shadow_ratio || !target->running || target->mode == CUTOVER_MODE_NEW_ONLY ||
		cutover_capture_disabled)
		return false;
	if (target->slot == NULL)
		target->slot = cutover_shmem_slot(target->target_id, true);
	if (target->slot == NULL)
		return false;
	sample->target = target;
	sample->ring = cutover_shadow_ring_find(target->slot, target->target_id);
	if (sample->ring == NULL)
	{
		pg_atomic_fetch_add_u64(&target->slot->shadow_lost, 1);
		return false;
	}
	if (why == CUTOVER_SHADOW_TAKEN)
		why = shadow_refuses(desc, count);
	if (why != CUTOVER_SHADOW_TAKEN)
	{
		cutover_shadow_ring_skip(sample->ring, why);
		return false;
	}
	sample->settings = cutover_shadow_settings_pack(&sample->settings_len);
	return true;
}

/* ---- handing over ---- */

/*
 * The parameters, packed as CutoverShadowEntry has them; NULL if making them
 * text takes code that is not the server's, which might fail.
 */
static StringInfo
shadow_pack_params(ParamListInfo params)
{
	StringInfo	packed = makeStringInfo();

	for (int i = 0; params != NULL && i < params->numParams; i++)
	{
		ParamExternData workspace;
		ParamExternData *param = params->paramFetch ? params->paramFetch(params, i + 1, false, &workspace) : &params->params[i];
		int32		len = -1;
		char	   *text = NULL;

		if (OidIsValid(param->ptype) && !param->isnull)
		{
			Oid			output;
			bool		varlena;

			getTypeOutputInfo(param->ptype, &output, &varlena);
			if (output >= FirstUnpinnedObjectId)
				return NULL;
			if (varlena && toast_raw_datum_size(param->value) > CUTOVER_SHADOW_CELL_SIZE)
			{
				packed->len = CUTOVER_SHADOW_CELL_SIZE;
				break;
			}
			text = OidOutputFunctionCall(output, param->value);
			len = strlen(text);
		}
		appendBinaryStringInfo(packed, (char *) &param->ptype, sizeof(Oid));
		appendBinaryStringInfo(packed, (char *) &len, sizeof(len));
		if (text)
			appendBinaryStringInfo(packed, text, len + 1);
		if (packed->len > CUTOVER_SHADOW_CELL_SIZE)
			break;
	}
	return packed;
}

/*
 * The statement's own part of the source text.
 */
static const char *
shadow_text(QueryDesc *desc, int *len)
{
	const char *text = desc->sourceText;
	int			start = Max(desc->plannedstmt->stmt_location, 0);

	*len = desc->plannedstmt->stmt_len;
	text += start;
	if (*len <= 0 || desc->plannedstmt->stmt_location < 0)
		*len = strlen(text);
	return text;
}

/*
 * Put the statement into the ring.
 */
static void
shadow_hand_over(QueryDesc *desc, const ShadowSample *sample, const CutoverShadowSum *sum, int64 us)
{
	int			text_len;
	const char *text = shadow_text(desc, &text_len);
	int			nparams = desc->params ? desc->params->numParams : 0;
	StringInfo	params = shadow_pack_params(desc->params);
	uint64		text_hash = cutover_shadow_hash_bytes(text, text_len, 0);
	CutoverShadowEntry *entry;

	if (params == NULL)
	{
		cutover_shadow_ring_skip(sample->ring, CUTOVER_SHADOW_OWN_CODE);
		return;
	}
	if (offsetof(CutoverShadowEntry, data) + text_len + 1 + sample->settings_len + params->len > CUTOVER_SHADOW_ENTRY_MAX)
	{
		cutover_shadow_ring_skip(sample->ring, CUTOVER_SHADOW_LONG_TEXT);
		return;
	}
	entry = cutover_shadow_ring_reserve(sample->ring, text_hash);
	if (entry == NULL)
		return;
	/* from here on nothing may fail */
	entry->userid = GetUserId();
	entry->queryid = desc->plannedstmt->queryId;
	entry->text_hash = text_hash;
	entry->rows = sum->rows;
	entry->set_hash = sum->set_hash;
	entry->list_hash = sum->list_hash;
	entry->old_us = us;
	entry->xact_at = GetCurrentTransactionStartTimestamp();
	entry->statement_at = GetCurrentStatementStartTimestamp();
	entry->nparams = nparams;
	entry->text_len = text_len + 1;
	entry->settings_len = sample->settings_len;
	entry->params_len = params->len;
	memcpy(entry->data, text, text_len);
	entry->data[text_len] = '\0';
	memcpy(entry->data + text_len + 1, sample->settings, sample->settings_len);
	memcpy(entry->data + text_len + 1 + sample->settings_len, params->data, params->len);
	cutover_shadow_ring_publish(sample->ring, sample->target->slot, entry);
}

/* ---- the hook ---- */

static void
shadow_run(CUTOVER_EXECUTOR_RUN_ARGS)
{
	if (previous_executor_run)
		previous_executor_run(CUTOVER_EXECUTOR_RUN_PASS);
	else
		standard_ExecutorRun(CUTOVER_EXECUTOR_RUN_PASS);
}

/*
 * Run with the receiver in front.
 */
static void
shadow_run_sampled(ShadowSample *sample, CUTOVER_EXECUTOR_RUN_ARGS)
{
	DestReceiver *inner = desc->dest;
	ShadowReceiver receiver = {
		.pub = {
			.receiveSlot = shadow_receiver_receive,
			.rStartup = shadow_receiver_startup,
			.rShutdown = shadow_receiver_shutdown,
			.rDestroy = shadow_receiver_destroy,
			.mydest = inner->mydest
		},
		.inner = inner
	};
	instr_time	start;
	instr_time	end;

	cutover_shadow_settings_forms(sample->settings, &receiver.floats, &receiver.times);
	INSTR_TIME_SET_CURRENT(start);
	desc->dest = (DestReceiver *) &receiver;
	PG_TRY();
	{
		shadow_run(CUTOVER_EXECUTOR_RUN_PASS);
	}
	PG_FINALLY();
	{
		desc->dest = inner;
	}
	PG_END_TRY();
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	if (receiver.large)
		cutover_shadow_ring_skip(sample->ring, CUTOVER_SHADOW_LARGE_RESULT);
	else
		shadow_hand_over(desc, sample, &receiver.sum, INSTR_TIME_GET_MICROSEC(end));
	if (receiver.context)
		MemoryContextDelete(receiver.context);
}

static void
shadow_executor_run(CUTOVER_EXECUTOR_RUN_ARGS)
{
	ShadowSample sample;
	double		highest;

	/* what has not been looked up yet can't be in parallel mode */
	if (desc->operation == CMD_SELECT && ScanDirectionIsForward(direction) && !IsInParallelMode() &&
		(highest = cutover_tracked_shadow_ratio()) > 0 && shadow_choose(desc, count, highest, &sample))
		shadow_run_sampled(&sample, CUTOVER_EXECUTOR_RUN_PASS);
	else
		shadow_run(CUTOVER_EXECUTOR_RUN_PASS);
}

void
cutover_shadow_init(void)
{
	previous_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = shadow_executor_run;
}
