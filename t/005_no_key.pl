# Many rows of a large table without a key change, while new takes that table
# for empty: statistics that were taken before the copy committed say so.
# Without care every row is compared with every other, which takes minutes.
use strict;
use warnings;

use CutoverTest;
use Test::More;
use Time::HiRes 'time';

my ($old, $new) = cutover_pair();

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE heap (a int, b text, c interval) WITH (autovacuum_enabled = off);
INSERT INTO heap SELECT i, 'row ' || i, i * interval '1 s' FROM generate_series(1, 60000) i;
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_tables(); SELECT cutover_start()});
ok(cutover_wait_synced($old), 'the table is copied');
$new->safe_psql('postgres', q{SET allow_system_table_mods = on;
	UPDATE pg_class SET reltuples = 0, relpages = pg_relation_size(oid) / 8192 WHERE relname = 'heap'});

my $begun = time;
$old->safe_psql('postgres', q{DELETE FROM heap WHERE a % 2 = 0; UPDATE heap SET b = 'other' WHERE a % 3 = 0});
cutover_wait($old);
cmp_ok(time - $begun, '<', 30, sprintf('%.1f s for 50000 rows', time - $begun));
cutover_same_rows($old, $new, 'heap', 'rows are the same');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'new refused nothing');

done_testing();
