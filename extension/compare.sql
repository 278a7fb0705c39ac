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
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_compare', 'cutover.apply_error lists the rows that new rejected.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_compare(regclass[], text, timestamptz, timestamptz, name)
	IS 'step 3, compare: compares tables on both sides while both are written to';

CREATE FUNCTION @extschema@.cutover_compensate(tables regclass[] DEFAULT NULL, target name DEFAULT NULL)
RETURNS TABLE (table_name regclass, repaired bigint, deferred bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_compensate', 'cutover_resync() copies a table afresh while it stays in use.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_compensate(regclass[], name)
	IS 'step 3, compare: repairs open divergences through the same ordered queue as all other changes';

CREATE FUNCTION @extschema@.cutover_schedule_compare(
	every interval,
	method text DEFAULT 'auto',
	compensate boolean DEFAULT false,
	target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_schedule_compare', 'Nothing is compared in the background.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_schedule_compare(interval, text, boolean, name)
	IS 'step 3, compare: compares in the background, window after window without gaps';

CREATE FUNCTION @extschema@.cutover_unschedule_compare(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_unschedule_compare', 'Nothing is compared in the background.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_unschedule_compare(name)
	IS 'step 3, compare: ends what cutover_schedule_compare() began';

CREATE VIEW cutover.divergence AS
SELECT NULL::name AS target, NULL::regclass AS table_name, NULL::jsonb AS key, NULL::text AS kind,
	NULL::text[] AS columns, NULL::jsonb AS old_row, NULL::jsonb AS new_row, NULL::timestamptz AS first_seen,
	NULL::timestamptz AS last_seen, NULL::bigint AS times_seen, NULL::text AS state
WHERE false;
COMMENT ON VIEW cutover.divergence IS 'open differences between old and new';

-- Nothing was ever compared: zero rows compared, no time, no clean pass.
CREATE VIEW cutover.divergence_summary AS
SELECT t.target, b.old_table::regclass AS table_name, 0::bigint AS missing, 0::bigint AS extra,
	0::bigint AS different, 0::bigint AS representation, 0::bigint AS deferred, 0::bigint AS rows_compared,
	NULL::timestamptz AS last_compared_at, 0 AS clean_passes
FROM cutover._table b JOIN cutover._target t USING (target_id)
ORDER BY t.target_id, b.table_id;
COMMENT ON VIEW cutover.divergence_summary IS 'open differences of each table, counted by kind';

CREATE VIEW cutover.compare_history AS
SELECT NULL::bigint AS run, NULL::name AS target, r.*, NULL::timestamptz AS started_at
FROM (SELECT (NULL::cutover.compare_result).*) r
WHERE false;
COMMENT ON VIEW cutover.compare_history IS 'every compare run, a row for each table';
