#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A shell in a booted guest. Ctrl-a c: QEMU's monitor and back. Ctrl-a x: the end."""

from __future__ import annotations

import os
import sys

from lab import FIRMWARE, accelerator, artifact, initramfs

WALK = """\
Worth trying, in the guest (#) and in the monitor (>):
# free -m                    8 GiB, next to nothing in use
> balloon 1024               free -m has 7 GiB less when info balloon says actual=1024: seconds,
                             since Debian's kernel zeroes each page first
> qom-get /machine/peripheral/balloon0 page-bitmap-stats
                             7 GiB in a few messages: kicks, discard-calls, discarded-bytes
> balloon 8192               and all of it is back
> balloon_request unused-pages
> info balloon               what free -m has as free
> migrate exec:cat>/dev/null
> info migrate               transferred: what the guest uses; cont, and it runs on
"""


def main() -> None:
    """Become QEMU. Arguments are added to its command line."""
    guest, qemu = artifact("guest-module"), artifact("qemu") / "qemu-system-x86_64"
    args = [str(qemu), "-M", "q35", "-accel", "kvm" if accelerator() == "kvm" else "tcg,thread=multi", "-cpu", "max", "-smp", "2",
            "-m", "8G", "-nodefaults", "-display", "none", "-serial", "mon:stdio",
            "-global", "migration.sparse-ram=on",
            "-device", "virtio-balloon-pci,id=balloon0,page-bitmap=on,misc-vq=on",
            "-kernel", str(guest / "kernel"), "-initrd", str(initramfs("guest-module")),
            "-append", "console=ttyS0 loglevel=4 lab.shell"]
    for firmware in filter(os.path.isdir, FIRMWARE):
        args += ["-L", firmware]
    print(f"{__doc__}\n\n{WALK}", flush=True)
    os.execv(args[0], args + sys.argv[1:])


if __name__ == "__main__":
    main()
