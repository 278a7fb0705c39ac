-- ddl.sql: schema changes that reach new at their place in the queue.

-- A schema change, on old now and on new at this position of the queue.
CREATE PROCEDURE cutover._do_run_ddl(target_id int, old_sql text, new_sql text, path text)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id);
	v_ticket bigint;
	v_error cutover._apply_error;
	v_until timestamptz;
BEGIN
	v_target := cutover._check_started(target_id);
	IF v_target.mode = 'new_only' THEN
		RAISE EXCEPTION 'schema changes can not be coordinated in mode new_only' USING ERRCODE = '55000',
			DETAIL = 'The queue leads from old to new, and new is master.',
			HINT = 'Change the schema of old first, then that of new, so that old can take what new gives it.';
	END IF;
	PERFORM cutover._check_no_ddl_error(target_id);
	PERFORM cutover._run_old_ddl(old_sql, path);
	PERFORM cutover._enqueue_control(target_id, 0, 'X', format(E'SELECT pg_catalog.set_config(\'search_path\', %L, true);\n%s\n;SET LOCAL search_path = pg_catalog',
		path, new_sql));
	PERFORM cutover._log_event('run_ddl', jsonb_build_object('command', substring(old_sql from '^\s*(\w+(\s+\w+)?)')), target_id);
	COMMIT;
	v_ticket := cutover._draw_ticket(target_id);
	-- tickets are served once all tables are synced: no use in waiting long for that
	v_until := clock_timestamp() + CASE WHEN EXISTS (SELECT FROM cutover._table t
		WHERE t.target_id = _do_run_ddl.target_id AND t.phase <> 'synced') THEN interval '5 s' ELSE interval '60 s' END;
	WHILE v_target.desired = 'running' AND clock_timestamp() < v_until LOOP
		IF cutover._await_ticket(target_id, v_ticket, 200, true) THEN
			PERFORM cutover._check_no_ddl_error(target_id);
			RETURN;
		END IF;
		COMMIT;
		PERFORM cutover._check_no_ddl_error(target_id);
	END LOOP;
	RAISE WARNING 'the schema change is done on old and queued for new' USING
		DETAIL = cutover._how_far(target_id),
		HINT = 'It will be run there in its turn. If new refuses it, cutover.apply_error says so.';
END
$$;

-- Raises what new said to a schema change.
CREATE FUNCTION cutover._check_no_ddl_error(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_error cutover._apply_error;
BEGIN
	SELECT * INTO v_error FROM cutover._apply_error e WHERE e.target_id = _check_no_ddl_error.target_id AND e.table_id IS NULL AND e.attempts >= 0
		ORDER BY e.error_id LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'new refuses a schema change: %', v_error.message USING ERRCODE = v_error.sqlstate,
			DETAIL = 'It is done on old. On new it stands first in the queue, and nothing moves until it succeeds or is skipped.',
			HINT = 'Mend new and call cutover_retry_errors(), or do there what it should have done and call cutover_skip_errors().';
	END IF;
END
$$;

-- The old side's part, as the caller, giving way to the application.
CREATE FUNCTION cutover._run_old_ddl(sql text, path text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	-- copiers hold locks on their tables for seconds
	PERFORM cutover._hold_copy(t.table_id) FROM cutover._table t WHERE t.phase = 'copying';
	FOR v_attempt IN 1..20 LOOP
		BEGIN
			PERFORM set_config('lock_timeout', current_setting('cutover.lock_timeout'), true);
			PERFORM cutover._as_caller(sql, path);
			PERFORM set_config('lock_timeout', '0', true);
			RETURN;
		EXCEPTION
			WHEN lock_not_available OR deadlock_detected THEN
				IF v_attempt = 20 THEN
					RAISE EXCEPTION 'could not get the locks that the schema change needs' USING ERRCODE = '55P03',
						DETAIL = SQLERRM,
						HINT = 'End the transactions that use these tables, or try again at a quieter time. Nothing has been changed.';
				END IF;
			WHEN active_sql_transaction THEN
				RAISE EXCEPTION 'the schema change cannot run in a transaction: %', SQLERRM USING ERRCODE = '25001',
					DETAIL = 'The change and its place in the queue are one transaction.',
					HINT = 'Use the form without CONCURRENTLY, or run it on each side by hand where it does not matter to the rows.';
		END;
		PERFORM pg_sleep(least(0.1 * v_attempt, 1));
	END LOOP;
END
$$;

-- Is there BEGIN, COMMIT or the like among the statements?
CREATE FUNCTION cutover._ends_transaction(sql text) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cutover_ends_transaction';

CREATE FUNCTION cutover._run_ddl(old_sql text, new_sql text, target name) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_id int;
BEGIN
	PERFORM cutover._not_null('old_sql', old_sql IS NULL);
	v_id := cutover._target_id(target);
	PERFORM cutover._check_started(v_id);
	IF cutover._ends_transaction(old_sql) OR cutover._ends_transaction(new_sql) THEN
		RAISE EXCEPTION 'a schema change cannot begin or end transactions' USING ERRCODE = '25001',
			DETAIL = 'The change and its place in the queue are one transaction, on either side.',
			HINT = 'Leave BEGIN, COMMIT, ROLLBACK and savepoints out.';
	END IF;
	PERFORM cutover._action('cutover_run_ddl', 'CALL cutover._do_run_ddl($1::int, $2, $3, $4)',
		ARRAY[v_id::text, old_sql, coalesce(new_sql, old_sql), cutover._caller_search_path()]);
END
$$;

CREATE FUNCTION @extschema@.cutover_run_ddl(old_sql text, new_sql text DEFAULT NULL, target name DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_enter';
COMMENT ON FUNCTION @extschema@.cutover_run_ddl(text, text, name) IS
'Run: a schema change on old, and on new at exactly that position of the queue';
