// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for the records that virtio_balloon sends.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/virtio_balloon.h>

#include "../virtio_balloon_bitmap.h"

#define SEG	PAGE_BITMAP_SEG_PAGES
#define HDR	sizeof(struct virtio_balloon_bmap_hdr)
#define REQ_ID	0x123456789abcdef0ULL
#define CMD	0x4321

struct balloon_test {
	struct page_bitmap pb;
	/* What was put in and what was read back, a byte for each page. */
	u8 *want;
	u8 *got;
};

static int balloon_test_init(struct kunit *test)
{
	struct balloon_test *bt = kunit_kzalloc(test, sizeof(*bt), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, bt);
	bt->want = kunit_kzalloc(test, SEG, GFP_KERNEL);
	bt->got = kunit_kzalloc(test, SEG, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, bt->want);
	KUNIT_ASSERT_NOT_NULL(test, bt->got);
	KUNIT_ASSERT_EQ(test, page_bitmap_init(&bt->pb, 1, 1), 0);
	test->priv = bt;
	return 0;
}

static void balloon_test_exit(struct kunit *test)
{
	struct balloon_test *bt = test->priv;

	if (bt)
		page_bitmap_destroy(&bt->pb);
}

static void put(struct kunit *test, unsigned long first, unsigned long nr)
{
	struct balloon_test *bt = test->priv;

	KUNIT_ASSERT_EQ(test, page_bitmap_set(&bt->pb, 3 * SEG + first, nr, 0), (long)nr);
	memset(bt->want + first, 1, nr);
}

/*
 * Pack the segment and read the records as a device does, which trusts
 * nothing. Returns their number and gives their length.
 */
static unsigned int pack(struct kunit *test, unsigned int *len)
{
	struct balloon_test *bt = test->priv;
	struct page_bitmap_seg *seg = &bt->pb.segs[0];
	unsigned int nr = 0, pos = 0, wrong = 0, i;

	*len = balloon_bitmap_pack(seg, CMD, REQ_ID);
	KUNIT_ASSERT_LE(test, *len, PAGE_BITMAP_SEG_SIZE);

	while (pos < *len) {
		const struct virtio_balloon_bmap_hdr *hdr = seg->buf + pos;
		u64 start = le64_to_cpu(hdr->start_pfn);
		u64 bytes = le64_to_cpu(hdr->bmap_len);
		const u8 *bits = (const u8 *)(hdr + 1);

		KUNIT_EXPECT_EQ(test, le16_to_cpu(hdr->cmd), CMD);
		KUNIT_EXPECT_EQ(test, le16_to_cpu(hdr->flag), 0);
		KUNIT_EXPECT_EQ(test, le16_to_cpu(hdr->reserved), 0);
		KUNIT_EXPECT_EQ(test, le64_to_cpu(hdr->req_id), REQ_ID);
		KUNIT_EXPECT_EQ(test, le16_to_cpu(hdr->page_shift), PAGE_SHIFT);
		KUNIT_EXPECT_EQ(test, start % 64, 0ULL);
		KUNIT_EXPECT_EQ(test, bytes % 8, 0ULL);
		KUNIT_EXPECT_GT(test, bytes, 0ULL);
		KUNIT_EXPECT_LE(test, bytes, (u64)VIRTIO_BALLOON_BMAP_MAX_LEN);
		KUNIT_ASSERT_LE(test, pos + HDR + bytes, (u64)*len);
		KUNIT_ASSERT_GE(test, start, (u64)3 * SEG);
		KUNIT_ASSERT_LE(test, start + bytes * 8, (u64)4 * SEG);

		for (i = 0; i < bytes * 8; i++) {
			if (bits[i / 8] & (1 << (i % 8)))
				bt->got[start + i - 3 * SEG] = 1;
		}
		pos += HDR + bytes;
		nr++;
	}
	KUNIT_EXPECT_EQ(test, pos, *len);
	/* MEMEQ would print all of both, which takes minutes. */
	KUNIT_EXPECT_EQ(test, memcmp(bt->got, bt->want, SEG), 0);

	/* And as the driver does, which asks for single pages. */
	for (i = 0; i < SEG; i += 1 + i % 7)
		wrong += balloon_bitmap_packed(seg, 3 * SEG + i) != bt->want[i];
	KUNIT_EXPECT_EQ(test, wrong, 0);

	page_bitmap_reset(&bt->pb);
	memset(bt->want, 0, SEG);
	memset(bt->got, 0, SEG);
	return nr;
}

/* One page is one record of one word, wherever it is. */
static void balloon_record_single_page(struct kunit *test)
{
	static const unsigned long pages[] = { 0, 1, 63, 64, 128, 511, SEG - 64, SEG - 1 };
	unsigned int len;
	int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		put(test, pages[i], 1);
		KUNIT_EXPECT_EQ(test, pack(test, &len), 1U);
		KUNIT_EXPECT_EQ(test, len, (unsigned int)HDR + 8);
	}
}

/* A range shorter than a segment, one that ends at its edge, and all of it. */
static void balloon_record_ranges(struct kunit *test)
{
	unsigned int len;

	put(test, 10, 300);
	KUNIT_EXPECT_EQ(test, pack(test, &len), 1U);
	KUNIT_EXPECT_EQ(test, len, (unsigned int)HDR + 5 * 8);

	put(test, SEG - 512, 512);
	KUNIT_EXPECT_EQ(test, pack(test, &len), 1U);
	KUNIT_EXPECT_EQ(test, len, (unsigned int)HDR + 8 * 8);

	put(test, 0, SEG);
	KUNIT_EXPECT_EQ(test, pack(test, &len), 1U);
	KUNIT_EXPECT_EQ(test, len, (unsigned int)(HDR + SEG / 8));
}

/* Zeros are sent while that is shorter than a second header. */
static void balloon_record_gaps(struct kunit *test)
{
	unsigned int len, gap;

	for (gap = 0; gap < 12; gap++) {
		put(test, 64, 1);
		put(test, 64 * (2 + gap), 1);
		if (gap * 8 <= HDR) {
			KUNIT_EXPECT_EQ(test, pack(test, &len), 1U);
			KUNIT_EXPECT_EQ(test, len, (unsigned int)HDR + (2 + gap) * 8);
		} else {
			KUNIT_EXPECT_EQ(test, pack(test, &len), 2U);
			KUNIT_EXPECT_EQ(test, len, 2 * ((unsigned int)HDR + 8));
		}
	}
}

/* As many records as a segment can need. */
static void balloon_record_most(struct kunit *test)
{
	unsigned int len, nr = 0;
	unsigned long i;

	for (i = 0; i < SEG; i += 6 * 64, nr++)
		put(test, i, 1);
	KUNIT_EXPECT_EQ(test, pack(test, &len), nr);
}

/* Whatever is put in comes out, no more and no less. */
static void balloon_record_random(struct kunit *test)
{
	struct rnd_state rnd;
	unsigned int len, round;

	prandom_seed_state(&rnd, 20161108);
	for (round = 0; round < 200; round++) {
		unsigned int n = 1 + prandom_u32_state(&rnd) % 100;

		while (n--) {
			unsigned long first = prandom_u32_state(&rnd) % SEG;
			unsigned long max = min(SEG - first, 1UL << (round % 12));

			put(test, first, 1 + prandom_u32_state(&rnd) % max);
		}
		pack(test, &len);
	}
}

/* Records that the device has written over name any page, and do not lead astray. */
static void balloon_record_spoilt(struct kunit *test)
{
	struct balloon_test *bt = test->priv;
	struct page_bitmap_seg *seg = &bt->pb.segs[0];
	struct rnd_state rnd;
	unsigned int round;

	put(test, 64, 1);
	put(test, SEG - 1, 1);
	balloon_bitmap_pack(seg, CMD, REQ_ID);
	memset(seg->buf, 0xff, HDR);
	KUNIT_EXPECT_TRUE(test, balloon_bitmap_packed(seg, 3 * SEG + 65));
	memset(seg->buf, 0, HDR);
	KUNIT_EXPECT_TRUE(test, balloon_bitmap_packed(seg, 3 * SEG + 65));

	/* Under a sanitizer it shows if it reads what is not there. */
	prandom_seed_state(&rnd, 20261129);
	for (round = 0; round < 10000; round++) {
		struct virtio_balloon_bmap_hdr *hdr = seg->buf;

		hdr->start_pfn = cpu_to_le64(3 * SEG + prandom_u32_state(&rnd) % SEG);
		hdr->bmap_len = cpu_to_le64(prandom_u32_state(&rnd) % (2 * PAGE_BITMAP_SEG_SIZE));
		balloon_bitmap_packed(seg, 3 * SEG + prandom_u32_state(&rnd) % SEG);
	}
	page_bitmap_reset(&bt->pb);
}

/* What the documentation promises of memory that is kept and of stack use. */
static void balloon_bitmap_bounds(struct kunit *test)
{
	KUNIT_EXPECT_LE(test, sizeof(struct balloon_bitmap) +
			BALLOON_BITMAP_MAX_SEGS * sizeof(struct page_bitmap_seg) +
			BALLOON_BITMAP_RESERVE * PAGE_BITMAP_SEG_SIZE, (size_t)SZ_64K);
	KUNIT_EXPECT_LE(test, BALLOON_BITMAP_MSG_SEGS * PAGE_BITMAP_SEG_SIZE,
			VIRTIO_BALLOON_BMAP_MAX_MSG);
}

static struct kunit_case balloon_cases[] = {
	KUNIT_CASE(balloon_record_single_page),
	KUNIT_CASE(balloon_record_ranges),
	KUNIT_CASE(balloon_record_gaps),
	KUNIT_CASE(balloon_record_most),
	KUNIT_CASE(balloon_record_random),
	KUNIT_CASE(balloon_record_spoilt),
	KUNIT_CASE(balloon_bitmap_bounds),
	{}
};

static struct kunit_suite balloon_suite = {
	.name = "virtio_balloon_bitmap",
	.init = balloon_test_init,
	.exit = balloon_test_exit,
	.test_cases = balloon_cases,
};

kunit_test_suite(balloon_suite);

MODULE_IMPORT_NS(EXPORTED_FOR_KUNIT_TESTING);
MODULE_DESCRIPTION("KUnit tests for virtio_balloon");
MODULE_LICENSE("GPL");
