#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Measure inflating and deflating, live migration, and the guest's walk.

Balloon: for each case a guest by page bitmaps, one by page numbers, and one by page
numbers as today, without us, are up at the same time and take turns, so that all see the
same machine. Ratios are against the last. Migration: a guest
for each of plain, FREE_PAGE_HINT and misc queue goes from host to host. "bare" is both, of
the guest without a kernel, under KVM. Tables on
stdout give medians and ratios; they are in <build>/bench/figures as well, every single
figure is in bench.json, and the pictures are beside it. With --keep, tables and pictures
take the place of those in the repository's figures/.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import bare_bench
import fleet
import migrate
import reclaim_tests
from harness import Run, huge_pages
from lab import (BUILD, GIB, MIB, PAGE, PAIRS, ROOT, WAYS, Guest, Job, LabError, Move, Pair, Skip,
                 accelerator, artifact, boot)

OUT = BUILD.parent / "bench"
Results = Dict[str, Dict[str, List[Move]]]
Load = Callable[[Guest], Optional[Job]]     # what it leaves running, if anything


def touched(size: int = 0) -> Load:
    """Have the host back what will be inflated."""
    def load(guest: Guest) -> None:
        guest.sh(f"balloon_mem touch {(size or guest.memory - GIB) // MIB}M", 300)
    return load


def crumbs(size: int, keep: int, verb: str = "fragment") -> Load:
    """Leave one page in so many of a size in use; with "scatter" the others are freed in no order."""
    def load(guest: Guest) -> Job:
        return guest.start(f"balloon_mem {verb} {size // MIB}M {keep}").wait_ready(300)
    return load


def whole_huge_pages(guest: Guest) -> None:
    """The same as touched(), by transparent huge pages."""
    guest.sh("balloon_mem thp 1500M", 300)


class Case(NamedTuple):
    """What is measured, and by how much on must beat off: None if not said."""

    name: str
    title: str
    memory: int = 8 * GIB
    keep: int = GIB
    append: str = ""
    load: Optional[Load] = None     # before each run
    inflate: Optional[float] = None
    deflate: Optional[float] = None
    runs: float = 1     # part of the number of runs
    slow: bool = False  # where the host backs GiB for each run, it takes minutes
    backend: str = ""
    balloon: Dict[str, str] = {}


CASES = [
    Case("fresh", "8 GiB, 7 not backed", inflate=12, deflate=4),
    Case("backed", "8 GiB, 7 backed", load=touched(), inflate=30, deflate=4,
         slow=True),
    Case("fragmented", "8 GiB, 1 page in 32 in use", keep=3 * GIB // 2,
         load=crumbs(6656 * MIB, 32), inflate=3, slow=True),
    Case("scattered", "the same, freed in no order", keep=3 * GIB // 2,
         load=crumbs(6656 * MIB, 32, "scatter"), runs=0.4, slow=True),
    Case("init", "8 GiB, init_on_alloc=1", append="init_on_alloc=1", inflate=80, runs=0.4,
         slow=True),
    Case("small", "2 GiB, 1 not backed", memory=2 * GIB),
    Case("large", "32 GiB, 31 not backed", memory=32 * GIB, runs=0.4, slow=True),
]
# What the host gets back of a guest that has used 1500 MiB
USED = 1500 * MIB
RETURNS = [one._replace(memory=one.memory if one.backend else 4 * GIB, runs=0.4) for one in (
    Case("idle", "4 GiB, idle", keep=3 * GIB),
    Case("whole", "1500 MiB used and freed", keep=3 * GIB, load=touched(USED)),
    Case("whole-thp", "the same, in huge pages", keep=3 * GIB, load=whole_huge_pages,
         append="transparent_hugepage=always"),
    Case("crumbs-32", "freed but 1 page in 32", keep=3 * GIB, load=crumbs(USED, 32), inflate=5),
    Case("crumbs-17", "freed but 1 page in 17", keep=3 * GIB, load=crumbs(USED, 17)),
    Case("crumbs-3", "freed but 1 page in 3", keep=4 * GIB - 640 * MIB, load=crumbs(USED, 3)),
    Case("crumbs-2", "freed but 1 page in 2", keep=4 * GIB - 640 * MIB, load=crumbs(USED, 2)),
    Case("crumbs-reporting", "but 1 in 32, reporting", keep=3 * GIB, load=crumbs(USED, 32),
         balloon={"free-page-reporting": "on"}),
    Case("whole-hugetlb", "2 GiB on hugetlb, 1500 MiB", memory=2 * GIB, load=touched(USED),
         backend="hugetlb"),
)]


def moves(case: Case, runs: int) -> Results:
    """The moves of a case: way -> direction -> one for each run."""
    out: Results = {way: {"inflate": [], "deflate": []} for way in WAYS}
    with contextlib.ExitStack() as stack:
        if case.backend:
            stack.enter_context(huge_pages("guest", case.memory, len(WAYS)))
        guests = {way: stack.enter_context(
            Guest(f"bench-{case.name}-{way.replace(' ', '-')}", memory=case.memory, reserve=False,
                  append=case.append, backend=case.backend, balloon={**case.balloon, **how}))
                  for way, how in WAYS.items()}
        for run in range(runs):
            for way in sorted(guests, reverse=bool(run % 2)):
                turn(guests[way], case, out[way])
    return out


def turn(guest: Guest, case: Case, out: Dict[str, List[Move]]) -> None:
    """One run: down and up again."""
    job = case.load(guest) if case.load else None
    out["inflate"].append(guest.balloon(case.keep, timeout=600, timed=True))
    out["deflate"].append(guest.balloon(case.memory, timeout=600, timed=True))
    if out["inflate"][-1].stats.get("bad-records"):
        raise LabError("the device refused a record")
    if job:
        job.kill()


# How Debian's kernel may have been booted
STOCK = {f"init_on_alloc={init}, THP {thp}": f"init_on_alloc={init} transparent_hugepage={thp}"
         for init in (1, 0) for thp in ("always", "never")}


def stock(append: str, runs: int) -> Results:
    """Debian's kernel with our module and without, on our QEMU and on Debian's."""
    case = next(one for one in RETURNS if one.name == "crumbs-32")
    # The last is what others are compared to.
    pairs = {**PAIRS, "Debian's QEMU": Pair("guest-debian", {}, "qemu-stock")}
    out: Results = {name: {"inflate": [], "deflate": []} for name in pairs}
    with contextlib.ExitStack() as stack:
        guests = {name: stack.enter_context(
            boot(f"bench-stock-{number}", pair.kernel, qemu=pair.qemu, memory=case.memory,
                 append=append, reserve=False, balloon=pair.balloon, cpus=1))
                  for number, (name, pair) in enumerate(pairs.items())}
        for run in range(runs):
            for name in sorted(guests, reverse=bool(run % 2)):
                turn(guests[name], case, out[name])
    return out


def unused() -> Dict[str, int]:
    """What of memory that was freed in part counts as unused, in Debian's kernel, in MiB."""
    out: Dict[str, int] = {}
    for what, verb in (("huge pages", "punch"), ("base pages", "fragment")):
        with boot("bench-unused", "guest-module", memory=4 * GIB,
                  balloon={"misc-vq": "on"}) as guest:
            guest.start(f"balloon_mem {verb} 2900M 32").wait_ready(300)
            out[what] = guest.ask()["reported-pages"] * PAGE // MIB
    print("\n4 GiB, of which 2900 MiB are used and 31 of 32 pages given back, unused: "
          + ", ".join(f"of {what} {mib} MiB" for what, mib in out.items()), flush=True)
    return out


def huge_pages_left() -> Dict[str, str]:
    """What a guest gets of 3 GiB in huge pages, half of its memory in the balloon."""
    out = {}
    for way in ("bitmaps", "numbers"):
        with Guest(f"bench-huge-{way}", memory=8 * GIB, reserve=False,
                   balloon=WAYS[way]) as guest:
            guest.balloon(4 * GIB)
            out[way] = guest.sh("balloon_mem thp 3072M", 120).strip()
    return out


def pace() -> Dict[str, Dict[str, Any]]:
    """Guests whose memory is in use, by page bitmaps and by page numbers as today."""
    out: Dict[str, Dict[str, Any]] = {}
    print(f"\n{'what is to be had, and from whom':47}{'':10}{'s':>7}{'actual':>8}{'host':>7}"
          f"{'swapped':>8}{'large':>7}{'killed':>7}  longest touch, fork of 1 MiB, ms")
    for name, case in reclaim_tests.CASES.items():
        print(f"{case.title}: {case.size // MIB} of {case.memory // MIB} MiB")
        out[name] = {}
        for way in ("bitmaps", "as today"):
            run = Run(f"pace-{name}-{way.replace(' ', '-')}")
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    # What OOM killing says is no failure here.
                    got = reclaim_tests.squeeze(run, case, balloon=WAYS[way], expected=".")
            except LabError as error:
                out[name][way] = str(error).splitlines()[0]
                print(f"{'':47}{way:10}  {out[name][way].split(',')[0]}", flush=True)
                continue
            out[name][way] = got._asdict()
            longest = [int(us) / 1000 for us in re.findall(r"(\d+) us", got.bystander)]
            print(f"{'':47}{way:10}{got.seconds:>7.1f}{got.actual // MIB:>8}{got.rss // MIB:>+7}"
                  f"{got.swapped // MIB:>8}{-got.large // MIB:>+7}{got.kills:>7}  "
                  + ", ".join(f"{ms:.0f}" for ms in longest), flush=True)
    return out


SQUEEZED = 4    # guests


def group_file(group: Path, name: str) -> Path:
    """A file of a group, by its name in version 2 or 1 of cgroups."""
    old = {"memory.current": "memory.usage_in_bytes", "memory.max": "memory.limit_in_bytes",
           "memory.reclaim": "memory.force_empty"}
    path = group / old[name]
    return path if path.exists() else group / name


@contextlib.contextmanager
def memory_group() -> Iterator[Path]:
    """A group of processes whose memory is counted."""
    top = Path("/sys/fs/cgroup")
    if (top / "memory").is_dir():
        top /= "memory"
    path = top / f"balloon-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        raise Skip(f"no memory cgroup can be made: {error.strerror}") from None
    try:
        if not group_file(path, "memory.current").exists():
            raise Skip("the memory controller of cgroups is not enabled")
        yield path
    finally:
        path.rmdir()


def squeezed() -> Dict[str, Dict[str, Any]]:
    """Guests in a group, which may have what they have, squeezed one after the other."""
    out: Dict[str, Dict[str, Any]] = {}

    def used() -> int:
        return int(group_file(group, "memory.current").read_text("ascii"))

    def resident() -> Tuple[float, int]:
        return time.monotonic() - begin, sum(guest.rss() for guest in guests)

    for way, how in WAYS.items():
        with memory_group() as group, contextlib.ExitStack() as stack:
            guests = [stack.enter_context(Guest(f"bench-squeezed-{n}", memory=GIB, balloon=how))
                      for n in range(SQUEEZED)]
            for guest in guests:
                # What it has used before belongs to another group for ever.
                (group / "cgroup.procs").write_text(str(guest.pid), "ascii")
                guest.start("balloon_mem fragment 700M 32").wait_ready(60)
            charged = [used()]
            group_file(group, "memory.max").write_text(str(used() + 64 * MIB), "ascii")
            begin = time.monotonic()
            trace = [(0.0, resident()[1])]
            for guest in guests:
                guest.set_target(384 * MIB)
                while guest.actual() != 384 * MIB:
                    time.sleep(0.02)
                    trace.append(resident())
                    if trace[-1][0] > 300:
                        raise LabError("a guest could not be squeezed")
            trace.append(resident())
            # A huge page of which a part is left is whole until somebody needs memory.
            charged.append(used())
            with contextlib.suppress(OSError):
                # It ends when it has all, or there is no more.
                group_file(group, "memory.reclaim").write_text(str(GIB * SQUEEZED), "ascii")
            charged.append(used())
        out[way] = {"trace": trace, "charged": charged}
    traces = {way: one["trace"] for way, one in out.items()}
    end = max(trace[-1][0] for trace in traces.values())
    print(f"\n{SQUEEZED} guests of 1 GiB, 700 MiB used and freed but 1 page in 32, squeezed to 384 MiB\n"
          f"one after the other: resident MiB")
    print(f"  {'after s':12}" + "".join(f"{way:>14}" for way in out))
    for tick in range(11):
        at = end * tick / 10
        print(f"  {at:<12.1f}" + "".join(
            f"{[size for when, size in trace if when <= at][-1] // MIB:>14}"
            for trace in traces.values()))
    print(f"  {'the last, s':12}" + "".join(f"{trace[-1][0]:>14.2f}" for trace in traces.values()))
    for what, n in (("before", 0), ("then", 1), ("reclaimed", 2)):
        print(f"  {'charged ' + what:18}" + "".join(
            f"{one['charged'][n] // MIB:>{14 if i else 8}}" for i, one in enumerate(out.values())))
    sys.stdout.flush()
    return out


class Walk(NamedTuple):
    """A guest whose free pages are looked for."""

    title: str
    memory: int
    load: str = ""


WALKS = [
    Walk("8 GiB, fresh", 8 * GIB),
    Walk("8 GiB, 31 of 32 pages free", 8 * GIB, "fragment 6656M 32"),
    Walk("8 GiB, every other page free", 8 * GIB, "fragment 6656M 2"),
    Walk("8 GiB, full of base pages", 8 * GIB, "hold 7168M"),
    Walk("64 GiB, fresh", 64 * GIB),
]
COST = re.compile(r"cost: in PFN order (?P<pages>\d+) pages, (?P<us>\d+) us, longest hold (?P<hold>\d+)"
                  r" ns, (?P<holds>\d+) holds, (?P<visits>\d+) visits, at most (?P<most>\d+);"
                  r" free lists (?P<list_pages>\d+) pages, (?P<list_us>\d+) us,"
                  r" longest hold (?P<list_hold>\d+) ns")


def walks() -> Dict[str, Dict[str, float]]:
    """The walk in PFN order against one of the free lists, and whole answers."""
    out: Dict[str, Dict[str, float]] = {}
    print(f"{'walk over the free pages':30}{'us':>8}{'us/GiB':>8}{'hold us':>9}{'visits':>10}"
          f"{'most':>6}{'lists us':>10}{'hold us':>9}{'answer ms':>11}{'bytes':>9}{'pages/B':>9}")
    for walk in WALKS:
        with Guest("bench-walk", memory=walk.memory, reserve=False,
                   balloon={"misc-vq": "on"}) as guest:
            if walk.load:
                guest.start(f"balloon_mem {walk.load}").wait_ready(300)
            guest.sh("cd /lib/modules; insmod kunit.ko; insmod unused_pages_kunit.ko", 120)
            match = COST.search(guest.sh("cat /sys/kernel/debug/kunit/unused_pages/results"))
            if not match:
                raise LabError("the KUnit test of the walk printed no cost")
            cost: Dict[str, float] = {k: int(v) for k, v in match.groupdict().items()}
            answers = [guest.ask() for _ in range(5)]
        cost["answer_ms"] = statistics.median(one["answer-ns"] for one in answers) / 1e6
        cost["bytes"] = statistics.median(one["bytes"] for one in answers)
        cost["pages_per_byte"] = answers[-1]["reported-pages"] / answers[-1]["bytes"]
        out[walk.title] = cost
        print(f"{walk.title:30}{cost['us']:>8.0f}{cost['us'] / (walk.memory / GIB):>8.0f}"
              f"{cost['hold'] / 1e3:>9.0f}{cost['visits']:>10.0f}{cost['most']:>6.0f}"
              f"{cost['list_us']:>10.0f}{cost['list_hold'] / 1e3:>9.0f}{cost['answer_ms']:>11.1f}"
              f"{cost['bytes']:>9.0f}{cost['pages_per_byte']:>9.2f}", flush=True)
    return out


def slowdown() -> Dict[str, float]:
    """A load that allocates and frees pages, alone and while the guest answers."""
    load = "for i in 1 2 3; do balloon_mem touch 1024M; done"
    times: Dict[str, List[float]] = {"alone": [], "asked": []}
    asked = 0
    with Guest("bench-slowdown", memory=8 * GIB, prealloc=True,
               balloon={"misc-vq": "on"}) as guest:
        guest.start("balloon_mem fragment 5120M 32").wait_ready(300)
        guest.sh(load, 120)
        for run in range(6):
            job, begin = guest.start(f"sh -c '{load}'"), time.monotonic()
            while job.running():
                if run % 2:
                    guest.ask()
                    asked += 1
                time.sleep(0.02)
            times["asked" if run % 2 else "alone"].append(time.monotonic() - begin)
            job.finish(sig="CONT")
    out = {mode: statistics.median(values) for mode, values in times.items()}
    print(f"3 GiB touched and freed in a fragmented guest: {out['alone']:.2f} s, while it "
          f"answers all the time ({asked // 3} answers) {out['asked']:.2f} s", flush=True)
    return {**out, "answers": asked / 3}


def drain() -> Dict[str, int]:
    """What the per-CPU lists hold after a large free: an answer would miss it."""
    count = """awk '$1 == "count:" { n += $2 } END { print n }' /proc/zoneinfo"""
    with Guest("bench-drain", memory=8 * GIB, prealloc=True,
               balloon={"misc-vq": "on"}) as guest:
        guest.sh("balloon_mem touch 6144M", 120)
        before = int(guest.sh(count))
        answer = guest.ask()
        out = {"before": before, "reported": answer["reported-pages"],
               "after": int(guest.sh(count))}
    print(f"per-CPU lists after 6 GiB were freed: {out['before']} pages, after an answer "
          f"with {out['reported']} pages {out['after']}", flush=True)
    return out


# Up to so much is reclaimed before a migration
RECLAIM = {"misc-vq": "on", "migrate-reclaim": "64G", "migrate-reclaim-ms": "30000"}


def caches() -> Dict[str, Dict[str, float]]:
    """Migration of a guest full of page cache: plain, misc, with the cache reclaimed first."""
    size = 3 * GIB
    out: Dict[str, Dict[str, float]] = {}
    OUT.mkdir(parents=True, exist_ok=True)
    image = OUT / "cached"
    with open(image, "wb") as file:
        some = os.urandom(64 * MIB)
        for _ in range(size // len(some)):
            file.write(some)
    # Its page cache goes when nobody has it open any more.
    keep_open = "(exec 9< /dev/vda; exec sleep 100000) > /dev/null 2>&1 & "
    read = "cat /dev/vda > /dev/null"
    try:
        for way, balloon in {**migrate.MODES, "reclaim first": RECLAIM}.items():
            more: Dict[str, Any] = {
                "memory": 4 * GIB, "balloon": balloon,
                "drives": [f"if=none,id=disk0,format=raw,readonly=on,file={image}"],
                "devices": ["virtio-blk-pci,drive=disk0"]}
            with Guest(f"bench-caches-{len(out)}", **more) as source, \
                    Guest(f"bench-caches-{len(out)}-target", incoming=True, **more) as target:
                source.sh(keep_open + read, 300)
                move = source.migrate_to(target, parameters=migrate.LINK)
                begin = time.monotonic()
                target.sh(read, 300)
                out[way] = {
                    "time, s": move.info["total-time"] / 1e3,
                    "of it setup, s": move.info["setup-time"] / 1e3,
                    "sent, MiB": move.info["ram"]["transferred"] / MIB,
                    "at the target, MiB": move.target_rss / MIB,
                    "reclaimed, MiB": move.info.get("unused-pages", {}).get("reclaimed", 0) / MIB,
                    "to read it all again, s": time.monotonic() - begin}
    finally:
        image.unlink()
    print(f"{'4 GiB, 3 of page cache':30}" + "".join(f"{way:>15}" for way in out))
    for what in out["plain"]:
        print(f"  {what:28}" + "".join(f"{one[what]:15,.{1 if ', s' in what else 0}f}"
                                      for one in out.values()))
    return out


def migrations(loads: List[migrate.Load], runs: int, memory: int = migrate.SIZE,
               prealloc: bool = True) -> Dict[str, Any]:
    """Tables of migrations, and every figure."""
    out: Dict[str, Any] = {}
    for load in loads:
        results = {mode: migrate.chain([load] + [migrate.IDLE] * (runs - 1), mode, memory, prealloc)
                   for mode in migrate.MODES}
        migrate.table(load.title, results)
        out[load.name] = {"title": load.title, "medians": migrate.medians(results),
                          "raw": {mode: [one._asdict() for one in moves]
                                  for mode, moves in results.items()}}
    return out


def median(moves: List[Move], of: Callable[[Move], float]) -> float:
    """The median of a figure."""
    return statistics.median(of(move) for move in moves)


def table(title: str, results: Results, pages: float = 0,
          floors: Optional[Dict[str, Optional[float]]] = None) -> Dict[str, Any]:
    """Print what came of a case; return its medians. The last way is what others are compared to."""
    out: Dict[str, Any] = {"title": title}
    *ours, base = results
    print(f"\n{title:39}" + "".join(f"{way:>14}" for way in results))
    for direction in ("inflate", "deflate"):
        rows: Dict[str, Dict[str, float]] = {"s": {}}
        for what, of in (*FIGURES.items(), *(INFLATED.items() if direction == "inflate" else ())):
            rows[what] = {way: median(moves[direction], of) for way, moves in results.items()}
        rows["times as fast"] = {way: rows["s"][base] / rows["s"][way] for way in ours}
        if pages:
            rows["pages per byte"] = {way: pages / n
                                      for way, n in rows["bytes on the queue"].items()}
        out[direction] = rows
        floor = (floors or {}).get(direction)
        for what, values in rows.items():
            if any(values.values()):
                print(f"  {direction + ', ' if what == 's' else '  '}{what:{37 - (9 if what == 's' else 2)}}"
                      + "".join(f"{value:>14,.{digits(value)}f}" for value in values.values())
                      + (f"{'':14}  at least {floor:.0f}" if what == "times as fast" and floor else ""))
    sys.stdout.flush()
    return out


def digits(value: float) -> int:
    """How many of them say something behind the point."""
    return 0 if value == int(value) or abs(value) >= 100 else 3 if abs(value) < 1 else 2


# Of each move, and of those that inflate
FIGURES: Dict[str, Callable[[Move], float]] = {
    "s": lambda m: m.seconds,
    "QEMU's CPU, s": lambda m: m.cpu["total"],
    "of it main loop, s": lambda m: m.cpu["main"],
    "under the global lock, ms": lambda m: m.stats.get("busy-ns", 0) / 1e6,
    "longest hold of it, ms": lambda m: m.stats.get("longest-hold-ns", 0) / 1e6,
    "discards": lambda m: m.stats.get("discards", 0),
    "system calls for these": lambda m: m.stats.get("discard-calls", 0),
    "kicks": lambda m: m.stats.get("kicks", 0),
    "bytes on the queue": lambda m: m.stats.get("bytes", 0),
}
INFLATED: Dict[str, Callable[[Move], float]] = {
    "the host has more, MiB": lambda m: -m.rss / MIB,
    "the guest's large free blocks, MiB": lambda m: m.large / MIB,
}


class Tee:
    """Standard output, and a file that has the same."""

    def __init__(self, path: Path):
        self.outputs = (sys.stdout, path.open("w", encoding="utf-8"))

    def write(self, text: str) -> None:
        """Write it to both."""
        for output in self.outputs:
            output.write(text)

    def flush(self) -> None:
        """Flush both."""
        for output in self.outputs:
            output.flush()


def keep() -> None:
    """Put what was measured into the repository."""
    sys.stdout.flush()
    folder = ROOT / "figures"
    folder.mkdir(exist_ok=True)
    for path in (OUT / "figures", *OUT.glob("*.svg")):
        shutil.copy(path, folder)
    print(f"kept in {folder}")


def machine() -> str:
    """What is measured, on what, and when."""
    base = [line.split("\t") for line in (ROOT / "BASE").read_text("ascii").splitlines()
            if not line.startswith("#")]
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    return (f"{time.strftime('%Y-%m-%d')}, "
            + ", ".join(f"{name} {version}" for name, _, version, _ in base)
            + f"; {os.cpu_count()} CPUs: {model[1] if model else 'unknown'}")


def save(report: Dict[str, Any]) -> None:
    """Write what there is so far."""
    (OUT / "bench.json").write_text(json.dumps(report, indent=1), "utf-8")


def plot(name: str, title: str, columns: List[str], rows: Dict[str, List[float]],
         unit: str = "seconds (log)") -> None:
    """Draw bars with gnuplot, if it is there."""
    data = OUT / f"{name}.dat"
    data.write_text("".join(f'"{label}" {" ".join(map(str, values))}\n'
                            for label, values in rows.items()), "utf-8")
    bars = ", ".join(f'"{data}" using {n}:xtic(1) title "{column}"'
                     for n, column in enumerate(columns, 2))
    script = f"""
        set terminal svg size 1200,600 background "white"
        set output "{OUT}/{name}.svg"
        set style data histograms
        set style fill solid 0.8
        {"set logscale y" if "log" in unit else ""}
        set ylabel "{unit}"
        set grid ytics
        set xtics rotate by -30 font ",9"
        set bmargin 8
        set title "{title}"
        plot {bars}
    """
    if shutil.which("gnuplot"):
        subprocess.run(["gnuplot"], input=script, text=True, check=True)


def plots(report: Dict[str, Any]) -> None:
    """All pictures that there are figures for."""
    how = f"{report['accelerator']}, medians of {report['runs']} runs"
    if report["cases"]:
        plot("bench", f"Balloon, {how}", list(WAYS),
             {f"{case['title']}\\n{way}": [case[way]["s"][one] for one in WAYS]
              for case in report["cases"].values() for way in ("inflate", "deflate")})
        plot("returns", f"What the host has more, {how}", list(WAYS),
             {case["title"]: [case["inflate"]["the host has more, MiB"][one] for one in WAYS]
              for case in report["cases"].values()}, "MiB")
    for name in ("migration", "grid"):
        if name in report:
            plot(name, f"Live migration, {how}", list(migrate.MODES),
                 {one["title"].replace(":", "\\n").replace(", ", "\\n"):
                  [one["medians"][mode]["time, s"] for mode in migrate.MODES]
                  for one in report[name].values()})


def main() -> int:
    """Run the cases, print and write what came out."""
    parts: Dict[str, Callable[[], Any]] = {
        "pace": pace,
        "squeezed": squeezed,
        "walk": walks,
        "slowdown": slowdown,
        "drain": drain,
        "caches": caches,
        "bare": lambda: bare_bench.figures(table),
        "migration": lambda: migrations(migrate.LOADS, 5),
        "backing": lambda: migrations(migrate.LOADS[:4], 1, 4 * GIB, prealloc=False),
        "busy": lambda: fleet.busy(max(1, runs // 2)),
        "fleet": fleet.nodes,
        "grid": lambda: migrations(migrate.GRID, 1, 4 * GIB),
    }
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each case, default 7")
    parser.add_argument("--quick", action="store_true", help="3 runs, without cases that take minutes")
    parser.add_argument("--only", metavar="CASE", action="append",
                        choices=[c.name for c in CASES + RETURNS] + ["stock", "huge", *parts]
                        + [m.name for m in migrate.LOADS],
                        help="one of %(choices)s; may be repeated")
    parser.add_argument("--keep", action="store_true",
                        help="put tables and pictures into the repository")
    args = parser.parse_args()
    runs = 3 if args.quick else args.runs

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    OUT.mkdir(parents=True, exist_ok=True)
    unpatched = wanted("stock")
    for name in ("guest", "qemu") + (("guest-module", "guest-debian", "qemu-stock") if unpatched else ()):
        artifact(name)
    begin = time.monotonic()
    report: Dict[str, Any] = {"accelerator": accelerator(), "runs": runs, "cases": {}, "raw": {}}
    for old in OUT.glob("*.svg"):
        old.unlink()
    sys.stdout = Tee(OUT / "figures")  # type: ignore
    print(machine())
    print(f"Medians of {runs} runs, of migrations 5; accelerator: {accelerator()}\n")

    for case in CASES + RETURNS:
        if not wanted(case.name) or (args.quick and case.slow):
            continue
        try:
            results = moves(case, max(3, round(runs * case.runs)))
        except Skip as why:
            print(f"\n{case.title}: {why}")
            continue
        report["cases"][case.name] = table(case.title, results, (case.memory - case.keep) / PAGE,
                                           {"inflate": case.inflate, "deflate": case.deflate})
        report["raw"][case.name] = {way: {direction: [m._asdict() for m in some]
                                          for direction, some in of.items()}
                                    for way, of in results.items()}
        save(report)
    if unpatched:
        report["stock"] = {title: table(f"Debian: {title}", stock(append, 3))
                           for title, append in STOCK.items()}
        report["unused"] = unused()
    if wanted("huge"):
        report["huge"] = huge_pages_left()
        print("huge pages of 3 GiB, half the guest ballooned: "
              + ", ".join(f"{way} {text}" for way, text in report["huge"].items()))
    for name, part in parts.items():
        if wanted(name):
            try:
                report[name] = part()
            except Skip as why:
                print(f"{name}: {why}")
            save(report)
    some = [load for load in migrate.LOADS if args.only and load.name in args.only]
    if some:
        report["migration"] = migrations(some, 5)
    save(report)
    plots(report)
    print(f"all figures: bench.json; {time.monotonic() - begin:.0f} s")
    if args.keep:
        keep()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"bench: {error}")
