# The disk of old is full, then that of new.  (Module full_disk: what would
# make a file of the database longer fails with ENOSPC.)
use strict;
use warnings;

use Cwd 'abs_path';
use CutoverTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $flag = abs_path(PostgreSQL::Test::Utils::tempdir());
my ($old, $new) = cutover_pair(start => 0,
	old => { conf => <<~'CONF' });
		autovacuum = off
		cutover.lease_time = 2
		cutover.retry_max_delay = 300
		CONF
my $library = $old->config_data('--pkglibdir') . '/full_disk.so';
plan skip_all => "no $library" unless -e $library;

# Start a server whose disk is full while the file "$flag/$name" exists.
sub start
{
	my ($node) = @_;
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{FULL_DISK} = "$flag/" . $node->name;
	$node->start;
}
sub full  { my ($node) = @_; append_to_file("$flag/" . $node->name, 'x'); }
sub empty { my ($node) = @_; unlink "$flag/" . $node->name or die $!; }

start($_) for $old, $new;
$old->safe_psql('postgres', <<'SQL');
CREATE EXTENSION cutover;
-- updates find room on their page
CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text) WITH (fillfactor = 20);
INSERT INTO item SELECT i, 0, 'x' FROM generate_series(1, 20000) i;
CREATE TABLE other (id int PRIMARY KEY, n int);
INSERT INTO other VALUES (1, 1);
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
$old->safe_psql('postgres', 'SELECT cutover_add_tables(); SELECT cutover_start()');
cutover_wait_synced($old);

sub marked
{
	return $old->safe_psql('postgres', q{SELECT coalesce(string_agg(table_name::text, ' '), '') FROM cutover.tables WHERE phase = 'resync_needed'});
}

my $id = 0;
sub write_some
{
	$id = $id % 20000 + 200;
	return cutover_error($old, 'UPDATE item SET n = n + 1 WHERE id BETWEEN ' . ($id - 199) . " AND $id")->{sqlstate};
}

# ---- old, cutover.capture = mark (the default): the application goes on

# the first change of a table writes down its columns
is(write_some(), '00000', 'there is room');
full($old);
my @failed;
cutover_poll('marked', sub {
	my $sqlstate = write_some();
	push @failed, $sqlstate if $sqlstate ne '00000';
	return marked() ne '';
}, node => $old);
is("@failed", '', 'mark: every transaction succeeds');
is(marked(), 'item', 'mark: its table is marked');
like($old->safe_psql('postgres', 'SELECT waiting_for FROM cutover.status'), qr/cutover_resync\('(public\.)?item'\).*No space left/, 'mark: status says why');
empty($old);
$old->safe_psql('postgres', q{SELECT cutover_resync('item')});
cutover_wait_synced($old);
cutover_wait($old);
cutover_same_tables($old, $new, qw(item other));

# ---- strict: the transaction fails

$old->append_conf('postgresql.conf', 'cutover.capture = strict');
$old->reload;
cutover_poll('strict', sub { $old->safe_psql('postgres', 'SHOW cutover.capture') eq 'strict' });
full($old);
my $sqlstate;
cutover_poll('refused', sub { $sqlstate = write_some(); return $sqlstate ne '00000' }, node => $old);
is($sqlstate, '53100', 'strict: the transaction fails, and says that the disk is full');
is(marked(), '', 'strict: no table is marked');
empty($old);
is(write_some(), '00000', 'strict: goes on once there is room');
cutover_wait($old);
cutover_same_tables($old, $new, qw(item other));

# ---- new, while it follows and while it is copied to

full($new);
$old->safe_psql('postgres', 'INSERT INTO item SELECT i, 1, repeat($$y$$, 100) FROM generate_series(100001, 110000) i');
my $says = sub {
	my ($like) = @_;
	return sub { ($old->safe_psql('postgres', q{SELECT concat_ws(' / ', waiting_for, last_error) FROM cutover.status}) // '') =~ $like };
};
ok(cutover_poll('status says so', $says->(qr/No space left/), node => $old), 'new full: status says so');
is(cutover_error($old, 'UPDATE other SET n = 2')->{sqlstate}, '00000', 'new full: old goes on');
empty($new);
ok(cutover_wait($old), 'new full: goes on by itself once there is room');
cutover_same_tables($old, $new, qw(item other));

full($new);
$old->safe_psql('postgres', q{SELECT cutover_resync('item')});
ok(cutover_poll('status says so', $says->(qr/No space left/), node => $old), 'new full in the copy: status says so');
empty($new);
ok(cutover_wait_synced($old), 'new full in the copy: goes on by itself once there is room');
cutover_wait($old);
cutover_same_tables($old, $new, qw(item other));
is($old->safe_psql('postgres', 'SELECT count(*) FROM cutover.apply_error'), '0', 'no row was taken for a bad one');
$old->safe_psql('postgres', 'SELECT cutover_cancel()');

done_testing();
