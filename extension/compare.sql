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
