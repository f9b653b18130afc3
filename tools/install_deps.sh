#!/usr/bin/env bash
# Installs what is missing of the named groups of Debian 12 packages, after saying what; does
# nothing, and needs no root, when all is there. Called by make and .ci/run.
# usage: tools/install_deps.sh [build] [lint] [sanitize] [bench] [serve] [mpich]   (default: build)
set -euo pipefail

packages_of() {
  case "$1" in
    build) echo g++ cmake ninja-build ccache pkg-config libfmt-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev \
      libgtest-dev libgmock-dev libhttp-parser-dev libssl-dev libopenmpi-dev openmpi-bin ;;
    lint) echo clang-format-14 clang-tidy-14 ;;
    sanitize | fuzz) echo clang-14 libclang-rt-14-dev ;;
    bench) echo libbenchmark-dev libopenblas-dev ;;
    serve) echo chromium prometheus ;; # tests of the page and of /metrics
    mpich) echo mpich libmpich-dev ;;
    *)
      echo "tools/install_deps.sh: unknown group \"$1\"; expected build, lint, sanitize, fuzz, bench, serve or mpich" >&2
      return 2
      ;;
  esac
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for group in "${@:-build}"; do
  packages=$(packages_of "$group")
  for package in $packages; do
    installed "$package" || missing+=("$package")
  done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get > /dev/null; then
  echo "Duet needs these Debian 12 packages or their like, and this system has no apt-get: ${missing[*]}" >&2
  exit 1
fi
sudo=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo > /dev/null; then
    echo "Duet needs: ${missing[*]}. Neither root nor sudo; as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  sudo=(sudo)
fi
echo "Installing with apt: ${missing[*]}"
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
