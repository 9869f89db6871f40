// SPDX-License-Identifier: GPL-2.0
/*
 * What a module out of tree does in place of what only mm can; see compat.h.
 */
#include <linux/balloon_compaction.h>
#include <linux/list.h>
#include <linux/memory.h>
#include <linux/minmax.h>
#include <linux/mmzone.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nodemask.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/unused_pages.h>
#include <linux/vmstat.h>

/* Blocks that are held while there is more to be reclaimed, and ticks to wait for that. */
#define BALLOON_COMPAT_HELD	16
#define BALLOON_COMPAT_TICKS	5

/**
 * balloon_compat_alloc() - allocate free pages above the low watermark
 * @gfp: without __GFP_RECLAIM
 * @order: their order
 *
 * An allocation that finds nothing above the low watermark looks again above
 * the minimum one. That is for others: what comes from there is put back.
 *
 * Return: the pages, or NULL.
 */
struct page *balloon_compat_alloc(gfp_t gfp, unsigned int order)
{
	struct page *page = alloc_pages(gfp, order);
	struct zone *zone;

	if (!page)
		return NULL;
	zone = page_zone(page);
	if (zone_page_state(zone, NR_FREE_PAGES) >=
	    low_wmark_pages(zone) + READ_ONCE(zone->lowmem_reserve[gfp_zone(gfp)]))
		return page;
	__free_pages(page, order);
	return NULL;
}

/* Pages that were reclaimed since the machine booted, by whomever. */
static unsigned long balloon_compat_reclaimed(void)
{
	unsigned long events[NR_VM_EVENT_ITEMS];

	all_vm_events(events);
	return events[PGSTEAL_KSWAPD] + events[PGSTEAL_DIRECT];
}

/*
 * kswapd counts runs that brought nothing, and after some does not run any more
 * until somebody else has reclaimed something. Those for a balloon are not to count.
 */
static void balloon_compat_hope(void)
{
	int nid;

	for_each_online_node(nid)
		WRITE_ONCE(NODE_DATA(nid)->kswapd_failures, 0);
}

/**
 * balloon_compat_reclaim() - have some memory reclaimed
 * @zonelist: not used
 * @order: not used
 * @gfp: for what kind of memory
 * @nodes: not used
 *
 * A module can have that only by an allocation that finds no block. With one of
 * the largest order this needs no free memory to be short: kswapd is woken and
 * reclaims some MiB to make such a block of. What there is of such blocks is held
 * meanwhile, down to the low watermark; where there are many, memory is free, and
 * nothing has to be reclaimed.
 *
 * Context: Process context. May sleep.
 * Return: the number of pages reclaimed, also by others.
 */
unsigned long balloon_compat_reclaim(struct zonelist *zonelist, int order, gfp_t gfp,
				     nodemask_t *nodes)
{
	unsigned long before = balloon_compat_reclaimed();
	unsigned int held = 0, ticks = 0;
	struct page *page, *next;
	LIST_HEAD(pages);

	gfp = (gfp & ~__GFP_RECLAIM) | __GFP_NOMEMALLOC | __GFP_NOWARN;
	while (held < BALLOON_COMPAT_HELD) {
		page = balloon_compat_alloc(gfp, MAX_PAGE_ORDER);
		if (!page)
			break;
		list_add(&page->lru, &pages);
		held++;
		cond_resched();
	}
	if (held < BALLOON_COMPAT_HELD) {
		balloon_compat_hope();
		page = alloc_pages(gfp | __GFP_KSWAPD_RECLAIM, MAX_PAGE_ORDER);
		if (page)
			list_add(&page->lru, &pages);
		while (balloon_compat_reclaimed() == before && ticks++ < BALLOON_COMPAT_TICKS)
			schedule_timeout_uninterruptible(1);
	}
	list_for_each_entry_safe(page, next, &pages, lru)
		__free_pages(page, MAX_PAGE_ORDER);
	return balloon_compat_reclaimed() - before;
}

/*
 * Nothing of mm/spare_pages.c is for a module: the free lists, reclaim without an
 * allocation, and compaction are mm's. The host hears that it is not to be had.
 */
int take_unused_pages(struct list_head *pages, unsigned long *pfn, unsigned long end_pfn,
		      unsigned long nr_pages)
{
	return -EOPNOTSUPP;
}

void put_unused_pages(struct list_head *pages)
{
}

long reclaim_unused_pages(unsigned long nr_pages, bool may_swap)
{
	return -EOPNOTSUPP;
}

long compact_unused_pages(void)
{
	return -EOPNOTSUPP;
}

/* How far memory reaches; only ever grows, as max_pfn does. */
unsigned long balloon_compat_max_pfn;

static void balloon_compat_update_max_pfn(void)
{
	static DEFINE_MUTEX(lock);	/* guards balloon_compat_max_pfn against other writers */
	unsigned long end;
	int nid;

	mutex_lock(&lock);
	end = balloon_compat_max_pfn;
	for_each_online_node(nid)
		end = max(end, node_end_pfn(nid));
	WRITE_ONCE(balloon_compat_max_pfn, end);
	mutex_unlock(&lock);
}

/* Memory went on line, or off line: then nobody is to look at its struct pages any more. */
static int balloon_compat_notify(struct notifier_block *nb, unsigned long action, void *arg)
{
	if (action == MEM_ONLINE)
		balloon_compat_update_max_pfn();
	else if (action == MEM_OFFLINE)
		synchronize_rcu();
	return NOTIFY_OK;
}

static struct notifier_block balloon_compat_nb = {
	.notifier_call = balloon_compat_notify,
};

int balloon_compat_register(struct virtio_driver *driver)
{
	int err = register_memory_notifier(&balloon_compat_nb);

	if (err)
		return err;
	balloon_compat_update_max_pfn();
	err = register_virtio_driver(driver);
	if (err) {
		unregister_memory_notifier(&balloon_compat_nb);
		return err;
	}
	if (want_init_on_alloc(GFP_HIGHUSER))
		pr_info("virtio_balloon: init_on_alloc is on, and only a patched kernel leaves it out for pages of a balloon\n");
	return 0;
}

void balloon_compat_unregister(struct virtio_driver *driver)
{
	unregister_virtio_driver(driver);
	unregister_memory_notifier(&balloon_compat_nb);
}

/* Of the package, too: DKMS compares it with that of the kernel's own, which has none. */
MODULE_VERSION("1.0");
