/*
 * clients.c - the backends of the server that have our library.
 *
 * An array in shared memory, with a place for each backend that there can be.
 * Only its owner writes a place, others read it without a lock: it is for
 * looking at, and for the number of sessions that have to connect again.
 *
 * Where we are preloaded with the server, every backend has the library, and
 * the memory is asked for in time.  Else a server with very many connections gets no
 * array, since other libraries live from the same allowance.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/varlena.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "clients.h"
#include "compat.h"
#include "guc.h"
#include "policy_private.h"

PG_FUNCTION_INFO_V1(cutover_clients);
PG_FUNCTION_INFO_V1(cutover_clients_default);
PG_FUNCTION_INFO_V1(cutover_clients_reads_from);
PG_FUNCTION_INFO_V1(cutover_clients_split);

#define CLIENTS_COLS 4
#define CLIENTS_SPARE (32 * 1024)	/* of the allowance, at most */
#define CLIENTS_NAME "cutover clients 1"	/* +1 when a place gets another layout */

/* A backend. */
typedef struct CutoverClient
{
	int32		pid;			/* 0 = nobody, or somebody without the library */
	int32		target_id;		/* of the last write */
	uint32		epoch;			/* in which the writes below were made */
	uint32		writes;			/* transactions */
	uint64		hash;			/* of the route key, else of the session */
	int32		read_from;		/* CutoverReadFrom */
} CutoverClient;

static CutoverClient *clients = NULL;
static CutoverClient *mine = NULL;
static bool preloaded = false;	/* inherited by every backend */
static uint64 key_hash = 0;		/* 0 = no route key */
static shmem_request_hook_type previous_request = NULL;
static shmem_startup_hook_type previous_startup = NULL;

/*
 * What the array takes.
 */
static Size
clients_size(void)
{
	return mul_size(MaxBackends, sizeof(CutoverClient));
}

/*
 * The server starts and preloads us.
 */
static void
clients_request(void)
{
	if (previous_request)
		previous_request();
	RequestAddinShmemSpace(clients_size());
}

/*
 * Find or make the array.  Not in the middle of a commit.
 */
static bool
clients_attach(void)
{
	static bool failed = false;
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff;
	bool		found = true;

	if (clients != NULL)
		return true;
	if (failed || (!preloaded && (!IsUnderPostmaster || clients_size() > CLIENTS_SPARE)))
		return false;
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	holdoff = InterruptHoldoffCount;
	PG_TRY();
	{
		clients = ShmemInitStruct(CLIENTS_NAME, clients_size(), &found);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		/* the error reset what the lock still held will count down */
		InterruptHoldoffCount = holdoff;
		clients = NULL;
		failed = true;
	}
	PG_END_TRY();
	if (clients != NULL && !found)
		memset(clients, 0, clients_size());
	LWLockRelease(AddinShmemInitLock);
	return clients != NULL;
}

/*
 * The server has its memory: make the array, so that backends are born with it.
 */
static void
clients_startup(void)
{
	if (previous_startup)
		previous_startup();
	clients = NULL;				/* after a crash the memory is another */
	(void) clients_attach();
}

/*
 * Leave the place to the next backend.
 */
static void
clients_leave(int code, Datum arg)
{
	if (mine != NULL)
		mine->pid = 0;
	mine = NULL;
}

/*
 * A session's own hash.
 */
static uint64
clients_session_hash(int pid, TimestampTz start)
{
	uint64		parts[2] = {(uint64) pid, (uint64) start};

	return hash_bytes_extended((unsigned char *) parts, sizeof(parts), 0);
}

/*
 * Show what others may see of this session.
 */
static void
clients_show(void)
{
	if (mine == NULL)
		return;
	mine->hash = cutover_clients_hash();
	mine->read_from = cutover_guc_read_from;
}

/*
 * Enter this backend.
 */
void
cutover_clients_enter(void)
{
	int			procno;

	if (mine != NULL || MyProc == NULL || MyBackendType != B_BACKEND || !clients_attach())
		return;
	procno = cutover_my_procno_compat();
	if (procno < 0 || procno >= MaxBackends)
		return;
	before_shmem_exit(clients_leave, (Datum) 0);
	mine = &clients[procno];
	memset(mine, 0, sizeof(*mine));
	clients_show();
	mine->pid = MyProcPid;
}

/*
 * The library is being loaded.
 */
void
cutover_clients_init(void)
{
	if (process_shared_preload_libraries_in_progress)
	{
		preloaded = true;
		previous_request = shmem_request_hook;
		shmem_request_hook = clients_request;
		previous_startup = shmem_startup_hook;
		shmem_startup_hook = clients_startup;
	}
	else
		cutover_clients_enter();
}

/*
 * Whose reads these are.
 */
uint64
cutover_clients_hash(void)
{
	static uint64 session_hash = 0;

	if (key_hash != 0)
		return key_hash;
	if (session_hash == 0 && IsUnderPostmaster)
		session_hash = clients_session_hash(MyProcPid, MyStartTimestamp);
	return session_hash;
}

/*
 * Buckets are nested: who is below a ratio is below every higher one.  Each
 * target has its own, or the same sessions would be first with all of them.
 */
double
cutover_clients_bucket(uint64 hash, int32 target_id)
{
	uint64		salted = hash_bytes_extended((unsigned char *) &target_id, sizeof(target_id), hash);

	return (salted % 1000000) / 10000.0;
}

/*
 * Count a transaction that wrote; after a switch, from one.
 */
void
cutover_clients_wrote(int32 target_id, int64 epoch)
{
	if (mine == NULL)
		return;
	if (mine->target_id == target_id && mine->epoch != (uint32) epoch)
		mine->writes = 0;
	mine->target_id = target_id;
	mine->epoch = (uint32) epoch;
	mine->writes++;
}

/*
 * cutover.route_key was set.
 */
void
cutover_clients_assign_route_key(const char *newval, void *extra)
{
	key_hash = newval == NULL || newval[0] == '\0' ? 0 :
		hash_bytes_extended((const unsigned char *) newval, strlen(newval), 0) | 1;
	clients_show();
}

/*
 * cutover.read_from was set; the variable is assigned after us.
 */
void
cutover_clients_assign_read_from(int newval, void *extra)
{
	if (mine != NULL)
		mine->read_from = newval;
}

/*
 * cutover._clients() RETURNS TABLE (pid int, target_id int, epoch bigint, writes bigint)
 */
Datum
cutover_clients(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	cutover_clients_enter();
	for (int i = 0; clients_attach() && i < MaxBackends; i++)
	{
		volatile CutoverClient *client = &clients[i];
		Datum		values[CLIENTS_COLS];
		bool		nulls[CLIENTS_COLS] = {0};

		if (client->pid == 0)
			continue;
		values[0] = Int32GetDatum(client->pid);
		values[1] = Int32GetDatum(client->target_id);
		values[2] = Int64GetDatum((int64) client->epoch);
		values[3] = Int64GetDatum((int64) client->writes);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * cutover._clients_default() RETURNS boolean: does a backend that is not in
 * the list have the library?  NULL = nobody knows, there is no list.
 */
Datum
cutover_clients_default(PG_FUNCTION_ARGS)
{
	if (preloaded)
		PG_RETURN_BOOL(true);
	if (!clients_attach())
		PG_RETURN_NULL();
	PG_RETURN_BOOL(false);
}

/*
 * What a session looks like to the policy, as far as another one can tell.
 */
static void
clients_fill_reader(PolicyReader *reader, int pid, TimestampTz start)
{
	reader->read_from = CUTOVER_READ_FROM_AUTO;
	reader->hash = clients_session_hash(pid, start);
	for (int i = 0; clients_attach() && i < MaxBackends; i++)
		if (pid != 0 && clients[i].pid == pid)
		{
			reader->read_from = clients[i].read_from;
			reader->hash = clients[i].hash;
		}
}

/*
 * cutover._reads_from(target_id int, pid int, start timestamptz, role oid,
 * application text, client inet) RETURNS text: where this session's next read
 * of a table goes, if the table is complete on new and new is not too far behind.
 * Rules for some tables are left out of account.
 */
Datum
cutover_clients_reads_from(PG_FUNCTION_ARGS)
{
	PolicyReader reader = {0};
	CutoverTarget *target;
	int			wish;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
		PG_RETURN_NULL();
	target = cutover_tracked_target(PG_GETARG_INT32(0));
	clients_fill_reader(&reader, PG_GETARG_INT32(1), PG_GETARG_TIMESTAMPTZ(2));
	reader.session_role = reader.current_role = PG_GETARG_OID(3);
	reader.application = PG_ARGISNULL(4) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(4));
	reader.client = PG_ARGISNULL(5) ? NULL : PG_GETARG_INET_PP(5);
	wish = cutover_policy_side_of(target, &reader);
	PG_RETURN_TEXT_P(cstring_to_text(wish == POLICY_NEW ? "new" : "old"));
}

/*
 * cutover._split_libraries(list text) RETURNS text[]
 */
Datum
cutover_clients_split(PG_FUNCTION_ARGS)
{
	char	   *list = text_to_cstring(PG_GETARG_TEXT_PP(0));
	List	   *names = NIL;
	ListCell   *lc;
	Datum	   *elements;
	int			n = 0;

	if (!SplitGUCList(list, ',', &names))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid list of libraries"),
				 errdetail("The value is: %s", text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errhint("Correct session_preload_libraries of this database or server.")));
	elements = palloc(sizeof(Datum) * (list_length(names) + 1));
	foreach(lc, names)
		elements[n++] = CStringGetTextDatum(lfirst(lc));
	PG_RETURN_ARRAYTYPE_P(construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT));
}
