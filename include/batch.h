/*
 * batch.h - windows of the queue: which blocks are new since the last one, in
 * which order, and the changes in a block.
 */
#ifndef CUTOVER_BATCH_H
#define CUTOVER_BATCH_H

#include "access/htup.h"
#include "access/transam.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/bitmapset.h"
#include "storage/itemptr.h"

#include "mapping.h"

/* Where a block stands. */
typedef struct CutoverBlockRef
{
	uint64		xid;
	XLogRecPtr	lsn;			/* of the transaction's last block */
	int32		seq;
	int32		n;
	int32		segment;
	ItemPointerData tid;
} CutoverBlockRef;

/*
 * The transactions visible in cur and not in prev, less those already applied.
 * Lives across transactions: a large one keeps its list in a holdable cursor.
 */
typedef struct CutoverWindow
{
	bool		open;
	int32		target_id;
	int64		k;
	char	   *prev;			/* pg_snapshot in text form */
	char	   *cur;
	TimestampTz taken_at;
	XLogRecPtr	done_lsn;		/* blocks visible in cur and up to here (lsn, xid) are applied; 0 = none */
	uint64		done_xid;
	MemoryContext context;
	CutoverBlockRef *refs;
	int			nrefs;
	int			next;
	bool		more;			/* the cursor has more */
	int64		seen;			/* changes handed out */
} CutoverWindow;

extern void cutover_window_init(CutoverWindow *window, int32 target_id);

/*
 * List the blocks between prev and cur (NULL: a snapshot taken now, stored in
 * the window).  Needs an open transaction.  False if there is none.
 */
extern bool cutover_window_open(CutoverWindow *window, const char *prev, const char *cur,
								XLogRecPtr done_lsn, uint64 done_xid);

/*
 * The blocks that the active snapshot sees and that are not applied once the
 * window's changes up to (lsn, xid), or finished: all of them, are.  In
 * CurrentMemoryContext; returns their number.
 */
extern int	cutover_window_later(CutoverWindow *window, bool finished, XLogRecPtr lsn, uint64 xid, CutoverBlockRef **refs);

/* Next block without taking it; NULL at the end.  Needs an open transaction. */
extern CutoverBlockRef *cutover_window_peek(CutoverWindow *window);
extern void cutover_window_take(CutoverWindow *window);
extern void cutover_window_close(CutoverWindow *window);

/* One change; pointers are into memory of CurrentMemoryContext at the time of reading. */
typedef struct CutoverChange
{
	char		op;				/* CUTOVER_OP_* */
	uint8		flags;
	CutoverLayout *layout;		/* NULL for control */
	HeapTuple	old;
	HeapTuple	new;
	ItemPointerData old_tid;
	ItemPointerData new_tid;
	Bitmapset  *elided;			/* attnums; NULL = none */
	int32		table_id;		/* control */
	char		kind;
	char	   *text;
} CutoverChange;

typedef struct CutoverReader
{
	const CutoverBlockRef *ref;
	const char *p;
	const char *end;
	int			left;
} CutoverReader;

/*
 * Read a block.  Bytes that don't decode raise XX001 with the block's position;
 * nothing is trusted.  Allocates in CurrentMemoryContext.
 */
extern void cutover_reader_open(CutoverReader *reader, const CutoverWindow *window, const CutoverBlockRef *ref);
extern bool cutover_reader_next(CutoverReader *reader, CutoverChange *change);

#endif							/* CUTOVER_BATCH_H */
