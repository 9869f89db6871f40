/*
 * virtio-balloon: the misc queue, on which the device asks
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_MISC_H
#define QEMU_VIRTIO_BALLOON_MISC_H

#include "hw/virtio/virtio-balloon-records.h"
#include "migration/unused-pages.h"
#include "system/balloon-request.h"

typedef struct BalloonMiscRequest {
    uint16_t cmd;
    bool migration;             /* asks; else the task is part of the request */
    hwaddr start;               /* guest-physical range */
    hwaddr end;
    uint64_t bytes;             /* to be reclaimed... */
    uint32_t msecs;             /* ...for so long... */
    bool swap;                  /* ...and may be swapped for it */
    uint64_t number;            /* the answer; bytes, if it is pages */
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

/* What somebody asked for, in one or several requests */
typedef struct BalloonTask {
    uint64_t id;                /* 0: nothing yet */
    BalloonRequestType type;
    BalloonRequestStatus status;
    uint16_t cmd;
    uint64_t parts;             /* requests so far */
    uint64_t bytes;             /* that came of it so far */
    uint64_t limit;             /* to be reclaimed... */
    bool swap;                  /* ...by swapping, too... */
    int64_t deadline_ms;        /* ...until then */
    int64_t start_ms;
    int64_t end_ms;
    QEMUTimer late;             /* the driver does not offer its buffer */
    hwaddr next;                /* where the next part begins... */
    hwaddr ram_end;             /* ...and the last one ends */
    /* Of all of a type, since the device was created */
    uint64_t total[BALLOON_REQUEST_TYPE__MAX];
} BalloonTask;

typedef struct BalloonMisc {
    BalloonWorker worker;       /* without a device: not offered */
    BalloonQueue queue;
    BalloonRecords records;
    BalloonMiscState state;
    bool warned;                /* about a buffer that takes no request */
    BalloonMiscRequest request; /* WANTED, ASKED, ENDED */
    uint16_t final;             /* flags of the record that ends the answer */
    uint64_t last_id;
    uint32_t ended_id;          /* of the config space */
    bool outstanding;           /* state for the vmstate: ASKED or ENDED */
    UnusedPagesProvider provider;
    BalloonTask task;
    /* Properties: what a migration has reclaimed first, at the most */
    uint64_t migrate_reclaim;
    uint32_t migrate_reclaim_ms;
    bool prepared;              /* that was begun... */
    int64_t prepare_until;      /* ...or not, by then */

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
/* Of the properties */
bool balloon_misc_check(VirtIODevice *vdev, Error **errp);
/* Adds the queue, which must be the device's last */
void balloon_misc_realize(VirtIODevice *vdev);
void balloon_misc_unrealize(VirtIODevice *vdev);
void balloon_misc_reset(VirtIODevice *vdev);
void balloon_misc_queue_reset(VirtIODevice *vdev, uint32_t index);
void balloon_misc_set_status(VirtIODevice *vdev, uint8_t status);

extern const VMStateDescription vmstate_virtio_balloon_misc;

/* Whether the driver can be asked, and if not, why */
UnusedPagesReady balloon_misc_ready(BalloonMisc *m, Error **errp);
/* The request is written in the bottom half */
void balloon_misc_want(BalloonMisc *m, const BalloonMiscRequest *req);
/*
 * From here on the answer does not count; it is outstanding all the same.  The
 * driver is told.
 */
void balloon_misc_end_id(BalloonMisc *m);

/* Of the task, see virtio-balloon-request.c */
void balloon_request_init(BalloonMisc *m);
bool balloon_request_start(BalloonMisc *m, BalloonRequestType type,
                           uint64_t bytes, uint32_t timeout, bool swap,
                           Error **errp);
void balloon_request_cancel(BalloonMisc *m);
/* No further runs will come */
void balloon_request_part_ended(BalloonMisc *m, UnusedPagesEnd how);

#endif
