#!/usr/bin/env bash
# forward.sh - writes that clients of old forward to new, beside the same through PgBouncer to new.
#
# One UPDATE of one row (pgbench -M prepared), and TPC-B (five statements in a block), each contestant for SECONDS_EACH in
# random order in each round.  New is master, old follows, and what that costs new is the same for all:
#   forwarded   old, with our library            direct   a connection to new
#   bouncer     PgBouncer to new (session pooling: its version 1.18 has no prepared statements in transaction pooling)
# SCALE=10  ROUNDS=5  SECONDS_EACH=5  CLIENTS="1 8"
. "$(dirname "$0")/lib.sh"
: "${SCALE:=10}" "${ROUNDS:=5}" "${SECONDS_EACH:=5}" "${CLIENTS:=1 8}"

servers 'max_connections = 60'
say 'tables'
for side in old new; do
	$side postgres -c 'CREATE DATABASE writes'
	pgbench -q -i -s "$SCALE" -h "$work/$side" writes > /dev/null 2>&1
	$side writes -c 'ALTER TABLE pgbench_history ADD id bigserial PRIMARY KEY' -c 'VACUUM ANALYZE' -c CHECKPOINT
done
cutover_target writes
old writes -c "SELECT cutover_add_tables()" -c "SELECT cutover_start(copy => false)" > /dev/null
for i in $(seq 300); do
	[ "$(old writes -c "SELECT bool_and(phase = 'synced') FROM cutover.progress")" = t ] && break
	sleep 0.2
done
old writes -c "SELECT cutover_set_mode('new_only', force => true, old_writes => 'forward')" > /dev/null 2>&1
[ "$(old writes -c 'SELECT cutover_mode()')" = new_only ] || die 'no switch'

cat > "$work/bouncer.ini" <<-INI
	[databases]
	writes = host=$work/new dbname=writes user=postgres pool_mode=session
	[pgbouncer]
	listen_addr =
	listen_port = 6543
	unix_socket_dir = $work
	auth_type = any
	max_client_conn = 100
	default_pool_size = 20
	ignore_startup_parameters = options
	logfile = $work/bouncer.log
	pidfile = $work/bouncer.pid
INI
bouncer=
if command -v pgbouncer > /dev/null; then
	[ ${#as[@]} = 0 ] || chown postgres "$work/bouncer.ini"
	"${as[@]}" pgbouncer -q "$work/bouncer.ini" > /dev/null 2>&1 &
	sleep 1
	bouncer=bouncer
else
	say 'pgbouncer is not there'
fi
cat > "$work/update.sql" <<-SQL
	\set aid random(1, 100000 * $SCALE)
	UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
SQL

# connection WHO: where it connects to
connection() {
	case $1 in
		forwarded) echo "host=$work/old dbname=writes options='-c session_preload_libraries=cutover'" ;;
		direct) echo "host=$work/new dbname=writes" ;;
		bouncer) echo "host=$work port=6543 dbname=writes" ;;
	esac
}

# writes WHO METRIC CLIENTS ROUND FILE
writes() {
	local tps
	tps=$(pgbench -n -M prepared -f "$5" -c "$3" -j "$(($3 > 2 ? 2 : 1))" -T "$SECONDS_EACH" "$(connection "$1")" 2> "$work/writes.err" |
		sed -n 's/^tps = \([0-9.]*\).*/\1/p')
	[ -n "$tps" ] && [ ! -s "$work/writes.err" ] || die "$1: $(tail -n 2 "$work/writes.err")"
	row "$2 $3" "$1" "$4" "$tps"
}

cat > "$work/block.sql" <<-SQL
	\set aid random(1, 100000 * $SCALE)
	\set bid random(1, $SCALE)
	\set tid random(1, 10 * $SCALE)
	\set delta random(-5000, 5000)
	BEGIN;
	UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
	SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
	UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
	UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
	INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
	END;
SQL
for round in $(seq "$ROUNDS"); do
	for clients in $CLIENTS; do
		for who in $(shuf -e forwarded direct $bouncer); do
			writes "$who" 'update/s' "$clients" "$round" "$work/update.sql"
			writes "$who" 'tpcb/s' "$clients" "$round" "$work/block.sql"
		done
	done
done
echo
checks=()
for clients in $CLIENTS; do
	[ -z "$bouncer" ] || checks+=("ratio:update/s $clients:forwarded:bouncer::>=1" "ratio:tpcb/s $clients:forwarded:bouncer")
	checks+=("ratio:update/s $clients:forwarded:direct")
done
summary "${checks[@]}"
