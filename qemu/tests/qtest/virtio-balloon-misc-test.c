/*
 * QTest testcase for virtio-balloon: the misc queue, and migration with it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "libqtest.h"
#include "libqos/qgraph.h"
#include "libqos/qos_external.h"
#include "libqos/virtio-balloon.h"

#define F(bit)          (1ull << (bit))
#define STATS           F(VIRTIO_BALLOON_F_STATS_VQ)
#define HINT            F(VIRTIO_BALLOON_F_FREE_PAGE_HINT)
#define REPORTING       F(VIRTIO_BALLOON_F_REPORTING)
/* With all that brings a queue, or the device does not ask */
#define FEATURES        (F(VIRTIO_F_VERSION_1) | STATS | \
                         F(VIRTIO_BALLOON_F_MISC_VQ))
#define RAM_MIB         256
#define RAM_SIZE        (RAM_MIB * MiB)
#define RAM_PAGES       (RAM_SIZE / 4096)
/* Guest memory to play with, far from what the allocator hands out */
#define AREA            (128 * MiB)
#define AREA_PFN        (AREA >> 12)
#define TIMEOUT_US      (60 * G_USEC_PER_SEC)
#define REQUEST_LEN     (sizeof(struct virtio_balloon_req_hdr) + \
                         sizeof(struct virtio_balloon_req_range))

enum {
    CONT = VIRTIO_BALLOON_BMAP_FLAG_CONT,
    DONE = VIRTIO_BALLOON_BMAP_FLAG_DONE,
    ERROR = VIRTIO_BALLOON_BMAP_FLAG_ERROR,
};

typedef struct Misc {
    QTestState *qts;
    QVirtioPCIDevice *pci;
    QVirtioDevice *dev;
    QGuestAllocator *alloc;
    QVirtQueue *queues[6];
    QVirtQueue *vq;
    int index;
    int packed;                 /* next slot, if the ring is packed */
    QDict *before;              /* counters */
    uint64_t buffer;            /* for requests */
    uint64_t id;                /* of the last request */
    uint64_t start, end;        /* its range */
} Misc;

static QDict *get_counters(QTestState *qts)
{
    QDict *rsp, *ret;

    rsp = qtest_qmp(qts, "{'execute': 'qom-get', 'arguments': {"
                    "'path': '/machine/peripheral/balloon0',"
                    "'property': 'misc-vq-stats'}}");
    ret = qdict_get_qdict(rsp, "return");
    g_assert_nonnull(ret);
    qobject_ref(ret);
    qobject_unref(rsp);
    return ret;
}

static int64_t get_counter(QTestState *qts, const char *name)
{
    QDict *now = get_counters(qts);
    int64_t ret = qdict_get_int(now, name);

    qobject_unref(now);
    return ret;
}

/* How much a counter grew since the last forget() */
static int64_t grown(Misc *m, const char *name)
{
    return get_counter(m->qts, name) - qdict_get_int(m->before, name);
}

static void forget(Misc *m)
{
    qobject_unref(m->before);
    m->before = get_counters(m->qts);
}

/* For loops that wait */
static void pause_until(gint64 deadline, int us)
{
    g_assert_cmpint(g_get_monotonic_time(), <, deadline);
    g_usleep(us);
}

static void wait_counter(Misc *m, const char *name, int64_t value)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

    while (grown(m, name) < value) {
        pause_until(deadline, 1000);
    }
}

/* The driver */

static void misc_start(Misc *m, uint64_t features)
{
    int i;

    g_assert_cmphex(qvirtio_get_features(m->dev) & features, ==, features);
    qvirtio_set_features(m->dev, features);
    for (i = 0; i <= m->index; i++) {
        m->queues[i] = qvirtqueue_setup(m->dev, m->alloc, i);
    }
    m->vq = m->queues[m->index];
    if (features & F(VIRTIO_F_RING_PACKED)) {
        m->packed = 0;
        qtest_memset(m->qts, m->vq->desc, 0, 16 * m->vq->size);
    }
    qvirtio_set_driver_ok(m->dev);
}

static void misc_free_queues(Misc *m)
{
    int i;

    for (i = 0; i <= m->index; i++) {
        qvirtqueue_cleanup(m->dev->bus, m->queues[i], m->alloc);
    }
}

static void misc_restart(Misc *m, uint64_t features)
{
    qvirtio_start_device(m->dev);
    misc_free_queues(m);
    misc_start(m, features);
}

static void misc_init(Misc *m, void *obj, QGuestAllocator *alloc, int index,
                      uint64_t features)
{
    QVirtioBalloonPCI *pci = obj;

    memset(m, 0, sizeof(*m));
    m->packed = -1;
    m->pci = &pci->pci_vdev;
    m->qts = m->pci->pdev->bus->qts;
    m->dev = &m->pci->vdev;
    m->alloc = alloc;
    m->index = index;
    misc_start(m, features);
    m->before = get_counters(m->qts);
    m->buffer = guest_alloc(alloc, VIRTIO_BALLOON_REQ_LEN);
}

static void misc_fini(Misc *m)
{
    guest_free(m->alloc, m->buffer);
    misc_free_queues(m);
    qobject_unref(m->before);
}

/* The buffer for requests has the first slot, a message the second if any. */
static void add(Misc *m, uint64_t addr, size_t len, bool write)
{
    QVirtQueue *vq = m->vq;

    if (m->packed >= 0) {
        uint64_t desc = vq->desc + 16 * m->packed++;

        qtest_writeq(m->qts, desc, addr);
        qtest_writel(m->qts, desc + 8, len);
        qtest_writew(m->qts, desc + 12, 0x1234);
        qtest_writew(m->qts, desc + 14, 1 << VRING_PACKED_DESC_F_AVAIL |
                     (write ? VRING_DESC_F_WRITE : 0));
        m->dev->bus->virtqueue_kick(m->dev, vq);
        return;
    }
    vq->free_head = write || vq->size == 1 ? 0 : 1;
    qvirtqueue_kick(m->qts, m->dev, vq,
                    qvirtqueue_add(m->qts, vq, addr, len, write, false));
}

static bool used(Misc *m, uint32_t *len)
{
    uint64_t desc = m->vq->desc + 16 * (m->packed - 1);
    uint16_t flags;

    if (m->packed < 0) {
        return qvirtqueue_get_buf(m->qts, m->vq, NULL, len);
    }
    flags = qtest_readw(m->qts, desc + 14);
    *len = qtest_readl(m->qts, desc + 8);
    return (flags & 1 << VRING_PACKED_DESC_F_AVAIL) &&
           (flags & 1 << VRING_PACKED_DESC_F_USED);
}

static uint32_t wait_used(Misc *m)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    uint32_t len;

    while (!used(m, &len)) {
        pause_until(deadline, 100);
    }
    return len;
}

static void offer(Misc *m)
{
    qtest_memset(m->qts, m->buffer, 0xee, VIRTIO_BALLOON_REQ_LEN);
    add(m, m->buffer, VIRTIO_BALLOON_REQ_LEN, true);
}

static QDict *request_ask(Misc *m)
{
    return qtest_qmp(m->qts, "{'execute': 'balloon-request', 'arguments': {"
                     "'type': 'unused-pages'}}");
}

static bool try_ask(Misc *m)
{
    QDict *rsp = request_ask(m);
    bool ret = !qdict_haskey(rsp, "error");

    qobject_unref(rsp);
    return ret;
}

/* A request waits for the buffer, or for its answer */
static bool asking(Misc *m)
{
    return get_counter(m->qts, "outstanding");
}

/* Reads the request that is in the memory of @qts, and checks it */
static void read_request(Misc *m, QTestState *qts)
{
    struct virtio_balloon_req_hdr hdr;
    struct virtio_balloon_req_range range;
    uint8_t rest[VIRTIO_BALLOON_REQ_LEN - REQUEST_LEN];
    uint64_t id;
    int i;

    qtest_bufread(qts, m->buffer, &hdr, sizeof(hdr));
    qtest_bufread(qts, m->buffer + sizeof(hdr), &range, sizeof(range));
    qtest_bufread(qts, m->buffer + REQUEST_LEN, rest, sizeof(rest));
    g_assert_cmpint(le16_to_cpu(hdr.cmd), ==, VIRTIO_BALLOON_REQ_UNUSED_PAGES);
    g_assert_cmpint(le16_to_cpu(range.page_shift), ==, 12);
    for (i = 0; i < 3; i++) {
        g_assert_cmpint(hdr.reserved[i], ==, 0);
        g_assert_cmpint(range.reserved[i], ==, 0);
    }
    for (i = 0; i < sizeof(rest); i++) {
        g_assert_cmphex(rest[i], ==, 0xee);
    }
    id = le64_to_cpu(hdr.id);
    g_assert_cmpint(id, >, m->id);
    m->id = id;
    m->start = le64_to_cpu(range.start_pfn) << 12;
    m->end = m->start + (le64_to_cpu(range.nr_pages) << 12);
}

static void wait_request(Misc *m)
{
    g_assert_cmpint(wait_used(m), ==, REQUEST_LEN);
    read_request(m, m->qts);
}

/* Has the device ask for all of RAM */
static void ask(Misc *m)
{
    g_assert_true(try_ask(m));
    wait_request(m);
    g_assert_true(asking(m));
    g_assert_cmphex(m->start, ==, 0);
    g_assert_cmphex(m->end, >=, RAM_SIZE);
}

/* Messages */

static struct virtio_balloon_bmap_hdr answer_hdr(Misc *m, uint16_t flag,
                                          uint64_t start_pfn, uint64_t len)
{
    return (struct virtio_balloon_bmap_hdr) {
        .cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_UNUSED_PAGES),
        .page_shift = cpu_to_le16(12),
        .flag = cpu_to_le16(flag),
        .req_id = cpu_to_le64(m->id),
        .start_pfn = cpu_to_le64(start_pfn),
        .bmap_len = cpu_to_le64(len),
    };
}

/* Appends a record with @len bytes of bitmap, of the bits of @word, repeated */
static void add_raw(GByteArray *msg, struct virtio_balloon_bmap_hdr hdr,
                    uint64_t word, size_t len)
{
    size_t i;

    word = cpu_to_le64(word);
    g_byte_array_append(msg, (uint8_t *)&hdr, sizeof(hdr));
    for (i = 0; i < len; i += 8) {
        g_byte_array_append(msg, (uint8_t *)&word, 8);
    }
}

static void add_answer(Misc *m, GByteArray *msg, uint16_t flag,
                       uint64_t start_pfn, uint64_t word, size_t len)
{
    add_raw(msg, answer_hdr(m, flag, start_pfn, len), word, len);
}

/* Empties @msg */
static void transmit(Misc *m, GByteArray *msg)
{
    uint64_t addr = guest_alloc(m->alloc, msg->len);

    qtest_bufwrite(m->qts, addr, msg->data, msg->len);
    add(m, addr, msg->len, false);
    g_assert_cmpint(wait_used(m), ==, 0);
    guest_free(m->alloc, addr);
    g_byte_array_set_size(msg, 0);
}

static void finish(Misc *m, uint16_t flag)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();

    add_answer(m, msg, flag, 0, 0, 0);
    transmit(m, msg);
}

/* The queue is as good as ever: asks, and gets one page */
static void check_works(Misc *m)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();

    forget(m);
    offer(m);
    ask(m);
    add_answer(m, msg, DONE, AREA_PFN, 0x8, 8);
    transmit(m, msg);
    g_assert_false(asking(m));
    g_assert_cmpint(grown(m, "requests"), ==, 1);
    g_assert_cmpint(grown(m, "answers"), ==, 1);
    g_assert_cmpint(grown(m, "records"), ==, 1);
    g_assert_cmpint(grown(m, "reported-pages"), ==, 1);
    g_assert_cmpint(grown(m, "bad-records"), ==, 0);
    g_assert_cmpint(grown(m, "stale-records"), ==, 0);
    g_assert_cmpint(get_counter(m->qts, "last-id"), ==, m->id);
}

static void test_ask(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    g_assert_false(asking(&m));
    g_assert_false(try_ask(&m));
    offer(&m);
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    g_assert_cmpint(grown(&m, "messages"), ==, 0);
    ask(&m);
    g_assert_cmpint(m.id, ==, 1);
    g_assert_cmpint(grown(&m, "requests"), ==, 1);

    /* One at a time, whether or not the buffer is there */
    g_assert_false(try_ask(&m));

    /* Many messages, of many records; those that touch make one run */
    add_answer(&m, msg, CONT, AREA_PFN, 0xff, 8);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 8);
    add_answer(&m, msg, CONT, AREA_PFN + 64, 0x8000000000000001, 8);
    add_answer(&m, msg, CONT, AREA_PFN + 128, 0x3, 8);
    add_answer(&m, msg, CONT, AREA_PFN + 128, 0, 32768);
    transmit(&m, msg);
    g_assert_true(asking(&m));
    g_assert_cmpint(grown(&m, "answers"), ==, 0);
    add_answer(&m, msg, CONT, AREA_PFN, 0x1, 8);
    add_answer(&m, msg, DONE, AREA_PFN + 192, 0x1, 8);
    transmit(&m, msg);
    g_assert_false(asking(&m));
    g_assert_cmpint(grown(&m, "answers"), ==, 1);
    g_assert_cmpint(grown(&m, "messages"), ==, 3);
    g_assert_cmpint(grown(&m, "bytes"), ==, 6 * 32 + 5 * 8 + 32768);
    g_assert_cmpint(grown(&m, "records"), ==, 6);
    g_assert_cmpint(grown(&m, "runs"), ==, 5);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 14);
    g_assert_cmpint(grown(&m, "skipped-runs"), ==, 0);
    g_assert_cmpint(grown(&m, "bad-records"), ==, 0);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 0);
    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 0);
    g_assert_cmpint(get_counter(m.qts, "answer-ns"), >, 0);
    g_assert_cmpint(get_counter(m.qts, "longest-answer-ns"), >=,
                    get_counter(m.qts, "answer-ns"));

    /* Whoever asks right behind an answer waits for the buffer */
    g_assert_true(try_ask(&m));
    g_assert_true(asking(&m));
    g_assert_cmpint(grown(&m, "requests"), ==, 1);
    offer(&m);
    wait_request(&m);

    /* DONE by itself; ERROR, behind records that stay good */
    finish(&m, DONE);
    g_assert_false(asking(&m));
    forget(&m);
    offer(&m);
    ask(&m);
    add_answer(&m, msg, CONT, AREA_PFN, 0x3, 8);
    add_answer(&m, msg, ERROR, 0, 0, 0);
    transmit(&m, msg);
    g_assert_false(asking(&m));
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 2);
    g_assert_cmpint(grown(&m, "errors"), ==, 1);
    g_assert_cmpint(grown(&m, "answers"), ==, 0);

    /* Pages of another size, what is no RAM, and what was not asked for */
    forget(&m);
    offer(&m);
    ask(&m);
    add_raw(msg, (struct virtio_balloon_bmap_hdr) {
                .page_shift = cpu_to_le16(16), .req_id = cpu_to_le64(m.id),
                .start_pfn = cpu_to_le64(AREA >> 16), .bmap_len = cpu_to_le64(8)
            }, 0x2, 8);
    add_answer(&m, msg, CONT, RAM_SIZE >> 12, 0x1, 8);
    add_answer(&m, msg, CONT, (RAM_SIZE >> 12) - 64, 0x1ull << 63, 8);
    add_answer(&m, msg, CONT, RAM_SIZE >> 12, 0x1, 8);
    add_answer(&m, msg, CONT, 1ull << 40, UINT64_MAX, 8);
    add_answer(&m, msg, CONT, 0xc0, UINT64_MAX << 48, 8);
    transmit(&m, msg);
    finish(&m, DONE);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 17);
    g_assert_cmpint(grown(&m, "runs"), ==, 5);
    g_assert_cmpint(grown(&m, "skipped-runs"), >=, 4);
    for (i = 0; i < 200; i++) {
        check_works(&m);
    }
    misc_fini(&m);
}

/* Requests of other kinds */

typedef struct Request {
    struct virtio_balloon_req_hdr hdr;
    union {
        struct virtio_balloon_req_range range;
        struct virtio_balloon_req_reclaim reclaim;
    };
} Request;

static void start_request(Misc *m, const char *args)
{
    qtest_qmp_assert_success(m->qts, "{'execute': 'balloon-request',"
                             "'arguments': %p}",
                             qobject_from_json(args, &error_abort));
}

static void refuse_request(Misc *m, const char *args, const char *why)
{
    QDict *rsp = qtest_qmp(m->qts, "{'execute': 'balloon-request',"
                           "'arguments': %p}",
                           qobject_from_json(args, &error_abort));
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), why));
    qobject_unref(rsp);
}

static void take_request(Misc *m, Request *req, uint16_t cmd, size_t len)
{
    g_assert_cmpint(wait_used(m), ==, sizeof(req->hdr) + len);
    qtest_bufread(m->qts, m->buffer, req, sizeof(*req));
    g_assert_cmpint(le16_to_cpu(req->hdr.cmd), ==, cmd);
    g_assert_cmpint(le64_to_cpu(req->hdr.id), >, m->id);
    m->id = le64_to_cpu(req->hdr.id);
}

/* An answer that is a number, or an error */
static void finish_request(Misc *m, uint16_t cmd, uint16_t flag,
                           uint64_t number)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    struct virtio_balloon_bmap_hdr hdr = answer_hdr(m, flag, number, 0);

    hdr.cmd = cpu_to_le16(cmd);
    add_raw(msg, hdr, 0, 0);
    transmit(m, msg);
}

/* Then the buffer is offered again */
static void answer_request(Misc *m, uint16_t cmd, uint16_t flag,
                           uint64_t number)
{
    finish_request(m, cmd, flag, number);
    offer(m);
}

/* What the event says, and then the query as well */
static void expect_end(Misc *m, const char *type, const char *status,
                       uint64_t bytes)
{
    QDict *rsp = qtest_qmp_eventwait_ref(m->qts, "BALLOON_REQUEST_COMPLETED");
    QDict *event = qdict_get_qdict(rsp, "data");
    QDict *query = qtest_qmp(m->qts, "{'execute': 'query-balloon-request'}");
    QDict *info = qdict_get_qdict(query, "return");

    g_assert_cmpstr(qdict_get_str(event, "type"), ==, type);
    g_assert_cmpstr(qdict_get_str(event, "status"), ==, status);
    g_assert_cmpint(qdict_get_int(event, "bytes"), ==, bytes);
    g_assert_true(qobject_is_equal(QOBJECT(event), QOBJECT(info)));
    qobject_unref(query);
    qobject_unref(rsp);
}

#define CONFIG_ENDED_ID offsetof(struct virtio_balloon_config, misc_ended_id)

/* The request whose answer is not wanted any more, the last one of these */
static uint32_t ended_id(Misc *m)
{
    return qvirtio_config_readl(m->dev, CONFIG_ENDED_ID);
}

static void wait_ended_id(Misc *m)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

    while (ended_id(m) != m->id) {
        pause_until(deadline, 1000);
    }
}

static bool config_changed(Misc *m)
{
    /* Bits are cleared as they are read */
    return qpci_io_readb(m->pci->pdev, m->pci->bar,
                         m->pci->isr_cfg_offset) & 2;
}

/* The driver is told when nobody wants its answer any more. */
static void test_end(void *obj, void *data, QGuestAllocator *alloc)
{
    Request req;
    uint64_t id;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    g_assert_cmpint(ended_id(&m), ==, 0);
    offer(&m);

    /* Not by an answer that ends, nor by a new request */
    start_request(&m, "{'type': 'compact'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_COMPACT, 0);
    answer_request(&m, VIRTIO_BALLOON_REQ_COMPACT, DONE, 0);
    expect_end(&m, "compact", "completed", 0);
    start_request(&m, "{'type': 'sync'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_SYNC, 0);
    g_assert_cmpint(ended_id(&m), ==, 0);
    g_assert_false(config_changed(&m));

    /* Cancelled; the driver cannot change that */
    qtest_qmp_assert_success(m.qts, "{'execute': 'balloon-request-cancel'}");
    g_assert_cmpint(ended_id(&m), ==, m.id);
    g_assert_true(config_changed(&m));
    expect_end(&m, "sync", "cancelled", 0);
    qpci_io_writel(m.pci->pdev, m.pci->bar,
                   m.pci->device_cfg_offset + CONFIG_ENDED_ID, 77);
    g_assert_cmpint(ended_id(&m), ==, m.id);
    qtest_qmp_assert_success(m.qts, "{'execute': 'balloon-request-cancel'}");
    g_assert_false(config_changed(&m));
    finish_request(&m, VIRTIO_BALLOON_REQ_SYNC, ERROR, 0);
    g_assert_cmpint(grown(&m, "errors"), ==, 0);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 1);
    id = m.id;
    check_works(&m);
    g_assert_cmpint(ended_id(&m), ==, id);
    g_assert_false(config_changed(&m));

    /* While it is stopped nobody is there to be told */
    offer(&m);
    ask(&m);
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    g_assert_false(config_changed(&m));
    qtest_qmp_assert_success(m.qts, "{'execute': 'cont'}");
    g_assert_true(config_changed(&m));
    g_assert_cmpint(ended_id(&m), ==, m.id);
    finish(&m, ERROR);
    check_works(&m);

    /* The next driver has other requests */
    offer(&m);
    ask(&m);
    misc_restart(&m, FEATURES);
    g_assert_cmpint(ended_id(&m), ==, 0);
    check_works(&m);
    misc_fini(&m);
}

static void test_trim(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    struct virtio_balloon_bmap_hdr hdr;
    uint64_t end = 0;
    Request req;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    refuse_request(&m, "{'type': 'trim'}", "has not offered");
    offer(&m);
    qtest_memset(m.qts, AREA, 0x55, 4 * MiB);
    start_request(&m, "{'type': 'trim'}");
    refuse_request(&m, "{'type': 'sync'}", "outstanding");
    /* A part after the other, of all that is RAM */
    do {
        take_request(&m, &req, VIRTIO_BALLOON_REQ_TRIM, sizeof(req.range));
        g_assert_cmphex(le64_to_cpu(req.range.start_pfn) << 12, ==, end);
        g_assert_cmpint(le16_to_cpu(req.range.page_shift), ==, 12);
        m.start = end;
        end += le64_to_cpu(req.range.nr_pages) << 12;
        g_assert_cmphex(end - m.start, <=, GiB);
        if (!m.start) {
            /* 2 MiB in the middle; and a page outside of the range */
            hdr = answer_hdr(&m, CONT, AREA_PFN + 256, 64);
            hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_TRIM);
            add_raw(msg, hdr, UINT64_MAX, 64);
            hdr.start_pfn = cpu_to_le64(GiB >> 12);
            add_raw(msg, hdr, UINT64_MAX, 64);
            transmit(&m, msg);
            g_assert_cmphex(qtest_readq(m.qts, AREA + MiB), ==, 0);
        }
        answer_request(&m, VIRTIO_BALLOON_REQ_TRIM, DONE, 0);
    } while (end < 4 * GiB && asking(&m));
    g_assert_cmphex(end, >=, RAM_SIZE);
    expect_end(&m, "trim", "completed", 2 * MiB);
    g_assert_cmphex(qtest_readq(m.qts, AREA + MiB - 8), ==, 0x5555555555555555);
    g_assert_cmphex(qtest_readq(m.qts, AREA + 3 * MiB - 8), ==, 0);
    g_assert_cmphex(qtest_readq(m.qts, AREA + 3 * MiB), ==, 0x5555555555555555);
    g_assert_cmpint(grown(&m, "trimmed-bytes"), ==, 2 * MiB);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 0);
    g_assert_cmpint(grown(&m, "bad-records"), ==, 0);

    /* Records of another command, and of an answer that nobody wants */
    start_request(&m, "{'type': 'trim'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_TRIM, sizeof(req.range));
    add_answer(&m, msg, CONT, AREA_PFN, UINT64_MAX, 8);
    transmit(&m, msg);
    qtest_qmp_assert_success(m.qts, "{'execute': 'balloon-request-cancel'}");
    expect_end(&m, "trim", "cancelled", 0);
    hdr = answer_hdr(&m, DONE, AREA_PFN, 8);
    hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_TRIM);
    add_raw(msg, hdr, UINT64_MAX, 8);
    transmit(&m, msg);
    g_assert_cmphex(qtest_readq(m.qts, AREA), ==, 0x5555555555555555);
    check_works(&m);
    misc_fini(&m);
}

static void test_numbers(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    struct virtio_balloon_bmap_hdr hdr;
    Request req;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    qtest_memset(m.qts, AREA, 0x55, 4096);

    refuse_request(&m, "{'type': 'reclaim'}", "how many bytes");
    refuse_request(&m, "{'type': 'reclaim', 'bytes': 0}", "how many bytes");
    refuse_request(&m, "{'type': 'reclaim', 'bytes': 1, 'timeout': 0}",
                   "timeout");
    refuse_request(&m, "{'type': 'sync', 'bytes': 1}", "Only");
    refuse_request(&m, "{'type': 'trim', 'swap': true}", "Only");
    g_assert_cmpint(grown(&m, "requests"), ==, 0);

    /* In parts, until there is as much as was wanted, or no more to be had */
    start_request(&m, "{'type': 'reclaim', 'bytes': 10000000,"
                      "'timeout': 50000, 'swap': true}");
    for (i = 0; i < 2; i++) {
        take_request(&m, &req, VIRTIO_BALLOON_REQ_RECLAIM, sizeof(req.reclaim));
        g_assert_cmpint(le64_to_cpu(req.reclaim.bytes), ==,
                        10000000 - i * 8192);
        g_assert_cmpint(le32_to_cpu(req.reclaim.msecs), >, 0);
        g_assert_cmpint(le32_to_cpu(req.reclaim.msecs), <,
                        VIRTIO_BALLOON_REQ_MAX_MSECS);
        g_assert_cmpint(le32_to_cpu(req.reclaim.flags), ==,
                        VIRTIO_BALLOON_REQ_RECLAIM_SWAP);
        g_assert_true(asking(&m));
        answer_request(&m, VIRTIO_BALLOON_REQ_RECLAIM, DONE, i ? 0 : 8192);
    }
    expect_end(&m, "reclaim", "completed", 8192);
    g_assert_cmpint(grown(&m, "reclaimed-bytes"), ==, 8192);

    /* A guest has no more than its RAM, whatever it says */
    start_request(&m, "{'type': 'reclaim', 'bytes': 4096}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_RECLAIM, sizeof(req.reclaim));
    g_assert_cmpint(le32_to_cpu(req.reclaim.flags), ==, 0);
    answer_request(&m, VIRTIO_BALLOON_REQ_RECLAIM, DONE, UINT64_MAX);
    while (asking(&m)) {
        g_usleep(1000);
    }
    g_assert_cmpint(grown(&m, "reclaimed-bytes"), >=, RAM_SIZE);
    g_assert_cmpint(grown(&m, "reclaimed-bytes"), <=, 4 * GiB + 8192);
    qtest_qmp_eventwait(m.qts, "BALLOON_REQUEST_COMPLETED");

    /* What is no number, or has pages, is none */
    start_request(&m, "{'type': 'compact'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_COMPACT, 0);
    hdr = answer_hdr(&m, CONT, AREA_PFN, 8);
    hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_COMPACT);
    add_raw(msg, hdr, UINT64_MAX, 8);
    transmit(&m, msg);
    answer_request(&m, VIRTIO_BALLOON_REQ_COMPACT, DONE, 2 * MiB + 1);
    expect_end(&m, "compact", "completed", 2 * MiB + 1);
    g_assert_cmphex(qtest_readq(m.qts, AREA), ==, 0x5555555555555555);

    start_request(&m, "{'type': 'sync'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_SYNC, 0);
    answer_request(&m, VIRTIO_BALLOON_REQ_SYNC, ERROR, 77);
    expect_end(&m, "sync", "failed", 0);

    /* A request ends when the VM stops, or the driver goes */
    start_request(&m, "{'type': 'sync'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_SYNC, 0);
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    expect_end(&m, "sync", "cancelled", 0);
    qtest_qmp_assert_success(m.qts, "{'execute': 'cont'}");
    answer_request(&m, VIRTIO_BALLOON_REQ_SYNC, DONE, 0);
    start_request(&m, "{'type': 'compact'}");
    take_request(&m, &req, VIRTIO_BALLOON_REQ_COMPACT, 0);
    misc_restart(&m, FEATURES);
    expect_end(&m, "compact", "cancelled", 0);
    check_works(&m);

    /* To cancel when there is nothing, or the buffer is not there, is fine */
    qtest_qmp_assert_success(m.qts, "{'execute': 'balloon-request-cancel'}");
    misc_fini(&m);
}

/* Before the first request there is none, whatever was refused or cancelled */
static void test_no_request(void *obj, void *data, QGuestAllocator *alloc)
{
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    for (i = 0; i < 2; i++) {
        QDict *rsp = qtest_qmp(m.qts, "{'execute': 'query-balloon-request'}");
        g_autofree char *info = qtest_hmp(m.qts, "info balloon");

        g_assert_cmpstr(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"),
                        ==, "Nothing has been asked for");
        qobject_unref(rsp);
        g_assert_nonnull(strstr(info, "actual"));
        g_assert_null(strstr(info, "request"));
        refuse_request(&m, "{'type': 'sync'}", "has not offered a buffer");
        qtest_qmp_assert_success(m.qts,
                                 "{'execute': 'balloon-request-cancel'}");
    }
    check_works(&m);
    misc_fini(&m);
}

/*
 * A driver that does not offer its buffer behind an answer is not waited for
 * for ever, and may offer it yet.
 */
static void test_late_buffer(void *obj, void *data, QGuestAllocator *alloc)
{
    Request req;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    for (i = 0; i < 2; i++) {
        check_works(&m);
        qtest_qmp_eventwait(m.qts, "BALLOON_REQUEST_COMPLETED");
        start_request(&m, "{'type': 'compact'}");
        refuse_request(&m, "{'type': 'sync'}", "outstanding");
        if (i) {
            qtest_qmp_assert_success(m.qts,
                                     "{'execute': 'balloon-request-cancel'}");
        }
        expect_end(&m, "compact", i ? "cancelled" : "failed", 0);
        g_assert_false(asking(&m));
        refuse_request(&m, "{'type': 'sync'}", "not offered its buffer again");
        offer(&m);
        start_request(&m, "{'type': 'sync'}");
        take_request(&m, &req, VIRTIO_BALLOON_REQ_SYNC, 0);
        g_assert_cmpint(grown(&m, "requests"), ==, 2);
        finish_request(&m, VIRTIO_BALLOON_REQ_SYNC, DONE, 0);
        expect_end(&m, "sync", "completed", 0);
    }
    misc_fini(&m);
}

static void test_not_negotiated(void *obj, void *data, QGuestAllocator *alloc)
{
    bool offered = data != NULL;
    Misc m;

    misc_init(&m, obj, alloc, offered ? 3 : 2, F(VIRTIO_F_VERSION_1));
    g_assert_cmpint(!!(qvirtio_get_features(m.dev) &
                       F(VIRTIO_BALLOON_F_MISC_VQ)), ==, offered);
    m.dev->bus->queue_select(m.dev, 3);
    g_assert_cmpint(m.dev->bus->get_queue_size(m.dev) > 0, ==, offered);
    /* The config space has its old size */
    g_assert_cmphex(ended_id(&m), ==, offered ? 0 : UINT32_MAX);
    if (offered) {
        offer(&m);
        g_usleep(1000);
        g_assert_false(qvirtqueue_get_buf(m.qts, m.vq, NULL, NULL));
    }
    g_assert_false(try_ask(&m));
    misc_fini(&m);
}

typedef struct BadRecord {
    const char *name;
    struct virtio_balloon_bmap_hdr hdr;        /* in host order */
    size_t len;                         /* of the bitmap that follows */
    bool stale;
    bool lost;                          /* what is behind it in the message */
} BadRecord;

static const BadRecord bad_records[] = {
    { "cmd", { .cmd = 1, .page_shift = 12, .bmap_len = 8 }, 8, true },
    { "flag", { .flag = 4, .page_shift = 12, .bmap_len = 8 }, 8 },
    { "flags", { .flag = 0x8001, .page_shift = 12, .bmap_len = 8 }, 8 },
    { "error", { .flag = 2, .page_shift = 12, .bmap_len = 8 }, 8 },
    { "done and error", { .flag = 3, .page_shift = 12 }, 0 },
    { "reserved", { .reserved = 1, .page_shift = 12, .bmap_len = 8 }, 8 },
    { "page_shift 11", { .page_shift = 11, .bmap_len = 8 }, 8 },
    { "page_shift 31", { .page_shift = 31, .bmap_len = 8 }, 8 },
    { "start_pfn", { .page_shift = 12, .start_pfn = AREA_PFN + 32,
                     .bmap_len = 8 }, 8 },
    { "overflow", { .page_shift = 12, .start_pfn = (1ull << 52) - 64,
                    .bmap_len = 8 }, 8 },
    { "bmap_len 4", { .page_shift = 12, .bmap_len = 4 }, 8, false, true },
    { "bmap_len 32776", { .page_shift = 12, .bmap_len = 32776 }, 32776,
      false, true },
    { "bmap_len beyond the buffer", { .page_shift = 12, .bmap_len = 4096 }, 8,
      false, true },
};

static void test_bad_records(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    struct virtio_balloon_bmap_hdr hdr;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    for (i = 0; i < ARRAY_SIZE(bad_records); i++) {
        const BadRecord *bad = &bad_records[i];

        g_test_message("%s", bad->name);
        offer(&m);
        ask(&m);
        forget(&m);
        hdr = answer_hdr(&m, bad->hdr.flag, bad->hdr.start_pfn ?: AREA_PFN,
                         bad->hdr.bmap_len);
        hdr.cmd = cpu_to_le16(bad->hdr.cmd);
        hdr.page_shift = cpu_to_le16(bad->hdr.page_shift);
        hdr.reserved = cpu_to_le16(bad->hdr.reserved);
        /* Good, bad, good */
        add_answer(&m, msg, CONT, AREA_PFN, 0x3, 8);
        add_raw(msg, hdr, UINT64_MAX, bad->len);
        add_answer(&m, msg, CONT, AREA_PFN, 0xc, 8);
        transmit(&m, msg);
        g_assert_cmpint(grown(&m, "bad-records"), ==, !bad->stale);
        g_assert_cmpint(grown(&m, "stale-records"), ==, bad->stale);
        g_assert_cmpint(grown(&m, "records"), ==, 2 - bad->lost);
        g_assert_cmpint(grown(&m, "reported-pages"), ==, 4 - 2 * bad->lost);
        g_assert_true(asking(&m));
        finish(&m, DONE);
        g_assert_false(asking(&m));
        check_works(&m);
    }

    offer(&m);
    ask(&m);
    forget(&m);

    /* Another request's records, later or earlier, end nothing */
    for (i = -1; i <= 1; i += 2) {
        hdr = answer_hdr(&m, DONE, AREA_PFN, 8);
        hdr.req_id = cpu_to_le64(m.id + i);
        add_raw(msg, hdr, UINT64_MAX, 8);
        transmit(&m, msg);
    }
    g_assert_cmpint(grown(&m, "stale-records"), ==, 2);
    g_assert_true(asking(&m));

    /* Truncated headers, and a buffer that is too long */
    for (i = 1; i < sizeof(hdr); i += 30) {
        add_answer(&m, msg, DONE, AREA_PFN, 0, 0);
        g_byte_array_set_size(msg, i);
        transmit(&m, msg);
    }
    g_assert_cmpint(grown(&m, "bad-records"), ==, 2);
    while (msg->len <= VIRTIO_BALLOON_BMAP_MAX_MSG) {
        add_answer(&m, msg, DONE, AREA_PFN, UINT64_MAX, 64);
    }
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "bad-records"), ==, 3);
    g_assert_cmpint(grown(&m, "records"), ==, 0);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 0);
    g_assert_true(asking(&m));

    /* Behind the end of the answer, nothing counts */
    add_answer(&m, msg, DONE, AREA_PFN, 0x1, 8);
    add_answer(&m, msg, CONT, AREA_PFN, 0x2, 8);
    add_answer(&m, msg, DONE, AREA_PFN, 0x4, 8);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 1);
    g_assert_cmpint(grown(&m, "records"), ==, 1);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 4);
    g_assert_cmpint(grown(&m, "answers"), ==, 1);

    /* The same without a request at all; then with the buffer for one */
    forget(&m);
    finish(&m, DONE);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 1);
    g_assert_cmpint(grown(&m, "answers"), ==, 0);
    check_works(&m);

    /* The driver offers its buffer, so that was all of the answer */
    offer(&m);
    ask(&m);
    forget(&m);
    offer(&m);
    wait_counter(&m, "errors", 1);
    ask(&m);
    finish(&m, DONE);
    check_works(&m);
    misc_fini(&m);
}

static void test_descriptors(void *obj, void *data, QGuestAllocator *alloc)
{
    static const int cuts[] = { 1, 7, 24, 31, 33, 36, 41 };
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr;
    Misc m;
    int i, last;

    misc_init(&m, obj, alloc, 3, FEATURES);

    /* The request, as well, may lie in pieces */
    qtest_memset(m.qts, m.buffer, 0xee, VIRTIO_BALLOON_REQ_LEN);
    m.vq->free_head = 0;
    qvirtqueue_add(m.qts, m.vq, m.buffer, 3, true, true);
    qvirtqueue_add(m.qts, m.vq, m.buffer + 3, 20, true, true);
    qvirtqueue_add(m.qts, m.vq, m.buffer + 23, 41, true, false);
    qvirtqueue_kick(m.qts, m.dev, m.vq, 0);
    ask(&m);

    add_answer(&m, msg, CONT, AREA_PFN, 0xff00, 8);
    add_answer(&m, msg, DONE, AREA_PFN + 64, 0xff00, 24);
    addr = guest_alloc(alloc, msg->len);
    qtest_bufwrite(m.qts, addr, msg->data, msg->len);
    m.vq->free_head = 0;
    for (i = 0, last = 0; i < ARRAY_SIZE(cuts); i++) {
        qvirtqueue_add(m.qts, m.vq, addr + last, cuts[i] - last, false, true);
        last = cuts[i];
    }
    qvirtqueue_add(m.qts, m.vq, addr + last, msg->len - last, false, false);
    qvirtqueue_kick(m.qts, m.dev, m.vq, 0);
    wait_used(&m);
    g_assert_cmpint(grown(&m, "records"), ==, 2);
    g_assert_cmpint(grown(&m, "bytes"), ==, msg->len);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 32);
    g_assert_cmpint(grown(&m, "answers"), ==, 1);
    guest_free(alloc, addr);
    check_works(&m);
    misc_fini(&m);
}

/* A legal message of the greatest size, with every other bit set */
static void add_long_message(Misc *m, GByteArray *msg)
{
    while (msg->len + 32768 + 32 <= VIRTIO_BALLOON_BMAP_MAX_MSG) {
        add_answer(m, msg, CONT, AREA_PFN, 0x5555555555555555, 32768);
    }
    add_answer(m, msg, CONT, AREA_PFN, 0x5555555555555555,
               VIRTIO_BALLOON_BMAP_MAX_MSG - msg->len - 32);
    g_assert_cmpint(msg->len, ==, VIRTIO_BALLOON_BMAP_MAX_MSG);
}

#define LONG_MESSAGE_RUNS  (4 * (VIRTIO_BALLOON_BMAP_MAX_MSG - 32 * 32))

static void test_slices(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    ask(&m);
    forget(&m);
    add_long_message(&m, msg);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "messages"), ==, 1);
    g_assert_cmpint(grown(&m, "runs"), ==, LONG_MESSAGE_RUNS);
    /* Runs are work items: 16384 to a slice */
    g_assert_cmpint(grown(&m, "bh-calls"), >=, LONG_MESSAGE_RUNS / 16384 - 1);
    g_assert_cmpint(grown(&m, "bad-records"), ==, 0);

    /* All memory, again and again: by bytes */
    forget(&m);
    while (msg->len < 40000) {
        add_raw(msg, (struct virtio_balloon_bmap_hdr) {
                    .page_shift = cpu_to_le16(12), .req_id = cpu_to_le64(m.id),
                    .bmap_len = cpu_to_le64(8192)
                }, UINT64_MAX, 8192);
        add_answer(&m, msg, CONT, 1ull << 40, 1, 8);
    }
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "reported-pages"), >, 4 * RAM_PAGES);

    /* Small records by the thousand, nobody asked for them */
    finish(&m, DONE);
    forget(&m);
    while (msg->len + 32 <= VIRTIO_BALLOON_BMAP_MAX_MSG) {
        add_answer(&m, msg, DONE, 0, 0, 0);
    }
    addr = guest_alloc(alloc, msg->len);
    qtest_bufwrite(m.qts, addr, msg->data, msg->len);
    for (i = 0; i < 4; i++) {
        add(&m, addr, msg->len, false);
    }
    for (i = 0; i < 4; i++) {
        wait_used(&m);
    }
    g_assert_cmpint(grown(&m, "stale-records"), ==, 4 * 32768);
    g_assert_cmpint(grown(&m, "bh-calls"), >=, 4 * 32768 / 16384 - 1);

    /* A flood of nothing */
    forget(&m);
    for (i = 0; i < 300; i++) {
        add(&m, addr, 8, false);
        wait_used(&m);
    }
    g_assert_cmpint(grown(&m, "bad-records"), ==, 300);
    guest_free(alloc, addr);
    check_works(&m);
    misc_fini(&m);
}

static void test_request_buffer(void *obj, void *data, QGuestAllocator *alloc)
{
    Misc m;
    int i;

    /* First of all something that is no buffer for requests */
    misc_init(&m, obj, alloc, 3, FEATURES);
    add(&m, m.buffer, VIRTIO_BALLOON_REQ_LEN, false);
    offer(&m);
    g_assert_false(try_ask(&m));
    g_assert_false(qvirtqueue_get_buf(m.qts, m.vq, NULL, NULL));
    g_assert_cmpint(grown(&m, "messages"), ==, 0);
    misc_restart(&m, FEATURES);
    check_works(&m);

    misc_restart(&m, FEATURES);
    add(&m, m.buffer, REQUEST_LEN - 1, true);
    g_assert_false(try_ask(&m));
    add(&m, m.buffer, REQUEST_LEN, true);
    g_assert_false(try_ask(&m));
    g_assert_false(qvirtqueue_get_buf(m.qts, m.vq, NULL, NULL));
    misc_restart(&m, FEATURES);
    check_works(&m);

    /* Later on, a buffer that is too short comes back empty */
    for (i = 0; i < 2; i++) {
        forget(&m);
        g_assert_true(!i || try_ask(&m));
        add(&m, m.buffer, REQUEST_LEN - 1, true);
        g_assert_cmpint(wait_used(&m), ==, 0);
        g_assert_true(i || try_ask(&m));
        g_assert_cmpint(grown(&m, "requests"), ==, 0);
        offer(&m);
        wait_request(&m);
        finish(&m, DONE);
    }
    check_works(&m);

    /* As many bytes as the command takes are enough */
    qtest_memset(m.qts, m.buffer, 0xee, VIRTIO_BALLOON_REQ_LEN);
    add(&m, m.buffer, REQUEST_LEN, true);
    ask(&m);
    finish(&m, DONE);
    check_works(&m);
    misc_fini(&m);
}

static uint64_t common_cfg(Misc *m, size_t offset)
{
    return m->pci->common_cfg_offset + offset;
}

static void test_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr, id;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES | F(VIRTIO_F_RING_RESET));
    addr = guest_alloc(alloc, VIRTIO_BALLOON_BMAP_MAX_MSG);
    for (i = 0; i < 3; i++) {
        /* In the middle of the answer, and of a message */
        offer(&m);
        ask(&m);
        id = m.id;
        forget(&m);
        g_byte_array_set_size(msg, 0);
        add_long_message(&m, msg);
        qtest_bufwrite(m.qts, addr, msg->data, msg->len);
        add(&m, addr, msg->len, false);
        if (i == 2) {
            m.dev->bus->queue_select(m.dev, m.index);
            qpci_io_writew(m.pci->pdev, m.pci->bar,
                           common_cfg(&m, VIRTIO_PCI_COMMON_Q_RESET), 1);
        } else {
            qvirtio_reset(m.dev);
        }
        g_assert_cmpint(grown(&m, "runs"), <, LONG_MESSAGE_RUNS);
        g_assert_cmpint(grown(&m, "ended"), ==, 1);
        g_assert_false(asking(&m));
        g_assert_false(try_ask(&m));
        if (i == 2) {
            qvirtqueue_cleanup(m.dev->bus, m.vq, alloc);
            m.vq = m.queues[m.index] = qvirtqueue_setup(m.dev, alloc, m.index);
        } else {
            misc_restart(&m, FEATURES | F(VIRTIO_F_RING_RESET));
        }

        /* The old answer is nobody's */
        offer(&m);
        ask(&m);
        g_assert_cmpint(m.id, ==, id + 1);
        m.id = id;
        forget(&m);
        finish(&m, DONE);
        g_assert_cmpint(grown(&m, "stale-records"), ==, 1);
        g_assert_true(asking(&m));
        m.id = id + 1;
        finish(&m, DONE);
        check_works(&m);
    }

    /* The next driver need not know the feature */
    misc_restart(&m, F(VIRTIO_F_VERSION_1));
    g_assert_false(try_ask(&m));
    guest_free(alloc, addr);
    misc_fini(&m);
}

static void test_stop(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t addr;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    g_assert_false(try_ask(&m));
    qtest_qmp_assert_success(m.qts, "{'execute': 'cont'}");
    ask(&m);
    forget(&m);
    add_answer(&m, msg, CONT, AREA_PFN, 0x1, 8);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "records"), ==, 1);

    /* In the middle of a message */
    add_long_message(&m, msg);
    addr = guest_alloc(alloc, msg->len);
    qtest_bufwrite(m.qts, addr, msg->data, msg->len);
    add(&m, addr, msg->len, false);
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    g_assert_cmpint(grown(&m, "runs"), <, LONG_MESSAGE_RUNS);
    g_assert_cmpint(grown(&m, "ended"), ==, 1);
    forget(&m);
    g_usleep(10000);
    g_assert_cmpint(grown(&m, "bh-calls"), ==, 0);
    g_assert_false(qvirtqueue_get_buf(m.qts, m.vq, NULL, NULL));
    g_assert_true(asking(&m));
    qtest_qmp_assert_success(m.qts, "{'execute': 'cont'}");

    /* Consumed to its end, which does not count as one */
    wait_used(&m);
    guest_free(alloc, addr);
    g_assert_cmpint(grown(&m, "messages"), ==, 1);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 32);
    g_assert_cmpint(grown(&m, "records"), ==, 0);
    g_assert_cmpint(grown(&m, "runs"), ==, 0);
    g_assert_true(asking(&m));
    g_assert_false(try_ask(&m));
    finish(&m, DONE);
    g_assert_false(asking(&m));
    g_assert_cmpint(grown(&m, "answers"), ==, 0);
    check_works(&m);
    misc_fini(&m);
}

static void test_unplug(void *obj, void *data, QGuestAllocator *alloc)
{
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    ask(&m);
    qpci_unplug_acpi_device_test(m.qts, "balloon0", 4);
    qtest_qmp_assert_success(m.qts, "{'execute': 'query-status'}");
    misc_fini(&m);
    /* The next test wants the device back. */
    qos_invalidate_command_line();
}

static void test_packed(void *obj, void *data, QGuestAllocator *alloc)
{
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES | F(VIRTIO_F_RING_PACKED));
    for (i = 0; i < 20; i++) {
        check_works(&m);
    }
    misc_fini(&m);
}

static void check_declined(Misc *m)
{
    const char *desc;
    QDict *rsp;

    forget(m);
    offer(m);
    rsp = request_ask(m);
    g_assert_true(qdict_haskey(rsp, "error"));
    desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
    g_assert_nonnull(strstr(desc, "declined"));
    qobject_unref(rsp);
    g_assert_false(asking(m));
    g_assert_cmpint(grown(m, "requests"), ==, 0);
    g_assert_false(qvirtqueue_get_buf(m->qts, m->vq, NULL, NULL));
}

/* Whatever other queues there are, this one is the last. */
typedef struct Queues {
    int index;
    int size;
    uint64_t features;
} Queues;

static Queues queues_1 = { 3, 1, FEATURES };
static Queues queues_reporting_2 = { 4, 2, FEATURES | REPORTING };
static Queues queues_hint_1024 = { 4, 1024, FEATURES | HINT };
static Queues queues_all = { 5, 128, FEATURES | HINT | REPORTING };

static void test_queues(void *obj, void *data, QGuestAllocator *alloc)
{
    static const uint64_t before[] = { STATS, HINT, REPORTING };
    const Queues *queues = data;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, queues->index, queues->features);
    g_assert_cmpint(m.vq->size, ==, queues->size);
    m.dev->bus->queue_select(m.dev, queues->index + 1);
    g_assert_cmpint(m.dev->bus->get_queue_size(m.dev), ==, 0);
    for (i = 0; i < 5; i++) {
        check_works(&m);
    }

    /* Who declines one may give this queue another number: it is not asked. */
    for (i = 0; i < ARRAY_SIZE(before); i++) {
        if (queues->features & before[i]) {
            misc_restart(&m, queues->features & ~before[i]);
            check_declined(&m);
            misc_restart(&m, queues->features);
            check_works(&m);
        }
    }
    misc_fini(&m);
}

/* Migration */

static QDict *query_migrate(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
    QDict *ret = qdict_get_qdict(rsp, "return");

    qobject_ref(ret);
    qobject_unref(rsp);
    return ret;
}

static bool has_status(QTestState *qts, const char *status)
{
    QDict *info = query_migrate(qts);
    bool ret = !g_strcmp0(qdict_get_try_str(info, "status"), status);

    qobject_unref(info);
    return ret;
}

static void wait_status(QTestState *qts, const char *status)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

    while (!has_status(qts, status)) {
        g_assert_false(has_status(qts, "failed"));
        pause_until(deadline, 1000);
    }
}

static int64_t ram_info(QTestState *qts, const char *name)
{
    QDict *info = query_migrate(qts);
    QDict *ram = qdict_get_qdict(info, "ram");
    int64_t ret = ram ? qdict_get_int(ram, name) : 0;

    qobject_unref(info);
    return ret;
}

static void set_bandwidth(QTestState *qts, int64_t bytes, int downtime_ms)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'max-bandwidth': %" PRId64 ","
                             " 'downtime-limit': %d}}", bytes, downtime_ms);
}

static bool set_capability(QTestState *qts, const char *name, bool on)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'migrate-set-capabilities',"
                           " 'arguments': {'capabilities': [{"
                           "'capability': %s, 'state': %i}]}}", name, on);
    bool ret = !qdict_haskey(rsp, "error");

    qobject_unref(rsp);
    return ret;
}

static void migrate(QTestState *qts, const char *uri)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
}

#define NOWHERE "exec:cat >/dev/null"
#define AGREED  " -global migration.sparse-ram=on"

/* Who waits for an answer that does not come counts a timeout. */
static void migrate_unasked(QTestState *qts)
{
    migrate(qts, NOWHERE);
    wait_status(qts, "active");
}

static void cancel(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate_cancel'}");
    wait_status(qts, "cancelled");
}

typedef struct Destination {
    char *dir, *uri;
    QTestState *qts;
} Destination;

static void launch_destination(Destination *d, const char *args)
{
    d->dir = g_dir_make_tmp("virtio-balloon-XXXXXX", NULL);
    d->uri = g_strdup_printf("unix:%s/migrate", d->dir);
    /* Of two sizes the last counts. */
    d->qts = qtest_initf("-nodefaults -m %dM %s" AGREED " -incoming defer",
                         RAM_MIB, args);
}

static void listen_at_destination(Destination *d, bool exit_on_error)
{
    qtest_qmp_assert_success(d->qts, "{'execute': 'migrate-incoming',"
                             " 'arguments': {'uri': %s,"
                             " 'exit-on-error': %i}}", d->uri, exit_on_error);
}

static void start_destination_with(Destination *d, const char *args,
                                   const char *capability)
{
    launch_destination(d, args);
    if (capability) {
        g_assert_true(set_capability(d->qts, capability, true));
    }
    listen_at_destination(d, true);
}

static void start_destination(Destination *d, const char *args)
{
    start_destination_with(d, args, NULL);
}

/* A source whose driver knows all, and a destination that is the same */
static void start_both(Misc *m, Destination *d, void *obj,
                       QGuestAllocator *alloc)
{
    misc_init(m, obj, alloc, 3, FEATURES);
    start_destination(d, qos_get_current_command_line());
}

static void end_destination(Destination *d)
{
    g_autofree char *socket = g_strdup_printf("%s/migrate", d->dir);

    qtest_quit(d->qts);
    unlink(socket);
    rmdir(d->dir);
    g_free(d->dir);
    g_free(d->uri);
}

/* Nothing else is to use a machine that was migrated away. */
static void end_source(Misc *m)
{
    misc_fini(m);
    qos_invalidate_command_line();
}

static void check_pages(QTestState *qts, uint64_t addr, uint64_t size,
                        uint8_t byte)
{
    g_autofree uint8_t *page = g_malloc(4096);
    uint64_t end = addr + size;
    int i;

    for (; addr < end; addr += 4096) {
        qtest_bufread(qts, addr, page, 4096);
        for (i = 0; i < 4096; i++) {
            if (page[i] != byte) {
                g_error("0x%" PRIx64 " holds 0x%02x instead of 0x%02x",
                        addr + i, page[i], byte);
            }
        }
    }
}

static void check_migration_request(Misc *m)
{
    g_assert_cmphex(m->start, ==, 0);
    g_assert_cmphex(m->end, ==, RAM_SIZE);
}

/* Reports a MiB for each bit of @word from @addr on */
static void add_mibs(Misc *m, GByteArray *msg, uint16_t flag, uint64_t addr,
                     uint64_t word)
{
    struct virtio_balloon_bmap_hdr hdr = answer_hdr(m, flag, addr >> 20, 8);

    g_assert_cmpint(addr % (64 * MiB), ==, 0);
    hdr.page_shift = cpu_to_le16(20);
    add_raw(msg, hdr, word, 8);
}

/* Pages that are reported are not sent, all others are. */
static void test_migrate(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    bool multifd = data != NULL;
    int64_t sent;
    Destination d;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    start_destination_with(&d, qos_get_current_command_line(),
                           multifd ? "multifd" : NULL);
    if (multifd) {
        g_assert_true(set_capability(m.qts, "multifd", true));
    }
    qtest_memset(m.qts, AREA, 0xa5, 128 * MiB);
    offer(&m);
    migrate(m.qts, d.uri);
    wait_request(&m);
    check_migration_request(&m);
    /* 32 MiB, 16 of them twice; one page; what is no RAM */
    add_mibs(&m, msg, CONT, AREA, 0x00ffffffff);
    add_mibs(&m, msg, CONT, AREA, 0x000000ffff);
    transmit(&m, msg);
    add_answer(&m, msg, CONT, RAM_SIZE >> 12, 0xff, 8);
    add_answer(&m, msg, DONE, AREA_PFN + 0x3000, 0x2, 8);
    transmit(&m, msg);
    /* Written at once: the guest does not hold what it has reported. */
    qtest_memset(m.qts, AREA + 4096, 0x5a, 4096);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");

    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 32 * 256 + 1);
    g_assert_cmpint(grown(&m, "answers"), ==, 1);
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    g_assert_cmpint(grown(&m, "ended"), ==, 0);
    sent = ram_info(m.qts, "normal") + ram_info(m.qts, "duplicate");
    g_assert_cmpint(sent, >=, RAM_PAGES - 32 * 256);
    g_assert_cmpint(sent, <=, RAM_PAGES - 32 * 256 + 2000);
    g_assert_cmpint(ram_info(m.qts, "normal"), <=, 96 * 256 + 2000);
    check_pages(d.qts, AREA - 4096, 8192, 0);
    check_pages(d.qts, AREA + 4096, 4096, 0x5a);
    check_pages(d.qts, AREA + 8192, 32 * MiB - 8192, 0);
    check_pages(d.qts, AREA + 32 * MiB, 16 * MiB + 4096, 0xa5);
    check_pages(d.qts, AREA + 48 * MiB + 4096, 4096, 0);
    check_pages(d.qts, AREA + 48 * MiB + 8192, 80 * MiB - 8192, 0xa5);
    end_destination(&d);
    end_source(&m);
}

#define MEMFD   " -machine memory-backend=m0" \
                " -object memory-backend-memfd,id=m0,size=256M,share=on"

/* How much shared memory a QEMU has, in KiB */
static int64_t shared_kib(QTestState *qts)
{
    g_autofree char *file = g_strdup_printf("/proc/%d/status",
                                            (int)qtest_pid(qts));
    g_autofree char *status = NULL;
    const char *line;

    if (!g_file_get_contents(file, &status, NULL, NULL)) {
        return -1;
    }
    line = strstr(status, "RssShmem:");
    return line ? g_ascii_strtoll(line + strlen("RssShmem:"), NULL, 10) : -1;
}

/*
 * To look at a hole of shared memory fills it: nobody does, whether or not the
 * guest can be asked, at either end.  A hole that is written to while others
 * are sent is one no more.
 */
static void test_migrate_shared(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    g_autofree char *args = g_strdup_printf("%s" MEMFD,
                                            qos_get_current_command_line());
    static const struct {
        int64_t when, where;
    } holes[] = {
        { 2 * MiB, 50 * MiB },
        { 56 * MiB, 110 * MiB },
        { 116 * MiB, 180 * MiB },
        { 232 * MiB, 254 * MiB },
    };
    const char *how = data;
    int64_t source, target;
    Destination d;
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    source = shared_kib(m.qts);
    if (source < 0) {
        g_test_skip("nobody tells how much shared memory a process has");
        end_source(&m);
        return;
    }
    launch_destination(&d, args);
    if (g_str_equal(how, "multifd")) {
        g_assert_true(set_capability(m.qts, "multifd", true));
        g_assert_true(set_capability(d.qts, "multifd", true));
    }
    listen_at_destination(&d, true);
    target = shared_kib(d.qts);
    if (g_str_equal(how, "stopped")) {
        qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    } else if (g_str_equal(how, "asked")) {
        offer(&m);
    } else {
        /* 56 MiB of pages of zeros in a second */
        set_bandwidth(m.qts, 128 * KiB, 1);
    }
    migrate(m.qts, d.uri);
    if (g_str_equal(how, "asked")) {
        wait_request(&m);
        add_mibs(&m, msg, CONT, AREA, UINT64_MAX);
        add_mibs(&m, msg, DONE, AREA + 64 * MiB, UINT64_MAX);
        transmit(&m, msg);
    } else if (!g_str_equal(how, "stopped")) {
        gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

        /*
         * Ahead of the sender, in a hole that it is in: where the log was not
         * cleared yet, and at the end, where it was
         */
        for (i = 0; i < ARRAY_SIZE(holes); i++) {
            while (ram_info(m.qts, "duplicate") < holes[i].when / 4096) {
                pause_until(deadline, 100);
            }
            qtest_memset(m.qts, holes[i].where, i + 1, 4096);
        }
        /* It is in the last one when the log is synchronised and all sent. */
        set_bandwidth(m.qts, 128 * KiB, 1000 * 1000);
    }
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    source = shared_kib(m.qts) - source;
    target = shared_kib(d.qts) - target;
    g_test_message("source grew by %" PRId64 " KiB, target by %" PRId64,
                   source, target);
    g_assert_cmpint(source, <, 16 * 1024);
    g_assert_cmpint(target, <, 16 * 1024);
    if (!g_str_equal(how, "asked") && !g_str_equal(how, "stopped")) {
        for (i = 0; i < ARRAY_SIZE(holes); i++) {
            check_pages(d.qts, holes[i].where, 4096, i + 1);
            check_pages(d.qts, holes[i].where + 4096, 4096, 0);
        }
    }
    end_destination(&d);
    end_source(&m);
}

/*
 * A page that is written after it was found unused, but before the host has
 * heard of it: only a dirty log that was cleared before can tell.
 */
static void test_migrate_write(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Destination d;
    Misc m;

    start_both(&m, &d, obj, alloc);
    qtest_memset(m.qts, AREA, 0xa5, 8 * MiB);
    offer(&m);
    migrate(m.qts, d.uri);
    wait_request(&m);
    qtest_memset(m.qts, AREA + 1 * MiB, 0x11, 4096);
    add_mibs(&m, msg, CONT, AREA, 0x0f);
    transmit(&m, msg);
    qtest_memset(m.qts, AREA + 2 * MiB, 0x22, 4096);
    finish(&m, DONE);
    qtest_memset(m.qts, AREA + 3 * MiB, 0x33, 4096);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");

    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 4 * 256);
    check_pages(d.qts, AREA, 1 * MiB, 0);
    check_pages(d.qts, AREA + 1 * MiB, 4096, 0x11);
    check_pages(d.qts, AREA + 2 * MiB, 4096, 0x22);
    check_pages(d.qts, AREA + 3 * MiB, 4096, 0x33);
    check_pages(d.qts, AREA + 4 * MiB, 4 * MiB, 0xa5);
    end_destination(&d);
    end_source(&m);
}

/* The answer comes after the wait for it, but in the first round. */
static void test_migrate_late(void *obj, void *data, QGuestAllocator *alloc)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Destination d;
    Misc m;

    start_both(&m, &d, obj, alloc);
    qtest_memset(m.qts, AREA, 0xa5, 32 * MiB);
    set_bandwidth(m.qts, 4 * MiB, 1);
    offer(&m);
    migrate(m.qts, d.uri);
    wait_request(&m);
    wait_counter(&m, "timeouts", 1);
    wait_status(m.qts, "active");
    while (ram_info(m.qts, "normal") < 256) {
        pause_until(deadline, 1000);
    }
    /* By parts, the end of it not at all; and some that were sent by now */
    add_mibs(&m, msg, CONT, 0, 0xffff0000);
    add_mibs(&m, msg, CONT, AREA, 0xffff0000);
    transmit(&m, msg);
    qtest_memset(m.qts, AREA + 24 * MiB, 0x5a, 4096);
    g_assert_cmpint(ram_info(m.qts, "dirty-sync-count"), ==, 1);
    wait_counter(&m, "unsent-pages", 16 * 256);
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 16 * 256);
    g_assert_cmpint(grown(&m, "ended"), ==, 1);
    g_assert_cmpint(ram_info(m.qts, "normal"), <, 16 * 256 + 2000);
    check_pages(d.qts, AREA, 16 * MiB, 0xa5);
    check_pages(d.qts, AREA + 16 * MiB, 8 * MiB, 0);
    check_pages(d.qts, AREA + 24 * MiB, 4096, 0x5a);
    check_pages(d.qts, AREA + 24 * MiB + 4096, 8 * MiB - 4096, 0);
    end_destination(&d);
    end_source(&m);
}

static void wait_syncs(Misc *m, int64_t nr)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

    while (ram_info(m->qts, "dirty-sync-count") < nr) {
        g_assert_false(has_status(m->qts, "completed"));
        pause_until(deadline, 1000);
    }
}

/*
 * In later rounds the guest is asked again, as long as that brings something,
 * and what is written behind that is sent.
 */
static void test_migrate_rounds(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    int64_t syncs = 1;
    Destination d;
    Misc m;
    int i;

    start_both(&m, &d, obj, alloc);
    /* A round is to last four times as long as the answers, writes and all. */
    set_bandwidth(m.qts, 2 * MiB, 1);
    /* The first one is to last, or the bandwidth is not known behind it. */
    qtest_memset(m.qts, AREA + 8 * MiB, 0x44, 4 * MiB);
    offer(&m);
    migrate(m.qts, d.uri);
    for (i = 0; i < 4; i++) {
        wait_request(&m);
        if (i) {
            /* Nothing else is dirty of what is 32 MiB of the log. */
            g_assert_cmphex(m.start, ==, AREA);
            g_assert_cmphex(m.end, ==, AREA + 32 * MiB);
        } else {
            check_migration_request(&m);
        }
        g_assert_cmpint(ram_info(m.qts, "dirty-sync-count"), >=, syncs);
        /* What the next round has to send, but for a page of it; and that */
        qtest_memset(m.qts, AREA, 0xa0 + i, 8 * MiB);
        qtest_memset(m.qts, AREA + 1 * MiB, 0x10 + i, 4096);
        if (i < 2) {
            add_mibs(&m, msg, CONT, AREA, 0xff);
            transmit(&m, msg);
            qtest_memset(m.qts, AREA + 2 * MiB, 0x20 + i, 4096);
        }
        finish(&m, DONE);
        offer(&m);
        syncs = ram_info(m.qts, "dirty-sync-count") + 1;
        wait_syncs(&m, syncs);
    }
    /* Twice nothing was unused: one round is passed over. */
    g_assert_cmpint(grown(&m, "requests"), ==, 4);
    qtest_memset(m.qts, AREA + 8 * MiB, 0x55, 8 * MiB);
    wait_syncs(&m, syncs + 1);
    wait_request(&m);
    finish(&m, DONE);
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    g_assert_cmpint(grown(&m, "answers"), ==, 5);
    /* Some of it was sent before the second answer. */
    g_assert_cmpint(grown(&m, "unsent-pages"), >=, 12 * 256);
    check_pages(d.qts, AREA, 1 * MiB, 0xa3);
    check_pages(d.qts, AREA + 1 * MiB, 4096, 0x13);
    check_pages(d.qts, AREA + 1 * MiB + 4096, 7 * MiB - 4096, 0xa3);
    check_pages(d.qts, AREA + 8 * MiB, 8 * MiB, 0x55);
    end_destination(&d);
    end_source(&m);
}

/* Returns false if the migration has completed instead. */
static bool wait_request_or_end(Misc *m)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    uint32_t len;

    while (!used(m, &len)) {
        if (has_status(m->qts, "completed")) {
            return false;
        }
        pause_until(deadline, 1000);
    }
    g_assert_cmpint(len, ==, REQUEST_LEN);
    read_request(m, m->qts);
    return true;
}

/*
 * A round begins with more to be sent than can be with the VM stopped, and its
 * answer leaves less: so it is the last one, though as much is written again.
 */
static void test_migrate_last(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Destination d;
    Misc m;
    int i;

    start_both(&m, &d, obj, alloc);
    set_bandwidth(m.qts, 4 * MiB, 500);
    qtest_memset(m.qts, AREA + 8 * MiB, 0x44, 8 * MiB);
    offer(&m);
    migrate(m.qts, d.uri);
    for (i = 0; wait_request_or_end(&m); i++) {
        /* Else it comes to no end. */
        g_assert_cmpint(i, <, 6);
        qtest_memset(m.qts, AREA, 0xa0 + i, 8 * MiB);
        add_mibs(&m, msg, DONE, AREA, 0xff);
        transmit(&m, msg);
        offer(&m);
    }
    g_assert_cmpint(i, >=, 2);
    wait_status(d.qts, "completed");
    check_pages(d.qts, AREA, 8 * MiB, 0xa0 + i - 1);
    check_pages(d.qts, AREA + 8 * MiB, 8 * MiB, 0x44);
    end_destination(&d);
    end_source(&m);
}

/* The answer comes after the next synchronisation: it is void. */
static void test_migrate_stale(void *obj, void *data, QGuestAllocator *alloc)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Destination d;
    Misc m;
    int i;

    start_both(&m, &d, obj, alloc);
    set_bandwidth(m.qts, 2 * MiB, 1);
    offer(&m);
    migrate(m.qts, d.uri);
    wait_request(&m);
    for (i = 1; ram_info(m.qts, "dirty-sync-count") < 2; i++) {
        g_assert_false(has_status(m.qts, "completed"));
        qtest_memset(m.qts, AREA, i % 255 + 1, 2 * MiB);
        pause_until(deadline, 1000);
    }
    qtest_memset(m.qts, AREA, 0xa5, 4 * MiB);
    g_assert_cmpint(grown(&m, "ended"), ==, 1);
    add_mibs(&m, msg, DONE, AREA, 0xff);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 1);
    g_assert_cmpint(grown(&m, "records"), ==, 0);
    offer(&m);
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    g_assert_cmpint(grown(&m, "requests"), ==, 1);
    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 0);
    check_pages(d.qts, AREA, 4 * MiB, 0xa5);
    end_destination(&d);
    end_source(&m);
}

static void wait_asking(Misc *m)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

    while (!asking(m)) {
        pause_until(deadline, 1000);
    }
}

/* Everything else that makes the migration thread stop waiting */
static void test_migrate_ends(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t id;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);

    /* Cancelled; the answer is nothing for the next migration. */
    migrate(m.qts, NOWHERE);
    wait_request(&m);
    id = m.id;
    add_mibs(&m, msg, CONT, AREA, 0xff);
    transmit(&m, msg);
    cancel(m.qts);
    wait_counter(&m, "ended", 1);
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    g_assert_true(asking(&m));
    forget(&m);
    /* A migration that waits for its end may be cancelled, too. */
    set_bandwidth(m.qts, 64 * KiB, 1);
    migrate_unasked(m.qts);
    add_mibs(&m, msg, CONT, AREA, 0xff00);
    transmit(&m, msg);
    cancel(m.qts);
    g_assert_cmpint(grown(&m, "not-asked-cancelled"), ==, 1);
    /* It may never come to its end. */
    migrate_unasked(m.qts);
    wait_counter(&m, "not-asked-busy", 1);
    cancel(m.qts);
    add_mibs(&m, msg, DONE, AREA, 0xff0000);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "stale-records"), ==, 2);
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    g_assert_false(asking(&m));
    /* Cancelled before there is a buffer: then it is not asked for. */
    migrate(m.qts, NOWHERE);
    wait_asking(&m);
    cancel(m.qts);
    /* It is waited for, but nothing is asked until it comes. */
    migrate_unasked(m.qts);
    g_assert_false(asking(&m));
    wait_counter(&m, "not-asked-late-buffer", 1);
    cancel(m.qts);
    offer(&m);
    g_usleep(1000);
    g_assert_false(asking(&m));
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    /* Nor before the end of an answer that somebody else does not get now. */
    ask(&m);
    g_assert_cmpint(m.id, ==, id + 1);
    migrate(m.qts, NOWHERE);
    wait_counter(&m, "not-asked-busy", 2);
    add_mibs(&m, msg, DONE, AREA, 0xff0000);
    transmit(&m, msg);
    g_assert_cmpint(grown(&m, "answers"), ==, 0);
    expect_end(&m, "unused-pages", "cancelled", 0);
    offer(&m);
    g_usleep(20000);
    g_assert_false(asking(&m));
    g_assert_cmpint(grown(&m, "requests"), ==, 1);
    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 0);
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    cancel(m.qts);
    /* An error ends the waiting; what came before it counts. */
    migrate(m.qts, NOWHERE);
    wait_request(&m);
    g_assert_cmpint(m.id, ==, id + 2);
    check_migration_request(&m);
    add_mibs(&m, msg, CONT, AREA, 0x1);
    transmit(&m, msg);
    finish(&m, ERROR);
    g_assert_cmpint(grown(&m, "errors"), ==, 1);
    wait_counter(&m, "unsent-pages", 256);
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    cancel(m.qts);

    /* Device reset */
    forget(&m);
    offer(&m);
    migrate(m.qts, NOWHERE);
    wait_request(&m);
    add_mibs(&m, msg, CONT, AREA, 0xff);
    transmit(&m, msg);
    misc_restart(&m, FEATURES);
    g_assert_cmpint(grown(&m, "ended"), ==, 1);
    wait_status(m.qts, "active");
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 0);
    cancel(m.qts);

    /* Stop; the VM being stopped, nothing is asked later on either. */
    forget(&m);
    offer(&m);
    migrate(m.qts, NOWHERE);
    wait_request(&m);
    add_mibs(&m, msg, CONT, AREA, 0xff);
    transmit(&m, msg);
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    g_assert_cmpint(grown(&m, "ended"), ==, 1);
    wait_status(m.qts, "active");
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    g_assert_cmpint(grown(&m, "unsent-pages"), ==, 0);
    cancel(m.qts);
    forget(&m);
    set_bandwidth(m.qts, 1 * GiB, 300);
    migrate(m.qts, NOWHERE);
    wait_status(m.qts, "completed");
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    g_assert_cmpint(grown(&m, "not-asked-stopped"), ==, 1);
    end_source(&m);
}

/*
 * Migrated again while an answer is outstanding, be it to a migration that
 * was cancelled or to somebody who was just curious, or while the buffer is
 * on its way: that is waited for.
 */
static void test_migrate_again(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Misc m;
    int i;

    misc_init(&m, obj, alloc, 3, FEATURES);
    set_bandwidth(m.qts, 64 * KiB, 1);
    for (i = 0; i < 3; i++) {
        forget(&m);
        offer(&m);
        if (i == 0) {
            ask(&m);
        } else {
            migrate(m.qts, NOWHERE);
            wait_request(&m);
            cancel(m.qts);
        }
        if (i == 2) {
            finish(&m, DONE);
            migrate(m.qts, NOWHERE);
            wait_asking(&m);
            cancel(m.qts);
        }
        migrate(m.qts, NOWHERE);
        wait_status(m.qts, "active");
        if (i < 2) {
            wait_ended_id(&m);
            /* Of the old request, so it does not count */
            add_mibs(&m, msg, DONE, AREA, 0xff00);
            transmit(&m, msg);
        }
        offer(&m);
        wait_request(&m);
        g_assert_cmpint(grown(&m, "unsent-pages"), ==, 0);
        add_mibs(&m, msg, DONE, AREA, 0xff0000);
        transmit(&m, msg);
        wait_counter(&m, "unsent-pages", 8 * 256);
        cancel(m.qts);
        g_assert_cmpint(grown(&m, "unsent-pages"), ==, 8 * 256);
        g_assert_cmpint(grown(&m, "requests"), ==, 2);
    }
    end_source(&m);
}

static void check_not_asked(QTestState *qts, const char *reason)
{
    QDict *info = query_migrate(qts);

    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(info, "unused-pages"),
                                  "not-asked"), ==, reason);
    qobject_unref(info);
}

/* Who is not to be asked */
static void test_migrate_not_asked(void *obj, void *data,
                                   QGuestAllocator *alloc)
{
    Misc m;
    int i;

    /* A driver that offers no buffer, or declined a queue: no waiting */
    misc_init(&m, obj, alloc, 3, FEATURES);
    for (i = 0; i < 2; i++) {
        set_bandwidth(m.qts, 64 * KiB, 1);
        migrate_unasked(m.qts);
        wait_counter(&m, i ? "not-asked-no-driver" : "not-asked-no-buffer", 1);
        cancel(m.qts);
        misc_restart(&m, FEATURES & ~STATS);
        offer(&m);
    }

    /* A destination that has not agreed */
    misc_restart(&m, FEATURES);
    offer(&m);
    g_assert_true(set_capability(m.qts, "sparse-ram", false));
    migrate_unasked(m.qts);
    wait_counter(&m, "not-asked-no-capability", 1);
    check_not_asked(m.qts, "no-capability");
    cancel(m.qts);
    g_assert_true(set_capability(m.qts, "sparse-ram", true));

    /* One that does not know the feature */
    misc_restart(&m, F(VIRTIO_F_VERSION_1));
    offer(&m);
    set_bandwidth(m.qts, 1 * GiB, 300);
    migrate(m.qts, NOWHERE);
    wait_status(m.qts, "completed");
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    g_assert_cmpint(grown(&m, "timeouts"), ==, 0);
    g_assert_cmpint(grown(&m, "not-asked-no-buffer"), ==, 1);
    g_assert_cmpint(grown(&m, "not-asked-no-driver"), ==, 2);
    end_source(&m);
}

/* With COLO the secondary runs on what it has. */
static void test_migrate_colo(void *obj, void *data, QGuestAllocator *alloc)
{
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    if (set_capability(m.qts, "x-colo", true)) {
        offer(&m);
        set_bandwidth(m.qts, 64 * KiB, 1);
        migrate_unasked(m.qts);
        wait_counter(&m, "not-asked-colo", 1);
        check_not_asked(m.qts, "colo");
        g_assert_cmpint(grown(&m, "requests"), ==, 0);
        cancel(m.qts);
    } else {
        g_test_skip("this QEMU has no COLO");
    }
    end_source(&m);
}

/* A round that is over at once does not end migration. */
static void test_migrate_all(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    migrate(m.qts, NOWHERE);
    wait_request(&m);
    add_mibs(&m, msg, CONT, 0, UINT64_MAX);
    add_mibs(&m, msg, CONT, 64 * MiB, UINT64_MAX);
    add_mibs(&m, msg, CONT, 128 * MiB, UINT64_MAX);
    add_mibs(&m, msg, DONE, 192 * MiB, UINT64_MAX);
    transmit(&m, msg);
    wait_status(m.qts, "completed");
    g_assert_cmpint(grown(&m, "answers"), ==, 1);
    g_assert_cmpint(grown(&m, "unsent-pages"), >, RAM_PAGES - 200);
    /* At the start, behind the first round, and when the VM is stopped */
    g_assert_cmpint(ram_info(m.qts, "dirty-sync-count"), >=, 3);
    end_source(&m);
}

static void set_postcopy_bandwidth(QTestState *qts, int64_t bytes)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'max-postcopy-bandwidth': %"
                             PRId64 "}}", bytes);
}

static void recover(Misc *m, Destination *d)
{
    g_autofree char *path = g_strdup_printf("%s/recover", d->dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);

    qtest_qmp_assert_success(m->qts, "{'execute': 'migrate-pause'}");
    wait_status(m->qts, "postcopy-paused");
    wait_status(d->qts, "postcopy-paused");
    qtest_qmp_assert_success(d->qts, "{'execute': 'migrate-recover',"
                             " 'arguments': {'uri': %s}}", uri);
    qtest_qmp_assert_success(m->qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s, 'resume': true}}",
                             uri);
    wait_status(m->qts, "postcopy-active");
    unlink(path);
}

/*
 * With postcopy, the destination may ask for any page: once it runs the guest
 * gets zeros for what was left out, and for what was written since what it is.
 * As long as it does not, all is as without postcopy.
 */
static void test_migrate_postcopy(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    const char *how = data;
    int64_t sent;
    Destination d;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    launch_destination(&d, qos_get_current_command_line());
    if (!set_capability(d.qts, "postcopy-ram", true)) {
        g_test_skip("no userfaultfd");
        end_destination(&d);
        end_source(&m);
        return;
    }
    g_assert_true(set_capability(m.qts, "postcopy-ram", true));
    listen_at_destination(&d, true);
    qtest_memset(m.qts, AREA, 0xa5, 64 * MiB);
    set_bandwidth(m.qts, 4 * MiB, 1);
    set_postcopy_bandwidth(m.qts, 64 * KiB);
    offer(&m);
    migrate(m.qts, d.uri);
    wait_request(&m);
    qtest_memset(m.qts, AREA + 1 * MiB, 0x11, 4096);
    add_mibs(&m, msg, CONT, AREA, 0xffff);
    add_answer(&m, msg, DONE, AREA_PFN + 0x2000, 0x2, 8);
    transmit(&m, msg);
    qtest_memset(m.qts, AREA + 2 * MiB, 0x22, 4096);
    wait_counter(&m, "unsent-pages", 16 * 256 + 1);
    if (how) {
        wait_status(m.qts, "active");
        qtest_qmp_assert_success(m.qts,
                                 "{'execute': 'migrate-start-postcopy'}");
        wait_status(m.qts, "postcopy-active");
        /* Not sent yet, but for who asks for it */
        check_pages(d.qts, AREA + 1 * MiB, 4096, 0x11);
        check_pages(d.qts, AREA + 1 * MiB + 4096, 256 * KiB, 0);
        check_pages(d.qts, AREA + 32 * MiB, 4096, 0xa5);
        check_pages(d.qts, AREA + 32 * MiB + 4096, 4096, 0);
        if (g_str_equal(how, "recover")) {
            recover(&m, &d);
            check_pages(d.qts, AREA + 2 * MiB, 4096, 0x22);
            check_pages(d.qts, AREA + 2 * MiB + 4096, 256 * KiB, 0);
        }
        set_postcopy_bandwidth(m.qts, 0);
    } else {
        set_bandwidth(m.qts, 1 * GiB, 300);
    }
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    sent = ram_info(m.qts, "normal");
    g_assert_cmpint(sent, >=, 48 * 256);
    g_assert_cmpint(sent, <=, 48 * 256 + 2000);
    if (!how) {
        sent += ram_info(m.qts, "duplicate");
        g_assert_cmpint(sent, <=, RAM_PAGES - 16 * 256 + 2000);
    }
    check_pages(d.qts, AREA, 1 * MiB, 0);
    check_pages(d.qts, AREA + 1 * MiB, 4096, 0x11);
    check_pages(d.qts, AREA + 1 * MiB + 4096, 1 * MiB - 4096, 0);
    check_pages(d.qts, AREA + 2 * MiB, 4096, 0x22);
    check_pages(d.qts, AREA + 2 * MiB + 4096, 14 * MiB - 4096, 0);
    check_pages(d.qts, AREA + 16 * MiB, 16 * MiB + 4096, 0xa5);
    check_pages(d.qts, AREA + 32 * MiB + 4096, 4096, 0);
    check_pages(d.qts, AREA + 32 * MiB + 8192, 32 * MiB - 8192, 0xa5);
    end_destination(&d);
    end_source(&m);
}

/*
 * A late buffer that is no memory but the device's own registers: the request
 * goes into the status, which would reset the device.
 */
static void test_request_to_registers(void *obj, void *data,
                                      QGuestAllocator *alloc)
{
    uint64_t registers;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    registers = m.pci->bar.addr + m.pci->common_cfg_offset;
    offer(&m);
    ask(&m);
    finish(&m, DONE);

    /* Asked without a buffer */
    set_bandwidth(m.qts, 64 * KiB, 1);
    migrate(m.qts, NOWHERE);
    wait_counter(&m, "timeouts", 1);
    add(&m, registers, VIRTIO_BALLOON_REQ_LEN, true);
    wait_counter(&m, "requests", 2);
    qtest_qmp_assert_success(m.qts, "{'execute': 'query-status'}");
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    g_assert_cmpint(grown(&m, "requests"), ==, 2);
    end_source(&m);
}

/* Blocks that do not migrate have no bitmap. */
static void test_migrate_ignore_shared(void *obj, void *data,
                                       QGuestAllocator *alloc)
{
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    g_assert_true(set_capability(m.qts, "x-ignore-shared", true));
    migrate(m.qts, NOWHERE);
    wait_status(m.qts, "completed");
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    g_assert_cmpint(grown(&m, "not-asked-no-ram"), ==, 1);
    end_source(&m);
}

/* 3 GiB of 40 are below the hole that ends at 4 GiB. */
#define MUCH_RAM_END    (41 * GiB)

/* The next window, behind the last one, which ended at @end */
static void wait_window(Misc *m, uint64_t end)
{
    wait_request(m);
    g_test_message("window: %" PRIu64 " MiB on from %" PRIu64,
                   (m->end - m->start) >> 20, m->start >> 20);
    g_assert_cmphex(m->start, ==, end == 3 * GiB ? 4 * GiB : end);
    g_assert_cmphex(m->end - m->start, >=, 1 * GiB);
    g_assert_cmphex(m->end - m->start, <=, 34 * GiB);
}

/* All of the GiB whose bits are set in @word, and be they not asked for */
static void answer_gibs(Misc *m, GByteArray *msg, uint64_t word)
{
    struct virtio_balloon_bmap_hdr hdr = answer_hdr(m, CONT, 0, 8);

    hdr.page_shift = cpu_to_le16(30);
    add_raw(msg, hdr, word, 8);
    transmit(m, msg);
    finish(m, DONE);
    offer(m);
}

/*
 * Windows: small at first, then as large as what was unused in the last one
 * makes good for the bandwidth.
 */
static void test_migrate_windows(void *obj, void *data, QGuestAllocator *alloc)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t end;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    /* Slowly: 57 MiB of zero pages in a second */
    set_bandwidth(m.qts, 128 * KiB, 1);
    migrate(m.qts, NOWHERE);
    wait_window(&m, 0);
    g_assert_cmphex(m.end, ==, 1 * GiB);

    /* All but 300 MiB of it, and what it did not ask for */
    add_answer(&m, msg, CONT, 300 * MiB / 4096, UINT64_MAX,
               724 * MiB / 4096 / 8);
    answer_gibs(&m, msg, 1ull << 1 | 1ull << 40);
    g_assert_cmpint(grown(&m, "reported-pages"), ==, 724 * MiB / 4096);

    /* When less is left than it takes to ask again, not while 200 MiB are */
    while (ram_info(m.qts, "duplicate") < 100 * MiB / 4096) {
        pause_until(deadline, 1000);
    }
    g_assert_cmpint(grown(&m, "requests"), ==, 1);
    wait_window(&m, 1 * GiB);
    /* As much is left of it as 2 s take, and then some, or it is the least. */
    g_assert_cmphex(m.end, <=, 16 * GiB);
    /* Half of each */
    add_answer(&m, msg, CONT, m.start / 4096, 0x5555555555555555, 32768);
    answer_gibs(&m, msg, 0);
    g_usleep(50000);
    g_assert_cmpint(grown(&m, "requests"), ==, 2);
    set_bandwidth(m.qts, 1 * MiB, 1);
    end = m.end;
    wait_window(&m, end);
    answer_gibs(&m, msg, UINT64_MAX);
    /* Next to nothing is left of that, so the next one is large. */
    end = m.end;
    wait_window(&m, end);
    g_assert_cmphex(m.end - m.start, >=, 16 * GiB);
    answer_gibs(&m, msg, UINT64_MAX);
    while (m.end < MUCH_RAM_END) {
        end = m.end;
        wait_window(&m, end);
        answer_gibs(&m, msg, UINT64_MAX);
    }
    g_assert_cmphex(m.end, ==, MUCH_RAM_END);
    /* Before it goes fast, or it sends what it has not yet left out */
    wait_counter(&m, "unsent-pages", 36 * GiB / 4096 + 1);
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    g_assert_cmpint(ram_info(m.qts, "duplicate"), <, 4 * GiB / 4096);
    end_source(&m);
}

/*
 * Windows are in the order in which RAM is sent: the largest block first, be
 * it the last that the guest sees.  All of that is unused here, and nothing of
 * the other, which is sent, and nothing else.
 */
static void test_migrate_numa(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    uint64_t end = 1 * GiB;
    int64_t sent;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    set_bandwidth(m.qts, 64 * KiB, 1);
    migrate(m.qts, NOWHERE);
    do {
        wait_window(&m, end);
        end = m.end;
        answer_gibs(&m, msg, UINT64_MAX - 1);
    } while (end < MUCH_RAM_END);
    wait_window(&m, 0);
    g_assert_cmphex(m.end, ==, 1 * GiB);
    answer_gibs(&m, msg, UINT64_MAX - 1);
    /* Each twice as large as the last, unless there was something to send */
    g_assert_cmpint(grown(&m, "requests"), <=, 8);
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    sent = ram_info(m.qts, "normal") + ram_info(m.qts, "duplicate");
    g_assert_cmpint(sent, >=, 1 * GiB / 4096);
    g_assert_cmpint(sent, <=, 1 * GiB / 4096 + 2000);
    end_source(&m);
}

static int64_t get_cleared(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'qom-get', 'arguments': {"
                           "'path': '/machine/peripheral/late',"
                           "'property': 'cleared'}}");
    int64_t ret = qdict_get_int(rsp, "return");

    qobject_unref(rsp);
    return ret;
}

static void wait_cleared(QTestState *qts, int64_t size)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;

    while (get_cleared(qts) < size) {
        pause_until(deadline, 1000);
    }
}

/*
 * Where a GiB takes 0.7 s to be armed: that is not part of the wait for the
 * guest, ends when migration is cancelled, and is done while an answer is
 * awaited.
 */
static void test_migrate_arming(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    int64_t before;
    int late = 0;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    set_bandwidth(m.qts, 64 * KiB, 1);
    before = get_cleared(m.qts);
    migrate(m.qts, NOWHERE);
    wait_cleared(m.qts, before + 64 * MiB);
    cancel(m.qts);
    g_assert_cmpint(get_cleared(m.qts), <, before + 1 * GiB);
    g_assert_cmpint(grown(&m, "requests"), ==, 0);
    g_assert_cmpint(grown(&m, "not-asked-cancelled"), ==, 1);

    for (;;) {
        forget(&m);
        migrate(m.qts, NOWHERE);
        wait_window(&m, 0);
        g_assert_cmphex(m.end, ==, 1 * GiB);
        before = get_cleared(m.qts);
        answer_gibs(&m, msg, UINT64_MAX);
        wait_window(&m, 1 * GiB);
        if (!grown(&m, "timeouts")) {
            break;
        }
        /* It was this test that was late, and migration began without it. */
        g_assert_cmpint(late++, <, 10);
        cancel(m.qts);
        finish(&m, DONE);
        offer(&m);
    }
    g_assert_cmphex(m.end, ==, 3 * GiB);
    g_assert_cmpint(get_cleared(m.qts), >=, before + 2 * GiB - 1 * MiB);
    /* All of the last one, before this one is answered */
    wait_cleared(m.qts, before + 4 * GiB - 1 * MiB);
    g_assert_cmpint(grown(&m, "requests"), ==, 2);
    answer_gibs(&m, msg, UINT64_MAX);
    wait_window(&m, 4 * GiB);
    g_assert_cmphex(m.end, ==, 6 * GiB);
    answer_gibs(&m, msg, UINT64_MAX);
    wait_counter(&m, "unsent-pages", 4 * GiB / 4096);
    g_assert_cmpint(get_cleared(m.qts), <=, before + 4 * GiB + 16 * MiB);
    set_bandwidth(m.qts, 1 * GiB, 300);
    wait_status(m.qts, "completed");
    g_assert_cmpint(ram_info(m.qts, "duplicate"), <, 1 * GiB / 4096);
    end_source(&m);
}

/* Of each 2 MiB of the window 64 KiB are in use */
static void answer_most(Misc *m, GByteArray *msg)
{
    uint64_t start;

    for (start = m->start; start < m->end; start += 1 * GiB) {
        struct virtio_balloon_bmap_hdr hdr = answer_hdr(m, CONT, start >> 16,
                                                        2 * KiB);

        hdr.page_shift = cpu_to_le16(16);
        add_raw(msg, hdr, 0xfffffffefffffffe, 2 * KiB);
    }
    transmit(m, msg);
    finish(m, DONE);
    offer(m);
}

/*
 * What is written before it is sent, but after the log was cleared for it, is
 * sent twice.  So that is not done long before.
 */
static void test_migrate_twice(void *obj, void *data, QGuestAllocator *alloc)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    int64_t written = 0;
    uint64_t addr;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    set_bandwidth(m.qts, 64 * KiB, 1);
    migrate(m.qts, NOWHERE);
    wait_window(&m, 0);
    finish(&m, DONE);
    offer(&m);
    while (!ram_info(m.qts, "duplicate")) {
        pause_until(deadline, 1000);
    }
    for (addr = 5 * GiB / 4; addr < 6 * GiB; addr += 2 * MiB) {
        if (addr < 3 * GiB || addr >= 4 * GiB) {
            qtest_writeb(m.qts, addr, 1);
            written++;
        }
    }
    set_bandwidth(m.qts, 1 * GiB, 300);
    do {
        uint32_t len;

        if (used(&m, &len)) {
            read_request(&m, m.qts);
            answer_most(&m, msg);
        }
        pause_until(deadline, 100);
    } while (!has_status(m.qts, "completed"));
    g_test_message("%" PRId64 " pages written, %" PRId64 " sent", written,
                   ram_info(m.qts, "normal"));
    g_assert_cmpint(grown(&m, "answers"), >, 1);
    g_assert_cmpint(ram_info(m.qts, "normal"), >=, written);
    g_assert_cmpint(ram_info(m.qts, "normal"), <, written + written / 4);
    end_source(&m);
}

/* The id and what is outstanding go with the device. */
static void test_migrate_state(void *obj, void *data, QGuestAllocator *alloc)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    Destination d;
    uint64_t addr;
    QDict *rsp;
    Misc m;

    start_both(&m, &d, obj, alloc);
    check_works(&m);
    offer(&m);
    ask(&m);
    /* Stopped, the device takes neither the answer nor the buffer behind it. */
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    add_answer(&m, msg, CONT, AREA_PFN, 0x1, 8);
    add_answer(&m, msg, DONE, AREA_PFN, 0x2, 8);
    addr = guest_alloc(alloc, msg->len);
    qtest_bufwrite(m.qts, addr, msg->data, msg->len);
    add(&m, addr, msg->len, false);
    offer(&m);
    migrate(m.qts, d.uri);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    m.pci->pdev->bus->qts = d.qts;
    g_assert_cmpint(ended_id(&m), ==, m.id);
    /* What the source had left of it is not told here */
    config_changed(&m);
    qtest_qmp_assert_success(d.qts, "{'execute': 'cont'}");
    g_assert_true(config_changed(&m));
    m.pci->pdev->bus->qts = m.qts;

    while (get_counter(d.qts, "stale-records") < 2) {
        pause_until(deadline, 1000);
    }
    g_assert_cmpint(get_counter(d.qts, "records"), ==, 0);
    g_assert_cmpint(get_counter(d.qts, "bad-records"), ==, 0);
    g_assert_cmpint(get_counter(d.qts, "last-id"), ==, m.id);
    rsp = qtest_qmp(d.qts, "{'execute': 'balloon-request', 'arguments': {"
                    "'type': 'unused-pages'}}");
    g_assert_false(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    while (get_counter(d.qts, "requests") < 1) {
        pause_until(deadline, 1000);
    }
    read_request(&m, d.qts);
    g_assert_cmpint(m.id, ==, 3);
    guest_free(alloc, addr);
    end_destination(&d);
    end_source(&m);
}

/* What /proc/PID/smaps says of the mappings that RAM consists of, in KiB */
typedef struct Mappings {
    int nr;
    int small;                  /* kept from huge pages */
    int64_t backed, huge;
} Mappings;

static Mappings get_mappings(QTestState *qts, const char *name)
{
    g_autofree char *blocks = qtest_hmp(qts, "info ramblock");
    g_autofree char *file = g_strdup_printf("/proc/%d/smaps",
                                            (int)qtest_pid(qts));
    g_autofree char *smaps = NULL;
    g_auto(GStrv) lines = NULL;
    uint64_t host = 0, size = 0, begin, end;
    Mappings ret = { };
    bool ours = false;
    int64_t kib;
    char *block;
    int i;

    block = strstr(blocks, name);
    g_assert_nonnull(block);
    /* The size of a page is two words; offset, used, total, address. */
    g_assert_cmpint(sscanf(block, "%*s %*s %*s %*s 0x%" PRIx64 " %*s 0x%"
                           PRIx64, &size, &host), ==, 2);
    g_assert_true(g_file_get_contents(file, &smaps, NULL, NULL));
    lines = g_strsplit(smaps, "\n", -1);
    for (i = 0; lines[i]; i++) {
        if (sscanf(lines[i], "%" PRIx64 "-%" PRIx64 " ", &begin, &end) == 2) {
            ours = begin < host + size && end > host;
            ret.nr += ours;
        } else if (!ours) {
            continue;
        } else if (sscanf(lines[i], "Rss: %" PRId64, &kib) == 1) {
            ret.backed += kib;
        } else if (sscanf(lines[i], "AnonHugePages: %" PRId64, &kib) == 1) {
            ret.huge += kib;
        } else if (g_str_has_prefix(lines[i], "VmFlags:")) {
            ret.small += strstr(lines[i], " nh") != NULL;
        }
    }
    g_test_message("%d mappings, %d of them small; %" PRId64 " KiB, %" PRId64
                   " in huge pages", ret.nr, ret.small, ret.backed, ret.huge);
    return ret;
}

static bool has_huge_pages(void)
{
    g_autofree char *how = NULL;

    return g_file_get_contents("/sys/kernel/mm/transparent_hugepage/enabled",
                               &how, NULL, NULL) && !strstr(how, "[never]");
}

/* Both ends; false where no huge page could be kept away */
static bool start_sparse(Misc *m, Destination *d, void *obj,
                         QGuestAllocator *alloc, const char *args)
{
    misc_init(m, obj, alloc, 3, FEATURES);
    if (!has_huge_pages()) {
        g_test_skip("the host has no transparent huge pages");
        end_source(m);
        return false;
    }
    launch_destination(d, args);
    return true;
}

/*
 * Has a migration begin of 128 MiB that are in use, but for all pages except
 * one in 64 in four pieces of 16 MiB, and waits until the destination knows.
 */
static void begin_sparse(Misc *m, Destination *d)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    int i;

    qtest_memset(m->qts, AREA, 0xa5, 128 * MiB);
    set_bandwidth(m->qts, 4 * MiB, 1);
    offer(m);
    migrate(m->qts, d->uri);
    wait_request(m);
    for (i = 0; i < 4; i++) {
        add_answer(m, msg, i < 3 ? CONT : DONE, AREA_PFN + i * 0x2000,
                   ~1ull, 0x1000 / 8);
    }
    transmit(m, msg);
    while (get_mappings(d->qts, "pc.ram").small < 4) {
        pause_until(deadline, 1000);
    }
}

/* The destination gives no huge page for what is sent of little. */
static void test_migrate_sparse(void *obj, void *data, QGuestAllocator *alloc)
{
    bool multifd = data != NULL;
    Mappings before, during, after;
    Destination d;
    uint64_t addr;
    Misc m;
    int i;

    if (!start_sparse(&m, &d, obj, alloc, qos_get_current_command_line())) {
        return;
    }
    if (multifd) {
        g_assert_true(set_capability(m.qts, "multifd", true));
        g_assert_true(set_capability(d.qts, "multifd", true));
    }
    before = get_mappings(d.qts, "pc.ram");
    listen_at_destination(&d, true);
    begin_sparse(&m, &d);
    during = get_mappings(d.qts, "pc.ram");
    g_assert_cmpint(during.small, ==, 4);
    /* A piece has a neighbour on each side. */
    g_assert_cmpint(during.nr, <=, before.nr + 8);
    set_bandwidth(m.qts, 1 * GiB, 1000);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    after = get_mappings(d.qts, "pc.ram");

    g_assert_cmpint(after.small, ==, 0);
    g_assert_cmpint(after.nr, ==, before.nr);
    /* 64 MiB, 1 in pages, and what firmware and the allocator use */
    g_assert_cmpint(after.backed - before.backed, >=, 65 * 1024);
    g_assert_cmpint(after.backed - before.backed, <=, 80 * 1024);
    /* Dense regions have theirs. */
    g_assert_cmpint(after.huge, >=, 60 * 1024);
    for (addr = AREA; addr < AREA + 128 * MiB; addr += 32 * MiB) {
        for (i = 0; i < 4096; i += 64) {
            check_pages(d.qts, addr + i * 4096, 4096, 0xa5);
            check_pages(d.qts, addr + (i + 1) * 4096, 63 * 4096, 0);
        }
        check_pages(d.qts, addr + 16 * MiB, 16 * MiB, 0xa5);
    }
    end_destination(&d);
    end_source(&m);
}

/* Reports all of @gib but for a page in the first of every @each regions */
static void add_regions(Misc *m, GByteArray *msg, uint16_t flag, uint64_t gib,
                        int each)
{
    const int region = 2 * MiB / 4096 / 8;
    int i;

    add_answer(m, msg, flag, gib << 18, UINT64_MAX, 32768);
    for (i = 0; i < 32768; i += each * region) {
        msg->data[sizeof(struct virtio_balloon_bmap_hdr) + i] = 0xfe;
    }
}

#define MUCH_RAM    " -m 40G -machine memory-backend=m0" \
                    " -object memory-backend-ram,id=m0,size=40G,reserve=off"

/* RAM is not split into more ranges than a process may have mappings. */
static void test_migrate_sparse_much(void *obj, void *data,
                                     QGuestAllocator *alloc)
{
    g_autoptr(GByteArray) msg = g_byte_array_new();
    g_autofree char *args = g_strdup_printf("%s" MUCH_RAM,
                                            qos_get_current_command_line());
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    Mappings before, after;
    uint64_t gib, end = 0;
    Destination d;
    Misc m;

    if (!start_sparse(&m, &d, obj, alloc, args)) {
        return;
    }
    before = get_mappings(d.qts, "m0");
    listen_at_destination(&d, true);
    /* Of 32 GiB every second region is sparse, of 8 every fourth. */
    set_bandwidth(m.qts, 4 * KiB, 1);
    offer(&m);
    migrate(m.qts, d.uri);
    do {
        wait_window(&m, end);
        end = m.end;
        for (gib = m.start / GiB; gib < m.end / GiB; gib++) {
            add_regions(&m, msg, CONT, gib, gib < 33 ? 2 : 4);
            transmit(&m, msg);
        }
        finish(&m, DONE);
        offer(&m);
    } while (end < MUCH_RAM_END);
    do {
        pause_until(deadline, 1000);
        after = get_mappings(d.qts, "m0");
    } while (after.small < 1000);
    /* Windows of every second one are joined, others need not be. */
    g_assert_cmpint(after.small, <=, 4096);
    set_bandwidth(m.qts, 1 * GiB, 1000);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    after = get_mappings(d.qts, "m0");
    g_assert_cmpint(after.small, ==, 0);
    g_assert_cmpint(after.nr, ==, before.nr);
    end_destination(&d);
    end_source(&m);
}

/* A destination whose migration fails has its memory as it was. */
static void test_migrate_sparse_fails(void *obj, void *data,
                                      QGuestAllocator *alloc)
{
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    Mappings before, after;
    Destination d;
    Misc m;

    if (!start_sparse(&m, &d, obj, alloc, qos_get_current_command_line())) {
        return;
    }
    before = get_mappings(d.qts, "pc.ram");
    listen_at_destination(&d, false);
    begin_sparse(&m, &d);
    cancel(m.qts);
    while (!has_status(d.qts, "failed")) {
        pause_until(deadline, 1000);
    }
    do {
        pause_until(deadline, 1000);
        after = get_mappings(d.qts, "pc.ram");
    } while (after.small);
    g_assert_cmpint(after.nr, ==, before.nr);
    end_destination(&d);
    end_source(&m);
}

/* Both ends must have the capability, or neither. */
static void test_migrate_sparse_one(void *obj, void *data,
                                    QGuestAllocator *alloc)
{
    bool source = data != NULL;
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    Destination d;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    launch_destination(&d, qos_get_current_command_line());
    g_assert_true(set_capability(source ? d.qts : m.qts, "sparse-ram",
                                 false));
    listen_at_destination(&d, true);
    qtest_set_expected_status(d.qts, EXIT_FAILURE);
    set_bandwidth(m.qts, 4 * MiB, 1);
    qtest_memset(m.qts, AREA, 0xa5, 16 * MiB);
    migrate(m.qts, d.uri);
    while (qtest_probe_child(d.qts)) {
        pause_until(deadline, 1000);
    }
    while (!has_status(m.qts, "failed")) {
        pause_until(deadline, 1000);
    }
    end_destination(&d);
    end_source(&m);
}

/* From a source without the property to a destination with it */
static void test_migrate_with(void *obj, void *data, QGuestAllocator *alloc)
{
    Destination d;
    Misc m;

    misc_init(&m, obj, alloc, 2, F(VIRTIO_F_VERSION_1));
    start_destination(&d, "-machine pc -device virtio-balloon-pci,id=balloon0,"
                      "addr=04.0,misc-vq=on");
    migrate(m.qts, d.uri);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    end_destination(&d);
    end_source(&m);
}

/* A destination that has not the property takes what has not negotiated it. */
static void test_migrate_without(void *obj, void *data, QGuestAllocator *alloc)
{
    const char *others = "-machine pc -device virtio-balloon-pci,id=balloon0,"
                         "addr=04.0";
    gint64 deadline = g_get_monotonic_time() + TIMEOUT_US;
    Destination d;
    Misc m;

    misc_init(&m, obj, alloc, 3, F(VIRTIO_F_VERSION_1));
    start_destination(&d, others);
    qtest_qmp_assert_success(m.qts, "{'execute': 'stop'}");
    migrate(m.qts, d.uri);
    wait_status(m.qts, "completed");
    wait_status(d.qts, "completed");
    qtest_qmp_assert_success(d.qts, "{'execute': 'cont'}");
    end_destination(&d);

    qtest_qmp_assert_success(m.qts, "{'execute': 'cont'}");
    misc_restart(&m, FEATURES);
    start_destination(&d, others);
    qtest_set_expected_status(d.qts, EXIT_FAILURE);
    migrate(m.qts, d.uri);
    while (qtest_probe_child(d.qts)) {
        pause_until(deadline, 1000);
    }
    end_destination(&d);
    end_source(&m);
}

/* Every run of reported pages is traced. */
static void test_trace(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *log = NULL;
    g_autoptr(GByteArray) msg = g_byte_array_new();
    const char *file = data;
    uint64_t gpa, length, total = 0;
    char *line;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    ask(&m);
    add_answer(&m, msg, CONT, AREA_PFN, 0x5, 8);
    add_answer(&m, msg, DONE, AREA_PFN + 64, 0x5555555555555555, 32768);
    transmit(&m, msg);
    g_assert_true(g_file_get_contents(file, &log, NULL, NULL));
    if (!strstr(log, "virtio_balloon_misc_run")) {
        g_test_skip("no trace backend that writes to a log");
    } else {
        for (line = log; (line = strstr(line, "gpa: ")); line++) {
            if (sscanf(line, "gpa: 0x%" PRIx64 " length: 0x%" PRIx64, &gpa,
                       &length) == 2 &&
                gpa >= AREA) {
                g_assert_cmphex(length, ==, 4096);
                g_assert_cmphex(gpa & 4096, ==, 0);
                total++;
            }
        }
        g_assert_cmpint(total, ==, grown(&m, "reported-pages"));
    }
    unlink(file);
    misc_fini(&m);
    qos_invalidate_command_line();
}

static void *add_ram(GString *cmd_line, void *arg)
{
    g_string_append_printf(cmd_line, " -nodefaults -m %dM" AGREED, RAM_MIB);
    return arg;
}

/* Parts of 32 MiB of its log are cleared at once. */
static void *add_late_log(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -device x-late-dirty-log,id=late"
                    " -global migration.x-clear-bitmap-shift=13");
    return add_ram(cmd_line, arg);
}

static void *add_slow_log(GString *cmd_line, void *arg)
{
    g_string_append_printf(cmd_line, " -nodefaults -m 5G" AGREED
                           " -machine memory-backend=m0 -object"
                           " memory-backend-ram,id=m0,size=5G,reserve=off"
                           " -device x-late-dirty-log,id=late,clear-ms=%s"
                           " -global migration.x-clear-bitmap-shift=15",
                           (char *)arg);
    return arg;
}

static void *add_iothread(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -object iothread,id=io0");
    return add_ram(cmd_line, arg);
}

static void *add_shared(GString *cmd_line, void *arg)
{
    g_string_append_printf(cmd_line, " -machine memory-backend=m0"
                           " -object memory-backend-file,mem-path=/dev/shm,"
                           "id=m0,size=%dM,share=on", RAM_MIB);
    return add_ram(cmd_line, arg);
}

static void *add_memfd(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, MEMFD);
    return add_ram(cmd_line, arg);
}

static void *add_memfd_late_log(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, MEMFD);
    return add_late_log(cmd_line, arg);
}

static void *add_much_ram(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -nodefaults" AGREED MUCH_RAM);
    return arg;
}

static void *add_numa(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -nodefaults" AGREED " -m 40G -smp 2"
                    " -object memory-backend-ram,id=m0,size=1G,reserve=off"
                    " -object memory-backend-ram,id=m1,size=39G,reserve=off"
                    " -numa node,memdev=m0,cpus=0"
                    " -numa node,memdev=m1,cpus=1");
    return arg;
}

static void *add_trace(GString *cmd_line, void *arg)
{
    g_autofree char *file = NULL;
    int fd = g_file_open_tmp("virtio-balloon-XXXXXX", &file, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    g_string_append_printf(cmd_line, " -trace virtio_balloon_misc_run -D %s",
                           file);
    add_ram(cmd_line, arg);
    return g_steal_pointer(&file);
}

/* A guest that is to reclaim, and never answers, is not waited for for ever. */
static void test_migrate_reclaim_silent(void *obj, void *data,
                                        QGuestAllocator *alloc)
{
    Request req;
    Misc m;

    misc_init(&m, obj, alloc, 3, FEATURES);
    offer(&m);
    set_bandwidth(m.qts, 1 * GiB, 300);
    migrate(m.qts, NOWHERE);
    take_request(&m, &req, VIRTIO_BALLOON_REQ_RECLAIM, sizeof(req.reclaim));
    wait_status(m.qts, "completed");
    g_assert_cmpint(grown(&m, "requests"), ==, 1);
    g_assert_cmpint(grown(&m, "ended"), ==, 1);
    g_assert_cmpint(grown(&m, "not-asked-busy"), ==, 1);
    end_source(&m);
}

static void register_virtio_balloon_misc_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc func;
        const char *opts;
        void *arg;
        QOSBeforeTest before;
    } tests[] = {
        { "ask", test_ask },
        { "trim", test_trim },
        { "numbers", test_numbers },
        { "no-request", test_no_request, "misc-vq=on,migrate-reclaim-ms=1" },
        { "late-buffer", test_late_buffer },
        { "end", test_end },
        { "declined", test_not_negotiated, NULL, (void *)"offered" },
        { "off", test_not_negotiated, "" },
        { "bad-records", test_bad_records },
        { "descriptors", test_descriptors },
        { "slices", test_slices },
        { "request-buffer", test_request_buffer },
        { "reset", test_reset },
        { "stop", test_stop },
        { "unplug", test_unplug },
        { "queues-1", test_queues, "misc-vq=on,x-queue-size=1",
          &queues_1 },
        { "queues-reporting-2", test_queues,
          "misc-vq=on,free-page-reporting=on,x-queue-size=2",
          &queues_reporting_2 },
        { "queues-hint-1024", test_queues,
          "misc-vq=on,free-page-hint=on,iothread=io0,x-queue-size=1024",
          &queues_hint_1024, add_iothread },
        { "queues-all", test_queues, "misc-vq=on,free-page-hint=on,"
          "iothread=io0,free-page-reporting=on,page-bitmap=on,x-queue-size=128",
          &queues_all, add_iothread },
        { "packed", test_packed, "misc-vq=on,packed=on" },
        { "trace", test_trace, NULL, NULL, add_trace },
        { "migrate", test_migrate, NULL, NULL, add_late_log },
        { "migrate-multifd", test_migrate, NULL, (void *)"multifd" },
        { "migrate-memfd-asked", test_migrate_shared, NULL, (void *)"asked",
          add_memfd },
        { "migrate-memfd-unasked", test_migrate_shared, NULL,
          (void *)"unasked", add_memfd_late_log },
        { "migrate-memfd-stopped", test_migrate_shared, NULL,
          (void *)"stopped", add_memfd },
        { "migrate-memfd-multifd", test_migrate_shared, NULL,
          (void *)"multifd", add_memfd_late_log },
        { "migrate-write", test_migrate_write, NULL, NULL, add_late_log },
        { "migrate-late-answer", test_migrate_late, NULL, NULL, add_late_log },
        { "migrate-rounds", test_migrate_rounds, NULL, NULL, add_late_log },
        { "migrate-last-round", test_migrate_last, NULL, NULL, add_late_log },
        { "migrate-stale-answer", test_migrate_stale },
        { "migrate-ends", test_migrate_ends },
        { "migrate-again", test_migrate_again },
        { "request-to-registers", test_request_to_registers },
        { "migrate-not-asked", test_migrate_not_asked },
        { "migrate-colo", test_migrate_colo },
        { "migrate-reclaim-silent", test_migrate_reclaim_silent,
          "misc-vq=on,migrate-reclaim=64M,migrate-reclaim-ms=200" },
        { "migrate-all", test_migrate_all },
        { "migrate-postcopy-off", test_migrate_postcopy },
        { "migrate-postcopy", test_migrate_postcopy, NULL, (void *)"switch",
          add_late_log },
        { "migrate-postcopy-recover", test_migrate_postcopy, NULL,
          (void *)"recover" },
        { "migrate-ignore-shared", test_migrate_ignore_shared, NULL, NULL,
          add_shared },
        { "migrate-windows", test_migrate_windows, NULL, NULL, add_much_ram },
        { "migrate-arming", test_migrate_arming, NULL, (void *)"700",
          add_slow_log },
        { "migrate-twice", test_migrate_twice, NULL, (void *)"0",
          add_slow_log },
        { "migrate-numa", test_migrate_numa, NULL, NULL, add_numa },
        { "migrate-state", test_migrate_state },
        { "migrate-sparse", test_migrate_sparse },
        { "migrate-sparse-multifd", test_migrate_sparse, NULL,
          (void *)"multifd" },
        { "migrate-sparse-much", test_migrate_sparse_much, NULL, NULL,
          add_much_ram },
        { "migrate-sparse-fails", test_migrate_sparse_fails },
        { "migrate-sparse-source", test_migrate_sparse_one, NULL,
          (void *)"source" },
        { "migrate-sparse-target", test_migrate_sparse_one },
        { "migrate-without", test_migrate_without },
        { "migrate-with", test_migrate_with, "" },
    };
    QOSGraphTestOptions opts = { };
    int i;

    /* The tests know the memory map of the pc machine. */
    if (!g_str_equal(qtest_get_arch(), "i386") &&
        !g_str_equal(qtest_get_arch(), "x86_64")) {
        return;
    }
    for (i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *name = g_strdup_printf("misc-%s", tests[i].name);
        g_autofree char *device = g_strdup_printf("id=balloon0,%s",
                                                  tests[i].opts ?:
                                                  "misc-vq=on");

        opts.edge.extra_device_opts = device;
        opts.arg = tests[i].arg;
        opts.before = tests[i].before ?: add_ram;
        qos_add_test(name, "virtio-balloon-pci", tests[i].func, &opts);
    }
}

libqos_init(register_virtio_balloon_misc_test);
