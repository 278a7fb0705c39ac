-- reverse.sql: what old does so that new is guarded, and so that old can follow new.

-- The column that an expression is a cast of, and what it is cast to; attnum is NULL if it is anything else.
CREATE FUNCTION cutover._cast_source(expr pg_node_tree, OUT attnum int2, OUT type oid)
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cutover_expression_cast_source';

-- How old follows new, a row for each table that can; written when the way back is installed.
CREATE TABLE cutover._reverse_table (
	table_id int PRIMARY KEY REFERENCES cutover._table ON DELETE CASCADE,
	whole boolean NOT NULL,						-- rows of new come as they were and are; else by key, and are read again
	columns text[] NOT NULL						-- of new, that are captured: in the order of old's key, or all
);
CREATE TABLE cutover._reverse_column (
	table_id int NOT NULL REFERENCES cutover._reverse_table ON DELETE CASCADE,
	attnum int2 NOT NULL,						-- of old
	expression text NOT NULL,					-- over a row of new
	PRIMARY KEY (table_id, attnum)
);

-- How far old is.  Written in the transaction that applies a step.
CREATE TABLE cutover._reverse_progress (
	target_id int PRIMARY KEY REFERENCES cutover._target ON DELETE CASCADE,
	k bigint NOT NULL,							-- number of the last step
	snapshot text NOT NULL,						-- of new: old has all that it saw ...
	window_snapshot text,						-- ... and of what this saw
	done_id bigint,								-- the part up to this number in new's queue
	forward_snapshot text,						-- of old, while new is master: new had all of that
	applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000);

-- Does a cast from one type to another lose more than the form?
CREATE FUNCTION cutover._is_lossy(source oid, target oid) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE
		WHEN target IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype) THEN source IN ('numeric'::regtype, 'float4'::regtype, 'float8'::regtype, 'money'::regtype)
		WHEN target = 'float4'::regtype THEN source IN ('numeric'::regtype, 'float8'::regtype, 'int4'::regtype, 'int8'::regtype)
		WHEN target = 'float8'::regtype THEN source IN ('numeric'::regtype, 'int8'::regtype)
		WHEN target = 'bool'::regtype THEN source <> target
		WHEN target = 'date'::regtype THEN source IN ('timestamp'::regtype, 'timestamptz'::regtype)
		WHEN target IN ('time'::regtype, 'timetz'::regtype) THEN source IN ('timestamp'::regtype, 'timestamptz'::regtype, 'timetz'::regtype, 'interval'::regtype)
		WHEN target IN ('cidr'::regtype, 'name'::regtype, '"char"'::regtype) THEN source <> target
		ELSE false END
$$;
COMMENT ON FUNCTION cutover._is_lossy(oid, oid) IS 'whether a cast can not be turned back';

-- For each column of old how it is made of a row of new.  expression NULL: new has nothing of it; where that is no
-- problem old keeps what it has.  new_columns: as _new_columns() gives them, NULL = not known now.
CREATE FUNCTION cutover._reverse_map(table_id int, new_columns jsonb)
RETURNS TABLE (attnum int2, old_column name, expression text, plain name, problem text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT a.attnum, a.attname, coalesce(t.reverse_columns->>a.attname::text, quote_ident(m.new_column)),
		CASE WHEN NOT coalesce(t.reverse_columns ? a.attname::text, false) THEN m.new_column END,
		CASE WHEN t.reverse_columns ? a.attname::text OR m.new_column IS NOT NULL THEN NULL
			WHEN EXISTS (SELECT FROM cutover._column c WHERE c.table_id = t.table_id AND a.attnum = ANY (cutover._expression_attnums(c.expr)))
				THEN format('column %I of old goes to new by an expression that can not be turned back', a.attname)
			WHEN a.attnum = ANY (t.key_attnums) THEN format('new has nothing of column %I of old, which is part of the key', a.attname)
			WHEN a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
				THEN format('new has nothing of column %I of old, which must not be null and has no default', a.attname) END
	FROM cutover._table t
	JOIN pg_attribute a ON a.attrelid = t.old_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
	LEFT JOIN LATERAL (
		SELECT x.new_column FROM (
			SELECT a.attname AS new_column, 0 AS rank WHERE t.default_columns AND coalesce(new_columns ? a.attname::text, true)
			UNION ALL
			SELECT c.new_column, 1 + (c.new_column <> a.attname)::int FROM cutover._column c
				WHERE c.table_id = t.table_id AND c.attnum = a.attnum AND NOT t.default_columns
			UNION ALL
			SELECT c.new_column, 3 FROM cutover._column c CROSS JOIN LATERAL cutover._cast_source(c.expr) s
				WHERE c.table_id = t.table_id AND c.attnum IS NULL AND s.attnum = a.attnum AND NOT cutover._is_lossy(a.atttypid, s.type)) x
		ORDER BY x.rank, x.new_column LIMIT 1) m ON true
	WHERE t.table_id = $1
$$;
COMMENT ON FUNCTION cutover._reverse_map(int, jsonb) IS 'how the columns of old are made of a row of new, and why not';

-- The columns of new that tell rows of a table apart, in the order of old's key, where each of that goes to one as it
-- is or by a cast.  Empty: there is no key, or its way back leads through expressions.
CREATE FUNCTION cutover._new_key(table_id int, new_columns jsonb DEFAULT NULL) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE WHEN bool_and(m.plain IS NOT NULL) AND count(DISTINCT m.plain) = count(*)
		THEN array_agg(m.plain::text ORDER BY k.i) ELSE '{}' END
	FROM cutover._table t CROSS JOIN LATERAL unnest(t.key_attnums) WITH ORDINALITY k (attnum, i)
	LEFT JOIN cutover._reverse_map($1, $2) m ON m.attnum = k.attnum
	WHERE t.table_id = $1
$$;
COMMENT ON FUNCTION cutover._new_key(int, jsonb) IS 'the columns of new that stand for the key of a table';

-- Guards the tables of new, or one of them, that are there by now.  Where we may not, preflight has said so.
CREATE FUNCTION cutover._install_new_guard(target_id int, only_table int DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_problem text;
	v_new_columns jsonb;
	t record;
BEGIN
	SELECT x.* INTO STRICT v_target FROM cutover._target x WHERE x.target_id = _install_new_guard.target_id;
	PERFORM cutover._remote(v_target.server, format('SET LOCAL lock_timeout = %s', extract(epoch FROM current_setting('cutover.lock_timeout')::interval) * 1000));
	PERFORM cutover._remote(v_target.server, 'UPDATE cutover.migration SET protect = $1::boolean WHERE protect <> $1::boolean',
		current_setting('cutover.protect_new'));
	FOR t IN SELECT b.*, format('%I.%I', b.new_schema, b.new_name) AS relation
		FROM cutover._table b WHERE b.target_id = v_target.target_id AND (only_table IS NULL OR b.table_id = only_table) ORDER BY b.table_id
	LOOP
		v_new_columns := cutover._new_columns(v_target.server, t.new_schema, t.new_name);
		SELECT r->>'why_not' INTO v_problem FROM cutover._remote(v_target.server, 'SELECT cutover.install_guard($1::int, $2, $3::text[]) AS why_not',
			t.table_id::text, t.relation, coalesce(cutover._new_key(t.table_id, v_new_columns), '{}')::text) r;
		-- what can be told of the way back by now
		SELECT coalesce(v_problem, string_agg(m.problem, ', ' ORDER BY m.attnum)) INTO v_problem FROM cutover._reverse_map(t.table_id, v_new_columns) m;
		UPDATE cutover._table b SET reverse_closed = v_problem WHERE b.table_id = t.table_id AND b.reverse_closed IS DISTINCT FROM v_problem;
	END LOOP;
	PERFORM cutover._remote(v_target.server, 'SET LOCAL lock_timeout = 0');
END
$$;
COMMENT ON FUNCTION cutover._install_new_guard(int, int) IS 'has new refuse writes of others to the tables under migration, as long as old is master';

-- A statement on new that needs a lock for a moment: gives way to the application, and tries again for some time.
CREATE FUNCTION cutover._new_try(sql text, VARIADIC args text[]) RETURNS SETOF jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_attempt int := 0;
BEGIN
	PERFORM cutover._new_exec(format('SET lock_timeout = %s', extract(epoch FROM current_setting('cutover.lock_timeout')::interval) * 1000));
	LOOP
		BEGIN
			RETURN QUERY SELECT * FROM cutover._new_exec(sql, VARIADIC args);
			EXIT;
		EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
			v_attempt := v_attempt + 1;
			IF v_attempt > 20 THEN
				RAISE;
			END IF;
		END;
		PERFORM pg_sleep(least(0.05 * v_attempt, 0.5));
	END LOOP;
	PERFORM cutover._new_exec('SET lock_timeout = 0');
END
$$;
COMMENT ON FUNCTION cutover._new_try(text, text[]) IS 'runs a statement on new that must not keep the application waiting';

-- What new and old say of the way back of a table: NULL = it is open.
CREATE FUNCTION cutover._open_reverse(p_table cutover._table, p_server name) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_new text := format('%I.%I', p_table.new_schema, p_table.new_name);
	v_new_columns jsonb := cutover._new_columns(p_server, p_table.new_schema, p_table.new_name);
	v_key text[];
	v_problem text;
	m record;
BEGIN
	DELETE FROM cutover._reverse_column c WHERE c.table_id = p_table.table_id;
	DELETE FROM cutover._reverse_table r WHERE r.table_id = p_table.table_id;
	IF v_new_columns IS NULL THEN
		RETURN format('table %s does not exist on new', v_new);
	END IF;
	SELECT string_agg(x.problem, ', ' ORDER BY x.attnum) INTO v_problem FROM cutover._reverse_map(p_table.table_id, v_new_columns) x;
	IF v_problem IS NOT NULL THEN
		RETURN v_problem;
	END IF;
	v_key := coalesce(cutover._new_key(p_table.table_id, v_new_columns), '{}');
	FOR m IN SELECT x.* FROM cutover._reverse_map(p_table.table_id, v_new_columns) x WHERE x.expression IS NOT NULL AND x.plain IS NULL LOOP
		BEGIN
			PERFORM cutover._new_exec(format('SELECT (%s) FROM %s LIMIT 0', m.expression, v_new));
		EXCEPTION WHEN syntax_error_or_access_rule_violation THEN
			RETURN format('the expression of reverse_columns for column %I fails: %s', m.old_column, SQLERRM);
		END;
	END LOOP;
	SELECT r->>'why_not' INTO v_problem FROM cutover._new_try('SELECT cutover.install_capture($1::int, $2, $3::text[]) AS why_not',
		p_table.table_id::text, v_new, v_key::text) r;
	IF v_problem IS NULL THEN
		SELECT r->>'why_not' INTO v_problem FROM cutover._new_try('SELECT cutover.prove_capture($1::int) AS why_not', p_table.table_id::text) r;
	END IF;
	IF v_problem !~ '^ok: ' THEN
		RETURN v_problem;
	END IF;
	INSERT INTO cutover._reverse_table (table_id, whole, columns)
	SELECT p_table.table_id, (r->>'whole')::boolean, (r->>'columns')::text[]
	FROM cutover._new_exec('SELECT whole, columns FROM cutover.captured WHERE table_id = $1::int', p_table.table_id::text) r;
	INSERT INTO cutover._reverse_column (table_id, attnum, expression)
	SELECT p_table.table_id, x.attnum, x.expression FROM cutover._reverse_map(p_table.table_id, v_new_columns) x WHERE x.expression IS NOT NULL;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION cutover._open_reverse(cutover._table, name) IS 'has new capture the changes of a table, and proves that it does; returns why not';

-- Installs the way back, before new becomes the master.  What can't be is written into _table.reverse_closed.
CREATE FUNCTION cutover._install_reverse(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target cutover._target;
	v_table cutover._table;
	v_k bigint;
	v_snapshot text;
BEGIN
	SELECT x.* INTO STRICT v_target FROM cutover._target x WHERE x.target_id = _install_reverse.target_id;
	PERFORM cutover._new_open(v_target.server, 3);
	-- a number that neither side has used
	SELECT greatest((SELECT p.k FROM cutover._reverse_progress p WHERE p.target_id = v_target.target_id), (r->>'k')::bigint, 0) + 1 INTO v_k
		FROM cutover._new_exec('SELECT max(k) AS k FROM cutover.progress WHERE direction = ''reverse''') r;
	SELECT r->>'snapshot' INTO STRICT v_snapshot FROM cutover._new_try('SELECT cutover.begin_queue($1::bigint, $2::bigint, $3) AS snapshot',
		v_k::text, pg_size_bytes(current_setting('cutover.queue_limit'))::text, current_setting('cutover.capture')) r;
	INSERT INTO cutover._reverse_progress AS p (target_id, k, snapshot) VALUES (v_target.target_id, v_k, v_snapshot)
		ON CONFLICT ON CONSTRAINT _reverse_progress_pkey DO UPDATE SET k = EXCLUDED.k, snapshot = EXCLUDED.snapshot, window_snapshot = NULL,
		done_id = NULL, forward_snapshot = NULL, applied_at = clock_timestamp();
	FOR v_table IN SELECT b.* FROM cutover._table b WHERE b.target_id = v_target.target_id ORDER BY b.table_id LOOP
		UPDATE cutover._table b SET reverse_closed = cutover._open_reverse(v_table, v_target.server) WHERE b.table_id = v_table.table_id;
	END LOOP;
END
$$;
COMMENT ON FUNCTION cutover._install_reverse(int) IS 'has new capture its changes for old, and proves it';

-- The way back is not needed any more: old is the master, or new for good.
CREATE FUNCTION cutover._remove_reverse(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_table int;
BEGIN
	PERFORM cutover._new_open((SELECT t.server FROM cutover._target t WHERE t.target_id = _remove_reverse.target_id), 3);
	FOR v_table IN SELECT (r->>'table_id')::int FROM cutover._new_exec('SELECT table_id FROM cutover.captured ORDER BY table_id') r LOOP
		PERFORM cutover._new_try('SELECT cutover.remove_capture($1::int)', v_table::text);
	END LOOP;
	DELETE FROM cutover._reverse_table r USING cutover._table t WHERE t.target_id = _remove_reverse.target_id AND t.table_id = r.table_id;
	PERFORM cutover._new_close();
END
$$;
COMMENT ON FUNCTION cutover._remove_reverse(int) IS 'has new capture nothing any more';
