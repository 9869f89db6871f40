#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# build.sh NAME...: make sure that a guest or a QEMU is built, print its directory.
#
# guest		our kernel
# guest-debug	our kernel with sanitizers, lockdep and fault injection
# guest-gcov	our kernel, counting which lines of our files run
# guest-kcsan	our kernel, looking for data races in our files
# guest-debian	Debian's binary of the same kernel, for this machine's Debian
# guest-module	Debian's binary of it, with our driver as a module for it
# guest-debian12	Debian 12's own kernel, 6.1
# guest-s390x guest-arm64 guest-i386	our kernel for another architecture
# kunit-uml	our kernel as a program, with nothing but the KUnit suites
# qemu		our QEMU
# qtests	the tests of the device by itself, for it
# qemu-gcov	our QEMU and the tests, counting the same
# qemu-fuzz	a fuzzer of our device, with sanitizers: qemu-fuzz-x86_64
# qemu-arch	our QEMU for s390x and arm64
# qemu-stock	Debian 13's binary of the same QEMU
# uapi		the series' header for user space, below include/uapi
# module	the driver for a kernel without the series; prints the module's path
# deb		a package of its source for DKMS
# deb-qemu	a source package of Debian's QEMU with the series; prints its path
# root-bookworm root-trixie	a Debian in a directory, with Linux 6.12, its headers and dkms
# sources	only download
# tree		only unpack the sources and apply the series
# configured	and configure our kernel
#
# A guest directory holds a kernel, on x86-64 as bzImage, too; its modules, and modules.order
# with their names in load order, in early.order those that the lab's channel needs; and
# busybox if it is not for this machine. A QEMU directory holds qemu-system-x86_64 and python/ with
# QEMU's own classes. Downloads and finished builds live in $CACHE, the latter under a hash
# of all that they were built from.
set -euo pipefail
# Debian's Python, not a private one.
export PATH=/usr/bin:$PATH

top=$(cd "$(dirname "$0")/.." && pwd)
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/balloon}
BUILD=${BUILD:-$top/build}
JOBS=${JOBS:-$(nproc)}
lab=tools/testing/selftests/balloon/qemu
dl=$CACHE/dl
mkdir -p "$dl/apt" "$BUILD"

say() { printf '%s\n' "$*" >&2; }

# What BASE says: base NAME package|version|suite
base() {
	awk -F '\t' -v n="$1" -v what="$2" '
		/^# name/ { for (i = 1; i <= NF; i++) at[$i] = i }
		$1 == n { print $at[what] }' "$top/BASE"
}

# Run a long step: its output goes to a log, a line on the terminal says how far it is.
step() {
	local what=$1 log=$2 start=$SECONDS
	shift 2
	say "$what (log: $log)"
	"$@" >"$log" 2>&1 </dev/null &
	local pid=$!
	while kill -0 $pid 2>/dev/null; do
		sleep 1
		[ $(((SECONDS - start) % 30)) -ne 0 ] || progress "$log" $((SECONDS - start))
	done
	if ! wait $pid; then
		tail -n 30 "$log" >&2
		say "$what failed, see $log"
		exit 1
	fi
	say "  done in $((SECONDS - start)) s"
}

# Ninja counts its steps. The kernel's build does not, but says a line for each.
progress() {
	local last lines
	last=$(tail -n 1 "$1" | cut -c -60)
	lines=$(wc -l <"$1")
	[[ ${1##*/} != linux* ]] || lines+=" of about 1500"
	case $last in
	\[*) say "  $2 s: $last" ;;
	*) say "  $2 s, $lines lines: $last" ;;
	esac
}

# shellcheck source=scripts/build/sources.sh
. "$top/scripts/build/sources.sh"
# shellcheck source=scripts/build/guests.sh
. "$top/scripts/build/guests.sh"
# shellcheck source=scripts/build/module.sh
. "$top/scripts/build/module.sh"
# shellcheck source=scripts/build/roots.sh
. "$top/scripts/build/roots.sh"
# shellcheck source=scripts/build/qemus.sh
. "$top/scripts/build/qemus.sh"

# A hash of what a build is made of: key NAME SOURCE SERIES CONFIG...
key() {
	local name=$1 make=(make_"${1//-/_}") from=${2##*/} series=$3
	case $name in
	guest-debian* | guest-module) make+=(install_debian_guest unpack_kernel) ;;
	guest*) make+=(configure kernel install_guest make_guest_arch) ;;
	root*) make+=(make_root) ;;
	uapi) make+=(module_source) ;;
	q*) make+=(configure_qemu configure_qemu_lab configure_qemu_gcov configure_qemu_fuzz build_qemu) ;;
	esac
	shift 3
	cd "$top"
	{
		echo "$from"
		[ "$series" = none ] || python3 scripts/series.py key "$series"
		cat /dev/null "$@"
		declare -f "${make[@]}"
		# shellcheck disable=SC2154 # of qemus.sh
		[[ $name != q* ]] || declare -p devices qtests
	} | sha256sum | cut -c -16
}

# Take a finished build from the cache or make it: finished NAME HASH FUNCTION. Who else
# wants the same waits for it.
finished() {
	local dir=$CACHE/$1-$2
	(
		flock 8
		if [ ! -e "$dir/done" ]; then
			rm -rf "$dir" "$dir.tmp"
			mkdir "$dir.tmp"
			"$3" "$dir.tmp" 8>&-
			touch "$dir.tmp/done"
			mv "$dir.tmp" "$dir"
		fi
	) 8>"$CACHE/$1-$2.lock"
	rm -f "$CACHE/$1-$2.lock"
	echo "$dir"
}

main() {
	local name hash c=$lab
	# What a key is made of is named from here.
	cd "$top"
	for name in "$@"; do
		case $name in
		guest)		hash=$(key "$name" "$(fetch_linux)" linux $c/guest.config) ;;
		guest-debug | guest-gcov | guest-kcsan | guest-s390x | guest-arm64 | guest-i386)
			hash=$(key "$name" "$(fetch_linux)" linux $c/guest.config "$c/${name#*-}.config") ;;
		deb)		hash=$(key "$name" "$(fetch_linux)" linux module/Kbuild module/*.[ch] module/debian/[!s]* module/debian/source/* scripts/build/module.sh) ;;
		root-bookworm | root-trixie)	hash=$(key "$name" "$name" none) ;;
		kunit-uml)	hash=$(key "$name" "$(fetch_linux)" linux $c/uml.config) ;;
		guest-module)	hash=$(key "$name" "$(fetch_module_kernel)-$(basename "$(fetch_linux)")" linux module/Kbuild module/*.[ch] scripts/build/module.sh) ;;
		uapi)		hash=$(key "$name" "$(fetch_linux)" linux) ;;
		guest-debian)	hash=$(key "$name" "$(fetch_module_kernel)" none) ;;
		guest-debian12)	hash=$(key "$name" "$(fetch_debian_kernel bookworm)" none) ;;
		qemu | qtests | qemu-gcov | qemu-fuzz | qemu-arch)
			hash=$(key "$name" "$(fetch_qemu)" qemu) ;;
		qemu-stock)	hash=$(key "$name" "$(fetch_debian_qemu | sort | md5sum)" none) ;;
		sources)	fetch_qemu; fetch_linux; fetch_module_kernel; continue ;;
		tree)		tree linux; tree qemu; continue ;;
		module)		build_module; continue ;;
		deb-qemu)	build_deb_qemu; continue ;;
		qemu-step)	build_qemu_step; continue ;;
		configured)	tree linux; configure "$BUILD/linux" "$BUILD/linux-obj" "$top/$c/guest.config"; continue ;;
		*)		say "build.sh: no such thing: $name"; exit 2 ;;
		esac
		finished "$name" "$hash" "make_${name//-/_}"
	done
}

# Read to its end before it runs: it may be edited meanwhile.
main "$@"; exit
