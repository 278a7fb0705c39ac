-- what an image holds: out-of-line values, shapes that change, wide and long rows
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
\set ECHO all
SELECT test.target(1);
CREATE TABLE doc (id int PRIMARY KEY, title text, body text, extra text);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL, ALTER extra SET STORAGE EXTERNAL;
SELECT test.add('doc') AS doc \gset
INSERT INTO doc VALUES (1, 'one', repeat('b', 10000), repeat('e', 10000)), (2, 'two', 'short', NULL);
SELECT seq, op, flags, new_row, detail FROM test.queue();
-- an unchanged value stays out
UPDATE doc SET title = 'uno' WHERE id = 1;
UPDATE doc SET extra = repeat('E', 10000) WHERE id = 1;
SELECT seq, op, flags, new_row, detail FROM test.queue();
-- but not if the key changes
UPDATE doc SET id = 10 WHERE id = 1;
SELECT seq, op, flags, old_row, new_row, detail FROM test.queue();
-- nor if this transaction made the old version
BEGIN; UPDATE doc SET title = 'a' WHERE id = 10; UPDATE doc SET title = 'b' WHERE id = 10; COMMIT;
SELECT seq, op, flags, new_row, detail FROM test.queue();
-- nor while the table is being copied
UPDATE cutover._table SET phase = 'copying';
UPDATE doc SET title = 'c' WHERE id = 10;
UPDATE cutover._table SET phase = 'catching_up';
UPDATE doc SET title = 'd' WHERE id = 10;
SELECT seq, op, flags, new_row, detail FROM test.queue();
UPDATE cutover._table SET phase = 'synced';
-- nor if an expression reads it (shard_by is not compiled here, so it may read anything)
UPDATE cutover._table SET shard_by = 'substr(body, 1, 1)';
UPDATE doc SET title = 'e' WHERE id = 10;
DELETE FROM doc WHERE id = 10;
SELECT seq, op, flags, old_row, new_row, detail FROM test.queue();
UPDATE cutover._table SET shard_by = NULL;
-- a compressed value inline, and one out of line
ALTER TABLE doc ALTER body SET STORAGE EXTENDED;
INSERT INTO doc VALUES (3, 'three', repeat('c', 5000));
SELECT seq, op, flags, new_row, detail FROM test.queue();
-- 2 MB
INSERT INTO doc SELECT 4, 'four', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 65536) i);
SELECT count(*), max(length(data)) > 2000000 AS large FROM cutover._queue_1_0;
SELECT seq, op, flags, length(new_row) > 100 AS shown FROM test.queue();
-- the whole old row of a table without key has its values too
CREATE TABLE loose2 (a int, b text);
ALTER TABLE loose2 ALTER b SET STORAGE EXTERNAL;
SELECT test.add('loose2') > 0 AS added;
INSERT INTO loose2 VALUES (1, repeat('l', 5000));
UPDATE loose2 SET a = 2;
SELECT seq, op, flags, old_row, new_row FROM test.queue();
-- shapes: columns come, go, change their names and types between writes
CREATE TABLE shape (id int PRIMARY KEY, a text, b int);
SELECT test.add('shape') AS shape \gset
INSERT INTO shape VALUES (1, 'x', 1), (2, 'y', 2);
ALTER TABLE shape ADD c int DEFAULT 7;
UPDATE shape SET b = 10 WHERE id = 1;
DELETE FROM shape WHERE id = 2;
ALTER TABLE shape DROP a;
INSERT INTO shape VALUES (3, 3, 3);
ALTER TABLE shape RENAME c TO d;
INSERT INTO shape VALUES (4, 4, 4);
ALTER TABLE shape ADD e numeric(10,2), ADD f char(3);
INSERT INTO shape VALUES (5, 5, 5, 5, 'f');
ALTER TABLE shape ALTER f TYPE varchar(4);
INSERT INTO shape VALUES (6, 6, 6, 6, 'six');
SELECT tx, seq, op, flags, old_row, new_row, detail FROM test.queue();
SELECT attname, root_attnum FROM cutover._layout WHERE table_id = :shape ORDER BY layout_id;
-- the key changes its column: capture can't go on, and says so
ALTER TABLE shape DROP COLUMN id;
INSERT INTO shape (b) VALUES (9);
SELECT phase, phase_reason FROM cutover._table WHERE table_id = :shape;
SELECT * FROM test.queue();
-- generated and identity columns
CREATE TABLE gen (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
SELECT test.add('gen') > 0 AS added;
INSERT INTO gen (a) VALUES (4);
UPDATE gen SET a = 5;
SELECT seq, op, flags, new_row FROM test.queue();
-- as many columns as there can be
DO $$ BEGIN
	EXECUTE 'CREATE TABLE wide (id int PRIMARY KEY, ' || (SELECT string_agg('c' || i || ' int', ', ') FROM generate_series(1, 1599) i) || ')';
END $$;
SELECT test.add('wide') AS wide \gset
INSERT INTO wide (id, c1599) VALUES (1, 1599);
UPDATE wide SET c1 = 1;
INSERT INTO wide (id) VALUES (2);
SELECT seq, op, flags, length(new_row) FROM test.queue();
SELECT array_length(attname, 1), count(*) FROM cutover._layout WHERE table_id = :wide GROUP BY 1;
-- expressions of columns and filters
CREATE TABLE expr (id int PRIMARY KEY, a text, b text, c text);
ALTER TABLE expr ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER c SET STORAGE EXTERNAL;
SELECT test.add('expr') AS expr \gset
ALTER TABLE expr ADD CONSTRAINT filter CHECK (length(a) > 0), ADD CONSTRAINT col CHECK (length(b) > 0);
UPDATE cutover._table SET row_filter = 'x', row_filter_expr = (SELECT conbin FROM pg_constraint WHERE conname = 'filter') WHERE table_id = :expr;
INSERT INTO cutover._column (table_id, new_column, expression, expr)
	SELECT :expr, 'b', 'x', conbin FROM pg_constraint WHERE conname = 'col';
INSERT INTO expr VALUES (1, repeat('a', 5000), repeat('b', 5000), repeat('c', 5000));
UPDATE expr SET id = 1;
SELECT seq, op, flags, detail FROM test.queue();
DROP TABLE doc, loose2, shape, gen, wide, expr;
\set ECHO none
\i :teardown
