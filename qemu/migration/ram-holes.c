/*
 * Live migration: holes of shared memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To look at a page of shared memory allocates it, if it is in a hole of the
 * file that is behind.  So who looks for pages of zeros backs all that the
 * guest has never touched, and all that a balloon or free page reporting gave
 * back.  Ask the file instead.
 *
 * That is done for tmpfs only, which is behind memfd, too: what is in memory
 * is all that there is, so the file knows of a page as soon as somebody has
 * touched it.  hugetlbfs does not say where it has holes, and in other file
 * systems to look at a hole takes page cache only.
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "exec/target_page.h"
#include "migration-stats.h"
#include "ram-holes.h"

#ifdef CONFIG_LINUX
#include <sys/vfs.h>
#include <linux/magic.h>

static bool ram_holes_can_tell(RAMBlock *rb)
{
    struct statfs fs;

    return qemu_ram_is_shared(rb) && rb->fd >= 0 &&
           !fstatfs(rb->fd, &fs) && fs.f_type == TMPFS_MAGIC;
}

static void ram_holes_look(RamHoles *h, ram_addr_t offset)
{
    ram_addr_t size = qemu_target_page_size();
    off_t base = h->rb->fd_offset;
    off_t data = lseek(h->rb->fd, base + offset, SEEK_DATA);
    off_t hole;

    if (data < 0) {
        /* Not even behind it */
        h->hole = errno == ENXIO;
    } else if (data - base >= offset + size) {
        h->hole = true;
        h->end = MIN(h->end, QEMU_ALIGN_DOWN(data - base, size));
    } else {
        hole = lseek(h->rb->fd, data, SEEK_HOLE);
        if (hole >= 0) {
            h->end = MIN(h->end, QEMU_ALIGN_UP(hole - base, size));
        }
    }
}
#else
static bool ram_holes_can_tell(RAMBlock *rb)
{
    return false;
}

static void ram_holes_look(RamHoles *h, ram_addr_t offset)
{
}
#endif

bool ram_holes_has(RamHoles *h, RAMBlock *rb, ram_addr_t offset)
{
    if (h->rb != rb || offset < h->start || offset >= h->end) {
        h->rb = rb;
        h->start = offset;
        h->end = rb->max_length;
        h->hole = false;
        if (ram_holes_can_tell(rb)) {
            ram_holes_look(h, offset);
        }
    }
    return h->hole;
}

bool ram_holes_has_to_send(RamHoles *h, RAMBlock *rb, ram_addr_t offset)
{
    uint64_t round = stat64_get(&mig_stats.dirty_sync_count);
    ram_addr_t chunk = (ram_addr_t)qemu_target_page_size()
                       << rb->clear_bmap_shift;

    /* With the next round begins a new log */
    if (h->round != round) {
        h->rb = NULL;
        h->round = round;
    }
    if (h->rb != rb || offset < h->start || offset >= h->end) {
        ram_holes_has(h, rb, offset);
        /* Behind this the log may not be cleared yet. */
        if (h->hole && rb->clear_bmap) {
            h->end = MIN(h->end, QEMU_ALIGN_DOWN(offset, chunk) + chunk);
        }
    }
    return h->hole;
}
