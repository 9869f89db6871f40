# SPDX-License-Identifier: GPL-2.0
"""What the tests of the balloon's guests have in common, and their registry."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from lab import (ARCHS, BUILD, GIB, MIB, X86, Guest, LabError, Skip, arch, artifact, boot,
                 has_property, locked, overhead, program)

PAGE_POISON_BIT, BITMAP_BIT, MISC_BIT, VERSION_1_BIT, PACKED_BIT = 4, 22, 23, 32, 34
# Memory that changes as fast as a guest can change it must still converge.
FAST = {"max-bandwidth": 10 << 30, "downtime-limit": 2000}


class Failure(Exception):
    """What was seen is not what must be."""


def equal(what: str, got: Any, want: Any) -> None:
    """Fail unless both are the same."""
    if got != want:
        raise Failure(f"{what}: {got}, not {want}")


def near(what: str, got: float, want: float, slack: float) -> None:
    """Fail unless both differ by slack at most."""
    if abs(got - want) > slack:
        raise Failure(f"{what}: {got}, not {want} give or take {slack}")


def require(condition: bool, what: str) -> None:
    """Fail with a text unless the condition holds."""
    if not condition:
        raise Failure(what)


class Run:
    """One test's guests and their logs."""

    bitmap = True
    kernel = "guest"    # what the tests call by this name

    def __init__(self, name: str):
        self.logs = BUILD / "check" / name
        self.booted = 0

    def guest(self, *, bitmap: Optional[bool] = None, memory: int = GIB,
              balloon: Optional[Dict[str, Any]] = None, **more: Any) -> Guest:
        """A guest with 1 GiB whose balloon takes bitmaps, unless told otherwise."""
        self.booted += 1
        qemu = more.get("qemu", "qemu")
        kernel = more["kernel"] = called(more.get("kernel", "guest"))
        if not program(kernel, qemu).exists():
            raise Skip(f"{qemu} has no {arch(kernel).program}")
        if "machine" in more and arch(kernel).program != X86.program:
            raise Skip(f"{kernel} does not run on {more['machine']}")
        props = dict(balloon or {})
        bitmap = self.bitmap if bitmap is None else bitmap
        if bitmap or has_property(qemu, "page-bitmap", kernel):
            props.setdefault("page-bitmap", "on" if bitmap else "off")
        return boot(f"guest{self.booted}", memory=memory, balloon=props, logs=self.logs, **more)


def called(kernel: str) -> str:
    """What a test calls by this name; skip if that is of another architecture."""
    if kernel == "guest":
        return Run.kernel
    if Run.kernel in ARCHS:
        raise Skip(f"{kernel} is of another architecture")
    if kernel == "guest-debug" and Run.kernel not in ("guest", "guest-debug"):
        raise Skip(f"is about {kernel}, whatever the others run on")
    return kernel


Function = Callable[[Run], None]


class Test(NamedTuple):
    """A test and the line that describes it."""

    name: str
    function: Function
    text: str


TESTS: List[Test] = []


def test(function: Function) -> Function:
    """Register a test; its docstring is its description."""
    TESTS.append(Test(function.__name__, function, function.__doc__ or ""))
    return function


def variants(*values: Any) -> Callable[[Callable[[Run, Any], None]], None]:
    """Register a test once for each value of its second argument."""
    def register(function: Callable[[Run, Any], None]) -> None:
        for value in values:
            text = " with ".join(value) if isinstance(value, tuple) else str(value)
            TESTS.append(Test(
                f"{function.__name__}_" + re.sub(r"\W+", "_", text.replace(" with", "")),
                lambda run, value=value: function(run, value),  # type: ignore
                (function.__doc__ or "").replace("{}", text)))
    return register


def configured(kernel: str, option: str) -> bool:
    """Whether a guest's kernel was built with an option."""
    config = artifact(kernel) / ".config"
    return bool(re.search(rf"^CONFIG_{option}=[ym]", config.read_text("ascii"), re.M))


def needs(kernel: str, *options: str) -> None:
    """Skip unless the guest's kernel was built with all of the options."""
    kernel = called(kernel)
    for option in options:
        if not configured(kernel, option):
            raise Skip(f"{kernel} has no CONFIG_{option}")


def free_page_hints() -> bool:
    """Whether QEMU's thread for hints can interrupt the guest without the global lock."""
    return arch(Run.kernel).program == X86.program


def suspends(kernel: str) -> bool:
    """Whether a guest can suspend its devices alone."""
    return configured(kernel, "SUSPEND") and configured(kernel, "PM_SLEEP_DEBUG")


@contextlib.contextmanager
def huge_pages(kernel: str, size: int, guests: int = 1) -> Iterator[None]:
    """Have the host reserve huge pages for guests of this size, or skip."""
    need = guests * (size + overhead(kernel, size)) // (2 * MIB)
    pool = Path("/proc/sys/vm/nr_hugepages")

    def reserve(pages: int) -> bool:
        # Others may do the same meanwhile.
        with locked(pool):
            had = int(pool.read_text("ascii"))
            pool.write_text(str(had + pages), "ascii")
            enough = int(pool.read_text("ascii")) >= had + pages
            if not enough:
                pool.write_text(str(had), "ascii")
            return enough

    try:
        if not reserve(need):
            raise Skip(f"the host has no {need} free huge pages of 2 MiB")
    except OSError as error:
        raise Skip(f"huge pages cannot be reserved: {error.strerror}") from None
    try:
        yield
    finally:
        reserve(-need)


@contextlib.contextmanager
def disk(run: Run, size: int, file_system: str = "", rate: int = 0) -> Iterator[Dict[str, Any]]:
    """What a guest has to be told to have a disk, /dev/vda, of so many bytes a second at most."""
    needs("guest", "VIRTIO_BLK")
    run.logs.mkdir(parents=True, exist_ok=True)
    path = run.logs / "disk"
    with open(path, "wb") as file:
        file.truncate(size)
    try:
        if file_system:
            mkfs = shutil.which(f"mkfs.{file_system}", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
            if not mkfs:
                raise Skip(f"the host has no mkfs.{file_system}")
            subprocess.run([mkfs, "-q", "-F", path], check=True, stdout=sys.stderr)
        limit = f",throttling.bps-total={rate}" if rate else ""
        yield {"drives": [f"if=none,id=disk0,format=raw,cache=unsafe,file={path}{limit}"],
               "devices": [f"virtio-blk-{arch(run.kernel).bus},drive=disk0"]}
    finally:
        path.unlink()


@contextlib.contextmanager
def asleep(guest: Guest, delay: float) -> Iterator[None]:
    """The guest's devices are suspended for a moment, after a delay; go on when they are back."""
    guest.sh("echo 0 > /sys/module/suspend/parameters/pm_test_delay; "
             "echo devices > /sys/power/pm_test")
    before = guest.console.read_text(errors="replace").count("awake")
    job = guest.start(f"sh -c 'sleep {delay}; echo freeze > /sys/power/state; "
                      "rc=$?; echo \"<4>awake\" > /dev/kmsg; exit $rc'")
    yield
    # What reaches a virtio console while it sleeps is lost, so the other one has to say it.
    deadline = guest.deadline(60)
    while guest.console.read_text(errors="replace").count("awake") == before:
        require(time.monotonic() < deadline, "the guest does not wake up")
        time.sleep(0.05)
    job.finish()


def pending_interrupts() -> bool:
    """Whether interrupts that are pending when a guest migrates migrate with it."""
    return arch(Run.kernel).bus != "ccw"


def needs_pending_interrupts() -> None:
    """Skip where QEMU loses interrupts that are pending when a guest migrates."""
    if not pending_interrupts():
        raise Skip("QEMU does not migrate pending interrupts of s390x under TCG")


def features(guest: Guest) -> str:
    """Feature bits that driver and device agreed on, bit 0 first."""
    return guest.sh("cat /sys/bus/virtio/drivers/virtio_balloon/virtio*/features").strip()


def refuses(source: Guest, target: Guest) -> None:
    """A target without a feature of the guest refuses it, and the guest goes on."""
    try:
        source.migrate_to(target, parameters=FAST, timeout=30)
        raise Failure("the migration went through")
    except LabError:
        pass
    finally:
        target.close(status=1)
    log = target.qemu_log.read_text("utf-8")
    require("eatures" in log and "unsupported" in log, f"target's reason: {log!r}")
    if source.status() != "running":
        source.qmp("cont")
