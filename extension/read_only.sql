-- read_only.sql: where a whole database moves, new sessions of the side that
-- is not master are read-only, so that clients which look for a server to
-- write to (target_session_attrs=read-write) find the right one.

-- What is put on new for it.  Superusers and the role that we connect as are exempt: they prepare new.
CREATE FUNCTION cutover._new_read_only_script() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $script$ SELECT $new$
CREATE TABLE IF NOT EXISTS cutover.read_only_setting (role name PRIMARY KEY);
COMMENT ON TABLE cutover.read_only_setting IS 'for whom default_transaction_read_only was set in this database; empty name = for all';
CREATE OR REPLACE FUNCTION cutover.set_read_only(read_only boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_db oid := (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
	r record;
BEGIN
	IF NOT read_only THEN
		FOR r IN SELECT s.role FROM cutover.read_only_setting s WHERE s.role = '' OR to_regrole(quote_ident(s.role)) IS NOT NULL LOOP
			EXECUTE CASE WHEN r.role = '' THEN format('ALTER DATABASE %I RESET default_transaction_read_only', current_database())
				ELSE format('ALTER ROLE %I IN DATABASE %I RESET default_transaction_read_only', r.role, current_database()) END;
		END LOOP;
		DELETE FROM cutover.read_only_setting;
	ELSIF NOT EXISTS (SELECT FROM cutover.read_only_setting)
		AND (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_database d WHERE d.oid = v_db)
		AND NOT EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setdatabase = v_db AND s.setrole = 0
			AND s.setconfig::text ~ 'default_transaction_read_only=') THEN
		EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
		INSERT INTO cutover.read_only_setting VALUES ('');
		FOR r IN SELECT o.rolname FROM pg_roles o
			WHERE (o.rolname = current_user OR o.rolsuper AND (SELECT me.rolsuper FROM pg_roles me WHERE me.rolname = current_user))
				AND NOT EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setdatabase = v_db AND s.setrole = o.oid
					AND s.setconfig::text ~ 'default_transaction_read_only=')
		LOOP
			EXECUTE format('ALTER ROLE %I IN DATABASE %I SET default_transaction_read_only = off', r.rolname, current_database());
			INSERT INTO cutover.read_only_setting VALUES (r.rolname);
		END LOOP;
	END IF;
END
$body$;
COMMENT ON FUNCTION cutover.set_read_only(boolean) IS 'makes new sessions of this database read-only, or takes that back';
REVOKE ALL ON FUNCTION cutover.set_read_only(boolean) FROM PUBLIC;
$new$ $script$;
COMMENT ON FUNCTION cutover._new_read_only_script() IS 'what is put on new to make its sessions read-only';

-- Are all tables of new those of this target, and those of old, too?
CREATE FUNCTION cutover._whole_move(target_id int) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT cutover._whole_database(target_id) THEN
		RETURN false;
	END IF;
	RETURN (SELECT (r->>'whole')::boolean FROM cutover._remote(
		(SELECT t.server FROM cutover._target t WHERE t.target_id = _whole_move.target_id), $sql$
		SELECT NOT EXISTS (
			SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'cutover')
				AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
					WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
				AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_to_recordset($1::jsonb) AS t(s text, n text)
					WHERE pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.s, t.n))::oid = c.oid
						OR c.relispartition AND pg_catalog.to_regclass(pg_catalog.format('%I.%I', t.s, t.n)) IN
							(SELECT a.relid FROM pg_catalog.pg_partition_ancestors(c.oid) a))) AS whole$sql$,
		(SELECT jsonb_agg(jsonb_build_object('s', t.new_schema, 'n', t.new_name))::text FROM cutover._table t
			WHERE t.target_id = _whole_move.target_id)) r);
END
$$;
COMMENT ON FUNCTION cutover._whole_move(int) IS 'whether a whole database moves to a database of its own';

-- Before the switch: new sessions of new are read-only where a whole database moves.
CREATE FUNCTION cutover._set_new_read_only(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server name := (SELECT t.server FROM cutover._target t WHERE t.target_id = _set_new_read_only.target_id);
BEGIN
	PERFORM cutover._remote(v_server, cutover._new_read_only_script());
	PERFORM cutover._remote(v_server, 'SELECT cutover.set_read_only($1::boolean)',
		(current_setting('cutover.protect_new')::boolean AND cutover._whole_move(target_id))::text);
END
$$;
COMMENT ON FUNCTION cutover._set_new_read_only(int) IS 'makes new sessions of new read-only where a whole database moves';

-- New sessions of old are read-only, or as before.
CREATE FUNCTION cutover._set_old_read_only(target_id int, read_only boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_is boolean := (SELECT t.old_read_only FROM cutover._target t WHERE t.target_id = _set_old_read_only.target_id);
BEGIN
	IF v_is = read_only OR NOT (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_database d WHERE d.datname = current_database()) THEN
		RETURN;
	END IF;
	EXECUTE format('ALTER DATABASE %I %s', current_database(),
		CASE WHEN read_only THEN 'SET default_transaction_read_only = on' ELSE 'RESET default_transaction_read_only' END);
	UPDATE cutover._target t SET old_read_only = read_only WHERE t.target_id = _set_old_read_only.target_id;
END
$$;
COMMENT ON FUNCTION cutover._set_old_read_only(int, boolean) IS 'makes new sessions of this database read-only, or takes that back';
