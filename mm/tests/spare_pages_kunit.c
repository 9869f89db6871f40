// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for what a host may want of free memory. The machine goes on
 * meanwhile, so that totals are compared with some slack.
 */
#include <kunit/test.h>
#include <linux/bits.h>
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/sizes.h>
#include <linux/unused_pages.h>
#include <linux/vmstat.h>

#define BLOCK	BIT(MAX_PAGE_ORDER)

/* Pages of a list; each block must be one that nobody can use, and in order. */
static unsigned long spare_count(struct kunit *test, struct list_head *pages, unsigned long pfn,
				 unsigned long end)
{
	unsigned long nr = 0, wrong = 0;
	struct page *page;

	list_for_each_entry(page, pages, lru) {
		unsigned long here = page_to_pfn(page), size = 1UL << page_private(page);

		wrong += here < pfn || here >= end || !IS_ALIGNED(here, size) ||
			 page_ref_count(page) || PageBuddy(page) || size > BLOCK;
		pfn = here + size;
		nr += size;
	}
	KUNIT_EXPECT_EQ(test, wrong, 0UL);
	return nr;
}

/* What the zones keep, and whether one is below that */
static unsigned long spare_kept(bool *below)
{
	unsigned long keep = 0, slack = totalram_pages() / 64;
	enum zone_type z;
	int nid;

	*below = false;
	for_each_online_node(nid) {
		for (z = 0; z < MAX_NR_ZONES; z++) {
			struct zone *zone = &NODE_DATA(nid)->node_zones[z];
			unsigned long free = zone_page_state(zone, NR_FREE_PAGES);
			unsigned long low = low_wmark_pages(zone);

			keep += min(low, free);
			/* But for what others take meanwhile, and CPUs into their lists */
			*below |= free < (min_wmark_pages(zone) + low) / 2 &&
				  zone_managed_pages(zone) > 2 * low + slack;
		}
	}
	return keep;
}

/* All that is free is taken piece by piece, once each, and put back. */
static void spare_all(struct kunit *test)
{
	const unsigned long piece = SZ_16M >> PAGE_SHIFT, slack = totalram_pages() / 64;
	unsigned long free, pfn = 0, from, most = 0, all = 0, low;
	LIST_HEAD(pages);
	bool below;
	int more;

	low = spare_kept(&below);
	drain_unused_pages(0, ULONG_MAX);
	free = global_zone_page_state(NR_FREE_PAGES);
	do {
		unsigned long nr;

		from = pfn;
		more = take_unused_pages(&pages, &pfn, ULONG_MAX, piece);
		nr = spare_count(test, &pages, from, pfn);
		most = max(most, nr);
		all += nr;
		put_unused_pages(&pages);
		KUNIT_EXPECT_TRUE(test, list_empty(&pages));
	} while (more > 0 && pfn > from);
	KUNIT_EXPECT_EQ(test, more, 0);
	KUNIT_EXPECT_LT(test, most, piece + BLOCK);
	KUNIT_EXPECT_LE(test, all, free + slack);
	KUNIT_EXPECT_GE(test, all + low + slack, free);
	KUNIT_EXPECT_GE(test, global_zone_page_state(NR_FREE_PAGES) + slack, free);
}

/* At once, and with nothing put back: every zone keeps what is below its low watermark. */
static void spare_watermark(struct kunit *test)
{
	unsigned long slack = totalram_pages() / 64, free, pfn = 0, nr;
	LIST_HEAD(pages);
	bool below;

	drain_unused_pages(0, ULONG_MAX);
	free = global_zone_page_state(NR_FREE_PAGES);
	KUNIT_EXPECT_EQ(test, take_unused_pages(&pages, &pfn, ULONG_MAX, ULONG_MAX), 0);
	spare_kept(&below);
	nr = spare_count(test, &pages, 0, pfn);
	put_unused_pages(&pages);
	KUNIT_EXPECT_FALSE(test, below);
	KUNIT_EXPECT_GT(test, nr, free / 2);
	KUNIT_EXPECT_GE(test, global_zone_page_state(NR_FREE_PAGES) + slack, free);
}

/* A range: nothing that begins outside of it, nothing that is in use. */
static void spare_range(struct kunit *test)
{
	struct page *used = alloc_pages(GFP_KERNEL, 4);
	unsigned long at, pfn, end, wrong = 0, shift;
	LIST_HEAD(pages);
	struct page *page;

	KUNIT_ASSERT_NOT_NULL(test, used);
	at = page_to_pfn(used);
	for (shift = 0; shift < 3; shift++) {
		pfn = round_down(at, BLOCK) + shift * 3;
		end = pfn + BLOCK;
		KUNIT_EXPECT_EQ(test, take_unused_pages(&pages, &pfn, end, ULONG_MAX), pfn < end);
		list_for_each_entry(page, &pages, lru) {
			unsigned long here = page_to_pfn(page);

			wrong += here < at + 16 && here + (1UL << page_private(page)) > at;
		}
		spare_count(test, &pages, end - BLOCK, end);
		put_unused_pages(&pages);
	}
	KUNIT_EXPECT_EQ(test, wrong, 0UL);
	__free_pages(used, 4);

	/* Beyond all memory, and nothing at all */
	pfn = ULONG_MAX - 1;
	KUNIT_EXPECT_EQ(test, take_unused_pages(&pages, &pfn, ULONG_MAX, 1), 0);
	pfn = 0;
	KUNIT_EXPECT_EQ(test, take_unused_pages(&pages, &pfn, 0, 1), 0);
	KUNIT_EXPECT_TRUE(test, list_empty(&pages));
	put_unused_pages(&pages);
}

/* To reclaim a little brings no more than a little; to compact says what there is. */
static void spare_more(struct kunit *test)
{
	long nr = reclaim_unused_pages(SZ_1M >> PAGE_SHIFT, false);

	if (IS_ENABLED(CONFIG_MEMCG)) {
		KUNIT_EXPECT_GE(test, nr, 0L);
		KUNIT_EXPECT_LT(test, nr, (long)totalram_pages() / 4);
	} else {
		KUNIT_EXPECT_EQ(test, nr, (long)-EOPNOTSUPP);
	}

	nr = compact_unused_pages();
	if (IS_ENABLED(CONFIG_COMPACTION)) {
		KUNIT_EXPECT_GE(test, nr, 0L);
		KUNIT_EXPECT_EQ(test, nr % (long)pageblock_nr_pages, 0L);
		KUNIT_EXPECT_LE(test, nr, (long)totalram_pages());
	} else {
		KUNIT_EXPECT_EQ(test, nr, (long)-EOPNOTSUPP);
	}
}

static struct kunit_case spare_pages_cases[] = {
	KUNIT_CASE(spare_all),
	KUNIT_CASE(spare_watermark),
	KUNIT_CASE(spare_range),
	KUNIT_CASE_SLOW(spare_more),
	{}
};

static struct kunit_suite spare_pages_suite = {
	.name = "spare_pages",
	.test_cases = spare_pages_cases,
};

kunit_test_suite(spare_pages_suite);

MODULE_DESCRIPTION("KUnit tests for what a host may want of free memory");
MODULE_LICENSE("GPL");
