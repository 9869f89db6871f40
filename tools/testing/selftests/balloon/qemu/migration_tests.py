# SPDX-License-Identifier: GPL-2.0
"""Whatever else QEMU's migration can do meets pages that are left out.

What is saved is loaded, and what the guest checks in its memory must be right. The table
in balloon.rst, "Ways to migrate", has a line for each.
"""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Tuple

from harness import FAST, Run, equal, require, test, variants
from lab import GIB, MIB, Guest, LabError, Skip, arch, rose
from misc_tests import MISC, chain, left_out, works


class Way(NamedTuple):
    """Capabilities and parameters, the same at both ends."""

    capabilities: Tuple[str, ...] = ()
    parameters: Mapping[str, Any] = {}


MULTIFD = {"multifd-channels": 2}
LIVE = {
    "xbzrle": Way(("xbzrle",)),
    "no zero pages": Way((), {"zero-page-detection": "none"}),
    "zero pages found before multifd": Way(("multifd",),
                                           {"zero-page-detection": "legacy", **MULTIFD}),
    "multifd zlib": Way(("multifd",), {"multifd-compression": "zlib", **MULTIFD}),
    "multifd zstd": Way(("multifd",), {"multifd-compression": "zstd", **MULTIFD}),
    "return path": Way(("return-path", "switchover-ack")),
}
FILES = {
    "stream": Way(),
    "mapped ram": Way(("mapped-ram",)),
    "mapped ram, multifd": Way(("mapped-ram", "multifd"), MULTIFD),
    "mapped ram, multifd, direct io": Way(("mapped-ram", "multifd"),
                                          {"direct-io": True, **MULTIFD}),
}


@variants(*LIVE)
def migration_way(run: Run, name: str) -> None:
    """with {}: a guest that rewrites and checks memory, 3 migrations, pages left out in each"""
    way = LIVE[name]
    # To compress what is written, again in each round, takes longer than all else.
    size = 32 if "multifd-compression" in way.parameters else 128
    left_out(chain(run, 3, f"balloon_mem churn {size}M", rounds=3,
                   capabilities=way.capabilities, parameters={**FAST, **way.parameters}))


@test
def migration_throttled(run: Run) -> None:
    """auto-converge, which slows the guest and synchronises the dirty log within rounds"""
    begin = time.monotonic()
    slow = {"max-bandwidth": 24 * MIB, "downtime-limit": 300, "throttle-trigger-threshold": 1}

    def speed_up(guest: Guest) -> None:
        # QEMU looks every 5 s whether there was a synchronisation.
        if time.monotonic() - begin > 12 and guest.status() == "running":
            guest.qmp("migrate-set-parameters", **FAST)

    moved, = chain(run, 1, "balloon_mem churn 256M", during=speed_up,
                   capabilities=["auto-converge"], parameters=slow)
    # It lasts long enough for an answer that is late.
    require(moved.misc["unsent-pages"] > 10000, f"{moved.misc}")


def prepare(guest: Guest, way: Way) -> None:
    """The same at both ends."""
    guest.qmp("migrate-set-capabilities",
              capabilities=[{"capability": c, "state": True} for c in way.capabilities])
    guest.qmp("migrate-set-parameters", **{"max-bandwidth": 10 << 30, **way.parameters})


def migrated(guest: Guest) -> None:
    """Wait for a migration's end."""
    deadline = guest.deadline(60)
    while (info := guest.qmp("query-migrate")).get("status") != "completed":
        require(info.get("status") not in ("failed", "cancelled"), f"{info}")
        require(time.monotonic() < deadline, f"no end: {info}")
        time.sleep(0.02)


def migrate_to_file(guest: Guest, path: Path) -> None:
    """Migrate to a file, to the end."""
    guest.qmp("migrate", uri=f"file:{path}")
    migrated(guest)


def save(guest: Guest, way: Way, path: Path) -> Dict[str, int]:
    """Write a guest to a file; how the misc queue's counters rose."""
    prepare(guest, way)
    before = guest.stats("misc-vq")
    migrate_to_file(guest, path)
    after = guest.stats("misc-vq")
    return {key: value - before[key] for key, value in after.items()}


def load(guest: Guest, way: Way, path: Path) -> None:
    """Read a guest from a file, and let it run."""
    prepare(guest, way)
    guest.qmp("migrate-incoming", uri=f"file:{path}")
    guest.wait_status("running", 60)


@variants(*FILES)
def migration_file(run: Run, name: str) -> None:
    """to a file, {}: it is smaller by what is left out, and the guest comes back right"""
    way, size = FILES[name], {}
    for queue in ("off", "on"):
        path = run.logs / f"saved-{queue}"
        more: Dict[str, Any] = {"balloon": {"misc-vq": queue}}
        with run.guest(**more) as source:
            # Backed and dirty, but free
            source.sh("balloon_mem touch 600M", 60)
            job = source.start("balloon_mem churn 64M").wait_ready()
            rose = save(source, way, path)
        size[queue] = path.stat().st_blocks * 512
        equal("requests", bool(rose["requests"]), queue == "on")
        with run.guest(incoming=True, **more) as target:
            load(target, way, path)
            job.guest = target
            time.sleep(0.2)
            job.finish()
            if queue == "on":
                works(target)
        path.unlink()
    less = size["off"] - size["on"]
    # The patterns compress as zero pages do not: each page is a page.
    require(less > 500 * MIB, f"{size['off'] // MIB} MiB without, {size['on'] // MIB} MiB with")
    print(f"# {size['off'] // MIB} MiB without the misc queue, {size['on'] // MIB} MiB with it")


@test
def migration_cpr_reboot(run: Run) -> None:
    """mode cpr-reboot stops the guest first, whose memory stays where it is: it is not asked"""
    memory = Path("/dev/shm") / f"balloon-lab-{time.time_ns()}"
    way = Way(("x-ignore-shared",), {"mode": "cpr-reboot"})
    more = {"balloon": MISC, "backend": f"file,mem-path={memory},share=on"}
    path = run.logs / "saved"
    try:
        with run.guest(**more) as source:
            job = source.start("balloon_mem churn 64M").wait_ready()
            source.balloon(768 * MIB)
            rose = save(source, way, path)
        equal("requests", rose["requests"], 0)
        # Of what it has in memory nothing is in the file.
        require(path.stat().st_size < 64 * MIB, f"{path.stat().st_size // MIB} MiB in the file")
        with run.guest(incoming=True, **more) as target:
            load(target, way, path)
            job.guest = target
            job.finish()
            target.balloon(GIB)
            works(target)
    finally:
        memory.unlink(missing_ok=True)


def channel(kind: str, path: Path) -> Dict[str, Any]:
    """A channel of a migration, as QMP has it."""
    return {"channel-type": kind,
            "addr": {"transport": "socket", "type": "unix", "path": str(path)}}


@test
def migration_cpr_transfer(run: Run) -> None:
    """mode cpr-transfer hands the stopped guest's memory to another QEMU: it is not asked"""
    more: Dict[str, Any] = {"balloon": MISC, "backend": "memfd",
                            "machine": f"{arch(run.kernel).machine},aux-ram-share=on"}
    # A QEMU lives as long as the thread that started it.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool, \
            run.guest(**more) as source:
        cpr, main = Path(folder) / "cpr", Path(folder) / "main"
        job = source.start("balloon_mem churn 64M").wait_ready()
        source.balloon(768 * MIB)
        source.request("sync")
        before = source.stats("misc-vq")
        source.qmp("migrate-set-parameters", mode="cpr-transfer")
        # It has no monitor before it was sent what the channel "cpr" is for.
        launched = pool.submit(run.guest, incoming=True,
                               more=["-incoming", json.dumps(channel("cpr", cpr))], **more)
        source.until(lambda: cpr.exists() or launched.done(), 30)
        source.qmp("migrate", channels=[channel("main", main), channel("cpr", cpr)])
        with launched.result() as target:
            target.qmp("migrate-incoming", uri=f"unix:{main}")
            migrated(source)
            target.wait_status("running")
            asked = rose(before, source.stats("misc-vq"))
            equal("requests", asked["requests"], 0)
            equal("times not asked, as it is stopped", asked["not-asked-stopped"], 1)
            sent = source.qmp("query-migrate")["ram"]["transferred"]
            require(sent < MIB, f"{sent} bytes of memory sent")
            job.guest = target
            time.sleep(0.2)
            job.finish()
            # The device is what it was, and its requests are numbered on.
            equal("size", target.actual(), 768 * MIB)
            equal("sync", target.request("sync")["status"], "completed")
            after = target.stats("misc-vq")
            equal("last id", after["last-id"], asked["last-id"] + 1)
            equal("errors", (after["errors"], after["bad-records"]), (0, 0))
            target.balloon(GIB)
            works(target)


@test
def migration_zero_copy(run: Run) -> None:
    """multifd without copying"""
    way = ("multifd", "zero-copy-send")
    with run.guest(balloon=MISC) as guest:
        try:
            guest.qmp("migrate-set-capabilities",
                      capabilities=[{"capability": c, "state": True} for c in way])
        except LabError as error:
            raise Skip(f"this QEMU cannot: {error}") from error
    left_out(chain(run, 2, "balloon_mem churn 64M", rounds=2, capabilities=way, tcp=True,
                   parameters={**FAST, **MULTIFD}))
