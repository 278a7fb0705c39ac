-- what happens when a change can't be captured
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
\set ECHO all
SELECT test.target(1);
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, v text);
SELECT test.add('t') AS t \gset
SELECT test.add('u') AS u \gset
CREATE VIEW test.phases AS SELECT old_table::regclass, phase, phase_reason FROM cutover._table ORDER BY table_id;
-- waits in 500 small steps for a setting to arrive
CREATE VIEW test.wait AS SELECT v, format('SELECT pg_sleep(0.02) WHERE current_setting(''cutover.queue_limit'') <> %L', v) AS step
	FROM (VALUES ('1MB'), ('0')) v (v), generate_series(1, 500);
-- the queue has 1 MB, and it is full
INSERT INTO u SELECT i, (SELECT string_agg(md5((i * 40 + j)::text), '') FROM generate_series(1, 40) j) FROM generate_series(1, 4000) i;
ALTER SYSTEM SET cutover.queue_limit = '1MB';
SELECT pg_reload_conf();
\o /dev/null
SELECT step FROM test.wait WHERE v = '1MB' \gexec
\o
-- a backend looks at the queue's size a few times a second; a new one at once
\c -
SET cutover.capture = strict;
INSERT INTO t VALUES (1, 'refused');
SET cutover.capture = mark;
BEGIN;
INSERT INTO t VALUES (2, 'goes');
SAVEPOINT a;
INSERT INTO t VALUES (3, 'goes too');
COMMIT;
SELECT * FROM test.phases;
SELECT * FROM t;
-- marked once; what comes then is in the next copy
INSERT INTO t VALUES (4, 'goes');
-- control entries go past the limit
SELECT cutover._enqueue_control(1, 0, 'X', 'SELECT 1');
ALTER SYSTEM RESET cutover.queue_limit;
SELECT pg_reload_conf();
\o /dev/null
SELECT step FROM test.wait WHERE v = '0' \gexec
\o
SELECT op, detail FROM test.queue() WHERE op <> 'I';
\c -
INSERT INTO t VALUES (5, 'not needed');
INSERT INTO u VALUES (0, 'captured');
SELECT seq, op, rel, new_row FROM test.queue();
-- a mark that is rolled back isn't there
UPDATE cutover._table SET phase = 'synced';
SET cutover.capture = off;
BEGIN; INSERT INTO t VALUES (6, 'off'); ROLLBACK;
SELECT * FROM test.phases;
BEGIN; SAVEPOINT s; INSERT INTO t VALUES (6, 'off'); ROLLBACK TO s; INSERT INTO u VALUES (-1, 'off'); COMMIT;
SELECT * FROM test.phases;
SELECT * FROM test.queue();
RESET cutover.capture;
-- the queue can't be written (a unique index stands for the disk that is full).  Of the first failure a
-- backend knows nothing beforehand; it is prepared for the next
UPDATE cutover._table SET phase = 'synced', phase_reason = NULL;
INSERT INTO t VALUES (7, 'captured');
CREATE UNIQUE INDEX full_disk ON cutover._queue_1_0 (n);
INSERT INTO t VALUES (8, 'fails');
INSERT INTO t VALUES (9, 'goes');
BEGIN; INSERT INTO t VALUES (10, 'goes'); INSERT INTO u VALUES (10001, 'goes'), (10002, 'two'); COMMIT;
SELECT * FROM test.phases;
DROP INDEX cutover.full_disk;
SELECT op, new_row FROM test.queue();
SELECT id FROM t WHERE id > 6;
DROP TABLE t, u;
\set ECHO none
\i :teardown
