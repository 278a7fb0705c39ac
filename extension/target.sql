-- target.sql: the new databases: their address, their queue, our schema there.

CREATE FOREIGN DATA WRAPPER cutover NO HANDLER NO VALIDATOR;

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
END
$$;

CREATE FUNCTION cutover._drop_queue(target_id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
	v_table text;
BEGIN
	FOR i IN 0..2 LOOP
		v_table := format('cutover._queue_%s_%s', target_id, i);
		CONTINUE WHEN to_regclass(v_table) IS NULL;
		EXECUTE format('ALTER EXTENSION cutover DROP TABLE %s', v_table);
		EXECUTE format('DROP TABLE %s', v_table);
	END LOOP;
END
$$;

-- What we put on new.  Plain SQL for 13 to 18, no superuser.
CREATE FUNCTION cutover._new_side_script() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $script$ SELECT $new$
CREATE SCHEMA cutover;
COMMENT ON SCHEMA cutover IS 'what the migration of another database to this one keeps here';
CREATE TABLE cutover.migration (
	migration_id uuid PRIMARY KEY,
	only_one boolean NOT NULL DEFAULT true UNIQUE CHECK (only_one),
	target name,
	old_system_identifier bigint,
	old_database name,
	instance text,
	timeline int,
	lease_until timestamptz,
	epoch bigint NOT NULL DEFAULT 1,
	created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE cutover.progress (
	direction text PRIMARY KEY,
	k bigint NOT NULL,
	snapshot text,
	window_snapshot text,
	done_lsn pg_lsn,
	done_xid bigint,
	applied_at timestamptz
);
CREATE TABLE cutover.chunk (
	table_id int NOT NULL,
	generation int NOT NULL,
	chunk_no int NOT NULL,
	snapshot text,
	rows bigint,
	copied_at timestamptz,
	PRIMARY KEY (table_id, generation, chunk_no)
);
CREATE TABLE cutover.deferred (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	table_id int NOT NULL,
	kind text NOT NULL CHECK (kind IN ('index', 'unique', 'exclude', 'foreign_key', 'trigger')),
	relation text NOT NULL,
	name name NOT NULL,
	definition text NOT NULL,
	taken_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cutover.deferred IS 'what was taken off tables of this database while they are filled, and the SQL that brings it back';
CREATE FUNCTION cutover.restore_deferred(only_table int DEFAULT NULL)
RETURNS TABLE (relation text, name name, definition text, sqlstate text, message text)
LANGUAGE plpgsql AS $body$
DECLARE
	d record;
BEGIN
	FOR d IN SELECT * FROM cutover.deferred f WHERE only_table IS NULL OR f.table_id = only_table
		ORDER BY array_position(ARRAY['index', 'unique', 'exclude', 'foreign_key', 'trigger'], f.kind), f.id
	LOOP
		BEGIN
			IF to_regclass(d.relation) IS NOT NULL THEN
				EXECUTE d.definition;
			END IF;
			DELETE FROM cutover.deferred f WHERE f.id = d.id;
		EXCEPTION
			WHEN duplicate_table OR duplicate_object OR invalid_table_definition THEN
				-- it is there already
				DELETE FROM cutover.deferred f WHERE f.id = d.id;
			WHEN query_canceled OR lock_not_available OR deadlock_detected OR disk_full OR out_of_memory THEN
				RAISE;
			WHEN OTHERS THEN
				relation := d.relation;
				name := d.name;
				definition := d.definition;
				restore_deferred.sqlstate := SQLSTATE;
				message := SQLERRM;
				RETURN NEXT;
		END;
	END LOOP;
END
$body$;
COMMENT ON FUNCTION cutover.restore_deferred(int) IS 'brings back what was taken off; returns what could not be brought back, which stays in cutover.deferred';
