# In dual_write old commits first and decides; the commit then waits for new.
# New rejecting a row, or not answering, costs a warning and is written down.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();
$old->append_conf('postgresql.conf', "cutover.network_timeout = 3\n");
$old->reload;
my @frozen;
# reads what must be on new the moment a commit on old has returned
my $seen = sub { $new->safe_psql('postgres', shift) };
# runs SQL on old; returns what went to stderr
my $run = sub {
	my ($rc, $out, $err) = $old->psql('postgres', "SET cutover.dual_write_timeout = '300ms'; $_[0]", on_error_stop => 1);
	is($rc, 0, "succeeds on old: $_[0]");
	return $err;
};

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, owner text, balance int NOT NULL);
INSERT INTO account SELECT i, 'o' || i, 0 FROM generate_series(1, 100) i;
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', q{SELECT cutover_add_table('account')});
cutover_error_is($old, q{SELECT cutover_set_mode('dual_write')}, '55000', 'not before new is complete', like => qr/account/);
$old->safe_psql('postgres', 'SELECT cutover_start()');
cutover_wait_synced($old);

# ---- the mode

is($old->safe_psql('postgres', q{SELECT from_mode, to_mode, epoch FROM cutover_set_mode('dual_write')}),
	'old_only|dual_write|2', 'into dual_write');
is($old->safe_psql('postgres', 'SELECT cutover_mode()'), 'dual_write', 'the mode says so');
is($old->safe_psql('postgres', 'SELECT from_mode, to_mode, epoch FROM cutover.mode_change'),
	'old_only|dual_write|2', 'and is written down');
cutover_error_is($old, q{BEGIN; SELECT cutover_set_mode('old_only')}, '25001', 'not in a transaction block');
cutover_error_is($old, q{SELECT cutover_set_write_ratio(101)}, '22023', 'a ratio is a percentage');

# ---- a commit that has returned is on new

my $missing = 0;
for my $i (1 .. 50)
{
	my $err = $old->psql('postgres', "UPDATE account SET balance = $i WHERE id = 1") // '';
	$missing++ if $seen->('SELECT balance FROM account WHERE id = 1') ne $i;
}
is($missing, 0, 'each of 50 commits was on new when it returned');
$old->safe_psql('postgres', 'BEGIN; UPDATE account SET balance = -1 WHERE id = 2; ROLLBACK');
is($seen->('SELECT balance FROM account WHERE id = 2'), '0', 'what old rolls back never reaches new');
isnt($old->psql('postgres', 'INSERT INTO account VALUES (1, NULL, 0)'), 0, 'what old rejects fails');

# ---- new rejects a row

$new->safe_psql('postgres', 'ALTER TABLE account ADD CONSTRAINT sane CHECK (balance < 1000)');
like($run->('UPDATE account SET balance = 5000 WHERE id = 3'), qr/WARNING:  the transaction has committed on old, but not yet on new/,
	'a row that new rejects is a warning');
is($old->safe_psql('postgres', 'SELECT table_name, key, sqlstate, state FROM cutover.dual_write_failure'),
	'account|{"id": "3"}|23514|pending', 'and written down');
$new->safe_psql('postgres', 'ALTER TABLE account DROP CONSTRAINT sane');
$old->safe_psql('postgres', 'SELECT cutover_retry_errors()');
cutover_poll('the failure is resolved', sub {
	$old->safe_psql('postgres', q{SELECT state FROM cutover.dual_write_failure}) eq 'resolved' }, node => $old);
is($seen->('SELECT balance FROM account WHERE id = 3'), '5000', 'new has the row now');

# ---- new does not answer

@frozen = cutover_freeze($new);
like($run->('UPDATE account SET balance = 7 WHERE id = 4'), qr/WARNING/, 'new too slow is a warning');
cutover_poll('the late commit is written down', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM cutover.dual_write_failure WHERE key->>'id' = '4' AND state = 'pending'}) eq '1' },
	node => $old);
is($old->safe_psql('postgres', 'SELECT balance FROM account WHERE id = 4'), '7', 'old has it');

# a waiting commit can be cancelled and terminated: it stands
my $waiter = $old->background_psql('postgres', on_error_stop => 0);
$waiter->query_until(qr//, "SET cutover.dual_write_timeout = '10min'; SET application_name = 'waiter';\nUPDATE account SET balance = 8 WHERE id = 5;\n");
cutover_poll('a commit waits', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waiter' AND state = 'active' AND backend_xid IS NULL AND wait_event_type = 'Extension'}) eq '1' },
	node => $old);
is($old->safe_psql('postgres', 'SELECT balance FROM account WHERE id = 5'), '8', 'its row is visible to others');
is($old->safe_psql('postgres', q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE application_name = 'waiter' AND locktype <> 'virtualxid'}),
	'0', 'it holds no lock');
$old->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'waiter'});
cutover_poll('the cancelled wait ends', sub {
	$old->safe_psql('postgres', q{SELECT state FROM pg_stat_activity WHERE application_name = 'waiter'}) eq 'idle' }, node => $old);
$waiter->query_until(qr//, "UPDATE account SET balance = 9 WHERE id = 6;\n");
cutover_poll('a commit waits again', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waiter' AND state = 'active' AND backend_xid IS NULL AND wait_event_type = 'Extension'}) eq '1' },
	node => $old);
$old->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waiter'});
cutover_poll('the terminated session ends', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waiter'}) eq '0' }, node => $old);
is($old->safe_psql('postgres', 'SELECT balance FROM account WHERE id = 6'), '9', 'its commit stands');
eval { $waiter->quit };

# ---- the breaker: after five failures in a row commits cease to wait

$run->("UPDATE account SET balance = 10 WHERE id = 7") for 1 .. 3;
is($old->safe_psql('postgres', 'SELECT degraded FROM cutover.status'), 't', 'status says that commits do not wait');
unlike($run->('UPDATE account SET balance = 11 WHERE id = 7'), qr/WARNING/, 'and they do not');

# ---- it catches up

cutover_thaw(@frozen);
cutover_wait($old);
cutover_same_rows($old, $new, 'account');
cutover_poll('all failures are resolved', sub {
	$old->safe_psql('postgres', q{SELECT count(*) FROM cutover.dual_write_failure WHERE state = 'pending'}) eq '0' }, node => $old);
$old->append_conf('postgresql.conf', "cutover.breaker_cooldown = 0\n");
$old->reload;
cutover_poll('commits wait again', sub {
	$old->psql('postgres', 'UPDATE account SET balance = balance + 1 WHERE id = 8');
	$old->safe_psql('postgres', 'SELECT degraded FROM cutover.status') eq 'f' }, node => $old);

# ---- the share of rows that waits is by key, and nested

$old->safe_psql('postgres', 'SELECT cutover_set_write_ratio(0)');
@frozen = cutover_freeze($new);
unlike($run->('UPDATE account SET balance = 12 WHERE id = 9'), qr/WARNING/, 'with ratio 0 nothing waits');
cutover_thaw(@frozen);
$old->safe_psql('postgres', 'SELECT cutover_set_write_ratio(100)');

# ---- prepared transactions commit without waiting, and arrive

$old->safe_psql('postgres', q{BEGIN; UPDATE account SET balance = 13 WHERE id = 10; PREPARE TRANSACTION 'p'});
$old->safe_psql('postgres', q{COMMIT PREPARED 'p'});
cutover_wait($old);
is($seen->('SELECT balance FROM account WHERE id = 10'), '13', 'COMMIT PREPARED arrives');

# ---- and back

is($old->safe_psql('postgres', q{SELECT from_mode, to_mode, epoch FROM cutover_set_mode('old_only')}),
	'dual_write|old_only|3', 'back to old_only');
@frozen = cutover_freeze($new);
unlike($run->('UPDATE account SET balance = 14 WHERE id = 11'), qr/WARNING/, 'commits no longer wait');
cutover_thaw(@frozen);
cutover_wait($old);
cutover_same_rows($old, $new, 'account');

# ---- the mode is in force when the call returns, for the worker as well

$new->safe_psql('postgres', 'ALTER TABLE account ADD CONSTRAINT sane CHECK (balance < 50000)');
for my $i (20 .. 22)
{
	$old->safe_psql('postgres', q{SELECT cutover_set_mode('dual_write')});
	like($run->("UPDATE account SET balance = 60000 WHERE id = $i"), qr/WARNING/, "rejected at once, time $i");
	$old->safe_psql('postgres', q{SELECT cutover_set_mode('old_only')});
}
is($old->safe_psql('postgres', q{SELECT count(*) FROM cutover.dual_write_failure WHERE sqlstate = '23514' AND (key->>'id')::int BETWEEN 20 AND 22}), '3', 'and each is written down');
ok(!$old->log_contains('PANIC'), 'no PANIC');

done_testing();
