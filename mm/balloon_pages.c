// SPDX-License-Identifier: GPL-2.0
/*
 * Balloon pages in bulk: many pages at a time on their way into a balloon and
 * out of it again. What is in a balloon are base pages, as before: see
 * balloon_compaction.h for what is done with them there.
 *
 * On their way pages are *blocks* on a list: 1 << page_private() pages, named by
 * the first one. A page that was dequeued from a balloon is a block of one. A
 * larger block was just allocated: it is split when its pages are put into the
 * balloon, and until then only its first page has a reference.
 */
#include <linux/alloc_tag.h>
#include <linux/balloon_compaction.h>
#include <linux/build_bug.h>
#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/migrate_mode.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/page_owner.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/swap.h>
#include <linux/vmstat.h>

#include "internal.h"

/* Pages that one hold of pages_lock, with interrupts off, moves. */
#define BALLOON_BATCH		1024
/* A block is moved in one hold. */
static_assert(1 << BALLOON_PAGE_LIST_ORDER <= BALLOON_BATCH);

/**
 * balloon_page_list_alloc() - allocate blocks of pages for a balloon
 * @pages: list to append the blocks to
 * @order: their order, at most BALLOON_PAGE_LIST_ORDER
 * @nr_blocks: number of blocks wanted
 *
 * Takes them from the free lists, as far as the low watermarks allow it, and
 * makes nobody reclaim or compact. Which memory a balloon takes and how far it
 * goes is for its driver to decide.
 *
 * The pages are not initialised, not even with init_on_alloc. They must not
 * go anywhere but into a balloon, by balloon_page_list_insert(), and from there
 * through the page allocator; or back, by balloon_page_list_free().
 *
 * Context: Process context. May sleep.
 * Return: the number of blocks allocated, fewer than @nr_blocks when there are
 * no more to be had.
 */
size_t balloon_page_list_alloc(struct list_head *pages, unsigned int order, size_t nr_blocks)
{
	gfp_t gfp = (balloon_mapping_gfp_mask() & ~__GFP_RECLAIM) |
		    __GFP_NOMEMALLOC | __GFP_NOWARN;
	size_t got;

	for (got = 0; got < nr_blocks; got++) {
		struct page *page = alloc_pages_uninit(gfp, order);

		if (!page)
			break;
		set_page_private(page, order);
		list_add_tail(&page->lru, pages);
		cond_resched();
	}
	return got;
}
EXPORT_SYMBOL_GPL(balloon_page_list_alloc);

/**
 * balloon_page_reclaim() - reclaim some memory for a balloon
 *
 * What an allocation does that finds nothing above the minimum watermarks, but
 * nothing is allocated, and it does not take free memory to be that short: for
 * a balloon that leaves others what they need. When there is nothing to reclaim,
 * pages in per-CPU lists, which look as if they were in use, are given to the
 * free lists.
 *
 * Context: Process context. May sleep; the caller must not hold a lock that
 * reclaim takes.
 * Return: the number of pages reclaimed, 0 when there is nothing to reclaim at
 * the moment.
 */
unsigned long balloon_page_reclaim(void)
{
	gfp_t gfp = balloon_mapping_gfp_mask();
	struct zonelist *zonelist = node_zonelist(numa_mem_id(), gfp);
	unsigned int noreclaim;
	unsigned long nr;

	fs_reclaim_acquire(gfp);
	noreclaim = memalloc_noreclaim_save();
	nr = try_to_free_pages(zonelist, 0, gfp, NULL);
	memalloc_noreclaim_restore(noreclaim);
	fs_reclaim_release(gfp);
	if (!nr)
		drain_all_pages(NULL);
	return nr;
}
EXPORT_SYMBOL_GPL(balloon_page_reclaim);

/**
 * balloon_page_must_move() - does somebody need the memory where a page is?
 * @page: a page of a balloon that is to be migrated
 * @mode: as migrate_page() of movable_operations has it
 *
 * Memory that goes off line, CMA, virtio-mem and gigantic pages need just that
 * block, and give up soon. For compaction any other will do, at any time.
 *
 * Context: Any.
 * Return: true if so.
 */
bool balloon_page_must_move(struct page *page, enum migrate_mode mode)
{
	return mode == MIGRATE_SYNC && is_migrate_isolate_page(page);
}
EXPORT_SYMBOL_GPL(balloon_page_must_move);

/*
 * Put the pages of a block on a balloon's list; pages_lock is held, and the
 * first page is locked, as balloon_page_insert() wants it. The others have no
 * reference yet: nobody can lock them, or see that we do.
 *
 * Until the split they are PageOffline without a reference, by which a driver
 * tells memory that goes off line that it lets go of them. It does not come to
 * that: who looks whether memory is free does so in one hold of zone->lock,
 * from the start of a memory block, which no block of pages crosses. So the
 * first page is met before the others, it is in use, and the look ends there.
 */
static void balloon_insert_block(struct balloon_dev_info *b_dev_info, struct page *page)
{
	unsigned int order = page_private(page), i;

	set_page_private(page, 0);
	balloon_page_insert(b_dev_info, page);
	for (i = 1; i < 1U << order; i++) {
		struct folio *folio = page_folio(page + i);

		set_page_private(page + i, 0);
		__folio_set_locked(folio);
		balloon_page_insert(b_dev_info, page + i);
		__folio_clear_locked(folio);
	}
	/*
	 * Pairs with folio_get_nontail_page() in isolate_movable_page(): who
	 * gets a reference sees a page of the balloon.
	 */
	smp_wmb();
	if (order)
		split_page(page, order);
}

/* Put all pages on a balloon's list. Returns how many they are. */
static size_t balloon_insert(struct balloon_dev_info *b_dev_info, struct list_head *pages)
{
	size_t all = 0;

	while (!list_empty(pages)) {
		struct page *page, *next;
		unsigned long flags;
		unsigned int nr = 0;

		spin_lock_irqsave(&b_dev_info->pages_lock, flags);
		list_for_each_entry_safe(page, next, pages, lru) {
			nr += 1U << page_private(page);
			/* Who goes over all pages may hold the lock for a moment. */
			if (nr > BALLOON_BATCH || !trylock_page(page))
				break;
			all += 1U << page_private(page);
			list_del(&page->lru);
			balloon_insert_block(b_dev_info, page);
			unlock_page(page);
		}
		spin_unlock_irqrestore(&b_dev_info->pages_lock, flags);
		cond_resched();
	}
	return all;
}

/**
 * balloon_page_list_insert() - put pages into a balloon
 * @b_dev_info: the balloon
 * @pages: list of blocks; empty afterwards
 *
 * Splits the blocks: what is in the balloon are base pages.
 *
 * Context: Process context. May sleep between two holds of pages_lock.
 */
void balloon_page_list_insert(struct balloon_dev_info *b_dev_info, struct list_head *pages)
{
	count_vm_events(BALLOON_INFLATE, balloon_insert(b_dev_info, pages));
}
EXPORT_SYMBOL_GPL(balloon_page_list_insert);

/**
 * balloon_page_list_putback() - put pages back that cannot leave a balloon
 * @b_dev_info: the balloon
 * @pages: list of pages of balloon_page_list_dequeue(); empty afterwards
 *
 * As if they had not been dequeued, also for those who count that.
 *
 * Context: Process context. May sleep between two holds of pages_lock.
 */
void balloon_page_list_putback(struct balloon_dev_info *b_dev_info, struct list_head *pages)
{
	count_vm_events(BALLOON_DEFLATE, -(long)balloon_insert(b_dev_info, pages));
}
EXPORT_SYMBOL_GPL(balloon_page_list_putback);

/*
 * Drop the last reference to each page of a naturally aligned block, and free
 * the block whole. Somebody who looks at all pages, as compaction does, may
 * hold a reference to one of them for a moment: that page is then left for
 * them to free, and the others are freed one by one.
 */
static void balloon_free_block(struct page *page, unsigned int order)
{
	unsigned int nr = 1U << order, held = 0, i;

	for (i = 1; i < nr; i++) {
		if (!put_page_testzero(page + i)) {
			held = i;
			break;
		}
		/* Frozen: nobody looks at the mark of a movable page now. */
		page[i].mapping = NULL;
	}

	if (!held) {
		__free_pages(page, order);
		return;
	}
	for (i = 1; i < held; i++)
		set_page_refcounted(page + i);
	for (i = 0; i < nr; i++) {
		if (i != held)
			__free_page(page + i);
	}
}

/*
 * Whether page frames that were allocated one by one may be freed as a block:
 * not when each has a tag of allocation profiling, or an owner, of its own.
 */
static bool balloon_merges(void)
{
#ifdef CONFIG_PAGE_OWNER
	if (static_branch_unlikely(&page_owner_inited))
		return false;
#endif
	return !mem_alloc_profiling_enabled();
}

/* Free page frames that lie in one zone and were allocated one by one. */
static void balloon_free_range(unsigned long pfn, unsigned long nr)
{
	while (nr) {
		unsigned int order = min_t(unsigned int, MAX_PAGE_ORDER, ilog2(nr));

		if (pfn)
			order = min_t(unsigned int, order, __ffs(pfn));
		balloon_free_block(pfn_to_page(pfn), order);
		pfn += 1UL << order;
		nr -= 1UL << order;
		cond_resched();
	}
}

/**
 * balloon_page_list_free() - free pages that have left a balloon, or not gone in
 * @pages: list of blocks; empty afterwards
 *
 * Runs of base pages that are neighbours on the list are freed together.
 *
 * Context: Process context. May sleep.
 */
void balloon_page_list_free(struct list_head *pages)
{
	unsigned long pfn = 0, nr = 0;
	struct page *page, *next;
	struct zone *zone = NULL;

	list_for_each_entry_safe(page, next, pages, lru) {
		unsigned int order = page_private(page);

		list_del(&page->lru);
		if (order) {
			set_page_private(page, 0);
			__free_pages(page, order);
			continue;
		}

		/* A poisoned page must reach the allocator by itself. */
		if (nr && page_to_pfn(page) == pfn + nr &&
		    page_zone(page) == zone && !PageHWPoison(page) &&
		    balloon_merges()) {
			nr++;
			continue;
		}

		balloon_free_range(pfn, nr);
		if (PageHWPoison(page)) {
			put_page(page);
			nr = 0;
			continue;
		}
		pfn = page_to_pfn(page);
		zone = page_zone(page);
		nr = 1;
	}
	balloon_free_range(pfn, nr);
}
EXPORT_SYMBOL_GPL(balloon_page_list_free);

/**
 * balloon_page_list_adjust_managed() - account pages to or from a balloon
 * @pages: list of blocks
 * @sign: 1 when the pages are given back to the guest, -1 when taken from it
 *
 * What adjust_managed_page_count() does for a page, with one call for each
 * run of pages in a zone.
 *
 * Context: Any context. The caller owns the pages.
 */
void balloon_page_list_adjust_managed(struct list_head *pages, int sign)
{
	struct page *page, *first = NULL;
	long nr = 0;

	list_for_each_entry(page, pages, lru) {
		if (first && page_zone(page) != page_zone(first)) {
			adjust_managed_page_count(first, sign * nr);
			first = NULL;
			nr = 0;
		}
		if (!first)
			first = page;
		nr += 1L << page_private(page);
	}
	if (first)
		adjust_managed_page_count(first, sign * nr);
}
EXPORT_SYMBOL_GPL(balloon_page_list_adjust_managed);
