/*
 * virtio-balloon: discard ranges of guest memory together
 *
 * A page by itself costs a system call as much as a long range does.  So
 * ranges are put off until a few are there, and go to the host at once.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "hw/virtio/virtio-balloon.h"
#include "trace.h"

/*
 * What is put off has not taken its time from a slice of work yet: it must
 * not be much.  Of single pages it is BALLOON_DISCARD_RANGES.
 */
#define PUT_OFF_BYTES   (1 * MiB)

void balloon_discard(BalloonDiscard *d, RAMBlock *rb, ram_addr_t offset,
                     size_t length)
{
    if (d->rb != rb) {
        balloon_discard_flush(d);
        d->rb = rb;
    }
    trace_virtio_balloon_discard(qemu_ram_get_idstr(rb), offset, length);
    d->range[d->nr++] = (struct iovec) {
        .iov_base = (uint8_t *)qemu_ram_get_host_addr(rb) + offset,
        .iov_len = length,
    };
    d->put_off += length;
    if (d->nr == ARRAY_SIZE(d->range) || d->put_off >= PUT_OFF_BYTES) {
        balloon_discard_flush(d);
    }
}

/*
 * Failure is not fatal.  ram_block_discard_range() reports it, and that must
 * not happen for each page that a guest names.
 */
void balloon_discard_flush(BalloonDiscard *d)
{
    size_t done = 0, i;

    if (d->nr && !d->failed) {
        done = ram_block_discard_ranges(d->rb, d->range, d->nr, &d->calls);
        d->failed = done < d->nr;
    }
    for (i = 0; i < d->nr; i++) {
        if (i < done) {
            d->ranges++;
            d->bytes += d->range[i].iov_len;
        } else {
            d->kept_bytes += d->range[i].iov_len;
        }
    }
    d->nr = 0;
    d->put_off = 0;
    d->rb = NULL;
}

void balloon_discard_flush_queue(BalloonQueue *q)
{
    balloon_discard_flush(&VIRTIO_BALLOON(q->vdev)->discard);
}
