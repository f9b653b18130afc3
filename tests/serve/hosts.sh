#!/usr/bin/env bash
# Ranks as processes (duet serve --hosts): the same answers as from thread ranks, streams, errors, a client that
# hangs up, a rank that is killed, and nothing left behind. usage: hosts.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
command -v curl > /dev/null || { echo "skipped: no curl"; exit 77; }
. "$(dirname "$0")/process.sh"
common=("$model" --threads 1 --port 0 --dtype float32 --comm-dtype f32 --kv-cache-memory 64MiB)
ask() { curl -sS -m 60 "http://127.0.0.1:$port$1" "${@:2}"; }
prompt='{"prompt": "In the beginning God", "max_tokens": 40, "temperature": 0, "logprobs": 2}'
long='{"prompt": "In the beginning God", "max_tokens": 3000, "ignore_eos": true, "stream": true}'
answer() { ask /v1/completions -d "$prompt" | sed 's/"id":"[^"]*"//; s/"created":[0-9]*//'; }
# The processes of the ranks: children of mpirun, which is the server's child.
ranks() { pgrep -P "$(pgrep -P "$server" -f mpirun)" -x duet; }
gone() {  # PIDS...
  for _ in $(seq 100); do
    kill -0 "$@" 2> /dev/null || return 0
    sleep 0.1
  done
  return 1
}

start_server "${common[@]}" -tp 2
answer > "$dir/threads.out"
stop_server
grep -q '"text":"' "$dir/threads.out" || fail "no text from thread ranks"

start_server "${common[@]}" --hosts localhost:2
answer > "$dir/processes.out"
cmp "$dir/threads.out" "$dir/processes.out" || fail "processes answer otherwise than threads"
ask /v1/completions -N -d '{"prompt": "And", "max_tokens": 5, "stream": true}' > "$dir/stream.out"
[ "$(tail -c 14 "$dir/stream.out" | head -c 12)" = "data: [DONE]" ] || fail "the stream has no end"
[ "$(grep -c '^data: ' "$dir/stream.out")" -ge 6 ] || fail "the stream did not come in pieces"
[ "$(ask /v1/completions -o "$dir/bad.out" -w '%{http_code} %{content_type}' -d '{"prompt": 7')" \
  = "400 application/json" ] || fail "bad JSON"
[ "$(ask '/v1/models/no%20such' -o "$dir/none.out" -w '%{http_code}')" = 404 ] || fail "unknown model"
grep -q 'no such' "$dir/none.out" || fail "the path lost its blank"
[ "$(ask /health -I -o /dev/null -w '%{http_code}')" = 200 ] || fail "health"

jobs=()
for i in $(seq 16); do
  answer > "$dir/many$i.out" &
  jobs+=($!)
done
wait "${jobs[@]}" || fail "requests at once"
for i in $(seq 16); do cmp "$dir/threads.out" "$dir/many$i.out" || fail "request $i of many"; done

curl -sS -N "http://127.0.0.1:$port/v1/completions" -d "$long" > "$dir/hang_up.out" &
client=$!
for _ in $(seq 100); do [ -s "$dir/hang_up.out" ] && break; sleep 0.1; done
kill "$client"
for i in $(seq 50); do
  [ "$(ask /metrics | sed -n 's/^vllm:num_requests_running{.*} //p')" = 0 ] && break
  [ "$i" -lt 50 ] || fail "the request of a client that went away runs on"
  sleep 0.1
done

mapfile -t pids < <(ranks)
[ ${#pids[@]} = 2 ] || fail "${#pids[@]} ranks"
stop_server
gone "${pids[@]}" || fail "ranks outlive a server that was told to end"

# A rank that dies.
start_server "${common[@]}" --hosts localhost:2
mapfile -t pids < <(ranks)
for pid in "${pids[@]}"; do
  tr '\0' '\n' < "/proc/$pid/environ" | grep -qE '^(OMPI_COMM_WORLD_RANK|PMI_RANK)=1$' && victim=$pid
done
curl -sS -N -m 60 "http://127.0.0.1:$port/v1/completions" -d "$long" > "$dir/stream.out" &
client=$!
for _ in $(seq 100); do [ -s "$dir/stream.out" ] && break; sleep 0.1; done
began=$(date +%s%N) status=0
kill -KILL "$victim"
wait "$server" || status=$?
server=
took=$((($(date +%s%N) - began) / 1000000))
[ "$status" = 1 ] || fail "exit code $status after a rank was killed"
[ "$took" -le 5000 ] || fail "it took $took ms"
wait "$client" || true
grep -q '"error"' "$dir/stream.out" || fail "the stream ended without an error"
grep -qiE 'rank 1' "$dir/serve.err" || fail "the log does not name the rank"
gone "${pids[@]}" || fail "ranks outlive the one that died"

# The supervisor dies: nobody can end the ranks but they themselves.
start_server "${common[@]}" --hosts localhost:2
mapfile -t pids < <(ranks)
kill -KILL "$server"
wait "$server" || true
server=
gone "${pids[@]}" || fail "ranks outlive their supervisor"

# The ranks never get ready.
status=0
"$duet" serve "$dir/nowhere" --hosts localhost:2 --port 0 2> "$dir/none.err" || status=$?
[ "$status" = 1 ] || fail "exit code $status without a model"
grep -q 'nowhere' "$dir/none.err" || fail "the missing model is not named"
echo "passed, a killed rank was told after $took ms"
