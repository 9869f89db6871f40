#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Every test, one after the other; a summary at the end. A test that fails names its log.
# check.sh arch: those of other architectures instead; rest: what takes hours; all: all.
set -uo pipefail

cd "$(dirname "$0")/.." || exit 1
BUILD=${BUILD:-$PWD/build}
logs=$BUILD/check
lab=tools/testing/selftests/balloon/qemu
passed=0 failed=0 skipped=0
mkdir -p "$logs"

run() {
	local name=$1 log=$logs/$1.log
	shift
	if "$@" >"$log" 2>&1 </dev/null; then
		echo "ok - $name"
		passed=$((passed + 1))
	else
		echo "not ok - $name # see $log"
		tail -n 20 "$log" | sed 's/^/# /'
		failed=$((failed + 1))
	fi
}

# Add the results of a program that prints TAP.
tap() {
	local log=$logs/$1.log
	shift
	"$@" 2> >(tee -a "$log.err" >&2) </dev/null | tee "$log" | grep --line-buffered -vE '^[0-9]+ passed'
	local status=${PIPESTATUS[0]} fail skip all
	all=$(grep -cE '^(not )?ok\b' "$log")
	fail=$(grep -cE '^not ok\b' "$log")
	skip=$(grep -ciE '^ok\b.*# SKIP' "$log")
	if [ "$status" -ne 0 ] && [ "$fail" -eq 0 ]; then
		echo "not ok - the program ended with $status # see $log"
		fail=1 all=$((all + 1))
	fi
	passed=$((passed + all - fail - skip))
	failed=$((failed + fail))
	skipped=$((skipped + skip))
}

build() {
	local what
	for what in "$@"; do
		scripts/build.sh "$what" >/dev/null ||
			{ echo "not ok - build $what"; failed=$((failed + 1)); }
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

rest() {
	run steps scripts/static.sh steps steps_qemu
	build guest-kcsan
	tap guests-debug python3 $lab/check.py --kernel guest-debug
	tap guests-kcsan python3 $lab/check.py --kernel guest-kcsan
	tap coverage scripts/coverage.py
	tap mutants scripts/mutants.py
	BALLOON_LAB_SOAK=3600 BALLOON_LAB_SEED=$RANDOM tap soak python3 $lab/check.py soak
}

case ${1:-main} in
all)	main; arch; rest ;;
main | arch | rest)	"${1:-main}" ;;
esac
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ $failed -eq 0 ]
