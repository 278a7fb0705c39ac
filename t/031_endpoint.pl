# Connections to new when something goes wrong: no hang, the right SQLSTATE,
# and a reset that leaves a usable connection or says that it is gone.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;
use Time::HiRes qw(time);

my ($old, $new) = cutover_pair(old => { conf => 'cutover.network_timeout = 4' });

$old->safe_psql('postgres', q{LOAD 'cutover';
	CREATE FUNCTION endpoint_test(text, text) RETURNS text LANGUAGE c AS 'apply_test'});

my $conninfo = $new->connstr('postgres') =~ s/'/''/gr;

sub said
{
	my ($what, $timeout) = @_;
	$timeout //= 0;
	return $old->safe_psql('postgres', qq{LOAD 'cutover'; SET statement_timeout = '$timeout s';
		SELECT endpoint_test('$conninfo', \$x\$$what\$x\$)});
}

is(said('flood'), '300000300 bytes', 'both directions full at the same time');
is(said('many statements'), '3000', 'more statements than are kept prepared');
like(said('pipeline error'), qr/^22012 .*remote SQL command: SELECT 10.*; reset$/s, 'a failed statement in the pipeline');
like(said('pipeline syntax'), qr/^42601 .*SELEKT.*; reset$/s, 'a statement that can not be prepared');
like(said('copy error'), qr/^22P02 .*line 2.*; reset$/s, 'COPY of a bad value');
like(said('long copy error'), qr/^22P02 .*line 2.*; reset$/s, 'COPY that goes on after a bad value');
like(said('error in copy statement'), qr/^42P01 .*; reset$/s, 'COPY into nowhere');
like(said('not a copy'), qr/^XX000 .*; reset$/s, 'no COPY at all');
like(said('SELECT 1/0'), qr/^22012 .*; reset$/s, 'a failed statement');
like(said('SELECT pg_terminate_backend(pg_backend_pid())'), qr/^57P01 .*; unusable$/s, 'a session ended on new');

for my $what ('SELECT pg_catalog.pg_sleep(3600)', 'pipeline sleep', 'copy without end')
{
	my $start = time;
	like(said($what, 1), qr/^57014 .*; reset$/s, "cancelled: $what");
	cmp_ok(time - $start, '<', 10, '... at once');
	is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'endpoint_test' AND state = 'active'}),
		'0', '... and on new too');
}

my $start = time;
like(said('pipeline sleep'), qr/^08006 no answer from "new" for 4 s .*; unusable$/s, 'a silent server');
cmp_ok(time - $start, '<', 15, '... is given up in time');
cutover_poll('new notices that nobody waits', sub { $new->safe_psql('postgres',
	q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'endpoint_test'}) eq 't' });

for my $mode ('immediate', 'fast')
{
	for my $what ('SELECT pg_catalog.pg_sleep(3600)', 'pipeline sleep', 'copy without end')
	{
		my ($in, $out, $err) = ('', '', '');
		my $client = IPC::Run::start(
			[ 'psql', '-XqAt', '-d', $old->connstr('postgres'), '-c', q{LOAD 'cutover'},
				'-c', "SELECT endpoint_test('$conninfo', '$what')" ], '<', \$in, '>', \$out, '2>', \$err);

		cutover_poll('the statement runs', sub { $new->safe_psql('postgres',
			q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'endpoint_test' AND state = 'active'
				AND query ~ 'pg_sleep|COPY'}) });
		$new->stop($mode);
		$client->finish;
		like($out, qr/^(08006|57P01) .*; unusable$/s, "$mode shutdown of new: $what") or diag($err);
		$new->start;
	}
}

# what a conninfo may tell, and what not
for my $case ([ 'host=a password=very secret', 'secret' ], [ 'postgresql://u:secret@h:1:2/x y z', 'secret' ],
	[ "password='secret", 'secret' ], [ 'host=/nonexistent user=u password=secret', 'secret' ])
{
	my $error = cutover_error($old, "SELECT cutover._remote_check('" . ($case->[0] =~ s/'/''/gr) . "')");
	unlike($error->{all} =~ s/^LINE.*|^STATEMENT.*//mgr, qr/$case->[1]/, "no secret in: $error->{message}");
	like($error->{sqlstate}, qr/^(22023|08001)$/, "... $error->{sqlstate}");
}

done_testing();
