# Reads: whatever new can answer gives what old gives; the rest stays on old, and says why

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";

use CutoverTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(conf => "session_preload_libraries = 'cutover'\ncutover.max_read_lag = -1");

my $TYPES = <<'SQL';
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE >= 0);
CREATE TYPE point3 AS (x int, y text, z timestamptz);
CREATE SCHEMA "Odd Schema";
SQL
$old->safe_psql('postgres', $TYPES . <<'SQL');
CREATE TABLE item (id int PRIMARY KEY, grp int, name text, cost price, mood mood, tags text[], doc jsonb,
	at timestamptz, day date, dur interval, spot point3, data bytea, ratio float8, flag bool, code char(5), rng int4range,
	small int2, big int8, uid uuid, word varchar(20), moods mood[], tm time, note xml, net inet, real4 float4);
INSERT INTO item SELECT g, g % 7, 'name ' || g, g * 1.25, (ARRAY['sad', 'ok', 'happy'])[1 + g % 3]::mood,
	ARRAY['a' || g, NULL, 'ü "q" \'], jsonb_build_object('k', g, 'l', ARRAY[g, g + 1]),
	'2026-03-29 00:30+00'::timestamptz + g * interval '7 hours 11 minutes', '2026-01-01'::date + g, g * interval '1 day 3 seconds',
	ROW(g, 'p' || g, '2026-01-01 00:00+00'::timestamptz)::point3, decode(lpad(to_hex(g), 4, '0'), 'hex'), g / 3.0, g % 2 = 0, 'c' || g, int4range(g, g + 5),
	g, g * 10000000000, ('00000000-0000-0000-0000-' || lpad(g::text, 12, '0'))::uuid, 'w' || g, ARRAY['ok', 'sad']::mood[],
	'10:00'::time + g * interval '1 minute', xmlparse(content '<a>' || g || '</a>'), ('10.0.0.' || g % 200)::inet, g / 7.0
	FROM generate_series(1, 300) g;
INSERT INTO item (id) VALUES (1001), (1002);
CREATE TABLE grp (id int PRIMARY KEY, title text NOT NULL, parent int);
INSERT INTO grp VALUES (0, 'zero', NULL), (1, 'one', 0), (2, 'two', 1), (3, 'Three', 1), (4, 'four', 3), (5, 'five', 4), (9, 'nine', 2);
CREATE TABLE part (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (50);
CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (50) TO (1000);
INSERT INTO part SELECT g, g, 'v' || g FROM generate_series(1, 100) g;
CREATE TABLE "Odd Schema"."Odd ""Table" ("Id" int PRIMARY KEY, "select" text);
INSERT INTO "Odd Schema"."Odd ""Table" VALUES (1, 'one'), (2, 'two');
CREATE TABLE renamed (id int PRIMARY KEY, gone text, first_name text, last_name text, amount numeric);
ALTER TABLE renamed DROP COLUMN gone;
INSERT INTO renamed SELECT g, 'first' || g, 'last' || g, g FROM generate_series(1, 20) g;
CREATE TABLE filtered (id int PRIMARY KEY, v int);
INSERT INTO filtered SELECT g, g FROM generate_series(1, 20) g;
CREATE TABLE guarded (id int PRIMARY KEY, owner text);
INSERT INTO guarded VALUES (1, 'reader'), (2, 'somebody');
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON guarded USING (owner = current_user);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c');
CREATE TABLE mark (id int PRIMARY KEY, side text);
INSERT INTO mark VALUES (1, 'old'), (2, 'old'), (3, 'old');
CREATE FUNCTION mark_sql() RETURNS text LANGUAGE sql STABLE AS 'SELECT side FROM mark WHERE id = 1';
CREATE FUNCTION mark_volatile() RETURNS text LANGUAGE plpgsql AS $$BEGIN RETURN (SELECT side FROM mark WHERE id = 1); END$$;
CREATE FUNCTION mark_loop() RETURNS text LANGUAGE plpgsql AS $$
DECLARE t text := ''; a record; b record;
BEGIN
	FOR a IN SELECT id, side FROM mark ORDER BY id LOOP
		FOR b IN SELECT side FROM mark WHERE id = a.id LOOP t := t || a.side || '/' || b.side || ' '; END LOOP;
	END LOOP;
	RETURN t;
END $$;
CREATE FUNCTION mark_definer() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT side FROM mark WHERE id = 1';
CREATE FUNCTION mark_trigger() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.v := (SELECT side FROM mark WHERE id = 1); RETURN NEW; END$$;
CREATE TABLE stays (id int PRIMARY KEY, v text);
INSERT INTO stays VALUES (1, 'only here');
CREATE TRIGGER fill BEFORE INSERT ON stays FOR EACH ROW WHEN (NEW.v IS NULL) EXECUTE FUNCTION mark_trigger();
CREATE VIEW item_view AS SELECT i.id, i.name, g.title FROM item i JOIN grp g ON g.id = i.grp;
CREATE VIEW barrier WITH (security_barrier) AS SELECT id FROM item WHERE id < 4;
CREATE VIEW item_sum AS SELECT title, count(*) AS n FROM item_view GROUP BY title;
CREATE FUNCTION own(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
CREATE FUNCTION own_plpgsql(int) RETURNS text LANGUAGE plpgsql STABLE AS $$BEGIN RETURN (SELECT name FROM item WHERE id = $1); END$$;
CREATE FUNCTION walk(n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE r record; s record; c CURSOR (m int) FOR SELECT id, title FROM grp WHERE id < m ORDER BY id; t text := '';
BEGIN
	FOR r IN SELECT id, name FROM item WHERE id <= n ORDER BY id LOOP
		FOR s IN SELECT title FROM grp WHERE id = r.id % 7 LOOP
			t := t || r.name || '=' || s.title || ' ';
		END LOOP;
	END LOOP;
	FOR s IN c(n) LOOP t := t || s.title; END LOOP;
	SELECT count(*) INTO s FROM item WHERE cost > n::price;
	EXECUTE 'SELECT max(id) FROM item WHERE id < $1' INTO r USING n;
	RETURN t || s.count || ' ' || r.max;
END $$;
CREATE FUNCTION walk_sql(int) RETURNS SETOF text LANGUAGE sql STABLE AS 'SELECT name FROM item WHERE grp = $1 ORDER BY id LIMIT 3';
CREATE FUNCTION caught() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM 1 / (id - 5) FROM item WHERE id < 9;
	RETURN 'no error';
EXCEPTION WHEN division_by_zero THEN
	RETURN 'caught ' || (SELECT name FROM item WHERE id = 5);
END $$;
CREATE PROCEDURE proc(INOUT n int) LANGUAGE plpgsql AS $$BEGIN n := (SELECT max(id) FROM item WHERE id < n); COMMIT; n := n + (SELECT min(id) FROM grp); END$$;
CREATE ROLE reader; GRANT SELECT ON guarded, item, mark TO reader;
SQL
# the names differ there
$new->safe_psql('postgres', $TYPES . <<'SQL');
CREATE SCHEMA moved;
CREATE TABLE moved.people (pk int PRIMARY KEY, ln text, fn text, amount_cents bigint);
SQL
my $file = PostgreSQL::Test::Utils::tempdir() . '/new.sql';
PostgreSQL::Test::Utils::system_or_bail('pg_dump', '--schema-only', '--no-acl', '-d', $old->connstr('postgres'), '-f', $file,
	map { "--table=$_" } qw(item grp part part_a part_b filtered guarded parent child mark), '"Odd Schema".*');
$new->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $new->connstr('postgres'), '-f', $file ], 'schema on new');
cutover_add_target($old, $new);
$old->safe_psql('postgres', <<'SQL');
SELECT cutover_add_table('item'), cutover_add_table('grp'), cutover_add_table('part'), cutover_add_table('guarded'),
	cutover_add_table('"Odd Schema"."Odd ""Table"'), cutover_add_table('parent'), cutover_add_table('mark');
SELECT cutover_add_table('filtered', row_filter => 'v < 10');
SELECT cutover_add_table('renamed', 'moved.people', '{"pk":"id","ln":"last_name","fn":"first_name","amount_cents":"(amount*100)::bigint"}');
SELECT cutover_start();
SQL
cutover_wait_synced($old);

# [ side, why or undef, SQL ]; several statements: the last one's place is asked for
my @cases = (
	[ new => 'SELECT id, name FROM item WHERE id = 5' ],
	[ new => 'SELECT * FROM item ORDER BY id' ],
	[ new => 'SELECT count(*), sum(cost), avg(ratio), min(day), max(at), bool_and(flag), count(DISTINCT grp) FROM item' ],
	[ new => 'SELECT i.id, g.title FROM item i JOIN grp g ON g.id = i.grp WHERE i.id < 20 ORDER BY i.id' ],
	[ new => 'SELECT i.id, g.title FROM item i LEFT JOIN grp g USING (id) WHERE id < 12 ORDER BY 1' ],
	[ new => 'SELECT * FROM grp NATURAL FULL JOIN (SELECT id, parent FROM grp WHERE id > 2) x ORDER BY id' ],
	[ new => 'SELECT (j).* FROM (SELECT i.id, g.title FROM (item i JOIN grp g ON g.id = i.grp)) j ORDER BY 1 LIMIT 4' ],
	[ new => 'WITH a AS (SELECT grp, count(*) AS n FROM item GROUP BY grp) SELECT * FROM a ORDER BY grp NULLS FIRST' ],
	[ new => 'WITH a AS MATERIALIZED (SELECT * FROM grp), b AS NOT MATERIALIZED (SELECT * FROM a) SELECT count(*) FROM a, b' ],
	[ new => 'WITH RECURSIVE r AS (SELECT id, title, 0 AS lvl FROM grp WHERE parent IS NULL UNION ALL SELECT g.id, g.title, lvl + 1 FROM grp g JOIN r ON g.parent = r.id) SELECT * FROM r ORDER BY id' ],
	[ new => 'SELECT id FROM item WHERE grp IN (SELECT id FROM grp WHERE parent = 1) AND EXISTS (SELECT FROM grp g WHERE g.id = item.grp) ORDER BY id LIMIT 5' ],
	[ new => 'SELECT id, (SELECT title FROM grp WHERE grp.id = item.grp) FROM item ORDER BY id LIMIT 9' ],
	[ new => 'SELECT DISTINCT ON (grp) grp, id FROM item ORDER BY grp, id DESC' ],
	[ new => 'SELECT DISTINCT mood FROM item ORDER BY mood' ],
	[ new => 'SELECT id, row_number() OVER w, lag(id) OVER w, sum(cost) OVER (PARTITION BY grp ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM item WINDOW w AS (PARTITION BY grp ORDER BY id) ORDER BY id LIMIT 20' ],
	[ new => q{SELECT id, count(*) OVER (ORDER BY at RANGE BETWEEN '1 day' PRECEDING AND CURRENT ROW) FROM item WHERE id < 20 ORDER BY id} ],
	[ new => 'SELECT grp, mood, count(*), grouping(grp, mood) FROM item GROUP BY GROUPING SETS ((grp, mood), (grp), ()) ORDER BY 1, 2, 4' ],
	[ new => 'SELECT grp, mood, sum(cost) FROM item GROUP BY CUBE (grp, mood) HAVING count(*) > 10 ORDER BY 1, 2, 3' ],
	[ new => 'SELECT id FROM grp UNION SELECT id FROM item WHERE id < 5 EXCEPT SELECT 3 ORDER BY 1' ],
	[ new => '(SELECT id FROM grp ORDER BY id LIMIT 2) UNION ALL (SELECT id FROM item ORDER BY id DESC LIMIT 2) ORDER BY 1' ],
	[ new => 'SELECT g.id, x.id FROM grp g, LATERAL (SELECT i.id FROM item i WHERE i.grp = g.id ORDER BY i.id LIMIT 2) x ORDER BY 1, 2' ],
	[ new => 'SELECT * FROM item_view ORDER BY id LIMIT 7' ],
	[ new => 'SELECT v.* FROM item_sum v ORDER BY title' ],
	[ new => 'SELECT g FROM grp g ORDER BY id' ],
	[ new => 'SELECT row_to_json(g), to_jsonb(g) FROM grp g ORDER BY id' ],
	[ new => 'SELECT json_agg(x ORDER BY x.id) FROM (SELECT id, title FROM grp) x' ],
	[ new => 'SELECT count(g), count(DISTINCT g) FROM grp g WHERE g IS NOT NULL' ],
	[ new => 'SELECT count(*) FROM item TABLESAMPLE BERNOULLI (100)' ],
	[ new => 'SELECT id, spot, (spot).y, (spot).z, moods, moods[1], tags[1:2], doc -> $$l$$ ->> 0 FROM item WHERE id < 4 ORDER BY id' ],
	[ new => q{SELECT id FROM item WHERE mood = 'happy' AND mood >= 'ok'::mood AND cost > 3::price AND 'a7' <> ALL (tags) IS NOT TRUE ORDER BY id LIMIT 3} ],
	[ new => q{SELECT id FROM item WHERE spot = ROW(3, 'p3', '2026-01-01 00:00+00')::point3} ],
	[ new => q{SELECT id, CASE mood WHEN 'sad' THEN 'x' WHEN 'ok' THEN NULL ELSE mood::text END, coalesce(name, 'none'), nullif(grp, 3), greatest(small, 7), grp IS DISTINCT FROM 2 FROM item WHERE id > 295 ORDER BY id} ],
	[ new => q{SELECT id FROM item WHERE name LIKE 'name 1%' AND name ~ '1$' AND name ILIKE '%NAME%' ORDER BY name} ],
	[ new => 'SELECT lower(upper(name)), length(word), code, code || $$x$$ FROM item WHERE name > $$name 95$$ ORDER BY name DESC' ],
	[ new => 'SELECT * FROM (VALUES (1, $$a$$), (2, $$b$$)) v(n, t) JOIN grp ON n = id ORDER BY n' ],
	[ new => 'SELECT g.id, s FROM grp g, generate_series(1, g.id) s ORDER BY 1, 2' ],
	[ new => 'SELECT i.id, t, o FROM item i, unnest(tags) WITH ORDINALITY u(t, o) WHERE i.id < 3 ORDER BY 1, 3' ],
	[ new => 'SELECT * FROM item i, ROWS FROM (generate_series(1, 2), unnest(i.moods)) AS r(a, b) WHERE i.id = 4' ],
	[ new => 'SELECT id, x.* FROM item, jsonb_to_record(doc) AS x(k int, l int[]) WHERE id < 4 ORDER BY id' ],
	[ new => q{SELECT string_agg(title, ', ' ORDER BY title DESC), array_agg(id ORDER BY id) FILTER (WHERE id > 1), percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM grp} ],
	[ new => 'SELECT k, v FROM part WHERE k BETWEEN 45 AND 55 ORDER BY k' ],
	[ new => 'SELECT "select", "Id" FROM "Odd Schema"."Odd ""Table" AS "A b" ORDER BY "Id"' ],
	[ new => q{SELECT E'\\\\ \' ü', U&'\0441', B'101', 1e300::float8, 'NaN'::numeric, '-infinity'::timestamptz, id FROM grp WHERE id = 1} ],
	[ new => 'SELECT sum(id) FROM grp LIMIT (SELECT 1) OFFSET 0' ],
	[ new => 'SELECT id FROM grp ORDER BY id FETCH FIRST 2 ROWS WITH TIES' ],
	[ new => 'SELECT FROM grp WHERE id < 2' ],
	[ new => 'SELECT real4, ratio, cost, net, uid, tm, rng, dur, data, note FROM item ORDER BY id' ],
	[ new => 'SELECT 1 / (id - 5) FROM item' ],
	[ new => 'SELECT title::int FROM grp' ],

	# settings of the session
	[ new => q{SET TimeZone = 'America/New_York'; SELECT id, at, at::text, at::date, date_trunc('day', at), extract(hour FROM at), to_char(at, 'DD Mon YYYY HH24 TZ') FROM item WHERE id < 9 ORDER BY id} ],
	[ new => q{SET TimeZone = 'Europe/Berlin'; SELECT id FROM item WHERE at < '2026-03-29 03:30' ORDER BY id} ],
	[ new => q{SELECT id FROM item WHERE at + interval '1 day' > '2026-05-01'::date AND day < at ORDER BY id LIMIT 4} ],
	[ new => q{SET DateStyle = 'SQL, DMY'; SELECT day::text, at::text, 'x' || at, to_date('03/04/2026', 'DD/MM/YYYY'), '03/04/2026'::date, day = '01/02/2026' FROM item WHERE id < 40 ORDER BY id} ],
	[ new => q{SET IntervalStyle = 'iso_8601'; SELECT dur::text, concat(dur, ' ', day), format('%s|%s', at, dur) FROM item WHERE id < 4 ORDER BY id} ],
	[ new => q{SET extra_float_digits = 0; SELECT ratio::text, real4::text, json_build_object('r', ratio), ratio FROM item WHERE id < 9 ORDER BY id} ],
	[ new => q{SET bytea_output = 'escape'; SELECT data::text, data FROM item WHERE id < 4 ORDER BY id} ],
	[ new => q{SET client_encoding = latin1; SELECT tags, moods, doc, note, name, 'é', ARRAY['é'], 'ü' = ANY (ARRAY['ü', name]), jsonb_build_object('ß', 'é') FROM item WHERE id = 3} ],
	[ new => 'PREPARE enc(text[], jsonb) AS SELECT $1, $2, tags FROM item WHERE id = 4; EXECUTE enc(ARRAY[$$é$$], $${"ä": "ö"}$$); SET client_encoding = utf8; EXECUTE enc(ARRAY[$$é$$], $${"ä": "ö"}$$); SET client_encoding = latin1; EXECUTE enc(ARRAY[$$x$$], $${}$$); RESET client_encoding' ],
	[ new => 'RESET ALL; SET cutover.read_from = :side; SELECT at::text, dur::text FROM item WHERE id = 3' ],

	# folded on old
	[ new => q{SELECT count(*) FROM item WHERE at < now() + interval '100 years' AND at > now() - '100 years'::interval} ],
	[ new => q{SELECT id, current_user, session_user, current_schema(), current_database(), current_setting('search_path'), current_date > day FROM item WHERE id = 1} ],
	[ new => q{SELECT CASE WHEN id > 0 THEN current_user ELSE 'x' END, now() = statement_timestamp(), localtimestamp IS NULL FROM item WHERE id = 1} ],
	[ new => q{SELECT date_trunc('year', now()) = date_trunc('year', now()) AS x, count(*) FROM grp GROUP BY date_trunc('year', now())} ],
	[ new => q{SELECT name FROM item WHERE id = 5 AND name <> current_setting('cutover.route_key', true) ORDER BY current_user LIMIT length(current_user)} ],
	[ new => q{SELECT (SELECT now() IS NOT NULL FROM grp LIMIT 1), version() = version() FROM item WHERE id = 2} ],

	# parameters
	[ new => q{PREPARE p1(int, text[], mood, price, point3, timestamptz, bytea, int[]) AS SELECT id, $1, $2, $3, $4, $5, $6, $7, $8 FROM item WHERE id = $1 OR mood = $3 AND id = ANY ($8) ORDER BY id;
		EXECUTE p1(3, '{a,NULL,"b c"}', 'ok', 2.50, '(1,"x,y",2026-01-01 00:00+00)', '2026-01-01 12:00+02', '\xdead', '{4,5,7}');
		EXECUTE p1(4, NULL, NULL, NULL, NULL, NULL, NULL, NULL)} ],
	[ new => q{PREPARE p2(int) AS SELECT name FROM item WHERE id = $1; EXECUTE p2(1); EXECUTE p2(2); EXECUTE p2(3); EXECUTE p2(4); EXECUTE p2(5); EXECUTE p2(6); EXECUTE p2(7); EXECUTE p2(NULL)} ],
	[ new => q{SET plan_cache_mode = force_generic_plan; PREPARE p3(text) AS SELECT count(*) FROM item WHERE name = $1 AND at < now() + interval '1 y'; EXECUTE p3('name 8'); EXECUTE p3('x'); RESET plan_cache_mode; EXECUTE p3('name 9')} ],
	[ new => 'SELECT id, name FROM item WHERE id = $1 AND mood = $2 \bind 6 sad \g', 'bind' ],

	# inside functions, cursors and commands
	[ any => 'SELECT walk(12)' ],
	[ any => 'SELECT * FROM walk_sql(3)' ],
	[ any => 'SELECT caught()' ],
	[ any => 'SELECT own_plpgsql(8)' ],
	[ any => 'CALL proc(20)' ],
	[ any => 'DO $$ DECLARE n int; BEGIN SELECT count(*) INTO n FROM item; RAISE NOTICE $x$%$x$, n; END $$' ],
	[ any => 'COPY (SELECT * FROM item ORDER BY id) TO STDOUT' ],
	[ any => 'CREATE TEMP TABLE made AS SELECT id, name FROM item ORDER BY id; SELECT count(*) FROM made; DROP TABLE made' ],
	[ any => 'CREATE MATERIALIZED VIEW mv AS SELECT grp, count(*) FROM item GROUP BY grp; SELECT * FROM mv ORDER BY 1; REFRESH MATERIALIZED VIEW mv; DROP MATERIALIZED VIEW mv' ],
	[ any => 'BEGIN; DECLARE c CURSOR FOR SELECT id, title FROM grp ORDER BY id; DECLARE d SCROLL CURSOR FOR SELECT name FROM item ORDER BY id; FETCH 2 FROM c; FETCH 3 FROM d; FETCH BACKWARD 2 FROM d; FETCH 1 FROM c; SELECT count(*) FROM item; FETCH LAST FROM d; FETCH ABSOLUTE 5 FROM d; FETCH PRIOR FROM d; FETCH ALL FROM c; FETCH BACKWARD ALL FROM c; MOVE FIRST IN d; FETCH RELATIVE 3 FROM d; CLOSE c; FETCH FORWARD 2 FROM d; COMMIT' ],
	[ any => 'BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT id FROM item ORDER BY id LIMIT 10; FETCH 3 FROM h; COMMIT; FETCH 3 FROM h; FETCH ALL FROM h; CLOSE h' ],
	[ any => 'BEGIN; DECLARE h SCROLL CURSOR WITH HOLD FOR SELECT id FROM item ORDER BY id LIMIT 6; FETCH 3 FROM h; COMMIT; FETCH PRIOR FROM h; FETCH ALL FROM h; CLOSE h' ],
	[ any => 'BEGIN; DECLARE n NO SCROLL CURSOR FOR SELECT id FROM item ORDER BY id; FETCH 1 FROM n; FETCH PRIOR FROM n; ROLLBACK' ],
	[ any => 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item; SAVEPOINT s; SELECT 1 / (id - 5) FROM item WHERE id = 6; ROLLBACK TO s; SELECT name FROM item WHERE id = 6; COMMIT' ],
	[ any => 'BEGIN; SELECT count(*) FROM grp; SAVEPOINT s; SELECT 1 / id FROM grp WHERE id = 0; ROLLBACK TO s; SELECT title FROM grp WHERE id = 1; ROLLBACK' ],
	[ any => 'BEGIN; UPDATE item SET name = $$changed$$ WHERE id = 5; SELECT name FROM item WHERE id = 5; ROLLBACK' ],
	[ any => 'BEGIN; DECLARE u CURSOR FOR SELECT id FROM grp WHERE id = 9 FOR UPDATE; FETCH 1 FROM u; UPDATE grp SET title = title WHERE CURRENT OF u; ROLLBACK' ],
	[ any => 'INSERT INTO stays SELECT id + 100, name FROM item WHERE id < 3 RETURNING *; DELETE FROM stays WHERE id > 100' ],
	[ any => 'WITH d AS (UPDATE stays SET v = v RETURNING *) SELECT d.id, i.name FROM d JOIN item i ON i.id = d.id' ],

	# renamed there
	[ new => 'SELECT * FROM (SELECT id, first_name, last_name FROM renamed) r ORDER BY id LIMIT 3' ],
	[ new => q{SELECT r.last_name, count(*) FROM renamed r JOIN renamed s ON s.id = r.id + 1 WHERE r.first_name > 'first2' GROUP BY r.last_name ORDER BY 1} ],
	[ new => 'WITH RECURSIVE x AS (SELECT id FROM renamed WHERE id = 1 UNION ALL SELECT x.id + 1 FROM x WHERE x.id < 4) SELECT x.id, renamed.last_name FROM x JOIN renamed USING (id) ORDER BY 1' ],
	[ new => 'SELECT id, (SELECT first_name FROM renamed WHERE renamed.id = grp.id) FROM grp ORDER BY id' ],
	[ old => 'mapping', 'SELECT amount FROM renamed WHERE id = 1' ],
	[ old => 'mapping', 'SELECT renamed FROM renamed WHERE id = 1' ],
	[ old => 'mapping', 'SELECT * FROM filtered ORDER BY id' ],

	# stays on old
	[ old => 'row_security', 'SELECT id FROM barrier WHERE 1 / (id - 4) < 5 ORDER BY id' ],
	[ old => 'row_lock', 'SELECT id FROM item WHERE id = 1 FOR UPDATE' ],
	[ old => 'row_lock', 'SELECT id FROM (SELECT id FROM item WHERE id = 1 FOR SHARE) x' ],
	[ old => 'function', 'SELECT id, random() < 2 FROM item WHERE id = 1' ],
	[ old => 'function', 'SELECT own(id) FROM item WHERE id = 1' ],
	[ old => 'function', 'SELECT id, own_plpgsql(id) FROM item WHERE id < 3 ORDER BY id' ],
	[ old => 'function', 'SELECT age(at) IS NULL FROM item WHERE id = 1' ],
	[ old => 'function', 'SELECT has_table_privilege(name, $$select$$) FROM item WHERE false' ],
	[ old => 'function', 'SELECT count(*) FROM item, pg_show_all_settings() WHERE false' ],
	[ old => 'system_column', 'SELECT ctid FROM item WHERE id = 1' ],
	[ old => 'system_column', 'SELECT tableoid::regclass, k FROM part WHERE k IN (49, 50) ORDER BY k' ],
	[ old => 'other_table', 'SELECT s.v, i.name FROM stays s JOIN item i USING (id)' ],
	[ old => 'other_table', 'SELECT count(*) FROM item, pg_class WHERE false' ],
	[ old => 'other_table', 'SELECT * FROM parent ORDER BY id' ],
	[ old => 'other_table', 'SELECT count(*) FROM ONLY part' ],
	[ old => 'type', 'SELECT $$item$$::regclass, id FROM item WHERE id = 1' ],
	[ old => 'type', 'SELECT ROW(id, name) FROM item WHERE id = 1' ],
	[ old => 'type', 'SELECT name FROM item WHERE id < 20 ORDER BY name COLLATE "en-x-icu"' ],
	[ old => 'modifying_cte', 'WITH d AS (DELETE FROM stays WHERE false RETURNING id) SELECT count(*) FROM item, d' ],
	[ old => 'temp_table', 'CREATE TEMP TABLE tmp (id int); SELECT count(*) FROM tmp JOIN item USING (id)' ]);

# Run all cases in one session that reads from one side; a list of outputs.
sub run_cases
{
	my ($side) = @_;
	my $script = "\\set VERBOSITY sqlstate\n\\set side $side\n\\pset null NULL\nSET cutover.read_from = $side;\nSET statement_timeout = '60 s';\n";

	foreach my $i (0 .. $#cases)
	{
		my $sql = $cases[$i][-1] eq 'bind' ? $cases[$i][-2] : $cases[$i][-1];

		$script .= "\\echo case $i\n$sql" . ($sql =~ /\\g$/ ? "\n" : ";\n");
	}
	my $path = PostgreSQL::Test::Utils::tempdir() . "/$side.sql";
	open my $fh, '>', $path or die $!;
	print $fh $script;
	close $fh;
	my $out = `psql -XqAt -d '${\ $old->connstr("postgres")}' -f $path 2>&1`;
	$out =~ s/^psql:\S+?:\d+: //mg;
	my @parts = split /^case \d+\n/m, $out;
	shift @parts;
	return @parts;
}

my @local = run_cases('old');
my $before = $old->safe_psql('postgres', 'SELECT routed FROM cutover.read_stats');
my @routed = run_cases('new');
is(scalar @local, scalar @cases, 'all cases ran on old');
foreach my $i (0 .. $#cases)
{
	my $sql = $cases[$i][-1] eq 'bind' ? $cases[$i][-2] : $cases[$i][-1];

	next if $sql =~ /\\bind/ && $local[$i] =~ /invalid command/;
	is($routed[$i], $local[$i], "same result: " . substr($sql =~ s/\s+/ /gr, 0, 150));
}

# where they ran
my $script = "SET cutover.read_from = new;\n";
my @asked;
foreach my $i (0 .. $#cases)
{
	my @c = @{ $cases[$i] };
	next if $c[0] eq 'any' || $c[-1] =~ /PREPARE|\bbind\b/;
	my $sql = $c[-1];
	my $prefix = '';
	$sql =~ s/:side/new/g;
	$prefix = $1 if $sql =~ s/^(.*;\s*)//s;
	push @asked, $i;
	$script .= "\\echo case $i\n" . $prefix . "\nEXPLAIN $sql;\n";
}
my $path = PostgreSQL::Test::Utils::tempdir() . '/explain.sql';
open my $fh, '>', $path or die $!;
print $fh $script;
close $fh;
my $out = `psql -XqAt -d '${\ $old->connstr("postgres")}' -f $path 2>&1`;
my %where = $out =~ /^case (\d+)\n(.*?)(?=^case |\z)/msg;
foreach my $i (@asked)
{
	my @c = @{ $cases[$i] };
	my $sql = substr($c[-1] =~ s/\s+/ /gr, 0, 150);

	if ($c[0] eq 'new')
	{
		like($where{$i}, qr/Runs on: new.*Remote SQL: /s, "runs on new: $sql");
	}
	else
	{
		unlike($where{$i}, qr/Runs on: new|ERROR/, "stays on old: $sql");
	}
}

# ---- which side answered: a row that is not the same there

$new->safe_psql('postgres', q{ALTER TABLE mark DISABLE TRIGGER ALL; UPDATE mark SET side = 'new'; UPDATE item SET name = 'new' WHERE false; ALTER TABLE mark ENABLE TRIGGER ALL});
my $READ = 'SELECT side FROM mark WHERE id = 1';
my @sides = (
	[ 'a statement', $READ, 'new' ],
	[ 'a session that reads from old', "SET cutover.read_from = old; $READ", 'old' ],
	[ 'a setting that ends with the transaction', "BEGIN; SET LOCAL cutover.read_from = old; $READ; COMMIT; $READ", "old\nnew" ],
	[ 'a prepared statement changes sides', "PREPARE p AS $READ; " . join('; ', map { "SET cutover.read_from = $_; EXECUTE p" } (qw(new old) x 5)), join("\n", (qw(new old) x 5)) ],
	[ 'with a generic plan, too', "SET plan_cache_mode = force_generic_plan; PREPARE p(int) AS SELECT side FROM mark WHERE id = \$1; " . join('; ', map { "SET cutover.read_from = $_; EXECUTE p(1)" } (qw(old new) x 3)), join("\n", (qw(old new) x 3)) ],
	[ 'a function in SQL', 'SELECT mark_sql()', 'new' ],
	[ 'a function in PL/pgSQL', 'SELECT mark_volatile()', 'new' ],
	[ 'loops in loops', 'SELECT mark_loop()', 'new/new new/new new/new ' ],
	[ 'a function with its owner\'s rights', 'SELECT mark_definer()', 'new' ],
	[ 'a function in a query that stays on old', 'SELECT side, mark_volatile() FROM mark WHERE id = 1', 'old|old' ],
	[ 'the same with a query of other tables', 'SELECT v, mark_volatile() FROM stays', 'only here|new' ],
	[ 'COPY of a query', "COPY ($READ) TO STDOUT", 'new' ],
	[ 'a cursor', "BEGIN; DECLARE c CURSOR FOR $READ; FETCH c; COMMIT", 'new' ],
	[ 'a transaction with one snapshot', "BEGIN ISOLATION LEVEL REPEATABLE READ; $READ; SELECT side FROM mark WHERE id = 2; COMMIT", "new\nnew" ],
	[ 'a transaction that wrote', "BEGIN; UPDATE stays SET v = v; $READ; ROLLBACK", 'old' ],
	[ 'a trigger', "BEGIN; INSERT INTO stays VALUES (7) RETURNING v; ROLLBACK", 'old' ],
	[ 'INSERT ... SELECT', "BEGIN; INSERT INTO stays SELECT 8, side FROM mark WHERE id = 1 RETURNING v; ROLLBACK", 'old' ],
	[ 'CREATE TABLE AS', "CREATE TEMP TABLE x AS $READ; SELECT * FROM x", 'old' ],
	[ 'CREATE TABLE AS EXECUTE', "PREPARE q AS $READ; CREATE TEMP TABLE x AS EXECUTE q; SELECT * FROM x", 'old' ],
	[ 'EXPLAIN ANALYZE of it', "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) CREATE TABLE explained AS $READ", qr/Runs on: old/ ],
	[ 'a materialized view', "CREATE MATERIALIZED VIEW x AS $READ; SELECT * FROM x; DROP MATERIALIZED VIEW x", 'old' ],
	[ 'a procedure', 'CALL proc(4)', 3 ],
	[ 'text in another client encoding', "SET client_encoding = latin1; SELECT array_agg(side), min(side) FROM mark", '{new,new,new}|new' ],
	[ 'a role that may read', "SET ROLE reader; $READ", 'new' ],
	[ 'a role with no rights of its own there', 'SET ROLE reader; SELECT title FROM grp', qr/permission denied for table grp/ ],
	[ 'row security', 'SET ROLE reader; SELECT id FROM guarded', 1 ],
	[ 'an analyzed one', "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) $READ", qr/actual rows=1.*Runs on: new.*Remote SQL: SELECT side/s ]);
foreach my $case (@sides)
{
	my ($what, $sql, $expected) = @$case;
	my (undef, $stdout, $stderr) = $old->psql('postgres', "SET cutover.read_from = new; $sql");
	my $got = $stdout . $stderr;
	ref $expected ? like($got, $expected, "side: $what") : is($got, $expected, "side: $what");
}

# foreign keys look at old: a row that is there only, and one that is on new only
$old->safe_psql('postgres', 'CREATE TABLE refers (id int PRIMARY KEY, mark int); INSERT INTO refers VALUES (1, 3)');
$new->safe_psql('postgres', q{ALTER TABLE mark DISABLE TRIGGER ALL; DELETE FROM mark WHERE id = 3; INSERT INTO mark VALUES (4, 'new'); ALTER TABLE mark ENABLE TRIGGER ALL});
$old->safe_psql('postgres', 'SET cutover.read_from = new; ALTER TABLE refers ADD FOREIGN KEY (mark) REFERENCES mark');
pass('a foreign key is checked on old');
is(cutover_error($old, 'SET cutover.read_from = new; INSERT INTO refers VALUES (2, 4)')->{sqlstate}, '23503', 'the check of a row, too');
$old->safe_psql('postgres', 'SET cutover.read_from = new; ALTER TABLE refers DROP CONSTRAINT refers_mark_fkey, ADD FOREIGN KEY (mark) REFERENCES mark NOT VALID; ALTER TABLE refers VALIDATE CONSTRAINT refers_mark_fkey');
pass('and VALIDATE CONSTRAINT');

# what was counted
my $stats = $old->safe_psql('postgres', q{SELECT routed > 100, kept > 20, fallbacks < 5, timeouts, reasons ?& ARRAY['row_lock', 'function', 'mapping', 'row_security'] FROM cutover.read_stats});
is($stats, 't|t|t|0|t', 'reads and reasons are counted')
  or diag($old->safe_psql('postgres', 'SELECT * FROM cutover.read_stats'));

done_testing();
