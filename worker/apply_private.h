/*
 * apply_private.h - what coalesce.c, apply_sql.c, apply_send.c and apply.c share.
 */
#ifndef CUTOVER_APPLY_PRIVATE_H
#define CUTOVER_APPLY_PRIVATE_H

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/hsearch.h"

#include "apply.h"

/* Lengths in packed rows; >= 0 is a value. */
#define APPLY_LEN_NULL		(-1)
#define APPLY_LEN_ABSENT	(-2)

/* Net effect on a key beside the CutoverApplyOps: it came and went. */
#define APPLY_NOTHING		100

/*
 * The net change of a key.  data: the key (for lookup), then for each column
 * an int32 length in network order and the bytes: the form in which a value
 * travels in a binary text[].  A net DELETE of a table with a key has only
 * the key columns there, without the others.
 */
typedef struct ApplyRow
{
	uint32		hash;
	uint8		op;				/* CutoverApplyOp or APPLY_NOTHING */
	bool		only_key;		/* the values are those of the key columns, in key order */
	int			place;			/* in the table's rows */
	int64		count;			/* tables without a key: rows to insert, or (< 0) to delete */
	Bitmapset  *absent;
	Size		keylen;
	Size		len;			/* of the values */
	Size		room;			/* for key and values */
	char		data[FLEXIBLE_ARRAY_MEMBER];
} ApplyRow;

#define APPLY_VALUES(row) ((row)->data + (row)->keylen)

/* Collected rows of a table, in order of their first change. */
typedef struct ApplyTable
{
	CutoverApplyTable *table;	/* hash key */
	struct applyhash_hash *hash;
	ApplyRow  **rows;
	int			nrows;
	int			maxrows;
} ApplyTable;

/* Rows that one statement text can write. */
typedef struct ApplyGroup
{
	CutoverApplyOp op;
	Bitmapset  *absent;
	bool		only_key;
	ApplyRow  **rows;
	int			nrows;
	int			maxrows;
} ApplyGroup;

struct CutoverApply
{
	CutoverEndpoint *ep;
	MemoryContext cxt;			/* lives as long as this */
	MemoryContext rows_cxt;		/* rows and their tables; reset when flushed */
	MemoryContext flush_cxt;	/* scratch of a flush */
	MemoryContext missed_cxt;	/* missed keys, and who waits to hear of them */
	HTAB	   *tables;			/* of ApplyTable */
	ApplyTable *last;
	char	   *arena;			/* current block of rows_cxt */
	Size		arena_left;
	Size		memory;
	uint64		nrows;
	uint64		nchanges;		/* that became these rows */
	StringInfoData key;			/* scratch */
	uint32		polled;			/* rows added since the endpoint was last given a push */
	List	   *missed;			/* of CutoverMissedKey */
	int			awaited;		/* queued UPDATEs that have not said yet what they missed */
};

/* coalesce.c */
extern void cutover_coalesce_add(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row);
extern void cutover_coalesce_forget(CutoverApply *apply);
extern ApplyRow *cutover_coalesce_single(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row);

/* apply_sql.c: texts for a set of rows, one text[] parameter for each column not absent (key columns for deletes) */
extern char *cutover_apply_sql_insert(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_upsert(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_update(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_update_existing(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_insert_missing(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_delete(const CutoverApplyTable *table);
extern char *cutover_apply_sql_delete_renumbered(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_delete_rows(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_copy(const CutoverApplyTable *table, const Bitmapset *absent);
extern char *cutover_apply_sql_name(const CutoverApplyTable *table);
extern bool cutover_apply_sql_renumbers(const CutoverApplyTable *table, const Bitmapset *absent);

/* apply_send.c */
extern void cutover_apply_send_group(CutoverApply *apply, CutoverApplyTable *table, ApplyGroup *group);

/* apply.c */
extern void cutover_apply_add_missed(CutoverApply *apply, CutoverApplyTable *table, char **key);

#endif							/* CUTOVER_APPLY_PRIVATE_H */
