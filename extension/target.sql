-- target.sql: the new databases: their address, their queue, our schema there.

CREATE FOREIGN DATA WRAPPER cutover NO HANDLER VALIDATOR cutover._fdw_validator;

-- The target meant by an argument; NULL means the only one.
CREATE FUNCTION cutover._target_id(target name) RETURNS int
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_id int;
	v_names text;
	v_count int;
BEGIN
	IF target IS NOT NULL THEN
		SELECT t.target_id INTO v_id FROM cutover._target t WHERE t.target = _target_id.target;
		IF NOT FOUND THEN
			SELECT string_agg(quote_ident(t.target), ', ' ORDER BY t.target) INTO v_names FROM cutover._target t;
			RAISE EXCEPTION 'target "%" does not exist', target USING ERRCODE = '42704',
				DETAIL = CASE WHEN v_names IS NULL THEN 'There are no targets.' ELSE format('The targets are %s.', v_names) END,
				HINT = 'Add it with cutover_add_target(name, conninfo).';
		END IF;
		RETURN v_id;
	END IF;
	SELECT count(*), min(t.target_id), string_agg(quote_ident(t.target), ', ' ORDER BY t.target)
		INTO v_count, v_id, v_names FROM cutover._target t;
	IF v_count = 0 THEN
		RAISE EXCEPTION 'there is no target' USING ERRCODE = '42704',
			DETAIL = 'Nothing has been set up in this database.',
			HINT = 'Add one with cutover_add_target(name, conninfo).';
	ELSIF v_count > 1 THEN
		RAISE EXCEPTION 'there are several targets' USING ERRCODE = '22023',
			DETAIL = format('The targets are %s.', v_names),
			HINT = 'Name one with target => ''...''.';
	END IF;
	RETURN v_id;
END
$$;

-- Refuses NULL where it is not allowed.
CREATE FUNCTION cutover._not_null(argument text, is_null boolean) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF is_null THEN
		RAISE EXCEPTION 'argument "%" must not be null', argument USING ERRCODE = '22004',
			DETAIL = format('There is no default for "%s".', argument),
			HINT = format('Call it with %s => ....', argument);
	END IF;
END
$$;

-- The queue of a target: three segments, written one after the other.
CREATE FUNCTION cutover._create_queue(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
	v_table text;
BEGIN
	FOR i IN 0..2 LOOP
		v_table := format('cutover._queue_%s_%s', target_id, i);
		EXECUTE format($sql$CREATE TABLE %s (
				xid xid8 NOT NULL, lsn pg_lsn NOT NULL, seq int4 NOT NULL, n int4 NOT NULL, data bytea NOT NULL)
			WITH (fillfactor = 100, toast_tuple_target = 8160, autovacuum_enabled = off, toast.autovacuum_enabled = off)$sql$, v_table);
		EXECUTE format('ALTER TABLE %s ALTER COLUMN data SET STORAGE EXTERNAL', v_table);
		EXECUTE format('CREATE INDEX ON %s (xid)', v_table);
		EXECUTE format('ALTER EXTENSION cutover ADD TABLE %s', v_table);
	END LOOP;
	-- never holds a row: writers lock it, and so does who wants them to wait
	EXECUTE format('CREATE TABLE cutover._fence_%s ()', target_id);
	EXECUTE format('ALTER EXTENSION cutover ADD TABLE cutover._fence_%s', target_id);
END
$$;

-- The fence outlives the rest where writes go on being refused.
CREATE FUNCTION cutover._drop_queue(target_id int, keep_fence boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
	v_table text;
BEGIN
	FOREACH v_table IN ARRAY ARRAY(SELECT format('cutover._queue_%s_%s', target_id, i) FROM generate_series(0, 2) i)
		|| CASE WHEN keep_fence THEN '{}' ELSE ARRAY[format('cutover._fence_%s', target_id)] END
	LOOP
		CONTINUE WHEN to_regclass(v_table) IS NULL;
		EXECUTE format('ALTER EXTENSION cutover DROP TABLE %s', v_table);
		EXECUTE format('DROP TABLE %s', v_table);
	END LOOP;
END
$$;

-- Facts on the database that a server leads to.  The lock that is held here
-- can't be had there if it is this very database.
CREATE FUNCTION cutover._probe_new(server name) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_key bigint := (random() * 9e18)::bigint;
	v_result jsonb;
BEGIN
	PERFORM pg_advisory_xact_lock(v_key);
	SELECT r INTO v_result FROM cutover._remote(server, $sql$
		SELECT pg_catalog.pg_try_advisory_xact_lock($1::bigint) AS elsewhere,
			pg_catalog.pg_is_in_recovery() AS standby,
			pg_catalog.current_database() AS database,
			pg_catalog.current_setting('server_version_num')::int AS version,
			pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create,
			current_user AS role,
			extract(epoch FROM pg_catalog.pg_postmaster_start_time()) AS started,
			EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'cutover') AS has_schema,
			pg_catalog.to_regclass('cutover.migration') IS NOT NULL AS has_migration
		$sql$, v_key::text) r;
	RETURN v_result || jsonb_build_object('migration', CASE WHEN (v_result->>'has_migration')::boolean THEN
		(SELECT r FROM cutover._remote(server, 'SELECT migration_id, target, old_database FROM cutover.migration') r) END);
END
$$;

-- What makes a database unfit to be new, whoever's it is.
CREATE FUNCTION cutover._check_new(target name, probe jsonb) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF NOT (probe->>'elsewhere')::boolean THEN
		RAISE EXCEPTION 'target "%" leads to this database', target USING ERRCODE = '22023',
			DETAIL = format('Database "%s" cannot be moved to itself.', current_database()),
			HINT = 'Give the address of the new database.';
	ELSIF (probe->>'standby')::boolean THEN
		RAISE EXCEPTION 'target "%" leads to a standby', target USING ERRCODE = '55000',
			DETAIL = format('The server of database "%s" is in recovery and cannot be written to.', probe->>'database'),
			HINT = 'Give the address of the primary, or add target_session_attrs=read-write to a list of hosts.';
	ELSIF (probe->>'version')::int < 130000 THEN
		RAISE EXCEPTION 'target "%" runs PostgreSQL %', target, (probe->>'version')::int / 10000 USING ERRCODE = '0A000',
			DETAIL = 'The new server must be at least PostgreSQL 13.',
			HINT = 'Move to a supported version.';
	ELSIF (probe->>'started')::numeric = extract(epoch FROM pg_postmaster_start_time())
		AND NOT coalesce(pg_has_role(cutover._caller(), to_regrole(quote_ident(probe->>'role'))::oid, 'MEMBER'), false) THEN
		-- the server lets itself in without a password, perhaps; that must lend nobody the rights of another
		RAISE EXCEPTION 'permission denied to act as role "%" of this server', probe->>'role' USING ERRCODE = '42501',
			DETAIL = format('Target "%s" leads to another database of this server, under a role that the caller is not a member of.', target),
			HINT = 'Connect as a role that the caller is a member of, or have a superuser make the call.';
	END IF;
END
$$;

-- Puts an address into the options of a server and of its user mapping.
CREATE FUNCTION cutover._write_address(server name, conninfo text, is_new boolean) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server text;
	v_mapping text;
	v_detail text;
	v_hint text;
BEGIN
	SELECT string_agg(format('%I %L', keyword, value), ', ' ORDER BY keyword) FILTER (WHERE NOT in_mapping),
		string_agg(format('%I %L', keyword, value), ', ' ORDER BY keyword) FILTER (WHERE in_mapping)
		INTO v_server, v_mapping FROM cutover._parse_conninfo(conninfo);
	IF is_new THEN
		EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER cutover', server)
			|| CASE WHEN v_server IS NULL THEN '' ELSE format(' OPTIONS (%s)', v_server) END;
		EXECUTE format('ALTER EXTENSION cutover ADD SERVER %I', server);
	ELSE
		-- a mapping is replaced as a whole; so is a server's list of options
		EXECUTE format('DROP USER MAPPING IF EXISTS FOR CURRENT_USER SERVER %I', server);
		SELECT concat_ws(', ',
			(SELECT string_agg(format('DROP %I', o.option_name), ', ')
				FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o
				WHERE s.srvname = server AND NOT EXISTS (SELECT FROM cutover._parse_conninfo(conninfo) c
					WHERE c.keyword = o.option_name AND NOT c.in_mapping)),
			(SELECT string_agg(format('%s %I %L', CASE WHEN o.option_name IS NULL THEN 'ADD' ELSE 'SET' END, c.keyword, c.value), ', ')
				FROM cutover._parse_conninfo(conninfo) c
				LEFT JOIN (pg_foreign_server s CROSS JOIN LATERAL pg_options_to_table(s.srvoptions) o)
					ON s.srvname = server AND o.option_name = c.keyword
				WHERE NOT c.in_mapping)) INTO v_server;
		IF v_server <> '' THEN
			EXECUTE format('ALTER SERVER %I OPTIONS (%s)', server, v_server);
		END IF;
	END IF;
	EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER %I', server)
		|| CASE WHEN v_mapping IS NULL THEN '' ELSE format(' OPTIONS (%s)', v_mapping) END;
EXCEPTION WHEN OTHERS THEN
	-- the context of the error would show the statement, and a password in it
	GET STACKED DIAGNOSTICS v_detail = PG_EXCEPTION_DETAIL, v_hint = PG_EXCEPTION_HINT;
	RAISE EXCEPTION '%', SQLERRM USING ERRCODE = SQLSTATE,
		DETAIL = coalesce(nullif(v_detail, ''), 'The address could not be stored.'),
		HINT = coalesce(nullif(v_hint, ''), 'Give a libpq connection string, such as ''host=... dbname=... user=...''.');
END
$$;

-- Refuses a name or address that says nothing.
CREATE FUNCTION cutover._check_target_arguments(name name, conninfo text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._not_null('name', name IS NULL);
	PERFORM cutover._not_null('conninfo', conninfo IS NULL);
	IF name = '' THEN
		RAISE EXCEPTION 'the name of a target must not be empty' USING ERRCODE = '22023',
			DETAIL = 'It names the new database in all other calls.',
			HINT = 'Give it a short name, such as ''new''.';
	ELSIF octet_length(name::text) > 50 THEN
		RAISE EXCEPTION 'the name of target "%" is too long', name USING ERRCODE = '22023',
			DETAIL = 'It may have 50 bytes.',
			HINT = 'Give it a short name, such as ''new''.';
	ELSIF btrim(conninfo) = '' THEN
		RAISE EXCEPTION 'the address of target "%" must not be empty', name USING ERRCODE = '22023',
			DETAIL = 'An empty connection string leads to where the server''s environment happens to point.',
			HINT = 'Give a libpq connection string, such as ''host=... dbname=... user=...''.';
	END IF;
END
$$;

CREATE FUNCTION @extschema@.cutover_add_target(name name, conninfo text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server name;
	v_probe jsonb;
	v_id int;
	v_migration uuid := gen_random_uuid();
	v_system bigint := (SELECT system_identifier FROM pg_control_system());
BEGIN
	PERFORM cutover._need_writable('cutover_add_target');
	PERFORM cutover._check_target_arguments(name, conninfo);
	v_server := 'cutover_' || name;
	IF EXISTS (SELECT FROM cutover._target t WHERE t.target = cutover_add_target.name) THEN
		RAISE EXCEPTION 'target "%" already exists', name USING ERRCODE = '42710',
			DETAIL = 'Each new database has a name of its own.',
			HINT = 'Change its address with cutover_set_target(name, conninfo), or choose another name.';
	END IF;
	PERFORM cutover._write_address(v_server, conninfo, true);
	v_probe := cutover._probe_new(v_server);
	PERFORM cutover._check_new(name, v_probe);
	IF (v_probe->>'has_migration')::boolean THEN
		RAISE EXCEPTION 'database "%" is already owned by another migration', v_probe->>'database' USING ERRCODE = '55006',
			DETAIL = format('It is target "%s" of database "%s".', v_probe->'migration'->>'target', v_probe->'migration'->>'old_database'),
			HINT = 'Cancel that migration where it was started, or run SELECT cutover.abandon() in the new database.';
	ELSIF (v_probe->>'has_schema')::boolean THEN
		RAISE EXCEPTION 'database "%" has a schema "cutover" already', v_probe->>'database' USING ERRCODE = '55006',
			DETAIL = 'We keep progress there under that name, and this schema is not from a migration.',
			HINT = 'If it is a copy of a database with this extension, run DROP EXTENSION cutover CASCADE in it; else rename the schema.';
	ELSIF NOT (v_probe->>'may_create')::boolean THEN
		RAISE EXCEPTION 'role "%" may not create schema "cutover" in database "%"', v_probe->>'role', v_probe->>'database'
			USING ERRCODE = '42501',
			DETAIL = 'We keep progress there, in the same transaction as the rows.',
			HINT = format('Run on new: GRANT CREATE ON DATABASE %I TO %I.', v_probe->>'database', v_probe->>'role');
	END IF;
	INSERT INTO cutover._target (target, server, migration_id, system_identifier)
	VALUES (name, v_server, v_migration, v_system) RETURNING _target.target_id INTO v_id;
	PERFORM cutover._create_queue(v_id);
	PERFORM cutover._remote(v_server, cutover._new_side_script());
	PERFORM cutover._remote(v_server, 'INSERT INTO cutover.migration (migration_id, target, old_system_identifier, old_database)
		VALUES ($1::uuid, $2, $3::bigint, $4)', v_migration::text, name::text, v_system::text, current_database()::text);
	PERFORM cutover._log_event('add_target', jsonb_build_object('database', v_probe->>'database', 'version', (v_probe->>'version')::int), v_id);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_add_target(name, text) IS
'Set up: names a new database to move to, stores its address, connects and creates schema cutover there';

CREATE FUNCTION @extschema@.cutover_set_target(name name, conninfo text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_probe jsonb;
BEGIN
	PERFORM cutover._need_writable('cutover_set_target');
	PERFORM cutover._check_target_arguments(name, conninfo);
	SELECT * INTO v_target FROM cutover._target t WHERE t.target_id = cutover._target_id(name) FOR UPDATE;
	PERFORM cutover._write_address(v_target.server, conninfo, false);
	v_probe := cutover._probe_new(v_target.server);
	PERFORM cutover._check_new(name, v_probe);
	IF NOT (v_probe->>'has_migration')::boolean THEN
		RAISE EXCEPTION 'database "%" is not the one that target "%" was set up with', v_probe->>'database', name USING ERRCODE = '55000',
			DETAIL = 'It holds no progress of this migration.',
			HINT = 'For another new database drop the target and add it again.';
	ELSIF (v_probe->'migration'->>'migration_id')::uuid <> v_target.migration_id THEN
		RAISE EXCEPTION 'database "%" is owned by another migration', v_probe->>'database' USING ERRCODE = '55006',
			DETAIL = format('It is target "%s" of database "%s".', v_probe->'migration'->>'target', v_probe->'migration'->>'old_database'),
			HINT = 'Give the address of the database that this target was set up with.';
	END IF;
	-- workers connect again when the row changes
	UPDATE cutover._target t SET server = t.server WHERE t.target_id = v_target.target_id;
	PERFORM cutover._log_event('set_target', jsonb_build_object('database', v_probe->>'database'), v_target.target_id);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_target(name, text) IS
'Set up: gives a target a new address or password, checked, while everything runs';

CREATE FUNCTION @extschema@.cutover_add_shard(target name, shard name, conninfo text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._not_null('target', target IS NULL);
	PERFORM cutover._not_null('shard', shard IS NULL);
	PERFORM cutover._not_null('conninfo', conninfo IS NULL);
	RAISE EXCEPTION 'targets of several databases are not supported yet' USING ERRCODE = '0A000',
		DETAIL = format('Shard "%s" cannot be added to target "%s".', shard, target),
		HINT = 'Give each new database a target of its own.';
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_add_shard(name, name, text) IS
'Set up: adds a further database to a sharded target (not supported yet)';

-- Whose new is: ours, held (another instance of this server is at work there),
-- foreign (no schema of ours), copy (we are a copy of old: none of our business).
-- Raises if it can't be reached.
CREATE FUNCTION cutover._owner_of_new(target_id int) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_there jsonb;
BEGIN
	SELECT * INTO STRICT v_target FROM cutover._target t WHERE t.target_id = _owner_of_new.target_id;
	IF v_target.system_identifier <> (SELECT system_identifier FROM pg_control_system()) THEN
		RETURN 'copy';
	END IF;
	SELECT r INTO v_there FROM cutover._remote(v_target.server,
		'SELECT pg_catalog.to_regclass(''cutover.migration'') IS NOT NULL AS there') r;
	IF NOT (v_there->>'there')::boolean THEN
		RETURN 'foreign';
	END IF;
	SELECT r INTO v_there FROM cutover._remote(v_target.server,
		'SELECT instance IS NOT NULL AND instance <> $2 AND lease_until > pg_catalog.clock_timestamp() AS held
		FROM cutover.migration WHERE migration_id = $1::uuid', v_target.migration_id::text, cutover._instance()) r;
	RETURN CASE WHEN v_there IS NULL THEN 'foreign' WHEN (v_there->>'held')::boolean THEN 'held' ELSE 'ours' END;
END
$$;

-- This running server, as leases name it.
CREATE FUNCTION cutover._instance() RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cutover_instance';

-- Refuses to work on new while another instance does.
CREATE FUNCTION cutover._check_owner_of_new(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_owner text := cutover._owner_of_new(target_id);
BEGIN
	IF v_owner = 'held' THEN
		RAISE EXCEPTION 'another instance of this server is at work on new' USING ERRCODE = '55006',
			DETAIL = 'It holds a lease there and renews it.',
			HINT = 'After a restart or fail-over wait for cutover.lease_time. If this server is a copy, run DROP EXTENSION cutover CASCADE here.';
	ELSIF v_owner = 'foreign' THEN
		RAISE EXCEPTION 'new is not under this migration any more' USING ERRCODE = '55000',
			DETAIL = 'It holds no progress of it.',
			HINT = 'Give the migration up here with cutover_cancel().';
	END IF;
END
$$;

-- Takes our schema off new, if it is ours.  Where new can't be reached, says what stays there.
CREATE FUNCTION cutover._drop_new_side(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_owner text;
	v_failed jsonb;
BEGIN
	SELECT * INTO STRICT v_target FROM cutover._target t WHERE t.target_id = _drop_new_side.target_id;
	BEGIN
		v_owner := cutover._owner_of_new(target_id);
		IF v_owner = 'copy' THEN
			RAISE NOTICE 'new is left alone' USING
				DETAIL = 'This server is a copy of the one that works on it.';
		END IF;
		IF v_owner IN ('copy', 'foreign') THEN
			RETURN;
		END IF;
		PERFORM cutover._check_owner_of_new(target_id);
		FOR v_failed IN SELECT r FROM cutover._remote_long(v_target.server, 'SELECT * FROM cutover.restore_deferred()') r LOOP
			RAISE WARNING '"%" of % could not be brought back on new', v_failed->>'name', v_failed->>'relation'
				USING DETAIL = v_failed->>'message', HINT = format('Mend the rows and run on new: %s', v_failed->>'definition');
		END LOOP;
		IF (SELECT r->>'there' FROM cutover._remote(v_target.server,
			'SELECT pg_catalog.to_regprocedure(''cutover.set_read_only(boolean)'') IS NOT NULL AS there') r)::boolean THEN
			PERFORM cutover._remote(v_target.server, 'SELECT cutover.set_read_only(false)');
		END IF;
		PERFORM cutover._remote(v_target.server, 'DROP SCHEMA cutover CASCADE');
	EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection OR connection_failure OR connection_exception THEN
		RAISE WARNING 'new cannot be reached: schema "cutover" stays there' USING
			DETAIL = format('Target "%s" is gone here; what was taken off its tables is in cutover.deferred there.', v_target.target),
			HINT = 'Run there, once it is back: SELECT cutover.abandon().';
	END;
END
$$;

-- Removes the rows, queue and address of a target.
CREATE FUNCTION cutover._forget_target_rows(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
	v_server name;
BEGIN
	SELECT t.server INTO STRICT v_server FROM cutover._target t WHERE t.target_id = _forget_target_rows.target_id;
	PERFORM cutover._disable_router(target_id);
	PERFORM cutover._drop_queue(target_id);
	-- of tables removed before, nobody knows whose they were
	DELETE FROM cutover._layout l WHERE l.table_id IN (SELECT t.table_id FROM cutover._table t WHERE t.target_id = _forget_target_rows.target_id)
		OR NOT EXISTS (SELECT FROM cutover._target t WHERE t.target_id <> _forget_target_rows.target_id);
	DELETE FROM cutover._apply_error e WHERE e.target_id = _forget_target_rows.target_id;
	DELETE FROM cutover._marker m WHERE m.target_id = _forget_target_rows.target_id;
	DELETE FROM cutover._table t WHERE t.target_id = _forget_target_rows.target_id;
	DELETE FROM cutover._target t WHERE t.target_id = _forget_target_rows.target_id;
	EXECUTE format('ALTER EXTENSION cutover DROP SERVER %I', v_server);
	EXECUTE format('DROP SERVER %I CASCADE', v_server);
END
$$;

CREATE FUNCTION @extschema@.cutover_drop_target(name name) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
BEGIN
	PERFORM cutover._need_writable('cutover_drop_target');
	PERFORM cutover._not_null('name', name IS NULL);
	SELECT * INTO v_target FROM cutover._target t WHERE t.target_id = cutover._target_id(name) FOR UPDATE;
	IF v_target.desired IN ('running', 'paused') OR v_target.started_at IS NOT NULL AND v_target.desired = 'idle' THEN
		RAISE EXCEPTION 'target "%" is in use', name USING ERRCODE = '55006',
			DETAIL = 'Its tables are under migration: changes of them are captured.',
			HINT = 'Give the migration up with cutover_cancel(), or complete it with cutover_finish().';
	ELSIF v_target.desired = 'finished' THEN
		RAISE EXCEPTION 'target "%" is finished', name USING ERRCODE = '55000',
			DETAIL = 'Its row is what makes old''s tables refuse writes.',
			HINT = 'When old is not needed any more, DROP EXTENSION cutover CASCADE takes everything away.';
	END IF;
	PERFORM cutover._log_event('drop_target', '{}', v_target.target_id);
	PERFORM cutover._drop_new_side(v_target.target_id);
	PERFORM cutover._forget_target_rows(v_target.target_id);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_drop_target(name) IS
'Set up: forgets a target with nothing running on it, and removes schema cutover from that database';

CREATE FUNCTION @extschema@.cutover_grant_script(role_name name, target name DEFAULT NULL) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_probe jsonb;
	v_lines text[];
	v_tables text;
BEGIN
	PERFORM cutover._not_null('role_name', role_name IS NULL);
	SELECT * INTO v_target FROM cutover._target t WHERE t.target_id = cutover._target_id(cutover_grant_script.target);
	v_probe := cutover._probe_new(v_target.server);
	v_lines := ARRAY[
		format('-- run in database %I of target %I, as owner of the tables', v_probe->>'database', v_target.target),
		format('GRANT CONNECT, CREATE ON DATABASE %I TO %I;', v_probe->>'database', role_name)];
	IF NOT EXISTS (SELECT FROM cutover._table t WHERE t.target_id = v_target.target_id) THEN
		v_lines := v_lines || '-- no tables are under migration yet: call again when they are'::text;
	END IF;
	v_lines := v_lines || ARRAY(SELECT format('GRANT USAGE ON SCHEMA %I TO %I;', t.new_schema, role_name)
		FROM cutover._table t WHERE t.target_id = v_target.target_id GROUP BY t.new_schema ORDER BY t.new_schema);
	v_lines := v_lines || ARRAY(SELECT format('GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE %I.%I TO %I;', t.new_schema, t.new_name, role_name)
		FROM cutover._table t WHERE t.target_id = v_target.target_id ORDER BY t.new_schema, t.new_name);
	SELECT string_agg(format('(%L::text,%L::text)', t.new_schema, t.new_name), ',') INTO v_tables
		FROM cutover._table t WHERE t.target_id = v_target.target_id;
	IF v_tables IS NOT NULL THEN
		v_lines := v_lines || ARRAY(SELECT format('GRANT SELECT, UPDATE, USAGE ON SEQUENCE %I.%I TO %I;', r->>'schema', r->>'name', role_name)
			FROM cutover._remote(v_target.server, format($sql$
				SELECT DISTINCT sn.nspname AS schema, s.relname AS name
				FROM (VALUES %s) v(schema_name, table_name)
				JOIN pg_catalog.pg_namespace n ON n.nspname = v.schema_name
				JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = v.table_name
				JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')
				JOIN pg_catalog.pg_class s ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND s.oid = d.objid AND s.relkind = 'S'
				JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace ORDER BY 1, 2$sql$, v_tables)) r);
	END IF;
	v_lines := v_lines || ARRAY[
		'-- Optional. Owning the tables lets us take indexes and foreign keys off while they are filled (a faster copy):',
		format('-- GRANT owner_of_the_tables TO %I;', role_name)];
	IF (v_probe->>'version')::int >= 150000 THEN
		v_lines := v_lines || ARRAY[
			'-- Optional. So that triggers and foreign keys of new do not fire for rows that old has checked already:',
			format('-- GRANT SET ON PARAMETER session_replication_role TO %I;', role_name)];
	END IF;
	RETURN array_to_string(v_lines, E'\n') || E'\n';
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_grant_script(name, name) IS
'Set up: the GRANTs on new that the connecting role needs, and no more';
