# SPDX-License-Identifier: GPL-2.0
"""Tests of kernels that take over a guest with a balloon from another one: by kexec, and
as a crash kernel, which has little memory of its own and reads that of the first.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Dict, Iterator

from harness import Run, disk, equal, near, needs, require, variants
from lab import GIB, MIB, WAYS, Guest, LabError, artifact, initramfs, overhead

# What a crash kernel gets, as on a machine of a few GiB
CRASH = 256 * MIB
# What the console shows when a kernel is made to crash
CRASHES = "Kernel panic|Oops|BUG: kernel NULL pointer|Call Trace|sysrq|asm_|RIP|CR2"


@contextlib.contextmanager
def next_kernel(run: Run, guest_options: Dict[str, Any]) -> Iterator[str]:
    """Add a disk with the guest's kernel and initramfs; a script that loads them.

    It wants the command of balloon_kexec as $1 and the command line as $2.
    """
    needs("guest", "KEXEC_FILE", "PROC_VMCORE", "VIRTIO_BLK")
    files = [artifact(run.kernel) / "bzImage", initramfs(run.kernel)]
    sizes = [file.stat().st_size for file in files]
    with disk(run, -(-sum(sizes) // MIB) * MIB) as options:
        with open(run.logs / "disk", "r+b") as image:
            for file in files:
                image.write(file.read_bytes())
        guest_options.update(options)
        yield (f"head -c {sizes[0]} /dev/vda > /tmp/kernel; "
               f"head -c {sum(sizes)} /dev/vda | tail -c {sizes[1]} > /tmp/initrd; "
               'balloon_kexec $1 /tmp/kernel /tmp/initrd "$2"')


def command_line(guest: Guest) -> str:
    """A guest's command line, for a kernel of which nothing is set aside."""
    words = guest.sh("cat /proc/cmdline").split()
    return " ".join(word for word in words if not word.startswith("crashkernel="))


@variants("bitmaps", "numbers")
def crash_kernel(run: Run, way: str) -> None:
    """with a balloon by {}, a crash kernel has its memory, and reads all of the first one's"""
    size, target = 2 * GIB, GIB
    crash = CRASH + overhead(run.kernel, CRASH)
    options: Dict[str, Any] = {"append": f"crashkernel={crash // MIB}M"}
    balloon = dict(WAYS[way])
    if way == "bitmaps":
        balloon.update({"misc-vq": "on", "free-page-reporting": "on", "deflate-on-oom": "on"})
    with next_kernel(run, options) as load, \
         run.guest(memory=size, balloon=balloon, expected=CRASHES, **options) as guest:
        guest.sh(f"set -- crash '{command_line(guest)} nr_cpus=1'; {load}", 60)
        guest.balloon(target)
        guest.take_over("echo c > /proc/sysrq-trigger")

        free = guest.meminfo()["MemAvailable"]
        equal("devices that have a driver",
              guest.sh("ls /sys/bus/virtio/drivers/virtio_balloon | grep ^virtio || true"), "")
        # Not a word of the driver, whatever it is asked.
        guest.set_target(target // 2)
        if way == "bitmaps":
            try:
                guest.ask(wait=False, timeout=3)
                require(False, "a crash kernel is asked for its unused pages")
            except LabError as error:
                require("not offered" in str(error), str(error))
        time.sleep(3)
        left = guest.meminfo()["MemAvailable"]
        # A debug kernel gives some back that was held since its boot.
        require(left > free - 8 * MIB, f"it has {left // MIB} MiB, and had {free // MIB}")
        equal("actual", guest.actual(), target)

        before = guest.rss()
        total, used = (int(n) * MIB for n in guest.sh("balloon_kexec read", 200).split())
        near("the dump", total, size + overhead(run.kernel, size) - crash, 64 * MIB)
        require(0 < used < total, f"{used // MIB} MiB of the dump are not zero")
        grown = guest.rss() - before
        print(f"# {way}: the crash kernel has {left // MIB} MiB, reads a dump of {total // MIB}, "
              f"{used // MIB} of them not zero, and the host has {grown // MIB} MiB less")
        require(grown < 64 * MIB, f"the host has {grown // MIB} MiB less")


@variants("bitmaps", "numbers")
def kexec(run: Run, way: str) -> None:
    """with a balloon by {}, the next kernel starts with an empty one, and has all memory"""
    options: Dict[str, Any] = {}
    with next_kernel(run, options) as load, \
         run.guest(memory=GIB, balloon=WAYS[way], **options) as guest:
        guest.balloon(512 * MIB)
        line = command_line(guest)
        # It is moving when it ends.
        guest.set_target(256 * MIB)
        # Nobody is there to answer: what the host wants meanwhile the next kernel reads.
        guest.take_over(f"set -- boot '{line}'; {load}", lambda: guest.set_target(GIB))
        guest.until(lambda: guest.actual() == GIB, 10)
        equal("actual", guest.actual(), GIB)
        guest.sh("balloon_mem stamp 700M 1", 120)

        guest.balloon(512 * MIB)
        guest.take_over(f"set -- boot '{line}'; {load}")
        near("the balloon", guest.balloon(512 * MIB).actual, 512 * MIB, 0)
        guest.until(lambda: guest.meminfo()["MemTotal"] < 600 * MIB, 30)
        require(guest.meminfo()["MemTotal"] < 600 * MIB, "the next kernel's balloon is empty")
        guest.balloon(GIB)
        guest.sh("balloon_mem stamp 700M 1", 120)
