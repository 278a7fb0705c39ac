/*
 * chunk_plan.h - cut a table into chunks.
 */
#ifndef CUTOVER_CHUNK_PLAN_H
#define CUTOVER_CHUNK_PLAN_H

/*
 * Write the chunks of a table's generation into cutover._chunk, in the
 * caller's transaction (cutover_local_begin), and set its estimates of rows
 * and bytes.  Returns the number of chunks, at least one for a table with a key.
 */
extern int	cutover_chunk_plan(int32 table_id, int32 generation);

/* SQL condition of a chunk of keys on old, or NULL if it covers all; bounds are arrays of text. */
extern char *cutover_chunk_plan_condition(int32 table_id, Oid relid, const char *lower, const char *upper);

#endif							/* CUTOVER_CHUNK_PLAN_H */
