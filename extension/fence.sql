-- fence.sql: the fence between old and new.  Writers of a target share a lock on cutover._fence_<target_id>
-- to the end of their transaction; a switch takes it for itself.

CREATE FUNCTION cutover._fence() RETURNS trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_fence_trigger';

-- One attempt to close the gate, as a lock of the session.  False = gave way: to the time-out, or to a deadlock.
CREATE FUNCTION cutover._fence_lock(target_id int, timeout_ms int) RETURNS boolean
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_fence_lock';

-- Opens it; does nothing if this session didn't close it.
CREATE FUNCTION cutover._fence_unlock(target_id int) RETURNS void
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_fence_unlock';

-- Does this session keep it closed?  To be asked before what can't be undone: an aborted transaction opens it.
CREATE FUNCTION cutover._fence_held(target_id int) RETURNS boolean
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_fence_held';

-- Transactions that have written to tables of the target and not ended yet: sessions, or (gid) prepared ones.
CREATE FUNCTION cutover._fence_blockers(target_id int)
	RETURNS TABLE (pid int, usename name, application_name text, age interval, query text, gid text)
	LANGUAGE sql VOLATILE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
	WITH locks AS MATERIALIZED (
		SELECT * FROM pg_locks
	)
	SELECT l.pid, coalesce(a.usename, x.owner), a.application_name,
		clock_timestamp() - coalesce(a.xact_start, x.prepared), a.query, x.gid
	FROM locks l
	LEFT JOIN pg_stat_activity a ON a.pid = l.pid
	-- locks of a prepared transaction belong to no process; that on its own number says which it is
	LEFT JOIN pg_prepared_xacts x ON l.pid IS NULL AND EXISTS (
		SELECT FROM locks o WHERE o.pid IS NULL AND o.locktype = 'transactionid'
			AND o.virtualtransaction = l.virtualtransaction AND o.transactionid = x.transaction)
	WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'RowExclusiveLock'
		AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
		AND l.relation = to_regclass(format('cutover._fence_%s', $1))
		AND l.pid IS DISTINCT FROM pg_backend_pid()
	ORDER BY 4 DESC, 1
$$;
