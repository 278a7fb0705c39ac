#!/usr/bin/env bash
# copy.sh - the initial copy of one large table, secondary index included: this
# extension (cutover.copy_jobs = JOBS) beside pgcopydb clone (JOBS table jobs, JOBS
# index jobs, tables divided above 256 MB), in random order in each round.
# The clock runs from an empty database on new to the table complete there, with
# its indexes and statistics; both begin by making the schema.  Then rows are compared.
# ROWS=5000000  ROUNDS=3  JOBS=4
. "$(dirname "$0")/lib.sh"
: "${ROWS:=5000000}" "${ROUNDS:=3}" "${JOBS:=4}"

servers "cutover.copy_jobs = $JOBS"
say 'tables'
old postgres -c 'CREATE DATABASE base'
old base <<SQL
$orders_ddl
DROP INDEX orders_customer;
SET synchronous_commit = off;
INSERT INTO orders SELECT $order_row FROM generate_series(1, $ROWS) i;
CREATE INDEX orders_customer ON orders (customer_id);
VACUUM ANALYZE;
SQL
old postgres -c 'ALTER DATABASE base RENAME TO copy'
pg_dump -s -h "$work/old" copy > "$work/schema.sql"
contestants=cutover
! command -v pgcopydb > /dev/null || contestants+=' pgcopydb'
mb=$(old copy -c "SELECT round(pg_table_size('orders') / 1e6)")
expected=$(old copy -c "$digest")
indexes="SELECT count(*) FROM pg_index WHERE indrelid = 'orders'::regclass AND indisvalid"

copy_cutover() {
	new copy -f "$work/schema.sql" > /dev/null
	old copy -c "SELECT cutover_add_target('new', 'host=$work/new dbname=copy user=postgres')" -c "SELECT cutover_add_table('orders')" -c 'SELECT cutover_start()' > /dev/null
	until [ "$(old copy -c "SELECT phase FROM cutover.tables")" = synced ]; do sleep 0.1; done
}
before_cutover() { old copy -c 'CREATE EXTENSION cutover'; }
after_cutover() { old copy -c 'SELECT cutover_cancel()' -c 'DROP EXTENSION cutover CASCADE' > /dev/null; }

copy_pgcopydb() {
	env -u PGUSER -u PGOPTIONS "${as[@]}" env HOME="$work" pgcopydb clone --source "postgres:///copy?host=$work/old&user=postgres" --target "postgres:///copy?host=$work/new&user=postgres" \
		--dir "$work/pgcopydb" --table-jobs "$JOBS" --index-jobs "$JOBS" --split-tables-larger-than 256MB --no-owner > "$work/pgcopydb.log" 2>&1 ||
		{ tail "$work/pgcopydb.log" >&2; return 1; }
}
before_pgcopydb() { rm -rf "$work/pgcopydb"; }
after_pgcopydb() { rm -rf "$work/pgcopydb"; }

for round in $(seq "$ROUNDS"); do
	for who in $(shuf -e $contestants); do
		say "$who $round"
		new postgres -c 'DROP DATABASE IF EXISTS copy WITH (FORCE)' -c 'CREATE DATABASE copy' -c CHECKPOINT
		"before_$who"
		old postgres -c CHECKPOINT
		begun=$(now)
		"copy_$who"
		seconds=$(elapsed "$begun" "$(now)")
		[ "$(new copy -c "$digest")" = "$expected" ] || die "$who: the sides differ"
		[ "$(new copy -c "$indexes")" = 2 ] || die "$who: an index is missing"
		row 'copy s' "$who" "$round" "$seconds"
		row 'copy MB/s' "$who" "$round" "$(awk -v m="$mb" -v s="$seconds" 'BEGIN { printf "%.1f", m / s }')"
		"after_$who"
	done
done
echo
summary 'speedup:copy s:cutover:pgcopydb::>=1.0:x pgcopydb' 'plain:copy MB/s:cutover' 'plain:copy MB/s:pgcopydb'
