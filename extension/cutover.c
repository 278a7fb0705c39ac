/*
 * cutover.c - library load: each module sets itself up.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "capture.h"
#include "guc.h"
#include "launcher.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	cutover_guc_init();
	cutover_capture_init();
	if (process_shared_preload_libraries_in_progress)
		cutover_launcher_init();
}
