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
# Workers keep the same error to themselves for a while; a slow launcher may let them say it, marked.
[ "$(grep -c 'duet generate: --tensor-parallel-size is 3, but mpirun started 2 processes; make them equal, or drop the flag$' "$dir/err")" = 1 ] ||
  fail "no message about -tp: $(cat "$dir/err")"

# One program per rank, with other flags: a message, never a hang.
short=("$duet" generate "$model" --prompt-token-ids 0,5,7 --max-tokens 2 --threads 1)
refused() {
  local said=$1
  shift
  local status=0
  timeout 60 "$@" > "$dir/out" 2> "$dir/err" || status=$?
  [ "$status" != 0 ] && [ "$status" != 124 ] || fail "exit code $status where \"$said\" was due"
  grep -q "$said" "$dir/err" || fail "no \"$said\": $(cat "$dir/err")"
}
refused 'rank 1 has micro_batches 3, rank 0 has 6' \
  "$@" -n 1 "${short[@]}" --dbo on : -n 1 "${short[@]}" --dbo on --micro-batches 3
refused 'no such directory.*(MPI rank 1)' \
  "$@" -n 1 "${short[@]}" : -n 1 "$duet" generate "$dir/nothing" --prompt-token-ids 0,5,7
refused "rank 1: CPU level 'nonsense'" \
  "$@" -n 1 "${short[@]}" : -n 1 env DUET_CPU=nonsense "${short[@]}"
refused 'rank counts that work: 1, 2, 4, 8' "$@" -n 3 "${short[@]}"

# duet starts mpirun by itself: the same bytes, and exit codes come through.
"$duet" logits "$model" "${ids[@]}" -tp 2 --output "$dir/threads" 2> /dev/null
"$duet" --hosts localhost -tp 2 logits "$model" "${ids[@]}" --output "$dir/mpi" 2> "$dir/err" || fail "--hosts: $(cat "$dir/err")"
cmp "$dir/threads" "$dir/mpi" || fail "--hosts and thread ranks differ"
DUET_HOSTS=localhost:2 DUET_MAX_TOKENS=3 "$duet" generate "$model" --prompt "In the beginning" --json "$dir/json" > "$dir/out" 2> "$dir/err" ||
  fail "DUET_HOSTS: $(cat "$dir/err")"
grep -q '^\[3 tokens' "$dir/out" || fail "a variable did not reach the ranks: $(cat "$dir/out")"
grep -q '"distributed_executor_backend": "mpi"' "$dir/json" || fail "DUET_HOSTS started no mpirun: $(cat "$dir/json")"
refused 'no such directory' "$duet" generate "$dir/nothing" --prompt-token-ids 0 --hosts localhost:2
refused 'mpirun or srun started this process already' "$@" -n 2 "${short[@]}" --hosts localhost:2

# A rank that is killed ends the job. The rank leaves its own process id, so that no other is hit.
long=("$duet" generate "$model" --prompt-token-ids 0,5,7 --max-tokens 4000 --ignore-eos --threads 1)
"$@" -n 1 "${long[@]}" : -n 1 bash -c 'echo $$ > "$0.new" && mv "$0.new" "$0" && exec "$@"' "$dir/pid" "${long[@]}" \
  > "$dir/out" 2> "$dir/err" &
job=$!
for _ in $(seq 200); do
  [ -e "$dir/pid" ] && break
  sleep 0.1
done
[ -e "$dir/pid" ] || fail "the job did not start: $(cat "$dir/err")"
victim=$(cat "$dir/pid")
sleep 1
kill -9 "$victim"
for _ in $(seq 300); do
  kill -0 "$job" 2> /dev/null || break
  sleep 0.1
done
! kill -0 "$job" 2> /dev/null || { kill "$job"; fail "the job outlives a killed rank"; }
! wait "$job" || fail "a job with a killed rank succeeded"
echo "passed"
