/*
 * route_value.c - values on their way to new and back.
 *
 * In binary form where both sides know the type by the same number, without a
 * function call for the commonest.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "route_remote.h"

/*
 * A parameter whose form needs no function.
 */
static void
value_send_plain(RouteKind kind, Datum value, const char **data, int *len)
{
	char	   *buf;

	switch (kind)
	{
		case ROUTE_INT2:
			{
				uint16		n = pg_hton16((uint16) DatumGetInt16(value));

				buf = palloc(sizeof(n));
				memcpy(buf, &n, sizeof(n));
				*len = sizeof(n);
				break;
			}
		case ROUTE_INT4:
			{
				uint32		n = pg_hton32((uint32) DatumGetInt32(value));

				buf = palloc(sizeof(n));
				memcpy(buf, &n, sizeof(n));
				*len = sizeof(n);
				break;
			}
		case ROUTE_INT8:
			{
				uint64		n = pg_hton64((uint64) DatumGetInt64(value));

				buf = palloc(sizeof(n));
				memcpy(buf, &n, sizeof(n));
				*len = sizeof(n);
				break;
			}
		case ROUTE_FLOAT8:
			{
				float8		f = DatumGetFloat8(value);
				uint64		n;

				memcpy(&n, &f, sizeof(n));
				n = pg_hton64(n);
				buf = palloc(sizeof(n));
				memcpy(buf, &n, sizeof(n));
				*len = sizeof(n);
				break;
			}
		case ROUTE_BOOL:
			buf = palloc(1);
			buf[0] = DatumGetBool(value) ? 1 : 0;
			*len = 1;
			break;
		default:
			{
				/* not through the send function, which would convert it for the client */
				struct varlena *text = PG_DETOAST_DATUM_PACKED(value);

				buf = VARDATA_ANY(text);
				*len = VARSIZE_ANY_EXHDR(text);
				break;
			}
	}
	*data = buf;
}

/*
 * Parameters as they are sent.
 */
void
cutover_route_send_values(RoutePlan *plan, const Datum *values, const bool *nulls,
						  const char **data, int *lengths, int *formats)
{
	for (int i = 0; i < plan->nparams; i++)
	{
		RouteColumn *param = &plan->params[i];

		formats[i] = param->binary ? 1 : 0;
		lengths[i] = 0;
		if (nulls[i])
			data[i] = NULL;
		else if (param->kind != ROUTE_OTHER)
			value_send_plain(param->kind, values[i], &data[i], &lengths[i]);
		else if (param->binary)
		{
			bytea	   *bytes = SendFunctionCall(&param->fn, values[i]);

			data[i] = VARDATA(bytes);
			lengths[i] = VARSIZE(bytes) - VARHDRSZ;
		}
		else
			data[i] = OutputFunctionCall(&param->fn, values[i]);
	}
}

/*
 * A value whose form needs no function.
 */
static Datum
value_read_plain(RouteKind kind, const char *data, int len)
{
	uint16		n2;
	uint32		n4;
	uint64		n8;
	float8		f;

	switch (kind)
	{
		case ROUTE_INT2:
			memcpy(&n2, data, sizeof(n2));
			return Int16GetDatum((int16) pg_ntoh16(n2));
		case ROUTE_INT4:
			memcpy(&n4, data, sizeof(n4));
			return Int32GetDatum((int32) pg_ntoh32(n4));
		case ROUTE_INT8:
			memcpy(&n8, data, sizeof(n8));
			return Int64GetDatum((int64) pg_ntoh64(n8));
		case ROUTE_FLOAT8:
			memcpy(&n8, data, sizeof(n8));
			n8 = pg_ntoh64(n8);
			memcpy(&f, &n8, sizeof(f));
			return Float8GetDatum(f);
		case ROUTE_BOOL:
			return BoolGetDatum(data[0] != 0);
		default:
			return PointerGetDatum(cstring_to_text_with_len(data, len));
	}
}

/*
 * Bytes that a value of this kind has; 0 = any.
 */
static int
value_size(RouteKind kind)
{
	switch (kind)
	{
		case ROUTE_INT2:
			return 2;
		case ROUTE_INT4:
			return 4;
		case ROUTE_INT8:
		case ROUTE_FLOAT8:
			return 8;
		case ROUTE_BOOL:
			return 1;
		default:
			return 0;
	}
}

/*
 * A row of the chunk that came last, as a row of the plan.
 */
void
cutover_route_read_row(RouteStream *stream, int row, Datum *values, bool *nulls)
{
	RoutePlan  *plan = stream->plan;
	CutoverEndpoint *ep = stream->session->ep;

	if (plan->ncolumns < stream->desc->natts)
	{
		/* columns that only the local plan needs */
		memset(values, 0, sizeof(Datum) * stream->desc->natts);
		memset(nulls, true, sizeof(bool) * stream->desc->natts);
	}
	for (int i = 0; i < plan->ncolumns; i++)
	{
		RouteColumn *column = &plan->columns[i];
		int			at = column->attno - 1;
		int			len;
		char	   *data = cutover_endpoint_query_value(ep, row, i, &len);

		nulls[at] = data == NULL;
		if (data == NULL)
			values[at] = (Datum) 0;
		else if (column->kind != ROUTE_OTHER)
		{
			int			size = value_size(column->kind);

			if (size != 0 && size != len)
				elog(ERROR, "value of %d bytes where %d are expected", len, size);
			values[at] = value_read_plain(column->kind, data, len);
		}
		else if (plan->binary)
		{
			StringInfoData buf;

			buf.data = data;
			buf.len = len;
			buf.maxlen = len + 1;
			buf.cursor = 0;
			values[at] = ReceiveFunctionCall(&column->fn, &buf, column->ioparam, column->typmod);
			if (buf.cursor != buf.len)
				elog(ERROR, "value of %d bytes, of which %d were read", buf.len, buf.cursor);
		}
		else
			values[at] = InputFunctionCall(&column->fn, data, column->ioparam, column->typmod);
	}
}
