-- preflight_tables.sql: the groups of checks that compare tables of old and new.
-- See preflight.sql.

-- What stays on the other side of the target's border, seen on old.
CREATE FUNCTION cutover._preflight_border(target_id int, old_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'warning', 'border', k.from_name,
		format('foreign key %I refers to %s, which is not under migration to this target', k.name, k.to_name),
		format('Put %s under migration too, or accept that new can''t check this key.', k.to_name)
	FROM cutover._preflight_doc_foreign_keys(old_doc) k
	WHERE k.from_t IS NOT NULL AND k.to_t IS NULL
	UNION ALL
	SELECT 'warning', 'border', k.from_name,
		format('its foreign key %I refers to %s, but it is not under migration to this target', k.name, k.to_name),
		format('Put %s under migration too: once new is written to, this key no longer sees all rows.', k.from_name)
	FROM cutover._preflight_doc_foreign_keys(old_doc) k
	WHERE k.from_t IS NULL AND k.to_t IS NOT NULL
	UNION ALL
	-- row filter
	SELECT 'warning', 'row_filter', o.name, format('rows for which (%s) is not true are not moved', b.row_filter),
		'They stay on old alone, and vanish from new when they cease to match.'
	FROM cutover._table b JOIN cutover._preflight_doc_tables(old_doc) o ON o.t = b.table_id
	WHERE b.target_id = $1 AND b.row_filter IS NOT NULL
	UNION ALL
	SELECT 'warning', 'row_filter', k.from_name,
		format('foreign key %I refers to %s, of which only filtered rows are moved', k.name, k.to_name),
		'A row whose parent is filtered away is rejected by the same key on new: filter both tables alike.'
	FROM cutover._preflight_doc_foreign_keys(old_doc) k JOIN cutover._table b ON b.table_id = k.to_t
	WHERE b.row_filter IS NOT NULL AND k.from_t IS NOT NULL AND k.from_t <> k.to_t
	UNION ALL
	-- storage
	SELECT 'error', 'storage', b.old_table::text, 'the table no longer exists on old', 'cutover_remove_table() takes it out of the migration.'
	FROM cutover._table b
	WHERE b.target_id = $1 AND NOT EXISTS (SELECT FROM cutover._preflight_doc_tables(old_doc) o WHERE o.t = b.table_id)
	UNION ALL
	SELECT 'error', 'storage', o.name, format('partition %s is a foreign table: its changes can''t be captured', f),
		'Detach it, or move its rows into an ordinary partition.'
	FROM cutover._preflight_doc_tables(old_doc) o, jsonb_array_elements_text(nullif(o.foreign_parts, 'null')) f
	UNION ALL
	SELECT 'warning', 'storage', u, 'the table is unlogged: a crash of old empties it, which no trigger sees',
		format('ALTER TABLE %s SET LOGGED; or cutover_resync() after a crash.', u)
	FROM (SELECT o.name AS u FROM cutover._preflight_doc_tables(old_doc) o WHERE o.persistence = 'u'
		UNION SELECT p FROM cutover._preflight_doc_tables(old_doc) o, jsonb_array_elements_text(nullif(o.unlogged_parts, 'null')) p) x
	UNION ALL
	-- object references
	SELECT 'warning', 'object_references', format('%s.%I', o.name, c.name),
		format('type %s refers to objects of this server, and new has other ones', c.display),
		CASE WHEN c.core = 'oid' THEN 'If these are large objects: they are not moved. If they are just numbers: nothing to do.'
			ELSE 'Values are moved by name; a name that new lacks is rejected.' END
	FROM cutover._preflight_doc_columns(old_doc) c JOIN cutover._preflight_doc_tables(old_doc) o USING (t)
	WHERE c.attnum > 0 AND c.core_schema = 'pg_catalog'
		AND c.core IN ('oid', 'regclass', 'regproc', 'regprocedure', 'regoper', 'regoperator', 'regtype', 'regrole',
			'regnamespace', 'regconfig', 'regdictionary', 'regcollation', 'xid', 'xid8', 'cid', 'tid')
$$;
COMMENT ON FUNCTION cutover._preflight_border(int, jsonb) IS 'preflight: tables of old and what they have to do with others';

-- The tables of new as such.
CREATE FUNCTION cutover._preflight_tables(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH wanted AS (
		SELECT b.table_id AS t, format('%I.%I', b.new_schema, b.new_name) AS name FROM cutover._table b WHERE b.target_id = $1
	), n AS (
		SELECT * FROM cutover._preflight_doc_tables(new_doc)
	), s AS (
		SELECT x->>'role' AS role, (x->>'may_replica')::boolean AS may_replica, (x->>'bypass_rls')::boolean AS bypass_rls
		FROM (SELECT new_doc->'server') y (x)
	)
	SELECT 'error', 'new_table', w.name, 'the table does not exist on new', 'Create it there: pg_dump --schema-only writes the statements.'
	FROM wanted w WHERE NOT EXISTS (SELECT FROM n WHERE n.t = w.t)
	UNION ALL
	SELECT 'error', 'new_table', n.name, format('this is no table on new but a %s',
			CASE n.kind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
				WHEN 'i' THEN 'index' ELSE 'thing of kind "' || n.kind || '"' END),
		'Rows are written to ordinary and partitioned tables.'
	FROM n WHERE n.kind NOT IN ('r', 'p')
	UNION ALL
	SELECT 'error', 'new_storage', n.name, 'the table is unlogged on new: a crash there empties it unnoticed',
		format('On new: ALTER TABLE %s SET LOGGED;', n.name)
	FROM n WHERE n.persistence <> 'p' AND n.kind IN ('r', 'p')
	UNION ALL
	-- partitions: none at all, or not the same, and no default that takes the rest
	SELECT 'error', 'partitions', n.name, 'the table has no partition on new: rows have nowhere to go', 'Create the partitions there first.'
	FROM n WHERE n.kind = 'p' AND n.bounds = '{}'
	UNION ALL
	SELECT 'warning', 'partitions', n.name,
		CASE WHEN n.partition_key IS DISTINCT FROM o.partition_key THEN format('new is partitioned by %s and has no default partition: rows outside its partitions are rejected', n.partition_key)
			ELSE format('new lacks partitions of old, and a default partition: %s', (SELECT string_agg(b, ', ') FROM unnest(o.bounds) b WHERE b <> ALL (n.bounds))) END,
		format('Create them, or on new: CREATE TABLE ... PARTITION OF %s DEFAULT;', n.name)
	FROM n JOIN cutover._preflight_doc_tables(old_doc) o USING (t)
	WHERE n.kind = 'p' AND n.bounds <> '{}' AND NOT 'DEFAULT' = ANY (n.bounds) AND n.partition_key NOT LIKE 'HASH %'
		AND NOT (n.partition_key IS NOT DISTINCT FROM o.partition_key AND o.bounds <@ n.bounds)
	UNION ALL
	-- replica sessions skip the ordinary ones, but ON CONFLICT does not go with any for UPDATE; COPY knows no rules
	SELECT 'error', 'rules', n.name, format('rules on new change what we write: %s', string_agg(quote_ident(u->>'name'), ', ' ORDER BY u->>'name')),
		CASE WHEN bool_and(u->>'enabled' = 'O' AND u->>'event' <> '2') THEN format('On new: GRANT SET ON PARAMETER session_replication_role TO %I (from PostgreSQL 15 on), or drop the rules until the switch.', s.role)
			ELSE 'Drop them on new until the switch, or use a trigger instead.' END
	FROM n, s, jsonb_array_elements(nullif(n.rules, 'null')) u
	WHERE u->>'enabled' <> 'O' OR u->>'event' = '2' OR NOT s.may_replica
	GROUP BY n.name, s.role
	UNION ALL
	SELECT 'error', 'new_privileges', n.name, format('role %I lacks %s', s.role,
			concat_ws(', ', CASE WHEN NOT n.usage THEN 'USAGE on the schema' END, nullif(array_to_string(array_remove(n.lacks, 'TRIGGER'), ', '), ''))),
		format('On new: GRANT %s ON %s TO %I; cutover_grant_script(%L) writes all that is needed.',
			coalesce(nullif(array_to_string(array_remove(n.lacks, 'TRIGGER'), ', '), ''), 'SELECT'), n.name, s.role, s.role)
	FROM n, s WHERE n.kind IN ('r', 'p') AND (NOT n.usage OR array_remove(n.lacks, 'TRIGGER') <> '{}')
	UNION ALL
	SELECT 'warning', 'new_privileges', n.name, format('role %I does not own the table: its indexes and foreign keys stay on while it is copied, which takes longer', s.role),
		format('On new: ALTER TABLE %s OWNER TO %I; or make that role a member of %I.', n.name, s.role, n.owner_name)
	FROM n, s WHERE n.kind IN ('r', 'p') AND NOT n.owner
	UNION ALL
	SELECT 'error', 'row_security', n.name, format('row security is on, and role %I is subject to it: rows would be hidden from us', s.role),
		format('On new: ALTER ROLE %I BYPASSRLS; or make the role owner of the table, without FORCE ROW LEVEL SECURITY.', s.role)
	FROM n, s WHERE n.rls AND NOT s.bypass_rls AND (NOT n.owner OR n.rls_forced)
	UNION ALL
	-- triggers: replica sessions skip the ordinary ones
	SELECT 'warning', 'triggers', n.name, format('trigger %I fires on new for every row that we write', g->>'name'),
		CASE WHEN g->>'enabled' = 'O' THEN format('On new: GRANT SET ON PARAMETER session_replication_role TO %I (from PostgreSQL 15 on), or disable the trigger until the switch.', s.role)
			ELSE format('On new: ALTER TABLE %s ENABLE TRIGGER %I (not ALWAYS or REPLICA), unless it is meant to fire twice.', n.name, g->>'name') END
	FROM n, s, jsonb_array_elements(new_doc->'triggers') g
	WHERE (g->>'t')::int = n.t AND (g->>'enabled' IN ('A', 'R') OR (g->>'enabled' = 'O' AND NOT s.may_replica))
	UNION ALL
	SELECT 'warning', 'foreign_keys', k.from_name, format('on new, foreign key %I refers to %s, which is not under migration', k.name, k.to_name),
		CASE WHEN s.may_replica THEN format('It is not checked when we write: see that %s has the rows.', k.to_name)
			ELSE format('A row whose parent is not in %s is rejected.', k.to_name) END
	FROM cutover._preflight_doc_foreign_keys(new_doc) k, s WHERE k.from_t IS NOT NULL AND k.to_t IS NULL
	UNION ALL
	SELECT 'warning', 'foreign_keys', k.from_name, format('on new, its foreign key %I refers to %s, but it is not under migration', k.name, k.to_name),
		format('Rows of %s that it refers to can''t be deleted there, or are deleted with it.', k.to_name)
	FROM cutover._preflight_doc_foreign_keys(new_doc) k WHERE k.from_t IS NULL AND k.to_t IS NOT NULL
	UNION ALL
	-- sequences: the same name on new, or a column there that has its own
	SELECT 'warning', 'sequences', format('%I.%I', q->>'s', q->>'n'), 'the sequence does not exist on new',
		'Create it there with the same name, or see that what takes its place goes on where this one ends.'
	FROM jsonb_array_elements(cutover._preflight_sequences($1)::jsonb) q
	WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(new_doc->'sequences') e WHERE e->>'s' = q->>'s' AND e->>'n' = q->>'n')
	UNION ALL
	SELECT 'warning', 'sequences', format('%I.%I', e->>'s', e->>'n'), format('role %I may not set this sequence on new', s.role),
		format('On new: GRANT UPDATE ON SEQUENCE %I.%I TO %I;', e->>'s', e->>'n', s.role)
	FROM jsonb_array_elements(new_doc->'sequences') e, s WHERE NOT (e->>'writable')::boolean
$$;
COMMENT ON FUNCTION cutover._preflight_tables(int, jsonb, jsonb) IS 'preflight: the tables of new, their privileges, triggers, foreign keys and sequences';

-- Tables on new that must be empty and are not: those whose first copy is still to come.
CREATE FUNCTION cutover._preflight_empty(target_id int, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server name := (SELECT t.server FROM cutover._target t WHERE t.target_id = $1);
	query text;
BEGIN
	-- one round trip for each few hundred tables
	FOR query IN
		SELECT string_agg(format('SELECT %L AS name WHERE EXISTS (SELECT FROM %s)', n.name, n.name), ' UNION ALL ')
		FROM (SELECT d.name, row_number() OVER (ORDER BY d.t) AS i
			FROM cutover._preflight_doc_tables(new_doc) d JOIN cutover._table b ON b.table_id = d.t
			JOIN cutover._target g USING (target_id)
			WHERE d.kind IN ('r', 'p') AND d.usage AND NOT 'SELECT' = ANY (d.lacks)
				AND (NOT d.rls OR (new_doc->'server'->>'bypass_rls')::boolean OR (d.owner AND NOT d.rls_forced))
				AND (b.copy OR g.desired = 'idle') AND b.phase = 'waiting' AND b.copy_generation = 0) n
		GROUP BY n.i / 300
	LOOP
		RETURN QUERY SELECT 'error', 'not_empty', r->>'name', 'the table on new is not empty',
			format('On new: TRUNCATE %s; or, if it holds the rows of old already, start with copy => false.', r->>'name')
		FROM cutover._remote(v_server, query) r;
	END LOOP;
	RETURN QUERY SELECT 'warning', 'not_empty', d.name, 'whether the table on new is empty can''t be seen',
		'Give the role on new the privileges that are missing, and look again.'
	FROM cutover._preflight_doc_tables(new_doc) d
	WHERE d.kind IN ('r', 'p') AND (NOT d.usage OR 'SELECT' = ANY (d.lacks)
		OR NOT (NOT d.rls OR (new_doc->'server'->>'bypass_rls')::boolean OR (d.owner AND NOT d.rls_forced)));
END
$$;
COMMENT ON FUNCTION cutover._preflight_empty(int, jsonb) IS 'preflight: rows on new that are in the way of the copy';

-- Columns: every one has a counterpart, and none of new stays without a value it needs.
CREATE FUNCTION cutover._preflight_columns(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH nt AS (
		SELECT t, name FROM cutover._preflight_doc_tables(new_doc) WHERE kind IN ('r', 'p')
	), n AS (
		SELECT nt.name AS table_name, c.* FROM cutover._preflight_doc_columns(new_doc) c JOIN nt USING (t)
	), o AS (
		SELECT * FROM cutover._preflight_doc_columns(old_doc)
	), m AS (
		SELECT * FROM cutover._preflight_mapping($1, old_doc)
	)
	-- of a generated column the source is moved; without a counterpart only the result is missing
	SELECT CASE WHEN o.generated = '' THEN 'error' ELSE 'warning' END, 'columns', format('%s.%I', nt.name, m.new_column),
		'the column does not exist on new',
		CASE WHEN o.generated = '' THEN format('On new: ALTER TABLE %s ADD COLUMN %I %s; or leave it out with the argument columns of cutover_add_table().', nt.name, m.new_column, o.display)
			ELSE format('It is generated on old; on new: ALTER TABLE %s ADD COLUMN %I %s GENERATED ALWAYS AS (%s) STORED;', nt.name, m.new_column, o.display, o.expression) END
	FROM m JOIN nt USING (t) JOIN o ON o.t = m.t AND o.attnum = m.attnum AND (m.attnum > 0 OR o.name = m.new_column)
	WHERE NOT EXISTS (SELECT FROM n WHERE n.t = m.t AND n.name = m.new_column)
	UNION ALL
	SELECT 'warning', 'columns', format('%s.%I', cutover._table_name(b.old_table), o.name), 'this column of old goes nowhere',
		'Name it in the argument columns of cutover_add_table(), unless it is meant to stay behind.'
	FROM cutover._table b JOIN o ON o.t = b.table_id AND o.attnum > 0 AND o.generated = ''
	WHERE b.target_id = $1 AND NOT b.default_columns AND NOT EXISTS (
		SELECT FROM cutover._column c, LATERAL (SELECT cutover._expression_attnums(c.expr)) i (attnums)
		WHERE c.table_id = b.table_id AND (c.attnum = o.attnum OR o.attnum = ANY (i.attnums) OR 0 = ANY (i.attnums)))
	UNION ALL
	SELECT 'warning', 'columns', format('%s.%I', c.table_name, c.name),
		CASE WHEN c.has_default OR c.serial THEN 'old has nothing for this column of new: it gets its default'
			ELSE 'old has nothing for this column of new: it stays null' END,
		'Name what it shall hold with the argument columns of cutover_add_table(), or fill it after the switch.'
	FROM n c WHERE c.generated = '' AND (c.has_default OR c.serial OR NOT c.not_null)
		AND NOT EXISTS (SELECT FROM m WHERE m.t = c.t AND m.new_column = c.name)
	UNION ALL
	SELECT 'error', 'not_null', format('%s.%I', c.table_name, c.name),
		'old has nothing for this column of new, which must not be null and has no default',
		format('On new: ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL; or give it a default.', c.table_name, c.name)
	FROM n c WHERE c.generated = '' AND c.not_null AND NOT c.has_default AND NOT c.serial
		AND NOT EXISTS (SELECT FROM m WHERE m.t = c.t AND m.new_column = c.name)
	UNION ALL
	SELECT 'warning', 'not_null', format('%s.%I', c.table_name, c.name),
		CASE WHEN m.attnum > 0 THEN 'the column may be null on old, but not on new: such rows are rejected'
			ELSE 'the column must not be null on new: rows for which its expression gives null are rejected' END,
		format('On new: ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL; or mend the rows on old.', c.table_name, c.name)
	FROM m JOIN o ON o.t = m.t AND o.attnum = m.attnum AND (m.attnum > 0 OR o.name = m.new_column)
	JOIN n c ON c.t = m.t AND c.name = m.new_column
	WHERE c.not_null AND c.generated = '' AND NOT o.not_null
	UNION ALL
	-- generated
	SELECT 'warning', 'generated', format('%s.%I', c.table_name, c.name),
		CASE WHEN o.generated <> '' THEN format('generated as (%s) on old, as (%s) on new: values may differ', o.expression, c.expression)
			ELSE format('new generates this column as (%s): what old has for it is not written', c.expression) END,
		CASE WHEN o.generated <> '' THEN 'Make the expressions equal, unless the difference is meant.'
			ELSE format('On new: ALTER TABLE %s ALTER COLUMN %I DROP EXPRESSION; if old''s value is wanted.', c.table_name, c.name) END
	FROM m JOIN o ON o.t = m.t AND o.attnum = m.attnum AND (m.attnum > 0 OR o.name = m.new_column)
	JOIN n c ON c.t = m.t AND c.name = m.new_column
	WHERE c.generated <> '' AND (o.generated = '' OR o.expression IS DISTINCT FROM c.expression)
	UNION ALL
	-- identity
	SELECT 'warning', 'identity_columns', format('%s.%I', c.table_name, c.name),
		'GENERATED ALWAYS on new, but not on old: an update of this column alone can''t be repeated there',
		format('On new: ALTER TABLE %s ALTER COLUMN %I SET GENERATED BY DEFAULT;', c.table_name, c.name)
	FROM m JOIN o ON o.t = m.t AND o.attnum = m.attnum AND (m.attnum > 0 OR o.name = m.new_column)
	JOIN n c ON c.t = m.t AND c.name = m.new_column
	WHERE c.identity = 'a' AND o.identity <> 'a'
		AND NOT EXISTS (SELECT FROM cutover._table b WHERE b.table_id = m.t AND m.attnum = ANY (b.key_attnums))
$$;
COMMENT ON FUNCTION cutover._preflight_columns(int, jsonb, jsonb) IS 'preflight: columns of old and new';

-- Can the text of a value of one type be read as another?  NULL: every value,
-- and it means the same.  Values travel as text, so casts don't matter.
CREATE FUNCTION cutover._preflight_conversion(old_core text, new_core text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE
		WHEN old_core = new_core THEN NULL
		WHEN new_core = 'citext' AND old_core <> 'citext' THEN 'lossy: values that differ in case only are equal there'
		WHEN old_core = 'bpchar' AND new_core IN ('text', 'varchar') THEN 'lossy: values are stored with their trailing blanks'
		WHEN new_core IN ('text', 'varchar', 'bpchar') AND old_core IN ('text', 'varchar', 'citext', 'bpchar', 'name', 'char') THEN NULL
		WHEN new_core IN ('text', 'varchar') THEN 'lossy: values are stored as text'
		WHEN old_core IN ('text', 'varchar', 'citext', 'bpchar', 'name') THEN 'lossy: text that is no valid value is rejected'
		WHEN (old_core, new_core) IN (('int2', 'int4'), ('int2', 'int8'), ('int4', 'int8'), ('int2', 'numeric'), ('int4', 'numeric'),
			('int8', 'numeric'), ('int2', 'float4'), ('int2', 'float8'), ('int4', 'float8'), ('date', 'timestamp'), ('json', 'jsonb'),
			('cidr', 'inet'), ('bit', 'varbit'), ('macaddr', 'macaddr8'), ('oid', 'int8')) THEN NULL
		WHEN old_core IN ('int4', 'int8', 'int2', 'oid') AND new_core IN ('int2', 'int4', 'int8', 'oid') THEN 'lossy: values out of range are rejected'
		WHEN old_core = 'numeric' AND new_core IN ('int2', 'int4', 'int8') THEN 'lossy: values with decimal places or out of range are rejected'
		WHEN old_core IN ('float4', 'float8') AND new_core IN ('int2', 'int4', 'int8') THEN 'lossy: values with decimal places or out of range are rejected'
		WHEN old_core IN ('int2', 'int4', 'int8', 'numeric', 'float4', 'float8') AND new_core IN ('numeric', 'float4', 'float8') THEN 'lossy: values may be rounded'
		WHEN old_core IN ('date', 'timestamp') AND new_core = 'timestamptz' THEN 'lossy: times are taken as UTC'
		WHEN old_core = 'timestamptz' AND new_core = 'timestamp' THEN 'lossy: times are stored as UTC'
		WHEN old_core IN ('timestamp', 'timestamptz') AND new_core = 'date' THEN 'lossy: the time of day is lost'
		WHEN old_core = 'timetz' AND new_core = 'time' THEN 'lossy: the time zone is lost'
		WHEN old_core = 'jsonb' AND new_core = 'json' THEN NULL
		WHEN (old_core, new_core) IN (('inet', 'cidr'), ('varbit', 'bit')) THEN 'lossy: values that don''t fit are rejected'
		ELSE 'error'
	END
$$;
COMMENT ON FUNCTION cutover._preflight_conversion(text, text) IS 'preflight: can text of one type be read as another';

-- Does a type modifier of new hold every value of old?  Same core type.
CREATE FUNCTION cutover._preflight_typmod(core text, old_typmod int, new_typmod int) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT CASE
		WHEN new_typmod = -1 OR old_typmod = new_typmod THEN NULL
		WHEN core IN ('varchar', 'bpchar') AND old_typmod BETWEEN 0 AND new_typmod THEN NULL
		WHEN core = 'varbit' AND old_typmod BETWEEN 0 AND new_typmod THEN NULL
		WHEN core IN ('varchar', 'bpchar', 'bit', 'varbit') THEN 'longer values are rejected'
		WHEN core = 'numeric' THEN (
			-- room before and behind the point
			SELECT CASE WHEN old_typmod = -1 OR os > ns THEN 'values are rounded to ' || ns || ' places, larger ones rejected'
				WHEN op - os > np - ns THEN 'larger values are rejected' END
			FROM (SELECT ((old_typmod - 4) >> 16) & 65535 AS op, (((old_typmod - 4) & 2047) # 1024) - 1024 AS os,
				((new_typmod - 4) >> 16) & 65535 AS np, (((new_typmod - 4) & 2047) # 1024) - 1024 AS ns) p)
		WHEN core IN ('time', 'timetz', 'timestamp', 'timestamptz') AND (old_typmod = -1 OR old_typmod > new_typmod)
			AND new_typmod < 6 THEN 'times are rounded'
		WHEN core IN ('time', 'timetz', 'timestamp', 'timestamptz') THEN NULL
		ELSE 'values may be rounded or rejected'
	END
$$;
COMMENT ON FUNCTION cutover._preflight_typmod(text, int, int) IS 'preflight: is the type on new narrower';

-- Types: does every value of old fit.
CREATE FUNCTION cutover._preflight_types(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH pair AS (
		SELECT nt.name AS table_name, m.new_column, m.old_name, m.attnum,
			o.display AS old_display, n.display AS new_display, o.core AS old_core, n.core AS new_core,
			o.kind AS old_kind, n.kind AS new_kind, o.is_array AS old_array, n.is_array AS new_array,
			o.typmod AS old_typmod, n.typmod AS new_typmod, o.labels AS old_labels, n.labels AS new_labels,
			o.fields AS old_fields, n.fields AS new_fields, o."collation" AS old_collation, n."collation" AS new_collation,
			o.domain_name AS old_domain, n.domain_name AS new_domain, n.is_domain AND n.domain_checked AS new_checked,
			-- types that are not built in are the same if they have the same name
			o.core = n.core AND (o.core_schema = 'pg_catalog') = (n.core_schema = 'pg_catalog') AS same
		FROM cutover._preflight_mapping($1, old_doc) m
		JOIN cutover._preflight_doc_columns(old_doc) o ON o.t = m.t AND o.attnum = m.attnum AND (m.attnum > 0 OR o.name = m.new_column)
		JOIN cutover._preflight_doc_columns(new_doc) n ON n.t = m.t AND n.name = m.new_column AND n.generated = ''
		JOIN cutover._preflight_doc_tables(new_doc) nt ON nt.t = m.t AND nt.kind IN ('r', 'p')
	), judged AS (
		SELECT p.*, format('%s.%I', p.table_name, p.new_column) AS object,
			CASE
				WHEN p.old_kind = 'e' AND p.new_kind = 'e' THEN NULL
				WHEN p.old_kind = 'e' AND p.new_core = 'text' AND NOT p.old_array AND NOT p.new_array THEN NULL
				WHEN p.old_array <> p.new_array AND p.new_core IN ('text', 'varchar') AND NOT p.new_array THEN 'lossy: values are stored as text'
				WHEN p.old_array <> p.new_array AND p.old_core IN ('text', 'varchar', 'bpchar') AND NOT p.old_array THEN 'lossy: text that is no valid value is rejected'
				WHEN p.old_array <> p.new_array THEN 'error'
				WHEN p.old_kind = 'c' AND p.new_kind = 'c' THEN NULL
				WHEN p.same THEN NULL
				ELSE cutover._preflight_conversion(p.old_core, p.new_core)
			END AS verdict
		FROM pair p
	)
	SELECT 'error', 'types', j.object, format('%s on old can''t be read as %s on new', j.old_display, j.new_display),
		'Use the same type on new, or an expression in the argument columns of cutover_add_table().'
	FROM judged j WHERE j.verdict = 'error'
	UNION ALL
	SELECT 'warning', 'types', j.object, format('%s on old, %s on new: %s', j.old_display, j.new_display, substr(j.verdict, 8)),
		'Nothing to do if that is meant.'
	FROM judged j WHERE j.verdict LIKE 'lossy: %'
	UNION ALL
	SELECT 'warning', 'types', j.object, format('%s on old, %s on new: %s', j.old_display, j.new_display, v.verdict),
		'Make the type on new as wide as on old, unless it is known that all values fit.'
	FROM judged j, LATERAL (SELECT cutover._preflight_typmod(j.new_core,
			CASE WHEN j.same THEN j.old_typmod
				-- int4 has ten digits, and so on; text has no limit
				WHEN j.new_core = 'numeric' AND j.old_core IN ('int2', 'int4', 'int8')
					THEN (CASE j.old_core WHEN 'int2' THEN 5 WHEN 'int4' THEN 10 ELSE 19 END << 16) + 4
				WHEN j.new_core IN ('varchar', 'bpchar') AND j.old_core IN ('varchar', 'bpchar') THEN j.old_typmod
				WHEN j.new_core IN ('varchar', 'bpchar') AND j.old_core = 'name' THEN 63 + 4
				ELSE -1 END, j.new_typmod)) v (verdict)
	WHERE v.verdict IS NOT NULL AND j.verdict IS NULL AND j.old_kind <> 'e'
	UNION ALL
	SELECT 'error', 'types', j.object, format('enum %s of new lacks %s', j.new_display, array_to_string(l.missing, ', ')),
		format('On new: %s', (SELECT string_agg(format('ALTER TYPE %s ADD VALUE %L;', rtrim(j.new_display, '[]'), x), ' ') FROM unnest(l.missing) x))
	FROM judged j, LATERAL (SELECT ARRAY(SELECT unnest(j.old_labels) EXCEPT SELECT unnest(j.new_labels))) l (missing)
	WHERE j.old_kind = 'e' AND j.new_kind = 'e' AND l.missing <> '{}'
	UNION ALL
	SELECT 'error', 'types', j.object, format('composite type %s has other fields on new: (%s) there, (%s) here', j.new_display,
			array_to_string(j.new_fields, ', '), array_to_string(j.old_fields, ', ')),
		'Make the type on new the same.'
	FROM judged j WHERE j.old_kind = 'c' AND j.new_kind = 'c' AND j.old_fields IS DISTINCT FROM j.new_fields
	UNION ALL
	SELECT 'warning', 'types', j.object, format('domain %s of new checks values, and the column on old is of type %s', j.new_domain, j.old_display),
		'Rows that the domain does not allow are rejected.'
	FROM judged j WHERE j.new_checked AND j.old_domain IS DISTINCT FROM j.new_domain
	UNION ALL
	SELECT 'warning', 'collation', j.object, format('collation %s on old, %s on new', coalesce(j.old_collation, 'of the database'), coalesce(j.new_collation, 'of the database')),
		'ORDER BY may differ on new, and so may what counts as equal.'
	FROM judged j WHERE j.attnum > 0 AND j.old_collation IS DISTINCT FROM j.new_collation AND j.verdict IS NULL
$$;
COMMENT ON FUNCTION cutover._preflight_types(int, jsonb, jsonb) IS 'preflight: types of old and new';

-- Keys: how rows are found on new.
CREATE FUNCTION cutover._preflight_keys(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH k AS (
		SELECT b.table_id AS t, cutover._table_name(b.old_table) AS old_name, nt.name,
			b.key_attnums = '{}' AS keyless,
			ARRAY(SELECT m.new_column FROM cutover._preflight_mapping($1, old_doc) m
				WHERE m.t = b.table_id AND m.attnum = ANY (b.key_attnums) ORDER BY m.new_column COLLATE "C") AS plain,
			-- columns of new that are computed from the key alone, where the key itself is not moved
			ARRAY(SELECT c.new_column::text FROM cutover._column c, LATERAL (SELECT cutover._expression_attnums(c.expr)) i (attnums)
				WHERE c.table_id = b.table_id AND NOT b.default_columns AND c.attnum IS NULL
					AND i.attnums <> '{}' AND i.attnums <@ b.key_attnums ORDER BY 1) AS computed,
			(SELECT count(DISTINCT a) FROM unnest(b.key_attnums) a) AS parts,
			(SELECT count(DISTINCT m.attnum) FROM cutover._preflight_mapping($1, old_doc) m
				WHERE m.t = b.table_id AND m.attnum = ANY (b.key_attnums)) AS plain_parts
		FROM cutover._table b JOIN cutover._preflight_doc_tables(new_doc) nt ON nt.t = b.table_id AND nt.kind IN ('r', 'p')
		WHERE b.target_id = $1
	), key AS (
		SELECT k.*, CASE WHEN plain_parts = parts THEN plain ELSE ARRAY(SELECT unnest(plain || computed) ORDER BY 1) END AS columns
		FROM k
	), found AS (
		SELECT key.*,
			coalesce(bool_or(i."unique" AND i.immediate AND i.same), false) AS arbiter,
			coalesce(bool_or(i."unique" AND i.same), false) AS deferrable,
			coalesce(bool_or(i.starts), false) AS helpful
		FROM key LEFT JOIN LATERAL (
			-- a unique constraint WITHOUT OVERLAPS is an exclusion constraint
			SELECT x."unique" AND NOT x.exclusion AS "unique", x.immediate,
				ARRAY(SELECT unnest(x.columns) ORDER BY 1) = key.columns AS same,
				x.columns[1] = ANY (key.columns) AS starts
			FROM cutover._preflight_doc_indexes(new_doc) x WHERE x.t = key.t AND x.valid AND x.plain) i ON true
		GROUP BY key.t, key.old_name, key.name, key.keyless, key.plain, key.computed, key.parts, key.plain_parts, key.columns
	)
	SELECT 'warning', 'key', f.old_name, 'the table has no primary key and no unique index over columns that are never null: rows are found by all their values, which is slow',
		format('ALTER TABLE %s ADD PRIMARY KEY (...); on old and on new, before cutover_add_table().', f.old_name)
	FROM found f WHERE f.keyless
	UNION ALL
	SELECT 'error', 'key', f.name, 'no column of new holds the key of old, or is computed from it',
		'Add the key columns on new, or name them in the argument columns of cutover_add_table().'
	FROM found f WHERE NOT f.keyless AND f.columns = '{}'
	UNION ALL
	SELECT 'warning', 'key', f.name, format('rows are found on new by (%s), computed from the key: if two rows of old give the same, they overwrite each other',
			array_to_string(f.columns, ', ')), 'Nothing to do if different keys always give different values.'
	FROM found f WHERE NOT f.keyless AND f.columns <> '{}' AND f.plain_parts < f.parts
	UNION ALL
	SELECT CASE WHEN f.helpful OR f.deferrable THEN 'warning' ELSE 'error' END, 'key', f.name,
		CASE WHEN f.deferrable THEN format('the only unique index on new over (%s) is deferrable: rows are updated, then inserted, which is slow', array_to_string(f.columns, ', '))
			WHEN f.helpful THEN format('new has no unique index over exactly (%s): rows are updated, then inserted, which is slow', array_to_string(f.columns, ', '))
			ELSE format('new has no index over (%s), by which rows are found', array_to_string(f.columns, ', ')) END,
		format('On new: CREATE UNIQUE INDEX ON %s (%s);', f.name, (SELECT string_agg(quote_ident(c), ', ') FROM unnest(f.columns) c))
	FROM found f WHERE NOT f.keyless AND f.columns <> '{}' AND NOT f.arbiter
$$;
COMMENT ON FUNCTION cutover._preflight_keys(int, jsonb, jsonb) IS 'preflight: keys of old and unique indexes of new';

-- Constraints of new that old does not have may reject its rows.
CREATE FUNCTION cutover._preflight_constraints(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	WITH nt AS (
		SELECT t, name FROM cutover._preflight_doc_tables(new_doc) WHERE kind IN ('r', 'p')
	), m AS (
		SELECT * FROM cutover._preflight_mapping($1, old_doc)
	), old_unique AS (
		-- unique indexes of old in the names of new; those with a part that is not moved as it is don't count
		SELECT i.t, ARRAY(SELECT m.new_column FROM unnest(i.columns) c JOIN m ON m.t = i.t AND m.attnum > 0 AND m.old_name = c ORDER BY 1) AS columns,
			i.plain, i.exclusion, cardinality(i.columns) AS parts
		FROM cutover._preflight_doc_indexes(old_doc) i WHERE i."unique" OR i.exclusion
	)
	SELECT 'warning', 'constraints', nt.name,
		CASE WHEN i.exclusion THEN format('exclusion constraint %s of new is not on old: rows may be rejected', i.name)
			ELSE format('unique index %s of new is not on old: rows may be rejected', i.name) END,
		'Drop it on new, or add it on old first.'
	FROM cutover._preflight_doc_indexes(new_doc) i JOIN nt USING (t)
	-- computed from the key, and found by it: _preflight_keys speaks of that
	WHERE (i."unique" OR i.exclusion) AND NOT (i."unique" AND i.plain AND i.columns <@ ARRAY(
			SELECT c.new_column::text FROM cutover._table b JOIN cutover._column c USING (table_id), LATERAL (SELECT cutover._expression_attnums(c.expr)) e (attnums)
			WHERE b.table_id = i.t AND e.attnums <> '{}' AND e.attnums <@ b.key_attnums))
		AND NOT EXISTS (
		SELECT FROM old_unique u WHERE u.t = i.t AND u.exclusion = i.exclusion
			AND CASE
				-- fewer columns on old are stricter
				WHEN u.plain AND NOT u.exclusion THEN cardinality(u.columns) = u.parts AND u.columns <@ i.columns
				ELSE NOT i.plain OR i.exclusion END)
	UNION ALL
	SELECT 'warning', 'constraints', nt.name, format('%s of new is not on old: rows may be rejected', c->>'definition'),
		format('On new: ALTER TABLE %s DROP CONSTRAINT %I; or add it on old first.', nt.name, c->>'name')
	FROM jsonb_array_elements(new_doc->'checks') c JOIN nt ON nt.t = (c->>'t')::int
	WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(old_doc->'checks') x WHERE x->'t' = c->'t'
		AND (x->>'definition' = c->>'definition' OR x->>'definition' = (c->>'definition') || ' NOT VALID'))
$$;
COMMENT ON FUNCTION cutover._preflight_constraints(int, jsonb, jsonb) IS 'preflight: unique, exclusion and check constraints of new';
