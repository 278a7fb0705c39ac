-- the extension comes and goes, alone and completely
\set SHOW_CONTEXT never
CREATE EXTENSION cutover;
SELECT extversion, extrelocatable, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
WHERE extname = 'cutover';
-- nothing is granted to everybody but the trigger function, which copies of triggers need
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'cutover'
WHERE has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY p.oid::regprocedure::text;
-- every public function says what it does
SELECT p.oid::regprocedure FROM pg_proc p
WHERE proname LIKE 'cutover\_%' AND obj_description(p.oid, 'pg_proc') IS NULL ORDER BY p.oid::regprocedure::text;
DROP EXTENSION cutover CASCADE;
SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover';
-- its own schema can't be the public one
CREATE SCHEMA cutover;
CREATE EXTENSION cutover SCHEMA cutover;
DROP SCHEMA cutover;
CREATE SCHEMA elsewhere;
CREATE EXTENSION cutover SCHEMA elsewhere;
DROP EXTENSION cutover CASCADE;
DROP SCHEMA elsewhere;
