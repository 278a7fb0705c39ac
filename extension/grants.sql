-- grants.sql: who may what.  Last part of the script: it sees every object of ours.

-- Nothing for PUBLIC; public functions for cutover_admin.
DO $$
DECLARE
	f record;
BEGIN
	FOR f IN
		SELECT p.oid::pg_catalog.regprocedure AS signature, p.proname, n.nspname
		FROM pg_catalog.pg_proc p
		JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
		JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
			AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'
		JOIN pg_catalog.pg_extension e ON d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
			AND d.refobjid OPERATOR(pg_catalog.=) e.oid AND e.extname OPERATOR(pg_catalog.=) 'cutover'
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f.signature);
		IF f.nspname OPERATOR(pg_catalog.<>) 'cutover' AND f.proname OPERATOR(pg_catalog.~~) 'cutover\_%' THEN
			EXECUTE pg_catalog.format('GRANT EXECUTE ON ROUTINE %s TO cutover_admin', f.signature);
		END IF;
	END LOOP;
END
$$;

-- Functions in views run with the rights of whoever reads the view.
GRANT EXECUTE ON FUNCTION
	cutover._may_read(oid, oid),
	cutover._worker_stats(),
	cutover._queued_changes(int),
	cutover._queue_bytes(int),
	cutover._blocked_by(int),
	cutover._is_this_cluster(bigint),
	cutover._capture_enabled(int),
	cutover._open_writers(int, interval),
	cutover._sessions(),
	cutover._clients(),
	cutover._clients_default(),
	cutover._reads_from(int, int, timestamptz, oid, text, inet),
	cutover._read_counters(int),
	cutover._unseen_replicator(),
	cutover._table_name(oid),
	cutover._bar(numeric),
	cutover._degraded(int),
	cutover._shadow_percentile(bigint[], float8),
	cutover._shadow_lost(int)
TO cutover_admin, pg_monitor;
GRANT EXECUTE ON FUNCTION @extschema@.cutover_metrics() TO pg_monitor;

GRANT SELECT ON
	cutover.status, cutover.tables, cutover.progress, cutover.replication, cutover.divergence,
	cutover.divergence_summary, cutover.compare_history, cutover.compare_schedule, cutover.dual_write_failure, cutover.apply_error,
	cutover.sessions, cutover.shadow_read, cutover.shadow_mismatch, cutover.shadow_skipped, cutover.read_stats, cutover.ramp,
	cutover.guard, cutover.rule, cutover.mode_change, cutover.event, cutover.metrics
TO cutover_admin, pg_monitor;

REVOKE ALL ON TYPE cutover.compare_result FROM PUBLIC;
GRANT USAGE ON TYPE cutover.compare_result TO cutover_admin, pg_monitor;

-- Whoever owns a partitioned table may make partitions of it, to which the server copies our trigger in his name.
GRANT EXECUTE ON FUNCTION cutover._capture(), cutover._fence() TO PUBLIC;
