/*
 * remote.c - SQL functions that reach new from a client's backend.
 *
 * All of them are internal and run as the extension's owner, called by
 * functions that check who asks.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "compat.h"
#include "endpoint.h"
#include "remote.h"

PG_FUNCTION_INFO_V1(cutover_remote);
PG_FUNCTION_INFO_V1(cutover_remote_check);
PG_FUNCTION_INFO_V1(cutover_remote_parse_conninfo);
PG_FUNCTION_INFO_V1(cutover_remote_fdw_validator);

static Datum remote_row_to_jsonb(const CutoverRows *rows, int row);
static void remote_push_string(JsonbParseState **state, JsonbIteratorToken token, const char *value);

/*
 * _remote(server, sql, args): run a statement on new.
 */
Datum
cutover_remote(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("server and sql must not be null"),
				errdetail("Both are needed to run a statement on new."),
				errhint("Give the name of a foreign server and a statement."));
	cutover_remote_run(cutover_endpoint_in_xact(NameStr(*PG_GETARG_NAME(0))), fcinfo, 1);
	return (Datum) 0;
}

/*
 * Run the statement in an argument, with the parameters in the next one, and
 * return its rows as the function's set.
 */
void
cutover_remote_run(CutoverEndpoint *ep, FunctionCallInfo fcinfo, int sqlarg)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(sqlarg));
	const char **values = NULL;
	int			nargs = 0;
	CutoverRows *rows;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (!PG_ARGISNULL(sqlarg + 1))
	{
		Datum	   *elems;
		bool	   *nulls;

		deconstruct_array(PG_GETARG_ARRAYTYPE_P(sqlarg + 1), TEXTOID, -1, false, TYPALIGN_INT, &elems, &nulls, &nargs);
		values = palloc(sizeof(char *) * Max(nargs, 1));
		for (int i = 0; i < nargs; i++)
			values[i] = nulls[i] ? NULL : TextDatumGetCString(elems[i]);
	}
	rows = nargs > 0 ? cutover_endpoint_exec_params(ep, sql, nargs, values) : cutover_endpoint_exec(ep, sql);
	for (int i = 0; i < rows->nrows; i++)
	{
		Datum		value = remote_row_to_jsonb(rows, i);
		bool		isnull = false;

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
	}
}

/*
 * A row as an object of strings and nulls.
 */
static Datum
remote_row_to_jsonb(const CutoverRows *rows, int row)
{
	JsonbParseState *state = NULL;
	JsonbValue *object;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < rows->ncols; i++)
	{
		remote_push_string(&state, WJB_KEY, rows->names[i]);
		remote_push_string(&state, WJB_VALUE, CUTOVER_CELL(rows, row, i));
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(object));
}

/*
 * Push a string, or null.
 */
static void
remote_push_string(JsonbParseState **state, JsonbIteratorToken token, const char *value)
{
	JsonbValue	v;

	if (value == NULL)
		v.type = jbvNull;
	else
	{
		v.type = jbvString;
		v.val.string.val = unconstify(char *, value);
		v.val.string.len = strlen(value);
	}
	pushJsonbValue(state, token, &v);
}

/*
 * _remote_check(conninfo): what is there?
 */
Datum
cutover_remote_check(PG_FUNCTION_ARGS)
{
	CutoverEndpoint *ep = cutover_endpoint_connect_info(text_to_cstring(PG_GETARG_TEXT_PP(0)), "cutover");
	volatile Datum result = (Datum) 0;

	PG_TRY();
	{
		CutoverRows *rows;
		bool		control;

		/* granted to superusers and pg_monitor, as a rule; not there on every engine */
		rows = cutover_endpoint_exec(ep,
									 "SELECT coalesce((SELECT has_function_privilege(p.oid, 'EXECUTE') FROM pg_proc p"
									 " WHERE p.proname = 'pg_control_system' AND p.pronamespace = 'pg_catalog'::regnamespace LIMIT 1), false)");
		control = rows->nrows == 1 && strcmp(CUTOVER_CELL(rows, 0, 0), "t") == 0;
		rows = cutover_endpoint_exec(ep, psprintf(
												  "SELECT current_setting('server_version_num') AS server_version_num,"
												  " %s AS system_identifier,"
												  " d.datname AS current_database, current_user AS current_user,"
												  " r.rolsuper AS is_superuser,"
												  " pg_encoding_to_char(d.encoding) AS server_encoding, d.datcollate AS datcollate,"
												  " pg_is_in_recovery() AS in_recovery, d.oid AS database_oid,"
												  " pg_postmaster_start_time() AS postmaster_start_time,"
												  " %s AS used_password"
												  " FROM pg_database d, pg_roles r"
												  " WHERE d.datname = current_database() AND r.rolname = current_user",
												  control ? "(SELECT system_identifier FROM pg_control_system())" : "NULL::bigint",
												  cutover_endpoint_used_password(ep) ? "true" : "false"));
		if (rows->nrows != 1)
			elog(ERROR, "no description of the database there");
		result = remote_row_to_jsonb(rows, 0);
	}
	PG_FINALLY();
	{
		cutover_endpoint_close(ep);
	}
	PG_END_TRY();
	PG_RETURN_DATUM(result);
}

/*
 * _parse_conninfo(conninfo): its keywords.
 */
Datum
cutover_remote_parse_conninfo(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *options = cutover_endpoint_parse(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, options)
	{
		CutoverOption *option = lfirst(lc);
		Datum		values[3];
		bool		nulls[3] = {false, false, false};

		values[0] = CStringGetTextDatum(option->keyword);
		values[1] = CStringGetTextDatum(option->value);
		values[2] = BoolGetDatum(option->place == CUTOVER_OPTION_MAPPING);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * _fdw_validator(options, catalog): libpq's keywords, each in its place.
 */
Datum
cutover_remote_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst(lc);
		CutoverOptionPlace place = cutover_endpoint_option_place(def->defname);

		if (place == CUTOVER_OPTION_UNKNOWN || place == CUTOVER_OPTION_REFUSED ||
			(catalog != ForeignServerRelationId && catalog != UserMappingRelationId))
			ereport(ERROR,
					errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					errmsg("invalid option \"%s\"", def->defname),
					errdetail("Options of servers and user mappings are the connection keywords of libpq, except those that cutover sets."),
					errhint("Use cutover_add_target() or cutover_set_target()."));
		if (place == CUTOVER_OPTION_MAPPING && catalog == ForeignServerRelationId)
			ereport(ERROR,
					errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					errmsg("option \"%s\" is allowed in user mappings only", def->defname),
					errdetail("Everybody can read the options of a foreign server."),
					errhint("Use cutover_add_target() or cutover_set_target()."));
	}
	PG_RETURN_VOID();
}
