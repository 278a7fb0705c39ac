-- who may write on old, by mode; whatever the way
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
SET client_min_messages = warning;
CREATE SERVER "none" FOREIGN DATA WRAPPER cutover OPTIONS (host 'db.example.com', port '6543', dbname 'shop');
CREATE ROLE fence_user;
CREATE TABLE plain (id int PRIMARY KEY, v text);
CREATE TABLE cascades (id int PRIMARY KEY, plain_id int REFERENCES plain ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE free (id int PRIMARY KEY, v text);
CREATE TABLE refers (id int PRIMARY KEY, free_id int REFERENCES free ON DELETE CASCADE);
CREATE TABLE elsewhere (id int PRIMARY KEY);
CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (100) PARTITION BY RANGE (id);
CREATE TABLE parted_2a PARTITION OF parted_2 FOR VALUES FROM (10) TO (20);
CREATE TABLE parent (id int, v text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE other_child (PRIMARY KEY (id)) INHERITS (parent);
CREATE VIEW plain_view AS SELECT * FROM plain;
CREATE DOMAIN free_type AS text;
CREATE TABLE typed (id int PRIMARY KEY, v free_type);
GRANT ALL ON ALL TABLES IN SCHEMA public TO fence_user;
SELECT test.target(1) \g /dev/null
INSERT INTO cutover._target (target_id, target, server, migration_id, system_identifier, desired)
	VALUES (2, 't2', 'none either', gen_random_uuid(), 1, 'paused');
SELECT cutover._create_queue(2) \g /dev/null
SELECT test.add(t) FROM unnest('{plain,cascades,refers,parted,child,typed}'::regclass[]) t \g /dev/null
SELECT test.add('elsewhere', 'synced', 2) \g /dev/null
CREATE FUNCTION writes() RETURNS void LANGUAGE sql AS $$ INSERT INTO plain VALUES (100, 'by a function') $$;
CREATE FUNCTION before_us() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trigger of the user ran'; END $$;
RESET client_min_messages;
\set ECHO all
SELECT c.oid::regclass, string_agg(t.tgname, ',' ORDER BY t.tgname), bool_and(t.tgenabled = 'A') AS always
	FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid WHERE t.tgname ~ '^ cutover' GROUP BY c.oid ORDER BY c.oid::regclass::text COLLATE "C";
SELECT * FROM cutover._audit_capture(1);
PREPARE prepared(int) AS INSERT INTO plain VALUES ($1, 'prepared');
-- old is master
INSERT INTO plain VALUES (1, 'a'), (2, 'b');
INSERT INTO cascades VALUES (1, 1);
INSERT INTO free VALUES (1), (2);
INSERT INTO refers VALUES (1, 1);
INSERT INTO parted VALUES (1, 'a'), (11, 'b');
INSERT INTO child VALUES (1, 'a');
INSERT INTO other_child VALUES (2, 'b');
INSERT INTO typed VALUES (1, 'a');
EXECUTE prepared(3);
-- one lock for each target, held by the transaction, not by the savepoint
CREATE VIEW test.fences AS SELECT relation::regclass, mode, fastpath FROM pg_locks
	WHERE relation::regclass::text ~ '_fence_' AND pid = pg_backend_pid() ORDER BY 1;
BEGIN;
SELECT * FROM plain, elsewhere;
SELECT id FROM plain WHERE id = 1 FOR UPDATE;
SELECT * FROM test.fences;
SAVEPOINT a;
INSERT INTO plain VALUES (4, 'rolled back');
ROLLBACK TO a;
SELECT * FROM test.fences;
DO $$ BEGIN INSERT INTO elsewhere VALUES (1); RAISE 'x'; EXCEPTION WHEN OTHERS THEN NULL; END $$;
SELECT * FROM test.fences;
ROLLBACK;
SELECT * FROM test.fences;
-- by way of the parent no statement trigger of the child fires
BEGIN;
UPDATE parent SET v = 'c' WHERE id = 2;
SELECT * FROM test.fences;
UPDATE parent SET v = 'c' WHERE id = 1;
SELECT * FROM test.fences;
ROLLBACK;
-- new is master
UPDATE cutover._target SET mode = 'new_only', epoch = epoch + 1, master_since = clock_timestamp() WHERE target_id = 1;
INSERT INTO plain VALUES (5, 'c');
\set VERBOSITY sqlstate
UPDATE plain SET v = 'd' WHERE id = -1;
DELETE FROM plain WHERE false;
INSERT INTO plain VALUES (1, 'e') ON CONFLICT (id) DO UPDATE SET v = 'e';
MERGE INTO plain USING (SELECT 1 AS id) s ON s.id = plain.id WHEN MATCHED THEN UPDATE SET v = 'f';
WITH gone AS (DELETE FROM plain RETURNING *) SELECT count(*) FROM gone;
UPDATE plain_view SET v = 'g';
COPY plain FROM stdin;
6	h
\.
TRUNCATE plain CASCADE;
TRUNCATE ONLY refers;
EXECUTE prepared(7);
SELECT writes();
DO $$ BEGIN PERFORM writes(); EXCEPTION WHEN read_only_sql_transaction THEN RAISE 'caught'; END $$;
-- what refers to a free table is not free to go with it; the server runs the cascade without looking whether it has rows
DELETE FROM free WHERE id = 1;
DELETE FROM free WHERE id = 2;
TRUNCATE free CASCADE;
-- partitions, parents, children
INSERT INTO parted VALUES (2, 'a');
INSERT INTO parted_1 VALUES (2, 'a');
INSERT INTO parted_2 VALUES (12, 'a');
UPDATE parted_2a SET v = 'b';
TRUNCATE parted_2;
TRUNCATE parted_2a;
DELETE FROM parent WHERE id = 1;
DELETE FROM parent WHERE id = 2;
TRUNCATE parent;
DELETE FROM ONLY child;
-- roles and settings
SET session_replication_role = replica;
INSERT INTO plain VALUES (8, 'i');
UPDATE parent SET v = 'd';
RESET session_replication_role;
SET ROLE fence_user;
INSERT INTO plain VALUES (8, 'i');
RESET ROLE;
ALTER TABLE plain DISABLE TRIGGER ALL;
INSERT INTO plain VALUES (8, 'i');
ALTER TABLE plain ENABLE TRIGGER ALL;
INSERT INTO plain VALUES (8, 'i');
SET cutover.capture = off;
INSERT INTO plain VALUES (8, 'i');
RESET cutover.capture;
-- nothing of the user's runs for a write that is refused
CREATE TRIGGER " a" BEFORE INSERT ON plain EXECUTE FUNCTION before_us();
CREATE TRIGGER aa BEFORE INSERT ON plain EXECUTE FUNCTION before_us();
DROP TRIGGER " a" ON plain;
INSERT INTO plain VALUES (9, 'j');
DROP TRIGGER aa ON plain;
-- schema changes by which rows or values come and go
DROP TABLE typed;
DROP TABLE parted_1;
DROP TABLE parted_2;
DROP TABLE plain CASCADE;
DROP TABLE parent CASCADE;
DROP DOMAIN free_type CASCADE;
CREATE SCHEMA away;
ALTER TABLE typed SET SCHEMA away;
DROP SCHEMA away CASCADE;
ALTER TABLE away.typed SET SCHEMA public;
DROP SCHEMA away;
ALTER TABLE plain DROP COLUMN v;
ALTER TABLE cascades ALTER COLUMN plain_id TYPE bigint;
ALTER TABLE plain ADD COLUMN w float DEFAULT random();
ALTER TABLE parted DETACH PARTITION parted_1;
ALTER TABLE parted_2 DETACH PARTITION parted_2a;
CREATE TABLE more (id int PRIMARY KEY, v text);
INSERT INTO more VALUES (100, 'x');
ALTER TABLE parted ATTACH PARTITION more FOR VALUES FROM (100) TO (200);
-- a partition that is empty may come, and is fenced
CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM (200) TO (300);
INSERT INTO parted_3 VALUES (200, 'x');
-- what changes no row of ours goes on
ALTER TABLE plain ADD COLUMN w int;
CREATE INDEX ON plain (v);
CLUSTER plain USING plain_pkey;
VACUUM FULL plain;
ANALYZE plain;
INSERT INTO elsewhere VALUES (2);
INSERT INTO other_child VALUES (3, 'c');
DROP TABLE more;
-- readers, and who locks rows to read them
BEGIN;
SELECT count(*) FROM plain;
SELECT id FROM plain WHERE id = 1 FOR UPDATE;
SELECT * FROM test.fences;
COMMIT;
SELECT * FROM plain ORDER BY id;
-- a refused write does not hold the fence
BEGIN;
SAVEPOINT a;
INSERT INTO plain VALUES (10, 'k');
ROLLBACK TO a;
SELECT * FROM test.fences;
COMMIT;
-- nobody knows who is master
SET cutover.in_doubt_timeout = '100ms';
UPDATE cutover._target SET switch_state = 'in_doubt' WHERE target_id = 1;
\set VERBOSITY default
INSERT INTO plain VALUES (11, 'l');
\set VERBOSITY sqlstate
-- a switch that is being prepared changes nothing
UPDATE cutover._target SET mode = 'old_only', switch_state = 'preparing', epoch = epoch + 1, master_since = clock_timestamp() WHERE target_id = 1;
INSERT INTO plain VALUES (12, 'm');
-- transactions that began under another master
BEGIN;
SELECT count(*) FROM plain;
UPDATE cutover._target SET master_since = clock_timestamp() WHERE target_id = 1;
INSERT INTO plain VALUES (13, 'n');
ROLLBACK;
BEGIN;
SELECT 1 AS one;
UPDATE cutover._target SET master_since = clock_timestamp() WHERE target_id = 1;
INSERT INTO plain VALUES (14, 'first access');
COMMIT;
BEGIN;
SAVEPOINT a;
SELECT count(*) FROM plain;
ROLLBACK TO a;
UPDATE cutover._target SET master_since = clock_timestamp() WHERE target_id = 1;
\set VERBOSITY default
INSERT INTO plain VALUES (15, 'o');
\set VERBOSITY sqlstate
ROLLBACK;
-- finished: the fence stays, capture goes; there are no statements on a child by way of its parent
UPDATE cutover._target SET mode = 'new_only', switch_state = NULL, desired = 'finished' WHERE target_id = 1;
SELECT cutover._remove_capture(table_id, true) FROM cutover._table WHERE target_id = 1 \g /dev/null
SELECT c.oid::regclass, string_agg(t.tgname, ',' ORDER BY t.tgname), bool_and(t.tgenabled = 'A') AS always
	FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid WHERE t.tgname ~ '^ cutover' GROUP BY c.oid ORDER BY c.oid::regclass::text COLLATE "C";
SELECT * FROM cutover._audit_capture(1);
INSERT INTO plain VALUES (16, 'p');
UPDATE parent SET v = 'd';
UPDATE parent SET v = 'd' WHERE id = 2;
INSERT INTO parted_1 VALUES (3, 'a');
COPY parted FROM stdin;
3	h
\.
CREATE TABLE parted_4 PARTITION OF parted FOR VALUES FROM (300) TO (400);
INSERT INTO parted_4 VALUES (300, 'x');
TRUNCATE parted_4;
ALTER TABLE child DISABLE TRIGGER ALL;
UPDATE parent SET v = 'd';
SELECT * FROM cutover._audit_capture(1);
DROP TABLE plain CASCADE;
\set VERBOSITY default
-- without the extension the tables are ordinary again
\set ECHO none
\i :teardown
\set ECHO all
INSERT INTO plain VALUES (17, 'q');
SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover';
\set ECHO none
SET client_min_messages = warning;
DROP TABLE plain, cascades, free, refers, elsewhere, parted, parent, child, other_child, typed CASCADE;
DROP DOMAIN free_type;
DROP FUNCTION writes, before_us;
DROP OWNED BY fence_user;
DROP ROLE fence_user;
