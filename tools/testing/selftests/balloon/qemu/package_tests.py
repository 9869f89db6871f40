# SPDX-License-Identifier: GPL-2.0
"""Tests of the module for kernels as they are: its package in a Debian, installed, booted, removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, Set

import lab
from harness import BITMAP_BIT, FAST, MISC_BIT, Run, equal, features, near, require, variants
from lab import GIB, MIB, Guest, Skip, artifact

AGENT = """[Unit]
Description=The balloon lab's agent
[Service]
ExecStart=/usr/local/bin/balloon_init
[Install]
WantedBy=multi-user.target
"""
# What apt, dpkg and a running system write for themselves; and boots()
NOISE = ("/var/cache", "/var/lib/apt", "/var/log", "/tmp", "/run", "/var/tmp", "/etc/mtab",
         "/var/lib/systemd", "/root", "/etc/machine-id", "/etc/.updated",
         "/var/.updated", "/lost+found", "/usr/local/bin/", "/etc/systemd/system/")
PURGE = "DEBIAN_FRONTEND=noninteractive apt-get purge -qqy virtio-balloon-dkms"


def within(root: Path, script: str) -> str:
    """What a script prints that runs in a root file system, as root."""
    enter = ('mount -t proc none "$0/proc" && mount --rbind /dev "$0/dev" && '
             'mount -t sysfs none "$0/sys" && exec chroot "$0" /bin/sh -ec "$1"')
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child",
                           "sh", "-c", enter, root, script],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
    require(done.returncode == 0, f"'{script}' ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout


def files(root: Path) -> Set[str]:
    """The paths of a root file system."""
    found = subprocess.run(["find", ".", "-xdev", "-printf", "/%P\n"], cwd=root, text=True,
                           check=True, stdout=subprocess.PIPE).stdout.splitlines()
    return set(found)


def boots(root: Path) -> None:
    """Have a root file system start the lab's agent, and its driver in the initramfs."""
    tools = lab._tools("cc")    # pylint: disable=protected-access
    programs = root / "usr/local/bin"
    for name in ("balloon_init", "balloon_mem"):
        shutil.copy(tools / name, programs)
    # The driver is loaded by what the system has for that.
    (programs / "load_modules").write_text("#!/bin/sh\n", "ascii")
    (programs / "load_modules").chmod(stat.S_IRWXU)
    units = root / "etc/systemd/system"
    (units / "balloon-lab.service").write_text(AGENT, "ascii")
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "balloon-lab.service").symlink_to("../balloon-lab.service")
    with open(root / "etc/initramfs-tools/modules", "a", encoding="ascii") as file:
        file.write("virtio_balloon\n")


@contextlib.contextmanager
def installed(run: Run, suite: str, origin: Path) -> Iterator[Dict[str, Any]]:
    """What a guest must be told to boot a Debian with the package."""
    kernel, deb = f"root-{suite}", next(artifact("deb").glob("*.deb"))
    run.logs.mkdir(parents=True, exist_ok=True)
    root, disk = run.logs / "root", run.logs / "disk"
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", origin, root], check=True)
        boots(root)
        shutil.copy(deb, root / "root")
        within(root, f"apt-get install -qqy /root/{deb.name}")
        require(": installed" in within(root, "dkms status virtio-balloon"), "not installed by dkms")
        require("updates/dkms/virtio_balloon.ko" in within(root, "lsinitramfs /boot/initrd.img-*"),
                "the initramfs has another driver")
        boot = root / "boot"
        shutil.copy(next(boot.glob("vmlinuz-*")), run.logs / "kernel")
        shutil.copy(next(boot.glob("initrd.img-*")), run.logs / "initrd.img")
        subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", root, disk, "2G"], check=True)
        lab.FOUND[kernel] = str(run.logs)
        yield {"kernel": kernel, "append": "root=/dev/vda rw systemd.show_status=no",
               "drives": [f"if=none,id=disk0,format=raw,cache=unsafe,file.filename={disk},"
                          "file.locking=off"],
               "devices": ["virtio-blk-pci,drive=disk0,share-rw=on"],
               "memory": 2 * GIB, "balloon": {"misc-vq": "on"}}
    finally:
        shutil.rmtree(root, ignore_errors=True)
        disk.unlink(missing_ok=True)


def drives(guest: Guest, ours: bool) -> None:
    """The driver that is loaded is the one that modprobe finds: ours, or the kernel's own."""
    # Ours is out of tree.
    equal("driver is ours", "O" in guest.sh("cat /sys/module/virtio_balloon/taint"), ours)
    path = guest.sh("modinfo -F filename virtio_balloon").strip()
    where = "/updates/dkms/" if ours else "/kernel/drivers/virtio/"
    require(where in path, f"modprobe finds {path}")
    for bit in (BITMAP_BIT, MISC_BIT):
        equal(f"feature {bit}", features(guest)[bit], str(int(ours)))


@variants("bookworm", "trixie")
def package(run: Run, suite: str) -> None:
    """the package in Debian {}: DKMS, booted, balloon and migration, purged without a trace"""
    if os.geteuid():
        raise Skip("needs root, to install packages in a directory")
    origin = artifact(f"root-{suite}") / "root"
    with installed(run, suite, origin) as how, contextlib.ExitStack() as stack:
        source = stack.enter_context(run.guest(**how))
        drives(source, True)
        source.sh("balloon_mem touch 1200M", 120)
        near("the host has more", -source.balloon(GIB).rss, GIB, 128 * MIB)
        require(source.balloon(2 * GIB).stats["records"] > 0, "no records came")
        target = stack.enter_context(run.guest(incoming=True, **how))
        moved = source.migrate_to(target, parameters=FAST)
        require(moved.misc["unsent-pages"] > GIB // lab.PAGE, f"misc queue: {moved.misc}")
        source.close()

        target.sh(f"{PURGE}; modprobe -r virtio_balloon; modprobe virtio_balloon", 600)
        drives(target, False)
        target.balloon(2 * GIB - 256 * MIB)
        initrd = target.sh("lsinitramfs /boot/initrd.img-*", 60)
        require("kernel/drivers/virtio/virtio_balloon.ko" in initrd and "updates" not in initrd,
                "the initramfs has not the kernel's own driver")
        left = set(target.sh("find / -xdev -printf '/%P\\n'", 120).splitlines())
        equal("files that are left", {path for path in left - files(origin)
                                      if not path.startswith(NOISE)}, set())
