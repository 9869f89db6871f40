# shellcheck shell=bash disable=SC2154,SC2164 # variables and set -e are those of build.sh
# SPDX-License-Identifier: GPL-2.0
# A Debian to install packages in and to boot; read by build.sh.

# make_root SUITE DIR: with Linux 6.12 for the cloud, its headers, and dkms
make_root() {
	local kernel
	kernel=$(flavour "$1")
	"$top/scripts/deps.sh" mmdebstrap
	step "installing a Debian $1" "$BUILD/root-$1.log" \
		mmdebstrap --mode=root --variant=minbase --aptopt='Apt::Install-Recommends "false"' \
		--include="linux-image-$kernel,linux-headers-$kernel,dkms,initramfs-tools,systemd-sysv,udev,kmod,zstd" \
		"$1" "$2/root" \
		"deb $(mirror main) $1 main" "deb $(mirror main) $1-updates main" \
		"deb $(mirror security) $1-security main"
}

make_root_bookworm() { make_root bookworm "$1"; }
make_root_trixie() { make_root trixie "$1"; }
