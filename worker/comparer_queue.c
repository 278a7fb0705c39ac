/*
 * comparer_queue.c - the keys of changes that the queue still has.
 *
 * Runs in a comparer.  Reads every block, of all three segments, that a given
 * snapshot does not see, whether new has it or not, and collects the keys for
 * each table; as soon as there are many they are settled like any other. A TRUNCATE
 * names no keys: its table is compared in full.
 *
 * The format is in block.h.  It is read here once more, on purpose: a mistake in how the
 * replicator reads it must not hide what it did.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "block.h"
#include "comparer.h"
#include "layout.h"
#include "local.h"
#include "pack.h"

#define QUEUE_FETCH 200			/* blocks read at once */
#define QUEUE_KEYS 5000			/* of a table, then they are settled */

/* What is collected of a table. */
typedef struct QueueTable
{
	int32		table_id;
	CompareCounts *counts;
	int			nsources;
	AttrNumber *source_attnum;
	HTAB	   *keys;			/* QueueKey */
	MemoryContext context;		/* of the keys */
	bool		truncated;
} QueueTable;

typedef struct QueueKey
{
	uint64		hash;			/* hash key: of the texts */
	char	  **texts;
} QueueKey;

typedef struct QueueLayout
{
	int32		layout_id;		/* hash key */
	TupleDesc	desc;			/* NULL: of no interest */
	QueueTable *table;
	int		   *source;			/* for each attribute: place among the sources, or -1 */
} QueueLayout;

typedef struct Queue
{
	Comparer   *c;
	int			n;
	QueueTable *tables;
	HTAB	   *layouts;
	MemoryContext context;
} Queue;

typedef struct QueuePlace
{
	const char *p;
	const char *end;
} QueuePlace;

/*
 * Take bytes of a block.
 */
static void
queue_take(QueuePlace *place, void *to, Size n)
{
	if (n > (Size) (place->end - place->p))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a block of the queue does not decode"),
				 errdetail("It ends too early."),
				 errhint("Compare by method full.")));
	if (to)
		memcpy(to, place->p, n);
	place->p += n;
}

/*
 * The layout of an image, read once.  Needs a transaction.
 */
static QueueLayout *
queue_layout(Queue *queue, int32 layout_id)
{
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(layout_id)};
	QueueLayout *layout;
	bool		found;
	MemoryContext old;
	char	   *p;

	layout = hash_search(queue->layouts, &layout_id, HASH_ENTER, &found);
	if (found)
		return layout;
	layout->desc = NULL;
	layout->table = NULL;
	if (cutover_local_run("SELECT table_id, pg_catalog.array_to_string(root_attnum, ' ') FROM cutover._layout WHERE layout_id = $1",
						  1, types, args, NULL) == 0)
		return layout;
	for (int i = 0; i < queue->n; i++)
		if (queue->tables[i].table_id == cutover_local_int(0, 1))
			layout->table = &queue->tables[i];
	if (layout->table == NULL)
		return layout;
	p = cutover_local_text(0, 2);
	old = MemoryContextSwitchTo(queue->context);
	layout->desc = cutover_layout_read(layout_id);
	if (layout->desc != NULL)
	{
		layout->source = palloc(Max(layout->desc->natts, 1) * sizeof(int));
		for (int i = 0; i < layout->desc->natts; i++)
		{
			int			root = (int) strtol(p, &p, 10);

			layout->source[i] = -1;
			for (int k = 0; root > 0 && k < layout->table->nsources; k++)
				if (layout->table->source_attnum[k] == root)
					layout->source[i] = k;
		}
	}
	MemoryContextSwitchTo(old);
	return layout;
}

/*
 * Settle the keys collected of a table.
 */
static void
queue_flush(Queue *queue, QueueTable *table)
{
	int			n = (int) hash_get_num_entries(table->keys);
	char	 ***sources;
	HASH_SEQ_STATUS status;
	QueueKey   *key;
	HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(QueueKey)};
	int			i = 0;

	if (n > 0)
	{
		MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer changes", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		sources = palloc(n * sizeof(char **));
		hash_seq_init(&status, table->keys);
		while ((key = hash_seq_search(&status)) != NULL)
			sources[i++] = key->texts;
		cutover_compare_use_table(queue->c, table->table_id);
		cutover_compare_named(queue->c, sources, NULL, n, table->counts);
		table->counts->rows += n;
		MemoryContextSwitchTo(old);
		MemoryContextDelete(mcxt);
	}
	MemoryContextReset(table->context);
	ctl.hcxt = table->context;
	table->keys = hash_create("cutover comparer changes", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * Keep the key in an image.
 */
static void
queue_add_image(Queue *queue, QueueLayout *layout, QueuePlace *place)
{
	QueueTable *table = layout->table;
	uint32		len;
	HeapTuple	tup;
	Datum	   *values;
	bool	   *nulls;
	char	  **texts;
	uint64		hash = 0;
	QueueKey   *key;
	bool		found;

	queue_take(place, &len, sizeof(len));
	if (layout->desc == NULL || table->truncated || len < SizeofHeapTupleHeader - CUTOVER_IMAGE_SKIP)
	{
		queue_take(place, NULL, len);
		return;
	}
	tup = palloc0(HEAPTUPLESIZE + CUTOVER_IMAGE_SKIP + len);
	tup->t_len = CUTOVER_IMAGE_SKIP + len;
	tup->t_data = (HeapTupleHeader) ((char *) tup + HEAPTUPLESIZE);
	queue_take(place, (char *) tup->t_data + CUTOVER_IMAGE_SKIP, len);
	values = palloc(layout->desc->natts * sizeof(Datum));
	nulls = palloc(layout->desc->natts * sizeof(bool));
	heap_deform_tuple(tup, layout->desc, values, nulls);
	texts = palloc0(table->nsources * sizeof(char *));
	for (int i = 0; i < layout->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(layout->desc, i);
		Oid			out;
		bool		varlena;

		if (layout->source[i] < 0 || nulls[i] || att->attisdropped)
			continue;
		getTypeOutputInfo(att->atttypid, &out, &varlena);
		texts[layout->source[i]] = OidOutputFunctionCall(out, values[i]);
	}
	for (int k = 0; k < table->nsources; k++)
		hash = hash_combine64(hash, texts[k] ? DatumGetUInt64(hash_any_extended((unsigned char *) texts[k], strlen(texts[k]), k)) : k);
	key = hash_search(table->keys, &hash, HASH_ENTER, &found);
	if (!found)
	{
		MemoryContext old = MemoryContextSwitchTo(table->context);

		key->texts = palloc0(table->nsources * sizeof(char *));
		for (int k = 0; k < table->nsources; k++)
			key->texts[k] = texts[k] ? pstrdup(texts[k]) : NULL;
		MemoryContextSwitchTo(old);
	}
}

/*
 * Read one change.
 */
static void
queue_read_change(Queue *queue, QueuePlace *place)
{
	uint8		op;
	uint8		flags;
	int32		layout_id;
	QueueLayout *layout;

	queue_take(place, &op, sizeof(op));
	queue_take(place, &flags, sizeof(flags));
	queue_take(place, &layout_id, sizeof(layout_id));
	if (op == CUTOVER_OP_CONTROL)
	{
		uint32		len;

		queue_take(place, NULL, sizeof(int32) + sizeof(uint8));
		queue_take(place, &len, sizeof(len));
		queue_take(place, NULL, len);
		return;
	}
	layout = queue_layout(queue, layout_id);
	if (op == CUTOVER_OP_TRUNCATE && layout->table)
		layout->table->truncated = true;
	if (flags & CUTOVER_CHANGE_HAS_OLD)
		queue_add_image(queue, layout, place);
	if (flags & CUTOVER_CHANGE_HAS_NEW)
		queue_add_image(queue, layout, place);
	if (flags & CUTOVER_CHANGE_HAS_CTID)
		queue_take(place, NULL, 2 * sizeof(ItemPointerData));
	if (flags & CUTOVER_CHANGE_HAS_ELIDED)
	{
		uint16		count;

		queue_take(place, &count, sizeof(count));
		queue_take(place, NULL, count * sizeof(int16));
	}
}

/* A block, its bytes out of the transaction that read it. */
typedef struct QueueBlock
{
	int			n;
	char	   *body;
	Size		len;
} QueueBlock;

/*
 * Fetch the next blocks of a segment after *place; returns their number.
 */
static int
queue_fetch(Queue *queue, int segment, const char *base, char *place, Size place_size, QueueBlock *blocks)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *sql = psprintf("SELECT ctid::text, n, data FROM cutover._queue_%d_%d WHERE ctid > $2::tid"
							   " AND ($1::text IS NULL OR xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1::pg_snapshot)))"
							   "  OR xid >= pg_catalog.pg_snapshot_xmax($1::pg_snapshot)) ORDER BY ctid LIMIT %d",
							   queue->c->target_id, segment, QUEUE_FETCH);
	Oid			types[] = {TEXTOID, TEXTOID};
	Datum		args[] = {base ? CStringGetTextDatum(base) : (Datum) 0, CStringGetTextDatum(place)};
	int			n;

	cutover_compare_begin();
	/* values out of line are fetched below */
	PushActiveSnapshot(GetTransactionSnapshot());
	n = (int) cutover_local_run(sql, 2, types, args, base ? NULL : "n ");
	for (int i = 0; i < n; i++)
	{
		bool		isnull;
		const char *why;
		Datum		data = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3, &isnull);
		MemoryContext spi = MemoryContextSwitchTo(context);

		blocks[i].n = (int) cutover_local_int(i, 2);
		blocks[i].body = cutover_unpack((struct varlena *) DatumGetPointer(data), &blocks[i].len, &why);
		MemoryContextSwitchTo(spi);
		if (blocks[i].body == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("a block of the queue does not decode"),
					 errdetail("It is at %s of segment %d: %s.", cutover_local_text(i, 1), segment, why),
					 errhint("Compare by method full.")));
	}
	if (n > 0)
		strlcpy(place, cutover_local_text(n - 1, 1), place_size);
	PopActiveSnapshot();
	cutover_compare_commit();
	return n;
}

/*
 * Collect the keys of one segment.
 */
static void
queue_read_segment(Queue *queue, int segment, const char *base)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer blocks", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	char		place[64] = "(0,0)";
	QueueBlock *blocks = MemoryContextAlloc(queue->context, QUEUE_FETCH * sizeof(QueueBlock));
	int			n;

	do
	{
		cutover_compare_check_run(queue->c);
		n = queue_fetch(queue, segment, base, place, sizeof(place), blocks);
		/* output functions of types want a transaction */
		cutover_compare_begin();
		MemoryContextSwitchTo(mcxt);
		for (int i = 0; i < n; i++)
		{
			QueuePlace	p = {.p = blocks[i].body,.end = blocks[i].body + blocks[i].len};

			for (int k = 0; k < blocks[i].n; k++)
				queue_read_change(queue, &p);
		}
		cutover_compare_commit();
		MemoryContextReset(mcxt);
		for (int t = 0; t < queue->n; t++)
			if (hash_get_num_entries(queue->tables[t].keys) >= QUEUE_KEYS)
				queue_flush(queue, &queue->tables[t]);
	} while (n == QUEUE_FETCH);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	pfree(blocks);
}

/*
 * From which snapshot on are changes wanted?  NULL: all there are.  Keeps the
 * queue from there on while we read.
 */
static char *
queue_open(Comparer *c)
{
	const char *args[] = {psprintf(INT64_FORMAT, c->run), psprintf("%d", MyProcPid)};
	CutoverRows *rows;

	rows = cutover_compare_run(c, COMPARE_OLD,
							   "WITH base AS (SELECT r.target_id, CASE WHEN r.since IS NOT NULL THEN"
							   "  (SELECT m.snapshot FROM cutover._queue_moment m WHERE m.target_id = r.target_id AND m.at <= r.since"
							   "   ORDER BY m.at DESC LIMIT 1)"
							   " ELSE (SELECT p.snapshot FROM pg_catalog.unnest(r.tables) t LEFT JOIN cutover._compare_position p ON p.table_id = t"
							   "  ORDER BY pg_catalog.pg_snapshot_xmin(p.snapshot) NULLS FIRST LIMIT 1) END AS snapshot"
							   "  FROM cutover._compare_run r WHERE r.run = $1::int8),"
							   " pin AS (INSERT INTO cutover._compare_pin (target_id, pid, snapshot)"
							   "  SELECT target_id, $2::int4, COALESCE(snapshot, '1:1:') FROM base"
							   "  ON CONFLICT (target_id, pid) DO UPDATE SET snapshot = EXCLUDED.snapshot, since = pg_catalog.clock_timestamp())"
							   " SELECT snapshot::text FROM base", 2, args);
	return CUTOVER_CELL(rows, 0, 0);
}

/*
 * Begin with a table.
 */
static void
queue_use_table(Queue *queue, QueueTable *table)
{
	cutover_compare_use_table(queue->c, table->table_id);
	table->nsources = queue->c->table->nsources;
	table->source_attnum = MemoryContextAlloc(queue->context, Max(table->nsources, 1) * sizeof(AttrNumber));
	memcpy(table->source_attnum, queue->c->table->source_attnum, table->nsources * sizeof(AttrNumber));
	table->context = AllocSetContextCreate(queue->context, "cutover comparer keys", ALLOCSET_DEFAULT_SIZES);
	table->keys = NULL;
	{
		HASHCTL		ctl = {.keysize = sizeof(uint64),.entrysize = sizeof(QueueKey),.hcxt = table->context};

		table->keys = hash_create("cutover comparer changes", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
}

/*
 * A table that was emptied: every row, in chunks of their own.
 */
static void
queue_compare_all(Queue *queue, QueueTable *table)
{
	Oid			types[] = {INT8OID, INT4OID};
	Datum		args[] = {Int64GetDatum(queue->c->run), Int32GetDatum(table->table_id)};

	cutover_compare_use_table(queue->c, table->table_id);
	cutover_compare_plan_full(queue->c, "changes");
	cutover_compare_begin();
	cutover_local_run("UPDATE cutover._compare_result r SET chunks_total ="
					  " (SELECT count(*) FROM cutover._compare_chunk c WHERE c.run = $1 AND c.table_id = $2 AND c.method = 'changes')"
					  " WHERE r.run = $1 AND r.table_id = $2 AND r.method = 'changes'", 2, types, args, NULL);
	cutover_compare_commit();
}

/*
 * Compare the keys that old's queue has seen, of n tables.
 */
static void
queue_changes(Comparer *c, int n, const int32 *table_ids, CompareCounts *counts)
{
	HASHCTL		ctl = {.keysize = sizeof(int32),.entrysize = sizeof(QueueLayout)};
	Queue		queue = {.c = c,.n = n};
	char	   *base = queue_open(c);
	const char *pid = psprintf("%d", MyProcPid);

	queue.context = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer queue", ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = queue.context;
	queue.layouts = hash_create("cutover comparer layouts", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	queue.tables = MemoryContextAllocZero(queue.context, n * sizeof(QueueTable));
	for (int i = 0; i < n; i++)
	{
		queue.tables[i].table_id = table_ids[i];
		queue.tables[i].counts = &counts[i];
		queue_use_table(&queue, &queue.tables[i]);
	}
	for (int segment = 0; segment < 3; segment++)
		queue_read_segment(&queue, segment, base);
	for (int i = 0; i < n; i++)
	{
		if (queue.tables[i].truncated)
			queue_compare_all(&queue, &queue.tables[i]);
		else
			queue_flush(&queue, &queue.tables[i]);
	}
	cutover_compare_run(c, COMPARE_OLD, "DELETE FROM cutover._compare_pin WHERE pid = $1::int4", 1, &pid);
	MemoryContextDelete(queue.context);
}

/*
 * The keys that changed on new while it is the master: all that its own queue
 * still has.  They stand there as columns of new.
 */
static void
queue_compare_reverse(Comparer *c, int32 table_id, CompareCounts *counts)
{
	CompareTable *t;
	char		last[32] = "0";
	int			n;

	cutover_compare_use_table(c, table_id);
	t = c->table;
	do
	{
		MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "cutover comparer changes", ALLOCSET_DEFAULT_SIZES);
		MemoryContext old = MemoryContextSwitchTo(mcxt);
		const char *args[] = {psprintf("%d", table_id), last};
		StringInfoData sql;
		CutoverRows *rows;
		char	 ***keys;

		cutover_compare_check_run(c);
		initStringInfo(&sql);
		appendStringInfoString(&sql, "SELECT DISTINCT max(q.id) OVER () AS last, count(*) OVER () AS n");
		for (int k = 0; k < t->nkeys; k++)
			appendStringInfo(&sql, ", k.key->>%s", quote_literal_cstr(t->keys[k].column->name));
		appendStringInfo(&sql, " FROM (SELECT * FROM cutover.queue WHERE table_id = $1::int4 AND id > $2::int8 AND op IN ('I', 'U', 'D')"
						 " ORDER BY id LIMIT %d) q CROSS JOIN LATERAL (VALUES (q.old_key), (q.new_key)) k (key) WHERE k.key IS NOT NULL", QUEUE_KEYS);
		rows = cutover_compare_run(c, COMPARE_NEW, sql.data, 2, args);
		keys = palloc(Max(rows->nrows, 1) * sizeof(char **));
		for (int i = 0; i < rows->nrows; i++)
			keys[i] = &CUTOVER_CELL(rows, i, 2);
		n = rows->nrows;
		if (n > 0)
		{
			strlcpy(last, CUTOVER_CELL(rows, 0, 0), sizeof(last));
			counts->rows += n;
			cutover_compare_settle(c, keys, NULL, n, counts);
		}
		MemoryContextSwitchTo(old);
		MemoryContextDelete(mcxt);
	} while (n > 0);
}

/*
 * Was a table emptied on new, or has it no key to name its rows by?
 */
static bool
queue_reverse_wants_all(Comparer *c, int32 table_id)
{
	const char *id = psprintf("%d", table_id);

	cutover_compare_use_table(c, table_id);
	return c->table->nkeys == 0 ||
		cutover_compare_run(c, COMPARE_NEW, "SELECT 1 FROM cutover.queue WHERE table_id = $1::int4 AND op = 'T' LIMIT 1", 1, &id)->nrows > 0;
}

/*
 * Compare the keys that changed, of n tables.
 */
void
cutover_compare_changes(Comparer *c, int n, const int32 *table_ids, CompareCounts *counts)
{
	if (c->new_is_master)
	{
		for (int i = 0; i < n; i++)
		{
			QueueTable	table = {.table_id = table_ids[i]};
			Queue		reverse = {.c = c};

			if (queue_reverse_wants_all(c, table_ids[i]))
				queue_compare_all(&reverse, &table);
			else
				queue_compare_reverse(c, table_ids[i], &counts[i]);
		}
		return;
	}
	queue_changes(c, n, table_ids, counts);
}
