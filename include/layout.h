/*
 * layout.h - the shape of a relation at the time an image of a row was made.
 */
#ifndef CUTOVER_LAYOUT_H
#define CUTOVER_LAYOUT_H

#include "access/tupdesc.h"
#include "utils/rel.h"

#include "tracked.h"

/* The layout id of rel as it is now; writes a row of cutover._layout if there is none. */
extern int32 cutover_layout_get(CutoverRelation *entry, Relation rel);

/* End of a (sub)transaction: forget layouts that were rolled back.  subid Invalid: all made in this transaction. */
extern void cutover_layout_rollback(SubTransactionId subid);
extern void cutover_layout_commit(void);

/* The stored layout as a descriptor (no constraints, no missing values); NULL if there is none of this id. */
extern TupleDesc cutover_layout_read(int32 layout_id);

#endif							/* CUTOVER_LAYOUT_H */
