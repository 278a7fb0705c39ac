#!/usr/bin/env bash
# A shop moves to a new server while it is open.  Called by "make demo".
#
# Two throw-away servers in a temporary folder, sockets only; everything is
# gone when this ends.  Settings, by environment:
#   SCALE=200000   orders in the shop      RATE=300    transactions a second
#   CLIENTS=4      of the application      PACE=0      seconds to read each chapter
# Ends with a status other than zero if anything is not as it should be.
set -eu
cd "$(dirname "$0")"

: "${SCALE:=200000}" "${RATE:=300}" "${CLIENTS:=4}" "${PACE:=0}"
bindir=${CUTOVER_PREFIX:-}$("${PG_CONFIG:-pg_config}" --bindir)
export PATH=$bindir:$PATH LC_ALL=C.UTF-8 PGCLIENTENCODING=UTF8 PGUSER=postgres
unset PGHOST PGPORT PGDATABASE PGSERVICE PGOPTIONS PGAPPNAME

work=$(mktemp -d "${TMPDIR:-/tmp}/cutover-demo.XXXXXX")
cp -R schema.sql data.sql load pgbouncer-listener.pl "$work/"
as=()
if [ "$(id -u)" = 0 ]; then
	chown -R postgres "$work"
	as=(runuser -u postgres --)		# servers refuse to run as root
fi
cd "$work"

# ---------------------------------------------------------------------------
# how it looks

if [ -t 1 ]; then
	bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' cyan=$'\e[36m' off=$'\e[0m' terminal=1
else
	bold='' dim='' green='' red='' cyan='' off='' terminal=''
fi
chapter_no=0
chapter() {
	chapter_no=$((chapter_no + 1))
	printf '\n%s%d. %s%s\n\n' "$bold" "$chapter_no" "$1" "$off"
	[ "$PACE" = 0 ] || read -r -t "$PACE" _ < /dev/tty || true
}
say() { printf '   %s\n' "$*"; }
good() { printf '   %s✓%s %s\n' "$green" "$off" "$*"; }
bad() { printf '   %s✗ %s%s\n' "$red" "$*" "$off"; wrong=1; }
shown() { printf '   %s%s%s\n' "$cyan" "$*" "$off"; }
indent() { sed 's/^/   /'; }
thousands() { printf "%s" "$1" | sed -E ':a; s/^([0-9]+)([0-9]{3})/\1 \2/; ta'; }
die() { bad "$*"; exit 1; }
wrong=0

# ---------------------------------------------------------------------------
# the two servers and the application

old() { psql -XqAt -v ON_ERROR_STOP=1 -h "$work/old" -d shop "$@"; }
new() { psql -XqAt -v ON_ERROR_STOP=1 -h "$work/new" -d shop "$@"; }
# what the demo shows it does: the statement, then its answer
ask() { shown "shop=# $1"; psql -XqAt -v ON_ERROR_STOP=1 -h "$work/old" -d shop -c "$1" | sed '/^$/d' | indent; }
table() { psql -Xq -v ON_ERROR_STOP=1 -P footer=off -P null='-' -h "$work/old" -d shop -c "$1" | sed '/^$/d' | indent; }

server() {
	"${as[@]}" mkdir -p "$work/$1"
	"${as[@]}" initdb -D "$work/$1/data" -U postgres -A trust -E UTF8 --locale=C -N > "$work/$1/initdb.log"
	cat <<-CONF | "${as[@]}" tee -a "$work/$1/data/postgresql.conf" > /dev/null
		listen_addresses = ''
		unix_socket_directories = '$work/$1'
		max_worker_processes = 16
		shared_buffers = 256MB
		max_wal_size = 4GB
		checkpoint_timeout = 30min
		log_line_prefix = '%m [%p] %b %a '
	CONF
	start "$1"
	createdb -h "$work/$1" shop
}
start() { "${as[@]}" pg_ctl -D "$work/$1/data" -l "$work/$1/log" -w -s start > /dev/null; }
stop() { "${as[@]}" pg_ctl -D "$work/$1/data" -m "$2" -w -s stop > /dev/null 2>&1; }

# A pool of connections in front of the shop, and what tells it where to go.
pool() {
	cat > "$work/pool.ini" <<-INI
		[databases]
		app = host=$work/old dbname=shop user=postgres
		[pgbouncer]
		listen_addr =
		listen_port = 6432
		unix_socket_dir = $work
		auth_type = any
		admin_users = postgres
		pool_mode = transaction
		logfile = $work/pool.log
		pidfile = $work/pool.pid
	INI
	[ "$(id -u)" != 0 ] || chown postgres "$work/pool.ini"
	"${as[@]}" "$(PATH=$PATH:/usr/sbin command -v pgbouncer)" -q -d "$work/pool.ini"
	for i in $(seq 100); do [ ! -S "$work/.s.PGSQL.6432" ] || return 0; sleep 0.1; done
	die "PgBouncer does not start: $(cat "$work/pool.log")"
}
listener() {
	"${as[@]}" ./pgbouncer-listener.pl --old "host=$work/old dbname=shop" --admin "host=$work port=6432 dbname=pgbouncer" \
		--database app --ini "$work/pool.ini" --old-address "host=$work/old dbname=shop user=postgres" \
		--new-address "host=$work/new dbname=shop user=postgres" --verbose > "$work/listener.log" 2>&1 &
	for i in $(seq 100); do ! grep -q '^ready' "$work/listener.log" || return 0; sleep 0.1; done
	die "the listener is not ready: $(cat "$work/listener.log")"
}
stop_pool() {
	pkill -f "pgbouncer-listener.pl --old host=$work/" 2> /dev/null
	[ ! -e "$work/pool.pid" ] || kill "$(cat "$work/pool.pid")" 2> /dev/null
}

# The application: short runs of pgbench, one after the other, until told to
# end.  What its clients were told is the measure, so nothing is asked of a server.
application() {
	local part=0
	while [ ! -e "$work/closed" ]; do
		part=$((part + 1))
		pgbench -n -h "$work" -p 6432 -c "$CLIENTS" -j 1 -R "$RATE" -T 3 -l --log-prefix="$work/load/latency" -D customers=$((SCALE / 10)) -D orders="$SCALE" \
			-f load/order.sql@6 -f load/cancel.sql@1 -f load/stock.sql@2 -f load/customer.sql@2 -f load/session.sql@3 -f load/browse.sql@6 \
			app > "$work/load/part.$part" 2>&1 || echo 'number of failed transactions: 1' >> "$work/load/part.$part"
	done
}
committed() { cat "$work"/load/part.* 2>/dev/null | sed -n 's/^number of transactions actually processed: \([0-9]*\).*/\1/p' | awk '{ n += $1 } END { print n + 0 }'; }
refused() { cat "$work"/load/part.* 2>/dev/null | sed -n 's/^number of failed transactions: \([0-9]*\).*/\1/p' | awk '{ n += $1 } END { print n + 0 }'; }

application_pid=
close_shop() {
	touch "$work/closed"
	[ -z "$application_pid" ] || wait "$application_pid" || true
	application_pid=
}
finish() {
	local rc=$?
	trap - EXIT INT TERM
	set +e
	if [ "$rc" != 0 ]; then
		echo
		for s in old new; do
			[ ! -e "$work/$s/log" ] || { echo "--- end of the log of $s"; tail -n 15 "$work/$s/log"; }
		done
	fi
	close_shop
	stop_pool
	for s in old new; do [ ! -e "$work/$s/data/postmaster.pid" ] || stop $s immediate; done
	[ -n "${KEEP:-}" ] && echo "files are kept in $work" || rm -rf "$work"
	exit "$rc"
}
trap finish EXIT
trap 'exit 130' INT TERM

# progress LINES...: redraw in place on a terminal
drawn=0
draw() {
	local text=$1
	if [ -n "$terminal" ]; then
		[ "$drawn" = 0 ] || printf '\e[%dA' "$drawn"
		printf '%s\n' "$text" | sed $'s/$/\e[K/'
		drawn=$(printf '%s\n' "$text" | wc -l)
	else
		printf '%s\n' "$text"
	fi
}

# The copy, drawn from cutover.progress: all tables where lines can be drawn
# again, else a line now and then and the tables at the end.
copy_table() {
	old -c "SELECT format('   %s %s %s %s rows', rpad(table_name::text, 17), rpad(phase, 11), bar, lpad(to_char(coalesce(rows_done, 0), 'FM999G999G999'), 11))
		FROM cutover.progress ORDER BY rows_total DESC NULLS LAST, table_name::text"
}
follow_copy() {
	local begun=$SECONDS said=-3 done=''
	drawn=0
	while [ -z "$done" ]; do
		done=$(old -c "SELECT CASE WHEN count(*) > 0 AND bool_and(phase = 'synced') THEN 'yes' END FROM cutover.progress")
		if [ -n "$terminal" ] || [ -n "$done" ]; then
			draw "$(copy_table)"
		elif [ $((SECONDS - said)) -ge 3 ]; then
			said=$SECONDS
			old -c "SELECT format('   %s rows of about %s;  %s', to_char(sum(rows_done), 'FM999G999G990'), to_char(sum(rows_total), 'FM999G999G990'),
				(SELECT string_agg(n || ' ' || phase, ', ') FROM (SELECT phase, count(*) AS n FROM cutover.progress GROUP BY phase ORDER BY phase) p)) FROM cutover.progress"
		fi
		[ $((SECONDS - begun)) -lt 600 ] || die "the copy is not done after ten minutes"
		old -c "SELECT table_name || ': ' || phase_reason FROM cutover.tables WHERE phase = 'resync_needed'" > resync
		[ ! -s resync ] || die "a table needs a fresh copy: $(cat resync)"
		[ -n "$done" ] || sleep 0.5
	done
	good "copied, indexes built, and caught up in $((SECONDS - begun)) seconds"
}

# Lag and speed for some seconds, and the books of new: they must balance at
# every moment, since whole transactions arrive together.
follow_changes() {
	local i unbalanced=0 sum
	drawn=0
	for i in $(seq "$1"); do
		sum=$(new -c 'SELECT coalesce(sum(amount), 0) FROM ledger')
		[ "$sum" = 0.00 ] || [ "$sum" = 0 ] || unbalanced=$((unbalanced + 1))
		draw "$(old -c "SELECT format('   lag %s   %s changes/s   %s in the queue', lpad(coalesce(round(extract(epoch FROM lag) * 1000) || ' ms', 'unknown'), 8),
				lpad(round(changes_per_s)::text, 6), queued_changes) FROM cutover.replication"), the books of new add up to $sum"
		sleep 1
	done
	if [ "$unbalanced" = 0 ]; then
		good "the books of new were balanced each time: it shows whole transactions only"
	else
		bad "the books of new were out of balance $unbalanced times"
	fi
}

# (table, rows, digest) of every table, by plain SQL that has nothing to do with
# the extension.  The digest adds up a hash of each row, so order doesn't matter.
digests() {
	local t
	for t in $("$1" -c "SELECT quote_ident(relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1" | tr ' ' '\1'); do
		t=${t//$'\1'/ }
		"$1" -c "SET timezone = 'UTC'; SELECT '$t', count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM $t t"
	done
}

# ---------------------------------------------------------------------------

echo
echo "${bold}A shop moves to another server while customers are shopping.${off}"
say "${dim}Everything happens in $work and is gone afterwards.${off}"

chapter "Two servers"
say "${dim}starting two PostgreSQL servers and filling the shop…${off}"
server old
server new
old -f schema.sql
old -v orders="$SCALE" -f data.sql
say "\"old\" is PostgreSQL $(old -c 'SHOW server_version' | cut -d' ' -f1), with wal_level $(old -c 'SHOW wal_level') and no library preloaded:"
table "SELECT count(*) AS tables, to_char(sum(reltuples), 'FM999G999G999') AS rows, pg_size_pretty(pg_database_size('shop')) AS size
	FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
say "\"new\" is PostgreSQL $(new -c 'SHOW server_version' | cut -d' ' -f1), and empty."

chapter "The shop is open"
say "$CLIENTS clients order, cancel, review and restock, $RATE transactions a second, through PgBouncer."
say "They don't stop until they have moved for good."
pool
application &
application_pid=$!
for i in $(seq 100); do [ "$(committed)" = 0 ] || break; sleep 0.1; done
good "$(thousands "$(committed)") transactions so far"

chapter "The schema goes to new"
say "Tables, types, triggers and views go by pg_dump, as ever. The rows come later."
shown "$ pg_dump --schema-only shop | psql -h new shop"
pg_dump --schema-only -h "$work/old" shop | new -f - > /dev/null
good "$(new -c "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')") empty tables on new"

chapter "Where it goes, and what"
say "The extension is installed on old only, without a restart; new needs none."
ask "CREATE EXTENSION cutover"
shown "shop=# SELECT cutover_add_target('new', 'host=… dbname=shop')"
old -c "SELECT cutover_add_target('new', 'host=$work/new dbname=shop user=postgres')" > /dev/null
shown "shop=# SELECT cutover_add_tables()"
good "$(old -c 'SELECT count(*) FROM cutover_add_tables()') tables are under migration"
echo
say "What could go wrong later is found now:"
shown "shop=# SELECT * FROM cutover_preflight()"
old -c "SELECT level, check_name, coalesce(object, ''), message FROM cutover_preflight()" > preflight
grep -v '^ok|' preflight | while IFS='|' read -r level check object message; do
	say "$level  $check, $object: $message" | fold -s -w 110 | sed '2,$s/^/            /'
done
good "$(grep -c '^ok|' preflight) checks without a finding, $(grep -c '^warning|' preflight) warnings, $(grep -c '^error|' preflight) errors"
! grep -q '^error|' preflight || die "preflight has errors"

chapter "Copy"
say "Every table is read in parts while it is written to. What changes meanwhile is captured in the same"
say "transaction that changes it, and applied to the copied parts afterwards. Indexes come last."
ask "SELECT cutover_start()"
follow_copy

chapter "New follows"
say "From now on each commit on old is applied on new soon after: whole transactions, in order."
before=$(committed) at=$SECONDS
follow_changes 8
say "what the clients say: $(thousands "$(committed)") transactions committed, $(refused) failed"

chapter "A schema change"
say "It happens on old, and on new at the very same place in the order of changes."
ask "SELECT cutover_run_ddl('ALTER TABLE orders ADD COLUMN gift boolean NOT NULL DEFAULT false')"
ask "UPDATE orders SET gift = true WHERE id % 100 = 0 AND ordered_at > now() - interval '30 days'"
ask "SELECT cutover_wait()"
gifts=$(new -c 'SELECT count(*) FROM orders WHERE gift')
[ "$gifts" = "$(old -c 'SELECT count(*) FROM orders WHERE gift')" ] && good "$gifts gifts on both sides" || bad "$gifts gifts on new"

chapter "Both at once"
say "In mode dual_write a commit on old waits until new has it too. Old decides: whatever new does, the commit stands."
ask "SELECT from_mode, to_mode FROM cutover_set_mode('dual_write')"
missed=0
for i in $(seq 20); do
	# a busy machine may need more than the three seconds that a commit waits by default
	old -c "LOAD 'cutover'" -c "SET cutover.dual_write_timeout = '30 s'" -c "INSERT INTO \"Gift Card\" VALUES ('GC-dual-$i', 50)"
	[ "$(new -c "SELECT count(*) FROM \"Gift Card\" WHERE \"Card No\" = 'GC-dual-$i'")" = 1 ] || missed=$((missed + 1))
done
[ "$missed" = 0 ] && good "20 gift cards: each was on new when its commit on old returned" || bad "$missed of 20 gift cards were not on new when their commit returned"
ask "SELECT from_mode, to_mode FROM cutover_set_mode('old_only')"

chapter "Somebody meddles with new"
say "While old is master, new refuses what others write there:"
shown "new=# UPDATE order_line SET price = 0 WHERE order_id = 1"
refusal=$(new -c 'UPDATE order_line SET price = 0 WHERE order_id = 1' 2>&1 || true)
say "$(printf '%s' "$refusal" | sed -n 's/^ERROR:  /ERROR:  /p' | head -n 1)"
[[ $refusal == *ERROR* ]] && good "refused" || bad "new took it: $refusal"
say "Whoever owns the table can get round that, and does: six prices are changed, four lines deleted, two invented."
new <<-'SQL'
	BEGIN;
	SET LOCAL session_replication_role = replica;
	DO $$
	DECLARE
		guard name;
	BEGIN
		FOR guard IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'order_line'::regclass AND tgfoid = to_regprocedure('cutover.guard()') LOOP
			EXECUTE format('ALTER TABLE order_line DISABLE TRIGGER %I', guard);
		END LOOP;
		UPDATE order_line SET price = price - 1 WHERE order_id BETWEEN 1001 AND 1006 AND line_no = 1;
		DELETE FROM order_line WHERE order_id BETWEEN 2001 AND 2004 AND line_no = 1;
		INSERT INTO order_line SELECT order_id, ordered_at, 99, product_id, warehouse_id, 1, 9.99 FROM order_line
			WHERE order_id BETWEEN 3001 AND 3002 AND line_no = 1;
		FOR guard IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'order_line'::regclass AND tgfoid = to_regprocedure('cutover.guard()') LOOP
			EXECUTE format('ALTER TABLE order_line ENABLE ALWAYS TRIGGER %I', guard);
		END LOOP;
	END $$;
	COMMIT;
SQL
say "Every row of every table is compared, while customers are shopping:"
shown "shop=# SELECT table_name, rows, missing, extra, different FROM cutover_compare(method => 'full')"
begun=$SECONDS
old -c "SELECT table_name, rows, missing, extra, different FROM cutover_compare(method => 'full')" > compared
awk -F'|' '{ n += $2 } $3 + $4 + $5 > 0 { printf "   %s: %s missing, %s extra, %s different\n", $1, $3, $4, $5 } END { printf "   %d rows of %d tables\n", n, NR }' compared
found=$(awk -F'|' '{ m += $3; e += $4; d += $5 } END { print m, e, d }' compared)
[ "$found" = '4 2 6' ] && good "exactly these twelve, in $((SECONDS - begun)) seconds" || bad "found $found (missing, extra, different), not 4 2 6"
table "SELECT kind, key, columns, old_row->>'price' AS price_on_old, new_row->>'price' AS price_on_new FROM cutover.divergence ORDER BY kind, key->>'order_id', key->>'line_no'"
say "A repair goes through the same queue as every change, so it can't put something old over something newer:"
ask "SELECT * FROM cutover_compensate() WHERE repaired > 0"
again=$(old -c "SELECT sum(missing + extra + different + representation) FROM cutover_compare('{order_line}', method => 'full')")
[ "$again" = 0 ] && good "compared once more: clean" || bad "compared once more: $again differences"

chapter "An accident"
say "new crashes, and comes back after some seconds. Nobody in the shop notices."
stop new immediate
say "new is down…"
drawn=0
for i in 1 2 3 4 5; do
	draw "   $(old -c "SELECT queued_changes || ' changes wait in the queue; ' || split_part(coalesce(waiting_for, ''), E'\n', 1) FROM cutover.status" | cut -c1-110)"
	sleep 1
done
start new
say "new is up again"
begun=$SECONDS
ask "SELECT cutover_wait('2 min')"
good "caught up $((SECONDS - begun)) seconds later"
[ "$(refused)" = 0 ] || bad "clients saw $(refused) failed transactions"

chapter "Reads"
say "Next, new is to answer SELECTs, through old: applications change nothing. No restart, but connections that are open must come again."
ask "SELECT cutover_enable_router()"
shown "pgbouncer=# RECONNECT app"
psql -Xqc 'RECONNECT app' -h "$work" -p 6432 -d pgbouncer
for i in $(seq 100); do
	[ "$(old -c "SELECT count(*) FROM cutover.sessions WHERE NOT routable")" != 0 ] || break
	sleep 0.1
done
[ "$(old -c "SELECT count(*) > 0 AND bool_and(routable) FROM cutover.sessions")" = t ] \
	&& good "every session of the shop has the library" || bad "sessions without the library: $(old -c "SELECT * FROM cutover.sessions WHERE NOT routable")"

echo
say "Nobody sees new's answers yet. But somebody has forgotten an index there, and renamed a category:"
lost_index=$(new -c "SELECT indexdef FROM pg_indexes WHERE indexname = 'ledger_order_id_idx'")
renamed=$(new -c "SELECT category_id FROM product_category GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1")
shown "new=# DROP INDEX ledger_order_id_idx"
new -c "DROP INDEX ledger_order_id_idx"
shown "new=# UPDATE category SET name = 'Miscellaneous' WHERE id = $renamed"
new -v id="$renamed" <<-'SQL'
	BEGIN;
	SELECT format('ALTER TABLE category DISABLE TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 'category'::regclass AND tgfoid = to_regprocedure('cutover.guard()') \gexec
	UPDATE category SET name = 'Miscellaneous' WHERE id = :id;
	SELECT format('ALTER TABLE category ENABLE ALWAYS TRIGGER %I', tgname) FROM pg_trigger WHERE tgrelid = 'category'::regclass AND tgfoid = to_regprocedure('cutover.guard()') \gexec
	COMMIT;
SQL
say "Every SELECT is run on new, too, unseen and with nobody waiting for it, and its result and time are compared:"
ask "SELECT cutover_set_shadow_ratio(100)"
slow="SELECT count(*) FROM cutover.shadow_read WHERE query LIKE '%FROM ledger%' AND calls >= 200 AND new_p95 > 3 * old_p95"
for i in $(seq 300); do
	[ "$(old -c "SELECT count(*) > 0 AND ($slow) > 0 FROM cutover.shadow_mismatch")" = f ] || break
	sleep 0.2
done
table "SELECT calls, mismatches AS wrong, errors, old_p95, new_p95, left(query, 60) AS query FROM cutover.shadow_read WHERE calls > 50 AND query ~ 'product|stock|orders|ledger' ORDER BY new_p95 / old_p95 DESC"
[ "$(old -c "$slow")" = 1 ] && good "the query that misses its index stands out: new takes $(old -c "SELECT round((new_p95 / old_p95)::numeric) FROM cutover.shadow_read WHERE query LIKE '%FROM ledger%' AND calls >= 200 ORDER BY calls DESC LIMIT 1") times as long" \
	|| bad "the slow query on new was not found"
table "SELECT left(query, 48) || '…' AS query, sample->'only_on_old' AS only_on_old, sample->'only_on_new' AS only_on_new FROM cutover.shadow_mismatch LIMIT 1"
[ "$(old -c "SELECT count(*) > 0 AND bool_and(query LIKE '%JOIN category%') FROM cutover.shadow_mismatch")" = t ] \
	&& good "and the wrong name is found, by a query that shows it; nothing else differs" || bad "mismatches: $(old -c "SELECT query FROM cutover.shadow_mismatch LIMIT 5")"
say "The index comes back; what the sample points at is compared and repaired:"
ask "SELECT cutover_set_shadow_ratio(0)"
shown "new=# CREATE INDEX ON ledger (order_id)"
new -c "$lost_index"
ask "SELECT table_name, different FROM cutover_compare('{category}', method => 'full')"
ask "SELECT * FROM cutover_compensate() WHERE repaired > 0"
[ "$(old -c "SELECT sum(missing + extra + different + representation) FROM cutover_compare('{category}', method => 'full')")" = 0 ] && good "compared once more: clean" || bad "category still differs"

# reads that new has answered so far
routed() { old -c "SELECT routed FROM cutover.read_stats"; }
# ratio PERCENT: so many customers are served by new, which has to show soon
ratio() {
	local was
	shown "shop=# SELECT cutover_set_read_ratio($1)"
	old -c "SELECT cutover_set_read_ratio($1)" > /dev/null
	was=$(routed)
	sleep 3
	if [ "$1" = 0 ]; then return; fi
	for i in $(seq 200); do [ "$(routed)" -le $((was + 20)) ] || break; sleep 0.1; done
	table "SELECT routed, kept, fallbacks, reasons - '{row_lock,transaction,transaction_wrote,ratio}'::text[] AS reasons FROM cutover.read_stats"
	[ "$(routed)" -gt $((was + 20)) ] && good "new has answered $(thousands "$(routed)") reads" || bad "new answers nothing"
}

echo
say "Now for real: a tenth of the customers, then all. Who has just written is served by old until new has it."
ratio 10
ratio 100
say "new is stopped, with all reads going there:"
stop new fast
at=$(committed)
for i in $(seq 300); do [ "$(committed)" -le $((at + 1000)) ] || break; sleep 0.1; done
was=$(routed)
sleep 1
table "SELECT routed, fallbacks, breaker, reasons - '{row_lock,transaction,transaction_wrote,ratio}'::text[] AS reasons FROM cutover.read_stats"
[ "$(routed)" = "$was" ] && [ "$(committed)" -gt $((at + 1000)) ] && good "old answers: $(thousands $(($(committed) - at))) transactions since" || bad "reads don't go on"
[ "$(refused)" = 0 ] && good "failed transactions: 0" || bad "clients saw $(refused) failed transactions"
start new
say "new is up again"
ask "SELECT cutover_wait('2 min')"
ratio 0
was=$(routed)
sleep 2
[ "$(routed)" = "$was" ] && good "all reads are old's again, from the next statement on" || bad "new still answers"
ask "SELECT cutover_disable_router()"
[ "$(refused)" = 0 ] || bad "clients saw $(refused) failed transactions"

# switch MODE SIDE: while customers are shopping; how long any of them waited
switch() {
	local since pause n i
	since=$(date +%s.%N)
	shown "shop=# SELECT from_mode, to_mode, pause, drained_changes FROM cutover_set_mode('$1')"
	pause=$(old -c "SELECT format('%s -> %s, gate closed for %s ms, %s changes drained', from_mode, to_mode, round(extract(epoch FROM pause) * 1000, 1), drained_changes)
		FROM cutover_set_mode('$1', timeout => '60 s')") || die "no switch to $1"
	say "$pause"
	n=$("$2" -c "SELECT count(*) FROM orders")
	for i in $(seq 200); do [ "$("$2" -c "SELECT count(*) FROM orders")" -le "$n" ] || break; sleep 0.1; done
	[ "$i" -lt 200 ] && good "customers order on $2 now" || bad "no order reaches $2"
	sleep 3.5		# pgbench writes its log in blocks
	# client, transaction, latency in us, script, seconds, us of its end
	say "longest wait of any customer since the switch began: $(cat load/latency.* | awk -v a="$since" '$5 + $6 / 1e6 >= a && $3 > m { m = $3 } END { printf "%.0f", m / 1000 }') ms; failed transactions: $(refused)"
	[ "$(refused)" = 0 ] || bad "clients saw $(refused) failed transactions"
}

chapter "The switch"
say "From now on new is to take the orders. A look before:"
shown "shop=# SELECT level, check_name, message FROM cutover_check_mode('new_only') WHERE level <> 'ok'"
old -c "SELECT level, check_name, coalesce(object, ''), message FROM cutover_check_mode('new_only') WHERE level <> 'ok'" | awk -F'|' '{ printf "   %s  %s, %s: %s\n", $1, $2, $3, $4 }' | cut -c1-150
say "A listener beside PgBouncer holds the customers for the moment that it takes."
listener
switch new_only new
shown "shop=# UPDATE product SET net = net + 1 WHERE id = 1          -- by hand, on old"
refusal=$(old -c "SET default_transaction_read_only = off" -c "UPDATE product SET net = net + 1 WHERE id = 1" 2>&1 || true)
say "$(printf '%s' "$refusal" | grep -E '^(ERROR|HINT)' | sed "s|$work|…|g" | head -n 2 | sed '2,$s/^/   /')"
[[ $refusal == *ERROR* ]] && good "old refuses writes, whatever the path" || bad "old took it"

chapter "And back, with nothing lost"
say "Old has followed new all the time. Somebody doesn't like it on new: back we go."
switch old_only old

chapter "For good"
switch new_only new

chapter "A quiet moment: is it the same?"
say "The shop closes for a moment, only to count: every row of every table, on both sides."
close_shop
ask "SELECT cutover_wait('2 min')"
digests old > digests.old
digests new > digests.new
while IFS='|' read -r name rows digest && IFS='|' read -r _ new_rows new_digest <&3; do
	if [ "$rows $digest" = "$new_rows $new_digest" ]; then
		good "$(printf '%-17s %10s rows   %s' "$name" "$(thousands "$rows")" "${dim}digest …${digest: -8} = …${new_digest: -8}${off}")"
	else
		bad "$(printf '%-17s %10s rows on old, %s on new, digests %s %s' "$name" "$rows" "$new_rows" "${digest: -8}" "${new_digest: -8}")"
	fi
done < digests.old 3< digests.new
cmp -s digests.old digests.new && good "${bold}the two databases are equal${off}" || bad "the two databases differ"
[ "$(old -c 'SELECT count(*) FROM cutover.apply_error')" = 0 ] && good "new refused nothing" || bad "new refused rows: $(old -c 'SELECT table_name, sqlstate, message FROM cutover.apply_error LIMIT 5')"
total=$(committed) failed=$(refused)
[ "$failed" = 0 ] && [ "$total" -gt 0 ] && good "clients committed $(thousands "$total") transactions; 0 failed" || bad "clients committed $total transactions; $failed failed"

chapter "The end of old"
say "The one step that can't be taken back: the way back goes, and everything of ours on new."
ask "SELECT cutover_finish()"
[ "$(new -c "SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'")" = 0 ] && good "nothing of ours is left on new" || bad "schema cutover is left on new"
pg_dump --schema-only --exclude-schema=cutover -h "$work/old" shop | grep -vE '^(--|\\(un)?restrict|(CREATE|COMMENT ON) EXTENSION.* cutover|.*" cutover fence|$)' > schema.old
pg_dump --schema-only -h "$work/new" shop | grep -vE '^(--|\\(un)?restrict|$)' > schema.new
cmp -s schema.old schema.new && good "indexes, constraints and triggers are the same on both sides" || { bad "the schemas differ"; diff schema.old schema.new | head -n 20; }
old -c "SET default_transaction_read_only = off" -c "DELETE FROM ledger" > /dev/null 2>&1 && bad "old took a write" || good "old goes on refusing writes"
new -c "INSERT INTO \"Gift Card\" VALUES ('GC-the-end', 50)" && good "new takes them"

echo
if [ "$wrong" = 0 ]; then
	say "How to do this with your own database stands in docs/operations.md and docs/switching.md."
	echo
	echo "${bold}${green}All as it should be.${off}"
else
	echo "${bold}${red}Something is not as it should be, see above.${off}"
fi
exit "$wrong"
