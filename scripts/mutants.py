#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Plant faults, one at a time, and see that the test that is named for each fails.

The faults are the defects that the patches of 2016 had, in today's code, and those of
QEMU that the series repairs. Each is put into a copy of the repository, which is built and tested by itself under
<build>/mutants; its first build is a full one. Results are TAP: "ok" says that
the fault was found.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("BUILD") or ROOT / "build").resolve() / "mutants"
REPO = WORK / "repo"
CACHE = Path(os.environ.get("CACHE") or Path.home() / ".cache/balloon")
LAB = "tools/testing/selftests/balloon/qemu"
sys.path.insert(0, str(ROOT / LAB))
from lab import artifact  # noqa: E402 pylint: disable=import-error, wrong-import-position

BITMAP = "drivers/virtio/virtio_balloon_bitmap.c"
MISC = "drivers/virtio/virtio_balloon_misc.c"
TAKE = "drivers/virtio/virtio_balloon_take.c"
COMPAT = "module/compat.c"
MODULE = "guest-module"
UNUSED = "qemu/migration/unused-pages.c"
RECORDS = "qemu/hw/virtio/virtio-balloon-records.c"


class Mutant(NamedTuple):
    """A fault: text that is replaced, once, the test that must fail, and what it then says."""

    name: str
    path: str
    old: str
    new: str
    test: str
    sign: str
    kernel: str = "guest"


MUTANTS = [
    Mutant("1 the last word of a bitmap is not sent", BITMAP,
           """	to = balloon_bitmap_put_record(to, cmd, req_id, seg->base + start * 64, words + start,
				       end - start);
	return""",
           """	to = balloon_bitmap_put_record(to, cmd, req_id, seg->base + start * 64, words + start,
				       end - start - 1);
	return""", "kunit", r"not ok \d+ balloon_record_"),
    Mutant("1 the host reads beyond the buffer", RECORDS,
           "    if (len > room) {", "    if (0) {",
           "qtest bad-records", "iov_to_buf_full: Assertion"),
    Mutant("2 a single page at the edge of a word is lost", "mm/page_bitmap.c",
           "	for (left = nr; left; word++, bit = 0) {",
           "	for (left = nr - !bit; left; word++, bit = 0) {",
           "kunit", r"not ok \d+ page_bitmap_single_page"),
    Mutant("3 pages are reported again", BITMAP,
           "out_reset:\n	page_bitmap_reset(pages);", "out_reset:",
           "kunit", r"not ok \d+ device_good"),
    Mutant("4 the balloon moves without its lock", "patches/*-inflate-and-deflate-by-page-bitmaps.patch",
           """+		mutex_lock(&vb->balloon_lock);
+		if (balloon_bitmap_inflate(&vb->bitmap, &piece)) {
+			vb->num_pages += num;
+			filled += num;
+		}
""",
           """+		if (balloon_bitmap_inflate(&vb->bitmap, &piece)) {
+			vb->num_pages += num;
+			filled += num;
+		}
+		mutex_lock(&vb->balloon_lock);
""", "debug", "WARNING: .*balloon", "guest-debug"),
    Mutant("5 unbounded work under the lock", "patches/*-inflate-and-deflate-by-page-bitmaps.patch",
           "+	balloon_take_init(&vb->take, vdev, BALLOON_BITMAP_CHUNK >> PAGE_SHIFT);",
           "+	balloon_take_init(&vb->take, vdev, SZ_1G >> PAGE_SHIFT);",
           "kunit", r"not ok \d+ device_chunks"),
    Mutant("6 pages are released twice", BITMAP,
           "	    balloon_bitmap_tell(bb, bb->deflate_vq, &pages, gfp) &&",
           "	    (balloon_bitmap_tell(bb, bb->deflate_vq, &pages, gfp),\n"
           "	     balloon_bitmap_tell(bb, bb->deflate_vq, &pages, gfp)) &&",
           "kunit", r"not ok \d+ device_good"),
    Mutant("7 a range that ends on the edge of a segment", "mm/page_bitmap.c",
           "	nr = min(nr, PAGE_BITMAP_SEG_PAGES - first);",
           "	nr = min(nr, PAGE_BITMAP_SEG_PAGES - first - 1) ?: 1;",
           "kunit", r"not ok \d+ page_bitmap_range"),
    Mutant("8 sleeping in the queue's callback", MISC,
           "		queue_work(system_unbound_wq, &misc->work);",
           "		balloon_misc_func(&misc->work);",
           "kunit", "BUG: .*(sleeping|scheduling)|Invalid wait context", "guest-debug"),
    Mutant("9 a message that cannot be sent is tried for ever", BITMAP,
           """GFP_NOWAIT)) == -ENOSPC &&
		       bb->inflight) {""",
           "GFP_NOWAIT))) {", "kunit", "self-detected stall on CPU"),
    Mutant("10 no end of waiting for a broken ring", BITMAP,
           "		if (virtqueue_is_broken(vq))\n			return -EIO;", "",
           "kunit", "no answer in time"),
    Mutant("10 a message longer than the ring", BITMAP,
           "		nr = min3(pages->nr_segs - done, virtqueue_get_vring_size(vq),\n"
           "			  (unsigned int)BALLOON_BITMAP_MSG_SEGS);",
           "		nr = min(pages->nr_segs - done, (unsigned int)BALLOON_BITMAP_MSG_SEGS);",
           "queue_size_1", r"WARNING: .*virtio_ring\.c"),
    Mutant("11 a field of an answer in another message", BITMAP,
           """	struct virtio_balloon_bmap_hdr *hdr = to;

""",
           """	struct virtio_balloon_bmap_hdr *hdr = to;
	static u64 last;

	last = req_id = req_id ?: last;
""", "kunit", r"not ok \d+ device_answers"),
    Mutant("12 the last pages of the range are lost", "mm/unused_pages.c",
           "	end_pfn = min(end_pfn, READ_ONCE(max_pfn));",
           "	end_pfn = round_down(min(end_pfn, READ_ONCE(max_pfn)), 8);",
           "kunit", r"not ok \d+ unused_"),
    Mutant("13 segments are never given back", "mm/page_bitmap.c",
           "	while (pb->nr_bufs > keep)", "	while (0 && pb->nr_bufs > keep)",
           "kunit", r"not ok \d+ page_bitmap_gives_memory_back"),
    Mutant("14 BUG() when a buffer cannot be added", MISC,
           "	if (err && !virtqueue_is_broken(misc->vq))",
           "	BUG_ON(err);\n	if (err && !virtqueue_is_broken(misc->vq))",
           "kunit", "Oops: invalid opcode"),
    Mutant("14 the queue's number is not looked at", MISC,
           "	declined &= GENMASK_ULL(VIRTIO_BALLOON_F_MISC_VQ - 1, 0) & ~no_queue;",
           "	declined &= no_queue & ~no_queue;", "misc_features", "the misc queue was negotiated"),
    Mutant("15 removal does not end an answer", MISC,
           "	cancel_work_sync(&misc->work);\n", "",
           "kunit", "KASAN: .*use-after-free", "guest-debug"),
    Mutant("16 a native-endian bitmap", "mm/page_bitmap.c",
           "words[word] |= cpu_to_le64(GENMASK_ULL(bit + n - 1, bit));",
           "words[word] |= GENMASK_ULL(bit + n - 1, bit);", "static sparse", r"page_bitmap\.c:\d+:\d+: warning"),
    Mutant("17 a scatterlist on the stack", BITMAP,
           "	struct page_bitmap *pages = &bb->pages;\n	unsigned int done = 0, i, nr;",
           "	struct page_bitmap *pages = &bb->pages;\n	struct scatterlist sg[33];\n"
           "	unsigned int done = 0, i, nr;\n\n	sg_init_table(sg, 33);\n"
           "	barrier_data(sg);", "static warnings", "frame size"),
    Mutant("who must have the place of a page is put off as compaction is", BITMAP,
           "	       (must || time_after_eq64(", "	       (time_after_eq64(",
           "contiguous", "write error: Cannot allocate memory|ended with 1"),
    Mutant("an answer that nobody wants goes on", MISC,
           "balloon_misc_unwanted(misc) ? -ECANCELED : misc->next(misc);", "misc->next(misc);",
           "kunit", r"not ok \d+ device_ends"),
    Mutant("trim: pages are put back before the device has used the message", MISC,
           "	misc->inflight = true;\n	if (end)",
           "	misc->inflight = true;\n	put_unused_pages(&misc->taken);\n	if (end)",
           "kunit", "a page that somebody may use is trimmed"),
    Mutant("trim: nothing is kept for others", "mm/spare_pages.c",
           "low_wmark_pages(zone) + (1UL << order)", "0",
           "kunit", r"not ok \d+ spare_watermark"),
    Mutant("take: the largest blocks go first", TAKE,
           "	for (o = from; o < to; o++) {\n		plan[o] =",
           "	for (o = to; o-- > from;) {\n		plan[o] =",
           "kunit", r"not ok \d+ take_best_fit"),
    Mutant("take: a size that is none is a granule", TAKE,
           "	if (shift <= PAGE_SHIFT || shift > 63)", "	if (shift <= PAGE_SHIFT)",
           "kunit", r"not ok \d+ take_granule_shift"),
    Mutant("take: pages that lie together go in two pieces", TAKE,
           "		if (here != range) {\n			end =", "		if (total) {\n			end =",
           "kunit", r"not ok \d+ take_cut"),
    Mutant("take: sorted by one digit", TAKE,
           "			more |= key >= ARRAY_SIZE(digits);", "			more |= false;",
           "kunit", r"not ok \d+ take_sort"),
    Mutant("take: the same target again is a new one", TAKE,
           "	if (target != take->target)\n		take->told", "		take->told",
           "kunit", r"not ok \d+ take_says_once"),
    # Of what is in the module, too, that is built in seconds.
    Mutant("take: the device's granule is not read", TAKE,
           "	take->granule = balloon_take_granule(shift);", "	take->granule = 0;",
           "granule_property", "large blocks fell by", MODULE),
    Mutant("take: pauses do not grow", TAKE,
           "	take->pause = clamp(2 * take->pause,", "	take->pause = clamp(take->pause,",
           "puffs_once", "lines that say that the target is out of reach: 0, not 1", MODULE),
    Mutant("take: nothing is reclaimed", TAKE,
           "		*dry = !balloon_page_reclaim();", "		*dry = true;",
           "swap", "actual: ", MODULE),
    Mutant("module: kswapd is not woken", COMPAT,
           "		page = alloc_pages(gfp | __GFP_KSWAPD_RECLAIM,", "		page = alloc_pages(gfp,",
           "swap", "actual: ", MODULE),
    Mutant("module: memory that came on line is not known", COMPAT,
           "	if (action == MEM_ONLINE)", "	if (0 && action == MEM_ONLINE)",
           "module_dimm", "pages of the DIMM reported", MODULE),
    Mutant("module: the notifier stays when the module goes", COMPAT,
           "	unregister_virtio_driver(driver);\n	unregister_memory_notifier(&balloon_compat_nb);",
           "	unregister_virtio_driver(driver);",
           "module_reload", "WARNING: .*notifier_chain_register", MODULE),
    Mutant("module: who must have a page's place is not seen", "module/compat.h",
           "#define is_migrate_isolate_page(page)	((void)(page), true)",
           "#define is_migrate_isolate_page(page)	((void)(page), false)",
           "module_dimm", "the DIMM stays|pages of the balloon moved", MODULE),
    Mutant("module: pages that are zeroed are gathered by the GiB", "module/compat.h",
           "(want_init_on_alloc(GFP_HIGHUSER) ? SZ_16M : 8ULL * SZ_1G)", "(8ULL * SZ_1G)",
           "init_on_alloc_guest_module", "the host had to back", MODULE),
    Mutant("qemu: dirty bits are taken from one RAM block, another is re-armed",
           "qemu/patches/*-physmem-re-arm-dirty-tracking-*.patch",
           "+            cpu_physical_memory_dirty_bits_cleared(start + rb->offset, length);",
           "+            cpu_physical_memory_dirty_bits_cleared(start, length);",
           "qtest tcg-dirty-log/second", "tlb_reset_dirty_range_all: Assertion"),
    Mutant("qemu: dirty bits that are not new are taken, and nothing is re-armed",
           "qemu/patches/*-physmem-re-arm-dirty-tracking-*.patch",
           "+        if (taken) {", "+        if (num_dirty) {",
           "qtest tcg-dirty-log/one", "tcg-dirty-log-test.c:.*assertion failed"),
    Mutant("qemu: what a CPU opened while bits were taken stays open",
           "qemu/patches/*-physmem-flush-TCG-*.patch",
           "+    tlb_flush(cpu);", "+    (void)cpu;",
           "qtest tcg-dirty-log/open", "tcg-dirty-log-test.c:.*assertion failed"),
    Mutant("qemu: a CPU looks up the old map's sections in the new one",
           "qemu/patches/*-physmem-let-each-CPU-*.patch",
           "+    return flatview_to_dispatch(cpuas->view);",
           "+    return address_space_to_dispatch(cpuas->as);",
           "qtest tcg-memory-map", "tcg-memory-map-test.c:.*assertion failed"),
    Mutant("qemu: a packed chain is gone back over by one descriptor",
           "qemu/patches/*-virtqueue_unpop-*.patch",
           "+        virtqueue_packed_rewind(vq, elem->ndescs);",
           "+        virtqueue_packed_rewind(vq, 1);",
           "qtest packed-give-back", "virtio-net-packed-test.c:.*assertion failed"),
    # Each under KVM, where it can be had, and under TCG with the late dirty log
    Mutant("migration: the dirty log is not armed", UNUSED,
           "            migration_clear_memory_region_dirty_bitmap_range(u->rb, page, 1);\n", "", "bare two_cpus", "wrong pages: [0-9]+, not 0"),
    Mutant("migration: the guest is asked before the dirty log is armed", UNUSED,
           """        if (unused_pages.arm < unused_pages.ahead) {
""", """        if (unused_pages.arm < unused_pages.ahead && answered) {
            return unused_pages_want() ? UNUSED_PAGES_MORE : UNUSED_PAGES_NOTHING;
        }
        if (unused_pages.arm < unused_pages.ahead) {
""", "bare two_cpus", "wrong pages: [0-9]+, not 0"),
    Mutant("migration: the destination need not agree", UNUSED,
           "    return migrate_sparse_ram() ? UNUSED_PAGES_READY :\n" + " " * 34
           + "UNUSED_PAGES_NO_CAPABILITY;", "    return UNUSED_PAGES_READY;",
           "qtest misc-migrate-not-asked", "misc-test.c:.*assertion failed"),
    Mutant("migration: an answer still counts after the next synchronisation", UNUSED,
           "    if (!unused_pages.asked) {", "    if (1) {",
           "bare late_answer", "wrong pages: [0-9]+, not 0"),
    Mutant("migration: a round that may be the last one is not waited for", UNUSED,
           "    while (*dirty_pages >= limit && step", "    while (0 && step",
           "qtest migrate-last-round", "test_migrate_last: assertion failed"),
    Mutant("migration: the destination has huge pages everywhere", "qemu/migration/sparse-ram.c",
           "QEMU_MADV_NOHUGEPAGE", "QEMU_MADV_HUGEPAGE",
           "bare little_in_use", r"True: [0-9]{9}"),
    Mutant("migration: windows go by guest address", UNUSED,
           "    g_array_sort(ranges, unused_pages_compare);", "    (void)unused_pages_compare;",
           "qtest migrate-numa", "wait_window: assertion failed"),
    Mutant("migration: to arm is not cut short", UNUSED,
           """        do {
            if (unused_pages_cancelled()) {
                break;
            }
""", "        do {\n", "qtest migrate-arming", "test_migrate_arming: assertion failed"),
    Mutant("migration: nothing is armed while an answer is awaited", UNUSED,
           "    if (answered) {\n        return unused_pages_fewer",
           "    if (answered || true) {\n        return answered && unused_pages_fewer",
           "qtest migrate-arming", "test_migrate_arming: assertion failed"),
    Mutant("migration: a hole is known beyond the log that was cleared for it",
           "qemu/migration/ram-holes.c",
           "        if (h->hole && rb->clear_bmap) {", "        if (0 && chunk) {",
           "qtest migrate-memfd-unasked", "holds 0x00 instead of"),
    Mutant("migration: a hole of the last round is one in the next",
           "qemu/migration/ram-holes.c",
           "        h->rb = NULL;\n        h->round", "        h->round",
           "qtest migrate-memfd-unasked", "holds 0x00 instead of"),
    Mutant("migration: what was written since is zero after a switch to postcopy", UNUSED,
           "    if (rb->left_out) {\n        bitmap_andnot", "    if (0) {\n        bitmap_andnot",
           "qtest migrate-postcopy", "holds 0x00 instead of 0x(11|22)"),
    Mutant("migration: nobody sends what was left out after a switch to postcopy", UNUSED,
           "    if (!rb->left_out) {\n        return 0;", "    if (1) {\n        return 0;",
           "qtest migrate-postcopy", "not ok .*migrate-postcopy"),
]


def environment() -> Dict[str, str]:
    """The copy builds in its own folder, from the same downloads."""
    cache = WORK / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "dl").exists():
        shutil.copytree(CACHE / "dl", cache / "dl", copy_function=os.link)
        (cache / "ccache").symlink_to(CACHE / "ccache")
    return {**os.environ, "BUILD": str(WORK / "build"), "CACHE": str(cache),
            "BALLOON_LAB_UAPI": str(artifact("uapi")),
            "BALLOON_LAB_QEMU": str(artifact("qemu")), "BALLOON_LAB_QTESTS": str(artifact("qtests"))}


def prepare(env: Dict[str, str]) -> None:
    """Bring the copy up to date, and build what the faults are put into."""
    # Anew, or what was renamed would be there twice.
    shutil.rmtree(REPO, ignore_errors=True)
    subprocess.run(["git", "-C", ROOT, "checkout-index", "-afq", f"--prefix={REPO}/"], check=True)
    names = subprocess.run(["git", "-C", ROOT, "diff", "--name-only"], check=True,
                           stdout=subprocess.PIPE, text=True).stdout.split()
    for name in names:
        shutil.copy(ROOT / name, REPO / name)
    subprocess.run(["git", "-C", REPO, "init", "-q"], check=True)
    subprocess.run(["git", "-C", REPO, "add", "-A"], check=True)
    subprocess.run(["scripts/build.sh", "tree"], cwd=REPO, env=env, check=True,
                   stdout=subprocess.DEVNULL)


def command(one: Mutant) -> List[str]:
    """The test that must fail."""
    kind, _, name = one.test.partition(" ")
    if kind == "static":
        return ["scripts/static.sh", name]
    if kind == "qtest":
        return ["scripts/qtest.sh", name]
    if kind == "bare":
        return ["python3", f"{LAB}/check.py", *(f"bare_{accel}_{name}" for accel in ("kvm", "tcg"))]
    return ["python3", f"{LAB}/check.py", "--kernel", one.kernel, one.test]


def found(one: Mutant, env: Dict[str, str], log: Path) -> bool:
    """Whether the test fails with the fault in place, and because of it."""
    path, = REPO.glob(one.path)
    text = path.read_text("utf-8")
    if text.count(one.old) != 1:
        raise SystemExit(f"mutants: '{one.name}' is there {text.count(one.old)} times")
    path.write_text(text.replace(one.old, one.new), "utf-8")
    try:
        with log.open("w", encoding="utf-8") as out:
            build = [] if one.test.startswith("static") else \
                ["qemu", "qtests"] if one.test.startswith("qtest") else \
                ["qemu"] if one.test.startswith("bare") else [one.kernel]
            if build:
                done = subprocess.run(["scripts/build.sh", *build], cwd=REPO, env=env,
                                      stdout=out, stderr=out, check=False)
                if done.returncode:
                    raise SystemExit(f"mutants: '{one.name}' does not build, see {log}")
            own = {k: v for k, v in env.items() if k not in ("BALLOON_LAB_QEMU", "BALLOON_LAB_QTESTS")}
            done = subprocess.run(command(one), cwd=REPO, stdout=out, stderr=out, check=False,
                                  env=own if "qemu" in build else env)
        said = log.read_text("utf-8", "replace")
        # Of two tests each has to say it, but for one that cannot run.
        passed = re.search(r"^ok (?!.*# SKIP)", said, re.M) and one.test.startswith("bare")
        return done.returncode != 0 and not passed and re.search(one.sign, said) is not None
    finally:
        path.write_text(text, "utf-8")
        for old in (WORK / "cache").glob("[gq]*-*"):
            shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """Go through the faults, print TAP."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("defect", nargs="*", help="numbers of defects, all by default")
    args = parser.parse_args()
    chosen = [one for one in MUTANTS if not args.defect or one.name.split()[0] in args.defect]
    env = environment()
    prepare(env)
    counts = {True: 0, False: 0}
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore
    print(f"TAP version 13\n1..{len(chosen)}")
    for number, one in enumerate(chosen, 1):
        begin, log = time.monotonic(), WORK / f"{number}.log"
        hit = found(one, env, log)
        counts[hit] += 1
        print(f"{'ok' if hit else 'not ok'} {number} {one.name}: {one.test}"
              + ("" if hit else f" # see {log}"))
        print(f"# {time.monotonic() - begin:.0f} s")
    print(f"{counts[True]} passed, {counts[False]} failed")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
