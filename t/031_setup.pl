# Setting up and giving up while things move: a start that is interrupted, tables
# that leave or a migration that ends during the copy, rows that new refuses, two
# targets, names that need quotes, mapped columns, an extension owned by another superuser.
use strict;
use warnings;

use CutoverTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair();

sub sql
{
	my ($sql, $node) = @_;
	return ($node // $old)->safe_psql('postgres', $sql);
}
sub nothing_left
{
	my ($what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(sql(q{SELECT (SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover') + (SELECT count(*) FROM pg_foreign_server)
		+ (SELECT count(*) FROM pg_class WHERE relname ~ '^_queue_\d') + (SELECT count(*) FROM cutover._target)}),
		0, "$what: nothing is left on old");
	is(sql(q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}, $new), 0, "$what: nor on new");
}

sql(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, a text, b int);
CREATE INDEX big_b ON big (b);
CREATE TABLE ref (id int PRIMARY KEY, big int REFERENCES big);
INSERT INTO big SELECT i, repeat(md5(i::text), 5), i % 100 FROM generate_series(1, 200000) i;
INSERT INTO ref SELECT i, i FROM generate_series(1, 1000) i;
SQL
cutover_copy_schema($old, $new);
my $schema_old = cutover_dump_schema($old);
my $schema_new = cutover_dump_schema($new);

# ---- a start that is interrupted can be called again, or given up

cutover_add_target($old, $new);
sql('SELECT cutover_add_tables()');
sql(q{BEGIN; UPDATE ref SET big = 1 WHERE id = 1; PREPARE TRANSACTION 'writer'});
my $error = cutover_error($old, q{SET statement_timeout = '2 s'; SELECT cutover_start()});
is($error->{sqlstate}, '57014', 'a start is interrupted');
for my $call (q{cutover_pause()}, q{cutover_resume()}, q{cutover_wait('1 s')}, q{cutover_run_ddl('SELECT 1')}, q{cutover_resync('big')})
{
	cutover_error_is($old, "SELECT $call", '55000', "then no $call", like => qr/cutover_start\(\) again/);
}
cutover_error_is($old, q{SELECT cutover_drop_target('new')}, '55006', 'nor is the target dropped');
sql(q{ROLLBACK PREPARED 'writer'});
sql('SELECT cutover_start()');
ok(cutover_wait_synced($old), 'but started again');
cutover_same_tables($old, $new, qw(big ref));
sql('SELECT cutover_cancel()');
nothing_left('cancel');
is(cutover_dump_schema($old), $schema_old, 'the schema of old is as it was');
is(cutover_dump_schema($new), $schema_new, 'that of new too');

# ---- the migration ends during the copy

sql('TRUNCATE big, ref', $new);
cutover_add_target($old, $new);
sql('SELECT cutover_add_tables()');
sql('SELECT cutover_start()');
cutover_poll('the copy runs', sub { sql(q{SELECT count(*) FROM cutover.tables WHERE phase <> 'waiting'}) > 0 });
my (undef, undef, $err) = $old->psql('postgres', 'SELECT cutover_cancel()');
nothing_left('cancel during the copy');
is(sql(q{SELECT string_agg(indexrelid::regclass::text, ' ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid IN ('big'::regclass, 'ref'::regclass)}, $new),
	'big_b big_pkey ref_pkey', 'indexes of new are there');
is(sql(q{SELECT count(*) FROM pg_constraint WHERE conname = 'ref_big_fkey'}, $new), 1, 'and the foreign key')
  or diag($err);

# ---- a table leaves during the copy

sql('TRUNCATE big, ref', $new);
sql('ALTER TABLE ref DROP CONSTRAINT ref_big_fkey; ALTER TABLE ref ADD CONSTRAINT ref_big_fkey FOREIGN KEY (big) REFERENCES big', $new);
cutover_add_target($old, $new);
sql('SELECT cutover_add_tables()');
sql('SELECT cutover_start()');
cutover_poll('the copy runs', sub { sql(q{SELECT count(*) FROM cutover.tables WHERE phase <> 'waiting'}) > 0 });
$old->psql('postgres', q{SELECT cutover_remove_table('ref')});
sql('INSERT INTO ref VALUES (5000, 1)');
ok(cutover_wait_synced($old), 'the other goes on');
cutover_same_tables($old, $new, 'big');
is(sql('SELECT count(*) FROM ref WHERE id = 5000', $new), 0, 'the one that left is not followed');
is(sql(q{SELECT string_agg(table_name::text, ' ') FROM cutover.tables}), 'big', 'one table is under migration');
$old->psql('postgres', 'SELECT cutover_cancel()');
nothing_left('cancel');

# ---- mapped columns, odd names, rows that new refuses

sql(<<'SQL');
CREATE SCHEMA "odd ""s";
CREATE TABLE "odd ""s"."t 'x'" ("a b" int PRIMARY KEY, "Ünï" text, "select" int);
CREATE TABLE goods (id int PRIMARY KEY, code text, price numeric(10, 2), gone boolean DEFAULT false);
CREATE FUNCTION shout(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)';
INSERT INTO goods SELECT i, 'c' || i, i * 1.5, i % 10 = 0 FROM generate_series(1, 100) i;
INSERT INTO "odd ""s"."t 'x'" VALUES (1, 'ü', 3);
SQL
sql(<<'SQL', $new);
CREATE SCHEMA "odd ""s";
CREATE TABLE "odd ""s"."t 'x'" ("a b" int PRIMARY KEY, "Ünï" text, "select" int);
CREATE TABLE wares (id bigint PRIMARY KEY, sku text, cents bigint CHECK (cents < 1000000), at timestamptz DEFAULT now());
SQL
cutover_add_target($old, $new);
sql(q{SELECT cutover_add_table('goods', 'wares', '{"sku": "shout(code)", "cents": "(price * 100)::bigint"}', row_filter => 'NOT gone')});
sql(q{SELECT cutover_add_tables('odd "s')});
sql('SELECT cutover_start()');
ok(cutover_wait_synced($old), 'synced');
sql(<<'SQL');
INSERT INTO goods VALUES (1000, 'late', 10, false), (1001, 'hidden', 10, true);
UPDATE goods SET gone = true WHERE id = 1;
UPDATE goods SET gone = false WHERE id = 10;
UPDATE goods SET id = 2000 WHERE id = 2;
UPDATE "odd ""s"."t 'x'" SET "a b" = 2, "select" = 9;
SQL
cutover_wait($old);
is( sql(q{SELECT count(*) || ' ' || sum(cents) || ' ' || string_agg(sku, ',' ORDER BY id) FILTER (WHERE id IN (1, 2, 10, 1000, 1001, 2000)) FROM wares}, $new),
	'91 677350 C10,LATE,C2', 'rows are mapped and filtered');
is(sql(q{SELECT * FROM "odd ""s"."t 'x'"}, $new), '2|ü|9', 'names need no luck');

sql('UPDATE goods SET price = 50000 WHERE id = 3; INSERT INTO goods VALUES (3000, NULL, 60000); UPDATE goods SET price = 7 WHERE id = 4');
cutover_wait($old);
is(sql(q{SELECT string_agg(key->>'id' || ' ' || sqlstate, ', ' ORDER BY (key->>'id')::int) FROM cutover.apply_error}),
	'3 23514, 3000 23514', 'what new refuses is kept by key');
is(sql('SELECT cents FROM wares WHERE id = 4', $new), 700, 'the rest goes on');
is(sql('SELECT cutover_retry_errors()'), 2, 'two are tried again');
cutover_wait($old);
is(sql('SELECT count(*) FROM cutover.apply_error'), 2, 'in vain');
sql('ALTER TABLE wares DROP CONSTRAINT wares_cents_check', $new);
is(sql(q{SELECT cutover_retry_errors('{goods}')}), 2, 'when new is mended they are tried once more');
cutover_wait($old);
is(sql('SELECT count(*) FROM cutover.apply_error'), 0, 'with success');
is(sql('SELECT string_agg(cents::text, $$,$$ ORDER BY id) FROM wares WHERE id IN (3, 3000)', $new), '5000000,6000000', 'and the rows are there');
sql('ALTER TABLE wares ADD CHECK (cents < 100000000)', $new);
sql('UPDATE goods SET price = 5000000 WHERE id = 5');
cutover_wait($old);
is(sql(q{SELECT cutover_skip_errors('{goods}')}), 1, 'one is left as it is');
is(sql('SELECT cents FROM wares WHERE id = 5', $new), 750, 'so new has the row before');
is(sql('SELECT count(*) FROM cutover.apply_error'), 0, 'and it is no error any more');

# ---- a second target

sql('CREATE DATABASE second', $new);
cutover_add_target($old, $new, name => 'second', new_db => 'second');
$new->safe_psql('second', 'CREATE TABLE other (id int PRIMARY KEY)');
sql('CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)');
sql(q{SELECT cutover_add_table('other', target => 'second')});
cutover_error_is($old, q{SELECT cutover_add_table('goods', target => 'second')}, '55006', 'a table has one target');
cutover_error_is($old, 'SELECT cutover_wait()', '22023', 'which must be named now', like => qr/new, second/);
sql(q{SELECT cutover_start('second')});
sql(q{SELECT cutover_wait('1 min', 'second'); INSERT INTO other VALUES (2)});
sql(q{SELECT cutover_wait('1 min', 'second')});
is($new->safe_psql('second', 'SELECT count(*) FROM other'), 2, 'it is followed');
sql(q{SELECT cutover_cancel('second')});
sql('INSERT INTO goods VALUES (4000, $$still$$, 1)');
cutover_wait($old);
is(sql('SELECT sku FROM wares WHERE id = 4000', $new), 'STILL', 'the end of one is not that of the other');
sql('SELECT cutover_cancel()');
nothing_left('cancel of both');

# ---- the extension belongs to another superuser

sql('DROP EXTENSION cutover CASCADE; CREATE ROLE other_super SUPERUSER LOGIN');
sql('SET ROLE other_super; CREATE EXTENSION cutover');
sql('CREATE TABLE mine (id int PRIMARY KEY); INSERT INTO mine VALUES (1)');
sql('CREATE TABLE mine (id int PRIMARY KEY)', $new);
cutover_add_target($old, $new);
sql(q{SELECT cutover_add_table('mine')});
sql('SELECT cutover_start()');
ok(cutover_wait_synced($old), 'workers use the address of the owner');
sql('SELECT cutover_cancel()');
nothing_left('cancel');

done_testing();
