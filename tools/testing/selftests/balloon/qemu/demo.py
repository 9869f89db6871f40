#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Inflate a guest from 8 to 1 GiB and back, by page bitmaps and by PFN arrays."""

from __future__ import annotations

import sys
import time
from typing import Callable, List, Tuple

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


def main() -> int:
    """Print both modes side by side."""
    for name in ("guest", "qemu"):
        artifact(name)
    begin = time.monotonic()
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
    print(f"\n{time.monotonic() - begin:.0f} s in all. Ratio: PFN arrays to page bitmaps.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"demo: {error}")
