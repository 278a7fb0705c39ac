# Behind PgBouncer nobody sees an error: demo/pgbouncer-listener.pl holds the
# clients while the master changes, and sends them on to the right side.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(conf => "cutover.protect_new = on\n");
my $dir = PostgreSQL::Test::Utils::tempdir_short();
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $listener = "demo/pgbouncer-listener.pl";
my ($bouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/sbin';

$old->safe_psql('postgres', 'CREATE TABLE sale (client int, n bigserial PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())');
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

my %address = map { $_->[0] => sprintf 'host=%s port=%d dbname=postgres user=postgres', $_->[1]->host, $_->[1]->port } [ old => $old ], [ new => $new ];
append_to_file("$dir/bouncer.ini", <<INI);
[databases]
app = $address{old}
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $dir
auth_type = any
admin_users = postgres
pool_mode = transaction
logfile = $dir/bouncer.log
pidfile = $dir/bouncer.pid
INI
my @running = (IPC::Run::start([ $bouncer, '-q', "$dir/bouncer.ini" ], '>', "$dir/bouncer.out", '2>&1'));
cutover_poll('PgBouncer takes connections', sub { -S "$dir/.s.PGSQL.$port" });
push @running, IPC::Run::start(
	[
		$^X, $listener, '--old', $address{old}, '--admin', "host=$dir port=$port dbname=pgbouncer",
		'--database', 'app', '--ini', "$dir/bouncer.ini", '--old-address', $address{old}, '--new-address', $address{new}, '--verbose' ],
	'>', "$dir/listener.out", '2>&1');
cutover_poll('the listener is ready', sub { slurp_file("$dir/listener.out") =~ /^ready/m });

# the application: it knows the pooler only
append_to_file("$dir/sale.sql", "INSERT INTO sale (client) VALUES (:client_id);\n");
my ($out, $err) = ('', '');
my $application = IPC::Run::start(
	[ 'pgbench', '-n', '-c', 6, '-j', 2, '-R', 300, '-T', 3600, '-f', "$dir/sale.sql", '-l', "--log-prefix=$dir/sales", '-h', $dir, '-p', $port, 'app' ],
	'>', \$out, '2>', \$err);
my $sales = sub { $_[0]->safe_psql('postgres', 'SELECT count(*) FROM sale') };
cutover_poll('sales on old', sub { $sales->($old) > 20 });

for my $step ([ new_only => $new, 'new' ], [ dual_write => $old, 'old' ], [ new_only => $new, 'new' ], [ old_only => $old, 'old' ])
{
	my ($mode, $node, $side) = @$step;
	is($old->safe_psql('postgres', "SELECT to_mode FROM cutover_set_mode('$mode', force => true)"), $mode, "switched to $mode");
	my $n = $sales->($node);
	cutover_poll("sales go on on $side", sub { $sales->($node) > $n + 20 }, node => $old);
}

# a switch that is given up lets them go, too
my $writer = IPC::Run::start([ 'psql', '-XqAt', '-d', $old->connstr('postgres'), '-c', 'INSERT INTO sale (client) VALUES (-1); SELECT pg_sleep(600)' ], '>', "$dir/writer.out", '2>&1');
cutover_poll('a long transaction', sub { $old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND pid <> pg_backend_pid()}) > 0 });
cutover_error_is($old, q{SELECT cutover_set_mode('new_only', timeout => '2 s', force => true)}, '55P03', 'a long writer makes it give up');
my $n = $sales->($old);
cutover_poll('sales go on on old', sub { $sales->($old) > $n + 20 }, node => $old);
$writer->kill_kill;

$application->signal('INT');
$application->finish;
unlike($err, qr/ERROR|aborted/, 'no client saw an error') or diag($err);
# a line for each transaction that was told to have committed
my $done = () = join('', map { slurp_file($_) } glob "$dir/sales.*") =~ /\n/g;
cutover_wait($old);
cmp_ok($sales->($old), '>=', $done, 'all sales are there');
cmp_ok($done, '>', 100, "$done of them");
cutover_same_rows($old, $new, 'sale', 'on both sides');
diag(slurp_file("$dir/listener.out")) unless Test::More->builder->is_passing;
$_->kill_kill for @running;

done_testing();
