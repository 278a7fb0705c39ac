/*
 * route_fresh.h - no lost update by transactions that read from new in one snapshot.
 */
#ifndef CUTOVER_ROUTE_FRESH_H
#define CUTOVER_ROUTE_FRESH_H

#include "access/htup.h"

/* Has this transaction read from new in a snapshot, and may it write to old? */
extern bool cutover_route_reads_stale;

extern void cutover_route_init_fresh(void);

/* The transaction reads from new in a snapshot that has the windows up to this pg_snapshot of old. */
extern void cutover_route_note_snapshot(int32 target_id, const char *snapshot);

/* 40001 if the version of a row that is being replaced is newer than what the transaction has read. */
extern void cutover_route_check_fresh(int32 target_id, HeapTuple version);

#endif							/* CUTOVER_ROUTE_FRESH_H */
