#!/usr/bin/env bash
# The CLI as a process: interrupts, closed and full standard output. Nothing may crash or hang.
# usage: process.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAILED: $1" >&2; exit 1; }
short=(generate "$model" --prompt-token-ids 0,5,7 --max-tokens 3 --threads 1)

for out in /dev/full closed; do
  status=0
  if [ "$out" = closed ]; then
    "$duet" "${short[@]}" >&- 2> "$dir/err" || status=$?
  else
    "$duet" "${short[@]}" > "$out" 2> "$dir/err" || status=$?
  fi
  [ "$status" = 1 ] || fail "standard output $out: exit code $status"
  grep -q 'cannot write to standard output' "$dir/err" || fail "standard output $out: $(cat "$dir/err")"
done

# A reader that leaves early: the signal may end the program, but not by a crash.
status=0
"$duet" "${short[@]}" --output - 2> "$dir/err" | true || status=$?
case $status in 0 | 1 | 141) ;; *) fail "a closed pipe: exit code $status" ;; esac

# Ctrl-C while thread ranks generate: gone within seconds (124 and 137 are timeout's own verdicts).
status=0
timeout --foreground -s INT -k 20 3 "$duet" generate "$model" --prompt-token-ids 0,5,7 --max-tokens 4000 \
  --ignore-eos --threads 1 -tp 2 --output "$dir/o.jsonl" 2> "$dir/err" || status=$?
[ "$status" = 124 ] || [ "$status" = 130 ] || fail "interrupt: exit code $status: $(cat "$dir/err")"
[ ! -e "$dir/o.jsonl" ] || fail "an interrupted run left a result under its final name"

status=0
DUET_CPU=nonsense "$duet" "${short[@]}" -tp 2 > /dev/null 2> "$dir/err" || status=$?
[ "$status" = 1 ] && [ "$(wc -l < "$dir/err")" = 1 ] || fail "DUET_CPU=nonsense: $(cat "$dir/err")"
echo "passed"
