# CutoverTest - two servers, a target between them, and what tests ask again and again
#
#   use CutoverTest;
#   my ($old, $new) = cutover_pair();          # both run, the extension is on old
#   $old->safe_psql('postgres', 'CREATE TABLE ...');
#   cutover_copy_schema($old, $new);           # pg_dump -s | psql
#   cutover_add_target($old, $new);
#   $old->safe_psql('postgres', q{SELECT cutover_add_tables(); SELECT cutover_start()});
#   cutover_wait_synced($old);
#   cutover_wait($old);                        # everything committed until now is on new
#   cutover_same_rows($old, $new, 'orders', 'what this shows');
#
# Nodes are PostgreSQL::Test::Cluster objects; the database is "postgres" unless
# an argument db => says otherwise.  Every wait has a deadline, after which the
# test fails and prints what the views say.
package CutoverTest;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use CutoverTest::Load;
use CutoverTest::Proxy;

our @EXPORT = qw(
  cutover_node cutover_pair cutover_add_target cutover_copy_schema
  cutover_poll cutover_wait_synced cutover_wait_phase cutover_wait cutover_state
  cutover_digest cutover_digests cutover_rows cutover_same_rows cutover_same_tables cutover_same_tables_when
  cutover_dump_schema
  cutover_error cutover_error_is
  cutover_worker_pids cutover_signal_worker cutover_crash cutover_freeze cutover_thaw
  cutover_load
);

# Seconds after which a wait has failed
our $DEADLINE = $ENV{PG_TEST_TIMEOUT_DEFAULT} // 120;

# What the text of values depends on, the same for both sides
my $PINNED = q{SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres';
	SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C';};

# ---------------------------------------------------------------------------
# servers

# A server with sockets only.  %opt: preload => 1 loads the library at start;
# conf => text for postgresql.conf; install_path => of another PostgreSQL;
# extra => arguments of initdb; start => 0 leaves it stopped; streaming => 1.
sub cutover_node
{
	my ($name, %opt) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name,
		$opt{install_path} ? (install_path => $opt{install_path}) : ());

	$node->init(
		extra => [ '--locale=C', '--encoding=UTF8', @{ $opt{extra} // [] } ],
		$opt{streaming} ? (allows_streaming => 1) : ());
	# the workers of both directions, their restart after a crash, and two-phase
	# commits; a load would write gigabytes of log with all statements in it
	$node->append_conf('postgresql.conf', <<~'CONF');
		listen_addresses = ''
		max_connections = 60
		max_worker_processes = 20
		max_prepared_transactions = 20
		restart_after_crash = on
		log_statement = none
		log_line_prefix = '%m [%p] %b %a '
		# tests damage new to see that it is noticed
		cutover.protect_new = off
		CONF
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'cutover'")
	  if $opt{preload};
	$node->append_conf('postgresql.conf', $opt{conf}) if $opt{conf};
	$node->start unless exists $opt{start} && !$opt{start};
	return $node;
}

# Old with the extension, and an empty new.  %opt as for cutover_node, for
# both; old => {...} and new => {...} for one.
sub cutover_pair
{
	my (%opt) = @_;
	my %for_old = %{ delete $opt{old} // {} };
	my %for_new = %{ delete $opt{new} // {} };
	my $old = cutover_node('old', %opt, %for_old);
	my $new = cutover_node('new', %opt, preload => 0, %for_new);

	$old->safe_psql('postgres', 'CREATE EXTENSION cutover') if $old->{_pid};
	return ($old, $new);
}

# The schema of old, less our own, as a migration begins.  %opt: db, new_db
sub cutover_copy_schema
{
	my ($old, $new, %opt) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/schema.sql';
	my $db = $opt{db} // 'postgres';

	cutover_dump_file($old, $db, $file);
	$new->command_ok(
		[
			'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1',
			'-d', $new->connstr($opt{new_db} // $db), '-f', $file ],
		'the schema of old is on new');
	return;
}

# The schema as pg_dump sees it, with neither the extension nor schema cutover:
# what has to be the same before and after a migration that was given up.
sub cutover_dump_schema
{
	my ($node, $db) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';

	cutover_dump_file($node, $db // 'postgres', $file);
	my $dump = slurp_file($file);
	# a random word since the minor versions of August 2025
	$dump =~ s/^\\(un)?restrict .*\n//mg;
	return $dump;
}

sub cutover_dump_file
{
	my ($node, $db, $file) = @_;

	# everything that is a member of the extension is left out by pg_dump
	# itself; the entry CREATE EXTENSION is not
	PostgreSQL::Test::Utils::system_or_bail(
		'pg_dump', '--schema-only', '--exclude-schema=cutover',
		'-d', $node->connstr($db), '-f', $file);
	my $dump = slurp_file($file);
	$dump =~ s/^(CREATE EXTENSION IF NOT EXISTS|COMMENT ON EXTENSION) cutover .*\n//mg;
	# comments name the versions of the server and of pg_dump
	$dump =~ s/^--.*\n//mg;
	$dump =~ s/\n{2,}/\n/g;
	open my $out, '>', $file or croak "$file: $!";
	print $out $dump;
	close $out;
	return;
}

# %opt: name, db, new_db, user (on new); or conninfo
sub cutover_add_target
{
	my ($old, $new, %opt) = @_;
	my $name = $opt{name} // 'new';
	my $conninfo = $new->connstr($opt{new_db} // 'postgres');
	$conninfo .= " user=$opt{user}" if $opt{user};
	$conninfo = $opt{conninfo} if $opt{conninfo};
	$conninfo =~ s/'/''/g;

	$old->safe_psql($opt{db} // 'postgres',
		"SELECT cutover_add_target('$name', '$conninfo')");
	return;
}

# ---------------------------------------------------------------------------
# waiting

# Call $done until it returns true.  At the deadline the test fails and ends:
# what comes after would only say the same again.
# %opt: deadline => seconds, node => whose views are printed, db
sub cutover_poll
{
	my ($what, $done, %opt) = @_;
	my $until = time + ($opt{deadline} // $DEADLINE);
	my $pause = 10_000;

	while (1)
	{
		my $result = eval { $done->() };
		# psql that dies with its server while it is given its input is no news
		die $@ if $@ && $@ !~ /^ack Broken pipe/;
		return $result if $result;
		last if time > $until;
		usleep($pause);
		$pause = $pause * 2 > 200_000 ? 200_000 : $pause * 2;
	}
	fail("$what before the deadline");
	diag(cutover_state($opt{node}, $opt{db})) if $opt{node};
	die "gave up waiting for: $what\n";
}

# What the views say, for the log of a failed test.
sub cutover_state
{
	my ($node, $db) = @_;
	my $text = '';

	for my $view (qw(status progress replication apply_error))
	{
		my ($rc, $out, $err) =
		  $node->psql($db // 'postgres', "\\pset format aligned\n\\x\nSELECT * FROM cutover.$view");
		$text .= "--- cutover.$view\n" . ($out // '') . "\n" . ($err // '') . "\n";
	}
	return $text;
}

# All tables (or those named in tables => [...]) are in this phase.
sub cutover_wait_phase
{
	my ($old, $phase, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	my $where = $opt{tables}
	  ? 'AND table_name::text IN (' . join(', ', map { "'$_'" } @{ $opt{tables} }) . ')'
	  : '';

	return cutover_poll(
		"phase $phase",
		sub {
			my ($rc, $out) = $old->psql($db,
				"SELECT count(*) > 0 AND bool_and(phase = '$phase') FROM cutover.progress WHERE true $where");
			return $rc == 0 && $out eq 't';
		},
		node => $old, db => $db, %opt);
}

sub cutover_wait_synced
{
	my ($old, %opt) = @_;
	return cutover_wait_phase($old, 'synced', %opt);
}

# Everything committed until now is on new.
sub cutover_wait
{
	my ($old, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	my $seconds = $opt{deadline} // $DEADLINE;
	my ($rc, $out, $err) = $old->psql($db, "SELECT cutover_wait('$seconds s')");

	return 1 if $rc == 0;
	fail('cutover_wait');
	diag($err, cutover_state($old, $db));
	die "gave up waiting for new\n";
}

# ---------------------------------------------------------------------------
# comparing, without anything that the extension brings

# Rows and digest of tables, "rows|digest" by name, all in one session.  Order
# does not matter, duplicates do.  %opt: db, columns => 't.a, t.b'
sub cutover_digests
{
	my ($node, $tables, %opt) = @_;
	my $row = $opt{columns} ? "row($opt{columns})" : 't.*';
	my @lines = split /\n/, $node->safe_psql($opt{db} // 'postgres',
		join("\n", $PINNED,
			map { "SELECT count(*), coalesce(sum(hashtextextended(($row)::text, 0)::numeric), 0) FROM $_ t;" } @$tables));
	my %digest;

	@digest{@$tables} = @lines;
	return %digest;
}

# (rows, digest) of one table; as a scalar, both in one.
sub cutover_digest
{
	my ($node, $table, %opt) = @_;
	my %digest = cutover_digests($node, [$table], %opt);
	return wantarray ? split(/\|/, $digest{$table}) : $digest{$table};
}

# All rows as text, sorted by their bytes.
sub cutover_rows
{
	my ($node, $table, %opt) = @_;
	my $row = $opt{columns} ? "row($opt{columns})" : 't.*';

	return $node->safe_psql($opt{db} // 'postgres', <<~SQL);
		$PINNED
		SELECT ($row)::text FROM $table t ORDER BY ($row)::text COLLATE "C"
		SQL
}

# A test: both have the same rows.  Says which differ.
sub cutover_same_rows
{
	my ($old, $new, $table, $name, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $on_old = join ' ', cutover_digest($old, $table, %opt);
	my $on_new = join ' ', cutover_digest($new, $opt{new_table} // $table,
		%opt, db => $opt{new_db} // $opt{db});

	return 1 if is($on_new, $on_old, $name // "$table is the same on both sides");

	my %count;
	$count{$_}++ for split /\n/, cutover_rows($old, $table, %opt);
	$count{$_}-- for split /\n/, cutover_rows($new, $opt{new_table} // $table,
		%opt, db => $opt{new_db} // $opt{db});
	my @differ = grep { $count{$_} } sort keys %count;
	diag(scalar(@differ) . ' rows differ (+ only on old, - only on new):');
	diag(($count{$_} > 0 ? '+ ' : '- ') . substr($_, 0, 300)) for @differ[ 0 .. ($#differ > 9 ? 9 : $#differ) ];
	return 0;
}

# The same for several tables, with a word on when.
sub cutover_same_tables
{
	my ($old, $new, @tables) = @_;
	return cutover_same_tables_when($old, $new, 'is the same on both sides', @tables);
}

sub cutover_same_tables_when
{
	my ($old, $new, $when, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %on_old = cutover_digests($old, \@tables);
	my %on_new = cutover_digests($new, \@tables);
	my $ok = 1;

	for my $table (@tables)
	{
		# look at the rows only where that is worth it
		if ($on_old{$table} eq $on_new{$table}) { pass("$table $when") }
		else { $ok = cutover_same_rows($old, $new, $table, "$table $when") && $ok }
	}
	return $ok;
}

# ---------------------------------------------------------------------------
# errors

# Run SQL that should fail: { sqlstate, message, detail, hint, context }, with
# sqlstate '00000' if it didn't.
sub cutover_error
{
	my ($node, $sql, %opt) = @_;
	my ($rc, $out, $err) = $node->psql($opt{db} // 'postgres', $sql,
		on_error_stop => 1, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	my %error = (sqlstate => '00000', message => '', detail => '', hint => '', context => '', all => $err);

	return \%error if $rc == 0;
	@error{qw(sqlstate message)} = ($1, $2) if $err =~ /(?:ERROR|FATAL):  ([0-9A-Z]{5}): (.*)/;
	$error{detail}  = $1 if $err =~ /^DETAIL:  (.*)/m;
	$error{hint}    = $1 if $err =~ /^HINT:  (.*)/m;
	$error{context} = $1 if $err =~ /^CONTEXT:  (.*)/m;
	return \%error;
}

# A test: this SQL fails with this SQLSTATE, says what to do, and (optionally)
# something like $pattern in message, detail or hint.
sub cutover_error_is
{
	my ($node, $sql, $sqlstate, $name, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $error = cutover_error($node, $sql, %opt);
	my $good = $error->{sqlstate} eq $sqlstate && $error->{hint} ne '' && $error->{detail} ne '';

	$good &&= "$error->{message}\n$error->{detail}\n$error->{hint}" =~ $opt{like} if $opt{like};
	ok($good, $name) or diag("expected $sqlstate with a detail and a hint, got: $error->{all}");
	return $error;
}

# ---------------------------------------------------------------------------
# faults

# Processes whose backend_type or application_name matches.
sub cutover_worker_pids
{
	my ($node, $pattern, %opt) = @_;
	$pattern =~ s/'/''/g;
	my $out = $node->safe_psql($opt{db} // 'postgres', <<~SQL);
		SELECT pid FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND (backend_type ~ '$pattern' OR application_name ~ '$pattern')
		SQL

	return split /\n/, $out;
}

# Send a signal (KILL, TERM, STOP, CONT) to such processes; returns their
# number.  After KILL the server restarts itself: use cutover_crash.
sub cutover_signal_worker
{
	my ($node, $pattern, $signal, %opt) = @_;
	return kill $signal, cutover_worker_pids($node, $pattern, %opt);
}

# kill -9 a process of the server, and wait until it has recovered.
sub cutover_crash
{
	my ($node, $pattern, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	my $started = $node->safe_psql($db, 'SELECT min(backend_start) FROM pg_stat_activity');
	my $hit = cutover_signal_worker($node, $pattern, 'KILL', %opt);

	return 0 unless $hit;
	cutover_poll(
		'recovery after a crash',
		sub {
			my ($rc, $out) = $node->psql($db,
				"SELECT min(backend_start) > '$started' FROM pg_stat_activity");
			return $rc == 0 && $out eq 't';
		});
	return $hit;
}

# SIGSTOP a whole server: it takes connections and answers nothing.  Returns
# the processes, for cutover_thaw.
sub cutover_freeze
{
	my ($node) = @_;
	my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
	my @pids = ($postmaster);

	kill 'STOP', $postmaster;
	# no child is born any more
	for my $stat (glob '/proc/[0-9]*/stat')
	{
		open my $file, '<', $stat or next;
		my $line = <$file> // next;
		push @pids, $1 if $line =~ /^(\d+) \(.*\) \S (\d+) / && $2 == $postmaster;
	}
	kill 'STOP', @pids;
	return @pids;
}

sub cutover_thaw
{
	return kill 'CONT', @_;
}

# ---------------------------------------------------------------------------

# Writers in the background, see CutoverTest::Load.
sub cutover_load
{
	my ($node, %opt) = @_;
	return CutoverTest::Load->new($node, %opt);
}

1;
