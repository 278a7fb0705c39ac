/*
 * copy_stream.c - the result of a query on old as the data of a COPY on new.
 *
 * The executor hands over tuples, this writes them in COPY's binary format
 * where every column is of a built-in type with the same binary form in all
 * versions and the same type on new, else in its text format.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "parser/analyze.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "copy_stream.h"
#include "endpoint.h"

#define FLUSH_BYTES (64 * 1024)
#define CHECK_MS 100

typedef enum ColumnForm
{
	FORM_FUNCTION,				/* output or send function */
	FORM_INT16,
	FORM_INT32,
	FORM_INT64,
	FORM_BOOL,
	FORM_VARLENA				/* the value's bytes as they are */
} ColumnForm;

typedef struct StreamColumn
{
	ColumnForm	form;
	FmgrInfo	fn;
} StreamColumn;

typedef struct StreamReceiver
{
	DestReceiver pub;
	CutoverCopyStream *stream;
	CutoverEndpoint *ep;
	bool		binary;
	int			ncols;
	StreamColumn *cols;
	StringInfoData buf;
	MemoryContext row;
	TimestampTz next_check;
	TimestampTz due;			/* the next piece may go */
} StreamReceiver;

/* ---- formats ---- */

/*
 * Does a type have one binary form in all servers we talk to?
 */
static bool
stream_binary_type(Oid type)
{
	Oid			element = get_element_type(type);

	/* counts as an array of int2, but an empty one is sent in a form that its own input refuses */
	if (type == INT2VECTOROID)
		return false;

	switch (OidIsValid(element) ? element : type)
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case BYTEAOID:
		case UUIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case JSONOID:
		case JSONBOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
			return true;
		default:
			return false;
	}
}

/*
 * The quickest way to write a type in the chosen format.
 */
static ColumnForm
stream_column_form(Oid type, bool binary)
{
	switch (type)
	{
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
			return FORM_VARLENA;
		case BYTEAOID:
			return binary ? FORM_VARLENA : FORM_FUNCTION;
		case BOOLOID:
			return binary ? FORM_BOOL : FORM_FUNCTION;
		case INT2OID:
			return binary ? FORM_INT16 : FORM_FUNCTION;
		case INT4OID:
		case FLOAT4OID:
		case DATEOID:
			return binary ? FORM_INT32 : FORM_FUNCTION;
		case INT8OID:
		case FLOAT8OID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return binary ? FORM_INT64 : FORM_FUNCTION;
		default:
			return FORM_FUNCTION;
	}
}

/*
 * Choose the format and look up functions.
 */
static void
stream_init_columns(StreamReceiver *receiver, TupleDesc desc)
{
	CutoverCopyStream *stream = receiver->stream;

	if (desc->natts != stream->ncols)
		elog(ERROR, "query returns %d columns, expected %d", desc->natts, stream->ncols);
	receiver->ncols = desc->natts;
	receiver->cols = palloc0(sizeof(StreamColumn) * desc->natts);
	receiver->binary = true;
	for (int i = 0; i < desc->natts; i++)
	{
		Oid			type = TupleDescAttr(desc, i)->atttypid;

		if (type != stream->new_types[i] || !stream_binary_type(type))
			receiver->binary = false;
	}
	for (int i = 0; i < desc->natts; i++)
	{
		Oid			type = TupleDescAttr(desc, i)->atttypid;
		Oid			fn;
		bool		varlena;

		receiver->cols[i].form = stream_column_form(type, receiver->binary);
		if (receiver->binary)
			getTypeBinaryOutputInfo(type, &fn, &varlena);
		else
			getTypeOutputInfo(type, &fn, &varlena);
		fmgr_info(fn, &receiver->cols[i].fn);
	}
}

/*
 * Ask the caller now and then whether to go on.
 */
static void
stream_check(StreamReceiver *receiver)
{
	TimestampTz now = GetCurrentTimestamp();

	if (receiver->stream->check_fn == NULL || now < receiver->next_check)
		return;
	receiver->next_check = TimestampTzPlusMilliseconds(now, CHECK_MS);
	receiver->stream->check_fn(receiver->stream->check_arg);
}

/*
 * Send what is buffered, no faster than allowed.
 */
static void
stream_flush(StreamReceiver *receiver)
{
	CutoverCopyStream *stream = receiver->stream;
	int			len = receiver->buf.len;
	double		rate;

	CHECK_FOR_INTERRUPTS();
	if (len == 0)
		return;
	cutover_endpoint_copy_data(receiver->ep, receiver->buf.data, len);
	stream->bytes += len;
	resetStringInfo(&receiver->buf);
	stream_check(receiver);
	/* each piece takes its share of time; time not used is not saved up */
	receiver->due = Max(receiver->due, GetCurrentTimestamp());
	rate = stream->rate_fn ? stream->rate_fn() : 0;
	if (rate > 0)
		receiver->due += (int64) (len / rate * USECS_PER_SEC);
	while (rate > 0)
	{
		long		wait_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), receiver->due);

		if (wait_ms <= 0)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(wait_ms, CHECK_MS), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		stream_check(receiver);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			rate = stream->rate_fn();
		}
	}
}

/* ---- values ---- */

/*
 * A value of COPY's text format.
 */
static void
stream_append_escaped(StringInfo buf, const char *data, int len)
{
	const char *start = data;
	const char *end = data + len;

	enlargeStringInfo(buf, len + 16);
	for (const char *p = data; p < end; p++)
	{
		char		escape;

		if (likely((unsigned char) *p >= 0x20 && *p != '\\'))
			continue;
		switch (*p)
		{
			case '\b':
				escape = 'b';
				break;
			case '\f':
				escape = 'f';
				break;
			case '\n':
				escape = 'n';
				break;
			case '\r':
				escape = 'r';
				break;
			case '\t':
				escape = 't';
				break;
			case '\v':
				escape = 'v';
				break;
			case '\\':
				escape = '\\';
				break;
			default:
				continue;
		}
		appendBinaryStringInfo(buf, start, p - start);
		appendStringInfoCharMacro(buf, '\\');
		appendStringInfoCharMacro(buf, escape);
		start = p + 1;
	}
	appendBinaryStringInfo(buf, start, end - start);
}

static void
stream_append_text(StreamReceiver *receiver, StreamColumn *col, Datum value)
{
	if (col->form == FORM_VARLENA)
	{
		struct varlena *v = PG_DETOAST_DATUM_PACKED(value);

		stream_append_escaped(&receiver->buf, VARDATA_ANY(v), VARSIZE_ANY_EXHDR(v));
	}
	else
	{
		char	   *text = OutputFunctionCall(&col->fn, value);

		stream_append_escaped(&receiver->buf, text, strlen(text));
	}
}

/*
 * A value of COPY's binary format: length and bytes.
 */
static void
stream_append_binary(StreamReceiver *receiver, StreamColumn *col, Datum value)
{
	StringInfo	buf = &receiver->buf;
	struct varlena *v;

	switch (col->form)
	{
		case FORM_BOOL:
			pq_sendint32(buf, 1);
			pq_sendint8(buf, DatumGetBool(value) ? 1 : 0);
			break;
		case FORM_INT16:
			pq_sendint32(buf, 2);
			pq_sendint16(buf, DatumGetInt16(value));
			break;
		case FORM_INT32:		/* float4 by value too: its bits */
			pq_sendint32(buf, 4);
			pq_sendint32(buf, DatumGetUInt32(value));
			break;
		case FORM_INT64:
			pq_sendint32(buf, 8);
			pq_sendint64(buf, (uint64) DatumGetInt64(value));
			break;
		case FORM_VARLENA:
			v = PG_DETOAST_DATUM_PACKED(value);
			pq_sendint32(buf, VARSIZE_ANY_EXHDR(v));
			appendBinaryStringInfo(buf, VARDATA_ANY(v), VARSIZE_ANY_EXHDR(v));
			break;
		case FORM_FUNCTION:
			v = (struct varlena *) SendFunctionCall(&col->fn, value);
			pq_sendint32(buf, VARSIZE(v) - VARHDRSZ);
			appendBinaryStringInfo(buf, VARDATA(v), VARSIZE(v) - VARHDRSZ);
			break;
	}
}

/* ---- DestReceiver ---- */

static bool
stream_receive(TupleTableSlot *slot, DestReceiver *self)
{
	StreamReceiver *receiver = (StreamReceiver *) self;
	StringInfo	buf = &receiver->buf;
	MemoryContext old = MemoryContextSwitchTo(receiver->row);

	slot_getallattrs(slot);
	if (receiver->binary)
		pq_sendint16(buf, receiver->ncols);
	for (int i = 0; i < receiver->ncols; i++)
	{
		if (receiver->binary)
		{
			if (slot->tts_isnull[i])
				pq_sendint32(buf, (uint32) -1);
			else
				stream_append_binary(receiver, &receiver->cols[i], slot->tts_values[i]);
			continue;
		}
		if (i > 0)
			appendStringInfoCharMacro(buf, '\t');
		if (slot->tts_isnull[i])
			appendBinaryStringInfo(buf, "\\N", 2);
		else
			stream_append_text(receiver, &receiver->cols[i], slot->tts_values[i]);
	}
	if (!receiver->binary)
		appendStringInfoCharMacro(buf, '\n');
	MemoryContextSwitchTo(old);
	MemoryContextReset(receiver->row);
	receiver->stream->rows++;
	if (buf->len >= FLUSH_BYTES)
		stream_flush(receiver);
	return true;
}

static void
stream_startup(DestReceiver *self, int operation, TupleDesc typeinfo)
{
}

static void
stream_shutdown(DestReceiver *self)
{
}

static void
stream_destroy(DestReceiver *self)
{
}

/* ---- running ---- */

/*
 * Plan the query; no parallel workers, copiers are parallel themselves.
 */
static QueryDesc *
stream_plan(CutoverCopyStream *stream, DestReceiver *dest)
{
	List	   *raw = pg_parse_query(stream->query);
	List	   *rewritten;
	PlannedStmt *plan;

	if (list_length(raw) != 1)
		elog(ERROR, "expected one statement");
	rewritten = pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, raw), stream->query, NULL, 0, NULL);
	if (list_length(rewritten) != 1 || linitial_node(Query, rewritten)->commandType != CMD_SELECT)
		elog(ERROR, "expected one query");
	plan = pg_plan_query(linitial_node(Query, rewritten), stream->query, 0, NULL);
	return CreateQueryDesc(plan, stream->query, GetActiveSnapshot(), InvalidSnapshot,
						   dest, NULL, NULL, 0);
}

/*
 * Run the query and send its rows.
 */
static void
stream_execute(StreamReceiver *receiver)
{
	CutoverCopyStream *stream = receiver->stream;
	QueryDesc  *desc = stream_plan(stream, &receiver->pub);
	char	   *sql;

	ExecutorStart(desc, 0);
	stream_init_columns(receiver, desc->tupDesc);
	sql = psprintf("%s%s", stream->copy, receiver->binary ? " (FORMAT binary)" : "");
	cutover_endpoint_copy_begin(receiver->ep, sql);
	if (receiver->binary)
	{
		appendBinaryStringInfo(&receiver->buf, "PGCOPY\n\377\r\n\0", 11);
		pq_sendint32(&receiver->buf, 0);
		pq_sendint32(&receiver->buf, 0);
	}
	cutover_executor_run_compat(desc);
	if (receiver->binary)
		pq_sendint16(&receiver->buf, (uint16) -1);
	stream_flush(receiver);
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
}

/*
 * Send the result of a query to a COPY on new.
 */
void
cutover_copy_stream_run(CutoverEndpoint *ep, CutoverCopyStream *stream)
{
	StreamReceiver receiver = {
		.pub = {stream_receive, stream_startup, stream_shutdown, stream_destroy, DestNone},
		.stream = stream,
		.ep = ep,
	};
	Oid			user;
	int			security;
	int			nest = 0;

	stream->rows = 0;
	stream->bytes = 0;
	initStringInfo(&receiver.buf);
	enlargeStringInfo(&receiver.buf, FLUSH_BYTES * 2);
	receiver.row = AllocSetContextCreate(CurrentMemoryContext, "cutover copy row", ALLOCSET_DEFAULT_SIZES);

	GetUserIdAndSecContext(&user, &security);
	if (OidIsValid(stream->run_as))
	{
		/* what the table's owner wrote runs with the owner's rights, and can't change ours */
		nest = NewGUCNestLevel();
		SetUserIdAndSecContext(stream->run_as, security | SECURITY_RESTRICTED_OPERATION | SECURITY_NOFORCE_RLS);
	}
	stream_execute(&receiver);
	if (OidIsValid(stream->run_as))
	{
		AtEOXact_GUC(false, nest);
		SetUserIdAndSecContext(user, security);
	}
	if (cutover_endpoint_copy_end(ep) != stream->rows)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("new did not take all rows that were copied"),
				 errdetail("A trigger or rule of the table on new dropped or moved some of " UINT64_FORMAT " rows.", stream->rows),
				 errhint("Disable the trigger or rule on new while it follows.")));
	MemoryContextDelete(receiver.row);
	pfree(receiver.buf.data);
}
