# Drivers as applications use them: JDBC and DBD::Pg with statements prepared on
# the server, binary values, rows fetched in parts, batches, several results at
# a time.  What new answers is what old answers.
use strict;
use warnings;

use CutoverTest;
use DBI;
use DBD::Pg qw(:pg_types :async);
use PostgreSQL::Test::Utils;
use Test::More;

# JDBC knows no sockets
my ($old, $new) = cutover_pair(
	old => { conf => "session_preload_libraries = 'cutover'\nlisten_addresses = '127.0.0.1'\ncutover.max_read_lag = -1\ncutover.read_timeout = 0\n" });
$_->safe_psql('postgres', 'CREATE ROLE app LOGIN') for $old, $new;
$old->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE item (id int PRIMARY KEY, grp int, name text, cost numeric(10, 2), mood mood, tags text[], doc jsonb, at timestamptz, local timestamp,
	day date, tm time, dur interval, data bytea, ratio float8, real4 float4, flag bool, code char(5), small int2, big int8, uid uuid, net inet, rng int4range);
INSERT INTO item SELECT g, g % 7, 'name ' || g, g * 1.25, (ARRAY['sad', 'ok', 'happy'])[1 + g % 3]::mood, ARRAY['a' || g, NULL, 'ü "q" \'],
	jsonb_build_object('k', g), '2026-03-29 00:30+00'::timestamptz + g * interval '7 hours 11 minutes', '2026-01-01'::timestamp + g * interval '1.5 hours',
	'2026-01-01'::date + g, '10:00'::time + g * interval '1 minute', g * interval '1 day 3 seconds', decode(lpad(to_hex(g), 4, '0'), 'hex'),
	g / 3.0, g / 7.0, g % 2 = 0, 'c' || g, g, g * 10000000000, ('00000000-0000-0000-0000-' || lpad(g::text, 12, '0'))::uuid,
	('10.0.0.' || g % 200)::inet, int4range(g, g + 5) FROM generate_series(1, 300) g;
INSERT INTO item (id) VALUES (1001), (1002);
CREATE TABLE note (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL);
CREATE TABLE mark (id int PRIMARY KEY, side text);
INSERT INTO mark VALUES (1, 'old');
GRANT ALL ON item, note, mark TO app;
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);
# tells who has answered
$new->safe_psql('postgres', q{UPDATE mark SET side = 'new'});

my $routed = sub { $old->safe_psql('postgres', 'SELECT routed FROM cutover.read_stats') };

# what a client printed, as (lines of results, place of each step)
my $parse = sub {
	my (@lines) = @_;
	return ([ grep { !/^side / } @lines ], { map { /^side (\S+) (\S*)$/ ? ($1 => $2) : () } @lines });
};
# results are the same, and all steps but those like $except were answered by the side asked for
my $compare = sub {
	my ($who, $from_old, $from_new) = @_;
	my ($old_rows, $old_sides) = $parse->(@$from_old);
	my ($new_rows, $new_sides) = $parse->(@$from_new);
	cmp_ok(scalar @$old_rows, '>', 100, "$who has read");
	is_deeply($new_rows, $old_rows, "$who: same results from new as from old");
	is_deeply([ grep { $old_sides->{$_} ne 'old' } sort keys %$old_sides ], [], "$who: old has answered each query that was kept there");
	my @kept = grep { $new_sides->{$_} ne 'new' } sort keys %$new_sides;
	is_deeply(\@kept, [], "$who: new has answered each query that was sent there")
	  or diag($old->safe_psql('postgres', 'SELECT * FROM cutover.read_stats'));
};

# ---- JDBC

my %out;
for my $side ('old', 'new')
{
	my $before = $routed->();
	my ($out, $err) = run_command([ 'java', '-XX:TieredStopAtLevel=1', '-cp', '/usr/share/java/postgresql.jar', 't/clients/Drivers.java',
		'jdbc:postgresql://127.0.0.1:' . $old->port . '/postgres', 'app', $side ]);
	is($err, '', "JDBC has no error, read_from = $side");
	like($out, qr/^end\z/m, 'and comes to its end');
	my $n = $routed->() - $before;
	ok($side eq 'old' ? $n == 0 : $n > 100, "new has answered $n statements");
	$out{$side} = [ split /\n/, $out ];
}
$compare->('JDBC', $out{old}, $out{new});

# ---- DBD::Pg

my $WHO = '(SELECT side FROM mark WHERE id = 1)';

# all that this client does, as lines
sub read_by_dbd
{
	my ($side) = @_;
	my @lines;
	my $db = DBI->connect('dbi:Pg:' . join(';', split / /, $old->connstr('postgres') =~ s/'//gr), 'app', '',
		{ RaiseError => 1, PrintError => 0, AutoCommit => 1, pg_enable_utf8 => 0 });
	my $show = sub {
		my ($step, $rows) = @_;
		my %sides = map { $_->[0] => 1 } @$rows;
		push @lines, map { my (undef, @v) = @$_; join ' | ', $step, map { !defined $_ ? 'null' : ref $_ ? "[@{[map { $_ // 'null' } @$_]}]" : $_ } @v } @$rows;
		push @lines, "side $step " . join '+', sort keys %sides;
	};
	$db->do("SET cutover.read_from = '$side'");

	# prepared on the server at once, and from the second execution on
	for my $switch (1, 2)
	{
		$db->{pg_switch_prepared} = $switch;
		my $s = $db->prepare("SELECT $WHO, * FROM item WHERE id = ? OR grp = ? AND cost > ? ORDER BY id LIMIT 4");
		for my $i (1 .. 10)
		{
			$s->execute($i, $i % 7, '300.25');
			$show->("prepared$switch.$i", $s->fetchall_arrayref);
		}
	}
	# types of placeholders; numbered ones; binary values
	my $s = $db->prepare("SELECT $WHO, id, \$3::text FROM item WHERE id = ANY (\$1) AND data <> \$2 AND uid <> \$4 AND (\$5 OR at < \$6) ORDER BY id");
	$s->bind_param(2, undef, { pg_type => PG_BYTEA });
	$s->bind_param(4, undef, { pg_type => PG_UUID });
	$s->bind_param(5, undef, { pg_type => PG_BOOL });
	$s->bind_param(6, undef, { pg_type => PG_TIMESTAMPTZ });
	for my $i (1 .. 7)
	{
		$s->execute([ 1, 2, 3, $i ], "\x00\x05", $i % 2 ? undef : "ü'\\$i", '00000000-0000-0000-0000-000000000001', $i % 2, '2026-04-01 02:00:00+02');
		$show->("types$i", $s->fetchall_arrayref);
	}
	# one after the other with no plan of its own, and the same text in simple protocol
	for my $prepare (0, 1)
	{
		local $db->{pg_server_prepare} = $prepare;
		$show->("all$prepare", $db->selectall_arrayref("SELECT $WHO, * FROM item WHERE grp = ? ORDER BY id", undef, 3));
	}
	# asynchronous, and cancelled
	$s = $db->prepare("SELECT $WHO, count(*), sum(cost) FROM item WHERE id > ?", { pg_async => PG_ASYNC });
	for my $i (1 .. 7)
	{
		$s->execute($i * 10);
		select undef, undef, undef, 0.005 until $db->pg_ready;
		$db->pg_result;
		$show->("async$i", $s->fetchall_arrayref);
	}
	$db->do("SELECT $WHO, count(*) FROM item a, item b, item c, item d, item e", { pg_async => PG_ASYNC });
	select undef, undef, undef, 0.3;
	push @lines, 'cancelled ' . ($db->pg_cancel ? 1 : 0);
	# errors, and savepoints around them
	$db->begin_work;
	for my $i (1 .. 5)
	{
		$db->pg_savepoint('s');
		eval { $db->selectall_arrayref("SELECT $WHO, 10 / (id - ?::int) FROM item WHERE id < 9", undef, $i) };
		push @lines, 'error ' . $db->state;
		$db->pg_rollback_to('s');
		$show->("after_error$i", $db->selectall_arrayref("SELECT $WHO, 10 / (id - ?::int) FROM item WHERE id < 9", undef, $i + 50));
	}
	$db->commit;
	# a cursor of SQL
	$db->begin_work;
	$db->do("DECLARE c CURSOR FOR SELECT id, name, tags, doc, at FROM item ORDER BY id");
	while (my @rows = @{ $db->selectall_arrayref('FETCH 40 FROM c') })
	{
		push @lines, map { join ' | ', 'cursor', map { ref $_ ? "[@{[map { $_ // 'null' } @$_]}]" : $_ // 'null' } @$_ } @rows;
	}
	$db->commit;
	# what it writes it sees
	$s = $db->prepare('INSERT INTO note (body) VALUES (?)');
	push @lines, 'tuples ' . $s->execute_array({}, [ map { "note $_" } 1 .. 20 ]);
	push @lines, 'own ' . $db->selectrow_array('SELECT count(*) FROM note');
	push @lines, 'returning ' . scalar @{ $db->selectall_arrayref('DELETE FROM note RETURNING body') };
	$db->disconnect;
	return \@lines;
}

my %dbd;
for my $side ('old', 'new')
{
	my $before = $routed->();
	$dbd{$side} = read_by_dbd($side);
	my $n = $routed->() - $before;
	ok($side eq 'old' ? $n == 0 : $n > 40, "new has answered $n statements");
}
$compare->('DBD::Pg', $dbd{old}, $dbd{new});
# a division by zero in the first row is asked of old again
is($old->safe_psql('postgres', q{SELECT timeouts, reasons ?| '{connection,timeout,breaker}' FROM cutover.read_stats}), '0|f', 'new has never failed');

done_testing();
