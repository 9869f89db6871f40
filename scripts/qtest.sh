#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The tests of the device by itself, under QEMU's own qos-test; output is TAP.
set -eu
cd "$(dirname "$0")/.."
qemu=$(scripts/build.sh qemu)
QTEST_QEMU_BINARY=$qemu/qemu-system-x86_64
export QTEST_QEMU_BINARY
tests=$("$qemu/qos-test" -l 2>/dev/null | grep -E '/virtio-balloon[^/]*(/virtio-balloon-tests)?/' || true)
[ -n "$tests" ] || { echo "not ok - qos-test has no test of the balloon"; exit 1; }
n=0 bad=0
for t in $tests; do
	n=$((n + 1))
	if out=$(timeout 120 "$qemu/qos-test" -p "$t" 2>&1) && echo "$out" | grep -q "^ok 1"; then
		echo "ok $n - $t"
	else
		echo "$out" | sed 's/^/# /'
		echo "not ok $n - $t"
		bad=1
	fi
done
echo "1..$n"
exit $bad
