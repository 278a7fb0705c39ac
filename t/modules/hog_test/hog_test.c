/*
 * hog_test.c - takes all the shared memory that the server keeps for libraries
 * which were not preloaded.
 */
#include "postgres.h"

#include "fmgr.h"
#include "storage/shmem.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(hog_shared_memory);

/*
 * hog_shared_memory() returns bigint: the bytes that were left.
 */
Datum
hog_shared_memory(PG_FUNCTION_ARGS)
{
	int64		taken = 0;

	for (Size size = 1024 * 1024; size >= 64; size /= 2)
	{
		while (ShmemAllocNoError(size) != NULL)
			taken += size;
	}
	PG_RETURN_INT64(taken);
}
