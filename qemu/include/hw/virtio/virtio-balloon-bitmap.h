/*
 * virtio-balloon: inflate and deflate by page bitmap
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_BITMAP_H
#define QEMU_VIRTIO_BALLOON_BITMAP_H

#include "hw/virtio/virtio.h"
#include "standard-headers/linux/virtio_balloon.h"

/* Since the device was created.  Those marked * count PFN arrays as well. */
typedef struct BalloonBitmapStats {
    uint64_t kicks;             /* * queue notifications */
    uint64_t messages;          /* * buffers taken from the queues */
    uint64_t bytes;             /* * their size */
    uint64_t records;           /* good ones */
    uint64_t bad_records;
    uint64_t runs;              /* of set bits, those that touch joined */
    uint64_t skipped_runs;      /* parts of runs that are not RAM */
    uint64_t inflated_pages;    /* of 4 KiB, in RAM */
    uint64_t deflated_pages;
    uint64_t discards;          /* * calls */
    uint64_t discarded_bytes;   /* * */
    uint64_t partial_bytes;     /* inflated, less than a backing page each */
    uint64_t kept_bytes;        /* * inflated, but discards fail */
    uint64_t bh_calls;          /* * slices of work from a bottom half */
    uint64_t longest_hold_ns;   /* * of the BQL at a stretch, since reset */
    uint64_t busy_ns;           /* * sum of all such holds */
} BalloonBitmapStats;

/* A buffer of records (or page numbers), and how far it has been read */
typedef struct BalloonRecords {
    size_t size;                /* of the buffer */
    size_t offset;              /* of what comes next */

    /* Current record, out of the guest's reach */
    unsigned long *bitmap;      /* VIRTIO_BALLOON_BMAP_MAX_LEN bytes */
    unsigned long nr_bits;
    unsigned long next_bit;
    uint64_t start_pfn;
    unsigned int page_shift;

    /* Guest-physical [run_start, run_end) is still to be applied */
    hwaddr run_start;
    hwaddr run_end;
    bool run_complete;          /* no further bits can touch it */
} BalloonRecords;

/* What is left of a slice of work: RAM, work items, and time */
typedef struct BalloonSlice {
    int64_t bytes;
    int work;
    int64_t deadline;           /* of get_clock() */
    /*
     * Last look-up, good for [start, end), with a reference to mr.  No mr:
     * nothing is mapped there.
     */
    MemoryRegion *mr;
    hwaddr start;
    hwaddr end;
    hwaddr mr_offset;           /* of start */
} BalloonSlice;

/* How far one queue's work has come */
typedef struct BalloonBitmapQueue {
    VirtQueueElement *elem;     /* being worked on, not yet acknowledged */
    BalloonRecords records;
} BalloonBitmapQueue;

typedef struct BalloonBitmap {
    VirtIODevice *vdev;
    QEMUBH *bh;                 /* goes on where a slice of work ended */
    bool bh_scheduled;
    bool warned;
    bool discard_failed;        /* since reset: then it is not tried again */
    uint8_t turn;               /* the queue that the next slice begins with */
    uint16_t queue_size;
    BalloonBitmapQueue queue[2];    /* inflate, deflate: as on the device */
    BalloonBitmapStats stats;
} BalloonBitmap;

void balloon_bitmap_instance_init(BalloonBitmap *b, Object *obj);
bool balloon_bitmap_check(BalloonBitmap *b, Error **errp);
void balloon_bitmap_realize(BalloonBitmap *b, VirtIODevice *vdev);
void balloon_bitmap_unrealize(BalloonBitmap *b);
void balloon_bitmap_reset(BalloonBitmap *b);
void balloon_bitmap_queue_reset(BalloonBitmap *b, uint32_t index);
void balloon_bitmap_set_status(BalloonBitmap *b, uint8_t status);

/* On each inflate or deflate notification; takes records or PFN arrays */
void balloon_bitmap_handle(BalloonBitmap *b);

/* ram_block_discard_range(), counted, and up to the first that fails */
void balloon_bitmap_discard(BalloonBitmap *b, RAMBlock *rb, ram_addr_t offset,
                            size_t length);

/*
 * For each queue that is worked on in slices.  What costs as much as
 * MESSAGE_WORK work items is a buffer, however little is in it; runs (per
 * memory section), records, good or bad, and page numbers are one each.
 */
#define BALLOON_MESSAGE_WORK    32
/* A slice of work ends after this time, even if a slow host did little */
#define BALLOON_SLICE_NS        (2 * SCALE_MS)

bool balloon_slice_used_up(const BalloonSlice *s);
/* After it the slice's look-up is good for addr */
void balloon_slice_look_up(BalloonSlice *s, hwaddr addr);
/* Whether it found RAM that the guest can write to */
bool balloon_slice_is_ram(const BalloonSlice *s);

/*
 * Copies the next record in.  Returns NULL, or what is wrong with the record,
 * which then is left out.  @flags are the legal ones; cmd and req_id must be 0
 * unless records answer requests.
 */
const char *balloon_records_next(BalloonRecords *r, VirtQueueElement *elem,
                                 struct balloon_bmap_hdr *hdr, uint16_t flags,
                                 bool answers);
/*
 * The next group of set bits begins the run, prolongs it, or completes it.
 * Returns whether it begins one.
 */
bool balloon_records_next_bits(BalloonRecords *r);
/* Forgets the current record and run */
void balloon_records_drop(BalloonRecords *r);
/* Names the first fault of the device's records, of whatever queue */
void balloon_records_warn(VirtIODevice *vdev, const char *fault);

#endif
