# The models of docs/model, checked by spin: as they are, nothing is found; with a
# step left out, something is.
use strict;
use warnings;

use File::Copy;
use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'spin is not installed' if system('spin -V >/dev/null 2>&1') != 0;

my %steps = (
	queue => [qw(NO_FLUSH NO_COMPARE NO_TOKEN NO_TOGETHER NO_NAME)],
	switch => [qw(NO_FENCE NO_DRAIN NO_DOUBT NO_NUMBER NO_REVERSE)]);

# What spin says of a model: the first thing it finds; '' if it has gone through everything.
sub check
{
	my ($model, @without) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();

	copy("$FindBin::RealBin/../docs/model/$model.pml", "$dir/$model.pml") or die "$model: $!";
	# what is wrong is found at once
	my $optimise = @without ? '-O0' : '-O1';
	my $out = `cd '$dir' && spin -a @{[ map { "-D$_" } @without ]} $model.pml 2>&1 && cc $optimise -w -DSAFETY -o pan pan.c 2>&1 && ./pan -E -m100000 2>&1`;
	return $1 if $out =~ /^pan:1: (.*?) \(at depth/m;
	return '' if $out =~ /errors: 0$/m && $out !~ /max search depth too small|out of memory/;
	return "no result: $out";
}

for my $model (sort keys %steps)
{
	is(check($model), '', "$model: nothing is found");
	like(check($model, $_), qr/^assertion violated/, "$model: $_ is found") for @{ $steps{$model} };
	open my $file, '<', "$FindBin::RealBin/../docs/model/$model.pml" or die "$model: $!";
	my %named = map { $_ => 1 } map { /\b(NO_[A-Z]+)\b/g } <$file>;
	delete $named{NO_BODY};
	is(join(' ', sort keys %named), join(' ', sort @{ $steps{$model} }), "$model: no other steps can be left out");
}

done_testing();
