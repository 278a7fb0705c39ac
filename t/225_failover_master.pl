# Old fails over in the middle of a switch and after one: its standby goes on
# with mode and epoch, and one that knows nothing of the switch yields.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;

my $conf = <<~'CONF';
	cutover.lease_time = 2
	cutover.retry_max_delay = 300
	cutover.protect_new = on
	cutover.switch_stop_at = ''
	wal_keep_size = '256MB'
	CONF
my $new = cutover_node('new', conf => $conf);
my $old = cutover_node('old', streaming => 1, conf => $conf);

$old->safe_psql('postgres', <<'SQL');
CREATE EXTENSION cutover;
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 100) i;
CREATE TABLE other (id int PRIMARY KEY);
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('account'); SELECT cutover_start()});
cutover_wait_synced($old);

sub standby
{
	my ($name, $primary) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$primary->backup("for_$name");
	$node->init_from_backup($primary, "for_$name", has_streaming => 1);
	$node->start;
	return $node;
}
sub stop_at
{
	my ($node, $step) = @_;
	$node->adjust_conf('postgresql.conf', 'cutover.switch_stop_at', "'$step'");
	$node->reload;
	return;
}
sub mode_at_rest
{
	my ($node, $wanted) = @_;
	cutover_poll("the mode is $wanted", sub {
		my ($rc, $out) = $node->psql('postgres',
			q{SELECT mode || ' ' || (switch_state IS NULL) FROM cutover._target NATURAL JOIN (SELECT target FROM cutover.status WHERE waiting_for IS DISTINCT FROM current_user) s});
		return $rc == 0 && $out eq "$wanted true" }, node => $node);
	return 1;
}
# a switch that stops at a step, while everything there was is on the standby
sub switch_until
{
	my ($node, $standby, $step) = @_;

	stop_at($node, $step);
	my $run = IPC::Run::start([ 'psql', '-XqAt', '-d', $node->connstr('postgres'),
		'-c', q{SELECT cutover_set_mode('new_only', force => true)} ], '<', \undef, '>', \my $out, '2>', \my $err);
	cutover_poll("the switch is at $step", sub {
		$node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover switch: $step'") eq '1' }, node => $node);
	$node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
	return $run;
}
sub fail_over
{
	my ($from, $to, $run) = @_;

	$from->stop('immediate');
	eval { $run->finish } if $run;
	stop_at($to, '');
	$to->promote;
	return;
}

# ---- in doubt, and new was not told

my $second = standby('second', $old);
my $run = switch_until($old, $second, 'in_doubt');
fail_over($old, $second, $run);
ok(mode_at_rest($second, 'old_only'), 'promoted in doubt, before new was told: old is master');
is($second->safe_psql('postgres', q{UPDATE account SET balance = 1 WHERE id = 1 RETURNING balance}), '1', 'and takes writes');
cutover_wait($second);
is($new->safe_psql('postgres', q{SELECT balance FROM account WHERE id = 1}), '1', 'which arrive');

# ---- in doubt, and new was told

my $third = standby('third', $second);
$run = switch_until($second, $third, 'taken_over');
fail_over($second, $third, $run);
ok(mode_at_rest($third, 'new_only'), 'promoted in doubt, after new was told: new is master');
cutover_error_is($third, 'UPDATE account SET balance = 2', '25006', 'old refuses');
is($new->safe_psql('postgres', q{UPDATE account SET balance = 2 WHERE id = 2 RETURNING balance}), '2', 'new takes writes');
is(join(' ', $third->safe_psql('postgres', q{SELECT epoch FROM cutover._target}), $new->safe_psql('postgres', 'SELECT master, epoch FROM cutover.migration')) =~ /^(\d+) new\|\1$/,
	1, 'both know the same epoch');

# ---- a standby that knows nothing of the switch

cutover_wait($third);
$third->safe_psql('postgres', q{SELECT cutover_set_mode('old_only', force => true)});
my $fourth = standby('fourth', $third);
$third->wait_for_catchup($fourth, 'replay', $third->lsn('flush'));
$fourth->stop;
$third->safe_psql('postgres', q{SELECT cutover_set_mode('new_only', force => true)});
my $epoch = $new->safe_psql('postgres', 'SELECT epoch FROM cutover.migration');
$third->stop('immediate');
$fourth->start;
$fourth->promote;
ok(mode_at_rest($fourth, 'new_only'), 'promoted without the switch: it yields when it has reached new');
is($fourth->safe_psql('postgres', 'SELECT epoch FROM cutover._target'), $epoch, 'with the epoch of new');
cutover_error_is($fourth, 'UPDATE account SET balance = 3', '25006', 'and refuses writes');
is($new->safe_psql('postgres', q{UPDATE account SET balance = 4 WHERE id = 4 RETURNING balance}), '4', 'new stays master');
like($fourth->safe_psql('postgres', q{SELECT detail->>'reason' FROM cutover.event WHERE kind = 'agree'}), qr/new had been made master/, 'an event says why');

# ---- the former primary comes back beside it

$third->start;
cutover_error_is($third, 'UPDATE account SET balance = 5', '25006', 'the former primary knows that new is master');

done_testing();
