# New goes away in every way a network knows: old goes on as if nothing were,
# says what it waits for, and new catches up by itself.
use strict;
use warnings;

use CutoverTest;
use Test::More;
use Time::HiRes qw(time);

my ($old, $new) = cutover_pair(
	old => { conf => <<~'CONF' });
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		cutover.network_timeout = 2
		cutover.copy_jobs = 2
		cutover.copy_chunk_size = 1
		CONF

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text);
INSERT INTO item SELECT i, 0, repeat(md5(i::text), 4) FROM generate_series(1, 30000) i;
CREATE INDEX item_n ON item (n);
SQL
CutoverTest::Load->create($old);
my $schema = cutover_dump_schema($old);
cutover_copy_schema($old, $new);
my $new_schema = cutover_dump_schema($new);
my $proxy = CutoverTest::Proxy->new($new);
my @tables = qw(item load_journal);
my @frozen;
my ($rc, $out, $err);
END { cutover_thaw(@frozen) if @frozen }

# The whole way to a target that is synced, in state %$opt
sub begin
{
	cutover_add_target($old, $new, conninfo => $proxy->connstr('postgres'));
	$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
}

sub set_conf
{
	$old->append_conf('postgresql.conf', $_[0]);
	$old->reload;
}

my $load;
sub load
{
	my ($first) = @_;
	$load = cutover_load($old, clients => 2, first => $first, pause => 3000, sql => sub {
		my ($client, $n) = @_;
		my $id = $client + 2 * int(rand(14990));
		return "UPDATE item SET n = $n WHERE id = $id";
	});
}

# A test: this happens to new; the load goes on, status names the reason
# (matching $like), and once it is mended new catches up.
sub outage
{
	my ($what, $fail, $like, $mend) = @_;

	my $since = $old->safe_psql('postgres', 'SELECT clock_timestamp()');
	$fail->();
	my $said = cutover_poll(
		"$what: status says so",
		sub {
			my ($rc, $out) = $old->psql('postgres',
				qq{SELECT waiting_for || ' / ' || last_error FROM cutover.status WHERE waiting_for IS NOT NULL AND last_error_at > '$since'});
			return $rc == 0 && $out =~ $like && $out;
		},
		node => $old);
	ok($said, "$what: status.waiting_for and last_error say so");
	my $now = $load->committed;
	ok(cutover_poll('clients go on', sub { $load->committed > $now + 50 }, node => $old), "$what: clients of old go on");
	my $error = cutover_error($old, q{SELECT cutover_wait('300 ms')});
	is($error->{sqlstate}, '55P03', "$what: cutover_wait gives up");
	$mend->();
	ok(cutover_wait($old), "$what: new catches up by itself");
}

begin();
load(0);
cutover_wait_synced($old);

outage('refused', sub { $proxy->down }, qr/could not connect to|lost the connection/, sub { $proxy->up });
outage('silence', sub { $proxy->stall }, qr/no answer|could not connect/, sub { $proxy->resume });
outage('new stopped', sub { $new->stop('fast') }, qr/could not connect|terminating connection|lost the connection/, sub { $new->start });
outage('new frozen', sub { @frozen = cutover_freeze($new) }, qr/no answer|could not connect/,
	sub { cutover_thaw(@frozen); @frozen = () });

# ---- pause, stop and start of old, cancel, while new does not answer.  Where
# new is frozen even the request to cancel a statement gets no answer.

set_conf('cutover.network_timeout = 60');
# a window large enough that new is surely frozen in the midst of it
sub freeze_in_window
{
	@frozen = cutover_freeze($new);
	$old->safe_psql('postgres', "UPDATE item SET pad = pad || 'w' WHERE id % 3 = 0");
	cutover_poll('replicator waits for new', sub {
		$old->safe_psql('postgres', q{SELECT count(*) FROM cutover._worker_stats() s, cutover._marker m
			WHERE m.k > s.acked_k AND s.pid IS NOT NULL AND cutover._queued_changes(1) > 1000}) eq '1' }, node => $old);
}

freeze_in_window();
my $since = time;
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_pause()');
is("$rc $err", '0 ', 'frozen: cutover_pause() returns');
diag(sprintf('paused after %.1f s', time - $since)) if $ENV{CUTOVER_TEST_TALK};
cutover_thaw(@frozen);
@frozen = ();
$old->safe_psql('postgres', 'SELECT cutover_resume()');
cutover_wait($old);
freeze_in_window();
my $result = $load->stop;
is($result->{failed}, 0, 'no transaction on old failed because of new') or diag(explain($result->{sqlstates}));
$since = time;
$old->stop('fast');
ok(1, 'frozen: old stops');
diag(sprintf('old stopped after %.1f s', time - $since)) if $ENV{CUTOVER_TEST_TALK};
$old->start;
cutover_thaw(@frozen);
@frozen = ();
set_conf('cutover.network_timeout = 2');
cutover_wait($old);
cutover_same_tables($old, $new, @tables);
$load->check($new);

# ---- cancel while new can't be reached: old is free, new is told how

load(100_000);
$proxy->down;
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_cancel()');
is($rc, 0, 'unreachable: cutover_cancel() returns');
like($err, qr/WARNING:.*schema "cutover" stays there/, 'unreachable: and says what stays on new');
like($err, qr/cutover\.abandon\(\)/, 'unreachable: and what to do there');
$result = $load->stop;
is($result->{failed}, 0, 'no transaction failed because of cancel') or diag(explain($result->{sqlstates}));
is(cutover_dump_schema($old), $schema, 'unreachable: old is as before');
$proxy->up;
$new->safe_psql('postgres', 'SELECT cutover.abandon()');
is(cutover_dump_schema($new), $new_schema, 'after cutover.abandon() new has its schema of before');

# ---- new breaks away in the midst of the copy

$new->safe_psql('postgres', 'TRUNCATE item, load_journal');
set_conf('cutover.copy_max_rate = 800');
begin();
load(200_000);
for my $fault ([ sub { $proxy->down }, sub { $proxy->up } ], [ sub { $proxy->stall }, sub { $proxy->resume } ])
{
	my ($fail, $mend) = @$fault;
	my $chunks = 'SELECT count(*) FROM cutover._chunk WHERE state = \'done\'';
	my $done = $old->safe_psql('postgres', $chunks);

	cutover_poll('another chunk', sub { $old->safe_psql('postgres', $chunks) > $done }, node => $old);
	$fail->();
	cutover_poll('error noticed', sub {
		$old->safe_psql('postgres', q{SELECT count(*) FROM cutover.status WHERE waiting_for ~ 'connection|answer|connect'}) eq '1' }, node => $old);
	$mend->();
}
set_conf('cutover.copy_max_rate = 0');
cutover_wait_synced($old);
$result = $load->stop;
is($result->{failed}, 0, 'no transaction failed meanwhile');
cutover_wait($old);
cutover_same_tables($old, $new, @tables);
$load->check($new);

done_testing();
