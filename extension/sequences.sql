-- sequences.sql: who becomes master must not hand out numbers that the other side has.
--
-- A sequence is known by its position: the next value that it would give.
-- Before the gate closes the other side's are set ahead with a margin; behind
-- the gate, where no writer is left, they are looked at again.

-- Sequences of this database that come along with a target: those that its tables own or use in defaults, and those that
-- belong to no table at all.  new_column: where new uses its counterpart; NULL = it goes by name.
CREATE FUNCTION cutover._sequences(target_id int)
RETURNS TABLE (seq oid, seq_schema name, seq_name name, new_schema name, new_table name, new_column name)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH used AS (
		SELECT d.objid AS seq, d.refobjid AS relid, d.refobjsubid AS attnum
		FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
		UNION
		SELECT d.refobjid, f.adrelid, f.adnum
		FROM pg_depend d JOIN pg_attrdef f ON f.oid = d.objid JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
		WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
	), ours AS (
		SELECT DISTINCT ON (u.seq) u.seq, t.new_schema, t.new_name,
			CASE WHEN u.relid = t.old_table THEN coalesce(
				(SELECT c.new_column FROM cutover._column c WHERE c.table_id = t.table_id AND c.attnum = u.attnum LIMIT 1),
				(SELECT a.attname FROM pg_attribute a WHERE t.default_columns AND a.attrelid = u.relid AND a.attnum = u.attnum)) END AS new_column
		FROM used u JOIN cutover._member m ON m.relid = u.relid JOIN cutover._table t USING (table_id)
		WHERE t.target_id = $1
		ORDER BY u.seq, u.relid <> t.old_table, t.table_id, u.attnum
	)
	SELECT s.oid, n.nspname, s.relname, o.new_schema, o.new_name, o.new_column
	FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace LEFT JOIN ours o ON o.seq = s.oid
	WHERE s.relkind = 'S' AND s.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'cutover')
		AND (o.seq IS NOT NULL OR NOT EXISTS (SELECT FROM used u WHERE u.seq = s.oid))
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype = 'e')
$$;
COMMENT ON FUNCTION cutover._sequences(int) IS 'sequences of this database that come along with a target, and where new has their counterparts';

-- The same with the name on new; NULL = there is none.
CREATE FUNCTION cutover._match_sequences(target_id int) RETURNS TABLE (seq oid, old_name text, new_name text, of_table boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server name := (SELECT t.server FROM cutover._target t WHERE t.target_id = _match_sequences.target_id);
	v_wanted jsonb := (SELECT jsonb_agg(to_jsonb(s) ORDER BY s.seq) FROM cutover._sequences(target_id) s);
BEGIN
	IF v_wanted IS NULL THEN
		RETURN;
	END IF;
	RETURN QUERY
	SELECT (r->>'seq')::oid, format('%I.%I', w.seq_schema, w.seq_name), r->>'found', w.new_schema IS NOT NULL
	FROM cutover._remote(v_server, $sql$
		SELECT w.seq, (SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind = 'S' AND c.oid = coalesce(
				(SELECT d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
					WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
						AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i') LIMIT 1),
				(SELECT d.refobjid FROM pg_catalog.pg_attrdef f
					JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = f.oid
						AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
					JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
					WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum LIMIT 1),
				pg_catalog.to_regclass(pg_catalog.format('%I.%I', w.seq_schema, w.seq_name))::oid)) AS found
		FROM pg_catalog.jsonb_to_recordset($1::jsonb)
			AS w(seq oid, seq_schema name, seq_name name, new_schema name, new_table name, new_column name)
		LEFT JOIN pg_catalog.pg_attribute a ON a.attname = w.new_column AND a.attnum > 0
			AND a.attrelid = pg_catalog.to_regclass(pg_catalog.quote_ident(w.new_schema) || '.' || pg_catalog.quote_ident(w.new_table))
		$sql$, v_wanted::text) r
	JOIN cutover._sequences(target_id) w ON w.seq = (r->>'seq')::oid;
END
$$;
COMMENT ON FUNCTION cutover._match_sequences(int) IS 'sequences of this database that come along with a target, with their names on new';

-- Where sequences stand.  The same function is put on new: names in, nothing of ours used.
CREATE FUNCTION cutover._sequence_states(names text[]) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_name text;
	v_last bigint;
	v_called boolean;
	v_result jsonb := '[]';
BEGIN
	FOREACH v_name IN ARRAY names LOOP
		EXECUTE 'SELECT last_value, is_called FROM ' || v_name INTO v_last, v_called;
		v_result := v_result || jsonb_build_object('last', v_last, 'called', v_called,
			'increment', (SELECT s.seqincrement FROM pg_sequence s WHERE s.seqrelid = v_name::regclass),
			'cache', (SELECT s.seqcache FROM pg_sequence s WHERE s.seqrelid = v_name::regclass));
	END LOOP;
	RETURN v_result;
END
$$;
COMMENT ON FUNCTION cutover._sequence_states(text[]) IS 'last value, whether it was given, increment and cache of sequences';

-- Sets sequences here ahead of where those of the other side stand; returns how many had to be set.  Those that are
-- ahead already stay, and so do those that have given nothing on either side.  The same function is put on new.
CREATE FUNCTION cutover._advance_sequences(names text[], states jsonb, margin boolean) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	i int;
	v_there jsonb;
	v_here record;
	s record;
	v_last numeric;								-- there
	v_step numeric;
	v_wanted numeric;							-- what comes next here, at least
	v_next numeric;								-- what does
	v_margin numeric;
	v_set int := 0;
BEGIN
	FOR i IN 1 .. cardinality(names) LOOP
		v_there := states->(i - 1);
		v_last := v_there->'last';
		v_step := v_there->'increment';
		EXECUTE 'SELECT last_value, is_called FROM ' || names[i] INTO v_here;
		SELECT * INTO STRICT s FROM pg_sequence q WHERE q.seqrelid = names[i]::regclass;
		IF v_last NOT BETWEEN s.seqmin AND s.seqmax OR sign(v_step) <> sign(s.seqincrement) THEN
			RAISE EXCEPTION 'sequence % cannot stand at %', names[i], v_last USING ERRCODE = '55000',
				DETAIL = format('That of the other side does, and counts by %s; this one counts by %s from %s to %s.', v_step, s.seqincrement, s.seqmin, s.seqmax),
				HINT = 'Make the sequences alike with ALTER SEQUENCE.';
		ELSIF s.seqcycle THEN
			-- "ahead" has no meaning in a circle
			IF v_here.last_value <> v_last OR v_here.is_called <> (v_there->'called')::boolean THEN
				PERFORM setval(names[i]::regclass, v_last::bigint, (v_there->'called')::boolean);
				v_set := v_set + 1;
			END IF;
			CONTINUE;
		END IF;
		v_next := v_here.last_value + CASE WHEN v_here.is_called THEN s.seqincrement ELSE 0 END;
		v_wanted := v_last + CASE WHEN (v_there->'called')::boolean THEN v_step ELSE 0 END;
		-- of what is left at most a hundredth, so that a small sequence is not used up by switches
		v_margin := trunc(least(greatest(1000, 2 * (v_there->'cache')::numeric),
			abs(CASE WHEN v_step > 0 THEN s.seqmax ELSE s.seqmin END - v_last) / abs(v_step) / 100));
		IF margin AND (v_there->'called')::boolean THEN
			-- half of it left is enough: it is not added at every look
			v_wanted := v_wanted + trunc(v_step * trunc(v_margin / 2));
		END IF;
		IF (v_next - v_wanted) * sign(v_step) < 0 THEN
			IF (v_there->'called')::boolean THEN
				PERFORM setval(names[i]::regclass, (v_last + v_step * v_margin)::bigint, true);
			ELSE
				PERFORM setval(names[i]::regclass, v_last::bigint, false);
			END IF;
			v_set := v_set + 1;
		END IF;
	END LOOP;
	RETURN v_set;
END
$$;
COMMENT ON FUNCTION cutover._advance_sequences(text[], jsonb, boolean) IS 'sets sequences ahead of where those of the other side stand';

-- The two functions as new gets them.
CREATE FUNCTION cutover._new_sequence_script() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT string_agg(replace(pg_get_functiondef(p.oid), 'FUNCTION cutover._', 'FUNCTION cutover.') || ';'
			|| format('REVOKE ALL ON FUNCTION cutover.%I(%s) FROM PUBLIC;', substr(p.proname, 2), pg_get_function_identity_arguments(p.oid)), E'\n')
	FROM pg_proc p WHERE p.oid IN ('cutover._sequence_states(text[])'::regprocedure, 'cutover._advance_sequences(text[], jsonb, boolean)'::regprocedure)
$$;
COMMENT ON FUNCTION cutover._new_sequence_script() IS 'functions on sequences, as they are put on new';
