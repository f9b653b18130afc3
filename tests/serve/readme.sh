#!/usr/bin/env bash
# Runs the server commands and every curl example of README.md and docs/serving.md as they stand there,
# but for the port. Skipped (77) without curl. usage: readme.sh DUET SOURCE_DIR
set -euo pipefail
duet=$1
cd "$2"
command -v curl > /dev/null || { echo "skipped: no curl"; exit 77; }
. "$2/tests/serve/process.sh"

# Each curl command, its continuation lines included, as one line.
examples() { sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$1" | grep '^curl '; }
count=0
for file in README.md docs/serving.md; do
  line=$(grep -m 1 -E '^(build/)?duet serve ' "$file") || fail "$file: no command that serves"
  # shellcheck disable=SC2086 # words of a command line
  set -- $line
  shift 2
  start_server "$@" --port 0 --threads 1 --kv-cache-memory 64MiB
  while IFS= read -r example; do
    command=${example//127.0.0.1:8000/127.0.0.1:$port}
    bash -c "set -o pipefail; ${command/curl /curl -sS --fail-with-body -m 60 }" > "$dir/answer.out" 2> "$dir/curl.err" ||
      fail "$file: $example"
    [ -s "$dir/answer.out" ] || fail "$file: no answer to $example"
    ! grep -q '"error"' "$dir/answer.out" || fail "$file: an error to $example"
    count=$((count + 1))
  done < <(examples "$file")
  stop_server
done
[ "$count" -ge 3 ] || fail "only $count examples found"
echo "passed: $count examples"
