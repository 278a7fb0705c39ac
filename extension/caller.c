/*
 * caller.c - what a public function may need to know and use of its caller.
 *
 * Runs in the caller's backend, cutover_as_caller in an action's worker.  A
 * SECURITY DEFINER function with a pinned search_path can't see the path that
 * its caller has, yet names in an expression or a schema change mean what they
 * mean to the caller.  So a few public functions are entered through a C
 * function that remembers the path and goes on in the definer's function.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "action_internal.h"
#include "caller.h"
#include "capture.h"

PG_FUNCTION_INFO_V1(cutover_enter);
PG_FUNCTION_INFO_V1(cutover_caller_search_path);
PG_FUNCTION_INFO_V1(cutover_as_caller);
PG_FUNCTION_INFO_V1(cutover_ends_transaction);

const char *cutover_caller_path = NULL;

/*
 * Find the internal function of the same arguments: cutover_add_table is
 * continued in cutover._add_table.
 */
static Oid
caller_find_continuation(Oid public_oid)
{
	HeapTuple	tup = SearchSysCache1(PROCOID, ObjectIdGetDatum(public_oid));
	Form_pg_proc proc;
	char	   *name;
	Oid			result;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for function %u", public_oid);
	proc = (Form_pg_proc) GETSTRUCT(tup);
	name = NameStr(proc->proname);
	if (strncmp(name, "cutover_", 8) != 0)
		elog(ERROR, "function \"%s\" has no continuation", name);
	result = LookupFuncName(list_make2(makeString("cutover"), makeString(pstrdup(name + 7))),
							proc->pronargs, proc->proargtypes.values, false);
	ReleaseSysCache(tup);
	return result;
}

/*
 * Public functions of this kind: remember the caller's search_path, go on in
 * the internal function, with its owner's rights.
 */
Datum
cutover_enter(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(inner, FUNC_MAX_ARGS);
	FmgrInfo	flinfo;
	const char *saved = cutover_caller_path;
	Datum		result = (Datum) 0;

	fmgr_info(caller_find_continuation(fcinfo->flinfo->fn_oid), &flinfo);
	fmgr_info_set_expr(fcinfo->flinfo->fn_expr, &flinfo);
	InitFunctionCallInfoData(*inner, &flinfo, PG_NARGS(), PG_GET_COLLATION(), NULL, NULL);
	for (int i = 0; i < PG_NARGS(); i++)
		inner->args[i] = fcinfo->args[i];

	PG_TRY();
	{
		cutover_caller_path = pstrdup(namespace_search_path);
		result = FunctionCallInvoke(inner);
	}
	PG_FINALLY();
	{
		cutover_caller_path = saved;
	}
	PG_END_TRY();
	fcinfo->isnull = inner->isnull;
	return result;
}

/*
 * cutover._caller_search_path() RETURNS text, NULL where nobody remembered it
 */
Datum
cutover_caller_search_path(PG_FUNCTION_ARGS)
{
	if (cutover_caller_path == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(cutover_caller_path));
}

/*
 * cutover._as_caller(sql text, search_path text): run statements with the
 * rights of the role that asked for the action.  What they leave for the end
 * of the transaction would run with ours, so for any but a superuser the
 * server's restricted mode, which refuses that, is on.
 */
Datum
cutover_as_caller(PG_FUNCTION_ARGS)
{
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *path = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Oid			userid;
	int			context;
	int			flags = SECURITY_LOCAL_USERID_CHANGE;
	int			level;
	volatile int rc = 0;
	bool		saved = cutover_capture_rewrite_is_ours;

	if (!OidIsValid(cutover_action_caller))
		elog(ERROR, "there is no caller to act for");
	if (!superuser_arg(cutover_action_caller))
		flags |= SECURITY_RESTRICTED_OPERATION;

	GetUserIdAndSecContext(&userid, &context);
	level = NewGUCNestLevel();
	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	PG_TRY();
	{
		cutover_capture_rewrite_is_ours = true;
		SetUserIdAndSecContext(cutover_action_caller, context | flags);
		rc = SPI_execute(sql, false, 0);
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(userid, context);
		cutover_capture_rewrite_is_ours = saved;
	}
	PG_END_TRY();
	if (rc == SPI_ERROR_TRANSACTION)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a schema change cannot end its transaction"),
				 errdetail("The change and its place in the queue are one transaction."),
				 errhint("Leave BEGIN, COMMIT and ROLLBACK out.")));
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("this statement cannot be run here: %s", SPI_result_code_string(rc)),
				 errdetail("The change and its place in the queue are one transaction."),
				 errhint("Use plain schema changes.")));
	SPI_finish();
	AtEOXact_GUC(true, level);
	PG_RETURN_VOID();
}

/*
 * cutover._ends_transaction(sql text) RETURNS boolean: is there BEGIN, COMMIT
 * or the like among the statements?  What only a newer server can parse passes.
 */
Datum
cutover_ends_transaction(PG_FUNCTION_ARGS)
{
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
	MemoryContext context = CurrentMemoryContext;
	List	   *volatile raw = NIL;
	ListCell   *lc;

	PG_TRY();
	{
		raw = raw_parser(sql, RAW_PARSE_DEFAULT);
	}
	PG_CATCH();
	{
		/* the raw parser has touched nothing but memory */
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_SYNTAX_ERROR)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	foreach(lc, raw)
		if (IsA(lfirst_node(RawStmt, lc)->stmt, TransactionStmt))
			PG_RETURN_BOOL(true);
	PG_RETURN_BOOL(false);
}
