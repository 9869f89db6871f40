/*
 * virtio-balloon: the misc queue, on which the device asks
 *
 * With VIRTIO_BALLOON_F_MISC_VQ the driver keeps one device-writable buffer
 * on the queue.  The device writes a request into it and gives it back; the
 * driver answers with messages of records, see struct virtio_balloon_bmap_hdr,
 * and offers the buffer for requests again behind the last of them.
 *
 * There is one request at a time.  Its id ends when the VM stops, and when
 * who asked has no use for the answer any more.  The driver is told so by
 * misc_ended_id in the config space, and should end the answer soon.  What
 * still comes of it is consumed, so that the driver gets its buffers back and
 * can be asked again, but does not count.
 *
 * When the VM is stopped the device holds no buffer.  So there is little to
 * migrate, the last id and whether an answer is outstanding: that it is not
 * wanted follows.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "exec/ramblock.h"
#include "hw/virtio/virtio-balloon.h"
#include "migration/vmstate.h"
#include "trace.h"

/*
 * Work here is to set bits, 2 MiB of them for 64 GiB, or to discard, 64 MiB: a
 * byte to be discarded counts as many.
 */
#define SLICE_BYTES     (64 * GiB)
#define DISCARD_WEIGHT  (SLICE_BYTES / (64 * MiB))
#define SLICE_WORK      16384

/*
 * How long it is tried to begin to reclaim for a migration, and how late the
 * last answer may be, in ms
 */
#define PREPARE_MS      500

/* What can be asked */
typedef struct BalloonMiscCommand {
    /* What the driver must offer for it */
    size_t len;
    /* Writes what follows the header of the request, or NULL */
    void (*fill)(const BalloonMiscRequest *req, void *payload);
    /*
     * A run of set bits, within RAM and the range that was asked for; NULL
     * where the answer is a number
     */
    void (*run)(BalloonMisc *m, RAMBlock *rb, ram_addr_t start,
                ram_addr_t length);
    /* For a slice of work a byte of a run counts as so many; 0: as one */
    unsigned int weight;
} BalloonMiscCommand;

static BalloonMisc *misc_of(VirtIODevice *vdev)
{
    return &VIRTIO_BALLOON(vdev)->misc;
}

static bool balloon_misc_offered(BalloonMisc *m)
{
    return m->worker.vdev;
}

static void balloon_misc_fill_range(const BalloonMiscRequest *req,
                                    void *payload)
{
    struct virtio_balloon_req_range *range = payload;

    range->start_pfn = cpu_to_le64(req->start >> VIRTIO_BALLOON_PFN_SHIFT);
    range->nr_pages = cpu_to_le64((req->end - req->start) >>
                                  VIRTIO_BALLOON_PFN_SHIFT);
    range->page_shift = cpu_to_le16(VIRTIO_BALLOON_PFN_SHIFT);
}

static void unused_pages_run(BalloonMisc *m, RAMBlock *rb, ram_addr_t start,
                             ram_addr_t length)
{
    m->reported_pages += length >> VIRTIO_BALLOON_PFN_SHIFT;
    m->request.number += length;
    if (m->request.migration) {
        unused_pages_report(&m->provider, rb, start, length);
    }
}

static void trim_run(BalloonMisc *m, RAMBlock *rb, ram_addr_t start,
                     ram_addr_t length)
{
    m->request.number += balloon_inflate_discard(
        VIRTIO_BALLOON(m->worker.vdev), rb, start, start + length);
}

static void reclaim_fill(const BalloonMiscRequest *req, void *payload)
{
    struct virtio_balloon_req_reclaim *reclaim = payload;

    reclaim->bytes = cpu_to_le64(req->bytes);
    reclaim->msecs = cpu_to_le32(req->msecs);
    reclaim->flags = cpu_to_le32(req->swap ? VIRTIO_BALLOON_REQ_RECLAIM_SWAP
                                           : 0);
}

static const BalloonMiscCommand commands[] = {
    [VIRTIO_BALLOON_REQ_UNUSED_PAGES] = {
        .len = sizeof(struct virtio_balloon_req_hdr) +
               sizeof(struct virtio_balloon_req_range),
        .fill = balloon_misc_fill_range,
        .run = unused_pages_run,
    },
    [VIRTIO_BALLOON_REQ_TRIM] = {
        .len = sizeof(struct virtio_balloon_req_hdr) +
               sizeof(struct virtio_balloon_req_range),
        .fill = balloon_misc_fill_range,
        .run = trim_run,
        .weight = DISCARD_WEIGHT,
    },
    [VIRTIO_BALLOON_REQ_RECLAIM] = {
        .len = sizeof(struct virtio_balloon_req_hdr) +
               sizeof(struct virtio_balloon_req_reclaim),
        .fill = reclaim_fill,
    },
    [VIRTIO_BALLOON_REQ_COMPACT] = {
        .len = sizeof(struct virtio_balloon_req_hdr),
    },
    [VIRTIO_BALLOON_REQ_SYNC] = {
        .len = sizeof(struct virtio_balloon_req_hdr),
    },
};

/* Any request fits into this much */
#define REQUEST_LEN     (sizeof(struct virtio_balloon_req_hdr) + \
                         sizeof(struct virtio_balloon_req_range))

static bool balloon_misc_negotiated(BalloonMisc *m)
{
    VirtIODevice *vdev = m->worker.vdev;

    return vdev && virtio_vdev_has_feature(vdev, VIRTIO_BALLOON_F_MISC_VQ) &&
           virtio_vdev_has_feature(vdev, VIRTIO_F_VERSION_1);
}

static bool balloon_misc_is_outstanding(BalloonMisc *m)
{
    return m->state == BALLOON_MISC_ASKED || m->state == BALLOON_MISC_ENDED;
}

static void balloon_misc_warn(BalloonMisc *m, const char *what)
{
    if (!m->warned) {
        m->warned = true;
        warn_report("virtio-balloon: misc queue: %s", what);
    }
}

/* No further runs will come. */
static void balloon_misc_ended(BalloonMisc *m, UnusedPagesEnd how)
{
    if (m->request.migration) {
        unused_pages_end(&m->provider, how);
    } else {
        balloon_request_part_ended(m, how);
    }
}

/* The end of an answer: the driver may be asked again. */
static void balloon_misc_over(BalloonMisc *m, UnusedPagesEnd how)
{
    uint64_t ns = get_clock() - m->request.sent;
    bool counts = m->state == BALLOON_MISC_ASKED;

    m->state = BALLOON_MISC_READY;
    if (!counts) {
        return;
    }
    if (how == UNUSED_PAGES_DONE) {
        trace_virtio_balloon_misc_done(m->last_id, ns);
        m->answers++;
        m->answer_ns = ns;
        m->longest_answer_ns = MAX(m->longest_answer_ns, ns);
    } else {
        trace_virtio_balloon_misc_error(m->last_id);
        m->errors++;
    }
    balloon_misc_ended(m, how);
}

static void balloon_misc_drop_answer(BalloonMisc *m)
{
    if (m->state == BALLOON_MISC_ASKED) {
        trace_virtio_balloon_misc_ended(m->last_id);
        m->state = BALLOON_MISC_ENDED;
        m->ended_id = m->last_id;
        m->ended++;
        balloon_records_drop(&m->records);
        balloon_misc_ended(m, UNUSED_PAGES_DEAD);
    }
}

/* While the VM runs: else the driver is told when it does */
static void balloon_misc_tell_ended(BalloonMisc *m)
{
    if (m->state == BALLOON_MISC_ENDED) {
        virtio_notify_config(m->worker.vdev);
    }
}

void balloon_misc_end_id(BalloonMisc *m)
{
    if (m->state == BALLOON_MISC_ASKED) {
        balloon_misc_drop_answer(m);
        balloon_misc_tell_ended(m);
    }
}

static void balloon_misc_send(BalloonMisc *m, VirtQueueElement *elem)
{
    const BalloonMiscCommand *command = &commands[m->request.cmd];
    struct {
        struct virtio_balloon_req_hdr hdr;
        uint8_t payload[REQUEST_LEN - sizeof(struct virtio_balloon_req_hdr)];
    } req = {
        .hdr.cmd = cpu_to_le16(m->request.cmd),
        .hdr.id = cpu_to_le64(m->last_id + 1),
    };

    if (command->fill) {
        command->fill(&m->request, req.payload);
    }
    m->request.sent = get_clock();
    m->state = BALLOON_MISC_ASKED;
    m->last_id++;
    m->requests++;
    trace_virtio_balloon_misc_request(m->last_id, m->request.cmd,
                                      m->request.start,
                                      m->request.end - m->request.start,
                                      m->request.migration);

    iov_from_buf(elem->in_sg, elem->in_num, 0, &req, command->len);
    virtqueue_push(m->queue.vq, elem, command->len);
    virtio_notify(m->worker.vdev, m->queue.vq);
}

static BalloonTaken balloon_misc_unpop(BalloonMisc *m, VirtQueueElement *elem)
{
    virtqueue_unpop(m->queue.vq, elem, 0);
    return BALLOON_TAKEN_KEPT;
}

/* Nothing of it will be looked at again until the device is reset. */
static BalloonTaken balloon_misc_unusable(BalloonMisc *m,
                                          VirtQueueElement *elem,
                                          const char *what)
{
    balloon_misc_warn(m, what);
    m->state = BALLOON_MISC_UNUSABLE;
    return balloon_misc_unpop(m, elem);
}

/* A buffer without records is there to be asked with. */
static BalloonTaken balloon_misc_take_buffer(BalloonMisc *m,
                                             VirtQueueElement *elem)
{
    static const char too_short[] = "the buffer is too short for a request";

    if (iov_size(elem->in_sg, elem->in_num) < REQUEST_LEN) {
        if (m->state == BALLOON_MISC_NEW) {
            return balloon_misc_unusable(m, elem, too_short);
        }
        balloon_misc_warn(m, too_short);
        virtqueue_push(m->queue.vq, elem, 0);
        virtio_notify(m->worker.vdev, m->queue.vq);
        return BALLOON_TAKEN_USED;
    }
    if (balloon_misc_is_outstanding(m)) {
        /* It comes behind the answer, so whatever is missing of that... */
        balloon_misc_over(m, UNUSED_PAGES_ERROR);
    }
    if (m->state == BALLOON_MISC_WANTED) {
        balloon_misc_send(m, elem);
        return BALLOON_TAKEN_USED;
    }
    m->state = BALLOON_MISC_READY;
    return balloon_misc_unpop(m, elem);
}

static BalloonTaken balloon_misc_take(BalloonQueue *q, VirtQueueElement *elem)
{
    BalloonMisc *m = misc_of(q->vdev);

    if (m->state == BALLOON_MISC_UNUSABLE) {
        return balloon_misc_unpop(m, elem);
    }
    if (!elem->out_num) {
        return balloon_misc_take_buffer(m, elem);
    }
    if (m->state == BALLOON_MISC_NEW) {
        return balloon_misc_unusable(m, elem,
                                     "its first buffer is not writable");
    }
    return balloon_records_take(q, elem);
}

static const BalloonFormat balloon_misc_format = {
    .take = balloon_misc_take,
    .done = balloon_records_done,
    .step = balloon_records_step,
    .flush = balloon_discard_flush_queue,
    .end = balloon_records_end,
};

static bool balloon_misc_record(BalloonRecords *r,
                                const struct virtio_balloon_bmap_hdr *hdr,
                                bool *last)
{
    BalloonMisc *m = misc_of(r->vdev);
    uint64_t id = le64_to_cpu(hdr->req_id);
    uint16_t cmd = le16_to_cpu(hdr->cmd);
    uint16_t flag = le16_to_cpu(hdr->flag);

    if (balloon_misc_is_outstanding(m) && id == m->last_id &&
        cmd == m->request.cmd) {
        bool pages = commands[cmd].run;

        m->final = flag;
        *last = flag;
        if (m->state == BALLOON_MISC_ASKED) {
            if (!pages && flag == VIRTIO_BALLOON_BMAP_FLAG_DONE) {
                m->request.number = r->start_pfn;
            }
            trace_virtio_balloon_misc_record(id, flag, r->start_pfn,
                                             r->page_shift,
                                             le64_to_cpu(hdr->bmap_len));
            return pages;
        }
    }
    trace_virtio_balloon_misc_stale_record(cmd, id);
    m->stale_records++;
    return false;
}

static void balloon_misc_last(BalloonRecords *r)
{
    BalloonMisc *m = misc_of(r->vdev);

    balloon_misc_over(m, m->final == VIRTIO_BALLOON_BMAP_FLAG_ERROR ?
                         UNUSED_PAGES_ERROR : UNUSED_PAGES_DONE);
}

/* Up to where it changes what it lies in */
static hwaddr balloon_misc_run(BalloonRecords *r, BalloonSlice *s,
                               hwaddr start, hwaddr len)
{
    BalloonMisc *m = misc_of(r->vdev);
    const BalloonMiscRequest *req = &m->request;
    const BalloonMiscCommand *command = &commands[req->cmd];
    bool asked = start >= req->start && start < req->end;
    ram_addr_t offset, stretch;

    if (asked) {
        len = MIN(len, req->end - start);
    } else if (start < req->start) {
        len = MIN(len, req->start - start);
    }
    if (!asked || !balloon_section_is_ram(&s->section)) {
        r->skipped_runs++;
        return len;
    }

    offset = balloon_section_offset(&s->section, start);
    if (command->weight) {
        /* Half of a backing page cannot be discarded */
        stretch = MAX(BALLOON_STRETCH,
                      qemu_ram_pagesize(s->section.mr->ram_block));
        len = MIN(len, stretch - offset % stretch);
        s->bytes -= len * command->weight;
    } else {
        /* Not within what is a page anywhere */
        len = MIN(len, QEMU_ALIGN_UP(offset + s->bytes, MiB) - offset);
        s->bytes -= len;
    }
    trace_virtio_balloon_misc_run(start, len);
    command->run(m, s->section.mr->ram_block, offset, len);
    return len;
}

static const BalloonRecordsOps balloon_misc_ops = {
    .answers = true,
    .record = balloon_misc_record,
    .last = balloon_misc_last,
    .run = balloon_misc_run,
};

static void balloon_misc_handle(VirtIODevice *vdev, VirtQueue *vq)
{
    BalloonMisc *m = misc_of(vdev);

    if (!balloon_misc_negotiated(m)) {
        return;
    }
    if (m->state == BALLOON_MISC_WANTED) {
        /* Only the bottom half is guarded against reentrancy */
        balloon_worker_schedule(&m->worker);
    } else {
        balloon_worker_kick(&m->worker);
    }
}

/*
 * The device numbers the queues that it offers, a driver may number those that
 * it has: then the queue has two numbers, and is not to be used.
 */
static bool balloon_misc_declined_queue(VirtIODevice *vdev)
{
    const uint64_t queues = 1ull << VIRTIO_BALLOON_F_STATS_VQ |
                            1ull << VIRTIO_BALLOON_F_FREE_PAGE_HINT |
                            1ull << VIRTIO_BALLOON_F_REPORTING;

    return vdev->host_features & ~vdev->guest_features & queues;
}

UnusedPagesReady balloon_misc_ready(BalloonMisc *m, Error **errp)
{
    VirtIODevice *vdev = m->worker.vdev;

    if (!balloon_misc_negotiated(m) || vdev->broken) {
        error_setg(errp, "The guest's driver has no misc queue");
        return UNUSED_PAGES_NO_DRIVER;
    }
    if (balloon_misc_declined_queue(vdev)) {
        error_setg(errp, "The guest's driver has declined a queue before the "
                   "misc queue");
        return UNUSED_PAGES_NO_DRIVER;
    }
    if (!vdev->vm_running) {
        error_setg(errp, "The VM is stopped");
        return UNUSED_PAGES_STOPPED;
    }
    switch (m->state) {
    case BALLOON_MISC_READY:
        return UNUSED_PAGES_READY;
    case BALLOON_MISC_NEW:
    case BALLOON_MISC_UNUSABLE:
        error_setg(errp, "The driver has not offered a buffer");
        return UNUSED_PAGES_NO_BUFFER;
    case BALLOON_MISC_LATE:
        error_setg(errp, "The driver has not offered its buffer again");
        return UNUSED_PAGES_LATE_BUFFER;
    default:
        /* A driver may never end its answer: who asks is not to rely on it */
        error_setg(errp, "A request is outstanding");
        return UNUSED_PAGES_BUSY;
    }
}

void balloon_misc_want(BalloonMisc *m, const BalloonMiscRequest *req)
{
    m->request = *req;
    m->state = BALLOON_MISC_WANTED;
    balloon_worker_schedule(&m->worker);
}

/* For migration */

static UnusedPagesReady balloon_misc_provider_ready(UnusedPagesProvider *p)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);

    /* Migration comes first, and waits for what was asked last */
    balloon_request_cancel(m);
    return balloon_misc_ready(m, NULL);
}

static bool balloon_misc_provider_prepare(UnusedPagesProvider *p)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);

    /* What was asked last has to end first */
    balloon_request_cancel(m);
    m->prepared = false;
    m->prepare_until = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + PREPARE_MS;
    return m->migrate_reclaim;
}

/* Whether it has begun or may still */
static bool balloon_misc_begin_to_prepare(BalloonMisc *m)
{
    UnusedPagesReady ready = balloon_misc_ready(m, NULL);

    if (ready == UNUSED_PAGES_READY) {
        m->prepared = balloon_request_start(m, BALLOON_REQUEST_TYPE_RECLAIM,
                                            m->migrate_reclaim,
                                            m->migrate_reclaim_ms, false, NULL);
    } else if (ready != UNUSED_PAGES_BUSY &&
               ready != UNUSED_PAGES_LATE_BUFFER) {
        return false;
    }
    return m->prepared ||
           qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < m->prepare_until;
}

static bool balloon_misc_provider_preparing(UnusedPagesProvider *p, bool end,
                                            uint64_t *bytes)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);

    if (!m->prepared) {
        return !end && balloon_misc_begin_to_prepare(m);
    }
    /* The guest may never answer */
    if (end || qemu_clock_get_ms(QEMU_CLOCK_REALTIME) >=
               m->task.deadline_ms + PREPARE_MS) {
        balloon_request_cancel(m);
    }
    *bytes = m->task.bytes;
    return m->task.status == BALLOON_REQUEST_STATUS_RUNNING;
}

static UnusedPagesReady balloon_misc_provider_request(UnusedPagesProvider *p,
                                                      hwaddr start,
                                                      hwaddr length)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);
    BalloonMiscRequest req = {
        .cmd = VIRTIO_BALLOON_REQ_UNUSED_PAGES,
        .migration = true,
        .start = start,
        .end = start + length,
    };
    UnusedPagesReady ready = balloon_misc_ready(m, NULL);

    if (ready == UNUSED_PAGES_READY) {
        balloon_misc_want(m, &req);
    }
    return ready;
}

static void balloon_misc_provider_cancel(UnusedPagesProvider *p)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);

    if (!m->request.migration) {
        return;
    }
    if (m->state == BALLOON_MISC_WANTED) {
        m->state = BALLOON_MISC_LATE;
    } else {
        balloon_misc_end_id(m);
    }
}

/* For the device */

static void balloon_misc_stop(BalloonMisc *m)
{
    bool wanted = m->state == BALLOON_MISC_WANTED;

    balloon_worker_stop(&m->worker);
    balloon_misc_drop_answer(m);
    balloon_request_cancel(m);
    if (wanted) {
        m->state = BALLOON_MISC_READY;
    }
    unused_pages_end(&m->provider, UNUSED_PAGES_DEAD);
}

void balloon_misc_set_status(VirtIODevice *vdev, uint8_t status)
{
    BalloonMisc *m = misc_of(vdev);

    if (!balloon_misc_offered(m)) {
        return;
    }
    if (!vdev->vm_running || !(status & VIRTIO_CONFIG_S_DRIVER_OK)) {
        balloon_misc_stop(m);
    } else if (balloon_misc_negotiated(m)) {
        /* Buffers that were given back have had their notification. */
        balloon_worker_schedule(&m->worker);
        balloon_misc_tell_ended(m);
    }
}

void balloon_misc_reset(VirtIODevice *vdev)
{
    BalloonMisc *m = misc_of(vdev);

    if (balloon_misc_offered(m)) {
        balloon_misc_stop(m);
        m->state = BALLOON_MISC_NEW;
        m->ended_id = 0;
    }
}

void balloon_misc_queue_reset(VirtIODevice *vdev, uint32_t index)
{
    BalloonMisc *m = misc_of(vdev);

    if (balloon_misc_offered(m) &&
        index == virtio_get_queue_index(m->queue.vq)) {
        balloon_misc_reset(vdev);
    }
}

bool balloon_misc_check(VirtIODevice *vdev, Error **errp)
{
    VirtIOBalloon *s = VIRTIO_BALLOON(vdev);

    if (s->misc.migrate_reclaim &&
        !virtio_has_feature(s->host_features, VIRTIO_BALLOON_F_MISC_VQ)) {
        error_setg(errp, "migrate-reclaim needs misc-vq=on");
        return false;
    }
    return true;
}

void balloon_misc_realize(VirtIODevice *vdev)
{
    BalloonMisc *m = misc_of(vdev);

    if (!virtio_has_feature(VIRTIO_BALLOON(vdev)->host_features,
                            VIRTIO_BALLOON_F_MISC_VQ)) {
        return;
    }
    m->queue.vq = virtio_add_queue(vdev, 128, balloon_misc_handle);
    virtio_queue_set_max_num(vdev, virtio_get_queue_index(m->queue.vq),
                             VIRTIO_BALLOON(vdev)->queue_size);
    m->queue.format = &balloon_misc_format;
    balloon_worker_realize(&m->worker, vdev, &m->queue, 1, SLICE_BYTES,
                           SLICE_WORK);
    balloon_records_init(&m->records, &m->queue, &balloon_misc_ops);
    m->provider.ready = balloon_misc_provider_ready;
    m->provider.request = balloon_misc_provider_request;
    m->provider.prepare = balloon_misc_provider_prepare;
    m->provider.preparing = balloon_misc_provider_preparing;
    m->provider.cancel = balloon_misc_provider_cancel;
    unused_pages_register(&m->provider);
    balloon_request_init(m);
}

void balloon_misc_unrealize(VirtIODevice *vdev)
{
    BalloonMisc *m = misc_of(vdev);

    if (!balloon_misc_offered(m)) {
        return;
    }
    balloon_misc_reset(vdev);
    balloon_request_unregister(m);
    unused_pages_unregister(&m->provider);
    balloon_worker_unrealize(&m->worker);
    balloon_records_free(&m->records);
    virtio_delete_queue(m->queue.vq);
    m->worker.vdev = NULL;
}

static bool balloon_misc_needed(void *opaque)
{
    return balloon_misc_negotiated(misc_of(opaque));
}

static int balloon_misc_pre_save(void *opaque)
{
    BalloonMisc *m = misc_of(opaque);

    m->outstanding = balloon_misc_is_outstanding(m);
    return 0;
}

static int balloon_misc_post_load(void *opaque, int version_id)
{
    BalloonMisc *m = misc_of(opaque);

    /* The answer to a request of the source is of no use here. */
    if (m->outstanding) {
        m->state = BALLOON_MISC_ENDED;
        m->ended_id = m->last_id;
    }
    return 0;
}

const VMStateDescription vmstate_virtio_balloon_misc = {
    .name = "virtio-balloon-device/misc-vq",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = balloon_misc_needed,
    .pre_save = balloon_misc_pre_save,
    .post_load = balloon_misc_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT64(misc.last_id, VirtIOBalloon),
        VMSTATE_BOOL(misc.outstanding, VirtIOBalloon),
        VMSTATE_END_OF_LIST()
    }
};

static void balloon_misc_get_stats(Object *obj, Visitor *v, const char *name,
                                   void *opaque, Error **errp)
{
    BalloonMisc *m = &VIRTIO_BALLOON(obj)->misc;
    UnusedPagesProvider *p = &m->provider;
    const BalloonCounter all[] = {
        { "outstanding", m->state == BALLOON_MISC_WANTED ||
                         balloon_misc_is_outstanding(m) },
        { "requests", m->requests },
        { "answers", m->answers },
        { "errors", m->errors },
        { "timeouts", stat64_get(&p->timeouts) },
        { "ended", m->ended },
        { "messages", m->queue.messages },
        { "bytes", m->queue.bytes },
        { "records", m->records.records },
        { "bad-records", m->records.bad_records },
        { "stale-records", m->stale_records },
        { "runs", m->records.runs },
        { "skipped-runs", m->records.skipped_runs },
        { "reported-pages", m->reported_pages },
        { "trimmed-bytes", m->task.total[BALLOON_REQUEST_TYPE_TRIM] },
        { "reclaimed-bytes", m->task.total[BALLOON_REQUEST_TYPE_RECLAIM] },
        { "unsent-pages", stat64_get(&p->unsent_bytes) >>
                          VIRTIO_BALLOON_PFN_SHIFT },
        { "answer-ns", m->answer_ns },
        { "longest-answer-ns", m->longest_answer_ns },
        { "last-id", m->last_id },
        { "bh-calls", m->worker.bh_calls },
#define NOT_ASKED(why)  stat64_get(&p->not_asked[UNUSED_PAGES_ ## why])
        { "not-asked-snapshot", NOT_ASKED(SNAPSHOT) },
        { "not-asked-colo", NOT_ASKED(COLO) },
        { "not-asked-no-capability", NOT_ASKED(NO_CAPABILITY) },
        { "not-asked-stopped", NOT_ASKED(STOPPED) },
        { "not-asked-no-ram", NOT_ASKED(NO_RAM) },
        { "not-asked-no-driver", NOT_ASKED(NO_DRIVER) },
        { "not-asked-no-buffer", NOT_ASKED(NO_BUFFER) },
        { "not-asked-late-buffer", NOT_ASKED(LATE_BUFFER) },
        { "not-asked-busy", NOT_ASKED(BUSY) },
        { "not-asked-cancelled", NOT_ASKED(CANCELLED) },
#undef NOT_ASKED
    };

    balloon_visit_counters(v, name, all, ARRAY_SIZE(all), errp);
}

void balloon_misc_instance_init(Object *obj)
{
    object_property_add(obj, "misc-vq-stats", "misc queue statistics",
                        balloon_misc_get_stats, NULL, NULL, NULL);
    object_property_set_description(obj, "misc-vq-stats",
        "What came of requests for unused pages");
}
