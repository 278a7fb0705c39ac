/*
 * action.c - run a user's call in a background worker and wait for it.
 *
 * Runs in the caller's backend.  An action needs several transactions (a
 * trigger on one table after the other, a commit before new is asked), which a
 * function can't have; and it must work for a caller whose session is
 * read-only.  So a worker does it.  The caller holds no lock that matters,
 * reads messages from a queue in a segment of its own, raises the worker's
 * error as its own, and ends the worker if it is cancelled itself.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "libpq/pqmq.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/shm_mq.h"
#include "storage/shm_toc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "action.h"
#include "action_internal.h"
#include "launcher.h"

PG_FUNCTION_INFO_V1(cutover_action);
PG_FUNCTION_INFO_V1(cutover_actor);
PG_FUNCTION_INFO_V1(cutover_lock_repair);
PG_FUNCTION_INFO_V1(cutover_lock_target);
PG_FUNCTION_INFO_V1(cutover_unlock_target);
PG_FUNCTION_INFO_V1(cutover_refuse_in_transaction);

/*
 * Bytes that the arguments take in the segment.
 */
static Size
action_args_size(int nargs, const char *const *args)
{
	Size		size = 1;

	for (int i = 0; i < nargs; i++)
		size += 1 + (args[i] ? strlen(args[i]) + 1 : 0);
	return size;
}

/*
 * Make the segment and fill it.
 */
static dsm_segment *
action_make_segment(const char *sql, int nargs, const char *const *args, shm_mq **queue)
{
	shm_toc_estimator e;
	Size		sql_size = strlen(sql) + 1;
	Size		args_size = action_args_size(nargs, args);
	Size		size;
	dsm_segment *seg;
	shm_toc    *toc;
	CutoverActionFixed *fixed;
	char	   *p;

	shm_toc_initialize_estimator(&e);
	shm_toc_estimate_chunk(&e, sizeof(CutoverActionFixed));
	shm_toc_estimate_chunk(&e, sql_size);
	shm_toc_estimate_chunk(&e, args_size);
	shm_toc_estimate_chunk(&e, CUTOVER_ACTION_QUEUE_SIZE);
	shm_toc_estimate_keys(&e, 4);
	size = shm_toc_estimate(&e);

	seg = dsm_create(size, 0);
	toc = shm_toc_create(CUTOVER_ACTION_MAGIC, dsm_segment_address(seg), size);

	fixed = shm_toc_allocate(toc, sizeof(*fixed));
	fixed->caller = GetOuterUserId();
	namestrcpy(&fixed->caller_name, GetUserNameFromId(fixed->caller, false));
	fixed->nargs = nargs;
	fixed->caller_pid = MyProcPid;
	shm_toc_insert(toc, CUTOVER_ACTION_KEY_FIXED, fixed);

	p = shm_toc_allocate(toc, sql_size);
	memcpy(p, sql, sql_size);
	shm_toc_insert(toc, CUTOVER_ACTION_KEY_SQL, p);

	p = shm_toc_allocate(toc, args_size);
	shm_toc_insert(toc, CUTOVER_ACTION_KEY_ARGS, p);
	for (int i = 0; i < nargs; i++)
	{
		*p++ = args[i] != NULL;
		if (args[i] != NULL)
		{
			strcpy(p, args[i]);
			p += strlen(args[i]) + 1;
		}
	}

	*queue = shm_mq_create(shm_toc_allocate(toc, CUTOVER_ACTION_QUEUE_SIZE), CUTOVER_ACTION_QUEUE_SIZE);
	shm_toc_insert(toc, CUTOVER_ACTION_KEY_QUEUE, *queue);
	shm_mq_set_receiver(*queue, MyProc);
	return seg;
}

/*
 * Raise an error or notice of the worker as our own.
 */
static void
action_rethrow(StringInfo msg)
{
	ErrorData	edata;

	pq_parse_errornotice(msg, &edata);
	/* a worker that was told to end says so with FATAL: that is its end, not ours */
	edata.elevel = Min(edata.elevel, ERROR);
	ThrowErrorData(&edata);
}

/*
 * Read messages until the result is there.  Returns it in the caller's
 * context, NULL for NULL.
 */
static char *
action_read_result(shm_mq_handle *mqh, const char *function)
{
	for (;;)
	{
		Size		nbytes;
		void	   *data;
		StringInfoData msg;
		char		kind;

		if (shm_mq_receive(mqh, &nbytes, &data, false) != SHM_MQ_SUCCESS)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("lost the background worker of %s", function),
					 errdetail("It ended without a result; what it had committed stays."),
					 errhint("See the server log, then call %s again.", function)));

		initStringInfo(&msg);
		appendBinaryStringInfo(&msg, data, nbytes);
		kind = pq_getmsgbyte(&msg);
		switch (kind)
		{
			case 'E':
			case 'N':
				action_rethrow(&msg);
				break;
			case 'D':
				if (pq_getmsgbyte(&msg) == 0)
					return NULL;
				return pstrdup(pq_getmsgrawstring(&msg));
			default:
				/* parameter status, notifications: of no interest here */
				break;
		}
		pfree(msg.data);
	}
}

/*
 * Cancelled, ended, or the worker failed: leave nothing running behind the
 * caller's back.  Also called on the way out of a session that is ended.
 */
static void
action_end_worker(int code, Datum arg)
{
	BackgroundWorkerHandle *handle = (BackgroundWorkerHandle *) DatumGetPointer(arg);

	TerminateBackgroundWorker(handle);
	if (!proc_exit_inprogress)
		(void) WaitForBackgroundWorkerShutdown(handle);
}

/*
 * Refuse where the action could be undone.
 */
static void
action_refuse_in_transaction(const char *function)
{
	if (IsTransactionBlock() || IsSubTransaction())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("%s cannot run inside a transaction block", function),
				 errdetail("What it does is done by a worker at once: a rollback could not undo it."),
				 errhint("Call it by itself, outside of BEGIN ... COMMIT and of blocks with EXCEPTION.")));
	/* the same for pipelines; and whatever follows in one is another transaction */
	PreventInTransactionBlock(true, function);
}

/*
 * Refuse where the action could be undone, or start it and wait for its end.
 */
char *
cutover_action_run(const char *function, const char *sql, int nargs, const char *const *args)
{
	CutoverWorkerArgs wargs = {.dboid = MyDatabaseId};
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	dsm_segment *seg;
	shm_mq	   *queue;
	shm_mq_handle *mqh;
	char	   *volatile result = NULL;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s during recovery", function),
				 errdetail("This server is a standby; no worker of ours runs here."),
				 errhint("Call it on the primary.")));
	action_refuse_in_transaction(function);

	seg = action_make_segment(sql, nargs, args, &queue);
	wargs.dsm = dsm_segment_handle(seg);
	cutover_launcher_fill(&worker, "cutover_action_main", "cutover action", &wargs, BGW_NEVER_RESTART);
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		dsm_detach(seg);
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no free worker slot for %s", function),
				 errdetail("An action runs in a background worker, and all of them are taken."),
				 errhint("Raise max_worker_processes, or try again when other workers have ended.")));
	}

	mqh = shm_mq_attach(queue, seg, handle);
	PG_ENSURE_ERROR_CLEANUP(action_end_worker, PointerGetDatum(handle));
	{
		result = action_read_result(mqh, function);
	}
	PG_END_ENSURE_ERROR_CLEANUP(action_end_worker, PointerGetDatum(handle));

	/* its locks go with it: the next action must not find them */
	(void) WaitForBackgroundWorkerShutdown(handle);
	shm_mq_detach(mqh);
	dsm_detach(seg);
	return result;
}

/*
 * cutover._action(function text, sql text, args text[]) RETURNS text
 */
Datum
cutover_action(PG_FUNCTION_ARGS)
{
	char	   *function = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(1));
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(2);
	Datum	   *elems;
	bool	   *nulls;
	int			nargs;
	const char **args;
	char	   *result;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls, &nargs);
	args = palloc0(sizeof(char *) * Max(nargs, 1));
	for (int i = 0; i < nargs; i++)
		if (!nulls[i])
			args[i] = TextDatumGetCString(elems[i]);

	result = cutover_action_run(function, sql, nargs, args);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(result));
}

/*
 * cutover._actor() RETURNS name: who is behind what happens now.  In an
 * action's worker its caller, in other workers "cutover", else the role that
 * called the function which asks.
 */
Datum
cutover_actor(PG_FUNCTION_ARGS)
{
	Name		result = palloc0(NAMEDATALEN);

	if (cutover_action_caller_name != NULL)
		namestrcpy(result, cutover_action_caller_name);
	else if (MyBgworkerEntry != NULL)
		namestrcpy(result, "cutover");
	else
		namestrcpy(result, GetUserNameFromId(GetOuterUserId(), false));
	PG_RETURN_NAME(result);
}

/*
 * The lock on a target for one kind of work.
 */
static LOCKTAG
action_lock_tag(int32 target_id, uint16 work)
{
	LOCKTAG		tag;
	Oid			relid = get_relname_relid("_target", get_namespace_oid("cutover", false));

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, relid, target_id, work);
	/* the server releases a session's locks of this kind, and no others, at its end */
	tag.locktag_lockmethodid = USER_LOCKMETHOD;
	return tag;
}

/*
 * Take the session's lock on a target for one kind of work, without waiting.
 * It ends with the worker.
 */
static bool
action_lock(int32 target_id, uint16 work)
{
	LOCKTAG		tag = action_lock_tag(target_id, work);

	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * cutover._lock_target(target_id int) RETURNS boolean: for actions
 */
Datum
cutover_lock_target(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(action_lock(PG_GETARG_INT32(0), 0));
}

/*
 * cutover._lock_repair(target_id int) RETURNS boolean: for cutover_compensate,
 * which may go on beside an action
 */
Datum
cutover_lock_repair(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(action_lock(PG_GETARG_INT32(0), 1));
}

/*
 * cutover._unlock_target(target_id int): take back one _lock_target() that succeeded
 */
Datum
cutover_unlock_target(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag = action_lock_tag(PG_GETARG_INT32(0), 0);

	(void) LockRelease(&tag, ExclusiveLock, true);
	PG_RETURN_VOID();
}

/*
 * cutover._refuse_in_transaction(function text): 25001 where an action would
 */
Datum
cutover_refuse_in_transaction(PG_FUNCTION_ARGS)
{
	action_refuse_in_transaction(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}
