# While new is the master, processes of either side and whole servers die at
# random moments, under load: nothing is lost, nothing comes twice.
use strict;
use warnings;

use CutoverTest;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{CUTOVER_TEST_SEED} // time;
srand($seed);
note("CUTOVER_TEST_SEED=$seed");

my ($old, $new) = cutover_pair(
	old => { conf => <<~'CONF' });
		shared_preload_libraries = 'cutover'
		cutover.protect_new = on
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		cutover.queue_segment_size = 1
		cutover.apply_batch_rows = 2000
		CONF

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL, n int NOT NULL DEFAULT 0, u bigint UNIQUE);
INSERT INTO item SELECT i, 'item ' || i, 0, i FROM generate_series(1, 5000) i;
-- nothing here hides a row that comes twice
CREATE TABLE tally (client int, n int, pad text);
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
ok(cutover_wait_synced($old), 'copied');

# Odd clients do not wait for the disk: what was promised to them may be lost
# with new's memory, but then old must not have it either.
my $sql = sub {
	my ($client, $n) = @_;
	my $id = 1 + $client + 4 * int(rand(1240));
	my $what = $n % 6;
	my $lazy = $client % 2 ? 'SET LOCAL synchronous_commit = off; ' : '';
	my $tally = "INSERT INTO tally VALUES ($client, $n, repeat('y', 300));";

	return "$lazy$tally UPDATE item SET n = n + 1 WHERE id = $id" if $what < 2;
	return "$lazy$tally INSERT INTO item SELECT 1000000 + $client * 1000000 + $n * 100 + i, 'new', $n, NULL FROM generate_series(0, 40) i" if $what == 2;
	return "$lazy$tally SAVEPOINT a; UPDATE item SET n = -1 WHERE id = $id; ROLLBACK TO a; UPDATE item SET name = name || 'z' WHERE id = $id" if $what == 3;
	return "$lazy$tally DELETE FROM item WHERE id BETWEEN 1000000 + $client * 1000000 + ($n - 2) * 100 + 1 AND 1000000 + $client * 1000000 + ($n - 2) * 100 + 30" if $what == 4;
	return "$lazy$tally" . ($n % 30 == 5 ? "DELETE FROM tally WHERE client = $client AND n = $n - 3;" : '') . " UPDATE item SET id = -id, u = -u WHERE id = $id AND id % 7 = 0";
};
my $load = cutover_load($old, follow => [ $old, $new ], clients => 4, sql => $sql, pause => 4000);
my @tables = qw(item tally load_journal);

# Let the load get on by a random number of transactions: the random moment.
sub some_time
{
	my $until = $load->committed + 5 + int(rand(120));
	cutover_poll('clients go on', sub { $load->committed >= $until }, node => $old);
}

sub set_mode
{
	my ($mode) = @_;
	cutover_poll("switch to $mode", sub {
		my ($rc, $out, $err) = $old->psql('postgres', "SELECT to_mode FROM cutover_set_mode('$mode', force => true, timeout => '20 s')");
		note($err) if $rc != 0;
		return $rc == 0 && $out eq $mode }, node => $old);
	pass("switched to $mode under load");
}

my %kill = (
	'the replicator' => sub { cutover_crash($old, '^cutover replicator$') },
	'old' => sub { $old->stop('immediate'); some_time(); $old->start },
	'the session on new' => sub { cutover_crash($new, '^cutover replicator$') },
	'new' => sub { $new->stop('immediate'); usleep(rand(300_000)); $new->start },
	'the connection' => sub { $new->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cutover replicator'}) },
);

set_mode('new_only');
for my $round (1 .. 3)
{
	for my $what (sort { rand() <=> 0.5 } keys %kill)
	{
		some_time();
		$kill{$what}->();
		some_time();
		pass("round $round: $what dies");
	}
}
cutover_wait($old);
is($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'streaming', 'neither side has lost anything');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'old refused nothing');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover._table WHERE reverse_closed IS NOT NULL'), '0', 'the way back is open');
cmp_ok($new->safe_psql('postgres', 'SELECT truncated_k FROM cutover.queue_state'), '>', 1, 'parts of the queue were emptied');
# some clients stop to write
set_mode('old_only');
some_time();
cutover_crash($old, '^cutover replicator$');
some_time();
$new->stop('immediate');
some_time();
$new->start;
set_mode('new_only');
some_time();
cutover_crash($new, '^cutover replicator$');
some_time();
set_mode('old_only');
$load->stop;
cutover_wait($old);
$load->check($old, 'what was promised is there', lost => [ 1, 3 ]);
cutover_same_tables($old, $new, @tables);
is($old->safe_psql('postgres', 'SELECT count(*) FROM (SELECT FROM tally GROUP BY client, n HAVING count(*) > 1) x'), '0', 'nothing came twice');
is($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'streaming', 'nothing was lost');

done_testing();
