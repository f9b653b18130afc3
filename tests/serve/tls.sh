#!/usr/bin/env bash
# HTTPS with a certificate of our own making: curl that trusts it, streaming, plain HTTP refused, clients'
# certificates, and duet bench serve. usage: tls.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2
for tool in openssl curl; do
  command -v "$tool" > /dev/null || { echo "skipped: no $tool"; exit 77; }
done
. "$(dirname "$0")/process.sh"
make_certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$2" \
    -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -keyout "$dir/$1.key" -out "$dir/$1.pem" 2> /dev/null
}
make_certificate server localhost
make_certificate client somebody
args=("$model" --threads 1 --port 0 --kv-cache-memory 64MiB --ssl-certfile "$dir/server.pem" --ssl-keyfile "$dir/server.key")
ask() { curl -sS -m 30 --cacert "$dir/server.pem" "$@" 2> "$dir/curl.err"; }

start_server "${args[@]}"
[ "$(ask "https://localhost:$port/health")" = '{}' ] || fail "GET /health"
ask -N "https://127.0.0.1:$port/v1/completions" -d '{"prompt": "And God", "max_tokens": 5, "stream": true}' > "$dir/stream.out"
grep -q '^data: \[DONE\]' "$dir/stream.out" || fail "a stream over TLS"
# A body of many TLS records, both ways.
{ printf '{"prompt": "'; head -c 300000 /dev/zero | tr '\0' 'a'; printf '"}'; } > "$dir/long.json"
ask "https://localhost:$port/tokenize" -d @"$dir/long.json" > "$dir/long.out"
grep -q '"count":' "$dir/long.out" || fail "a long body over TLS"
if curl -sS -m 10 "https://localhost:$port/health" > /dev/null 2>&1; then fail "an unknown certificate was trusted"; fi
if curl -sS -m 10 "http://localhost:$port/health" > /dev/null 2>&1; then fail "plain HTTP was answered"; fi
"$duet" bench serve --base-url "https://127.0.0.1:$port" --num-prompts 4 --random-input-len 8 --random-output-len 3 \
  --ignore-eos > "$dir/bench.out" 2> "$dir/bench.err" || fail "bench serve over TLS"
stop_server

start_server "${args[@]}" --ssl-ca-certs "$dir/client.pem"
if ask "https://localhost:$port/health" > /dev/null; then fail "no certificate of the client was asked for"; fi
[ "$(ask --cert "$dir/client.pem" --key "$dir/client.key" "https://localhost:$port/health")" = '{}' ] ||
  fail "a client with a certificate"
stop_server
status=0
"$duet" serve "$model" --port 0 --threads 1 --ssl-certfile "$dir/none.pem" --ssl-keyfile "$dir/server.key" 2> "$dir/wrong.err" || status=$?
[ "$status" != 0 ] && grep -q 'none.pem' "$dir/wrong.err" || fail "a missing certificate is not named"
echo "passed"
