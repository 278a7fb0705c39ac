# Where other libraries have taken all the shared memory that a server keeps for
# those not preloaded, everything works, by polling; and our processes can still
# be told to end.  Without care for the interrupts that a failed allocation
# leaves switched off, neither the replicator nor a session ever ends.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my $old = cutover_node('old');
my $new = cutover_node('new');

$old->safe_psql('postgres', q{CREATE FUNCTION hog_shared_memory() RETURNS bigint LANGUAGE c AS 'hog_test'});
cmp_ok($old->safe_psql('postgres', 'SELECT hog_shared_memory()'), '>', 0, 'no shared memory is left');

$old->safe_psql('postgres', 'CREATE DATABASE shop');
$old->safe_psql('shop', <<'SQL');
CREATE EXTENSION cutover;
CREATE TABLE goods (id int PRIMARY KEY, name text);
INSERT INTO goods SELECT g, 'name ' || g FROM generate_series(1, 1000) g;
SQL
cutover_copy_schema($old, $new, db => 'shop', new_db => 'postgres');
cutover_add_target($old, $new, db => 'shop');
$old->safe_psql('shop', 'SELECT cutover_add_tables()');
$old->safe_psql('shop', 'SELECT cutover_start()');
ok(cutover_wait_synced($old, db => 'shop'), 'tables are copied');

$old->safe_psql('shop', q{UPDATE goods SET name = 'changed' WHERE id <= 10; DELETE FROM goods WHERE id > 990});
cutover_poll(
	'the changes',
	sub { $new->safe_psql('postgres', q{SELECT count(*) || ' ' || count(*) FILTER (WHERE name = 'changed') FROM goods}) eq '990 10' },
	node => $old, db => 'shop');
pass('changes arrive');

is($old->safe_psql('shop', q{SELECT state, pid > 0, lag IS NULL, coalesce(waiting_for, '') FROM cutover.replication}),
	'streaming|t|t|', 'views see the replicator, and do not claim to know more');
is($old->safe_psql('shop', q{SELECT coalesce(waiting_for, '') FROM cutover.status}), '', 'nothing is said to be missing');

# a session in which the allocation failed
my $session = $old->background_psql('shop');
my $pid = $session->query_safe('SELECT pg_backend_pid() FROM cutover.status');
$old->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
cutover_poll('the end of the session',
	sub { $old->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") eq '0' });
pass('the session can be ended');

$old->safe_psql('postgres', 'DROP DATABASE shop WITH (FORCE)');
pass('the database can be dropped, replicator and all');
$old->stop('fast');
pass('the server stops');

done_testing();
