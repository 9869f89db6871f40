# SPDX-License-Identifier: GPL-2.0
"""Figures under KVM of the guest without a kernel, whose side costs next to nothing.

So they are those of the host: of QEMU, KVM and the kernel below. A Linux guest adds its own.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

import migrate
from bare import Bare
from lab import BUILD, GIB, MIB, PAGE, WAYS, Migration, Move, Skip, no_kvm

OUT = BUILD / "bench"
POOL = GIB - 16 * MIB   # what the guest uses of it
RUNS = 3


class Layout(NamedTuple):
    """Which memory is in use, and backed."""

    title: str
    used: int = 0       # pages, and again and again
    free: int = 1
    backed: bool = True

    def take(self) -> int:
        """Bytes that are free."""
        return POOL // (self.used + self.free) * self.free // PAGE * PAGE


INFLATED = [
    Layout("not backed", backed=False), Layout("backed"),
    *(Layout(f"runs of {n}", n, n) for n in (1, 2, 16, 512)),
]


def quiet(layout: Layout, **more: Any) -> Bare:
    """A guest that does nothing but what the device wants."""
    guest = Bare(OUT, "kvm", memory=GIB, still=True, **more)
    guest.tell("moves 1000000")
    if layout.backed:
        guest.tell(f"layout {layout.used} {layout.free}")
    return guest


def moves(layout: Layout, runs: int, cpus: int = 1) -> Dict[str, Dict[str, List[Move]]]:
    """Inflate and deflate, in each way in turn, each time in a new guest."""
    out: Dict[str, Dict[str, List[Move]]] = {way: {"inflate": [], "deflate": []} for way in WAYS}
    for run in range(runs):
        for way in sorted(WAYS, reverse=bool(run % 2)):
            with quiet(layout, cpus=cpus, balloon=WAYS[way]) as guest:
                for direction, size in (("inflate", GIB - layout.take()), ("deflate", GIB)):
                    out[way][direction].append(guest.balloon(size, timed=True))
    return out


def waits(layout: Layout) -> Dict[str, Dict[str, float]]:
    """How long another CPU, which uses a port of QEMU now and then, waits while all is inflated."""
    out: Dict[str, Dict[str, List[float]]] = {
        way: {"times": [], "99th percentile, ms": [], "longest, ms": []} for way in WAYS}
    for run in range(RUNS):
        for way in sorted(WAYS, reverse=bool(run % 2)):
            with quiet(layout, cpus=2, balloon=WAYS[way]) as guest:
                first, begin = guest.check(), time.monotonic()
                guest.balloon(GIB - layout.take())
                last, seconds = guest.check(), time.monotonic() - begin
            tick = seconds * 1e3 / (last["now"] - first["now"])
            for what, value in zip(out[way], (last["waits"], last["p99"] * tick, last["max"] * tick)):
                out[way][what].append(value)
    return {way: {what: statistics.median(values) for what, values in rows.items()}
            for way, rows in out.items()}


class Load(NamedTuple):
    """What is migrated, and what the balloon has of it."""

    title: str
    layout: Layout
    ballooned: int = 0


LOADS = [
    Load("touched, then freed", Layout("")),
    Load("the same, half ballooned", Layout(""), POOL // 2),
    Load("31 of 32 pages free", Layout("", 1, 31)),
    Load("idle", Layout("", backed=False)),
]


def migrations(load: Load) -> Dict[str, List[Migration]]:
    """Migrate over a link of 10 Gbit/s: plain, by hints, by the misc queue."""
    out: Dict[str, List[Migration]] = {mode: [] for mode in migrate.MODES}
    for run in range(RUNS):
        for mode in sorted(out, reverse=bool(run % 2)):
            more: Mapping[str, Any] = {"balloon": {"misc-vq": "off", **migrate.MODES[mode]}}
            with quiet(load.layout, **more) as source, \
                    Bare(OUT, "kvm", memory=GIB, incoming=True, **more) as target:
                if load.ballooned:
                    source.balloon(GIB - load.ballooned)
                out[mode].append(source.migrate_to(target, parameters=migrate.LINK))
    return out


def arming() -> float:
    """What the log of 1 GiB takes to be cleared, with all of it backed, in ms."""
    took: List[float] = []
    for _ in range(RUNS):
        with quiet(Layout("")) as source, \
                Bare(OUT, "kvm", memory=GIB, incoming=True) as target:
            for name in ("unused_pages_window", "virtio_balloon_misc_request"):
                source.qmp("trace-event-set-state", name=name, enable=True)
            source.migrate_to(target, parameters=migrate.LINK)
            log = source.qemu_log.read_text("utf-8", "replace")
            at = [float(re.findall(rf"@([0-9.]+):{name} ", log)[0])
                  for name in ("unused_pages_window", "virtio_balloon_misc_request")]
            took.append((at[1] - at[0]) * 1e3)
    return statistics.median(took)


def figures(table: Callable[..., Dict[str, Any]]) -> Dict[str, Any]:
    """Print all of it, the moves by bench.py's table()."""
    if no_kvm():
        raise Skip(no_kvm())
    print("\nUnder KVM, a guest without a kernel, 1 GiB: the host's part alone")
    out: Dict[str, Any] = {"moves": {}, "waits": {}, "migration": {}}
    for layout in INFLATED:
        out["moves"][layout.title] = table(f"{layout.take() // MIB} MiB, {layout.title}",
                                           moves(layout, RUNS), layout.take() / PAGE)
    print(f"\n{'another CPU waits for QEMU meanwhile':39}" + "".join(f"{way:>14}" for way in WAYS))
    for layout in (Layout("backed"), Layout("runs of 1", 1, 1)):
        out["waits"][layout.title] = of = waits(layout)
        for what in next(iter(of.values())):
            print(f"  {layout.title + ', ' + what:37}"
                  + "".join(f"{of[way][what]:>14.1f}" for way in of))
    print()
    for load in LOADS:
        results = migrations(load)
        migrate.table(f"under KVM, {load.title}", results,
                      ["time, s", "sent, MiB", "target's RSS, MiB", "pages sent", "zero pages",
                       "pages left out"])
        out["migration"][load.title] = migrate.medians(results)
    out["arming"] = arming()
    print(f"\narming 1 GiB, all of it backed: {out['arming']:.2f} ms")
    return out
