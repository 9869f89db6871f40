/*
 * virtio-balloon: the misc queue, on which the device asks
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_MISC_H
#define QEMU_VIRTIO_BALLOON_MISC_H

#include "hw/virtio/virtio.h"
#include "hw/virtio/virtio-balloon-bitmap.h"
#include "migration/unused-pages.h"

/* Since the device was created */
typedef struct BalloonMiscStats {
    uint64_t requests;          /* given to the driver */
    uint64_t answers;           /* that came to their end, DONE */
    uint64_t errors;            /* ... or ERROR */
    uint64_t ended;             /* requests whose id ended before the answer */
    uint64_t messages;          /* buffers of records taken from the queue */
    uint64_t bytes;             /* their size */
    uint64_t records;           /* good ones, for the current request */
    uint64_t bad_records;
    uint64_t stale_records;     /* for another request, or for none */
    uint64_t runs;              /* of set bits, those that touch joined */
    uint64_t skipped_runs;      /* parts of runs: no RAM, or not asked for */
    uint64_t reported_pages;    /* of 4 KiB, in RAM */
    uint64_t answer_ns;         /* of the last answer, from request to DONE */
    uint64_t longest_answer_ns;
    uint64_t bh_calls;          /* slices of work from a bottom half */
} BalloonMiscStats;

typedef struct BalloonMiscRequest {
    uint16_t cmd;
    bool migration;             /* asks; else somebody who is just curious */
    hwaddr start;               /* guest-physical range */
    hwaddr end;
    int64_t sent;               /* get_clock() */
} BalloonMiscRequest;

typedef struct BalloonMisc {
    VirtIODevice *vdev;
    VirtQueue *vq;              /* NULL: not offered */
    QEMUBH *bh;
    bool bh_scheduled;
    bool warned;                /* about a buffer that takes no request */

    /* What the first buffer since reset says of the queue */
    bool usable;
    bool unusable;
    bool late;                  /* migration wanted one that did not come yet */

    /* Outstanding from when it is pushed until DONE or ERROR comes */
    BalloonMiscRequest request;
    uint64_t last_id;
    bool outstanding;
    bool ended;                 /* it is, but its id has ended */

    /* To be sent as soon as there is a buffer for it */
    BalloonMiscRequest next;
    bool wanted;

    /* The message at the head of the queue, as far as it was read */
    BalloonRecords records;
    bool in_message;
    uint16_t final;             /* flags of the record that ends the answer */

    UnusedPagesProvider provider;
    BalloonMiscStats stats;
} BalloonMisc;

void balloon_misc_instance_init(BalloonMisc *m, Object *obj);
/* Adds the queue, which must be the device's last */
void balloon_misc_realize(BalloonMisc *m, VirtIODevice *vdev, uint16_t size);
void balloon_misc_unrealize(BalloonMisc *m);
void balloon_misc_reset(BalloonMisc *m);
void balloon_misc_queue_reset(BalloonMisc *m, uint32_t index);
void balloon_misc_set_status(BalloonMisc *m, uint8_t status);

extern const VMStateDescription vmstate_virtio_balloon_misc;

#endif
