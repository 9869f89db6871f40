/*
 * virtio-balloon: messages that are records, each with a page bitmap
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_RECORDS_H
#define QEMU_VIRTIO_BALLOON_RECORDS_H

#include "hw/virtio/virtio-balloon-slice.h"
#include "standard-headers/linux/virtio_balloon.h"

typedef struct BalloonRecords BalloonRecords;

/* What the records of a queue mean */
typedef struct BalloonRecordsOps {
    bool answers;               /* to requests: cmd, flag, req_id may be set */
    /*
     * A record without a fault has come.  Returns whether its bits count.  If
     * it sets *@last, no later record joins its runs, and last() is called
     * when they have been applied.
     */
    bool (*record)(BalloonRecords *r, const struct virtio_balloon_bmap_hdr *hdr,
                   bool *last);
    void (*last)(BalloonRecords *r);
    /*
     * Applies the run that begins at guest-physical @start and lies within
     * what the slice has looked up, or a part of it.  Returns how much.
     */
    hwaddr (*run)(BalloonRecords *r, BalloonSlice *s, hwaddr start, hwaddr len);
} BalloonRecordsOps;

/* One queue's records: the current one, out of the guest's reach, and runs */
struct BalloonRecords {
    VirtIODevice *vdev;
    const BalloonRecordsOps *ops;
    unsigned long *bitmap;      /* VIRTIO_BALLOON_BMAP_MAX_LEN bytes */
    unsigned long nr_bits;
    unsigned long next_bit;
    uint64_t start_pfn;
    unsigned int page_shift;

    /* Guest-physical [run_start, run_end) is still to be applied */
    hwaddr run_start;
    hwaddr run_end;
    bool run_complete;          /* no further bits can touch it */
    bool last;                  /* see record() */

    /* Since the device was created */
    uint64_t records;           /* whose bits count */
    uint64_t bad_records;
    uint64_t runs;              /* of set bits, those that touch joined */
    uint64_t skipped_runs;      /* parts of runs that mean nothing here */
};

/* The queue's messages are records from now on; its opaque is @r */
void balloon_records_init(BalloonRecords *r, BalloonQueue *q,
                          const BalloonRecordsOps *ops);
void balloon_records_free(BalloonRecords *r);
/* Forgets the current record and run */
void balloon_records_drop(BalloonRecords *r);

/* Members of a BalloonFormat */
BalloonTaken balloon_records_take(BalloonQueue *q, VirtQueueElement *elem);
bool balloon_records_done(BalloonQueue *q);
void balloon_records_step(BalloonQueue *q, BalloonSlice *s);
void balloon_records_end(BalloonQueue *q);

/* A counter, and the name by which management sees it */
typedef struct BalloonCounter {
    const char *name;
    uint64_t value;
} BalloonCounter;

/* For the getter of a property that holds counters */
void balloon_visit_counters(Visitor *v, const char *name,
                            const BalloonCounter *all, size_t nr,
                            Error **errp);

#endif
