#!/usr/bin/env bash
# capture.sh - what capture costs the sessions of old, while nothing is applied.
#   capture.sh [bulk] [single] [pgbench] [other]      default: all
# The same tables stand in databases of one server: "plain" (no extension), "again"
# (no extension either: what it differs from "plain" by is noise), "cutover" (under
# migration, paused) and, where Slony-I is installed, "slony" (its log triggers,
# no daemon).  Within a round each database has its turn, in random order; a
# figure compares databases of the same round.
#   bulk     one INSERT, UPDATE, DELETE of BULK_ROWS rows: µs and WAL bytes a row
#   single   transactions of one row, synchronous_commit = off: µs each
#   pgbench  -N, 4 clients, prepared: transactions a second
#   other    the same on a table that is not under migration
# ROUNDS=10 of bulk and single, PAIRS=20 of SECONDS_EACH=5 of the others.
. "$(dirname "$0")/lib.sh"
: "${ROUNDS:=10}" "${PAIRS:=20}" "${SECONDS_EACH:=5}" "${BULK_ROWS:=100000}" "${SINGLE_ROWS:=20000}" "${SCALE:=20}" "${CLIENTS:=4}"
parts=${*:-bulk single pgbench other}

servers 'autovacuum = off'
say 'tables'
old postgres -c 'CREATE DATABASE plain'
pgbench -q -i -s "$SCALE" -h "$work/old" plain > /dev/null 2>&1
old plain <<SQL
$orders_ddl
ALTER TABLE pgbench_history ADD hid bigserial PRIMARY KEY;
CREATE TABLE other (id int PRIMARY KEY, v int NOT NULL, filler char(80) DEFAULT '');
INSERT INTO other SELECT i, 0 FROM generate_series(1, 1000000) i;
CREATE UNLOGGED TABLE stage (LIKE orders);
INSERT INTO stage SELECT $order_row FROM generate_series(1, $BULK_ROWS) i;
CREATE EXTENSION pg_prewarm;
CREATE PROCEDURE single(op text, n int) LANGUAGE plpgsql AS \$\$
BEGIN
	FOR i IN 1..n LOOP
		IF op = 'insert' THEN
			INSERT INTO orders VALUES ($order_row);
		ELSIF op = 'update' THEN
			UPDATE orders SET $order_change WHERE id = i;
		ELSE
			DELETE FROM orders WHERE id = i;
		END IF;
		COMMIT;
	END LOOP;
END \$\$;
VACUUM ANALYZE;
SQL
databases='plain again cutover'
if command -v slonik > /dev/null && compgen -G "${CUTOVER_PREFIX:-}$("$PG_CONFIG" --pkglibdir)/slony1_funcs*.so" > /dev/null; then
	databases+=' slony'
fi
for d in $databases; do
	[ "$d" = plain ] || old postgres -c "CREATE DATABASE $d TEMPLATE plain STRATEGY file_copy"
done
new postgres -c 'CREATE DATABASE cutover'
pg_dump -s -h "$work/old" plain | new cutover > /dev/null

cutover_target cutover
old cutover -c "SELECT cutover_add_table(t) FROM unnest('{orders,pgbench_accounts,pgbench_history}'::regclass[]) t" \
	-c 'SELECT cutover_start(copy => false)' -c 'SELECT cutover_wait()' -c 'SELECT cutover_pause()' > /dev/null
case $databases in *slony*)
	slonik > /dev/null <<-SLONIK
		cluster name = sc;
		node 1 admin conninfo = 'host=$work/old dbname=slony user=postgres';
		init cluster (id = 1, comment = 'old');
		create set (id = 1, origin = 1, comment = 'all');
		set add table (set id = 1, origin = 1, id = 1, fully qualified name = 'public.orders');
		set add table (set id = 1, origin = 1, id = 2, fully qualified name = 'public.pgbench_accounts');
		set add table (set id = 1, origin = 1, id = 3, fully qualified name = 'public.pgbench_history');
	SLONIK
esac

expected=0
count() { [ "$1" != cutover ] || expected=$((expected + $2)); }

# timed DB STATEMENT: "µs WAL-bytes" of it, its commit included
timed() {
	old "$1" -F ' ' <<-SQL
		SET synchronous_commit = off;
		SELECT clock_timestamp() AS t0, pg_current_wal_insert_lsn() AS l0 \gset
		$2;
		SELECT round(extract(epoch FROM clock_timestamp() - :'t0') * 1e6), pg_current_wal_insert_lsn() - :'l0';
	SQL
}

# by_statement METRIC ROWS: a round of insert, update, delete; the statement of $op is what $statement says
by_statement() {
	local metric=$1 n=$2 d op us wal
	for d in $databases; do old "$d" -c 'TRUNCATE orders'; done
	old plain -c CHECKPOINT
	for op in insert update delete; do
		for d in $(shuf -e $databases); do
			read -r us wal < <(timed "$d" "$("${metric}_$op")")
			count "$d" "$n"
			row "$metric $op us" "$d" "$round" "$(awk -v v="$us" -v n="$n" 'BEGIN { printf "%.3f", v / n }')"
			row "$metric $op WAL" "$d" "$round" "$(awk -v v="$wal" -v n="$n" 'BEGIN { printf "%.1f", v / n }')"
		done
	done
}
bulk_insert() { echo 'INSERT INTO orders SELECT * FROM stage'; }
bulk_update() { echo "UPDATE orders SET $order_change"; }
bulk_delete() { echo 'DELETE FROM orders'; }
single_insert() { echo "CALL single('insert', $SINGLE_ROWS)"; }
single_update() { echo "CALL single('update', $SINGLE_ROWS)"; }
single_delete() { echo "CALL single('delete', $SINGLE_ROWS)"; }

# tps DB PGBENCH-ARGS...
tps() {
	local d=$1 report
	shift
	old "$d" -c CHECKPOINT
	report=$(pgbench -n -M prepared -c "$CLIENTS" -j 2 -T "$SECONDS_EACH" -h "$work/old" "$@" "$d" 2> /dev/null)
	count "$d" $((per_transaction * $(sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' <<< "$report")))
	sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<< "$report"
}

# by_client METRIC CAPTURED-CHANGES-PER-TRANSACTION PGBENCH-ARGS...
by_client() {
	local metric=$1 per_transaction=$2 d
	shift 2
	for d in $databases; do
		old "$d" -c 'VACUUM pgbench_accounts, other' -c "SELECT pg_prewarm(c) FROM unnest('{pgbench_accounts,pgbench_accounts_pkey,other,other_pkey}'::regclass[]) c" > /dev/null
	done
	for round in $(seq "$PAIRS"); do
		for d in $(shuf -e $databases); do
			tps "$d" "$@" > "$work/tps"
			row "$metric tps" "$d" "$round" "$(cat "$work/tps")"
		done
	done
}
cat > "$work/other.sql" <<'SQL'
\set id random(1, 1000000)
BEGIN;
UPDATE other SET v = v + 1 WHERE id = :id;
SELECT v FROM other WHERE id = :id;
COMMIT;
SQL

for part in $parts; do
	say "$part"
	case $part in
		bulk) for round in $(seq "$ROUNDS"); do by_statement bulk "$BULK_ROWS"; done ;;
		single) for round in $(seq "$ROUNDS"); do by_statement single "$SINGLE_ROWS"; done ;;
		pgbench) by_client pgbench 2 -N ;;
		other) by_client other 0 -f "$work/other.sql" ;;
		*) die "what is $part?" ;;
	esac
done

queued=$(old cutover -c 'SELECT sum(queued_changes) FROM cutover.replication')
say "$queued changes in the queue, $expected made"

specs=()
for op in insert update delete; do
	specs+=("added:bulk $op us:cutover:plain:1:<=2.0:µs a row" "added:bulk $op us:slony:plain:1::µs a row" "added:bulk $op us:again:plain:1::noise, µs a row"
		"added:bulk $op WAL:cutover:plain:1:<=100:WAL bytes a row" "added:bulk $op WAL:slony:plain:1::WAL bytes a row")
done
for op in insert update delete; do
	specs+=("added:single $op us:cutover:plain:1:<=6:µs each" "added:single $op us:slony:plain:1::µs each" "added:single $op us:again:plain:1::noise, µs each"
		"added:single $op WAL:cutover:plain:1::WAL bytes each" "added:single $op WAL:slony:plain:1::WAL bytes each")
done
for metric in pgbench other; do
	bar=; [ "$metric" = other ] || bar='>=0.93'
	specs+=("ratio:$metric tps:cutover:plain::$bar:x plain" "ratio:$metric tps:slony:plain:::x plain" "ratio:$metric tps:again:plain:::noise, x plain")
done
echo
summary "${specs[@]}"
