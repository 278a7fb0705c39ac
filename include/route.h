/*
 * route.h - reads of tables under migration that new may answer.
 *
 * A SELECT that could run on new gets a custom scan over its local plan
 * (route.c, route_scan.c); which of the two runs is decided at each execution
 * (policy.h).  route_check.c says what could run there, route_deparse.c how it
 * is written for new, route_remote.c runs it.
 */
#ifndef CUTOVER_ROUTE_H
#define CUTOVER_ROUTE_H

#include "fmgr.h"
#include "lib/ilist.h"
#include "nodes/params.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"

#include "endpoint.h"
#include "policy.h"
#include "tracked.h"

/* What a table is called on new, and its columns. */
typedef struct RouteTable
{
	Oid			relid;			/* hash key */
	bool		valid;
	bool		known;			/* under migration by itself (not as a partition) */
	int32		table_id;
	int32		target_id;
	bool		partial;		/* new holds some of its rows only, or they are spread */
	bool		computed;		/* it has columns there that are computed */
	bool		same;			/* all columns have the names that they have on old, and so has the table */
	char	   *new_schema;
	char	   *new_name;
	int			natts;
	char	  **columns;		/* by attnum - 1: its name on new, NULL = there is none */
	MemoryContext cxt;			/* of what is pointed to */
} RouteTable;

/* What the check of a query found; why NULL = it can run on new. */
typedef struct RouteCheck
{
	const char *why;			/* CUTOVER_WHY */
	char	   *detail;			/* what exactly, for EXPLAIN; may be NULL */
	int32		target_id;		/* of its tables; 0 = there are none */
	List	   *table_ids;
	bool		collation;		/* depends on the default collation's order or character classes */
	bool		settings;		/* depends on session settings that new must be given */
	bool		whole_row;		/* refers to whole rows of tables */
	bool		writes;			/* changes or locks rows: see forward.h */
	Oid			relid;			/* a table that it does that to */
} RouteCheck;

/* How values of a type come and go. */
typedef enum RouteKind
{
	ROUTE_INT2, ROUTE_INT4, ROUTE_INT8, ROUTE_BOOL, ROUTE_FLOAT8, ROUTE_TEXT,
	ROUTE_OTHER
} RouteKind;

/* A column of the result, or a parameter. */
typedef struct RouteColumn
{
	Oid			type;
	Oid			wire;			/* type that new knows it by; 0 = not known by number */
	int32		typmod;
	AttrNumber	attno;			/* result: position in the local row */
	RouteKind	kind;
	bool		binary;			/* parameter: its form */
	FmgrInfo	fn;				/* receive or input, send or output function */
	Oid			ioparam;
} RouteColumn;

/* A text that is sent to new, and may be prepared there. */
typedef struct RouteStatement
{
	uint64		hash;			/* hash key: of the text */
	char	   *sql;
	int			refcount;		/* plans that use it */
	uint64		uses;			/* executions */
	uint64		prepared_on;	/* number of the connection on which it is prepared; 0 = it isn't */
	char		name[24];
	dlist_node	lru;			/* of those that are prepared; most recently used first */
} RouteStatement;

/* A plan's translation for new. */
typedef struct RoutePlan
{
	int64		id;				/* hash key */
	uint64		generation;		/* of the configuration that it was made for */
	int			users;			/* scans that have it now */
	bool		converting;		/* functions for binary forms convert text for the client */
	MemoryContext cxt;
	RouteStatement *statement;
	int			nparams;		/* of new's statement */
	int			nextern;		/* the first ones are the query's own ... */
	int		   *externs;		/* ... with these numbers */
	List	   *folded;			/* the rest are expressions, computed on old */
	bool		folded_may_fail;
	RouteColumn *params;
	int			ncolumns;		/* of new's result */
	RouteColumn *columns;
	bool		binary;			/* the result's form */
	uint64		refused_on;		/* number of the connection on which new said that it can't ... */
	const char *refused_why;	/* ... CUTOVER_WHY */
	dlist_node	lru;
} RoutePlan;

/* route.c */
extern void cutover_route_init(void);

/* Must what runs now stay on old, whatever it is?  (utility command, our own code, a statement that writes ...) */
extern bool cutover_route_context_forbids(CutoverTarget *target);

/* The same whatever the tables are; a write need not ask for more. */
extern bool cutover_route_forbidden(void);
extern int	cutover_route_depth(void);

/* route_table.c */
extern void cutover_route_init_tables(void);
extern RouteTable *cutover_route_table(Oid relid);
extern uint64 cutover_route_generation(void);

/* route_check.c */
extern int32 cutover_route_reads_target(Query *query);
extern void cutover_route_check(Query *query, RouteCheck *check);

/* route_function.c */
typedef enum RouteVolatility
{
	ROUTE_ANYWHERE,				/* the same everywhere */
	ROUTE_SETTINGS,				/* the same under the same settings */
	ROUTE_FOLD,					/* to be computed on old, before */
	ROUTE_NOWHERE				/* stays on old with its statement */
} RouteVolatility;
extern RouteVolatility cutover_route_function(Oid function);
extern bool cutover_route_ignores_collation(Oid function);

/* route_fold.c */
extern Query *cutover_route_fold(Query *query, int first, List **folded);
extern bool cutover_route_can_fold(Node *node, bool conditional);

extern bool cutover_route_fold_may_fail(List *folded);

/* route_deparse.c */
extern RoutePlan *cutover_route_translate(int64 id, Query *query, bool whole_row);
extern void cutover_route_release(RoutePlan *plan);
extern char *cutover_route_sql(Query *query, bool whole_row);
extern char *cutover_route_sql_unfolded(Query *query, bool whole_row, List **externs);

/* route_statement.c */
extern RouteStatement *cutover_route_statement(const char *sql);
extern void cutover_route_release_statement(RouteStatement *statement);

#endif							/* CUTOVER_ROUTE_H */
