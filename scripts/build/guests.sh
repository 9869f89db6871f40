# shellcheck shell=bash disable=SC2154,SC2164 # variables and set -e are those of build.sh
# SPDX-License-Identifier: GPL-2.0
# How guests are built; read by build.sh. Each make_NAME fills the directory it is given.

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
	[ -z "$lost" ] || { say "options that did not make it: $lost"; exit 1; }
}

# kernel SOURCE OBJECTS CONFIG... : configure and build, with the variables in kflags
kernel() {
	configure "$@"
	local -x CCACHE_DIR=$CACHE/ccache CCACHE_NOHASHDIR=1
	step "building $(basename "$2")" "$2.log" make -C "$1" O="$2" -j"$JOBS" LOCALVERSION= \
		CC="ccache ${CROSS_COMPILE:-}gcc" "${kflags[@]}" "${IMAGE##*/}" modules
}
kflags=()
# To be built. On x86-64 guests boot what is in it: to unpack it takes TCG up to half of a boot.
IMAGE=bzImage

# What a guest takes along: install_guest OBJECTS DIR
install_guest() {
	cp "$1/.config" "$2/"
	if [ "$IMAGE" = bzImage ]; then
		strip -o "$2/kernel" "$1/vmlinux"
		cp "$1/arch/x86/boot/bzImage" "$2/"
	else
		cp "$1/$IMAGE" "$2/kernel"
	fi
	local m
	for m in lib/kunit/kunit drivers/virtio/virtio_balloon mm/tests/page_bitmap_kunit mm/tests/balloon_pages_kunit \
		mm/tests/spare_pages_kunit mm/tests/unused_pages_kunit drivers/virtio/tests/virtio_balloon_misc_kunit \
		drivers/virtio/tests/virtio_balloon_bitmap_kunit drivers/virtio/tests/virtio_balloon_take_kunit \
		drivers/virtio/tests/virtio_balloon_device_kunit; do
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
	for m in page_bitmap balloon_pages spare_pages unused_pages virtio_balloon_core virtio_balloon_bitmap \
		virtio_balloon_jobs virtio_balloon_misc virtio_balloon_take; do
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
	dpkg-deb -x "$(deb bookworm busybox-static "" "$1")" "$deb"
	cp "$deb/bin/busybox" "$5/"
	rm -r "$deb"
}

make_guest_s390x() { make_guest_arch s390x s390 s390x-linux-gnu- arch/s390/boot/bzImage "$1"; }
make_guest_arm64() { make_guest_arch arm64 arm64 aarch64-linux-gnu- arch/arm64/boot/Image "$1"; }
make_guest_i386() { make_guest_arch i386 i386 i686-linux-gnu- arch/x86/boot/bzImage "$1"; }

make_kunit_uml() {
	local obj=$BUILD/linux-uml-obj
	tree linux
	local -x ARCH=um
	configure "$BUILD/linux" "$obj" "$top/$lab/uml.config"
	step "building $(basename "$obj")" "$obj.log" \
		make -C "$BUILD/linux" O="$obj" -j"$JOBS" LOCALVERSION= linux
	cp "$obj/linux" "$obj/.config" "$1/"
}

# unpack_kernel FILE: what is in a bzImage, whose header says where, behind the sectors that set up
unpack_kernel() {
	local sectors offset size unpack
	sectors=$(od -An -tu1 -j 0x1f1 -N 1 "$1")
	offset=$(od -An -tu4 -j 0x248 -N 4 "$1")
	size=$(od -An -tu4 -j 0x24c -N 4 "$1")
	offset=$(((sectors + 1) * 512 + offset))
	case $(od -An -tx4 -j $offset -N 4 "$1") in
	*fd2fb528) unpack=zstd ;;
	*184c2102) unpack=lz4 ;;
	*) say "$1 is compressed in another way than Debian does it"; exit 1 ;;
	esac
	# Its last word is the size of what comes out.
	dd if="$1" iflag=skip_bytes,count_bytes skip=$offset count=$((size - 4)) bs=1M status=none |
		$unpack -dc
}

# install_debian_guest DEB DIR: a guest of Debian's kernel, with its own balloon
install_debian_guest() {
	local m module
	mkdir "$2/deb"
	dpkg-deb -x "$1" "$2/deb"
	cp "$2"/deb/boot/vmlinuz-* "$2/bzImage"
	unpack_kernel "$2/bzImage" >"$2/kernel"
	cp "$2"/deb/boot/config-* "$2/.config"
	for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console \
		virtio_mmio virtio_blk virtio_mem virtio_balloon; do
		module=$(find "$2/deb" -name "$m.ko*")
		case $module in
		"") continue ;;
		*.xz) xz -dc "$module" ;;
		*) cat "$module" ;;
		esac >"$2/$m.ko"
		case $m in
		virtio_blk | virtio_mem | virtio_balloon) echo "$m.ko" >>"$2/modules.order" ;;
		*) echo "$m.ko" >>"$2/early.order" ;;
		esac
	done
	rm -r "$2/deb"
}

make_guest_debian() { install_debian_guest "$(fetch_module_kernel)" "$1"; }
make_guest_debian12() { install_debian_guest "$(fetch_debian_kernel bookworm)" "$1"; }
