#!/usr/bin/env bash
# The CLI under mpirun: the same bytes as with thread ranks, one voice, exit codes.
# usage: mpi.sh DUET MODEL MPIRUN [MPIRUN FLAGS...]
set -euo pipefail
duet=$1 model=$2
shift 2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAILED: $1" >&2; exit 1; }

ids=(--prompt-token-ids 0,1232,261,2288,402 --prompt-token-ids 0,5,7)
for path in all-reduce all-to-all; do
  "$duet" logits "$model" "${ids[@]}" -tp 2 --expert-path $path --output "$dir/threads" 2> /dev/null
  "$@" -n 2 "$duet" logits "$model" "${ids[@]}" --expert-path $path --output "$dir/mpi" 2> /dev/null
  cmp "$dir/threads" "$dir/mpi" || fail "MPI and thread ranks differ ($path)"
  "$@" -n 2 "$duet" logits "$model" "${ids[@]}" --expert-path $path --split-at 3 --output "$dir/split" 2> /dev/null
  cmp "$dir/threads" "$dir/split" || fail "a split batch differs under MPI ($path)"
done

"$@" -n 2 "$duet" generate "$model" --prompt "In the beginning God" --max-tokens 4 --temperature 0 > "$dir/out" 2> "$dir/err"
[ "$(grep -c '^In the beginning God' "$dir/out")" = 1 ] || fail "not one rank printed the text: $(cat "$dir/out")"
[ "$(grep -c '^prefill' "$dir/err")" = 1 ] || fail "not one rank printed the report: $(cat "$dir/err")"

! "$@" -n 2 "$duet" generate "$model" --prompt x -tp 3 > "$dir/out" 2> "$dir/err" || fail "-tp 3 on two processes was accepted"
[ "$(grep -c 'duet generate: --tensor-parallel-size is 3, but mpirun started 2 processes' "$dir/err")" = 1 ] ||
  fail "no message about -tp: $(cat "$dir/err")"
echo "passed"
