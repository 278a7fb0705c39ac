# Whatever dies, and whenever, nothing is lost and nothing is applied twice:
# workers, connections and whole servers are killed again and again, while
# tables are copied and afterwards, under the writes of clients that remember
# which commits they were promised.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair(
	conf => "cutover.retry_max_delay = '500ms'\ncutover.lease_time = '2s'",
	# what was acknowledged must be there after kill -9, so old writes for real;
	# chunks are small and slow, so that faults hit them
	old => { conf => <<'CONF' });
fsync = on
cutover.retry_max_delay = '500ms'
cutover.lease_time = '2s'
cutover.copy_chunk_size = '1MB'
cutover.copy_max_rate = '6MB'
cutover.change_retention = 0
cutover.queue_segment_size = '1MB'
CONF

# A counter would show a change applied twice; a table without a key even more so.
$old->safe_psql('postgres', <<'SQL');
CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL, filler text NOT NULL);
CREATE INDEX counter_n ON counter (n);
CREATE TABLE history (client int, n int, change int, at timestamptz DEFAULT clock_timestamp());
INSERT INTO counter SELECT i, 0, repeat(md5(i::text), 10) FROM generate_series(1, 60000) i;
INSERT INTO history SELECT 0, i, 1 FROM generate_series(1, 20000) i;
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);

my $load = cutover_load($old,
	clients => 3, pause => 2000,
	sql => sub {
		my ($client, $n) = @_;
		my ($a, $b) = map { 1 + $client + 3 * int(rand(19999)) } 1, 2;
		return <<~SQL;
			UPDATE counter SET n = n + 1 WHERE id = $a;
			INSERT INTO history (client, n, change) VALUES ($client, $n, 1), ($client, $n, 1);
			DELETE FROM history WHERE ctid = (SELECT ctid FROM history WHERE client = $client AND n < $n - 20 LIMIT 1);
			DELETE FROM counter WHERE id = $b;
			INSERT INTO counter VALUES ($b, $n, 'again') ON CONFLICT (id) DO UPDATE SET n = counter.n + 1
			SQL
	});

# A fault by name; returns how many it hit.
my %fault = (
	'connections on new' => sub {
		return $new->safe_psql('postgres',
			q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'cutover%'});
	},
	'replicator ends' => sub { return cutover_signal_worker($old, '^cutover replicator', 'TERM') },
	'copier ends' => sub { return cutover_signal_worker($old, '^cutover copier', 'TERM') },
	'replicator is killed' => sub { return cutover_crash($old, '^cutover replicator') },
	'copier is killed' => sub { return cutover_crash($old, '^cutover copier') },
	'new crashes' => sub { $new->stop('immediate'); $new->start; return 1 },
	'old crashes' => sub { $old->stop('immediate'); $old->start; return 1 },
);

sub strike
{
	my ($name, $rounds) = @_;

	for (1 .. $rounds)
	{
		my $before = $load->committed;
		# what was hit before comes back after a moment, woken by the writers
		cutover_poll("something to hit: $name", sub { return $fault{$name}->() > 0 }, node => $old);
		cutover_poll('commits after a fault', sub { $load->committed > $before + 20 }, node => $old);
	}
	pass("$name, $rounds times");
	return;
}

# ---- while tables are copied

cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_poll('a chunk is copied',
	sub { $old->safe_psql('postgres', 'SELECT sum(chunks_done) > 0 FROM cutover.progress') eq 't' }, node => $old);
for my $name ('connections on new', 'copier ends', 'copier is killed', 'replicator ends', 'new crashes', 'replicator is killed', 'old crashes')
{
	strike($name, 1);
}
isnt($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.progress WHERE phase = 'copying'}), '0',
	'the faults came while tables were copied');
$old->safe_psql('postgres', q{ALTER SYSTEM SET cutover.copy_max_rate = 0});
$old->reload;
ok(cutover_wait_synced($old), 'the copy is complete nevertheless');

# ---- while changes are followed

for my $name ('connections on new', 'replicator ends', 'new crashes', 'replicator is killed', 'old crashes', 'connections on new')
{
	strike($name, 2);
}

my $result = $load->stop;
note("clients: $result->{committed} committed, $result->{failed} not");
cutover_wait($old);
$load->check($old, 'old has every acknowledged commit');
$load->check($new, 'new has every acknowledged commit');
cutover_same_tables($old, $new, qw(counter history load_journal));
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'new refused nothing');
is($new->safe_psql('postgres', 'SELECT count(*) FROM cutover.deferred'), '0', 'nothing is left to be built on new');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE indrelid = 'counter'::regclass AND indisvalid}), '2', 'indexes are back');

$old->safe_psql('postgres', 'SELECT cutover_cancel()');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), '0', 'nothing of ours is left on new');

done_testing();
