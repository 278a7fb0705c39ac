/*
 * copier_prepare.h - the first and the last step of a table's copy, taken by the replicator.
 */
#ifndef CUTOVER_COPIER_PREPARE_H
#define CUTOVER_COPIER_PREPARE_H

#include "endpoint.h"

/* A table in phase waiting: empty it, take indexes off, plan chunks.  True if its phase changed. */
extern bool cutover_copier_prepare(int32 target_id, int32 table_id, int32 generation, bool copy, CutoverEndpoint *ep);

/* A table whose chunks are all done: catching_up, if new has them all.  True if its phase changed. */
extern bool cutover_copier_complete(int32 table_id, int32 generation, CutoverEndpoint *ep);

/* After connecting: put tables back of whose copy new, now at window k, has lost a part. */
extern void cutover_copier_check_new(int32 target_id, int64 k, CutoverEndpoint *ep);

#endif							/* CUTOVER_COPIER_PREPARE_H */
