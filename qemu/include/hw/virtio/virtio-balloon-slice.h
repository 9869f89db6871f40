/*
 * virtio-balloon: messages that are worked on in slices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_SLICE_H
#define QEMU_VIRTIO_BALLOON_SLICE_H

#include "hw/virtio/virtio-balloon-run.h"

/* What is left of a slice of work: RAM, work items, and time */
typedef struct BalloonSlice {
    int64_t bytes;
    int work;
    int64_t deadline;           /* of get_clock() */
    BalloonSection section;     /* the last that was looked up */
} BalloonSlice;

typedef struct BalloonQueue BalloonQueue;

typedef enum BalloonTaken {
    BALLOON_TAKEN_MESSAGE,      /* work on it */
    BALLOON_TAKEN_USED,         /* it has gone to the guest already */
    BALLOON_TAKEN_KEPT,         /* it is back in the ring, and has to wait */
} BalloonTaken;

/* What the messages of a queue are made of */
typedef struct BalloonFormat {
    /*
     * Looks at a message that was taken; without it each is worked on.  Only
     * then is it the queue's: a device that writes to the guest's memory may
     * find itself there, and be reset by that.
     */
    BalloonTaken (*take)(BalloonQueue *q, VirtQueueElement *elem);
    /* Does what costs little; returns whether that was the last of it */
    bool (*done)(BalloonQueue *q);
    /* Does some work, and takes it from the slice */
    void (*step)(BalloonQueue *q, BalloonSlice *s);
    /*
     * Does what step() has put off, or NULL; called before a message is
     * acknowledged, and at the end of a slice.
     */
    void (*flush)(BalloonQueue *q);
    /* The message is done, or goes back to the ring: forget it */
    void (*end)(BalloonQueue *q);
} BalloonFormat;

/* A queue, and how far the work on its first message has come */
struct BalloonQueue {
    VirtIODevice *vdev;
    VirtQueue *vq;
    const BalloonFormat *format;
    void *opaque;               /* of the format */
    VirtQueueElement *elem;     /* being worked on, not yet acknowledged */
    size_t size;                /* of the message */
    size_t offset;              /* of what comes next in it */
    uint64_t messages;          /* taken since the device was created */
    uint64_t bytes;             /* their size */
};

/* What works on queues that share a slice */
typedef struct BalloonWorker {
    VirtIODevice *vdev;
    BalloonQueue *queue;
    unsigned int nr_queues;
    unsigned int turn;          /* the queue that the next slice begins with */
    int64_t slice_bytes;
    int slice_work;
    QEMUBH *bh;                 /* goes on where a slice ended */
    QEMUTimer *pause;           /* after which that may be */
    uint64_t unpaused_ns;       /* sum of holds of the BQL since a pause */
    bool scheduled;
    uint64_t kicks;             /* queue notifications */
    uint64_t bh_calls;          /* slices from the bottom half */
    uint64_t longest_hold_ns;   /* of the BQL at a stretch, since reset */
    uint64_t busy_ns;           /* sum of all such holds */
} BalloonWorker;

void balloon_worker_realize(BalloonWorker *w, VirtIODevice *vdev,
                            BalloonQueue *queue, unsigned int nr_queues,
                            int64_t slice_bytes, int slice_work);
void balloon_worker_unrealize(BalloonWorker *w);
/* On each notification */
void balloon_worker_kick(BalloonWorker *w);
/* To go on without a notification: the buffers in the ring have had theirs */
void balloon_worker_schedule(BalloonWorker *w);
/* The VM stops: does what is left now, but not much, and not for long */
void balloon_worker_finish(BalloonWorker *w, int work);
/* Messages that are not done go back to their rings */
void balloon_worker_stop(BalloonWorker *w);
void balloon_queue_give_back(BalloonQueue *q);

#endif
