#!/usr/bin/env bash
# latency.sh - from commit on old to visible on new, at RATE row changes a second:
# this extension beside native logical replication, in random order in each round.
# Load: transactions of ten row changes (5 inserted, 4 updated, 1 deleted).  Probe:
# pgbench commits a row into a table "beat" 50 times a second and logs when COMMIT
# returned; a loop within new looks for it every 0.2 ms or so and notes when it was
# there.  Both servers have the same clock.  One row for each round: percentiles, ms.
# RATE=2000  ROUNDS=5  SECONDS_EACH=10  ROWS=500000
. "$(dirname "$0")/lib.sh"
: "${RATE:=2000}" "${ROUNDS:=5}" "${SECONDS_EACH:=10}" "${ROWS:=500000}"

servers
say 'tables'
for side in old new; do
	$side postgres -c 'CREATE DATABASE base'
	$side base <<-SQL
		$orders_ddl
		$beat_ddl
		CREATE SEQUENCE order_ids START $((ROWS * 2));
		CREATE SEQUENCE beats;
		CREATE UNLOGGED TABLE seen (seq bigint, at timestamptz);
		CREATE UNLOGGED TABLE sent (nr serial, seconds bigint, us bigint);
		SET synchronous_commit = off;
		INSERT INTO orders SELECT $order_row FROM generate_series(1, $ROWS) i;
		VACUUM ANALYZE orders;
	SQL
done
cat > "$work/load.sql" <<SQL
\set a random($((ROWS / 5)), $ROWS)
\set b random($((ROWS / 5)), $ROWS)
\set c random($((ROWS / 5)), $ROWS)
\set d random($((ROWS / 5)), $ROWS)
\set x random(1, $((ROWS / 5)))
BEGIN;
INSERT INTO orders SELECT nextval('order_ids'), i, 'new', 10, 1, 'EUR', now(), NULL, 'Customer number ' || i, md5(i::text) || ' street, ' || md5((i + 1)::text),
	md5((i + 2)::text) || md5((i + 3)::text), '{"qty": 1, "sku": 77, "tag": "abcdefghijklmnop"}' FROM generate_series(:a, :a + 4) i;
UPDATE orders SET $order_change WHERE id = :a;
UPDATE orders SET $order_change WHERE id = :b;
UPDATE orders SET $order_change WHERE id = :c;
UPDATE orders SET $order_change WHERE id = :d;
DELETE FROM orders WHERE id = (SELECT min(id) FROM orders WHERE id >= :x);
COMMIT;
SQL
echo "INSERT INTO beat VALUES (nextval('beats'));" > "$work/beat.sql"

for who in native cutover; do
	fresh "latency_$who" base
	"${who}_setup" "latency_$who"
	"${who}_pause" "latency_$who"
done

# one WHO ROUND
one() {
	local who=$1 round=$2 db=latency_$1 first load watcher
	"${who}_resume" "$db"
	old "$db" -f "$work/beat.sql"
	first=$(old "$db" -c 'SELECT max(seq) FROM beat')
	await "$db" "EXISTS (SELECT FROM beat WHERE seq = $first)" 60
	new "$db" -c 'TRUNCATE seen, sent RESTART IDENTITY'
	rm -f "$work"/probe.*
	pgbench -n -M prepared -f "$work/load.sql" -c 2 -j 1 -R $((RATE / 10)) -T $((SECONDS_EACH + 2)) -h "$work/old" "$db" > "$work/load.out" 2>&1 &
	load=$!
	sleep 1
	new "$db" > /dev/null <<-SQL &
		DO \$\$
		DECLARE
			v_seq bigint;
			v_last bigint := $first;
			v_end timestamptz := clock_timestamp() + interval '$((SECONDS_EACH + 2)) s';
		BEGIN
			SET LOCAL synchronous_commit = off;
			WHILE clock_timestamp() < v_end LOOP
				SELECT max(seq) INTO v_seq FROM beat;
				IF v_seq > v_last THEN
					INSERT INTO seen SELECT g, clock_timestamp() FROM generate_series(v_last + 1, v_seq) g;
					v_last := v_seq;
				END IF;
				COMMIT;
				PERFORM pg_sleep(0.0001);
			END LOOP;
		END \$\$;
	SQL
	watcher=$!
	# one client: the n-th line of the log is the n-th row
	pgbench -n -M prepared -f "$work/beat.sql" -c 1 -j 1 -R 50 -T "$SECONDS_EACH" -l --log-prefix="$work/probe" -h "$work/old" "$db" > /dev/null 2>&1
	wait "$watcher" "$load"
	awk '{ print $5, $6 }' "$work"/probe.* | new "$db" -c "COPY sent (seconds, us) FROM STDIN (DELIMITER ' ')"
	read -r p50 p90 p99 most probes missing < <(new "$db" -F ' ' -c "
		SELECT round((percentile_cont(0.5) WITHIN GROUP (ORDER BY ms))::numeric, 2), round((percentile_cont(0.9) WITHIN GROUP (ORDER BY ms))::numeric, 2),
			round((percentile_cont(0.99) WITHIN GROUP (ORDER BY ms))::numeric, 2), round(max(ms)::numeric, 2), count(*), count(*) FILTER (WHERE ms IS NULL)
		FROM (SELECT extract(epoch FROM n.at) * 1000 - (s.seconds * 1000 + s.us / 1000.0) AS ms
			FROM sent s LEFT JOIN seen n ON n.seq = $first + s.nr) x")
	[ "$missing" = 0 ] || die "$who: $missing of $probes rows of the probe did not arrive"
	row 'p50 ms' "$who" "$round" "$p50"
	row 'p90 ms' "$who" "$round" "$p90"
	row 'p99 ms' "$who" "$round" "$p99"
	row 'max ms' "$who" "$round" "$most"
	row 'row changes/s' "$who" "$round" "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$work/load.out" | awk '{ printf "%.0f", $1 * 10 }')"
	first=$(old "$db" -c "SELECT max(seq) FROM beat")
	await "$db" "EXISTS (SELECT FROM beat WHERE seq = $first)" 60
	same "$db" || die "$who: the sides differ"
	"${who}_pause" "$db"
}

for round in $(seq "$ROUNDS"); do
	for who in $(shuf -e native cutover); do
		say "$who $round"
		one "$who" "$round"
	done
done
echo
summary 'plain:p50 ms:cutover:::<=3' 'plain:p99 ms:cutover:::<=15' 'plain:max ms:cutover' 'plain:p50 ms:native' 'plain:p99 ms:native' 'plain:max ms:native' \
	'plain:row changes/s:cutover' 'plain:row changes/s:native'
