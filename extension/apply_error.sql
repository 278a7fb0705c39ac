-- apply_error.sql: what to do with rows and schema changes that new refused.

-- The rows of _apply_error that a call is about.
CREATE FUNCTION cutover._select_errors(tables regclass[], target name) RETURNS SETOF cutover._apply_error
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_id int;
	v_table regclass;
BEGIN
	IF tables IS NULL THEN
		v_id := cutover._target_id(target);
	ELSE
		FOREACH v_table IN ARRAY tables LOOP
			PERFORM cutover._not_null('tables', v_table IS NULL);
			v_id := cutover._table_target(v_table, target);
		END LOOP;
	END IF;
	PERFORM cutover._check_owner(t.old_table::regclass) FROM cutover._table t
		WHERE EXISTS (SELECT FROM cutover._apply_error e WHERE e.table_id = t.table_id)
			AND CASE WHEN tables IS NULL THEN t.target_id = v_id ELSE t.old_table = ANY (tables::oid[]) END;
	RETURN QUERY SELECT e.* FROM cutover._apply_error e LEFT JOIN cutover._table t USING (table_id)
		WHERE CASE WHEN tables IS NULL THEN e.target_id = v_id ELSE t.old_table = ANY (tables::oid[]) END
		ORDER BY e.error_id FOR UPDATE OF e;
END
$$;

-- Has old look at a row of new again; where old is the master that is of no use any more.
CREATE FUNCTION cutover._retry_reverse(e cutover._apply_error) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
BEGIN
	SELECT t.* INTO STRICT v_target FROM cutover._target t WHERE t.target_id = e.target_id;
	IF v_target.mode = 'new_only' THEN
		PERFORM cutover._remote(v_target.server, 'SELECT cutover.enqueue($1::int, $2::"char", $3::jsonb, $4::jsonb)',
			e.table_id::text, e.source->>'op', nullif(e.source->'old', 'null')::text, nullif(e.source->'new', 'null')::text);
		-- what comes without a key is not known again when it goes through
		DELETE FROM cutover._apply_error d WHERE d.error_id = e.error_id AND e.source->>'op' <> 'R';
	ELSE
		DELETE FROM cutover._apply_error d WHERE d.error_id = e.error_id;
	END IF;
END
$$;

CREATE FUNCTION @extschema@.cutover_retry_errors(tables regclass[] DEFAULT NULL, target name DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	e cutover._apply_error;
	v_count bigint := 0;
	v_target int;
BEGIN
	PERFORM cutover._need_writable('cutover_retry_errors');
	FOR e IN SELECT * FROM cutover._select_errors(tables, target) LOOP
		IF e.table_id IS NULL THEN
			UPDATE cutover._apply_error u SET attempts = 0 WHERE u.error_id = e.error_id;
		ELSIF e.direction = 'reverse' THEN
			PERFORM cutover._retry_reverse(e);
		ELSE
			PERFORM cutover._enqueue_refresh(e.table_id, e.key);
		END IF;
		v_count := v_count + 1;
		v_target := e.target_id;
	END LOOP;
	IF v_count > 0 THEN
		PERFORM cutover._log_event('retry_errors', jsonb_build_object('count', v_count), v_target);
		PERFORM cutover._wake_replicator(v_target);
	END IF;
	RETURN v_count;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_retry_errors(regclass[], name) IS
'Run: tries again what new refused (cutover.apply_error); returns how many';

CREATE FUNCTION @extschema@.cutover_skip_errors(tables regclass[] DEFAULT NULL, target name DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	e cutover._apply_error;
	v_count bigint := 0;
	v_target int;
BEGIN
	PERFORM cutover._need_writable('cutover_skip_errors');
	FOR e IN SELECT * FROM cutover._select_errors(tables, target) LOOP
		IF e.table_id IS NULL THEN
			-- the replicator meets the schema change again, leaves it out and forgets the row
			UPDATE cutover._apply_error u SET attempts = -1 WHERE u.error_id = e.error_id;
		ELSE
			DELETE FROM cutover._apply_error d WHERE d.error_id = e.error_id;
		END IF;
		v_count := v_count + 1;
		v_target := e.target_id;
	END LOOP;
	IF v_count > 0 THEN
		PERFORM cutover._log_event('skip_errors', jsonb_build_object('count', v_count), v_target);
		PERFORM cutover._wake_replicator(v_target);
	END IF;
	RETURN v_count;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_skip_errors(regclass[], name) IS
'Run: leaves what new refused (cutover.apply_error) as it is there; returns how many';
