/*
 * virtio-balloon: inflate and deflate by page bitmap
 *
 * With VIRTIO_BALLOON_F_PAGE_BITMAP the buffers on the inflate and deflate
 * queues are sequences of records, see struct balloon_bmap_hdr.
 *
 * A run is a range of guest-physical memory whose bits are all set; runs that
 * touch are joined, within one buffer.  A run becomes one discard (inflate) or
 * one hint that it will be used (deflate), or several where it crosses memory
 * sections.  Parts of a run that are not RAM are skipped.
 *
 * Work is done in slices.  A slice ends after a bounded amount of work, and
 * the next one runs from a bottom half, so that no message keeps the BQL for
 * long.  What is known of an unfinished buffer stays in BalloonBitmapQueue.
 * When the VM stops the buffer goes back to the ring, to be taken again from
 * its start: the guest was not told that it is done, and to discard twice is
 * harmless.  So there is nothing to migrate.
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
#include "hw/virtio/virtio-balloon.h"
#include "trace.h"

/* What one slice may do: RAM, work items, and time, which a host sets */
#define SLICE_BYTES     (64 * MiB)
#define SLICE_WORK      1024
#define SLICE_NS        (2 * SCALE_MS)
/*
 * Work items of a buffer, however little is in it.  Runs (per memory section)
 * and records, good or bad, are one each.
 */
#define MESSAGE_WORK    32

typedef struct BalloonSlice {
    int64_t bytes;
    int work;
    int64_t deadline;           /* of get_clock() */
    /*
     * Last look-up, good for [start, end), with a reference to mr.  No mr:
     * nothing is mapped there.
     */
    MemoryRegion *mr;
    hwaddr start;
    hwaddr end;
    hwaddr mr_offset;           /* of start */
} BalloonSlice;

static bool balloon_bitmap_negotiated(BalloonBitmap *b)
{
    return virtio_vdev_has_feature(b->vdev, VIRTIO_BALLOON_F_PAGE_BITMAP) &&
           virtio_vdev_has_feature(b->vdev, VIRTIO_F_VERSION_1);
}

static void balloon_slice_look_up(BalloonSlice *s, hwaddr addr)
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

void balloon_bitmap_discard(BalloonBitmap *b, RAMBlock *rb, ram_addr_t offset,
                            size_t length)
{
    trace_virtio_balloon_bitmap_discard(qemu_ram_get_idstr(rb), offset, length);
    b->stats.discards++;
    b->stats.discarded_bytes += length;
    /* Reports failure by itself; a page that stays is not fatal */
    ram_block_discard_range(rb, offset, length);
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
    hwaddr len;

    balloon_slice_look_up(s, q->run_start);
    len = MIN(q->run_end, s->end) - q->run_start;
    s->work--;

    if (!s->mr || !memory_region_is_ram(s->mr) ||
        memory_region_is_rom(s->mr) || memory_region_is_romd(s->mr)) {
        trace_virtio_balloon_bad_addr(q->run_start);
        b->stats.skipped_runs++;
    } else {
        RAMBlock *rb = s->mr->ram_block;
        ram_addr_t start = s->mr_offset + (q->run_start - s->start);
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
    q->run_start += len;
}

/* The next group of set bits begins the run, prolongs it, or completes it. */
static void balloon_bitmap_next_bits(BalloonBitmap *b, BalloonBitmapQueue *q)
{
    unsigned long first, last;
    hwaddr start;

    first = find_next_bit(q->bitmap, q->nr_bits, q->next_bit);
    if (first >= q->nr_bits) {
        q->next_bit = q->nr_bits;
        return;
    }
    start = (q->start_pfn + first) << q->page_shift;
    if (q->run_start == q->run_end) {
        b->stats.runs++;
        q->run_start = start;
    } else if (q->run_end != start) {
        q->run_complete = true;
        return;
    }
    last = find_next_zero_bit(q->bitmap, q->nr_bits, first);
    q->run_end = (q->start_pfn + last) << q->page_shift;
    q->next_bit = last;
}

/* Names what is wrong with a record, or returns NULL. */
static const char *balloon_bitmap_fault(const struct balloon_bmap_hdr *hdr,
                                        size_t room)
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
    if (hdr->cmd) {
        return "cmd";
    }
    if (shift < VIRTIO_BALLOON_PFN_SHIFT || shift > 30) {
        return "page_shift";
    }
    if (hdr->flag) {
        return "flag";
    }
    if (hdr->reserved) {
        return "reserved";
    }
    if (hdr->req_id) {
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

static void balloon_bitmap_bad_record(BalloonBitmap *b, const char *fault)
{
    trace_virtio_balloon_bitmap_bad_record(fault);
    b->stats.bad_records++;
    if (!b->warned) {
        b->warned = true;
        warn_report("virtio-balloon: bad page bitmap record ignored: %s "
                    "(further ones are only counted)", fault);
    }
}

/* Copies the next record in, so that the guest cannot change it any more. */
static void balloon_bitmap_next_record(BalloonBitmap *b, BalloonBitmapQueue *q)
{
    struct balloon_bmap_hdr hdr;
    VirtQueueElement *elem = q->elem;
    size_t room = q->size - q->offset;
    const char *fault;
    size_t len;
    unsigned long i;

    q->nr_bits = q->next_bit = 0;
    if (room < sizeof(hdr)) {
        balloon_bitmap_bad_record(b, "header is longer than the buffer");
        q->offset = q->size;
        return;
    }
    iov_to_buf(elem->out_sg, elem->out_num, q->offset, &hdr, sizeof(hdr));
    room -= sizeof(hdr);

    fault = balloon_bitmap_fault(&hdr, room);
    len = le64_to_cpu(hdr.bmap_len);
    if (fault) {
        balloon_bitmap_bad_record(b, fault);
        /* Where the next record begins only a sound length tells */
        if (len % 8 || len > VIRTIO_BALLOON_BMAP_MAX_LEN || len > room) {
            q->offset = q->size;
        } else {
            q->offset += sizeof(hdr) + len;
        }
        return;
    }

    q->start_pfn = le64_to_cpu(hdr.start_pfn);
    q->page_shift = le16_to_cpu(hdr.page_shift);
    trace_virtio_balloon_bitmap_record(q - b->queue, q->start_pfn,
                                       q->page_shift, len);
    b->stats.records++;
    iov_to_buf(elem->out_sg, elem->out_num, q->offset + sizeof(hdr),
               q->bitmap, len);
    for (i = 0; i < len / sizeof(long); i++) {
        q->bitmap[i] = leul_to_cpu(q->bitmap[i]);
    }
    q->nr_bits = len * BITS_PER_BYTE;
    q->offset += sizeof(hdr) + len;
}

void balloon_bitmap_count_message(BalloonBitmap *b, size_t bytes)
{
    b->stats.messages++;
    b->stats.bytes += bytes;
}

static bool balloon_bitmap_pop(BalloonBitmap *b, BalloonBitmapQueue *q,
                               VirtQueue *vq)
{
    q->elem = virtqueue_pop(vq, sizeof(*q->elem));
    if (!q->elem) {
        return false;
    }
    q->size = iov_size(q->elem->out_sg, q->elem->out_num);
    q->offset = 0;
    balloon_bitmap_count_message(b, q->size);
    if (q->size > VIRTIO_BALLOON_BMAP_MAX_MSG) {
        balloon_bitmap_bad_record(b, "buffer is too long");
        q->offset = q->size;
    }
    return true;
}

static bool balloon_slice_used_up(const BalloonSlice *s)
{
    return s->work <= 0 || s->bytes <= 0 || get_clock() >= s->deadline;
}

/* Returns false if the slice was used up first. */
static bool balloon_bitmap_drain(BalloonBitmap *b, unsigned int n,
                                 BalloonSlice *s)
{
    BalloonBitmapQueue *q = &b->queue[n];
    VirtQueue *vq = virtio_get_queue(b->vdev, n);

    for (;;) {
        /* What costs little is done even at the end of the slice. */
        if (q->elem && !q->run_complete) {
            if (q->next_bit < q->nr_bits) {
                balloon_bitmap_next_bits(b, q);
                continue;
            }
            if (q->offset == q->size && q->run_start != q->run_end) {
                q->run_complete = true;
                continue;
            }
            if (q->offset == q->size) {
                virtqueue_push(vq, q->elem, 0);
                virtio_notify(b->vdev, vq);
                g_free(q->elem);
                q->elem = NULL;
                continue;
            }
        }

        if (balloon_slice_used_up(s)) {
            return !q->elem && virtio_queue_empty(vq);
        }
        if (!q->elem) {
            if (!balloon_bitmap_pop(b, q, vq)) {
                return true;
            }
            s->work -= MESSAGE_WORK;
        } else if (q->run_complete) {
            balloon_bitmap_apply(b, q, s);
            q->run_complete = q->run_start != q->run_end;
        } else {
            balloon_bitmap_next_record(b, q);
            s->work--;
        }
    }
}

static void balloon_bitmap_schedule(BalloonBitmap *b)
{
    b->bh_scheduled = true;
    qemu_bh_schedule(b->bh);
}

static void balloon_bitmap_run_slice(BalloonBitmap *b)
{
    BalloonSlice s = {
        .bytes = SLICE_BYTES,
        .work = SLICE_WORK,
        .deadline = get_clock() + SLICE_NS,
    };
    unsigned int first = b->turn;

    /* A stopped VM's buffers are polled when it runs again. */
    if (!b->vdev->vm_running || b->vdev->broken) {
        return;
    }
    /* The queue that did not get its turn begins the next slice. */
    b->turn = !first;
    if (!balloon_bitmap_drain(b, first, &s) ||
        !balloon_bitmap_drain(b, !first, &s)) {
        trace_virtio_balloon_bitmap_continue(s.bytes, s.work);
        balloon_bitmap_schedule(b);
    }
    memory_region_unref(s.mr);
}

int64_t balloon_bitmap_begin(BalloonBitmap *b)
{
    b->stats.kicks++;
    return get_clock();
}

void balloon_bitmap_end(BalloonBitmap *b, int64_t begin)
{
    uint64_t held = get_clock() - begin;

    b->stats.busy_ns += held;
    b->stats.longest_hold_ns = MAX(b->stats.longest_hold_ns, held);
}

static void balloon_bitmap_bh(void *opaque)
{
    BalloonBitmap *b = opaque;
    int64_t begin = get_clock();

    b->bh_scheduled = false;
    b->stats.bh_calls++;
    balloon_bitmap_run_slice(b);
    balloon_bitmap_end(b, begin);
}

bool balloon_bitmap_handle(BalloonBitmap *b)
{
    if (!balloon_bitmap_negotiated(b)) {
        return false;
    }
    /* Notifications must not add to the slices that the guest gets. */
    if (!b->bh_scheduled) {
        balloon_bitmap_run_slice(b);
    }
    return true;
}

static void balloon_bitmap_give_back(BalloonBitmap *b, unsigned int n)
{
    BalloonBitmapQueue *q = &b->queue[n];

    if (q->elem) {
        virtqueue_unpop(virtio_get_queue(b->vdev, n), q->elem, 0);
        g_free(q->elem);
        q->elem = NULL;
    }
    q->nr_bits = q->next_bit = 0;
    q->run_start = q->run_end = 0;
    q->run_complete = false;
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
    if (!b->vdev->vm_running || !(status & VIRTIO_CONFIG_S_DRIVER_OK)) {
        balloon_bitmap_stop(b);
    } else if (balloon_bitmap_negotiated(b)) {
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
    if (!virtio_has_feature(VIRTIO_BALLOON(vdev)->host_features,
                            VIRTIO_BALLOON_F_PAGE_BITMAP)) {
        return;
    }
    b->bh = virtio_bh_new_guarded(DEVICE(vdev), balloon_bitmap_bh, b);
    for (i = 0; i < ARRAY_SIZE(b->queue); i++) {
        b->queue[i].bitmap = g_malloc(VIRTIO_BALLOON_BMAP_MAX_LEN);
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
        g_free(b->queue[i].bitmap);
        b->queue[i].bitmap = NULL;
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
}
