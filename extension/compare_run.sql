-- compare_run.sql: a comparison from call to result.  What is to be compared is
-- written down first; comparers (worker/comparer.c) work on that, and this waits.

CREATE FUNCTION cutover._start_comparer(target_id int, run bigint, number int) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_compare_start';

CREATE FUNCTION cutover._living_comparers() RETURNS int
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_compare_living';

CREATE FUNCTION cutover._is_backend(pid int) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_compare_is_alive';

-- Up to where a window may reach: cutover.compare_lag before now, and the start of
-- the oldest transaction that writes, since now() in it is that.  When a
-- prepared transaction began is not known: well before it was prepared.
CREATE FUNCTION cutover._compare_horizon() RETURNS timestamptz
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT least(clock_timestamp() - current_setting('cutover.compare_lag')::interval,
		(SELECT min(a.xact_start) FROM pg_stat_activity a WHERE a.backend_xid IS NOT NULL
			AND a.pid <> pg_backend_pid() AND a.datname = current_database()),
		(SELECT min(p.prepared) - interval '5 min' FROM pg_prepared_xacts p WHERE p.database = current_database()))
$$;

-- The tables of a call, checked.
CREATE FUNCTION cutover._compare_tables(tables regclass[], target_id int) RETURNS int[]
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_bad record;
	v_ids int[];
BEGIN
	SELECT * INTO STRICT v_target FROM cutover._target t WHERE t.target_id = _compare_tables.target_id;
	IF v_target.desired <> 'running' THEN
		RAISE EXCEPTION 'target "%" does not run', v_target.target USING ERRCODE = '55000',
			DETAIL = format('Its state is %s; a comparison waits for changes on their way to new.', v_target.desired),
			HINT = CASE v_target.desired WHEN 'paused' THEN 'Go on with cutover_resume().'
				WHEN 'finished' THEN 'The migration is over.' ELSE 'Start it with cutover_start().' END;
	END IF;
	SELECT t.old_table::regclass AS name, t.phase INTO v_bad FROM cutover._table t
	WHERE t.target_id = v_target.target_id AND t.phase <> 'synced' AND (tables IS NULL OR t.old_table = ANY (tables::oid[]))
	ORDER BY t.table_id LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'table % is not synced', v_bad.name USING ERRCODE = '55000',
			DETAIL = format('Its phase is %s.', v_bad.phase),
			HINT = 'Wait until cutover.progress says synced, or name other tables.';
	END IF;
	SELECT array_agg(t.table_id ORDER BY t.table_id) INTO v_ids FROM cutover._table t
	WHERE t.target_id = v_target.target_id AND (tables IS NULL OR t.old_table = ANY (tables::oid[]));
	IF v_ids IS NULL AND tables IS NULL THEN
		RAISE EXCEPTION 'target "%" has no tables', v_target.target USING ERRCODE = '55000',
			DETAIL = 'There is nothing to compare.', HINT = 'Add some with cutover_add_table() or cutover_add_tables().';
	END IF;
	RETURN coalesce(v_ids, '{}');
END
$$;

-- How a table's versions go: 'time', 'date', or NULL where windows of time make no sense.
CREATE FUNCTION cutover._version_kind(table_id int) RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE CASE WHEN y.typtype = 'd' THEN y.typbasetype ELSE y.oid END
		WHEN 'timestamptz'::regtype THEN 'timestamptz' WHEN 'timestamp'::regtype THEN 'timestamp' WHEN 'date'::regtype THEN 'date' END
	FROM cutover._table t JOIN pg_attribute a ON a.attrelid = t.old_table AND a.attname = t.version_column AND NOT a.attisdropped
	JOIN pg_type y ON y.oid = a.atttypid
	WHERE t.table_id = _version_kind.table_id
$$;

-- Does one snapshot see everything that another saw?
CREATE FUNCTION cutover._covers(snapshot pg_snapshot, other pg_snapshot) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT other IS NULL OR (snapshot IS NOT NULL AND pg_snapshot_xmax(other) <= pg_snapshot_xmax(snapshot)
		AND NOT EXISTS (SELECT FROM pg_snapshot_xip(snapshot) x WHERE pg_visible_in_snapshot(x, other)))
$$;

-- A new run, or one that was broken off and asked for the same.
CREATE FUNCTION cutover._open_run(p_target_id int, p_tables int[], p_method text, p_since timestamptz, p_until timestamptz, p_zone text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_run bigint;
	v_horizon timestamptz := cutover._compare_horizon();
	v_kept cutover._rotation;
	v_table int;
BEGIN
	PERFORM pg_advisory_xact_lock('cutover._compare_run'::regclass::oid::int, p_target_id);
	UPDATE cutover._compare_run r SET state = 'stopped', pid = NULL, ended_at = clock_timestamp()
	WHERE r.target_id = p_target_id AND r.state = 'running' AND (r.pid IS NULL OR NOT cutover._is_backend(r.pid));
	SELECT r.run INTO v_run FROM cutover._compare_run r
	WHERE r.target_id = p_target_id AND r.state IN ('stopped', 'failed') AND r.method = p_method AND p_method = 'full'
		AND r.tables = p_tables AND r.started_at > clock_timestamp() - interval '7 days'
		AND r.run = (SELECT max(m.run) FROM cutover._compare_run m WHERE m.target_id = p_target_id AND m.tables = p_tables AND m.method = p_method);
	IF FOUND THEN
		UPDATE cutover._compare_run r SET state = 'running', pid = pg_backend_pid(), ended_at = NULL, error = NULL, sqlstate = NULL,
			detail = NULL, hint = NULL WHERE r.run = v_run;
		UPDATE cutover._compare_result r SET planning = false WHERE r.run = v_run;
		UPDATE cutover._compare_chunk c SET state = 'pending' WHERE c.run = v_run AND c.state = 'running';
		RETURN v_run;
	END IF;
	INSERT INTO cutover._compare_run (target_id, method, actor, pid, tables, since, until, time_zone, horizon)
	VALUES (p_target_id, p_method, cutover._actor(), pg_backend_pid(), p_tables, p_since, p_until, p_zone, v_horizon) RETURNING run INTO v_run;
	SELECT * INTO v_kept FROM cutover._rotation r WHERE r.target_id = p_target_id;
	FOREACH v_table IN ARRAY p_tables LOOP
		INSERT INTO cutover._compare_result (run, table_id, method, since, until)
		SELECT v_run, v_table, m.method, m.since, greatest(m.until, m.since)
		FROM cutover._table t LEFT JOIN cutover._compare_position p USING (table_id),
			-- without a starting point, or with a gap after it, only every row will do
			LATERAL (SELECT p_method = 'auto' AND p_since IS NULL AND (t.last_compared_at IS NULL OR p.snapshot IS NULL
				OR NOT cutover._covers(p.snapshot, v_kept.kept_snapshot)) AS anew) a,
			LATERAL (
				SELECT 'full' AS method, NULL::timestamptz AS since, NULL::timestamptz AS until
				WHERE p_method = 'full' OR a.anew
				UNION ALL
				-- only what is known to differ, after a repair
				SELECT 'known', NULL, NULL WHERE p_method = 'known'
				UNION ALL
				SELECT 'changes', greatest(coalesce(p_since, (SELECT max(r.started_at) FROM cutover._compare_run r
						WHERE r.target_id = p_target_id AND r.snapshot::text = p.snapshot::text)), v_kept.kept_since),
					least(p_until, clock_timestamp())
				WHERE p_method = 'changes' OR (p_method = 'auto' AND NOT a.anew)
					OR (p_method = 'window' AND cutover._version_kind(v_table) IS NULL)
				UNION ALL
				SELECT 'window', coalesce(p_since, p.until), least(p_until, v_horizon)
				WHERE cutover._version_kind(v_table) IS NOT NULL AND (p_method = 'window' OR (p_method = 'auto' AND NOT a.anew))) m
		WHERE t.table_id = v_table;
	END LOOP;
	RETURN v_run;
END
$$;

-- The end of a run: what it says of each table that was compared to the end.
CREATE FUNCTION cutover._close_run(p_run bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_run cutover._compare_run;
	v_table int;
	v_partial boolean;
BEGIN
	SELECT * INTO STRICT v_run FROM cutover._compare_run r WHERE r.run = p_run FOR UPDATE;
	v_partial := v_run.since IS NOT NULL OR v_run.until IS NOT NULL;
	-- a pass over everything did not meet them again
	DELETE FROM cutover._divergence d USING cutover._compare_result r
	WHERE r.run = p_run AND r.method = 'full' AND r.complete AND NOT r.capped AND d.table_id = r.table_id
		AND d.run IS DISTINCT FROM p_run AND d.last_seen < r.started_at;
	FOR v_table IN SELECT r.table_id FROM cutover._compare_result r WHERE r.run = p_run AND r.method <> 'known'
		GROUP BY 1 HAVING bool_and(r.complete) ORDER BY 1 LOOP
		IF NOT v_partial OR EXISTS (SELECT FROM cutover._compare_result r WHERE r.run = p_run AND r.table_id = v_table
			AND r.missing + r.extra + r.different + r.representation > 0) THEN
			PERFORM cutover._note_compared(p_run, v_table);
		END IF;
		CONTINUE WHEN v_partial;
		INSERT INTO cutover._compare_position AS p (table_id, until, snapshot)
		SELECT v_table, max(CASE r.method WHEN 'window' THEN r.until WHEN 'full' THEN v_run.horizon END),
			CASE WHEN bool_or(r.method IN ('changes', 'full')) THEN v_run.snapshot END
		FROM cutover._compare_result r WHERE r.run = p_run AND r.table_id = v_table
		ON CONFLICT (table_id) DO UPDATE SET until = greatest(p.until, EXCLUDED.until), snapshot = coalesce(EXCLUDED.snapshot, p.snapshot);
	END LOOP;
	DELETE FROM cutover._compare_chunk c WHERE c.run = p_run;
	UPDATE cutover._compare_run r SET state = 'done', ended_at = clock_timestamp(), pid = NULL WHERE r.run = p_run;
END
$$;

-- Raises what a comparer left, if it failed.
CREATE FUNCTION cutover._raise_run_error(p_run bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	r cutover._compare_run;
BEGIN
	SELECT * INTO STRICT r FROM cutover._compare_run c WHERE c.run = p_run;
	RAISE EXCEPTION '%', coalesce(r.error, 'the comparison was stopped') USING ERRCODE = coalesce(r.sqlstate, '57014'),
		DETAIL = coalesce(r.detail, 'What was compared until then is in cutover.compare_history.'),
		HINT = coalesce(nullif(r.hint, '') || ' ', '')
			|| CASE WHEN r.method = 'full' THEN 'Calling cutover_compare() again in the same way goes on where this one was.'
				ELSE 'Call cutover_compare() again.' END;
END
$$;

CREATE PROCEDURE cutover._do_compare(target_id int, tables int[], method text, since timestamptz, until timestamptz, zone text,
	INOUT run bigint DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target := cutover._check_started(target_id);
	v_jobs int := current_setting('cutover.compare_jobs')::int;
	v_started int := 0;
	v_state text;
	v_alive boolean;
	v_pause float8 := 0.005;
BEGIN
	run := cutover._open_run(target_id, tables, method, since, until, zone);
	COMMIT;
	IF cardinality(tables) = 1 AND EXISTS (SELECT FROM cutover._table t JOIN pg_class c ON c.oid = t.old_table
		WHERE t.table_id = tables[1] AND c.relkind = 'r' AND c.relpages < 1000) THEN
		v_jobs := 1;
	END IF;
	FOR i IN 1..v_jobs LOOP
		EXIT WHEN NOT cutover._start_comparer(target_id, run, i);
		v_started := i;
	END LOOP;
	IF v_started = 0 THEN
		UPDATE cutover._compare_run r SET state = 'stopped', ended_at = clock_timestamp(), pid = NULL WHERE r.run = _do_compare.run;
		COMMIT;
		RAISE EXCEPTION 'no free worker slot for a comparison of target "%"', v_target.target USING ERRCODE = '53400',
			DETAIL = 'A comparison runs in background workers, and all of them are taken.',
			HINT = 'Raise max_worker_processes, or try again when other workers have ended.';
	END IF;
	LOOP
		SELECT r.state, cutover._living_comparers() > 0 INTO v_state, v_alive
		FROM cutover._compare_run r WHERE r.run = _do_compare.run;
		COMMIT;
		EXIT WHEN NOT v_alive OR v_state IS DISTINCT FROM 'running';
		PERFORM pg_sleep(v_pause);
		v_pause := least(v_pause * 1.3, 0.1);
	END LOOP;
	IF v_state = 'running' AND NOT EXISTS (SELECT FROM cutover._compare_result r WHERE r.run = _do_compare.run AND NOT r.complete) THEN
		PERFORM cutover._close_run(run);
		IF method <> 'known' THEN
			PERFORM cutover._log_event('compare', jsonb_build_object('run', run, 'method', method, 'tables', cardinality(tables),
				'found', (SELECT sum(r.missing + r.extra + r.different + r.representation) FROM cutover._compare_result r WHERE r.run = _do_compare.run)),
				target_id);
		END IF;
		COMMIT;
	ELSE
		-- the others notice
		UPDATE cutover._compare_run r SET state = CASE r.state WHEN 'running' THEN 'failed' ELSE r.state END, ended_at = clock_timestamp(), pid = NULL,
			error = CASE r.state WHEN 'running' THEN 'a comparer ended before it was done' ELSE r.error END,
			sqlstate = CASE r.state WHEN 'running' THEN '57P01' ELSE r.sqlstate END
		WHERE r.run = _do_compare.run;
		COMMIT;
		PERFORM cutover._raise_run_error(run);
	END IF;
END
$$;
