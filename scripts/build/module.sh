# shellcheck shell=bash disable=SC2154,SC2164 # variables and set -e are those of build.sh
# SPDX-License-Identifier: GPL-2.0
# How the module for kernels without the series is built; read by build.sh.

# Files of Linux that the series changes and the module is made of
module_files=(drivers/virtio/virtio_balloon.c include/linux/balloon_compaction.h
	include/uapi/linux/virtio_balloon.h)

# The source of the module: module_source DIR
module_source() {
	local dir=$1 from patch
	from=$(fetch_linux)
	mkdir -p "$dir"
	# Reads no more of the archive than it must, which breaks the pipe.
	dpkg-deb --fsys-tarfile "$from" 2>/dev/null |
		tar -xO --wildcards './usr/src/linux-source-*.tar.xz' 2>/dev/null |
		tar -xJ -C "$dir" --strip-components=1 --occurrence --wildcards "${module_files[@]/#/*/}" || true
	for patch in "$top"/patches/0*.patch; do
		GIT_CEILING_DIRECTORIES=$(dirname "$dir") git -C "$dir" apply --include='drivers/virtio/virtio_balloon*' \
			--include=include/linux/balloon_compaction.h \
			--include=include/uapi/linux/virtio_balloon.h --allow-empty "$patch"
	done
	mv "$dir"/drivers/virtio/*.c "$dir/"
	rm -r "$dir/drivers"
	cp "$top"/drivers/virtio/*.[ch] "$top"/mm/*.c "$top"/module/{Kbuild,*.[ch]} "$dir/"
	cp "$top"/include/linux/*.h "$dir/include/linux/"
	# compat.h has it all, and is read before every file.
	echo '/* mm/internal.h: see compat.h */' >"$dir/internal.h"
}

# The header of the series for user space, as it is in a kernel with the series
make_uapi() {
	module_source "$1"
	find "$1" -mindepth 1 -maxdepth 1 ! -name include -exec rm -r {} +
}

# The newest of Debian's headers of Linux 6.12 that are installed
module_kdir() {
	local dir
	for dir in /lib/modules/6.12*-amd64/build; do
		[ ! -e "$dir/Makefile" ] || echo "$dir"
	done | sort -V | tail -n 1
}

suite() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# How packages of Linux 6.12 for the cloud are called in a suite: linux-headers-$(flavour SUITE)
flavour() { [ "$1" != bookworm ] && echo cloud-amd64 || echo 6.12-cloud-amd64; }

# Have some installed: those of this machine's Debian
need_module_headers() {
	[ -n "$(module_kdir)" ] || "$top/scripts/deps.sh" "linux-headers-$(flavour "$(suite)")"
}

# compile_module KDIR DIR
compile_module() {
	rm -rf "$2"
	module_source "$2"
	step "building the module for $1" "$2.log" make -C "$1" M="$2" -j"$JOBS" modules
}

build_module() {
	[ -n "${KDIR:-}" ] || need_module_headers
	local kdir=${KDIR:-$(module_kdir)}
	[ -e "$kdir/Makefile" ] || { say "no headers of Linux 6.12 in ${kdir:-/lib/modules}: say KDIR="; exit 1; }
	compile_module "$kdir" "$BUILD/module"
	echo "$BUILD/module/virtio_balloon.ko"
}

# Debian's kernel for which this machine has the headers
fetch_module_kernel() {
	need_module_headers
	deb "$(suite)" "linux-image-$(basename "$(dirname "$(module_kdir)")")"
}

# Debian's kernel with the module in the place of its own
make_guest_module() {
	install_debian_guest "$(fetch_module_kernel)" "$1"
	compile_module "$(module_kdir)" "$BUILD/guest-module"
	cp "$BUILD/guest-module/virtio_balloon.ko" "$1/"
}

# A package of the module's source, which DKMS builds for the kernels of whoever installs it
make_deb() {
	local version dir
	version=$(sed -n 's/^MODULE_VERSION("\(.*\)");/\1/p' "$top/module/compat.c")
	[ "$version" = "$(dpkg-parsechangelog -l "$top/module/debian/changelog" -S Version)" ] ||
		{ say "module/compat.c and module/debian/changelog name two versions"; exit 1; }
	"$top/scripts/deps.sh" debhelper dh-dkms lintian
	dir=$1/virtio-balloon-$version
	module_source "$dir"
	cp -r "$top/module/debian" "$dir/"
	cd "$dir"
	step "building the package" "$BUILD/deb.log" dpkg-buildpackage -us -uc
	cd "$1"
	step "lintian" "$BUILD/lintian.log" lintian --fail-on error,warning,info,pedantic --info \
		--suppress-tags out-of-date-standards-version \
		--allow-root virtio-balloon_*.changes
	rm -r "$dir"
	cd "$top"
}
