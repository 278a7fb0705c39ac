# The queue: rotations under load and around transactions that stay open, very
# large transactions in little memory, limits, full disks, and a new that was
# set back.
use strict;
use warnings;

use CutoverTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(
	old => { conf => <<~'CONF' });
		wal_level = minimal
		max_wal_senders = 0
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		cutover.change_retention = 0
		cutover.queue_segment_size = 1
		cutover.apply_memory = 1MB
		cutover.spill_size = 64kB
		CONF

# random text: it can't be compressed, so queue segments fill
$old->safe_psql('postgres', <<'SQL');
CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text);
CREATE INDEX item_n ON item (n);
CREATE TABLE tally (client int, n int, pad text);
CREATE TABLE big (id int PRIMARY KEY, n int);
CREATE FUNCTION noise(int) RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, $1 / 32) $$;
INSERT INTO item SELECT i, 0, 'x' FROM generate_series(1, 10000) i;
SQL
CutoverTest::Load->create($old);
my @tables = qw(item tally big load_journal);
cutover_copy_schema($old, $new);
# without the guard, which comes with the first start and goes with the last table
my $schema = sub { my $dump = cutover_dump_schema($new); $dump =~ s/^.*" cutover guard".*\n//mg; return $dump };
my $new_schema = $schema->();
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

sub rotations { return $old->safe_psql('postgres', 'SELECT rotations FROM cutover._target') }

sub rotate
{
	my ($count, $what) = @_;
	my $until = rotations() + $count;
	cutover_poll($what, sub { rotations() >= $until }, node => $old);
}

sub same
{
	my ($what) = @_;
	cutover_wait($old);
	cutover_same_rows($old, $new, $_, "$what: $_ is the same on both sides") for @tables;
	is( $new->safe_psql('postgres', 'SELECT count(*) FROM (SELECT FROM tally GROUP BY client, n HAVING count(*) > 1) x'),
		'0', "$what: nothing came twice");
	return;
}

sub set_conf
{
	$old->append_conf('postgresql.conf', $_[0]);
	$old->reload;
	my ($name, $value) = $_[0] =~ /(\S+) = (\S+)/;
	cutover_poll("$name is $value", sub { $old->safe_psql('postgres', "SHOW $name") =~ /^\Q$value\E/ });
}

my $first = 0;
sub load
{
	my ($pause) = @_;

	$first += 100_000;
	return cutover_load($old, clients => 2, first => $first, pause => $pause // 0, sql => sub {
		my ($client, $n) = @_;
		my $id = $client + 2 * int(rand(4990));
		my $work = "INSERT INTO tally VALUES ($client, $n, noise(2000)); UPDATE item SET n = $n, pad = noise(6000) WHERE id = $id";
		return $work if $n % 3;
		return join '; ', $work, map {
			my $keep = ($n + $_) % 2 ? 'RELEASE' : 'ROLLBACK TO';
			"SAVEPOINT s$_; UPDATE item SET pad = noise(3000) WHERE id = $id + 10000 * 0; INSERT INTO tally VALUES ($client, -10 * $n - $_, 's'); $keep s$_" } 1 .. 6;
	});
}

# ---- many rotations; a transaction, with and without blocks already in the
# queue, and a prepared one stay open over several

my $long = $old->background_psql('postgres');
$long->query_safe(q{BEGIN});
$long->query_safe(q{INSERT INTO tally SELECT 77, i, noise(1000) FROM generate_series(1, 300) i});	# spilled
my $late = $old->background_psql('postgres');
$late->query_safe(q{BEGIN});
$late->query_safe(q{INSERT INTO tally VALUES (78, 1, 'one change')});
$old->safe_psql('postgres', q{BEGIN; INSERT INTO tally SELECT 79, i, noise(500) FROM generate_series(1, 300) i; PREPARE TRANSACTION 'stays'});
# all of them have what they wrote in one segment: two rotations are possible
my $load = load();
rotate(2, 'rotations go on');

# The segment of the open transactions can't be emptied: the present one grows.
# Once they are over all goes on.
my $bytes = 'SELECT pg_relation_size(format($$cutover._queue_1_%s$$, (SELECT write_segment FROM cutover._target)))';
cutover_poll('the segment grows beyond its size', sub { $old->safe_psql('postgres', $bytes) > 2 * 1024 * 1024 }, node => $old);
my $then = rotations();
$long->query_safe('COMMIT');
$late->query_safe('COMMIT');
$old->safe_psql('postgres', q{COMMIT PREPARED 'stays'});
rotate(4, 'rotations after the long transactions');
cmp_ok(rotations() - $then, '>=', 4, 'rotations went on after the long transactions');
my $result = $load->stop;
is($result->{failed}, 0, 'rotations: no transaction failed') or diag(explain($result->{sqlstates}));
same('rotations');
$load->check($new);
is($new->safe_psql('postgres', q{SELECT string_agg(client || ':' || c, ' ' ORDER BY client) FROM (SELECT client, count(*) c FROM tally WHERE client > 70 GROUP BY 1) x}),
	'77:300 78:1 79:300', 'the long transactions have come');

# ---- there is never a moment without a new window

cmp_ok($old->safe_psql('postgres', q{
	CREATE PROCEDURE never_quiet(seconds float8, INOUT rotated int) LANGUAGE plpgsql AS $$
	DECLARE
		v_until timestamptz := clock_timestamp() + make_interval(secs => seconds);
		v_before int := (SELECT rotations FROM cutover._target);
	BEGIN
		LOOP
			UPDATE item SET pad = repeat(chr(33 + n % 90), 3000) || noise(320) WHERE id = 1;
			COMMIT;
			rotated := (SELECT rotations FROM cutover._target) - v_before;
			EXIT WHEN rotated >= 3 OR clock_timestamp() > v_until;
		END LOOP;
	END $$;
	CALL never_quiet(30, 0)}), '>=', 3, 'rotations though commits never pause');

# ---- a transaction ends in the very moment in which its segment is to be
# emptied: new is asked to flush, which is held up here

$long->query_safe('BEGIN');
$long->query_safe(q{INSERT INTO tally SELECT 80, i, noise(1000) FROM generate_series(1, 1000) i});
my $segment = $old->safe_psql('postgres', 'SELECT write_segment FROM cutover._target');
$load = load();
# until the segment that is next is the one with the blocks of the transaction
cutover_poll('the next segment is the one of the transaction', sub {
	$old->safe_psql('postgres', "SELECT (write_segment + 1) % 3 = $segment FROM cutover._target") eq 't' }, node => $old);
cutover_poll('it is full', sub { $old->safe_psql('postgres', $bytes) > 1.2 * 1024 * 1024 }, node => $old);
$load->stop;
cutover_wait($old);
my $holder = $new->background_psql('postgres');
$holder->query_safe('BEGIN');
$holder->query_safe('SELECT 1 FROM cutover.progress FOR UPDATE');
cutover_poll('the replicator flushes new', sub {
	$new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover replicator'
		AND wait_event_type = 'Lock' AND query ~ 'SET LOCAL synchronous_commit'}) eq '1' }, node => $old);
$long->query_safe('COMMIT');
$holder->query_safe('COMMIT');
same('committed while its segment was to be emptied');
is($new->safe_psql('postgres', 'SELECT count(*) FROM tally WHERE client = 80'), '1000', 'its changes have come');
$_->quit for $long, $late, $holder;

# ---- a million rows in one transaction

my $pid = (cutover_worker_pids($old, '^cutover replicator'))[0];
sub memory_kb { my ($kb) = slurp_file("/proc/$pid/status") =~ /VmHWM:\s+(\d+)/; return $kb }
my $before = memory_kb();
$old->safe_psql('postgres', 'INSERT INTO big SELECT i, i FROM generate_series(1, 1000000) i');
cutover_wait($old);
my $after = memory_kb();
cmp_ok($after - $before, '<', 65536, "a million rows: the replicator grew by " . ($after - $before) . ' kB');
is(join(' ', cutover_digest($new, 'big')), join(' ', cutover_digest($old, 'big')), 'a million rows: all came');
$old->safe_psql('postgres', 'UPDATE big SET n = n + 1 WHERE id % 5 = 0; DELETE FROM big WHERE id % 5 <> 0');
same('many deleted');

# ---- new is set back a little (a restored backup): the queue still has it;
# and a lot: it needs a fresh copy

$new->stop('fast');
$new->backup_fs_cold('back');
my $original = $new;
$new->start;
my $set_back = sub {
	my ($name, $of, $backup) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$new->stop('immediate');
	$node->init_from_backup($of, $backup);
	$node->start;
	my $conninfo = $node->connstr('postgres') =~ s/'/''/gr;
	$old->safe_psql('postgres', "SELECT cutover_set_target('new', '$conninfo')");
	return $node;
};
$old->safe_psql('postgres', q{INSERT INTO tally SELECT 90, i, 'set back' FROM generate_series(1, 100) i; SELECT cutover_wait()});
$new = $set_back->('set_back', $original, 'back');
same('new set back a little');
is($old->safe_psql('postgres', q{SELECT state FROM cutover.status}), 'streaming', 'new set back a little: no fresh copy is needed');

# into the midst of a copy whose end old has seen: rows, changes since, indexes
set_conf('cutover.queue_segment_size = 256MB');
set_conf('cutover.copy_chunk_size = 1');
set_conf('cutover.copy_max_rate = 1000');
my $copied = $new;
$load = load(3000);
$old->safe_psql('postgres', "SELECT cutover_resync('$_')") for qw(item tally);
cutover_poll('some chunks are done, some are not', sub {
	$old->safe_psql('postgres', q{SELECT count(DISTINCT state) FROM cutover._chunk JOIN cutover._table t USING (table_id)
		WHERE phase = 'copying' AND state IN ('done', 'pending')}) eq '2' }, node => $old);
$new->stop('fast');
$new->backup_fs_cold('midst');
$new->start;
set_conf('cutover.copy_max_rate = 0');
cutover_wait_synced($old);
$load->stop;
cutover_wait($old);
$new = $set_back->('set_back_midst', $copied, 'midst');
cutover_poll('copied afresh', sub { $old->safe_psql('postgres', q{SELECT count(*) FROM cutover.event WHERE kind = 'copy_restarted'}) > 0 }, node => $old);
# one table may be copied afresh after the other
cutover_poll('all is there again', sub {
	$old->safe_psql('postgres', q{SELECT state FROM cutover.status}) eq 'streaming' && $schema->() eq $new_schema }, node => $old);
same('new set back into a copy');
is($schema->(), $new_schema, 'new set back into a copy: its indexes are there');
is($old->safe_psql('postgres', q{SELECT state FROM cutover.status}), 'streaming', 'new set back into a copy: that is not rewound');
set_conf('cutover.queue_segment_size = 1MB');

$load = load();
rotate(4, 'rotations');
$load->stop;
cutover_wait($old);
$new = $set_back->('set_back_far', $original, 'back');
ok(cutover_poll('rewound', sub { $old->safe_psql('postgres', 'SELECT state FROM cutover.status') eq 'rewound' }, node => $old),
	'new set back too far: state rewound');
# what new lost is found and repaired; tables that were being copied are copied
for my $pass (1 .. 10)
{
	last if $old->safe_psql('postgres', 'SELECT state FROM cutover.status') eq 'streaming';
	$old->safe_psql('postgres', "SELECT cutover_resync('$_')")
	  for split /\n/, $old->safe_psql('postgres', q{SELECT table_name FROM cutover.tables WHERE phase = 'resync_needed'});
	cutover_wait_synced($old);
	$old->safe_psql('postgres', q{SELECT cutover_compare(method => 'full')});
	$old->safe_psql('postgres', 'SELECT cutover_compensate()');
}
same('new set back too far, compared and repaired');
# it must not be found again at the next connection
$new->restart;
$old->safe_psql('postgres', q{INSERT INTO tally VALUES (91, 1, 'after')});
cutover_wait($old);
cutover_poll('no longer rewound', sub { $old->safe_psql('postgres', 'SELECT state FROM cutover.status') eq 'streaming' }, node => $old);
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.event WHERE kind = 'rewound'}), '1', 'and that was said once');

# ---- cutover.queue_limit: the steady state stays below it

set_conf('cutover.queue_segment_size = 256MB');
set_conf('cutover.queue_limit = 32MB');
# what is there already is given back, though nothing fills the present segment
cutover_poll('room below the limit', sub {
	$old->safe_psql('postgres', q{SELECT sum(pg_table_size(format('cutover._queue_1_%s', i))) < 24 * 1024 * 1024 FROM generate_series(0, 2) i}) eq 't' }, node => $old);
$load = load(2000);
rotate(6, 'rotations below the limit');
$result = $load->stop;
is($result->{failed}, 0, 'limit: no transaction failed');
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.tables WHERE phase <> 'synced'}), '0', 'limit: a queue that drains stays below it');
same('limit');

# ---- new is away and the limit is reached: strict, mark, off

set_conf('cutover.queue_limit = 8MB');
cutover_poll('room below the limit', sub {
	$old->safe_psql('postgres', q{SELECT sum(pg_table_size(format('cutover._queue_1_%s', i))) < 6 * 1024 * 1024 FROM generate_series(0, 2) i}) eq 't' }, node => $old);
set_conf('cutover.capture = strict');
$new->stop('fast');
my $write = q{UPDATE item SET pad = noise(6000) WHERE id % 100 = };
my $sqlstate = '';
cutover_poll('the limit', sub {
	$sqlstate = cutover_error($old, $write . int(rand(100)))->{sqlstate};
	return $sqlstate ne '00000' });
is($sqlstate, '53400', 'strict: the transaction fails');
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.tables WHERE phase <> 'synced'}), '0', 'strict: no table is marked');
is(cutover_error($old, 'SELECT count(*) FROM item')->{sqlstate}, '00000', 'strict: reading goes on');
$new->start;
# nobody writes, so nobody wakes the worker either
ok(cutover_poll('the limit is over', sub { cutover_error($old, $write . '1')->{sqlstate} eq '00000' }, node => $old),
	'strict: goes on once new is back');
same('strict');

set_conf('cutover.capture = mark');
$new->stop('fast');
cutover_poll('marked', sub {
	$old->safe_psql('postgres', $write . int(rand(100)));
	$old->safe_psql('postgres', q{SELECT count(*) FROM cutover.tables WHERE phase = 'resync_needed'}) > 0 }, node => $old);
is($old->safe_psql('postgres', q{SELECT string_agg(table_name::text, ' ') FROM cutover.tables WHERE phase = 'resync_needed'}),
	'item', 'mark: the transaction succeeds and its table is marked');
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status'), qr/cutover_resync.*queue_limit/, 'mark: status says so');
$new->start;
$old->safe_psql('postgres', q{SELECT cutover_resync('item')});
cutover_wait_synced($old);
same('mark');

$old->safe_psql('postgres', q{SET cutover.capture = off; UPDATE item SET n = 5 WHERE id < 10});
cutover_poll('marked', sub {
	$old->safe_psql('postgres', q{SELECT string_agg(table_name::text, ' ') FROM cutover.tables WHERE phase = 'resync_needed'}) eq 'item' }, node => $old);
ok(1, 'off: the table is marked');
$old->safe_psql('postgres', q{SELECT cutover_resync('item')});
cutover_wait_synced($old);
same('off');
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.apply_error}), '0', 'new refused nothing');

done_testing();
