-- compare_schedule.sql: comparing in the background, window after window.
--
-- A row here has a worker (worker/compare_schedule.c), which the target's
-- replicator keeps alive: it comes back after a crash, a restart or a fail-over,
-- and rests while the target is paused.  Windows go on where the last one ended,
-- whoever made it (cutover._compare_position).

CREATE TABLE cutover._compare_schedule (
	target_id int PRIMARY KEY REFERENCES cutover._target ON DELETE CASCADE,
	every interval NOT NULL,					-- from the start of a pass to that of the next
	method text NOT NULL CHECK (method IN ('auto', 'window', 'changes', 'full')),
	compensate boolean NOT NULL,
	actor name NOT NULL,
	time_zone text NOT NULL,					-- of the actor: what a time stamp without one means
	scheduled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	pid int,									-- of the worker
	running boolean NOT NULL DEFAULT false,		-- a pass is under way, or was broken off
	passes bigint NOT NULL DEFAULT 0,
	started_at timestamptz,						-- of the last pass
	ended_at timestamptz,
	waiting_for text,							-- why the next pass does not begin, in words
	failures int NOT NULL DEFAULT 0,			-- in a row
	last_error text,							-- may hold row values
	last_error_at timestamptz
);

-- Who has a target's schedule in hand.
CREATE FUNCTION cutover._check_owner_of_tables(target_id int) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._check_owner(t.old_table::regclass) FROM cutover._table t JOIN pg_class c ON c.oid = t.old_table
		WHERE t.target_id = _check_owner_of_tables.target_id;
END
$$;

CREATE FUNCTION @extschema@.cutover_schedule_compare(
	every interval,
	method text DEFAULT 'auto',
	compensate boolean DEFAULT false,
	target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
BEGIN
	PERFORM cutover._not_null('every', every IS NULL);
	PERFORM cutover._not_null('method', method IS NULL);
	PERFORM cutover._not_null('compensate', compensate IS NULL);
	IF every < interval '1 s' OR every > interval '10 years' THEN
		RAISE EXCEPTION 'every % is out of range', every USING ERRCODE = '22023',
			DETAIL = 'It is the time from the start of one pass to the start of the next.',
			HINT = 'Give an interval of at least a second, such as ''10 min''.';
	ELSIF method NOT IN ('auto', 'window', 'changes', 'full') THEN
		RAISE EXCEPTION 'invalid value for argument "method": "%"', method USING ERRCODE = '22023',
			DETAIL = 'cutover_schedule_compare() knows no such method.',
			HINT = 'Use one of: auto, window, changes, full.';
	END IF;
	SELECT t.* INTO STRICT v_target FROM cutover._target t WHERE t.target_id = cutover._target_id(cutover_schedule_compare.target);
	IF v_target.desired = 'finished' THEN
		RAISE EXCEPTION 'target "%" is finished', v_target.target USING ERRCODE = '55000',
			DETAIL = 'Old and new are not connected any more.', HINT = 'There is nothing left to compare.';
	END IF;
	PERFORM cutover._check_owner_of_tables(v_target.target_id);
	INSERT INTO cutover._compare_schedule AS s (target_id, every, method, compensate, actor, time_zone)
		VALUES (v_target.target_id, every, method, compensate, cutover._actor(), current_setting('TimeZone'))
		ON CONFLICT (target_id) DO UPDATE SET every = EXCLUDED.every, method = EXCLUDED.method, compensate = EXCLUDED.compensate,
			actor = EXCLUDED.actor, time_zone = EXCLUDED.time_zone, scheduled_at = EXCLUDED.scheduled_at, next_at = EXCLUDED.next_at, failures = 0;
	PERFORM cutover._log_event('schedule_compare', jsonb_build_object('every_seconds', extract(epoch FROM every), 'method', method, 'compensate', compensate),
		v_target.target_id);
	PERFORM cutover._wake_replicator(v_target.target_id);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_schedule_compare(interval, text, boolean, name)
	IS 'step 3, compare: compares in the background, window after window without gaps';

CREATE FUNCTION @extschema@.cutover_unschedule_compare(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_id int := cutover._target_id(target);
BEGIN
	PERFORM cutover._check_owner_of_tables(v_id);
	DELETE FROM cutover._compare_schedule s WHERE s.target_id = v_id;
	IF FOUND THEN
		PERFORM cutover._log_event('unschedule_compare', '{}', v_id);
		PERFORM cutover._wake_replicator(v_id);
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_unschedule_compare(name)
	IS 'step 3, compare: ends what cutover_schedule_compare() began';

-- Why a pass should not begin now, in words; NULL: it may.  cpus: of the server.
CREATE FUNCTION cutover._compare_obstacle(p_target_id int, p_cpus int) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_lag interval;
	v_active bigint;
	v_patience boolean;
BEGIN
	IF NOT EXISTS (SELECT FROM cutover._table t WHERE t.target_id = p_target_id AND t.phase = 'synced') THEN
		RETURN 'a table that is synced';
	END IF;
	SELECT s.lag INTO v_lag FROM cutover._state s WHERE s.target_id = p_target_id;
	IF v_lag > interval '30 s' THEN
		RETURN format('new to catch up: it is %s behind', date_trunc('second', v_lag));
	END IF;
	-- for a while: a pass that has begun gives way by itself
	SELECT s.next_at > clock_timestamp() - greatest(s.every, interval '5 min') INTO v_patience
		FROM cutover._compare_schedule s WHERE s.target_id = p_target_id;
	SELECT count(*) INTO v_active FROM pg_stat_activity a
		WHERE a.backend_type = 'client backend' AND a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Lock'
			AND a.query_start < clock_timestamp() - interval '10 ms';
	IF v_patience AND v_active > 2 * p_cpus THEN
		RETURN format('old to be less busy: %s sessions are at work on %s processors', v_active, p_cpus);
	END IF;
	RETURN NULL;
END
$$;

-- One pass.
CREATE PROCEDURE cutover._scheduled_pass(p_target_id int)
LANGUAGE plpgsql AS $$
DECLARE
	v_schedule cutover._compare_schedule;
	v_tables int[];
	v_run bigint;
	v_result text;
BEGIN
	UPDATE cutover._compare_schedule s SET running = true, started_at = clock_timestamp(), waiting_for = NULL
		WHERE s.target_id = p_target_id RETURNING * INTO v_schedule;
	IF NOT FOUND THEN
		RETURN;
	END IF;
	v_tables := ARRAY(SELECT t.table_id FROM cutover._table t WHERE t.target_id = p_target_id AND t.phase = 'synced' ORDER BY t.table_id);
	COMMIT;
	CALL cutover._do_compare(p_target_id, v_tables, v_schedule.method, NULL, NULL, v_schedule.time_zone, v_run);
	COMMIT;
	IF v_schedule.compensate AND EXISTS (SELECT FROM cutover._divergence d WHERE d.target_id = p_target_id AND d.state <> 'deferred') THEN
		CALL cutover._do_compensate(p_target_id, v_tables, v_result);
		COMMIT;
	END IF;
	UPDATE cutover._compare_schedule s SET running = false, ended_at = clock_timestamp(), passes = s.passes + 1, failures = 0,
			-- a pass that took longer is followed by the next at once
			next_at = greatest(clock_timestamp(), CASE WHEN s.scheduled_at > s.started_at THEN s.next_at ELSE s.started_at + s.every END)
		WHERE s.target_id = p_target_id;
	-- the last of each table says when it was compared
	DELETE FROM cutover._compare_run c WHERE c.target_id = p_target_id AND c.started_at < clock_timestamp() - interval '90 days'
		AND c.state <> 'running' AND NOT EXISTS (SELECT FROM cutover._compare_result r WHERE r.run = c.run AND r.complete
			AND r.run = (SELECT max(x.run) FROM cutover._compare_result x WHERE x.table_id = r.table_id AND x.complete));
	COMMIT;
END
$$;

-- A pass failed: again after a while, which grows.
CREATE FUNCTION cutover._note_failed_pass(p_target_id int, p_message text) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	UPDATE cutover._compare_schedule s SET last_error = p_message, last_error_at = clock_timestamp(), failures = s.failures + 1,
			next_at = clock_timestamp() + least(s.every, interval '1 s' * 2 ^ least(s.failures, 8))
		WHERE s.target_id = p_target_id
$$;
