/*
 * virtio-balloon: inflate and deflate by page bitmap
 *
 * With VIRTIO_BALLOON_F_PAGE_BITMAP the messages on the inflate and deflate
 * queues are sequences of records, see struct virtio_balloon_bmap_hdr.
 *
 * A run of set bits becomes a discard (inflate), or several where it is long or
 * crosses memory sections.  Parts of a run that are not RAM are skipped.  There
 * is nothing to do for what is deflated: the host backs it when it is used,
 * and to have a file read in advance would bring nothing but its holes.  A
 * message that the VM was stopped in is taken again from its start; to discard
 * twice is harmless.
 *
 * What can be discarded are pages of the backing memory.  So the driver is
 * told how large the largest of them are, or may be wanted to stay: the
 * granule.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "exec/ramblock.h"
#include "hw/virtio/virtio-balloon.h"
#include "trace.h"

bool balloon_inflate_negotiated(VirtIODevice *vdev)
{
    return virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_PAGE_BITMAP) &&
           virtio_vdev_has_feature(vdev, VIRTIO_F_VERSION_1);
}

ram_addr_t balloon_inflate_discard(VirtIOBalloon *s, RAMBlock *rb,
                                   ram_addr_t start, ram_addr_t end)
{
    size_t page_size = qemu_ram_pagesize(rb);
    ram_addr_t first = QEMU_ALIGN_UP(start, page_size);
    ram_addr_t last = QEMU_ALIGN_DOWN(end, page_size);

    if (virtio_balloon_inhibited()) {
        return 0;
    }
    if (first != start || last != end) {
        virtio_balloon_warn_partial(page_size);
    }
    if (first >= last) {
        s->inflate.partial_bytes += end - start;
        return 0;
    }
    s->inflate.partial_bytes += (first - start) + (end - last);
    balloon_discard(&s->discard, rb, first, last - first);
    return last - first;
}

/* Up to the end of the memory section, and not for long */
static hwaddr balloon_inflate_run(BalloonRecords *r, BalloonSlice *slice,
                                  hwaddr start, hwaddr len)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(r->vdev);
    ram_addr_t offset;
    size_t stretch;
    RAMBlock *rb;

    if (!balloon_section_is_ram(&slice->section)) {
        trace_virtio_balloon_bad_addr(start);
        r->skipped_runs++;
        return len;
    }
    rb = slice->section.mr->ram_block;
    offset = balloon_section_offset(&slice->section, start);
    /* Half of a backing page cannot be discarded. */
    stretch = MAX(BALLOON_STRETCH, qemu_ram_pagesize(rb));
    len = MIN(len, stretch - offset % stretch);
    slice->bytes -= len;
    if (r == &s->inflate.records[0]) {
        s->inflate.inflated_pages += len >> VIRTIO_BALLOON_PFN_SHIFT;
        balloon_inflate_discard(s, rb, offset, offset + len);
    } else {
        s->inflate.deflated_pages += len >> VIRTIO_BALLOON_PFN_SHIFT;
    }
    return len;
}

static bool balloon_inflate_record(BalloonRecords *r,
                                   const struct virtio_balloon_bmap_hdr *hdr,
                                   bool *last)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(r->vdev);

    trace_virtio_balloon_inflate_record(r - s->inflate.records, r->start_pfn,
                                        r->page_shift,
                                        le64_to_cpu(hdr->bmap_len));
    return true;
}

static const BalloonRecordsOps balloon_inflate_ops = {
    .record = balloon_inflate_record,
    .run = balloon_inflate_run,
};

const BalloonFormat balloon_inflate_format = {
    .take = balloon_records_take,
    .done = balloon_records_done,
    .step = balloon_records_step,
    .flush = balloon_discard_flush_queue,
    .end = balloon_records_end,
};

uint32_t balloon_inflate_granule_shift(VirtIODevice *vdev)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(vdev);

    return ctz64(MAX(s->inflate.granule, qemu_ram_pagesize_largest()));
}

bool balloon_inflate_check(VirtIODevice *vdev, Error **errp)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(vdev);
    uint64_t granule = s->inflate.granule;

    if (!granule) {
        return true;
    }
    if (!is_power_of_2(granule) ||
        granule < 1ull << VIRTIO_BALLOON_BMAP_MIN_SHIFT ||
        granule > 1ull << VIRTIO_BALLOON_BMAP_MAX_SHIFT) {
        error_setg(errp, "page-bitmap-granule must be a power of 2 from %llu"
                   " to %llu", 1ull << VIRTIO_BALLOON_BMAP_MIN_SHIFT,
                   1ull << VIRTIO_BALLOON_BMAP_MAX_SHIFT);
        return false;
    }
    if (!virtio_has_feature(s->host_features, VIRTIO_BALLOON_F_PAGE_BITMAP)) {
        error_setg(errp, "page-bitmap-granule needs page-bitmap=on");
        return false;
    }
    return true;
}

void balloon_inflate_realize(VirtIODevice *vdev)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(vdev);
    int i;

    if (!virtio_has_feature(s->host_features, VIRTIO_BALLOON_F_PAGE_BITMAP)) {
        return;
    }
    for (i = 0; i < ARRAY_SIZE(s->queue); i++) {
        balloon_records_init(&s->inflate.records[i], &s->queue[i],
                             &balloon_inflate_ops);
    }
}

void balloon_inflate_unrealize(VirtIODevice *vdev)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(vdev);
    int i;

    for (i = 0; i < ARRAY_SIZE(s->inflate.records); i++) {
        balloon_records_free(&s->inflate.records[i]);
    }
}

static void balloon_inflate_get_stats(Object *obj, Visitor *v,
                                      const char *name, void *opaque,
                                      Error **errp)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(obj);
    BalloonInflate *b = &s->inflate;
    BalloonRecords *r = b->records;
    const BalloonCounter all[] = {
        /* Those of page numbers are in these... */
        { "kicks", s->worker.kicks },
        { "messages", s->queue[0].messages + s->queue[1].messages },
        { "bytes", s->queue[0].bytes + s->queue[1].bytes },
        { "discards", s->discard.ranges },
        { "discard-calls", s->discard.calls },
        { "discarded-bytes", s->discard.bytes },
        { "kept-bytes", s->discard.kept_bytes },
        { "bh-calls", s->worker.bh_calls },
        { "longest-hold-ns", s->worker.longest_hold_ns },
        { "busy-ns", s->worker.busy_ns },
        /* ...and these are of records. */
        { "records", r[0].records + r[1].records },
        { "bad-records", r[0].bad_records + r[1].bad_records },
        { "runs", r[0].runs + r[1].runs },
        { "skipped-runs", r[0].skipped_runs + r[1].skipped_runs },
        { "inflated-pages", b->inflated_pages },
        { "deflated-pages", b->deflated_pages },
        { "partial-bytes", b->partial_bytes },
        /* What the balloon holds, as the driver says, and is to hold. */
        { "actual-pages", s->actual },
        { "target-pages", s->num_pages },
    };

    balloon_visit_counters(v, name, all, ARRAY_SIZE(all), errp);
}

void balloon_inflate_instance_init(Object *obj)
{
    object_property_add(obj, "page-bitmap-stats", "page bitmap statistics",
                        balloon_inflate_get_stats, NULL, NULL, NULL);
    object_property_set_description(obj, "page-bitmap-stats",
        "What came of messages on the inflate and the deflate queue");
}
