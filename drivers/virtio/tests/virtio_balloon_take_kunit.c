// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the choice of memory that goes into a virtio balloon.
 */
#include <kunit/test.h>
#include <linux/balloon_compaction.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/virtio.h>

#include "../virtio_balloon_take.h"
#include "virtio_balloon_kunit.h"

#define ORDERS	BALLOON_TAKE_ORDERS
#define TOP	(ORDERS - 1)

static size_t pages_in(const unsigned long *blocks)
{
	size_t nr = 0;
	unsigned int o;

	for (o = 0; o < ORDERS; o++)
		nr += blocks[o] << o;
	return nr;
}

struct plan {
	size_t nr_pages;
	unsigned long blocks[ORDERS];
};

static void expect_plans(struct kunit *test, const unsigned long *nr_free, unsigned int granule,
			 const struct plan *want, unsigned int nr)
{
	unsigned long plan[ORDERS];
	unsigned int o;

	for (; nr--; want++) {
		KUNIT_EXPECT_EQ(test, balloon_take_plan(nr_free, want->nr_pages, granule, plan),
				pages_in(want->blocks));
		for (o = 0; o < ORDERS; o++)
			KUNIT_EXPECT_EQ_MSG(test, plan[o], want->blocks[o],
					    "%zu pages, granule %u, order %u", want->nr_pages,
					    granule, o);
	}
}

/* Crumbs first; of the last block a part. */
static void take_best_fit(struct kunit *test)
{
	static const unsigned long nr_free[ORDERS] = { 5, 3, [3] = 2, [TOP] = 4 };
	static const struct plan plans[] = {
		{ 0, { } },
		{ 3, { 3 } },
		{ 5, { 5 } },
		{ 6, { 6 } },
		{ 11, { 5, 3 } },
		{ 18, { 6, 4, 1 } },
		{ 27, { 5, 3, [3] = 2 } },
		{ 27 + (1 << TOP), { 5, 3, [3] = 2, [TOP] = 1 } },
		{ 27 + 70, { 5, 4, 1, 2, [6] = 1 } },
		/* No more than there is */
		{ SIZE_MAX, { 5, 3, [3] = 2, [TOP] = 4 } },
	};

	expect_plans(test, nr_free, 0, plans, ARRAY_SIZE(plans));
}

/* Whole granules first, best fit among them; crumbs when nothing else is left. */
static void take_granule(struct kunit *test)
{
	static const unsigned long nr_free[ORDERS] = { 500, 300, [5] = 7, [6] = 2, [TOP] = 4 };
	static const struct plan plans[] = {
		{ 32, { [5] = 1 } },
		{ 8 * 32, { [5] = 8 } },
		{ 11 * 32, { [5] = 7, [6] = 2 } },
		/* A part of a granule is of no use: that may be crumbs. */
		{ 31, { 31 } },
		{ 32 + 3, { 3, [5] = 1 } },
		{ 11 * 32 + (4 << TOP) + 502, { 500, 1, [5] = 7, [6] = 2, [TOP] = 4 } },
		{ SIZE_MAX, { 500, 300, [5] = 7, [6] = 2, [TOP] = 4 } },
	};
	static const unsigned long one_block[ORDERS] = { [6] = 1 };
	/* There is no crumb, but a block to make one of. */
	static const struct plan parts = { 33, { 1, [5] = 1 } };

	expect_plans(test, nr_free, 5, plans, ARRAY_SIZE(plans));
	expect_plans(test, nr_free, TOP, &plans[ARRAY_SIZE(plans) - 1], 1);
	expect_plans(test, one_block, 5, &parts, 1);
}

/* Whatever is free: as much as was asked for, and nothing smaller is left for it. */
static void take_random(struct kunit *test)
{
	struct rnd_state rnd;
	unsigned int round;

	prandom_seed_state(&rnd, 20261128);
	for (round = 0; round < 2000; round++) {
		unsigned long nr_free[ORDERS], plan[ORDERS];
		unsigned int granule = round % ORDERS, o;
		size_t want, above = 0, larger = 0, crumbs = 0;

		for (o = 0; o < ORDERS; o++)
			nr_free[o] = prandom_u32_state(&rnd) % (round % 7 * 10 + 1);
		want = prandom_u32_state(&rnd) % (pages_in(nr_free) * 5 / 4 + 1);
		KUNIT_ASSERT_EQ(test, balloon_take_plan(nr_free, want, granule, plan),
				pages_in(plan));
		want = min(want, pages_in(nr_free));
		KUNIT_ASSERT_EQ(test, pages_in(plan), want);

		/* Of two orders on one side of the granule the lower one goes first. */
		for (o = ORDERS; o-- > 0;) {
			if (o + 1 == granule)
				larger = 0;
			if (larger)
				KUNIT_ASSERT_GE(test, plan[o], nr_free[o]);
			larger += plan[o];
			if (o >= granule)
				above += nr_free[o] << o;
			else
				crumbs += plan[o] << o;
		}
		/* And what is below it when less than one is wanted, or no more is above. */
		if (want <= above)
			KUNIT_ASSERT_LT(test, crumbs, (size_t)1 << granule);
		else
			KUNIT_ASSERT_EQ(test, crumbs, want - above);
	}
}

/* What a device can say of its granule, and what it must not. */
static void take_granule_shift(struct kunit *test)
{
	static const u32 none[] = { 0, 1, 7, 11, 12, PAGE_SHIFT, 64, 255, U32_MAX };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(none); i++)
		KUNIT_EXPECT_EQ(test, balloon_take_granule(none[i]), 0U);
	for (i = PAGE_SHIFT; i <= 63; i++)
		KUNIT_EXPECT_EQ(test, balloon_take_granule(i),
				min_t(unsigned int, i - PAGE_SHIFT, TOP));
}

/* Pages in no order, not in the one either in which the allocator has them. */
static size_t scatter(struct list_head *pages, size_t nr)
{
	struct page *page, *next;
	struct rnd_state rnd;
	size_t got;

	prandom_seed_state(&rnd, nr);
	got = balloon_page_list_alloc(pages, 0, nr);
	list_for_each_entry_safe(page, next, pages, lru) {
		if (prandom_u32_state(&rnd) & 1)
			list_move(&page->lru, pages);
	}
	return got;
}

static void take_sort(struct kunit *test)
{
	static const size_t ranges[] = { 1, 16, 1024, SZ_64K };
	unsigned int i;
	LIST_HEAD(none);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		unsigned long last = 0, wrong = 0;
		struct page *page;
		LIST_HEAD(pages);
		size_t nr;

		nr = scatter(&pages, 3000);
		balloon_take_sort(&pages, ranges[i]);
		KUNIT_EXPECT_EQ(test, list_count_nodes(&pages), nr);
		list_for_each_entry(page, &pages, lru) {
			wrong += page_to_pfn(page) / ranges[i] < last;
			last = page_to_pfn(page) / ranges[i];
		}
		KUNIT_EXPECT_EQ(test, wrong, 0UL);
		balloon_page_list_free(&pages);
	}
	balloon_take_sort(&none, 16);
	KUNIT_EXPECT_TRUE(test, list_empty(&none));
}

/* Pieces are not too large, nothing is lost, and no range is in two of them. */
static void take_cut(struct kunit *test)
{
	static const size_t sizes[] = { 1, 64, 1024, SZ_64K };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct balloon_take take = { .piece = sizes[i] };
		unsigned long last = ULONG_MAX, wrong = 0;
		size_t nr, cut, all = 0;
		LIST_HEAD(pages);
		LIST_HEAD(piece);
		LIST_HEAD(done);

		nr = scatter(&pages, 3000);
		balloon_take_sort(&pages, sizes[i]);
		while ((cut = balloon_take_cut(&take, &pages, &piece))) {
			struct page *first = list_first_entry(&piece, struct page, lru);
			struct page *end = list_last_entry(&piece, struct page, lru);

			wrong += cut != list_count_nodes(&piece) || cut > sizes[i] ||
				 page_to_pfn(first) / sizes[i] == last;
			last = page_to_pfn(end) / sizes[i];
			list_splice_tail_init(&piece, &done);
			all += cut;
		}
		KUNIT_EXPECT_EQ(test, wrong, 0UL);
		KUNIT_EXPECT_EQ(test, all, nr);
		KUNIT_EXPECT_TRUE(test, list_empty(&pages));
		balloon_page_list_free(&done);
	}
}

static void start(struct balloon_take *take)
{
	*take = (struct balloon_take) { .piece = SZ_64M >> PAGE_SHIFT };
}

/* A list of blocks is right: so many pages, aligned, and the first of each is ours. */
static size_t judge(struct kunit *test, struct list_head *pages)
{
	unsigned long wrong = 0;
	struct page *page;
	size_t nr = 0;

	list_for_each_entry(page, pages, lru) {
		unsigned int order = page_private(page);

		wrong += order > TOP || page_count(page) != 1 ||
			 !IS_ALIGNED(page_to_pfn(page), 1UL << order);
		nr += 1UL << order;
	}
	KUNIT_EXPECT_EQ(test, wrong, 0UL);
	return nr;
}

/* What is free is had at once, all that was wanted and no more. */
static void take_free(struct kunit *test)
{
	static const size_t sizes[] = { 1, 2, 77, 1000, 1024, 2049 };
	struct balloon_take take;
	unsigned int i, granule;

	for (granule = 0; granule <= TOP; granule++) {
		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			size_t got = 0;
			LIST_HEAD(pages);

			start(&take);
			take.granule = granule;
			/* A sanitizer may take longer than the driver does. */
			while (got < sizes[i]) {
				size_t nr = balloon_take_pages(&take, &pages, sizes[i] - got);

				if (!nr)
					break;
				got += nr;
			}
			KUNIT_EXPECT_EQ(test, got, sizes[i]);
			KUNIT_EXPECT_EQ(test, judge(test, &pages), sizes[i]);
			KUNIT_EXPECT_EQ(test, balloon_take_pause(&take), 0UL);
			balloon_page_list_free(&pages);
		}
	}
}

/* More is wanted than there is: it ends, and others have memory all the same. */
static void take_all(struct kunit *test)
{
	unsigned long until = jiffies + 60 * HZ;
	struct balloon_take take;
	LIST_HEAD(pages);
	LIST_HEAD(others);
	size_t got = 0;
	int i;

	start(&take);
	do {
		LIST_HEAD(more);

		got += balloon_take_pages(&take, &more, SIZE_MAX);
		list_splice_tail(&more, &pages);
		cond_resched();
	} while (!balloon_take_pause(&take) && time_before(jiffies, until));
	KUNIT_EXPECT_GT(test, balloon_take_pause(&take), 0UL);
	KUNIT_EXPECT_GT(test, got, (size_t)0);
	KUNIT_EXPECT_EQ(test, judge(test, &pages), got);

	for (i = 0; i < 32; i++) {
		struct page *page = alloc_page(GFP_NOWAIT);

		KUNIT_EXPECT_NOT_NULL(test, page);
		if (page)
			list_add(&page->lru, &others);
	}
	while (!list_empty(&others)) {
		struct page *page = list_first_entry(&others, struct page, lru);

		list_del(&page->lru);
		__free_page(page);
	}
	balloon_page_list_free(&pages);
	balloon_take_end(&take);
	KUNIT_EXPECT_EQ(test, balloon_take_pause(&take), 0UL);
}

/* That a target is out of reach is said once of each, whatever happens meanwhile. */
static void take_says_once(struct kunit *test)
{
	struct virtio_device *vdev = kunit_kzalloc(test, sizeof(*vdev), GFP_KERNEL);
	struct kmsg_dump_iter iter;
	struct balloon_take take;
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, vdev);
	vdev->dev.init_name = "balloon take";
	start(&take);
	take.vdev = vdev;
	kmsg_dump_rewind(&iter);
	log_lines(&iter, "");
	for (i = 0; i < 6; i++) {
		balloon_take_aim(&take, 4711 + i / 3);
		balloon_take_complain(&take, i);
		/* Deflated, by others, and inflated again as far as before */
		balloon_take_end(&take);
		KUNIT_EXPECT_EQ(test, log_lines(&iter, "Out of puff"), i % 3 == 0);
	}
}

static struct kunit_case balloon_take_cases[] = {
	KUNIT_CASE(take_best_fit),
	KUNIT_CASE(take_granule),
	KUNIT_CASE(take_random),
	KUNIT_CASE(take_granule_shift),
	KUNIT_CASE(take_sort),
	KUNIT_CASE(take_cut),
	KUNIT_CASE(take_says_once),
	KUNIT_CASE(take_free),
	KUNIT_CASE_SLOW(take_all),
	{}
};

static struct kunit_suite balloon_take_suite = {
	.name = "virtio_balloon_take",
	.test_cases = balloon_take_cases,
};

kunit_test_suite(balloon_take_suite);

MODULE_IMPORT_NS(EXPORTED_FOR_KUNIT_TESTING);
MODULE_DESCRIPTION("KUnit tests for the choice of memory that goes into a virtio balloon");
MODULE_LICENSE("GPL");
