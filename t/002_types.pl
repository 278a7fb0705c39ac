# Every built-in type with the values at its edges, types of our own, and tables
# of every shape: copied, then changed.  Compared by their text on both sides.
use strict;
use warnings;

use CutoverTest;
use CutoverTest::Zoo;
use Test::More;

my ($old, $new) = cutover_pair();

zoo_create($old);
cutover_copy_schema($old, $new);
# columns in another order, and wider ones, are no obstacle
$new->safe_psql('postgres', <<'SQL');
DROP TABLE two_unique;
CREATE TABLE two_unique (b bigint UNIQUE DEFERRABLE INITIALLY DEFERRED, id bigint PRIMARY KEY, a int UNIQUE);
SQL

cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');
is( $old->safe_psql('postgres', q{SELECT check_name, object, message FROM cutover_preflight() WHERE level = 'error'}),
	'', 'nothing speaks against the start');
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_wait_synced($old), 'all tables are copied');

# the sessions that write have settings that would spoil a value sent as they print it
for my $setting ("datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'",
	'extra_float_digits = -10', "timezone = 'Asia/Kolkata'", "lc_monetary = 'C.UTF-8'")
{
	$old->safe_psql('postgres', "ALTER DATABASE postgres SET $setting");
}

sub check
{
	my ($when) = @_;
	zoo_check($old, $new, $when, 'two_unique');
	cutover_same_rows($old, $new, 'two_unique', "two_unique $when", columns => 't.id, t.a, t.b');
}

check('as copied');
for my $round (1 .. zoo_rounds())
{
	zoo_change($old, $round);
	cutover_wait($old);
	check("after round $round");
}
is($old->safe_psql('postgres', 'SELECT table_name, key, sqlstate, message FROM cutover.apply_error'), '', 'new refused nothing');

done_testing();
