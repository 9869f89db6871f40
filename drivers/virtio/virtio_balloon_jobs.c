// SPDX-License-Identifier: GPL-2.0
/*
 * What the device of a virtio balloon asks for that takes time and is answered by a
 * number: to reclaim, to compact, to write back.
 *
 * A job is done in parts by a work item of its own, which is freezable: it may need
 * disks, and these may be suspended before the balloon. None of it takes a lock of
 * the driver.
 */
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/suspend.h>
#include <linux/unused_pages.h>
#include <linux/virtio_balloon.h>
#include <linux/workqueue.h>

#include "virtio_balloon_misc.h"

/* What is reclaimed in one part */
#define BALLOON_JOB_RECLAIM	(SZ_8M >> PAGE_SHIFT)
/* Parts that may bring nothing, one after the other */
#define BALLOON_JOB_VAIN	2

static int balloon_job_reclaim_step(struct balloon_job *job)
{
	u64 left = DIV_ROUND_UP_ULL(job->bytes - job->result, PAGE_SIZE);
	long nr = reclaim_unused_pages(min_t(u64, left, BALLOON_JOB_RECLAIM), job->swap);

	if (nr < 0)
		return nr;
	job->result += (u64)nr << PAGE_SHIFT;
	job->vain = nr ? 0 : job->vain + 1;
	return job->result < job->bytes && job->vain < BALLOON_JOB_VAIN &&
	       time_before(jiffies, job->end);
}

/**
 * balloon_job_reclaim() - VIRTIO_BALLOON_REQ_RECLAIM
 * @misc: the queue
 * @payload: struct virtio_balloon_req_reclaim
 *
 * Return: 0, or -EINVAL.
 */
int balloon_job_reclaim(struct balloon_misc *misc, const void *payload)
{
	const struct virtio_balloon_req_reclaim *req = payload;
	u32 msecs = le32_to_cpu(req->msecs), flags = le32_to_cpu(req->flags);
	struct balloon_job *job = &misc->job;

	if (!req->bytes || !msecs || msecs > VIRTIO_BALLOON_REQ_MAX_MSECS ||
	    flags & ~VIRTIO_BALLOON_REQ_RECLAIM_SWAP)
		return -EINVAL;
	job->bytes = le64_to_cpu(req->bytes);
	job->end = jiffies + msecs_to_jiffies(msecs);
	job->swap = flags & VIRTIO_BALLOON_REQ_RECLAIM_SWAP;
	job->step = balloon_job_reclaim_step;
	return 0;
}

static int balloon_job_compact_step(struct balloon_job *job)
{
	long nr = compact_unused_pages();

	if (nr < 0)
		return nr;
	job->result = (u64)nr << PAGE_SHIFT;
	return 0;
}

/**
 * balloon_job_compact() - VIRTIO_BALLOON_REQ_COMPACT
 * @misc: the queue
 * @payload: nothing
 *
 * Return: 0.
 */
int balloon_job_compact(struct balloon_misc *misc, const void *payload)
{
	misc->job.step = balloon_job_compact_step;
	return 0;
}

static int balloon_job_sync_step(struct balloon_job *job)
{
	/* What else there is to sync is not for modules. */
	if (!IS_ENABLED(CONFIG_PM_SLEEP))
		return -EOPNOTSUPP;
	ksys_sync_helper();
	return 0;
}

/**
 * balloon_job_sync() - VIRTIO_BALLOON_REQ_SYNC
 * @misc: the queue
 * @payload: nothing
 *
 * Return: 0.
 */
int balloon_job_sync(struct balloon_misc *misc, const void *payload)
{
	misc->job.step = balloon_job_sync_step;
	return 0;
}

static void balloon_job_queue(struct balloon_misc *misc)
{
	spin_lock_irq(&misc->lock);
	if (!misc->stopped)
		queue_work(system_freezable_wq, &misc->job_work);
	spin_unlock_irq(&misc->lock);
}

/**
 * balloon_job_start() - have the job done that was asked for
 * @misc: the queue; no job is being done
 */
void balloon_job_start(struct balloon_misc *misc)
{
	misc->doing = misc->job;
	misc->job.step = NULL;
	misc->job_done = false;
	misc->job_unwanted = false;
	balloon_job_queue(misc);
}

static void balloon_job_func(struct work_struct *work)
{
	struct balloon_misc *misc = container_of(work, struct balloon_misc, job_work);
	struct balloon_job *job = &misc->doing;
	int err = job->step(job);

	/* A part that takes long is not cut short: nobody waits for it. */
	if (err > 0 && !READ_ONCE(misc->job_unwanted)) {
		balloon_job_queue(misc);
		return;
	}
	job->err = err;
	/* Pairs with the load in balloon_misc_job(). */
	smp_store_release(&misc->job_done, true);
	balloon_misc_notify(misc);
}

/**
 * balloon_job_init() - prepare at probe
 * @misc: the queue
 */
void balloon_job_init(struct balloon_misc *misc)
{
	INIT_WORK(&misc->job_work, balloon_job_func);
	misc->job_done = true;
}
