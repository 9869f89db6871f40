/*
 * QTest testcase for virtio-balloon: a vCPU while a balloon inflates
 *
 * The guest is some code in a ROM.  The device is driven from here in one test,
 * and by the guest in the other, as a driver of before virtio 1.0 does it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "tcg-guest.h"

#define PORT        0xc000
#define RING        (16 * MiB)
#define RING_SIZE   128
#define AVAIL       (RING + 16 * RING_SIZE)
#define USED        (RING + 4 * KiB)
#define USED_INDEX  (USED + 2)
#define MESSAGE     (32 * MiB)
/* Inflated, every other page of it */
#define AREA        (128 * MiB)
#define AREA_PAGES  (16 * KiB)

/* What the guest has to say */
#define GO          0x1000
#define COUNT       0x1004
#define TIMES       (2 * MiB)
#define MAX_TIMES   (512 * KiB)

/*
 * How long accesses to a register take, one each fraction of a ms, from GO
 * until the message is used
 */
static const uint8_t access_code[] = {
    0xbe, 0x00, 0x00, 0xc0, 0xfe,               /* 0:  mov  $0xfec00000,%esi */
    0xbf, 0x00, 0x00, 0x20, 0x00,               /* 5:  mov  $TIMES,%edi */
    0x83, 0x3d, 0x00, 0x10, 0x00, 0x00, 0x00,   /* a:  cmpl $0,GO */
    0x74, 0xf7,                                 /* 11: je   a */
    0x66, 0x83, 0x3d, 0x02, 0x10, 0x00, 0x01, 0x00, /* 13: cmpw $0,USED_INDEX */
    0x75, 0xed,                                 /* 1b: jne  a */
    0xb9, 0xa0, 0x86, 0x01, 0x00,               /* 1d: mov  $100000,%ecx */
    0x49,                                       /* 22: dec  %ecx */
    0x75, 0xfd,                                 /* 23: jne  22 */
    0x0f, 0x31,                                 /* 25: rdtsc */
    0x89, 0xc3,                                 /* 27: mov  %eax,%ebx */
    0x89, 0xd1,                                 /* 29: mov  %edx,%ecx */
    0x8b, 0x06,                                 /* 2b: mov  (%esi),%eax */
    0x0f, 0x31,                                 /* 2d: rdtsc */
    0x29, 0xd8,                                 /* 2f: sub  %ebx,%eax */
    0x19, 0xca,                                 /* 31: sbb  %ecx,%edx */
    0x0f, 0xac, 0xd0, 0x08,                     /* 33: shrd $8,%edx,%eax */
    0x89, 0x07,                                 /* 37: mov  %eax,(%edi) */
    0x83, 0xc7, 0x04,                           /* 39: add  $4,%edi */
    0xff, 0x05, 0x04, 0x10, 0x00, 0x00,         /* 3c: incl COUNT */
    0x81, 0xff, 0x00, 0x00, 0x40, 0x00,         /* 42: cmp  $end,%edi */
    0x72, 0xc0,                                 /* 48: jb   a */
    0xeb, 0xb9,                                 /* 4a: jmp  5 */
};

/* The same by the guest: it notifies, and counts until the message is used */
#define NUMBERS     (16 * KiB)
#define WIDTH_2     (1 << 16)
#define WIDTH_1     (1 << 17)
#define DEVICE_4    (0x80000000u | 4 << 11)

static const uint8_t replay_code[] = {
    0xbe, 0xde, 0x00, 0x0f, 0x00,               /* 0:  mov  $table,%esi */
    0x8b, 0x16,                                 /* 5:  mov  (%esi),%edx */
    0x8b, 0x46, 0x04,                           /* 7:  mov  4(%esi),%eax */
    0x83, 0xc6, 0x08,                           /* a:  add  $8,%esi */
    0x85, 0xd2,                                 /* d:  test %edx,%edx */
    0x74, 0x16,                                 /* f:  je   27 */
    0x0f, 0xba, 0xe2, 0x10,                     /* 11: bt   $16,%edx */
    0x72, 0x09,                                 /* 15: jc   20 */
    0x0f, 0xba, 0xe2, 0x11,                     /* 17: bt   $17,%edx */
    0x72, 0x07,                                 /* 1b: jc   24 */
    0xef,                                       /* 1d: out  %eax,(%dx) */
    0xeb, 0xe5,                                 /* 1e: jmp  5 */
    0x66, 0xef,                                 /* 20: out  %ax,(%dx) */
    0xeb, 0xe1,                                 /* 22: jmp  5 */
    0xee,                                       /* 24: out  %al,(%dx) */
    0xeb, 0xde,                                 /* 25: jmp  5 */
    0xbe, 0x1e, 0x01, 0x0f, 0x00,               /* 27: mov  $table,%esi */
    0x8b, 0x16,                                 /* 2c: mov  (%esi),%edx */
    0x8b, 0x46, 0x04,                           /* 2e: mov  4(%esi),%eax */
    0x83, 0xc6, 0x08,                           /* 31: add  $8,%esi */
    0x85, 0xd2,                                 /* 34: test %edx,%edx */
    0x74, 0x04,                                 /* 36: je   3c */
    0x89, 0x02,                                 /* 38: mov  %eax,(%edx) */
    0xeb, 0xf0,                                 /* 3a: jmp  2c */
    0xbf, 0x00, 0x00, 0x00, 0x02,               /* 3c: mov  $MESSAGE,%edi */
    0xb8, 0x00, 0x80, 0x00, 0x00,               /* 41: mov  $first,%eax */
    0xb9, 0x00, 0x40, 0x00, 0x00,               /* 46: mov  $NUMBERS,%ecx */
    0x89, 0x07,                                 /* 4b: mov  %eax,(%edi) */
    0x83, 0xc7, 0x04,                           /* 4d: add  $4,%edi */
    0x83, 0xc0, 0x02,                           /* 50: add  $2,%eax */
    0x49,                                       /* 53: dec  %ecx */
    0x75, 0xf5,                                 /* 54: jne  4b */
    0xba, 0x10, 0xc0, 0x00, 0x00,               /* 56: mov  $port,%edx */
    0x31, 0xc0,                                 /* 5b: xor  %eax,%eax */
    0x66, 0xef,                                 /* 5d: out  %ax,(%dx) */
    0xff, 0x05, 0x04, 0x10, 0x00, 0x00,         /* 5f: incl COUNT */
    0x66, 0x83, 0x3d, 0x02, 0x10, 0x00, 0x01, 0x00, /* 65: cmpw $0,USED_INDEX */
    0x74, 0xf0,                                 /* 6d: je   5f */
    0xff, 0x05, 0x00, 0x10, 0x00, 0x00,         /* 6f: incl GO */
    0xeb, 0xf8,                                 /* 75: jmp  6f */
};

/* What it writes before, right behind the code: to ports, and to memory */
static const uint32_t replay_tables[] = {
    0xcf8, DEVICE_4 | PCI_BASE_ADDRESS_0,
    0xcfc, PORT,
    0xcf8, DEVICE_4 | PCI_COMMAND,
    0xcfc, PCI_COMMAND_IO | PCI_COMMAND_MASTER,
    WIDTH_2 | (PORT + VIRTIO_PCI_QUEUE_SEL), 0,
    PORT + VIRTIO_PCI_QUEUE_PFN, RING / 4096,
    WIDTH_1 | (PORT + VIRTIO_PCI_STATUS), VIRTIO_CONFIG_S_ACKNOWLEDGE |
        VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK,
    0, 0,
    /* The descriptor, and the index of what is available */
    RING, MESSAGE,
    RING + 8, 4 * NUMBERS,
    AVAIL, 1 << 16,
    0, 0,
};

/* To where the driver is about to notify */
static void set_up(QTestState *qts, unsigned int descriptors, uint32_t bytes)
{
    unsigned int i;

    for (i = 0; i < descriptors; i++) {
        bool last = i == descriptors - 1;

        /* All of them share the message */
        qtest_writeq(qts, RING + 16 * i, MESSAGE);
        qtest_writel(qts, RING + 16 * i + 8, bytes);
        qtest_writew(qts, RING + 16 * i + 12, last ? 0 : 1);
        qtest_writew(qts, RING + 16 * i + 14, i + 1);
    }
    qtest_writew(qts, AVAIL + 2, 1);

    qtest_outl(qts, 0xcf8, 0x80000000 | 4 << 11 | PCI_BASE_ADDRESS_0);
    qtest_outl(qts, 0xcfc, PORT);
    qtest_outl(qts, 0xcf8, 0x80000000 | 4 << 11 | PCI_COMMAND);
    qtest_outl(qts, 0xcfc, PCI_COMMAND_IO | PCI_COMMAND_MASTER);
    qtest_outw(qts, PORT + VIRTIO_PCI_QUEUE_SEL, 0);
    g_assert_cmpint(qtest_inw(qts, PORT + VIRTIO_PCI_QUEUE_NUM), ==, RING_SIZE);
    qtest_outl(qts, PORT + VIRTIO_PCI_QUEUE_PFN, RING / 4096);
    qtest_outb(qts, PORT + VIRTIO_PCI_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE |
               VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK);
}

static int64_t slices(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'qom-get', 'arguments': {"
                           "'path': '/machine/peripheral/balloon0',"
                           "'property': 'page-bitmap-stats'}}");
    int64_t ret = qdict_get_int(qdict_get_qdict(rsp, "return"), "bh-calls");

    qobject_unref(rsp);
    return ret;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void inflate(QTestState *qts)
{
    double per_us = -cpu_get_host_ticks();
    gint64 begin = g_get_monotonic_time();
    int64_t nr_slices = -slices(qts);
    g_autofree uint32_t *times = NULL;
    uint32_t first, nr;

    qtest_outb(qts, PORT + VIRTIO_PCI_STATUS, 0);
    qtest_memset(qts, RING, 0, 8 * KiB);
    set_up(qts, 8, MiB);
    /* The guest begins, and is not disturbed by qtest */
    first = qtest_readl(qts, COUNT);
    qtest_writel(qts, GO, 1);
    while (qtest_readl(qts, COUNT) - first < 10) {
        g_usleep(1000);
    }
    first = qtest_readl(qts, COUNT);
    qtest_outw(qts, PORT + VIRTIO_PCI_QUEUE_NOTIFY, 0);
    while (!qtest_readw(qts, USED_INDEX)) {
        g_usleep(20000);
    }
    qtest_writel(qts, GO, 0);
    nr_slices += slices(qts);
    nr = qtest_readl(qts, COUNT) - first;
    per_us = (per_us + cpu_get_host_ticks()) / (g_get_monotonic_time() - begin);

    g_test_message("%" PRId64 " slices, %u accesses", nr_slices, nr);
    /* Once in a few slices at the least, though others may want the CPU, too */
    g_assert_cmpint(nr_slices, >, 100);
    g_assert_cmpint(nr, >, nr_slices / 16);
    g_assert_cmpint(first + nr, <=, MAX_TIMES);
    times = g_new(uint32_t, nr);
    qtest_memread(qts, TIMES + 4 * first, times, 4 * nr);
    qsort(times, nr, sizeof(*times), compare);
    g_test_message("us: median %.0f, 99th percentile %.0f, longest %.0f",
                   times[nr / 2] * 256 / per_us,
                   times[nr - 1 - nr / 100] * 256 / per_us,
                   times[nr - 1] * 256 / per_us);
}

/* A vCPU that wants the BQL gets it while a fragmented guest inflates. */
static void test_access(void)
{
    g_autofree char *dir = g_dir_make_tmp("virtio-balloon-XXXXXX", NULL);
    g_autofree char *rom = g_strdup_printf("%s/rom", dir);
    g_autofree uint32_t *numbers = g_malloc(MiB);
    QTestState *qts;
    int i;

    tcg_guest_write(rom, access_code, sizeof(access_code));
    qts = qtest_initf("-accel tcg -machine pc -nodefaults -m 256M -bios %s"
                      " -device virtio-balloon-pci,id=balloon0,addr=4,"
                      "disable-modern=on,x-queue-size=%d", rom, RING_SIZE);
    for (i = 0; i < 256 * KiB; i++) {
        numbers[i] = cpu_to_le32(AREA / 4096 + 2 * (i % AREA_PAGES));
    }
    qtest_bufwrite(qts, MESSAGE, numbers, MiB);
    for (i = 0; i < 3; i++) {
        inflate(qts);
    }
    qtest_quit(qts);
    unlink(rom);
    rmdir(dir);
}

/* How far the guest counts until its message is used */
static uint32_t count(const char *rom, const char *log, const char *mode)
{
    QTestState *qts;
    uint32_t ret;

    /* The end of the record would end QEMU, before it was looked at */
    qts = qtest_initf("-accel tcg -icount shift=3,rr=%s,rrfile=%s -machine pc"
                      " -nodefaults -m 256M -bios %s -net none -no-shutdown"
                      " -device virtio-balloon-pci,id=balloon0,addr=4,"
                      "disable-modern=on,x-queue-size=%d",
                      mode, log, rom, RING_SIZE);
    while (!qtest_readl(qts, GO)) {
        g_usleep(1000);
    }
    ret = qtest_readl(qts, COUNT);
    qtest_quit(qts);
    g_test_message("%s: %u", mode, ret);
    return ret;
}

/* What is recorded can be replayed. */
static void test_replay(void)
{
    g_autofree char *dir = g_dir_make_tmp("virtio-balloon-XXXXXX", NULL);
    g_autofree char *rom = g_strdup_printf("%s/rom", dir);
    g_autofree char *log = g_strdup_printf("%s/log", dir);
    uint8_t code[sizeof(replay_code) + sizeof(replay_tables)];
    uint32_t recorded;
    int i;

    memcpy(code, replay_code, sizeof(replay_code));
    for (i = 0; i < ARRAY_SIZE(replay_tables); i++) {
        stl_le_p(code + sizeof(replay_code) + 4 * i, replay_tables[i]);
    }
    tcg_guest_write(rom, code, sizeof(code));
    for (i = 0; i < 3; i++) {
        recorded = count(rom, log, "record");
        g_assert_cmpint(count(rom, log, "replay"), ==, recorded);
    }
    unlink(rom);
    unlink(log);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (qtest_has_accel("tcg") && qtest_has_device("virtio-balloon-pci")) {
        qtest_add_func("virtio-balloon-slice/access", test_access);
        qtest_add_func("virtio-balloon-slice/replay", test_replay);
    }
    return g_test_run();
}
