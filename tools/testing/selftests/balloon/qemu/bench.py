#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Measure inflating and deflating, live migration, and the guest's walk.

Balloon: for each case two guests, with page bitmaps and with PFN arrays, are up at
the same time and take turns, so that both see the same machine. Migration: a guest
for each of plain, FREE_PAGE_HINT and misc queue goes from host to host. Tables on
stdout give medians and ratios; they are in <build>/bench/figures as well, every single
figure is in bench.json, and the pictures are beside it. With --keep, tables and pictures
take the place of those in the repository's figures/.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import migrate
from lab import BUILD, GIB, MIB, PAGE, ROOT, Guest, LabError, Move, accelerator, artifact

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
            Guest("bench-stock", kernel="guest-stock", qemu="qemu-stock",
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


def migrations(loads: List[migrate.Load], runs: int, memory: int = migrate.SIZE,
               prealloc: bool = True) -> Dict[str, Any]:
    """Tables of migrations, and every figure."""
    out: Dict[str, Any] = {}
    for load in loads:
        results = {mode: migrate.chain(load, mode, runs, memory, prealloc)
                   for mode in migrate.MODES}
        migrate.table(load.title, results)
        out[load.name] = {"title": load.title, "medians": migrate.medians(results),
                          "raw": {mode: [one._asdict() for one in moves]
                                  for mode, moves in results.items()}}
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


def plot(name: str, title: str, columns: List[str], rows: Dict[str, List[float]]) -> None:
    """Draw seconds as bars with gnuplot, if it is there."""
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
        set logscale y
        set ylabel "seconds (log)"
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
        plot("bench", f"Balloon, {how}", ["PFN arrays", "page bitmaps"],
             {f"{case['title']}\\n{way}": [case[way]["off"], case[way]["on"]]
              for case in report["cases"].values() for way in ("inflate", "deflate")})
    for name in ("migration", "grid"):
        if name in report:
            plot(name, f"Live migration, {how}", list(migrate.MODES),
                 {one["title"].replace(":", "\\n").replace(", ", "\\n"):
                  [one["medians"][mode]["time, s"] for mode in migrate.MODES]
                  for one in report[name].values()})


def main() -> int:
    """Run the cases, print and write what came out."""
    parts: Dict[str, Callable[[], Any]] = {
        "walk": walks,
        "slowdown": slowdown,
        "drain": drain,
        "migration": lambda: migrations(migrate.LOADS, 5),
        "backing": lambda: migrations(migrate.LOADS[:4], 1, 4 * GIB, prealloc=False),
        "grid": lambda: migrations(migrate.GRID, 1, 4 * GIB),
    }
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each case, default 7")
    parser.add_argument("--quick", action="store_true", help="3 runs, without the large guest")
    parser.add_argument("--only", metavar="CASE", action="append",
                        choices=[c.name for c in CASES] + ["stock", "huge", *parts] + [m.name for m in migrate.LOADS],
                        help="one of %(choices)s; may be repeated")
    parser.add_argument("--keep", action="store_true",
                        help="put tables and pictures into the repository")
    args = parser.parse_args()
    runs = 3 if args.quick else args.runs

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    OUT.mkdir(parents=True, exist_ok=True)
    unpatched = wanted("stock")
    for name in ("guest", "qemu") + (("guest-stock", "qemu-stock") if unpatched else ()):
        artifact(name)
    begin = time.monotonic()
    report: Dict[str, Any] = {"accelerator": accelerator(), "runs": runs, "cases": {}, "raw": {}}
    for old in OUT.glob("*.svg"):
        old.unlink()
    sys.stdout = Tee(OUT / "figures")  # type: ignore
    print(machine())
    print(f"Medians of {runs} runs, of migrations 5; accelerator: {accelerator()}\n")
    print(f"{'guest':28}{'':9}{'bitmap s':>9}{'PFN s':>10}{'ratio':>9}")

    def raw(results: Results) -> Dict[str, Any]:
        return {mode: {way: [m._asdict() for m in moves] for way, moves in ways.items()}
                for mode, ways in results.items()}

    for case in CASES:
        if not wanted(case.name) or (args.quick and case.name == "large"):
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
    if wanted("huge"):
        report["huge"] = huge_pages()
        print(f"huge pages of 3 GiB, half the guest ballooned: bitmap {report['huge']['on']}, "
              f"PFN {report['huge']['off']}")
    for name, part in parts.items():
        if wanted(name):
            report[name] = part()
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
