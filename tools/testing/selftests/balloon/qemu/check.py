#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of the balloon that need a whole guest, driven from the host.

Results are TAP. Logs of each test are in a folder of its own under
<build>/lab/check, which a failing test names.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import signal
import sys
import time
import traceback
from typing import Any, Iterator, List

import balloon_tests  # noqa: F401 pylint: disable=unused-import
import lab
import matrix_tests
import misc_tests  # noqa: F401 pylint: disable=unused-import
import soak_tests
from harness import TESTS, Failure, Run, Test
from lab import Skip

# Long for any test, since what it waits for has limits of its own.
TEST_SECONDS = 2700 + soak_tests.SECONDS


def chosen(patterns: List[str]) -> Iterator[Test]:
    """Tests whose names match one of the patterns, or start with it."""
    for one in TESTS:
        if not patterns or any(fnmatch.fnmatch(one.name, p) or
                               fnmatch.fnmatch(one.name, p + "_*") for p in patterns):
            yield one


def overdue(_signal: int, _frame: Any) -> None:
    """The test has had its time."""
    raise Failure("not done in time")


def main() -> int:
    """Run the tests, print TAP."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="names and descriptions only")
    parser.add_argument("--pfn", action="store_true",
                        help="the same tests with page-bitmap=off")
    parser.add_argument("--kernel", default="guest", metavar="NAME",
                        help="the same tests with another guest of scripts/build.sh: guest-debug, "
                        "guest-kcsan, " + ", ".join(lab.ARCHS))
    parser.add_argument("pattern", nargs="*", help="which tests, all by default")
    args = parser.parse_args()
    tests = list(chosen(args.pattern))
    if args.list:
        for one in tests:
            print(f"{one.name:32} {one.text}")
        return 0
    if not tests:
        parser.error("no test has such a name")

    Run.bitmap, Run.kernel = not args.pfn, args.kernel
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    signal.signal(signal.SIGALRM, overdue)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore
    print(f"TAP version 13\n1..{len(tests)}\n# accelerator: {lab.accelerator(args.kernel)}")
    for number, one in enumerate(tests, 1):
        run = Run(one.name)
        shutil.rmtree(run.logs, ignore_errors=True)
        run.logs.mkdir(parents=True)
        begin, directive = time.monotonic(), ""
        result, word = "passed", "ok"
        signal.alarm(TEST_SECONDS)
        try:
            one.function(run)
        except Skip as reason:
            result, directive = "skipped", f" # SKIP {reason}"
        except Exception as error:  # pylint: disable=broad-except
            signal.alarm(0)
            result, word = "failed", "not ok"
            (run.logs / "traceback").write_text(traceback.format_exc(), "utf-8")
            for line in f"{error}\nlogs: {run.logs}".splitlines():
                print(f"# {line}")
        signal.alarm(0)
        counts[result] += 1
        print(f"{word} {number} {one.name}{directive}")
        print(f"# {time.monotonic() - begin:.1f} s")
    for line in matrix_tests.table():
        print(f"# {line}")
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['passed']} passed, {counts['failed']} failed{skipped}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
