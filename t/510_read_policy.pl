# Which side a read goes to: ratio, rules, the session's word, what the session
# wrote, how far new is, whether it answers.  The policy is asked directly, by
# modules/policy_test; what a router makes of it is tested elsewhere.
use strict;
use warnings;

use CutoverTest;
use IPC::Run;
use Test::More;
use Time::HiRes qw(usleep);

my ($old, $new) = cutover_pair(old => { streaming => 1 });
$old->append_conf('postgresql.conf', "cutover.network_timeout = 3\n");
$old->reload;
my $all = sub { $old->safe_psql('postgres', shift) };
my @open;
# a session that answers
my $session = sub {
	my $s = $old->background_psql('postgres', on_error_stop => 0);
	push @open, $s;
	return $s;
};
my $on = sub { my ($s, $sql) = @_; my $out = $s->query_safe("\\pset tuples_only on\n\\pset format unaligned\n$sql"); $out =~ s/\s+\z//; return $out };
# the side of a read of table a (and more); "new", or the reason for old
my $side = sub { my ($s, $outcome, $tables) = @_; return $on->($s, read_sql($outcome, $tables)) };
sub read_sql
{
	my ($outcome, $tables) = @_;
	return 'SELECT policy_test(1, ' . join(', ', "'" . ($outcome // '') . "'", map { "'$_'::regclass" } @{ $tables // ['a'] }) . ');';
}
my $becomes = sub {
	my ($what, $wanted, $s) = @_;
	my $is = '';
	cutover_poll("$what", sub { ($is = $side->($s)) eq $wanted }, node => $old);
	is($is, $wanted, $what);
};
my $stats = sub { $old->safe_psql('postgres', "SELECT $_[0] FROM cutover.read_stats") };

$all->(<<'SQL');
CREATE TABLE a (id int PRIMARY KEY, v int);
CREATE TABLE b (id int PRIMARY KEY, v int);
INSERT INTO a SELECT i, 0 FROM generate_series(1, 100) i;
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$all->(q{SELECT cutover_add_tables()});
$all->(<<'SQL');
LOAD 'cutover';
CREATE FUNCTION policy_test(int, text, oid) RETURNS text LANGUAGE c AS 'policy_test';
CREATE FUNCTION policy_test(int, text, oid, oid) RETURNS text LANGUAGE c AS 'policy_test';
SQL

# ---- the library in every new session

my $before = $session->();
is($on->($before, 'SELECT 1'), '1', 'a session that is older than the router');
my ($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_set_read_ratio(100)');
like($err, qr/WARNING:  1 session must reconnect before new can serve them/, 'ratio 100 warns of it');
like($err, qr/HINT:  Call cutover_enable_router\(\)/, 'and says what to do');
# what reads the log like a standby may be one
my $receiver = IPC::Run::start([ 'pg_receivewal', '-n', '-D', PostgreSQL::Test::Utils::tempdir(), '-d', $old->connstr('postgres') ],
	'>', '/dev/null', '2>', '/dev/null');
cutover_poll('a standby', sub { $all->('SELECT count(*) FROM pg_stat_replication') eq '1' });
cutover_error_is($old, 'SELECT cutover_enable_router()', '55000', 'not while a standby may lack the library', like => qr/standbys: "\S+?"\. .*force => true/s);
is($all->('SELECT count(*) FROM pg_db_role_setting'), '0', 'nothing is set');
$receiver->kill_kill;
cutover_poll('no standby', sub { $all->('SELECT count(*) FROM pg_stat_replication') eq '0' });

$all->('SELECT cutover_enable_router()');
my $s = $session->();
my $t = $session->();
is($on->($s, "SELECT routable FROM cutover.sessions WHERE pid = pg_backend_pid()"), 't', 'a new session has the library');
is($all->(q{SELECT count(*) FROM cutover.sessions WHERE NOT routable AND reads_from = 'old' AND writes = 0}), '1', 'the older one is seen');
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_set_read_ratio(100)');
like($err, qr/WARNING:  1 session must reconnect.*HINT:  Restart the applications/s, 'and has to reconnect');
$before->quit;
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_set_read_ratio(100)');
is($err, '', 'nobody is left to warn of');

# ---- new must be complete and followed

is($side->($s), 'state', 'not before the start');
$all->('SELECT cutover_start()');
cutover_wait_synced($old);
$becomes->('a synced table is read from new', 'new', $s);
$all->('SELECT cutover_pause()');
is($side->($s), 'state', 'not while replication is paused');
$all->('SELECT cutover_resume()');
$becomes->('again once it goes on', 'new', $s);
$all->(q{UPDATE cutover._table SET phase = 'resync_needed' WHERE old_table = 'b'::regclass});
is($side->($s, '', ['b']), 'not_synced', 'a table that is not complete is read from old');
is($side->($s, '', [ 'a', 'b' ]), 'not_synced', 'so is a join with it');
is($side->($s), 'new', 'others are not');
is($on->($s, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n" . read_sql() . "\nCOMMIT;"), 'not_synced', 'but with one snapshot for all tables');
$all->(q{UPDATE cutover._table SET phase = 'synced'});
$all->('UPDATE cutover._target SET rewound = true');
is($side->($s), 'rewound', 'not after old lost something');
$all->('UPDATE cutover._target SET rewound = false');

# ---- the ratio: effective at once, sticky, nested

$all->('SELECT cutover_set_read_ratio(0)');
is($side->($s), 'ratio', 'ratio 0 is effective at the next statement');
my $keys = sub {
	my ($ratio) = @_;
	$all->("SELECT cutover_set_read_ratio($ratio)");
	my @sides = split /\n/, $on->($s, join("\n", map { "SET cutover.route_key = 'user $_';\n" . read_sql() } 1 .. 300));
	$on->($s, 'RESET cutover.route_key');
	return { map { ($_ + 1 => 1) } grep { $sides[$_] eq 'new' } 0 .. $#sides };
};
my ($none, $ten, $fifty, $every) = map { $keys->($_) } 0, 10, 50, 100;
is(keys %$none, 0, 'nobody at 0 %');
is(keys %$every, 300, 'all at 100 %');
cmp_ok(abs(keys(%$ten) - 30), '<', 20, 'about 10 %');
cmp_ok(abs(keys(%$fifty) - 150), '<', 40, 'about 50 %');
is(scalar(grep { !$fifty->{$_} } keys %$ten), 0, 'who was among 10 % is among 50 %');
is_deeply($keys->(10), $ten, 'and 10 % are the same as before');
$on->($t, "SET cutover.route_key = 'user 7'");
is($side->($t) eq 'new' ? 1 : 0, $ten->{7} // 0, 'a key is the same in every session');
$on->($t, 'RESET cutover.route_key');

my @many = map { $session->() } 1 .. 24;
my %pid = map { ($on->($_, 'SELECT pg_backend_pid()') => $_) } @many;
my $readers = sub {
	$all->("SELECT cutover_set_read_ratio($_[0])");
	return { map { ($_ => 1) } grep { $side->($pid{$_}) eq 'new' } keys %pid };
};
my ($third, $most) = map { $readers->($_) } 33, 66;
is(scalar(grep { !$most->{$_} } keys %$third), 0, 'the same of sessions without a key');
cmp_ok(scalar(keys %$most), '>', 5, 'which are not all alike');
is($all->('SELECT string_agg(pid::text, \' \' ORDER BY pid) FROM cutover.sessions WHERE reads_from = \'new\' AND pid IN (' . join(', ', keys %pid) . ')'),
	join(' ', sort { $a <=> $b } keys %$most), 'cutover.sessions knows where they read');
$_->quit for @many;
@open = grep { my $x = $_; !grep { $_ == $x } @many } @open;

# ---- the session's word, and the transaction

$all->('SELECT cutover_set_read_ratio(0)');
$on->($s, q{SET cutover.read_from = 'new'});
is($side->($s), 'new', 'a session may ask for new');
is($all->(q{SELECT count(*) FROM cutover.sessions WHERE reads_from = 'new'}), '1', 'which is seen');
$on->($s, q{RESET cutover.read_from});
$all->('SELECT cutover_set_read_ratio(100)');
is($on->($s, "BEGIN;\nSET LOCAL cutover.read_from = 'old';\n" . read_sql() . "\nCOMMIT;\n" . read_sql()), "read_from\nnew", 'or for old, once');

my $in_transaction = sub {
	my ($begin, $first, $then) = @_;
	$all->("SELECT cutover_set_read_ratio($first)");
	my $was = $on->($s, "$begin;\n" . read_sql('count'));
	$all->("SELECT cutover_set_read_ratio($then)");
	my $is = $side->($s);
	my $own = $on->($s, ($then ? "SET LOCAL cutover.read_from = 'new';\n" : '') . read_sql());
	$on->($s, 'ROLLBACK;');
	return "$was $is $own";
};
is($in_transaction->('BEGIN', 0, 100), 'ratio transaction new', 'a transaction does not go to new by itself');
is($in_transaction->('BEGIN', 100, 0), 'new ratio transaction', 'it goes to old at the next statement, and stays');
is($in_transaction->('BEGIN ISOLATION LEVEL REPEATABLE READ', 0, 100), 'ratio transaction transaction', 'one snapshot: it stays on old');
is($in_transaction->('BEGIN ISOLATION LEVEL REPEATABLE READ', 100, 0), 'new new new', 'or on new');
is($on->($s, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n" . read_sql() . "\nCOMMIT;"), 'ratio', 'serializable');
$all->('SELECT cutover_set_read_ratio(100)');
is($on->($s, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n" . read_sql() . "\nCOMMIT;"), 'isolation', 'serializable stays on old');
is($on->($s, "BEGIN;\nUPDATE b SET v = 0;\n" . read_sql() . "\nCREATE TEMP TABLE x ();\n" . read_sql() . "\nCOMMIT;"), "new\ntransaction_wrote", 'so does a transaction that has written');
is($on->($s, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n" . read_sql('fail') . "\n" . read_sql() . "\nCOMMIT;"), "new\ntransaction", 'and one that fell back');
is($on->($s, "BEGIN ISOLATION LEVEL REPEATABLE READ;\n" . read_sql('count') . "\n" . read_sql('fail') . "\nCOMMIT;"), "new\nstuck", 'new answered with its snapshot: no way back');

# a statement that can't run on new, and whose plan is there already
my $begin = 'BEGIN ISOLATION LEVEL REPEATABLE READ';
$on->($s, "SET plan_cache_mode = force_generic_plan;\nPREPARE local AS SELECT FROM a WHERE random() < 0;\nEXECUTE local;");
is($on->($s, "$begin;\nEXECUTE local;\n" . read_sql() . "\nCOMMIT;"), 'transaction', 'one that has begun on old stays');
is($on->($s, "$begin;\n" . read_sql('count') . "\nEXECUTE local;\n" . read_sql() . "\nCOMMIT;"), "new\nnew", 'as one that has begun on new');
is($on->($s, "$begin;\nSELECT FROM pg_class WHERE oid = 0;\nEXPLAIN EXECUTE local;\n" . read_sql() . "\nCOMMIT;") =~ s/.*\n//sr, 'new', 'what reads nothing of it does not count');
is($on->($s, "BEGIN;\nEXECUTE local;\n" . read_sql() . "\nCOMMIT;"), 'new', 'with a snapshot for each statement it does not matter');
is($on->($s, "$begin;\n" . read_sql() . "\n" . read_sql('keep') . "\n" . read_sql() . "\nCOMMIT;"), "new\nrow_lock\ntransaction", 'new was chosen and did not answer');
is($on->($s, "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT FROM pg_export_snapshot();\n" . read_sql() . "\nCOMMIT;"), 'isolation', 'a snapshot that is shared stays on old');
my $dump = $on->($t, "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT pg_export_snapshot();");
is($on->($s, "BEGIN ISOLATION LEVEL REPEATABLE READ;\nSET TRANSACTION SNAPSHOT '$dump';\n" . read_sql() . "\nCOMMIT;\n" . read_sql()), "isolation\nnew",
	'on both ends');
$on->($t, 'COMMIT;');

# ---- a table is copied afresh while it is read: new's is empty, for every snapshot

$all->(q{SELECT cutover_set_read_ratio(100)});
$becomes->('new has all', 'new', $s);
my $rows = 'SELECT count(*) FROM a';
for my $level ('READ COMMITTED', 'REPEATABLE READ')
{
	is($on->($s, "BEGIN ISOLATION LEVEL $level;\nSELECT FROM b;\nDECLARE c CURSOR FOR $rows;\nSELECT count(*) FROM pg_cursors;"), '1', "a cursor is open, $level");
	$all->(q{UPDATE cutover._table SET phase = 'resync_needed' WHERE old_table = 'a'::regclass});
	$new->safe_psql('postgres', 'UPDATE cutover.migration SET protect = false; BEGIN; CREATE TABLE kept AS TABLE a; TRUNCATE a; COMMIT');
	is($on->($s, 'FETCH c;'), '100', 'its first row comes from where the rows are');
	is($on->($s, "$rows;"), '100', 'so does the next read');
	$on->($s, 'COMMIT;');
	$new->safe_psql('postgres', 'BEGIN; INSERT INTO a TABLE kept; DROP TABLE kept; COMMIT; UPDATE cutover.migration SET protect = true');
	$all->(q{UPDATE cutover._table SET phase = 'synced' WHERE old_table = 'a'::regclass});
}

# ---- rules

$all->('CREATE ROLE canary; CREATE ROLE clerk LOGIN IN ROLE canary; CREATE ROLE plain LOGIN; SELECT cutover_set_read_ratio(0)');
my $rule = sub {
	my ($arguments, $tables, $setup) = @_;
	$all->("SELECT cutover_add_rule('r', $arguments)");
	my $is = $on->($s, join("\n", $setup // (), read_sql('', $tables)));
	$on->($s, 'RESET ALL; RESET SESSION AUTHORIZATION') if $setup;
	$all->(q{SELECT cutover_drop_rule('r')});
	return $is;
};
is($rule->(q{'new'}), 'new', 'a rule for everybody');
is($rule->(q{'new', application => 'report'}), 'ratio', 'of another application');
is($rule->(q{'new', application => 'report'}, undef, q{SET application_name = 'report';}), 'new', 'of this application');
is($rule->(q{'new', role_name => 'canary'}), 'ratio', 'of a role that a superuser is not really a member of');
is($rule->(q{'new', role_name => 'canary'}, undef, 'SET SESSION AUTHORIZATION clerk;'), 'new', 'of a role and its members');
is($rule->(q{'new', role_name => 'canary'}, undef, 'SET ROLE clerk;'), 'new', 'also by SET ROLE');
is($rule->(q{'new', role_name => 'canary', application => 'report'}, undef, 'SET ROLE clerk;'), 'ratio', 'all conditions must hold');
is($rule->(q{'new', client => '0.0.0.0/0'}), 'ratio', 'no address, no client');
is($rule->(q{'new', tables => '{a}'}), 'new', 'of this table');
is($rule->(q{'new', tables => '{a}'}, ['b']), 'ratio', 'of another table');
is($rule->(q{'new', tables => '{a}'}, [ 'a', 'b' ]), 'ratio', 'not of all tables');
is($rule->(q{'new', tables => '{a,b}'}, [ 'b', 'a' ]), 'new', 'of all tables');
$all->(q{SELECT cutover_set_read_ratio(100); SELECT cutover_add_rule('n', 'new')});
is($rule->(q{'old'}), 'rule', 'old comes before new, and both before the ratio');
is($rule->(q{'old', tables => '{a}'}, [ 'b', 'a' ]), 'rule', 'old for one of the tables');
is($rule->(q{'old', tables => '{a}'}, ['b']), 'new', 'old for another');
is($rule->(q{'old'}, undef, q{SET cutover.read_from = 'new';}), 'new', 'the session comes before rules');
$all->(q{SELECT cutover_drop_rule('n'); SELECT cutover_add_rule('lan', 'old', client => '10.1.0.0/16')});
is($all->(q{SELECT string_agg(cutover._reads_from(1, 0, now(), 10, 'x', c::inet), ' ' ORDER BY i)
	FROM unnest('{10.1.2.3,10.2.2.3,::1}'::text[]) WITH ORDINALITY u (c, i)}), 'old new new', 'addresses');
is($all->(q{SELECT cutover_add_rule('x', 'old', tables => '{b}')} . ';' . read_sql('', ['b'])), "\nrule", 'a new session knows the rules');
$all->(q{SELECT cutover_drop_rule('lan'), cutover_drop_rule('x')});

# ---- what a session wrote, and how far new is

$becomes->('new', 'new', $_) for $s, $t;
my @frozen = cutover_freeze($new);
$on->($s, 'INSERT INTO b VALUES (1, 1);');
is($side->($s), 'own_write', 'a session that wrote reads from old, any table');
is($side->($t), 'new', 'another one need not');
is($on->($t, "SET cutover.max_read_lag = 0;\n" . read_sql()), 'lag', 'unless it wants all that anybody has committed');
$on->($t, "SET cutover.max_read_lag = '-1';\n");
is($side->($t), 'new', 'or does not care');
$on->($t, "SET cutover.max_read_lag = '100ms';\n");
$becomes->('new is too far behind', 'lag', $t);
is($on->($s, "SET cutover.max_read_lag = '-1';\n" . read_sql()), 'own_write', 'a session always sees its own');
is($side->($s, 'fail'), 'own_write', 'still');
cutover_thaw(@frozen);
$becomes->('new has it', 'new', $s);
$becomes->('and is near enough', 'new', $t);
is($on->($t, "SET cutover.max_read_lag = 0;\n" . read_sql()), 'new', 'or complete');
is($new->safe_psql('postgres', 'SELECT v FROM b WHERE id = 1'), '1', 'it really has');
$on->($_, 'RESET cutover.max_read_lag') for $s, $t;

@frozen = cutover_freeze($new);
is($on->($s, "BEGIN;\nINSERT INTO b VALUES (2, 2);\nPREPARE TRANSACTION 'p';\n" . read_sql() . "\nCOMMIT PREPARED 'p';\n" . read_sql()), "new\nown_write",
	'a prepared transaction counts from its commit');
cutover_thaw(@frozen);
$becomes->('new has that, too', 'new', $s);

# each commit, at once: new has it whenever the policy says new
$on->($s, "SET synchronous_commit = off;");
my ($fresh, $stale) = (0, 0);
for my $i (1 .. 200)
{
	my $is = $on->($s, "UPDATE a SET v = $i WHERE id = 1;\n" . ($i % 4 ? '' : "DO 'BEGIN PERFORM pg_sleep(0.03); END';\n") . read_sql());
	next unless $is eq 'new';
	$fresh++;
	$stale++ if $i % 20 == 0 || $fresh < 20 ? $new->safe_psql('postgres', 'SELECT v FROM a WHERE id = 1') ne $i : 0;
}
cmp_ok($fresh, '>', 5, 'new is asked between commits');
is($stale, 0, 'and never lacks one');

# what new rejects it does not have
$new->safe_psql('postgres', 'ALTER TABLE b ADD CHECK (v < 1000)');
$on->($s, 'INSERT INTO b VALUES (3, 3000), (4, 4000);');
cutover_poll('rejected', sub { $side->($s, '', ['b']) eq 'apply_error' }, node => $old);
is($side->($t, '', ['b']), 'apply_error', 'by everybody');
is($side->($t), 'new', 'but not the others');
$new->safe_psql('postgres', 'ALTER TABLE b DROP CONSTRAINT b_v_check');
$all->('SELECT cutover_retry_errors()');
cutover_poll('accepted', sub { $side->($t, '', ['b']) eq 'new' }, node => $old);
is($new->safe_psql('postgres', 'SELECT count(*) FROM b WHERE v > 1000'), '2', 'until new has them');

# ---- the breaker

is($side->($s, 'count'), 'new', 'new is well');
$side->($s, $_ % 2 ? 'fail' : 'slow') for 1 .. 4;
is($side->($t), 'new', 'four failures in a row are not five');
$side->($t, 'count');
my ($fallbacks, $timeouts) = split /\|/, $stats->('fallbacks, timeouts');
$side->($s, $_ % 2 ? 'fail' : 'slow') for 1 .. 5;
is($side->($t, 'count'), 'breaker', 'after five everybody stays on old');
is($stats->('breaker'), 't', 'the breaker is seen');
is($stats->("fallbacks - $fallbacks || ' ' || timeouts - $timeouts"), '5 2', 'fallbacks are counted, time-outs among them');
is($stats->(q{reasons ?& '{connection,timeout,breaker}'}), 't', 'with reasons');
like($all->('SELECT waiting_for FROM cutover.status'), qr/new to answer a read/, 'status says so');
is($all->(q{SELECT value FROM cutover.metrics WHERE metric = 'read_breaker'}), '1', 'and the metric');
$old->append_conf('postgresql.conf', "cutover.breaker_cooldown = 1\n");
$old->reload;
$becomes->('after the cooldown one tries', 'new', $s);
is($side->($t), 'breaker', 'one only');
$side->($s);	# whatever it said
cutover_poll('another tries', sub { $side->($t, 'fail') eq 'new' }, node => $old);
is($side->($s), 'breaker', 'one that fails has all wait again');
cutover_poll('one that succeeds', sub { $side->($t, 'count') eq 'new' }, node => $old);
is(join(' ', map { $side->($s) } 1 .. 3), 'new new new', 'ends it');
is($stats->('breaker'), 'f', 'which is seen');

# ---- who still writes

my $writes = sub { $all->('SELECT writes FROM cutover.sessions WHERE pid = ' . $on->($_[0], 'SELECT pg_backend_pid()')) };
is($writes->($t), '0', 'who has not written');
is($writes->($s), '202', 'who has');
$all->(q{SELECT cutover_set_mode('dual_write')});
is($writes->($s), '0', 'since the last switch nobody');
$on->($s, "UPDATE a SET v = 0 WHERE id = 2;\nBEGIN;\nUPDATE a SET v = 1 WHERE id = 2;\nROLLBACK;");
is($writes->($s), '1', 'a transaction');

# ---- new is master

$all->(q{SELECT cutover_set_mode('new_only', force => true)});
cutover_error_is($old, 'SELECT cutover_set_read_ratio(0)', '25006', 'sessions begin read-only', like => qr/default_transaction_read_only = off/);
my $writable = 'SET default_transaction_read_only = off;';
$all->("$writable SELECT cutover_set_read_ratio(0)");
is($side->($s), 'ratio', 'the ratio holds in new_only');
$all->("$writable SELECT cutover_set_read_ratio(100); SELECT cutover_pause()");
is($side->($s), 'new', 'new is behind nobody, whether old follows or not');
is($on->($s, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n" . read_sql() . "\nCOMMIT;"), 'isolation', 'serializable');
$all->("$writable SELECT cutover_resume(); SELECT cutover_set_read_ratio(0); UPDATE cutover._target SET old_writes = 'forward'");
is($side->($s), 'new', 'where writes are forwarded, reads follow');
is($on->($s, "BEGIN ISOLATION LEVEL SERIALIZABLE;\n" . read_sql() . "\nCOMMIT;"), 'new', 'serializable, too');
is($all->(q{SELECT string_agg(DISTINCT reads_from, ' ') FROM cutover.sessions WHERE routable}), 'new', 'which is seen');
is($on->($s, "SET cutover.read_from = 'old';\n" . read_sql() . "\nRESET cutover.read_from;"), 'read_from', 'but a session may insist');
is($on->($s, "SET cutover.max_read_lag = -1;\n" . read_sql('fail')), 'new', 'old answers where new failed, if it may be far behind');
$all->("$writable UPDATE cutover._target SET old_writes = 'reject'; SELECT cutover_set_read_ratio(100)");
$all->(q{SELECT cutover_set_mode('dual_write', force => true)});
$becomes->('and back', 'new', $s);

# ---- without the router; with the library in every session from the start

$all->('SELECT cutover_disable_router()');
$_->quit for @open;
@open = ();
is($all->(q{SELECT count(*) FROM pg_db_role_setting}), '0', 'the setting is as before');
$s = $session->();
$on->($s, 'SELECT 1');
is($all->('SELECT count(*) FROM cutover.sessions WHERE NOT routable'), '1', 'sessions do without the library');
$s->quit;
@open = ();
$old->append_conf('postgresql.conf', "shared_preload_libraries = 'cutover'\n");
$old->restart;
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_enable_router()');
like($err, qr/NOTICE:  the server loads the library for every session already/, 'nothing to enable with the library preloaded');
$s = $session->();
$on->($s, 'SELECT 1');
is($all->('SELECT count(*) FROM cutover.sessions WHERE NOT routable'), '0', 'all sessions are routable');
$on->($s, 'UPDATE a SET v = 3 WHERE id = 3;');
is($writes->($s), '1', 'and counted');
cutover_wait($old);
is($side->($s), 'new', 'and routed');
($rc, $out, $err) = $old->psql('postgres', 'SELECT cutover_set_read_ratio(100)');
is($err, '', 'without a warning');

# the library goes with the migration
$old->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$s->quit;
@open = ();
$old->restart;
$all->('SELECT cutover_enable_router()');
is($all->(q{SELECT count(*) FROM pg_db_role_setting}), '1', 'enabled');
$all->(q{SELECT cutover_set_mode('old_only')});
$all->('SELECT cutover_cancel()');
is($all->(q{SELECT count(*) FROM pg_db_role_setting}), '0', 'cancel takes it back');

done_testing();
