#!/usr/bin/env bash
# suites.sh REGRESS ISOLATION TAP: run the three suites on throw-away servers and
# say how it went.  Called by "make test", after the installation.
#
# Servers refuse to run as root: then everything runs as "postgres", on a copy
# of the tests in a temporary folder, so the clone may belong to anybody.
# CUTOVER_TEST_KEEP=1 keeps that folder; it is kept if anything fails.
set -u
cd "$(dirname "$0")/.." || exit 1
regress=$1 isolation=$2 tap=$3
jobs=${CUTOVER_TEST_JOBS:-2}

pgxs=$("$PG_CONFIG" --pgxs)
pgtest=$(dirname "$(dirname "$(dirname "$pgxs")")")/src/test
bindir=${CUTOVER_PREFIX:-}$("$PG_CONFIG" --bindir)

work=$(mktemp -d "${TMPDIR:-/tmp}/cutover-test.XXXXXX") || exit 1
cp -R sql expected t demo docs "$work/" || exit 1
mkdir -p "$work/home" "${CUTOVER_CACHE:=$PWD/.cache}"
as=()
if [ "$(id -u)" = 0 ]; then
	# what is brought from elsewhere is kept between runs, readable for all
	export CUTOVER_CACHE=/var/cache/cutover-test
	mkdir -p "$CUTOVER_CACHE"
	chown postgres "$CUTOVER_CACHE"
	chown -R postgres "$work"
	as=(runuser -u postgres --)
fi
cd "$work" || exit 1

export HOME=$work/home CUTOVER_CACHE
export PATH=$bindir:$PATH PG_REGRESS=$pgtest/regress/pg_regress
export PERL5LIB=$work/t/lib:$pgtest/perl${PERL5LIB:+:$PERL5LIB}
export TESTDATADIR=$work/tmp_check TESTLOGDIR=$work/tmp_check/log
export PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-120}
unset PGHOST PGPORT PGUSER PGDATABASE PGPASSWORD PGSERVICE PGOPTIONS PGAPPNAME PGCLIENTENCODING
export LC_ALL=C TZ=UTC

passed=0 failed=0 summary=()
# note NAME PASSED FAILED SECONDS
note() {
	passed=$((passed + $2)) failed=$((failed + $3))
	summary+=("$(printf '%-10s %4d passed %4d failed %6d s' "$1" "$2" "$3" "$4")")
}

# regress_suite NAME PROGRAM INPUTDIR TESTS...: pg_regress prints a line for each test
regress_suite() {
	local name=$1 program=$2 input=$3 start=$SECONDS ok bad rc
	shift 3
	mkdir -p "$work/$name"
	[ ${#as[@]} = 0 ] || chown postgres "$work/$name"
	timeout -k 30 15m "${as[@]}" "$program" --bindir="$bindir" --inputdir="$input" --outputdir="$work/$name" \
		--temp-instance="$work/$name/instance" --temp-config="$work/sql/regress.conf" \
		--no-locale --encoding=UTF8 "$@" 2>&1 | tee "$work/$name/summary"
	rc=${PIPESTATUS[0]}
	# the second form is that of PostgreSQL 16 and later
	ok=$(grep -cE ' \.\.\. ok |^ok [0-9]' "$work/$name/summary")
	bad=$(grep -cE ' \.\.\. FAILED|^not ok [0-9]' "$work/$name/summary")
	# it did not even come to the tests, or was stopped
	[ "$rc" = 0 ] || [ "$bad" -gt 0 ] || bad=1
	[ $((ok + bad)) -ge $# ] || bad=$(($# - ok))
	if [ "$bad" -gt 0 ]; then
		cat "$work/$name/regression.diffs" 2>/dev/null | head -n 400
		[ -e "$work/$name/regression.diffs" ] || tail -n 40 "$work/$name"/log/*.log
	fi
	note "$name" "$ok" "$bad" $((SECONDS - start))
}

# PostgreSQL::Test::Utils keeps what each test printed in tmp_check/log
tap_suite() {
	local start=$SECONDS ok bad rc log logs
	timeout -k 30 20m "${as[@]}" prove --timer -j "$jobs" "$@" 2>&1 | tee prove.out
	rc=${PIPESTATUS[0]}
	ok=$(cat tmp_check/log/regress_log_* 2>/dev/null | grep -cE '^(\[[^]]*\]\([^)]*\) )?ok [0-9]+')
	bad=$(cat tmp_check/log/regress_log_* 2>/dev/null | grep -cE '^(\[[^]]*\]\([^)]*\) )?not ok [0-9]+')
	# the tests that prove names in its report; one that died has failed too
	logs=$(sed -n 's|^t/\([^ ]*\)\.pl .*(Wstat.*|tmp_check/log/regress_log_\1|p' prove.out)
	for log in $logs; do
		grep -qE '^(\[[^]]*\]\([^)]*\) )?not ok [0-9]+' "$log" || bad=$((bad + 1))
		echo "--- end of $(basename "$log")"
		grep -v '^### \|^# Running: pg_ctl\|^waiting for\|^server stopped\|^# No postmaster' "$log" | tail -n 30 | cut -c1-1000
	done
	[ "$rc" = 0 ] || [ "$bad" -gt 0 ] || bad=1
	note tap "$ok" "$bad" $((SECONDS - start))
}

echo "PostgreSQL $("$bindir/postgres" -V | grep -o '[0-9][0-9.]*' | head -1), files in $work"
if [ -n "$regress" ]; then
	regress_suite regress "$PG_REGRESS" "$work" $regress
fi
if [ -n "$isolation" ]; then
	regress_suite isolation "$pgtest/isolation/pg_isolation_regress" "$work/sql/isolation" $isolation
fi
if [ -n "$tap" ]; then
	tap_suite $tap
fi

echo
printf '%s\n' "${summary[@]}"
if [ "$failed" -gt 0 ] || [ -n "${CUTOVER_TEST_KEEP:-}" ]; then
	echo "files are kept in $work"
else
	rm -rf "$work"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
