#!/usr/bin/env bash
# switch.sh - how long clients wait while the master changes: pgbench TPC-B, 8 clients
# throttled to 1,500 transactions a second, through PgBouncer (transaction pooling).
#   cutover  cutover_set_mode() forth and back, SWITCHES times in one run, with
#            demo/pgbouncer-listener.pl between; then WRITERS times with a transaction
#            present that has been writing for LONG seconds when it ends
#   native   PAUSE, drain of native logical replication, sequence, re-point, RESUME; one
#            switch a run, RUNS times (it has no way back)
# One row for each switch: the longest latency of any transaction that ended from its
# begin to a second after its end, in ms; what the gate was closed for (cutover.mode_change)
# beside it.  Latencies include what pgbench was late.  Rows also say how many
# transactions failed.
# SWITCHES=100  WRITERS=3  LONG=30  RUNS=5  CLIENTS=8  RATE=1500  SCALE=10
. "$(dirname "$0")/lib.sh"
: "${SWITCHES:=100}" "${WRITERS:=3}" "${LONG:=30}" "${RUNS:=5}" "${CLIENTS:=8}" "${RATE:=1500}" "${SCALE:=10}"
pgbouncer=$(command -v pgbouncer || echo /usr/sbin/pgbouncer)
[ -x "$pgbouncer" ] || die 'pgbouncer is not installed'

servers
for side in old new; do
	$side postgres -c 'CREATE DATABASE base'
	"$bindir/pgbench" -q -i -s "$SCALE" -h "$work/$side" base > /dev/null 2>&1
	$side base -c 'ALTER TABLE pgbench_history ADD COLUMN hid bigserial PRIMARY KEY'
done

address() { echo "host=$work/$1 dbname=$2 user=postgres"; }
bouncer() {
	cat > "$work/bouncer.ini" <<-INI
		[databases]
		app = $(address old "$1")
		[pgbouncer]
		listen_addr =
		listen_port = 6432
		unix_socket_dir = $work
		auth_type = any
		admin_users = postgres
		pool_mode = transaction
		default_pool_size = 20
		logfile = $work/bouncer.log
		pidfile = $work/bouncer.pid
	INI
	chmod 666 "$work/bouncer.ini"
	"${as[@]}" "$pgbouncer" -q -d "$work/bouncer.ini"
	until [ -S "$work/.s.PGSQL.6432" ]; do sleep 0.05; done
}
bouncer_ends() {
	kill "$(cat "$work/bouncer.pid")" 2> /dev/null || true
	while [ -e "$work/bouncer.pid" ]; do sleep 0.05; done
	rm -f "$work/.s.PGSQL.6432"
}
admin() { PGOPTIONS="" psql -XqAt -h "$work" -p 6432 -d pgbouncer -c "$1"; }

load_begins() {
	rm -f "$work"/load.*
	PGOPTIONS='' "$bindir/pgbench" -n -c "$CLIENTS" -j 2 -R "$RATE" -T 3600 -l --log-prefix="$work/load" -h "$work" -p 6432 app > "$work/pgbench.out" 2>&1 &
	load=$!
	sleep 2
}
# failed: clients that were aborted or transactions that failed so far
failed() { grep -cE 'aborted|ERROR' "$work/pgbench.out" || true; }
load_ends() { kill -TERM "$load" 2> /dev/null || true; wait "$load" 2> /dev/null || true; }

# longest FROM TO: longest latency in ms of transactions that ended between these times and those a second later
longest() { sleep 1.2; cat "$work"/load.* | awk -v a="$1" -v b="$2" '{ t = $5 + $6 / 1e6 } t >= a && t <= b + 1 && $3 > m { m = $3 } END { printf "%.1f", m / 1000 }'; }

ours() {
	local mode=new_only i a pause
	fresh switch_ours base
	cutover_target switch_ours
	old switch_ours -c 'SELECT cutover_add_tables()' -c 'SELECT cutover_start(copy => false)' > /dev/null
	until [ "$(old switch_ours -c "SELECT bool_and(phase = 'synced') FROM cutover.progress")" = t ]; do sleep 0.1; done
	bouncer switch_ours
	PGOPTIONS="" "$here/../demo/pgbouncer-listener.pl" --old "$(address old switch_ours)" --admin "host=$work port=6432 dbname=pgbouncer" \
		--database app --ini "$work/bouncer.ini" --old-address "$(address old switch_ours)" --new-address "$(address new switch_ours)" > "$work/listener.log" 2>&1 &
	until grep -qs ready "$work/listener.log"; do sleep 0.1; done
	load_begins
	for i in $(seq "$SWITCHES"); do
		a=$(now)
		pause=$(old switch_ours -c "SELECT extract(epoch FROM pause) * 1000 FROM cutover_set_mode('$mode', force => true)")
		row switch-ms cutover "$i" "$(longest "$a" "$(now)")" > /dev/null
		row pause-ms cutover "$i" "$pause" > /dev/null
		[ "$mode" = new_only ] && mode=old_only || mode=new_only
	done
	row failed cutover 1 "$(failed)"
	[ "$mode" = new_only ] || { old switch_ours -c "SELECT cutover_set_mode('old_only', force => true)" > /dev/null; sleep 1; }
	for i in $(seq "$WRITERS"); do
		psql -Xq -h "$work/old" -d switch_ours -c 'BEGIN' -c 'UPDATE pgbench_branches SET filler = filler WHERE bid = -1' \
			-c "INSERT INTO pgbench_history (tid) VALUES (0)" -c "SELECT pg_sleep($LONG)" -c COMMIT > /dev/null &
		sleep 1
		a=$(now)
		old switch_ours -c "SELECT cutover_set_mode('new_only', timeout => '$((LONG + 30)) s', force => true)" > /dev/null
		row writer-ms cutover "$i" "$(longest "$a" "$(now)")" > /dev/null
		old switch_ours -c "SELECT cutover_set_mode('old_only', force => true)" > /dev/null
		sleep 1
	done
	row failed cutover 2 "$(failed)"
	load_ends
	bouncer_ends
}

native() {
	local i a lsn
	for i in $(seq "$RUNS"); do
		fresh switch_native base
		old switch_native -c 'CREATE PUBLICATION pub FOR ALL TABLES'
		new switch_native -c "CREATE SUBSCRIPTION sub_switch CONNECTION '$(address old switch_native)' PUBLICATION pub WITH (copy_data = false)"
		bouncer switch_native
		load_begins
		a=$(now)
		admin 'PAUSE app'
		lsn=$(old switch_native -c 'SELECT pg_current_wal_insert_lsn()')
		new switch_native -c "SELECT setval('pgbench_history_hid_seq', $(old switch_native -c 'SELECT last_value FROM pgbench_history_hid_seq') + 1000)" > /dev/null
		until [ "$(old switch_native -c "SELECT coalesce(bool_and(replay_lsn >= '$lsn'), false) FROM pg_stat_replication")" = t ]; do sleep 0.002; done
		sed -i "s|^app = .*|app = $(address new switch_native)|" "$work/bouncer.ini"
		admin 'RELOAD'
		admin 'RESUME app'
		row switch-ms native "$i" "$(longest "$a" "$(now)")" > /dev/null
		row failed native "$i" "$(failed)"
		load_ends
		bouncer_ends
		new switch_native -c 'DROP SUBSCRIPTION sub_switch'
	done
}

native
ours
summary "plain:switch-ms:cutover:-:1:<=50:ms" "plain:pause-ms:cutover:-:1::ms" "plain:writer-ms:cutover:-:1::ms" "plain:switch-ms:native:-:1::ms"
