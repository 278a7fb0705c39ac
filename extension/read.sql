-- read.sql: reads that new answers, or answers too.

CREATE FUNCTION @extschema@.cutover_enable_router(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_enable_router', 'All reads are answered by old.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_enable_router(name)
	IS 'step 5, reads: lets new sessions of this database load the library that routes reads';

CREATE FUNCTION @extschema@.cutover_disable_router(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_disable_router', 'No session was told to load the library.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_disable_router(name)
	IS 'step 5, reads: undoes cutover_enable_router()';

CREATE FUNCTION @extschema@.cutover_set_shadow_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_set_shadow_ratio', 'No read is run on new.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_shadow_ratio(numeric, name)
	IS 'step 5, reads: the share of SELECTs that are also run on new and compared';

CREATE FUNCTION @extschema@.cutover_set_read_ratio(percent numeric, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_set_read_ratio', 'All reads are answered by old.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_set_read_ratio(numeric, name)
	IS 'step 5, reads: the share of sessions whose SELECTs new answers';

CREATE FUNCTION @extschema@.cutover_add_rule(
	rule name,
	read_from text,
	application text DEFAULT NULL,
	role_name name DEFAULT NULL,
	client inet DEFAULT NULL,
	tables regclass[] DEFAULT NULL,
	target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_add_rule', 'All reads are answered by old.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_add_rule(name, text, text, name, inet, regclass[], name)
	IS 'step 5, reads: one application, role or host reads from new (or old) whatever the ratio';

CREATE FUNCTION @extschema@.cutover_drop_rule(rule name, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_drop_rule', 'There are no rules.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_drop_rule(name, name)
	IS 'step 5, reads: removes a rule';

CREATE VIEW cutover.rule AS
SELECT NULL::name AS target, NULL::name AS rule, NULL::text AS read_from, NULL::text AS application,
	NULL::name AS role_name, NULL::inet AS client, NULL::regclass[] AS tables
WHERE false;
COMMENT ON VIEW cutover.rule IS 'who reads from where, whatever the ratio';

CREATE VIEW cutover.shadow_read AS
SELECT NULL::name AS target, NULL::bigint AS queryid, NULL::text AS query, NULL::bigint AS calls,
	NULL::bigint AS mismatches, NULL::bigint AS errors, NULL::bigint AS timeouts, NULL::bigint AS dropped,
	NULL::float8 AS old_p50, NULL::float8 AS old_p95, NULL::float8 AS old_p99,
	NULL::float8 AS new_p50, NULL::float8 AS new_p95, NULL::float8 AS new_p99
WHERE false;
COMMENT ON VIEW cutover.shadow_read IS 'reads that were run on both sides, by query';

CREATE VIEW cutover.shadow_mismatch AS
SELECT NULL::name AS target, NULL::timestamptz AS at, NULL::bigint AS queryid, NULL::text AS query,
	NULL::jsonb AS parameters, NULL::bigint AS old_rows, NULL::bigint AS new_rows, NULL::jsonb AS sample
WHERE false;
COMMENT ON VIEW cutover.shadow_mismatch IS 'reads that gave another result on new';

CREATE VIEW cutover.read_stats AS
SELECT target, 0::bigint AS routed, 0::bigint AS kept, 0::bigint AS fallbacks, 0::bigint AS timeouts,
	'{}'::jsonb AS reasons
FROM cutover._target;
COMMENT ON VIEW cutover.read_stats IS 'how many reads new answered, and why others stayed on old';
