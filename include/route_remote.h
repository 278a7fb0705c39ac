/*
 * route_remote.h - the connection that a session keeps to a target, and statements on it.
 */
#ifndef CUTOVER_ROUTE_REMOTE_H
#define CUTOVER_ROUTE_REMOTE_H

#include "executor/tuptable.h"
#include "utils/hsearch.h"
#include "utils/resowner.h"
#include "utils/tuplestore.h"

#include "route.h"

struct RouteStream;

/* The connection to a target; one for each target and session. */
typedef struct RouteSession
{
	int32		target_id;		/* hash key */
	CutoverEndpoint *ep;		/* NULL = not connected */
	uint64		number;			/* of the connection: never used twice */
	bool		fresh;			/* nothing has been answered on it yet */
	bool		stale;			/* the address has changed since */
	bool		in_xact;		/* a transaction on new goes with the local one */
	bool		xact_failed;	/* ... and was lost */
	bool		forward;		/* ... writes in it, and commits before it: see forward.h */
	bool		wrote;			/* something was written on new, in that transaction or by itself */
	int			level;			/* of new's transaction: 1 = no savepoint, n = s<n> is set */
	char	   *path;			/* what forwarded statements need that new was given, as SQL; NULL = nothing */
	struct RouteStream *stream;	/* whose query is under way */
	int			collation;		/* text is ordered there as here: -1 = not asked yet */
	char	   *settings;		/* those of this session that new was given; NULL = ours */
	uint64		settings_changes;	/* how often they had changed here by then */
	bool		settings_refused;	/* new has not got some of them */
	dlist_head	prepared;
	int			nprepared;
} RouteSession;

typedef enum RouteStart
{
	ROUTE_STARTED,
	ROUTE_REFUSED,				/* it can't run there: why says what; not new's fault */
	ROUTE_FAILED,				/* new did not answer: sqlstate */
	ROUTE_LATE
} RouteStart;

/* A query on new and its rows. */
typedef struct RouteStream
{
	RouteSession *session;
	RoutePlan  *plan;
	TupleDesc	desc;			/* of the local row */
	MemoryContext cxt;			/* lives as long as the stream */
	ResourceOwner owner;
	MemoryContextCallback callback;
	bool		open;			/* the query is under way */
	bool		at_end;
	int			row;			/* next one of the chunk */
	int			nrows;
	Tuplestorestate *store;		/* rows that were read ahead, or must be kept */
	int			ahead;			/* read pointer to append with: the first one stays where it is then */
	uint64		affected;		/* at the end: rows, as new counts them */
	int			attempts;		/* that met another master */
	const char *why;			/* after REFUSED */
	int			sqlstate;		/* after FAILED */
	Datum	   *values;			/* of a row that goes into the store */
	bool	   *nulls;
} RouteStream;

/* route_connect.c */
extern void cutover_route_init_remote(void);

/* The connection to a target, made if need be; raises 08001. */
extern RouteSession *cutover_route_session(int32 target_id);
extern void cutover_route_disconnect(RouteSession *session);

/* All of them, by target; NULL = there was none yet. */
extern HTAB *cutover_route_sessions(void);

/* How long new may take until its first row, in ms; 0 = for ever. */
extern int	cutover_route_limit(void);

/* route_remote.c */

/* A stream, filled with zeros, gets its plan; it lets go of plan and connection when its memory goes. */
extern void cutover_route_attach(RouteStream *stream, RoutePlan *plan);

/* Run the plan's query.  values and nulls: its parameters, as many as the plan has. */
extern RouteStart cutover_route_start(RouteStream *stream, CutoverTarget *target, bool collation, bool settings,
									  const Datum *values, const bool *nulls);

/* Raise what made the start fail. */
CUTOVER_NORETURN extern void cutover_route_raise(RouteStream *stream);

/* The next row into the slot, with values in the current memory context; false at the end. */
extern bool cutover_route_fetch(RouteStream *stream, TupleTableSlot *slot);
extern void cutover_route_stop(RouteStream *stream);

/* Parts of a start, for forward.c. */
extern CutoverAnswer cutover_route_query(RouteStream *stream, const Datum *values, const bool *nulls, TimestampTz deadline);
extern bool cutover_route_check_types(RouteStream *stream);
extern void cutover_route_ended(RouteStream *stream);

/* Let nobody's query be under way on it: what is left of one is read ahead. */
extern void cutover_route_free_connection(RouteSession *session);

/* route_session.c: what new is told of this session */
extern bool cutover_route_ask(RouteSession *session, const char *sql, TimestampTz deadline, char **value);
extern bool cutover_route_send_settings(RouteSession *session, TimestampTz deadline);
extern bool cutover_route_same_collation(RouteSession *session, TimestampTz deadline);

/* route_value.c */
extern void cutover_route_send_values(RoutePlan *plan, const Datum *values, const bool *nulls,
									  const char **data, int *lengths, int *formats);
extern void cutover_route_read_row(RouteStream *stream, int row, Datum *values, bool *nulls);

#endif							/* CUTOVER_ROUTE_REMOTE_H */
