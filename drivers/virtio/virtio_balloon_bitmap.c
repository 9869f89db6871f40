// SPDX-License-Identifier: GPL-2.0
/*
 * Tell the host about pages of a virtio balloon by page bitmaps, in bulk.
 */
#include <linux/balloon_compaction.h>
#include <linux/bits.h>
#include <linux/device.h>
#include <linux/jiffies.h>
#include <linux/list.h>
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

/* Seconds without an answer of the host after which the log says what is waited for. */
#define BALLOON_SILENCE		10

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
	INIT_LIST_HEAD(&bb->entering);
	INIT_LIST_HEAD(&bb->held);
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
 * Context: The device was reset, or its queues are broken and no message in
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
 * balloon_bitmap_migratable() - may a page of the balloon be migrated?
 * @bb: the sender
 * @must: balloon_page_must_move()
 *
 * Not while it moves, unless it must: what is left between the pages that it
 * takes looks like fragmentation, and compaction would answer by moving pages of
 * the balloon, each for two messages, while the next ones are on their way.
 *
 * Context: balloon_lock is held.
 * Return: true if so; false also when the device cannot be told.
 */
bool balloon_bitmap_migratable(const struct balloon_bitmap *bb, bool must)
{
	return balloon_bitmap_usable(bb) &&
	       (must || time_after_eq64(get_jiffies_64(), bb->moved + BALLOON_BITMAP_SETTLE));
}

static void *balloon_bitmap_put_record(void *to, u16 cmd, u64 req_id, unsigned long pfn,
				       const __le64 *words, unsigned int nr)
{
	struct virtio_balloon_bmap_hdr *hdr = to;

	memmove(hdr + 1, words, nr * sizeof(*words));
	*hdr = (struct virtio_balloon_bmap_hdr) {
		.cmd = cpu_to_le16(cmd),
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
 * @cmd: the command of the request that is answered; 0 on the inflate and the
 *	deflate queue
 * @req_id: its id, or 0 likewise
 *
 * Words of zeros at either end are left out, and so are those between, as soon
 * as they take more room than a further header. A record is never longer than
 * what it replaces, and they are written from the beginning on, hence never
 * over words that were not read.
 *
 * Return: the length of all records in bytes, from the start of the buffer.
 */
unsigned int balloon_bitmap_pack(struct page_bitmap_seg *seg, u16 cmd, u64 req_id)
{
	const __le64 *words = page_bitmap_seg_words(seg);
	unsigned int i = seg->lo, start = seg->lo, end = seg->lo;
	void *to = seg->buf;

	for (; i < seg->hi; i++) {
		if (!words[i])
			continue;
		if (i - end > BALLOON_BITMAP_GAP) {
			to = balloon_bitmap_put_record(to, cmd, req_id,
						       seg->base + start * 64, words + start,
						       end - start);
			start = i;
		}
		end = i + 1;
	}
	to = balloon_bitmap_put_record(to, cmd, req_id, seg->base + start * 64, words + start,
				       end - start);
	return to - seg->buf;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_bitmap_pack);

/**
 * balloon_bitmap_packed() - does a segment that was packed name a page?
 * @seg: the segment
 * @pfn: a page frame in its window
 *
 * Return: true if a record does; also when the records make no sense, which is the
 * device's doing.
 */
VISIBLE_IF_KUNIT bool balloon_bitmap_packed(const struct page_bitmap_seg *seg, unsigned long pfn)
{
	u64 end = seg->base + seg->hi * 64UL, last = seg->base;
	unsigned int at = 0;

	/* The last record ends with the last word that has a bit. */
	while (last < end) {
		const struct virtio_balloon_bmap_hdr *hdr = seg->buf + at;
		u64 start, len;

		at += sizeof(*hdr);
		if (at > PAGE_BITMAP_SEG_SIZE)
			return true;
		start = le64_to_cpu(hdr->start_pfn);
		len = le64_to_cpu(hdr->bmap_len);
		if (start < last || start >= end || !len || len > (end - start) / 8 ||
		    len > PAGE_BITMAP_SEG_SIZE - at)
			return true;
		if (pfn < start)
			return false;
		if (pfn < start + len * 8)
			return ((const u8 *)(hdr + 1))[(pfn - start) / 8] & BIT((pfn - start) % 8);
		last = start + len * 8;
		at += len;
	}
	return false;
}
EXPORT_SYMBOL_IF_KUNIT(balloon_bitmap_packed);

/* Collect what the device has used; true when at most @left buffers are not. */
static bool balloon_reap(struct virtqueue *vq, unsigned int *inflight, unsigned int left)
{
	unsigned int len;

	while (*inflight && virtqueue_get_buf(vq, &len))
		--*inflight;
	return *inflight <= left;
}

/**
 * balloon_wait_used() - wait until the device has used buffers of a queue
 * @vq: the queue
 * @acked: woken when it has
 * @inflight: number of buffers that it has not used; lowered by those that it has
 * @left: number of buffers that need not be waited for
 *
 * A queue that breaks wakes nobody, so this looks once a second. A device that
 * is there and does nothing is waited for without an end, which the log says.
 *
 * Context: Process context.
 * Return: 0, or -EIO when the queue is broken.
 */
int balloon_wait_used(struct virtqueue *vq, wait_queue_head_t *acked,
		      unsigned int *inflight, unsigned int left)
{
	unsigned int before = *inflight, silent = 0;

	while (!wait_event_timeout(*acked, balloon_reap(vq, inflight, left), HZ)) {
		if (virtqueue_is_broken(vq))
			return -EIO;
		if (*inflight != before)
			silent = 0;
		before = *inflight;
		if (++silent == BALLOON_SILENCE)
			dev_warn_ratelimited(&vq->vdev->dev,
					     "waiting for the host for %u s: it has %u buffer(s) of the %s queue\n",
					     silent, before, vq->name);
	}
	return 0;
}

static int balloon_bitmap_wait(struct balloon_bitmap *bb, struct virtqueue *vq,
			       unsigned int left)
{
	return balloon_wait_used(vq, bb->acked, &bb->inflight, left);
}

/*
 * Send all that the bitmap holds. Returns when the device has used it, with
 * the bitmap empty. An error with messages in flight says that the queue is
 * broken, and that the device may still use them: then the bitmap is not empty.
 */
static int balloon_bitmap_flush(struct balloon_bitmap *bb, struct virtqueue *vq)
{
	struct page_bitmap *pages = &bb->pages;
	unsigned int done = 0, i, nr;
	int err = 0;

	/* Before the device discards them they are marked as what has no content. */
	balloon_page_list_insert(bb->b_dev_info, &bb->entering);

	if (bb->quiet)
		goto out_reset;

	while (done < pages->nr_segs) {
		nr = min3(pages->nr_segs - done, virtqueue_get_vring_size(vq),
			  (unsigned int)BALLOON_BITMAP_MSG_SEGS);
		sg_init_table(bb->sg, nr);
		for (i = 0; i < nr; i++) {
			struct page_bitmap_seg *seg = &pages->segs[done + i];

			sg_set_buf(&bb->sg[i], seg->buf, balloon_bitmap_pack(seg, 0, 0));
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

/*
 * Tell the device about every page of a list of blocks. Those that go into the
 * balloon leave the list, and are in the balloon when the device hears of them.
 */
static int balloon_bitmap_tell(struct balloon_bitmap *bb, struct virtqueue *vq,
			       struct list_head *pages, gfp_t gfp)
{
	unsigned long pfn = 0, nr = 0;
	struct page *page, *next;
	int err;

	list_for_each_entry_safe(page, next, pages, lru) {
		unsigned long block = 1UL << page_private(page);

		if (!nr || page_to_pfn(page) != pfn + nr) {
			err = balloon_bitmap_add(bb, vq, pfn, nr, gfp);
			if (err)
				return err;
			pfn = page_to_pfn(page);
			nr = 0;
		}
		nr += block;
		if (vq == bb->inflate_vq)
			list_move_tail(&page->lru, &bb->entering);
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
 *	of them at most; empty afterwards, unless the queue was broken before:
 *	then the pages are still the caller's
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
	 * what it was told: see balloon_bitmap_in_flight().
	 */
	balloon_bitmap_tell(bb, bb->inflate_vq, pages, BALLOON_BITMAP_GFP);
	balloon_page_list_insert(bb->b_dev_info, &bb->entering);
	balloon_page_list_insert(bb->b_dev_info, pages);
	bb->moved = get_jiffies_64();
	return true;
}

/*
 * May the device still discard a page? Only after a queue broke, with messages in
 * flight. Their records are in the segments until the device was reset; those of
 * messages of the same flush that it did use as well, which does not matter.
 */
static bool balloon_bitmap_in_flight(const struct balloon_bitmap *bb, unsigned long pfn)
{
	unsigned int i;

	if (!bb->inflight)
		return false;
	for (i = 0; i < bb->pages.nr_segs; i++) {
		const struct page_bitmap_seg *seg = &bb->pages.segs[i];

		if (pfn >= seg->base && pfn - seg->base < PAGE_BITMAP_SEG_PAGES)
			return balloon_bitmap_packed(seg, pfn);
	}
	return false;
}

/*
 * Take pages out of the balloon that are safe to use. Others are held meanwhile:
 * they are on no list on which migration could find them or put them back.
 */
static size_t balloon_bitmap_dequeue(struct balloon_bitmap *bb, struct list_head *pages,
				     size_t nr_pages)
{
	struct page *page, *next;
	size_t got = 0;

	list_for_each_entry_safe(page, next, &bb->held, lru) {
		if (bb->inflight || got == nr_pages)
			break;
		list_move_tail(&page->lru, pages);
		got++;
	}
	while (got < nr_pages) {
		LIST_HEAD(batch);
		size_t n;

		n = balloon_page_list_dequeue(bb->b_dev_info, &batch,
					      min_t(size_t, nr_pages - got, BALLOON_BITMAP_BATCH));
		if (!n)
			break;
		got += n;
		list_for_each_entry_safe(page, next, &batch, lru) {
			if (!bb->inflight)
				break;
			if (balloon_bitmap_in_flight(bb, page_to_pfn(page))) {
				list_move(&page->lru, &bb->held);
				got--;
			}
		}
		list_splice_tail(&batch, pages);
		cond_resched();
	}
	return got;
}

/**
 * balloon_bitmap_deflate() - give pages of the balloon back to the guest
 * @bb: the sender
 * @nr_pages: number of pages to give back
 * @gfp: BALLOON_BITMAP_GFP, or 0 to allocate nothing: for the OOM notifier
 *
 * The device is told first and has used the message before any page is freed,
 * with or without VIRTIO_BALLOON_F_MUST_TELL_HOST. When it cannot be told,
 * because a queue is broken, all pages are given back but those that it may
 * still discard, since it did not say that it has used the message with them.
 *
 * Context: Process context, balloon_lock is held. Waits for the device.
 * Return: the number of pages freed, at most BALLOON_BITMAP_CHUNK bytes of
 * them; 0 when the balloon has none at hand, or the message cannot be sent.
 */
size_t balloon_bitmap_deflate(struct balloon_bitmap *bb, size_t nr_pages, gfp_t gfp)
{
	LIST_HEAD(pages);
	size_t got;

	lockdep_assert_held(bb->lock);
	got = balloon_bitmap_dequeue(bb, &pages,
				     min(nr_pages, (size_t)BALLOON_BITMAP_CHUNK >> PAGE_SHIFT));
	if (!got)
		return 0;

	if (!bb->quiet && !bb->inflight &&
	    balloon_bitmap_tell(bb, bb->deflate_vq, &pages, gfp) &&
	    !virtqueue_is_broken(bb->deflate_vq)) {
		balloon_page_list_putback(bb->b_dev_info, &pages);
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
