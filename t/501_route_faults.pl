# Reads when new is in trouble: old answers, or there is an error; never a wrong or a short result

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";

use CutoverTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my ($old, $new) = cutover_pair(old => { conf => <<'CONF' });
session_preload_libraries = 'cutover'
cutover.max_read_lag = -1
cutover.network_timeout = 2s
cutover.breaker_failures = 1000
CONF
$old->safe_psql('postgres', <<'SQL');
CREATE TABLE mark (id int PRIMARY KEY, side text);
INSERT INTO mark SELECT g, 'old' FROM generate_series(1, 100) g;
CREATE TABLE big (id int PRIMARY KEY, v text);
INSERT INTO big SELECT g, repeat('x', 500) FROM generate_series(1, 60000) g;
CREATE TABLE typed (id int PRIMARY KEY, n int);
INSERT INTO typed VALUES (1, 1);
CREATE ROLE nobody;
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);
$new->safe_psql('postgres', q{ALTER TABLE mark DISABLE TRIGGER ALL; UPDATE mark SET side = 'new'; ALTER TABLE mark ENABLE TRIGGER ALL});

my $READ = 'SELECT side FROM mark WHERE id = 7';
my $session = $old->background_psql('postgres', on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
sub ask
{
	my ($sql) = @_;
	$session->{stderr} = '';
	my ($out) = $session->query($sql);
	return $out . ($session->{stderr} =~ /(ERROR|FATAL):  (\w{5}):/ ? "error $2" : '');
}
sub stat_of { return $old->safe_psql('postgres', "SELECT $_[0] FROM cutover.read_stats") }
sub kill_readers
{
	return $new->safe_psql('postgres', q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'cutover reads'});
}
sub readers_active
{
	return $new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover reads' AND state = 'active'});
}

ask('SET cutover.read_from = new');
is(ask($READ), 'new', 'new answers');

# ---- a connection that broke while nobody used it is made again

is(ask("PREPARE p(int) AS SELECT side FROM mark WHERE id = \$1; EXECUTE p(1); EXECUTE p(2); EXECUTE p(3)"), "new\nnew\nnew", 'prepared');
is(kill_readers(), 1, 'its backend is killed');
is(ask($READ), 'new', 'new answers again');
is(ask('EXECUTE p(3)'), 'new', 'also what was prepared');
is(stat_of('fallbacks'), 0, 'nothing fell back');

# ---- between executions

is(ask('SET cutover.read_from = old; EXECUTE p(3); SET cutover.read_from = new; EXECUTE p(4)'), "old\nnew", 'the side changes between executions');

# ---- new is down, and comes back

$new->stop('immediate');
is(ask($READ), 'old', 'new is down: old answers');
is(ask('EXECUTE p(3)'), 'old', 'also what was prepared');
is(ask("BEGIN; $READ; $READ; COMMIT"), "old\nold", 'in a transaction');
cmp_ok(stat_of('fallbacks'), '>=', 3, 'counted');
like(stat_of('reasons'), qr/"connection": [1-9]/, 'with the reason');
$new->start;
cutover_poll('new answers after its restart', sub { ask($READ) eq 'new' });
is(ask('EXECUTE p(5)'), 'new', 'what was prepared, too');

# ---- new is frozen before the first row

my $timeouts = stat_of('timeouts');
ask("SET cutover.read_timeout = '300ms'");
my @frozen = cutover_freeze($new);
my $begun = time;
is(ask($READ), 'old', 'new is frozen: old answers');
cmp_ok(time - $begun, '<', 5, 'soon');
is(ask('EXECUTE p(5)'), 'old', 'no new connection is made to it: old answers');
is(ask("SET statement_timeout = '1s'; SET cutover.read_timeout = 0; EXECUTE p(5)"), 'old', 'a limit of the statement leaves old the time to answer');
cutover_thaw(@frozen);
cmp_ok(stat_of('timeouts + fallbacks'), '>', $timeouts, 'counted');
ask("RESET statement_timeout; SET cutover.read_timeout = '3s'");
cutover_poll('new answers once it goes on', sub { ask($READ) eq 'new' });

# ---- a query that takes too long there is stopped there

my $locker = $new->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE mark');
ask("SET cutover.read_timeout = '300ms'");
is(ask($READ), 'old', 'a lock on new: old answers');
cutover_poll('the query on new is cancelled', sub { readers_active() == 0 });

# ---- cancel reaches new

ask('SET cutover.read_timeout = 0');
my $pid = ask('SELECT pg_backend_pid()');
my $err = '';
{
	my $victim = IPC::Run::start([ 'psql', '-XqAt', '-v', 'VERBOSITY=verbose', '-d', $old->connstr('postgres'),
			'-c', "SET cutover.read_from = new", '-c', 'SET cutover.read_timeout = 0', '-c', "SET application_name = victim", '-c', $READ ],
		'>', \my $out, '2>', \$err);
	cutover_poll('the query waits on new', sub { readers_active() == 1 });
	$old->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'victim'});
	$victim->finish;
	is($out, '', 'no answer');
}
like($err, qr/ERROR:  57014:/, 'the statement is cancelled');
cutover_poll('on new, too', sub { readers_active() == 0 });
is(ask("SET statement_timeout = '700ms'; SET cutover.read_timeout = 0; SELECT count(*) FROM big WHERE id < 5"), 4, 'other tables are not locked');
ask('RESET statement_timeout');
$locker->query_safe('ROLLBACK');
$locker->quit;
ask("SET cutover.read_timeout = '3s'");
is(ask($READ), 'new', 'and the session goes on');

# ---- in the middle of a result

sub open_cursor
{
	my ($isolation) = @_;
	is(ask("BEGIN ISOLATION LEVEL $isolation; DECLARE c NO SCROLL CURSOR FOR SELECT id, v FROM big ORDER BY id; FETCH 3 FROM c") =~ s/\|x+//gr,
		"1\n2\n3", "a cursor on new, $isolation");
}
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ')
{
	open_cursor($isolation);
	kill_readers();
	my $answer = ask('FETCH ALL FROM c');
	like($answer, qr/error (57P01|08006)$/, 'its connection breaks: an error');
	like($session->{stderr}, qr/remote SQL command|lost the connection|Repeat/, 'that says where it comes from');
	ask('ROLLBACK');
}
open_cursor('READ COMMITTED');
@frozen = cutover_freeze($new);
like(ask('FETCH ALL FROM c'), qr/error 08006$/, 'new falls silent: an error');
like($session->{stderr}, qr/in the middle of a result/, 'that says so');
cutover_thaw(@frozen);
is(ask("ROLLBACK; $READ"), 'new', 'after that the session goes on');
open_cursor('READ COMMITTED');
is(ask('SELECT count(*) FROM big WHERE id <= 10'), 10, 'another query while a cursor is open');
is(ask('SELECT count(*) FROM mark'), 100, 'and another');
kill_readers();
is(ask('MOVE FORWARD ALL IN c; CLOSE c; COMMIT'), '', 'what was read ahead does not need new');
open_cursor('READ COMMITTED');
is(ask("CLOSE c; $READ; COMMIT"), 'new', 'a cursor that is not read to its end');
open_cursor('READ COMMITTED');
is(ask("ROLLBACK; $READ"), 'new', 'a transaction that ends before it');
cutover_poll('nothing goes on on new', sub { readers_active() == 0 });
open_cursor('READ COMMITTED');
is(ask("SAVEPOINT a; SELECT 1 / (id - 7) FROM mark WHERE id = 7; ROLLBACK TO a; $READ; FETCH 1 FROM c") =~ s/\|x+//r =~ s/error \w+//r, "new\n4", 'an error in a savepoint while a cursor is open');
ask('COMMIT');

# ---- one snapshot is one snapshot

is(ask("BEGIN ISOLATION LEVEL REPEATABLE READ; $READ"), 'new', 'a transaction with one snapshot');
kill_readers();
like(ask('SELECT side FROM mark WHERE id = 8'), qr/^error (40001|57P01|08006)$/, 'whose connection breaks ends with an error');
is(ask("ROLLBACK; $READ"), 'new', 'the next one is well');
$new->safe_psql('postgres', 'ALTER TABLE mark DISABLE TRIGGER ALL');
ask("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT side FROM mark WHERE id = 1");
$new->safe_psql('postgres', q{UPDATE mark SET side = 'newer' WHERE id < 50});
is(ask("$READ; SELECT count(DISTINCT side) FROM mark; COMMIT"), "new\n1", 'sees the same all the time');
is(ask($READ), 'newer', 'unlike the next');
is(ask("BEGIN ISOLATION LEVEL REPEATABLE READ; $READ; SAVEPOINT s; SELECT 1 / (id - 7) FROM mark WHERE id = 7; ROLLBACK TO s; COMMIT") =~ s/error \w+//r, "newer",
	'a savepoint in it');
$new->safe_psql('postgres', q{UPDATE mark SET side = 'new'; ALTER TABLE mark ENABLE TRIGGER ALL});

# ---- a transaction with one snapshot does not overwrite what it could not see

is(cutover_signal_worker($old, 'cutover replicator', 'STOP'), 1, 'new lags');
$old->safe_psql('postgres', q{UPDATE mark SET side = side || '!' WHERE id IN (20, 21)});
is(ask(q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT side FROM mark WHERE id = 20}), 'new', 'new does not have an update yet');
is(ask(q{UPDATE mark SET side = 'lost' WHERE id = 22; UPDATE mark SET side = 'lost' WHERE id = 20}), 'error 40001', 'the row that it has not can not be updated');
like($session->{stderr}, qr/new did not have yet/, 'and the error says why');
is(ask(q{ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT side FROM mark WHERE id = 21; DELETE FROM mark WHERE id = 21}), "newerror 40001", 'nor deleted');
is(ask(q{ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT side FROM mark WHERE id = 23; UPDATE mark SET side = side WHERE id = 23; UPDATE mark SET side = side WHERE id = 23; COMMIT}), 'new', 'others can');
is(ask(q{BEGIN; SELECT count(*) FROM mark WHERE id = 20; UPDATE mark SET side = side WHERE id = 20; ROLLBACK}), 1, 'READ COMMITTED promises no such thing');
cutover_signal_worker($old, 'cutover replicator', 'CONT');
cutover_wait($old);

# ---- what only new refuses

$new->safe_psql('postgres', 'ALTER TABLE typed ALTER n TYPE bigint');
is(ask('SELECT n FROM typed'), 1, 'another type there: old answers');
like(ask('EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT n FROM typed'), qr/Runs on: old\n.*Reason: mapping/, 'and EXPLAIN says why');
$new->safe_psql('postgres', 'ALTER TABLE typed RENAME n TO m');
is(ask('SELECT n + 1 FROM typed'), 2, 'a column that is not there: old answers');
$new->safe_psql('postgres', 'ALTER TABLE typed RENAME m TO n; ALTER TABLE typed ALTER n TYPE int');

# ---- the address changes

my $there = $new->connstr('postgres');
$old->safe_psql('postgres', "SELECT cutover_set_target('new', '" . ($there =~ s/'/''/gr) . " application_name=moved')");
is(ask($READ), 'new', 'after a change of address');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover reads'}), 0, 'no connection is left with the former one');
cmp_ok($new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'moved'}), '>=', 1, 'but made with the new one');
$old->safe_psql('postgres', "SELECT cutover_set_target('new', '" . ($there =~ s/'/''/gr) . "')");

# ---- many texts

is(ask(join('; ', map { my $i = $_; ("PREPARE q$i AS SELECT $i FROM mark WHERE id = $i", "EXECUTE q$i") } 1 .. 100) =~ s/EXECUTE (\w+)/DO \$\$BEGIN END\$\$/gr), '', 'many prepared statements');
my @several = map { my $i = $_; "EXECUTE q$i; EXECUTE q$i; EXECUTE q$i" } 1 .. 100;
is(ask(join '; ', @several), join("\n", map { ($_, $_, $_) } 1 .. 100), 'each is executed some times');
ask(join '; ', map { "PREPARE r$_ AS SELECT $_ + 1000 FROM mark WHERE id = 1" } 1 .. 100);
is(ask(join '; ', map { "EXECUTE r$_; EXECUTE r$_" } 1 .. 100), join("\n", map { ($_ + 1000, $_ + 1000) } 1 .. 100), 'more than are kept on new');
is(ask('EXECUTE q1; EXECUTE q1'), "1\n1", 'those that had to go are prepared again');

# ---- a role without any right on what is ours

is(ask("GRANT SELECT ON mark TO nobody; SET ROLE nobody; $READ; RESET ROLE"), 'new', 'needs none');
$session->quit;
cutover_poll('the connection ends with the session',
	sub { $new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('cutover reads', 'moved')}) == 0 });

done_testing();
