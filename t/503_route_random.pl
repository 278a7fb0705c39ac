# Random queries (sqlsmith) give the same result, or the same error, whichever side answers.
# CUTOVER_SMITH_SEED, CUTOVER_SMITH_QUERIES vary it.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";

use CutoverTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'no sqlsmith' if system('command -v sqlsmith > /dev/null') != 0;
plan skip_all => 'no DBD::Pg' unless eval { require DBD::Pg; 1 };
my $seed = $ENV{CUTOVER_SMITH_SEED} // 1;
my $queries = $ENV{CUTOVER_SMITH_QUERIES} // 600;

my ($old, $new) = cutover_pair(old => { conf => "session_preload_libraries = 'cutover'\ncutover.max_read_lag = -1\ncutover.breaker_failures = 1000000\njit = off\nmax_parallel_workers_per_gather = 0" },
	new => { conf => "jit = off\nmax_parallel_workers_per_gather = 0" });
$old->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE item (id int PRIMARY KEY, grp int, name text, cost numeric(10,2), mood mood, tags text[], doc jsonb,
	at timestamptz, day date, dur interval, flag bool, big bigint, ratio float8);
INSERT INTO item SELECT g, g % 5, 'name ' || g, g * 1.25, (ARRAY['sad', 'ok', 'happy'])[1 + g % 3]::mood, ARRAY['a' || g, NULL],
	jsonb_build_object('k', g), '2026-03-29 00:30+00'::timestamptz + g * interval '7 hours', '2026-01-01'::date + g, g * interval '1 day 3 seconds',
	g % 2 = 0, g * 100000, g / 4.0 FROM generate_series(1, 25) g;
CREATE TABLE grp (id int PRIMARY KEY, title text NOT NULL, parent int, opened timestamp, spot point);
INSERT INTO grp SELECT g, 'title ' || g, nullif(g - 1, -1), '2026-02-01'::timestamp + g * interval '1 hour', point(g, g) FROM generate_series(0, 5) g;
SQL
cutover_copy_schema($old, $new);
# the generator looks at a database without our functions
my $raw = `sqlsmith --target="host=${\ $new->host} port=${\ $new->port} dbname=postgres" --exclude-catalog --dry-run --seed=$seed --max-queries=$queries 2>/dev/null`;
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

my $dbh = DBI->connect('dbi:Pg:' . join(';', split ' ', $old->connstr('postgres') =~ s/'//gr), 'postgres', '',
	{ RaiseError => 0, PrintError => 0, AutoCommit => 1 });
$dbh->do("SET statement_timeout = '3s'; SET cutover.read_timeout = '1400ms'");

# the rows in no order, or the error
sub answer
{
	my ($side, $sql) = @_;
	$dbh->do("SET cutover.read_from = $side");
	my $sth = $dbh->prepare($sql, { pg_direct => 1 });
	return 'error ' . $dbh->state unless $sth && $sth->execute;
	my $rows = $sth->fetchall_arrayref;
	return 'error ' . $dbh->state if $dbh->err;
	return join "\n", sort map { join '|', map { ref $_ ? '[' . join(',', map { $_ // 'NULL' } @$_) . ']' : $_ // 'NULL' } @$_ } @$rows;
}

my ($asked, $equal, $late, $shaky) = (0) x 4;
my $before = $old->safe_psql('postgres', 'SELECT routed FROM cutover.read_stats');
foreach my $sql (split /;\n/, $raw)
{
	$sql =~ s/^\s+//;
	next unless $sql =~ /^(select|with)\b/i;
	# LIMIT without order, samples, and what runs too long say nothing
	$sql =~ s/\blimit \d+\s*/ /g;
	$sql =~ s/\boffset (\d+)/ order by 1 limit 1 offset $1/g;
	$sql =~ s/\btablesample \w+ \([\d.]+\)/ /g;
	my $on_old = answer('old', $sql);
	if ($on_old eq 'error 57014') { $late++; next }
	my $on_new = answer('new', $sql);
	if ($on_new eq 'error 57014') { $late++; next }
	$asked++;
	if ($on_new eq $on_old) { $equal++; next }
	if (answer('old', $sql) ne $on_old) { $shaky++; next }
	fail('a query gives the same on both sides');
	diag("$sql\n--- old\n" . substr($on_old, 0, 1500) . "\n--- new\n" . substr($on_new, 0, 1500));
}
my $routed = $old->safe_psql('postgres', 'SELECT routed FROM cutover.read_stats') - $before;
my $failed = $old->safe_psql('postgres', q{SELECT reasons->>'error' FROM cutover.read_stats});
diag("$asked queries, $routed answered by new, " . ($failed || 0) . " errors there, $late too long, $shaky not the same twice on old");
is($equal + $shaky, $asked, 'random queries give the same on both sides');
cmp_ok($routed, '>', $queries / 20, 'many were answered by new');

done_testing();
