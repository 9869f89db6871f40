/*
 * virtio-balloon: what somebody asks for by the misc queue
 *
 * Migration may want the queue at any time, and does not wait for long.  So
 * what may take its time is asked for in parts, each of which is short.  When
 * migration comes the rest is not asked for, and the part's answer not counted.
 *
 * The numbers are the guest's word.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qapi/qapi-events-machine.h"
#include "exec/address-spaces.h"
#include "hw/virtio/virtio-balloon.h"
#include "migration/misc.h"
#include "system/balloon.h"
#include "trace.h"

/* How much guest-physical memory is trimmed at a time */
#define TRIM_PART       (1 * GiB)
/* For how long the driver reclaims at a time, in ms */
#define RECLAIM_PART_MS 100
/* For how long it does at all, in ms, if nobody says, and at the most */
#define RECLAIM_MS      (5 * 1000)
#define RECLAIM_MAX_MS  (60 * 60 * 1000)
/* For how long the driver may not offer its buffer, in ms */
#define BUFFER_MS       (5 * 1000)

static int64_t balloon_request_now(void)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
}

/* A flatview_cb; they come in the order of their addresses */
static bool balloon_request_end_of_ram(Int128 start, Int128 len,
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

static void balloon_request_fill_info(const BalloonTask *t,
                                      BalloonRequestInfo *info)
{
    int64_t end = t->status == BALLOON_REQUEST_STATUS_RUNNING ?
                  balloon_request_now() : t->end_ms;

    *info = (BalloonRequestInfo) {
        .id = t->id,
        .type = t->type,
        .status = t->status,
        .bytes = t->bytes,
        .time = end - t->start_ms,
    };
}

static void balloon_request_finish(BalloonMisc *m, BalloonRequestStatus status)
{
    BalloonTask *t = &m->task;
    BalloonRequestInfo info;

    timer_del(&t->late);
    t->status = status;
    t->end_ms = balloon_request_now();
    t->total[t->type] += t->bytes;
    trace_virtio_balloon_request_end(t->id, BalloonRequestType_str(t->type),
                                 BalloonRequestStatus_str(status), t->bytes);
    balloon_request_fill_info(t, &info);
    qapi_event_send_balloon_request_completed(&info);
}

/* Returns whether there is more to ask for */
static bool balloon_request_next_part(BalloonMisc *m)
{
    BalloonTask *t = &m->task;
    BalloonMiscRequest req = { .cmd = t->cmd };
    int64_t ms = t->deadline_ms - balloon_request_now();

    switch (t->type) {
    case BALLOON_REQUEST_TYPE_TRIM:
        if (t->next >= t->ram_end) {
            return false;
        }
        req.start = t->next;
        req.end = MIN(t->next + TRIM_PART, t->ram_end);
        t->next = req.end;
        break;
    case BALLOON_REQUEST_TYPE_RECLAIM:
        if (t->bytes >= t->limit || ms <= 0) {
            return false;
        }
        req.bytes = t->limit - t->bytes;
        req.msecs = MIN(ms, RECLAIM_PART_MS);
        req.swap = t->swap;
        break;
    default:
        /* All at once */
        if (t->parts) {
            return false;
        }
        req.end = t->ram_end;
        break;
    }
    t->parts++;
    timer_mod(&t->late, balloon_request_now() + BUFFER_MS);
    balloon_misc_want(m, &req);
    return true;
}

void balloon_request_part_ended(BalloonMisc *m, UnusedPagesEnd how)
{
    BalloonTask *t = &m->task;
    uint64_t number = MIN(m->request.number, t->ram_end);

    if (t->status != BALLOON_REQUEST_STATUS_RUNNING) {
        return;
    }
    /* The guest may say what it likes */
    t->bytes = MIN(t->bytes, UINT64_MAX - number) + number;
    if (how != UNUSED_PAGES_DONE) {
        balloon_request_finish(m, how == UNUSED_PAGES_DEAD ?
                               BALLOON_REQUEST_STATUS_CANCELLED :
                               BALLOON_REQUEST_STATUS_FAILED);
    } else if ((t->type == BALLOON_REQUEST_TYPE_RECLAIM && !number) ||
               !balloon_request_next_part(m)) {
        balloon_request_finish(m, BALLOON_REQUEST_STATUS_COMPLETED);
    }
}

void balloon_request_cancel(BalloonMisc *m)
{
    BalloonTask *t = &m->task;

    if (t->status != BALLOON_REQUEST_STATUS_RUNNING) {
        return;
    }
    if (m->state == BALLOON_MISC_WANTED) {
        m->state = BALLOON_MISC_LATE;
        balloon_request_finish(m, BALLOON_REQUEST_STATUS_CANCELLED);
    } else {
        balloon_misc_end_id(m);
    }
}

static void balloon_request_late(void *opaque)
{
    BalloonMisc *m = opaque;

    if (m->state == BALLOON_MISC_WANTED) {
        m->state = BALLOON_MISC_LATE;
        balloon_request_finish(m, BALLOON_REQUEST_STATUS_FAILED);
    }
}

bool balloon_request_start(BalloonMisc *m, BalloonRequestType type,
                           uint64_t bytes, uint32_t timeout, bool swap,
                           Error **errp)
{
    static const uint16_t cmds[] = {
        [BALLOON_REQUEST_TYPE_UNUSED_PAGES] = VIRTIO_BALLOON_REQ_UNUSED_PAGES,
        [BALLOON_REQUEST_TYPE_TRIM] = VIRTIO_BALLOON_REQ_TRIM,
        [BALLOON_REQUEST_TYPE_RECLAIM] = VIRTIO_BALLOON_REQ_RECLAIM,
        [BALLOON_REQUEST_TYPE_COMPACT] = VIRTIO_BALLOON_REQ_COMPACT,
        [BALLOON_REQUEST_TYPE_SYNC] = VIRTIO_BALLOON_REQ_SYNC,
    };
    BalloonTask *t = &m->task;

    if (balloon_misc_ready(m, errp) != UNUSED_PAGES_READY) {
        return false;
    }
    if (type == BALLOON_REQUEST_TYPE_TRIM && virtio_balloon_inhibited()) {
        error_setg(errp, "Memory may not be discarded");
        return false;
    }
    t->id++;
    t->type = type;
    t->cmd = cmds[type];
    t->status = BALLOON_REQUEST_STATUS_RUNNING;
    t->parts = 0;
    t->bytes = 0;
    t->limit = bytes;
    t->swap = swap;
    t->start_ms = balloon_request_now();
    t->deadline_ms = t->start_ms + MIN(timeout ?: RECLAIM_MS, RECLAIM_MAX_MS);
    t->next = 0;
    t->ram_end = 0;
    WITH_RCU_READ_LOCK_GUARD() {
        FlatView *fv = address_space_to_flatview(&address_space_memory);

        flatview_for_each_range(fv, balloon_request_end_of_ram, &t->ram_end);
    }
    if (!balloon_request_next_part(m)) {
        balloon_request_finish(m, BALLOON_REQUEST_STATUS_COMPLETED);
    }
    return true;
}

/* For management */

static bool balloon_request_qmp_start(void *opaque, BalloonRequestType type,
                                      uint64_t bytes, uint32_t timeout,
                                      bool swap, Error **errp)
{
    /* It would have to wait for the queue, and wants it again soon */
    if (migration_is_running()) {
        error_setg(errp, "A migration is in progress");
        return false;
    }
    return balloon_request_start(opaque, type, bytes, timeout, swap, errp);
}

static void balloon_request_qmp_cancel(void *opaque)
{
    balloon_request_cancel(opaque);
}

static bool balloon_request_qmp_query(void *opaque, BalloonRequestInfo *info)
{
    BalloonMisc *m = opaque;

    balloon_request_fill_info(&m->task, info);
    return m->task.id;
}

static const BalloonRequestOps balloon_request_ops = {
    .start = balloon_request_qmp_start,
    .cancel = balloon_request_qmp_cancel,
    .query = balloon_request_qmp_query,
};

void balloon_request_init(BalloonMisc *m)
{
    /* Nothing is asked for */
    m->task.status = BALLOON_REQUEST_STATUS_COMPLETED;
    timer_init_ms(&m->task.late, QEMU_CLOCK_REALTIME, balloon_request_late, m);
    balloon_request_register(&balloon_request_ops, m);
}
