#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Run all tests with a kernel and a QEMU that count, say which lines never ran.

What is counted are the driver, mm's helpers, QEMU's device and its new files; of files
that were there before the lines that the patches add are judged. Lines that did not run
are in <build>/coverage/uncovered.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BUILD") or ROOT / "build").resolve()
OUT = BUILD / "coverage"
LAB = ROOT / "tools/testing/selftests/balloon/qemu"
sys.path.insert(0, str(LAB))
from lab import artifact  # noqa: E402 pylint: disable=import-error, wrong-import-position
from series import Series  # noqa: E402 pylint: disable=wrong-import-position

KERNEL = ["mm/page_bitmap", "mm/balloon_pages", "mm/spare_pages", "mm/unused_pages",
          "drivers/virtio/virtio_balloon_core", "drivers/virtio/virtio_balloon_bitmap",
          "drivers/virtio/virtio_balloon_jobs", "drivers/virtio/virtio_balloon_misc",
          "drivers/virtio/virtio_balloon_take"]
QEMU = ["hw_virtio_virtio-balloon.c", "hw_virtio_virtio-balloon-run.c",
        "hw_virtio_virtio-balloon-slice.c", "hw_virtio_virtio-balloon-discard.c",
        "hw_virtio_virtio-balloon-records.c", "hw_virtio_virtio-balloon-inflate.c",
        "hw_virtio_virtio-balloon-misc.c", "hw_virtio_virtio-balloon-request.c",
        "migration_sparse-ram.c", "migration_unused-pages.c", "migration_ram-holes.c",
        "hw_misc_late-dirty-log.c"]
# Files that were there before, by the names that they have now
OLD = {"virtio_balloon_core": ("linux", "drivers/virtio/virtio_balloon_core.c"),
       "virtio-balloon": ("qemu", "hw/virtio/virtio-balloon.c")}
AT_LEAST = 90


def merged(archives: List[Path], objects: Path) -> Path:
    """Add up what the guests counted; the notes of the compiler beside it."""
    total = OUT / "kernel"
    for number, archive in enumerate(archives):
        one, both = OUT / "one", OUT / "both"
        one.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", one], check=True)
        if not number:
            one.rename(total)
            continue
        subprocess.run(["gcov-tool", "merge", total, one, "-o", both], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(one)
        shutil.rmtree(total)
        both.rename(total)
    flat = OUT / "flat"
    flat.mkdir()
    for name in KERNEL:
        data = list(total.rglob(f"{Path(name).name}.gcda"))
        if data:
            shutil.copy(data[0], flat)
            shutil.copy(objects / f"{name}.gcno", flat)
    return flat


def report(data: Path) -> float:
    """Print what ran of a file; its lines that did not go to a list. The part to judge it by."""
    out = subprocess.run(["gcov", "--json-format", "--stdout", "--branch-probabilities", data],
                         cwd=data.parent, check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL).stdout
    stem = data.stem.rsplit(".", 1)[0].rsplit("_", 1)[-1] if ".c" in data.stem else data.stem
    lines: Dict[int, int] = defaultdict(int)
    branches: Dict[int, List[int]] = {}
    source = ""
    for part in json.loads(out)["files"]:
        if Path(part["file"]).stem != stem:
            continue
        source = part["file"]
        for line in part["lines"]:
            number = line["line_number"]
            lines[number] += line["count"]
            counts = [b["count"] for b in line["branches"]]
            old = branches.get(number, [0] * len(counts))
            branches[number] = [a + b for a, b in zip(old, counts)] if len(old) == len(counts) else counts
    ran = sum(1 for count in lines.values() if count)
    part = ran / max(len(lines), 1)
    taken = sum(1 for counts in branches.values() for count in counts if count)
    ways = sum(len(counts) for counts in branches.values())
    print(f"{stem:28}{ran:>6} of {len(lines):>4} lines {100 * part:>6.1f} %"
          f"{taken:>6} of {ways:>4} branches {100 * taken / max(ways, 1):>6.1f} %")
    if stem in OLD:
        kind, path_now = OLD[stem]
        ours = [lines[number] for number in lines.keys() & Series(kind, BUILD).added(path_now)]
        ran = sum(1 for count in ours if count)
        part = ran / max(len(ours), 1)
        print(f"{'  of what is added':28}{ran:>6} of {len(ours):>4} lines {100 * part:>6.1f} %")
    path = Path(source) if Path(source).is_absolute() else BUILD / "linux" / source
    text = path.read_text("utf-8").splitlines() if path.exists() else []
    with (OUT / "uncovered").open("a", encoding="utf-8") as out_file:
        for number in sorted(n for n, count in lines.items() if not count):
            code = text[number - 1] if number <= len(text) else ""
            out_file.write(f"{stem}:{number}:{code}\n")
    return 100 * part


def main() -> int:
    """Build, run, add up, print."""
    guest, qemu = str(artifact("guest-gcov")), str(artifact("qemu-gcov"))
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "guests").mkdir(parents=True)
    objects = BUILD / "qemu-gcov-obj"
    for old in objects.rglob("*.gcda"):
        old.unlink()
    env = {**os.environ, "BALLOON_LAB_GUEST": guest, "BALLOON_LAB_GUEST_DEBUG": guest,
           "BALLOON_LAB_QEMU": qemu, "BALLOON_LAB_QTESTS": qemu, "BALLOON_LAB_GCOV": str(OUT / "guests")}
    failed = 0
    with (OUT / "tests.log").open("w", encoding="utf-8") as log:
        for command in ([str(ROOT / "scripts/qtest.sh")],
                        ["python3", str(LAB / "check.py"), *sys.argv[1:]]):
            print(f"running {command[-1] if len(command) < 3 else 'the tests'}, "
                  f"log: {OUT}/tests.log", flush=True)
            failed |= subprocess.run(command, env=env, stdout=log, stderr=log, check=False).returncode
    flat = merged(sorted((OUT / "guests").glob("*.tar")), BUILD / "linux-gcov-obj")
    worst = 100.0
    found = [flat / f"{Path(name).name}.gcda" for name in KERNEL]
    for name in QEMU:
        found += list(objects.rglob(f"*{name}.gcda")) or [objects / f"{name}.gcda"]
    for data in found:
        if not data.exists():
            print(f"{data.name}: nothing of it ran")
            worst = 0
            continue
        worst = min(worst, report(data))
    print(f"{'not ok' if failed else 'ok'} 1 - the tests, log: {OUT}/tests.log")
    print(f"{'ok' if worst >= AT_LEAST else 'not ok'} 2 - at least {AT_LEAST} % of the lines that "
          f"are ours run, in each file; those that do not: {OUT}/uncovered")
    return bool(failed) or worst < AT_LEAST


if __name__ == "__main__":
    sys.exit(main())
