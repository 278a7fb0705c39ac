-- shadow.sql: SELECTs that are also run on new, and what came of it.
--
-- Rows are written by shadow workers.  What may hold values is shown to those
-- who may read the tables.

-- Columns that may differ: a result is compared without them.
CREATE TABLE cutover._shadow_exclude (
	table_id int PRIMARY KEY REFERENCES cutover._table ON DELETE CASCADE,
	columns name[] NOT NULL
);
CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON cutover._shadow_exclude
	FOR EACH STATEMENT EXECUTE FUNCTION cutover._invalidate();
ALTER TABLE cutover._shadow_exclude ENABLE ALWAYS TRIGGER invalidate;

-- By query id; 0 stands for samples of which the query is not known, and for all queries beyond the first 1000.
CREATE TABLE cutover._shadow_read (
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	queryid bigint NOT NULL,
	query text,									-- without constants
	compared text,								-- rows, order, or their count only
	relids oid[] NOT NULL DEFAULT '{}',
	calls bigint NOT NULL DEFAULT 0,			-- runs on new, errors and time-outs included
	mismatches bigint NOT NULL DEFAULT 0,		-- confirmed
	unsettled bigint NOT NULL DEFAULT 0,		-- differed, but old's result never came to rest
	errors bigint NOT NULL DEFAULT 0,
	timeouts bigint NOT NULL DEFAULT 0,
	dropped bigint NOT NULL DEFAULT 0,			-- found no room
	samples int NOT NULL DEFAULT 0,				-- of mismatches, kept
	old_hist bigint[],							-- four buckets for each doubling, from 1 us
	new_hist bigint[],
	last_sqlstate text,
	last_message text,							-- may hold values
	first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	last_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (target_id, queryid)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000);

CREATE TABLE cutover._shadow_mismatch (
	mismatch_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	target_id int NOT NULL,
	queryid bigint NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	statement text NOT NULL,					-- as the client sent it
	parameters jsonb NOT NULL,
	old_rows bigint NOT NULL,
	new_rows bigint NOT NULL,
	sample jsonb NOT NULL,
	relids oid[] NOT NULL,
	FOREIGN KEY (target_id, queryid) REFERENCES cutover._shadow_read ON DELETE CASCADE
);
CREATE INDEX ON cutover._shadow_mismatch (target_id, queryid);

-- Samples that were not compared, and why.
CREATE TABLE cutover._shadow_skipped (
	target_id int NOT NULL REFERENCES cutover._target ON DELETE CASCADE,
	reason text NOT NULL,
	statements bigint NOT NULL,
	PRIMARY KEY (target_id, reason)
) WITH (fillfactor = 50);

CREATE FUNCTION cutover._shadow_add_histograms(a bigint[], b bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT array_agg(coalesce(x.a, 0) + coalesce(x.b, 0) ORDER BY i)
	FROM unnest(a, b) WITH ORDINALITY x (a, b, i)
$$;

-- Milliseconds, from the middle of a bucket: bucket 4 * n + m begins at 2^n * (1 + m/4) us.
CREATE FUNCTION cutover._shadow_percentile(hist bigint[], fraction float8) RETURNS float8
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_total bigint := (SELECT sum(n) FROM unnest(hist) n);
	v_sum bigint := 0;
BEGIN
	IF coalesce(v_total, 0) = 0 THEN
		RETURN NULL;
	END IF;
	FOR i IN 0 .. array_length(hist, 1) - 1 LOOP
		v_sum := v_sum + hist[i + 1];
		IF v_sum >= v_total * fraction AND v_sum > 0 THEN
			RETURN round((2 ^ (i / 4) * (1.125 + i % 4 / 4.0) / 1000)::numeric, 4);
		END IF;
	END LOOP;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION cutover._shadow_percentile(bigint[], float8) IS 'a percentile, in ms, of a histogram of latencies';

-- Adds what a worker has counted.
CREATE FUNCTION cutover._shadow_add(target_id int, queryid bigint, query text, compared text, calls bigint, mismatches bigint,
	errors bigint, timeouts bigint, dropped bigint, unsettled bigint, old_hist bigint[], new_hist bigint[],
	last_sqlstate text, last_message text, relids oid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	IF NOT EXISTS (SELECT FROM cutover._target t WHERE t.target_id = $1) THEN
		RETURN;									-- it was given up a moment ago
	END IF;
	IF NOT EXISTS (SELECT FROM cutover._shadow_read r WHERE r.target_id = $1 AND r.queryid = $2)
		AND (SELECT count(*) FROM cutover._shadow_read r WHERE r.target_id = $1) > 1000
	THEN
		$2 := 0;
		$3 := NULL;
		$4 := NULL;
		$15 := '{}';
	END IF;
	INSERT INTO cutover._shadow_read AS r (target_id, queryid, query, compared, calls, mismatches, errors, timeouts, dropped,
		unsettled, old_hist, new_hist, last_sqlstate, last_message, relids)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
	ON CONFLICT (target_id, queryid) DO UPDATE SET
		query = coalesce(excluded.query, r.query),
		compared = coalesce(excluded.compared, r.compared),
		relids = CASE WHEN excluded.query IS NULL THEN r.relids ELSE excluded.relids END,
		calls = r.calls + excluded.calls,
		mismatches = r.mismatches + excluded.mismatches,
		errors = r.errors + excluded.errors,
		timeouts = r.timeouts + excluded.timeouts,
		dropped = r.dropped + excluded.dropped,
		unsettled = r.unsettled + excluded.unsettled,
		old_hist = cutover._shadow_add_histograms(r.old_hist, excluded.old_hist),
		new_hist = cutover._shadow_add_histograms(r.new_hist, excluded.new_hist),
		last_sqlstate = coalesce(excluded.last_sqlstate, r.last_sqlstate),
		last_message = coalesce(excluded.last_message, r.last_message),
		last_at = clock_timestamp();
END
$$;

-- Keeps a sample of a mismatch: ten of each query, a thousand of a target.
CREATE FUNCTION cutover._shadow_sample(target_id int, queryid bigint, statement text, parameters jsonb, old_rows bigint,
	new_rows bigint, sample jsonb, relids oid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
	INSERT INTO cutover._shadow_read (target_id, queryid) VALUES ($1, $2) ON CONFLICT DO NOTHING;
	UPDATE cutover._shadow_read r SET samples = r.samples + 1
	WHERE r.target_id = $1 AND r.queryid = $2 AND r.samples < 10
		AND (SELECT sum(x.samples) FROM cutover._shadow_read x WHERE x.target_id = $1) < 1000;
	IF FOUND THEN
		INSERT INTO cutover._shadow_mismatch (target_id, queryid, statement, parameters, old_rows, new_rows, sample, relids)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8);
	END IF;
END
$$;

CREATE FUNCTION @extschema@.cutover_set_shadow_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_target int := cutover._target_id(target);
BEGIN
	PERFORM cutover._not_null('percent', percent IS NULL);
	IF percent < 0 OR percent > 100 OR percent = 'NaN' THEN
		RAISE EXCEPTION 'invalid value for argument "percent": %', percent USING ERRCODE = '22023',
			DETAIL = 'It is the share of SELECTs, in percent, that are also run on new.',
			HINT = 'Use a number from 0 to 100.';
	END IF;
	UPDATE cutover._target t SET shadow_ratio = percent WHERE t.target_id = v_target;
	PERFORM cutover._log_event('set_shadow_ratio', jsonb_build_object('percent', percent), v_target);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_shadow_ratio(numeric, name)
	IS 'step 5, reads: the share of SELECTs that are also run on new and compared';

CREATE FUNCTION @extschema@.cutover_exclude_shadow_columns(old_table regclass, columns name[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_table cutover._table;
	v_missing name;
BEGIN
	PERFORM cutover._not_null('old_table', old_table IS NULL);
	PERFORM cutover._not_null('columns', columns IS NULL OR array_position(columns, NULL) IS NOT NULL);
	SELECT t.* INTO v_table FROM cutover._table t WHERE t.old_table = cutover_exclude_shadow_columns.old_table;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'table % is not under migration', old_table USING ERRCODE = '42704',
			DETAIL = 'It was not added to any target.', HINT = 'See cutover.tables.';
	END IF;
	SELECT c INTO v_missing FROM unnest(columns) c
	WHERE NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = v_table.old_table AND a.attname = c AND a.attnum > 0 AND NOT a.attisdropped);
	IF FOUND THEN
		RAISE EXCEPTION 'column "%" of table % does not exist', v_missing, old_table USING ERRCODE = '42703',
			DETAIL = 'Columns are named as on old.', HINT = 'Give the columns that may differ, or an empty array for none.';
	END IF;
	IF columns = '{}' THEN
		DELETE FROM cutover._shadow_exclude e WHERE e.table_id = v_table.table_id;
	ELSE
		INSERT INTO cutover._shadow_exclude AS e (table_id, columns) VALUES (v_table.table_id, cutover_exclude_shadow_columns.columns)
		ON CONFLICT (table_id) DO UPDATE SET columns = excluded.columns;
	END IF;
	PERFORM cutover._log_event('exclude_shadow_columns', jsonb_build_object('table', old_table::text, 'columns', to_jsonb(columns)),
		v_table.target_id);
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_exclude_shadow_columns(regclass, name[])
	IS 'step 5, reads: columns that may differ on new; results are compared without them';

CREATE VIEW cutover.shadow_read AS
SELECT t.target, r.queryid, r.query, r.calls, r.mismatches, r.errors, r.timeouts, r.dropped,
	p.old_p50, p.old_p95, p.old_p99, p.new_p50, p.new_p95, p.new_p99,
	r.compared, r.unsettled, r.samples, r.mismatches > r.samples AS capped, r.last_sqlstate,
	CASE WHEN p.readable OR r.last_message IS NULL THEN r.last_message ELSE 'shown to those who may read the tables' END AS last_message,
	r.first_at, r.last_at
FROM cutover._shadow_read r
JOIN cutover._target t USING (target_id)
CROSS JOIN LATERAL (SELECT
	cutover._shadow_percentile(r.old_hist, 0.5) AS old_p50, cutover._shadow_percentile(r.old_hist, 0.95) AS old_p95,
	cutover._shadow_percentile(r.old_hist, 0.99) AS old_p99, cutover._shadow_percentile(r.new_hist, 0.5) AS new_p50,
	cutover._shadow_percentile(r.new_hist, 0.95) AS new_p95, cutover._shadow_percentile(r.new_hist, 0.99) AS new_p99,
	(SELECT bool_and(cutover._may_read(quote_ident(current_user)::regrole::oid, x)) FROM unnest(r.relids) x) AS readable) p
ORDER BY r.target_id, r.calls DESC;
COMMENT ON VIEW cutover.shadow_read IS 'reads that were run on both sides, by query';

CREATE VIEW cutover.shadow_mismatch AS
SELECT t.target, m.at, m.queryid, CASE WHEN p.readable THEN m.statement ELSE r.query END AS query,
	CASE WHEN p.readable THEN m.parameters END AS parameters, m.old_rows, m.new_rows,
	CASE WHEN p.readable THEN m.sample END AS sample
FROM cutover._shadow_mismatch m
JOIN cutover._shadow_read r USING (target_id, queryid)
JOIN cutover._target t USING (target_id)
CROSS JOIN LATERAL (
	SELECT coalesce(bool_and(cutover._may_read(quote_ident(current_user)::regrole::oid, x)), true) AS readable FROM unnest(m.relids) x) p
ORDER BY m.mismatch_id;
COMMENT ON VIEW cutover.shadow_mismatch IS 'reads that gave another result on new; at most ten of each query are kept';

CREATE FUNCTION cutover._shadow_lost(target_id int) RETURNS bigint
LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'cutover_shadow_lost';
COMMENT ON FUNCTION cutover._shadow_lost(int) IS 'samples that found no shadow worker';

CREATE VIEW cutover.shadow_skipped AS
SELECT t.target, s.reason, s.statements
FROM (SELECT target_id, reason, statements FROM cutover._shadow_skipped
	-- a worker that comes counts these as dropped; none comes where no slot is free
	UNION ALL SELECT target_id, 'no_worker', cutover._shadow_lost(target_id) FROM cutover._target) s
JOIN cutover._target t USING (target_id)
WHERE s.statements > 0
ORDER BY s.target_id, s.statements DESC;
COMMENT ON VIEW cutover.shadow_skipped IS 'reads that were chosen and could not be compared, by reason';
