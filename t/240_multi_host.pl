# Clients that know both servers move by themselves: where the whole database
# moves, each server says which of them takes writes.  Real libpq with
# target_session_attrs=read-write, and JDBC with targetServerType=primary.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

# JDBC knows no sockets
my ($old, $new) = cutover_pair(conf => "listen_addresses = '127.0.0.1'\ncutover.protect_new = on\n");
my $libpq = sprintf 'host=%s,%s port=%d,%d dbname=postgres user=app target_session_attrs=read-write',
  $old->host, $new->host, $old->port, $new->port;
my $jdbc = sprintf 'jdbc:postgresql://127.0.0.1:%d,127.0.0.1:%d/postgres?targetServerType=primary&hostRecheckSeconds=0',
  $old->port, $new->port;

# new is open to superusers at any time: they prepare it
$_->safe_psql('postgres', 'CREATE ROLE app LOGIN') for $old, $new;
$old->safe_psql('postgres', 'CREATE TABLE written (n int, via text, PRIMARY KEY (via, n)); GRANT SELECT, INSERT ON written TO app');
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

# where a new connection of libpq goes
my $where = sub {
	my ($out, $err) = run_command([ 'psql', '-XqAt', '-d', $libpq, '-c', 'SHOW port' ]);
	return $out eq $old->port ? 'old' : $out eq $new->port ? 'new' : "nowhere: $err";
};

# a JDBC client that writes all the time
my $file = PostgreSQL::Test::Utils::tempdir() . '/writer.out';
my $in = '';
my $client = IPC::Run::start(
	[ 'java', '-cp', '/usr/share/java/postgresql.jar', 't/clients/Writer.java', $jdbc, 'app' ],
	\$in, '>', $file, '2>&1');
my $kept = sub { my @n = slurp_file($file) =~ /^kept (\d+)$/mg; return scalar @n };
my $on = sub { $_[0]->safe_psql('postgres', q{SELECT count(*) FROM written WHERE via = 'jdbc'}) };
cutover_poll('the JDBC client writes', sub { $kept->() > 50 }, node => $old);
is($where->(), 'old', 'libpq finds old before the switch');

# to new, back, and to new for good
my $refusals = 0;
for my $step ([ 'new_only', 'new', $new ], [ 'old_only', 'old', $old ], [ 'new_only', 'new', $new ])
{
	my ($mode, $side, $node) = @$step;
	$old->safe_psql('postgres', "SELECT cutover_set_mode('$mode', force => true)");
	is($where->(), $side, "libpq finds $side in mode $mode");
	my $n = $kept->();
	cutover_poll("the JDBC client writes to $side", sub { $kept->() > $n + 50 }, node => $old);
	$refusals++;
	my @refused = slurp_file($file) =~ /^refused (\S+)/mg;
	is_deeply([ grep { $_ ne '25006' } @refused ], [], 'it was refused with 25006 only');
	is(scalar @refused, $refusals, 'and once for each switch');
	cutover_poll("its rows are on $side", sub { $on->($node) > $n + 50 }, node => $old);
}

$in = "end\n";
$client->finish;
my $out = slurp_file($file);
my @promised = $out =~ /^kept (\d+)$/mg;
is($new->safe_psql('postgres', q{SELECT count(*), max(n) FROM written WHERE via = 'jdbc'}),
	@promised . "|$promised[-1]", 'each row that it was promised is there, once');
diag('JDBC came back after ms: ' . join ', ', $out =~ /^back (\d+)$/mg);

done_testing();
