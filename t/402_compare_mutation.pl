# Random damage on new while old is written to: all of it is found, nothing else, and repaired.
use strict;
use warnings;

use CutoverTest;
use List::Util qw(shuffle);
use Test::More;

my $seed = $ENV{CUTOVER_SEED} // time;
my $damages = $ENV{CUTOVER_DAMAGES} // 1000;
srand($seed);
note("CUTOVER_SEED=$seed");

my ($old, $new) = cutover_pair(old => { conf => "cutover.protect_new = off\ncutover.queue_segment_size = 1MB\ncutover.change_retention = 1\n" },
	new => { extra => ['--locale=C.UTF-8'] });
my $rows = 30_000;
my $quiet = 2000;					# the load leaves rows after this one alone

# Rows of all sorts, told apart by number, by text and number, and by nothing.
my $columns = q{t text, u text, c char(5), n numeric, f float8, at timestamptz, j jsonb, b bytea, i uuid, a int[], k boolean, l text};
my $values = q{'text ' || g, CASE WHEN g % 3 = 0 THEN '' WHEN g % 3 = 1 THEN NULL ELSE 'u' || g END, 'c' || g % 7, (g * 7 + 1)::numeric / 4,
	CASE WHEN g % 5 = 0 THEN 0 ELSE g / 3.0 END, timestamptz '2026-01-01' + g * interval '1 second', jsonb_build_object('n', g % 1000 + 0.5, 's', 's' || g),
	decode(md5(g::text), 'hex'), md5((-g)::text)::uuid, ARRAY[g, g + 1], g % 2 = 0, CASE WHEN g % 500 = 0 THEN repeat(md5(g::text), 200) ELSE 'l' || g END};
$old->safe_psql('postgres', qq{
	CREATE TABLE m (id bigint PRIMARY KEY, $columns);
	CREATE TABLE mk (x text, y int, $columns, PRIMARY KEY (x, y));
	CREATE TABLE nk (id bigint, $columns);
	INSERT INTO m SELECT g, $values FROM generate_series(1, $rows) g;
	INSERT INTO mk SELECT 'ä' || g % 100, g, $values FROM generate_series(1, $rows) g;
	INSERT INTO nk SELECT g, $values FROM generate_series(1, 8000) g;
	ANALYZE});
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
ok(cutover_wait_synced($old), 'copied');
my $load = cutover_load($old, clients => 3, sql => sub {
	my ($client, $n) = @_;
	my ($hot, $other) = (1 + int rand 10, 11 + int rand($quiet - 20));
	return join ';',
	  "UPDATE m SET n = n + 1, t = 'hot' || $n WHERE id = $hot",
	  "UPDATE mk SET u = 'x' || $n WHERE y IN ($hot, $other)",
	  "DELETE FROM m WHERE id = $other", "INSERT INTO m SELECT g, $values FROM generate_series($other, $other) g ON CONFLICT DO NOTHING",
	  "UPDATE nk SET t = 'load' || $n WHERE id = $hot",
	  $n % 5 ? '' : "UPDATE m SET id = -id WHERE abs(id) = 15";
});
cutover_poll('the load runs', sub { $load->committed > 20 });

# kind => the change of a row, of which kind the difference is
my @mutations = (
	[ 'one byte' => q{t = overlay(t placing 'X' from 2 for 1)}, 'different' ],
	[ 'one byte of many' => q{l = overlay(l placing 'X' from length(l) for 1)}, 'different' ],
	[ 'NULL for empty, empty for NULL' => q{u = CASE WHEN u IS NULL THEN '' ELSE nullif(u, u) END}, 'different' ],
	[ 'a trailing blank' => q{t = t || ' '}, 'different' ],
	[ 'a blank in front' => q{c = ' ' || left(c, 4)}, 'different' ],
	[ '1.0 for 1' => q{n = (n || CASE WHEN n::text LIKE '%.%' THEN '0' ELSE '.0' END)::numeric}, 'representation' ],
	[ 'a cent' => q{n = n + 0.01}, 'different' ],
	[ '-0 for 0' => q{f = CASE WHEN f = 0 THEN '-0'::float8 ELSE -f END}, undef ],
	[ 'the last microsecond' => q{at = at + interval '1 us'}, 'different' ],
	[ 'a number in JSON' => q{j = jsonb_set(j, '{n}', ((j->>'n') || '0')::jsonb)}, 'representation' ],
	[ 'a text in JSON' => q{j = j || '{"s": ""}'}, 'different' ],
	[ 'a bit' => q{b = set_bit(b, 17, 1 - get_bit(b, 17))}, 'different' ],
	[ 'another id' => q{i = md5(i::text)::uuid}, 'different' ],
	[ 'turned around' => q{a = ARRAY[a[2], a[1]]}, 'different' ],
	[ 'the contrary' => q{k = NOT k}, 'different' ],
	[ q{other column's value} => q{t = l, l = t}, 'different' ],
	[ 'a column of NULL' => q{n = NULL}, 'different' ]);

# Where key orders and chunks begin and end, and anywhere else
my @free = shuffle($quiet + 1 .. $rows - 1);
my %expected;						# table|key => kind, or '' if two are possible
my @sql;

sub name_of
{
	my ($table, $id) = @_;
	return $table eq 'm' ? qq(m|{"id": "$id"}) : sprintf('mk|{"x": "ä%d", "y": "%d"}', $id % 100, $id);
}

sub where
{
	my ($table, $id) = @_;
	return $table eq 'm' ? "id = $id" : "y = $id";
}

my %counts = (m => 0, mk => 0);
for my $n (1 .. $damages)
{
	my $table = $n % 2 ? 'm' : 'mk';
	my $id = $n == 1 || $n == 2 ? $rows : shift @free;
	my $what = int rand 20;
	my $where = where($table, $id);
	if ($what == 0)
	{
		push @sql, "DELETE FROM $table WHERE $where";
		$expected{ name_of($table, $id) } = 'missing';
	}
	elsif ($what == 1)
	{
		my $extra = $rows + 10 + $n;
		push @sql, $table eq 'm' ? "INSERT INTO m SELECT $extra, (t).* FROM (SELECT $values FROM generate_series($id, $id) g) t" =~ s/\(t\)\.\*/t.*/r
		  : "INSERT INTO mk SELECT 'ä' || $extra % 100, $extra, t.* FROM (SELECT $values FROM generate_series($id, $id) g) t";
		$expected{ name_of($table, $extra) } = 'extra';
	}
	elsif ($what == 2)
	{
		# two rows change places
		my $other = shift @free;
		my $o = where($table, $other);
		push @sql, "UPDATE $table a SET (t, n, j) = (SELECT b.t, b.n, b.j FROM $table b WHERE " . ($table eq 'm' ? 'b.id' : 'b.y')
		  . " = CASE WHEN a." . ($table eq 'm' ? 'id' : 'y') . " = $id THEN $other ELSE $id END) WHERE $where OR $o";
		$expected{ name_of($table, $_) } = 'different' for $id, $other;
	}
	else
	{
		my $mutation = $mutations[ int rand @mutations ];
		push @sql, "UPDATE $table SET $mutation->[1] WHERE $where";
		$expected{ name_of($table, $id) } = $mutation->[2] // ($id % 5 == 0 ? 'representation' : 'different');
	}
}
# rows without a key: some once more, some away, some with another byte
push @sql, 'INSERT INTO nk SELECT * FROM nk WHERE id BETWEEN 3001 AND 3010', 'DELETE FROM nk WHERE id BETWEEN 3101 AND 3110',
  q{UPDATE nk SET t = t || '.' WHERE id BETWEEN 3201 AND 3210};
$new->safe_psql('postgres', "BEGIN; SET session_replication_role = replica; " . join(";\n", @sql) . '; COMMIT');

sub compare { return $old->safe_psql('postgres', "SELECT table_name, missing, extra, different, representation, rows FROM cutover_compare(method => '$_[0]')") }

my %sum;
for my $line (split /\n/, compare('full'))
{
	my ($table, @n) = split /\|/, $line;
	$sum{$table} = "@n[0 .. 3]";
}
my %found = map { my ($t, $k, $kind) = split /\|/; ("$t|$k" => $kind) } split /\n/,
  $old->safe_psql('postgres', q{SELECT table_name, key, kind FROM cutover.divergence WHERE table_name <> 'nk'::regclass});
my @wrong = grep { ($found{$_} // 'nothing') ne ($expected{$_} // 'nothing') } sort keys %{ { %found, %expected } };
is(scalar(@wrong), 0, scalar(keys %expected) . ' damaged rows are found, each of its kind, and no others')
  or diag("CUTOVER_SEED=$seed\n" . join("\n", map { "$_: " . ($found{$_} // 'not found') . ', should be ' . ($expected{$_} // 'equal') } @wrong[ 0 .. ($#wrong > 20 ? 20 : $#wrong) ]));
is($sum{nk}, '20 20 0 0', 'rows without a key');
my %kinds;
$kinds{ /^m\|/ ? 'm' : 'mk' }{ $expected{$_} }++ for keys %expected;
is($sum{$_}, join(' ', @{ $kinds{$_} }{qw(missing extra different representation)}), "the counts of $_") for qw(m mk);

$old->safe_psql('postgres', 'SELECT cutover_compensate()');
is(compare('full') =~ s/\|\d+$//gmr, "load_journal|0|0|0|0\nm|0|0|0|0\nmk|0|0|0|0\nnk|0|0|0|0", 'all repaired');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.divergence'), 0, 'nothing is open');
my $result = $load->stop;
is($result->{failed}, 0, 'no writer noticed');
cutover_wait($old);
cutover_same_tables($old, $new, qw(m mk nk load_journal));

done_testing();
