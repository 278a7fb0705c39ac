/*
 * shadow_worker.h - what the parts of a shadow worker share.
 *
 * worker/shadow_worker.c takes entries, shadow_query.c reads a statement
 * again, shadow_check.c judges it, shadow_run.c runs it on both sides,
 * shadow_suspect.c makes sure of a difference, shadow_stats.c counts.
 */
#ifndef CUTOVER_SHADOW_WORKER_H
#define CUTOVER_SHADOW_WORKER_H

#include "nodes/parsenodes.h"

#include "endpoint.h"
#include "shadow.h"
#include "shadow_hash.h"

/* What of two results has to be the same. */
typedef enum CutoverShadowCompare
{
	CUTOVER_SHADOW_COUNT,		/* how many rows: which ones is not determined */
	CUTOVER_SHADOW_SET,			/* the rows in any order */
	CUTOVER_SHADOW_LIST			/* the rows in their order */
} CutoverShadowCompare;

/* Where a parameter of the statement for new comes from: a number of the session's, from 0, or: */
#define CUTOVER_SHADOW_XACT_AT (-1)
#define CUTOVER_SHADOW_STATEMENT_AT (-2)

/* What a statement has been found to be.  Kept until something in the catalogs changes. */
typedef struct CutoverShadowQuery
{
	uint64		key;			/* hash key */
	MemoryContext context;
	uint64		queryid;
	char	   *text;			/* normalized */
	CutoverShadowSkip skip;		/* if not taken, nothing below is set */
	CutoverShadowCompare compare;
	char	   *old_sql;
	char	   *new_sql;		/* with new's names, and parameters in another order */
	int			nparams;
	int		   *sources;
	Oid		   *types;			/* of parameters */
	int		   *new_params;		/* which parameter is new's first, second, ...; from 0 */
	int			natts;
	char	  **names;			/* of columns */
	bool		excluding;		/* some column may differ */
	CutoverShadowColumn *output;	/* to hash values of old */
	CutoverShadowColumn *input; /* to hash texts of new */
	int			nrelids;
	Oid		   *relids;			/* tables */
} CutoverShadowQuery;

/* ---- shadow_query.c ---- */

/* Start of a worker. */
extern void cutover_shadow_query_init(int32 target_id);

/* Read a statement again, or remember; runs a transaction of its own if it has to.  An error is a reason to skip it. */
extern CutoverShadowQuery *cutover_shadow_query_find(const CutoverShadowEntry *entry);

/* Has something changed that the judgement of statements rests on? */
extern bool cutover_shadow_query_is_stale(void);

static inline const char *
cutover_shadow_entry_settings(const CutoverShadowEntry *entry)
{
	return entry->data + entry->text_len;
}

/* The session's parameters: texts (NULL = SQL NULL) into entry. */
extern void cutover_shadow_entry_params(const CutoverShadowEntry *entry, Oid *types, const char **texts);

/* ---- shadow_check.c ---- */

/* What is found besides. */
typedef struct CutoverShadowFindings
{
	bool	   *ignored;		/* by column of the result: it may differ */
	bool		whole_row;		/* refers to whole rows of tables */
} CutoverShadowFindings;

/* Judge a query after rewriting; fills compare and relids of q. */
extern CutoverShadowSkip cutover_shadow_check(Query *query, CutoverShadowQuery *q, int32 target_id, CutoverShadowFindings *findings);

/* Does ORDER BY leave no doubt? */
extern bool cutover_shadow_sorts_totally(Query *query);

/* ---- shadow_run.c ---- */

/* Rows of a result as text, for samples. */
typedef struct CutoverShadowRows
{
	int			nrows;
	char	 ***values;			/* by row, by column */
} CutoverShadowRows;

extern void cutover_shadow_run_init(const char *server);

/* Be ready to run this on new: what follows takes one round trip. */
extern void cutover_shadow_run_connect(const CutoverShadowEntry *entry);

/* On new; rows (or NULL) are kept in the current context.  Raises what new says. */
extern void cutover_shadow_run_on_new(CutoverShadowQuery *q, const CutoverShadowEntry *entry, CutoverShadowSum *sum, CutoverShadowRows *rows);

/* Close the connection, or make it usable again after an error. */
extern void cutover_shadow_run_recover(bool close);

/* On old, under a snapshot of its own; false if the result is too large, or it failed. */
extern bool cutover_shadow_run_on_old(CutoverShadowQuery *q, const CutoverShadowEntry *entry, CutoverShadowSum *sum, CutoverShadowRows *rows);

extern bool cutover_shadow_same(const CutoverShadowQuery *q, const CutoverShadowSum *a, const CutoverShadowSum *b);

/* ---- shadow_suspect.c ---- */

/* Results differ: look again when new has what old had. */
extern void cutover_shadow_suspect_add(CutoverSlot *slot, CutoverShadowQuery *q, const CutoverShadowEntry *entry);

/* Look at those that are due; true if there are more. */
extern bool cutover_shadow_suspect_step(CutoverSlot *slot);
extern bool cutover_shadow_suspect_any(void);

/* The worker ends: count those that are left. */
extern void cutover_shadow_suspect_end(void);

/* ---- shadow_stats.c ---- */

extern void cutover_shadow_stats_init(int32 target_id);
extern void cutover_shadow_stats_call(const CutoverShadowQuery *q, uint64 text_hash, int64 old_us, int64 new_us);
extern void cutover_shadow_stats_error(const CutoverShadowQuery *q, uint64 text_hash, int64 old_us, int64 new_us, bool timeout,
									   int sqlerrcode, const char *message);
extern void cutover_shadow_stats_unsettled(uint64 queryid);
extern void cutover_shadow_stats_dropped(uint64 n);
extern void cutover_shadow_stats_skip(CutoverShadowSkip why);

/* A confirmed difference, with a sample of rows. */
extern void cutover_shadow_stats_mismatch(const CutoverShadowQuery *q, const CutoverShadowEntry *entry,
										  const CutoverShadowRows *old_rows, const CutoverShadowRows *new_rows);

/* Write down what has been counted since the last time, in a transaction of its own. */
extern void cutover_shadow_stats_write(CutoverSlot *slot, CutoverShadowRing *ring);

#endif							/* CUTOVER_SHADOW_WORKER_H */
