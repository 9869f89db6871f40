#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Keep the two patch series: Linux in patches/, QEMU in qemu/patches/.

A patch there is a complete mail whose diff touches existing files only. The
files that it adds live whole in the repository and are named by "Adds:"
trailers. The source tree under the build folder has one commit for each patch,
and links to our files.

  series.py inputs KIND   our files that are compiled
  series.py key KIND      a hash of all that is compiled
  series.py tree KIND     apply the patches to the source tree, link our files
  series.py export KIND   write the commits of the source tree back to patches/
  series.py mails KIND    compose the complete mails under the build folder
  series.py check KIND    the rules: claims, git am, byte-identical export, no copied lines
  series.py stat KIND     lines added to and removed from existing files
  series.py added KIND FILE   the numbers of the lines that the patches add to an existing file
"""
import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PATCHES = {"linux": TOP / "patches", "qemu": TOP / "qemu/patches"}
FILES = {"linux": TOP, "qemu": TOP / "qemu"}
# Directories of ours below which every file belongs to a patch.
OURS = {"linux": ("drivers", "mm", "include", "Documentation", "tools"),
        "qemu": ("hw", "include", "migration", "system", "tests", "docs")}
# Where lines of ours could have come from, and how many in a row are no accident.
NEAR = {"linux": ("drivers/virtio", "mm", "include/linux", "lib/kunit", "tools/testing/selftests"),
        "qemu": ("hw/virtio", "hw/misc", "include/hw/virtio", "migration", "system", "tests/qtest")}
ALIKE = 5
FORMAT = ["--zero-commit", "--no-signature", "--abbrev=12", "-n", "-M", "--stat=75",
          "--subject-prefix=PATCH"]


def die(text: str) -> None:
    sys.exit(f"series: {text}")


class Series:
    def __init__(self, kind: str, build: Path) -> None:
        self.kind = kind
        self.patches = PATCHES[kind]
        self.files = FILES[kind]
        self.build = build
        self.src = build / kind

    def git(self, *args: str, env: dict[str, str] | None = None,
            data: str | None = None, cwd: Path | None = None) -> str:
        run = subprocess.run(["git", *args], cwd=cwd or self.src, input=data, text=True,
                             capture_output=True, env={**os.environ, **(env or {})})
        if run.returncode:
            die(f"git {' '.join(args[:3])}: {run.stdout}{run.stderr}")
        return run.stdout.strip()

    def mails(self) -> list[Path]:
        return sorted(p for p in self.patches.glob("[0-9]*.patch") if not p.name.startswith("0000"))

    @staticmethod
    def adds(text: str) -> list[str]:
        return re.findall(r"^Adds: (\S+)$", text, re.M)

    def claims(self) -> dict[str, str]:
        """Our files, and the patch that brings each."""
        out: dict[str, str] = {}
        for mail in self.mails():
            for path in self.adds(mail.read_text()):
                if path in out:
                    die(f"{path} is claimed by {out[path]} and {mail.name}")
                out[path] = mail.name
        return out

    def inputs(self) -> list[str]:
        """Our files that change what is built: not what only runs, or is read."""
        return [str((self.files / p).relative_to(TOP)) for p in self.claims()
                if not p.startswith(("tools/testing", "Documentation"))]

    def key(self) -> str:
        """A hash of all that is built: our files and the diffs, not messages and documents."""
        key = hashlib.sha256()
        for path in self.inputs():
            key.update(path.encode() + b"\0" + (TOP / path).read_bytes())
        for mail in self.mails():
            for diff in mail.read_bytes().split(b"\ndiff --git ")[1:]:
                if not diff.startswith((b"a/Documentation/", b"a/docs/", b"a/MAINTAINERS")):
                    key.update(diff)
        return key.hexdigest()[:16]

    def commits(self) -> list[str]:
        return self.git("rev-list", "--reverse", "pristine..series").split()

    def stamp(self) -> Path:
        return self.src / ".git/balloon-series"

    def tree(self) -> None:
        mails = self.mails()
        want = subprocess.run(["sha256sum", *map(str, mails)], cwd=TOP, capture_output=True,
                              text=True, check=True).stdout
        stamp = self.stamp()
        old = stamp.read_text().split("\n", 1) if stamp.exists() else ["", ""]
        has = subprocess.run(["git", "rev-parse", "-q", "--verify", "series"], cwd=self.src,
                             capture_output=True, text=True).stdout.strip()
        if has and has != old[0]:
            die(f"{self.src} has commits that patches/ has not: make export, or delete the branch series")
        if not has or old[1] != want:
            if self.git("status", "--porcelain", "-uno"):
                die(f"{self.src} has uncommitted changes")
            self.git("checkout", "-q", "-B", "series", "pristine")
            if mails:
                try:
                    self.git("am", "-q", "--no-3way", "--committer-date-is-author-date",
                             *map(str, mails))
                except SystemExit:
                    self.git("am", "--abort")
                    self.git("checkout", "-q", "--detach", "pristine")
                    self.git("branch", "-q", "-D", "series")
                    raise
            stamp.write_text(self.git("rev-parse", "series") + "\n" + want)
        self.link()

    def link(self) -> None:
        for path in self.claims():
            self.link_one(path)

    def link_one(self, path: str) -> None:
        link, target = self.src / path, self.files / path
        if not target.exists():
            die(f"{path} is claimed, but does not exist")
        if link.is_symlink() and link.resolve() == target.resolve():
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def write_patches(self, tip: str, to: Path) -> None:
        self.git("format-patch", "-q", *FORMAT, "-o", str(to), f"pristine..{tip}")

    def export(self) -> None:
        if not self.commits():
            die(f"{self.src} has no commits")
        for mail in self.mails():
            mail.unlink()
        self.write_patches("series", self.patches)
        mails = self.mails()
        want = subprocess.run(["sha256sum", *map(str, mails)], cwd=TOP, capture_output=True,
                              text=True, check=True).stdout
        self.stamp().write_text(self.git("rev-parse", "series") + "\n" + want)

    def compose(self) -> str:
        """Commits with the added files in them; returns the last."""
        parent = before = self.git("rev-parse", "pristine")
        with tempfile.TemporaryDirectory() as tmp:
            env = {"GIT_INDEX_FILE": f"{tmp}/index"}
            self.git("read-tree", "pristine", env=env)
            for commit in self.commits():
                text = self.git("show", "-s", "--format=%B", commit)
                # To read the tree of each anew would take a second.
                change = self.git("diff-tree", "-r", "--no-renames", before, commit)
                index = [re.sub(r"^:\d+ (\d+) \w+ (\w+) \w+\t", r"\1 \2\t", line)
                         for line in change.splitlines()]
                for path in self.adds(text):
                    blob = self.git("hash-object", "-w", str(self.files / path))
                    mode = "100755" if os.access(self.files / path, os.X_OK) else "100644"
                    index.append(f"{mode} {blob}\t{path}")
                self.git("update-index", "--index-info", env=env, data="".join(f"{one}\n" for one in index))
                tree, before = self.git("write-tree", env=env), commit
                name, mail, date = self.git("show", "-s", "--format=%an%n%ae%n%aI", commit).split("\n")
                who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER")
                       for key, value in (("NAME", name), ("EMAIL", mail), ("DATE", date))}
                text = re.sub(r"^Adds: \S+\n", "", text + "\n", flags=re.M)
                parent = self.git("commit-tree", tree, "-p", parent, data=text, env=who)
        self.git("update-ref", "refs/heads/composed", parent)
        return parent

    def write_mails(self) -> Path:
        out = self.build / "mails" / self.kind
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        tip = self.compose()
        self.git("format-patch", "-q", *FORMAT, "-o", str(out), f"pristine..{tip}")
        cover = self.patches / "0000-cover-letter.patch"
        if cover.exists():
            stat = self.git("diff", "--stat=75", "--summary", "pristine", tip)
            (out / cover.name).write_text(cover.read_text().replace("@STAT@", stat.strip("\n")))
        return out

    @staticmethod
    def windows(text: str, sign: str = "") -> dict[tuple[str, ...], int]:
        """Every few lines in a row that say something, and where they begin."""
        lines = [(n, line[len(sign):].strip()) for n, line in enumerate(text.split("\n"), 1)
                 if line.startswith(sign) and not line.startswith("+++")]
        # Headers and names in a list are facts.
        lines = [(n, line) for n, line in lines if len(line) > 3 and not re.match(r"#include|\w+,$", line)]
        return {tuple(line for _, line in lines[i:i + ALIKE]): lines[i][0]
                for i in range(len(lines) - ALIKE + 1)}

    def copies(self) -> None:
        """No lines of the source in our files, nor in what patches add to its own."""
        ours = {window: f"{path}:{at}" for path in self.claims() if path.endswith((".c", ".h"))
                for window, at in self.windows((self.files / path).read_text()).items()}
        for mail in self.mails():
            text = mail.read_text()
            # A patch may move lines.
            moved = {line[1:].strip() for line in text.split("\n") if line.startswith("-")}
            ours.update((window, f"{mail.name}:{at}") for window, at in self.windows(text, "+").items()
                        if not moved.issuperset(window))
        changed = set(self.git("diff", "--no-renames", "--name-only", "pristine", "series").split())
        for top in NEAR[self.kind]:
            for name in self.git("ls-tree", "-r", "--name-only", "pristine", f"{top}/").split():
                if not name.endswith((".c", ".h")):
                    continue
                text = self.git("show", f"pristine:{name}") if name in changed else \
                    (self.src / name).read_text(errors="replace")
                for window, at in self.windows(text).items():
                    if window in ours:
                        die(f"{ours[window]} has the lines of {name}:{at}: {window}")

    def check(self) -> None:
        self.copies()
        claims = self.claims()
        for top in OURS[self.kind]:
            for path in (p for p in (self.files / top).rglob("*") if p.is_file()):
                rel = str(path.relative_to(self.files))
                ignored = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=TOP).returncode == 0
                if not ignored and rel not in claims:
                    die(f"{rel} is claimed by no patch")
        for commit in self.commits():
            new = self.git("show", "--format=", "--diff-filter=AC", "--name-only", commit)
            if new:
                die(f"a patch creates {new}: put the file into the repository and name it in Adds:")

        with tempfile.TemporaryDirectory(dir=self.build) as tmp:
            self.write_patches("series", Path(tmp))
            for mail in self.mails():
                again = Path(tmp) / mail.name
                if not again.exists() or again.read_bytes() != mail.read_bytes():
                    die(f"exporting the tree again changes {mail.name}")
            if len(list(Path(tmp).iterdir())) != len(self.mails()):
                die("exporting the tree again gives other patches")

            out = self.write_mails()
            where = Path(tmp) / "am"
            self.git("worktree", "add", "-q", "--detach", "--no-checkout", str(where), "pristine")
            try:
                # What the mails touch; all files would take a minute.
                files = self.git("diff", "--name-only", "--no-renames", "pristine", "composed")
                self.git("sparse-checkout", "set", "--no-cone",
                         *(f"/{name}" for name in files.splitlines()), cwd=where)
                self.git("checkout", "-q", "--detach", "pristine", cwd=where)
                mails = sorted(str(p) for p in out.iterdir() if not p.name.startswith("0000"))
                self.git("am", "-q", "--no-3way", *mails, cwd=where)
                if self.git("rev-parse", "HEAD^{tree}", cwd=where) != \
                        self.git("rev-parse", "composed^{tree}"):
                    die("git am of the composed mails gives another tree")
            finally:
                self.git("worktree", "remove", "--force", str(where))
        print(f"{self.kind}: {len(self.mails())} patches, {len(claims)} files of ours, "
              "git am applies, export is the same")

    def added(self, path: str) -> set[int]:
        """The lines of an existing file, by the name that it has now, that the patches add."""
        diff = self.git("diff", "-M", "-U0", "pristine", "series")
        part = diff.partition(f"+++ b/{path}\n")[2].partition("\ndiff --git")[0]
        out: set[int] = set()
        for first, count in re.findall(r"^@@ \S+ \+(\d+)(?:,(\d+))? @@", part, re.M):
            out.update(range(int(first), int(first) + int(count or 1)))
        return out

    def stat(self) -> None:
        print(self.git("diff", "-M", "--stat=90", "pristine", "series"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=TOP / "build")
    parser.add_argument("verb", choices=["inputs", "key", "tree", "export", "mails", "check", "stat",
                                         "added"])
    parser.add_argument("kind", choices=list(PATCHES))
    parser.add_argument("file", nargs="?", default="")
    args = parser.parse_args()
    series = Series(args.kind, args.build.resolve())
    if args.verb == "inputs":
        print("\n".join(series.inputs()))
    elif args.verb == "key":
        print(series.key())
    elif args.verb == "mails":
        print(series.write_mails())
    elif args.verb == "added":
        print("\n".join(map(str, sorted(series.added(args.file)))))
    else:
        getattr(series, args.verb)()


if __name__ == "__main__":
    main()
