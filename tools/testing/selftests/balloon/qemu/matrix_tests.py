# SPDX-License-Identifier: GPL-2.0
"""Which guest works with which QEMU, and with which features of the balloon.

The balloon is unplugged, and plugged in with other features, under a guest that runs.
"""

from __future__ import annotations

import itertools
from typing import Dict, List, Tuple

from harness import FAST, Failure, Run, equal, features, needs, require, test, variants
from lab import GIB, MIB, Guest, LabError, Skip, has_property

# Properties of the device and the feature bits that they offer. Statistics are always offered.
BITS = {"deflate-on-oom": 2, "free-page-hint": 3, "page-poison": 4, "free-page-reporting": 5,
        "page-bitmap": 22, "misc-vq": 23}
STATS = 1
OURS = {22, 23}
QUEUES = ("free-page-hint", "free-page-reporting")

Subset = Tuple[str, ...]


def subsets(qemu: str) -> List[Subset]:
    """All sets of properties that this QEMU has."""
    names = [name for name in BITS if has_property(qemu, name)]
    return [some for size in range(len(names) + 1)
            for some in itertools.combinations(names, size)]


def plug(guest: Guest, some: Subset) -> None:
    """Replace the balloon by one with these features."""
    guest.qmp("device_del", id="balloon0")
    guest.event("DEVICE_DELETED", match={"data": {"device": "balloon0"}})
    props: Dict[str, object] = {name: name in some for name in BITS
                                if has_property(guest.qemu, name)}
    if props.get("free-page-hint"):
        props["iothread"] = "hint0"
    guest.qmp("device_add", driver="virtio-balloon-pci", id="balloon0", bus="slot0", **props)
    guest.sh("""until ls /sys/bus/virtio/drivers/virtio_balloon/virtio*
                do sleep 0.02; done > /dev/null 2>&1""")


def one(guest: Guest, ours: bool, some: Subset) -> None:
    """Features are as they must be, the balloon moves, the misc queue answers."""
    plug(guest, some)
    bits = features(guest)
    got = {bit for bit in range(24) if bits[bit] == "1"}
    want = {STATS} | {BITS[name] for name in some}
    # A guest that does not poison its free pages does not want to tell with what.
    want -= {BITS["page-poison"]} | (set() if ours else OURS)
    equal(f"features of {some}", got, want)

    total, before = guest.meminfo()["MemTotal"], guest.stats()
    guest.balloon(guest.memory - 96 * MIB)
    less = 0 if "deflate-on-oom" in some else 96 * MIB
    equal(f"MemTotal with {some}", guest.meminfo()["MemTotal"], total - less)
    guest.balloon(guest.memory)
    equal(f"MemTotal with {some}", guest.meminfo()["MemTotal"], total)
    after = guest.stats()
    if after:
        equal(f"records with {some}", after["records"] > before["records"],
              BITS["page-bitmap"] in want)
        equal(f"bad records with {some}", after["bad-records"], 0)
    if BITS["misc-vq"] in want:
        rose = guest.ask()
        require(rose["answers"] == 1 and rose["reported-pages"] > 1000, f"{some}: {rose}")
    elif "misc-vq" in some:
        try:
            guest.ask()
        except LabError as error:
            require("no misc queue" in str(error), f"{some}: {error}")
        else:
            raise Failure(f"{some}: the device asked a driver that has no misc queue")


@variants(*((kernel, qemu) for kernel in ("guest", "guest-debian", "guest-debian12")
            for qemu in ("qemu", "qemu-debian")))
def matrix(run: Run, names: Tuple[str, str]) -> None:
    """{}: every set of features"""
    kernel, qemu = names
    needs(kernel, "HOTPLUG_PCI_ACPI")
    if qemu == "qemu-debian" and Run.kernel == "guest-i386":
        raise Skip("Debian's QEMU loses interrupts of i386 when a device is unplugged")
    every = subsets(qemu)
    with run.guest(kernel=kernel, qemu=qemu, bitmap=False, hotplug=True,
                   objects=["iothread,id=hint0"]) as guest:
        for some in every:
            one(guest, kernel == "guest", some)
    print(f"# {kernel:18}{qemu:14}{len(every)} sets of features work")


@variants("guest", "guest-debian", "guest-debian12")
def matrix_migration(run: Run, kernel: str) -> None:
    """{}: between both QEMUs with the features that both have, within ours with all"""
    needs(kernel, "ACPI")
    both, ours = ("qemu", "qemu-debian", "qemu"), ("qemu", "qemu")
    chains: List[Tuple[Subset, Tuple[str, ...]]] = [(QUEUES, both), (tuple(BITS), ours)]
    if kernel == "guest":
        chains += [((), both), (QUEUES[:1], both), (QUEUES[1:], both),
                   (("page-bitmap",), ours), (("misc-vq",), ours)]
    for some, hosts in chains:
        props = {name: "on" if name in some else "off" for name in BITS}
        source = None
        try:
            for qemu in hosts:
                mine = {k: v for k, v in props.items() if has_property(qemu, k)}
                guest = run.guest(kernel=kernel, qemu=qemu, balloon=mine, machine="pc-q35-7.2",
                                  bitmap=mine.get("page-bitmap") == "on",
                                  incoming=source is not None)
                if source is None:
                    source = guest
                    job = source.start("balloon_mem stamp 64M").wait_ready()
                    source.balloon(GIB - 128 * MIB)
                else:
                    try:
                        source.migrate_to(guest, parameters=FAST)
                    except BaseException:
                        guest.close()
                        raise
                    source.close()
                    job.guest = source = guest
                    source.balloon(GIB)
                    source.balloon(GIB - 64 * MIB)
            job.finish()
        finally:
            if source:
                source.close()
    print(f"# {kernel:18}{len(chains)} chains of migrations work")
