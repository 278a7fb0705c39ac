# Writes after the switch with old_writes => 'forward': clients of old go on, and what
# they write is on new, with the answers that old gave before.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";

use CutoverTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(old => { conf => "session_preload_libraries = 'cutover'\ncutover.max_read_lag = -1" });

$_->safe_psql('postgres', 'CREATE ROLE reader') for $old, $new;
$old->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE a (id serial PRIMARY KEY, v text, n int DEFAULT 5, m mood, tags text[], at timestamptz DEFAULT now());
CREATE TABLE b (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a_id int REFERENCES a, w text UNIQUE,
	r uuid DEFAULT gen_random_uuid(), twice int GENERATED ALWAYS AS (length(w) * 2) STORED);
CREATE TABLE p (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (50);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (50) TO (100);
CREATE TABLE d (id int PRIMARY KEY, a_id int REFERENCES a DEFERRABLE INITIALLY DEFERRED);
CREATE VIEW av AS SELECT id, v FROM a WHERE n < 50;
CREATE TABLE l (id int PRIMARY KEY, v text);
CREATE FUNCTION added(t text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE i int;
BEGIN
	INSERT INTO a (v) VALUES (t) RETURNING id INTO i;
	RETURN (SELECT n FROM a WHERE id = i);
END $$;
GRANT SELECT ON a TO reader;
INSERT INTO a (v, n) SELECT 'v' || g, g FROM generate_series(1, 20) g;
INSERT INTO b (a_id, w) SELECT g, 'w' || g FROM generate_series(1, 20) g;
INSERT INTO p SELECT g, g, 'p' || g FROM generate_series(1, 99) g;
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', "SELECT cutover_add_table(t) FROM unnest('{a,b,p,d,load_journal}'::regclass[]) t");
$old->safe_psql('postgres', 'SELECT cutover_start()');
cutover_wait_synced($old);

# What psql prints, errors by their SQLSTATE.
sub answers
{
	my ($sql) = @_;
	my ($out, $err);
	$old->psql('postgres', "SET statement_timeout = '20s';\n\\set VERBOSITY sqlstate\n$sql",
		stdout => \$out, stderr => \$err, on_error_stop => 0, extra_params => [ '-X' ]);
	$err =~ s/^psql:.*?:\d+: //mg;
	return "$out\n$err";
}
sub block { return answers("BEGIN;\n$_[0]\nROLLBACK;") }

# ---- the same answers as before

my @constructs = (
	'INSERT' => q{INSERT INTO a (v) VALUES ('x') RETURNING v, n, m, at = now(); SELECT v, n FROM a WHERE v = 'x';},
	'several rows' => q{INSERT INTO a (v, n) VALUES ('x', 1), ('y', DEFAULT) RETURNING v, n;},
	'DEFAULT for a key' => q{INSERT INTO a (id, v) VALUES (DEFAULT, 'x'), (DEFAULT, 'y') RETURNING v;},
	'INSERT of a SELECT' => q{INSERT INTO a (v) SELECT v || 's' FROM a WHERE id < 4 ORDER BY id RETURNING v, n;},
	'INSERT of a SELECT with LIMIT' => q{INSERT INTO b (a_id, w) SELECT id, v FROM a ORDER BY id LIMIT 2 RETURNING a_id, w, twice, r IS NOT NULL;},
	'identity' => q{INSERT INTO b (w) VALUES ('one') RETURNING w, id > 0; INSERT INTO b (id, w) OVERRIDING SYSTEM VALUE VALUES (-1, 'two') RETURNING id;},
	'identity given' => q{INSERT INTO b (id, w) VALUES (-1, 'two');},
	'DEFAULT VALUES' => q{INSERT INTO a DEFAULT VALUES RETURNING v, n;},
	'UPDATE' => q{UPDATE a SET v = 'u', n = n + 1 WHERE id < 3 RETURNING id, v, n; SELECT sum(n) FROM a;},
	'UPDATE FROM' => q{UPDATE a SET v = b.w FROM b WHERE b.a_id = a.id AND a.id < 3 RETURNING a.id, a.v, b.w;},
	'UPDATE by a subquery' => q{UPDATE a SET (v, n) = (SELECT w, 3 FROM b WHERE b.a_id = a.id) WHERE id = 4 RETURNING v, n;},
	'UPDATE of an array' => q{UPDATE a SET tags = '{a,b}' WHERE id = 1; UPDATE a SET tags[2] = 'c' WHERE id = 1 RETURNING tags;},
	'enum' => q{UPDATE a SET m = 'ok' WHERE id = 1 RETURNING m;},
	'DELETE' => q{DELETE FROM b WHERE a_id IN (SELECT id FROM a WHERE n > 18) RETURNING w; SELECT count(*) FROM b;},
	'DELETE USING' => q{DELETE FROM b USING a WHERE a.id = b.a_id AND a.n < 3 RETURNING a.v, b.w;},
	'partitions' => q{UPDATE p SET k = k + 50 WHERE id = 3 RETURNING id, k; DELETE FROM p WHERE k > 97 RETURNING id; INSERT INTO p VALUES (1, 80, 'x'); SELECT count(*) FROM p;},
	'ON CONFLICT' => q{INSERT INTO b (a_id, w) VALUES (7, 'w1'), (8, 'new') ON CONFLICT (w) DO UPDATE SET a_id = excluded.a_id, w = b.w || '!' RETURNING a_id, w;
		INSERT INTO b (w) VALUES ('w2') ON CONFLICT DO NOTHING RETURNING w;},
	'CTE' => q{WITH s(k) AS (VALUES (1), (2)) INSERT INTO b (a_id, w) SELECT k, 'cte' || k FROM s RETURNING a_id, w;},
	'CTE that writes' => q{WITH x AS (DELETE FROM b WHERE a_id < 3 RETURNING w) SELECT count(*) FROM x;
		WITH x AS (INSERT INTO a (v) VALUES ('c') RETURNING id) INSERT INTO b (a_id, w) SELECT id, 'of c' FROM x RETURNING w;
		WITH x AS (UPDATE a SET n = 1 WHERE id = 9 RETURNING n), y AS (INSERT INTO b (w) VALUES ('y1'), ('y2') RETURNING w) SELECT n, w FROM x, y ORDER BY w;},
	'view' => q{UPDATE av SET v = 'by view' WHERE id = 2 RETURNING *; DELETE FROM av WHERE id = -1; INSERT INTO av (v) VALUES ('in view') RETURNING v;},
	'prepared' => q{PREPARE u (int, text) AS UPDATE a SET v = $2 WHERE id = $1 RETURNING id, v; EXECUTE u(1, 'p1'); EXECUTE u(2, NULL); EXECUTE u(3, 'p3'); EXECUTE u(3, 'p4'); EXECUTE u(99999, ''); },
	'FOR UPDATE' => q{SELECT v FROM a WHERE id = 1 FOR UPDATE; SELECT a.v, b.w FROM a JOIN b ON a.id = b.a_id WHERE a.id = 2 FOR SHARE OF b; SELECT id FROM a WHERE id < 3 ORDER BY id FOR UPDATE SKIP LOCKED;},
	'tags' => q{UPDATE a SET n = 0 WHERE id < 5; \echo :ROW_COUNT
		DELETE FROM b WHERE id < 0; \echo :ROW_COUNT
		INSERT INTO b (w) VALUES ('t'), ('u'); \echo :ROW_COUNT
		},
	'now()' => q{UPDATE a SET at = now() WHERE id = 1 RETURNING at = now(); SELECT at = now() FROM a WHERE id = 1;},
	'savepoints' => q{UPDATE a SET n = 100 WHERE id = 1; SAVEPOINT s; UPDATE a SET n = 200 WHERE id = 1; SAVEPOINT t; UPDATE a SET n = 300 WHERE id = 1; SELECT n FROM a WHERE id = 1;
		ROLLBACK TO t; SELECT n FROM a WHERE id = 1; RELEASE t; SELECT n FROM a WHERE id = 1; ROLLBACK TO s; SELECT n FROM a WHERE id = 1; RELEASE s; SELECT n FROM a WHERE id = 1;},
	'error and savepoint' => q{SAVEPOINT s; INSERT INTO b (w) VALUES ('w1'); SELECT 1; ROLLBACK TO s; SELECT count(*) FROM b; UPDATE a SET n = 1 WHERE id = 1; SELECT n / 0 FROM a; ROLLBACK TO s; SELECT n FROM a WHERE id = 1;},
	'errors' => q{SAVEPOINT s; INSERT INTO b (a_id) VALUES (99999); ROLLBACK TO s; UPDATE a SET id = NULL; ROLLBACK TO s; UPDATE a SET n = 1 / (n - 3); ROLLBACK TO s; INSERT INTO p VALUES (1, 1000);},
	'deferred' => q{INSERT INTO d VALUES (1, 99999); SAVEPOINT s; DELETE FROM d; INSERT INTO d VALUES (2, 1); COMMIT; INSERT INTO d VALUES (1, 99999); DELETE FROM d WHERE id = 2; SELECT * FROM d; BEGIN;},
	'PL/pgSQL' => <<'SQL',
SET client_min_messages = notice;
DO $$
DECLARE r int; t text;
BEGIN
	UPDATE a SET n = 7 WHERE id IN (1, 2, 3);
	GET DIAGNOSTICS r = ROW_COUNT;
	RAISE NOTICE '% %', r, FOUND;
	UPDATE a SET n = 7 WHERE id < 0;
	RAISE NOTICE '%', FOUND;
	UPDATE a SET v = 'into' WHERE id = 1 RETURNING v INTO STRICT t;
	RAISE NOTICE '%', t;
	BEGIN
		UPDATE a SET v = 'into' WHERE id < 4 RETURNING v INTO STRICT t;
	EXCEPTION WHEN too_many_rows THEN RAISE NOTICE 'too many'; END;
	FOR i IN 1..4 LOOP
		BEGIN
			UPDATE a SET n = n + 10 WHERE id = i;
			INSERT INTO b (w) VALUES ('loop' || i / 2);
		EXCEPTION WHEN unique_violation THEN RAISE NOTICE 'unique %', i; END;
	END LOOP;
	FOR r IN SELECT id FROM a WHERE id < 6 ORDER BY id LOOP
		UPDATE a SET n = n + r WHERE id = r;
	END LOOP;
	FOR t IN UPDATE a SET v = v || '+' WHERE id < 3 RETURNING v LOOP
		INSERT INTO b (w) VALUES (t || random());
	END LOOP;
END $$;
SELECT id, n, v FROM a WHERE id < 6 ORDER BY id;
SELECT count(*) FROM b;
SELECT added('by function'), added('and again');
SQL
	'cursor' => q{DECLARE c CURSOR FOR SELECT id FROM a ORDER BY id; FETCH 2 FROM c; UPDATE a SET n = n WHERE id = 1; FETCH 2 FROM c; SAVEPOINT s; FETCH 1 FROM c;
		INSERT INTO b (w) VALUES ('w1'); ROLLBACK TO s; FETCH 1 FROM c; CLOSE c; SELECT n FROM a WHERE id = 1;},
	'permissions' => q{SET LOCAL ROLE reader; SELECT count(*) FROM a; UPDATE a SET n = 1;},
	'read only' => q{SET TRANSACTION READ ONLY; UPDATE a SET n = 1;},
	'repeatable read' => q{SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT n FROM a WHERE id = 1; UPDATE a SET n = 4 WHERE id = 1; SELECT n FROM a WHERE id = 1;},
	'serializable' => q{SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; UPDATE a SET n = 4 WHERE id = 1; SELECT n FROM a WHERE id = 1;},
	'more than one row from a subquery' => q{UPDATE a SET v = (SELECT w FROM b);});

my %before;
for (my $i = 0; $i < @constructs; $i += 2)
{
	$before{ $constructs[$i] } = block($constructs[ $i + 1 ]);
}
$old->safe_psql('postgres', 'DELETE FROM d');
cutover_wait($old);
is($old->safe_psql('postgres', q{SELECT to_mode FROM cutover_set_mode('new_only', force => true, old_writes => 'forward')}),
	'new_only', 'the switch');
is($old->safe_psql('postgres', 'SHOW default_transaction_read_only'), 'off', 'sessions of old may write');
like($old->safe_psql('postgres', 'EXPLAIN UPDATE a SET n = 1 WHERE id = 1'), qr/Runs on: new/, 'EXPLAIN says where');
for (my $i = 0; $i < @constructs; $i += 2)
{
	is(block($constructs[ $i + 1 ]), $before{ $constructs[$i] }, $constructs[$i]);
}

# ---- transactions

$old->safe_psql('postgres', q{UPDATE a SET v = 'alone' WHERE id = 1; BEGIN; UPDATE a SET v = 'block' WHERE id = 2; SAVEPOINT s; UPDATE a SET v = 'lost' WHERE id = 3; ROLLBACK TO s; COMMIT});
is($new->safe_psql('postgres', q{SELECT string_agg(v, ' ' ORDER BY id) FROM a WHERE id < 4}), 'alone block v3', 'what was committed is on new');
cutover_wait($old);
cutover_same_rows($old, $new, 'a', 'and old follows');
is(answers(q{BEGIN; INSERT INTO d VALUES (9, 99999); COMMIT; SELECT count(*) FROM d WHERE id = 9;}), "0\nERROR:  23503",
	'a commit that new refuses is none');
like(answers(q{BEGIN; UPDATE a SET n = 1 WHERE id = 1; PREPARE TRANSACTION 'x';}), qr/0A000/, 'PREPARE TRANSACTION');
like(answers(q{BEGIN; INSERT INTO l VALUES (1); UPDATE a SET n = 1 WHERE id = 1;}), qr/ERROR:  0A000/, 'other tables, then those that have moved');
like(answers(q{BEGIN; UPDATE a SET n = 1 WHERE id = 1; INSERT INTO l VALUES (1);}), qr/ERROR:  0A000/, 'the other way round');
like(answers(q{BEGIN; UPDATE a SET n = 1 WHERE id = 1; SELECT count(*) FROM a, l;}), qr/ERROR:  0A000/, 'no read of old after a write to new');
is(answers(q{BEGIN; CREATE TEMP TABLE t (i int); INSERT INTO t VALUES (1); UPDATE a SET n = 1 WHERE id = 1; COMMIT;}), "\n", 'temporary tables are no matter');
is(answers(q{SET cutover.allow_mixed_transactions = on; BEGIN; INSERT INTO l VALUES (1); UPDATE a SET v = 'mixed' WHERE id = 1; COMMIT; SELECT v FROM a WHERE id = 1; SELECT id FROM l;}),
	"mixed\n1\n", 'unless allowed');
is(answers("COPY a (v) FROM STDIN;\nx\n\\.\n"), "\nERROR:  25006", 'COPY');
is(answers('TRUNCATE b;'), "\nERROR:  25006", 'TRUNCATE');
is(answers(q{INSERT INTO a (v) SELECT v FROM l;}), "\nERROR:  25006", 'rows of a table that has not moved') ;
is(answers(q{SELECT * FROM a, l FOR UPDATE;}), "\nERROR:  25006", 'locks that new would not know');
is(answers(q{MERGE INTO a USING (VALUES (1)) s (i) ON a.id = s.i WHEN MATCHED THEN UPDATE SET v = 'z';}), "\nERROR:  25006", 'MERGE')
	if $old->pg_version >= 15;
my $error = cutover_error($old, q{INSERT INTO b (w) VALUES ('w1')});
is($error->{sqlstate}, '23505', 'an error of new keeps its code');
like($error->{context} // '', qr/remote SQL command: INSERT INTO public\.b/, 'and says where it comes from');

# ---- new in trouble

my $session = $old->background_psql('postgres', on_error_stop => 0);
$session->query('UPDATE a SET n = 1 WHERE id = 1');
sub cut_off
{
	my $mine = q{FROM pg_stat_activity WHERE application_name = 'cutover reads'};
	$new->safe_psql('postgres', "SELECT pg_terminate_backend(pid) $mine");
	cutover_poll('connections are closed', sub { $new->safe_psql('postgres', "SELECT count(*) $mine") eq '0' });
	return;
}
cut_off();
$session->query(q{UPDATE a SET v = 'again' WHERE id = 1});
is($new->safe_psql('postgres', 'SELECT v FROM a WHERE id = 1'), 'again', 'an idle connection that broke is made again');
$session->query(q{BEGIN; UPDATE a SET v = 'gone' WHERE id = 1});
cut_off();
$session->{stderr} = '';
$session->query('COMMIT');
like($session->{stderr}, qr/ERROR/, 'one that breaks in a transaction fails it');
is($new->safe_psql('postgres', 'SELECT v FROM a WHERE id = 1'), 'again', 'which is rolled back');
$session->query(q{UPDATE a SET v = 'well' WHERE id = 1});
is($new->safe_psql('postgres', 'SELECT v FROM a WHERE id = 1'), 'well', 'and the session goes on');
$session->quit;
like(answers(q{SET lock_timeout = '100ms'; UPDATE a SET n = 1 WHERE id = 1;}), qr/^\n$/, 'lock_timeout is no hindrance');
my $locker = $new->background_psql('postgres');
$locker->query('BEGIN; UPDATE a SET n = 1 WHERE id = 1');
is(answers(q{SET lock_timeout = '100ms'; UPDATE a SET n = 1 WHERE id = 1;}), "\nERROR:  55P03", 'and goes with the statement');
is(answers(q{SET statement_timeout = '300ms'; UPDATE a SET n = 1 WHERE id = 1; SELECT 1;}), "1\nERROR:  57014", 'a statement that is cancelled');
is(answers(q{SET statement_timeout = '300ms'; BEGIN; UPDATE a SET n = 1 WHERE id = 1; ROLLBACK; SELECT 1;}), "1\nERROR:  57014", 'also in a block');
$locker->query('ROLLBACK');
$locker->quit;
is($new->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND application_name = 'cutover reads'}), '0', 'nothing is left open on new');

# ---- back and forth while clients write

my $load = cutover_load($old, clients => 4, pause => 1000,
	sql => sub { my ($client, $n) = @_; return sprintf 'UPDATE a SET n = n + 1 WHERE id = %d; INSERT INTO p VALUES (%d, %d)', 4 + ($client * 31 + $n) % 10, 1000 + $client * 100000 + $n, $n % 100 });
for my $mode ('old_only', 'new_only')
{
	my $until = $old->safe_psql('postgres', 'SELECT count(*) FROM load_journal');
	cutover_poll("clients write", sub { $old->safe_psql('postgres', 'SELECT count(*) FROM load_journal') > $until + 100 });
	is($old->safe_psql('postgres', "SELECT to_mode FROM cutover_set_mode('$mode', force => true, old_writes => 'forward')"), $mode, "to $mode under load");
}
my $until = $new->safe_psql('postgres', 'SELECT count(*) FROM load_journal');
cutover_poll("clients write", sub { $new->safe_psql('postgres', 'SELECT count(*) FROM load_journal') > $until + 100 });
my $result = $load->stop;
cmp_ok($result->{committed}, '>', 200, 'they committed');
is($result->{failed}, 0, 'and no transaction failed') or diag explain $result;
$load->check($new, 'what they were promised is on new');
cutover_wait($old);
cutover_same_rows($old, $new, $_, "$_ is the same on both sides") for qw(a p load_journal);

done_testing();
