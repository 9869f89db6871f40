# SPDX-License-Identifier: GPL-2.0
"""Tests of inflating and deflating: accounts, content, and all that can come between."""

from __future__ import annotations

import base64
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Tuple

import lab
from harness import (BITMAP_BIT, FAST, PACKED_BIT, VERSION_1_BIT, Failure, Run, called, configured,
                     equal, features, huge_pages, near, needs, needs_pending_interrupts, refuses,
                     require, test, variants)
from lab import BUILD, GIB, MIB, PAGE, CommandError, Guest, LabError, Skip, artifact, build


def counters(guest: Guest, before: Dict[str, int], bitmap: bool, pages: int,
             migrated: int = 0) -> None:
    """Judge the device's counters after so many pages of 4 KiB went in and came out.

    Of migrated pages the number is the guest's.
    """
    rose = {key: value - before[key] for key, value in guest.stats().items()}
    if not rose:
        return
    equal("bad records", rose["bad-records"], 0)
    equal("skipped runs", rose["skipped-runs"], 0)
    require(rose["messages"] > 0, "no message was counted")
    if bitmap:
        require(rose["records"] > 0, "no record came")
        migrated *= guest.arch.page // PAGE
        equal("pages inflated", rose["inflated-pages"], pages + migrated)
        equal("pages deflated", rose["deflated-pages"], pages + migrated)
    else:
        equal("records", rose["records"], 0)


# What a guest of 1 GiB is left where a page takes long, by page numbers
FEW = 896 * MIB


def exercise(guest: Guest, low: int, bitmap: bool, rounds: int = 1,
             stamped: int = 32 * MIB) -> None:
    """Inflate and deflate beside memory in use; content and accounts must fit."""
    equal("PAGE_BITMAP negotiated", features(guest)[BITMAP_BIT], str(int(bitmap)))
    job = guest.start(f"balloon_mem stamp {stamped}").wait_ready()
    before, migrated = guest.stats(), guest.vmstat()["balloon_migrate"]
    total = guest.meminfo()["MemTotal"]
    for _ in range(rounds):
        guest.balloon(low)
        equal("MemTotal, inflated", guest.meminfo()["MemTotal"],
              total - (guest.memory - low))
        guest.balloon(guest.memory)
        equal("MemTotal, deflated", guest.meminfo()["MemTotal"], total)
    job.finish()
    counters(guest, before, bitmap, rounds * (guest.memory - low) // PAGE,
             guest.vmstat()["balloon_migrate"] - migrated)


@test
def lab_sees_faults(run: Run) -> None:
    """the lab notices a wrong page, a failed command, a silence, a warning, a QEMU that crashed"""
    guest = run.guest()
    try:
        job = guest.start("balloon_mem stamp 16M").wait_ready()
        job.signal("STOP")
        guest.sh(f"""
            at=$(sed -n 's/^ready at //p' {job.path}.out)
            printf '\\001' | dd of=/proc/$(cat {job.path}.pid)/mem bs=1 conv=notrunc \\
                seek=$((at + {guest.arch.page * 77 + 1000}))""")
        job.signal("CONT")
        try:
            job.finish()
            raise Failure("a wrong page was not found")
        except CommandError as error:
            require("page 77 " in error.output, f"not the page: {error.output}")
        try:
            guest.sh("exit 3")
            raise Failure("a failed command passed")
        except CommandError as error:
            equal("status", error.status, 3)
        try:
            guest.event("NEVER", 1)
            raise Failure("an event that does not come did")
        except LabError as error:
            require("no event NEVER" in str(error), str(error))
        guest.sh("echo '<4>WARNING: made up' > /dev/kmsg; sleep 0.2")
    except BaseException:
        guest.close()
        raise
    try:
        guest.close()
        raise Failure("a warning on the console was not found")
    except LabError as error:
        require("made up" in str(error), str(error))
    guest = run.guest()
    os.kill(guest.pid, signal.SIGSEGV)
    os.waitid(os.P_PID, guest.pid, os.WEXITED | os.WNOWAIT)
    try:
        guest.close()
        raise Failure("a QEMU that crashed was not found")
    except LabError as error:
        require(f"ended with {-signal.SIGSEGV}" in str(error), str(error))


@test
def sizes(run: Run) -> None:
    """several sizes: the guest's accounts, the device's and the host's RSS agree"""
    with run.guest(prealloc=True) as guest:
        total = guest.meminfo()["MemTotal"]
        before, pages, last, lowest = guest.stats(), 0, guest.memory, guest.memory
        for size in (768, 512, 256, 768, 160, 896, 1024):
            size *= MIB
            memfree = guest.meminfo()["MemFree"]
            move = guest.balloon(size)
            info = guest.meminfo()
            equal("actual", guest.actual(), size)
            equal("MemTotal", info["MemTotal"], total - (guest.memory - size))
            # Per-CPU lists may keep an eighth of what was freed.
            near("MemFree rose by", info["MemFree"] - memfree, size - last,
                 guest.memory // 8 + 16 * MIB)
            pages += max(last - size, 0) // PAGE
            if last == lowest and size < last:
                near("RSS rose by", move.rss, size - last, 16 * MIB)
            last, lowest = size, min(size, lowest)
        counters(guest, before, run.bitmap, pages)
        rss = guest.rss()
        guest.sh("balloon_mem touch 850M", 90)
        require(guest.rss() - rss > 500 * MIB, "touched memory did not come back: "
                f"RSS rose by {(guest.rss() - rss) // MIB} MiB")


@test
def odd_sizes(run: Run) -> None:
    """sizes around every boundary are reached exactly, one page up or down too"""
    with run.guest() as guest:
        before, pages, last, page = guest.stats(), 0, 0, guest.arch.page
        total = guest.meminfo()["MemTotal"]
        steps = [edge + more for edge in (1, 64, 256, 512, 1024, 8128, 32768, 130048)
                 for more in (-1, 0, 1) if edge * page <= 508 * MIB]
        for size in steps + [1, 0, 7, 6, 5, 8, 0]:
            guest.balloon(guest.memory - size * page)
            equal("MemTotal", guest.meminfo()["MemTotal"], total - size * page)
            pages += max(size - last, 0) * page // PAGE
            last = size
        if page > PAGE:
            # What is no whole page of the guest's is rounded, and then it is quiet.
            move = guest.balloon(guest.memory - page - PAGE, settle=1)
            equal("actual", move.actual, guest.memory - 2 * page)
            pages += 2 * page // PAGE
            kicks = guest.stats()["kicks"]
            time.sleep(0.5)
            equal("kicks", guest.stats()["kicks"], kicks)
            guest.balloon(guest.memory)
        counters(guest, before, run.bitmap, pages)


@test
def content(run: Run) -> None:
    """memory in use keeps its content, three times down and up"""
    with run.guest() as guest:
        exercise(guest, 448 * MIB, run.bitmap, rounds=3, stamped=320 * MIB)


@test
def deflated_content(run: Run) -> None:
    """memory that was in the balloon is usable all over again"""
    size = 512 * MIB
    with run.guest(memory=size) as guest:
        guest.balloon(128 * MIB)
        guest.balloon(size)
        guest.start("balloon_mem stamp 384M 2").wait_ready().finish(sig="CONT")


@variants(*((kernel, qemu) for kernel in ("guest", "guest-debian")
            for qemu in ("qemu", "qemu-stock")))
def pair(run: Run, names: Any) -> None:
    """{}: bitmaps where both know them, PFN arrays elsewhere"""
    kernel, qemu = names
    offered = run.bitmap and qemu == "qemu"
    with run.guest(kernel=kernel, qemu=qemu, bitmap=offered) as guest:
        exercise(guest, FEW, offered and kernel == "guest")


@test
def feature_off(run: Run) -> None:
    """with page-bitmap=off not one record comes"""
    with run.guest(bitmap=False) as guest:
        exercise(guest, FEW, False)


@test
def feature_declined(run: Run) -> None:
    """a driver that declines the offered feature sends PFN arrays"""
    needs("guest", "VIRTIO_DEBUG")
    with run.guest() as guest:
        guest.sh(f"""
            cd /sys/bus/virtio/drivers/virtio_balloon
            dev=$(basename virtio*)
            echo $dev > unbind
            echo {BITMAP_BIT} > /sys/kernel/debug/virtio/$dev/filter_feature_add
            echo $dev > bind""")
        exercise(guest, FEW, False)


@test
def legacy(run: Run) -> None:
    """a device without VERSION_1 gets PFN arrays"""
    with run.guest(balloon={**lab.arch(run.kernel).legacy}) as guest:
        equal("VERSION_1 negotiated", features(guest)[VERSION_1_BIT], "0")
        exercise(guest, FEW, False)


@variants(1, 2, 128, 1024)
def queue_size(run: Run, size: int) -> None:
    """rings of {} entries"""
    with run.guest(balloon={"x-queue-size": size}) as guest:
        exercise(guest, 256 * MIB, run.bitmap, rounds=2)


@test
def packed(run: Run) -> None:
    """packed rings"""
    with run.guest(balloon={"packed": "on"}) as guest:
        equal("packed rings negotiated", features(guest)[PACKED_BIT], "1")
        exercise(guest, 256 * MIB, run.bitmap, rounds=2)


@test
def mmio(run: Run) -> None:
    """virtio-mmio"""
    with run.guest(machine="microvm") as guest:
        exercise(guest, 256 * MIB, run.bitmap, rounds=2)


@test
def neighbours(run: Run) -> None:
    """statistics, free page reporting and hinting beside the bitmaps"""
    with run.guest(balloon={"free-page-reporting": "on"}) as guest:
        device = "/machine/peripheral/balloon0"
        guest.qmp("qom-set", path=device, property="guest-stats-polling-interval", value=1)
        exercise(guest, 256 * MIB, run.bitmap, rounds=2)
        deadline = guest.deadline(15)
        total, seen = guest.meminfo()["MemTotal"], -1
        while seen != total:
            require(time.monotonic() < deadline,
                    f"total memory in the statistics: {seen}, not {total}")
            time.sleep(0.1)
            stats = guest.qmp("qom-get", path=device, property="guest-stats")
            seen = stats["stats"]["stat-total-memory"]


@test
def compaction(run: Run) -> None:
    """balloon pages move while the balloon changes; no content is lost"""
    with run.guest(memory=512 * MIB) as guest:
        stamp = guest.start("balloon_mem stamp 64M").wait_ready()
        before, moved = guest.stats(), guest.vmstat()["balloon_migrate"]
        loop = guest.start("sh -c 'while sleep 0.2; do echo 1 > /proc/sys/vm/compact_memory; done'")
        pages = 0
        for _ in range(2):
            # Holes between pages in use, so that there is something to compact.
            load = guest.start("balloon_mem fragment 280M 4").wait_ready()
            guest.balloon(288 * MIB)
            seen = guest.vmstat()["balloon_migrate"]
            load.kill()
            guest.until(lambda: guest.vmstat()["balloon_migrate"] > seen, 10)
            guest.balloon(432 * MIB)
            guest.balloon(336 * MIB)
            guest.balloon(guest.memory)
            pages += (224 + 96) * MIB // PAGE
        loop.kill()
        stamp.finish()
        moved = guest.vmstat()["balloon_migrate"] - moved
        require(moved > 0, "no balloon page was migrated")
        counters(guest, before, run.bitmap, pages, moved)
        guest.start("balloon_mem stamp 300M 2").wait_ready().finish(sig="CONT")


@test
def deflate_on_oom(run: Run) -> None:
    """deflate-on-oom=on: an allocation larger than what is free takes from the balloon"""
    with run.guest(memory=640 * MIB, balloon={"deflate-on-oom": "on"}) as guest:
        total = guest.meminfo()["MemTotal"]
        guest.balloon(192 * MIB)
        info = guest.meminfo()
        equal("MemTotal", info["MemTotal"], total)
        require(info["MemFree"] < 192 * MIB, f"free: {info['MemFree'] // MIB} MiB")
        stamp = guest.start("balloon_mem stamp 300M 2").wait_ready(90)
        require(guest.actual() > 300 * MIB, f"balloon left {guest.actual() // MIB} MiB")
        stamp.finish(sig="CONT")
        equal("processes killed", guest.vmstat()["oom_kill"], 0)
        guest.balloon(guest.memory)


@test
def greedy(run: Run) -> None:
    """a target that cannot be reached harms nobody, and the way back is free"""
    with run.guest() as guest:
        total = guest.meminfo()["MemTotal"]
        move = guest.balloon(16 * MIB, settle=2)
        require(16 * MIB < move.actual < 256 * MIB, f"reached {move.actual // MIB} MiB")
        guest.balloon(GIB)
        equal("MemTotal", guest.meminfo()["MemTotal"], total)
        equal("processes killed", guest.vmstat()["oom_kill"], 0)
        exercise(guest, 512 * MIB, run.bitmap)


@test
def reload(run: Run) -> None:
    """the module goes and comes back while the balloon inflates"""
    with run.guest(memory=2 * GIB) as guest:
        total = guest.meminfo()["MemTotal"]
        stamp = guest.start("balloon_mem stamp 64M").wait_ready()
        for delay in (0, 0.01, 0.03, 0.1, 0.3):
            guest.set_target(640 * MIB)
            time.sleep(delay)
            guest.sh("rmmod virtio_balloon")
            equal("MemTotal without the module", guest.meminfo()["MemTotal"], total)
            equal("actual without the module", guest.actual(), guest.memory)
            guest.sh("insmod /lib/modules/virtio_balloon.ko")
        guest.balloon(640 * MIB)
        guest.sh("""cd /sys/bus/virtio/drivers/virtio_balloon
                    dev=$(basename virtio*); echo $dev > unbind; echo $dev > bind""")
        guest.balloon(640 * MIB)
        equal("MemTotal", guest.meminfo()["MemTotal"], total - 1408 * MIB)
        guest.balloon(guest.memory)
        equal("MemTotal", guest.meminfo()["MemTotal"], total)
        stamp.finish()


def after_sleep(guest: Guest, stamp: lab.Job) -> None:
    """The balloon is as it was, and works."""
    guest.balloon(512 * MIB)
    equal("MemTotal fell by", guest.memory - guest.actual(), 512 * MIB)
    guest.balloon(guest.memory)
    guest.balloon(768 * MIB)
    stamp.finish()


@test
def suspend_to_ram(run: Run) -> None:
    """suspend to RAM with pages in the balloon"""
    needs("guest", "SUSPEND")
    with run.guest(sleeps=True) as guest:
        if "deep" not in guest.sh("cat /sys/power/mem_sleep"):
            raise Skip("the guest knows no suspend to RAM")
        stamp = guest.start("balloon_mem stamp 128M").wait_ready()
        guest.balloon(512 * MIB)
        guest.sh("echo deep > /sys/power/mem_sleep")
        job = guest.start("sh -c 'sleep 2; echo mem > /sys/power/state'")
        guest.event("SUSPEND")
        guest.wait_status("suspended")
        guest.qmp("system_wakeup")
        job.finish(sig="CONT")
        after_sleep(guest, stamp)


@test
def suspend_to_idle(run: Run) -> None:
    """suspend to idle, devices only, with pages in the balloon"""
    needs("guest", "SUSPEND", "PM_SLEEP_DEBUG")
    with run.guest() as guest:
        stamp = guest.start("balloon_mem stamp 128M").wait_ready()
        guest.balloon(512 * MIB)
        guest.sh("""
            echo 1 > /sys/module/suspend/parameters/pm_test_delay
            echo devices > /sys/power/pm_test
            echo freeze > /sys/power/state
            echo none > /sys/power/pm_test""")
        after_sleep(guest, stamp)


@test
def reset(run: Run) -> None:
    """the machine is reset while the balloon inflates, and boots again"""
    with run.guest(memory=2 * GIB) as guest:
        total = guest.meminfo()["MemTotal"]
        for delay in (0.02, 0.1, 0.5):
            guest.set_target(512 * MIB)
            time.sleep(delay)
            guest.reset()
            # QEMU keeps the size that the balloon had before.
            guest.until(lambda: guest.meminfo()["MemTotal"] == total - 1536 * MIB, 120)
            guest.balloon(512 * MIB)
            equal("MemTotal", guest.meminfo()["MemTotal"], total - 1536 * MIB)
            guest.balloon(guest.memory)
            equal("MemTotal", guest.meminfo()["MemTotal"], total)
        exercise(guest, GIB, run.bitmap)


@test
def windows(run: Run) -> None:
    """8 GiB: several windows, memory on both sides of the hole below 4 GiB"""
    with run.guest(memory=8 * GIB, reserve=False) as guest:
        exercise(guest, GIB, run.bitmap)


@test
def large(run: Run) -> None:
    """32 GiB, more than the host may have"""
    with run.guest(memory=32 * GIB, reserve=False) as guest:
        exercise(guest, 2 * GIB, run.bitmap)


@test
def memfd(run: Run) -> None:
    """shared memory: the host's RssShmem falls by what was inflated"""
    with run.guest(backend="memfd", prealloc=True) as guest:
        move = guest.balloon(320 * MIB)
        near("RSS rose by", move.rss, -704 * MIB, 8 * MIB)
        guest.balloon(GIB)
        exercise(guest, 320 * MIB, run.bitmap)


@test
def hugetlb(run: Run) -> None:
    """memory of 2 MiB pages: whole ones are given back, parts are not discarded"""
    size = 512 * MIB
    with huge_pages(run.kernel, size), run.guest(backend="hugetlb", prealloc=True, memory=size) as guest:
        move = guest.balloon(192 * MIB)
        # Of an array of 256 pages QEMU never discards a part of a huge page.
        require(not run.bitmap or move.rss < -240 * MIB,
                f"RSS rose by {move.rss // MIB} MiB, not by -320")
        guest.balloon(guest.memory)
        exercise(guest, 192 * MIB, run.bitmap, stamped=64 * MIB)


@test
def compaction_waits(run: Run) -> None:
    """compaction leaves the pages of a balloon alone while it moves"""
    if not run.bitmap:
        raise Skip("with PFN arrays the driver does nothing about it")
    with run.guest(memory=2 * GIB) as guest:
        guest.start("balloon_mem fragment 1400M 32").wait_ready(120)
        loop = guest.start("sh -c 'while :; do echo 1 > /proc/sys/vm/compact_memory; done'")
        before, pages = guest.vmstat()["balloon_migrate"], 0
        for _ in range(5):
            guest.balloon(512 * MIB)
            guest.balloon(guest.memory)
            pages += 2 * 1536 * MIB // PAGE
        moved = guest.vmstat()["balloon_migrate"] - before
        # In pauses it does not. With PFN arrays it moves a tenth of all pages.
        require(moved < pages // 300, f"{moved} pages were migrated while {pages} moved")
        loop.kill()


def sway_until(guest: Guest, over: Callable[[], bool], sizes: Tuple[int, int],
               pause: float, seconds: float = 60) -> None:
    """Have the balloon move between two sizes until something is over."""
    deadline, turns = guest.deadline(seconds), itertools.cycle(sizes)
    while not over():
        require(time.monotonic() < deadline, "it does not end")
        guest.set_target(next(turns))
        time.sleep(pause)


def sway(guest: Guest, job: lab.Job, sizes: Tuple[int, int], pause: float,
         seconds: float = 60) -> str:
    """The same, until a command has ended; its output."""
    sway_until(guest, lambda: not job.running(), sizes, pause, seconds)
    return job.finish()


@test
def offline_while_moving(run: Run) -> None:
    """memory goes off line, with what is in it of a balloon that moves all the time"""
    needs("guest", "MEMORY_HOTREMOVE")
    if run.kernel == "guest-debug":
        raise Skip("KASAN's own memory is at the end of all; virtio_mem has movable memory there")
    with run.guest(memory=2 * GIB, append="movablecore=256M") as guest:
        stamp = guest.start("balloon_mem stamp 64M").wait_ready()
        before = guest.vmstat()["balloon_migrate"]
        loop = guest.start("""sh -c '
            cd /sys/devices/system/memory
            for m in $(grep -l Movable */valid_zones); do
                m=${m%/*}; echo offline > $m/state && echo online_movable > $m/state && echo $m
            done 2> /dev/null; true'""")
        # It never rests for as long as compaction has to leave it alone.
        sizes = guest.memory - 48 * MIB, guest.memory - 80 * MIB
        blocks = sway(guest, loop, sizes, 0.05).splitlines()
        moved = guest.vmstat()["balloon_migrate"] - before
        require(blocks and moved > 1000, f"{blocks}, {moved} pages moved")
        guest.balloon(guest.memory)
        stamp.finish()


@test
def contiguous(run: Run) -> None:
    """who needs all of a piece of memory gets it while a balloon moves that is in it"""
    needs("guest", "CMA_DEBUGFS")
    area, size = 256 * MIB, 512 * MIB
    # More than half of what is free is in that area, and so movable pages come from it.
    with run.guest(memory=size, append=f"cma={area // MIB}M") as guest:
        guest.balloon(size - 32 * MIB)
        left = guest.meminfo()["CmaFree"]
        require(left < area - 16 * MIB, f"{left // MIB} MiB of the area are free")
        before = guest.vmstat()["balloon_migrate"]
        pages = area // guest.arch.page
        # A page of anybody's that somebody holds for a moment makes an attempt fail.
        allocations = guest.start(f"""sh -c '
            cd /sys/kernel/debug/cma/reserved
            for i in 1 2 3; do
                got=
                for try in 1 2 3 4; do echo {pages} > alloc && got=1 && break; sleep 0.1; done
                [ "$got" ] && echo {pages} > free || exit 1
            done'""")
        sway(guest, allocations, (size - 40 * MIB, size - 32 * MIB), 0.02)
        moved = guest.vmstat()["balloon_migrate"] - before
        require(moved > 1000, f"{moved} pages of the balloon moved")
        guest.balloon(size)


@test
def gigantic(run: Run) -> None:
    """huge pages of 1 GiB are to be had where pages of a balloon are that moves all the time"""
    needs("guest", "CMA", "HUGETLBFS")
    if lab.arch(run.kernel) != lab.X86:
        raise Skip("the guest's CPU has no pages of 1 GiB")
    size, area = 4 * GIB, GIB
    with run.guest(memory=size, reserve=False, append=f"hugetlb_cma={area // GIB}G") as guest:
        guest.balloon(size - 40 * MIB)
        left = guest.meminfo()["CmaFree"]
        require(left < area - 8 * MIB, f"{left // MIB} MiB of the area are free")
        before = guest.vmstat()["balloon_migrate"]
        loop = guest.start("""sh -c '
            cd /sys/kernel/mm/hugepages/hugepages-1048576kB || exit 1
            for i in 1 2 3; do
                for try in 1 2 3 4; do
                    echo 1 > nr_hugepages; read -r nr < nr_hugepages; echo 0 > nr_hugepages
                    [ $nr = 0 ] || break
                    sleep 0.1
                done
                [ $nr = 1 ] || exit 1
            done'""")
        sway(guest, loop, (size - 56 * MIB, size - 40 * MIB), 0.02, 120)
        moved = guest.vmstat()["balloon_migrate"] - before
        require(moved > 1000, f"{moved} pages of the balloon moved")
        guest.balloon(size)


@test
def virtio_mem(run: Run) -> None:
    """virtio-mem unplugs memory with what is in it of a balloon that moves all the time, twice"""
    needs("guest", "VIRTIO_MEM")
    size, path = 256 * MIB, "/machine/peripheral/mem0"
    with run.guest(dimms=True, append="memhp_default_state=online_movable",
                   objects=[f"memory-backend-ram,id=plugged,size={size}"],
                   devices=["virtio-mem-pci,id=mem0,memdev=plugged"]) as guest:

        def resize(to: int) -> None:
            guest.qmp("qom-set", path=path, property="requested-size", value=to)

        def plugged() -> int:
            return int(guest.qmp("qom-get", path=path, property="size"))

        stamp = guest.start("balloon_mem stamp 64M").wait_ready()
        total = guest.meminfo()["MemTotal"]
        # The device's memory is not in the sizes of the balloon.
        sizes = guest.memory - 48 * MIB, guest.memory - 80 * MIB
        for _ in range(2):
            resize(size)
            guest.until(lambda: guest.meminfo()["MemTotal"] == total + size, 30)
            # Movable memory is taken first, and all of that is the device's.
            guest.balloon(min(sizes))
            before, begin = guest.vmstat()["balloon_migrate"], time.monotonic()
            resize(0)
            sway_until(guest, lambda: not plugged(), sizes, 0.05, 120)
            moved = guest.vmstat()["balloon_migrate"] - before
            print(f"# gone after {time.monotonic() - begin:.1f} s, {moved} pages moved")
            require(moved > 1000, f"{moved} pages of the balloon moved")
            guest.balloon(guest.memory)
            equal("MemTotal", guest.meminfo()["MemTotal"], total)
        stamp.finish()


@variants("failslab", "fail_page_alloc")
def no_memory(run: Run, kind: str) -> None:
    """{}: the balloon's own allocations fail, the balloon goes on"""
    needs("guest-debug", "FAULT_INJECTION_DEBUG_FS", kind.upper())
    # Single pages from all over: a message has more windows than segments. Of each 128 MiB,
    # about a window, the guest has 32: under KASAN it takes minutes to scatter all of them.
    # Of the last it has all, or it would reclaim memory all the time.
    holes = ",".join(f"96M${at}M" for at in range(128, 1664, 128))
    # And a slab has two segments, or those left in one would do, and no page be wanted.
    with run.guest(kernel="guest-debug", memory=1536 * MIB,
                   append=f"slub_max_order=1 memmap={holes}") as guest:
        guest.start("balloon_mem scatter 300M 2").wait_ready(240)
        # After it, since it would take a CPU from it.
        stamp = guest.start("balloon_mem stamp 32M").wait_ready()
        before, moved = guest.stats(), guest.vmstat()["balloon_migrate"]
        # The workers that are there, so that the balloon's is among them. Of
        # pages, orders above 0 only.
        guest.sh(f"""
            for p in /proc/[0-9]*; do
                read -r name < $p/comm
                case $name in kworker*) echo 1 > $p/make-it-fail ;; esac
            done 2> /dev/null
            cd /sys/kernel/debug/{kind}
            echo Y > task-filter
            echo N > ignore-gfp-wait
            [ ! -e min-order ] || {{ echo 1 > min-order; echo N > ignore-gfp-highmem; }}
            echo 0 > verbose; echo 1000000 > times; echo 100 > probability""")
        # The scattered pages go first. With four segments, a message for every few of
        # them: slow under KASAN.
        guest.balloon(guest.memory - 60 * MIB)
        guest.balloon(guest.memory - 20 * MIB)
        left = int(guest.sh(f"cd /sys/kernel/debug/{kind}; echo 0 > probability; cat times"))
        stamp.finish()
        require(not run.bitmap or left < 1000000, "no allocation of the balloon failed")
        guest.balloon(guest.memory)
        moved = guest.vmstat()["balloon_migrate"] - moved
        counters(guest, before, run.bitmap, 60 * MIB // PAGE, moved)


@test
def migration_dirty(run: Run) -> None:
    """plain live migration: a page that is rewritten all the time arrives as it is"""
    with run.guest() as source, run.guest(incoming=True) as target:
        # Few pages, so that the TLB keeps them from one look at the log to the next.
        stamp = source.start("balloon_mem stamp 16M").wait_ready()
        source.migrate_to(target, parameters=FAST, rounds=6)
        stamp.guest = target
        stamp.finish()


@test
def migration(run: Run) -> None:
    """live migration with pages in the balloon, three times in a row"""
    source = run.guest()
    try:
        stamp = source.start("balloon_mem stamp 128M").wait_ready()
        source.balloon(512 * MIB)
        for _ in range(3):
            target = run.guest(incoming=True)
            try:
                source.migrate_to(target, parameters=FAST, rounds=3)
            except BaseException:
                target.close()
                raise
            source.close()
            stamp.guest = source = target
            equal("actual", source.actual(), 512 * MIB)
            source.balloon(768 * MIB)
            source.balloon(512 * MIB)
        stamp.finish()
        source.balloon(GIB)
        exercise(source, 512 * MIB, run.bitmap)
    finally:
        source.close()


@test
def migration_while_moving(run: Run) -> None:
    """live migration while the balloon inflates and deflates all the time"""
    needs_pending_interrupts()
    with run.guest() as source, run.guest(incoming=True) as target:
        total = source.meminfo()["MemTotal"]
        stamp = source.start("balloon_mem stamp 64M").wait_ready()
        sizes = itertools.cycle((256 * MIB, 960 * MIB, 320 * MIB, GIB))

        def move() -> None:
            if source.status() == "running":
                source.set_target(next(sizes))
                time.sleep(random.uniform(0.01, 0.15))

        source.migrate_to(target, parameters=FAST, rounds=4, during=move)
        stamp.guest = target
        # No size of those above, which it may have while it goes to another.
        target.balloon(240 * MIB)
        equal("MemTotal", target.meminfo()["MemTotal"], total - 784 * MIB)
        target.balloon(GIB)
        equal("MemTotal", target.meminfo()["MemTotal"], total)
        stamp.finish()


@test
def migration_refused(run: Run) -> None:
    """a target without the feature refuses the guest, which goes on where it was"""
    if not run.bitmap:
        raise Skip("there is no feature to refuse")
    with run.guest() as source:
        source.balloon(512 * MIB)
        refuses(source, run.guest(incoming=True, bitmap=False))
        source.balloon(GIB)
        exercise(source, 512 * MIB, True)


@variants("guest", "guest-module")
def init_on_alloc(run: Run, kernel: str) -> None:
    """{}: with init_on_alloc=1 pages for the balloon are not touched first, or few at a time"""
    with run.guest(kernel=kernel, backend="memfd",
                   append="init_on_alloc=1") as guest:
        # Shared memory comes in base pages: each page that is backed is a fault.
        before, rss = guest.faults(), guest.peak_rss(again=True)
        guest.balloon(512 * MIB)
        faults, peak = guest.faults() - before, guest.peak_rss() - rss
        pages = 512 * MIB // PAGE
        if called(kernel) == "guest-module":
            # Only mm can leave it out.
            require(peak < 128 * MIB, f"the host had to back {peak // MIB} MiB")
        else:
            require(faults < pages // 20, f"the host backed {faults} pages of {pages}")
        guest.balloon(GIB)
        exercise(guest, 768 * MIB, run.bitmap)


# Memory of a guest that is searched for leaks, which reads the descriptor of each page
SCANNED = 384 * MIB


def scan_when_told(guest: Guest) -> None:
    """Have a guest not search for leaks by itself, after a minute."""
    guest.sh("cd /sys/kernel/debug; [ ! -e kmemleak ] || echo scan=off > kmemleak")


def no_leaks(guest: Guest, kernel: str) -> None:
    """Nothing of the driver that is gone is left, if the kernel can say."""
    if configured(called(kernel), "DEBUG_KMEMLEAK"):
        # An object counts as lost at the age of 5 s, seen twice.
        leaks = guest.sh("""cd /sys/kernel/debug
            sleep 5; echo scan > kmemleak; echo scan > kmemleak; cat kmemleak""", 120)
        require(re.search("balloon|page_bitmap|spare_pages|unused_pages", leaks) is None, leaks)


def run_kunit(run: Run, kernel: str, faults: bool) -> None:
    """Load each suite that a guest has as a module.

    What the device does wrong takes as long as all else, and waits most of it. So it has
    a guest of its own: device_faults is the one case that begins like that.
    """
    glob = "virtio_balloon_device.device_" + ("f*" if faults else "[!f]*")
    suites = sorted(path.name for path in artifact(called(kernel)).glob("*_kunit.ko")
                    if not faults or "device" in path.name)
    if not suites:
        raise Skip("the guest has no KUnit modules")
    # A suite lets probe run out of memory.
    with run.guest(kernel=kernel, memory=SCANNED, append="kmemleak=on",
                   expected="failed with error -12$") as guest:
        scan_when_told(guest)
        guest.sh("cd /lib/modules; [ ! -e kunit.ko ] || insmod kunit.ko")
        # What a suite makes fail by itself, any allocation, fails without a word.
        guest.sh("""
            for f in /sys/kernel/debug/fail*; do
                [ -e $f/ignore-gfp-wait ] || continue
                echo 0 > $f/verbose; echo N > $f/ignore-gfp-wait
                [ ! -e $f/min-order ] || echo 0 > $f/min-order
            done""")
        passed = 0
        # That with the device comes last: when a driver fails the others it may hang.
        suites.sort(key=lambda name: "device" in name)
        for module in suites:
            if "device" in module:
                guest.sh(f"printf %s '{glob}' > /sys/module/kunit/parameters/filter_glob")
            guest.sh(f"insmod /lib/modules/{module}", 200)
            results = guest.sh("cat /sys/kernel/debug/kunit/*/results")
            (run.logs / "kunit.tap").write_text(results, "utf-8")
            # What failed, and what it says of it before.
            failed = re.findall(r"^ *(?:#.* FAILED at .*|Expected .*|not ok .*)", results, re.M)
            require(not failed, "\n".join(line[:200] for line in failed))
            # What a suite cannot show elsewhere it shows where allocations can fail.
            skipped = re.findall(r"^\s*ok .*# SKIP.*", results, re.M)
            require(not (skipped and configured(called(kernel), "FAULT_INJECTION")), f"{skipped}")
            passed = len(re.findall(r"^ok ", results, re.M))
        require(passed >= len(suites), f"{passed} suites passed of {suites}")
        guest.sh("cd /lib/modules; rmmod " + " ".join(reversed(suites)) + " virtio_balloon")
        no_leaks(guest, kernel)


@test
def kunit(run: Run) -> None:
    """the KUnit suites that the guest has as modules"""
    run_kunit(run, "guest", faults=False)


@test
def kunit_faults(run: Run) -> None:
    """the KUnit case of what a device can do wrong"""
    run_kunit(run, "guest", faults=True)


@test
def kasan_kunit(run: Run) -> None:
    """the KUnit suites under KASAN, UBSAN and lockdep"""
    run_kunit(run, "guest-debug", faults=False)


@test
def kasan_kunit_faults(run: Run) -> None:
    """the KUnit case of what a device can do wrong, under the same"""
    run_kunit(run, "guest-debug", faults=True)


@test
def kselftest(run: Run) -> None:
    """the kselftest of the guest, at several sizes of the balloon"""
    build("tree")
    tree = BUILD.parent / "linux" / "tools/testing/selftests/balloon"
    out = run.logs / "kselftest"
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["make", "-s", "-C", tree, f"OUTPUT={out}",
                    f"CC={lab.arch(run.kernel).compiler}", "all"], check=True, stdout=sys.stderr)
    program = base64.b64encode((out / "balloon_test").read_bytes()).decode()
    with run.guest() as guest:
        for at in range(0, len(program), 60000):
            guest.sh(f"echo {program[at:at + 60000]} | base64 -d >> /tmp/balloon_test")
        guest.sh("chmod +x /tmp/balloon_test")
        for size in (1024, 300, 777, 1024):
            guest.balloon(size * MIB)
            tap = guest.sh("/tmp/balloon_test 2>&1 || true", 60)
            (run.logs / f"kselftest-{size}.tap").write_text(tap, "utf-8")
            require(re.search(r"^# .*pass:3 fail:0 ", tap, re.M) is not None, tap)


@test
def debug(run: Run) -> None:
    """everything once under lockdep, KASAN, page_owner and, if there, kmemleak"""
    # With both a page takes 25 times as long, so the other tests do without, and this one
    # moves no more than a few holds of the balloon's lock.
    low = SCANNED - 128 * MIB
    with run.guest(kernel="guest-debug", memory=SCANNED, balloon={"misc-vq": "on"},
                   append="kmemleak=on page_owner=on debug_pagealloc=on") as guest:
        scan_when_told(guest)
        exercise(guest, low, run.bitmap, rounds=2)
        guest.set_target(low)
        guest.sh("rmmod virtio_balloon; insmod /lib/modules/virtio_balloon.ko")
        guest.balloon(low)
        guest.sh("echo 1 > /proc/sys/vm/compact_memory", 60)
        equal("answers", guest.ask()["answers"], 1)
        guest.balloon(SCANNED)
        guest.ask(wait=False)
        guest.sh("rmmod virtio_balloon")
        no_leaks(guest, "guest-debug")


@test
def unplug(run: Run) -> None:
    """the balloon is unplugged while inflated; a new one takes its place"""
    needs("guest", "HOTPLUG_PCI_ACPI")
    with run.guest(hotplug=True) as guest:
        total = guest.meminfo()["MemTotal"]
        stamp = guest.start("balloon_mem stamp 128M").wait_ready()
        for size in (512, 256):
            guest.balloon(size * MIB)
            guest.qmp("device_del", id="balloon0")
            guest.event("DEVICE_DELETED", match={"data": {"device": "balloon0"}})
            equal("MemTotal without the device", guest.meminfo()["MemTotal"], total)
            more = {"page-bitmap": True} if run.bitmap else {}
            guest.qmp("device_add", driver="virtio-balloon-pci", id="balloon0",
                      bus="slot0", **more)
            guest.sh("""until ls /sys/bus/virtio/drivers/virtio_balloon/virtio*
                        do sleep 0.1; done 2> /dev/null""")
        stamp.finish()
        exercise(guest, 512 * MIB, run.bitmap)
