/*
 * partition.h - rows that come and go with a whole relation.
 */
#ifndef CUTOVER_PARTITION_H
#define CUTOVER_PARTITION_H

#include "utils/rel.h"

/* Capture every row of rel, as inserted or as deleted.  The caller holds a lock that keeps writers out. */
extern void cutover_partition_capture_rows(Relation rel, char op);

#endif							/* CUTOVER_PARTITION_H */
