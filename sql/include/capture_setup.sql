-- targets and tables by hand, without a new database: capture alone
SET client_min_messages = warning;
CREATE EXTENSION cutover;
CREATE SCHEMA test;
CREATE FUNCTION test.target(p_id int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO cutover._target (target_id, target, server, migration_id, system_identifier, desired)
		VALUES (p_id, 't' || p_id, 'none', gen_random_uuid(), 1, 'paused');
	PERFORM cutover._create_queue(p_id);
END $$;
CREATE FUNCTION test.add(p_table regclass, p_phase text DEFAULT 'synced', p_target int DEFAULT 1) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	v_id int;
BEGIN
	INSERT INTO cutover._table (target_id, old_table, new_schema, new_name, default_columns, key_attnums, phase)
		VALUES (p_target, p_table, 'public', p_table::text, true,
			coalesce((SELECT string_to_array(indkey::text, ' ')::int2[] FROM pg_index WHERE indrelid = p_table AND indisprimary), '{}'),
			p_phase)
		RETURNING table_id INTO v_id;
	PERFORM cutover._install_capture(v_id);
	RETURN v_id;
END $$;
-- the queue, readable, in order; and empty afterwards
CREATE FUNCTION test.queue(p_target int DEFAULT 1)
RETURNS TABLE (tx bigint, seq int, op "char", flags int, rel text, old_row text, new_row text, detail text) LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY EXECUTE format($q$
		SELECT dense_rank() OVER (ORDER BY b.last, b.xid), b.seq + (c.o - 1)::int, c.op, c.flags,
			(SELECT coalesce(r.relname::text, 'dropped') FROM cutover._layout l LEFT JOIN pg_class r ON r.oid = l.relid WHERE l.layout_id = c.layout_id),
			c.old_row, c.new_row, regexp_replace(c.detail, '^([A-Z]) \d+ ', '\1: ')
		FROM (SELECT q.*, max(q.lsn) OVER (PARTITION BY q.xid) AS last FROM (
				SELECT * FROM cutover._queue_%1$s_0 UNION ALL SELECT * FROM cutover._queue_%1$s_1
				UNION ALL SELECT * FROM cutover._queue_%1$s_2) q) b,
			cutover._block_changes(b.data) WITH ORDINALITY c (op, flags, layout_id, old_row, new_row, detail, o)
		ORDER BY 1, 2$q$, p_target);
	EXECUTE format('TRUNCATE cutover._queue_%1$s_0, cutover._queue_%1$s_1, cutover._queue_%1$s_2', p_target);
END $$;
RESET client_min_messages;
