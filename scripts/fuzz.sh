#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# fuzz.sh [RUNS [SEED]]: the device against random drivers; output is TAP.
#
# The inputs that found something new stay in $BUILD/fuzz/corpus, and the next
# run begins with them. One that fails is kept beside them.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-20000} seed=${2:-1}
dir=${BUILD:-$PWD/build}/fuzz
fuzzer=$(scripts/build.sh qemu-fuzz)/qemu-fuzz-x86_64
log=$dir/log
mkdir -p "$dir/corpus"
rm -f "$dir/input-"*

# Undefined behaviour is a failure as well. Leaks are looked for at the end:
# to do so after each input takes ten times as long as the input.
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1
run=("$fuzzer" --fuzz-target=virtio-balloon-bitmap -detect_leaks=0 -timeout=30)
status=0 start=$SECONDS
"${run[@]}" -runs="$runs" -seed="$seed" -max_len=256 -len_control=0 -entropic=0 \
	-print_coverage=1 -artifact_prefix="$dir/input-" "$dir/corpus" >"$log" 2>&1 || status=$?
seconds=$((SECONDS - start))

done=$(sed -n 's/^#\([0-9]*\)\t.*/\1/p' "$log" | tail -n 1)
done=${done:-0}
echo "# $done inputs in $seconds s, $((done / (seconds ? seconds : 1))) a second," \
	"$(sed -n 's/^#[0-9]*\t.*\(cov: [0-9]* ft: [0-9]* corp: [0-9]*\).*/\1/p' "$log" | tail -n 1)" \
	"of $(sed -n 's/.*(\([0-9]*\) inline 8-bit counters).*/\1/p' "$log" | head -n 1) edges"
# Needs llvm-symbolizer. Half of the edges are those of the sanitizers, to their reports.
for file in slice run records inflate discard misc request; do
	awk -v f="virtio-balloon-$file.c" '/^(UN)?COVERED_FUNC/ && index($0, "/" f ":") {
		n++; split($5, e, "/"); hit += e[1]; all += e[2]; none += /^UN/
	} END { if (n) printf "# %s: %d of %d edges, %d of %d functions\n", f, hit, all, n - none, n }' "$log"
done
if [ $status -eq 0 ]; then
	echo "ok 1 - fuzz: $done inputs, seed $seed"
else
	grep -E 'broken invariant|runtime error|ERROR:|SUMMARY:|^ +#[0-9]+ .*(balloon[a-z_-]*|unused-pages)\.c:' "$log" | head -n 20 |
		sed 's/^/# /' || true
	input=$(find "$dir" -name 'input-*' | head -n 1)
	echo "# log: $log"
	[ -z "$input" ] || echo "# repeat: ${run[*]} $input"
	echo "not ok 1 - fuzz: seed $seed${input:+, input $input}"
fi
echo "1..1"
exit $status
