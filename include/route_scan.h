/*
 * route_scan.h - the custom scan above a SELECT that may run on new.
 */
#ifndef CUTOVER_ROUTE_SCAN_H
#define CUTOVER_ROUTE_SCAN_H

#include "executor/execdesc.h"
#include "nodes/execnodes.h"

#include "route.h"

extern void cutover_route_init_scan(void);
extern Plan *cutover_route_wrap(Plan *local, Query *query, const RouteCheck *check);

/* To be called before ExecutorStart: chooses the side. */
extern void cutover_route_before_start(QueryDesc *desc, int eflags);

/* Does the running statement, of which this is the top, read on new? */
extern bool cutover_route_reads_new(PlanState *planstate);

#endif							/* CUTOVER_ROUTE_SCAN_H */
