-- monitor.sql: what can be seen from outside.
--
-- Views read our tables with the rights of the extension's owner, and call
-- functions with the rights of the reader.  current_user in a view is the
-- reader: what may hold row values is shown if he may read the table.

-- May this role read every row of this table?
CREATE FUNCTION cutover._may_read(reader oid, relid oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce((
		SELECT has_table_privilege(reader, c.oid, 'SELECT')
			AND (NOT c.relrowsecurity OR r.rolsuper OR r.rolbypassrls
				OR (pg_has_role(reader, c.relowner, 'USAGE') AND NOT c.relforcerowsecurity))
		FROM pg_class c, pg_roles r WHERE c.oid = relid AND r.oid = reader),
		(SELECT r.rolsuper FROM pg_roles r WHERE r.oid = reader))
$$;
COMMENT ON FUNCTION cutover._may_read(oid, oid) IS 'may this role read every row of this table';

CREATE FUNCTION cutover._worker_stats()
RETURNS TABLE (target_id int, pid int, applied_changes bigint, changes_per_s float8, retries bigint, lag interval,
	acked_k bigint, acked_at timestamptz, waiting_for text, last_error text, last_error_at timestamptz,
	reverse boolean, queued_changes bigint, queue_bytes bigint)
LANGUAGE c STABLE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'cutover_worker_stats';
COMMENT ON FUNCTION cutover._worker_stats() IS 'what replicators have said of themselves since the server started';

-- Changes that new does not have yet.  Exact but for the moment between an
-- acknowledgement and its record: then the last window is counted again.
CREATE FUNCTION cutover._queued_changes(target_id int) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off						-- the queue has no statistics; most of it may be done
SET jit = off									-- for that makes a plan look dear
AS $$
DECLARE
	acked pg_snapshot;
	queue regclass;
	n bigint;
	total bigint := 0;
BEGIN
	IF (SELECT t.mode = 'new_only' FROM cutover._target t WHERE t.target_id = $1) THEN
		-- the queue is on new: what the replicator has seen of it
		RETURN (SELECT s.queued_changes FROM cutover._worker_stats() s WHERE s.target_id = $1 AND s.reverse);
	END IF;
	SELECT CASE WHEN s.acked_k >= m.k THEN m.snapshot ELSE m.acked_snapshot END INTO acked
	FROM cutover._marker m LEFT JOIN cutover._worker_stats() s USING (target_id)
	WHERE m.target_id = $1 AND m.direction = 'forward';

	FOR segment IN 0..2 LOOP
		queue := to_regclass(format('cutover._queue_%s_%s', $1, segment));
		CONTINUE WHEN queue IS NULL;
		IF acked IS NULL THEN
			EXECUTE format('SELECT sum(n) FROM %s', queue) INTO n;
		ELSE
			EXECUTE format('SELECT sum(n) FROM %s WHERE xid >= $1 OR xid = ANY ($2)', queue)
				INTO n USING pg_snapshot_xmax(acked), ARRAY(SELECT pg_snapshot_xip(acked));
		END IF;
		total := total + coalesce(n, 0);
	END LOOP;
	RETURN total;
END
$$;
COMMENT ON FUNCTION cutover._queued_changes(int) IS 'changes in the queue of a target that the side which follows does not have yet';

-- What the queue takes on disk, with index and out-of-line part; segments are
-- emptied as a whole, so part of it may be done already.
CREATE FUNCTION cutover._queue_bytes(target_id int) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(sum(pg_total_relation_size(to_regclass(format('cutover._queue_%s_%s', $1, segment))::oid)), 0)::bigint
	FROM generate_series(0, 2) segment
$$;
COMMENT ON FUNCTION cutover._queue_bytes(int) IS 'size of the queue of a target on disk';

-- A restored copy of old carries the tables, but is another cluster.
CREATE FUNCTION cutover._is_this_cluster(system_identifier bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT c.system_identifier = $1 FROM pg_control_system() c
$$;
COMMENT ON FUNCTION cutover._is_this_cluster(bigint) IS 'is this the cluster that the migration belongs to';

-- Is every change of the table captured: each relation that holds its rows has
-- our triggers for rows and for TRUNCATE, all of them ENABLE ALWAYS.
CREATE FUNCTION cutover._capture_enabled(table_id int) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(bool_and(
		coalesce(g.row_events, 0) & 28 = 28 AND coalesce(g.truncates, false) AND coalesce(g.always, false)), false)
	FROM cutover._member m
	JOIN pg_class c ON c.oid = m.relid AND c.relkind = 'r'
	LEFT JOIN LATERAL (
		SELECT bit_or(tg.tgtype::int) FILTER (WHERE tg.tgtype & 1 = 1) AS row_events,
			bool_or(tg.tgtype & 32 = 32) AS truncates,
			bool_and(tg.tgenabled = 'A') AS always
		FROM pg_trigger tg
		JOIN pg_proc p ON p.oid = tg.tgfoid AND p.proname = '_capture'
		JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname = 'cutover'
		WHERE tg.tgrelid = m.relid) g ON true
	WHERE m.table_id = $1
$$;
COMMENT ON FUNCTION cutover._capture_enabled(int) IS 'is every change of the table captured';

-- Who has changed tables of the target and has not committed yet, in words: the
-- longest one.  It delays only its own changes.
CREATE FUNCTION cutover._open_writers(target_id int, longer_than interval DEFAULT '10 s') RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT format('%s of %I, open since %s, which has changed tables of the target',
		coalesce('COMMIT PREPARED ' || quote_literal(w.gid), 'the transaction in pid ' || w.pid), w.usename, date_trunc('second', w.since))
	FROM (
		SELECT l.pid, NULL::text AS gid, a.usename::text, a.xact_start AS since
		FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
			AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND a.backend_type = 'client backend' AND a.backend_xid IS NOT NULL
			AND l.relation IN (SELECT m.relid FROM cutover._member m JOIN cutover._table b USING (table_id) WHERE b.target_id = $1)
		UNION ALL
		SELECT NULL, p.gid, p.owner::text, p.prepared
		FROM pg_prepared_xacts p
		JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
		JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL
		WHERE p.database = current_database() AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'
			AND l.relation IN (SELECT m.relid FROM cutover._member m JOIN cutover._table b USING (table_id) WHERE b.target_id = $1)) w
	WHERE w.since < clock_timestamp() - longer_than
	ORDER BY w.since LIMIT 1
$$;
COMMENT ON FUNCTION cutover._open_writers(int, interval) IS 'the longest transaction that has changed tables of the target, in words';

CREATE FUNCTION cutover._sessions()
RETURNS TABLE (pid int, usename name, application_name text, client_addr inet, backend_start timestamptz, state text, usesysid oid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT a.pid, a.usename, a.application_name, a.client_addr, a.backend_start, a.state, a.usesysid
	FROM pg_stat_activity a
	WHERE a.datname = current_database() AND a.backend_type = 'client backend'
$$;
COMMENT ON FUNCTION cutover._sessions() IS 'client sessions of this database, without what they run';

-- Where the server had no shared memory left for us, a replicator that runs can
-- still be seen, but not what it does.
CREATE FUNCTION cutover._unseen_replicator() RETURNS int
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT min(a.pid) FROM pg_stat_activity a
	WHERE a.datname = current_database() AND a.backend_type = 'cutover replicator'
		AND NOT EXISTS (SELECT FROM cutover._worker_stats() s WHERE s.pid = a.pid)
$$;
COMMENT ON FUNCTION cutover._unseen_replicator() IS 'a replicator of this database that is not known from shared memory';

-- Whose locks a replicator waits for, in words.
CREATE FUNCTION cutover._blocked_by(pid int) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'a lock on old, held by ' || string_agg(CASE WHEN b = 0 THEN 'a prepared transaction' ELSE
		format('process %s (role %s, application %s, %s for %s)', b, coalesce(a.usename::text, '-'), coalesce(nullif(a.application_name, ''), '-'),
			coalesce(a.state, a.backend_type, '-'), date_trunc('second', clock_timestamp() - a.xact_start)) END, ', ')
	FROM unnest(pg_blocking_pids($1)) b LEFT JOIN pg_stat_activity a ON a.pid = b
$$;
COMMENT ON FUNCTION cutover._blocked_by(int) IS 'whose locks a process waits for, in words';

-- A table's name as it may be typed whatever the search_path.
CREATE FUNCTION cutover._table_name(relid oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT relid::regclass::text
$$;
COMMENT ON FUNCTION cutover._table_name(oid) IS 'name of a table with its schema, quoted';

CREATE FUNCTION cutover._bar(percent numeric) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT '[' || repeat('#', n) || repeat('.', 24 - n) || ']'
	FROM (SELECT floor(greatest(0, least(100, coalesce(percent, 0))) * 24 / 100)::int AS n) b
$$;
COMMENT ON FUNCTION cutover._bar(numeric) IS 'a share as 24 characters';

-- Each target with everything that is said of it in more than one view.
CREATE VIEW cutover._state AS
SELECT t.*, coalesce(s.pid, CASE WHEN t.desired = 'running' THEN cutover._unseen_replicator() END) AS pid, s.applied_changes, s.changes_per_s, s.retries, s.waiting_for, s.last_error, s.last_error_at,
	s.queue_bytes AS new_queue_bytes,
	b.tables, b.not_synced, b.resync_needed, b.capture_off,
	cutover._is_this_cluster(t.system_identifier) AS ours,
	CASE
		WHEN t.desired = 'finished' THEN 'finished'
		WHEN NOT cutover._is_this_cluster(t.system_identifier) THEN 'idle'
		WHEN t.rewound THEN 'rewound'
		WHEN t.desired = 'idle' THEN 'idle'
		WHEN t.desired = 'paused' THEN 'paused'
		WHEN b.not_synced > b.resync_needed THEN 'copying'
		ELSE 'streaming'
	END AS state,
	q.queued_changes,
	CASE WHEN s.lag IS NULL OR s.acked_at IS NULL THEN NULL
		WHEN q.queued_changes = 0 AND t.mode <> 'new_only' THEN interval '0'
		-- whoever looks at the queue on new says so at least every 100 ms
		WHEN q.queued_changes = 0 AND s.acked_at > clock_timestamp() - interval '1 s' THEN interval '0'
		ELSE greatest(clock_timestamp() - s.acked_at, interval '0')
	END AS lag
FROM cutover._target t
LEFT JOIN cutover._worker_stats() s USING (target_id)
CROSS JOIN LATERAL (
	SELECT count(*) AS tables,
		count(*) FILTER (WHERE phase <> 'synced') AS not_synced,
		count(*) FILTER (WHERE phase = 'resync_needed') AS resync_needed,
		count(*) FILTER (WHERE t.desired IN ('running', 'paused') AND NOT cutover._capture_enabled(table_id)) AS capture_off
	FROM cutover._table WHERE target_id = t.target_id) b
CROSS JOIN LATERAL (SELECT cutover._queued_changes(t.target_id) OFFSET 0) q (queued_changes);
COMMENT ON VIEW cutover._state IS 'what several views say of a target';

CREATE VIEW cutover.status AS
SELECT s.target, s.state, s.mode, s.epoch, s.write_ratio, s.read_ratio, s.shadow_ratio,
	s.mode = 'dual_write' AND cutover._degraded(s.target_id) AS degraded,
	s.queued_changes, s.lag,
	(SELECT count(*) FROM cutover._divergence d WHERE d.target_id = s.target_id AND d.state <> 'deferred') AS divergences,
	CASE
		WHEN s.state = 'finished' THEN NULL
		WHEN pg_is_in_recovery() THEN 'this server is a standby: replication runs on its primary, and is seen there'
		WHEN NOT s.ours THEN
			'cutover_adopt(' || r.argument || '): this cluster is a copy of the one that the migration belongs to, and does nothing on new'
		WHEN s.state = 'idle' AND s.tables = 0 THEN 'cutover_add_table(): no table is under migration'
		WHEN s.state = 'idle' THEN 'cutover_start(' || r.argument || ')'
		WHEN s.state = 'paused' THEN 'cutover_resume(' || r.argument || ')'
		ELSE nullif(concat_ws('; ',
			CASE s.switch_state
				WHEN 'preparing' THEN format('a switch to %s is under way', s.switch_to)
				WHEN 'in_doubt' THEN format('a switch to %s is in doubt: new is asked whether it was made; if new is lost for good, see cutover_resolve_switch()', s.switch_to) END,
			CASE WHEN s.state = 'rewound' AND s.mode = 'new_only' THEN
				'cutover_compare(method => ''full'') and cutover_compensate() until clean: one side has lost what the other has' END,
			CASE WHEN s.mode = 'new_only' THEN cutover._blocked_by(s.pid) END,
			(SELECT string_agg(format('old can not follow table %s: %s', cutover._table_name(b.old_table), b.reverse_closed), '; ' ORDER BY b.table_id)
				FROM cutover._table b WHERE b.target_id = s.target_id AND s.mode = 'new_only' AND b.reverse_closed IS NOT NULL),
			CASE WHEN s.state = 'rewound' AND s.mode <> 'new_only' THEN
				'cutover_compare(method => ''full'') and cutover_compensate() until clean, or cutover_resync() of every table: new holds changes that old has lost' END,
			CASE WHEN s.pid IS NULL THEN
				'the replicator is not running: it is started now, if a worker slot is free (max_worker_processes)' END,
			-- the worker says it too when it has nothing else to say
			CASE WHEN NOT EXISTS (SELECT FROM cutover._table b WHERE b.target_id = s.target_id AND b.phase_reason = s.waiting_for)
				THEN s.waiting_for END,
			(SELECT string_agg(
					CASE WHEN b.phase = 'resync_needed' THEN format('SELECT cutover_resync(%L)', cutover._table_name(b.old_table))
						ELSE cutover._table_name(b.old_table) END
					|| coalesce(CASE WHEN cutover._may_read(r.reader, b.old_table) THEN ': ' || b.phase_reason END, ''), '; ' ORDER BY b.table_id)
				FROM cutover._table b WHERE b.target_id = s.target_id
					AND (b.phase = 'resync_needed' OR b.phase_reason IS NOT NULL AND b.phase <> 'synced')),
			(SELECT format('cutover_retry_errors() or cutover_skip_errors(): %s rejected %s rows, see cutover.apply_error',
					CASE s.mode WHEN 'new_only' THEN 'old' ELSE 'new' END, count(*))
				FROM cutover._apply_error e WHERE e.target_id = s.target_id AND (e.direction = 'reverse') = (s.mode = 'new_only') HAVING count(*) > 0),
			CASE WHEN s.capture_off > 0 THEN
				(SELECT 'cutover_resync() after enabling the triggers (cutover_preflight() names them): capture is not on for '
						|| string_agg(cutover._table_name(b.old_table), ', ' ORDER BY b.table_id)
					FROM cutover._table b WHERE b.target_id = s.target_id AND NOT cutover._capture_enabled(b.table_id)) END,
			cutover._open_writers(s.target_id),
			CASE WHEN (SELECT c.breaker_since IS NOT NULL FROM cutover._read_counters(s.target_id) c) THEN
				'new to answer a read: it failed too often, and reads stay on old but for an attempt every cutover.breaker_cooldown' END,
			CASE WHEN s.waiting_for IS NULL AND s.last_error_at > clock_timestamp() - interval '15 s' AND (s.not_synced > 0 OR s.queued_changes > 0)
				THEN 'what last_error says; it is tried again' END), '')
	END AS waiting_for,
	s.last_error, s.last_error_at
FROM cutover._state s,
	-- one of several targets has to be named
	LATERAL (SELECT quote_ident(current_user)::regrole::oid,
		CASE WHEN (SELECT count(*) FROM cutover._target) > 1 THEN quote_literal(s.target) ELSE '' END) r (reader, argument)
ORDER BY s.target_id;
COMMENT ON VIEW cutover.status IS 'one row for each target: where it is, and why nothing moves, if nothing moves';

CREATE VIEW cutover.tables AS
SELECT t.target, b.old_table::regclass AS table_name, format('%I.%I', b.new_schema, b.new_name) AS new_table, b.phase,
	ARRAY(SELECT a.attname FROM unnest(b.key_attnums) WITH ORDINALITY k (attnum, i)
		JOIN pg_attribute a ON a.attrelid = b.old_table AND a.attnum = k.attnum ORDER BY k.i) AS key_columns,
	b.version_column,
	cutover._capture_enabled(b.table_id) AS capture_enabled,
	b.last_compared_at,
	b.clean_passes,
	CASE WHEN cutover._may_read(quote_ident(current_user)::regrole::oid, b.old_table) THEN b.phase_reason END AS phase_reason,
	b.phase_since, b.row_filter
FROM cutover._table b JOIN cutover._target t USING (target_id)
ORDER BY t.target_id, b.table_id;
COMMENT ON VIEW cutover.tables IS 'the tables under migration';

-- Chunks are about equal in size, so their number says more than the estimates
-- of rows and bytes, which are off where statistics are old.
CREATE VIEW cutover.progress AS
SELECT t.target, b.old_table::regclass AS table_name, b.phase,
	c.rows_done,
	CASE WHEN p.all_done THEN c.rows_done ELSE greatest(coalesce(b.rows_total, z.rows), c.rows_done) END AS rows_total,
	c.bytes_done,
	CASE WHEN p.all_done THEN c.bytes_done ELSE greatest(coalesce(b.bytes_total, z.bytes), c.bytes_done) END AS bytes_total,
	p.percent,
	round(CASE WHEN e.elapsed > 0 THEN c.rows_done / e.elapsed END, 1) AS rows_per_s,
	CASE WHEN b.phase = 'synced' THEN interval '0'
		WHEN b.phase = 'copying' AND c.done > 0
			THEN make_interval(secs => (e.elapsed * (c.chunks - c.done) / c.done)::float8)
	END AS eta,
	cutover._bar(p.percent) AS bar,
	c.done AS chunks_done, c.chunks AS chunks_total, b.copy_started_at, b.copy_ended_at
FROM cutover._table b
JOIN cutover._target t USING (target_id)
CROSS JOIN LATERAL (
	SELECT count(*) AS chunks, count(*) FILTER (WHERE state = 'done') AS done,
		coalesce(sum(rows) FILTER (WHERE state = 'done'), 0)::bigint AS rows_done,
		coalesce(sum(bytes) FILTER (WHERE state = 'done'), 0)::bigint AS bytes_done
	FROM cutover._chunk WHERE table_id = b.table_id AND generation = b.copy_generation) c
CROSS JOIN LATERAL (
	-- as of the last ANALYZE; asking for the size now would wait for locks
	SELECT sum(nullif(m.reltuples, -1))::bigint AS rows,
		sum(CASE WHEN m.reltuples >= 0 THEN m.relpages::bigint * current_setting('block_size')::int END)::bigint AS bytes
	FROM cutover._member JOIN pg_class m ON m.oid = relid AND m.relkind = 'r'
	WHERE table_id = b.table_id) z
CROSS JOIN LATERAL (
	SELECT extract(epoch FROM coalesce(b.copy_ended_at, clock_timestamp()) - b.copy_started_at) AS elapsed) e
CROSS JOIN LATERAL (
	SELECT b.phase IN ('catching_up', 'indexing', 'synced') AS all_done,
		CASE WHEN b.phase = 'synced' THEN 100.0
			WHEN b.phase IN ('waiting', 'resync_needed') OR c.chunks = 0 THEN 0.0
			ELSE least(99.9, round(100.0 * c.done / c.chunks, 1))
		END AS percent) p
ORDER BY t.target_id, b.table_id;
COMMENT ON VIEW cutover.progress IS 'how far the copy of each table is; totals are estimates until all is copied';

-- While new is the master nothing goes forward; both rows tell of one process.
CREATE VIEW cutover.replication AS
SELECT s.target, NULL::name AS shard, d.direction,
	CASE WHEN NOT d.active THEN 'idle'
		WHEN s.state IN ('copying', 'streaming', 'rewound') AND s.pid IS NULL
		THEN CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'down' END ELSE s.state END AS state,
	CASE WHEN d.active THEN s.queued_changes ELSE 0 END AS queued_changes,
	CASE d.direction WHEN 'forward' THEN cutover._queue_bytes(s.target_id) ELSE s.new_queue_bytes END AS queue_bytes,
	CASE WHEN d.active THEN s.lag END AS lag,
	CASE WHEN d.active THEN coalesce(s.applied_changes, 0) ELSE 0 END AS applied_changes,
	CASE WHEN d.active THEN coalesce(s.changes_per_s, 0) ELSE 0 END AS changes_per_s,
	coalesce(s.retries, 0) AS retries, CASE WHEN d.active THEN s.waiting_for END AS waiting_for, s.last_error, s.last_error_at, s.pid,
	-- older ones that new has may be gone from the queue
	(SELECT CASE WHEN s.started_at IS NOT NULL THEN coalesce(max(r.kept_since), s.started_at) END
		FROM cutover._rotation r WHERE r.target_id = s.target_id) AS changes_kept_since
FROM cutover._state s
CROSS JOIN LATERAL (
	SELECT 'forward'::text, s.mode <> 'new_only' OR s.desired = 'finished'
	UNION ALL
	SELECT 'reverse', true WHERE s.mode = 'new_only' AND s.desired <> 'finished') d (direction, active)
ORDER BY s.target_id, d.direction;
COMMENT ON VIEW cutover.replication IS 'the replicator of each target; counters begin with the server';

CREATE VIEW cutover.dual_write_failure AS
SELECT g.target, f.failed_at, t.old_table::regclass AS table_name,
	CASE WHEN t.key_attnums <> '{}' OR cutover._may_read(quote_ident(current_user)::regrole::oid, t.old_table) THEN f.key END AS key,
	f.sqlstate,
	CASE WHEN f.sqlstate IN ('08006', '57014') OR cutover._may_read(quote_ident(current_user)::regrole::oid, t.old_table)
		THEN f.message ELSE 'shown to those who may read the table' END AS message,
	f.state, f.resolved_at
FROM cutover._dual_write_failure f
JOIN cutover._target g USING (target_id)
JOIN cutover._table t USING (table_id)
ORDER BY f.failure_id;
COMMENT ON VIEW cutover.dual_write_failure IS 'commits in dual_write that new did not have in time';

CREATE VIEW cutover.apply_error AS
SELECT t.target, e.direction, b.old_table::regclass AS table_name,
	CASE WHEN b.key_attnums <> '{}' OR r.readable THEN e.key END AS key,
	e.sqlstate,
	CASE WHEN r.readable THEN e.message ELSE 'shown to those who may read the table' END AS message,
	e.attempts, e.first_at, e.last_at
FROM cutover._apply_error e
JOIN cutover._target t USING (target_id)
LEFT JOIN cutover._table b USING (table_id)
CROSS JOIN LATERAL (
	-- a schema change has no table: its message may quote rows of any
	SELECT coalesce(bool_and(cutover._may_read(quote_ident(current_user)::regrole::oid, x.old_table)), true)
	FROM cutover._table x WHERE x.target_id = e.target_id AND (e.table_id IS NULL OR x.table_id = e.table_id)) r (readable)
ORDER BY e.error_id;
COMMENT ON VIEW cutover.apply_error IS 'rows that new rejected; each is read again when it changes';

CREATE VIEW cutover.sessions AS
SELECT s.pid, s.usename, s.application_name, s.client_addr, l.routable,
	CASE WHEN l.routable THEN (
			SELECT CASE count(DISTINCT x.side) WHEN 2 THEN 'both' ELSE coalesce(min(x.side), 'old') END
			FROM cutover._target t, cutover._reads_from(t.target_id, s.pid, s.backend_start, s.usesysid, s.application_name, s.client_addr) x (side))
		WHEN NOT l.routable THEN 'old' END AS reads_from,
	CASE WHEN l.routable IS NOT NULL THEN coalesce(c.writes, 0) END AS writes,
	s.backend_start, s.state
FROM cutover._sessions() s
LEFT JOIN LATERAL (
	SELECT k.pid, CASE WHEN k.epoch = t.epoch THEN k.writes ELSE 0 END AS writes
	FROM cutover._clients() k LEFT JOIN cutover._target t USING (target_id)
	WHERE k.pid = s.pid) c ON true
CROSS JOIN LATERAL (SELECT CASE WHEN c.pid IS NOT NULL THEN true ELSE cutover._clients_default() END) l (routable)
ORDER BY s.backend_start, s.pid;
COMMENT ON VIEW cutover.sessions IS 'who talks to old, whether it can be sent to new, and what it has written since the last switch';

CREATE VIEW cutover.event AS
SELECT at, actor, kind,
	CASE WHEN detail ? 'reason' AND detail ? 'table'
			AND NOT cutover._may_read(quote_ident(current_user)::regrole::oid, to_regclass(detail->>'table')::oid)
		THEN detail - 'reason' ELSE detail END AS detail,
	target, event_id
FROM cutover._event
ORDER BY event_id;
COMMENT ON VIEW cutover.event IS 'every action, automatic or not, with its reason';

-- The names here are those of cutover_add_guard() and, with a prefix, of cutover_metrics().
CREATE VIEW cutover.metrics AS
SELECT m.metric, s.target, m.value::float8 AS value, m.type, m.help
FROM cutover._state s
CROSS JOIN LATERAL (
	SELECT (SELECT count(*) FROM cutover._divergence v WHERE v.target_id = s.target_id AND v.state <> 'deferred') AS confirmed,
		(SELECT count(*) FROM cutover._divergence v WHERE v.target_id = s.target_id AND v.state = 'deferred') AS deferred,
		count(*) FILTER (WHERE EXISTS (SELECT FROM cutover._compare_result r WHERE r.table_id = b.table_id AND r.capped
			AND r.run = (SELECT max(x.run) FROM cutover._compare_result x
				WHERE x.table_id = b.table_id AND x.complete AND x.method <> 'known'))) AS capped,
		count(*) FILTER (WHERE b.last_compared_at IS NULL) AS never,
		CASE WHEN count(b.last_compared_at) = count(*) THEN extract(epoch FROM clock_timestamp() - min(b.last_compared_at)) END AS age
	FROM cutover._table b WHERE b.target_id = s.target_id) d
CROSS JOIN LATERAL cutover._read_counters(s.target_id) rc
CROSS JOIN LATERAL (VALUES
	('lag_seconds', extract(epoch FROM s.lag), 'gauge', 'Age of what new has, 0 if that is all; unknown until measured'),
	('queued_changes', s.queued_changes, 'gauge', 'Changes that new does not have yet'),
	('queue_bytes', cutover._queue_bytes(s.target_id), 'gauge', 'Size of the queue on disk'),
	('applied_changes', coalesce(s.applied_changes, 0), 'counter', 'Changes written to new since the server started'),
	('changes_per_second', coalesce(s.changes_per_s, 0), 'gauge', 'Changes written to new in a second'),
	('retries', coalesce(s.retries, 0), 'counter', 'Attempts repeated after a lost connection or a lock'),
	('apply_errors', (SELECT count(*) FROM cutover._apply_error e WHERE e.target_id = s.target_id), 'gauge', 'Rows that new rejected'),
	('tables', s.tables, 'gauge', 'Tables under migration'),
	('tables_not_synced', s.not_synced, 'gauge', 'Tables that new does not hold completely'),
	('tables_resync_needed', s.resync_needed, 'gauge', 'Tables that must be copied afresh'),
	('tables_capture_off', s.capture_off, 'gauge', 'Tables whose changes are not captured completely'),
	('replicator_running', (s.pid IS NOT NULL)::int, 'gauge', 'Whether the replicator runs'),
	('epoch', s.epoch, 'gauge', 'Number of the write mode, one higher at each switch'),
	('degraded', 0, 'gauge', 'Whether commits have stopped waiting for new'),
	('read_ratio', s.read_ratio, 'gauge', 'Share of sessions whose reads new answers, in percent'),
	('reads_routed', coalesce(rc.routed, 0), 'counter', 'Reads that new answered'),
	('reads_kept', coalesce(rc.kept, 0), 'counter', 'Reads of tables under migration that stayed on old'),
	('read_fallbacks', coalesce(rc.fallbacks, 0), 'counter', 'Reads that old answered because new failed or took too long'),
	('read_timeouts', coalesce(rc.timeouts, 0), 'counter', 'Reads that old answered because new took too long'),
	('read_breaker', (rc.breaker_since IS NOT NULL)::int, 'gauge', 'Whether reads stay on old because new failed too often'),
	('divergences', d.confirmed, 'gauge', 'Open differences between old and new'),
	('divergences_deferred', d.deferred, 'gauge', 'Differences that were still moving when they were looked at'),
	('tables_compare_capped', d.capped, 'gauge', 'Tables with more differences than are kept'),
	('tables_never_compared', d.never, 'gauge', 'Tables that no comparison has gone through'),
	('compare_age_seconds', d.age, 'gauge', 'Time since the table was compared that was not for longest; unknown while one never was')
) AS m (metric, value, type, help)
ORDER BY s.target_id, m.metric;
COMMENT ON VIEW cutover.metrics IS 'figures of each target, by name';

CREATE FUNCTION @extschema@.cutover_metrics() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(string_agg(f.family, '' ORDER BY f.metric), '') || E'# EOF\n'
	FROM (
		SELECT m.metric,
			format(E'# HELP cutover_%1$s %2$s\n# TYPE cutover_%1$s %3$s\n', m.metric, m.help, m.type)
			|| string_agg(format(E'cutover_%s%s{target="%s"} %s\n', m.metric,
				CASE WHEN m.type = 'counter' THEN '_total' ELSE '' END,
				replace(replace(replace(m.target, '\', '\\'), '"', '\"'), E'\n', '\n'), m.value), '' ORDER BY m.target) AS family
		FROM cutover.metrics m
		WHERE m.value IS NOT NULL
		GROUP BY m.metric, m.help, m.type) f
$$;
COMMENT ON FUNCTION @extschema@.cutover_metrics() IS 'any step: cutover.metrics in the OpenMetrics text format';
