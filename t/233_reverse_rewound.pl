# New fails over to a standby that lags: it has lost what old, which follows,
# already has. That is noticed and said; a comparison and a repair end it.
use strict;
use warnings;

use CutoverTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my ($old, $new) = cutover_pair(
	old => { conf => "shared_preload_libraries = 'cutover'\ncutover.lease_time = 2\ncutover.retry_max_delay = 300\n" },
	new => { streaming => 1 });

sub on_old { return $old->safe_psql('postgres', "SET default_transaction_read_only = off; $_[0]") }

on_old(<<'SQL');
CREATE TABLE item (id int PRIMARY KEY, v text);
CREATE TABLE bag (v text);
INSERT INTO item SELECT g, 'v' FROM generate_series(1, 100) g;
INSERT INTO bag SELECT 'v' FROM generate_series(1, 10) g;
SQL
cutover_copy_schema($old, $new);
cutover_add_target($old, $new);
on_old('SELECT cutover_add_tables(); SELECT cutover_start()');
ok(cutover_wait_synced($old), 'copied');
on_old(q{SELECT cutover_set_mode('new_only', force => true)});
$new->safe_psql('postgres', q{UPDATE item SET v = 'before' WHERE id = 1; INSERT INTO bag VALUES ('before')});
cutover_wait($old);

$new->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($new, 'base', has_streaming => 1);
$standby->start;
$new->wait_for_catchup($standby);
$standby->stop;
$new->safe_psql('postgres', q{UPDATE item SET v = 'lost' WHERE id <= 5; DELETE FROM item WHERE id = 6; INSERT INTO item VALUES (1000, 'lost'); INSERT INTO bag VALUES ('lost')});
cutover_wait($old);
is($old->safe_psql('postgres', q{SELECT count(*) FROM item WHERE v = 'lost'}), '6', 'old has what new is going to lose');
$new->stop('immediate');
$standby->start;
$standby->promote;
my $address = $standby->connstr('postgres');
$address =~ s/'/''/g;
on_old("SELECT cutover_set_target('new', '$address')");
cutover_poll('it is noticed', sub { $old->safe_psql('postgres', 'SELECT state FROM cutover.status') eq 'rewound' }, node => $old);
is($old->safe_psql('postgres', q{SELECT detail->>'direction' FROM cutover.event WHERE kind = 'rewound'}), 'reverse', 'and told');
cutover_error_is($old, q{SELECT cutover_set_mode('old_only')}, '55000', 'going back is refused', like => qr/one side has lost/);

$standby->safe_psql('postgres', q{UPDATE item SET v = 'after' WHERE id = 2; INSERT INTO item VALUES (2000, 'after')});
cutover_wait($old);
is($old->safe_psql('postgres', q{SELECT string_agg(id || v, ' ' ORDER BY id) FROM item WHERE v <> 'v'}), '1before 2after 3lost 4lost 5lost 1000lost 2000after', 'old follows the new new, and reads again what its queue tells of');
like($old->safe_psql('postgres', q{SELECT reverse_closed FROM cutover._table WHERE old_table = 'bag'::regclass}), qr/new lost/, 'rows without a key can not be told again');

my $compare = $old->safe_psql('postgres', q{SELECT sum(missing + extra + different) FROM cutover_compare(ARRAY['item']::regclass[], method => 'full')});
is($compare, '5', 'a comparison finds the rest');
on_old(q{SELECT cutover_compensate(ARRAY['item']::regclass[])});
cutover_wait($old);
cutover_same_tables($old, $standby, 'item');

done_testing();
