# Actions run in a worker: their errors, notices and results reach the caller,
# what they committed stays, a caller that goes takes its worker along; and what
# set-up and actions do when the other side is away or not ours.
use strict;
use warnings;

use CutoverTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(conf => "max_worker_processes = 12\n");

sub old_is
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($old->safe_psql('postgres', $sql), $expected, $name);
}

# Start a statement and leave it running.
sub in_background
{
	my ($sql) = @_;
	my %bg = (out => '', err => '');

	$bg{run} = IPC::Run::start(
		[ 'psql', '-XqAt', '-v', 'VERBOSITY=verbose', '-d', $old->connstr('postgres'), '-c', $sql ],
		'>', \$bg{out}, '2>', \$bg{err});
	return \%bg;
}

# ---- procedures with several transactions

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE step (n int);
CREATE TABLE account (id int PRIMARY KEY, a text);
CREATE INDEX account_a ON account (a);
INSERT INTO account SELECT i, 'a' || i FROM generate_series(1, 5000) i;
CREATE PROCEDURE steps(n int, fail_at int DEFAULT -1, sleep_at int DEFAULT -1) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..n LOOP
		INSERT INTO public.step VALUES (i);
		RAISE NOTICE 'step %', i;
		IF i = sleep_at THEN
			PERFORM pg_catalog.pg_sleep(600);
		ELSIF i = fail_at THEN
			RAISE EXCEPTION 'failed at %', i USING ERRCODE = '55006', DETAIL = 'the detail', HINT = 'the hint';
		END IF;
		COMMIT;
	END LOOP;
END
$$;
CREATE PROCEDURE result(INOUT t text) LANGUAGE plpgsql AS $$
BEGIN
	COMMIT;
	t := t || ' of ' || cutover._actor();
END
$$;
SQL

my ($rc, $out, $err) = $old->psql('postgres', q{SELECT cutover._action('f', 'CALL public.steps(3)', '{}')});
like($err, qr/NOTICE:  step 1\n.*NOTICE:  step 3/s, 'notices reach the caller');
old_is('SELECT count(*) FROM step', 3, 'every step is committed');

my $error = cutover_error($old, q{SELECT cutover._action('f', 'CALL public.steps(5, fail_at => 3)', '{}')});
is("@{$error}{qw(sqlstate message detail hint)}", '55006 failed at 3 the detail the hint', 'an error keeps its parts');
old_is('SELECT count(*) FROM step', 5, 'what was committed before it stays, the rest does not');
old_is(q{SELECT cutover._action('f', 'CALL public.result($1)', '{work}')}, 'work of postgres', 'a result comes back');
old_is(q{SELECT cutover._action('f', 'CALL public.result($1)', '{NULL}') IS NULL}, 't', 'NULL too');
old_is(q{SELECT pg_catalog.length(cutover._action('f', 'SELECT $1', ARRAY[pg_catalog.repeat('x', 5000000)]))}, 5000000,
	'nothing is too long');

# ---- a caller that goes takes its worker along

sub worker_gone
{
	my ($name) = @_;

	ok(cutover_poll($name, sub {
		$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover action'}) eq '0'
	}), $name);
}
sub worker_there
{
	my ($name) = @_;

	cutover_poll($name, sub {
		$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover action' AND wait_event = 'PgSleep'}) eq '1'
	});
}
my $sleeper = q{SELECT cutover._action('f', 'CALL public.steps(2, sleep_at => 2)', '{}')};

$old->safe_psql('postgres', 'TRUNCATE step');
$error = cutover_error($old, "SET statement_timeout = 500; $sleeper");
is($error->{sqlstate}, '57014', 'a time-out of the caller');
worker_gone('ends the worker');

for my $how (qw(cancel terminate))
{
	my $bg = in_background($sleeper);
	worker_there("$how: it runs");
	$old->safe_psql('postgres', qq{SELECT pg_${how}_backend(pid) FROM pg_stat_activity WHERE query LIKE '%cutover._action%' AND backend_type = 'client backend' AND pid <> pg_backend_pid()});
	$bg->{run}->finish;
	like($bg->{err}, $how eq 'cancel' ? qr/57014/ : qr/57P01/, "$how of the caller");
	worker_gone("$how ends the worker");
}
{
	my $bg = in_background($sleeper);
	worker_there('it runs');
	$old->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'cutover action'});
	$bg->{run}->finish;
	like($bg->{err}, qr/ERROR:  57P01/, 'a worker that is ended ends the call, not the session');
}
old_is('SELECT count(*) FROM step', 4, 'each had committed its first step');

# ---- many at once, and more than there are slots for

{
	my @bg = map { in_background(q{SELECT cutover._action('f', 'CALL public.steps(20)', '{}')}) } 1 .. 20;
	my ($done, $full, $other) = (0, 0, 0);

	$_->{run}->finish for @bg;
	for my $bg (@bg)
	{
		if ($bg->{err} =~ /53400/) { $full++ }
		elsif ($bg->{err} !~ /ERROR/) { $done++ }
		else { $other++; diag($bg->{err}) }
	}
	is($other, 0, "20 at once: $done done, $full found no slot");
	old_is('SELECT count(*) FROM step', 4 + 20 * $done, 'and what is done is done wholly');
}
{
	my @bg = map { in_background($sleeper) } 1 .. 11;

	cutover_poll('all slots are taken', sub {
		$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover action'}) >= 10
	});
	cutover_add_target($old, $new);
	cutover_copy_schema($old, $new);
	$old->safe_psql('postgres', q{SELECT cutover_add_table('account')});
	my $full = cutover_error($old, q{SELECT cutover_start()});
	$full = cutover_error($old, q{SELECT cutover_start()}) if $full->{sqlstate} eq '00000';
	is($full->{sqlstate}, '53400', 'no free slot is an error');
	like($full->{hint}, qr/max_worker_processes/, 'that says which setting');
	$old->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'cutover action'});
	$_->{run}->finish for @bg;
}

# ---- new is away

$old->safe_psql('postgres', 'SELECT cutover_start()') if $old->safe_psql('postgres', 'SELECT state FROM cutover.status') eq 'idle';
ok(cutover_wait_synced($old), 'synced');
my $conninfo = $new->connstr('postgres');
$new->stop('immediate');
cutover_error_is($old, qq{SELECT cutover_set_target('new', \$\$$conninfo\$\$)}, '08001', 'set_target says that it can not connect');
$old->safe_psql('postgres', q{INSERT INTO account VALUES (-100, 'not there yet')});
$error = cutover_error($old, q{SELECT cutover_wait('300 ms')});
is($error->{sqlstate}, '55P03', 'a wait gives up');
like($error->{detail}, qr/waits for/, 'and says what for');
$old->safe_psql('postgres', 'SELECT cutover_pause()');
$old->safe_psql('postgres', 'SELECT cutover_resume()');
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_cancel()');
is($rc, 0, 'a migration can be given up without new');
like($err, qr/WARNING:  new cannot be reached/, 'which is said');
old_is(q{SELECT (SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover') + (SELECT count(*) FROM cutover._target)
	+ (SELECT count(*) FROM pg_class WHERE relname ~ '^_queue_\d') + (SELECT count(*) FROM pg_foreign_server)}, 0, 'nothing is left on old');
$new->start;
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), 1, 'our schema is left on new');
$error = cutover_error($old, qq{SELECT cutover_add_target('again', \$\$$conninfo\$\$)});
is($error->{sqlstate}, '55006', 'which keeps another migration away');
$new->safe_psql('postgres', 'SELECT cutover.abandon()');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), 0, 'until its owner takes it off');

# ---- a copy of old leaves new alone

$new->safe_psql('postgres', 'TRUNCATE account');
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('account')});
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_wait_synced($old), 'synced again');
# what a copy under another system identifier sees
$old->safe_psql('postgres', 'SELECT cutover_pause()');
$old->safe_psql('postgres', 'UPDATE cutover._target SET system_identifier = system_identifier + 1');
cutover_error_is($old, 'SELECT cutover_resume()', '55000', 'a copy does not resume', like => qr/cutover_adopt/);
cutover_error_is($old, q{SELECT cutover_resync('account')}, '55000', 'nor copy');
$old->safe_psql('postgres', 'SELECT cutover_adopt()');
$old->safe_psql('postgres', 'SELECT cutover_resume()');
$old->safe_psql('postgres', q{INSERT INTO account VALUES (-1, 'adopted')});
ok(cutover_wait($old), 'until it is told that it is the real one');
$old->safe_psql('postgres', 'SELECT cutover_pause()');
$old->safe_psql('postgres', 'UPDATE cutover._target SET system_identifier = system_identifier + 1');
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_cancel()');
is($rc, 0, 'a copy can be given up');
is($new->safe_psql('postgres', q{SELECT count(*) FROM cutover.migration}), 1, 'and new does not notice');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE indrelid = 'account'::regclass}), 2, 'indexes are there');

done_testing();
