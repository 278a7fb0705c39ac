/*
 * apply_send.c - sets of packed rows on their way to new.
 *
 * A set is cut into statements of limited size, so that new works on one while
 * the next is being sent.  Columns travel as binary text[]: the packed form of
 * a row already holds its values as array elements.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "apply_private.h"

/* A statement's share of a set. */
#define SEND_ROWS	1000
#define SEND_BYTES	(512 * 1024)

/*
 * From here on a set of fresh rows goes as COPY.  It costs new a sixth less, but the pipeline must
 * stand still before and after it, so that new idles while we collect.
 */
#define SEND_COPY_ROWS	20000

/* bytes before the elements of a one-dimensional array */
#define SEND_ARRAY_HEADER 20

/* whole rows to delete that may well be compared with every row of the table */
#define SEND_FEW_ROWS 16

typedef struct SendMissed
{
	CutoverApply *apply;
	CutoverApplyTable *table;
} SendMissed;

static int	send_slice(ApplyGroup *group, int from);
static void send_columns(CutoverApplyTable *table, ApplyGroup *group, int from, int to,
						 CutoverParam *params, StringInfo bufs);
static void send_array_header(char *to, int n);
static void send_statements(CutoverApply *apply, CutoverApplyTable *table, ApplyGroup *group);
static void send_copy(CutoverApply *apply, CutoverApplyTable *table, ApplyGroup *group);
static void send_copy_row(StringInfo buf, CutoverApplyTable *table, const ApplyRow *row);
static void send_escaped(StringInfo buf, const char *value, int len);
static void send_missed(void *arg, CutoverRows *rows);
static int	send_texts(CutoverApplyTable *table, ApplyGroup *group, char **texts);

/*
 * Queue a group of rows.
 */
void
cutover_apply_send_group(CutoverApply *apply, CutoverApplyTable *table, ApplyGroup *group)
{
	cutover_endpoint_run_as(apply->ep, table->run_as);
	if (group->op == CUTOVER_APPLY_INSERT && group->nrows >= SEND_COPY_ROWS && !cutover_endpoint_is_local(apply->ep))
		send_copy(apply, table, group);
	else
		send_statements(apply, table, group);
	cutover_endpoint_run_as(apply->ep, InvalidOid);
}

/*
 * End of the slice that starts at from: few enough rows and bytes for one statement.
 */
static int
send_slice(ApplyGroup *group, int from)
{
	Size		bytes = 0;
	int			to = from;

	while (to < group->nrows && to - from < SEND_ROWS)
	{
		bytes += group->rows[to]->len;
		if (to > from && bytes > SEND_BYTES)
			break;
		to++;
	}
	return to;
}

/*
 * Header of a binary text[] with n elements.
 */
static void
send_array_header(char *to, int n)
{
	uint32		header[5] = {pg_hton32(1), 0, pg_hton32(TEXTOID), pg_hton32(n), pg_hton32(1)};

	memcpy(to, header, SEND_ARRAY_HEADER);
}

/*
 * Turn rows into one array for each column in use; for rows without a key that
 * are deleted, one more with their number.
 */
static void
send_columns(CutoverApplyTable *table, ApplyGroup *group, int from, int to,
			 CutoverParam *params, StringInfo bufs)
{
	int			n = group->only_key ? table->nkeys : table->ncols;
	int			nparams = 0;

	for (int i = 0; i <= n; i++)
	{
		resetStringInfo(&bufs[i]);
		enlargeStringInfo(&bufs[i], SEND_ARRAY_HEADER);
		bufs[i].len = SEND_ARRAY_HEADER;
		send_array_header(bufs[i].data, to - from);
	}
	for (int r = from; r < to; r++)
	{
		const char *p = APPLY_VALUES(group->rows[r]);

		for (int i = 0; i < n; i++)
		{
			uint32		netlen;
			int32		len;

			memcpy(&netlen, p, sizeof(netlen));
			len = (int32) pg_ntoh32(netlen);
			if (len != APPLY_LEN_ABSENT)
				appendBinaryStringInfoNT(&bufs[i], p, sizeof(netlen) + Max(len, 0));
			p += sizeof(netlen) + Max(len, 0);
		}
		if (table->nkeys == 0)
		{
			char		count[32];
			int64		times = group->rows[r]->count;
			int32		len = snprintf(count, sizeof(count), INT64_FORMAT, times < 0 ? -times : times);
			uint32		netlen = pg_hton32((uint32) len);

			appendBinaryStringInfoNT(&bufs[n], (char *) &netlen, sizeof(netlen));
			appendBinaryStringInfoNT(&bufs[n], count, len);
		}
	}
	for (int i = 0; i <= n; i++)
		if (i == n || group->only_key || !bms_is_member(i, group->absent))
		{
			params[nparams].data = bufs[i].data;
			params[nparams].len = bufs[i].len;
			params[nparams++].binary = true;
		}
}

/*
 * The statements that write a group, in order; the number of them.
 */
static int
send_texts(CutoverApplyTable *table, ApplyGroup *group, char **texts)
{
	int			n = 0;

	switch (group->op)
	{
		case CUTOVER_APPLY_INSERT:
			texts[n++] = cutover_apply_sql_insert(table, group->absent);
			break;
		case CUTOVER_APPLY_UPDATE:
			texts[n++] = cutover_apply_sql_update(table, group->absent);
			break;
		case CUTOVER_APPLY_DELETE:
			texts[n++] = table->nkeys > 0 ? cutover_apply_sql_delete(table) :
				cutover_apply_sql_delete_rows(table, group->absent);
			break;
		case CUTOVER_APPLY_UPSERT:
			if (cutover_apply_sql_renumbers(table, group->absent))
				texts[n++] = cutover_apply_sql_delete_renumbered(table, group->absent);
			if (table->has_arbiter)
				texts[n++] = cutover_apply_sql_upsert(table, group->absent);
			else
			{
				texts[n] = cutover_apply_sql_update_existing(table, group->absent);
				if (texts[n])
					n++;
				texts[n++] = cutover_apply_sql_insert_missing(table, group->absent);
			}
			break;
	}
	return n;
}

/*
 * Queue a group as prepared statements.
 */
static void
send_statements(CutoverApply *apply, CutoverApplyTable *table, ApplyGroup *group)
{
	char	   *texts[3];
	int			ntexts = send_texts(table, group, texts);
	int			ncols = group->only_key ? table->nkeys : table->ncols;
	CutoverParam *params = palloc(sizeof(CutoverParam) * (ncols + 1));
	StringInfoData *bufs = palloc(sizeof(StringInfoData) * (ncols + 1));
	bool		whole_rows = group->op == CUTOVER_APPLY_DELETE && table->nkeys == 0;
	bool		many = whole_rows && group->nrows > SEND_FEW_ROWS;
	int			nparams = ncols - (group->only_key ? 0 : bms_num_members(group->absent)) + (whole_rows ? 1 : 0);

	for (int i = 0; i <= ncols; i++)
		initStringInfo(&bufs[i]);
	if (whole_rows)
	{
		/* reads all of the table, however large */
		cutover_endpoint_be_patient(apply->ep);
		cutover_endpoint_queue(apply->ep, "SET LOCAL enable_hashjoin = on", 0, NULL, false);
		/* statistics taken while the copy was not committed say that the table is empty: then every row would be compared with every other */
		if (many)
			cutover_endpoint_queue(apply->ep, "SET LOCAL enable_nestloop = off", 0, NULL, false);
	}
	for (int from = 0, to; from < group->nrows; from = to)
	{
		to = send_slice(group, from);
		send_columns(table, group, from, to, params, bufs);
		for (int i = 0; i < ntexts; i++)
			if (group->op == CUTOVER_APPLY_UPDATE)
			{
				SendMissed *missed = MemoryContextAlloc(apply->missed_cxt, sizeof(SendMissed));

				missed->apply = apply;
				missed->table = table;
				apply->awaited++;
				cutover_endpoint_queue_rows(apply->ep, texts[i], nparams, params, send_missed, missed);
			}
			else
				cutover_endpoint_queue(apply->ep, texts[i], nparams, params, true);
	}
	if (whole_rows)
		cutover_endpoint_queue(apply->ep, "SET LOCAL enable_hashjoin = off", 0, NULL, false);
	if (many)
		cutover_endpoint_queue(apply->ep, "SET LOCAL enable_nestloop = on", 0, NULL, false);
	for (int i = 0; i <= ncols; i++)
		pfree(bufs[i].data);
	pfree(bufs);
	pfree(params);
}

/*
 * Keys of an UPDATE that found no row.
 */
static void
send_missed(void *arg, CutoverRows *rows)
{
	SendMissed *missed = arg;

	missed->apply->awaited--;
	for (int i = 0; i < rows->nrows; i++)
		cutover_apply_add_missed(missed->apply, missed->table, &CUTOVER_CELL(rows, i, 0));
}

/*
 * Send fresh rows by COPY.
 */
static void
send_copy(CutoverApply *apply, CutoverApplyTable *table, ApplyGroup *group)
{
	StringInfoData buf;

	cutover_endpoint_copy_begin(apply->ep, cutover_apply_sql_copy(table, group->absent));
	initStringInfo(&buf);
	for (int i = 0; i < group->nrows; i++)
	{
		send_copy_row(&buf, table, group->rows[i]);
		if (buf.len >= 32 * 1024)
		{
			cutover_endpoint_copy_data(apply->ep, buf.data, buf.len);
			resetStringInfo(&buf);
		}
	}
	if (buf.len > 0)
		cutover_endpoint_copy_data(apply->ep, buf.data, buf.len);
	pfree(buf.data);
	(void) cutover_endpoint_copy_end(apply->ep);
}

/*
 * A row in COPY's text format.
 */
static void
send_copy_row(StringInfo buf, CutoverApplyTable *table, const ApplyRow *row)
{
	const char *p = APPLY_VALUES(row);
	bool		first = true;

	for (int i = 0; i < table->ncols; i++)
	{
		uint32		netlen;
		int32		len;

		memcpy(&netlen, p, sizeof(netlen));
		p += sizeof(netlen);
		len = (int32) pg_ntoh32(netlen);
		if (len == APPLY_LEN_ABSENT)
			continue;
		if (!first)
			appendStringInfoCharMacro(buf, '\t');
		first = false;
		if (len == APPLY_LEN_NULL)
		{
			appendBinaryStringInfoNT(buf, "\\N", 2);
			continue;
		}
		send_escaped(buf, p, len);
		p += len;
	}
	appendStringInfoCharMacro(buf, '\n');
}

/*
 * A value with COPY's special characters escaped.  In a server encoding no
 * byte of a longer character looks like one of them.
 */
static void
send_escaped(StringInfo buf, const char *value, int len)
{
	int			start = 0;

	for (int i = 0; i < len; i++)
	{
		char		c = value[i];

		if (likely(c != '\\' && c != '\n' && c != '\r' && c != '\t'))
			continue;
		appendBinaryStringInfoNT(buf, value + start, i - start);
		appendStringInfoCharMacro(buf, '\\');
		appendStringInfoCharMacro(buf, c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : '\\');
		start = i + 1;
	}
	appendBinaryStringInfoNT(buf, value + start, len - start);
}
