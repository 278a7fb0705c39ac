# Processes of old and whole servers die at random moments, while tables are
# copied and while new follows, under load: nothing is lost, nothing doubled.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my $seed = $ENV{CUTOVER_TEST_SEED} // time;
srand($seed);
note("CUTOVER_TEST_SEED=$seed");

my ($old, $new) = cutover_pair(
	old => { conf => <<~'CONF' });
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		cutover.copy_jobs = 3
		cutover.copy_chunk_size = 1
		cutover.copy_max_rate = 3000
		cutover.change_retention = 0
		cutover.queue_segment_size = 1
		CONF

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL, n int NOT NULL DEFAULT 0, pad text);
INSERT INTO item SELECT i, 'item ' || i, 0, repeat(md5(i::text), 4) FROM generate_series(1, 60000) i;
CREATE INDEX item_name ON item (name);
-- nothing here hides a row that comes twice
CREATE TABLE tally (client int, n int, pad text);
INSERT INTO tally SELECT 0, i, repeat('x', 200) FROM generate_series(1, 10000) i;
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');

# Odd clients do not wait for the disk: what was promised to them may be lost
# with old's memory, but then new must not have it either.
my $sql = sub {
	my ($client, $n) = @_;
	my $id = 1 + $client + 4 * int(rand(14990));
	my $what = $n % 6;
	my $lazy = $client % 2 ? 'SET LOCAL synchronous_commit = off; ' : '';
	my $tally = "INSERT INTO tally VALUES ($client, $n, repeat('y', 100));";

	return "$lazy$tally UPDATE item SET n = n + 1 WHERE id = $id" if $what < 2;
	return "$lazy$tally INSERT INTO item SELECT 1000000 + $client * 1000000 + $n * 10 + i, 'new', $n FROM generate_series(0, 4) i" if $what == 2;
	return "$lazy$tally SAVEPOINT a; UPDATE item SET n = -1 WHERE id = $id; ROLLBACK TO a; UPDATE item SET pad = pad || 'z' WHERE id = $id" if $what == 3;
	return "$lazy$tally DELETE FROM item WHERE id = 1000000 + $client * 1000000 + ($n - 2) * 10 + 1" if $what == 4;
	return "$lazy$tally DELETE FROM tally WHERE client = $client AND n = $n - 3; UPDATE item SET id = -id WHERE id = $id AND id % 7 = 0";
};
my $load = cutover_load($old, clients => 4, sql => $sql, pause => 2000);
my @tables = qw(item tally load_journal);

# Let the load get on by a random number of transactions: the random moment.
sub some_time
{
	my $until = $load->committed + 5 + int(rand(120));
	cutover_poll('clients go on', sub { $load->committed >= $until }, node => $old);
}

# Is anything still to be copied?
sub copying
{
	my ($rc, $out) = $old->psql('postgres',
		q{SELECT count(*) FROM cutover._table WHERE phase <> 'synced'});
	return $rc != 0 || $out > 0;
}

# All that this load has promised, but for what was promised without the disk.
sub all_there
{
	my ($what, %opt) = @_;
	my $result = $load->stop;

	cmp_ok($result->{committed}, '>', delete $opt{least} // 50, "$what: clients committed $result->{committed} transactions");
	cutover_wait_synced($old);
	cutover_wait($old);
	cutover_same_rows($old, $new, $_, "$what: $_ is the same on both sides") for @tables;
	is( $new->safe_psql('postgres', 'SELECT count(*) FROM (SELECT client, n FROM tally GROUP BY 1, 2 HAVING count(*) > 1) x'),
		'0', "$what: nothing came twice");
	$load->check($new, "$what: what was promised is there", %opt);
	is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.apply_error}), '0', "$what: new refused nothing");
	return;
}

# ---- kill -9 and terminate while tables are copied

$old->safe_psql('postgres', 'SELECT cutover_start()');
my %hit = (copier => 0, replicator => 0, ended => 0);
for my $round (1 .. 6)
{
	my $who = $round % 2 ? 'copier' : 'replicator';

	some_time();
	last unless copying();
	if ($round % 3 == 0)
	{
		$hit{ended} += $old->safe_psql('postgres',
			q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type ~ '^cutover (copier|replicator)'});
	}
	else
	{
		$hit{$who} += cutover_crash($old, "^cutover $who\$");
	}
}
cmp_ok($hit{copier} + $hit{replicator} + $hit{ended}, '>', 2,
	"workers were hit while they copied: $hit{copier} copiers and $hit{replicator} replicators killed, $hit{ended} terminated");
cutover_wait_synced($old);
all_there('killed in the copy', lost => [ 1, 3 ]);

# ---- and while new follows

$load = cutover_load($old, clients => 4, sql => $sql, pause => 2000, first => 100_000);
$old->safe_psql('postgres', 'ALTER SYSTEM SET cutover.copy_max_rate = 0; SELECT pg_reload_conf()');
%hit = (crash => 0, ended => 0);
for my $round (1 .. 6)
{
	some_time();
	if ($round % 3 == 0)
	{
		$hit{ended} += $old->safe_psql('postgres',
			q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type ~ '^cutover replicator'});
	}
	else
	{
		cutover_poll('a replicator', sub { cutover_worker_pids($old, '^cutover replicator') }, node => $old);
		$hit{crash} += cutover_crash($old, '^cutover replicator');
	}
}
cmp_ok($hit{crash}, '>=', 3, "the replicator was killed $hit{crash} times, terminated $hit{ended} times");
all_there('killed while following', lost => [ 1, 3 ]);

# ---- servers stop without a word, and come back

$load = cutover_load($old, clients => 4, sql => $sql, pause => 2000, first => 200_000);
for my $round (1 .. 3)
{
	some_time();
	$old->stop('immediate');
	if ($round == 2)
	{
		# from now on the launcher brings the worker back
		$old->append_conf('postgresql.conf', "shared_preload_libraries = 'cutover'");
	}
	$old->start;
	some_time();
	$new->stop('immediate');
	$new->start;
}
all_there('servers crashed', lost => [ 1, 3 ]);

# ---- nobody waits for the disk, and the disk is in no hurry: what new gets
# must be safe on old nevertheless

$old->append_conf('postgresql.conf', "wal_writer_delay = 10s\nwal_writer_flush_after = 1GB\nsynchronous_commit = off\n");
$old->restart;
# little is written, so that the last of it stays in memory
$load = cutover_load($old, clients => 1, sql => sub { return "UPDATE item SET n = $_[1] WHERE id = 5" }, pause => 15_000, first => 250_000);
for my $round (1 .. 4)
{
	# the worker has the lease again, and is at it
	my $k = $new->safe_psql('postgres', 'SELECT k + 3 + (5 * random())::int FROM cutover.progress');
	cutover_poll('windows are applied', sub { $new->safe_psql('postgres', "SELECT k >= $k FROM cutover.progress") eq 't' }, node => $old);
	$old->stop('immediate');
	$old->start;
}
all_there('crashed with commits in memory only', lost => [ 1 .. 4 ], least => 10);
isnt($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'rewound', 'new never had what old lost');
$old->append_conf('postgresql.conf', "wal_writer_delay = 200ms\nsynchronous_commit = on\n");
$old->reload;

# ---- a copy afresh while both servers crash

$load = cutover_load($old, clients => 4, sql => $sql, pause => 2000, first => 300_000);
$old->safe_psql('postgres', 'ALTER SYSTEM SET cutover.copy_max_rate = 3000; SELECT pg_reload_conf()');
$old->safe_psql('postgres', "SELECT cutover_resync('$_')") for qw(item tally);
some_time();
$new->stop('immediate');
$new->start;
some_time();
$old->stop('immediate');
$old->start;
all_there('crashed while copying afresh', lost => [ 1, 3 ]);

# ---- who brings the worker back after a restart

is(scalar(cutover_worker_pids($old, '^cutover replicator')) > 0, 1, 'preloaded: the worker came back by itself');
$old->append_conf('postgresql.conf', "shared_preload_libraries = ''");
for my $case (
	[ 'a write on a migrated table', q{UPDATE item SET n = n + 1 WHERE id = 1} ],
	[ 'a view of ours', q{SELECT count(*) FROM cutover.status} ],
	[ 'a function of ours', q{SELECT cutover_wait()} ])
{
	my ($what, $statement) = @$case;

	$old->restart;
	is(scalar(my @none = cutover_worker_pids($old, '^cutover replicator')), 0, "not preloaded: no worker after a restart");
	$old->safe_psql('postgres', $statement);
	ok(cutover_poll("worker brought back by $what", sub { cutover_worker_pids($old, '^cutover replicator') }, node => $old),
		"not preloaded: $what brings the worker back");
}
cutover_wait($old);
cutover_same_tables($old, $new, @tables);

done_testing();
