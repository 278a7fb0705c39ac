/*
 * buffer.h - the changes of the current transaction, until they are queue blocks.
 */
#ifndef CUTOVER_BUFFER_H
#define CUTOVER_BUFFER_H

/* Registers the transaction callbacks. */
extern void cutover_buffer_init(void);

/*
 * Room for one change of len bytes of a table (0 = of no table).  The caller
 * fills it without raising errors and then calls cutover_buffer_done(), which may write blocks.
 * strict: the change must not get lost, whatever cutover.capture says.
 */
extern char *cutover_buffer_reserve(int32 target_id, int32 table_id, Size len, bool strict);
extern void cutover_buffer_done(void);

/* A change of table_id can't be captured: remember to mark it by the end of the transaction (policies mark and off). */
extern void cutover_buffer_mark(int32 target_id, int32 table_id, const char *reason);

#endif							/* CUTOVER_BUFFER_H */
