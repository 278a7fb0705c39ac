/*
 * apply.h - the net effect of many row changes, written to new set by set.
 *
 * The replicator feeds rows in their original order; apply coalesces them per
 * key and queues few set-based statements on the endpoint (design: coalesce,
 * deletes before upserts, tables in foreign-key order).  It neither begins nor
 * commits: that is the replicator's, together with progress.
 */
#ifndef CUTOVER_APPLY_H
#define CUTOVER_APPLY_H

#include "endpoint.h"
#include "nodes/bitmapset.h"

typedef struct CutoverColumn
{
	char	   *name;			/* on new */
	char	   *type;			/* format_type() on new, with typmod, schema-qualified where not built in */
	char	   *cast_type;		/* what text is cast to: a domain's base type, without typmod, by way of its input function */
	bool		is_key;
	bool		identity_always;	/* may be inserted (OVERRIDING SYSTEM VALUE), never updated */
	bool		notnull;
	bool		inexact;		/* equal values may differ in their bytes: a key that is found may still have to be set */
	char	   *equals;			/* key columns: operator to compare with, "OPERATOR(schema.=)"; NULL: = of pg_catalog will do */
} CutoverColumn;

/* What the apply path knows of a table on new.  Owned by the replicator's table cache; stable while an apply holds rows of it and until the sync after. */
typedef struct CutoverApplyTable
{
	int32		table_id;
	Oid			old_relid;
	char	   *schema;
	char	   *name;
	int			ncols;
	CutoverColumn *cols;
	int			nkeys;			/* 0: no key, rows are equal if all columns are, as a multiset */
	int		   *keycols;		/* indexes into cols, in old's key order */
	bool		has_arbiter;	/* a usable unique index on exactly the key columns: ON CONFLICT works */
	bool		may_conflict;	/* being copied or refreshed: a fresh INSERT may meet a row, so never COPY straight */
	bool		truncate_only;	/* an ordinary table: TRUNCATE ONLY, children of inheritance have their own changes */
	Oid			run_as;			/* on old: the table's owner; else InvalidOid */
	int			fk_rank;		/* parents before children: ascending for upserts, descending for deletes */
} CutoverApplyTable;

typedef enum CutoverApplyOp
{
	CUTOVER_APPLY_INSERT,		/* the key did not exist before */
	CUTOVER_APPLY_UPSERT,		/* the row as it is now, whole (less absent) */
	CUTOVER_APPLY_UPDATE,		/* columns in absent were left out; the row should exist, else it is reported missed */
	CUTOVER_APPLY_DELETE		/* by key; without a key exactly one equal row */
} CutoverApplyOp;

typedef struct CutoverApplyRow
{
	CutoverApplyOp op;
	char	  **values;			/* ncols, text form; NULL = SQL NULL; DELETE with a key: only key columns are read */
	int		   *lens;			/* ncols */
	Bitmapset  *absent;			/* columns (indexes into cols) not to be written; NULL = none */
} CutoverApplyRow;

typedef struct CutoverApply CutoverApply;

/* make: an empty collection on ep; memory is a child of CurrentMemoryContext.  reset: forget the rows, also after an error. */
extern CutoverApply *cutover_apply_create(CutoverEndpoint *ep);
extern void cutover_apply_reset(CutoverApply *apply);
extern void cutover_apply_destroy(CutoverApply *apply);

/* Add a row (copied).  Rows come in original order. */
extern void cutover_apply_add(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row);

/* Bytes held now, for the caller's limit. */
extern Size cutover_apply_memory(CutoverApply *apply);
extern uint64 cutover_apply_rows(CutoverApply *apply);	/* net rows held */

/*
 * True if a flush now would keep new busy while the caller goes on, and waiting
 * for more would not coalesce much.  boundary: no transaction is held in part;
 * otherwise only where foreign keys are not checked.
 */
extern bool cutover_apply_wants_flush(CutoverApply *apply, bool boundary);

/*
 * Queue everything held on the endpoint, and forget it.  Small sets go as
 * prepared statements in the pipeline (no wait); large sets of fresh rows as
 * COPY (which syncs the pipeline).  Errors surface here or at the next sync.
 */
extern void cutover_apply_flush(CutoverApply *apply);

/*
 * Queue TRUNCATE of a set of tables in one statement, after a flush.
 */
extern void cutover_apply_truncate(CutoverApply *apply, CutoverApplyTable **tables, int ntables, bool restart_seqs);

/*
 * One row by itself (none may be held), in a savepoint, waiting for the result (replay after a
 * set failed).  Returns true if done; else *error is filled (in
 * CurrentMemoryContext) and the transaction goes on.  Connection and transient errors are raised.
 * missed is set if an UPDATE hit no row.
 */
extern bool cutover_apply_one(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row,
							  ErrorData **error, bool *missed);

/* Keys of UPDATEs that hit no row since the last call, known after a sync: the caller refreshes them. */
typedef struct CutoverMissedKey
{
	CutoverApplyTable *table;
	char	  **key;			/* nkeys text values */
} CutoverMissedKey;
extern int	cutover_apply_missed(CutoverApply *apply, CutoverMissedKey **keys);

/* Query that says how often rows of a table without a key are there; a text[] for each column. */
extern char *cutover_apply_sql_count_rows(const CutoverApplyTable *table);

#endif							/* CUTOVER_APPLY_H */
