/*
 * QTest testcase: TCG's TLB while migration takes dirty bits
 *
 * A guest that does nothing but write to the same few pages finds them in its
 * TLB all the time.  Each store must reach the destination of a migration all
 * the same, in whatever RAM block the pages are.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "migration/migration-qmp.h"
#include "tcg-guest.h"

#define PAGES       16
#define PAGE_SIZE   0x1000

/* Counts in the first dword of each page, for ever */
static const uint8_t code[] = {
    0xbb, 0x00, 0x00, 0x00, 0x00,       /* 0:  mov  $FIRST,%ebx */
    0xff, 0x03,                         /* 5:  incl (%ebx) */
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, /* 7:  add  $PAGE_SIZE,%ebx */
    0x81, 0xfb, 0x00, 0x00, 0x00, 0x00, /* d:  cmp  $END,%ebx */
    0x72, 0xf0,                         /* 13: jb   5 */
    0xeb, 0xe9,                         /* 15: jmp  0 */
};
#define FIRST_AT    0x1
#define END_AT      0xf

static void test_dirty_log(const char *memory, uint32_t first)
{
    g_autofree char *dir = g_dir_make_tmp("tcg-dirty-log-XXXXXX", NULL);
    g_autofree char *rom = g_strdup_printf("%s/rom", dir);
    g_autofree char *socket = g_strdup_printf("%s/socket", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", socket);
    g_autofree char *args = g_strdup_printf("-accel tcg -machine pc -nodefaults"
                                            " %s -bios %s", memory, rom);
    uint32_t last = first + (PAGES - 1) * PAGE_SIZE;
    uint8_t patched[sizeof(code)];
    QTestState *src, *dst;
    uint32_t page;

    memcpy(patched, code, sizeof(code));
    stl_le_p(patched + FIRST_AT, first);
    stl_le_p(patched + END_AT, last + PAGE_SIZE);
    tcg_guest_write(rom, patched, sizeof(patched));

    src = qtest_init(args);
    dst = qtest_initf("%s -S -incoming %s", args, uri);
    tcg_guest_counts(src, last);

    /* Something to send for longer than migration takes to learn its speed */
    qtest_memset(src, 8 * MiB, 0xa5, 128 * KiB);
    /* One round's changes take longer than this to send */
    migrate_set_parameter_int(src, "max-bandwidth", 256 * KiB);
    migrate_set_parameter_int(src, "downtime-limit", 1);
    migrate_qmp(src, dst, uri, NULL, "{}");
    while (get_migration_pass(src) < 5) {
        g_usleep(10000);
    }
    migrate_ensure_converge(src);
    wait_for_migration_complete(src);
    wait_for_migration_complete(dst);

    for (page = first; page <= last; page += PAGE_SIZE) {
        g_assert_cmphex(qtest_readl(dst, page), ==, qtest_readl(src, page));
    }
    qtest_qmp_assert_success(dst, "{'execute': 'cont'}");
    tcg_guest_counts(dst, last);

    qtest_quit(dst);
    qtest_quit(src);
    unlink(socket);
    unlink(rom);
    rmdir(dir);
}

#define TWO_BLOCKS(first, second) \
    "-m 80M -object memory-backend-ram,id=m0,size=" first \
    " -object memory-backend-ram,id=m1,size=" second \
    " -numa node,memdev=m0 -numa node,memdev=m1"

static void test_one_block(void)
{
    test_dirty_log("-m 16M", 0x10000);
}

/* The block that the guest writes to is larger than the one before it */
static void test_second_larger(void)
{
    test_dirty_log(TWO_BLOCKS("16M", "64M"), 16 * MiB);
}

static void test_second_smaller(void)
{
    test_dirty_log(TWO_BLOCKS("64M", "16M"), 64 * MiB);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (qtest_has_accel("tcg")) {
        qtest_add_func("tcg-dirty-log/one-block", test_one_block);
        qtest_add_func("tcg-dirty-log/second-larger", test_second_larger);
        qtest_add_func("tcg-dirty-log/second-smaller", test_second_smaller);
    }
    return g_test_run();
}
