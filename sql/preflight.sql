-- preflight finds beforehand what would go wrong later
\set SHOW_CONTEXT never
CREATE DATABASE regress_cutover_old ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;
CREATE DATABASE regress_cutover_new ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;
SELECT current_database() AS home \gset
\c regress_cutover_old
CREATE EXTENSION cutover;
CREATE ROLE regress_cutover_app LOGIN;
SELECT split_part(current_setting('unix_socket_directories'), ',', 1) AS host,
	current_setting('port') AS port, current_user AS me \gset
\set address 'host=' :host ' port=' :port ' dbname=regress_cutover_new'
\set address_me :address ' user=' :me
\set address_app :address ' user=regress_cutover_app'

SELECT cutover_add_target('x', :'address_me');
-- no table yet
SELECT level, check_name, object, message, hint FROM cutover_preflight() WHERE level = 'error';

-- what fits has nothing but advice, and a row for each check
CREATE TABLE fits (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text NOT NULL, b numeric(10, 2), c text[], d varchar(20),
	twice int GENERATED ALWAYS AS (id * 2) STORED, UNIQUE (a), CHECK (b > 0));
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES fits);
CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
\c regress_cutover_new
CREATE TABLE fits (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text NOT NULL, b numeric(12, 3), c text[], d varchar(30),
	twice int GENERATED ALWAYS AS (id * 2) STORED, UNIQUE (a), CHECK (b > 0));
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES fits);
CREATE TABLE parts (id int, day date, PRIMARY KEY (id, day));
\c regress_cutover_old
\set SHOW_CONTEXT never
SELECT * FROM cutover_add_tables();
SELECT level, check_name, object, message FROM cutover_preflight();

-- types
CREATE TYPE mood AS ENUM ('bad', 'good');
CREATE TYPE pair AS (x int, y text);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE TABLE types (id int PRIMARY KEY, shorter varchar(20), narrow numeric(10, 2), places numeric, m mood, p pair, pos int, list int[],
	at timestamptz, big bigint, js jsonb, words text, flag boolean, same positive, day date, moods mood[], at3 timestamptz(3),
	small smallint, fixed char(4), clock time, unlike int4range);
\c regress_cutover_new
CREATE TYPE mood AS ENUM ('good');
CREATE TYPE pair AS (x int, y int);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE TABLE types (id bigint PRIMARY KEY, shorter varchar(10), narrow numeric(8, 2), places numeric(10, 2), m mood, p pair, pos positive, list int,
	at timestamp, big int, js json, words int, flag int, same positive, day timestamptz, moods mood[], at3 timestamptz(1),
	small numeric(5), fixed text, clock interval, unlike int8range);
\c regress_cutover_old
\set SHOW_CONTEXT never
SELECT cutover_add_table('types');
SELECT level, check_name, object, message FROM cutover_preflight() WHERE object LIKE 'public.types%';
SELECT cutover_remove_table('types');

-- columns, keys and constraints
CREATE TABLE cols (id int PRIMARY KEY, gone text, a int, g int GENERATED ALWAYS AS (a + 1) STORED, g2 int GENERATED ALWAYS AS (a) STORED,
	plain int, up int, r regclass);
CREATE TABLE keyless (a int);
CREATE TABLE key_wrong (id int PRIMARY KEY, a int);
CREATE TABLE key_slow (id int PRIMARY KEY, a int);
CREATE TABLE key_late (id int PRIMARY KEY);
CREATE TABLE mapped (id int PRIMARY KEY, price numeric, note text, code text);
CREATE TABLE tight (id int PRIMARY KEY, a int, b int UNIQUE, span int4range);
\c regress_cutover_new
CREATE TABLE cols (id int PRIMARY KEY, a int NOT NULL, g int GENERATED ALWAYS AS (a + 1) STORED, g2 int GENERATED ALWAYS AS (a + 2) STORED,
	plain int GENERATED ALWAYS AS (id) STORED, up int GENERATED ALWAYS AS IDENTITY, r regclass,
	extra text, def text NOT NULL DEFAULT '', need text NOT NULL);
CREATE TABLE keyless (a int);
CREATE TABLE key_wrong (id int, a int);
CREATE TABLE key_slow (id int, a int, UNIQUE (id, a));
CREATE TABLE key_late (id int, UNIQUE (id) DEFERRABLE);
CREATE TABLE mapped (id text PRIMARY KEY, cents bigint, code text);
CREATE TABLE tight (id int PRIMARY KEY, a int UNIQUE, b int CHECK (b > 0), span int4range, UNIQUE (b, a), EXCLUDE USING gist (span WITH &&));
\c regress_cutover_old
\set SHOW_CONTEXT never
SELECT cutover_add_table('cols'), cutover_add_table('keyless'), cutover_add_table('key_wrong'), cutover_add_table('key_slow'),
	cutover_add_table('key_late'), cutover_add_table('tight'),
	cutover_add_table('mapped', columns => '{"id": "id::text || ''x''", "cents": "(price * 100)::bigint"}');
SELECT level, check_name, object, message FROM cutover_preflight()
WHERE level <> 'ok' AND check_name IN ('columns', 'not_null', 'generated', 'identity_columns', 'key', 'constraints', 'object_references', 'sequences');

-- relations on new
CREATE TABLE absent (id int PRIMARY KEY);
CREATE TABLE seen (id int PRIMARY KEY);
CREATE TABLE full_up (id int PRIMARY KEY);
CREATE TABLE ruled (id int PRIMARY KEY);
CREATE TABLE fleeting (id serial PRIMARY KEY);
CREATE TABLE outer_one (id int PRIMARY KEY, seen int REFERENCES seen);
ALTER TABLE seen ADD outer_one int REFERENCES outer_one;
CREATE TABLE parts_less (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_less_1 PARTITION OF parts_less FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE parts_less_2 PARTITION OF parts_less FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE parts_none (LIKE parts_less INCLUDING INDEXES);
CREATE TABLE parts_other (LIKE parts_less INCLUDING INDEXES) PARTITION BY LIST (day);
CREATE TABLE parts_fine (LIKE parts_less INCLUDING INDEXES) PARTITION BY LIST (id);
CREATE TABLE parts_fine_1 PARTITION OF parts_fine FOR VALUES IN (1);
\c regress_cutover_new
CREATE VIEW seen AS SELECT 1 AS id, 2 AS outer_one;
CREATE TABLE full_up (id int PRIMARY KEY);
INSERT INTO full_up VALUES (1);
CREATE TABLE ruled (id int PRIMARY KEY);
CREATE RULE aside AS ON INSERT TO ruled DO INSTEAD NOTHING;
CREATE RULE "Always" AS ON DELETE TO ruled DO INSTEAD NOTHING;
ALTER TABLE ruled ENABLE ALWAYS RULE "Always";
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE TABLE outer_one (id int PRIMARY KEY);
ALTER TABLE fleeting ADD outer_one int REFERENCES outer_one;
CREATE TABLE outer_two (ruled int REFERENCES ruled);
CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER ordinary BEFORE INSERT ON full_up FOR EACH ROW EXECUTE FUNCTION noop();
CREATE TRIGGER always BEFORE INSERT ON full_up FOR EACH ROW EXECUTE FUNCTION noop();
ALTER TABLE full_up ENABLE ALWAYS TRIGGER always;
ALTER TABLE ruled ENABLE ROW LEVEL SECURITY;
CREATE TABLE parts_less (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parts_less_1 PARTITION OF parts_less FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE parts_none (LIKE parts_less INCLUDING INDEXES) PARTITION BY LIST (id);
CREATE TABLE parts_other (LIKE parts_less INCLUDING INDEXES) PARTITION BY LIST (id);
CREATE TABLE parts_other_1 PARTITION OF parts_other FOR VALUES IN (1, 2);
CREATE TABLE parts_fine (LIKE parts_less INCLUDING INDEXES) PARTITION BY LIST (id);
CREATE TABLE parts_fine_1 PARTITION OF parts_fine DEFAULT;
\c regress_cutover_old
\set SHOW_CONTEXT never
SELECT cutover_remove_table(t) FROM unnest('{cols, keyless, key_wrong, key_slow, key_late, tight, mapped, fits, child, parts}'::regclass[]) t;
SELECT cutover_add_table('absent'), cutover_add_table('seen'), cutover_add_table('full_up', row_filter => 'id > 10'), cutover_add_table('ruled'),
	cutover_add_table('fleeting'), cutover_add_table('parts_less'), cutover_add_table('parts_none'), cutover_add_table('parts_other'),
	cutover_add_table('parts_fine');
SELECT level, check_name, object, message, hint FROM cutover_preflight()
WHERE level <> 'ok' AND check_name NOT IN ('queue_limit', 'shared_preload_libraries');
-- rows may be there if nothing is going to be copied
SELECT level, check_name, object FROM cutover._preflight(cutover._target_id(NULL), false) WHERE check_name = 'not_empty';

-- another role on new
SELECT cutover_remove_table(t) FROM unnest('{parts_less, parts_none, parts_other, parts_fine}'::regclass[]) t;
\c regress_cutover_new
REVOKE ALL ON SCHEMA cutover FROM regress_cutover_app;
\c regress_cutover_old
SELECT server FROM cutover._target \gset
ALTER USER MAPPING FOR CURRENT_USER SERVER :server OPTIONS (SET user 'regress_cutover_app');
SELECT level, check_name, object, message FROM cutover_preflight() WHERE check_name IN ('new_database', 'connection', 'new_privileges') AND object NOT LIKE 'public.%';
\c regress_cutover_new
GRANT ALL ON SCHEMA cutover TO regress_cutover_app;
GRANT ALL ON ALL TABLES IN SCHEMA cutover TO regress_cutover_app;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ruled TO regress_cutover_app;
\c regress_cutover_old
\set SHOW_CONTEXT never
SELECT cutover_set_target('x', :'address_app');
SELECT level, check_name, object, message FROM cutover_preflight()
WHERE check_name IN ('new_privileges', 'row_security', 'rules', 'triggers', 'foreign_keys', 'not_empty') ORDER BY 1, 2, 3, 4;
SELECT cutover_set_target('x', :'address_me');

-- this side
BEGIN;
INSERT INTO full_up VALUES (1);
PREPARE TRANSACTION 'left over';
SET cutover.capture = off;
ALTER ROLE regress_cutover_app IN DATABASE regress_cutover_old SET cutover.capture = off;
SELECT level, check_name, object, message LIKE '%open since%' AS since FROM cutover_preflight()
WHERE check_name IN ('prepared_transactions', 'capture_setting');
RESET cutover.capture;
ALTER ROLE regress_cutover_app IN DATABASE regress_cutover_old RESET cutover.capture;
ROLLBACK PREPARED 'left over';
SELECT lo_create(4711);
SELECT level, check_name, object, message FROM cutover_preflight() WHERE check_name = 'large_objects';
SELECT lo_unlink(4711);
UPDATE cutover._target SET system_identifier = 1;
SELECT level, check_name, message FROM cutover_preflight() WHERE check_name = 'identity';
UPDATE cutover._target SET system_identifier = (SELECT system_identifier FROM pg_control_system());

-- other encodings
CREATE DATABASE regress_cutover_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
CREATE DATABASE regress_cutover_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0;
SELECT cutover_add_target('latin', replace(:'address_me', 'regress_cutover_new', 'regress_cutover_latin')),
	cutover_add_target('ascii', replace(:'address_me', 'regress_cutover_new', 'regress_cutover_ascii'));
SELECT level, check_name, message FROM cutover_preflight('latin') WHERE check_name IN ('encoding', 'tables');
SELECT level, check_name, message FROM cutover_preflight('ascii') WHERE check_name IN ('encoding', 'tables');
SELECT cutover_drop_target('latin'), cutover_drop_target('ascii');

-- whose is new
\c regress_cutover_new
UPDATE cutover.migration SET migration_id = gen_random_uuid();
\c regress_cutover_old
\set SHOW_CONTEXT never
SELECT level, check_name, message FROM cutover_preflight() WHERE check_name = 'new_database';

-- new is out of reach: an error among the others, no secret in it
SELECT format('ALTER SERVER %I OPTIONS (SET port %L)', server, '1') FROM cutover._target \gexec
SELECT level, check_name, object, message LIKE '%regress_cutover_app%' AS leaks FROM cutover_preflight() WHERE check_name IN ('connection', 'large_objects', 'types');

-- in a read-only transaction
BEGIN READ ONLY;
SELECT count(*) > 10 FROM cutover_preflight();
COMMIT;
-- who may
CREATE ROLE regress_cutover_other;
SET ROLE regress_cutover_other;
SELECT * FROM cutover_preflight();
RESET ROLE;
SELECT * FROM cutover_preflight('nowhere');

DROP EXTENSION cutover CASCADE;
\c :home
DROP DATABASE regress_cutover_old;
DROP DATABASE regress_cutover_new;
DROP DATABASE regress_cutover_latin;
DROP DATABASE regress_cutover_ascii;
DROP ROLE regress_cutover_app, regress_cutover_other;
