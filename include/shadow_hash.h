/*
 * shadow_hash.h - one number for a row, the same from old's values and from new's text.
 */
#ifndef CUTOVER_SHADOW_HASH_H
#define CUTOVER_SHADOW_HASH_H

#include "access/tupdesc.h"
#include "executor/tuptable.h"
#include "fmgr.h"

/* How the values of a column are hashed. */
typedef enum CutoverShadowForm
{
	CUTOVER_SHADOW_NUMBER,		/* passed by value: its bits; new's text is read by the input function */
	CUTOVER_SHADOW_BYTES,		/* text and its like: the bytes are the text */
	CUTOVER_SHADOW_FIXED,		/* uuid: the bytes; new's text is read by the input function */
	CUTOVER_SHADOW_BINARY,		/* bytea: the bytes; new's text is read by the input function */
	CUTOVER_SHADOW_TEXT,		/* any other: the text form */
	CUTOVER_SHADOW_IGNORED		/* may differ */
} CutoverShadowForm;

typedef struct CutoverShadowColumn
{
	CutoverShadowForm form;
	int16		typlen;
	FmgrInfo	fn;				/* output (session) or input (worker) function, where form needs one */
	Oid			typioparam;
} CutoverShadowColumn;

/* What came of a result. */
typedef struct CutoverShadowSum
{
	uint64		rows;
	uint64		set_hash;
	uint64		list_hash;
} CutoverShadowSum;

/*
 * How the columns of a result are hashed.  floats and times: their text forms
 * are exact under the session's settings.  for_input prepares to read text.
 */
extern CutoverShadowColumn *cutover_shadow_hash_columns(int natts, const Oid *types, bool floats, bool times, bool for_input);

/* Does hashing values of these columns allocate memory? */
extern bool cutover_shadow_hash_allocates(const CutoverShadowColumn *columns, int natts);

/* Is one of the values so large that hashing it would be felt? */
extern bool cutover_shadow_hash_too_large(const CutoverShadowColumn *columns, int natts, const Datum *values, const bool *nulls);

extern uint64 cutover_shadow_hash_values(const CutoverShadowColumn *columns, int natts, const Datum *values, const bool *nulls);
extern uint64 cutover_shadow_hash_texts(CutoverShadowColumn *columns, int natts, char *const *values);
extern uint64 cutover_shadow_hash_bytes(const char *data, size_t len, uint64 seed);

static inline void
cutover_shadow_hash_add(CutoverShadowSum *sum, uint64 row)
{
	sum->rows++;
	sum->set_hash += row;
	sum->list_hash = sum->list_hash * UINT64CONST(0x9E3779B97F4A7C15) + row;
}

#endif							/* CUTOVER_SHADOW_HASH_H */
