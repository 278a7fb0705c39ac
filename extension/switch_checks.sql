-- switch_checks.sql: what refuses a change of the write mode.

-- Are all tables of this database under this target?  Tables of extensions and temporary ones don't count.
CREATE FUNCTION cutover._whole_database(target_id int) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT NOT EXISTS (
		SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'cutover')
			AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
			AND NOT EXISTS (SELECT FROM cutover._member m JOIN cutover._table t USING (table_id) WHERE t.target_id = $1 AND m.relid = c.oid)
			AND NOT EXISTS (SELECT FROM cutover._table t WHERE t.target_id = $1
				AND (t.old_table = c.oid OR t.old_table IN (SELECT a.relid FROM pg_partition_ancestors(c.oid) a))))
		AND EXISTS (SELECT FROM cutover._table t WHERE t.target_id = $1)
$$;
COMMENT ON FUNCTION cutover._whole_database(int) IS 'whether every table of this database is under this target';

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

-- What comparisons have to say against new as master.  A row for each objection.
CREATE FUNCTION cutover._check_compared(target_id int)
RETURNS TABLE (check_name text, object text, message text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'divergence', t.old_table::regclass::text, format('%s open confirmed differences', count(*)),
		'cutover_compensate() makes new equal old; cutover.divergence shows them.'
	FROM cutover._divergence d JOIN cutover._table t USING (table_id)
	WHERE t.target_id = $1 AND d.state = 'confirmed'
	GROUP BY t.table_id, t.old_table
	UNION ALL
	SELECT 'compare', t.old_table::regclass::text,
		CASE WHEN t.last_compared_at IS NULL THEN 'never compared' ELSE 'no clean comparison since the last repair' END,
		'cutover_compare() until it finds nothing.'
	FROM cutover._table t WHERE t.target_id = $1 AND t.clean_passes = 0
$$;
COMMENT ON FUNCTION cutover._check_compared(int) IS 'what comparisons object to new as master';

-- Why old could not follow new.  A row for each table.
CREATE FUNCTION cutover._check_reverse(target_id int)
RETURNS TABLE (check_name text, object text, message text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'reverse', t.old_table::regclass::text, 'old could not follow new: ' || t.reverse_closed,
		CASE x.mode WHEN 'new_only' THEN 'cutover_compare() shows what of it old does not have, and what would be lost.'
			ELSE 'Give the way back in reverse_columns of cutover_add_table().' END
	FROM cutover._table t JOIN cutover._target x ON x.target_id = t.target_id WHERE t.target_id = $1 AND t.reverse_closed IS NOT NULL
$$;
COMMENT ON FUNCTION cutover._check_reverse(int) IS 'tables whose changes on new can not come back to old';

-- Everything that refuses a mode, but for blockers.  forcible: force => true overrides it.
CREATE FUNCTION cutover._objections(target_id int, mode text)
RETURNS TABLE (check_name text, object text, message text, hint text, forcible boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _objections.target_id;
	IF t.mode = _objections.mode THEN
		RETURN;
	END IF;
	IF t.desired = 'finished' THEN
		RETURN QUERY SELECT 'state', t.target::text, 'the target is finished', 'There is no way back after cutover_finish().', false;
		RETURN;
	ELSIF t.desired <> 'running' AND (_objections.mode <> 'old_only' OR t.mode = 'new_only') THEN
		RETURN QUERY SELECT 'state', t.target::text, format('the target is %s', t.desired),
			CASE t.desired WHEN 'paused' THEN 'cutover_resume()' ELSE 'cutover_start()' END, false;
	END IF;
	IF t.mode = 'new_only' THEN
		IF t.rewound THEN
			RETURN QUERY SELECT 'state', t.target::text, 'one side has lost what the other has',
				'cutover_compare(method => ''full'') and cutover_compensate() until clean.', true;
		END IF;
		RETURN QUERY SELECT r.*, true FROM cutover._check_reverse(target_id) r;
	END IF;
	IF _objections.mode <> 'old_only' THEN
		RETURN QUERY SELECT 'phase', b.old_table::regclass::text, format('the table is %s', b.phase),
			'Wait until it is synced, see cutover.progress.', false
			FROM cutover._table b WHERE b.target_id = t.target_id AND b.phase <> 'synced' ORDER BY b.table_id;
		IF NOT EXISTS (SELECT FROM cutover._table b WHERE b.target_id = t.target_id) THEN
			RETURN QUERY SELECT 'phase', t.target::text, 'no table is under migration', 'cutover_add_table()', false;
		END IF;
	END IF;
	IF _objections.mode = 'new_only' THEN
		IF t.rewound THEN
			RETURN QUERY SELECT 'state', t.target::text, 'new holds changes that old has lost',
				'cutover_compare(method => ''full'') and cutover_compensate() until clean, or cutover_resync() every table.', false;
		END IF;
		RETURN QUERY SELECT c.*, true FROM cutover._check_compared(target_id) c;
		RETURN QUERY SELECT r.*, true FROM cutover._check_reverse(target_id) r;
	END IF;
	IF _objections.mode = 'new_only' OR t.mode = 'new_only' THEN
		RETURN QUERY SELECT 'apply_errors', coalesce(e.table_id::text, ''), format('%s rows are rejected by %s', count(*),
				CASE WHEN t.mode = 'new_only' THEN 'old' ELSE 'new' END),
			'See cutover.apply_error, then cutover_retry_errors() or cutover_skip_errors().', true
			FROM (SELECT a.error_id, (SELECT b.old_table::regclass FROM cutover._table b WHERE b.table_id = a.table_id)::text AS table_id
				FROM cutover._apply_error a WHERE a.target_id = t.target_id
					AND a.direction = CASE WHEN t.mode = 'new_only' THEN 'reverse' ELSE 'forward' END) e GROUP BY e.table_id;
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._objections(int, text) IS 'what refuses a change of the write mode';

-- Raises what objects.
CREATE FUNCTION cutover._check_objections(target_id int, mode text, force boolean, but_for text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_list text;
	v_hints text;
	v_forcible boolean;
BEGIN
	SELECT string_agg(format('%s: %s', o.object, o.message), '; '), string_agg(DISTINCT o.hint, ' '), bool_and(o.forcible)
		INTO v_list, v_hints, v_forcible
		FROM cutover._objections(target_id, mode) o WHERE NOT (force AND o.forcible) AND o.check_name IS DISTINCT FROM but_for;
	IF v_list IS NOT NULL THEN
		RAISE EXCEPTION 'target "%" cannot go into mode %',
			(SELECT t.target FROM cutover._target t WHERE t.target_id = _check_objections.target_id), mode USING ERRCODE = '55000',
			DETAIL = v_list,
			HINT = v_hints || CASE WHEN v_forcible THEN ' With force => true it is done all the same.' ELSE '' END;
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._check_objections(int, text, boolean, text) IS 'refuses a change of the write mode for whatever objects to it';

-- Tables neither come nor go while a switch is under way.
CREATE FUNCTION cutover._refuse_switching(target cutover._target) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF target.switch_state IS NOT NULL THEN
		RAISE EXCEPTION 'target "%" is being switched', target.target USING ERRCODE = '55006',
			DETAIL = format('A switch to mode %s is under way.', target.switch_to),
			HINT = 'Try again when it has come to its end, see cutover.status.';
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._refuse_switching(cutover._target) IS 'refuses changes of a target that is being switched';

-- A blocker, in words.
CREATE FUNCTION cutover._blocker_text(pid int, usename name, application_name text, age interval, query text, gid text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN gid IS NOT NULL
		THEN format('prepared transaction "%s" (role %s, for %s)', gid, coalesce(usename, '-'), date_trunc('milliseconds', age))
		ELSE format('process %s (role %s, application %s, for %s): %s', pid, coalesce(usename, '-'), coalesce(nullif(application_name, ''), '-'),
			date_trunc('milliseconds', age), coalesce(left(query, 200), '-')) END
$$;
COMMENT ON FUNCTION cutover._blocker_text(int, name, text, interval, text, text) IS 'a transaction that keeps the gate open, in words';

-- Transactions that write on the side which is master now.
CREATE FUNCTION cutover._master_blockers(target_id int)
RETURNS TABLE (pid int, usename name, application_name text, age interval, query text, gid text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = _master_blockers.target_id;
	IF t.mode <> 'new_only' THEN
		RETURN QUERY SELECT * FROM cutover._fence_blockers(target_id);
		RETURN;
	END IF;
	RETURN QUERY SELECT (r->>'pid')::int, (r->>'usename')::name, r->>'application_name', (r->>'age')::interval, r->>'query', r->>'gid'
		FROM cutover._remote(t.server, cutover._new_blockers_sql()) r;
END
$$;
COMMENT ON FUNCTION cutover._master_blockers(int) IS 'transactions that have written to tables of the target on its master, and not ended yet';

-- On new: who holds the fence there.
CREATE FUNCTION cutover._new_blockers_sql() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT $sql$
	SELECT l.pid, coalesce(a.usename, x.owner) AS usename, a.application_name,
		pg_catalog.clock_timestamp() - coalesce(a.xact_start, x.prepared) AS age, a.query, x.gid
	FROM pg_catalog.pg_locks l
	LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
	LEFT JOIN pg_catalog.pg_prepared_xacts x ON l.pid IS NULL AND x.transaction::text = pg_catalog.split_part(l.virtualtransaction, '/', 2)
	WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'RowExclusiveLock'
		AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
		AND l.relation = pg_catalog.to_regclass('cutover.fence') AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
	ORDER BY 4 DESC, 1$sql$
$$;
COMMENT ON FUNCTION cutover._new_blockers_sql() IS 'the query for transactions that write on new';
