/*
 * copier.h - the first copy: chunks, and what was taken off new while it runs.
 */
#ifndef CUTOVER_COPIER_H
#define CUTOVER_COPIER_H

#include "access/transam.h"
#include "storage/block.h"

#include "endpoint.h"

/* ---- chunks, as the replicator sees them (worker/chunk.c) ---- */

#define CUTOVER_CHUNK_PENDING	'p' /* its snapshot is yet to come and will see all that is committed now: drop */
#define CUTOVER_CHUNK_COPYING	'c' /* its snapshot isn't known: wait */
#define CUTOVER_CHUNK_DONE		'd' /* apply unless cutover_chunk_contains() */

typedef struct CutoverChunk
{
	int32		chunk_no;
	char		state;			/* CUTOVER_CHUNK_* */
	Oid			relid;			/* chunks by block: the relation, else InvalidOid */
	BlockNumber first_block;	/* chunks by block: where it starts */
	Datum	   *lower;			/* chunks by key: where it starts, NULL = from the beginning */
	/* the snapshot of a chunk that is done */
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64	   *xip;			/* sorted */
} CutoverChunk;

typedef struct CutoverChunkMap CutoverChunkMap;

/*
 * The chunks of a table's present copy, read with the active snapshot; needs
 * SPI.  relid is the table on old.  Lives in mcxt (delete the context to free it).
 *
 * What a map says of a pending chunk holds for changes that its snapshot
 * sees, so take it no earlier than S(k).  To wait for chunks in copying,
 * keep the map and refresh it: chunks that were pending then stay so in it,
 * which makes the wait one for a fixed set of chunks.
 */
extern CutoverChunkMap *cutover_chunk_map_load(int32 table_id, Oid relid, MemoryContext mcxt);

/* Read again the chunks that were in copying; returns how many still are. -1: the copy began anew, load again. */
extern int	cutover_chunk_map_refresh(CutoverChunkMap *map);

/* Number of chunks, and how many of them are in copying. */
extern int	cutover_chunk_map_count(const CutoverChunkMap *map, int *copying);

/* True if the map is by block (cutover_chunk_map_find_ctid), else by key. */
extern bool cutover_chunk_map_by_block(const CutoverChunkMap *map);

/*
 * The chunk of a key: values of the key's columns on old, in index order.
 * The chunk of a tuple in a table without a key, by the relation that holds it and the block
 * (of the old ctid for what went, of the new one for what came).
 * NULL: no chunk covers it (the copy isn't planned; a relation that came later).
 */
extern const CutoverChunk *cutover_chunk_map_find(const CutoverChunkMap *map, const Datum *key, const bool *isnull);
extern const CutoverChunk *cutover_chunk_map_find_ctid(const CutoverChunkMap *map, Oid relid, BlockNumber block);

/* Is a (top-level) transaction in what a done chunk copied? */
extern bool cutover_chunk_contains(const CutoverChunk *chunk, FullTransactionId xid);

/* ---- the driver, called by the replicator (worker/copier.c) ---- */

/*
 * Drive the copy of a target from the replicator's loop: plan chunks of tables
 * that wait, keep cutover.copy_jobs copier workers alive while there are
 * chunks, rebuild indexes and constraints of tables that have caught up.
 * Never waits long.  Returns true if it changed the phase of a table (the
 * replicator then reads its tables again).  Uses its own transactions.
 */
extern bool cutover_copier_tick(int32 target_id, CutoverEndpoint *ep);

/*
 * Only see to it that copiers live, for waits in the middle of a window: a
 * tick may empty a table there that the rest of the window still writes to.
 */
extern void cutover_copier_keep_alive(int32 target_id);

/* Look again at the next tick: a table was added, started, set to another phase. */
extern void cutover_copier_wake(void);

/* True while copiers or index builders of the target run or must run. */
extern bool cutover_copier_busy(int32 target_id);

/* Why the copy does not move, in words, or NULL. */
extern const char *cutover_copier_waiting_for(void);

/* Stop all copiers of this target and wait for their end (pause, cancel). */
extern void cutover_copier_stop(void);

/*
 * Copy a table afresh, in the caller's transaction (SPI): phase waiting, next
 * generation, chunks forgotten.  Nothing if the table is no longer in that
 * generation.  For what can't be merged with chunks: TRUNCATE while copying.
 */
extern void cutover_copier_restart_table(int32 table_id, int32 generation, const char *why);

#endif							/* CUTOVER_COPIER_H */
