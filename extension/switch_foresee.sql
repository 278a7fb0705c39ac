-- switch_foresee.sql: a switch looked at beforehand, and one that an operator has to decide.

-- Ends a switch whose driver is gone; for actions, which hold the lock of the target.
CREATE FUNCTION cutover._end_switch(target_id int) RETURNS cutover._target
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
	v_result text;
BEGIN
	BEGIN
		v_result := cutover._resolve(target_id);
	EXCEPTION WHEN connection_exception OR sqlclient_unable_to_establish_sqlconnection OR connection_failure THEN
		RAISE EXCEPTION 'the switch of target "%" is in doubt',
			(SELECT x.target FROM cutover._target x WHERE x.target_id = _end_switch.target_id) USING ERRCODE = '55000',
			DETAIL = format('Only new knows whether it was made: %s', SQLERRM),
			HINT = 'It resolves itself when new answers. If new is lost, shut it down for good and call cutover_resolve_switch(''old'').';
	END;
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _end_switch.target_id;
	RETURN t;
END
$$;
COMMENT ON FUNCTION cutover._end_switch(int) IS 'completes or undoes a switch before another action begins';

-- The operator's word where new can't be asked.
CREATE PROCEDURE cutover._do_resolve_switch(target_id int, master text)
LANGUAGE plpgsql AS $$
DECLARE
	t cutover._target := cutover._begin_action(target_id, false, false);
	v_to text;
BEGIN
	IF t.switch_state IS DISTINCT FROM 'in_doubt' THEN
		RAISE EXCEPTION 'no switch of target "%" is in doubt', t.target USING ERRCODE = '55000',
			DETAIL = format('Its mode is %s.', t.mode),
			HINT = 'Change it with cutover_set_mode().';
	END IF;
	t := cutover._ask_new(target_id);
	COMMIT;
	IF t.switch_state IS NULL THEN
		IF cutover._master(t.mode) <> master THEN
			RAISE EXCEPTION 'new has answered: the master is %', cutover._master(t.mode) USING ERRCODE = '55000',
				DETAIL = format('The switch of target "%s" is no longer in doubt; its mode is %s.', t.target, t.mode),
				HINT = 'Change it with cutover_set_mode().';
		END IF;
		RETURN;
	END IF;
	v_to := CASE WHEN cutover._master(t.switch_to) = master THEN t.switch_to ELSE t.mode END;
	-- a number that new has not: whoever comes back later is told, and does not tell us
	UPDATE cutover._target x SET operator_epoch = t.switch_epoch + 1 WHERE x.target_id = _do_resolve_switch.target_id;
	PERFORM cutover._log_event('resolve_switch', jsonb_build_object('master', master), target_id);
	IF v_to <> t.mode THEN
		PERFORM cutover._record_mode(target_id, v_to, t.switch_epoch + 1, clock_timestamp() - (t.switch_options->>'closed_at')::timestamptz,
			(t.switch_options->>'drained')::bigint, t.switch_options);
	ELSE
		UPDATE cutover._target x SET switch_state = NULL, switch_to = NULL, switch_epoch = NULL, switch_options = NULL, epoch = t.switch_epoch + 1
			WHERE x.target_id = _do_resolve_switch.target_id;
		PERFORM cutover._log_event('switch_undone', jsonb_build_object('from', t.mode, 'to', t.switch_to, 'epoch', t.switch_epoch,
			'reason', 'cutover_resolve_switch'), target_id);
	END IF;
	COMMIT;
	PERFORM cutover._wake_replicator(target_id);
END
$$;

-- Resolves by asking new, if it answers.
CREATE FUNCTION cutover._ask_new(target_id int) RETURNS cutover._target
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	BEGIN
		PERFORM cutover._resolve(target_id);
	EXCEPTION WHEN OTHERS THEN
		RAISE NOTICE 'new can not be asked' USING DETAIL = SQLERRM;
	END;
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _ask_new.target_id;
	RETURN t;
END
$$;
COMMENT ON FUNCTION cutover._ask_new(int) IS 'resolves a switch if new answers';

-- What cutover_check_mode() says of a mode that differs from the present one.
CREATE FUNCTION cutover._foresee_mode(target_id int, mode text)
RETURNS TABLE (level text, check_name text, object text, message text, hint text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
	v_since timestamptz := clock_timestamp();
	v_lag interval;
	v_last record;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _foresee_mode.target_id;
	RETURN QUERY SELECT 'error', o.check_name, o.object, o.message, o.hint || CASE WHEN o.forcible THEN ' force => true overrides it.' ELSE '' END
		FROM cutover._objections(target_id, _foresee_mode.mode) o;
	IF cutover._master(t.mode) <> 'new' AND _foresee_mode.mode = 'new_only' THEN
		RETURN QUERY SELECT 'error', 'reverse', b.old_table::regclass::text, 'old could not follow new: ' || string_agg(m.problem, ', ' ORDER BY m.attnum),
			'Give the way back in reverse_columns of cutover_add_table(). force => true overrides it.'
			FROM cutover._table b CROSS JOIN LATERAL cutover._reverse_map(b.table_id, NULL) m
			WHERE b.target_id = t.target_id AND b.reverse_closed IS NULL AND m.problem IS NOT NULL
			GROUP BY b.table_id, b.old_table ORDER BY b.table_id;
	END IF;
	IF t.switch_state IS NOT NULL THEN
		RETURN QUERY SELECT CASE t.switch_state WHEN 'in_doubt' THEN 'error' ELSE 'warning' END, 'switch', t.target::text,
			format('a switch to %s is %s', t.switch_to, CASE t.switch_state WHEN 'in_doubt' THEN 'in doubt' ELSE 'being prepared' END),
			'It resolves itself; see cutover.status.';
	END IF;
	RETURN QUERY SELECT 'warning', 'lag', t.target::text, format('the following side is %s behind', s.lag),
		CASE WHEN cutover._master(t.mode) = cutover._master(_foresee_mode.mode)
			THEN 'Commits wait until it has caught up, each at most cutover.dual_write_timeout.'
			ELSE 'The switch waits until it has caught up.' END
		FROM cutover.status s WHERE s.target = t.target AND s.lag > interval '1 s' AND _foresee_mode.mode <> 'old_only';
	IF cutover._master(t.mode) = cutover._master(_foresee_mode.mode) THEN
		RETURN QUERY SELECT 'warning', 'apply_errors', t.target::text, format('%s rows are rejected by new', count(*)),
			'See cutover.apply_error, then cutover_retry_errors() or cutover_skip_errors().'
			FROM cutover._apply_error e WHERE e.target_id = t.target_id AND _foresee_mode.mode = 'dual_write' HAVING count(*) > 0;
		RETURN QUERY SELECT 'ok', 'pause', t.target::text, 'nobody waits for this change of mode', NULL::text;
		RETURN;
	END IF;
	BEGIN
		RETURN QUERY SELECT 'warning', 'blocker', coalesce(b.gid, b.pid::text), cutover._blocker_text(b.pid, b.usename, b.application_name, b.age, b.query, b.gid),
			CASE WHEN b.gid IS NULL THEN 'The switch waits for it; blockers => ''cancel'' or ''terminate'' does not.'
				ELSE 'COMMIT PREPARED or ROLLBACK PREPARED: the switch can do neither.' END
			FROM cutover._master_blockers(target_id) b WHERE b.gid IS NOT NULL OR b.age > interval '500 ms';
		RETURN QUERY SELECT 'warning', 'sequence', s.old_name, 'new has no such sequence',
			'Create it there, or it is not set ahead at the switch.'
			FROM cutover._match_sequences(target_id) s WHERE s.new_name IS NULL ORDER BY s.old_name;
	EXCEPTION WHEN connection_exception OR sqlclient_unable_to_establish_sqlconnection OR connection_failure THEN
		RETURN QUERY SELECT 'error', 'connection', t.target::text, SQLERRM, 'Wait for new, or mend its address with cutover_set_target().';
		RETURN;
	END;
	IF t.desired = 'running' THEN
		v_since := clock_timestamp();
		IF cutover._await_ticket(target_id, cutover._draw_ticket(target_id), 2000, true) THEN
			v_lag := clock_timestamp() - v_since;
			SELECT count(*) AS n, percentile_disc(0.5) WITHIN GROUP (ORDER BY m.pause) AS pause INTO v_last FROM cutover._mode_change m
				WHERE m.target_id = t.target_id AND cutover._master(m.from_mode) <> cutover._master(m.to_mode);
			RETURN QUERY SELECT 'ok', 'pause', t.target::text,
				format('the other side follows within %s ms', round(extract(epoch FROM v_lag) * 1000))
				|| CASE WHEN v_last.n > 0 THEN format('; writers waited for %s ms at the last switches', round(extract(epoch FROM v_last.pause) * 1000)) ELSE '' END,
				'Writers wait for about that and a few milliseconds.';
		ELSE
			RETURN QUERY SELECT 'warning', 'pause', t.target::text, 'the other side does not follow within 2 s',
				'The switch would not close the gate before it does.';
		END IF;
	END IF;
	IF cutover._master(_foresee_mode.mode) = 'new' AND cutover._whole_database(target_id)
		AND NOT (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_database d WHERE d.datname = current_database()) THEN
		RETURN QUERY SELECT 'warning', 'read_only', current_database()::text, 'the owner of the extension may not alter this database',
			'Run ALTER DATABASE ... SET default_transaction_read_only = on yourself after the switch.';
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._foresee_mode(int, text) IS 'a change of the write mode, only looked at';
