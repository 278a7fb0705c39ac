-- Tables for t/030_apply.pl, made on both sides.
CREATE SCHEMA "We ird";
CREATE TYPE "We ird".mood AS ENUM ('sad', 'ok', 'it''s "ok"');
CREATE DOMAIN "We ird".short AS varchar(5) CHECK (value <> 'bad');
CREATE TYPE "We ird".comp AS (a int, b text);

-- a key of two columns, in another order than in the table; many types
CREATE TABLE t1 (k1 int, "K 2" text, a varchar(3), b char(4), c bit(3), d varbit(5), e numeric(10,3), f timestamp(3), g interval,
	h bool, i bytea, j jsonb, k json, l int[], m text[], n "We ird".mood, o "We ird".short, p "We ird".comp, q int4range, r inet,
	s float8, t xml, u "char", v name, w varchar(3)[], x money, y uuid, z timestamptz, aa date, ab time(2), ac cidr, ad point,
	ae tsvector, af "We ird".short[], ag interval(0), ah bit(3)[], ai char(2)[], PRIMARY KEY ("K 2", k1));
-- a key without an index that ON CONFLICT could use
CREATE TABLE t2 (id bigint, a text, b int);
-- no key, types whose cast to text is not their output, a type without equality
CREATE TABLE t3 (a bool, b char(5), c inet, d json, e float4, f text, g numeric);
-- GENERATED ALWAYS, as the key and beside it
CREATE TABLE t4 (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text);
CREATE TABLE t5 (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, a text, b text);
-- nothing but a key
CREATE TABLE t6 (a int, b int, PRIMARY KEY (b, a));
-- a second unique column whose values move from row to row
CREATE TABLE t7 (id numeric PRIMARY KEY, u text UNIQUE, a text);
