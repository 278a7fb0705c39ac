-- savepoints, spills, and triggers that change rows under way
\getenv dir PG_ABS_SRCDIR
\set setup :dir /sql/include/capture_setup.sql
\set teardown :dir /sql/include/capture_teardown.sql
\set ECHO none
\i :setup
\set ECHO all
SELECT test.target(1);
CREATE TABLE t (id int PRIMARY KEY, v text);
SELECT test.add('t') > 0 AS added;
CREATE PROCEDURE test.savepoints() LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO t VALUES (1, 'outer');
	BEGIN
		INSERT INTO t VALUES (2, 'lost');
		BEGIN
			INSERT INTO t VALUES (3, 'lost with its parent');
		EXCEPTION WHEN others THEN NULL;
		END;
		RAISE EXCEPTION 'x';
	EXCEPTION WHEN others THEN
		INSERT INTO t VALUES (4, 'handler');
	END;
	BEGIN
		INSERT INTO t VALUES (5, 'released');
		BEGIN
			INSERT INTO t VALUES (6, 'lost');
			RAISE EXCEPTION 'x';
		EXCEPTION WHEN others THEN NULL;
		END;
		INSERT INTO t VALUES (7, 'released');
	EXCEPTION WHEN others THEN NULL;
	END;
	INSERT INTO t VALUES (8, 'outer');
END $$;
-- kept in memory to the end; every change spilled at once
CALL test.savepoints();
SELECT * FROM test.queue();
TRUNCATE t;
SELECT op FROM test.queue();
SET cutover.spill_size = 0;
CALL test.savepoints();
SELECT * FROM test.queue();
TRUNCATE t;
SELECT op FROM test.queue();
BEGIN;
SAVEPOINT a; INSERT INTO t VALUES (1, 'a');
SAVEPOINT b; INSERT INTO t VALUES (2, 'b');
ROLLBACK TO b; INSERT INTO t VALUES (3, 'b again');
RELEASE a;
SAVEPOINT c; INSERT INTO t VALUES (4, 'c'); ROLLBACK TO c;
COMMIT;
SELECT * FROM test.queue();
RESET cutover.spill_size;
-- rows of the outer transaction stay in memory while an inner one spills
CREATE TABLE big (id int PRIMARY KEY, v text);
SELECT test.add('big') > 0 AS added;
SET cutover.spill_size = 64;
BEGIN;
INSERT INTO big SELECT i, repeat('x', 500) FROM generate_series(1, 100) i;
SAVEPOINT s;
INSERT INTO big SELECT i, repeat('y', 500) FROM generate_series(101, 600) i;
ROLLBACK TO s;
INSERT INTO big SELECT i, repeat('z', 500) FROM generate_series(601, 700) i;
SAVEPOINT s2;
INSERT INTO big SELECT i, repeat('y', 500) FROM generate_series(101, 400) i;
RELEASE s2;
UPDATE big SET v = 'last' WHERE id IN (1, 101);
COMMIT;
-- all there, each number once, blocks don't overlap
SELECT count(*), count(DISTINCT seq) AS numbers, count(DISTINCT new_row) AS rows FROM test.queue();
-- many subtransactions, one after the other
DO $$
BEGIN
	FOR i IN 1..2000 LOOP
		BEGIN
			UPDATE big SET v = repeat('w', 300) || i WHERE id = 1 + i % 100;
			IF i % 7 = 0 THEN RAISE EXCEPTION 'x'; END IF;
		EXCEPTION WHEN others THEN NULL;
		END;
	END LOOP;
END $$;
SELECT avg(n) > 15 AS blocks_are_full FROM cutover._queue_1_0;
SELECT count(*), count(DISTINCT seq) AS numbers FROM test.queue();
-- memory stays bounded where every change is made in a subtransaction of its own: most is written before the end
BEGIN;
DO $$
BEGIN
	FOR i IN 1..2000 LOOP
		BEGIN
			UPDATE big SET v = repeat('r', 300) || i WHERE id = 1 + i % 100;
			IF i % 10 = 0 THEN RAISE EXCEPTION 'x'; END IF;
		EXCEPTION WHEN others THEN NULL;
		END;
	END LOOP;
END $$;
SELECT sum(n) > 1500 AS most FROM cutover._queue_1_0;
COMMIT;
SELECT count(*), count(DISTINCT seq) AS numbers FROM test.queue();
RESET cutover.spill_size;
-- a layout made in a subtransaction that is rolled back is made again
BEGIN;
CREATE TABLE lay (id int PRIMARY KEY);
SELECT test.add('lay') > 0 AS added;
SAVEPOINT s;
INSERT INTO lay VALUES (1);
ROLLBACK TO s;
INSERT INTO lay VALUES (2);
COMMIT;
SELECT * FROM test.queue();
-- a trigger changes rows of the same statement before their turn
TRUNCATE t;
INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c');
SELECT op FROM test.queue();
CREATE FUNCTION test.nested() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() > 1 THEN RETURN NULL; END IF;
	IF TG_OP = 'UPDATE' AND NEW.id = 1 THEN
		UPDATE t SET v = 'nested' WHERE id = 2;
		DELETE FROM t WHERE id = 3;
	ELSIF TG_OP = 'DELETE' AND OLD.id = 1 THEN
		INSERT INTO t VALUES (2, 'again');
	ELSIF TG_OP = 'INSERT' AND NEW.id = 10 THEN
		UPDATE t SET v = 'nested' WHERE id = 11;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER nested AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION test.nested();
-- 2 ends as nested, 3 is gone: their images of the outer statement are not captured
UPDATE t SET v = 'outer';
SELECT * FROM test.queue();
SELECT * FROM t ORDER BY id;
-- the outer DELETE of 2 comes after the INSERT of the new 2: read it again
DELETE FROM t;
SELECT * FROM test.queue();
SELECT * FROM t ORDER BY id;
INSERT INTO t VALUES (10, 'x'), (11, 'y');
SELECT * FROM test.queue();
-- the key changes, and the old one is taken by a newer row
TRUNCATE t;
INSERT INTO t VALUES (1, 'a'), (5, 'b');
SELECT op FROM test.queue();
CREATE OR REPLACE FUNCTION test.nested() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() = 1 AND TG_OP = 'UPDATE' AND NEW.id = 101 THEN
		INSERT INTO t VALUES (5, 'new five');
	END IF;
	RETURN NULL;
END $$;
UPDATE t SET id = id + 100;
SELECT * FROM test.queue();
DROP TRIGGER nested ON t;
-- a nested change that is undone does not hide the outer one
CREATE OR REPLACE FUNCTION test.nested() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() = 1 AND NEW.id = 101 THEN
		BEGIN
			UPDATE t SET v = 'undone' WHERE id = 5;
			RAISE EXCEPTION 'x';
		EXCEPTION WHEN others THEN NULL;
		END;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER nested AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION test.nested();
UPDATE t SET v = 'outer';
SELECT * FROM test.queue();
DROP TRIGGER nested ON t;
-- a key that two rows may have for a while: old keys are read again
CREATE TABLE du (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
SELECT test.add('du') > 0 AS added;
INSERT INTO du VALUES (1, 'a'), (2, 'b');
UPDATE du SET id = 3 - id;
BEGIN; INSERT INTO du VALUES (1, 'new'); DELETE FROM du WHERE v = 'b'; COMMIT;
SELECT * FROM test.queue();
DROP TABLE du;
SELECT op FROM test.queue();
-- triggers deferred to the commit
CREATE FUNCTION test.late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO big VALUES (-NEW.id, 'deferred');
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION test.late();
BEGIN;
INSERT INTO t VALUES (50, 'x');
INSERT INTO t VALUES (51, 'y');
COMMIT;
SELECT * FROM test.queue();
-- procedures that commit
CREATE PROCEDURE test.commits() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..4 LOOP
		UPDATE t SET v = i::text WHERE id = 50;
		IF i % 2 = 0 THEN COMMIT; ELSE ROLLBACK; END IF;
	END LOOP;
END $$;
CALL test.commits();
SELECT * FROM test.queue();
DROP TABLE t, big, lay;
\set ECHO none
\i :teardown
