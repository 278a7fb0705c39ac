/*
 * pack.c - compression of queue blocks.
 *
 * A block of many rows goes through zstd, whose entropy coding halves what lz4
 * leaves of typical rows (bench/capture.sh) and with it the WAL; a small one
 * through lz4 as PostgreSQL does for its own values, which costs less there.
 * Both are left out where the libraries are not to be had.
 */
#include "postgres.h"

#include "access/toast_compression.h"
#include "access/toast_internals.h"
#include "utils/memutils.h"

#include "block.h"
#include "compat.h"
#include "pack.h"

#ifdef CUTOVER_USE_ZSTD
#include <zstd.h>
#endif

#define PACK_LZ4_MIN 200
#define PACK_ZSTD_MIN 4000
#define PACK_ZSTD_LEVEL 1

/* lz4 leaves about a third: 8 kB keep several blocks in a page. zstd leaves a quarter. */
#define PACK_BLOCK_SIZE 8000
#define PACK_ZSTD_BLOCK_SIZE 16000

Size
cutover_pack_block_size(void)
{
#ifdef CUTOVER_USE_ZSTD
	return PACK_ZSTD_BLOCK_SIZE;
#else
	return PACK_BLOCK_SIZE;
#endif
}

/*
 * A bytea of a header and room for len bytes.
 */
static struct varlena *
pack_allocate(uint8 flags, Size len)
{
	CutoverBlockHeader header = {.version = CUTOVER_BLOCK_VERSION,.flags = flags};
	struct varlena *value = palloc(VARHDRSZ + sizeof(header) + len);

	SET_VARSIZE(value, VARHDRSZ + sizeof(header) + len);
	memcpy(VARDATA(value), &header, sizeof(header));
	return value;
}

#ifdef CUTOVER_USE_ZSTD
/*
 * Compress a large body; NULL if that doesn't pay or isn't possible.
 */
static struct varlena *
pack_zstd(const char *body, Size len)
{
	static ZSTD_CCtx *cctx = NULL;	/* kept: making one costs more than a block */
	Size		bound = ZSTD_compressBound(len);
	struct varlena *value;
	size_t		n;

	if (cctx == NULL)
		cctx = ZSTD_createCCtx();
	if (cctx == NULL || !AllocSizeIsValid(bound + 64))
		return NULL;
	value = pack_allocate(CUTOVER_BLOCK_ZSTD, bound);
	n = ZSTD_compressCCtx(cctx, VARDATA(value) + sizeof(CutoverBlockHeader), bound, body, len, PACK_ZSTD_LEVEL);
	if (ZSTD_isError(n) || n >= len)
	{
		pfree(value);
		return NULL;
	}
	SET_VARSIZE(value, VARHDRSZ + sizeof(CutoverBlockHeader) + n);
	return value;
}
#endif

struct varlena *
cutover_pack(const char *body, Size len)
{
	struct varlena *value;

#ifdef CUTOVER_USE_ZSTD
	if (len >= PACK_ZSTD_MIN && (value = pack_zstd(body, len)) != NULL)
		return value;
#endif
	value = pack_allocate(0, len);
	memcpy(VARDATA(value) + sizeof(CutoverBlockHeader), body, len);
#ifdef USE_LZ4
	if (len > PACK_LZ4_MIN)
	{
		Datum		packed = toast_compress_datum(PointerGetDatum(value), TOAST_LZ4_COMPRESSION);

		if (DatumGetPointer(packed) != NULL)
		{
			pfree(value);
			return (struct varlena *) DatumGetPointer(packed);
		}
	}
#endif
	return value;
}

/*
 * Uncompress a body.
 */
static char *
unpack_zstd(const char *data, Size size, Size *len, const char **why)
{
#ifdef CUTOVER_USE_ZSTD
	unsigned long long n = ZSTD_getFrameContentSize(data, size);
	char	   *body;

	if (n == ZSTD_CONTENTSIZE_UNKNOWN || n == ZSTD_CONTENTSIZE_ERROR || !AllocSizeIsValid(n + 1))
	{
		*why = "its compressed part is damaged";
		return NULL;
	}
	body = palloc(n + 1);
	if (ZSTD_decompress(body, n, data, size) != n)
	{
		*why = "its compressed part is damaged";
		return NULL;
	}
	*len = n;
	return body;
#else
	*why = "it is compressed with zstd, which this build lacks";
	return NULL;
#endif
}

char *
cutover_unpack(struct varlena *value, Size *len, const char **why)
{
	struct varlena *flat = PG_DETOAST_DATUM_PACKED(PointerGetDatum(value));
	const char *data = VARDATA_ANY(flat);
	Size		size = VARSIZE_ANY_EXHDR(flat);
	CutoverBlockHeader header;
	char	   *body;

	if (size < sizeof(header))
	{
		*why = "it ends too early";
		return NULL;
	}
	memcpy(&header, data, sizeof(header));
	data += sizeof(header);
	size -= sizeof(header);
	if (header.version != CUTOVER_BLOCK_VERSION || (header.flags & ~CUTOVER_BLOCK_ZSTD) != 0 || header.reserved != 0)
	{
		*why = "its version is unknown";
		return NULL;
	}
	if (header.flags & CUTOVER_BLOCK_ZSTD)
		return unpack_zstd(data, size, len, why);
	body = palloc(size + 1);
	memcpy(body, data, size);
	*len = size;
	return body;
}
