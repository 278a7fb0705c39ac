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

-- Puts a trigger of ours on a relation, or puts it right.  True if something had to be done.
CREATE FUNCTION cutover._put_trigger(relid oid, trigger name, definition text) RETURNS boolean
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	v_enabled "char";
BEGIN
	SELECT tgenabled INTO v_enabled FROM pg_trigger t WHERE t.tgrelid = relid AND t.tgname = trigger;
	IF v_enabled = 'A' THEN
		RETURN false;
	END IF;
	IF v_enabled IS NULL THEN
		EXECUTE format('CREATE TRIGGER %I %s', trigger, format(definition, relid::regclass));
	END IF;
	EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', relid::regclass, trigger);
	RETURN true;
END
$$;

-- Puts the capture triggers on one table, and its members on record.  Locks it against writers (not readers) to the
-- end of the transaction; gives way after cutover.lock_timeout with 55P03.  The target must be
-- running before: a transaction that has met the triggers of a target at rest captures nothing to its end.
CREATE FUNCTION cutover._install_capture(p_table_id int) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	SET lock_timeout = 0
AS $$
DECLARE
	v_root oid;
	v_kind "char";
	v_leaf oid;
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
	PERFORM cutover._put_trigger(v_root, ' cutover',
		'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION cutover._capture()');
	IF v_kind = 'p' THEN
		PERFORM cutover._put_trigger(v_root, ' cutover truncate',
			'BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._capture()');
		FOR v_leaf IN SELECT cutover._leaves(v_root) LOOP
			PERFORM cutover._put_trigger(v_leaf, ' cutover truncate',
				'BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._capture()');
		END LOOP;
	ELSE
		PERFORM cutover._put_trigger(v_root, ' cutover truncate',
			'AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION cutover._capture()');
	END IF;
	DELETE FROM cutover._member m WHERE m.table_id = p_table_id
		AND m.relid NOT IN (SELECT cutover._leaves(v_root));
	INSERT INTO cutover._member (relid, table_id)
		SELECT l, p_table_id FROM cutover._leaves(v_root) l ON CONFLICT DO NOTHING;
END
$$;

-- Takes the capture triggers off one table.  Same locks, same manners.
CREATE FUNCTION cutover._remove_capture(p_table_id int) RETURNS void
	LANGUAGE plpgsql
	SET search_path = pg_catalog, pg_temp
	SET lock_timeout = 0
AS $$
DECLARE
	v_relid oid;
	v_members oid[];
	v_root oid;
BEGIN
	PERFORM cutover._caller();
	PERFORM set_config('lock_timeout', current_setting('cutover.lock_timeout'), true);
	SELECT t.old_table INTO v_root FROM cutover._table t WHERE t.table_id = p_table_id;
	SELECT array_agg(m.relid) INTO v_members FROM cutover._member m WHERE m.table_id = p_table_id;
	-- first: the event triggers don't put back what has no members
	DELETE FROM cutover._member m WHERE m.table_id = p_table_id;
	IF EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = v_root AND t.tgname = ' cutover' AND t.tgparentid = 0) THEN
		EXECUTE format('DROP TRIGGER " cutover" ON %s', v_root::regclass);
	END IF;
	FOR v_relid IN
		SELECT t.tgrelid FROM pg_trigger t
		WHERE t.tgname = ' cutover truncate' AND (t.tgrelid = v_root OR t.tgrelid = ANY (v_members))
		ORDER BY t.tgrelid <> v_root, t.tgrelid
	LOOP
		EXECUTE format('DROP TRIGGER " cutover truncate" ON %s', v_relid::regclass);
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
	JOIN pg_class c ON c.oid = t.old_table
	CROSS JOIN LATERAL (SELECT t.old_table UNION SELECT cutover._leaves(t.old_table)) r (relid)
	CROSS JOIN (VALUES (' cutover'), (' cutover truncate')) w (tgname)
	LEFT JOIN pg_trigger g ON g.tgrelid = r.relid AND g.tgname = w.tgname
	WHERE t.target_id = p_target_id AND g.tgenabled IS DISTINCT FROM 'A'
		AND EXISTS (SELECT FROM cutover._member m WHERE m.table_id = t.table_id)
	UNION ALL
	SELECT t.table_id, 'partition ' || l::regclass || ' is not on record'
	FROM cutover._table t
	JOIN pg_class c ON c.oid = t.old_table
	CROSS JOIN LATERAL cutover._leaves(t.old_table) l
	WHERE t.target_id = p_target_id AND EXISTS (SELECT FROM cutover._member m WHERE m.table_id = t.table_id)
		AND NOT EXISTS (SELECT FROM cutover._member m WHERE m.relid = l)
$$;
