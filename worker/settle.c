/*
 * settle.c - the replicator sees to it that old and new know the same master.
 *
 * A switch may have lost its driver at any step; new may have been taken over
 * while old was away; either side may have lost its last commits.  What is to
 * be done then is decided in switch.sql; here is when.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "replicator_private.h"

/*
 * Call a function of ours with the target and one more argument, in a
 * transaction of its own.  Its result as text, in the loop's memory.
 */
static char *
settle_call(Replicator *r, const char *sql, const char *arg)
{
	Oid			types[2] = {INT4OID, TEXTOID};
	Datum		args[2] = {Int32GetDatum(r->target_id), CStringGetTextDatum(arg)};
	char	   *result = NULL;

	cutover_replicator_begin();
	/* foreign keys of our own tables are to be heard, while those of old's are not */
	if (r->reversed)
		(void) set_config_option("session_replication_role", "origin", PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	SPI_connect();
	SPI_execute_with_args(sql, 2, types, args, NULL, false, 0);
	if (SPI_processed == 1)
		result = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (result != NULL)
		result = MemoryContextStrdup(r->loop_context, result);
	SPI_finish();
	cutover_replicator_end();
	return result;
}

/*
 * A switch is under way: if nobody drives it any more, bring it to its end.
 * And have both sides know the same master.  True if either was looked at: the
 * target may be in another mode now.
 */
bool
cutover_replicator_settle_master(Replicator *r)
{
	char	   *options;

	if (r->switching)
	{
		options = settle_call(r, "SELECT cutover._resolve_idle($1) WHERE $2 IS NOT NULL", "");
		/* NULL: somebody drives it */
		r->switching = options == NULL;
		if (options != NULL && strcmp(options, "{}") != 0)
			(void) settle_call(r, "SELECT cutover._after_switch($1, $2::jsonb)", options);
		if (options != NULL)
			r->target_read_at = 0;
	}
	if (!r->agreed)
	{
		(void) settle_call(r, "SELECT cutover._agree_with_new($1, $2::boolean)", "false");
		r->agreed = true;
		r->target_read_at = 0;
	}
	return r->target_read_at == 0;
}

/*
 * Another instance of this server works on new: is it we who are of yesterday?
 */
void
cutover_replicator_check_stale(Replicator *r)
{
	(void) settle_call(r, "SELECT cutover._agree_with_new($1, $2::boolean)", "true");
}
