/*
 * QTest testcase for virtio-balloon: inflate and deflate by page bitmap
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include <sys/mman.h>
#ifdef CONFIG_LINUX
#include <linux/fs.h>
#include <sys/prctl.h>
#endif
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/host-utils.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "libqtest.h"
#include "libqos/qgraph.h"
#include "libqos/qos_external.h"
#include "libqos/virtio-balloon.h"

#define F(bit)          (1ull << (bit))
#define FEATURES        (F(VIRTIO_F_VERSION_1) | \
                         F(VIRTIO_BALLOON_F_PAGE_BITMAP))
#define RAM_MIB         256
#define RAM_SIZE        (RAM_MIB * MiB)
/* Guest memory to play with, far from what the allocator hands out */
#define AREA            (128 * MiB)
#define AREA_PFN        (AREA >> 12)
#define TIMEOUT_US      (60 * G_USEC_PER_SEC)

enum { INFLATE, DEFLATE };

typedef struct Balloon {
    QTestState *qts;
    QVirtioPCIDevice *pci;
    QVirtioDevice *dev;
    QGuestAllocator *alloc;
    QVirtQueue *vq[2];
    QDict *before;              /* counters */
} Balloon;

static QDict *get_counters(QTestState *qts)
{
    QDict *rsp, *ret;

    rsp = qtest_qmp(qts, "{'execute': 'qom-get', 'arguments': {"
                    "'path': '/machine/peripheral/balloon0',"
                    "'property': 'page-bitmap-stats'}}");
    ret = qdict_get_qdict(rsp, "return");
    g_assert_nonnull(ret);
    qobject_ref(ret);
    qobject_unref(rsp);
    return ret;
}

/* How much a counter grew since the last forget() */
static int64_t grown(Balloon *b, const char *name)
{
    QDict *now = get_counters(b->qts);
    int64_t diff = qdict_get_int(now, name) - qdict_get_int(b->before, name);

    qobject_unref(now);
    return diff;
}

static void forget(Balloon *b)
{
    qobject_unref(b->before);
    b->before = get_counters(b->qts);
}

static void balloon_set_up(Balloon *b, uint64_t features)
{
    g_assert_cmphex(qvirtio_get_features(b->dev) & features, ==, features);
    qvirtio_set_features(b->dev, features);
    b->vq[INFLATE] = qvirtqueue_setup(b->dev, b->alloc, INFLATE);
    b->vq[DEFLATE] = qvirtqueue_setup(b->dev, b->alloc, DEFLATE);
}

static void balloon_start(Balloon *b, uint64_t features)
{
    balloon_set_up(b, features);
    qvirtio_set_driver_ok(b->dev);
}

static void balloon_free_queues(Balloon *b)
{
    qvirtqueue_cleanup(b->dev->bus, b->vq[INFLATE], b->alloc);
    qvirtqueue_cleanup(b->dev->bus, b->vq[DEFLATE], b->alloc);
}

static void balloon_restart(Balloon *b, uint64_t features)
{
    qvirtio_start_device(b->dev);
    balloon_free_queues(b);
    balloon_start(b, features);
}

static void balloon_init(Balloon *b, void *obj, QGuestAllocator *alloc,
                         uint64_t features)
{
    QVirtioBalloonPCI *pci = obj;

    memset(b, 0, sizeof(*b));
    b->pci = &pci->pci_vdev;
    b->qts = b->pci->pdev->bus->qts;
    b->dev = &b->pci->vdev;
    b->alloc = alloc;
    balloon_start(b, features);
    b->before = get_counters(b->qts);
}

static void balloon_fini(Balloon *b)
{
    balloon_free_queues(b);
    qobject_unref(b->before);
}

/* Guest memory as a row of pages that hold @pattern, or zeros */

static void fill(Balloon *b, uint64_t addr, uint64_t size)
{
    qtest_memset(b->qts, addr, 0xa5, size);
}

static void check_pages(Balloon *b, uint64_t addr, uint64_t size, uint8_t byte)
{
    g_autofree uint8_t *page = g_malloc(4096);
    uint64_t end = addr + size;
    int i;

    for (; addr < end; addr += 4096) {
        qtest_bufread(b->qts, addr, page, 4096);
        for (i = 0; i < 4096; i++) {
            if (page[i] != byte) {
                g_error("0x%" PRIx64 " holds 0x%02x instead of 0x%02x",
                        addr + i, page[i], byte);
            }
        }
    }
}

static void check_kept(Balloon *b, uint64_t addr, uint64_t size)
{
    check_pages(b, addr, size, 0xa5);
}

static void check_gone(Balloon *b, uint64_t addr, uint64_t size)
{
    check_pages(b, addr, size, 0);
}

/* Messages */

static struct virtio_balloon_bmap_hdr record_hdr(unsigned int shift,
                                          uint64_t start_pfn, uint64_t len)
{
    return (struct virtio_balloon_bmap_hdr) {
        .page_shift = cpu_to_le16(shift),
        .start_pfn = cpu_to_le64(start_pfn),
        .bmap_len = cpu_to_le64(len),
    };
}

/* A record of @len bytes of bitmap with the bits of @word, repeated */
static void add_record(GByteArray *msg, unsigned int shift, uint64_t start_pfn,
                       uint64_t word, size_t len)
{
    struct virtio_balloon_bmap_hdr hdr = record_hdr(shift, start_pfn, len);
    size_t i;

    word = cpu_to_le64(word);
    g_byte_array_append(msg, (uint8_t *)&hdr, sizeof(hdr));
    for (i = 0; i < len; i += 8) {
        g_byte_array_append(msg, (uint8_t *)&word, 8);
    }
}

/* 256 page numbers */
static void add_pfns(GByteArray *msg, uint32_t first, int step)
{
    int i;

    for (i = 0; i < 256; i++) {
        uint32_t pfn = cpu_to_le32(first + step * i);

        g_byte_array_append(msg, (uint8_t *)&pfn, sizeof(pfn));
    }
}

static uint64_t write_message(Balloon *b, GByteArray *msg)
{
    uint64_t addr = guest_alloc(b->alloc, msg->len);

    qtest_bufwrite(b->qts, addr, msg->data, msg->len);
    g_byte_array_set_size(msg, 0);
    return addr;
}

static void kick(Balloon *b, int n, uint64_t addr, size_t len)
{
    QVirtQueue *vq = b->vq[n];

    /* One at a time, so always with the first descriptor */
    vq->free_head = 0;
    qvirtqueue_kick(b->qts, b->dev, vq,
                    qvirtqueue_add(b->qts, vq, addr, len, false, false));
}

static void wait_done(Balloon *b, int n)
{
    qvirtio_wait_used_elem(b->qts, b->dev, b->vq[n], 0, NULL, TIMEOUT_US);
}

/* Empties @msg */
static void transmit(Balloon *b, int n, GByteArray *msg)
{
    size_t len = msg->len;
    uint64_t addr = write_message(b, msg);

    kick(b, n, addr, len);
    wait_done(b, n);
    guest_free(b->alloc, addr);
}

/*
 * Single pages of anonymous memory, one behind the other, took a system call
 * for 256 of them, or for each if the host does not know such calls.
 */
static void check_calls(Balloon *b, int64_t pages)
{
    static bool refused;
    int64_t calls = grown(b, "discard-calls");

    if (calls >= pages) {
        /* The first was tried in vain, if this QEMU had not tried before. */
        g_assert_cmpint(calls, <=, pages + 1);
        refused = true;
    } else {
        g_assert_false(refused);
        g_assert_cmpint(calls, >=, pages / 256);
        /* And one for each slice of work that ends with some put off */
        g_assert_cmpint(calls, <=, pages / 256 + 1 + grown(b, "bh-calls"));
    }
}

static void check_works(Balloon *b)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();

    forget(b);
    fill(b, AREA, 16 * KiB);
    add_record(msg, 12, AREA_PFN, 0x6, 8);
    transmit(b, INFLATE, msg);
    check_kept(b, AREA, 4 * KiB);
    check_gone(b, AREA + 4 * KiB, 8 * KiB);
    check_kept(b, AREA + 12 * KiB, 4 * KiB);
    g_assert_cmpint(grown(b, "records"), ==, 1);
    g_assert_cmpint(grown(b, "discards"), ==, 1);
    g_assert_cmpint(grown(b, "bad-records"), ==, 0);
}

static void test_inflate_deflate(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Balloon b;

    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA - 4 * KiB, 2 * MiB + 8 * KiB);
    add_record(msg, 12, AREA_PFN, UINT64_MAX, 64);
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA - 4 * KiB, 4 * KiB);
    check_gone(&b, AREA, 2 * MiB);
    check_kept(&b, AREA + 2 * MiB, 4 * KiB);
    g_assert_cmpint(grown(&b, "kicks"), ==, 1);
    g_assert_cmpint(grown(&b, "messages"), ==, 1);
    g_assert_cmpint(grown(&b, "bytes"), ==, 32 + 64);
    g_assert_cmpint(grown(&b, "records"), ==, 1);
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 512);
    g_assert_cmpint(grown(&b, "deflated-pages"), ==, 0);
    g_assert_cmpint(grown(&b, "discards"), ==, 1);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 2 * MiB);
    g_assert_cmpint(grown(&b, "partial-bytes"), ==, 0);
    g_assert_cmpint(grown(&b, "skipped-runs"), ==, 0);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);
    g_assert_cmpint(grown(&b, "busy-ns"), >, 0);

    /* A deflated page is the guest's: it may hold data before it is told */
    forget(&b);
    fill(&b, AREA, 2 * MiB);
    add_record(msg, 12, AREA_PFN, UINT64_MAX, 64);
    transmit(&b, DEFLATE, msg);
    check_kept(&b, AREA, 2 * MiB);
    g_assert_cmpint(grown(&b, "deflated-pages"), ==, 512);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 0);
    g_assert_cmpint(grown(&b, "discards"), ==, 0);
    balloon_fini(&b);
}

static void test_runs(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);

    /* Bits that touch across bytes, words, and records are one run... */
    fill(&b, AREA, 1 * MiB);
    add_record(msg, 12, AREA_PFN, 0xffff000000000000, 8);
    add_record(msg, 12, AREA_PFN + 64, UINT64_MAX, 8);
    add_record(msg, 12, AREA_PFN + 128, 0x1ff, 8);
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 48 * 4 * KiB);
    check_gone(&b, AREA + 48 * 4 * KiB, (16 + 64 + 9) * 4 * KiB);
    check_kept(&b, AREA + 137 * 4 * KiB, 4 * KiB);
    g_assert_cmpint(grown(&b, "records"), ==, 3);
    g_assert_cmpint(grown(&b, "discards"), ==, 1);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 89);

    /* ...others are not, in the order of the records, repeated ones too. */
    forget(&b);
    fill(&b, AREA, 1 * MiB);
    add_record(msg, 12, AREA_PFN + 64, 0x8000000000000001, 8);
    add_record(msg, 12, AREA_PFN, 0x8000000000000005, 8);
    add_record(msg, 12, AREA_PFN, 0x5, 8);
    add_record(msg, 12, AREA_PFN, 0, 0);
    add_record(msg, 12, AREA_PFN, 0, 32768);
    transmit(&b, INFLATE, msg);
    for (i = 0; i < 129; i++) {
        if (i == 0 || i == 2 || i == 63 || i == 64 || i == 127) {
            check_gone(&b, AREA + i * 4 * KiB, 4 * KiB);
        } else {
            check_kept(&b, AREA + i * 4 * KiB, 4 * KiB);
        }
    }
    g_assert_cmpint(grown(&b, "records"), ==, 5);
    g_assert_cmpint(grown(&b, "runs"), ==, 7);
    g_assert_cmpint(grown(&b, "discards"), ==, 7);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);

    /* Runs of two buffers are never joined: each is acknowledged. */
    forget(&b);
    add_record(msg, 12, AREA_PFN, 0x8000000000000000, 8);
    transmit(&b, INFLATE, msg);
    add_record(msg, 12, AREA_PFN + 64, 0x1, 8);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "discards"), ==, 2);

    /* A buffer without a record is no fault. */
    forget(&b);
    b.vq[INFLATE]->free_head = 0;
    qvirtqueue_add(b.qts, b.vq[INFLATE], AREA, 64, true, false);
    qvirtqueue_kick(b.qts, b.dev, b.vq[INFLATE], 0);
    wait_done(&b, INFLATE);
    g_assert_cmpint(grown(&b, "messages"), ==, 1);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);
    balloon_fini(&b);
}

static void test_vectors(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 16 * MiB + 8 * KiB);
    add_record(msg, 12, AREA_PFN, 0xaaaaaaaaaaaaaaaa, 512);
    transmit(&b, INFLATE, msg);
    for (i = 0; i < 4096; i += 2) {
        check_kept(&b, AREA + i * 4 * KiB, 4 * KiB);
        check_gone(&b, AREA + (i + 1) * 4 * KiB, 4 * KiB);
    }
    check_kept(&b, AREA + 16 * MiB, 8 * KiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 2048);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 8 * MiB);
    check_calls(&b, 2048);

    /* Single pages before and behind a run that is put off by nobody */
    forget(&b);
    fill(&b, AREA, 4 * MiB);
    add_record(msg, 12, AREA_PFN, 0x5, 8);
    add_record(msg, 12, AREA_PFN + 64, UINT64_MAX, 64);
    add_record(msg, 12, AREA_PFN + 640, 0x5, 8);
    transmit(&b, INFLATE, msg);
    for (i = 0; i < 641; i += 640) {
        check_gone(&b, AREA + i * 4 * KiB, 4 * KiB);
        check_kept(&b, AREA + (i + 1) * 4 * KiB, 4 * KiB);
        check_gone(&b, AREA + (i + 2) * 4 * KiB, 4 * KiB);
    }
    check_kept(&b, AREA + 12 * KiB, 61 * 4 * KiB);
    check_gone(&b, AREA + 64 * 4 * KiB, 2 * MiB);
    check_kept(&b, AREA + 64 * 4 * KiB + 2 * MiB, 64 * 4 * KiB);
    /* It is cut at 2 MiB. */
    g_assert_cmpint(grown(&b, "discards"), ==, 6);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 2 * MiB + 16 * KiB);
    g_assert_cmpint(grown(&b, "discard-calls"), <=, 7);

    /* A page that is named twice is discarded twice. */
    forget(&b);
    for (i = 0; i < 3; i++) {
        add_record(msg, 12, AREA_PFN, 0x1, 8);
    }
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "discards"), ==, 3);
    balloon_fini(&b);
}

static void test_page_shift(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Balloon b;

    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 1 * MiB);
    add_record(msg, 16, AREA >> 16, 0x202, 8);
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 64 * KiB);
    check_gone(&b, AREA + 64 * KiB, 64 * KiB);
    check_kept(&b, AREA + 128 * KiB, 7 * 64 * KiB);
    check_gone(&b, AREA + 9 * 64 * KiB, 64 * KiB);
    check_kept(&b, AREA + 10 * 64 * KiB, 6 * 64 * KiB);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 32);
    g_assert_cmpint(grown(&b, "discards"), ==, 2);

    /* The widest page: all of this machine's memory */
    forget(&b);
    add_record(msg, 30, 0, 0x1, 8);
    transmit(&b, DEFLATE, msg);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "deflated-pages"), >, RAM_SIZE / 4096 * 99 / 100);
    g_assert_cmpint(grown(&b, "deflated-pages"), <=, RAM_SIZE / 4096);
    balloon_fini(&b);
}

typedef struct BadRecord {
    const char *name;
    struct virtio_balloon_bmap_hdr hdr;        /* in host order */
    size_t len;                         /* of the bitmap that follows */
    bool skipped;                       /* the record behind it is reached */
} BadRecord;

static const BadRecord bad_records[] = {
    { "cmd", { .cmd = 1, .page_shift = 12, .bmap_len = 8 }, 8, true },
    { "flag", { .flag = 1, .page_shift = 12, .bmap_len = 8 }, 8, true },
    { "reserved", { .reserved = 1, .page_shift = 12, .bmap_len = 8 }, 8, true },
    { "req_id", { .req_id = 1, .page_shift = 12, .bmap_len = 8 }, 8, true },
    { "page_shift 0", { .bmap_len = 8 }, 8, true },
    { "page_shift 11", { .page_shift = 11, .bmap_len = 8 }, 8, true },
    { "page_shift 31", { .page_shift = 31, .bmap_len = 8 }, 8, true },
    { "page_shift 64", { .page_shift = 64, .bmap_len = 8 }, 8, true },
    { "page_shift 65535", { .page_shift = 65535, .bmap_len = 8 }, 8, true },
    { "start_pfn", { .page_shift = 12, .start_pfn = AREA_PFN + 1,
                     .bmap_len = 8 }, 8, true },
    { "start_pfn 32", { .page_shift = 12, .start_pfn = AREA_PFN + 32,
                        .bmap_len = 8 }, 8, true },
    { "overflow by shift", { .page_shift = 12, .start_pfn = 1ull << 52,
                             .bmap_len = 8 }, 8, true },
    { "overflow by one bitmap", { .page_shift = 12,
                                  .start_pfn = (1ull << 52) - 64,
                                  .bmap_len = 8 }, 8, true },
    { "overflow of the sum", { .page_shift = 12,
                               .start_pfn = -64ull, .bmap_len = 8 }, 8, true },
    { "overflow with wide pages", { .page_shift = 30,
                                    .start_pfn = 1ull << 34,
                                    .bmap_len = 32768 }, 32768, true },
    { "bmap_len 4", { .page_shift = 12, .bmap_len = 4 }, 8 },
    { "bmap_len 12", { .page_shift = 12, .bmap_len = 12 }, 16 },
    { "bmap_len 32776", { .page_shift = 12, .bmap_len = 32776 }, 32776 },
    { "bmap_len 2^32", { .page_shift = 12, .bmap_len = 1ull << 32 }, 8 },
    { "bmap_len -8", { .page_shift = 12, .bmap_len = -8ull }, 8 },
    { "bmap_len beyond the buffer", { .page_shift = 12, .bmap_len = 4096 }, 8 },
};

static void test_bad_records(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);
    for (i = 0; i < ARRAY_SIZE(bad_records); i++) {
        const BadRecord *bad = &bad_records[i];
        struct virtio_balloon_bmap_hdr hdr = {
            .cmd = cpu_to_le16(bad->hdr.cmd),
            .page_shift = cpu_to_le16(bad->hdr.page_shift),
            .flag = cpu_to_le16(bad->hdr.flag),
            .reserved = cpu_to_le16(bad->hdr.reserved),
            .req_id = cpu_to_le64(bad->hdr.req_id),
            .start_pfn = cpu_to_le64(bad->hdr.start_pfn ?: AREA_PFN),
            .bmap_len = cpu_to_le64(bad->hdr.bmap_len),
        };
        bool skipped = bad->skipped;
        size_t at;

        g_test_message("%s", bad->name);
        forget(&b);
        fill(&b, AREA, 2 * MiB);
        /* Good, bad, good */
        add_record(msg, 12, AREA_PFN + 128, 0x1, 8);
        g_byte_array_append(msg, (uint8_t *)&hdr, sizeof(hdr));
        at = msg->len;
        g_byte_array_set_size(msg, at + bad->len);
        memset(msg->data + at, 0xff, bad->len);
        add_record(msg, 12, AREA_PFN + 256, 0x1, 8);
        transmit(&b, INFLATE, msg);

        g_assert_cmpint(grown(&b, "bad-records"), ==, 1);
        g_assert_cmpint(grown(&b, "records"), ==, 1 + skipped);
        g_assert_cmpint(grown(&b, "inflated-pages"), ==, 1 + skipped);
        g_assert_cmpint(grown(&b, "skipped-runs"), ==, 0);
        check_kept(&b, AREA, 512 * KiB);
        check_gone(&b, AREA + 512 * KiB, 4 * KiB);
        if (skipped) {
            check_gone(&b, AREA + 1 * MiB, 4 * KiB);
        } else {
            check_kept(&b, AREA + 1 * MiB, 4 * KiB);
        }
        check_works(&b);
    }

    /* The last records that are legal */
    forget(&b);
    add_record(msg, 12, (1ull << 52) - 128, UINT64_MAX, 8);
    add_record(msg, 30, (1ull << 34) - 128, UINT64_MAX, 8);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);
    g_assert_cmpint(grown(&b, "skipped-runs"), ==, 2);

    /* Truncated headers */
    for (i = 1; i < sizeof(struct virtio_balloon_bmap_hdr); i += 30) {
        forget(&b);
        add_record(msg, 12, AREA_PFN, 0, 0);
        g_byte_array_set_size(msg, i);
        transmit(&b, INFLATE, msg);
        g_assert_cmpint(grown(&b, "bad-records"), ==, 1);
        check_works(&b);
    }

    /* A PFN array is no record */
    forget(&b);
    fill(&b, AREA, 1 * MiB);
    add_pfns(msg, AREA_PFN, 1);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 1);
    check_kept(&b, AREA, 1 * MiB);
    check_works(&b);

    /* A buffer that is too long is refused whole */
    forget(&b);
    fill(&b, AREA, 2 * MiB);
    while (msg->len <= VIRTIO_BALLOON_BMAP_MAX_MSG) {
        add_record(msg, 12, AREA_PFN, UINT64_MAX, 64);
    }
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 1);
    g_assert_cmpint(grown(&b, "records"), ==, 0);
    check_kept(&b, AREA, 2 * MiB);
    check_works(&b);
    balloon_fini(&b);
}

static void test_not_ram(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint8_t before[64 * KiB], after[64 * KiB];
    Balloon b;

    balloon_init(&b, obj, alloc, FEATURES);

    /* Wholly beyond RAM; where nothing is */
    add_record(msg, 12, 1ull << 40, UINT64_MAX, 8);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "records"), ==, 1);
    g_assert_cmpint(grown(&b, "skipped-runs"), ==, 1);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 0);
    g_assert_cmpint(grown(&b, "discards"), ==, 0);

    /* Across the end of RAM */
    forget(&b);
    fill(&b, RAM_SIZE - 128 * KiB, 128 * KiB);
    add_record(msg, 12, (RAM_SIZE >> 12) - 64, 0xffffffff00000000, 8);
    add_record(msg, 12, RAM_SIZE >> 12, 0xffffffff, 8);
    transmit(&b, INFLATE, msg);
    check_gone(&b, RAM_SIZE - 128 * KiB, 128 * KiB);
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 32);
    g_assert_cmpint(grown(&b, "discards"), ==, 1);
    g_assert_cmpint(grown(&b, "skipped-runs"), ==, 1);

    /* From low memory into the ROMs below 1 MiB */
    forget(&b);
    qtest_bufread(b.qts, 0xf0000, before, sizeof(before));
    g_assert_false(buffer_is_zero(before, sizeof(before)));
    fill(&b, 0xb0000, 64 * KiB);
    add_record(msg, 12, 0x80, UINT64_MAX << 56, 8);
    add_record(msg, 12, 0xc0, UINT64_MAX, 8);
    transmit(&b, INFLATE, msg);
    check_kept(&b, 0xb0000, 32 * KiB);
    check_gone(&b, 0xb8000, 32 * KiB);
    qtest_bufread(b.qts, 0xf0000, after, sizeof(after));
    g_assert_cmpmem(before, sizeof(before), after, sizeof(after));
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 8);
    g_assert_cmpint(grown(&b, "discards"), ==, 1);
    g_assert_cmpint(grown(&b, "skipped-runs"), >=, 1);

    /* Everything below 8 GiB: RAM, ROM, devices and holes, as one run */
    forget(&b);
    add_record(msg, 21, 0, UINT64_MAX, 4096 / 8);
    transmit(&b, DEFLATE, msg);
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "deflated-pages"), >, RAM_SIZE / 4096 * 99 / 100);
    g_assert_cmpint(grown(&b, "deflated-pages"), <=, RAM_SIZE / 4096);
    g_assert_cmpint(grown(&b, "skipped-runs"), >, 2);
    check_works(&b);
    balloon_fini(&b);
}

static void test_descriptors(void *obj, void *data, QGuestAllocator *alloc)
{
    static const int cuts[] = { 1, 7, 24, 30, 32, 33, 36, 41, 71, 73, 96 };
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr, end;
    Balloon b;
    QVirtQueue *vq;
    int i, last;

    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 2 * MiB);
    add_record(msg, 12, AREA_PFN, 0xff00, 8);
    add_record(msg, 12, AREA_PFN + 64, 0xff00, 24);
    end = msg->len;
    addr = write_message(&b, msg);

    /* The message lies in many descriptors, with cuts anywhere. */
    vq = b.vq[INFLATE];
    for (i = 0, last = 0; i < ARRAY_SIZE(cuts) && cuts[i] < end; i++) {
        qvirtqueue_add(b.qts, vq, addr + last, cuts[i] - last, false, true);
        last = cuts[i];
    }
    qvirtqueue_add(b.qts, vq, addr + last, end - last, false, false);
    qvirtqueue_kick(b.qts, b.dev, vq, 0);
    wait_done(&b, INFLATE);
    g_assert_cmpint(grown(&b, "records"), ==, 2);
    g_assert_cmpint(grown(&b, "bytes"), ==, end);
    for (i = 0; i < 4; i++) {
        check_kept(&b, AREA + i * 256 * KiB, 32 * KiB);
        check_gone(&b, AREA + i * 256 * KiB + 32 * KiB, 32 * KiB);
        check_kept(&b, AREA + i * 256 * KiB + 64 * KiB, 192 * KiB);
    }
    guest_free(alloc, addr);
    balloon_fini(&b);
}

/* A legal message of the greatest size, with every other bit set */
static void add_long_message(GByteArray *msg)
{
    while (msg->len + 32768 + 32 <= VIRTIO_BALLOON_BMAP_MAX_MSG) {
        add_record(msg, 12, AREA_PFN, 0x5555555555555555, 32768);
    }
    add_record(msg, 12, AREA_PFN, 0x5555555555555555,
               VIRTIO_BALLOON_BMAP_MAX_MSG - msg->len - 32);
    g_assert_cmpint(msg->len, ==, VIRTIO_BALLOON_BMAP_MAX_MSG);
}

#define LONG_MESSAGE_RUNS  (4 * (VIRTIO_BALLOON_BMAP_MAX_MSG - 32 * 32))

/* A work item each; what the size in bytes asks for is another matter */
#define SLICES_AT_LEAST(runs)  ((runs) / 1024)

static void test_slices(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);

    /* By work: the last page has its turn as well */
    fill(&b, AREA, 16 * KiB);
    fill(&b, RAM_SIZE - 8 * KiB, 8 * KiB);
    add_record(msg, 12, AREA_PFN, 0x5555555555555555, 4096);
    transmit(&b, INFLATE, msg);
    check_gone(&b, RAM_SIZE - 8 * KiB, 4 * KiB);
    check_kept(&b, RAM_SIZE - 4 * KiB, 4 * KiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 16384);
    g_assert_cmpint(grown(&b, "bh-calls"), >=, SLICES_AT_LEAST(16384));
    /* More on a slow host, where a slice ends by time */
    g_assert_cmpint(grown(&b, "bh-calls"), <=, 16 * SLICES_AT_LEAST(16384));

    /* By size: one run of 128 MiB */
    forget(&b);
    fill(&b, RAM_SIZE - 8 * KiB, 8 * KiB);
    add_record(msg, 12, AREA_PFN, UINT64_MAX, 4096);
    transmit(&b, INFLATE, msg);
    check_gone(&b, AREA, 16 * KiB);
    check_gone(&b, RAM_SIZE - 8 * KiB, 8 * KiB);
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "discards"), ==, 64);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 128 * MiB);
    g_assert_cmpint(grown(&b, "bh-calls"), >=, 1);

    /*
     * A message that takes the whole of a slice is done at its end; unless
     * the host takes so long that it ends before, by time.
     */
    for (i = 0; i < 10; i++) {
        forget(&b);
        add_record(msg, 12, AREA_PFN, UINT64_MAX, 2048);
        transmit(&b, INFLATE, msg);
        g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 64 * MiB);
        if (!grown(&b, "bh-calls")) {
            break;
        }
    }
    g_assert_cmpint(i, <, 10);

    /* By skipped runs and by bad records */
    forget(&b);
    add_record(msg, 12, 1ull << 40, 0x5555555555555555, 4096);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "skipped-runs"), ==, 16384);
    g_assert_cmpint(grown(&b, "bh-calls"), >=, SLICES_AT_LEAST(16384));
    forget(&b);
    while (msg->len < VIRTIO_BALLOON_BMAP_MAX_MSG) {
        add_record(msg, 0, 0, 0, 0);
    }
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 32768);
    g_assert_cmpint(grown(&b, "bh-calls"), >=, SLICES_AT_LEAST(32768));

    /* A long inflate message does not hold up the deflate queue for long */
    forget(&b);
    add_long_message(msg);
    addr = write_message(&b, msg);
    kick(&b, INFLATE, addr, VIRTIO_BALLOON_BMAP_MAX_MSG);
    add_record(msg, 12, AREA_PFN, 1, 8);
    transmit(&b, DEFLATE, msg);
    g_assert_cmpint(grown(&b, "deflated-pages"), ==, 1);
    g_assert_cmpint(grown(&b, "runs"), <, LONG_MESSAGE_RUNS);
    wait_done(&b, INFLATE);
    g_assert_cmpint(grown(&b, "runs"), ==, LONG_MESSAGE_RUNS + 1);
    g_assert_cmpint(grown(&b, "discards") + grown(&b, "skipped-runs"), ==,
                    LONG_MESSAGE_RUNS);
    guest_free(alloc, addr);
    balloon_fini(&b);
}

/* Memory that is a file, and what QEMU says */
typedef struct FileRam {
    char *ram, *log;
    int fd;
} FileRam;

#define DIMM        (4ull * GiB)

static void file_ram_free(FileRam *f)
{
    close(f->fd);
    unlink(f->ram);
    unlink(f->log);
    g_free(f->ram);
    g_free(f->log);
    g_free(f);
    qos_invalidate_command_line();
}

/*
 * Whatever backs the memory, no more than 2 MiB are discarded at a stretch,
 * and what is cut is cut between pages of that size.
 */
static void test_stretches(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    FileRam *f = strstr(qos_get_current_command_line(), "mem-path=") ?
                 data : NULL;
    QDict *now;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 128 * MiB);
    add_record(msg, 12, AREA_PFN + 256, UINT64_MAX, 126 * MiB / 4096 / 8);
    transmit(&b, INFLATE, msg);
    now = get_counters(b.qts);
    g_test_message("longest hold of the BQL: %" PRId64 " us",
                   qdict_get_int(now, "longest-hold-ns") / 1000);
    qobject_unref(now);
    check_gone(&b, AREA + 1 * MiB, 126 * MiB);
    check_kept(&b, AREA, 1 * MiB);
    check_kept(&b, AREA + 127 * MiB, 1 * MiB);
    g_assert_cmpint(grown(&b, "runs"), ==, 1);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 126 * MiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 64);

    /* Page numbers, up and down */
    balloon_restart(&b, F(VIRTIO_F_VERSION_1));
    for (i = 0; i < 2; i++) {
        int first = i ? AREA_PFN + 256 + 4095 : AREA_PFN + 256;
        int step = i ? -1 : 1, j;

        forget(&b);
        fill(&b, AREA, 18 * MiB);
        for (j = 0; j < 4096; j += 256) {
            add_pfns(msg, first + step * j, step);
        }
        transmit(&b, INFLATE, msg);
        check_kept(&b, AREA, 1 * MiB);
        check_gone(&b, AREA + 1 * MiB, 16 * MiB);
        check_kept(&b, AREA + 17 * MiB, 1 * MiB);
        g_assert_cmpint(grown(&b, "discards"), ==, 9);
    }
    balloon_fini(&b);
    if (f) {
        file_ram_free(f);
    }
    qos_invalidate_command_line();
}

static void start_long_message(Balloon *b, uint64_t *addr)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();

    add_long_message(msg);
    *addr = write_message(b, msg);
    kick(b, INFLATE, *addr, VIRTIO_BALLOON_BMAP_MAX_MSG);
}

static void check_idle(Balloon *b)
{
    int64_t calls = grown(b, "bh-calls");

    g_usleep(20000);
    g_assert_cmpint(grown(b, "bh-calls"), ==, calls);
}

static void test_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    uint64_t addr;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);
    for (i = 0; i < 3; i++) {
        forget(&b);
        start_long_message(&b, &addr);
        qvirtio_reset(b.dev);
        g_assert_cmpint(grown(&b, "runs"), <, LONG_MESSAGE_RUNS);
        check_idle(&b);
        balloon_restart(&b, FEATURES);
        guest_free(alloc, addr);
        check_works(&b);
    }

    /* The next driver need not know the feature */
    balloon_restart(&b, F(VIRTIO_F_VERSION_1));
    fill(&b, AREA, 8 * KiB);
    addr = guest_alloc(alloc, 4);
    qtest_writel(b.qts, addr, cpu_to_le32(AREA_PFN));
    kick(&b, INFLATE, addr, 4);
    wait_done(&b, INFLATE);
    check_gone(&b, AREA, 4 * KiB);
    check_kept(&b, AREA + 4 * KiB, 4 * KiB);
    guest_free(alloc, addr);
    balloon_fini(&b);
}

static uint64_t common_cfg(Balloon *b, size_t offset)
{
    return b->pci->common_cfg_offset + offset;
}

static void test_queue_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    uint64_t addr;
    Balloon b;

    balloon_init(&b, obj, alloc, FEATURES | F(VIRTIO_F_RING_RESET));
    start_long_message(&b, &addr);
    b.dev->bus->queue_select(b.dev, INFLATE);
    qpci_io_writew(b.pci->pdev, b.pci->bar,
                   common_cfg(&b, VIRTIO_PCI_COMMON_Q_RESET), 1);
    g_assert_cmpint(grown(&b, "runs"), <, LONG_MESSAGE_RUNS);
    check_idle(&b);

    qvirtqueue_cleanup(b.dev->bus, b.vq[INFLATE], alloc);
    b.vq[INFLATE] = qvirtqueue_setup(b.dev, alloc, INFLATE);
    guest_free(alloc, addr);
    check_works(&b);
    balloon_fini(&b);
}

static void test_stop(void *obj, void *data, QGuestAllocator *alloc)
{
    int64_t runs;
    uint64_t addr;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);
    start_long_message(&b, &addr);
    for (i = 0; i < 3; i++) {
        qtest_qmp_assert_success(b.qts, "{'execute': 'stop'}");
        runs = grown(&b, "runs");
        g_assert_cmpint(runs, <, LONG_MESSAGE_RUNS);
        check_idle(&b);
        g_assert_cmpint(grown(&b, "runs"), ==, runs);
        g_assert_false(qvirtqueue_get_buf(b.qts, b.vq[INFLATE], NULL, NULL));
        qtest_qmp_assert_success(b.qts, "{'execute': 'cont'}");
    }
    /* Begun again each time; ioeventfds notify both queues at each cont */
    wait_done(&b, INFLATE);
    g_assert_cmpint(grown(&b, "kicks"), ==, 1 + 3 * 2);
    g_assert_cmpint(grown(&b, "messages"), ==, 4);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);
    g_assert_cmpint(grown(&b, "runs"), >, LONG_MESSAGE_RUNS);
    guest_free(alloc, addr);
    check_works(&b);
    balloon_fini(&b);
}

static void wait_migrated(QTestState *qts)
{
    for (;;) {
        QDict *rsp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
        const char *status = qdict_get_try_str(qdict_get_qdict(rsp, "return"),
                                               "status");
        bool done = !g_strcmp0(status, "completed");

        g_assert_cmpstr(status, !=, "failed");
        qobject_unref(rsp);
        if (done) {
            return;
        }
        g_usleep(10000);
    }
}

/* A message that was not done on the source is done on the destination. */
static void test_migrate(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *dir = g_dir_make_tmp("virtio-balloon-XXXXXX", NULL);
    g_autofree char *uri = g_strdup_printf("unix:%s/migrate", dir);
    g_autofree char *socket = g_strdup_printf("%s/migrate", dir);
    QTestState *dst;
    QDict *counters;
    uint64_t addr;
    Balloon b;

    balloon_init(&b, obj, alloc, FEATURES);
    dst = qtest_initf("%s -nodefaults -m %dM -incoming %s",
                      qos_get_current_command_line(), RAM_MIB, uri);
    start_long_message(&b, &addr);
    qtest_qmp_assert_success(b.qts, "{'execute': 'stop'}");
    g_assert_cmpint(grown(&b, "runs"), <, LONG_MESSAGE_RUNS);
    qtest_qmp_assert_success(b.qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
    wait_migrated(b.qts);
    /* It comes up stopped, and forgets a "cont" that came before. */
    wait_migrated(dst);
    qtest_qmp_assert_success(dst, "{'execute': 'cont'}");
    while (qtest_readw(dst, b.vq[INFLATE]->used + 2) == 0) {
        g_usleep(1000);
    }
    counters = get_counters(dst);
    g_assert_cmpint(qdict_get_int(counters, "runs"), ==, LONG_MESSAGE_RUNS);
    g_assert_cmpint(qdict_get_int(counters, "messages"), ==, 1);
    g_assert_cmpint(qdict_get_int(counters, "kicks"), ==, 2);
    qobject_unref(counters);
    qtest_quit(dst);
    unlink(socket);
    rmdir(dir);

    guest_free(alloc, addr);
    balloon_fini(&b);
    /* Nothing else is to use a machine that was migrated away. */
    qos_invalidate_command_line();
}

static void test_unplug(void *obj, void *data, QGuestAllocator *alloc)
{
    uint64_t addr;
    Balloon b;

    balloon_init(&b, obj, alloc, FEATURES);
    start_long_message(&b, &addr);
    qpci_unplug_acpi_device_test(b.qts, "balloon0", 4);
    /* The bottom half is gone as well */
    g_usleep(20000);
    qtest_qmp_assert_success(b.qts, "{'execute': 'query-status'}");
    guest_free(alloc, addr);
    balloon_fini(&b);
    /* The next test wants the device back. */
    qos_invalidate_command_line();
}

/* Page numbers, in descriptors that share their memory */
#define ARRAY_PART  (VIRTIO_BALLOON_BMAP_MAX_MSG / 4)
#define LONG_ARRAY  (8 * ARRAY_PART)

static void start_long_array(Balloon *b, uint64_t *addr)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    QVirtQueue *vq = b->vq[INFLATE];
    int i;

    /* No two are neighbours: each is a discard. */
    while (msg->len < 4 * ARRAY_PART) {
        add_pfns(msg, AREA_PFN, 2);
    }
    *addr = write_message(b, msg);
    vq->free_head = 0;
    for (i = LONG_ARRAY / ARRAY_PART; i--; ) {
        qvirtqueue_add(b->qts, vq, *addr, 4 * ARRAY_PART, false, i);
    }
    qvirtqueue_kick(b->qts, b->dev, vq, 0);
}

/* Page numbers have no more of the BQL at a stretch than bitmaps have. */
static void check_pfn_slices(Balloon *b)
{
    uint64_t addr, deflate = guest_alloc(b->alloc, 4);

    forget(b);
    start_long_array(b, &addr);
    qtest_writel(b->qts, deflate, cpu_to_le32(AREA_PFN));
    kick(b, DEFLATE, deflate, 4);
    wait_done(b, DEFLATE);
    g_assert_cmpint(grown(b, "discards"), <, LONG_ARRAY);
    wait_done(b, INFLATE);
    g_assert_cmpint(grown(b, "discards"), ==, LONG_ARRAY);
    g_assert_cmpint(grown(b, "bh-calls"), >=, SLICES_AT_LEAST(LONG_ARRAY));
    g_assert_cmpint(grown(b, "bh-calls"), <=, 32 * SLICES_AT_LEAST(LONG_ARRAY));
    guest_free(b->alloc, addr);

    /* Stopped on the way, it is begun again */
    forget(b);
    start_long_array(b, &addr);
    qtest_qmp_assert_success(b->qts, "{'execute': 'stop'}");
    g_assert_cmpint(grown(b, "discards"), <, LONG_ARRAY);
    check_idle(b);
    qtest_qmp_assert_success(b->qts, "{'execute': 'cont'}");
    wait_done(b, INFLATE);
    g_assert_cmpint(grown(b, "messages"), ==, 2);
    g_assert_cmpint(grown(b, "kicks"), ==, 1 + 2);
    g_assert_cmpint(grown(b, "discards"), >, LONG_ARRAY);
    guest_free(b->alloc, addr);

    /* Reset on the way, it is gone, whatever the next driver speaks */
    forget(b);
    start_long_array(b, &addr);
    qvirtio_reset(b->dev);
    g_assert_cmpint(grown(b, "discards"), <, LONG_ARRAY);
    check_idle(b);
    guest_free(b->alloc, addr);
    guest_free(b->alloc, deflate);
}

static void test_pfn_array(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    bool offered = data != NULL;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, offered ? F(VIRTIO_F_VERSION_1) : 0);
    g_assert_cmpint(!!(qvirtio_get_features(b.dev) &
                       F(VIRTIO_BALLOON_F_PAGE_BITMAP)), ==, offered);
    fill(&b, AREA, 2 * MiB);
    add_pfns(msg, AREA_PFN, 2);
    transmit(&b, INFLATE, msg);
    for (i = 0; i < 512; i += 2) {
        check_gone(&b, AREA + i * 4 * KiB, 4 * KiB);
        check_kept(&b, AREA + (i + 1) * 4 * KiB, 4 * KiB);
    }
    g_assert_cmpint(grown(&b, "kicks"), ==, 1);
    g_assert_cmpint(grown(&b, "messages"), ==, 1);
    g_assert_cmpint(grown(&b, "bytes"), ==, 1024);
    g_assert_cmpint(grown(&b, "discards"), ==, 256);
    check_calls(&b, 256);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 1 * MiB);
    g_assert_cmpint(grown(&b, "records"), ==, 0);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);

    /* Neighbours are a discard together. */
    forget(&b);
    fill(&b, AREA, 2 * MiB);
    add_pfns(msg, AREA_PFN + 256, -1);
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 4 * KiB);
    check_gone(&b, AREA + 4 * KiB, 1 * MiB);
    check_kept(&b, AREA + 1 * MiB + 4 * KiB, 1 * MiB - 4 * KiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 1);
    g_assert_cmpint(grown(&b, "discard-calls"), ==, 1);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 1 * MiB);

    /* What is not RAM is passed over: here all but the last, page 0 */
    forget(&b);
    fill(&b, 0, 4 * KiB);
    add_pfns(msg, -255u, 1);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(grown(&b, "discards"), ==, 1);
    check_gone(&b, 0, 4 * KiB);

    check_pfn_slices(&b);
    if (offered) {
        balloon_restart(&b, FEATURES);
        check_works(&b);
    } else {
        /* A driver of before virtio 1.0 may begin before it is DRIVER_OK. */
        qvirtio_start_device(b.dev);
        balloon_free_queues(&b);
        balloon_set_up(&b, 0);
        check_pfn_slices(&b);
    }
    balloon_fini(&b);
}

static int reports(const char *file)
{
    g_autofree char *log = NULL;
    const char *line;
    int nr = 0;

    g_assert_true(g_file_get_contents(file, &log, NULL, NULL));
    for (line = log; (line = strstr(line, "Failed to ")); line++) {
        nr++;
    }
    return nr;
}

/* Where the host cannot discard, it says so once, resets or not. */
static void test_undiscardable(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    g_autofree char *file = data;
    Balloon b;
    int i, j;

    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 2 * MiB);
    for (i = 0; i < 4; i++) {
        bool pfns = i == 3;

        forget(&b);
        balloon_restart(&b, pfns ? F(VIRTIO_F_VERSION_1) : FEATURES);
        for (j = 0; j < 2; j++) {
            if (pfns) {
                add_pfns(msg, AREA_PFN, 2);
            } else {
                add_record(msg, 12, AREA_PFN, 0x5555555555555555, 64);
            }
            transmit(&b, INFLATE, msg);
        }
        g_assert_cmpint(grown(&b, "discards"), ==, 0);
        g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 0);
        g_assert_cmpint(grown(&b, "kept-bytes"), ==, 2 * MiB);
        check_kept(&b, AREA, 2 * MiB);
        g_assert_cmpint(reports(file), ==, 1);
    }
    balloon_fini(&b);
    unlink(file);
    qos_invalidate_command_line();
}

/* A file that may only be appended to has no holes made. */
static bool append_only(int fd, bool on)
{
#ifdef FS_IOC_SETFLAGS
    int flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
        return false;
    }
    flags = on ? flags | FS_APPEND_FL : flags & ~FS_APPEND_FL;
    return !ioctl(fd, FS_IOC_SETFLAGS, &flags);
#else
    return false;
#endif
}

static void inflate_2m(Balloon *b, uint64_t addr)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();

    add_record(msg, 12, addr >> 12, UINT64_MAX, 64);
    transmit(b, INFLATE, msg);
}

/*
 * A RAM block whose discards fail is left alone for a while, and others are
 * not.
 */
static void test_discard_again(void *obj, void *data, QGuestAllocator *alloc)
{
    FileRam *f = data;
    gint64 failed;
    Balloon b;

    if (!append_only(f->fd, true)) {
        g_test_skip("no file can be made to have no holes");
        file_ram_free(f);
        return;
    }
    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 2 * MiB);
    fill(&b, DIMM, 4 * MiB);
    failed = g_get_monotonic_time();
    inflate_2m(&b, AREA);
    g_assert_cmpint(grown(&b, "kept-bytes"), ==, 2 * MiB);
    g_assert_cmpint(reports(f->log), ==, 1);
    check_kept(&b, AREA, 2 * MiB);
    inflate_2m(&b, DIMM);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 2 * MiB);
    check_gone(&b, DIMM, 2 * MiB);

    /* The reason is gone, which nobody knows yet */
    g_assert_true(append_only(f->fd, false));
    do {
        bool early = g_get_monotonic_time() - failed < 9 * G_USEC_PER_SEC;

        forget(&b);
        inflate_2m(&b, AREA);
        g_assert_cmpint(reports(f->log), ==, 1);
        if (early && g_get_monotonic_time() - failed < 9 * G_USEC_PER_SEC) {
            g_assert_cmpint(grown(&b, "discards"), ==, 0);
        }
        g_assert_cmpint(g_get_monotonic_time() - failed, <, TIMEOUT_US);
        g_usleep(200 * 1000);
    } while (!grown(&b, "discards"));
    check_gone(&b, AREA, 2 * MiB);
    inflate_2m(&b, AREA);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 4 * MiB);
    balloon_fini(&b);
    file_ram_free(f);
}

/* How many pages of the file are in the host's memory */
static int resident(FileRam *f, uint64_t addr, uint64_t size)
{
    g_autofree unsigned char *pages = g_malloc(size / 4096);
    void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, f->fd, addr);
    int nr = 0, i;

    g_assert_true(map != MAP_FAILED);
    g_assert_cmpint(mincore(map, size, pages), ==, 0);
    for (i = 0; i < size / 4096; i++) {
        nr += pages[i] & 1;
    }
    munmap(map, size);
    return nr;
}

/* What comes out of the balloon is not read from the file, it is not there. */
static void test_deflate_file(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    FileRam *f = data;
    Balloon b;

    if (qemu_real_host_page_size() != 4096) {
        g_test_skip("pages of the host are not those of the test");
        file_ram_free(f);
        return;
    }
    balloon_init(&b, obj, alloc, FEATURES);
    fill(&b, AREA, 8 * MiB);
    add_record(msg, 12, AREA_PFN, UINT64_MAX, 256);
    transmit(&b, INFLATE, msg);
    g_assert_cmpint(resident(f, AREA, 8 * MiB), ==, 0);
    add_record(msg, 12, AREA_PFN, UINT64_MAX, 256);
    transmit(&b, DEFLATE, msg);
    g_assert_cmpint(grown(&b, "deflated-pages"), ==, 2048);
    g_assert_cmpint(resident(f, AREA, 8 * MiB), ==, 0);

    balloon_restart(&b, F(VIRTIO_F_VERSION_1));
    add_pfns(msg, AREA_PFN, 1);
    transmit(&b, DEFLATE, msg);
    g_assert_cmpint(resident(f, AREA, 8 * MiB), ==, 0);
    balloon_fini(&b);
    file_ram_free(f);
}

#define STOP_PAGES  4096

static void start_pfns(Balloon *b, uint64_t addr)
{
    int i;

    for (i = 0; i < STOP_PAGES; i++) {
        qtest_writel(b->qts, addr + 4 * i, cpu_to_le32(AREA_PFN + 2 * i));
    }
    fill(b, AREA, 2 * STOP_PAGES * 4 * KiB);
    forget(b);
    kick(b, INFLATE, addr, 4 * STOP_PAGES);
}

/*
 * What is left when the VM stops is done at once, but not if that takes long:
 * then it is done when the VM goes on.
 */
static void test_stop_slow(void *obj, void *data, QGuestAllocator *alloc)
{
    uint64_t addr = guest_alloc(alloc, 4 * STOP_PAGES);
    FileRam *f = data;
    int64_t busy;
    bool done;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, F(VIRTIO_F_VERSION_1));
    start_pfns(&b, addr);
    wait_done(&b, INFLATE);
    busy = grown(&b, "busy-ns") / 1000;
    g_test_message("%d discards took %" PRId64 " us", STOP_PAGES, busy);
    if (busy < 15000) {
        g_test_skip("the host is fast");
    } else {
        for (i = 0, done = true; done && i < 20; i++) {
            QDict *now;

            start_pfns(&b, addr);
            qtest_qmp_assert_success(b.qts, "{'execute': 'stop'}");
            done = grown(&b, "discards") == STOP_PAGES;
            now = get_counters(b.qts);
            g_test_message("longest hold of the BQL: %" PRId64 " us",
                           qdict_get_int(now, "longest-hold-ns") / 1000);
            qobject_unref(now);
            check_idle(&b);
            qtest_qmp_assert_success(b.qts, "{'execute': 'cont'}");
            wait_done(&b, INFLATE);
            g_assert_cmpint(grown(&b, "discards"), >=, STOP_PAGES);
        }
        g_assert_false(done);
    }
    guest_free(alloc, addr);
    balloon_fini(&b);
    file_ram_free(f);
}

/* The config space that ends behind poison_val, or the granule's shift */
#define CONFIG_POISON   12
#define CONFIG_GRANULE  16

static void test_granule(void *obj, void *data, QGuestAllocator *alloc)
{
    const char *cmd_line = qos_get_current_command_line();
    bool offered = !strstr(cmd_line, "page-bitmap=off");
    uint32_t shift = offered ? ctz64(qemu_real_host_page_size()) : -1;
    static const int64_t wrong[] = {
        1, 2 * KiB, 5000, 3 * MiB, 2 * GiB, 1ll << 62,
    };
    Balloon b;
    int i;

    if (strstr(cmd_line, "granule=2M")) {
        shift = 21;
    }
    balloon_init(&b, obj, alloc, F(VIRTIO_F_VERSION_1));
    g_assert_cmpint(qvirtio_config_readl(b.dev, CONFIG_POISON), ==, 0);
    g_assert_cmpint(qvirtio_config_readl(b.dev, CONFIG_GRANULE), ==, shift);
    /* It is not the driver's. */
    qpci_io_writel(b.pci->pdev, b.pci->bar,
                   b.pci->device_cfg_offset + CONFIG_GRANULE, 30);
    g_assert_cmpint(qvirtio_config_readl(b.dev, CONFIG_GRANULE), ==, shift);
    balloon_fini(&b);

    if (!offered) {
        QTestState *qts = qtest_init("-machine pc -nodefaults");

        for (i = 0; i < ARRAY_SIZE(wrong); i++) {
            QDict *rsp = qtest_qmp(qts, "{'execute': 'device_add',"
                                   "'arguments': {"
                                   "'driver': 'virtio-balloon-pci',"
                                   "'page-bitmap': true,"
                                   "'page-bitmap-granule': %" PRId64 "}}",
                                   wrong[i]);

            qmp_expect_error_and_unref(rsp, "GenericError");
        }
        qmp_expect_error_and_unref(
            qtest_qmp(qts, "{'execute': 'device_add', 'arguments': {"
                      "'driver': 'virtio-balloon-pci',"
                      "'page-bitmap-granule': 2097152}}"), "GenericError");
        qtest_quit(qts);
    }
}

static void test_queue_size(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    static const int sizes[] = { 0, 3, 2048, 65535 };
    QTestState *qts;
    Balloon b;
    int i;

    balloon_init(&b, obj, alloc, FEATURES);
    for (i = 0; i < 2; i++) {
        b.dev->bus->queue_select(b.dev, i);
        g_assert_cmpint(b.dev->bus->get_queue_size(b.dev), ==, 1);
    }
    for (i = 0; i < 5; i++) {
        check_works(&b);
        add_record(msg, 12, AREA_PFN, 1, 8);
        transmit(&b, DEFLATE, msg);
        g_assert_cmpint(grown(&b, "deflated-pages"), ==, 1);
    }
    balloon_fini(&b);

    qts = qtest_init("-machine pc -nodefaults");
    for (i = 0; i < ARRAY_SIZE(sizes); i++) {
        QDict *rsp = qtest_qmp(qts, "{'execute': 'device_add', 'arguments': {"
                               "'driver': 'virtio-balloon-pci',"
                               "'x-queue-size': %d}}", sizes[i]);

        qmp_expect_error_and_unref(rsp, "GenericError");
    }
    qtest_quit(qts);
}

/* libqos knows split rings only: descriptors by hand */
static void packed_add(Balloon *b, int slot, uint64_t addr, uint32_t len,
                       bool more)
{
    uint64_t desc = b->vq[INFLATE]->desc + 16 * slot;

    qtest_writeq(b->qts, desc, addr);
    qtest_writel(b->qts, desc + 8, len);
    qtest_writew(b->qts, desc + 12, 0x1234);
    qtest_writew(b->qts, desc + 14, 1 << VRING_PACKED_DESC_F_AVAIL |
                 (more ? VRING_DESC_F_NEXT : 0));
}

static bool packed_used(Balloon *b, int slot)
{
    uint16_t flags = qtest_readw(b->qts, b->vq[INFLATE]->desc + 16 * slot + 14);

    return (flags & 1 << VRING_PACKED_DESC_F_AVAIL) &&
           (flags & 1 << VRING_PACKED_DESC_F_USED);
}

static void packed_wait(Balloon *b, int slot)
{
    gint64 start = g_get_monotonic_time();

    while (!packed_used(b, slot)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(100);
    }
}

static void test_packed(void *obj, void *data, QGuestAllocator *alloc)
{
    const size_t half = VIRTIO_BALLOON_BMAP_MAX_MSG / 2;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr, small;
    Balloon b;
    QVirtQueue *vq;

    balloon_init(&b, obj, alloc, FEATURES | F(VIRTIO_F_RING_PACKED));
    vq = b.vq[INFLATE];
    qtest_memset(b.qts, vq->desc, 0, 16 * vq->size);

    /* Stopped in the middle of a message that lies in two descriptors */
    add_long_message(msg);
    addr = write_message(&b, msg);
    packed_add(&b, 1, addr + half, half, false);
    packed_add(&b, 0, addr, half, true);
    b.dev->bus->virtqueue_kick(b.dev, vq);
    qtest_qmp_assert_success(b.qts, "{'execute': 'stop'}");
    g_assert_cmpint(grown(&b, "runs"), <, LONG_MESSAGE_RUNS);
    g_assert_false(packed_used(&b, 0));
    forget(&b);
    qtest_qmp_assert_success(b.qts, "{'execute': 'cont'}");
    packed_wait(&b, 0);
    g_assert_cmpint(grown(&b, "messages"), ==, 1);
    g_assert_cmpint(grown(&b, "runs"), ==, LONG_MESSAGE_RUNS);
    g_assert_cmpint(grown(&b, "bad-records"), ==, 0);

    forget(&b);
    fill(&b, AREA, 8 * KiB);
    add_record(msg, 12, AREA_PFN, 1, 8);
    small = write_message(&b, msg);
    packed_add(&b, 2, small, 40, false);
    b.dev->bus->virtqueue_kick(b.dev, vq);
    packed_wait(&b, 2);
    check_gone(&b, AREA, 4 * KiB);
    check_kept(&b, AREA + 4 * KiB, 4 * KiB);
    guest_free(alloc, small);
    guest_free(alloc, addr);
    balloon_fini(&b);
}

/* How often QEMU said that the guest inflates parts of backing pages */
static int warnings(const char *file)
{
    g_autofree char *log = NULL;
    const char *line;
    int nr = 0;

    g_assert_true(g_file_get_contents(file, &log, NULL, NULL));
    for (line = log; (line = strstr(line, "a part of a page of 2048 KiB"));
         line++) {
        nr++;
    }
    return nr;
}

/* Whole backing pages, by bitmap and by numbers, then parts of them */
static void check_warning(Balloon *b, const char *file)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    int i;

    g_assert_cmpint(qvirtio_config_readl(b->dev, CONFIG_GRANULE), ==, 21);
    add_record(msg, 21, AREA >> 21, 0x3, 8);
    add_record(msg, 12, AREA_PFN + 1024, UINT64_MAX, 64);
    transmit(b, INFLATE, msg);
    g_assert_cmpint(grown(b, "partial-bytes"), ==, 0);
    balloon_restart(b, F(VIRTIO_F_VERSION_1));
    for (i = 0; i < 4; i++) {
        add_pfns(msg, AREA_PFN + 256 * i, 1);
    }
    transmit(b, INFLATE, msg);
    g_assert_cmpint(warnings(file), ==, 0);

    for (i = 0; i < 2; i++) {
        add_pfns(msg, AREA_PFN, 1);
        transmit(b, INFLATE, msg);
        g_assert_cmpint(warnings(file), ==, 1);
    }
    balloon_restart(b, FEATURES);
    add_record(msg, 12, AREA_PFN, 1, 8);
    transmit(b, INFLATE, msg);
    g_assert_cmpint(warnings(file), ==, 1);
    forget(b);
}

static void test_huge_pages(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    g_autofree char *file = data;
    uint64_t addr;
    Balloon b;
    int i;

    if (!file) {
        g_test_skip("not enough free huge pages of 2 MiB");
        return;
    }
    balloon_init(&b, obj, alloc, FEATURES);
    check_warning(&b, file);

    /* Less than a backing page stays, wherever in it */
    fill(&b, AREA, 8 * MiB);
    add_record(msg, 12, AREA_PFN, UINT64_MAX >> 1, 8);
    add_record(msg, 12, AREA_PFN + 512 + 128, UINT64_MAX, 8);
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 8 * MiB);
    g_assert_cmpint(grown(&b, "inflated-pages"), ==, 127);
    g_assert_cmpint(grown(&b, "discards"), ==, 0);
    g_assert_cmpint(grown(&b, "partial-bytes"), ==, 127 * 4 * KiB);

    /* Of a run, the backing pages wholly inside: 1 to 2 of 0.5 to 3.5 */
    forget(&b);
    for (i = 4; i < 28; i++) {
        add_record(msg, 12, AREA_PFN + i * 64, UINT64_MAX, 8);
    }
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 2 * MiB);
    check_gone(&b, AREA + 2 * MiB, 4 * MiB);
    check_kept(&b, AREA + 6 * MiB, 2 * MiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 2);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 4 * MiB);
    g_assert_cmpint(grown(&b, "partial-bytes"), ==, 2 * MiB);

    /* A slice never ends inside a backing page: 100 MiB from an odd start */
    forget(&b);
    add_record(msg, 12, AREA_PFN, UINT64_MAX << 32, 8);
    for (i = 1; i < 400; i++) {
        add_record(msg, 12, AREA_PFN + i * 64, UINT64_MAX, 8);
    }
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 2 * MiB);
    g_assert_cmpint(grown(&b, "bh-calls"), >=, 1);
    g_assert_cmpint(grown(&b, "discarded-bytes"), ==, 98 * MiB);
    g_assert_cmpint(grown(&b, "partial-bytes"), ==, 2 * MiB - 128 * KiB);

    forget(&b);
    add_record(msg, 12, AREA_PFN, 0x2, 8);
    transmit(&b, DEFLATE, msg);
    g_assert_cmpint(grown(&b, "deflated-pages"), ==, 1);

    /*
     * Page numbers make up a backing page over slices, not over messages and
     * resets.
     */
    balloon_restart(&b, F(VIRTIO_F_VERSION_1));
    forget(&b);
    fill(&b, AREA, 8 * MiB);
    for (i = 0; i < 8; i++) {
        add_pfns(msg, AREA_PFN + 256 * i, 1);
    }
    transmit(&b, INFLATE, msg);
    check_gone(&b, AREA, 8 * MiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 4);
    g_assert_cmpint(grown(&b, "bh-calls"), >=, 1);
    forget(&b);
    fill(&b, AREA, 2 * MiB);
    for (i = 0; i < 2; i++) {
        add_pfns(msg, AREA_PFN + 256 * i, 1);
        transmit(&b, INFLATE, msg);
    }
    check_kept(&b, AREA, 2 * MiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 0);
    start_long_array(&b, &addr);
    balloon_restart(&b, F(VIRTIO_F_VERSION_1));
    add_pfns(msg, AREA_PFN + 256, 1);
    transmit(&b, INFLATE, msg);
    check_kept(&b, AREA, 2 * MiB);
    g_assert_cmpint(grown(&b, "discards"), ==, 0);
    guest_free(alloc, addr);
    balloon_fini(&b);
    unlink(file);
    qos_invalidate_command_line();
}

static void *add_ram(GString *cmd_line, void *arg)
{
    g_string_append_printf(cmd_line, " -nodefaults -m %dM", RAM_MIB);
    return arg;
}

static void *add_file(GString *cmd_line, void *arg)
{
    FileRam *f = g_new0(FileRam, 1);

    f->fd = g_file_open_tmp("virtio-balloon-XXXXXX", &f->ram, NULL);
    g_assert_cmpint(f->fd, >=, 0);
    f->log = g_strdup_printf("%s.log", f->ram);
    g_string_append_printf(cmd_line, " -nodefaults -m %dM,slots=1,maxmem=1G"
                           " -machine memory-backend=m0"
                           " -object memory-backend-file,id=m0,size=%dM,"
                           "mem-path=%s,share=on"
                           " -object memory-backend-ram,id=m1,size=64M"
                           " -device pc-dimm,memdev=m1,addr=0x%llx 2>%s",
                           RAM_MIB, RAM_MIB, f->ram, DIMM, f->log);
    return f;
}

/* Without huge pages of the host */
static void *add_small_pages(GString *cmd_line, void *arg)
{
#ifdef CONFIG_LINUX
    /* Inherited by QEMU */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
#endif
    return add_ram(cmd_line, arg);
}

static void *add_memfd(GString *cmd_line, void *arg)
{
    g_string_append_printf(cmd_line, " -machine memory-backend=m0"
                           " -object memory-backend-memfd,id=m0,size=%dM,"
                           "share=on", RAM_MIB);
    return add_ram(cmd_line, arg);
}

/* A file that cannot have holes, and what QEMU says */
static void *add_undiscardable(GString *cmd_line, void *arg)
{
    g_autofree char *file = NULL;
    int fd = g_file_open_tmp("virtio-balloon-XXXXXX", &file, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    g_string_append_printf(cmd_line, " -machine memory-backend=m0"
                           " -object memory-backend-file,id=m0,size=%dM,"
                           "mem-path=/dev/zero,share=on 2>%s", RAM_MIB, file);
    add_ram(cmd_line, arg);
    return g_steal_pointer(&file);
}

/* And what QEMU says */
static void *add_huge_pages(GString *cmd_line, void *arg)
{
    g_autofree char *free_pages = NULL;
    g_autofree char *file = NULL;
    int fd;

    if (!g_file_get_contents("/sys/kernel/mm/hugepages/hugepages-2048kB/"
                             "free_hugepages", &free_pages, NULL, NULL) ||
        atoi(free_pages) < RAM_SIZE / (2 * MiB)) {
        add_ram(cmd_line, arg);
        return NULL;
    }
    fd = g_file_open_tmp("virtio-balloon-XXXXXX", &file, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(fd);
    g_string_append_printf(cmd_line, " -machine memory-backend=m0"
                           " -object memory-backend-memfd,id=m0,size=%dM,"
                           "hugetlb=on,hugetlbsize=2M 2>%s", RAM_MIB, file);
    add_ram(cmd_line, arg);
    return g_steal_pointer(&file);
}

static void register_virtio_balloon_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc func;
        QOSBeforeTest before;
        const char *opts;
    } tests[] = {
        { "inflate-deflate", test_inflate_deflate },
        { "runs", test_runs },
        { "vectors", test_vectors },
        { "page-shift", test_page_shift },
        { "bad-records", test_bad_records },
        { "not-ram", test_not_ram },
        { "descriptors", test_descriptors },
        { "slices", test_slices },
        { "reset", test_reset },
        { "queue-reset", test_queue_reset },
        { "stop", test_stop },
        { "pfn-array-declined", test_pfn_array },
        { "pfn-array-off", test_pfn_array, NULL,
          "id=balloon0,disable-modern=on" },
        { "granule", test_granule },
        { "granule-off", test_granule, NULL, "id=balloon0,page-bitmap=off" },
        { "granule-2M", test_granule, NULL,
          "id=balloon0,page-bitmap=on,page-bitmap-granule=2M" },
        { "queue-size", test_queue_size, NULL,
          "id=balloon0,page-bitmap=on,x-queue-size=1" },
        { "packed", test_packed, NULL, "id=balloon0,page-bitmap=on,packed=on" },
        { "memfd", test_inflate_deflate, add_memfd },
        { "huge-pages", test_huge_pages, add_huge_pages },
        { "stretches", test_stretches },
        { "stretches-small", test_stretches, add_small_pages },
        { "stretches-memfd", test_stretches, add_memfd },
        { "stretches-file", test_stretches, add_file },
        { "undiscardable", test_undiscardable, add_undiscardable },
        { "discard-again", test_discard_again, add_file },
        { "deflate-file", test_deflate_file, add_file },
        { "stop-slow", test_stop_slow, add_file },
        { "migrate", test_migrate },
        { "unplug", test_unplug },
    };
    QOSGraphTestOptions opts = { };
    int i;

    /* The tests know the memory map of the pc machine. */
    if (!g_str_equal(qtest_get_arch(), "i386") &&
        !g_str_equal(qtest_get_arch(), "x86_64")) {
        return;
    }
    for (i = 0; i < ARRAY_SIZE(tests); i++) {
        opts.edge.extra_device_opts = tests[i].opts ?:
                                      "id=balloon0,page-bitmap=on";
        opts.arg = tests[i].opts ? NULL : (void *)"page-bitmap=on";
        opts.before = tests[i].before ?: add_ram;
        qos_add_test(tests[i].name, "virtio-balloon-pci", tests[i].func, &opts);
    }
}

libqos_init(register_virtio_balloon_test);
