# lib.sh - two throw-away servers, old and new, and what the measurements share.
# Sourced, not run.  Everything lives in a temporary folder and is gone when the
# script ends.  Settings, by environment:
#   PG_CONFIG        which PostgreSQL             CUTOVER_PREFIX   copy of the server's files to run instead
#   SHARED_BUFFERS   of each server, 1GB          TMPDIR           where the folder goes
#   OUT=file         CSV rows are appended here, too (default: bench/out/<script>.csv)
#   KEEP=1           leave the folder there
set -eu -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$(basename "$0" .sh)
: "${SHARED_BUFFERS:=1GB}" "${OUT:=$here/out/$name.csv}"
if [ -z "${PG_CONFIG:-}" ]; then
	PG_CONFIG=pg_config
	[ ! -x /usr/lib/postgresql/15/bin/pg_config ] || PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config
fi
bindir=${CUTOVER_PREFIX:-}$("$PG_CONFIG" --bindir)
export PATH=$bindir:$PATH LC_ALL=C.UTF-8 PGCLIENTENCODING=UTF8 PGUSER=postgres PGOPTIONS='-c client_min_messages=warning'
unset PGHOST PGPORT PGDATABASE PGSERVICE PGAPPNAME

work=$(mktemp -d "${TMPDIR:-/tmp}/cutover-bench.XXXXXX")
as=()
if [ "$(id -u)" = 0 ]; then
	chown postgres "$work"
	as=(runuser -u postgres --)		# servers refuse to run as root
fi
mkdir -p "$(dirname "$OUT")"
rows=$work/rows.csv

say() { printf '[%s] %s\n' "$(date +%T)" "$*" >&2; }
die() { say "$*"; exit 1; }
now() { date +%s.%N; }
elapsed() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", b - a }'; }

# old DB args..., new DB args...: quiet psql
old() { local db=$1; shift; psql -XqAt -v ON_ERROR_STOP=1 -h "$work/old" -d "$db" "$@"; }
new() { local db=$1; shift; psql -XqAt -v ON_ERROR_STOP=1 -h "$work/new" -d "$db" "$@"; }

# row METRIC CONTESTANT ROUND VALUE: one CSV row, to stdout and to the file
row() { printf '%s,%s,%s,%s,%s\n' "$name" "$1" "$2" "$3" "$4" | tee -a "$OUT" "$rows"; }

server() {
	"${as[@]}" mkdir -p "$work/$1"
	"${as[@]}" initdb -D "$work/$1/data" -U postgres -A trust -E UTF8 --no-locale > /dev/null
	"${as[@]}" tee -a "$work/$1/data/postgresql.conf" > /dev/null <<-CONF
		listen_addresses = ''
		unix_socket_directories = '$work/$1'
		shared_buffers = $SHARED_BUFFERS
		wal_level = logical
		max_wal_size = 8GB
		min_wal_size = 2GB
		checkpoint_timeout = 30min
		max_worker_processes = 20
		max_replication_slots = 10
		max_wal_senders = 10
		max_logical_replication_workers = 12
		max_sync_workers_per_subscription = 4
		wal_receiver_status_interval = 1s
		wal_retrieve_retry_interval = 500ms
		work_mem = 32MB
		maintenance_work_mem = 256MB
		$2
	CONF
	"${as[@]}" pg_ctl -D "$work/$1/data" -l "$work/$1/log" -w -s start > /dev/null
}

finish() {
	local rc=$?
	trap - EXIT INT TERM HUP
	trap '' PIPE		# whoever read our output may be gone
	set +e
	if [ "$rc" != 0 ]; then
		for s in old new; do
			[ ! -e "$work/$s/log" ] || { echo "--- end of the log of $s"; tail -n 15 "$work/$s/log"; } >&2
		done
	fi
	# ours alone: children of this script, and the two servers
	jobs -p | while read -r p; do kill "$p" 2> /dev/null; done
	for s in new old; do
		[ ! -e "$work/$s/data/postmaster.pid" ] || "${as[@]}" pg_ctl -D "$work/$s/data" -m immediate -w -s stop > /dev/null 2>&1
	done
	[ -n "${KEEP:-}" ] && say "files are kept in $work" || rm -rf "$work"
	exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP PIPE

# servers [SETTINGS]: start both; SETTINGS are lines for both
servers() {
	server old "${1:-}"
	server new "${1:-}"
	say "$(psql --version), $(nproc) cores, $(awk '/MemTotal/ { printf "%d GiB", $2 / 1048576 }' /proc/meminfo)"
}

# The table: 12 columns, about 340 bytes a row, a key and one more index.
orders_ddl="CREATE TABLE orders (
	id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL, amount numeric(12,2) NOT NULL,
	tax numeric(12,2), currency char(3) NOT NULL DEFAULT 'EUR', created_at timestamptz NOT NULL DEFAULT now(),
	updated_at timestamptz, ship_name text, ship_addr text, note text, attrs jsonb);
	CREATE INDEX orders_customer ON orders (customer_id);"
# one row of it for key i
order_row="i, i % 100003, 'new', (i % 100000) / 100.0, (i % 1000) / 100.0, 'EUR', timestamptz '2024-01-01' + i * interval '1 second', NULL,
	'Customer number ' || i, md5(i::text) || ' street, ' || md5((i + 1)::text), md5((i + 2)::text) || md5((i + 3)::text),
	jsonb_build_object('sku', i % 5000, 'qty', i % 7, 'tag', md5((i % 1000)::text))"
order_change="status = 'paid', amount = amount + 1, updated_at = clock_timestamp()"
beat_ddl="CREATE TABLE beat (seq bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());"

digest="SELECT count(*) || ':' || coalesce(sum(hashtextextended(orders::text, 0)), 0) FROM orders"
same() { [ "$(old "$1" -c "$digest")" = "$(new "$1" -c "$digest")" ]; }

# await DB CONDITION [SECONDS]: until new says so; asked within new, so that a poll costs next to nothing
await() {
	new "$1" <<-SQL
		DO \$\$
		DECLARE v_until timestamptz := clock_timestamp() + interval '${3:-900} s';
		BEGIN
			LOOP
				EXIT WHEN $2;
				IF clock_timestamp() > v_until THEN
					RAISE EXCEPTION 'not there after ${3:-900} s';
				END IF;
				COMMIT;
				PERFORM pg_sleep(0.005);
			END LOOP;
		END \$\$;
	SQL
}

# fresh DB [TEMPLATE]: an empty database, or a copy of TEMPLATE, on both
fresh() {
	local side
	for side in old new; do
		$side postgres -c "DROP DATABASE IF EXISTS $1 WITH (FORCE)" -c "CREATE DATABASE $1 TEMPLATE ${2:-template0} STRATEGY file_copy"
	done
}

# The contestants of apply and latency, each with the same verbs:
#   <who>_setup DB   follow public.orders and public.beat, equal on both sides already
#   <who>_pause DB, <who>_resume DB   stop applying, capture goes on; start again
#   <who>_down DB    gone
native_setup() {
	old "$1" -c "CREATE PUBLICATION pub FOR TABLE orders, beat"
	new "$1" -c "CREATE SUBSCRIPTION sub_$1 CONNECTION 'host=$work/old dbname=$1 user=postgres' PUBLICATION pub WITH (copy_data = false)"
}
native_pause() {
	new "$1" -c "ALTER SUBSCRIPTION sub_$1 DISABLE"
	until [ "$(old "$1" -c "SELECT active FROM pg_replication_slots WHERE slot_name = 'sub_$1'")" = f ]; do sleep 0.1; done
}
native_resume() { new "$1" -c "ALTER SUBSCRIPTION sub_$1 ENABLE"; }
native_down() { new "$1" -c "DROP SUBSCRIPTION sub_$1"; }

cutover_target() {
	old "$1" -c "CREATE EXTENSION cutover"
	old "$1" -c "SELECT cutover_add_target('new', 'host=$work/new dbname=$1 user=postgres')" > /dev/null
}
cutover_setup() {
	cutover_target "$1"
	old "$1" -c "SELECT cutover_add_table('orders'), cutover_add_table('beat')" -c "SELECT cutover_start(copy => false)" > /dev/null
}
cutover_pause() { old "$1" -c "SELECT cutover_pause()" > /dev/null; }
cutover_resume() { old "$1" -c "SELECT cutover_resume()" > /dev/null; }
cutover_down() { old "$1" -c "SELECT cutover_cancel()" > /dev/null; }

# the table at the end, see summary.pl
summary() { perl "$here/summary.pl" "$rows" "$@"; }
