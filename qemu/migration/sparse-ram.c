/*
 * Live migration: RAM of which little is sent
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * With transparent huge pages the first byte that arrives in 2 MiB of fresh
 * memory has all of it allocated and cleared.  A guest whose unused pages lie
 * between others then costs the destination all that the guest was ever given,
 * however little is sent.
 *
 * So the source says of which regions it is going to send little, and the
 * destination keeps huge pages away from these while it loads.  Afterwards
 * they have the advice again with which all RAM begins its life.
 *
 * Where that helps is for the host's kernel to say: in anonymous memory, in
 * shared memory if its huge pages are by advice, not in hugetlbfs, which has
 * nothing smaller, nor in files, whose pages are the file system's.  Memory
 * that is there already, like preallocated one, stays as it is.
 *
 * The record, behind RAM_SAVE_FLAG_SPARSE: the length of the RAM block's name,
 * 1 byte, and the name; the first region, and how many there are, 8 bytes
 * each; one bit a region in little-endian words of 8 bytes.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "exec/ram_addr.h"
#include "exec/ramlist.h"
#include "exec/target_page.h"
#include "qapi/qapi-types-migration.h"
#include "options.h"
#include "ram.h"
#include "sparse-ram.h"
#include "trace.h"

/*
 * The size of a region, part of the format: that of a huge page on most hosts.
 * Where they are larger, each still takes advice of the parts.
 */
#define REGION_SIZE     (2 * MiB)
/*
 * A region of which no more than this is left to be sent does without a huge
 * page.  So no more than twice that is allocated, and a guest keeps the huge
 * pages of regions that it uses most of: base pages are slower to reach, and
 * each has a fault when it is first used.
 */
#define SPARSE_MAX      (REGION_SIZE / 2)
/*
 * Ranges that the destination splits RAM into.  Each takes two mappings of the
 * 65530 that a process may have by default; to 32 GiB this is no limit.
 */
#define MAX_RANGES      8192

/* Of the thread that loads: ranges that have been advised about */
static unsigned int nr_ranges;

void sparse_ram_save(QEMUFile *f, RAMBlock *rb, unsigned long first_page,
                     unsigned long last_page)
{
    unsigned long pages = REGION_SIZE >> TARGET_PAGE_BITS;
    unsigned long first = DIV_ROUND_UP(first_page, pages);
    unsigned long last = MIN(last_page, rb->used_length >> TARGET_PAGE_BITS) /
                         pages;
    g_autofree unsigned long *bits = NULL, *le_bits = NULL;
    size_t bytes, name = strlen(rb->idstr);
    unsigned long i, sparse = 0;

    if (first >= last) {
        return;
    }
    bits = bitmap_new(last - first);
    for (i = first; i < last; i++) {
        uint64_t dirty = bitmap_count_one_with_offset(rb->bmap, i * pages,
                                                      pages);

        /* What comes where nothing is now was allocated together, later. */
        if (dirty && dirty << TARGET_PAGE_BITS <= SPARSE_MAX) {
            set_bit(i - first, bits);
            sparse++;
        }
    }
    trace_sparse_ram_save(rb->idstr, first, last - first, sparse);
    if (!sparse) {
        return;
    }
    bytes = DIV_ROUND_UP(last - first, 64) * 8;
    le_bits = g_malloc0(bytes);
    bitmap_to_le(le_bits, bits, last - first);
    qemu_put_be64(f, RAM_SAVE_FLAG_SPARSE);
    qemu_put_byte(f, name);
    qemu_put_buffer(f, (uint8_t *)rb->idstr, name);
    qemu_put_be64(f, first);
    qemu_put_be64(f, last - first);
    qemu_put_buffer(f, (uint8_t *)le_bits, bytes);
    ram_transferred_add(8 + 1 + name + 16 + bytes);
}

/*
 * The next range of set bits at or behind *end, across gaps of less than @gap
 * bits that are clear
 */
static bool next_range(const unsigned long *bits, unsigned long nr,
                       unsigned long gap, unsigned long *begin,
                       unsigned long *end)
{
    unsigned long next = find_next_bit(bits, nr, *end);

    if (next >= nr) {
        return false;
    }
    *begin = next;
    do {
        *end = find_next_zero_bit(bits, nr, next);
        next = find_next_bit(bits, nr, *end);
    } while (next < nr && next - *end < gap);
    return true;
}

static unsigned long count_ranges(const unsigned long *bits, unsigned long nr,
                                  unsigned long gap)
{
    unsigned long begin, end = 0, count = 0;

    while (next_range(bits, nr, gap, &begin, &end)) {
        count++;
    }
    return count;
}

static void sparse_ram_advise(RAMBlock *rb, unsigned long first,
                              const unsigned long *bits, unsigned long nr)
{
    /* By its size, so that there are some for all of RAM */
    uint64_t max = MAX(1, MAX_RANGES * nr * REGION_SIZE / ram_bytes_total());
    unsigned long begin, end = 0, gap = 1;

    if (qemu_ram_pagesize(rb) != qemu_real_host_page_size() ||
        nr_ranges + max > 2 * MAX_RANGES) {
        return;
    }
    /* Rather less of huge pages than more memory */
    while (count_ranges(bits, nr, gap) > max) {
        gap *= 2;
    }
    if (!qemu_ram_is_shared(rb)) {
        /* Mappings become one again only if they had a page when split. */
        qemu_madvise(rb->host, qemu_real_host_page_size(),
                     QEMU_MADV_POPULATE_WRITE);
    }
    trace_sparse_ram_advise(rb->idstr, first, nr, gap);
    while (next_range(bits, nr, gap, &begin, &end)) {
        /* Without huge pages it fails, and need not be. */
        qemu_madvise(rb->host + (first + begin) * REGION_SIZE,
                     (end - begin) * REGION_SIZE, QEMU_MADV_NOHUGEPAGE);
        nr_ranges++;
    }
}

int sparse_ram_load(QEMUFile *f)
{
    g_autofree unsigned long *bits = NULL, *le_bits = NULL;
    uint64_t first, nr, regions;
    RAMBlock *rb;
    char name[256];
    size_t bytes;
    int len;

    len = qemu_get_byte(f);
    qemu_get_buffer(f, (uint8_t *)name, len);
    name[len] = 0;
    first = qemu_get_be64(f);
    nr = qemu_get_be64(f);

    rb = qemu_ram_block_by_name(name);
    regions = rb && rb->host ? rb->used_length / REGION_SIZE : 0;
    if (!migrate_sparse_ram() || !nr || first >= regions ||
        nr > regions - first) {
        error_report("Illegal record of sparse RAM: %" PRIu64 " regions from %"
                     PRIu64 " on of block '%s'", nr, first, name);
        return -EINVAL;
    }
    bytes = DIV_ROUND_UP(nr, 64) * 8;
    le_bits = g_malloc0(bytes);
    qemu_get_buffer(f, (uint8_t *)le_bits, bytes);
    bits = bitmap_new(nr);
    bitmap_from_le(bits, le_bits, nr);
    sparse_ram_advise(rb, first, bits, nr);
    return 0;
}

void sparse_ram_load_cleanup(void)
{
    RAMBlock *rb;

    if (!nr_ranges) {
        return;
    }
    nr_ranges = 0;
    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        if (rb->host) {
            qemu_madvise(rb->host, rb->max_length, QEMU_MADV_HUGEPAGE);
        }
    }
}
