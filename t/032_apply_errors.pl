# What new refuses: a row, a whole table, a right taken away.  The rest goes on.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();

$old->safe_psql('postgres', q{
	CREATE TABLE a (id int PRIMARY KEY, v text, w int);
	CREATE TABLE b (id int PRIMARY KEY, v text);
	CREATE TABLE c (id int PRIMARY KEY, v text);
	CREATE TABLE p (id int PRIMARY KEY, v text);
	CREATE TABLE q (PRIMARY KEY (id)) INHERITS (p);
	INSERT INTO a SELECT g, 'a', g FROM generate_series(1, 100) g;
	INSERT INTO p SELECT g, 'p' FROM generate_series(1, 10) g;
	INSERT INTO q SELECT g, 'q' FROM generate_series(11, 20) g});
cutover_copy_schema($old, $new);
# new's role is not the owner: rights can be taken from it
$new->safe_psql('postgres', 'CREATE ROLE mover LOGIN; GRANT ALL ON SCHEMA public TO mover;
	GRANT CREATE ON DATABASE postgres TO mover; GRANT ALL ON ALL TABLES IN SCHEMA public TO mover; CREATE TABLE log (t text)');
cutover_add_target($old, $new, user => 'mover');
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');
$old->safe_psql('postgres', 'SELECT cutover_start()');
ok(cutover_wait_synced($old), 'copied');

sub phase { return $old->safe_psql('postgres', "SELECT phase FROM cutover._table WHERE old_table = '$_[0]'::regclass") }

# TRUNCATE ONLY stays with the one table on new too
$old->safe_psql('postgres', 'TRUNCATE ONLY p');
cutover_wait($old);
cutover_same_tables($old, $new, 'only p', 'p', 'q');
is($new->safe_psql('postgres', 'SELECT count(*) FROM q'), '10', 'the heirs of a truncated table keep their rows');

# a right taken away: everything waits, nothing is lost
$new->safe_psql('postgres', 'REVOKE INSERT, UPDATE ON b FROM mover');
$old->safe_psql('postgres', q{INSERT INTO b VALUES (1, 'x')});
$old->safe_psql('postgres', q{INSERT INTO c VALUES (1, 'x')});
cutover_poll('the replicator says why it waits', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM cutover.status WHERE waiting_for ~ 'permission denied'}) });
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'no row is blamed for it');
$new->safe_psql('postgres', 'GRANT INSERT, UPDATE ON b TO mover');
cutover_wait($old);
cutover_same_tables($old, $new, 'a', 'b', 'c');

# a row that new refuses is set aside
$new->safe_psql('postgres', q{ALTER TABLE a ADD CHECK (w <> 1013)});
$old->safe_psql('postgres', q{UPDATE a SET w = 1013 WHERE id = 5; UPDATE a SET v = 'b'; INSERT INTO c VALUES (2, 'y')});
cutover_wait($old);
cutover_same_rows($old, $new, '(SELECT * FROM a WHERE id <> 5)', 'the other rows');
cutover_same_rows($old, $new, 'c', 'the other table');
is($old->safe_psql('postgres', q{SELECT key->>'id', sqlstate FROM cutover.apply_error}), '5|23514', 'the row is named');

# a column that new no longer has: the table stops, the others go on
$new->safe_psql('postgres', 'ALTER TABLE c ALTER v TYPE int USING 7');
$old->safe_psql('postgres', q{INSERT INTO c VALUES (3, 'no number'); INSERT INTO c VALUES (4, '44')});
cutover_wait($old);
is($old->safe_psql('postgres', q{SELECT key->>'id', sqlstate FROM cutover.apply_error WHERE table_name = 'c'::regclass}),
	'3|22P02', 'another type is no obstacle but for values');
is($new->safe_psql('postgres', 'SELECT v FROM c WHERE id = 4'), '44', 'which fit');
$new->safe_psql('postgres', 'DROP TABLE b');
$old->safe_psql('postgres', q{INSERT INTO b SELECT g, 'x' FROM generate_series(10, 500) g; UPDATE a SET v = 'c'});
cutover_poll('a table that is gone stops', sub { phase('b') eq 'resync_needed' });
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.apply_error WHERE table_name = 'b'::regclass}), '0', 'without an error for each row');
like($old->safe_psql('postgres', q{SELECT phase_reason FROM cutover._table WHERE old_table = 'b'::regclass}), qr/b/, 'and says why');
$old->safe_psql('postgres', q{INSERT INTO a VALUES (1000, 'last')});
cutover_poll('the others go on', sub { $new->safe_psql('postgres', 'SELECT count(*) FROM a WHERE id = 1000') });
cutover_same_rows($old, $new, '(SELECT * FROM a WHERE id <> 5)', 'with all their rows');

done_testing();
