-- mode.sql: where writes go.  The switch itself is in switch.sql and switch_run.sql.

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
	v_result jsonb;
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

	PERFORM cutover._not_null('timeout', timeout IS NULL);
	PERFORM cutover._not_null('force', force IS NULL);
	IF timeout < interval '0' OR timeout > interval '10 years' THEN
		RAISE EXCEPTION 'timeout % is out of range', timeout USING ERRCODE = '22023',
			DETAIL = 'It says how long to wait at most for transactions that write.', HINT = 'Give an interval such as ''10 s''.';
	END IF;

	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = cutover._target_id(cutover_set_mode.target);
	PERFORM cutover._refuse_in_transaction('cutover_set_mode');
	IF mode = 'new_only' AND old_writes = 'forward' THEN
		PERFORM cutover._warn_not_routable();
	END IF;
	v_result := cutover._action('cutover_set_mode', 'CALL cutover._do_set_mode($1::int, $2, $3::jsonb)',
		ARRAY[t.target_id::text, cutover_set_mode.mode, jsonb_build_object('timeout', timeout, 'force', force, 'blockers', blockers,
			'old_writes', old_writes, 'old_sessions', old_sessions)::text])::jsonb;
	-- the statement's snapshot is older than what the worker has done
	RETURN ROW((v_result->>'target')::name, v_result->>'from_mode', v_result->>'to_mode', (v_result->>'epoch')::bigint,
		(v_result->>'pause')::interval, (v_result->>'drained_changes')::bigint, (v_result->>'changed_at')::timestamptz)::cutover.mode_change;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_mode(text, interval, boolean, text, text, text, name)
	IS 'step 4, switch: moves writes between old_only, dual_write and new_only, forward or back';

CREATE FUNCTION @extschema@.cutover_check_mode(mode text, target name DEFAULT NULL)
RETURNS TABLE (level text, check_name text, object text, message text, hint text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	PERFORM cutover._not_null('mode', mode IS NULL);
	IF mode NOT IN ('old_only', 'dual_write', 'new_only') THEN
		RAISE EXCEPTION 'invalid value for argument "mode": "%"', mode USING ERRCODE = '22023',
			DETAIL = 'There is no such mode.', HINT = 'Use one of: old_only, dual_write, new_only.';
	END IF;
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = cutover._target_id(cutover_check_mode.target);
	IF t.mode = mode THEN
		RETURN QUERY SELECT 'ok', 'mode', t.target::text, format('the mode is %s already', mode), NULL::text;
		RETURN;
	END IF;
	RETURN QUERY SELECT * FROM cutover._foresee_mode(t.target_id, mode);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_check_mode(text, name)
	IS 'step 4, switch: looks at a switch without making it: what refuses it, who blocks it, the pause to expect';

CREATE FUNCTION @extschema@.cutover_set_write_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._need_writable('cutover_set_write_ratio');
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
	PERFORM cutover._not_null('master', master IS NULL);
	IF master NOT IN ('old', 'new') THEN
		RAISE EXCEPTION 'invalid value for argument "master": "%"', master USING ERRCODE = '22023',
			DETAIL = 'It says which side is master; the other one must be shut down.', HINT = 'Use one of: old, new.';
	END IF;
	PERFORM cutover._action('cutover_resolve_switch', 'CALL cutover._do_resolve_switch($1::int, $2)',
		ARRAY[cutover._target_id(target)::text, master]);
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
