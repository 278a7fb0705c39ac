/*
 * shadow_hash.c - one number for a row, the same from old's values and from new's text.
 *
 * Used by sessions, for rows on their way to the client, and by shadow workers,
 * for the text that new sent.  Making text costs far more than hashing, so
 * common types are hashed as they lie in memory, and the worker reads new's
 * text into the same form.  For other types both sides hash the text.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#include "shadow_hash.h"

#define HASH_MULTIPLIER UINT64CONST(0x9FB21C651E98DF25)
#define HASH_MAX_VALUE (1024 * 1024)
#define HASH_NULL UINT64CONST(0xA0761D6478BD642F)

/*
 * Spread the bits.
 */
static inline uint64
hash_mix(uint64 h)
{
	h ^= h >> 32;
	h *= HASH_MULTIPLIER;
	h ^= h >> 29;
	return h;
}

/*
 * Hash bytes, eight at a time.
 */
uint64
cutover_shadow_hash_bytes(const char *data, size_t len, uint64 seed)
{
	uint64		h = seed ^ (len * HASH_MULTIPLIER);
	uint64		word;

	while (len >= sizeof(word))
	{
		memcpy(&word, data, sizeof(word));
		h = (h ^ word) * HASH_MULTIPLIER;
		h ^= h >> 32;
		data += sizeof(word);
		len -= sizeof(word);
	}
	word = 0;
	memcpy(&word, data, len);
	return hash_mix(h ^ word);
}

/*
 * The form for a type.
 */
static CutoverShadowForm
hash_form(Oid type, bool floats, bool times)
{
	switch (type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
			return CUTOVER_SHADOW_NUMBER;
		case FLOAT4OID:
		case FLOAT8OID:
			return floats ? CUTOVER_SHADOW_NUMBER : CUTOVER_SHADOW_TEXT;
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return times ? CUTOVER_SHADOW_NUMBER : CUTOVER_SHADOW_TEXT;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return CUTOVER_SHADOW_BYTES;
		case UUIDOID:
			return CUTOVER_SHADOW_FIXED;
		case BYTEAOID:
			return CUTOVER_SHADOW_BINARY;
		default:
			return CUTOVER_SHADOW_TEXT;
	}
}

CutoverShadowColumn *
cutover_shadow_hash_columns(int natts, const Oid *types, bool floats, bool times, bool for_input)
{
	CutoverShadowColumn *columns = palloc0(sizeof(CutoverShadowColumn) * Max(natts, 1));

	for (int i = 0; i < natts; i++)
	{
		Oid			type = getBaseType(types[i]);
		CutoverShadowColumn *column = &columns[i];
		Oid			function;
		bool		varlena;

		column->form = hash_form(type, floats, times);
#ifndef USE_FLOAT8_BYVAL
		/* eight bytes are passed by reference there */
		if (column->form == CUTOVER_SHADOW_NUMBER && get_typlen(type) == 8)
			column->form = CUTOVER_SHADOW_TEXT;
#endif
		column->typlen = get_typlen(type);
		if (for_input && column->form != CUTOVER_SHADOW_TEXT && column->form != CUTOVER_SHADOW_BYTES)
		{
			getTypeInputInfo(type, &function, &column->typioparam);
			fmgr_info(function, &column->fn);
		}
		else if (column->form == CUTOVER_SHADOW_TEXT)
		{
			getTypeOutputInfo(type, &function, &varlena);
			fmgr_info(function, &column->fn);
		}
	}
	return columns;
}

bool
cutover_shadow_hash_allocates(const CutoverShadowColumn *columns, int natts)
{
	for (int i = 0; i < natts; i++)
		if (columns[i].form != CUTOVER_SHADOW_NUMBER && columns[i].form != CUTOVER_SHADOW_FIXED &&
			columns[i].form != CUTOVER_SHADOW_IGNORED)
			return true;
	return false;
}

bool
cutover_shadow_hash_too_large(const CutoverShadowColumn *columns, int natts, const Datum *values, const bool *nulls)
{
	for (int i = 0; i < natts; i++)
		if (columns[i].typlen == -1 && !nulls[i])
		{
			struct varlena *value = (struct varlena *) DatumGetPointer(values[i]);

			if (VARATT_IS_EXTENDED(value) && !VARATT_IS_SHORT(value) ?
				toast_raw_datum_size(values[i]) > HASH_MAX_VALUE : VARSIZE_ANY(value) > HASH_MAX_VALUE)
				return true;
		}
	return false;
}

/*
 * Bits of a value passed by value.
 */
static inline uint64
hash_number(Datum value, int16 typlen)
{
	switch (typlen)
	{
		case 1:
			return (uint8) DatumGetChar(value);
		case 2:
			return (uint16) DatumGetInt16(value);
		case 4:
			return (uint32) DatumGetInt32(value);
		default:
			return (uint64) value;
	}
}

/*
 * Hash bytes of a variable length value.
 */
static uint64
hash_varlena(Datum value, uint64 h)
{
	struct varlena *data = PG_DETOAST_DATUM_PACKED(value);

	h = cutover_shadow_hash_bytes(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), h);
	if ((Pointer) data != DatumGetPointer(value))
		pfree(data);
	return h;
}

uint64
cutover_shadow_hash_values(const CutoverShadowColumn *columns, int natts, const Datum *values, const bool *nulls)
{
	uint64		h = natts;

	for (int i = 0; i < natts; i++)
	{
		const CutoverShadowColumn *column = &columns[i];
		char	   *text;

		if (column->form == CUTOVER_SHADOW_IGNORED)
			continue;
		if (nulls[i])
		{
			h = hash_mix(h ^ HASH_NULL);
			continue;
		}
		switch (column->form)
		{
			case CUTOVER_SHADOW_NUMBER:
				h = (h + 1) * HASH_MULTIPLIER;
				h = hash_mix(h ^ hash_number(values[i], column->typlen));
				break;
			case CUTOVER_SHADOW_FIXED:
				h = cutover_shadow_hash_bytes((char *) DatumGetPointer(values[i]), UUID_LEN, h);
				break;
			case CUTOVER_SHADOW_BYTES:
			case CUTOVER_SHADOW_BINARY:
				h = hash_varlena(values[i], h);
				break;
			default:
				text = OutputFunctionCall((FmgrInfo *) &column->fn, values[i]);
				h = cutover_shadow_hash_bytes(text, strlen(text), h);
				pfree(text);
				break;
		}
	}
	return hash_mix(h);
}

uint64
cutover_shadow_hash_texts(CutoverShadowColumn *columns, int natts, char *const *values)
{
	uint64		h = natts;

	for (int i = 0; i < natts; i++)
	{
		CutoverShadowColumn *column = &columns[i];
		Datum		value;

		if (column->form == CUTOVER_SHADOW_IGNORED)
			continue;
		if (values[i] == NULL)
		{
			h = hash_mix(h ^ HASH_NULL);
			continue;
		}
		if (column->form == CUTOVER_SHADOW_TEXT || column->form == CUTOVER_SHADOW_BYTES)
		{
			h = cutover_shadow_hash_bytes(values[i], strlen(values[i]), h);
			continue;
		}
		value = InputFunctionCall(&column->fn, values[i], column->typioparam, -1);
		if (column->form == CUTOVER_SHADOW_NUMBER)
		{
			h = (h + 1) * HASH_MULTIPLIER;
			h = hash_mix(h ^ hash_number(value, column->typlen));
		}
		else if (column->form == CUTOVER_SHADOW_FIXED)
			h = cutover_shadow_hash_bytes((char *) DatumGetPointer(value), UUID_LEN, h);
		else
			h = hash_varlena(value, h);
	}
	return hash_mix(h);
}
