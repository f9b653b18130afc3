#!/usr/bin/env bash
# Off, on and auto over a grid: tokens per step × link rates × both expert paths × prefill and decode, on two
# hosts (bench/two_hosts.sh), in paired and interleaved runs; and steps of up to 65 536 tokens in virtual time.
# Writes a Markdown table, and heat maps of the speed-up as SVG. Needs root and an otherwise idle machine
# with two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat >&2 <<'END'
usage: bench/overlap_grid.sh [--duet BUILD/duet] [--out DIR] [--repeats N] [--rates "LIST"] [--prefill LIST]
                             [--decode LIST] [--virtual LIST] [--paths "LIST"] [--model FILE] [--args "FLAGS"]
  --out DIR     one JSON file per run, table.md and heat.svg (default overlap-grid)
  --rates LIST  of the link, as tc spells them; the communication share that each gives is measured
  --args FLAGS  more flags for duet bench overlap: "--quantization w8a8"
  WRAP=COMMAND in the environment goes before every measurement
END
  exit "$1"
}
duet=build/duet out=overlap-grid repeats=5 rates="40mbit 80mbit 160mbit 400mbit 2gbit" more=
prefill=1,8,64,256,1024,2048 decode=1,8,32,128,256 paths="all-reduce all-to-all"
virtual=4096,16384,65536 model=models/configs/deepseek-678m.json
while [ $# -gt 0 ]; do
  case $1 in
    --duet) duet=$2 ;;
    --out) out=$2 ;;
    --repeats) repeats=$2 ;;
    --rates) rates=$2 ;;
    --prefill) prefill=$2 ;;
    --decode) decode=$2 ;;
    --virtual) virtual=$2 ;;
    --paths) paths=$2 ;;
    --model) model=$2 ;;
    --args) more=$2 ;;
    -h | --help) usage 0 ;;
    *) usage 2 ;;
  esac
  [ $# -ge 2 ] || usage 2
  shift 2
done
mkdir -p "$out"

measure() {  # RATE PATH PHASE FLAGS...
  local rate=$1 path=$2 phase=$3
  shift 3
  echo "== $phase, $path, $rate"
  # shellcheck disable=SC2086 # WRAP and more are lists of words
  ${WRAP:-} bench/two_hosts.sh --no-verify 2 "$rate" "$duet" bench overlap "$model" --load-format dummy \
    --dtype bfloat16 -tp 2 --repeats "$repeats" --json "$out/$phase-$path-$rate.json" --expert-path "$path" \
    --phase "$phase" "$@" $more 2> "$out/err" || { cat "$out/err" >&2; return 1; }
}
for path in $paths; do
  for rate in $rates; do
    measure "$rate" "$path" prefill --tokens "$prefill" --sequences 8 --virtual-tokens "$virtual"
    measure "$rate" "$path" decode --tokens "$decode"
  done
done
rm -f "$out/err"
python3 tools/overlap_table.py "$out"/*.json > "$out/table.md"
python3 tools/overlap_table.py --heat-map "$out/heat.svg" "$out"/*.json
cat "$out/table.md"
