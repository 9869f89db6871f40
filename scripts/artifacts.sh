#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Print what was built, building it if need be: kernel, modules in load order, QEMU.
set -eu
here=$(dirname "$0")
guest=$("$here/build.sh" guest)
qemu=$("$here/build.sh" qemu)
echo "kernel $guest/kernel"
echo "modules $(sed "s,^,$guest/," "$guest/modules.order" | grep -v kunit | tr '\n' ' ')"
echo "qemu $qemu/qemu-system-x86_64"
