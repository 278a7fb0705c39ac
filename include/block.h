/*
 * block.h - the format of a queue block, written by capture, read by the replicator.
 *
 * A queue row is (xid xid8, lsn pg_lsn, seq int4, n int4, data bytea):
 *   xid  the top-level transaction
 *   lsn  WAL insert position when the block was written; a transaction's place in
 *        the order of all is that of its last block
 *   seq  number within the transaction of the block's first change.  The blocks of
 *        a transaction cover disjoint ranges of seq, so (lsn of the last block,
 *        xid, seq) orders all blocks, and changes stand in order within a block
 *   n    changes in the block
 *   data CutoverBlockHeader, then n changes; usually compressed (pack.h reads it)
 *
 * A change is, byte-packed and unaligned, in the server's byte order:
 *   uint8  op          CUTOVER_OP_*
 *   uint8  flags       CUTOVER_CHANGE_*
 *   int32  layout_id   row of cutover._layout (0 for CUTOVER_OP_CONTROL)
 *   then, in this order and only where stated
 *   image  old         if flags & HAS_OLD
 *   image  new         if flags & HAS_NEW
 *   6+6 B  ItemPointerData old, new  if flags & HAS_CTID (InvalidItemPointer where there is none)
 *   uint16 count, int16 attnum[count]  if flags & HAS_ELIDED: out-of-line values left out of new (NULL there)
 *   control            if op is CONTROL: int32 table_id, uint8 kind, uint32 len, char text[len]
 *
 * An image is: uint32 len, then len bytes: the heap tuple from its field t_infomask2 on
 * (its first CUTOVER_IMAGE_SKIP bytes are transaction data, of no use here).  No value in
 * it is out of line.  To read: zeroed, MAXALIGNed buffer, copy the bytes at offset CUTOVER_IMAGE_SKIP.
 * An image of only the key has NULL in every other column.
 */
#ifndef CUTOVER_BLOCK_H
#define CUTOVER_BLOCK_H

#include "access/htup_details.h"

#define CUTOVER_BLOCK_VERSION 1
#define CUTOVER_IMAGE_SKIP offsetof(HeapTupleHeaderData, t_infomask2)

typedef struct CutoverBlockHeader
{
	uint8		version;
	uint8		flags;			/* CUTOVER_BLOCK_* */
	uint16		reserved;		/* zero */
} CutoverBlockHeader;

#define CUTOVER_BLOCK_ZSTD 0x01	/* what follows the header is one zstd frame */

#define CUTOVER_OP_INSERT	'I' /* new */
#define CUTOVER_OP_UPDATE	'U' /* new; old too if the key changed (its key) or there is no key (whole row) */
#define CUTOVER_OP_DELETE	'D' /* old: key, or whole row where there is no key */
#define CUTOVER_OP_TRUNCATE 'T' /* neighbours in one transaction are one statement */
#define CUTOVER_OP_REFRESH	'R' /* old: the key to read again from old */
#define CUTOVER_OP_CONTROL	'C'

#define CUTOVER_CHANGE_HAS_OLD		0x01
#define CUTOVER_CHANGE_HAS_NEW		0x02
#define CUTOVER_CHANGE_HAS_CTID		0x04
#define CUTOVER_CHANGE_HAS_ELIDED	0x08
#define CUTOVER_CHANGE_OLD_IS_ROW	0x10	/* old is the whole row, not just its key */
#define CUTOVER_CHANGE_RESTART_SEQS 0x20	/* TRUNCATE ... RESTART IDENTITY */

/* control kinds */
#define CUTOVER_CONTROL_RESYNC 'M'	/* text: why; the table must be copied afresh */
#define CUTOVER_CONTROL_DDL 'X' /* text: SQL to run on new at this position; table_id 0 */
#define CUTOVER_CONTROL_REMOVED 'Z' /* table left the migration */

#endif							/* CUTOVER_BLOCK_H */
