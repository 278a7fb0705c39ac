# The end of a migration: finish makes new the only one, cancel gives up; in
# every mode one of the two is right, and says so if it isn't.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair(conf => "cutover.protect_new = on\n");
my $rw = 'SET default_transaction_read_only = off;';

sub set_up
{
	my ($tables) = @_;

	$old->safe_psql('postgres', q{DROP EXTENSION IF EXISTS cutover CASCADE; CREATE EXTENSION cutover});
	for my $node ($old, $new)
	{
		$node->safe_psql('postgres', <<~'SQL');
			DROP TABLE IF EXISTS account, part CASCADE;
			CREATE TABLE account (id serial PRIMARY KEY, balance int NOT NULL);
			CREATE INDEX account_balance ON account (balance);
			CREATE TABLE part (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
			CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
			CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200);
			SQL
	}
	$old->safe_psql('postgres', 'INSERT INTO account (balance) SELECT 0 FROM generate_series(1, 10); INSERT INTO part VALUES (1, 1), (101, 1)');
	cutover_add_target($old, $new);
	$old->safe_psql('postgres', "SELECT $tables; SELECT cutover_start()");
	cutover_wait_synced($old);
	return;
}
# what of ours is on a side
sub left
{
	my ($node) = @_;
	return $node->safe_psql('postgres', q{SELECT concat_ws(' ',
		(SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover' AND NOT tgisinternal),
		(SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'),
		(SELECT count(*) FROM pg_foreign_server),
		(SELECT count(*) FROM pg_db_role_setting))});
}

# ---- cancel

set_up(q{cutover_add_tables()});
my $schema_new = cutover_dump_schema($new);
cutover_error_is($old, 'SELECT cutover_finish()', '55000', 'nothing to finish in old_only', like => qr/cutover_set_mode/);
$old->safe_psql('postgres', q{SELECT cutover_set_mode('dual_write')});
cutover_error_is($old, 'SELECT cutover_finish()', '55000', 'nor in dual_write');
$old->safe_psql('postgres', q{SELECT cutover_cancel()});
is($old->safe_psql('postgres', q{SELECT from_mode, to_mode FROM cutover.mode_change ORDER BY epoch DESC LIMIT 1}), 'dual_write|old_only', 'dual_write is left by cancel itself');
is(left($new), '0 0 0 0', 'nothing of ours is left on new');
is($old->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (1) RETURNING balance}), '1', 'old serves as before');
is($new->safe_psql('postgres', q{INSERT INTO account (id, balance) VALUES (99, 1) RETURNING balance}), '1', 'and so does new');

set_up(q{cutover_add_tables()});
$old->safe_psql('postgres', q{SELECT cutover_set_mode('new_only', force => true)});
$new->safe_psql('postgres', q{INSERT INTO account (id, balance) VALUES (100, 7)});
$old->safe_psql('postgres', q{SELECT cutover_cancel()});
is($old->safe_psql('postgres', q{SELECT from_mode, to_mode FROM cutover.mode_change ORDER BY changed_at DESC LIMIT 1}), 'new_only|old_only', 'cancelling in new_only goes back first');
is($old->safe_psql('postgres', q{SELECT balance FROM account WHERE id = 100}), '7', 'with what new was given');
is($old->safe_psql('postgres', 'SHOW default_transaction_read_only'), 'off', 'sessions of old can write again');
is(left($new), '0 0 0 0', 'nothing of ours is left on new');
is($old->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (1) RETURNING balance}), '1', 'old serves as before');

# ---- finish, of part of a database

for my $node ($old, $new)
{
	$node->safe_psql('postgres', 'DROP TABLE IF EXISTS other; CREATE TABLE other (id int PRIMARY KEY)');
}
set_up(q{cutover_add_tables(except_tables => '{other}')});
$old->safe_psql('postgres', q{SELECT cutover_set_mode('new_only', force => true)});
is($old->safe_psql('postgres', 'SHOW default_transaction_read_only'), 'off', 'a database that stays in part stays writable');
$old->safe_psql('postgres', q{SELECT cutover_finish()});
is(left($new), '0 0 0 0', 'nothing of ours is left on new');
is($new->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (7) RETURNING balance}), '7', 'new takes writes');
is($old->safe_psql('postgres', 'SELECT state, mode FROM cutover.status'), 'finished|new_only', 'the status says so');
is($old->safe_psql('postgres', q{SELECT count(*) FROM pg_class WHERE relname ~ '^_queue_\d'}), '0', 'the queue is gone');
is($old->safe_psql('postgres', 'SELECT count(*) FROM pg_foreign_server'), '0', 'and the address');
is($old->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'cutover replicator'}), '0', 'and the replicator');
is($old->safe_psql('postgres', q{SELECT kind FROM cutover.event ORDER BY event_id DESC LIMIT 1}), 'finish', 'an event tells');

my @writes = (
	'INSERT INTO account (balance) VALUES (1)',
	'UPDATE account SET balance = 1',
	'DELETE FROM account',
	'TRUNCATE account',
	q{COPY account (balance) FROM PROGRAM 'echo 1'},
	'SET session_replication_role = replica; INSERT INTO account (balance) VALUES (1)',
	'INSERT INTO part VALUES (2, 2)',
	'INSERT INTO part_2 VALUES (102, 2)',
	'UPDATE part SET id = 150 WHERE id = 1',
	'TRUNCATE part_1',
	'WITH w AS (INSERT INTO account (balance) VALUES (1) RETURNING 1) SELECT * FROM w',
);
for my $sql (@writes)
{
	my $error = cutover_error($old, $sql);
	is($error->{sqlstate}, '25006', "refused: $sql");
	like($error->{hint}, qr/port=\d+/, 'and where new is');
}
is($old->safe_psql('postgres', 'INSERT INTO other VALUES (1) RETURNING id'), '1', 'other tables are as before');
is($old->safe_psql('postgres', 'SELECT count(*) FROM account'), '10', 'reads go on');
cutover_error_is($old, 'SELECT cutover_finish()', '55000', 'finished is finished');
cutover_error_is($old, 'SELECT cutover_cancel()', '55000', 'and is not given up');
cutover_error_is($old, q{SELECT cutover_set_mode('old_only')}, '55000', 'there is no way back');
cutover_error_is($old, q{SELECT cutover_drop_target('new')}, '55000', 'the target is kept: it is what refuses', like => qr/DROP EXTENSION/);
$old->restart;
is(cutover_error($old, 'DELETE FROM account')->{sqlstate}, '25006', 'after a restart, too');
$old->safe_psql('postgres', 'DROP EXTENSION cutover CASCADE');
is($old->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (1) RETURNING balance}), '1', 'without the extension old is a database like any other');
is(left($old), '0 0 0 0', 'nothing of ours is left');

# ---- finish, of a whole database

$old->safe_psql('postgres', 'DROP TABLE other');
$new->safe_psql('postgres', 'DROP TABLE other');
set_up(q{cutover_add_tables()});
$old->safe_psql('postgres', q{SELECT cutover_set_mode('new_only', force => true)});
$old->safe_psql('postgres', q{SELECT cutover_pause()});
# somebody tidied up on new before
$new->safe_psql('postgres', q{SELECT cutover.abandon()});
$old->safe_psql('postgres', q{SELECT cutover_finish()});
is($old->safe_psql('postgres', 'SELECT state FROM cutover.status'), 'finished', 'finished where new was abandoned, too');
is($old->safe_psql('postgres', 'SHOW transaction_read_only'), 'on', 'new sessions stay read-only');
is(cutover_error($old, "$rw DELETE FROM account")->{sqlstate}, '25006', 'those that are not are refused');
is($new->safe_psql('postgres', 'SHOW transaction_read_only'), 'off', 'new is a database like any other');
$old->safe_psql('postgres', "$rw DROP EXTENSION cutover CASCADE");
is($old->safe_psql('postgres', q{INSERT INTO account (balance) VALUES (1) RETURNING balance}), '1', 'and so is old, without the extension');

done_testing();
