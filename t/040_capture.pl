# Tables whose order is hard to keep, and whose partitions come and go, under
# load: what is on new is what is on old, whatever triggers, savepoints and
# schema changes had to do with it.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE nested (id int PRIMARY KEY, v int, w text);
CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v int);
CREATE TABLE keyless (a int, b text);
CREATE TABLE doc (id int PRIMARY KEY, n int, body text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL;
CREATE TABLE part (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
CREATE TABLE part2 (v text, junk int, k int NOT NULL, id int NOT NULL);
ALTER TABLE part2 DROP junk;
ALTER TABLE part ATTACH PARTITION part2 FOR VALUES IN (2);
CREATE TABLE part3 PARTITION OF part DEFAULT;
INSERT INTO nested SELECT i, 0, 'x' FROM generate_series(1, 150) i;
INSERT INTO late SELECT i, 0 FROM generate_series(1, 50) i;
INSERT INTO keyless SELECT i % 30, 'x' FROM generate_series(1, 100) i;
INSERT INTO doc SELECT i, 0, repeat(md5(i::text), 200) FROM generate_series(1, 50) i;
INSERT INTO part SELECT i, 1 + i % 3, 'p' FROM generate_series(1, 200) i;
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);

# only on old: what they do arrives as changes of rows
$old->safe_psql('postgres', <<'SQL');
CREATE FUNCTION interfere() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	k int := coalesce(NEW.id, OLD.id);
BEGIN
	IF pg_trigger_depth() > 1 OR random() < 0.6 THEN RETURN NULL; END IF;
	UPDATE nested SET v = v + 1000 WHERE id = k + 1;
	IF random() < 0.3 THEN DELETE FROM nested WHERE id = k + 2; END IF;
	INSERT INTO nested VALUES (k + 1, -5, 'nested') ON CONFLICT DO NOTHING;
	RETURN NULL;
END $$;
CREATE TRIGGER interfere AFTER INSERT OR UPDATE OR DELETE ON nested FOR EACH ROW EXECUTE FUNCTION interfere();

CREATE PROCEDURE change() LANGUAGE plpgsql AS $$
DECLARE
	k int := 1 + random() * 150;
	l int := 1 + random() * 50;
BEGIN
	CASE (random() * 9)::int
		WHEN 0 THEN INSERT INTO nested VALUES (k, 1, 'new') ON CONFLICT (id) DO UPDATE SET v = nested.v + 1;
		WHEN 1 THEN UPDATE nested SET v = v + 1, w = repeat('y', (random() * 50)::int) WHERE id BETWEEN k AND k + 3;
		WHEN 2 THEN DELETE FROM nested WHERE id BETWEEN k AND k + 2;
		WHEN 3 THEN
			BEGIN
				UPDATE nested SET id = id + 150 WHERE id = k;
				DELETE FROM nested WHERE id > 250;
				IF random() < 0.5 THEN RAISE EXCEPTION 'x'; END IF;
				UPDATE nested SET id = id - 150 WHERE id BETWEEN 151 AND 250;
			EXCEPTION WHEN raise_exception OR unique_violation THEN
				UPDATE doc SET n = n + 1 WHERE id = l;
			END;
		WHEN 4 THEN
			-- rotate three keys in one statement, which two of us at once can't
			PERFORM pg_advisory_xact_lock(1);
			UPDATE late SET id = l + (id - l + 1) % 3, v = v + 1 WHERE id BETWEEN l AND l + 2
				AND (SELECT count(*) FROM late WHERE id BETWEEN l AND l + 2) = 3;
		WHEN 5 THEN
			INSERT INTO keyless VALUES (l % 30, 'new');
			UPDATE keyless SET b = b || 'u' WHERE ctid = (SELECT ctid FROM keyless WHERE a = l % 30 LIMIT 1);
			DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = k % 30 LIMIT 1);
		WHEN 6 THEN UPDATE doc SET n = n + 1, body = CASE WHEN random() < 0.2 THEN repeat(md5(n::text), 200) ELSE body END WHERE id = l;
		WHEN 7 THEN UPDATE doc SET n = n + 1, id = -id WHERE id IN (l, -l);
		WHEN 8 THEN UPDATE part SET k = 1 + (part.k + 1) % 3, v = 'moved' WHERE id BETWEEN l AND l + 5 AND part.k < 4;
		ELSE
			DELETE FROM part WHERE id = l AND part.k < 4;
			INSERT INTO part VALUES (l, 1 + l % 3, 'again') ON CONFLICT DO NOTHING;
	END CASE;
END $$;
SQL

my $load = cutover_load($old,
	clients => 4,
	pause => 500,
	sql => sub {
		my ($client, $n) = @_;

		return 'SET LOCAL cutover.spill_size = 0; CALL change(); CALL change()' if $n % 10 == 0;
		return 'CALL change(); SAVEPOINT a; CALL change(); CALL change(); ROLLBACK TO a; CALL change()' if $n % 3 == 0;
		return 'CALL change()';
	});
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT count(cutover_add_table(t)) FROM unnest('{nested,late,keyless,doc,part}'::regclass[]) t});
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_wait_synced($old), 'all tables are synced');

# what partitions do while they are written to
my $step = 0;
for my $sql (
	'CREATE TABLE part4 (id int NOT NULL, k int NOT NULL, v text); INSERT INTO part4 SELECT i, 4, $$born outside$$ FROM generate_series(1, 300) i;'
	  . ' ALTER TABLE part ATTACH PARTITION part4 FOR VALUES IN (4)',
	'CREATE TABLE part5 PARTITION OF part FOR VALUES IN (5, 6)',
	'INSERT INTO part SELECT i, 5 + i % 2, $$five$$ FROM generate_series(1, 300) i',
	'ALTER TABLE part DISABLE TRIGGER ALL',
	'TRUNCATE part5',
	'INSERT INTO part SELECT i, 5 + i % 2, $$six$$ FROM generate_series(1, 300) i',
	'ALTER TABLE part DETACH PARTITION part4',
	'DROP TABLE part5',
	'TRUNCATE keyless',
	'TRUNCATE part')
{
	$old->safe_psql('postgres', "SET lock_timeout = '60 s'; $sql");
	my $so_far = $load->committed;
	cutover_poll("writes after step $step", sub { $load->committed > $so_far + 20 }, node => $old);
	$step++;
}
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover._audit_capture(1)'), '0', 'capture is on everywhere');

# a copy afresh, of a table that some transactions stopped to capture
$old->safe_psql('postgres', q{SET cutover.capture = off; UPDATE nested SET v = 0 WHERE id = 1; INSERT INTO nested VALUES (100000, 1, 'uncaptured')});
is($old->safe_psql('postgres', q{SELECT phase FROM cutover.tables WHERE table_name::text = 'nested'}), 'resync_needed', 'the table is marked');
$old->safe_psql('postgres', q{SELECT cutover_resync('nested')});
ok(cutover_wait_synced($old), 'it is synced again');

my $result = $load->stop;
cmp_ok($result->{committed}, '>', 200, "clients committed $result->{committed} transactions");
ok(cutover_wait($old), 'new has caught up');
cutover_same_tables($old, $new, qw(nested late keyless doc part));
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'new refused nothing');

$old->safe_psql('postgres', 'SELECT cutover_cancel()');
is($old->safe_psql('postgres', q{SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover'}), '0', 'no trigger is left');

done_testing();
