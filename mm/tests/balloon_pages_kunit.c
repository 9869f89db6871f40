// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for balloon pages in bulk.
 */
#include <kunit/test.h>
#include <linux/balloon_compaction.h>
#include <linux/delay.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/sched.h>

/* More than a block of the largest order, and not a multiple of anything. */
#define NR	(MAX_ORDER_NR_PAGES + 77)

static struct balloon_dev_info balloon;

#ifdef CONFIG_BALLOON_COMPACTION
static int balloon_stays(struct balloon_dev_info *b_dev_info, struct page *newpage,
			 struct page *page, enum migrate_mode mode)
{
	return -EAGAIN;
}
#endif

static int balloon_suite_init(struct kunit_suite *suite)
{
	balloon_devinfo_init(&balloon);
#ifdef CONFIG_BALLOON_COMPACTION
	balloon.migratepage = balloon_stays;
#endif
	return 0;
}

/* Pages of a list of blocks. */
static size_t pages_of(struct list_head *blocks)
{
	struct page *page;
	size_t nr = 0;

	list_for_each_entry(page, blocks, lru)
		nr += 1UL << page_private(page);
	return nr;
}

/* So many pages, in blocks as large as they can be, or as free memory has them. */
static void alloc_blocks(struct kunit *test, struct list_head *blocks, size_t nr)
{
	unsigned int order = BALLOON_PAGE_LIST_ORDER;
	size_t left = nr;

	do {
		left -= balloon_page_list_alloc(blocks, order, left >> order) << order;
	} while (order--);
	KUNIT_EXPECT_EQ(test, left, (size_t)0);
	KUNIT_EXPECT_EQ(test, pages_of(blocks), nr);
}

/* All that is in the balloon. Compaction may hold a page of it for a moment. */
static void dequeue_all(struct kunit *test, struct list_head *pages, size_t nr)
{
	unsigned int try;
	size_t got = 0;
	LIST_HEAD(out);

	for (try = 0; try < 1000 && got < nr; try++) {
		if (try)
			fsleep(1000);
		got += balloon_page_list_dequeue(&balloon, &out, nr - got);
		list_splice_tail_init(&out, pages);
	}
	KUNIT_EXPECT_EQ(test, got, nr);
}

/* Base pages, as they come out of a balloon. */
static void through_balloon(struct kunit *test, struct list_head *pages, size_t nr)
{
	alloc_blocks(test, pages, nr);
	balloon_page_list_insert(&balloon, pages);
	KUNIT_EXPECT_TRUE(test, list_empty(pages));
	dequeue_all(test, pages, nr);
	KUNIT_EXPECT_EQ(test, list_count_nodes(pages), nr);
	KUNIT_EXPECT_EQ(test, pages_of(pages), nr);
}

/* As many as were asked for, in aligned blocks of which the first page is ours. */
static void balloon_alloc_exact(struct kunit *test)
{
	static const size_t sizes[] = { 1, 2, 3, 511, 512, 513, NR };
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned long wrong = 0;
		struct page *page;
		LIST_HEAD(blocks);

		alloc_blocks(test, &blocks, sizes[i]);
		list_for_each_entry(page, &blocks, lru)
			wrong += page_count(page) != 1 || PageCompound(page) ||
				 page_private(page) > BALLOON_PAGE_LIST_ORDER ||
				 !IS_ALIGNED(page_to_pfn(page), 1UL << page_private(page));
		KUNIT_EXPECT_EQ(test, wrong, 0UL);
		balloon_page_list_free(&blocks);
		KUNIT_EXPECT_TRUE(test, list_empty(&blocks));
	}
}

/* All blocks of a list are of the order that was asked for, each apart from the others. */
static void balloon_alloc_order(struct kunit *test)
{
	unsigned int order;

	for (order = 0; order <= BALLOON_PAGE_LIST_ORDER; order++) {
		unsigned long wrong = 0;
		struct page *page;
		LIST_HEAD(blocks);
		size_t got;

		got = balloon_page_list_alloc(&blocks, order, 3);
		KUNIT_EXPECT_EQ(test, list_count_nodes(&blocks), got);
		KUNIT_EXPECT_EQ(test, pages_of(&blocks), got << order);
		list_for_each_entry(page, &blocks, lru)
			wrong += page_private(page) != order;
		KUNIT_EXPECT_EQ(test, wrong, 0UL);
		KUNIT_EXPECT_EQ(test, balloon_page_list_alloc(&blocks, order, 0), (size_t)0);
		balloon_page_list_free(&blocks);
	}
}

/* It takes nothing and ends, whether there is something to reclaim or not. */
static void balloon_reclaim(struct kunit *test)
{
	unsigned long total = totalram_pages();
	unsigned int noreclaim = current->flags & PF_MEMALLOC;

	balloon_page_reclaim();
	KUNIT_EXPECT_EQ(test, totalram_pages(), total);
	KUNIT_EXPECT_EQ(test, current->flags & PF_MEMALLOC, noreclaim);
}

/* In the balloon and out of it again there are base pages, each with a reference. */
static void balloon_insert(struct kunit *test)
{
	static const size_t sizes[] = { 1, 2, 3, 1023, 1024, 1025, NR };
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned long wrong = 0;
		struct page *page;
		LIST_HEAD(pages);

		alloc_blocks(test, &pages, sizes[i]);
		balloon_page_list_insert(&balloon, &pages);
		KUNIT_EXPECT_TRUE(test, list_empty(&pages));
		spin_lock_irq(&balloon.pages_lock);
		KUNIT_EXPECT_EQ(test, list_count_nodes(&balloon.pages) + balloon.isolated_pages,
				sizes[i]);
		list_for_each_entry(page, &balloon.pages, lru)
			wrong += !PageOffline(page) || PageCompound(page) || !page_count(page);
		spin_unlock_irq(&balloon.pages_lock);
		KUNIT_EXPECT_EQ(test, wrong, 0UL);

		dequeue_all(test, &pages, sizes[i]);
		list_for_each_entry(page, &pages, lru)
			wrong += page_private(page) || PageOffline(page);
		KUNIT_EXPECT_EQ(test, wrong, 0UL);
		balloon_page_list_free(&pages);
	}
}

/*
 * Somebody holds a reference to one page while the list is freed: that page
 * stays theirs, all others are freed, and the last put frees it.
 */
static void balloon_free_held(struct kunit *test)
{
	static const unsigned int held[] = { 0, 1, 2, 63, 511, 512, MAX_ORDER_NR_PAGES - 1 };
	int i;

	for (i = 0; i < ARRAY_SIZE(held); i++) {
		struct page *page, *kept = NULL;
		unsigned int n = 0;
		LIST_HEAD(pages);

		through_balloon(test, &pages, MAX_ORDER_NR_PAGES);
		list_for_each_entry(page, &pages, lru) {
			if (n++ == held[i])
				kept = page;
		}
		KUNIT_ASSERT_NOT_NULL(test, kept);
		get_page(kept);
		balloon_page_list_free(&pages);
		KUNIT_EXPECT_EQ(test, page_count(kept), 1);
		put_page(kept);
	}
}

/* Any order on the list frees every page, next to blocks that are whole. */
static void balloon_free_any_order(struct kunit *test)
{
	struct page *page, *next;
	LIST_HEAD(odd);
	LIST_HEAD(pages);
	LIST_HEAD(mixed);

	through_balloon(test, &pages, NR);
	alloc_blocks(test, &mixed, 77);
	list_for_each_entry_safe(page, next, &pages, lru) {
		if (page_to_pfn(page) % 2)
			list_move_tail(&page->lru, &odd);
		else
			list_move(&page->lru, &mixed);
	}
	list_splice_tail(&odd, &mixed);
	balloon_page_list_free(&mixed);
	KUNIT_EXPECT_TRUE(test, list_empty(&mixed));
}

static void balloon_managed(struct kunit *test)
{
	unsigned long before = totalram_pages();
	LIST_HEAD(pages);

	alloc_blocks(test, &pages, NR);
	balloon_page_list_adjust_managed(&pages, -1);
	KUNIT_EXPECT_EQ(test, totalram_pages(), before - NR);
	balloon_page_list_insert(&balloon, &pages);
	dequeue_all(test, &pages, NR);
	balloon_page_list_adjust_managed(&pages, 1);
	KUNIT_EXPECT_EQ(test, totalram_pages(), before);
	balloon_page_list_free(&pages);
}

/* What is freed is free, in blocks or one by one: the memory does not run out. */
static void balloon_no_leak(struct kunit *test)
{
	unsigned long rounds = 2 * totalram_pages() / NR;

	while (rounds--) {
		LIST_HEAD(pages);

		if (rounds % 2)
			through_balloon(test, &pages, NR);
		else
			alloc_blocks(test, &pages, NR);
		balloon_page_list_free(&pages);
	}
}

static struct kunit_case balloon_pages_cases[] = {
	KUNIT_CASE(balloon_alloc_exact),
	KUNIT_CASE(balloon_alloc_order),
	KUNIT_CASE(balloon_reclaim),
	KUNIT_CASE(balloon_insert),
	KUNIT_CASE(balloon_free_held),
	KUNIT_CASE(balloon_free_any_order),
	KUNIT_CASE(balloon_managed),
	KUNIT_CASE_SLOW(balloon_no_leak),
	{}
};

static struct kunit_suite balloon_pages_suite = {
	.name = "balloon_pages",
	.suite_init = balloon_suite_init,
	.test_cases = balloon_pages_cases,
};

kunit_test_suite(balloon_pages_suite);

MODULE_DESCRIPTION("KUnit tests for balloon pages in bulk");
MODULE_LICENSE("GPL");
