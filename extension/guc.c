/*
 * guc.c - every setting of cutover, sorted by name.
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"

#include "clients.h"
#include "guc.h"
#include "shmem.h"

bool		cutover_guc_allow_mixed_transactions = false;
int			cutover_guc_apply_batch_rows = 50000;
int			cutover_guc_apply_memory = 64 * 1024;
int			cutover_guc_capture = CUTOVER_CAPTURE_MARK;
int			cutover_guc_breaker_cooldown = 30;
int			cutover_guc_breaker_failures = 5;
int			cutover_guc_change_retention = 3600;
int			cutover_guc_compare_jobs = 2;
int			cutover_guc_compare_lag = 60;
int			cutover_guc_compare_max_rate = 0;
int			cutover_guc_copy_chunk_size = 64;
int			cutover_guc_copy_jobs = 4;
int			cutover_guc_copy_max_rate = 0;
int			cutover_guc_dual_write_timeout = 3000;
int			cutover_guc_in_doubt_timeout = 10000;
int			cutover_guc_lease_time = 15;
int			cutover_guc_lock_timeout = 500;
int			cutover_guc_max_read_lag = 5000;
int			cutover_guc_max_divergences = 10000;
int			cutover_guc_network_timeout = 60;
int			cutover_guc_partition_rows = CUTOVER_PARTITION_ROWS_APPLY;
bool		cutover_guc_protect_new = true;
int			cutover_guc_queue_limit = 0;
int			cutover_guc_queue_segment_size = 256;
int			cutover_guc_read_from = CUTOVER_READ_FROM_AUTO;
int			cutover_guc_read_timeout = 3000;
int			cutover_guc_retry_max_delay = 10000;
char	   *cutover_guc_route_key = NULL;
int			cutover_guc_shadow_max_rate = 2000;
int			cutover_guc_shadow_max_rows = 10000;
int			cutover_guc_shadow_workers = 1;
int			cutover_guc_spill_size = 1024;
char	   *cutover_guc_switch_stop_at = NULL;
static char *cutover_guc_forwarded = NULL;
static char *cutover_guc_token = NULL;

static const struct config_enum_entry capture_options[] = {
	{"strict", CUTOVER_CAPTURE_STRICT, false},
	{"mark", CUTOVER_CAPTURE_MARK, false},
	{"off", CUTOVER_CAPTURE_OFF, false},
	{NULL, 0, false}
};

static const struct config_enum_entry partition_rows_options[] = {
	{"apply", CUTOVER_PARTITION_ROWS_APPLY, false},
	{"ignore", CUTOVER_PARTITION_ROWS_IGNORE, false},
	{NULL, 0, false}
};

static const struct config_enum_entry read_from_options[] = {
	{"auto", CUTOVER_READ_FROM_AUTO, false},
	{"old", CUTOVER_READ_FROM_OLD, false},
	{"new", CUTOVER_READ_FROM_NEW, false},
	{NULL, 0, false}
};

/*
 * Define all settings.
 */
void
cutover_guc_init(void)
{
	DefineCustomBoolVariable("cutover.allow_mixed_transactions",
							 "One transaction may write to tables that have moved to new and to others.",
							 "New commits first, then old: if old fails to, new keeps what it has.",
							 &cutover_guc_allow_mixed_transactions, false,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.apply_batch_rows",
							"Number of changes after which the replicator commits on new.",
							"Larger sets coalesce more and cost less for each change; smaller ones show sooner.",
							&cutover_guc_apply_batch_rows, 50000, 1, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.apply_memory",
							"Memory in which a replicator collects changes before it writes them to new.",
							"A larger transaction is sent in several sets, and still committed at once.",
							&cutover_guc_apply_memory, 64 * 1024, 1024, MAX_KILOBYTES,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.breaker_cooldown",
							"Time for which commits in dual_write do not wait for new, and reads stay on old, after new failed too often.",
							"Commits wait again once new has caught up and this time is over; then one read tries new.",
							&cutover_guc_breaker_cooldown, 30, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.breaker_failures",
							"Failures in a row after which commits in dual_write cease to wait for new, and reads stay on old.",
							"cutover.status.degraded says that they did, cutover.read_stats the same of reads.",
							&cutover_guc_breaker_failures, 5, 1, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("cutover.capture",
							 "What happens when a change can't be captured.",
							 "strict: the transaction fails. mark: it succeeds and the table is marked for resync. off: nothing is captured.",
							 &cutover_guc_capture, CUTOVER_CAPTURE_MARK, capture_options,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.change_retention",
							"How long changes that new has are kept in the queue.",
							"A comparison by changes looks at the keys among them.",
							&cutover_guc_change_retention, 3600, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.compare_jobs",
							"Number of workers that compare a target at the same time.",
							"Each needs one of max_worker_processes; with fewer it takes longer.",
							&cutover_guc_compare_jobs, 2, 1, 64,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.compare_lag",
							"How far before now a window ends by default.",
							"Rows are most likely to change again shortly after they changed.",
							&cutover_guc_compare_lag, 60, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.compare_max_rate",
							"Rows a second that all workers comparing a target together may read on old.",
							"Zero means no limit but the share of time that they rest.",
							&cutover_guc_compare_max_rate, 0, 0, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.copy_chunk_size",
							"Size of the parts in which a table is copied.",
							"No snapshot on old lives longer than the copy of one part.",
							&cutover_guc_copy_chunk_size, 64, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.copy_jobs",
							"Number of copiers, and of indexes built on new, at the same time.",
							"Each needs one of max_worker_processes.",
							&cutover_guc_copy_jobs, 4, 1, 64,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.copy_max_rate",
							"Bytes a second that all copiers of a target together may send.",
							"Zero means no limit.",
							&cutover_guc_copy_max_rate, 0, 0, MAX_KILOBYTES,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.dual_write_timeout",
							"How long a commit in dual_write waits for new.",
							"Then it succeeds with a warning; new gets the change later.",
							&cutover_guc_dual_write_timeout, 3000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	/* like cutover.token */
	DefineCustomStringVariable("cutover.forwarded",
							   "Tells the guard on new that statements come from clients of old.",
							   NULL,
							   &cutover_guc_forwarded, "",
							   PGC_USERSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.in_doubt_timeout",
							"How long a write waits while nobody knows which side is master.",
							"A switch that was cut off is decided as soon as new can be asked. Then the write fails.",
							&cutover_guc_in_doubt_timeout, 10000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.lease_time",
							"Time after which another instance of this server may take over the work on new.",
							"A copy of this server's files stays inert while the original renews its lease.",
							&cutover_guc_lease_time, 15, 2, 3600,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.lock_timeout",
							"How long our own schema changes wait for a lock before they give way and try again.",
							"Applications queue behind such a wait.",
							&cutover_guc_lock_timeout, 500, 10, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.max_divergences",
							"Differences of a table that cutover.divergence has room for.",
							"More are counted, and the result says so.",
							&cutover_guc_max_divergences, 10000, 1, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.max_read_lag",
							"How far new may be behind for reads to be answered there.",
							"With -1 it may be behind as far as it likes. What the session itself has written is always there.",
							&cutover_guc_max_read_lag, 5000, -1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.network_timeout",
							"Time without an answer from new after which a connection counts as lost.",
							"Zero waits for ever. Index builds are exempt.",
							&cutover_guc_network_timeout, 60, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomEnumVariable("cutover.partition_rows",
							 "What happens on new to the rows of a partition that is attached, detached or dropped.",
							 "apply: they are inserted or deleted there. ignore: they stay as they are.",
							 &cutover_guc_partition_rows, CUTOVER_PARTITION_ROWS_APPLY, partition_rows_options,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("cutover.protect_new",
							 "Before the switch new refuses writes of others to tables under migration.",
							 "What they write there is overwritten, or stands in the way of what old sends.",
							 &cutover_guc_protect_new, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.queue_limit",
							"Size of a target's queue at which changes count as not capturable.",
							"Zero means no limit. See cutover.capture.",
							&cutover_guc_queue_limit, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.queue_segment_size",
							"Size at which a queue segment is closed and the next one used.",
							"A segment is truncated as a whole once new has everything in it and in the next.",
							&cutover_guc_queue_segment_size, 256, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomEnumVariable("cutover.read_from",
							 "Which side answers this session's reads of tables under migration.",
							 "auto: what rules and ratio say. old, new: that side, where it can.",
							 &cutover_guc_read_from, CUTOVER_READ_FROM_AUTO, read_from_options,
							 PGC_USERSET, 0, NULL, cutover_clients_assign_read_from, NULL);
	DefineCustomIntVariable("cutover.read_timeout",
							"How long a read waits for the first row from new before old answers it.",
							"Zero waits for ever.",
							&cutover_guc_read_timeout, 3000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.retry_max_delay",
							"Longest pause between two attempts to reach new.",
							NULL,
							&cutover_guc_retry_max_delay, 10000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomStringVariable("cutover.route_key",
							   "Whose reads these are, for example the id of a user.",
							   "The read ratio is a share of keys where this is set, else of sessions.",
							   &cutover_guc_route_key, "",
							   PGC_USERSET, 0, NULL, cutover_clients_assign_route_key, NULL);
	DefineCustomIntVariable("cutover.shadow_max_rate",
							"SELECTs that one shadow worker runs on new in a second.",
							"What comes faster is dropped, and counted. Zero means no limit.",
							&cutover_guc_shadow_max_rate, 2000, 0, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.shadow_max_rows",
							"Rows of the largest result that is also read from new and compared.",
							"A larger one counts as skipped.",
							&cutover_guc_shadow_max_rows, 10000, 1, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.shadow_workers",
							"Number of processes for each target that run SELECTs on new to compare them.",
							"Each needs one of max_worker_processes and a connection to new, while there are samples.",
							&cutover_guc_shadow_workers, 1, 0, CUTOVER_MAX_SHADOW_WORKERS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("cutover.spill_size",
							"Changes of one transaction that a backend keeps in memory before it writes them to the queue.",
							NULL,
							&cutover_guc_spill_size, 1024, 0, MAX_KILOBYTES,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomStringVariable("cutover.switch_stop_at",
							   "Step at which a switch stops.",
							   "For tests: it goes on when the setting changes.",
							   &cutover_guc_switch_stop_at, "",
							   PGC_SIGHUP, GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	/* a placeholder where only new's functions use it; our prefix is reserved where this library is loaded, too */
	DefineCustomStringVariable("cutover.token",
							   "What a session of a migration to this database shows to the guard there.",
							   NULL,
							   &cutover_guc_token, "",
							   PGC_USERSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE, NULL, NULL, NULL);
	MarkGUCPrefixReserved("cutover");
}
