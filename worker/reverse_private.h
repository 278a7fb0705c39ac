/*
 * reverse_private.h - what reverse_apply.c and reverse_write.c share.
 */
#ifndef CUTOVER_REVERSE_PRIVATE_H
#define CUTOVER_REVERSE_PRIVATE_H

#include "utils/jsonb.h"

#include "reverse_apply.h"

/* Something to read: a key, or a row as it was or is. */
typedef struct ReverseItem
{
	CutoverReverseTable *table;
	char	   *json;
	bool		gone;			/* whole: the row as it was */
	bool		paired;			/* whole: the row that the next item is about, before */
	char	   *source;			/* JSON for cutover._apply_error */
	char	  **values;			/* again: the row */
} ReverseItem;

typedef struct ReverseWork
{
	CutoverReverseTable *table;
	ReverseItem *items;
	int			nitems;
	int			maxitems;
	bool		truncated;
} ReverseWork;

/* An answer of new. */
typedef struct ReverseFetch
{
	CutoverReverseStep *step;
	CutoverReverseTable *table;
	ReverseItem *items;			/* what was asked for */
	CutoverRows *rows;
} ReverseFetch;

/* Write what has come, in the order in which it was asked for. */
extern void cutover_reverse_emit_fetched(CutoverReverseStep *step);

/* Remember what became of a row: refused, or (message NULL) accepted after it was refused before. */
extern void cutover_reverse_note(CutoverReverseStep *step, ReverseItem *item, char **values, int sqlerrcode, const char *message);

/* What has to be put into new's queue to have an item looked at again. */
extern char *cutover_reverse_source(char op, const char *old_key, const char *new_key);

/* A JSON object of texts, and the value of a key in it; NULL for null. */
extern Jsonb *cutover_reverse_json(const char *text);
extern char *cutover_reverse_json_value(Jsonb *object, const char *name);

#endif							/* CUTOVER_REVERSE_PRIVATE_H */
