# SPDX-License-Identifier: GPL-2.0
"""Guests for the balloon tests: boot, command, balloon, migrate, inspect.

A guest is a kernel and its balloon module, an initramfs with busybox and this
directory's tools, and a QEMU. Both come from scripts/build.sh by name, or from
the directory that BALLOON_LAB_<NAME> names. Files appear under <build>/lab.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import functools
import itertools
import logging
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import (Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence,
                    Union)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[4]
BUILD = Path(os.environ.get("BUILD") or ROOT / "build").resolve() / "lab"

KIB, MIB, GIB, PAGE = 1 << 10, 1 << 20, 1 << 30, 4096
PORT = "org.balloon.lab"
BOOT_SECONDS = 90
# No command takes so long
QMP_SECONDS = 300
KVM_CREATE_VM = 0xae01
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")

# How a QEMU ended is for the lab to say.
logging.getLogger("qemu.machine").setLevel(logging.ERROR)

LOAD_MODULES = b"""#!/bin/sh
# Load the modules that a list names, except for KUnit's.
cd /lib/modules || exit 1
while read -r m; do
	case $m in *kunit*) ;; *) insmod "$m" || exit 1 ;; esac
done < "${1:-modules.order}"
"""

SPLAT = re.compile(
    r"WARNING:|BUG:|INFO: task|INFO: possible|possible recursive locking"
    r"|detected stalls|self-detected stall|KASAN|UBSAN|unreferenced object"
    r"|Oops|Call Trace|refcount_t|Kernel panic|soft lockup"
    r"|general protection fault|page allocation failure"
    r"|virtio_balloon.*(?:error|fail)")


class Arch(NamedTuple):
    """What guests of an architecture run on."""

    qemu: str           # the build of ours that has it
    program: str
    machine: str
    cpu: str
    console: str
    bus: str            # how the names of virtio devices end
    legacy: Mapping[str, Any]   # what makes a device legacy
    compiler: str
    page: int


# TCG repeats a string instruction a byte at a time, so that a guest which trusts them to be
# fast takes 20 us to clear a page.
SLOW_STRINGS = ",-erms,-fsrm,-fsrs,-fzrm"
# A fifth level of page tables is one more to walk, each time that TCG does not know a page.
FOUR_LEVELS = ",-la57"
# Or each CPU but the first counts how often it turns in some ticks, while the first waits for
# it, since TCG does not say that the TSC is constant. Good to a factor of two, which is enough
# for delays that wait for devices. And on a busy host a look whether the timer interrupts in
# time finds that it does not, and the kernel panics.
TIMING = " lpj=10000000 no_timer_check"
PCI_LEGACY = {"disable-modern": "on", "disable-legacy": "off"}
X86 = Arch("qemu", "qemu-system-x86_64", "q35", "max", "ttyS0", "pci", PCI_LEGACY, "cc", PAGE)
ARCHS = {
    "guest-i386": X86._replace(compiler="i686-linux-gnu-gcc"),
    "guest-arm64": Arch("qemu-arch", "qemu-system-aarch64", "virt,gic-version=3", "neoverse-n1",
                        "ttyAMA0", "pci", PCI_LEGACY, "aarch64-linux-gnu-gcc", 64 * KIB),
    "guest-s390x": Arch("qemu-arch", "qemu-system-s390x", "s390-ccw-virtio", "max", "ttysclp0",
                        "ccw", {"max_revision": 0}, "s390x-linux-gnu-gcc", PAGE),
}


def arch(kernel: str) -> Arch:
    """The architecture of a kernel."""
    return ARCHS.get(kernel, X86)


def patience(kernel: str) -> int:
    """How much longer than a plain kernel one may take."""
    return 3 if kernel.startswith("root-") else {"guest-debug": 6, "guest-kcsan": 3}.get(kernel, 1)


def overhead(kernel: str, memory: int) -> int:
    """Memory that a kernel needs to leave its guest as much as a plain one would."""
    # In huge pages, which memory may be made of.
    if kernel == "guest-debug":
        return memory * 3 // 20 // (2 * MIB) * 2 * MIB + 96 * MIB
    return 64 * MIB if kernel.startswith(("guest-debian", "guest-module")) else 0


class LabError(Exception):
    """The guest or its QEMU did not do what it was asked."""


class Skip(Exception):
    """This machine or this build cannot run the test; the text says why."""


class NoEnd(LabError):
    """A migration takes longer than it may, and still goes on."""


class CommandError(LabError):
    """A command in the guest ended with another status than 0."""

    def __init__(self, script: str, status: int, output: str):
        super().__init__(f"'{script}' ended with {status}: {output.strip()[-2000:]}")
        self.status = status
        self.output = output


class Migration(NamedTuple):
    """One live migration, as its source saw it."""

    info: Dict[str, Any]    # query-migrate, when it was over
    misc: Dict[str, int]    # how the source's misc queue counters rose
    source_rss: int         # bytes by which either host's RSS rose
    target_rss: int


class Move(NamedTuple):
    """One change of the balloon's size."""

    seconds: float
    actual: int             # bytes that the guest keeps
    cpu: Dict[str, float]   # CPU seconds of QEMU's threads
    stats: Dict[str, int]   # how the device's counters rose
    rss: int                # bytes by which the host's RSS rose
    large: int = 0          # bytes that are free in large blocks then; if it was timed


# How the device is told of pages, and the properties for it: by page bitmaps, by page
# numbers, and by these one at a time, as a QEMU without us does it.
WAYS: Dict[str, Dict[str, str]] = {
    "bitmaps": {"page-bitmap": "on"},
    "numbers": {"page-bitmap": "off"},
    "as today": {"page-bitmap": "off", "x-pfn-runs": "off"},
}


class Pair(NamedTuple):
    """A driver in Debian's kernel, ours as a module or its own, and a device."""

    kernel: str
    balloon: Mapping[str, str]
    qemu: str = "qemu"


PAIRS = {
    "our module": Pair("guest-module", WAYS["bitmaps"]),
    "its own": Pair("guest-debian", WAYS["numbers"]),
    "as today": Pair("guest-debian", WAYS["as today"]),
}

# Counters that do not count, but say what is the case.
ABSOLUTE = ("longest-hold-ns", "answer-ns", "longest-answer-ns", "last-id", "actual-pages",
            "target-pages")


def rose(before: Mapping[str, int], after: Mapping[str, int]) -> Dict[str, int]:
    """How counters rose."""
    return {k: v - (0 if k in ABSOLUTE else before[k]) for k, v in after.items()}


@contextlib.contextmanager
def locked(path: Union[str, Path]) -> Iterator[None]:
    """Do not at the same time what other processes do with the same path."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# What artifact() has found so far
FOUND: Dict[str, str] = {}


def build(name: str) -> str:
    """Have scripts/build.sh make something; the last line that it prints."""
    script = ROOT / "scripts" / "build.sh"
    BUILD.mkdir(parents=True, exist_ok=True)
    # What it builds it builds in the same trees.
    with locked(BUILD / "build.lock"):
        done = subprocess.run([script, name], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise LabError(f"{script} {name} failed, status {done.returncode}")
    return done.stdout.strip().rpartition("\n")[2]


def artifact(name: str) -> Path:
    """The directory of a built kernel or QEMU."""
    path = os.environ.get("BALLOON_LAB_" + name.upper().replace("-", "_")) or FOUND.get(name)
    if not path:
        path = FOUND[name] = build(name)
    return Path(path)


@functools.lru_cache(maxsize=None)
def no_kvm(kernel: str = "") -> str:
    """Why KVM cannot run this kernel, or a guest that has none; nothing if it can."""
    if kernel and arch(kernel).program != X86.program:
        return "the guest is of another architecture"
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
        finally:
            os.close(device)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    # It does in software what runs at CPL 0, or is for paravirtual kernels.
    if kernel and not re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text("utf-8")):
        return "/dev/kvm runs no kernel like this one, the CPU has neither VMX nor SVM"
    return ""


def thp() -> str:
    """Who gets transparent huge pages on this host: always, madvise, never."""
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return re.findall(r"\[(\w+)\]", file.read_text("ascii"))[0] if file.exists() else "never"


def accelerator(kernel: str = "guest") -> str:
    """KVM where it can be used, TCG elsewhere."""
    return "tcg" if no_kvm(kernel) else "kvm"


def program(kernel: str, qemu: str) -> Path:
    """The QEMU that runs a kernel."""
    return artifact(arch(kernel).qemu if qemu == "qemu" else qemu) / arch(kernel).program


@functools.lru_cache(maxsize=None)
def has_property(qemu: str, prop: str, kernel: str = "guest") -> bool:
    """Whether the balloon device of this kernel's QEMU has a property."""
    out = subprocess.run([program(kernel, qemu), "-device",
                          f"virtio-balloon-{arch(kernel).bus},help"], text=True, check=True,
                         stdout=subprocess.PIPE, timeout=30).stdout
    return re.search(rf"^\s*{re.escape(prop)}=", out, re.M) is not None


@functools.lru_cache(maxsize=None)
def _tools(compiler: str) -> Path:
    out = BUILD / f"tools-{compiler}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(f"{out}.lock"):
        subprocess.run(["make", "-s", "-C", HERE.parent, f"OUTPUT={out}", f"CC={compiler}"],
                       check=True, stdout=sys.stderr)
    return out


def _cpio(entries: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive in the "newc" format; entries are (mode, content or target)."""
    out = bytearray()

    def pad() -> None:
        out.extend(bytes(-len(out) % 4))

    for inode, (name, (mode, data)) in enumerate(
            [*entries.items(), ("TRAILER!!!", (0, b""))], 1):
        device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device,
                  len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % f for f in fields)
        out += name.encode() + b"\0"
        pad()
        out += data
        pad()
    return bytes(out)


@functools.lru_cache(maxsize=None)
def initramfs(kernel: str) -> Path:
    """The archive that a kernel boots with; its modules are in /lib/modules."""
    modules, tools = artifact(kernel), _tools(arch(kernel).compiler)
    if (modules / "initrd.img").exists():
        return modules / "initrd.img"
    own = modules / "busybox"
    found = str(own) if own.exists() else shutil.which("busybox")
    if not found:
        raise LabError("no busybox; Debian has it in busybox-static")
    busybox = Path(found).read_bytes()
    if b"/ld-linux" in busybox[:PAGE]:
        raise LabError(f"{found} is not static; Debian has busybox-static")

    folder, executable = (stat.S_IFDIR | 0o755, b""), stat.S_IFREG | 0o755
    entries = {name: folder for name in ("bin", "dev", "lib", "lib/modules")}
    entries["dev/console"] = (stat.S_IFCHR | 0o600, b"")
    entries["init"] = (executable, (tools / "balloon_init").read_bytes())
    for tool in ("balloon_mem", "balloon_kexec"):
        entries[f"bin/{tool}"] = (executable, (tools / tool).read_bytes())
    entries["bin/busybox"] = (executable, busybox)
    entries["bin/load_modules"] = (executable, LOAD_MODULES)
    for module in sorted(modules.glob("*.ko")):
        entries[f"lib/modules/{module.name}"] = (executable, module.read_bytes())
    for order in modules.glob("*.order"):
        entries[f"lib/modules/{order.name}"] = (stat.S_IFREG | 0o644, order.read_bytes())

    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{kernel}.cpio"
    part = path.with_suffix(f".{os.getpid()}")
    archive = _cpio(entries)
    # A microvm gets it at the end of its memory, up to a page that is not full: in the last
    # page are the firmware's ACPI tables.
    part.write_bytes(archive + bytes(-len(archive) % PAGE))
    part.rename(path)
    return path


def balloon_arguments(bus: str, balloon: Mapping[str, Any]) -> List[str]:
    """QEMU's arguments for a balloon, and for the thread that it needs for hints."""
    props, args = {"id": "balloon0", **balloon}, []
    if balloon.get("free-page-hint") == "on":
        args = ["-object", "iothread,id=hint0"]
        props["iothread"] = "hint0"
    return args + ["-device", ",".join([f"virtio-balloon-{bus}",
                                        *(f"{key}={value}" for key, value in props.items())])]


def arguments(kernel: str = "guest", *, memory: int = 2 * GIB, backend: str = "",
              prealloc: bool = False, reserve: bool = True, machine: str = "",
              append: str = "", balloon: Optional[Mapping[str, Any]] = None,
              hotplug: bool = False, incoming: bool = False,
              objects: Sequence[str] = (), devices: Sequence[str] = (),
              drives: Sequence[str] = (), cpus: int = 2, sleeps: bool = False,
              dimms: bool = False, more: Sequence[str] = ()) -> List[str]:
    """QEMU's arguments for a guest, without console and agent; more are as they are.

    One that sleeps, and is to wake up from suspend to RAM, cannot be booted by PVH.
    """
    # pylint: disable=too-many-arguments
    bus, accel = virtio_bus(kernel, machine), accelerator(kernel)
    if machine == "microvm" and accel == "tcg":
        # It has no timer to calibrate the TSC with that TCG keeps in step.
        append += " tsc_early_khz=2000000"
    cpu = arch(kernel).cpu
    if accel == "tcg" and arch(kernel).program == X86.program:
        cpu += SLOW_STRINGS + FOUR_LEVELS
        append += TIMING
    image = artifact(kernel) / "bzImage"
    if not sleeps or not image.exists():
        image = artifact(kernel) / "kernel"
    args = ["-nodefaults", "-no-user-config", "-no-reboot",
            "-accel", "tcg,thread=multi" if accel == "tcg" else accel,
            "-cpu", cpu, "-smp", str(cpus),
            "-m", f"{memory // MIB}M" + (f",slots=1,maxmem={2 * memory // MIB}M" if dimms else ""),
            "-kernel", str(image),
            "-initrd", str(initramfs(kernel)),
            "-append", f"console={arch(kernel).console} loglevel=5 oops=panic panic=-1 {append}"]
    for firmware in FIRMWARE:
        if os.path.isdir(firmware):
            args += ["-L", firmware]
    machine = machine or arch(kernel).machine
    if machine == "microvm":
        args += ["-global", "virtio-mmio.force-legacy=off"]
    if backend or prealloc or not reserve:
        kind = {"": "ram", "hugetlb": "memfd"}.get(backend, backend)
        ram = [f"memory-backend-{kind}", "id=ram0", f"size={memory}",
               f"prealloc={'on' if prealloc else 'off'}",
               f"reserve={'on' if reserve else 'off'}"]
        if kind == "memfd":
            ram += ["share=on"]
        if backend == "hugetlb":
            ram += ["hugetlb=on", "hugetlbsize=2M"]
        args += ["-object", ",".join(ram)]
        machine += ",memory-backend=ram0"
    args += ["-machine", machine]
    balloon = dict(balloon or {})
    if hotplug:
        args += ["-device", "pcie-root-port,id=slot0,chassis=1"]
        balloon["bus"] = "slot0"
    args += balloon_arguments(bus, balloon)
    for one in objects:
        args += ["-object", one]
    for one in drives:
        args += ["-drive", one]
    for one in devices:
        args += ["-device", one]
    if incoming:
        args += ["-incoming", "defer"]
    return [*args, *more, *shlex.split(os.environ.get("BALLOON_LAB_ARGS", ""))]


def virtio_bus(kernel: str, machine: str) -> str:
    """How the names of a machine's virtio devices end."""
    return "device" if machine == "microvm" else arch(kernel).bus


class Job:
    """A command that runs in the guest's background; migrates with it."""

    numbers = itertools.count(1)

    def __init__(self, guest: Guest, script: str):
        self.guest, self.script = guest, script
        self.path = f"/tmp/job{next(self.numbers)}"
        inner = shlex.quote(f"echo $$ > {self.path}.pid; exec {script}")
        guest.sh(f"""
            : > {self.path}.pid > {self.path}.rc > {self.path}.out
            ( sh -c {inner} > {self.path}.out 2>&1
              echo $? > {self.path}.rc ) > /dev/null 2>&1 < /dev/null &""")
        # Ask nothing more of the guest: the command may be to suspend it, which loses requests.

    def _read(self, suffix: str) -> str:
        return self.guest.sh(f"cat {self.path}.{suffix}")

    def _wait(self, suffix: str, timeout: float) -> str:
        """Wait for the number in one of the files. The guest has a load: let it not wait itself."""
        text = ""

        def written() -> bool:
            nonlocal text
            text = self._read(suffix)
            return text.endswith("\n")

        if not self.guest.until(written, timeout, 0.02):
            raise LabError(f"{self.guest.name}: '{self.script}' takes over {timeout} s")
        return text.strip()

    def wait_ready(self, timeout: float = 60) -> Job:
        """Wait for the command to print "ready"."""
        self.guest.until(lambda: "ready" in self._read("out") or not self.running(), timeout, 0.02)
        out = self._read("out")
        if "ready" in out:
            return self
        if not self.running():
            raise CommandError(self.script, 1, out)
        raise LabError(f"{self.guest.name}: '{self.script}' is not ready: {out}")

    def running(self) -> bool:
        """Whether the command has not ended."""
        return not self._read("rc")

    def signal(self, sig: str) -> None:
        """Send the command a signal."""
        self.guest.sh(f"kill -{sig} {self._wait('pid', 30)}")

    def _end(self, sig: str, timeout: float) -> int:
        pid = self._wait("pid", 30)
        self.guest.sh(f"[ -s {self.path}.rc ] || kill -{sig} {pid} || true")
        return int(self._wait("rc", timeout))

    def finish(self, sig: str = "TERM", timeout: float = 60) -> str:
        """End the command, if need be, and return its output; it must succeed."""
        status, out = self._end(sig, timeout), self._read("out")
        if status:
            raise CommandError(self.script, status, out)
        return out

    def kill(self) -> None:
        """End the command, whatever its status."""
        self._end("KILL", 30)


class Guest:
    """One virtual machine, running from construction to close()."""

    def __init__(self, name: str, *, kernel: str = "guest", qemu: str = "qemu",
                 memory: int = 2 * GIB, machine: str = "", incoming: bool = False,
                 logs: Path = BUILD, expected: str = "", **more: Any):
        self._prepare(name, program(kernel, qemu), memory, logs)
        self.qemu, self.arch = qemu, arch(kernel)
        self.sparse = qemu == "qemu"
        # The size of the machine and that of the balloon's guest are larger by it.
        self._overhead = overhead(kernel, memory)
        self._patience = patience(kernel)
        self._expected = expected   # on the console, though it looks like a complaint
        self.boot_seconds = 0.0
        args = arguments(kernel, memory=memory + self._overhead, machine=machine,
                         incoming=incoming, **more)
        args += ["-name", f"{name},debug-threads=on",
                 "-chardev", f"file,id=console,path={self.console}",
                 "-serial", "chardev:console",
                 "-chardev", f"socket,id=lab,path={self._dir}/lab,server=on,wait=off",
                 "-device", f"virtio-serial-{virtio_bus(kernel, machine)}",
                 "-device", f"virtserialport,chardev=lab,name={PORT}"]
        try:
            self._launch(args)
            if not incoming:
                self._boot(BOOT_SECONDS)
        except BaseException:
            self._destroy()
            raise

    def _prepare(self, name: str, qemu: Path, memory: int, logs: Path) -> None:
        """What a guest has whatever runs in it."""
        self.name, self.program, self.memory = name, qemu, memory
        self._overhead, self._patience, self._expected = 0, 1, ""
        self.qemu, self.sparse = "qemu", True   # which has sparse-ram, if the other end has it
        self._agent: Optional[socket.socket] = None
        self._buffer = b""
        self._vm: Any = None
        logs.mkdir(parents=True, exist_ok=True)
        self.console = logs / f"{name}.console"
        self.qemu_log = logs / f"{name}.log"
        self.console.unlink(missing_ok=True)
        self._dir = Path(tempfile.mkdtemp(prefix="balloon-lab-"))

    def _launch(self, args: Sequence[str], variables: Sequence[str] = ()) -> None:
        python = str(self.program.parent / "python")
        if python not in sys.path:
            sys.path.insert(0, python)
        # pylint: disable=import-error, import-outside-toplevel
        from qemu.machine.machine import QEMUMachine, QEMUMachineError  # type: ignore

        class Machine(QEMUMachine):
            """One whose monitor has to answer in time."""

            def _post_launch(self) -> None:
                super()._post_launch()
                self._qmp.settimeout(QMP_SECONDS)

        setpriv = shutil.which("setpriv")
        wrapper = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        if variables:
            wrapper += ["env", *variables]
        if self.sparse:
            args = [*args, "-global", "migration.sparse-ram=on"]
        self._vm = Machine(str(self.program), args, wrapper=wrapper, name=self.name,
                           base_temp_dir=str(self._dir),
                           log_dir=str(self.qemu_log.parent), qmp_timer=60)
        try:
            self._vm.launch()
        except QEMUMachineError as error:
            said = self.qemu_log.read_text("utf-8", "replace").strip()
            raise LabError(f"{self.name}: QEMU did not start, status {self._vm.exitcode()}: "
                           f"{said or error}, see {self.qemu_log}") from error
        self._agent = socket.socket(socket.AF_UNIX)
        self._agent.connect(f"{self._dir}/lab")
        self.pid: int = self._vm.get_pid()

    def _boot(self, timeout: float, before: Callable[[], None] = lambda: None) -> None:
        started, deadline = time.monotonic(), self.deadline(timeout)
        while self._frame(deadline)[0] != "up":
            pass
        before()
        self.sh("load_modules")
        self.boot_seconds = time.monotonic() - started

    # The guest's end of the channel: init.c.

    def _read(self, deadline: float) -> None:
        assert self._agent
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(f"{self.name}: no answer in time, see {self.console}")
            self._agent.settimeout(min(left, 1))
            try:
                data = self._agent.recv(65536)
            except socket.timeout:
                continue
            except ConnectionError:
                data = b""
            if not data:
                raise LabError(f"{self.name}: guest is gone, see {self.console}"
                               f" and {self.qemu_log}")
            self._buffer += data
            return

    def _frame(self, deadline: float) -> tuple[str, int, bytes]:
        while b"\n" not in self._buffer:
            self._read(deadline)
        head, self._buffer = self._buffer.split(b"\n", 1)
        kind, number = head.decode().split()
        size = int(number) if kind == "out" else 0
        while len(self._buffer) < size:
            self._read(deadline)
        payload, self._buffer = self._buffer[:size], self._buffer[size:]
        return kind, int(number), payload

    def deadline(self, seconds: float) -> float:
        """When so much time is over, of which a slow kernel has more."""
        return time.monotonic() + seconds * self._patience

    def _send(self, script: str) -> None:
        assert self._agent
        data = script.encode()
        self._agent.sendall(b"run %d\n" % len(data) + data)

    def sh(self, script: str, timeout: float = 30) -> str:
        """Run a shell script in the guest; return its stdout and stderr."""
        assert self._agent
        deadline = self.deadline(timeout)
        self._agent.settimeout(timeout * self._patience)
        self._send(script)
        output = b""
        while True:
            kind, number, payload = self._frame(deadline)
            output += payload
            if kind == "end":
                break
        text = output.decode(errors="replace")
        if number:
            raise CommandError(" ".join(script.split()), number, text)
        return text

    def start(self, script: str) -> Job:
        """Run one command in the guest's background."""
        return Job(self, script)

    def _pairs(self, path: str) -> Dict[str, int]:
        return {line.split()[0].rstrip(":"): int(line.split()[1])
                for line in self.sh(f"cat {path}").splitlines()}

    def meminfo(self) -> Dict[str, int]:
        """/proc/meminfo, in bytes."""
        return {k: v * KIB for k, v in self._pairs("/proc/meminfo").items()}

    def vmstat(self) -> Dict[str, int]:
        """/proc/vmstat."""
        return self._pairs("/proc/vmstat")

    def large_blocks(self) -> int:
        """Bytes of free memory in blocks that a huge page can be made of."""
        return sum(int(nr) * (self.arch.page << order)
                   for line in self.sh("cat /proc/buddyinfo").splitlines()
                   for order, nr in enumerate(line.split()[4:])
                   if self.arch.page << order >= 2 * MIB)

    # QEMU's end.

    def qmp(self, command: str, **args: Any) -> Any:
        """A QMP command's result; its error is an exception."""
        # pylint: disable=import-error, import-outside-toplevel
        from qemu.qmp import QMPError  # type: ignore
        try:
            return self._vm.cmd(command, **args)
        except (QMPError, asyncio.TimeoutError) as error:
            raise LabError(f"{self.name}: {command}: {str(error) or 'no answer'},"
                           f" see {self.qemu_log}") from error

    def status(self) -> str:
        """The run state."""
        return str(self.qmp("query-status")["status"])

    def event(self, name: str, timeout: float = 30, match: Any = None) -> Any:
        """Wait for a QMP event, or raise."""
        try:
            # A float: told to wait for an int, QEMU's class waits for ever.
            return self._vm.event_wait(name, float(timeout * self._patience), match)
        except asyncio.TimeoutError:
            raise LabError(f"{self.name}: no event {name} in {timeout} s") from None

    def wait_status(self, status: str, timeout: float = 30) -> None:
        """Wait for a run state."""
        deadline = self.deadline(timeout)
        while self.status() != status:
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: {self.status()}, not {status}")
            time.sleep(0.01)

    def until(self, condition: Callable[[], bool], timeout: float, poll: float = 0.1) -> bool:
        """Wait for a condition, or for so long; whether it holds, or what follows has to judge."""
        deadline = self.deadline(timeout)
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(poll)
        return True

    def stats(self, kind: str = "page-bitmap") -> Dict[str, int]:
        """The device's counters; none on a QEMU without them."""
        for path in ("", "/virtio-backend"):
            reply = self._vm.qmp("qom-get", path="/machine/peripheral/balloon0" + path,
                                 property=f"{kind}-stats")
            if "return" in reply:
                return {k: int(v) for k, v in reply["return"].items()}
        return {}

    def ask(self, timeout: float = 30, wait: bool = True) -> Dict[str, int]:
        """Ask for all unused pages; how the misc queue's counters rose by the answer.

        Who does not wait for it may ask while the driver is away.
        """
        deadline = self.deadline(timeout)
        # Or the counters rise by two answers, also by one that nobody wants any more.
        self.last_request(timeout)
        while (before := self.stats("misc-vq")).get("outstanding"):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: no answer: {before}")
            time.sleep(0.001)
        # The driver has only just started, or is about to.
        soon = ("not offered",) if wait else ("not offered", "no misc queue")
        self.begin_request("unused-pages", timeout, soon)
        if wait:
            self.last_request(timeout)
        return rose(before, self.stats("misc-vq"))

    def last_request(self, timeout: float = 30) -> Dict[str, Any]:
        """Wait for the end of what was asked for last, if anything was; what came of it."""
        deadline = self.deadline(timeout)
        while True:
            reply = self._vm.qmp("query-balloon-request")
            last: Dict[str, Any] = reply.get("return", {})
            if last.get("status") != "running":
                return last
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: no answer: {self.stats('misc-vq')}")
            time.sleep(0.001)

    def begin_request(self, kind: str, seconds: float = 60,
                      soon: Sequence[str] = ("not offered", "outstanding"), **more: Any) -> None:
        """Ask the balloon's driver for something; again when an error says that it can soon be."""
        deadline = self.deadline(seconds)
        while True:
            try:
                self.qmp("balloon-request", type=kind, **more)
                return
            except LabError as error:
                if not any(text in str(error) for text in soon) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def request(self, kind: str, seconds: float = 60, **more: Any) -> Dict[str, Any]:
        """Ask the balloon's driver for something, and wait; what came of it."""
        self.begin_request(kind, seconds, **more)
        return self.last_request(seconds)

    def actual(self) -> int:
        """Bytes of memory that the balloon leaves to the guest."""
        return int(self.qmp("query-balloon")["actual"]) - self._overhead

    def rss(self) -> int:
        """Bytes of guest memory, and of QEMU's own, that the host backs."""
        text = Path(f"/proc/{self.pid}/status").read_text("ascii")
        kinds = ("RssAnon", "RssShmem", "HugetlbPages")
        return sum(int(n) * KIB for kind, n in re.findall(r"(\w+):\s+(\d+) kB", text)
                   if kind in kinds)

    def peak_rss(self, again: bool = False) -> int:
        """The most that QEMU's RSS has been, in bytes; with again, from now on."""
        if again:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5", "ascii")
        text = Path(f"/proc/{self.pid}/status").read_text("ascii")
        return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) * KIB

    def faults(self) -> int:
        """Page faults of QEMU that needed no input, one for each piece backed."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rsplit(")", 1)[1]
        return int(fields.split()[7])

    def cpu_seconds(self) -> Dict[str, float]:
        """CPU time of QEMU: all of it, its main loop, its virtual CPUs."""
        tick = os.sysconf("SC_CLK_TCK")

        def seconds(path: Path) -> float:
            fields = path.read_text("ascii").rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / tick

        process = Path(f"/proc/{self.pid}")
        cpu = {"total": seconds(process / "stat"), "vcpu": 0.0,
               "main": seconds(process / f"task/{self.pid}/stat")}
        for task in (process / "task").iterdir():
            if (task / "comm").read_text("ascii").startswith("CPU "):
                cpu["vcpu"] += seconds(task / "stat")
        return cpu

    def set_target(self, size: int) -> None:
        """Ask for a size without waiting for it."""
        self.qmp("balloon", value=size + self._overhead)

    def balloon(self, size: int, timeout: float = 120,
                settle: float = 0, timed: bool = False) -> Move:
        """Bring the guest to a size.

        With settle, a size that stays the same for that many seconds will do.
        The time is good to 20 ms. With timed it is that of the last change's
        event: QEMU may hold that back for a second, but its time stamp is
        exact, and so there is no need to poll closely and disturb the guest.
        """
        timeout *= self._patience
        settle *= self._patience
        stats, cpu, rss = self.stats(), self.cpu_seconds(), self.rss()
        first = last = self.actual()
        self._vm.get_qmp_events(wait=False)
        begin = changed = time.monotonic()
        wall = time.time()
        self.set_target(size)
        while last != size:
            time.sleep(0.02)
            actual, now = self.actual(), time.monotonic()
            if actual != last:
                last, changed = actual, now
            elif settle and now - changed > settle:
                break
            if last != size and now - begin > timeout:
                raise LabError(f"{self.name}: balloon at {actual}, not {size}, "
                               f"after {timeout} s, see {self.console}")
        after, spent, backed = self.stats(), self.cpu_seconds(), self.rss()
        seconds, large = changed - begin, 0
        if timed and last != first:
            actual = last + self._overhead
            stamp = self.event("BALLOON_CHANGE", 5, {"data": {"actual": actual}})["timestamp"]
            seconds = stamp["seconds"] + stamp["microseconds"] / 1e6 - wall
            large = self.large_blocks()
        return Move(seconds, last, {k: spent[k] - cpu[k] for k in cpu},
                    rose(stats, after), backed - rss, large)

    def reset(self, timeout: float = BOOT_SECONDS) -> None:
        """Reset the machine, as its button does, and boot again."""
        self.qmp("set-action", reboot="reset")
        self._buffer = b""
        self.qmp("system_reset")
        self._boot(timeout)
        self.qmp("set-action", reboot="shutdown")

    def take_over(self, script: str, before: Callable[[], None] = lambda: None,
                  timeout: float = BOOT_SECONDS) -> None:
        """Run a script by which another kernel takes over; what to do before that has drivers."""
        self._buffer = b""
        self._send(script)
        self._boot(timeout, before)

    def migrate_to(self, target: Guest, capabilities: Sequence[str] = (),
                   parameters: Optional[Mapping[str, Any]] = None,
                   rounds: int = 1, during: Callable[[], None] = lambda: None,
                   timeout: float = 120, poll: float = 0.005,
                   stopped: bool = False, tcp: bool = False) -> Migration:
        """Migrate live to a guest made with incoming=True.

        With rounds, hardly any downtime is allowed before so many syncs of the log.
        With stopped, the guest does not run meanwhile, but goes on at the other end.
        """
        uri = "tcp:127.0.0.1:0" if tcp else f"unix:{target._dir}/migrate"
        caps = [{"capability": c, "state": True} for c in capabilities]
        sparse = {"capability": "sparse-ram", "state": self.sparse and target.sparse}
        for end in (self, target):
            end.qmp("migrate-set-capabilities",
                    capabilities=caps + [sparse] * (end.qemu == "qemu"))
            end.qmp("migrate-set-parameters", **(parameters or {}))
        if rounds > 1:
            self.qmp("migrate-set-parameters", **{"downtime-limit": 1})
        misc, rss, target_rss = self.stats("misc-vq"), self.rss(), target.rss()
        target.qmp("migrate-incoming", uri=uri)
        if tcp:
            address = target.qmp("query-migrate")["socket-address"][0]
            uri = f"tcp:{address['host']}:{address['port']}"
        if stopped:
            self.qmp("stop")
        self.qmp("migrate", uri=uri)
        deadline = self.deadline(timeout)
        while True:
            info: Dict[str, Any] = self.qmp("query-migrate")
            if info.get("status") == "completed":
                break
            if info.get("status") in ("failed", "cancelled"):
                raise LabError(f"{self.name}: migration {info['status']}: "
                               f"{info.get('error-desc', 'see ' + str(target.qemu_log))}")
            if time.monotonic() > deadline:
                raise NoEnd(f"{self.name}: no end of migration: {info}")
            if rounds > 1 and info.get("ram", {}).get("dirty-sync-count", 0) >= rounds:
                rounds = 1
                self.qmp("migrate-set-parameters", **{"downtime-limit": 2000})
            during()
            time.sleep(poll)
        if stopped:
            target.wait_status("paused")
            target.qmp("cont")
        target.wait_status("running")
        return Migration(info, rose(misc, self.stats("misc-vq")),
                         self.rss() - rss, target.rss() - target_rss)

    # The end.

    def check_console(self) -> None:
        """Raise if the guest's kernel complained, or QEMU about it."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if SPLAT.search(line) and not (self._expected and
                                           re.search(self._expected, line)):
                # All of it: the log may be on a machine that is gone.
                more = "\n".join(lines[number + 1:number + 40])
                raise LabError(f"'{line.strip()}' in {self.console}\n{more}")

    def _destroy(self) -> None:
        if self._agent:
            self._agent.close()
            self._agent = None
        if self._vm:
            try:
                self._vm.kill()
            except Exception as err:  # pylint: disable=broad-except
                print(f"# {self.name}: {err}", file=sys.stderr)
            self._vm = None
        shutil.rmtree(self._dir, ignore_errors=True)

    def _save_coverage(self) -> None:
        """Keep which lines ran, if the kernel counts that, and have QEMU write the same."""
        folder = os.environ.get("BALLOON_LAB_GCOV")
        if not folder:
            return
        try:
            if self.status() == "running":
                data = self.sh("""cd /sys/kernel/debug/gcov 2> /dev/null || exit 0
                    find . -name '*.gcda' | while read -r f; do
                        mkdir -p /tmp/gcov/${f%/*}; cat $f > /tmp/gcov/$f
                    done
                    tar -C /tmp/gcov -c . | base64""", 10)
                if data:
                    handle, _ = tempfile.mkstemp(suffix=".tar", dir=folder)
                    with open(handle, "wb") as archive:
                        archive.write(base64.b64decode(data))
            self._vm.shutdown()
        except Exception as err:  # pylint: disable=broad-except
            print(f"# {self.name}: {err}", file=sys.stderr)

    def close(self, status: Optional[int] = None) -> None:
        """End the guest, then judge its QEMU and its console.

        With status, its QEMU may have ended with that. While an exception is
        handled, faults are printed: what was raised first says more.
        """
        if not self._vm:
            return
        failing, ended = sys.exc_info()[1], self._vm.exitcode()
        if ended is None and not failing:
            self._save_coverage()
        self._destroy()
        try:
            if ended not in (None, status):
                raise LabError(f"{self.name}: QEMU had ended with {ended}, see {self.qemu_log}"
                               f" and {self.console}")
            self.check_console()
        except LabError as fault:
            if not failing:
                raise
            print(f"# {fault}", file=sys.stderr)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()


def boot(name: str, kernel: str = "guest", **more: Any) -> Guest:
    """A guest. Where its kernel is not ours it may have to be tried again.

    Debian's have been seen to die at boot once in some 50 times under TCG.
    """
    for again in ("-once-more", "-at-last"):
        try:
            return Guest(name, kernel=kernel, **more)
        except LabError as error:
            if not kernel.startswith(("guest-debian", "guest-module", "root-")):
                raise
            print(f"# once more: {error}")
            name += again
    return Guest(name, kernel=kernel, **more)
