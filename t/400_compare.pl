# What a comparison finds: its methods, kinds of differences, mappings, and every type.
use strict;
use warnings;

use CutoverTest;
use CutoverTest::Zoo;
use Test::More;

my ($old, $new) = cutover_pair(old => { conf => "cutover.protect_new = off\ncutover.compare_lag = 0\n" });

sub old_sql { return $old->safe_psql('postgres', join ';', @_) }
sub new_sql { return $new->safe_psql('postgres', join ';', @_) }

# table|method|rows|missing|extra|different|representation|deferred of a comparison
sub compare
{
	my ($tables, $method, @more) = @_;
	my $array = $tables ? 'ARRAY[' . join(', ', map { "'$_'" } @$tables) . ']::regclass[]' : 'NULL';
	return old_sql("SELECT table_name, method, rows, missing, extra, different, representation, deferred FROM cutover_compare($array, '$method'"
		  . join('', map { ", $_" } @more) . ')');
}

sub divergences
{
	my ($table) = @_;
	return old_sql("SELECT key, kind, columns, state, copies FROM cutover.divergence WHERE table_name = '$table'::regclass ORDER BY key::text COLLATE \"C\"");
}

# No difference in any table of a full comparison; returns what there is
sub dirty
{
	return old_sql("SELECT * FROM cutover_compare(method => 'full') WHERE missing + extra + different + representation + deferred > 0");
}

# ---- every type ----

zoo_create($old);
old_sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text, n numeric, f float8, j jsonb, at timestamptz, c char(5), x json, bx box);
	CREATE TABLE nk (a int, b text);
	CREATE TABLE two (a text, b int, v text, PRIMARY KEY (a, b));
	CREATE TABLE mapped (id int PRIMARY KEY, price numeric(10,2), code text, kind text, upd timestamptz DEFAULT now());
	CREATE TABLE shifted (id int PRIMARY KEY, v text);
	CREATE TABLE widened (id int PRIMARY KEY, s varchar(10), n numeric(8,2), d timestamp(0));
	CREATE TABLE part (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
	CREATE TABLE win (id int PRIMARY KEY, upd timestamptz NOT NULL DEFAULT now(), done boolean DEFAULT true, v text);
	CREATE INDEX ON win (upd);
	CREATE TABLE fin (id int PRIMARY KEY, upd timestamp NOT NULL DEFAULT now(), state text, v text);
	CREATE FUNCTION doubled(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';
});
cutover_copy_schema($old, $new);
new_sql(q{
	DROP TABLE mapped, shifted, widened;
	CREATE TABLE "Mapped" (cents bigint, key bigint PRIMARY KEY, sku text, upd timestamptz);
	CREATE TABLE shifted (k bigint PRIMARY KEY, v text);
	CREATE TABLE widened (id bigint PRIMARY KEY, s text, n numeric(12,4), d timestamp);
});
old_sql(q{
	INSERT INTO t SELECT i, 'v' || i, i / 10.0, i, jsonb_build_object('a', i), timestamptz '2026-01-01' + i * interval '1 s', 'c' || i % 10,
		'{"a": 1}', '(1,1),(0,0)' FROM generate_series(1, 2000) i;
	INSERT INTO nk SELECT i % 10, 'b' FROM generate_series(1, 100) i;
	INSERT INTO two SELECT 'k' || i % 50, i, 'v' FROM generate_series(1, 300) i;
	INSERT INTO mapped SELECT i, i + 0.25, 'c' || i, CASE WHEN i % 2 = 0 THEN 'in' ELSE 'out' END FROM generate_series(1, 200) i;
	INSERT INTO shifted SELECT i, 'v' FROM generate_series(1, 200) i;
	INSERT INTO widened SELECT i, 's' || i, i + 0.5, now() FROM generate_series(1, 200) i;
	INSERT INTO part SELECT i, date '2020-01-01' + i, 'v' FROM generate_series(1, 700) i;
	INSERT INTO win SELECT i, now() - i * interval '1 minute', true, 'v' FROM generate_series(1, 500) i;
	INSERT INTO fin SELECT i, localtimestamp - i * interval '1 minute', CASE WHEN i % 2 = 0 THEN 'done' ELSE 'open' END, 'v' FROM generate_series(1, 100) i;
	ANALYZE});
cutover_add_target($old, $new);
old_sql(q{
	SELECT cutover_add_table('mapped', '"Mapped"', '{"key": "id", "cents": "(price * 100)::bigint", "sku": "upper(code)", "upd": "upd"}', $$kind = 'in'$$, 'upd');
	SELECT cutover_add_table('shifted', columns => '{"k": "doubled(id)", "v": "v"}');
	SELECT cutover_add_table('win', version_column => 'upd');
	SELECT cutover_add_table('fin', version_column => 'upd', final_when => $$state = 'done'$$);
	SELECT cutover_add_tables();
	SELECT cutover_start()});
ok(cutover_wait_synced($old), 'copied');
is(dirty(), '', 'nothing differs after the copy, whatever the types');

# the same with sessions that print values in other ways, and rows that were written since
for my $setting ("datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'", "timezone = 'Asia/Kolkata'")
{
	old_sql("ALTER DATABASE postgres SET $setting");
	new_sql("ALTER DATABASE postgres SET timezone = 'America/Lima'");
}
zoo_change($old, $_) for 1 .. zoo_rounds();
cutover_wait($old);
is(dirty(), '', 'nothing differs after changes');

# in each table of the zoo a row of new gets the value of another
my %damaged;
for my $table (grep { /^z_/ } zoo_tables())
{
	my $done = new_sql("WITH p AS (SELECT a.id AS one, b.id AS two FROM $table a, $table b WHERE a.id < b.id AND format('%s', a.v) <> format('%s', b.v)"
		  . " AND a.v IS DISTINCT FROM NULL AND b.v IS DISTINCT FROM NULL LIMIT 1)"
		  . " UPDATE $table t SET v = (SELECT v FROM $table o WHERE o.id = p.two) FROM p WHERE t.id = p.one RETURNING t.id");
	$damaged{$table} = $done if $done =~ /^\d+$/;
}
cmp_ok(scalar(keys %damaged), '>', 40, 'many types have a row that is damaged on new');
my %found = map { split /\|/ } split /\n/,
  old_sql("SELECT table_name, different + representation FROM cutover_compare(method => 'full') WHERE missing + extra + different + representation + deferred > 0");
is_deeply(\%found, { map { $_ => 1 } keys %damaged }, 'each is found, and nothing else');
is(old_sql(q{SELECT string_agg(DISTINCT kind, ',') FROM cutover.divergence WHERE table_name::text IN ('z_box', 'z_text', 'z_json')}),
	'different', 'boxes of equal area are not equal');
old_sql('SELECT cutover_compensate()');
is(dirty(), '', 'all repaired');

old_sql('ALTER DATABASE postgres RESET ALL');

# ---- kinds ----

new_sql(q{
	UPDATE t SET v = v || ' ' WHERE id = 1;
	UPDATE t SET v = '' WHERE id = 2;
	UPDATE t SET v = NULL WHERE id = 3;
	UPDATE t SET n = (n || '0')::numeric WHERE id = 4;
	UPDATE t SET f = '-0' WHERE id = 5;
	UPDATE t SET j = '{"a": 6.0}' WHERE id = 6;
	UPDATE t SET at = at + interval '1 us' WHERE id = 7;
	UPDATE t SET x = '{"a":1}' WHERE id = 8;
	UPDATE t SET bx = '(2,0.5),(0,0)' WHERE id = 9;
	UPDATE t SET c = 'z' WHERE id = 10;
	DELETE FROM t WHERE id = 11;
	INSERT INTO t (id) VALUES (-12);
	UPDATE t SET id = 5000 WHERE id = 13;
	UPDATE t a SET v = b.v FROM t b WHERE a.id IN (14, 15) AND b.id = 29 - a.id;
	INSERT INTO nk VALUES (3, 'b'), (3, 'b'), (77, NULL);
	DELETE FROM nk WHERE ctid IN (SELECT ctid FROM nk WHERE a = 4 LIMIT 1);
	UPDATE two SET v = '' WHERE b = 7;
	UPDATE two SET a = a || 'x' WHERE b = 8;
	UPDATE part SET v = 'w' WHERE id = 5;
	DELETE FROM part WHERE id = 600;
	INSERT INTO part VALUES (1, '2021-05-05', 'n')});
is(compare(['t'], 'full'), 't|full|2000|2|2|10|2|0', 'differences are counted by kind');
is(divergences('t'), <<'END' =~ s/\n\z//r, 'and listed');
{"id": "-12"}|extra||confirmed|1
{"id": "1"}|different|{v}|confirmed|1
{"id": "10"}|different|{c}|confirmed|1
{"id": "11"}|missing||confirmed|1
{"id": "13"}|missing||confirmed|1
{"id": "14"}|different|{v}|confirmed|1
{"id": "15"}|different|{v}|confirmed|1
{"id": "2"}|different|{v}|confirmed|1
{"id": "3"}|different|{v}|confirmed|1
{"id": "4"}|representation|{n}|confirmed|1
{"id": "5"}|different|{f}|confirmed|1
{"id": "5000"}|extra||confirmed|1
{"id": "6"}|representation|{j}|confirmed|1
{"id": "7"}|different|{at}|confirmed|1
{"id": "8"}|different|{x}|confirmed|1
{"id": "9"}|different|{bx}|confirmed|1
END
is(old_sql(q{SELECT old_row->>'v', new_row->>'v' FROM cutover.divergence WHERE table_name = 't'::regclass AND key = '{"id": "1"}'}),
	'v1|v1 ', 'with both rows');
is(compare(['nk', 'two', 'part'], 'full'), <<'END' =~ s/\n\z//r, 'rows without a key, keys of two columns, partitions');
nk|full|100|1|3|0|0|0
part|full|700|1|1|1|0|0
two|full|300|1|1|1|0|0
END
is(divergences('nk'), <<'END' =~ s/\n\z//r, 'a row without a key is its own key, with the number of copies');
{"a": "3", "b": "b"}|extra||confirmed|2
{"a": "4", "b": "b"}|missing||confirmed|1
{"a": "77", "b": null}|extra||confirmed|1
END

# ---- mappings ----

new_sql(q{
	UPDATE "Mapped" SET cents = cents + 1 WHERE key = 2;
	UPDATE "Mapped" SET sku = lower(sku) WHERE key = 4;
	DELETE FROM "Mapped" WHERE key = 6;
	INSERT INTO "Mapped" VALUES (325, 3, 'C3');
	UPDATE shifted SET v = 'w' WHERE k = 20;
	DELETE FROM shifted WHERE k = 22;
	UPDATE widened SET n = n + 0.0001 WHERE id = 1;
	UPDATE widened SET s = s || ' ' WHERE id = 2;
	UPDATE widened SET d = d + interval '1 us' WHERE id = 3});
is(compare(['mapped', 'shifted', 'widened'], 'full'), <<'END' =~ s/\n\z//r, 'through expressions, filters, other names and other types');
mapped|full|100|1|1|2|0|0
shifted|full|200|1|0|1|0|0
widened|full|200|0|0|3|0|0
END
is(divergences('mapped'), <<'END' =~ s/\n\z//r, 'named by columns of old');
{"id": "2"}|different|{cents}|confirmed|1
{"id": "3"}|extra||confirmed|1
{"id": "4"}|different|{sku}|confirmed|1
{"id": "6"}|missing||confirmed|1
END
is(divergences('shifted'), qq({"id": "10"}|different|{v}|confirmed|1\n{"id": "11"}|missing||confirmed|1), 'also where the key is an expression');
my $seen = old_sql(q{SELECT times_seen FROM cutover.divergence WHERE table_name = 'shifted'::regclass LIMIT 1});
compare(['shifted'], 'full');
is(old_sql(q{SELECT DISTINCT times_seen FROM cutover.divergence WHERE table_name = 'shifted'::regclass}), $seen + 1, 'seen again');
is(old_sql(q{SELECT clean_passes FROM cutover.tables WHERE table_name = 'shifted'::regclass}), 0, 'no clean pass');
old_sql('SELECT cutover_compensate()');
is(old_sql('SELECT count(*) FROM cutover.divergence'), 0, 'repaired');
is(dirty(), '', 'and clean');
is(old_sql(q{SELECT clean_passes FROM cutover.tables WHERE table_name = 'shifted'::regclass}), 1, 'that is a clean pass');

# what is repaired by hand is closed, too
new_sql(q{UPDATE two SET v = 'x' WHERE b = 9});
compare(['two'], 'full');
new_sql(q{UPDATE two SET v = 'v' WHERE b = 9});
is(compare(['two'], 'changes'), 'two|changes|0|0|0|0|0|0', 'an open difference is looked at again');
is(divergences('two'), '', 'and closed once it is none');

# ---- windows ----

my $from = old_sql(q{SELECT now() - interval '10 min'});
new_sql(q{
	UPDATE win SET v = 'x' WHERE id IN (5, 50);
	DELETE FROM win WHERE id IN (6, 60);
	UPDATE win SET upd = upd - interval '1 day' WHERE id = 7;
	UPDATE win SET upd = upd + interval '1 day' WHERE id = 8;
	INSERT INTO win VALUES (9000, now() - interval '5 min'), (9001, now() - interval '1 h')});
like(compare(['win'], 'window', "'$from'"), qr/^win\|window\|\d+\|1\|1\|2\|0\|1$/, 'a window: what lies in it, and nothing else');
is(divergences('win'), <<'END' =~ s/\n\z//r, 'newer on new is deferred');
{"id": "5"}|different|{v}|confirmed|1
{"id": "6"}|missing||confirmed|1
{"id": "7"}|different|{upd}|confirmed|1
{"id": "8"}|different|{upd}|deferred|1
{"id": "9000"}|extra||confirmed|1
END
like(compare(['win'], 'window', "'$from'::timestamptz - interval '1 day'", "'$from'"), qr/^win\|window\|\d+\|1\|1\|2\|0\|0$/, 'the window before, where a row of new is now');
old_sql('SELECT cutover_compensate()');
new_sql(q{DELETE FROM win WHERE id = 8});
old_sql(q{UPDATE win SET v = 'again', upd = now() WHERE id = 8});
cutover_wait($old);
like(compare(['win'], 'window'), qr/^win\|window\|\d+\|0\|0\|0\|0\|0$/, 'clean');
like(compare(['win'], 'window'), qr/^win\|window\|0\|0\|0\|0\|0\|0$/, 'the next window begins where it ended');
is(old_sql(q{SELECT count(*) FROM cutover.compare_history a JOIN cutover.compare_history b ON a.run = b.run - 1
	WHERE a.table_name = 'win'::regclass AND b.table_name = a.table_name AND a.method = 'window' AND b.method = 'window' AND a.until IS DISTINCT FROM b.since
	AND b.run = (SELECT max(run) FROM cutover.compare_history)}), 0, 'without a gap');

# a writer that is still open keeps the window before its start
my $writer = $old->background_psql('postgres');
$writer->query_safe(q{BEGIN; INSERT INTO win (id, v) VALUES (700, 'late')});
my $start = old_sql(q{SELECT min(xact_start) FROM pg_stat_activity WHERE backend_xid IS NOT NULL});
is(old_sql("SELECT until <= '$start' FROM cutover_compare(ARRAY['win'::regclass], 'window')"), 't', 'a window ends before the oldest writer');
$writer->query_safe('COMMIT');
$writer->quit;
cutover_wait($old);
new_sql('DELETE FROM win WHERE id = 700');
is(compare(['win'], 'window'), 'win|window|1|1|0|0|0|0', 'and the next one has what it wrote');
old_sql('SELECT cutover_compensate()');

new_sql(q{UPDATE fin SET v = 'x' WHERE id IN (1, 2); DELETE FROM fin WHERE id IN (3, 4); INSERT INTO fin VALUES (600, localtimestamp - interval '3 min', 'done', 'v')});
like(compare(['fin'], 'window', "'$from'::timestamptz - interval '1 day'"), qr/^fin\|window\|50\|1\|1\|1\|0\|0$/, 'final_when: only finished rows, and rows that old does not have');
is(compare(['fin'], 'full'), 'fin|full|100|2|1|2|0|0', 'a full comparison has them all');

# ---- changes ----

compare(undef, 'full');
old_sql('SELECT cutover_compensate()');
like(compare(['two'], 'changes', "'$from'"), qr/^two\|changes\|\d+\|0\|0\|0\|0\|0$/, 'changes of a time');
compare(undef, 'auto');
old_sql(q{
	UPDATE two SET v = 'c' WHERE b BETWEEN 10 AND 20; UPDATE two SET a = 'moved' WHERE b = 30; DELETE FROM two WHERE b = 31;
	INSERT INTO nk VALUES (50, 'new'); DELETE FROM nk WHERE a = 5; UPDATE shifted SET id = 1001 WHERE id = 1});
cutover_wait($old);
new_sql(q{
	UPDATE two SET v = 'lost' WHERE b = 11; DELETE FROM two WHERE b = 30; INSERT INTO two VALUES ('k31', 31, 'back');
	UPDATE two SET v = 'untouched on old' WHERE b = 200;
	DELETE FROM nk WHERE a = 50; INSERT INTO nk VALUES (5, 'b'); INSERT INTO shifted VALUES (2, 'v')});
is(compare(['two', 'nk', 'shifted'], 'changes'), <<'END' =~ s/\n\z//r, 'the keys that changed, and no others');
shifted|changes|2|0|1|0|0|0
nk|changes|2|1|1|0|0|0
two|changes|14|1|1|1|0|0
END
is(compare(['two', 'nk', 'shifted'], 'changes') =~ s/^(\w+).*/$1/gmr, "shifted\nnk\ntwo", 'again');
is(old_sql(q{SELECT sum(rows) FROM cutover.compare_history WHERE run = (SELECT max(run) FROM cutover.compare_history)}), 0, 'changes are looked at once');
new_sql('DELETE FROM shifted WHERE k = 2');		# no key of old stands for it
old_sql('SELECT cutover_compensate()');
old_sql('TRUNCATE two');
cutover_wait($old);
new_sql(q{INSERT INTO two VALUES ('stays', 1, 'v')});
is(compare(['two'], 'auto'), 'two|changes|0|0|1|0|0|0', 'after a TRUNCATE the whole table');
old_sql('SELECT cutover_compensate()');
is(dirty(), '', 'clean at the end');

# ---- arguments ----

for my $case (
	[ q{method => 'some'}, '22023' ],
	[ q{method => NULL}, '22004' ],
	[ q{method => 'window', since => now(), until => now() - interval '1 s'}, '22023' ],
	[ q{method => 'full', since => now()}, '22023' ],
	[ q{method => 'changes', since => now() + interval '1 day'}, '22023' ],
	[ q{tables => ARRAY['pg_class'::regclass]}, '42704' ],
	[ q{tables => ARRAY[NULL::regclass]}, '22004' ],
	[ q{tables => ARRAY['two'::regclass], method => 'window'}, '22023' ],
	[ q{target => 'nowhere'}, '42704' ])
{
	my $error = cutover_error($old, "SELECT * FROM cutover_compare($case->[0])");
	is($error->{sqlstate}, $case->[1], "cutover_compare($case->[0])");
	ok($error->{hint} && $error->{detail}, '... says what to do');
}
is(cutover_error($old, 'BEGIN; SELECT * FROM cutover_compare()')->{sqlstate}, '25001', 'not in a transaction block');
old_sql('SELECT cutover_pause()');
is(cutover_error($old, 'SELECT * FROM cutover_compare()')->{sqlstate}, '55000', 'not while it is paused');
old_sql('SELECT cutover_resume()');

done_testing();
