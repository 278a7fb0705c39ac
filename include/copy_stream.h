/*
 * copy_stream.h - the result of a query on old as the data of a COPY on new.
 */
#ifndef CUTOVER_COPY_STREAM_H
#define CUTOVER_COPY_STREAM_H

#include "endpoint.h"

typedef struct CutoverCopyStream
{
	const char *query;			/* a SELECT on old, run with the active snapshot */
	Oid			run_as;			/* role, in a security-restricted operation; InvalidOid: ourselves */
	const char *copy;			/* "COPY t (columns) FROM STDIN", without options */
	int			ncols;
	const Oid  *new_types;		/* of the columns on new, InvalidOid = unknown */
	double		(*rate_fn) (void);	/* bytes a second, 0 = no limit; NULL = none ever */
	void		(*check_fn) (void *arg);	/* called several times a second; may raise an error */
	void	   *check_arg;
	uint64		rows;			/* out */
	uint64		bytes;			/* out */
} CutoverCopyStream;

/* Send everything; the COPY is begun and ended on ep. */
extern void cutover_copy_stream_run(CutoverEndpoint *ep, CutoverCopyStream *stream);

#endif							/* CUTOVER_COPY_STREAM_H */
