/*
 * virtio-balloon: runs of page numbers
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_RUN_H
#define QEMU_VIRTIO_BALLOON_RUN_H

#include "exec/memory.h"
#include "qemu/units.h"
#include "hw/virtio/virtio.h"

/*
 * No more than this is discarded at a stretch, and it is cut at multiples of
 * this, for the host may have made huge pages that are as large.
 */
#define BALLOON_STRETCH (2 * MiB)

/*
 * What lies at guest-physical [start, end), with a reference to mr.  No mr:
 * nothing is mapped there.  All zeros: nothing was looked up.
 */
typedef struct BalloonSection {
    MemoryRegion *mr;
    hwaddr mr_offset;           /* of start */
    hwaddr start;
    hwaddr end;
} BalloonSection;

/* After it the section is the one that addr is in. */
void balloon_section_look_up(BalloonSection *s, hwaddr addr);
void balloon_section_forget(BalloonSection *s);
/* Whether it is RAM that the guest can write to */
bool balloon_section_is_ram(const BalloonSection *s);

static inline hwaddr balloon_section_offset(const BalloonSection *s,
                                            hwaddr addr)
{
    return s->mr_offset + (addr - s->start);
}

/* Pages in guest-physical [start, end), named from the last to the first? */
typedef struct BalloonRun {
    hwaddr start;
    hwaddr end;
    bool down;
} BalloonRun;

/*
 * Reads the run of at most @max page numbers that begins @offset bytes into
 * the message; it ends at a multiple of BALLOON_STRETCH.  Returns how many
 * there are, 0 if the message ends there.
 */
size_t balloon_run_read(BalloonRun *run, VirtIODevice *vdev,
                        const VirtQueueElement *elem, size_t offset,
                        size_t max);
/* How much there is of its beginning up to @end, where a section ends */
hwaddr balloon_run_part(const BalloonRun *run, hwaddr end);

#endif
