/*
 * virtio-balloon: inflate and deflate by page bitmap
 *
 * With VIRTIO_BALLOON_F_PAGE_BITMAP the buffers on the inflate and deflate
 * queues are sequences of records, see struct balloon_bmap_hdr.  Without it
 * they are arrays of page frame numbers.
 *
 * A run is a range of guest-physical memory whose bits are all set; runs that
 * touch are joined, within one buffer.  A run becomes one discard (inflate) or
 * one hint that it will be used (deflate), or several where it crosses memory
 * sections.  Parts of a run that are not RAM are skipped.
 *
 * Work on either is done in slices.  A slice ends after a bounded amount of
 * work, and the next one runs from a bottom half, so that no message keeps the
 * BQL for long.  What is known of an unfinished buffer stays in
 * BalloonBitmapQueue.  When the VM stops the buffer goes back to the ring, to
 * be taken again from its start: the guest was not told that it is done, and
 * to discard twice is harmless.  So there is nothing to migrate.  Page numbers
 * as drivers send them are done before: a destination that knows of no slices
 * and has no ioeventfd would wait for a notification that has long been given.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/madvise.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "exec/address-spaces.h"
#include "exec/ramblock.h"
#include "hw/virtio/virtio-access.h"
#include "hw/virtio/virtio-balloon.h"
#include "trace.h"

/* What one slice may do; a host sets its time as well */
#define SLICE_BYTES     (64 * MiB)
#define SLICE_WORK      1024
/* What may still be done when the VM stops: 14 messages of 256 page numbers */
#define STOP_WORK       4096

static bool balloon_bitmap_negotiated(BalloonBitmap *b)
{
    return virtio_vdev_has_feature(b->vdev, VIRTIO_BALLOON_F_PAGE_BITMAP) &&
           virtio_vdev_has_feature(b->vdev, VIRTIO_F_VERSION_1);
}

void balloon_slice_look_up(BalloonSlice *s, hwaddr addr)
{
    MemoryRegionSection section;

    if (addr >= s->start && addr < s->end) {
        return;
    }
    memory_region_unref(s->mr);
    /* The first section that is not wholly below addr */
    section = memory_region_find(get_system_memory(), addr, UINT64_MAX - addr);
    s->start = addr;
    if (section.mr && section.offset_within_address_space == addr) {
        s->mr = section.mr;
        s->mr_offset = section.offset_within_region;
        s->end = addr + int128_get64(section.size);
        return;
    }
    s->mr = NULL;
    s->end = section.mr ? section.offset_within_address_space : UINT64_MAX;
    memory_region_unref(section.mr);
}

bool balloon_slice_is_ram(const BalloonSlice *s)
{
    return s->mr && memory_region_is_ram(s->mr) &&
           !memory_region_is_rom(s->mr) && !memory_region_is_romd(s->mr);
}

bool balloon_slice_used_up(const BalloonSlice *s)
{
    return s->work <= 0 || s->bytes <= 0 || get_clock() >= s->deadline;
}

void balloon_bitmap_discard(BalloonBitmap *b, RAMBlock *rb, ram_addr_t offset,
                            size_t length)
{
    if (!b->discard_failed) {
        trace_virtio_balloon_bitmap_discard(qemu_ram_get_idstr(rb), offset,
                                            length);
        /* Reports failure by itself: not for each page that a guest names */
        b->discard_failed = ram_block_discard_range(rb, offset, length);
    }
    if (b->discard_failed) {
        b->stats.kept_bytes += length;
        return;
    }
    b->stats.discards++;
    b->stats.discarded_bytes += length;
}

static void balloon_bitmap_inflate(BalloonBitmap *b, RAMBlock *rb,
                                   ram_addr_t start, ram_addr_t end)
{
    size_t page_size = qemu_ram_pagesize(rb);
    ram_addr_t first = QEMU_ALIGN_UP(start, page_size);
    ram_addr_t last = QEMU_ALIGN_DOWN(end, page_size);

    b->stats.inflated_pages += (end - start) >> VIRTIO_BALLOON_PFN_SHIFT;
    if (virtio_balloon_inhibited()) {
        return;
    }
    if (first >= last) {
        b->stats.partial_bytes += end - start;
        return;
    }
    b->stats.partial_bytes += (first - start) + (end - last);
    balloon_bitmap_discard(b, rb, first, last - first);
}

static void balloon_bitmap_deflate(BalloonBitmap *b, RAMBlock *rb,
                                   ram_addr_t start, ram_addr_t end)
{
    size_t page_size = qemu_ram_pagesize(rb);

    b->stats.deflated_pages += (end - start) >> VIRTIO_BALLOON_PFN_SHIFT;
    if (virtio_balloon_inhibited()) {
        return;
    }
    start = QEMU_ALIGN_DOWN(start, page_size);
    end = MIN(QEMU_ALIGN_UP(end, page_size), qemu_ram_get_max_length(rb));
    if (qemu_madvise((uint8_t *)qemu_ram_get_host_addr(rb) + start,
                     end - start, QEMU_MADV_WILLNEED)) {
        warn_report_once("virtio-balloon: cannot MADV_WILLNEED deflated "
                         "memory: %s", strerror(errno));
    }
}

/* Applies the run up to the end of the memory section or of the slice. */
static void balloon_bitmap_apply(BalloonBitmap *b, BalloonBitmapQueue *q,
                                 BalloonSlice *s)
{
    BalloonRecords *r = &q->records;
    hwaddr len;

    balloon_slice_look_up(s, r->run_start);
    len = MIN(r->run_end, s->end) - r->run_start;
    s->work--;

    if (!balloon_slice_is_ram(s)) {
        trace_virtio_balloon_bad_addr(r->run_start);
        b->stats.skipped_runs++;
    } else {
        RAMBlock *rb = s->mr->ram_block;
        ram_addr_t start = s->mr_offset + (r->run_start - s->start);
        ram_addr_t stop;

        /* Cut between backing pages only: half of one cannot be discarded. */
        stop = QEMU_ALIGN_UP(start + s->bytes, qemu_ram_pagesize(rb));
        len = MIN(len, stop - start);
        s->bytes -= len;
        if (q == &b->queue[0]) {
            balloon_bitmap_inflate(b, rb, start, start + len);
        } else {
            balloon_bitmap_deflate(b, rb, start, start + len);
        }
    }
    r->run_start += len;
}

bool balloon_records_next_bits(BalloonRecords *r)
{
    unsigned long first, last;
    hwaddr start;
    bool begins = r->run_start == r->run_end;

    first = find_next_bit(r->bitmap, r->nr_bits, r->next_bit);
    if (first >= r->nr_bits) {
        r->next_bit = r->nr_bits;
        return false;
    }
    start = (r->start_pfn + first) << r->page_shift;
    if (begins) {
        r->run_start = start;
    } else if (r->run_end != start) {
        r->run_complete = true;
        return false;
    }
    last = find_next_zero_bit(r->bitmap, r->nr_bits, first);
    r->run_end = (r->start_pfn + last) << r->page_shift;
    r->next_bit = last;
    return begins;
}

/* Names what is wrong with a record, or returns NULL. */
static const char *balloon_records_fault(const struct balloon_bmap_hdr *hdr,
                                         size_t room, uint16_t flags,
                                         bool answers)
{
    uint16_t shift = le16_to_cpu(hdr->page_shift);
    uint64_t start = le64_to_cpu(hdr->start_pfn);
    uint64_t len = le64_to_cpu(hdr->bmap_len);

    if (len % 8 || len > VIRTIO_BALLOON_BMAP_MAX_LEN) {
        return "bmap_len";
    }
    if (len > room) {
        return "bitmap is longer than the buffer";
    }
    if (hdr->cmd && !answers) {
        return "cmd";
    }
    if (shift < VIRTIO_BALLOON_PFN_SHIFT || shift > 30) {
        return "page_shift";
    }
    if (le16_to_cpu(hdr->flag) & ~flags) {
        return "flag";
    }
    if (hdr->reserved) {
        return "reserved";
    }
    if (hdr->req_id && !answers) {
        return "req_id";
    }
    if (start % 64) {
        return "start_pfn";
    }
    if (start > (UINT64_MAX >> shift) - len * 8) {
        return "address overflow";
    }
    return NULL;
}

const char *balloon_records_next(BalloonRecords *r, VirtQueueElement *elem,
                                 struct balloon_bmap_hdr *hdr, uint16_t flags,
                                 bool answers)
{
    size_t room = r->size - r->offset;
    const char *fault;
    uint64_t len;
    unsigned long i;

    r->nr_bits = r->next_bit = 0;
    if (room < sizeof(*hdr)) {
        r->offset = r->size;
        return "header is longer than the buffer";
    }
    iov_to_buf(elem->out_sg, elem->out_num, r->offset, hdr, sizeof(*hdr));
    room -= sizeof(*hdr);

    fault = balloon_records_fault(hdr, room, flags, answers);
    len = le64_to_cpu(hdr->bmap_len);
    if (fault) {
        /* Where the next record begins only a sound length tells */
        if (len % 8 || len > VIRTIO_BALLOON_BMAP_MAX_LEN || len > room) {
            r->offset = r->size;
        } else {
            r->offset += sizeof(*hdr) + len;
        }
        return fault;
    }

    r->start_pfn = le64_to_cpu(hdr->start_pfn);
    r->page_shift = le16_to_cpu(hdr->page_shift);
    iov_to_buf(elem->out_sg, elem->out_num, r->offset + sizeof(*hdr),
               r->bitmap, len);
    for (i = 0; i < len / sizeof(long); i++) {
        r->bitmap[i] = leul_to_cpu(r->bitmap[i]);
    }
    r->nr_bits = len * BITS_PER_BYTE;
    r->offset += sizeof(*hdr) + len;
    return NULL;
}

void balloon_records_drop(BalloonRecords *r)
{
    r->nr_bits = r->next_bit = 0;
    r->run_start = r->run_end = 0;
    r->run_complete = false;
}

void balloon_records_warn(VirtIODevice *vdev, const char *fault)
{
    BalloonBitmap *b = &VIRTIO_BALLOON(vdev)->bitmap;

    if (!b->warned) {
        b->warned = true;
        warn_report("virtio-balloon: bad page bitmap record ignored: %s "
                    "(further ones are only counted)", fault);
    }
}

static void balloon_bitmap_bad_record(BalloonBitmap *b, const char *fault)
{
    trace_virtio_balloon_bitmap_bad_record(fault);
    b->stats.bad_records++;
    balloon_records_warn(b->vdev, fault);
}

static void balloon_bitmap_next_record(BalloonBitmap *b, BalloonBitmapQueue *q)
{
    BalloonRecords *r = &q->records;
    struct balloon_bmap_hdr hdr;
    const char *fault = balloon_records_next(r, q->elem, &hdr, 0, false);

    if (fault) {
        balloon_bitmap_bad_record(b, fault);
        return;
    }
    trace_virtio_balloon_bitmap_record(q - b->queue, r->start_pfn,
                                       r->page_shift,
                                       r->nr_bits / BITS_PER_BYTE);
    b->stats.records++;
}

/* Does what costs little; returns whether that was the last of the buffer. */
static bool balloon_bitmap_done(BalloonBitmap *b, BalloonBitmapQueue *q)
{
    BalloonRecords *r = &q->records;

    while (!r->run_complete && r->next_bit < r->nr_bits) {
        b->stats.runs += balloon_records_next_bits(r);
    }
    if (r->run_complete || r->offset < r->size) {
        return false;
    }
    r->run_complete = r->run_start != r->run_end;
    return !r->run_complete;
}

static void balloon_bitmap_work(BalloonBitmap *b, BalloonBitmapQueue *q,
                                BalloonSlice *s)
{
    BalloonRecords *r = &q->records;

    if (r->run_complete) {
        balloon_bitmap_apply(b, q, s);
        r->run_complete = r->run_start != r->run_end;
    } else {
        balloon_bitmap_next_record(b, q);
        s->work--;
    }
}

static bool balloon_pfn_done(const BalloonRecords *r)
{
    return r->size - r->offset < sizeof(uint32_t);
}

static void balloon_pfn_work(BalloonBitmap *b, BalloonBitmapQueue *q,
                             VirtQueue *vq, BalloonSlice *s)
{
    BalloonRecords *r = &q->records;
    uint32_t pfn;
    hwaddr addr;

    iov_to_buf(q->elem->out_sg, q->elem->out_num, r->offset, &pfn, sizeof(pfn));
    r->offset += sizeof(pfn);
    addr = (hwaddr)virtio_ldl_p(b->vdev, &pfn) << VIRTIO_BALLOON_PFN_SHIFT;

    balloon_slice_look_up(s, addr);
    s->work--;
    if (!balloon_slice_is_ram(s)) {
        trace_virtio_balloon_bad_addr(addr);
        return;
    }
    s->bytes -= 1 << VIRTIO_BALLOON_PFN_SHIFT;
    trace_virtio_balloon_handle_output(memory_region_name(s->mr), addr);
    if (!virtio_balloon_inhibited()) {
        virtio_balloon_handle_page(VIRTIO_BALLOON(b->vdev), vq, s->mr,
                                   s->mr_offset + (addr - s->start));
    }
}

static bool balloon_bitmap_pop(BalloonBitmap *b, BalloonBitmapQueue *q,
                               VirtQueue *vq, bool bitmaps)
{
    BalloonRecords *r = &q->records;

    q->elem = virtqueue_pop(vq, sizeof(*q->elem));
    if (!q->elem) {
        return false;
    }
    r->size = iov_size(q->elem->out_sg, q->elem->out_num);
    r->offset = 0;
    b->stats.messages++;
    b->stats.bytes += r->size;
    if (bitmaps && r->size > VIRTIO_BALLOON_BMAP_MAX_MSG) {
        balloon_bitmap_bad_record(b, "buffer is too long");
        r->offset = r->size;
    }
    return true;
}

static void balloon_bitmap_push(BalloonBitmap *b, BalloonBitmapQueue *q,
                                VirtQueue *vq)
{
    virtqueue_push(vq, q->elem, 0);
    g_free(q->elem);
    q->elem = NULL;
    virtio_balloon_end_pages(VIRTIO_BALLOON(b->vdev), vq);
    virtio_notify(b->vdev, vq);
}

/* Returns false if the slice was used up first. */
static bool balloon_bitmap_drain(BalloonBitmap *b, unsigned int n,
                                 BalloonSlice *s)
{
    BalloonBitmapQueue *q = &b->queue[n];
    VirtQueue *vq = virtio_get_queue(b->vdev, n);
    bool bitmaps = balloon_bitmap_negotiated(b);

    for (;;) {
        if (q->elem && (bitmaps ? balloon_bitmap_done(b, q) :
                                  balloon_pfn_done(&q->records))) {
            balloon_bitmap_push(b, q, vq);
            continue;
        }
        if (balloon_slice_used_up(s)) {
            return !q->elem && virtio_queue_empty(vq);
        }
        if (!q->elem) {
            if (!balloon_bitmap_pop(b, q, vq, bitmaps)) {
                return true;
            }
            s->work -= BALLOON_MESSAGE_WORK;
        } else if (bitmaps) {
            balloon_bitmap_work(b, q, s);
        } else {
            balloon_pfn_work(b, q, vq, s);
        }
    }
}

static void balloon_bitmap_schedule(BalloonBitmap *b)
{
    b->bh_scheduled = true;
    qemu_bh_schedule(b->bh);
}

/* Returns false if the slice was used up first. */
static bool balloon_bitmap_slice(BalloonBitmap *b, BalloonSlice *s)
{
    int64_t begin = get_clock();
    unsigned int first = b->turn;
    uint64_t held;
    bool done;

    /* The queue that did not get its turn begins the next slice. */
    b->turn = !first;
    done = balloon_bitmap_drain(b, first, s) &&
           balloon_bitmap_drain(b, !first, s);
    memory_region_unref(s->mr);

    held = get_clock() - begin;
    b->stats.busy_ns += held;
    b->stats.longest_hold_ns = MAX(b->stats.longest_hold_ns, held);
    return done;
}

static void balloon_bitmap_run_slice(BalloonBitmap *b)
{
    BalloonSlice s = {
        .bytes = SLICE_BYTES,
        .work = SLICE_WORK,
        .deadline = get_clock() + BALLOON_SLICE_NS,
    };

    /* A stopped VM's buffers are polled when it runs again. */
    if (!b->vdev->vm_running || b->vdev->broken) {
        return;
    }
    if (!balloon_bitmap_slice(b, &s)) {
        trace_virtio_balloon_bitmap_continue(s.bytes, s.work);
        balloon_bitmap_schedule(b);
    }
}

static void balloon_bitmap_bh(void *opaque)
{
    BalloonBitmap *b = opaque;

    b->bh_scheduled = false;
    b->stats.bh_calls++;
    balloon_bitmap_run_slice(b);
}

void balloon_bitmap_handle(BalloonBitmap *b)
{
    b->stats.kicks++;
    if (!b->vdev->vm_running) {
        /* An eventfd that held it until the VM stops: set_status() follows */
        balloon_bitmap_schedule(b);
    } else if (!b->bh_scheduled) {
        /* Notifications must not add to the slices that the guest gets. */
        balloon_bitmap_run_slice(b);
    }
}

static void balloon_bitmap_give_back(BalloonBitmap *b, unsigned int n)
{
    BalloonBitmapQueue *q = &b->queue[n];
    VirtQueue *vq = virtio_get_queue(b->vdev, n);

    if (q->elem) {
        virtqueue_unpop(vq, q->elem, 0);
        g_free(q->elem);
        q->elem = NULL;
    }
    balloon_records_drop(&q->records);
    virtio_balloon_end_pages(VIRTIO_BALLOON(b->vdev), vq);
}

static void balloon_bitmap_stop(BalloonBitmap *b)
{
    if (b->bh) {
        qemu_bh_cancel(b->bh);
        b->bh_scheduled = false;
        balloon_bitmap_give_back(b, 0);
        balloon_bitmap_give_back(b, 1);
    }
}

void balloon_bitmap_set_status(BalloonBitmap *b, uint8_t status)
{
    if (!b->vdev->vm_running && b->bh_scheduled && !b->vdev->broken &&
        !balloon_bitmap_negotiated(b)) {
        balloon_bitmap_slice(b, &(BalloonSlice) {
            .bytes = INT64_MAX,
            .work = STOP_WORK,
            .deadline = INT64_MAX,
        });
    }
    /* A driver of before virtio 1.0 may begin before it is DRIVER_OK */
    if (!b->vdev->vm_running || !virtio_device_started(b->vdev, status)) {
        balloon_bitmap_stop(b);
    } else {
        /* Buffers that were given back have had their notification. */
        balloon_bitmap_schedule(b);
    }
}

void balloon_bitmap_queue_reset(BalloonBitmap *b, uint32_t index)
{
    if (index < ARRAY_SIZE(b->queue)) {
        balloon_bitmap_give_back(b, index);
    }
}

void balloon_bitmap_reset(BalloonBitmap *b)
{
    balloon_bitmap_stop(b);
    b->discard_failed = false;
    b->stats.longest_hold_ns = 0;
}

bool balloon_bitmap_check(BalloonBitmap *b, Error **errp)
{
    if (!is_power_of_2(b->queue_size) || b->queue_size > VIRTQUEUE_MAX_SIZE) {
        error_setg(errp, "x-queue-size must be a power of 2 from 1 to %d",
                   VIRTQUEUE_MAX_SIZE);
        return false;
    }
    return true;
}

void balloon_bitmap_realize(BalloonBitmap *b, VirtIODevice *vdev)
{
    int i;

    b->vdev = vdev;
    b->bh = virtio_bh_new_guarded(DEVICE(vdev), balloon_bitmap_bh, b);
    if (!virtio_has_feature(VIRTIO_BALLOON(vdev)->host_features,
                            VIRTIO_BALLOON_F_PAGE_BITMAP)) {
        return;
    }
    for (i = 0; i < ARRAY_SIZE(b->queue); i++) {
        b->queue[i].records.bitmap = g_malloc(VIRTIO_BALLOON_BMAP_MAX_LEN);
    }
}

void balloon_bitmap_unrealize(BalloonBitmap *b)
{
    int i;

    balloon_bitmap_stop(b);
    if (b->bh) {
        qemu_bh_delete(b->bh);
        b->bh = NULL;
    }
    for (i = 0; i < ARRAY_SIZE(b->queue); i++) {
        g_free(b->queue[i].records.bitmap);
        b->queue[i].records.bitmap = NULL;
    }
}

static void balloon_bitmap_get_stats(Object *obj, Visitor *v, const char *name,
                                     void *opaque, Error **errp)
{
    BalloonBitmapStats *s = opaque;
    const struct {
        const char *name;
        uint64_t *value;
    } all[] = {
        { "kicks", &s->kicks },
        { "messages", &s->messages },
        { "bytes", &s->bytes },
        { "records", &s->records },
        { "bad-records", &s->bad_records },
        { "runs", &s->runs },
        { "skipped-runs", &s->skipped_runs },
        { "inflated-pages", &s->inflated_pages },
        { "deflated-pages", &s->deflated_pages },
        { "discards", &s->discards },
        { "discarded-bytes", &s->discarded_bytes },
        { "partial-bytes", &s->partial_bytes },
        { "kept-bytes", &s->kept_bytes },
        { "bh-calls", &s->bh_calls },
        { "longest-hold-ns", &s->longest_hold_ns },
        { "busy-ns", &s->busy_ns },
    };
    bool ok;
    int i;

    if (!visit_start_struct(v, name, NULL, 0, errp)) {
        return;
    }
    for (i = 0, ok = true; ok && i < ARRAY_SIZE(all); i++) {
        ok = visit_type_uint64(v, all[i].name, all[i].value, errp);
    }
    if (ok) {
        visit_check_struct(v, errp);
    }
    visit_end_struct(v, NULL);
}

void balloon_bitmap_instance_init(BalloonBitmap *b, Object *obj)
{
    object_property_add(obj, "page-bitmap-stats", "page bitmap statistics",
                        balloon_bitmap_get_stats, NULL, NULL, &b->stats);
    object_property_set_description(obj, "page-bitmap-stats",
        "What came of messages on the inflate and the deflate queue");
}
