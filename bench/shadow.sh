#!/usr/bin/env bash
# shadow.sh - what shadow reads cost the sessions of old: transactions a second of
# pgbench, prepared, with 1 and 8 clients, for a SELECT of one row by its key and for one
# of 100 rows of 4 columns.
#   without   sessions do not load the library
#   off       they do, and the ratio is 0
#   one, all  1 % and 100 % of the SELECTs are also run on new and compared
# The worker and new run on the same machine, as far as it has cores left.
# ROUNDS=10  SECONDS_EACH=3  SCALE=10
. "$(dirname "$0")/lib.sh"
: "${ROUNDS:=10}" "${SECONDS_EACH:=3}" "${SCALE:=10}"

servers
say 'tables'
for side in old new; do
	$side postgres -c 'CREATE DATABASE bench'
done
pgbench -i -q -s "$SCALE" -h "$work/old" bench > "$work/init.out" 2>&1
pg_dump -s -h "$work/old" bench | new bench > /dev/null
cutover_target bench
old bench -c "SELECT cutover_add_table('pgbench_accounts')" -c 'SELECT cutover_start()' > /dev/null
until [ "$(old bench -c 'SELECT phase FROM cutover.progress')" = synced ]; do sleep 0.2; done
new bench -c 'VACUUM ANALYZE pgbench_accounts'
old bench -c 'VACUUM ANALYZE pgbench_accounts'
cat > "$work/one.sql" <<SQL
\set a random(1, $((SCALE * 100000)))
SELECT abalance FROM pgbench_accounts WHERE aid = :a;
SQL
cat > "$work/hundred.sql" <<SQL
\set a random(1, $((SCALE * 100000 - 100)))
SELECT aid, bid, abalance, filler FROM pgbench_accounts WHERE aid BETWEEN :a AND :a + 99;
SQL
library='-c client_min_messages=warning -c session_preload_libraries=cutover'

# one WHO ROUND FILE CLIENTS
one() {
	local who=$1 round=$2 file=$3 clients=$4 options=$library percent=0
	case $who in
		without) options=$PGOPTIONS ;;
		one) percent=1 ;;
		all) percent=100 ;;
	esac
	old bench -c "SELECT cutover_set_shadow_ratio($percent)" > /dev/null
	# the worker comes with the first sample, or goes
	PGOPTIONS=$options old bench -f "$work/one.sql" -v a=1 > /dev/null 2>&1 || true
	sleep 1.5
	PGOPTIONS=$options pgbench -n -M prepared -f "$work/$file.sql" -c "$clients" -j "$clients" -T "$SECONDS_EACH" -h "$work/old" bench > "$work/pgbench.out" 2>&1
	row "$file $clients" "$who" "$round" "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$work/pgbench.out")"
}

for round in $(seq "$ROUNDS"); do
	for clients in 1 8; do
		for file in one hundred; do
			for who in $(shuf -e without off one all); do
				one "$who" "$round" "$file" "$clients"
			done
		done
	done
	say "round $round"
done
say "$(old bench -F ' ' -c "SELECT 'compared ' || sum(calls) || ', dropped ' || sum(dropped) || ', differences ' || sum(mismatches) FROM cutover.shadow_read")"
echo
summary 'ratio:one 1:off:without' 'ratio:one 1:one:off::>=0.98' 'ratio:one 1:all:off' \
	'ratio:hundred 1:off:without' 'ratio:hundred 1:one:off::>=0.98' 'ratio:hundred 1:all:off::>=0.8' \
	'ratio:one 8:off:without' 'ratio:one 8:one:off::>=0.98' 'ratio:one 8:all:off' \
	'ratio:hundred 8:off:without' 'ratio:hundred 8:one:off::>=0.98' 'ratio:hundred 8:all:off::>=0.8'
