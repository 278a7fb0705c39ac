-- new_side.sql: what we put on new.

-- What we put on new.  Plain SQL for 13 to 18, no superuser.
CREATE FUNCTION cutover._new_side_script() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $script$ SELECT $new$
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
	epoch bigint NOT NULL DEFAULT 1 UNIQUE,		-- a key, so that who locks the key notices a change
	master text NOT NULL DEFAULT 'old' CHECK (master IN ('old', 'new')),
	master_since timestamptz,
	took_over_from text,						-- the master before cutover.take_over(); NULL = none was needed
	protect boolean NOT NULL DEFAULT true,		-- while old is master, refuse writes of others
	created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE cutover.progress (
	direction text PRIMARY KEY,
	k bigint NOT NULL,
	snapshot text,
	window_snapshot text,
	done_lsn pg_lsn,
	done_xid bigint,
	applied_at timestamptz,
	instance text,				-- of old: who may write progress
	window_name text			-- of the marker on old, see there
);
CREATE TABLE cutover.chunk (
	table_id int NOT NULL,
	generation int NOT NULL,
	chunk_no int NOT NULL,			-- -1: the copy of this generation began
	timeline int,					-- of old when it was copied
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
	taken_at timestamptz NOT NULL DEFAULT now(),
	armed boolean NOT NULL DEFAULT false	-- back, as long as this database is the master
);
COMMENT ON TABLE cutover.deferred IS 'what was taken off tables of this database while they are filled, and the SQL that brings it back';
CREATE FUNCTION cutover.restore_deferred(only_table int DEFAULT NULL)
RETURNS TABLE (relation text, name name, definition text, sqlstate text, message text)
LANGUAGE plpgsql AS $body$
DECLARE
	d record;
	v_sql text;
	v_schema text;
BEGIN
	-- a copier that still writes to it is waited for, and later ones find that they may not
	DELETE FROM cutover.chunk c WHERE c.table_id = only_table;
	FOR d IN SELECT i.indexrelid::regclass AS leftover FROM cutover.deferred f
		JOIN pg_catalog.pg_class c ON c.relname = f.name
		JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid AND NOT i.indisvalid AND i.indrelid = to_regclass(f.relation)
		WHERE f.kind IN ('index', 'unique', 'exclude') AND (only_table IS NULL OR f.table_id = only_table)
	LOOP
		EXECUTE format('DROP INDEX %s', d.leftover);
	END LOOP;
	FOR d IN SELECT * FROM cutover.deferred f WHERE only_table IS NULL OR f.table_id = only_table
		ORDER BY array_position(ARRAY['index', 'unique', 'exclude', 'foreign_key', 'trigger'], f.kind), f.id
	LOOP
		BEGIN
			IF to_regclass(d.relation) IS NOT NULL THEN
				FOREACH v_sql IN ARRAY string_to_array(d.definition, '; /* cutover: then */ ') LOOP
					BEGIN
						EXECUTE v_sql;
					EXCEPTION
						WHEN duplicate_table OR duplicate_object THEN
							NULL; -- it is there already, the rest of the definition perhaps not
						WHEN unique_violation THEN
							GET STACKED DIAGNOSTICS v_schema = SCHEMA_NAME;
							IF v_schema <> 'pg_catalog' THEN
								RAISE;
							END IF;
							-- somebody else has just made it
					END;
				END LOOP;
				IF d.kind = 'foreign_key' AND strpos(d.definition, ' NOT VALID') = 0 AND EXISTS (SELECT FROM pg_catalog.pg_constraint c
					WHERE c.conrelid = to_regclass(d.relation) AND c.conname = d.name AND NOT c.convalidated) THEN
					EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', d.relation, d.name);
				END IF;
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
				IF d.kind = 'foreign_key' AND SQLSTATE = '23503' AND strpos(d.definition, '/* cutover: then */') = 0 THEN
					-- rows are missing: at least no more of that kind
					BEGIN
						EXECUTE rtrim(d.definition, '; ') || ' NOT VALID';
					EXCEPTION
						WHEN duplicate_object THEN
							NULL; -- the copy has already come as far
						WHEN wrong_object_type OR feature_not_supported THEN
							RETURN NEXT; -- not on a partitioned table
							CONTINUE;
					END;
					DELETE FROM cutover.deferred f WHERE f.id = d.id;
					definition := format('ALTER TABLE %s VALIDATE CONSTRAINT %I', d.relation, d.name);
				END IF;
				RETURN NEXT;
		END;
	END LOOP;
END
$body$;
COMMENT ON FUNCTION cutover.restore_deferred(int) IS 'brings back what was taken off; returns what could not be brought back, which stays in cutover.deferred';
REVOKE ALL ON FUNCTION cutover.restore_deferred(int) FROM PUBLIC;
CREATE FUNCTION cutover.arm() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	d record;
	v_sql text;
BEGIN
	FOR d IN SELECT * FROM cutover.deferred f WHERE f.kind IN ('foreign_key', 'trigger') AND NOT f.armed ORDER BY f.kind, f.id LOOP
		IF to_regclass(d.relation) IS NOT NULL THEN
			v_sql := (string_to_array(d.definition, '; /* cutover: then */ '))[1];
			BEGIN
				IF d.kind = 'foreign_key' AND strpos(v_sql, ' NOT VALID') = 0 THEN
					BEGIN
						-- for what comes from now on; the rows there are were checked on the other side
						EXECUTE v_sql || ' NOT VALID';
					EXCEPTION WHEN wrong_object_type OR feature_not_supported THEN
						EXECUTE v_sql;
					END;
				ELSE
					EXECUTE v_sql;
				END IF;
			EXCEPTION WHEN duplicate_object OR undefined_object THEN
				NULL; -- there already, or gone with its table
			END;
		END IF;
		UPDATE cutover.deferred f SET armed = true WHERE f.id = d.id;
	END LOOP;
END
$body$;
COMMENT ON FUNCTION cutover.arm() IS 'brings back triggers and foreign keys that were off while the old database wrote here';
REVOKE ALL ON FUNCTION cutover.arm() FROM PUBLIC;
CREATE FUNCTION cutover.disarm() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	d record;
BEGIN
	FOR d IN SELECT * FROM cutover.deferred f WHERE f.armed ORDER BY f.id LOOP
		BEGIN
			EXECUTE format(CASE d.kind WHEN 'trigger' THEN 'ALTER TABLE %s DISABLE TRIGGER %I' ELSE 'ALTER TABLE %s DROP CONSTRAINT %I' END, d.relation, d.name);
		EXCEPTION WHEN undefined_object OR undefined_table THEN
			NULL; -- gone
		END;
		UPDATE cutover.deferred f SET armed = false WHERE f.id = d.id;
	END LOOP;
END
$body$;
COMMENT ON FUNCTION cutover.disarm() IS 'takes them off again, before the old database writes here';
REVOKE ALL ON FUNCTION cutover.disarm() FROM PUBLIC;
CREATE FUNCTION cutover.abandon() RETURNS SETOF text LANGUAGE plpgsql AS $body$
DECLARE
	d record;
BEGIN
	PERFORM cutover.check_writable();
	FOR d IN SELECT * FROM cutover.restore_deferred() LOOP
		RAISE WARNING '"%" of % could not be brought back: %', d.name, d.relation, d.message USING HINT = d.definition;
		RETURN NEXT d.definition;
	END LOOP;
	IF to_regprocedure('cutover.set_read_only(boolean)') IS NOT NULL THEN
		EXECUTE 'SELECT cutover.set_read_only(false)';
	END IF;
	-- the triggers on tables go with their functions
	DROP SCHEMA cutover CASCADE;
END
$body$;
COMMENT ON FUNCTION cutover.abandon() IS 'removes everything of the migration from this database, and brings back what was taken off its tables; returns what could not be brought back';
REVOKE ALL ON FUNCTION cutover.abandon() FROM PUBLIC;
$new$ || cutover._new_guard_script() || cutover._new_capture_script() $script$;
