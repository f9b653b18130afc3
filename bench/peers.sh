#!/usr/bin/env bash
# Duet beside ik_llama.cpp, one rank, the same shape with random weights, runs in turns; prints one table.
#   bench/peers.sh [--shapes "deepseek-678m llama-720m"] [--threads "1 2"] [--formats "f32 bf16 8bit"] [--repeats 3] [--work DIR]
# Everything fetched and built lies in DIR (default: build/peers), nothing of it in the tree. Variables: DUET
# (the binary, default build/duet), IK_SOURCE (repository to clone), IK_COMMIT, LLAMA_BENCH (a llama-bench of
# llama.cpp, measured as well).
set -euo pipefail
cd "$(dirname "$0")/.."
shapes="deepseek-678m" threads="1 2" repeats=3 formats="f32 bf16 8bit" work=build/peers
while [ $# -gt 0 ]; do
  case "$1" in
    --shapes) shapes="$2" ;; --threads) threads="$2" ;; --repeats) repeats="$2" ;; --formats) formats="$2" ;;
    --work) work="$2" ;;
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
    -DGGML_IQK_FA_ALL_QUANTS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF > "$work/cmake.log"
  cmake --build "$ik/build" --target llama-bench llama-quantize -j "$(nproc)" > "$work/build.log" 2>&1
fi
for shape in $shapes; do
  model="$work/$shape"
  if [ ! -f "$model-f32.gguf" ]; then
    [ -d "$work/venv" ] || python3 -m venv "$work/venv"
    "$work/venv/bin/pip" -q install gguf numpy
    "$work/venv/bin/python" tools/make_random_gguf.py "models/configs/$shape.json" "$work/new.gguf"
    mv "$work/new.gguf" "$model-f32.gguf"
  fi
  [ -f "$model-bf16.gguf" ] || "$bin/llama-quantize" "$model-f32.gguf" "$model-bf16.gguf" bf16 > "$work/quantize.log" 2>&1
  # The fastest of its 8-bit formats with AVX2 and AVX-512 alike.
  [ -f "$model-8bit.gguf" ] || "$bin/llama-quantize" "$model-f32.gguf" "$model-8bit.gguf" q8_kv_r8 > "$work/quantize.log" 2>&1
done

results="$work/results.txt"
: > "$results"
# llama_bench WHO BINARY SHAPE THREADS FORMAT [FLAGS]
llama_bench() {
  taskset -c "0-$(($4 - 1))" "$2" -m "$work/$3-$5.gguf" -t "$4" -p 512 -n 64 -r 1 -o json "${@:6}" 2>/dev/null |
    python3 -c 'import json,sys; [print(*sys.argv[1:], "prefill" if r["n_prompt"] else "decode", r["avg_ts"]) for r in json.load(sys.stdin)]' \
      "$1" "$3" "$4" "$5" >> "$results"
}
for t in $threads; do
  for format in $formats; do
    case "$format" in
      f32) flags="--dtype float32" ;; bf16) flags="--dtype bfloat16" ;; 8bit) flags="--dtype bfloat16 -q w8a8" ;;
      *) echo "peers.sh: --formats takes f32, bf16 and 8bit" >&2; exit 2 ;;
    esac
    for _ in $(seq "$repeats"); do
      for shape in $shapes; do
        # shellcheck disable=SC2086  # several words
        taskset -c "0-$((t - 1))" "$duet" bench engine "models/configs/$shape.json" --load-format dummy \
          --threads "$t" $flags --repeats 1 --gen-tokens 64 --json - 2>/dev/null |
          python3 -c 'import json,sys; [print("Duet", *sys.argv[1:], r["phase"], r["tokens_per_second"]) for r in json.load(sys.stdin)]' \
            "$shape" "$t" "$format" >> "$results"
        # Repacked weights, flash attention, latent attention and fused experts: its fastest settings here.
        llama_bench ik_llama.cpp "$bin/llama-bench" "$shape" "$t" "$format" -rtr 1 -fa 1 -mla 3 -fmoe 1
        [ -z "${LLAMA_BENCH:-}" ] || llama_bench llama.cpp "$LLAMA_BENCH" "$shape" "$t" "$format" -fa 1
      done
    done
  done
done
python3 - "$results" <<'PYTHON'
import collections, statistics, sys
runs, peers = collections.defaultdict(list), {}
for line in open(sys.argv[1]):
    who, shape, threads, weights, phase, rate = line.split()
    runs[shape, threads, weights, phase, who].append(float(rate))
    if who != "Duet":
        peers[who] = None
head = ["shape", "threads", "weights", "phase", "Duet, tokens/s"]
for peer in peers:
    head += [f"{peer}, tokens/s", "ratio"]
print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
for case in dict.fromkeys(k[:4] for k in runs):
    def of(who):
        v = runs.get((*case, who))
        return (statistics.median(v), max(v) - min(v)) if v else (float("nan"), 0.0)
    own = of("Duet")
    cells = [f"{own[0]:.1f} (spread {own[1]:.1f})"]
    for peer in peers:
        other = of(peer)
        cells += [f"{other[0]:.1f} (spread {other[1]:.1f})", f"{own[0] / other[0]:.2f}"]
    print("| " + " | ".join([*case, *cells]) + " |")
PYTHON
