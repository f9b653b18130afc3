#!/usr/bin/env bash
# Duet beside ik_llama.cpp, one rank, the same shape with random weights, runs in turns; prints one table.
#   bench/peers.sh [--threads "1 2"] [--repeats 3] [--formats "bf16 8bit"] [--work DIR]
# Everything fetched and built lies in DIR (default: build/peers), nothing of it in the tree. Variables: DUET
# (the binary, default build/duet), IK_SOURCE (repository to clone), IK_COMMIT.
set -euo pipefail
cd "$(dirname "$0")/.."
threads="1 2" repeats=3 formats="f32 bf16 8bit" work=build/peers
while [ $# -gt 0 ]; do
  case "$1" in
    --threads) threads="$2" ;; --repeats) repeats="$2" ;; --formats) formats="$2" ;; --work) work="$2" ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
duet="${DUET:-build/duet}"
[ -x "$duet" ] || { echo "peers.sh: $duet is missing; run make, or set DUET" >&2; exit 1; }
mkdir -p "$work"
ik="$work/ik_llama.cpp"
bin="$ik/build/bin"

if [ ! -x "$bin/llama-bench" ] || [ ! -x "$bin/llama-quantize" ]; then
  [ -d "$ik" ] || git clone -q "${IK_SOURCE:-https://github.com/ikawrakow/ik_llama.cpp}" "$ik"
  git -C "$ik" checkout -q "${IK_COMMIT:-8337e4cd3}"
  # It tells models without a query latent by their number of layers; ours has eight.
  sed -i 's/n_layer == 26)/n_layer == 26 || hparams.n_layer == 8)/' \
    "$ik/src/llama-hparams.cpp" "$ik/src/llama-load-tensors.cpp" "$ik/src/graphs/build_deepseek2.cpp"
  cmake -S "$ik" -B "$ik/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF > "$work/cmake.log"
  cmake --build "$ik/build" --target llama-bench llama-quantize -j "$(nproc)" > "$work/build.log" 2>&1
fi
if [ ! -f "$work/f32.gguf" ]; then
  [ -d "$work/venv" ] || python3 -m venv "$work/venv"
  "$work/venv/bin/pip" -q install gguf numpy
  "$work/venv/bin/python" tools/make_random_gguf.py "$work/new.gguf" && mv "$work/new.gguf" "$work/f32.gguf"
fi
[ -f "$work/bf16.gguf" ] || "$bin/llama-quantize" "$work/f32.gguf" "$work/bf16.gguf" bf16 > "$work/quantize.log" 2>&1
[ -f "$work/8bit.gguf" ] || "$bin/llama-quantize" "$work/f32.gguf" "$work/8bit.gguf" q8_0 > "$work/quantize.log" 2>&1

results="$work/results.txt"
: > "$results"
for t in $threads; do
  cores="0-$((t - 1))"
  for format in $formats; do
    case "$format" in
      f32) flags="--dtype float32" ;; bf16) flags="--dtype bfloat16" ;; 8bit) flags="--dtype bfloat16 -q w8a8" ;;
      *) echo "peers.sh: --formats takes f32, bf16 and 8bit" >&2; exit 2 ;;
    esac
    for _ in $(seq "$repeats"); do
      # shellcheck disable=SC2086  # several words
      taskset -c "$cores" "$duet" bench engine models/configs/deepseek-678m.json --load-format dummy \
        --threads "$t" $flags --repeats 1 --gen-tokens 64 --json - 2>/dev/null |
        python3 -c 'import json,sys; [print("duet", *sys.argv[1:], r["phase"], r["tokens_per_second"]) for r in json.load(sys.stdin)]' \
          "$t" "$format" >> "$results"
      # Repacked weights, flash attention, latent attention and fused experts: its fastest settings here.
      taskset -c "$cores" "$bin/llama-bench" -m "$work/$format.gguf" -t "$t" -p 512 -n 64 -r 1 -o json \
        -rtr 1 -fa 1 -mla 3 -fmoe 1 2>/dev/null |
        python3 -c 'import json,sys; [print("ik", *sys.argv[1:], "prefill" if r["n_prompt"] else "decode", r["avg_ts"]) for r in json.load(sys.stdin)]' \
          "$t" "$format" >> "$results"
    done
  done
done
python3 - "$results" <<'PYTHON'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    who, threads, weights, phase, rate = line.split()
    runs[threads, weights, phase, who].append(float(rate))
print("| threads | weights | phase | Duet, tokens/s | ik_llama.cpp, tokens/s | ratio |\n|---|---|---|---|---|---|")
for threads, weights, phase in dict.fromkeys(k[:3] for k in runs):
    cell = {}
    for who in ("duet", "ik"):
        v = runs[threads, weights, phase, who]
        cell[who] = (statistics.median(v), max(v) - min(v)) if v else (float("nan"), 0)
    d, i = cell["duet"], cell["ik"]
    print(f"| {threads} | {weights} | {phase} | {d[0]:.1f} (spread {d[1]:.1f}) | {i[0]:.1f} (spread {i[1]:.1f}) | {d[0] / i[0]:.2f} |")
PYTHON
