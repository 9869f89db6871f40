# SPDX-License-Identifier: GPL-2.0
"""Which guest works with which QEMU, and with which features of the balloon.

The balloon is unplugged, and plugged in with other features, under a guest that runs.
Statistics are always offered; misc_features has a guest that declines them.
"""

from __future__ import annotations

import itertools
from typing import Dict, Iterable, Iterator, List, Tuple

from harness import FAST, Failure, Run, equal, features, needs, require, variants
from lab import MIB, Guest, LabError, Skip, has_property

# Properties of the device and the feature bits that they offer
BITS = {"deflate-on-oom": 2, "free-page-hint": 3, "page-poison": 4, "free-page-reporting": 5,
        "page-bitmap": 22, "misc-vq": 23}
STATS = 1
OURS = {22, 23}
QUEUES = ("free-page-hint", "free-page-reporting")
BACKEND = "/machine/peripheral/balloon0/virtio-backend"
# How far the balloon moves. Debian's kernel clears each page that it takes: with more it
# would do nothing else.
MOVED = 8 * MIB
# A guest that clears what it frees can tell the device what free pages hold.
CLEARS = "init_on_free=1"

Subset = Tuple[str, ...]
# How many sets of features, and chains of migrations, work between whom
WORKING: Dict[Tuple[str, str], int] = {}


def subsets(names: Iterable[str]) -> List[Subset]:
    """All sets of these."""
    every = tuple(names)
    return [some for size in range(len(every) + 1)
            for some in itertools.combinations(every, size)]


def plug(guest: Guest, some: Subset) -> None:
    """Replace the balloon by one with these features."""
    guest.qmp("device_del", id="balloon0")
    guest.event("DEVICE_DELETED", match={"data": {"device": "balloon0"}})
    props: Dict[str, object] = {name: name in some for name in BITS
                                if has_property(guest.qemu, name)}
    if props.get("free-page-hint"):
        props["iothread"] = "hint0"
    guest.qmp("device_add", driver="virtio-balloon-pci", id="balloon0", bus="slot0", **props)
    require(guest.until(lambda: "DRIVER_OK" in str(
        guest.qmp("x-query-virtio-status", path=BACKEND)["status"]), 30, 0.01),
            f"the driver does not take {some}")


def one(guest: Guest, ours: bool, clears: bool, some: Subset) -> None:
    """Features are as they must be, the balloon moves, the misc queue answers."""
    plug(guest, some)
    bits = features(guest)
    got = {bit for bit in range(24) if bits[bit] == "1"}
    want = {STATS} | {BITS[name] for name in some}
    # Free pages that hold something are told with what, and are not left out.
    want -= {BITS["misc-vq" if clears else "page-poison"]} | (set() if ours else OURS)
    equal(f"features of {some}", got, want)

    total, before = guest.meminfo()["MemTotal"], guest.stats()
    guest.balloon(guest.memory - MOVED)
    less = 0 if "deflate-on-oom" in some else MOVED
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


def affordable() -> None:
    """Skip where so many guests and devices take too long."""
    if Run.kernel == "guest-debug":
        raise Skip("this takes hours in the debug guest")


@variants(*((kernel, qemu) for kernel in ("guest", "guest-module", "guest-debian", "guest-debian12")
            for qemu in ("qemu", "qemu-stock")))
def matrix(run: Run, names: Tuple[str, str]) -> None:
    """{}: every set of features"""
    affordable()
    kernel, qemu = names
    needs(kernel, "HOTPLUG_PCI_ACPI")
    if qemu == "qemu-stock" and Run.kernel == "guest-i386":
        raise Skip("unpatched QEMU loses interrupts of i386 when a device is unplugged")
    # Of others, too, if another CPU uses the memory map that changes.
    cpus = 1 if qemu == "qemu-stock" else 2
    works = 0
    for append in ("", CLEARS):
        with run.guest(kernel=kernel, qemu=qemu, bitmap=False, hotplug=True, append=append,
                       cpus=cpus, objects=["iothread,id=hint0"]) as guest:
            for some in subsets(name for name in BITS if has_property(qemu, name)):
                if append and "page-poison" not in some:
                    continue
                one(guest, kernel in ("guest", "guest-module"), bool(append), some)
                works += 1
    WORKING[kernel, qemu] = works


@variants("guest", "guest-debian", "guest-debian12")
def matrix_migration(run: Run, kernel: str) -> None:
    """{}: between both QEMUs with the features that both have, within ours with all"""
    affordable()
    needs(kernel, "HOTPLUG_PCI_ACPI")
    size = 512 * MIB
    both, ours = ("qemu-stock", "qemu"), ("qemu",)
    chains: List[Tuple[Subset, Tuple[str, ...]]] = [(QUEUES, both), (tuple(BITS), ours)]
    if kernel == "guest":
        # What moves a queue; the other features are bits, and words of the configuration.
        chains += [(some, both) for some in subsets(QUEUES) if some != QUEUES]
        chains += [(some + ("page-bitmap",), ours) for some in subsets(QUEUES + ("misc-vq",))]

    def host(qemu: str, some: Subset, incoming: bool) -> Guest:
        props = {name: "on" if name in some else "off" for name in BITS
                 if has_property(qemu, name)}
        return run.guest(kernel=kernel, qemu=qemu, balloon=props, machine="pc-q35-10.0",
                         memory=size, bitmap=props.get("page-bitmap") == "on", hotplug=True,
                         objects=[] if "free-page-hint" in some else ["iothread,id=hint0"],
                         incoming=incoming)

    # One guest, whose balloon is replaced where our QEMU runs it
    source = host("qemu", (), False)
    try:
        job = source.start("balloon_mem stamp 64M").wait_ready()
        for some, hosts in chains:
            plug(source, some)
            source.balloon(size - 128 * MIB)
            for qemu in hosts:
                target = host(qemu, some, True)
                # Unpatched QEMU loses pages that a guest writes under TCG, its kernel's too.
                try:
                    source.migrate_to(target, parameters=FAST,
                                      stopped=source.qemu == "qemu-stock")
                except BaseException:
                    target.close()
                    raise
                source.close()
                job.guest = source = target
                source.balloon(size)
                source.balloon(size - 64 * MIB)
        job.finish()
    finally:
        source.close()
    WORKING[kernel, "migration"] = len(chains)


def table() -> Iterator[str]:
    """What worked, if anything did."""
    columns = {"qemu": "QEMU here", "qemu-stock": "unpatched", "migration": "migrations"}
    if WORKING:
        yield f"{'sets of features that work':28}" + "".join(f"{c:>12}" for c in columns.values())
    for kernel in sorted({kernel for kernel, _ in WORKING}):
        yield f"{kernel:28}" + "".join(f"{WORKING.get((kernel, c), '-'):>12}" for c in columns)
