/*
 * guc.h - settings. Defined and documented in extension/guc.c.
 */
#ifndef CUTOVER_GUC_H
#define CUTOVER_GUC_H

typedef enum CutoverCapturePolicy
{
	CUTOVER_CAPTURE_STRICT,		/* the user's transaction fails */
	CUTOVER_CAPTURE_MARK,		/* the table is marked for resync */
	CUTOVER_CAPTURE_OFF			/* nothing is captured */
} CutoverCapturePolicy;

typedef enum CutoverPartitionRows
{
	CUTOVER_PARTITION_ROWS_APPLY,	/* rows of a partition come and go with it */
	CUTOVER_PARTITION_ROWS_IGNORE
} CutoverPartitionRows;

typedef enum CutoverReadFrom
{
	CUTOVER_READ_FROM_AUTO,		/* rules and ratio say */
	CUTOVER_READ_FROM_OLD,
	CUTOVER_READ_FROM_NEW
} CutoverReadFrom;

extern bool cutover_guc_allow_mixed_transactions;
extern int	cutover_guc_apply_batch_rows;	/* changes in one apply transaction, soft limit */
extern int	cutover_guc_apply_memory;	/* kB */
extern int	cutover_guc_capture;	/* CutoverCapturePolicy */
extern int	cutover_guc_breaker_cooldown;	/* s */
extern int	cutover_guc_breaker_failures;
extern int	cutover_guc_change_retention;	/* s */
extern int	cutover_guc_compare_jobs;
extern int	cutover_guc_compare_lag;	/* s */
extern int	cutover_guc_compare_max_rate;	/* rows/s over all workers, 0 = no limit */
extern int	cutover_guc_copy_chunk_size;	/* MB */
extern int	cutover_guc_copy_jobs;
extern int	cutover_guc_copy_max_rate;	/* kB/s over all copiers, 0 = no limit */
extern int	cutover_guc_dual_write_timeout; /* ms */
extern int	cutover_guc_in_doubt_timeout; /* ms */
extern int	cutover_guc_lease_time; /* s */
extern int	cutover_guc_lock_timeout;	/* ms: our own DDL on tables in use, on either side */
extern int	cutover_guc_max_divergences;	/* per table */
extern int	cutover_guc_max_read_lag;	/* ms, -1 = no limit */
extern int	cutover_guc_network_timeout;	/* s without any answer from new, 0 = for ever */
extern int	cutover_guc_partition_rows;	/* CutoverPartitionRows */
extern bool cutover_guc_protect_new;
extern int	cutover_guc_queue_limit;	/* MB, 0 = no limit */
extern int	cutover_guc_queue_segment_size; /* MB: rotate when larger */
extern int	cutover_guc_read_from;	/* CutoverReadFrom */
extern int	cutover_guc_read_timeout;	/* ms, 0 = for ever */
extern int	cutover_guc_retry_max_delay;	/* ms */
extern char *cutover_guc_route_key;
extern int	cutover_guc_shadow_max_rate;	/* statements a second and worker, 0 = no limit */
extern int	cutover_guc_shadow_max_rows;	/* of a result that is compared */
extern int	cutover_guc_shadow_workers;
extern int	cutover_guc_spill_size; /* kB of changes kept in a backend before a block is written */
extern char *cutover_guc_switch_stop_at;	/* name of a step, for tests */

extern void cutover_guc_init(void);

#endif							/* CUTOVER_GUC_H */
