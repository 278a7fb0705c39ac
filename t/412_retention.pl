# Changes stay in the queue for cutover.change_retention after new has them, and for
# comparisons under way; but cutover.queue_limit goes before.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair(old => { conf => <<'CONF' });
cutover.queue_segment_size = 1MB
cutover.change_retention = 1h
CONF

$old->safe_psql('postgres', q{CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE FUNCTION noise(n int) RETURNS text LANGUAGE sql AS $$
		SELECT string_agg(md5(random()::text), '') FROM generate_series(1, n) $$});
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('t'); SELECT cutover_start()});
cutover_wait_synced($old);

my $next = 0;
# about a megabyte that does not compress
sub fill
{
	$next++;
	$old->safe_psql('postgres', "INSERT INTO t SELECT $next * 100 + i, noise(640) FROM generate_series(1, 80) i");
	cutover_wait($old);
}
sub queued { return $old->safe_psql('postgres', 'SELECT sum(n) FROM (SELECT n FROM cutover._queue_1_0 UNION ALL SELECT n FROM cutover._queue_1_1 UNION ALL SELECT n FROM cutover._queue_1_2) q') }
sub rotations { return $old->safe_psql('postgres', 'SELECT rotations FROM cutover._target') }
sub conf { my ($line) = @_; $old->append_conf('postgresql.conf', $line); $old->reload }
sub kept { return $old->safe_psql('postgres', q{SELECT changes_kept_since IS NOT NULL FROM cutover.replication}) }

fill() for 1 .. 8;
is(queued(), 640, 'all changes of an hour are kept');
is($old->safe_psql('postgres', q{SELECT changes_kept_since = started_at FROM cutover.replication, cutover._target}), 't', 'since the start');
cmp_ok(rotations(), '<=', 2, 'no segment was emptied');
cmp_ok($old->safe_psql('postgres', 'SELECT count(*) FROM cutover._queue_moment'), '>', 0, 'moments are noted');

# the time goes by
$old->safe_psql('postgres', q{UPDATE cutover._queue_moment SET at = at - interval '2 h'});
my $before = rotations();
cutover_poll('segments are emptied when their time is over', sub { fill(); rotations() >= $before + 2 }, node => $old);
cmp_ok(queued(), '<', 80 * $next, 'and their changes are gone');
is($old->safe_psql('postgres', q{SELECT changes_kept_since > started_at FROM cutover.replication, cutover._target}), 't', 'which can be seen');
# what is said to be there is there
is($old->safe_psql('postgres', q{
	SELECT count(*) FROM (SELECT xid FROM cutover._queue_1_0 UNION ALL SELECT xid FROM cutover._queue_1_1 UNION ALL SELECT xid FROM cutover._queue_1_2) q,
		cutover._rotation r WHERE NOT pg_visible_in_snapshot(q.xid, r.kept_snapshot)}) > 0, 1, 'later ones are there');

# without retention, a comparison under way keeps what it needs
conf('cutover.change_retention = 0');
my $session = $old->background_psql('postgres');
$session->query_safe(q{INSERT INTO cutover._compare_pin (target_id, pid, snapshot) VALUES (1, pg_backend_pid(), pg_current_snapshot())});
my $pinned = queued();
fill() for 1 .. 5;
$before = rotations();
fill() for 1 .. 3;
cmp_ok(rotations() - $before, '<=', 1, 'the segment with its changes stays');
is($old->safe_psql('postgres', q{
	SELECT sum(n) FROM (SELECT xid, n FROM cutover._queue_1_0 UNION ALL SELECT xid, n FROM cutover._queue_1_1 UNION ALL SELECT xid, n FROM cutover._queue_1_2) q,
		cutover._compare_pin p WHERE NOT pg_visible_in_snapshot(q.xid, p.snapshot)}), 640, 'with all changes since then');
$session->quit;
cutover_poll('its end lets them go', sub { fill(); rotations() >= $before + 3 }, node => $old);
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover._compare_pin'), 0, 'and forgets it');

# the limit comes first
conf("cutover.change_retention = 1h\ncutover.queue_limit = 32MB\n");
$before = rotations();
cutover_poll('retention gives way to the limit', sub { fill(); rotations() >= $before + 2 }, node => $old);
is($old->safe_psql('postgres', q{SELECT phase FROM cutover.tables}), 'synced', 'before a change is lost');
my ($size) = $old->safe_psql('postgres', 'SELECT queue_bytes FROM cutover.replication');
cmp_ok($size, '<', 32 * 1024 * 1024, 'the queue stays below it');
cutover_same_rows($old, $new, 't', 'new has all');

done_testing();
