// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for how virtio_balloon understands what the device asks.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/virtio_balloon.h>

#include "../virtio_balloon_misc.h"

/* A request for unused pages, as the device writes it. */
struct misc_request {
	struct virtio_balloon_req_hdr hdr;
	struct virtio_balloon_req_range range;
};

#define LEN	sizeof(struct misc_request)
#define ID	0xfedcba9876543210ULL
/* Pages of 4 KiB in one of the guest's. */
#define SMALL	(PAGE_SIZE >> VIRTIO_BALLOON_PFN_SHIFT)

static struct misc_request request(u64 start, u64 nr, unsigned int shift)
{
	return (struct misc_request) {
		.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_UNUSED_PAGES),
		.hdr.id = cpu_to_le64(ID),
		.range.start_pfn = cpu_to_le64(start),
		.range.nr_pages = cpu_to_le64(nr),
		.range.page_shift = cpu_to_le16(shift),
	};
}

static struct balloon_misc *misc_new(struct kunit *test)
{
	struct balloon_misc *misc = kunit_kzalloc(test, sizeof(*misc), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, misc);
	return misc;
}

/* Ranges, in the device's unit and what must come out of them in the guest's. */
static void misc_range(struct kunit *test)
{
	const struct {
		u64 start, nr;
		unsigned int shift;
		unsigned long pfn, end;
	} cases[] = {
		{ 0, 0, 12, 0, 0 },
		{ 0, SMALL, 12, 0, 1 },
		{ 64 * SMALL, 1000 * SMALL, 12, 64, 1064 },
		{ 3, 5, PAGE_SHIFT, 3, 8 },
		{ 1, 1, 30, SZ_1G / PAGE_SIZE, 2 * (SZ_1G / PAGE_SIZE) },
		/* Only whole pages: a part of one is not the guest's to report. */
		{ 1, 2 * SMALL - 1, 12, 1, 2 },
		{ SMALL - 1, 1, 12, SMALL > 1 ? 1 : 0, 1 },
		/* As far as addresses reach. */
		{ 0, U64_MAX >> 12, 12, 0, min_t(u64, (U64_MAX >> 12) / SMALL, ULONG_MAX) },
	};
	struct balloon_misc *misc = misc_new(test);
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct misc_request req = request(cases[i].start, cases[i].nr, cases[i].shift);

		KUNIT_EXPECT_EQ_MSG(test, balloon_misc_parse(misc, &req, LEN), 0, "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, misc->pfn, cases[i].pfn, "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, misc->end_pfn, cases[i].end, "case %d", i);
		KUNIT_EXPECT_EQ(test, misc->id, ID);
		KUNIT_EXPECT_EQ(test, le64_to_cpu(misc->end.req_id), ID);
		KUNIT_EXPECT_EQ(test, le16_to_cpu(misc->end.flag), VIRTIO_BALLOON_BMAP_FLAG_DONE);
		KUNIT_EXPECT_EQ(test, le64_to_cpu(misc->end.bmap_len), 0ULL);
	}
}

/* Whatever is wrong with a request, the answer can still say which it was. */
static void misc_bad_request(struct kunit *test)
{
	struct misc_request good = request(64, 64, 12), bad[9];
	struct balloon_misc *misc = misc_new(test);
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		bad[i] = good;
	bad[0].hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_SYNC + 1);
	bad[1].hdr.cmd = cpu_to_le16(0xffff);
	bad[2].hdr.reserved[2] = cpu_to_le16(1);
	bad[3].range.reserved[0] = cpu_to_le16(1);
	bad[4].range.page_shift = cpu_to_le16(11);
	bad[5].range.page_shift = cpu_to_le16(31);
	bad[6].range.start_pfn = cpu_to_le64(1ULL << 52);
	bad[7].range.nr_pages = cpu_to_le64((1ULL << 52) - 64);

	bad[8].hdr.id = 0;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		KUNIT_EXPECT_EQ_MSG(test, balloon_misc_parse(misc, &bad[i], LEN), -EINVAL,
				    "case %d", i);
		KUNIT_EXPECT_EQ(test, le64_to_cpu(misc->end.req_id), i == 8 ? 0 : ID);
		KUNIT_EXPECT_EQ(test, le16_to_cpu(misc->end.cmd), le16_to_cpu(bad[i].hdr.cmd));
	}
	KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, &good, LEN), 0);
}

/* To trim is the same range, and says so; what is answered by a number is a job. */
static void misc_other_requests(struct kunit *test)
{
	struct misc_request trim = request(64 * SMALL, 1000 * SMALL, 12);
	struct {
		struct virtio_balloon_req_hdr hdr;
		struct virtio_balloon_req_reclaim reclaim;
	} req = {
		.hdr.id = cpu_to_le64(ID),
		.reclaim.bytes = cpu_to_le64(SZ_1M + 1),
		.reclaim.msecs = cpu_to_le32(VIRTIO_BALLOON_REQ_MAX_MSECS),
		.reclaim.flags = cpu_to_le32(VIRTIO_BALLOON_REQ_RECLAIM_SWAP),
	};
	struct balloon_misc *misc = misc_new(test);
	unsigned int cmd;

	trim.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_TRIM);
	KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, &trim, LEN), 0);
	KUNIT_EXPECT_EQ(test, misc->pfn, 64);
	KUNIT_EXPECT_EQ(test, misc->end_pfn, 1064);
	KUNIT_EXPECT_NULL(test, misc->job.step);
	trim.hdr.id = 0;
	KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, &trim, LEN), -EINVAL);

	for (cmd = VIRTIO_BALLOON_REQ_RECLAIM; cmd <= VIRTIO_BALLOON_REQ_SYNC; cmd++) {
		size_t len = cmd == VIRTIO_BALLOON_REQ_RECLAIM ? sizeof(req) : sizeof(req.hdr);

		req.hdr.cmd = cpu_to_le16(cmd);
		KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, &req, len - 1), -EINVAL);
		KUNIT_EXPECT_NULL(test, misc->job.step);
		KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, &req, len), 0);
		KUNIT_EXPECT_NOT_NULL(test, misc->job.step);
		KUNIT_EXPECT_EQ(test, le16_to_cpu(misc->end.cmd), cmd);
	}
	/* What the last one left is not the next one's. */
	trim.hdr.id = cpu_to_le64(ID);
	KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, &trim, LEN), 0);
	KUNIT_EXPECT_NULL(test, misc->job.step);
}

/* How much is to be reclaimed, for how long, and how, are all bounded. */
static void misc_bad_reclaim(struct kunit *test)
{
	static const struct {
		u64 bytes;
		u32 msecs, flags;
		int ret;
	} cases[] = {
		{ 1, 1, 0, 0 },
		{ U64_MAX, VIRTIO_BALLOON_REQ_MAX_MSECS, VIRTIO_BALLOON_REQ_RECLAIM_SWAP, 0 },
		{ 0, 1, 0, -EINVAL },
		{ 1, 0, 0, -EINVAL },
		{ 1, VIRTIO_BALLOON_REQ_MAX_MSECS + 1, 0, -EINVAL },
		{ 1, U32_MAX, 0, -EINVAL },
		{ 1, 1, 2, -EINVAL },
		{ 1, 1, 1U << 31 | 1, -EINVAL },
	};
	struct balloon_misc *misc = misc_new(test);
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct {
			struct virtio_balloon_req_hdr hdr;
			struct virtio_balloon_req_reclaim reclaim;
		} req = {
			.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_RECLAIM),
			.hdr.id = cpu_to_le64(ID),
			.reclaim.bytes = cpu_to_le64(cases[i].bytes),
			.reclaim.msecs = cpu_to_le32(cases[i].msecs),
			.reclaim.flags = cpu_to_le32(cases[i].flags),
		};

		KUNIT_EXPECT_EQ_MSG(test, balloon_misc_parse(misc, &req, sizeof(req)),
				    cases[i].ret, "case %d", i);
		if (cases[i].ret)
			continue;
		KUNIT_EXPECT_EQ(test, misc->job.bytes, cases[i].bytes);
		KUNIT_EXPECT_EQ(test, misc->job.swap, cases[i].flags);
	}
}

/* The used length is the device's word: too short and too long are refused. */
static void misc_bad_length(struct kunit *test)
{
	struct balloon_misc *misc = misc_new(test);
	struct misc_request req = request(64, 64, 12);
	u8 buf[VIRTIO_BALLOON_REQ_LEN + 1] = {};
	size_t len;

	memcpy(buf, &req, sizeof(req));
	for (len = 0; len < LEN; len++)
		KUNIT_EXPECT_EQ_MSG(test, balloon_misc_parse(misc, buf, len), -EINVAL,
				    "length %zu", len);
	for (len = LEN; len <= VIRTIO_BALLOON_REQ_LEN; len++)
		KUNIT_EXPECT_EQ_MSG(test, balloon_misc_parse(misc, buf, len), 0,
				    "length %zu", len);
	KUNIT_EXPECT_EQ(test, balloon_misc_parse(misc, buf, VIRTIO_BALLOON_REQ_LEN + 1), -EINVAL);
	/* Without a header there is no id to answer to. */
	KUNIT_EXPECT_EQ(test, le64_to_cpu(misc->end.req_id), 0ULL);
}

static struct kunit_case virtio_balloon_misc_cases[] = {
	KUNIT_CASE(misc_range),
	KUNIT_CASE(misc_bad_request),
	KUNIT_CASE(misc_other_requests),
	KUNIT_CASE(misc_bad_reclaim),
	KUNIT_CASE(misc_bad_length),
	{}
};

static struct kunit_suite virtio_balloon_misc_suite = {
	.name = "virtio_balloon_misc",
	.test_cases = virtio_balloon_misc_cases,
};

kunit_test_suite(virtio_balloon_misc_suite);

MODULE_IMPORT_NS(EXPORTED_FOR_KUNIT_TESTING);
MODULE_DESCRIPTION("KUnit tests for the misc queue of virtio_balloon");
MODULE_LICENSE("GPL");
