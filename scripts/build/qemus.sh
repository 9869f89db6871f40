# shellcheck shell=bash disable=SC2154,SC2164 # variables and set -e are those of build.sh
# SPDX-License-Identifier: GPL-2.0
# How QEMUs are built; read by build.sh. Each make_NAME fills the directory it is given.

# What the lab uses, and no more: QEMU's defaults are half as much again to compile.
devices=(I440FX Q35 MICROVM VIRTIO_PCI VIRTIO_MMIO VIRTIO_BALLOON VIRTIO_BLK VIRTIO_MEM VIRTIO_SERIAL
	VIRTIO_IOMMU VIRTIO_NET VTD SERIAL_PCI VGA_PCI PCIE_PORT HPET VMPORT VMMOUSE PCI_TESTDEV)

# configure_qemu SOURCE ARGUMENT... : in the folder for the objects
configure_qemu() {
	local src=$1
	shift
	"$src/configure" --python=/usr/bin/python3 --without-default-features --enable-system \
		--disable-docs --disable-werror --disable-install-blobs --disable-debug-info "$@"
}

# A QEMU for this machine: configure_qemu_lab SOURCE OBJECTS DEVICE...
configure_qemu_lab() {
	local src=$1 obj=${2##*/}
	shift 2
	printf 'CONFIG_%s=y\n' "$@" >devices.mak
	# Most of a test's time is TCG's, which goes by small functions: it takes longer where each of
	# these clears registers and variables, and finds globals by a table.
	configure_qemu "$src" --target-list=x86_64-softmmu --enable-tcg --enable-kvm --enable-zstd \
		--enable-replication --disable-pie --extra-ldflags=-no-pie \
		--extra-cflags="-ftrivial-auto-var-init=uninitialized -fzero-call-used-regs=skip" \
		--without-default-devices --with-devices-x86_64="../../../../$obj/devices" \
		--cc="ccache gcc" --cxx="ccache g++"
}

# build_qemu OBJECTS TARGETS CONFIGURE... : configure if need be, then build, with ccache
build_qemu() {
	local obj=$1 targets=$2 how
	shift 2
	meson_environment
	local -x CCACHE_DIR=$CACHE/ccache CCACHE_NOHASHDIR=1 CCACHE_COMPILERCHECK=content CCACHE_DEPEND=1
	mkdir -p "$obj"
	cd "$obj"
	# How, in words and in shell
	how=$(printf '%s\n' "$*" "$(declare -f "$1" configure_qemu configure_qemu_lab)")
	if [ "$(cat .configured 2>/dev/null)" != "$how" ]; then
		step "configuring ${obj##*/}" "$obj.configure.log" "$@"
		echo "$how" >.configured
	fi
	# shellcheck disable=SC2086 # words on purpose
	step "building ${obj##*/}" "$obj.log" ninja -j"$JOBS" $targets
	cd "$top"
}

make_qemu() {
	local obj=$BUILD/qemu-obj
	tree qemu
	build_qemu "$obj" qemu-system-x86_64 \
		configure_qemu_lab ../qemu "$obj" "${devices[@]}" LATE_DIRTY_LOG
	cp "$obj/qemu-system-x86_64" "$1/"
	cp -rL "$BUILD/qemu/python" "$1/python"
}

qtests=(qos-test tcg-dirty-log-test tcg-memory-map-test virtio-balloon-slice-test virtio-balloon-test)

make_qtests() {
	local obj=$BUILD/qemu-obj
	tree qemu
	build_qemu "$obj" "${qtests[*]/#/tests/qtest/}" \
		configure_qemu_lab ../qemu "$obj" "${devices[@]}" LATE_DIRTY_LOG
	cp "${qtests[@]/#/$obj/tests/qtest/}" "$1/"
}

# Debian's binary, with the libraries of its own suite
make_qemu_stock() {
	local deb
	unpack qemu
	while read -r deb; do
		dpkg-deb -x "$deb" "$1/root"
	done < <(fetch_debian_qemu)
	cat >"$1/qemu-system-x86_64" <<-'END'
		#!/bin/sh
		root=$(dirname "$(readlink -f "$0")")/root
		lib=$root/usr/lib/x86_64-linux-gnu
		exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib:$lib/pulseaudio" \
			"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/seabios" \
			-L "$root/usr/share/qemu" "$@"
	END
	chmod +x "$1/qemu-system-x86_64"
	cp -rL "$BUILD/qemu/python" "$1/python"
}

# What a step of the series has in build/steps/qemu, for scripts/static.sh
build_qemu_step() {
	local dir=$BUILD/steps
	build_qemu "$dir/qemu-obj" "qemu-system-x86_64 tests/qtest/qos-test" \
		configure_qemu_lab ../qemu "$dir/qemu-obj" "${devices[@]}"
}

# Meson has no flags for single files.
configure_qemu_gcov() {
	configure_qemu_lab "$@"
	awk '/^build / { ours = /c_COMPILER .*(hw\/virtio\/virtio-balloon(-[a-z]*)?|unused-pages|sparse-ram|ram-holes|late-dirty-log)\.c( |$)/
			 link = /^build qemu-system-x86_64: [a-z]*_LINKER/ }
	     / --coverage$/ { print; next }
	     ours && /^ ARGS = / || link && /^ LINK_ARGS = / { $0 = $0 " --coverage" }
	     { print }' build.ninja >build.ninja.new
	mv build.ninja.new build.ninja
}

make_qemu_gcov() {
	local obj=$BUILD/qemu-gcov-obj
	tree qemu
	build_qemu "$obj" "qemu-system-x86_64 ${qtests[*]/#/tests/qtest/}" \
		configure_qemu_gcov ../qemu "$obj" "${devices[@]}" LATE_DIRTY_LOG
	cp "$obj/qemu-system-x86_64" "${qtests[@]/#/$obj/tests/qtest/}" "$1/"
	cp -rL "$BUILD/qemu/python" "$1/python"
}

configure_qemu_fuzz() {
	printf 'CONFIG_%s=y\n' I440FX VIRTIO_PCI VIRTIO_BALLOON >devices.mak
	configure_qemu ../qemu --target-list=x86_64-softmmu --enable-kvm --disable-tcg \
		--cc="ccache clang" --cxx="ccache clang++" --enable-fuzzing --enable-asan --enable-ubsan \
		--extra-cflags=-gline-tables-only --without-default-devices \
		--with-devices-x86_64=../../../../qemu-fuzz-obj/devices --firmwarepath=/usr/share/seabios
	pyvenv/bin/meson configure -Doptimization=1 -Ddebug=false
}

make_qemu_fuzz() {
	local obj=$BUILD/qemu-fuzz-obj filter
	# What is to be covered
	filter=$(printf '%s\n' 'src:*/hw/virtio/virtio-balloon*.c' 'src:*/hw/virtio/virtio.c' \
		'src:*/tests/qtest/fuzz/fuzz.c' 'src:*/tests/qtest/fuzz/virtio_balloon_fuzz.c' \
		'fun:*balloon_*' 'fun:virtqueue_*' 'fun:unused_pages_run' 'fun:trim_*' 'fun:reclaim_*' \
		'fun:run' 'fun:op_*' 'fun:append_*' 'fun:LLVMFuzzerTestOneInput')
	"$top/scripts/deps.sh" clang libclang-rt-dev
	tree qemu
	# To configure writes QEMU's own, of all devices, and ninja may find that it must. Neither ninja
	# nor ccache looks into it.
	build_qemu "$obj" build.ninja configure_qemu_fuzz
	echo "$filter" >"$obj/instrumentation-filter"
	if ! cmp -s "$obj/instrumentation-filter" "$obj/filter"; then
		find "$obj" \( -name '*virtio_virtio*.o' -o -name '*unused-pages*.o' -o -name '*_fuzz_*.o' \) -delete
		echo "$filter" >"$obj/filter"
	fi
	local -x CCACHE_EXTRAFILES=$obj/filter
	build_qemu "$obj" qemu-fuzz-x86_64 configure_qemu_fuzz
	cp "$obj/qemu-fuzz-x86_64" "$1/"
}

make_qemu_arch() {
	local obj=$BUILD/qemu-arch-obj
	tree qemu
	build_qemu "$obj" "qemu-system-s390x qemu-system-aarch64" \
		configure_qemu ../qemu --target-list=s390x-softmmu,aarch64-softmmu --enable-tcg --cc="ccache gcc"
	cp "$obj/qemu-system-s390x" "$obj/qemu-system-aarch64" "$1/"
	cp -rL "$BUILD/qemu/python" "$1/python"
}

# Debian's source package of QEMU with the series in it, for whoever runs Debian's QEMU
build_deb_qemu() {
	local dir=$BUILD/deb-qemu version mails changelog GLOBIGNORE
	tree qemu
	mails=$("$top/scripts/series.py" --build "$BUILD" mails qemu)
	rm -rf "$dir"
	mkdir "$dir"
	dpkg-source --no-check -x "$(fetch_qemu)" "$dir/src" >/dev/null
	cd "$dir/src"
	mkdir debian/patches/balloon
	GLOBIGNORE="$mails/0000-*"
	cp "$mails"/*.patch debian/patches/balloon/
	(cd debian/patches && printf '%s\n' balloon/*.patch >>series)
	changelog=$(cat debian/changelog)
	version=$(dpkg-parsechangelog -S Version)+balloon1
	{
		printf 'qemu (%s) UNRELEASED; urgency=medium\n\n' "$version"
		printf '  * virtio-balloon: page bitmaps, the misc queue; migration leaves out unused pages.\n\n'
		printf ' -- %s <%s>  %s\n\n' "$(sed -n 's/^Maintainer: \(.*\) <.*/\1/p' "$top/module/debian/control")" \
			"$(sed -n 's/^Maintainer: .*<\(.*\)>/\1/p' "$top/module/debian/control")" "$(date -R)"
		printf '%s\n' "$changelog"
	} >debian/changelog
	cd "$dir"
	dpkg-source --build src >&2
	rm -r src
	cd "$top"
	find "$dir" -name '*.dsc'
}
