#!/usr/bin/env bash
# What serving costs: the same requests to `duet bench throughput` (no server) and to `duet serve` with as many
# streams at once, and a lone request's time to first token beside `duet bench latency`. In turns, since machines
# wander; ratios are medians over the pairs.
#   bench/serving_cost.sh
# Variables: DUET (build/duet), MODEL (a config.json or directory), STREAMS, INPUT and OUTPUT (tokens), ROUNDS, FLAGS
# (of the engine, for both).
set -euo pipefail
cd "$(dirname "$0")/.."
duet=${DUET:-build/duet} model=${MODEL:-models/configs/deepseek-678m.json}
streams=${STREAMS:-64} input=${INPUT:-128} output=${OUTPUT:-64} rounds=${ROUNDS:-5}
read -ra engine <<< "${FLAGS:---load-format dummy --dtype bfloat16 -q w8a8}"
engine+=(--max-num-seqs "$streams" --max-model-len 1024 --max-num-batched-tokens 2048 --kv-cache-memory 512MiB)
. bench/figures.sh
. tests/serve/process.sh
run() { "$@" > "$dir/run.out" 2> "$dir/run.err" || fail "$*"; }
client() { # NAME, flags
  run "$duet" bench serve --port "$port" --model "$model" --dataset-name random --ignore-eos --save-result \
    --result-dir "$dir" --result-filename "$1.json" "${@:2}"
}

start_server --model="$model" "${engine[@]}" --no-enable-prefix-caching --port 0
printf 'CPU: %s; %s streams of %s + %s tokens; lone requests of 512 tokens\n' \
  "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)" "$streams" "$input" "$output"
for ((round = 0; round < rounds; ++round)); do
  client many --random-input-len "$input" --random-output-len "$output" --num-prompts "$streams" \
    --max-concurrency "$streams" --seed "$round"
  run "$duet" bench throughput "$model" "${engine[@]}" --input-len "$input" --output-len "$output" \
    --num-prompts "$streams" --seed "$round" --output-json "$dir/offline.json"
  client one --random-input-len 512 --random-output-len 1 --num-prompts 8 --max-concurrency 1 --seed "$round"
  run "$duet" bench latency "$model" "${engine[@]}" --input-len 512 --output-len 1 --batch-size 1 --num-iters 8 \
    --num-iters-warmup 2 --output-json "$dir/latency.json"
  awk -v s="$(field "$dir/many.json" total_token_throughput)" -v o="$(field "$dir/offline.json" tokens_per_second)" \
    -v t="$(field "$dir/one.json" median_ttft_ms)" -v l="$(field "$dir/latency.json" avg_latency)" 'BEGIN {
      printf "tokens/s: served %.1f, offline %.1f, ratio %.3f; ms: first token %.1f, offline %.1f, ratio %.3f\n",
        s, o, s / o, t, l * 1e3, t / (l * 1e3 + 2 / 1.1)}' | tee -a "$dir/rounds"
done
awk '{print $7 + 0}' "$dir/rounds" | median | sed 's/^/median: served \/ offline tokens\/s /'
awk '{print $NF}' "$dir/rounds" | median | sed 's/^/median: time to first token \/ (offline prefill + 2 ms \/ 1.1) /'
