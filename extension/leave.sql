-- leave.sql: taking a migration over, giving it up, completing it.

CREATE PROCEDURE cutover._do_adopt(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id, true);
	v_system bigint := (SELECT system_identifier FROM pg_control_system());
	v_there jsonb;
BEGIN
	SELECT r INTO v_there FROM cutover._remote(v_target.server,
		'UPDATE cutover.migration SET instance = NULL, lease_until = NULL, old_system_identifier = $2::bigint
		WHERE migration_id = $1::uuid RETURNING target', v_target.migration_id::text, v_system::text) r;
	IF v_there IS NULL THEN
		RAISE EXCEPTION 'new is not under this migration any more' USING ERRCODE = '55000',
			DETAIL = format('Target "%s" leads to a database that holds no progress of it.', v_target.target),
			HINT = 'Give the migration up here with cutover_cancel().';
	END IF;
	UPDATE cutover._target t SET system_identifier = v_system WHERE t.target_id = _do_adopt.target_id;
	PERFORM cutover._log_event('adopt', jsonb_build_object('system_identifier', v_system), target_id);
	COMMIT;
	IF v_target.desired = 'running' THEN
		PERFORM cutover._start_replicator(target_id);
		PERFORM cutover._wake_replicator(target_id);
	END IF;
END
$$;

CREATE FUNCTION @extschema@.cutover_adopt(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._action('cutover_adopt', 'CALL cutover._do_adopt($1::int)', ARRAY[cutover._target_id(target)::text]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_adopt(name) IS
'Run: tells a restored copy of old that it is now the real one, and may act on new';

-- One attempt to take the guard off a table of new; NULL: there is none of ours, or new can't be reached.
CREATE FUNCTION cutover._try_unguard(target_id int, table_id int) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server name := (SELECT t.server FROM cutover._target t WHERE t.target_id = _try_unguard.target_id);
BEGIN
	IF cutover._owner_of_new(target_id) <> 'ours' OR NOT (SELECT (r->>'there')::boolean FROM cutover._remote(v_server,
		'SELECT pg_catalog.to_regprocedure(''cutover.remove_guard(int)'') IS NOT NULL AS there') r) THEN
		RETURN NULL;
	END IF;
	PERFORM cutover._remote(v_server, format('SET LOCAL lock_timeout = %s',
		(extract(epoch FROM current_setting('cutover.lock_timeout')::interval) * 1000)::int));
	PERFORM cutover._remote(v_server, 'SELECT cutover.remove_guard($1::int)', table_id::text);
	RETURN true;
EXCEPTION
	WHEN lock_not_available OR deadlock_detected THEN
		RETURN false;
	WHEN sqlclient_unable_to_establish_sqlconnection OR connection_failure OR connection_exception THEN
		RETURN NULL;
END
$$;
COMMENT ON FUNCTION cutover._try_unguard(int, int) IS 'takes the guard off a table of new, giving way to the application';

-- Takes the guard off the tables of new one by one: dropping it with our schema would lock all of them at once.
CREATE PROCEDURE cutover._unguard_new(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_table int;
	v_done boolean;
	v_until timestamptz;
BEGIN
	FOREACH v_table IN ARRAY ARRAY(SELECT t.table_id FROM cutover._table t WHERE t.target_id = _unguard_new.target_id ORDER BY t.table_id) LOOP
		v_until := clock_timestamp() + 60 * current_setting('cutover.lock_timeout')::interval;
		LOOP
			v_done := cutover._try_unguard(target_id, v_table);
			COMMIT;
			IF v_done IS NULL THEN
				RETURN;
			END IF;
			EXIT WHEN v_done;
			IF clock_timestamp() > v_until THEN
				RAISE EXCEPTION 'could not lock table % on new to take the guard off',
					(SELECT format('%I.%I', t.new_schema, t.new_name) FROM cutover._table t WHERE t.table_id = v_table) USING ERRCODE = '55P03',
					DETAIL = 'It was in use at every attempt.',
					HINT = 'End the transactions there that use it, and call again: it goes on from here.';
			END IF;
			PERFORM pg_sleep(0.2 + 0.3 * random());
		END LOOP;
	END LOOP;
END
$$;

CREATE PROCEDURE cutover._do_cancel(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id, true);
	v_failed oid;
	v_blockers text;
BEGIN
	IF v_target.desired = 'finished' THEN
		RAISE EXCEPTION 'target "%" is finished', v_target.target USING ERRCODE = '55000',
			DETAIL = 'New is the only one now.',
			HINT = 'Old''s tables go on refusing writes; DROP EXTENSION cutover CASCADE ends that.';
	ELSIF v_target.mode = 'new_only' THEN
		-- cutover_cancel() went back a moment ago; somebody else has switched since
		RAISE EXCEPTION 'target "%" is in mode %', v_target.target, v_target.mode USING ERRCODE = '55000',
			DETAIL = 'New is master: old alone would not have what new was given meanwhile.',
			HINT = 'Call cutover_cancel() again, or complete the migration with cutover_finish().';
	ELSIF v_target.mode <> 'old_only' THEN
		PERFORM cutover._record_mode(target_id, 'old_only', v_target.epoch + 1, interval '0', 0, '{}');
	END IF;
	UPDATE cutover._target t SET desired = 'idle' WHERE t.target_id = _do_cancel.target_id;
	COMMIT;
	CALL cutover._await_stop(target_id);
	CALL cutover._capture_all(target_id, false, v_failed, v_blockers);
	IF v_failed IS NOT NULL THEN
		RAISE EXCEPTION 'could not lock table % to take capture off', v_failed::regclass USING ERRCODE = '55P03',
			DETAIL = coalesce('It is in use by ' || v_blockers || '.', 'It was in use at every attempt.'),
			HINT = 'End these transactions and call cutover_cancel() again: it goes on from here.';
	END IF;
	CALL cutover._unguard_new(target_id);
	PERFORM cutover._drop_new_side(target_id);
	PERFORM cutover._log_event('cancel', '{}', target_id);
	PERFORM cutover._forget_target_rows(target_id);
	COMMIT;
	PERFORM cutover._forget_target(target_id);
END
$$;

CREATE FUNCTION @extschema@.cutover_cancel(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = cutover._target_id(cutover_cancel.target);
	IF t.mode = 'new_only' AND t.desired <> 'finished' THEN
		-- what new was given comes along
		PERFORM cutover._action('cutover_cancel', 'CALL cutover._do_set_mode($1::int, $2, $3::jsonb)',
			ARRAY[t.target_id::text, 'old_only', jsonb_build_object('timeout', interval '1 min', 'force', false, 'blockers', 'wait',
				'old_writes', 'reject', 'old_sessions', 'keep')::text]);
	END IF;
	PERFORM cutover._action('cutover_cancel', 'CALL cutover._do_cancel($1::int)', ARRAY[t.target_id::text]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_cancel(name) IS
'Run: gives the migration up, in new_only after going back to old; our objects on both sides go, what was taken off new comes back, rows copied stay there';

-- What a finished target does not need: all but the refusal of writes.
CREATE FUNCTION cutover._forget_path(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
	v_server name := (SELECT t.server FROM cutover._target t WHERE t.target_id = _forget_path.target_id);
BEGIN
	PERFORM cutover._drop_queue(target_id, true);
	DELETE FROM cutover._layout l WHERE l.table_id IN (SELECT t.table_id FROM cutover._table t WHERE t.target_id = _forget_path.target_id);
	DELETE FROM cutover._apply_error e WHERE e.target_id = _forget_path.target_id;
	DELETE FROM cutover._dual_write_failure f WHERE f.target_id = _forget_path.target_id;
	DELETE FROM cutover._marker m WHERE m.target_id = _forget_path.target_id;
	DELETE FROM cutover._rotation r WHERE r.target_id = _forget_path.target_id;
	DELETE FROM cutover._pooler p WHERE p.target_id = _forget_path.target_id;
	DELETE FROM cutover._chunk c USING cutover._table t WHERE t.target_id = _forget_path.target_id AND t.table_id = c.table_id;
	-- the refusal says where new is
	UPDATE cutover._target t SET new_address = (SELECT string_agg(o.option_name || '=' || o.option_value, ' ' ORDER BY o.option_name)
			FROM pg_foreign_server f, pg_options_to_table(f.srvoptions) o
			WHERE f.srvname = v_server AND o.option_name IN ('host', 'hostaddr', 'port', 'dbname', 'service'))
		WHERE t.target_id = _forget_path.target_id AND t.new_address IS NULL;
	IF EXISTS (SELECT FROM pg_foreign_server f WHERE f.srvname = v_server) THEN
		EXECUTE format('ALTER EXTENSION cutover DROP SERVER %I', v_server);
		EXECUTE format('DROP SERVER %I CASCADE', v_server);
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._forget_path(int) IS 'removes queue and address of a target that is finished';

CREATE PROCEDURE cutover._do_finish(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id);
	v_failed oid;
	v_blockers text;
BEGIN
	IF v_target.desired = 'finished' AND NOT EXISTS (SELECT FROM pg_foreign_server f WHERE f.srvname = v_target.server) THEN
		RAISE EXCEPTION 'target "%" is finished already', v_target.target USING ERRCODE = '55000',
			DETAIL = 'New is the only one now.', HINT = 'There is nothing left to do; DROP EXTENSION cutover CASCADE lets old''s tables be written to.';
	ELSIF v_target.mode <> 'new_only' THEN
		RAISE EXCEPTION 'target "%" cannot be finished in mode %', v_target.target, v_target.mode USING ERRCODE = '55000',
			DETAIL = 'Old still accepts writes.',
			HINT = 'Switch with cutover_set_mode(''new_only'') first, or give the migration up with cutover_cancel().';
	END IF;
	-- from here on there is no way back; whatever breaks off is done by calling again
	UPDATE cutover._target t SET desired = 'finished' WHERE t.target_id = _do_finish.target_id;
	COMMIT;
	CALL cutover._await_stop(target_id);
	CALL cutover._capture_all(target_id, false, v_failed, v_blockers, true);
	IF v_failed IS NOT NULL THEN
		RAISE EXCEPTION 'could not lock table % to take capture off', v_failed::regclass USING ERRCODE = '55P03',
			DETAIL = coalesce('It is in use by ' || v_blockers || '.', 'It was in use at every attempt.'),
			HINT = 'End these transactions and call cutover_finish() again: it goes on from here.';
	END IF;
	-- after cutover.abandon() there is nothing of ours on new
	IF cutover._owner_of_new(target_id) <> 'foreign' THEN
		PERFORM cutover._remove_reverse(target_id);
		COMMIT;
		CALL cutover._unguard_new(target_id);
		PERFORM cutover._drop_new_side(target_id);
	END IF;
	PERFORM cutover._forget_path(target_id);
	PERFORM cutover._log_event('finish', jsonb_build_object('epoch', v_target.epoch), target_id);
	COMMIT;
	PERFORM cutover._forget_target(target_id);
END
$$;

CREATE FUNCTION @extschema@.cutover_finish(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._action('cutover_finish', 'CALL cutover._do_finish($1::int)', ARRAY[cutover._target_id(target)::text]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_finish(name) IS
'Last step, irreversible: drops the reverse path, capture, queue and connections; only in mode new_only';
