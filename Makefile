# cutover: PGXS build.  On a fresh Debian machine, as root: "make test", "make demo".
#   make deps          packages that building, testing and the demo need
#   make               build                    make install   install
#   make test          everything below: sql/, sql/isolation/, t/, on throw-away servers
#   make demo          a shop moves to a new server while it is open
#   make test-matrix   other versions of PostgreSQL, in folders of their own
#   make test-core     PostgreSQL's own tests with our library loaded: SRC=/path/to/source
#   make assert-build  compile with assertions, for the compiler's sake
#   make checkver      one version everywhere   make dist      an archive of HEAD
# REGRESS, ISOLATION and TAP choose tests: make test REGRESS=capture ISOLATION= TAP=t/001_basic.pl
# CUTOVER_PREFIX=dir: install into a copy of the server's files below dir, and run that one.
EXTENSION = extension/cutover
MODULE_big = cutover
EXTVERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" extension/cutover.control)

OBJS = \
	extension/action.o \
	extension/block.o \
	extension/buffer.o \
	extension/caller.o \
	extension/capture.o \
	extension/clients.o \
	extension/control.o \
	extension/cutover.o \
	extension/ddl.o \
	extension/dual.o \
	extension/expression.o \
	extension/fence.o \
	extension/fence_lock.o \
	extension/fence_refuse.o \
	extension/forward.o \
	extension/forward_local.o \
	extension/forward_rewrite.o \
	extension/forward_xact.o \
	extension/guc.o \
	extension/image.o \
	extension/layout.o \
	extension/monitor.o \
	extension/pack.o \
	extension/partition.o \
	extension/policy.o \
	extension/policy_rules.o \
	extension/policy_stats.o \
	extension/preflight.o \
	extension/queue.o \
	extension/remote.o \
	extension/route.o \
	extension/route_check.o \
	extension/route_connect.o \
	extension/route_deparse.o \
	extension/route_fold.o \
	extension/route_fresh.o \
	extension/route_function.o \
	extension/route_remote.o \
	extension/route_scan.o \
	extension/route_session.o \
	extension/route_statement.o \
	extension/route_table.o \
	extension/route_value.o \
	extension/shadow.o \
	extension/shadow_hash.o \
	extension/shadow_ring.o \
	extension/shadow_settings.o \
	extension/tracked.o \
	extension/tracked_relation.o \
	extension/wait.o \
	worker/action_worker.o \
	worker/applier.o \
	worker/apply.o \
	worker/apply_send.o \
	worker/apply_sql.o \
	worker/batch.o \
	worker/chunk.o \
	worker/compare_schedule.o \
	worker/coalesce.o \
	worker/chunk_plan.o \
	worker/comparer.o \
	worker/comparer_diff.o \
	worker/comparer_equal.o \
	worker/comparer_keys.o \
	worker/comparer_plan.o \
	worker/comparer_queue.o \
	worker/comparer_record.o \
	worker/comparer_settle.o \
	worker/comparer_side.o \
	worker/comparer_sql.o \
	worker/comparer_start.o \
	worker/comparer_table.o \
	worker/comparer_type.o \
	worker/comparer_wait.o \
	worker/comparer_window.o \
	worker/copier.o \
	worker/copier_prepare.o \
	worker/copier_worker.o \
	worker/copy_chunk.o \
	worker/copy_stream.o \
	worker/deferred.o \
	worker/deferred_build.o \
	worker/dual_failure.o \
	worker/endpoint.o \
	worker/endpoint_connect.o \
	worker/endpoint_local.o \
	worker/endpoint_pipeline.o \
	worker/endpoint_query.o \
	worker/endpoint_xact.o \
	worker/launcher.o \
	worker/local.o \
	worker/rowmap.o \
	worker/mapping.o \
	worker/mapping_new.o \
	worker/reader.o \
	worker/recount.o \
	worker/recover.o \
	worker/refresh.o \
	worker/replicator.o \
	worker/retry.o \
	worker/reverse.o \
	worker/reverse_apply.o \
	worker/reverse_map.o \
	worker/reverse_state.o \
	worker/reverse_write.o \
	worker/rotate.o \
	worker/session.o \
	worker/shadow_check.o \
	worker/shadow_normalize.o \
	worker/shadow_order.o \
	worker/shadow_query.o \
	worker/shadow_run.o \
	worker/shadow_stats.o \
	worker/shadow_suspect.o \
	worker/shadow_worker.o \
	worker/settle.o \
	worker/shmem.o \
	worker/switcher.o \
	worker/truncate.o

# the install script, in this order
SQL_PARTS = \
	extension/schema.sql \
	extension/fence.sql \
	extension/capture.sql \
	extension/remote.sql \
	extension/action.sql \
	extension/new_capture.sql \
	extension/new_guard.sql \
	extension/new_side.sql \
	extension/target.sql \
	extension/table.sql \
	extension/run.sql \
	extension/ddl.sql \
	extension/apply_error.sql \
	extension/leave.sql \
	extension/preflight.sql \
	extension/preflight_tables.sql \
	extension/mode.sql \
	extension/sequences.sql \
	extension/read_only.sql \
	extension/switch_checks.sql \
	extension/reverse.sql \
	extension/reverse_check.sql \
	extension/switch.sql \
	extension/switch_run.sql \
	extension/switch_foresee.sql \
	extension/compare_schema.sql \
	extension/compare_run.sql \
	extension/compare.sql \
	extension/compare_repair.sql \
	extension/compare_schedule.sql \
	extension/read.sql \
	extension/ramp.sql \
	extension/monitor.sql \
	extension/shadow.sql \
	extension/compare_views.sql \
	extension/grants.sql

# sql/<name>.sql with expected/<name>.out, in this order
REGRESS = \
	capture_ddl \
	capture_image \
	capture_order \
	capture_partition \
	capture_policy \
	capture_rows \
	compare_views \
	fence \
	install \
	interface \
	mode \
	preflight \
	read_policy \
	run \
	table \
	target \
	views

# sql/isolation/specs/<name>.spec with sql/isolation/expected/<name>.out
ISOLATION = \
	capture_gap \
	capture_install \
	capture_order \
	capture_segment \
	fence_gate \
	fence_master

# random workloads look for trouble by themselves: make test-random
TAP = $(filter-out t/300_random.pl,$(wildcard t/*.pl))

DATA_built = extension/cutover--$(EXTVERSION).sql

PG_CPPFLAGS = -I$(srcdir)/include -I$(libpq_srcdir)
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
SHLIB_LINK_INTERNAL = $(libpq)
# zstd makes the queue smaller; the build goes without it where it is not there
ifneq ($(wildcard /usr/include/zstd.h),)
PG_CPPFLAGS += -DCUTOVER_USE_ZSTD
SHLIB_LINK += -lzstd
endif
# JIT inlining of our functions brings nothing; clang need not be there to build
override with_llvm = no
EXTRA_CLEAN = extension/cutover--$(EXTVERSION).sql tmp_check results regression.diffs regression.out

# Debian keeps a pg_config for each version; the one in PATH may be another's
PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
# before "make deps" there may be no PostgreSQL to build against
all install:
	@echo "$(PG_CONFIG) is not there, or has no development files: run \"make deps\", or set PG_CONFIG" >&2; exit 1
endif

$(OBJS): $(wildcard include/*.h worker/*.h)

extension/cutover--$(EXTVERSION).sql: $(SQL_PARTS)
	{ printf '%s\n' '\echo Use "CREATE EXTENSION cutover" to load this file. \quit'; cat $^; } > $@

# "deps" may bring the very pg_config that this file is read with: go on in a new make
RUN_ENV = PG_CONFIG="$(PG_CONFIG)" CUTOVER_PREFIX="$(CUTOVER_PREFIX)"

.PHONY: test-core test-random deps test demo test-run demo-run install-for-run test-modules test-matrix assert-build checkver dist
deps:
	@t/deps.sh

test: deps
	@$(MAKE) --no-print-directory test-run

demo: deps
	@$(MAKE) --no-print-directory demo-run

install-for-run:
	@$(MAKE) --no-print-directory -s -j2 all
	@$(MAKE) --no-print-directory -s install $(if $(CUTOVER_PREFIX),DESTDIR="$(CUTOVER_PREFIX)")

# C that only tests call
test-modules: install-for-run
	@for m in t/modules/*/; do $(MAKE) --no-print-directory -s -C $$m PG_CONFIG="$(PG_CONFIG)" \
		install $(if $(CUTOVER_PREFIX),DESTDIR="$(CUTOVER_PREFIX)") || exit 1; done

test-run: checkver install-for-run test-modules
	@$(RUN_ENV) t/suites.sh "$(strip $(REGRESS))" "$(strip $(ISOLATION))" "$(strip $(TAP))"

demo-run: install-for-run
	@$(RUN_ENV) demo/run.sh

# CUTOVER_FUZZ_SEED, CUTOVER_FUZZ_SECONDS, CUTOVER_FUZZ_OWNER vary it
test-random: deps
	@$(MAKE) --no-print-directory test-run REGRESS= ISOLATION= TAP=t/300_random.pl

test-matrix: deps
	@t/matrix.sh

# SRC: a source tree of the server's version; its regression tests, with our library in every session
test-core: install-for-run
	@$(RUN_ENV) t/core.sh "$(SRC)"

# Debian's server has no assertions; this is for what the compiler says of ours
assert-build:
	rm -rf tmp_check/assert && mkdir -p tmp_check/assert
	git archive HEAD | tar -x -C tmp_check/assert
	$(MAKE) -C tmp_check/assert -j2 PG_CONFIG="$(PG_CONFIG)" PROFILE=-DUSE_ASSERT_CHECKING=1 all

checkver:
	@grep -q '"version": "$(EXTVERSION).0"' META.json || { echo "META.json is not at $(EXTVERSION).0" >&2; exit 1; }
	@grep -q '^## $(EXTVERSION)\b' CHANGELOG.md || { echo "CHANGELOG.md has no section $(EXTVERSION)" >&2; exit 1; }

dist: checkver
	git archive --format=tar.gz --prefix=cutover-$(EXTVERSION)/ -o cutover-$(EXTVERSION).tar.gz HEAD
