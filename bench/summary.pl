#!/usr/bin/perl
# summary.pl FILE SPEC... - medians and paired comparisons of CSV rows
# "script,metric,contestant,round,value".  SPEC is
#   how:metric:contestant:base[:divisor[:bar[:unit]]]
# how   ratio     contestant / base of the same round
#       speedup   base / contestant: times, so that more than 1 is better
#       added     (contestant - base) / divisor of the same round
#       plain     contestant alone, no base
# bar   a number with <= or >= before it, or nothing
# The middle column of the table is the median over rounds of that figure, then
# its quartiles, its extremes and the number of rounds.
use strict;
use warnings;

my $file = shift;
my %value;
open my $fh, '<', $file or die "$file: $!\n";
while (<$fh>)
{
	chomp;
	my (undef, $metric, $who, $round, $v) = split /,/;
	$value{$metric}{$who}{$round} = $v if defined $v && $v =~ /^-?[\d.]+$/;
}

sub quantile
{
	my ($q, @v) = @_;
	my $at = $q * (@v - 1);
	my $i = int $at;
	return $i == $#v ? $v[$i] : $v[$i] + ($at - $i) * ($v[ $i + 1 ] - $v[$i]);
}
sub sorted { return sort { $a <=> $b } @_ }
sub short { my $v = shift; return sprintf abs $v >= 1000 ? '%.0f' : abs $v >= 100 ? '%.1f' : '%.2f', $v }

print "| measured | median | base, median | figure | median | quartiles | extremes | n | bar | |\n";
print "|---|---|---|---|---|---|---|---|---|---|\n";
for my $spec (@ARGV)
{
	my ($how, $metric, $who, $base, $divisor, $bar, $unit) = split /:/, $spec;
	my $mine = $value{$metric}{$who} or next;
	my $theirs = $how eq 'plain' ? $mine : $value{$metric}{$base} or next;
	my @rounds = grep { defined $theirs->{$_} } keys %$mine or next;
	my @figure = sorted(
		map {
				$how eq 'ratio'   ? $mine->{$_} / $theirs->{$_}
			  : $how eq 'speedup' ? $theirs->{$_} / $mine->{$_}
			  : $how eq 'added'   ? ($mine->{$_} - $theirs->{$_}) / ($divisor || 1)
			  : $mine->{$_}
		} @rounds);
	my $median = quantile(0.5, @figure);
	my $met = '';
	if (defined $bar && $bar =~ /^(<=|>=)(.*)$/)
	{
		$met = ($1 eq '<=' ? $median <= $2 : $median >= $2) ? 'met' : 'missed';
	}
	printf "| %s: %s | %s | %s | %s | **%s** | %s to %s | %s to %s | %d | %s | %s |\n",
	  $metric, $who, short(quantile(0.5, sorted(@$mine{@rounds}))),
	  $how eq 'plain' ? '' : "$base " . short(quantile(0.5, sorted(@$theirs{@rounds}))),
	  $unit // { ratio => 'x', speedup => 'x as fast', added => 'added', plain => '' }->{$how},
	  short($median), short(quantile(0.25, @figure)), short(quantile(0.75, @figure)),
	  short($figure[0]), short($figure[-1]), scalar @rounds, $bar // '', $met;
}
