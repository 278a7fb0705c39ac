/*
 * comparer.h - the workers that find out where new differs from old.
 *
 * Nothing here is shared with what moves the rows: a mistake there would else
 * be made here, too, and stay unseen.  Only the connection to new is the same.
 */
#ifndef CUTOVER_COMPARER_H
#define CUTOVER_COMPARER_H

#include "access/attnum.h"
#include "nodes/pg_list.h"

#include "endpoint.h"
#include "launcher.h"
#include "shmem.h"

typedef enum CompareSide
{
	COMPARE_OLD,
	COMPARE_NEW
} CompareSide;

/* A type of a column on one side; domains are what they stand on. */
typedef struct ComparerType
{
	Oid			oid;			/* base type; of new: only meaningful if built in */
	int32		typmod;
	char	   *name;			/* qualified, without typmod */
	char	   *full_name;		/* with it */
	bool		bytewise;		/* its collation orders by bytes */
	char	   *equals;			/* operator, qualified */
} ComparerType;

/* A column of new, and what of old it is made from.  All SQL, by side. */
typedef struct CompareColumn
{
	char	   *name;			/* on new */
	AttrNumber	attnum;			/* plain column of old, or 0 */
	char	   *old_name;		/* its name on old, or NULL */
	char	   *expr[2];		/* the value */
	ComparerType type[2];
	char	   *digest[2];		/* the form in which it enters the digest */
	char	   *text[2];		/* its text form */
	Oid			equal_type;		/* type whose = says whether other bytes are another value; InvalidOid: they are */
	Oid			equal_collation;
} CompareColumn;

/* A column of the key. */
typedef struct CompareKey
{
	CompareColumn *column;
	char	   *order[2];		/* in an order that both sides share; NULL = there is none */
	char	   *order_type;		/* to which a bound's text is cast */
} CompareKey;

typedef struct CompareTable
{
	int32		table_id;
	Oid			relid;
	char	   *label;			/* for messages */
	char	   *from[2];
	char	   *filter;			/* on old, or NULL */
	Oid			run_as;			/* whoever wrote the expressions; InvalidOid = there are none */
	int			ncols;
	CompareColumn *cols;
	int			nkeys;			/* 0: rows are told apart by what is in them */
	CompareKey *keys;
	int			nranges;		/* leading columns of the key that chunks are cut by; 0 = by hash */
	bool		all_key;		/* nothing but key */
	char	   *row_hash[2];	/* of all columns */
	char	   *key_hash[2];
	char	   *key_json[2];	/* as cutover._divergence.key */
	char	   *old_relname;	/* under which deparsed expressions know old's row */
	int			nsources;		/* columns of old that name a row: its key, or all of them */
	AttrNumber *source_attnum;
	char	  **source_name;
	char	  **source_type;
	CompareColumn *version;		/* NULL = none, or new does not have it */
	char	   *version_expr;	/* on old; NULL = none */
	char	   *version_name;
	Oid			version_type;
	char	   *final_when;		/* on old, or NULL */
} CompareTable;

/* Which rows: a range of the key, of the version, or all; of these those whose hash ends so. */
typedef struct CompareScope
{
	int			nbounds;
	char	  **lower;			/* NULL = from the start */
	char	  **upper;			/* NULL = to the end */
	char	   *since;			/* version column; NULL = not restricted */
	char	   *until;
	bool		until_included;
	bool		final;			/* only rows that final_when holds for */
	const char *version_type;	/* on old, to which the two are cast */
	int64		mask;			/* 0 = all */
	int64		value;
} CompareScope;

typedef struct CompareCounts
{
	int64		rows;
	int64		missing;
	int64		extra;
	int64		different;
	int64		representation;
	int64		deferred;
	bool		capped;
} CompareCounts;

typedef struct Comparer
{
	int32		target_id;
	int64		run;
	int			number;
	CutoverEndpoint *ep;
	CutoverSlot *slot;
	bool		new_is_master;
	int64		epoch;
	bool		strong_hash;	/* the two servers' fast hashes differ */
	const char *method;			/* of the chunk under way */
	bool		known;			/* looking again at what is known */
	MemoryContext table_context;
	CompareTable *table;		/* under way */
	double		busy;			/* sessions at work on old, lately */
	bool		measured;
} Comparer;

/* What a comparer is told when it starts. */
typedef struct CutoverCompareArgs
{
	CutoverWorkerArgs base;		/* has to come first */
	int64		run;
} CutoverCompareArgs;

/* A statement's parameters are texts. */
#define COMPARE_MAX_ARGS 80

/* comparer_side.c - short transactions of our own on old; the memory context is the same before and after */
extern void cutover_compare_begin(void);
extern void cutover_compare_commit(void);

/* one statement on one side or on both at once */
extern void cutover_compare_connect(Comparer *c);
extern CutoverRows *cutover_compare_run(Comparer *c, CompareSide side, const char *sql, int nargs, const char *const *args);
extern CutoverRows *cutover_compare_run_table(Comparer *c, CompareSide side, const char *sql, int nargs, const char *const *args);
extern void cutover_compare_run_both(Comparer *c, const char *const sql[2], int nargs, const char *const *args,
									 CutoverRows *rows[2]);
extern char *cutover_compare_array(char **values, int n);
extern char **cutover_compare_read_array(const char *array, int *n);

/* comparer_type.c - how values of a column are digested and compared */
extern char *cutover_compare_text(const char *expr, Oid type);
extern void cutover_compare_plan_column(CompareColumn *col);
extern void cutover_compare_plan_key(CompareKey *key);

/* comparer_table.c */
extern CompareTable *cutover_compare_load_table(Comparer *c, int32 table_id);

/* comparer_sql.c - SQL over a table of one side */
extern char *cutover_compare_sql_digest(CompareTable *t, CompareSide side, const CompareScope *scope);
extern char *cutover_compare_sql_rows(CompareTable *t, CompareSide side, const CompareScope *scope);
extern char *cutover_compare_sql_lookup(CompareTable *t, CompareSide side, bool detail);
extern const char *cutover_compare_key_type(Oid type, const char *name);
extern int	cutover_compare_scope_args(const CompareScope *scope, const char **args);

/* comparer_diff.c - rows of a scope that look different, to be settled */
extern void cutover_compare_scope(Comparer *c, const CompareScope *scope, CompareCounts *counts);

/*
 * comparer_settle.c: keys that look different; each is an array of nkeys texts,
 * or the digest without a key.  jsons, if given: as they stand in cutover._divergence.
 */
extern void cutover_compare_settle(Comparer *c, char ***keys, char **jsons, int n, CompareCounts *counts);

/* The rows of a key on one side. */
typedef struct CompareState
{
	int			count;
	uint64		hash;			/* sum of digests */
	uint64		versions;		/* which physical versions these are */
} CompareState;

typedef struct CompareCandidate
{
	char	  **key;
	char	   *json;
	bool		settled;
	bool		confirmed;
	int			rounds;
	int			still;			/* rounds in which F had what M lacks, unchanged */
	CompareState state[2];		/* of the round before */
	CompareState now[2];
} CompareCandidate;

/* comparer_settle.c: rows of a look-up, also for the one with detail */
extern int	cutover_compare_lookup_args(Comparer *c, CompareCandidate **candidates, int n, const char **args);
extern struct HTAB *cutover_compare_lookup_digests(Comparer *c, CompareCandidate **candidates, int n);
extern int	cutover_compare_lookup_index(Comparer *c, struct HTAB *digests, CutoverRows *rows, int row);
extern void cutover_compare_add_state(CompareState *state, CutoverRows *rows, int row);

/* Of these keys those that old does not have, moved to the front; returns their number. */
extern int	cutover_compare_keep_absent(Comparer *c, char ***keys, int n);

/* comparer_equal.c: texts of a column's type; needs a transaction */
extern bool cutover_compare_same_value(const CompareColumn *col, const char *a, const char *b);
extern bool cutover_compare_is_later(const CompareColumn *col, const char *a, const char *b);

/* comparer_record.c: what was found, into cutover._divergence */
extern void cutover_compare_record(Comparer *c, CompareCandidate **confirmed, int n, CompareCounts *counts);
extern void cutover_compare_close(Comparer *c, CompareCandidate **equal, int n);

/* comparer_plan.c */
extern void cutover_compare_plan_full(Comparer *c, const char *method);
extern void cutover_compare_plan_one(Comparer *c, const char *method, const char *kind, char *lower, char *upper);
extern void cutover_compare_plan_between(Comparer *c, const char *since, const char *until);

/* comparer_queue.c: keys of changes that the queue has; n tables, each with its counts */
extern void cutover_compare_changes(Comparer *c, int n, const int32 *table_ids, CompareCounts *counts);

/* comparer_keys.c: rows named by their columns on old */
extern void cutover_compare_named(Comparer *c, char ***sources, char **jsons, int n, CompareCounts *counts);
extern void cutover_compare_known(Comparer *c, CompareCounts *counts);

/* comparer_window.c: rows by the time of their version */
extern void cutover_compare_plan_window(Comparer *c);
extern void cutover_compare_window(Comparer *c, const char *since, const char *until, CompareCounts *counts);

/* comparer.c */
extern void cutover_compare_use_table(Comparer *c, int32 table_id);

/* comparer_wait.c - waiting: for new, and so as not to be in the way */
extern void cutover_compare_look_at_target(Comparer *c);
extern void cutover_compare_check_run(Comparer *c);
extern bool cutover_compare_same_epoch(Comparer *c);
extern void cutover_compare_await_new(Comparer *c);
extern void cutover_compare_rest(Comparer *c, int64 rows, double seconds);
extern void cutover_compare_say(Comparer *c, const char *why);

/* Entry point of a background worker. */
extern PGDLLEXPORT void cutover_compare_main(Datum arg);

#endif							/* CUTOVER_COMPARER_H */
