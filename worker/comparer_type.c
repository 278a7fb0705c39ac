/*
 * comparer_type.c - in which form a column's values are digested.
 *
 * Both sides compute the digest of a row from record_send(ROW(...)): for each
 * column a length (-1 for NULL) and the bytes of its binary form, which no
 * setting changes and every version of PostgreSQL since 13 makes alike.  So
 * NULL and '' differ, no value can pass for two, and what prints differently
 * (1.0 and 1.00, -0 and 0, other blanks) has other bytes.
 *
 * Types without such a form enter as text under pinned settings: those whose
 * binary form holds numbers of the server's catalogs (arrays, enums, rows,
 * reg*), floats (a NaN has many), and types that came later than the server.
 * Where the two columns are of different types, old's value is first turned
 * into what new's input makes of it.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "comparer.h"

/*
 * Types whose binary form is the same on all servers, and tells apart what
 * their text form does.
 */
static bool
type_is_binary(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BYTEAOID:
		case CHAROID:
		case NAMEOID:
		case INT8OID:
		case INT2OID:
		case INT4OID:
		case TEXTOID:
		case OIDOID:
		case XIDOID:
		case CIDOID:
		case TIDOID:
		case JSONOID:
		case JSONBOID:
		case XID8OID:
		case MACADDROID:
		case MACADDR8OID:
		case INETOID:
		case CIDROID:
		case BPCHAROID:
		case VARCHAROID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case INTERVALOID:
		case TIMETZOID:
		case BITOID:
		case VARBITOID:
		case NUMERICOID:
		case UUIDOID:
		case LSNOID:
			return true;
		default:
			return false;
	}
}

static bool
type_is_text(Oid type)
{
	return type == TEXTOID || type == VARCHAROID;
}

static bool
type_is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

/*
 * What the type's output function makes of a value.  A cast to text may do
 * something else (char(n) loses its blanks, inet gains a mask); composite
 * values whose fields are all NULL are not NULL.
 */
char *
cutover_compare_text(const char *expr, Oid type)
{
	if (type_is_text(type) || type_is_integer(type))
		return psprintf("(%s)::pg_catalog.text", expr);
	return psprintf("CASE WHEN (%s) IS DISTINCT FROM NULL THEN pg_catalog.format('%%s', %s) END", expr, expr);
}

/*
 * A value of a built-in type in the digest.
 */
static char *
type_digest(const char *expr, const ComparerType *type)
{
	if (type->oid < FirstGenbkiObjectId && type_is_binary(type->oid))
		return psprintf("(%s)::%s", expr, type->name);
	return cutover_compare_text(expr, type->oid);
}

/*
 * Old's value as new's input function would take it.  What is too long for a
 * string type was refused there, so nothing is cut here.
 */
static char *
type_convert(const char *text, const ComparerType *to)
{
	bool		string = to->oid == VARCHAROID || to->oid == BITOID || to->oid == VARBITOID;

	if (type_is_text(to->oid))
		return pstrdup(text);
	return psprintf("(%s)::%s", text, string ? to->name : to->full_name);
}

/*
 * Do values of this type change when they are assigned to a column with
 * another modifier, but remain what they were?
 */
static bool
type_is_scaled(Oid type)
{
	return type == NUMERICOID || type == TIMEOID || type == TIMETZOID || type == TIMESTAMPOID ||
		type == TIMESTAMPTZOID || type == INTERVALOID;
}

/*
 * Fill in digest, text and equality of a column whose expressions and types are known.
 */
void
cutover_compare_plan_column(CompareColumn *col)
{
	const ComparerType *old = &col->type[COMPARE_OLD];
	const ComparerType *new = &col->type[COMPARE_NEW];
	const char *old_text = cutover_compare_text(col->expr[COMPARE_OLD], old->oid);
	bool		builtin = old->oid < FirstGenbkiObjectId && new->oid < FirstGenbkiObjectId;

	col->text[COMPARE_NEW] = cutover_compare_text(col->expr[COMPARE_NEW], new->oid);
	col->text[COMPARE_OLD] = pstrdup(old_text);
	col->equal_type = builtin && old->oid == new->oid ? old->oid :
		!builtin && strcmp(old->name, new->name) == 0 ? old->oid : InvalidOid;
	if (builtin && (old->oid == BPCHAROID || new->oid == BPCHAROID) &&
		(old->oid != new->oid || old->typmod != new->typmod) && new->oid == BPCHAROID)
	{
		/* trailing blanks are the column's, not the value's */
		for (int side = 0; side < 2; side++)
			col->digest[side] = col->text[side] = psprintf("((%s)::pg_catalog.bpchar)::pg_catalog.text", col->expr[side]);
	}
	else if (builtin && old->oid == new->oid && (old->typmod == new->typmod || !type_is_scaled(old->oid)))
	{
		for (int side = 0; side < 2; side++)
			col->digest[side] = type_digest(col->expr[side], &col->type[side]);
	}
	else if (builtin && type_is_integer(old->oid) && type_is_integer(new->oid))
	{
		for (int side = 0; side < 2; side++)
			col->digest[side] = psprintf("(%s)::pg_catalog.int8", col->expr[side]);
	}
	else if (new->oid < FirstGenbkiObjectId)
	{
		char	   *converted = old->oid == new->oid ?
			psprintf("(%s)::%s", col->expr[COMPARE_OLD], new->full_name) : type_convert(old_text, new);

		col->digest[COMPARE_OLD] = type_is_text(new->oid) ? converted : type_digest(converted, new);
		col->digest[COMPARE_NEW] = type_is_text(new->oid) ? col->text[COMPARE_NEW] : type_digest(col->expr[COMPARE_NEW], new);
		col->text[COMPARE_OLD] = cutover_compare_text(converted, new->oid);
		col->equal_type = new->oid;
	}
	else
	{
		for (int side = 0; side < 2; side++)
			col->digest[side] = col->text[side];
	}
}

/*
 * Types that both servers order alike, text apart.
 */
static bool
type_is_ordered(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case BYTEAOID:
		case NAMEOID:
		case INT8OID:
		case INT2OID:
		case INT4OID:
		case OIDOID:
		case TIDOID:
		case XID8OID:
		case MACADDROID:
		case MACADDR8OID:
		case INETOID:
		case CIDROID:
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case INTERVALOID:
		case BITOID:
		case VARBITOID:
		case NUMERICOID:
		case FLOAT4OID:
		case FLOAT8OID:
		case CASHOID:
		case UUIDOID:
		case LSNOID:
			return true;
		default:
			return false;
	}
}

/*
 * Find an order for a column of the key.
 */
void
cutover_compare_plan_key(CompareKey *key)
{
	CompareColumn *col = key->column;
	Oid			old = col->type[COMPARE_OLD].oid;
	Oid			new = col->type[COMPARE_NEW].oid;

	if ((type_is_text(old) && type_is_text(new)) || (old == BPCHAROID && new == BPCHAROID))
	{
		key->order_type = old == BPCHAROID ? "pg_catalog.bpchar" : "pg_catalog.text";
		for (int side = 0; side < 2; side++)
			/* an index in another collation is of no use, but neither is an order that the sides don't share */
			key->order[side] = col->type[side].bytewise ? col->expr[side] :
				psprintf("(%s) COLLATE pg_catalog.\"C\"", col->expr[side]);
	}
	else if ((type_is_integer(old) && type_is_integer(new)) || (old == new && type_is_ordered(old)))
	{
		key->order_type = type_is_integer(old) ? "pg_catalog.int8" : col->type[COMPARE_OLD].name;
		for (int side = 0; side < 2; side++)
			key->order[side] = col->expr[side];
	}
}
