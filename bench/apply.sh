#!/usr/bin/env bash
# apply.sh - how fast a backlog reaches new: this extension beside native logical
# replication (one apply worker), on the same rows, in random order in each round.
#   apply.sh [small] [big] [memory]       default: small big
#   small    N row changes in transactions of ten: 5 inserts, 4 updates of random rows, 1 delete; 4 writers
#   big      N row changes in one transaction, the same mix as three statements
#   memory   MEMORY_ROWS changes in one transaction (6 of 10 inserts, 3 updates, 1 delete): the replicator's memory
# Both sides hold 0.6 N equal rows.  Replication is set up and paused, the changes
# are made, replication is resumed; the clock runs from that call until a row
# committed last is visible on new.  Then both sides are compared, row by row.
# N=1000000  ROUNDS=3  MEMORY_ROWS=10000000
. "$(dirname "$0")/lib.sh"
: "${N:=1000000}" "${ROUNDS:=3}" "${MEMORY_ROWS:=10000000}"
parts=${*:-small big}
held=$((N * 6 / 10))
lowest=$((N / 10))

servers
say 'tables'
for side in old new; do
	$side postgres -c 'CREATE DATABASE base'
	$side base <<-SQL
		$orders_ddl
		$beat_ddl
		SET synchronous_commit = off;
		INSERT INTO orders SELECT $order_row FROM generate_series(1, $held) i;
		VACUUM ANALYZE orders;
	SQL
done
# Writer w of 4 makes n transactions: inserts above what is there, updates of random
# rows that no other writer touches, deletes below those.
old base <<SQL
CREATE PROCEDURE make_changes(w int, n int) LANGUAGE plpgsql AS \$\$
DECLARE
	i bigint;
	k bigint;
BEGIN
	FOR t IN 1..n LOOP
		FOR r IN 1..5 LOOP
			i := $held + ((w - 1)::bigint * n + t - 1) * 5 + r;
			INSERT INTO orders VALUES ($order_row);
		END LOOP;
		FOR r IN 1..4 LOOP
			k := $lowest + w + 4 * floor(random() * (($held - $lowest) / 4 - 1));
			UPDATE orders SET $order_change WHERE id = k;
		END LOOP;
		DELETE FROM orders WHERE id = (w - 1)::bigint * n + t;
		COMMIT;
	END LOOP;
END \$\$;
SQL

changes_small() {
	local w writers=()
	for w in 1 2 3 4; do
		old "$1" -c 'SET synchronous_commit = off' -c "CALL make_changes($w, $((N / 40)))" &
		writers+=($!)
	done
	wait "${writers[@]}"
}
changes_big() {
	old "$1" <<-SQL
		BEGIN;
		INSERT INTO orders SELECT $order_row FROM generate_series($((held + 1)), $((held + N / 2))) i;
		UPDATE orders SET $order_change WHERE id BETWEEN $((lowest + 1)) AND $((N / 2));
		DELETE FROM orders WHERE id <= $lowest;
		COMMIT;
	SQL
}
changes_memory() {
	old "$1" <<-SQL
		BEGIN;
		INSERT INTO orders SELECT $order_row FROM generate_series($((held + 1)), $((held + MEMORY_ROWS / 10 * 6))) i;
		UPDATE orders SET $order_change WHERE id BETWEEN $((held + 1)) AND $((held + MEMORY_ROWS / 10 * 3));
		DELETE FROM orders WHERE id BETWEEN $((held + 1)) AND $((held + MEMORY_ROWS / 10));
		COMMIT;
	SQL
}

# watch_memory FILE: largest private memory of the replicator, kB, and the high-water mark of all it ever touched
watch_memory() {
	local most=0 pid rss
	while :; do
		pid=$(old apply_cutover -c "SELECT pid FROM pg_stat_activity WHERE datname = 'apply_cutover' AND backend_type LIKE 'cutover replicator%'" | head -n 1)
		while [ -n "$pid" ] && rss=$(awk '/^RssAnon/ { print $2 }' "/proc/$pid/status" 2> /dev/null) && [ -n "$rss" ]; do
			[ "$rss" -le "$most" ] || most=$rss
			echo "$most $(awk '/^VmHWM/ { print $2 }' "/proc/$pid/status" 2> /dev/null)" > "$1"
			sleep 0.2
		done
		sleep 0.2
	done
}

# one KIND WHO ROUND
one() {
	local kind=$1 who=$2 round=$3 db=apply_$2 begun seconds n=$N watcher=''
	[ "$kind" != memory ] || n=$MEMORY_ROWS
	fresh "$db" base
	"${who}_setup" "$db"
	old "$db" -c 'INSERT INTO beat VALUES (1)'
	await "$db" 'EXISTS (SELECT FROM beat WHERE seq = 1)' 60
	"${who}_pause" "$db"
	begun=$(now)
	"changes_$kind" "$db"
	row "$kind making s" "$who" "$round" "$(elapsed "$begun" "$(now)")"
	old "$db" -c 'INSERT INTO beat VALUES (2)' -c CHECKPOINT
	new "$db" -c CHECKPOINT
	[ "$kind" != memory ] || { watch_memory "$work/memory" & watcher=$!; }
	sleep 1
	begun=$(now)
	"${who}_resume" "$db"
	await "$db" 'EXISTS (SELECT FROM beat WHERE seq = 2)'
	seconds=$(elapsed "$begun" "$(now)")
	[ -z "$watcher" ] || { kill "$watcher"; wait "$watcher" || true; } 2> /dev/null
	same "$db" || die "$who, $kind: the sides differ"
	row "$kind rows/s" "$who" "$round" "$(awk -v n="$n" -v s="$seconds" 'BEGIN { printf "%.0f", n / s }')"
	if [ "$kind" = memory ]; then
		row 'memory private MB' "$who" "$round" "$(awk '{ printf "%.1f", $1 / 1024 }' "$work/memory")"
		row 'memory with shared MB' "$who" "$round" "$(awk '{ printf "%.1f", $2 / 1024 }' "$work/memory")"
	fi
	"${who}_down" "$db"
}

for kind in $parts; do
	if [ "$kind" = memory ]; then
		say memory
		one memory cutover 1
		continue
	fi
	for round in $(seq "$ROUNDS"); do
		for who in $(shuf -e native cutover); do
			say "$kind $who $round"
			one "$kind" "$who" "$round"
		done
	done
done
echo
summary 'ratio:small rows/s:cutover:native::>=1.1:x native' 'ratio:big rows/s:cutover:native::>=1.0:x native' \
	'ratio:small making s:cutover:native:::x native' 'ratio:big making s:cutover:native:::x native' \
	'plain:memory rows/s:cutover' 'plain:memory private MB:cutover' 'plain:memory with shared MB:cutover'
