# SPDX-License-Identifier: GPL-2.0
"""A guest without a kernel rewrites memory as it reports it, and migrates, under KVM and TCG.

The dirty log under manual protection is KVM's own there; under TCG x-late-dirty-log is
the model of it.
"""

from __future__ import annotations

import random
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

from bare import SIZE, Bare
from harness import FAST, Run, equal, require, variants
from lab import MIB, Migration, Skip, no_kvm, thp
from misc_tests import left_out

Hook = Callable[[Bare], None]


def nothing(_guest: Bare) -> None:
    """Let the guest be."""


def move_balloon(guest: Bare) -> None:
    """Have the device want another size, wherever the balloon is."""
    if guest.status() == "running":
        guest.qmp("balloon", value=random.randrange(SIZE // 2, SIZE))


def speed_up(guest: Bare) -> None:
    """Go on at full speed once the guest is throttled."""
    if guest.qmp("query-migrate").get("cpu-throttle-percentage"):
        guest.qmp("migrate-set-parameters", **FAST)


def end_it(guest: Bare) -> None:
    """Go on at full speed after five rounds, or it would not converge."""
    if guest.qmp("query-migrate").get("ram", {}).get("dirty-sync-count", 0) >= 5:
        guest.qmp("migrate-set-parameters", **FAST)


def cancel(run: Run, source: Bare, accel: str, more: Mapping[str, Any]) -> None:
    """Begin to migrate, and cancel it at some moment."""
    with Bare(run.logs, accel, incoming=True, **more) as target:
        uri = f"unix:{run.logs}/cancel"
        target.qmp("migrate-incoming", uri=uri)
        # With a downtime that is allowed it may end before it is cancelled.
        source.qmp("migrate-set-parameters", **{"max-bandwidth": 64 * MIB, "downtime-limit": 1})
        source.qmp("migrate", uri=uri)
        time.sleep(random.choice((0, 0.001, 0.01, 0.1, 0.3)) * random.random())
        source.qmp("migrate_cancel")
        deadline = source.deadline(30)
        while source.qmp("query-migrate").get("status") not in ("cancelled", "failed"):
            require(time.monotonic() < deadline, f"{source.qmp('query-migrate')}")
            time.sleep(0.01)
        target.close(status=1)
    equal("wrong pages after a cancel", source.check()["wrong"], 0)


class Way(NamedTuple):
    """How a guest is made, and how it migrates."""

    hops: int
    more: Mapping[str, Any] = {}
    capabilities: Tuple[str, ...] = ()
    parameters: Mapping[str, Any] = FAST
    during: Hook = nothing
    rounds: int = 3
    answers: int = 0
    command: str = ""
    cancels: int = 0


TWO = {"cpus": 2}
WAYS: Dict[str, Way] = {
    "one cpu": Way(10),
    "two cpus": Way(10, TWO),
    "balloon": Way(8, TWO, during=move_balloon),
    "cancels": Way(4, TWO, cancels=2),
    "multifd": Way(4, TWO, ("multifd",), {**FAST, "multifd-channels": 2}),
    "auto converge": Way(2, TWO, ("auto-converge",),
                         {"max-bandwidth": 64 * MIB, "downtime-limit": 1,
                          "throttle-trigger-threshold": 1}, speed_up, rounds=1000),
    "xbzrle": Way(4, TWO, ("xbzrle",)),
    # Rounds that are worth to be asked for
    "asked again": Way(3, TWO, (), {"max-bandwidth": 48 * MIB, "downtime-limit": 1}, end_it,
                       rounds=5, answers=3),
    "small chunks": Way(4, {**TWO, "shift": 8}),
    "hints": Way(4, {**TWO, "balloon": {"free-page-hint": "on"}}),
    "noise": Way(3, TWO, command="noise"),
    "page numbers": Way(3, {**TWO, "balloon": {"page-bitmap": "off"}}, during=move_balloon),
}
# What only KVM has
KVM_WAYS: Dict[str, Way] = {
    "dirty ring": Way(4, {**TWO, "ring": 4096}),
    "manual protection but all clean first": Way(4, {**TWO, "mask": 1}),
    "no manual protection": Way(4, {**TWO, "mask": 0}),
}



def chain(run: Run, way: Way, accel: str, hops: int) -> None:
    """Migrate from host to host; all memory must be right at each end."""
    more: Dict[str, Any] = {**way.more, "late": accel == "tcg"}
    moves: List[Migration] = []
    counters: Dict[str, int] = {}
    source = Bare(run.logs, accel, **more)
    try:
        if way.command:
            source.tell(way.command)
        for _ in range(hops):
            for _ in range(way.cancels):
                cancel(run, source, accel, more)
            before = source.check()
            target = Bare(run.logs, accel, incoming=True, **more)
            try:
                moves.append(source.migrate_to(
                    target, way.capabilities, way.parameters, rounds=way.rounds,
                    during=lambda: way.during(source)))
            except BaseException:
                target.close()
                raise
            source.close()
            source = target
            counters = source.check()
            equal("wrong pages", counters["wrong"], 0)
            equal("errors", moves[-1].misc["errors"], 0)
            equal("bad records", bool(moves[-1].misc["bad-records"]), way.command == "noise")
            require(counters["written"] > before["written"], "nothing was written as reported")
            require(moves[-1].misc["answers"] >= way.answers, f"{moves[-1].misc}")
    finally:
        source.close()
    if "free-page-hint" in way.more.get("balloon", {}):
        require(counters["hinted"] > 0, "no hint was asked for")
    if way.during is move_balloon:
        require(counters["moved"] > 0, "the balloon did not move")
    left_out(moves)
    print(f"# {hops} migrations, {sum(m.misc['unsent-pages'] for m in moves)} pages left out, "
          + ", ".join(f"{counters[key]} {key}" for key in ("checked", "written", "moved", "hinted")))


def late_answer(run: Run, accel: str) -> None:
    """The second half of an answer comes a round too late, of pages that were written meanwhile.

    Slow enough for such a page to be waiting to be sent when it comes, and without an end by itself.
    """
    more: Dict[str, Any] = {**TWO, "late": accel == "tcg"}
    with Bare(run.logs, accel, **more) as source, \
            Bare(run.logs, accel, incoming=True, **more) as target:
        source.tell("hold")
        # What is to happen from which synchronisation of the dirty log on
        steps = [(2, lambda: source.tell("write")), (3, lambda: source.tell("tell")),
                 (4, lambda: source.qmp("migrate-set-parameters", **FAST))]

        def go_on() -> None:
            syncs = source.qmp("query-migrate").get("ram", {}).get("dirty-sync-count", 0)
            if steps and syncs >= steps[0][0]:
                steps.pop(0)[1]()

        moved = source.migrate_to(target, parameters={"max-bandwidth": 128 * MIB,
                                                      "downtime-limit": 1}, during=go_on)
        equal("steps not taken", len(steps), 0)
        equal("wrong pages", target.check()["wrong"], 0)
        require(moved.misc["stale-records"] > 0, f"{moved.misc}")


def little_in_use(run: Run, accel: str) -> None:
    """Of 32 pages one is in use: a target with huge pages backs little more than what comes."""
    if thp() == "never":
        raise Skip("the host has no transparent huge pages")
    grew: Dict[bool, int] = {}
    for sparse in (False, True):
        with Bare(run.logs, accel, still=True) as source, \
                Bare(run.logs, accel, incoming=True) as target:
            source.sparse = sparse
            source.tell("layout 1 31")
            moved = source.migrate_to(target, parameters=FAST)
            checked = target.check()
            equal("wrong pages", checked["wrong"], 0)
            require(checked["checked"] > 0, f"{checked}")
            equal("times not asked, for want of sparse-ram",
                  moved.misc["not-asked-no-capability"], int(not sparse))
            grew[sparse] = moved.target_rss
            print(f"# sparse-ram={sparse}: {moved.info['ram']['transferred'] // MIB} MiB sent, "
                  f"{moved.target_rss // MIB} more at the target")
    left_out([moved])
    # 8 MiB are sent; QEMU grows by itself, and there are dense regions.
    require(grew[False] > 200 * MIB, f"{grew}")
    require(grew[True] < 24 * MIB, f"{grew}")


# What is no chain of migrations
SINGLE = {"late answer": late_answer, "little in use": little_in_use}


def needs_no_kernel(reason: str = "") -> None:
    """Skip for a reason, or where all is about another kernel."""
    if Run.kernel != "guest":
        reason = f"it has no kernel, {Run.kernel} or other"
    if reason:
        raise Skip(reason)


@variants(*WAYS, *KVM_WAYS, *SINGLE)
def bare_kvm(run: Run, name: str) -> None:
    """a guest without a kernel under KVM, {}: no wrong page"""
    needs_no_kernel(no_kvm())
    if name in SINGLE:
        SINGLE[name](run, "kvm")
        return
    way = {**WAYS, **KVM_WAYS}[name]
    chain(run, way, "kvm", way.hops)


@variants(*WAYS, *SINGLE)
def bare_tcg(run: Run, name: str) -> None:
    """the same under TCG, with a dirty log that is cleared late: {}"""
    needs_no_kernel()
    if name in SINGLE:
        SINGLE[name](run, "tcg")
        return
    way = WAYS[name]
    # All of them where nothing else has them
    chain(run, way, "tcg", way.hops if no_kvm() else max(1, way.hops // 3))
