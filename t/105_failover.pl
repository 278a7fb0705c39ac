# Old fails over to a standby that has everything, and to one that lags; the
# former primary comes back; copies of old are started beside it.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my $new = cutover_node('new');
my $old = cutover_node('old', streaming => 1, conf => <<~'CONF');
	cutover.lease_time = 2
	cutover.retry_max_delay = 300
	cutover.copy_jobs = 2
	cutover.copy_chunk_size = 1
	cutover.change_retention = 0
	cutover.queue_segment_size = 1
	wal_keep_size = '256MB'
	CONF
my @tables = qw(item tally load_journal);

$old->safe_psql('postgres', <<'SQL');
CREATE EXTENSION cutover;
CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text);
INSERT INTO item SELECT i, 0, repeat(md5(i::text), 4) FROM generate_series(1, 30000) i;
CREATE TABLE tally (client int, n int);
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');

sub load
{
	my ($node, $first) = @_;
	return cutover_load($node, clients => 2, first => $first, pause => 3000, sql => sub {
		my ($client, $n) = @_;
		my $id = $client + 2 * int(rand(14990));
		return "INSERT INTO tally VALUES ($client, $n); UPDATE item SET n = $n WHERE id = $id";
	});
}

# Let this load commit some more.
sub some_time
{
	my ($load) = @_;
	my $until = $load->committed + 100;
	cutover_poll('clients go on', sub { $load->committed >= $until });
}

sub standby
{
	my ($name, $primary) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$primary->backup("for_$name");
	$node->init_from_backup($primary, "for_$name", has_streaming => 1);
	$node->start;
	return $node;
}

sub status
{
	my ($node, $column) = @_;
	return $node->safe_psql('postgres', "SELECT coalesce($column, '') FROM cutover.status");
}

sub same
{
	my ($node, $what) = @_;
	cutover_wait_synced($node);
	cutover_wait($node);
	cutover_same_rows($node, $new, $_, "$what: $_ is the same on both sides") for @tables;
	is( $new->safe_psql('postgres', 'SELECT count(*) FROM (SELECT FROM tally GROUP BY client, n HAVING count(*) > 1) x'),
		'0', "$what: nothing came twice");
	return;
}

# A row written on $node does not arrive on new: the other side of "inert"
# shows in what status says.
sub is_inert
{
	my ($node, $id, $says, $what) = @_;

	$node->safe_psql('postgres', "INSERT INTO item VALUES ($id)");
	ok(cutover_poll("$what: status says why it does nothing", sub { status($node, 'waiting_for') =~ $says }, node => $node),
		"$what: status says why it does nothing");
	return;
}

# ---- a standby that has everything takes over

my $first = standby('first', $old);
my $load = load($old, 0);
cutover_wait_synced($old);
some_time($load);
my $result = $load->stop;
$old->stop('fast');				# waits until the standby has all
$first->promote;
my $load2 = load($first, 100_000);
some_time($load2);
$result = $load2->stop;
is($result->{failed}, 0, 'promoted: clients write');
same($first, 'promoted with everything');
$load->check($new, 'promoted: what the former primary promised is there');
$load2->check($new, 'promoted: and what the new one did');
is(status($first, 'state'), 'streaming', 'promoted: it goes on streaming');

# ---- the former primary comes back

$old->start;
is_inert($old, 1_000_001, qr/lease/, 'former primary');
$first->safe_psql('postgres', 'INSERT INTO item VALUES (1000002)');
cutover_wait($first);
is($new->safe_psql('postgres', 'SELECT string_agg(id::text, $$ $$) FROM item WHERE id > 1000000'),
	'1000002', 'former primary: new has nothing of it');
is(status($first, 'state'), 'streaming', 'former primary: the present one goes on');
$old->stop('immediate');

# ---- a standby that lags takes over: new has what the promoted one lost,
# chunks of a later copy among it

my $second = standby('second', $first);
$first->wait_for_catchup($second, 'replay');
$second->append_conf('postgresql.conf', "primary_conninfo = ''");
$second->reload;
cutover_poll('receiver gone', sub { $second->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_wal_receiver') eq '0' });
$load = load($first, 200_000);
some_time($load);
$first->safe_psql('postgres', q{SELECT cutover_resync('item')});
$load->stop;
cutover_wait_synced($first);
cutover_wait($first);
$first->stop('immediate');
$second->promote;
$load = load($second, 300_000);
some_time($load);
ok(cutover_poll('rewound', sub { status($second, 'state') eq 'rewound' }, node => $second), 'promoted without the tail: state rewound');
# the copy of item on new is one that this server knows nothing of: it is begun anew
is($second->safe_psql('postgres', q{SELECT string_agg(DISTINCT phase, ' ') FROM cutover.tables WHERE table_name <> 'item'::regclass}), 'synced', 'and tables go on');
like(status($second, 'waiting_for'), qr/cutover_compare.*cutover_compensate.*or cutover_resync\(\)/, 'status says what to do');
is($second->safe_psql('postgres', q{SELECT count(*) FROM cutover.event WHERE kind = 'rewound'}), '1', 'there is an event');
$second->safe_psql('postgres', "SELECT cutover_resync('$_')") for @tables;
some_time($load);
$load->stop;
same($second, 'after the fresh copy');
$load->check($new, 'what the promoted one promised is there');
ok(cutover_poll('no longer rewound', sub { status($second, 'state') eq 'streaming' }, node => $second), 'rewound is over');

# ---- a copy of its files is started beside it

$second->stop('fast');
$second->backup_fs_cold('cold');
$second->start;
$second->safe_psql('postgres', 'INSERT INTO item VALUES (2000001)');
cutover_wait($second);
my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($second, 'cold');
$clone->start;
is_inert($clone, 3_000_001, qr/lease/, 'copy of the files');
$second->safe_psql('postgres', 'INSERT INTO item VALUES (2000002)');
same($second, 'beside a copy');
is($new->safe_psql('postgres', 'SELECT count(*) FROM item WHERE id = 3000001'), '0', 'copy of the files: new has nothing of it');

# ---- a restored dump

my $restored = cutover_node('restored');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$second->command_ok([ 'pg_dump', '-d', $second->connstr('postgres'), '-f', $dump ], 'old is dumped while all goes on');
$restored->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $restored->connstr('postgres'), '-f', $dump ], 'and restored');
is($restored->safe_psql('postgres', 'SELECT count(*) FROM cutover.status'), '0', 'restored dump: no target');
$restored->safe_psql('postgres', 'INSERT INTO item VALUES (4000001); UPDATE item SET n = 1 WHERE id < 100; TRUNCATE tally');
is(scalar(my @none = cutover_worker_pids($restored, '^cutover')), 0, 'restored dump: no worker');
cutover_error_is($restored, 'SELECT cutover_adopt()', '42704', 'restored dump: there is nothing to adopt');
same($second, 'beside a restored dump');

# ---- the original is gone: the copy takes over once the lease has run out.
# The original had gone on, so new holds what the copy never had.

$second->stop('immediate');
ok(cutover_poll('rewound', sub { status($clone, 'state') eq 'rewound' }, node => $clone), 'copy: it takes over, and sees that new is ahead');
$clone->safe_psql('postgres', "SELECT cutover_resync('$_')") for @tables;
same($clone, 'copy that took over');
is($new->safe_psql('postgres', 'SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM item WHERE id > 2000000'), '3000001', 'copy: new is as the copy is');

# ---- a window that both have, with the same number and snapshot, and that is another nevertheless

$clone->safe_psql('postgres', 'SELECT cutover_pause()');
is($clone->safe_psql('postgres', 'SELECT name FROM cutover._marker'), $new->safe_psql('postgres', 'SELECT window_name FROM cutover.progress'),
	'both sides know the last window by its name');
my $rewound = q{SELECT count(*) FROM cutover.event WHERE kind = 'rewound'};
my $before = $clone->safe_psql('postgres', $rewound);
$clone->safe_psql('postgres', q{UPDATE cutover._marker SET name = md5(name)});
$clone->safe_psql('postgres', 'SELECT cutover_resume()');
ok(cutover_poll('rewound', sub { $clone->safe_psql('postgres', $rewound) > $before }, node => $clone), 'the name tells them apart');
$clone->safe_psql('postgres', "SELECT cutover_resync('$_')") for @tables;
same($clone, 'after that');

# ---- another cluster with these files (here: one that believes to be) waits to be adopted

$clone->safe_psql('postgres', 'UPDATE cutover._target SET system_identifier = 1');
$new->safe_psql('postgres', 'UPDATE cutover.migration SET old_system_identifier = 1');
cutover_poll('worker ends', sub { !cutover_worker_pids($clone, '^cutover') }, node => $clone);
is_inert($clone, 5_000_001, qr/cutover_adopt/, 'another cluster');
$clone->safe_psql('postgres', 'INSERT INTO item VALUES (5000002)');
is(scalar(@none = cutover_worker_pids($clone, '^cutover')), 0, 'another cluster: a write brings no worker');
is($new->safe_psql('postgres', 'SELECT count(*) FROM item WHERE id > 5000000'), '0', 'another cluster: nothing arrives');
$clone->safe_psql('postgres', 'SELECT cutover_adopt()');
same($clone, 'adopted');
is($new->safe_psql('postgres', 'SELECT count(*) FROM item WHERE id > 5000000'), '2', 'adopted: what was captured meanwhile arrives');

done_testing();
