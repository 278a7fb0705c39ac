/*
 * reverse_map.h - how rows of new become rows of old.
 */
#ifndef CUTOVER_REVERSE_MAP_H
#define CUTOVER_REVERSE_MAP_H

#include "apply.h"
#include "nodes/pg_list.h"

/* until it is known how large rows are */
#define CUTOVER_REVERSE_FIRST_SLICE 100

typedef struct CutoverReverseTable
{
	int32		table_id;
	bool		open;			/* old follows it; else nothing below is valid */
	bool		whole;			/* changes come as rows; else as keys, to be read again */
	bool		has_errors;		/* old refused rows of it */
	int			slice;			/* rows that one answer of new may well hold */
	int			ncaptured;
	char	  **captured;		/* columns of new that the queue has, in the order of old's key or all */
	CutoverApplyTable apply;	/* the table on old, with the columns that new has something of */
	char	   *fetch;			/* query on new: a text[] for each captured column (whole: one of rows as jsonb) -> number, found, columns of apply */
	char	   *filter;			/* the row filter, over a row of old; NULL = none */
	char	   *outside;		/* query on old: the key's columns -> a row, if the row filter leaves that row alone; NULL = no filter */
	char	   *inside;			/* query on old: the columns of apply -> a row, if the filter takes it; NULL = can't be told */
} CutoverReverseTable;

/* Forget everything, and read it again from our configuration.  In a local transaction. */
extern void cutover_reverse_map_load(int32 target_id);

/* A table; NULL if old does not follow it.  What is not known yet is asked for: new in no transaction, old in the local one. */
extern CutoverReverseTable *cutover_reverse_map_table(int32 table_id, CutoverEndpoint *new, CutoverEndpoint *old);

/* All tables that are open. */
extern List *cutover_reverse_map_tables(void);

#endif							/* CUTOVER_REVERSE_MAP_H */
