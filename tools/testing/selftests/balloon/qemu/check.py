#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of the balloon that need a whole guest, driven from the host.

Results are TAP, in the order in which tests end: several run at a time. Logs of each
test are in a folder of its own under <build>/lab/check, which a failing test names.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import fnmatch
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import balloon_tests  # noqa: F401 pylint: disable=unused-import
import bare_tests  # noqa: F401 pylint: disable=unused-import
import kexec_tests  # noqa: F401 pylint: disable=unused-import
import lab
import libvirt_tests  # noqa: F401 pylint: disable=unused-import
import matrix_tests
import migration_tests  # noqa: F401 pylint: disable=unused-import
import misc_tests  # noqa: F401 pylint: disable=unused-import
import module_tests  # noqa: F401 pylint: disable=unused-import
import operator_tests  # noqa: F401 pylint: disable=unused-import
import package_tests  # noqa: F401 pylint: disable=unused-import
import reclaim_tests  # noqa: F401 pylint: disable=unused-import
import request_tests  # noqa: F401 pylint: disable=unused-import
import soak_tests
from harness import TESTS, Failure, Run, Test
from lab import GIB, Skip

# Long for any test, since what it waits for has limits of its own.
TEST_SECONDS = 2700 + soak_tests.SECONDS
# What a test takes of the host's memory at most: the guests of a migration, of 1 GiB each,
# or one of 32 GiB that hardly touches its memory.
TEST_MEMORY = 4 * GIB
# Those that take longest begin first, or the others would have to wait for them.
LONG: Sequence[str] = ("*kunit_faults", "*kunit", "soak", "no_memory", "matrix", "debug", "compaction")
# These are run when they are named only: they install and boot whole systems.
NAMED: Sequence[str] = ("package",)
# These have guests without a kernel.
BARE: Sequence[str] = ("bare",)
# What these are judged by depends on how fast their guest is.
ALONE: Sequence[str] = ("compaction_waits",)
# These have memory as a user's host gives it, in huge pages. To clear these takes a third
# of what a guest that is up for seconds costs, so the others do without.
HUGE: Sequence[str] = ("content", "soak", "migration", "misc_migration", "crumbs",
                       "bare_kvm_little_in_use", "bare_tcg_little_in_use")


class Result(NamedTuple):
    """How a test ended, told from its process to this one."""

    word: str = "failed"    # or passed, or skipped
    reason: str = ""
    cpu: float = 0              # seconds of CPUs, its guests' too
    found: Dict[str, str] = {}                  # lab.FOUND
    working: Dict[Tuple[str, str], int] = {}    # matrix_tests.WORKING


class Running(NamedTuple):
    """A test that runs, in a process group of its own."""

    test: Test
    process: Any
    receiver: Any
    begin: float


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a test's name matches one of the patterns, or starts with it."""
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(name, p + "_*") for p in patterns)


def chosen(patterns: List[str]) -> List[Test]:
    """Tests that match one of the patterns, or all but those that have to be named."""
    return [one for one in TESTS
            if (matches(one.name, patterns) if patterns else not matches(one.name, NAMED))]


def overdue(_signal: int, _frame: Any) -> None:
    """The test has had its time."""
    raise Failure("not done in time")


def terminated(_signal: int, _frame: Any) -> None:
    """End, and all that was started with it."""
    sys.exit(1)


def logs(test: Test) -> Path:
    """The folder of a test's logs."""
    return Run(test.name).logs


def without_huge_pages() -> None:
    """The host backs by base pages what this process, and who is started by it, uses."""
    pr_set_thp_disable = 41
    ctypes.CDLL(None).prctl(pr_set_thp_disable, 1, 0, 0, 0)


def perform(test: Test, sender: Any) -> None:
    """Run a test in this process, which is its own."""
    os.setsid()
    # Ended by a signal, it ends at once: what it started is in its group.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, overdue)
    signal.alarm(TEST_SECONDS)
    random.seed()
    if test.name not in HUGE:
        without_huge_pages()
    run = Run(test.name)
    output = os.open(run.logs / "output", os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        test.function(run)
        result = Result("passed")
    except Skip as reason:
        result = Result("skipped", str(reason))
    except Exception as error:  # pylint: disable=broad-except
        signal.alarm(0)
        (run.logs / "traceback").write_text(traceback.format_exc(), "utf-8")
        # No more than a pipe takes
        result = Result("failed", str(error)[:30000])
    signal.alarm(0)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sender.send(result._replace(cpu=sum(one.ru_utime + one.ru_stime for one in used),
                                found=lab.FOUND, working=matrix_tests.WORKING))


def start(test: Test) -> Running:
    """Start a test."""
    shutil.rmtree(logs(test), ignore_errors=True)
    logs(test).mkdir(parents=True)
    (logs(test) / "output").touch()
    # By fork: it has what was found out before.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=perform, args=(test, sender))
    process.start()
    sender.close()
    return Running(test, process, receiver, time.monotonic())


def stop(one: Running) -> None:
    """End all processes of a test."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGKILL)
    # It may not have come to make a group.
    one.process.kill()
    one.process.join()


def finish(one: Running) -> Result:
    """The result of a test that has ended, or is to."""
    result = Result(reason="its process ended without a result")
    with contextlib.suppress(EOFError):
        if one.receiver.poll():
            result = one.receiver.recv()
    stop(one)
    lab.FOUND.update(result.found)
    matrix_tests.WORKING.update(result.working)
    return result


def shared(path: Optional[str]) -> bool:
    """Whether somebody has locked a file."""
    if not path:
        return False
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def available() -> int:
    """Bytes of memory that the host has for tests."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    return int(match[1]) << 10 if match else TEST_MEMORY


class Idle:
    """How many of the host's CPUs have nothing to do."""

    def __init__(self) -> None:
        self.since, self.before = time.monotonic(), self.idle()

    @staticmethod
    def idle() -> float:
        """CPU seconds without work since the host is up."""
        fields = Path("/proc/stat").read_text("ascii").split(maxsplit=6)
        return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")

    def cpus(self) -> float:
        """Those of the last 3 seconds or more; none before these are over."""
        now, idle = time.monotonic(), self.idle()
        if now - self.since < 3:
            return 0
        cpus = (idle - self.before) / (now - self.since)
        self.since, self.before = now, idle
        return cpus


class Pool:
    """Runs tests, several at a time."""

    def __init__(self, tests: Sequence[Test], jobs: int, beside: Optional[str]):
        last = len(LONG)
        rank = {one.name: next((n for n, p in enumerate(LONG) if matches(one.name, [p])), last)
                for one in tests}
        # Those that run alone last, when nothing else is left that could run beside them.
        self.waiting = sorted(tests, key=lambda one: (matches(one.name, ALONE), rank[one.name]))
        self.running: List[Running] = []
        self.jobs, self.beside, self.idle = jobs, beside, Idle()

    def may_start(self, test: Test) -> bool:
        """Whether there is room for a test."""
        others = [one.test.name for one in self.running]
        busy = shared(self.beside)
        if matches(test.name, ALONE):
            return not others and not busy
        if any(matches(name, ALONE) for name in others):
            return False
        if len(others) < max(self.jobs - busy, 1):
            return True
        # Some wait more than they work.
        return (len(others) < 2 * self.jobs and available() > TEST_MEMORY and
                self.idle.cpus() > 0.6)

    def results(self) -> Iterator[Tuple[Running, Result]]:
        """Run all; each test and its result as it ends."""
        try:
            while self.waiting or self.running:
                while self.waiting and self.may_start(self.waiting[0]):
                    self.running.append(start(self.waiting.pop(0)))
                ready = connection.wait([one.process.sentinel for one in self.running], 1)
                for one in list(self.running):
                    late = time.monotonic() - one.begin > TEST_SECONDS + 60
                    if late or one.process.sentinel in ready:
                        result = finish(one)
                        self.running.remove(one)
                        yield one, result
        finally:
            for one in self.running:
                stop(one)


def spare_jobs() -> int:
    """How many tests to run at a time: JOBS, if there are CPUs and memory for so many."""
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(cpus, int(os.environ.get("JOBS") or cpus), available() // TEST_MEMORY))


def report(one: Running, result: Result, number: int, seconds: float) -> None:
    """Print what a test said, then its result."""
    said = (logs(one.test) / "output").read_text("utf-8", "replace")
    if result.word == "failed":
        said += f"\n{result.reason}\nlogs: {logs(one.test)}"
    lines = [line if line.startswith("#") else f"# {line}" for line in said.splitlines() if line]
    word = "not ok" if result.word == "failed" else "ok"
    more = f" # {seconds:.1f} s, {result.cpu:.0f} s of CPU"
    if result.word == "skipped":
        more = f" # SKIP {result.reason}"
    print("\n".join([*lines, f"{word} {number} {one.test.name}{more}"]))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="names and descriptions only")
    parser.add_argument("--pfn", action="store_true",
                        help="the same tests with page-bitmap=off")
    parser.add_argument("--kernel", default="guest", metavar="NAME",
                        help="the same tests with another guest of scripts/build.sh: guest-debug, "
                        "guest-kcsan, guest-module, " + ", ".join(lab.ARCHS))
    parser.add_argument("--jobs", type=int, metavar="N", default=spare_jobs(),
                        help="tests at a time; by default JOBS, or as many as CPUs, if they "
                        "have the memory")
    parser.add_argument("--beside", metavar="FILE", help="one test less as long as it is locked")
    parser.add_argument("pattern", nargs="*", help="which tests, all by default")
    args = parser.parse_args()
    if not chosen(args.pattern):
        parser.error("no test has such a name")
    return args


def main() -> int:
    """Run the tests, print TAP."""
    args = arguments()
    tests = chosen(args.pattern)
    if args.list:
        for one in tests:
            print(f"{one.name:32} {one.text}")
        return 0

    Run.bitmap, Run.kernel = not args.pfn, args.kernel
    signal.signal(signal.SIGTERM, terminated)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore
    why = lab.no_kvm(args.kernel)
    print(f"TAP version 13\n1..{len(tests)}\n# accelerator: {lab.accelerator(args.kernel)}, "
          f"{args.jobs} at a time" + (f"; {why}" if why else ""))
    # What all others need
    if any(not matches(one.name, BARE) for one in tests):
        lab.program(args.kernel, "qemu")
        lab.initramfs(args.kernel)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    times: Dict[str, float] = {}
    used = 0.0
    for running, result in Pool(tests, args.jobs, args.beside).results():
        counts[result.word] += 1
        times[running.test.name] = time.monotonic() - running.begin
        used += result.cpu
        report(running, result, sum(counts.values()), times[running.test.name])
    for line in matrix_tests.table():
        print(f"# {line}")
    slowest = sorted(times, key=times.__getitem__, reverse=True)[:10]
    print("# slowest: " + ", ".join(f"{name} {times[name]:.0f} s" for name in slowest))
    print(f"# {used:.0f} s of CPU in all")
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['passed']} passed, {counts['failed']} failed{skipped}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
