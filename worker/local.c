/*
 * local.c - short transactions of a worker on old.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "local.h"

void
cutover_local_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SPI_connect();
}

/*
 * Commit; what need not survive a crash of old is not flushed.
 */
void
cutover_local_commit(bool durable)
{
	(void) set_config_option("synchronous_commit", durable ? "on" : "off",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	SPI_finish();
	CommitTransactionCommand();
}

/*
 * Run a statement; every statement sees what is committed when it starts.
 */
uint64
cutover_local_run(const char *sql, int nargs, const Oid *types, const Datum *values, const char *nulls)
{
	int			rc;

	PushActiveSnapshot(GetTransactionSnapshot());
	rc = SPI_execute_with_args(sql, nargs, (Oid *) types, (Datum *) values, nulls, false, 0);
	PopActiveSnapshot();
	if (rc < 0)
		elog(ERROR, "SPI error %d: %s", rc, sql);
	return SPI_processed;
}

int
cutover_local_run_kept(SPIPlanPtr *plan, const char *sql, int nargs, const Oid *types,
					   const Datum *values, bool read_only, long limit)
{
	if (*plan == NULL)
	{
		*plan = SPI_prepare(sql, nargs, (Oid *) types);
		if (*plan == NULL || SPI_keepplan(*plan) != 0)
			elog(ERROR, "SPI error %d: %s", SPI_result, sql);
	}
	return SPI_execute_plan(*plan, (Datum *) values, NULL, read_only, limit);
}

char *
cutover_local_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

int64
cutover_local_int(uint64 row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		return 0;
	switch (SPI_gettypeid(SPI_tuptable->tupdesc, column))
	{
		case BOOLOID:
			return DatumGetBool(value);
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
			return DatumGetInt32(value);
		case INT8OID:
			return DatumGetInt64(value);
		case OIDOID:
		case REGCLASSOID:
			return DatumGetObjectId(value);
		default:
			elog(ERROR, "column %d is not a number", column);
	}
}
