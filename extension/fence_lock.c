/*
 * fence_lock.c - the gate of a switch: EXCLUSIVE on cutover._fence_<target>.
 *
 * Writers of the target hold ROW EXCLUSIVE on that empty table to the end of
 * their transaction (fence.c).  So whoever has EXCLUSIVE knows that every
 * write is committed or gone and that no new one begins; readers don't notice.  It is a lock of the
 * session: the switch commits in between.
 *
 * While we wait, new writers queue behind us.  Hence short attempts, and the
 * application always comes first: in a circle of waiting we are the first to
 * look (the server then lets the writers pass us, or fails us), and we turn every
 * such end into "not this time".
 *
 * Two things to know of such a lock: the server drops it when a transaction of
 * the session aborts as a whole (not a savepoint or an EXCEPTION block), and
 * does not when the session ends between transactions, which is our own business.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "fence.h"
#include "tracked.h"

PG_FUNCTION_INFO_V1(cutover_fence_lock);
PG_FUNCTION_INFO_V1(cutover_fence_unlock);
PG_FUNCTION_INFO_V1(cutover_fence_held);

/*
 * In a circle of waiting we look before any application does, whose setting is
 * rarely below 100 ms; and again and again, as letting one writer pass often
 * makes the next circle.
 */
#define FENCE_LOOK_EVERY 10

/*
 * Have the wait that is under way look for circles.  A signal handler.
 */
static void
fence_look(void)
{
	CheckDeadLockAlert();
}

/*
 * The lock that is the fence of a target.
 */
static LOCKTAG
fence_tag(int32 target_id)
{
	LOCKTAG		tag;
	char		name[NAMEDATALEN];
	Oid			fence;

	snprintf(name, sizeof(name), "_fence_%d", target_id);
	fence = cutover_tracked_config(name);
	if (!OidIsValid(fence))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("target %d has no fence", target_id),
				 errdetail("There is no table cutover.%s.", name),
				 errhint("It is made by cutover_add_target(); see cutover.status for the targets there are.")));
	cutover_fence_set_tag(&tag, fence);
	return tag;
}

/*
 * At the end of the process.
 */
static void
fence_exit(int code, Datum arg)
{
	/* what we were doing behind the gate comes to its end first */
	AbortOutOfAnyTransaction();
	LockReleaseSession(DEFAULT_LOCKMETHOD);
}

/*
 * Wait for the lock, at most timeout_ms.  False if it could not be had, for
 * whatever reason; only a cancelled or terminated caller raises an error.
 */
static bool
fence_wait(const LOCKTAG *tag, int timeout_ms)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			saved_lock = LockTimeout;
	bool		saved_log = log_lock_waits;
	static TimeoutId look = MAX_TIMEOUTS;
	volatile bool got = true;

	if (look == MAX_TIMEOUTS)
		look = RegisterTimeout(USER_TIMEOUT, fence_look);

	/* an error while waiting leaves things that only the end of a subtransaction puts in order */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		LockTimeout = timeout_ms;
		log_lock_waits = false; /* it would be said at every look */
		enable_timeout_every(look, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FENCE_LOOK_EVERY), FENCE_LOOK_EVERY);
		(void) LockAcquire(tag, ExclusiveLock, true, false);
		disable_timeout(look, false);
		LockTimeout = saved_lock;
		log_lock_waits = saved_log;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		disable_timeout(look, false);
		LockTimeout = saved_lock;
		log_lock_waits = saved_log;
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
			error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED)
			ReThrowError(error);
		FreeErrorData(error);
		got = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	return got;
}

/*
 * cutover._fence_lock(target_id int, timeout_ms int) RETURNS boolean - one attempt
 */
Datum
cutover_fence_lock(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag = fence_tag(PG_GETARG_INT32(0));
	int			timeout_ms = PG_GETARG_INT32(1);
	bool		got = true;
	static bool registered = false;

	if (!registered)
	{
		before_shmem_exit(fence_exit, (Datum) 0);
		registered = true;
	}
	/* held once is enough: one unlock must open the gate */
	if (!cutover_lock_held_compat(&tag, ExclusiveLock))
	{
		got = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
		if (!got && timeout_ms > 0)
			got = fence_wait(&tag, timeout_ms);
	}
	AcceptInvalidationMessages();
	PG_RETURN_BOOL(got);
}

/*
 * cutover._fence_unlock(target_id int) RETURNS void - also where the lock is not held
 */
Datum
cutover_fence_unlock(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag = fence_tag(PG_GETARG_INT32(0));

	while (cutover_lock_held_compat(&tag, ExclusiveLock))
		if (!LockRelease(&tag, ExclusiveLock, true))
			break;
	PG_RETURN_VOID();
}

/*
 * cutover._fence_held(target_id int) RETURNS boolean - has this session closed the gate, and is it still closed?
 */
Datum
cutover_fence_held(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag = fence_tag(PG_GETARG_INT32(0));

	PG_RETURN_BOOL(cutover_lock_held_compat(&tag, ExclusiveLock));
}
