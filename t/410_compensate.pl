# Repairs: what was damaged on new is made equal to old again, under load, through the queue.
# The differences are written down by the test itself, so that nothing here depends on how they are found.
use strict;
use warnings;

use CutoverTest;
use POSIX ();
use Test::More;

my ($old, $new) = cutover_pair();
my @tables = ('parent', 'child', 'swap', 'tree', 'part', '"Odd name"', 'nk', 'load_journal');

$old->safe_psql('postgres', q{
	CREATE TABLE parent (id int PRIMARY KEY, name text NOT NULL);
	CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent, v numeric);
	CREATE TABLE swap (id int PRIMARY KEY, u text UNIQUE, w text);
	CREATE TABLE tree (id int PRIMARY KEY, above int REFERENCES tree, v text);
	CREATE TABLE part (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
	CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
	CREATE TABLE "Odd name" ("The Key" text PRIMARY KEY, "Value" timestamptz);
	CREATE TABLE nk (a int, b text, c jsonb);
	CREATE TABLE rejected (id int PRIMARY KEY, v int);
	CREATE TABLE mapped (id int PRIMARY KEY, price numeric, kind text);
	INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 200) i;
	INSERT INTO child SELECT i, 1 + i % 200, i FROM generate_series(1, 2000) i;
	INSERT INTO swap SELECT i, 'u' || i, 'w' FROM generate_series(1, 500) i;
	INSERT INTO tree SELECT i, nullif(i / 2, 0), 'v' FROM generate_series(1, 300) i;
	INSERT INTO part SELECT i, date '2020-01-01' + i % 700, 'v' FROM generate_series(1, 500) i;
	INSERT INTO "Odd name" SELECT 'k"' || i, timestamptz '2020-01-01' + i * interval '1 s' FROM generate_series(1, 100) i;
	INSERT INTO nk SELECT i % 20, 'b' || i % 20, CASE WHEN i % 20 < 15 THEN jsonb_build_object('n', i % 20) END FROM generate_series(1, 400) i;
	INSERT INTO rejected SELECT i, i FROM generate_series(1, 20) i;
	INSERT INTO mapped SELECT i, i + 0.5, CASE WHEN i % 2 = 0 THEN 'in' ELSE 'out' END FROM generate_series(1, 100) i});
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
$new->safe_psql('postgres', q{CREATE TABLE "Mapped" (key int PRIMARY KEY, cents bigint)});
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('mapped', new_table => '"Mapped"',
	columns => '{"key": "id", "cents": "(price * 100)::bigint"}', row_filter => $$kind = 'in'$$)});
$old->safe_psql('postgres', q{SELECT cutover_add_tables(); SELECT cutover_start()});
ok(cutover_wait_synced($old), 'copied');

# Someone writes on new by hand.
sub damage
{
	my ($sql) = @_;
	$new->safe_psql('postgres', "SET session_replication_role = replica; $sql");
}

# A difference that a comparison would have written down.
sub differs
{
	my ($table, @keys) = @_;
	my $json = join ', ', map { s/'/''/gr } @keys;
	$old->safe_psql('postgres', qq{
		INSERT INTO cutover._divergence (target_id, table_id, key, kind)
		SELECT t.target_id, t.table_id, k, 'different' FROM cutover._table t, jsonb_array_elements('[$json]') k
		WHERE t.old_table = '$table'::regclass ON CONFLICT DO NOTHING});
}

sub compensate { return $old->safe_psql('postgres', 'SELECT table_name, repaired, deferred FROM cutover_compensate() WHERE repaired + deferred > 0 ORDER BY 1') }

# unique values in a circle, among rows that are there
my $circle = q{BEGIN; UPDATE swap SET u = 'x' || u WHERE id <= 50;
	UPDATE swap SET u = 'u' || 1 + id % 50 WHERE id <= 50; COMMIT};
damage($circle);
differs('swap', map { qq({"id": "$_"}) } 1 .. 50);
is(compensate(), 'swap|50|0', 'unique values find back to their rows');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'none is refused on the way');
cutover_same_rows($old, $new, 'swap', 'rows are the same');

# rows that the test damages are not those that the load writes, and some are
my $load = cutover_load($old, clients => 2, pause => 500, sql => sub {
	my ($client, $n) = @_;
	my $id = 1 + ($n * 7 + $client) % 2000;
	return "UPDATE child SET v = v + 1 WHERE id = $id; UPDATE swap SET w = 'w$n' WHERE id = @{[1 + $n % 500]};"
	  . "INSERT INTO nk SELECT 50 + i FROM generate_series(1, 8) i; DELETE FROM nk WHERE ctid = (SELECT ctid FROM nk WHERE a = @{[10 + $client]} LIMIT 1);"
	  . "INSERT INTO nk VALUES (@{[10 + $client]}, 'load', NULL)" });

damage(q{
	DELETE FROM parent WHERE id <= 20; DELETE FROM child WHERE parent <= 20;
	INSERT INTO parent VALUES (1000, 'extra'); INSERT INTO child VALUES (9000, 1000, 1), (9001, 1000, 1);
	UPDATE child SET v = -1 WHERE id BETWEEN 100 AND 150});
differs('parent', (map { qq({"id": "$_"}) } 1 .. 20), '{"id": "1000"}');
differs('child', (map { qq({"id": "$_"}) } grep { my $p = 1 + $_ % 200; $p <= 20 || ($_ >= 100 && $_ <= 150) || $_ > 8999 } 1 .. 2000, 9000, 9001));
damage($circle);
differs('swap', map { qq({"id": "$_"}) } 1 .. 50);
damage('DELETE FROM tree WHERE id BETWEEN 30 AND 300');
differs('tree', map { qq({"id": "$_"}) } reverse 30 .. 300);
damage(q{UPDATE part SET at = '2021-05-05' WHERE id = 3; UPDATE part SET v = 'x' WHERE id = 4});
differs('part', '{"id": "3", "at": "2020-01-04"}', '{"id": "3", "at": "2021-05-05"}', '{"id": "4", "at": "2020-01-05"}');
damage(q{UPDATE "Odd name" SET "Value" = NULL WHERE "The Key" = 'k"7'; INSERT INTO "Odd name" VALUES ('it''s', now())});
differs('"Odd name"', '{"The Key": "k\\"7"}', q({"The Key": "it's"}));
damage(q{DELETE FROM nk WHERE a = 3; INSERT INTO nk SELECT 5, 'b5', '{"n": 5}' FROM generate_series(1, 7);
	UPDATE nk SET c = NULL WHERE a = 4; INSERT INTO nk VALUES (99, 'x', NULL), (99, 'x', NULL);
	DELETE FROM nk WHERE ctid IN (SELECT ctid FROM nk WHERE a = 1 LIMIT 5)});
differs('nk', '{"a": "3", "b": "b3", "c": "{\\"n\\": 3}"}', '{"a": "5", "b": "b5", "c": "{\\"n\\": 5}"}',
	'{"a": "4", "b": "b4", "c": "{\\"n\\": 4}"}', '{"a": "4", "b": "b4", "c": null}', '{"a": "99", "b": "x", "c": null}',
	'{"a": "1", "b": "b1", "c": "{\\"n\\": 1}"}', '{"a": "1", "b": "b1", "c": null}');
damage(q{UPDATE "Mapped" SET cents = 1 WHERE key = 2; DELETE FROM "Mapped" WHERE key = 4; INSERT INTO "Mapped" VALUES (5, 5), (500, 5)});
differs('mapped', map { qq({"id": "$_"}) } 2, 4, 5, 500);

like(compensate(), qr/^parent\|21\|0$/m, 'rows of a parent are repaired');
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.divergence WHERE state <> 'deferred'}), '0', 'nothing is left open but what moves all the time');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'new refused nothing');
# copies of rows without a key, more of them every moment; each is asked for once
for my $round (1 .. 8)
{
	damage("INSERT INTO nk VALUES (50 + $round)");
	differs('nk', qq({"a": "@{[50 + $round]}", "b": null, "c": null}));
	compensate();
}
my $result = $load->stop;
cmp_ok($result->{committed}, '>', 10, 'there was a load');
cutover_wait($old);
cutover_same_tables($old, $new, @tables);
cutover_same_rows($old, $new, '(SELECT id, (price * 100)::bigint FROM mapped WHERE kind = $$in$$)', 'mapped rows',
	new_table => '(SELECT key, cents FROM "Mapped")');
is($old->safe_psql('postgres', q{SELECT sum(missing + extra + different) FROM cutover_compare(method => 'full')}), '0', 'so says a comparison');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.divergence'), '0', 'which closes what moved');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.tables WHERE phase <> $$synced$$'), '0', 'no table was stopped');

# what new refuses
$new->safe_psql('postgres', 'ALTER TABLE rejected ADD CHECK (v <> 7) NOT VALID');
damage('DELETE FROM rejected WHERE id IN (7, 8)');
differs('rejected', '{"id": "7"}', '{"id": "8"}');
is(compensate(), 'rejected|1|0', 'one of two rows is taken');
is($old->safe_psql('postgres', q{SELECT key->>'id', sqlstate FROM cutover.apply_error}), '7|23514', 'the other is an error of apply, with its reason');
is($old->safe_psql('postgres', 'SELECT key, state FROM cutover.divergence'), '{"id": "7"}|confirmed', 'and stays open');
$new->safe_psql('postgres', 'ALTER TABLE rejected DROP CONSTRAINT rejected_v_check');
is(compensate(), 'rejected|1|0', 'until new takes it');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'which settles the error too');
cutover_same_rows($old, $new, 'rejected', 'rows are the same');

# deferred ones are only counted
damage('UPDATE parent SET name = $$newer$$ WHERE id = 5');
differs('parent', '{"id": "5"}');
$old->safe_psql('postgres', q{UPDATE cutover._divergence SET state = 'deferred'});
is(compensate(), 'parent|0|1', 'a deferred difference is counted');
is($new->safe_psql('postgres', 'SELECT name FROM parent WHERE id = 5'), 'newer', 'and left alone');
$old->safe_psql('postgres', q{UPDATE cutover._divergence SET state = 'confirmed'});
is(compensate(), 'parent|1|0', 'until it is confirmed');

# passes made before a repair count no more
$old->safe_psql('postgres', 'UPDATE cutover._table SET clean_passes = 3');
differs('parent', '{"id": "5"}');
compensate();
is($old->safe_psql('postgres', q{SELECT clean_passes FROM cutover.tables WHERE table_name = 'parent'::regclass}), '0', 'clean passes begin anew');
is($old->safe_psql('postgres', q{SELECT clean_passes FROM cutover.tables WHERE table_name = 'child'::regclass}), '3', 'of the table repaired');

# who may, and when
$old->safe_psql('postgres', 'CREATE ROLE op LOGIN; GRANT cutover_admin TO op; CREATE ROLE nobody LOGIN');
differs('parent', '{"id": "5"}');
cutover_error_is($old, 'SET SESSION AUTHORIZATION op; SELECT cutover_compensate()', '42501', 'not for one who does not own the table');
cutover_error_is($old, q{SET SESSION AUTHORIZATION op; SELECT cutover_compensate('{parent}')}, '42501', 'nor when it is named');
$old->safe_psql('postgres', 'ALTER TABLE parent OWNER TO op');
is($old->safe_psql('postgres', q{SET SESSION AUTHORIZATION op; SELECT * FROM cutover_compensate('{parent}')}), 'parent|1|0', 'its owner may');
cutover_error_is($old, 'BEGIN; SELECT cutover_compensate(); COMMIT', '25001', 'not in a transaction block');
cutover_error_is($old, q{SELECT cutover_compensate('{pg_class}')}, '42704', 'not for a table of nobody');
$old->safe_psql('postgres', 'SELECT cutover_pause()');
cutover_error_is($old, 'SELECT cutover_compensate()', '55000', 'not while paused');
$old->safe_psql('postgres', 'SELECT cutover_resume()');

# kill -9 in the middle, all rows different
$old->safe_psql('postgres', q{CREATE TABLE many (id int PRIMARY KEY, u int UNIQUE, v text); INSERT INTO many SELECT i, i, 'v' FROM generate_series(1, 30000) i});
cutover_copy_schema($old, $new) if 0;
$new->safe_psql('postgres', 'CREATE TABLE many (id int PRIMARY KEY, u int UNIQUE, v text)');
$old->safe_psql('postgres', q{SELECT cutover_add_table('many')});
cutover_wait_synced($old);
damage(q{UPDATE many SET v = 'x'});
$old->safe_psql('postgres', q{INSERT INTO cutover._divergence (target_id, table_id, key, kind)
	SELECT t.target_id, t.table_id, jsonb_build_object('id', i::text), 'different' FROM cutover._table t, generate_series(1, 30000) i
	WHERE t.old_table = 'many'::regclass});
my $pid = fork() // die;
if ($pid == 0)
{
	$old->psql('postgres', 'SELECT * FROM cutover_compensate()');
	POSIX::_exit(0);
}
cutover_poll('some are repaired', sub { $old->safe_psql('postgres', 'SELECT count(*) < 28000 FROM cutover.divergence') eq 't' });
ok(cutover_crash($old, 'cutover action'), 'the worker is killed, and the server with it');
waitpid $pid, 0;
cmp_ok($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.divergence'), '>', 0, 'it was in the middle');
like(compensate(), qr/^many\|\d+\|0$/, 'called again it goes on');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.divergence'), '0', 'to the end');
cutover_wait($old);
cutover_same_tables($old, $new, @tables, 'many', 'rejected');

# while new is master old is made equal to new
damage(q{UPDATE child SET v = -77 WHERE id BETWEEN 500 AND 520; DELETE FROM tree WHERE id BETWEEN 200 AND 210 AND NOT EXISTS (SELECT FROM tree t WHERE t.above = tree.id);
	INSERT INTO parent VALUES (2000, 'new'); INSERT INTO child VALUES (9100, 2000, 5)});
$old->safe_psql('postgres', q{SELECT cutover_set_mode('new_only', force => true)});
like($old->safe_psql('postgres', q{SELECT sum(missing) > 0, sum(extra), sum(different) FROM cutover_compare('{parent,child,tree}', method => 'full')}),
	qr/^t\|2\|21$/, 'the sides differ, and new is right');
like(compensate(), qr/^child\|22\|0$/m, 'rows of old are repaired');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.divergence'), '0', 'nothing is left open');
cutover_wait($old);
cutover_same_tables($old, $new, @tables);
is($old->safe_psql('postgres', 'SELECT count(*) FROM child WHERE v = -77'), '21', 'by the rows of new');

done_testing();
