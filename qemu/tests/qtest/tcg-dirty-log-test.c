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

/* Counts in one dword, some 500 times a second */
static const uint8_t slow_code[] = {
    0xff, 0x05, 0x00, 0x00, 0x01, 0x00, /* 0:  incl 0x10000 */
    0xb9, 0x00, 0x00, 0x04, 0x00,       /* 6:  mov  $0x40000,%ecx */
    0x49,                               /* b:  dec  %ecx */
    0x75, 0xfd,                         /* c:  jne  b */
    0xeb, 0xf0,                         /* e:  jmp  0 */
};
#define COUNTER     0x10000

typedef struct Files {
    char *dir, *rom, *socket, *uri, *log;
} Files;

static void files_init(Files *f, const uint8_t *guest, size_t size)
{
    f->dir = g_dir_make_tmp("tcg-dirty-log-XXXXXX", NULL);
    f->rom = g_strdup_printf("%s/rom", f->dir);
    f->socket = g_strdup_printf("%s/socket", f->dir);
    f->uri = g_strdup_printf("unix:%s", f->socket);
    f->log = g_strdup_printf("%s/log", f->dir);
    tcg_guest_write(f->rom, guest, size);
}

static void files_remove(Files *f)
{
    unlink(f->socket);
    unlink(f->log);
    unlink(f->rom);
    rmdir(f->dir);
    g_free(f->log);
    g_free(f->uri);
    g_free(f->socket);
    g_free(f->rom);
    g_free(f->dir);
}

static char *machine(Files *f, const char *memory)
{
    return g_strdup_printf("-accel tcg -machine pc -nodefaults %s -bios %s",
                           memory, f->rom);
}

static void test_dirty_log(const char *memory, uint32_t first)
{
    uint32_t last = first + (PAGES - 1) * PAGE_SIZE;
    g_autofree char *args = NULL;
    uint8_t patched[sizeof(code)];
    QTestState *src, *dst;
    uint32_t page;
    Files f;

    memcpy(patched, code, sizeof(code));
    stl_le_p(patched + FIRST_AT, first);
    stl_le_p(patched + END_AT, last + PAGE_SIZE);
    files_init(&f, patched, sizeof(patched));
    args = machine(&f, memory);

    src = qtest_init(args);
    dst = qtest_initf("%s -S -incoming %s", args, f.uri);
    tcg_guest_counts(src, last);

    /* Something to send for longer than migration takes to learn its speed */
    qtest_memset(src, 8 * MiB, 0xa5, 128 * KiB);
    /* One round's changes take longer than this to send */
    migrate_set_parameter_int(src, "max-bandwidth", 256 * KiB);
    migrate_set_parameter_int(src, "downtime-limit", 1);
    migrate_qmp(src, dst, f.uri, NULL, "{}");
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
    files_remove(&f);
}

/* Whoever writes to the pipe waits from here on... */
static void pipe_fill(int fd)
{
    static const char zeros[4096];
    size_t n;

    for (n = sizeof(zeros); n;) {
        if (write(fd, zeros, n) != n) {
            g_assert_cmpint(errno, ==, EAGAIN);
            n /= 2;
        }
    }
}

/* ...until here; whether there was something in it */
static bool pipe_drain(int fd)
{
    bool ret = false;
    char buf[4096];

    while (read(fd, buf, sizeof(buf)) > 0) {
        ret = true;
    }
    return ret;
}

/* Returns where it is */
static uint32_t wait_stuck(QTestState *qts)
{
    uint32_t before;

    do {
        before = qtest_readl(qts, COUNTER);
        g_usleep(60000);
    } while (qtest_readl(qts, COUNTER) != before);
    return before;
}

/* Whether it comes so far, or to its end, within @seconds */
static bool wait_pass(QTestState *qts, int64_t pass, int seconds)
{
    int i;

    for (i = 0; i < seconds * 100; i++) {
        QDict *rsp = migrate_query(qts);
        bool ended = !strcmp(qdict_get_str(rsp, "status"), "completed");

        qobject_unref(rsp);
        if (ended || get_migration_pass(qts) >= pass) {
            return true;
        }
        g_usleep(10000);
    }
    return false;
}

/*
 * Migration takes a page's dirty bit after the CPU has set it, and before the
 * CPU opens its TLB entry for direct stores.  In between is a trace event, and
 * who reads the log can hold the CPU there.  No other page is written to, for
 * which all entries would be closed again.
 */
static void test_open_entry(void)
{
    g_autofree char *args = NULL;
    QTestState *src, *dst;
    int64_t pass;
    int fd, i, j;
    Files f;

    files_init(&f, slow_code, sizeof(slow_code));
    args = machine(&f, "-m 16M");
    g_assert_cmpint(mkfifo(f.log, 0600), ==, 0);
    fd = open(f.log, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    src = qtest_initf("%s -trace memory_notdirty_set_dirty -D %s", args, f.log);
    dst = qtest_initf("%s -S -incoming %s", args, f.uri);
    while (!qtest_readl(src, COUNTER)) {
        g_usleep(1000);
    }

    /* A page at a time, one each 100 ms, and no end while there is one */
    migrate_set_parameter_int(src, "max-bandwidth", 16 * KiB);
    migrate_set_parameter_int(src, "avail-switchover-bandwidth", 1000);
    migrate_set_parameter_int(src, "downtime-limit", 1);
    pipe_drain(fd);
    migrate_qmp(src, dst, f.uri, NULL, "{}");
    g_assert_true(wait_pass(src, 1, 60));
    g_usleep(200000);
    if (!pipe_drain(fd)) {
        g_test_skip("this QEMU writes no trace events to its log");
        goto out;
    }
    for (i = 0; i < 10; i++) {
        uint32_t count;
        bool taken;

        pipe_fill(fd);
        /* The round behind the next synchronisation is to last. */
        qtest_memset(src, 2 * MiB, i + 1, 10 * PAGE_SIZE);
        count = wait_stuck(src);
        pass = get_migration_pass(src);
        taken = wait_pass(src, pass + 1, 2);
        g_usleep(50000);
        if (qtest_readl(src, COUNTER) != count) {
            /* It was only slow. */
            continue;
        }
        pipe_drain(fd);
        if (taken) {
            break;
        }
        /* It was the end of a synchronisation that waits for the CPU. */
        for (j = 0; j < 10000 && !pipe_drain(fd); j++) {
            g_usleep(100);
        }
    }
    if (i == 10) {
        g_test_skip("the CPU was never held where it was to be");
    }

    /* The page was sent in between, and written to since */
    g_assert_true(wait_pass(src, pass + 2, 60));
    migrate_ensure_converge(src);
    wait_for_migration_complete(src);
    wait_for_migration_complete(dst);
    g_assert_cmphex(qtest_readl(dst, COUNTER), ==, qtest_readl(src, COUNTER));
out:
    qtest_quit(dst);
    qtest_quit(src);
    close(fd);
    files_remove(&f);
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
        qtest_add_func("tcg-dirty-log/open-entry", test_open_entry);
    }
    return g_test_run();
}
