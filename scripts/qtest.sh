#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# qtest.sh [PART]: the tests of the device by itself, under QEMU's own qtest, or those with
# this in their names; output is TAP.
set -eu
cd "$(dirname "$0")/.."
qemu=${BALLOON_LAB_QEMU:-$(scripts/build.sh qemu)}

# A QEMU from the build folder finds no firmware by itself, and the tests take
# the architecture from its name.
wrapper=${BUILD:-$PWD/build}/qtest
mkdir -p "$wrapper"
QTEST_QEMU_BINARY=$wrapper/qemu-system-x86_64
cat >"$QTEST_QEMU_BINARY" <<END
#!/bin/sh
exec "$qemu/qemu-system-x86_64" -L /usr/share/seabios -L /usr/share/qemu -vga none "\$@"
END
chmod +x "$QTEST_QEMU_BINARY"
export QTEST_QEMU_BINARY
n=0 bad=0 part=${1:-}

# One test wants as many huge pages as its guest has memory, 256 MiB.
huge=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
if [ -w "$huge" ]; then
	had=$(cat "$huge")
	trap 'echo "$had" >"$huge"' EXIT
	trap 'exit 1' INT TERM
	echo $((had + 128)) >"$huge" || true
fi

# one PROGRAM TEST
one() {
	case $2 in
	*"$part"*) ;;
	*) return 0 ;;
	esac
	n=$((n + 1))
	if out=$(timeout 180 "$qemu/$1" -p "$2" 2>&1) && echo "$out" | grep -q "^ok 1"; then
		echo "ok $n - $2$(echo "$out" | sed -n 's/^ok 1.*\( # SKIP.*\)/\1/p')"
	else
		echo "$out" | sed 's/^/# /'
		echo "not ok $n - $2"
		bad=1
	fi
}

tests=$("$qemu/qos-test" -l 2>/dev/null | grep '^/.*/virtio-balloon-pci-tests/' || true)
[ -n "$tests" ] || { echo "not ok - qos-test has no test of the balloon"; exit 1; }
for t in $tests; do
	one qos-test "$t"
done
tests=$("$qemu/migration-tcg-test" -l 2>/dev/null | grep '^/' || true)
[ -n "$tests" ] || { echo "not ok - migration-tcg-test has no test"; exit 1; }
for t in $tests; do
	one migration-tcg-test "$t"
done
[ $n -gt 0 ] || { echo "not ok - no test has $part in its name"; exit 1; }
echo "1..$n"
exit $bad
