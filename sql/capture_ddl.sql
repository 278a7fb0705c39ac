-- schema changes: what breaks capture is put right, marked or refused
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
\set ECHO all
SELECT test.target(1);
CREATE VIEW test.triggers AS SELECT tgrelid::regclass, tgname, tgenabled FROM pg_trigger
	WHERE tgfoid = 'cutover._capture'::regproc ORDER BY tgrelid::regclass::text, tgname;
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT test.add('t') AS t \gset
SELECT cutover._install_capture(:t);
SELECT * FROM test.triggers;
-- triggers switched off and on, renamed, dropped
ALTER TABLE t DISABLE TRIGGER ALL;
INSERT INTO t VALUES (1, 'a');
ALTER TABLE t ENABLE TRIGGER ALL;
SET session_replication_role = replica;
INSERT INTO t VALUES (2, 'b');
RESET session_replication_role;
ALTER TABLE t DISABLE TRIGGER USER;
ALTER TABLE t ENABLE REPLICA TRIGGER " cutover";
INSERT INTO t VALUES (3, 'c');
ALTER TRIGGER " cutover" ON t RENAME TO mine;
ALTER TABLE t DISABLE TRIGGER mine;
INSERT INTO t VALUES (4, 'd');
SELECT * FROM test.triggers;
DROP TRIGGER mine ON t;
INSERT INTO t VALUES (5, 'e');
SELECT * FROM test.triggers;
SELECT * FROM test.queue();
-- what got past the event triggers shows in the audit
SELECT * FROM cutover._audit_capture(1);
UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 't'::regclass AND tgname = ' cutover';
SELECT problem FROM cutover._audit_capture(1);
SELECT cutover._install_capture(:t);
SELECT problem FROM cutover._audit_capture(1);
-- changes that rewrite rows, and such that don't
ALTER TABLE t ADD a int;
ALTER TABLE t ADD b int DEFAULT 5;
ALTER TABLE t ALTER a SET DEFAULT 6;
ALTER TABLE t SET UNLOGGED;
ALTER TABLE t SET LOGGED;
CREATE INDEX ON t (a);
VACUUM FULL t;
SELECT * FROM test.queue();
BEGIN;
ALTER TABLE t ADD c double precision DEFAULT random();
ALTER TABLE t ALTER c TYPE int;
COMMIT;
SELECT * FROM test.queue();
BEGIN; ALTER TABLE t ALTER a TYPE bigint; ROLLBACK;
SELECT * FROM test.queue();
-- tables that aren't ours
CREATE TABLE other (id int);
ALTER TABLE other ALTER id TYPE bigint;
ALTER TABLE other DISABLE TRIGGER ALL;
DROP TABLE other;
SELECT * FROM test.queue();
-- renamed, and moved to another schema
ALTER TABLE t RENAME TO t2;
CREATE SCHEMA s;
ALTER TABLE t2 SET SCHEMA s;
INSERT INTO s.t2 (id, c) VALUES (6, 0);
SELECT seq, op, rel, new_row FROM test.queue();
-- roles: the owner of the table has no rights on anything of ours
CREATE ROLE capture_owner;
CREATE ROLE capture_writer;
GRANT CREATE, USAGE ON SCHEMA s TO capture_owner;
GRANT USAGE ON SCHEMA s TO capture_writer;
CREATE TABLE s.owned (id int PRIMARY KEY, k int DEFAULT 1);
ALTER TABLE s.owned OWNER TO capture_owner;
SELECT test.add('s.owned') > 0 AS added;
GRANT INSERT ON s.owned TO capture_writer;
SET ROLE capture_writer;
INSERT INTO s.owned VALUES (1);
SELECT cutover._install_capture(1);
SELECT count(*) FROM cutover._queue_1_0;
DROP TABLE s.owned;
RESET ROLE;
SET ROLE capture_owner;
ALTER TABLE s.owned ADD v text;
ALTER TABLE s.owned ALTER k TYPE bigint;
ALTER TABLE s.owned DISABLE TRIGGER ALL;
INSERT INTO s.owned VALUES (2, 2, 'x');
DROP TABLE s.owned;
RESET ROLE;
SELECT seq, op, rel, new_row, detail FROM test.queue();
CREATE TABLE s.forpart (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
ALTER TABLE s.forpart OWNER TO capture_owner;
SELECT test.add('s.forpart') > 0 AS added;
SET ROLE capture_owner;
CREATE TABLE s.forpart1 PARTITION OF s.forpart FOR VALUES IN (1);
INSERT INTO s.forpart VALUES (1, 1);
ALTER TABLE s.forpart DETACH PARTITION s.forpart1;
RESET ROLE;
SELECT op, rel, old_row, new_row, detail FROM test.queue();
DROP TABLE s.forpart, s.forpart1;
SELECT op, rel, detail FROM test.queue();
-- DROP OWNED
CREATE TABLE s.owned (id int PRIMARY KEY);
ALTER TABLE s.owned OWNER TO capture_owner;
SELECT test.add('s.owned') > 0 AS added;
DROP OWNED BY capture_owner;
SELECT op, rel, detail FROM test.queue();
-- the extension stays while a migration is under way
DROP EXTENSION cutover;
DROP EXTENSION cutover CASCADE;
DROP SCHEMA s CASCADE;
SELECT op, rel, detail FROM test.queue();
SELECT count(*) FROM cutover._table;
DROP OWNED BY capture_writer;
DROP ROLE capture_owner, capture_writer;
\set ECHO none
\i :teardown
