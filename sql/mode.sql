-- modes and the switch: what is refused, and how it says so.  New is another database of this server.
\set SHOW_CONTEXT never
CREATE EXTENSION cutover;
CREATE DATABASE regress_mode_new;
CREATE TABLE goods (id serial PRIMARY KEY, name text);
INSERT INTO goods (name) VALUES ('a'), ('b');
SELECT cutover_set_mode('old_only');
SELECT format('host=%s port=%s dbname=regress_mode_new', split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port')) AS address \gset
SELECT cutover_add_target('x', :'address');
SELECT cutover_mode();

-- arguments
SELECT cutover_set_mode('sideways');
SELECT cutover_set_mode(NULL);
SELECT cutover_set_mode('new_only', timeout => NULL);
SELECT cutover_set_mode('new_only', timeout => '-1 s');
SELECT cutover_set_mode('new_only', force => NULL);
SELECT cutover_set_mode('new_only', blockers => 'shoot');
SELECT cutover_set_mode('new_only', old_writes => 'ignore');
SELECT cutover_set_mode('new_only', old_sessions => 'kill');
SELECT cutover_set_mode('new_only', target => 'y');
SELECT cutover_check_mode('sideways');
SELECT cutover_check_mode(NULL);
SELECT cutover_resolve_switch('both');
SELECT cutover_resolve_switch(NULL);
SELECT cutover_register_pooler(NULL);
SELECT cutover_confirm_pause('nobody', 2);

-- states
SELECT cutover_set_mode('new_only');
SELECT cutover_set_mode('dual_write', force => true);
SELECT * FROM cutover_check_mode('new_only');
SELECT * FROM cutover_check_mode('dual_write');
SELECT * FROM cutover_check_mode('old_only');
SELECT cutover_resolve_switch('old');
SELECT cutover_finish();

-- the mode that it has: no new epoch, nothing written down
SELECT target, from_mode, to_mode, epoch, pause, drained_changes FROM cutover_set_mode('old_only');
SELECT count(*) FROM cutover.mode_change;
BEGIN;
SELECT cutover_set_mode('old_only');
ROLLBACK;
BEGIN;
SELECT cutover_set_mode('new_only');
ROLLBACK;
DO $$ BEGIN PERFORM cutover_set_mode('new_only'); EXCEPTION WHEN active_sql_transaction THEN RAISE NOTICE 'not in a block with EXCEPTION'; END $$;

-- the whole database is under the target, or not
SELECT cutover_add_table('goods');
SELECT cutover._whole_database(target_id) FROM cutover._target;
CREATE TABLE other (id int);
SELECT cutover._whole_database(target_id) FROM cutover._target;
CREATE TEMP TABLE mine (id int);
DROP TABLE other;
SELECT cutover._whole_database(target_id) FROM cutover._target;
CREATE TABLE parts (id int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE parts_1_1 PARTITION OF parts_1 FOR VALUES FROM (0) TO (10);
SELECT cutover._whole_database(target_id) FROM cutover._target;
SELECT cutover_add_table('parts');
SELECT cutover._whole_database(target_id) FROM cutover._target;

-- sequences: ahead of the other side, never back, and only by what is needed
CREATE SEQUENCE up;
CREATE SEQUENCE down INCREMENT -2 MAXVALUE 100 MINVALUE -100 START 100;
CREATE SEQUENCE ring MAXVALUE 3 CYCLE;
CREATE FUNCTION pg_temp.advance(seq text, last bigint, called boolean, step int, margin boolean) RETURNS text LANGUAGE sql AS $$
	SELECT cutover._advance_sequences(ARRAY[seq], jsonb_build_array(jsonb_build_object('last', last, 'called', called, 'increment', step, 'cache', 1)), margin)
		|| ': ' || (cutover._sequence_states(ARRAY[seq])->0)::text
$$;
SELECT pg_temp.advance('public.up', 1, false, 1, true);
SELECT pg_temp.advance('public.up', 10, true, 1, true);
SELECT pg_temp.advance('public.up', 500, true, 1, true);
SELECT pg_temp.advance('public.up', 600, true, 1, true);
SELECT pg_temp.advance('public.up', 900, true, 1, false);
SELECT pg_temp.advance('public.up', 5000, false, 1, false);
SELECT pg_temp.advance('public.up', 9223372036854775806, true, 1, true);
SELECT pg_temp.advance('public.up', 9223372036854775807, true, 1, true);
SELECT pg_temp.advance('public.down', 50, true, -2, true);
SELECT pg_temp.advance('public.down', -99, true, -2, true);
SELECT pg_temp.advance('public.down', 50, true, 2, true);
SELECT pg_temp.advance('public.down', -101, true, -2, true);
SELECT pg_temp.advance('public.ring', 2, true, 1, true);
SELECT pg_temp.advance('public.ring', 1, true, 1, false);

SELECT cutover_cancel();
DROP EXTENSION cutover CASCADE;
DROP TABLE goods, parts;
DROP SEQUENCE up, down, ring;
DROP DATABASE regress_mode_new;
