/*
 * remote.h - SQL functions that run statements on new share this.
 */
#ifndef CUTOVER_REMOTE_H
#define CUTOVER_REMOTE_H

#include "fmgr.h"

#include "endpoint.h"

/* Run the statement in argument sqlarg with the text[] that follows it, and return its rows as objects of strings. */
extern void cutover_remote_run(CutoverEndpoint *ep, FunctionCallInfo fcinfo, int sqlarg);

#endif							/* CUTOVER_REMOTE_H */
