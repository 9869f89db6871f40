#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# build.sh NAME: make sure that a guest or a QEMU is built, print its directory.
#
# guest		our kernel
# guest-debug	our kernel with sanitizers, lockdep and fault injection
# guest-gcov	our kernel, counting which lines of our files run
# guest-kcsan	our kernel, looking for data races in our files
# guest-stock	the same configuration, unpatched
# guest-debian	Debian's binary of the same kernel
# guest-debian12	Debian 12's own kernel, 6.1
# guest-s390x guest-arm64 guest-i386	our kernel for another architecture
# kunit-uml	our kernel as a program, with nothing but the KUnit suites
# qemu		our QEMU
# qemu-gcov	our QEMU, counting the same
# qemu-fuzz	a fuzzer of our device, with sanitizers: qemu-fuzz-x86_64
# qemu-arch	our QEMU for s390x and arm64
# qemu-debian	Debian's binary of the same QEMU
# sources	only download
# tree		only unpack the sources and apply the series
# configured	and configure our kernel
#
# A guest directory holds bzImage, its modules, and modules.order with their
# names in load order, in early.order those that the lab's channel needs; and busybox
# if it is not for this machine. A QEMU directory holds qemu-system-x86_64, python/ with
# QEMU's own classes, and for ours qos-test. Downloads and finished builds live
# in $CACHE, the latter under a hash of all that they were built from.
set -euo pipefail
# Debian's Python and meson, not private ones.
export PATH=/usr/bin:$PATH

top=$(cd "$(dirname "$0")/.." && pwd)
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/balloon}
BUILD=${BUILD:-$top/build}
JOBS=${JOBS:-$(nproc)}
lab=tools/testing/selftests/balloon/qemu
dl=$CACHE/dl
mkdir -p "$dl" "$BUILD"

say() { printf '%s\n' "$*" >&2; }
base() { awk -F '\t' -v n="$1" '$1 == n { print $3 }' "$top/BASE"; }

# Run a long step: its output goes to a log, a line on the terminal says how far it is.
step() {
	local what=$1 log=$2 start=$SECONDS
	shift 2
	say "$what (log: $log)"
	"$@" >"$log" 2>&1 </dev/null &
	local pid=$!
	while kill -0 $pid 2>/dev/null; do
		sleep 1
		if [ $(((SECONDS - start) % 30)) -eq 0 ]; then
			say "  $((SECONDS - start)) s, $(wc -l <"$log") lines: $(tail -n 1 "$log" | cut -c -60)"
		fi
	done
	if ! wait $pid; then
		tail -n 30 "$log" >&2
		say "$what failed, see $log"
		exit 1
	fi
	say "  done in $((SECONDS - start)) s"
}

# Download a binary package; the version of BASE if it can be had, else the newest.
fetch_deb() {
	local pkg=$1 version=$2 file
	file=$(find "$dl" -name "${pkg}_${version}_*.deb" | head -n 1)
	if [ -z "$file" ]; then
		(cd "$dl" && apt-get -qq download "$pkg=$version" >/dev/null 2>&1) ||
			(cd "$dl" && apt-get -qq download "$pkg" >/dev/null)
		file=$(find "$dl" -name "${pkg}_*.deb" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
	fi
	[ -n "$file" ] || { say "cannot download $pkg"; exit 1; }
	echo "$file"
}

fetch_linux() { fetch_deb linux-source-6.12 "$(base linux)"; }

fetch_debian_kernel() {
	local pkg version
	if [ "${1:-}" = 12 ]; then
		pkg=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
		fetch_deb "$pkg" "$(apt-cache show "$pkg" | awk '/^Version:/ { print $2; exit }')"
		return
	fi
	version=$(base linux)
	pkg=linux-image-${version%%-*}+deb12-cloud-amd64
	apt-cache show "$pkg" >/dev/null 2>&1 ||
		pkg=$(apt-cache depends linux-image-6.12-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
	fetch_deb "$pkg" "$version"
}

# QEMU's source, by a private list of sources, so that the system's stay as they are.
fetch_qemu() {
	local version=$1 dsc apt=$dl/apt list=$dl/apt/src.sources
	dsc=$(find "$dl" -name "qemu_${version#*:}.dsc" | head -n 1)
	if [ -z "$dsc" ]; then
		mkdir -p "$apt/lists/partial"
		if [ -e /etc/apt/sources.list.d/debian.sources ]; then
			sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$list"
		else
			list=$dl/apt/src.list
			sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$list"
		fi
		local opts=(-qq -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::sourcelist="$list"
			-o Dir::State::lists="$apt/lists")
		apt-get "${opts[@]}" update >/dev/null
		(cd "$dl" && { apt-get "${opts[@]}" --download-only source "qemu=$version" ||
			apt-get "${opts[@]}" --download-only source qemu; } >/dev/null)
		dsc=$(find "$dl" -name 'qemu_7.2*.dsc' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
	fi
	[ -n "$dsc" ] || { say "cannot download the source of QEMU"; exit 1; }
	echo "$dsc"
}

# The busybox of another architecture of Debian, by private lists of packages.
fetch_busybox() {
	local file apt=$dl/apt-$1
	file=$(find "$dl" -name "busybox-static_*_$1.deb" | head -n 1)
	if [ -z "$file" ]; then
		mkdir -p "$apt/lists/partial" "$apt/cache"
		: >"$apt/status"
		local opts=(-qq -o APT::Architecture="$1" -o APT::Architectures::="$1" -o Dir::Cache="$apt/cache"
			-o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status")
		apt-get "${opts[@]}" update >/dev/null
		(cd "$dl" && apt-get "${opts[@]}" download "busybox-static:$1" >/dev/null)
		file=$(find "$dl" -name "busybox-static_*_$1.deb" | head -n 1)
	fi
	[ -n "$file" ] || { say "cannot download busybox-static:$1"; exit 1; }
	echo "$file"
}

# A git repository of the pristine source in $BUILD/$1.
unpack() {
	local what=$1 tree=$BUILD/$1 from
	[ ! -e "$tree/.git/pristine-done" ] || return 0
	rm -rf "$tree" "$tree.tmp"
	mkdir -p "$tree.tmp"
	case $what in
	linux)
		from=$(fetch_linux)
		say "unpacking $(basename "$from")"
		dpkg-deb --fsys-tarfile "$from" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' |
			tar -xJ -C "$tree.tmp" --strip-components=1 ;;
	qemu)
		from=$(fetch_qemu "$(base qemu)")
		say "unpacking $(basename "$from")"
		dpkg-source --no-check -x "$from" "$tree.tmp/src" >/dev/null 2>&1
		mv "$tree.tmp/src" "$tree"
		rm -r "$tree.tmp"
		mv "$tree" "$tree.tmp" ;;
	esac
	cd "$tree.tmp"
	git init -q -b base
	git config gc.auto 0
	git config core.looseCompression 1
	git config user.name "$(git config user.name || echo balloon)"
	git config user.email "$(git config user.email || echo balloon@localhost)"
	git add -Af .
	git commit -qm "$(basename "$from")"
	git tag pristine
	touch .git/pristine-done
	cd "$top"
	mv "$tree.tmp" "$tree"
}

# A hash of what a build is made of: key NAME SOURCE SERIES CONFIG...
key() {
	local make=(make_"${1//-/_}") from=${2##*/} series=$3
	[[ $1 != guest* ]] || make+=(configure kernel install_guest make_guest_arch make_guest_debian)
	[ "$1" != qemu-fuzz ] || make+=(configure_qemu_fuzz)
	shift 3
	cd "$top"
	{
		echo "$from"
		[ "$series" = none ] || python3 scripts/series.py key "$series"
		cat /dev/null "$@"
		declare -f "${make[@]}"
	} | sha256sum | cut -c -16
}

# Take a finished build from the cache or make it: finished NAME HASH FUNCTION
finished() {
	local dir=$CACHE/$1-$2
	if [ ! -e "$dir/done" ]; then
		rm -rf "$dir" "$CACHE/$1"-*.tmp
		mkdir -p "$dir.tmp"
		"$3" "$dir.tmp"
		touch "$dir.tmp/done"
		mv "$dir.tmp" "$dir"
	fi
	echo "$dir"
}

# configure SOURCE OBJECTS CONFIG...
configure() {
	local src=$1 obj=$2
	shift 2
	mkdir -p "$obj"
	if ! cat "$@" | cmp -s - "$obj/.balloon-config"; then
		make -C "$src" O="$obj" tinyconfig >"$obj.config.log" 2>&1
		(cd "$src" && scripts/kconfig/merge_config.sh -m -O "$obj" "$obj/.config" "$@") \
			>>"$obj.config.log" 2>&1
		cat "$@" >"$obj/.balloon-config"
	fi
	make -C "$src" O="$obj" olddefconfig >>"$obj.config.log" 2>&1
	# A dependency that is missing drops an option without a word.
	local lost
	lost=$(cat "$@" | grep '^CONFIG_.*=' | grep -vxFf "$obj/.config" || true)
	[ "$src" != "$BUILD/linux-stock" ] || lost=$(grep -v KUNIT_TEST <<<"$lost" || true)
	[ -z "$lost" ] || { say "options that did not make it: $lost"; exit 1; }
}

# kernel SOURCE OBJECTS CONFIG... : configure and build, with the variables in kflags
kernel() {
	configure "$@"
	step "building $(basename "$2")" "$2.log" \
		make -C "$1" O="$2" -j"$JOBS" LOCALVERSION= "${kflags[@]}" "${IMAGE:-bzImage}" modules
}
kflags=()

# What a guest takes along: install_guest OBJECTS DIR
install_guest() {
	cp "$1/.config" "$2/"
	cp "$1/arch/${ARCH:-x86}/boot/${IMAGE:-bzImage}" "$2/bzImage"
	local m
	for m in lib/kunit/kunit drivers/virtio/virtio_balloon mm/tests/page_bitmap_kunit mm/tests/balloon_pages_kunit \
		mm/tests/unused_pages_kunit drivers/virtio/tests/virtio_balloon_misc_kunit \
		drivers/virtio/tests/virtio_balloon_bitmap_kunit drivers/virtio/tests/virtio_balloon_device_kunit; do
		[ -e "$1/$m.ko" ] || continue
		cp "$1/$m.ko" "$2/"
		echo "${m##*/}.ko" >>"$2/modules.order"
	done
}

make_guest() {
	tree linux
	kernel "$BUILD/linux" "$BUILD/linux-obj" "$top/$lab/guest.config"
	install_guest "$BUILD/linux-obj" "$1"
}

make_guest_debug() {
	tree linux
	kernel "$BUILD/linux" "$BUILD/linux-debug-obj" "$top/$lab/guest.config" "$top/$lab/debug.config"
	install_guest "$BUILD/linux-debug-obj" "$1"
}

# instrument VARIABLE: in kflags, for our files
instrument() {
	local m
	for m in page_bitmap balloon_pages unused_pages virtio_balloon_core virtio_balloon_bitmap \
		virtio_balloon_misc; do
		kflags+=("$1_$m.o=y")
	done
}

make_guest_kcsan() {
	local kflags=(KCSAN_SANITIZE=n)
	instrument KCSAN_SANITIZE
	tree linux
	kernel "$BUILD/linux" "$BUILD/linux-kcsan-obj" "$top/$lab/guest.config" "$top/$lab/kcsan.config"
	install_guest "$BUILD/linux-kcsan-obj" "$1"
}

make_guest_gcov() {
	local kflags=()
	instrument GCOV_PROFILE
	tree linux
	kernel "$BUILD/linux" "$BUILD/linux-gcov-obj" "$top/$lab/guest.config" "$top/$lab/gcov.config"
	install_guest "$BUILD/linux-gcov-obj" "$1"
}

# make_guest_arch NAME ARCH COMPILER IMAGE DIR: NAME is Debian's, and that of a fragment
make_guest_arch() {
	local obj=$BUILD/linux-$1-obj in=$BUILD/linux-$1.config deb=$5/deb
	tree linux
	# What the fragment says of an option replaces what guest.config says.
	awk 'match($0, /CONFIG_[A-Z0-9_]+/) { last[substr($0, RSTART, RLENGTH)] = $0 }
	     END { for (o in last) print last[o] }' "$top/$lab/guest.config" "$top/$lab/$1.config" |
		sort >"$in"
	local -x ARCH=$2 CROSS_COMPILE=$3
	local IMAGE=$4
	kernel "$BUILD/linux" "$obj" "$in"
	install_guest "$obj" "$5"
	dpkg-deb -x "$(fetch_busybox "$1")" "$deb"
	cp "$deb/bin/busybox" "$5/"
	rm -r "$deb"
}

make_guest_s390x() { make_guest_arch s390x s390 s390x-linux-gnu- bzImage "$1"; }
make_guest_arm64() { make_guest_arch arm64 arm64 aarch64-linux-gnu- Image "$1"; }
make_guest_i386() { make_guest_arch i386 i386 i686-linux-gnu- bzImage "$1"; }

make_kunit_uml() {
	local obj=$BUILD/linux-uml-obj
	tree linux
	local -x ARCH=um
	configure "$BUILD/linux" "$obj" "$top/$lab/uml.config"
	step "building $(basename "$obj")" "$obj.log" \
		make -C "$BUILD/linux" O="$obj" -j"$JOBS" LOCALVERSION= linux
	cp "$obj/linux" "$obj/.config" "$1/"
}

make_guest_stock() {
	unpack linux
	[ -e "$BUILD/linux-stock" ] ||
		git -C "$BUILD/linux" worktree add -q --detach "$BUILD/linux-stock" pristine
	kernel "$BUILD/linux-stock" "$BUILD/linux-stock-obj" "$top/$lab/guest.config"
	install_guest "$BUILD/linux-stock-obj" "$1"
}

make_guest_debian() {
	local deb m module
	deb=$(fetch_debian_kernel "${2:-}")
	mkdir "$1/deb"
	dpkg-deb -x "$deb" "$1/deb"
	cp "$1"/deb/boot/vmlinuz-* "$1/bzImage"
	cp "$1"/deb/boot/config-* "$1/.config"
	for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console \
		virtio_balloon; do
		module=$(find "$1/deb" -name "$m.ko*")
		case $module in
		"") continue ;;
		*.xz) xz -dc "$module" ;;
		*) cat "$module" ;;
		esac >"$1/$m.ko"
		[ $m = virtio_balloon ] || echo "$m.ko" >>"$1/early.order"
	done
	echo virtio_balloon.ko >"$1/modules.order"
	rm -r "$1/deb"
}

make_guest_debian12() { make_guest_debian "$1" 12; }

# make_qemu DIR [OBJECTS]
make_qemu() {
	tree qemu
	local obj=${2:-$BUILD/qemu-obj}
	mkdir -p "$obj"
	cd "$obj"
	[ -e build.ninja ] || step "configuring QEMU" "$obj.configure.log" ../qemu/configure \
		--target-list=x86_64-softmmu --without-default-features --enable-system --enable-tcg \
		--enable-kvm --disable-docs --disable-werror --meson=/usr/bin/meson
	[ "$obj" != "$BUILD/qemu-gcov-obj" ] || count_qemu
	step "building QEMU" "$obj.log" ninja -j"$JOBS" qemu-system-x86_64 tests/qtest/qos-test tests/qtest/migration-tcg-test
	cd "$top"
	cp "$obj/qemu-system-x86_64" "$obj/tests/qtest/qos-test" "$obj/tests/qtest/migration-tcg-test" "$1/"
	cp -rL "$BUILD/qemu/python" "$1/python"
}

# Meson has no flags for single files.
count_qemu() {
	awk '/^build / { ours = /c_COMPILER .*(hw\/virtio\/virtio-balloon(-bitmap|-misc)?|unused-pages|late-dirty-log)\.c( |$)/
			 link = /^build qemu-system-x86_64: [a-z]*_LINKER/ }
	     / --coverage$/ { print; next }
	     ours && /^ ARGS = / || link && /^ LINK_ARGS = / { $0 = $0 " --coverage" }
	     { print }' build.ninja >build.ninja.new
	mv build.ninja.new build.ninja
}

make_qemu_gcov() { make_qemu "$1" "$BUILD/qemu-gcov-obj"; }

configure_qemu_fuzz() {
	printf 'CONFIG_%s=y\n' I440FX VIRTIO_PCI VIRTIO_BALLOON >devices.mak
	../qemu/configure --target-list=x86_64-softmmu --without-default-features --enable-system \
		--enable-kvm --disable-tcg --disable-docs --disable-werror --meson=/usr/bin/meson \
		--cc=clang --cxx=clang++ --enable-fuzzing --enable-sanitizers --extra-cflags=-gline-tables-only \
		--without-default-devices --with-devices-x86_64=../../../../qemu-fuzz-obj/devices \
		--firmwarepath=/usr/share/seabios
	/usr/bin/meson configure -Doptimization=1 -Ddebug=false
}

make_qemu_fuzz() {
	"$top/scripts/deps.sh" clang libclang-rt-dev
	tree qemu
	local obj=$BUILD/qemu-fuzz-obj
	mkdir -p "$obj"
	cd "$obj"
	if [ ! -e .configured ]; then
		step "configuring the fuzzer" "$obj.configure.log" configure_qemu_fuzz
		touch .configured
	fi
	# What is to be covered; configuring would write QEMU's own, of all devices.
	ninja build.ninja >>"$obj.configure.log" 2>&1
	printf '%s\n' 'src:*/hw/virtio/virtio-balloon*.c' 'src:*/hw/virtio/virtio.c' \
		'src:*/migration/unused-pages.c' 'src:*/tests/qtest/fuzz/fuzz.c' \
		'src:*/tests/qtest/fuzz/virtio_balloon_fuzz.c' 'fun:*balloon_*' 'fun:virtqueue_*' \
		'fun:unused_pages_*' 'fun:run' 'fun:op_*' 'fun:append_*' 'fun:LLVMFuzzerTestOneInput' \
		>instrumentation-filter
	step "building the fuzzer" "$obj.log" ninja -j"$JOBS" qemu-fuzz-x86_64
	cd "$top"
	cp "$obj/qemu-fuzz-x86_64" "$1/"
}

make_qemu_arch() {
	tree qemu
	local obj=$BUILD/qemu-arch-obj
	mkdir -p "$obj"
	cd "$obj"
	[ -e build.ninja ] || step "configuring QEMU" "$obj.configure.log" ../qemu/configure \
		--target-list=s390x-softmmu,aarch64-softmmu --without-default-features --enable-system \
		--enable-tcg --disable-docs --disable-werror --meson=/usr/bin/meson
	step "building QEMU" "$obj.log" ninja -j"$JOBS" qemu-system-s390x qemu-system-aarch64
	cd "$top"
	cp "$obj/qemu-system-s390x" "$obj/qemu-system-aarch64" "$1/"
	cp -rL "$BUILD/qemu/python" "$1/python"
}

make_qemu_debian() {
	ln -s /usr/bin/qemu-system-x86_64 "$1/"
	unpack qemu
	cp -rL "$BUILD/qemu/python" "$1/python"
}

tree() {
	unpack "$1"
	python3 "$top/scripts/series.py" --build "$BUILD" tree "$1" >&2
}

main() {
	local name hash c=$lab
	for name in "$@"; do
		case $name in
		guest)		hash=$(key "$name" "$(fetch_linux)" linux $c/guest.config) ;;
		guest-debug)	hash=$(key "$name" "$(fetch_linux)" linux $c/guest.config $c/debug.config) ;;
		guest-gcov | guest-kcsan)
			hash=$(key "$name" "$(fetch_linux)" linux $c/guest.config "$c/${name#*-}.config") ;;
		guest-stock)	hash=$(key "$name" "$(fetch_linux)" none $c/guest.config) ;;
		guest-s390x | guest-arm64 | guest-i386)
			hash=$(key "$name" "$(fetch_linux)" linux $c/guest.config "$c/${name#*-}.config") ;;
		kunit-uml)	hash=$(key "$name" "$(fetch_linux)" linux $c/uml.config) ;;
		guest-debian)	hash=$(key "$name" "$(fetch_debian_kernel)" none) ;;
		guest-debian12)	hash=$(key "$name" "$(fetch_debian_kernel 12)" none) ;;
		qemu | qemu-gcov | qemu-fuzz | qemu-arch)
			hash=$(key "$name" "$(fetch_qemu "$(base qemu)")" qemu) ;;
		qemu-debian)	hash=$(key "$name" "$(dpkg-query -W qemu-system-x86)" none) ;;
		sources)	fetch_linux; fetch_debian_kernel; fetch_qemu "$(base qemu)"; continue ;;
		tree)		tree linux; tree qemu; continue ;;
		configured)	tree linux; configure "$BUILD/linux" "$BUILD/linux-obj" "$top/$c/guest.config"; continue ;;
		*)		say "build.sh: no such thing: $name"; exit 2 ;;
		esac
		finished "$name" "$hash" "make_${name//-/_}"
	done
}

main "$@"
