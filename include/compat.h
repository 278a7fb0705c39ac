/*
 * compat.h - the one place that knows about PostgreSQL versions (15 to 18).
 *
 * Wrappers carry the signature of the newest version and the suffix _compat.
 */
#ifndef CUTOVER_COMPAT_H
#define CUTOVER_COMPAT_H

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "cutover supports PostgreSQL 15 to 18"
#endif

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/rel.h"
#include "utils/wait_event.h"

/* 18: stands before the declaration, where the former attribute may stand as well */
#if PG_VERSION_NUM >= 180000
#define CUTOVER_NORETURN pg_noreturn
#else
#define CUTOVER_NORETURN pg_attribute_noreturn()
#endif

/* 17: a process is known by its number, no longer by a field of PGPROC */
static inline int
cutover_my_procno_compat(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

/* 17: the local transaction id moved into a virtual transaction id */
static inline LocalTransactionId
cutover_my_lxid_compat(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProc->vxid.lxid;
#else
	return MyProc->lxid;
#endif
}

/* 16: files are called locators */
static inline SubTransactionId
cutover_newfile_subid_compat(Relation rel)
{
#if PG_VERSION_NUM >= 160000
	return rel->rd_newRelfilelocatorSubid;
#else
	return rel->rd_newRelfilenodeSubid;
#endif
}

/* 17: wait events of extensions have names */
static inline uint32
cutover_wait_event_compat(uint32 *cache, const char *name)
{
#if PG_VERSION_NUM >= 170000
	if (*cache == 0)
		*cache = WaitEventExtensionNew(name);
	return *cache;
#else
	(void) cache;
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

/* 17: sets of events belong to a resource owner, or to nobody */
#if PG_VERSION_NUM >= 170000
#define cutover_create_wait_set_compat(n) CreateWaitEventSet(NULL, n)
#else
#define cutover_create_wait_set_compat(n) CreateWaitEventSet(TopMemoryContext, n)
#endif

/* 16: the last argument, here "raise errors", is a place for them */
#if PG_VERSION_NUM >= 160000
#define cutover_parse_type_compat(name, type, typmod) parseTypeString(name, type, typmod, NULL)
#else
#define cutover_parse_type_compat(name, type, typmod) parseTypeString(name, type, typmod, false)
#endif

/* 18: a portal no longer needs to know whether it runs once */
#if PG_VERSION_NUM >= 180000
#define cutover_portal_run_compat(portal, dest, qc) \
	PortalRun(portal, FETCH_ALL, true, dest, dest, qc)
#else
#define cutover_portal_run_compat(portal, dest, qc) \
	PortalRun(portal, FETCH_ALL, true, true, dest, dest, qc)
#endif

/* 18: the hook on it has lost the same argument */
#if PG_VERSION_NUM >= 180000
#define CUTOVER_EXECUTOR_RUN_ARGS QueryDesc *desc, ScanDirection direction, uint64 count
#define CUTOVER_EXECUTOR_RUN_PASS desc, direction, count
#else
#define CUTOVER_EXECUTOR_RUN_ARGS QueryDesc *desc, ScanDirection direction, uint64 count, bool execute_once
#define CUTOVER_EXECUTOR_RUN_PASS desc, direction, count, execute_once
#endif

/* 16: the text is no longer needed to tell queries apart */
#if PG_VERSION_NUM >= 160000
#define cutover_jumble_query_compat(query, text) JumbleQuery(query)
#else
#define cutover_jumble_query_compat(query, text) JumbleQuery(query, text)
#endif

/* 18: a query is always run once */
#if PG_VERSION_NUM >= 180000
#define cutover_executor_run_compat(desc) ExecutorRun(desc, ForwardScanDirection, 0)
#else
#define cutover_executor_run_compat(desc) ExecutorRun(desc, ForwardScanDirection, 0, true)
#endif

/* 17: one function for "this mode" and "this or a stronger one" */
#if PG_VERSION_NUM >= 170000
#define cutover_lock_held_compat(tag, mode) LockHeldByMe(tag, mode, false)
#else
#define cutover_lock_held_compat(tag, mode) LockHeldByMe(tag, mode)
#endif

/* libpq/libpq.h wants headers of GSSAPI, which are not installed with the server's */
extern void pq_startmsgread(void);
extern void pq_endmsgread(void);
extern int	pq_peekbyte(void);

/* 17: tells how much */
#if PG_VERSION_NUM >= 170000
extern ssize_t pq_buffer_remaining_data(void);
#define cutover_client_sent_more_compat() (pq_buffer_remaining_data() > 0)
#else
extern bool pq_buffer_has_data(void);
#define cutover_client_sent_more_compat() pq_buffer_has_data()
#endif

#endif							/* CUTOVER_COMPAT_H */
