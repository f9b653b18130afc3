#!/usr/bin/env bash
# A thread rank that throws and one that hangs: both are named, requests under way get an error, and the
# server ends with exit code 1. usage: faults.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
command -v curl > /dev/null || { echo "skipped: no curl"; exit 77; }
. "$(dirname "$0")/process.sh"
body='{"prompt": "In the beginning God", "max_tokens": 2000, "ignore_eos": true, "stream": STREAM}'

drill() {  # what the second rank does in its 30th step, and what the log must say of it
  DUET_FAULT_DRILL="1:30:$1" start_server "$model" -tp 2 --threads 1 --port 0 --dbo off --kv-cache-memory 64MiB \
    --stall-timeout 1
  local jobs=()
  for stream in true false; do
    curl -sS -N -m 30 "http://127.0.0.1:$port/v1/completions" -d "${body/STREAM/$stream}" \
      > "$dir/$stream.out" 2> "$dir/$stream.curl.err" &
    jobs+=($!)
  done
  local began=$SECONDS status=0
  wait "$server" || status=$?
  server=
  [ "$status" = 1 ] || fail "$1: exit code $status"
  [ $((SECONDS - began)) -le 10 ] || fail "$1: it took $((SECONDS - began)) s"
  wait "${jobs[@]}" || true
  grep -q "$2" "$dir/serve.err" || fail "$1: the log does not name the rank"
  grep -q '"error"' "$dir/true.out" || fail "$1: no error in the stream"
  grep -q '"error"' "$dir/false.out" || fail "$1: no error for the plain request"
}
drill throw 'rank 1: DUET_FAULT_DRILL says so'
drill hang 'rank 1: compute lane in L[0-9]*.b0 '
echo "passed"
