# SPDX-License-Identifier: GPL-2.0
"""Measure live migration as fleets run it: busy guests, several nodes, postcopy enabled."""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import migrate
from lab import GIB, MIB, PAGE, Guest, Migration, NoEnd, boot

MEMORY = 4 * GIB
# Who has not ended by then does not end.
PATIENCE = 60
LINKS = {f"{gbit} Gbit/s": {"max-bandwidth": gbit * 125 * 1000 * 1000, "downtime-limit": 300}
         for gbit in (1, 10)}
PROGRESS = "/tmp/progress"
# Processes of 16 to 64 MiB that come, write, and end; {0} is another number for each
CHURN = ("i={0}; while :; do i=$((i+7)); balloon_mem touch $((16 + i % 49))M; "
         f"echo $i >> {PROGRESS}{{0}}; done")
FILES = ("i=0; while :; do i=$((i+1)); dd if=/dev/zero of=/tmp/file$((i % 8)) bs=1M count=32; "
         f"echo $i >> {PROGRESS}; done")
BURST = f"i=0; while :; do i=$((i+1)); balloon_mem touch 512M; echo $i >> {PROGRESS}; sleep 2; done"


class Load(NamedTuple):
    """Scripts that run all the time and say how far they are; what stays, and is waited for."""

    scripts: Tuple[str, ...] = ()
    stays: str = ""


CHURNS = (CHURN.format(0), CHURN.format(3))
LOADS = {
    "churn: processes of 16 to 64 MiB": Load(CHURNS[:1]),
    "two such at a time": Load(CHURNS),
    "two, 31 of 32 pages of 3 GiB free": Load(CHURNS, "fragment 3072M 32"),
    "database: 512 MiB, 10000 pages/s": Load((), f"update 512M 10000 {PROGRESS}"),
    "tmpfs: files of 32 MiB": Load((FILES,)),
    "bursts: 512 MiB each 2 s": Load((BURST,)),
    "full: 3400 MiB, 5000 pages/s": Load((), f"update 3400M 5000 {PROGRESS}"),
}


class Busy(NamedTuple):
    """What a migration was like."""

    ended: bool
    seconds: float
    sent: int
    left_out: int
    rounds: int
    downtime: int               # ms
    progress: float             # of the load, part of what it was before


ROWS: Dict[str, Callable[[Busy], float]] = {
    "ended, of 100": lambda b: 100 * b.ended,
    "time, s": lambda b: b.seconds,
    "sent, MiB": lambda b: b.sent / MIB,
    "left out, MiB": lambda b: b.left_out / MIB,
    "rounds": lambda b: b.rounds,
    "downtime, ms": lambda b: b.downtime,
    "the load's speed, % of before": lambda b: 100 * b.progress,
}


def count(guest: Guest) -> int:
    """How far the guest's loads are."""
    return sum(int(n) for n in guest.sh(f"for f in {PROGRESS}*; do tail -n 1 $f; done").split())


def move(source: Guest, target: Guest, link: Dict[str, int], speed: float) -> Busy:
    """Migrate a guest that did so much a second; what that was like."""
    begin, first = time.monotonic(), count(source)
    try:
        moved = source.migrate_to(target, parameters=link, timeout=PATIENCE)
        info, guest = moved.info, target
    except NoEnd:
        info, guest = source.qmp("query-migrate"), source
    ended = guest is target
    did = (count(guest) - first) / (time.monotonic() - begin)
    if not ended:
        source.qmp("migrate_cancel")
        source.until(lambda: source.qmp("query-migrate")["status"] == "cancelled", 30)
    return Busy(ended, info["total-time"] / 1e3, info["ram"]["transferred"],
                info.get("unused-pages", {}).get("left-out", 0), info["ram"]["dirty-sync-count"],
                info.get("downtime", 0), did / speed)


def chain(load: Load, mode: str, link: Dict[str, int], hops: int) -> List[Busy]:
    """Migrate a busy guest from host to host."""
    # As KVM clears it: TCG's own dirty log flatters who leaves nothing out.
    more: Dict[str, Any] = {"memory": MEMORY, "devices": ["x-late-dirty-log,id=late"],
                            "balloon": {"page-bitmap": "on", **migrate.MODES[mode]}}
    out: List[Busy] = []
    source = boot(f"fleet-{mode}", **more)
    try:
        if load.stays:
            source.start(f"balloon_mem {load.stays}").wait_ready(120)
        for script in load.scripts:
            source.start(f"sh -c '{script}'")
        # The first one may have to wait for memory that the host clears.
        source.sh(f"until ls {PROGRESS}*; do sleep 0.1; done", 60)
        time.sleep(3)
        first, begin = count(source), time.monotonic()
        time.sleep(5)
        speed = (count(source) - first) / (time.monotonic() - begin)
        for hop in range(hops):
            target = Guest(f"fleet-{mode}-{hop}", incoming=True, **more)
            try:
                out.append(move(source, target, link, speed))
            except BaseException:
                target.close()
                raise
            if out[-1].ended:
                source, target = target, source
            # One whose migration is cancelled gives up.
            target.close(status=1)
    finally:
        source.close()
    return out


def busy(hops: int) -> Dict[str, Any]:
    """Busy guests over two links: plain, by hints, by the misc queue."""
    out: Dict[str, Any] = {}
    for name, link in LINKS.items():
        for title, load in LOADS.items():
            results = {mode: chain(load, mode, link, hops) for mode in migrate.MODES}
            migrate.heading(f"{title}, {name}", results)
            for what, of in ROWS.items():
                of_all = statistics.mean if what.startswith("ended") else statistics.median
                migrate.row(what, [of_all(map(of, some)) for some in results.values()])
            out[f"{title}, {name}"] = {mode: [b._asdict() for b in some]
                                       for mode, some in results.items()}
    return out


def nodes() -> Dict[str, Any]:
    """Two nodes of 8 and 64 GiB, 7 GiB in use on the first; 4 GiB with postcopy enabled."""
    numa = []
    # Memory that has to be cleared first would take most of the time.
    for node, more in enumerate(("size=8G,prealloc=on", "size=64G,reserve=off")):
        numa += ["-object", f"memory-backend-ram,id=node{node},{more}",
                 "-numa", f"node,memdev=node{node}" + ("" if node else ",cpus=0-1")]
    hold = migrate.Load("", "", lambda guest: guest.start("balloon_mem hold 7168M").wait_ready(300))
    out: Dict[str, Any] = {}
    for title, chained in {
            "nodes of 8 and 64 GiB, 7 GiB in use": lambda mode: migrate.chain(
                [hold], mode, 72 * GIB, False, more=numa),
            "fragmented, postcopy enabled": lambda mode: migrate.chain(
                migrate.LOADS[:1], mode, MEMORY, False, ("postcopy-ram",))}.items():
        results: Dict[str, List[Migration]] = {mode: [] for mode in migrate.MODES}
        for run in range(3):
            for mode in sorted(results, reverse=bool(run % 2)):
                results[mode] += chained(mode)
        migrate.table(title, results)
        out[title] = {mode: [one._asdict() for one in moves] for mode, moves in results.items()}
        print("  GiB gone through: " + ", ".join(
            f"{mode} {migrate.median(moves, 'pages looked at') * PAGE / GIB:.1f}"
            for mode, moves in results.items()), flush=True)
    return out
