#!/usr/bin/env bash
# reads.sh - SELECTs that new answers, beside other ways to get there.
#
# Point selects (pgbench -S -M prepared), each contestant for SECONDS_EACH in random order in each round:
#   plain     old, without our library           library   old with it, all reads stay there
#   routed    old with it, new answers           direct    a connection to new
#   bouncer   PgBouncer to new (session pooling: in transaction pooling its version 1.18 has no prepared statements; and with
#             -M simple in transaction pooling: bouncer_simple, beside routed_simple)
#   fdw       a foreign table of old (postgres_fdw)
# Large results: a table of ROWS rows through COPY (SELECT ...) TO STDOUT, read by psql.
# SCALE=10  ROUNDS=5  SECONDS_EACH=5  CLIENTS="1 8"  ROWS=1000000
. "$(dirname "$0")/lib.sh"
: "${SCALE:=10}" "${ROUNDS:=5}" "${SECONDS_EACH:=5}" "${CLIENTS:=1 8}" "${ROWS:=1000000}"

servers 'max_connections = 60'
say 'tables'
for side in old new; do
	$side postgres -c 'CREATE DATABASE reads'
	pgbench -q -i -s "$SCALE" -h "$work/$side" reads > /dev/null 2>&1
	$side reads <<-SQL
		CREATE TABLE wide (id int PRIMARY KEY, grp int, name text, amount numeric(12,2), at timestamptz);
		INSERT INTO wide SELECT i, i % 100, 'name ' || i, i / 7.0, timestamptz '2026-01-01' + i * interval '1 second' FROM generate_series(1, $ROWS) i;
		VACUUM ANALYZE;
		CHECKPOINT;
	SQL
done
old postgres -c 'CREATE DATABASE fdw'
old fdw <<-SQL
	CREATE EXTENSION postgres_fdw;
	CREATE SERVER new FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$work/new', dbname 'reads', fetch_size '10000');
	CREATE USER MAPPING FOR postgres SERVER new OPTIONS (user 'postgres');
	IMPORT FOREIGN SCHEMA public LIMIT TO (pgbench_accounts, wide) FROM SERVER new INTO public;
	CREATE TABLE pgbench_branches (bid int);
	INSERT INTO pgbench_branches SELECT generate_series(1, $SCALE);
SQL
cutover_target reads
old reads -c "SELECT cutover_add_tables()" -c "SELECT cutover_start(copy => false)" > /dev/null

cat > "$work/bouncer.ini" <<-INI
	[databases]
	reads = host=$work/new dbname=reads user=postgres pool_mode=session
	reads_tx = host=$work/new dbname=reads user=postgres pool_mode=transaction
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
if command -v pgbouncer > /dev/null; then
	[ ${#as[@]} = 0 ] || chown postgres "$work/bouncer.ini"
	"${as[@]}" pgbouncer -q "$work/bouncer.ini" > /dev/null 2>&1 &
	sleep 1
	bouncers='bouncer bouncer_simple'
else
	say 'pgbouncer is not there'
	bouncers=
fi

# connection WHO: where it connects to, with which settings
connection() {
	local load='-c session_preload_libraries=cutover'
	case $1 in
		plain*) echo "host=$work/old dbname=reads" ;;
		library*) echo "host=$work/old dbname=reads options='$load'" ;;
		routed*) echo "host=$work/old dbname=reads options='$load -c cutover.read_from=new'" ;;
		direct*) echo "host=$work/new dbname=reads" ;;
		fdw*) echo "host=$work/old dbname=fdw" ;;
		bouncer) echo "host=$work port=6543 dbname=reads" ;;
		bouncer_simple) echo "host=$work port=6543 dbname=reads_tx" ;;
	esac
}

# points WHO CLIENTS ROUND
points() {
	local mode=prepared tps
	case $1 in *_simple) mode=simple ;; esac
	tps=$(pgbench -n -S -M $mode -c "$2" -j "$(($2 > 2 ? 2 : 1))" -T "$SECONDS_EACH" "$(connection "$1")" 2> "$work/points.err" |
		sed -n 's/^tps = \([0-9.]*\).*/\1/p')
	[ -n "$tps" ] || die "$1: $(tail -n 2 "$work/points.err")"
	row "select/s $2" "$1" "$3" "$tps"
}

# large WHO ROUND
large() {
	local begun n
	begun=$(now)
	n=$(psql -XqAt "$(connection "$1")" -c 'COPY (SELECT id, grp, name, amount, at FROM wide) TO STDOUT' | wc -l)
	row 'rows/s' "$1" "$2" "$(awk -v n="$n" -v s="$(elapsed "$begun" "$(now)")" 'BEGIN { printf "%.0f", n / s }')"
	[ "$n" = "$ROWS" ] || die "$1: $n rows"
}

for round in $(seq "$ROUNDS"); do
	for clients in $CLIENTS; do
		for who in $(shuf -e plain library routed direct fdw routed_simple $bouncers); do
			points "$who" "$clients" "$round"
		done
	done
	for who in $(shuf -e plain library routed direct fdw); do
		large "$who" "$round"
	done
done
[ "$(old reads -c "SELECT routed > 1000 AND fallbacks = 0 AND timeouts = 0 FROM cutover.read_stats")" = t ] ||
	say "not all were routed: $(old reads -c 'SELECT * FROM cutover.read_stats')"
echo
checks=()
for clients in $CLIENTS; do
	checks+=("ratio:select/s $clients:library:plain::>=0.98" "ratio:select/s $clients:routed:plain" "ratio:select/s $clients:routed:direct")
	[ -z "$bouncers" ] || checks+=("ratio:select/s $clients:routed:bouncer::>=1" "ratio:select/s $clients:routed_simple:bouncer_simple")
	checks+=("ratio:select/s $clients:routed:fdw::>=3")
done
summary "${checks[@]}" 'ratio:rows/s:library:plain' 'ratio:rows/s:routed:plain::>=0.5' 'ratio:rows/s:routed:fdw'
