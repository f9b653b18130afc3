# Sourced by the benchmarks that put figures of several runs together.
# field FILE.json NAME: a number of a report.
field() { sed -n "s/^ *\"$2\": \([0-9.e+-]*\),\?$/\1/p" "$1"; }
# Of the numbers on standard input.
median() { sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }
