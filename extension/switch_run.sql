-- switch_run.sql: the steps of a switch, and who calls them.

-- What a switch needs to know and to have ready before anybody has to wait.
CREATE PROCEDURE cutover._prepare_switch(target_id int, to_mode text, INOUT options jsonb, INOUT old_names text[] DEFAULT NULL, INOUT new_names text[] DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	t cutover._target;
	v_there jsonb;
	v_epoch bigint;
	v_whole boolean;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _prepare_switch.target_id;
	PERFORM cutover._new_open(t.server, 3);
	SELECT r INTO v_there FROM cutover._new_exec('SELECT master, epoch FROM cutover.migration WHERE migration_id = $1::uuid', t.migration_id::text) r;
	IF v_there->>'master' IS DISTINCT FROM cutover._master(t.mode) THEN
		RAISE EXCEPTION 'new does not agree on who is master' USING ERRCODE = '55000',
			DETAIL = format('Target "%s" is in mode %s here; new has it that the master is %s.', t.target, t.mode, coalesce(v_there->>'master', 'unknown')),
			HINT = 'See cutover.status and the server log.';
	END IF;
	v_epoch := greatest(t.epoch, (v_there->>'epoch')::bigint) + 1;
	v_whole := cutover._whole_database(target_id);
	options := options || jsonb_build_object('whole', v_whole, 'new_whole', v_whole AND current_setting('cutover.protect_new')::boolean AND cutover._whole_move(target_id));
	UPDATE cutover._target x SET switch_state = 'preparing', switch_to = to_mode, switch_epoch = v_epoch, switch_options = options
		WHERE x.target_id = _prepare_switch.target_id;
	COMMIT;
	PERFORM cutover._on_error(target_id, format('CALL cutover._undo_switch(%s, $1)', target_id));
	PERFORM cutover._switch_step('preparing');
	IF to_mode = 'new_only' THEN
		PERFORM cutover._install_new_guard(target_id);
		COMMIT;
		PERFORM cutover._install_reverse(target_id);
		COMMIT;
		PERFORM cutover._check_objections(target_id, to_mode, (options->>'force')::boolean);
	END IF;
	-- no action on sequences that new does not have: cutover_check_mode() names them
	SELECT array_agg(s.old_name ORDER BY s.seq), array_agg(s.new_name ORDER BY s.seq) INTO old_names, new_names
		FROM cutover._match_sequences(target_id) s WHERE s.new_name IS NOT NULL;
	PERFORM cutover._new_exec(cutover._new_sequence_script() || cutover._new_read_only_script());
	PERFORM cutover._align_sequences(cutover._master(to_mode), old_names, new_names, true);
	COMMIT;
	PERFORM cutover._rehearse_record(target_id, to_mode, v_epoch, options);
	COMMIT;
	PERFORM cutover._switch_step('prepared');
END
$$;

-- Waits, gate open, until it is worth while to close it: no long writer, and the other side follows closely.
-- blocked: why it is not; NULL = it is.
CREATE PROCEDURE cutover._await_quiet(target_id int, master text, until timestamptz, INOUT blocked text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	v_since timestamptz;
	v_ticket bigint;
	v_served boolean;
BEGIN
	LOOP
		blocked := NULL;
		IF EXISTS (SELECT FROM cutover._writers(target_id, master) w WHERE w.gid IS NOT NULL OR w.age > interval '500 ms') THEN
			blocked := 'There were transactions that write for long.';
		ELSE
			v_since := clock_timestamp();
			v_ticket := cutover._draw_ticket(target_id);
			v_served := cutover._await_ticket(target_id, v_ticket, 1000, true);
			IF NOT v_served OR clock_timestamp() > v_since + interval '200 ms' THEN
				blocked := concat_ws(' ', 'The following side was not close behind.', cutover._how_far(target_id));
			END IF;
		END IF;
		COMMIT;
		EXIT WHEN blocked IS NULL OR clock_timestamp() >= until;
		PERFORM pg_sleep(0.05);
	END LOOP;
END
$$;

-- Tells the world that the gate is about to close, and waits for those who pause their clients first.
CREATE PROCEDURE cutover._announce(target_id int, until timestamptz, INOUT blocked text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	t cutover._target;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _announce.target_id;
	UPDATE cutover._pooler p SET paused_epoch = NULL WHERE p.target_id = _announce.target_id;
	PERFORM cutover._log_event('switch_begin', jsonb_build_object('from', t.mode, 'to', t.switch_to, 'epoch', t.switch_epoch), target_id);
	LOOP
		COMMIT;
		blocked := cutover._busy_poolers(target_id, t.switch_epoch) || ' did not pause.';
		EXIT WHEN blocked IS NULL OR clock_timestamp() >= until;
		PERFORM pg_sleep(0.001);
	END LOOP;
END
$$;

-- Tables of which new has not captured every change.  The replicator looks for them now and then, and may not have seen the last ones.
CREATE FUNCTION cutover._note_uncaptured(target_id int) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE cutover._table b SET reverse_closed = r->>'reason'
	FROM cutover._new_exec($sql$
		SELECT c.table_id, coalesce(min(d.reason), 'its capture trigger on new was missing or disabled for some time') AS reason
		FROM cutover.captured c LEFT JOIN cutover.capture_closed d ON d.table_id = c.table_id
		WHERE d.table_id IS NOT NULL OR EXISTS (
			SELECT FROM (SELECT to_regclass(c.relation) UNION SELECT p.relid FROM pg_partition_tree(to_regclass(c.relation)) p) r (relid)
			WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.relid AND t.tgenabled = 'A'
				AND t.tgfoid = to_regprocedure(format('cutover.capture_key_%s()', c.table_id))))
		GROUP BY 1$sql$) r
	WHERE b.target_id = $1 AND b.table_id = (r->>'table_id')::int AND b.reverse_closed IS NULL;
	RETURN FOUND;
END
$$;
COMMENT ON FUNCTION cutover._note_uncaptured(int) IS 'notes tables that old can not follow new for, as new sees it';

-- With the gate closed: the other side has everything, and sequences are ahead.
CREATE FUNCTION cutover._drain(target_id int, to_mode text, old_names text[], new_names text[], force boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_ticket bigint := cutover._draw_ticket(target_id);
	v_direction text := CASE to_mode WHEN 'new_only' THEN 'forward' ELSE 'reverse' END;
	v_uncaptured boolean := to_mode <> 'new_only' AND cutover._note_uncaptured(target_id);
BEGIN
	PERFORM cutover._align_sequences(cutover._master(to_mode), old_names, new_names, false);
	IF NOT cutover._await_ticket(target_id, v_ticket, 1000, false) THEN
		RETURN false;
	ELSIF NOT force AND (v_uncaptured OR EXISTS (SELECT FROM cutover._apply_error e WHERE e.target_id = _drain.target_id AND e.direction = v_direction)) THEN
		PERFORM cutover._check_objections(target_id, to_mode, false);
	END IF;
	RETURN true;
END
$$;
COMMENT ON FUNCTION cutover._drain(int, text, text[], text[], boolean) IS 'behind the closed gate: waits until the coming master has everything';

-- Closes the gate, and leaves it closed with nothing left to move.
CREATE PROCEDURE cutover._pass_gate(target_id int, to_mode text, options jsonb, old_names text[], new_names text[],
	INOUT closed_at timestamptz DEFAULT NULL, INOUT drained bigint DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	v_master text := CASE cutover._master(to_mode) WHEN 'new' THEN 'old' ELSE 'new' END;
	v_epoch bigint;
	v_until timestamptz := clock_timestamp() + (options->>'timeout')::interval;
	v_blockers text := options->>'blockers';
	v_force boolean := (options->>'force')::boolean;
	v_attempts int := 0;
	v_blocked text;
	v_poolers boolean;
	v_announced boolean := false;
	v_applied bigint;
	v_good boolean;
BEGIN
	SELECT t.switch_epoch INTO STRICT v_epoch FROM cutover._target t WHERE t.target_id = _pass_gate.target_id;
	DELETE FROM cutover._pooler p WHERE p.target_id = _pass_gate.target_id
		AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = p.pid AND a.backend_start = p.backend_start);
	LOOP
		CALL cutover._await_quiet(target_id, v_master, v_until, v_blocked);
		v_poolers := EXISTS (SELECT FROM cutover._pooler p WHERE p.target_id = _pass_gate.target_id);
		IF v_blocked IS NULL AND (v_poolers OR v_attempts = 0) THEN
			CALL cutover._announce(target_id, v_until, v_blocked);
			v_announced := true;
		END IF;
		IF v_blocked IS NULL THEN
			v_attempts := v_attempts + 1;
			v_applied := cutover._applied_changes(target_id);
			closed_at := clock_timestamp();
			-- nobody waits longer than that for a gate that then does not close
			IF cutover._close_gate(target_id, v_master, 200) THEN
				PERFORM cutover._switch_step('closed');
				v_good := cutover._drain(target_id, to_mode, old_names, new_names, v_force);
				drained := cutover._applied_changes(target_id) - v_applied;
				COMMIT;
				EXIT WHEN v_good;
				PERFORM cutover._open_gate(target_id, v_master);
				v_blocked := concat_ws(' ', 'The following side did not come to the end.', cutover._how_far(target_id));
			ELSE
				v_blocked := format('In %s attempts there always was a transaction that writes.', v_attempts);
			END IF;
		END IF;
		IF v_poolers AND v_announced THEN
			-- who has paused may go on until the next attempt
			PERFORM cutover._log_event('switch_undone', jsonb_build_object('epoch', v_epoch, 'again', true, 'reason', v_blocked), target_id);
		END IF;
		v_announced := false;
		COMMIT;
		IF clock_timestamp() >= v_until THEN
			IF v_blockers = 'wait' THEN
				PERFORM cutover._raise_blocked(target_id, v_master, v_blocked);
			END IF;
			PERFORM cutover._stop_writers(target_id, v_master, v_blockers);
			COMMIT;
			v_blockers := 'wait';
			v_until := clock_timestamp() + interval '2 s';
		ELSE
			-- those who had to wait have something to catch up on
			PERFORM pg_sleep(least(0.3 * v_attempts, 1) * (0.75 + random() / 2));
		END IF;
	END LOOP;
END
$$;

-- The switch itself.
CREATE PROCEDURE cutover._switch(target_id int, to_mode text, options jsonb, INOUT result jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	t cutover._target;
	v_old_names text[];
	v_new_names text[];
	v_closed_at timestamptz;
	v_drained bigint;
	v_take_over text;
	v_pause interval;
BEGIN
	IF current_setting('synchronous_commit') IN ('off', 'local') THEN
		PERFORM set_config('synchronous_commit', 'on', false);
	END IF;
	-- somebody's transaction may hold the target's row: not behind the closed gate
	PERFORM set_config('lock_timeout', '1s', false);
	CALL cutover._prepare_switch(target_id, to_mode, options, v_old_names, v_new_names);
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _switch.target_id;
	v_take_over := CASE t.mode WHEN 'new_only' THEN '' ELSE 'BEGIN; ' END
		|| cutover._take_over_sql(t, cutover._master(to_mode), t.switch_epoch, options) || '; COMMIT';
	CALL cutover._pass_gate(target_id, to_mode, options, v_old_names, v_new_names, v_closed_at, v_drained);
	PERFORM cutover._switch_step('drained');

	options := options || jsonb_build_object('closed_at', v_closed_at, 'drained', v_drained);
	UPDATE cutover._target x SET switch_state = 'in_doubt', switch_options = options WHERE x.target_id = _switch.target_id;
	COMMIT;
	PERFORM cutover._switch_step('in_doubt');
	IF t.mode <> 'new_only' AND NOT cutover._fence_held(target_id) THEN
		RAISE EXCEPTION 'the fence was lost' USING ERRCODE = 'XX000', DETAIL = 'The gate is open.', HINT = 'Call cutover_set_mode() again.';
	END IF;
	PERFORM cutover._new_exec(v_take_over);
	PERFORM cutover._switch_step('taken_over');

	v_pause := clock_timestamp() - v_closed_at;
	result := cutover._record_mode(target_id, to_mode, t.switch_epoch, v_pause, v_drained, options);
	COMMIT;
	PERFORM cutover._switch_step('recorded');
	PERFORM cutover._fence_unlock(target_id);
	v_pause := clock_timestamp() - v_closed_at;
	PERFORM cutover._on_error(target_id, NULL);
	-- now that nobody waits any more it is known for how long
	UPDATE cutover._mode_change m SET pause = v_pause WHERE m.target_id = _switch.target_id AND m.epoch = t.switch_epoch;
	result := result || jsonb_build_object('pause', v_pause);
	COMMIT;
	PERFORM cutover._new_close();
	PERFORM cutover._after_switch(target_id, options);
	COMMIT;
END
$$;

-- What can wait until the gate is open.  Nothing of it may fail the switch that was made.
CREATE FUNCTION cutover._after_switch(target_id int, options jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _after_switch.target_id;
	PERFORM cutover._wake_replicator(target_id);
	IF options->>'old_sessions' = 'terminate_idle' THEN
		PERFORM cutover._terminate_idle(target_id);
	END IF;
	IF t.mode <> 'new_only' THEN
		-- forced: of these old does not have what new was given
		UPDATE cutover._table b SET clean_passes = 0 WHERE b.target_id = t.target_id AND b.reverse_closed IS NOT NULL AND b.clean_passes <> 0;
		BEGIN
			PERFORM cutover._remove_reverse(target_id);
			IF EXISTS (SELECT FROM cutover._table b WHERE b.target_id = t.target_id AND b.reverse_closed IS NOT NULL) THEN
				-- whoever turned the triggers for capture off has done so with the guard
				PERFORM cutover._install_new_guard(target_id);
			END IF;
		EXCEPTION WHEN OTHERS THEN
			RAISE WARNING 'the way back could not be taken off new' USING DETAIL = SQLERRM,
				HINT = 'It does no harm there; the next switch uses it, cutover_cancel() removes it.';
		END;
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._after_switch(int, jsonb) IS 'what follows a switch when nobody waits any more';

-- Ends sessions of this database that do nothing, so that pools connect again.
CREATE FUNCTION cutover._terminate_idle(target_id int) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_count int;
BEGIN
	SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) INTO v_count
	FROM pg_stat_activity a
	WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.state = 'idle' AND a.pid <> pg_backend_pid()
		AND NOT EXISTS (SELECT FROM cutover._pooler p WHERE p.pid = a.pid AND p.backend_start = a.backend_start);
	PERFORM cutover._log_event('terminate_idle', jsonb_build_object('sessions', v_count), target_id);
	RETURN v_count;
END
$$;
COMMENT ON FUNCTION cutover._terminate_idle(int) IS 'ends idle client sessions of this database';

-- cutover_set_mode() in its worker.
CREATE PROCEDURE cutover._do_set_mode(target_id int, mode text, options jsonb, INOUT result jsonb DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	t cutover._target := cutover._begin_action(target_id);
BEGIN
	IF t.mode = mode THEN
		-- already there: nothing paused, nothing drained, no new epoch
		IF mode = 'new_only' THEN
			UPDATE cutover._target x SET old_writes = options->>'old_writes' WHERE x.target_id = _do_set_mode.target_id;
			PERFORM cutover._set_old_read_only(target_id, options->>'old_writes' = 'reject' AND cutover._whole_database(target_id));
			IF options->>'old_sessions' = 'terminate_idle' THEN
				PERFORM cutover._terminate_idle(target_id);
			END IF;
		END IF;
		result := jsonb_build_object('target', t.target, 'from_mode', mode, 'to_mode', mode, 'epoch', t.epoch, 'pause', interval '0',
			'drained_changes', 0, 'changed_at', clock_timestamp());
		RETURN;
	END IF;
	PERFORM cutover._check_objections(target_id, mode, (options->>'force')::boolean,
		CASE WHEN mode = 'new_only' THEN 'reverse' END);
	IF cutover._master(t.mode) = cutover._master(mode) THEN
		-- old stays master, so nobody is kept waiting: transactions learn of it by cache invalidation
		result := cutover._record_mode(target_id, mode, t.epoch + 1, interval '0', 0, options);
		COMMIT;
		-- whoever commits after this call finds a worker that knows
		PERFORM cutover._wake_replicator(target_id);
	ELSE
		COMMIT;
		CALL cutover._switch(target_id, mode, options, result);
	END IF;
END
$$;

-- A session that pauses a pool of connections around switches tells so, once for each connection to old that it listens on.
CREATE FUNCTION @extschema@.cutover_register_pooler(name text, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._need_writable('cutover_register_pooler');
	PERFORM cutover._not_null('name', name IS NULL);
	INSERT INTO cutover._pooler AS p (target_id, name, pid, backend_start)
	SELECT v_target, cutover_register_pooler.name, a.pid, a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
	ON CONFLICT ON CONSTRAINT _pooler_pkey DO UPDATE SET pid = EXCLUDED.pid, backend_start = EXCLUDED.backend_start, paused_epoch = NULL;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_register_pooler(text, name)
	IS 'step 4, switch: as long as this session lives, switches wait for its cutover_confirm_pause() after they have notified switch_begin';

CREATE FUNCTION @extschema@.cutover_confirm_pause(name text, epoch bigint, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._need_writable('cutover_confirm_pause');
	PERFORM cutover._not_null('name', name IS NULL);
	PERFORM cutover._not_null('epoch', epoch IS NULL);
	UPDATE cutover._pooler p SET paused_epoch = cutover_confirm_pause.epoch
	WHERE p.target_id = v_target AND p.name = cutover_confirm_pause.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'pooler "%" is not registered', name USING ERRCODE = '42704',
			DETAIL = 'Switches do not wait for it.', HINT = 'Call cutover_register_pooler(name) first.';
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_confirm_pause(text, bigint, name)
	IS 'step 4, switch: a registered pooler has paused its clients for the switch of this epoch; set_mode or switch_undone tell it to resume';
