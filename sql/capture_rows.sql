-- row changes of every kind, in the order they were made
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
\set ECHO all
SELECT test.target(1);
CREATE TABLE item (id int PRIMARY KEY, name text, n int DEFAULT 0);
SELECT test.add('item') > 0 AS added;
INSERT INTO item VALUES (1, 'a'), (2, 'b');
UPDATE item SET name = 'c' WHERE id = 1;
UPDATE item SET id = 3 WHERE id = 2;
DELETE FROM item WHERE id = 3;
SELECT * FROM test.queue();
-- nothing changed, nothing captured
UPDATE item SET n = 1 WHERE id = 99;
BEGIN; INSERT INTO item VALUES (7); ROLLBACK;
SELECT * FROM test.queue();
-- COPY, ON CONFLICT, MERGE
COPY item (id, name) FROM stdin;
10	ten
11	\N
\.
INSERT INTO item VALUES (10, 'x'), (12, 'y') ON CONFLICT (id) DO UPDATE SET name = excluded.name, n = item.n + 1;
INSERT INTO item VALUES (10, 'z') ON CONFLICT DO NOTHING;
MERGE INTO item USING (VALUES (10), (11), (13)) v (id) ON v.id = item.id
	WHEN MATCHED AND v.id = 10 THEN DELETE
	WHEN MATCHED THEN UPDATE SET n = 5
	WHEN NOT MATCHED THEN INSERT (id, name) VALUES (v.id, 'merged');
SELECT * FROM test.queue();
-- swapping keys
BEGIN;
UPDATE item SET id = -id WHERE id IN (12, 13);
UPDATE item SET id = CASE id WHEN -12 THEN 13 ELSE 12 END WHERE id < 0;
COMMIT;
SELECT * FROM test.queue();
-- cascades
CREATE TABLE line (item int REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE, no int, PRIMARY KEY (item, no));
SELECT test.add('line') > 0 AS added;
INSERT INTO line VALUES (1, 1), (1, 2), (11, 1);
UPDATE item SET id = 21 WHERE id = 1;
DELETE FROM item WHERE id = 21;
SELECT * FROM test.queue();
-- TRUNCATE of several tables, with sequences
CREATE TABLE seq (id serial PRIMARY KEY);
SELECT test.add('seq') > 0 AS added;
INSERT INTO seq DEFAULT VALUES;
TRUNCATE item CASCADE;
BEGIN; TRUNCATE seq; TRUNCATE seq RESTART IDENTITY; ROLLBACK;
TRUNCATE seq, item, line RESTART IDENTITY;
TRUNCATE seq;
SELECT * FROM test.queue();
-- a table without key: whole rows, with their places
CREATE TABLE log (at int, what text);
SELECT test.add('log') > 0 AS added;
INSERT INTO log VALUES (1, 'a'), (1, 'a');
UPDATE log SET what = 'b' WHERE ctid = '(0,1)';
DELETE FROM log WHERE what = 'a';
SELECT * FROM test.queue();
-- applications that apply changes as replica are captured too
SET session_replication_role = replica;
INSERT INTO item VALUES (30, 'replica');
RESET session_replication_role;
SELECT * FROM test.queue();
-- key columns in another order than the table's, NULLs, and long rows of few values
CREATE TABLE rev (a text, b int, c text, d int, PRIMARY KEY (d, b));
SELECT test.add('rev') > 0 AS added;
INSERT INTO rev VALUES (NULL, 1, NULL, 2), ('x', 3, 'y', 4);
DELETE FROM rev;
SELECT * FROM test.queue();
-- misuse
CREATE TRIGGER wrong BEFORE INSERT ON rev FOR EACH ROW EXECUTE FUNCTION cutover._capture();
INSERT INTO rev VALUES (NULL, 1, NULL, 2);
DROP TRIGGER wrong ON rev;
SELECT cutover._capture();
-- two-phase commit
BEGIN; INSERT INTO item VALUES (40, '2pc'); PREPARE TRANSACTION 'p1';
SELECT count(*) FROM cutover._queue_1_0;
COMMIT PREPARED 'p1';
SELECT * FROM test.queue();
CREATE TABLE fresh (id int PRIMARY KEY);
SELECT test.add('fresh') > 0 AS added;
BEGIN; INSERT INTO fresh VALUES (1); PREPARE TRANSACTION 'p2';
ROLLBACK PREPARED 'p2';
-- the layout went with it, and is made again
INSERT INTO fresh VALUES (2);
SELECT * FROM test.queue();
-- refreshes and control entries
SELECT cutover._enqueue_refresh((SELECT table_id FROM cutover._table WHERE old_table = 'rev'::regclass), '{"b": 5, "d": "6"}');
SELECT cutover._enqueue_refresh((SELECT table_id FROM cutover._table WHERE old_table = 'rev'::regclass), '{"b": 5}');
SELECT cutover._enqueue_refresh((SELECT table_id FROM cutover._table WHERE old_table = 'log'::regclass), '{"at": 5}');
SELECT cutover._enqueue_refresh(-1, '{}');
SELECT cutover._enqueue_control(1, 0, 'X', 'CREATE TABLE t ()');
SELECT cutover._enqueue_control(1, (SELECT table_id FROM cutover._table WHERE old_table = 'rev'::regclass), 'M', 'why');
SELECT * FROM test.queue();
-- a target at rest, or one that is gone (a restored dump): the triggers do nothing
UPDATE cutover._target SET desired = 'idle';
INSERT INTO item VALUES (50);
UPDATE cutover._target SET desired = 'finished';
INSERT INTO item VALUES (51);
UPDATE cutover._target SET desired = 'paused';
INSERT INTO item VALUES (52);
SELECT * FROM test.queue();
BEGIN;
DELETE FROM cutover._member; DELETE FROM cutover._table; DELETE FROM cutover._target;
INSERT INTO item VALUES (53);
ROLLBACK;
SELECT * FROM test.queue();
-- garbage can't hurt the reader
SELECT count(*) > 0 AS read FROM generate_series(1, 2000) i,
	LATERAL (SELECT string_agg(substr('\x010000004901' || encode(sha256((i * 1000 + j)::text::bytea), 'hex'), 1, 80)::text, '') AS x FROM generate_series(1, 1) j) g,
	LATERAL cutover._block_changes(decode(substr(ltrim(g.x, '\x'), 1, (i % 39) * 2), 'hex'));
DROP TABLE item, line, seq, log, rev, fresh CASCADE;
\set ECHO none
\i :teardown
