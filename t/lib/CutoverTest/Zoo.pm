# CutoverTest::Zoo - tables with every built-in type and every odd shape
#
#   zoo_create($old);                # tables and their first rows
#   zoo_change($old, $_) for 1 .. zoo_rounds();   # then every row changes
#   zoo_check($old, $new, 'when');   # one test per table
#
# For each type T with values: z_T (id, v T, a T[]), and where T can be ordered
# k_T (k T PRIMARY KEY, n).  The other tables are in %shape.
package CutoverTest::Zoo;

use strict;
use warnings;
no warnings 'qw';		# commas belong to the values

use CutoverTest;
use Exporter 'import';
use Test::More;

our @EXPORT = qw(zoo_create zoo_change zoo_rounds zoo_check zoo_tables);

# name => [type, can be a key, values as they stand in SQL]
my @types = (
	[ bool => 'bool', 1, qw('t' 'f') ],
	[ char1 => '"char"', 1, q('a'), q(''), q('\\'), q('\377') ],
	[ bytea => 'bytea', 1, q('\x'), q('\x00'), q('\x00ff5c0a'), q(decode(repeat('00ff', 3000), 'hex')) ],
	[ name => 'name', 1, q('a'), q('"quoted"'), q(repeat('x', 63)) ],
	[ int2 => 'int2', 1, qw(0 -32768 32767) ],
	[ int4 => 'int4', 1, qw(0 -2147483648 2147483647) ],
	[ int8 => 'int8', 1, qw(0 -9223372036854775808 9223372036854775807) ],
	[ float4 => 'float4', 1, map { "'$_'" } qw(0 -0 NaN Infinity -Infinity 1e-45 3.4028235e38 0.1) ],
	[ float8 => 'float8', 1, map { "'$_'" } qw(0 -0 NaN Infinity -Infinity 5e-324 1.7976931348623157e308 0.1 0.30000000000000004) ],
	[ numeric => 'numeric', 1, map { "'$_'" } qw(0 0.00 1.0 1.00 -1 NaN Infinity -Infinity 1e100 1e-100 12345678901234567890.123456789) ],
	[ numeric_scale => 'numeric(10,3)', 1, map { "'$_'" } qw(0 NaN 9999999.999 -0.001) ],
	[ numeric_neg => 'numeric(3,-2)', 1, map { "'$_'" } qw(0 99900 -100) ],
	[ money => 'money', 1, map { "'$_'" } qw(0 -92233720368547758.08 92233720368547758.07 12.34) ],
	[ text => 'text', 1, q(''), q(' '), q('null'), q('NULL'), q('\N'), q('\.'), q(E'\\\\'), q(E'tab\tnew\nline\rback\\\\slash\b\f\v\x01\x7f'),
		q('it''s "quoted" {a,b} (c,d) $1 %s :x'), q('ä ß 東京 😀 e' || chr(769)), q(repeat('long ', 3000)) ],
	[ varchar => 'varchar(4)', 1, q(''), q('a   '), q('äöü€') ],
	[ bpchar => 'char(5)', 1, q(''), q('a'), q(' b') ],
	[ date => 'date', 1, map { "'$_'" } ('infinity', '-infinity', '4713-01-01 BC', '0001-12-31 BC', '2024-02-29', '5874897-12-31') ],
	[ time => 'time', 1, map { "'$_'" } qw(00:00 24:00 23:59:59.999999) ],
	[ time3 => 'time(3)', 1, map { "'$_'" } qw(00:00 12:34:56.789) ],
	[ timetz => 'timetz', 1, map { "'$_'" } qw(00:00+00 24:00-15:59 12:34:56.789012+05:30 00:00+15:59) ],
	[ timestamp => 'timestamp', 1, map { "'$_'" } ('infinity', '-infinity', '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999', '2026-03-29 02:30') ],
	[ timestamptz => 'timestamptz', 1, map { "'$_'" } ('infinity', '-infinity', '4713-01-02 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00', '2026-10-25 02:30+02', '1890-01-01 12:00:00+00:53:28') ],
	[ interval => 'interval', 1, map { "'$_'" } ('0', '1 month', '30 days', '-1 mon +1 day -00:00:00.000001', '178000000 years', '1 year -13 months 40 days 25:00') ],
	[ interval_ds => 'interval second(2)', 1, map { "'$_'" } ('0', '1.25 s') ],
	[ uuid => 'uuid', 1, q('00000000-0000-0000-0000-000000000000'), q('ffffffff-ffff-ffff-ffff-ffffffffffff'), q('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11') ],
	[ json => 'json', 0, q('null'), q('{"a": 1,  "a":2, "b":[1.0, 1.00, "\u00e4"]}'), q('"x"'), q(' [ ] ') ],
	[ jsonb => 'jsonb', 1, q('null'), q('{"a": 1.0}'), q('{"a": 1.00}'), q('{"b": ["ä", null, true, {}], "a": ""}'), q('1e30') ],
	[ jsonpath => 'jsonpath', 0, q('$.a[*] ? (@ > 1)'), q('strict $') ],
	[ xml => 'xml', 0, q('<a b="c">d</a>'), q('text &amp; <b/>'), q('') ],
	[ inet => 'inet', 1, map { "'$_'" } qw(0.0.0.0 10.1.2.3/8 255.255.255.255 ::1 fe80::1/64) ],
	[ cidr => 'cidr', 1, map { "'$_'" } qw(10.0.0.0/8 0.0.0.0/0 ::/0) ],
	[ macaddr => 'macaddr', 1, q('00:00:00:00:00:00'), q('ff:ff:ff:ff:ff:ff') ],
	[ macaddr8 => 'macaddr8', 1, q('08:00:2b:01:02:03:04:05') ],
	[ bit => 'bit(3)', 1, q(B'000'), q(B'101') ],
	[ varbit => 'varbit', 1, q(B''), q(B'1'), q(repeat('10', 100)::varbit) ],
	[ point => 'point', 0, map { "'$_'" } qw((0,0) (-1.5,1e300) (NaN,Infinity)) ],
	[ line => 'line', 0, q('{1,-1,0}') ],
	[ lseg => 'lseg', 0, q('[(0,0),(1,1)]') ],
	[ box => 'box', 0, q('(1,1),(0,0)'), q('(2,0.5),(1,-0.5)') ],
	[ path => 'path', 0, q('[(0,0),(1,1),(2,0)]'), q('((0,0),(1,1),(2,0))') ],
	[ polygon => 'polygon', 0, q('((0,0),(1,1),(2,0))') ],
	[ circle => 'circle', 0, q('<(0,0),1>'), q('<(5,5),1>') ],
	[ tsvector => 'tsvector', 1, q(''), q($$'a':1A,2B 'it''s' 'z y':3$$) ],
	[ tsquery => 'tsquery', 1, q('a & !b | ''c d'':*A'), q('a <2> b') ],
	[ oid => 'oid', 1, qw(0 4294967295) ],
	[ regtype => 'regtype', 0, q('integer'), q('text[]') ],
	[ regclass => 'regclass', 0, q('pg_class'), q(0) ],
	[ xid => 'xid', 0, q('0'), q('4294967295') ],
	[ xid8 => 'xid8', 1, q('0'), q('18446744073709551615') ],
	[ cid => 'cid', 0, q('7') ],
	[ tid => 'tid', 1, q('(0,1)'), q('(4294967295,65535)') ],
	[ pg_lsn => 'pg_lsn', 1, q('0/0'), q('FFFFFFFF/FFFFFFFF') ],
	[ pg_snapshot => 'pg_snapshot', 0, q('10:20:10,14,15') ],
	[ int2vector => 'int2vector', 0, q(''), q('1 2 3') ],
	[ oidvector => 'oidvector', 1, q(''), q('1 4294967295') ],
	[ refcursor => 'refcursor', 0, q('<unnamed portal 1>') ],
	[ int4range => 'int4range', 1, q{'empty'}, q{'(,)'}, q{'[1,10)'}, q{'[5,]'} ],
	[ int8range => 'int8range', 1, q{'empty'}, q{'[-9223372036854775808,0)'} ],
	[ numrange => 'numrange', 1, q{'[1.0,1.00]'}, q{'(,NaN)'}, q{'(0,1.5]'} ],
	[ tsrange => 'tsrange', 1, q{'["2026-01-01 00:00",infinity)'}, q{'(,)'} ],
	[ tstzrange => 'tstzrange', 1, q{'["2026-01-01 00:00+02","2026-06-01 00:00+02"]'} ],
	[ daterange => 'daterange', 1, q{'[2026-01-01,2026-02-01]'}, q{'[2026-01-01,infinity)'} ],
	[ int4multirange => 'int4multirange', 1, q<'{}'>, q<'{[1,3),[5,9)}'>, q<'{(,)}'> ],
	[ nummultirange => 'nummultirange', 1, q<'{[1.0,2.50),(3,)}'> ],
	[ datemultirange => 'datemultirange', 1, q<'{[2026-01-01,2026-02-01),[2027-01-01,)}'> ],
	# our own
	[ mood => 'zoo_mood', 1, q('sad'), q('very "happy", indeed'), q('') ],
	[ domain => 'zoo_domain', 1, q(1), q(99) ],
	[ domain_text => 'zoo_domain_text', 1, q('a'), q('zz, "z"') ],
	[ composite => 'zoo_pair', 1, q(ROW(1, 'a', NULL)), q(ROW(NULL, NULL, NULL)), q(ROW(2, '', ARRAY['x,y', NULL, '"'])), q(ROW(3, '(a,"b")', '{}')) ],
	[ nested => 'zoo_nested', 0, q<ROW(ROW(1, 'a', '{b}'), '[1,2)', 'sad', 5)>, q{ROW(NULL, NULL, NULL, NULL)} ],
	[ text_array => 'text[]', 1, q('{}'), q('{NULL,"NULL",""}'), q('{{a,"b c"},{"d\"e","f\\\\g"}}'), q('[-1:0]={x,y}') ],
	[ myrange => 'zoo_range', 1, q{'empty'}, q{'["a b","c,d")'} ],
	[ nondeterministic => 'text COLLATE zoo_nocase', 0, q('a'), q('A'), q('b') ],
);

my $prelude = <<'SQL';
CREATE TYPE zoo_mood AS ENUM ('sad', 'very "happy", indeed', '');
CREATE DOMAIN zoo_domain AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN zoo_domain_text AS text COLLATE "C" NOT NULL DEFAULT 'x';
CREATE TYPE zoo_pair AS (a int, "B b" text, c text[]);
CREATE TYPE zoo_nested AS (p zoo_pair, r int4range, m zoo_mood, d zoo_domain);
CREATE TYPE zoo_range AS RANGE (SUBTYPE = text, COLLATION = "C");
CREATE COLLATION zoo_nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
SQL

# table => [definition, first rows, changes of round 1, 2, ...]
my %shape = (
	generated => [
		'(id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED, c text)',
		q(INSERT INTO generated (id, a, c) SELECT i, i, 'c' FROM generate_series(1, 5) i),
		'UPDATE generated SET a = a + 1; DELETE FROM generated WHERE id = 2',
		"INSERT INTO generated (id, a) VALUES (10, 10); UPDATE generated SET c = 'd' WHERE id = 1" ],
	identity_always => [
		'(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)',
		q(INSERT INTO identity_always (v) VALUES ('a'), ('b'), ('c')),
		q(UPDATE identity_always SET v = v || v; INSERT INTO identity_always (v) VALUES ('d')),
		q(DELETE FROM identity_always WHERE id = 1; INSERT INTO identity_always OVERRIDING SYSTEM VALUE VALUES (1, 'again'); UPDATE identity_always SET id = DEFAULT WHERE id = 2) ],
	identity_value => [
		'(k text PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY)',
		q(INSERT INTO identity_value VALUES ('a'), ('b'), ('c')),
		q(UPDATE identity_value SET k = 'z' WHERE k = 'a'; UPDATE identity_value SET n = DEFAULT WHERE k = 'b'),
		q(INSERT INTO identity_value OVERRIDING SYSTEM VALUE VALUES ('d', 1000); DELETE FROM identity_value WHERE k = 'c') ],
	identity_default => [
		'(id int GENERATED BY DEFAULT AS IDENTITY (START 10) PRIMARY KEY, v text)',
		q(INSERT INTO identity_default (v) VALUES ('a'), ('b')),
		q(UPDATE identity_default SET id = id + 100),
		q(INSERT INTO identity_default VALUES (1, 'given')) ],
	'"Weird ""Table"", select"' => [
		qq{("Column ,;'" int, "select" text, "a\tb" int, "%s \$1" text, "ü" int, PRIMARY KEY ("Column ,;'", "ü"))},
		q(INSERT INTO "Weird ""Table"", select" SELECT i, 's', i, '%', -i FROM generate_series(1, 4) i),
		q(UPDATE "Weird ""Table"", select" SET "select" = 'x', "ü" = "ü" - 10 WHERE "ü" > -3),
		q(DELETE FROM "Weird ""Table"", select" WHERE "ü" = -4) ],
	no_key => [
		'(a int, b text, c float8)',
		q(INSERT INTO no_key VALUES (1, 'x', 1), (1, 'x', 1), (1, 'x', 1), (2, NULL, 'NaN'), (NULL, NULL, NULL), (NULL, NULL, NULL), (3, '', 0)),
		# of three equal rows exactly one changes, one goes
		q(UPDATE no_key SET b = 'y' WHERE ctid = (SELECT min(ctid) FROM no_key WHERE a = 1); DELETE FROM no_key WHERE ctid = (SELECT max(ctid) FROM no_key WHERE a = 1)),
		q(DELETE FROM no_key WHERE ctid = (SELECT min(ctid) FROM no_key WHERE a IS NULL); UPDATE no_key SET c = '-0' WHERE a = 3; INSERT INTO no_key VALUES (1, 'x', 1)),
		q(UPDATE no_key SET a = 7; INSERT INTO no_key SELECT * FROM no_key) ],
	no_key_geometry => [
		'(p point, b box, j json)',
		q(INSERT INTO no_key_geometry VALUES ('(0,0)', '(1,1),(0,0)', '{"a":1}'), ('(0,0)', '(2,0.5),(1,-0.5)', '{"a": 1}'), (NULL, NULL, NULL)),
		# equal for the operator of boxes, which compares areas
		q(DELETE FROM no_key_geometry WHERE j::text = '{"a": 1}'; UPDATE no_key_geometry SET p = '(1,1)' WHERE b IS NULL),
		q(INSERT INTO no_key_geometry VALUES ('(9,9)', NULL, '1')) ],
	unique_key => [
		'(a int NOT NULL UNIQUE, b text)',
		q(INSERT INTO unique_key VALUES (1, 'x'), (2, 'y')),
		q(UPDATE unique_key SET a = a + 10),
		q(INSERT INTO unique_key VALUES (1, 'z'); DELETE FROM unique_key WHERE a = 11) ],
	nullable_unique => [
		'(a int UNIQUE, b text)',
		q(INSERT INTO nullable_unique VALUES (1, 'x'), (NULL, 'y'), (NULL, 'y')),
		q(UPDATE nullable_unique SET b = 'z' WHERE ctid = (SELECT min(ctid) FROM nullable_unique WHERE a IS NULL)),
		q(DELETE FROM nullable_unique WHERE b = 'y'; UPDATE nullable_unique SET a = 5 WHERE a IS NULL) ],
	two_unique => [
		'(id int PRIMARY KEY, a int UNIQUE, b int UNIQUE DEFERRABLE INITIALLY DEFERRED)',
		q(INSERT INTO two_unique SELECT i, i, i FROM generate_series(1, 6) i),
		# values that rows hand on to each other
		q(BEGIN; UPDATE two_unique SET b = 7 - b; COMMIT),
		q(BEGIN; UPDATE two_unique SET a = NULL WHERE id = 1; UPDATE two_unique SET a = 1 WHERE id = 2; UPDATE two_unique SET a = 2 WHERE id = 1; DELETE FROM two_unique WHERE id = 3; INSERT INTO two_unique VALUES (30, 3, 4) ; COMMIT) ],
	key_only => [
		'(a int, b text COLLATE "C", PRIMARY KEY (b, a))',
		q(INSERT INTO key_only SELECT i, chr(64 + i) FROM generate_series(1, 10) i),
		q(UPDATE key_only SET a = 11 - a),
		q(BEGIN; UPDATE key_only SET b = 'tmp' WHERE b = 'A'; UPDATE key_only SET b = 'A', a = 0 WHERE b = 'B'; UPDATE key_only SET b = 'B', a = 1 WHERE b = 'tmp'; COMMIT; DELETE FROM key_only WHERE b > 'F') ],
	empty => [ '(id int PRIMARY KEY, v text)', '', q(INSERT INTO empty VALUES (1, 'first')), 'DELETE FROM empty' ],
	dropped => [
		'(x int, id int PRIMARY KEY, y text, v text, z int)',
		q(ALTER TABLE dropped DROP COLUMN x, DROP COLUMN y; INSERT INTO dropped VALUES (1, 'a', 1), (2, NULL, NULL)),
		q(UPDATE dropped SET v = 'b'; INSERT INTO dropped VALUES (3, 'c', 3)),
		q(DELETE FROM dropped WHERE id = 1; UPDATE dropped SET id = 20 WHERE id = 2) ],
	added => [
		'(id int PRIMARY KEY)',
		# the values of these columns are not in the rows themselves
		q(INSERT INTO added SELECT generate_series(1, 3); ALTER TABLE added ADD v text NOT NULL DEFAULT 'missing value', ADD n int DEFAULT 42),
		q(UPDATE added SET n = 1 WHERE id = 1),
		q(UPDATE added SET id = id + 10) ],
	toast => [
		'(id int PRIMARY KEY, small text, packed text, plain text STORAGE_EXTERNAL, doc jsonb)',
		q(INSERT INTO toast SELECT i, 'a', repeat('packed ', 5000 * i), (SELECT string_agg(md5((i * 10000 + j)::text), '') FROM generate_series(1, 1000) j),
			jsonb_build_object('a', repeat('x', 10000)) FROM generate_series(1, 4) i),
		# the long values stay where they are, or move, or go
		q(UPDATE toast SET small = 'b'),
		q(UPDATE toast SET id = id + 10 WHERE id = 1; UPDATE toast SET plain = plain || 'more' WHERE id = 2; UPDATE toast SET packed = NULL WHERE id = 3; UPDATE toast SET plain = packed, packed = plain WHERE id = 4),
		q(BEGIN; UPDATE toast SET plain = repeat('new', 4000) WHERE id = 3; UPDATE toast SET small = 'c' WHERE id = 3; COMMIT; BEGIN; DELETE FROM toast WHERE id = 2; INSERT INTO toast SELECT 2, 'd', packed, plain, doc FROM toast WHERE id = 4; COMMIT) ],
	wide => [
		'(id int PRIMARY KEY, ' . join(', ', map { "c$_ int" } 1 .. 300) . ')',
		'INSERT INTO wide (id, c1, c300) VALUES (1, 1, 300), (2, NULL, NULL)',
		'UPDATE wide SET c150 = 150',
		'INSERT INTO wide (id, c9) VALUES (3, 9); DELETE FROM wide WHERE id = 2' ],
	parted => [
		'(id int, part text, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)',
		q(CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a'); CREATE TABLE parted_b (v text, junk int, part text NOT NULL, id int NOT NULL);
			ALTER TABLE parted_b DROP COLUMN junk; ALTER TABLE parted ATTACH PARTITION parted_b FOR VALUES IN ('b');
			CREATE TABLE parted_rest PARTITION OF parted DEFAULT PARTITION BY RANGE (id); CREATE TABLE parted_low PARTITION OF parted_rest FOR VALUES FROM (MINVALUE) TO (100);
			INSERT INTO parted SELECT i, chr(96 + i), 'v' FROM generate_series(1, 5) i),
		# rows that move from one partition to another
		q(UPDATE parted SET part = 'b' WHERE part = 'a'; UPDATE parted SET part = 'zz' WHERE id = 2; UPDATE parted SET v = 'w'),
		q(INSERT INTO parted_b (id, part, v) VALUES (50, 'b', 'straight'); DELETE FROM parted_low WHERE id = 3) ],
);

# whether the server was built with what a type needs
my %needs = (xml => q(SELECT '<a/>'::xml), nondeterministic => q(SELECT 1 FROM pg_collation WHERE collprovider = 'i' LIMIT 1));
my %left_out;

sub kept_types { return grep { !$left_out{ $_->[0] } } @types }
sub zoo_rounds { return 3 }

# Run much SQL; if it fails, say where instead of repeating it.
sub zoo_run
{
	my ($node, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql, on_error_stop => 1);
	die "zoo: $err" if $rc != 0;
	return;
}

# All tables of the zoo.
sub zoo_tables
{
	return ((map { ("z_$_->[0]", $_->[2] ? "k_$_->[0]" : ()) } kept_types()), sort keys %shape);
}

# Create and fill them.  Types that one of the nodes can't have are left out.
sub zoo_create
{
	my ($old, @others) = @_;
	my $sql = "SET timezone = 'UTC';\n";

	for my $type (sort keys %needs)
	{
		for my $node ($old, @others)
		{
			my ($rc, $out) = $node->psql('postgres', $needs{$type});
			$left_out{$type} = 1 if $rc != 0 || $out eq '';
		}
	}
	note('not on both servers: ', join(', ', sort keys %left_out)) if %left_out;
	$prelude =~ s/^CREATE COLLATION.*\n//m if $left_out{nondeterministic};

	$sql .= $prelude;
	for my $entry (kept_types())
	{
		my ($name, $type, $is_key, @values) = @$entry;
		my $plain = $type =~ s/ COLLATE .*//r;
		my $n = 0;
		my $array = $type =~ /\[\]|vector$/ ? 'text' : $plain;

		$sql .= "CREATE TABLE z_$name (id int PRIMARY KEY, v $type, a $array\[]);\n";
		$sql .= "INSERT INTO z_$name VALUES (" . ++$n . ", $_, NULL);\n" for @values;
		$sql .= "INSERT INTO z_$name VALUES (" . ++$n . ", NULL, '{}');\n" unless $type eq 'zoo_domain_text';
		$sql .= "UPDATE z_$name SET a = ARRAY[v]::$array\[] WHERE id = 1;\n" if $array eq $plain;
		next unless $is_key;
		$sql .= "CREATE TABLE k_$name (k $type PRIMARY KEY, n int);\n";
		# values that are equal for the type fit in only once
		$sql .= "INSERT INTO k_$name VALUES ($_, 0) ON CONFLICT DO NOTHING;\n" for @values;
	}
	for my $name (sort keys %shape)
	{
		my ($definition, $first) = @{ $shape{$name} };
		my $external = $definition =~ s/ STORAGE_EXTERNAL//;
		$sql .= "CREATE TABLE $name $definition;\n";
		$sql .= "ALTER TABLE $name ALTER plain SET STORAGE EXTERNAL;\n" if $external;
		$sql .= "$first;\n" if $first ne '';
	}
	zoo_run($old, $sql);
	return;
}

# Change everything, round by round.
sub zoo_change
{
	my ($node, $round) = @_;
	my $sql = "SET timezone = 'UTC';\n";

	for my $entry (kept_types())
	{
		my ($name, $type, $is_key, @values) = @$entry;
		my $rows = @values;
		if ($round == 1)
		{
			# every value moves to the next row
			$sql .= "UPDATE z_$name z SET v = (SELECT v FROM z_$name y WHERE y.id = z.id % $rows + 1) WHERE id <= $rows;\n";
			$sql .= "UPDATE k_$name SET n = n + 1;\n" if $is_key;
		}
		elsif ($round == 2)
		{
			$sql .= "INSERT INTO z_$name SELECT id + 100, v, a FROM z_$name;\nDELETE FROM z_$name WHERE id <= 2;\n";
			$sql .= "DELETE FROM k_$name WHERE k = CAST($values[0] AS $type);\n" if $is_key;
		}
		else
		{
			$sql .= "BEGIN;\n" . join('', map { "UPDATE z_$name SET v = $values[$_] WHERE id = 100 + $_;\n" } 0 .. $#values) . "COMMIT;\n";
			# the key gets another value; some are equal to the one there, and only look different
			$sql .= "INSERT INTO k_$name VALUES ($values[0], 5) ON CONFLICT DO NOTHING;\n" if $is_key;
			$sql .= "UPDATE k_$name SET k = $values[-1], n = 6 WHERE k = CAST($values[0] AS $type) AND NOT EXISTS (SELECT FROM k_$name WHERE k = CAST($values[-1] AS $type));\n" if $is_key;
		}
	}
	$sql .= "UPDATE k_numeric SET k = '1.000' WHERE k = 1;\nUPDATE k_float8 SET k = '0' WHERE k = 0;\nUPDATE k_jsonb SET k = '{\"a\": 1.000}' WHERE k = '{\"a\": 1}';\n"
	  if $round == 3;
	for my $name (sort keys %shape)
	{
		my $change = $shape{$name}[ 1 + $round ];
		$sql .= "$change;\n" if $change;
	}
	zoo_run($node, $sql);
	return;
}

# One test for each table, but for those left out.
sub zoo_check
{
	my ($old, $new, $when, @except) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %except = map { $_ => 1 } @except;

	return cutover_same_tables_when($old, $new, $when, grep { !$except{$_} } zoo_tables());
}

1;
