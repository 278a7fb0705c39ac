# Who may write on new, and when: before the switch only we, afterwards the
# application, even where both use the same role; and what happens on the day
# old is lost.
use strict;
use warnings;

use CutoverTest;
use Test::More;

my ($old, $new) = cutover_pair(
	old => { conf => <<~'CONF' });
		shared_preload_libraries = 'cutover'
		cutover.protect_new = on
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		CONF

sub on_old { return $old->safe_psql('postgres', "SET default_transaction_read_only = off; $_[0]") }
sub on_new { return $new->safe_psql('postgres', "SET default_transaction_read_only = off; $_[0]") }
sub app { return $new->safe_psql('postgres', "SET default_transaction_read_only = off; $_[0]", extra_params => [ '-U', 'app' ]) }
sub set_mode { return $old->safe_psql('postgres', "SELECT to_mode FROM cutover_set_mode('$_[0]', force => true, timeout => '60 s')") }

# Fails on new with this SQLSTATE, as this role.
sub refused
{
	my ($sql, $sqlstate, $name, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($rc, $out, $err) = $new->psql('postgres', "SET default_transaction_read_only = off; $sql",
		on_error_stop => 1, extra_params => [ '-U', $opt{role} // 'app', '-v', 'VERBOSITY=verbose' ]);
	my ($got) = $err =~ /ERROR:  ([0-9A-Z]{5})/;

	ok($rc != 0 && ($got // '') eq $sqlstate && $err =~ /HINT/, $name) or diag("expected $sqlstate, got: $out $err");
	return;
}

# On new we connect as the role that owns the tables and that the application uses.
on_new('CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app; GRANT ALL ON SCHEMA public TO app');
$old->safe_psql('postgres', 'CREATE ROLE app');
on_old(<<'SQL');
CREATE TABLE item (id int PRIMARY KEY, v text);
CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE outside (id int, v text);
CREATE TABLE heir (w text, PRIMARY KEY (id)) INHERITS (outside);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE heard (id int PRIMARY KEY, v text);
CREATE TABLE log (what text);
CREATE TABLE theirs (id int PRIMARY KEY, v text);
CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.log VALUES (TG_OP); RETURN NULL; END';
CREATE TRIGGER hear AFTER INSERT OR UPDATE OR DELETE ON heard FOR EACH ROW EXECUTE FUNCTION hear();
INSERT INTO item SELECT g, 'v' FROM generate_series(1, 1000) g;
INSERT INTO part SELECT g, 'v' FROM generate_series(1, 50) g;
INSERT INTO heir VALUES (1, 'v', 'w');
INSERT INTO parent SELECT generate_series(1, 5);
INSERT INTO child SELECT g, 1 + g % 5 FROM generate_series(1, 20) g;
INSERT INTO heard VALUES (1, 'v');
INSERT INTO theirs VALUES (1, 'v');
DO $$DECLARE t text; BEGIN FOREACH t IN ARRAY ARRAY['item', 'part', 'part_1', 'outside', 'heir', 'parent', 'child', 'heard', 'log'] LOOP
	EXECUTE format('ALTER TABLE %s OWNER TO app', t); END LOOP; END$$;
SQL
cutover_copy_schema($old, $new);
on_new('GRANT ALL ON theirs TO app');
cutover_add_target($old, $new, user => 'app');
on_old(q{SELECT cutover_add_tables(except_tables => ARRAY['outside', 'log']::regclass[])});
like($old->safe_psql('postgres', q{SELECT object, message FROM cutover_preflight() WHERE check_name = 'reverse'}),
	qr/^public.theirs\|role app does not own the table: others may write to it before the switch, and after it old can not follow$/, 'preflight warns of a table that is not ours');
on_old('SELECT cutover_start()');
ok(cutover_wait_synced($old), 'the copy goes through');
is($old->safe_psql('postgres', 'SELECT old_table::regclass, reverse_closed FROM cutover._table WHERE reverse_closed IS NOT NULL'),
	'theirs|role app does not own table public.theirs on new', 'its way back is closed');

# ---- old is the master

for my $sql ('INSERT INTO item VALUES (-1)', 'UPDATE item SET v = 0 WHERE false', 'DELETE FROM item', 'TRUNCATE item', 'COPY item FROM STDIN',
	'INSERT INTO part VALUES (-1)', 'UPDATE part_1 SET v = 0', 'TRUNCATE part_1', 'UPDATE outside SET v = 0', 'DELETE FROM heir',
	'DELETE FROM parent', 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; DELETE FROM item', 'BEGIN ISOLATION LEVEL SERIALIZABLE; DELETE FROM item',
	'DELETE FROM item WHERE id = 1 RETURNING *', 'WITH d AS (DELETE FROM item RETURNING id) SELECT count(*) FROM d',
	"SET cutover.token = 'x'; DELETE FROM item", 'CREATE TABLE IF NOT EXISTS pg_temp.x (i int); MERGE_OR_NOT')
{
	(my $run = $sql) =~ s/MERGE_OR_NOT/INSERT INTO item SELECT 1 ON CONFLICT DO NOTHING/;
	refused($run, '25006', "refused: $run");
}
refused("SET session_replication_role = replica; DELETE FROM item", '25006', 'for superusers, too, and for replicas', role => 'postgres');
app('INSERT INTO theirs VALUES (2); SELECT * FROM item FOR UPDATE; INSERT INTO outside VALUES (7, 1)');
pass('what is not ours to guard, and reading, goes on');
on_old(q{UPDATE item SET v = 'w'; TRUNCATE child; INSERT INTO part VALUES (60, 'n'); UPDATE heir SET v = 'h'; DELETE FROM parent WHERE id = 1; UPDATE heard SET v = 'w'});
cutover_wait($old);
cutover_same_tables($old, $new, qw(item part heir parent child heard));
is(on_new('SELECT count(*) FROM log'), '0', 'what we write is not heard');
on_old(q{SELECT cutover_run_ddl('ALTER TABLE item ADD n int DEFAULT 5')});
on_old('UPDATE item SET n = 6 WHERE id = 1');
cutover_wait($old);
cutover_same_tables($old, $new, 'item');
my $stale = $new->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'app' ]);
$stale->query('SET default_transaction_read_only = off; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item');
my $slow = $new->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'app' ]);
$slow->query('SET default_transaction_read_only = off; BEGIN; SELECT count(*) FROM item');

# turned off and on
$old->append_conf('postgresql.conf', 'cutover.protect_new = off');
$old->reload;
cutover_poll('the guard lets others in', sub {
	return ($new->psql('postgres', 'SET default_transaction_read_only = off; BEGIN; DELETE FROM child; ROLLBACK', on_error_stop => 1, extra_params => [ '-U', 'app' ]))[0] == 0 }, node => $old);
$old->append_conf('postgresql.conf', 'cutover.protect_new = on');
$old->reload;
cutover_poll('and no more', sub {
	return ($new->psql('postgres', 'SET default_transaction_read_only = off; BEGIN; DELETE FROM child; ROLLBACK', on_error_stop => 1, extra_params => [ '-U', 'app' ]))[0] != 0 }, node => $old);

# ---- new is the master

is(set_mode('new_only'), 'new_only', 'new is the master');
for my $s ([ $stale, 'one with one snapshot' ], [ $slow, 'another' ])
{
	my $before = length $s->[0]->{stderr};
	$s->[0]->query('\set VERBOSITY verbose');
	$s->[0]->query(q{UPDATE item SET v = 'stale' WHERE id = 5});
	like($s->[0]->{stderr}, qr/ERROR:  40001/, "a transaction from before the switch: $s->[1]");
	$s->[0]->quit;
}
app(q{UPDATE item SET v = 'app' WHERE id <= 10; UPDATE part_1 SET v = 'app'; UPDATE heard SET v = 'app'; DELETE FROM parent WHERE id = 2; UPDATE outside SET v = 'app'});
app(q{BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE item SET v = 'ser' WHERE id = 11; COMMIT});
is(on_new('SELECT count(*) FROM log'), '1', 'triggers on new are heard');
cutover_wait($old);
cutover_same_tables($old, $new, qw(item part heir parent child heard));

# a trigger that is off: noticed, and the table is closed
app(q{ALTER TABLE heard DISABLE TRIGGER ALL; UPDATE heard SET v = 'unseen'});
cutover_poll('a missing trigger is noticed', sub {
	return $old->safe_psql('postgres', q{SELECT reverse_closed FROM cutover._table WHERE old_table = 'heard'::regclass}) =~ /missing or disabled/ }, node => $old);
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status'), qr/old can not follow table public.heard/, 'and said');
cutover_error_is($old, q{SELECT cutover_set_mode('old_only')}, '55000', 'going back would lose it', like => qr/heard.*missing or disabled/s);

# a full queue: the table is closed, the application goes on; or it is refused
$old->append_conf('postgresql.conf', "cutover.queue_limit = 1\ncutover.capture = strict");
$old->reload;
cutover_poll('new knows the limit', sub { on_new('SELECT queue_limit > 0 FROM cutover.queue_state') eq 't' }, node => $old);
$old->stop('fast');
my $fill = q{UPDATE item SET v = 'full'; UPDATE item SET v = 'full'; UPDATE item SET v = 'full'; UPDATE item SET v = 'full'; UPDATE item SET v = 'full'};
refused(join('; ', ($fill) x 4), '53400', 'the limit of the queue: strict');
on_new(q{UPDATE cutover.queue_state SET policy = 'mark'});
app(join('; ', ($fill) x 4));
is(on_new('SELECT count(*) > 0 FROM cutover.capture_closed'), 't', 'the limit of the queue: mark');
$old->append_conf('postgresql.conf', "cutover.queue_limit = 0\ncutover.capture = mark");
$old->start;
cutover_poll('old hears of it', sub {
	return $old->safe_psql('postgres', q{SELECT reverse_closed FROM cutover._table WHERE old_table = 'item'::regclass}) =~ /queue_limit/ }, node => $old);
app(q{ALTER TABLE part_1 DISABLE TRIGGER ALL});
is(set_mode('old_only'), 'old_only', 'force goes back all the same');
is(on_new(q{SELECT count(*) FROM pg_trigger WHERE tgname = ' cutover guard' AND tgenabled <> 'A'}), '0', 'the guard is whole again');
on_old(q{UPDATE heard SET v = 'again'});
cutover_wait($old);
is(on_new('SELECT count(*) FROM log'), '1', 'and then we are not heard any more');

# ---- old is lost

on_old(q{UPDATE item SET v = 'both'; UPDATE part SET v = 'both'; SELECT cutover_wait()});
$old->stop('immediate');
refused('DELETE FROM part', '25006', 'old is dead, and new still refuses');
$new->safe_psql('postgres', 'SET default_transaction_read_only = off; SELECT cutover.take_over()', extra_params => [ '-U', 'app' ]);
app(q{UPDATE part SET v = 'alone'; INSERT INTO heard VALUES (100, 'alone')});
is(on_new('SELECT count(*) FROM log'), '2', 'new stands alone, with its triggers');
my $epoch = on_new('SELECT epoch FROM cutover.migration');
# old comes back: until it has reached new it can't know
$old->start;
cutover_poll('old gives in', sub { $old->safe_psql('postgres', 'SELECT cutover_mode()') eq 'new_only' }, node => $old);
cutover_error_is($old, q{SET default_transaction_read_only = off; UPDATE part SET v = 'late'}, '25006', 'and takes no writes');
is($old->safe_psql('postgres', q{SELECT detail->>'from_mode' FROM cutover.event WHERE kind = 'superseded'}), 'old_only', 'superseded');
is($old->safe_psql('postgres', 'SELECT epoch FROM cutover._target') , $epoch, 'both know the epoch');
is(on_new(q{SELECT string_agg(DISTINCT v, ' ') FROM part}), 'alone', 'nothing of old was applied');
like($old->safe_psql('postgres', q{SELECT reverse_closed FROM cutover._table WHERE old_table = 'part'::regclass}), qr/without old/, 'the way back is closed');
on_new('SELECT cutover.abandon()') if 0;
$old->stop('fast');
$new->safe_psql('postgres', 'SELECT cutover.abandon()', extra_params => [ '-U', 'app' ]);
is(on_new(q{SELECT count(*) FROM pg_trigger WHERE tgname ~ 'cutover'}), '0', 'abandon leaves no trigger');
is(on_new(q{SELECT count(*) FROM pg_namespace WHERE nspname = 'cutover'}), '0', 'nor anything else');
is(on_new(q{SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated}), '1', 'foreign keys are back');
app(q{UPDATE item SET v = 'free'});

done_testing();
