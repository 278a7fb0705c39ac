/*
 * local.h - short transactions of a worker on old.
 */
#ifndef CUTOVER_LOCAL_H
#define CUTOVER_LOCAL_H

#include "executor/spi.h"

/* A transaction with SPI connected.  A durable commit is flushed, and waits for synchronous standbys. */
extern void cutover_local_begin(void);
extern void cutover_local_commit(bool durable);

/* Run one statement with its own snapshot; returns the number of rows.  nulls as in SPI (' ' or 'n'), or NULL. */
extern uint64 cutover_local_run(const char *sql, int nargs, const Oid *types, const Datum *values, const char *nulls);

/*
 * Run a statement that comes again and again: planned once, the plan is kept in
 * *plan for the life of the process.  Uses the active snapshot; needs SPI.
 * Returns SPI's code.
 */
extern int	cutover_local_run_kept(SPIPlanPtr *plan, const char *sql, int nargs, const Oid *types,
								   const Datum *values, bool read_only, long limit);

/* A value of the last result: NULL for SQL NULL; text in the current memory context. */
extern char *cutover_local_text(uint64 row, int column);
extern int64 cutover_local_int(uint64 row, int column);	/* int2, int4, int8, oid, bool; 0 for SQL NULL */

#endif							/* CUTOVER_LOCAL_H */
