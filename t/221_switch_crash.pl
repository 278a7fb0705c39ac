# A switch stops at one of its steps, and something dies there.  Whatever it
# is, there is one continuation: before new was told nothing has happened,
# afterwards the switch is made.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;
use Time::HiRes qw(usleep);

my ($old, $new) = cutover_pair(conf => <<'CONF');
cutover.retry_max_delay = 200
cutover.network_timeout = 5
cutover.protect_new = on
cutover.switch_stop_at = ''
restart_after_crash = on
CONF
my $proxy = CutoverTest::Proxy->new($new);
my %mode_of = (old => 'old_only', new => 'new_only');

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id serial PRIMARY KEY, balance int NOT NULL);
INSERT INTO account (balance) SELECT 0 FROM generate_series(1, 100);
CREATE TABLE other (id int PRIMARY KEY);	-- so that no session becomes read-only
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new, conninfo => $proxy->connstr('postgres'));
$old->safe_psql('postgres', q{SELECT cutover_add_table('account'); SELECT cutover_start()});
cutover_wait_synced($old);

# waits for the target to be at rest, and returns its mode
sub mode_at_rest
{
	cutover_poll('no switch is left half done', sub {
		my ($rc, $out) = $old->psql('postgres', 'SELECT switch_state IS NULL FROM cutover._target NATURAL JOIN (SELECT target FROM cutover.status WHERE waiting_for IS DISTINCT FROM current_user) s');
		return $rc == 0 && $out eq 't' }, node => $old);
	return $old->safe_psql('postgres', 'SELECT cutover_mode()');
}

# who is master, as each side knows it
sub masters
{
	return join ' ', $old->safe_psql('postgres', 'SELECT cutover._master(mode), epoch FROM cutover._target'),
		$new->safe_psql('postgres', 'SELECT master, epoch FROM cutover.migration');
}

sub stop_at
{
	my ($step) = @_;
	$old->adjust_conf('postgresql.conf', 'cutover.switch_stop_at', "'$step'");
	$old->reload;
}

# starts a switch and waits until it stands at the step
sub begin_switch
{
	my ($to, $step) = @_;
	my %run = (out => '', err => '');

	stop_at($step);
	$run{handle} = IPC::Run::start(
		[ 'psql', '-XqAt', '-v', 'VERBOSITY=verbose', '-d', $old->connstr('postgres'),
			'-c', q{SET application_name = 'switch caller'}, '-c', "SELECT to_mode FROM cutover_set_mode('$mode_of{$to}', force => true)" ],
		'<', \undef, '>', \$run{out}, '2>', \$run{err});
	cutover_poll("the switch to $to is at $step", sub {
		my ($rc, $out) = $old->psql('postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cutover switch: $step'");
		return $rc == 0 && $out eq '1' }, node => $old);
	return \%run;
}

my %kill = (
	# the postmaster takes all others down, and comes back
	worker => sub { is(cutover_crash($old, '^cutover switch: '), 1, 'the worker is killed') },
	# the worker is told to end
	caller => sub { $old->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switch caller'}) },
	old => sub { $old->stop('immediate'); $old->start },
	new => sub { $new->stop('immediate'); stop_at(''); usleep(200_000); $new->start },
	# what was sent may arrive when everybody has given it up
	line => sub { $proxy->stall; stop_at(''); sleep 4; $proxy->resume },
	network => sub { $proxy->down; stop_at(''); usleep(200_000); $proxy->up },
);
# what stands between the steps and the end if nothing dies there (the worker goes on when only new is away)
my @steps = qw(preparing prepared closed drained in_doubt taken_over recorded);
my %told = map { $_ => 1 } qw(taken_over recorded);
my $master = 'old';

# one switch that dies; returns what is master then
sub crash_at
{
	my ($step, $what) = @_;
	my $to = $master eq 'old' ? 'new' : 'old';
	my $run = begin_switch($to, $step);

	$kill{$what}->();
	stop_at('');
	eval { $run->{handle}->finish };
	my $mode = mode_at_rest();
	my $done = $mode eq $mode_of{$to};

	if ($what eq 'worker' || $what eq 'caller' || $what eq 'old')
	{
		is($mode, $mode_of{ $told{$step} ? $to : $master }, "$what dies at $step, on the way to $to");
	}
	else
	{
		# the worker lives, and may get through or not; what the caller was told must be true
		my $said_done = $run->{out} eq "$mode_of{$to}\n";
		ok(($done || !$said_done) && ($done || !$told{$step}) && ($said_done || $run->{err} =~ /ERROR:  (08|55|57)/),
			"$what goes away at $step, on the way to $to: mode is $mode") or diag($run->{out}, $run->{err});
	}
	$master = $to if $done;
	like(masters(), qr/^$master\|(\d+) $master\|(\d+)$/, "both sides know that $master is master");
	return;
}

for my $step (@steps)
{
	crash_at($step, 'caller');
}
crash_at($_, 'worker') for qw(prepared closed in_doubt taken_over);
crash_at($_, 'old') for qw(closed in_doubt taken_over);
crash_at($_, 'new') for qw(closed in_doubt taken_over);
crash_at($_, 'network') for qw(closed in_doubt taken_over);
crash_at($_, 'worker') for qw(in_doubt taken_over);
crash_at($_, 'caller') for qw(in_doubt taken_over);
crash_at('in_doubt', 'line');

# each switch that was made is written down once
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.mode_change a JOIN cutover.mode_change b ON b.epoch =
	(SELECT min(c.epoch) FROM cutover.mode_change c WHERE c.epoch > a.epoch) WHERE a.to_mode <> b.from_mode}), '0', 'the chain of modes has no gap');
$old->safe_psql('postgres', q{SELECT cutover_set_mode('old_only', force => true)});
is($old->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (1) RETURNING balance}), '1', 'old takes writes in the end');
cutover_wait($old);
cutover_same_rows($old, $new, 'account');

# ---- new is gone for good while the switch is in doubt

my $run = begin_switch('new', 'in_doubt');
$proxy->down;
$old->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switch caller'});
eval { $run->{handle}->finish };
stop_at('');
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status'), qr/in doubt.*cutover_resolve_switch/, 'status says that it is in doubt');
cutover_error_is($old, q{SELECT cutover_set_mode('dual_write')}, '55000', 'no other action meanwhile', like => qr/cutover_resolve_switch/);
cutover_error_is($old, q{SELECT cutover_resolve_switch('both')}, '22023', 'one of the two is master');
$old->safe_psql('postgres', q{SELECT cutover_resolve_switch('old')});
is($old->safe_psql('postgres', 'SELECT cutover_mode()'), 'old_only', 'the operator has decided');
$old->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (2)});
cutover_error_is($old, q{SELECT cutover_resolve_switch('old')}, '55000', 'and nothing is in doubt any more');
$proxy->up;
cutover_poll('new has learnt it', sub { masters() =~ /^old\|(\d+) old\|\1$/ }, node => $old);
cutover_wait($old);
cutover_same_rows($old, $new, 'account');

done_testing();
