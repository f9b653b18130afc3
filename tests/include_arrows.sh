#!/usr/bin/env bash
# The direction of includes: from every room the headers of the rooms that it may use are found, and
# those of any other room are not, so an include that points up can't compile.
# usage: include_arrows.sh COMPILER SRC ROOMS
set -euo pipefail
compiler=$1 src=$2 rooms=$3
bad=0 checked=0
if grep -rnE '#include "\.\.' "$src"; then
  echo "an include climbs out of its room with ../" >&2
  bad=1
fi
headers=$(cd "$src" && ls ./*/*.h | sed 's#^\./##')
while read -r room reach; do
  flags=()
  for r in $reach; do flags+=("-I$rooms/$r"); done
  seen=$(for h in $headers; do printf '#if __has_include("%s")\nfound %s\n#endif\n' "$h" "$h"; done |
    "$compiler" -x c++ -E -P -std=c++20 "${flags[@]}" -)
  for header in $headers; do
    other=${header%%/*} found=no allowed=no
    [[ $'\n'$seen$'\n' == *$'\n'"found $header"$'\n'* ]] && found=yes
    [[ " $reach " == *" $other "* ]] && allowed=yes
    checked=$((checked + 1))
    if [ $found != $allowed ]; then
      echo "from src/$room, \"$header\" is found: $found, allowed: $allowed" >&2
      bad=1
    fi
  done
done < "$rooms/reach.txt"
echo "$checked pairs of room and header checked"
exit $bad
