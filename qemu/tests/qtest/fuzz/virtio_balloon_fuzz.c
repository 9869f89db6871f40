/*
 * Fuzzing of virtio-balloon: page bitmaps and the misc queue
 *
 * An input is a program for a driver: a byte for how the device is plugged, a
 * few for how it is set up, then operations, most of which are nearly legal,
 * so that they get beyond the first check.  The driver keeps its rings in
 * order, so whatever it says in its messages the device must
 *
 *   - not be broken, and come to rest;
 *   - use every buffer once, and keep none when it is at rest;
 *   - count as many records, refused records, runs and pages as a second
 *     reading of the messages, here, finds in them;
 *   - end every request once;
 *   - take a good record on every queue afterwards.
 *
 * Nothing is forked.  The device is reset after each input, and plugged anew
 * when the next one wants it with other queues.  The driver's own memory, the
 * arena, lies where a record rarely strays; what was used of it is cleared.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"
#include "qobject/qdict.h"
#include "exec/address-spaces.h"
#include "hw/virtio/virtio-balloon.h"
#include "hw/virtio/virtio-pci.h"
#include "monitor/qdev.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"
#include "system/runstate.h"
#include "fuzz.h"

#define RAM_SIZE        (32 * MiB)
#define BAR             0xe0000000ull
#define DIMM            0x140000000ull
#define DIMM_SIZE       (4 * MiB)

/* The arena is the first half of the DIMM; all of it may be one huge segment */
#define ARENA           DIMM
#define ARENA_SIZE      (2 * MiB)
#define RING(q)         (0x4000 * (q))
#define TABLES          0x20000
#define TABLES_SIZE     0x10000
#define SCRATCH         0x40000
#define SCRATCH_SIZE    0x10000
#define PATTERNS        0x80000
#define PATTERN_SIZE    0x8000

#define NR_QUEUES       6
#define MAX_NUM         128
#define MAX_SEGS        16
/* A slice does at least 32 messages, and none of a session is larger than it */
#define MAX_SLICES      10000
/* Bits that change at each step are what costs time */
#define MAX_STRIPES     (6 * KiB)
#define MAX_NUMBERS     (16 * KiB)

#define CANARY          0x6d756e6f6c6c6162ull

static const uint8_t patterns[] = { 0x00, 0xff, 0xaa, 0x3c };

/* What a message must add to the counters */
typedef struct Expect {
    uint64_t messages;
    uint64_t bytes;
    uint64_t records;
    uint64_t bad;
    uint64_t runs;
    uint64_t pages;
    uint64_t in_bytes;
    bool stray;                 /* hits the arena */
    bool unsure;                /* lies where it may change */
} Expect;

typedef struct Seg {
    hwaddr addr;
    uint32_t len;
    bool write;
} Seg;

/* What the device has counted */
typedef struct Counters {
    uint64_t messages[2];       /* inflate and deflate, misc */
    uint64_t bytes[2];
    uint64_t records[2];
    uint64_t bad[2];
    uint64_t runs[2];
    uint64_t inflated;
    uint64_t deflated;
    uint64_t partial;
    uint64_t discards;
    uint64_t discarded;
    uint64_t reported;
    uint64_t requests;
    uint64_t answers;
    uint64_t errors;
    uint64_t ended;
} Counters;

typedef struct Pending {
    bool used;
    uint16_t n;                 /* descriptors */
    uint64_t seq;
    hwaddr in_addr;
    Expect e;
} Pending;

typedef struct Ring {
    unsigned int index;
    uint8_t *mem;
    uint16_t num;
    uint16_t nr_pending;
    uint16_t nr_free;
    uint16_t free[MAX_NUM];     /* split */
    uint16_t next[MAX_NUM];
    uint16_t avail;
    uint16_t used;
    bool avail_wrap;            /* packed */
    bool used_wrap;
    uint64_t seq;
    Pending pending[MAX_NUM];
} Ring;

static struct {
    uint8_t *arena;
    uint8_t *ram;
    GArray *map;                /* of RAM, pairs of addresses */
    int plugged;

    VirtIOPCIProxy *proxy;
    VirtIODevice *vdev;
    VirtIOBalloon *s;
    BalloonMisc *m;
    unsigned int misc;          /* its queue, 0: none */
    unsigned int nr_queues;

    /* One input */
    const uint8_t *in;
    size_t len;
    Ring ring[NR_QUEUES];
    uint8_t sizes;
    bool packed;
    bool live;                  /* set up, and by the rules since */
    bool wild;                  /* what follows may break the device */
    bool sure[2];               /* of the counters: bitmaps, misc queue */
    bool paused;
    bool inhibited;
    Seg seg[MAX_SEGS];
    unsigned int nr_segs;
    bool cut;
    unsigned int scratch;       /* bytes of it that are in use */
    unsigned int tables;
    unsigned int stripes;
    unsigned int numbers;       /* of pages */
    unsigned int last_record;
    Counters before;
    Expect sum[3];              /* inflate, deflate, misc */
    uint64_t asked;
} f;

/* Not assert(), so that the message is the same wherever it is compiled */
#define MUST(cond)                                                      \
    do {                                                                \
        if (!(cond)) {                                                  \
            fprintf(stderr, "%s:%d: broken invariant: %s\n",            \
                    __func__, __LINE__, #cond);                         \
            abort();                                                    \
        }                                                               \
    } while (0)

static uint8_t get8(void)
{
    if (!f.len) {
        return 0;
    }
    f.len--;
    return *f.in++;
}

static uint16_t get16(void)
{
    return get8() | get8() << 8;
}

static uint64_t get64(void)
{
    uint64_t ret = 0;
    int i;

    for (i = 0; i < 64; i += 8) {
        ret |= (uint64_t)get8() << i;
    }
    return ret;
}

/* The transport */

static void common(unsigned int reg, uint32_t val, unsigned int size)
{
    hwaddr addr = BAR + f.proxy->common.offset + reg;
    MemTxAttrs attrs = MEMTXATTRS_UNSPECIFIED;

    if (size == 1) {
        address_space_stb(&address_space_memory, addr, val, attrs, NULL);
    } else if (size == 2) {
        address_space_stw_le(&address_space_memory, addr, val, attrs, NULL);
    } else {
        address_space_stl_le(&address_space_memory, addr, val, attrs, NULL);
    }
}

static void kick(unsigned int q)
{
    /* Hints are taken by another thread: that could not be repeated */
    if (q == 3 && f.plugged & 1) {
        return;
    }
    address_space_stw_le(&address_space_memory,
                         BAR + f.proxy->notify.offset + 4 * q, q,
                         MEMTXATTRS_UNSPECIFIED, NULL);
}

static void set_features(uint64_t features)
{
    common(VIRTIO_PCI_COMMON_GFSELECT, 0, 4);
    common(VIRTIO_PCI_COMMON_GF, features, 4);
    common(VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
    common(VIRTIO_PCI_COMMON_GF, features >> 32, 4);
}

static bool has(unsigned int feature)
{
    return virtio_vdev_has_feature(f.vdev, feature);
}

static void unplug(void)
{
    object_unparent(OBJECT(f.proxy));
    /* Most of it goes with the next grace period */
    f.plugged = -1;
}

static void plug(int how)
{
    QDict *opts = qdict_new();
    DeviceState *dev;

    if (f.plugged >= 0) {
        unplug();
    }
    qdict_put_str(opts, "driver", "virtio-balloon-pci");
    qdict_put_str(opts, "addr", "5");
    qdict_put_str(opts, "disable-legacy", "on");
    /* A notification is taken at once, not when the main loop comes to it */
    qdict_put_str(opts, "ioeventfd", "off");
    qdict_put_str(opts, "packed", "on");
    qdict_put_str(opts, "page-bitmap", "on");
    qdict_put_str(opts, "misc-vq", "on");
    qdict_put_str(opts, "iothread", "io");
    qdict_put_str(opts, "free-page-hint", how & 1 ? "on" : "off");
    qdict_put_str(opts, "free-page-reporting", how & 2 ? "on" : "off");
    dev = qdev_device_add_from_qdict(opts, false, &error_abort);
    qobject_unref(opts);

    f.plugged = how;
    f.proxy = VIRTIO_PCI(dev);
    f.vdev = virtio_bus_get_device(&f.proxy->bus);
    f.s = VIRTIO_BALLOON(f.vdev);
    f.m = &f.s->misc;
    f.misc = virtio_get_queue_index(f.m->queue.vq);
    f.nr_queues = f.misc + 1;
    object_unref(OBJECT(dev));

    pci_default_write_config(&f.proxy->pci_dev, PCI_BASE_ADDRESS_4, BAR, 4);
    pci_default_write_config(&f.proxy->pci_dev, PCI_BASE_ADDRESS_4 + 4, 0, 4);
    PCI_DEVICE(dev)->config_write(PCI_DEVICE(dev), PCI_COMMAND,
                                  PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
}

static bool outstanding(void)
{
    return f.m->state == BALLOON_MISC_ASKED || f.m->state == BALLOON_MISC_ENDED;
}

/* Nothing is done between two slices of work */
static bool at_rest(void)
{
    return !f.s->queue[0].elem && !f.s->queue[1].elem && !f.m->queue.elem;
}

static bool scheduled(void)
{
    return f.s->worker.scheduled || f.m->worker.scheduled;
}

static Counters count(void)
{
    const BalloonQueue *q = f.s->queue;
    const BalloonInflate *b = &f.s->inflate;
    const BalloonRecords *r = b->records;
    const BalloonMisc *m = f.m;

    return (Counters) {
        .messages = { q[0].messages + q[1].messages, m->queue.messages },
        .bytes = { q[0].bytes + q[1].bytes, m->queue.bytes },
        .records = { r[0].records + r[1].records,
                     m->records.records + m->stale_records },
        .bad = { r[0].bad_records + r[1].bad_records, m->records.bad_records },
        .runs = { r[0].runs + r[1].runs, m->records.runs },
        .inflated = b->inflated_pages,
        .deflated = b->deflated_pages,
        .partial = b->partial_bytes,
        .discards = f.s->discard.ranges,
        .discarded = f.s->discard.bytes,
        .reported = m->reported_pages,
        .requests = m->requests,
        .answers = m->answers,
        .errors = m->errors,
        .ended = m->ended,
    };
}

/* The rings */

/* A word at each page's end tells whether the driver hit its own foot */
static uint64_t *canary(unsigned int page)
{
    return (uint64_t *)(f.arena + page + 4096 - sizeof(uint64_t));
}

static bool rings_good(void)
{
    unsigned int page;

    for (page = 0; page < TABLES + TABLES_SIZE; page += 4096) {
        if (*canary(page) != CANARY) {
            return false;
        }
    }
    return true;
}

static void put_canaries(void)
{
    unsigned int page;

    for (page = 0; page < TABLES + TABLES_SIZE; page += 4096) {
        *canary(page) = CANARY;
    }
}

static void ring_init(unsigned int q)
{
    static const uint8_t sizes[] = { 128, 1, 2, 4, 8, 16, 64, 128 };
    Ring *r = &f.ring[q];
    int i;

    memset(r, 0, sizeof(*r));
    r->index = q;
    r->mem = f.arena + RING(q);
    memset(r->mem, 0, 0x3000);
    r->num = sizes[(f.sizes + (f.sizes & 8 ? q : 0)) % 8];
    r->nr_free = r->num;
    for (i = 0; i < r->num; i++) {
        r->free[i] = r->num - 1 - i;
    }
    r->avail_wrap = r->used_wrap = true;
}

static void ring_enable(unsigned int q)
{
    Ring *r = &f.ring[q];
    uint64_t base = ARENA + RING(q);

    common(VIRTIO_PCI_COMMON_Q_SELECT, q, 2);
    common(VIRTIO_PCI_COMMON_Q_SIZE, r->num, 2);
    common(VIRTIO_PCI_COMMON_Q_DESCLO, base, 4);
    common(VIRTIO_PCI_COMMON_Q_DESCHI, base >> 32, 4);
    common(VIRTIO_PCI_COMMON_Q_AVAILLO, base + 0x1000, 4);
    common(VIRTIO_PCI_COMMON_Q_AVAILHI, base >> 32, 4);
    common(VIRTIO_PCI_COMMON_Q_USEDLO, base + 0x2000, 4);
    common(VIRTIO_PCI_COMMON_Q_USEDHI, base >> 32, 4);
    common(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

static void desc_write(uint8_t *d, const Seg *s, uint16_t flags, uint16_t last)
{
    stq_le_p(d, s->addr);
    stl_le_p(d + 8, s->len);
    if (f.packed) {
        stw_le_p(d + 12, last);
        stw_le_p(d + 14, flags);
    } else {
        stw_le_p(d + 12, flags);
        stw_le_p(d + 14, last);
    }
}

/* Fills a table of descriptors for one that stands for all of them */
static bool make_table(const Seg *segs, unsigned int n, Seg *table)
{
    uint8_t *d;
    unsigned int i;

    if (f.tables % 4096 + n * 16 > 4096 - 16) {
        f.tables = QEMU_ALIGN_UP(f.tables, 4096);
    }
    d = f.arena + TABLES + f.tables;
    if (f.tables + n * 16 > TABLES_SIZE) {
        return false;
    }
    for (i = 0; i < n; i++) {
        uint16_t flags = segs[i].write ? VRING_DESC_F_WRITE : 0;

        if (!f.packed && i < n - 1) {
            flags |= VRING_DESC_F_NEXT;
        }
        desc_write(d + 16 * i, &segs[i], flags, f.packed ? 0 : i + 1);
    }
    *table = (Seg) { .addr = ARENA + TABLES + f.tables, .len = n * 16 };
    f.tables += n * 16;
    return true;
}

static uint16_t packed_flags(bool wrap)
{
    return wrap ? 1 << VRING_PACKED_DESC_F_AVAIL
                : 1 << VRING_PACKED_DESC_F_USED;
}

static bool ring_add(Ring *r, const Seg *segs, unsigned int n, bool indirect,
                     const Expect *e)
{
    bool is_table = indirect && has(VIRTIO_RING_F_INDIRECT_DESC) && n <= r->num;
    uint16_t head = 0, head_flags = 0;
    unsigned int i;
    Seg table;

    if (is_table) {
        if (!r->nr_free || !make_table(segs, n, &table)) {
            return false;
        }
        segs = &table;
        n = 1;
    }
    if (n > r->nr_free || !n) {
        return false;
    }
    for (i = 0; i < n; i++) {
        uint16_t flags = is_table ? VRING_DESC_F_INDIRECT :
                         segs[i].write ? VRING_DESC_F_WRITE : 0;
        uint16_t slot = r->free[r->nr_free - 1];

        if (i < n - 1) {
            flags |= VRING_DESC_F_NEXT;
        }
        if (f.packed) {
            slot = r->avail;
            flags |= packed_flags(r->avail_wrap);
            if (++r->avail == r->num) {
                r->avail = 0;
                r->avail_wrap = !r->avail_wrap;
            }
            if (!i) {
                head = slot;
                head_flags = flags;
                flags ^= packed_flags(true) | packed_flags(false);
            }
            desc_write(r->mem + 16 * slot, &segs[i], flags, head);
        } else {
            /* The next one of the chain is the next one to be free */
            r->next[slot] = i < n - 1 ? r->free[r->nr_free - 2] : 0;
            desc_write(r->mem + 16 * slot, &segs[i], flags, r->next[slot]);
            head = i ? head : slot;
        }
        r->nr_free--;
    }
    MUST(!r->pending[head].used);
    r->pending[head] = (Pending) {
        .used = true,
        .n = n,
        .seq = r->seq++,
        .in_addr = e->in_bytes ? segs[0].addr : 0,
        .e = *e,
    };
    r->nr_pending++;
    if (f.packed) {
        stw_le_p(r->mem + 16 * head + 14, head_flags);
    } else {
        stw_le_p(r->mem + 0x1000 + 4 + 2 * (r->avail % r->num), head);
        stw_le_p(r->mem + 0x1000 + 2, ++r->avail);
    }
    return true;
}

/* The oldest one */
static Pending *first_pending(Ring *r)
{
    Pending *first = NULL;
    int i;

    for (i = 0; i < r->num; i++) {
        Pending *p = &r->pending[i];

        if (p->used && (!first || p->seq < first->seq)) {
            first = p;
        }
    }
    return first;
}

static void check_request(const Pending *p, uint32_t len)
{
    const uint8_t *req = f.arena + (p->in_addr - ARENA);

    if (!len) {
        return;
    }
    MUST(len == 40 || (!f.sure[1] && (len == 32 || len == 16)));
    MUST(p->e.in_bytes >= len);
    f.asked++;
    if (p->in_addr < ARENA + SCRATCH ||
        p->in_addr >= ARENA + SCRATCH + SCRATCH_SIZE || !f.sure[1]) {
        return;
    }
    MUST(lduw_le_p(req) == VIRTIO_BALLOON_REQ_UNUSED_PAGES);
    MUST(ldq_le_p(req + 8) && ldq_le_p(req + 8) <= f.m->last_id);
    MUST(!lduw_le_p(req + 2) && !ldl_le_p(req + 4));
    MUST(lduw_le_p(req + 32) == VIRTIO_BALLOON_PFN_SHIFT);
    MUST(!lduw_le_p(req + 34) && !ldl_le_p(req + 36));
}

static void ring_used(Ring *r, uint32_t head, uint32_t len)
{
    unsigned int slot = r->index == f.misc ? 2 : r->index;
    Pending *p = &r->pending[head];
    int i;

    MUST(head < r->num && p->used);
    p->used = false;
    r->nr_pending--;
    if (r->index == f.misc && !p->e.messages) {
        check_request(p, len);
    } else if (r->index < 2 || r->index == f.misc) {
        MUST(!len);
    }
    if (r->index < 2 || r->index == f.misc) {
        Expect *sum = &f.sum[slot];

        sum->messages += p->e.messages;
        sum->bytes += p->e.bytes;
        sum->records += p->e.records;
        sum->bad += p->e.bad;
        sum->runs += p->e.runs;
        sum->pages += p->e.pages;
        f.sure[r->index == f.misc] &= !p->e.unsure;
    }
    if (f.packed) {
        r->nr_free += p->n;
        return;
    }
    for (i = 0; i < p->n; i++) {
        r->free[r->nr_free++] = head;
        head = r->next[head];
    }
}

/* Takes back what the device has used */
static void reap(Ring *r)
{
    if (!f.packed) {
        uint16_t idx = lduw_le_p(r->mem + 0x2000 + 2);

        MUST((uint16_t)(idx - r->used) <= r->nr_pending);
        while (r->used != idx) {
            const uint8_t *u = r->mem + 0x2000 + 4 + 8 * (r->used++ % r->num);

            ring_used(r, ldl_le_p(u), ldl_le_p(u + 4));
        }
        return;
    }
    while (r->nr_pending) {
        const uint8_t *d = r->mem + 16 * r->used;
        uint16_t flags = lduw_le_p(d + 14);
        uint16_t id = lduw_le_p(d + 12);
        bool avail = flags & 1 << VRING_PACKED_DESC_F_AVAIL;
        bool used = flags & 1 << VRING_PACKED_DESC_F_USED;

        if (avail != used || used != r->used_wrap) {
            break;
        }
        MUST(id < r->num);
        r->used += r->pending[id].n;
        if (r->used >= r->num) {
            r->used -= r->num;
            r->used_wrap = !r->used_wrap;
        }
        ring_used(r, id, ldl_le_p(d + 8));
    }
}

static void reap_all(void)
{
    unsigned int q;

    if (!f.live || f.wild) {
        return;
    }
    if (!rings_good()) {
        f.wild = true;
        f.sure[0] = f.sure[1] = false;
        return;
    }
    for (q = 0; q < f.nr_queues; q++) {
        reap(&f.ring[q]);
    }
}

static void end_pause(BalloonWorker *w)
{
    if (w->vdev && timer_pending(w->pause)) {
        timer_mod(w->pause, 0);
        qemu_clock_run_timers(QEMU_CLOCK_REALTIME);
    }
}

/* Runs bottom halves; those of the balloon at the most @slices times */
static void poll(unsigned int slices)
{
    AioContext *ctx = qemu_get_aio_context();
    unsigned int i;

    for (i = 0; i < slices; i++) {
        end_pause(&f.s->worker);
        end_pause(&f.m->worker);
        aio_poll(ctx, false);
        if (!scheduled()) {
            break;
        }
    }
    /* It must come to rest some time */
    MUST(i < MAX_SLICES);
    reap_all();
}

/* A second reading of messages */

static uint64_t map_overlap(uint64_t start, __uint128_t end, bool *stray)
{
    uint64_t ret = 0;
    unsigned int i;

    for (i = 0; i < f.map->len; i += 2) {
        uint64_t from = MAX(g_array_index(f.map, uint64_t, i), start);
        uint64_t to = MIN(g_array_index(f.map, uint64_t, i + 1), end);

        if (from < to) {
            ret += to - from;
        }
    }
    *stray |= start < ARENA + ARENA_SIZE && end > ARENA;
    return ret;
}

static void read_message(const uint8_t *buf, size_t size, bool misc, Expect *e)
{
    __uint128_t run_end = 0;
    uint64_t run_start = 0;
    size_t at = 0;

    while (at < size) {
        const uint8_t *h = buf + at, *bits = h + 32;
        uint64_t start, len, i;
        unsigned int shift, flag;
        bool bad;

        if (size - at < 32) {
            e->bad++;
            break;
        }
        shift = lduw_le_p(h + 2);
        flag = lduw_le_p(h + 4);
        start = ldq_le_p(h + 16);
        len = ldq_le_p(h + 24);
        if (len & 7 || len > 32768 || len > size - at - 32) {
            e->bad++;
            break;
        }
        bad = shift < 12 || shift > 30 || lduw_le_p(h + 6);
        if (!misc || len) {
            /* Else it may be a number */
            bad = bad || start & 63 ||
                  ((__uint128_t)start + 8 * len) << shift > UINT64_MAX;
        }
        if (misc) {
            bad |= flag > 2 || (flag & VIRTIO_BALLOON_BMAP_FLAG_ERROR && len);
        } else {
            bad |= lduw_le_p(h) || flag || ldq_le_p(h + 8);
        }
        at += 32 + len;
        if (bad) {
            e->bad++;
            continue;
        }
        e->records++;
        for (i = 0; i < 8 * len; i++) {
            uint64_t gpa = (start + i) << shift;

            if (!(i % 64) && !ldq_le_p(bits + i / 8)) {
                i += 63;
                continue;
            }
            if (!(bits[i / 8] >> i % 8 & 1)) {
                continue;
            }
            if (run_start == run_end || run_end != gpa) {
                e->pages += map_overlap(run_start, run_end, &e->stray) >> 12;
                run_start = gpa;
                e->runs++;
            }
            run_end = (__uint128_t)gpa + (1ull << shift);
        }
    }
    e->pages += map_overlap(run_start, run_end, &e->stray) >> 12;
}

static void expect(const Seg *segs, unsigned int n, bool misc, Expect *e)
{
    g_autofree uint8_t *buf = NULL;
    size_t size = 0;
    unsigned int i;

    memset(e, 0, sizeof(*e));
    for (i = 0; i < n; i++) {
        if (segs[i].write) {
            e->in_bytes += segs[i].len;
        } else {
            e->bytes += segs[i].len;
        }
        e->unsure |= segs[i].addr < ARENA;
    }
    e->messages = !misc || e->bytes;
    if (e->bytes > VIRTIO_BALLOON_BMAP_MAX_MSG) {
        e->bad = 1;
        return;
    }
    if (!e->bytes || e->unsure) {
        return;
    }
    buf = g_malloc(e->bytes);
    for (i = 0; i < n; i++) {
        if (!segs[i].write) {
            memcpy(buf + size, f.arena + (segs[i].addr - ARENA), segs[i].len);
            size += segs[i].len;
        }
    }
    read_message(buf, size, misc, e);
}

/* Sessions */

static void forget(void)
{
    /* Messages that were half read will have been counted */
    f.sure[0] &= !f.s->queue[0].elem && !f.s->queue[1].elem;
    f.sure[1] &= !f.m->queue.elem;
    reap_all();
}

static void reset(void)
{
    forget();
    common(VIRTIO_PCI_COMMON_STATUS, 0, 1);
    MUST(at_rest() && !scheduled());
    MUST(f.m->state == BALLOON_MISC_NEW);
    f.live = f.wild = false;
    f.tables = 0;
}

static void setup(uint8_t how, uint8_t without)
{
    uint64_t features = f.vdev->host_features;
    uint8_t status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
    static const uint8_t optional[] = {
        VIRTIO_BALLOON_F_PAGE_BITMAP, VIRTIO_BALLOON_F_MISC_VQ,
        VIRTIO_BALLOON_F_STATS_VQ, VIRTIO_BALLOON_F_REPORTING,
        VIRTIO_BALLOON_F_FREE_PAGE_HINT,
    };
    unsigned int i;

    reset();
    f.sizes = how & 15;
    f.packed = how & 16;
    if (!f.packed) {
        features &= ~(1ull << VIRTIO_F_RING_PACKED);
    }
    if (!(how & 32)) {
        features &= ~(1ull << VIRTIO_RING_F_EVENT_IDX);
    }
    if (without < ARRAY_SIZE(optional)) {
        features &= ~(1ull << optional[without]);
    }
    common(VIRTIO_PCI_COMMON_STATUS, status, 1);
    set_features(features);
    common(VIRTIO_PCI_COMMON_STATUS, status |= VIRTIO_CONFIG_S_FEATURES_OK, 1);
    for (i = 0; i < f.nr_queues; i++) {
        ring_init(i);
        ring_enable(i);
    }
    put_canaries();
    common(VIRTIO_PCI_COMMON_STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK, 1);
    f.live = true;
}

static void pause_vm(bool pause)
{
    int64_t begin = get_clock();
    /* Page numbers as drivers send them are done before the VM stops */
    bool done = f.live && !f.wild && f.s->worker.scheduled &&
                !has(VIRTIO_BALLOON_F_PAGE_BITMAP) && f.numbers < 2000 &&
                f.ring[0].nr_pending + f.ring[1].nr_pending < 64;

    if (pause == f.paused) {
        return;
    }
    f.paused = pause;
    if (pause) {
        forget();
    }
    /* There is no CPU to be stopped */
    vm_state_notify(!pause, pause ? RUN_STATE_PAUSED : RUN_STATE_RUNNING);
    /* Unless that takes long */
    done &= get_clock() - begin < 4 * SCALE_MS;
    if (pause) {
        MUST(at_rest());
    }
    reap_all();
    MUST(!pause || !done || f.wild || f.vdev->broken ||
         !(f.ring[0].nr_pending + f.ring[1].nr_pending));
}

static void inhibit(bool on)
{
    if (on != f.inhibited) {
        MUST(!ram_block_discard_disable(on));
        f.inhibited = on;
    }
}

/* Building messages */

static uint8_t *append(unsigned int len)
{
    Seg *last = f.nr_segs ? &f.seg[f.nr_segs - 1] : NULL;
    uint8_t *at = f.arena + SCRATCH + f.scratch;

    if (f.scratch + len > SCRATCH_SIZE || !len) {
        return NULL;
    }
    if (last && !f.cut && !last->write &&
        last->addr + last->len == ARENA + SCRATCH + f.scratch) {
        last->len += len;
    } else if (f.nr_segs < MAX_SEGS) {
        f.seg[f.nr_segs++] = (Seg) {
            .addr = ARENA + SCRATCH + f.scratch,
            .len = len,
        };
    } else {
        return NULL;
    }
    f.cut = false;
    f.scratch += len;
    return at;
}

static void append_seg(hwaddr addr, uint32_t len, bool write)
{
    if (f.nr_segs < MAX_SEGS && len) {
        f.seg[f.nr_segs++] = (Seg) { .addr = addr, .len = len, .write = write };
        f.cut = true;
    }
}

static void append_pattern(uint8_t which, uint32_t len)
{
    which %= ARRAY_SIZE(patterns);
    len = MIN(len, PATTERN_SIZE);
    if (which > 1) {
        if (f.stripes + len > MAX_STRIPES) {
            return;
        }
        f.stripes += len;
    }
    append_seg(ARENA + PATTERNS + which * PATTERN_SIZE, len, false);
}

/* A record, right but for one thing at the most */
static void append_record(bool answer)
{
    static const uint64_t bases[] = {
        0, 1 * MiB, 16 * MiB, RAM_SIZE - 512 * KiB,
        0xfff00000, DIMM + DIMM_SIZE - 512 * KiB, 3 * GiB, 0xfffffffffff00000,
    };
    uint8_t where = get8(), size = get8(), wrong = get8();
    uint16_t shift = wrong >= 0xc0 ? 13 + wrong % 18 : 12;
    uint64_t base = bases[where % 8] + (where >> 3) * 256 * KiB;
    uint64_t start = QEMU_ALIGN_DOWN(base >> shift, 64);
    uint64_t len = 8 * (size % 8), says = len, id = 0;
    uint16_t cmd = 0, flag = 0, reserved = 0;
    bool long_one = wrong == 8;
    uint8_t *h, what = 0;

    if (answer) {
        what = get8();
        flag = what & 3;
        cmd = f.m->request.cmd;
        id = f.m->last_id + (what >> 2 & 3 ? 0 : what >> 4) - (what >> 7);
        if (flag & VIRTIO_BALLOON_BMAP_FLAG_ERROR && what & 4) {
            len = says = 0;
        }
    }
    switch (wrong) {
    case 0:
        says = get16();
        break;
    case 1:
        says = get64();
        break;
    case 2:
        shift = get16();
        break;
    case 3:
        start = get64();
        break;
    case 4:
        cmd = get8();
        break;
    case 5:
        flag = get16();
        break;
    case 6:
        reserved = get16();
        break;
    case 7:
        id = get64();
        break;
    case 8:
        /* Mostly as long as can be, or a little longer */
        says = size & 0x20 ? 32768 + 8 * (size % 4) - 8 : 8 * (get16() % 4097);
        len = 0;
        break;
    case 9:
        says = len + 8;
        break;
    case 10:
        start = (UINT64_MAX >> shift) - 8 * len - get8() % 3 + 1;
        start = QEMU_ALIGN_DOWN(start, 64);
        break;
    case 11:
        start += get8();
        break;
    }
    h = append(32 + len);
    if (!h) {
        return;
    }
    f.last_record = h - f.arena;
    stw_le_p(h, cmd);
    stw_le_p(h + 2, shift);
    stw_le_p(h + 4, flag);
    stw_le_p(h + 6, reserved);
    stq_le_p(h + 8, id);
    stq_le_p(h + 16, start);
    stq_le_p(h + 24, says);
    memset(h + 32, size & 0x80 ? 0xff : size & 0x40 ? 0xaa : 0, len);
    if (len && !(size & 0xc0)) {
        h[32 + where % len] = size;
    }
    if (long_one) {
        append_pattern(what ^ size >> 3, says);
        if (says > PATTERN_SIZE) {
            append_pattern(what ^ size >> 3, says - PATTERN_SIZE);
        }
    }
}

/* Not a driver that has declined a queue before the misc queue */
static bool may_be_asked(void)
{
    const uint64_t queues = 1ull << VIRTIO_BALLOON_F_STATS_VQ |
                            1ull << VIRTIO_BALLOON_F_REPORTING |
                            1ull << VIRTIO_BALLOON_F_FREE_PAGE_HINT;

    return has(VIRTIO_BALLOON_F_MISC_VQ) &&
           !(f.vdev->host_features & queues & ~f.vdev->guest_features);
}

static bool carries_records(unsigned int q)
{
    return has(q < 2 ? VIRTIO_BALLOON_F_PAGE_BITMAP : VIRTIO_BALLOON_F_MISC_VQ);
}

static void offer(unsigned int q, bool indirect)
{
    bool ours = q < 2 || q == f.misc;
    unsigned int i, n = 0;
    Seg segs[MAX_SEGS];
    size_t bytes = 0;
    Expect e = {};

    if (!f.live || !f.nr_segs) {
        return;
    }
    /* What the device writes comes last, that is a rule of the ring */
    for (i = 0; i < 2 * f.nr_segs; i++) {
        const Seg *s = &f.seg[i % f.nr_segs];

        if (s->write == (i >= f.nr_segs)) {
            segs[n++] = *s;
            bytes += s->len;
        }
    }
    if (q < 2 && !carries_records(q)) {
        if (f.numbers + bytes / 4 > MAX_NUMBERS) {
            return;
        }
        f.numbers += bytes / 4;
    }
    if (ours && carries_records(q)) {
        expect(segs, n, q == f.misc, &e);
        /* Of answers only those that trim discard, and nobody is sure then */
        e.stray &= q < 2;
    } else if (ours) {
        e.unsure = true;
        e.messages = 1;
    } else {
        e.stray = q == 4 || (q == 3 && !(f.plugged & 1));
    }
    if (ring_add(&f.ring[q], segs, n, indirect, &e) &&
        (e.stray || e.unsure)) {
        f.sure[0] = f.sure[1] = false;
    }
}

static void op_send(void)
{
    uint8_t how = get8();
    unsigned int q = how % 4 == 3 ? (how >> 4) % f.nr_queues :
                     how % 4 == 2 ? f.misc : how % 4;
    unsigned int i, times = how & 0x80 ? 1 + get8() % 64 : 1;

    if (times > 1) {
        times = f.stripes * times > MAX_STRIPES ? 1 : times;
        f.stripes *= times;
    }
    for (i = 0; i < times; i++) {
        offer(q, how & 8);
    }
    f.nr_segs = 0;
    if (!(how & 4)) {
        kick(q);
        reap_all();
    }
}

static void op_offer_request(void)
{
    static const uint8_t lens[] = { 64, 40, 64, 39, 64, 16, 64, 1 };
    uint8_t how = get8();

    f.nr_segs = 0;
    f.cut = true;
    if (!append(lens[how % 8])) {
        return;
    }
    f.seg[0].write = true;
    if (how & 8 && f.seg[0].len > 8) {
        f.seg[1] = f.seg[0];
        f.seg[0].len = 8;
        f.seg[1].len -= 8;
        f.seg[1].addr += 8;
        f.nr_segs = 2;
    }
    offer(f.misc, how & 16);
    f.nr_segs = 0;
    if (!(how & 32)) {
        kick(f.misc);
        reap_all();
    }
}

static void ask(void)
{
    balloon_request_start(f.m, BALLOON_REQUEST_TYPE_UNUSED_PAGES, 0, 0, false,
                          NULL);
}

/* To trim, and for numbers: what they count or discard is not foreseen */
static void ask_for_more(uint8_t how)
{
    f.sure[0] = f.sure[1] = false;
    if (how & 0x80) {
        balloon_request_cancel(f.m);
    } else {
        balloon_request_start(f.m, how % BALLOON_REQUEST_TYPE__MAX,
                              1 + (how >> 3) * MiB, 1000, how & 0x40, NULL);
    }
}

/* A request of any kind, and an answer to it */
static void op_exchange(void)
{
    uint8_t how = get8();
    unsigned int i;

    f.nr_segs = 0;
    f.cut = true;
    if (!append(64)) {
        return;
    }
    f.seg[0].write = true;
    offer(f.misc, false);
    f.nr_segs = 0;
    kick(f.misc);
    reap_all();
    if (how % BALLOON_REQUEST_TYPE__MAX == BALLOON_REQUEST_TYPE_UNUSED_PAGES) {
        ask();
    } else {
        ask_for_more(how & 0x7f);
    }
    poll(2);
    for (i = 0; i <= how >> 6; i++) {
        append_record(true);
    }
    offer(f.misc, false);
    f.nr_segs = 0;
    kick(f.misc);
    poll(2);
}

static void op_migration(void)
{
    UnusedPagesProvider *p = &f.m->provider;
    uint8_t how = get8();
    uint64_t bytes;

    if (how & 1) {
        p->cancel(p);
    } else if (how & 0x80) {
        /* What it has reclaimed first */
        f.sure[0] = f.sure[1] = false;
        if (how & 2) {
            p->prepare(p);
        } else {
            p->preparing(p, how & 4, &bytes);
        }
    } else if (p->ready(p) == UNUSED_PAGES_READY) {
        p->request(p, (how >> 1 & 7) * MiB, (how >> 4) * 4 * MiB);
    }
}

static void op_change(void)
{
    uint16_t at = get16();
    uint8_t val = get8();

    if (at & 0x8000 && f.last_record) {
        f.arena[f.last_record + at % 32] = val;
    } else if (f.scratch) {
        f.arena[SCRATCH + at % f.scratch] = val;
    }
    f.sure[0] = f.sure[1] = false;
}

static void op_queue_reset(void)
{
    static const uint8_t queues[] = { 0, 1, 0 };
    uint8_t how = get8();
    unsigned int q = how % 3 == 2 ? f.misc : queues[how % 3];

    forget();
    if (!f.live || f.wild) {
        return;
    }
    common(VIRTIO_PCI_COMMON_Q_SELECT, q, 2);
    common(VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
    ring_init(q);
    put_canaries();
    if (how & 0x80) {
        kick(q);
        poll(1);
    }
    ring_enable(q);
}

static void op_status(void)
{
    static const uint8_t regs[] = {
        VIRTIO_PCI_COMMON_DFSELECT, VIRTIO_PCI_COMMON_GFSELECT,
        VIRTIO_PCI_COMMON_MSIX, VIRTIO_PCI_COMMON_Q_SELECT,
    };
    uint8_t what = get8();

    /* Whatever comes of it, it is no driver that goes by the rules */
    forget();
    f.live = f.sure[0] = f.sure[1] = false;
    if (what & 0x80) {
        /* No device is safe if the kind of its rings changes in use... */
        set_features(deposit64(get64(), VIRTIO_F_RING_PACKED, 1, f.packed));
    } else if (what & 0x40) {
        /* ...or the size of a queue */
        common(regs[what % 4], get16(), 2);
    } else {
        common(VIRTIO_PCI_COMMON_STATUS, get8(), 1);
    }
}

static void run(void)
{
    while (f.len) {
        uint8_t op = get8();

        switch (op % 32) {
        case 0 ... 5:
            append_record(false);
            break;
        case 6 ... 8:
            append_record(true);
            break;
        case 9:
            op_exchange();
            break;
        case 10: {
            unsigned int len = 1 + get8() % 64;
            uint8_t *to = append(len);

            while (to && len--) {
                *to++ = get8();
            }
            break;
        }
        case 11: {
            uint8_t which = get8();

            append_pattern(which, get16());
            break;
        }
        case 12:
            f.cut = true;
            break;
        case 13:
            /* The driver's own memory: other messages, too much of them */
            if (op & 0x80) {
                append_seg(ARENA + PATTERNS, 1 * MiB + get8(), false);
            } else if (op & 0x40) {
                append_seg((1 + get8() % 24) * MiB, 1 + get16() % 4096,
                           false);
            } else {
                append_seg(ARENA + SCRATCH + SCRATCH_SIZE, 1 + get8(), true);
            }
            break;
        case 14 ... 18:
            op_send();
            break;
        case 19 ... 20:
            op_offer_request();
            break;
        case 21 ... 22:
            if (op & 0x40) {
                ask_for_more(get8());
            } else {
                ask();
            }
            if (op & 0x20) {
                poll(2);
            }
            break;
        case 23:
            op_migration();
            break;
        case 24:
            kick(get8() % f.nr_queues);
            reap_all();
            break;
        case 25:
            poll(1 + get8() % 4);
            break;
        case 26:
            op_change();
            break;
        case 27:
            pause_vm(!f.paused);
            break;
        case 28:
            op_queue_reset();
            break;
        case 29: {
            uint8_t how = get8();

            setup(how, get8());
            break;
        }
        case 30:
            inhibit(!f.inhibited);
            break;
        case 31:
            op_status();
            break;
        }
    }
}

/* What must be so in the end */

static void settle(void)
{
    bool lawful = f.live && !f.wild;
    /* Page numbers that nobody meant as such may be work for hours */
    bool bounded = lawful || (has(VIRTIO_BALLOON_F_PAGE_BITMAP) &&
                              has(VIRTIO_F_VERSION_1));
    unsigned int q;

    for (q = 0; q < f.nr_queues; q++) {
        kick(q);
    }
    poll(bounded ? MAX_SLICES + 1 : 64);
    MUST(!bounded || f.vdev->broken || at_rest());
    if (f.vdev->broken) {
        poll(1);
        MUST(!f.s->worker.scheduled);
    }
}

static void check_requests(void)
{
    Counters now = count(), was = f.before;

    /* Each ends once */
    MUST(now.requests - was.requests ==
         (now.answers - was.answers) + (now.errors - was.errors) +
         (now.ended - was.ended) + (f.m->state == BALLOON_MISC_ASKED));
    /* The driver is told which */
    if (outstanding()) {
        MUST((f.m->ended_id == (uint32_t)f.m->last_id) ==
             (f.m->state == BALLOON_MISC_ENDED));
    }
}

static void check_counters(void)
{
    Counters now = count(), was = f.before;
    uint64_t discarded = now.discarded - was.discarded;
    const Expect *e = f.sum;

    check_requests();
    if (f.sure[0] && has(VIRTIO_BALLOON_F_PAGE_BITMAP)) {
        MUST(now.messages[0] - was.messages[0] ==
             e[0].messages + e[1].messages);
        MUST(now.bytes[0] - was.bytes[0] == e[0].bytes + e[1].bytes);
        MUST(now.records[0] - was.records[0] == e[0].records + e[1].records);
        MUST(now.bad[0] - was.bad[0] == e[0].bad + e[1].bad);
        MUST(now.runs[0] - was.runs[0] == e[0].runs + e[1].runs);
        MUST(now.inflated - was.inflated == e[0].pages);
        MUST(now.deflated - was.deflated == e[1].pages);
        MUST(now.partial == was.partial);
        MUST(discarded <= e[0].pages << 12);
        MUST(!discarded == (now.discards == was.discards));
    }
    if (f.sure[1]) {
        MUST(now.messages[1] - was.messages[1] == e[2].messages);
        MUST(now.bytes[1] - was.bytes[1] == e[2].bytes);
        MUST(now.bad[1] - was.bad[1] == e[2].bad);
        MUST(now.records[1] - was.records[1] == e[2].records);
        MUST(now.reported - was.reported <= e[2].pages);
        MUST(now.requests - was.requests == f.asked);
    }
}

static void check_idle(void)
{
    static const unsigned int ours[] = { 0, 1, 0 };
    const char *path = DEVICE(f.vdev)->canonical_path;
    unsigned int i;

    for (i = 0; i < ARRAY_SIZE(ours); i++) {
        unsigned int q = i == 2 ? f.misc : ours[i];
        VirtQueueStatus *s;
        Ring *r = &f.ring[q];

        s = qmp_x_query_virtio_queue_status(path, q, &error_abort);
        MUST(!s->inuse);
        qapi_free_VirtQueueStatus(s);

        if (q == f.misc && carries_records(q) && r->nr_pending) {
            /* What waits for a request, and what lies behind it */
            MUST(f.m->state == BALLOON_MISC_UNUSABLE ||
                 (first_pending(r)->e.in_bytes >= 40 &&
                  !first_pending(r)->e.bytes));
        } else if (q < 2 || carries_records(q)) {
            MUST(!r->nr_pending);
        }
    }
}

static void good_record(unsigned int q, uint64_t gpa, uint16_t flag)
{
    uint8_t *h;

    f.nr_segs = 0;
    f.cut = true;
    h = append(40);
    memset(h, 0, 40);
    stw_le_p(h + 2, 12);
    stq_le_p(h + 16, gpa >> 12);
    stq_le_p(h + 24, 8);
    h[32] = 2;
    if (q == f.misc) {
        stw_le_p(h + 4, flag);
        stq_le_p(h + 8, f.m->last_id);
    }
    offer(q, false);
    f.nr_segs = 0;
    kick(q);
    poll(MAX_SLICES + 1);
    MUST(!f.ring[q].nr_pending);
}

static void offer_good_request(void)
{
    f.nr_segs = 0;
    f.cut = true;
    append(64);
    f.seg[0].write = true;
    offer(f.misc, false);
    f.nr_segs = 0;
    kick(f.misc);
    poll(MAX_SLICES + 1);
}

static void check_good_bitmaps(void)
{
    uint8_t *page = f.ram + 16 * MiB;
    Counters was = count();

    memset(page + 4096 - 8, 0x5a, 4096 + 16);
    good_record(0, 16 * MiB, 0);
    MUST(count().discards == was.discards + 1);
    MUST(page[4095] == 0x5a && page[8192] == 0x5a);
    MUST(!page[4096] && !page[8191]);
    memset(page + 4096 - 8, 0, 4096 + 16);
    good_record(1, 16 * MiB, 0);
    MUST(count().deflated == was.deflated + 1);
}

/* The next good message on each queue works as if nothing had been */
static void check_good(void)
{
    Counters was = count();
    int i;

    if (has(VIRTIO_BALLOON_F_PAGE_BITMAP)) {
        check_good_bitmaps();
    }
    if (!may_be_asked()) {
        offer_good_request();
        ask();
        poll(MAX_SLICES + 1);
        MUST(count().requests == was.requests);
        MUST(f.m->state != BALLOON_MISC_WANTED);
        return;
    }
    /* Drop what lies behind buffers that wait to be asked with */
    for (i = 0; i < MAX_NUM && f.ring[f.misc].nr_pending; i++) {
        ask();
        poll(MAX_SLICES + 1);
    }
    MUST(!f.ring[f.misc].nr_pending);
    offer_good_request();
    if (!f.ring[f.misc].nr_pending) {
        /* Something was wanted before */
        MUST(outstanding());
        offer_good_request();
    }
    MUST(!outstanding() && f.ring[f.misc].nr_pending == 1);
    was = count();
    ask();
    poll(MAX_SLICES + 1);
    MUST(count().requests == was.requests + 1);
    MUST(f.m->state == BALLOON_MISC_ASKED);
    MUST(!f.ring[f.misc].nr_pending);
    good_record(f.misc, 16 * MiB, VIRTIO_BALLOON_BMAP_FLAG_DONE);
    MUST(count().answers == was.answers + 1);
    MUST(count().reported == was.reported + 1);
    MUST(!outstanding());
}

static void fuzz(QTestState *qts, const unsigned char *data, size_t size)
{
    static unsigned int inputs;
    uint8_t how, offered, first;

    if (size < 4) {
        return;
    }
    f.in = data;
    f.len = size;
    how = get8();
    /* Mostly with all queues: to plug another device takes a while */
    offered = how % 16 < 12 ? 3 : how % 4;
    if (f.plugged != offered) {
        plug(offered);
    }
    f.nr_segs = f.scratch = f.stripes = f.numbers = f.last_record = 0;
    f.asked = 0;
    f.sure[0] = f.sure[1] = true;
    memset(f.sum, 0, sizeof(f.sum));
    f.before = count();
    /* One warning in a while says enough */
    f.s->records_warned = f.m->warned = how & 0xfc;
    f.s->worker.turn = 0;
    first = get8();
    setup(first, get8());

    run();

    inhibit(false);
    pause_vm(false);
    settle();
    check_requests();
    if (f.live && !f.wild) {
        MUST(!f.vdev->broken);
        check_idle();
        check_counters();
    }
    /* Behind all that, there is always room for a good message */
    memset(f.arena + SCRATCH, 0, f.scratch);
    f.scratch = 0;
    if (!f.live || f.wild || f.m->state == BALLOON_MISC_UNUSABLE ||
        f.vdev->broken) {
        setup(first, 0xff);
    }
    check_good();
    reset();
    memset(f.arena + SCRATCH, 0, f.scratch);

    /* Freeing by RCU takes the BQL, which nothing else gives up here */
    if (!(++inputs % 256)) {
        drain_call_rcu();
    }
}

static bool add_ram(Int128 start, Int128 len, const MemoryRegion *mr,
                    hwaddr offset, void *opaque)
{
    uint64_t range[] = {
        int128_get64(start), int128_get64(int128_add(start, len)),
    };

    if (memory_region_is_ram((MemoryRegion *)mr) &&
        !memory_region_is_rom((MemoryRegion *)mr) &&
        !memory_region_is_romd((MemoryRegion *)mr)) {
        g_array_append_vals(f.map, range, 2);
    }
    return false;
}

static void *map(hwaddr addr, hwaddr len)
{
    hwaddr got = len;
    void *ret = address_space_map(&address_space_memory, addr, &got, true,
                                  MEMTXATTRS_UNSPECIFIED);

    MUST(ret && got == len);
    return ret;
}

static void pre_fuzz(QTestState *qts)
{
    int i;

    f.plugged = -1;
    f.ram = (uint8_t *)map(1 * MiB, RAM_SIZE - 1 * MiB) - 1 * MiB;
    f.arena = map(ARENA, ARENA_SIZE);
    for (i = 0; i < ARRAY_SIZE(patterns); i++) {
        memset(f.arena + PATTERNS + i * PATTERN_SIZE, patterns[i],
               PATTERN_SIZE);
    }
    f.map = g_array_new(false, false, sizeof(uint64_t));
    WITH_RCU_READ_LOCK_GUARD() {
        FlatView *fv = address_space_to_flatview(&address_space_memory);

        flatview_for_each_range(fv, add_ram, NULL);
    }
}

static GString *cmdline(FuzzTarget *t)
{
    return g_string_new(TARGET_NAME " -display none -nodefaults"
                        " -machine pc,accel=qtest"
                        " -m 32M,slots=1,maxmem=8G"
                        " -object memory-backend-ram,id=mem,size=4M"
                        " -device pc-dimm,memdev=mem,addr=0x140000000"
                        " -object iothread,id=io");
}

static void register_targets(void)
{
    fuzz_add_target(&(FuzzTarget){
        .name = "virtio-balloon-bitmap",
        .description = "virtio-balloon: page bitmaps and the misc queue",
        .get_init_cmdline = cmdline,
        .pre_fuzz = pre_fuzz,
        .fuzz = fuzz,
    });
}

fuzz_target_init(register_targets);
