# The first copy in detail: what is taken off new comes back as it was, errors
# of one table stop only that one, a table begins anew where it must, and
# nothing that dies at any point costs or doubles a row.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair(conf => "max_worker_processes = 16\ncutover.copy_chunk_size = 1\nshared_preload_libraries = 'cutover'\n");

sub phase
{
	my ($table) = @_;
	return $old->safe_psql('postgres', "SELECT phase FROM cutover._table WHERE old_table = '$table'::regclass");
}

sub reason
{
	my ($table) = @_;
	return $old->safe_psql('postgres', "SELECT phase_reason FROM cutover._table WHERE old_table = '$table'::regclass");
}

sub wait_reason
{
	my ($table, $pattern, $name) = @_;
	ok(cutover_poll($name, sub { reason($table) =~ /$pattern/ }, node => $old), $name);
	return;
}

sub rate
{
	my ($rate) = @_;
	$old->safe_psql('postgres', "ALTER SYSTEM SET cutover.copy_max_rate = '$rate'; ");
	$old->safe_psql('postgres', 'SELECT pg_reload_conf()');
	return;
}

# ---- definitions

$old->safe_psql('postgres', <<'SQL');
CREATE SCHEMA "Odd;";
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL, email text, rank int,
	CONSTRAINT customer_email UNIQUE (email) DEFERRABLE INITIALLY DEFERRED,
	CONSTRAINT customer_rank UNIQUE (rank) INCLUDE (name));
COMMENT ON CONSTRAINT customer_rank ON customer IS 'it''s a rank';
COMMENT ON INDEX customer_rank IS 'its index';
CREATE TABLE purchase (id bigint PRIMARY KEY, customer_id int NOT NULL CONSTRAINT "fk ""1" REFERENCES customer ON DELETE CASCADE,
	parent bigint REFERENCES purchase DEFERRABLE, amount numeric(12, 2), at timestamptz, note text, data bytea, span int4range);
CREATE INDEX purchase_open ON purchase (at DESC NULLS LAST, lower(note)) INCLUDE (amount) WITH (fillfactor = 70) WHERE amount > 10;
ALTER INDEX purchase_open ALTER COLUMN 2 SET STATISTICS 55;
CREATE INDEX purchase_customer ON purchase (customer_id);
ALTER TABLE purchase CLUSTER ON purchase_customer;
COMMENT ON CONSTRAINT "fk ""1" ON purchase IS 'who';
CREATE TABLE booked (id int PRIMARY KEY, room int, during int4range, EXCLUDE USING gist (during WITH &&));
CREATE TABLE "Odd;"."T ""a" ("Key ;" int, "sel""ect" text COLLATE "C", "from" date[], PRIMARY KEY ("sel""ect", "Key ;"));
CREATE UNIQUE INDEX "I ""x" ON "Odd;"."T ""a" ("Key ;", ("from"[1]));
CREATE TABLE part (id int, d int, v text, PRIMARY KEY (id, d), UNIQUE (v, d)) PARTITION BY RANGE (d);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (50);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (50) TO (100) PARTITION BY LIST (d);
CREATE TABLE part_2a PARTITION OF part_2 DEFAULT;
CREATE INDEX part_v ON part (v);
CREATE INDEX part_1_only ON part_1 (v, id);
CREATE TABLE heap (a int, b text, c interval);
CREATE INDEX heap_a ON heap (a);
CREATE TABLE heap_part (a int, b text) PARTITION BY LIST (a);
CREATE TABLE heap_part_0 PARTITION OF heap_part FOR VALUES IN (0);
CREATE TABLE heap_part_1 PARTITION OF heap_part FOR VALUES IN (1);
CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
CREATE TABLE nothing (id int PRIMARY KEY);
CREATE TABLE only_key (id int PRIMARY KEY);
SQL
$old->safe_psql('postgres', 'CREATE TABLE wide (' . join(', ', map { "c$_ int" } 1 .. 1600) . ', PRIMARY KEY (c1600))');
$old->safe_psql('postgres', <<'SQL');
INSERT INTO customer SELECT i, 'name ' || i, nullif('mail ' || i, 'mail 7'), i FROM generate_series(1, 20000) i;
INSERT INTO purchase SELECT i, 1 + i % 20000, nullif(i / 2, 0), i / 7.0, '2024-01-01'::timestamptz + i * interval '1 min',
	CASE WHEN i % 5 = 0 THEN E'tab\t nl\n cr\r \\ \\N \\. \b\f\v' WHEN i % 5 = 1 THEN '' WHEN i % 5 > 2 THEN repeat('x', i % 90) END,
	decode(md5(i::text), 'hex'), int4range(i, i + 3) FROM generate_series(1, 60000) i;
INSERT INTO booked SELECT i, i % 7, int4range(i, i + 1) FROM generate_series(1, 3000) i;
INSERT INTO "Odd;"."T ""a" SELECT i, chr(65 + i % 26) || E'\\"' || i % 50, ARRAY[date '2020-01-01' + i, NULL] FROM generate_series(1, 40000) i;
INSERT INTO part SELECT i, i % 100, 'v ' || i FROM generate_series(1, 60000) i;
INSERT INTO heap SELECT i % 20000, repeat('h', 60), i * interval '1 min' FROM generate_series(1, 60000) i;
INSERT INTO heap_part SELECT i % 2, repeat('p', i % 100) FROM generate_series(1, 60000) i;
INSERT INTO numbered (a) SELECT generate_series(1, 3000);
INSERT INTO only_key SELECT generate_series(1, 100000);
INSERT INTO wide (c1, c1600) SELECT i, i FROM generate_series(1, 300) i;
ANALYZE;
SQL
cutover_copy_schema($old, $new);
my $definitions = cutover_dump_schema($new);
my @tables = ('customer', 'purchase', 'booked', '"Odd;"."T ""a"', 'part', 'heap', 'heap_part', 'numbered', 'nothing', 'only_key', 'wide');

sub definitions_now
{
	my $now = cutover_dump_schema($new);
	$now =~ s/^(CREATE SCHEMA cutover.*?)(?=^CREATE SCHEMA)//ms;
	return $now;
}

cutover_add_target($old, $new);
$old->safe_psql('postgres', qq{SELECT cutover_add_tables(); SELECT cutover_add_tables('Odd;')});
rate('3MB');
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_poll('indexes are off', sub {
		$new->safe_psql('postgres', q{SELECT count(*) FROM cutover.deferred WHERE kind = 'foreign_key'}) == 2
	}, node => $old), 'foreign keys are off while rows come');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace}), '0', 'all of them');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE indrelid = 'purchase'::regclass}), '1', 'and all indexes but that of the key');

# copiers and sessions of new die at any point
for my $round (1 .. 6)
{
	$new->psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cutover copier%' ORDER BY random() LIMIT 2});
	cutover_crash($old, 'cutover copier') if $round % 3 == 0;
	if ($round == 4) { $new->stop('immediate'); $new->start }
	select(undef, undef, undef, 0.4);
}
rate('0');
ok(cutover_wait_synced($old), 'the copy comes to its end');
cutover_same_rows($old, $new, $_, "rows of $_") for @tables;
is($new->safe_psql('postgres', 'SELECT count(*) FROM cutover.deferred'), '0', 'nothing is off any more');
{
	my ($before, $after) = map { [ sort grep { /INDEX|CONSTRAINT|COMMENT|CLUSTER|STATISTICS/ } split /\n/ ] } $definitions, cutover_dump_schema($new);
	@$after = grep { !/cutover/ } @$after;
	@$before = grep { !/cutover/ } @$before;
	my %there = map { $_ => 1 } @$after;
	is_deeply([ grep { !$there{$_} } @$before ], [], 'every index and constraint is back as it was');
	is(scalar @$after - scalar @$before, $new->safe_psql('postgres', q{SELECT 0}), 'and no other') or diag join "\n", grep { my $l = $_; !grep { $_ eq $l } @$before } @$after;
}
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE NOT indisvalid}), '0', 'none is invalid');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_constraint WHERE NOT convalidated}), '0', 'all constraints are validated');

# ---- resync of a table that others refer to, while it is in use

CutoverTest::Load->create($old);
my $load = cutover_load($old, clients => 2, pause => 1000, sql => sub {
		my ($client, $n) = @_;
		my $id = 1 + $client + 4 * int(rand(4990));
		return "UPDATE customer SET name = 'x$n' WHERE id = $id" if $n % 3;
		return 'INSERT INTO purchase (id, customer_id) VALUES (' . (1000000 * $client + $n) . ", $id)";
	});
rate('1MB');
$old->safe_psql('postgres', q{SELECT cutover_resync('customer'); SELECT cutover_resync('heap_part')}) for 1;
ok(cutover_poll('it is copied', sub { phase('customer') eq 'copying' }, node => $old), 'a table is copied afresh');
$old->safe_psql('postgres', q{SELECT cutover_resync('customer')});
rate('0');
ok(cutover_wait_synced($old), 'though a second resync came in the middle');
$load->stop;
cutover_wait($old);
cutover_same_rows($old, $new, $_, "rows of $_ after resync") for 'customer', 'purchase', 'heap_part';
is($new->safe_psql('postgres', 'SELECT count(*) FROM pg_constraint WHERE contype = $$f$$ AND convalidated AND connamespace = $$public$$::regnamespace'),
	'2', 'foreign keys are back, those of other tables too');

# ---- the table changes under the copy

rate('500kB');
$old->safe_psql('postgres', q{SELECT cutover_resync('heap')});
ok(cutover_poll('some chunks', sub { $old->safe_psql('postgres', q{SELECT count(*) FROM cutover._chunk c JOIN cutover._table t USING (table_id)
	WHERE t.old_table = 'heap'::regclass AND c.state = 'done'}) > 0 }, node => $old), 'a table without a key is half copied');
$old->safe_psql('postgres', 'DELETE FROM heap WHERE a % 2 = 0');
$old->safe_psql('postgres', 'VACUUM FULL heap');
rate('0');
ok(cutover_wait_synced($old), 'and rewritten meanwhile');
cutover_wait($old);
cutover_same_rows($old, $new, 'heap', 'its rows are right');

rate('500kB');
$old->safe_psql('postgres', q{SELECT cutover_resync('only_key')});
ok(cutover_poll('some chunks', sub { $old->safe_psql('postgres', q{SELECT count(*) FROM cutover._chunk c JOIN cutover._table t USING (table_id)
	WHERE t.old_table = 'only_key'::regclass AND c.state = 'done'}) > 0 }, node => $old), 'another is half copied');
$old->safe_psql('postgres', 'TRUNCATE only_key; INSERT INTO only_key SELECT generate_series(50, 70000)');
rate('0');
ok(cutover_wait_synced($old), 'and truncated');
cutover_wait($old);
cutover_same_rows($old, $new, 'only_key', 'its rows are right');

# ---- errors of one table

$old->safe_psql('postgres', q{CREATE TABLE rejected (id int PRIMARY KEY, v int); INSERT INTO rejected SELECT i, i FROM generate_series(1, 1000) i});
$old->safe_psql('postgres', q{CREATE TABLE fine (id int PRIMARY KEY, v int); INSERT INTO fine SELECT i, i FROM generate_series(1, 1000) i;
	CREATE INDEX fine_v ON fine (v)});
$new->safe_psql('postgres', q{CREATE TABLE rejected (id int PRIMARY KEY, v int, CONSTRAINT small CHECK (v < 900));
	CREATE TABLE fine (id int PRIMARY KEY, v int); CREATE INDEX fine_v ON fine (v)});
$old->safe_psql('postgres', q{SELECT cutover_add_table('rejected'); SELECT cutover_add_table('fine')});
ok(cutover_wait_phase($old, 'synced', tables => ['fine']), 'a table added later is copied');
wait_reason('rejected', 'violates check constraint "small"', 'another shows why new rejects it');
$old->safe_psql('postgres', 'UPDATE rejected SET v = v + 1; UPDATE fine SET v = v + 1');
ok(cutover_poll('changes of the other', sub { cutover_digest($old, 'fine') eq cutover_digest($new, 'fine') }, node => $old),
	'changes of other tables are not held up by it');
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status'), qr/violates check constraint/, 'so does the status');
$new->safe_psql('postgres', 'ALTER TABLE rejected DROP CONSTRAINT small');
ok(cutover_wait_synced($old), 'it goes on by itself once new is mended');
cutover_same_rows($old, $new, $_, "rows of $_") for 'rejected', 'fine';
is(reason('rejected'), '', 'and the reason is gone');

# duplicates for a unique index that comes back
$old->safe_psql('postgres', q{CREATE TABLE dup (id int PRIMARY KEY, v int); INSERT INTO dup SELECT i, i / 2 FROM generate_series(1, 1000) i});
$new->safe_psql('postgres', q{CREATE TABLE dup (id int PRIMARY KEY, v int UNIQUE)});
$old->safe_psql('postgres', q{SELECT cutover_add_table('dup')});
wait_reason('dup', 'could not create unique index', 'a unique index that new alone has fails visibly');
is($new->safe_psql('postgres', q{SELECT count(*) FROM cutover.deferred}), '1', 'and is remembered');
$old->safe_psql('postgres', 'UPDATE dup SET v = id');
ok(cutover_wait_synced($old), 'until the rows allow it');
cutover_wait($old);
cutover_same_rows($old, $new, 'dup', 'rows of dup');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE indrelid = 'dup'::regclass AND indisvalid}), '2', 'its index is there');

# ---- a schema change in the middle of a copy

rate('200kB');
$old->safe_psql('postgres', q{SELECT cutover_resync('part')});
ok(cutover_poll('copying', sub { phase('part') eq 'copying' }, node => $old), 'a table is copied');
# the column is on old at once and on new in its turn: chunks in between must not miss it
$old->safe_psql('postgres', q{SET statement_timeout = '60s'; SELECT cutover_run_ddl('ALTER TABLE part ADD COLUMN extra text DEFAULT $$e$$')});
$old->safe_psql('postgres', q{UPDATE part SET extra = 'f' || id WHERE id % 100 = 1});
rate('0');
ok(cutover_wait_synced($old), 'and gets a column meanwhile');
cutover_wait($old);
cutover_same_rows($old, $new, 'part', 'its rows are right');

# ---- a table leaves in the middle of its copy

rate('200kB');
$old->safe_psql('postgres', q{SELECT cutover_resync('purchase')});
ok(cutover_poll('copying', sub { phase('purchase') eq 'copying' }, node => $old), 'a table is copied');
$old->safe_psql('postgres', q{SET statement_timeout = '60s'; SELECT cutover_remove_table('purchase')});
rate('0');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE indrelid = 'purchase'::regclass AND indisvalid}), '3', 'and removed: its indexes are back');
is($new->safe_psql('postgres', q{SELECT count(*) FROM cutover.deferred}), '0', 'nothing is off');
ok(cutover_wait_synced($old), 'the others are not held up');

done_testing();
