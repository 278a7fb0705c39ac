-- cutover_add_target and its kin: what they refuse, and how they say it
\set SHOW_CONTEXT never
CREATE DATABASE regress_target_old;
CREATE DATABASE regress_target_new;
SELECT current_database() AS home \gset
\c regress_target_old
\set SHOW_CONTEXT never
CREATE EXTENSION cutover;
SELECT split_part(current_setting('unix_socket_directories'), ',', 1) AS host,
	current_setting('port') AS port, current_user AS me \gset
\set server 'host=' :host ' port=' :port ' user=' :me
\set address :server ' dbname=regress_target_new'
\set myself :server ' dbname=regress_target_old'
\set nowhere :server ' dbname=regress_target_nowhere'
-- the outer statement, less where in our source it was raised
\set VERBOSITY default

-- no targets yet
SELECT cutover_start();
\echo :SQLSTATE
SELECT cutover_start('x');
\echo :SQLSTATE
SELECT cutover_drop_target('x');
\echo :SQLSTATE

-- arguments
SELECT cutover_add_target(NULL, 'dbname=x');
\echo :SQLSTATE
SELECT cutover_add_target('x', NULL);
\echo :SQLSTATE
SELECT cutover_add_target('', 'dbname=x');
\echo :SQLSTATE
SELECT cutover_add_target('x', ' ');
\echo :SQLSTATE
SELECT cutover_add_target(repeat('x', 60)::name, 'dbname=x');
\echo :SQLSTATE
\set VERBOSITY sqlstate
SELECT cutover_add_target('x', 'no such keyword=1');
SELECT cutover_add_target('x', 'dbname');
\set VERBOSITY default

-- the very same database
SELECT cutover_add_target('x', :'myself');
\echo :SQLSTATE
-- nobody there; no word of the address, the password or the option in any message
\set secret :nowhere ' password=secret'
\set VERBOSITY terse
SELECT cutover_add_target('x', :'nowhere');
\echo :SQLSTATE
SELECT cutover_add_target('x', :'secret');
\echo :SQLSTATE
SELECT cutover_add_target('x', 'host=/nonexistent port=1 password=secret connect_timeout=2');
\echo :SQLSTATE
\set VERBOSITY default
SELECT count(*) FROM cutover._target;
SELECT count(*) FROM pg_foreign_server;

-- transactional
BEGIN;
SELECT cutover_add_target('x', :'address');
\echo :SQLSTATE
SELECT target, desired, mode FROM cutover._target;
ROLLBACK;
SELECT count(*) FROM cutover._target;
\c regress_target_new
SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover';
CREATE SCHEMA cutover;
\c regress_target_old
\set SHOW_CONTEXT never
SELECT cutover_add_target('x', :'address');
\echo :SQLSTATE
\c regress_target_new
DROP SCHEMA cutover;
\c regress_target_old
\set SHOW_CONTEXT never

-- done; twice
SELECT cutover_add_target('x', :'address');
\echo :SQLSTATE
SELECT cutover_add_target('x', :'address');
\echo :SQLSTATE
SELECT cutover_add_target('y', :'address');
\echo :SQLSTATE
SELECT srvname FROM pg_foreign_server ORDER BY 1;
SELECT relname, reloptions, relpersistence FROM pg_class
WHERE relname ~ '^_queue_\d' AND relkind = 'r' ORDER BY 1;
SELECT count(*) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE d.deptype = 'e' AND d.classid = 'pg_class'::regclass AND d.objid::regclass::text ~ '^cutover._queue_\d+_\d$';

-- the password is in the mapping, which only its owner sees
\set with_password :address ' password=secret'
SELECT cutover_set_target('x', :'with_password');
\echo :SQLSTATE
SELECT EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvoptions::text ~ 'secret|user');
SELECT umoptions::text ~ 'password=secret' FROM pg_user_mappings;
SELECT count(*) FROM cutover.event WHERE detail::text ~ 'secret';
SELECT cutover_set_target('x', :'address');
\echo :SQLSTATE
SELECT umoptions::text ~ 'password' FROM pg_user_mappings;

-- set_target
SELECT cutover_set_target('y', :'address');
\echo :SQLSTATE
SELECT cutover_set_target('x', :'myself');
\echo :SQLSTATE
CREATE DATABASE regress_target_other;
\set other :server ' dbname=regress_target_other'
SELECT cutover_set_target('x', :'other');
\echo :SQLSTATE
SELECT count(*) FROM cutover._target t JOIN pg_foreign_server s ON srvname = t.server
WHERE array_to_string(srvoptions, ' ') ~ 'dbname=regress_target_new';
SELECT cutover_set_target(NULL, :'address');
\echo :SQLSTATE
SELECT cutover_set_target('x', NULL);
\echo :SQLSTATE

-- several targets
SELECT cutover_add_target('other', :'other');
SELECT cutover_start();
\echo :SQLSTATE
SELECT cutover_add_shard('x', 'one', :'other');
\echo :SQLSTATE
SELECT cutover_add_shard('x', NULL, :'other');
\echo :SQLSTATE
SELECT cutover_drop_target(NULL);
\echo :SQLSTATE
SELECT cutover_drop_target('other');
\c regress_target_other
SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover';
\c regress_target_old
\set SHOW_CONTEXT never
SELECT count(*) FROM pg_class WHERE relname ~ '^_queue_\d' AND relkind = 'r';
DROP DATABASE regress_target_other;

-- what the connecting role needs
CREATE TABLE plain (id int PRIMARY KEY);
CREATE TABLE "Odd name" (id serial PRIMARY KEY);
\c regress_target_new
CREATE TABLE plain (id int PRIMARY KEY);
CREATE TABLE "Odd name" (id serial PRIMARY KEY);
\c regress_target_old
\set SHOW_CONTEXT never
SELECT cutover_grant_script('app"s');
SELECT cutover_add_tables();
\t
\a
SELECT regexp_replace(cutover_grant_script('app'), '15|16|17|18', 'nn');
\t
\a
SELECT cutover_grant_script(NULL);
\echo :SQLSTATE

-- a role that may not create the schema
CREATE ROLE regress_target_poor LOGIN;
\set poor 'host=' :host ' port=' :port ' user=regress_target_poor dbname=regress_target_new'
SELECT cutover_cancel();
SELECT cutover_add_target('x', :'poor');
\echo :SQLSTATE
GRANT CREATE ON DATABASE regress_target_new TO regress_target_poor;
SELECT cutover_add_target('x', :'poor');
\echo :SQLSTATE
SELECT cutover_drop_target('x');
\echo :SQLSTATE
SELECT cutover_drop_target('x');
\echo :SQLSTATE
SELECT kind, actor = current_user AS by_me, target, detail - 'version' AS detail FROM cutover.event ORDER BY event_id;

-- nobody but members of cutover_admin
CREATE ROLE regress_target_nobody;
SET ROLE regress_target_nobody;
\set VERBOSITY terse
SELECT cutover_add_target('x', :'address');
\echo :SQLSTATE
SELECT cutover_drop_target('x');
\echo :SQLSTATE
SELECT cutover._remote('x', 'SELECT 1');
RESET ROLE;
-- nor does the server's trust in itself lend anybody another role
GRANT cutover_admin TO regress_target_nobody;
SET ROLE regress_target_nobody;
\set VERBOSITY default
SELECT cutover_add_target('x', :'address');
\echo :SQLSTATE
RESET ROLE;
\c :home
DROP DATABASE regress_target_old;
DROP DATABASE regress_target_new;
DROP ROLE regress_target_poor, regress_target_nobody;
