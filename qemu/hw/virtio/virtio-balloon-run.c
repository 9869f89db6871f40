/*
 * virtio-balloon: runs of page numbers
 *
 * Drivers name pages one by one, but mostly in order.  Numbers that follow
 * each other, up or down, make up a run.  A run is looked up and handled at a
 * stretch, or in parts where it crosses memory sections.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "exec/address-spaces.h"
#include "hw/virtio/virtio-access.h"
#include "hw/virtio/virtio-balloon-run.h"
#include "standard-headers/linux/virtio_balloon.h"

#define PAGE_BYTES  (1ull << VIRTIO_BALLOON_PFN_SHIFT)
#define STRETCH     (BALLOON_STRETCH / PAGE_BYTES)
/* As many numbers are copied at a time, out of the guest's reach */
#define BATCH       64

void balloon_section_forget(BalloonSection *s)
{
    memory_region_unref(s->mr);
    *s = (BalloonSection) { };
}

void balloon_section_look_up(BalloonSection *s, hwaddr addr)
{
    MemoryRegionSection section;

    if (addr >= s->start && addr < s->end) {
        return;
    }
    balloon_section_forget(s);
    /* The first section that is not wholly below addr */
    section = memory_region_find(get_system_memory(), addr, UINT64_MAX - addr);
    s->start = addr;
    if (section.mr && section.offset_within_address_space == addr) {
        s->mr = section.mr;
        s->mr_offset = section.offset_within_region;
        s->end = addr + int128_get64(section.size);
        return;
    }
    s->end = section.mr ? section.offset_within_address_space : UINT64_MAX;
    memory_region_unref(section.mr);
}

bool balloon_section_is_ram(const BalloonSection *s)
{
    return s->mr && memory_region_is_ram(s->mr) &&
           !memory_region_is_rom(s->mr) && !memory_region_is_romd(s->mr);
}

size_t balloon_run_read(BalloonRun *run, VirtIODevice *vdev,
                        const VirtQueueElement *elem, size_t offset, size_t max)
{
    int64_t first = 0, last = 0, step = 0;
    uint32_t batch[BATCH];
    size_t nr, copied = 0;

    for (nr = 0; nr < max; nr++) {
        int64_t pfn;

        if (nr == copied) {
            copied += iov_to_buf(elem->out_sg, elem->out_num,
                                 offset + nr * sizeof(*batch), batch,
                                 sizeof(batch)) / sizeof(*batch);
            if (nr == copied) {
                break;
            }
        }
        pfn = (uint32_t)virtio_ldl_p(vdev, &batch[nr % BATCH]);
        if (nr == 0) {
            first = pfn;
        } else {
            if (nr == 1 && (pfn == last + 1 || pfn == last - 1)) {
                step = pfn - last;
            }
            if (!step || pfn != last + step ||
                pfn / STRETCH != last / STRETCH) {
                break;
            }
        }
        last = pfn;
    }
    if (nr) {
        run->down = step < 0;
        run->start = (hwaddr)MIN(first, last) << VIRTIO_BALLOON_PFN_SHIFT;
        run->end = run->start + nr * PAGE_BYTES;
    }
    return nr;
}

hwaddr balloon_run_part(const BalloonRun *run, hwaddr end)
{
    hwaddr len = MIN(run->end, end) - run->start;

    /* A page that the section has only a part of is handled by itself. */
    return MAX(QEMU_ALIGN_DOWN(len, PAGE_BYTES), PAGE_BYTES);
}
