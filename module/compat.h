/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the series' files find in a kernel with the series, and miss in one
 * without: for the module out of tree, read before each of them. It takes the
 * place of mm/internal.h, too.
 */
#ifndef _VIRTIO_BALLOON_COMPAT_H
#define _VIRTIO_BALLOON_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_MAJOR != 6 || LINUX_VERSION_PATCHLEVEL != 12
#error "this virtio_balloon is made for Linux 6.12 only"
#endif

#include <linux/gfp.h>
#include <linux/memblock.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/rcupdate.h>
#include <linux/sizes.h>
#include <linux/swap.h>
#include <linux/virtio.h>

#ifdef CONFIG_PAGE_OWNER
#error "this virtio_balloon cannot know whether page_owner is in use"
#endif
#ifdef CONFIG_MEM_ALLOC_PROFILING
#error "this virtio_balloon cannot know whether allocations are profiled"
#endif

/* Of mm/internal.h, as 6.12 has it: a free block's order, and a page's first reference. */
#define buddy_order(page)		((unsigned int)page_private(page))
#define set_page_refcounted(page)	set_page_count(page, 1)

/*
 * Memory that goes off line. Its sections are marked so before those who want
 * to know are told MEM_OFFLINE, and only then its struct pages go. Whoever
 * looked at one before that mark does so within rcu_read_lock(), and the module
 * waits for them when it is told. Memory that comes on line is marked when its
 * struct pages are complete. So pfn_to_online_page() is enough in between.
 */
#define get_online_mems()		rcu_read_lock()
#define put_online_mems()		rcu_read_unlock()

/*
 * Pages in per-CPU lists are not reported as unused, and not taken. An idle CPU
 * gives back what it has above its share of the low watermark, and keeps that.
 */
static inline void balloon_compat_drain(struct zone *zone)
{
}

#define drain_all_pages			balloon_compat_drain

/* Not exported; the nodes' ends say the same. */
extern unsigned long balloon_compat_max_pfn;
#define max_pfn				balloon_compat_max_pfn
#define get_max_pfn()			READ_ONCE(max_pfn)

/*
 * With init_on_alloc they are initialised: only mm can leave that out. What is
 * written to the host backs, so it is to have little of that at a time.
 */
struct page *balloon_compat_alloc(gfp_t gfp, unsigned int order);
#define alloc_pages_uninit		balloon_compat_alloc
#define BALLOON_TAKE_SIZE		(want_init_on_alloc(GFP_HIGHUSER) ? SZ_16M : 8ULL * SZ_1G)

unsigned long balloon_compat_reclaim(struct zonelist *zonelist, int order, gfp_t gfp,
				     nodemask_t *nodes);
#define try_to_free_pages		balloon_compat_reclaim

/* Not exported: who migrates with MIGRATE_SYNC counts as one who must have the place. */
#undef is_migrate_isolate_page
#define is_migrate_isolate_page(page)	((void)(page), true)

int balloon_compat_register(struct virtio_driver *driver);
void balloon_compat_unregister(struct virtio_driver *driver);
#undef module_virtio_driver
#define module_virtio_driver(driver) \
	module_driver(driver, balloon_compat_register, balloon_compat_unregister)

#endif /* _VIRTIO_BALLOON_COMPAT_H */
