# SPDX-License-Identifier: GPL-2.0
"""Measure live migration: plain, with free page hints, with unused pages left out."""

from __future__ import annotations

import statistics
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence

from lab import GIB, MIB, Guest, LabError, Migration, boot

SIZE = 8 * GIB
# 10 Gbit/s. By default QEMU stops the VM as soon as the rest takes 300 ms: with so
# little to send that would be most of it.
LINK = {"max-bandwidth": 1250 * 1000 * 1000, "downtime-limit": 20}

MODES: Dict[str, Dict[str, str]] = {
    "plain": {},
    "hint": {"free-page-hint": "on"},
    "misc": {"misc-vq": "on"},
}


class Load(NamedTuple):
    """What the guest did before it is migrated."""

    name: str
    title: str
    run: Callable[[Guest], None]
    append: str = ""


def idle(_guest: Guest) -> None:
    """Nothing."""


def most(guest: Guest) -> str:
    """Three quarters of the memory."""
    return f"{guest.memory * 3 // 4 // MIB}M"


def freed(guest: Guest) -> None:
    """Touch most of the memory and free it."""
    guest.sh(f"balloon_mem touch {most(guest)}", 300)


def ballooned(guest: Guest) -> None:
    """Take half of the memory away, by page bitmaps or not."""
    guest.balloon(guest.memory // 2, timeout=300)


def share(keep: int, block: str = "4K") -> Callable[[Guest], None]:
    """Touch most of the memory and free all but one block in keep."""
    def run(guest: Guest) -> None:
        guest.start(f"balloon_mem fragment {most(guest)} {keep} {block}").wait_ready(300)
    return run


IDLE = Load("migrate-idle", "idle", idle)
LOADS = [
    Load("migrate-fragmented", "fragmented: 31 of 32 pages of 3/4 freed", share(32)),
    Load("migrate-ballooned", "half ballooned away", ballooned),
    IDLE,
    Load("migrate-freed", "3/4 touched, then freed", freed),
]
LOADS += [one._replace(name=f"{one.name}-init", title=f"{one.title}, init_on_alloc=1",
                       append="init_on_alloc=1") for one in LOADS]
GRID = [Load(f"grid-{keep}-{block}", f"{keep - 1} of {keep} blocks of {block} free",
             share(keep, block))
        for keep in (2, 8, 32) for block in ("4K", "64K", "2M")]


def chain(loads: Sequence[Load], mode: str, memory: int = SIZE, prealloc: bool = True,
          capabilities: Sequence[str] = (), **more: Any) -> List[Migration]:
    """Migrate one guest from host to host, each time after another load."""
    out: List[Migration] = []
    more = {"memory": memory, "prealloc": prealloc, "append": loads[0].append,
            "balloon": {"page-bitmap": "on", **MODES[mode]}, **more}
    source = boot(f"migrate-{mode}", **more)
    try:
        for run, load in enumerate(loads):
            load.run(source)
            target = Guest(f"migrate-{mode}-{run}", incoming=True, **more)
            try:
                out.append(source.migrate_to(target, capabilities, LINK, poll=0.05))
            except BaseException:
                target.close()
                raise
            source.close()
            source = target
        source.sh("true")
    finally:
        source.close()
    for one in out:
        if mode == "misc" and not one.misc["answers"]:
            raise LabError(f"the guest was not asked, or did not answer: {one.misc}")
    return out


FIGURES: Dict[str, Callable[[Migration], float]] = {
    "time, s": lambda m: m.info["total-time"] / 1e3,
    "sent, MiB": lambda m: m.info["ram"]["transferred"] / MIB,
    "pages sent": lambda m: m.info["ram"]["normal"],
    "zero pages": lambda m: m.info["ram"]["duplicate"],
    "pages looked at": lambda m: m.info["ram"]["normal"] + m.info["ram"]["duplicate"],
    "downtime, ms": lambda m: m.info["downtime"],
    "rounds": lambda m: m.info["ram"]["dirty-sync-count"],
    "source's RSS, MiB": lambda m: m.source_rss / MIB,
    "target's RSS, MiB": lambda m: m.target_rss / MIB,
    "pages left out": lambda m: m.misc.get("unsent-pages", 0),
    "answer, ms": lambda m: m.misc.get("answer-ns", 0) / 1e6,
    "bytes on the queue": lambda m: m.misc.get("bytes", 0),
}


def median(moves: List[Migration], what: str) -> float:
    """The median of a figure."""
    return statistics.median(FIGURES[what](one) for one in moves)


def medians(results: Dict[str, List[Migration]]) -> Dict[str, Dict[str, float]]:
    """Mode -> figure -> median; downtimes whole."""
    return {mode: {what: median(moves, what) for what in FIGURES}
            for mode, moves in results.items()}


def heading(title: str, modes: Iterable[str]) -> None:
    """Print what is above a table."""
    print(f"{title:46}" + "".join(f"{mode:>12}" for mode in modes))


def row(what: str, values: Iterable[float]) -> None:
    """Print a line of a table; of seconds the hundredths as well."""
    print(f"  {what:44}" + "".join(f"{value:12,.{2 if ', s' in what else 0}f}"
                                   for value in values), flush=True)


def table(title: str, results: Dict[str, List[Migration]],
          only: Optional[List[str]] = None) -> None:
    """Print the medians of all modes side by side."""
    figures = medians(results)
    heading(title, results)
    for what in only or FIGURES:
        values = [figures[mode][what] for mode in results]
        if any(values):
            row(what, values)
    if "misc" in results:
        for what in ("time, s", "sent, MiB", "pages looked at"):
            ratio = [figures[mode][what] / max(figures["misc"][what], 1e-9) for mode in results]
            print(f"  {'ratio to misc, ' + what.split(',')[0]:44}"
                  + "".join(f"{value:12.1f}" for value in ratio))
    downtimes = {mode: sorted(m.info["downtime"] for m in moves)
                 for mode, moves in results.items()}
    if not only:
        print("  downtimes, ms: " + ", ".join(f"{m} {d}" for m, d in downtimes.items()), flush=True)
