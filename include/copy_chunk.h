/*
 * copy_chunk.h - one chunk from old to new, exactly once.
 */
#ifndef CUTOVER_COPY_CHUNK_H
#define CUTOVER_COPY_CHUNK_H

#include "storage/lock.h"

#include "endpoint.h"

typedef enum CutoverJobResult
{
	CUTOVER_JOB_NONE,			/* nothing is left to do */
	CUTOVER_JOB_BUSY,			/* others do what there is, or it must wait */
	CUTOVER_JOB_DONE			/* something was done */
} CutoverJobResult;

/* Tables that failed a moment ago and are left alone by this worker. */
typedef struct CutoverSkip
{
	int			n;
	int32	   *table_ids;
} CutoverSkip;

/*
 * Take a chunk of the target and copy it.  table_id says which table it was
 * about, also after an error (0 = none yet); the caller then resets ep, aborts
 * the local transaction and calls cutover_copy_chunk_release().
 */
extern CutoverJobResult cutover_copy_chunk_next(CutoverEndpoint *ep, int32 target_id, int number,
												const CutoverSkip *skip, int32 *table_id);
extern void cutover_copy_chunk_release(void);

/* Before release, if the reset told that the transaction on new was rolled back. */
extern void cutover_copy_chunk_put_back(void);

/* Locks by which copiers know of each other; held by the session, gone with the process. */
extern bool cutover_copy_lock_number(int32 target_id, int number, bool wait);
extern void cutover_copy_unlock_number(int32 target_id, int number);

#endif							/* CUTOVER_COPY_CHUNK_H */
