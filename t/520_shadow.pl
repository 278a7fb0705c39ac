# SELECTs that are also run on new: what is compared, what is counted, and that old never waits.
use strict;
use warnings;

use CutoverTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(
	old => { conf => "session_preload_libraries = 'cutover'\ncutover.read_timeout = 1000\ncutover.retry_max_delay = 300\n" });

$old->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE item (id int PRIMARY KEY, grp int NOT NULL, name text, price numeric(12,2), at timestamptz, day date, mood mood,
	attrs jsonb, weight float8, uid uuid, raw bytea, tags text[], span interval);
INSERT INTO item SELECT i, i % 10, 'name ' || i, i / 4.0, timestamptz '2024-01-01' + i * interval '1 hour', date '2024-01-01' + i,
	(ARRAY['sad', 'ok', 'happy'])[i % 3 + 1]::mood, jsonb_build_object('i', i), i / 3.0, md5(i::text)::uuid, decode(md5(i::text), 'hex'),
	ARRAY['a', NULL, 'c' || i], i * interval '1 minute' FROM generate_series(1, 1000) i;
INSERT INTO item (id, grp) VALUES (2000, 1);
CREATE TABLE mark (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO mark SELECT i, 0 FROM generate_series(1, 50) i;
CREATE TABLE side (id int PRIMARY KEY);
CREATE TABLE moved (id int PRIMARY KEY, name text, secret text);
INSERT INTO moved SELECT i, 'n' || i, 's' FROM generate_series(1, 20) i;
CREATE VIEW item_view AS SELECT id, name, price FROM item WHERE grp = 3;
CREATE FUNCTION plus_one(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
SQL
cutover_copy_schema($old, $new);
$old->safe_psql('postgres', <<'SQL');
CREATE ROLE reader LOGIN;
CREATE ROLE admin LOGIN IN ROLE cutover_admin;
GRANT SELECT ON item, item_view TO reader;
SQL
$new->safe_psql('postgres', 'CREATE SCHEMA away; CREATE TABLE away.target (nr int PRIMARY KEY, label text)');
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('item'), cutover_add_table('mark')});
$old->safe_psql('postgres', q{SELECT cutover_add_table('moved', 'away.target', columns => '{"nr": "id", "label": "name"}')});
$old->safe_psql('postgres', 'SELECT cutover_start()');
cutover_wait_synced($old);

cutover_error_is($old, 'SELECT cutover_set_shadow_ratio(101)', '22023', 'a ratio is a percentage');
cutover_error_is($old, q{SELECT cutover_exclude_shadow_columns('side', '{id}')}, '42704', 'columns of tables under migration');
cutover_error_is($old, q{SELECT cutover_exclude_shadow_columns('item', '{nope}')}, '42703', 'columns that there are');

# ---- helpers

my $one = sub { $old->safe_psql('postgres', shift) };
# a column of shadow_read, summed over queries like this
my $sum = sub {
	my ($column, $like) = @_;
	$like =~ s/'/''/g;
	return $one->("SELECT coalesce(sum($column), 0) FROM cutover.shadow_read WHERE coalesce(query, '-') LIKE '$like'");
};
my $skipped = sub {
	return $one->("SELECT coalesce(sum(statements), 0) FROM cutover.shadow_skipped WHERE reason = '$_[0]'");
};
my $await = sub {
	my ($what, $done) = @_;
	cutover_poll($what, $done, node => $old);
	pass($what);
};
my $total = sub { $one->('SELECT coalesce(sum(calls), 0) + (SELECT coalesce(sum(statements), 0) FROM cutover.shadow_skipped) FROM cutover.shadow_read') };

# ---- nothing without a ratio; it counts from the next statement on, and rolls back

$one->('SELECT * FROM item WHERE id = 1');
is($one->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover shadow reader'}), '0', 'no worker without a ratio');
$one->('BEGIN; SELECT cutover_set_shadow_ratio(100); ROLLBACK');
is($one->('SELECT shadow_ratio FROM cutover.status'), '0', 'the ratio is transactional');
$one->('SELECT cutover_set_shadow_ratio(100)');
is($one->('SELECT shadow_ratio FROM cutover.status'), '100', 'status shows it');
# the first one starts the worker and is lost
$one->('SELECT count(*) FROM mark');
$await->('a worker comes up', sub { $one->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover shadow reader'}) eq '1' });
$await->('the sample without a worker is counted', sub { $one->('SELECT dropped FROM cutover.shadow_read WHERE queryid = 0') eq '1' });

# ---- equal results: types, parameters, settings, orders, views, functions of time

my @same = (
	'SELECT * FROM item',
	'SELECT id, weight, at FROM item WHERE id < 100',
	'SELECT name FROM item_view WHERE id > 500',
	'SELECT grp, count(*), sum(price), max(at), array_agg(id ORDER BY id) FROM item GROUP BY grp',
	'SELECT a.id, b.n FROM item a LEFT JOIN mark b USING (id) WHERE a.grp = 4',
	'SELECT id FROM item ORDER BY id DESC LIMIT 5',
	'SELECT id FROM item WHERE at < now() AND day <= CURRENT_DATE AND at < LOCALTIMESTAMP(0) ORDER BY id',
	q{SELECT to_char(at, 'HH24:MI'), date_trunc('day', at), at::text, raw::text, span::text FROM item},
	q{SELECT id, rank() OVER (PARTITION BY grp ORDER BY price) FROM item WHERE mood = 'happy'},
	'WITH x AS (SELECT grp, avg(price) AS p FROM item GROUP BY grp) SELECT * FROM x UNION ALL SELECT 1, 2 FROM mark',
	'SELECT CURRENT_USER, id FROM item WHERE id = 7',
	'SELECT m.name, i.id FROM moved m JOIN item i USING (id) WHERE m.id < 9',
	q{SELECT id FROM item WHERE attrs->>'i' = '5' OR tags @> '{c9}' OR name ~ '^name 1.$'},
);
# each in its own session's settings
$old->safe_psql('postgres', "SET timezone = 'Asia/Kolkata'; SET datestyle = 'German'; SET intervalstyle = 'iso_8601';
	SET extra_float_digits = 0; SET bytea_output = 'escape'; $_") for @same;
$old->safe_psql('postgres', "SET search_path = pg_catalog, public; $_") for @same;
# as a role that may read the tables, and nothing of ours
$old->safe_psql('postgres', 'SELECT CURRENT_USER, sum(price) FROM item_view', extra_params => [ '-U', 'reader' ]);
$old->safe_psql('postgres', 'SET ROLE reader; SELECT CURRENT_USER, grp FROM item');
# prepared, on both levels
$old->safe_psql('postgres', q{PREPARE p(int, text) AS SELECT id, name, $2 AS t FROM item WHERE id = $1 OR name = $2;
	EXECUTE p(5, 'name 6'); EXECUTE p(7, NULL)});
my $pgbench = $old->basedir . '/prepared.sql';
append_to_file($pgbench, "\\set a random(1, 1000)\nSELECT id, at, price FROM item WHERE id = :a;\n");
$old->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-f', $pgbench, '-t', '50', '-d', $old->connstr('postgres') ], 'prepared statements');
$await->('all of them are counted', sub { $total->() >= 2 * @same + 54 });
is($one->(q{SELECT string_agg(reason || ':' || statements, ' ') FROM cutover.shadow_skipped}), '', 'none was skipped')
  or diag($one->('SELECT * FROM cutover.shadow_skipped'));
is($sum->('mismatches + unsettled + errors + timeouts', '%'), '0', 'and all are the same on new')
  or diag($one->(q{SELECT query, mismatches, errors, last_message, last_sqlstate FROM cutover.shadow_read WHERE mismatches + errors + timeouts > 0}));
is($one->(q{SELECT calls || ' ' || compared FROM cutover.shadow_read WHERE query LIKE 'SELECT id, at, price FROM item WHERE id = %'}),
	'50 rows', 'one query id, whatever the parameters');
is($one->(q{SELECT query || ' ' || compared FROM cutover.shadow_read WHERE query LIKE 'SELECT id FROM item ORDER BY%'}),
	'SELECT id FROM item ORDER BY id DESC LIMIT $1 order', 'constants are taken out; an order that leaves no doubt is compared');
is($one->(q{SELECT count(*) FROM cutover.shadow_read WHERE queryid <> 0 AND NOT (old_p50 > 0 AND old_p95 >= old_p50 AND new_p99 >= new_p50)}),
	'0', 'latencies of both sides');

# ---- what is not compared, and why

my %why = (
	row_lock => 'SELECT * FROM mark WHERE id = 1 FOR UPDATE',
	transaction_wrote => 'BEGIN; UPDATE mark SET n = n WHERE id = 1; SELECT * FROM mark WHERE id = 1; ROLLBACK',
	other_table => 'SELECT * FROM item JOIN side USING (id)',
	volatile => 'SELECT id, random() FROM item WHERE id = 1',
	function => 'SELECT plus_one(id) FROM item WHERE id = 1',
	mapping => 'SELECT * FROM moved',
	undetermined => 'SELECT ctid FROM mark WHERE id = 1',
	large_result => 'SELECT a.id FROM item a, generate_series(1, 11) i',
	long_text => q{SELECT id FROM item WHERE name = '} . ('x' x 9000) . q{'},
);
for my $reason (sort keys %why)
{
	my $before = $skipped->($reason);
	$old->safe_psql('postgres', $why{$reason});
	$await->("not compared: $reason", sub { $skipped->($reason) > $before });
}
$old->safe_psql('postgres', 'SELECT id FROM item LIMIT 3');
$await->('LIMIT without a full order: only the number of rows', sub {
	$one->(q{SELECT count(*) FROM cutover.shadow_read WHERE query LIKE 'SELECT id FROM item LIMIT%' AND compared = 'count'}) eq '1' });
$old->safe_psql('postgres', 'ALTER TABLE mark ENABLE ROW LEVEL SECURITY; SELECT n FROM mark; ALTER TABLE mark DISABLE ROW LEVEL SECURITY');
$await->('row security is left alone', sub { $skipped->('row_security') eq '1' });
my $before = $total->();
$old->safe_psql('postgres', 'BEGIN; DECLARE c CURSOR FOR SELECT * FROM item; FETCH ALL FROM c; COMMIT');
$old->safe_psql('postgres', q{DO $$ BEGIN PERFORM * FROM item; END $$});
is($one->(q{SELECT count(*) FROM pg_class}) > 0, 1, 'other statements');
$old->safe_psql('postgres', q{SET cutover.read_from = 'new'; SELECT id * 7 FROM item WHERE id = 1});
$old->safe_psql('postgres', 'SELECT id + 111 FROM item WHERE id = 1');
$await->('the next statement is counted', sub { $sum->('calls', 'SELECT id + %') eq '1' });
is($total->(), $before + 1, 'cursors, PL/pgSQL, catalogs and what new answered are not');

# ---- a wrong row on new

my $wrong = 'SELECT id, name, grp FROM item WHERE grp = 8';
$new->safe_psql('postgres', q{UPDATE item SET name = 'planted' WHERE id = 18; DELETE FROM item WHERE id = 28});
is($one->($wrong) =~ /planted/, '', 'the client gets the rows of old');
$await->('the difference is counted', sub { $sum->('mismatches', 'SELECT id, name, grp%') eq '1' });
is($one->(q{SELECT target, query, old_rows, new_rows FROM cutover.shadow_mismatch}), "new|$wrong|100|99", 'and kept');
is($one->(q{SELECT jsonb_path_query_array(sample, '$.only_on_old[*].name'), jsonb_path_query_array(sample, '$.only_on_new[*].name') FROM cutover.shadow_mismatch}),
	'["name 18", "name 28"]|["planted"]', 'with the rows that differ');
$old->safe_psql('postgres', q{PREPARE w(int) AS SELECT name FROM item WHERE id = $1; EXECUTE w(18)});
$await->('one with a parameter', sub { $one->('SELECT parameters FROM cutover.shadow_mismatch ORDER BY at DESC LIMIT 1') eq '["18"]' });
$one->($wrong) for 1 .. 11;
$await->('all are counted', sub { $sum->('mismatches', 'SELECT id, name, grp%') eq '12' });
is($one->(q{SELECT samples, capped FROM cutover.shadow_read WHERE query LIKE 'SELECT id, name, grp%'}), '10|t', 'ten are kept, and it says so');
is($one->(q{SELECT count(*) FROM cutover.shadow_mismatch WHERE query LIKE 'SELECT id, name, grp%'}), '10', 'of each query');
is($old->safe_psql('postgres', q{SELECT query, parameters, sample FROM cutover.shadow_mismatch ORDER BY at LIMIT 1}, extra_params => [ '-U', 'admin' ]),
	'SELECT id, name, grp FROM item WHERE grp = $1||', 'values are for those who may read the table');

# columns that may differ
$old->safe_psql('postgres', q{SELECT cutover_exclude_shadow_columns('item', '{name}')});
my $excluded = 'SELECT name, id FROM item WHERE id = 18';
$old->safe_psql('postgres', $excluded);
$await->('a query with an excluded column is run', sub { $sum->('calls', 'SELECT name, id%') eq '1' });
$old->safe_psql('postgres', q{SELECT id FROM item WHERE name = 'name 18'});
$await->('one that looks for it is not', sub { $skipped->('excluded_column') eq '1' });
is($sum->('mismatches', 'SELECT name, id%'), '0', 'an excluded column may differ');
$old->safe_psql('postgres', q{SELECT cutover_exclude_shadow_columns('item', '{}')});
$new->safe_psql('postgres', q{UPDATE item SET name = 'name 18' WHERE id = 18});
$old->safe_psql('postgres', q{UPDATE item SET name = name WHERE id = 28; DELETE FROM item WHERE id = 28});
cutover_wait($old);

# ---- errors of new, time-outs

$new->safe_psql('postgres', 'ALTER TABLE item RENAME COLUMN uid TO uid2');
is($one->('SELECT uid FROM item WHERE id = 3'), $one->('SELECT md5(3::text)::uuid'), 'old answers');
$await->('an error of new is counted', sub { $sum->('errors', 'SELECT uid%') eq '1' });
is($one->(q{SELECT last_sqlstate FROM cutover.shadow_read WHERE query LIKE 'SELECT uid%'}), '42703', 'with its SQLSTATE');
$new->safe_psql('postgres', 'ALTER TABLE item RENAME COLUMN uid2 TO uid');
my $blocker = $new->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE');
is($one->('SELECT day FROM item WHERE id = 3'), '2024-01-04', 'old answers while new hangs');
$await->('a time-out of new is counted', sub { $sum->('timeouts', 'SELECT day%') eq '1' });
ok($one->(q{SELECT new_p50 FROM cutover.shadow_read WHERE query LIKE 'SELECT day%'}) > 800, 'with the time that it took');
$blocker->query_safe('ROLLBACK');
$blocker->quit;

# ---- a full ring, and new that is not there: nobody waits

my @readers = cutover_worker_pids($old, 'cutover shadow reader');
kill 'STOP', @readers;
$old->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-f', $pgbench, '-t', '600', '-d', $old->connstr('postgres') ], 'old goes on while nobody takes samples');
kill 'CONT', @readers;
$await->('what found no room is counted', sub { $sum->('dropped', 'SELECT id, at, price%') >= 80 });
$new->stop('immediate');
$old->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-f', $pgbench, '-t', '1200', '-d', $old->connstr('postgres') ], 'old goes on without new');
$await->('it is counted', sub { $sum->('errors', 'SELECT id, at, price%') > 0 });
$new->start;
$before = $sum->('calls', 'SELECT n FROM mark%');
$await->('new is used again', sub { $one->('SELECT n FROM mark WHERE id = 3'); $sum->('calls - errors', 'SELECT n FROM mark%') > $before });

# ---- lag is no difference

cutover_wait($old);
$one->('DELETE FROM cutover._shadow_read');
$one->('ALTER SYSTEM SET cutover.shadow_workers = 2');
$old->reload;
$await->('a second worker comes', sub { $one->('SELECT n FROM mark WHERE id = 3');
	$one->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover shadow reader'}) eq '2' });
my $load = $old->basedir . '/load.sql';
append_to_file($load, "\\set a random(1, 20)\nUPDATE mark SET n = n + 1 WHERE id = :a;\nSELECT id, n FROM mark WHERE id = :a;\nSELECT sum(n) FROM mark WHERE id <= 2;\n");
$old->command_ok([ 'pgbench', '-n', '-M', 'prepared', '-c', '4', '-j', '2', '-f', $load, '-T', '3', '-d', $old->connstr('postgres') ], 'reads of rows that change all the time');
cutover_wait($old);
$await->('they are run on new', sub { $sum->('calls', '%mark%') > 500 });
$one->('SELECT cutover_set_shadow_ratio(0)');
$await->('without a ratio the worker ends', sub { $one->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover shadow reader'}) eq '0' });
is($sum->('mismatches', '%'), '0', 'no difference, however far new lags')
  or diag($one->(q{SELECT query, parameters, sample FROM cutover.shadow_mismatch}));

# ---- the target goes while there are samples

$one->('SELECT cutover_set_shadow_ratio(100)');
$await->('samples are taken', sub { $one->('SELECT id FROM item WHERE id < 10'); $one->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover shadow reader'}) > 0 });
$one->('SELECT id FROM item WHERE id < 10') for 1 .. 3;
$one->('SELECT cutover_cancel()');
$await->('the worker ends with the target', sub { $one->(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover shadow reader'}) eq '0' });
is($one->('SELECT count(*) FROM cutover._shadow_read'), '0', 'and leaves nothing behind');
unlike(slurp_file($old->logfile), qr/cutover shadow reader \S* ?(ERROR|FATAL)/, 'no error in the log of any of them');

done_testing();
