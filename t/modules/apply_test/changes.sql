-- Random changes of the tables of tables.sql, and the operations that a
-- replicator would make of them: table ops.  Table cols describes the tables.
CREATE TABLE ops (i bigserial, table_id int, op text, v text[], absent int[]);
CREATE TABLE cols (table_id int, schema text, name text, col text, type text, key int, identity_always bool,
	has_arbiter bool, may_conflict bool, fk_rank int, pos int, cast_type text);
INSERT INTO cols
	SELECT substr(relname, 2)::int, 'public', relname, attname, format_type(atttypid, atttypmod),
		coalesce(array_position(i.indkey::int2[], attnum) + 1, 0), attidentity = 'a',
		relname <> 't2', false, substr(relname, 2)::int % 3, attnum,
		format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, -1)
	FROM pg_class c
		JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0
		JOIN pg_type t ON t.oid = atttypid
		LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
	WHERE relname ~ '^t\d$';

-- A change as operations.  An update is sometimes an upsert of the whole row,
-- sometimes an update without some of the columns that did not change.
CREATE FUNCTION capture() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	tid int := substr(tg_table_name, 2)::int;
	row_text text;
	keys int[];
	o text[];
	n text[];
	missing int[];
BEGIN
	SELECT string_agg(format('CASE WHEN ($1).%I IS NOT DISTINCT FROM NULL THEN NULL ELSE format(''%%s'', ($1).%I) END', col, col),
			', ' ORDER BY pos), array_agg(pos) FILTER (WHERE key > 0)
		INTO row_text, keys FROM cols WHERE table_id = tid;
	IF tg_op <> 'INSERT' THEN
		EXECUTE 'SELECT ARRAY[' || row_text || ']' INTO o USING old;
	END IF;
	IF tg_op <> 'DELETE' THEN
		EXECUTE 'SELECT ARRAY[' || row_text || ']' INTO n USING new;
	END IF;
	IF tg_op = 'INSERT' THEN
		INSERT INTO ops (table_id, op, v) VALUES (tid, CASE WHEN random() < 0.1 AND keys IS NOT NULL THEN 'P' ELSE 'I' END, n);
	ELSIF tg_op = 'DELETE' THEN
		INSERT INTO ops (table_id, op, v) VALUES (tid, 'D', o);
	ELSIF keys IS NULL OR (SELECT bool_or(o[x] IS DISTINCT FROM n[x]) FROM unnest(keys) x) THEN
		INSERT INTO ops (table_id, op, v) VALUES (tid, 'D', o), (tid, CASE WHEN keys IS NULL THEN 'I' ELSE 'P' END, n);
	ELSIF random() < 0.5 OR (tid = 5 AND o[2] <> n[2]) THEN
		INSERT INTO ops (table_id, op, v) VALUES (tid, 'P', n);
	ELSE
		SELECT array_agg(x) INTO missing FROM generate_subscripts(n, 1) x
			WHERE n[x] IS NOT DISTINCT FROM o[x] AND NOT x = ANY (keys) AND random() < 0.7;
		INSERT INTO ops (table_id, op, v, absent)
			SELECT tid, 'U', ARRAY(SELECT CASE WHEN x = ANY (missing) THEN NULL ELSE n[x] END
				FROM generate_subscripts(n, 1) x ORDER BY x), missing;
	END IF;
	RETURN NULL;
END $$;
DO $$
BEGIN
	FOR i IN 1..7 LOOP
		EXECUTE format('CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON t%s FOR EACH ROW EXECUTE FUNCTION capture()', i);
	END LOOP;
END $$;

-- text with what arrays, COPY and literals treat specially
CREATE FUNCTION rnd_text(n int) RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT CASE WHEN random() < 0.15 THEN NULL WHEN random() < 0.1 THEN ''
		ELSE (ARRAY['a', 'b\c', E'x\ty', E'q\nr', '"', '''', ',', '{}', 'ü', '\N', ' ', E'\r', '\.'])[1 + (random() * 12)::int]
			|| substr(md5(random()::text), 1, (random() * n)::int) END
$$;

CREATE FUNCTION insert_t1(k int) RETURNS void LANGUAGE sql AS $$
	INSERT INTO t1 (k1, "K 2", a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z, aa, ab, ac, ad,
			ae, af, ag, ah, ai)
	VALUES (k % 5, coalesce(rnd_text(0), 'n'), substr(rnd_text(2), 1, 3), substr(rnd_text(3), 1, 4),
		(ARRAY['101', '000'])[1 + random()::int]::bit(3), '10', random() * 1000, now() + random() * interval '1 day',
		random() * interval '40 days', random() < 0.5, decode(md5(random()::text), 'hex'), to_jsonb(rnd_text(3)),
		'{"a": 1,  "a":2}', ARRAY[1, NULL, k], ARRAY[rnd_text(3), rnd_text(3)],
		(enum_range(NULL::"We ird".mood))[1 + (random() * 2)::int], substr(rnd_text(3), 1, 5), ROW (k, rnd_text(4))::"We ird".comp,
		int4range(k, k + 3), '10.0.0.1', random(), '<a>x</a>', 'x', 'nm', ARRAY['abc', 'x'], (random() * 100)::numeric::money,
		gen_random_uuid(), now(), now(), now()::time, '10.0.0.0/8', '(1,2)', to_tsvector('simple', 'a b'), ARRAY['ab', 'c'],
		interval '3 s', ARRAY['101'::bit(3)], ARRAY['a', 'b'])
	ON CONFLICT DO NOTHING
$$;

-- One random statement.
CREATE FUNCTION change() RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
	k int := (random() * 30)::int;
	dice float := random();
BEGIN
	CASE 1 + (random() * 6.99)::int
	WHEN 1 THEN
		IF dice < 0.4 THEN
			PERFORM insert_t1(k);
		ELSIF dice < 0.8 THEN
			UPDATE t1 SET a = substr(rnd_text(2), 1, 3), l = array_append(l, k), h = NOT h, o = substr(rnd_text(3), 1, 5),
				j = CASE WHEN random() < 0.5 THEN j ELSE to_jsonb(rnd_text(3)) END, p = ROW (k, rnd_text(3))
				WHERE k1 = k % 5 AND random() < 0.5;
		ELSE
			DELETE FROM t1 WHERE k1 = k % 5 AND random() < 0.4;
		END IF;
	WHEN 2 THEN
		IF dice < 0.4 THEN
			INSERT INTO t2 VALUES (k, rnd_text(20), k) ON CONFLICT DO NOTHING;
		ELSIF dice < 0.8 THEN
			UPDATE t2 SET a = rnd_text(20) WHERE id = k;
		ELSIF dice < 0.9 THEN
			UPDATE t2 SET id = k WHERE id = k + 1 AND NOT EXISTS (SELECT FROM t2 x WHERE x.id = k);
		ELSE
			DELETE FROM t2 WHERE id = k;
		END IF;
	WHEN 3 THEN
		IF dice < 0.5 THEN
			INSERT INTO t3 VALUES (random() < 0.5, substr(rnd_text(1), 1, 5), '10.0.0.1', '{"x": 1}',
				round(random()::numeric, 1), CASE WHEN random() < 0.5 THEN 'z' END, 1.50);
			INSERT INTO t3 SELECT * FROM t3 LIMIT random()::int * 2;
		ELSIF dice < 0.7 THEN
			UPDATE t3 SET e = 0.5 WHERE ctid IN (SELECT ctid FROM t3 ORDER BY random() LIMIT 2);
		ELSE
			DELETE FROM t3 WHERE ctid IN (SELECT ctid FROM t3 ORDER BY random() LIMIT 3);
		END IF;
	WHEN 4 THEN
		IF dice < 0.4 THEN
			INSERT INTO t4 (a) VALUES (rnd_text(5));
		ELSIF dice < 0.8 THEN
			UPDATE t4 SET a = rnd_text(5) WHERE id % 10 = k % 10;
		ELSE
			DELETE FROM t4 WHERE id % 10 = k % 10 AND random() < 0.5;
		END IF;
	WHEN 5 THEN
		IF dice < 0.4 THEN
			INSERT INTO t5 (id, a, b) VALUES (k, rnd_text(5), rnd_text(5)) ON CONFLICT DO NOTHING;
		ELSIF dice < 0.7 THEN
			UPDATE t5 SET a = rnd_text(5) WHERE id = k;
		ELSIF dice < 0.8 THEN
			UPDATE t5 SET n = DEFAULT WHERE id = k;
		ELSE
			DELETE FROM t5 WHERE id = k;
		END IF;
	WHEN 6 THEN
		IF dice < 0.5 THEN
			INSERT INTO t6 VALUES (k % 4, k % 7) ON CONFLICT DO NOTHING;
		ELSE
			DELETE FROM t6 WHERE a = k % 4 AND b = k % 7;
		END IF;
	ELSE
		IF dice < 0.5 THEN
			INSERT INTO t7 VALUES (CASE WHEN dice < 0.2 THEN k / 1.0 ELSE k END, 'u' || k % 20, rnd_text(3)) ON CONFLICT DO NOTHING;
		ELSIF dice < 0.7 THEN
			UPDATE t7 SET a = rnd_text(3) WHERE id = k;
		ELSIF dice < 0.8 THEN
			UPDATE t7 SET u = 'u' || k % 20 WHERE id = k AND NOT EXISTS (SELECT FROM t7 WHERE u = 'u' || k % 20);
		ELSE
			DELETE FROM t7 WHERE id = k;
		END IF;
	END CASE;
END $$;

-- Many changes.
CREATE FUNCTION changes(n int, seed float8) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	PERFORM setseed(seed);
	FOR i IN 1..n LOOP
		PERFORM change();
	END LOOP;
	RETURN (SELECT count(*) FROM ops);
END $$;

-- Sets large enough for several statements, and for COPY.
CREATE FUNCTION bulk() RETURNS bigint LANGUAGE sql AS $$
	INSERT INTO t4 (a) SELECT rnd_text(4) FROM generate_series(1, 25000);
	INSERT INTO t2 SELECT g + 100, rnd_text(10), g FROM generate_series(1, 3000) g;
	INSERT INTO t5 (id, a, b) SELECT g + 100, rnd_text(4), rnd_text(4) FROM generate_series(1, 1000) g;
	INSERT INTO t3 SELECT random() < 0.5, substr(rnd_text(1), 1, 5), NULL, '{"x":  1}', round(random()::numeric, 1), rnd_text(2)
		FROM generate_series(1, 2000);
	DELETE FROM t3 WHERE random() < 0.3;
	UPDATE t2 SET a = rnd_text(5) WHERE id % 3 = 0;
	UPDATE t5 SET n = DEFAULT WHERE id % 5 = 0;
	DELETE FROM t4 WHERE id % 40 = 0;
	UPDATE t2 SET id = id + 100000 WHERE id % 7 = 0;
	SELECT count(*) FROM ops;
$$;
