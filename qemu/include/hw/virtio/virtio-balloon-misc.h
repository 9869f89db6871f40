/*
 * virtio-balloon: the misc queue, on which the device asks
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_MISC_H
#define QEMU_VIRTIO_BALLOON_MISC_H

#include "hw/virtio/virtio-balloon-records.h"
#include "migration/unused-pages.h"

typedef struct BalloonMiscRequest {
    uint16_t cmd;
    bool migration;             /* asks; else somebody who is just curious */
    hwaddr start;               /* guest-physical range */
    hwaddr end;
    int64_t sent;               /* get_clock() */
} BalloonMiscRequest;

typedef enum BalloonMiscState {
    BALLOON_MISC_NEW,           /* no buffer has come since reset */
    BALLOON_MISC_UNUSABLE,      /* the first takes no request */
    BALLOON_MISC_READY,         /* the buffer is there, or will be any moment */
    BALLOON_MISC_WANTED,        /* a request waits for the buffer */
    BALLOON_MISC_LATE,          /* one did in vain, and it is still not there */
    BALLOON_MISC_ASKED,         /* until DONE or ERROR comes */
    BALLOON_MISC_ENDED,         /* likewise, but the answer does not count */
} BalloonMiscState;

typedef struct BalloonMisc {
    BalloonWorker worker;       /* without a device: not offered */
    BalloonQueue queue;
    BalloonRecords records;
    BalloonMiscState state;
    bool warned;                /* about a buffer that takes no request */
    BalloonMiscRequest request; /* WANTED, ASKED, ENDED */
    uint16_t final;             /* flags of the record that ends the answer */
    uint64_t last_id;
    bool outstanding;           /* state for the vmstate: ASKED or ENDED */
    UnusedPagesProvider provider;

    /* Since the device was created */
    uint64_t requests;          /* given to the driver */
    uint64_t answers;           /* that came to their end, DONE */
    uint64_t errors;            /* ... or ERROR */
    uint64_t ended;             /* requests whose id ended before the answer */
    uint64_t stale_records;     /* for another request, or for none */
    uint64_t reported_pages;    /* of 4 KiB, in RAM */
    uint64_t answer_ns;         /* of the last answer, from request to DONE */
    uint64_t longest_answer_ns;
} BalloonMisc;

void balloon_misc_instance_init(Object *obj);
/* Adds the queue, which must be the device's last */
void balloon_misc_realize(VirtIODevice *vdev);
void balloon_misc_unrealize(VirtIODevice *vdev);
void balloon_misc_reset(VirtIODevice *vdev);
void balloon_misc_queue_reset(VirtIODevice *vdev, uint32_t index);
void balloon_misc_set_status(VirtIODevice *vdev, uint8_t status);

extern const VMStateDescription vmstate_virtio_balloon_misc;

#endif
