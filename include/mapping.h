/*
 * mapping.h - what the replicator knows of the tables it moves, and how a
 * captured image becomes a row of new.
 *
 * Everything here lives in the replicator's own memory and is loaded again
 * when old's catalogs or our configuration change.  All functions need an open
 * local transaction.
 */
#ifndef CUTOVER_MAPPING_H
#define CUTOVER_MAPPING_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "executor/executor.h"
#include "nodes/bitmapset.h"

#include "apply.h"
#include "copier.h"

typedef enum CutoverPhase
{
	CUTOVER_PHASE_WAITING,
	CUTOVER_PHASE_COPYING,
	CUTOVER_PHASE_CATCHING_UP,
	CUTOVER_PHASE_INDEXING,
	CUTOVER_PHASE_SYNCED,
	CUTOVER_PHASE_RESYNC_NEEDED
} CutoverPhase;

typedef struct CutoverTable
{
	int32		table_id;
	Oid			relid;			/* on old; root of its partition tree */
	char	   *old_name;		/* qualified and quoted */
	Oid			owner;
	bool		default_columns;
	CutoverPhase phase;
	bool		copy;
	int32		copy_generation;
	TupleDesc	desc;			/* of relid, now */
	int			nkeys;
	AttrNumber *key_attnums;	/* of relid */

	/* valid once cutover_mapping_prepare() returned true */
	bool		prepared;
	CutoverApplyTable apply;
	AttrNumber *col_attnum;		/* for each column of apply: plain column of relid, or 0 */
	ExprState **col_expr;		/* or an expression */
	FmgrInfo   *col_expr_out;
	ExprState  *filter;			/* NULL = all rows */
	bool		has_expressions;	/* filter or any col_expr: needs whole rows of the present shape */
	bool		plain_key;		/* key columns of new are plain columns of old's key, in the same order */
	EState	   *estate;
	TupleTableSlot *slot;		/* of desc */

	CutoverChunkMap *chunks;	/* while copying or catching up; else NULL */
	struct HTAB *error_keys;	/* keys with an open apply error; NULL = none */
	const char *stop_reason;	/* why the table has to stop, in words; NULL = fine */
} CutoverTable;

typedef struct CutoverLayout
{
	int32		layout_id;		/* hash key */
	Oid			relid;			/* relation that fired */
	int32		table_id;
	CutoverTable *table;		/* NULL: no longer under migration */
	TupleDesc	desc;			/* as it was */
	AttrNumber *root_attnum;
	FmgrInfo   *out;			/* output function of each attribute */
	bool		resolved;		/* col is valid */
	int		   *col;			/* for each attribute: column of new it goes to, or -1 */
	Bitmapset  *absent;			/* columns of new that this layout has no value for */
} CutoverLayout;

/* The phases are read again by cutover_mapping_refresh_phases, everything else by load if stale. */
extern void cutover_mapping_init(int32 target_id);
extern bool cutover_mapping_is_stale(void);
extern void cutover_mapping_set_stale(void);
extern void cutover_mapping_load(CutoverEndpoint *ep);
extern void cutover_mapping_refresh_phases(void);
extern CutoverTable *cutover_mapping_table(int32 table_id);
extern List *cutover_mapping_tables(void);
extern MemoryContext cutover_mapping_context(void);

/* Fetch what new has, compile expressions.  False: the table must stop, stop_reason says why. */
extern bool cutover_mapping_prepare(CutoverTable *table, CutoverEndpoint *ep);

/* How a table is described where an endpoint leads to, by row and (fourth column) whether it is generated; whether ON CONFLICT works. */
extern CutoverRows *cutover_mapping_describe(CutoverEndpoint *ep, const char *schema, const char *name);
extern void cutover_mapping_column(CutoverColumn *col, CutoverRows *rows, int row);
extern void cutover_mapping_find_arbiter(CutoverApplyTable *apply, CutoverEndpoint *ep);

/* Layout by id; NULL if there is none (the block is damaged). */
extern CutoverLayout *cutover_rowmap_get(int32 layout_id);
extern void cutover_rowmap_forget(void);

/* Find the columns of new for a layout.  False: the table must stop. */
extern bool cutover_rowmap_resolve(CutoverLayout *layout, CutoverEndpoint *ep);

/*
 * Turn an image into row (values in CurrentMemoryContext; row->values and
 * lens must have room for apply.ncols).  key_only: the image holds but the key.
 * elided: attribute numbers of the image's relation left out.  Returns false
 * if the row filter refuses the row (never for key_only).
 */
extern bool cutover_rowmap_row(CutoverLayout *layout, HeapTuple image, bool key_only,
							   Bitmapset *elided, CutoverApplyRow *row);

/* The image's values as columns of the root: Datums in the root's present types where they did not change, else converted. */
extern void cutover_rowmap_root_values(CutoverLayout *layout, HeapTuple image, Datum *values, bool *nulls);

/* The key (or, without one, the row) as {"column of old": "text"}; JSON text in CurrentMemoryContext. */
extern char *cutover_rowmap_key_json(CutoverLayout *layout, HeapTuple image);

/* Turn a row of the root as it is now (slot of table->desc) into row; false if filtered out. */
extern bool cutover_table_row(CutoverTable *table, TupleTableSlot *slot, CutoverApplyRow *row);

/* The same where the slot holds but the key. */
extern bool cutover_table_key_row(CutoverTable *table, TupleTableSlot *slot, CutoverApplyRow *row);

#endif							/* CUTOVER_MAPPING_H */
