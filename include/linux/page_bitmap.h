/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A sparse bitmap of page frames, kept in small segments that a device can
 * read as they are: bit i of a segment is bit i % 8 of byte i / 8 on every
 * architecture.
 *
 * A *segment* covers a fixed, aligned range of page frames, its *window*. It
 * is one allocation of PAGE_BITMAP_SEG_SIZE bytes: PAGE_BITMAP_HEADROOM bytes
 * that belong to the user, then the bits. Segments are taken when a window
 * is first needed. One that cannot be had is an answer for the caller, who
 * uses up what there is, resets the bitmap and goes on; a *reserve* of
 * segments is allocated once and kept, so that this always makes progress,
 * without any allocation if need be.
 *
 * The bitmap has no lock; its user serialises all calls.
 */
#ifndef _LINUX_PAGE_BITMAP_H
#define _LINUX_PAGE_BITMAP_H

#include <linux/gfp_types.h>
#include <linux/types.h>

#define PAGE_BITMAP_SEG_SIZE	4096
#define PAGE_BITMAP_HEADROOM	32

/*
 * Words of 64 bits in a segment. A multiple of 8, so that a window begins and
 * ends on a multiple of 512 pages: 2 MiB with pages of 4 KiB.
 */
#define PAGE_BITMAP_SEG_WORDS \
	((PAGE_BITMAP_SEG_SIZE - PAGE_BITMAP_HEADROOM) / 64 * 8)

/* Page frames in the window of a segment. */
#define PAGE_BITMAP_SEG_PAGES	(PAGE_BITMAP_SEG_WORDS * 64UL)

/**
 * struct page_bitmap_seg - the bits of one window
 * @base: page frame of bit 0, a multiple of PAGE_BITMAP_SEG_PAGES
 * @lo: first word with a bit set
 * @hi: the word after the last one with a bit set
 * @buf: PAGE_BITMAP_SEG_SIZE bytes: headroom, then the bits
 */
struct page_bitmap_seg {
	unsigned long base;
	unsigned int lo;
	unsigned int hi;
	void *buf;
};

/**
 * struct page_bitmap - a sparse bitmap of page frames
 * @segs: the segments; those in use come first, in the order of their
 *	windows, then those that have a buffer but no window yet
 * @nr_segs: number of segments in use
 * @nr_bufs: number of segments that have a buffer
 * @max_segs: number of segments there may be
 * @reserve: number of buffers that are never given back
 * @last: index of the segment that was used last, a hint for the next look-up
 */
struct page_bitmap {
	struct page_bitmap_seg *segs;
	unsigned int nr_segs;
	unsigned int nr_bufs;
	unsigned int max_segs;
	unsigned int reserve;
	unsigned int last;
};

int page_bitmap_init(struct page_bitmap *pb, unsigned int max_segs,
		     unsigned int reserve);
void page_bitmap_destroy(struct page_bitmap *pb);
long page_bitmap_set(struct page_bitmap *pb, unsigned long pfn,
		     unsigned long nr, gfp_t gfp);
void page_bitmap_reset(struct page_bitmap *pb);
void page_bitmap_trim(struct page_bitmap *pb);

static inline bool page_bitmap_empty(const struct page_bitmap *pb)
{
	return !pb->nr_segs;
}

/* The words of a segment; those outside [lo, hi) are zero. */
static inline __le64 *page_bitmap_seg_words(const struct page_bitmap_seg *seg)
{
	return seg->buf + PAGE_BITMAP_HEADROOM;
}

#endif /* _LINUX_PAGE_BITMAP_H */
