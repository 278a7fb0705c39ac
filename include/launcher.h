/*
 * launcher.h - starting background workers.
 */
#ifndef CUTOVER_LAUNCHER_H
#define CUTOVER_LAUNCHER_H

#include "postmaster/bgworker.h"

/* Registers the static launcher; only while shared_preload_libraries are loaded. */
extern void cutover_launcher_init(void);

/*
 * Start the replicator of a target unless it lives or was started less than a
 * second ago.  Returns false if there was no free worker slot.  Never raises.
 */
extern bool cutover_launcher_start_replicator(int32 target_id);

/* The same for shadow worker n of a target; at the pace of one a second. */
struct CutoverSlot;
extern bool cutover_launcher_start_shadow(struct CutoverSlot *slot, int32 target_id, int n);

/*
 * Fill in a dynamic worker of this library: function is an exported symbol,
 * what names it in pg_stat_activity.  The worker reads (database oid, target
 * id, number) from bgw_extra as a CutoverWorkerArgs and runs as the role that
 * owns the extension.
 */
typedef struct CutoverWorkerArgs
{
	Oid			dboid;
	int32		target_id;
	int32		number;			/* of the copier; else 0 */
	uint32		dsm;			/* handle of an action's segment; else 0 */
} CutoverWorkerArgs;

extern void cutover_launcher_fill(BackgroundWorker *worker, const char *function, const char *what,
								  const CutoverWorkerArgs *args, int restart_s);

/* Common start of every worker: signals, connection to the database, pinned settings. */
extern CutoverWorkerArgs cutover_launcher_worker_start(void);

#endif							/* CUTOVER_LAUNCHER_H */
