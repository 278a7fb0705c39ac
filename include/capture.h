/*
 * capture.h - from row changes to queue blocks; runs in the client's backend.
 */
#ifndef CUTOVER_CAPTURE_H
#define CUTOVER_CAPTURE_H

#include "access/htup.h"
#include "utils/rel.h"

#include "tracked.h"

extern void cutover_capture_init(void);

/*
 * Put a control entry into the queue of a target, as part of the current
 * transaction and in order with its row changes.  kind: CUTOVER_CONTROL_*.
 */
extern void cutover_capture_control(int32 target_id, int32 table_id, char kind, const char *text);

/* Capture one row as if it was inserted or deleted (op: CUTOVER_OP_INSERT, _DELETE), or its key to be read again (_REFRESH). */
extern void cutover_capture_row(CutoverRelation *entry, Relation rel, char op, HeapTuple tuple);

/*
 * Changes of a table that needs a resync anyway, or can't be captured, are left
 * out, by transactions that hold a lock of this table id to their end.  A copy may begin only when there
 * are none: what they write may be missing in its snapshot.  Needs a transaction, doesn't wait.
 */
extern void cutover_capture_lock_gap(int32 table_id);
extern bool cutover_capture_no_gap(int32 table_id);

/* Changes of this process are not captured (our own apply). */
extern bool cutover_capture_disabled;

/* Rewrites done by this process are not marked for resync (cutover_run_ddl does the same on new). */
extern bool cutover_capture_rewrite_is_ours;

#endif							/* CUTOVER_CAPTURE_H */
