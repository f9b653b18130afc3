#!/usr/bin/env bash
# Ranks on hosts of their own (bench/two_hosts.sh) compute what thread ranks compute, on both expert
# paths; a run that fails or is ended leaves nothing behind. Exits with 77, and says why, where hosts
# can't be made.
# usage: hosts.sh DUET MODEL TWO_HOSTS
set -euo pipefail
duet=$1 model=$2 two_hosts=$3
skip() { echo "skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "needs root for network namespaces"
for tool in ip tc ethtool mpirun.openmpi; do
  command -v $tool > /dev/null || skip "$tool is not on PATH"
done
probe=duet-probe$$
ip netns add $probe 2> /dev/null || skip "no right to make network namespaces"
ip netns del $probe
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() { echo "FAILED: $1" >&2; exit 1; }
nothing_left() { ! ip netns list | grep -q "^duet$1-" || fail "$2 left namespaces behind"; }

run=(generate "$model" --prompts "$model/prompts.jsonl" --max-tokens 8 --temperature 0 --dbo on --dbo-decode-token-threshold 2)
for hosts in 2 4; do
  for path in all-reduce all-to-all; do
    "$duet" "${run[@]}" -tp $hosts --threads 1 --expert-path $path --output "$dir/threads" 2> /dev/null
    "$two_hosts" --no-verify $hosts 200mbit "$duet" "${run[@]}" --expert-path $path --output "$dir/hosts" 2> "$dir/err" ||
      fail "$hosts hosts, $path: $(cat "$dir/err")"
    cmp "$dir/threads" "$dir/hosts" || fail "$hosts hosts and thread ranks differ ($path)"
  done
done

status=0
"$two_hosts" --no-verify 2 none sh -c 'exit 7' 2> /dev/null &
job=$!
wait $job || status=$?
[ $status = 7 ] || fail "exit code $status where the command's was 7"
nothing_left $job "a command that fails"

# shellcheck disable=SC2016 # $0 is the inner shell's
"$two_hosts" --no-verify 2 none sh -c 'touch "$0" && sleep 60' "$dir/started" > /dev/null 2>&1 &
job=$!
for _ in $(seq 100); do
  [ -e "$dir/started" ] && break
  sleep 0.1
done
[ -e "$dir/started" ] || { kill $job; fail "the command did not start"; }
kill -TERM $job
status=0
wait $job || status=$?
[ $status = 143 ] || fail "exit code $status after SIGTERM"
nothing_left $job "a run that was ended"
echo "passed"
