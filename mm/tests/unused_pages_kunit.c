// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the walk over unused pages. The machine goes on meanwhile, so
 * that totals are compared with some slack.
 */
#include <kunit/test.h>
#include <linux/bitmap.h>
#include <linux/gfp.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/page-flags.h>
#include <linux/page_bitmap.h>
#include <linux/unused_pages.h>

#define SEGS	64

struct unused_test {
	struct page_bitmap pb;
	/* Where memory ends, and how much of it may come and go in a test. */
	unsigned long max_pfn;
	unsigned long slack;
};

static int unused_test_init(struct kunit *test)
{
	struct unused_test *ut = kunit_kzalloc(test, sizeof(*ut), GFP_KERNEL);
	int nid;

	KUNIT_ASSERT_NOT_NULL(test, ut);
	KUNIT_ASSERT_EQ(test, page_bitmap_init(&ut->pb, SEGS, SEGS), 0);
	for_each_online_node(nid)
		ut->max_pfn = max(ut->max_pfn, pgdat_end_pfn(NODE_DATA(nid)));
	ut->slack = totalram_pages() / 64;
	test->priv = ut;
	return 0;
}

static void unused_test_exit(struct kunit *test)
{
	struct unused_test *ut = test->priv;

	if (ut)
		page_bitmap_destroy(&ut->pb);
}

static bool unused_bit(struct page_bitmap *pb, unsigned long pfn)
{
	unsigned int i;

	for (i = 0; i < pb->nr_segs; i++) {
		struct page_bitmap_seg *seg = &pb->segs[i];
		unsigned long bit = pfn - seg->base;

		if (pfn >= seg->base && bit < PAGE_BITMAP_SEG_PAGES)
			return le64_to_cpu(page_bitmap_seg_words(seg)[bit / 64]) >> bit % 64 & 1;
	}
	return false;
}

/* Pages in the bitmap, all of which must lie in a range. */
static unsigned long unused_count(struct kunit *test, struct page_bitmap *pb,
				  unsigned long pfn, unsigned long end)
{
	unsigned long nr = 0, outside = 0, bit;
	unsigned int i, word;

	for (i = 0; i < pb->nr_segs; i++) {
		for (word = 0; word < PAGE_BITMAP_SEG_WORDS; word++) {
			u64 bits = le64_to_cpu(page_bitmap_seg_words(&pb->segs[i])[word]);

			nr += hweight64(bits);
			for (bit = 0; bits && bit < 64; bit++) {
				unsigned long at = pb->segs[i].base + word * 64UL + bit;

				if (bits >> bit & 1)
					outside += at < pfn || at >= end;
			}
		}
	}
	KUNIT_EXPECT_EQ(test, outside, 0UL);
	return nr;
}

/* Walk a range with a bitmap of so many segments; returns the pages found. */
static unsigned long unused_walk(struct kunit *test, unsigned long pfn, unsigned long end,
				 unsigned int segs)
{
	unsigned long nr = 0, first;
	struct page_bitmap pb;
	int more;

	KUNIT_ASSERT_EQ(test, page_bitmap_init(&pb, segs, segs), 0);
	drain_unused_pages(pfn, end);
	do {
		first = pfn;
		more = get_unused_pages(&pb, &pfn, end, 0);
		KUNIT_EXPECT_GE(test, more, 0);
		KUNIT_EXPECT_GE(test, pfn, first);
		nr += unused_count(test, &pb, first, more > 0 ? pfn : end);
		page_bitmap_reset(&pb);
	} while (more > 0 && pfn > first);
	KUNIT_EXPECT_EQ(test, more, 0);
	page_bitmap_destroy(&pb);
	return nr;
}

static void unused_bad_arguments(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	struct page_bitmap none = {};
	unsigned long pfn = 7;

	KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &pfn, 6, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, get_unused_pages(&none, &pfn, 8, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, pfn, 7UL);
	KUNIT_EXPECT_TRUE(test, page_bitmap_empty(&ut->pb));
}

/* Nothing to look at: nothing found, and at once. */
static void unused_nothing(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	unsigned long pfn = 4096;

	KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &pfn, 4096, 0), 0);
	KUNIT_EXPECT_EQ(test, pfn, 4096UL);

	pfn = ULONG_MAX / 2;
	KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &pfn, ULONG_MAX, 0), 0);
	KUNIT_EXPECT_TRUE(test, page_bitmap_empty(&ut->pb));
}

/* Pages of any order that are in use are not reported, and others are when free. */
static void unused_alloc_and_free(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	unsigned int order, i;

	for (order = 0; order <= MAX_PAGE_ORDER; order++) {
		unsigned int nr = 1U << order, wrong = 0, missed = 0, try;
		gfp_t gfp = GFP_KERNEL | __GFP_NOWARN | (order % 2 ? __GFP_COMP : 0);
		struct page *page = alloc_pages(gfp, order);
		unsigned long pfn, at;

		if (!page)
			break;
		pfn = page_to_pfn(page);
		at = pfn;
		KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &at, pfn + nr, 0), 0);
		KUNIT_EXPECT_EQ(test, at, pfn + nr);
		for (i = 0; i < nr; i++)
			wrong += unused_bit(&ut->pb, pfn + i);
		KUNIT_EXPECT_EQ_MSG(test, wrong, 0, "order %u", order);
		__free_pages(page, order);

		/* Others may take them at once, but not time and again. */
		for (try = 0; try < 20; try++) {
			page_bitmap_reset(&ut->pb);
			at = pfn;
			drain_unused_pages(pfn, pfn + nr);
			KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &at, pfn + nr, 0), 0);
			for (i = 0, missed = 0; i < nr; i++)
				missed += !unused_bit(&ut->pb, pfn + i);
			if (!missed)
				break;
		}
		KUNIT_EXPECT_EQ_MSG(test, missed, 0, "order %u", order);
		page_bitmap_reset(&ut->pb);
	}
	KUNIT_EXPECT_GT(test, order, 3);
}

/*
 * Each call for a part of an answer leaves the lists of CPUs as they are: that a
 * device asks for many parts is not to cost every allocation on every CPU.
 */
static void unused_no_drain(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	unsigned int try, left = 0;

	for (try = 0; try < 100; try++) {
		struct page *page = alloc_page(GFP_KERNEL);
		unsigned long pfn;

		KUNIT_ASSERT_NOT_NULL(test, page);
		pfn = page_to_pfn(page);
		__free_page(page);
		KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &pfn, pfn + 1, 0), 0);
		left += page_bitmap_empty(&ut->pb);
		page_bitmap_reset(&ut->pb);
	}
	/* A list that is full is given back. */
	KUNIT_EXPECT_GT(test, left, 50);
}

/* A page in a balloon has no content: it is unused, though nobody freed it. */
static void unused_balloon(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	struct page *page = alloc_page(GFP_KERNEL);
	unsigned long pfn;

	KUNIT_ASSERT_NOT_NULL(test, page);
	pfn = page_to_pfn(page);
	KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &pfn, pfn + 1, 0), 0);
	KUNIT_EXPECT_FALSE(test, unused_bit(&ut->pb, page_to_pfn(page)));

	/* As in a balloon, but nobody migrates it. */
	__folio_set_offline(page_folio(page));
	pfn = page_to_pfn(page);
	KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &pfn, pfn + 1, 0), 0);
	KUNIT_EXPECT_TRUE(test, unused_bit(&ut->pb, page_to_pfn(page)));
	__folio_clear_offline(page_folio(page));
	__free_page(page);
}

/* A range that begins or ends within a free block gets its part of it. */
static void unused_edges(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	/* With pages of 64 KiB the largest block is half a machine. */
	const unsigned int order = min(MAX_PAGE_ORDER, 10);
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_NOWARN, order);
	static const unsigned int cuts[] = { 0, 1, 2, 63, 64, 65, 511, 512, 513 };
	unsigned int i, j;
	unsigned long pfn;

	if (!page)
		kunit_skip(test, "no free block of order %u", order);
	pfn = page_to_pfn(page);
	__free_pages(page, order);

	for (i = 0; i < ARRAY_SIZE(cuts); i++) {
		for (j = 0; j < ARRAY_SIZE(cuts); j++) {
			unsigned long from = pfn + cuts[i], to = pfn + (1UL << order) - cuts[j];
			unsigned long found = 0, at, try;

			if (from > to)
				continue;
			for (try = 0; try < 20 && found != to - from; try++) {
				page_bitmap_reset(&ut->pb);
				at = from;
				drain_unused_pages(from, to);
				KUNIT_EXPECT_EQ(test, get_unused_pages(&ut->pb, &at, to, 0), 0);
				found = unused_count(test, &ut->pb, from, to);
			}
			KUNIT_EXPECT_EQ_MSG(test, found, to - from, "%u to -%u", cuts[i], cuts[j]);
		}
	}
}

/* One segment or many, one walk or windows of any size: the same pages. */
static void unused_windows(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	unsigned long all = unused_walk(test, 0, ut->max_pfn, SEGS), some = 0, pfn;
	const unsigned long step = PAGE_BITMAP_SEG_PAGES + 4711;

	KUNIT_EXPECT_GT(test, all, 0UL);
	KUNIT_EXPECT_LE(test, abs_diff(unused_walk(test, 0, ULONG_MAX, 1), all), ut->slack);
	for (pfn = 0; pfn < ut->max_pfn; pfn += step)
		some += unused_walk(test, pfn, pfn + step, 3);
	KUNIT_EXPECT_LE(test, abs_diff(some, all), ut->slack);
}

/* What a walk of a zone's free lists finds, all of them in one hold. */
static unsigned long unused_by_lists(struct zone *zone)
{
	unsigned long nr = 0, flags;
	unsigned int order, type;
	struct page *page;

	spin_lock_irqsave(&zone->lock, flags);
	for (order = 0; order < NR_PAGE_ORDERS; order++) {
		for (type = 0; type < MIGRATE_TYPES; type++) {
			list_for_each_entry(page, &zone->free_area[order].free_list[type],
					    buddy_list)
				nr += 1UL << page_private(page);
		}
	}
	spin_unlock_irqrestore(&zone->lock, flags);
	return nr;
}

/*
 * All memory, slice by slice, against the free lists: as many pages, and no
 * slice looks at more than 1024. The times are for the documentation. That no
 * memory goes off line meanwhile is up to whoever runs this.
 */
static void unused_cost(struct kunit *test)
{
	struct unused_test *ut = test->priv;
	unsigned long found = 0, visits = 0, holds = 0, pfn, lists = 0, offline = 0;
	s64 longest = 0, list_longest = 0, walk, list_walk = 0;
	unsigned int visited, most = 0;
	ktime_t begin, all;
	int nid, i;

	unused_walk(test, 0, 1, 1);		/* drains the per-CPU lists */
	for_each_online_node(nid) {
		for (i = 0; i < MAX_NR_ZONES; i++) {
			struct zone *zone = &NODE_DATA(nid)->node_zones[i];
			s64 ns;

			if (!populated_zone(zone))
				continue;
			begin = ktime_get();
			lists += unused_by_lists(zone);
			ns = ktime_to_ns(ktime_sub(ktime_get(), begin));
			list_walk += ns;
			list_longest = max(list_longest, ns);
		}
	}

	all = ktime_get();
	for (pfn = 0; pfn < ut->max_pfn; holds++) {
		DECLARE_BITMAP(bits, UNUSED_PAGES_SLICE) = {};

		begin = ktime_get();
		pfn = unused_pages_slice(pfn, ut->max_pfn, bits, &visited);
		longest = max(longest, ktime_to_ns(ktime_sub(ktime_get(), begin)));
		found += bitmap_weight(bits, UNUSED_PAGES_SLICE);
		visits += visited;
		most = max(most, visited);
		cond_resched();
	}
	walk = ktime_to_ns(ktime_sub(ktime_get(), all));

	kunit_info(test, "cost: in PFN order %lu pages, %lld us, longest hold %lld ns, %lu holds, %lu visits, at most %u; free lists %lu pages, %lld us, longest hold %lld ns\n",
		   found, div_s64(walk, 1000), longest, holds, visits, most,
		   lists, div_s64(list_walk, 1000), list_longest);
	KUNIT_EXPECT_LE(test, most, 1024);
	/* Those of a balloon are on no free list. */
	for (pfn = 0; pfn < ut->max_pfn; pfn++) {
		struct page *page = pfn_to_online_page(pfn);

		offline += page && PageOffline(page);
		cond_resched();
	}
	KUNIT_EXPECT_LE(test, abs_diff(found, lists + offline), ut->slack);
}

static struct kunit_case unused_pages_cases[] = {
	KUNIT_CASE(unused_bad_arguments),
	KUNIT_CASE(unused_nothing),
	KUNIT_CASE(unused_alloc_and_free),
	KUNIT_CASE(unused_no_drain),
	KUNIT_CASE(unused_balloon),
	KUNIT_CASE(unused_edges),
	KUNIT_CASE(unused_windows),
	KUNIT_CASE(unused_cost),
	{}
};

static struct kunit_suite unused_pages_suite = {
	.name = "unused_pages",
	.init = unused_test_init,
	.exit = unused_test_exit,
	.test_cases = unused_pages_cases,
};

kunit_test_suite(unused_pages_suite);

MODULE_IMPORT_NS(EXPORTED_FOR_KUNIT_TESTING);
MODULE_DESCRIPTION("KUnit tests for the walk over unused pages");
MODULE_LICENSE("GPL");
