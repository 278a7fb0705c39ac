/*
 * reverse_apply.h - changes of new's queue, written to old.
 */
#ifndef CUTOVER_REVERSE_APPLY_H
#define CUTOVER_REVERSE_APPLY_H

#include "apply.h"
#include "nodes/pg_list.h"
#include "reverse_map.h"

/* One set of changes on its way to old: a step.  Lives in a local transaction. */
typedef struct CutoverReverseStep
{
	CutoverEndpoint *new;		/* in a transaction with one snapshot */
	CutoverEndpoint *old;
	CutoverApply *apply;		/* on old */
	bool		replay;			/* row by row, in savepoints */
	MemoryContext context;		/* of everything here */
	MemoryContext slice_context;
	List	   *work;			/* of ReverseWork: changes that are collected */
	List	   *again;			/* of ReverseItem: rows that collided with others */
	List	   *failures;		/* of CutoverReverseFailure */
	List	   *resolved;		/* of CutoverReverseFailure: errors that are none any more */
	int			pending;		/* keys or rows asked for since the last sync */
	List	   *fetched;		/* of ReverseFetch: what came */
} CutoverReverseStep;

/* A row that old refused. */
typedef struct CutoverReverseFailure
{
	int32		table_id;
	char	   *key;			/* JSON: column of old -> text */
	char	   *source;			/* JSON: what to put into new's queue to try again */
	int			sqlerrcode;
	char	   *message;
} CutoverReverseFailure;

/* Begin the transaction on new that all rows of a step are read in. */
extern void cutover_reverse_begin_reading(CutoverEndpoint *new);

/* Take a change of the queue: op as in cutover.queue, keys in JSON or NULL. */
extern void cutover_reverse_take(CutoverReverseStep *step, CutoverReverseTable *table, char op, char *old_key, char *new_key);

/* Read what was collected from new, and hand it to apply. */
extern void cutover_reverse_read(CutoverReverseStep *step);

/* After everything was read: rows that collided, once more. */
extern void cutover_reverse_settle(CutoverReverseStep *step);

#endif							/* CUTOVER_REVERSE_APPLY_H */
