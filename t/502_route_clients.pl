# Reads by what applications are made with: JDBC, DBD::Pg, the pipelines of libpq

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/lib";

use CutoverTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old, $new) = cutover_pair(old => { conf => "session_preload_libraries = 'cutover'\ncutover.max_read_lag = -1\nlisten_addresses = '127.0.0.1'" });
$old->safe_psql('postgres', <<'SQL');
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN price AS numeric(10,2);
CREATE TABLE item (id int PRIMARY KEY, name text, cost price, mood mood, tags text[], doc jsonb, at timestamptz, data bytea, flag bool, ratio float8);
INSERT INTO item SELECT g, 'näme ' || g, g * 1.25, (ARRAY['sad', 'ok', 'happy'])[1 + g % 3]::mood, ARRAY['a' || g, 'b'],
	jsonb_build_object('k', g), '2026-03-29 00:30+00'::timestamptz + g * interval '7 hours', decode(lpad(to_hex(g), 4, '0'), 'hex'), g % 2 = 0, g / 3.0
	FROM generate_series(1, 300) g;
INSERT INTO item (id) VALUES (1001);
CREATE TABLE mark (id int PRIMARY KEY, side text);
INSERT INTO mark VALUES (1, 'x'), (2, 'x'), (3, 'x');
CREATE ROLE app_old LOGIN; CREATE ROLE app_new LOGIN;
ALTER ROLE app_old SET cutover.read_from = old;
ALTER ROLE app_new SET cutover.read_from = new;
GRANT SELECT ON item, mark TO app_old, app_new;
SQL
$new->safe_psql('postgres', 'CREATE ROLE app_old LOGIN; CREATE ROLE app_new LOGIN');
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

sub routed { return $old->safe_psql('postgres', 'SELECT routed FROM cutover.read_stats') }
sub same
{
	my ($what, $at_least, $run) = @_;
	my $before = routed();
	my $on_old = $run->('app_old');
	is(routed(), $before, "$what: old answers");
	my $on_new = $run->('app_new');
	cmp_ok(routed() - $before, '>=', $at_least, "$what: new answers");
	is($on_new, $on_old, "$what: the same");
	cmp_ok(length($on_old // ''), '>', 10, "$what: something");
	return;
}

# ---- JDBC

SKIP:
{
	my $jar = '/usr/share/java/postgresql.jar';
	skip 'no JDBC driver', 4 unless -e $jar && system('command -v java > /dev/null') == 0;
	same('JDBC', 30, sub {
		my ($user) = @_;
		my ($out, $err) = run_command([ 'java', '-cp', $jar, 't/clients/Reader.java',
				'jdbc:postgresql://127.0.0.1:' . $old->port . '/postgres', $user ]);
		diag($err) if $err;
		return $out;
	});
}

# ---- DBD::Pg

SKIP:
{
	skip 'no DBD::Pg', 4 unless eval { require DBD::Pg; 1 };
	same('DBD::Pg', 20, sub {
		my ($user) = @_;
		my $dbh = DBI->connect('dbi:Pg:' . join(';', split ' ', $old->connstr('postgres') =~ s/'//gr), $user, '',
			{ RaiseError => 0, PrintError => 0, AutoCommit => 1, pg_server_prepare => 1, pg_enable_utf8 => 0 });
		my $out = '';
		my $take = sub { my ($sth) = @_; $out .= join('|', map { ref $_ ? "[@$_]" : $_ // 'NULL' } @$_) . "\n" for @{ $sth->fetchall_arrayref }; };

		$dbh->{pg_switch_prepared} = 2;
		my $sth = $dbh->prepare('SELECT * FROM item WHERE id = ?');
		for my $id (1 .. 10, undef)
		{
			$sth->execute($id);
			$take->($sth);
		}
		my $other = $dbh->prepare('SELECT id, data, flag FROM item WHERE data = ? OR name = ? OR id = ANY (?) OR mood = ? AND id < 9 ORDER BY id');
		$other->bind_param(1, "\0\7", { pg_type => DBD::Pg::PG_BYTEA() });
		$other->bind_param(2, "n\xc3\xa4me 4");
		$other->bind_param(3, [ 9, 11 ]);
		$other->bind_param(4, 'happy');
		for (1 .. 4) { $other->execute; $take->($other) }
		# interleaved
		my ($a, $b) = map { $dbh->prepare($_) } 'SELECT id FROM item WHERE id < ? ORDER BY id', 'SELECT name FROM item WHERE id < ? ORDER BY id DESC';
		$_->execute(6) for $a, $b;
		while (my @row = $a->fetchrow_array) { $out .= "$row[0] " . join(',', $b->fetchrow_array) . "\n" }
		# a cursor, portion by portion, and others meanwhile
		$dbh->begin_work;
		$dbh->do('DECLARE c CURSOR FOR SELECT id, doc FROM item ORDER BY id');
		for (1 .. 4)
		{
			my $part = $dbh->prepare('FETCH 70 FROM c');
			$part->execute;
			$take->($part);
			$out .= $dbh->selectrow_array('SELECT count(*) FROM mark') . "\n";
		}
		$dbh->do('SAVEPOINT s');
		$out .= $dbh->selectrow_array('SELECT 1 / (id - 1) FROM mark WHERE id = 1') // 'error ' . $dbh->state;
		$dbh->do('ROLLBACK TO s');
		$out .= $dbh->selectrow_array('SELECT side FROM mark WHERE id = 2') . "\n";
		$dbh->commit;
		# COPY out of a query
		$dbh->do('COPY (SELECT id, name, tags FROM item ORDER BY id) TO STDOUT');
		my $line = '';
		$out .= $line while $dbh->pg_getcopydata($line) >= 0;
		# asynchronous
		$dbh->do('SELECT count(*) FROM item', { pg_async => DBD::Pg::PG_ASYNC() });
		$out .= $dbh->pg_result . "\n";
		$dbh->disconnect;
		return $out;
	});
}

# ---- pipelines, in all protocols

my $script = PostgreSQL::Test::Utils::tempdir() . '/pipeline.sql';
append_to_file($script, <<'SQL');
\set a random(1, 300)
\startpipeline
SELECT id, name, cost FROM item WHERE id = :a;
SELECT side FROM mark WHERE id = 1 + :a % 3;
SELECT count(*) FROM item WHERE id < :a AND at < now() + interval '1 year';
BEGIN;
SELECT mood FROM item WHERE id = :a;
COMMIT;
SELECT tags FROM item WHERE id = :a;
\endpipeline
SELECT id AS again FROM item WHERE id = :a \gset
SELECT 1 / (CASE WHEN :again = id THEN 1 ELSE 0 END) FROM item WHERE id = :a;
SQL
foreach my $mode (qw(extended prepared))
{
	my $before = routed();
	local $ENV{PGOPTIONS} = '-c cutover.read_from=new';
	my ($out, $err) = run_command([ 'pgbench', '-n', '-M', $mode, '-f', $script, '-c', 3, '-j', 2, '-t', 60, $old->connstr('postgres') ]);
	like($out, qr{processed: 180/180.*failed transactions: 0}s, "pipelines, $mode") or diag($err);
	cmp_ok(routed() - $before, '>=', 180 * 7, "pipelines, $mode: new answers");
}

is($old->safe_psql('postgres', 'SELECT timeouts FROM cutover.read_stats'), 0, 'no time-outs');

done_testing();
