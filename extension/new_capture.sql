-- new_capture.sql: how new remembers which rows changed, so that old can follow.
--
-- A row trigger on each table stores the key of every row that comes, goes or
-- changes; old reads the rows again by these keys.  A row without a key, or
-- whose key on old is computed, is stored as a whole.  The queue has three
-- segments, written one after the other and emptied as a whole.

CREATE FUNCTION cutover._new_capture_script() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $script$ SELECT $new$
CREATE TABLE cutover.queue_state (
	only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
	write_segment int NOT NULL DEFAULT 0 CHECK (write_segment BETWEEN 0 AND 2),
	rotated_k bigint NOT NULL DEFAULT 0,	-- that old had when the present segment was begun ...
	rotated_snapshot pg_snapshot,			-- ... and what it saw
	truncated_k bigint NOT NULL DEFAULT 0,	-- what came up to this number may be gone
	queue_limit bigint NOT NULL DEFAULT 0,	-- bytes; 0 = none
	policy text NOT NULL DEFAULT 'mark'		-- cutover.capture of old
);
INSERT INTO cutover.queue_state DEFAULT VALUES;
COMMENT ON TABLE cutover.queue_state IS 'which part of the queue is written to, and how large it may get';
CREATE SEQUENCE cutover.queue_id;
DO $do$
BEGIN
	FOR i IN 0..2 LOOP
		EXECUTE format('CREATE TABLE cutover.queue_%s (
			id bigint NOT NULL,			-- in the order in which rows of one key, or a table and its TRUNCATE, changed
			xid xid8 NOT NULL,
			table_id int NOT NULL,
			op "char" NOT NULL,			-- I, U, D, T = TRUNCATE, R = read the key again
			old_key jsonb,				-- column -> text
			new_key jsonb) WITH (autovacuum_enabled = off)', i);
		EXECUTE format('CREATE INDEX ON cutover.queue_%s (xid)', i);
		EXECUTE format('CREATE INDEX ON cutover.queue_%s (id)', i);
	END LOOP;
END
$do$;
CREATE VIEW cutover.queue AS
	SELECT * FROM cutover.queue_0 UNION ALL SELECT * FROM cutover.queue_1 UNION ALL SELECT * FROM cutover.queue_2;
COMMENT ON VIEW cutover.queue IS 'keys of rows that changed while this database was the master';
CREATE TABLE cutover.captured (
	table_id int PRIMARY KEY,
	relation text NOT NULL,					-- qualified and quoted
	relid oid NOT NULL,
	columns text[] NOT NULL,				-- what is stored of a row
	whole boolean NOT NULL,					-- rows as they were and are; else a key, to be read again
	image text NOT NULL						-- SQL that makes it; %1$s stands for the row
);
COMMENT ON TABLE cutover.captured IS 'tables whose changes go into the queue';
CREATE TABLE cutover.capture_closed (
	table_id int NOT NULL,
	reason text NOT NULL,
	closed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cutover.capture_closed IS 'tables of which changes could not be captured: old can not follow them any more';

CREATE FUNCTION cutover.queue_bytes() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
	SELECT pg_total_relation_size('cutover.queue_0') + pg_total_relation_size('cutover.queue_1') + pg_total_relation_size('cutover.queue_2')
$body$;
COMMENT ON FUNCTION cutover.queue_bytes() IS 'size of the queue on disk';

CREATE FUNCTION cutover.enqueue(table_id int, op "char", old_key jsonb, new_key jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	s record;
	v_id bigint;
BEGIN
	IF EXISTS (SELECT FROM cutover.capture_closed c WHERE c.table_id = enqueue.table_id) THEN
		RETURN;
	END IF;
	SELECT q.write_segment, q.queue_limit, q.policy INTO s FROM cutover.queue_state q;
	v_id := nextval('cutover.queue_id');
	IF s.queue_limit > 0 AND v_id % 256 = 0 AND cutover.queue_bytes() >= s.queue_limit THEN
		IF s.policy = 'strict' THEN
			RAISE EXCEPTION 'the change can not be captured' USING ERRCODE = '53400',
				DETAIL = 'The queue for the way back to the old database has reached its limit.',
				HINT = 'See what holds up the database that this one was moved from, raise cutover.queue_limit there, or set cutover.capture to mark there.';
		END IF;
		INSERT INTO cutover.capture_closed (table_id, reason) VALUES (enqueue.table_id, 'the queue on new has reached cutover.queue_limit');
		RETURN;
	END IF;
	CASE s.write_segment
		WHEN 0 THEN
			INSERT INTO cutover.queue_0 VALUES (v_id, pg_current_xact_id(), table_id, op, old_key, new_key);
		WHEN 1 THEN
			INSERT INTO cutover.queue_1 VALUES (v_id, pg_current_xact_id(), table_id, op, old_key, new_key);
		ELSE
			INSERT INTO cutover.queue_2 VALUES (v_id, pg_current_xact_id(), table_id, op, old_key, new_key);
	END CASE;
END
$body$;
COMMENT ON FUNCTION cutover.enqueue(int, "char", jsonb, jsonb) IS 'has old look at a row again, or follow a change of it';
REVOKE ALL ON FUNCTION cutover.enqueue(int, "char", jsonb, jsonb) FROM PUBLIC;

-- Every row of a relation as gone, or as come.
CREATE FUNCTION cutover.enqueue_rows(table_id int, relation regclass, op "char") RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC'
	SET extra_float_digits = 3 SET bytea_output = 'hex' SET lc_monetary = 'C' AS $body$
DECLARE
	v_image text;
BEGIN
	SELECT format(c.image, 't') INTO STRICT v_image FROM cutover.captured c WHERE c.table_id = enqueue_rows.table_id;
	EXECUTE format('SELECT count(cutover.enqueue($1, $2, %s, %s)) FROM ONLY %s t', CASE op WHEN 'D' THEN v_image ELSE 'NULL' END,
		CASE op WHEN 'D' THEN 'NULL' ELSE v_image END, relation) USING table_id, op;
END
$body$;
COMMENT ON FUNCTION cutover.enqueue_rows(int, regclass, "char") IS 'puts all rows of a relation into the queue';
REVOKE ALL ON FUNCTION cutover.enqueue_rows(int, regclass, "char") FROM PUBLIC;

-- BEFORE TRUNCATE: of a whole table, or of a partition by itself, which still has its rows then.
CREATE FUNCTION cutover.capture_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_table_id int := TG_ARGV[0];
BEGIN
	IF NOT EXISTS (SELECT FROM pg_partition_ancestors(TG_RELID) a JOIN pg_class c ON c.oid = a.relid WHERE a.relid <> TG_RELID) THEN
		PERFORM cutover.enqueue(v_table_id, 'T', NULL, NULL);
	ELSIF EXISTS (SELECT FROM pg_class c WHERE c.oid = TG_RELID AND c.relkind = 'r')
		-- together with the whole, and first of all
		AND NOT EXISTS (SELECT FROM cutover.queue q WHERE q.xid = pg_current_xact_id() AND q.table_id = v_table_id AND q.op = 'T') THEN
		PERFORM cutover.enqueue_rows(v_table_id, TG_RELID, 'D');
	END IF;
	RETURN NULL;
END
$body$;
COMMENT ON FUNCTION cutover.capture_truncate() IS 'puts a TRUNCATE into the queue';

-- The function of a table's row trigger; what is said once for all rows is said here.
CREATE FUNCTION cutover.make_capture(table_id int, whole boolean, columns text[], relation regclass) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_image text;
	v_plain boolean;
BEGIN
	-- types whose text does not depend on settings, and is the same by a cast
	SELECT bool_and(a.atttypid IN (16, 19, 20, 21, 23, 25, 26, 1043, 2950)),
		format('jsonb_object(ARRAY[%s], ARRAY[%s])', string_agg(replace(quote_literal(a.attname), '%', '%%'), ', ' ORDER BY c.i),
			string_agg(CASE WHEN a.atttypid IN (16, 19, 20, 21, 23, 25, 26, 1043, 2950) THEN format('%%1$s.%s::text', replace(quote_ident(a.attname), '%', '%%'))
				ELSE format('CASE WHEN %%1$s.%1$s IS NOT DISTINCT FROM NULL THEN NULL ELSE format(''%%%%s'', %%1$s.%1$s) END', replace(quote_ident(a.attname), '%', '%%')) END,
				', ' ORDER BY c.i))
		INTO v_plain, v_image
	FROM unnest(columns) WITH ORDINALITY c (name, i) JOIN pg_attribute a ON a.attrelid = relation AND a.attname = c.name AND NOT a.attisdropped;
	EXECUTE format($f$CREATE OR REPLACE FUNCTION cutover.capture_key_%1$s() RETURNS trigger
		LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp %2$s AS $trigger$
		DECLARE
			v_old jsonb;
			v_new jsonb;
		BEGIN
			IF TG_OP <> 'INSERT' THEN
				v_old := %3$s;
			END IF;
			IF TG_OP <> 'DELETE' THEN
				v_new := %4$s;
			END IF;
			%5$s
			PERFORM cutover.enqueue(%1$s, left(TG_OP, 1)::"char", v_old, v_new);
			RETURN NULL;
		END
		$trigger$$f$, table_id,
		CASE WHEN v_plain THEN '' ELSE 'SET DateStyle = ''ISO'' SET IntervalStyle = ''postgres'' SET TimeZone = ''UTC'' SET extra_float_digits = 3 SET bytea_output = ''hex'' SET lc_monetary = ''C''' END,
		format(v_image, 'OLD'), format(v_image, 'NEW'),
		CASE WHEN whole THEN '' ELSE 'IF v_old = v_new THEN v_old := NULL; END IF;' END);
	RETURN v_image;
END
$body$;
COMMENT ON FUNCTION cutover.make_capture(int, boolean, text[], regclass) IS 'makes the function of a table''s capture trigger; returns what it stores of a row';
REVOKE ALL ON FUNCTION cutover.make_capture(int, boolean, text[], regclass) FROM PUBLIC;

-- Captures the changes of a table: by key_columns, or whole rows if there are none.  Returns why not, if not.
CREATE FUNCTION cutover.install_capture(table_id int, relation text, key_columns text[]) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_why_not text := cutover.why_not(relation);
	v_whole boolean := key_columns = '{}';
	v_rel regclass;
	v_columns text[] := key_columns;
	v_partitioned boolean;
	v_text text;
BEGIN
	IF v_why_not IS NOT NULL THEN
		RETURN v_why_not;
	END IF;
	v_rel := to_regclass(relation);
	IF v_whole THEN
		SELECT array_agg(a.attname::text ORDER BY a.attnum) INTO v_columns FROM pg_attribute a
			WHERE a.attrelid = v_rel AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v';
	END IF;
	v_text := cutover.make_capture(table_id, v_whole, v_columns, v_rel);
	INSERT INTO cutover.captured VALUES (table_id, relation, v_rel, v_columns, v_whole, v_text)
		ON CONFLICT ON CONSTRAINT captured_pkey DO UPDATE SET relation = EXCLUDED.relation, relid = EXCLUDED.relid, columns = EXCLUDED.columns, whole = EXCLUDED.whole, image = EXCLUDED.image;
	PERFORM cutover.put_capture(table_id);
	RETURN NULL;
END
$body$;
COMMENT ON FUNCTION cutover.install_capture(int, text, text[]) IS 'has changes of a table go into the queue; returns why it could not';
REVOKE ALL ON FUNCTION cutover.install_capture(int, text, text[]) FROM PUBLIC;

-- Puts the triggers of a captured table on, or right; returns the relations of which rows were not captured.
CREATE FUNCTION cutover.put_capture(table_id int) RETURNS SETOF regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_root regclass := (SELECT to_regclass(c.relation) FROM cutover.captured c WHERE c.table_id = put_capture.table_id);
	v_function text := format('cutover.capture_key_%s()', table_id);
	v_rel regclass;
BEGIN
	FOR v_rel IN SELECT v_root UNION SELECT t.relid FROM pg_partition_tree(v_root) t ORDER BY 1 LOOP
		IF NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = v_rel AND t.tgenabled = 'A' AND t.tgfoid = to_regprocedure(v_function)) THEN
			RETURN NEXT v_rel;
		END IF;
		PERFORM cutover.put_trigger(v_rel, v_function, 29, ' cutover capture',
			'AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW WHEN (coalesce(pg_catalog.current_setting(''cutover.token'', true), '''') = '''') EXECUTE FUNCTION ' || v_function);
		PERFORM cutover.put_trigger(v_rel, 'cutover.capture_truncate()', 32, ' cutover capture truncate',
			format('BEFORE TRUNCATE ON %%s FOR EACH STATEMENT WHEN (coalesce(pg_catalog.current_setting(''cutover.token'', true), '''') = '''') EXECUTE FUNCTION cutover.capture_truncate(%s)', table_id));
	END LOOP;
END
$body$;
COMMENT ON FUNCTION cutover.put_capture(int) IS 'puts the triggers of a captured table right; returns where that for rows was missing';
REVOKE ALL ON FUNCTION cutover.put_capture(int) FROM PUBLIC;

-- Does a change of a row arrive in the queue?  Returns why not; a note on an empty table begins with "ok".
CREATE FUNCTION cutover.prove_capture(table_id int) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_root regclass := (SELECT to_regclass(c.relation) FROM cutover.captured c WHERE c.table_id = prove_capture.table_id);
	v_token text := current_setting('cutover.token', true);
	v_column name;
	v_leaf regclass;
	v_ctid tid;
	v_count bigint;
	v_rows bigint;
BEGIN
	SELECT a.attname INTO v_column FROM pg_attribute a WHERE a.attrelid = v_root AND a.attnum > 0 AND NOT a.attisdropped
		AND a.attgenerated = '' AND a.attidentity <> 'a' ORDER BY a.attnum DESC LIMIT 1;
	IF v_column IS NULL THEN
		RETURN 'ok: no column can be updated';
	END IF;
	BEGIN
		-- triggers of the application would take it for real
		PERFORM set_config('session_replication_role', 'replica', true);
	EXCEPTION WHEN insufficient_privilege THEN
		NULL;
	END;
	BEGIN
		UPDATE cutover.token t SET proving = true WHERE t.pid = pg_backend_pid();
		PERFORM set_config('cutover.token', '', true);
		EXECUTE format('SELECT tableoid, ctid FROM %s%s LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED',
			CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = v_root) = 'p' THEN '' ELSE 'ONLY ' END, v_root) INTO v_leaf, v_ctid;
		IF v_ctid IS NULL THEN
			v_count := -1;
		ELSE
			EXECUTE format('UPDATE ONLY %s SET %I = %I WHERE ctid = $1', v_leaf, v_column, v_column) USING v_ctid;
			GET DIAGNOSTICS v_rows = ROW_COUNT;
			SELECT count(*) INTO v_count FROM cutover.queue q WHERE q.xid = pg_current_xact_id() AND q.table_id = prove_capture.table_id;
		END IF;
		RAISE EXCEPTION 'proven' USING ERRCODE = 'CU000';
	EXCEPTION WHEN SQLSTATE 'CU000' THEN
		NULL;
	END;
	PERFORM set_config('session_replication_role', 'origin', true) WHERE current_setting('session_replication_role') = 'replica';
	PERFORM set_config('cutover.token', v_token, true);
	RETURN CASE WHEN v_count = -1 THEN 'ok: the table is empty, or every row of it is locked'
		WHEN v_rows = 0 THEN 'a trigger keeps rows from being updated'
		WHEN v_count = 0 THEN 'a change of a row did not arrive in the queue on new' END;
END
$body$;
COMMENT ON FUNCTION cutover.prove_capture(int) IS 'changes a row, looks whether that arrives in the queue, and takes it back';
REVOKE ALL ON FUNCTION cutover.prove_capture(int) FROM PUBLIC;

-- Turns the triggers of a table off.  They stay, since to drop them readers would have to wait.
CREATE FUNCTION cutover.remove_capture(table_id int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	t record;
BEGIN
	FOR t IN SELECT g.tgrelid::regclass AS rel, g.tgname FROM pg_trigger g JOIN cutover.captured c ON c.table_id = remove_capture.table_id
		WHERE g.tgrelid IN (SELECT to_regclass(c.relation)::oid UNION SELECT p.relid::oid FROM pg_partition_tree(to_regclass(c.relation)) p)
			AND g.tgfoid IN (to_regprocedure(format('cutover.capture_key_%s()', c.table_id)), 'cutover.capture_truncate()'::regprocedure)
			AND g.tgenabled <> 'D' ORDER BY g.tgrelid
	LOOP
		EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', t.rel, t.tgname);
	END LOOP;
	DELETE FROM cutover.captured c WHERE c.table_id = remove_capture.table_id;
END
$body$;
COMMENT ON FUNCTION cutover.remove_capture(int) IS 'changes of a table are not captured any more';
REVOKE ALL ON FUNCTION cutover.remove_capture(int) FROM PUBLIC;

-- Uses the next segment of the queue, if the present one is large and the next can be emptied: its rows have long been with old,
-- and nobody writes there any more.  Never waits for a lock.
CREATE FUNCTION cutover.rotate_queue(acked pg_snapshot, acked_k bigint, large bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $body$
DECLARE
	s cutover.queue_state;
	v_next int;
	v_gone boolean;
BEGIN
	SELECT * INTO s FROM cutover.queue_state;
	IF pg_relation_size(format('cutover.queue_%s', s.write_segment)::regclass) < large THEN
		RETURN false;
	END IF;
	v_next := (s.write_segment + 1) % 3;
	EXECUTE format('LOCK TABLE cutover.queue_%s IN ACCESS EXCLUSIVE MODE NOWAIT', v_next);
	IF s.rotated_snapshot IS NOT NULL THEN
		EXECUTE format('SELECT NOT EXISTS (SELECT FROM cutover.queue_%1$s q WHERE q.xid >= pg_snapshot_xmax($1))
			AND NOT EXISTS (SELECT FROM cutover.queue_%1$s q WHERE q.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1))))', v_next)
			INTO v_gone USING s.rotated_snapshot;
	ELSE
		EXECUTE format('SELECT NOT EXISTS (SELECT FROM cutover.queue_%s)', v_next) INTO v_gone;
	END IF;
	IF NOT v_gone THEN
		RETURN false;
	END IF;
	EXECUTE format('TRUNCATE cutover.queue_%s', v_next);
	UPDATE cutover.queue_state SET write_segment = v_next, truncated_k = s.rotated_k, rotated_k = acked_k, rotated_snapshot = acked;
	RETURN true;
EXCEPTION WHEN lock_not_available THEN
	RETURN false;
END
$body$;
COMMENT ON FUNCTION cutover.rotate_queue(pg_snapshot, bigint, bigint) IS 'empties a part of the queue that old has had for long, and writes there';
REVOKE ALL ON FUNCTION cutover.rotate_queue(pg_snapshot, bigint, bigint) FROM PUBLIC;

-- Begins the queue anew, before a switch: old has, or does not want, what it holds.
CREATE FUNCTION cutover.begin_queue(k bigint, queue_limit bigint, policy text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
	v_snapshot text;
BEGIN
	TRUNCATE cutover.queue_0, cutover.queue_1, cutover.queue_2, cutover.capture_closed;
	UPDATE cutover.queue_state s SET write_segment = 0, rotated_k = k, rotated_snapshot = NULL, truncated_k = k,
		queue_limit = begin_queue.queue_limit, policy = begin_queue.policy;
	v_snapshot := pg_current_snapshot();
	DELETE FROM cutover.progress p WHERE p.direction = 'reverse';
	INSERT INTO cutover.progress (direction, k, snapshot, applied_at) VALUES ('reverse', begin_queue.k, v_snapshot, clock_timestamp());
	RETURN v_snapshot;
END
$body$;
COMMENT ON FUNCTION cutover.begin_queue(bigint, bigint, text) IS 'empties the queue, before this database becomes the master';
REVOKE ALL ON FUNCTION cutover.begin_queue(bigint, bigint, text) FROM PUBLIC;
$new$ $script$;
COMMENT ON FUNCTION cutover._new_capture_script() IS 'what is put on new to capture its changes';
