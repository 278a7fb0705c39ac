/*
 * cutover.c - library load: each module sets itself up.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"

#include "capture.h"
#include "guc.h"
#include "launcher.h"
#include "policy.h"
#include "route.h"
#include "shadow.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static emit_log_hook_type previous_emit_log = NULL;

/*
 * Keep a failed statement out of the server's log if it may hold a password.
 */
static void
cutover_emit_log(ErrorData *edata)
{
	static const char *const secretive[] = {"cutover_add_target", "cutover_set_target", "cutover_add_shard"};

	for (int i = 0; debug_query_string != NULL && i < lengthof(secretive); i++)
		if (strcasestr(debug_query_string, secretive[i]) != NULL)
			edata->hide_stmt = true;
	if (previous_emit_log)
		previous_emit_log(edata);
}

void
_PG_init(void)
{
	previous_emit_log = emit_log_hook;
	emit_log_hook = cutover_emit_log;
	cutover_guc_init();
	cutover_capture_init();
	cutover_policy_init();
	cutover_route_init();
	cutover_shadow_init();
	if (process_shared_preload_libraries_in_progress)
		cutover_launcher_init();
}
