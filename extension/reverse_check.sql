-- reverse_check.sql: what can be said of the way back before it is needed.

-- The columns of tables on new, as _new_columns() gives them, from preflight's description.
CREATE FUNCTION cutover._preflight_new_columns(new_doc jsonb, table_id int) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT jsonb_object_agg(c.name, jsonb_build_object('generated', (c.generated <> '')::text))
	FROM cutover._preflight_doc_columns(new_doc) c WHERE c.t = $2 AND c.attnum > 0
$$;

-- Checks of the guard of new and of the way back.
CREATE FUNCTION cutover._preflight_reverse(target_id int, old_doc jsonb, new_doc jsonb) RETURNS SETOF cutover._finding
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT 'warning', 'reverse', n.name, format('role %I does not own the table: others may write to it before the switch, and after it old can not follow', new_doc->'server'->>'role'),
		format('On new: ALTER TABLE %s OWNER TO %I; or make that role a member of %I.', n.name, new_doc->'server'->>'role', n.owner_name)
	FROM cutover._preflight_doc_tables(new_doc) n WHERE n.kind IN ('r', 'p') AND NOT n.owner
	UNION ALL
	SELECT 'warning', 'reverse', o.name, 'after the switch old can not follow: ' || string_agg(m.problem, ', ' ORDER BY m.attnum),
		format('Give what makes these columns of a row of new, in reverse_columns of cutover_add_table(), for example {%s: "expression"}.',
			string_agg(to_json(m.old_column)::text, ', ' ORDER BY m.attnum))
	FROM cutover._preflight_doc_tables(old_doc) o JOIN cutover._preflight_doc_tables(new_doc) n ON n.t = o.t
	CROSS JOIN LATERAL cutover._reverse_map(o.t, cutover._preflight_new_columns(new_doc, o.t)) m
	WHERE m.problem IS NOT NULL AND n.kind IN ('r', 'p')
	GROUP BY o.name
	UNION ALL
	SELECT 'warning', 'reverse', format('%s.%I', n.name, c.name), 'old has no place for this column of new: going back loses what it holds by then',
		'It does no harm before the switch.'
	FROM cutover._preflight_doc_tables(new_doc) n JOIN cutover._table t ON t.table_id = n.t
	JOIN cutover._preflight_doc_columns(new_doc) c ON c.t = n.t AND c.attnum > 0 AND c.generated = ''
	WHERE t.reverse_columns IS NULL
		AND NOT EXISTS (SELECT FROM cutover._column x WHERE x.table_id = t.table_id AND x.new_column = c.name AND NOT t.default_columns)
		AND NOT (t.default_columns AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.old_table AND a.attname = c.name AND NOT a.attisdropped))
$$;
COMMENT ON FUNCTION cutover._preflight_reverse(int, jsonb, jsonb) IS 'preflight: the guard of new, and the way back';

-- New was made the master while old was away: what old has that new lacks is old's alone now.
CREATE FUNCTION cutover._supersede(t cutover._target, p_epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	PERFORM cutover._log_event('superseded', jsonb_build_object('from_mode', t.mode, 'epoch', t.epoch, 'epoch_on_new', p_epoch,
		'queued_changes', cutover._queued_changes(t.target_id)), t.target_id);
	UPDATE cutover._table b SET reverse_closed = 'new was made the master without old, which may have changes that new has not'
		WHERE b.target_id = t.target_id AND NOT EXISTS (SELECT FROM cutover._reverse_table r WHERE r.table_id = b.table_id);
END
$$;
COMMENT ON FUNCTION cutover._supersede(cutover._target, bigint) IS 'notes that new was made the master while old was away';
