-- mode.sql: where writes go.  Every target is in old_only as long as the
-- switch is not built.

CREATE FUNCTION cutover._raise_unsupported(function_name text, hint text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RAISE EXCEPTION '% is not supported yet', function_name
		USING ERRCODE = '0A000',
		DETAIL = format('Function %s belongs to a later step of the migration than this version can do.', function_name),
		HINT = hint;
END
$$;
COMMENT ON FUNCTION cutover._raise_unsupported(text, text) IS 'says that a function of the public interface has no body yet';

-- Every switch ever made.  Survives the target.
CREATE TABLE cutover._mode_change (
	target_id int NOT NULL,
	target name NOT NULL,
	from_mode text NOT NULL,
	to_mode text NOT NULL,
	epoch bigint NOT NULL,
	pause interval,								-- how long writers waited
	drained_changes bigint,
	changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (target_id, epoch)
);

CREATE VIEW cutover.mode_change AS
SELECT target, from_mode, to_mode, epoch, pause, drained_changes, changed_at
FROM cutover._mode_change
ORDER BY changed_at, epoch;
COMMENT ON VIEW cutover.mode_change IS 'every switch of the write mode ever made';

CREATE FUNCTION @extschema@.cutover_mode(target name DEFAULT NULL) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN (SELECT t.mode FROM cutover._target t WHERE t.target_id = cutover._target_id(cutover_mode.target));
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_mode(name)
	IS 'step 4, switch: the write mode of a target: old_only, dual_write or new_only';

-- Refuses a mode that needs new to be complete.
CREATE FUNCTION cutover._check_synced(target_id int) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_list text;
BEGIN
	SELECT t.* INTO STRICT v_target FROM cutover._target t WHERE t.target_id = _check_synced.target_id;
	SELECT string_agg(format('%s is %s', b.old_table::regclass, b.phase), ', ' ORDER BY b.table_id) INTO v_list
	FROM cutover._table b WHERE b.target_id = _check_synced.target_id AND b.phase <> 'synced';
	IF v_target.desired <> 'running' OR v_list IS NOT NULL OR NOT EXISTS (
		SELECT FROM cutover._table b WHERE b.target_id = _check_synced.target_id) THEN
		RAISE EXCEPTION 'target "%" is not synced', v_target.target USING ERRCODE = '55000',
			DETAIL = coalesce(v_list || '.', format('It is %s.', v_target.desired)),
			HINT = 'Wait until every table of cutover.progress is synced; cutover.status says what keeps it.';
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._check_synced(int) IS 'refuses a target whose new is not complete';

-- Moves a target between old_only and dual_write.  Old stays master, so nobody
-- is kept waiting: transactions learn of it by cache invalidation.
CREATE FUNCTION cutover._do_set_mode(target_id int, mode text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target := cutover._begin_action(target_id);
BEGIN
	IF mode <> 'old_only' THEN
		PERFORM cutover._check_synced(target_id);
	END IF;
	IF v_target.mode = mode THEN
		RETURN v_target.epoch;
	END IF;
	UPDATE cutover._target t SET mode = _do_set_mode.mode, epoch = t.epoch + 1
	WHERE t.target_id = _do_set_mode.target_id;
	INSERT INTO cutover._mode_change (target_id, target, from_mode, to_mode, epoch, pause, drained_changes)
	VALUES (target_id, v_target.target, v_target.mode, mode, v_target.epoch + 1, interval '0', 0);
	PERFORM cutover._log_event('set_mode', jsonb_build_object('from_mode', v_target.mode, 'to_mode', mode,
		'epoch', v_target.epoch + 1), target_id);
	PERFORM cutover._wake_replicator(target_id);
	RETURN v_target.epoch + 1;
END
$$;
COMMENT ON FUNCTION cutover._do_set_mode(int, text) IS 'changes the mode of a target of which old is and stays master';

CREATE FUNCTION @extschema@.cutover_set_mode(
	mode text,
	timeout interval DEFAULT '10 s',
	force boolean DEFAULT false,
	blockers text DEFAULT 'wait',
	old_writes text DEFAULT 'reject',
	old_sessions text DEFAULT 'keep',
	target name DEFAULT NULL) RETURNS cutover.mode_change
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
	argument record;
	v_epoch text;
BEGIN
	FOR argument IN
		SELECT * FROM (VALUES
			('mode', mode, ARRAY['old_only', 'dual_write', 'new_only']),
			('blockers', blockers, ARRAY['wait', 'cancel', 'terminate']),
			('old_writes', old_writes, ARRAY['reject', 'forward']),
			('old_sessions', old_sessions, ARRAY['keep', 'terminate_idle'])) AS v(name, value, allowed)
	LOOP
		IF argument.value IS NULL THEN
			RAISE EXCEPTION 'argument "%" must not be null', argument.name
				USING ERRCODE = '22004',
				DETAIL = format('cutover_set_mode() was called with %I => NULL.', argument.name),
				HINT = format('Use one of: %s.', array_to_string(argument.allowed, ', '));
		ELSIF argument.value <> ALL (argument.allowed) THEN
			RAISE EXCEPTION 'invalid value for argument "%": "%"', argument.name, argument.value
				USING ERRCODE = '22023',
				DETAIL = format('cutover_set_mode() knows no such %s.', argument.name),
				HINT = format('Use one of: %s.', array_to_string(argument.allowed, ', '));
		END IF;
	END LOOP;

	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = cutover._target_id(cutover_set_mode.target);
	IF t.mode = cutover_set_mode.mode THEN
		-- already there: nothing paused, nothing drained, no new epoch
		RETURN ROW(t.target, t.mode, t.mode, t.epoch, interval '0', 0::bigint, clock_timestamp())::cutover.mode_change;
	ELSIF cutover_set_mode.mode = 'new_only' THEN
		PERFORM cutover._raise_unsupported('cutover_set_mode(''new_only'')',
			'Target stays in mode ' || t.mode || ': old decides, and new follows.');
	END IF;
	v_epoch := cutover._action('cutover_set_mode', 'SELECT cutover._do_set_mode($1::int, $2)',
		ARRAY[t.target_id::text, cutover_set_mode.mode]);
	-- the statement's snapshot is older than what the worker has done
	RETURN ROW(t.target, t.mode, cutover_set_mode.mode, v_epoch::bigint, interval '0', 0::bigint, clock_timestamp())::cutover.mode_change;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_mode(text, interval, boolean, text, text, text, name)
	IS 'step 4, switch: moves writes between old_only, dual_write and new_only, forward or back';

CREATE FUNCTION @extschema@.cutover_check_mode(mode text, target name DEFAULT NULL)
RETURNS TABLE (level text, check_name text, object text, message text, hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	PERFORM cutover._not_null('mode', mode IS NULL);
	IF mode NOT IN ('old_only', 'dual_write', 'new_only') THEN
		RAISE EXCEPTION 'invalid value for argument "mode": "%"', mode USING ERRCODE = '22023',
			DETAIL = 'There is no such mode.', HINT = 'Use one of: old_only, dual_write, new_only.';
	END IF;
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = cutover._target_id(cutover_check_mode.target);
	IF mode = 'new_only' THEN
		RETURN QUERY SELECT 'error', 'mode', t.target::text, 'the switch to new is not supported yet',
			'Old stays master; old_only and dual_write are to be had.';
	ELSIF t.mode = mode THEN
		RETURN QUERY SELECT 'ok', 'mode', t.target::text, format('the mode is %s already', mode), NULL::text;
	END IF;
	IF mode <> 'old_only' THEN
		IF t.desired <> 'running' THEN
			RETURN QUERY SELECT 'error', 'state', t.target::text, format('the target is %s', t.desired),
				CASE t.desired WHEN 'paused' THEN 'cutover_resume()' ELSE 'cutover_start()' END;
		END IF;
		RETURN QUERY SELECT 'error', 'phase', b.old_table::regclass::text, format('the table is %s', b.phase),
			'Wait until it is synced, see cutover.progress.'
			FROM cutover._table b WHERE b.target_id = t.target_id AND b.phase <> 'synced';
		RETURN QUERY SELECT 'warning', 'lag', t.target::text, format('new is %s behind', s.lag),
			'Commits wait until new has caught up, each at most cutover.dual_write_timeout.'
			FROM cutover.status s WHERE s.target = t.target AND s.lag > interval '1 s';
		RETURN QUERY SELECT 'warning', 'apply_errors', t.target::text, format('%s rows are rejected by new', count(*)),
			'See cutover.apply_error, then cutover_retry_errors() or cutover_skip_errors().'
			FROM cutover._apply_error e WHERE e.target_id = t.target_id HAVING count(*) > 0;
	END IF;
	RETURN QUERY SELECT 'ok', 'pause', t.target::text, 'nobody waits for this change of mode', NULL::text
		WHERE mode <> 'new_only';
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_check_mode(text, name)
	IS 'step 4, switch: looks at a switch without making it: what refuses it, who blocks it, the pause to expect';

CREATE FUNCTION @extschema@.cutover_set_write_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._not_null('percent', percent IS NULL);
	IF percent < 0 OR percent > 100 OR percent = 'NaN' THEN
		RAISE EXCEPTION 'invalid value for argument "percent": %', percent USING ERRCODE = '22023',
			DETAIL = 'It is the share of rows, in percent, whose commits wait for new.',
			HINT = 'Use a number from 0 to 100.';
	END IF;
	UPDATE cutover._target t SET write_ratio = percent WHERE t.target_id = v_target;
	PERFORM cutover._log_event('set_write_ratio', jsonb_build_object('percent', percent), v_target);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_write_ratio(numeric, name)
	IS 'step 4, switch: in dual_write, the share of rows whose commits wait for new';

CREATE FUNCTION @extschema@.cutover_resolve_switch(master text, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_resolve_switch', 'No switch can be in doubt: the mode is old_only.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_resolve_switch(text, name)
	IS 'step 4, switch: after a crash in the middle of a switch, the operator who shut the other side says which side is master';

-- Commits that new did not confirm; written by the worker.
CREATE TABLE cutover._dual_write_failure (
	failure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	xid xid8 NOT NULL,							-- the transaction
	table_id int NOT NULL REFERENCES cutover._table ON DELETE CASCADE,
	key jsonb,									-- column of old -> text
	sqlstate text NOT NULL,
	message text NOT NULL,						-- may hold row values
	state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'resolved')),
	resolved_at timestamptz
);
CREATE INDEX ON cutover._dual_write_failure (target_id, table_id, key);
CREATE INDEX ON cutover._dual_write_failure (target_id) WHERE state = 'pending';

CREATE FUNCTION cutover._degraded(target_id int) RETURNS boolean
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'cutover_degraded';
COMMENT ON FUNCTION cutover._degraded(int) IS 'whether commits in dual_write have ceased to wait for new';
