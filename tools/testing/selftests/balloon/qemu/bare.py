# SPDX-License-Identifier: GPL-2.0
"""The guest without a kernel, ../bare: under KVM, whose dirty log is seen, or under TCG.

It is up at once, and where KVM runs no kernel it runs this.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from lab import (BUILD, HERE, MIB, PAGE, SLOW_STRINGS, X86, Guest, LabError, artifact,
                 balloon_arguments, locked)

MACHINE = "microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off"
# MSRs that some KVMs do not have come with arch-capabilities.
CPU = {"kvm": "host,-arch-capabilities", "tcg": X86.cpu + SLOW_STRINGS}
SIZE = 256 * MIB


@functools.lru_cache(maxsize=None)
def _files() -> Path:
    out = BUILD / "bare"
    out.mkdir(parents=True, exist_ok=True)
    headers = artifact("uapi") / "include" / "uapi"
    with locked(f"{out}.lock"):
        subprocess.run(["make", "-s", "-C", HERE.parent, "bare", f"OUTPUT={out}", "CC=cc",
                        f"UAPI={headers}"], check=True, stdout=sys.stderr)
    return out


class Bare(Guest):
    """One of these guests; its commands are in guest.c.

    One that is still leaves its memory alone, of which nothing is in use. With mask, KVM claims to do no more of manual dirty log protection than that.
    """

    numbers = itertools.count(1)

    # pylint: disable=super-init-not-called
    def __init__(self, logs: Path, accel: str, *, cpus: int = 1,
                 balloon: Optional[Mapping[str, str]] = None, ring: int = 0,
                 mask: Optional[int] = None, late: bool = False, shift: int = 0,
                 memory: int = SIZE, still: bool = False, incoming: bool = False):
        self._prepare(f"bare{next(self.numbers)}", artifact("qemu") / X86.program, memory, logs)
        device = {"page-bitmap": "on", "misc-vq": "on", **(balloon or {})}
        args = ["-nodefaults", "-no-user-config", "-no-reboot", "-cpu", CPU[accel],
                "-name", f"{self.name},debug-threads=on", "-machine", MACHINE,
                "-msg", "timestamp=on",
                "-smp", str(cpus), "-m", f"{memory // MIB}M",
                "-bios", str(_files() / "balloon_bare.bin"),
                "-chardev", f"socket,id=lab,path={self._dir}/lab,server=on,wait=off",
                "-serial", "chardev:lab", "-global", "virtio-mmio.force-legacy=off"]
        if accel == "tcg":
            args += ["-accel", "tcg,thread=multi"]
        else:
            args += ["-accel", "kvm" + (f",dirty-ring-size={ring}" if ring else "")]
        if shift:
            args += ["-global", f"migration.x-clear-bitmap-shift={shift}"]
        if late:
            args += ["-device", "x-late-dirty-log,id=late"]
        args += balloon_arguments("device", device)
        if incoming:
            args += ["-incoming", "defer"]
        variables = []
        if mask is not None:
            variables = [f"BALLOON_MASK={mask}", f"LD_PRELOAD={_files() / 'balloon_mask.so'}"]
        try:
            self._launch(args, variables)
            if not incoming:
                # It waits in the line until the guest is up.
                if still:
                    self.tell("still")
                self.tell(f"start {memory // PAGE} {cpus} {0 if still else 4}")
        except BaseException:
            self._destroy()
            raise

    def _answer(self, deadline: float) -> str:
        while b"\n" not in self._buffer:
            self._read(deadline)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode("ascii", "replace")

    def ask_line(self, command: str, timeout: float = 60) -> str:
        """Give a command, and return the line that answers it."""
        assert self._agent
        self._agent.sendall(command.encode() + b"\n")
        return self._answer(self.deadline(timeout))

    def tell(self, command: str) -> None:
        """Give a command that has no other answer than that it was done."""
        said = self.ask_line(command)
        if said != "ok":
            raise LabError(f"{self.name}: {command}: {said}")

    def check(self) -> Dict[str, int]:
        """Have all memory verified; the guest's counters."""
        words = self.ask_line("check").split()
        return {key: int(value) for key, value in zip(words[::2], words[1::2])}

    def __enter__(self) -> Bare:
        return self

    def large_blocks(self) -> int:
        """Nobody knows."""
        return 0

    def _save_coverage(self) -> None:
        if os.environ.get("BALLOON_LAB_GCOV"):
            self._vm.shutdown()
