# The copy with less: a role on new that owns nothing there, a mapping and a
# filter that belong to somebody else, no free worker process, keys whose
# order is not built in; pause, resume and cancel in the middle.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair(conf => "max_worker_processes = 6\ncutover.copy_chunk_size = 1\nshared_preload_libraries = 'cutover'\n");

sub rate
{
	my ($rate) = @_;
	$old->safe_psql('postgres', "ALTER SYSTEM SET cutover.copy_max_rate = '$rate'; ");
	$old->safe_psql('postgres', 'SELECT pg_reload_conf()');
	return;
}

$_->safe_psql('postgres', 'CREATE EXTENSION citext; CREATE ROLE shop LOGIN; GRANT CREATE ON SCHEMA public TO shop') for $old, $new;
$old->safe_psql('postgres', <<'SQL');
SET ROLE shop;
CREATE TABLE item (id int PRIMARY KEY, code text NOT NULL, price numeric(12, 2), hidden boolean NOT NULL);
-- tells who runs it, and tries what it must not
CREATE FUNCTION spy(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	BEGIN
		PERFORM pg_catalog.set_config('session_authorization', 'default', false);
		RETURN 'escaped';
	EXCEPTION WHEN OTHERS THEN NULL;
	END;
	RETURN upper(t) || ' ' || current_user;
END $$;
CREATE TABLE word (w citext, lang text COLLATE "C", n int NOT NULL, PRIMARY KEY (w, lang));
CREATE TABLE event (id uuid PRIMARY KEY, kind text, at timestamptz);
CREATE TABLE stamp (at timestamptz, f float8, what text, PRIMARY KEY (at, f));
ALTER TABLE item ENABLE ROW LEVEL SECURITY;
ALTER TABLE item FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON item USING (false);
RESET ROLE;
INSERT INTO item SELECT i, 'c' || i, i / 3.0, i % 10 = 0 FROM generate_series(1, 60000) i;
INSERT INTO word SELECT CASE WHEN i % 2 = 0 THEN upper('word' || i / 2) ELSE 'word' || i / 2 END, CASE WHEN i % 2 = 0 THEN 'en' ELSE 'DE' END, i
FROM generate_series(1, 60000) i;
INSERT INTO event SELECT gen_random_uuid(), 'k' || i % 5, now() - i * interval '1 s' FROM generate_series(1, 60000) i;
INSERT INTO stamp SELECT '2024-01-01'::timestamptz + (i / 3) * interval '1 microsecond', (i % 3) * 0.1, repeat('s', 50) FROM generate_series(1, 60000) i;
ANALYZE;
SQL
$new->safe_psql('postgres', <<'SQL');
CREATE TABLE item (id int PRIMARY KEY, sku text, cents bigint);
CREATE INDEX item_sku ON item (sku);
CREATE TABLE word (w citext, lang text COLLATE "C", n int NOT NULL, PRIMARY KEY (w, lang));
CREATE TABLE event (id uuid PRIMARY KEY, kind text, at timestamptz);
CREATE INDEX event_kind ON event (kind);
CREATE TABLE stamp (at timestamptz, f float8, what text, PRIMARY KEY (at, f));
CREATE ROLE mover LOGIN;
SQL
$new->safe_psql('postgres', 'GRANT CREATE ON DATABASE postgres TO mover; GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO mover');

cutover_add_target($old, $new, user => 'mover');
$old->safe_psql('postgres', q{SELECT cutover_add_table('item', columns => '{"id":"id","sku":"public.spy(code)","cents":"(price*100)::bigint"}', row_filter => 'NOT hidden')});
$old->safe_psql('postgres', "SELECT cutover_add_table('$_')") for qw(word event stamp);

# ---- in the middle: pause, resume

rate('400kB');
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_poll('some chunks', sub { $old->safe_psql('postgres', q{SELECT count(*) FROM cutover._chunk WHERE state = 'done'}) > 1 }, node => $old), 'half copied');
$old->safe_psql('postgres', 'SELECT cutover_pause()');
is(join(' ', cutover_worker_pids($old, 'cutover copier')), '', 'no copier is left after a pause');
$old->safe_psql('postgres', 'UPDATE event SET kind = kind || $$ later$$; DELETE FROM word WHERE n % 3 = 0');
$old->safe_psql('postgres', 'SELECT cutover_resume()');
rate('0');
ok(cutover_wait_synced($old), 'it goes on');
cutover_wait($old);
cutover_same_rows($old, $new, $_, "rows of $_") for qw(word event stamp);
is($new->safe_psql('postgres', 'SELECT count(*), sum(id), sum(cents), min(sku), count(*) FILTER (WHERE sku LIKE $$C% shop$$) FROM item'),
	$old->safe_psql('postgres', 'SELECT count(*), sum(id), sum((price * 100)::bigint), $$C1 shop$$, count(*) FROM item WHERE NOT hidden'),
	'mapped and filtered as the owner of the table, who row security does not bind');
cmp_ok($old->safe_psql('postgres', q{SELECT count(*) FROM cutover._chunk c JOIN cutover._table t USING (table_id) WHERE old_table = 'word'::regclass}),
	'>', 1, 'an order that is not built in makes chunks too');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_index WHERE indrelid IN ('item'::regclass, 'event'::regclass)}), '4', 'indexes of somebody else stay');
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.event WHERE kind = 'index_kept'}), '2', 'and that is in the log');

# ---- no process for a copier

$old->safe_psql('postgres', 'CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late SELECT generate_series(1, 100)');
$new->safe_psql('postgres', 'CREATE TABLE late (id int PRIMARY KEY); GRANT ALL ON late TO mover');
$old->append_conf('postgresql.conf', "max_worker_processes = 2\nshared_preload_libraries = ''\n");
$old->restart;
# one is the server's own, the other is the replicator, which the first write starts
$old->safe_psql('postgres', q{UPDATE event SET kind = 'x' WHERE id = (SELECT id FROM event LIMIT 1)});
$old->safe_psql('postgres', q{SELECT cutover_add_table('late')});
ok(cutover_poll('a reason', sub { $old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status') =~ /no free worker slot for a copier/ }, node => $old),
	'without a process for a copier the status says so');
$old->append_conf('postgresql.conf', "max_worker_processes = 6\nshared_preload_libraries = 'cutover'\n");
$old->restart;
ok(cutover_wait_synced($old), 'a late table');
cutover_same_rows($old, $new, 'late', 'rows of late');

# ---- cancel in the middle

rate('200kB');
$old->safe_psql('postgres', q{SELECT cutover_resync('event')});
ok(cutover_poll('copying', sub { $old->safe_psql('postgres', q{SELECT phase FROM cutover._table WHERE old_table = 'event'::regclass}) eq 'copying' }, node => $old), 'copying');
$old->safe_psql('postgres', q{SET statement_timeout = '60s'; SELECT cutover_cancel()});
is(join(' ', cutover_worker_pids($old, 'cutover')), '', 'no worker is left after a cancel');
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), '0', 'nothing of ours is on new');

done_testing();
