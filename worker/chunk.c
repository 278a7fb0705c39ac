/*
 * chunk.c - which chunk of a running copy does a key or tuple belong to, and did it see a transaction?
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "compat.h"
#include "copier.h"

typedef struct ChunkKey
{
	FmgrInfo	cmp;
	Oid			collation;
	FmgrInfo	input;
	Oid			typioparam;
} ChunkKey;

struct CutoverChunkMap
{
	MemoryContext mcxt;
	int32		table_id;
	int32		generation;
	bool		by_block;
	int			nkeys;
	ChunkKey   *keys;
	int			nchunks;
	CutoverChunk *chunks;		/* by key: in key order; by block: by (relid, first_block) */
	int			copying;
};

/*
 * Read the form xmin:xmax:xip,xip,... into a chunk.
 */
static void
chunk_parse_snapshot(CutoverChunk *chunk, const char *text, MemoryContext mcxt)
{
	char	   *end;
	int			room = 0;

	chunk->xmin = strtou64(text, &end, 10);
	if (*end != ':')
		elog(ERROR, "malformed snapshot of chunk %d", chunk->chunk_no);
	chunk->xmax = strtou64(end + 1, &end, 10);
	if (*end != ':')
		elog(ERROR, "malformed snapshot of chunk %d", chunk->chunk_no);
	for (const char *p = end; *p; p++)
		if (*p == ',')
			room++;
	chunk->nxip = 0;
	chunk->xip = NULL;
	if (end[1] == '\0')
		return;
	chunk->xip = MemoryContextAlloc(mcxt, sizeof(uint64) * (room + 1));
	do
		chunk->xip[chunk->nxip++] = strtou64(end + 1, &end, 10);
	while (*end == ',');
}

/*
 * Look up how the key's columns are compared and read from text.
 */
static void
chunk_map_init_keys(CutoverChunkMap *map, Oid relid, ArrayType *attnums)
{
	int16	   *attnum = (int16 *) ARR_DATA_PTR(attnums);

	map->nkeys = ARR_NDIM(attnums) == 0 ? 0 : ARR_DIMS(attnums)[0];
	map->keys = MemoryContextAllocZero(map->mcxt, sizeof(ChunkKey) * Max(map->nkeys, 1));
	for (int i = 0; i < map->nkeys; i++)
	{
		Oid			type;
		int32		typmod;
		Oid			input;
		TypeCacheEntry *entry;

		get_atttypetypmodcoll(relid, attnum[i], &type, &typmod, &map->keys[i].collation);
		entry = lookup_type_cache(type, TYPECACHE_CMP_PROC);
		/* a type without an order has one chunk only and is never compared */
		if (OidIsValid(entry->cmp_proc))
			fmgr_info_cxt(entry->cmp_proc, &map->keys[i].cmp, map->mcxt);
		getTypeInputInfo(type, &input, &map->keys[i].typioparam);
		fmgr_info_cxt(input, &map->keys[i].input, map->mcxt);
	}
}

/*
 * Turn the stored lower bound into datums, or a block number.
 */
static void
chunk_parse_lower(CutoverChunkMap *map, CutoverChunk *chunk, ArrayType *lower)
{
	Datum	   *texts;
	bool	   *nulls;
	int			n;
	MemoryContext old;

	deconstruct_array(lower, TEXTOID, -1, false, TYPALIGN_INT, &texts, &nulls, &n);
	if (map->by_block)
	{
		if (n != 1)
			elog(ERROR, "malformed bound of chunk %d", chunk->chunk_no);
		chunk->first_block = (BlockNumber) strtoul(TextDatumGetCString(texts[0]), NULL, 10);
		return;
	}
	if (n != map->nkeys)
		elog(ERROR, "malformed bound of chunk %d", chunk->chunk_no);
	old = MemoryContextSwitchTo(map->mcxt);
	chunk->lower = palloc(sizeof(Datum) * n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			elog(ERROR, "malformed bound of chunk %d", chunk->chunk_no);
		chunk->lower[i] = InputFunctionCall(&map->keys[i].input, TextDatumGetCString(texts[i]),
											map->keys[i].typioparam, -1);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Fill a chunk from a row (chunk_no, state, snapshot, relid, lower).
 */
static void
chunk_read_row(CutoverChunkMap *map, CutoverChunk *chunk, HeapTuple tup, TupleDesc desc)
{
	bool		isnull;
	char	   *state = SPI_getvalue(tup, desc, 2);
	char	   *snapshot = SPI_getvalue(tup, desc, 3);
	Datum		value;

	chunk->chunk_no = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
	chunk->state = state[0];
	if (chunk->state == CUTOVER_CHUNK_DONE)
		chunk_parse_snapshot(chunk, snapshot, map->mcxt);
	value = SPI_getbinval(tup, desc, 4, &isnull);
	chunk->relid = isnull ? InvalidOid : DatumGetObjectId(value);
	value = SPI_getbinval(tup, desc, 5, &isnull);
	if (!isnull)
		chunk_parse_lower(map, chunk, DatumGetArrayTypeP(value));
}

/*
 * Order of chunks by block.
 */
static int
chunk_compare_block(const CutoverChunk *chunk, Oid relid, BlockNumber block)
{
	if (chunk->relid != relid)
		return chunk->relid < relid ? -1 : 1;
	if (chunk->first_block != block)
		return chunk->first_block < block ? -1 : 1;
	return 0;
}

static int
chunk_sort_blocks(const void *a, const void *b)
{
	const CutoverChunk *chunk = b;

	return chunk_compare_block(a, chunk->relid, chunk->first_block);
}

/*
 * Read the chunks of a table's present generation.
 */
CutoverChunkMap *
cutover_chunk_map_load(int32 table_id, Oid relid, MemoryContext mcxt)
{
	CutoverChunkMap *map = MemoryContextAllocZero(mcxt, sizeof(CutoverChunkMap));
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(table_id)};
	bool		isnull;

	map->mcxt = mcxt;
	map->table_id = table_id;
	if (SPI_execute_with_args("SELECT copy_generation, key_attnums FROM cutover._table WHERE table_id = $1",
							  1, types, args, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read table %d", table_id);
	if (SPI_processed == 0)
		return map;
	map->generation = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	chunk_map_init_keys(map, relid, DatumGetArrayTypeP(SPI_getbinval(SPI_tuptable->vals[0],
																	 SPI_tuptable->tupdesc, 2, &isnull)));
	map->by_block = map->nkeys == 0;

	if (SPI_execute_with_args("SELECT c.chunk_no, c.state, c.snapshot, c.relid, c.lower"
							  " FROM cutover._chunk c JOIN cutover._table t"
							  " ON t.table_id = c.table_id AND t.copy_generation = c.generation"
							  " WHERE c.table_id = $1 ORDER BY c.chunk_no",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read chunks of table %d", table_id);
	map->nchunks = (int) SPI_processed;
	map->chunks = MemoryContextAllocExtended(mcxt, sizeof(CutoverChunk) * Max(map->nchunks, 1),
											 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < map->nchunks; i++)
	{
		chunk_read_row(map, &map->chunks[i], SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		if (map->chunks[i].state == CUTOVER_CHUNK_COPYING)
			map->copying++;
	}
	if (map->by_block)
		qsort(map->chunks, map->nchunks, sizeof(CutoverChunk), chunk_sort_blocks);
	return map;
}

/*
 * Look again at chunks that were in copying when they were read last.
 */
int
cutover_chunk_map_refresh(CutoverChunkMap *map)
{
	Oid			types[] = {INT4OID, INT4OID, INT4OID};
	Datum		args[] = {Int32GetDatum(map->table_id), Int32GetDatum(map->generation), 0};

	map->copying = 0;
	for (int i = 0; i < map->nchunks; i++)
	{
		CutoverChunk *chunk = &map->chunks[i];

		if (chunk->state != CUTOVER_CHUNK_COPYING)
			continue;
		args[2] = Int32GetDatum(chunk->chunk_no);
		if (SPI_execute_with_args("SELECT c.chunk_no, c.state, c.snapshot, c.relid, NULL::text[]"
								  " FROM cutover._chunk c JOIN cutover._table t"
								  " ON t.table_id = c.table_id AND t.copy_generation = c.generation"
								  " WHERE c.table_id = $1 AND c.generation = $2 AND c.chunk_no = $3",
								  3, types, args, NULL, true, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not read chunks of table %d", map->table_id);
		if (SPI_processed == 0)
			return -1;
		chunk_read_row(map, chunk, SPI_tuptable->vals[0], SPI_tuptable->tupdesc);
		if (chunk->state == CUTOVER_CHUNK_COPYING)
			map->copying++;
		SPI_freetuptable(SPI_tuptable);
	}
	return map->copying;
}

int
cutover_chunk_map_count(const CutoverChunkMap *map, int *copying)
{
	*copying = map->copying;
	return map->nchunks;
}

bool
cutover_chunk_map_by_block(const CutoverChunkMap *map)
{
	return map->by_block;
}

/*
 * Does a key lie before the start of a chunk?
 */
static bool
chunk_key_before(const CutoverChunkMap *map, const Datum *key, const CutoverChunk *chunk)
{
	if (chunk->lower == NULL)
		return false;
	for (int i = 0; i < map->nkeys; i++)
	{
		int			c = DatumGetInt32(FunctionCall2Coll((FmgrInfo *) &map->keys[i].cmp, map->keys[i].collation,
														key[i], chunk->lower[i]));

		if (c != 0)
			return c < 0;
	}
	return false;
}

/*
 * The last chunk that starts at or before a key.
 */
const CutoverChunk *
cutover_chunk_map_find(const CutoverChunkMap *map, const Datum *key, const bool *isnull)
{
	int			low = 0;
	int			high = map->nchunks;

	if (map->nchunks == 0 || map->by_block)
		return NULL;
	if (map->nchunks == 1)
		return &map->chunks[0];
	for (int i = 0; i < map->nkeys; i++)
		if (isnull && isnull[i])
			elog(ERROR, "key of table %d is null", map->table_id);
	while (high - low > 1)
	{
		int			mid = low + (high - low) / 2;

		if (chunk_key_before(map, key, &map->chunks[mid]))
			high = mid;
		else
			low = mid;
	}
	return &map->chunks[low];
}

/*
 * The last chunk of a relation that starts at or before a block.
 */
const CutoverChunk *
cutover_chunk_map_find_ctid(const CutoverChunkMap *map, Oid relid, BlockNumber block)
{
	int			low = 0;
	int			high = map->nchunks;

	if (!map->by_block)
		return NULL;
	while (low < high)			/* find the first that starts after it */
	{
		int			mid = low + (high - low) / 2;

		if (chunk_compare_block(&map->chunks[mid], relid, block) <= 0)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == 0 || map->chunks[low - 1].relid != relid)
		return NULL;
	return &map->chunks[low - 1];
}

/*
 * Did the snapshot of a done chunk see a transaction's rows?
 */
bool
cutover_chunk_contains(const CutoverChunk *chunk, FullTransactionId xid)
{
	uint64		x = U64FromFullTransactionId(xid);
	int			low = 0;
	int			high = chunk->nxip;

	Assert(chunk->state == CUTOVER_CHUNK_DONE);
	if (x < chunk->xmin)
		return true;
	if (x >= chunk->xmax)
		return false;
	while (low < high)
	{
		int			mid = low + (high - low) / 2;

		if (chunk->xip[mid] == x)
			return false;
		if (chunk->xip[mid] < x)
			low = mid + 1;
		else
			high = mid;
	}
	return true;
}
