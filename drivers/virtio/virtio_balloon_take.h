/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which memory goes into a virtio balloon, and at what pace, when the host takes
 * page bitmaps. Why it is so: "Which memory, at what pace" in
 * Documentation/driver-api/virtio/balloon.rst. The vocabulary:
 *
 * block:   1 << order pages, as mm/balloon_pages.c has them on its lists
 * granule: what the host backs as one, of which it cannot give a part back
 * keep:    free memory above the low watermarks that the guest keeps
 *
 * No locks: the work item that moves the balloon calls these functions, or
 * nobody else does any more.
 */
#ifndef _VIRTIO_BALLOON_TAKE_H
#define _VIRTIO_BALLOON_TAKE_H

#include <linux/balloon_compaction.h>
#include <linux/types.h>

struct list_head;
struct virtio_device;

/* Orders that blocks can have. */
#define BALLOON_TAKE_ORDERS	(BALLOON_PAGE_LIST_ORDER + 1)

/**
 * struct balloon_take - where the balloon's pages come from
 * @vdev: the device
 * @piece: pages that go into the balloon at once
 * @granule: the host's granule, as the order of a block; 0 if every page counts
 * @waiting: all that is free is kept, and more is to be reclaimed
 * @since: jiffies when waiting began, or last brought something
 * @pause: jiffies until the next attempt, after one that was in vain
 * @target: what the host wants
 * @told: the log says that it is out of reach
 */
struct balloon_take {
	struct virtio_device *vdev;
	size_t piece;
	unsigned int granule;
	bool waiting;
	unsigned long since;
	unsigned long pause;
	u64 target;
	bool told;
};

void balloon_take_init(struct balloon_take *take, struct virtio_device *vdev, size_t piece);
size_t balloon_take_pages(struct balloon_take *take, struct list_head *pages, size_t nr_pages);
size_t balloon_take_cut(const struct balloon_take *take, struct list_head *pages,
			struct list_head *piece);
unsigned long balloon_take_pause(const struct balloon_take *take);
void balloon_take_end(struct balloon_take *take);
void balloon_take_aim(struct balloon_take *take, u64 target);
void balloon_take_complain(struct balloon_take *take, size_t nr_pages);

unsigned int balloon_take_granule(u32 shift);
size_t balloon_take_plan(const unsigned long *nr_free, size_t nr_pages, unsigned int granule,
			 unsigned long *plan);
void balloon_take_sort(struct list_head *pages, size_t range);

#endif /* _VIRTIO_BALLOON_TAKE_H */
