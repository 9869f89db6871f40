# SPDX-License-Identifier: GPL-2.0
"""Everything that can happen to a guest and its balloon, at random."""

from __future__ import annotations

import os
import random
import time
from typing import Any, Callable, Dict, List

from harness import (FAST, Run, asleep, equal, free_page_hints, pending_interrupts, require,
                     suspends, test)
from lab import GIB, MIB, Guest, Job

SECONDS = int(os.environ.get("BALLOON_LAB_SOAK", "120"))
SEED = int(os.environ.get("BALLOON_LAB_SEED", "1"))


class Soak:
    """A guest that is not left in peace, while a job in it checks its memory."""

    def __init__(self, run: Run, dice: random.Random):
        self.run, self.dice = run, dice
        self.oom = dice.random() < 0.5
        balloon: Dict[str, Any] = {
            "misc-vq": "on", "packed": dice.choice(("on", "off")),
            "x-queue-size": dice.choice((2, 16, 128)),
            "deflate-on-oom": "on" if self.oom else "off",
            "free-page-reporting": "off"}
        if balloon["x-queue-size"] > 2 and free_page_hints():
            balloon["free-page-hint"] = dice.choice(("on", "off"))
        self.options: Dict[str, Any] = {"balloon": balloon, "append": "movablecore=384M"}
        print("# " + " ".join(f"{key}={value}" for key, value in balloon.items()))
        self.guest: Guest = run.guest(**self.options)
        self.total = self.guest.meminfo()["MemTotal"]
        self.job: Job = self.guest.start("balloon_mem churn 128M").wait_ready()
        self.counts: Dict[str, int] = {}

    def size(self) -> int:
        """A size that leaves the guest enough to live."""
        return self.dice.randrange(448, 1024) * MIB

    def move(self) -> None:
        """Inflate or deflate, and wait."""
        self.guest.balloon(self.size())

    def push(self) -> None:
        """Inflate or deflate, and do not wait."""
        self.guest.set_target(self.size())

    def ask(self) -> None:
        """Ask for unused pages."""
        self.guest.ask(wait=self.dice.random() < 0.7)

    def compact(self) -> None:
        """Move pages about."""
        self.guest.sh("echo 1 > /proc/sys/vm/compact_memory", 60)

    def reload(self) -> None:
        """Take the driver away."""
        self.guest.sh("rmmod virtio_balloon; insmod /lib/modules/virtio_balloon.ko", 60)

    def rebind(self) -> None:
        """Take the device from the driver."""
        self.guest.sh("""cd /sys/bus/virtio/drivers/virtio_balloon
                         dev=$(basename virtio*); echo $dev > unbind; echo $dev > bind""", 60)

    def suspend(self) -> None:
        """Suspend the devices for a moment."""
        with asleep(self.guest, 0.1):
            pass

    def press(self) -> None:
        """Want more memory than there is, if the balloon gives way."""
        if self.oom:
            self.guest.balloon(448 * MIB)
            self.guest.sh("balloon_mem touch 450M", 90)

    def offline(self) -> None:
        """Take memory off line and put it back."""
        self.guest.sh("""cd /sys/devices/system/memory
            for m in $(ls -d memory* | sort -R | head -n 2); do
                echo offline > $m/state 2> /dev/null && echo online > $m/state
            done; true""", 60)

    def migrate(self) -> None:
        """Go to another host."""
        target = self.run.guest(incoming=True, **self.options)
        try:
            self.guest.migrate_to(target, parameters=FAST, rounds=self.dice.randrange(1, 4))
        except BaseException:
            target.close()
            raise
        self.guest.close()
        self.job.guest = self.guest = target

    def step(self) -> None:
        """One of these, and nothing may be wrong after it."""
        ways: List[Callable[[], None]] = [
            self.move, self.push, self.push, self.ask, self.ask, self.compact, self.reload,
            self.rebind, self.suspend, self.press, self.offline, self.migrate]
        if not suspends(self.run.kernel):
            ways.remove(self.suspend)
        if not pending_interrupts():
            ways.remove(self.migrate)
        way = self.dice.choice(ways)
        self.counts[way.__name__] = self.counts.get(way.__name__, 0) + 1
        way()
        for which in ("page-bitmap", "misc-vq"):
            equal(f"bad records after {way.__name__}", self.guest.stats(which)["bad-records"], 0)
        require(self.job.running(), f"the guest's memory is wrong after {way.__name__}")

    def end(self) -> None:
        """All memory is back, and right."""
        # Reloaded, a driver has given all back, and may yet be on its way to the old size.
        self.guest.balloon(GIB - MIB)
        self.guest.balloon(GIB)
        equal("MemTotal", self.guest.meminfo()["MemTotal"], self.total)
        self.job.finish(timeout=120)
        print("# " + ", ".join(f"{n} {name}" for name, n in sorted(self.counts.items())))


@test
def soak(run: Run) -> None:
    """everything at random, for a while: nothing is lost and nothing complains"""
    print(f"# BALLOON_LAB_SEED={SEED}")
    dice = random.Random(SEED)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        one = Soak(run, dice)
        try:
            stop = min(end, time.monotonic() + 300)
            while time.monotonic() < stop:
                one.step()
            one.end()
        finally:
            one.guest.close()
