# CutoverTest::Proxy - a network between two servers that can fail
#
#   my $proxy = CutoverTest::Proxy->new($new);      # 127.0.0.1, a port of its own
#   cutover_add_target($old, $new, conninfo => $proxy->connstr('postgres'));
#   $proxy->stall;      # takes connections and bytes, hands nothing on, resets nothing
#   $proxy->resume;
#   $proxy->down;       # connections are reset, new ones refused
#   $proxy->up;
package CutoverTest::Proxy;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();
use Socket;
use Time::HiRes qw(usleep);

sub new
{
	my ($class, $node) = @_;
	my $self = bless { to => $node->host . '/.s.PGSQL.' . $node->port }, $class;

	$self->{port} = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1, ReuseAddr => 1)->sockport;
	$self->up;
	return $self;
}

sub connstr
{
	my ($self, $db) = @_;
	return "host=127.0.0.1 port=$self->{port} dbname=$db user=" . getpwuid($<) . ' connect_timeout=2 sslmode=disable gssencmode=disable';
}

sub up
{
	my ($self) = @_;
	my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $self->{port}, Listen => 50, ReuseAddr => 1)
	  // die "port $self->{port}: $!";
	my $pid = fork() // die "fork: $!";

	if ($pid == 0)
	{
		eval { _serve($listen, $self->{to}) };
		POSIX::_exit(0);
	}
	close $listen;
	$self->{pid} = $pid;
	return;
}

sub down
{
	my ($self) = @_;
	kill 'KILL', $self->{pid};
	waitpid($self->{pid}, 0);
	$self->{pid} = undef;
	return;
}

sub stall  { kill 'USR1', $_[0]->{pid}; return }
sub resume { kill 'USR2', $_[0]->{pid}; return }

# The process: its life is this function.
sub _serve
{
	my ($listen, $to) = @_;
	my $stalled = 0;
	my %peer;
	my $select = IO::Select->new($listen);

	$SIG{USR1} = sub { $stalled = 1 };
	$SIG{USR2} = sub { $stalled = 0 };
	$SIG{$_} = 'DEFAULT' for qw(TERM INT);
	$SIG{PIPE} = 'IGNORE';
	while (1)
	{
		if ($stalled) { usleep(20_000); next }
		for my $socket ($select->can_read(0.02))
		{
			if ($socket == $listen)
			{
				my $client = $listen->accept // next;
				my $server = IO::Socket::UNIX->new(Peer => $to);
				if (!$server) { close $client; next }
				($peer{$client}, $peer{$server}) = ($server, $client);
				$select->add($client, $server);
				next;
			}
			my $other = $peer{$socket} // next;
			my $n = sysread($socket, my $bytes, 65536);
			if (!$n)
			{
				$select->remove($socket, $other);
				delete @peer{ $socket, $other };
				close $socket;
				close $other;
				next;
			}
			while (length $bytes)
			{
				my $written = syswrite($other, $bytes);
				last unless defined $written;
				substr($bytes, 0, $written, '');
			}
		}
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	if ($self->{pid}) { kill 'KILL', $self->{pid}; waitpid($self->{pid}, 0) }
	return;
}

1;
