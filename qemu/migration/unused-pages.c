/*
 * Live migration: pages that the guest does not use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guest is asked which pages it does not use, in the first round, when all
 * of RAM is to be sent, and in later ones as long as that pays, and their bits
 * are cleared in the migration bitmap.
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

/*
 * RAM that one request asks for: what takes so long to be sent, if as much of
 * it is in use as was of the last window
 */
#define WINDOW_SECONDS  2
#define WINDOW_MIN      (1 * GiB)
#define WINDOW_MAX      (32 * GiB)
/*
 * The next window is for when less is left than is sent in this part of a
 * second, but at least so much; more as long as the bandwidth is not known
 */
#define AHEAD_PART      4
#define AHEAD_MIN       (32 * MiB)
#define AHEAD_UNKNOWN   (256 * MiB)
/* For how long ram_save_iterate() arms, between two looks at other things */
#define ARM_MS          50
/* All the waiting for the guest before the first round, in ms */
#define WAIT_MS         500
/*
 * Later rounds are for those that last so many times as long as the answers
 * took; but this is too short for any, in ms
 */
#define AGAIN_TIMES     4
#define AGAIN_MS        100
/* An answer brings little if less than this part of what was dirty is unused */
#define AGAIN_PART      16
/* After so many rounds in a row for which the answers brought little... */
#define AGAIN_CHANCES   2
/* ...only one in so many is tried */
#define AGAIN_EACH      2
/* Nor is asked for a chunk of the dirty log with fewer dirty pages than this */
#define AGAIN_PAGES     256
/* All the waiting for answers that may make a round the last one, in ms */
#define LAST_MS         100
/* It may, if what was in use of the last round is not so many times too much */
#define LAST_TIMES      4
/* How often it is looked whether somebody can be asked */
#define READY_MS        2

/* Part of a RAM block; pages are numbers within the block */
typedef struct UnusedRange {
    unsigned int order;         /* of the block among those that are sent */
    RAMBlock *rb;
    hwaddr gpa;
    unsigned long first;
    unsigned long last;         /* exclusive */
    unsigned long *bits;        /* from first on, rounded down to a word */
} UnusedRange;

typedef enum UnusedPagesState {
    UNUSED_PAGES_OFF,           /* not in this round */
    UNUSED_PAGES_IDLE,          /* the last window was answered, if any */
    UNUSED_PAGES_WANTED,        /* to be asked for by the bottom half */
    UNUSED_PAGES_ASKED,
} UnusedPagesState;

/* What is left to be done after a step */
typedef enum UnusedPagesStep {
    UNUSED_PAGES_NOTHING,
    UNUSED_PAGES_MORE,
    UNUSED_PAGES_WAIT,          /* for the guest */
} UnusedPagesStep;

static struct {
    /*
     * Guards state, provider, exhausted, what is in ms, and the window.  The
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
    int64_t since_ms;           /* when what is awaited was asked for */
    int64_t left_ms;            /* of WAIT_MS, but for what is awaited now */
    int64_t answers_ms;         /* what all answers of the round took... */
    unsigned int answers;       /* ...which are so many */

    /*
     * Set by the migration thread, reset by who synchronises the log, both
     * under the BQL; the migration thread reads it without.
     */
    bool asked;

    /*
     * Written by the migration thread with the lock, until cleanup: ranges in
     * the order in which they are sent.  Those of a window are next to each
     * other; what is behind the windows is cut when the next one is taken.
     */
    GArray *ranges;
    unsigned int begin, end;    /* of the window that is, or was, asked for */
    unsigned int ahead;         /* end of the one behind, if there is one */

    /* Of the migration thread */
    uint32_t version;           /* of ram_list, for which the ranges are good */
    unsigned int told;          /* up to here the destination knows of them */
    unsigned int arm;           /* range to be armed next... */
    unsigned long arm_page;     /* ...and the page in it */
    unsigned int low;           /* where there are still dirty pages... */
    unsigned long low_page;     /* ...in the windows that were asked for */
    unsigned long size;         /* of the last window that was taken, pages */
    uint64_t dirty;             /* bits of the one that was asked for... */
    uint64_t unused;            /* ...and those that were cleared for it */
    double in_use;              /* of the last window that was answered */
    uint64_t round_dirty;       /* the same for all windows of the round */
    uint64_t round_unused;
    double round_in_use;        /* of the last round that was answered */
    unsigned int chances;       /* for an answer to bring something */
    unsigned int passed;        /* rounds that were not tried without one */
} unused_pages;

/* Of this migration, or the last one */
static struct {
    bool tried;                 /* to ask */
    UnusedPagesReady ready;     /* if not, the last reason not to */
    Stat64 left_out_bytes;
    Stat64 timeouts;
    Stat64 reclaimed_bytes;     /* before anything was asked */
} unused_pages_stats;

static int64_t now_ms(void)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
}

static UnusedRange *unused_pages_range(unsigned int i)
{
    return &g_array_index(unused_pages.ranges, UnusedRange, i);
}

/* With the lock */
static void unused_pages_free_window(void)
{
    unsigned int i;

    for (i = unused_pages.begin; i < unused_pages.end; i++) {
        UnusedRange *u = unused_pages_range(i);

        g_free(u->bits);
        u->bits = NULL;
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
    qatomic_set(&unused_pages_stats.ready, why);
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

/* Guest-physical, with holes, from the first range's beginning on */
static hwaddr unused_pages_window_size(unsigned int begin, unsigned int end)
{
    UnusedRange *first = unused_pages_range(begin);
    UnusedRange *last = unused_pages_range(end - 1);

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
        UnusedRange *u = unused_pages_range(i);
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
        int64_t took = now_ms() - unused_pages.since_ms;

        unused_pages.exhausted = how == UNUSED_PAGES_ERROR;
        unused_pages.left_ms -= took;
        unused_pages.answers_ms += took;
        unused_pages.answers++;
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
        if (unused_pages.state == UNUSED_PAGES_WANTED) {
            p = unused_pages.provider;
            start = unused_pages_range(unused_pages.begin)->gpa;
            length = unused_pages_window_size(unused_pages.begin,
                                              unused_pages.end);
            unused_pages.since_ms = now_ms();
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
        unused_pages.round_in_use = unused_pages.round_dirty ?
            1 - (double)unused_pages.round_unused / unused_pages.round_dirty :
            1;
        if (!unused_pages.answers || unused_pages.exhausted) {
            unused_pages.chances = 0;
        } else if (unused_pages.round_unused >=
                   unused_pages.round_dirty / AGAIN_PART) {
            unused_pages.chances = AGAIN_CHANCES;
        } else if (unused_pages.chances) {
            unused_pages.chances--;
        }
    }
    qatomic_set(&unused_pages.asked, false);
    if (p) {
        p->cancel(p);
    }
}

void unused_pages_cleanup(void)
{
    RAMBlock *rb;

    unused_pages_expire();
    RAMBLOCK_FOREACH(rb) {
        g_clear_pointer(&rb->left_out, g_free);
    }
    g_clear_pointer(&unused_pages.ranges, g_array_unref);
    unused_pages.begin = unused_pages.end = unused_pages.ahead = 0;
    unused_pages.chances = unused_pages.passed = 0;
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

/* Under the BQL.  No listener: others walk the list of those without it */
static void unused_pages_find_ranges(void)
{
    GArray *ranges = g_array_new(false, false, sizeof(UnusedRange));

    WITH_RCU_READ_LOCK_GUARD() {
        FlatView *fv = address_space_to_flatview(&address_space_memory);

        flatview_for_each_range(fv, unused_pages_add_range, ranges);
    }
    g_array_sort(ranges, unused_pages_compare);
    g_clear_pointer(&unused_pages.ranges, g_array_unref);
    unused_pages.ranges = ranges;
    unused_pages.version = ram_list.version;
}

/* Leaves chunks of the dirty log out in which next to nothing is dirty. */
static void unused_pages_drop_clean(void)
{
    GArray *ranges = g_array_new(false, false, sizeof(UnusedRange));
    unsigned int i;

    for (i = 0; i < unused_pages.ranges->len; i++) {
        UnusedRange u = *unused_pages_range(i);
        unsigned long chunk = 1ul << u.rb->clear_bmap_shift;
        unsigned long used = u.rb->used_length >> TARGET_PAGE_BITS;
        unsigned long end = MIN(u.last, used);
        bool joins = false;

        for (; u.first < end; u.first = u.last) {
            u.last = MIN(end, QEMU_ALIGN_DOWN(u.first, chunk) + chunk);
            if (bitmap_count_one_with_offset(u.rb->bmap, u.first,
                                             u.last - u.first) < AGAIN_PAGES) {
                joins = false;
            } else if (joins) {
                g_array_index(ranges, UnusedRange, ranges->len - 1).last =
                    u.last;
            } else {
                g_array_append_val(ranges, u);
                joins = true;
            }
            u.gpa += (hwaddr)(u.last - u.first) << TARGET_PAGE_BITS;
        }
    }
    g_array_unref(unused_pages.ranges);
    unused_pages.ranges = ranges;
}

static bool unused_pages_has_window(void)
{
    QEMU_LOCK_GUARD(&unused_pages.lock);
    return unused_pages.state != UNUSED_PAGES_OFF && !unused_pages.exhausted &&
           unused_pages.ahead == unused_pages.end &&
           unused_pages.end < unused_pages.ranges->len;
}

static uint64_t unused_pages_next_size(void)
{
    double second = migrate_get_current()->pages_per_second * TARGET_PAGE_SIZE;
    double size = 0;

    if (second > 0) {
        size = second * WINDOW_SECONDS / MAX(unused_pages.in_use, 0.001);
    } else if (unused_pages.end) {
        /* Nothing to be sent yet */
        size = 2.0 * unused_pages.size * TARGET_PAGE_SIZE;
    }
    return MIN(MAX(size, WINDOW_MIN), WINDOW_MAX);
}

/*
 * Takes the next window, of about @size bytes, to be armed.  The guest is
 * asked for all that is between its ends: so it goes up, and not too far.
 */
static void unused_pages_take(uint64_t size)
{
    unsigned long room = size >> TARGET_PAGE_BITS;
    unsigned int i = unused_pages.end;
    hwaddr next = unused_pages_range(i)->gpa;

    QEMU_LOCK_GUARD(&unused_pages.lock);
    while (i < unused_pages.ranges->len && room) {
        UnusedRange *u = unused_pages_range(i), rest = *u;
        unsigned long chunk = 1ul << u->rb->clear_bmap_shift;
        unsigned long last = QEMU_ALIGN_DOWN(u->first + room + chunk / 2,
                                             chunk);

        if (u->gpa < next || u->gpa - next > (hwaddr)room << TARGET_PAGE_BITS) {
            break;
        }
        i++;
        last = MAX(last, QEMU_ALIGN_UP(u->first + 1, chunk));
        if (last < u->last) {
            rest.first = u->last = last;
            rest.gpa += (hwaddr)(last - u->first) << TARGET_PAGE_BITS;
            /* This may move the array. */
            g_array_insert_val(unused_pages.ranges, i, rest);
            break;
        }
        room -= MIN(room, u->last - u->first);
        next = u->gpa + ((hwaddr)(u->last - u->first) << TARGET_PAGE_BITS);
    }
    unused_pages.ahead = i;
    unused_pages.size = 0;
    while (i-- > unused_pages.end) {
        UnusedRange *u = unused_pages_range(i);

        unused_pages.size += u->last - u->first;
    }
    unused_pages.arm = unused_pages.end;
    unused_pages.arm_page = unused_pages_range(unused_pages.arm)->first;
    trace_unused_pages_window(unused_pages_range(unused_pages.end)->gpa,
                              unused_pages_window_size(unused_pages.end,
                                                       unused_pages.ahead));
}

/*
 * With bitmap_mutex and in an RCU section: at least a chunk.  Where nothing is
 * dirty no answer changes anything.
 */
static void unused_pages_arm(int64_t deadline)
{
    do {
        UnusedRange *u = unused_pages_range(unused_pages.arm);
        unsigned long chunk = 1ul << u->rb->clear_bmap_shift;
        unsigned long page = unused_pages.arm_page;
        unsigned long next = QEMU_ALIGN_DOWN(page, chunk) + chunk;
        unsigned long last = MIN(next, u->last);

        if (find_next_bit(u->rb->bmap, last, page) < last) {
            migration_clear_memory_region_dirty_bitmap_range(u->rb, page, 1);
        }
        unused_pages.arm_page = next;
        if (next >= u->last) {
            if (++unused_pages.arm == unused_pages.ahead) {
                return;
            }
            unused_pages.arm_page =
                unused_pages_range(unused_pages.arm)->first;
        }
    } while (now_ms() < deadline);
}

/*
 * Has the window that is armed asked for, after the last one was folded.  With
 * bitmap_mutex and in an RCU section.
 */
static bool unused_pages_want(void)
{
    unsigned int i;

    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.state != UNUSED_PAGES_IDLE || unused_pages.exhausted) {
        return false;
    }
    unused_pages_free_window();
    unused_pages.begin = unused_pages.end;
    unused_pages.end = unused_pages.ahead;
    unused_pages.dirty = unused_pages.unused = 0;
    for (i = unused_pages.begin; i < unused_pages.end; i++) {
        UnusedRange *u = unused_pages_range(i);
        unsigned long used = u->rb->used_length >> TARGET_PAGE_BITS;

        u->bits = bitmap_new(u->last -
                             QEMU_ALIGN_DOWN(u->first, BITS_PER_LONG));
        if (migrate_postcopy_ram() && !u->rb->left_out) {
            u->rb->left_out = bitmap_new(u->rb->max_length >>
                                         TARGET_PAGE_BITS);
        }
        if (u->first < used) {
            unused_pages.dirty += bitmap_count_one_with_offset(
                u->rb->bmap, u->first, MIN(u->last, used) - u->first);
        }
    }
    unused_pages.round_dirty += unused_pages.dirty;
    unused_pages.since_ms = now_ms();
    /* Arm before ask: the lock orders the two */
    qatomic_set(&unused_pages.state, UNUSED_PAGES_WANTED);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), unused_pages_ask_bh, NULL);
    return true;
}

/* Returns how many bits of RAMBlock.bmap it cleared. */
static uint64_t unused_pages_fold_range(UnusedRange *u)
{
    unsigned long *left_out = u->rb->left_out;
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
        if (left_out) {
            left_out[BIT_WORD(page)] |= bit;
        }
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
        cleared += unused_pages_fold_range(unused_pages_range(i));
    }
    *dirty_pages -= cleared;
    unused_pages.unused += cleared;
    unused_pages.round_unused += cleared;
    stat64_add(&unused_pages_stats.left_out_bytes,
               cleared << TARGET_PAGE_BITS);
    stat64_add(&unused_pages.provider->unsent_bytes,
               cleared << TARGET_PAGE_BITS);
    trace_unused_pages_fold(cleared, *dirty_pages);
}

/*
 * Tells the destination, ahead of the pages, of what little is left to be sent
 * in ranges before @end, whose answers have ended.  With bitmap_mutex and in
 * an RCU section.
 */
static void unused_pages_tell(QEMUFile *f, unsigned int end)
{
    /* RDMA registers memory by the MiB; a file of mapped-ram has no records. */
    if (unused_pages.told >= end || migrate_rdma() || migrate_mapped_ram()) {
        return;
    }
    for (; unused_pages.told < end; unused_pages.told++) {
        UnusedRange *u = unused_pages_range(unused_pages.told);

        sparse_ram_save(f, u->rb, u->first, u->last);
    }
    /* Pages take other ways, which must not be shorter. */
    if (multifd_ram_sync_per_round() && multifd_ram_flush_and_sync(f) < 0) {
        qemu_file_set_error(f, -EIO);
    }
}

/*
 * Whether less than @limit bytes are dirty in ranges before @end, which were
 * asked for.  Bits that are clear there stay so, so look from the first range
 * on that had some.  With bitmap_mutex and in an RCU section.
 */
static bool unused_pages_fewer(uint64_t limit, unsigned int end)
{
    const unsigned long step = GiB >> TARGET_PAGE_BITS;
    unsigned long page = unused_pages.low_page;
    uint64_t dirty = 0;
    unsigned int i;

    for (i = unused_pages.low; i < end; i++) {
        UnusedRange *u = unused_pages_range(i);
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

/*
 * Whether the sender is about to come to the end of the windows that were
 * asked for, if as much is in use of one that was not answered yet as of the
 * one before.  With bitmap_mutex and in an RCU section.
 */
static bool unused_pages_running_low(bool answered)
{
    double second = migrate_get_current()->pages_per_second * TARGET_PAGE_SIZE;
    uint64_t limit = second > 0 ? MAX(second / AHEAD_PART, AHEAD_MIN) :
                                  AHEAD_UNKNOWN;
    uint64_t expected;

    if (answered) {
        return unused_pages_fewer(limit, unused_pages.end);
    }
    expected = unused_pages.dirty * TARGET_PAGE_SIZE * unused_pages.in_use;
    return expected < limit &&
           unused_pages_fewer(limit - expected, unused_pages.begin);
}

/* With bitmap_mutex and in an RCU section; @f, if there is a stream already */
static UnusedPagesStep unused_pages_step(QEMUFile *f, uint64_t *dirty_pages,
                                         int64_t deadline)
{
    UnusedPagesState state = qatomic_read(&unused_pages.state);
    bool answered = state == UNUSED_PAGES_IDLE;
    bool armed = false;

    if (state == UNUSED_PAGES_OFF || !unused_pages_ranges_good()) {
        return UNUSED_PAGES_NOTHING;
    }
    unused_pages_fold(dirty_pages);
    if (answered && unused_pages.end) {
        unused_pages.in_use = unused_pages.dirty ?
            1.0 - (double)unused_pages.unused / unused_pages.dirty : 0;
    }
    if (f) {
        unused_pages_tell(f, answered ? unused_pages.end : unused_pages.begin);
    }
    if (unused_pages_has_window() && unused_pages_running_low(answered)) {
        unused_pages_take(unused_pages_next_size());
    }
    if (unused_pages.end < unused_pages.ahead) {
        if (unused_pages.arm < unused_pages.ahead) {
            unused_pages_arm(deadline);
            armed = true;
        }
        if (unused_pages.arm == unused_pages.ahead && answered) {
            return unused_pages_want() ? UNUSED_PAGES_MORE :
                                         UNUSED_PAGES_NOTHING;
        }
    }
    return armed ? UNUSED_PAGES_MORE :
           answered ? UNUSED_PAGES_NOTHING : UNUSED_PAGES_WAIT;
}

/* The same by who has no lock, and sends nothing meanwhile */
static UnusedPagesStep unused_pages_step_unlocked(QemuMutex *bitmap_mutex,
                                                  uint64_t *dirty_pages)
{
    QEMU_LOCK_GUARD(bitmap_mutex);
    RCU_READ_LOCK_GUARD();

    return unused_pages_step(NULL, dirty_pages, 0);
}

/* The guest is to run elsewhere as soon as may be */
static bool unused_pages_urgent(void)
{
    return qatomic_read(&migrate_get_current()->start_postcopy);
}

static bool unused_pages_cancelled(void)
{
    return qatomic_read(&migrate_get_current()->state) !=
           MIGRATION_STATUS_ACTIVE;
}

/*
 * Waits for the end of an answer, with no other lock, and in steps: a
 * migration that is cancelled signals nothing.  False if it takes too long.
 */
static bool unused_pages_wait(void)
{
    int64_t left;

    QEMU_LOCK_GUARD(&unused_pages.lock);
    if (unused_pages.state < UNUSED_PAGES_WANTED) {
        return true;
    }
    left = unused_pages.since_ms + unused_pages.left_ms - now_ms();
    if (left > 0) {
        qemu_cond_timedwait(&unused_pages.answered, &unused_pages.lock,
                            MIN(left, 10));
        return true;
    }
    /* Or else the main loop is late, not the guest. */
    if (unused_pages.state == UNUSED_PAGES_ASKED) {
        trace_unused_pages_timeout();
        stat64_add(&unused_pages_stats.timeouts, 1);
        if (unused_pages.provider) {
            stat64_add(&unused_pages.provider->timeouts, 1);
        }
    }
    return false;
}

/* Under the BQL */
static UnusedPagesReady unused_pages_try_begin(bool again)
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
    if (again) {
        unused_pages_drop_clean();
    }
    if (!unused_pages.ranges->len) {
        return UNUSED_PAGES_NO_RAM;
    }
    qatomic_set(&unused_pages.asked, true);
    unused_pages.exhausted = false;
    unused_pages.begin = unused_pages.end = unused_pages.ahead = 0;
    unused_pages.told = unused_pages.low = unused_pages.low_page = 0;
    unused_pages.in_use = 1;
    unused_pages.round_dirty = unused_pages.round_unused = 0;
    unused_pages.answers_ms = unused_pages.answers = 0;
    qatomic_set(&unused_pages.state, UNUSED_PAGES_IDLE);
    return UNUSED_PAGES_READY;
}

/* Whether this kind of migration may leave pages out */
static UnusedPagesReady unused_pages_may(void)
{
    /* It is of the memory as it was. */
    if (migrate_background_snapshot()) {
        return UNUSED_PAGES_SNAPSHOT;
    }
    /* The secondary runs on what it has. */
    if (migrate_colo()) {
        return UNUSED_PAGES_COLO;
    }
    /* What the destination's memory holds is for the destination to know. */
    return migrate_sparse_ram() ? UNUSED_PAGES_READY :
                                  UNUSED_PAGES_NO_CAPABILITY;
}

static UnusedPagesReady unused_pages_begin(void)
{
    int64_t start = now_ms();
    UnusedPagesReady ready = unused_pages_may();

    if (ready != UNUSED_PAGES_READY) {
        return ready;
    }

    for (;;) {
        bql_lock();
        ready = unused_pages_try_begin(false);
        bql_unlock();
        unused_pages.left_ms = start + WAIT_MS - now_ms();
        /* An answer to whoever asked before, most likely to a migration */
        if ((ready != UNUSED_PAGES_BUSY && ready != UNUSED_PAGES_LATE_BUFFER) ||
            unused_pages.left_ms <= 0) {
            return ready;
        }
        if (unused_pages_cancelled()) {
            return UNUSED_PAGES_CANCELLED;
        }
        g_usleep(READY_MS * 1000);
    }
}

static void unused_pages_stats_reset(bool tried)
{
    stat64_set(&unused_pages_stats.left_out_bytes, 0);
    stat64_set(&unused_pages_stats.timeouts, 0);
    qatomic_set(&unused_pages_stats.ready, UNUSED_PAGES_READY);
    qatomic_set(&unused_pages_stats.tried, tried);
}

UnusedPagesStats *unused_pages_query(void)
{
    UnusedPagesReady ready = qatomic_read(&unused_pages_stats.ready);
    UnusedPagesStats *stats;

    QEMU_BUILD_BUG_ON((int)UNUSED_PAGES_READY != UNUSED_PAGES_REASON__MAX);
    if (!qatomic_read(&unused_pages_stats.tried)) {
        return NULL;
    }
    stats = g_new0(UnusedPagesStats, 1);
    stats->left_out = stat64_get(&unused_pages_stats.left_out_bytes);
    stats->timeouts = stat64_get(&unused_pages_stats.timeouts);
    stats->reclaimed = stat64_get(&unused_pages_stats.reclaimed_bytes);
    stats->has_not_asked = ready != UNUSED_PAGES_READY;
    /* They are in the same order */
    stats->not_asked = stats->has_not_asked ? (UnusedPagesReason)ready : 0;
    return stats;
}

void unused_pages_prepare(void)
{
    UnusedPagesProvider *p;
    uint64_t bytes = 0;
    bool more;

    stat64_set(&unused_pages_stats.reclaimed_bytes, 0);
    /* Where nothing will be left out there is no use in that */
    if (!unused_pages.provider || unused_pages_may() != UNUSED_PAGES_READY) {
        return;
    }
    bql_lock();
    p = unused_pages.provider;
    more = p && runstate_is_running() && p->prepare(p);
    bql_unlock();
    while (more) {
        g_usleep(READY_MS * 1000);
        bql_lock();
        /* The device may have been unplugged */
        more = unused_pages.provider == p &&
               p->preparing(p, unused_pages_cancelled() ||
                               unused_pages_urgent(), &bytes);
        bql_unlock();
        stat64_set(&unused_pages_stats.reclaimed_bytes, bytes);
    }
}

bool unused_pages_ask(QemuMutex *bitmap_mutex, uint64_t *dirty_pages)
{
    UnusedPagesReady ready;
    UnusedPagesStep step;

    unused_pages_stats_reset(unused_pages.provider);
    if (!unused_pages.provider) {
        return false;
    }
    ready = unused_pages_begin();
    if (ready == UNUSED_PAGES_READY) {
        unused_pages.chances = AGAIN_CHANCES;
        do {
            if (unused_pages_cancelled()) {
                break;
            }
            step = unused_pages_step_unlocked(bitmap_mutex, dirty_pages);
        } while (!unused_pages_urgent() &&
                 (step == UNUSED_PAGES_MORE ||
                  (step == UNUSED_PAGES_WAIT && unused_pages_wait())));
        if (!unused_pages.end && unused_pages_cancelled()) {
            ready = UNUSED_PAGES_CANCELLED;
        }
    }
    if (ready != UNUSED_PAGES_READY) {
        QEMU_LOCK_GUARD(&unused_pages.lock);
        unused_pages_not_asked(ready);
    }
    return true;
}

void unused_pages_ask_again(uint64_t dirty_pages)
{
    double bytes_per_ms = migrate_get_current()->mbps * 125;
    double round_ms = (dirty_pages << TARGET_PAGE_BITS) / bytes_per_ms;

    if (!unused_pages.ranges || unused_pages_urgent() || bytes_per_ms <= 0 ||
        round_ms < MAX(AGAIN_MS, AGAIN_TIMES * unused_pages.answers_ms)) {
        return;
    }
    if (!unused_pages.chances && ++unused_pages.passed < AGAIN_EACH) {
        return;
    }
    unused_pages.passed = 0;
    if (unused_pages_try_begin(true) == UNUSED_PAGES_READY) {
        /* Where little is dirty there may be much already. */
        unused_pages.told = UINT_MAX;
    }
}

void unused_pages_try_last(QemuMutex *bitmap_mutex, uint64_t *dirty_pages)
{
    uint64_t limit = migrate_get_current()->threshold_size >> TARGET_PAGE_BITS;
    int64_t deadline = now_ms() + LAST_MS;
    UnusedPagesStep step = UNUSED_PAGES_MORE;

    if (qatomic_read(&unused_pages.state) == UNUSED_PAGES_OFF || !limit ||
        *dirty_pages * unused_pages.round_in_use > LAST_TIMES * limit) {
        return;
    }
    while (*dirty_pages >= limit && step != UNUSED_PAGES_NOTHING &&
           now_ms() < deadline && !unused_pages_cancelled()) {
        if (step == UNUSED_PAGES_WAIT) {
            g_usleep(1000);
        }
        step = unused_pages_step_unlocked(bitmap_mutex, dirty_pages);
    }
}

void unused_pages_iterate(QEMUFile *f, uint64_t *dirty_pages)
{
    if (qatomic_read(&unused_pages.state) != UNUSED_PAGES_OFF) {
        unused_pages_step(f, dirty_pages, now_ms() + ARM_MS);
    }
}

void unused_pages_written(RAMBlock *rb)
{
    if (rb->left_out) {
        bitmap_andnot(rb->left_out, rb->left_out, rb->bmap,
                      rb->used_length >> TARGET_PAGE_BITS);
    }
}

uint64_t unused_pages_put_back(RAMBlock *rb)
{
    unsigned long pages = rb->used_length >> TARGET_PAGE_BITS;

    if (!rb->left_out) {
        return 0;
    }
    bitmap_or(rb->bmap, rb->bmap, rb->left_out, pages);
    /* No bit is set in both: they were synchronised */
    return bitmap_count_one(rb->left_out, pages);
}

bool unused_pages_left_out(RAMBlock *rb, unsigned long page)
{
    return rb->left_out && test_bit(page, rb->left_out);
}

bool unused_pages_asked(void)
{
    return qatomic_read(&unused_pages.asked);
}
