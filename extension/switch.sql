-- switch.sql: who is master changes, for everyone at once.
--
--   preparing   new is guarded, its way back is installed and proven, sequences are ahead       undone by old alone
--   (gate)      open until no long writer is left; then closed in short attempts; queue drained  undone by old alone
--   in_doubt    durable just before new is told                                                  new knows
--   recorded    old knows, too; the gate opens
--
-- Procedures commit after each step, and have no SET clause, since such can't.
-- What dies between two steps is put right by _resolve(), whoever calls it first.

-- In an action's worker (switcher.c)
CREATE FUNCTION cutover._new_open(server name, timeout_s int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_new_open';
CREATE FUNCTION cutover._new_exec(sql text, VARIADIC args text[] DEFAULT '{}') RETURNS SETOF jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_new_exec';
CREATE FUNCTION cutover._new_close() RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_new_close';
CREATE FUNCTION cutover._on_error(target_id int, sql text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_on_error';
CREATE FUNCTION cutover._switch_step(step text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_switch_step';
CREATE FUNCTION cutover._applied_changes(target_id int) RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_applied_changes';

-- Sessions that pause and resume a pool of connections around a switch.
CREATE TABLE cutover._pooler (
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	name text NOT NULL,
	pid int NOT NULL,							-- of the session that listens ...
	backend_start timestamptz NOT NULL,			-- ... and no other with that number
	paused_epoch bigint,						-- of the switch for which it has paused
	PRIMARY KEY (target_id, name)
);

-- Which side accepts writes in a mode.
CREATE FUNCTION cutover._master(mode text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE mode WHEN 'new_only' THEN 'new' ELSE 'old' END
$$;
COMMENT ON FUNCTION cutover._master(text) IS 'the side that accepts writes in a mode';

-- Writes a mode down: from here on it is in force on old.
CREATE FUNCTION cutover._record_mode(target_id int, mode text, epoch bigint, pause interval, drained bigint, options jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_at timestamptz := clock_timestamp();
BEGIN
	SELECT t.* INTO STRICT v_target FROM cutover._target t WHERE t.target_id = _record_mode.target_id FOR UPDATE;
	UPDATE cutover._target t SET mode = _record_mode.mode, epoch = _record_mode.epoch,
		master_since = CASE WHEN cutover._master(v_target.mode) = cutover._master(_record_mode.mode) THEN t.master_since ELSE v_at END,
		old_writes = coalesce(options->>'old_writes', t.old_writes),
		switch_state = NULL, switch_to = NULL, switch_epoch = NULL, switch_options = NULL
	WHERE t.target_id = _record_mode.target_id;
	INSERT INTO cutover._mode_change (target_id, target, from_mode, to_mode, epoch, pause, drained_changes, changed_at)
	VALUES (target_id, v_target.target, v_target.mode, mode, _record_mode.epoch, _record_mode.pause, drained, v_at);
	PERFORM cutover._log_event('set_mode', jsonb_build_object('from_mode', v_target.mode, 'to_mode', mode, 'epoch', _record_mode.epoch,
		'pause_ms', round(extract(epoch FROM _record_mode.pause) * 1000, 3), 'drained', drained), target_id);
	PERFORM cutover._set_old_read_only(target_id, cutover._master(mode) = 'new' AND (options->>'whole')::boolean IS TRUE
		AND coalesce(options->>'old_writes', v_target.old_writes) = 'reject');
	RETURN jsonb_build_object('target', v_target.target, 'from_mode', v_target.mode, 'to_mode', mode, 'epoch', _record_mode.epoch,
		'pause', _record_mode.pause, 'drained_changes', drained, 'changed_at', v_at);
END
$$;
COMMENT ON FUNCTION cutover._record_mode(int, text, bigint, interval, bigint, jsonb) IS 'writes a new mode down on old';

-- The same, rolled back: what it needs is in this process's caches then.
CREATE FUNCTION cutover._rehearse_record(target_id int, mode text, epoch bigint, options jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE cutover._target t SET switch_state = 'in_doubt', switch_options = options WHERE t.target_id = _rehearse_record.target_id;
	PERFORM cutover._record_mode(target_id, mode, epoch, interval '0', 0, options);
	RAISE EXCEPTION 'rehearsal' USING ERRCODE = 'CU000';
EXCEPTION WHEN SQLSTATE 'CU000' THEN
	NULL;
END
$$;
COMMENT ON FUNCTION cutover._rehearse_record(int, text, bigint, jsonb) IS 'goes through the record of a switch without making it';

-- What is done on new to make a side master there.  Fails (by a division by zero) where an epoch as high was given out already.
CREATE FUNCTION cutover._take_over_sql(target cutover._target, master text, epoch bigint, options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT format($sql$
		SELECT cutover.set_read_only(%1$L = 'old' AND %2$L::boolean);
		SELECT cutover.arm() WHERE %1$L = 'new';
		WITH u AS (UPDATE cutover.migration SET master = %1$L, epoch = %3$s, master_since = pg_catalog.clock_timestamp()
			WHERE migration_id = %4$L::uuid AND epoch < %3$s RETURNING 1)
		SELECT 1 / pg_catalog.count(*) FROM u$sql$,
		master, coalesce((options->>'new_whole')::boolean, false), epoch, target.migration_id)
$$;
COMMENT ON FUNCTION cutover._take_over_sql(cutover._target, text, bigint, jsonb) IS 'statements that make a side master, as new knows it';

-- A switch that nobody drives any more comes to its one continuation.  The caller holds the lock of the target.
CREATE FUNCTION cutover._resolve(target_id int, reason text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
	v_there jsonb;
BEGIN
	SELECT x.* INTO t FROM cutover._target x WHERE x.target_id = _resolve.target_id FOR UPDATE;
	IF t.switch_state IS NULL THEN
		RETURN 'none';
	ELSIF t.switch_state = 'in_doubt' THEN
		-- the number is used up: a statement of the switch that is still on its way finds so, and one under way is waited for
		PERFORM cutover._remote(t.server, 'UPDATE cutover.migration SET epoch = $2::bigint WHERE migration_id = $1::uuid AND epoch < $2::bigint',
			t.migration_id::text, t.switch_epoch::text);
		SELECT r INTO v_there FROM cutover._remote(t.server, 'SELECT master, epoch FROM cutover.migration WHERE migration_id = $1::uuid',
			t.migration_id::text) r;
		IF v_there IS NULL THEN
			RAISE EXCEPTION 'new is not under this migration any more' USING ERRCODE = '55000',
				DETAIL = format('Target "%s" leads to a database that does not know whether the switch was made.', t.target),
				HINT = 'Shut that side down and call cutover_resolve_switch().';
		ELSIF v_there->>'master' = cutover._master(t.switch_to) AND (v_there->>'epoch')::bigint = t.switch_epoch THEN
			PERFORM cutover._record_mode(target_id, t.switch_to, t.switch_epoch,
				clock_timestamp() - (t.switch_options->>'closed_at')::timestamptz, (t.switch_options->>'drained')::bigint, t.switch_options);
			RETURN 'completed';
		END IF;
		UPDATE cutover._target x SET epoch = greatest(x.epoch, (v_there->>'epoch')::bigint) WHERE x.target_id = _resolve.target_id;
	END IF;
	UPDATE cutover._target x SET switch_state = NULL, switch_to = NULL, switch_epoch = NULL, switch_options = NULL
	WHERE x.target_id = _resolve.target_id;
	PERFORM cutover._log_event('switch_undone', jsonb_build_object('from', t.mode, 'to', t.switch_to, 'epoch', t.switch_epoch,
		'reason', coalesce(reason, 'the switch was interrupted')), target_id);
	RETURN 'undone';
END
$$;
COMMENT ON FUNCTION cutover._resolve(int, text) IS 'completes or undoes a switch that was interrupted';

-- For the replicator: the same if nobody is at it (else NULL).  Returns the options of a switch that was completed.
CREATE FUNCTION cutover._resolve_idle(target_id int) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_options jsonb;
	v_result text;
	v_detail text;
BEGIN
	IF NOT cutover._lock_target(target_id) THEN
		RETURN NULL;
	END IF;
	SELECT t.switch_options INTO v_options FROM cutover._target t WHERE t.target_id = _resolve_idle.target_id;
	BEGIN
		v_result := cutover._resolve(target_id);
	EXCEPTION WHEN OTHERS THEN
		PERFORM cutover._unlock_target(target_id);
		GET STACKED DIAGNOSTICS v_detail = PG_EXCEPTION_DETAIL;
		RAISE EXCEPTION '%', SQLERRM USING ERRCODE = SQLSTATE, DETAIL = v_detail,
			HINT = 'The switch is in doubt until new answers. See cutover_resolve_switch().';
	END;
	PERFORM cutover._unlock_target(target_id);
	RETURN CASE v_result WHEN 'completed' THEN v_options ELSE '{}' END;
END
$$;
COMMENT ON FUNCTION cutover._resolve_idle(int) IS 'completes or undoes a switch whose worker is gone';

-- At every new connection of the replicator: do both sides agree on who is master?  They don't where one has lost its
-- last commits, where new was taken over while old was away, or where an operator has decided.
CREATE FUNCTION cutover._agree_with_new(target_id int, stale_only boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
	v_there jsonb;
	v_reason text;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _agree_with_new.target_id;
	SELECT r INTO v_there FROM cutover._remote(t.server, 'SELECT master, epoch FROM cutover.migration WHERE migration_id = $1::uuid',
		t.migration_id::text) r;
	IF v_there IS NULL OR t.operator_epoch IS NULL AND v_there->>'master' = cutover._master(t.mode)
		OR stale_only AND (v_there->>'epoch')::bigint <= t.epoch OR NOT cutover._lock_target(target_id) THEN
		RETURN;
	END IF;
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _agree_with_new.target_id FOR UPDATE;
	BEGIN
		IF t.switch_state IS NOT NULL THEN
			NULL;
		ELSIF t.operator_epoch IS NOT NULL THEN
			PERFORM cutover._tell_new(t, greatest(t.epoch, (v_there->>'epoch')::bigint + 1));
			IF v_there->>'master' = 'new' AND t.mode <> 'new_only' THEN
				v_reason := 'new may hold writes of the time in which it was master';
				UPDATE cutover._table b SET phase = 'resync_needed', phase_reason = v_reason, phase_since = clock_timestamp()
					WHERE b.target_id = t.target_id;
			END IF;
		ELSIF v_there->>'master' = 'new' THEN
			v_reason := 'new had been made master';
			PERFORM cutover._supersede(t, (v_there->>'epoch')::bigint);
			PERFORM cutover._record_mode(target_id, 'new_only', greatest(t.epoch + 1, (v_there->>'epoch')::bigint), NULL, NULL,
				jsonb_build_object('whole', cutover._whole_database(target_id)));
			-- what was written here meanwhile, new has not
			UPDATE cutover._table b SET clean_passes = 0 WHERE b.target_id = t.target_id;
		ELSIF (v_there->>'epoch')::bigint < t.epoch THEN
			v_reason := 'new had forgotten that it is master';
			PERFORM cutover._tell_new(t, t.epoch);
		ELSE
			RAISE EXCEPTION 'old and new do not agree on who is master' USING ERRCODE = '55000',
				DETAIL = format('Old, in mode %s of epoch %s, has lost what new knows: that old is master since epoch %s.', t.mode, t.epoch, v_there->>'epoch'),
				HINT = 'Restore old to a later state, or make new master: SELECT cutover.take_over() there.';
		END IF;
		IF v_reason IS NOT NULL THEN
			PERFORM cutover._log_event('agree', jsonb_build_object('mode', t.mode, 'epoch', t.epoch, 'master_on_new', v_there->>'master',
				'epoch_on_new', (v_there->>'epoch')::bigint, 'reason', v_reason), target_id);
		END IF;
	EXCEPTION WHEN OTHERS THEN
		PERFORM cutover._unlock_target(target_id);
		RAISE;
	END;
	PERFORM cutover._unlock_target(target_id);
END
$$;
COMMENT ON FUNCTION cutover._agree_with_new(int, boolean) IS 'has both sides know the same master';

-- Old's word counts: new learns who is master.
CREATE FUNCTION cutover._tell_new(target cutover._target, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._remote(target.server, 'UPDATE cutover.migration SET master = $2, epoch = $3::bigint, master_since = pg_catalog.clock_timestamp()
		WHERE migration_id = $1::uuid', target.migration_id::text, cutover._master(target.mode), epoch::text);
	IF target.mode = 'new_only' THEN
		PERFORM cutover._remote(target.server, cutover._new_read_only_script() || 'SELECT cutover.set_read_only(false)');
	ELSE
		PERFORM cutover._remote(target.server, 'SELECT cutover.disarm()');
		PERFORM cutover._set_new_read_only(target.target_id);
	END IF;
	UPDATE cutover._target x SET operator_epoch = NULL, epoch = _tell_new.epoch WHERE x.target_id = target.target_id;
END
$$;
COMMENT ON FUNCTION cutover._tell_new(cutover._target, bigint) IS 'makes new record the master that old knows';

-- A switch has failed: open what is closed, undo.
CREATE PROCEDURE cutover._undo_switch(target_id int, reason text)
LANGUAGE plpgsql AS $$
BEGIN
	PERFORM cutover._fence_unlock(target_id);
	PERFORM cutover._new_close();
	PERFORM cutover._resolve(target_id, reason);
	COMMIT;
	PERFORM cutover._wake_replicator(target_id);
END
$$;

-- The gate is the fence of the side that is master: on old, or on new.
CREATE FUNCTION cutover._close_gate(target_id int, master text, timeout_ms int) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF master = 'old' THEN
		RETURN cutover._fence_lock(target_id, timeout_ms);
	END IF;
	BEGIN
		PERFORM cutover._new_exec(format('BEGIN; SET LOCAL lock_timeout = %s; LOCK TABLE cutover.fence IN EXCLUSIVE MODE', timeout_ms));
		RETURN true;
	EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
		RETURN false;
	END;
END
$$;
COMMENT ON FUNCTION cutover._close_gate(int, text, int) IS 'one attempt to keep writers of the master away';

CREATE FUNCTION cutover._open_gate(target_id int, master text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF master = 'old' THEN
		PERFORM cutover._fence_unlock(target_id);
	ELSE
		PERFORM cutover._new_exec('ROLLBACK');
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._open_gate(int, text) IS 'lets writers of the master go on';

-- Sets sequences of the side that will be master ahead of the other's.
CREATE FUNCTION cutover._align_sequences(master text, old_names text[], new_names text[], margin boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_states jsonb;
BEGIN
	IF old_names IS NULL THEN
		RETURN;
	ELSIF master = 'new' THEN
		PERFORM cutover._new_exec('SELECT cutover.advance_sequences($1::text[], $2::jsonb, $3::boolean)',
			new_names::text, cutover._sequence_states(old_names)::text, margin::text);
	ELSE
		SELECT (r->>'s')::jsonb INTO v_states FROM cutover._new_exec('SELECT cutover.sequence_states($1::text[]) AS s', new_names::text) r;
		PERFORM cutover._advance_sequences(old_names, v_states, margin);
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._align_sequences(text, text[], text[], boolean) IS 'sets sequences of the coming master ahead of the other side''s';

-- Have all poolers that listen paused for this switch?  Names those that have not.
CREATE FUNCTION cutover._busy_poolers(target_id int, epoch bigint) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(format('pooler "%s" (process %s)', p.name, p.pid), ', ' ORDER BY p.name)
	FROM cutover._pooler p JOIN pg_stat_activity a ON a.pid = p.pid AND a.backend_start = p.backend_start
	WHERE p.target_id = $1 AND p.paused_epoch IS DISTINCT FROM $2
$$;
COMMENT ON FUNCTION cutover._busy_poolers(int, bigint) IS 'registered poolers that have not paused yet';

-- Writers of the present master; over the connection of the switch where that is new.
CREATE FUNCTION cutover._writers(target_id int, master text)
RETURNS TABLE (pid int, usename name, application_name text, age interval, query text, gid text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF master = 'old' THEN
		RETURN QUERY SELECT * FROM cutover._fence_blockers(target_id);
	ELSE
		RETURN QUERY SELECT (r->>'pid')::int, (r->>'usename')::name, r->>'application_name', (r->>'age')::interval, r->>'query', r->>'gid'
			FROM cutover._new_exec(cutover._new_blockers_sql()) r;
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._writers(int, text) IS 'transactions that write on the master, as seen from a switch';

-- Cancels or ends writers.  Prepared transactions are for whoever prepared them.
CREATE FUNCTION cutover._stop_writers(target_id int, master text, how text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_function text := CASE how WHEN 'cancel' THEN 'pg_cancel_backend' ELSE 'pg_terminate_backend' END;
	w record;
BEGIN
	FOR w IN SELECT * FROM cutover._writers(target_id, master) x WHERE x.pid IS NOT NULL LOOP
		BEGIN
			IF master = 'new' THEN
				PERFORM cutover._new_exec(format('SELECT pg_catalog.%I($1::int)', v_function), w.pid::text);
			ELSIF how = 'cancel' THEN
				PERFORM pg_cancel_backend(w.pid);
			ELSE
				PERFORM pg_terminate_backend(w.pid);
			END IF;
			PERFORM cutover._log_event('stop_writer', jsonb_build_object('how', how, 'side', master, 'pid', w.pid, 'role', w.usename,
				'application', w.application_name), target_id);
		EXCEPTION WHEN insufficient_privilege THEN
			RAISE WARNING 'process % can not be stopped: %', w.pid, SQLERRM USING HINT = 'GRANT pg_signal_backend to the role that we act as there.';
		END;
	END LOOP;
END
$$;
COMMENT ON FUNCTION cutover._stop_writers(int, text, text) IS 'cancels or terminates those who keep the gate open';

-- Gives up, and says because of whom.
CREATE FUNCTION cutover._raise_blocked(target_id int, master text, why text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_list text;
BEGIN
	SELECT string_agg(cutover._blocker_text(w.pid, w.usename, w.application_name, w.age, w.query, w.gid), '; ' ORDER BY w.age DESC) INTO v_list
	FROM cutover._writers(target_id, master) w;
	RAISE EXCEPTION 'gave up waiting to switch target "%"',
		(SELECT t.target FROM cutover._target t WHERE t.target_id = _raise_blocked.target_id) USING ERRCODE = '55P03',
		DETAIL = concat_ws(' ', why, 'Transactions that write: ' || v_list || '.'),
		HINT = 'Nothing has been changed. Wait longer with a greater timeout, end these transactions, or use blockers => ''cancel'' or ''terminate''.';
END
$$;
COMMENT ON FUNCTION cutover._raise_blocked(int, text, text) IS 'refuses a switch for those who keep the gate open';
