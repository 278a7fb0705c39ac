-- remote.sql: SQL on new, from functions here.  Internal: not for users.

CREATE FUNCTION cutover._remote(server name, sql text, VARIADIC args text[] DEFAULT '{}')
RETURNS SETOF jsonb LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'cutover_remote';
COMMENT ON FUNCTION cutover._remote(name, text, text[]) IS
	'Runs a statement on a foreign server in a transaction that commits just before the local one; each row as an object of column and text.';

CREATE FUNCTION cutover._remote_check(conninfo text)
RETURNS jsonb LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'cutover_remote_check';
COMMENT ON FUNCTION cutover._remote_check(text) IS
	'Connects by a conninfo string and tells which database and server is there.';

CREATE FUNCTION cutover._parse_conninfo(conninfo text, OUT keyword text, OUT value text, OUT in_mapping boolean)
RETURNS SETOF record LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'cutover_remote_parse_conninfo';
COMMENT ON FUNCTION cutover._parse_conninfo(text) IS
	'The keywords given in a conninfo string; in_mapping: belongs to the user mapping, not to the server.';

CREATE FUNCTION cutover._fdw_validator(options text[], catalog oid)
RETURNS void LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'cutover_remote_fdw_validator';
COMMENT ON FUNCTION cutover._fdw_validator(text[], oid) IS
	'Checks the options of foreign servers and user mappings that hold the address of a target.';

REVOKE ALL ON FUNCTION cutover._remote(name, text, text[]), cutover._remote_check(text), cutover._parse_conninfo(text),
	cutover._fdw_validator(text[], oid) FROM PUBLIC;
