// SPDX-License-Identifier: GPL-2.0
/*
 * Sparse bitmaps of page frames, to tell a device about many pages at once.
 */
#include <linux/export.h>
#include <linux/minmax.h>
#include <linux/page_bitmap.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/bits.h>
#include <linux/bug.h>

/**
 * page_bitmap_init() - prepare an empty bitmap
 * @pb: the bitmap
 * @max_segs: number of segments there may be, at least one
 * @reserve: number of segments to allocate now and to keep, 1 to @max_segs
 *
 * Context: Process context. May sleep.
 * Return: 0, or -ENOMEM, when nothing is left allocated.
 */
int page_bitmap_init(struct page_bitmap *pb, unsigned int max_segs,
		     unsigned int reserve)
{
	memset(pb, 0, sizeof(*pb));
	pb->segs = kcalloc(max_segs, sizeof(*pb->segs), GFP_KERNEL);
	if (!pb->segs)
		return -ENOMEM;
	pb->max_segs = max_segs;
	pb->reserve = reserve;

	while (pb->nr_bufs < reserve) {
		void *buf = kzalloc(PAGE_BITMAP_SEG_SIZE, GFP_KERNEL);

		if (!buf) {
			page_bitmap_destroy(pb);
			return -ENOMEM;
		}
		pb->segs[pb->nr_bufs++].buf = buf;
	}
	return 0;
}
EXPORT_SYMBOL_GPL(page_bitmap_init);

/**
 * page_bitmap_destroy() - give back all memory of a bitmap
 * @pb: the bitmap, which may be zeroed and never initialised
 *
 * Context: Any context that may call kfree().
 */
void page_bitmap_destroy(struct page_bitmap *pb)
{
	while (pb->nr_bufs)
		kfree(pb->segs[--pb->nr_bufs].buf);
	kfree(pb->segs);
	memset(pb, 0, sizeof(*pb));
}
EXPORT_SYMBOL_GPL(page_bitmap_destroy);

/* Index of the first segment in use whose window is not below @base. */
static unsigned int page_bitmap_find(const struct page_bitmap *pb,
				     unsigned long base)
{
	unsigned int lo = 0, hi = pb->nr_segs;

	if (pb->last < hi && pb->segs[pb->last].base == base)
		return pb->last;

	while (lo < hi) {
		unsigned int mid = lo + (hi - lo) / 2;

		if (pb->segs[mid].base < base)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Give the window at @base a segment, at its place @at in the order. */
static bool page_bitmap_insert(struct page_bitmap *pb, unsigned int at,
			       unsigned long base, gfp_t gfp)
{
	struct page_bitmap_seg *seg = &pb->segs[at];
	void *buf;

	if (pb->nr_segs == pb->nr_bufs) {
		if (!gfp || pb->nr_bufs == pb->max_segs)
			return false;
		buf = kzalloc(PAGE_BITMAP_SEG_SIZE, gfp);
		if (!buf)
			return false;
		pb->segs[pb->nr_bufs++].buf = buf;
	}

	buf = pb->segs[pb->nr_segs].buf;
	memmove(seg + 1, seg, (pb->nr_segs - at) * sizeof(*seg));
	pb->nr_segs++;

	seg->base = base;
	seg->lo = PAGE_BITMAP_SEG_WORDS;
	seg->hi = 0;
	seg->buf = buf;
	return true;
}

/**
 * page_bitmap_set() - add a range of page frames
 * @pb: the bitmap
 * @pfn: first page frame
 * @nr: number of page frames, at least one
 * @gfp: how to allocate a segment where one is missing; 0 uses only those
 *	that the bitmap has
 *
 * Sets the bits of the part of the range that lies in the window of @pfn.
 * A caller with a longer range calls again for the rest.
 *
 * Context: As @gfp demands.
 * Return: the number of page frames added, from @pfn on, or -ENOSPC when
 * there is no segment for @pfn: the caller is to use what the bitmap holds,
 * reset it, and call again, which then works.
 */
long page_bitmap_set(struct page_bitmap *pb, unsigned long pfn,
		     unsigned long nr, gfp_t gfp)
{
	unsigned long first = pfn % PAGE_BITMAP_SEG_PAGES;
	unsigned long base = pfn - first;
	unsigned int at = page_bitmap_find(pb, base);
	struct page_bitmap_seg *seg;
	unsigned int word, bit;
	unsigned long left;
	__le64 *words;

	if (at == pb->nr_segs || pb->segs[at].base != base) {
		if (!page_bitmap_insert(pb, at, base, gfp))
			return -ENOSPC;
	}
	pb->last = at;

	seg = &pb->segs[at];
	words = page_bitmap_seg_words(seg);
	nr = min(nr, PAGE_BITMAP_SEG_PAGES - first);
	word = first / 64;
	bit = first % 64;
	seg->lo = min(seg->lo, word);

	for (left = nr; left; word++, bit = 0) {
		unsigned int n = min(left, 64UL - bit);

		words[word] |= cpu_to_le64(GENMASK_ULL(bit + n - 1, bit));
		left -= n;
	}
	seg->hi = max(seg->hi, word);
	return nr;
}
EXPORT_SYMBOL_GPL(page_bitmap_set);

/**
 * page_bitmap_reset() - forget all page frames, keep the memory
 * @pb: the bitmap
 *
 * The user may have written anything to the headroom of a segment and to its
 * words below the highest that was in use, but not beyond.
 *
 * Context: Any context.
 */
void page_bitmap_reset(struct page_bitmap *pb)
{
	unsigned int i;

	for (i = 0; i < pb->nr_segs; i++) {
		struct page_bitmap_seg *seg = &pb->segs[i];

		memset(page_bitmap_seg_words(seg), 0, seg->hi * sizeof(__le64));
	}
	pb->nr_segs = 0;
}
EXPORT_SYMBOL_GPL(page_bitmap_reset);

/**
 * page_bitmap_trim() - give back all memory that no bit needs
 * @pb: the bitmap
 *
 * The reserve stays.
 *
 * Context: Any context that may call kfree().
 */
void page_bitmap_trim(struct page_bitmap *pb)
{
	unsigned int keep = max(pb->nr_segs, pb->reserve);

	while (pb->nr_bufs > keep)
		kfree(pb->segs[--pb->nr_bufs].buf);
}
EXPORT_SYMBOL_GPL(page_bitmap_trim);
