#!/usr/bin/env bash
# compare.sh - a full comparison of one large table that is equal on both sides, and what it costs.
#   compare.sh quiet   seconds, beside chunked sum(hashtextextended(row::text, 0)) on both sides at once and, if
#                      installed, pg_comparator with its checksum on both sides; in random order in each round
#   compare.sh load    the same while RATE row changes a second are made and one row in ten changes is one of ten hot
#                      keys, with a transaction open all the time and small queue segments; each pass must find nothing
#   compare.sh cost    pgbench -N beside a full comparison of its tables that never ends, paired with none
# Without an argument all three.
# ROWS=5000000  ROUNDS=3  PASSES=10  RATE=2000  SCALE=50  PAIRS=10  SECONDS_EACH=4
. "$(dirname "$0")/lib.sh"
: "${ROWS:=5000000}" "${ROUNDS:=3}" "${PASSES:=10}" "${RATE:=2000}" "${SCALE:=50}" "${PAIRS:=10}" "${SECONDS_EACH:=4}"
what=${*:-quiet load cost}

servers "cutover.queue_segment_size = 8MB
cutover.change_retention = 60"

wait_synced() { until [ "$(old "$1" -c "SELECT bool_and(phase = 'synced') FROM cutover.tables")" = t ]; do sleep 0.1; done; }

# full DB: one full comparison; prints what it found
full() { old "$1" -c "SELECT sum(missing + extra + different + representation), sum(deferred) FROM cutover_compare(method => 'full')"; }

if [[ $what == *quiet* || $what == *load* ]]; then
	say 'tables'
	for side in old new; do
		$side postgres -c 'CREATE DATABASE cmp'
		$side cmp <<-SQL
			$orders_ddl
			CREATE SEQUENCE order_ids START $((ROWS * 2));
			SET synchronous_commit = off;
			INSERT INTO orders SELECT $order_row FROM generate_series(1, $ROWS) i;
			VACUUM ANALYZE orders;
		SQL
	done
	cutover_target cmp
	old cmp -c "SELECT cutover_add_table('orders')" -c 'SELECT cutover_start(copy => false)' > /dev/null
	wait_synced cmp
	contestants='cutover hashsum'
	if command -v pg_comparator > /dev/null && old cmp -c 'CREATE EXTENSION pgcmp' 2> /dev/null; then
		new cmp -c 'CREATE EXTENSION pgcmp'
		contestants+=' pg_comparator'
	fi
fi

run_cutover() { full cmp; }

chunks="SELECT floor(id / 10000.0) || '|' || count(*) || '|' || sum(hashtextextended(t::text, 0)) FROM orders t GROUP BY floor(id / 10000.0) ORDER BY floor(id / 10000.0)"
run_hashsum() {
	local other
	old cmp -c "$chunks" > "$work/chunks.old" &
	other=$!
	new cmp -c "$chunks" > "$work/chunks.new"
	wait $other
	diff "$work/chunks.old" "$work/chunks.new" | grep -c '^[<>]' || true
}

run_pg_comparator() {
	local columns=customer_id,status,amount,tax,currency,created_at,updated_at,ship_name,ship_addr,note,attrs
	pg_comparator --max-ratio=1 --source-1="DBI:Pg:dbname=cmp;host=$work/old" --source-2="DBI:Pg:dbname=cmp;host=$work/new" \
		"pgsql://postgres@x/cmp/orders?id:$columns" "pgsql://postgres@x/cmp/orders" 2> "$work/pg_comparator.err" | grep -cE '^(UPDATE|INSERT|DELETE) ' || true
}

if [[ $what == *quiet* ]]; then
	for round in $(seq "$ROUNDS"); do
		for who in $(shuf -e $contestants); do
			begun=$(now)
			found=$(run_$who)
			seconds=$(elapsed "$begun" "$(now)")
			say "$who $round: $seconds s, found $found"
			[[ $found == 0 || $found == '0|0' ]] || die "$who found $found differences where there are none"
			row 'quiet s' "$who" "$round" "$seconds"
			row 'quiet rows/s' "$who" "$round" "$(awk -v n="$ROWS" -v s="$seconds" 'BEGIN { printf "%.0f", n / s }')"
		done
	done
fi

if [[ $what == *load* ]]; then
	cat > "$work/load.sql" <<-SQL
		\set a random($((ROWS / 5)), $ROWS)
		\set b random($((ROWS / 5)), $ROWS)
		\set c random($((ROWS / 5)), $ROWS)
		\set hot random(1, 10)
		\set x random(11, $((ROWS / 5)))
		BEGIN;
		INSERT INTO orders SELECT nextval('order_ids'), i, 'new', 10, 1, 'EUR', now(), NULL, 'Customer number ' || i, md5(i::text), md5((i + 2)::text),
			'{"qty": 1}' FROM generate_series(:a, :a + 4) i;
		UPDATE orders SET $order_change WHERE id = :a;
		UPDATE orders SET $order_change WHERE id = :b;
		UPDATE orders SET $order_change WHERE id = :c;
		UPDATE orders SET $order_change WHERE id = :hot;
		DELETE FROM orders WHERE id = (SELECT min(id) FROM orders WHERE id >= :x);
		COMMIT;
	SQL
	rotations() { old cmp -c 'SELECT rotations FROM cutover._target'; }
	before=$(rotations)
	pgbench -n -M prepared -f "$work/load.sql" -c 4 -j 2 -R $((RATE / 10)) -T 100000 -h "$work/old" cmp > "$work/load.out" 2>&1 &
	load=$!
	old cmp -c "BEGIN; INSERT INTO orders (id, customer_id, status, amount) VALUES (-1, 1, 'open', 1); SELECT pg_sleep(100000)" > /dev/null 2>&1 &
	long=$!
	false=0
	for round in $(seq "$PASSES"); do
		changes=$(old cmp -c "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables WHERE relname = 'orders'")
		begun=$(now)
		IFS='|' read -r found deferred < <(full cmp)
		seconds=$(elapsed "$begun" "$(now)")
		say "under load $round: $seconds s, found $found, deferred $deferred"
		false=$((false + found))
		row 'load s' cutover "$round" "$seconds"
		row 'load deferred' cutover "$round" "$deferred"
		row 'load row changes/s' cutover "$round" "$(old cmp -c "SELECT round((n_tup_ins + n_tup_upd + n_tup_del - $changes) / $seconds) FROM pg_stat_user_tables WHERE relname = 'orders'")"
	done
	kill $load $long
	wait $load $long 2> /dev/null || true
	row 'load false differences' cutover 1 "$false"
	row 'load rotations' cutover 1 $(($(rotations) - before))
fi

if [[ $what == *cost* ]]; then
	old postgres -c 'CREATE DATABASE cost'
	new postgres -c 'CREATE DATABASE cost'
	pgbench -i -q -s "$SCALE" -h "$work/old" cost 2> /dev/null
	pg_dump -s -h "$work/old" cost | new cost -f - > /dev/null
	cutover_target cost
	old cost -c 'ALTER TABLE pgbench_history ADD id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY'
	new cost -c 'ALTER TABLE pgbench_history ADD id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY'
	old cost -c 'SELECT cutover_add_tables()' -c 'SELECT cutover_start()' > /dev/null
	wait_synced cost
	tps() { pgbench -n -N -M prepared -c 4 -j 2 -T "$1" -h "$work/old" cost | sed -n 's/^tps = \([0-9.]*\).*/\1/p'; }
	tps 5 > /dev/null
	for round in $(seq "$PAIRS"); do
		for who in $(shuf -e with without); do
			comparer=
			if [ $who = with ]; then
				while :; do full cost > /dev/null 2>&1; done &
				comparer=$!
				sleep 0.5
			fi
			row 'pgbench -N tps' $who "$round" "$(tps "$SECONDS_EACH")"
			if [ -n "$comparer" ]; then
				kill $comparer
				wait $comparer 2> /dev/null || true
				old cost -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'cutover_compare' AND pid <> pg_backend_pid()" > /dev/null
				until [ "$(old cost -c "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'cutover (compare|action)'")" = 0 ]; do sleep 0.1; done
			fi
		done
	done
fi
echo
specs=()
[[ $what != *quiet* ]] || specs+=('speedup:quiet s:cutover:hashsum::>=1.3:x hashsum' 'speedup:quiet s:cutover:pg_comparator::>=2:x pg_comparator' 'plain:quiet rows/s:cutover')
[[ $what != *load* ]] || specs+=('plain:load s:cutover' 'plain:load deferred:cutover' 'plain:load row changes/s:cutover' 'plain:load false differences:cutover:::<=0' 'plain:load rotations:cutover')
[[ $what != *cost* ]] || specs+=('ratio:pgbench -N tps:with:without::>=0.9')
summary "${specs[@]}"
