/*
 * Live migration: pages that the guest does not use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In the first round, when all of RAM is to be sent, the guest is asked which
 * pages it does not use, and their bits are cleared in the migration bitmap.
 * The guest does not hold these pages: it may use one as soon as it has
 * reported it.  So the order of the steps matters.
 *
 * 1. Arm: clear the dirty log of the range that is to be asked for, so that
 *    every later write is logged.  With KVM's manual protection a write to a
 *    page whose chunk is not cleared yet leaves no trace but the bit that is
 *    there already, and that bit goes when a neighbour of the page is sent.
 *    It makes KVM split huge pages, and pages that change between arming and
 *    sending are sent twice: a reason to ask in windows, ahead of the sender.
 * 2. Ask, under the BQL, by a bottom half of the main loop.
 * 3. Collect: the device validates the answer and sets bits of the window's
 *    bitmaps, under the BQL and unused_pages.lock.  It must not wait for
 *    bitmap_mutex, which is held across blocking writes to the destination.
 * 4. Fold: the migration thread clears those bits in RAMBlock.bmap, where it
 *    holds bitmap_mutex anyway.
 *
 * The next synchronisation of the dirty log ends all of it: bits that it sets
 * are writes that came after the report.  Its beginning counts, since the BQL
 * may be dropped in the middle of it.  A change of the RAM blocks, and what
 * makes the device drop the answer, end it too.  Bits that were collected but
 * not folded by then are lost.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "exec/address-spaces.h"
#include "exec/ram_addr.h"
#include "exec/ramlist.h"
#include "exec/target_page.h"
#include "system/runstate.h"
#include "migration.h"
#include "migration/misc.h"
#include "migration/unused-pages.h"
#include "multifd.h"
#include "options.h"
#include "ram.h"
#include "sparse-ram.h"
#include "trace.h"

/* RAM that one request asks for */
#define WINDOW_SIZE     (32 * GiB)
/* The next window is for when less than this, or a second's worth, is left */
#define DIRTY_AHEAD     (256 * MiB)
/* What ram_save_iterate() arms at a time: chunks of a GiB, by default */
#define ARM_AT_ONCE     (8 * GiB)
/* All the waiting before the first round, in ms */
#define WAIT_MS         500
/* How often it is looked whether somebody can be asked */
#define READY_MS        2

/* Part of a RAM block, in one window; pages are numbers within the block */
typedef struct UnusedRange {
    unsigned int window;
    unsigned int order;         /* of the block among those that are sent */
    RAMBlock *rb;
    hwaddr gpa;
    unsigned long first;
    unsigned long last;         /* exclusive */
    unsigned long *bits;        /* from first on, rounded down to a word */
} UnusedRange;

typedef enum UnusedPagesState {
    UNUSED_PAGES_OFF,           /* not in this round */
    UNUSED_PAGES_IDLE,          /* the last window was answered */
    UNUSED_PAGES_ARMING,
    UNUSED_PAGES_ARMED,         /* and to be asked for by the bottom half */
    UNUSED_PAGES_ASKED,
} UnusedPagesState;

static struct {
    /*
     * Guards state, provider, exhausted, and the bits of the window.  The
     * innermost lock: taken under the BQL by the device, under bitmap_mutex
     * by the migration thread; nothing is called with it.
     */
    QemuMutex lock;
    QemuCond answered;          /* or off */
    UnusedPagesProvider *provider;
    /* Written with the lock, or the BQL while it is OFF; else read as a hint */
    UnusedPagesState state;
    bool fresh;                 /* there are bits that are not folded yet */
    bool exhausted;             /* the guest cannot answer */

    /*
     * Set by the migration thread, reset by who synchronises the log, both
     * under the BQL; the migration thread reads it without.
     */
    bool asked;

    /* Of the migration thread, until cleanup */
    UnusedRange *ranges;        /* in the order in which they are sent */
    unsigned int nr_ranges;
    uint32_t version;           /* of ram_list, for which the ranges are good */
    unsigned int begin, end;    /* ranges of the window */
    unsigned int told;          /* up to here the destination knows of them */
    unsigned int arm;           /* range to be armed next... */
    unsigned long arm_page;     /* ...and the page in it */
    unsigned int low;           /* where there are still dirty pages... */
    unsigned long low_page;     /* ...in the windows that were asked for */
} unused_pages;

/* With the lock */
static void unused_pages_free_window(void)
{
    unsigned int i;

    for (i = unused_pages.begin; i < unused_pages.end; i++) {
        g_free(unused_pages.ranges[i].bits);
        unused_pages.ranges[i].bits = NULL;
    }
    qatomic_set(&unused_pages.fresh, false);
}

/* With the lock */
static void unused_pages_off(const char *why)
{
    if (unused_pages.state != UNUSED_PAGES_OFF) {
        trace_unused_pages_off(why);
        qatomic_set(&unused_pages.state, UNUSED_PAGES_OFF);
        unused_pages_free_window();
        qemu_cond_broadcast(&unused_pages.answered);
    }
}

/* With the lock */
static void unused_pages_not_asked(UnusedPagesReady why)
{
    trace_unused_pages_not_asked(why);
    if (unused_pages.provider) {
        stat64_add(&unused_pages.provider->not_asked[why], 1);
    }
}

/*
 * Whether the RAM blocks are still there; in an RCU section, so that they then
 * stay there to its end.
 */
static bool unused_pages_ranges_good(void)
{
    if (ram_list.version == unused_pages.version) {
        return true;
    }
    QEMU_LOCK_GUARD(&unused_pages.lock);
    unused_pages_off("RAM blocks change");
    return false;
}

/* Guest-physical, with holes */
static hwaddr unused_pages_window_size(void)
{
    UnusedRange *first = &unused_pages.ranges[unused_pages.begin];
    UnusedRange *last = &unused_pages.ranges[unused_pages.end - 1];

    return last->gpa - first->gpa +
           ((ram_addr_t)(last->last - last->first) << TARGET_PAGE_BITS);
}

/* The device's side */

void unused_pages_report(UnusedPagesProvider *p, RAMBlock *rb,
                         ram_addr_t start, ram_addr_t length)
{
    unsigned long first = DIV_ROUND_UP(start, TARGET_PAGE_SIZE);
    unsigned long last = (start + length) >> TARGET_PAGE_BITS;
    unsigned int i;

    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.state != UNUSED_PAGES_ASKED ||
        unused_pages.provider != p ||
        ram_list.version != unused_pages.version) {
        return;
    }
    /* Only what was armed counts, whatever the guest has mapped meanwhile. */
    for (i = unused_pages.begin; i < unused_pages.end; i++) {
        UnusedRange *u = &unused_pages.ranges[i];
        unsigned long from = MAX(first, u->first);
        unsigned long to = MIN(last, u->last);

        if (u->rb == rb && from < to) {
            bitmap_set(u->bits, from - QEMU_ALIGN_DOWN(u->first, BITS_PER_LONG),
                       to - from);
            qatomic_set(&unused_pages.fresh, true);
        }
    }
}

void unused_pages_end(UnusedPagesProvider *p, UnusedPagesEnd how)
{
    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.provider != p) {
        return;
    }
    if (how == UNUSED_PAGES_DEAD) {
        unused_pages_off("the device stops");
    } else if (unused_pages.state == UNUSED_PAGES_ASKED) {
        unused_pages.exhausted = how == UNUSED_PAGES_ERROR;
        qatomic_set(&unused_pages.state, UNUSED_PAGES_IDLE);
        qemu_cond_broadcast(&unused_pages.answered);
    }
}

static void unused_pages_ask_bh(void *opaque)
{
    UnusedPagesProvider *p = NULL;
    hwaddr start = 0, length = 0;

    WITH_QEMU_LOCK_GUARD(&unused_pages.lock) {
        /* Not so if what was to be asked came to its end first */
        if (unused_pages.state == UNUSED_PAGES_ARMED) {
            p = unused_pages.provider;
            start = unused_pages.ranges[unused_pages.begin].gpa;
            length = unused_pages_window_size();
            qatomic_set(&unused_pages.state, UNUSED_PAGES_ASKED);
        }
    }
    if (p) {
        UnusedPagesReady ready = p->request(p, start, length);

        if (ready != UNUSED_PAGES_READY) {
            WITH_QEMU_LOCK_GUARD(&unused_pages.lock) {
                unused_pages_not_asked(ready);
            }
            unused_pages_end(p, UNUSED_PAGES_ERROR);
        }
    }
}

void unused_pages_expire(void)
{
    UnusedPagesProvider *p = unused_pages.provider;

    if (!unused_pages.asked) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&unused_pages.lock) {
        unused_pages_off("the dirty log is synchronised");
    }
    qatomic_set(&unused_pages.asked, false);
    if (p) {
        p->cancel(p);
    }
}

void unused_pages_cleanup(void)
{
    unused_pages_expire();
    g_free(unused_pages.ranges);
    unused_pages.ranges = NULL;
    unused_pages.nr_ranges = unused_pages.begin = unused_pages.end = 0;
}

bool unused_pages_register(UnusedPagesProvider *p)
{
    static bool initialised;

    if (!initialised) {
        initialised = true;
        qemu_mutex_init(&unused_pages.lock);
        qemu_cond_init(&unused_pages.answered);
    }
    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.provider) {
        return false;
    }
    unused_pages.provider = p;
    return true;
}

void unused_pages_unregister(UnusedPagesProvider *p)
{
    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.provider == p) {
        unused_pages_off("the device goes");
        unused_pages.provider = NULL;
    }
}

/* The migration thread's side */

/* A flatview_cb: all the RAM that an answer may change something about */
static bool unused_pages_add_range(Int128 start, Int128 len,
                                   const MemoryRegion *mr, hwaddr offset,
                                   void *opaque)
{
    GArray *ranges = opaque;
    hwaddr size = int128_get64(len);
    RAMBlock *rb = mr->ram_block, *block;
    UnusedRange u = {
        .rb = rb,
        .gpa = int128_get64(start),
        .first = offset >> TARGET_PAGE_BITS,
        .last = (offset + size) >> TARGET_PAGE_BITS,
    };

    if (!rb || !rb->bmap || migrate_ram_is_ignored(rb) ||
        !memory_region_is_ram((MemoryRegion *)mr) ||
        memory_region_is_rom((MemoryRegion *)mr) ||
        memory_region_is_romd((MemoryRegion *)mr) ||
        memory_region_has_ram_discard_manager((MemoryRegion *)mr) ||
        !QEMU_IS_ALIGNED(u.gpa | size | offset, TARGET_PAGE_SIZE)) {
        return false;
    }
    RAMBLOCK_FOREACH(block) {
        if (block == rb) {
            break;
        }
        u.order++;
    }
    g_array_append_val(ranges, u);
    return false;
}

static int unused_pages_compare(const void *a, const void *b)
{
    const UnusedRange *u = a, *v = b;

    if (u->order != v->order) {
        return u->order < v->order ? -1 : 1;
    }
    return u->first < v->first ? -1 : u->first > v->first;
}

/*
 * Cuts ranges into windows.  The guest is asked for all that is between the
 * ends of one: so that goes up, and not too far.
 */
static void unused_pages_cut(const GArray *from, GArray *to)
{
    hwaddr room = WINDOW_SIZE, next = 0;
    unsigned int window = 0;
    guint i;

    for (i = 0; i < from->len; i++) {
        UnusedRange u = g_array_index(from, UnusedRange, i);
        unsigned long last = u.last;

        if (u.gpa < next || u.gpa - next > room) {
            window++;
            room = WINDOW_SIZE;
        }
        while (u.first < last) {
            u.window = window;
            u.last = MIN(last, u.first + (room >> TARGET_PAGE_BITS));
            g_array_append_val(to, u);
            next = u.gpa + ((hwaddr)(u.last - u.first) << TARGET_PAGE_BITS);
            room -= next - u.gpa;
            if (!room) {
                window++;
                room = WINDOW_SIZE;
            }
            u.gpa = next;
            u.first = u.last;
        }
    }
}

/* Under the BQL.  No listener: others walk the list of those without it */
static void unused_pages_find_ranges(void)
{
    g_autoptr(GArray) found = g_array_new(false, false, sizeof(UnusedRange));
    GArray *ranges = g_array_new(false, false, sizeof(UnusedRange));

    WITH_RCU_READ_LOCK_GUARD() {
        FlatView *fv = address_space_to_flatview(&address_space_memory);

        flatview_for_each_range(fv, unused_pages_add_range, found);
    }
    g_array_sort(found, unused_pages_compare);
    unused_pages_cut(found, ranges);
    unused_pages.version = ram_list.version;
    unused_pages.nr_ranges = ranges->len;
    g_free(unused_pages.ranges);
    unused_pages.ranges = (UnusedRange *)g_array_free(ranges, false);
}

static bool unused_pages_has_window(void)
{
    QEMU_LOCK_GUARD(&unused_pages.lock);
    return unused_pages.state == UNUSED_PAGES_IDLE && !unused_pages.exhausted &&
           unused_pages.end < unused_pages.nr_ranges;
}

/* Takes the next window, after what the last one brought was folded */
static void unused_pages_next_window(void)
{
    unsigned int i;

    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.state != UNUSED_PAGES_IDLE) {
        return;
    }
    unused_pages_free_window();
    unused_pages.begin = unused_pages.end;
    for (i = unused_pages.begin; i < unused_pages.nr_ranges; i++) {
        UnusedRange *u = &unused_pages.ranges[i];

        if (u->window != unused_pages.ranges[unused_pages.begin].window) {
            break;
        }
        u->bits = bitmap_new(u->last -
                             QEMU_ALIGN_DOWN(u->first, BITS_PER_LONG));
    }
    unused_pages.end = i;
    unused_pages.arm = unused_pages.begin;
    unused_pages.arm_page = unused_pages.ranges[unused_pages.begin].first;
    trace_unused_pages_window(unused_pages.ranges[unused_pages.begin].window,
                              unused_pages.ranges[unused_pages.begin].gpa,
                              unused_pages_window_size());
    qatomic_set(&unused_pages.state, UNUSED_PAGES_ARMING);
}

/*
 * Arms a chunk, and more of them up to @budget bytes.  With bitmap_mutex and
 * in an RCU section.  Returns false when nothing is left to be armed.
 */
static bool unused_pages_arm(uint64_t budget)
{
    uint64_t done = 0;

    if (qatomic_read(&unused_pages.state) != UNUSED_PAGES_ARMING ||
        !unused_pages_ranges_good()) {
        return false;
    }
    do {
        UnusedRange *u = &unused_pages.ranges[unused_pages.arm];
        unsigned long chunk = 1ul << u->rb->clear_bmap_shift;
        unsigned long next = QEMU_ALIGN_DOWN(unused_pages.arm_page, chunk) +
                             chunk;

        migration_clear_memory_region_dirty_bitmap_range(
            u->rb, unused_pages.arm_page, 1);
        done += (uint64_t)chunk << TARGET_PAGE_BITS;
        unused_pages.arm_page = next;
        if (next >= u->last) {
            unused_pages.arm++;
            if (unused_pages.arm == unused_pages.end) {
                WITH_QEMU_LOCK_GUARD(&unused_pages.lock) {
                    if (unused_pages.state == UNUSED_PAGES_ARMING) {
                        /* Arm before ask: the lock orders the two */
                        qatomic_set(&unused_pages.state, UNUSED_PAGES_ARMED);
                    }
                }
                aio_bh_schedule_oneshot(qemu_get_aio_context(),
                                        unused_pages_ask_bh, NULL);
                return false;
            }
            unused_pages.arm_page = unused_pages.ranges[unused_pages.arm].first;
        }
    } while (done < budget);
    return true;
}

/* Returns how many bits of RAMBlock.bmap it cleared. */
static uint64_t unused_pages_fold_range(UnusedRange *u)
{
    unsigned long used = u->rb->used_length >> TARGET_PAGE_BITS;
    unsigned long page = QEMU_ALIGN_DOWN(u->first, BITS_PER_LONG);
    unsigned long *bits = u->bits;
    uint64_t cleared = 0;

    for (; page < MIN(u->last, used); page += BITS_PER_LONG, bits++) {
        unsigned long *dirty = &u->rb->bmap[BIT_WORD(page)];
        unsigned long bit = *bits & *dirty;

        *bits = 0;
        if (used - page < BITS_PER_LONG) {
            bit &= BITMAP_LAST_WORD_MASK(used - page);
        }
        *dirty &= ~bit;
        cleared += ctpopl(bit);
    }
    return cleared;
}

/* With bitmap_mutex and in an RCU section */
static void unused_pages_fold(uint64_t *dirty_pages)
{
    uint64_t cleared = 0;
    unsigned int i;

    if (!qatomic_read(&unused_pages.fresh) || !unused_pages_ranges_good()) {
        return;
    }
    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.state == UNUSED_PAGES_OFF) {
        return;
    }
    qatomic_set(&unused_pages.fresh, false);
    for (i = unused_pages.begin; i < unused_pages.end; i++) {
        cleared += unused_pages_fold_range(&unused_pages.ranges[i]);
    }
    *dirty_pages -= cleared;
    stat64_add(&unused_pages.provider->unsent_bytes,
               cleared << TARGET_PAGE_BITS);
    trace_unused_pages_fold(cleared, *dirty_pages);
}

/*
 * Tells the destination of what little is left to be sent where all answers
 * have ended, ahead of the pages.  With bitmap_mutex and in an RCU section.
 */
static void unused_pages_tell(QEMUFile *f)
{
    if (unused_pages.told == unused_pages.end || !migrate_sparse_ram() ||
        migrate_rdma() || !unused_pages_ranges_good()) {
        return;
    }
    for (; unused_pages.told < unused_pages.end; unused_pages.told++) {
        UnusedRange *u = &unused_pages.ranges[unused_pages.told];

        sparse_ram_save(f, u->rb, u->first, u->last);
    }
    /* Pages take other ways, which must not be shorter. */
    if (multifd_ram_sync_per_round() && multifd_ram_flush_and_sync(f) < 0) {
        qemu_file_set_error(f, -EIO);
    }
}

/*
 * Whether the sender is about to come to the end of the windows that were
 * asked for.  Bits that are clear there stay so, so look from the first range
 * on that had some.  With bitmap_mutex and in an RCU section.
 */
static bool unused_pages_running_low(void)
{
    const unsigned long step = GiB >> TARGET_PAGE_BITS;
    uint64_t second = migrate_get_current()->mbps * 125000;
    uint64_t limit = MAX(DIRTY_AHEAD, second);
    unsigned long page = unused_pages.low_page;
    uint64_t dirty = 0;
    unsigned int i;

    if (!unused_pages_ranges_good()) {
        return false;
    }
    for (i = unused_pages.low; i < unused_pages.end; i++) {
        UnusedRange *u = &unused_pages.ranges[i];
        unsigned long used = u->rb->used_length >> TARGET_PAGE_BITS;
        unsigned long last = MIN(u->last, used);

        for (page = MAX(page, u->first); page < last; page += step) {
            dirty += bitmap_count_one_with_offset(u->rb->bmap, page,
                                                  MIN(step, last - page));
            if (!dirty) {
                unused_pages.low = i;
                unused_pages.low_page = page;
            } else if (dirty << TARGET_PAGE_BITS >= limit) {
                return false;
            }
        }
        page = 0;
    }
    return true;
}

/* Waits for the end of an answer, with no other lock */
static void unused_pages_wait(int64_t deadline)
{
    MigrationState *s = migrate_get_current();

    QEMU_LOCK_GUARD(&unused_pages.lock);
    while (unused_pages.state == UNUSED_PAGES_ARMED ||
           unused_pages.state == UNUSED_PAGES_ASKED) {
        int64_t left = deadline - qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

        if (left <= 0) {
            trace_unused_pages_timeout();
            if (unused_pages.provider) {
                stat64_add(&unused_pages.provider->timeouts, 1);
            }
            return;
        }
        if (qatomic_read(&s->state) != MIGRATION_STATUS_ACTIVE) {
            return;
        }
        /* In steps: a migration that is cancelled signals nothing */
        qemu_cond_timedwait(&unused_pages.answered, &unused_pages.lock,
                            MIN(left, 10));
    }
}

/* Under the BQL */
static UnusedPagesReady unused_pages_try_begin(void)
{
    UnusedPagesProvider *p = unused_pages.provider;
    UnusedPagesReady ready;

    if (!p) {
        return UNUSED_PAGES_NO_DRIVER;
    }
    ready = runstate_is_running() ? p->ready(p) : UNUSED_PAGES_STOPPED;
    if (ready != UNUSED_PAGES_READY) {
        return ready;
    }
    unused_pages_find_ranges();
    if (!unused_pages.nr_ranges) {
        return UNUSED_PAGES_NO_RAM;
    }
    qatomic_set(&unused_pages.asked, true);
    unused_pages.exhausted = false;
    unused_pages.begin = unused_pages.end = unused_pages.told = 0;
    unused_pages.low = unused_pages.low_page = 0;
    qatomic_set(&unused_pages.state, UNUSED_PAGES_IDLE);
    return UNUSED_PAGES_READY;
}

static UnusedPagesReady unused_pages_begin(int64_t deadline)
{
    MigrationState *s = migrate_get_current();
    UnusedPagesReady ready;

    /* The destination may ask for any page. */
    if (migrate_postcopy_ram()) {
        return UNUSED_PAGES_POSTCOPY;
    }
    /* It is of the memory as it was. */
    if (migrate_background_snapshot()) {
        return UNUSED_PAGES_SNAPSHOT;
    }
    /* The secondary runs on what it has. */
    if (migrate_colo()) {
        return UNUSED_PAGES_COLO;
    }

    for (;;) {
        bql_lock();
        ready = unused_pages_try_begin();
        bql_unlock();
        /* An answer to whoever asked before, most likely to a migration */
        if ((ready != UNUSED_PAGES_BUSY && ready != UNUSED_PAGES_LATE_BUFFER) ||
            qemu_clock_get_ms(QEMU_CLOCK_REALTIME) >= deadline) {
            return ready;
        }
        if (qatomic_read(&s->state) != MIGRATION_STATUS_ACTIVE) {
            return UNUSED_PAGES_CANCELLED;
        }
        g_usleep(READY_MS * 1000);
    }
}

bool unused_pages_ask(QemuMutex *bitmap_mutex, uint64_t *dirty_pages)
{
    int64_t deadline = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + WAIT_MS;
    UnusedPagesReady ready;
    bool more;

    if (!unused_pages.provider) {
        return false;
    }
    ready = unused_pages_begin(deadline);
    if (ready != UNUSED_PAGES_READY) {
        QEMU_LOCK_GUARD(&unused_pages.lock);
        unused_pages_not_asked(ready);
        return true;
    }
    for (more = unused_pages_has_window(); more; ) {
        unused_pages_next_window();
        do {
            WITH_QEMU_LOCK_GUARD(bitmap_mutex) {
                WITH_RCU_READ_LOCK_GUARD() {
                    more = unused_pages_arm(1);
                }
            }
        } while (more);
        unused_pages_wait(deadline);
        WITH_QEMU_LOCK_GUARD(bitmap_mutex) {
            WITH_RCU_READ_LOCK_GUARD() {
                unused_pages_fold(dirty_pages);
                more = unused_pages_has_window() &&
                       unused_pages_running_low() &&
                       qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < deadline;
            }
        }
    }
    return true;
}

void unused_pages_iterate(QEMUFile *f, uint64_t *dirty_pages)
{
    switch (qatomic_read(&unused_pages.state)) {
    case UNUSED_PAGES_OFF:
        break;
    case UNUSED_PAGES_IDLE:
        unused_pages_fold(dirty_pages);
        unused_pages_tell(f);
        if (unused_pages_has_window() && unused_pages_running_low()) {
            unused_pages_next_window();
        }
        break;
    case UNUSED_PAGES_ARMING:
        unused_pages_arm(ARM_AT_ONCE);
        break;
    case UNUSED_PAGES_ARMED:
    case UNUSED_PAGES_ASKED:
        unused_pages_fold(dirty_pages);
        break;
    }
}

bool unused_pages_asked(void)
{
    return qatomic_read(&unused_pages.asked);
}
