-- cutover_add_table and its kin: what can be under migration, and how it is mapped
\set SHOW_CONTEXT never
CREATE DATABASE regress_table_old;
CREATE DATABASE regress_table_new;
SELECT current_database() AS home \gset
\c regress_table_old
\set SHOW_CONTEXT never
CREATE EXTENSION cutover;
SELECT split_part(current_setting('unix_socket_directories'), ',', 1) AS host,
	current_setting('port') AS port, current_user AS me \gset
\set address 'host=' :host ' port=' :port ' user=' :me ' dbname=regress_table_new'

-- runs a statement; what it raises comes as a row
CREATE FUNCTION try(sql text, OUT state text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE sql;
	state := 'ok';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$;
\x

SELECT * FROM try($$SELECT cutover_add_table('pg_class')$$);
SELECT cutover_add_target('x', :'address');

-- not tables, and tables that are nobody's business
CREATE VIEW a_view AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id;
CREATE SEQUENCE a_sequence;
CREATE TABLE a_table (id int PRIMARY KEY);
CREATE TYPE a_type AS (id int);
CREATE TEMP TABLE a_temp (id int PRIMARY KEY);
CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY);
CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10);
CREATE TABLE middle PARTITION OF root FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE deep PARTITION OF middle FOR VALUES FROM (10) TO (15);
CREATE TABLE bad_root (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE UNLOGGED TABLE bad_leaf PARTITION OF bad_root FOR VALUES FROM (0) TO (10);
SELECT * FROM try($$SELECT cutover_add_table(NULL)$$);
SELECT * FROM try($$SELECT cutover_add_table('no_such_table')$$);
SELECT * FROM try($$SELECT cutover_add_table(4711::regclass)$$);
SELECT * FROM try($$SELECT cutover_add_table('a_view')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_matview')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_sequence')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_table_pkey')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_type')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_temp')$$);
SELECT * FROM try($$SELECT cutover_add_table('an_unlogged')$$);
SELECT * FROM try($$SELECT cutover_add_table('leaf')$$);
SELECT * FROM try($$SELECT cutover_add_table('middle')$$);
SELECT * FROM try($$SELECT cutover_add_table('deep')$$);
SELECT * FROM try($$SELECT cutover_add_table('bad_root')$$);
SELECT * FROM try($$SELECT cutover_add_table('pg_class')$$);
SELECT * FROM try($$SELECT cutover_add_table('information_schema.sql_features')$$);
SELECT * FROM try($$SELECT cutover_add_table('cutover._target')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_table', shard_by => 'id')$$);
SELECT * FROM try($$SELECT cutover_add_table('a_table', target => 'y')$$);
-- twice; two to one
SELECT cutover_add_table('a_table');
SELECT * FROM try($$SELECT cutover_add_table('a_table')$$);
CREATE TABLE another (id int PRIMARY KEY);
SELECT * FROM try($$SELECT cutover_add_table('another', 'a_table')$$);
SELECT * FROM try($$SELECT cutover_add_table('another', 'public.a_table')$$);
-- names on new
SELECT * FROM try($$SELECT cutover_add_table('another', '')$$);
SELECT * FROM try($$SELECT cutover_add_table('another', 'a.b.c')$$);
SELECT * FROM try($$SELECT cutover_add_table('another', 'a b')$$);
SELECT * FROM try($$SELECT cutover_add_table('another', 'cutover.progress')$$);
SELECT * FROM try(format('SELECT cutover_add_table(''another'', %L)', repeat('x', 64)));

-- whose table it is
CREATE ROLE regress_table_admin IN ROLE cutover_admin;
GRANT USAGE ON SCHEMA public TO regress_table_admin;
GRANT ALL ON FUNCTION try TO regress_table_admin;
SET ROLE regress_table_admin;
SELECT * FROM try($$SELECT cutover_add_table('another')$$);
SELECT * FROM try($$SELECT cutover_add_tables()$$);
SELECT * FROM try($$SELECT cutover_remove_table('a_table')$$);
RESET ROLE;
ALTER TABLE another OWNER TO regress_table_admin;
SET ROLE regress_table_admin;
SELECT * FROM try($$SELECT cutover_add_table('another', '"Odd Schema"."Odd name"')$$);
RESET ROLE;
SELECT actor, detail FROM cutover.event ORDER BY event_id DESC LIMIT 1;
SELECT table_name, new_table, phase, key_columns FROM cutover.tables ORDER BY 1;

-- expressions
CREATE TABLE goods (id int PRIMARY KEY, code text NOT NULL, price numeric(10, 2), note text, made timestamptz,
	tags text[], "Odd" int, n smallint, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE goods DROP COLUMN gone;
CREATE FUNCTION volatile_upper(text) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT upper($1)';
CREATE FUNCTION mine(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
\c regress_table_new
CREATE TABLE goods (id bigint PRIMARY KEY, sku text, price_cents bigint, note text, made_on date, computed int GENERATED ALWAYS AS (1) STORED, twice int);
CREATE TYPE only_here AS ENUM ('a');
CREATE TABLE typed (id int, e only_here);
\c regress_table_old
\set SHOW_CONTEXT never
CREATE TABLE typed (id int PRIMARY KEY, e text);
CREATE FUNCTION try_columns(columns jsonb, OUT state text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
BEGIN
	SELECT * INTO state, message, detail, hint FROM try(format('SELECT cutover_add_table(''goods'', columns => %L)', columns));
END
$$;
SELECT * FROM try_columns('[]');
SELECT * FROM try_columns('"x"');
SELECT * FROM try_columns('{"sku": 1}');
SELECT * FROM try_columns('{"sku": ""}');
SELECT * FROM try_columns('{"": "code"}');
SELECT * FROM try_columns('{"nowhere": "code"}');
SELECT * FROM try_columns('{"computed": "id"}');
SELECT * FROM try_columns('{"sku": "no_column"}');
SELECT * FROM try_columns('{"sku": "upper("}');
SELECT * FROM try_columns('{"sku": "code, note"}');
SELECT * FROM try_columns('{"sku": "code; DROP TABLE goods"}');
SELECT * FROM try_columns('{"sku": "code FROM goods"}');
SELECT * FROM try_columns('{"sku": "code) FROM goods WHERE (true"}');
SELECT * FROM try_columns('{"sku": "code AS x"}');
SELECT * FROM try_columns('{"sku": "*"}');
SELECT * FROM try_columns('{"sku": "goods.*"}');
SELECT * FROM try_columns('{"sku": "(SELECT code)"}');
SELECT * FROM try_columns('{"sku": "EXISTS (SELECT FROM goods)::text"}');
SELECT * FROM try_columns('{"sku": "max(code)"}');
SELECT * FROM try_columns('{"sku": "lag(code) OVER ()"}');
SELECT * FROM try_columns('{"sku": "unnest(tags)"}');
SELECT * FROM try_columns('{"sku": "$1"}');
SELECT * FROM try_columns('{"sku": "ctid::text"}');
SELECT * FROM try_columns('{"sku": "tableoid::text"}');
SELECT * FROM try_columns('{"sku": "random()::text"}');
SELECT * FROM try_columns('{"sku": "volatile_upper(code)"}');
SELECT * FROM try_columns('{"sku": "other.code"}');
SELECT * FROM try_columns('{"price_cents": "tags"}');
SELECT * FROM try_columns('{"price_cents": "code"}');
SELECT * FROM try_columns('{"id": "code || id", "sku": "code"}');
SELECT * FROM try_columns('{"id": null}');
SELECT * FROM try_columns(jsonb_build_object('sku', repeat('(', 100000)));
SELECT * FROM try($$SELECT cutover_add_table('goods', row_filter => 'price')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', row_filter => 'price >')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', row_filter => 'id IN (SELECT 1)')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', row_filter => 'made > clock_timestamp()')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', final_when => 'code')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', version_column => 'nowhere')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', version_column => 'code')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', version_column => 'ctid')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', reverse_columns => '{"nowhere": "sku"}')$$);
SELECT * FROM try($$SELECT cutover_add_table('goods', reverse_columns => '{"code": null}')$$);
SELECT count(*) FROM cutover._table WHERE old_table = 'goods'::regclass;
\x
-- the error points into the expression
SELECT cutover_add_table('goods', columns => '{"sku": "upper(code"}');

-- what goes in: names that are not listed go by themselves where new has them
SELECT cutover_add_table('goods', columns => '{"price_cents": "(price * 100)::bigint", "sku": "mine(code)", "made_on": "made", "note": null}',
	row_filter => '"Odd" IS NULL OR "Odd" > 0', version_column => 'made', final_when => 'price IS NOT NULL', reverse_columns => '{"price": "price_cents / 100.0"}');
SELECT new_column, attnum, expression, expr IS NOT NULL AS compiled FROM cutover._column JOIN cutover._table USING (table_id)
WHERE old_table = 'goods'::regclass ORDER BY 1;
SELECT default_columns, row_filter, row_filter_expr IS NOT NULL AS compiled, version_column, final_when, reverse_columns, key_attnums
FROM cutover._table WHERE old_table = 'goods'::regclass;
SELECT cutover_remove_table('goods');
-- with new_table not there yet: those that no expression has used up
SELECT cutover_add_table('goods', 'later', '{"cents": "(price * 100)::bigint", "code": "code"}');
SELECT new_column, attnum, expression FROM cutover._column JOIN cutover._table USING (table_id)
WHERE old_table = 'goods'::regclass ORDER BY 1;
SELECT cutover_remove_table('goods');
-- by default: all but generated columns that are generated there too
SELECT cutover_add_table('goods');
SELECT new_column, attnum, expression FROM cutover._column JOIN cutover._table USING (table_id)
WHERE old_table = 'goods'::regclass ORDER BY 2;
-- a type that only new has
SELECT cutover_add_table('typed', columns => '{"e": "lower(e)"}');

-- keys
CREATE TABLE keys_none (a int);
CREATE TABLE keys_nullable (a int UNIQUE);
CREATE TABLE keys_deferrable (a int PRIMARY KEY DEFERRABLE, b int NOT NULL);
CREATE TABLE keys_partial (a int NOT NULL);
CREATE UNIQUE INDEX ON keys_partial (a) WHERE a > 0;
CREATE TABLE keys_expression (a int NOT NULL);
CREATE UNIQUE INDEX ON keys_expression ((a + 1));
CREATE TABLE keys_best (a int NOT NULL, b int NOT NULL, c int NOT NULL, UNIQUE (b, c), UNIQUE (c) INCLUDE (a));
CREATE TABLE keys_primary (a int NOT NULL UNIQUE, b int, c int, PRIMARY KEY (c, b));
SELECT cutover_add_tables(except_tables => '{bad_root,typed,leaf}');
SELECT table_name, key_columns FROM cutover.tables ORDER BY table_name::text COLLATE "C";
SELECT cutover_add_tables(except_tables => '{bad_root}');

-- schemas
CREATE SCHEMA regress_other;
CREATE TABLE regress_other.t (id int PRIMARY KEY);
SELECT cutover_add_tables('regress_other');
SELECT table_name, new_table FROM cutover.tables WHERE new_table ~ 'other';
\x
SELECT * FROM try($$SELECT cutover_add_tables('nowhere')$$);
SELECT * FROM try($$SELECT cutover_add_tables(NULL)$$);
SELECT * FROM try($$SELECT cutover_add_tables('pg_catalog')$$);
SELECT * FROM try($$SELECT cutover_add_tables('cutover')$$);
SELECT * FROM try($$SELECT cutover_add_tables(target => 'y')$$);

-- inheritance: the parent and each child are tables of their own
CREATE TABLE parent (id int PRIMARY KEY, a text);
CREATE TABLE child (b text, PRIMARY KEY (id)) INHERITS (parent);
CREATE TABLE grandchild (c text) INHERITS (child);
SELECT * FROM try($$SELECT cutover_add_table('parent', 'elsewhere')$$);
SELECT cutover_add_table('parent', row_filter => 'id > 0');
\x
SELECT table_name, new_table, key_columns FROM cutover.tables WHERE table_name::text ~ 'parent|child' ORDER BY table_name::oid;
SELECT cutover_remove_table('parent');
SELECT count(*) FROM cutover.tables WHERE table_name::text ~ 'parent|child';

-- remove
\x
SELECT * FROM try($$SELECT cutover_remove_table('parent')$$);
SELECT * FROM try($$SELECT cutover_remove_table('goods', 'y')$$);
SELECT * FROM try($$SELECT cutover_remove_table(NULL)$$);
SELECT * FROM try($$SELECT cutover_remove_table('no_such_table')$$);
\x
BEGIN;
SELECT cutover_remove_table('goods');
SELECT count(*) FROM cutover.tables WHERE table_name = 'goods'::regclass;
ROLLBACK;
SELECT count(*) FROM cutover.tables WHERE table_name = 'goods'::regclass;
SELECT cutover_remove_table('goods');
SELECT count(*) FROM cutover._column c WHERE NOT EXISTS (SELECT FROM cutover._table t WHERE t.table_id = c.table_id);

-- a dropped table is forgotten
DROP TABLE keys_none;
SELECT count(*) FROM cutover._table t WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = t.old_table);
SELECT cutover_cancel();
SELECT count(*) FROM cutover._table;
\c :home
DROP DATABASE regress_table_old;
DROP DATABASE regress_table_new;
DROP ROLE regress_table_admin;
