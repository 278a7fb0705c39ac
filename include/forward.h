/*
 * forward.h - writes of old's clients that new executes.
 *
 * In mode new_only with old_writes => 'forward'.  A statement that changes or
 * locks rows of tables under migration gets the router's custom scan if it
 * could run on new (route_check.c, forward_rewrite.c); whether it does is decided when it
 * starts (forward.c).  On new it runs in a transaction that goes with the local one
 * (forward_xact.c).  What is not forwarded meets the fence.
 */
#ifndef CUTOVER_FORWARD_H
#define CUTOVER_FORWARD_H

#include "executor/execdesc.h"
#include "nodes/parsenodes.h"
#include "nodes/primnodes.h"

#include "route_remote.h"
#include "tracked.h"

/* forward_rewrite.c: a statement with the defaults that only new can give left to new; for deparsing only */
extern Query *cutover_forward_rewrite(const Query *query);

/* May this function of no settled result be computed on new? */
extern bool cutover_forward_function(Oid function);

/* Is this the name of a sequence that new has, too? */
extern bool cutover_forward_sequence(const Const *value);

/*
 * forward.c: does a statement go to new that changes (or, with only_locks, locks)
 * rows of relid and others?  If not, it is old's.  Waits for a switch that is under way.
 */
extern bool cutover_forward_decide(CutoverTarget *target, Oid relid, bool only_locks);

/* How a statement is run. */
typedef struct ForwardStatement
{
	Oid			relid;
	bool		only_locks;
	bool		returns;		/* rows */
	bool		settings;		/* depends on those of the session */
} ForwardStatement;

/* Run it; ROUTE_REFUSED if new is no longer master, so that the side must be chosen again.  Other failures are raised. */
extern RouteStart cutover_forward_start(RouteStream *stream, CutoverTarget *target, const ForwardStatement *statement,
										const Datum *values, const bool *nulls);

/* Has the transaction under way worked on new in a way that only new knows? */
extern bool cutover_forward_under_way(int32 target_id);

/* forward_xact.c */
extern void cutover_forward_init(void);

/* Let new's transaction be there, and at the level of savepoints that the local one has; raises. */
extern void cutover_forward_enter(RouteSession *session);

extern const char *cutover_forward_begin_sql(void);

/* Run a statement without rows; raises. */
extern void cutover_forward_command(RouteSession *session, const char *sql);

/* Give new's transaction up, in which nothing was written. */
extern void cutover_forward_leave(RouteSession *session);
CUTOVER_NORETURN extern void cutover_forward_raise_lost(void);
CUTOVER_NORETURN extern void cutover_forward_raise_unknown(void);

/* From here on no cancel may undo what new has committed. */
extern void cutover_forward_hold_interrupts(void);

/* forward_local.c: what the transaction does on old beside */
extern void cutover_forward_check_start(QueryDesc *desc);
extern void cutover_forward_check_utility(Node *command);

/* About to write to a table of the target on new: refuse if the transaction has written elsewhere. */
extern void cutover_forward_check_mixed(CutoverTarget *target, Oid relid);

/* About to have old answer a statement on the target's tables: refuse if only new knows what the transaction has done. */
extern void cutover_forward_check_old(int32 target_id, Oid relid);

#endif							/* CUTOVER_FORWARD_H */
