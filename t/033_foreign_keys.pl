# A role that owns the tables on new but can't keep foreign keys from acting
# there: what they would do by themselves must not take rows along that old still has.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE, v text);
CREATE TABLE top (id int PRIMARY KEY, low int);
CREATE TABLE low (id int PRIMARY KEY, top int REFERENCES top DEFERRABLE);
INSERT INTO tree VALUES (1, NULL, 'a'), (2, 1, 'b'), (3, 2, 'c'), (4, 3, 'd'), (5, 4, 'e');
INSERT INTO top VALUES (1);
INSERT INTO low VALUES (1, 1);
SQL
cutover_copy_schema($old, $new);
$new->safe_psql('postgres', <<'SQL');
CREATE ROLE mover LOGIN;
GRANT CREATE ON DATABASE postgres TO mover;
GRANT ALL ON SCHEMA public TO mover;
ALTER TABLE tree OWNER TO mover;
ALTER TABLE top OWNER TO mover;
ALTER TABLE low OWNER TO mover;
SQL
cutover_add_target($old, $new, user => 'mover');
$old->safe_psql('postgres', q{SELECT cutover_add_tables(); SELECT cutover_start()});
ok(cutover_wait_synced($old), 'copied');
is($new->safe_psql('postgres', q{SELECT string_agg(conname, ' ' ORDER BY conname) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace}),
	'low_top_fkey', 'a foreign key that acts stays off, one that checks does not');

$old->safe_psql('postgres', 'UPDATE tree SET id = 10 WHERE id = 1');
cutover_wait($old);
cutover_same_rows($old, $new, 'tree', 'descendants of a row whose key changed');

# checks to come of what the same step wrote before
$old->safe_psql('postgres', 'BEGIN; INSERT INTO top VALUES (2); INSERT INTO low VALUES (2, 2); COMMIT; TRUNCATE top, low; INSERT INTO top VALUES (3)');
cutover_wait($old);
cutover_same_tables($old, $new, 'top', 'low');

$old->safe_psql('postgres', 'SELECT cutover_cancel()');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace}), '2', 'it is back in the end');

# foreign keys of new that rows of old violate: they keep the copy from its end, but nobody from giving up
$old->safe_psql('postgres', 'CREATE TABLE lone (id int PRIMARY KEY, other int); CREATE TABLE lone_part (id int PRIMARY KEY, other int) PARTITION BY RANGE (id);'
	. ' CREATE TABLE lone_1 PARTITION OF lone_part DEFAULT; INSERT INTO lone VALUES (1, 1); INSERT INTO lone_part VALUES (1, 1)');
$new->safe_psql('postgres', 'SET ROLE mover; CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE lone (id int PRIMARY KEY, other int REFERENCES other);'
	. ' CREATE TABLE lone_part (id int PRIMARY KEY, other int REFERENCES other) PARTITION BY RANGE (id); CREATE TABLE lone_1 PARTITION OF lone_part DEFAULT');
cutover_add_target($old, $new, user => 'mover');
$old->safe_psql('postgres', q{SELECT cutover_add_table('lone'); SELECT cutover_add_table('lone_part'); SELECT cutover_start()});
ok(cutover_poll('the rows violate them', sub {
	return $old->safe_psql('postgres', q{SELECT count(*) FROM cutover.tables WHERE phase_reason ~ 'violates foreign key'}) eq '2' }, node => $old), 'and that is said');
$old->safe_psql('postgres', q{SELECT cutover_remove_table('lone')});
is($new->safe_psql('postgres', q{SELECT convalidated FROM pg_constraint WHERE conrelid = 'lone'::regclass AND contype = 'f'}), 'f', 'a table is removed');
$old->safe_psql('postgres', 'SELECT cutover_cancel()');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), '0', 'the migration given up');

done_testing();
