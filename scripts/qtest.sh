#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# qtest.sh [PART]: the tests of the device by itself, under QEMU's own qtest, or those with
# this in their names, as many at a time as JOBS says; output is TAP.
set -euo pipefail
cd "$(dirname "$0")/.."
BUILD=${BUILD:-$PWD/build}
qemu=${BALLOON_LAB_QEMU:-$(scripts/build.sh qemu)}
qtests=${BALLOON_LAB_QTESTS:-$(scripts/build.sh qtests)}
part=${1:-}

# A QEMU from the build folder finds no firmware by itself, and the tests take
# the architecture from its name.
wrapper=$BUILD/qtest
mkdir -p "$wrapper"
export QTEST_QEMU_BINARY=$wrapper/qemu-system-x86_64
cat >"$QTEST_QEMU_BINARY" <<END
#!/bin/sh
exec "$qemu/qemu-system-x86_64" -L /usr/share/seabios -L /usr/share/qemu -vga none "\$@"
END
chmod +x "$QTEST_QEMU_BINARY"

# One test wants as many huge pages as its guest has memory, 256 MiB. Guests beside
# may want some, too.
pool=/proc/sys/vm/nr_hugepages
# shellcheck disable=SC2317 # by flock
huge_pages() { echo $(($(cat "$pool") + $1)) >"$pool"; }
export -f huge_pages
export pool
if [ -w $pool ]; then
	trap 'flock $pool bash -c "huge_pages -128"' EXIT
	trap 'exit 1' INT TERM
	flock $pool bash -c 'huge_pages 128' || true
fi

# one PROGRAM TEST: its result, and its output if it failed
# shellcheck disable=SC2317 # by xargs
one() {
	local begin=${EPOCHREALTIME//[.,]/} out skip result tenths
	if out=$(timeout 180 "$1" -p "$2" 2>&1) && grep -q '^ok 1' <<<"$out"; then
		result="ok - $2"
	else
		result="# ${out//$'\n'/$'\n'# }"$'\n'"not ok - $2"
	fi
	tenths=$(((${EPOCHREALTIME//[.,]/} - begin) / 100000))
	skip=$(sed -n 's/^ok 1.*\(# SKIP.*\)/\1/p' <<<"$out")
	result+=" ${skip:-# $((tenths / 10)).$((tenths % 10)) s}"
	flock "$wrapper/lock" printf '%s\n' "$result"
}
export -f one
export wrapper

# Each program and test, a line each
list() {
	local program test
	for program in qos-test tcg-dirty-log-test tcg-memory-map-test virtio-balloon-slice-test \
		virtio-balloon-test; do
		{ "$qtests/$program" -l 2>/dev/null || true; } |
			if [ $program = qos-test ]; then
				grep -E '^/.*/(virtio-balloon-pci-tests/|packed-give-back)'
			else
				grep '^/'
			fi | while IFS= read -r test; do
				[[ $test != *"$part"* ]] || echo "$qtests/$program $test"
			done || echo "none $program"
	done
}
tests=$(list)
bad=0 n=0
while read -r program; do
	echo "not ok $((++n)) - $program has no test"
	bad=1
done < <(sed -n 's/^none //p' <<<"$tests")
tests=$(grep ^/ <<<"$tests") || { echo "not ok - no test has $part in its name"; exit 1; }

while IFS= read -r line; do
	case $line in
	"not ok -"*) bad=1 ;&
	"ok -"*) line=${line/ok -/ok $((++n)) -} ;;
	esac
	printf '%s\n' "$line"
done < <(xargs -P "${JOBS:-$(nproc)}" -L 1 bash -c 'one "$@"' one <<<"$tests")
echo "1..$n"
exit $bad
