// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for balloon pages in bulk.
 */
#include <kunit/test.h>
#include <linux/balloon_compaction.h>
#include <linux/list.h>
#include <linux/mm.h>

/* More than a block of the largest order, and not a multiple of anything. */
#define NR	(MAX_ORDER_NR_PAGES + 77)

static size_t alloc_pages_of(struct kunit *test, struct list_head *pages, size_t nr)
{
	size_t got = balloon_page_list_alloc(pages, nr);

	KUNIT_EXPECT_EQ(test, got, nr);
	KUNIT_EXPECT_EQ(test, list_count_nodes(pages), got);
	return got;
}

/* As many as were asked for, each one a base page with one reference. */
static void balloon_alloc_exact(struct kunit *test)
{
	static const size_t sizes[] = { 1, 2, 3, 511, 512, 513, NR };
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned long wrong = 0;
		struct page *page;
		LIST_HEAD(pages);

		alloc_pages_of(test, &pages, sizes[i]);
		list_for_each_entry(page, &pages, lru)
			wrong += page_count(page) != 1 || PageCompound(page);
		KUNIT_EXPECT_EQ(test, wrong, 0UL);
		balloon_page_list_free(&pages);
		KUNIT_EXPECT_TRUE(test, list_empty(&pages));
	}
}

/* Neighbours in memory are neighbours on the list. */
static void balloon_alloc_runs(struct kunit *test)
{
	unsigned long runs = 0, next = 0;
	struct page *page;
	LIST_HEAD(pages);

	alloc_pages_of(test, &pages, NR);
	list_for_each_entry(page, &pages, lru) {
		runs += page_to_pfn(page) != next;
		next = page_to_pfn(page) + 1;
	}
	/* Even a guest that is fragmented has a block of 8 pages here and there. */
	KUNIT_EXPECT_LT(test, runs, NR / 2UL);
	balloon_page_list_free(&pages);
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

		alloc_pages_of(test, &pages, MAX_ORDER_NR_PAGES);
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

/* Any order on the list frees every page: none is left with a reference. */
static void balloon_free_any_order(struct kunit *test)
{
	struct page *page, *next;
	LIST_HEAD(odd);
	LIST_HEAD(pages);
	LIST_HEAD(reversed);

	alloc_pages_of(test, &pages, NR);
	list_for_each_entry_safe(page, next, &pages, lru) {
		if (page_to_pfn(page) % 2)
			list_move_tail(&page->lru, &odd);
		else
			list_move(&page->lru, &reversed);
	}
	list_splice_tail(&odd, &reversed);
	balloon_page_list_free(&reversed);
	KUNIT_EXPECT_TRUE(test, list_empty(&reversed));
}

static void balloon_managed(struct kunit *test)
{
	unsigned long before = totalram_pages();
	LIST_HEAD(pages);

	alloc_pages_of(test, &pages, NR);
	balloon_page_list_adjust_managed(&pages, -1);
	KUNIT_EXPECT_EQ(test, totalram_pages(), before - NR);
	balloon_page_list_adjust_managed(&pages, 1);
	KUNIT_EXPECT_EQ(test, totalram_pages(), before);
	balloon_page_list_free(&pages);
}

/* What is freed in blocks is free: the memory does not run out. */
static void balloon_no_leak(struct kunit *test)
{
	unsigned long rounds = 2 * totalram_pages() / NR;

	while (rounds--) {
		LIST_HEAD(pages);

		alloc_pages_of(test, &pages, NR);
		balloon_page_list_free(&pages);
	}
}

static struct kunit_case balloon_pages_cases[] = {
	KUNIT_CASE(balloon_alloc_exact),
	KUNIT_CASE(balloon_alloc_runs),
	KUNIT_CASE(balloon_free_held),
	KUNIT_CASE(balloon_free_any_order),
	KUNIT_CASE(balloon_managed),
	KUNIT_CASE(balloon_no_leak),
	{}
};

static struct kunit_suite balloon_pages_suite = {
	.name = "balloon_pages",
	.test_cases = balloon_pages_cases,
};

kunit_test_suite(balloon_pages_suite);

MODULE_DESCRIPTION("KUnit tests for balloon pages in bulk");
MODULE_LICENSE("GPL");
