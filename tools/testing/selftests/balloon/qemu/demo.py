#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Inflate and deflate a guest both ways, then migrate one in all ways; compare."""

from __future__ import annotations

import sys
import time
from typing import Any, Callable, Dict, List, Tuple

import migrate
from lab import GIB, MIB, WAYS, Guest, LabError, Move, accelerator, artifact

SIZE, LOW = 8 * GIB, 1 * GIB


def measure(way: str) -> Tuple[Move, Move]:
    """One guest's way down and up."""
    with Guest(f"demo-{way.replace(' ', '-')}", memory=SIZE, prealloc=True,
               balloon=WAYS[way]) as guest:
        total = guest.meminfo()["MemTotal"]
        down = guest.balloon(LOW, timed=True)
        up = guest.balloon(SIZE, timed=True)
        records = down.stats["records"]
        if (records > 0) != (way == "bitmaps"):
            raise LabError(f"{WAYS[way]}, but {records} records came")
        if guest.meminfo()["MemTotal"] != total:
            raise LabError("the guest did not get its memory back")
        return down, up


def crumbs(way: str) -> Move:
    """The way down of a guest that has freed what it used but for one page in 32."""
    with Guest(f"demo-crumbs-{way.replace(' ', '-')}", memory=SIZE // 2,
               balloon=WAYS[way]) as guest:
        guest.start("balloon_mem fragment 1500M 32").wait_ready(120)
        return guest.balloon(SIZE // 2 - GIB, timed=True)


def side_by_side(results: Dict[str, Any], rows: List[Tuple[str, str, Callable[[Any], float]]]
                 ) -> None:
    """Print figures of all ways, and what today's has more of than page bitmaps."""
    print(f"{'':34}" + "".join(f"{way:>12}" for way in results) + f"{'ratio':>10}")
    for title, form, of in rows:
        values = [of(result) for result in results.values()]
        ratio = f"{values[-1] / values[0]:.1f}" if values[0] and form else ""
        print(f"{title:34}" + "".join(f"{value:>12{form or '.0f'}}" for value in values)
              + f"{ratio:>10}")


def balloons() -> None:
    """Print a balloon's moves by all ways side by side."""
    print(f"By page bitmaps, by page numbers, and by page numbers as today; accelerator: "
          f"{accelerator()}.\nGuest of {SIZE // GIB} GiB, all backed by the host, inflated to "
          f"{LOW // GIB} GiB and deflated again:\n")

    def both(counter: str) -> Callable[[Tuple[Move, Move]], float]:
        return lambda moves: sum(move.stats[counter] for move in moves)

    side_by_side({way: measure(way) for way in WAYS}, [
        ("inflate, s", ".2f", lambda moves: moves[0].seconds),
        ("deflate, s", ".2f", lambda moves: moves[1].seconds),
        ("QEMU's CPU time, s", ".2f", lambda moves: sum(move.cpu["total"] for move in moves)),
        ("kicks", ".0f", both("kicks")),
        ("bytes on the queues", ".0f", both("bytes")),
        ("discards", ".0f", both("discards")),
        ("host got back, MiB", "", lambda moves: -moves[0].rss / MIB),
        ("guest's large free blocks, MiB", "", lambda moves: moves[0].large / MIB),
    ])
    print(f"\nGuest of {SIZE // 2 // GIB} GiB that used 1500 MiB and freed all but one page in "
          "32, 1 GiB inflated:\n")
    side_by_side({way: crumbs(way) for way in WAYS}, [
        ("inflate, s", ".2f", lambda down: down.seconds),
        ("discards", ".0f", lambda down: down.stats["discards"]),
        ("system calls for these", ".0f", lambda down: down.stats["discard-calls"]),
        ("host got back, MiB", "", lambda down: -down.rss / MIB),
        ("guest's large free blocks, MiB", "", lambda down: down.large / MIB),
    ])


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
