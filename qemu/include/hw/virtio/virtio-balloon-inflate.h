/*
 * virtio-balloon: inflate and deflate by page bitmap
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_INFLATE_H
#define QEMU_VIRTIO_BALLOON_INFLATE_H

#include "hw/virtio/virtio-balloon-records.h"

typedef struct VirtIOBalloon VirtIOBalloon;

/* The counters are since the device was created. */
typedef struct BalloonInflate {
    uint64_t granule;           /* property: at least so many bytes */
    BalloonRecords records[2];  /* inflate, deflate: as the queues */
    uint64_t inflated_pages;    /* of 4 KiB, in RAM */
    uint64_t deflated_pages;
    uint64_t partial_bytes;     /* inflated, less than a backing page each */
} BalloonInflate;

/* Of the inflate and the deflate queue, once this is negotiated */
extern const BalloonFormat balloon_inflate_format;
bool balloon_inflate_negotiated(VirtIODevice *vdev);

/* Discards backing pages of a range; returns how many bytes, not one by one */
ram_addr_t balloon_inflate_discard(VirtIOBalloon *s, RAMBlock *rb,
                                   ram_addr_t start, ram_addr_t end);

/* What the driver is told that page bitmaps should be made of */
uint32_t balloon_inflate_granule_shift(VirtIODevice *vdev);

void balloon_inflate_instance_init(Object *obj);
/* Of the properties */
bool balloon_inflate_check(VirtIODevice *vdev, Error **errp);
void balloon_inflate_realize(VirtIODevice *vdev);
void balloon_inflate_unrealize(VirtIODevice *vdev);

#endif
