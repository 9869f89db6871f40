// SPDX-License-Identifier: GPL-2.0
/*
 * Memory loads for balloon tests.
 *
 *	touch SIZE		write to every page, then exit
 *	hold SIZE		the same, then keep it until killed
 *	fragment SIZE KEEP [BLOCK]	the same, but keep one page in KEEP only,
 *				or one BLOCK of pages in KEEP
 *	scatter SIZE KEEP	one page in KEEP, the others given back in no order
 *	unused SIZE		print, of the first SIZE of physical memory, the ranges
 *				of page frames that the kernel shows as free or offline
 *	thp SIZE		print how many huge pages a region of SIZE gets
 *	punch SIZE KEEP		keep one page in KEEP of huge pages
 *	lock SIZE		hold, and lock it
 *	rounds SIZE [MS]	read every page, round after round, MS from one to the next;
 *				SIGTERM: print how many rounds, and the longest, in us
 *	update SIZE RATE FILE	write to RATE pages a second, in no order, and to FILE how
 *				many that were
 *	bystander SIZE MS	every MS map SIZE, touch it and unmap it, and fork; SIGTERM:
 *				print how often, and the longest of each, in us
 *	stamp SIZE [SECONDS]	keep rewriting pages and verifying their content;
 *				SIGTERM or the end of SECONDS: verify them all
 *	churn SIZE [SECONDS]	the same, and keep giving pages back, too
 *
 * Loads that stay print "ready" and its address when their memory is in place.
 * Except for thp and punch, memory is made of base pages.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HUGE_SIZE	(2UL << 20)
/* A prime: multiples of it visit every one of fewer groups, far apart. */
#define SCATTER_STRIDE	1000003UL

static size_t page_size;
static sig_atomic_t stop;	/* set by a signal handler */

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("balloon_mem: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

static uint64_t parse_size(const char *s)
{
	unsigned long long n;
	char *end;

	errno = 0;
	n = strtoull(s, &end, 0);
	switch (*end) {
	case 'G':
		n <<= 10;
		__attribute__((__fallthrough__));
	case 'M':
		n <<= 10;
		__attribute__((__fallthrough__));
	case 'K':
		n <<= 10;
		end++;
	}
	if (errno || *end || n < page_size)
		die("bad size '%s'", s);
	return n / page_size * page_size;
}

static unsigned long parse_number(const char *s)
{
	unsigned long n;
	char *end;

	n = strtoul(s, &end, 0);
	if (!n || *end)
		die("bad number '%s'", s);
	return n;
}

static char *map(size_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap of %zu bytes: %s", size, strerror(errno));
	return p;
}

static char *map_base_pages(size_t size)
{
	char *p = map(size);

	/* A kernel without transparent huge pages answers EINVAL. */
	if (madvise(p, size, MADV_NOHUGEPAGE) && errno != EINVAL)
		die("madvise(MADV_NOHUGEPAGE): %s", strerror(errno));
	return p;
}

static void touch(char *p, size_t size)
{
	size_t i;

	for (i = 0; i < size; i += page_size)
		p[i] = 1;
}

static void say_ready(const char *p)
{
	printf("ready at %#lx\n", (unsigned long)p);
	if (fflush(stdout))
		die("stdout: %s", strerror(errno));
}

static void stay(const char *p)
{
	say_ready(p);
	for (;;)
		pause();
}

static size_t resident_pages(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	size_t resident;

	if (!f || fscanf(f, "%*u %zu", &resident) != 1)
		die("/proc/self/statm cannot be read");
	fclose(f);
	return resident;
}

static void give_back(char *p, size_t size)
{
	if (madvise(p, size, MADV_DONTNEED))
		die("madvise(MADV_DONTNEED): %s", strerror(errno));
}

static void fragment(size_t size, unsigned long keep, size_t block, uint64_t stride)
{
	char *p = map_base_pages(size + block);
	size_t before = resident_pages(), group = keep * block;
	size_t nr = size / group, kept, i;

	/* Aligned, as far as the process sees. */
	p += -(unsigned long)p & (block - 1);

	touch(p, nr * group);
	for (i = 0; i < nr && keep > 1; i++) {
		char *first = p + i * stride % nr * group;

		give_back(first + block, group - block);
	}
	/* Counters of resident pages lag behind by some pages a CPU. */
	kept = resident_pages() - before;
	if (kept > nr * (block / page_size) + 1024)
		die("%zu pages remain instead of %zu", kept, nr * (block / page_size));
	stay(p);
}

/* /proc/kpageflags: what the kernel says of each page frame. */
static void unused(uint64_t size)
{
	const uint64_t free = 1ULL << 10 | 1ULL << 23;	/* KPF_BUDDY, KPF_OFFLINE */
	size_t first = 0, pfn, end = size / page_size;
	FILE *f = fopen("/proc/kpageflags", "r");
	bool in = false;
	uint64_t flags;

	if (!f)
		die("/proc/kpageflags: %s", strerror(errno));
	for (pfn = 0; pfn < end && fread(&flags, sizeof(flags), 1, f) == 1; pfn++) {
		if (!!(flags & free) == in)
			continue;
		if (in)
			printf("%zu %zu\n", first, pfn);
		in = !in;
		first = pfn;
	}
	if (in)
		printf("%zu %zu\n", first, pfn);
	fclose(f);
}

/* How many huge pages a region has. */
static size_t huge_pages(unsigned long start, size_t size)
{
	unsigned long from, to, kib = 0;
	bool inside = false;
	char line[256];
	FILE *f;

	f = fopen("/proc/self/smaps", "r");
	if (!f)
		die("/proc/self/smaps: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		unsigned long n;

		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = from < start + size && to > start;
		else if (inside && sscanf(line, "AnonHugePages: %lu kB", &n) == 1)
			kib += n;
	}
	fclose(f);
	return kib / (HUGE_SIZE >> 10);
}

/* A region of huge pages, as many as there are to be had. */
static char *map_huge_pages(size_t size)
{
	char *p = map(size + HUGE_SIZE);

	p += -(unsigned long)p & (HUGE_SIZE - 1);
	if (madvise(p, size, MADV_HUGEPAGE))
		die("madvise(MADV_HUGEPAGE): %s", strerror(errno));
	touch(p, size);
	return p;
}

static void thp(size_t size)
{
	char *p;

	size = size / HUGE_SIZE * HUGE_SIZE;
	p = map_huge_pages(size);
	printf("%zu of %zu huge pages\n", huge_pages((unsigned long)p, size), size / HUGE_SIZE);
}

static void punch(size_t size, unsigned long keep)
{
	size_t group = keep * page_size, huge, i;
	char *p;

	size = size / HUGE_SIZE * HUGE_SIZE;
	p = map_huge_pages(size);
	huge = huge_pages((unsigned long)p, size);
	if (huge < size / HUGE_SIZE * 9 / 10)
		die("only %zu of %zu huge pages", huge, size / HUGE_SIZE);
	for (i = 0; i + group <= size && keep > 1; i += group)
		give_back(p + i + page_size, group - page_size);
	stay(p);
}

static void lock(size_t size)
{
	char *p = map_base_pages(size);

	if (mlock(p, size))
		die("mlock: %s", strerror(errno));
	stay(p);
}

/*
 * A stamped page: its index, its generation, then words that follow from both,
 * so that a page that is lost, stale, torn or swapped with another one shows.
 * A page that was given back has generation 0, and is all zero.
 */
struct stamped {
	char *base;
	uint32_t *gen;
	size_t nr;
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static void write_stamp(struct stamped *s, size_t page)
{
	unsigned long long *w = (unsigned long long *)(s->base + page * page_size);
	uint64_t sum = mix((uint64_t)page << 32 | s->gen[page]);
	size_t i;

	w[0] = page;
	w[1] = s->gen[page];
	for (i = 2; i < page_size / sizeof(*w); i++) {
		sum += w[0] * 2 + 1;
		w[i] = sum;
	}
}

static void verify_stamp(struct stamped *s, size_t page)
{
	unsigned long long *w = (unsigned long long *)(s->base + page * page_size);
	uint64_t sum = mix((uint64_t)page << 32 | s->gen[page]);
	size_t i = 0;

	if (!s->gen[page]) {
		while (i < page_size / sizeof(*w) && !w[i])
			i++;
	} else if (w[0] == page && w[1] == s->gen[page]) {
		for (i = 2; i < page_size / sizeof(*w); i++) {
			sum += w[0] * 2 + 1;
			if (w[i] != sum)
				break;
		}
	}
	if (i < page_size / sizeof(*w))
		die("page %zu, word %zu: not generation %u, but page %llu generation %llu, %#llx",
		    page, i, s->gen[page], w[0], w[1], w[i]);
}

static void on_term(int sig)
{
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
}

static bool stopped(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ULL + ts.tv_nsec / 1000;
}

/* Keeps the longest; returns when it was. */
static uint64_t measure(uint64_t *longest, uint64_t begin)
{
	uint64_t now = now_us();

	if (now - begin > *longest)
		*longest = now - begin;
	return now;
}

static void read_in_rounds(size_t size, unsigned long ms)
{
	char *p = map_base_pages(size);
	uint64_t longest = 0, begin;
	unsigned long nr = 0;
	size_t i;

	touch(p, size);
	signal(SIGTERM, on_term);
	say_ready(p);
	while (!stopped()) {
		begin = now_us();
		for (i = 0; i < size && !stopped(); i += page_size)
			__atomic_load_n(p + i, __ATOMIC_RELAXED);
		measure(&longest, begin);
		nr++;
		usleep(ms * 1000);
	}
	printf("%lu rounds, longest %llu us\n", nr, (unsigned long long)longest);
}

/* As a database does with its pool of buffers; who is held up is not to make up for it. */
static void update(size_t size, unsigned long rate, const char *path)
{
	const unsigned int tick_us = 10000;
	char *p = map_base_pages(size);
	uint64_t last, now, due = 0, x = mix(getpid());
	unsigned long done = 0;
	FILE *f = fopen(path, "w");

	if (!f)
		die("%s: %s", path, strerror(errno));
	touch(p, size);
	say_ready(p);
	for (last = now_us(); ; last = now) {
		usleep(tick_us);
		now = now_us();
		due += (now - last < 10 * tick_us ? now - last : tick_us) * rate;
		for (; due >= 1000000; due -= 1000000) {
			x = mix(x + 0x9e3779b97f4a7c15ULL);
			p[x % (size / page_size) * page_size]++;
			done++;
		}
		rewind(f);
		fprintf(f, "%lu\n", done);
		if (fflush(f))
			die("%s: %s", path, strerror(errno));
	}
}

static void bystander(size_t size, unsigned long ms)
{
	uint64_t mapped = 0, forked = 0, begin;
	unsigned long nr = 0;
	pid_t pid;
	char *p;

	signal(SIGTERM, on_term);
	say_ready(NULL);
	for (; !stopped(); nr++) {
		begin = now_us();
		p = map_base_pages(size);
		touch(p, size);
		munmap(p, size);
		begin = measure(&mapped, begin);
		pid = fork();
		if (!pid)
			_exit(0);
		if (pid < 0)
			die("fork: %s", strerror(errno));
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		measure(&forked, begin);
		usleep(ms * 1000);
	}
	printf("%lu times, longest touch %llu us, longest fork %llu us\n", nr,
	       (unsigned long long)mapped, (unsigned long long)forked);
}

static void stamp(size_t size, unsigned long seconds, bool churn)
{
	struct stamped s = { .nr = size / page_size };
	uint64_t x = mix(getpid());
	time_t end = time(NULL) + seconds;
	size_t i;

	s.base = map_base_pages(size);
	s.gen = (uint32_t *)map_base_pages(s.nr * sizeof(*s.gen));
	signal(SIGTERM, on_term);
	for (i = 0; i < s.nr; i++) {
		s.gen[i] = 1;
		write_stamp(&s, i);
	}
	say_ready(s.base);

	while (!stopped() && (!seconds || time(NULL) < end)) {
		x = mix(x + 0x9e3779b97f4a7c15ULL);
		i = (x >> 1) % s.nr;
		verify_stamp(&s, i);
		if (x & 1) {
			s.gen[i]++;
			write_stamp(&s, i);
		} else if (churn && x >> 40 & 1) {
			/* As many as are written on average, or a few more. */
			size_t nr = x >> 41 & 3;

			if (nr > s.nr - i)
				nr = s.nr - i;
			memset(s.gen + i, 0, nr * sizeof(*s.gen));
			if (nr)
				give_back(s.base + i * page_size, nr * page_size);
		}
	}
	for (i = 0; i < s.nr; i++)
		verify_stamp(&s, i);
	printf("ok %zu pages\n", s.nr);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 2 ? argv[1] : "";
	uint64_t size;
	char *p;

	page_size = sysconf(_SC_PAGESIZE);
	if (argc < 3)
		die("usage: touch|hold|lock|thp|unused SIZE, fragment SIZE KEEP [BLOCK],\n"
		    "scatter|punch SIZE KEEP, stamp|churn SIZE [SECONDS], rounds SIZE [MS],\n"
		    "update SIZE RATE FILE, bystander SIZE MS");
	size = parse_size(argv[2]);

	if (!strcmp(verb, "touch") || !strcmp(verb, "hold")) {
		p = map_base_pages(size);
		touch(p, size);
		if (verb[0] == 'h')
			stay(p);
	} else if (!strcmp(verb, "fragment") && argc >= 4) {
		fragment(size, parse_number(argv[3]),
			 argc > 4 ? parse_size(argv[4]) : page_size, 1);
	} else if (!strcmp(verb, "scatter") && argc == 4) {
		fragment(size, parse_number(argv[3]), page_size, SCATTER_STRIDE);
	} else if (!strcmp(verb, "unused")) {
		unused(size);
	} else if (!strcmp(verb, "thp")) {
		thp(size);
	} else if (!strcmp(verb, "punch") && argc == 4) {
		punch(size, parse_number(argv[3]));
	} else if (!strcmp(verb, "lock")) {
		lock(size);
	} else if (!strcmp(verb, "rounds")) {
		read_in_rounds(size, argc > 3 ? parse_number(argv[3]) : 1);
	} else if (!strcmp(verb, "update") && argc == 5) {
		update(size, parse_number(argv[3]), argv[4]);
	} else if (!strcmp(verb, "bystander") && argc == 4) {
		bystander(size, parse_number(argv[3]));
	} else if (!strcmp(verb, "stamp") || !strcmp(verb, "churn")) {
		stamp(size, argc > 3 ? parse_number(argv[3]) : 0, verb[0] == 'c');
	} else {
		die("unknown load '%s'", verb);
	}
	return 0;
}
