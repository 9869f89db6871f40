// SPDX-License-Identifier: GPL-2.0
/*
 * Answer what the device of a virtio balloon asks on the misc queue.
 */
#include <linux/array_size.h>
#include <linux/errno.h>
#include <linux/list.h>
#include <linux/math.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/stddef.h>
#include <linux/string.h>
#include <linux/unused_pages.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/workqueue.h>

#include <kunit/visibility.h>

#include "virtio_balloon_bitmap.h"
#include "virtio_balloon_misc.h"

/* Costs no effort: the bitmap has a segment, and can do with it. */
#define BALLOON_MISC_GFP	(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)

/* Bytes that are looked at before it is looked whether to stop. */
#define BALLOON_MISC_STEP	SZ_4G

/* Pages, more or less, that nobody can use until the device has used a message */
#define BALLOON_MISC_TAKEN	(SZ_64M >> PAGE_SHIFT)

static_assert((BALLOON_MISC_MSG_SEGS + 1) * PAGE_BITMAP_SEG_SIZE <=
	      VIRTIO_BALLOON_BMAP_MAX_MSG);

/**
 * balloon_misc_validate() - is the misc queue of use?
 * @vdev: the device, whose features are being negotiated
 *
 * Declines VIRTIO_BALLOON_F_MISC_VQ where free pages have a content that the
 * guest relies on: what the device skips because it was free would come back
 * with another content.
 *
 * And where the queue's number is in doubt: the driver numbers the queues of
 * the features it negotiates, the device may number those that it offers. The
 * numbers are the same unless a feature before this one is declined, or not
 * known, that brings a queue.
 *
 * Context: The driver's validate().
 */
void balloon_misc_validate(struct virtio_device *vdev)
{
	const u64 no_queue = BIT_ULL(VIRTIO_BALLOON_F_MUST_TELL_HOST) |
			     BIT_ULL(VIRTIO_BALLOON_F_DEFLATE_ON_OOM) |
			     BIT_ULL(VIRTIO_BALLOON_F_PAGE_POISON) |
			     BIT_ULL(VIRTIO_BALLOON_F_PAGE_BITMAP);
	u64 declined = vdev->config->get_features(vdev) & ~vdev->features;

	if (!virtio_has_feature(vdev, VIRTIO_BALLOON_F_MISC_VQ))
		return;

	declined &= GENMASK_ULL(VIRTIO_BALLOON_F_MISC_VQ - 1, 0) & ~no_queue;
	if (declined)
		dev_info(&vdev->dev, "no misc queue: features %#llx before it are declined\n",
			 declined);
	else if (want_init_on_free() || page_poisoning_enabled_static())
		dev_info(&vdev->dev, "no misc queue: free pages have a content\n");
	else
		return;
	__virtio_clear_bit(vdev, VIRTIO_BALLOON_F_MISC_VQ);
}

static int balloon_misc_next_unused(struct balloon_misc *misc)
{
	unsigned long end = misc->end_pfn;
	int more;

	if (end - misc->pfn > BALLOON_MISC_STEP >> PAGE_SHIFT)
		end = misc->pfn + (BALLOON_MISC_STEP >> PAGE_SHIFT);
	more = get_unused_pages(&misc->pages, &misc->pfn, end, BALLOON_MISC_GFP);
	/* Memory ends where it did not come to @end. */
	return more ?: misc->pfn == end && end < misc->end_pfn;
}

/* Name the taken pages in the bitmap, and put back those for which it has no room. */
static bool balloon_misc_name_taken(struct balloon_misc *misc)
{
	struct page *page;

	list_for_each_entry(page, &misc->taken, lru) {
		unsigned long pfn = page_to_pfn(page), first = pfn;
		unsigned long end = pfn + (1UL << page_private(page));
		LIST_HEAD(named);

		while (pfn < end) {
			long n = page_bitmap_set(&misc->pages, pfn, end - pfn, BALLOON_MISC_GFP);

			if (n < 0)
				break;
			pfn += n;
		}
		/* Of a block that has room for a part of it no more than that is named. */
		if (pfn > first)
			continue;
		misc->pfn = first;
		list_cut_before(&named, &misc->taken, &page->lru);
		put_unused_pages(&misc->taken);
		list_splice(&named, &misc->taken);
		return false;
	}
	return true;
}

static int balloon_misc_next_trim(struct balloon_misc *misc)
{
	unsigned long end = misc->end_pfn;
	int more;

	if (end - misc->pfn > BALLOON_MISC_STEP >> PAGE_SHIFT)
		end = misc->pfn + (BALLOON_MISC_STEP >> PAGE_SHIFT);
	more = take_unused_pages(&misc->taken, &misc->pfn, end, BALLOON_MISC_TAKEN);
	if (more < 0)
		return more;
	if (!balloon_misc_name_taken(misc))
		return 1;
	/* Memory ends where it did not come to @end. */
	return more ?: misc->pfn >= end && misc->pfn < misc->end_pfn;
}

/* The whole pages of the range that the device asks for */
static int balloon_misc_range(struct balloon_misc *misc, const void *payload,
			      int (*next)(struct balloon_misc *misc))
{
	const struct virtio_balloon_req_range *range = payload;
	unsigned int shift = le16_to_cpu(range->page_shift);
	u64 start = le64_to_cpu(range->start_pfn);
	u64 nr = le64_to_cpu(range->nr_pages);
	u64 last;

	if (!misc->id || shift < VIRTIO_BALLOON_BMAP_MIN_SHIFT ||
	    shift > VIRTIO_BALLOON_BMAP_MAX_SHIFT ||
	    memchr_inv(range->reserved, 0, sizeof(range->reserved)))
		return -EINVAL;
	if (start > U64_MAX >> shift || nr > (U64_MAX >> shift) - start)
		return -EINVAL;

	last = (start + nr) << shift >> PAGE_SHIFT;
	start = start << shift >> PAGE_SHIFT;
	if (shift < PAGE_SHIFT && le64_to_cpu(range->start_pfn) & (BIT(PAGE_SHIFT - shift) - 1))
		start++;
	misc->end_pfn = min_t(u64, last, ULONG_MAX);
	misc->pfn = min_t(u64, start, misc->end_pfn);
	misc->next = next;
	drain_unused_pages(misc->pfn, misc->end_pfn);
	return 0;
}

/* VIRTIO_BALLOON_REQ_UNUSED_PAGES */
static int balloon_misc_get_unused(struct balloon_misc *misc, const void *payload)
{
	return balloon_misc_range(misc, payload, balloon_misc_next_unused);
}

/* VIRTIO_BALLOON_REQ_TRIM */
static int balloon_misc_trim(struct balloon_misc *misc, const void *payload)
{
	return balloon_misc_range(misc, payload, balloon_misc_next_trim);
}

/* What the device can ask: bytes that follow the header, and how it begins. */
static const struct balloon_misc_request {
	size_t len;
	int (*begin)(struct balloon_misc *misc, const void *payload);
} balloon_misc_requests[] = {
	[VIRTIO_BALLOON_REQ_UNUSED_PAGES] = {
		.len = sizeof(struct virtio_balloon_req_range),
		.begin = balloon_misc_get_unused,
	},
	[VIRTIO_BALLOON_REQ_TRIM] = {
		.len = sizeof(struct virtio_balloon_req_range),
		.begin = balloon_misc_trim,
	},
	[VIRTIO_BALLOON_REQ_RECLAIM] = {
		.len = sizeof(struct virtio_balloon_req_reclaim),
		.begin = balloon_job_reclaim,
	},
	[VIRTIO_BALLOON_REQ_COMPACT] = {
		.begin = balloon_job_compact,
	},
	[VIRTIO_BALLOON_REQ_SYNC] = {
		.begin = balloon_job_sync,
	},
};

/**
 * balloon_misc_parse() - understand a request
 * @misc: the queue; what the answer needs to know is set
 * @buf: the request, out of the device's reach
 * @len: how much of it the device says that it wrote
 *
 * Return: 0, or -EINVAL when the answer is an error.
 */
VISIBLE_IF_KUNIT int balloon_misc_parse(struct balloon_misc *misc, const void *buf, size_t len)
{
	const struct virtio_balloon_req_hdr *hdr = buf;
	unsigned int cmd;

	misc->id = 0;
	misc->job = (struct balloon_job) {};
	misc->end = (struct virtio_balloon_bmap_hdr) {
		.page_shift = cpu_to_le16(PAGE_SHIFT),
		.flag = cpu_to_le16(VIRTIO_BALLOON_BMAP_FLAG_DONE),
	};
	if (len < sizeof(*hdr) || len > VIRTIO_BALLOON_REQ_LEN)
		return -EINVAL;

	cmd = le16_to_cpu(hdr->cmd);
	misc->id = le64_to_cpu(hdr->id);
	misc->end.cmd = hdr->cmd;
	misc->end.req_id = hdr->id;
	if (cmd >= ARRAY_SIZE(balloon_misc_requests) ||
	    len < sizeof(*hdr) + balloon_misc_requests[cmd].len ||
	    memchr_inv(hdr->reserved, 0, sizeof(hdr->reserved)))
		return -EINVAL;
	return balloon_misc_requests[cmd].begin(misc, hdr + 1);
}
EXPORT_SYMBOL_IF_KUNIT(balloon_misc_parse);

/* The device has written a request. */
static void balloon_misc_begin(struct balloon_misc *misc, size_t len)
{
	__le64 buf[ARRAY_SIZE(misc->buf)];
	int err;

	/* The device has no business in there any more, but who knows. */
	memcpy(buf, misc->buf, sizeof(buf));
	err = balloon_misc_parse(misc, buf, len);
	if (err && !misc->warned) {
		misc->warned = true;
		dev_warn(&misc->vdev->dev, "cannot answer request %u of %zu bytes (further ones are not reported)\n",
			 le16_to_cpu(((struct virtio_balloon_req_hdr *)buf)->cmd), len);
	}
	if (!err && misc->job.step) {
		misc->more = false;
		misc->state = BALLOON_MISC_JOB;
		return;
	}
	if (!err)
		err = page_bitmap_init(&misc->pages,
				       min(virtqueue_get_vring_size(misc->vq),
					   (unsigned int)BALLOON_MISC_MSG_SEGS), 1);
	if (err)
		misc->end.flag = cpu_to_le16(VIRTIO_BALLOON_BMAP_FLAG_ERROR);
	misc->more = !err;
	misc->state = BALLOON_MISC_ANSWER;
}

/*
 * Whether the device has told, since that was looked at last, that it does not want
 * this answer any more. One that knows of no such thing has another value there, or
 * nothing to read. One that tells lies has itself to blame: it gets a shorter answer.
 */
static bool balloon_misc_unwanted(struct balloon_misc *misc)
{
	__le32 id = 0;
	bool changed;

	spin_lock_irq(&misc->lock);
	changed = misc->changed;
	misc->changed = false;
	spin_unlock_irq(&misc->lock);
	if (!changed)
		return false;

	misc->vdev->config->get(misc->vdev,
				offsetof(struct virtio_balloon_config, misc_ended_id),
				&id, sizeof(id));
	return id && le32_to_cpu(id) == lower_32_bits(misc->id);
}

/* Go on with a job; false if there is nothing to do but to wait. */
static bool balloon_misc_job(struct balloon_misc *misc)
{
	/* Pairs with the store in balloon_job_func(). */
	bool done = smp_load_acquire(&misc->job_done);

	if (balloon_misc_unwanted(misc)) {
		WRITE_ONCE(misc->job_unwanted, true);
		misc->end.flag = cpu_to_le16(VIRTIO_BALLOON_BMAP_FLAG_ERROR);
	} else if (!done) {
		/* This one, or one that was not wanted any more */
		return false;
	} else if (misc->job.step) {
		balloon_job_start(misc);
		return true;
	} else if (misc->doing.err) {
		misc->end.flag = cpu_to_le16(VIRTIO_BALLOON_BMAP_FLAG_ERROR);
	} else {
		misc->end.start_pfn = cpu_to_le64(misc->doing.result);
	}
	misc->state = BALLOON_MISC_ANSWER;
	return true;
}

/* Send the next message of the answer. */
static int balloon_misc_send(struct balloon_misc *misc)
{
	struct page_bitmap *pages = &misc->pages;
	unsigned int nr = 0, i;
	bool end;
	int err;

	while (misc->more && page_bitmap_empty(pages)) {
		/* Pairs with balloon_misc_stop(), as in balloon_misc_func(). */
		if (READ_ONCE(misc->stopped))
			return 0;
		err = balloon_misc_unwanted(misc) ? -ECANCELED : misc->next(misc);
		if (err < 0)
			misc->end.flag = cpu_to_le16(VIRTIO_BALLOON_BMAP_FLAG_ERROR);
		misc->more = err > 0;
	}

	sg_init_table(misc->sg, ARRAY_SIZE(misc->sg));
	for (i = 0; i < pages->nr_segs; i++) {
		struct page_bitmap_seg *seg = &pages->segs[i];

		sg_set_buf(&misc->sg[nr++], seg->buf,
			   balloon_bitmap_pack(seg, le16_to_cpu(misc->end.cmd), misc->id));
	}
	end = !misc->more && nr < virtqueue_get_vring_size(misc->vq);
	if (end)
		sg_set_buf(&misc->sg[nr++], &misc->end, sizeof(misc->end));
	sg_mark_end(&misc->sg[nr - 1]);

	err = virtqueue_add_outbuf(misc->vq, misc->sg, nr, misc, GFP_KERNEL);
	if (err)
		return err;
	misc->inflight = true;
	if (end)
		misc->state = BALLOON_MISC_END;
	virtqueue_kick(misc->vq);
	return 0;
}

static int balloon_misc_offer(struct balloon_misc *misc)
{
	int err;

	sg_init_one(misc->sg, misc->buf, sizeof(misc->buf));
	err = virtqueue_add_inbuf(misc->vq, misc->sg, 1, misc->buf, GFP_KERNEL);
	if (err)
		return err;
	misc->state = BALLOON_MISC_OFFERED;
	virtqueue_kick(misc->vq);
	return 0;
}

static void balloon_misc_forget(struct balloon_misc *misc)
{
	page_bitmap_destroy(&misc->pages);
	put_unused_pages(&misc->taken);
	misc->inflight = false;
	misc->state = BALLOON_MISC_IDLE;
}

/* Take back what the device has used; false if it has used nothing. */
static bool balloon_misc_reap(struct balloon_misc *misc)
{
	unsigned int len;
	void *token = virtqueue_get_buf(misc->vq, &len);

	if (!token)
		return false;
	if (token == misc->buf) {
		balloon_misc_begin(misc, len);
		return true;
	}
	misc->inflight = false;
	page_bitmap_reset(&misc->pages);
	put_unused_pages(&misc->taken);
	if (misc->state == BALLOON_MISC_END)
		balloon_misc_forget(misc);
	return true;
}

static void balloon_misc_func(struct work_struct *work)
{
	struct balloon_misc *misc = container_of(work, struct balloon_misc, work);
	int err = 0;

	/* Pairs with the store in balloon_misc_stop(), which waits for this. */
	while (!READ_ONCE(misc->stopped) && !err) {
		/* A device may use each buffer at once. */
		cond_resched();
		if (balloon_misc_reap(misc))
			continue;
		if (misc->state == BALLOON_MISC_IDLE)
			err = balloon_misc_offer(misc);
		else if (misc->state == BALLOON_MISC_ANSWER && !misc->inflight)
			err = balloon_misc_send(misc);
		else if (misc->state != BALLOON_MISC_JOB || !balloon_misc_job(misc))
			/* A used buffer queues this again: callbacks are on. So does a job. */
			break;
	}
	/* The ring is empty whenever something is added: it has room. */
	if (err && !virtqueue_is_broken(misc->vq))
		dev_err_once(&misc->vdev->dev, "cannot use the misc queue: %d\n", err);
}

/**
 * balloon_misc_init() - prepare at probe
 * @misc: the queue, all zero
 * @vdev: the device
 */
void balloon_misc_init(struct balloon_misc *misc, struct virtio_device *vdev)
{
	misc->vdev = vdev;
	misc->stopped = true;
	spin_lock_init(&misc->lock);
	INIT_LIST_HEAD(&misc->taken);
	INIT_WORK(&misc->work, balloon_misc_func);
	balloon_job_init(misc);
}

/**
 * balloon_misc_attach() - the queue was found
 * @misc: the queue, stopped
 * @vq: the virtqueue
 */
void balloon_misc_attach(struct balloon_misc *misc, struct virtqueue *vq)
{
	misc->vq = vq;
}

/**
 * balloon_misc_start() - offer the device a buffer to ask in
 * @misc: the queue; does nothing when none is attached
 *
 * Context: Probe or restore, the device is ready.
 */
void balloon_misc_start(struct balloon_misc *misc)
{
	if (!misc->vq)
		return;
	spin_lock_irq(&misc->lock);
	misc->stopped = false;
	spin_unlock_irq(&misc->lock);
	balloon_misc_notify(misc);
}

static void balloon_misc_queue(struct balloon_misc *misc, bool changed)
{
	unsigned long flags;

	spin_lock_irqsave(&misc->lock, flags);
	/* Long work, and not urgent for whichever CPU the interrupt hit. */
	if (!misc->stopped) {
		misc->changed |= changed;
		queue_work(system_unbound_wq, &misc->work);
	}
	spin_unlock_irqrestore(&misc->lock, flags);
}

/**
 * balloon_misc_notify() - the device has used a buffer
 * @misc: the queue
 *
 * Context: Any context.
 */
void balloon_misc_notify(struct balloon_misc *misc)
{
	balloon_misc_queue(misc, false);
}

/**
 * balloon_misc_changed() - the device's config space has changed
 * @misc: the queue, started or not
 *
 * The device may not want an answer any more. The work item looks: to read the
 * config space may sleep.
 *
 * Context: Any context.
 */
void balloon_misc_changed(struct balloon_misc *misc)
{
	balloon_misc_queue(misc, true);
}

/**
 * balloon_misc_stop() - end an answer and answer no more
 * @misc: the queue, started or not
 *
 * Context: Process context, balloon_lock is not held. Waits for the work item,
 * which does not wait for the device: at most for as long as it takes to look
 * at BALLOON_MISC_STEP, and for memory that is going on or off line. For that
 * the balloon must not hold what it cannot give back. And for a part of a job, which
 * may wait for a disk.
 */
void balloon_misc_stop(struct balloon_misc *misc)
{
	spin_lock_irq(&misc->lock);
	WRITE_ONCE(misc->stopped, true);
	spin_unlock_irq(&misc->lock);
	/* The one may queue the other, but not the other way round any more. */
	cancel_work_sync(&misc->work);
	cancel_work_sync(&misc->job_work);
}

/**
 * balloon_misc_detach() - forget the queue and what was sent on it
 * @misc: the queue, stopped
 *
 * Context: The device was reset, and uses no memory of ours.
 */
void balloon_misc_detach(struct balloon_misc *misc)
{
	balloon_misc_forget(misc);
	/* A part that was to come, and does not any more */
	misc->job_done = true;
	misc->vq = NULL;
}
