-- read.sql: which sessions' reads new answers.  How it is decided: policy.c.

-- Who reads from where, whatever the ratio.  A condition that is NULL holds for
-- everybody; all have to hold.
CREATE TABLE cutover._rule (
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	rule name NOT NULL,
	read_from text NOT NULL CHECK (read_from IN ('old', 'new')),
	application text,
	role oid,
	client inet,
	tables oid[],								-- of cutover._table.old_table
	PRIMARY KEY (target_id, rule)
);
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON cutover._rule
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._invalidate();
ALTER TABLE cutover._rule ENABLE ALWAYS TRIGGER invalidate;

-- A table of which new has rejected a row is read from old.  Backends need to
-- know whether there is such a row, not how many.
CREATE INDEX ON cutover._apply_error (table_id);
CREATE FUNCTION cutover._note_rejected() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF EXISTS (
		SELECT FROM changed c
		WHERE NOT EXISTS (
			SELECT FROM cutover._apply_error e
			WHERE e.target_id = c.target_id AND e.table_id IS NOT DISTINCT FROM c.table_id
				AND (TG_OP = 'DELETE' OR e.error_id NOT IN (SELECT error_id FROM changed)))) THEN
		-- changes nothing, but its trigger fires
		UPDATE cutover._rule SET rule = rule WHERE false;
	END IF;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION cutover._note_rejected() IS 'tells all backends when a table gets its first rejected row, or loses the last';
CREATE TRIGGER rejected AFTER INSERT ON cutover._apply_error REFERENCING NEW TABLE AS changed
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._note_rejected();
CREATE TRIGGER accepted AFTER DELETE ON cutover._apply_error REFERENCING OLD TABLE AS changed
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._note_rejected();
ALTER TABLE cutover._apply_error ENABLE ALWAYS TRIGGER rejected;
ALTER TABLE cutover._apply_error ENABLE ALWAYS TRIGGER accepted;

-- The library in this database's sessions.

CREATE FUNCTION cutover._clients()
RETURNS TABLE (pid int, target_id int, epoch bigint, writes bigint)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'cutover_clients';
COMMENT ON FUNCTION cutover._clients() IS 'backends of this server that have the library, and what they wrote';

CREATE FUNCTION cutover._clients_default() RETURNS boolean
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'cutover_clients_default';
COMMENT ON FUNCTION cutover._clients_default() IS 'whether a backend that is not among _clients() has the library; NULL if nobody knows';

CREATE FUNCTION cutover._reads_from(target_id int, pid int, start timestamptz, role oid, application text, client inet) RETURNS text
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'cutover_clients_reads_from';
COMMENT ON FUNCTION cutover._reads_from(int, int, timestamptz, oid, text, inet) IS 'the side that a session with the library reads from';

CREATE FUNCTION cutover._split_libraries(list text) RETURNS text[]
LANGUAGE c IMMUTABLE STRICT AS 'MODULE_PATHNAME', 'cutover_clients_split';
COMMENT ON FUNCTION cutover._split_libraries(text) IS 'the elements of a setting such as session_preload_libraries';

-- Targets for which the library was put into the setting of this database, and
-- what the setting was before and after that.
CREATE TABLE cutover._router (
	target_id int PRIMARY KEY REFERENCES cutover._target ON DELETE CASCADE,
	enabled_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE cutover._router_setting (
	previous text,								-- NULL: the database had none of its own
	ours text NOT NULL
);

CREATE FUNCTION cutover._has_library(libraries text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(bool_or(l ~ '(^|/)cutover(\.so)?$'), false) FROM unnest(libraries) l
$$;
COMMENT ON FUNCTION cutover._has_library(text[]) IS 'is our library among these';

-- The setting of the database itself; NULL if it has none.
CREATE FUNCTION cutover._database_libraries() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT substr(c, strpos(c, '=') + 1)
	FROM pg_db_role_setting s, unnest(s.setconfig) c
	WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.setrole = 0
		AND split_part(c, '=', 1) = 'session_preload_libraries'
$$;
COMMENT ON FUNCTION cutover._database_libraries() IS 'session_preload_libraries of this database';

-- What sessions get that neither database nor role says anything to.
CREATE FUNCTION cutover._server_libraries() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN s.source IN ('database', 'user', 'database user', 'client', 'session') THEN coalesce((
			SELECT f.setting FROM pg_show_all_file_settings() f
			WHERE f.name = s.name AND f.error IS NULL ORDER BY f.seqno DESC LIMIT 1), '')
		ELSE s.setting END
	FROM pg_settings s WHERE s.name = 'session_preload_libraries'
$$;
COMMENT ON FUNCTION cutover._server_libraries() IS 'session_preload_libraries of the server';

-- As text, since ALTER DATABASE would make a list of one empty name of ''; with
-- that no session could begin.
CREATE FUNCTION cutover._set_database_libraries(libraries text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF libraries IS NULL THEN
		EXECUTE format('ALTER DATABASE %I RESET session_preload_libraries', current_database());
	ELSE
		PERFORM set_config('session_preload_libraries', libraries, true);
		EXECUTE format('ALTER DATABASE %I SET session_preload_libraries FROM CURRENT', current_database());
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._set_database_libraries(text) IS 'sets session_preload_libraries of this database, or takes the setting away (NULL)';

-- Standbys, in words; theirs is the same catalog, but not the same disk.
CREATE FUNCTION cutover._standbys() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(x.what, ', ' ORDER BY x.what) FROM (
		SELECT format('"%s"%s', r.application_name, coalesce(' at ' || host(r.client_addr), '')) AS what
		FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
		WHERE coalesce(s.slot_type, 'physical') = 'physical' AND r.state <> 'backup'
		UNION ALL
		SELECT format('the one that uses slot "%s", not connected now', s.slot_name)
		FROM pg_replication_slots s WHERE s.slot_type = 'physical' AND NOT s.active AND NOT s.temporary) x
$$;
COMMENT ON FUNCTION cutover._standbys() IS 'physical standbys of this server that it knows of, in words';

-- Roles whose own setting hides that of the database.
CREATE FUNCTION cutover._roles_without_library() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(DISTINCT quote_ident(r.rolname), ', ' ORDER BY quote_ident(r.rolname))
	FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c
	WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
		AND split_part(c, '=', 1) = 'session_preload_libraries'
		AND NOT cutover._has_library(cutover._split_libraries(substr(c, strpos(c, '=') + 1)))
$$;
COMMENT ON FUNCTION cutover._roles_without_library() IS 'roles whose sessions do not load what the database says';

-- After the switch sessions of old may begin read-only, those of its administrator, too.
CREATE FUNCTION cutover._need_writable(function_name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF current_setting('transaction_read_only')::boolean THEN
		RAISE EXCEPTION 'cannot execute %() in a read-only transaction', function_name USING ERRCODE = '25006',
			DETAIL = 'It changes the configuration, which is a table of this database.',
			HINT = CASE WHEN pg_is_in_recovery() THEN 'Call it on the primary.' ELSE 'Call it after SET default_transaction_read_only = off.' END;
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._need_writable(text) IS 'refuses to go on in a read-only transaction, and says how to';

CREATE FUNCTION @extschema@.cutover_enable_router(target name DEFAULT NULL, force boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
	v_standbys text := cutover._standbys();
	v_before text := cutover._database_libraries();
	v_loaded text := coalesce(v_before, cutover._server_libraries());
	v_roles text := cutover._roles_without_library();
BEGIN
	PERFORM cutover._need_writable('cutover_enable_router');
	PERFORM cutover._not_null('force', force IS NULL);
	IF cutover._clients_default() THEN
		RAISE NOTICE 'the server loads the library for every session already' USING
			DETAIL = 'It is in shared_preload_libraries.';
		RETURN;
	ELSIF v_standbys IS NOT NULL AND NOT force THEN
		RAISE EXCEPTION 'a standby may lack the library' USING ERRCODE = '55000',
			DETAIL = format('This server has standbys: %s. Where the files of cutover are missing, no session could connect to this database.', v_standbys),
			HINT = 'Install the package on every standby, then call cutover_enable_router(force => true).';
	END IF;
	LOCK TABLE cutover._router IN SHARE ROW EXCLUSIVE MODE;
	INSERT INTO cutover._router (target_id) VALUES (v_target) ON CONFLICT DO NOTHING;
	IF cutover._has_library(cutover._split_libraries(v_loaded)) THEN
		RAISE NOTICE 'new sessions load the library already';
	ELSE
		PERFORM cutover._set_database_libraries(concat_ws(', ', nullif(btrim(v_loaded), ''), 'cutover'));
		DELETE FROM cutover._router_setting;
		INSERT INTO cutover._router_setting (previous, ours) VALUES (v_before, cutover._database_libraries());
		PERFORM cutover._log_event('enable_router', jsonb_build_object('session_preload_libraries', cutover._database_libraries()), v_target);
	END IF;
	IF v_roles IS NOT NULL THEN
		RAISE WARNING 'sessions of some roles do not load the library' USING
			DETAIL = format('Roles with a session_preload_libraries of their own: %s.', v_roles),
			HINT = 'Add cutover to it with ALTER ROLE ... SET session_preload_libraries, or leave them reading from old.';
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_enable_router(name, boolean)
	IS 'step 5, reads: lets new sessions of this database load the library that routes reads; force: although a standby may lack it';

-- Takes back what cutover_enable_router() added, once no target needs it.  False:
-- nothing was enabled for this target.
CREATE FUNCTION cutover._disable_router(target_id int) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_now text;
	v_list text[];
	v_setting cutover._router_setting;
BEGIN
	LOCK TABLE cutover._router IN SHARE ROW EXCLUSIVE MODE;
	DELETE FROM cutover._router r WHERE r.target_id = _disable_router.target_id;
	IF NOT FOUND THEN
		RETURN false;
	ELSIF EXISTS (SELECT FROM cutover._router) THEN
		RETURN true;
	END IF;
	DELETE FROM cutover._router_setting s RETURNING s.* INTO v_setting;
	IF NOT FOUND THEN
		RETURN true;							-- it was there before
	END IF;
	v_now := cutover._database_libraries();
	v_list := cutover._split_libraries(v_now);
	IF v_now = v_setting.ours THEN
		PERFORM cutover._set_database_libraries(v_setting.previous);
	ELSIF cutover._has_library(v_list) THEN
		-- somebody has changed the rest of it since
		PERFORM cutover._set_database_libraries((
			SELECT coalesce(string_agg(CASE WHEN l ~ '^[a-z_][a-z0-9_]*$' THEN l ELSE '"' || replace(l, '"', '""') || '"' END, ', ' ORDER BY i), '')
			FROM unnest(v_list) WITH ORDINALITY u (l, i) WHERE l <> 'cutover'));
	END IF;
	PERFORM cutover._log_event('disable_router', jsonb_build_object('session_preload_libraries', cutover._database_libraries()), target_id);
	RETURN true;
END
$$;
COMMENT ON FUNCTION cutover._disable_router(int) IS 'takes the library out of session_preload_libraries again, when no other target needs it';

CREATE FUNCTION @extschema@.cutover_disable_router(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._need_writable('cutover_disable_router');
	IF NOT cutover._disable_router(cutover._target_id(target)) THEN
		RAISE NOTICE 'the router was not enabled';
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_disable_router(name)
	IS 'step 5, reads: undoes cutover_enable_router() for sessions to come';

-- With the migration ends what the library was for.
CREATE FUNCTION cutover._finish_router() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._disable_router(NEW.target_id);
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION cutover._finish_router() IS 'a finished target needs no router';
CREATE TRIGGER finish_router AFTER UPDATE OF desired ON cutover._target
	FOR EACH ROW WHEN (NEW.desired = 'finished' AND OLD.desired <> 'finished') EXECUTE FUNCTION cutover._finish_router();
ALTER TABLE cutover._target ENABLE ALWAYS TRIGGER finish_router;

-- Client sessions of this database that have to connect again before they can
-- be sent to new; NULL if nobody knows.
CREATE FUNCTION cutover._not_routable() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE cutover._clients_default() WHEN true THEN 0 WHEN false THEN count(*) END
	FROM pg_stat_activity a
	WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
		AND a.pid NOT IN (SELECT c.pid FROM cutover._clients() c)
$$;
COMMENT ON FUNCTION cutover._not_routable() IS 'number of sessions that do not have the library';

-- For steps after which a session without the library is left behind.
CREATE FUNCTION cutover._warn_not_routable() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_number bigint := cutover._not_routable();
	v_loads boolean := cutover._clients_default() OR cutover._has_library(
		cutover._split_libraries(coalesce(cutover._database_libraries(), cutover._server_libraries())));
BEGIN
	IF v_number = 0 AND v_loads THEN
		RETURN;
	END IF;
	RAISE WARNING '%', CASE WHEN v_number = 0 THEN 'sessions to come will not have the library, and stay on old'
			ELSE format('%s must reconnect before new can serve them',
				CASE v_number WHEN 1 THEN '1 session' ELSE coalesce(v_number::text, 'an unknown number of') || ' sessions' END) END USING
		DETAIL = 'cutover.sessions shows which have the library (routable).',
		HINT = CASE WHEN v_loads THEN 'Restart the applications, or end these sessions with pg_terminate_backend().'
			ELSE 'Call cutover_enable_router() first.' END;
END
$$;
COMMENT ON FUNCTION cutover._warn_not_routable() IS 'warns with the number of sessions that do not have the library';

CREATE FUNCTION @extschema@.cutover_set_read_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._need_writable('cutover_set_read_ratio');
	PERFORM cutover._not_null('percent', percent IS NULL);
	IF percent < 0 OR percent > 100 OR percent = 'NaN' THEN
		RAISE EXCEPTION 'invalid value for argument "percent": %', percent USING ERRCODE = '22023',
			DETAIL = 'It is the share of sessions, in percent, whose reads new answers.',
			HINT = 'Use a number from 0 to 100.';
	END IF;
	UPDATE cutover._target t SET read_ratio = percent WHERE t.target_id = v_target;
	PERFORM cutover._log_event('set_read_ratio', jsonb_build_object('percent', percent), v_target);
	IF percent = 100 THEN
		PERFORM cutover._warn_not_routable();
	END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_read_ratio(numeric, name)
	IS 'step 5, reads: the share of sessions whose SELECTs new answers';

CREATE FUNCTION @extschema@.cutover_add_rule(
	rule name,
	read_from text,
	application text DEFAULT NULL,
	role_name name DEFAULT NULL,
	client inet DEFAULT NULL,
	tables regclass[] DEFAULT NULL,
	target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
	v_role oid;
BEGIN
	PERFORM cutover._need_writable('cutover_add_rule');
	PERFORM cutover._not_null('rule', rule IS NULL);
	PERFORM cutover._not_null('read_from', read_from IS NULL);
	IF read_from NOT IN ('old', 'new') THEN
		RAISE EXCEPTION 'invalid value for argument "read_from": "%"', read_from USING ERRCODE = '22023',
			DETAIL = 'A rule sends reads to one of the two sides.', HINT = 'Use old or new.';
	ELSIF rule = '' THEN
		RAISE EXCEPTION 'the name of a rule must not be empty' USING ERRCODE = '22023',
			DETAIL = 'It is dropped by its name.', HINT = 'Give it a short name, such as ''canary''.';
	ELSIF array_position(tables, NULL) IS NOT NULL OR cardinality(tables) = 0 THEN
		RAISE EXCEPTION 'argument "tables" holds no table, or a null' USING ERRCODE = '22023',
			DETAIL = 'A rule for no table would never apply.', HINT = 'Leave the argument out for a rule for all tables.';
	END IF;
	IF role_name IS NOT NULL THEN
		SELECT r.oid INTO v_role FROM pg_roles r WHERE r.rolname = role_name;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'role "%" does not exist', role_name USING ERRCODE = '42704',
				DETAIL = format('Rule "%s" would never apply.', rule), HINT = 'Name a role of this server: its members are meant, too.';
		END IF;
	END IF;
	PERFORM cutover._table_target(x, (SELECT t.target FROM cutover._target t WHERE t.target_id = v_target)) FROM unnest(tables) x;
	INSERT INTO cutover._rule VALUES (v_target, rule, read_from, application, v_role, client, tables::oid[]) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'rule "%" already exists', rule USING ERRCODE = '42710',
			DETAIL = 'See view cutover.rule for what it says.', HINT = 'Drop it with cutover_drop_rule(), or use another name.';
	END IF;
	PERFORM cutover._log_event('add_rule', jsonb_strip_nulls(jsonb_build_object('rule', rule, 'read_from', read_from,
		'application', application, 'role_name', role_name, 'client', client, 'tables', tables::text[])), v_target);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_add_rule(name, text, text, name, inet, regclass[], name)
	IS 'step 5, reads: one application, role or host reads from new (or old) whatever the ratio';

CREATE FUNCTION @extschema@.cutover_drop_rule(rule name, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._need_writable('cutover_drop_rule');
	PERFORM cutover._not_null('rule', rule IS NULL);
	DELETE FROM cutover._rule r WHERE r.target_id = v_target AND r.rule = cutover_drop_rule.rule;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'rule "%" does not exist', rule USING ERRCODE = '42704',
			DETAIL = 'The target has no rule of this name.', HINT = 'See view cutover.rule for those there are.';
	END IF;
	PERFORM cutover._log_event('drop_rule', jsonb_build_object('rule', rule), v_target);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_drop_rule(name, name)
	IS 'step 5, reads: removes a rule';

CREATE VIEW cutover.rule AS
SELECT t.target, r.rule, r.read_from, r.application, pg_get_userbyid(r.role) AS role_name, r.client, r.tables::regclass[] AS tables
FROM cutover._rule r JOIN cutover._target t USING (target_id)
ORDER BY t.target_id, r.rule;
COMMENT ON VIEW cutover.rule IS 'who reads from where, whatever the ratio';

CREATE FUNCTION cutover._read_counters(target_id int, OUT routed bigint, OUT kept bigint, OUT fallbacks bigint, OUT timeouts bigint,
	OUT reasons text, OUT breaker_since timestamptz)
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'cutover_read_counters';
COMMENT ON FUNCTION cutover._read_counters(int) IS 'what became of reads of a target since the server started';

CREATE VIEW cutover.read_stats AS
SELECT t.target, coalesce(c.routed, 0) AS routed, coalesce(c.kept, 0) AS kept, coalesce(c.fallbacks, 0) AS fallbacks,
	coalesce(c.timeouts, 0) AS timeouts, coalesce(c.reasons, '{}')::jsonb AS reasons,
	c.breaker_since IS NOT NULL AS breaker
FROM cutover._target t CROSS JOIN LATERAL cutover._read_counters(t.target_id) c
ORDER BY t.target_id;
COMMENT ON VIEW cutover.read_stats IS 'how many reads new answered, and why others stayed on old, since the server started';
