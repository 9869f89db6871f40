# SPDX-License-Identifier: GPL-2.0
"""Tests of the misc queue: what the guest answers, and migration that uses it."""

from __future__ import annotations

import itertools
import random
import re
import time
from typing import Any, Dict, List, Set, Tuple

from balloon_tests import exercise
from harness import (FAST, MISC_BIT, PAGE_POISON_BIT, Failure, Run, asleep, equal,
                     features, free_page_hints, huge_pages, needs, needs_pending_interrupts,
                     refuses, require, suspends, test, variants)
from lab import (GIB, MIB, PAGE, Guest, Job, LabError, Migration, Skip, accelerator, arch,
                 overhead)

MISC = {"misc-vq": "on"}


def negotiated(guest: Guest) -> bool:
    """Whether the guest has the misc queue."""
    return features(guest)[MISC_BIT] == "1"


def answered(guest: Guest, stale: bool = False) -> Dict[str, int]:
    """Ask; the answer must be whole and without fault.

    With stale, the rest of an answer that nobody waits for may come first.
    """
    rose = guest.ask()
    equal("answers", rose["answers"], 1)
    for fault in ("errors", "bad-records", "skipped-runs", "timeouts"):
        equal(fault, rose[fault], 0)
    require(stale or not rose["stale-records"], f"{rose['stale-records']} stale records")
    return rose


def works(guest: Guest, stale: bool = False) -> None:
    """The guest answers, and not with next to nothing."""
    free = guest.meminfo()["MemFree"] // PAGE
    pages = answered(guest, stale)["reported-pages"]
    total = sum(guest.qmp("query-memory-size-summary").values()) // PAGE
    require(free // 2 < pages <= total, f"{pages} pages of {total} reported, {free} are free")


def refused(guest: Guest) -> None:
    """The feature was declined, and the device says so when it is to ask."""
    require(not negotiated(guest), "the misc queue was negotiated")
    try:
        guest.ask()
    except LabError:
        return
    raise Failure("the device asked a driver that has no misc queue")


def kernel_view(guest: Guest) -> Set[int]:
    """The guest's page frames that /proc/kpageflags shows as free or offline."""
    out: Set[int] = set()
    for line in guest.sh("balloon_mem unused 5G", 60).splitlines():
        first, end = line.split()
        out.update(range(int(first), int(end)))
    return out


@test
def misc_exact(run: Run) -> None:
    """in a quiet guest the answer is what the kernel itself shows as unused"""
    with run.guest(balloon=MISC) as guest:
        guest.start("balloon_mem fragment 300M 3").wait_ready()
        guest.start("balloon_mem fragment 200M 2 64K").wait_ready()
        guest.balloon(900 * MIB)
        guest.ask()
        # The event has the exact runs; its lines go to QEMU's log.
        guest.qmp("trace-event-set-state", name="virtio_balloon_misc_run", enable=True)
        log = guest.qemu_log.stat().st_size
        before = kernel_view(guest)
        rose = answered(guest)
        after = kernel_view(guest)
        text = guest.qemu_log.read_text("utf-8", "replace")[log:]
        runs = re.findall(r"virtio_balloon_misc_run .*?(0x[0-9a-f]+).*?(0x[0-9a-f]+)", text)
        require(len(runs) > 1000, f"{len(runs)} runs in the log")
        told: Set[int] = set()
        page = guest.arch.page
        for start, length in runs:
            told.update(range(int(start, 16) // page,
                              (int(start, 16) + int(length, 16)) // page))
        equal("pages counted and in the log", rose["reported-pages"], len(told) * page // PAGE)
        missed, wrong = (before & after) - told, told - (before | after)
        # Looking takes pages, and gives them back to a list of a CPU.
        require(len(wrong) <= 1024, f"{len(wrong)} pages in use were reported, {sorted(wrong)[:9]}")
        require(len(missed) <= 64, f"{len(missed)} unused pages were not, {sorted(missed)[:9]}")


@test
def misc_balloon(run: Run) -> None:
    """pages in the balloon are unused; a balloon that moves does not hold up the answer"""
    with run.guest(memory=2 * GIB, balloon=MISC) as guest:
        works(guest)
        guest.balloon(512 * MIB)
        pages = answered(guest)["reported-pages"]
        require(pages > 1536 * MIB // PAGE, f"{pages} pages with 1536 MiB in the balloon")
        for size in itertools.islice(itertools.cycle((2 * GIB, 512 * MIB)), 10):
            guest.set_target(size)
            time.sleep(random.uniform(0, 0.03))
            answered(guest)
        guest.balloon(2 * GIB)
        works(guest)


@test
def misc_large(run: Run) -> None:
    """32 GiB in several messages, memory on both sides of the hole below 4 GiB"""
    with run.guest(memory=32 * GIB, reserve=False, balloon=MISC) as guest:
        rose = answered(guest)
        require(rose["messages"] > 1, "one message only")
        require(rose["reported-pages"] > 31 * GIB // PAGE,
                f"{rose['reported-pages']} pages of {32 * GIB // PAGE}")


@variants(1, 2, 1024)
def misc_queue_size(run: Run, size: int) -> None:
    """misc queue with {} entries"""
    with run.guest(balloon={**MISC, "x-queue-size": size}) as guest:
        for _ in range(3):
            works(guest)
        guest.balloon(512 * MIB)
        works(guest)


@test
def misc_packed(run: Run) -> None:
    """misc queue with packed rings"""
    with run.guest(balloon={**MISC, "packed": "on"}) as guest:
        for _ in range(3):
            works(guest)


@test
def misc_mmio(run: Run) -> None:
    """misc queue on virtio-mmio"""
    with run.guest(machine="microvm", balloon=MISC) as guest:
        for _ in range(3):
            works(guest)


@test
def misc_declined(run: Run) -> None:
    """declined where free pages have a content: init_on_free, page poisoning; without VERSION_1"""
    with run.guest(balloon=MISC, append="init_on_free=1") as guest:
        refused(guest)
    with run.guest(balloon={**MISC, **arch(run.kernel).legacy}) as guest:
        refused(guest)
    needs("guest-debug", "PAGE_POISONING")
    # Each page that is freed is written.
    with run.guest(kernel="guest-debug", memory=512 * MIB, append="page_poison=1",
                   balloon={**MISC, "page-poison": "on"}) as guest:
        refused(guest)
        equal("PAGE_POISON negotiated", features(guest)[PAGE_POISON_BIT], "1")
        exercise(guest, 384 * MIB, run.bitmap, stamped=32 * MIB)


@test
def misc_features(run: Run) -> None:
    """every subset of queues, offered or declined: the misc queue works or is declined"""
    needs("guest", "VIRTIO_DEBUG")
    bits = {1: "", 3: "free-page-hint", 5: "free-page-reporting"}
    hints = (False, True) if free_page_hints() else (False,)
    for offered in itertools.product(hints, (False, True)):
        props = dict(zip(("free-page-hint", "free-page-reporting"),
                         ("on" if one else "off" for one in offered)))
        has = [1] + [bit for bit, name in bits.items() if props.get(name) == "on"]
        with run.guest(balloon={**MISC, **props}) as guest:
            works(guest)
            for declined in itertools.product((False, True), repeat=len(has)):
                without = [bit for bit, no in zip(has, declined) if no]
                guest.sh("""
                    cd /sys/bus/virtio/drivers/virtio_balloon
                    dev=$(basename virtio*); filter=/sys/kernel/debug/virtio/$dev
                    echo $dev > unbind
                    echo 1 > $filter/filter_features_clear
                    for bit in %s; do echo $bit > $filter/filter_feature_add; done
                    echo $dev > bind""" % " ".join(map(str, without)))
                if without:
                    refused(guest)
                else:
                    works(guest)
                guest.balloon(guest.memory - 64 * MIB)
                guest.balloon(guest.memory)


def ask_and_go(guest: Guest) -> None:
    """Ask, do not wait for the answer."""
    guest.ask(wait=False)


@test
def misc_interrupted(run: Run) -> None:
    """suspend, reload, stop and reset while a request is answered"""
    with run.guest(balloon=MISC) as guest:
        # Every other page: the answer takes a while, and with sanitizers so does the load.
        size = 233 if run.kernel == "guest-debug" else 700
        guest.start(f"balloon_mem fragment {size}M 2").wait_ready(60)
        for delay in (0, 0.002, 0.005, 0.01):
            ask_and_go(guest)
            time.sleep(delay)
            guest.sh("rmmod virtio_balloon; insmod /lib/modules/virtio_balloon.ko")
            works(guest, stale=True)
            ask_and_go(guest)
            time.sleep(delay)
            guest.qmp("stop")
            time.sleep(delay)
            guest.qmp("cont")
            works(guest, stale=True)
        for delay in (0, 0.005, 0.01) if suspends(run.kernel) else ():
            with asleep(guest, delay):
                ask_and_go(guest)
            works(guest, stale=True)
        ask_and_go(guest)
        guest.reset()
        works(guest, stale=True)


@test
def misc_hotplug(run: Run) -> None:
    """memory goes off line and on line while requests are answered"""
    needs("guest", "MEMORY_HOTREMOVE")
    if run.kernel == "guest-arm64":
        raise Skip("arm64 takes no memory off line that it booted with")
    with run.guest(memory=2 * GIB, balloon=MISC, append="movable_node movablecore=1G") as guest:
        loop = guest.start("""sh -c '
            cd /sys/devices/system/memory
            while :; do
                for m in memory*; do
                    echo offline > $m/state 2>/dev/null && echo online > $m/state
                done
            done'""")
        total = guest.meminfo()["MemTotal"]
        seen: Set[int] = set()
        deadline = guest.deadline(90)
        for number in itertools.count():
            answered(guest)
            seen.add(guest.meminfo()["MemTotal"])
            if number >= 100 and len(seen) > 1:
                break
            require(time.monotonic() < deadline, "no memory went off line")
        loop.kill()
        guest.sh("for m in /sys/devices/system/memory/memory*/state; do "
                 "grep -q offline $m && echo online > $m; done; true")
        equal("MemTotal", guest.meminfo()["MemTotal"], total)
        works(guest)


@variants("failslab", "fail_page_alloc")
def misc_no_memory(run: Run, kind: str) -> None:
    """{}: an answer without memory is shorter or an error, the next one is whole"""
    needs("guest-debug", "FAULT_INJECTION_DEBUG_FS", kind.upper())
    with run.guest(kernel="guest-debug", balloon=MISC) as guest:
        works(guest)
        guest.sh(f"""
            for p in /proc/[0-9]*; do
                read -r name < $p/comm
                case $name in kworker*) echo 1 > $p/make-it-fail ;; esac
            done 2> /dev/null
            # Or slabs that were there before serve all that is wanted.
            for s in /sys/kernel/slab/kmalloc-*/shrink; do echo 1 > $s; done
            cd /sys/kernel/debug/{kind}
            echo Y > task-filter; echo N > ignore-gfp-wait
            [ ! -e min-order ] || echo 0 > min-order
            echo 0 > verbose; echo 1000000 > times; echo 100 > probability""")
        rose = [guest.ask() for _ in range(10)]
        left = int(guest.sh(f"cd /sys/kernel/debug/{kind}; echo 0 > probability; cat times"))
        for one in rose:
            equal("answers and errors", one["answers"] + one["errors"], 1)
        require(left < 1000000, "no allocation failed")
        works(guest)


def chain(run: Run, hops: int, load: str, during: Any = None, more: Any = None,
          **options: Any) -> List[Migration]:
    """Migrate a guest from host to host; what it checks must be right at the end."""
    more = {"balloon": MISC, **(more or {})}
    options.setdefault("parameters", FAST)
    out: List[Migration] = []
    source = run.guest(**more)
    try:
        job: Job = source.start(load).wait_ready(120)
        for _ in range(hops):
            target = run.guest(incoming=True, **more)
            try:
                out.append(source.migrate_to(
                    target, during=lambda: during and during(source), **options))
            except BaseException:
                target.close()
                raise
            source.close()
            job.guest = source = target
            # Long enough for a page that came wrong to be read.
            time.sleep(0.2)
        print("#", job.finish(timeout=120).strip().splitlines()[-1])
    finally:
        source.close()
    for one in out:
        for fault in ("bad-records", "errors", "skipped-runs"):
            equal(fault, one.misc.get(fault, 0), 0)
    return out


def few_late(migrations: List[Migration], most: int) -> None:
    """Few of them had the answer too late."""
    late = sum(one.misc["timeouts"] for one in migrations)
    require(late <= most, f"{late} answers were late")


def left_out(migrations: List[Migration]) -> None:
    """Each of them left pages out, or had the answer late; that half of them may at most.

    A host that is busy with another test lets one in ten or twenty be late.
    """
    for number, one in enumerate(migrations):
        require(one.misc["unsent-pages"] > 10000 or one.misc["timeouts"],
                f"migration {number}: {one.misc}")
    few_late(migrations, (len(migrations) + 1) // 2)


@test
def misc_migration(run: Run) -> None:
    """a guest that rewrites, frees and checks memory, 20 migrations, no wrong page"""
    left_out(chain(run, 20, "balloon_mem churn 128M", rounds=3))


@test
def misc_migration_balloon(run: Run) -> None:
    """the same with a balloon in motion, 20 migrations"""
    needs_pending_interrupts()
    sizes = itertools.cycle((640 * MIB, GIB, 512 * MIB, 896 * MIB))

    def move(guest: Guest) -> None:
        if guest.status() == "running":
            guest.set_target(next(sizes))
            time.sleep(random.uniform(0, 0.02))

    chain(run, 20, "balloon_mem churn 128M", during=move, rounds=3)


@test
def misc_migration_hint(run: Run) -> None:
    """the same with free page hints beside it, 20 migrations"""
    if not free_page_hints():
        raise Skip("QEMU aborts: its free page hints interrupt without its lock")
    moves = chain(run, 20, "balloon_mem churn 128M", rounds=3,
                  more={"balloon": {**MISC, "free-page-hint": "on"}})
    # Blocks that hinting has taken first are not unused, and are left out by its report.
    for number, one in enumerate(moves):
        require(one.misc["timeouts"] or one.misc["answers"],
                f"migration {number}: {one.misc}")
    # A slow guest that hands all its memory to hinting often answers too late.
    few_late(moves, len(moves) // 2)
    unsent = sum(one.misc["unsent-pages"] for one in moves)
    require(unsent > 10000, f"only {unsent} pages were left out")


def late_log(run: Run) -> Dict[str, Any]:
    """What a guest whose dirty log is cleared late is made with."""
    if accelerator(run.kernel) == "kvm":
        raise Skip("the device does nothing where the log is KVM's")
    return {"devices": ["x-late-dirty-log,id=late"]}


@test
def misc_migration_late_log(run: Run) -> None:
    """the same with a dirty log that is cleared late, as KVM's manual protection does"""
    left_out(chain(run, 6, "balloon_mem churn 128M", rounds=3, more=late_log(run)))


@test
def misc_migration_multifd(run: Run) -> None:
    """the same with multifd"""
    left_out(chain(run, 4, "balloon_mem churn 128M", rounds=3, capabilities=["multifd"]))


@test
def misc_migration_hugetlb(run: Run) -> None:
    """the same with memory of 2 MiB pages"""
    size = 512 * MIB
    with huge_pages(run.kernel, size, guests=2):
        left_out(chain(run, 4, "balloon_mem churn 128M", rounds=3,
                       more={"backend": "hugetlb", "memory": size}))


@variants("asked", "not asked", "stopped")
def misc_migration_memfd(run: Run, how: str) -> None:
    """a ballooned guest of shared memory, {}, does not grow while it migrates, at either end"""
    balloon = {} if how == "not asked" else MISC
    more: Dict[str, Any] = {"balloon": {**balloon, "page-bitmap": "on"}, "backend": "memfd"}
    with run.guest(**more) as source:
        job = source.start("balloon_mem stamp 64M").wait_ready()
        source.balloon(320 * MIB)
        used = source.rss()
        with run.guest(incoming=True, **more) as target:
            moved = source.migrate_to(target, parameters=FAST, stopped=how == "stopped")
            grown, there = moved.source_rss, target.rss()
            print(f"# {used // MIB} MiB, the source grew by {grown // MIB}, the target has "
                  f"{there // MIB}; {moved.info['total-time']} ms")
            equal("asked", bool(moved.misc.get("requests")), how == "asked")
            require(grown < 48 * MIB, f"the source grew by {grown // MIB} MiB")
            require(there < used + 48 * MIB, f"the target has {there // MIB} MiB")
            job.guest = target
            job.finish()
            if balloon:
                works(target)


@test
def misc_migration_virtio_mem(run: Run) -> None:
    """what virtio-mem has plugged, touched and free again: not sent"""
    needs("guest", "VIRTIO_MEM")
    size = 512 * MIB
    more: Dict[str, Any] = {
        "balloon": MISC, "dimms": True, "append": "memhp_default_state=online_movable",
        "objects": [f"memory-backend-ram,id=plugged,size={size}"],
        "devices": [f"virtio-mem-pci,id=mem0,memdev=plugged,requested-size={size}"]}
    with run.guest(**more) as source:
        source.until(lambda: source.meminfo()["MemTotal"] > GIB, 60)
        total = source.meminfo()["MemTotal"]
        require(total > GIB, f"{total // MIB} MiB in all")
        source.sh("balloon_mem touch 1200M", 60)
        job = source.start("balloon_mem stamp 64M").wait_ready()
        with run.guest(incoming=True, **more) as target:
            moved = source.migrate_to(target, parameters=FAST)
            pages = moved.info["ram"]["normal"] + moved.info["ram"]["duplicate"]
            print(f"# {pages * PAGE // MIB} MiB of {total // MIB} sent")
            require(pages * PAGE < size // 2 + overhead(run.kernel, GIB), f"{pages} were sent")
            job.guest = target
            job.finish()
            works(target)


@test
def misc_migration_alone(run: Run) -> None:
    """content that nobody writes, migrated with all else unused"""
    left_out(chain(run, 2, "balloon_mem stamp 16M"))


def cancelled(run: Run, **more: Any) -> None:
    """Cancel four migrations, then go."""
    with run.guest(balloon=MISC, **more) as source:
        job = source.start("balloon_mem churn 256M").wait_ready()
        for delay in (0, 0.01, 0.05, 0.2):
            target = run.guest(incoming=True, balloon=MISC, **more)
            try:
                uri = f"unix:{run.logs}/cancel"
                target.qmp("migrate-incoming", uri=uri)
                source.qmp("migrate-set-parameters", **{"max-bandwidth": 64 << 20})
                source.qmp("migrate", uri=uri)
                time.sleep(delay)
                source.qmp("migrate_cancel")
                deadline = source.deadline(20)
                while source.qmp("query-migrate").get("status") not in ("cancelled", "failed"):
                    require(time.monotonic() < deadline, f"{source.qmp('query-migrate')}")
                    time.sleep(0.01)
            finally:
                # Without the rest of the stream it gives up.
                target.close(status=1)
            works(source)
        target = run.guest(incoming=True, balloon=MISC, **more)
        try:
            moved = source.migrate_to(target, parameters=FAST, rounds=3)
            # Not at once, if the host is busy, but in the end.
            require(moved.misc["unsent-pages"] > 10000, f"{moved.misc}")
            job.guest = target
            job.finish()
            works(target)
        finally:
            target.close()


@test
def misc_migration_cancelled(run: Run) -> None:
    """cancelled at any moment, then a second one: nothing is lost"""
    cancelled(run)


@test
def misc_migration_late_log_cancelled(run: Run) -> None:
    """the same with a dirty log that is cleared late, and ends with each migration"""
    cancelled(run, **late_log(run))


@test
def misc_migration_postcopy_off(run: Run) -> None:
    """the same with postcopy enabled, but not begun"""
    left_out(chain(run, 3, "balloon_mem churn 128M", rounds=3, capabilities=["postcopy-ram"]))


@test
def misc_migration_postcopy(run: Run) -> None:
    """through a switch to postcopy, in the first round or later, what was left out is zero"""
    switched: List[Guest] = []

    def switch(guest: Guest) -> None:
        info = guest.qmp("query-migrate")
        if guest not in switched and info.get("status") == "active" and \
           info["ram"]["dirty-sync-count"] > len(switched) % 3 and \
           guest.stats("misc-vq")["answers"]:
            guest.qmp("migrate-start-postcopy")
            switched.append(guest)

    # It would never end by itself.
    slow = {"max-bandwidth": 128 * MIB, "downtime-limit": 1}
    moves = chain(run, 6, "balloon_mem churn 256M", during=switch, parameters=slow,
                  capabilities=["postcopy-ram"])
    equal("switches", len(switched), len(moves))
    left_out(moves)
    print("# MiB sent in each, some of them behind the switch: " + ", ".join(
        f"{one.info['ram']['normal'] * PAGE // MIB} ({one.info['ram']['postcopy-bytes'] // MIB})"
        for one in moves))
    for one in moves:
        require(one.info["ram"]["postcopy-bytes"] > 0, f"{one.info}")


@test
def misc_snapshot(run: Run) -> None:
    """during a background snapshot nothing is discarded and the guest is not asked"""
    with run.guest(balloon=MISC, backend="ram") as guest:
        job = guest.start("balloon_mem stamp 64M").wait_ready()
        try:
            guest.qmp("migrate-set-capabilities",
                      capabilities=[{"capability": "background-snapshot", "state": True}])
        except LabError as error:
            raise Skip(f"the host cannot: {error}") from error
        guest.qmp("migrate-set-parameters", **{"max-bandwidth": MIB})
        before, asked = guest.stats(), guest.stats("misc-vq")
        guest.qmp("migrate", uri="exec:cat > /dev/null")
        deadline = guest.deadline(60)
        while guest.qmp("query-migrate").get("status") != "active":
            require(time.monotonic() < deadline, "the snapshot does not begin")
            time.sleep(0.02)
        # What the guest writes is saved at once, so that it should not be much.
        guest.balloon(896 * MIB)
        equal("snapshot", guest.qmp("query-migrate")["status"], "active")
        after = guest.stats()
        equal("discards", after["discards"], before["discards"])
        require(after["inflated-pages"] > before["inflated-pages"], "nothing was inflated")
        guest.qmp("migrate-set-parameters", **{"max-bandwidth": 10 << 30})
        while (status := guest.qmp("query-migrate")["status"]) == "active":
            require(time.monotonic() < deadline, "the snapshot does not end")
            time.sleep(0.02)
        equal("snapshot", status, "completed")
        equal("requests", guest.stats("misc-vq")["requests"], asked["requests"])
        guest.balloon(GIB)
        guest.balloon(512 * MIB)
        require(guest.stats()["discards"] > after["discards"], "nothing is discarded any more")
        job.finish()
        works(guest)


@test
def misc_migration_mixed(run: Run) -> None:
    """source or target without the feature: a guest that has it stays, others go both ways"""
    with run.guest(balloon=MISC) as source:
        refuses(source, run.guest(incoming=True))
        works(source)

    # A guest that did not negotiate it: from without to with it, back, and elsewhere.
    old: Dict[str, Any] = {"kernel": "guest-debian", "bitmap": False}
    hops: Tuple[Dict[str, Any], ...] = (
        {}, {"balloon": MISC}, {}, {"balloon": MISC}, {"qemu": "qemu-stock"})
    source = run.guest(**old, **hops[0])
    try:
        job = source.start("balloon_mem churn 64M").wait_ready()
        for more in hops[1:]:
            target = run.guest(incoming=True, **old, **more)
            try:
                moved = source.migrate_to(target, parameters=FAST)
                equal("requests", moved.misc.get("requests", 0), 0)
            except BaseException:
                target.close()
                raise
            source.close()
            job.guest = source = target
        job.finish()
    finally:
        source.close()


@test
def misc_migration_link(run: Run) -> None:
    """a link of 400 Mbit/s: what is unused costs no time"""
    slow = {"max-bandwidth": 50 << 20, "downtime-limit": 300}
    with run.guest(balloon=MISC) as source:
        # Backed and dirty, but free.
        source.sh("balloon_mem touch 700M", 60)
        target = run.guest(incoming=True, balloon=MISC)
        try:
            moved = source.migrate_to(target, parameters=slow)
        finally:
            target.close()
        sent = moved.info["ram"]["transferred"]
        # A debug kernel uses memory for itself.
        require(sent < 200 * MIB + overhead(run.kernel, GIB), f"{sent // MIB} MiB were sent")
