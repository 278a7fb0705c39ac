-- compare.sql: is new equal to old, and making it so.

CREATE TYPE cutover.compare_result AS (
	table_name regclass,
	method text,
	since timestamptz,
	until timestamptz,
	rows bigint,
	missing bigint,
	extra bigint,
	different bigint,
	representation bigint,
	deferred bigint,
	duration interval
);
COMMENT ON TYPE cutover.compare_result IS 'what a compare run found in one table';

CREATE FUNCTION @extschema@.cutover_compare(
	tables regclass[] DEFAULT NULL,
	method text DEFAULT 'auto',
	since timestamptz DEFAULT NULL,
	until timestamptz DEFAULT NULL,
	target name DEFAULT NULL) RETURNS SETOF cutover.compare_result
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'							-- as the worker reads times
AS $$
DECLARE
	v_id int;
	v_table regclass;
	v_ids int[];
	v_run bigint;
BEGIN
	PERFORM cutover._not_null('method', method IS NULL);
	IF method NOT IN ('auto', 'window', 'changes', 'full') THEN
		RAISE EXCEPTION 'invalid value for argument "method": "%"', method USING ERRCODE = '22023',
			DETAIL = 'cutover_compare() knows no such method.', HINT = 'Use one of: auto, window, changes, full.';
	ELSIF since >= until THEN
		RAISE EXCEPTION 'since is not before until' USING ERRCODE = '22023',
			DETAIL = format('since is %s, until is %s.', since, until), HINT = 'A window goes from since up to, not including, until.';
	ELSIF since > clock_timestamp() THEN
		RAISE EXCEPTION 'since lies in the future' USING ERRCODE = '22023',
			DETAIL = format('It is %s.', since), HINT = 'Nothing of that time can be compared yet.';
	ELSIF method = 'full' AND (since IS NOT NULL OR until IS NOT NULL) THEN
		RAISE EXCEPTION 'a full comparison has no since and until' USING ERRCODE = '22023',
			DETAIL = 'It reads every row.', HINT = 'Leave them out, or use method window or changes.';
	END IF;
	IF tables IS NULL THEN
		v_id := cutover._target_id(target);
	ELSE
		IF cardinality(tables) = 0 AND target IS NULL THEN
			v_id := cutover._target_id(NULL);
		END IF;
		FOREACH v_table IN ARRAY tables LOOP
			PERFORM cutover._not_null('tables', v_table IS NULL);
			IF v_id IS NOT NULL AND v_id <> cutover._table_target(v_table, target) THEN
				RAISE EXCEPTION 'the tables belong to different targets' USING ERRCODE = '22023',
					DETAIL = format('Table %s is not of the same target as the one before.', v_table),
					HINT = 'Compare one target at a time.';
			END IF;
			v_id := cutover._table_target(v_table, target);
			IF method = 'window' AND cutover._version_kind((SELECT t.table_id FROM cutover._table t WHERE t.old_table = v_table)) IS NULL THEN
				RAISE EXCEPTION 'table % has no windows of time', v_table USING ERRCODE = '22023',
					DETAIL = 'It was added without a version_column that is a time.', HINT = 'Use method changes or full.';
			END IF;
		END LOOP;
		v_id := coalesce(v_id, cutover._target_id(target));
	END IF;
	v_ids := cutover._compare_tables(tables, v_id);
	IF v_ids <> '{}' THEN
		v_run := cutover._action('cutover_compare', 'CALL cutover._do_compare($1::int, $2::int[], $3, $4::timestamptz, $5::timestamptz, $6)',
			ARRAY[v_id::text, v_ids::text, method, since::text, until::text, current_setting('TimeZone')]);
	END IF;
	RETURN QUERY SELECT t.old_table::regclass, r.method, r.since, r.until, r.rows, r.missing, r.extra, r.different, r.representation,
			r.deferred, r.duration
		FROM cutover._compare_result r JOIN cutover._table t USING (table_id) WHERE r.run = v_run ORDER BY t.table_id, r.method;
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_compare(regclass[], text, timestamptz, timestamptz, name)
	IS 'step 3, compare: compares tables on both sides while both are written to';
