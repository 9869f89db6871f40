// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for page_bitmap.
 */
#include <kunit/test.h>
#include <linux/bitops.h>
#include <linux/page_bitmap.h>
#include <linux/string.h>

#define SEG	PAGE_BITMAP_SEG_PAGES
#define WORDS	PAGE_BITMAP_SEG_WORDS

static int page_bitmap_test_init(struct kunit *test)
{
	struct page_bitmap *pb = kunit_kzalloc(test, sizeof(*pb), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, pb);
	KUNIT_ASSERT_EQ(test, page_bitmap_init(pb, 8, 2), 0);
	test->priv = pb;
	return 0;
}

static void page_bitmap_test_exit(struct kunit *test)
{
	if (test->priv)
		page_bitmap_destroy(test->priv);
}

/* Bit by bit, as a device of any endianness reads it. */
static bool bit_of(const struct page_bitmap_seg *seg, unsigned long i)
{
	const u8 *bytes = (const u8 *)page_bitmap_seg_words(seg);

	return bytes[i / 8] & (1 << (i % 8));
}

/* Exactly the pages [first, first + nr) of the segment are set. */
static void expect_range(struct kunit *test, const struct page_bitmap_seg *seg,
			 unsigned long first, unsigned long nr)
{
	unsigned long i, wrong = 0;

	for (i = 0; i < SEG; i++)
		wrong += bit_of(seg, i) != (i >= first && i < first + nr);
	KUNIT_EXPECT_EQ(test, wrong, 0UL);
	KUNIT_EXPECT_EQ(test, seg->lo, (unsigned int)(first / 64));
	KUNIT_EXPECT_EQ(test, seg->hi, (unsigned int)((first + nr - 1) / 64 + 1));
}

static void page_bitmap_layout(struct kunit *test)
{
	/* A record must not split a huge page of the host at a window's edge. */
	KUNIT_EXPECT_EQ(test, SEG % 512, 0UL);
	KUNIT_EXPECT_LE(test, PAGE_BITMAP_HEADROOM + WORDS * 8, PAGE_BITMAP_SEG_SIZE);
}

static void page_bitmap_single_page(struct kunit *test)
{
	static const unsigned long pfns[] = {
		0, 1, 63, 64, 65, 511, 512, SEG - 1, SEG, SEG + 64, 3 * SEG - 1,
	};
	struct page_bitmap *pb = test->priv;
	int i;

	for (i = 0; i < ARRAY_SIZE(pfns); i++) {
		KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, pfns[i], 1, 0), 1L);
		KUNIT_ASSERT_EQ(test, pb->nr_segs, 1U);
		KUNIT_EXPECT_EQ(test, pb->segs[0].base, pfns[i] / SEG * SEG);
		expect_range(test, &pb->segs[0], pfns[i] % SEG, 1);
		page_bitmap_reset(pb);
		KUNIT_EXPECT_TRUE(test, page_bitmap_empty(pb));
	}
}

static void page_bitmap_ranges(struct kunit *test)
{
	static const struct { unsigned long first, nr; } ranges[] = {
		{ 0, 64 }, { 1, 63 }, { 1, 64 }, { 63, 2 }, { 64, 64 },
		{ 100, 1000 }, { 0, SEG }, { SEG - 64, 64 }, { 5, SEG - 5 },
	};
	struct page_bitmap *pb = test->priv;
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		long nr = page_bitmap_set(pb, 7 * SEG + ranges[i].first, ranges[i].nr, 0);

		KUNIT_EXPECT_EQ(test, nr, (long)ranges[i].nr);
		KUNIT_ASSERT_EQ(test, pb->nr_segs, 1U);
		expect_range(test, &pb->segs[0], ranges[i].first, ranges[i].nr);
		page_bitmap_reset(pb);
	}
}

/* A range is cut at the end of its window, and loses no page there. */
static void page_bitmap_range_over_edge(struct kunit *test)
{
	struct page_bitmap *pb = test->priv;

	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, 2 * SEG - 3, 10, 0), 3L);
	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, 2 * SEG, 7, 0), 7L);
	KUNIT_ASSERT_EQ(test, pb->nr_segs, 2U);
	expect_range(test, &pb->segs[0], SEG - 3, 3);
	expect_range(test, &pb->segs[1], 0, 7);
}

static void page_bitmap_highest_page(struct kunit *test)
{
	struct page_bitmap *pb = test->priv;

	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, ULONG_MAX, 1, 0), 1L);
	KUNIT_EXPECT_EQ(test, pb->segs[0].base, ULONG_MAX / SEG * SEG);
	expect_range(test, &pb->segs[0], ULONG_MAX % SEG, 1);
}

static void page_bitmap_keeps_order(struct kunit *test)
{
	static const unsigned long windows[] = { 5, 1, 9, 0, 7, 3, 1, 9 };
	struct page_bitmap *pb = test->priv;
	int i;

	for (i = 0; i < ARRAY_SIZE(windows); i++)
		KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, windows[i] * SEG + i, 1, GFP_KERNEL), 1L);

	KUNIT_ASSERT_EQ(test, pb->nr_segs, 6U);
	for (i = 1; i < pb->nr_segs; i++)
		KUNIT_EXPECT_LT(test, pb->segs[i - 1].base, pb->segs[i].base);
	/* Window 1 was used twice, by the 2nd and the 7th. */
	KUNIT_EXPECT_TRUE(test, bit_of(&pb->segs[1], 1));
	KUNIT_EXPECT_TRUE(test, bit_of(&pb->segs[1], 6));
}

/* Out of segments: said for each page, nothing is lost, and a reset helps. */
static void page_bitmap_no_memory(struct kunit *test)
{
	struct page_bitmap *pb = test->priv;

	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, 0, 1, 0), 1L);
	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, SEG, 1, 0), 1L);
	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, 2 * SEG, 1, 0), (long)-ENOSPC);
	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, SEG + 1, 1, 0), 1L);
	KUNIT_EXPECT_EQ(test, pb->nr_segs, 2U);
	expect_range(test, &pb->segs[0], 0, 1);
	expect_range(test, &pb->segs[1], 0, 2);

	page_bitmap_reset(pb);
	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, 2 * SEG, 1, 0), 1L);
	expect_range(test, &pb->segs[0], 0, 1);
}

static void page_bitmap_max_segs(struct kunit *test)
{
	struct page_bitmap *pb = test->priv;
	unsigned long i;

	for (i = 0; i < 8; i++)
		KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, i * SEG, 1, GFP_KERNEL), 1L);
	KUNIT_EXPECT_EQ(test, page_bitmap_set(pb, i * SEG, 1, GFP_KERNEL), (long)-ENOSPC);
	KUNIT_EXPECT_EQ(test, pb->nr_bufs, 8U);
}

static void page_bitmap_gives_memory_back(struct kunit *test)
{
	struct page_bitmap *pb = test->priv;
	unsigned long i;

	for (i = 0; i < 5; i++)
		page_bitmap_set(pb, i * SEG, 1, GFP_KERNEL);
	page_bitmap_trim(pb);
	KUNIT_EXPECT_EQ(test, pb->nr_bufs, 5U);
	page_bitmap_reset(pb);
	page_bitmap_trim(pb);
	KUNIT_EXPECT_EQ(test, pb->nr_bufs, 2U);
}

/* What a user wrote into a segment must not turn up as pages later. */
static void page_bitmap_reset_clears(struct kunit *test)
{
	struct page_bitmap *pb = test->priv;
	struct page_bitmap_seg *seg = &pb->segs[0];

	page_bitmap_set(pb, SEG - 1, 1, 0);
	memset(seg->buf, 0xff, PAGE_BITMAP_HEADROOM + seg->hi * 8);
	page_bitmap_reset(pb);
	page_bitmap_set(pb, 4 * SEG + 100, 1, 0);
	expect_range(test, seg, 100, 1);
}

static struct kunit_case page_bitmap_cases[] = {
	KUNIT_CASE(page_bitmap_layout),
	KUNIT_CASE(page_bitmap_single_page),
	KUNIT_CASE(page_bitmap_ranges),
	KUNIT_CASE(page_bitmap_range_over_edge),
	KUNIT_CASE(page_bitmap_highest_page),
	KUNIT_CASE(page_bitmap_keeps_order),
	KUNIT_CASE(page_bitmap_no_memory),
	KUNIT_CASE(page_bitmap_max_segs),
	KUNIT_CASE(page_bitmap_gives_memory_back),
	KUNIT_CASE(page_bitmap_reset_clears),
	{}
};

static struct kunit_suite page_bitmap_suite = {
	.name = "page_bitmap",
	.init = page_bitmap_test_init,
	.exit = page_bitmap_test_exit,
	.test_cases = page_bitmap_cases,
};

kunit_test_suite(page_bitmap_suite);

MODULE_DESCRIPTION("KUnit tests for page_bitmap");
MODULE_LICENSE("GPL");
