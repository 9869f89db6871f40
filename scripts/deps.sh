#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# deps.sh [arch | PACKAGE...]: install the Debian packages that are missing, or say which.
set -eu

need="git make gcc libc6-dev flex bison bc libelf-dev libssl-dev cpio kmod xz-utils zstd lz4
rsync perl python3 dpkg-dev patch
meson ccache libzstd-dev ninja-build pkg-config libglib2.0-dev libpixman-1-dev libfdt-dev zlib1g-dev
qemu-system-data seabios busybox-static e2fsprogs
libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu
sparse coccinelle ocaml-nox shellcheck codespell gnuplot-nox python3-sphinx python3-ply python3-git
python3-yaml"
# What the guests of other architectures want as well.
arch="gcc-s390x-linux-gnu gcc-aarch64-linux-gnu gcc-i686-linux-gnu
libc6-dev-s390x-cross libc6-dev-arm64-cross libc6-dev-i386-cross qemu-system-data"
case ${1:-} in
"") ;;
arch) need=$arch ;;
*) need=$* ;;
esac

missing=
for p in $need; do
	case $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) in
	*"ok installed") ;;
	*) missing="$missing $p" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
	run=
elif sudo -n true 2>/dev/null; then
	run=sudo
else
	echo "missing packages, install them with: sudo apt-get install$missing" >&2
	exit 1
fi

echo "installing:$missing" >&2
$run apt-get update -q >/dev/null
# shellcheck disable=SC2086 # words on purpose
$run env DEBIAN_FRONTEND=noninteractive \
	apt-get install -qy --no-install-recommends $missing >/dev/null
