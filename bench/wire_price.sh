#!/usr/bin/env bash
# What a link costs the cores that compute beside it, before Duet sends a byte: the experts of a layer on one core
# of each of two hosts (bench/two_hosts.sh), with the link idle and full of bare TCP both ways, in turns. The
# hosts' network cards are played by the same cores, so this bounds what overlap can reach on such a machine.
# Needs root, a C++ compiler and an otherwise idle machine with two cores; a minute per rate.
#   bench/wire_price.sh [--duet BUILD/duet] [--filter "experts 512 tokens, 6 of 32, 1024 x 704 bf16"] [--turns 3] RATE…
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

duet=$here/../build/duet filter="experts 512 tokens, 6 of 32, 1024 x 704 bf16" turns=3
if [ "${1-}" = --rank ]; then  # on each of the hosts
  dir=$2 duet=$3 filter=$4 turns=$5
  rank=$OMPI_COMM_WORLD_RANK
  own=$(ip -4 -o addr show e0 | sed 's/.*inet \([0-9.]*\)\/.*/\1/')
  peer=${own%.*}.$((3 - ${own##*.}))
  milliseconds() {
    # Without what says that this is a rank of a job.
    env -i PATH="$PATH" DUET_CPU="${DUET_CPU-}" "$duet" bench kernels --threads 1 --filter "$filter" --seconds 3 --json - 2> /dev/null |
      python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["seconds"] * 1e3)'
  }
  meet() {  # NAME
    touch "$dir/$1.$rank"
    for _ in $(seq 600); do
      [ ! -e "$dir/$1.$((1 - rank))" ] || return 0
      sleep 0.05
    done
    echo "wire_price.sh: the other host does not come" >&2
    exit 1
  }
  for turn in $(seq "$turns"); do
    meet "idle$turn"
    milliseconds >> "$dir/idle"
    "$dir/link_probe" serve $((7000 + turn)) 2> /dev/null &
    meet "full$turn"
    "$dir/link_probe" measure "$peer" $((7000 + turn)) 1000000000000 1 &> /dev/null &  # until it is stopped
    milliseconds >> "$dir/full"
    meet "end$turn"
    kill %1 %2 2> /dev/null || true
    wait
  done
  exit 0
fi
while [[ ${1-} == --* ]]; do
  case $1 in
    --duet) duet=$(realpath "$2") ;;
    --filter) filter=$2 ;;
    --turns) turns=$2 ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
[ $# -ge 1 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${CXX:-c++}" -std=c++20 -O1 -o "$dir/link_probe" "$here/link_probe.cc"
for rate in "$@"; do
  rm -f "$dir"/idle* "$dir"/full* "$dir"/end*
  "$here/two_hosts.sh" --no-verify --mtu 32000 2 "$rate" \
    bash "$here/wire_price.sh" --rank "$dir" "$duet" "$filter" "$turns"
  python3 - "$dir" "$rate" <<'PYTHON'
import statistics, sys
idle, full = ([float(line) for line in open(f"{sys.argv[1]}/{name}")] for name in ("idle", "full"))
a, b = statistics.median(idle), statistics.median(full)
print(f"{sys.argv[2]} both ways: {a:.1f} ms with the link idle, {b:.1f} with it full: computing takes {b / a:.3f} times as long")
PYTHON
done
