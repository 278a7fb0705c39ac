/*
 * endpoint_local.c - old, written to as if it were new.
 *
 * Runs in the replicator while old follows.  Statements run by SPI in the
 * transaction that the caller has begun, when they are queued; an error is raised
 * there and then.  Plans are kept by the text of the statement.  What a
 * statement sets off in a table (defaults, checks, expressions of indexes,
 * triggers that fire even for replicas) runs with the rights of its owner.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "endpoint_private.h"

/* More plans than a target's tables need mean that texts vary: begin anew. */
#define LOCAL_MAX_PLANS 2000

typedef struct LocalPlan
{
	uint64		hash;			/* of the text; hash key */
	char	   *sql;
	SPIPlanPtr	plan;
} LocalPlan;

typedef struct EndpointLocal
{
	HTAB	   *plans;
	Oid			run_as;
	MemoryContext outer_context;	/* of the open savepoint */
	ResourceOwner outer_owner;
} EndpointLocal;

/*
 * An endpoint that leads to old.
 */
CutoverEndpoint *
cutover_endpoint_local(void)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "cutover local endpoint", ALLOCSET_DEFAULT_SIZES);
	CutoverEndpoint *ep = MemoryContextAllocZero(cxt, sizeof(CutoverEndpoint));
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(LocalPlan),.hcxt = cxt};

	ep->cxt = cxt;
	ep->label = MemoryContextStrdup(cxt, "old");
	ep->is_replica = true;
	ep->local = MemoryContextAllocZero(cxt, sizeof(EndpointLocal));
	ep->local->plans = hash_create("cutover local plans", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return ep;
}

bool
cutover_endpoint_is_local(CutoverEndpoint *ep)
{
	return ep->local != NULL;
}

void
cutover_endpoint_run_as(CutoverEndpoint *ep, Oid role)
{
	if (ep->local)
		ep->local->run_as = role;
}

/*
 * Forget all plans.
 */
static void
local_forget_plans(EndpointLocal *local)
{
	HASH_SEQ_STATUS seq;
	LocalPlan  *plan;

	hash_seq_init(&seq, local->plans);
	while ((plan = hash_seq_search(&seq)) != NULL)
	{
		SPI_freeplan(plan->plan);
		pfree(plan->sql);
		hash_search(local->plans, &plan->hash, HASH_REMOVE, NULL);
	}
}

void
cutover_endpoint_local_close(CutoverEndpoint *ep)
{
	local_forget_plans(ep->local);
	MemoryContextDelete(ep->cxt);
}

/*
 * The plan of a statement; SPI is connected.
 */
static SPIPlanPtr
local_plan(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params)
{
	EndpointLocal *local = ep->local;
	uint64		hash = hash_bytes_extended((const unsigned char *) sql, strlen(sql), 0);
	LocalPlan  *entry = hash_search(local->plans, &hash, HASH_FIND, NULL);
	Oid		   *types;
	SPIPlanPtr	plan;

	if (entry != NULL && strcmp(entry->sql, sql) == 0)
		return entry->plan;
	types = palloc(sizeof(Oid) * Max(nparams, 1));
	for (int i = 0; i < nparams; i++)
		types[i] = params[i].binary ? TEXTARRAYOID : TEXTOID;
	plan = SPI_prepare(sql, nparams, types);
	if (plan == NULL)
		elog(ERROR, "SPI error %d: %s", SPI_result, sql);
	if (entry != NULL)
		return plan;			/* two texts with one hash: this one goes with SPI */
	if (hash_get_num_entries(local->plans) >= LOCAL_MAX_PLANS)
		local_forget_plans(local);
	SPI_keepplan(plan);
	entry = hash_search(local->plans, &hash, HASH_ENTER, NULL);
	entry->plan = plan;
	entry->sql = MemoryContextStrdup(ep->cxt, sql);
	return plan;
}

/*
 * The result of SPI as rows of text, in a memory context of the caller's.
 */
static CutoverRows *
local_rows(MemoryContext cxt, int rc)
{
	MemoryContext former = MemoryContextSwitchTo(cxt);
	CutoverRows *rows = palloc0(sizeof(CutoverRows));

	rows->affected = SPI_processed;
	if (SPI_tuptable != NULL && rc != SPI_OK_UTILITY)
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;

		rows->nrows = SPI_processed;
		rows->ncols = desc->natts;
		rows->values = MemoryContextAllocHuge(cxt, sizeof(char *) * (rows->nrows + 1) * Max(rows->ncols, 1));
		rows->names = rows->values + (Size) rows->nrows * rows->ncols;
		for (int j = 0; j < rows->ncols; j++)
			rows->names[j] = SPI_fname(desc, j + 1);
		for (int i = 0; i < rows->nrows; i++)
			for (int j = 0; j < rows->ncols; j++)
				CUTOVER_CELL(rows, i, j) = SPI_getvalue(SPI_tuptable->vals[i], desc, j + 1);
	}
	MemoryContextSwitchTo(former);
	return rows;
}

/*
 * Run a statement with the rights asked for.  After an error the (sub)transaction
 * that ends gives back whose rights they were.
 */
static CutoverRows *
local_run(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params)
{
	MemoryContext caller = CurrentMemoryContext;
	Datum	   *values;
	char	   *nulls;
	CutoverRows *rows;
	Oid			user;
	int			sec;
	int			rc;

	GetUserIdAndSecContext(&user, &sec);
	SPI_connect();
	values = palloc(sizeof(Datum) * Max(nparams, 1));
	nulls = palloc(Max(nparams, 1));
	for (int i = 0; i < nparams; i++)
	{
		nulls[i] = params[i].data == NULL ? 'n' : ' ';
		values[i] = (Datum) 0;
		if (params[i].data == NULL)
			continue;
		if (params[i].binary)
		{
			StringInfoData buf = {.data = unconstify(char *, params[i].data),.len = params[i].len,.maxlen = params[i].len};

			values[i] = OidReceiveFunctionCall(F_ARRAY_RECV, &buf, TEXTOID, -1);
		}
		else
			values[i] = CStringGetTextDatum(params[i].data);
	}
	if (OidIsValid(ep->local->run_as))
		SetUserIdAndSecContext(ep->local->run_as, sec | SECURITY_RESTRICTED_OPERATION);
	rc = SPI_execute_plan(local_plan(ep, sql, nparams, params), values, nulls, false, 0);
	SetUserIdAndSecContext(user, sec);
	if (rc < 0)
		elog(ERROR, "SPI error %d: %s", rc, sql);
	rows = local_rows(caller, rc);
	SPI_finish();
	return rows;
}

/*
 * One statement, or the beginning or end of the savepoint.
 */
CutoverRows *
cutover_endpoint_local_exec(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params)
{
	EndpointLocal *local = ep->local;

	CHECK_FOR_INTERRUPTS();
	if (strcmp(sql, CUTOVER_SAVEPOINT) == 0)
	{
		local->outer_context = CurrentMemoryContext;
		local->outer_owner = CurrentResourceOwner;
		BeginInternalSubTransaction(NULL);
		MemoryContextSwitchTo(local->outer_context);
	}
	else if (strcmp(sql, CUTOVER_SAVEPOINT_RELEASE) == 0 || strcmp(sql, CUTOVER_SAVEPOINT_ROLL_BACK) == 0)
	{
		MemoryContext cxt = CurrentMemoryContext;

		if (strcmp(sql, CUTOVER_SAVEPOINT_RELEASE) == 0)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(cxt);
		CurrentResourceOwner = local->outer_owner;
	}
	else
		return local_run(ep, sql, nparams, params);
	return palloc0(sizeof(CutoverRows));
}
