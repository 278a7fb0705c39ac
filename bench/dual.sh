#!/usr/bin/env bash
# dual.sh - what a commit costs that waits for new: pgbench -N (simple-update, prepared)
# with 1 and 16 clients, and 16 clients on 4 hot rows.  Contestants, in random order
# in each round:
#   async    this extension, mode old_only       dual   the same in dual_write
#   down     dual_write, new is down and the breaker open
#   remote   native logical replication with synchronous_commit = remote_apply,
#            flushed on new (the subscription's synchronous_commit = on), as ours is
# ROUNDS=5  SECONDS_EACH=6  SCALE=20  CLIENTS="1 16"  WHO="async dual down remote"
. "$(dirname "$0")/lib.sh"
: "${ROUNDS:=5}" "${SECONDS_EACH:=6}" "${SCALE:=20}" "${CLIENTS:=1 16}" "${WHO:=async dual down remote}"

servers
say 'tables'
for side in old new; do
	$side postgres -c 'CREATE DATABASE base'
	"$bindir/pgbench" -q -i -s "$SCALE" -h "$work/$side" base > /dev/null 2>&1
	$side base -c 'ALTER TABLE pgbench_history ADD COLUMN hid bigserial PRIMARY KEY' \
		-c 'CREATE TABLE hot (id int PRIMARY KEY, n bigint); INSERT INTO hot SELECT i, 0 FROM generate_series(1, 4) i'
done
cat > "$work/hot.sql" <<'SQL'
\set id random(1, 4)
UPDATE hot SET n = n + 1 WHERE id = :id;
SQL
fresh dual_ours base
fresh dual_native base
old dual_native -c 'CREATE PUBLICATION pub FOR ALL TABLES'
new dual_native -c "CREATE SUBSCRIPTION sub_native CONNECTION 'host=$work/old dbname=dual_native user=postgres' PUBLICATION pub
	WITH (copy_data = false, synchronous_commit = on)"
cutover_target dual_ours
old dual_ours -c 'SELECT cutover_add_tables()' -c 'SELECT cutover_start(copy => false)' > /dev/null
until [ "$(old dual_ours -c "SELECT bool_and(phase = 'synced') FROM cutover.progress")" = t ]; do sleep 0.1; done

mode() { old dual_ours -c "SELECT cutover_set_mode('$1')" > /dev/null; }

# one WHO CLIENTS KIND ROUND
one() {
	local who=$1 clients=$2 kind=$3 round=$4 db=dual_ours load=(-N) sync=on out
	[ "$kind" = hot ] && load=(-f "$work/hot.sql")
	case $who in
		async) mode old_only ;;
		dual | down) mode dual_write ;;
		remote)
			db=dual_native sync=remote_apply
			old postgres -c "ALTER SYSTEM SET synchronous_standby_names = 'sub_native'" -c 'SELECT pg_reload_conf()' > /dev/null ;;
	esac
	if [ "$who" = down ]; then
		"${as[@]}" pg_ctl -D "$work/new/data" -m immediate -w -s stop
		# what the breaker needs to open
		PGOPTIONS="-c cutover.dual_write_timeout=100ms -c client_min_messages=error" \
			pgbench -n -N -h "$work/old" -c 1 -t 10 "$db" > /dev/null 2>&1
	fi
	[ "$kind" = hot ] || for side in old new; do [ "$who" = down ] || $side "$db" -c 'VACUUM pgbench_accounts' -c CHECKPOINT; done
	out=$(PGOPTIONS="-c synchronous_commit=$sync -c client_min_messages=error" \
		pgbench -n -M prepared "${load[@]}" -h "$work/old" -c "$clients" -j 2 -T "$SECONDS_EACH" "$db" 2> "$work/err") || die "$(tail -n 3 "$work/err")"
	row "$kind-$clients-tps" "$who" "$round" "$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<< "$out")" > /dev/null
	row "$kind-$clients-ms" "$who" "$round" "$(sed -n 's/^latency average = \([0-9.]*\).*/\1/p' <<< "$out")" > /dev/null
	say "$kind $clients clients $who: $(sed -n 's/^tps = \([0-9.]*\).*/\1/p' <<< "$out") tps"
	[ "$who" != remote ] || old postgres -c 'ALTER SYSTEM RESET synchronous_standby_names' -c 'SELECT pg_reload_conf()' > /dev/null
	if [ "$who" = down ]; then
		"${as[@]}" pg_ctl -D "$work/new/data" -l "$work/new/log" -w -s start > /dev/null
	fi
	if [ "$db" = dual_ours ]; then
		mode old_only
		old dual_ours -c "SELECT cutover_wait('5 min')" > /dev/null
	fi
}

for round in $(seq "$ROUNDS"); do
	for c in $CLIENTS; do
		for who in $(tr ' ' '\n' <<< "$WHO" | shuf); do one "$who" "$c" update "$round"; done
	done
	for who in $(tr ' ' '\n' <<< "$WHO" | grep -v down | shuf); do one "$who" 16 hot "$round"; done
done

summary \
	"ratio:update-16-tps:dual:async:1:>=0.5" "ratio:update-16-tps:dual:remote:1:>=1.0" \
	"ratio:hot-16-tps:dual:async:1:>=0.9" "added:update-1-ms:dual:async:1:<=1:ms" \
	"ratio:update-1-tps:dual:remote:1" "ratio:hot-16-tps:dual:remote:1" \
	"ratio:update-16-tps:down:async:1:>=0.95"
