# The views of a living migration: every state they can show is brought about,
# and what may hold row values is kept from those who may not read the table.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair();

$old->safe_psql('postgres', <<'SQL');
CREATE TABLE goods (id int PRIMARY KEY, name varchar(40), qty int);
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO goods SELECT g, 'name ' || g, g FROM generate_series(1, 900) g;
SQL
cutover_copy_schema($old, $new);
$old->safe_psql('postgres', <<'SQL');
CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
CREATE ROLE manager LOGIN IN ROLE cutover_admin;
GRANT SELECT ON goods, other TO manager;
SQL
$new->safe_psql('postgres', q{ALTER TABLE goods ADD CONSTRAINT few CHECK (qty < 1000)});

sub value { my ($sql, %opt) = @_; return $old->safe_psql('postgres', $sql, $opt{as} ? (extra_params => [ '-U', $opt{as} ]) : ()) }
sub status { my ($column, %opt) = @_; return value("SELECT $column FROM cutover.status", %opt) }
sub becomes
{
	my ($sql, $wanted, $name) = @_;
	my $is;

	cutover_poll($name, sub { $is = value($sql); ref $wanted ? $is =~ $wanted : $is eq $wanted }, node => $old);
	pass($name);
	return;
}

# --- before
cutover_add_target($old, $new, name => 'x');
like(status('waiting_for'), qr/^cutover_add_table\(\)/, 'without tables');
value('SELECT cutover_add_tables()');
is(status('state, waiting_for, lag, queued_changes'), 'idle|cutover_start()||0', 'before the start');
is( value(q{SELECT string_agg(check_name, ',') FROM cutover_preflight() WHERE level <> 'ok' AND object = 'public.goods'}),
	'constraints', 'preflight knows that new is stricter');

# --- a run
value('SELECT cutover_start()');
ok(cutover_wait_synced($old), 'tables are copied');
becomes('SELECT state, lag, queued_changes, waiting_for FROM cutover.status', 'streaming|00:00:00|0|', 'nothing is open');
is(value('SELECT bool_and(percent = 100 AND eta = interval \'0\'), sum(rows_done) FROM cutover.progress'), 't|900', 'progress is at its end');
is(value('SELECT bool_and(capture_enabled) FROM cutover.tables'), 't', 'capture is on');
is( value(q{SELECT string_agg(metric || '=' || value, ' ' ORDER BY metric) FROM cutover.metrics
		WHERE metric IN ('tables', 'tables_not_synced', 'replicator_running', 'lag_seconds', 'tables_capture_off', 'apply_errors')}),
	'apply_errors=0 lag_seconds=0 replicator_running=1 tables=2 tables_capture_off=0 tables_not_synced=0', 'metrics');
like(value('SELECT cutover_metrics()', as => 'watcher'), qr/^cutover_lag_seconds\{target="x"\} 0\n.*^# EOF$/ms, 'metrics as text');

# --- paused: what is queued is counted exactly, and only once it is committed
value('SELECT cutover_pause()');
is(status('state, waiting_for'), 'paused|cutover_resume()', 'paused');
my $open = $old->background_psql('postgres');
$open->query_safe('BEGIN');
$open->query_safe('UPDATE goods SET qty = qty + 1 WHERE id <= 7');
value('UPDATE goods SET qty = qty WHERE id BETWEEN 101 AND 130');
value('BEGIN; DELETE FROM goods WHERE id = 900; SAVEPOINT a; DELETE FROM goods WHERE id = 899; ROLLBACK TO a; COMMIT');
is(status('queued_changes'), '31', 'changes that are committed');
like(status('extract(epoch FROM lag) > 0'), qr/t/, 'lag grows');
$open->query_safe('COMMIT');
$open->quit;
is(status('queued_changes'), '38', 'and those of a transaction that was open');
is(value('SELECT queued_changes, queue_bytes > 0, state FROM cutover.replication'), '38|t|paused', 'replication says the same');
value('SELECT cutover_resume()');
ok(cutover_wait($old), 'new has them');
becomes('SELECT queued_changes, lag FROM cutover.status', '0|00:00:00', 'nothing is queued');

# --- a row that new rejects
value(q{UPDATE goods SET name = 'hush', qty = 5000 WHERE id = 1});
becomes('SELECT count(*) FROM cutover.apply_error', '1', 'a row is rejected');
is(value('SELECT target, direction, table_name, key, sqlstate FROM cutover.apply_error'), 'x|forward|goods|{"id": "1"}|23514', 'which one, and why');
like(value('SELECT message FROM cutover.apply_error'), qr/few/, 'in words');
like(value('SELECT message FROM cutover.apply_error', as => 'manager'), qr/few/, 'in words, for one who may read the table');
is(value('SELECT key, message FROM cutover.apply_error', as => 'watcher'), '{"id": "1"}|shown to those who may read the table', 'others see the key');
for my $column (qw(last_error waiting_for))
{
	unlike(value("SELECT coalesce($column, '') FROM cutover.$_", as => 'watcher'), qr/few|hush/, "$column of $_ keeps it too") for qw(status replication);
}
like(status('waiting_for'), qr/cutover_retry_errors\(\) or cutover_skip_errors\(\): new rejected 1 row/, 'what to do');
$new->safe_psql('postgres', 'ALTER TABLE goods DROP CONSTRAINT few');
value('SELECT cutover_retry_errors()');
becomes('SELECT count(*) FROM cutover.apply_error', '0', 'it is mended');
becomes(q{SELECT coalesce(waiting_for, '') FROM cutover.status}, '', 'and nothing is waited for');
is($new->safe_psql('postgres', 'SELECT name, qty FROM goods WHERE id = 1'), 'hush|5000', 'the row is there');

# --- new is away
$new->stop('immediate');
value('UPDATE goods SET qty = 0 WHERE id = 2');
becomes('SELECT waiting_for FROM cutover.status', qr/could not connect/, 'new is away');
like(status('waiting_for', as => 'watcher'), qr/could not connect/, 'which everybody may know');
is(status('queued_changes, lag > interval \'0\', state'), '1|t|streaming', 'a change waits');
is( value(q{SELECT level, check_name FROM cutover_preflight() WHERE check_name IN ('connection', 'worker_slots') ORDER BY 2}),
	"error|connection\nok|worker_slots", 'preflight says what it can');
$new->start;
becomes(q{SELECT queued_changes, coalesce(waiting_for, '') FROM cutover.status}, '0|', 'new is back');

# --- capture is tampered with
is( value(q{SET allow_system_table_mods = on; BEGIN;
		UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 'other'::regclass AND tgtype & 1 = 1 AND NOT tgisinternal;
		SELECT capture_enabled FROM cutover.tables WHERE table_name = 'other'::regclass;
		SELECT waiting_for LIKE '%capture is not on for public.other%' FROM cutover.status;
		SELECT value FROM cutover.metrics WHERE metric = 'tables_capture_off';
		SELECT level, object FROM cutover_preflight() WHERE check_name = 'capture_triggers';
		ROLLBACK}),
	"f\nt\n1\nerror|public.other", 'a trigger that was disabled is noticed');

# --- a table that must be copied afresh
my $listener = $old->background_psql('postgres');
$listener->query_safe('LISTEN cutover');
value('ALTER TABLE goods ALTER name TYPE varchar(30) USING left(name, 30)');
becomes(q{SELECT phase FROM cutover.tables WHERE table_name = 'goods'::regclass}, 'resync_needed', 'a rewrite needs a copy');
like(status('waiting_for'), qr/SELECT cutover_resync\('public\.goods'\): \S/, 'what to do, and why');
like(status('waiting_for', as => 'watcher'), qr/SELECT cutover_resync\('public\.goods'\)(;|$)/, 'others learn what to do');
is(value(q{SELECT value FROM cutover.metrics WHERE metric = 'tables_resync_needed'}), '1', 'as a metric');
is(value(q{SELECT detail->>'table', detail ? 'reason' FROM cutover.event WHERE kind = 'resync_needed'}), 'public.goods|t', 'as an event');
is(value(q{SELECT detail ? 'reason' FROM cutover.event WHERE kind = 'resync_needed'}, as => 'watcher'), 'f', 'whose reason is for readers of the table');
my $note = $listener->query('SELECT 1');
like($note, qr/notification "cutover".*"kind": "resync_needed"/, 'and as a notification');
unlike($note, qr/"reason"/, 'which does not say why: everybody may listen');
$listener->quit;
value(q{SELECT cutover_resync('public.goods')});
ok(cutover_wait_synced($old), 'it is copied again');
becomes(q{SELECT state, coalesce(waiting_for, '') FROM cutover.status}, 'streaming|', 'and nothing is waited for');

# --- after a restart: unknown until it is measured; who looks brings the worker back
$old->restart;
is(value('SELECT lag FROM cutover.replication'), '', 'lag is unknown');
becomes('SELECT state, lag, queued_changes, waiting_for FROM cutover.status', 'streaming|00:00:00|0|', 'replication is back');
is(value('SELECT state, pid > 0 FROM cutover.replication'), 'streaming|t', 'and seen');

# --- the story
is( value(q{SELECT string_agg(kind, ' ' ORDER BY event_id) FROM cutover.event WHERE kind IN ('start', 'pause', 'resume', 'retry_errors', 'resync')}),
	'start pause resume retry_errors resync', 'events');

value('SELECT cutover_cancel()');
is(value('SELECT count(*) FROM cutover.status WHERE state <> \'idle\''), '0', 'nothing goes on after cancel');
done_testing();
