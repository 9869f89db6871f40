// SPDX-License-Identifier: GPL-2.0
/*
 * A guest without a kernel: it drives a virtio balloon, and keeps rewriting and
 * checking memory, above all pages that it has just reported as unused.
 *
 * It runs at CPL 3 from its first moment on, polls, and takes commands from the
 * serial port, a line each; every one is answered by a line. The host's side is
 * ../qemu/bare.py.
 *
 *	start PAGES CPUS SHARE	what there is, in pages of 4 KiB, of which one in SHARE is in
 *				use from the beginning, none if it is 0; begins to work
 *	check			verify all pages, print counters, and go on
 *	hold			answer the next request in two halves: the first at once
 *	write			write to free pages of the second half
 *	tell			report them, and so end the answer
 *	noise			from now on send records as well that are not legal, or
 *				that answer nothing
 *
 *	still			write to no page any more, for measurements; the other CPU
 *				measures how long it waits for the host while that has a
 *				message
 *	layout USED FREE	write to all pages, of which then USED are in use, FREE not,
 *				and so on
 *	moves N			tell of N pages at a time, in or out of the balloon
 *
 * The balloon follows the size that the device wants by itself, and so do hints
 * of free pages. CPU 0 does all that; the other one works on memory only.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#define PAGE_SHIFT	12
#define MAX_CPUS	2
#define WAIT_EACH	262144		/* ticks from a wait to the next */
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define SERIAL		0x3f8
#define SERIAL_STATUS	(SERIAL + 5)
#define SERIAL_SCRATCH	(SERIAL + 7)
#define RECEIVED	0x01
#define CAN_SEND	0x20

#define APIC		0xfee00000UL
#define APIC_ICR	(APIC + 0x300)
/* To all but this one */
#define ICR_INIT	0xc4500
#define ICR_SIPI	0xc4600
#define SIPI_PAGE	0x10

#define MMIO		0xfeb00000UL
#define MMIO_SIZE	0x200
#define NR_MMIO		24
#define VIRTIO_MAGIC	0x74726976

#define READ_ONCE(x)		__atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_RELAXED)

/* What memory is used for; the image, stacks and .bss are below 640 KiB. */
#define STATES		((uint32_t *)0x100000)
#define RINGS		((struct ring *)0x700000)
#define MESSAGE		((uint8_t *)0x800000)
#define MOVES		((uint32_t *)0x900000)
#define FIRST_PAGE	(0x1000000UL >> PAGE_SHIFT)

/*
 * The states of a page. Who wants a free one takes it by a compare-and-swap, to
 * BUSY, and makes it something else when it is. One that is in use has the
 * number of its stamp as its state; it belongs to one of the CPUs, which
 * verifies it, rewrites it and frees it. One that is to STAY was written when
 * it was reported, and is left as it is until the next check.
 */
#define FREE		0
#define BUSY		1
#define BALLOON		2
#define HINTED		3
#define USED		16
#define STAY		0x80000000

/* Pages of one record of an answer: 64 MiB, so that an answer has several. */
#define RECORD_PAGES	16384
/* Written of each record: before it is sent, while it is, and behind that. */
#define WRITES		16
/* Messages at a time, and pages that move into the balloon or out of it */
#define QUEUE_SIZE	64
#define PFNS		256
#define MAX_RECORD	(VIRTIO_BALLOON_BMAP_MAX_LEN * 8UL)

struct queue {
	uint16_t number;
	uint16_t added;
	uint16_t seen;		/* of those that the device has used */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
};

struct ring {
	struct vring_desc desc[QUEUE_SIZE];
	uint8_t avail[4096];	/* more than they take */
	uint8_t used[4096];
};

static struct queue inflate, deflate, stats, hints, reporting, misc;
static struct virtio_balloon_config *config;
static unsigned long mmio;
static uint64_t features;

static unsigned long end_page, nr_cpus = 1;
static unsigned long ballooned;
static unsigned long most_moves = 8192;
static bool working, noisy, still;
/* The other CPU is to rest, and does */
static bool resting, rests;

/* The record that is being sent, for the other CPU to write to its pages as well */
static unsigned long hot_page;
static int hot_left;

static struct cpu {
	uint64_t random;
	unsigned long checked;
	unsigned long wrong;
	unsigned long wrong_page;
} cpus[MAX_CPUS];

/* Of the other CPU: how often it waited for the host for about so long, by bucket() */
static unsigned long waits[512], nr_waits, longest_wait;
/* The host has a message */
static bool sent;

static unsigned long nr_written, nr_moved, nr_hinted;

/* The machine */

static void out8(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static uint8_t in8(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "d"(port));
	return value;
}

static uint32_t read32(unsigned long addr)
{
	return READ_ONCE(*(uint32_t *)addr);
}

static void write32(unsigned long addr, uint32_t value)
{
	WRITE_ONCE(*(uint32_t *)addr, value);
}

static unsigned long ticks(void)
{
	uint32_t low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static void relax(void)
{
	asm volatile("pause" : : : "memory");
}

/* The compiler wants these. */
void *memset(void *to, int value, size_t size)
{
	uint8_t *p = to;

	while (size--)
		*p++ = value;
	return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
	const uint8_t *p = from;
	uint8_t *q = to;

	while (size--)
		*q++ = *p++;
	return to;
}

static void put(char c)
{
	while (!(in8(SERIAL_STATUS) & CAN_SEND))
		relax();
	out8(SERIAL, c);
}

/* Text; a number instead of each '%' */
static void say(const char *text, ...)
{
	va_list ap;

	va_start(ap, text);
	for (; *text; text++) {
		unsigned long value, power = 1;

		if (*text != '%') {
			put(*text);
			continue;
		}
		value = va_arg(ap, unsigned long);
		while (value / power >= 10)
			power *= 10;
		for (; power; power /= 10)
			put('0' + value / power % 10);
	}
	va_end(ap);
	put('\n');
}

static void die(const char *why)
{
	say(why);
	for (;;)
		relax();
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 33) * 0xff51afd7ed558ccdULL;
	x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

static uint64_t random_number(struct cpu *c)
{
	c->random += 0x9e3779b97f4a7c15ULL;
	return mix(c->random);
}

/* Pages */

static struct cpu *owner(unsigned long page)
{
	return &cpus[page / 64 % nr_cpus];
}

static uint32_t state_of(unsigned long page)
{
	return READ_ONCE(STATES[page]);
}

static void set_state(unsigned long page, uint32_t state)
{
	__atomic_store_n(&STATES[page], state, __ATOMIC_SEQ_CST);
}

static bool take(unsigned long page)
{
	return state_of(page) == FREE &&
	       __sync_bool_compare_and_swap(&STATES[page], FREE, BUSY);
}

/* One word in each eighth of a page; the others are whatever they are. */
static uint64_t *word(unsigned long page, unsigned int i)
{
	return (uint64_t *)(page << PAGE_SHIFT) + i * 64 + (page + i) % 64;
}

static void write_page(unsigned long page, uint32_t state)
{
	unsigned int i;

	for (i = 0; i < 8; i++)
		*word(page, i) = mix(page << 32 ^ (state & ~STAY)) + i;
	set_state(page, state);
}

static void verify(struct cpu *c, unsigned long page, uint32_t state)
{
	unsigned int i;

	c->checked++;
	for (i = 0; i < 8; i++) {
		if (*word(page, i) == mix(page << 32 ^ (state & ~STAY)) + i)
			continue;
		if (!c->wrong++)
			c->wrong_page = page;
		/* Once is enough. */
		write_page(page, state);
		return;
	}
}

/* A number that no page had for long */
static uint32_t stamp(struct cpu *c)
{
	return (random_number(c) & ~STAY) | USED;
}

/* Make use of a free page, and leave it so until the next check. */
static bool write_reported(struct cpu *c, unsigned long page)
{
	if (READ_ONCE(still) || !take(page))
		return false;
	write_page(page, stamp(c) | STAY);
	__sync_fetch_and_add(&nr_written, 1);
	return true;
}

static unsigned long random_page(struct cpu *c, unsigned long first, unsigned long nr)
{
	return first + random_number(c) % nr;
}

/* Eight for each power of two */
static unsigned int bucket(unsigned long n)
{
	unsigned int shift = n < 16 ? 0 : 60 - __builtin_clzl(n);

	return shift * 8 + (n >> shift);
}

/* How long an access to a port of QEMU takes, which wants its global lock; then a pause */
static void measure(void)
{
	unsigned long begin = ticks(), waited;

	if (!READ_ONCE(sent)) {
		relax();
		return;
	}
	in8(SERIAL_SCRATCH);
	waited = ticks() - begin;
	waits[bucket(waited)]++;
	nr_waits++;
	if (waited > longest_wait)
		longest_wait = waited;
	for (begin = ticks(); ticks() - begin < WAIT_EACH; )
		relax();
}

/* What 99 of 100 waits have not exceeded, by more than an eighth; it begins anew. */
static unsigned long most_waits(void)
{
	unsigned int i = ARRAY_SIZE(waits) - 1, shift;
	unsigned long left = nr_waits / 100;

	while (i && waits[i] <= left)
		left -= waits[i--];
	shift = i < 16 ? 0 : i / 8 - 1;
	memset(waits, 0, sizeof(waits));
	nr_waits = 0;
	return (unsigned long)(i - shift * 8) << shift;
}

/* About a quarter of the pages is in use, and a tenth of the steps rewrites one. */
static void step(struct cpu *c)
{
	unsigned long page = random_page(c, FIRST_PAGE, end_page - FIRST_PAGE);
	uint64_t choice = random_number(c);
	uint32_t state;

	if (READ_ONCE(hot_left) > 0 && nr_cpus > 1) {
		if (write_reported(c, random_page(c, READ_ONCE(hot_page), RECORD_PAGES)))
			__sync_fetch_and_sub(&hot_left, 1);
		return;
	}
	if (owner(page) != c)
		return;
	state = state_of(page);
	if (state == FREE && choice % 24 == 0 && take(page)) {
		write_page(page, stamp(c));
	} else if (state >= USED) {
		verify(c, page, state);
		if (state & STAY)
			return;
		if (choice % 8 == 0) {
			set_state(page, FREE);
		} else if (choice % 8 < 4) {
			set_state(page, BUSY);
			write_page(page, stamp(c));
		}
	}
}

/* Queues */

static void queue_init(struct queue *vq, uint16_t number)
{
	struct ring *ring = &RINGS[number];

	vq->number = number;
	vq->desc = ring->desc;
	vq->avail = (void *)ring->avail;
	vq->used = (void *)ring->used;
	write32(mmio + VIRTIO_MMIO_QUEUE_SEL, number);
	if (read32(mmio + VIRTIO_MMIO_QUEUE_NUM_MAX) < QUEUE_SIZE)
		die("a queue is too small");
	write32(mmio + VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE);
	write32(mmio + VIRTIO_MMIO_QUEUE_DESC_LOW, (unsigned long)vq->desc);
	write32(mmio + VIRTIO_MMIO_QUEUE_AVAIL_LOW, (unsigned long)vq->avail);
	write32(mmio + VIRTIO_MMIO_QUEUE_USED_LOW, (unsigned long)vq->used);
	write32(mmio + VIRTIO_MMIO_QUEUE_READY, 1);
}

static uint16_t nr_used(struct queue *vq)
{
	return READ_ONCE(vq->used->idx) - vq->seen;
}

/* Give the device a buffer, by a descriptor that is not in use. */
static void add(struct queue *vq, uint16_t slot, const void *buffer, uint32_t length,
		bool for_device)
{
	vq->desc[slot] = (struct vring_desc) {
		.addr = (unsigned long)buffer,
		.len = length,
		.flags = for_device ? VRING_DESC_F_WRITE : 0,
	};
	vq->avail->ring[vq->added % QUEUE_SIZE] = slot;
	__sync_synchronize();
	WRITE_ONCE(vq->avail->idx, ++vq->added);
}

static void kick(struct queue *vq)
{
	__sync_synchronize();
	if (!(READ_ONCE(vq->used->flags) & VRING_USED_F_NO_NOTIFY))
		write32(mmio + VIRTIO_MMIO_QUEUE_NOTIFY, vq->number);
}

static void wait_used(struct queue *vq, uint16_t nr)
{
	while (nr_used(vq) < nr)
		relax();
	__sync_synchronize();
	vq->seen += nr;
}

static void send(struct queue *vq, const void *buffer, uint32_t length)
{
	add(vq, 0, buffer, length, false);
	WRITE_ONCE(sent, true);
	kick(vq);
	wait_used(vq, 1);
	WRITE_ONCE(sent, false);
}

static bool has(unsigned int feature)
{
	return features >> feature & 1;
}

/* Records; a message has one, but for those that inflate and deflate. */

static struct virtio_balloon_bmap_hdr *put_record(void *to, unsigned long first,
						  unsigned long nr, uint64_t id, uint16_t flag)
{
	struct virtio_balloon_bmap_hdr *hdr = to;

	*hdr = (struct virtio_balloon_bmap_hdr) {
		.cmd = id ? VIRTIO_BALLOON_REQ_UNUSED_PAGES : 0,
		.page_shift = PAGE_SHIFT,
		.flag = flag,
		.req_id = id,
		.start_pfn = first,
		.bmap_len = nr / 8,
	};
	memset(hdr + 1, 0, hdr->bmap_len);
	return hdr;
}

static uint32_t record_length(const struct virtio_balloon_bmap_hdr *hdr)
{
	return sizeof(*hdr) + hdr->bmap_len;
}

static bool marked(const struct virtio_balloon_bmap_hdr *hdr, unsigned long page)
{
	const uint8_t *bits = (const void *)(hdr + 1);
	unsigned long bit = page - hdr->start_pfn;

	return bits[bit / 8] >> bit % 8 & 1;
}

static void mark(struct virtio_balloon_bmap_hdr *hdr, unsigned long page)
{
	uint8_t *bits = (void *)(hdr + 1);
	unsigned long bit = page - hdr->start_pfn;

	bits[bit / 8] |= 1 << bit % 8;
}

/*
 * A record that is not legal, or answers nothing, and names pages in use. The
 * misc queue has no room for one but within an answer: the device looks no
 * further than the request's buffer.
 */
static void make_noise(struct queue *vq)
{
	struct cpu *c = &cpus[0];
	struct virtio_balloon_bmap_hdr *hdr = put_record(MESSAGE, FIRST_PAGE, 4096, 0, 0);
	uint64_t choice = random_number(c);
	uint32_t length = record_length(hdr);

	memset(hdr + 1, 0xff, hdr->bmap_len);
	switch (choice % 8) {
	case 0:
		hdr->reserved = 1 + choice / 8 % 256;
		break;
	case 1:
		hdr->page_shift = VIRTIO_BALLOON_BMAP_MIN_SHIFT - 1;
		break;
	case 2:
		hdr->page_shift = VIRTIO_BALLOON_BMAP_MAX_SHIFT + 1;
		break;
	case 3:
		hdr->start_pfn += 1 + choice / 8 % 63;
		break;
	case 4:
		hdr->start_pfn = -64ULL;
		break;
	case 5:
		hdr->flag = 4 << choice / 8 % 14;
		break;
	case 6:
		hdr->bmap_len = choice & 8 ? -8ULL : VIRTIO_BALLOON_BMAP_MAX_LEN + 8;
		break;
	default:
		/* Legal on the misc queue, but ids do not get so far. */
		hdr->req_id = 1ULL << 62 | choice;
	}
	send(vq, hdr, length);
}

/* The misc queue */

static uint64_t request[VIRTIO_BALLOON_REQ_LEN / 8];

static void offer_request(void)
{
	add(&misc, 0, request, sizeof(request), true);
	kick(&misc);
}

static enum { AT_ONCE, HOLD, HELD } half;
static unsigned long held_first, held_end;
static uint64_t held_id;

/* Write to some of the pages that a record names. */
static void write_some(const struct virtio_balloon_bmap_hdr *hdr)
{
	unsigned long nr = hdr->bmap_len * 8, page;
	unsigned int i;

	for (i = 0; i < WRITES; i++) {
		page = random_page(&cpus[0], hdr->start_pfn, nr);
		if (marked(hdr, page))
			write_reported(&cpus[0], page);
	}
}

/*
 * Report what is unused of some pages; all of them were free at this moment.
 * Some are written at once, some when the device may have seen the record, some
 * as soon as it has, and the other CPU takes some whenever it comes to it.
 */
static void report(unsigned long first, unsigned long end, uint64_t id)
{
	for (; first < end; first += RECORD_PAGES) {
		struct virtio_balloon_bmap_hdr *hdr;
		unsigned long page;

		if (noisy)
			make_noise(&misc);
		hdr = put_record(MESSAGE, first, RECORD_PAGES, id, VIRTIO_BALLOON_BMAP_FLAG_CONT);
		WRITE_ONCE(hot_page, first);
		if (first + RECORD_PAGES <= end)
			__atomic_store_n(&hot_left, WRITES, __ATOMIC_RELEASE);
		for (page = first; page < first + RECORD_PAGES && page < end; page++) {
			if (state_of(page) == FREE || state_of(page) == BALLOON)
				mark(hdr, page);
		}
		write_some(hdr);
		add(&misc, 0, hdr, record_length(hdr), false);
		write_some(hdr);
		kick(&misc);
		write_some(hdr);
		wait_used(&misc, 1);
		write_some(hdr);
		WRITE_ONCE(hot_left, 0);
	}
}

static void end_answer(uint64_t id, uint16_t flag)
{
	struct virtio_balloon_bmap_hdr *hdr = put_record(MESSAGE, 0, 0, id, flag);

	send(&misc, hdr, record_length(hdr));
	offer_request();
}

static void answer(uint32_t length)
{
	struct virtio_balloon_req_hdr hdr;
	struct virtio_balloon_req_range range;
	unsigned long first, end, middle;

	memcpy(&hdr, request, sizeof(hdr));
	memcpy(&range, (uint8_t *)request + sizeof(hdr), sizeof(range));
	if (length < sizeof(hdr) || length > sizeof(request)) {
		end_answer(0, VIRTIO_BALLOON_BMAP_FLAG_ERROR);
		return;
	}
	if (hdr.cmd != VIRTIO_BALLOON_REQ_UNUSED_PAGES || length < sizeof(hdr) + sizeof(range) ||
	    range.page_shift < PAGE_SHIFT || range.page_shift > VIRTIO_BALLOON_BMAP_MAX_SHIFT) {
		end_answer(hdr.id, VIRTIO_BALLOON_BMAP_FLAG_ERROR);
		return;
	}
	first = range.start_pfn << (range.page_shift - PAGE_SHIFT);
	end = first + (range.nr_pages << (range.page_shift - PAGE_SHIFT));
	if (first < FIRST_PAGE)
		first = FIRST_PAGE;
	if (end > end_page)
		end = end_page;
	first = first / 64 * 64;
	middle = first + (end - first) / 2 / 64 * 64;
	if (half == HOLD && first < end) {
		report(first, middle, hdr.id);
		held_first = middle;
		held_end = end;
		held_id = hdr.id;
		half = HELD;
		return;
	}
	report(first, end, hdr.id);
	end_answer(hdr.id, VIRTIO_BALLOON_BMAP_FLAG_DONE);
}

/* Of the second half all that is free, but no more than will be left then */
static void write_held(void)
{
	unsigned long page;

	for (page = held_first; page < held_end; page += 2)
		write_reported(&cpus[0], page);
}

/* What was free when it was written to is unused by the letter of it, late as it is. */
static void tell_held(void)
{
	unsigned long first, page;

	for (first = held_first; first < held_end; first += RECORD_PAGES) {
		struct virtio_balloon_bmap_hdr *hdr;

		hdr = put_record(MESSAGE, first, RECORD_PAGES, held_id,
				 VIRTIO_BALLOON_BMAP_FLAG_CONT);
		for (page = first; page < first + RECORD_PAGES && page < held_end; page++) {
			if (state_of(page) == FREE || state_of(page) & STAY)
				mark(hdr, page);
		}
		send(&misc, hdr, record_length(hdr));
	}
	end_answer(held_id, VIRTIO_BALLOON_BMAP_FLAG_DONE);
	half = AT_ONCE;
}

/* Inflate and deflate */

static unsigned long move_page = FIRST_PAGE;

/* The next page that is in a state, from the last one on, and which is now ours */
static unsigned long next_page(uint32_t state)
{
	unsigned long left = end_page - FIRST_PAGE, page;

	while (left--) {
		page = move_page++;
		if (move_page == end_page)
			move_page = FIRST_PAGE;
		if (state == FREE ? take(page) : state_of(page) == state) {
			set_state(page, BUSY);
			return page;
		}
	}
	return 0;
}

/* Move pages from one state to the other, the device knowing of it: returns how many. */
static unsigned long move(struct queue *vq, unsigned long nr, uint32_t from, uint32_t to)
{
	unsigned long most = has(VIRTIO_BALLOON_F_PAGE_BITMAP) ? most_moves : PFNS;
	struct virtio_balloon_bmap_hdr *hdr = NULL;
	uint8_t *end = MESSAGE;
	unsigned long i, page;
	uint32_t *pages = MOVES;

	if (nr > most)
		nr = most;
	for (i = 0; i < nr; i++) {
		page = next_page(from);
		if (!page)
			break;
		pages[i] = page;
		if (!has(VIRTIO_BALLOON_F_PAGE_BITMAP))
			continue;
		if (!hdr || page / MAX_RECORD != hdr->start_pfn / MAX_RECORD) {
			hdr = put_record(end, page / MAX_RECORD * MAX_RECORD, MAX_RECORD, 0, 0);
			end += record_length(hdr);
		}
		mark(hdr, page);
	}
	if (!i)
		return 0;
	if (has(VIRTIO_BALLOON_F_PAGE_BITMAP))
		send(vq, MESSAGE, end - MESSAGE);
	else
		send(vq, pages, i * sizeof(pages[0]));
	for (nr = 0; nr < i; nr++)
		set_state(pages[nr], to);
	/* Some are written at the very moment in which they are back. */
	for (nr = 0; nr < i && to == FREE; nr += 64)
		write_reported(&cpus[0], pages[nr]);
	nr_moved += i;
	return i;
}

static void follow_target(void)
{
	uint32_t target = READ_ONCE(config->num_pages);
	unsigned long had = ballooned;

	if (target > ballooned)
		ballooned += move(&inflate, target - ballooned, FREE, BALLOON);
	else if (target < ballooned)
		ballooned -= move(&deflate, ballooned - target, BALLOON, FREE);
	if (ballooned != had)
		WRITE_ONCE(config->actual, ballooned);
}

/*
 * Hints: free pages that are held until the device says that it is done. For
 * measurements whole blocks of 4 MiB, as Linux gives; else small runs, and not
 * all, or nothing would be left that is unused.
 */

static uint32_t hint_id = VIRTIO_BALLOON_CMD_ID_DONE, hint_message;

static void follow_hints(void)
{
	uint32_t id = READ_ONCE(config->free_page_hint_cmd_id);
	unsigned long page, nr = 0, run = still ? 1024 : 16;

	if (id == hint_id)
		return;
	hint_id = id;
	if (id == VIRTIO_BALLOON_CMD_ID_STOP)
		return;
	if (id == VIRTIO_BALLOON_CMD_ID_DONE) {
		for (page = FIRST_PAGE; page < end_page; page++) {
			if (state_of(page) == HINTED)
				set_state(page, FREE);
		}
		return;
	}
	hint_message = id;
	send(&hints, &hint_message, sizeof(hint_message));
	for (page = FIRST_PAGE; page < end_page; page += still ? run : 4 * run) {
		unsigned long i = 0;

		while (i < run && page + i < end_page && take(page + i))
			set_state(page + i++, HINTED);
		if (still && i < run) {
			while (i--)
				set_state(page + i, FREE);
			continue;
		}
		if (!i)
			continue;
		add(&hints, nr, (void *)(page << PAGE_SHIFT), i << PAGE_SHIFT, true);
		nr_hinted += i;
		if (++nr == QUEUE_SIZE) {
			kick(&hints);
			wait_used(&hints, nr);
			nr = 0;
			if (READ_ONCE(config->free_page_hint_cmd_id) != id)
				break;
		}
	}
	if (nr) {
		kick(&hints);
		wait_used(&hints, nr);
	}
	hint_message = VIRTIO_BALLOON_CMD_ID_STOP;
	send(&hints, &hint_message, sizeof(hint_message));
}

/* The device */

static struct virtio_balloon_stat stat;

static void offer_stats(void)
{
	stat.tag = VIRTIO_BALLOON_S_MEMTOT;
	stat.val = end_page << PAGE_SHIFT;
	add(&stats, 0, &stat, sizeof(stat), false);
	kick(&stats);
}

static void find_device(void)
{
	for (mmio = MMIO; mmio < MMIO + NR_MMIO * MMIO_SIZE; mmio += MMIO_SIZE) {
		if (read32(mmio + VIRTIO_MMIO_MAGIC_VALUE) == VIRTIO_MAGIC &&
		    read32(mmio + VIRTIO_MMIO_VERSION) == 2 &&
		    read32(mmio + VIRTIO_MMIO_DEVICE_ID) == VIRTIO_ID_BALLOON)
			return;
	}
	die("no balloon");
}

static void set_status(uint32_t bits)
{
	write32(mmio + VIRTIO_MMIO_STATUS, read32(mmio + VIRTIO_MMIO_STATUS) | bits);
}

static void start_device(void)
{
	/* All with a queue, or the misc queue's number is another one */
	static const struct {
		unsigned int feature;
		struct queue *vq;
	} queues[] = {
		{ VIRTIO_BALLOON_F_STATS_VQ, &stats },
		{ VIRTIO_BALLOON_F_FREE_PAGE_HINT, &hints },
		{ VIRTIO_BALLOON_F_REPORTING, &reporting },
		{ VIRTIO_BALLOON_F_MISC_VQ, &misc },
	};
	uint64_t known = 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_BALLOON_F_PAGE_BITMAP;
	unsigned int i, number = 2;

	find_device();
	config = (void *)(mmio + VIRTIO_MMIO_CONFIG);
	write32(mmio + VIRTIO_MMIO_STATUS, 0);
	set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
	set_status(VIRTIO_CONFIG_S_DRIVER);
	for (i = 0; i < ARRAY_SIZE(queues); i++)
		known |= 1ULL << queues[i].feature;
	for (i = 0; i < 2; i++) {
		write32(mmio + VIRTIO_MMIO_DEVICE_FEATURES_SEL, i);
		features |= (uint64_t)read32(mmio + VIRTIO_MMIO_DEVICE_FEATURES) << 32 * i;
	}
	features &= known;
	for (i = 0; i < 2; i++) {
		write32(mmio + VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
		write32(mmio + VIRTIO_MMIO_DRIVER_FEATURES, features >> 32 * i);
	}
	set_status(VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(read32(mmio + VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK))
		die("the features are refused");

	queue_init(&inflate, 0);
	queue_init(&deflate, 1);
	for (i = 0; i < ARRAY_SIZE(queues); i++) {
		if (has(queues[i].feature))
			queue_init(queues[i].vq, number++);
	}
	set_status(VIRTIO_CONFIG_S_DRIVER_OK);
	if (has(VIRTIO_BALLOON_F_STATS_VQ))
		offer_stats();
	if (has(VIRTIO_BALLOON_F_MISC_VQ))
		offer_request();
}

static void poll_misc(void)
{
	uint32_t length;

	if (!has(VIRTIO_BALLOON_F_MISC_VQ) || !nr_used(&misc))
		return;
	length = misc.used->ring[misc.seen % QUEUE_SIZE].len;
	wait_used(&misc, 1);
	answer(length);
}

static void poll_others(void)
{
	follow_target();
	if (has(VIRTIO_BALLOON_F_FREE_PAGE_HINT))
		follow_hints();
	if (has(VIRTIO_BALLOON_F_STATS_VQ) && nr_used(&stats)) {
		stats.seen++;
		offer_stats();
	}
}

/* Commands */

/* Have the other CPU rest, or go on; it does not stop within a write. */
static void rest(bool now)
{
	if (nr_cpus == 1)
		return;
	WRITE_ONCE(resting, now);
	while (READ_ONCE(rests) != now)
		relax();
	__sync_synchronize();
}

static void check(void)
{
	unsigned long page, nr = 0, wrong = 0, checked = 0, first_wrong = 0;
	unsigned long times, longest, i;

	rest(true);
	for (page = FIRST_PAGE; page < end_page; page++) {
		if (state_of(page) < USED)
			continue;
		verify(owner(page), page, state_of(page));
		set_state(page, state_of(page) & ~STAY);
		nr++;
	}
	times = nr_waits;
	longest = longest_wait;
	longest_wait = 0;
	for (i = 0; i < nr_cpus; i++) {
		checked += cpus[i].checked;
		wrong += cpus[i].wrong;
		if (cpus[i].wrong)
			first_wrong = cpus[i].wrong_page;
	}
	say("used % checked % wrong % page % written % moved % hinted % waits % p99 % max % now %",
	    nr, checked, wrong, first_wrong, nr_written, nr_moved, nr_hinted, times, most_waits(),
	    longest, ticks());
	rest(false);
}

static void fill(unsigned long share)
{
	unsigned long page;

	for (page = FIRST_PAGE; share && page < end_page; page++) {
		if (random_number(&cpus[0]) % share == 0)
			write_page(page, stamp(&cpus[0]));
	}
}

static void lay_out(unsigned long used, unsigned long free)
{
	unsigned long page;

	for (page = FIRST_PAGE; page < end_page; page++) {
		if (state_of(page) != FREE && state_of(page) < USED)
			continue;
		write_page(page, stamp(&cpus[0]));
		if ((page - FIRST_PAGE) % (used + free) >= used)
			set_state(page, FREE);
	}
}

/* Whether a line begins with a word; what is behind it */
static const char *behind(const char *line, const char *word)
{
	while (*word) {
		if (*line++ != *word++)
			return NULL;
	}
	return line;
}

static unsigned long number(const char **text)
{
	unsigned long value = 0;

	while (**text == ' ')
		(*text)++;
	for (; **text >= '0' && **text <= '9'; (*text)++)
		value = value * 10 + **text - '0';
	return value;
}

static void start(const char *numbers)
{
	end_page = number(&numbers);
	nr_cpus = number(&numbers);
	fill(number(&numbers));
	start_device();
	if (nr_cpus > 1) {
		write32(APIC_ICR, ICR_INIT);
		write32(APIC_ICR, ICR_SIPI | SIPI_PAGE);
	}
	working = true;
}

static void obey(const char *line)
{
	const char *numbers;
	unsigned long used;

	if (behind(line, "check")) {
		check();
		return;
	}
	if (behind(line, "start")) {
		start(behind(line, "start"));
	} else if (behind(line, "hold")) {
		half = HOLD;
	} else if (behind(line, "write") && half == HELD) {
		write_held();
	} else if (behind(line, "tell") && half == HELD) {
		tell_held();
	} else if (behind(line, "noise")) {
		noisy = true;
	} else if (behind(line, "still")) {
		WRITE_ONCE(still, true);
	} else if (behind(line, "layout")) {
		numbers = behind(line, "layout");
		used = number(&numbers);
		lay_out(used, number(&numbers));
	} else if (behind(line, "moves")) {
		numbers = behind(line, "moves");
		most_moves = number(&numbers);
	} else {
		say("not now");
		return;
	}
	say("ok");
}

static void poll_serial(void)
{
	static char line[80];
	static unsigned int length;
	char c;

	while (in8(SERIAL_STATUS) & RECEIVED) {
		c = in8(SERIAL);
		if (c == '\n') {
			line[length] = 0;
			length = 0;
			obey(line);
		} else if (length < sizeof(line) - 1) {
			line[length++] = c;
		}
	}
}

static void other_cpu(struct cpu *c)
{
	for (;;) {
		WRITE_ONCE(rests, READ_ONCE(resting));
		if (rests) {
			relax();
			continue;
		}
		if (READ_ONCE(still))
			measure();
		else
			step(c);
		relax();
	}
}

void guest_main(int number)
{
	struct cpu *c = &cpus[number];
	unsigned int round = 0;

	c->random = mix(number + 1);
	if (number)
		other_cpu(c);
	for (;;) {
		if (working) {
			poll_misc();
			if (round++ % 256 == 0) {
				poll_others();
				if (noisy)
					make_noise(round & 256 ? &inflate : &deflate);
			}
			if (!still)
				step(c);
		}
		if (!working || round % 256 == 0)
			poll_serial();
		relax();
	}
}
