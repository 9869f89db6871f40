/*
 * virtio-balloon: the misc queue, on which the device asks
 *
 * With VIRTIO_BALLOON_F_MISC_VQ the driver keeps one device-writable buffer
 * on the queue.  The device writes a request into it and gives it back; the
 * driver answers with buffers of records, see struct balloon_bmap_hdr, and
 * offers the buffer for requests again behind the last of them.
 *
 * There is one request at a time.  Its id ends when the VM stops, and when
 * who asked has no use for the answer any more.  Then the rest of the answer
 * is consumed, so that the driver gets its buffers back and can be asked
 * again, but does not count.
 *
 * Work is done in slices, see virtio-balloon-bitmap.c.  A message that is not
 * finished at the end of a slice goes back to the ring: between calls the
 * device holds no element.  So there is little to migrate, the last id and
 * whether an answer is outstanding.
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
#include "qapi/visitor.h"
#include "exec/address-spaces.h"
#include "exec/ramblock.h"
#include "hw/virtio/virtio-balloon.h"
#include "migration/vmstate.h"
#include "trace.h"

/* Work here is to set bits, 2 MiB of them for 64 GiB */
#define SLICE_BYTES     (64 * GiB)
#define SLICE_WORK      16384

#define FLAGS   (BALLOON_FLAG_DONE | BALLOON_FLAG_ERROR)

/* What can be asked */
typedef struct BalloonMiscCommand {
    /* What the driver must offer for it */
    size_t len;
    /* Writes what follows the header of the request */
    void (*fill)(const BalloonMiscRequest *req, void *payload);
    /* A run of set bits, within RAM and the range that was asked for */
    void (*run)(BalloonMisc *m, RAMBlock *rb, ram_addr_t start,
                ram_addr_t length);
    /* No further runs will come */
    void (*end)(BalloonMisc *m, UnusedPagesEnd how);
} BalloonMiscCommand;

static void unused_pages_fill(const BalloonMiscRequest *req, void *payload)
{
    struct balloon_req_range *range = payload;

    range->start_pfn = cpu_to_le64(req->start >> VIRTIO_BALLOON_PFN_SHIFT);
    range->nr_pages = cpu_to_le64((req->end - req->start) >>
                                  VIRTIO_BALLOON_PFN_SHIFT);
    range->page_shift = cpu_to_le16(VIRTIO_BALLOON_PFN_SHIFT);
}

static void unused_pages_run(BalloonMisc *m, RAMBlock *rb, ram_addr_t start,
                             ram_addr_t length)
{
    if (m->request.migration) {
        unused_pages_report(&m->provider, rb, start, length);
    }
}

static void unused_pages_ended(BalloonMisc *m, UnusedPagesEnd how)
{
    if (m->request.migration) {
        unused_pages_end(&m->provider, how);
    }
}

static const BalloonMiscCommand commands[] = {
    [BALLOON_GET_UNUSED_PAGES] = {
        .len = sizeof(struct balloon_req_hdr) +
               sizeof(struct balloon_req_range),
        .fill = unused_pages_fill,
        .run = unused_pages_run,
        .end = unused_pages_ended,
    },
};

/* Any request fits into this much */
#define REQUEST_LEN     (sizeof(struct balloon_req_hdr) + \
                         sizeof(struct balloon_req_range))

static bool balloon_misc_negotiated(BalloonMisc *m)
{
    return m->vq &&
           virtio_vdev_has_feature(m->vdev, VIRTIO_BALLOON_F_MISC_VQ) &&
           virtio_vdev_has_feature(m->vdev, VIRTIO_F_VERSION_1);
}

static void balloon_misc_schedule(BalloonMisc *m)
{
    m->bh_scheduled = true;
    qemu_bh_schedule(m->bh);
}

static void balloon_misc_warn(BalloonMisc *m, const char *what)
{
    if (!m->warned) {
        m->warned = true;
        warn_report("virtio-balloon: misc queue: %s", what);
    }
}

/* The end of an answer: the driver may be asked again. */
static void balloon_misc_over(BalloonMisc *m, UnusedPagesEnd how)
{
    uint64_t ns = get_clock() - m->request.sent;

    m->outstanding = false;
    if (m->ended) {
        return;
    }
    if (how == UNUSED_PAGES_DONE) {
        trace_virtio_balloon_misc_done(m->last_id, ns);
        m->stats.answers++;
        m->stats.answer_ns = ns;
        m->stats.longest_answer_ns = MAX(m->stats.longest_answer_ns, ns);
    } else {
        trace_virtio_balloon_misc_error(m->last_id);
        m->stats.errors++;
    }
    commands[m->request.cmd].end(m, how);
}

/* From here on the answer does not count; it is outstanding all the same. */
static void balloon_misc_end_id(BalloonMisc *m)
{
    if (m->outstanding && !m->ended) {
        trace_virtio_balloon_misc_ended(m->last_id);
        m->ended = true;
        m->stats.ended++;
        balloon_records_drop(&m->records);
        commands[m->request.cmd].end(m, UNUSED_PAGES_DEAD);
    }
}

static void balloon_misc_send(BalloonMisc *m, VirtQueueElement *elem)
{
    const BalloonMiscCommand *command = &commands[m->next.cmd];
    struct {
        struct balloon_req_hdr hdr;
        uint8_t payload[REQUEST_LEN - sizeof(struct balloon_req_hdr)];
    } req = {
        .hdr.cmd = cpu_to_le16(m->next.cmd),
        .hdr.param = cpu_to_le64(m->last_id + 1),
    };

    command->fill(&m->next, req.payload);
    m->request = m->next;
    m->request.sent = get_clock();
    m->wanted = false;
    m->outstanding = true;
    m->ended = false;
    m->last_id++;
    m->stats.requests++;
    trace_virtio_balloon_misc_request(m->last_id, m->request.start,
                                      m->request.end - m->request.start,
                                      m->request.migration);

    iov_from_buf(elem->in_sg, elem->in_num, 0, &req, command->len);
    virtqueue_push(m->vq, elem, command->len);
    virtio_notify(m->vdev, m->vq);
}

/*
 * A buffer without records is there to be asked with.  Returns false if it
 * went back to the ring.
 */
static bool balloon_misc_take_buffer(BalloonMisc *m, VirtQueueElement *elem)
{
    if (iov_size(elem->in_sg, elem->in_num) < REQUEST_LEN) {
        balloon_misc_warn(m, "the buffer is too short for a request");
        if (!m->usable) {
            m->unusable = true;
            goto give_back;
        }
        virtqueue_push(m->vq, elem, 0);
        virtio_notify(m->vdev, m->vq);
        return true;
    }
    m->usable = true;
    m->late = false;
    if (m->outstanding) {
        /* It comes behind the answer, so whatever is missing of that... */
        balloon_misc_over(m, UNUSED_PAGES_ERROR);
    }
    if (m->wanted) {
        balloon_misc_send(m, elem);
        return true;
    }
give_back:
    virtqueue_unpop(m->vq, elem, 0);
    return false;
}

static void balloon_misc_bad_record(BalloonMisc *m, const char *fault)
{
    trace_virtio_balloon_misc_bad_record(fault);
    m->stats.bad_records++;
    balloon_records_warn(m->vdev, fault);
}

static void balloon_misc_forget_message(BalloonMisc *m)
{
    m->in_message = false;
    m->final = 0;
    balloon_records_drop(&m->records);
}

static void balloon_misc_begin_message(BalloonMisc *m, VirtQueueElement *elem)
{
    BalloonRecords *r = &m->records;
    size_t size = iov_size(elem->out_sg, elem->out_num);

    if (!m->in_message) {
        m->in_message = true;
        m->stats.messages++;
        m->stats.bytes += size;
        r->size = size;
        r->offset = 0;
        if (size > VIRTIO_BALLOON_BMAP_MAX_MSG) {
            balloon_misc_bad_record(m, "buffer is too long");
            r->offset = size;
        }
    } else if (size != r->size) {
        balloon_misc_bad_record(m, "buffer changes while it is read");
        r->size = r->offset = size;
    }
}

static void balloon_misc_next_record(BalloonMisc *m, VirtQueueElement *elem)
{
    BalloonRecords *r = &m->records;
    struct balloon_bmap_hdr hdr;
    const char *fault = balloon_records_next(r, elem, &hdr, FLAGS, true);
    uint64_t id;
    uint16_t cmd, flag;

    if (!fault && le16_to_cpu(hdr.flag) == FLAGS) {
        fault = "flag";
    } else if (!fault && r->nr_bits &&
               (le16_to_cpu(hdr.flag) & BALLOON_FLAG_ERROR)) {
        fault = "bitmap of an error";
    }
    if (fault) {
        r->nr_bits = 0;
        balloon_misc_bad_record(m, fault);
        return;
    }

    id = le64_to_cpu(hdr.req_id);
    cmd = le16_to_cpu(hdr.cmd);
    flag = le16_to_cpu(hdr.flag);
    if (m->outstanding && id == m->last_id && cmd == m->request.cmd) {
        m->final = flag;
        if (!m->ended) {
            trace_virtio_balloon_misc_record(id, flag, r->start_pfn,
                                             r->page_shift,
                                             r->nr_bits / BITS_PER_BYTE);
            m->stats.records++;
            return;
        }
    }
    trace_virtio_balloon_misc_stale_record(cmd, id);
    m->stats.stale_records++;
    r->nr_bits = 0;
}

/* Applies the run up to where it changes what it lies in, or to the end. */
static void balloon_misc_apply(BalloonMisc *m, BalloonSlice *s)
{
    const BalloonMiscRequest *req = &m->request;
    BalloonRecords *r = &m->records;
    hwaddr start = r->run_start, len;
    bool asked = start >= req->start && start < req->end;

    s->work--;
    balloon_slice_look_up(s, start);
    len = MIN(r->run_end, s->end) - start;
    if (asked) {
        len = MIN(len, req->end - start);
    } else if (start < req->start) {
        len = MIN(len, req->start - start);
    }

    if (!asked || !balloon_slice_is_ram(s)) {
        m->stats.skipped_runs++;
    } else {
        ram_addr_t offset = s->mr_offset + (start - s->start);

        /* Not within what is a page anywhere */
        len = MIN(len, QEMU_ALIGN_UP(offset + s->bytes, MiB) - offset);
        s->bytes -= len;
        trace_virtio_balloon_misc_run(start, len);
        m->stats.reported_pages += len >> VIRTIO_BALLOON_PFN_SHIFT;
        commands[req->cmd].run(m, s->mr->ram_block, offset, len);
    }
    r->run_start += len;
}

/* Returns false if the slice was used up first. */
static bool balloon_misc_drain(BalloonMisc *m, BalloonSlice *s)
{
    BalloonRecords *r = &m->records;
    VirtQueueElement *elem = NULL;
    bool progress = false;

    while (!m->unusable) {
        /* What costs little is done even at the end of the slice. */
        if (elem && !r->run_complete) {
            if (r->next_bit < r->nr_bits) {
                m->stats.runs += balloon_records_next_bits(r);
                continue;
            }
            if ((m->final || r->offset == r->size) &&
                r->run_start != r->run_end) {
                r->run_complete = true;
                continue;
            }
            if (m->final) {
                balloon_misc_over(m, m->final & BALLOON_FLAG_ERROR ?
                                     UNUSED_PAGES_ERROR : UNUSED_PAGES_DONE);
                m->final = 0;
                continue;
            }
            if (r->offset == r->size) {
                m->in_message = false;
                virtqueue_push(m->vq, elem, 0);
                virtio_notify(m->vdev, m->vq);
                g_free(elem);
                elem = NULL;
                continue;
            }
        }

        /* To take a message may use up the slice, but then not only that. */
        if (balloon_slice_used_up(s) && (progress || !elem)) {
            if (elem) {
                virtqueue_unpop(m->vq, elem, 0);
                g_free(elem);
                return false;
            }
            return virtio_queue_empty(m->vq);
        }
        if (!elem) {
            elem = virtqueue_pop(m->vq, sizeof(*elem));
            if (!elem) {
                return true;
            }
            s->work -= BALLOON_MESSAGE_WORK;
            if (!elem->out_num) {
                bool taken;

                /* A driver may even have changed what was half read */
                balloon_misc_forget_message(m);
                taken = balloon_misc_take_buffer(m, elem);
                g_free(elem);
                elem = NULL;
                if (!taken) {
                    return true;
                }
            } else if (!m->usable && !m->outstanding) {
                balloon_misc_warn(m, "its first buffer is not writable");
                m->unusable = true;
                virtqueue_unpop(m->vq, elem, 0);
                g_free(elem);
            } else {
                balloon_misc_begin_message(m, elem);
            }
        } else if (r->run_complete) {
            balloon_misc_apply(m, s);
            r->run_complete = r->run_start != r->run_end;
            progress = true;
        } else {
            s->work--;
            balloon_misc_next_record(m, elem);
            progress = true;
        }
    }
    return true;
}

static void balloon_misc_run_slice(BalloonMisc *m)
{
    BalloonSlice s = {
        .bytes = SLICE_BYTES,
        .work = SLICE_WORK,
        .deadline = get_clock() + BALLOON_SLICE_NS,
    };

    /* A stopped VM's buffers are polled when it runs again. */
    if (!m->vdev->vm_running || m->vdev->broken ||
        !balloon_misc_negotiated(m)) {
        return;
    }
    if (!balloon_misc_drain(m, &s)) {
        trace_virtio_balloon_misc_continue(s.bytes, s.work);
        balloon_misc_schedule(m);
    }
    memory_region_unref(s.mr);
}

static void balloon_misc_bh(void *opaque)
{
    BalloonMisc *m = opaque;

    m->bh_scheduled = false;
    m->stats.bh_calls++;
    balloon_misc_run_slice(m);
}

static void balloon_misc_handle(VirtIODevice *vdev, VirtQueue *vq)
{
    BalloonMisc *m = &VIRTIO_BALLOON(vdev)->misc;

    /* Notifications must not add to the slices that the guest gets. */
    if (!m->bh_scheduled) {
        balloon_misc_run_slice(m);
    }
}

/*
 * The device numbers the queues that it offers, a driver may number those that
 * it has: then the queue has two numbers, and is not to be used.
 */
static bool balloon_misc_declined_queue(BalloonMisc *m)
{
    const uint64_t queues = 1ull << VIRTIO_BALLOON_F_STATS_VQ |
                            1ull << VIRTIO_BALLOON_F_FREE_PAGE_HINT |
                            1ull << VIRTIO_BALLOON_F_REPORTING;

    return m->vdev->host_features & ~m->vdev->guest_features & queues;
}

static bool balloon_misc_ready(BalloonMisc *m, Error **errp)
{
    if (!balloon_misc_negotiated(m) || m->vdev->broken) {
        error_setg(errp, "The guest's driver has no misc queue");
    } else if (balloon_misc_declined_queue(m)) {
        error_setg(errp, "The guest's driver has declined a queue before the "
                   "misc queue");
    } else if (!m->vdev->vm_running) {
        error_setg(errp, "The VM is stopped");
    } else if (m->unusable || !m->usable || m->late) {
        error_setg(errp, "The driver has not offered a buffer");
    } else if (m->outstanding || m->wanted) {
        /* Nobody is to wait for a driver that does not end its answers */
        error_setg(errp, "A request is outstanding");
    } else {
        return true;
    }
    return false;
}

/* From the bottom half, which is guarded against reentrancy */
static void balloon_misc_want(BalloonMisc *m, const BalloonMiscRequest *req)
{
    m->next = *req;
    m->wanted = true;
    balloon_misc_schedule(m);
}

/* For migration */

static bool balloon_misc_provider_ready(UnusedPagesProvider *p)
{
    return balloon_misc_ready(container_of(p, BalloonMisc, provider), NULL);
}

static bool balloon_misc_provider_request(UnusedPagesProvider *p, hwaddr start,
                                          hwaddr length)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);
    BalloonMiscRequest req = {
        .cmd = BALLOON_GET_UNUSED_PAGES,
        .migration = true,
        .start = start,
        .end = start + length,
    };

    if (!balloon_misc_ready(m, NULL)) {
        return false;
    }
    balloon_misc_want(m, &req);
    return true;
}

static void balloon_misc_provider_cancel(UnusedPagesProvider *p)
{
    BalloonMisc *m = container_of(p, BalloonMisc, provider);

    if (m->wanted && m->next.migration) {
        m->wanted = false;
        m->late = true;
    }
    if (m->request.migration) {
        balloon_misc_end_id(m);
    }
}

/* For who is curious */

static bool balloon_misc_head_takes_request(BalloonMisc *m)
{
    VirtQueueElement *elem = virtqueue_pop(m->vq, sizeof(*elem));
    bool ret;

    if (!elem) {
        return false;
    }
    ret = !elem->out_num && iov_size(elem->in_sg, elem->in_num) >= REQUEST_LEN;
    virtqueue_unpop(m->vq, elem, 0);
    g_free(elem);
    return ret;
}

/* A flatview_cb; they come in the order of their addresses */
static bool balloon_misc_end_of_ram(Int128 start, Int128 len,
                                    const MemoryRegion *mr, hwaddr offset,
                                    void *opaque)
{
    hwaddr *end = opaque;

    if (memory_region_is_ram((MemoryRegion *)mr) &&
        !memory_region_is_rom((MemoryRegion *)mr)) {
        *end = int128_get64(int128_add(start, len));
    }
    return false;
}

static bool balloon_misc_get_ask(Object *obj, Error **errp)
{
    BalloonMisc *m = &VIRTIO_BALLOON(obj)->misc;

    return m->outstanding || m->wanted;
}

static void balloon_misc_set_ask(Object *obj, bool value, Error **errp)
{
    BalloonMisc *m = &VIRTIO_BALLOON(obj)->misc;
    BalloonMiscRequest req = { .cmd = BALLOON_GET_UNUSED_PAGES };

    if (!value || !balloon_misc_ready(m, errp)) {
        return;
    }
    if (!balloon_misc_head_takes_request(m)) {
        error_setg(errp, "The driver has not offered its buffer again");
        return;
    }
    WITH_RCU_READ_LOCK_GUARD() {
        FlatView *fv = address_space_to_flatview(&address_space_memory);

        flatview_for_each_range(fv, balloon_misc_end_of_ram, &req.end);
    }
    balloon_misc_want(m, &req);
}

/* For the device */

static void balloon_misc_stop(BalloonMisc *m)
{
    if (!m->vq) {
        return;
    }
    qemu_bh_cancel(m->bh);
    m->bh_scheduled = false;
    m->wanted = false;
    balloon_misc_end_id(m);
    unused_pages_end(&m->provider, UNUSED_PAGES_DEAD);
    /* The message is read again, from its start. */
    balloon_misc_forget_message(m);
}

void balloon_misc_set_status(BalloonMisc *m, uint8_t status)
{
    if (!m->vdev->vm_running || !(status & VIRTIO_CONFIG_S_DRIVER_OK)) {
        balloon_misc_stop(m);
    } else if (balloon_misc_negotiated(m)) {
        /* Buffers that were given back have had their notification. */
        balloon_misc_schedule(m);
    }
}

void balloon_misc_reset(BalloonMisc *m)
{
    balloon_misc_stop(m);
    m->outstanding = false;
    m->usable = m->unusable = m->late = false;
}

void balloon_misc_queue_reset(BalloonMisc *m, uint32_t index)
{
    if (m->vq && index == virtio_get_queue_index(m->vq)) {
        balloon_misc_reset(m);
    }
}

void balloon_misc_realize(BalloonMisc *m, VirtIODevice *vdev, uint16_t size)
{
    m->vdev = vdev;
    if (!virtio_has_feature(VIRTIO_BALLOON(vdev)->host_features,
                            VIRTIO_BALLOON_F_MISC_VQ)) {
        return;
    }
    m->vq = virtio_add_queue(vdev, size, balloon_misc_handle);
    m->bh = virtio_bh_new_guarded(DEVICE(vdev), balloon_misc_bh, m);
    m->records.bitmap = g_malloc(VIRTIO_BALLOON_BMAP_MAX_LEN);
    m->provider.ready = balloon_misc_provider_ready;
    m->provider.request = balloon_misc_provider_request;
    m->provider.cancel = balloon_misc_provider_cancel;
    unused_pages_register(&m->provider);
}

void balloon_misc_unrealize(BalloonMisc *m)
{
    if (!m->vq) {
        return;
    }
    balloon_misc_reset(m);
    unused_pages_unregister(&m->provider);
    qemu_bh_delete(m->bh);
    m->bh = NULL;
    virtio_delete_queue(m->vq);
    m->vq = NULL;
    g_free(m->records.bitmap);
    m->records.bitmap = NULL;
}

static bool balloon_misc_needed(void *opaque)
{
    VirtIOBalloon *s = opaque;

    return balloon_misc_negotiated(&s->misc);
}

static int balloon_misc_post_load(void *opaque, int version_id)
{
    VirtIOBalloon *s = opaque;

    /* The answer to a request of the source is of no use here. */
    s->misc.ended = s->misc.outstanding;
    return 0;
}

const VMStateDescription vmstate_virtio_balloon_misc = {
    .name = "virtio-balloon-device/misc-vq",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = balloon_misc_needed,
    .post_load = balloon_misc_post_load,
    .fields = (VMStateField[]) {
        VMSTATE_UINT64(misc.last_id, VirtIOBalloon),
        VMSTATE_BOOL(misc.outstanding, VirtIOBalloon),
        VMSTATE_END_OF_LIST()
    }
};

static void balloon_misc_get_stats(Object *obj, Visitor *v, const char *name,
                                   void *opaque, Error **errp)
{
    BalloonMisc *m = opaque;
    BalloonMiscStats *s = &m->stats;
    uint64_t timeouts = stat64_get(&m->provider.timeouts);
    uint64_t unsent_pages = stat64_get(&m->provider.unsent_bytes) >>
                            VIRTIO_BALLOON_PFN_SHIFT;
    const struct {
        const char *name;
        uint64_t *value;
    } all[] = {
        { "requests", &s->requests },
        { "answers", &s->answers },
        { "errors", &s->errors },
        { "timeouts", &timeouts },
        { "ended", &s->ended },
        { "messages", &s->messages },
        { "bytes", &s->bytes },
        { "records", &s->records },
        { "bad-records", &s->bad_records },
        { "stale-records", &s->stale_records },
        { "runs", &s->runs },
        { "skipped-runs", &s->skipped_runs },
        { "reported-pages", &s->reported_pages },
        { "unsent-pages", &unsent_pages },
        { "answer-ns", &s->answer_ns },
        { "longest-answer-ns", &s->longest_answer_ns },
        { "last-id", &m->last_id },
        { "bh-calls", &s->bh_calls },
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

void balloon_misc_instance_init(BalloonMisc *m, Object *obj)
{
    object_property_add(obj, "misc-vq-stats", "misc queue statistics",
                        balloon_misc_get_stats, NULL, NULL, m);
    object_property_add_bool(obj, "misc-vq-ask", balloon_misc_get_ask,
                             balloon_misc_set_ask);
    object_property_set_description(obj, "misc-vq-stats",
        "What came of requests for unused pages");
    object_property_set_description(obj, "misc-vq-ask",
        "Write true to ask for unused pages, reads true until the answer ends");
}
