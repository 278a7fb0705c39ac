#!/usr/bin/perl
# pgbouncer-listener.pl - lets PgBouncer hold its clients while the master changes.
#
#   pgbouncer-listener.pl --old 'host=... dbname=shop' --admin 'host=... port=6432 dbname=pgbouncer' \
#       --database app --ini pgbouncer.ini --old-address 'host=... dbname=shop' --new-address 'host=... dbname=shop'
#
# It listens to the channel "cutover" on old, and takes part in every switch:
#   switch_begin    PAUSE: transactions under way end, clients wait; then we say so
#                   to the switch, which closes the gate only now
#   set_mode        the entry of --database in --ini gets the address of the new
#                   master; RELOAD, RESUME
#   switch_undone   RESUME
# A switch that does not end within --hold seconds (15) is no reason to keep
# clients waiting: then we ask old who is master and let them go.
use strict;
use warnings;

use DBI;
use Getopt::Long;
use JSON::PP qw(decode_json);
use Time::HiRes qw(time);

my %opt = (hold => 15, name => 'pgbouncer', user => 'postgres');
GetOptions(\%opt, 'old=s', 'admin=s', 'database=s', 'ini=s', 'old-address=s', 'new-address=s',
	'hold=f', 'name=s', 'user=s', 'target=s', 'verbose') or exit 2;
for my $needed (qw(old admin database ini old-address new-address))
{
	die "--$needed is missing\n" unless defined $opt{$needed};
}
$| = 1;

sub say_so { printf "%.3f %s\n", time, join ' ', @_ if $opt{verbose}; return }

sub connect_to
{
	my ($conninfo) = @_;
	(my $dsn = "dbi:Pg:$conninfo") =~ s/\s+/;/g;
	return DBI->connect($dsn, $opt{user}, $ENV{PGPASSWORD} // '',
		{ RaiseError => 1, PrintError => 0, AutoCommit => 1, pg_server_prepare => 0 });
}

my ($old, $admin, $held_until);

# The side that accepts writes, as old knows it.
sub master
{
	my ($mode) = $old->selectrow_array('SELECT cutover_mode(?)', undef, $opt{target});
	return $mode eq 'new_only' ? 'new' : 'old';
}

# The entry of the database, at the side that is master.  Written aside and
# renamed: PgBouncer never reads half of it.
sub point_to
{
	my ($side) = @_;
	open my $in, '<', $opt{ini} or die "$opt{ini}: $!\n";
	my @lines = <$in>;
	close $in;
	s/^\s*\Q$opt{database}\E\s*=.*/$opt{database} = $opt{"$side-address"}/ for @lines;
	open my $out, '>', "$opt{ini}.new" or die "$opt{ini}.new: $!\n";
	print $out @lines;
	close $out or die "$opt{ini}.new: $!\n";
	rename "$opt{ini}.new", $opt{ini} or die "$opt{ini}: $!\n";
	$admin->do('RELOAD');
	say_so("$opt{database} is at $side");
	return;
}

sub let_go
{
	return unless $held_until;
	$admin->do("RESUME $opt{database}");
	$held_until = undef;
	say_so('resumed');
	return;
}

# What the switch says.
sub handle
{
	my ($payload) = @_;
	my $event = decode_json($payload);
	my $detail = $event->{detail} // {};

	return if defined $opt{target} && ($event->{target} // '') ne $opt{target};
	if ($event->{kind} eq 'switch_begin')
	{
		$admin->do("PAUSE $opt{database}");
		$held_until = time + $opt{hold};
		say_so('paused');
		$old->do('SELECT cutover_confirm_pause(?, ?, ?)', undef, $opt{name}, $detail->{epoch}, $opt{target});
	}
	elsif ($event->{kind} eq 'set_mode')
	{
		point_to($detail->{to_mode} eq 'new_only' ? 'new' : 'old');
		let_go();
	}
	elsif ($event->{kind} eq 'switch_undone')
	{
		let_go();
	}
	return;
}

sub listen_to_old
{
	$old = connect_to($opt{old});
	$old->do('SET default_transaction_read_only = off');	# as old is after a switch
	$old->do('LISTEN cutover');
	$old->do('SELECT cutover_register_pooler(?, ?)', undef, $opt{name}, $opt{target});
	point_to(master());		# it may have changed while we were away
	let_go();
	print "ready\n";
	return;
}

$SIG{TERM} = $SIG{INT} = sub { eval { let_go() }; exit 0 };
$admin = connect_to($opt{admin});
while (1)
{
	my $lived = eval {
		listen_to_old() unless $old;
		while (my $notice = $old->pg_notifies)
		{
			handle($notice->[2]);
		}
		if ($held_until && time > $held_until)
		{
			point_to(master());
			let_go();
		}
		my $ready = '';
		vec($ready, $old->{pg_socket}, 1) = 1;
		select($ready, undef, undef, $held_until ? 0.1 : 1);
		1;
	};
	next if $lived;
	print STDERR "$@";
	$old = undef;
	# old is away: whoever waits may as well hear it from the server
	eval { let_go(); 1 } or $admin = eval { connect_to($opt{admin}) };
	select(undef, undef, undef, 0.5);
}
