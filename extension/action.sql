-- action.sql: calls that a worker carries out, and the log of what was done.

-- Runs one statement (CALL of a procedure that may commit in between) in a
-- background worker and returns its result; what the worker raises is raised here.
CREATE FUNCTION cutover._action(function text, sql text, args text[]) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_action';

-- The role behind what happens now: the caller of an action inside its worker,
-- "cutover" in other workers, else the role that called the outermost function.
CREATE FUNCTION cutover._actor() RETURNS name
LANGUAGE c STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_actor';

-- Held to the end of the worker: one action at a time for each target.
CREATE FUNCTION cutover._lock_target(target_id int) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_lock_target';

-- Takes it back before that.
CREATE FUNCTION cutover._unlock_target(target_id int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_unlock_target';

-- Refuses in a transaction block, as an action does.
CREATE FUNCTION cutover._refuse_in_transaction(function text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_refuse_in_transaction';

-- In an action: statements with the rights of its caller.
CREATE FUNCTION cutover._as_caller(sql text, search_path text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_as_caller';

-- The search_path of the session that called a public function written in C.
CREATE FUNCTION cutover._caller_search_path() RETURNS text
LANGUAGE c STABLE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cutover_caller_search_path';

CREATE FUNCTION cutover._log_event(kind text, detail jsonb DEFAULT '{}', target_id int DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	v_actor name := cutover._actor();
	v_target name;
	v_at timestamptz := clock_timestamp();
	v_payload text;
BEGIN
	SELECT t.target INTO v_target FROM cutover._target t WHERE t.target_id = _log_event.target_id;
	INSERT INTO cutover._event (at, actor, kind, detail, target_id, target)
	VALUES (v_at, v_actor, _log_event.kind, coalesce(_log_event.detail, '{}'), _log_event.target_id, v_target);
	-- everybody may listen, and a reason may quote a row
	v_payload := jsonb_build_object('at', v_at, 'actor', v_actor, 'kind', _log_event.kind,
		'target', v_target, 'detail', coalesce(_log_event.detail, '{}') - 'reason')::text;
	IF octet_length(v_payload) > 7900 THEN
		-- the server refuses longer ones; the whole detail is in the view
		v_payload := jsonb_build_object('at', v_at, 'actor', v_actor, 'kind', _log_event.kind,
			'target', v_target, 'truncated', true)::text;
	END IF;
	PERFORM pg_notify('cutover', v_payload);
END
$$;
