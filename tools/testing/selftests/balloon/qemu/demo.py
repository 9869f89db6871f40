#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Inflate and deflate a guest both ways, then migrate one in all ways; compare."""

from __future__ import annotations

import sys
import time
from typing import Callable, List, Tuple

import migrate
from lab import GIB, MIB, Guest, LabError, Move, accelerator, artifact

SIZE, LOW = 8 * GIB, 1 * GIB


def measure(mode: str) -> Tuple[Move, Move]:
    """One guest's way down and up."""
    with Guest(f"demo-{mode}", memory=SIZE, prealloc=True,
               balloon={"page-bitmap": mode}) as guest:
        total = guest.meminfo()["MemTotal"]
        down = guest.balloon(LOW, timed=True)
        up = guest.balloon(SIZE, timed=True)
        records = down.stats["records"]
        if (records > 0) != (mode == "on"):
            raise LabError(f"page-bitmap={mode}, but {records} records came")
        if guest.meminfo()["MemTotal"] != total:
            raise LabError("the guest did not get its memory back")
        return down, up


def balloons() -> None:
    """Print a balloon's moves by page bitmaps and by PFN arrays side by side."""
    print(f"Guest of {SIZE // GIB} GiB, all backed by the host, inflated to "
          f"{LOW // GIB} GiB and deflated again; accelerator: {accelerator()}\n")
    results = [measure("on"), measure("off")]

    def both(counter: str) -> Callable[[Move, Move], float]:
        return lambda down, up: down.stats[counter] + up.stats[counter]

    rows: List[Tuple[str, str, Callable[[Move, Move], float]]] = [
        ("inflate, s", ".2f", lambda down, up: down.seconds),
        ("deflate, s", ".2f", lambda down, up: up.seconds),
        ("QEMU's CPU time, s", ".2f",
         lambda down, up: down.cpu["total"] + up.cpu["total"]),
        ("kicks", ".0f", both("kicks")),
        ("bytes on the queues", ".0f", both("bytes")),
        ("discards", ".0f", both("discards")),
        ("host's RSS fell by, MiB", ".0f", lambda down, up: -down.rss / MIB),
    ]
    print(f"{'':24}{'page bitmaps':>14}{'PFN arrays':>14}{'ratio':>10}")
    for title, form, value in rows:
        new, old = (value(*result) for result in results)
        ratio = f"{old / new:.1f}" if new else "-"
        print(f"{title:24}{new:>14{form}}{old:>14{form}}{ratio:>10}")


def migrations() -> None:
    """Print live migrations: plain, with free page hints, with the misc queue."""
    print(f"\nGuest of {SIZE // 2 // GIB} GiB, all backed on both sides, migrated over a link of "
          "10 Gbit/s:\nplain, with FREE_PAGE_HINT (hint), with unused pages left out (misc)\n")
    for load in migrate.LOADS:
        if load.name in ("migrate-fragmented", "migrate-idle"):
            migrate.table(load.title, {mode: migrate.chain(load, mode, 1, memory=SIZE // 2)
                                       for mode in migrate.MODES},
                          ["time, s", "sent, MiB", "downtime, ms"])


def main() -> int:
    """Print both halves."""
    for name in ("guest", "qemu"):
        artifact(name)
    begin = time.monotonic()
    balloons()
    migrations()
    print(f"\n{time.monotonic() - begin:.0f} s in all.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"demo: {error}")
