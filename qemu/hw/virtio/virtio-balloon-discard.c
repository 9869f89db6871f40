/*
 * virtio-balloon: discard ranges of guest memory together
 *
 * A page by itself costs a system call as much as a long range does.  So
 * ranges are put off until a few are there, and go to the host at once.
 *
 * Failure is not fatal.  ram_block_discard_range() reports it, and that must
 * not happen for each page that a guest names.  So the RAM block is left alone
 * for a while, a longer one each time: a file system may have been full, or a
 * server gone.  A reset of the device changes nothing about that.
 *
 * Everything here runs under the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "hw/virtio/virtio-balloon.h"
#include "trace.h"

/*
 * What is put off has not taken its time from a slice of work yet: it must
 * not be much.  Of single pages it is BALLOON_DISCARD_RANGES.
 */
#define PUT_OFF_BYTES   (1 * MiB)

/* For how long a RAM block is left alone, in ms */
#define OUT_MS          (10 * 1000)
#define OUT_MAX_MS      (60 * 60 * 1000)

/*
 * A RAM block that is left alone.  It may be gone, and another be in its place:
 * then that is left alone.
 */
typedef struct BalloonOut {
    int64_t until;              /* of QEMU_CLOCK_REALTIME, in ms */
    int64_t ms;
} BalloonOut;

static bool balloon_discard_is_out(BalloonDiscard *d)
{
    BalloonOut *out = d->out ? g_hash_table_lookup(d->out, d->rb) : NULL;

    return out && qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < out->until;
}

static void balloon_discard_failed(BalloonDiscard *d)
{
    BalloonOut *out;

    if (!d->out) {
        d->out = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    }
    out = g_hash_table_lookup(d->out, d->rb);
    if (!out) {
        out = g_new0(BalloonOut, 1);
        g_hash_table_insert(d->out, d->rb, out);
    }
    out->ms = out->ms ? MIN(2 * out->ms, OUT_MAX_MS) : OUT_MS;
    out->until = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + out->ms;
}

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
    /* Of what maps a file each is a call by itself, and may be a slow one. */
    if (d->nr == ARRAY_SIZE(d->range) || d->put_off >= PUT_OFF_BYTES ||
        qemu_ram_get_fd(rb) >= 0) {
        balloon_discard_flush(d);
    }
}

void balloon_discard_flush(BalloonDiscard *d)
{
    size_t done = 0, i;

    if (d->nr && !balloon_discard_is_out(d)) {
        done = ram_block_discard_ranges(d->rb, d->range, d->nr, &d->calls);
        if (done < d->nr) {
            balloon_discard_failed(d);
        } else if (d->out) {
            g_hash_table_remove(d->out, d->rb);
        }
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

void balloon_discard_free(BalloonDiscard *d)
{
    if (d->out) {
        g_hash_table_destroy(d->out);
        d->out = NULL;
    }
}
