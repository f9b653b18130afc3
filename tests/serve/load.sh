#!/usr/bin/env bash
# Load and abuse: 1000 requests at 256 at once with slow readers, hang-ups, large and malformed bodies, then
# SIGTERM in the middle of streams. LOAD_SECONDS=600 repeats it and watches memory. Skipped (77) without
# Python. usage: load.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
. "$(dirname "$0")/process.sh"
start_server "$model" -tp 2 --threads 1 --port 0 --kv-cache-memory 64MiB --served-model-name kjv --shutdown-timeout 2
python3 "$(dirname "$0")/load.py" 127.0.0.1 "$port" "$server" kjv "${LOAD_SECONDS:-0}" || fail "load"
# Streams that SIGTERM meets half way end properly.
jobs=()
for i in 1 2 3 4; do
  curl -sS -N -m 60 "http://127.0.0.1:$port/v1/completions" \
    -d '{"prompt": "And", "max_tokens": 3900, "ignore_eos": true, "stream": true}' > "$dir/stream$i.out" 2> "$dir/curl$i.err" &
  jobs+=($!)
done
sleep 1
stop_server
wait "${jobs[@]}" || fail "a stream was cut off"
for i in 1 2 3 4; do
  tail -n 3 "$dir/stream$i.out" | grep -q '^data: \[DONE\]' || fail "stream $i has no end"
done
echo "passed"
