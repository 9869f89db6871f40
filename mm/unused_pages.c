// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages does this machine not use?
 *
 * For a host that wants to know what it need not look at. Nothing is
 * allocated or held: an answer says what was true when a page was looked at.
 * Documentation/mm/unused_pages.rst says what that is good for.
 */
#include <linux/bitmap.h>
#include <linux/export.h>
#include <linux/find.h>
#include <linux/gfp.h>
#include <linux/memblock.h>
#include <linux/memory_hotplug.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/page_bitmap.h>
#include <linux/sched.h>
#include <linux/unused_pages.h>

#include <kunit/visibility.h>

#include "internal.h"

static struct zone *unused_pages_zone(struct page *page)
{
	/* Whoever holds a page may change its flags, but not where it lies. */
	return data_race(page_zone(page));
}

/*
 * A free block that a slice begins in the middle of. Slices begin at multiples
 * of their size but for the first of a range, so that the block is either one
 * of a larger order or lies around the beginning of the range.
 */
static unsigned long unused_pages_around(struct zone *zone, unsigned long pfn)
{
	unsigned int order;

	for (order = 1; order <= MAX_PAGE_ORDER; order++) {
		unsigned long head = round_down(pfn, 1UL << order);
		struct page *page;

		if (head == pfn)
			continue;
		page = pfn_to_online_page(head);
		/* The lock that is held keeps no page of another zone as it is. */
		if (page && unused_pages_zone(page) == zone && PageBuddy(page) &&
		    buddy_order(page) >= order)
			return head + (1UL << buddy_order(page)) - pfn;
	}
	return 0;
}

/**
 * unused_pages_slice() - look at pages in one hold of a zone's lock
 * @pfn: first page frame
 * @end_pfn: page frame to end before
 * @bits: bitmap of UNUSED_PAGES_SLICE bits, all zero; those of unused pages
 *	are set, bit 0 is @pfn
 * @visited: where to store how many struct pages were looked at, at most 1024;
 *	of those before @pfn no more are than there are orders
 *
 * Ends early where the zone or memory does.
 *
 * Context: Process context within get_online_mems(). Takes zone->lock with
 * interrupts off.
 * Return: the page frame to go on from.
 */
VISIBLE_IF_KUNIT unsigned long unused_pages_slice(unsigned long pfn, unsigned long end_pfn,
						  unsigned long *bits, unsigned int *visited)
{
	unsigned long stop = min(end_pfn, round_down(pfn, UNUSED_PAGES_SLICE) +
					  UNUSED_PAGES_SLICE);
	struct page *page = pfn_to_online_page(pfn);
	unsigned long first = pfn, flags, nr;
	unsigned int seen = 0, order;
	struct zone *zone;

	*visited = 0;
	if (!page)
		return min(stop, ALIGN(pfn + 1, pageblock_nr_pages));

	zone = unused_pages_zone(page);
	spin_lock_irqsave(&zone->lock, flags);
	nr = unused_pages_around(zone, pfn);
	while (pfn < stop) {
		/* Memory ends at the edges of pageblocks only. */
		if (IS_ALIGNED(pfn, pageblock_nr_pages) && !pfn_to_online_page(pfn))
			break;
		page = pfn_to_page(pfn);
		if (unused_pages_zone(page) != zone)
			break;

		seen++;
		if (!nr && PageBuddy(page))
			nr = 1UL << buddy_order(page);
		/* Of a balloon, or of something else that has no content. */
		else if (!nr && PageOffline(page))
			nr = 1;
		if (nr) {
			nr = min(nr, stop - pfn);
			bitmap_set(bits, pfn - first, nr);
			pfn += nr;
			nr = 0;
			continue;
		}

		/*
		 * Nobody holds it, so this may be wrong: then pages are missed.
		 * It must not lead into a pageblock that nobody looked up, though.
		 */
		order = data_race(PageHead(page) ? compound_order(page) : 0);
		if (order > MAX_PAGE_ORDER || !IS_ALIGNED(pfn, 1UL << order))
			order = 0;
		pfn += 1UL << order;
	}
	spin_unlock_irqrestore(&zone->lock, flags);

	*visited = seen;
	return min(pfn, end_pfn);
}
EXPORT_SYMBOL_IF_KUNIT(unused_pages_slice);

/**
 * drain_unused_pages() - have get_unused_pages() see what is on the lists of CPUs
 * @pfn: first page frame that it is to look at
 * @end_pfn: page frame to end before
 *
 * Gives these pages to the free lists, unless somebody is about that already. Once
 * is enough for all calls for a range: CPUs fill their lists again at once.
 *
 * Context: Process context. May sleep.
 */
void drain_unused_pages(unsigned long pfn, unsigned long end_pfn)
{
	if (pfn < min(end_pfn, READ_ONCE(max_pfn)))
		drain_all_pages(NULL);
}
EXPORT_SYMBOL_GPL(drain_unused_pages);

/**
 * get_unused_pages() - find the pages of a range that are not in use
 * @pb: bitmap to add them to
 * @pfn: first page frame to look at; moved to where the next call is to go on
 * @end_pfn: page frame to end before; what lies beyond all memory is not
 *	looked at
 * @gfp: how to allocate segments of the bitmap; not from atomic reserves
 *
 * Unused are the pages on the free lists, and those that have no content for
 * the guest, such as a balloon's. Each was unused at some moment during the
 * call. It may be in use again when the call returns, and the content of a page
 * that is not must not be relied on.
 *
 * Pages of the per-CPU lists are missed: see drain_unused_pages().
 *
 * Context: Process context. May sleep. zone->lock is held for at most 1024
 * pages at a time, and memory does not go on or off line meanwhile. Takes
 * get_online_mems(), so the caller must hold no lock that an offline notifier
 * or the migration of a page waits for.
 * Return: 0 when the range is done; 1 when the bitmap has no room for the next
 * page: the caller is to use it up, reset it and call again; -EINVAL when the
 * bitmap has no segments or @pfn is behind @end_pfn.
 */
int get_unused_pages(struct page_bitmap *pb, unsigned long *pfn,
		     unsigned long end_pfn, gfp_t gfp)
{
	unsigned long from = *pfn;

	if (!pb->max_segs || from > end_pfn)
		return -EINVAL;

	end_pfn = min(end_pfn, READ_ONCE(max_pfn));
	while (from < end_pfn) {
		DECLARE_BITMAP(bits, UNUSED_PAGES_SLICE) = {};
		unsigned long at = from, bit, run;
		unsigned int visited;

		get_online_mems();
		from = unused_pages_slice(from, end_pfn, bits, &visited);
		put_online_mems();

		for_each_set_bitrange(bit, run, bits, UNUSED_PAGES_SLICE) {
			while (bit < run) {
				long n = page_bitmap_set(pb, at + bit, run - bit, gfp);

				if (n < 0) {
					*pfn = at + bit;
					return 1;
				}
				bit += n;
			}
		}
		cond_resched();
	}
	*pfn = from;
	return 0;
}
EXPORT_SYMBOL_GPL(get_unused_pages);
