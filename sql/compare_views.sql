-- what differs and what was compared: the figures, and who sees which values
\set SHOW_CONTEXT never
CREATE DATABASE regress_cutover_old;
CREATE DATABASE regress_cutover_new;
SELECT current_database() AS home \gset
\c regress_cutover_old
CREATE EXTENSION cutover;
SET TIME ZONE 'UTC';
SELECT format('host=%s port=%s dbname=regress_cutover_new user=%s', split_part(current_setting('unix_socket_directories'), ',', 1),
	current_setting('port'), current_user) AS address \gset
SELECT cutover_add_target('x', :'address');
CREATE TABLE goods (id int PRIMARY KEY, v text, w text);
CREATE TABLE bare (secret text);
CREATE TABLE quiet (id int PRIMARY KEY);
\c regress_cutover_new
CREATE TABLE goods (id int PRIMARY KEY, v text, w text);
CREATE TABLE bare (secret text);
CREATE TABLE quiet (id int PRIMARY KEY);
\c regress_cutover_old
\set SHOW_CONTEXT never
SET TIME ZONE 'UTC';
SELECT cutover_add_table('goods'), cutover_add_table('bare'), cutover_add_table('quiet');
SELECT target_id FROM cutover._target \gset
SELECT table_id AS goods FROM cutover._table WHERE new_name = 'goods' \gset
SELECT table_id AS bare FROM cutover._table WHERE new_name = 'bare' \gset
SELECT table_id AS quiet FROM cutover._table WHERE new_name = 'quiet' \gset

-- nothing compared, nothing open
SELECT * FROM cutover.divergence;
SELECT * FROM cutover.divergence_summary;
SELECT * FROM cutover.compare_history;
SELECT divergences FROM cutover.status;
SELECT metric, value FROM cutover.metrics WHERE metric ~ 'diverg|compare' ORDER BY metric COLLATE "C";

-- two runs; the second has more differences than are kept, and one failed
INSERT INTO cutover._compare_run (target_id, method, state, started_at, ended_at, actor, error) VALUES
	(:target_id, 'auto', 'done', '2024-01-01 00:00+0', '2024-01-01 00:01+0', 'someone', NULL),
	(:target_id, 'full', 'done', '2024-01-02 00:00+0', '2024-01-02 00:05+0', 'someone', NULL),
	(:target_id, 'full', 'failed', '2024-01-03 00:00+0', '2024-01-03 00:00+0', 'someone', 'invalid value "hidden"');
INSERT INTO cutover._compare_result (run, table_id, method, since, until, rows, missing, extra, different, representation, deferred, capped,
	duration, started_at, complete, chunks_done, chunks_total) VALUES
	(1, :goods, 'changes', '2023-12-31', '2024-01-01', 10, 0, 0, 0, 0, 0, false, '1 s', '2024-01-01 00:00+0', true, 1, 1),
	(1, :goods, 'window', '2023-12-31', '2024-01-01', 20, 0, 0, 0, 0, 0, false, '2 s', '2024-01-01 00:00+0', true, 1, 1),
	(2, :goods, 'full', NULL, NULL, 1000, 1, 1, 500, 1, 2, true, '4 min', '2024-01-02 00:00+0', true, 4, 4),
	(2, :bare, 'full', NULL, NULL, 7, 1, 0, 0, 0, 0, false, '1 s', '2024-01-02 00:00+0', true, 1, 1),
	(3, :goods, 'full', NULL, NULL, 5, 0, 0, 0, 0, 0, false, NULL, '2024-01-03 00:00+0', false, 0, 4);
INSERT INTO cutover._divergence (target_id, table_id, key, kind, columns, old_row, new_row, first_seen, last_seen, times_seen, state, run) VALUES
	(:target_id, :goods, '{"id": "1"}', 'different', '{v,w}', '{"id": 1, "v": "hidden", "w": "a"}', '{"id": 1, "v": "seen", "w": "b"}',
		'2024-01-01', '2024-01-02', 2, 'confirmed', 2),
	(:target_id, :goods, '{"id": "2"}', 'missing', NULL, '{"id": 2, "v": "hidden", "w": null}', NULL, '2024-01-02', '2024-01-02', 1, 'confirmed', 2),
	(:target_id, :goods, '{"id": "3"}', 'extra', NULL, NULL, '{"id": 3, "v": "hidden", "w": null}', '2024-01-02', '2024-01-02', 1, 'compensating', 2),
	(:target_id, :goods, '{"id": "4"}', 'representation', '{v}', '{"id": 4, "v": "1.0"}', '{"id": 4, "v": "1.00"}', '2024-01-02', '2024-01-02', 1, 'confirmed', 2),
	(:target_id, :goods, '{"id": "5"}', 'different', '{v}', '{"id": 5, "v": "hidden"}', '{"id": 5, "v": "x"}', '2024-01-02', '2024-01-02', 1, 'deferred', 2),
	(:target_id, :bare, '{"secret": "hidden"}', 'missing', NULL, '{"secret": "hidden"}', NULL, '2024-01-02', '2024-01-02', 1, 'confirmed', 2);
UPDATE cutover._table SET last_compared_at = '2024-01-02' WHERE new_name <> 'quiet';
SELECT target, table_name, missing, extra, different, representation, deferred, rows_compared, last_compared_at, clean_passes, capped FROM cutover.divergence_summary;
SELECT run, target, table_name, method, since, until, rows, missing, extra, different, representation, deferred, duration, started_at, complete, capped, state, error
	FROM cutover.compare_history;
SELECT divergences FROM cutover.status;
SELECT table_name, last_compared_at, clean_passes FROM cutover.tables;
SELECT metric, value FROM cutover.metrics WHERE metric ~ 'diverg|compare' ORDER BY metric COLLATE "C";
UPDATE cutover._table SET last_compared_at = '2024-01-03' WHERE new_name = 'quiet';
SELECT extract(epoch FROM clock_timestamp() - '2024-01-02') - value < 60 AS age FROM cutover.metrics WHERE metric = 'compare_age_seconds';

-- values for those who may read the table
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_admin IN ROLE cutover_admin;
CREATE ROLE regress_nobody;
GRANT SELECT ON goods TO regress_admin;
SELECT table_name, key, kind, columns, old_row, new_row, first_seen, last_seen, times_seen, state FROM cutover.divergence;
SET ROLE regress_monitor;
SELECT table_name, key, kind, columns, old_row, new_row, state FROM cutover.divergence;
SELECT run, error FROM cutover.compare_history WHERE error IS NOT NULL;
SELECT missing, extra, different FROM cutover.divergence_summary;
SET ROLE regress_admin;
SELECT table_name, key, kind, columns, old_row, new_row, state FROM cutover.divergence;
SELECT run, error FROM cutover.compare_history WHERE error IS NOT NULL;
SELECT * FROM cutover._divergence;
-- some columns are not the row
RESET ROLE;
REVOKE SELECT ON goods FROM regress_admin;
GRANT SELECT (id, v) ON goods TO regress_admin;
SET ROLE regress_admin;
SELECT key, old_row, new_row FROM cutover.divergence WHERE kind = 'missing';
-- nor are some rows
RESET ROLE;
GRANT SELECT ON goods TO regress_admin;
ALTER TABLE goods ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_rows ON goods USING (true);
SET ROLE regress_admin;
SELECT key, old_row, new_row FROM cutover.divergence WHERE table_name = 'goods'::regclass;
RESET ROLE;
ALTER TABLE goods DISABLE ROW LEVEL SECURITY;
SET ROLE regress_nobody;
SELECT * FROM cutover.divergence;
SELECT * FROM cutover.divergence_summary;
SELECT * FROM cutover.compare_history;
SELECT * FROM cutover_compensate();
SELECT cutover_schedule_compare('1 min');
RESET ROLE;

-- passes that count
UPDATE cutover._table SET clean_passes = 0, last_compared_at = NULL;
DELETE FROM cutover._divergence;
SELECT cutover._note_compared(1, :goods), cutover._note_compared(2, :bare);
SELECT table_name, last_compared_at IS NOT NULL AS compared, clean_passes FROM cutover.tables;
SELECT cutover._note_compared(1, :goods);
SELECT clean_passes FROM cutover.tables WHERE table_name = 'goods'::regclass;
-- with something open, none does
INSERT INTO cutover._divergence (target_id, table_id, key, kind, state) VALUES (:target_id, :goods, '{"id": "5"}', 'different', 'deferred');
SELECT cutover._note_compared(1, :goods);
SELECT clean_passes FROM cutover.tables WHERE table_name = 'goods'::regclass;
UPDATE cutover._divergence SET state = 'confirmed';
SELECT cutover._note_compared(1, :goods);
SELECT clean_passes FROM cutover.tables WHERE table_name = 'goods'::regclass;
DELETE FROM cutover._divergence;
-- nor one that began before a repair
SELECT cutover._note_repair(ARRAY[:goods]);
SELECT cutover._note_compared(1, :goods);
SELECT clean_passes FROM cutover.tables WHERE table_name = 'goods'::regclass;
UPDATE cutover._table SET repaired_at = '2023-01-01';
SELECT cutover._note_compared(1, :goods);
SELECT clean_passes FROM cutover.tables WHERE table_name = 'goods'::regclass;

-- arguments of what is built on them
SELECT * FROM cutover_compensate(ARRAY[NULL]::regclass[]);
SELECT * FROM cutover_compensate(target => 'y');
SELECT * FROM cutover_compensate('{goods}', 'y');
SELECT * FROM cutover_compensate('{pg_class}');
SELECT * FROM cutover_compensate('{}');
SELECT * FROM cutover_compensate();

-- the schedule is configuration: it comes and goes with the transaction
SELECT cutover_schedule_compare(NULL);
SELECT cutover_schedule_compare('0');
SELECT cutover_schedule_compare('1 min', 'sideways');
SELECT cutover_schedule_compare('1 min', NULL);
SELECT cutover_schedule_compare('1 min', 'auto', NULL);
SELECT cutover_schedule_compare('1 min', target => 'y');
SET ROLE regress_admin;
SELECT cutover_schedule_compare('1 min');
RESET ROLE;
BEGIN;
SELECT cutover_schedule_compare('1 min');
SELECT target, every, method, compensate, running, passes, waiting_for, failures, last_error FROM cutover.compare_schedule;
ROLLBACK;
SELECT count(*) FROM cutover.compare_schedule;
SELECT cutover_schedule_compare('1 min', 'full', true), cutover_schedule_compare('2 min', 'window');
SELECT target, every, method, compensate, running, passes, waiting_for, failures, last_error FROM cutover.compare_schedule;
UPDATE cutover._compare_schedule SET last_error = 'invalid value "hidden"';
SET ROLE regress_admin;
SELECT last_error FROM cutover.compare_schedule;
SELECT cutover_unschedule_compare();
RESET ROLE;
SELECT last_error FROM cutover.compare_schedule;
SELECT cutover_unschedule_compare(), cutover_unschedule_compare();
SELECT count(*) FROM cutover.compare_schedule;
SELECT kind, detail FROM cutover.event WHERE kind ~ 'schedule' ORDER BY event_id;

DROP EXTENSION cutover CASCADE;
DROP ROLE regress_monitor, regress_nobody;
DROP OWNED BY regress_admin;
DROP ROLE regress_admin;
\c :home
DROP DATABASE regress_cutover_old;
DROP DATABASE regress_cutover_new;
