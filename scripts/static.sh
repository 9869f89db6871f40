#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# static.sh CHECK...: look at the code without running it. A finding fails.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
BUILD=${BUILD:-$top/build}
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/balloon}
JOBS=${JOBS:-$(nproc)}
src=$BUILD/linux
obj=$BUILD/linux-obj
# Objects of their own: other flags would make the next build of the guest a full one.
chk=$BUILD/linux-check-obj
cd "$top"

# Our C files of the kernel. The driver is judged as if it were ours as well.
ours() { scripts/series.py inputs linux | grep '\.[ch]$'; }
objects="mm/page_alloc.o mm/page_bitmap.o mm/balloon_pages.o mm/spare_pages.o mm/unused_pages.o mm/tests/page_bitmap_kunit.o
	mm/tests/balloon_pages_kunit.o mm/tests/spare_pages_kunit.o mm/tests/unused_pages_kunit.o
	drivers/virtio/virtio_balloon_core.o drivers/virtio/virtio_balloon_bitmap.o
	drivers/virtio/virtio_balloon_jobs.o drivers/virtio/virtio_balloon_misc.o
	drivers/virtio/virtio_balloon_take.o drivers/virtio/tests/virtio_balloon_take_kunit.o
	drivers/virtio/tests/virtio_balloon_bitmap_kunit.o drivers/virtio/tests/virtio_balloon_misc_kunit.o
	drivers/virtio/tests/virtio_balloon_device_kunit.o"
files="$(ours | tr '\n' ' ')drivers/virtio/virtio_balloon_core.c"

kmake() {
	[ -e "$obj/.config" ] || scripts/build.sh configured
	mkdir -p "$chk"
	cmp -s "$obj/.config" "$chk/.config" || cp "$obj/.config" "$chk/.config"
	make -C "$src" O="$chk" LOCALVERSION= -j"$JOBS" --no-print-directory "$@"
}

# The module for kernels without the series: no warning by the compiler or by sparse.
module() {
	local out
	MAKEFLAGS='W=1 C=2 CF=-D__CHECK_ENDIAN__' scripts/build.sh module
	out=$(grep -E "^$BUILD/module/.*(warning|error):" "$BUILD/module.log" |
		grep -v 'virtio_balloon_core.c' || true)
	[ -z "$out" ] || { printf '%s\n' "$out"; return 1; }
}

# Lines of standard input that speak of our files, or our lines, are findings.
findings() {
	local out added pattern
	added=$(scripts/series.py --build "$BUILD" added linux mm/page_alloc.c | paste -sd '|')
	pattern="(${files// /|}|mm/page_alloc\.c:($added)):"
	out=$(grep -E "$pattern" || true)
	[ -z "$out" ] || { printf '%s\n' "$out"; return 1; }
}

# All mails of a series at once, in the tree, whose headers tell which names exist.
checkpatch() {
	local linux qemu
	perl "$src/scripts/checkpatch.pl" --no-tree --strict --terse --no-summary -f module/*.[ch]
	linux=$(scripts/series.py --build "$BUILD" mails linux)
	qemu=$(scripts/series.py --build "$BUILD" mails qemu)
	local GLOBIGNORE="$linux/0000-*:$qemu/0000-*"
	(cd "$src" && perl scripts/checkpatch.pl --strict --terse --no-summary \
		--ignore FILE_PATH_CHANGES "$linux"/*.patch)
	(cd "$BUILD/qemu" && perl scripts/checkpatch.pl --terse --no-summary "$qemu"/*.patch)
}

sparse() {
	# shellcheck disable=SC2086 # words on purpose
	(cd "$src" && touch $files mm/page_alloc.c)
	# shellcheck disable=SC2086
	kmake C=2 CF="-D__CHECK_ENDIAN__ -Wcontext" $objects 2>&1 | findings
}

# All our files at once: file by file takes far longer.
coccicheck() {
	local out dir=$BUILD/cocci
	rm -rf "$dir"
	mkdir -p "$dir"
	# shellcheck disable=SC2086
	(cd "$src" && cp -L $files "$dir/")
	grep -rl 'virtual report' "$src/scripts/coccinelle" --include='*.cocci' | sort >"$BUILD/cocci.scripts"
	[ -s "$BUILD/cocci.scripts" ]
	# A script that spatch cannot run is a finding too: its status fails xargs.
	out=$(xargs -P "$JOBS" -I{} spatch --very-quiet -D report --no-show-diff --no-includes \
		--cocci-file {} --dir "$dir" <"$BUILD/cocci.scripts" 2>"$BUILD/cocci.log") || {
		tail -n 20 "$BUILD/cocci.log"
		return 1
	}
	out=$(grep -v '^$' <<<"$out" || true)
	[ -z "$out" ] || { printf '%s\n' "$out"; return 1; }
}

# Warnings of W=1, and no frame above 512 bytes in files that are all ours.
warnings() {
	# shellcheck disable=SC2086
	(cd "$src" && touch $files mm/page_alloc.c)
	# shellcheck disable=SC2086
	kmake W=1 KCFLAGS=-Wframe-larger-than=512 $objects 2>&1 |
		grep -v 'virtio_balloon_core.c.*\(frame size\|In function\)' | findings
}

htmldocs() {
	local out
	# shellcheck disable=SC2046 # words on purpose
	out=$("$src/scripts/kernel-doc" -none -Wall $(ours) 2>&1) || true
	[ -z "$out" ] || { printf '%s\n' "$out"; return 1; }
	# Debian's Sphinx is older than 6.12 would like for PDF; HTML is fine.
	make -C "$src" SPHINXDIRS="driver-api/virtio mm" BUILDDIR="$BUILD/htmldocs" htmldocs \
		>"$BUILD/htmldocs.log" 2>&1
	if grep -E '(balloon|page_bitmap|(spare|unused)_pages).*(WARNING|ERROR)' "$BUILD/htmldocs.log"; then
		return 1
	fi
	ls "$BUILD/htmldocs/driver-api/virtio/balloon.html" "$BUILD/htmldocs/mm/unused_pages.html" >/dev/null
}

lint() {
	git ls-files -z '*.sh' .ci/run scripts/build.sh scripts/static.sh | sort -zu | xargs -0 shellcheck
	git ls-files -z '*.py' | xargs -0 python3 -m py_compile
	make -s help >/dev/null
	git ls-files -z ':!COPYING' | xargs -0 codespell -L damon,inflight,parm,upto
	# Every file says its licence.
	local file
	git ls-files ':!COPYING' ':!README' ':!BASE' ':!figures' ':!MAINTAINERS' ':!*.patch' ':!.gitignore' ':!module/debian' |
	while read -r file; do
		head -n 24 "$file" | grep -q SPDX-License-Identifier || { echo "$file: no SPDX line"; exit 1; }
	done
}

# maintainers_of KIND PATCHES SECTIONS: one of them names each file that is ours
maintainers_of() {
	local file
	sed -n 's/^Adds: //p' "$2"/*.patch | while read -r file; do
		(cd "$BUILD/$1" && perl scripts/get_maintainer.pl --no-git --no-git-fallback \
			--sections -f "${file#qemu/}" 2>/dev/null) | grep -E "^($3)\$" >/dev/null ||
			{ echo "$file: not in $3"; exit 1; }
	done
}

maintainers() {
	maintainers_of linux patches 'VIRTIO BALLOON'
	maintainers_of qemu qemu/patches 'virtio-balloon|Migration|Memory API|Network devices'
}

# The header for user space compiles by itself, as C90: what the kernel's build does for all.
headers() {
	local log=$BUILD/headers.log header=virtio_balloon.h
	if ! kmake headers >"$log" 2>&1; then
		tail -n 20 "$log"
		return 1
	fi
	gcc -std=c90 -Wall -Wextra -Werror -fsyntax-only -I "$chk/usr/include" -x c /dev/null \
		-include linux/$header -include linux/$header &&
		perl "$src/usr/include/headers_check.pl" "$chk/usr/include" x86 \
			"$chk/usr/include/linux/$header" || return
	# QEMU's copy of what is ours, as its update-linux-headers.sh would write it
	local from="/^struct virtio_balloon_stat {/,\$p"
	diff <(sed -n "$from" "$chk/usr/include/linux/virtio_balloon.h" |
		sed 's/__le\([0-9]*\)/uint\1_t/; s/__attribute__((packed))/QEMU_PACKED/') \
		<(sed -n "$from" "$BUILD/qemu/include/standard-headers/linux/virtio_balloon.h")
}

# steps_of KIND: the commits of a series; a tree to check them out in
steps_of() {
	scripts/series.py --build "$BUILD" mails "$1" >/dev/null &&
	{ [ -e "$BUILD/steps/$1" ] ||
		git -C "$BUILD/$1" worktree add -q --detach "$BUILD/steps/$1" pristine; } &&
	mkdir -p "$BUILD/steps/$1-obj" &&
	git -C "$BUILD/$1" rev-list --reverse pristine..composed | grep .
}

# step KIND TEXT COMMAND...: it succeeds, and does not warn about what we touch. A
# command that fails does not end COMMAND by itself.
step() {
	local tree=$BUILD/steps/$1 text=$2 out
	shift 2
	if ! "$@" >"$tree.log" 2>&1; then
		tail -n 20 "$tree.log"
		return 1
	fi
	out=$(grep -E '(balloon|page_bitmap|page_alloc|unused.pages|late-dirty).*warning' "$tree.log" || true)
	if [ -n "$out" ]; then
		printf '%s\n' "$out"
		# What is built is not built, and warned of, again.
		rm -rf "$tree-obj"
		return 1
	fi
	git -C "$tree" log -1 --format="$text: %s"
}

step_linux() {
	local tree=$BUILD/steps/linux balloon=$1
	local -x CCACHE_DIR=$CACHE/ccache CCACHE_NOHASHDIR=1
	shift
	cp "$obj/.config" "$tree-obj/.config" &&
	"$tree/scripts/config" --file "$tree-obj/.config" --set-val VIRTIO_BALLOON "$balloon" &&
	make -C "$tree" O="$tree-obj" olddefconfig >/dev/null &&
	make -C "$tree" O="$tree-obj" LOCALVERSION= -j"$JOBS" CC="ccache gcc" W=1 "$@"
}

# A guest whose balloon moves, beside memory in use
step_boots() {
	local from=$BUILD/steps/linux-obj dir=$BUILD/steps/guest
	step_linux m bzImage modules && mkdir -p "$dir" &&
	strip -o "$dir/kernel" "$from/vmlinux" && cp "$from/.config" "$from/drivers/virtio/virtio_balloon.ko" "$dir/" &&
	echo virtio_balloon.ko >"$dir/modules.order" &&
	BALLOON_LAB_GUEST=$dir python3 tools/testing/selftests/balloon/qemu/check.py --pfn content
}

# Each step of the series by itself: it must build, without a new warning, with the
# driver built in, without it, and as a module; and boot if mm is another one.
steps() {
	local commits commit balloon changed
	commits=$(steps_of linux)
	for commit in $commits; do
		git -C "$BUILD/steps/linux" checkout -q "$commit"
		for balloon in y n m; do
			step linux "builds, VIRTIO_BALLOON=$balloon" step_linux $balloon mm/ drivers/virtio/
		done
		changed=$(git -C "$BUILD/steps/linux" diff --name-only HEAD~)
		! grep -q '^mm/[^/]*\.c$' <<<"$changed" || step linux boots step_boots
	done
}

step_qemu() {
	scripts/build.sh qemu-step && cat "$BUILD/steps/qemu-obj.log"
}

# The same of QEMU's series.
steps_qemu() {
	local commits commit
	commits=$(steps_of qemu)
	for commit in $commits; do
		git -C "$BUILD/steps/qemu" checkout -q "$commit"
		step qemu builds step_qemu
	done
}

for check in "$@"; do
	# Not "if $check": within a condition, a command that fails does not end it.
	"$check" &
	if wait $!; then
		echo "ok - $check"
	else
		echo "not ok - $check"
		exit 1
	fi
done
