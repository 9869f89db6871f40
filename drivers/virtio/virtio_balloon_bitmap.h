/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inflate and deflate a virtio balloon by page bitmaps,
 * VIRTIO_BALLOON_F_PAGE_BITMAP. The vocabulary:
 *
 * record:  struct virtio_balloon_bmap_hdr and the bitmap that it announces, one
 *          behind the other in memory
 * message: a buffer on the inflate or the deflate queue, a sequence of records
 * flush:   to send all that the bitmap holds, in as many messages as the ring
 *          asks for, and to wait until the device has used every one
 *
 * Lock order, outermost first:
 *
 *   balloon_lock of the driver core	all of struct balloon_bitmap
 *     pages_lock of balloon_dev_info	the list of pages, see there
 *
 * balloon_lock is held across a flush, so that no page can leave the balloon
 * whose inflation the device has not seen: the two queues have no order
 * between them. The OOM notifier waits for balloon_lock, therefore nothing is
 * allocated with it held that could wait for memory, and a hold handles
 * BALLOON_BITMAP_CHUNK bytes at most.
 */
#ifndef _VIRTIO_BALLOON_BITMAP_H
#define _VIRTIO_BALLOON_BITMAP_H

#include <linux/page_bitmap.h>
#include <linux/scatterlist.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/wait.h>

struct balloon_dev_info;
struct mutex;
struct page;
struct virtio_device;
struct virtqueue;

/* Bytes that one hold of balloon_lock moves into or out of the balloon. */
#define BALLOON_BITMAP_CHUNK	SZ_64M
/* Segments in a message, each a descriptor, when the ring has that many. */
#define BALLOON_BITMAP_MSG_SEGS	32
/* Segments that are kept from probe on, for when no memory can be had. */
#define BALLOON_BITMAP_RESERVE	4
/*
 * How memory is taken under balloon_lock: at once or not at all. Reclaim could
 * end up in the OOM notifier, which waits for the lock.
 */
#define BALLOON_BITMAP_GFP	(GFP_NOWAIT | __GFP_NOMEMALLOC | __GFP_NOWARN)
/* Segments for one flush; a guest whose pages lie farther apart flushes more. */
#define BALLOON_BITMAP_MAX_SEGS	512

/**
 * struct balloon_bitmap - the sender of page bitmaps
 * @vdev: the device
 * @b_dev_info: where the pages in the balloon are
 * @lock: balloon_lock of the driver core, guards what is below it
 * @acked: woken when the device has used a buffer of either queue
 * @inflate_vq: pages that go into the balloon
 * @deflate_vq: pages that come out of it
 * @count_managed: pages in the balloon do not count as the guest's memory
 * @pages: the pages of the next flush
 * @entering: blocks on their way into the balloon, of which @pages may have bits
 * @held: pages out of the balloon that the device may still discard: they are
 *	freed when it was reset
 * @sg: the message that is being built
 * @inflight: messages that the device has not used; not zero between two
 *	calls only after a queue broke: their memory is the device's until it
 *	was reset
 * @moved: get_jiffies_64() when pages last went into the balloon or came out of it
 * @quiet: the device is gone or was reset, and is told of no page any more
 */
struct balloon_bitmap {
	struct virtio_device *vdev;
	struct balloon_dev_info *b_dev_info;
	struct mutex *lock;		/* balloon_lock */
	wait_queue_head_t *acked;
	struct virtqueue *inflate_vq;
	struct virtqueue *deflate_vq;
	bool count_managed;

	/* Below: guarded by @lock. */
	struct page_bitmap pages;
	struct list_head entering;
	struct list_head held;
	struct scatterlist sg[BALLOON_BITMAP_MSG_SEGS];
	unsigned int inflight;
	u64 moved;
	bool quiet;
};

int balloon_bitmap_init(struct balloon_bitmap *bb, unsigned long max_pfn);
void balloon_bitmap_destroy(struct balloon_bitmap *bb);
void balloon_bitmap_attach(struct balloon_bitmap *bb, struct virtqueue *inflate_vq,
			   struct virtqueue *deflate_vq);
void balloon_bitmap_detach(struct balloon_bitmap *bb);
bool balloon_bitmap_inflate(struct balloon_bitmap *bb, struct list_head *pages);
size_t balloon_bitmap_deflate(struct balloon_bitmap *bb, size_t nr_pages, gfp_t gfp);
bool balloon_bitmap_usable(const struct balloon_bitmap *bb);
bool balloon_bitmap_migratable(const struct balloon_bitmap *bb, bool must);
void balloon_bitmap_migrate(struct balloon_bitmap *bb, struct page *newpage,
			    struct page *page);
unsigned int balloon_bitmap_pack(struct page_bitmap_seg *seg, u16 cmd, u64 req_id);
int balloon_wait_used(struct virtqueue *vq, wait_queue_head_t *acked,
		      unsigned int *inflight, unsigned int left);

#if IS_ENABLED(CONFIG_KUNIT)
bool balloon_bitmap_packed(const struct page_bitmap_seg *seg, unsigned long pfn);
#endif

#endif /* _VIRTIO_BALLOON_BITMAP_H */
