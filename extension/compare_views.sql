-- compare_views.sql: what differs, and what was compared.
--
-- As in monitor.sql: tables are read with the rights of the extension's owner,
-- and what may hold row values is shown if the reader may read the table.

CREATE VIEW cutover.divergence AS
SELECT t.target, b.old_table::regclass AS table_name,
	-- where there is no key, it is the row
	CASE WHEN b.key_attnums <> '{}' OR r.readable THEN d.key END AS key,
	d.kind, d.columns,
	CASE WHEN r.readable THEN d.old_row END AS old_row,
	CASE WHEN r.readable THEN d.new_row END AS new_row,
	d.first_seen, d.last_seen, d.times_seen, d.state, d.copies, d.run
FROM cutover._divergence d
JOIN cutover._table b USING (table_id)
JOIN cutover._target t ON t.target_id = d.target_id
CROSS JOIN LATERAL (SELECT cutover._may_read(quote_ident(current_user)::regrole::oid, b.old_table)) r (readable)
ORDER BY d.divergence_id;
COMMENT ON VIEW cutover.divergence IS 'open differences between old and new';

-- Counts of open differences; capped: the last comparison found more than it
-- kept, so that the counts are a lower bound until the next one.
CREATE VIEW cutover.divergence_summary AS
SELECT t.target, b.old_table::regclass AS table_name,
	d.missing, d.extra, d.different, d.representation, d.deferred,
	coalesce(l.rows, 0) AS rows_compared,
	b.last_compared_at, b.clean_passes,
	coalesce(l.capped, false) AS capped
FROM cutover._table b
JOIN cutover._target t USING (target_id)
CROSS JOIN LATERAL (
	SELECT count(*) FILTER (WHERE kind = 'missing' AND state <> 'deferred') AS missing,
		count(*) FILTER (WHERE kind = 'extra' AND state <> 'deferred') AS extra,
		count(*) FILTER (WHERE kind = 'different' AND state <> 'deferred') AS different,
		count(*) FILTER (WHERE kind = 'representation' AND state <> 'deferred') AS representation,
		count(*) FILTER (WHERE state = 'deferred') AS deferred
	FROM cutover._divergence WHERE table_id = b.table_id) d
LEFT JOIN LATERAL (
	SELECT sum(c.rows)::bigint AS rows, bool_or(c.capped) AS capped
	FROM cutover._compare_result c
	WHERE c.table_id = b.table_id
		AND c.run = (SELECT max(x.run) FROM cutover._compare_result x
			WHERE x.table_id = b.table_id AND x.complete AND x.method <> 'known')) l ON true
ORDER BY t.target_id, b.table_id;
COMMENT ON VIEW cutover.divergence_summary IS 'open differences of each table, counted by kind';

CREATE VIEW cutover.compare_history AS
SELECT c.run, t.target, b.old_table::regclass AS table_name, r.method, r.since, r.until, r.rows, r.missing, r.extra, r.different,
	r.representation, r.deferred, r.duration, r.started_at, r.complete, r.capped, r.chunks_done, r.chunks_total,
	c.state, c.actor, c.ended_at, r.waiting_for,
	-- an error belongs to the run: shown to those who may read all it was about
	CASE WHEN c.error IS NULL THEN NULL
		WHEN NOT EXISTS (SELECT FROM cutover._table x WHERE x.target_id = c.target_id
			AND NOT cutover._may_read(quote_ident(current_user)::regrole::oid, x.old_table)) THEN c.error
		ELSE 'shown to those who may read the tables of the target' END AS error
FROM cutover._compare_run c
JOIN cutover._target t USING (target_id)
LEFT JOIN cutover._compare_result r USING (run)
LEFT JOIN cutover._table b USING (table_id)
-- a repair looks again, too
WHERE c.method <> 'known'
ORDER BY c.run, b.table_id, r.method;
COMMENT ON VIEW cutover.compare_history IS 'every compare run, a row for each table and method';

CREATE VIEW cutover.compare_schedule AS
SELECT t.target, s.every, s.method, s.compensate, s.actor, s.scheduled_at,
	s.running AND EXISTS (SELECT FROM pg_stat_get_activity(s.pid)) AS running, s.next_at, s.started_at, s.ended_at, s.passes,
	CASE WHEN t.desired = 'idle' THEN 'cutover_start(): the target is idle'
		WHEN t.desired <> 'running' THEN 'cutover_resume(): the target is ' || t.desired
		WHEN s.running THEN (SELECT string_agg(DISTINCT r.waiting_for, '; ') FROM cutover._compare_result r
			JOIN cutover._compare_run c USING (run) WHERE c.target_id = s.target_id AND c.state = 'running' AND NOT r.complete)
		ELSE s.waiting_for END AS waiting_for,
	s.failures,
	CASE WHEN NOT EXISTS (SELECT FROM cutover._table x WHERE x.target_id = s.target_id
			AND NOT cutover._may_read(quote_ident(current_user)::regrole::oid, x.old_table)) THEN s.last_error
		WHEN s.last_error IS NOT NULL THEN 'shown to those who may read the tables of the target' END AS last_error,
	s.last_error_at, s.pid
FROM cutover._compare_schedule s
JOIN cutover._target t USING (target_id)
ORDER BY s.target_id;
COMMENT ON VIEW cutover.compare_schedule IS 'what is compared in the background, and why the next pass waits';
