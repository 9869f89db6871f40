#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# check.sh [PART...]: tests, one after the other; a summary at the end. A test that fails
# names its log. The parts: main (if none is named), arch, steps, debug, kcsan, coverage,
# mutants, soak; all: all of them.
set -uo pipefail

cd "$(dirname "$0")/.." || exit 1
BUILD=${BUILD:-$PWD/build}
logs=$BUILD/check
lab=tools/testing/selftests/balloon/qemu
passed=0 failed=0 skipped=0
mkdir -p "$logs"

# The number of the test that comes next
next() { echo $((passed + failed + skipped + 1)); }

# fail WHAT LOG
fail() {
	echo "not ok $(next) - $1 # see $2"
	failed=$((failed + 1))
}

run() {
	local name=$1 log=$logs/$1.log
	shift
	if "$@" >"$log" 2>&1 </dev/null; then
		echo "ok $(next) - $name"
		passed=$((passed + 1))
	else
		fail "$name" "$log"
		tail -n 20 "$log" | sed 's/^/# /'
	fi
}

# Add the results of a program that prints TAP, as they come, with numbers of ours.
tap() {
	local name=$1 log=$logs/$1.log n line
	shift
	n=$(next)
	"$@" 2> >(tee -a "$log.err" >&2) </dev/null | tee "$log" | while IFS= read -r line; do
		if [[ $line =~ ^(not )?ok\ *[0-9]*\ *-?\ *(.*) ]]; then
			line="${BASH_REMATCH[1]}ok $((n++)) - $name ${BASH_REMATCH[2]}"
			[[ $line != not* || $line == *'#'* ]] || line+=" # see $log"
		elif [[ $line =~ ^(TAP |1\.\.|[0-9]+ passed) ]]; then
			continue
		fi
		printf '%s\n' "$line"
	done
	local status=${PIPESTATUS[0]} bad skip all
	all=$(grep -cE '^(not )?ok\b' "$log")
	bad=$(grep -cE '^not ok\b' "$log")
	skip=$(grep -ciE '^ok\b.*# SKIP' "$log")
	passed=$((passed + all - bad - skip))
	failed=$((failed + bad))
	skipped=$((skipped + skip))
	if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
		fail "$name ended with $status" "$log"
	fi
}

build() {
	local what
	for what in "$@"; do
		scripts/build.sh "$what" 2>&1 >/dev/null | tee "$logs/build-$what.log" >&2 ||
			fail "build $what" "$logs/build-$what.log"
	done
}

# A kernel that is a program; its log is its standard error.
# shellcheck disable=SC2317 # by tap
uml() {
	"$(scripts/build.sh kunit-uml)/linux" mem=256M stderr=1 kunit_shutdown=halt 2>&1 |
		grep -aE '^ *(KTAP|ok|not ok|#|[0-9]+\.\.)'
}

main() {
	build guest qemu qemu-fuzz guest-debug guest-debian guest-debian12 qemu-debian tree configured
	for check in lint checkpatch maintainers headers warnings sparse coccicheck htmldocs; do
		run $check scripts/static.sh $check
	done
	run series-linux scripts/series.py --build "$BUILD" check linux
	run series-qemu scripts/series.py --build "$BUILD" check qemu
	tap qtest scripts/qtest.sh
	tap fuzz scripts/fuzz.sh
	tap guests python3 $lab/check.py
}

arch() {
	scripts/deps.sh arch
	build kunit-uml qemu qemu-arch guest-s390x guest-arm64 guest-i386
	tap kunit-uml uml
	for arch in s390x arm64 i386; do
		tap guests-$arch python3 $lab/check.py --kernel guest-$arch
	done
}

steps() {
	build configured
	run steps scripts/static.sh steps steps_qemu
}

debug() {
	build guest-debug qemu
	tap guests-debug python3 $lab/check.py --kernel guest-debug
}

kcsan() {
	build guest-kcsan qemu
	tap guests-kcsan python3 $lab/check.py --kernel guest-kcsan
}

coverage() { tap coverage scripts/coverage.py; }

mutants() { tap mutants scripts/mutants.py; }

soak() {
	build guest qemu
	BALLOON_LAB_SOAK=3600 BALLOON_LAB_SEED=$RANDOM tap soak python3 $lab/check.py soak
}

known=(main arch steps debug kcsan coverage mutants soak)
parts=("${@:-main}")
[ "$*" != all ] || parts=("${known[@]}")
for part in "${parts[@]}"; do
	if [[ " ${known[*]} " != *" $part "* ]]; then
		echo "check.sh: no part is called '$part'" >&2
		exit 2
	fi
done
echo 'TAP version 13'
for part in "${parts[@]}"; do
	$part
done
echo "1..$((passed + failed + skipped))"
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ $failed -eq 0 ]
