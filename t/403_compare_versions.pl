# New of the oldest and of the latest version: the same digests, for every type.
use strict;
use warnings;

use CutoverTest;
use CutoverTest::Embedded;
use CutoverTest::Zoo;
use PostgreSQL::Test::Utils;
use Test::More;

for my $major (13, 18)
{
	my $path = embedded_postgres($major);
	ok($path, "PostgreSQL $major is here");
	my $old = cutover_node("old$major", conf => "cutover.protect_new = off\n");
	my $new = cutover_node("new$major", install_path => $path);
	$old->safe_psql('postgres', 'CREATE EXTENSION cutover');
	# 13 lacks some of the zoo's types
	if ($major >= 14) { zoo_create($old, $new) }
	else
	{
		my @types = ('bool', 'bytea', 'int2', 'int8', 'float4', 'float8', 'numeric', 'text', 'varchar(9)', 'char(9)', 'date', 'time',
			'timetz', 'timestamp', 'timestamptz', 'interval', 'json', 'jsonb', 'uuid', 'inet', 'cidr', 'macaddr', 'bit(4)', 'varbit', 'point',
			'box', 'int4range', 'tstzrange', 'int[]', 'text[]', 'money', 'xml', 'tsvector', 'pair', 'mood', 'name', '"char"', 'oid', 'pg_lsn');
		my @values = ('true', q|'\xff00'|, -1, 1 << 40, 0.1, q|'-0'|, '1.10', q|'it''s, "x"'|, q|'a '|, q|'a '|, q|'0001-01-01 BC'|, q|'24:00'|,
			q|'12:00+05:30'|, q|'infinity'|, q|'1890-01-01 12:00+00:53:28'|, q|'1 mon -1 day 00:00:00.000001'|, q|'{"a": 1,  "a": 2}'|,
			q|'{"a": 1.10}'|, q|'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'|, q|'10.1.2.3/8'|, q|'10.0.0.0/8'|, q|'08:00:2b:01:02:03'|, q|B'1010'|,
			q|B'1'|, q|'(1,-1.5)'|, q|'(1,1),(0,0)'|, q|'[1,5)'|, q|'["2026-01-01",)'|, q|'{1,NULL,3}'|, q|'{"a b",NULL,""}'|, q|'1.25'|,
			q|'<a/>'|, q|'a:1A b'|, q|'(1,"x,y")'|, q|'b c'|, q|'n'|, q|'c'|, 42, q|'1/2'|);
		$old->safe_psql('postgres', q{CREATE TYPE pair AS (a int, b text); CREATE TYPE mood AS ENUM ('a', 'b c')});
		$old->safe_psql('postgres', 'CREATE TABLE z_all (id int PRIMARY KEY' . join('', map { ", c$_ $types[$_]" } 0 .. $#types) . ');'
			  . join('', map { "CREATE TABLE z_$_ (id int PRIMARY KEY, v $_); INSERT INTO z_$_ SELECT i, '1' FROM generate_series(1, 5) i;" } qw(text numeric float8))
			  . q{UPDATE z_float8 SET v = '-0' WHERE id = 2;}
			  . 'INSERT INTO z_all SELECT i' . join('', map { ", $_" } @values) . ' FROM generate_series(1, 100) i; INSERT INTO z_all VALUES (0)');
	}
	# by programs of old's version: they know both
	system_or_bail('sh', '-c', 
		q{pg_dump -s -N cutover -d "$0" | grep -v EXTENSION | psql -XqAt -v ON_ERROR_STOP=1 -o /dev/null -d "$1"},
		$old->connstr('postgres'), $new->connstr('postgres'));
	cutover_add_target($old, $new);
	$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
	ok(cutover_wait_synced($old), 'copied');
	my $differ = q{SELECT table_name, missing, extra, different, representation, deferred FROM cutover_compare(method => 'full')
		WHERE missing + extra + different + representation + deferred > 0};
	is($old->safe_psql('postgres', $differ), '', "nothing differs on $major");
	is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.compare_history WHERE complete'),
		$old->safe_psql('postgres', 'SELECT count(*) FROM cutover.tables'), 'all was compared');
	system_or_bail('psql', '-XqAt', '-d', $new->connstr('postgres'), '-c', q{UPDATE z_numeric SET v = v + 1 WHERE id = 3; UPDATE z_text SET v = v || ' ' WHERE id = 1;
		UPDATE z_float8 SET v = 0 WHERE v::text = '-0'});
	is($old->safe_psql('postgres', $differ), "z_float8|0|0|0|1|0\nz_numeric|0|0|1|0|0\nz_text|0|0|1|0|0", 'but what was damaged there');
	$old->stop('immediate');
	$new->stop('immediate');
}

done_testing();
