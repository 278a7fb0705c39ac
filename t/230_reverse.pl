# While new is the master old follows: every type and shape of table, mappings
# turned round, filters, errors, and back again.
use strict;
use warnings;

use CutoverTest;
use CutoverTest::Zoo;
use Test::More;

my ($old, $new) = cutover_pair();

sub on_old { return $old->safe_psql('postgres', "SET default_transaction_read_only = off; $_[0]") }
sub on_new { return $new->safe_psql('postgres', "SET default_transaction_read_only = off; $_[0]") }
sub set_mode { return $old->safe_psql('postgres', "SELECT from_mode, to_mode FROM cutover_set_mode('$_[0]', force => true, timeout => '60 s')") }

zoo_create($old);
on_old(<<'SQL');
CREATE TABLE renamed (id int PRIMARY KEY, v text, big int, at timestamp);
CREATE TABLE computed (code text, price numeric(10,2), note text, kept text DEFAULT 'only here', PRIMARY KEY (code));
CREATE TABLE lossy (id int PRIMARY KEY, price numeric);
CREATE TABLE filtered (id int PRIMARY KEY, region text, v text);
CREATE TABLE hidden (id int PRIMARY KEY, v text, hide boolean NOT NULL DEFAULT false);
CREATE TABLE checked (id int PRIMARY KEY, v int CHECK (v < 100), u int UNIQUE);
CREATE TABLE counted (id int PRIMARY KEY, v text);
CREATE TABLE log (what text);
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log VALUES (TG_OP); RETURN NULL; END';
CREATE TABLE base (id int PRIMARY KEY, v text);
CREATE TABLE heir (w text, PRIMARY KEY (id)) INHERITS (base);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE);
INSERT INTO renamed SELECT g, 'v' || g, g, '2024-01-01' FROM generate_series(1, 10) g;
INSERT INTO computed SELECT 'c' || g, g + 0.5, 'n' FROM generate_series(1, 10) g;
INSERT INTO lossy SELECT g, g FROM generate_series(1, 10) g;
INSERT INTO filtered SELECT g, CASE WHEN g % 2 = 0 THEN 'eu' ELSE 'us' END, 'v' FROM generate_series(1, 10) g;
INSERT INTO hidden SELECT g, 'v', g > 5 FROM generate_series(1, 10) g;
INSERT INTO checked SELECT g, g, g FROM generate_series(1, 10) g;
INSERT INTO counted SELECT g, 'v' FROM generate_series(1, 10) g;
INSERT INTO base VALUES (1, 'a'), (2, 'b');
INSERT INTO heir VALUES (1, 'h', 'w'), (2, 'h', 'w');
INSERT INTO parent SELECT generate_series(1, 5);
INSERT INTO child SELECT g, 1 + g % 5 FROM generate_series(1, 20) g;
SQL
cutover_copy_schema($old, $new);
on_old('CREATE TRIGGER count_it AFTER INSERT OR UPDATE OR DELETE ON counted FOR EACH ROW EXECUTE FUNCTION count_it()');
on_new(<<'SQL');
DROP TABLE renamed, computed, lossy;
CREATE TABLE "Renamed" ("Id" bigint PRIMARY KEY, label varchar, big bigint, at timestamptz);
CREATE TABLE computed (sku text PRIMARY KEY, cents bigint, note text, extra text);
CREATE TABLE lossy (id int PRIMARY KEY, whole int);
ALTER TABLE filtered DROP COLUMN region;
ALTER TABLE filtered ADD zone text;
ALTER TABLE hidden DROP COLUMN hide;
ALTER TABLE checked DROP CONSTRAINT checked_v_check;
ALTER TABLE checked DROP CONSTRAINT checked_u_key;
SQL
cutover_add_target($old, $new);
on_old(<<'SQL');
SELECT cutover_add_table('renamed', new_table => '"Renamed"', columns => '{"Id": "id", "label": "v::varchar", "big": "big::bigint", "at": "at"}');
SELECT cutover_add_table('computed', columns => '{"sku": "upper(code)", "cents": "(price * 100)::bigint", "note": "note"}',
	reverse_columns => '{"code": "lower(sku)", "price": "cents / 100.0"}');
SELECT cutover_add_table('lossy', columns => '{"id": "id", "whole": "price::int"}');
SELECT cutover_add_table('filtered', columns => '{"id": "id", "zone": "region", "v": "v"}', row_filter => $$region = 'eu'$$);
SELECT cutover_add_table('hidden', columns => '{"id": "id", "v": "v"}', row_filter => 'NOT hide');
SELECT cutover_add_tables(except_tables => ARRAY['log'::regclass]);
SELECT cutover_start();
SQL
ok(cutover_wait_synced($old), 'all tables are copied');
on_old('DELETE FROM log');

# the sessions that write on new have settings that would spoil a value sent as they print it
for my $setting ("datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'",
	'extra_float_digits = -10', "timezone = 'Asia/Kolkata'", "lc_monetary = 'C.UTF-8'")
{
	$new->safe_psql('postgres', "ALTER DATABASE postgres SET $setting");
}

is(set_mode('new_only'), 'old_only|new_only', 'new is the master');
is($old->safe_psql('postgres', 'SELECT old_table::regclass, reverse_closed FROM cutover._table WHERE reverse_closed IS NOT NULL'),
	'lossy|column price of old goes to new by an expression that can not be turned back', 'the way back is open, but for one table');
cutover_wait($old);
is($old->safe_psql('postgres', q{SELECT direction, state, queued_changes FROM cutover.replication ORDER BY 1}), "forward|idle|0\nreverse|streaming|0", 'old follows');

for my $round (1 .. zoo_rounds())
{
	zoo_change($new, $round);
	cutover_wait($old);
	zoo_check($old, $new, "after round $round on new");
}

# mappings
on_new(<<'SQL');
UPDATE "Renamed" SET label = 'new', big = 77, at = '2024-06-01 12:00+00' WHERE "Id" = 1; DELETE FROM "Renamed" WHERE "Id" = 2;
INSERT INTO "Renamed" VALUES (20, 'x', 20, NULL); UPDATE "Renamed" SET "Id" = 30 WHERE "Id" = 3;
UPDATE computed SET cents = 999 WHERE sku = 'C1'; DELETE FROM computed WHERE sku = 'C2'; UPDATE computed SET sku = 'D3' WHERE sku = 'C3';
INSERT INTO computed VALUES ('N1', 12345, 'came', 'nobody on old'); UPDATE computed SET note = NULL WHERE sku = 'C4';
UPDATE filtered SET v = 'new' WHERE id = 2; DELETE FROM filtered WHERE id = 4; INSERT INTO filtered VALUES (20, 'came', 'eu');
UPDATE hidden SET v = 'new' WHERE id = 1; DELETE FROM hidden WHERE id = 2; INSERT INTO hidden VALUES (20, 'came');
UPDATE base SET v = 'all'; DELETE FROM ONLY base WHERE id = 1; INSERT INTO heir VALUES (3, 'n', 'n');
UPDATE counted SET v = 'w'; DELETE FROM counted WHERE id > 5;
DELETE FROM parent WHERE id = 1; INSERT INTO parent VALUES (9); INSERT INTO child VALUES (90, 9);
SQL
cutover_wait($old);
is($old->safe_psql('postgres', 'SELECT * FROM renamed WHERE id IN (1, 2, 3, 20, 30) ORDER BY id'),
	"1|new|77|2024-06-01 12:00:00\n20|x|20|\n30|v3|3|2024-01-01 00:00:00", 'names and casts are turned round');
is($old->safe_psql('postgres', q{SELECT * FROM computed WHERE code IN ('c1', 'c2', 'c3', 'd3', 'c4', 'n1') ORDER BY code}),
	"c1|9.99|n|only here\nc4|4.50||only here\nd3|3.50|n|only here\nn1|123.45|came|only here", 'expressions, too, also of the key; what new does not have stays');
is($old->safe_psql('postgres', 'SELECT * FROM filtered ORDER BY id'),
	"1|us|v\n2|eu|new\n3|us|v\n5|us|v\n6|eu|v\n7|us|v\n8|eu|v\n9|us|v\n10|eu|v\n20|eu|came", 'rows that the filter leaves out stay');
is($old->safe_psql('postgres', 'SELECT * FROM hidden WHERE id IN (1, 2, 20) OR hide ORDER BY id'),
	"1|new|f\n6|v|t\n7|v|t\n8|v|t\n9|v|t\n10|v|t\n20|came|f", 'also where new can not tell');
cutover_same_tables($old, $new, 'base', 'heir', 'counted', 'parent', 'child');
is($old->safe_psql('postgres', 'SELECT count(*) FROM log'), '0', 'triggers of old stay silent');

# truncate: whole, filtered, partitions by themselves, together with rows that come after
on_new(<<'SQL');
TRUNCATE two_unique; INSERT INTO two_unique VALUES (1, 1, 1);
BEGIN; INSERT INTO unique_key VALUES (77, 'gone'); TRUNCATE unique_key; INSERT INTO unique_key VALUES (78, 'stays'); COMMIT;
TRUNCATE no_key; INSERT INTO no_key VALUES (1, 'after', 1), (1, 'after', 1);
TRUNCATE filtered; INSERT INTO filtered VALUES (22, 'v', 'eu');
TRUNCATE parted_b; INSERT INTO parted VALUES (60, 'b', 'again');
TRUNCATE parent, child;
SQL
cutover_wait($old);
cutover_same_tables($old, $new, 'two_unique', 'unique_key', 'no_key', 'parted', 'parent', 'child');
is($old->safe_psql('postgres', 'SELECT id FROM filtered ORDER BY id'), "1\n3\n5\n7\n9\n22", 'a filtered table keeps the rest');
on_new('TRUNCATE parted; TRUNCATE base');
on_new(q{INSERT INTO parted VALUES (1, 'a', 'x')});
# a reader of old is not kept waiting, nor waited for
my $reader = $old->background_psql('postgres');
$reader->query_safe('BEGIN; SELECT count(*) FROM wide');
on_new('TRUNCATE wide');
cutover_wait($old);
cutover_same_tables($old, $new, 'parted', 'base', 'heir', 'wide');
$reader->quit;

# values that rows hand on to each other, also from one window to the next
on_new(q{BEGIN; UPDATE checked SET u = u + 100; UPDATE checked SET u = 11 - id; COMMIT});
cutover_wait($old);
cutover_same_tables($old, $new, 'checked');

# what old refuses
on_new(q{UPDATE checked SET v = 1000 WHERE id = 1; UPDATE checked SET v = 50 WHERE id = 2; INSERT INTO filtered VALUES (3, 'theirs', 'eu'), (40, 'v', 'us')});
on_new(q{DELETE FROM filtered WHERE id = 3});
on_new(q{INSERT INTO filtered VALUES (5, 'theirs', 'eu')});
cutover_wait($old);
is($old->safe_psql('postgres', 'SELECT direction, table_name, key, sqlstate FROM cutover.apply_error ORDER BY table_name::text, key'),
	qq(reverse|checked|{"id": "1"}|23514\nreverse|filtered|{"id": "40"}|23514\nreverse|filtered|{"id": "5"}|23514), 'is listed');
is($old->safe_psql('postgres', 'SELECT v FROM checked WHERE id = 2'), '50', 'the rest went through');
is($old->safe_psql('postgres', 'SELECT v FROM filtered WHERE id IN (3, 5)'), "v\nv", 'a row that the filter leaves out stays whatever new has under its key');
on_old('ALTER TABLE checked DROP CONSTRAINT checked_v_check');
is(on_old('SELECT cutover_retry_errors(ARRAY[$$checked$$::regclass])'), '1', 'tried again');
cutover_wait($old);
cutover_same_tables($old, $new, 'checked');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '2', 'and settled');
on_new(q{DELETE FROM filtered WHERE id = 40});
cutover_wait($old);
is(on_old('SELECT cutover_skip_errors()'), '1', 'one is none any more, the other is skipped');

# a lock on old shows
my $locker = $old->background_psql('postgres');
$locker->query_safe('BEGIN; SELECT * FROM checked WHERE id = 3 FOR UPDATE');
on_new('UPDATE checked SET v = 33 WHERE id = 3');
cutover_poll('the view says whose lock it is',
	sub { $old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status') =~ /lock on old, held by process \d+ \(role/ }, node => $old);
$locker->query_safe('COMMIT');
$locker->quit;
cutover_wait($old);
cutover_same_tables($old, $new, 'checked');

# tables that change by hand, old first
on_old('ALTER TABLE counted ADD extra int DEFAULT 1');
on_new(q{UPDATE counted SET v = 'between' WHERE id = 1});
on_new('ALTER TABLE counted ADD extra int DEFAULT 1');
on_new('UPDATE counted SET extra = 2 WHERE id < 4');
on_new('ALTER TABLE no_key_geometry ADD more int; ALTER TABLE unique_key RENAME b TO c');
on_new(q{INSERT INTO no_key_geometry (more) VALUES (1); INSERT INTO unique_key VALUES (1000, 'c')});
cutover_wait($old);
cutover_same_tables($old, $new, 'counted');
is($old->safe_psql('postgres', q{SELECT old_table::regclass, reverse_closed FROM cutover._table WHERE old_table::regclass::text IN ('no_key_geometry', 'unique_key') ORDER BY old_table::regclass::text}),
	"no_key_geometry|it got another column on new, which is not captured of a table that is followed by whole rows\n" .
	"unique_key|its rows can not be read on new: column \"b\" does not exist", 'what can not be followed is closed, and says why');

# many rows: several steps of one window
$old->append_conf('postgresql.conf', 'cutover.apply_batch_rows = 100');
$old->reload;
on_new(q{BEGIN; INSERT INTO counted SELECT g, 'many' FROM generate_series(1000, 6000) g; INSERT INTO no_key SELECT g % 10, 'many', 0 FROM generate_series(1, 3000) g;
	DELETE FROM counted WHERE id % 3 = 0; COMMIT});
cutover_wait($old);
cutover_same_tables($old, $new, 'counted', 'no_key');

# back, and on
is(set_mode('old_only'), 'new_only|old_only', 'old is the master again');
on_old(q{UPDATE counted SET v = 'old'; INSERT INTO checked VALUES (500, 1, 500); DELETE FROM parted});
cutover_wait($old);
cutover_same_tables($old, $new, 'counted', 'checked', 'parted', 'no_key');
is($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'streaming', 'nothing is lost');
is(set_mode('new_only'), 'old_only|new_only', 'and new once more');
on_new(q{UPDATE counted SET v = 'new'; INSERT INTO checked VALUES (600, 1, 600)});
cutover_wait($old);
cutover_same_tables($old, $new, 'counted', 'checked');

done_testing();
