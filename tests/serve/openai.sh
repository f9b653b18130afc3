#!/usr/bin/env bash
# The official openai client against duet serve. Skipped (77) where tools/openai_venv.sh has not been run.
# usage: openai.sh DUET MODEL PYTHON
set -euo pipefail
duet=$1 model=$2 python=$3
if ! "$python" -c 'import openai' 2> /dev/null; then
  echo "skipped: no Python with the openai client at $python (tools/openai_venv.sh makes it)"
  exit 77
fi
. "$(dirname "$0")/process.sh"
start_server "$model" -tp 2 --threads 1 --port 0 --served-model-name kjv --api-key sk-test --dtype float32 \
  --comm-dtype f32 --kv-cache-memory 64MiB
"$python" "$(dirname "$0")/openai_suite.py" "http://127.0.0.1:$port" kjv || fail "cases of the openai client"
stop_server
