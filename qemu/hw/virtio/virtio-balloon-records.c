/*
 * virtio-balloon: messages that are records, each with a page bitmap
 *
 * A run is a range of guest-physical memory whose bits are all set; runs that
 * touch are joined, within one message.  It is applied in parts where it
 * crosses memory sections, or is too much for a slice of work.
 *
 * The guest is not trusted.  A record is copied before it is looked at; one
 * that is not legal is refused whole, and where the next one begins only a
 * sound length tells.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qapi/visitor.h"
#include "hw/virtio/virtio-balloon.h"
#include "trace.h"

/* Names what is wrong with a length, or returns NULL. */
static const char *balloon_records_len_fault(uint64_t len, size_t room)
{
    if (len % VIRTIO_BALLOON_BMAP_LEN_ALIGN ||
        len > VIRTIO_BALLOON_BMAP_MAX_LEN) {
        return "bmap_len";
    }
    if (len > room) {
        return "bitmap is longer than the buffer";
    }
    return NULL;
}

/* Names what is wrong with a record of a sound length, or returns NULL. */
static const char *
balloon_records_fault(const struct virtio_balloon_bmap_hdr *hdr, bool answers)
{
    uint16_t shift = le16_to_cpu(hdr->page_shift);
    uint16_t flag = le16_to_cpu(hdr->flag);
    uint64_t start = le64_to_cpu(hdr->start_pfn);
    uint64_t len = le64_to_cpu(hdr->bmap_len);

    if (hdr->cmd && !answers) {
        return "cmd";
    }
    if (shift < VIRTIO_BALLOON_BMAP_MIN_SHIFT ||
        shift > VIRTIO_BALLOON_BMAP_MAX_SHIFT) {
        return "page_shift";
    }
    if (answers ? flag > VIRTIO_BALLOON_BMAP_FLAG_ERROR : flag) {
        return "flag";
    }
    if (hdr->reserved) {
        return "reserved";
    }
    if (hdr->req_id && !answers) {
        return "req_id";
    }
    if (flag == VIRTIO_BALLOON_BMAP_FLAG_ERROR && len) {
        return "bitmap of an error";
    }
    if (answers && !len) {
        /* It may be a number */
        return NULL;
    }
    if (start % VIRTIO_BALLOON_BMAP_PFN_ALIGN) {
        return "start_pfn";
    }
    if (start > (UINT64_MAX >> shift) - len * BITS_PER_BYTE) {
        return "address overflow";
    }
    return NULL;
}

static void balloon_records_bad(BalloonRecords *r, const char *fault)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(r->vdev);

    trace_virtio_balloon_bad_record(fault);
    r->bad_records++;
    if (!s->records_warned) {
        s->records_warned = true;
        warn_report("virtio-balloon: bad page bitmap record ignored: %s "
                    "(further ones are only counted)", fault);
    }
}

/* Copies the next record in, if it is good and its bits count. */
static void balloon_records_next(BalloonRecords *r, BalloonQueue *q)
{
    size_t room = q->size - q->offset;
    struct virtio_balloon_bmap_hdr hdr;
    const char *fault;
    uint64_t len;
    unsigned long i;

    r->nr_bits = r->next_bit = 0;
    if (room < sizeof(hdr)) {
        q->offset = q->size;
        balloon_records_bad(r, "header is longer than the buffer");
        return;
    }
    iov_to_buf(q->elem->out_sg, q->elem->out_num, q->offset, &hdr, sizeof(hdr));
    len = le64_to_cpu(hdr.bmap_len);
    fault = balloon_records_len_fault(len, room - sizeof(hdr));
    if (fault) {
        q->offset = q->size;
        balloon_records_bad(r, fault);
        return;
    }
    q->offset += sizeof(hdr) + len;
    fault = balloon_records_fault(&hdr, r->ops->answers);
    if (fault) {
        balloon_records_bad(r, fault);
        return;
    }

    r->start_pfn = le64_to_cpu(hdr.start_pfn);
    r->page_shift = le16_to_cpu(hdr.page_shift);
    if (!r->ops->record(r, &hdr, &r->last)) {
        return;
    }
    r->records++;
    iov_to_buf(q->elem->out_sg, q->elem->out_num, q->offset - len, r->bitmap,
               len);
    for (i = 0; i < len / sizeof(long); i++) {
        r->bitmap[i] = leul_to_cpu(r->bitmap[i]);
    }
    r->nr_bits = len * BITS_PER_BYTE;
}

/* The next group of set bits begins the run, prolongs it, or completes it. */
static void balloon_records_next_bits(BalloonRecords *r)
{
    unsigned long first, last;
    hwaddr start;

    first = find_next_bit(r->bitmap, r->nr_bits, r->next_bit);
    if (first >= r->nr_bits) {
        r->next_bit = r->nr_bits;
        return;
    }
    start = (r->start_pfn + first) << r->page_shift;
    if (r->run_start == r->run_end) {
        r->run_start = start;
        r->runs++;
    } else if (r->run_end != start) {
        r->run_complete = true;
        return;
    }
    last = find_next_zero_bit(r->bitmap, r->nr_bits, first);
    r->run_end = (r->start_pfn + last) << r->page_shift;
    r->next_bit = last;
}

BalloonTaken balloon_records_take(BalloonQueue *q, VirtQueueElement *elem)
{
    if (q->size > VIRTIO_BALLOON_BMAP_MAX_MSG) {
        balloon_records_bad(q->opaque, "buffer is too long");
        q->offset = q->size;
    }
    return BALLOON_TAKEN_MESSAGE;
}

bool balloon_records_done(BalloonQueue *q)
{
    BalloonRecords *r = q->opaque;

    for (;;) {
        while (!r->run_complete && r->next_bit < r->nr_bits) {
            balloon_records_next_bits(r);
        }
        if (r->run_complete || (!r->last && q->offset < q->size)) {
            return false;
        }
        if (r->run_start != r->run_end) {
            r->run_complete = true;
            return false;
        }
        if (!r->last) {
            return true;
        }
        r->last = false;
        r->ops->last(r);
    }
}

void balloon_records_step(BalloonQueue *q, BalloonSlice *s)
{
    BalloonRecords *r = q->opaque;

    s->work--;
    if (!r->run_complete) {
        balloon_records_next(r, q);
        return;
    }
    balloon_section_look_up(&s->section, r->run_start);
    r->run_start += r->ops->run(r, s, r->run_start,
                                MIN(r->run_end, s->section.end) - r->run_start);
    r->run_complete = r->run_start != r->run_end;
}

void balloon_records_drop(BalloonRecords *r)
{
    r->nr_bits = r->next_bit = 0;
    r->run_start = r->run_end = 0;
    r->run_complete = false;
}

void balloon_records_end(BalloonQueue *q)
{
    BalloonRecords *r = q->opaque;

    balloon_records_drop(r);
    r->last = false;
}

void balloon_records_init(BalloonRecords *r, BalloonQueue *q,
                          const BalloonRecordsOps *ops)
{
    q->opaque = r;
    r->vdev = q->vdev;
    r->ops = ops;
    r->bitmap = g_malloc(VIRTIO_BALLOON_BMAP_MAX_LEN);
}

void balloon_records_free(BalloonRecords *r)
{
    g_free(r->bitmap);
    r->bitmap = NULL;
}

void balloon_visit_counters(Visitor *v, const char *name,
                            const BalloonCounter *all, size_t nr,
                            Error **errp)
{
    bool ok = true;
    size_t i;

    if (!visit_start_struct(v, name, NULL, 0, errp)) {
        return;
    }
    for (i = 0; ok && i < nr; i++) {
        uint64_t value = all[i].value;

        ok = visit_type_uint64(v, all[i].name, &value, errp);
    }
    if (ok) {
        visit_check_struct(v, errp);
    }
    visit_end_struct(v, NULL);
}
