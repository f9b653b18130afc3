#!/usr/bin/env bash
# A real Prometheus scrapes /metrics: every family arrives with its type, and each panel of docs/grafana.json has
# data. Skipped (77) without Prometheus or Python. usage: prometheus.sh DUET MODEL
set -euo pipefail
duet=$1 model=$2 board=$(dirname "$0")/../../docs/grafana.json
for need in prometheus python3 curl; do
  command -v "$need" > /dev/null || { echo "skipped: no $need"; exit 77; }
done
. "$(dirname "$0")/process.sh"
prometheus=
trap '[ -z "$prometheus" ] || kill "$prometheus" 2> /dev/null || true; finish' EXIT
start_server "$model" -tp 2 --threads 1 --port 0 --kv-cache-memory 64MiB --served-model-name kjv
for listen in $(seq 19190 19199); do
  cat > "$dir/prometheus.yml" << END
global: {scrape_interval: 250ms, scrape_timeout: 250ms}
scrape_configs:
  - job_name: duet
    static_configs: [{targets: ["127.0.0.1:$port"]}]
END
  prometheus --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/tsdb" --web.listen-address="127.0.0.1:$listen" \
    > "$dir/prometheus.out" 2>&1 &
  prometheus=$!
  for _ in $(seq 100); do
    curl -sf "http://127.0.0.1:$listen/-/ready" > "$dir/ready.out" 2>&1 && kill -0 "$prometheus" 2> /dev/null && break 2
    kill -0 "$prometheus" 2> /dev/null || break # the port is taken
    sleep 0.1
  done
done
kill -0 "$prometheus" 2> /dev/null || fail "Prometheus did not start"
status=0
python3 "$(dirname "$0")/prometheus.py" "http://127.0.0.1:$port" "http://127.0.0.1:$listen" "$board" || status=$?
kill "$prometheus"
wait "$prometheus" || true
prometheus=
[ $status = 0 ] || fail "what Prometheus holds"
stop_server
echo "passed"
