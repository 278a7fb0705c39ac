-- ramp.sql: raising ratios step by step, as long as guards hold.

CREATE FUNCTION @extschema@.cutover_start_ramp(plan jsonb, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_start_ramp', 'There is no ratio to raise.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_start_ramp(jsonb, name)
	IS 'step 6, ramp: raises ratios by a plan, as long as every guard holds';

CREATE FUNCTION @extschema@.cutover_stop_ramp(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_stop_ramp', 'There is no ramp.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_stop_ramp(name)
	IS 'step 6, ramp: holds the ramp where it is';

CREATE FUNCTION @extschema@.cutover_resume_ramp(target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_resume_ramp', 'There is no ramp.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_resume_ramp(name)
	IS 'step 6, ramp: goes on with a ramp that was stopped';

CREATE FUNCTION @extschema@.cutover_add_guard(
	guard name,
	metric text,
	threshold double precision,
	for_duration interval DEFAULT '0',
	action text DEFAULT 'step_back',
	target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_add_guard', 'cutover.metrics and cutover_metrics() can be watched from outside.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_add_guard(name, text, double precision, interval, text, name)
	IS 'step 6, ramp: a limit for a metric, and what happens when it is passed';

CREATE FUNCTION @extschema@.cutover_drop_guard(guard name, target name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_drop_guard', 'There are no guards.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_drop_guard(name, name)
	IS 'step 6, ramp: removes a guard';

CREATE FUNCTION @extschema@.cutover_report(target name DEFAULT NULL) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._raise_unsupported('cutover_report', 'cutover.status, cutover.progress and cutover.event hold what there is to report.');
END
$$;
COMMENT ON FUNCTION @extschema@.cutover_report(name)
	IS 'any step: the whole migration as one HTML page';

CREATE VIEW cutover.ramp AS
SELECT NULL::name AS target, NULL::jsonb AS plan, NULL::int AS step, NULL::int AS steps, NULL::text AS state,
	NULL::timestamptz AS step_since, NULL::text AS waiting_for
WHERE false;
COMMENT ON VIEW cutover.ramp IS 'the plan, where it is, and why it waits';

CREATE VIEW cutover.guard AS
SELECT NULL::name AS target, NULL::name AS guard, NULL::text AS metric, NULL::float8 AS threshold,
	NULL::interval AS for_duration, NULL::text AS action, NULL::float8 AS value, NULL::boolean AS holds
WHERE false;
COMMENT ON VIEW cutover.guard IS 'each guard with the present value of its metric';
