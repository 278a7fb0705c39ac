/*
 * errors.h - how cutover reports what went wrong.
 *
 * SQLSTATEs are PostgreSQL's own:
 *   22023 bad argument            22004 null              25001 inside a transaction block
 *   42501 privilege               42704 no such object    42809 wrong kind of relation
 *   55000 wrong state             55006 in use            55P03 gave up waiting
 *   2BP01 still in use            08001 cannot connect    08006 connection lost
 *   0A000 not supported (yet)     25006 write refused     40001 began under another master
 *   53400 no free worker slot
 * An error that came from new keeps its SQLSTATE and says so in its context.
 */
#ifndef CUTOVER_ERRORS_H
#define CUTOVER_ERRORS_H

/* SQLSTATE as the five characters of a remote error, to PostgreSQL's packed form. */
#define CUTOVER_SQLSTATE(s) MAKE_SQLSTATE((s)[0], (s)[1], (s)[2], (s)[3], (s)[4])

#endif							/* CUTOVER_ERRORS_H */
