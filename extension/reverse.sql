-- reverse.sql: what old does so that new is guarded, and so that old can follow new.

-- The columns of new that tell rows of a table apart, in the order of old's key: where each column of the key goes as
-- it is, or by a cast that can be turned back.  Empty: there is no key, or its way back leads through expressions.
CREATE FUNCTION cutover._new_key(table_id int) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN bool_and(k.name IS NOT NULL) THEN array_agg(k.name::text ORDER BY k.i) ELSE '{}' END
	FROM (
		SELECT u.i, CASE WHEN t.default_columns THEN a.attname ELSE (
			SELECT c.new_column FROM cutover._column c WHERE c.table_id = t.table_id AND c.attnum = u.attnum ORDER BY c.new_column LIMIT 1) END AS name
		FROM cutover._table t CROSS JOIN LATERAL unnest(t.key_attnums) WITH ORDINALITY u (attnum, i)
		LEFT JOIN pg_attribute a ON a.attrelid = t.old_table AND a.attnum = u.attnum
		WHERE t.table_id = $1) k
$$;
COMMENT ON FUNCTION cutover._new_key(int) IS 'the columns of new that stand for the key of a table';

-- Guards the tables of new, or one of them, that are there by now.  Where we may not, preflight has said so.
CREATE FUNCTION cutover._install_new_guard(target_id int, only_table int DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	t record;
BEGIN
	SELECT x.* INTO STRICT v_target FROM cutover._target x WHERE x.target_id = _install_new_guard.target_id;
	PERFORM cutover._remote(v_target.server, format('SET LOCAL lock_timeout = %s', extract(epoch FROM current_setting('cutover.lock_timeout')::interval) * 1000));
	PERFORM cutover._remote(v_target.server, 'UPDATE cutover.migration SET protect = $1::boolean WHERE protect <> $1::boolean',
		current_setting('cutover.protect_new'));
	FOR t IN SELECT b.table_id, format('%I.%I', b.new_schema, b.new_name) AS relation, cutover._new_key(b.table_id) AS keys
		FROM cutover._table b WHERE b.target_id = v_target.target_id AND (only_table IS NULL OR b.table_id = only_table) ORDER BY b.table_id
	LOOP
		PERFORM cutover._remote(v_target.server, 'SELECT cutover.install_guard($1::int, $2, $3::text[])',
			t.table_id::text, t.relation, coalesce(t.keys, '{}')::text);
	END LOOP;
	PERFORM cutover._remote(v_target.server, 'SET LOCAL lock_timeout = 0');
END
$$;
COMMENT ON FUNCTION cutover._install_new_guard(int, int) IS 'has new refuse writes of others to the tables under migration, as long as old is master';

CREATE FUNCTION cutover._install_reverse(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	UPDATE cutover._table t SET reverse_closed = 'reverse replication is not built yet' WHERE t.target_id = $1;
END
$$;

CREATE FUNCTION cutover._remove_reverse(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
END
$$;
