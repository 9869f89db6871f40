# SPDX-License-Identifier: GPL-2.0
"""What only Debian's kernel can do in the lab, with the module for kernels as they are.

It has DIMMs and hibernates; and there the module itself has to see to memory that goes
off line, which a kernel with the series locks.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any, Dict

from harness import Run, disk, equal, needs, require, test
from lab import GIB, MIB, PAGE, LabError, Skip
from misc_tests import MISC, answered, works

MODULE = "guest-module"


@test
def module_dimm(run: Run) -> None:
    """a DIMM is reported, then goes while requests are answered and the balloon moves, twice"""
    needs(MODULE, "ACPI_HOTPLUG_MEMORY", "MEMORY_HOTREMOVE")
    with run.guest(kernel=MODULE, memory=GIB, dimms=True, balloon=MISC,
                   append="memhp_default_state=online_movable") as guest:
        total = guest.meminfo()["MemTotal"]
        stamp = guest.start("balloon_mem stamp 128M").wait_ready()
        for number in range(2):
            pages = answered(guest)["reported-pages"]
            guest.qmp("object-add", **{"qom-type": "memory-backend-ram",
                                       "id": "ram1", "size": 128 * MIB})
            guest.qmp("device_add", driver="pc-dimm", id="dimm0", memdev="ram1")
            guest.until(lambda: guest.meminfo()["MemTotal"] > total + 100 * MIB, 30)
            more = answered(guest)["reported-pages"] - pages
            require(more > 100 * MIB // PAGE, f"{more} pages of the DIMM reported")
            guest.balloon(GIB + 96 * MIB)
            # Movable memory is taken first, so that the balloon has to move, page by page.
            before = guest.vmstat()["balloon_migrate"]
            guest.qmp("device_del", id="dimm0")
            deadline, asked = guest.deadline(120), time.monotonic()
            for move in (16, -16) * 10000:
                guest.set_target(GIB + (96 + move) * MIB)
                guest.ask(wait=False)
                time.sleep(0.05)
                if not guest.qmp("query-memory-devices"):
                    break
                require(time.monotonic() < deadline, f"round {number}: the DIMM stays")
                if time.monotonic() - asked > 5:
                    # The guest may say no: then it is asked again, as an operator would.
                    with contextlib.suppress(LabError):
                        guest.qmp("device_del", id="dimm0")
                    asked = time.monotonic()
            moved = guest.vmstat()["balloon_migrate"] - before
            require(moved > 1000, f"{moved} pages of the balloon moved")
            guest.qmp("object-del", id="ram1")
            guest.balloon(GIB)
            equal("MemTotal", guest.meminfo()["MemTotal"], total)
            works(guest, stale=True)
        stamp.finish()


def hibernate(run: Run, more: Dict[str, Any]) -> None:
    """Put a guest to sleep on its disk and wake it up."""
    with run.guest(**more) as guest:
        total = guest.meminfo()["MemTotal"]
        job = guest.start("balloon_mem stamp 32M").wait_ready()
        guest.balloon(512 * MIB)
        guest.sh("mkswap /dev/vda; swapon /dev/vda; echo shutdown > /sys/power/disk")
        device = guest.sh("cat /sys/block/vda/dev").strip()
        try:
            guest.sh("echo disk > /sys/power/state", 120)
        except LabError as error:
            if "guest is gone" not in str(error):
                raise
        else:
            raise Skip("the guest did not sleep")
    with run.guest(**more) as guest:
        # What this waits for is the end of the command above.
        guest.sh(f"echo {device} > /sys/power/resume", 120)
        job.guest = guest
        # The new device has its own size in mind, which is all of it.
        guest.balloon(GIB)
        equal("MemTotal", guest.meminfo()["MemTotal"], total)
        guest.balloon(512 * MIB)
        equal("MemTotal", guest.meminfo()["MemTotal"], total - 512 * MIB)
        works(guest, stale=True)
        job.finish()


@test
def module_hibernation(run: Run) -> None:
    """suspend to disk with pages in the balloon, woken by another QEMU"""
    needs(MODULE, "HIBERNATION", "SWAP")
    with disk(run, GIB) as swap:
        # To compress the image takes most of the time under TCG.
        hibernate(run, {"kernel": MODULE, "memory": GIB, "balloon": MISC,
                        "append": "hibernate=nocompress", **swap})


@test
def module_reload(run: Run) -> None:
    """removed and inserted under a load, while it inflates, deflates and answers, 30 times"""
    with run.guest(kernel=MODULE, memory=GIB, balloon=MISC) as guest:
        total = guest.meminfo()["MemTotal"]
        churn = guest.start("balloon_mem churn 128M").wait_ready()
        for _ in range(30):
            guest.set_target(random.randrange(448, 1024) * MIB)
            guest.ask(wait=False)
            time.sleep(random.random() / 5)
            guest.sh("rmmod virtio_balloon")
            equal("MemTotal without the module", guest.meminfo()["MemTotal"], total)
            equal("actual without the module", guest.actual(), guest.memory)
            guest.sh("insmod /lib/modules/virtio_balloon.ko")
        guest.balloon(GIB)
        works(guest, stale=True)
        churn.finish()
