# Random transactions in several sessions, while copies are made, workers die,
# columns and partitions come and go, and new refuses rows.  In the end both
# sides must be the same.
#
# CUTOVER_FUZZ_SEED, CUTOVER_FUZZ_SECONDS (of load), CUTOVER_FUZZ_OWNER (1: new is
# reached as the owner of its tables, 0: as superuser) repeat or vary a run;
# CUTOVER_FUZZ_WITHOUT leaves parts out: a pattern of tables and disturbances.
use strict;
use warnings;

use CutoverTest;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# the suite always takes the same; to look for trouble give others
my $seed = $ENV{CUTOVER_FUZZ_SEED} // 52;
my $seconds = $ENV{CUTOVER_FUZZ_SECONDS} // 15;
my $owner = $ENV{CUTOVER_FUZZ_OWNER} // $seed % 2;
my $without = $ENV{CUTOVER_FUZZ_WITHOUT};
my $clients = 5;
my @tables = grep { !left_out($_) } qw(big comp dup uni dpk part tree par kid cit toast ident trig trig_log);

diag("CUTOVER_FUZZ_SEED=$seed CUTOVER_FUZZ_OWNER=$owner");
srand($seed);

sub left_out { return $without && $_[0] =~ /^(?:$without)$/ }
sub any { return $_[ int(rand(@_)) ] }
sub chance { return rand(100) < $_[0] }

# ---------------------------------------------------------------------------
# statements

my $range = 60;
sub id { return chance(8) ? 1 + int(rand(20000)) : 1 + int(rand($range)) }
sub few { return int(rand(any(1, 4, 40))) }
sub text { return any("''", "'x'", 'NULL', 'md5(random()::text)', "repeat(md5(random()::text), 40)") }
sub some
{
	my ($col) = @_;
	my $a = id();
	return any("$col = $a", "$col BETWEEN $a AND " . ($a + few()), "$col % " . (2 + int(rand(9))) . " = 0 AND $col < " . 2 * $range);
}

# The same for tables with an int key "id" and a text "v"
sub plain
{
	my ($t, $more) = @_;
	my ($a, $b) = (id(), id());
	my $to = $a + few();
	my $v = text();

	return any(
		"INSERT INTO $t (id, v) SELECT g, $v FROM generate_series($a, $to) g ON CONFLICT DO NOTHING",
		"INSERT INTO $t (id, v) SELECT g, $v FROM generate_series($a, $to) g ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v",
		"INSERT INTO $t (id, v) VALUES ($a, $v)",
		"UPDATE $t SET v = $v WHERE " . some('id'),
		"UPDATE $t SET v = v WHERE " . some('id'),
		"DELETE FROM $t WHERE " . some('id'),
		"DELETE FROM $t WHERE id = $a; INSERT INTO $t (id, v) VALUES ($a, $v)",
		"UPDATE $t SET id = $b WHERE id = $a",
		"UPDATE $t SET id = -1 WHERE id = $a; UPDATE $t SET id = $a WHERE id = $b; UPDATE $t SET id = $b WHERE id = -1",
		"UPDATE $t SET id = -id WHERE " . some('id'),
		"UPDATE $t SET id = -id WHERE id < 0",
		"MERGE INTO $t t USING (SELECT g, $v AS v FROM generate_series($a, $to) g) s ON t.id = s.g WHEN MATCHED AND t.id % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.g, s.v)",
		$more ? @$more : ());
}

my %statement = (
	big => sub { chance(3) ? any('TRUNCATE big', "COPY big (id, v) FROM stdin;\n" . join('', map { 1_000_000 + int(rand(1e9)) . "\tcopied\n" } 1 .. 5) . "\\.\n") : plain('big') },
	comp => sub {
		my ($a, $b, $v) = (any(qw(a b A É x y)), int(rand(12)), text());
		return any("INSERT INTO comp VALUES ('$a', $b, $v) ON CONFLICT (a, b) DO UPDATE SET v = EXCLUDED.v",
			"INSERT INTO comp SELECT '$a', g, $v FROM generate_series($b, $b + 5) g ON CONFLICT DO NOTHING",
			"UPDATE comp SET b = b + 100 WHERE a = '$a' AND b < 100", "UPDATE comp SET b = b - 100 WHERE a = '$a' AND b >= 100",
			"UPDATE comp SET a = '" . any(qw(a b A É)) . "' WHERE a = '$a' AND b = $b", "DELETE FROM comp WHERE b = $b",
			"UPDATE comp SET v = $v WHERE b = $b");
	},
	dup => sub {
		my $a = int(rand(8));
		my $c = any('NULL', '1', '1.0', '2.50');
		return any("INSERT INTO dup SELECT $a, NULL, $c FROM generate_series(1, " . few() . ')', "INSERT INTO dup VALUES ($a, 'x', $c), ($a, 'x', $c)",
			"COPY dup FROM stdin;\n$a\tx\t1\n$a\tx\t1\n$a\t\\N\t\\N\n\\.\n",
			"UPDATE dup SET c = $c WHERE a = $a", "DELETE FROM dup WHERE a = $a AND c IS NOT DISTINCT FROM $c",
			"DELETE FROM dup WHERE ctid IN (SELECT ctid FROM dup WHERE a = $a LIMIT " . few() . ')', "UPDATE dup SET a = a + 1 WHERE a = $a", chance(10) ? 'TRUNCATE dup' : "UPDATE dup SET b = b");
	},
	uni => sub {
		my ($a, $b) = (id(), id());
		return plain('uni', [
			"UPDATE uni SET u = $b WHERE id = $a", "UPDATE uni SET u = NULL WHERE id = $a", "UPDATE uni SET d = $b WHERE id = $a",
			"UPDATE uni a SET d = b.d FROM uni b WHERE (a.id, b.id) IN (($a, $b), ($b, $a))",
			"UPDATE uni SET d = d + 1", "UPDATE uni SET d = id, u = id WHERE id BETWEEN $a AND $a + 10",
			"UPDATE uni SET u = NULL WHERE id = $a; UPDATE uni SET u = $a WHERE id = $b",
			"INSERT INTO uni (id, u, d, v) VALUES ($a, $b, $a, 'x') ON CONFLICT (u) DO UPDATE SET v = EXCLUDED.v",
			"DELETE FROM uni WHERE u = $a; INSERT INTO uni (id, u, d) VALUES ($b, $a, $a)" ]);
	},
	dpk => sub {
		my ($a, $b) = (id(), id());
		return any("INSERT INTO dpk SELECT g, 'x' FROM generate_series($a, $b) g", "UPDATE dpk SET id = id + 1 WHERE " . some('id'), 'UPDATE dpk SET id = id + 1 WHERE id < 30',
			"UPDATE dpk SET id = CASE id WHEN $a THEN $b ELSE $a END WHERE id IN ($a, $b)", 'DELETE FROM dpk WHERE ' . some('id'), 'UPDATE dpk SET v = ' . text() . ' WHERE ' . some('id'));
	},
	part => sub {
		my ($a, $k, $k2, $v) = (id(), int(rand(60)), int(rand(60)), text());
		return any("INSERT INTO part (id, k, v) SELECT g, $k, $v FROM generate_series($a, $a + " . few() . ') g ON CONFLICT DO NOTHING',
			"INSERT INTO part (id, k, v) VALUES ($a, $k, $v) ON CONFLICT (id, k) DO UPDATE SET v = EXCLUDED.v",
			"UPDATE part SET k = $k2 WHERE id = $a", "UPDATE part SET k = (k + 10) % 60 WHERE " . some('id'), "UPDATE part SET v = $v WHERE " . some('id'),
			'DELETE FROM part WHERE ' . some('id'), "DELETE FROM part WHERE k = $k", "UPDATE part SET id = id + 1 WHERE id = $a",
			"UPDATE part_1 SET v = $v", "INSERT INTO part_2 (id, k, v) VALUES ($a, 25, $v) ON CONFLICT DO NOTHING", chance(10) ? 'TRUNCATE ' . any('part', 'part_1', 'part_2', 'part_3') : "DELETE FROM part_3 WHERE id = $a");
	},
	tree => sub {
		my ($a, $b) = (id(), id());
		return plain('tree', [ "INSERT INTO tree SELECT g, nullif(g - 1, $a - 1), 'chain' FROM generate_series($a, $a + 8) g ON CONFLICT DO NOTHING",
			"UPDATE tree SET parent = $b WHERE id = $a", "UPDATE tree SET parent = id WHERE id = $a", "INSERT INTO tree VALUES ($a, $b, 'x'), ($b, $a, 'y') ON CONFLICT (id) DO UPDATE SET parent = EXCLUDED.parent" ]);
	},
	par => sub { chance(2) ? 'TRUNCATE par CASCADE' : plain('par') },
	kid => sub {
		my ($a, $b) = (id(), id());
		return plain('kid', [ "UPDATE kid SET par = $b WHERE id = $a", "INSERT INTO par (id) VALUES ($b) ON CONFLICT DO NOTHING; INSERT INTO kid (id, par, v) VALUES ($a, $b, 'k') ON CONFLICT (id) DO UPDATE SET par = EXCLUDED.par",
			"UPDATE kid SET par = (SELECT id FROM par ORDER BY random() LIMIT 1) WHERE " . some('id') ]);
	},
	cit => sub {
		my ($k, $n, $v) = (any(qw(a A b B ab Ab aB AB)), any(qw(1 1.0 1.00 2 2.0)), text());
		return any("INSERT INTO cit VALUES ('$k', $n, $v) ON CONFLICT (k, n) DO UPDATE SET v = EXCLUDED.v", "INSERT INTO cit VALUES ('$k', $n, $v) ON CONFLICT (k, n) DO UPDATE SET k = EXCLUDED.k, n = EXCLUDED.n",
			"UPDATE cit SET k = upper(k::text) WHERE k = '$k'", "UPDATE cit SET n = $n WHERE k = '$k' AND n = $n", "DELETE FROM cit WHERE k = '$k'", "UPDATE cit SET v = $v WHERE n = $n",
			"DELETE FROM cit WHERE k = '$k' AND n = $n; INSERT INTO cit VALUES ('$k', $n, $v)");
	},
	toast => sub {
		my ($a, $b) = (id(), id());
		my $big = any("repeat(md5(random()::text), 300)", "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200))");
		return plain('toast', [ "UPDATE toast SET big = $big WHERE " . some('id') . ' AND id < 100', "INSERT INTO toast VALUES ($a, 'x', $big, $big) ON CONFLICT (id) DO UPDATE SET big = EXCLUDED.big",
			"UPDATE toast SET small = small || 'y', id = $b WHERE id = $a", "UPDATE toast SET v = 'changed' WHERE id = $a; UPDATE toast SET big = v WHERE id = $a", "UPDATE toast SET big = $big WHERE id = $a; UPDATE toast SET id = -id WHERE id = $a; UPDATE toast SET v = 'z' WHERE id = -$a" ]);
	},
	ident => sub {
		my $a = id();
		return any("INSERT INTO ident (v) SELECT 'x' FROM generate_series(1, " . few() . ')', "INSERT INTO ident OVERRIDING SYSTEM VALUE VALUES ($a, 'o') ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v || 'u'", 'UPDATE ident SET v = ' . text() . ' WHERE ' . some('id'), 'DELETE FROM ident WHERE ' . some('id'), 'UPDATE ident SET id = DEFAULT WHERE id = ' . $a);
	},
	trig => sub { plain('trig', [ 'DELETE FROM trig_log WHERE ' . some('n') ]) },
	trig_log => sub { 'DELETE FROM trig_log WHERE ' . some('n') },
);

sub statement { my ($no_copy) = @_; while (1) { my $s = $statement{ any(@tables) }->(); return $s unless $no_copy && $s =~ /^COPY/ } }

# Statements of one transaction, with what may go wrong inside
sub body
{
	my @lines;
	push @lines, 'SET LOCAL cutover.spill_size = ' . any(0, 1, 8, 64) if chance(50);
	for (1 .. 1 + int(rand(any(2, 6, 15))))
	{
		my $how = rand(100);
		if ($how < 12)
		{
			push @lines, 'SAVEPOINT a', statement(), chance(50) ? ('SAVEPOINT b', statement(), 'RELEASE b') : (), 'ROLLBACK TO a', chance(50) ? statement() : ();
		}
		elsif ($how < 24)
		{
			my $s = statement(1);
			my $after = chance(50) ? "IF i % 2 = 0 THEN RAISE 'undone'; END IF;" : '';
			push @lines, "DO \$do\$ BEGIN FOR i IN 1 .. 3 LOOP BEGIN $s; $after EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END \$do\$";
		}
		else { push @lines, statement() }
	}
	return join(";\n", @lines) . ";\n";
}

# Sessions one after the other, of some transactions each, in a process of its own
sub client
{
	my ($node, $number, $until) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/client.$number";
	my $connstr = $node->connstr('postgres');
	my ($n, @prepared) = (0);

	srand($seed * 100 + $number);
	while (time < $until || @prepared)
	{
		my $sql = "SET lock_timeout = '300ms';\nSET deadlock_timeout = '50ms';\nSET statement_timeout = '20s';\n";
		for (1 .. any(1, 5, 20))
		{
			$n++;
			if (time < $until)
			{
				my $end = chance(6) ? "PREPARE TRANSACTION 'c${number}_$n'" : chance(8) ? 'ROLLBACK' : 'COMMIT';
				$sql .= '\set ON_ERROR_ROLLBACK ' . (chance(70) ? 'on' : 'off') . "\n";
				$sql .= chance(15) ? statement() . ";\n" : 'BEGIN' . (chance(10) ? ' ISOLATION LEVEL REPEATABLE READ' : '') . ";\n" . body() . "$end;\nROLLBACK;\n";
				push @prepared, "'c${number}_$n'" if $end =~ /PREPARE/;
			}
			while (@prepared && (chance(40) || time >= $until))
			{
				$sql .= (chance(75) ? 'COMMIT' : 'ROLLBACK') . ' PREPARED ' . shift(@prepared) . ";\n";
			}
		}
		open my $out, '>', $file or die $!;
		print {$out} $sql;
		close $out;
		system("cat $file >> $file.all; psql -XAtq -v VERBOSITY=terse -d \"$connstr\" -f $file >> $file.log 2>&1");
	}
	return;
}

# ---------------------------------------------------------------------------
# two servers

my ($old, $new) = cutover_pair(
	old => { conf => <<~"CONF" });
		shared_preload_libraries = 'cutover'
		cutover.apply_batch_rows = @{[ any(1, 7, 50, 1000) ]}
		cutover.apply_memory = 1MB
		cutover.change_retention = 0
		cutover.queue_segment_size = 1MB
		cutover.copy_chunk_size = 1MB
		cutover.copy_jobs = 3
		cutover.retry_max_delay = 1s
		max_worker_processes = 30
		log_min_messages = info
		fsync = off
		CONF

$old->safe_psql('postgres', <<'SQL');
CREATE EXTENSION citext;
CREATE TABLE big (id bigint PRIMARY KEY, v text);
CREATE INDEX ON big (md5(v));
CREATE TABLE comp (a text, b int, v text, PRIMARY KEY (a, b));
CREATE TABLE dup (a int, b text, c numeric);
CREATE TABLE uni (id int PRIMARY KEY, u int UNIQUE, d int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text);
CREATE TABLE dpk (id int PRIMARY KEY DEFERRABLE, v text);
CREATE TABLE part (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE part_0 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (10) TO (20);
CREATE TABLE part_2 (v text, gone int, k int NOT NULL, id int NOT NULL, PRIMARY KEY (id, k));
ALTER TABLE part_2 DROP gone;
ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (20) TO (30);
CREATE TABLE part_3 (k int NOT NULL, v text, id int NOT NULL, PRIMARY KEY (id, k));
ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES FROM (30) TO (40);
CREATE TABLE part_d PARTITION OF part DEFAULT;
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE, v text);
CREATE TABLE par (id int PRIMARY KEY, v text, boss int);
CREATE TABLE kid (id int PRIMARY KEY, par int REFERENCES par ON DELETE SET NULL ON UPDATE CASCADE, v text);
ALTER TABLE par ADD FOREIGN KEY (boss) REFERENCES kid ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE;
CREATE TABLE cit (k citext, n numeric, v text, PRIMARY KEY (k, n));
CREATE TABLE toast (id int PRIMARY KEY, small text, big text, v text);
ALTER TABLE toast ALTER big SET STORAGE EXTERNAL;
CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE TABLE trig (id int PRIMARY KEY, v text, n int);
CREATE TABLE trig_log (n int, what text);
CREATE FUNCTION trig_before() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.n := coalesce(NEW.n, 0) + 1;
	RETURN NEW;
END $$;
CREATE FUNCTION trig_after() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.trig_log VALUES (coalesce(NEW.id, OLD.id), TG_OP);
	IF pg_trigger_depth() = 1 THEN
		UPDATE public.trig SET v = 'by trigger' WHERE id IN (NEW.id, NEW.id + 1, OLD.id - 1) AND id % 2 = 0;
		DELETE FROM public.trig WHERE id = OLD.id + 3;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER b BEFORE INSERT OR UPDATE ON trig FOR EACH ROW EXECUTE FUNCTION trig_before();
CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON trig FOR EACH ROW EXECUTE FUNCTION trig_after();
INSERT INTO big SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 20000) g;
INSERT INTO part SELECT g, g % 60, repeat('p', 200) FROM generate_series(1, 10000) g;
INSERT INTO toast SELECT g, 's', repeat(md5(g::text), 100), 'v' FROM generate_series(1, 500) g;
INSERT INTO uni SELECT g, g, g, 'v' FROM generate_series(1, 60) g;
INSERT INTO dup SELECT g % 8, repeat('d', 200), g % 3 FROM generate_series(1, 1000) g;
INSERT INTO par SELECT g, 'p' FROM generate_series(1, 60) g;
INSERT INTO kid SELECT g, g, 'k' FROM generate_series(1, 60) g;
INSERT INTO tree SELECT g, g / 2, 't' FROM generate_series(0, 60) g;
SQL
cutover_copy_schema($old, $new);
$new->safe_psql('postgres', <<'SQL');
CREATE ROLE mover LOGIN;
GRANT CREATE ON DATABASE postgres TO mover;
GRANT ALL ON SCHEMA public TO mover;
DO $$
DECLARE
	t regclass;
BEGIN
	FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') LOOP
		EXECUTE format('ALTER TABLE %s OWNER TO mover', t);
	END LOOP;
END $$;
SQL
cutover_add_target($old, $new, $owner ? (user => 'mover') : ());
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');

# ---------------------------------------------------------------------------
# load and disturbances

my $until = time + $seconds;
my @pids;
for my $number (1 .. $clients)
{
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		eval { client($old, $number, $until); 1 } or warn $@;
		POSIX::_exit(0);
	}
	push @pids, $pid;
}
END { local $?; kill 'TERM', @pids if @pids }

# Not all that is tried is possible at the moment: no matter
sub try
{
	my ($node, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "SET lock_timeout = '1s'; SET statement_timeout = '30s'; $sql");
	note(sprintf('%s %s: %s', $node->name, $sql, $rc == 0 ? 'done' : $err =~ s/\n.*//sr));
	return $rc == 0;
}

my ($rejects, $columns, $detached) = ('', 0, 0);
my %disturb = (
	replicator => sub { cutover_signal_worker($old, 'cutover replicator', 'TERM') },
	copier => sub { cutover_signal_worker($old, 'cutover copier', 'TERM') },
	new_side => sub { try($new, q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ 'cutover' AND random() < 0.5}) },
	resync => sub { try($old, "SELECT cutover_resync('" . any(@tables) . "')") },
	column => sub {
		my $table = any('big', 'toast', 'part', 'dup', 'uni', 'tree', 'cit');
		$columns++;
		try($old, qq{SELECT cutover_run_ddl('ALTER TABLE public.$table ADD COLUMN x$columns int DEFAULT 7')});
		my $column = $old->safe_psql('postgres', "SELECT min(attname) FROM pg_attribute WHERE attrelid = '$table'::regclass AND attname ~ '^x[0-9]' AND NOT attisdropped");
		try($old, qq{SELECT cutover_run_ddl('ALTER TABLE public.$table DROP COLUMN $column')}) if $column && chance(60);
		return;
	},
	reject => sub {
		if ($rejects)
		{
			try($new, "ALTER TABLE $rejects DROP CONSTRAINT fuzz") or return;
			$rejects = '';
			try($old, 'SELECT cutover_retry_errors()');
			return;
		}
		my $table = any(grep { !/part|dup|trig_log|cit|comp/ } @tables);
		$rejects = $table if try($new, "ALTER TABLE $table ADD CONSTRAINT fuzz CHECK (id % 5 <> 0 OR v IS DISTINCT FROM 'x') NOT VALID");
		return;
	},
	partition => sub {
		my $table = any('part_2', 'part_3');
		my $from = $table eq 'part_2' ? 20 : 30;
		my $bounds = "FOR VALUES FROM ($from) TO (" . ($from + 10) . ')';
		try($old, "BEGIN; ALTER TABLE part DETACH PARTITION $table; UPDATE $table SET v = 'apart' WHERE id % 3 = 0; DELETE FROM $table WHERE id % 7 = 0; DELETE FROM part WHERE k >= $from AND k < $from + 10; ALTER TABLE part ATTACH PARTITION $table $bounds; COMMIT") if chance(50);
		try($old, "ALTER TABLE part DETACH PARTITION $table");
		try($old, any("TRUNCATE $table", "UPDATE $table SET v = 'alone'", "DELETE FROM $table WHERE id % 2 = 0", "INSERT INTO $table (id, k, v) VALUES (@{[ id() ]}, $from, 'alone') ON CONFLICT DO NOTHING"));
		try($old, "BEGIN; LOCK part; DELETE FROM part WHERE k >= $from AND k < $from + 10; ALTER TABLE part ATTACH PARTITION $table $bounds; COMMIT");
		return;
	},
);

# a session that broke off may have left one behind, and its locks
sub end_prepared
{
	my ($age) = @_;
	try($old, "COMMIT PREPARED '$_'")
	  for split /\n/, $old->safe_psql('postgres', "SELECT gid FROM pg_prepared_xacts WHERE prepared < now() - interval '$age'");
	return;
}

cutover_poll('start', sub { end_prepared('1 s'); $old->psql('postgres', q{SET statement_timeout = '5s'; SELECT cutover_start()}, on_error_stop => 1) == 0 });
my @what = grep { !left_out($_) } sort keys %disturb;
while (time < $until)
{
	$disturb{ any(@what) }->() if @what;
	usleep(any(100_000, 500_000));
	end_prepared('3 s');
}
waitpid $_, 0 for @pids;
@pids = ();

# ---------------------------------------------------------------------------
# peace

try($new, "ALTER TABLE $rejects DROP CONSTRAINT fuzz") if $rejects;
end_prepared('0 s');
is($old->safe_psql('postgres', q{SELECT string_agg(old_table::regclass || ': ' || phase_reason, ', ') FROM cutover._table WHERE phase = 'resync_needed'}) || '',
	'', 'no table has to be copied afresh');
cutover_wait_synced($old);
cutover_wait($old);
cutover_poll('no error is left', sub {
	return 1 if $old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error') eq '0';
	try($old, 'SELECT cutover_retry_errors()');
	cutover_wait($old);
	return 0;
}, node => $old, deadline => 20);
cutover_same_tables($old, $new, @tables);
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover._table WHERE phase <> 'synced'}), '0', 'all tables are still in step');
for my $node ($old, $new)
{
	my @bad = grep { /PANIC|TRAP|corrupt|segment(ation)? fault|terminated by signal|[0-9] cutover .*ERROR:  (XX|unexpected|could not find|cache lookup)/i } split /\n/, slurp_file($node->logfile);
	is(scalar(@bad), 0, 'nothing alarming in the log of ' . $node->name) or diag(join "\n", @bad[ 0 .. ($#bad > 9 ? 9 : $#bad) ]);
}

done_testing();
