#!/usr/bin/env bash
# The same prompt and seed give the same log-probabilities, to the last digit, from every kind of server: alone, among
# 64 others, with a prefix hit on prompt blocks, after preemption, with overlap off and on; and one rank gives two ranks'
# greedy tokens. Skipped (77) without Python. usage: same_bits.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
. "$(dirname "$0")/process.sh"
common=("$model" --threads 1 --port 0 --dtype float32 --comm-dtype f32 --served-model-name kjv --max-model-len 512)
ask() { # name, what is expected, flags of the server
  start_server "${common[@]}" "${@:3}"
  python3 "$(dirname "$0")/same_bits.py" 127.0.0.1 "$port" "$dir/$1.json" "$2" || fail "$1"
  stop_server
}
same() { # names: all answers are the first one's
  for name in "${@:2}"; do cmp "$dir/$1.json" "$dir/$name.json" || fail "$name answers otherwise than $1"; done
}
ask off nothing -tp 2 --dbo off --no-enable-prefix-caching --kv-cache-memory 64MiB
ask on overlap -tp 2 --dbo on --dbo-prefill-token-threshold 2 --dbo-decode-token-threshold 2 --no-enable-prefix-caching \
  --kv-cache-memory 64MiB
ask cached hits -tp 2 --dbo on --prefix-cache-prompt-only --kv-cache-memory 64MiB --block-size 16
ask preempted preemptions -tp 2 --dbo off --no-enable-prefix-caching --kv-cache-memory 2MiB
same off on cached preempted
ask one nothing -tp 1 --no-enable-prefix-caching --kv-cache-memory 64MiB
for name in off one; do
  python3 -c 'import json, sys; print([c["text"] for c in json.load(open(sys.argv[1]))["greedy"]])' "$dir/$name.json" \
    > "$dir/$name.greedy"
done
cmp "$dir/off.greedy" "$dir/one.greedy" || fail "one rank and two say different things"
echo "passed"
