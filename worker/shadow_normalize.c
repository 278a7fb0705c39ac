/*
 * shadow_normalize.c - the text of a statement without its constants.
 *
 * Constants may be what only some may read, and one statement shall have one
 * text.  Where they stand is known from the computation of the query id, how
 * long they are, from the server's lexer.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "parser/scanner.h"

#include "compat.h"
#include "shadow_normalize.h"

/* Longest text that is kept. */
#define NORMALIZE_MAX 2000

static int
normalize_compare(const void *a, const void *b)
{
	return ((const LocationLen *) a)->location - ((const LocationLen *) b)->location;
}

/*
 * Length of the constant that begins at text + start; 0 if there is none.
 */
static int
normalize_length(const char *text, int start)
{
	core_yyscan_t scanner;
	core_yy_extra_type extra;
	core_YYSTYPE value;
	YYLTYPE		location = 0;
	int			token;
	int			length = 0;

	scanner = scanner_init(text + start, &extra, &ScanKeywords, ScanKeywordTokens);
	/* we do not want warnings again */
	extra.escape_string_warning = false;
	token = core_yylex(&value, &location, scanner);
	/* the place of a negative number is that of its sign */
	if (token == '-')
		token = core_yylex(&value, &location, scanner);
	/* the lexer ends its buffer with a zero after the token it has read */
	if (token != 0)
		length = strlen(extra.scanbuf);
	scanner_finish(scanner);
	return length;
}

/*
 * Append with white space put together.
 */
static void
normalize_append(StringInfo out, const char *text, int len)
{
	for (int i = 0; i < len; i++)
	{
		char		c = text[i];

		if (c == '\n' || c == '\t' || c == '\r')
			c = ' ';
		if (c == ' ' && (out->len == 0 || out->data[out->len - 1] == ' '))
			continue;
		appendStringInfoChar(out, c);
	}
}

char *
cutover_shadow_normalize(const char *text, JumbleState *jumble)
{
	StringInfoData out;
	int			done = 0;
	int			number = jumble->highest_extern_param_id;

	initStringInfo(&out);
	qsort(jumble->clocations, jumble->clocations_count, sizeof(LocationLen), normalize_compare);
	for (int i = 0; i < jumble->clocations_count; i++)
	{
		int			start = jumble->clocations[i].location;
		int			length = jumble->clocations[i].length;

#if PG_VERSION_NUM >= 180000
		/* a parameter stays what it is */
		if (jumble->clocations[i].extern_param)
			continue;
#endif
		if (start < done || start >= (int) strlen(text))
			continue;
		if (length <= 0)
			length = normalize_length(text, start);
		if (length <= 0)
			continue;
		normalize_append(&out, text + done, start - done);
		appendStringInfo(&out, "$%d", ++number);
		done = start + length;
	}
	normalize_append(&out, text + done, strlen(text) - done);
	while (out.len > 0 && (out.data[out.len - 1] == ' ' || out.data[out.len - 1] == ';'))
		out.data[--out.len] = '\0';
	if (out.len > NORMALIZE_MAX)
	{
		int			len = pg_mbcliplen(out.data, out.len, NORMALIZE_MAX);

		out.data[len] = '\0';
	}
	return out.data;
}
