# CutoverTest::Load - clients that write all the time and remember what was promised to them
#
#   CutoverTest::Load->create($old);           # makes the table load_journal
#   my $load = CutoverTest::Load->new($old, clients => 3,
#       sql => sub { my ($client, $n) = @_; return "UPDATE ..." });
#                                              # follow => [$old, $new]: write to whichever is master
#   ...
#   my $result = $load->stop;                  # { committed, failed, sqlstates => {..} }
#   $load->check($new, 'name');                # no commit that was acknowledged is missing
#
# Each transaction is BEGIN, the statements, an entry (client, n) in the table
# load_journal, COMMIT.  A client writes n down in a file only when the server
# has answered COMMIT, so the file is what the outside world was promised.  A
# client that loses its connection connects again and goes on.
package CutoverTest::Load;

use strict;
use warnings;

use IPC::Open3;
use POSIX ();
use PostgreSQL::Test::Utils;
use Symbol 'gensym';
use Test::More;
use Time::HiRes qw(usleep);

sub create
{
	my ($class, $node, %opt) = @_;
	$node->safe_psql($opt{db} // 'postgres',
		'CREATE TABLE load_journal (client int, n int, PRIMARY KEY (client, n))');
	return;
}

sub new
{
	my ($class, $node, %opt) = @_;
	my $self = bless {
		node => $node,
		db => $opt{db} // 'postgres',
		# or a sub: number of a client -> where it connects to
		connstr => $opt{connstr} ? $opt{connstr} : $opt{follow} ? _any_master(@{ $opt{follow} }, $opt{db} // 'postgres') : $node->connstr($opt{db} // 'postgres'),
		follow => defined $opt{follow},  # [nodes]: write to the one that is master, and move on when it refuses
		sql => $opt{sql},
		pause => $opt{pause} // 0,       # microseconds between transactions
		first => $opt{first} // 0,       # so that a second load has numbers of its own
		leave_on => $opt{leave_on},      # SQLSTATEs after which a client connects anew
		dir => PostgreSQL::Test::Utils::tempdir(),
		pids => [],
	}, $class;
	my $clients = $opt{clients} // 2;

	for my $client (1 .. $clients)
	{
		my $pid = fork() // die "fork: $!";
		if ($pid == 0)
		{
			eval { $self->_run($client); 1 } or warn $@;
			# no END blocks: they would stop the servers of the test
			POSIX::_exit(0);
		}
		push @{ $self->{pids} }, $pid;
	}
	return $self;
}

# Libpq finds the server that sessions can write to.
sub _any_master
{
	my $db = pop;
	my @nodes = @_;
	return 'host=' . join(',', map { $_->host } @nodes) . ' port=' . join(',', map { $_->port } @nodes)
	  . " dbname=$db target_session_attrs=read-write";
}

# One client: its life is this function.
sub _run
{
	my ($self, $client) = @_;
	my $stop = 0;
	local $SIG{TERM} = sub { $stop = 1 };
	local $SIG{PIPE} = 'IGNORE';
	local $SIG{INT} = 'IGNORE';
	srand($client * 7919);

	open my $journal, '>>', "$self->{dir}/journal.$client" or die $!;
	open my $failures, '>>', "$self->{dir}/failures.$client" or die $!;
	$_->autoflush(1) for $journal, $failures;

	my ($psql, $in, $out, $n) = (undef, undef, undef, $self->{first});
	while (!$stop)
	{
		if (!$psql)
		{
			$psql = open3($in, $out, undef, 'psql', '-XAt', '-v', 'VERBOSITY=sqlstate',
				'-d', ref $self->{connstr} ? $self->{connstr}->($client) : $self->{connstr});
			$in->autoflush(1);
		}
		$n++;
		my $sql = $self->{sql} ? $self->{sql}->($client, $n) : '';
		$sql =~ s/;?\s*$/;/ if $sql ne '';
		print {$in} "BEGIN;\n$sql\nINSERT INTO load_journal VALUES ($client, $n);\nCOMMIT;\n\\echo end\n";

		my ($committed, $sqlstate, $ended) = (0, undef, 0);
		while (defined(my $line = <$out>))
		{
			chomp $line;
			if ($line eq 'end') { $ended = 1; last }
			$committed = 1 if $line eq 'COMMIT';
			$sqlstate //= $1 if $line =~ /(?:ERROR|FATAL):  ([0-9A-Z]{5})/;
		}
		if ($committed) { print {$journal} "$n\n" }
		else { print {$failures} "$n " . ($sqlstate // 'connection') . "\n" }
		my $leave = $ended && defined $sqlstate && $self->{leave_on} && $sqlstate =~ $self->{leave_on};
		if (!$ended || $leave || $self->{follow} && ($sqlstate // '') eq '25006')
		{
			# psql ends when the server is gone, and is ended when it is not the master; try again soon
			close $in; close $out; waitpid($psql, 0);
			$psql = undef;
			usleep($ended ? 5_000 : 100_000);
		}
		usleep($self->{pause}) if $self->{pause};
	}
	if ($psql) { close $in; close $out; waitpid($psql, 0) }
	return;
}

# Transactions acknowledged so far.
sub committed
{
	my ($self) = @_;
	my $total = 0;

	for my $file (glob "$self->{dir}/journal.*")
	{
		$total += () = slurp_file($file) =~ /\n/g;
	}
	return $total;
}

# Let the clients end their transactions; returns how it went.
sub stop
{
	my ($self) = @_;
	my %result = (committed => 0, failed => 0, sqlstates => {});

	kill 'TERM', @{ $self->{pids} };
	waitpid($_, 0) for @{ $self->{pids} };
	$self->{pids} = [];
	$result{committed} = $self->committed;
	for my $file (glob "$self->{dir}/failures.*")
	{
		for my $line (split /\n/, slurp_file($file))
		{
			$result{failed}++;
			$result{sqlstates}{ (split / /, $line)[1] }++;
		}
	}
	return \%result;
}

# A test: every acknowledged transaction is in load_journal of this node.
# %opt: lost => [clients that did not ask for the disk and may have lost some]
sub check
{
	my ($self, $node, $name, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %there = map { $_ => 1 } split /\n/,
	  $node->safe_psql($opt{db} // $self->{db}, q{SELECT client || ' ' || n FROM load_journal});
	my @missing;

	for my $file (glob "$self->{dir}/journal.*")
	{
		my ($client) = $file =~ /(\d+)$/;
		next if grep { $_ == $client } @{ $opt{lost} // [] };
		push @missing, grep { !$there{$_} } map { "$client $_" } split /\n/, slurp_file($file);
	}
	is(scalar(@missing), 0, $name // 'no acknowledged commit is missing')
	  or diag('missing (client n): ' . join(', ', @missing[ 0 .. ($#missing > 9 ? 9 : $#missing) ]));
	return !@missing;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	if (@{ $self->{pids} })
	{
		kill 'TERM', @{ $self->{pids} };
		waitpid($_, 0) for @{ $self->{pids} };
	}
	return;
}

1;
