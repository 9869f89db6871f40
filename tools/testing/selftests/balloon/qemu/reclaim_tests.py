# SPDX-License-Identifier: GPL-2.0
"""Tests of which memory a balloon takes, and of the pace: what the host gets back, what the
guest has left, and that nobody in it dies. bench.py does the cases by page numbers as well,
of which a guest may die.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import lab
from harness import Failure, Run, disk, equal, huge_pages, near, needs, require, test
from lab import GIB, MIB, Guest, Skip, has_property


class Squeeze(NamedTuple):
    """What came of a target, by one way."""

    seconds: float      # until actual changed last
    actual: int
    rss: int            # bytes by which the host's RSS fell
    swapped: int        # bytes
    kills: int
    large: int          # bytes by which free memory in large blocks fell
    bystander: str      # what it says of its longest allocations


def follow(guest: Guest, size: int, settle: float, timeout: float) -> Tuple[float, int]:
    """Ask for a size; when and where the balloon stood still."""
    begin = changed = time.monotonic()
    deadline, still = guest.deadline(timeout), guest.deadline(settle) - begin
    last = guest.actual()
    trace: List[Tuple[float, int]] = []
    guest.set_target(size)
    while last != size and time.monotonic() < deadline:
        time.sleep(0.05)
        actual, now = guest.actual(), time.monotonic()
        if actual != last:
            last, changed = actual, now
            if not trace or now - trace[-1][0] >= 0.5:
                trace.append((now, actual))
        elif now - changed > still:
            break
    print("# " + ", ".join(f"{at - begin:.1f} s {actual // MIB}"
                           for at, actual in [*trace, (changed, last)]))
    return changed - begin, last


def puffs(guest: Guest) -> int:
    """How many lines of the log say that a target is out of reach."""
    return int(guest.sh("dmesg | grep -c 'Out of puff' || true"))


def hold(load: str) -> Callable[[Guest], None]:
    """Have balloon_mem do so as long as the guest lives."""
    def run(guest: Guest) -> None:
        guest.start(f"balloon_mem {load}").wait_ready(120)
    return run


def touch(guest: Guest) -> None:
    """1500 MiB used and freed."""
    guest.sh("balloon_mem touch 1500M", 120)


def swapping(*loads: str) -> Callable[[Guest], None]:
    """The same, one after the other, beside swap on the guest's disk."""
    def run(guest: Guest) -> None:
        guest.sh("mkswap /dev/vda > /dev/null && swapon /dev/vda")
        for load in loads:
            hold(load)(guest)
    return run


def dirty(guest: Guest) -> None:
    """A file in the page cache, not on the disk yet."""
    # Otherwise what was written waits for the journal, and that for the disk's queue: all of
    # it comes at once, after 10 s or 26.
    guest.sh("""
        mkdir -p /mnt; mount -t ext4 -o dioread_lock /dev/vda /mnt
        cd /proc/sys/vm; echo 90 > dirty_ratio; echo 90 > dirty_background_ratio
        # Or it is written as slowly as a disk that nobody knows yet
        echo 90 > $(echo /sys/class/bdi/25*/min_ratio)
        dd if=/dev/zero of=/mnt/file bs=1M count=550 2> /dev/null""", 120)
    info = guest.meminfo()
    print(f"# dirty: {info['Dirty'] // MIB} MiB, under way {info['Writeback'] // MIB} MiB")


def temporary(guest: Guest) -> None:
    """Files in tmpfs."""
    guest.sh("""mkdir -p /mnt; mount -t tmpfs -o size=600M none /mnt
                dd if=/dev/urandom of=/mnt/file bs=1M count=16 2> /dev/null
                cksum < /mnt/file > /tmp/sum
                dd if=/dev/zero of=/mnt/more bs=1M count=500 2> /dev/null""", 120)


def min_free(guest: Guest) -> None:
    """Somebody wants much to be free."""
    guest.sh("echo 98304 > /proc/sys/vm/min_free_kbytes")


class Case(NamedTuple):
    """A guest that has done something, and what its balloon is to leave it."""

    title: str
    size: int
    load: Callable[[Guest], Any] = lambda guest: None
    memory: int = GIB
    append: str = ""
    settle: float = 5       # seconds without a change that are the end
    needs: str = ""         # an option of the guest's kernel
    disk: str = ""          # what is on its disk, if it has one: "swap" or a file system
    rate: int = 0           # of it, bytes a second


CASES = {
    "crumbs": Case("1500 MiB used, 31 of 32 pages freed", 3 * GIB, hold("fragment 1500M 32"),
                   4 * GIB),
    "used_whole": Case("1500 MiB used and freed", 3 * GIB, touch, 4 * GIB),
    "swap": Case("600 MiB in use and cold, swap", 512 * MIB, swapping("hold 600M"), settle=10,
                 needs="SWAP", disk="swap"),
    "rounds": Case("300 MiB cold, 200 read in rounds, swap", 448 * MIB,
                   swapping("hold 300M", "rounds 200M 50"), settle=10, needs="SWAP", disk="swap"),
    "punched": Case("1500 MiB of huge pages, 31 of 32 pages freed", 640 * MIB,
                    hold("punch 1500M 32"), 2 * GIB, "transparent_hugepage=always",
                    needs="TRANSPARENT_HUGEPAGE"),
    "dirty_disk": Case("550 MiB dirty, a disk of 20 MB/s", 448 * MIB, dirty, settle=30,
                       needs="EXT4_FS", disk="ext4", rate=20 * MIB),
    "tmpfs": Case("516 MiB in tmpfs", 256 * MIB, temporary),
    "mlocked": Case("500 MiB locked", 256 * MIB, hold("lock 500M")),
    "one_byte": Case("idle, a target of 1 byte", 1),
    "high_min_free": Case("min_free_kbytes=98304", 224 * MIB, min_free),
}


def squeeze(run: Run, case: Case, after: Optional[Callable[[Guest], None]] = None,
            **options: Any) -> Squeeze:
    """A guest with a load whose balloon is to leave it so much."""
    with contextlib.ExitStack() as stack:
        if case.needs:
            needs("guest", case.needs)
        if case.disk:
            system = "" if case.disk == "swap" else case.disk
            options.update(stack.enter_context(disk(run, 2 * GIB, system, case.rate)))
        guest = stack.enter_context(
            run.guest(memory=case.memory, append=case.append, **options))
        case.load(guest)
        job = guest.start("balloon_mem bystander 1M 20").wait_ready()
        before, rss, large = guest.vmstat(), guest.rss(), guest.large_blocks()
        seconds, actual = follow(guest, case.size, case.settle, 120)
        said, stat = job.finish(), guest.vmstat()
        result = Squeeze(seconds, actual, rss - guest.rss(),
                         (stat.get("pswpout", 0) - before.get("pswpout", 0)) * guest.arch.page,
                         stat["oom_kill"], large - guest.large_blocks(),
                         said.strip().splitlines()[-1])
        if after:
            after(guest)
        # The way back
        guest.balloon(guest.memory)
    print(f"# {result.actual // MIB} of {case.size // MIB} MiB after {result.seconds:.1f} s, the "
          f"host has {result.rss // MIB} MiB more, {result.swapped // MIB} MiB swapped, "
          f"{result.kills} killed, large blocks {-result.large // MIB:+} MiB; "
          f"bystander: {result.bystander}")
    return result


def judged(run: Run, name: str,
           after: Optional[Callable[[Guest], None]] = None) -> Squeeze:
    """What came of a case, in which nobody died."""
    if not run.bitmap:
        raise Skip("by page numbers a guest may die of it; bench.py shows that")
    result = squeeze(run, CASES[name], after)
    equal("processes killed", result.kills, 0)
    return result


def reached(run: Run, name: str, back: Optional[int] = None,
            large: Optional[int] = None) -> None:
    """The target is reached, the host has so much more, the guest hardly less in large blocks."""
    got = judged(run, name)
    equal("actual", got.actual, CASES[name].size)
    require(back is None or got.rss >= back, f"the host has {got.rss // MIB} MiB more")
    require(large is None or got.large <= large, f"large blocks: {-got.large // MIB:+} MiB")


def out_of_reach(run: Run, name: str, check: str = "true") -> None:
    """The target cannot be reached: the guest goes on, and keeps what it needs."""
    def after(guest: Guest) -> None:
        # A process can be started, and has memory.
        guest.sh(f"balloon_mem touch 1M && {check}", 60)
        time.sleep(3)
        equal("lines that say that the target is out of reach", puffs(guest), 1)

    got = judged(run, name, after)
    require(got.actual > CASES[name].size, "a target out of reach was reached")


@test
def crumbs(run: Run) -> None:
    """used and freed but for one page in 32: the host gets it back, the guest keeps huge pages"""
    reached(run, "crumbs", 970 * MIB, 120 * MIB)


@test
def used_whole(run: Run) -> None:
    """used and freed: what the host gets back is all that went into the balloon"""
    reached(run, "used_whole", 970 * MIB)


@test
def granule_hugetlb(run: Run) -> None:
    """on memory of huge pages, used and freed, the host gets whole ones back"""
    if not run.bitmap:
        raise Skip("of page numbers QEMU discards no part of a huge page")
    if not has_property("qemu", "page-bitmap-granule"):
        raise Skip("this QEMU does not tell its granule")
    size = 2 * GIB
    with huge_pages(run.kernel, size), run.guest(backend="hugetlb", memory=size) as guest:
        guest.sh("balloon_mem touch 1500M", 120)
        move = guest.balloon(size - GIB)
        equal("pages that were inflated in vain", move.stats["partial-bytes"], 0)
        near("RSS rose by", move.rss, -GIB, 8 * MIB)


@test
def granule_property(run: Run) -> None:
    """with page-bitmap-granule=2M crumbs stay with the guest as long as there are large blocks"""
    if not run.bitmap:
        raise Skip("page numbers know of no granule")
    if not has_property("qemu", "page-bitmap-granule"):
        raise Skip("this QEMU has no such property")
    with run.guest(memory=2 * GIB, balloon={"page-bitmap-granule": "2M"}) as guest:
        guest.start("balloon_mem fragment 600M 32").wait_ready(120)
        large = guest.large_blocks()
        guest.balloon(2 * GIB - 512 * MIB)
        near("large blocks fell by", large - guest.large_blocks(), 512 * MIB, 32 * MIB)
        # What is beyond them can be had as well.
        guest.balloon(640 * MIB)


@test
def swap(run: Run) -> None:
    """memory in use that is cold, and swap: the target is reached, and nobody is killed"""
    reached(run, "swap", 120 * MIB)


@test
def punched(run: Run) -> None:
    """huge pages freed in part, whole until reclaim splits them, are had"""
    reached(run, "punched", 900 * MIB)


@test
def dirty_disk(run: Run) -> None:
    """a file that has to be written to a slow disk first: nobody is killed, and it is had"""
    reached(run, "dirty_disk")


@test
def rounds(run: Run) -> None:
    """a working set that is read in rounds, larger than what is left: nobody is killed"""
    reached(run, "rounds")


@test
def tmpfs(run: Run) -> None:
    """files in tmpfs without swap stay, and nobody is killed"""
    out_of_reach(run, "tmpfs", "cksum < /mnt/file | cmp - /tmp/sum")


@test
def mlocked(run: Run) -> None:
    """locked memory stays, and nobody is killed"""
    out_of_reach(run, "mlocked")


@test
def one_byte(run: Run) -> None:
    """a target of one byte: the guest keeps what it needs, and its log says so once"""
    out_of_reach(run, "one_byte")


@test
def high_min_free(run: Run) -> None:
    """min_free_kbytes=98304: what others cannot have is not kept for them"""
    reached(run, "high_min_free")


@test
def oom_while_inflating(run: Run) -> None:
    """deflate-on-oom: a process that wants more than is left gets it, again and again"""
    with run.guest(balloon={"deflate-on-oom": "on"}) as guest:
        for _ in range(3):
            guest.set_target(64 * MIB)
            guest.sh("balloon_mem touch 500M", 90)
        equal("processes killed", guest.vmstat()["oom_kill"], 0)
        guest.balloon(GIB)


@test
def up_and_down(run: Run) -> None:
    """a target that goes down and up 100 times beside memory that is swapped"""
    needs("guest", "SWAP")
    dice = random.Random(1)
    with disk(run, 2 * GIB) as more, run.guest(**more) as guest:
        total = guest.meminfo()["MemTotal"]
        swapping("hold 400M")(guest)
        stamp = guest.start("balloon_mem stamp 64M").wait_ready()
        for _ in range(50):
            guest.set_target(dice.randrange(320, 640) * MIB)
            time.sleep(dice.uniform(0, 0.1))
            guest.set_target(dice.randrange(640, 1024) * MIB)
            time.sleep(dice.uniform(0, 0.1))
        guest.balloon(448 * MIB)
        equal("MemTotal", guest.meminfo()["MemTotal"], total - 576 * MIB)
        guest.balloon(GIB)
        equal("MemTotal", guest.meminfo()["MemTotal"], total)
        stamp.finish()
        equal("processes killed", guest.vmstat()["oom_kill"], 0)


@test
def memory_comes_free(run: Run) -> None:
    """a target that was out of reach is reached soon after somebody else gives memory back"""
    with run.guest() as guest:
        job = guest.start("balloon_mem hold 500M").wait_ready(60)
        move = guest.balloon(384 * MIB, settle=4)
        if move.actual == 384 * MIB:
            raise Failure("the target was to be out of reach")
        job.kill()
        guest.balloon(384 * MIB, timeout=10)


@test
def two_nodes(run: Run) -> None:
    """two NUMA nodes, one of them full: what is free on the other is had"""
    needs("guest", "NUMA_EMU")
    if lab.arch(run.kernel).program != lab.X86.program:
        raise Skip("the lab knows NUMA of x86 only")
    with run.guest(append="numa=fake=2") as guest:
        equal("nodes", guest.sh("ls -d /sys/devices/system/node/node* | wc -l").strip(), "2")
        guest.start("balloon_mem hold 300M").wait_ready(60)
        guest.balloon(512 * MIB)
        guest.balloon(GIB)
        equal("processes killed", guest.vmstat()["oom_kill"], 0)


@test
def puffs_once(run: Run) -> None:
    """the log says once of each target that it is out of reach"""
    if not run.bitmap:
        raise Skip("by page numbers a guest may die of it")
    with run.guest(memory=512 * MIB) as guest:
        for count in (1, 2):
            guest.set_target(count * MIB)
            time.sleep(12)
            equal("lines that say that the target is out of reach", puffs(guest), count)
        guest.balloon(512 * MIB)
