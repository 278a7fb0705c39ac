-- reverse_stub.sql: what old calls to have new guarded and followed; stands in until that is built.

ALTER FUNCTION cutover._new_side_script() RENAME TO _new_side_script_base;
CREATE FUNCTION cutover._new_side_script() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT cutover._new_side_script_base() || $new$;
		ALTER TABLE cutover.migration ADD COLUMN master text NOT NULL DEFAULT 'old', ADD COLUMN master_since timestamptz;
		CREATE TABLE cutover.fence ()$new$
$$;

CREATE FUNCTION cutover._install_new_guard(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
END
$$;

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
