# A ledger through many changes of mode, in both directions, with kills in
# between.  Transfers keep the sum of all accounts; each transaction leaves an
# entry that says where and when it was made.  Some clients know both servers,
# some only old, some only new.  In the end: what was acknowledged is there
# once, the sum is what it was, and at no moment did both sides take writes.
# CUTOVER_TEST_SEED repeats a run; CUTOVER_LEDGER_STEPS is the number of changes.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{CUTOVER_TEST_SEED} // int(rand(1_000_000));
my $steps = $ENV{CUTOVER_LEDGER_STEPS} // 50;
srand($seed);
note("seed $seed");

my ($old, $new) = cutover_pair(preload => 1, conf => <<'CONF');
cutover.protect_new = on
cutover.lease_time = 5
cutover.retry_max_delay = 200ms
cutover.network_timeout = 5
CONF
my %node = (old => $old, new => $new);
my $accounts = 40;

$old->safe_psql('postgres', <<SQL);
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT i, 1000 FROM generate_series(1, $accounts) i;
CREATE TABLE load_journal (client int, n int, side text DEFAULT current_setting('port'),
	at timestamptz DEFAULT clock_timestamp(), PRIMARY KEY (client, n));
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

my $both = sprintf 'host=%s,%s port=%d,%d dbname=postgres target_session_attrs=read-write connect_timeout=5',
  $old->host, $new->host, $old->port, $new->port;
my $load = cutover_load(
	$old,
	clients => 9,
	pause => 3_000,
	leave_on => qr/^(25006|40001|08|57)/,
	connstr => sub {
		my ($client) = @_;
		return $client <= 5 ? $both : ($client <= 7 ? $old : $new)->connstr('postgres');
	},
	sql => sub {
		my ($from, $to) = sort { $a <=> $b } map { 1 + int rand $accounts } 1 .. 2;
		my $amount = int(rand 100) - 50;
		return "UPDATE account SET balance = balance - $amount WHERE id = $from;\n"
		  . "UPDATE account SET balance = balance + $amount WHERE id = $to;";
	});

# old answers again, and no switch is left half way
my $ask = sub { my ($rc, $out) = $old->psql('postgres', shift); return $rc == 0 ? $out : undef };
my $settled = sub {
	cutover_poll('old answers and no switch is under way', sub {
		my $state = $ask->('SELECT coalesce(switch_state, mode) FROM cutover._target');
		return defined $state && $state =~ /_only|dual/;
	}, node => $old);
	return;
};

my %faults = (
	action => sub { cutover_signal_worker($old, 'cutover action', 'TERM') },
	'action -9' => sub { cutover_crash($old, 'cutover action') },
	replicator => sub { cutover_signal_worker($old, 'cutover replicator', 'TERM') },
	'replicator -9' => sub { cutover_crash($old, 'cutover replicator') },
	'new stops' => sub { $new->stop('immediate'); $new->start },
	'old stops' => sub { $old->stop('immediate'); $old->start });
my %done;
for my $step (1 .. $steps)
{
	my @modes = grep { $_ ne $ask->('SELECT cutover_mode()') } qw(old_only dual_write new_only);
	my $mode = $modes[ rand @modes ];
	my $fault = rand() < 0.3 ? (sort keys %faults)[ rand keys %faults ] : undef;
	my ($out, $err) = ('', '');
	my $call = IPC::Run::start(
		[ 'psql', '-XqAt', '-d', $old->connstr('postgres'), '-c', "SELECT cutover_set_mode('$mode', timeout => '5 s', force => true)" ],
		\undef, \$out, \$err);

	if ($fault)
	{
		usleep(rand 150_000);
		eval { $faults{$fault}->(); 1 } or note("$fault: $@");
	}
	$call->finish;
	my $word = $err eq '' ? 'done' : 'failed';
	$done{$word}++;
	note("step $step: $mode" . ($fault ? ", $fault" : '') . ": $word" . ($err ? " $err" : ''));
	$settled->();
	usleep(rand 100_000);
}
cmp_ok($done{done} // 0, '>', $steps / 2, "most of $steps changes of mode were made");

# at rest
my $result = $load->stop;
$settled->();
cutover_poll('the last mode', sub {
	my ($rc) = $old->psql('postgres', q{SELECT cutover_set_mode('new_only', force => true)});
	return $rc == 0;
}, node => $old);
cutover_wait($old);
note(explain($result));
cmp_ok($result->{committed}, '>', $steps, 'transactions were committed all the way');
like(join(' ', sort keys %{ $result->{sqlstates} }), qr/25006/, 'and refused on the side that was not master');
$load->check($new, 'each acknowledged transaction is on the master of the end');
for my $side (qw(old new))
{
	is($node{$side}->safe_psql('postgres', 'SELECT sum(balance) FROM account'), $accounts * 1000, "the sum on $side");
}
cutover_same_rows($old, $new, 'account', 'both sides have the same accounts');
cutover_same_rows($old, $new, 'load_journal', 'and the same entries');

# entries in order of time change sides as often as the master did, at most
my $changes = $new->safe_psql('postgres', <<'SQL');
SELECT count(*) FROM (SELECT side <> lag(side) OVER (ORDER BY at) AS changed FROM load_journal) j WHERE changed
SQL
my $switches = $old->safe_psql('postgres',
	q{SELECT count(*) FROM cutover.mode_change WHERE (from_mode = 'new_only') <> (to_mode = 'new_only')});
cmp_ok($changes, '<=', $switches, "entries change sides $changes times, the master $switches times");
cmp_ok($changes, '>', 0, 'and they do');

done_testing();
