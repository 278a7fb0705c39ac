-- preflight.sql: everything that could go wrong later, found now.
--
-- One query (_preflight_catalog_sql) describes the tables under migration and
-- the server they are on as a JSON document; it runs on old and, through the
-- target's connection, on new.  Each group of checks is a function over both
-- documents that returns what it finds; a check that finds nothing gets a row
-- "ok".  Nothing of a user's is executed.

CREATE TYPE cutover._finding AS (
	level text,
	check_name text,
	object text,
	message text,
	hint text
);

-- Parameters: $1 tables [{"t": table_id, "s": schema, "n": name}], $2 sequences
-- [{"s", "n"}], $3 results of expressions [{"t", "n": column of new, "type", "typmod"}].
-- Works on PostgreSQL 13 and later, with any role.
CREATE FUNCTION cutover._preflight_catalog_sql(server_version int) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $function$
SELECT replace($sql$
WITH rel AS (
	SELECT (e->>'t')::int AS t, c.oid, c.relkind, c.relname, n.nspname, c.relowner, c.relpersistence,
		c.relrowsecurity, c.relforcerowsecurity
	FROM json_array_elements($1::json) e
	JOIN pg_namespace n ON n.nspname = e->>'s'
	JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = e->>'n'
), col AS (
	SELECT r.t, a.attnum::int, a.attname::text AS name, a.atttypid AS typ, a.atttypmod AS typmod, a.attcollation AS coll,
		a.attnotnull AS not_null, a.atthasdef AS has_default, a.attidentity::text AS identity,
		a.attgenerated::text AS generated, pg_get_expr(d.adbin, d.adrelid) AS expression
	FROM rel r
	JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
	LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	UNION ALL
	SELECT (e->>'t')::int, 0, e->>'n', (e->>'type')::oid, (e->>'typmod')::int, 0, false, false, '', '', NULL
	FROM json_array_elements($3::json) e
), typed AS (
	-- of a domain what is below it, of an array what it is made of
	SELECT c.*, format_type(c.typ, c.typmod) AS display, y.typtype = 'd' AS is_domain, y.typname AS domain_name,
		y.typnotnull AS domain_not_null,
		EXISTS (SELECT FROM pg_constraint k WHERE k.contypid = y.oid) AS domain_checked,
		CASE WHEN y.typtype = 'd' THEN y.typtypmod ELSE c.typmod END AS core_typmod,
		b.typcategory = 'A' AND b.typelem <> 0 AS is_array,
		CASE WHEN b.typcategory = 'A' AND b.typelem <> 0 THEN b.typelem ELSE b.oid END AS core
	FROM col c
	JOIN pg_type y ON y.oid = c.typ
	LEFT JOIN pg_type y2 ON y.typtype = 'd' AND y2.oid = y.typbasetype
	LEFT JOIN pg_type y3 ON y2.typtype = 'd' AND y3.oid = y2.typbasetype
	JOIN pg_type b ON b.oid = coalesce(y3.oid, y2.oid, y.oid)
)
SELECT json_build_object(
	'server', (SELECT json_build_object(
		'version_num', current_setting('server_version_num')::int, 'version', current_setting('server_version'),
		'in_recovery', pg_is_in_recovery(), 'encoding', pg_encoding_to_char(d.encoding),
		'collate', d.datcollate, 'ctype', d.datctype, 'provider', coalesce(to_jsonb(d)->>'datlocprovider', 'c'),
		'locale', coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale'),
		'collation_version', to_jsonb(d)->>'datcollversion',
		'database', d.datname, 'role', r.rolname, 'super', r.rolsuper, 'bypass_rls', r.rolsuper OR r.rolbypassrls,
		'may_create', has_database_privilege(d.oid, 'CREATE'),
		'ours', (SELECT json_object_agg(c.relname, has_schema_privilege(n.oid, 'USAGE')
				AND NOT EXISTS (SELECT FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p WHERE NOT has_table_privilege(c.oid, p)))
			FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'r' WHERE n.nspname = 'cutover'),
		'may_replica', r.rolsuper OR {may_replica},
		'plpgsql', EXISTS (SELECT FROM pg_language WHERE lanname = 'plpgsql'),
		'has_extension', EXISTS (SELECT FROM pg_extension WHERE extname = 'cutover'),
		'free_connections', least(
			current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
				- (SELECT count(*) FROM pg_stat_activity WHERE backend_type IS NULL OR backend_type = 'client backend'),
			CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper THEN r.rolconnlimit
				- (SELECT count(*) FROM pg_stat_activity WHERE usename = r.rolname) END,
			CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper THEN d.datconnlimit
				- (SELECT count(*) FROM pg_stat_activity WHERE datname = d.datname) END))
		FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user),
	'tables', (SELECT coalesce(json_agg(json_build_object(
		't', r.t, 'name', format('%I.%I', r.nspname, r.relname), 'kind', r.relkind, 'persistence', r.relpersistence,
		'rls', r.relrowsecurity, 'rls_forced', r.relforcerowsecurity,
		'owner', pg_has_role(r.relowner, 'USAGE'), 'owner_name', pg_get_userbyid(r.relowner),
		'lacks', ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) p
			WHERE NOT has_table_privilege(r.oid, p)),
		'usage', has_schema_privilege(r.nspname, 'USAGE'),
		'rules', (SELECT json_agg(json_build_object('name', w.rulename, 'enabled', w.ev_enabled, 'event', w.ev_type) ORDER BY w.rulename)
			FROM pg_rewrite w WHERE w.ev_class = r.oid AND w.ev_type <> '1' AND w.ev_enabled <> 'D'),
		'partition_key', CASE WHEN r.relkind = 'p' THEN pg_get_partkeydef(r.oid) END,
		'bounds', CASE WHEN r.relkind = 'p' THEN ARRAY(SELECT pg_get_expr(pc.relpartbound, pc.oid)
			FROM pg_inherits i JOIN pg_class pc ON pc.oid = i.inhrelid WHERE i.inhparent = r.oid) END,
		'foreign_parts', CASE WHEN r.relkind = 'p' THEN (SELECT json_agg(p.relid::regclass::text)
			FROM pg_partition_tree(r.oid) p JOIN pg_class pc ON pc.oid = p.relid AND pc.relkind = 'f') END,
		'unlogged_parts', CASE WHEN r.relkind = 'p' THEN (SELECT json_agg(p.relid::regclass::text)
			FROM pg_partition_tree(r.oid) p JOIN pg_class pc ON pc.oid = p.relid AND pc.relkind = 'r' AND pc.relpersistence = 'u') END
		)), '[]') FROM rel r),
	'columns', (SELECT coalesce(json_agg(json_build_object(
		't', c.t, 'attnum', c.attnum, 'name', c.name, 'display', c.display,
		'not_null', c.not_null OR c.domain_not_null, 'has_default', c.has_default, 'identity', c.identity,
		'generated', c.generated, 'expression', c.expression,
		'serial', c.identity <> '' OR coalesce(c.expression LIKE 'nextval(%', false),
		'is_domain', c.is_domain, 'domain_name', c.domain_name, 'domain_checked', c.domain_checked,
		'is_array', c.is_array, 'typmod', c.core_typmod, 'core', k.typname, 'kind', k.typtype,
		'core_schema', kn.nspname,
		'collation', (SELECT l.collname FROM pg_collation l WHERE l.oid = c.coll AND l.collname <> 'default'),
		'labels', CASE WHEN k.typtype = 'e' THEN (SELECT json_agg(l.enumlabel ORDER BY l.enumsortorder) FROM pg_enum l WHERE l.enumtypid = k.oid) END,
		'fields', CASE WHEN k.typtype = 'c' THEN (SELECT json_agg(format_type(f.atttypid, f.atttypmod) ORDER BY f.attnum)
			FROM pg_attribute f WHERE f.attrelid = k.typrelid AND f.attnum > 0 AND NOT f.attisdropped) END
		)), '[]')
		FROM typed c JOIN pg_type k ON k.oid = c.core JOIN pg_namespace kn ON kn.oid = k.typnamespace),
	'indexes', (SELECT coalesce(json_agg(json_build_object(
		't', r.t, 'name', i.indexrelid::regclass::text, 'unique', i.indisunique, 'exclusion', i.indisexclusion,
		'immediate', i.indimmediate, 'valid', i.indisvalid,
		'plain', i.indpred IS NULL AND i.indexprs IS NULL,
		'columns', ARRAY(SELECT a.attname::text FROM generate_series(0, i.indnkeyatts - 1) g
			JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = i.indkey[g] ORDER BY g)
		)), '[]') FROM rel r JOIN pg_index i ON i.indrelid = r.oid),
	'checks', (SELECT coalesce(json_agg(json_build_object(
		't', r.t, 'name', k.conname, 'definition', pg_get_constraintdef(k.oid))), '[]')
		FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid AND k.contype = 'c'),
	'foreign_keys', (SELECT coalesce(json_agg(json_build_object(
		'name', k.conname, 'from_t', f.t, 'to_t', o.t,
		'from_name', k.conrelid::regclass::text, 'to_name', k.confrelid::regclass::text)), '[]')
		FROM pg_constraint k LEFT JOIN rel f ON f.oid = k.conrelid LEFT JOIN rel o ON o.oid = k.confrelid
		WHERE k.contype = 'f' AND k.conparentid = 0 AND (f.oid IS NOT NULL OR o.oid IS NOT NULL)),
	'triggers', (SELECT coalesce(json_agg(json_build_object(
		't', r.t, 'name', g.tgname, 'enabled', g.tgenabled)), '[]')
		FROM rel r JOIN pg_trigger g ON g.tgrelid = r.oid AND NOT g.tgisinternal
		JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname <> 'cutover'),
	'sequences', (SELECT coalesce(json_agg(json_build_object(
		's', n.nspname, 'n', c.relname, 'writable', has_sequence_privilege(c.oid, 'UPDATE'))), '[]')
		FROM json_array_elements($2::json) e
		JOIN pg_namespace n ON n.nspname = e->>'s'
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = e->>'n' AND c.relkind = 'S')
	)::text AS doc
$sql$, '{may_replica}',
	CASE WHEN server_version >= 150000 THEN $$has_parameter_privilege('session_replication_role', 'SET')$$ ELSE 'false' END)
$function$;
COMMENT ON FUNCTION cutover._preflight_catalog_sql(int) IS 'the query that describes the tables under migration on either side';

-- Parts of a document as rows.
CREATE FUNCTION cutover._preflight_doc_tables(doc jsonb)
RETURNS TABLE (t int, name text, kind text, persistence text, rls boolean, rls_forced boolean, owner boolean,
	owner_name text, lacks text[], usage boolean, rules jsonb, partition_key text, bounds text[], foreign_parts jsonb, unlogged_parts jsonb)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT * FROM jsonb_to_recordset(doc->'tables') AS x (t int, name text, kind text, persistence text, rls boolean,
		rls_forced boolean, owner boolean, owner_name text, lacks text[], usage boolean, rules jsonb, partition_key text,
		bounds text[], foreign_parts jsonb, unlogged_parts jsonb)
$$;
CREATE FUNCTION cutover._preflight_doc_columns(doc jsonb)
RETURNS TABLE (t int, attnum int, name text, display text, not_null boolean, has_default boolean, identity text,
	generated text, expression text, serial boolean, is_domain boolean, domain_name text, domain_checked boolean,
	is_array boolean, typmod int, core text, kind text, core_schema text, "collation" text, labels text[], fields text[])
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT * FROM jsonb_to_recordset(doc->'columns') AS x (t int, attnum int, name text, display text, not_null boolean,
		has_default boolean, identity text, generated text, expression text, serial boolean, is_domain boolean,
		domain_name text, domain_checked boolean, is_array boolean, typmod int, core text, kind text, core_schema text,
		"collation" text, labels text[], fields text[])
$$;
CREATE FUNCTION cutover._preflight_doc_indexes(doc jsonb)
RETURNS TABLE (t int, name text, "unique" boolean, exclusion boolean, immediate boolean, valid boolean, plain boolean, columns text[])
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT * FROM jsonb_to_recordset(doc->'indexes') AS x (t int, name text, "unique" boolean, exclusion boolean,
		immediate boolean, valid boolean, plain boolean, columns text[])
$$;
CREATE FUNCTION cutover._preflight_doc_foreign_keys(doc jsonb)
RETURNS TABLE (name text, from_t int, to_t int, from_name text, to_name text)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT * FROM jsonb_to_recordset(doc->'foreign_keys') AS x (name text, from_t int, to_t int, from_name text, to_name text)
$$;

-- The tables of a target for $1 of the query: as they are called on old or on new.
CREATE FUNCTION cutover._preflight_wanted(target_id int, on_new boolean) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(json_agg(json_build_object('t', b.table_id,
		's', CASE WHEN on_new THEN b.new_schema ELSE n.nspname END,
		'n', CASE WHEN on_new THEN b.new_name ELSE c.relname END)), '[]')::text
	FROM cutover._table b
	LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace) ON c.oid = b.old_table
	WHERE b.target_id = $1
$$;

-- Sequences of old that the target's tables own or use in a default.
CREATE FUNCTION cutover._preflight_sequences(target_id int) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(json_agg(DISTINCT jsonb_build_object('s', n.nspname, 'n', s.relname)), '[]')::text
	FROM cutover._table b
	JOIN (
		SELECT d.refobjid AS relid, d.objid AS seq FROM pg_depend d
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
		UNION
		SELECT f.adrelid, d.refobjid FROM pg_attrdef f
		JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
	) u ON u.relid = b.old_table
	JOIN pg_class s ON s.oid = u.seq AND s.relkind = 'S'
	JOIN pg_namespace n ON n.oid = s.relnamespace
	WHERE b.target_id = $1
$$;

CREATE FUNCTION cutover._expression_type(expr pg_node_tree, OUT type oid, OUT typmod int)
LANGUAGE c IMMUTABLE STRICT AS 'MODULE_PATHNAME', 'cutover_expression_type';
COMMENT ON FUNCTION cutover._expression_type(pg_node_tree) IS 'result type of a compiled expression';

-- Results of expressions, for $3 of the query on old.
CREATE FUNCTION cutover._preflight_expressions(target_id int) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT coalesce(json_agg(json_build_object('t', c.table_id, 'n', c.new_column, 'type', i.type::bigint, 'typmod', i.typmod)), '[]')::text
	FROM cutover._table b JOIN cutover._column c USING (table_id), cutover._expression_type(c.expr) i
	WHERE b.target_id = $1 AND c.attnum IS NULL
$$;

-- Which column of old, or which expression (attnum 0), makes which column of new.
CREATE FUNCTION cutover._preflight_mapping(target_id int, old_doc jsonb)
RETURNS TABLE (t int, new_column text, attnum int, old_name text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT o.t, o.name, o.attnum, o.name
	FROM cutover._table b JOIN cutover._preflight_doc_columns(old_doc) o ON o.t = b.table_id AND o.attnum > 0
	WHERE b.target_id = $1 AND b.default_columns
	UNION ALL
	SELECT c.table_id, c.new_column::text, coalesce(c.attnum, 0), coalesce(o.name, c.expression)
	FROM cutover._table b JOIN cutover._column c USING (table_id)
	LEFT JOIN cutover._preflight_doc_columns(old_doc) o ON o.t = c.table_id AND o.attnum = c.attnum AND o.attnum > 0
	WHERE b.target_id = $1 AND NOT b.default_columns
$$;

-- Checks of the server that is moved to.
CREATE FUNCTION cutover._preflight_server(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	o jsonb := old_doc->'server';
	n jsonb := new_doc->'server';
	object text := 'database ' || quote_ident(n->>'database') || ' on new';
	jobs int := current_setting('cutover.copy_jobs')::int;
	m text;
BEGIN
	IF (n->>'version_num')::int < 130000 THEN
		RETURN NEXT ('error', 'new_version', object, format('new runs PostgreSQL %s', n->>'version'), 'Use PostgreSQL 13 or later.')::cutover._finding;
	ELSIF (n->>'version_num')::int >= 190000 THEN
		RETURN NEXT ('warning', 'new_version', object, format('new runs PostgreSQL %s, which this version was not tried with', n->>'version'), 'PostgreSQL 13 to 18 are known to work.')::cutover._finding;
	ELSIF (n->>'version_num')::int / 10000 < (o->>'version_num')::int / 10000 THEN
		RETURN NEXT ('warning', 'new_version', object, format('new runs PostgreSQL %s, older than old''s %s', n->>'version', o->>'version'), 'Types and functions of the newer version may be missing.')::cutover._finding;
	END IF;
	IF (n->>'in_recovery')::boolean THEN
		RETURN NEXT ('error', 'new_recovery', object, 'new is a standby and can''t be written to', 'Use the address of its primary: cutover_set_target().')::cutover._finding;
	END IF;
	IF (n->>'has_extension')::boolean THEN
		RETURN NEXT ('error', 'new_database', object, 'new has the extension cutover itself', 'A migration goes from the database with the extension to one without it; check the address.')::cutover._finding;
	END IF;
	IF NOT (n->>'plpgsql')::boolean THEN
		RETURN NEXT ('warning', 'new_database', object, 'new has no language plpgsql', 'Without it there is no guard on new and no way back from new_only.')::cutover._finding;
	END IF;

	IF o->>'encoding' <> n->>'encoding' THEN
		IF o->>'encoding' = 'SQL_ASCII' THEN
			m := 'bytes that are not valid there are rejected row by row, and what they mean is anybody''s guess';
		ELSIF n->>'encoding' = 'SQL_ASCII' THEN
			m := 'new does not check what it stores';
		ELSIF n->>'encoding' = 'UTF8' THEN
			m := 'text is converted';
		ELSE
			m := 'characters that it lacks are rejected row by row';
		END IF;
		RETURN NEXT (CASE WHEN o->>'encoding' <> 'SQL_ASCII' AND n->>'encoding' <> 'SQL_ASCII' AND NOT EXISTS (
				SELECT FROM pg_conversion WHERE conforencoding = pg_char_to_encoding(o->>'encoding')
				AND contoencoding = pg_char_to_encoding(n->>'encoding') AND condefault) THEN 'error' ELSE 'warning' END,
			'encoding', object, format('old is in %s, new in %s: %s', o->>'encoding', n->>'encoding', m),
			format('Create the database on new with ENCODING %L.', o->>'encoding'))::cutover._finding;
	END IF;
	IF (o->>'provider', o->>'collate', o->>'ctype', o->>'locale') IS DISTINCT FROM (n->>'provider', n->>'collate', n->>'ctype', n->>'locale') THEN
		RETURN NEXT ('warning', 'collation', object,
			format('old sorts by %s, new by %s', coalesce(o->>'locale', o->>'collate') || ' (' || (o->>'provider') || ')',
				coalesce(n->>'locale', n->>'collate') || ' (' || (n->>'provider') || ')'),
			'ORDER BY, range conditions and range partitions over text may differ on new.')::cutover._finding;
	ELSIF o->>'collation_version' <> n->>'collation_version' THEN
		RETURN NEXT ('warning', 'collation', object,
			format('the same collation comes from library version %s on old and %s on new', o->>'collation_version', n->>'collation_version'),
			'ORDER BY, range conditions and range partitions over text may differ on new.')::cutover._finding;
	END IF;

	IF n->'ours'->'migration' IS NULL THEN
		-- schema cutover of new was dropped, or the address leads elsewhere
		RETURN NEXT ('error', 'new_database', object, 'new does not have what cutover_add_target() creates there',
			'Check the address; if it is right, drop the target and add it again.')::cutover._finding;
		IF NOT (n->>'may_create')::boolean THEN
			RETURN NEXT ('error', 'new_privileges', object, format('role %I may not create objects in the database', n->>'role'),
				format('On new: GRANT CREATE ON DATABASE %I TO %I;', n->>'database', n->>'role'))::cutover._finding;
		END IF;
	ELSIF 'false' IN (SELECT value FROM jsonb_each_text(n->'ours')) THEN
		RETURN NEXT ('error', 'new_privileges', 'schema cutover on new', format('role %I may not read and write all tables of schema cutover', n->>'role'),
			format('On new: GRANT ALL ON SCHEMA cutover TO %1$I; GRANT ALL ON ALL TABLES IN SCHEMA cutover TO %1$I;', n->>'role'))::cutover._finding;
	ELSIF (new_doc->>'migration')::uuid <> (SELECT t.migration_id FROM cutover._target t WHERE t.target_id = $1) THEN
		RETURN NEXT ('error', 'new_database', object, 'new is owned by another migration',
			'Check the address: cutover_set_target(); or end the other migration there: SELECT cutover.abandon();')::cutover._finding;
	END IF;
	IF coalesce((n->>'free_connections')::int, 0) < jobs + 3 THEN
		RETURN NEXT (CASE WHEN (n->>'free_connections')::int < 1 THEN 'error' ELSE 'warning' END, 'new_connections', object,
			format('new has %s free connections for role %s, and copying takes up to %s', greatest((n->>'free_connections')::int, 0), quote_ident(n->>'role'), jobs + 3),
			'Raise the connection limit of the role or database or max_connections on new, or lower cutover.copy_jobs.')::cutover._finding;
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._preflight_server(int, jsonb, jsonb) IS 'preflight: the server and database that are moved to';

-- Checks of this server; they need no connection to new.
CREATE FUNCTION cutover._preflight_local(target_id int) RETURNS SETOF cutover._finding
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	t cutover._target;
	slots int := current_setting('max_worker_processes')::int;
	free int;
	wanted int;
	n bigint;
BEGIN
	SELECT x.* INTO STRICT t FROM cutover._target x WHERE x.target_id = $1;

	-- a replicator, a worker for actions, and copiers; what runs already has its slot
	SELECT slots - count(*), current_setting('cutover.copy_jobs')::int + 2 - count(*) FILTER (WHERE backend_type LIKE 'cutover%')
		INTO free, wanted
	FROM pg_stat_activity WHERE backend_type NOT IN ('client backend', 'autovacuum launcher', 'autovacuum worker', 'walwriter',
		'checkpointer', 'background writer', 'archiver', 'startup', 'walreceiver', 'walsender', 'logger', 'io worker',
		'slotsync worker', 'walsummarizer', 'standalone backend');
	IF free < wanted THEN
		RETURN NEXT (CASE WHEN free < least(wanted, 1) THEN 'error' ELSE 'warning' END, 'worker_slots', 'max_worker_processes',
			format('%s of %s worker slots are free, and copying takes up to %s', free, slots, wanted),
			'Lower cutover.copy_jobs, free a slot, or raise max_worker_processes, which needs a restart.')::cutover._finding;
	END IF;
	IF NOT EXISTS (SELECT FROM regexp_split_to_table(current_setting('shared_preload_libraries'), '\s*,\s*') l
			WHERE btrim(l, ' "') IN ('cutover', '$libdir/cutover')) THEN
		RETURN NEXT ('warning', 'shared_preload_libraries', 'shared_preload_libraries',
			'after a restart of this server, workers come back only with the first change of a table under migration or call of a function',
			'ALTER SYSTEM SET shared_preload_libraries = ''cutover'' (added to what is there) takes effect at the next restart, whenever that is.')::cutover._finding;
	END IF;
	IF current_setting('cutover.capture') = 'off' THEN
		RETURN NEXT ('error', 'capture_setting', 'cutover.capture', 'changes are not captured', 'Set cutover.capture to mark or strict.')::cutover._finding;
	END IF;
	RETURN QUERY SELECT 'error', 'capture_setting', concat_ws(' in ', 'role ' || quote_ident(r.rolname), 'database ' || quote_ident(d.datname)),
		'cutover.capture is off here: changes are not captured', 'Reset it with ALTER ROLE or ALTER DATABASE, and end the sessions that have it.'
	FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
	WHERE (s.setdatabase = 0 OR d.datname = current_database()) AND 'cutover.capture=off' = ANY (s.setconfig);
	IF current_setting('cutover.queue_limit') = '0' THEN
		RETURN NEXT ('warning', 'queue_limit', 'cutover.queue_limit', 'the queue may grow as long as new is out of reach, until the disk is full',
			'Set cutover.queue_limit to what the disk can spare; cutover.capture says what happens then.')::cutover._finding;
	END IF;
	RETURN QUERY SELECT 'warning', 'prepared_transactions', p.gid,
		format('prepared transaction of %I, open since %s', p.owner, p.prepared),
		'Its changes move when it is committed, and capture can''t be put on a table that it has changed: COMMIT PREPARED or ROLLBACK PREPARED.'
	FROM pg_prepared_xacts p WHERE p.database = current_database() ORDER BY p.prepared;
	RETURN QUERY SELECT 'warning', 'long_transactions', 'pid ' || a.pid,
		format('transaction of %I (%s), open since %s', a.usename, coalesce(nullif(a.application_name, ''), 'no application name'), a.xact_start),
		'If it has used a table, putting capture on that table waits for its end.'
	FROM pg_stat_activity a
	WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
		AND a.xact_start < clock_timestamp() - interval '5 min' ORDER BY a.xact_start;
	SELECT count(*) INTO n FROM pg_stat_replication WHERE application_name <> 'pg_basebackup';
	IF n > 0 THEN
		RETURN NEXT ('warning', 'standbys', 'this server', format('%s standbys or other receivers of WAL are attached', n),
			'Install the library of cutover on every standby that may be promoted: a table under migration can''t be written without it.')::cutover._finding;
	END IF;
	IF NOT cutover._is_this_cluster(t.system_identifier) THEN
		RETURN NEXT ('error', 'identity', 'this server', 'this cluster is a copy of the one that the migration belongs to',
			'If this is the real one from now on: cutover_adopt().')::cutover._finding;
	END IF;
	IF to_regclass('cutover.migration') IS NOT NULL THEN
		RETURN NEXT ('warning', 'identity', 'this database', 'this database is itself the new side of a migration',
			'Finish or cancel that one first: what it writes here is captured like any other change.')::cutover._finding;
	END IF;
	IF NOT EXISTS (SELECT FROM cutover._table b WHERE b.target_id = $1) THEN
		RETURN NEXT ('error', 'tables', 'target ' || t.target, 'no table is under migration', 'cutover_add_table() or cutover_add_tables()')::cutover._finding;
	END IF;
	IF EXISTS (SELECT FROM pg_largeobject_metadata) THEN
		RETURN NEXT ('warning', 'large_objects', 'this database', 'large objects are not moved: no trigger sees them',
			'Copy them by other means, or store them in bytea columns first.')::cutover._finding;
	END IF;
	IF t.desired IN ('running', 'paused') THEN
		RETURN QUERY SELECT 'error', 'capture_triggers', cutover._table_name(b.old_table), 'not every change of this table is captured: a trigger of ours is missing or not ENABLE ALWAYS',
			format('SELECT cutover_resync(%L);', cutover._table_name(b.old_table))
		FROM cutover._table b WHERE b.target_id = $1 AND NOT cutover._capture_enabled(b.table_id);
	END IF;
END
$$;
COMMENT ON FUNCTION cutover._preflight_local(int) IS 'preflight: this server, without new';

-- Fetch the document of new.
CREATE FUNCTION cutover._preflight_new_doc(target_id int) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_server name := (SELECT t.server FROM cutover._target t WHERE t.target_id = $1);
	v_version int;
	doc jsonb;
BEGIN
	SELECT (r->>'version')::int INTO STRICT v_version
	FROM cutover._remote(v_server, 'SELECT current_setting(''server_version_num'') AS version') r;
	SELECT (r->>'doc')::jsonb INTO STRICT doc
	FROM cutover._remote(v_server, cutover._preflight_catalog_sql(v_version),
		cutover._preflight_wanted($1, true), cutover._preflight_sequences($1), '[]') r;
	IF (doc->'server'->'ours'->>'migration')::boolean AND NOT (doc->'server'->>'has_extension')::boolean THEN
		SELECT doc || r INTO doc FROM cutover._remote(v_server, 'SELECT migration_id AS migration FROM cutover.migration') r;
	END IF;
	RETURN doc;
END
$$;
COMMENT ON FUNCTION cutover._preflight_new_doc(int) IS 'preflight: describes the tables of new';

-- All findings of a target.  copy: the tables of new are going to be filled.
-- Expressions and bounds of both sides are compared as text, so they are written
-- as our connections to new write them.
CREATE FUNCTION cutover._preflight(target_id int, copy boolean DEFAULT true) RETURNS SETOF cutover._finding
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD' SET intervalstyle = postgres SET timezone = 'UTC' SET extra_float_digits = 3 SET bytea_output = hex
AS $$
DECLARE
	old_doc jsonb;
	new_doc jsonb;
	findings cutover._finding[] := '{}';
	found cutover._finding[];
	step record;
	v_message text;
	v_detail text;
	v_hint text;
BEGIN
	BEGIN
		new_doc := cutover._preflight_new_doc($1);
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS v_message = MESSAGE_TEXT, v_detail = PG_EXCEPTION_DETAIL, v_hint = PG_EXCEPTION_HINT;
		findings := findings || ('error', 'connection', 'new', concat_ws(': ', v_message, nullif(v_detail, '')),
			coalesce(nullif(v_hint, ''), 'Check the address with cutover_set_target(); what concerns new was not checked.'))::cutover._finding;
	END;
	EXECUTE cutover._preflight_catalog_sql(current_setting('server_version_num')::int) INTO old_doc
		USING cutover._preflight_wanted($1, false), cutover._preflight_sequences($1), cutover._preflight_expressions($1);

	FOR step IN
		SELECT * FROM (VALUES
			('local', false, 'SELECT array_agg(f) FROM cutover._preflight_local($1) f'),
			('border', false, 'SELECT array_agg(f) FROM cutover._preflight_border($1, $2) f'),
			('server', true, 'SELECT array_agg(f) FROM cutover._preflight_server($1, $2, $3) f'),
			('tables', true, 'SELECT array_agg(f) FROM cutover._preflight_tables($1, $2, $3) f'),
			('not_empty', true, 'SELECT array_agg(f) FROM cutover._preflight_empty($1, $3) f WHERE $4'),
			('columns', true, 'SELECT array_agg(f) FROM cutover._preflight_columns($1, $2, $3) f'),
			('reverse', true, 'SELECT array_agg(f) FROM cutover._preflight_reverse($1, $2, $3) f'),
			('types', true, 'SELECT array_agg(f) FROM cutover._preflight_types($1, $2, $3) f'),
			('key', true, 'SELECT array_agg(f) FROM cutover._preflight_keys($1, $2, $3) f'),
			('constraints', true, 'SELECT array_agg(f) FROM cutover._preflight_constraints($1, $2, $3) f')
		) AS v (name, needs_new, query)
	LOOP
		CONTINUE WHEN step.needs_new AND new_doc IS NULL;
		BEGIN
			EXECUTE step.query INTO found USING $1, old_doc, new_doc, $2;
			findings := findings || found;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS v_message = MESSAGE_TEXT, v_hint = PG_EXCEPTION_HINT;
			findings := findings || ('error', step.name, NULL, 'this check failed: ' || v_message, v_hint)::cutover._finding;
		END;
	END LOOP;

	RETURN QUERY
		SELECT (f).* FROM (
			SELECT unnest(findings) AS f
			UNION ALL
			SELECT ('ok', c.check_name, NULL, c.message, NULL)::cutover._finding
			FROM cutover._preflight_checks() c
			WHERE (new_doc IS NOT NULL OR NOT c.needs_new)
				AND (copy OR c.check_name <> 'not_empty')
				AND NOT EXISTS (SELECT FROM unnest(findings) x WHERE x.check_name = c.check_name)) all_of_them
		ORDER BY array_position(ARRAY['error', 'warning', 'ok'], (f).level), (f).check_name COLLATE "C", (f).object COLLATE "C", (f).message COLLATE "C";
END
$$;
COMMENT ON FUNCTION cutover._preflight(int, boolean) IS 'preflight: everything that is found, and a row for each check that found nothing';

-- Every check by name, and what it means that it found nothing.
CREATE FUNCTION cutover._preflight_checks() RETURNS TABLE (check_name text, needs_new boolean, message text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	VALUES
		('tables', false, 'tables are under migration'),
		('worker_slots', false, 'enough worker slots are free'),
		('shared_preload_libraries', false, 'workers start with the server'),
		('capture_setting', false, 'cutover.capture is on'),
		('capture_triggers', false, 'no capture trigger is disabled'),
		('queue_limit', false, 'the queue is limited by cutover.queue_limit'),
		('prepared_transactions', false, 'no prepared transaction is open'),
		('long_transactions', false, 'no transaction is open for more than five minutes'),
		('standbys', false, 'no standby is attached'),
		('identity', false, 'this is the cluster that the migration belongs to'),
		('large_objects', false, 'there are no large objects'),
		('border', false, 'no foreign key crosses the border of the target'),
		('row_filter', false, 'every row is moved'),
		('storage', false, 'all tables are logged, and none is a foreign one'),
		('object_references', false, 'no column holds an object identifier'),
		('wal_level', false, format('any wal_level does, here it is %s', current_setting('wal_level'))),
		('connection', true, 'new is within reach'),
		('new_version', true, 'the version of new is supported'),
		('new_recovery', true, 'new is no standby'),
		('new_database', true, 'the database on new is an ordinary one'),
		('encoding', true, 'both sides have the same encoding'),
		('collation', true, 'both sides sort alike'),
		('new_privileges', true, 'the role on new has the privileges it needs'),
		('new_connections', true, 'new has enough free connections'),
		('new_table', true, 'every table exists on new'),
		('new_storage', true, 'all tables on new are logged'),
		('partitions', true, 'every row has a partition on new to go to'),
		('rules', true, 'no rule on new takes writes away'),
		('row_security', true, 'row security on new does not hide rows'),
		('triggers', true, 'no trigger on new fires when we write'),
		('not_empty', true, 'no row on new is in the way of the copy'),
		('columns', true, 'every column has its counterpart'),
		('not_null', true, 'every column that must not be null gets a value'),
		('generated', true, 'generated columns agree'),
		('identity_columns', true, 'identity columns agree'),
		('types', true, 'every value fits its type on new'),
		('key', true, 'rows are found on new by a unique index'),
		('constraints', true, 'new has no constraint that old lacks'),
		('foreign_keys', true, 'foreign keys on new stay inside the migration'),
		('sequences', true, 'every sequence exists on new'),
		('reverse', true, 'old can follow new after the switch'),
		('time_outs', true, 'time-outs of the role on new don''t matter: our connections set their own')
$$;

CREATE FUNCTION @extschema@.cutover_preflight(target name DEFAULT NULL)
RETURNS TABLE (level text, check_name text, object text, message text, hint text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN QUERY SELECT f.level, f.check_name, f.object, f.message, f.hint
	FROM cutover._preflight(cutover._target_id(cutover_preflight.target)) f;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_preflight(name)
	IS 'step 1, set up: everything that could go wrong later, found now';
