/*
 * QTest testcase for virtio-balloon: page numbers, and runs of them
 *
 * What the device does with its memory is told by its trace events.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/qgraph.h"
#include "libqos/qos_external.h"
#include "libqos/virtio-balloon.h"
#include "standard-headers/linux/virtio_config.h"

#define PAGE            4096
#define RAM_SIZE        (256 * MiB)
/* Guest memory to play with, far from what the allocator hands out */
#define AREA            (128 * MiB / PAGE)
#define RAM_END         (RAM_SIZE / PAGE)
/* Two blocks of RAM, one behind the other */
#define DIMM            (4ull * GiB)
#define DIMM_SIZE       (64 * MiB)
#define DIMM_1          ((DIMM + DIMM_SIZE) / PAGE)
/* The last 8 pages of it, then ROMs up to 1 MiB */
#define LOW_RAM         0xb8
#define ROM             0xf0000
#define PATTERN         0xa5a5a5a5a5a5a5a5ull
#define TIMEOUT_US      (60 * G_USEC_PER_SEC)

#define PAGE_BY_PAGE    ",x-pfn-runs=off"

typedef struct Balloon {
    QTestState *qts;
    QVirtioDevice *dev;
    QGuestAllocator *alloc;
    QVirtQueue *vq[2];
    const char *log;
    bool joins;
} Balloon;

enum { INFLATE, DEFLATE };

typedef struct RunCase {
    uint32_t base;              /* what numbers begin at */
    const char *pages;          /* one, or first-last, and so on */
    int parts;                  /* runs, in RAM, in one block each */
} RunCase;

static const RunCase run_cases[] = {
    { AREA, "0-255", 1 },
    { AREA, "255-0", 1 },
    { AREA, "3", 1 },
    { AREA, "0-99 101-199 201-255", 3 },
    { AREA, "255-100 98-0", 2 },
    /* Up, and down again */
    { AREA, "8-12 11-9", 2 },
    { AREA, "12-8 9-11", 2 },
    { AREA, "0 2 1", 2 },
    /* No neighbours, or not one behind the other */
    { AREA, "0 2 4 6 8", 5 },
    { AREA, "0 128 1 129 2 130 3 131", 8 },
    /* Twice */
    { AREA, "5 5 6 6 7 7", 4 },
    { AREA, "0-63 0-63", 2 },
    { AREA, "7 7 7 7", 4 },
    /* 64 are read at a time */
    { AREA, "0-63 65-127 129", 3 },
    { AREA, "100 0-62 64-127", 3 },
    /* Into what is not RAM, and out of it */
    { RAM_END - 8, "0-15", 1 },
    { RAM_END - 8, "15-0", 1 },
    { RAM_END - 8, "8-15 3", 1 },
    { LOW_RAM, "0-63", 1 },
    { LOW_RAM, "63-0", 1 },
    /* From one block to the next */
    { DIMM_1 - 4, "0-7", 2 },
    { DIMM_1 - 4, "7-0", 2 },
    /* The last numbers and the first are no neighbours */
    { -2u, "0-3", 1 },
    { -2u, "3-0", 1 },
};

static uint64_t page_addr(uint32_t base, int page)
{
    return (uint64_t)(uint32_t)(base + page) * PAGE;
}

static bool is_ram(uint64_t addr)
{
    return addr < 0xc0000 || (addr >= MiB && addr < RAM_SIZE) ||
           (addr >= DIMM && addr < DIMM + 2 * DIMM_SIZE);
}

/* How many lines the log has that tell of @event */
static int logged(Balloon *b, const char *event)
{
    g_autofree char *name = g_strdup_printf("%s ", event);
    g_autofree char *text = NULL;
    const char *at;
    int nr = 0;

    g_assert_true(g_file_get_contents(b->log, &text, NULL, NULL));
    for (at = text; (at = strstr(at, name)); at++) {
        nr++;
    }
    return nr;
}

/* The message was acknowledged behind its last discard. */
static void check_acknowledged_late(Balloon *b)
{
    g_autofree char *text = NULL;
    const char *discard, *flush;

    g_assert_true(g_file_get_contents(b->log, &text, NULL, NULL));
    discard = g_strrstr(text, "ram_block_discard_range ");
    flush = g_strrstr(text, "virtqueue_flush ");
    g_assert_nonnull(flush);
    g_assert_true(flush > discard);
}

/* The message lies in descriptors that end within numbers. */
static void transmit(Balloon *b, int n, GArray *pfns)
{
    uint32_t len = pfns->len * sizeof(uint32_t), piece = MAX(len / 12, 33) | 1;
    uint64_t addr = guest_alloc(b->alloc, len + 3);
    QVirtQueue *vq = b->vq[n];
    uint32_t at;

    qtest_bufwrite(b->qts, addr, pfns->data, len);
    vq->free_head = 0;
    for (at = 0; at + piece < len; at += piece) {
        qvirtqueue_add(b->qts, vq, addr + at, piece, false, true);
    }
    /* And ends within one that does not count */
    qvirtqueue_add(b->qts, vq, addr + at, len + 3 - at, false, false);
    qvirtqueue_kick(b->qts, b->dev, vq, 0);
    qvirtio_wait_used_elem(b->qts, b->dev, vq, 0, NULL, TIMEOUT_US);
    guest_free(b->alloc, addr);
}

static GArray *parse(uint32_t base, const char *text)
{
    GArray *pfns = g_array_new(false, false, sizeof(uint32_t));
    g_auto(GStrv) words = g_strsplit(text, " ", 0);
    int i;

    for (i = 0; words[i]; i++) {
        int first, last, step;

        if (sscanf(words[i], "%d-%d", &first, &last) < 2) {
            last = first;
        }
        step = first <= last ? 1 : -1;
        for (; first != last + step; first += step) {
            uint32_t pfn = cpu_to_le32(base + first);

            g_array_append_val(pfns, pfn);
        }
    }
    return pfns;
}

/* Returns how many parts the pages went to the host in */
static int inflate_and_deflate(Balloon *b, uint32_t base, const char *text)
{
    g_autoptr(GArray) pfns = parse(base, text);
    g_autofree unsigned long *named = NULL;
    int nr = 0, in_ram = 0, discards, parts, i;

    for (i = 0; i < pfns->len; i++) {
        uint32_t pfn = le32_to_cpu(g_array_index(pfns, uint32_t, i));

        nr = MAX(nr, (int)(pfn - base) + 1);
        in_ram += is_ram((uint64_t)pfn * PAGE);
    }
    /* The pages behind them as well, and the one before */
    nr += 4;
    named = bitmap_new(nr);
    for (i = 0; i < pfns->len; i++) {
        set_bit(le32_to_cpu(g_array_index(pfns, uint32_t, i)) - base, named);
    }
    for (i = -1; i < nr; i++) {
        if (is_ram(page_addr(base, i))) {
            qtest_memset(b->qts, page_addr(base, i), 0xa5, PAGE);
        }
    }

    discards = logged(b, "ram_block_discard_range");
    transmit(b, INFLATE, pfns);
    discards = logged(b, "ram_block_discard_range") - discards;
    check_acknowledged_late(b);
    for (i = -1; i < nr; i++) {
        uint64_t addr = page_addr(base, i);
        uint64_t want = i >= 0 && test_bit(i, named) ? 0 : PATTERN;

        if (is_ram(addr)) {
            g_assert_cmphex(qtest_readq(b->qts, addr), ==, want);
            g_assert_cmphex(qtest_readq(b->qts, addr + PAGE - 8), ==, want);
            qtest_memset(b->qts, addr, 0xa5, PAGE);
        }
    }

    parts = logged(b, "virtio_balloon_handle_output");
    transmit(b, DEFLATE, pfns);
    parts = logged(b, "virtio_balloon_handle_output") - parts;
    for (i = -1; i < nr; i++) {
        uint64_t addr = page_addr(base, i);

        if (is_ram(addr)) {
            g_assert_cmphex(qtest_readq(b->qts, addr), ==, PATTERN);
        }
    }

    g_assert_cmpint(parts, ==, discards);
    if (!b->joins) {
        g_assert_cmpint(discards, ==, in_ram);
    }
    return discards;
}

static void test_runs(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioBalloonPCI *pci = obj;
    g_autofree char *log = data;
    Balloon b = {
        .qts = pci->pci_vdev.pdev->bus->qts,
        .dev = &pci->pci_vdev.vdev,
        .alloc = alloc,
        .log = log,
        .joins = !strstr(qos_get_current_command_line(), PAGE_BY_PAGE),
    };
    uint8_t before[64 * KiB], after[64 * KiB];
    int i, parts;

    if (!log) {
        g_test_skip("QEMU was built without the log backend of traces");
        return;
    }
    qvirtio_set_features(b.dev, qvirtio_get_features(b.dev) &
                                (1ull << VIRTIO_F_VERSION_1));
    b.vq[INFLATE] = qvirtqueue_setup(b.dev, alloc, INFLATE);
    b.vq[DEFLATE] = qvirtqueue_setup(b.dev, alloc, DEFLATE);
    qvirtio_set_driver_ok(b.dev);
    qtest_bufread(b.qts, ROM, before, sizeof(before));

    for (i = 0; i < ARRAY_SIZE(run_cases); i++) {
        const RunCase *c = &run_cases[i];

        g_test_message("from 0x%x on: %s", c->base, c->pages);
        parts = inflate_and_deflate(&b, c->base, c->pages);
        if (b.joins) {
            g_assert_cmpint(parts, ==, c->parts);
        }
    }
    qtest_bufread(b.qts, ROM, after, sizeof(after));
    g_assert_cmpmem(before, sizeof(before), after, sizeof(after));

    /* A long message may be worked on in pieces, but not in small ones. */
    parts = inflate_and_deflate(&b, AREA, "0-4095");
    if (b.joins) {
        g_assert_cmpint(parts, <=, 16);
    }
    parts = inflate_and_deflate(&b, AREA, "4095-0");
    if (b.joins) {
        g_assert_cmpint(parts, <=, 16);
    }

    qvirtqueue_cleanup(b.dev->bus, b.vq[INFLATE], alloc);
    qvirtqueue_cleanup(b.dev->bus, b.vq[DEFLATE], alloc);
    unlink(log);
    qos_invalidate_command_line();
}

static void *add_log(GString *cmd_line, void *arg)
{
    g_autofree char *log = NULL;
    int fd;

    g_string_append_printf(cmd_line, " -nodefaults"
        " -m %" PRIu64 "M,slots=2,maxmem=1G"
        " -object memory-backend-ram,id=m0,size=64M"
        " -object memory-backend-ram,id=m1,size=64M"
        " -device pc-dimm,memdev=m0,addr=0x%llx"
        " -device pc-dimm,memdev=m1,addr=0x%llx",
        (uint64_t)RAM_SIZE / MiB, DIMM, DIMM + DIMM_SIZE);
#ifdef CONFIG_TRACE_LOG
    fd = g_file_open_tmp("virtio-balloon-XXXXXX", &log, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(fd);
    g_string_append_printf(cmd_line, " -D %s -trace ram_block_discard_range"
                           " -trace virtio_balloon_handle_output"
                           " -trace virtqueue_flush", log);
#endif
    return g_steal_pointer(&log);
}

static void register_virtio_balloon_run_test(void)
{
    QOSGraphTestOptions opts = { .before = add_log };

    /* The tests know the memory map of the pc machine. */
    if (!g_str_equal(qtest_get_arch(), "i386") &&
        !g_str_equal(qtest_get_arch(), "x86_64")) {
        return;
    }
    qos_add_test("pfn-runs", "virtio-balloon-pci", test_runs, &opts);
    opts.edge.extra_device_opts = "id=balloon0" PAGE_BY_PAGE;
    qos_add_test("pfn-runs-off", "virtio-balloon-pci", test_runs, &opts);
}

libqos_init(register_virtio_balloon_run_test);
