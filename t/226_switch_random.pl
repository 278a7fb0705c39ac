# A ledger through random changes of mode, with random kills in between: at the
# end each transaction that a client was promised is there exactly once, on
# both sides, and no money came or went.  CUTOVER_FUZZ_SEED repeats a run,
# CUTOVER_FUZZ_SWITCHES makes it longer.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{CUTOVER_FUZZ_SEED} // int(rand(1_000_000));
my $switches = $ENV{CUTOVER_FUZZ_SWITCHES} // 14;
note("CUTOVER_FUZZ_SEED=$seed");
srand($seed);

my ($old, $new) = cutover_pair(preload => 1, conf => <<'CONF');
cutover.protect_new = on
cutover.retry_max_delay = 200
cutover.lease_time = 2
CONF

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO account SELECT i, 1000 FROM generate_series(1, 50) i;
CREATE TABLE transfer (id bigserial PRIMARY KEY, giver int NOT NULL, taker int NOT NULL, amount int NOT NULL);
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

# money goes from one to another, and back some of the time
sub transfer
{
	my ($client, $n) = @_;
	my ($giver, $taker) = (1 + ($client * 7 + $n * 3) % 50, 1 + ($client * 11 + $n * 5) % 50);
	# in the same order everywhere: no deadlocks of their own
	my @change = sort { $a->[0] <=> $b->[0] } [ $giver, "- $n % 10" ], [ $taker, "+ $n % 10" ];

	return join '; ', (map { "UPDATE account SET balance = balance $_->[1] WHERE id = $_->[0]" } @change),
	  "INSERT INTO transfer (giver, taker, amount) VALUES ($giver, $taker, $n % 10)";
}
my @loads = (
	cutover_load($old, clients => 4, follow => [ $old, $new ], pause => 3000, sql => \&transfer),
	cutover_load($old, clients => 2, first => 1_000_000, follow => [$old], pause => 5000, sql => \&transfer),
	cutover_load($old, clients => 2, first => 2_000_000, follow => [$new], pause => 5000, sql => \&transfer));

sub master { my ($rc, $out) = $old->psql('postgres', 'SELECT cutover_mode()'); return $rc == 0 ? $out : '' }

my %accident = (
	nothing => sub { },
	worker => sub { eval { cutover_crash($old, '^cutover switch: ') } },
	caller => sub { $old->psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switch caller'}) },
	replicator => sub { cutover_signal_worker($old, '^cutover replicator$', 'TERM') },
	old => sub { $old->stop('immediate'); $old->start },
	new => sub { $new->stop('immediate'); $new->start },
);
my @accidents = (qw(nothing nothing worker caller caller replicator replicator old new));
my (%seen, $made);

for my $i (1 .. $switches)
{
	my $to = (qw(old_only dual_write new_only new_only))[ int(rand(4)) ];
	my $what = $accidents[ int(rand(@accidents)) ];
	my $run = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'), '-c', q{SET application_name = 'switch caller'},
		'-c', "SELECT to_mode FROM cutover_set_mode('$to', force => true, timeout => '5 s')" ], '<', \undef, '>', \my $out, '2>', \my $err);

	usleep(int(rand(90_000)));
	eval { $accident{$what}->(); 1 } or diag($@);
	eval { $run->finish };
	cutover_poll('no switch is left half done', sub {
		my ($rc, $text) = $old->psql('postgres',
			'SELECT switch_state IS NULL FROM cutover._target NATURAL JOIN (SELECT target FROM cutover.status WHERE waiting_for IS DISTINCT FROM current_user) s');
		return $rc == 0 && $text eq 't' }, node => $old);
	note("$i: to $to, $what dies: " . master() . ($err =~ /ERROR:  (.*)/ ? " ($1)" : ''));
	$made++ if $out ne '' && $seen{ master() }++ >= 0;
	my $before = $loads[0]->committed;
	cutover_poll('clients go on', sub { $loads[0]->committed > $before + 5 }, node => $old);
}

my %sqlstates;
for my $load (@loads)
{
	my $result = $load->stop;
	$sqlstates{$_} += $result->{sqlstates}{$_} for keys %{ $result->{sqlstates} };
	note("committed: $result->{committed}");
}
note(explain(\%sqlstates));
ok($made >= $switches / 3, "$made of $switches switches were made");
is_deeply([ grep { !/^(25006|40001|57P0[123]|08...|connection|55P03)$/ } sort keys %sqlstates ], [], 'no error but those that were to come');
cutover_poll('at rest', sub { my ($rc) = $old->psql('postgres', q{SELECT cutover_wait('5 s')}); $rc == 0 }, node => $old);
for my $node ($old, $new)
{
	my $name = $node->name;
	$_->check($node, "everything acknowledged is on $name") for @loads;
	is($node->safe_psql('postgres', 'SELECT sum(balance) FROM account'), '50000', "no money came or went on $name");
	is($node->safe_psql('postgres', q{SELECT count(*) FROM account a WHERE balance <> 1000
		- (SELECT coalesce(sum(amount), 0) FROM transfer t WHERE t.giver = a.id) + (SELECT coalesce(sum(amount), 0) FROM transfer t WHERE t.taker = a.id)}),
		'0', "each transfer counts once on $name");
	is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM transfer) = (SELECT count(*) FROM load_journal)'), 't', "and is written down once on $name");
}
cutover_same_tables($old, $new, qw(account transfer load_journal));
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.apply_error}), '0', 'nothing was rejected');
is($old->safe_psql('postgres', q{SELECT count(*) FROM (SELECT from_mode, lag(to_mode) OVER (ORDER BY epoch) AS before FROM cutover.mode_change) m WHERE from_mode <> before}),
	'0', 'the chain of modes has no gap');

done_testing();
