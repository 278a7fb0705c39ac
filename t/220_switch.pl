# The switch, in all directions, while clients write: each transaction that was
# acknowledged is there once, on both sides; clients move by themselves.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;

my ($old, $new) = cutover_pair(conf => "cutover.protect_new = on\ncutover.switch_stop_at = ''\n");
my $epoch = 1;
my $rw = 'SET default_transaction_read_only = off;';

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id serial PRIMARY KEY, balance int NOT NULL);
INSERT INTO account (balance) SELECT 0 FROM generate_series(1, 100);
SQL
CutoverTest::Load->create($old);
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables()');
cutover_error_is($old, q{SELECT cutover_set_mode('new_only')}, '55000', 'not before the start', like => qr/account.*waiting/);
$old->safe_psql('postgres', 'SELECT cutover_start()');
cutover_wait_synced($old);

# ---- what refuses

like($old->safe_psql('postgres', q{SELECT string_agg(check_name || ' ' || object, ',') FROM cutover_check_mode('new_only') WHERE level = 'error'}),
	qr/compare public.account/, 'a look beforehand: nothing was compared');
cutover_error_is($old, q{SELECT cutover_set_mode('new_only')}, '55000', 'refused for the same reason', like => qr/account: never compared/);
is($old->safe_psql('postgres', q{SELECT level FROM cutover_check_mode('new_only') WHERE check_name = 'pause'}), 'ok', 'the pause to expect');
cutover_error_is($old, q{BEGIN; SELECT cutover_set_mode('new_only', force => true)}, '25001', 'not in a transaction block');
cutover_error_is($old, q{BEGIN; SELECT cutover_set_mode('old_only')}, '25001', 'not even to the mode that it has');
cutover_error_is($old, q{SELECT cutover_set_mode('new_only', timeout => '-1 s')}, '22023', 'a timeout is not negative');
cutover_error_is($old, q{SELECT cutover_set_mode('new_only', timeout => NULL)}, '22004', 'nor null');
is($old->safe_psql('postgres', q{SELECT from_mode, to_mode, epoch, pause, drained_changes FROM cutover_set_mode('old_only')}),
	'old_only|old_only|1|00:00:00|0', 'the mode that it has: nothing happens');
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.mode_change'), '0', 'and nothing is written down');

# ---- an application that may not do more than write

for my $node ($old, $new)
{
	$node->safe_psql('postgres', "$rw CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app");
}
sub read_only
{
	return join ' ', map { $_->safe_psql('postgres', 'SHOW transaction_read_only', extra_params => [ '-U', 'app' ]) } $old, $new;
}
is(read_only(), 'off on', 'new sessions of new are read-only before the switch');

# ---- all directions, under load

my $load = cutover_load($old,
	clients => 4,
	follow => [ $old, $new ],
	pause => 1000,
	sql => sub { my ($client, $n) = @_; return sprintf 'UPDATE account SET balance = balance + 1 WHERE id = %d; INSERT INTO account (balance) VALUES (1)', 1 + ($client * 31 + $n) % 100 });
my %read_only = (old_only => 'off on', dual_write => 'off on', new_only => 'on off');
my $mode = 'old_only';
for my $to (qw(dual_write new_only dual_write old_only new_only old_only), qw(new_only dual_write new_only))
{
	my $before = $load->committed;

	cutover_poll('clients write', sub { $load->committed > $before + 20 }, node => $old);
	my ($row, $pause) = split / /, $old->safe_psql('postgres',
		qq{SELECT concat_ws('|', target, from_mode, to_mode, epoch), extract(epoch FROM pause) * 1000
		FROM cutover_set_mode('$to', force => true)}) =~ s/\|(?=[\d.]*$)/ /r;
	$epoch++;
	is($row, "new|$mode|$to|$epoch", "from $mode to $to");
	note("pause: $pause ms");
	is(read_only(), $read_only{$to}, 'new sessions can write where they should');
	$mode = $to;
	is($old->safe_psql('postgres', 'SELECT cutover_mode()'), $mode, 'the mode says so');
}
my $at = $load->committed;
cutover_poll('clients have found new', sub { $load->committed > $at + 20 }, node => $old);

my $result = $load->stop;
note("committed: $result->{committed}, failed: $result->{failed}");
is_deeply([ grep { !/^(25006|40001)$/ } sort keys %{ $result->{sqlstates} } ], [], 'nobody got an error but those that say where to go')
  or diag(explain($result->{sqlstates}));
cutover_wait($old);
$load->check($new, 'everything acknowledged is on new');
$load->check($old, 'and on old, which follows');
cutover_same_tables($old, $new, 'account', 'load_journal');
is($new->safe_psql('postgres', 'SELECT sum(balance) = 2 * (SELECT count(*) FROM load_journal) FROM account'), 't', 'each transaction counts once');
is($old->safe_psql('postgres', q{SELECT count(*), min(epoch), max(epoch), count(*) FILTER (WHERE pause > interval '0') FROM cutover.mode_change}),
	'9|2|10|7', 'every switch is written down, with its pause');
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.event WHERE kind = 'set_mode' AND detail ?& ARRAY['from_mode', 'to_mode', 'epoch', 'pause_ms', 'drained']}),
	'9', 'and an event');

# ---- old refuses

cutover_error_is($old, "$rw UPDATE account SET balance = 0", '25006', 'old refuses writes, and says where to write', like => qr/port=/);
is(cutover_error($old, 'UPDATE account SET balance = 0')->{sqlstate}, '25006', 'the server itself does in a session that is read-only');
is($old->safe_psql('postgres', 'SELECT count(*) > 0 FROM account'), 't', 'reads go on');
is($old->safe_psql('postgres', q{SELECT from_mode, to_mode, epoch FROM cutover_set_mode('new_only', old_sessions => 'terminate_idle')}), "new_only|new_only|$epoch", 'no new epoch');

done_testing();
