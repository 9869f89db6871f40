// SPDX-License-Identifier: GPL-2.0
/*
 * What a host may want of a guest's free memory: to have what is behind it for a
 * moment, and that there is more of it, or larger blocks.
 * Documentation/mm/unused_pages.rst says what that is good for.
 */
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/memcontrol.h>
#include <linux/memory_hotplug.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/sched.h>
#include <linux/swap.h>
#include <linux/unused_pages.h>

#include "internal.h"

/* Blocks that one hold of a zone's lock, with interrupts off, puts back. */
#define SPARE_BATCH	256

static struct zone *spare_zone(struct page *page)
{
	/* Who holds the page may change its flags, but it stays where it is. */
	return data_race(page_zone(page));
}

/* Take a free block out of the free lists, unless the zone is short of memory. */
static bool spare_take_block(struct zone *zone, struct page *page, unsigned int order)
{
	return zone_watermark_ok(zone, 0, low_wmark_pages(zone) + (1UL << order), 0, 0) &&
	       !is_migrate_isolate_page(page) && __isolate_free_page(page, order);
}

/* Look at pages, and take some, in one hold of a zone's lock. Returns how many it took. */
static unsigned long spare_take_slice(struct list_head *pages, unsigned long *pfn,
				      unsigned long end_pfn, unsigned long nr_pages)
{
	unsigned long from = *pfn, taken = 0, flags;
	unsigned long stop = min(end_pfn, round_down(from, UNUSED_PAGES_SLICE) +
					  UNUSED_PAGES_SLICE);
	struct page *page = pfn_to_online_page(from);
	unsigned int order;
	struct zone *zone;

	if (!page) {
		*pfn = min(stop, ALIGN(from + 1, pageblock_nr_pages));
		return 0;
	}

	zone = spare_zone(page);
	spin_lock_irqsave(&zone->lock, flags);
	while (from < stop && taken < nr_pages) {
		/* Memory ends at the edges of pageblocks only. */
		if (IS_ALIGNED(from, pageblock_nr_pages) && !pfn_to_online_page(from))
			break;
		page = pfn_to_page(from);
		if (spare_zone(page) != zone)
			break;

		if (PageBuddy(page)) {
			order = buddy_order(page);
			if (spare_take_block(zone, page, order)) {
				set_page_private(page, order);
				list_add_tail(&page->lru, pages);
				taken += 1UL << order;
			}
		} else {
			/* Nobody holds it, so this may be wrong: then pages are missed. */
			order = data_race(PageHead(page) ? compound_order(page) : 0);
			if (order > MAX_PAGE_ORDER || !IS_ALIGNED(from, 1UL << order))
				order = 0;
		}
		from += 1UL << order;
	}
	spin_unlock_irqrestore(&zone->lock, flags);

	*pfn = from;
	return taken;
}

/**
 * take_unused_pages() - take free pages of a range from everybody
 * @pages: list to append them to, as blocks of 1 << page_private() pages, in the
 *	order of their addresses
 * @pfn: first page frame to look at; moved to where the next call is to go on
 * @end_pfn: page frame to end before; the last block may reach beyond
 * @nr_pages: to stop at when so many were taken, which may be exceeded by a block
 *
 * They are not allocated, and must not be written to: nobody but the host, which may
 * have what is behind them, and give it back empty. They are to be put back soon,
 * by put_unused_pages(). A zone is not taken below its low watermark. Of a block
 * that begins before @pfn nothing is taken. Pages of the per-CPU lists are missed:
 * see drain_unused_pages().
 *
 * Context: Process context. May sleep. zone->lock is held for at most 1024 pages at
 * a time. Takes get_online_mems(), as get_unused_pages() does.
 * Return: 0 when the range is done, 1 when there is more of it, or -EOPNOTSUPP.
 */
int take_unused_pages(struct list_head *pages, unsigned long *pfn, unsigned long end_pfn,
		      unsigned long nr_pages)
{
	unsigned long taken = 0;

	end_pfn = min(end_pfn, READ_ONCE(max_pfn));
	while (*pfn < end_pfn && taken < nr_pages) {
		get_online_mems();
		taken += spare_take_slice(pages, pfn, end_pfn, nr_pages - taken);
		put_online_mems();
		cond_resched();
	}
	return *pfn < end_pfn;
}
EXPORT_SYMBOL_GPL(take_unused_pages);

/**
 * put_unused_pages() - put back what take_unused_pages() took
 * @pages: list of blocks; empty afterwards
 *
 * They come to the ends of the free lists, so that others are used first: behind
 * these there may be nothing now.
 *
 * Context: Process context. May sleep between two holds of zone->lock.
 */
void put_unused_pages(struct list_head *pages)
{
	while (!list_empty(pages)) {
		struct zone *zone = page_zone(list_first_entry(pages, struct page, lru));
		struct page *page, *next;
		unsigned int nr = 0;
		unsigned long flags;

		spin_lock_irqsave(&zone->lock, flags);
		list_for_each_entry_safe(page, next, pages, lru) {
			unsigned int order = page_private(page);

			if (page_zone(page) != zone || nr++ == SPARE_BATCH)
				break;
			list_del(&page->lru);
			set_page_private(page, 0);
			__putback_isolated_page(page, order, get_pageblock_migratetype(page));
		}
		spin_unlock_irqrestore(&zone->lock, flags);
		cond_resched();
	}
}
EXPORT_SYMBOL_GPL(put_unused_pages);

/**
 * reclaim_unused_pages() - make some memory free that somebody may need again
 * @nr_pages: pages to be reclaimed, more or less
 * @may_swap: memory may be swapped
 *
 * Page cache and slab, and what may be swapped, whoever they are of: what somebody
 * does who writes to memory.reclaim of the root cgroup.
 *
 * Context: Process context. May sleep; the caller must not hold a lock that
 * reclaim takes.
 * Return: the number of pages reclaimed, or -EOPNOTSUPP.
 */
long reclaim_unused_pages(unsigned long nr_pages, bool may_swap)
{
#ifdef CONFIG_MEMCG
	return try_to_free_mem_cgroup_pages(root_mem_cgroup, nr_pages, GFP_KERNEL,
					    MEMCG_RECLAIM_PROACTIVE |
					    (may_swap ? MEMCG_RECLAIM_MAY_SWAP : 0), NULL);
#else
	return -EOPNOTSUPP;
#endif
}
EXPORT_SYMBOL_GPL(reclaim_unused_pages);

/**
 * compact_unused_pages() - make large blocks of what is free
 *
 * What somebody does who writes to /proc/sys/vm/compact_memory.
 *
 * Context: Process context. May sleep, for as long as it takes to look at all of
 * memory and to move most of it.
 * Return: how many pages then are in free blocks of a pageblock or more, or
 * -EOPNOTSUPP.
 */
long compact_unused_pages(void)
{
#ifdef CONFIG_COMPACTION
	unsigned long nr = 0;
	struct zone *zone;
	unsigned int o;

	compact_nodes();
	for_each_populated_zone(zone) {
		for (o = pageblock_order; o < NR_PAGE_ORDERS; o++)
			nr += READ_ONCE(zone->free_area[o].nr_free) << o;
	}
	return nr;
#else
	return -EOPNOTSUPP;
#endif
}
EXPORT_SYMBOL_GPL(compact_unused_pages);
