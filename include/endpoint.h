/*
 * endpoint.h - a connection to new.  worker/endpoint.c is the only file that knows libpq.
 *
 * Every function may raise an ERROR: a failed statement with the SQLSTATE that
 * new gave and the context "remote SQL command: ..."; a lost connection as
 * 08006; a connection that could not be made as 08001; no answer within the
 * limit as 08006 too (the connection is given up then).  No message holds a
 * conninfo or a password.  Every wait reaches CHECK_FOR_INTERRUPTS and wakes
 * up by the process latch, which it resets.  Results live in the caller's
 * memory context.  An endpoint lives until closed (or process exit) and
 * survives errors: after one, call cutover_endpoint_reset().
 */
#ifndef CUTOVER_ENDPOINT_H
#define CUTOVER_ENDPOINT_H

#include "datatype/timestamp.h"

#include "compat.h"

typedef struct CutoverEndpoint CutoverEndpoint;

/* Rows of text values, row by row; NULL pointer = SQL NULL. */
typedef struct CutoverRows
{
	int			nrows;
	int			ncols;
	char	  **values;			/* nrows * ncols */
	char	  **names;			/* ncols */
	uint64		affected;		/* command tag's count, else 0 */
} CutoverRows;

#define CUTOVER_CELL(r, row, col) ((r)->values[(row) * (r)->ncols + (col)])

/* A statement parameter: text if binary is false.  data NULL = SQL NULL. */
typedef struct CutoverParam
{
	const char *data;
	int			len;			/* bytes, used if binary */
	bool		binary;
} CutoverParam;

/*
 * Connect through a foreign server and the mapping that the current user has
 * there, or through keywords given.  Works outside of a transaction too.
 */
extern CutoverEndpoint *cutover_endpoint_connect(const char *server, const char *application);
extern CutoverEndpoint *cutover_endpoint_connect_info(const char *conninfo, const char *application);
extern void cutover_endpoint_close(CutoverEndpoint *ep);

/*
 * Tell new that this session belongs to the migration: its writes to tables
 * under migration are neither refused nor captured.  For what moves rows or
 * prepares tables; never for what writes in the name of a client, whose changes
 * must find their way back.  Does nothing where new doesn't know of us yet.
 */
extern void cutover_endpoint_authorize(CutoverEndpoint *ep);

/*
 * Old itself, as if it were new: the same functions by SPI, in the caller's
 * local transaction, each statement done when it is queued (sync only counts).  Parameters are text, or, where
 * binary, text[].  No COPY; BEGIN and COMMIT are the caller's.  The savepoint of
 * worker/apply.c is a subtransaction.  Run as: what statements of a table do is
 * done with the rights of this role (its owner); InvalidOid = those of the worker.
 */
#define CUTOVER_SAVEPOINT "SAVEPOINT cutover_row"
#define CUTOVER_SAVEPOINT_RELEASE "RELEASE SAVEPOINT cutover_row"
#define CUTOVER_SAVEPOINT_ROLL_BACK "ROLLBACK TO SAVEPOINT cutover_row; RELEASE SAVEPOINT cutover_row"
extern CutoverEndpoint *cutover_endpoint_local(void);
extern bool cutover_endpoint_is_local(CutoverEndpoint *ep);
extern void cutover_endpoint_run_as(CutoverEndpoint *ep, Oid role);

/* Roll back, leave COPY and pipeline mode; false if the connection is unusable (close it then).  Never raises. */
extern bool cutover_endpoint_reset(CutoverEndpoint *ep);

/* The same, but stay in new's transaction. */
extern bool cutover_endpoint_stop(CutoverEndpoint *ep);

extern int	cutover_endpoint_server_version(CutoverEndpoint *ep);
extern bool cutover_endpoint_used_password(CutoverEndpoint *ep);

/*
 * Settings for a session that only applies changes: plans by index, and
 * session_replication_role = replica where we may.  Outside of a transaction.
 * is_replica tells whether triggers and foreign keys there stay silent.
 */
extern void cutover_endpoint_set_apply_mode(CutoverEndpoint *ep);
extern bool cutover_endpoint_is_replica(CutoverEndpoint *ep);

/* Seconds without an answer after which a statement counts as lost; 0 = wait for ever.  Returns the former value. */
extern int	cutover_endpoint_set_timeout(CutoverEndpoint *ep, int seconds);

/* One statement, or several in sql if nparams = 0 (result of the last). */
extern CutoverRows *cutover_endpoint_exec(CutoverEndpoint *ep, const char *sql);
extern CutoverRows *cutover_endpoint_exec_params(CutoverEndpoint *ep, const char *sql, int nparams, const char *const *values);

/*
 * Pipeline: queue sends a statement (prepared under the hood the first time a
 * text is seen, kept prepared), not waiting for its result; sync waits for all
 * of them and raises the first failure (the rest was skipped by new).
 * Parameters are copied.  The sum of affected rows of the statements queued
 * with count = true is returned by sync.
 */
extern void cutover_endpoint_queue(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params, bool count);
extern uint64 cutover_endpoint_sync(CutoverEndpoint *ep);

/*
 * As queue, for a statement that returns rows: fn gets them, even if there are
 * none (valid during the call only), while a later call waits or polls, at the latest in sync.  It must not use the endpoint.
 */
typedef void (*CutoverRowsFn) (void *arg, CutoverRows *rows);
extern void cutover_endpoint_queue_rows(CutoverEndpoint *ep, const char *sql, int nparams, const CutoverParam *params,
										CutoverRowsFn fn, void *arg);

/* What is queued until the next sync may take any time: no limit while waiting for it. */
extern void cutover_endpoint_be_patient(CutoverEndpoint *ep);

/* Send what the socket takes and read what has come, without waiting: for use between pieces of other work. */
extern void cutover_endpoint_poll(CutoverEndpoint *ep);

/* COPY ... FROM STDIN: data in pieces of any size; end returns the rows copied.  An error midway: reset. */
extern void cutover_endpoint_copy_begin(CutoverEndpoint *ep, const char *sql);
extern void cutover_endpoint_copy_data(CutoverEndpoint *ep, const char *data, int len);
extern uint64 cutover_endpoint_copy_end(CutoverEndpoint *ep);

/*
 * For client backends: the connection to a target that is kept for the rest of
 * the local transaction, with a remote transaction that commits just before
 * the local one does and rolls back with it.
 */
extern CutoverEndpoint *cutover_endpoint_in_xact(const char *server);

/*
 * Queries whose rows are wanted as they come.  These functions raise nothing
 * but what CHECK_FOR_INTERRUPTS does: the caller decides what a failure means.
 * One at a time for each endpoint; the next one begins after the end of the last.
 */
typedef enum CutoverAnswer
{
	CUTOVER_ANSWER_ROWS,		/* some rows; ask for more */
	CUTOVER_ANSWER_END,			/* no more rows */
	CUTOVER_ANSWER_FAILED,		/* new raised an error: cutover_endpoint_query_error() */
	CUTOVER_ANSWER_LOST,		/* the connection is gone */
	CUTOVER_ANSWER_LATE			/* nothing came within the limit; the query is still under way */
} CutoverAnswer;

typedef struct CutoverQuery
{
	const char *sql;			/* NULL: the statement prepared as name */
	const char *name;
	int			nparams;
	const Oid  *types;
	const char *const *values;
	const int  *lengths;
	const int  *formats;
	bool		binary;			/* form of the result */
} CutoverQuery;

/* Connect as the mapping of some user says; raises 08001 if that takes longer than the limit. */
extern CutoverEndpoint *cutover_endpoint_connect_as(const char *server, const char *application, Oid user, int limit_ms);

/* Send a query; prepare a statement; false if the connection is gone. */
extern bool cutover_endpoint_query_send(CutoverEndpoint *ep, const CutoverQuery *query);
extern bool cutover_endpoint_query_prepare(CutoverEndpoint *ep, const char *name, const char *sql, int nparams, const Oid *types);

/* Wait for the next rows until the deadline (0 = network_timeout after the last sign of life). */
extern CutoverAnswer cutover_endpoint_query_next(CutoverEndpoint *ep, TimestampTz deadline);

/* The rows that came: valid until the next call. */
extern int	cutover_endpoint_query_rows(CutoverEndpoint *ep);
extern int	cutover_endpoint_query_columns(CutoverEndpoint *ep);
extern Oid	cutover_endpoint_query_type(CutoverEndpoint *ep, int column);
extern char *cutover_endpoint_query_value(CutoverEndpoint *ep, int row, int column, int *len);	/* NULL = SQL NULL */
extern uint64 cutover_endpoint_query_affected(CutoverEndpoint *ep);

/* After FAILED or LOST: its SQLSTATE; raise it. */
extern int	cutover_endpoint_query_sqlstate(CutoverEndpoint *ep);
CUTOVER_NORETURN extern void cutover_endpoint_query_raise(CutoverEndpoint *ep, const char *sql);

/*
 * End a query whose rows are not wanted any more: takes what comes quickly,
 * else has new cancel it.  False if the connection can only be closed.
 */
extern bool cutover_endpoint_query_end(CutoverEndpoint *ep);

/* While this is on, a wait passes requests to cancel to new, and does not heed them where interrupts are held. */
extern void cutover_endpoint_relay_cancel(CutoverEndpoint *ep, bool relay);

/* Is an idle connection still there, as far as can be told at once? */
extern bool cutover_endpoint_is_alive(CutoverEndpoint *ep);

/* Can new's transaction only be rolled back? */
extern bool cutover_endpoint_transaction_failed(CutoverEndpoint *ep);

/* Stop what is under way and undo a part of new's transaction, by the statements given; false = it is lost.  Never raises. */
extern bool cutover_endpoint_roll_back_to(CutoverEndpoint *ep, const char *sql);

/* Can it be used any more?  Is new in a transaction? */
extern bool cutover_endpoint_is_usable(CutoverEndpoint *ep);
extern bool cutover_endpoint_in_transaction(CutoverEndpoint *ep);

/* Is nothing under way that somebody must wait for? */
extern bool cutover_endpoint_is_quiet(CutoverEndpoint *ep);

/* Close at once: new is told to stop what it does, but nobody waits for it to listen. */
extern void cutover_endpoint_abandon(CutoverEndpoint *ep);

/* Send a statement and don't wait: its result is taken by the next query's send.  Never raises. */
extern void cutover_endpoint_send_off(CutoverEndpoint *ep, const char *sql);

/* Connection keywords, as libpq knows them. */
typedef enum CutoverOptionPlace
{
	CUTOVER_OPTION_UNKNOWN,
	CUTOVER_OPTION_REFUSED,		/* known, but would break the connection's purpose */
	CUTOVER_OPTION_SERVER,
	CUTOVER_OPTION_MAPPING		/* secret or personal: only in user mappings */
} CutoverOptionPlace;

typedef struct CutoverOption
{
	char	   *keyword;
	char	   *value;
	CutoverOptionPlace place;
} CutoverOption;

/* The keywords given in a conninfo string or URI, as List of CutoverOption; 22023 if it can't be parsed. */
extern struct List *cutover_endpoint_parse(const char *conninfo);
extern CutoverOptionPlace cutover_endpoint_option_place(const char *keyword);

#endif							/* CUTOVER_ENDPOINT_H */
