#!/usr/bin/env bash
# Runs COMMAND as one MPI rank on each of N hosts made of this machine: network namespaces with a host
# name of their own, two joined by a cable and more by a switch, every link shaped to RATE in both
# directions. Rank i has core i to itself. Made for measuring overlap on a real network stack; exits with COMMAND's status.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: bench/two_hosts.sh [--once] [--no-verify] [--mtu N] N_HOSTS RATE COMMAND...
  RATE         of each link, as tc spells it: 400mbit, 1gbit; or none: not shaped
  --once       run COMMAND once, on the first host, with DUET_HOSTS and Open MPI's variables set so that what it
               starts (duet serve) puts a rank on each host by itself
  --no-verify  do not measure the links before the run (about 2 s per host; needs a C++ compiler)
  --mtu N      bytes per packet, 576 to 32000; default 9000, above 1 Gbit/s 32000, below 100 Mbit/s 1500. The
               cores of this machine play the network cards too: a packet costs the shaper a timer and an
               interrupt, which a card that cuts segments itself spares its host. But an idle link saves up
               credit for two packets, which short messages on a slow link must not feel.
example: bench/two_hosts.sh 2 400mbit build/duet generate models/kjv-8m --prompt "In the beginning God"
Open MPI's own variables reach it: OMPI_MCA_btl_tcp_links=2 bench/two_hosts.sh ...
END
  exit "$1"
}
say() { echo "two_hosts.sh: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

verify=yes mtu='' once=no
while [[ ${1-} == -* ]]; do
  case $1 in
    --once) once=yes ;;
    --no-verify) verify=no ;;
    --mtu) mtu=${2-}; shift ;;
    --mtu=*) mtu=${1#*=} ;;
    -h | --help) usage 0 ;;
    *) say "unknown option $1"; usage 2 ;;
  esac
  shift
done
[ $# -ge 3 ] || usage 2
hosts=$1 rate=$2
shift 2
[[ $hosts =~ ^([1-9]|[1-5][0-9]|6[0-4])$ ]] || die "N_HOSTS is \"$hosts\"; expected 1 to 64" 2
# A packet must fit in the shaper's bucket, which is at most 32 KiB.
[ -z "$mtu" ] || [[ $mtu =~ ^[0-9]{3,5}$ && $mtu -ge 576 && $mtu -le 32000 ]] || die "--mtu is \"$mtu\"; expected 576 to 32000" 2
[ "$(id -u)" = 0 ] || die "needs root: it makes network namespaces. Try: sudo $0 ..."

missing=()
need() { command -v "$1" > /dev/null || missing+=("$2"); }
need ip iproute2
need tc iproute2
need ethtool ethtool
need taskset util-linux
need unshare util-linux
mpirun=$(command -v mpirun.openmpi || command -v mpirun || true)
[ -n "$mpirun" ] || missing+=(openmpi-bin)
[ $verify = no ] || [ "$rate" = none ] || need "${CXX:-c++}" g++
[ ${#missing[@]} = 0 ] || die "not on PATH; as root: apt-get install $(printf '%s\n' "${missing[@]}" | sort -u | xargs)"
[[ $("$mpirun" --version 2>&1) =~ "Open MPI"|OpenRTE ]] || die "$mpirun is not Open MPI's; apt-get install openmpi-bin"

# Names and subnet follow from the process id, so that runs side by side do not meet.
id=duet$$
subnet=10.$((64 + ($$ >> 8) % 64)).$(($$ % 256))
net=$id-net
dir=$(mktemp -d)
child=

# shellcheck disable=SC2317
processes() {
  local i
  for ((i = 0; i < hosts; ++i)); do ip netns pids "$id-$i" 2> /dev/null || true; done
}
# shellcheck disable=SC2317 # called by the trap
cleanup() {
  trap '' INT TERM HUP
  local i try pids
  # mpirun ends its ranks when asked; what is still in a namespace of ours afterwards is killed.
  [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true
  for ((try = 0; try < 120; ++try)); do
    pids=$(processes)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086 # a list
    [ $try -lt 100 ] || kill -KILL $pids 2> /dev/null || true
    sleep 0.05
  done
  for ((i = 0; i < hosts; ++i)); do ip netns del "$id-$i" 2> /dev/null || true; done
  ip netns del "$net" 2> /dev/null || true
  rm -rf "$dir" "${TMPDIR:-/tmp}/ompi.$id"-*  # the second: what a killed mpirun leaves
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# The cores that this process may use, in order.
cores=()
IFS=, read -ra ranges <<< "$(taskset -cp $$ | sed 's/.*: //')"
for range in "${ranges[@]}"; do
  for ((c = ${range%-*}; c <= ${range#*-}; ++c)); do cores+=("$c"); done
done
core_of() { echo "${cores[$(($1 % ${#cores[@]}))]}"; }

# A link must not save up credit while idle, or short messages travel free: the bucket holds 300 µs of
# the rate (a late timer then costs little), two packets at least and 32 KiB at most. For the same
# reason segmentation is off: the shaper must see packets, not 64 KiB at once.
bucket_and_rate() {
  awk -v rate="$1" -v mtu="$mtu" 'BEGIN {
    unit = tolower(rate); sub(/^[0-9.]+/, "", unit); value = rate + 0
    scale["bit"] = 1; scale["kbit"] = 1e3; scale["mbit"] = 1e6; scale["gbit"] = 1e9
    if (!(unit in scale) || value <= 0) exit 1
    rate = value * scale[unit]
    if (mtu == "") mtu = rate > 1e9 ? 32000 : rate < 100e6 ? 1500 : 9000
    bytes = rate / 8 * 300e-6; least = 2 * (mtu + 14)
    if (bytes < least) bytes = least
    if (bytes > 32768) bytes = 32768
    printf "%d %d %d\n", mtu, bytes, rate / 8
  }'
}
if [ "$rate" = none ]; then
  mtu=${mtu:-32000}
else
  read -r mtu bucket bytes_per_s < <(bucket_and_rate "$rate") || die "RATE is \"$rate\"; expected none or like 400mbit, 2.5gbit" 2
fi
shape() {  # NAMESPACE DEVICE
  local namespace=$1 device=$2
  ip -n "$namespace" link set "$device" mtu "$mtu" up
  ip netns exec "$namespace" ethtool -K "$device" tso off gso off gro off > /dev/null
  [ "$rate" = none ] || tc -n "$namespace" qdisc add dev "$device" root tbf rate "$rate" burst "$bucket" latency 100ms
}

# Packets arrive on the core of the host that gets them; the kernel would take the sender's.
receive_on() {  # NAMESPACE CORE
  local mask i
  mask=$(printf '%x' $((1 << $2 % 32)))
  for ((i = 0; i < $2 / 32; ++i)); do mask+=,00000000; done
  ip netns exec "$1" sh -c "echo $mask > /sys/class/net/e0/queues/rx-0/rps_cpus"
}

# Two hosts are joined by one cable: every packet is shaped once, where it leaves its host. More of
# them need a switch, which is shaped at each of its ports too. It has a namespace of its own: no
# firewall rule of this machine applies there, and all devices are gone with the namespaces.
cable=no
[ "$hosts" != 2 ] || cable=yes
host_device() {  # NUMBER
  local i=$1
  shape "$id-$i" e0
  receive_on "$id-$i" "$(core_of "$i")"
  ip -n "$id-$i" addr add "$subnet.$((i + 1))/24" dev e0
  ip -n "$id-$i" link set lo up
  # Cubic sends when acknowledgements come; a paced one would add timers of its own.
  ip netns exec "$id-$i" sysctl -qw net.ipv4.tcp_congestion_control=cubic 2> /dev/null || true
  echo "$subnet.$((i + 1)) $id-$i" >> "$dir/etc_hosts"
  core_of "$i" > "$dir/core.$id-$i"
}
cp /etc/hosts "$dir/etc_hosts"
ip netns add "$net" || die "can't make a network namespace; in a container this needs CAP_NET_ADMIN and CAP_SYS_ADMIN"
for ((i = 0; i < hosts; ++i)); do ip netns add "$id-$i"; done
if [ $cable = yes ]; then
  ip link add e0 netns "$id-0" type veth peer name e0 netns "$id-1"
else
  ip -n "$net" link add br0 type bridge
  ip -n "$net" link set br0 mtu "$mtu" up
fi
for ((i = 0; i < hosts; ++i)); do
  if [ $cable = no ]; then
    ip link add e0 netns "$id-$i" type veth peer name "p$i" netns "$net"
    shape "$net" "p$i"
    ip -n "$net" link set "p$i" master br0
  fi
  host_device "$i"
done
[ "$hosts" -le ${#cores[@]} ] || say "$hosts hosts share ${#cores[@]} cores: right for results, not for timings"

# What mpirun calls in place of ssh: AGENT HOST COMMAND…, to be read by a shell as ssh would have it.
# `ip netns exec` brings a mount namespace, so /etc/hosts is this host's own.
cat > "$dir/agent" <<END
#!/usr/bin/env bash
host=\$1
shift
exec ip netns exec "\$host" taskset -c "\$(cat "$dir/core.\$host")" unshare --uts bash -c \
  'mount --bind "$dir/etc_hosts" /etc/hosts && hostname "\$0" && eval "\$*"' "\$host" "\$@"
END
chmod +x "$dir/agent"

# Host i sends to host i + 1, so each link is measured in both directions; the worst counts.
message=262144
measure_links() {
  local i next server bulk seconds
  for ((i = 0; i < hosts; ++i)); do
    next=$(((i + 1) % hosts))
    ip netns exec "$id-$next" taskset -c "$(core_of $next)" "$dir/link_probe" serve 7000 &
    server=$!
    read -r bulk seconds < <(ip netns exec "$id-$i" taskset -c "$(core_of "$i")" "$dir/link_probe" measure \
      "$subnet.$((next + 1))" 7000 $((bytes_per_s / 2)) $message) || die "the links can't be measured"
    wait $server
    echo "$bulk $seconds"
  done | awk -v rate="$bytes_per_s" -v message=$message -v mtu="$mtu" -v name="$rate" -v hosts="$hosts" '
    { bulk = (NR == 1 || $1 < bulk) ? $1 : bulk; ms = $2 * 1e3
      low = (NR == 1 || ms < low) ? ms : low; high = ms > high ? ms : high }
    END {
      if (NR < hosts) exit 1
      # 52 bytes of a packet are IP and TCP, 14 more Ethernet.
      wire = message / rate * 1e3 * (mtu + 14) / (mtu - 52)
      printf "%d hosts, links of %s: bulk TCP %.4g Mbit/s (%.0f %%), 256 KiB after 1 s of idleness %.2f to %.2f ms (wire time %.2f)\n",
        hosts, name, bulk * 8e-6, 100 * bulk / rate, low, high, wire
      # The bucket is at most an eighth of the message. Late is no credit: TCP starts slowly, cores are shared.
      exit !(bulk >= 0.9 * rate && bulk <= 1.02 * rate && low >= 0.85 * wire && high <= 1.5 * wire + 2)
    }'
}
if [ $verify = yes ] && [ "$rate" != none ] && [ "$hosts" -gt 1 ]; then
  "${CXX:-c++}" -std=c++20 -O1 -o "$dir/link_probe" "$(dirname "$0")/link_probe.cc"
  for try in 1 2 3; do
    if line=$(measure_links); then
      say "$line"
      break
    fi
    say "$line${line:+: }not what was asked for (try $try of 3)"
    [ $try -lt 3 ] || die "the links do not keep the rate: is the machine busy, or the rate too high for it? --no-verify goes on regardless"
  done
fi

list=$(for ((i = 0; i < hosts; ++i)); do printf '%s:1,' "$id-$i"; done)
list=${list%,}
# shellcheck disable=SC2054 # the comma is Open MPI's
launch=(env OMPI_MCA_plm_rsh_agent="$dir/agent" OMPI_MCA_pml=ob1 OMPI_MCA_btl=tcp,self
  OMPI_MCA_btl_tcp_if_include="$subnet.0/24" OMPI_MCA_oob_tcp_if_include="$subnet.0/24")
if [ $once = yes ]; then
  launch+=(DUET_HOSTS="$list" "$@")
else
  launch+=("$mpirun" --allow-run-as-root --bind-to none -n "$hosts" --host "$list" "$@")
fi
# In the background, since bash runs a trap only between commands; input is rank 0's all the same.
"$dir/agent" "$id-0" exec "$(printf '%q ' "${launch[@]}")" <&0 &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
