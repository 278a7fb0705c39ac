/*
 * action.h - a user's call that needs several transactions: a worker runs it, the caller waits.
 */
#ifndef CUTOVER_ACTION_H
#define CUTOVER_ACTION_H

/*
 * Run CALL-able SQL in a background worker of this database and wait for its
 * end.  Raises 25001 inside a transaction block (function names the caller in
 * the message), 53400 without a free worker slot, and whatever the worker
 * raised, with SQLSTATE, detail and hint.  Returns the text that the worker's
 * last SELECT returned, or NULL.  Cancelling the caller cancels the worker.
 */
extern char *cutover_action_run(const char *function, const char *sql, int nargs, const char *const *args);

#endif							/* CUTOVER_ACTION_H */
