# Sourced by the tests and benchmarks that run duet serve as a process: start_server ARGS..., $port, stop_server. Needs
# $duet; leaves its log in $dir/serve.err.
dir=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2> /dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
fail() { echo "FAILED: $1" >&2; tail -n 20 "$dir"/*.err "$dir"/*.out >&2 || true; exit 1; }
start_server() {
  "$duet" serve "$@" 2> "$dir/serve.err" &
  server=$!
  for _ in $(seq 600); do
    port=$(sed -n 's|.*serving .* at https\?://[^:]*:\([0-9]*\),.*|\1|p' "$dir/serve.err")
    [ -z "$port" ] || return 0
    kill -0 "$server" 2> /dev/null || fail "the server ended"
    sleep 0.1
  done
  fail "the server did not start"
}
stop_server() {
  kill -TERM "$server"
  wait "$server" || fail "the server's exit code is $?"
  server=
}
