/*
 * QTest testcase: TCG's TLB when other threads change what it stands for
 *
 * A guest that does nothing but write to the same few pages finds them in its
 * TLB all the time.  Each store must reach the destination of a migration all
 * the same, and each store to a device the device, whatever is mapped and
 * unmapped elsewhere.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "hw/pci/pci_regs.h"
#include "qapi/qmp/qdict.h"
#include "libqtest.h"

#define PAGES       16
#define PAGE(i)     (0x10000 + (i) * 0x1000)
#define ROM_SIZE    (64 * KiB)

/* Counts in the first dword of each page, for ever */
static const uint8_t code[] = {
    0xb8, 0x00, 0x10,               /* 0:  mov  $0x1000,%ax */
    0x8e, 0xd8,                     /* 3:  mov  %ax,%ds */
    0x31, 0xdb,                     /* 5:  xor  %bx,%bx */
    0x66, 0xff, 0x07,               /* 7:  incl (%bx) */
    0x81, 0xc3, 0x00, 0x10,         /* 10: add  $0x1000,%bx */
    0xeb, 0xf7,                     /* 14: jmp  7 */
};
/* The same with a device's register, which must hold what was written last */
static const uint8_t mmio_code[] = {
    0x66, 0x2e, 0x0f, 0x01, 0x16, 0x60, 0x00,   /* 0:  lgdtl %cs:0x60 */
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x00,         /* 7:  mov  $1,%eax */
    0x0f, 0x22, 0xc0,                           /* d:  mov  %eax,%cr0 */
    0x66, 0xea, 0x20, 0x00, 0x0f, 0x00, 0x08, 0x00, /* ljmpl $8,$0xf0020 */
    [0x20] =
    0xb8, 0x10, 0x00, 0x00, 0x00,               /* 20: mov  $16,%eax */
    0x8e, 0xd8,                                 /* 25: mov  %eax,%ds */
    0x31, 0xc9,                                 /* 27: xor  %ecx,%ecx */
    0xbe, 0x00, 0x00, 0xc0, 0xfe,               /* 29: mov  $0xfec00000,%esi */
    0xfe, 0xc1,                                 /* 2e: inc  %cl */
    0x89, 0x0e,                                 /* 30: mov  %ecx,(%esi) */
    0x8b, 0x06,                                 /* 32: mov  (%esi),%eax */
    0x39, 0xc1,                                 /* 34: cmp  %eax,%ecx */
    0x75, 0x08,                                 /* 36: jne  40 */
    0xff, 0x05, 0x00, 0x10, 0x00, 0x00,         /* 38: incl 0x1000 */
    0xeb, 0xee,                                 /* 3e: jmp  2e */
    0xff, 0x05, 0x04, 0x10, 0x00, 0x00,         /* 40: incl 0x1004 */
    0xeb, 0xe6,                                 /* 46: jmp  2e */
    [0x50] =
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00, /* 8: flat, code */
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, /* 16: flat, data */
    [0x60] =
    0x17, 0x00, 0x48, 0x00, 0x0f, 0x00,         /* the table, from 0xf0048 */
};
#define MMIO_GOOD   0x1000
#define MMIO_BAD    0x1004

static const uint8_t reset_vector[] = {
    0xea, 0x00, 0x00, 0x00, 0xf0,   /* ljmp $0xf000,$0 */
};

static void wait_counting(QTestState *qts, uint64_t addr)
{
    uint32_t before = qtest_readl(qts, addr);

    while (qtest_readl(qts, addr) - before < 1000) {
        g_usleep(1000);
    }
}

static void write_rom(const char *file, const uint8_t *program, size_t size)
{
    g_autofree uint8_t *image = g_malloc0(ROM_SIZE);

    memcpy(image, program, size);
    memcpy(image + ROM_SIZE - 16, reset_vector, sizeof(reset_vector));
    g_assert_true(g_file_set_contents(file, (char *)image, ROM_SIZE, NULL));
}

/* Whether migration is over or, with @rounds, has come that far */
static bool migrated(QTestState *qts, int rounds)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'query-migrate'}");
    QDict *info = qdict_get_qdict(rsp, "return");
    const char *status = qdict_get_try_str(info, "status");
    QDict *ram = qdict_get_qdict(info, "ram");
    bool done = !g_strcmp0(status, "completed");

    g_assert_cmpstr(status, !=, "failed");
    if (rounds && ram && qdict_get_int(ram, "dirty-sync-count") >= rounds) {
        done = true;
    }
    qobject_unref(rsp);
    return done;
}

static void test_same_pages(void)
{
    g_autofree char *dir = g_dir_make_tmp("migration-tcg-XXXXXX", NULL);
    g_autofree char *rom = g_strdup_printf("%s/rom", dir);
    g_autofree char *socket = g_strdup_printf("%s/socket", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", socket);
    g_autofree char *args = g_strdup_printf("-accel tcg -machine pc -nodefaults"
                                            " -m 16M -bios %s", rom);
    QTestState *src, *dst;
    int i;

    write_rom(rom, code, sizeof(code));
    src = qtest_init(args);
    dst = qtest_initf("%s -S -incoming %s", args, uri);
    wait_counting(src, PAGE(PAGES - 1));

    /* Something to send for longer than migration takes to learn its speed */
    qtest_memset(src, 8 * MiB, 0xa5, 128 * KiB);
    /* One round's changes take longer than this to send, and some time... */
    qtest_qmp_assert_success(src, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'max-bandwidth': %d,"
                             " 'downtime-limit': 1}}", 256 * 1024);
    qtest_qmp_assert_success(src, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", uri);
    while (!migrated(src, 5)) {
        g_usleep(10000);
    }
    /* ...but not as long as this. */
    qtest_qmp_assert_success(src, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'downtime-limit': 2000}}");
    while (!migrated(src, 0) || !migrated(dst, 0)) {
        g_usleep(10000);
    }
    for (i = 0; i < PAGES; i++) {
        g_assert_cmphex(qtest_readl(dst, PAGE(i)), ==,
                        qtest_readl(src, PAGE(i)));
    }
    qtest_qmp_assert_success(dst, "{'execute': 'cont'}");
    wait_counting(dst, PAGE(PAGES - 1));

    qtest_quit(dst);
    qtest_quit(src);
    unlink(socket);
    unlink(rom);
    rmdir(dir);
}

static void pci_config(QTestState *qts, int reg, uint32_t value)
{
    qtest_outl(qts, 0xcf8, 0x80000000 | 4 << 11 | reg);
    qtest_outl(qts, 0xcfc, value);
}

static void test_memory_map(void)
{
    g_autofree char *dir = g_dir_make_tmp("migration-tcg-XXXXXX", NULL);
    g_autofree char *rom = g_strdup_printf("%s/rom", dir);
    QTestState *qts;
    int i;

    write_rom(rom, mmio_code, sizeof(mmio_code));
    qts = qtest_initf("-accel tcg -machine pc -nodefaults -m 16M -bios %s"
                      " -device pci-testdev,addr=4", rom);
    wait_counting(qts, MMIO_GOOD);

    /* A BAR below the register: the number of the register's section changes */
    pci_config(qts, PCI_BASE_ADDRESS_0, 0xe0000000);
    for (i = 0; i < 5000; i++) {
        pci_config(qts, PCI_COMMAND, i % 2 ? 0 : PCI_COMMAND_MEMORY);
    }
    wait_counting(qts, MMIO_GOOD);
    g_assert_cmpint(qtest_readl(qts, MMIO_BAD), ==, 0);

    qtest_quit(qts);
    unlink(rom);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (qtest_has_accel("tcg")) {
        qtest_add_func("migration-tcg/same-pages", test_same_pages);
        qtest_add_func("migration-tcg/memory-map", test_memory_map);
    }
    return g_test_run();
}
