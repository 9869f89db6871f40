/*
 * virtio-balloon: messages that are worked on in slices
 *
 * What a guest asks for with one notification may take long.  So work is done
 * in slices.  A slice ends after a bounded amount of work, and the next one
 * runs from a bottom half, so that no message keeps the BQL for long.  Between
 * the two is a pause.  Without one a vCPU that waits for the BQL would hardly
 * ever get it: it is woken, and finds that the main loop was faster.
 *
 * Under record and replay all of it is done in the notification, for neither
 * the clock nor the pause is recorded.
 *
 * What is known of an unfinished message stays in BalloonQueue.  When the VM
 * stops the message goes back to the ring, to be taken again from its start:
 * the guest was not told that it is done.  So there is nothing to migrate.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "qemu/timer.h"
#include "system/replay.h"
#include "hw/virtio/virtio-balloon-slice.h"
#include "trace.h"

/* A slice ends after this time, even if a slow host did little */
#define SLICE_NS        (2 * SCALE_MS)
/* What is between slices, once they have taken so much together */
#define PAUSE_NS        (50 * SCALE_US)
#define PAUSE_AFTER_NS  (1 * SCALE_MS)
/* What is done when the VM stops must not take longer */
#define FINISH_NS       (5 * SCALE_MS)
/*
 * To take a message costs as much as this many work items, however little is
 * in it.  Runs (per memory section), records, good or bad, and page numbers
 * are one each.
 */
#define MESSAGE_WORK    32

static bool balloon_slice_used_up(const BalloonSlice *s)
{
    return s->work <= 0 || s->bytes <= 0 || get_clock() >= s->deadline;
}

static BalloonTaken balloon_queue_take(BalloonQueue *q)
{
    VirtQueueElement *elem = virtqueue_pop(q->vq, sizeof(*elem));
    BalloonTaken taken;

    if (!elem) {
        return BALLOON_TAKEN_KEPT;
    }
    q->size = iov_size(elem->out_sg, elem->out_num);
    q->offset = 0;
    taken = q->format->take ? q->format->take(q, elem) : BALLOON_TAKEN_MESSAGE;
    if (taken != BALLOON_TAKEN_MESSAGE) {
        g_free(elem);
        return taken;
    }
    q->elem = elem;
    q->messages++;
    q->bytes += q->size;
    return taken;
}

/* What the format has put off is done before the guest hears of it. */
static void balloon_queue_flush(BalloonQueue *q)
{
    if (q->format->flush) {
        q->format->flush(q);
    }
}

static void balloon_queue_push(BalloonQueue *q)
{
    balloon_queue_flush(q);
    virtqueue_push(q->vq, q->elem, 0);
    g_free(q->elem);
    q->elem = NULL;
    q->format->end(q);
    virtio_notify(q->vdev, q->vq);
}

void balloon_queue_give_back(BalloonQueue *q)
{
    if (q->elem) {
        virtqueue_unpop(q->vq, q->elem, 0);
        g_free(q->elem);
        q->elem = NULL;
        q->format->end(q);
    }
}

/* Returns false if the slice was used up first. */
static bool balloon_queue_drain(BalloonQueue *q, BalloonSlice *s)
{
    for (;;) {
        if (q->elem && q->format->done(q)) {
            balloon_queue_push(q);
            continue;
        }
        if (balloon_slice_used_up(s)) {
            return !q->elem && virtio_queue_empty(q->vq);
        }
        if (q->elem) {
            q->format->step(q, s);
            continue;
        }
        if (balloon_queue_take(q) == BALLOON_TAKEN_KEPT) {
            return true;
        }
        s->work -= MESSAGE_WORK;
    }
}

/* Returns false if the slice was used up first. */
static bool balloon_worker_slice(BalloonWorker *w, BalloonSlice *s)
{
    int64_t begin = get_clock();
    unsigned int first = w->turn, i;
    uint64_t held;
    bool done = true;

    /* The queue that did not get its turn begins the next slice. */
    w->turn = (first + 1) % w->nr_queues;
    for (i = 0; done && i < w->nr_queues; i++) {
        done = balloon_queue_drain(&w->queue[(first + i) % w->nr_queues], s);
    }
    for (i = 0; i < w->nr_queues; i++) {
        balloon_queue_flush(&w->queue[i]);
    }
    balloon_section_forget(&s->section);

    held = get_clock() - begin;
    w->busy_ns += held;
    w->unpaused_ns += held;
    w->longest_hold_ns = MAX(w->longest_hold_ns, held);
    return done;
}

static void balloon_worker_pause_over(void *opaque)
{
    BalloonWorker *w = opaque;

    /* Only the bottom half is guarded against reentrancy */
    qemu_bh_schedule(w->bh);
}

static void balloon_worker_go_on(BalloonWorker *w)
{
    if (w->unpaused_ns < PAUSE_AFTER_NS) {
        balloon_worker_schedule(w);
        return;
    }
    w->scheduled = true;
    w->unpaused_ns = 0;
    timer_mod(w->pause, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + PAUSE_NS);
}

static void balloon_worker_run(BalloonWorker *w)
{
    bool replay = replay_mode != REPLAY_MODE_NONE;
    BalloonSlice s = {
        .bytes = replay ? INT64_MAX : w->slice_bytes,
        .work = replay ? INT_MAX : w->slice_work,
        .deadline = replay ? INT64_MAX : get_clock() + SLICE_NS,
    };

    /* A stopped VM's buffers are polled when it runs again. */
    if (!w->vdev->vm_running || w->vdev->broken) {
        return;
    }
    if (!balloon_worker_slice(w, &s)) {
        trace_virtio_balloon_slice(s.bytes, s.work);
        balloon_worker_go_on(w);
    }
}

static void balloon_worker_bh(void *opaque)
{
    BalloonWorker *w = opaque;

    w->scheduled = false;
    w->bh_calls++;
    balloon_worker_run(w);
}

void balloon_worker_schedule(BalloonWorker *w)
{
    w->scheduled = true;
    replay_bh_schedule_event(w->bh);
}

void balloon_worker_kick(BalloonWorker *w)
{
    w->kicks++;
    if (!w->vdev->vm_running) {
        /* An eventfd that held it until the VM stops: set_status() follows */
        balloon_worker_schedule(w);
    } else if (!w->scheduled) {
        /* Notifications must not add to the slices that the guest gets. */
        balloon_worker_run(w);
    }
}

void balloon_worker_finish(BalloonWorker *w, int work)
{
    BalloonSlice s = {
        .bytes = INT64_MAX,
        .work = work,
        .deadline = get_clock() + FINISH_NS,
    };

    if (w->scheduled && !w->vdev->broken) {
        balloon_worker_slice(w, &s);
    }
}

void balloon_worker_stop(BalloonWorker *w)
{
    unsigned int i;

    if (!w->bh) {
        return;
    }
    qemu_bh_cancel(w->bh);
    timer_del(w->pause);
    w->scheduled = false;
    for (i = 0; i < w->nr_queues; i++) {
        balloon_queue_give_back(&w->queue[i]);
    }
}

void balloon_worker_realize(BalloonWorker *w, VirtIODevice *vdev,
                            BalloonQueue *queue, unsigned int nr_queues,
                            int64_t slice_bytes, int slice_work)
{
    unsigned int i;

    w->vdev = vdev;
    w->queue = queue;
    w->nr_queues = nr_queues;
    w->slice_bytes = slice_bytes;
    w->slice_work = slice_work;
    w->bh = virtio_bh_new_guarded(DEVICE(vdev), balloon_worker_bh, w);
    w->pause = timer_new_ns(QEMU_CLOCK_REALTIME, balloon_worker_pause_over, w);
    for (i = 0; i < nr_queues; i++) {
        queue[i].vdev = vdev;
    }
}

void balloon_worker_unrealize(BalloonWorker *w)
{
    if (w->bh) {
        balloon_worker_stop(w);
        qemu_bh_delete(w->bh);
        w->bh = NULL;
        timer_free(w->pause);
    }
}
