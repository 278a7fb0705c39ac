# cutover: PGXS build.  "make demo" and "make test" install what they need (Debian, as root).
EXTENSION = extension/cutover
MODULE_big = cutover
EXTVERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" extension/cutover.control)

OBJS = \
	extension/action.o \
	extension/capture.o \
	extension/cutover.o \
	extension/expression.o \
	extension/guc.o \
	extension/monitor.o \
	extension/partition.o \
	extension/remote.o \
	worker/action_worker.o \
	worker/apply.o \
	worker/batch.o \
	worker/chunk.o \
	worker/copier.o \
	worker/deferred.o \
	worker/endpoint.o \
	worker/launcher.o \
	worker/mapping.o \
	worker/replicator.o \
	worker/retry.o \
	worker/rotate.o \
	worker/shmem.o

# the install script, in this order
SQL_PARTS = \
	extension/schema.sql \
	extension/capture.sql \
	extension/action.sql \
	extension/target.sql \
	extension/table.sql \
	extension/run.sql \
	extension/preflight.sql \
	extension/mode.sql \
	extension/compare.sql \
	extension/read.sql \
	extension/ramp.sql \
	extension/monitor.sql \
	extension/grants.sql

DATA_built = extension/cutover--$(EXTVERSION).sql

PG_CPPFLAGS = -I$(srcdir)/include -I$(libpq_srcdir)
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
SHLIB_LINK_INTERNAL = $(libpq)
# JIT inlining of our functions brings nothing; clang need not be there to build
override with_llvm = no
EXTRA_CLEAN = extension/cutover--$(EXTVERSION).sql tmp_check

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard include/*.h)

extension/cutover--$(EXTVERSION).sql: $(SQL_PARTS)
	{ echo '\echo Use "CREATE EXTENSION cutover" to load this file. \quit'; cat $^; } > $@
