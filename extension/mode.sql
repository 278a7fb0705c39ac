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
	IF t.mode <> cutover_set_mode.mode THEN
		PERFORM cutover._raise_unsupported('cutover_set_mode',
			'Target stays in mode ' || t.mode || ': writes go to old, and new follows.');
	END IF;
	-- already there: nothing paused, nothing drained, no new epoch
	RETURN ROW(t.target, t.mode, t.mode, t.epoch, interval '0', 0::bigint, clock_timestamp())::cutover.mode_change;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_mode(text, interval, boolean, text, text, text, name)
	IS 'step 4, switch: moves writes between old_only, dual_write and new_only, forward or back';

CREATE FUNCTION @extschema@.cutover_check_mode(mode text, target name DEFAULT NULL)
RETURNS TABLE (level text, check_name text, object text, message text, hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_check_mode', 'cutover_preflight() and cutover.status say how far the target is.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_check_mode(text, name)
	IS 'step 4, switch: looks at a switch without making it: what refuses it, who blocks it, the pause to expect';

CREATE FUNCTION @extschema@.cutover_set_write_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_set_write_ratio', 'All writes go to old, and new follows.');
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

CREATE VIEW cutover.dual_write_failure AS
SELECT NULL::name AS target, NULL::timestamptz AS failed_at, NULL::regclass AS table_name, NULL::jsonb AS key,
	NULL::text AS sqlstate, NULL::text AS message, NULL::text AS state, NULL::timestamptz AS resolved_at
WHERE false;
COMMENT ON VIEW cutover.dual_write_failure IS 'commits in dual_write that new did not have in time';
