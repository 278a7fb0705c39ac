# Worker slots run out, databases come and go, and every action is called in
# the midst of things: schemas on both sides are afterwards what they were.
use strict;
use warnings;

use CutoverTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(
	old => { conf => <<~'CONF' });
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		cutover.network_timeout = 3
		cutover.copy_jobs = 4
		cutover.copy_chunk_size = 1
		max_worker_processes = 3
		CONF
my @tables = qw(item part tally load_journal);

sub make_tables
{
	my ($db) = @_;
	$old->safe_psql($db, <<~'SQL');
		CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text, UNIQUE (n, id));
		INSERT INTO item SELECT i, 0, repeat(md5(i::text), 4) FROM generate_series(1, 30000) i;
		CREATE INDEX item_pad ON item (md5(pad));
		CREATE TABLE part (item_id bigint NOT NULL REFERENCES item ON DELETE CASCADE, no int, PRIMARY KEY (item_id, no));
		INSERT INTO part SELECT i, 1 FROM generate_series(1, 10000) i;
		CREATE TABLE tally (client int, n int, CHECK (n IS NOT NULL));
		SQL
	CutoverTest::Load->create($old, db => $db);
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
	$first += 100_000;
	return cutover_load($old, clients => 2, first => $first, pause => 3000, sql => sub {
		my ($client, $n) = @_;
		my $id = $client + 2 * int(rand(14990));
		return "INSERT INTO tally VALUES ($client, $n); UPDATE item SET n = $n WHERE id = $id;" .
		  ($n % 4 ? "INSERT INTO part VALUES ($id, $n)" : "DELETE FROM part WHERE item_id = $id");
	});
}

sub same
{
	my ($what) = @_;
	cutover_wait_synced($old);
	cutover_wait($old);
	cutover_same_rows($old, $new, $_, "$what: $_ is the same on both sides") for @tables;
	is( $new->safe_psql('postgres', 'SELECT count(*) FROM (SELECT FROM tally GROUP BY client, n HAVING count(*) > 1) x'),
		'0', "$what: nothing came twice");
	return;
}

make_tables('postgres');
my $old_schema = cutover_dump_schema($old);
cutover_copy_schema($old, $new);
my $new_schema = cutover_dump_schema($new);
my $load = load();

# ---- worker slots: all taken by others

cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');
# parallel workers of queries that do not end take what there is
$old->safe_psql('postgres', q{CREATE FUNCTION hog() RETURNS void LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN PERFORM pg_sleep(600); END $$});
my @hogs = map {
	IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'), '-c', 'SET ' . ($old->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode') . ' = on',
		'-c', q{SET application_name = 'hog'}, '-c', 'SELECT hog()' ], '<', '/dev/null', '>', '/dev/null', '2>', '/dev/null')
} 1 .. 2;
# the logical replication launcher has the third
cutover_poll('all slots taken', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('parallel worker', 'logical replication launcher')}) eq '3' }, node => $old);
cutover_error_is($old, 'SELECT cutover_start()', '53400', 'no slot: cutover_start() says so', like => qr/max_worker_processes/);
is(cutover_dump_schema($old) =~ s/CREATE FUNCTION public\.hog.*?;\nALTER FUNCTION public\.hog\(\) OWNER TO \w+;\n//sr, $old_schema, 'no slot: nothing has changed on old');
my $end_hog = sub {
	$old->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = (SELECT pid FROM pg_stat_activity
		WHERE application_name = 'hog' AND backend_type = 'client backend' LIMIT 1)});
};
# one slot: enough to call the function, but its own worker has it
$end_hog->();
cutover_poll('a slot is free', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('parallel worker', 'logical replication launcher')}) eq '2' }, node => $old);
# preflight sees it
cutover_error_is($old, 'SELECT cutover_start()', '55000', 'one slot: cutover_start() says so', like => qr/worker slots/);
is($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'idle', 'one slot: the target is idle');
is(cutover_dump_schema($old) =~ s/CREATE FUNCTION public\.hog.*?;\nALTER FUNCTION public\.hog\(\) OWNER TO \w+;\n//sr, $old_schema, 'one slot: capture is off again');
# two slots: replicator and action; the copier gets that of the action
$end_hog->();
$_->finish for @hogs;
$old->safe_psql('postgres', 'DROP FUNCTION hog()');
$old->safe_psql('postgres', 'SELECT cutover_start()');
cutover_wait_synced($old);
my $result = $load->stop;
is($result->{failed}, 0, 'few slots: no transaction failed') or diag(explain($result->{sqlstates}));
same('fewer copiers than wanted');
# a copier stays a moment for more work, in the slot that this needs
cutover_poll('cancelled', sub {
	my $error = cutover_error($old, 'SELECT cutover_cancel()');
	die "$error->{all}\n" unless $error->{sqlstate} =~ /^(00000|53400)$/;
	return $error->{sqlstate} eq '00000';
}, node => $old);
is(cutover_dump_schema($old), $old_schema, 'cancelled: old is as before');
is(cutover_dump_schema($new), $new_schema, 'cancelled: new is as before');
$old->append_conf('postgresql.conf', 'max_worker_processes = 20');
$old->restart;

# ---- pause, resume, resync, remove, add while it streams under load

sub begin
{
	$new->safe_psql('postgres', 'TRUNCATE item, part, tally, load_journal');
	cutover_add_target($old, $new);
	$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
}

$load = load();
begin();
for my $round (1 .. 3)
{
	$old->safe_psql('postgres', 'SELECT cutover_pause()');
	is($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'paused', "round $round: paused");
	$old->safe_psql('postgres', 'SELECT cutover_resume()');
	$old->safe_psql('postgres', qq{SELECT cutover_resync('$_')}) for $round == 1 ? 'item' : $round == 2 ? 'tally' : ('part', 'item');
	cutover_wait_synced($old) if $round != 2;
	$old->safe_psql('postgres', q{SELECT cutover_remove_table('tally')});
	is($new->safe_psql('postgres', q{SELECT count(*) FROM cutover.deferred WHERE relation ~ 'tally'}), '0', "round $round: nothing of the removed table is off");
	$new->safe_psql('postgres', 'TRUNCATE tally');
	$old->safe_psql('postgres', q{SELECT cutover_add_table('tally')});
}
cutover_wait_synced($old);
$result = $load->stop;
is($result->{failed}, 0, 'actions under load: no transaction failed') or diag(explain($result->{sqlstates}));
same('actions under load');
$load->check($new);

# ---- DROP DATABASE and CREATE DATABASE of others are not held up

$old->safe_psql('postgres', 'CREATE DATABASE other');
$old->safe_psql('postgres', 'DROP DATABASE other');
ok(1, 'another database comes and goes while the replicator is idle');
my @frozen = cutover_freeze($new);
END { cutover_thaw(@frozen) if @frozen }
$old->safe_psql('postgres', q{UPDATE item SET n = n + 1 WHERE id < 5000});
# in the midst of a wait for new's answer
set_conf('cutover.network_timeout = 60');
my $timer = IPC::Run::timeout(30);
my ($rc, $out, $err) = $old->psql('postgres', "CREATE DATABASE other STRATEGY = FILE_COPY;\nDROP DATABASE other", timeout => 60);
is($rc, 0, 'another database comes and goes while the replicator waits for new') or diag($err);
cutover_thaw(@frozen);
@frozen = ();
set_conf('cutover.network_timeout = 3');
same('thawed');

# ---- cancel at each stage

$old->safe_psql('postgres', 'SELECT cutover_cancel()');
is(cutover_dump_schema($old), $old_schema, 'streaming, cancelled: old is as before');
is(cutover_dump_schema($new), $new_schema, 'streaming, cancelled: new is as before');
for my $stage (
	[ 'waiting', 'true', 4000 ],
	[ 'copying', q{EXISTS (SELECT FROM cutover._chunk WHERE state = 'copying') AND EXISTS (SELECT FROM cutover._table WHERE phase = 'copying')}, 1000 ],
	[ 'catching up', q{EXISTS (SELECT FROM cutover._table WHERE phase IN ('catching_up', 'indexing', 'synced'))}, 1000 ],
	[ 'indexing', q{EXISTS (SELECT FROM cutover._table WHERE phase IN ('indexing', 'synced'))}, 0 ])
{
	my ($what, $when, $rate) = @$stage;

	set_conf("cutover.copy_max_rate = $rate");
	$load = load();
	begin();
	cutover_poll($what, sub { $old->safe_psql('postgres', "SELECT $when") eq 't' }, node => $old);
	$old->safe_psql('postgres', 'SELECT cutover_cancel()');
	$result = $load->stop;
	is($result->{failed}, 0, "$what, cancelled: no transaction failed") or diag(explain($result->{sqlstates}));
	is(cutover_dump_schema($old), $old_schema, "$what, cancelled: old is as before");
	is(cutover_dump_schema($new), $new_schema, "$what, cancelled: new is as before");
	is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), '0', "$what, cancelled: nothing of ours is on new");
	is(scalar(my @left = cutover_worker_pids($old, '^cutover')), 0, "$what, cancelled: no worker is left");
}
set_conf('cutover.copy_max_rate = 0');

# ---- the database on new is dropped

$new->safe_psql('postgres', 'CREATE DATABASE shop');
$old->safe_psql('postgres', 'CREATE DATABASE shop');
make_tables('shop');
cutover_copy_schema($old, $new, db => 'shop');
$old->safe_psql('shop', 'CREATE EXTENSION cutover');
cutover_add_target($old, $new, db => 'shop', new_db => 'shop');
$old->safe_psql('shop', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old, db => 'shop');
$new->safe_psql('postgres', 'DROP DATABASE shop WITH (FORCE)');
$old->safe_psql('shop', 'UPDATE item SET n = 1 WHERE id = 1');
ok(cutover_poll('status says so', sub {
	$old->safe_psql('shop', 'SELECT last_error FROM cutover.status') =~ /database "shop" does not exist/ }, node => $old, db => 'shop'),
	'new dropped: status says so');
isnt($old->safe_psql('shop', 'SELECT waiting_for FROM cutover.status'), '', 'new dropped: and that something is waited for');

# ---- the database on old is dropped, with its workers at work

my $log = -s $old->logfile;
$old->safe_psql('postgres', 'DROP DATABASE shop WITH (FORCE)');
cutover_poll('workers have ended', sub { !cutover_worker_pids($old, '^cutover') });
ok(1, 'old dropped: DROP DATABASE ends the workers');
# a worker that came back for ever would do so every five seconds
my $since = time;
cutover_poll('two restart intervals', sub { time - $since > 12 });
my $said = () = slurp_file($old->logfile, $log) =~ /FATAL:  database \d+ does not exist/g;
cmp_ok($said, '<=', 1, 'old dropped: a worker tries to come back once at most');
is(scalar(my @none = cutover_worker_pids($old, '^cutover')), 0, 'old dropped: no worker comes back');

done_testing();
