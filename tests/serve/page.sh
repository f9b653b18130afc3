#!/usr/bin/env bash
# The built-in page in headless Chromium: it asks, the answer streams in, the last steps are drawn. Skipped
# (77) without Chromium. usage: page.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
browser=
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" > /dev/null; then browser=$name; fi
done
[ -n "$browser" ] || { echo "skipped: no chromium"; exit 77; }
. "$(dirname "$0")/process.sh"
start_server "$model" -tp 2 --threads 1 --port 0 --kv-cache-memory 64MiB
# The browser's clock runs on whenever nothing but the stream is awaited: 1000 s are ten of ours.
timeout 120 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$dir/profile" --virtual-time-budget=1000000 \
  --dump-dom "http://127.0.0.1:$port/?ask=Who%20made%20heaven%3F" > "$dir/page.out" 2> "$dir/browser.err" || fail "the browser"
grep -q 'data-answered="yes"' "$dir/page.out" || fail "no answer came"
grep -q '<div class="assistant">[^<]' "$dir/page.out" || fail "the answer is empty"
grep -q 'tokens/s' "$dir/page.out" || fail "no rate"
grep -q '<rect ' "$dir/page.out" || fail "no step is drawn"
stop_server
echo "passed"
