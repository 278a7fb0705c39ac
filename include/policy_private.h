/*
 * policy_private.h - between the parts of the read policy.
 */
#ifndef CUTOVER_POLICY_PRIVATE_H
#define CUTOVER_POLICY_PRIVATE_H

#include "utils/inet.h"

#include "policy.h"

/* No reason: new may answer. */
#define POLICY_NEW (-1)

/* Who reads. */
typedef struct PolicyReader
{
	int			read_from;		/* CutoverReadFrom */
	uint64		hash;			/* of the route key, else of the session */
	const char *application;
	Oid			session_role;
	Oid			current_role;	/* by SET ROLE */
	inet	   *client;			/* NULL = local */
} PolicyReader;

/* A row of cutover._rule. */
typedef struct PolicyRule
{
	bool		to_new;
	bool		any_table;
	char	   *application;	/* NULL = any */
	Oid			role;			/* InvalidOid = any */
	inet	   *client;			/* NULL = any */
	List	   *table_ids;
} PolicyRule;

/* What a backend knows of a target's reads, and has decided in this transaction. */
typedef struct CutoverPolicy
{
	/* configuration; valid for one generation */
	uint64		generation;		/* 0 = never read */
	MemoryContext cxt;
	List	   *rules;			/* of PolicyRule; those that say old first */
	List	   *not_synced;		/* table ids */
	List	   *rejected;		/* table ids of which new rejected a row */
	bool		all_rejected;	/* new rejected a schema change */

	/* the transaction */
	LocalTransactionId lxid;	/* that the next two belong to */
	CutoverSide side;
	bool		automatic;		/* not because the session said so */
	bool		answered;		/* new has answered in it */

	uint64		seen_prepared;	/* commits of prepared transactions that are accounted for */
} CutoverPolicy;

/* The policy of a target, its configuration up to date. */
extern CutoverPolicy *cutover_policy_get(CutoverTarget *target);

/* Where rules and ratio send a reader: POLICY_NEW, or the reason for old. */
extern int	cutover_policy_wish(CutoverTarget *target, CutoverPolicy *policy, const PolicyReader *reader, List *table_ids);

/* The same for a session of which only that is known; forwarding and the target's state included. */
extern int	cutover_policy_side_of(CutoverTarget *target, const PolicyReader *reader);

/* The slot of a target, if it is still that. */
extern CutoverSlot *cutover_policy_slot(CutoverTarget *target);

/* Do reads stay on old because new failed?  Now and then one of those who ask may try. */
extern bool cutover_policy_breaker_holds(CutoverSlot *slot);

#endif							/* CUTOVER_POLICY_PRIVATE_H */
