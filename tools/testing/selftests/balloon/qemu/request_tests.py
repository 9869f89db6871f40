# SPDX-License-Identifier: GPL-2.0
"""Tests of what a guest is asked for: to trim, to reclaim, to compact, to write back."""

from __future__ import annotations

from typing import Any

from harness import FAST, Run, disk, equal, near, require, test
from lab import GIB, MIB, PAGE, Guest, LabError
from misc_tests import MISC, works


def done(guest: Guest, kind: str, **more: Any) -> int:
    """Ask for something, which must be done; the bytes that it says."""
    last = guest.request(kind, **more)
    equal(f"{kind}", (last["type"], last["status"]), (kind, "completed"))
    print(f"# {kind}: {last['bytes'] / MIB:.1f} MiB in {last['time']} ms")
    return int(last["bytes"])


def hmp(guest: Guest, line: str) -> str:
    """What the monitor for people answers."""
    return str(guest.qmp("human-monitor-command", **{"command-line": line}))


def fill_cache(guest: Guest) -> None:
    """Read all of the disk, and have it open: its page cache goes when nobody has."""
    guest.sh("(exec 9< /dev/vda; exec sleep 100000) > /dev/null 2>&1 & cat /dev/vda > /dev/null", 120)


@test
def request_trim(run: Run) -> None:
    """trim gives back all that is free, once, and takes nothing from the guest"""
    with run.guest(balloon=MISC) as guest:
        # Free: what was touched and given back, and every second page of 400 MiB.
        job = guest.start("balloon_mem stamp 100M")
        job.wait_ready()
        guest.start("balloon_mem fragment 400M 2").wait_ready(60)
        guest.sh("balloon_mem touch 400M", 60)
        # Has what is in the lists of CPUs counted as free.
        done(guest, "unused-pages")
        size, rss = guest.actual(), guest.rss()
        before = guest.meminfo()
        got = done(guest, "trim")
        after = guest.meminfo()
        equal("size", guest.actual(), size)
        near("free memory / MiB", after["MemFree"] / MIB, before["MemFree"] / MIB, 16)
        require(before["MemFree"] * 9 // 10 < got <= before["MemFree"] + 64 * MIB,
                f"{got // MIB} MiB of {before['MemFree'] // MIB} free")
        require(guest.rss() < rss - 400 * MIB, f"{(rss - guest.rss()) // MIB} MiB came back")
        # What is in use is as it was, what is free can be used.
        guest.sh("balloon_mem touch 300M", 60)
        for _ in range(3):
            done(guest, "trim")
        job.finish()
        works(guest)


@test
def request_trim_busy(run: Run) -> None:
    """trim beside others that allocate, free and verify what they wrote"""
    with run.guest(balloon={**MISC, "page-bitmap": "on"}) as guest:
        job = guest.start("balloon_mem churn 400M")
        job.wait_ready()
        for i in range(6):
            done(guest, "trim")
            guest.set_target(guest.memory - (i % 2) * 256 * MIB)
            done(guest, "compact")
        job.finish()
        works(guest)


@test
def request_reclaim(run: Run) -> None:
    """reclaim drops page cache as far as is asked for, leaves the rest, and swaps nothing"""
    with disk(run, 512 * MIB) as drive, run.guest(balloon=MISC, **drive) as guest:
        fill_cache(guest)
        before = guest.meminfo()
        require(before["Buffers"] > 500 * MIB, f"{before['Buffers'] // MIB} MiB cached")
        got = done(guest, "reclaim", bytes=128 * MIB)
        near("bytes asked for / MiB", got / MIB, 128, 32)
        after = guest.meminfo()
        near("gone from the cache / MiB", (before["Buffers"] - after["Buffers"]) / MIB, 128, 48)
        # More than there is: it ends, before its time.
        last = guest.request("reclaim", bytes=4 * GIB, timeout=30000)
        equal("status", last["status"], "completed")
        require(last["bytes"] < 700 * MIB and last["time"] < 20000, f"{last}")
        require(guest.meminfo()["Buffers"] < 32 * MIB, f"{guest.meminfo()}")
        # It is all still there.
        guest.sh("cmp -n 33554432 /dev/vda /dev/zero", 60)
        works(guest)


@test
def request_sync(run: Run) -> None:
    """sync writes back what is dirty, compact makes large blocks of what is free"""
    with disk(run, GIB, "ext4") as drive, run.guest(balloon=MISC, **drive) as guest:
        guest.sh("mkdir -p /d; mount /dev/vda /d", 60)
        guest.sh("echo 0 > /proc/sys/vm/dirty_writeback_centisecs; "
                 "dd if=/dev/zero of=/d/f bs=1M count=64", 60)
        require(guest.meminfo()["Dirty"] > 32 * MIB, f"{guest.meminfo()['Dirty']} bytes dirty")
        # As people ask
        equal("monitor", hmp(guest, "balloon_request sync"), "")
        guest.last_request()
        require("sync completed, 0 MB" in hmp(guest, "info balloon"), hmp(guest, "info balloon"))
        require("needs to know" in hmp(guest, "balloon_request reclaim"), "nothing to reclaim")
        require(guest.meminfo()["Dirty"] < 4 * MIB, f"{guest.meminfo()['Dirty']} bytes dirty")

        guest.start("balloon_mem fragment 600M 2").wait_ready(60)
        # What it finds to move is the kernel's affair, and may be next to nothing.
        before = guest.vmstat()["compact_migrate_scanned"]
        got = done(guest, "compact")
        require(guest.vmstat()["compact_migrate_scanned"] > before, "nothing was compacted")
        near("free in large blocks / MiB", got / MIB, guest.large_blocks() / MIB, 64)


@test
def request_migration(run: Run) -> None:
    """a migration cancels what is asked, has page cache reclaimed first, and says what it left out"""
    balloon = {**MISC, "migrate-reclaim": "256M"}
    with disk(run, 512 * MIB) as drive, run.guest(balloon=balloon, **drive) as guest, \
            run.guest(balloon=balloon, incoming=True, **drive) as target:
        fill_cache(guest)
        guest.begin_request("reclaim", bytes=16 * MIB)
        before = guest.last_request()["bytes"]
        guest.begin_request("trim")
        move = guest.migrate_to(target, parameters=FAST)
        stats = move.info["unused-pages"]
        print(f"# {stats}; {hmp(guest, 'info migrate').partition('unused pages')[2]}")
        require("reclaimed before" in hmp(guest, "info migrate"), hmp(guest, "info migrate"))
        require(guest.last_request()["type"] == "reclaim", f"{guest.last_request()}")
        near("reclaimed first / MiB", stats["reclaimed"] / MIB, 256, 32)
        require("not-asked" not in stats, f"{stats}")
        equal("left out", stats["left-out"] // PAGE, move.misc["unsent-pages"])
        require(target.meminfo()["Buffers"] < 512 * MIB - 200 * MIB - before,
                f"{target.meminfo()['Buffers'] // MIB} MiB still cached")
        try:
            target.qmp("stop")
            target.request("sync")
        except LabError as error:
            require("stopped" in str(error), f"{error}")
        else:
            require(False, "a guest that is stopped was asked")
        target.qmp("cont")
        works(target)


@test
def request_ends(run: Run) -> None:
    """an answer that nobody wants ends early: a sync that takes seconds keeps nobody waiting"""
    with disk(run, GIB, "ext4", 4 * MIB) as drive, run.guest(balloon=MISC, **drive) as guest, \
            run.guest(balloon=MISC, incoming=True, **drive) as target:
        guest.sh("mkdir -p /d; mount /dev/vda /d; "
                 "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; "
                 "dd if=/dev/zero of=/d/f bs=1M count=48", 120)
        works(guest)
        guest.begin_request("sync")
        guest.until(lambda: guest.meminfo()["Writeback"] > 0, 30)
        equal("sync", guest.qmp("query-balloon-request")["status"], "running")
        guest.qmp("balloon-request-cancel")
        equal("sync", guest.last_request()["status"], "cancelled")
        works(guest, stale=True)
        # Behind the one that still goes on
        guest.begin_request("sync")
        move = guest.migrate_to(target, parameters=FAST)
        equal("sync", guest.last_request()["status"], "cancelled")
        print(f"# setup {move.info['setup-time']} ms, {move.info['unused-pages']}")
        require("not-asked" not in move.info["unused-pages"], f"{move.info['unused-pages']}")
        require(move.misc["unsent-pages"] > 0, "nothing was left out")
        works(target, stale=True)
        equal("answer", done(target, "sync"), 0)
        require(target.meminfo()["Dirty"] < 4 * MIB, f"{target.meminfo()['Dirty']} bytes dirty")
        works(target)


@test
def request_module(run: Run) -> None:
    """the module for other kernels writes back, refuses the rest, and answers as ever"""
    with run.guest(kernel="guest-module", balloon=MISC) as guest:
        equal("answer", done(guest, "sync"), 0)
        for kind, more in (("trim", {}), ("reclaim", {"bytes": MIB}), ("compact", {})):
            equal(kind, guest.request(kind, **more)["status"], "failed")
        works(guest)
