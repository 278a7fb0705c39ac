# Transactions that write for long keep the gate open; nobody waits for them but
# the switch.  It gives up at its time-out, or has them cancelled or ended.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;
use Time::HiRes qw(time);

my ($old, $new) = cutover_pair(conf => "cutover.protect_new = on\ncutover.switch_stop_at = ''\n");

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 100) i;
CREATE TABLE other (id int PRIMARY KEY);
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('account'); SELECT cutover_start()});
cutover_wait_synced($old);

# a session with a transaction that has written and does not end
sub writer
{
	my ($sql) = @_;
	my $writer = $old->background_psql('postgres', on_error_stop => 0);

	$writer->query_until(qr/ready/, "SET application_name = 'slow app';\nBEGIN;\n$sql;\n\\echo ready\n");
	return $writer;
}
sub switch_error
{
	my ($arguments, $name, $like) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $error = cutover_error_is($old, "SELECT cutover_set_mode('new_only', force => true, $arguments)", '55P03', $name, like => $like);

	is($old->safe_psql('postgres', 'SELECT mode, epoch, switch_state IS NULL FROM cutover._target'), 'old_only|1|t', 'nothing has changed');
	return $error;
}

# ---- wait: give up, and say because of whom

my $writer = writer('UPDATE account SET balance = 1 WHERE id = 1');
cutover_poll('the writer is an old one', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slow app' AND xact_start < now() - interval '0.6 s'}) eq '1' });
my $pid = $old->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE application_name = 'slow app'});
like($old->safe_psql('postgres', q{SELECT level, object, message FROM cutover_check_mode('new_only') WHERE check_name = 'blocker'}),
	qr/^warning\|$pid\|process $pid .*slow app.*UPDATE account/, 'a look beforehand says who would be in the way');

switch_error(q{timeout => '1 s'}, 'a transaction that writes for long', qr/process $pid \(role \w+, application slow app, for [\d:.]+\): UPDATE account SET balance = 1/);
# the gate has not been closed for it
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.event WHERE kind = 'switch_begin'}), '0', 'the gate was never closed');
like($old->safe_psql('postgres', q{SELECT detail->>'reason' FROM cutover.event WHERE kind = 'switch_undone' ORDER BY at DESC LIMIT 1}), qr/gave up/, 'and an event says why');
switch_error(q{timeout => '0 s'}, 'no time at all', qr/process $pid/);

# an idle one can't be cancelled, but ended
switch_error(q{timeout => '0.2 s', blockers => 'cancel'}, 'cancel does nothing to a session that waits for its client', qr/process $pid/);
is($old->safe_psql('postgres', q{SELECT to_mode FROM cutover_set_mode('new_only', force => true, timeout => '0.2 s', blockers => 'terminate')}), 'new_only', 'terminate does');
is($old->safe_psql('postgres', 'SELECT balance FROM account WHERE id = 1'), '0', 'its transaction is rolled back');
is($old->safe_psql('postgres', q{SELECT detail->>'pid' FROM cutover.event WHERE kind = 'stop_writer' AND detail->>'how' = 'terminate'}), $pid, 'and an event tells');
eval { $writer->quit };
$old->safe_psql('postgres', q{SELECT cutover_set_mode('old_only', force => true)});

# one that is at work can
my $busy = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'),
	'-c', 'UPDATE account SET balance = 2 WHERE id = 2 AND pg_sleep(60) IS NOT NULL' ], '<', \undef, '>', \my $out, '2>', \my $err);
cutover_poll('a statement takes long', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND xact_start < now() - interval '0.6 s'}) eq '1' });
is($old->safe_psql('postgres', q{SELECT to_mode FROM cutover_set_mode('new_only', force => true, timeout => '0.2 s', blockers => 'cancel')}), 'new_only', 'a statement is cancelled');
$busy->finish;
like($err, qr/canceling statement due to user request/, 'as its client learns');
$old->safe_psql('postgres', q{SELECT cutover_set_mode('old_only', force => true)});

# ---- a prepared transaction

$old->safe_psql('postgres', q{BEGIN; UPDATE account SET balance = 3 WHERE id = 3; PREPARE TRANSACTION 'two phases'});
for my $blockers (qw(wait terminate))
{
	cutover_error_is($old, qq{SELECT cutover_set_mode('new_only', force => true, timeout => '0.2 s', blockers => '$blockers')}, '55P03',
		"a prepared transaction, $blockers", like => qr/prepared transaction "two phases" \(role \w+, for/);
}
$old->safe_psql('postgres', q{COMMIT PREPARED 'two phases'});
is($old->safe_psql('postgres', q{SELECT to_mode FROM cutover_set_mode('new_only', force => true)}), 'new_only', 'once it is gone the way is free');
is($new->safe_psql('postgres', 'SELECT balance FROM account WHERE id = 3'), '3', 'and it came along');
$old->safe_psql('postgres', q{SELECT cutover_set_mode('old_only', force => true)});

# ---- those who write when the gate closes go on when it opens

sub stop_at
{
	my ($step) = @_;
	$old->adjust_conf('postgresql.conf', 'cutover.switch_stop_at', "'$step'");
	$old->reload;
}
sub begin_switch
{
	my ($step, $arguments) = @_;

	stop_at($step);
	my $run = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'),
		'-c', "SELECT to_mode FROM cutover_set_mode('new_only', force => true $arguments)" ], '<', \undef, '>', \my $out, '2>', \my $err);
	cutover_poll("the switch is at $step", sub {
		$old->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover switch: $step'") eq '1' }, node => $old);
	return $run;
}
my $run = begin_switch('closed', '');
is($old->safe_psql('postgres', 'SELECT count(*) FROM account'), '100', 'readers notice nothing');
is($old->safe_psql('postgres', 'INSERT INTO other VALUES (1) RETURNING id'), '1', 'nor do writers of other tables');
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status'), qr/a switch to new_only is under way/, 'status says what goes on');
my $waiter = IPC::Run::start([ 'psql', '-XqAt', '-v', 'VERBOSITY=verbose', '-d', $old->connstr('postgres'),
	'-c', q{SET lock_timeout = '10ms'}, '-c', q{UPDATE account SET balance = 4 WHERE id = 4 RETURNING 'written'} ], '<', \undef, '>', \my $waiter_out, '2>', \my $waiter_err);
cutover_poll('a writer waits', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'balance = 4'}) eq '1' }, node => $old);

# ---- one switch at a time

cutover_error_is($old, q{SELECT cutover_set_mode('dual_write')}, '55006', 'another switch meanwhile');
cutover_error_is($old, q{SELECT cutover_cancel()}, '55006', 'or another action');
stop_at('');
$run->finish;
$waiter->finish;
like($waiter_err, qr/ERROR:  25006:.*\n(.*\n)*HINT:.*port=/, 'the writer that waited is told where to write, not that it waited for a lock');
is($old->safe_psql('postgres', 'SELECT cutover_mode()'), 'new_only', 'the switch is made');
$old->safe_psql('postgres', q{SELECT cutover_set_mode('old_only', force => true)});

# undone: the writer goes on
$run = begin_switch('closed', '');
$waiter = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'),
	'-c', q{UPDATE account SET balance = 5 WHERE id = 5 RETURNING 'written'} ], '<', \undef, '>', \$waiter_out, '2>', \$waiter_err);
cutover_poll('a writer waits', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'balance = 5'}) eq '1' }, node => $old);
$old->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query ~ 'cutover_set_mode.*new_only' AND pid <> pg_backend_pid() AND backend_type = 'client backend'});
$waiter->finish;
is($waiter_out, "written\n", 'a switch that is cancelled lets writers go on') or diag($waiter_err);
$run->finish;
stop_at('');

# ---- new does not follow: the gate is not closed at all

$old->safe_psql('postgres', 'SELECT cutover_wait()');
my @frozen = cutover_freeze($new);
my $frozen_error = cutover_error($old, q{SELECT cutover_set_mode('new_only', force => true, timeout => '1 s')});
like($frozen_error->{sqlstate}, qr/^(55P03|08006|08001)$/, 'new does not answer');
is($old->safe_psql('postgres', 'UPDATE account SET balance = 6 WHERE id = 6 RETURNING balance'), '6', 'old goes on');
cutover_thaw(@frozen);

# ---- the gate is closed, and the other side does not come to the end: it is opened again

cutover_poll('new is there again', sub { my ($rc) = $old->psql('postgres', q{SELECT cutover_wait('1 s')}); $rc == 0 }, node => $old);
$run = begin_switch('closed', q{, timeout => '2 s'});
cutover_signal_worker($old, '^cutover replicator$', 'STOP');
stop_at('');
$waiter = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'),
	'-c', q{UPDATE account SET balance = 7 WHERE id = 7 RETURNING 'written'} ], '<', \undef, '>', \$waiter_out, '2>', \$waiter_err);
$waiter->finish;
is($waiter_out, "written\n", 'a writer goes on when the other side does not follow') or diag($waiter_err);
$run->finish;
cutover_signal_worker($old, '^cutover replicator$', 'CONT');
is($old->safe_psql('postgres', 'SELECT mode, switch_state IS NULL FROM cutover._target'), 'old_only|t', 'nothing has changed');
like($old->safe_psql('postgres', q{SELECT detail->>'reason' FROM cutover.event WHERE kind = 'switch_undone' ORDER BY event_id DESC LIMIT 1}), qr/gave up/, 'an event tells');

# ---- a pool of connections is paused around the switch

my $pooler = $old->background_psql('postgres', on_error_stop => 0);
$pooler->query_safe(q{LISTEN cutover; SELECT cutover_register_pooler('pgbouncer')});
cutover_error_is($old, q{SELECT cutover_set_mode('new_only', force => true, timeout => '0.3 s')}, '55P03',
	'a pooler that does not pause', like => qr/pooler "pgbouncer" \(process \d+\) did not pause/);
$run = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'),
	'-c', "SELECT to_mode FROM cutover_set_mode('new_only', force => true, timeout => '60 s')" ], '<', \undef, '>', \my $pooled, '2>', \$err);
my $switch_epoch;
cutover_poll('the switch waits for it', sub { $switch_epoch = $old->safe_psql('postgres',
	q{SELECT (e.detail->>'epoch')::int FROM cutover.event e, cutover._target t WHERE kind = 'switch_begin' AND t.switch_state = 'preparing'
	AND e.at > (SELECT max(u.at) FROM cutover.event u WHERE u.kind = 'switch_undone') ORDER BY e.event_id DESC LIMIT 1}) }, node => $old);
cutover_error_is($old, "SELECT cutover_confirm_pause('nobody', $switch_epoch)", '42704', 'who is not registered has nothing to confirm');
my $notified = $pooler->query_safe("SELECT cutover_confirm_pause('pgbouncer', $switch_epoch)");
$run->finish;
is($pooled, "new_only\n", 'it has confirmed: the switch is made') or diag($err);
$notified .= $pooler->query('SELECT 1');
like($notified, qr/"kind": "switch_begin".*"epoch": $switch_epoch/, 'everybody who listens is told that a switch begins');
like($notified, qr/"kind": "set_mode".*"to_mode": "new_only"/, 'and that it was made');
$pooler->quit;
is($old->safe_psql('postgres', q{SELECT to_mode FROM cutover_set_mode('old_only', force => true)}), 'old_only', 'nobody waits for a listener that is gone');

done_testing();
