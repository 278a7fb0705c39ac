-- capture.sql: the capture triggers, and what keeps them where they belong.

CREATE FUNCTION cutover._capture() RETURNS trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_capture_trigger';

CREATE FUNCTION cutover._invalidate() RETURNS trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_control_invalidate';

CREATE FUNCTION cutover._caller() RETURNS regrole
	LANGUAGE C STABLE STRICT AS 'MODULE_PATHNAME', 'cutover_control_caller';

CREATE FUNCTION cutover._enqueue_control(target_id int, table_id int, kind "char", text text) RETURNS void
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_control_enqueue';

CREATE FUNCTION cutover._enqueue_refresh(table_id int, key jsonb) RETURNS void
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_control_refresh';

CREATE FUNCTION cutover._capture_rows(relid oid, op "char") RETURNS void
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_partition_rows';

-- A queue block in readable form; what can't be read is said to be damaged.
CREATE FUNCTION cutover._block_changes(data bytea)
	RETURNS TABLE (op "char", flags int, layout_id int, old_row text, new_row text, detail text)
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_block_changes';

-- Is there no open transaction that left changes of the table out?  Its copy may begin then.
CREATE FUNCTION cutover._no_gap(table_id int) RETURNS boolean
	LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'cutover_control_no_gap';

CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON cutover._target
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._invalidate();
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON cutover._table
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._invalidate();
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON cutover._column
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._invalidate();
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON cutover._member
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._invalidate();
ALTER TABLE cutover._target ENABLE ALWAYS TRIGGER invalidate;
ALTER TABLE cutover._table ENABLE ALWAYS TRIGGER invalidate;
ALTER TABLE cutover._column ENABLE ALWAYS TRIGGER invalidate;
ALTER TABLE cutover._member ENABLE ALWAYS TRIGGER invalidate;

-- Leaf partitions of a table, or the table itself if it isn't partitioned.
CREATE FUNCTION cutover._leaves(root oid) RETURNS SETOF oid
	LANGUAGE sql STABLE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT relid FROM pg_partition_tree(root::regclass) WHERE isleaf
	UNION
	SELECT c.oid FROM pg_class c WHERE c.oid = root AND c.relkind <> 'p'
$$;

-- The table with all its partitions, leaf or not.
CREATE FUNCTION cutover._tree(root oid) RETURNS SETOF oid
	LANGUAGE sql STABLE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT relid FROM pg_partition_tree(root::regclass)
	UNION
	SELECT c.oid FROM pg_class c WHERE c.oid = root
$$;

-- The triggers of ours that a relation has; tgname is the name that we give them, as they may have been renamed since.
CREATE FUNCTION cutover._our_triggers(relid oid)
	RETURNS TABLE (tgname name, is_called name, tgenabled "char", inherited boolean)
	LANGUAGE sql STABLE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE
		WHEN t.tgfoid = 'cutover._fence()'::regprocedure AND t.tgtype & 1 = 0 THEN ' cutover fence'		-- 1: FOR EACH ROW
		WHEN t.tgfoid = 'cutover._fence()'::regprocedure THEN ' cutover fence row'
		WHEN t.tgtype & 32 = 0 THEN ' cutover'		-- 32: TRUNCATE
		ELSE ' cutover truncate' END::name, t.tgname, t.tgenabled, t.tgparentid <> 0
	FROM pg_trigger t
	WHERE t.tgrelid = $1 AND t.tgfoid IN ('cutover._capture()'::regprocedure, 'cutover._fence()'::regprocedure)
$$;

-- Puts a trigger of ours on a relation, or puts it right.
CREATE FUNCTION cutover._put_trigger(p_relid oid, p_name name, p_definition text) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	v_name name;
	v_enabled "char";
BEGIN
	SELECT t.is_called, t.tgenabled INTO v_name, v_enabled FROM cutover._our_triggers(p_relid) t
		WHERE t.tgname = p_name;
	IF v_enabled = 'A' THEN
		RETURN;
	END IF;
	IF v_enabled IS NULL THEN
		v_name := p_name;
		EXECUTE format('CREATE TRIGGER %I %s', v_name, format(p_definition, p_relid::regclass));
	END IF;
	EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', p_relid::regclass, v_name);
END
$$;

-- Takes our triggers off a relation, or those of capture only; those of partitions that came with the root's go with it.
CREATE FUNCTION cutover._drop_triggers(p_relid oid, p_keep_fence boolean DEFAULT false) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	v_name name;
BEGIN
	FOR v_name IN
		SELECT t.is_called FROM cutover._our_triggers(p_relid) t
		WHERE NOT t.inherited AND NOT (p_keep_fence AND t.tgname ~ '^ cutover fence')
	LOOP
		EXECUTE format('DROP TRIGGER %I ON %s', v_name, p_relid::regclass);
	END LOOP;
END
$$;

-- The fence of one table.  Its name is before those of others: nothing of the user's runs for a write that is refused.
-- Rows that come without a statement on their table meet it in the capture trigger, or, where capture is gone, in one for rows.
CREATE FUNCTION cutover._put_fence(p_root oid, p_rows boolean) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	v record;
BEGIN
	-- the root first: partitions get its row trigger by themselves
	FOR v IN
		SELECT c.oid, c.relkind FROM cutover._tree(p_root) t JOIN pg_class c ON c.oid = t ORDER BY c.oid <> p_root, c.oid
	LOOP
		PERFORM cutover._put_trigger(v.oid, ' cutover fence', 'BEFORE INSERT OR UPDATE OR DELETE'
			|| CASE WHEN v.relkind = 'f' THEN '' ELSE ' OR TRUNCATE' END		-- foreign tables can't have it
			|| ' ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._fence()');
		CONTINUE WHEN NOT p_rows;
		PERFORM cutover._put_trigger(v.oid, ' cutover fence row',
			'BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION cutover._fence()');
	END LOOP;
END
$$;

-- The triggers of one table.
CREATE FUNCTION cutover._put_triggers(p_root oid) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	v_partitioned boolean := EXISTS (SELECT FROM pg_class c WHERE c.oid = p_root AND c.relkind = 'p');
	v_finished boolean := EXISTS (SELECT FROM cutover._table t JOIN cutover._target g USING (target_id)
		WHERE t.old_table = p_root AND g.desired = 'finished');
	v_leaf oid;
BEGIN
	PERFORM cutover._put_fence(p_root, v_finished);
	IF v_finished THEN
		RETURN;
	END IF;
	PERFORM cutover._put_trigger(p_root, ' cutover',
		'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION cutover._capture()');
	IF NOT v_partitioned THEN
		PERFORM cutover._put_trigger(p_root, ' cutover truncate',
			'AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._capture()');
		RETURN;
	END IF;
	-- BEFORE: a partition truncated by itself still has its rows then
	PERFORM cutover._put_trigger(p_root, ' cutover truncate',
		'BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._capture()');
	FOR v_leaf IN SELECT cutover._leaves(p_root) LOOP
		PERFORM cutover._put_trigger(v_leaf, ' cutover',
			'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION cutover._capture()');
		-- a foreign table can't have it, nor its rows be captured: the first change of one says so
		CONTINUE WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = v_leaf AND c.relkind = 'f');
		PERFORM cutover._put_trigger(v_leaf, ' cutover truncate',
			'BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._capture()');
	END LOOP;
END
$$;

-- Puts the capture triggers on one table, and its members on record.  Locks it against writers (not readers) to the
-- end of the transaction; gives way after cutover.lock_timeout with 55P03.  The target must be
-- running before: a transaction that has met the triggers of a target at rest captures nothing to its end.
CREATE FUNCTION cutover._install_capture(p_table_id int) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	SET lock_timeout = 0
	SET deadlock_timeout = '100ms'		-- less than the other: autovacuum gives way only after it
AS $$
DECLARE
	v_root oid;
	v_kind "char";
BEGIN
	PERFORM cutover._caller();		-- loads the library, which knows the setting
	PERFORM set_config('lock_timeout', current_setting('cutover.lock_timeout'), true);
	SELECT t.old_table, c.relkind INTO v_root, v_kind
		FROM cutover._table t JOIN pg_class c ON c.oid = t.old_table WHERE t.table_id = p_table_id;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'table % is not under migration', p_table_id
			USING ERRCODE = '42704',
			DETAIL = 'It was dropped or taken out of the migration.',
			HINT = 'See cutover.tables.';
	END IF;
	EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE',
		CASE WHEN v_kind = 'p' THEN v_root::regclass::text ELSE 'ONLY ' || v_root::regclass::text END);
	PERFORM cutover._put_triggers(v_root);
	DELETE FROM cutover._member m WHERE m.table_id = p_table_id
		AND m.relid <> v_root AND m.relid NOT IN (SELECT cutover._leaves(v_root));
	INSERT INTO cutover._member (relid, table_id)
		SELECT v_root, p_table_id UNION SELECT l, p_table_id FROM cutover._leaves(v_root) l
		ON CONFLICT DO NOTHING;
END
$$;

-- Takes the capture triggers off one table, and the fence if it isn't to be kept: that of a finished target
-- stays, and the table goes on refusing writes.  Same locks, same manners.
CREATE FUNCTION cutover._remove_capture(p_table_id int, p_keep_fence boolean DEFAULT false) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	SET lock_timeout = 0
	SET deadlock_timeout = '100ms'		-- less than the other: autovacuum gives way only after it
AS $$
DECLARE
	v_relid oid;
	v_relids oid[];
BEGIN
	PERFORM cutover._caller();
	PERFORM set_config('lock_timeout', current_setting('cutover.lock_timeout'), true);
	SELECT array_agg(t.old_table) INTO v_relids FROM cutover._table t WHERE t.table_id = p_table_id;
	SELECT v_relids || array_agg(r ORDER BY r) INTO v_relids FROM (
		SELECT m.relid FROM cutover._member m WHERE m.table_id = p_table_id
		UNION SELECT cutover._tree(t.old_table) FROM cutover._table t WHERE t.table_id = p_table_id) m (r)
		WHERE r <> ALL (v_relids);
	IF p_keep_fence THEN
		PERFORM cutover._put_fence(t.old_table, true) FROM cutover._table t WHERE t.table_id = p_table_id;
	ELSE
		-- first: the event triggers don't put back what has no members
		DELETE FROM cutover._member m WHERE m.table_id = p_table_id;
	END IF;
	FOREACH v_relid IN ARRAY coalesce(v_relids, '{}') LOOP
		PERFORM cutover._drop_triggers(v_relid, p_keep_fence);
	END LOOP;
END
$$;

-- Compares one table (NULL = all) with the catalogs after a schema change: partitions that came or went bring or take
-- their rows, triggers are put right, a table that was dropped leaves the migration.
CREATE FUNCTION cutover._reconcile(p_table_id int) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	v record;
	v_relid oid;
	v_apply boolean;
BEGIN
	PERFORM cutover._caller();
	v_apply := current_setting('cutover.partition_rows') = 'apply';
	FOR v IN
		SELECT t.table_id, t.target_id, t.old_table, c.oid AS found
		FROM cutover._table t LEFT JOIN pg_class c ON c.oid = t.old_table
		WHERE p_table_id IS NULL OR t.table_id = p_table_id
		ORDER BY t.table_id
	LOOP
		IF v.found IS NULL THEN
			PERFORM cutover._enqueue_control(v.target_id, v.table_id, 'Z', 'table was dropped');
			-- no notification: it would keep the transaction from being prepared
			INSERT INTO cutover._event (actor, kind, detail, target_id, target)
				SELECT cutover._actor(), 'remove_table', jsonb_build_object('new_table', format('%I.%I', t.new_schema, t.new_name),
					'reason', 'table was dropped'), t.target_id, g.target
				FROM cutover._table t JOIN cutover._target g USING (target_id) WHERE t.table_id = v.table_id;
			DELETE FROM cutover._table t WHERE t.table_id = v.table_id;
			CONTINUE;
		END IF;
		IF NOT EXISTS (SELECT FROM cutover._member m WHERE m.relid = v.old_table) THEN
			CONTINUE;			-- capture isn't on
		END IF;
		FOR v_relid IN
			SELECT m.relid FROM cutover._member m
			WHERE m.table_id = v.table_id AND m.relid <> v.old_table
				AND m.relid NOT IN (SELECT cutover._leaves(v.old_table))
		LOOP
			IF EXISTS (SELECT FROM pg_class c WHERE c.oid = v_relid) THEN
				IF v_apply THEN
					PERFORM cutover._capture_rows(v_relid, 'D');
				END IF;
				-- what was detached may have been a partitioned table
				PERFORM cutover._drop_triggers(a) FROM (SELECT v_relid UNION SELECT pg_partition_ancestors(v_relid)) a (a);
			END IF;
			DELETE FROM cutover._member m WHERE m.relid = v_relid;
		END LOOP;
		PERFORM cutover._put_triggers(v.old_table);
		FOR v_relid IN
			SELECT l FROM cutover._leaves(v.old_table) l
			WHERE l NOT IN (SELECT m.relid FROM cutover._member m WHERE m.table_id = v.table_id)
		LOOP
			INSERT INTO cutover._member (relid, table_id) VALUES (v_relid, v.table_id);
			IF v_apply THEN
				PERFORM cutover._capture_rows(v_relid, 'I');
			END IF;
		END LOOP;
	END LOOP;
END
$$;

-- What is wrong with the capture triggers of a target; no rows if nothing is.
CREATE FUNCTION cutover._audit_capture(p_target_id int) RETURNS TABLE (table_id int, problem text)
	LANGUAGE sql STABLE
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT t.table_id, 'table with oid ' || t.old_table || ' was dropped'
	FROM cutover._table t
	WHERE t.target_id = p_target_id AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.old_table)
	UNION ALL
	SELECT t.table_id, 'trigger "' || w.tgname || '" of ' || r.relid::regclass || CASE
			WHEN g.tgenabled IS NULL THEN ' is missing'
			WHEN g.tgenabled = 'D' THEN ' is disabled'
			ELSE ' does not fire for every role of replication' END
	FROM cutover._table t
	JOIN cutover._target x USING (target_id)
	CROSS JOIN LATERAL (SELECT cutover._tree(t.old_table)) r (relid)
	JOIN pg_class c ON c.oid = r.relid
	CROSS JOIN (VALUES (' cutover'), (' cutover truncate'), (' cutover fence'), (' cutover fence row')) w (tgname)
	LEFT JOIN LATERAL cutover._our_triggers(r.relid) g ON g.tgname = w.tgname
	WHERE t.target_id = p_target_id AND g.tgenabled IS DISTINCT FROM 'A'
		AND CASE
			WHEN w.tgname = ' cutover fence' THEN true
			WHEN w.tgname = ' cutover fence row' THEN x.desired = 'finished'
			WHEN x.desired = 'finished' THEN false
			WHEN w.tgname = ' cutover truncate' THEN c.relkind <> 'f' AND (c.relkind <> 'p' OR c.oid = t.old_table)
			ELSE c.relkind <> 'p' OR c.oid = t.old_table END
		AND EXISTS (SELECT FROM cutover._member m WHERE m.table_id = t.table_id)
	UNION ALL
	SELECT t.table_id, 'partition ' || l::regclass || ' is not on record'
	FROM cutover._table t
	JOIN pg_class c ON c.oid = t.old_table
	CROSS JOIN LATERAL cutover._leaves(t.old_table) l
	WHERE t.target_id = p_target_id AND EXISTS (SELECT FROM cutover._member m WHERE m.table_id = t.table_id)
		AND NOT EXISTS (SELECT FROM cutover._member m WHERE m.relid = l)
$$;
;

CREATE FUNCTION cutover._ddl_start() RETURNS event_trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_ddl_start';
CREATE FUNCTION cutover._ddl_end() RETURNS event_trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_ddl_end';
CREATE FUNCTION cutover._ddl_drop() RETURNS event_trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_ddl_drop';
CREATE FUNCTION cutover._ddl_rewrite() RETURNS event_trigger
	LANGUAGE C AS 'MODULE_PATHNAME', 'cutover_ddl_rewrite';

CREATE EVENT TRIGGER cutover_ddl_start ON ddl_command_start EXECUTE FUNCTION cutover._ddl_start();
CREATE EVENT TRIGGER cutover_ddl_end ON ddl_command_end EXECUTE FUNCTION cutover._ddl_end();
CREATE EVENT TRIGGER cutover_rewrite ON table_rewrite EXECUTE FUNCTION cutover._ddl_rewrite();
CREATE EVENT TRIGGER cutover_sql_drop ON sql_drop EXECUTE FUNCTION cutover._ddl_drop();
ALTER EVENT TRIGGER cutover_ddl_start ENABLE ALWAYS;
ALTER EVENT TRIGGER cutover_ddl_end ENABLE ALWAYS;
ALTER EVENT TRIGGER cutover_rewrite ENABLE ALWAYS;
ALTER EVENT TRIGGER cutover_sql_drop ENABLE ALWAYS;
