/*
 * A dirty log that is cleared late, for tests only
 *
 * With KVM's manual dirty log protection a page that is in the log stays
 * writable, and in the log, until its part of the log is cleared: a write
 * between the two leaves no trace of its own.  The device x-late-dirty-log
 * gives TCG and qtest such a log, so that what relies on the order of
 * log_sync, log_clear and reading a page can be tested without KVM.
 *
 * - When logging starts, all pages are in the log.
 * - log_sync reports the pages that are in the log: those that are dirty now,
 *   and those that have been in it and were not cleared.
 * - log_clear takes the range's pages out of the log.  Their dirty bits go,
 *   but only if they were in the log at the last log_sync.
 *
 * With the property clear-ms log_clear takes so long for each GiB.  cleared
 * says for how many bytes it was called.
 *
 * Regions that a display looks at have their log synchronised and cleared for
 * another reason, and are left alone.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "exec/address-spaces.h"
#include "exec/ram_addr.h"
#include "hw/core/cpu.h"
#include "hw/qdev-properties.h"
#include "system/qtest.h"
#include "system/runstate.h"
#include "system/tcg.h"

#define TYPE_LATE_DIRTY_LOG "x-late-dirty-log"
/* How long a vCPU may take to the end of an instruction */
#define WAIT_MS         1000
OBJECT_DECLARE_SIMPLE_TYPE(LateDirtyLog, LATE_DIRTY_LOG)

struct LateDirtyLog {
    DeviceState parent_obj;
    MemoryListener listener;
    /*
     * By ram_addr, from log_global_start on: pages in the log.  Accessed from
     * any thread, with atomic operations on words.
     */
    unsigned long *log;
    size_t nr_pages;
    uint32_t clear_ms;
    uint64_t cleared;           /* written with migration's bitmap_mutex */
};

/* The word of the migration dirty bitmap that @page is in; in an RCU section */
static unsigned long *dirty_word(unsigned long page)
{
    DirtyMemoryBlocks *blocks =
        qatomic_rcu_read(&ram_list.dirty_memory[DIRTY_MEMORY_MIGRATION]);

    return &blocks->blocks[page / DIRTY_MEMORY_BLOCK_SIZE]
                          [BIT_WORD(page % DIRTY_MEMORY_BLOCK_SIZE)];
}

/*
 * Calls @func for each word of the section's pages, with those that are in
 * the section.  Returns whether one of the calls did.
 */
static bool for_each_word(LateDirtyLog *l, MemoryRegionSection *section,
                          bool (*func)(unsigned long *log, unsigned long *dirty,
                                       unsigned long mask))
{
    ram_addr_t start = memory_region_get_ram_addr(section->mr) +
                       section->offset_within_region;
    unsigned long page = start >> TARGET_PAGE_BITS;
    unsigned long last = page + (int128_get64(section->size) >>
                                 TARGET_PAGE_BITS);
    bool ret = false;

    if (!l->log ||
        memory_region_get_dirty_log_mask(section->mr) & 1 << DIRTY_MEMORY_VGA) {
        return false;
    }
    RCU_READ_LOCK_GUARD();
    last = MIN(last, l->nr_pages);
    while (page < last) {
        unsigned long mask = BITMAP_FIRST_WORD_MASK(page);
        unsigned long next = QEMU_ALIGN_DOWN(page, BITS_PER_LONG) +
                             BITS_PER_LONG;

        if (last < next) {
            mask &= BITMAP_LAST_WORD_MASK(last);
        }
        ret |= func(&l->log[BIT_WORD(page)], dirty_word(page), mask);
        page = next;
    }
    return ret;
}

static bool sync_word(unsigned long *log, unsigned long *dirty,
                      unsigned long mask)
{
    qatomic_or(log, qatomic_read(dirty) & mask);
    qatomic_or(dirty, qatomic_read(log) & mask);
    return false;
}

static bool clear_word(unsigned long *log, unsigned long *dirty,
                       unsigned long mask)
{
    mask &= qatomic_fetch_and(log, ~mask);
    return mask & qatomic_fetch_and(dirty, ~mask);
}

static void late_log_sync(MemoryListener *listener,
                          MemoryRegionSection *section)
{
    for_each_word(container_of(listener, LateDirtyLog, listener), section,
                  sync_word);
}

/* The ends of the instructions that the vCPUs are at */
typedef struct Stores {
    QemuSemaphore ended;
    int refs;
} Stores;

static void stores_unref(Stores *s)
{
    if (qatomic_fetch_dec(&s->refs) == 1) {
        qemu_sem_destroy(&s->ended);
        g_free(s);
    }
}

static void stores_ended(CPUState *cpu, run_on_cpu_data data)
{
    Stores *s = data.host_ptr;

    qemu_sem_post(&s->ended);
    stores_unref(s);
}

static void do_nothing(CPUState *cpu, run_on_cpu_data data)
{
}

/*
 * A vCPU that has set a bit may only then open its TLB entry for direct
 * stores.  Waits until each has come to the end of such an instruction.  One
 * that takes a second is at none: it waits for the BQL.  Who holds that may
 * wait for this thread, if it is one that takes hints.
 */
static void wait_for_stores(void)
{
    int waiting = 0;
    CPUState *cpu;
    Stores *s;

    if (!runstate_is_running()) {
        return;
    }
    if (bql_locked()) {
        CPU_FOREACH(cpu) {
            run_on_cpu(cpu, do_nothing, RUN_ON_CPU_NULL);
        }
        return;
    }
    s = g_new(Stores, 1);
    s->refs = 1;
    qemu_sem_init(&s->ended, 0);
    CPU_FOREACH(cpu) {
        qatomic_inc(&s->refs);
        async_run_on_cpu(cpu, stores_ended, RUN_ON_CPU_HOST_PTR(s));
        waiting++;
    }
    while (waiting && !qemu_sem_timedwait(&s->ended, WAIT_MS)) {
        waiting--;
    }
    stores_unref(s);
}

static void late_log_clear(MemoryListener *listener,
                           MemoryRegionSection *section)
{
    LateDirtyLog *l = container_of(listener, LateDirtyLog, listener);
    uint64_t size = int128_get64(section->size);

    /* A vCPU that translates code is none of KVM's, and cannot wait. */
    if (current_cpu || !l->log) {
        return;
    }
    g_usleep(l->clear_ms * 1000 * size / GiB);
    qatomic_set(&l->cleared, l->cleared + size);
    if (!for_each_word(l, section, clear_word)) {
        return;
    }
    if (tcg_enabled()) {
        wait_for_stores();
        cpu_physical_memory_dirty_bits_cleared(
            memory_region_get_ram_addr(section->mr) +
            section->offset_within_region, size);
    }
}

static bool late_log_global_start(MemoryListener *listener, Error **errp)
{
    LateDirtyLog *l = container_of(listener, LateDirtyLog, listener);
    RAMBlock *block;
    ram_addr_t end = 0;

    if (!tcg_enabled() && !qtest_enabled()) {
        error_setg(errp, TYPE_LATE_DIRTY_LOG " is for TCG and qtest only");
        return false;
    }
    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH(block) {
        end = MAX(end, block->offset + block->max_length);
    }
    l->nr_pages = end >> TARGET_PAGE_BITS;
    l->log = bitmap_new(l->nr_pages);
    bitmap_set(l->log, 0, l->nr_pages);
    return true;
}

static void late_log_global_stop(MemoryListener *listener)
{
    LateDirtyLog *l = container_of(listener, LateDirtyLog, listener);

    g_free(l->log);
    l->log = NULL;
}

static void late_dirty_log_realize(DeviceState *dev, Error **errp)
{
    LateDirtyLog *l = LATE_DIRTY_LOG(dev);

    if (global_dirty_tracking) {
        error_setg(errp, "Dirty pages are being logged already");
        return;
    }
    l->listener = (MemoryListener) {
        .name = TYPE_LATE_DIRTY_LOG,
        .log_sync = late_log_sync,
        .log_clear = late_log_clear,
        .log_global_start = late_log_global_start,
        .log_global_stop = late_log_global_stop,
    };
    memory_listener_register(&l->listener, &address_space_memory);
}

static void late_dirty_log_init(Object *obj)
{
    object_property_add_uint64_ptr(obj, "cleared",
                                   &LATE_DIRTY_LOG(obj)->cleared,
                                   OBJ_PROP_FLAG_READ);
}

static void late_dirty_log_unrealize(DeviceState *dev)
{
    LateDirtyLog *l = LATE_DIRTY_LOG(dev);

    memory_listener_unregister(&l->listener);
    g_free(l->log);
}

static const Property late_dirty_log_properties[] = {
    DEFINE_PROP_UINT32("clear-ms", LateDirtyLog, clear_ms, 0),
};

static void late_dirty_log_class_init(ObjectClass *oc, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(oc);

    dc->desc = "Clears the dirty log as late as KVM may, for tests";
    dc->realize = late_dirty_log_realize;
    dc->unrealize = late_dirty_log_unrealize;
    device_class_set_props(dc, late_dirty_log_properties);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo late_dirty_log_info = {
    .name = TYPE_LATE_DIRTY_LOG,
    .parent = TYPE_DEVICE,
    .instance_size = sizeof(LateDirtyLog),
    .instance_init = late_dirty_log_init,
    .class_init = late_dirty_log_class_init,
};

static void late_dirty_log_register(void)
{
    type_register_static(&late_dirty_log_info);
}

type_init(late_dirty_log_register)
