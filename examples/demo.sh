#!/usr/bin/env bash
# What `make demo` runs: 41 prompts with overlap off and on on both expert paths (same tokens), then
# one step of a larger model over a shaped link (how much is hidden), a trace and a chart of one layer.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
out=$build/demo
mkdir -p "$out"

echo "== 41 prompts, 100 tokens each, two ranks: overlap must not change a token"
"$build/offline_dbo" models/kjv-8m models/kjv-8m/prompts.jsonl 100

echo
echo "== A larger model (random weights) over a link that takes about two fifths of the busy time"
"$build/measure_overlap" models/configs/demo.json --share 0.4 --trace-prefix "$out/"

echo
echo "== Where the time went (all-reduce path, all runs of the table)"
"$build/duet" trace summary "$out/all-reduce.json"
for path in all-reduce all-to-all; do
  "$build/duet" trace chart "$out/$path.json" --layer 3 --output "$out/$path-layer3.svg"
done

echo
echo "Open in a browser:        $out/all-reduce-layer3.svg  $out/all-to-all-layer3.svg"
echo "Open in ui.perfetto.dev:  $out/all-reduce.json  $out/all-to-all.json"
echo "Next: $build/duet generate models/kjv-8m --prompt 'In the beginning God' --max-tokens 40 --temperature 0 -tp 2 --dbo on"
