/*
 * shadow_query.c - a sampled statement is read again, and made into one for new.
 *
 * Runs in the shadow worker: what it takes to judge a statement is done here,
 * once for each text, and not in the session.  The text is parsed as the
 * session did, with its search path, settings and types of parameters; then it
 * is deparsed with all names qualified, views expanded, and now() and its kin
 * made parameters, so that both sides get the moment of the session.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "parser/parse_coerce.h"
#include "parser/parser.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "route.h"
#include "shadow_normalize.h"
#include "shadow_worker.h"
#include "tracked.h"

#define QUERY_MAX_KNOWN 2000	/* then all are forgotten */

/* Numbers the parameters of the statement for new. */
typedef struct FoldContext
{
	int			n;
	int			max;
	int		   *sources;
	Oid		   *types;
} FoldContext;

static int32 query_target = 0;
static HTAB *queries = NULL;
static HTAB *relids = NULL;		/* relations whose change makes queries stale */
static bool queries_stale = false;
static int	queries_known = 0;

/*
 * A table that statements read, or one of ours, has changed.  Entries may be
 * in use: flags only.  Others don't matter: an application may make temporary
 * tables all day long.
 */
static void
query_relcache_callback(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || relids == NULL || hash_search(relids, &relid, HASH_FIND, NULL) != NULL)
		queries_stale = true;
}

void
cutover_shadow_query_init(int32 target_id)
{
	query_target = target_id;
	CacheRegisterRelcacheCallback(query_relcache_callback, (Datum) 0);
}

bool
cutover_shadow_query_is_stale(void)
{
	return queries_stale;
}

/*
 * Statements rest on this relation.
 */
static void
query_watch(Oid relid)
{
	if (OidIsValid(relid))
		(void) hash_search(relids, &relid, HASH_ENTER, NULL);
}

/*
 * Forget what no longer holds.  Called between entries only.
 */
static void
query_make_room(void)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(CutoverShadowQuery)};
	HASHCTL		relctl = {.keysize = sizeof(Oid),.entrysize = sizeof(Oid)};
	HASH_SEQ_STATUS seq;
	CutoverShadowQuery *q;

	if (queries != NULL && !queries_stale && queries_known < QUERY_MAX_KNOWN)
		return;
	if (queries != NULL)
	{
		hash_seq_init(&seq, queries);
		while ((q = hash_seq_search(&seq)) != NULL)
			MemoryContextDelete(q->context);
		hash_destroy(queries);
		hash_destroy(relids);
	}
	relids = hash_create("cutover shadow relations", 64, &relctl, HASH_ELEM | HASH_BLOBS);
	queries = hash_create("cutover shadow queries", 256, &ctl, HASH_ELEM | HASH_BLOBS);
	queries_stale = false;
	queries_known = 0;
}

void
cutover_shadow_entry_params(const CutoverShadowEntry *entry, Oid *types, const char **texts)
{
	const char *p = entry->data + entry->text_len + entry->settings_len;

	for (int i = 0; i < entry->nparams; i++)
	{
		int32		len;

		memcpy(&types[i], p, sizeof(Oid));
		memcpy(&len, p + sizeof(Oid), sizeof(len));
		p += sizeof(Oid) + sizeof(len);
		texts[i] = len < 0 ? NULL : p;
		if (len >= 0)
			p += len + 1;
	}
}

/* ---- parameters ---- */

/*
 * A parameter of the statement for new, made one of the session's or one of
 * ours, with a cast that tells its type.
 */
static Node *
query_parameter(FoldContext *context, int source, Oid type, int32 typmod, Oid collation)
{
	Param	   *param = makeNode(Param);
	int			i = 0;

	while (i < context->n && context->sources[i] != source)
		i++;
	if (i == context->n)
	{
		if (context->n == context->max)
		{
			context->max *= 2;
			context->sources = repalloc(context->sources, context->max * sizeof(int));
			context->types = repalloc(context->types, context->max * sizeof(Oid));
		}
		context->sources[i] = source;
		context->types[i] = type;
		context->n++;
	}
	param->paramkind = PARAM_EXTERN;
	param->paramid = i + 1;
	param->paramtype = type;
	param->paramtypmod = -1;
	param->paramcollid = collation;
	param->location = -1;
	return (Node *) makeRelabelType((Expr *) param, type, typmod, collation, COERCE_EXPLICIT_CAST);
}

/*
 * A moment, as the type that the function has.
 */
static Node *
query_moment(FoldContext *context, int source, Oid type, int32 typmod)
{
	Node	   *node = query_parameter(context, source, TIMESTAMPTZOID, -1, InvalidOid);

	if (type == TIMESTAMPTZOID && typmod < 0)
		return node;
	node = coerce_to_target_type(NULL, node, TIMESTAMPTZOID, type, typmod, COERCION_EXPLICIT, COERCE_EXPLICIT_CAST, -1);
	if (node == NULL)
		elog(ERROR, "could not cast a moment");
	return node;
}

/*
 * CURRENT_DATE, CURRENT_USER and others of the grammar.
 */
static Node *
query_fold_keyword(SQLValueFunction *function, FoldContext *context)
{
	Name		name;

	switch (function->op)
	{
		case SVFOP_CURRENT_DATE:
		case SVFOP_CURRENT_TIME:
		case SVFOP_CURRENT_TIME_N:
		case SVFOP_CURRENT_TIMESTAMP:
		case SVFOP_CURRENT_TIMESTAMP_N:
		case SVFOP_LOCALTIME:
		case SVFOP_LOCALTIME_N:
		case SVFOP_LOCALTIMESTAMP:
		case SVFOP_LOCALTIMESTAMP_N:
			return query_moment(context, CUTOVER_SHADOW_XACT_AT, function->type, function->typmod);
		case SVFOP_CURRENT_ROLE:
		case SVFOP_CURRENT_USER:
		case SVFOP_USER:
			name = palloc0(NAMEDATALEN);
			namestrcpy(name, GetUserNameFromId(GetUserId(), false));
			return (Node *) makeConst(NAMEOID, -1, C_COLLATION_OID, NAMEDATALEN, NameGetDatum(name), false, false);
		default:
			return (Node *) function;
	}
}

/*
 * Put parameters in place of what is the session's own.
 */
static Node *
query_fold(Node *node, void *arg)
{
	FoldContext *context = arg;

	if (node == NULL)
		return NULL;
	if (IsA(node, Query))
		return (Node *) query_tree_mutator((Query *) node, query_fold, arg, 0);
	if (IsA(node, Param) && ((Param *) node)->paramkind == PARAM_EXTERN)
	{
		Param	   *param = (Param *) node;

		return query_parameter(context, param->paramid - 1, param->paramtype, param->paramtypmod, param->paramcollid);
	}
	if (IsA(node, SQLValueFunction))
		return query_fold_keyword((SQLValueFunction *) node, context);
	if (IsA(node, FuncExpr) && (((FuncExpr *) node)->funcid == F_NOW || ((FuncExpr *) node)->funcid == F_TRANSACTION_TIMESTAMP))
		return query_moment(context, CUTOVER_SHADOW_XACT_AT, TIMESTAMPTZOID, -1);
	if (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == F_STATEMENT_TIMESTAMP)
		return query_moment(context, CUTOVER_SHADOW_STATEMENT_AT, TIMESTAMPTZOID, -1);
	return expression_tree_mutator(node, query_fold, arg);
}

/* ---- reading again ---- */

/*
 * The statement in a text; NULL if it is no SELECT.
 */
static RawStmt *
query_parse(const char *text)
{
	List	   *raw = pg_parse_query(text);
	RawStmt    *stmt;

	if (list_length(raw) != 1)
		return NULL;
	stmt = linitial_node(RawStmt, raw);
	/* the statement of EXECUTE has the text of its PREPARE */
	if (IsA(stmt->stmt, PrepareStmt))
		stmt->stmt = ((PrepareStmt *) stmt->stmt)->query;
	return IsA(stmt->stmt, SelectStmt) ? stmt : NULL;
}

/*
 * Text for old, under names that need no search path.
 */
static char *
query_deparse(Query *query)
{
	(void) set_config_option("search_path", "pg_catalog", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("DateStyle", "ISO", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("IntervalStyle", "postgres", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("extra_float_digits", "3", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return pg_get_querydef(query, false);
}

/*
 * Forms of the result's columns, in the query's context.
 */
static void
query_describe(CutoverShadowQuery *q, Query *query, const bool *ignored, const CutoverShadowEntry *entry)
{
	Oid		   *types = palloc(sizeof(Oid) * Max(list_length(query->targetList), 1));
	MemoryContext old = MemoryContextSwitchTo(q->context);
	bool		floats;
	bool		times;
	ListCell   *lc;

	q->names = palloc(sizeof(char *) * Max(list_length(query->targetList), 1));
	foreach(lc, query->targetList)
	{
		TargetEntry *tle = lfirst_node(TargetEntry, lc);

		if (tle->resjunk)
			continue;
		types[q->natts] = exprType((Node *) tle->expr);
		q->names[q->natts++] = pstrdup(tle->resname ? tle->resname : "?column?");
	}
	cutover_shadow_settings_forms(cutover_shadow_entry_settings(entry), &floats, &times);
	q->output = cutover_shadow_hash_columns(q->natts, types, floats, times, false);
	q->input = cutover_shadow_hash_columns(q->natts, types, floats, times, true);
	for (int i = 0; i < q->natts; i++)
		if (ignored != NULL && ignored[i])
		{
			q->output[i].form = q->input[i].form = CUTOVER_SHADOW_IGNORED;
			q->excluding = true;
		}
	MemoryContextSwitchTo(old);
}

/*
 * A copy in the query's context.
 */
static void *
query_keep(CutoverShadowQuery *q, const void *data, Size size)
{
	return memcpy(MemoryContextAlloc(q->context, Max(size, 1)), data, size);
}

/*
 * Read a statement again, under the session's settings.
 */
static void
query_read(CutoverShadowQuery *q, const CutoverShadowEntry *entry)
{
	RawStmt    *stmt = query_parse(entry->data);
	Oid		   *types = palloc(sizeof(Oid) * Max(entry->nparams, 1));
	const char **texts = palloc(sizeof(char *) * Max(entry->nparams, 1));
	FoldContext fold = {.max = Max(entry->nparams, 4)};
	CutoverShadowFindings findings = {0};
	Query	   *query;
	List	   *rewritten;
	List	   *externs;

	q->skip = CUTOVER_SHADOW_NOT_A_SELECT;
	if (stmt == NULL)
		return;
	cutover_shadow_entry_params(entry, types, texts);
	query = parse_analyze_fixedparams(stmt, entry->data, types, entry->nparams, NULL);
	q->text = MemoryContextStrdup(q->context,
								  cutover_shadow_normalize(entry->data, cutover_jumble_query_compat(query, entry->data)));
	q->queryid = entry->queryid != 0 ? entry->queryid : query->queryId;
	if (query->commandType != CMD_SELECT || query->utilityStmt != NULL)
		return;
	rewritten = pg_rewrite_query(query);
	if (list_length(rewritten) != 1)
		return;
	query = linitial_node(Query, rewritten);
	q->skip = cutover_shadow_check(query, q, query_target, &findings);
	if (q->skip != CUTOVER_SHADOW_TAKEN)
		return;
	query_describe(q, query, findings.ignored, entry);
	fold.sources = palloc(sizeof(int) * fold.max);
	fold.types = palloc(sizeof(Oid) * fold.max);
	query = castNode(Query, query_fold((Node *) query, &fold));
	q->new_sql = MemoryContextStrdup(q->context, cutover_route_sql_unfolded(copyObject(query), findings.whole_row, &externs));
	q->old_sql = MemoryContextStrdup(q->context, query_deparse(query));
	q->nparams = fold.n;
	q->sources = query_keep(q, fold.sources, sizeof(int) * fold.n);
	q->types = query_keep(q, fold.types, sizeof(Oid) * fold.n);
	Assert(list_length(externs) == fold.n);
	q->new_params = MemoryContextAlloc(q->context, sizeof(int) * Max(fold.n, 1));
	for (int i = 0; i < fold.n; i++)
		q->new_params[i] = list_nth_int(externs, i) - 1;
}

/*
 * The same in a transaction, as the session's role.
 */
static void
query_read_in_xact(CutoverShadowQuery *q, const CutoverShadowEntry *entry)
{
	Oid			userid;
	int			context;
	int			nest;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	nest = NewGUCNestLevel();
	(void) set_config_option("compute_query_id", "on", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	cutover_shadow_settings_apply(cutover_shadow_entry_settings(entry));
	GetUserIdAndSecContext(&userid, &context);
	SetUserIdAndSecContext(entry->userid, context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	query_read(q, entry);
	for (int i = 0; i < q->nrelids; i++)
		query_watch(q->relids[i]);
	query_watch(cutover_tracked_config("_table"));
	query_watch(cutover_tracked_config("_target"));
	query_watch(cutover_tracked_config("_shadow_exclude"));
	SetUserIdAndSecContext(userid, context);
	AtEOXact_GUC(false, nest);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * What has to be the same for two texts to have one meaning.
 */
static uint64
query_key(const CutoverShadowEntry *entry)
{
	uint64		key = cutover_shadow_hash_bytes(entry->data, entry->text_len + entry->settings_len, entry->userid);
	Oid		   *types = palloc(sizeof(Oid) * Max(entry->nparams, 1));
	const char **texts = palloc(sizeof(char *) * Max(entry->nparams, 1));

	cutover_shadow_entry_params(entry, types, texts);
	key = cutover_shadow_hash_bytes((char *) types, sizeof(Oid) * entry->nparams, key);
	pfree(types);
	pfree(texts);
	return key;
}

CutoverShadowQuery *
cutover_shadow_query_find(const CutoverShadowEntry *entry)
{
	MemoryContext caller = CurrentMemoryContext;
	CutoverShadowQuery *q;
	uint64		key = query_key(entry);
	bool		found;

	query_make_room();
	q = hash_search(queries, &key, HASH_ENTER, &found);
	if (found)
		return q;
	queries_known++;
	memset(q, 0, sizeof(*q));
	q->key = key;
	q->context = AllocSetContextCreate(TopMemoryContext, "cutover shadow query", ALLOCSET_SMALL_SIZES);
	PG_TRY();
	{
		query_read_in_xact(q, entry);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* dropped tables, roles, ... since then: nothing that anybody has to mend */
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		q->skip = CUTOVER_SHADOW_NOT_READ_AGAIN;
		if (ProcDiePending)
			proc_exit(1);
		ereport(DEBUG1, (errmsg_internal("could not read a statement again: %s", error->message)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return q;
}
