# The apply path by itself: random changes, as a replicator would hand them
# over, give the same tables whether they are coalesced or written one by one.
# Proven by hand: without the delete before the insert of a renumbered row, or
# with deletes after upserts, these tests fail.
use strict;
use warnings;

use FindBin;
use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();
my $sql = "$FindBin::Bin/modules/apply_test";
my $pinned = q{SET timezone = 'UTC'; SET extra_float_digits = 3; SET lc_monetary = 'C';};
my @tables = map { "t$_" } 1 .. 7;

sub run_file
{
	my ($node, $db, $file) = @_;
	$node->safe_psql($db, PostgreSQL::Test::Utils::slurp_file("$sql/$file"));
}

run_file($old, 'postgres', 'tables.sql');
$old->safe_psql('postgres', 'ALTER TABLE t2 ADD PRIMARY KEY (id)');
run_file($old, 'postgres', 'changes.sql');
$old->safe_psql('postgres', q{LOAD 'cutover';
	CREATE FUNCTION apply_test(text, text, text, int, text) RETURNS text LANGUAGE c AS 'apply_test'});

# Apply everything in ops to a fresh database, and compare.
sub check
{
	my ($batch, $mode, $what) = @_;
	my $conninfo = $new->connstr('fresh') =~ s/'/''/gr;

	$new->safe_psql('postgres', 'DROP DATABASE IF EXISTS fresh');
	$new->safe_psql('postgres', 'CREATE DATABASE fresh');
	run_file($new, 'fresh', 'tables.sql');
	my $said = $old->safe_psql('postgres', qq{LOAD 'cutover'; SELECT apply_test('$conninfo',
		'SELECT table_id, schema, name, col, type, key, identity_always, has_arbiter, may_conflict, fk_rank, cast_type FROM cols ORDER BY table_id, pos',
		'SELECT table_id, op, v, absent FROM ops ORDER BY i', $batch, '$mode')});
	like($said, qr/, 0 failures, 0 missed$/, "$what: nothing is refused");
	cutover_same_rows($old, $new, $_, "$what: $_", new_db => 'fresh', db => 'postgres') for @tables;
}

# every run has changes of its own; the seed tells which, for the next time
my $seed = $ENV{CUTOVER_TEST_SEED} // sprintf('%.6f', rand);
note("CUTOVER_TEST_SEED=$seed");
cmp_ok($old->safe_psql('postgres', "$pinned SELECT changes(1500, $seed)"), '>', 800, 'there are changes');
check(@$_) for [ 1, 'set', 'one change a transaction' ], [ 7, 'set', 'seven' ], [ 150, 'set', 'more' ],
  [ 100000, 'set', 'all in one' ], [ 100, 'one', 'each by itself' ];

$old->safe_psql('postgres', 'UPDATE cols SET may_conflict = true');
check(200, 'set', 'while being copied');
check(100000, 'set', 'while being copied, all in one');
$old->safe_psql('postgres', 'UPDATE cols SET may_conflict = false');

$old->safe_psql('postgres', "$pinned SELECT bulk()");
check(3000, 'set', 'large sets');
check(1000000, 'set', 'very large sets');

# what new refuses does not stop the rest, and says why
$old->safe_psql('postgres', 'TRUNCATE ops; ALTER TABLE t2 ALTER b TYPE bigint');
$old->safe_psql('postgres', q{INSERT INTO ops (table_id, op, v) VALUES
	(1, 'I', array_fill('x'::text, ARRAY[37])),
	(2, 'I', ARRAY['1', 'a', '3000000000']),
	(2, 'I', ARRAY['2', 'b', '3']),
	(2, 'U', ARRAY['77', NULL, '4'])});
$old->safe_psql('postgres', q{UPDATE ops SET absent = '{2}' WHERE op = 'U'});
$new->safe_psql('fresh', 'TRUNCATE t2');
my $conninfo = $new->connstr('fresh') =~ s/'/''/gr;
my ($rc, $out, $err) = $old->psql('postgres', qq{LOAD 'cutover'; SELECT apply_test('$conninfo',
	'SELECT table_id, schema, name, col, type, key, identity_always, has_arbiter, may_conflict, fk_rank, cast_type FROM cols ORDER BY table_id, pos',
	'SELECT table_id, op, v, absent FROM ops ORDER BY i', 100, 'one')});
like($out, qr/2 failures, 1 missed/, 'bad rows and a missing row are told');
like($err, qr/22003: value "3000000000" is out of range/, 'with the reason');
is($new->safe_psql('fresh', 'SELECT id, a, b FROM t2'), '2|b|3', 'the good row is there');

# a value too long for its column is refused, never cut
$old->safe_psql('postgres', q{TRUNCATE ops; DELETE FROM cols;
	INSERT INTO cols SELECT 9, 'public', 't9', c, t, (c = 'id')::int, false, true, false, 0, ord, k
		FROM (VALUES (1, 'id', 'integer', 'integer'), (2, 'a', 'character varying(3)', 'character varying'),
			(3, 'b', 'character(3)', 'bpchar'), (4, 'c', 'bit(3)', '"bit"'), (5, 'd', 'bit varying(3)', 'bit varying'),
			(6, 'e', 'numeric(3,0)', 'numeric'), (7, 'f', 'public.short', 'character varying'),
			(8, 'g', 'character varying(3)[]', 'character varying[]')) v (ord, c, t, k)});
$new->safe_psql('fresh', 'CREATE DOMAIN short AS varchar(3); CREATE TABLE t9 (id int PRIMARY KEY, a varchar(3), b char(3),
	c bit(3), d varbit(3), e numeric(3,0), f short, g varchar(3)[])');
for my $case ([ 2, 'abcd' ], [ 3, 'abcd' ], [ 4, '1010' ], [ 4, '10' ], [ 5, '1010' ], [ 6, '1000' ], [ 7, 'abcd' ], [ 8, '{abcd}' ])
{
	my @row = (1, ('NULL') x 7);
	$row[ $case->[0] - 1 ] = "'$case->[1]'";
	for my $op ('I', 'P')
	{
		$old->safe_psql('postgres', "TRUNCATE ops; INSERT INTO ops (table_id, op, v) VALUES (9, '$op', ARRAY[" . join(', ', "'1'", @row[ 1 .. 7 ]) . "]::text[])");
		($rc, $out, $err) = $old->psql('postgres', qq{LOAD 'cutover'; SELECT apply_test('$conninfo',
			'SELECT table_id, schema, name, col, type, key, identity_always, has_arbiter, may_conflict, fk_rank, cast_type FROM cols ORDER BY table_id, pos',
			'SELECT table_id, op, v, absent FROM ops ORDER BY i', 100, 'one')});
		like($out, qr/1 failures/, "column $case->[0]: $case->[1] is refused ($op)") or diag($new->safe_psql('fresh', 'TABLE t9'));
		$new->safe_psql('fresh', 'DELETE FROM t9');
	}
}

# a role that foreign keys and triggers apply to: tables in the order of their references
$new->safe_psql('fresh', 'CREATE ROLE mover LOGIN; CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY,
	parent int REFERENCES parent); CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree);
	GRANT ALL ON ALL TABLES IN SCHEMA public TO mover; GRANT ALL ON SCHEMA public TO mover');
$old->safe_psql('postgres', q{TRUNCATE ops; DELETE FROM cols;
	INSERT INTO cols SELECT t, 'public', n, c, 'integer', (c = 'id')::int, false, true, false, (n = 'child')::int, ord, 'integer'
		FROM (VALUES (1, 'parent', 'id', 1), (2, 'child', 'id', 1), (2, 'child', 'parent', 2), (3, 'tree', 'id', 1), (3, 'tree', 'up', 2))
			v (t, n, c, ord);
	INSERT INTO ops (table_id, op, v) SELECT 2, 'I', ARRAY[g::text, (g % 100)::text] FROM generate_series(1, 1000) g;
	INSERT INTO ops (table_id, op, v) SELECT 1, 'I', ARRAY[g::text] FROM generate_series(0, 99) g;
	INSERT INTO ops (table_id, op, v) SELECT 3, 'I', ARRAY[g::text, (g + 1)::text] FROM generate_series(1, 499) g;
	INSERT INTO ops (table_id, op, v) VALUES (3, 'I', ARRAY['500', NULL]);
	INSERT INTO ops (table_id, op, v) SELECT 1, 'D', ARRAY[g::text] FROM generate_series(0, 9) g;
	INSERT INTO ops (table_id, op, v) SELECT 2, 'D', ARRAY[g::text, NULL] FROM generate_series(1, 1000) g WHERE g % 100 < 10});
$conninfo .= ' user=mover';
for my $step ([ 'come', '90|900|500' ], [ 'go', '0|0|0' ])
{
	$old->safe_psql('postgres', q{TRUNCATE ops;
		INSERT INTO ops (table_id, op, v) SELECT 1, 'D', ARRAY[g::text] FROM generate_series(0, 99) g;
		INSERT INTO ops (table_id, op, v) SELECT 2, 'D', ARRAY[g::text, NULL] FROM generate_series(1, 1000) g;
		INSERT INTO ops (table_id, op, v) SELECT 3, 'D', ARRAY[g::text, NULL] FROM generate_series(1, 500) g}) if $step->[0] eq 'go';
	like($old->safe_psql('postgres', qq{LOAD 'cutover'; SELECT apply_test('$conninfo',
		'SELECT table_id, schema, name, col, type, key, identity_always, has_arbiter, may_conflict, fk_rank, cast_type FROM cols ORDER BY table_id, pos',
		'SELECT table_id, op, v, absent FROM ops ORDER BY i', 100000, 'set')}), qr/ 0 failures/, "parents and children $step->[0]");
	is($new->safe_psql('fresh', 'SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child), (SELECT count(*) FROM tree)'),
		$step->[1], 'all of them');
}

done_testing();
