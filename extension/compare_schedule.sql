-- compare_schedule.sql: comparing in the background, window after window.

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
