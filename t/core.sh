#!/usr/bin/env bash
# core.sh SRC: PostgreSQL's own regression tests, with our library loaded in
# every session.  SRC is a source tree of the server's major version (it need
# not be built).  Called by "make test-core SRC=..."; not part of "make test".
set -eu
src=${1:?"make test-core SRC=/path/to/postgresql-source"}
bindir=${CUTOVER_PREFIX:-}$("$PG_CONFIG" --bindir)
major=$("$PG_CONFIG" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
[ -e "$src/src/test/regress/parallel_schedule" ] || { echo "$src is no source tree of PostgreSQL" >&2; exit 1; }
theirs=$(sed -n "s/^PACKAGE_VERSION='\([0-9]*\).*/\1/p" "$src/configure")
[ "$theirs" = "$major" ] || { echo "$src is PostgreSQL $theirs, the server is $major" >&2; exit 1; }
pgtest=$(dirname "$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")")/src/test

work=$(mktemp -d "${TMPDIR:-/tmp}/cutover-core.XXXXXX")
cp -R "$src/src/test/regress" "$work/regress"
# shellcheck disable=SC2046
cc $("$PG_CONFIG" --cflags) -fPIC -w -I"$("$PG_CONFIG" --includedir-server)" -shared -o "$work/regress/regress.so" "$work/regress/regress.c"
printf "shared_preload_libraries = 'cutover'\nmax_prepared_transactions = 2\n" > "$work/core.conf"
mkdir "$work/out"
as=()
if [ "$(id -u)" = 0 ]; then
	chown -R postgres "$work"
	as=(runuser -u postgres --)
fi
cd "$work"
rc=0
"${as[@]}" "$pgtest/regress/pg_regress" --bindir="$bindir" --inputdir="$work/regress" --outputdir="$work/out" --dlpath="$work/regress" \
	--temp-instance="$work/instance" --temp-config="$work/core.conf" --max-concurrent-tests=20 \
	--schedule="$work/regress/parallel_schedule" || rc=$?
[ "$rc" != 0 ] && echo "files are kept in $work" || rm -rf "$work"
exit "$rc"
