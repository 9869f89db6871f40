/*
 * QTest testcase: a buffer that virtio-net gives back to a packed ring
 *
 * A packet that does not fit the buffer is dropped, and the buffer, which the
 * device has taken already, goes back to the ring, for the next packet.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/iov.h"
#include "qemu/module.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-net.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_net.h"
#include "standard-headers/linux/virtio_ring.h"

#define HDR_LEN     sizeof(struct virtio_net_hdr_mrg_rxbuf)
#define DATA_LEN    256
#define ID          0x1234
#define TIMEOUT_US  (30 * G_USEC_PER_SEC)

static void send_packet(int socket, const void *data, uint32_t len)
{
    uint32_t says = htonl(len);
    struct iovec iov[] = {
        { .iov_base = &says, .iov_len = sizeof(says) },
        { .iov_base = (void *)data, .iov_len = len },
    };

    g_assert_cmpint(iov_send(socket, iov, 2, 0, sizeof(says) + len), ==,
                    sizeof(says) + len);
}

/* libqos knows split rings only */
static void add_desc(QTestState *qts, QVirtQueue *vq, int slot, uint64_t addr,
                     uint32_t len, uint16_t flags)
{
    uint64_t desc = vq->desc + 16 * slot;

    qtest_writeq(qts, desc, addr);
    qtest_writel(qts, desc + 8, len);
    qtest_writew(qts, desc + 12, ID);
    qtest_writew(qts, desc + 14, flags | VRING_DESC_F_WRITE |
                                 1 << VRING_PACKED_DESC_F_AVAIL);
}

static void wait_used(QTestState *qts, QVirtQueue *vq, int slot)
{
    gint64 start = g_get_monotonic_time();

    while (!(qtest_readw(qts, vq->desc + 16 * slot + 14) &
             1 << VRING_PACKED_DESC_F_USED)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

static void test_give_back(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioNetPCI *net = obj;
    QVirtioDevice *dev = &net->pci_vdev.vdev;
    QTestState *qts = net->pci_vdev.pdev->bus->qts;
    static const char small[] = "a packet that fits";
    char large[2 * DATA_LEN] = "";
    int socket = *(int *)data, i;
    QVirtQueue *vq[2];
    uint64_t buf;
    char got[sizeof(small)];

    qvirtio_start_device(dev);
    qvirtio_set_features(dev, 1ull << VIRTIO_F_VERSION_1 |
                              1ull << VIRTIO_F_RING_PACKED);
    for (i = 0; i < 2; i++) {
        vq[i] = qvirtqueue_setup(dev, alloc, i);
        qtest_memset(qts, vq[i]->desc, 0, 16 * vq[i]->size);
    }
    qvirtio_set_driver_ok(dev);

    /* Header and data in two descriptors; the first makes both available */
    buf = guest_alloc(alloc, HDR_LEN + DATA_LEN);
    qtest_memset(qts, buf, 0x5a, HDR_LEN + DATA_LEN);
    add_desc(qts, vq[0], 1, buf + HDR_LEN, DATA_LEN, 0);
    add_desc(qts, vq[0], 0, buf, HDR_LEN, VRING_DESC_F_NEXT);
    dev->bus->virtqueue_kick(dev, vq[0]);

    send_packet(socket, large, sizeof(large));
    send_packet(socket, small, sizeof(small));
    wait_used(qts, vq[0], 0);
    g_assert_cmpint(qtest_readw(qts, vq[0]->desc + 12), ==, ID);
    g_assert_cmpint(qtest_readl(qts, vq[0]->desc + 8), ==,
                    HDR_LEN + sizeof(small));
    qtest_memread(qts, buf + HDR_LEN, got, sizeof(got));
    g_assert_cmpmem(got, sizeof(got), small, sizeof(small));

    guest_free(alloc, buf);
    for (i = 0; i < 2; i++) {
        qvirtqueue_cleanup(dev->bus, vq[i], alloc);
    }
}

static void clean_up(void *sv)
{
    close(((int *)sv)[0]);
    g_free(sv);
}

static void *set_up(GString *cmd_line, void *arg)
{
    int *sv = g_new(int, 2);

    g_assert_cmpint(socketpair(PF_UNIX, SOCK_STREAM, 0, sv), ==, 0);
    g_string_append_printf(cmd_line, " -netdev socket,fd=%d,id=hs0 ", sv[1]);
    g_test_queue_destroy(clean_up, sv);
    return sv;
}

static void register_virtio_net_packed_test(void)
{
    QOSGraphTestOptions opts = {
        .before = set_up,
        .edge.extra_device_opts = "packed=on,romfile=",
    };

    qos_add_test("packed-give-back", "virtio-net-pci", test_give_back, &opts);
}

libqos_init(register_virtio_net_packed_test);
