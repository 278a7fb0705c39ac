/*
 * action_internal.h - what a caller and the worker of an action share.
 *
 * A segment holds a table of contents with the fixed part, the statement, its
 * arguments one after the other (a byte 0 for NULL, or 1 and the text with its
 * end), and a queue from worker to caller.  Messages in the queue are those of
 * the frontend protocol: errors and notices, then one data row with the result.
 */
#ifndef CUTOVER_ACTION_INTERNAL_H
#define CUTOVER_ACTION_INTERNAL_H

#define CUTOVER_ACTION_MAGIC 0x63757401
#define CUTOVER_ACTION_KEY_FIXED 1
#define CUTOVER_ACTION_KEY_SQL 2
#define CUTOVER_ACTION_KEY_ARGS 3
#define CUTOVER_ACTION_KEY_QUEUE 4
#define CUTOVER_ACTION_QUEUE_SIZE 65536

typedef struct CutoverActionFixed
{
	Oid			caller;			/* the role that asked */
	NameData	caller_name;
	int			nargs;
	int			caller_pid;
} CutoverActionFixed;

/* In an action's worker: the role that asked.  Else InvalidOid and NULL. */
extern Oid	cutover_action_caller;
extern const char *cutover_action_caller_name;

/* In an action's worker: the statement to run should the action fail (switcher.c); NULL = none. */
extern char *cutover_action_on_error;

/*
 * In a worker: run one statement, which may end transactions if it is CALL.
 * args as in the segment.  The first column of its last row, or NULL.
 */
extern char *cutover_action_execute(const char *sql, int nargs, const char *args, MemoryContext context);

#endif							/* CUTOVER_ACTION_INTERNAL_H */
