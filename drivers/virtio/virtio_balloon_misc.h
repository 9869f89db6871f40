/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Answer what the device asks on the misc queue, VIRTIO_BALLOON_F_MISC_VQ.
 * The vocabulary:
 *
 * request: what the device writes into the buffer that the driver offers, one
 *          at a time: struct virtio_balloon_req_hdr and what its command needs
 * answer:  records with the request's id, as many messages as it takes; the
 *          flag of the last record ends it
 * message: a buffer of records, see virtio_balloon_bitmap.h; one at a time
 * job:     a request that is answered by a number, see virtio_balloon_jobs.c
 *
 * All work with the queue is done by one work item, which never sleeps for the
 * device: it does what it can and returns, and the queue's callback queues it again.
 * So there is nothing that a device which is gone could keep waiting. A job has
 * another one, which queues this one when it is done. Of an answer that the device
 * does not want any more the rest is not looked for; a job is left to itself then.
 *
 * No lock of the driver is taken but @lock, for an instant; for those of mm see
 * get_unused_pages(). Memory is taken when a request comes and given back when
 * its answer was used.
 */
#ifndef _VIRTIO_BALLOON_MISC_H
#define _VIRTIO_BALLOON_MISC_H

#include <linux/page_bitmap.h>
#include <linux/scatterlist.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>
#include <linux/virtio_balloon.h>
#include <linux/workqueue_types.h>

struct virtio_device;
struct virtqueue;

/* Segments in a message, when the ring has room for that many. */
#define BALLOON_MISC_MSG_SEGS	32

/**
 * enum balloon_misc_state - how far the queue has come
 * @BALLOON_MISC_IDLE: the device has no buffer to ask in
 * @BALLOON_MISC_OFFERED: it has one
 * @BALLOON_MISC_JOB: a job is being done, or waits until the last one is
 * @BALLOON_MISC_ANSWER: a request is being answered
 * @BALLOON_MISC_END: the last record of the answer is on its way
 */
enum balloon_misc_state {
	BALLOON_MISC_IDLE,
	BALLOON_MISC_OFFERED,
	BALLOON_MISC_JOB,
	BALLOON_MISC_ANSWER,
	BALLOON_MISC_END,
};

/**
 * struct balloon_job - what is answered by a number
 * @step: does a part of it: 1 if there is more to do, 0 if not, or an error; NULL
 *	when the request is no job, or it was begun
 * @err: what became of it
 * @result: the answer
 * @bytes: how much is to be reclaimed
 * @end: jiffies when that is to end
 * @swap: memory may be swapped for it
 * @vain: parts that brought nothing
 */
struct balloon_job {
	int (*step)(struct balloon_job *job);
	int err;
	u64 result;
	u64 bytes;
	unsigned long end;
	bool swap;
	unsigned int vain;
};

/**
 * struct balloon_misc - the misc queue
 * @vdev: the device
 * @vq: the queue, NULL without one
 * @work: does all the work
 * @lock: guards @stopped and @changed against the callbacks
 * @stopped: the work item must not be queued any more
 * @changed: the config space has, so the answer may not be wanted any more
 * @warned: a bad request was reported; further ones are not
 * @state: how far it has come
 * @next: fills @pages with the next part of the answer: 1 if more follows, 0
 *	if not, or an error
 * @more: @next has more
 * @id: the request's id
 * @pfn: page frame to go on from
 * @end_pfn: page frame to end before
 * @pages: what the message in flight says
 * @taken: pages of the message in flight that nobody may use meanwhile
 * @inflight: the device has not used the last message
 * @sg: the message that is being built
 * @end: the record that ends an answer
 * @buf: the buffer in which the device asks
 * @job: what the request asks for
 * @job_work: does it, a part at a time
 * @doing: what that does
 * @job_done: it does nothing now, so that @doing is for the work item, else for that
 * @job_unwanted: it need not go on
 */
struct balloon_misc {
	struct virtio_device *vdev;
	struct virtqueue *vq;
	struct work_struct work;
	spinlock_t lock;	/* guards stopped, changed */
	bool stopped;
	bool changed;

	/* Below: for the work item, and for others when it cannot run. */
	bool warned;
	enum balloon_misc_state state;
	int (*next)(struct balloon_misc *misc);
	bool more;
	u64 id;
	unsigned long pfn;
	unsigned long end_pfn;
	struct page_bitmap pages;
	struct list_head taken;
	bool inflight;
	struct scatterlist sg[BALLOON_MISC_MSG_SEGS + 1];
	struct virtio_balloon_bmap_hdr end;
	__le64 buf[VIRTIO_BALLOON_REQ_LEN / sizeof(__le64)];
	struct balloon_job job;

	struct work_struct job_work;
	struct balloon_job doing;
	bool job_done;
	bool job_unwanted;
};

void balloon_misc_validate(struct virtio_device *vdev);
void balloon_misc_init(struct balloon_misc *misc, struct virtio_device *vdev);
void balloon_misc_attach(struct balloon_misc *misc, struct virtqueue *vq);
void balloon_misc_start(struct balloon_misc *misc);
void balloon_misc_notify(struct balloon_misc *misc);
void balloon_misc_changed(struct balloon_misc *misc);
void balloon_misc_stop(struct balloon_misc *misc);
void balloon_misc_detach(struct balloon_misc *misc);

int balloon_job_reclaim(struct balloon_misc *misc, const void *payload);
int balloon_job_compact(struct balloon_misc *misc, const void *payload);
int balloon_job_sync(struct balloon_misc *misc, const void *payload);
void balloon_job_start(struct balloon_misc *misc);
void balloon_job_init(struct balloon_misc *misc);

#if IS_ENABLED(CONFIG_KUNIT)
int balloon_misc_parse(struct balloon_misc *misc, const void *buf, size_t len);
#endif

#endif /* _VIRTIO_BALLOON_MISC_H */
