# SPDX-License-Identifier: GPL-2.0
"""What those who run guests are told to do, and see."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

from harness import FAST, Failure, Run, equal, huge_pages, near, require, test
from lab import GIB, MIB, ROOT, Guest, artifact
from migration_tests import migrate_to_file
from misc_tests import MISC, works

TOP = ROOT / "scripts" / "balloon-top"
GUIDE = ROOT / "Documentation" / "admin-guide" / "virtio-balloon.rst"


def top(*arguments: str) -> str:
    """What balloon-top prints."""
    python = str(artifact("qemu") / "python")
    return subprocess.run([sys.executable, TOP, *arguments], check=True, text=True, timeout=60,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": python}).stdout


def seen(*sockets: Path) -> List[Dict[str, Any]]:
    """What balloon-top says of some guests."""
    out: List[Dict[str, Any]] = json.loads(top("--once", "--json", *map(str, sockets)))
    return out


def monitor(path: Path) -> Sequence[str]:
    """Arguments for another monitor of QEMU."""
    return ("-qmp", f"unix:{path},server=on,wait=off")


@test
def balloon_top(run: Run) -> None:
    """balloon-top beside a guest that moves, one of an unpatched QEMU, and one that is not there"""
    here, there, stock, nobody = (run.logs / name for name in ("here", "there", "stock", "nobody"))
    with run.guest(balloon=MISC, more=monitor(here)) as guest, \
            run.guest(balloon=MISC, more=monitor(there), incoming=True) as target, \
            run.guest(qemu="qemu-stock", bitmap=False, more=monitor(stock)) as other:
        guest.sh("balloon_mem touch 600M", 60)
        size = guest.memory
        guest.balloon(size - 256 * MIB)
        guest.qmp("stop")
        guest.set_target(size - 512 * MIB)
        one, two, gone = seen(here, stock, nobody)
        equal("size", one["size"], size - 256 * MIB)
        equal("target", one["target"], size - 512 * MIB)
        near("resident", one["rss"] / MIB, guest.rss() / MIB, 32)
        require(one["given"] >= 250 * MIB and one["calls"] > 0, f"{one}")
        equal("of a QEMU that has all", (one["lacks"], one["refused"], one["why not"]), ([], 0, {}))
        equal("what unpatched QEMU cannot tell", two["lacks"],
              ["page-bitmap-stats", "misc-vq-stats"])
        equal("and what it can", two["size"], other.actual())
        require("fault" in gone and "size" not in gone, f"{gone}")

        guest.qmp("cont")
        guest.balloon(size - 128 * MIB)
        guest.migrate_to(target, parameters=FAST)
        left, arrived = seen(here, there)
        require(left["left"] > 256 * MIB or left["why not"].get("late"), f"{left}")
        equal("the end that the guest left", left["status"], "postmigrate")
        equal("size at the other end", arrived["size"], size - 128 * MIB)
        text = top("--once", str(here), str(stock))
        print(re.sub("(?m)^", "# ", text.rstrip()))
        require("no page-bitmap-stats and no misc-vq-stats" in text, text)
        # A guest that is stopped is not asked, and that is told.
        target.qmp("stop")
        migrate_to_file(target, run.logs / "saved")
        equal("why not", seen(there)[0]["why not"], {"stopped": 1})
    (run.logs / "saved").unlink()


class Recipe(NamedTuple):
    """Part of a section of the guide: a balloon, other options, and the section's commands."""

    title: str
    balloon: Dict[str, str]
    options: List[str]
    commands: List[Dict[str, Any]]


def recipes() -> Iterator[Recipe]:
    """Those of the guide: one for each balloon, with the options before it."""
    part = GUIDE.read_text("utf-8").split("\nRecipes\n=======\n")[1]
    sections = r"(?s)\n([^\n]+)\n-{4,}\n(.*?)(?=\n[^\n]+\n[-=]{4,}\n)"
    for title, text in re.findall(sections, part):
        commands = [json.loads(line) for line in re.findall(r"(?m)^  (\{.*\})$", text)]
        options: List[str] = []
        for option, value in re.findall(r"(?m)^  (-\w+) (\S+)$", text):
            driver, *props = value.split(",")
            if driver != "virtio-balloon-pci":
                options += [option, value]
                continue
            balloon = dict(one.split("=", 1) for one in props)
            equal(f"{title}: id", balloon.pop("id"), "balloon0")
            yield Recipe(title, balloon, options, commands)
            options = []


def follow(run: Run, recipe: Recipe) -> None:
    """Start a guest as a recipe says, and give it the recipe's commands."""
    with run.guest(balloon=recipe.balloon, more=recipe.options) as guest:
        guest.sh("balloon_mem touch 600M", 60)
        for command in recipe.commands:
            obey(guest, run.logs, command)
        guest.balloon(768 * MIB)
        guest.balloon(GIB)
        if recipe.balloon.get("misc-vq") == "on":
            works(guest)


def obey(guest: Guest, folder: Path, command: Dict[str, Any]) -> None:
    """Execute a command, and wait for what it begins."""
    name, arguments = command["execute"], command.get("arguments", {})
    if name == "migrate":
        # Where a file may be written
        path = folder / arguments["uri"].removeprefix("file:")
        migrate_to_file(guest, path)
        require(0 < path.stat().st_blocks * 512 < 512 * MIB, f"{path.stat().st_blocks} blocks")
        path.unlink()
        guest.qmp("cont")
    elif name == "balloon-request":
        last = guest.request(arguments["type"], **{k: v for k, v in arguments.items() if k != "type"})
        equal(f"{arguments}", last["status"], "completed")
    else:
        guest.qmp(name, **arguments)
        if name == "balloon":
            guest.until(lambda: guest.actual() == arguments["value"], 30)
            equal("size", guest.actual(), arguments["value"])


@test
def guide(run: Run) -> None:
    """each recipe of the administrator's guide for QEMU, as it stands there"""
    # Those for libvirt: see libvirt_tests.py.
    found = list(recipes())
    require(len(found) >= 5, f"{[one.title for one in found]}")
    for recipe in found:
        print(f"# {recipe.title}: {recipe.balloon}")
        try:
            if any("hugetlb=on" in option for option in recipe.options):
                with huge_pages(run.kernel, GIB):
                    follow(run, recipe)
            else:
                follow(run, recipe)
        except Failure as failure:
            raise Failure(f"{recipe.title}: {failure}") from failure
