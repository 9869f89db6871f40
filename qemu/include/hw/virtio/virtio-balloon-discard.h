/*
 * virtio-balloon: discard ranges of guest memory together
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_BALLOON_DISCARD_H
#define QEMU_VIRTIO_BALLOON_DISCARD_H

#include "exec/cpu-common.h"
#include "hw/virtio/virtio-balloon-slice.h"

#define BALLOON_DISCARD_RANGES  256

typedef struct BalloonDiscard {
    RAMBlock *rb;               /* of what is put off */
    struct iovec range[BALLOON_DISCARD_RANGES];
    unsigned int nr;
    size_t put_off;             /* bytes */
    GHashTable *out;            /* blocks that could not be discarded */

    /* Since the device was created */
    uint64_t ranges;            /* discarded */
    uint64_t bytes;
    uint64_t calls;             /* of the host's system, to discard them */
    uint64_t kept_bytes;        /* not discarded: it failed, or just had */
} BalloonDiscard;

/* Sooner or later, but before it is flushed */
void balloon_discard(BalloonDiscard *d, RAMBlock *rb, ram_addr_t offset,
                     size_t length);
void balloon_discard_flush(BalloonDiscard *d);
void balloon_discard_free(BalloonDiscard *d);
/* Member of a BalloonFormat */
void balloon_discard_flush_queue(BalloonQueue *q);

#endif
