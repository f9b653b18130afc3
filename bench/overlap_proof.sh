#!/usr/bin/env bash
# The proof of the overlap: two hosts (bench/two_hosts.sh), a link whose rate gives the communication share
# that is asked for, and the cases that docs/performance.md shows. The first case of a kind of step is run
# twice shortly to find the rate; the next shares follow from the case before. Needs root and an otherwise idle
# machine with two cores; an hour for all where a step of 2048 tokens takes 8 s.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat >&2 <<'END'
usage: bench/overlap_proof.sh [--duet BUILD/duet] [--out DIR] [--repeats N] [--only REGEX] [--args "FLAGS"]
  --out DIR    one JSON file per case and table.md (default overlap-proof)
  --only REGEX cases by name: prefill-8x256-all-reduce-50, decode-128-all-reduce-40, balance-704-..., mixed-..., dense-...
  --args FLAGS more flags for duet bench overlap: "--quantization w8a8"
  WRAP=COMMAND in the environment goes before every measurement
END
  exit "$1"
}
duet=build/duet out=overlap-proof repeats=5 only=. more=
while [ $# -gt 0 ]; do
  case $1 in
    --duet) duet=$2 ;;
    --out) out=$2 ;;
    --repeats) repeats=$2 ;;
    --only) only=$2 ;;
    --args) more=$2 ;;
    -h | --help) usage 0 ;;
    *) usage 2 ;;
  esac
  shift 2
done
mkdir -p "$out"
model=models/configs/deepseek-678m.json

# A measurement; prints its text. RATE is in bytes per second.
measure() {  # RATE JSON REPEATS MODEL FLAGS...
  local rate=$1 json=$2 repeats=$3 model=$4
  shift 4
  # Large packets, as to a card that cuts them itself: else the computing core does that work too, 230 ms of a step
  # of 8 s. Messages of a decode step are short: to them a rested link would lend an eighth of their time.
  local mtu=32000
  [[ "$*" != *"--phase decode"* ]] || mtu=9000
  # shellcheck disable=SC2086 # WRAP and more are lists of words
  ${WRAP:-} bench/two_hosts.sh --no-verify --mtu $mtu 2 "$(awk -v r="$rate" 'BEGIN { printf "%dkbit", r * 8e-3 }')" \
    "$duet" bench overlap "$model" --load-format dummy --dtype bfloat16 -tp 2 --repeats "$repeats" \
    --json "$json" "$@" $more 2> "$out/err" || { cat "$out/err" >&2; return 1; }
}
# The rate that moves the share of the last case in a JSON file to what is wanted: the time on the wire is
# inversely proportional to it.
next_rate() {  # JSON RATE SHARE
  python3 -c 'import json, sys
c = json.load(open(sys.argv[1]))[-1]; share = float(sys.argv[3]) / 100
print(int(float(sys.argv[2]) * c["t_comm_ms"] * (1 - share) / (c["t_compute_ms"] * share)))' "$@"
}
# A KIND is everything but the share; `rate` and `at` go from one case of a kind to the next.
kind= rate=30000000 at=
run_case() {  # KIND SHARE MODEL FLAGS...
  local name=$1-$2 share=$2 model=$3
  [[ $name =~ $only ]] || return 0
  if [ "$kind" != "$1" ]; then
    kind=$1 at=$out/rate.json
    measure "$rate" "$at" 1 "$model" "${@:4}" > /dev/null
    # Once more near the rate that is wanted: what a collective takes apart from the wire counts too.
    rate=$(next_rate "$at" "$rate" "$share")
    measure "$rate" "$at" 1 "$model" "${@:4}" > /dev/null
  fi
  shift 3
  rate=$(next_rate "$at" "$rate" "$share")
  at=$out/$name.json
  echo "== $name: link of $(awk -v r="$rate" 'BEGIN { printf "%.0f", r * 8e-6 }') Mbit/s"
  measure "$rate" "$at" "$repeats" "$model" "$@"
}
# The same model with the feed-forward part scaled, for another balance of attention and experts.
with_experts() {  # INTERMEDIATE
  python3 -c 'import json, sys
c = json.load(open(sys.argv[1])); c["moe_intermediate_size"] = int(sys.argv[2])
json.dump(c, open(sys.argv[3], "w"))' "$model" "$1" "$out/experts-$1.json"
  echo "$out/experts-$1.json"
}

for path in all-reduce all-to-all; do
  for sequences in 128 256; do
    run_case "decode-$sequences-$path" 40 $model --phase decode --tokens $sequences --expert-path $path
  done
  run_case "mixed-1024+64-$path" 40 $model --phase mixed --tokens 1024 --decodes 64 --sequences 4 \
    --expert-path $path
done
for path in all-reduce all-to-all; do
  for sequences in 8 1; do
    for share in 50 35 25; do
      run_case "prefill-${sequences}x$((2048 / sequences))-$path" $share $model \
        --tokens 2048 --sequences $sequences --expert-path $path
    done
  done
done
# Experts of these widths take about 70, 60, 50 and 40 % of a layer's arithmetic.
for width in 704 448 288 192; do
  run_case "balance-$width-all-reduce" 50 "$(with_experts $width)" --tokens 2048 --sequences 8
done
# A dense model.
dense=models/configs/llama-720m.json
for share in 50 35 25; do
  run_case "dense-8x256-all-reduce" $share $dense --tokens 2048 --sequences 8
done
run_case "dense-decode-128-all-reduce" 40 $dense --phase decode --tokens 128
rm -f "$out/rate.json" "$out/err"
python3 tools/overlap_table.py "$out"/*-[0-9][0-9].json > "$out/table.md"
cat "$out/table.md"
