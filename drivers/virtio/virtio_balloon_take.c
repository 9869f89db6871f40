// SPDX-License-Identifier: GPL-2.0
/*
 * Take memory for a virtio balloon: the blocks that the guest misses least, and
 * no faster than the guest can do without them.
 */
#include <linux/balloon_compaction.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/kcsan-checks.h>
#include <linux/list.h>
#include <linux/log2.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/nodemask.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/vmstat.h>

#include <kunit/visibility.h>

#include "virtio_balloon_take.h"

/*
 * What is gathered before the host hears of it: so many bytes at the most, for
 * they are nobody's use meanwhile, and what can be had within so many jiffies, for
 * the target may change, and the device go. Out of tree it may be less.
 */
#ifndef BALLOON_TAKE_SIZE
#define BALLOON_TAKE_SIZE	(8ULL * SZ_1G)
#endif
#define BALLOON_TAKE_TIME	(HZ / 4)
/* Blocks from one look at free memory to the next: others may need it meanwhile. */
#define BALLOON_TAKE_BATCH	4096

/*
 * Of a zone the guest keeps what is below the high watermark, yet at least so
 * much above the minimum, from where on its allocations wait for reclaim, and no
 * more than so much above the low watermark, however high somebody sets those;
 * and what its CPUs may take from there into their lists.
 */
#define BALLOON_KEEP_LEAST	(SZ_4M >> PAGE_SHIFT)
#define BALLOON_KEEP_MOST	(SZ_8M >> PAGE_SHIFT)

/* How long one call waits for reclaim; then the target is looked at again. */
#define BALLOON_TAKE_ROUND	msecs_to_jiffies(10)
/* When nothing was had for so long, though something was reclaimed, it is given up. */
#define BALLOON_TAKE_PATIENCE	(HZ / 10)
/* From one attempt in vain to the next; it doubles from one to the other. */
#define BALLOON_TAKE_PAUSE_MIN	(HZ / 50)
#define BALLOON_TAKE_PAUSE_MAX	HZ

/**
 * struct balloon_view - free memory at a moment
 * @above: pages above the low watermarks, in all zones that a balloon may use
 * @keep: how many of these the guest keeps, if there are so many
 * @pressed: nothing is above, and others have used half of what is below and
 *	above the minimum watermarks
 * @nr_free: free blocks of each order in zones with pages above; larger ones
 *	are counted as several of the last order
 */
struct balloon_view {
	size_t above;
	size_t keep;
	bool pressed;
	unsigned long nr_free[BALLOON_TAKE_ORDERS];
};

/**
 * balloon_take_granule() - the host's granule, as the order of a block
 * @shift: binary logarithm of the granule in bytes, as the device has it
 *
 * Return: an order from which on aligned blocks are whole granules, or the
 * largest order that there is; 0 for what is not larger than a page, or is no
 * size, as where the device has no such field.
 */
unsigned int balloon_take_granule(u32 shift)
{
	if (shift <= PAGE_SHIFT || shift > 63)
		return 0;
	return min_t(u32, shift - PAGE_SHIFT, BALLOON_PAGE_LIST_ORDER);
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_granule);

/**
 * balloon_take_init() - prepare at probe
 * @take: where the balloon's pages come from
 * @vdev: the device, with its features settled
 * @piece: number of pages that go into the balloon at once, a power of two, and
 *	no less than a block has
 */
void balloon_take_init(struct balloon_take *take, struct virtio_device *vdev, size_t piece)
{
	u32 shift = 0;

	virtio_cread_le_feature(vdev, VIRTIO_BALLOON_F_PAGE_BITMAP, struct virtio_balloon_config,
				page_bitmap_granule_shift, &shift);
	take->vdev = vdev;
	take->piece = piece;
	take->granule = balloon_take_granule(shift);
}

/*
 * Blocks of the orders from @from to below @to, best fit: the smallest first,
 * and whole ones, as far as they are not more than wanted. Then, if there is a
 * larger one, a part of that. Returns how many pages are still wanted.
 */
static size_t balloon_take_fit(const unsigned long *nr_free, unsigned long *plan,
			       unsigned int from, unsigned int to, bool *larger, size_t left)
{
	unsigned int o;

	for (o = from; o < to; o++) {
		plan[o] = min_t(size_t, nr_free[o], left >> o);
		left -= plan[o] << o;
		*larger |= nr_free[o] > plan[o];
	}
	/* In blocks that make it up: what is split is there to be split again. */
	for (o = to; *larger && o-- > from;) {
		if (left >> o) {
			plan[o]++;
			left -= 1UL << o;
		}
	}
	return left;
}

/**
 * balloon_take_plan() - how many blocks of each order are to be taken
 * @nr_free: number of free blocks of each order
 * @nr_pages: number of pages wanted
 * @granule: order from which on a block is worth something to the host
 * @plan: number of blocks of each order: to be taken from @granule on upwards,
 *	then from 0 on up to it
 *
 * Both arrays have BALLOON_TAKE_ORDERS entries.
 *
 * Return: the number of pages that this is, @nr_pages or all free ones.
 */
size_t balloon_take_plan(const unsigned long *nr_free, size_t nr_pages, unsigned int granule,
			 unsigned long *plan)
{
	bool larger = false;
	size_t left;

	left = balloon_take_fit(nr_free, plan, granule, BALLOON_TAKE_ORDERS, &larger, nr_pages);
	left = balloon_take_fit(nr_free, plan, 0, granule, &larger, left);
	return nr_pages - left;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_plan);

/*
 * How many pages CPUs may yet take from a zone into their lists, each at once,
 * when single pages are allocated. What is there is free for that CPU, but does
 * not count as free: it makes others wait for reclaim, and kill in vain.
 */
static unsigned long balloon_zone_pcp_room(struct zone *zone)
{
	unsigned long room = 0;
	int cpu;

	for_each_online_cpu(cpu) {
		struct per_cpu_pages *pcp = per_cpu_ptr(zone->per_cpu_pageset, cpu);
		int most = min(READ_ONCE(pcp->high_min),
			       READ_ONCE(pcp->batch) << CONFIG_PCP_BATCH_SCALE_MAX);

		room += max(most - READ_ONCE(pcp->count), 0);
	}
	return room;
}

/* Add a zone to the view. */
static void balloon_view_zone(struct balloon_view *view, struct zone *zone,
			      enum zone_type highest, unsigned int max_order)
{
	unsigned long reserve = READ_ONCE(zone->lowmem_reserve[highest]);
	unsigned long min = reserve + min_wmark_pages(zone);
	unsigned long low = reserve + low_wmark_pages(zone);
	unsigned long high = reserve + high_wmark_pages(zone);
	unsigned long free = zone_page_state_snapshot(zone, NR_FREE_PAGES);
	/* Not everybody can use these. */
	unsigned long special = zone_page_state(zone, NR_FREE_CMA_PAGES) +
				READ_ONCE(zone->nr_free_highatomic);
	unsigned int o;

	/* All of it is reserved for those who can use no other zone. */
	if (reserve >= zone->present_pages)
		return;

	free -= min(free, special);
	high = max(high, min + min(BALLOON_KEEP_LEAST, zone->present_pages / 64));
	view->keep += min(high - low, BALLOON_KEEP_MOST) + balloon_zone_pcp_room(zone);
	if (free > (min + low) / 2)
		view->pressed = false;
	if (free <= low)
		return;
	view->above += free - low;
	for (o = 0; o < NR_PAGE_ORDERS; o++) {
		unsigned long nr = READ_ONCE(zone->free_area[o].nr_free);

		if (o <= max_order)
			view->nr_free[o] += nr;
		else
			view->nr_free[max_order] += nr << (o - max_order);
	}
}

/* Look at free memory; blocks of an order above @max_order are seen as parts. */
static void balloon_take_look(struct balloon_view *view, unsigned int max_order)
{
	enum zone_type highest = gfp_zone(balloon_mapping_gfp_mask()), z;
	int nid;

	memset(view, 0, sizeof(*view));
	view->pressed = true;
	/* What is read here changes meanwhile: a view is no more than that. */
	kcsan_disable_current();
	for_each_online_node(nid) {
		for (z = 0; z <= highest; z++) {
			struct zone *zone = &NODE_DATA(nid)->node_zones[z];

			if (populated_zone(zone))
				balloon_view_zone(view, zone, highest, max_order);
		}
	}
	kcsan_enable_current();
}

/* Take a batch of what the plan for so many pages says. Returns how many were had. */
static size_t balloon_take_planned(const struct balloon_take *take, struct list_head *pages,
				   const struct balloon_view *view, size_t nr_pages)
{
	unsigned long plan[BALLOON_TAKE_ORDERS];
	size_t left = BALLOON_TAKE_BATCH, got = 0;
	unsigned int i;

	balloon_take_plan(view->nr_free, nr_pages, take->granule, plan);
	for (i = 0; i < BALLOON_TAKE_ORDERS; i++) {
		unsigned int order = (take->granule + i) % BALLOON_TAKE_ORDERS;
		size_t nr = balloon_page_list_alloc(pages, order, min(plan[order], left));

		left -= nr;
		got += nr << order;
	}
	return got;
}

/* Take free pages, but for those that the guest keeps. *@pressed is of the last look. */
static size_t balloon_take_free(const struct balloon_take *take, struct list_head *pages,
				size_t nr_pages, bool *pressed)
{
	unsigned long end = jiffies + BALLOON_TAKE_TIME;
	unsigned int max_order = BALLOON_PAGE_LIST_ORDER;
	struct balloon_view view;
	size_t got = 0;

	*pressed = false;
	nr_pages = min_t(u64, nr_pages, BALLOON_TAKE_SIZE >> PAGE_SHIFT);
	while (got < nr_pages && time_before(jiffies, end)) {
		size_t nr;

		balloon_take_look(&view, max_order);
		*pressed = view.pressed;
		if (view.above <= view.keep)
			break;
		nr = balloon_take_planned(take, pages, &view,
					  min(nr_pages - got, view.above - view.keep));
		got += nr;
		/* A block may be there, but fit above the watermark of no zone. */
		if (!nr && !max_order--)
			break;
	}
	return got;
}

/*
 * For a while, reclaim and take what that frees. *@dry is set when there is
 * nothing that could be reclaimed, *@pressed when others are short of memory.
 */
static size_t balloon_take_reclaimed(const struct balloon_take *take, struct list_head *pages,
				     size_t nr_pages, bool *dry, bool *pressed)
{
	unsigned long end = jiffies + BALLOON_TAKE_ROUND;
	size_t got = 0, nr;

	do {
		*dry = !balloon_page_reclaim();
		nr = balloon_take_free(take, pages, nr_pages - got, pressed);
		got += nr;
		*dry &= !nr;
	} while (got < nr_pages && !*dry && !*pressed && time_before(jiffies, end));
	return got;
}

/**
 * balloon_take_aim() - what the host wants
 * @take: where the balloon's pages come from
 * @target: the size that the balloon is to have, in any unit
 */
void balloon_take_aim(struct balloon_take *take, u64 target)
{
	if (target != take->target)
		take->told = false;
	take->target = target;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_aim);

/**
 * balloon_take_complain() - say that the target is out of reach
 * @take: where the balloon's pages come from
 * @nr_pages: number of pages that are missing
 *
 * Says so once, until the host wants something else.
 */
void balloon_take_complain(struct balloon_take *take, size_t nr_pages)
{
	if (!take->told)
		dev_info_ratelimited(&take->vdev->dev,
				     "Out of puff! Can't get %zu pages; trying on\n",
				     nr_pages);
	take->told = true;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_complain);

/* Leave the guest in peace for a moment, longer each time that nothing comes. */
static void balloon_take_give_up(struct balloon_take *take, size_t nr_pages)
{
	take->waiting = false;
	take->pause = clamp(2 * take->pause, BALLOON_TAKE_PAUSE_MIN, BALLOON_TAKE_PAUSE_MAX);
	if (take->pause == BALLOON_TAKE_PAUSE_MAX)
		balloon_take_complain(take, nr_pages);
}

/* Have memory reclaimed, once more or for the first time. */
static size_t balloon_take_wait(struct balloon_take *take, struct list_head *pages,
				size_t nr_pages)
{
	bool dry, pressed;
	size_t got;

	if (!take->waiting)
		take->since = jiffies;
	take->waiting = true;

	got = balloon_take_reclaimed(take, pages, nr_pages, &dry, &pressed);
	if (got) {
		take->since = jiffies;
		take->pause = 0;
	}
	if (pressed || dry || time_after(jiffies, take->since + BALLOON_TAKE_PATIENCE))
		balloon_take_give_up(take, nr_pages);
	return got;
}

/**
 * balloon_take_sort() - bring together what lies together
 * @pages: list of blocks, none of which is larger than a range
 * @range: number of pages, a power of two
 *
 * Sorts by aligned ranges of so many page frames. Within a range the order stays.
 */
void balloon_take_sort(struct list_head *pages, size_t range)
{
	unsigned int shift = ilog2(range), i;
	bool more;

	do {
		struct list_head digits[16];
		struct page *page, *next;

		for (i = 0; i < ARRAY_SIZE(digits); i++)
			INIT_LIST_HEAD(&digits[i]);
		more = false;
		list_for_each_entry_safe(page, next, pages, lru) {
			unsigned long key = page_to_pfn(page) >> shift;

			list_move_tail(&page->lru, &digits[key % ARRAY_SIZE(digits)]);
			more |= key >= ARRAY_SIZE(digits);
		}
		for (i = 0; i < ARRAY_SIZE(digits); i++)
			list_splice_tail(&digits[i], pages);
		shift += ilog2(ARRAY_SIZE(digits));
		cond_resched();
	} while (more);
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_sort);

/**
 * balloon_take_pages() - take pages for the balloon
 * @take: where they come from
 * @pages: list to append them to, in blocks
 * @nr_pages: number of pages wanted
 *
 * What is free, and not the guest's to keep, is taken at once; then what
 * reclaim brings within some milliseconds. The caller puts all of it into the
 * balloon, in pieces of balloon_take_cut(), and asks again for more after
 * balloon_take_pause().
 *
 * Context: Process context. May sleep, and reclaim: the caller must not hold a
 * lock that an OOM notifier or reclaim takes.
 * Return: the number of pages taken; 0 when there are none at the moment.
 */
size_t balloon_take_pages(struct balloon_take *take, struct list_head *pages, size_t nr_pages)
{
	bool pressed;
	size_t got = 0;

	if (!take->waiting)
		got = balloon_take_free(take, pages, nr_pages, &pressed);
	if (got)
		take->pause = 0;
	else
		got = balloon_take_wait(take, pages, nr_pages);
	if (got == nr_pages)
		balloon_take_end(take);
	if (got > take->piece)
		balloon_take_sort(pages, take->piece);
	return got;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_pages);

/**
 * balloon_take_cut() - take a piece off a list of balloon_take_pages()
 * @take: where the pages come from
 * @pages: list of blocks
 * @piece: where to put the piece, an empty list
 *
 * Pages that lie together stay together, as far as that makes no piece too large.
 *
 * Return: the number of pages of the piece; 0 when the list is empty.
 */
size_t balloon_take_cut(const struct balloon_take *take, struct list_head *pages,
			struct list_head *piece)
{
	struct list_head *end = pages;	/* the last block of the piece */
	unsigned long range = 0;
	size_t total = 0, nr = 0;
	struct page *page;

	list_for_each_entry(page, pages, lru) {
		unsigned long here = page_to_pfn(page) / take->piece;

		if (here != range) {
			end = page->lru.prev;
			nr = total;
			range = here;
		}
		total += 1UL << page_private(page);
		if (total > take->piece)
			break;
	}
	if (total <= take->piece) {
		end = pages->prev;
		nr = total;
	}
	list_cut_position(piece, pages, end);
	return nr;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_cut);

/**
 * balloon_take_pause() - how long to wait before more pages are taken
 * @take: where they come from
 *
 * Return: jiffies; 0 to go on at once.
 */
unsigned long balloon_take_pause(const struct balloon_take *take)
{
	return take->waiting ? 0 : take->pause;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_pause);

/**
 * balloon_take_end() - nothing more is wanted, for now
 * @take: where the balloon's pages came from
 */
void balloon_take_end(struct balloon_take *take)
{
	take->waiting = false;
	take->pause = 0;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_take_end);
