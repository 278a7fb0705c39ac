/*
 * coalesce.c - the net effect of changes, key by key.
 *
 * Runs in the replicator.  Rows are found again by the bytes of their key's
 * text values.  Rows lie packed in large blocks that are freed together; a row
 * that changes again is overwritten in place where it fits.
 *
 * What two changes of a key become:
 *
 *   first      INSERT    UPSERT    UPDATE    DELETE
 *   INSERT     INSERT    INSERT    INSERT    nothing (DELETE if it may conflict)
 *   UPSERT     UPSERT    UPSERT    UPSERT    DELETE
 *   UPDATE     UPSERT    UPSERT    UPDATE    DELETE
 *   DELETE     UPSERT    UPSERT    DELETE*   DELETE
 *   nothing    INSERT    UPSERT    nothing*  nothing (DELETE if it may conflict)
 *
 * (*) there is no row to update: the key is reported as missed.
 * Columns left out by the later change keep the values of the earlier one.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/pg_bswap.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "apply_private.h"

#define ARENA_BLOCK (256 * 1024)

typedef struct ApplyHashEntry
{
	ApplyRow   *row;
	char		status;
} ApplyHashEntry;

/* the key of the hash is a row, of which hash, keylen and the key itself count */
#define SH_PREFIX applyhash
#define SH_ELEMENT_TYPE ApplyHashEntry
#define SH_KEY_TYPE ApplyRow *
#define SH_KEY row
#define SH_HASH_KEY(tb, key) ((key)->hash)
#define SH_EQUAL(tb, a, b) ((a)->hash == (b)->hash && (a)->keylen == (b)->keylen && memcmp((a)->data, (b)->data, (a)->keylen) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) ((a)->row->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

static ApplyTable *coalesce_table(CutoverApply *apply, CutoverApplyTable *table);
static void coalesce_make_key(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row);
static void *coalesce_alloc(CutoverApply *apply, Size size);
static ApplyRow *coalesce_store(CutoverApply *apply, CutoverApplyTable *table, ApplyRow *former,
								const CutoverApplyRow *row, CutoverApplyOp op);
static void coalesce_merge(CutoverApply *apply, CutoverApplyTable *table, ApplyHashEntry *entry, ApplyRow **slot,
						   const CutoverApplyRow *row);
static void coalesce_count(CutoverApplyTable *table, ApplyRow *kept, const CutoverApplyRow *row);
static void coalesce_report_missed(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row);

/*
 * Forget all rows.
 */
void
cutover_coalesce_forget(CutoverApply *apply)
{
	MemoryContextReset(apply->rows_cxt);
	apply->tables = NULL;
	apply->last = NULL;
	apply->arena = NULL;
	apply->arena_left = 0;
	apply->memory = 0;
	apply->nrows = 0;
	apply->nchanges = 0;
}

/*
 * The rows of a table.
 */
static ApplyTable *
coalesce_table(CutoverApply *apply, CutoverApplyTable *table)
{
	ApplyTable *t;
	bool		found;

	if (apply->last && apply->last->table == table)
		return apply->last;
	if (apply->tables == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(CutoverApplyTable *),.entrysize = sizeof(ApplyTable),.hcxt = apply->rows_cxt};

		apply->tables = hash_create("cutover apply tables", 16, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	t = hash_search(apply->tables, &table, HASH_ENTER, &found);
	if (!found)
	{
		t->hash = applyhash_create(apply->rows_cxt, 256, NULL);
		t->rows = NULL;
		t->nrows = t->maxrows = 0;
	}
	apply->last = t;
	return t;
}

/*
 * Put the key of a row into apply->key.  Each value is preceded by its length,
 * so that no two keys look alike.
 */
static void
coalesce_make_key(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row)
{
	int			n = table->nkeys > 0 ? table->nkeys : table->ncols;
	ApplyRow   *probe;

	/* shaped as a row, so that it serves for lookup */
	resetStringInfo(&apply->key);
	enlargeStringInfo(&apply->key, offsetof(ApplyRow, data));
	apply->key.len = offsetof(ApplyRow, data);
	for (int i = 0; i < n; i++)
	{
		int			col = table->nkeys > 0 ? table->keycols[i] : i;
		int32		len = row->values[col] ? row->lens[col] : APPLY_LEN_NULL;

		if (table->nkeys == 0 && bms_is_member(col, row->absent))
			len = APPLY_LEN_ABSENT;
		appendBinaryStringInfo(&apply->key, (char *) &len, sizeof(len));
		if (len > 0)
			appendBinaryStringInfo(&apply->key, row->values[col], len);
	}
	probe = (ApplyRow *) apply->key.data;
	probe->keylen = apply->key.len - offsetof(ApplyRow, data);
	probe->hash = hash_bytes((unsigned char *) probe->data, probe->keylen);
}

/*
 * Memory that lives until the rows are forgotten.
 */
static void *
coalesce_alloc(CutoverApply *apply, Size size)
{
	void	   *p;

	size = MAXALIGN(size);
	if (size > ARENA_BLOCK / 8)
	{
		apply->memory += size;
		return MemoryContextAllocHuge(apply->rows_cxt, size);
	}
	if (size > apply->arena_left)
	{
		apply->arena = MemoryContextAlloc(apply->rows_cxt, ARENA_BLOCK);
		apply->arena_left = ARENA_BLOCK;
		apply->memory += ARENA_BLOCK;
	}
	p = apply->arena;
	apply->arena += size;
	apply->arena_left -= size;
	return p;
}

/*
 * Append a value's packed form.
 */
static inline char *
coalesce_put(char *to, const char *value, int32 len)
{
	uint32		netlen = pg_hton32((uint32) len);

	memcpy(to, &netlen, sizeof(netlen));
	to += sizeof(netlen);
	if (len > 0)
	{
		memcpy(to, value, len);
		to += len;
	}
	return to;
}

/*
 * Pack a row (with the key in apply->key), taking what it leaves out from
 * former.  May return former, overwritten.
 */
static ApplyRow *
coalesce_store(CutoverApply *apply, CutoverApplyTable *table, ApplyRow *former,
			   const CutoverApplyRow *row, CutoverApplyOp op)
{
	ApplyRow   *probe = (ApplyRow *) apply->key.data;
	bool		only_key = op == CUTOVER_APPLY_DELETE && table->nkeys > 0;
	bool		fill = row->absent != NULL && former != NULL && !former->only_key && !only_key;
	int			n = only_key ? table->nkeys : table->ncols;
	const char **values = palloc(sizeof(char *) * n);
	int32	   *lens = palloc(sizeof(int32) * n);
	const char *old = fill ? APPLY_VALUES(former) : NULL;
	Bitmapset  *absent = NULL;
	Size		size = 0;
	ApplyRow   *kept;
	char	   *to;

	for (int i = 0; i < n; i++)
	{
		int			col = only_key ? table->keycols[i] : i;
		int32		oldlen = APPLY_LEN_ABSENT;

		values[i] = row->values[col];
		lens[i] = values[i] ? row->lens[col] : APPLY_LEN_NULL;
		if (old)
		{
			memcpy(&oldlen, old, sizeof(oldlen));
			oldlen = (int32) pg_ntoh32((uint32) oldlen);
			old += sizeof(oldlen);
		}
		if (!only_key && bms_is_member(col, row->absent))
		{
			values[i] = old;
			lens[i] = oldlen;
			if (oldlen == APPLY_LEN_ABSENT)
			{
				MemoryContext cxt = MemoryContextSwitchTo(apply->rows_cxt);

				absent = bms_add_member(absent, col);
				MemoryContextSwitchTo(cxt);
			}
		}
		if (old && oldlen > 0)
			old += oldlen;
		size += sizeof(int32) + Max(lens[i], 0);
	}

	/* in place only if nothing is taken from there */
	if (former && !fill && former->room >= probe->keylen + size)
		kept = former;
	else
	{
		kept = coalesce_alloc(apply, offsetof(ApplyRow, data) + probe->keylen + size);
		kept->room = probe->keylen + size;
		kept->hash = probe->hash;
		kept->keylen = probe->keylen;
		kept->count = 0;
		memcpy(kept->data, probe->data, probe->keylen);
	}
	kept->op = op;
	kept->only_key = only_key;
	kept->absent = absent;
	kept->len = size;
	to = APPLY_VALUES(kept);
	for (int i = 0; i < n; i++)
		to = coalesce_put(to, values[i], lens[i]);
	pfree(values);
	pfree(lens);
	return kept;
}

/*
 * Add a change.
 */
void
cutover_coalesce_add(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row)
{
	ApplyTable *t = coalesce_table(apply, table);
	ApplyHashEntry *entry;
	bool		found;

	apply->nchanges++;
	coalesce_make_key(apply, table, row);
	entry = applyhash_insert_hash(t->hash, (ApplyRow *) apply->key.data, ((ApplyRow *) apply->key.data)->hash, &found);
	if (!found)
	{
		if (t->nrows == t->maxrows)
		{
			t->maxrows = Max(256, t->maxrows * 2);
			t->rows = t->rows ? repalloc_huge(t->rows, sizeof(ApplyRow *) * t->maxrows) :
				MemoryContextAlloc(apply->rows_cxt, sizeof(ApplyRow *) * t->maxrows);
		}
		entry->row = coalesce_store(apply, table, NULL, row, row->op);
		entry->row->place = t->nrows;
		t->rows[t->nrows++] = entry->row;
		apply->nrows++;
		apply->memory += sizeof(ApplyRow *) + 2 * sizeof(ApplyHashEntry);
		if (table->nkeys == 0)
			coalesce_count(table, entry->row, row);
	}
	else if (table->nkeys == 0)
		coalesce_count(table, entry->row, row);
	else
		coalesce_merge(apply, table, entry, &t->rows[entry->row->place], row);
}

/*
 * Without a key only the number of equal rows counts.
 */
static void
coalesce_count(CutoverApplyTable *table, ApplyRow *kept, const CutoverApplyRow *row)
{
	if (row->op == CUTOVER_APPLY_UPDATE)
		elog(ERROR, "update of table \"%s\", which has no key", table->name);
	kept->count += row->op == CUTOVER_APPLY_DELETE ? -1 : 1;
	kept->op = kept->count > 0 ? CUTOVER_APPLY_INSERT : kept->count < 0 ? CUTOVER_APPLY_DELETE : APPLY_NOTHING;
}

/*
 * Combine a further change of a key with what is kept of it; see the head of this file.
 */
static void
coalesce_merge(CutoverApply *apply, CutoverApplyTable *table, ApplyHashEntry *entry, ApplyRow **slot,
			   const CutoverApplyRow *row)
{
	ApplyRow   *kept = entry->row;
	int			place = kept->place;
	bool		there = kept->op != CUTOVER_APPLY_DELETE && kept->op != APPLY_NOTHING;
	CutoverApplyOp op = row->op;

	if (op == CUTOVER_APPLY_DELETE)
	{
		if ((kept->op == CUTOVER_APPLY_INSERT || kept->op == APPLY_NOTHING) && !table->may_conflict)
		{
			kept->op = APPLY_NOTHING;
			return;
		}
	}
	else if (!there)
	{
		if (op == CUTOVER_APPLY_UPDATE)
		{
			coalesce_report_missed(apply, table, row);
			return;
		}
		if (kept->op == CUTOVER_APPLY_DELETE)
			op = CUTOVER_APPLY_UPSERT;
	}
	else if (kept->op == CUTOVER_APPLY_INSERT)
		op = CUTOVER_APPLY_INSERT;
	else if (op != CUTOVER_APPLY_UPDATE || kept->op == CUTOVER_APPLY_UPSERT)
		op = CUTOVER_APPLY_UPSERT;

	kept = coalesce_store(apply, table, there ? kept : NULL, row, op);
	kept->place = place;
	entry->row = *slot = kept;
}

/*
 * An UPDATE of a row that an earlier change took away.
 */
static void
coalesce_report_missed(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row)
{
	char	  **key = palloc(sizeof(char *) * table->nkeys);

	for (int i = 0; i < table->nkeys; i++)
		key[i] = row->values[table->keycols[i]];
	cutover_apply_add_missed(apply, table, key);
	pfree(key);
}

/*
 * A row by itself, in the form in which rows are kept.
 */
ApplyRow *
cutover_coalesce_single(CutoverApply *apply, CutoverApplyTable *table, const CutoverApplyRow *row)
{
	ApplyRow   *kept;

	coalesce_make_key(apply, table, row);
	kept = coalesce_store(apply, table, NULL, row, row->op);
	if (table->nkeys == 0)
		coalesce_count(table, kept, row);
	return kept;
}
