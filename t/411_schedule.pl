# Comparisons in the background: they find and repair what somebody damages under load, come back after crashes and
# restarts, rest while the target is paused, say why they wait or fail, and end when they should.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();

$old->safe_psql('postgres', q{
	CREATE TABLE a (id int PRIMARY KEY, u int UNIQUE, v text);
	CREATE TABLE b (x int, y text);
	INSERT INTO a SELECT i, i, 'v' || i FROM generate_series(1, 5000) i;
	INSERT INTO b SELECT i % 50, 'y' || i % 50 FROM generate_series(1, 500) i});
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_tables()});
# a schedule may come before the start
$old->safe_psql('postgres', q{SELECT cutover_schedule_compare('1 s', 'full', compensate => true)});
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.compare_schedule'), qr/cutover_start/, 'a schedule waits for the start');
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_wait_synced($old), 'copied');

sub schedule { my ($column) = @_; return $old->safe_psql('postgres', "SELECT $column FROM cutover.compare_schedule") }
sub passes { my $n = schedule('passes'); return $n eq '' ? 0 : $n }
# Passes that began after now.
sub more_passes
{
	my ($what, $n) = @_;
	my $until = passes() + ($n // 2);
	return ok(cutover_poll($what, sub { passes() >= $until }, node => $old), $what);
}
sub damage { my ($sql) = @_; $new->safe_psql('postgres', "SET session_replication_role = replica; $sql") }

my $load = cutover_load($old, clients => 2, pause => 2000, sql => sub {
	my ($client, $n) = @_;
	return "UPDATE a SET v = 'w$n' WHERE id = @{[1001 + $n % 1000]}; INSERT INTO b VALUES (100 + $n % 7, 'load');"
	  . "DELETE FROM b WHERE ctid = (SELECT ctid FROM b WHERE x = 100 + @{[($n + 3) % 7]} LIMIT 1)" });
more_passes('passes are made');
is($old->safe_psql('postgres', 'SELECT sum(missing + extra + different) FROM cutover.compare_history WHERE state = $$done$$'), '0', 'nothing is found where nothing is');

damage(q{UPDATE a SET v = 'damaged' WHERE id <= 10; DELETE FROM a WHERE id BETWEEN 11 AND 20; INSERT INTO a VALUES (-1, -1, 'extra');
	DELETE FROM b WHERE x = 3; INSERT INTO b VALUES (7, 'y7')});
cutover_poll('all is found', sub {
	$old->safe_psql('postgres', q{SELECT sum(missing) = 20 AND sum(extra) = 2 AND sum(different) = 10
		FROM cutover.compare_history WHERE missing + extra + different > 0}) eq 't' }, node => $old);
more_passes('and repaired');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.divergence'), '0', 'nothing is open');
is($old->safe_psql('postgres', q{SELECT bool_and(clean_passes > 0) FROM cutover.tables}), 't', 'the passes since are clean');
is($old->safe_psql('postgres', q{SELECT sum(missing + extra + different) FROM cutover.compare_history}), '32', 'found once, and nothing else');

# it comes back
# passes are short: some attempts come too late for one
ok(cutover_poll('workers are killed', sub { cutover_crash($old, 'cutover (compare schedule|comparer)') }, node => $old), 'workers are killed in the midst');
more_passes('passes go on after a crash');
$old->restart;
more_passes('and after a restart');
is(schedule('failures'), '0', 'without a failure');

# paused
$old->safe_psql('postgres', 'SELECT cutover_pause()');
cutover_poll('it rests while paused', sub { !cutover_worker_pids($old, 'cutover (compare|comparer)') }, node => $old);
like(schedule('waiting_for'), qr/cutover_resume/, 'and says so');
$old->safe_psql('postgres', 'SELECT cutover_resume()');
more_passes('it goes on afterwards', 1);
$load->stop;

# why it waits
like($old->safe_psql('postgres', q{BEGIN; UPDATE cutover._table SET phase = 'copying'; SELECT cutover._compare_obstacle(target_id, 4) FROM cutover._target; ROLLBACK}),
	qr/synced/, 'a pass waits for a table');
like($old->safe_psql('postgres', q{SELECT cutover._compare_obstacle(target_id, -1) FROM cutover._target}), qr/less busy/, 'a pass waits for old to be less busy');
is($old->safe_psql('postgres', q{SELECT cutover._compare_obstacle(target_id, 4) FROM cutover._target}), '', 'or for nothing');

# a pass that fails
$new->safe_psql('postgres', 'ALTER TABLE b RENAME TO c');
cutover_poll('failures are counted', sub { schedule('failures') > 1 }, node => $old);
like(schedule('last_error'), qr/"?b"?/, 'with the reason');
$new->safe_psql('postgres', 'ALTER TABLE c RENAME TO b');
more_passes('it recovers', 1);
is(schedule('failures'), '0', 'and forgets them');

# the end
$old->safe_psql('postgres', 'SELECT cutover_unschedule_compare()');
cutover_poll('no worker is left', sub { !cutover_worker_pids($old, 'cutover (compare|comparer)') }, node => $old);
is(schedule('count(*)'), '0', 'nothing is scheduled');
$old->safe_psql('postgres', q{SELECT cutover_schedule_compare('1 s', 'full')});
more_passes('scheduled again', 1);
$old->safe_psql('postgres', 'SELECT cutover_cancel()');
cutover_poll('the end of the migration ends it', sub { !cutover_worker_pids($old, '^cutover') }, node => $old);
is(schedule('count(*)'), '0', 'with the schedule');

done_testing();
