#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Measure inflating and deflating, by page bitmaps and by PFN arrays.

For each case two guests are up at the same time and take turns, so that both see
the same machine. A table on stdout gives medians and ratios; every single figure
is in <build>/bench/bench.json, and bench.svg there is the picture.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from lab import BUILD, GIB, MIB, PAGE, Guest, LabError, Move, accelerator, artifact

OUT = BUILD.parent / "bench"
Results = Dict[str, Dict[str, List[Move]]]


def touched(guest: Guest) -> None:
    """Have the host back what will be inflated."""
    guest.sh(f"balloon_mem touch {(guest.memory - GIB) // MIB}M", 300)


def fragmented(guest: Guest) -> None:
    """Leave one page in 32 of 6.5 GiB in use."""
    guest.start("balloon_mem fragment 6656M 32").wait_ready(300)


def scattered(guest: Guest) -> None:
    """The same, but with the other pages freed all over, in no order."""
    guest.start("balloon_mem scatter 6656M 32").wait_ready(300)


class Case(NamedTuple):
    """What is measured, and by how much on must beat off: None if not said."""

    name: str
    title: str
    memory: int = 8 * GIB
    keep: int = GIB
    append: str = ""
    once: Optional[Callable[[Guest], None]] = None      # when the guest is up
    each: Optional[Callable[[Guest], None]] = None      # before each run
    inflate: Optional[float] = None
    deflate: Optional[float] = None
    runs: float = 1     # part of the number of runs


CASES = [
    Case("fresh", "8 GiB, 7 not backed", inflate=12, deflate=4),
    Case("backed", "8 GiB, 7 backed", each=touched, inflate=30, deflate=4),
    Case("fragmented", "8 GiB, 1 page in 32 in use", keep=3 * GIB // 2, once=fragmented, inflate=3),
    Case("scattered", "the same, freed in no order", keep=3 * GIB // 2, once=scattered,
         runs=0.4),
    Case("init", "8 GiB, init_on_alloc=1", append="init_on_alloc=1", inflate=80),
    Case("small", "2 GiB, 1 not backed", memory=2 * GIB),
    Case("large", "32 GiB, 31 not backed", memory=32 * GIB, runs=0.4),
]


def both(case: Case, runs: int) -> Dict[str, Dict[str, List[Move]]]:
    """The moves of a case: mode -> direction -> one for each run."""
    out: Results = {mode: {"inflate": [], "deflate": []} for mode in ("on", "off")}
    guests: Dict[str, Guest] = {}
    try:
        for mode in out:
            guests[mode] = Guest(f"bench-{case.name}-{mode}", memory=case.memory, reserve=False,
                                 append=case.append, balloon={"page-bitmap": mode})
            if case.once:
                case.once(guests[mode])
        for run in range(runs):
            for mode in sorted(out, reverse=bool(run % 2)):
                if case.each:
                    case.each(guests[mode])
                turn(guests[mode], case, out[mode])
    finally:
        for guest in guests.values():
            guest.close()
    return out


def turn(guest: Guest, case: Case, out: Dict[str, List[Move]]) -> None:
    """One run: down and up again."""
    out["inflate"].append(guest.balloon(case.keep, timeout=600, timed=True))
    out["deflate"].append(guest.balloon(case.memory, timeout=600, timed=True))
    if out["inflate"][-1].stats.get("bad-records"):
        raise LabError("the device refused a record")


def stock(runs: int) -> Results:
    """Feature off against the unpatched pair."""
    case = CASES[0]
    out: Results = {mode: {"inflate": [], "deflate": []} for mode in ("off", "stock")}
    with Guest("bench-off", memory=case.memory, reserve=False,
               balloon={"page-bitmap": "off"}) as off, \
            Guest("bench-stock", kernel="guest-stock", qemu="qemu-debian",
                  memory=case.memory, reserve=False) as plain:
        for run in range(runs):
            for mode, guest in sorted({"off": off, "stock": plain}.items(), reverse=bool(run % 2)):
                turn(guest, case, out[mode])
    return out


def huge_pages() -> Dict[str, str]:
    """What a guest gets of 3 GiB in huge pages, half of its memory in the balloon."""
    out = {}
    for mode in ("on", "off"):
        with Guest(f"bench-huge-{mode}", memory=8 * GIB, reserve=False,
                   balloon={"page-bitmap": mode}) as guest:
            guest.balloon(4 * GIB)
            out[mode] = guest.sh("balloon_mem thp 3072M", 120).strip()
    return out


def median(moves: List[Move], of: Callable[[Move], float]) -> float:
    """The median of a figure."""
    return statistics.median(of(move) for move in moves)


def table(case: Case, results: Results) -> Dict[str, Any]:
    """Print a case; return its medians."""
    out: Dict[str, Any] = {"title": case.title, "memory": case.memory}
    for way, floor in (("inflate", case.inflate), ("deflate", case.deflate)):
        on, off = (median(results[m][way], lambda move: move.seconds) for m in ("on", "off"))
        out[way] = {"on": on, "off": off, "ratio": off / on, "at_least": floor}
        want = f"at least {floor:.0f}" if floor else ""
        print(f"{case.title:28}{way:9}{on:>9.3f}{off:>10.3f}{off / on:>9.1f}  {want}")
        for what, of in FIGURES.items():
            values = {m: median(results[m][way], of) for m in ("on", "off")}
            out[way][what] = values
            print(f"{'':30}{what:20}{values['on']:>14,.2f}{values['off']:>16,.2f}")
        pages = (case.memory - case.keep) / PAGE
        density = {m: pages / n for m, n in out[way]["bytes on the queue"].items()}
        out[way]["pages per byte"] = density
        print(f"{'':30}{'pages per byte':20}{density['on']:>14,.2f}{density['off']:>16,.2f}")
    sys.stdout.flush()
    return out


FIGURES: Dict[str, Callable[[Move], float]] = {
    "QEMU's CPU, s": lambda m: m.cpu["total"],
    "of it main loop, s": lambda m: m.cpu["main"],
    "discards": lambda m: m.stats["discards"],
    "kicks": lambda m: m.stats["kicks"],
    "bytes on the queue": lambda m: m.stats["bytes"],
    "longest BQL hold, ms": lambda m: m.stats["longest-hold-ns"] / 1e6,
}


def save(report: Dict[str, Any]) -> None:
    """Write what there is so far."""
    (OUT / "bench.json").write_text(json.dumps(report, indent=1), "utf-8")


def plot(report: Dict[str, Any]) -> None:
    """Draw the medians with gnuplot, if it is there."""
    rows = [(case["title"], way, case[way]["on"], case[way]["off"])
            for case in report["cases"].values() for way in ("inflate", "deflate")]
    data = OUT / "bench.dat"
    data.write_text("".join(f'"{t}\\n{w}" {on} {off}\n' for t, w, on, off in rows), "utf-8")
    script = f"""
        set terminal svg size 1200,600 background "white"
        set output "{OUT}/bench.svg"
        set style data histograms
        set style fill solid 0.8
        set logscale y
        set ylabel "seconds (log)"
        set grid ytics
        set xtics rotate by -30 font ",9"
        set bmargin 8
        set title "Balloon, {report['accelerator']}, medians of {report['runs']} runs"
        plot "{data}" using 3:xtic(1) title "PFN arrays", "" using 2 title "page bitmaps"
    """
    if shutil.which("gnuplot"):
        subprocess.run(["gnuplot"], input=script, text=True, check=True)
        print(f"\nplot: {OUT}/bench.svg")


def main() -> int:
    """Run the cases, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each case, default 7")
    parser.add_argument("--quick", action="store_true", help="3 runs, without the large guest")
    parser.add_argument("--only", metavar="CASE",
                        choices=[c.name for c in CASES] + ["stock", "huge"])
    args = parser.parse_args()
    runs = 3 if args.quick else args.runs
    OUT.mkdir(parents=True, exist_ok=True)
    unpatched = args.only in (None, "stock")
    for name in ("guest", "qemu") + (("guest-stock", "qemu-debian") if unpatched else ()):
        artifact(name)
    begin = time.monotonic()
    report: Dict[str, Any] = {"accelerator": accelerator(), "runs": runs, "cases": {}, "raw": {}}
    print(f"Balloon, medians of {runs} runs, interleaved; accelerator: {accelerator()}\n")
    print(f"{'guest':28}{'':9}{'bitmap s':>9}{'PFN s':>10}{'ratio':>9}")

    def raw(results: Results) -> Dict[str, Any]:
        return {mode: {way: [m._asdict() for m in moves] for way, moves in ways.items()}
                for mode, ways in results.items()}

    for case in CASES:
        if args.only not in (None, case.name) or (args.quick and case.name == "large"):
            continue
        results = both(case, max(3, round(runs * case.runs)))
        report["cases"][case.name] = table(case, results)
        report["raw"][case.name] = raw(results)
        save(report)
    if unpatched:
        results = stock(runs)
        report["raw"]["stock"] = raw(results)
        report["stock"] = {}
        for way in ("inflate", "deflate"):
            off, plain = (median(results[m][way], lambda move: move.seconds)
                          for m in ("off", "stock"))
            cpu = {m: median(results[m][way], lambda move: move.cpu["total"])
                   for m in ("off", "stock")}
            report["stock"][way] = {"off": off, "stock": plain, "cpu": cpu}
            print(f"{'feature off, stock pair':28}{way:9}{off:>9.3f}{plain:>10.3f}"
                  f"{plain / off:>9.2f}  CPU {cpu['off']:.2f} {cpu['stock']:.2f}")
    if args.only in (None, "huge"):
        report["huge"] = huge_pages()
        print(f"huge pages of 3 GiB, half the guest ballooned: bitmap {report['huge']['on']}, "
              f"PFN {report['huge']['off']}")
    save(report)
    if report["cases"]:
        plot(report)
    print(f"all figures: {OUT}/bench.json; {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"bench: {error}")
