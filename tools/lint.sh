#!/usr/bin/env bash
# Format check of every source file, then clang-tidy of the named files (default: all of src).
# FORMAT_ONLY=1 stops after the first. clang-tidy looks at each file by itself, so it has a configured folder of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build-lint

mapfile -t sources < <(git ls-files 'src/*.cc' 'src/*.h' 'include/*.h' 'tests/*.cc' 'tests/*.h' 'bench/*.cc' \
  'bench/*.h' 'examples/*.cc' | while read -r file; do [ -f "$file" ] && echo "$file"; done)
clang-format-14 --dry-run -Werror "${sources[@]}"
echo "format: ${#sources[@]} files as .clang-format says"
[ "${FORMAT_ONLY:-0}" = 0 ] || exit 0

cmake --preset release -B "$build" -DDUET_UNITY=OFF > /dev/null
if [ $# -gt 0 ]; then
  files=("$@")
else
  mapfile -t files < <(git ls-files 'src/*.cc')
fi
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 clang-tidy-14 --quiet --extra-arg=-Wno-unknown-warning-option -p "$build" 2> >(grep -v 'warnings generated\|Suppressed\|Use -header-filter' >&2)
echo "clang-tidy: ${#files[@]} files"
