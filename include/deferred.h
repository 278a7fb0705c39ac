/*
 * deferred.h - indexes, constraints and triggers that are off new's tables while they are copied.
 */
#ifndef CUTOVER_DEFERRED_H
#define CUTOVER_DEFERRED_H

#include "nodes/pg_list.h"

#include "copy_chunk.h"
#include "endpoint.h"

/*
 * Between two statements of a definition in cutover.deferred; the first is the
 * index build.  The whole is valid SQL.
 */
#define CUTOVER_DEFERRED_THEN "; /* cutover: then */ "

/*
 * Take off what slows a copy down or stands in its way, in the open
 * transaction on ep.  keys: the key's columns on new as the text form of an
 * array, '{}' without a key, NULL if the key can't be told there.  triggers: take triggers off too.
 * Returns names of what had to stay (not ours to drop, or others need it).
 */
extern List *cutover_deferred_take_off(CutoverEndpoint *ep, int32 table_id, const char *new_table,
									   const char *keys, bool triggers);

/* One step of rebuilding for tables in phase indexing; as cutover_copy_chunk_next().  Outside of transactions. */
extern CutoverJobResult cutover_deferred_build_next(CutoverEndpoint *ep, int32 target_id,
													const CutoverSkip *skip, int32 *table_id);

/* After an error, which gave up all claims on new. */
extern void cutover_deferred_forget_claims(void);

/* Steps of bringing one back.  On new, cutover.restore_deferred() does the same in SQL when a migration is given up. */
typedef struct CutoverDeferred
{
	char	   *id;
	int32		table_id;
	char	   *kind;
	char	   *relation;
	char	   *name;
	char	   *definition;
	bool		built;			/* its index is there and valid */
} CutoverDeferred;

/* List of CutoverDeferred of some tables (text form of int[]), NULL = all. */
extern List *cutover_deferred_read(CutoverEndpoint *ep, const char *table_ids);
extern void cutover_deferred_build_index(CutoverEndpoint *ep, CutoverDeferred *item, bool concurrently);
extern void cutover_deferred_finish(CutoverEndpoint *ep, CutoverDeferred *item);
extern void cutover_deferred_add_foreign_key(CutoverEndpoint *ep, CutoverDeferred *item);

#endif							/* CUTOVER_DEFERRED_H */
