-- table.sql: which tables are under migration, and how their rows become rows of new.

-- An expression over a row of a table, resolved and checked.  expected_type: what
-- an assignment must be able to make of it.  what: named in error messages.
CREATE FUNCTION cutover._compile_expression(rel regclass, expr text, expected_type text DEFAULT NULL, what text DEFAULT NULL)
RETURNS pg_node_tree
LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_compile_expression';

-- The columns that a compiled expression reads; 0 stands for the whole row.
CREATE FUNCTION cutover._expression_attnums(expr pg_node_tree) RETURNS int2[]
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'cutover_expression_attnums';

-- The columns that tell rows apart: the primary key, else the best unique index
-- that always holds (not null, not deferrable, of all rows, of plain columns).
CREATE FUNCTION cutover._find_key(rel regclass) RETURNS int2[]
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce((
		SELECT k.attnums
		FROM pg_index i,
			LATERAL (SELECT array_agg(u.attnum ORDER BY u.pos) AS attnums, bool_and(coalesce(a.attnotnull, false)) AS not_null
				FROM unnest(i.indkey::int2[]) WITH ORDINALITY u(attnum, pos)
				LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum AND u.attnum > 0
				WHERE u.pos <= i.indnkeyatts) k
		WHERE i.indrelid = rel AND i.indisunique AND i.indisvalid AND i.indimmediate
			AND i.indpred IS NULL AND i.indexprs IS NULL AND k.not_null
		ORDER BY i.indisprimary DESC, i.indnkeyatts, pg_relation_size(i.indexrelid), i.indexrelid
		LIMIT 1), '{}')
$$;

-- Refuses whoever may not decide about a table.
CREATE FUNCTION cutover._check_owner(rel regclass) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_owner oid;
BEGIN
	SELECT c.relowner INTO v_owner FROM pg_class c WHERE c.oid = rel;
	IF NOT pg_has_role(cutover._caller(), v_owner, 'MEMBER') THEN
		RAISE EXCEPTION 'must be owner of table %', rel USING ERRCODE = '42501',
			DETAIL = format('It belongs to role "%s".', pg_get_userbyid(v_owner)),
			HINT = format('Ask a member of "%s".', pg_get_userbyid(v_owner));
	END IF;
END
$$;

-- Why a relation can't be put under migration, or NULL: message, detail, hint.
CREATE FUNCTION cutover._unfit_relation(rel regclass, OUT message text, OUT detail text, OUT hint text)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	c record;
	v_root regclass;
BEGIN
	SELECT r.*, n.nspname INTO c FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = rel;
	IF c.relkind NOT IN ('r', 'p') THEN
		message := format('%s is not a table', rel);
		detail := format('It is %s.', CASE c.relkind WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view'
			WHEN 'S' THEN 'a sequence' WHEN 'f' THEN 'a foreign table' WHEN 'c' THEN 'a composite type'
			WHEN 't' THEN 'a TOAST table' ELSE 'an index' END);
		hint := CASE c.relkind WHEN 'v' THEN 'Add the tables that it reads, and create the view on new.'
			WHEN 'm' THEN 'Create and refresh it on new.'
			WHEN 'S' THEN 'Sequences are set with the tables that use them.'
			WHEN 'f' THEN 'Create the foreign table on new; its rows are elsewhere.'
			ELSE 'Name an ordinary or partitioned table.' END;
	ELSIF c.nspname = 'cutover' THEN
		message := format('table %s belongs to cutover itself', rel);
		detail := 'Schema "cutover" holds the state of the migration.';
		hint := 'Name a table of the application.';
	ELSIF c.nspname IN ('pg_catalog', 'information_schema', 'pg_toast') OR rel::oid < 16384 THEN
		message := format('table %s is a system catalog', rel);
		detail := 'Every database has its own.';
		hint := 'Roles, settings and definitions are moved with pg_dumpall and pg_dump -s.';
	ELSIF c.relpersistence = 't' THEN
		message := format('table %s is temporary', rel);
		detail := 'It ends with the session that made it.';
		hint := 'Name a permanent table.';
	ELSIF c.relpersistence = 'u' THEN
		message := format('table %s is unlogged', rel);
		detail := 'A crash empties it, and nobody could tell new.';
		hint := format('Run ALTER TABLE %s SET LOGGED first, or leave it out.', rel);
	ELSIF c.relispartition THEN
		v_root := pg_partition_root(rel);
		message := format('table %s is a partition', rel);
		detail := format('Partitions come with their root, table %s.', v_root);
		hint := format('Add %s.', v_root);
	ELSIF EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = rel AND d.deptype = 'e') THEN
		message := format('table %s belongs to an extension', rel);
		detail := format('It is a member of extension "%s".', (SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
			WHERE d.classid = 'pg_class'::regclass AND d.objid = rel AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass));
		hint := 'Create the extension on new; what it keeps there is its own.';
	ELSIF c.relkind = 'p' THEN
		SELECT format('partition %s is %s', t.relid, CASE WHEN l.relkind = 'f' THEN 'a foreign table' ELSE 'not permanent' END),
			CASE WHEN l.relkind = 'f' THEN 'Its rows are on another server.' ELSE 'A crash empties it, and nobody could tell new.' END,
			'Detach it, or make it an ordinary table.'
			INTO message, detail, hint
			FROM pg_partition_tree(rel) t JOIN pg_class l ON l.oid = t.relid
			WHERE l.relkind = 'f' OR l.relpersistence <> 'p' ORDER BY t.relid::oid LIMIT 1;
	END IF;
END
$$;

-- The name on new: as given, qualified or not, in SQL's own syntax.
CREATE FUNCTION cutover._parse_new_table(new_table text, old_table regclass, OUT new_schema name, OUT new_name name)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_parts text[];
BEGIN
	SELECT n.nspname, c.relname INTO new_schema, new_name
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = old_table;
	IF new_table IS NULL THEN
		RETURN;
	END IF;
	BEGIN
		v_parts := parse_ident(new_table);
	EXCEPTION WHEN invalid_parameter_value THEN
		v_parts := '{}';
	END;
	IF cardinality(v_parts) NOT IN (1, 2) OR EXISTS (SELECT FROM unnest(v_parts) p WHERE p = '' OR octet_length(p) > 63) THEN
		RAISE EXCEPTION 'new_table "%" is not the name of a table', new_table USING ERRCODE = '22023',
			DETAIL = format('It should name the table on new that takes the rows of %s.', old_table),
			HINT = 'Write name, schema.name or "Quoted".name, or leave it out for the same name.';
	END IF;
	new_name := v_parts[cardinality(v_parts)];
	IF cardinality(v_parts) = 2 THEN
		new_schema := v_parts[1];
	END IF;
	IF new_schema IN ('cutover', 'pg_catalog', 'information_schema') THEN
		RAISE EXCEPTION 'rows cannot be moved into schema "%"', new_schema USING ERRCODE = '22023',
			DETAIL = format('The schema is not one of the application (table %s).', old_table),
			HINT = 'Name a table in another schema.';
	END IF;
END
$$;

-- The columns of a table on new: name -> {type, generated}; NULL if there is no
-- such table yet, or new can't be asked now.
CREATE FUNCTION cutover._new_columns(server name, new_schema name, new_name name) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN (SELECT jsonb_object_agg(r->>'name', r) FROM cutover._remote(server, $sql$
		SELECT a.attname AS name, pg_catalog.format_type(a.atttypid, NULL) AS type, a.attgenerated <> '' AS generated
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
		$sql$, new_schema::text, new_name::text) r);
EXCEPTION WHEN connection_exception OR sqlclient_unable_to_establish_sqlconnection OR connection_failure THEN
	RAISE WARNING 'new cannot be reached: the columns of %.% are not checked now', quote_ident(new_schema), quote_ident(new_name)
		USING DETAIL = SQLERRM, HINT = 'They are checked by cutover_preflight().';
	RETURN NULL;
END
$$;

-- Refuses a jsonb argument that is not an object of texts (nulls too where allowed).
CREATE FUNCTION cutover._check_mapping(argument text, mapping jsonb, allow_null boolean) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_bad text;
BEGIN
	IF jsonb_typeof(mapping) <> 'object' THEN
		RAISE EXCEPTION '% must be an object', argument USING ERRCODE = '22023',
			DETAIL = format('It is of JSON type %s.', jsonb_typeof(mapping)),
			HINT = 'Write {"column": "expression", ...}.';
	END IF;
	SELECT e.key INTO v_bad FROM jsonb_each(mapping) e
		WHERE jsonb_typeof(e.value) <> 'string' AND NOT (allow_null AND jsonb_typeof(e.value) = 'null') ORDER BY 1 LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION '% has no expression for column "%"', argument, v_bad USING ERRCODE = '22023',
			DETAIL = format('Its value is of JSON type %s, not a string.', jsonb_typeof(mapping->v_bad)),
			HINT = 'Write SQL expressions as strings: {"column": "expression"}.';
	END IF;
END
$$;

-- Refuses a mapping after which rows of new can't be told apart as those of old.
CREATE FUNCTION cutover._check_key_survives(table_id int, rel regclass, new_table text) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_key int2[] := cutover._find_key(rel);
	v_lost text;
BEGIN
	SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO v_lost
	FROM pg_attribute a
	WHERE a.attrelid = rel AND a.attnum = ANY (v_key)
		AND NOT EXISTS (SELECT FROM cutover._column c, LATERAL (SELECT CASE WHEN c.attnum IS NOT NULL THEN ARRAY[c.attnum]
				ELSE cutover._expression_attnums(c.expr) END AS attnums) r
			WHERE c.table_id = _check_key_survives.table_id AND a.attnum = ANY (r.attnums) AND r.attnums <@ v_key);
	IF v_lost IS NOT NULL THEN
		RAISE EXCEPTION 'the key of table % does not survive the mapping', rel USING ERRCODE = '22023',
			DETAIL = format('No column of %s is made of key columns alone and holds %s.', new_table, v_lost),
			HINT = 'Map every key column to a column of new, for example {"id": "id"}.';
	END IF;
END
$$;

-- Fills _column for a table.
CREATE FUNCTION cutover._write_columns(table_id int, rel regclass, columns jsonb, new_table text, new_columns jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_name text;
	v_expr text;
	v_type text;
	v_attnum int2;
	v_node pg_node_tree;
	v_read int2[] := '{}';
BEGIN
	FOR v_name, v_expr IN SELECT e.key, e.value FROM jsonb_each_text(coalesce(columns, '{}')) e ORDER BY 1 LOOP
		IF v_name = '' OR octet_length(v_name) > 63 THEN
			RAISE EXCEPTION '"%" is not the name of a column', v_name USING ERRCODE = '22023',
				DETAIL = format('columns of %s names columns of %s.', rel, new_table),
				HINT = 'Write {"column of new": "expression over the row of old"}.';
		ELSIF new_columns IS NOT NULL AND NOT new_columns ? v_name THEN
			RAISE EXCEPTION 'column "%" of table % does not exist on new', v_name, new_table USING ERRCODE = '42703',
				DETAIL = format('columns of %s maps to it.', rel),
				HINT = 'Create the column on new first, or correct its name.';
		ELSIF (new_columns->v_name->>'generated')::boolean THEN
			RAISE EXCEPTION 'column "%" of table % on new is generated', v_name, new_table USING ERRCODE = '22023',
				DETAIL = 'New computes its values.',
				HINT = 'Leave it out of columns.';
		END IF;
		CONTINUE WHEN v_expr IS NULL;		-- left to new's default
		v_type := new_columns->v_name->>'type';
		IF v_type IS NOT NULL AND to_regtype(v_type) IS NULL THEN
			v_type := NULL;		-- a type that only new has: its input function decides
		END IF;
		v_node := cutover._compile_expression(rel, v_expr, v_type, format('column "%s"', v_name));
		v_read := v_read || cutover._expression_attnums(v_node);
		SELECT a.attnum INTO v_attnum FROM pg_attribute a
			WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped AND btrim(v_expr) = quote_ident(a.attname);
		INSERT INTO cutover._column (table_id, new_column, attnum, expression, expr)
		VALUES (_write_columns.table_id, v_name, v_attnum, v_expr, CASE WHEN v_attnum IS NULL THEN v_node END);
	END LOOP;

	-- the others go by name: those that new has; where new has no table yet, those that no expression has used up
	INSERT INTO cutover._column (table_id, new_column, attnum)
	SELECT _write_columns.table_id, a.attname, a.attnum FROM pg_attribute a
	WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
		AND NOT coalesce(columns, '{}') ? a.attname::text
		AND CASE
			WHEN new_columns IS NOT NULL AND columns IS NOT NULL
				THEN new_columns ? a.attname::text AND NOT (new_columns->(a.attname::text)->>'generated')::boolean
			WHEN a.attgenerated <> '' THEN NOT coalesce((new_columns->(a.attname::text)->>'generated')::boolean, true)
			WHEN columns IS NOT NULL THEN NOT a.attnum = ANY (v_read)
			ELSE true END
		-- a column that is computed when it is read has no value in a captured row
		AND a.attgenerated <> 'v';

	IF columns IS NOT NULL THEN
		PERFORM cutover._check_key_survives(table_id, rel, new_table);
	END IF;
END
$$;

-- Refuses a column that can't tell when a row was changed.
CREATE FUNCTION cutover._check_version_column(rel regclass, version_column name) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_type oid;
BEGIN
	SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END INTO v_type
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		WHERE a.attrelid = rel AND a.attname = version_column AND a.attnum > 0 AND NOT a.attisdropped;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'column "%" of table % does not exist', version_column, rel USING ERRCODE = '42703',
			DETAIL = 'version_column must be a column of the table on old.',
			HINT = 'Name the column that holds the time of a row''s last change, or leave it out.';
	ELSIF v_type NOT IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype, 'int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN
		RAISE EXCEPTION 'column "%" of table % cannot be a version column', version_column, rel USING ERRCODE = '22023',
			DETAIL = format('It is of type %s.', format_type(v_type, NULL)),
			HINT = 'A version column is a time stamp, a date or an integer that grows with every change.';
	END IF;
END
$$;

-- Refuses reverse_columns that names what old doesn't have.
CREATE FUNCTION cutover._check_reverse_columns(old_table regclass, reverse_columns jsonb) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_bad text;
BEGIN
	PERFORM cutover._check_mapping('reverse_columns', reverse_columns, false);
	SELECT k INTO v_bad FROM jsonb_object_keys(reverse_columns) k WHERE NOT EXISTS (SELECT FROM pg_attribute a
		WHERE a.attrelid = old_table AND a.attname = k AND a.attnum > 0 AND NOT a.attisdropped) ORDER BY 1 LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'column "%" of table % does not exist', v_bad, old_table USING ERRCODE = '42703',
			DETAIL = 'reverse_columns names columns of old.',
			HINT = 'Write {"column of old": "expression over the row of new"}.';
	END IF;
END
$$;

-- One table: checks, rows, capture.  Returns its table_id.
CREATE FUNCTION cutover._add_one_table(old_table regclass, new_table text, columns jsonb, row_filter text, version_column name,
	final_when text, reverse_columns jsonb, target_id int) RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_unfit record;
	v_target cutover._target;
	v_other record;
	v_new record;
	v_id int;
	v_filter pg_node_tree;
	v_final pg_node_tree;
BEGIN
	SELECT * INTO v_unfit FROM cutover._unfit_relation(old_table);
	IF v_unfit.message IS NOT NULL THEN
		RAISE EXCEPTION '%', v_unfit.message USING ERRCODE = '42809', DETAIL = v_unfit.detail, HINT = v_unfit.hint;
	END IF;
	PERFORM cutover._check_owner(old_table);
	EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', old_table);
	SELECT * INTO STRICT v_target FROM cutover._target t WHERE t.target_id = _add_one_table.target_id FOR SHARE;
	IF v_target.desired = 'finished' OR v_target.mode = 'new_only' THEN
		RAISE EXCEPTION 'tables cannot be added to target "%" now', v_target.target USING ERRCODE = '55000',
			DETAIL = format('It is %s.', CASE WHEN v_target.desired = 'finished' THEN 'finished' ELSE 'in mode ' || v_target.mode END),
			HINT = 'Add tables while old is master.';
	END IF;
	PERFORM cutover._refuse_switching(v_target);
	SELECT t.table_id, g.target INTO v_other FROM cutover._table t JOIN cutover._target g USING (target_id) WHERE t.old_table = _add_one_table.old_table;
	IF FOUND THEN
		RAISE EXCEPTION 'table % is already under migration', old_table USING ERRCODE = '55006',
			DETAIL = format('It belongs to target "%s".', v_other.target),
			HINT = 'Remove it first with cutover_remove_table() to add it in another way.';
	END IF;
	SELECT * INTO v_new FROM cutover._parse_new_table(new_table, old_table);
	SELECT t.old_table::regclass AS old_table INTO v_other FROM cutover._table t
		WHERE t.target_id = _add_one_table.target_id AND t.new_schema = v_new.new_schema AND t.new_name = v_new.new_name;
	IF FOUND THEN
		RAISE EXCEPTION 'table %.% on new already takes the rows of %', quote_ident(v_new.new_schema), quote_ident(v_new.new_name), v_other.old_table
			USING ERRCODE = '55006',
			DETAIL = format('Table %s cannot go to the same table.', old_table),
			HINT = 'Give it another new_table.';
	END IF;
	IF version_column IS NOT NULL THEN
		PERFORM cutover._check_version_column(old_table, version_column);
	END IF;
	IF row_filter IS NOT NULL THEN
		v_filter := cutover._compile_expression(old_table, row_filter, 'boolean', 'row_filter');
	END IF;
	IF final_when IS NOT NULL THEN
		v_final := cutover._compile_expression(old_table, final_when, 'boolean', 'final_when');
	END IF;
	IF columns IS NOT NULL THEN
		PERFORM cutover._check_mapping('columns', columns, true);
	END IF;
	IF reverse_columns IS NOT NULL THEN
		PERFORM cutover._check_reverse_columns(old_table, reverse_columns);
	END IF;
	BEGIN
		INSERT INTO cutover._table (target_id, old_table, new_schema, new_name, default_columns, row_filter, row_filter_expr,
			version_column, final_when, final_when_expr, reverse_columns, key_attnums)
		VALUES (_add_one_table.target_id, _add_one_table.old_table, v_new.new_schema, v_new.new_name, columns IS NULL, row_filter, v_filter,
			version_column, final_when, v_final, reverse_columns, cutover._find_key(_add_one_table.old_table))
		RETURNING table_id INTO v_id;
	EXCEPTION WHEN unique_violation THEN
		RAISE EXCEPTION 'table % is already under migration', old_table USING ERRCODE = '55006',
			DETAIL = 'Another session has added it at the same time.',
			HINT = 'See cutover.tables.';
	END;
	PERFORM cutover._write_columns(v_id, old_table, columns, format('%I.%I', v_new.new_schema, v_new.new_name),
		cutover._new_columns(v_target.server, v_new.new_schema, v_new.new_name));
	IF v_target.desired IN ('running', 'paused') THEN
		PERFORM cutover._change_capture(v_id, true);
		PERFORM cutover._install_new_guard(v_target.target_id, v_id);
		PERFORM cutover._wake_replicator(v_target.target_id);
	END IF;
	PERFORM cutover._log_event('add_table', jsonb_build_object('table', old_table::text,
		'new_table', format('%I.%I', v_new.new_schema, v_new.new_name)), v_target.target_id);
	RETURN v_id;
END
$$;

-- Continues cutover_add_table.  An inheritance parent comes with its children,
-- each a table of its own.
CREATE FUNCTION cutover._add_table(old_table regclass, new_table text, columns jsonb, row_filter text, version_column name,
	final_when text, shard_by text, reverse_columns jsonb, target name) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target_id int;
	v_child regclass;
	v_children regclass[];
BEGIN
	PERFORM cutover._not_null('old_table', old_table IS NULL);
	IF shard_by IS NOT NULL THEN
		RAISE EXCEPTION 'sharded targets are not supported yet' USING ERRCODE = '0A000',
			DETAIL = format('shard_by was given for table %s.', old_table),
			HINT = 'Give each new database a target of its own, and row_filter to its tables.';
	END IF;
	v_target_id := cutover._target_id(target);
	IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = old_table) THEN
		RAISE EXCEPTION 'relation with OID % does not exist', old_table::oid USING ERRCODE = '42P01',
			DETAIL = 'It has been dropped, or never was.', HINT = 'Name a table of this database.';
	END IF;
	v_children := CASE WHEN (SELECT relkind = 'r' FROM pg_class WHERE oid = old_table) THEN cutover._inheritors(old_table) ELSE '{}' END;
	IF v_children <> '{}' AND new_table IS NOT NULL THEN
		RAISE EXCEPTION 'an inheritance tree keeps its names' USING ERRCODE = '0A000',
			DETAIL = format('Table %s has %s child tables, which are tables of their own on new.', old_table, cardinality(v_children)),
			HINT = 'Leave new_table out.';
	END IF;
	PERFORM cutover._add_one_table(old_table, new_table, columns, row_filter, version_column, final_when, reverse_columns, v_target_id);
	FOREACH v_child IN ARRAY v_children LOOP
		CONTINUE WHEN EXISTS (SELECT FROM cutover._table t WHERE t.old_table = v_child AND t.target_id = v_target_id);
		PERFORM cutover._add_one_table(v_child, NULL, columns, row_filter, version_column, final_when, reverse_columns, v_target_id);
	END LOOP;
END
$$;

-- All tables below an inheritance parent.
CREATE FUNCTION cutover._inheritors(rel regclass) RETURNS regclass[]
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	WITH RECURSIVE tree(relid) AS (
		SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = rel
		UNION
		SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relid)
	SELECT coalesce(array_agg(relid::regclass ORDER BY relid), '{}') FROM tree
$$;

CREATE FUNCTION @extschema@.cutover_add_table(old_table regclass, new_table text DEFAULT NULL, columns jsonb DEFAULT NULL,
	row_filter text DEFAULT NULL, version_column name DEFAULT NULL, final_when text DEFAULT NULL, shard_by text DEFAULT NULL,
	reverse_columns jsonb DEFAULT NULL, target name DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_enter';
COMMENT ON FUNCTION @extschema@.cutover_add_table(regclass, text, jsonb, text, name, text, text, jsonb, name) IS
'Set up: puts a table under migration, with the name, columns and rows that it shall have on new';

CREATE FUNCTION @extschema@.cutover_add_tables(schema_name name DEFAULT 'public', except_tables regclass[] DEFAULT '{}', target name DEFAULT NULL)
RETURNS SETOF regclass
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target_id int;
	v_table regclass;
BEGIN
	PERFORM cutover._not_null('schema_name', schema_name IS NULL);
	v_target_id := cutover._target_id(target);
	IF NOT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = schema_name) THEN
		RAISE EXCEPTION 'schema "%" does not exist', schema_name USING ERRCODE = '3F000',
			DETAIL = 'Its tables cannot be added.', HINT = 'Name a schema of this database.';
	ELSIF schema_name IN ('cutover', 'pg_catalog', 'information_schema', 'pg_toast') THEN
		RAISE EXCEPTION 'schema "%" cannot be put under migration', schema_name USING ERRCODE = '42809',
			DETAIL = 'It does not belong to the application.', HINT = 'Name another schema.';
	END IF;
	FOR v_table IN SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = schema_name AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
			AND c.oid <> ALL (coalesce(except_tables, '{}')::oid[])
			AND NOT EXISTS (SELECT FROM cutover._table t WHERE t.old_table = c.oid)
			AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		ORDER BY c.relname
	LOOP
		PERFORM cutover._add_one_table(v_table, NULL, NULL, NULL, NULL, NULL, NULL, v_target_id);
		RETURN NEXT v_table;
	END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_add_tables(name, regclass[], name) IS
'Set up: puts all ordinary and partitioned tables of a schema under migration that are not yet';

-- Brings back on new what was taken off a table.
CREATE FUNCTION cutover._restore_deferred(table_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_table cutover._table;
	v_server name;
	v_failed jsonb;
BEGIN
	SELECT t.* INTO STRICT v_table FROM cutover._table t WHERE t.table_id = _restore_deferred.table_id;
	SELECT g.server INTO STRICT v_server FROM cutover._target g WHERE g.target_id = v_table.target_id;
	IF cutover._owner_of_new(v_table.target_id) IN ('copy', 'foreign') THEN
		RETURN;
	END IF;
	PERFORM cutover._check_owner_of_new(v_table.target_id);
	-- whoever holds it there may wait for us here
	PERFORM cutover._remote(v_server, 'SET LOCAL lock_timeout = 5000');
	FOR v_failed IN SELECT r FROM cutover._remote_long(v_server, format('SELECT * FROM cutover.restore_deferred(%s)', table_id)) r LOOP
		RAISE WARNING '"%" of % could not be brought back on new', v_failed->>'name', v_failed->>'relation'
			USING DETAIL = v_failed->>'message', HINT = format('Mend the rows and run on new: %s', v_failed->>'definition');
	END LOOP;
	PERFORM cutover._remote(v_server, 'SELECT cutover.remove_guard($1::int)', table_id::text);
	PERFORM cutover._remote(v_server, 'SET LOCAL lock_timeout = 0');
EXCEPTION WHEN connection_exception OR sqlclient_unable_to_establish_sqlconnection OR connection_failure THEN
	RAISE WARNING 'new cannot be reached: what was taken off table %.% there is not brought back', quote_ident(v_table.new_schema), quote_ident(v_table.new_name)
		USING DETAIL = SQLERRM, HINT = format('Run there, once it is back: SELECT * FROM cutover.restore_deferred(%s).', table_id);
END
$$;

-- Takes one table out, here and on new.
-- Until the end of this transaction no copier works on the table; they hold its lock on old, and rows on new.
CREATE FUNCTION cutover._hold_copy(table_id int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_copy_hold';

CREATE FUNCTION cutover._remove_one_table(table_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_table cutover._table;
	v_target cutover._target;
BEGIN
	PERFORM cutover._hold_copy(table_id);
	SELECT * INTO STRICT v_table FROM cutover._table t WHERE t.table_id = _remove_one_table.table_id FOR UPDATE;
	SELECT * INTO STRICT v_target FROM cutover._target t WHERE t.target_id = v_table.target_id FOR SHARE;
	IF v_target.mode <> 'old_only' THEN
		RAISE EXCEPTION 'table % cannot be removed in mode %', v_table.old_table::regclass, v_target.mode USING ERRCODE = '55000',
			DETAIL = 'Sessions rely on both sides having its rows.',
			HINT = 'Go back with cutover_set_mode(''old_only'') first.';
	END IF;
	PERFORM cutover._refuse_switching(v_target);
	IF v_target.started_at IS NOT NULL THEN
		-- first, while nothing is locked here that a copier of this table could wait for
		PERFORM cutover._restore_deferred(v_table.table_id);
		PERFORM cutover._enqueue_control(v_target.target_id, v_table.table_id, 'Z', '');
		PERFORM cutover._change_capture(v_table.table_id, false);
		PERFORM cutover._wake_replicator(v_target.target_id);
	END IF;
	PERFORM cutover._log_event('remove_table', jsonb_build_object('table', v_table.old_table::regclass::text), v_target.target_id);
	DELETE FROM cutover._table t WHERE t.table_id = v_table.table_id;
END
$$;

CREATE FUNCTION @extschema@.cutover_remove_table(old_table regclass, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target_id int;
	v_id int;
BEGIN
	PERFORM cutover._not_null('old_table', old_table IS NULL);
	v_target_id := cutover._table_target(old_table, target);
	PERFORM cutover._check_owner(old_table);
	FOR v_id IN SELECT t.table_id FROM cutover._table t WHERE t.target_id = v_target_id
		AND (t.old_table = cutover_remove_table.old_table
			OR t.old_table = ANY (cutover._inheritors(cutover_remove_table.old_table)::oid[])) ORDER BY t.table_id
	LOOP
		PERFORM cutover._remove_one_table(v_id);
	END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_remove_table(regclass, name) IS
'Set up: takes a table out of the migration; its rows on new stay, what was taken off it there comes back';

-- The target of a table under migration; refuses others.
CREATE FUNCTION cutover._table_target(old_table regclass, target name) RETURNS int
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_wanted int := CASE WHEN target IS NOT NULL THEN cutover._target_id(target) END;
	v_id int;
BEGIN
	SELECT t.target_id INTO v_id FROM cutover._table t WHERE t.old_table = _table_target.old_table;
	IF NOT FOUND OR v_id <> v_wanted THEN
		RAISE EXCEPTION 'table % is not under migration%', old_table,
			CASE WHEN target IS NULL THEN '' ELSE format(' to target "%s"', target) END USING ERRCODE = '42704',
			DETAIL = CASE WHEN v_id IS NULL THEN 'No target has it.' ELSE format('It belongs to target "%s".',
				(SELECT g.target FROM cutover._target g WHERE g.target_id = v_id)) END,
			HINT = 'See cutover.tables for those that are; add it with cutover_add_table().';
	END IF;
	RETURN v_id;
END
$$;
