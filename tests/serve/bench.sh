#!/usr/bin/env bash
# duet bench serve against duet serve, both as processes: every backend and dataset, the table, the JSON
# file. Then the server's command line as vLLM's users write it.
# usage: bench.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
. "$(dirname "$0")/process.sh"

# The line of a deployment elsewhere, flag by flag; only lengths and port are smaller.
start_server --port 0 --model="$model" -tp=2 --max-num-seqs 390 --max-model-len 2048 --max-num-batched-tokens 4096 --block-size 128 \
  --distributed_executor_backend mp --gpu-memory-utilization 0.96 --compilation_config 0 \
  --additional-config '{"torchair_graph_config": {"enabled": false}, "ascend_scheduler_config": {"enabled": true}}' \
  --trust-remote-code --disable-log-requests --no-enable-prefix-caching --threads 1 --kv_cache_memory=64MiB
for flag in --gpu-memory-utilization --compilation_config --additional-config --trust-remote-code \
  --disable-log-requests; do
  [ "$(grep -c -e "$flag has no effect: " "$dir/serve.err")" = 1 ] || fail "$flag: no line of explanation"
done

bench() {
  local name=$1
  shift
  "$duet" bench serve --port "$port" --num-prompts 6 --seed 1 --ignore-eos --save-result --save-detailed \
    --result-dir "$dir" --result-filename "$name.json" "$@" > "$dir/$name.out" 2> "$dir/$name.err" ||
    fail "bench serve ($name)"
  grep -q '^Successful requests: *6 ' "$dir/$name.out" || fail "$name: not every request succeeded"
}
field() { sed -n "s/^  \"$2\": \(.*[^,]\),\?$/\1/p" "$dir/$1.json"; }
expect() { [ "$(field "$1" "$2")" = "$3" ] || fail "$1: $2 is $(field "$1" "$2"), not $3"; }

bench random --dataset-name random --random-input-len 64 --random-output-len 5 --max-concurrency 3 --request-rate 200 \
  --metric-percentiles 90,99 --percentile-metrics ttft,tpot,itl,e2el --goodput ttft:60000 e2el:60000
expect random completed 6
expect random total_input_tokens 384
expect random total_output_tokens 30
expect random max_concurrency 3
expect random request_goodput "$(field random request_throughput)"
for key in p90_ttft_ms p99_tpot_ms median_itl_ms std_e2el_ms; do
  [ -n "$(field random "$key")" ] || fail "no $key"
done
grep -q '^P90 E2EL (ms): ' "$dir/random.out" || fail "no P90 E2EL"
grep -q '^Request goodput (req/s): ' "$dir/random.out" || fail "no goodput"

bench chat --backend openai-chat --random-input-len 20 --random-output-len 4 --random-range-ratio 0.5 \
  --random-prefix-len 8 --burstiness 2 --request-rate inf
expect chat backend '"openai-chat"'

cat > "$dir/share.json" << 'END'
[{"conversations": [{"from": "human", "value": "In the beginning God created the heaven"},
                    {"from": "gpt", "value": "and the earth, and the earth was without form"}]},
 {"conversations": [{"from": "human", "value": "too few turns"}]}]
END
bench share --dataset-name sharegpt --dataset-path "$dir/share.json" --sharegpt-output-len 3
expect share total_output_tokens 18
echo '{"prompt": "And God said"}' > "$dir/custom.jsonl"
bench custom --dataset-name custom --dataset-path "$dir/custom.jsonl" --custom-output-len 2 --temperature 0.5
expect custom total_output_tokens 12

# The issue's own load, fewer and shorter: one token each, so no time per output token.
bench prefill --random-input-len 300 --random-output-len 1 --max-concurrency 8 --request-rate 50 --metric-percentiles 90
expect prefill total_output_tokens 6
expect prefill mean_tpot_ms 0.0

if "$duet" bench serve --port "$port" --num-prompts 2 --model no-such-model --tokenizer "$model" > /dev/null 2> "$dir/wrong.err"; then
  fail "a model that the server lacks was no error"
fi
grep -q 'the model "no-such-model" does not exist' "$dir/wrong.err" || fail "the server's words are missing"
stop_server
if "$duet" bench serve --port "$port" --num-prompts 2 > /dev/null 2> "$dir/gone.err"; then
  fail "no server was no error"
fi
grep -q 'cannot connect to' "$dir/gone.err" || fail "an unreachable server is not named"

"$duet" bench throughput --model "$model" --num-prompts 4 --input-len 16 --output-len 3 --threads 1 \
  --output-json "$dir/throughput.json" > "$dir/throughput.out" 2> "$dir/throughput.err" || fail "bench throughput"
expect throughput num_requests 4
expect throughput total_num_tokens 76
"$duet" bench latency "$model" --batch-size 2 --input-len 8 --output-len 2 --num-iters-warmup 1 --num-iters 3 --threads 1 \
  --output-json "$dir/latency.json" > "$dir/latency.out" 2> "$dir/latency.err" || fail "bench latency"
grep -q '^Avg latency: ' "$dir/latency.out" || fail "no average"
grep -q '^90% percentile latency: ' "$dir/latency.out" || fail "no percentile"
echo "passed"
