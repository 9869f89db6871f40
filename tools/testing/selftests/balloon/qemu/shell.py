#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A shell in a booted guest. Ctrl-a c: QEMU's monitor and back. Ctrl-a x: the end."""

from __future__ import annotations

import os
import sys

from lab import FIRMWARE, accelerator, artifact, initramfs


def main() -> None:
    """Become QEMU. Arguments are added to its command line."""
    guest, qemu = artifact("guest-module"), artifact("qemu") / "qemu-system-x86_64"
    args = [str(qemu), "-M", "q35", "-accel", "kvm" if accelerator() == "kvm" else "tcg,thread=multi", "-cpu", "max", "-smp", "2",
            "-m", "8G", "-nodefaults", "-display", "none", "-serial", "mon:stdio",
            "-device", "virtio-balloon-pci,id=balloon0,page-bitmap=on",
            "-kernel", str(guest / "kernel"), "-initrd", str(initramfs("guest-module")),
            "-append", "console=ttyS0 loglevel=4 lab.shell"]
    for firmware in filter(os.path.isdir, FIRMWARE):
        args += ["-L", firmware]
    print(f"{__doc__}\n"
          "In the guest:    free -m; the balloon's driver is loaded\n"
          "In the monitor:  balloon 1024; info balloon;\n"
          "                 qom-get /machine/peripheral/balloon0 page-bitmap-stats\n", flush=True)
    os.execv(args[0], args + sys.argv[1:])


if __name__ == "__main__":
    main()
