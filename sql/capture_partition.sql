-- partitions: rows move, and come and go with them
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
\set ECHO all
SELECT test.target(1);
CREATE VIEW test.triggers AS SELECT tgrelid::regclass, tgname, tgenabled, tgtype & 2 <> 0 AS before FROM pg_trigger
	WHERE tgfoid = 'cutover._capture'::regproc ORDER BY tgrelid::regclass::text, tgname;
CREATE VIEW test.members AS SELECT relid::regclass FROM cutover._member ORDER BY relid::regclass::text;
CREATE TABLE part (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
-- columns in another order
CREATE TABLE part2 (v text, junk int, k int NOT NULL, id int NOT NULL);
ALTER TABLE part2 DROP junk;
ALTER TABLE part ATTACH PARTITION part2 FOR VALUES IN (2);
CREATE TABLE part3 PARTITION OF part FOR VALUES IN (3, 4) PARTITION BY LIST (k);
CREATE TABLE part33 PARTITION OF part3 FOR VALUES IN (3);
SELECT test.add('part') AS part \gset
SELECT * FROM test.triggers;
SELECT * FROM test.members;
INSERT INTO part VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c');
INSERT INTO part2 (id, k, v) VALUES (22, 2, 'direct');
UPDATE part SET k = 2, v = 'moved' WHERE id = 1;
UPDATE part SET v = 'x' WHERE id = 2;
DELETE FROM part WHERE id = 2;
SELECT * FROM test.queue();
SELECT attname, root_attnum FROM cutover._layout ORDER BY layout_id;
-- a new partition, at any depth; one with rows
CREATE TABLE part34 PARTITION OF part3 FOR VALUES IN (4);
INSERT INTO part VALUES (4, 4, 'd');
CREATE TABLE part5 (id int NOT NULL, k int NOT NULL, v text);
INSERT INTO part5 VALUES (50, 5, 'e'), (51, 5, 'f');
ALTER TABLE part ATTACH PARTITION part5 FOR VALUES IN (5);
INSERT INTO part5 VALUES (52, 5, 'g');
SELECT * FROM test.queue();
CREATE TABLE part6 (id int NOT NULL, k int NOT NULL, v text) PARTITION BY LIST (k);
CREATE TABLE part66 PARTITION OF part6 FOR VALUES IN (6);
INSERT INTO part6 VALUES (60, 6, 'tree');
BEGIN;
ALTER TABLE part ATTACH PARTITION part6 FOR VALUES IN (6);
INSERT INTO part VALUES (61, 6, 'same transaction');
COMMIT;
SELECT * FROM test.queue();
SELECT * FROM test.triggers;
-- TRUNCATE of one partition, of all
TRUNCATE part5;
SELECT * FROM test.queue();
BEGIN; INSERT INTO part VALUES (53, 5, 'h'); TRUNCATE part; INSERT INTO part VALUES (54, 5, 'i'); TRUNCATE part5; COMMIT;
SELECT * FROM test.queue();
-- partitions that leave
INSERT INTO part VALUES (1, 1, 'a'), (3, 3, 'c'), (4, 4, 'd'), (54, 5, 'j'), (6, 6, 'k');
SELECT count(*) FROM test.queue();
ALTER TABLE part DETACH PARTITION part5;
INSERT INTO part5 VALUES (55, 5, 'not ours');
SELECT * FROM test.queue();
ALTER TABLE part DETACH PARTITION part6 CONCURRENTLY;
SELECT * FROM test.queue();
DROP TABLE part34;
SELECT * FROM test.queue();
CREATE SCHEMA gone;
ALTER TABLE part1 SET SCHEMA gone;
DROP SCHEMA gone CASCADE;
SELECT * FROM test.queue();
SELECT * FROM test.members;
-- a partition whose values are out of line
CREATE TABLE part7 PARTITION OF part FOR VALUES IN (7);
ALTER TABLE part7 ALTER v SET STORAGE EXTERNAL;
CREATE TABLE bare (a int, v text) PARTITION BY LIST (a);
CREATE TABLE bare1 PARTITION OF bare FOR VALUES IN (1);
ALTER TABLE bare1 ALTER v SET STORAGE EXTERNAL;
SELECT test.add('bare') AS bare \gset
INSERT INTO bare VALUES (1, repeat('x', 5000));
DROP TABLE bare1;
SELECT op, flags, old_row, new_row, detail FROM test.queue();
-- rows that are not to follow
SET cutover.partition_rows = ignore;
ALTER TABLE part ATTACH PARTITION part5 FOR VALUES IN (5);
ALTER TABLE part DETACH PARTITION part5;
DROP TABLE part33;
SELECT * FROM test.queue();
RESET cutover.partition_rows;
-- what is rolled back did not happen
BEGIN; ALTER TABLE part ATTACH PARTITION part5 FOR VALUES IN (5); ROLLBACK;
SELECT * FROM test.queue();
SELECT * FROM test.members;
-- the table as a whole leaves: its rows stay where they are on new
DROP TABLE part;
SELECT * FROM test.queue();
SELECT * FROM test.members;
SELECT table_id = :bare AS bare_is_left FROM cutover._table;
-- capture comes off
SELECT cutover._remove_capture(:bare);
SELECT cutover._remove_capture(:bare);
SELECT * FROM test.triggers;
CREATE TABLE bare2 PARTITION OF bare FOR VALUES IN (2);
SELECT * FROM test.triggers;
SELECT * FROM test.queue();
DROP TABLE bare, part5, part6;
\set ECHO none
\i :teardown
