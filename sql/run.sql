-- what actions refuse, and that they do what they say; a replicator runs
\set SHOW_CONTEXT never
CREATE DATABASE regress_run_old;
CREATE DATABASE regress_run_new;
SELECT current_database() AS home \gset
\c regress_run_old
\set SHOW_CONTEXT never
CREATE EXTENSION cutover;
SELECT split_part(current_setting('unix_socket_directories'), ',', 1) AS host,
	current_setting('port') AS port, current_user AS me \gset
\set address 'host=' :host ' port=' :port ' user=' :me ' dbname=regress_run_new'
CREATE TABLE parent (id int PRIMARY KEY, a text);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE INDEX child_parent ON child (parent);
INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 100) i;
INSERT INTO child SELECT i, i FROM generate_series(1, 100) i;

CREATE PROCEDURE await_synced() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..6000 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM cutover.tables WHERE phase <> 'synced');
		COMMIT;
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;

-- nothing to start
SELECT cutover_add_target('x', :'address');
SELECT cutover_start();
\echo :SQLSTATE
SELECT cutover_add_tables();
-- preflight objects: there are no tables there
SELECT cutover_start();
\echo :SQLSTATE
\c regress_run_new
CREATE TABLE parent (id int PRIMARY KEY, a text);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE INDEX child_parent ON child (parent);
\c regress_run_old
\set SHOW_CONTEXT never

-- not before it is started
SELECT cutover_pause();
\echo :SQLSTATE
SELECT cutover_resume();
\echo :SQLSTATE
SELECT cutover_wait();
\echo :SQLSTATE
SELECT cutover_resync('parent');
\echo :SQLSTATE
SELECT cutover_run_ddl('SELECT 1');
\echo :SQLSTATE
SELECT cutover_start(copy => NULL);
\echo :SQLSTATE
SELECT cutover_retry_errors(), cutover_skip_errors();

-- actions are no part of a transaction
BEGIN;
SELECT cutover_start();
\echo :SQLSTATE
ROLLBACK;
BEGIN;
SELECT cutover_cancel();
\echo :SQLSTATE
ROLLBACK;
SELECT cutover_start() \; SELECT 1;
\echo :SQLSTATE
DO $$
BEGIN
	PERFORM cutover_start();
EXCEPTION WHEN OTHERS THEN
	RAISE NOTICE '% %', SQLSTATE, SQLERRM;
END
$$;
CREATE FUNCTION starter() RETURNS void LANGUAGE sql AS 'SELECT cutover_start()';
BEGIN;
SELECT starter();
\echo :SQLSTATE
ROLLBACK;
SELECT desired FROM cutover._target;

-- a table that somebody writes to for long: given up, undone
-- (a prepared transaction keeps its locks without a session)
BEGIN;
UPDATE child SET parent = 1 WHERE id = 1;
PREPARE TRANSACTION 'regress_run';
ALTER SYSTEM SET cutover.lock_timeout = '20 ms';
SELECT pg_reload_conf();
\set VERBOSITY sqlstate
SELECT cutover_start();
\set VERBOSITY default
SELECT desired, started_at FROM cutover._target;
SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover';
ROLLBACK PREPARED 'regress_run';
ALTER SYSTEM RESET cutover.lock_timeout;
SELECT pg_reload_conf();

-- a read-only session may act
SET default_transaction_read_only = on;
SELECT cutover_start();
RESET default_transaction_read_only;
SELECT cutover_start();
\echo :SQLSTATE
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
CALL await_synced();
SELECT table_name, phase FROM cutover.tables ORDER BY 1;
SELECT cutover_drop_target('x');
\echo :SQLSTATE

-- wait
SELECT cutover_wait(NULL);
\echo :SQLSTATE
SELECT cutover_wait('-1 s');
\echo :SQLSTATE
SELECT cutover_wait('1000 years');
\echo :SQLSTATE
INSERT INTO parent VALUES (1000, 'new');
BEGIN READ ONLY;
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
COMMIT;
\c regress_run_new
SELECT count(*), max(id) FROM parent;
SELECT conname FROM pg_constraint WHERE contype = 'f';
SELECT indexrelid::regclass FROM pg_index WHERE indrelid IN ('parent'::regclass, 'child'::regclass) ORDER BY 1;
\c regress_run_old
\set SHOW_CONTEXT never

-- pause, resume: each may be said twice
SELECT cutover_pause();
SELECT cutover_pause();
SELECT state FROM cutover.status;
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover replicator' AND datname = current_database();
INSERT INTO parent VALUES (1001, 'while paused');
SELECT cutover_wait('100 ms');
\echo :SQLSTATE
SELECT cutover_start();
\echo :SQLSTATE
SELECT cutover_resume();
SELECT cutover_resume();
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
SELECT cutover_resync('parent');
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
SELECT cutover_resync(NULL);
\echo :SQLSTATE
SELECT cutover_resync('pg_class');
\echo :SQLSTATE

-- schema changes, with the caller's rights and search_path
CREATE SCHEMA regress_path;
CREATE ROLE regress_run_admin IN ROLE cutover_admin;
GRANT CREATE, USAGE ON SCHEMA public TO regress_run_admin;
SELECT cutover_run_ddl('ALTER TABLE parent ADD COLUMN b int DEFAULT 7; CREATE INDEX ON parent (b)');
SET search_path = regress_path;
SELECT public.cutover_run_ddl('CREATE TABLE here (id int)', '');
RESET search_path;
SELECT 'regress_path.here'::regclass;
INSERT INTO parent VALUES (1002, 'with b', 8);
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
\c regress_run_new
SELECT * FROM parent WHERE id > 999 ORDER BY id;
\c regress_run_old
\set SHOW_CONTEXT never
SELECT cutover_run_ddl(NULL);
\echo :SQLSTATE
SELECT cutover_run_ddl('nonsense');
\echo :SQLSTATE
SELECT cutover_run_ddl('CREATE INDEX CONCURRENTLY ON parent (a)');
\echo :SQLSTATE
SELECT cutover_run_ddl('COMMIT');
\echo :SQLSTATE
SELECT cutover_run_ddl('SELECT 1', 'ROLLBACK; DROP TABLE parent');
\echo :SQLSTATE
SELECT cutover_run_ddl('DO $$ BEGIN COMMIT; END $$', '');
\echo :SQLSTATE
SET search_path = '';
SELECT public.cutover_run_ddl('CREATE TABLE public.no_path (id int)', 'CREATE TABLE public.no_path (id int); -- the end');
RESET search_path;
SET ROLE regress_run_admin;
SELECT cutover_run_ddl('ALTER TABLE parent ADD COLUMN c int');
\echo :SQLSTATE
SELECT cutover_run_ddl('RESET SESSION AUTHORIZATION; CREATE TABLE stolen (id int)', '');
\echo :SQLSTATE
SELECT cutover_run_ddl('DECLARE c CURSOR WITH HOLD FOR SELECT 1', '');
\echo :SQLSTATE
SELECT cutover_resync('parent');
\echo :SQLSTATE
SELECT cutover._action('x', 'SELECT 1', '{}');
\echo :SQLSTATE
SELECT count(*) FROM cutover._target;
\echo :SQLSTATE
SELECT cutover_run_ddl('CREATE TABLE admins_own (id int)', '');
RESET ROLE;
SELECT relowner::regrole FROM pg_class WHERE relname = 'admins_own';
-- new refuses one: the queue stands until somebody decides
SELECT cutover_run_ddl('CREATE TABLE twice (id int)', 'CREATE TABLE parent (id int)');
\echo :SQLSTATE
SELECT target, table_name, key, sqlstate, message FROM cutover.apply_error;
SELECT cutover_run_ddl('CREATE TABLE thrice (id int)');
\echo :SQLSTATE
SELECT cutover_skip_errors();
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
SELECT count(*) FROM cutover.apply_error;
SELECT cutover_run_ddl('DROP TABLE twice', '');

-- retry, skip
SELECT cutover_retry_errors('{parent,pg_class}');
\echo :SQLSTATE
SELECT cutover_retry_errors('{parent,NULL}');
\echo :SQLSTATE
SELECT cutover_skip_errors('{parent}');
SELECT cutover_retry_errors('{}');

-- tables come and go
CREATE TABLE late (id int PRIMARY KEY);
INSERT INTO late VALUES (1);
\c regress_run_new
CREATE TABLE late (id int PRIMARY KEY);
CREATE INDEX late_index ON late (id);
\c regress_run_old
\set SHOW_CONTEXT never
BEGIN;
SELECT cutover_add_table('late');
INSERT INTO late VALUES (2);
COMMIT;
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
CALL await_synced();
SELECT table_name, phase FROM cutover.tables ORDER BY 1;
BEGIN;
SELECT cutover_remove_table('late');
INSERT INTO late VALUES (3);
ROLLBACK;
INSERT INTO late VALUES (4);
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
\c regress_run_new
TABLE late ORDER BY id;
\c regress_run_old
\set SHOW_CONTEXT never
SELECT cutover_remove_table('late');
INSERT INTO late VALUES (5);
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'late'::regclass AND NOT tgisinternal;
\c regress_run_new
TABLE late ORDER BY id;
SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'late'::regclass ORDER BY 1;
\c regress_run_old
\set SHOW_CONTEXT never

-- the end
SELECT cutover_finish();
\echo :SQLSTATE
SELECT cutover_adopt();
SELECT count(*) FROM (SELECT cutover_wait('2 min')) w;
SELECT cutover_cancel();
SELECT count(*) FROM cutover._target;
SELECT cutover_cancel();
\echo :SQLSTATE
SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover';
SELECT count(*) FROM pg_class WHERE relname ~ '^_queue_\d';
SELECT count(*) FROM pg_foreign_server;
SELECT (SELECT count(*) FROM cutover._table) + (SELECT count(*) FROM cutover._column) + (SELECT count(*) FROM cutover._member)
	+ (SELECT count(*) FROM cutover._chunk) + (SELECT count(*) FROM cutover._marker) + (SELECT count(*) FROM cutover._layout);
\c regress_run_new
SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover';
SELECT count(*) FROM parent;
SELECT conname FROM pg_constraint WHERE contype = 'f';
SELECT tgname FROM pg_trigger WHERE NOT tgisinternal;
\c regress_run_old
SELECT kind, target, detail - 'version' - 'system_identifier' AS detail FROM cutover.event WHERE actor = current_user ORDER BY event_id;
\c :home
DROP DATABASE regress_run_old;
DROP DATABASE regress_run_new;
DROP ROLE regress_run_admin;
