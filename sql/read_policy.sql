-- who reads from where: functions, their arguments, who may call them, what they leave behind
\set SHOW_CONTEXT never
CREATE DATABASE regress_policy_old;
CREATE DATABASE regress_policy_new;
CREATE ROLE regress_policy_app;
CREATE ROLE regress_policy_admin;
SELECT current_database() AS home \gset
\c regress_policy_old
\set SHOW_CONTEXT never
CREATE EXTENSION cutover;
SELECT format('host=%s port=%s dbname=regress_policy_new user=%s', split_part(current_setting('unix_socket_directories'), ',', 1),
	current_setting('port'), current_user) AS address \gset
CREATE TABLE goods (id int PRIMARY KEY);
CREATE TABLE parts (id int PRIMARY KEY);
CREATE TABLE elsewhere (id int PRIMARY KEY);
\c regress_policy_new
CREATE TABLE goods (id int PRIMARY KEY);
CREATE TABLE parts (id int PRIMARY KEY);
\c regress_policy_old
\set SHOW_CONTEXT never
SELECT cutover_add_target('x', :'address');
SELECT cutover_add_table('goods'), cutover_add_table('parts');

-- runs a statement; what it raises comes as a row
CREATE FUNCTION try(sql text, OUT state text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE sql;
	state := 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$;

-- settings: any user's
SHOW cutover.read_from;
SHOW cutover.route_key;
SHOW cutover.max_read_lag;
SHOW cutover.read_timeout;
SELECT name, context FROM pg_settings WHERE name IN ('cutover.read_from', 'cutover.route_key', 'cutover.max_read_lag', 'cutover.read_timeout') ORDER BY 1;
SET cutover.read_from = 'both';

-- the ratio
\x
SELECT * FROM try($$SELECT cutover_set_read_ratio(NULL)$$);
SELECT * FROM try($$SELECT cutover_set_read_ratio(-1)$$);
SELECT * FROM try($$SELECT cutover_set_read_ratio(100.01)$$);
SELECT * FROM try($$SELECT cutover_set_read_ratio('NaN')$$);
SELECT * FROM try($$SELECT cutover_set_read_ratio(10, 'y')$$);
\x
BEGIN;
SELECT cutover_set_read_ratio(12.5);
SELECT target, read_ratio FROM cutover.status;
ROLLBACK;
SELECT target, read_ratio FROM cutover.status;
SELECT cutover_set_read_ratio(12.5, 'x');
SELECT target, read_ratio FROM cutover.status;

-- rules
\x
SELECT * FROM try($$SELECT cutover_add_rule(NULL, 'new')$$);
SELECT * FROM try($$SELECT cutover_add_rule('r', NULL)$$);
SELECT * FROM try($$SELECT cutover_add_rule('', 'new')$$);
SELECT * FROM try($$SELECT cutover_add_rule('r', 'auto')$$);
SELECT * FROM try($$SELECT cutover_add_rule('r', 'new', role_name => 'nobody_at_all')$$);
SELECT * FROM try($$SELECT cutover_add_rule('r', 'new', tables => '{}')$$);
SELECT * FROM try($$SELECT cutover_add_rule('r', 'new', tables => '{goods,NULL}')$$);
SELECT * FROM try($$SELECT cutover_add_rule('r', 'new', tables => '{goods,elsewhere}')$$);
SELECT * FROM try($$SELECT cutover_drop_rule('r')$$);
SELECT * FROM try($$SELECT cutover_drop_rule(NULL)$$);
\x
SELECT cutover_add_rule('canary', 'new', application => 'report');
SELECT cutover_add_rule('here', 'old', 'batch', 'regress_policy_app', '10.1.0.0/16', '{goods,parts}', 'x');
SELECT cutover_add_rule('all', 'new');
\x
SELECT * FROM try($$SELECT cutover_add_rule('all', 'old')$$);
\x
SELECT * FROM cutover.rule;
-- names follow
ALTER TABLE parts RENAME TO pieces;
ALTER ROLE regress_policy_app RENAME TO regress_policy_other;
SELECT rule, role_name, tables FROM cutover.rule WHERE rule = 'here';
SELECT cutover_drop_rule('all'), cutover_drop_rule('canary', 'x');
SELECT rule FROM cutover.rule;

-- the library in the sessions of this database
CREATE VIEW preload AS
SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND setrole = 0;
SELECT cutover_disable_router();
SELECT cutover_enable_router();
SELECT * FROM preload;
SELECT cutover_enable_router();
SELECT cutover_disable_router();
SELECT * FROM preload;
-- merged with what the database has, which comes back
ALTER DATABASE regress_policy_old SET session_preload_libraries = 'auto_explain', '$libdir/plpgsql';
SELECT cutover_enable_router('x');
SELECT * FROM preload;
SELECT cutover_disable_router('x');
SELECT * FROM preload;
-- what somebody has changed since stays
SELECT cutover_enable_router();
ALTER DATABASE regress_policy_old SET session_preload_libraries = 'cutover', '$libdir/plpgsql';
SELECT cutover_disable_router();
SELECT * FROM preload;
SELECT cutover_enable_router();
ALTER DATABASE regress_policy_old SET session_preload_libraries = '$libdir/plpgsql';
SELECT cutover_disable_router();
SELECT * FROM preload;
-- who had it already keeps it
ALTER DATABASE regress_policy_old SET session_preload_libraries = '$libdir/cutover';
SELECT cutover_enable_router();
SELECT cutover_disable_router();
SELECT * FROM preload;
-- empty is a setting, too
BEGIN;
SELECT set_config('session_preload_libraries', '', true);
ALTER DATABASE regress_policy_old SET session_preload_libraries FROM CURRENT;
COMMIT;
SELECT * FROM preload;
SELECT cutover_enable_router();
SELECT * FROM preload;
SELECT cutover_disable_router();
SELECT * FROM preload;
ALTER DATABASE regress_policy_old RESET session_preload_libraries;
-- a role with a setting of its own does not get the database's
ALTER ROLE regress_policy_other SET session_preload_libraries = 'auto_explain';
SELECT cutover_enable_router();
ALTER ROLE regress_policy_other RESET session_preload_libraries;
SELECT cutover_disable_router();
-- a standby may lack the library
SELECT FROM pg_create_physical_replication_slot('regress_policy', true);
\x
SELECT * FROM try($$SELECT cutover_enable_router()$$);
SELECT * FROM try($$SELECT cutover_enable_router(force => NULL)$$);
\x
SELECT cutover_enable_router(force => true);
SELECT pg_drop_replication_slot('regress_policy');
-- new sessions have it, and the warning is about those that have not
\c
\set SHOW_CONTEXT never
SELECT routable, reads_from IN ('old', 'new') AS side, writes FROM cutover.sessions WHERE pid = pg_backend_pid();
SELECT cutover_set_read_ratio(100);
SELECT target, routed, kept, fallbacks, timeouts, reasons, breaker FROM cutover.read_stats;

-- who may
GRANT cutover_admin TO regress_policy_admin;
SET ROLE regress_policy_admin;
SELECT cutover_set_read_ratio(1);
SELECT cutover_add_rule('by_admin', 'new', application => 'report');
SELECT rule FROM cutover.rule ORDER BY 1;
SELECT cutover_disable_router(), cutover_enable_router();
SELECT count(*) > 0 AS sees FROM cutover.sessions;
SELECT cutover._set_database_libraries('x');
SELECT cutover._disable_router(1);
RESET ROLE;
SET ROLE regress_policy_other;
SELECT cutover_set_read_ratio(1);
SELECT cutover_add_rule('a', 'new');
SELECT cutover_enable_router();
SELECT * FROM cutover.read_stats;
SET cutover.read_from = 'new';
RESET ROLE;
SELECT DISTINCT ON (kind) kind, detail FROM cutover.event WHERE kind ~ 'read|rule|router' ORDER BY kind, event_id DESC;

-- what goes with the target
SELECT cutover_drop_target('x');
SELECT * FROM cutover.rule;
SELECT * FROM preload;
-- and with the extension
SELECT cutover_add_target('x', :'address');
SELECT cutover_enable_router();
SELECT * FROM preload;
DROP VIEW preload;
SET client_min_messages = warning;
DROP EXTENSION cutover CASCADE;
SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database());
\c :home
DROP DATABASE regress_policy_old;
DROP DATABASE regress_policy_new;
DROP ROLE regress_policy_other, regress_policy_admin;
