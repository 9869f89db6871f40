#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# check.sh [PART...]: tests, two at a time; the slowest and a summary at the end. A test
# that fails names its log. The parts: main (if none is named), arch, steps, debug, kcsan,
# module, coverage, mutants, soak; all: all of them.
set -uo pipefail

cd "$(dirname "$0")/.." || exit 1
BUILD=${BUILD:-$PWD/build}
logs=$BUILD/check
lab=tools/testing/selftests/balloon/qemu
mkdir -p "$logs"

# Print lines together, whoever else prints at the time.
say() {
	(
		flock 7
		printf '%s\n' "$1"
	) 7>>"$logs/say.lock"
}

# Seconds since BEGIN, a former $EPOCHREALTIME
since() {
	local us=$((${EPOCHREALTIME//[.,]/} - ${1//[.,]/}))
	printf '%d.%d s' $((us / 1000000)) $((us / 100000 % 10))
}

# fail WHAT LOG
fail() { say "not ok - $1 # see $2"; }

run() {
	local name=$1 log=$logs/$1.log begin=$EPOCHREALTIME
	shift
	if "$@" >"$log" 2>&1 </dev/null; then
		say "ok - $name # $(since "$begin")"
	else
		say "$(tail -n 20 "$log" | sed 's/^/# /')
not ok - $name # $(since "$begin"), see $log"
	fi
}

# Pass on the results of a program that prints TAP, as they come, each with the comments
# before it.
tap() {
	local name=$1 log=$logs/$1.log begin=$EPOCHREALTIME block='' line
	shift
	"$@" 2> >(tee "$log.err" >&2) </dev/null | tee "$log" | {
		while IFS= read -r line; do
			if [[ $line =~ ^(not )?ok\ *[0-9]*\ *-?\ *(.*) ]]; then
				line="${BASH_REMATCH[1]}ok - $name ${BASH_REMATCH[2]}"
				[[ $line == *'#'* ]] || line+=" # $(since "$begin")"
				[[ $line != not* ]] || line+=", see $log"
				say "$block$line"
				block='' begin=$EPOCHREALTIME
			elif [[ ! $line =~ ^(TAP |1\.\.|[0-9]+ passed|# slowest:) ]]; then
				block+=$line$'\n'
			fi
		done
		[ -z "$block" ] || say "${block%$'\n'}"
	}
	local status=${PIPESTATUS[0]}
	if [ "$status" -ne 0 ] && ! grep -qE '^not ok\b' "$log"; then
		fail "$name ended with $status" "$log"
	fi
}

build() {
	local what begin
	for what in "$@"; do
		begin=$EPOCHREALTIME
		scripts/build.sh "$what" 2>&1 >/dev/null </dev/null | tee "$logs/build-$what.log" >&2 ||
			fail "build $what" "$logs/build-$what.log"
		say "# build $what: $(since "$begin")"
	done
}

# Number the results that come and count them; print the slowest, and the counts.
count() {
	local line end='' number=0 passed=0 failed=0 skipped=0 times=$logs/times
	: >"$times"
	echo 'TAP version 13'
	while IFS= read -r line; do
		if [[ $line =~ ^(not )?ok\ -\ ([^#]*)(.*) ]]; then
			line="${BASH_REMATCH[1]}ok $((++number)) - ${BASH_REMATCH[2]}${BASH_REMATCH[3]}"
			case ${line,,} in
			not*) failed=$((failed + 1)) ;;
			*'# skip'*) skipped=$((skipped + 1)) ;;
			*) passed=$((passed + 1)) ;;
			esac
		elif [[ $line == end ]]; then
			end=1
			continue
		fi
		[[ ! $line =~ ^((not )?ok [0-9]+ - |# )(.*[^ ])( #|:)' '([0-9.]+)' s' ]] ||
			echo "${BASH_REMATCH[5]} ${BASH_REMATCH[3]}" >>"$times"
		printf '%s\n' "$line"
	done
	if [ -z "$end" ]; then
		failed=$((failed + 1))
		echo "not ok $((++number)) - check.sh did not come to its end"
	fi
	echo "# slowest: $(sort -rn "$times" | head -n 10 |
		sed 's/^\([0-9]*\)\S* \(.*\)/\2 \1 s/' | paste -sd , | sed 's/,/, /g')"
	echo "1..$number"
	echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
	[ $failed -eq 0 ]
}

# A kernel that is a program; its log is its standard error.
# shellcheck disable=SC2317 # by tap
uml() {
	"$(scripts/build.sh kunit-uml)/linux" mem=256M stderr=1 kunit_shutdown=halt 2>&1 |
		grep -aE '^ *(KTAP|ok|not ok|#|[0-9]+\.\.)'
}

# All that runs by itself, with one job
single() {
	local -x JOBS=1
	local check
	build tree configured
	for check in lint checkpatch maintainers headers warnings sparse module coccicheck htmldocs; do
		run $check scripts/static.sh $check
	done
	run series-linux scripts/series.py --build "$BUILD" check linux
	run series-qemu scripts/series.py --build "$BUILD" check qemu
	tap qtest scripts/qtest.sh
	tap fuzz scripts/fuzz.sh
	return 0
}

# Guests use one CPU less as long as there is something else to run: it holds the lock.
main() {
	local beside=$logs/beside.lock
	build guest qemu qtests qemu-fuzz uapi guest-debug guest-module guest-debian guest-debian12 qemu-stock
	exec 8>"$beside"
	flock 8
	# In a process group of its own, to be ended with all that it runs
	set -m
	single &
	set +m
	lane=$!
	trap 'kill -- -$lane 2>/dev/null; exit 1' INT TERM
	exec 8>&-
	tap guests python3 $lab/check.py --beside "$beside"
	wait "$lane" || fail "what runs beside the guests" "$logs"
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

module() {
	build guest-module qemu root-bookworm root-trixie
	tap guests-module python3 $lab/check.py --kernel guest-module
	tap package python3 $lab/check.py package
}

coverage() { tap coverage scripts/coverage.py; }

mutants() { tap mutants scripts/mutants.py; }

soak() {
	build guest qemu
	BALLOON_LAB_SOAK=3600 BALLOON_LAB_SEED=$RANDOM tap soak python3 $lab/check.py soak
}

known=(main arch steps debug kcsan module coverage mutants soak)
parts=("${@:-main}")
[ "$*" != all ] || parts=("${known[@]}")
for part in "${parts[@]}"; do
	if [[ " ${known[*]} " != *" $part "* ]]; then
		echo "check.sh: no part is called '$part'" >&2
		exit 2
	fi
done
{
	for part in "${parts[@]}"; do
		$part
	done
	say end
} | count
