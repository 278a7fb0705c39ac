SET client_min_messages = warning;
DO $$ BEGIN
	PERFORM cutover._remove_capture(table_id) FROM cutover._table;
	UPDATE cutover._target SET desired = 'finished';
	PERFORM cutover._drop_queue(target_id) FROM cutover._target;
END $$;
DROP EXTENSION cutover CASCADE;
DROP SCHEMA test CASCADE;
RESET client_min_messages;
