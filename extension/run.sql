-- run.sql: actions.  A public function refuses what it can, then has a worker
-- CALL a procedure, which commits step by step: each step leaves a state from
-- which the same action, or cutover_cancel(), goes on.
--
-- Procedures here have no SET clause, since such can't commit; workers run with
-- search_path = pg_catalog.

-- Whether new has all that was committed when a ticket was drawn (see wait.c).
CREATE FUNCTION cutover._draw_ticket(target_id int) RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_draw_ticket';
CREATE FUNCTION cutover._await_ticket(target_id int, ticket bigint, timeout_ms bigint, ensure boolean) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_await_ticket';

-- The replicator of a target: start (false: no worker slot), look, wake, end.
CREATE FUNCTION cutover._start_replicator(target_id int) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_start_replicator';
CREATE FUNCTION cutover._replicator_pid(target_id int) RETURNS int
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_replicator_pid';
CREATE FUNCTION cutover._wake_replicator(target_id int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_wake_replicator';
CREATE FUNCTION cutover._stop_replicator(target_id int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_stop_replicator';
CREATE FUNCTION cutover._forget_target(target_id int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_forget_target';

-- As _remote, for statements that may rightly be silent for hours.
CREATE FUNCTION cutover._remote_long(server name, sql text, VARIADIC args text[] DEFAULT '{}') RETURNS SETOF jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_remote_long';

-- First step of every action: nobody else acts on this target.
CREATE FUNCTION cutover._begin_action(target_id int, copies_too boolean DEFAULT false, resolve boolean DEFAULT true) RETURNS cutover._target
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
BEGIN
	IF NOT cutover._lock_target(target_id) THEN
		RAISE EXCEPTION 'another action is under way on target "%"',
			(SELECT t.target FROM cutover._target t WHERE t.target_id = _begin_action.target_id) USING ERRCODE = '55006',
			DETAIL = 'Actions on one target run one after the other.',
			HINT = 'Wait for its end. Cancelling the session that called it stops it.';
	END IF;
	SELECT * INTO v_target FROM cutover._target t WHERE t.target_id = _begin_action.target_id;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'the target is gone' USING ERRCODE = '42704',
			DETAIL = 'It was dropped or cancelled a moment ago.', HINT = 'See cutover.status for the targets there are.';
	ELSIF NOT copies_too AND v_target.system_identifier <> (SELECT system_identifier FROM pg_control_system()) THEN
		RAISE EXCEPTION 'this server is a copy of the one that target "%" belongs to', v_target.target USING ERRCODE = '55000',
			DETAIL = 'Two servers must not work on one new database.',
			HINT = 'If it is the real one now, call cutover_adopt(); if not, run DROP EXTENSION cutover CASCADE here.';
	ELSIF resolve AND v_target.switch_state IS NOT NULL THEN
		-- who drove it is gone, since we have the lock
		v_target := cutover._end_switch(target_id);
	END IF;
	RETURN v_target;
END
$$;

-- Refuses a target that does not run.
CREATE FUNCTION cutover._check_started(target_id int) RETURNS cutover._target
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
BEGIN
	SELECT * INTO v_target FROM cutover._target t WHERE t.target_id = _check_started.target_id;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'the target is gone' USING ERRCODE = '42704',
			DETAIL = 'It was dropped or cancelled a moment ago.', HINT = 'See cutover.status for the targets there are.';
	ELSIF v_target.desired NOT IN ('running', 'paused') THEN
		RAISE EXCEPTION 'target "%" is not started', v_target.target USING ERRCODE = '55000',
			DETAIL = format('Its state is %s.', v_target.desired),
			HINT = 'Start it with cutover_start().';
	ELSIF NOT EXISTS (SELECT FROM cutover._marker m WHERE m.target_id = _check_started.target_id AND m.direction = 'forward') THEN
		RAISE EXCEPTION 'the start of target "%" was interrupted', v_target.target USING ERRCODE = '55000',
			DETAIL = 'Capture may be on for some of its tables only.',
			HINT = 'Call cutover_start() again, or give up with cutover_cancel().';
	END IF;
	RETURN v_target;
END
$$;

-- Who holds a lock on a table that keeps us from it, in words.
CREATE FUNCTION cutover._blockers(rel regclass) RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(DISTINCT format('process %s (role %s, application %s, %s for %s)', l.pid, coalesce(a.usename::text, '-'),
		coalesce(nullif(a.application_name, ''), '-'), coalesce(a.state, a.backend_type, 'prepared transaction'),
		date_trunc('second', clock_timestamp() - a.xact_start)), ', ')
	FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
	WHERE l.locktype = 'relation' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND (l.relation = rel OR l.relation IN (SELECT t.relid FROM pg_partition_tree(rel) t))
		AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
$$;

-- One attempt at a change of a table in use: gives way to the application after
-- cutover.lock_timeout.  False: try again.
CREATE FUNCTION cutover._try_capture(table_id int, install boolean, keep_fence boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF install THEN
		PERFORM cutover._install_capture(table_id);
	ELSE
		PERFORM cutover._remove_capture(table_id, keep_fence);
	END IF;
	RETURN true;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
	RETURN false;
END
$$;

-- The same in a transaction of the caller, who can't be made to wait long.
CREATE FUNCTION cutover._change_capture(table_id int, install boolean) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_table regclass := (SELECT t.old_table FROM cutover._table t WHERE t.table_id = _change_capture.table_id);
BEGIN
	FOR v_attempt IN 1..10 LOOP
		IF cutover._try_capture(table_id, install) THEN
			RETURN;
		END IF;
		PERFORM pg_sleep(0.1 * v_attempt);
	END LOOP;
	RAISE EXCEPTION 'could not lock table % to % capture', v_table, CASE WHEN install THEN 'begin' ELSE 'end' END
		USING ERRCODE = '55P03',
		DETAIL = coalesce('It is in use by ' || cutover._blockers(v_table) || '.', 'It was in use at every attempt.'),
		HINT = 'End these transactions, or try again at a quieter time. Nothing has been changed.';
END
$$;

-- Puts capture on all tables of a target or takes it off, each in its own transaction.
CREATE PROCEDURE cutover._capture_all(target_id int, install boolean, INOUT failed_table oid DEFAULT NULL, INOUT blockers text DEFAULT NULL,
	keep_fence boolean DEFAULT false)
LANGUAGE plpgsql AS $$
DECLARE
	v_tables int[] := ARRAY(SELECT t.table_id FROM cutover._table t WHERE t.target_id = _capture_all.target_id ORDER BY t.table_id);
	v_table int;
	v_done boolean;
	v_until timestamptz;
	v_attempt int;
BEGIN
	failed_table := NULL;
	FOREACH v_table IN ARRAY v_tables LOOP
		v_until := clock_timestamp() + 60 * current_setting('cutover.lock_timeout')::interval;
		v_attempt := 0;
		LOOP
			v_done := cutover._try_capture(v_table, install, keep_fence);
			COMMIT;
			EXIT WHEN v_done OR clock_timestamp() > v_until;
			v_attempt := v_attempt + 1;
			SELECT cutover._blockers(t.old_table::regclass) INTO blockers FROM cutover._table t WHERE t.table_id = v_table;
			COMMIT;
			PERFORM pg_sleep(least(0.1 * v_attempt, 1) * (0.75 + random() / 2));
		END LOOP;
		IF NOT v_done THEN
			SELECT t.old_table INTO failed_table FROM cutover._table t WHERE t.table_id = v_table;
			EXIT;
		END IF;
	END LOOP;
END
$$;

-- Waits until the replicator of a target has ended; wakes it, later ends it.
CREATE PROCEDURE cutover._await_stop(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_since timestamptz := clock_timestamp();
BEGIN
	LOOP
		COMMIT;
		EXIT WHEN cutover._replicator_pid(target_id) IS NULL;
		PERFORM cutover._wake_replicator(target_id);
		IF clock_timestamp() > v_since + interval '5 s' THEN
			PERFORM cutover._stop_replicator(target_id);
		END IF;
		IF clock_timestamp() > v_since + interval '30 s' THEN
			RAISE EXCEPTION 'the replicator does not end' USING ERRCODE = '55P03',
				DETAIL = format('Process %s still runs. It has been asked to end and will.', cutover._replicator_pid(target_id)),
				HINT = 'Call again, or end it with pg_terminate_backend().';
		END IF;
		PERFORM pg_sleep(0.02);
	END LOOP;
END
$$;

-- Undoes a start that can't go on.
CREATE PROCEDURE cutover._undo_start(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_failed oid;
	v_blockers text;
BEGIN
	UPDATE cutover._target t SET desired = 'idle' WHERE t.target_id = _undo_start.target_id;
	DELETE FROM cutover._marker m WHERE m.target_id = _undo_start.target_id;
	COMMIT;
	CALL cutover._capture_all(target_id, false, v_failed, v_blockers);
	IF v_failed IS NULL THEN
		UPDATE cutover._target t SET started_at = NULL WHERE t.target_id = _undo_start.target_id;
	END IF;
	COMMIT;
END
$$;

-- Refuses to start what preflight objects to.
CREATE FUNCTION cutover._check_preflight(target_id int, copy boolean) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_count bigint;
	v_list text;
BEGIN
	SELECT count(*), string_agg(concat_ws(': ', nullif(p.object, ''), p.message), E'\n' ORDER BY p.object, p.message)
		INTO v_count, v_list FROM cutover._preflight(target_id, copy) p WHERE p.level = 'error';
	IF v_count > 0 THEN
		RAISE EXCEPTION 'target "%" cannot be started: preflight found % error(s)',
			(SELECT t.target FROM cutover._target t WHERE t.target_id = _check_preflight.target_id), v_count USING ERRCODE = '55000',
			DETAIL = v_list,
			HINT = 'SELECT * FROM cutover_preflight() says what to do about each.';
	END IF;
END
$$;

CREATE PROCEDURE cutover._do_start(target_id int, copy boolean)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id);
	v_failed oid;
	v_blockers text;
	v_s0 pg_snapshot;
BEGIN
	-- paused without a marker: a start that did not come to its end
	IF v_target.desired <> 'idle' AND (v_target.desired <> 'paused'
		OR EXISTS (SELECT FROM cutover._marker m WHERE m.target_id = _do_start.target_id)) THEN
		RAISE EXCEPTION 'target "%" is started already', v_target.target USING ERRCODE = '55000',
			DETAIL = format('Its state is %s.', v_target.desired),
			HINT = CASE v_target.desired WHEN 'paused' THEN 'Go on with cutover_resume().'
				WHEN 'finished' THEN 'Set up a new target.' ELSE 'Watch cutover.progress.' END;
	ELSIF NOT EXISTS (SELECT FROM cutover._table t WHERE t.target_id = _do_start.target_id) THEN
		RAISE EXCEPTION 'target "%" has no tables', v_target.target USING ERRCODE = '55000',
			DETAIL = 'There is nothing to move.',
			HINT = 'Add some with cutover_add_table() or cutover_add_tables().';
	END IF;
	-- in the eyes of preflight nothing is captured yet
	UPDATE cutover._target t SET desired = 'idle' WHERE t.target_id = _do_start.target_id AND t.desired <> 'idle';
	PERFORM cutover._check_preflight(target_id, copy);
	PERFORM cutover._check_owner_of_new(target_id);
	PERFORM cutover._install_new_guard(target_id);

	-- from here on changes are captured wherever the triggers are, and no replicator runs
	UPDATE cutover._target t SET desired = 'paused', started_at = clock_timestamp() WHERE t.target_id = _do_start.target_id;
	UPDATE cutover._table t SET copy = _do_start.copy, phase = 'waiting', phase_reason = NULL, phase_since = clock_timestamp()
		WHERE t.target_id = _do_start.target_id;
	COMMIT;

	CALL cutover._capture_all(target_id, true, v_failed, v_blockers);
	IF v_failed IS NOT NULL THEN
		CALL cutover._undo_start(target_id);
		RAISE EXCEPTION 'could not lock table % to put capture on', v_failed::regclass USING ERRCODE = '55P03',
			DETAIL = coalesce('It is in use by ' || v_blockers || '.', 'It was in use at every attempt.'),
			HINT = 'End these transactions, or call cutover_start() at a quieter time. Nothing has been changed.';
	END IF;

	-- all that comes from here on is captured: what S(0) does not see, the queue has
	IF current_setting('synchronous_commit') = 'off' THEN
		PERFORM set_config('synchronous_commit', 'local', true);
	END IF;
	v_s0 := pg_current_snapshot();
	INSERT INTO cutover._marker (target_id, direction, k, snapshot, acked_snapshot, taken_at)
	VALUES (_do_start.target_id, 'forward', 0, v_s0, v_s0, clock_timestamp())
	ON CONFLICT ON CONSTRAINT _marker_pkey DO UPDATE SET k = 0, snapshot = v_s0, acked_snapshot = v_s0, taken_at = clock_timestamp(), name = NULL;
	PERFORM cutover._remote(v_target.server, 'DELETE FROM cutover.progress WHERE direction = ''forward''');
	PERFORM cutover._remote(v_target.server, 'INSERT INTO cutover.progress (direction, k, snapshot, applied_at)
		VALUES (''forward'', 0, $1, pg_catalog.now())', v_s0::text);
	UPDATE cutover._target t SET desired = 'running', rewound = false WHERE t.target_id = _do_start.target_id;
	PERFORM cutover._set_new_read_only(target_id);
	PERFORM cutover._log_event('start', jsonb_build_object('copy', copy), target_id);
	COMMIT;

	IF NOT cutover._start_replicator(target_id) THEN
		CALL cutover._undo_start(target_id);
		RAISE EXCEPTION 'no free worker slot for the replicator of target "%"', v_target.target USING ERRCODE = '53400',
			DETAIL = 'The replicator is a background worker, and all of them are taken.',
			HINT = 'Raise max_worker_processes, or try again when other workers have ended.';
	END IF;
END
$$;

CREATE PROCEDURE cutover._do_pause(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id);
BEGIN
	PERFORM cutover._check_started(target_id);
	IF v_target.desired <> 'paused' THEN
		UPDATE cutover._target t SET desired = 'paused' WHERE t.target_id = _do_pause.target_id;
		PERFORM cutover._log_event('pause', '{}', target_id);
	END IF;
	COMMIT;
	CALL cutover._await_stop(target_id);
END
$$;

CREATE PROCEDURE cutover._do_resume(target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id);
	v_since timestamptz := clock_timestamp();
BEGIN
	PERFORM cutover._check_started(target_id);
	IF v_target.desired <> 'running' THEN
		UPDATE cutover._target t SET desired = 'running' WHERE t.target_id = _do_resume.target_id;
		PERFORM cutover._log_event('resume', '{}', target_id);
	END IF;
	COMMIT;
	LOOP
		IF NOT cutover._start_replicator(target_id) THEN
			RAISE EXCEPTION 'no free worker slot for the replicator of target "%"', v_target.target USING ERRCODE = '53400',
				DETAIL = 'The replicator is a background worker, and all of them are taken.',
				HINT = 'Raise max_worker_processes, or try again when other workers have ended.';
		END IF;
		EXIT WHEN cutover._replicator_pid(target_id) IS NOT NULL;
		IF clock_timestamp() > v_since + interval '30 s' THEN
			RAISE EXCEPTION 'the replicator of target "%" does not start', v_target.target USING ERRCODE = '55P03',
				DETAIL = 'It has been asked to.', HINT = 'See the server log.';
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
END
$$;

CREATE PROCEDURE cutover._do_resync(table_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target;
	v_table cutover._table;
BEGIN
	SELECT * INTO STRICT v_table FROM cutover._table t WHERE t.table_id = _do_resync.table_id;
	PERFORM cutover._begin_action(v_table.target_id);
	v_target := cutover._check_started(v_table.target_id);
	IF v_target.mode <> 'old_only' THEN
		RAISE EXCEPTION 'table % cannot be copied in mode %', v_table.old_table::regclass, v_target.mode USING ERRCODE = '55000',
			DETAIL = 'Sessions rely on new having its rows.',
			HINT = 'Go back with cutover_set_mode(''old_only'') first.';
	END IF;
	UPDATE cutover._table t SET phase = 'waiting', phase_reason = NULL, phase_since = clock_timestamp(), copy = true,
		copy_generation = t.copy_generation + 1, copy_started_at = NULL, copy_ended_at = NULL,
		last_compared_at = NULL, clean_passes = 0
		WHERE t.table_id = _do_resync.table_id;
	DELETE FROM cutover._chunk c WHERE c.table_id = _do_resync.table_id;
	DELETE FROM cutover._apply_error e WHERE e.table_id = _do_resync.table_id;
	DELETE FROM cutover._divergence d WHERE d.table_id = _do_resync.table_id;
	PERFORM cutover._log_event('resync', jsonb_build_object('table', v_table.old_table::regclass::text), v_target.target_id);
	COMMIT;
	PERFORM cutover._wake_replicator(v_target.target_id);
END
$$;

-- How far a target is behind, in words.
CREATE FUNCTION cutover._how_far(target_id int) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_state text;
	v_unsynced text;
	v_waiting text;
BEGIN
	SELECT t.desired INTO v_state FROM cutover._target t WHERE t.target_id = _how_far.target_id;
	SELECT string_agg(format('%s (%s)', t.old_table::regclass, t.phase), ', ' ORDER BY t.table_id) INTO v_unsynced
		FROM cutover._table t WHERE t.target_id = _how_far.target_id AND t.phase <> 'synced';
	SELECT nullif(s.waiting_for, '') INTO v_waiting FROM cutover._worker_stats() s WHERE s.target_id = _how_far.target_id;
	RETURN concat_ws(' ', format('%s changes are queued.', cutover._queued_changes(target_id)),
		CASE WHEN v_state = 'paused' THEN 'The target is paused.' END,
		CASE WHEN v_unsynced IS NOT NULL THEN format('Not synced yet: %s.', v_unsynced) END,
		CASE WHEN v_waiting IS NOT NULL THEN format('It waits for: %s.', v_waiting) END);
END
$$;

CREATE FUNCTION @extschema@.cutover_wait(timeout interval DEFAULT '1 min', target name DEFAULT NULL) RETURNS interval
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_id int;
	v_target cutover._target;
	v_since timestamptz := clock_timestamp();
	v_ticket bigint;
	v_left bigint;
BEGIN
	PERFORM cutover._not_null('timeout', timeout IS NULL);
	IF timeout < interval '0' OR timeout > interval '10 years' THEN
		RAISE EXCEPTION 'timeout % is out of range', timeout USING ERRCODE = '22023',
			DETAIL = 'It says how long to wait at most.', HINT = 'Give an interval such as ''1 min''.';
	END IF;
	v_id := cutover._target_id(target);
	v_target := cutover._check_started(v_id);
	v_ticket := cutover._draw_ticket(v_id);
	LOOP
		v_left := extract(epoch FROM v_since + timeout - clock_timestamp()) * 1000;
		IF cutover._await_ticket(v_id, v_ticket, greatest(least(v_left, 1000), 0), v_target.desired = 'running') THEN
			RETURN clock_timestamp() - v_since;
		ELSIF v_left <= 1000 THEN
			RAISE EXCEPTION 'gave up waiting for target "%"', v_target.target USING ERRCODE = '55P03',
				DETAIL = cutover._how_far(v_id),
				HINT = 'Wait longer with a greater timeout, or see cutover.status for what keeps it.';
		END IF;
		-- paused, resumed, cancelled meanwhile?
		v_target := cutover._check_started(v_id);
	END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_wait(interval, name) IS
'Run: returns when everything committed before the call is on the side that follows, with the time that took';

CREATE FUNCTION @extschema@.cutover_start(target name DEFAULT NULL, copy boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._not_null('copy', copy IS NULL);
	PERFORM cutover._action('cutover_start', 'CALL cutover._do_start($1::int, $2::boolean)',
		ARRAY[cutover._target_id(target)::text, copy::text]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_start(name, boolean) IS
'Run: puts capture on, copies the tables, then follows; returns at once';

CREATE FUNCTION @extschema@.cutover_pause(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._action('cutover_pause', 'CALL cutover._do_pause($1::int)', ARRAY[cutover._target_id(target)::text]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_pause(name) IS
'Run: stops replication; capture goes on, nothing is lost';

CREATE FUNCTION @extschema@.cutover_resume(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._action('cutover_resume', 'CALL cutover._do_resume($1::int)', ARRAY[cutover._target_id(target)::text]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_resume(name) IS
'Run: goes on with replication after cutover_pause()';

CREATE FUNCTION @extschema@.cutover_resync(old_table regclass, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int;
BEGIN
	PERFORM cutover._not_null('old_table', old_table IS NULL);
	v_target := cutover._table_target(old_table, target);
	PERFORM cutover._check_owner(old_table);
	PERFORM cutover._action('cutover_resync', 'CALL cutover._do_resync($1::int)',
		ARRAY[(SELECT t.table_id::text FROM cutover._table t WHERE t.old_table = cutover_resync.old_table)]);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_resync(regclass, name) IS
'Run: copies one table afresh while it stays in use';
