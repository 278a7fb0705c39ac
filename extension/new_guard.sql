-- new_guard.sql: what keeps writes off new as long as old is master.
--
-- A statement trigger on each table under migration asks who is master, under a
-- lock that a switch back takes for itself.  Our own connections present a
-- token, drawn at random by each: the role proves nothing, since the
-- application may well use the same one.

CREATE FUNCTION cutover._new_guard_script() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $script$ SELECT $new$
CREATE TABLE cutover.fence ();
COMMENT ON TABLE cutover.fence IS 'never holds a row: writers lock it, and so does who wants them to wait';
CREATE TABLE cutover.token (
	token text PRIMARY KEY,
	pid int NOT NULL,
	backend_start timestamptz,
	proving boolean NOT NULL DEFAULT false	-- now and then one of ours writes as the application would
);
COMMENT ON TABLE cutover.token IS 'sessions of the migration itself, whose writes are neither refused nor captured';
CREATE TABLE cutover.guarded (
	table_id int PRIMARY KEY,
	relation text NOT NULL,					-- qualified and quoted
	key_columns text[] NOT NULL				-- of the table here; empty = the whole row
);
COMMENT ON TABLE cutover.guarded IS 'tables of this database that are under migration';

-- What a session of the migration says first.
CREATE FUNCTION cutover.authorize(token text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
	DELETE FROM cutover.token t WHERE t.pid = pg_backend_pid() OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = t.pid);
	INSERT INTO cutover.token (token, pid, backend_start)
		SELECT authorize.token, a.pid, a.backend_start FROM pg_stat_activity a WHERE a.pid = pg_backend_pid();
	PERFORM set_config('cutover.token', token, false);
END
$body$;
COMMENT ON FUNCTION cutover.authorize(text) IS 'names this session as one of the migration itself';
REVOKE ALL ON FUNCTION cutover.authorize(text) FROM PUBLIC;

-- Is this session one of ours?  One that was and is not any more must not write as if it were the application.
CREATE FUNCTION cutover.is_ours() RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_token text := current_setting('cutover.token', true);
BEGIN
	IF v_token IS NULL OR v_token = '' THEN
		RETURN false;
	ELSIF EXISTS (SELECT FROM cutover.token t WHERE t.token = v_token AND t.pid = pg_backend_pid()) THEN
		RETURN true;
	END IF;
	RAISE EXCEPTION 'this session of the migration may not write here any more' USING ERRCODE = '25006',
		DETAIL = 'Its token was taken back: cutover.take_over() made this database the master.',
		HINT = 'Connect again.';
END
$body$;
COMMENT ON FUNCTION cutover.is_ours() IS 'whether this session belongs to the migration itself';
REVOKE ALL ON FUNCTION cutover.is_ours() FROM PUBLIC;

CREATE FUNCTION cutover.guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = 0 AS $body$
DECLARE
	v_token text := current_setting('cutover.token', true);
	m record;
BEGIN
	IF v_token <> '' AND cutover.is_ours() THEN
		IF TG_LEVEL = 'STATEMENT' THEN
			RETURN NULL;
		ELSIF TG_OP = 'DELETE' THEN
			RETURN OLD;
		END IF;
		RETURN NEW;
	END IF;
	-- held to the end of the transaction: who is master does not change meanwhile
	LOCK TABLE cutover.fence IN ROW EXCLUSIVE MODE;
	IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
		-- this snapshot may be older than the last switch; then the row's key is another now, and this fails
		SELECT g.master, g.master_since, g.protect, g.old_database INTO m FROM cutover.migration g FOR KEY SHARE;
	ELSE
		SELECT g.master, g.master_since, g.protect, g.old_database INTO m FROM cutover.migration g;
	END IF;
	-- what clients of old have old forward must not come here once old is master again
	IF m.master = 'old' AND (m.protect OR current_setting('cutover.forwarded', true) = 'on') AND NOT EXISTS (SELECT FROM cutover.token t WHERE t.pid = pg_backend_pid() AND t.proving) THEN
		RAISE EXCEPTION 'table %.% can not be written to here', quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME) USING ERRCODE = '25006',
			DETAIL = format('It is under migration from database "%s", which is still the master of it.', m.old_database),
			HINT = 'Write there. Should that database be lost, SELECT cutover.take_over() makes this one the master; the setting cutover.protect_new there turns this check off.';
	ELSIF m.master = 'new' AND transaction_timestamp() < m.master_since THEN
		RAISE EXCEPTION 'could not serialize access: this transaction began under another master' USING ERRCODE = '40001',
			DETAIL = format('This database became the master of table %I.%I at %s.', TG_TABLE_SCHEMA, TG_TABLE_NAME, m.master_since),
			HINT = 'The transaction might succeed if retried.';
	END IF;
	IF TG_LEVEL = 'STATEMENT' THEN
		RETURN NULL;
	ELSIF TG_OP = 'DELETE' THEN
		RETURN OLD;
	END IF;
	RETURN NEW;
END
$body$;
COMMENT ON FUNCTION cutover.guard() IS 'refuses writes of others as long as this database is not the master';

-- A table and what lies below it: partitions, children.
CREATE FUNCTION cutover.family(relation regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
	WITH RECURSIVE f (oid) AS (
		SELECT relation::oid
		UNION
		SELECT i.inhrelid FROM f JOIN pg_inherits i ON i.inhparent = f.oid)
	SELECT f.oid::regclass FROM f JOIN pg_class c ON c.oid = f.oid WHERE c.relkind IN ('r', 'p')
$body$;
COMMENT ON FUNCTION cutover.family(regclass) IS 'a table with its partitions and children';

-- Puts a trigger of ours on one relation, or puts it right.  It is known by its function and kind, as it may have been renamed.
CREATE FUNCTION cutover.put_trigger(relation regclass, function text, kind int, name text, definition text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_name name;
	v_enabled "char";
BEGIN
	SELECT t.tgname, t.tgenabled INTO v_name, v_enabled FROM pg_trigger t
		WHERE t.tgrelid = relation AND t.tgfoid = to_regprocedure(function) AND t.tgtype & kind = kind AND (t.tgtype & 1) = (kind & 1);
	IF v_enabled = 'A' THEN
		RETURN;
	ELSIF v_enabled IS NULL THEN
		v_name := name;
		EXECUTE format('CREATE TRIGGER %I ', v_name) || format(definition, relation);
	END IF;
	EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', relation, v_name);
END
$body$;
COMMENT ON FUNCTION cutover.put_trigger(regclass, text, int, text, text) IS 'puts a trigger of the migration on a table';
REVOKE ALL ON FUNCTION cutover.put_trigger(regclass, text, int, text, text) FROM PUBLIC;

-- Why we can't put triggers on a table; NULL = we can.
CREATE FUNCTION cutover.why_not(relation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
	SELECT CASE WHEN to_regclass(relation) IS NULL THEN format('table %s does not exist on new', relation)
		ELSE (SELECT format('role %I does not own table %s on new', current_user, f) FROM cutover.family(to_regclass(relation)) f
			JOIN pg_class c ON c.oid = f WHERE NOT pg_has_role(c.relowner, 'USAGE') LIMIT 1) END
$body$;
COMMENT ON FUNCTION cutover.why_not(text) IS 'why no trigger of the migration can be put on a table';

-- Guards a table; returns why not, if not.
CREATE FUNCTION cutover.install_guard(table_id int, relation text, key_columns text[]) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_why_not text := cutover.why_not(relation);
	v_rel regclass;
BEGIN
	IF v_why_not IS NOT NULL THEN
		RETURN v_why_not;
	END IF;
	INSERT INTO cutover.guarded AS g (table_id, relation, key_columns) VALUES (install_guard.table_id, install_guard.relation, coalesce(install_guard.key_columns, '{}'))
		ON CONFLICT ON CONSTRAINT guarded_pkey DO UPDATE SET relation = EXCLUDED.relation, key_columns = EXCLUDED.key_columns
		WHERE (g.relation, g.key_columns) IS DISTINCT FROM (EXCLUDED.relation, EXCLUDED.key_columns);
	FOR v_rel IN SELECT f FROM cutover.family(to_regclass(relation)) f ORDER BY f::oid LOOP
		PERFORM cutover.put_trigger(v_rel, 'cutover.guard()', 60, ' cutover guard',
			'BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover.guard()');
		-- what comes from a parent fires no statement trigger here: that of the parent must do, if there is one
		IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND NOT c.relispartition
			WHERE i.inhrelid = v_rel AND NOT EXISTS (SELECT FROM pg_trigger t
				WHERE t.tgrelid = i.inhparent AND t.tgfoid = 'cutover.guard()'::regprocedure)) THEN
			PERFORM cutover.put_trigger(v_rel, 'cutover.guard()', 29, ' cutover guard row',
				'BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION cutover.guard()');
		END IF;
	END LOOP;
	RETURN NULL;
END
$body$;
COMMENT ON FUNCTION cutover.install_guard(int, text, text[]) IS 'keeps writes of others off a table while old is master; returns why it could not';
REVOKE ALL ON FUNCTION cutover.install_guard(int, text, text[]) FROM PUBLIC;

-- Takes triggers of ours off a table, those with this function or all.
CREATE FUNCTION cutover.drop_triggers(relation text, function text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	t record;
BEGIN
	IF to_regclass(relation) IS NULL THEN
		RETURN;
	END IF;
	FOR t IN SELECT g.tgrelid::regclass AS rel, g.tgname FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
		WHERE g.tgrelid IN (SELECT f::oid FROM cutover.family(to_regclass(relation)) f) AND g.tgparentid = 0
			AND p.pronamespace = 'cutover'::regnamespace AND (function IS NULL OR g.tgfoid = to_regprocedure(function))
		ORDER BY g.tgrelid
	LOOP
		EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', t.tgname, t.rel);
	END LOOP;
END
$body$;
COMMENT ON FUNCTION cutover.drop_triggers(text, text) IS 'takes triggers of the migration off a table';
REVOKE ALL ON FUNCTION cutover.drop_triggers(text, text) FROM PUBLIC;

CREATE FUNCTION cutover.remove_guard(table_id int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
	PERFORM cutover.drop_triggers((SELECT g.relation FROM cutover.guarded g WHERE g.table_id = remove_guard.table_id));
	DELETE FROM cutover.guarded g WHERE g.table_id = remove_guard.table_id;
END
$body$;
COMMENT ON FUNCTION cutover.remove_guard(int) IS 'takes everything of the migration off a table';
REVOKE ALL ON FUNCTION cutover.remove_guard(int) FROM PUBLIC;

-- Before the switch of a whole database new sessions are read-only, also those that have to put things right.
CREATE FUNCTION cutover.check_writable() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
	IF current_setting('transaction_read_only')::boolean THEN
		RAISE EXCEPTION 'this session is read-only' USING ERRCODE = '25006',
			DETAIL = 'New sessions of this database are, as long as it is not the master.',
			HINT = 'SET default_transaction_read_only = off; then call again.';
	END IF;
END
$body$;
COMMENT ON FUNCTION cutover.check_writable() IS 'refuses a session that is read-only, and says what to do';
REVOKE ALL ON FUNCTION cutover.check_writable() FROM PUBLIC;

CREATE FUNCTION cutover.take_over() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
	PERFORM cutover.check_writable();
	-- sessions of old that still are here can't write any more, nor record that they did
	DELETE FROM cutover.token;
	UPDATE cutover.progress p SET instance = NULL;
	UPDATE cutover.migration m SET master = 'new', epoch = m.epoch + 1, master_since = clock_timestamp(),
		instance = NULL, lease_until = NULL, took_over_from = m.master;
	PERFORM cutover.arm();
	IF to_regprocedure('cutover.set_read_only(boolean)') IS NOT NULL THEN
		EXECUTE 'SELECT cutover.set_read_only(false)';
	END IF;
END
$body$;
COMMENT ON FUNCTION cutover.take_over() IS 'old is dead: this database becomes the master and accepts writes; should old come back, it accepts none';
REVOKE ALL ON FUNCTION cutover.take_over() FROM PUBLIC;
$new$ $script$;
COMMENT ON FUNCTION cutover._new_guard_script() IS 'what is put on new to keep writes off it';
