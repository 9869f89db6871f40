# SPDX-License-Identifier: GPL-2.0
"""A guest that libvirt runs as the administrator's guide says, on two hosts that are one machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, List

import lab
from harness import BITMAP_BIT, MISC_BIT, Run, equal, features, require, test
from lab import GIB, KIB, MIB, PORT, Guest, LabError, Skip
from operator_tests import GUIDE

MEMORY = GIB
# What a host has for itself: elsewhere the daemon would find the machine's own.
PRIVATE = ("/etc/libvirt", "/var", "/run")
# Whom the daemon wants to know, though it is told to run QEMU as root
USER = {"passwd": "libvirt-qemu:x:64055:64055::/:/bin/false\n", "group": "libvirt-qemu:x:64055:\n"}
ENTER = f"""
hostname "$1.lab"
for path in {' '.join(PRIVATE)} {' '.join("/etc/" + name for name in USER)}; do
    mount --bind "$2$path" "$path"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf
"""
DAEMON = """
host_uuid = "{}"
auth_unix_rw = "none"
log_outputs = "2:stderr"
"""
DRIVER = """
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
DOMAIN = """
<domain type='{accel}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='b'>{memory}</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 loglevel=5 oops=panic panic=-1</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{qemu}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{console}' append='on'/></serial>
    <channel type='unix'>
      <source mode='bind' path='/run/lab'/>
      <target type='virtio' name='{port}'/>
    </channel>
    {balloon}
  </devices>
  <qemu:commandline>
    {firmware}
    {arguments}
  </qemu:commandline>
  {override}
</domain>
"""


def recipe(element: str) -> str:
    """An element of the guide's domain, as it stands there."""
    found = re.search(rf"(?s)<{element}[ >].*?</{element}>", GUIDE.read_text("utf-8"))
    require(found is not None, f"the guide has no {element}")
    assert found
    return found[0]


class Host:
    """A libvirtd of its own."""

    def __init__(self, name: str, logs: Path, folder: Path):
        self.name, self.folder = name, folder / name
        for dir_ in PRIVATE:
            (self.folder / dir_[1:]).mkdir(parents=True)
        etc = self.folder / "etc/libvirt"
        for file, line in USER.items():
            (self.folder / "etc" / file).write_text(Path("/etc", file).read_text("utf-8") + line,
                                                    "utf-8")
        (etc / "libvirtd.conf").write_text(DAEMON.format(uuid.uuid4()), "ascii")
        (etc / "qemu.conf").write_text(DRIVER, "ascii")
        self.socket = self.folder / "run/libvirt/libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self.log = logs / f"{name}.libvirtd"
        with open(self.log, "wb") as log:
            # pylint: disable=consider-using-with
            self.daemon = subprocess.Popen(
                ["unshare", "--mount", "--uts", "sh", "-ec", ENTER, "sh", name, self.folder],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})

    def virsh(self, *arguments: Any, timeout: float = 120) -> str:
        """What virsh prints, which must succeed."""
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *map(str, arguments)], text=True,
                              check=False, timeout=timeout, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C"})
        if done.returncode:
            raise LabError(f"{self.name}: virsh {' '.join(map(str, arguments))}: "
                           f"{done.stdout.strip()}, see {self.log}")
        return done.stdout

    def wait(self) -> None:
        """Wait for the daemon."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.virsh("uri")
                return
            except LabError:
                if self.daemon.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        """End the daemon."""
        self.daemon.terminate()
        try:
            self.daemon.wait(10)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()


class Domain(Guest):
    """A guest of libvirt's; where() says on which host it is now."""

    numbers = itertools.count(1)

    # pylint: disable=super-init-not-called
    def __init__(self, host: Host, logs: Path, kernel: str):
        qemu = lab.program(kernel, "qemu")
        self._prepare(f"domain{next(self.numbers)}", qemu, MEMORY, logs)
        self.qemu, self.arch = "qemu", lab.arch(kernel)
        self._overhead = lab.overhead(kernel, MEMORY)
        self._patience = lab.patience(kernel)
        path = logs / f"{self.name}.xml"
        firmware = [f"<qemu:arg value='{word}'/>" for folder in lab.FIRMWARE
                    for word in ("-L", folder)]
        image = lab.artifact(kernel)
        arguments = re.findall(r"<qemu:arg [^>]*>", recipe("qemu:commandline"))
        path.write_text(DOMAIN.format(
            accel="qemu" if lab.accelerator(kernel) == "tcg" else "kvm", name=self.name,
            memory=MEMORY + self._overhead, kernel=image / "bzImage",
            initrd=lab.initramfs(kernel), qemu=qemu, console=self.console, port=PORT,
            balloon=recipe("memballoon"), override=recipe("qemu:override"),
            firmware="\n    ".join(firmware), arguments="\n    ".join(arguments)), "utf-8")
        self.host = host
        host.virsh("define", path)
        host.virsh("start", self.name)
        self.where(host)
        self._boot(lab.BOOT_SECONDS)

    def where(self, host: Host) -> None:
        """The guest runs on this host now."""
        self.host = host
        if self._agent:
            self._agent.close()
        self._agent = socket.socket(socket.AF_UNIX)
        self._agent.connect(str(host.folder / "run/lab"))
        self.pid = int((host.folder / f"run/libvirt/qemu/{self.name}.pid").read_text("ascii"))

    def virsh(self, command: str, *arguments: Any) -> str:
        """What virsh says of the guest."""
        return self.host.virsh(command, self.name, *arguments)

    def qmp(self, command: str, **args: Any) -> Any:
        said = json.loads(self.virsh("qemu-monitor-command", json.dumps(
            {"execute": command, **({"arguments": args} if args else {})})))
        if "error" in said:
            raise LabError(f"{self.name}: {command}: {said['error']['desc']}")
        return said["return"]

    def stats(self, kind: str = "page-bitmap") -> Dict[str, int]:
        return {key: int(value) for key, value in self.qmp(
            "qom-get", path="/machine/peripheral/ua-balloon", property=f"{kind}-stats").items()}

    def memory_stats(self) -> Dict[str, int]:
        """virsh dommemstat, in bytes."""
        return {line.split()[0]: int(line.split()[1]) * KIB
                for line in self.virsh("dommemstat").splitlines()}

    def resize(self, size: int) -> None:
        """virsh setmem, until the guest has that size."""
        self.virsh("setmem", (size + self._overhead) // KIB, "--live")
        self.until(lambda: self.memory_stats()["actual"] == size + self._overhead, 60)
        equal("actual", self.memory_stats()["actual"] - self._overhead, size)

    def move(self, host: Host, *options: str) -> Dict[str, float]:
        """virsh migrate --live; what domjobinfo says of it, in bytes and ms."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        source = self.host
        self.virsh("migrate", "--live", "--persistent", "--undefinesource", *options,
                   host.uri, "--migrateuri", f"tcp://127.0.0.1:{port}")
        self.where(host)
        units = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "ms": 1}
        said = host.virsh("domjobinfo", self.name, "--completed")
        require("Completed" in said, f"{source.name}, {host.name}: {said}")
        return {key: float(number) * units[unit] for key, number, unit in
                re.findall(r"(?m)^([\w ]+):\s+([\d.]+) +(B|KiB|MiB|GiB|ms)", said)}

    def __enter__(self) -> Domain:
        return self

    def close(self, status: Any = None) -> None:
        with contextlib.suppress(LabError):
            self.host.virsh("destroy", self.name)
        self._destroy()
        # What was raised first says more.
        if sys.exc_info()[1] is None:
            self.check_console()


@contextlib.contextmanager
def hosts(run: Run) -> Iterator[List[Host]]:
    """Two of them."""
    if run.kernel in lab.ARCHS:
        raise Skip("the guide's domain is for x86-64")
    if os.geteuid():
        raise Skip("needs root, for file systems and a name of each host's own")
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [name for name in ("libvirtd", "virsh") if not shutil.which(name, path=path)]
    if missing:
        raise Skip(f"this machine has no {' and no '.join(missing)}")
    # Paths of sockets are to be short.
    folder = Path(tempfile.mkdtemp(prefix="balloon-lab-"))
    both: List[Host] = []
    try:
        for name in ("here", "there"):
            both.append(Host(name, run.logs, folder))
        for host in both:
            host.wait()
        yield both
    finally:
        for host in both:
            host.close()
        shutil.rmtree(folder, ignore_errors=True)


@test
def libvirt(run: Run) -> None:
    """two libvirtds and the guide's domain: setmem, dommemstat, migrate, managedsave, postcopy"""
    with hosts(run) as both, Domain(both[0], run.logs, run.kernel) as guest:
        here, there = both
        for bit in (BITMAP_BIT, MISC_BIT):
            equal(f"feature {bit}", features(guest)[bit], "1")
        # In crumbs, which free page reporting does not give back
        crumbs = guest.start("balloon_mem fragment 700M 32").wait_ready()
        before = guest.memory_stats()["rss"]
        guest.resize(MEMORY - 512 * MIB)
        require(guest.stats()["records"] > 0, "no records came")
        fell = before - guest.memory_stats()["rss"]
        require(fell > 448 * MIB, f"dommemstat says that rss fell by {fell // MIB} MiB")
        guest.resize(MEMORY)
        crumbs.kill()
        crumbs = guest.start("balloon_mem fragment 700M 32").wait_ready()
        job = guest.start("balloon_mem churn 64M").wait_ready()

        backed = guest.rss()
        moved = guest.move(there)
        sent = moved["Memory processed"]
        print(f"# migrate --live: {backed // MIB} MiB backed, {sent // MIB:.0f} sent, "
              f"{guest.rss() // MIB} at the target, {moved['Time elapsed']:.0f} ms")
        require(sent < backed / 2 and guest.rss() < backed / 2, f"{moved}")

        guest.virsh("managedsave")
        saved = there.folder / f"var/lib/libvirt/qemu/save/{guest.name}.save"
        print(f"# managedsave: {saved.stat().st_blocks // 2 // KIB} MiB")
        guest.virsh("start")
        guest.where(there)

        moved = guest.move(here, "--postcopy", "--postcopy-after-precopy")
        print(f"# migrate --postcopy: {moved['Memory processed'] // MIB:.0f} MiB sent, "
              f"{guest.rss() // MIB} at the target, {moved['Time elapsed']:.0f} ms")
        job.finish()
        crumbs.kill()
        guest.resize(MEMORY - 256 * MIB)
