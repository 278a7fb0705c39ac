# Comparisons while both sides are written to, and while processes and servers die.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my $seed = $ENV{CUTOVER_SEED} // time;
srand($seed);
note("CUTOVER_SEED=$seed");

my ($old, $new) = cutover_pair(old => { conf => <<~'CONF' });
	cutover.protect_new = off
	cutover.compare_lag = 0
	cutover.queue_segment_size = 1MB
	cutover.change_retention = 1
	cutover.max_divergences = 100
	CONF

sub old_sql { return $old->safe_psql('postgres', join ';', @_) }
sub new_sql { return $new->safe_psql('postgres', join ';', @_) }

old_sql(q{
	CREATE TABLE hot (id int PRIMARY KEY, n int, v text, upd timestamptz DEFAULT clock_timestamp());
	CREATE TABLE nk (a int, b text);
	CREATE TABLE key_only (id int PRIMARY KEY);
	CREATE TABLE part (id int, p int, v text, PRIMARY KEY (id, p)) PARTITION BY LIST (p);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
	CREATE TABLE flushed (id int PRIMARY KEY, v int);
	CREATE TABLE big (id int PRIMARY KEY, v text);
	INSERT INTO hot SELECT i, 0, 'v' FROM generate_series(1, 20000) i;
	INSERT INTO nk SELECT i % 50, 'b' FROM generate_series(1, 3000) i;
	INSERT INTO part SELECT i, 1 + i % 2, 'v' FROM generate_series(1, 2000) i;
	INSERT INTO big SELECT i, repeat('v', 100) FROM generate_series(1, 60000) i;
	ANALYZE});
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
old_sql(q{SELECT cutover_add_table('hot', version_column => 'upd'); SELECT cutover_add_tables(); SELECT cutover_start()});
ok(cutover_wait_synced($old), 'copied');
old_sql(q{SELECT * FROM cutover_compare()});

# ---- ten hot keys, keys that come and go, rows that move, a table that is emptied ----

my $load = cutover_load($old, clients => 4, sql => sub {
	my ($client, $n) = @_;
	my ($id, $other) = (1 + int rand 10, 1 + int rand 20);
	return join ';',
	  (map { my $key = 1 + int rand 10; "UPDATE hot SET n = n + 1, upd = clock_timestamp() WHERE id = $key" } 1 .. 2),
	  "UPDATE hot SET v = 'r' || $n WHERE id = 1000 + $n % 5000",
	  "DELETE FROM hot WHERE id = 30000 + $other", "INSERT INTO hot VALUES (30000 + $other, $n) ON CONFLICT DO NOTHING",
	  "DELETE FROM key_only WHERE id = $id", "INSERT INTO key_only VALUES ($id) ON CONFLICT DO NOTHING",
	  "INSERT INTO nk VALUES ($id, 'x')", "DELETE FROM nk WHERE ctid = (SELECT min(ctid) FROM nk WHERE a = $id)",
	  "UPDATE part SET p = 3 - p WHERE id = $other",
	  ($n % 20 ? '' : 'TRUNCATE flushed'), "INSERT INTO flushed VALUES ($client * 100000 + $n, 1)";
});
cutover_poll('the load runs', sub { $load->committed > 20 });
my $long = $old->background_psql('postgres');
$long->query_safe(q{BEGIN; UPDATE hot SET v = 'long' WHERE id = 777});
my $rotations = old_sql('SELECT rotations FROM cutover._target');
my ($false, $moving, $passes) = ('', 0, 0);
for my $pass (1 .. 60)
{
	last if $pass > 10 && old_sql('SELECT rotations FROM cutover._target') > $rotations;
	old_sql("UPDATE hot SET v = md5(v || $pass) WHERE id > 7000");
	for my $method ($pass % 2 ? 'full' : 'auto')
	{
		my ($rc, $out, $err) = $old->psql('postgres', "SELECT table_name, method, missing, extra, different, representation, deferred FROM cutover_compare(method => '$method')");
		is($rc, 0, "pass $pass, $method") or diag($err);
		for my $line (split /\n/, $out)
		{
			my @field = split /\|/, $line;
			$moving += $field[6];
			$false .= "$line\n" if $field[2] + $field[3] + $field[4] + $field[5];
		}
	}
}
is($false, '', 'no difference was seen that was none');
is(old_sql('SELECT count(*) FROM cutover.divergence'), 0, 'none is open');
note("still moving: $moving");
$long->query_safe('COMMIT');
$long->quit;
cmp_ok(old_sql('SELECT rotations FROM cutover._target'), '>', $rotations, 'the queue went round meanwhile');

# ---- a real one in between is found all the same ----

new_sql(q{UPDATE hot SET v = 'broken' WHERE id IN (500, 15000); DELETE FROM nk WHERE ctid = (SELECT min(ctid) FROM nk WHERE a = 40);
	INSERT INTO hot VALUES (100000, 1); INSERT INTO key_only VALUES (77); DELETE FROM part WHERE id = 1000});
old_sql(q{SELECT * FROM cutover_compare(method => 'full')});
is(old_sql(q{SELECT table_name, key->>'id', kind FROM cutover.divergence ORDER BY table_name::text, key->>'id'}), <<'END' =~ s/\n\z//r, 'what is damaged by hand is found');
hot|100000|extra
hot|15000|different
hot|500|different
key_only|77|extra
nk||missing
part|1000|missing
END
old_sql('SELECT cutover_compensate()');
my $result = $load->stop;
# deadlocks among themselves, and rows that another has just moved to another partition
is($result->{failed} - ($result->{sqlstates}{'40P01'} // 0) - ($result->{sqlstates}{'40001'} // 0), 0, 'no writer noticed') or diag(explain $result->{sqlstates});
cutover_wait($old);

# ---- every row differs: bounded, and said ----

new_sql(q{UPDATE big SET v = v || 'x'});
is(old_sql(q{SELECT different, missing + extra + representation + deferred FROM cutover_compare(ARRAY['big'::regclass], 'full')}), '60000|0', 'every row differs');
is(old_sql(q{SELECT count(*), bool_and(kind = 'different') FROM cutover.divergence}), '100|t', 'as many are listed as there is room for');
is(old_sql(q{SELECT capped FROM cutover.compare_history WHERE run = (SELECT max(run) FROM cutover.compare_history)}), 't', 'and the result says so');
new_sql(q{UPDATE big SET v = left(v, 100)});
is(old_sql(q{SELECT different FROM cutover_compare(ARRAY['big'::regclass], 'full')}), 0, 'none does any more');
is(old_sql(q{SELECT count(*) FROM cutover.divergence}), 0, 'and all are closed');

# ---- cancelled, killed, restarted ----

sub set_rate { $old->append_conf('postgresql.conf', "cutover.compare_max_rate = $_[0]"); $old->reload }
sub comparers { return old_sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover comparer'}) }
sub chunks { return old_sql(q{SELECT coalesce(sum(chunks_done), 0) FROM cutover.compare_history WHERE run = (SELECT max(run) FROM cutover.compare_history)}) }

set_rate(20000);
my $latest = old_sql('SELECT max(run) FROM cutover.compare_history');
my $session = $old->background_psql('postgres', on_error_stop => 0);
$session->query_until(qr/go/, "\\echo go\nSELECT * FROM cutover_compare(ARRAY['big'::regclass], 'full');\n");
cutover_poll('some chunks are done', sub { old_sql('SELECT max(run) FROM cutover.compare_history') > $latest && chunks() >= 3 });
old_sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%cutover_compare%' AND pid <> pg_backend_pid() AND backend_type = 'client backend'});
cutover_poll('the workers end with their caller', sub { comparers() == 0 });
$session->quit;
my $run = old_sql('SELECT max(run) FROM cutover.compare_history');
my $done = chunks();
cmp_ok($done, '>=', 3, 'what was done stays done');

# again, and the server crashes
$session = $old->background_psql('postgres', on_error_stop => 0);
$session->query_until(qr/go/, "\\echo go\nSELECT * FROM cutover_compare(ARRAY['big'::regclass], 'full');\n");
cutover_poll('it goes on', sub { chunks() > $done });
is(old_sql('SELECT max(run) FROM cutover.compare_history'), $run, 'in the same run');
my $pid = old_sql(q{SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'cutover comparer'});
kill 'KILL', $pid;
cutover_poll('old is back', sub { my ($rc) = $old->psql('postgres', 'SELECT 1'); $rc == 0 });
eval { $session->quit };
set_rate(0);
cutover_poll('new follows again', sub { my ($rc) = $old->psql('postgres', 'SELECT cutover_wait()'); $rc == 0 });
is(old_sql(q{SELECT rows, missing + extra + different + representation + deferred FROM cutover_compare(ARRAY['big'::regclass], 'full')}), '60000|0', 'it ends');
is(old_sql('SELECT max(run), bool_and(complete) FROM cutover.compare_history WHERE run = ' . $run), "$run|t", 'as the run that it was');

# new goes away in the middle
set_rate(20000);
$session = $old->background_psql('postgres', on_error_stop => 0);
my $before = old_sql('SELECT max(run) FROM cutover.compare_history');
$session->query_until(qr/go/, "\\echo go\nSELECT * FROM cutover_compare(ARRAY['big'::regclass], 'full');\n");
cutover_poll('it runs', sub { old_sql('SELECT max(run) FROM cutover.compare_history') > $before && chunks() > 2 });
$new->stop('immediate');
cutover_poll('it fails', sub { old_sql(q{SELECT state FROM cutover.compare_history WHERE run = (SELECT max(run) FROM cutover.compare_history)}) eq 'failed' });
like($session->query('SELECT 1') . ($session->{stderr} // ''), qr/goes on where this one was|1/, 'and says how it goes on');
$session->quit;
$new->start;
set_rate(0);
cutover_poll('new follows again', sub { my ($rc) = $old->psql('postgres', 'SELECT cutover_wait()'); $rc == 0 });
is(old_sql(q{SELECT rows, missing + extra + different + representation + deferred FROM cutover_compare(ARRAY['big'::regclass], 'full')}), '60000|0', 'and does');
is(comparers(), 0, 'nobody is left');

done_testing();
