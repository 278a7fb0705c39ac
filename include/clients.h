/*
 * clients.h - the backends of the server that have our library, as others see them.
 */
#ifndef CUTOVER_CLIENTS_H
#define CUTOVER_CLIENTS_H

#include "tracked.h"

/* While the server preloads us: ask for the memory.  Else: enter this backend. */
extern void cutover_clients_init(void);

/* Enter this backend, if it is not in; cheap if it is. */
extern void cutover_clients_enter(void);

/* This session's reads, of its route key or, without one, of itself. */
extern uint64 cutover_clients_hash(void);

/* A number from 0 to 100 that a hash always has for a target. */
extern double cutover_clients_bucket(uint64 hash, int32 target_id);

/* A transaction that wrote tables of the target has committed; can't fail. */
extern void cutover_clients_wrote(int32 target_id, int64 epoch);

/* Assign hooks of cutover.route_key and cutover.read_from. */
extern void cutover_clients_assign_route_key(const char *newval, void *extra);
extern void cutover_clients_assign_read_from(int newval, void *extra);

#endif							/* CUTOVER_CLIENTS_H */
