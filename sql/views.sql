-- views say what our tables hold, and to whom
\set SHOW_CONTEXT never
CREATE DATABASE regress_cutover_old;
CREATE DATABASE regress_cutover_new;
SELECT current_database() AS home \gset
\c regress_cutover_old
CREATE EXTENSION cutover;
SELECT format('host=%s port=%s dbname=regress_cutover_new user=%s password=%s', split_part(current_setting('unix_socket_directories'), ',', 1),
	current_setting('port'), current_user, 'xyzzy') AS address \gset
SELECT cutover_add_target('x', :'address');
SELECT target_id FROM cutover._target \gset
CREATE TABLE goods (id int, "Part" text, v text, PRIMARY KEY ("Part", id));
CREATE TABLE bare (secret text);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (10);
\c regress_cutover_new
CREATE TABLE goods (id int, "Part" text, v text, PRIMARY KEY ("Part", id));
CREATE TABLE bare (secret text);
CREATE TABLE parts (id int PRIMARY KEY);
\c regress_cutover_old
\set SHOW_CONTEXT never

-- what is missing, in the order in which it is missing
SELECT target, state, mode, epoch, queued_changes, lag, waiting_for FROM cutover.status;
SELECT cutover_add_table('goods'), cutover_add_table('bare'), cutover_add_table('parts');
SELECT target, state, waiting_for FROM cutover.status;
SELECT target, table_name, new_table, phase, key_columns, version_column, capture_enabled, last_compared_at, clean_passes FROM cutover.tables;
SELECT cutover_mode(), cutover_mode('x');
SELECT target, from_mode, to_mode, epoch, pause, drained_changes FROM cutover_set_mode('old_only');
SELECT cutover_set_mode('dual_write');
SELECT * FROM cutover.mode_change;
SELECT * FROM cutover.read_stats;
SELECT target, table_name, missing, extra, different, rows_compared, last_compared_at, clean_passes FROM cutover.divergence_summary;

-- states.  Not committed: a worker that is started sees nothing of it, and ends.
BEGIN;
UPDATE cutover._target SET desired = 'running';
SELECT state, regexp_replace(waiting_for, 'the replicator is not running[^;]*; ', '') AS waiting_for FROM cutover.status;
UPDATE cutover._table SET phase = 'synced';
SELECT state FROM cutover.status;
UPDATE cutover._table SET phase = 'resync_needed', phase_reason = 'a partition was attached' WHERE new_name = 'parts';
SELECT state, regexp_replace(waiting_for, 'the replicator is not running[^;]*; ', '') AS waiting_for FROM cutover.status;
UPDATE cutover._target SET desired = 'paused';
SELECT state, waiting_for FROM cutover.status;
UPDATE cutover._target SET desired = 'running', rewound = true;
SELECT state, split_part(waiting_for, ';', 1) AS waiting_for FROM cutover.status;
UPDATE cutover._target SET system_identifier = 1;
SELECT state, waiting_for FROM cutover.status;
UPDATE cutover._target SET desired = 'finished';
SELECT state, waiting_for FROM cutover.status;
ROLLBACK;
-- of several targets, which
BEGIN;
INSERT INTO cutover._target (target, server, migration_id, system_identifier, desired)
SELECT v.target, v.target, gen_random_uuid(), system_identifier, v.desired
FROM (VALUES ('it''s', 'idle'), ('y', 'paused')) v (target, desired), pg_control_system();
SELECT target, state, waiting_for FROM cutover.status;
SELECT target, table_name FROM cutover.tables;
ROLLBACK;

-- progress
BEGIN;
UPDATE cutover._table SET phase = 'copying', copy_started_at = clock_timestamp() - interval '100 s', rows_total = 1000, bytes_total = 100000
	WHERE new_name = 'goods';
INSERT INTO cutover._chunk (table_id, generation, chunk_no, state, rows, bytes)
SELECT t.table_id, 0, n, CASE WHEN n <= 3 THEN 'done' WHEN n <= 5 THEN 'copying' ELSE 'pending' END, 100, 10000
FROM cutover._table t, generate_series(1, 8) n WHERE new_name = 'goods';
SELECT table_name, phase, rows_done, rows_total, bytes_done, bytes_total, percent, round(rows_per_s) AS rows_per_s, date_trunc('second', eta) AS eta, bar
FROM cutover.progress;
-- more than was estimated is no more than all
UPDATE cutover._chunk SET state = 'done', rows = 1000;
SELECT table_name, phase, rows_done, rows_total, percent, bar FROM cutover.progress WHERE rows_done > 0;
UPDATE cutover._table SET phase = 'synced', copy_ended_at = copy_started_at + interval '80 s';
SELECT table_name, phase, rows_done, rows_total, percent, rows_per_s, eta, bar FROM cutover.progress ORDER BY 3 DESC, 1;
-- a copy from the start begins at nothing
UPDATE cutover._table SET phase = 'copying', copy_generation = 1;
SELECT DISTINCT rows_done, percent FROM cutover.progress;
ROLLBACK;
SELECT cutover._bar(p) FROM unnest('{NULL, -1, 0, 4.1, 4.2, 50, 99.9, 100, 101}'::numeric[]) p;

-- the queue: exactly what the acknowledged snapshot does not see, in all segments
INSERT INTO cutover._queue_1_0 (xid, lsn, seq, n, data)
SELECT x::text::xid8, '0/1', 0, x, '' FROM generate_series(100, 120) x;
INSERT INTO cutover._queue_1_1 (xid, lsn, seq, n, data) VALUES ('99', '0/1', 0, 1000, ''), ('130', '0/1', 0, 10000, '');
-- nothing acknowledged
SELECT cutover._queued_changes(:target_id);
INSERT INTO cutover._marker VALUES (:target_id, 'forward', 7, '99:200:99', '102:118:102,110', now());
SELECT cutover._queued_changes(:target_id), 102 + 110 + 118 + 119 + 120 + 10000 AS expected;
SELECT queued_changes, queue_bytes > 0 AS queue_bytes, lag FROM cutover.replication;
DELETE FROM cutover._marker;
TRUNCATE cutover._queue_1_0, cutover._queue_1_1;

-- who is still writing, in words
SET TIME ZONE 'UTC';
INSERT INTO cutover._member SELECT old_table, table_id FROM cutover._table WHERE new_name = 'goods';
BEGIN;
INSERT INTO goods VALUES (1, 'a');
PREPARE TRANSACTION 'left over';
SELECT regexp_replace(cutover._open_writers(:target_id, '0'), 'of \w+, open since [^,]*', 'of ..., open since ...');
ROLLBACK PREPARED 'left over';
SELECT cutover._open_writers(:target_id, '0');
DELETE FROM cutover._member;

-- who sees what: keys for all who may read the views, values for those who may read the table
INSERT INTO cutover._apply_error (target_id, table_id, key, sqlstate, message)
SELECT target_id, table_id, CASE new_name WHEN 'goods' THEN '{"id": "1", "Part": "a"}' ELSE '{"secret": "hidden"}' END::jsonb, '22003',
	'value "hidden" is out of range' FROM cutover._table WHERE new_name <> 'parts';
UPDATE cutover._table SET phase = 'resync_needed', phase_reason = 'could not write "hidden"';
SELECT cutover._log_event('resync_needed', '{"table": "public.goods", "reason": "could not write hidden"}', :target_id);
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_admin IN ROLE cutover_admin;
GRANT SELECT ON goods TO regress_admin;
SELECT table_name, key, sqlstate, message FROM cutover.apply_error ORDER BY 1;
SET ROLE regress_monitor;
SELECT table_name, key, sqlstate, message FROM cutover.apply_error ORDER BY 1;
SELECT table_name, phase, phase_reason FROM cutover.tables;
SELECT detail FROM cutover.event WHERE kind = 'resync_needed';
SET ROLE regress_admin;
SELECT detail FROM cutover.event WHERE kind = 'resync_needed';
SELECT table_name, key, sqlstate, message FROM cutover.apply_error ORDER BY 1;
SELECT table_name, phase, phase_reason FROM cutover.tables;
-- row security hides rows: then their values too
RESET ROLE;
ALTER TABLE goods ENABLE ROW LEVEL SECURITY;
SET ROLE regress_admin;
SELECT table_name, key, sqlstate, message FROM cutover.apply_error ORDER BY 1;
SELECT waiting_for LIKE '%hidden%' AS leaks FROM cutover.status;
RESET ROLE;
ALTER TABLE goods DISABLE ROW LEVEL SECURITY;

-- metrics
SELECT metric, target, value, type FROM cutover.metrics WHERE metric <> 'queue_bytes' ORDER BY metric COLLATE "C";
SELECT regexp_replace(cutover_metrics(), '(queue_bytes\{target="x"\}) \d+', '\1 N');
-- a name is quoted
BEGIN;
UPDATE cutover._target SET target = E'a"b\\c';
SELECT line FROM regexp_split_to_table(cutover_metrics(), '\n') line WHERE line LIKE 'cutover_epoch%';
ROLLBACK;

-- a dropped table is a number, and breaks nothing
BEGIN;
SET LOCAL client_min_messages = error;
UPDATE cutover._table SET old_table = 1 WHERE new_name = 'bare';
SELECT count(*) FROM cutover.tables;
SELECT count(waiting_for) FROM cutover.status;
SELECT table_name, message FROM cutover.apply_error WHERE key->>'secret' = 'hidden';
ROLLBACK;

-- the password is nowhere
CREATE FUNCTION pg_temp.holds(view name, word text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	EXECUTE format('SELECT count(*) FROM cutover.%I v WHERE strpos(v::text, $1) > 0', view) INTO n USING word;
	RETURN n > 0;
END
$$;
SELECT count(*) > 15 AS views, count(*) FILTER (WHERE pg_temp.holds(relname, 'xyzzy')) AS leaks, count(*) FILTER (WHERE pg_temp.holds(relname, 'goods')) > 3 AS finds
FROM pg_class WHERE relnamespace = 'cutover'::regnamespace AND relkind = 'v';

DELETE FROM cutover._apply_error;
DROP EXTENSION cutover CASCADE;
\c :home
DROP DATABASE regress_cutover_old;
DROP DATABASE regress_cutover_new;
DROP ROLE regress_monitor, regress_admin;
