/*
 * route_function.c - which functions give the same result on new.
 *
 * Only built-in ones may: others would have to be compared, and may read tables.
 * Immutable ones do.  Stable ones depend on something else than their
 * arguments: on settings, which new can be given, or on who asks, where and
 * when, which only old can answer.  Lists are of names, sorted.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_proc.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

#include "route.h"

/* Stable only because of settings, or of output functions that are so. */
static const char *const by_settings[] = {
	"anytextcat", "array_in", "array_out", "array_to_json", "array_to_string", "cash_in", "cash_out", "concat",
	"concat_ws", "convert", "convert_from", "convert_to", "date", "date_add", "date_cmp_timestamptz",
	"date_eq_timestamptz", "date_ge_timestamptz", "date_gt_timestamptz", "date_in", "date_le_timestamptz",
	"date_lt_timestamptz", "date_ne_timestamptz", "date_out", "date_part", "date_subtract", "date_trunc",
	"domain_in", "enum_first", "enum_in", "enum_last", "enum_out", "enum_range", "extract", "format",
	"generate_series", "in_range", "interval_in", "interval_out", "interval_pl_timestamptz", "json_agg",
	"json_agg_strict", "json_agg_strict_transfn", "json_agg_transfn", "json_build_array", "json_build_object",
	"json_object_agg", "json_object_agg_strict", "json_object_agg_transfn", "json_object_agg_unique",
	"json_object_agg_unique_strict", "json_populate_record", "json_populate_recordset", "json_to_record",
	"json_to_recordset", "json_to_tsvector", "jsonb_agg", "jsonb_agg_finalfn", "jsonb_agg_strict",
	"jsonb_agg_strict_transfn", "jsonb_agg_transfn", "jsonb_build_array", "jsonb_build_object", "jsonb_object_agg",
	"jsonb_object_agg_finalfn", "jsonb_object_agg_strict", "jsonb_object_agg_transfn", "jsonb_object_agg_unique",
	"jsonb_object_agg_unique_strict", "jsonb_path_exists_tz", "jsonb_path_match_tz", "jsonb_path_query_array_tz",
	"jsonb_path_query_first_tz", "jsonb_path_query_tz", "jsonb_populate_record", "jsonb_populate_recordset",
	"jsonb_to_record", "jsonb_to_recordset", "jsonb_to_tsvector", "length", "make_timestamptz", "money",
	"multirange_in", "multirange_out", "numeric", "overlaps", "phraseto_tsquery", "plainto_tsquery",
	"quote_literal", "quote_nullable", "range_in", "range_out", "record_in", "record_out", "row_to_json",
	"textanycat", "time", "time_in", "timestamp", "timestamp_cmp_timestamptz", "timestamp_eq_timestamptz",
	"timestamp_ge_timestamptz", "timestamp_gt_timestamptz", "timestamp_in", "timestamp_le_timestamptz",
	"timestamp_lt_timestamptz", "timestamp_ne_timestamptz", "timestamp_out", "timestamptz", "timestamptz_cmp_date",
	"timestamptz_cmp_timestamp", "timestamptz_eq_date", "timestamptz_eq_timestamp", "timestamptz_ge_date",
	"timestamptz_ge_timestamp", "timestamptz_gt_date", "timestamptz_gt_timestamp", "timestamptz_in",
	"timestamptz_le_date", "timestamptz_le_timestamp", "timestamptz_lt_date", "timestamptz_lt_timestamp",
	"timestamptz_mi_interval", "timestamptz_ne_date", "timestamptz_ne_timestamp", "timestamptz_out",
	"timestamptz_pl_interval", "timetz_in", "timezone", "to_char", "to_date", "to_json", "to_jsonb", "to_number",
	"to_timestamp", "to_tsquery", "to_tsvector", "ts_headline", "ts_match_tq", "ts_match_tt",
	"websearch_to_tsquery", "xml", "xml_in", "xml_is_well_formed"
};

/* Get a collation, and do not look at more than whether bytes are equal. */
static const char *const ignore_collation[] = {
	"array_agg", "array_append", "array_cat", "array_length", "array_to_string", "bit_length", "bpchar", "bpchareq", "bpcharne",
	"btrim", "char_length", "character_length", "coalesce", "concat", "concat_ws", "count", "format", "hashtext", "json_agg",
	"json_build_array", "json_build_object", "json_object_agg", "jsonb_agg", "jsonb_build_array",
	"jsonb_build_object", "jsonb_object_agg", "left", "length", "lpad", "ltrim", "md5", "octet_length", "overlay",
	"position", "quote_ident", "quote_literal", "quote_nullable", "repeat", "replace", "reverse", "right",
	"row_to_json", "rpad", "rtrim", "split_part", "starts_with", "string_agg", "strpos", "substr",
	"text", "textanycat", "textcat", "texteq", "textlen", "textlike", "textne", "textnlike", "to_char", "to_date",
	"to_json", "to_jsonb", "to_number", "to_timestamp", "translate", "unnest", "varchar", "bpcharlike", "bpcharnlike"
};

static int
function_compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/*
 * Is the function's name in a sorted list?
 */
static bool
function_listed(Oid function, const char *const *names, int n)
{
	char	   *name = get_func_name(function);
	bool		found;

	if (name == NULL)
		return false;
	found = bsearch(&name, names, n, sizeof(char *), function_compare_names) != NULL;
	pfree(name);
	return found;
}

/*
 * Where may this function be computed?
 */
RouteVolatility
cutover_route_function(Oid function)
{
	char		volatility;

	if (function >= FirstUnpinnedObjectId)
		return ROUTE_NOWHERE;
	volatility = func_volatile(function);
	/* immutable by declaration only */
	if (function == F_FLOAT4OUT || function == F_FLOAT8OUT || function == F_BYTEAOUT)
		return ROUTE_SETTINGS;
	if (volatility == PROVOLATILE_IMMUTABLE)
		return ROUTE_ANYWHERE;
	/* stable by declaration only: these give the transaction a number */
	if (volatility == PROVOLATILE_VOLATILE || function == F_PG_CURRENT_XACT_ID || function == F_TXID_CURRENT)
		return ROUTE_NOWHERE;
	return function_listed(function, by_settings, lengthof(by_settings)) ? ROUTE_SETTINGS : ROUTE_FOLD;
}

/*
 * Does it not matter to this function which collation it gets?
 */
bool
cutover_route_ignores_collation(Oid function)
{
	char	   *name = get_func_name(function);
	bool		found = false;

	/* not sorted: asked only at planning, and only for functions on text */
	for (int i = 0; name && i < lengthof(ignore_collation) && !found; i++)
		found = strcmp(name, ignore_collation[i]) == 0;
	return found;
}
