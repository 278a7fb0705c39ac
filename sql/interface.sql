-- what the interface promises: views and their columns, comments, privileges, SQLSTATEs
\set SHOW_CONTEXT never
\set VERBOSITY sqlstate
CREATE EXTENSION cutover;

-- every function that is called by users: says what it does, is granted to cutover_admin alone
SELECT proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
FROM pg_proc p WHERE proname LIKE 'cutover\_%' AND pronamespace = 'public'::regnamespace ORDER BY 1, 2;
SELECT p.oid::regprocedure FROM pg_proc p WHERE proname LIKE 'cutover\_%'
	AND (obj_description(p.oid, 'pg_proc') IS NULL
		OR NOT has_function_privilege('cutover_admin', p.oid, 'EXECUTE')
		OR has_function_privilege('public', p.oid, 'EXECUTE')
		OR (prosecdef AND proconfig IS NULL));
-- internal functions that do something are for nobody; copies of triggers are made in the name of tables' owners
SELECT p.oid::regprocedure FROM pg_proc p WHERE pronamespace = 'cutover'::regnamespace AND p.oid <> ALL ('{cutover._capture(),cutover._fence()}'::regprocedure[])
	AND (has_function_privilege('public', p.oid, 'EXECUTE')
		OR (prosecdef AND (proconfig IS NULL OR NOT proconfig::text LIKE '%search_path=pg_catalog, pg_temp%'))
		OR (provolatile = 'v' AND prorettype <> 'trigger'::regtype AND has_function_privilege('cutover_admin', p.oid, 'EXECUTE')));

-- views
SELECT c.relname, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'cutover'::regnamespace AND c.relkind = 'v' AND c.relname !~ '^_'
GROUP BY c.relname ORDER BY c.relname COLLATE "C";
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'cutover'::regnamespace AND c.relkind IN ('r', 'v', 'S')
	AND (c.relname ~ '^_' = has_table_privilege('cutover_admin', c.oid, 'SELECT')
		OR c.relname ~ '^_' = has_table_privilege('pg_monitor', c.oid, 'SELECT')
		OR has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE')
		OR has_table_privilege('cutover_admin', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'));

-- each is readable, and empty without a target
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_admin IN ROLE cutover_admin;
CREATE ROLE regress_nobody;
CREATE FUNCTION pg_temp.count_rows(view name) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	n bigint;
BEGIN
	EXECUTE format('SELECT count(v::text) FROM cutover.%I v', view) INTO n;
	RETURN n;
END
$$;
SELECT nspname AS temp FROM pg_namespace WHERE oid = pg_my_temp_schema() \gset
GRANT USAGE ON SCHEMA :temp TO PUBLIC;
SET ROLE regress_monitor;
SELECT relname, pg_temp.count_rows(relname) FROM pg_class WHERE relnamespace = 'cutover'::regnamespace AND relkind = 'v'
	AND relname !~ '^_' AND relname <> 'sessions' AND pg_temp.count_rows(relname) > 0;
SELECT count(*) > 0 FROM cutover.sessions;
SELECT cutover_metrics();
SELECT cutover_mode();
SET ROLE regress_admin;
SELECT relname, pg_temp.count_rows(relname) FROM pg_class WHERE relnamespace = 'cutover'::regnamespace AND relkind = 'v'
	AND relname !~ '^_' AND relname <> 'sessions' AND pg_temp.count_rows(relname) > 0;
SELECT count(*) FROM cutover._target;
SET ROLE regress_nobody;
SELECT * FROM cutover.status;
SELECT cutover_preflight();
SELECT cutover_metrics();
RESET ROLE;

-- no target: there is nothing to name
SELECT cutover_mode();
SELECT * FROM cutover_preflight();
SELECT * FROM cutover_set_mode('old_only');
SELECT * FROM cutover_set_mode('sideways');
SELECT * FROM cutover_set_mode(NULL);
SELECT * FROM cutover_set_mode('old_only', blockers => 'shoot');

-- what is not there yet says so
\set VERBOSITY default
SELECT * FROM cutover_check_mode('new_only');
\set VERBOSITY sqlstate
SELECT cutover_set_write_ratio(50);
SELECT cutover_resolve_switch('old');
SELECT * FROM cutover_compare();
SELECT * FROM cutover_compensate();
SELECT cutover_schedule_compare('1 min');
SELECT cutover_unschedule_compare();
SELECT cutover_enable_router();
SELECT cutover_disable_router();
SELECT cutover_set_shadow_ratio(10);
SELECT cutover_set_read_ratio(10);
SELECT cutover_add_rule('canary', 'new', application => 'report');
SELECT cutover_drop_rule('canary');
SELECT cutover_start_ramp('[{"read_ratio": 1, "hold": "10 min"}]');
SELECT cutover_stop_ramp();
SELECT cutover_resume_ramp();
SELECT cutover_add_guard('lag', 'lag_seconds', 10);
SELECT cutover_drop_guard('lag');
SELECT cutover_report();

DROP EXTENSION cutover CASCADE;
DROP ROLE regress_monitor, regress_admin, regress_nobody;
