/*
 * QTest testcase: TCG's dirty tracking during live migration
 *
 * A guest that does nothing but write to the same few pages finds them in its
 * TLB all the time.  Each store must reach the destination all the same.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
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
static const uint8_t reset_vector[] = {
    0xea, 0x00, 0x00, 0x00, 0xf0,   /* ljmp $0xf000,$0 */
};

static void wait_counting(QTestState *qts)
{
    uint32_t before = qtest_readl(qts, PAGE(PAGES - 1));

    while (qtest_readl(qts, PAGE(PAGES - 1)) - before < 1000) {
        g_usleep(1000);
    }
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
    g_autofree uint8_t *image = g_malloc0(ROM_SIZE);
    QTestState *src, *dst;
    int i;

    memcpy(image, code, sizeof(code));
    memcpy(image + ROM_SIZE - 16, reset_vector, sizeof(reset_vector));
    g_assert_true(g_file_set_contents(rom, (char *)image, ROM_SIZE, NULL));

    src = qtest_init(args);
    dst = qtest_initf("%s -S -incoming %s", args, uri);
    wait_counting(src);

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
    wait_counting(dst);

    qtest_quit(dst);
    qtest_quit(src);
    unlink(socket);
    unlink(rom);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (qtest_has_accel("tcg")) {
        qtest_add_func("migration-tcg/same-pages", test_same_pages);
    }
    return g_test_run();
}
