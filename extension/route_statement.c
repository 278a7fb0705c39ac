/*
 * route_statement.c - texts that this session has sent to new.
 *
 * The same text may come from several plans (one for each execution of a
 * prepared statement with custom plans), and is prepared on new once.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "route.h"

/* Texts that are remembered though no plan has them. */
#define ROUTE_MAX_TEXTS 512

static HTAB *statements = NULL;

/*
 * Forget texts that nobody needs: neither a plan nor new has them.
 */
static void
statement_sweep(void)
{
	HASH_SEQ_STATUS seq;
	RouteStatement *statement;

	hash_seq_init(&seq, statements);
	while ((statement = hash_seq_search(&seq)) != NULL)
		if (statement->refcount == 0 && statement->prepared_on == 0)
		{
			pfree(statement->sql);
			(void) hash_search(statements, &statement->hash, HASH_REMOVE, NULL);
		}
}

/*
 * The entry of a text.
 */
RouteStatement *
cutover_route_statement(const char *sql)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) sql, strlen(sql), 0);
	RouteStatement *statement;
	char	   *copy;

	if (statements == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(RouteStatement)};

		statements = hash_create("cutover statements of reads", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	while ((statement = hash_search(statements, &hash, HASH_FIND, NULL)) != NULL && strcmp(statement->sql, sql) != 0)
		hash++;
	if (statement == NULL)
	{
		if (hash_get_num_entries(statements) >= ROUTE_MAX_TEXTS)
			statement_sweep();
		copy = MemoryContextStrdup(TopMemoryContext, sql);
		statement = hash_search(statements, &hash, HASH_ENTER, NULL);
		memset((char *) statement + sizeof(hash), 0, sizeof(*statement) - sizeof(hash));
		statement->sql = copy;
	}
	statement->refcount++;
	return statement;
}

void
cutover_route_release_statement(RouteStatement *statement)
{
	statement->refcount--;
}
