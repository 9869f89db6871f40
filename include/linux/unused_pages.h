/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which pages does this machine not use? See Documentation/mm/unused_pages.rst.
 */
#ifndef _LINUX_UNUSED_PAGES_H
#define _LINUX_UNUSED_PAGES_H

#include <linux/gfp_types.h>
#include <linux/mmzone.h>

struct list_head;
struct page_bitmap;

/*
 * Pages that one hold of a zone's lock looks at: at most 1024, and where free
 * blocks can be larger than that, those that show whether it begins in one.
 */
#define UNUSED_PAGES_SLICE	(MAX_PAGE_ORDER > 10 ? 512UL : 1024UL)

void drain_unused_pages(unsigned long pfn, unsigned long end_pfn);
int get_unused_pages(struct page_bitmap *pb, unsigned long *pfn,
		     unsigned long end_pfn, gfp_t gfp);

int take_unused_pages(struct list_head *pages, unsigned long *pfn, unsigned long end_pfn,
		      unsigned long nr_pages);
void put_unused_pages(struct list_head *pages);
long reclaim_unused_pages(unsigned long nr_pages, bool may_swap);
long compact_unused_pages(void);

#if IS_ENABLED(CONFIG_KUNIT)
unsigned long unused_pages_slice(unsigned long pfn, unsigned long end_pfn,
				 unsigned long *bits, unsigned int *visited);
#endif

#endif /* _LINUX_UNUSED_PAGES_H */
