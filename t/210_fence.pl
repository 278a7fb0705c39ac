# The fence where one server and one session aren't enough: rows that come by
# logical replication, prepared transactions and a restart, a gate that is
# closed again and again under load, a switch that was cut off.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $upstream = cutover_node('upstream', conf => "wal_level = logical\nmax_wal_senders = 5\nmax_replication_slots = 5\n");
my $old = cutover_node('old', conf => "wal_retrieve_retry_interval = '100ms'\nautovacuum = off\n");
my $sql = sub { $old->safe_psql('postgres', shift) };
my $master = sub {
	my ($mode, $state) = @_;
	$sql->("UPDATE cutover._target SET mode = '$mode', switch_state = " . ($state ? "'$state'" : 'NULL')
		  . ', epoch = epoch + 1, master_since = clock_timestamp()');
};
# a statement that may have to wait; { out, err, run }
my $start = sub {
	my (@statements) = @_;
	my $session = { out => '', err => '' };
	$session->{run} = IPC::Run::start(
		[ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-d', $old->connstr('postgres'), map { ('-c', $_) } @statements ],
		'<', \undef, '>', \$session->{out}, '2>', \$session->{err}, IPC::Run::timeout($CutoverTest::DEADLINE));
	return $session;
};
my $finish = sub { my ($session) = @_; $session->{run}->finish; return $session->{err} =~ /ERROR:  (\w{5}):/ ? $1 : '00000' };
my $poll_sql = sub { my ($what, $query) = @_; return cutover_poll($what, sub { $sql->($query) eq 't' }) };
my $waits = sub {
	return $poll_sql->("$_[0] to wait", "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = '$_[1]' AND query ~ '$_[0]' AND pid <> pg_backend_pid()");
};
my $tables = <<'SQL';
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
CREATE TABLE emptied (id int PRIMARY KEY);
SQL

$upstream->safe_psql('postgres', $tables . 'CREATE PUBLICATION leaves FOR TABLE account, parted, emptied');
# no worker: the target is paused, and belongs to another cluster
$sql->(<<"SQL");
$tables
INSERT INTO account SELECT i, 100 FROM generate_series(1, 20) i;
CREATE EXTENSION cutover;
INSERT INTO cutover._target (target_id, target, server, migration_id, system_identifier, desired)
	VALUES (1, 't1', 'none', gen_random_uuid(), 1, 'paused');
SELECT cutover._create_queue(1);
INSERT INTO cutover._table (target_id, old_table, new_schema, new_name, default_columns, key_attnums, phase)
	SELECT 1, t, 'public', t::text, true, '{1}', 'synced' FROM unnest('{account,parted,emptied}'::regclass[]) t;
SELECT cutover._install_capture(table_id) FROM cutover._table;
SQL

# ---- rows that come by logical replication: no statement trigger fires

my $connstr = $upstream->connstr('postgres');
$connstr =~ s/'/''/g;
$sql->("CREATE SUBSCRIPTION s CONNECTION '$connstr' PUBLICATION leaves WITH (copy_data = false)");
$upstream->safe_psql('postgres', q{INSERT INTO parted VALUES (1, 'a'); INSERT INTO emptied VALUES (1); INSERT INTO account VALUES (101, 0)});
$poll_sql->('logical replication into old', 'SELECT count(*) = 3 FROM (SELECT FROM parted UNION ALL SELECT FROM emptied UNION ALL SELECT FROM account WHERE id = 101) x');
$sql->("SELECT cutover._fence_lock(1, 0)");
is($sql->('SELECT cutover._fence_lock(1, 0)'), 't', 'a session that ends opens the gate');

my %refused = (
	insert => [ q{INSERT INTO parted VALUES (2, 'b')}, 'SELECT count(*) = 2 FROM parted' ],
	update => [ q{UPDATE parted SET v = 'c' WHERE id = 1}, q{SELECT count(*) = 1 FROM parted WHERE v = 'c'} ],
	delete => [ q{DELETE FROM account WHERE id = 101}, 'SELECT count(*) = 20 FROM account' ],
	truncate => [ q{TRUNCATE emptied}, 'SELECT count(*) = 0 FROM emptied' ]);
for my $what (sort keys %refused)
{
	my ($change, $arrived) = @{ $refused{$what} };
	my $from = -s $old->logfile;
	$master->('new_only');
	$upstream->safe_psql('postgres', $change);
	cutover_poll('a refusal in the log', sub { slurp_file($old->logfile, $from) =~ /ERROR:  cannot write to table public\.\w+: it has moved/ });
	is($sql->($arrived), 'f', "logical replication is refused: $what");
	$master->('old_only');
	$poll_sql->("the $what", $arrived);
}
$sql->('DROP SUBSCRIPTION s');
$upstream->stop;

# ---- prepared transactions keep the gate open, also across a restart

$sql->(q{BEGIN; UPDATE account SET balance = balance WHERE id = 1; PREPARE TRANSACTION 'p'});
$old->restart;
is($sql->(q{SELECT cutover._fence_lock(1, 0)}), 'f', 'a prepared transaction keeps the gate open after a restart');
is($sql->('SELECT pid IS NULL, usename, gid, age IS NOT NULL FROM cutover._fence_blockers(1)'),
	't|' . $sql->('SELECT current_user') . '|p|t', 'and is named');
$sql->(q{COMMIT PREPARED 'p'});
is($sql->(q{SELECT cutover._fence_lock(1, 0)}), 't', 'until it is committed');

# ---- a closed gate opens with whoever closed it

my $gate = $start->('SELECT cutover._fence_lock(1, 0)', 'BEGIN', 'SELECT pg_sleep(600)');
$poll_sql->('the gate to be closed', q{SELECT count(*) = 1 FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation = 'cutover._fence_1'::regclass});
my $writer = $start->(q{SET lock_timeout = '50ms'}, 'UPDATE account SET balance = balance WHERE id = 2');
$waits->('SET balance', 'Lock');
is($sql->('SELECT count(*) FROM account'), '20', 'readers do not notice');
$old->command_ok([ 'pg_dump', '-f', '/dev/null', '-d', $old->connstr('postgres') ], 'nor does a backup');
$sql->(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()});
is($finish->($writer), '00000', 'whoever waited goes on when the switch is terminated');
$gate->{run}->finish;

# ---- a switch that was cut off

$master->('old_only', 'in_doubt');
$writer = $start->(q{SET cutover.in_doubt_timeout = '100s'}, 'UPDATE account SET balance = balance WHERE id = 2');
$waits->('SET balance', 'Extension');
is($sql->(q{SELECT cutover._fence_lock(1, 0)}), 't', 'a writer who waits for the decision does not hold the fence');
$master->('new_only');
is($finish->($writer), '25006', 'new is master: refused');
$master->('old_only', 'in_doubt');
$writer = $start->(q{SET cutover.in_doubt_timeout = '100s'}, 'UPDATE account SET balance = balance WHERE id = 2');
$waits->('SET balance', 'Extension');
$sql->('UPDATE cutover._target SET switch_state = NULL');
is($finish->($writer), '00000', 'old is master: goes on');
$master->('old_only', 'in_doubt');
$writer = $start->(q{SET cutover.in_doubt_timeout = '100s'; SET statement_timeout = '100ms'}, 'UPDATE account SET balance = balance WHERE id = 2');
is($finish->($writer), '57014', 'statement_timeout holds');
cutover_error_is($old, q{SET cutover.in_doubt_timeout = '50ms'; UPDATE account SET balance = balance WHERE id = 2}, '55P03',
	'nobody decides: no writer waits for ever', like => qr/cutover_resolve_switch/);
# ... or the switch hangs with the gate closed
$gate = $start->('SELECT cutover._fence_lock(1, 0)', 'SELECT pg_sleep(600)');
$poll_sql->('the gate to be closed', q{SELECT count(*) = 1 FROM pg_locks WHERE mode = 'ExclusiveLock' AND relation = 'cutover._fence_1'::regclass});
cutover_error_is($old, q{SET cutover.in_doubt_timeout = '50ms'; BEGIN; SAVEPOINT a; UPDATE account SET balance = balance WHERE id = 2}, '55P03',
	'nor does he if the gate is closed', like => qr/cutover_resolve_switch/);
# a savepoint around it is intact
my ($rc, $out) = $old->psql('postgres', q{SET cutover.in_doubt_timeout = '50ms'; BEGIN; DO $$ BEGIN UPDATE account SET balance = -1;
	EXCEPTION WHEN lock_not_available THEN NULL; END $$; SELECT count(*) FROM account WHERE balance = -1; COMMIT});
is($out, '0', 'who catches that error goes on with his transaction');
$master->('old_only');
$writer = $start->(q{SET cutover.in_doubt_timeout = '50ms'}, 'UPDATE account SET balance = balance WHERE id = 2');
$waits->('SET balance', 'Lock');
usleep(200_000);	# several times that time-out, which is not meant for a switch that goes well
$sql->(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()});
is($finish->($writer), '00000', 'the time-out is for switches in doubt only');
$gate->{run}->finish;

# ---- under load: row locks before and after the first write, so that writers,
# the gate and rows wait for each other in every order; and nobody fails

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/transfer.sql", <<'PGBENCH');
\set a random(1, 4)
\set b random(5, 8)
\set c random(1, 5)
BEGIN;
SELECT balance FROM account WHERE id = :a FOR UPDATE;
\if :c = 1
SAVEPOINT s;
UPDATE account SET balance = balance - 1 WHERE id = :a;
ROLLBACK TO s;
\endif
SELECT balance FROM account WHERE id = :b FOR UPDATE;
UPDATE account SET balance = balance - 1 WHERE id = :a;
UPDATE account SET balance = balance + 1 WHERE id = :b;
COMMIT;
PGBENCH
my ($pgout, $pgerr) = ('', '');
my $pgbench = IPC::Run::start([ 'pgbench', '-n', '-c', 8, '-T', 5, '-f', "$dir/transfer.sql", $old->connstr('postgres') ],
	'<', \undef, '>', \$pgout, '2>', \$pgerr);
my ($closed, $moved) = (0, 0);
$sql->(<<'SQL');
-- what others see of the table while the gate is closed is what is committed: it does not change
CREATE PROCEDURE gate(OUT closed int, OUT moved int) LANGUAGE plpgsql AS $$
DECLARE
	before text;
BEGIN
	closed := 0;
	moved := 0;
	FOR i IN 1..40 LOOP
		IF cutover._fence_lock(1, 100) THEN
			closed := closed + 1;
			COMMIT;
			SELECT string_agg(balance::text, ',' ORDER BY id) || sum(balance) INTO before FROM account;
			PERFORM pg_sleep(0.005);
			COMMIT;
			moved := moved + (SELECT string_agg(balance::text, ',' ORDER BY id) || sum(balance) <> before FROM account)::int;
			PERFORM cutover._fence_unlock(1);
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;
SQL
($closed, $moved) = split /\|/, $sql->('CALL gate(NULL, NULL)');
$pgbench->finish;
cmp_ok($closed, '>', 10, "the gate closes under load ($closed of 40 attempts)");
is($moved, 0, 'nothing is written while it is closed');
like($pgout, qr/number of failed transactions: 0 /, 'and no transaction of the application fails');
cmp_ok($pgout =~ /actually processed: (\d+)/ ? $1 : 0, '>', 100, 'which does work') or diag($pgerr);
is($sql->('SELECT sum(balance) FROM account'), '2000', 'the sum of all accounts is what it was');

done_testing();
