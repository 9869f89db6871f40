// SPDX-License-Identifier: GPL-2.0
/*
 * Tell the host about pages of a virtio balloon by page bitmaps, in bulk.
 */
#include <linux/balloon_compaction.h>
#include <linux/jiffies.h>
#include <linux/lockdep.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>

#include <kunit/visibility.h>

#include "virtio_balloon_bitmap.h"

/* Pages that one hold of pages_lock, with interrupts off, moves. */
#define BALLOON_BITMAP_BATCH	1024

/* So long after the last page went in or out, the balloon stands still. */
#define BALLOON_BITMAP_SETTLE	(HZ / 10 + 1)

/* A gap of as many zero words takes the room of a header, or more. */
#define BALLOON_BITMAP_GAP	(sizeof(struct virtio_balloon_bmap_hdr) / sizeof(__le64))

static_assert(sizeof(struct virtio_balloon_bmap_hdr) == PAGE_BITMAP_HEADROOM);
static_assert(PAGE_BITMAP_SEG_WORDS * sizeof(__le64) <= VIRTIO_BALLOON_BMAP_MAX_LEN);
static_assert(BALLOON_BITMAP_MSG_SEGS * PAGE_BITMAP_SEG_SIZE <=
	      VIRTIO_BALLOON_BMAP_MAX_MSG);

/**
 * balloon_bitmap_init() - prepare the sender at probe
 * @bb: the sender; vdev, b_dev_info, lock, acked and count_managed are set
 * @max_pfn: how far memory reaches; a hint, higher pages work too
 *
 * Context: Process context. May sleep.
 * Return: 0 or -ENOMEM.
 */
int balloon_bitmap_init(struct balloon_bitmap *bb, unsigned long max_pfn)
{
	return page_bitmap_init(&bb->pages,
				clamp_t(unsigned long, max_pfn / PAGE_BITMAP_SEG_PAGES + 1,
					BALLOON_BITMAP_RESERVE, BALLOON_BITMAP_MAX_SEGS),
				BALLOON_BITMAP_RESERVE);
}

/**
 * balloon_bitmap_destroy() - give back all memory
 * @bb: the sender, detached or never attached
 */
void balloon_bitmap_destroy(struct balloon_bitmap *bb)
{
	page_bitmap_destroy(&bb->pages);
}

/**
 * balloon_bitmap_attach() - begin to use a pair of queues
 * @bb: the sender
 * @inflate_vq: pages that go into the balloon
 * @deflate_vq: pages that come out of it
 *
 * Context: Probe or restore: nobody else uses @bb.
 */
void balloon_bitmap_attach(struct balloon_bitmap *bb, struct virtqueue *inflate_vq,
			   struct virtqueue *deflate_vq)
{
	bb->inflate_vq = inflate_vq;
	bb->deflate_vq = deflate_vq;
	bb->moved = get_jiffies_64();
	bb->quiet = false;
}

/**
 * balloon_bitmap_detach() - send nothing any more
 * @bb: the sender
 *
 * From now on pages leave the balloon without a word to the device, and
 * messages that it has not used are forgotten.
 *
 * Context: The device was reset, or a queue is broken and no message in
 * flight. balloon_lock is held, or nobody else uses @bb.
 */
void balloon_bitmap_detach(struct balloon_bitmap *bb)
{
	bb->quiet = true;
	bb->inflight = 0;
	page_bitmap_reset(&bb->pages);
	page_bitmap_trim(&bb->pages);
}

/**
 * balloon_bitmap_usable() - can the device be told of pages?
 * @bb: the sender
 *
 * Context: balloon_lock is held.
 * Return: false once a queue broke, until the next balloon_bitmap_attach().
 */
bool balloon_bitmap_usable(const struct balloon_bitmap *bb)
{
	return !bb->quiet && !bb->inflight &&
	       !virtqueue_is_broken(bb->inflate_vq) &&
	       !virtqueue_is_broken(bb->deflate_vq);
}

/**
 * balloon_bitmap_migratable() - may pages of the balloon be migrated?
 * @bb: the sender
 *
 * Not while it moves: what is left between the pages that it takes looks like
 * fragmentation, and compaction would answer by moving pages of the balloon,
 * each for two messages, while the next ones are on their way.
 *
 * Context: balloon_lock is held.
 * Return: true if so; false also when the device cannot be told.
 */
bool balloon_bitmap_migratable(const struct balloon_bitmap *bb)
{
	return balloon_bitmap_usable(bb) &&
	       time_after_eq64(get_jiffies_64(), bb->moved + BALLOON_BITMAP_SETTLE);
}

static void *balloon_bitmap_put_record(void *to, u64 req_id, unsigned long pfn,
				       const __le64 *words, unsigned int nr)
{
	struct virtio_balloon_bmap_hdr *hdr = to;

	memmove(hdr + 1, words, nr * sizeof(*words));
	*hdr = (struct virtio_balloon_bmap_hdr) {
		.page_shift = cpu_to_le16(PAGE_SHIFT),
		.req_id = cpu_to_le64(req_id),
		.start_pfn = cpu_to_le64(pfn),
		.bmap_len = cpu_to_le64(nr * sizeof(*words)),
	};
	return to + sizeof(*hdr) + nr * sizeof(*words);
}

/**
 * balloon_bitmap_pack() - turn a segment into records, in its own memory
 * @seg: the segment; its bits are lost
 * @req_id: the request that is answered; 0 on the inflate and the deflate queue
 *
 * Words of zeros at either end are left out, and so are those between, as soon
 * as they take more room than a further header. A record is never longer than
 * what it replaces, and they are written from the beginning on, hence never
 * over words that were not read.
 *
 * Return: the length of all records in bytes, from the start of the buffer.
 */
unsigned int balloon_bitmap_pack(struct page_bitmap_seg *seg, u64 req_id)
{
	const __le64 *words = page_bitmap_seg_words(seg);
	unsigned int i = seg->lo, start = seg->lo, end = seg->lo;
	void *to = seg->buf;

	for (; i < seg->hi; i++) {
		if (!words[i])
			continue;
		if (i - end > BALLOON_BITMAP_GAP) {
			to = balloon_bitmap_put_record(to, req_id, seg->base + start * 64,
						       words + start, end - start);
			start = i;
		}
		end = i + 1;
	}
	to = balloon_bitmap_put_record(to, req_id, seg->base + start * 64,
				       words + start, end - start);
	return to - seg->buf;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_bitmap_pack);

/* Collect what the device has used; true when at most @left messages are not. */
static bool balloon_bitmap_reap(struct balloon_bitmap *bb, struct virtqueue *vq,
				unsigned int left)
{
	unsigned int len;

	while (bb->inflight && virtqueue_get_buf(vq, &len))
		bb->inflight--;
	return bb->inflight <= left;
}

/*
 * Wait until at most @left messages are in flight. A queue that breaks wakes
 * nobody, hence the timeout.
 */
static int balloon_bitmap_wait(struct balloon_bitmap *bb, struct virtqueue *vq,
			       unsigned int left)
{
	while (!wait_event_timeout(*bb->acked,
				   balloon_bitmap_reap(bb, vq, left), HZ)) {
		if (virtqueue_is_broken(vq))
			return -EIO;
	}
	return 0;
}

/*
 * Send all that the bitmap holds. Returns when the device has used it, with
 * the bitmap empty, or with -EIO when that will not happen any more.
 */
static int balloon_bitmap_flush(struct balloon_bitmap *bb, struct virtqueue *vq)
{
	struct page_bitmap *pages = &bb->pages;
	unsigned int done = 0, i, nr;
	int err = 0;

	if (bb->quiet)
		goto out_reset;

	while (done < pages->nr_segs) {
		nr = min3(pages->nr_segs - done, virtqueue_get_vring_size(vq),
			  (unsigned int)BALLOON_BITMAP_MSG_SEGS);
		sg_init_table(bb->sg, nr);
		for (i = 0; i < nr; i++) {
			struct page_bitmap_seg *seg = &pages->segs[done + i];

			sg_set_buf(&bb->sg[i], seg->buf, balloon_bitmap_pack(seg, 0));
		}

		/* The ring has room for any message once it is empty. */
		while ((err = virtqueue_add_outbuf(vq, bb->sg, nr, bb, GFP_NOWAIT)) == -ENOSPC &&
		       bb->inflight) {
			virtqueue_kick(vq);
			err = balloon_bitmap_wait(bb, vq, bb->inflight - 1);
			if (err)
				return err;
		}
		if (err) {
			if (!virtqueue_is_broken(vq))
				dev_err_once(&bb->vdev->dev, "cannot send a page bitmap: %d\n",
					     err);
			break;
		}
		bb->inflight++;
		done += nr;
	}

	virtqueue_kick(vq);
	if (balloon_bitmap_wait(bb, vq, 0))
		return -EIO;
out_reset:
	page_bitmap_reset(pages);
	return err;
}

/* Add page frames to the bitmap. Flushes when there is no room for them. */
static int balloon_bitmap_add(struct balloon_bitmap *bb, struct virtqueue *vq,
			      unsigned long pfn, unsigned long nr, gfp_t gfp)
{
	while (nr) {
		long n = page_bitmap_set(&bb->pages, pfn, nr, gfp);

		if (n < 0) {
			int err = balloon_bitmap_flush(bb, vq);

			if (err)
				return err;
			continue;
		}
		pfn += n;
		nr -= n;
	}
	return 0;
}

/* Tell the device about every page of a list of blocks. */
static int balloon_bitmap_tell(struct balloon_bitmap *bb, struct virtqueue *vq,
			       struct list_head *pages, gfp_t gfp)
{
	unsigned long pfn = 0, nr = 0;
	struct page *page;
	int err;

	list_for_each_entry(page, pages, lru) {
		unsigned long block = 1UL << page_private(page);

		if (nr && page_to_pfn(page) == pfn + nr) {
			nr += block;
			continue;
		}
		err = balloon_bitmap_add(bb, vq, pfn, nr, gfp);
		if (err)
			return err;
		pfn = page_to_pfn(page);
		nr = block;
	}
	err = balloon_bitmap_add(bb, vq, pfn, nr, gfp);
	if (!err)
		err = balloon_bitmap_flush(bb, vq);
	if (!err)
		page_bitmap_trim(&bb->pages);
	return err;
}

/**
 * balloon_bitmap_inflate() - put pages into the balloon
 * @bb: the sender
 * @pages: pages that are not initialised, in blocks, BALLOON_BITMAP_CHUNK bytes
 *	of them at most; empty afterwards, unless the queue is broken: then the
 *	pages are still the caller's
 *
 * Context: Process context, balloon_lock is held. Waits for the device.
 * Return: true when the pages were put into the balloon, all of them.
 */
bool balloon_bitmap_inflate(struct balloon_bitmap *bb, struct list_head *pages)
{
	lockdep_assert_held(bb->lock);
	if (!balloon_bitmap_usable(bb))
		return false;

	if (bb->count_managed)
		balloon_page_list_adjust_managed(pages, -1);
	/*
	 * When the queue breaks in the middle, the device may still act on
	 * what it was told: the pages stay in the balloon until its reset.
	 */
	balloon_bitmap_tell(bb, bb->inflate_vq, pages, BALLOON_BITMAP_GFP);
	balloon_page_list_insert(bb->b_dev_info, pages);
	bb->moved = get_jiffies_64();
	return true;
}

/**
 * balloon_bitmap_deflate() - give pages of the balloon back to the guest
 * @bb: the sender
 * @nr_pages: number of pages to give back
 * @gfp: BALLOON_BITMAP_GFP, or 0 to allocate nothing: for the OOM notifier
 *
 * The device is told first and has used the message before any page is freed,
 * with or without VIRTIO_BALLOON_F_MUST_TELL_HOST.
 *
 * Context: Process context, balloon_lock is held. Waits for the device.
 * Return: the number of pages freed, at most BALLOON_BITMAP_CHUNK bytes of
 * them; 0 when the balloon has none at hand or the queue is broken.
 */
size_t balloon_bitmap_deflate(struct balloon_bitmap *bb, size_t nr_pages, gfp_t gfp)
{
	LIST_HEAD(pages);
	size_t got = 0;

	lockdep_assert_held(bb->lock);
	if (!bb->quiet && !balloon_bitmap_usable(bb))
		return 0;

	nr_pages = min(nr_pages, (size_t)BALLOON_BITMAP_CHUNK >> PAGE_SHIFT);
	while (got < nr_pages) {
		LIST_HEAD(batch);
		size_t n;

		n = balloon_page_list_dequeue(bb->b_dev_info, &batch,
					      min_t(size_t, nr_pages - got, BALLOON_BITMAP_BATCH));
		if (!n)
			break;
		list_splice_tail(&batch, &pages);
		got += n;
		cond_resched();
	}
	if (!got)
		return 0;

	if (balloon_bitmap_tell(bb, bb->deflate_vq, &pages, gfp)) {
		balloon_page_list_insert(bb->b_dev_info, &pages);
		return 0;
	}
	if (bb->count_managed)
		balloon_page_list_adjust_managed(&pages, 1);
	balloon_page_list_free(&pages);
	bb->moved = get_jiffies_64();
	return got;
}

#ifdef CONFIG_BALLOON_COMPACTION
/**
 * balloon_bitmap_migrate() - tell the device that a page takes another's place
 * @bb: the sender, usable
 * @newpage: page that is in the balloon now
 * @page: page that leaves it
 *
 * Allocates nothing, since it is called to make memory available.
 *
 * Context: Process context, balloon_lock and both page locks are held. Waits
 * for the device.
 */
void balloon_bitmap_migrate(struct balloon_bitmap *bb, struct page *newpage,
			    struct page *page)
{
	lockdep_assert_held(bb->lock);
	if (!balloon_bitmap_add(bb, bb->inflate_vq, page_to_pfn(newpage), 1, 0) &&
	    !balloon_bitmap_flush(bb, bb->inflate_vq) &&
	    !balloon_bitmap_add(bb, bb->deflate_vq, page_to_pfn(page), 1, 0))
		balloon_bitmap_flush(bb, bb->deflate_vq);
}
#endif
