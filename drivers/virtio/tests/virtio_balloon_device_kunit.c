// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of virtio_balloon against a device in memory: one that keeps to
 * the rules and sees whether the driver does, and one that breaks them.
 *
 * The device owns a split ring for each queue, and serves them from a work
 * item. It discards what is put into the balloon by writing over it. So a page
 * that is still in use, or is used again before the device was done with it,
 * shows as damage, most of all under KASAN.
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/page_reporting.h>
#include <linux/prandom.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/unused_pages.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "virtio_balloon_kunit.h"

static unsigned int seed = 1;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "of the random tests");

static unsigned int rounds = 20;
module_param(rounds, uint, 0444);
MODULE_PARM_DESC(rounds, "devices that the random tests go through");

/* What the device calls a page: as large as any page of a guest. */
#define UNITS(bytes)	((bytes) >> VIRTIO_BALLOON_PFN_SHIFT)

#define BITMAPS		(BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_BALLOON_F_PAGE_BITMAP))
#define ALL		(BITMAPS | BIT_ULL(VIRTIO_BALLOON_F_MISC_VQ))

enum role { INFLATE, DEFLATE, STATS, HINT, REPORTING, MISC, ROLES };

static const char * const roles[ROLES] = {
	"inflate", "deflate", "stats", "free_page_vq", "reporting_vq", "misc",
};

/* What a device can do wrong when it is to use a buffer. */
enum fault {
	NONE,
	LENGTH,		/* says that it wrote 4 GiB */
	NO_ID,		/* uses a buffer that cannot be there */
	NOT_A_HEAD,	/* or one that is not there */
	TWICE,		/* uses it again */
	AHEAD,		/* uses more buffers than there are */
	BACK,		/* takes the one before back */
	NEVER,		/* does not use it, nor any other */
	LATE,		/* uses it long after */
	SCRIBBLE,	/* writes into what is not for it to write */
	BREAK,		/* ends, all of it */
	BREAK_ONE,	/* ends with this queue */
	NOISE,		/* interrupts, for all queues, many times */
	FAULTS,
};

static const char * const faults[FAULTS] = {
	"none", "length", "no id", "not a head", "twice", "ahead", "back", "never", "late",
	"scribble", "break", "break one", "noise",
};

/* A request for unused pages */
struct misc_request {
	struct virtio_balloon_req_hdr hdr;
	union {
		struct virtio_balloon_req_range range;
		struct virtio_balloon_req_reclaim reclaim;
	};
};

struct queue {
	struct virtqueue *vq;
	u16 avail;		/* next entry of the available ring to look at */
	u16 used;		/* next entry of the used ring */
	bool stalled;
};

struct device_double {
	struct kunit *test;
	struct virtio_device vdev;
	struct mutex lock;		/* of all below but what is set once, by double_new() */
	struct workqueue_struct *wq;
	struct delayed_work work;

	u64 offered;
	unsigned int ring;
	unsigned int no_vqs;		/* queues that can be had; more fail */
	u8 status;
	struct virtio_balloon_config config;
	unsigned int reads;		/* of the target */
	struct queue queues[ROLES];

	struct xarray inside;		/* page frames in the balloon, each with... */
	unsigned long message;		/* ...the number of the message that said so */
	unsigned long nr_inside;
	unsigned long moved;		/* pages since the driver last told its size... */
	unsigned long most_moved;	/* ...and the most that there were */
	ktime_t done;			/* when it did, or ended an answer */
	const char *wrong;		/* the first thing that the driver did wrong */

	enum fault fault;
	enum role where;
	unsigned int after;		/* buffers used before it happens */
	struct completion happened;
	unsigned int fail_nth;		/* allocation of probe that fails, if any */
	bool lenient;			/* after a fault, messages may come twice */
	bool blind;			/* uses buffers unread, to be fast */
	bool slow;			/* to let the next write of the driver's size through */
	bool old;			/* knows of no answer that is not wanted... */
	bool ones;			/* ...but has something there all the same */

	u8 request[VIRTIO_BALLOON_REQ_LEN];
	unsigned int request_len;	/* 0: nothing to ask */
	u64 id;
	unsigned long reported;
	u64 number;			/* that was the last answer */
	unsigned int answers, errors;
	unsigned int hints;		/* buffers on the hint queue */
};

static struct device_double *to_double(struct virtio_device *vdev)
{
	return container_of(vdev, struct device_double, vdev);
}

static void wrong(struct device_double *d, const char *what)
{
	if (!d->wrong)
		d->wrong = what;
}

/* Rings */

static u16 get16(struct device_double *d, __virtio16 v)
{
	return virtio16_to_cpu(&d->vdev, v);
}

static const struct vring_desc *get_desc(struct device_double *d, struct queue *q, u16 i)
{
	const struct vring *ring = virtqueue_get_vring(q->vq);

	if (i >= ring->num) {
		wrong(d, "a descriptor that is none");
		i = 0;
	}
	return &ring->desc[i];
}

static void *desc_buf(struct device_double *d, const struct vring_desc *desc)
{
	return phys_to_virt(virtio64_to_cpu(&d->vdev, desc->addr));
}

static u32 desc_len(struct device_double *d, const struct vring_desc *desc)
{
	return virtio32_to_cpu(&d->vdev, desc->len);
}

static bool desc_writable(struct device_double *d, const struct vring_desc *desc)
{
	return get16(d, desc->flags) & VRING_DESC_F_WRITE;
}

static const struct vring_desc *next_desc(struct device_double *d, struct queue *q,
					  const struct vring_desc *desc)
{
	return get16(d, desc->flags) & VRING_DESC_F_NEXT ?
	       get_desc(d, q, get16(d, desc->next)) : NULL;
}

static void put_used(struct device_double *d, struct queue *q, u32 id, u32 len)
{
	const struct vring *ring = virtqueue_get_vring(q->vq);
	struct vring_used_elem *e = &ring->used->ring[q->used++ & (ring->num - 1)];

	e->id = cpu_to_virtio32(&d->vdev, id);
	e->len = cpu_to_virtio32(&d->vdev, len);
	/* Pairs with the driver's read barrier between index and element. */
	virtio_wmb(true);
	ring->used->idx = cpu_to_virtio16(&d->vdev, q->used);
}

static void interrupt(struct queue *q)
{
	unsigned long flags;

	if (!q->vq)
		return;
	/* As an interrupt would come: drivers count on it. */
	local_irq_save(flags);
	vring_interrupt(0, q->vq);
	local_irq_restore(flags);
}

static void use(struct device_double *d, struct queue *q, u16 head, u32 len)
{
	const struct vring *ring = virtqueue_get_vring(q->vq);
	const struct vring_desc *desc;
	int i;

	if (d->fault == NONE || q != &d->queues[d->where] || d->after--) {
		put_used(d, q, head, len);
		return;
	}

	d->lenient = true;
	switch (d->fault) {
	case LENGTH:
		put_used(d, q, head, U32_MAX);
		break;
	case NO_ID:
		put_used(d, q, ring->num + head, len);
		break;
	case NOT_A_HEAD:
		put_used(d, q, (head + 1) & (ring->num - 1), len);
		break;
	case TWICE:
		put_used(d, q, head, len);
		put_used(d, q, head, len);
		break;
	case AHEAD:
		q->used += ring->num + 1;
		put_used(d, q, head, len);
		break;
	case BACK:
		q->used -= 2;
		put_used(d, q, head, len);
		break;
	case NEVER:
		q->stalled = true;
		break;
	case LATE:
		mutex_unlock(&d->lock);
		msleep(1500);
		mutex_lock(&d->lock);
		/* It may have been reset meanwhile. */
		if (q->vq && d->status & VIRTIO_CONFIG_S_DRIVER_OK)
			put_used(d, q, head, len);
		break;
	case SCRIBBLE:
		for (desc = get_desc(d, q, head); desc; desc = next_desc(d, q, desc))
			memset(desc_buf(d, desc), 0xff, desc_len(d, desc));
		put_used(d, q, head, len);
		break;
	case BREAK:
		virtio_break_device(&d->vdev);
		break;
	case BREAK_ONE:
		__virtqueue_break(q->vq);
		break;
	case NOISE:
		for (i = 0; i < 1000; i++)
			interrupt(&d->queues[i % ROLES]);
		put_used(d, q, head, len);
		break;
	default:
		break;
	}
	d->fault = NONE;
	complete(&d->happened);
}

/* Messages */

static void move_page(struct device_double *d, unsigned long pfn, bool in)
{
	bool was_in;

	if (!pfn_valid(pfn)) {
		wrong(d, "a page that is none");
		return;
	}
	if (in)
		was_in = xa_insert(&d->inside, pfn, xa_mk_value(d->message), GFP_KERNEL) == -EBUSY;
	else
		was_in = xa_erase(&d->inside, pfn);
	if (was_in == in && !d->lenient)
		wrong(d, in ? "a page went in twice" : "a page came out that was not in");
	/* Who dumps memory, or reads kcore, would have the host back it again. */
	if (in && !d->lenient && !PageOffline(pfn_to_page(pfn)))
		wrong(d, "a page has no mark when it is discarded");
	d->nr_inside += (int)in - was_in;
	d->most_moved = max(d->most_moved, ++d->moved);
	/* After a fault the driver may have the page back. */
	if (in && !d->lenient)
		memset_page(pfn_to_page(pfn), 0, 0xb5, PAGE_SIZE);
}

/* Nobody may have the page now, or find what was in it when they get it. */
static void trim_page(struct device_double *d, unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);

	if (!page || page_ref_count(page) || PageBuddy(page))
		wrong(d, "a page that somebody may use is trimmed");
	else if (!d->lenient && !IS_ENABLED(CONFIG_KASAN) && !debug_pagealloc_enabled())
		memset_page(page, 0, 0xb5, PAGE_SIZE);
}

/* The bits of one record, that is legal so far. */
static void take_bits(struct device_double *d, enum role role, unsigned long base,
		      const u8 *bits, unsigned long nr)
{
	unsigned long i, start = 0, end = ULONG_MAX;

	if (role == MISC) {
		const struct misc_request *request = (void *)d->request;
		unsigned int shift = le16_to_cpu(request->range.page_shift);

		start = le64_to_cpu(request->range.start_pfn) << shift >> PAGE_SHIFT;
		end = start + (le64_to_cpu(request->range.nr_pages) << shift >> PAGE_SHIFT);
	}
	for (i = 0; i < nr; i++) {
		if (!(bits[i / 8] & BIT(i % 8)))
			continue;
		if (role != MISC) {
			move_page(d, base + i, role == INFLATE);
			continue;
		}
		d->reported++;
		if (d->request[0] == VIRTIO_BALLOON_REQ_TRIM)
			trim_page(d, base + i);
		if (base + i < start || base + i >= end)
			wrong(d, "a page that was not asked for");
	}
}

static void take_records(struct device_double *d, enum role role, const void *buf, size_t len)
{
	while (len) {
		const struct virtio_balloon_bmap_hdr *hdr = buf;
		u64 bytes;
		u16 flag;

		if (len < sizeof(*hdr))
			return wrong(d, "a record is cut off");
		bytes = le64_to_cpu(hdr->bmap_len);
		flag = le16_to_cpu(hdr->flag);
		if (bytes > VIRTIO_BALLOON_BMAP_MAX_LEN || bytes % 8 ||
		    bytes > len - sizeof(*hdr))
			return wrong(d, "the length of a bitmap");
		if (role == MISC && d->request[0] >= VIRTIO_BALLOON_REQ_RECLAIM && !bytes)
			d->number = le64_to_cpu(hdr->start_pfn);
		else if (le64_to_cpu(hdr->start_pfn) % 64)
			return wrong(d, "where a record begins");
		if (le16_to_cpu(hdr->page_shift) != PAGE_SHIFT || hdr->reserved)
			return wrong(d, "a field of a record");
		if (role != MISC && (hdr->cmd || flag || hdr->req_id || !bytes))
			return wrong(d, "a field of an inflate or deflate record");
		if (role == MISC &&
		    (le64_to_cpu(hdr->req_id) != d->id || flag > VIRTIO_BALLOON_BMAP_FLAG_ERROR))
			return wrong(d, "a field of an answer");
		/* One that is too short has neither. */
		if (role == MISC && d->id && le16_to_cpu(hdr->cmd) != d->request[0])
			return wrong(d, "the command of an answer");
		take_bits(d, role, le64_to_cpu(hdr->start_pfn), (void *)(hdr + 1), bytes * 8);
		d->answers += flag == VIRTIO_BALLOON_BMAP_FLAG_DONE;
		d->done = ktime_get();
		d->errors += flag == VIRTIO_BALLOON_BMAP_FLAG_ERROR;
		buf += sizeof(*hdr) + bytes;
		len -= sizeof(*hdr) + bytes;
	}
}

static void take_pfns(struct device_double *d, enum role role, const __virtio32 *pfn, u32 len)
{
	for (; len >= sizeof(*pfn); len -= sizeof(*pfn), pfn++) {
		u32 n = virtio32_to_cpu(&d->vdev, *pfn);

		if (n % UNITS(PAGE_SIZE) == 0)
			move_page(d, n / UNITS(PAGE_SIZE), role == INFLATE);
	}
}

/* The driver made a buffer available. Returns false to leave it there. */
static bool take(struct device_double *d, enum role role, u16 head)
{
	struct queue *q = &d->queues[role];
	const struct vring_desc *desc = get_desc(d, q, head);
	u32 len = 0;

	if (role == MISC && desc_writable(d, desc)) {
		if (!d->request_len)
			return false;
		if (desc_len(d, desc) < VIRTIO_BALLOON_REQ_LEN)
			wrong(d, "the buffer for requests is too short");
		else
			memcpy(desc_buf(d, desc), d->request, sizeof(d->request));
		len = d->request_len;
		d->request_len = 0;
	} else if (role == HINT) {
		d->hints++;
	} else if (!d->blind && (role == INFLATE || role == DEFLATE || role == MISC)) {
		d->message++;
		for (; desc; desc = next_desc(d, q, desc)) {
			if (desc_writable(d, desc))
				wrong(d, "a message that is to be written");
			else if (role != MISC &&
				 !virtio_has_feature(&d->vdev, VIRTIO_BALLOON_F_PAGE_BITMAP))
				take_pfns(d, role, desc_buf(d, desc), desc_len(d, desc));
			else
				take_records(d, role, desc_buf(d, desc), desc_len(d, desc));
		}
	}
	use(d, q, head, len);
	return true;
}

static void serve(struct device_double *d, enum role role)
{
	struct queue *q = &d->queues[role];
	bool used = false;

	while (q->vq && d->status & VIRTIO_CONFIG_S_DRIVER_OK && !q->stalled) {
		const struct vring *ring = virtqueue_get_vring(q->vq);

		if (q->avail == get16(d, READ_ONCE(ring->avail->idx)))
			break;
		/* Pairs with the driver's write barrier before the index. */
		virtio_rmb(true);
		if (!take(d, role, get16(d, ring->avail->ring[q->avail & (ring->num - 1)])))
			break;
		q->avail++;
		used = true;
	}
	if (used && d->status & VIRTIO_CONFIG_S_DRIVER_OK)
		interrupt(q);
}

static void double_work(struct work_struct *work)
{
	struct device_double *d = container_of(work, struct device_double, work.work);
	enum role role;

	mutex_lock(&d->lock);
	for (role = 0; role < ROLES; role++)
		serve(d, role);
	mutex_unlock(&d->lock);
}

static bool double_notify(struct virtqueue *vq)
{
	struct device_double *d = to_double(vq->vdev);

	mod_delayed_work(d->wq, &d->work, 0);
	return true;
}

/* Transport */

static void double_get(struct virtio_device *vdev, unsigned int offset, void *buf, unsigned int len)
{
	struct device_double *d = to_double(vdev);

	mutex_lock(&d->lock);
	if (d->old && offset + len > offsetof(struct virtio_balloon_config, misc_ended_id))
		memset(buf, 0xff, d->ones ? len : 0);
	else if (offset + len <= sizeof(d->config))
		memcpy(buf, (void *)&d->config + offset, len);
	d->reads += offset == offsetof(struct virtio_balloon_config, num_pages);
	mutex_unlock(&d->lock);
}

static void double_set(struct virtio_device *vdev, unsigned int offset, const void *buf,
		       unsigned int len)
{
	struct device_double *d = to_double(vdev);

	mutex_lock(&d->lock);
	if (d->slow && offset == offsetof(struct virtio_balloon_config, actual)) {
		d->slow = false;
		mutex_unlock(&d->lock);
		msleep(500);
		mutex_lock(&d->lock);
	}
	if (offset + len <= sizeof(d->config))
		memcpy((void *)&d->config + offset, buf, len);
	if (offset == offsetof(struct virtio_balloon_config, actual)) {
		d->moved = 0;
		d->done = ktime_get();
	}
	mutex_unlock(&d->lock);
}

static u8 double_get_status(struct virtio_device *vdev)
{
	return to_double(vdev)->status;
}

static void double_set_status(struct virtio_device *vdev, u8 status)
{
	struct device_double *d = to_double(vdev);

	mutex_lock(&d->lock);
	d->status = status;
	mutex_unlock(&d->lock);
	mod_delayed_work(d->wq, &d->work, 0);
}

static void double_reset(struct virtio_device *vdev)
{
	struct device_double *d = to_double(vdev);

	mutex_lock(&d->lock);
	d->status = 0;
	/* What was in the balloon is the guest's again. */
	xa_destroy(&d->inside);
	d->nr_inside = 0;
	mutex_unlock(&d->lock);
}

/* Returns whether there were any. */
static bool double_drop_vqs(struct device_double *d)
{
	bool any = false;
	enum role role;

	for (role = 0; role < ROLES; role++) {
		struct virtqueue *vq = d->queues[role].vq;

		mutex_lock(&d->lock);
		d->queues[role] = (struct queue) {};
		mutex_unlock(&d->lock);
		if (vq)
			vring_del_virtqueue(vq);
		any |= !!vq;
	}
	return any;
}

static void double_del_vqs(struct virtio_device *vdev)
{
	struct device_double *d = to_double(vdev);

	if (!double_drop_vqs(d))
		wrong(d, "no queues to delete");
}

static int double_find_vqs(struct virtio_device *vdev, unsigned int nvqs, struct virtqueue *vqs[],
			   struct virtqueue_info info[], struct irq_affinity *affinity)
{
	struct device_double *d = to_double(vdev);
	unsigned int i, index = 0;

	for (i = 0; i < nvqs; i++) {
		int role;

		vqs[i] = NULL;
		if (!info[i].name)
			continue;
		role = match_string(roles, ROLES, info[i].name);
		if (role >= 0 && index < d->no_vqs)
			vqs[i] = vring_create_virtqueue(index, d->ring, SMP_CACHE_BYTES, vdev, true,
							false, info[i].ctx, double_notify,
							info[i].callback, info[i].name);
		if (!vqs[i]) {
			double_drop_vqs(d);
			/* Of all errors the one that nobody complains about */
			return -ENXIO;
		}
		index++;
		mutex_lock(&d->lock);
		d->queues[role] = (struct queue) { .vq = vqs[i] };
		mutex_unlock(&d->lock);
	}
	return 0;
}

#ifdef CONFIG_FAULT_INJECTION
/*
 * The nth allocation of this task, of no other, fails from here on, or none.
 * Returns whether the one that was to fail before did. That those fail too
 * which could wait for memory is set in debugfs: ignore-gfp-wait.
 */
static bool fail_nth(unsigned int n)
{
	bool failed = !current->fail_nth;

	current->fail_nth = n;
	return failed;
}
#else
static bool fail_nth(unsigned int n)
{
	return false;
}
#endif

static u64 double_get_features(struct virtio_device *vdev)
{
	struct device_double *d = to_double(vdev);

	/* The bus asks first of all: what it does before is not the driver's. */
	if (d->fail_nth)
		fail_nth(d->fail_nth);
	d->fail_nth = 0;
	return d->offered;
}

static int double_finalize_features(struct virtio_device *vdev)
{
	vring_transport_features(vdev);
	return 0;
}

static const struct virtio_config_ops double_ops = {
	.get = double_get,
	.set = double_set,
	.get_status = double_get_status,
	.set_status = double_set_status,
	.reset = double_reset,
	.find_vqs = double_find_vqs,
	.del_vqs = double_del_vqs,
	.get_features = double_get_features,
	.finalize_features = double_finalize_features,
};

/* Control */

static void double_release(struct device *dev)
{
	struct device_double *d = to_double(dev_to_virtio(dev));

	destroy_workqueue(d->wq);
	xa_destroy(&d->inside);
	kfree(d);
}

static struct device_double *double_new(struct kunit *test, u64 features, unsigned int ring)
{
	struct device_double *d = kzalloc(sizeof(*d), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, d);
	d->test = test;
	d->offered = features;
	d->ring = ring;
	d->no_vqs = ROLES;
	xa_init(&d->inside);
	d->wq = alloc_ordered_workqueue("balloon double", 0);
	mutex_init(&d->lock);
	init_completion(&d->happened);
	INIT_DELAYED_WORK(&d->work, double_work);
	d->vdev.id.device = VIRTIO_ID_BALLOON;
	d->vdev.id.vendor = VIRTIO_DEV_ANY_ID;
	d->vdev.config = &double_ops;
	d->vdev.dev.release = double_release;
	KUNIT_ASSERT_NOT_NULL(test, d->wq);
	return d;
}

static bool double_add(struct device_double *d)
{
	KUNIT_ASSERT_EQ(d->test, register_virtio_device(&d->vdev), 0);
	return d->vdev.dev.driver;
}

static void double_remove(struct device_double *d)
{
	struct device *dev = get_device(&d->vdev.dev);

	unregister_virtio_device(&d->vdev);
	/* A notification may have come late. */
	cancel_delayed_work_sync(&d->work);
	put_device(dev);
}

/* A device that the driver has taken. */
static struct device_double *double_start(struct kunit *test, u64 features, unsigned int ring)
{
	struct device_double *d = double_new(test, features, ring);

	if (!double_add(d)) {
		double_remove(d);
		kunit_skip(test, "virtio_balloon is not loaded");
	}
	return d;
}

/* A driver that answers, if this kernel lets it */
static struct device_double *misc_start(struct kunit *test, unsigned int ring)
{
	struct device_double *d = double_start(test, ALL, ring);

	if (!virtio_has_feature(&d->vdev, VIRTIO_BALLOON_F_MISC_VQ)) {
		double_remove(d);
		kunit_skip(test, "the misc queue is declined");
	}
	return d;
}

static void target(struct device_double *d, u64 bytes)
{
	mutex_lock(&d->lock);
	d->config.num_pages = cpu_to_le32(UNITS(bytes));
	mutex_unlock(&d->lock);
	virtio_config_changed(&d->vdev);
}

static bool arrived(struct device_double *d)
{
	bool ret;

	mutex_lock(&d->lock);
	ret = d->config.actual == d->config.num_pages;
	mutex_unlock(&d->lock);
	return ret;
}

/*
 * In jiffies, for what takes an instant, but not on a busy host under a sanitizer.
 * A test that failed has waited enough.
 */
static unsigned long patience(struct kunit *test)
{
	return (READ_ONCE(test->status) == KUNIT_SUCCESS ? 60 : 1) * HZ;
}

/* Poll, since nothing is sure to say so. */
#define eventually(condition)						\
({									\
	unsigned long until = jiffies + patience(d->test);		\
	bool met;							\
									\
	while (!(met = (condition)) && time_before(jiffies, until))	\
		usleep_range(2000, 5000);				\
	met;								\
})

/* Ask for the unused pages of the first gigabyte, or what else @request is. */
static void ask(struct device_double *d, const void *request, unsigned int len)
{
	mutex_lock(&d->lock);
	memset(d->request, 0, sizeof(d->request));
	memcpy(d->request, request, min_t(size_t, len, sizeof(d->request)));
	/* One that is too short has no id, or half of one. */
	d->id = len < sizeof(struct virtio_balloon_req_hdr) ? 0 :
		le64_to_cpu(((struct virtio_balloon_req_hdr *)d->request)->id);
	d->request_len = len;
	mutex_unlock(&d->lock);
	mod_delayed_work(d->wq, &d->work, 0);
}

/* Memory may begin at 1 GiB only. */
static struct misc_request trim_request(u64 id)
{
	return (struct misc_request) {
		.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_TRIM),
		.hdr.id = cpu_to_le64(id),
		.range.nr_pages = cpu_to_le64(UNITS(SZ_4G)),
		.range.page_shift = cpu_to_le16(VIRTIO_BALLOON_PFN_SHIFT),
	};
}

static void ask_unused(struct device_double *d, u64 id)
{
	struct misc_request request = trim_request(id);

	request.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_UNUSED_PAGES);
	ask(d, &request, sizeof(request));
}

static bool answered(struct device_double *d)
{
	bool ret;

	mutex_lock(&d->lock);
	ret = d->answers + d->errors;
	mutex_unlock(&d->lock);
	return ret;
}

/* What must be the same before and after, whatever the device did. */
struct account {
	unsigned long total;
	long inside;
	long out;	/* but not this one: pages that ever came out */
};

static struct account take_account(void)
{
	struct account a = { .total = totalram_pages() };
	unsigned long *events = kcalloc(NR_VM_EVENT_ITEMS, sizeof(*events), GFP_KERNEL);

	if (events && IS_ENABLED(CONFIG_VM_EVENT_COUNTERS)) {
		all_vm_events(events);
		a.inside = events[BALLOON_INFLATE] - events[BALLOON_DEFLATE];
		a.out = events[BALLOON_DEFLATE];
	}
	kfree(events);
	return a;
}

/* The device goes, soon, and gives back all that it took. */
static void remove_and_judge(struct device_double *d, const struct account *before,
			     const char *what)
{
	struct kunit *test = d->test;
	unsigned long begin = jiffies;
	struct account after;

	KUNIT_EXPECT_NULL_MSG(test, d->wrong, "%s: %s", what, d->wrong);
	double_remove(d);
	KUNIT_EXPECT_LT_MSG(test, jiffies_to_msecs(jiffies - begin), 30000, "%s", what);
	after = take_account();
	KUNIT_EXPECT_EQ_MSG(test, after.total, before->total, "%s", what);
	KUNIT_EXPECT_EQ_MSG(test, after.inside, before->inside, "%s", what);
}

/* Tests */

static void device_good(struct kunit *test)
{
	static const u64 features[] = {
		ALL, BITMAPS, BIT_ULL(VIRTIO_F_VERSION_1),
		ALL | BIT_ULL(VIRTIO_BALLOON_F_STATS_VQ) | BIT_ULL(VIRTIO_BALLOON_F_DEFLATE_ON_OOM),
	};
	static const size_t sizes[] = { SZ_4M, SZ_64K, SZ_4M + SZ_1M, SZ_2M + SZ_64K, 0 };
	static const unsigned int rings[] = { 1, 2, 128 };
	struct account before = take_account();
	int i, j, k;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		for (j = 0; j < ARRAY_SIZE(rings); j++) {
			struct device_double *d = double_start(test, features[i], rings[j]);

			for (k = 0; k < ARRAY_SIZE(sizes); k++) {
				target(d, sizes[k]);
				KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
				KUNIT_EXPECT_EQ(test, d->nr_inside, sizes[k] >> PAGE_SHIFT);
			}
			/* Gone with a balloon that is not empty. */
			target(d, SZ_1M);
			KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
			remove_and_judge(d, &before, "good");
		}
	}
}

/* Who runs out of memory waits for balloon_lock: it is held for a bounded time. */
static void device_chunks(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, BITMAPS, 128);

	target(d, SZ_64M + SZ_32M);
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	target(d, 0);
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	KUNIT_EXPECT_LE(test, d->most_moved, SZ_64M >> PAGE_SHIFT);
	remove_and_judge(d, &before, "chunks");
}

/* Whatever the device says of its granule, pages go in and out as ever. */
static void device_granule(struct kunit *test)
{
	static const u32 shifts[] = { 7, 12, 16, 21, 30, 31, 63, U32_MAX };
	struct account before = take_account();
	int i;

	for (i = 0; i < ARRAY_SIZE(shifts); i++) {
		struct device_double *d = double_new(test, BITMAPS, 16);

		d->config.page_bitmap_granule_shift = cpu_to_le32(shifts[i]);
		if (!double_add(d)) {
			double_remove(d);
			kunit_skip(test, "virtio_balloon is not loaded");
		}
		target(d, SZ_4M + SZ_64K);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		KUNIT_EXPECT_EQ(test, d->nr_inside, (SZ_4M + SZ_64K) >> PAGE_SHIFT);
		target(d, SZ_64K);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		KUNIT_EXPECT_EQ(test, d->nr_inside, SZ_64K >> PAGE_SHIFT);
		remove_and_judge(d, &before, "granule");
	}
}

/* A target that is out of reach is given up in between, and the next one is heard. */
static void device_out_of_reach(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, BITMAPS, 16);
	unsigned long inside;

	target(d, (u64)U32_MAX << VIRTIO_BALLOON_PFN_SHIFT);
	/* It takes what it can get, and then leaves the guest in peace. */
	do {
		inside = READ_ONCE(d->nr_inside);
		msleep(1000);
	} while (READ_ONCE(d->nr_inside) > inside);
	KUNIT_EXPECT_GT(test, inside, 0UL);
	/* It waits for its next try, but not to hear of this. */
	target(d, SZ_8M);
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	KUNIT_EXPECT_EQ(test, d->nr_inside, SZ_8M >> PAGE_SHIFT);
	target(d, (u64)U32_MAX << VIRTIO_BALLOON_PFN_SHIFT);
	/* Out of reach again, or with a sanitizer on the way there. */
	msleep(300);
	remove_and_judge(d, &before, "out of reach");
}

static void device_answers(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = misc_start(test, 4);
	struct misc_request bad = { .hdr.cmd = cpu_to_le16(77), .hdr.id = cpu_to_le64(3) };
	unsigned int i;

	for (i = 1; i <= 20; i++) {
		unsigned int len = i % 4 ? sizeof(bad) : sizeof(bad.hdr) - i % 3;

		d->answers = 0;
		d->errors = 0;
		d->reported = 0;
		if (i % 2)
			ask_unused(d, i);
		else
			ask(d, &bad, len);
		KUNIT_EXPECT_TRUE(test, eventually(answered(d)));
		KUNIT_EXPECT_EQ(test, d->answers, i % 2);
		KUNIT_EXPECT_EQ(test, d->errors, !(i % 2));
		KUNIT_EXPECT_EQ(test, d->reported > 0, i % 2);
		/* Nothing of an answer may stay behind for other messages. */
		target(d, i % 2 * SZ_4M);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	}
	remove_and_judge(d, &before, "answers");
}

/* Ask, and wait for the end of the answer. Returns whether it was an error. */
static bool ask_and_wait(struct device_double *d, const void *request, unsigned int len)
{
	d->answers = 0;
	d->errors = 0;
	d->reported = 0;
	d->number = U64_MAX;
	ask(d, request, len);
	KUNIT_EXPECT_TRUE(d->test, eventually(answered(d)));
	KUNIT_EXPECT_EQ(d->test, d->answers + d->errors, 1);
	return d->errors;
}

/* What is not about unused pages */
static void device_jobs(struct kunit *test)
{
	static const unsigned int rings[] = { 1, 2, 64 };
	struct misc_request req = {
		.reclaim.bytes = cpu_to_le64(SZ_4M),
		.reclaim.msecs = cpu_to_le32(200),
	};
	struct account before = take_account();
	int i;

	for (i = 0; i < ARRAY_SIZE(rings); i++) {
		struct device_double *d = misc_start(test, rings[i]);
		struct misc_request trim = trim_request(1);
		unsigned long free;

		/* Page by page, what is free, and a balloon is not. */
		target(d, SZ_16M);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		free = global_zone_page_state(NR_FREE_PAGES);
		KUNIT_EXPECT_FALSE(test, ask_and_wait(d, &trim, sizeof(trim)));
		KUNIT_EXPECT_GE(test, d->reported, free / 2);
		KUNIT_EXPECT_LE(test, d->reported, free + free / 8);
		KUNIT_EXPECT_GE(test, global_zone_page_state(NR_FREE_PAGES), free / 2);

		req.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_RECLAIM);
		req.hdr.id = cpu_to_le64(2);
		KUNIT_EXPECT_EQ(test, ask_and_wait(d, &req, sizeof(req)),
				!IS_ENABLED(CONFIG_MEMCG));
		KUNIT_EXPECT_EQ(test, d->number % PAGE_SIZE, 0ULL);
		KUNIT_EXPECT_LT(test, d->number, (u64)SZ_128M);

		req.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_COMPACT);
		req.hdr.id = cpu_to_le64(3);
		KUNIT_EXPECT_EQ(test, ask_and_wait(d, &req, sizeof(req.hdr)),
				!IS_ENABLED(CONFIG_COMPACTION));
		KUNIT_EXPECT_EQ(test, d->number % (pageblock_nr_pages << PAGE_SHIFT), 0ULL);

		req.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_SYNC);
		req.hdr.id = cpu_to_le64(4);
		KUNIT_EXPECT_EQ(test, ask_and_wait(d, &req, sizeof(req.hdr)),
				!IS_ENABLED(CONFIG_PM_SLEEP));
		KUNIT_EXPECT_EQ(test, d->number, 0ULL);

		/* Gone while it reclaims, or compacts */
		req.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_RECLAIM + i % 2);
		req.hdr.id = cpu_to_le64(5);
		ask(d, &req, sizeof(req));
		usleep_range(0, 3000);
		remove_and_judge(d, &before, "jobs");
	}
}

/* The answer is not wanted. */
static void end_answer(struct device_double *d, u32 id)
{
	mutex_lock(&d->lock);
	d->config.misc_ended_id = cpu_to_le32(id);
	mutex_unlock(&d->lock);
	virtio_config_changed(&d->vdev);
}

/* An answer that nobody wants ends, by an error, and the next one is as ever. */
static void device_ends(struct kunit *test)
{
	struct misc_request req = {};
	struct account before = take_account();
	struct device_double *d = misc_start(test, 2);
	/* Ids are longer than what the config space has of them. */
	u64 id = 7ULL << 32;
	unsigned int cmd;

	for (cmd = VIRTIO_BALLOON_REQ_UNUSED_PAGES; cmd <= VIRTIO_BALLOON_REQ_SYNC; cmd++) {
		unsigned int i;

		req.hdr.cmd = cpu_to_le16(cmd);
		if (cmd <= VIRTIO_BALLOON_REQ_TRIM) {
			req.range = trim_request(1).range;
		} else {
			req.reclaim.bytes = cpu_to_le64(SZ_1M);
			req.reclaim.msecs = cpu_to_le32(100);
			req.reclaim.flags = 0;
		}
		/* Before it was begun, which the driver does as soon as it is asked */
		req.hdr.id = cpu_to_le64(++id);
		end_answer(d, id);
		KUNIT_EXPECT_TRUE_MSG(test, ask_and_wait(d, &req, sizeof(req)), "%u", cmd);
		KUNIT_EXPECT_EQ(test, d->reported, 0);
		/* It was of that one only. */
		for (i = 0; i < 2; i++) {
			req.hdr.id = cpu_to_le64(++id);
			if (i)
				virtio_config_changed(&d->vdev);
			KUNIT_EXPECT_EQ_MSG(test, ask_and_wait(d, &req, sizeof(req)),
					    (cmd == VIRTIO_BALLOON_REQ_RECLAIM &&
					     !IS_ENABLED(CONFIG_MEMCG)) ||
					    (cmd == VIRTIO_BALLOON_REQ_COMPACT &&
					     !IS_ENABLED(CONFIG_COMPACTION)) ||
					    (cmd == VIRTIO_BALLOON_REQ_SYNC &&
					     !IS_ENABLED(CONFIG_PM_SLEEP)), "%u", cmd);
		}
	}
	/* None is, whatever its id. */
	id = 8ULL << 32;
	end_answer(d, 0);
	req.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_UNUSED_PAGES);
	req.hdr.id = cpu_to_le64(id);
	req.range = trim_request(1).range;
	KUNIT_EXPECT_FALSE(test, ask_and_wait(d, &req, sizeof(req)));
	remove_and_judge(d, &before, "ends");
}

/* At any moment, the right one or another; what was a job may still be at it. */
static void device_ends_at_will(struct kunit *test)
{
	struct misc_request req = {
		.reclaim.bytes = cpu_to_le64(SZ_16M),
		.reclaim.msecs = cpu_to_le32(100),
	};
	struct account before = take_account();
	struct device_double *d = misc_start(test, 1);
	unsigned int i, errors = 0;
	struct rnd_state rnd;

	prandom_seed_state(&rnd, seed);
	for (i = 1; i <= 60; i++) {
		unsigned int cmd = prandom_u32_state(&rnd) % (VIRTIO_BALLOON_REQ_SYNC + 1);
		struct misc_request range = trim_request(i);

		d->answers = 0;
		d->errors = 0;
		range.hdr.cmd = cpu_to_le16(cmd);
		req.hdr = range.hdr;
		if (cmd <= VIRTIO_BALLOON_REQ_TRIM)
			ask(d, &range, sizeof(range));
		else
			ask(d, &req, sizeof(req));
		do {
			usleep_range(0, prandom_u32_state(&rnd) % 1000);
			end_answer(d, i + prandom_u32_state(&rnd) % 4);
		} while (!answered(d) && prandom_u32_state(&rnd) % 8);
		KUNIT_EXPECT_TRUE_MSG(test, eventually(answered(d)), "%u: %u", i, cmd);
		KUNIT_EXPECT_EQ(test, d->answers + d->errors, 1);
		errors += d->errors;
	}
	kunit_info(test, "%u of %u answers ended early", errors, i - 1);
	/* Gone while it is at one that nobody wants */
	req.hdr.cmd = cpu_to_le16(VIRTIO_BALLOON_REQ_COMPACT);
	req.hdr.id = cpu_to_le64(i);
	ask(d, &req, sizeof(req));
	usleep_range(0, 1000);
	end_answer(d, i);
	remove_and_judge(d, &before, "ends at will");
}

/* A device that knows nothing of this gets whole answers. */
static void device_ends_nothing(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = misc_start(test, 2);
	unsigned int i;

	d->old = true;
	for (i = 1; i <= 6; i++) {
		struct misc_request trim = trim_request(i);

		d->ones = i % 2;
		/* A new target, say */
		end_answer(d, i);
		KUNIT_EXPECT_FALSE(test, ask_and_wait(d, &trim, sizeof(trim)));
		KUNIT_EXPECT_GT(test, d->reported, 0);
	}
	remove_and_judge(d, &before, "ends nothing");
}

/* A device that does not use a message to trim keeps these pages, until it goes. */
static void device_trim_stalls(struct kunit *test)
{
	static const enum fault how[] = { NEVER, BREAK, BREAK_ONE, LATE, TWICE, SCRIBBLE };
	struct account before = take_account();
	int i;

	for (i = 0; i < ARRAY_SIZE(how); i++) {
		struct device_double *d = misc_start(test, 16);
		struct misc_request trim = trim_request(1);
		unsigned long free;

		drain_unused_pages(0, ULONG_MAX);
		free = global_zone_page_state(NR_FREE_PAGES);
		mutex_lock(&d->lock);
		d->where = MISC;
		d->after = 1;
		d->fault = how[i];
		d->lenient = true;
		mutex_unlock(&d->lock);
		ask(d, &trim, sizeof(trim));
		KUNIT_EXPECT_TRUE(test, wait_for_completion_timeout(&d->happened, patience(test)));
		KUNIT_EXPECT_GE(test, global_zone_page_state(NR_FREE_PAGES) +
				((SZ_64M + SZ_16M) >> PAGE_SHIFT), free);
		remove_and_judge(d, &before, faults[how[i]]);
		drain_unused_pages(0, ULONG_MAX);
		KUNIT_EXPECT_GE(test, global_zone_page_state(NR_FREE_PAGES) +
				(SZ_8M >> PAGE_SHIFT), free);
	}
}

/* The target is whatever it likes, and another before it is reached. */
static void device_wavers(struct kunit *test)
{
	static const u64 features[] = { BITMAPS, BIT_ULL(VIRTIO_F_VERSION_1) };
	static const u64 sizes[] = {
		(u64)U32_MAX << VIRTIO_BALLOON_PFN_SHIFT, 0, SZ_32M + SZ_64K, SZ_4K, SZ_16M,
	};
	struct account before = take_account();
	struct rnd_state rnd;
	unsigned int i, j;

	prandom_seed_state(&rnd, seed);
	for (i = 0; i < ARRAY_SIZE(features); i++) {
		struct device_double *d = double_start(test, features[i], 16);

		for (j = 0; j < 300; j++) {
			target(d, sizes[prandom_u32_state(&rnd) % ARRAY_SIZE(sizes)]);
			usleep_range(0, prandom_u32_state(&rnd) % 2000);
		}
		target(d, SZ_8M);
		/* It may have that size on its way to another. */
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d) &&
						   d->nr_inside == SZ_8M >> PAGE_SHIFT));
		remove_and_judge(d, &before, "wavers");
	}
}

/* One fault on one queue, then the device goes, with or without a word. */
static void one_fault(struct kunit *test, enum fault fault, enum role where, bool bitmaps,
		      unsigned int after)
{
	struct account before = take_account();
	const u64 features = bitmaps ? ALL : BIT_ULL(VIRTIO_F_VERSION_1);
	struct device_double *d = double_start(test, features, 16);
	unsigned int reads;
	char what[64];

	snprintf(what, sizeof(what), "%s on %s by %s, after %u", faults[fault], roles[where],
		 bitmaps ? "bitmaps" : "numbers", after);
	if (where == MISC && !virtio_has_feature(&d->vdev, VIRTIO_BALLOON_F_MISC_VQ)) {
		double_remove(d);
		return;
	}

	target(d, SZ_8M);
	KUNIT_EXPECT_TRUE_MSG(test, eventually(arrived(d)), "%s", what);
	mutex_lock(&d->lock);
	d->where = where;
	d->after = after;
	d->fault = fault;
	mutex_unlock(&d->lock);
	switch (where) {
	case INFLATE:
		target(d, SZ_16M);
		break;
	case DEFLATE:
		target(d, SZ_2M);
		break;
	default:
		ask_unused(d, 1);
	}
	KUNIT_EXPECT_TRUE_MSG(test, wait_for_completion_timeout(&d->happened, patience(test)),
			      "%s", what);

	/* The driver must not turn in circles. */
	msleep(100);
	reads = d->reads;
	msleep(100);
	KUNIT_EXPECT_LT_MSG(test, d->reads - reads, 50, "%s", what);

	switch (fault) {
	case LENGTH:
	case LATE:
	case SCRIBBLE:
	case NOISE:
		/* Nothing that hurts. */
		target(d, SZ_4M);
		KUNIT_EXPECT_TRUE_MSG(test, eventually(arrived(d)), "%s", what);
		break;
	case NEVER:
	case AHEAD:
	case BACK:
		/* The transport finds out that it has gone. */
		if (where != MISC)
			virtio_break_device(&d->vdev);
		break;
	default:
		break;
	}
	remove_and_judge(d, &before, what);
}

static const enum role faulty[] = { INFLATE, DEFLATE, MISC };

static void faulty_desc(const enum role *where, char *desc)
{
	strscpy(desc, roles[*where], KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(faulty, faulty, faulty_desc);

static void device_faults(struct kunit *test)
{
	enum role where = *(const enum role *)test->param_value;
	enum fault fault;

	for (fault = NONE + 1; fault < FAULTS; fault++) {
		/* The first buffer of the misc queue is the request. */
		one_fault(test, fault, where, true, where == MISC);
		if (where != MISC)
			one_fault(test, fault, where, false, fault % 2 * 3);
	}
}

/* Moments from the first to the last of what is interrupted */
#define MOMENTS	20

/*
 * Wait for the @i-th of these moments, and for the end at first. The quickest so
 * far says how much time there is: @whole, in microseconds. Others were held up.
 */
static void await_moment(struct device_double *d, unsigned int i, ktime_t begin,
			 bool (*over)(struct device_double *d), unsigned long *whole)
{
	if (i)
		usleep_range(*whole * i / MOMENTS, *whole * i / MOMENTS + 1);
	else
		KUNIT_EXPECT_TRUE(d->test, eventually(over(d)));
	if (over(d))
		*whole = min_t(s64, *whole, ktime_us_delta(d->done, begin));
}

/* Nothing is wrong, but what the test is for did not happen. */
static void did_not_happen(struct kunit *test, const char *why)
{
	if (READ_ONCE(test->status) == KUNIT_SUCCESS)
		kunit_mark_skipped(test, "%s", why);
}

/* On one processor the test may come to run when all is over, each time. */
static void expect_in_time(struct kunit *test, unsigned int in_time)
{
	kunit_info(test, "%u in time", in_time);
	if (!in_time && num_online_cpus() == 1)
		did_not_happen(test, "one processor");
	else
		KUNIT_EXPECT_GT(test, in_time, 0);
}

/* It takes the driver a while, and with a sanitizer several times as long. */
#define MUCH	(IS_ENABLED(CONFIG_KASAN) ? SZ_16M : SZ_64M)

static const struct move {
	const char *name;
	u64 features;
	size_t from, to;
} moves[] = {
	{ "deflates by bitmaps", BITMAPS, MUCH, 0 },
	{ "deflates by numbers", BIT_ULL(VIRTIO_F_VERSION_1), SZ_4M, 0 },
	{ "inflates by bitmaps", BITMAPS, 0, MUCH },
	{ "inflates by numbers", BIT_ULL(VIRTIO_F_VERSION_1), 0, SZ_4M },
};

KUNIT_ARRAY_PARAM_DESC(moves, moves, name);

/*
 * The balloon moves, and the device breaks, or goes, at each moment of it: nobody
 * waits for what was not sent, nothing is used that is gone.
 */
static void device_breaks(struct kunit *test)
{
	const struct move *move = test->param_value;
	struct account before = take_account();
	unsigned long whole = USEC_PER_SEC;
	unsigned int i, in_time = 0;

	for (i = 0; i <= MOMENTS; i++) {
		struct device_double *d = double_start(test, move->features, 128);
		ktime_t begin;

		mutex_lock(&d->lock);
		d->blind = true;
		mutex_unlock(&d->lock);
		target(d, move->from);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		begin = ktime_get();
		target(d, move->to);
		await_moment(d, i, begin, arrived, &whole);
		if (i % 2)
			virtio_break_device(&d->vdev);
		in_time += !arrived(d);
		remove_and_judge(d, &before, i % 2 ? "breaks" : "goes");
	}
	expect_in_time(test, in_time);
}

/* The device goes while it is answered: nothing is used that is gone with it. */
static void device_leaves(struct kunit *test)
{
	struct account before = take_account();
	unsigned long whole = USEC_PER_SEC;
	unsigned int i, in_time = 0;

	for (i = 0; i <= MOMENTS; i++) {
		struct device_double *d = misc_start(test, 4);
		ktime_t begin = ktime_get();

		ask_unused(d, 1);
		await_moment(d, i, begin, answered, &whole);
		in_time += !answered(d);
		remove_and_judge(d, &before, "leaves");
	}
	expect_in_time(test, in_time);
}

/* A device that is there and silent is reported: once, and not at once. */
static void device_silent(struct kunit *test)
{
	static const u64 features[] = { BITMAPS, BIT_ULL(VIRTIO_F_VERSION_1) };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		struct account before = take_account();
		struct device_double *d = double_start(test, features[i], 16);
		struct kmsg_dump_iter iter;

		mutex_lock(&d->lock);
		d->where = INFLATE;
		d->fault = NEVER;
		mutex_unlock(&d->lock);
		kmsg_dump_rewind(&iter);
		log_lines(&iter, "");
		target(d, SZ_1M);
		KUNIT_EXPECT_TRUE(test, wait_for_completion_timeout(&d->happened, patience(test)));
		ssleep(5);
		KUNIT_EXPECT_EQ(test, log_lines(&iter, "waiting for the host"), 0);
		ssleep(8);
		KUNIT_EXPECT_EQ(test, log_lines(&iter, "1 buffer(s) of the inflate queue"), 1);
		ssleep(12);
		KUNIT_EXPECT_EQ(test, log_lines(&iter, "waiting for the host"), 0);
		virtio_break_device(&d->vdev);
		remove_and_judge(d, &before, "silent");
	}
}

/* Pages that the device was told of last, and of these such as the driver has freed. */
static unsigned long last_told(struct device_double *d, unsigned long *freed)
{
	unsigned long pfn, nr = 0;
	void *entry;

	*freed = 0;
	mutex_lock(&d->lock);
	xa_for_each(&d->inside, pfn, entry) {
		if (xa_to_value(entry) != d->message)
			continue;
		nr++;
		*freed += !page_count(pfn_to_page(pfn));
	}
	mutex_unlock(&d->lock);
	return nr;
}

static unsigned long pages_inside(struct device_double *d)
{
	unsigned long ret;

	mutex_lock(&d->lock);
	ret = le32_to_cpu(d->config.actual) / UNITS(PAGE_SIZE);
	mutex_unlock(&d->lock);
	return ret;
}

/*
 * A queue breaks with a message that the device may still act on: the pages of
 * that stay, all others can be had back, few at a time or all at once.
 */
static void device_breaks_one(struct kunit *test)
{
	enum role where;

	for (where = INFLATE; where <= DEFLATE; where++) {
		struct account before = take_account();
		struct device_double *d = double_start(test, BITMAPS, 16);
		unsigned long freed, told = 0;

		target(d, MUCH);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		mutex_lock(&d->lock);
		d->where = where;
		d->fault = BREAK_ONE;
		mutex_unlock(&d->lock);
		target(d, where == INFLATE ? MUCH + MUCH / 4 : MUCH - SZ_1M);
		KUNIT_EXPECT_TRUE(test, wait_for_completion_timeout(&d->happened, patience(test)));
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		if (where == INFLATE)
			told = last_told(d, &freed);
		KUNIT_EXPECT_EQ(test, told > 0, where == INFLATE);

		/* As much as out of memory gets at a time, which finds the last ones first. */
		target(d, MUCH - SZ_1M);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		target(d, 0);
		KUNIT_EXPECT_TRUE(test, eventually(pages_inside(d) <= told));
		KUNIT_EXPECT_EQ(test, pages_inside(d), told);
		if (where == INFLATE) {
			last_told(d, &freed);
			KUNIT_EXPECT_EQ(test, freed, 0);
		}
		remove_and_judge(d, &before, roles[where]);
	}
}

static unsigned long oom_kills(void)
{
	unsigned long *events = kcalloc(NR_VM_EVENT_ITEMS, sizeof(*events), GFP_KERNEL);
	unsigned long nr = 0;

	if (events && IS_ENABLED(CONFIG_VM_EVENT_COUNTERS)) {
		all_vm_events(events);
		nr = events[OOM_KILL];
	}
	kfree(events);
	return nr;
}

/*
 * The inflate queue is broken, and memory is out: who allocates gets what the
 * device has acknowledged, page by page, and nobody is killed for it.
 */
static void device_breaks_oom(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, BITMAPS |
					       BIT_ULL(VIRTIO_BALLOON_F_DEFLATE_ON_OOM), 16);
	unsigned long freed, told, inside, kills = oom_kills(), nr;
	struct page *page, *next;
	LIST_HEAD(pages);

	target(d, MUCH);
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	mutex_lock(&d->lock);
	d->where = INFLATE;
	d->fault = BREAK_ONE;
	mutex_unlock(&d->lock);
	target(d, MUCH + MUCH / 4);
	KUNIT_EXPECT_TRUE(test, wait_for_completion_timeout(&d->happened, patience(test)));
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	told = last_told(d, &freed);
	KUNIT_EXPECT_GT(test, told, 0);

	/* All but what two calls of the notifier give: the next one has nothing to give. */
	while ((inside = pages_inside(d)) > told + SZ_2M / PAGE_SIZE && oom_kills() == kills) {
		for (nr = 0; nr < SZ_1M / PAGE_SIZE; nr++) {
			page = alloc_page(GFP_HIGHUSER | __GFP_NOWARN);
			if (!page)
				break;
			list_add(&page->lru, &pages);
		}
		cond_resched();
	}
	KUNIT_EXPECT_EQ(test, oom_kills(), kills);
	KUNIT_EXPECT_GE(test, inside, told);
	KUNIT_EXPECT_LE(test, inside, told + SZ_2M / PAGE_SIZE);
	last_told(d, &freed);
	KUNIT_EXPECT_EQ(test, freed, 0);
	list_for_each_entry_safe(page, next, &pages, lru)
		__free_page(page);
	remove_and_judge(d, &before, "breaks, and memory is out");
}

/* Nothing can be added to a queue that is not broken, as when a buffer cannot be mapped. */
static void block_queue(struct device_double *d, enum role role)
{
	void *in_the_way = kunit_kzalloc(d->test, 64, GFP_KERNEL);
	struct scatterlist sg;

	KUNIT_ASSERT_NOT_NULL(d->test, in_the_way);
	mutex_lock(&d->lock);
	d->queues[role].stalled = true;
	sg_init_one(&sg, in_the_way, 64);
	KUNIT_EXPECT_EQ(d->test, virtqueue_add_outbuf(d->queues[role].vq, &sg, 1, in_the_way,
						      GFP_KERNEL), 0);
	mutex_unlock(&d->lock);
}

/*
 * What cannot be told stays in the balloon, and is not counted as if it had left it
 * and come back. When the device goes, or sleeps, the driver does not wait for it.
 */
static void device_blocked(struct kunit *test)
{
	struct account before = take_account(), blocked, after;
	struct device_double *d = double_start(test, BITMAPS, 1);

	target(d, SZ_16M);
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	block_queue(d, DEFLATE);
	blocked = take_account();
	target(d, SZ_4M);
	msleep(300);
	KUNIT_EXPECT_EQ(test, pages_inside(d), SZ_16M >> PAGE_SHIFT);
	/* The driver tries again and again: look between two tries. */
	KUNIT_EXPECT_TRUE(test, eventually((after = take_account(),
					    after.inside == blocked.inside &&
					    after.out == blocked.out)));
#ifdef CONFIG_PM_SLEEP
	KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
	KUNIT_EXPECT_EQ(test, d->nr_inside, 0);
	KUNIT_EXPECT_EQ(test, virtio_device_restore(&d->vdev), 0);
	target(d, SZ_8M);
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	block_queue(d, DEFLATE);
#endif
	remove_and_judge(d, &before, "blocked");
}

/* A kernel that was started by another one, not by the machine, starts from nothing. */
static void device_was_used(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_new(test, BITMAPS, 16);

	d->config.actual = cpu_to_le32(UNITS(SZ_16M));
	if (!double_add(d)) {
		double_remove(d);
		kunit_skip(test, "virtio_balloon is not loaded");
	}
	KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	remove_and_judge(d, &before, "was used");
}

/* Fewer queues than asked for: probe fails, and leaves nothing. */
static void device_no_queues(struct kunit *test)
{
	struct account before = take_account();
	unsigned int i;

	for (i = 0; i < 4; i++) {
		struct device_double *d =
			double_new(test, ALL | BIT_ULL(VIRTIO_BALLOON_F_STATS_VQ), 16);

		d->no_vqs = i;
		KUNIT_EXPECT_FALSE(test, double_add(d));
		remove_and_judge(d, &before, "no queues");
	}
}

#ifdef CONFIG_PM_SLEEP
/* Suspend and resume, with a balloon, and a message of the answer on its way. */
static void device_sleeps(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, ALL, 4);
	int i;

	for (i = 0; i < 6; i++) {
		target(d, SZ_16M);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		mutex_lock(&d->lock);
		d->fault = i % 2 ? NEVER : NONE;
		d->where = MISC;
		d->after = 1;
		mutex_unlock(&d->lock);
		ask_unused(d, i + 1);
		usleep_range(100 * i, 100 * i + 50);
		KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
		KUNIT_EXPECT_EQ(test, d->nr_inside, 0);
		d->answers = 0;
		d->errors = 0;
		d->fault = NONE;
		d->request_len = 0;
		KUNIT_EXPECT_EQ(test, virtio_device_restore(&d->vdev), 0);
		if (virtio_has_feature(&d->vdev, VIRTIO_BALLOON_F_MISC_VQ)) {
			ask_unused(d, i + 100);
			KUNIT_EXPECT_TRUE(test, eventually(answered(d)));
		}
		target(d, SZ_8M);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
	}
	remove_and_judge(d, &before, "sleeps");
}

/* Resume finds no queues: the next one may, and there is a way out. */
static void device_no_resume(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, ALL | BIT_ULL(VIRTIO_BALLOON_F_STATS_VQ) |
					       BIT_ULL(VIRTIO_BALLOON_F_REPORTING), 32);
	unsigned int i;

	for (i = 0; i < 4; i++) {
		target(d, SZ_8M);
		KUNIT_EXPECT_TRUE(test, eventually(arrived(d)));
		d->no_vqs = i;
		KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
		KUNIT_EXPECT_NE(test, virtio_device_restore(&d->vdev), 0);
		if (i == 3)
			break;
		d->no_vqs = ROLES;
		KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
		/* What it says late must be true then. */
		d->slow = true;
		KUNIT_EXPECT_EQ(test, virtio_device_restore(&d->vdev), 0);
	}
	/* What was freed would be reported after two seconds. */
	ssleep(3);
	remove_and_judge(d, &before, "no resume");
}

static void hint(struct device_double *d, u32 id)
{
	mutex_lock(&d->lock);
	d->config.free_page_hint_cmd_id = cpu_to_le32(id);
	d->hints = 0;
	mutex_unlock(&d->lock);
	virtio_config_changed(&d->vdev);
}

static bool hinted(struct device_double *d)
{
	bool ret;

	mutex_lock(&d->lock);
	ret = d->hints;
	mutex_unlock(&d->lock);
	return ret;
}

/* Suspended with a command id that is not read yet, hinting is there again after it. */
static void device_sleeps_hinting(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, BITMAPS |
					       BIT_ULL(VIRTIO_BALLOON_F_FREE_PAGE_HINT), 32);
	unsigned int i;

	for (i = 0; i < 20; i++) {
		hint(d, 2 * i + 2);
		KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
		KUNIT_EXPECT_EQ(test, virtio_device_restore(&d->vdev), 0);
		hint(d, 2 * i + 3);
		KUNIT_EXPECT_TRUE_MSG(test, eventually(hinted(d)), "%u", i);
		hint(d, VIRTIO_BALLOON_CMD_ID_DONE);
	}
	remove_and_judge(d, &before, "sleeps hinting");
}
#endif

/* No more allocations than so many, or a test does not end. */
#define MANY	1000

#define NOT_FAILED	"no allocation failed: see failslab/ignore-gfp-wait in debugfs"

/* Each allocation of probe fails in turn: either probe fails, or it can do without. */
static void device_no_memory_probe(struct kunit *test)
{
	unsigned int n, refused = 0;
	bool failed = true;

	double_remove(double_start(test, ALL, 32));
	if (!IS_ENABLED(CONFIG_FAULT_INJECTION))
		kunit_skip(test, "no fault injection");
	for (n = 1; failed && n < MANY; n++) {
		struct account before = take_account();
		struct device_double *d =
			double_new(test, ALL | BIT_ULL(VIRTIO_BALLOON_F_STATS_VQ) |
				   BIT_ULL(VIRTIO_BALLOON_F_FREE_PAGE_HINT) |
				   BIT_ULL(VIRTIO_BALLOON_F_DEFLATE_ON_OOM) |
				   BIT_ULL(VIRTIO_BALLOON_F_REPORTING), 32);
		bool taken;

		d->fail_nth = n;
		taken = double_add(d);
		failed = fail_nth(0);
		refused += !taken;
		if (taken) {
			target(d, SZ_256K);
			KUNIT_EXPECT_TRUE_MSG(test, eventually(arrived(d)), "%u", n);
		}
		remove_and_judge(d, &before, "no memory in probe");
	}
	kunit_info(test, "%u of %u made probe fail", refused, n - 2);
	KUNIT_EXPECT_FALSE(test, failed);
	if (!refused)
		did_not_happen(test, NOT_FAILED);
}

#ifdef CONFIG_PM_SLEEP
/* The same of suspend, which never fails, and of resume, which may, but not for ever. */
static void device_no_memory_sleeps(struct kunit *test)
{
	struct account before = take_account();
	struct device_double *d = double_start(test, ALL | BIT_ULL(VIRTIO_BALLOON_F_STATS_VQ) |
					       BIT_ULL(VIRTIO_BALLOON_F_REPORTING), 32);
	unsigned int n, refused = 0;
	bool failed = true;

	if (!IS_ENABLED(CONFIG_FAULT_INJECTION)) {
		double_remove(d);
		kunit_skip(test, "no fault injection");
	}
	for (n = 1; failed && n < MANY; n++) {
		int err;

		target(d, SZ_1M);
		KUNIT_EXPECT_TRUE_MSG(test, eventually(arrived(d)), "%u", n);
		fail_nth(n);
		KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
		failed = fail_nth(n);
		KUNIT_EXPECT_EQ(test, d->nr_inside, 0);
		err = virtio_device_restore(&d->vdev);
		failed |= fail_nth(0);
		if (err) {
			refused++;
			/* The next suspend and resume */
			KUNIT_EXPECT_EQ(test, virtio_device_freeze(&d->vdev), 0);
			err = virtio_device_restore(&d->vdev);
			KUNIT_EXPECT_EQ_MSG(test, err, 0, "%u", n);
			if (err)
				break;
		}
	}
	kunit_info(test, "%u of %u made resume fail", refused, n - 2);
	KUNIT_EXPECT_FALSE(test, failed);
	if (!refused)
		did_not_happen(test, NOT_FAILED);
	remove_and_judge(d, &before, "no memory in suspend and resume");
}
#endif

/* All of it, at random. */
static void device_random(struct kunit *test)
{
	static const u8 optional[] = {
		VIRTIO_BALLOON_F_MUST_TELL_HOST, VIRTIO_BALLOON_F_STATS_VQ,
		VIRTIO_BALLOON_F_DEFLATE_ON_OOM, VIRTIO_BALLOON_F_FREE_PAGE_HINT,
		VIRTIO_BALLOON_F_PAGE_POISON, VIRTIO_BALLOON_F_REPORTING,
		VIRTIO_BALLOON_F_PAGE_BITMAP, VIRTIO_BALLOON_F_MISC_VQ, VIRTIO_RING_F_EVENT_IDX,
		VIRTIO_RING_F_INDIRECT_DESC,
	};
	struct rnd_state rnd;
	unsigned int round;

	kunit_info(test, "seed %u, %u rounds", seed, rounds);
	for (round = 0; round < rounds; round++) {
		struct account before = take_account();
		u64 features = BIT_ULL(VIRTIO_F_VERSION_1);
		struct device_double *d;
		bool asked = false, messy = false;
		unsigned int i, steps, ring;
		char what[32];

		prandom_seed_state(&rnd, seed * 1000003ULL + round);
		snprintf(what, sizeof(what), "seed %u, round %u", seed, round);
		for (i = 0; i < ARRAY_SIZE(optional); i++)
			if (prandom_u32_state(&rnd) % 4)
				features |= BIT_ULL(optional[i]);
		ring = 1 << prandom_u32_state(&rnd) % 7;
		/* Probe complains about a ring that is too short for a feature. */
		if (ring < 2)
			features &= ~BIT_ULL(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
		if (ring < PAGE_REPORTING_CAPACITY)
			features &= ~BIT_ULL(VIRTIO_BALLOON_F_REPORTING);
		d = double_new(test, features, ring);
		if (prandom_u32_state(&rnd) % 8 == 0)
			d->no_vqs = prandom_u32_state(&rnd) % ROLES;
		if (!double_add(d)) {
			remove_and_judge(d, &before, what);
			continue;
		}

		steps = prandom_u32_state(&rnd) % 8;
		for (i = 0; i < steps; i++) {
			u32 r = prandom_u32_state(&rnd);
			u8 request[VIRTIO_BALLOON_REQ_LEN];

			switch (r % 6) {
			case 0:
			case 1:
				target(d, (r >> 8) % SZ_32M);
				break;
			case 2:
				mutex_lock(&d->lock);
				d->config.free_page_hint_cmd_id = cpu_to_le32(r >> 8 & 3);
				d->config.misc_ended_id = cpu_to_le32(d->id - (r >> 10 & 1));
				mutex_unlock(&d->lock);
				virtio_config_changed(&d->vdev);
				break;
			case 3:
				messy = true;
				mutex_lock(&d->lock);
				d->fault = (r >> 8) % FAULTS;
				d->where = (r >> 16) % ROLES;
				d->after = (r >> 24) % 4;
				mutex_unlock(&d->lock);
				break;
			case 4:
				messy |= asked;
				asked = true;
				ask_unused(d, r);
				break;
			case 5:
				messy = true;
				prandom_bytes_state(&rnd, request, sizeof(request));
				if (r >> 8 & 1)
					memset(request, 0, 8);
				ask(d, request, (r >> 9) % (VIRTIO_BALLOON_REQ_LEN + 8));
				/* Whatever comes back has this or no id. */
				d->id = ~0ULL;
				break;
			}
			if (r >> 31)
				msleep(r >> 25 & 15);
		}
		/* A device that is silent holds up its driver as long as it is there. */
		virtio_break_device(&d->vdev);
		/* Nor can it tell what belongs to which request, or to a fault. */
		if (messy)
			d->wrong = NULL;
		remove_and_judge(d, &before, what);
	}
}

static const struct kunit_attributes slow = { .speed = KUNIT_SPEED_SLOW };

static struct kunit_case virtio_balloon_device_cases[] = {
	KUNIT_CASE_SLOW(device_good),
	KUNIT_CASE_SLOW(device_chunks),
	KUNIT_CASE_SLOW(device_granule),
	KUNIT_CASE_SLOW(device_out_of_reach),
	KUNIT_CASE_SLOW(device_answers),
	KUNIT_CASE_SLOW(device_jobs),
	KUNIT_CASE_SLOW(device_ends),
	KUNIT_CASE_SLOW(device_ends_at_will),
	KUNIT_CASE_SLOW(device_ends_nothing),
	KUNIT_CASE_SLOW(device_trim_stalls),
	KUNIT_CASE_SLOW(device_wavers),
	/* By parts: what a case may take is limited, and a sanitizer slow. */
	KUNIT_CASE_PARAM_ATTR(device_faults, faulty_gen_params, slow),
	KUNIT_CASE_PARAM_ATTR(device_breaks, moves_gen_params, slow),
	KUNIT_CASE_SLOW(device_leaves),
	KUNIT_CASE_SLOW(device_silent),
	KUNIT_CASE_SLOW(device_breaks_one),
	KUNIT_CASE_SLOW(device_breaks_oom),
	KUNIT_CASE_SLOW(device_blocked),
	KUNIT_CASE_SLOW(device_was_used),
	KUNIT_CASE_SLOW(device_no_queues),
#ifdef CONFIG_PM_SLEEP
	KUNIT_CASE_SLOW(device_sleeps),
	KUNIT_CASE_SLOW(device_no_resume),
	KUNIT_CASE_SLOW(device_sleeps_hinting),
#endif
	KUNIT_CASE_SLOW(device_no_memory_probe),
#ifdef CONFIG_PM_SLEEP
	KUNIT_CASE_SLOW(device_no_memory_sleeps),
#endif
	KUNIT_CASE_SLOW(device_random),
	{}
};

static struct kunit_suite virtio_balloon_device_suite = {
	.name = "virtio_balloon_device",
	.test_cases = virtio_balloon_device_cases,
};

kunit_test_suite(virtio_balloon_device_suite);

MODULE_DESCRIPTION("KUnit tests of virtio_balloon against a device in memory");
MODULE_LICENSE("GPL");
