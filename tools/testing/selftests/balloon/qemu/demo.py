#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Debian's kernel with our module, and with its own: the balloon and live migration, side by side."""

from __future__ import annotations

import sys
import time
from concurrent import futures
from typing import Any, Callable, Dict, List, Tuple

import migrate
from lab import GIB, MIB, PAIRS, WAYS, LabError, Move, accelerator, artifact, boot, thp

SIZE, USED, TAKEN = 2 * GIB, 700 * MIB, 512 * MIB


def measure(name: str) -> Tuple[Move, Move]:
    """The way down and up of a guest that has freed what it used but for one page in 32."""
    pair = PAIRS[name]
    with boot(f"demo-{name.replace(' ', '-')}", pair.kernel, memory=SIZE,
              balloon=pair.balloon) as guest:
        total = guest.meminfo()["MemTotal"]
        guest.start(f"balloon_mem fragment {USED // MIB}M 32").wait_ready(120)
        down = guest.balloon(SIZE - TAKEN, timed=True)
        up = guest.balloon(SIZE, timed=True)
        records = down.stats["records"]
        if (records > 0) != (pair.balloon == WAYS["bitmaps"]):
            raise LabError(f"{pair.balloon}, but {records} records came")
        if guest.meminfo()["MemTotal"] != total:
            raise LabError("the guest did not get its memory back")
        return down, up


def side_by_side(results: Dict[str, Any], rows: List[Tuple[str, str, Callable[[Any], float]]]
                 ) -> None:
    """Print figures of all pairs, and what today's has more of than ours."""
    print(f"{'':34}" + "".join(f"{name:>12}" for name in results) + f"{'ratio':>10}")
    for title, form, of in rows:
        values = [of(result) for result in results.values()]
        ratio = f"{values[-1] / values[0]:10.1f}" if values[0] and form else ""
        print(f"{title:34}" + "".join(f"{value:>12{form or '.0f'}}" for value in values) + ratio)


def balloons() -> None:
    """Print a balloon's moves by all pairs side by side."""
    print(f"Debian's kernel with our module, with its own, and with that as today: each page by "
          f"itself.\nAccelerator: {accelerator()}. Guest of {SIZE // GIB} GiB that used "
          f"{USED // MIB} MiB and freed all but one page in 32;\n{TAKEN // MIB} MiB inflated, and "
          "deflated again:\n")
    side_by_side({name: measure(name) for name in PAIRS}, [
        ("inflate, s", ".2f", lambda moves: moves[0].seconds),
        ("deflate, s", ".2f", lambda moves: moves[1].seconds),
        ("QEMU's global lock held, ms", ".0f",
         lambda moves: sum(move.stats["busy-ns"] for move in moves) / 1e6),
        ("kicks", ".0f", lambda moves: sum(move.stats["kicks"] for move in moves)),
        ("discards", ".0f", lambda moves: moves[0].stats["discards"]),
        ("system calls for these", ".0f", lambda moves: moves[0].stats["discard-calls"]),
        ("host got back, MiB", "", lambda moves: -moves[0].rss / MIB),
        ("guest's large free blocks, MiB", "", lambda moves: moves[0].large / MIB),
    ])


def migrations() -> None:
    """Print live migrations: plain, with free page hints, with the misc queue."""
    size = SIZE // 2
    print(f"\nGuest of {size // GIB} GiB with our module, migrated over a link of 10 Gbit/s to a host "
          f"that has huge pages\n({thp()}), nothing preallocated: plain, with FREE_PAGE_HINT (hint), "
          "with unused pages left out (misc)\n")
    loads = [migrate.IDLE, next(load for load in migrate.LOADS if load.name == "migrate-fragmented")]
    moves = {mode: migrate.chain(loads, mode, memory=size, prealloc=False, kernel="guest-module")
             for mode in migrate.MODES}
    for n, load in enumerate(loads):
        migrate.table(load.title, {mode: [some[n]] for mode, some in moves.items()},
                      ["time, s", "sent, MiB", "target's RSS, MiB", "downtime, ms"])


def main() -> int:
    """Print both halves."""
    # Each leaves a CPU idle while it unpacks or configures.
    with futures.ThreadPoolExecutor() as pool:
        list(pool.map(artifact, ("qemu", "guest-module", "guest-debian")))
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
