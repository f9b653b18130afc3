#!/usr/bin/env bash
# The benchmark that the overlap was first measured with, scaled to this machine: a server per way of overlap
# (off, on, auto), the same load on each, on both expert paths.
#   bench/seed_serving.sh [LINK]          two thread ranks with a shaped link
#   bench/seed_serving.sh --hosts [LINK]  two hosts of one core each made of this machine (two_hosts.sh; root)
# LINK is e.g. 400mbit; choose it so that off spends 40 to 50 % on communication.
# Variables: DUET (build/duet), MODEL (a config.json or directory), INPUT (tokens of a prompt), PROMPTS,
# CONCURRENCY, RATE, ROUNDS (of the three ways in turns), WAYS, PATHS.
set -euo pipefail
cd "$(dirname "$0")/.."
. bench/figures.sh
hosts=no
if [ "${1-}" = --hosts ]; then hosts=yes; shift; fi
link=${1:-400mbit}
# The ranks of `duet serve` go to these hosts, the client stays beside the first.
if [ $hosts = yes ] && [ -z "${DUET_HOSTS-}" ]; then exec bench/two_hosts.sh --once 2 "$link" bench/seed_serving.sh --hosts "$link"; fi
duet=${DUET:-build/duet} model=${MODEL:-models/configs/deepseek-678m.json}
input=${INPUT:-512} prompts=${PROMPTS:-24} concurrency=${CONCURRENCY:-8} rate=${RATE:-5} rounds=${ROUNDS:-3}
ways=${WAYS:-off on auto} paths=${PATHS:-all-reduce all-to-all}
dir=$(mktemp -d)
declare -A servers=() ports=()
finish() {
  for way in "${!servers[@]}"; do kill "${servers[$way]}" 2> /dev/null || true; done
  rm -rf "$dir"
}
trap finish EXIT

where=(--distributed_executor_backend mp --link-bandwidth "$link")
[ $hosts = no ] || where=()

start() { # way, path
  "$duet" serve --model="$model" --load-format dummy --dtype bfloat16 -q w8a8 -tp=2 --threads 1 --max-num-seqs 390 \
    --max-model-len $((input + 64)) --max-num-batched-tokens $((input * 2)) --block-size 128 \
    "${where[@]}" --no-enable-prefix-caching --kv-cache-memory 512MiB \
    --expert-path "$2" --dbo "$1" --port 0 2> "$dir/$1.err" &
  servers[$1]=$!
  for _ in $(seq 1200); do
    ports[$1]=$(sed -n 's|.*serving .* at http://[^:]*:\([0-9]*\),.*|\1|p' "$dir/$1.err")
    [ -z "${ports[$1]}" ] || return 0
    kill -0 "${servers[$1]}" 2> /dev/null || { cat "$dir/$1.err" >&2; exit 1; }
    sleep 0.1
  done
  echo "the server with --dbo $1 did not start" >&2
  exit 1
}
counter() { curl -sS "http://127.0.0.1:${ports[$1]}/metrics" | awk -v name="$2" 'index($1, name "{") == 1 {print $2}'; }

printf 'CPU: %s; link %s, %s requests of %s tokens and 1 answered, %s at once, %s/s\n' \
  "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)" "$link" "$prompts" "$input" "$concurrency" "$rate"
for path in $paths; do
  for way in $ways; do start "$way" "$path"; done
  for round in $(seq "$rounds"); do
    for way in $ways; do
      "$duet" bench serve --port "${ports[$way]}" --model "$model" --dataset-name random --random-input-len "$input" \
        --random-output-len 1 --num-prompts "$prompts" --max-concurrency "$concurrency" --request-rate "$rate" \
        --metric-percentiles 90 --seed "$round" --save-result --result-dir "$dir" --result-filename "$way.$round.json" \
        > "$dir/$way.$round.out" 2> "$dir/$way.$round.err" || { cat "$dir/$way.$round.err" >&2; exit 1; }
    done
  done
  printf '\n%s: communication %.0f %% of a step with --dbo %s\n' "$path" \
    "$(awk "BEGIN {print 100 * $(counter "${ways%% *}" duet:comm_lane_busy_seconds_total) / $(counter "${ways%% *}" duet:step_seconds_total)}")" \
    "${ways%% *}"
  base_rate='' base_ttft=''
  for way in $ways; do
    throughput=$(for r in $(seq "$rounds"); do field "$dir/$way.$r.json" request_throughput; done | median)
    ttft=$(for r in $(seq "$rounds"); do field "$dir/$way.$r.json" mean_ttft_ms; done | median)
    base_rate=${base_rate:-$throughput} base_ttft=${base_ttft:-$ttft}
    awk -v way="$way" -v t="$throughput" -v l="$ttft" -v bt="$base_rate" -v bl="$base_ttft" 'BEGIN {
      printf "  --dbo %-5s %8.3f requests/s (x %.3f)  mean TTFT %9.1f ms (x %.3f)\n", way, t, t / bt, l, l / bl}'
  done
  for way in $ways; do
    kill -TERM "${servers[$way]}"
    wait "${servers[$way]}" || true
    unset "servers[$way]"
  done
done
