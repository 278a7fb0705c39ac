-- compare_repair.sql: making new equal to old where a comparison found it is not.
--
-- A repair writes to neither side.  It puts one request into the queue, "read
-- this key again", and the replicator serves it in its turn like any change: so
-- it can't put something old over something newer.  Missing, extra and
-- different rows are all repaired by that.  While new is master the request
-- goes into the queue there, and old follows.
--
-- Nothing is lost when a repair breaks off: requests that were made are served
-- anyway, and the differences stay open until somebody has looked again.

-- Held to the end of the worker: one repair at a time for each target.
CREATE FUNCTION cutover._lock_repair(target_id int) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_lock_repair';

-- A complete pass over a table has ended: when, and whether it counts as clean.
-- One that began before the end of the last repair proves nothing of it.
CREATE FUNCTION cutover._note_compared(p_run bigint, p_table_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_began timestamptz;
	v_clean boolean;
BEGIN
	SELECT min(r.started_at), NOT bool_or(r.missing + r.extra + r.different + r.representation > 0 OR r.capped)
		INTO v_began, v_clean FROM cutover._compare_result r WHERE r.run = p_run AND r.table_id = p_table_id;
	v_clean := coalesce(v_clean, false)
		AND NOT EXISTS (SELECT FROM cutover._divergence d WHERE d.table_id = p_table_id AND d.state <> 'deferred');
	UPDATE cutover._table t SET last_compared_at = clock_timestamp(),
			clean_passes = CASE WHEN NOT v_clean THEN 0 WHEN t.repaired_at >= v_began THEN t.clean_passes ELSE t.clean_passes + 1 END
		WHERE t.table_id = p_table_id;
END
$$;

-- A repair of these tables begins or ends: passes made until now don't count.
CREATE FUNCTION cutover._note_repair(p_tables int[]) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	UPDATE cutover._table t SET clean_passes = 0, repaired_at = clock_timestamp() WHERE t.table_id = ANY (p_tables)
$$;

-- Asks for the keys of differences to be read again.  Returns those that could be
-- asked for: a row of new may have a key that old can't have.
CREATE FUNCTION cutover._request_repairs(p_target cutover._target, p_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_done bigint[] := '{}';
	d record;
BEGIN
	BEGIN
		PERFORM cutover._enqueue_refresh(v.table_id, v.key) FROM cutover._divergence v
			WHERE v.divergence_id = ANY (p_ids) ORDER BY v.divergence_id;
		RETURN p_ids;
	EXCEPTION WHEN data_exception THEN
		NULL;		-- which one?
	END;
	FOR d IN SELECT v.divergence_id, v.table_id, v.key FROM cutover._divergence v
		WHERE v.divergence_id = ANY (p_ids) ORDER BY v.divergence_id
	LOOP
		BEGIN
			PERFORM cutover._enqueue_refresh(d.table_id, d.key);
			v_done := v_done || d.divergence_id;
		EXCEPTION WHEN data_exception THEN
			NULL;		-- a row of new whose key old can't have
		END;
	END LOOP;
	RETURN v_done;
END
$$;

-- The same where new is right: into the queue there, by the columns of new that stand for old's key.
CREATE FUNCTION cutover._request_reverse_repairs(p_target cutover._target, p_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_keys jsonb;
	v_done bigint[];
BEGIN
	SELECT jsonb_agg(jsonb_build_object('t', s.table_id, 'k', s.key) ORDER BY s.divergence_id), array_agg(s.divergence_id ORDER BY s.divergence_id)
		INTO v_keys, v_done
	FROM (
		SELECT v.divergence_id, v.table_id, jsonb_object_agg(n.new_column, v.key->(a.attname::text)) AS key
		FROM cutover._divergence v
		JOIN cutover._table t USING (table_id)
		CROSS JOIN LATERAL unnest(t.key_attnums, cutover._new_key(t.table_id)) n (attnum, new_column)
		JOIN pg_attribute a ON a.attrelid = t.old_table AND a.attnum = n.attnum
		WHERE v.divergence_id = ANY (p_ids)
		GROUP BY v.divergence_id, v.table_id
		-- without a key that new has as it is, rows can't be named there
		HAVING bool_and(n.new_column IS NOT NULL AND n.attnum IS NOT NULL)) s;
	IF v_keys IS NOT NULL THEN
		PERFORM cutover._remote(p_target.server, 'SELECT count(cutover.enqueue((k->>''t'')::int, ''R'', k->''k'', NULL))
			FROM pg_catalog.jsonb_array_elements($1::jsonb) k', v_keys::text);
	END IF;
	RETURN coalesce(v_done, '{}');
END
$$;

-- The next open differences of these tables, and what they weigh: so many, or so many bytes, go into one transaction.
CREATE FUNCTION cutover._next_repairs(p_tables int[], p_after bigint, p_until bigint) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT array_agg(s.divergence_id ORDER BY s.divergence_id) FROM (
		SELECT v.divergence_id, row_number() OVER w AS n, sum(octet_length(v.key::text)) OVER w AS bytes
		FROM (SELECT d.divergence_id, d.key FROM cutover._divergence d
			WHERE d.table_id = ANY (p_tables) AND d.state <> 'deferred' AND d.divergence_id > p_after AND d.divergence_id <= p_until
			ORDER BY d.divergence_id LIMIT 2000) v
		WINDOW w AS (ORDER BY v.divergence_id)) s
	WHERE s.n = 1 OR s.bytes < 4000000
$$;

-- Has the side that follows everything that a transaction of the other has done?  While old is right that is
-- transaction xid here; else whatever new had when the ticket was drawn.
CREATE FUNCTION cutover._has_followed(p_target cutover._target, p_xid xid8, p_ticket bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_snapshot pg_snapshot;
BEGIN
	IF p_target.mode = 'new_only' THEN
		RETURN cutover._await_ticket(p_target.target_id, p_ticket, 100, true);
	END IF;
	SELECT (r->>'snapshot')::pg_snapshot INTO v_snapshot FROM cutover._remote(p_target.server,
		'SELECT snapshot FROM cutover.progress WHERE direction = ''forward''') r;
	RETURN pg_visible_in_snapshot(p_xid, v_snapshot);
END
$$;

-- The target as a repair may go on with it.
CREATE FUNCTION cutover._check_repairable(p_target_id int, p_mode text) RETURNS cutover._target
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target := cutover._check_started(p_target_id);
BEGIN
	IF v_target.desired <> 'running' THEN
		RAISE EXCEPTION 'target "%" is paused', v_target.target USING ERRCODE = '55000',
			DETAIL = 'Repairs are made by the replicator, in the order of the queue.',
			HINT = 'Go on with cutover_resume(), then call cutover_compensate() again.';
	ELSIF (v_target.mode = 'new_only') <> (p_mode = 'new_only') THEN
		RAISE EXCEPTION 'target "%" was switched to mode % meanwhile', v_target.target, v_target.mode USING ERRCODE = '55000',
			DETAIL = 'The other side is right now.',
			HINT = 'Call cutover_compensate() again: what is open goes the other way.';
	END IF;
	RETURN v_target;
END
$$;

-- Waits until the side that follows has a transaction.
CREATE PROCEDURE cutover._await_followed(p_target cutover._target, p_xid xid8)
LANGUAGE plpgsql AS $$
DECLARE
	v_pause float8 := 0.005;
	v_ticket bigint := CASE WHEN p_target.mode = 'new_only' THEN cutover._draw_ticket(p_target.target_id) END;
BEGIN
	LOOP
		COMMIT;
		PERFORM cutover._check_repairable(p_target.target_id, p_target.mode);
		IF cutover._replicator_pid(p_target.target_id) IS NULL THEN
			PERFORM cutover._start_replicator(p_target.target_id);
		END IF;
		PERFORM cutover._wake_replicator(p_target.target_id);
		EXIT WHEN cutover._has_followed(p_target, p_xid, v_ticket);
		COMMIT;
		PERFORM pg_sleep(v_pause);
		v_pause := least(v_pause * 1.5, 0.1);
	END LOOP;
	COMMIT;
END
$$;

-- Repairs every difference of these tables that is open when it begins.  result: an array of counts for each table.
CREATE PROCEDURE cutover._do_compensate(p_target_id int, p_tables int[], INOUT result text DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
	v_target cutover._target;
	v_mode text;
	v_tables int[];
	v_until bigint;
	v_ids bigint[];
	v_asked bigint[];
	v_all bigint[] := '{}';
	v_xid xid8;
	v_last bigint := 0;
	v_run bigint;
	v_counts jsonb;
BEGIN
	IF NOT cutover._lock_repair(p_target_id) THEN
		RAISE EXCEPTION 'another repair is under way on target "%"',
			(SELECT t.target FROM cutover._target t WHERE t.target_id = p_target_id) USING ERRCODE = '55006',
			DETAIL = 'Two would ask for the same keys.',
			HINT = 'Wait for its end, or end what cutover_schedule_compare() began with cutover_unschedule_compare().';
	END IF;
	v_target := cutover._check_started(p_target_id);
	v_mode := v_target.mode;
	v_target := cutover._check_repairable(p_target_id, v_mode);
	-- a table that is not synced is brought over whole, by its copy
	v_tables := ARRAY(SELECT t.table_id FROM cutover._table t WHERE t.table_id = ANY (p_tables) AND t.phase = 'synced'
		AND EXISTS (SELECT FROM cutover._divergence d WHERE d.table_id = t.table_id AND d.state <> 'deferred') ORDER BY 1);
	IF v_tables <> '{}' THEN
		PERFORM cutover._note_repair(v_tables);
		COMMIT;
		SELECT max(d.divergence_id) INTO v_until FROM cutover._divergence d WHERE d.table_id = ANY (v_tables);
		LOOP
			-- a switch that begins now waits for this transaction; one under way is waited for
			PERFORM FROM cutover._target t WHERE t.target_id = p_target_id FOR SHARE;
			v_target := cutover._check_repairable(p_target_id, v_mode);
			IF v_target.switch_state IS NOT NULL THEN
				COMMIT;
				PERFORM pg_sleep(0.1);
				CONTINUE;
			END IF;
			v_ids := cutover._next_repairs(v_tables, v_last, v_until);
			EXIT WHEN v_ids IS NULL;
			v_last := v_ids[cardinality(v_ids)];
			v_asked := CASE WHEN v_mode = 'new_only' THEN cutover._request_reverse_repairs(v_target, v_ids)
				ELSE cutover._request_repairs(v_target, v_ids) END;
			UPDATE cutover._divergence d SET state = 'compensating' WHERE d.divergence_id = ANY (v_asked) AND d.state <> 'compensating';
			v_xid := pg_current_xact_id();
			v_all := v_all || v_asked;
			COMMIT;
			IF v_asked <> '{}' THEN
				CALL cutover._await_followed(v_target, v_xid);
			END IF;
		END LOOP;
		COMMIT;
		v_counts := (SELECT jsonb_object_agg(d.table_id, d.n) FROM (SELECT table_id, count(*) AS n FROM cutover._divergence
			WHERE divergence_id = ANY (v_all) GROUP BY 1) d);
		-- what is equal now is closed; what is not is confirmed once more, or still moves
		CALL cutover._do_compare(p_target_id, v_tables, 'known', NULL, NULL, 'UTC', v_run);
		UPDATE cutover._divergence d SET state = 'deferred' WHERE d.divergence_id = ANY (v_all) AND d.state = 'compensating';
		v_counts := (SELECT jsonb_object_agg(c.key, c.value::bigint - (SELECT count(*) FROM cutover._divergence d
				WHERE d.divergence_id = ANY (v_all) AND d.table_id = c.key::int))
			FROM jsonb_each_text(v_counts) c);
		PERFORM cutover._note_repair(v_tables);
	END IF;
	SELECT jsonb_agg(jsonb_build_object('table', t.old_table::text, 'repaired', coalesce((v_counts->>t.table_id::text)::bigint, 0), 'deferred',
			(SELECT count(*) FROM cutover._divergence d WHERE d.table_id = t.table_id AND (d.state = 'deferred'
				OR NOT EXISTS (SELECT FROM cutover._apply_error e WHERE e.table_id = d.table_id AND e.key = d.key)))) ORDER BY t.table_id)::text
		INTO result FROM cutover._table t WHERE t.table_id = ANY (p_tables);
	PERFORM cutover._log_event('compensate', jsonb_build_object('repaired',
		(SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(v_counts))), p_target_id);
	COMMIT;
END
$$;

CREATE FUNCTION @extschema@.cutover_compensate(tables regclass[] DEFAULT NULL, target name DEFAULT NULL)
RETURNS TABLE (table_name regclass, repaired bigint, deferred bigint)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int;
	v_ids int[];
	v_table regclass;
	v_result text;
BEGIN
	IF tables IS NULL THEN
		v_target := cutover._target_id(target);
	ELSIF tables = '{}' THEN
		RETURN;
	ELSE
		FOREACH v_table IN ARRAY tables LOOP
			PERFORM cutover._not_null('tables', v_table IS NULL);
			IF v_target <> cutover._table_target(v_table, target) THEN
				RAISE EXCEPTION 'tables belong to several targets' USING ERRCODE = '22023',
					DETAIL = format('Table %s is not under migration to the target of %s.', v_table, tables[array_lower(tables, 1)]),
					HINT = 'Call cutover_compensate() for each target by itself.';
			END IF;
			v_target := cutover._table_target(v_table, target);
		END LOOP;
	END IF;
	v_ids := ARRAY(SELECT t.table_id FROM cutover._table t WHERE t.target_id = v_target
		AND (tables IS NULL OR t.old_table = ANY (tables::oid[])) ORDER BY t.table_id);
	PERFORM cutover._check_owner(t.old_table::regclass) FROM cutover._table t WHERE t.table_id = ANY (v_ids)
		AND (tables IS NOT NULL OR EXISTS (SELECT FROM cutover._divergence d WHERE d.table_id = t.table_id));
	v_result := cutover._action('cutover_compensate', 'CALL cutover._do_compensate($1::int, $2::int[])',
		ARRAY[v_target::text, v_ids::text]);
	RETURN QUERY SELECT (r->>'table')::oid::regclass, (r->>'repaired')::bigint, (r->>'deferred')::bigint
		FROM jsonb_array_elements(v_result::jsonb) r;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_compensate(regclass[], name)
	IS 'step 3, compare: repairs open divergences through the same ordered queue as all other changes';
