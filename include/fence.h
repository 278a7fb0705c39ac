/*
 * fence.h - who may write to tables under migration, and when.
 */
#ifndef CUTOVER_FENCE_H
#define CUTOVER_FENCE_H

#include "miscadmin.h"
#include "storage/lock.h"

/* The lock that writers share and a switch takes for itself: the one on table cutover._fence_<target>. */
static inline void
cutover_fence_set_tag(LOCKTAG *tag, Oid fence)
{
	SET_LOCKTAG_RELATION(*tag, MyDatabaseId, fence);
}

#endif							/* CUTOVER_FENCE_H */
