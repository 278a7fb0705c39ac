/*
 * shadow_settings.c - the settings of a session that the result of its SELECT depends on.
 *
 * They travel with the statement, so that the worker reads the text as the
 * session did, and new evaluates it under the same.  Packing them for each
 * statement would cost more than all the rest, so a session looks at the
 * variables behind them and packs anew when one has changed.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "parser/parse_expr.h"
#include "parser/parser.h"
#include "pgtime.h"
#include "tsearch/ts_cache.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/xml.h"

#include "shadow.h"

/* of utils/pg_locale.h, which asks for the headers of ICU */
extern PGDLLIMPORT char *locale_monetary;
extern PGDLLIMPORT char *locale_numeric;
extern PGDLLIMPORT char *locale_time;

/* In this order they are packed. */
static const struct
{
	const char *name;
	bool		on_new;			/* new needs it too: the rest is for reading the text */
}			settings[] =
{
	{"search_path", false},
	{"standard_conforming_strings", false},
	{"transform_null_equals", false},
	{"array_nulls", true},
	{"TimeZone", true},
	{"DateStyle", true},
	{"IntervalStyle", true},
	{"extra_float_digits", true},
	{"bytea_output", true},
	{"lc_monetary", true},
	{"lc_numeric", true},
	{"lc_time", true},
	{"xmlbinary", true},
	{"xmloption", true},
	{"default_text_search_config", true},
};

/* The variables behind them. */
typedef struct SettingsState
{
	bool		conforming;
	bool		null_equals;
	bool		array_nulls;
	pg_tz	   *timezone;
	int			date_style;
	int			date_order;
	int			interval_style;
	int			float_digits;
	int			bytea_output;
	int			xmlbinary;
	int			xmloption;
} SettingsState;

/* The same for those that are strings; a freed one's address says nothing. */
#define SETTINGS_STRINGS 5

static const char *
settings_string(int i)
{
	const char *strings[SETTINGS_STRINGS] = {namespace_search_path, locale_monetary, locale_numeric, locale_time, TSCurrentConfig};

	return strings[i] ? strings[i] : "";
}

/*
 * Look at the variables.
 */
static void
settings_look(SettingsState *state)
{
	memset(state, 0, sizeof(*state));
	state->conforming = standard_conforming_strings;
	state->null_equals = Transform_null_equals;
	state->array_nulls = Array_nulls;
	state->timezone = session_timezone;
	state->date_style = DateStyle;
	state->date_order = DateOrder;
	state->interval_style = IntervalStyle;
	state->float_digits = extra_float_digits;
	state->bytea_output = bytea_output;
	state->xmlbinary = xmlbinary;
	state->xmloption = xmloption;
}

const char *
cutover_shadow_settings_pack(int *len)
{
	static StringInfoData packed = {0};
	static SettingsState known;
	static char *known_strings[SETTINGS_STRINGS];
	SettingsState state;
	bool		same;

	settings_look(&state);
	same = packed.len > 0 && memcmp(&state, &known, sizeof(state)) == 0;
	for (int i = 0; same && i < SETTINGS_STRINGS; i++)
		same = strcmp(known_strings[i], settings_string(i)) == 0;
	if (!same)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		if (packed.data == NULL)
			initStringInfo(&packed);
		resetStringInfo(&packed);
		for (int i = 0; i < lengthof(settings); i++)
		{
			appendStringInfoString(&packed, GetConfigOption(settings[i].name, false, false));
			appendStringInfoChar(&packed, '\0');
		}
		for (int i = 0; i < SETTINGS_STRINGS; i++)
		{
			if (known_strings[i])
				pfree(known_strings[i]);
			known_strings[i] = pstrdup(settings_string(i));
		}
		known = state;
		MemoryContextSwitchTo(old);
	}
	*len = packed.len;
	return packed.data;
}

void
cutover_shadow_settings_apply(const char *packed)
{
	for (int i = 0; i < lengthof(settings); i++)
	{
		(void) set_config_option(settings[i].name, packed, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		packed += strlen(packed) + 1;
	}
}

char *
cutover_shadow_settings_sql(const char *packed)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < lengthof(settings); i++)
	{
		if (settings[i].on_new)
			appendStringInfo(&sql, "%sSET %s = %s", sql.len ? "; " : "", settings[i].name, quote_literal_cstr(packed));
		packed += strlen(packed) + 1;
	}
	return sql.data;
}

void
cutover_shadow_settings_forms(const char *packed, bool *floats, bool *times)
{
	*floats = *times = false;
	for (int i = 0; i < lengthof(settings); i++)
	{
		if (strcmp(settings[i].name, "extra_float_digits") == 0)
			*floats = atoi(packed) > 0;
		else if (strcmp(settings[i].name, "DateStyle") == 0)
			*times = strncmp(packed, "ISO", 3) == 0;
		packed += strlen(packed) + 1;
	}
}
