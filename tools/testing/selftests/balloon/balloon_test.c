// SPDX-License-Identifier: GPL-2.0
/*
 * What a guest can see of its balloon from inside: run it at any size of the
 * balloon, while that does not change.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/kernel-page-flags.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../kselftest_harness.h"

#define FEATURES	"/sys/bus/virtio/drivers/virtio_balloon/virtio*/features"
#define F_PAGE_BITMAP	22
#define F_VERSION_1	32

/* A counter of /proc/vmstat, or -1. */
static long vm_event(const char *name)
{
	FILE *f = fopen("/proc/vmstat", "r");
	char key[64];
	long value;

	while (f && fscanf(f, "%63s %ld", key, &value) == 2) {
		if (!strcmp(key, name)) {
			fclose(f);
			return value;
		}
	}
	if (f)
		fclose(f);
	return -1;
}

/*
 * Count the pages that have the flag @flag, and those of them that have one of
 * @others as well. Returns 0, or a negative error.
 */
static int count_pages(int flag, uint64_t others, long *nr, long *mixed)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	uint64_t flags[4096];
	ssize_t got, i;

	if (fd < 0)
		return -errno;
	*nr = *mixed = 0;
	while ((got = read(fd, flags, sizeof(flags))) > 0) {
		for (i = 0; i < got / (ssize_t)sizeof(flags[0]); i++) {
			if (!(flags[i] >> flag & 1))
				continue;
			++*nr;
			if (flags[i] & others)
				++*mixed;
		}
	}
	close(fd);
	return got < 0 ? -errno : 0;
}

/* The feature is never negotiated without VIRTIO_F_VERSION_1. */
TEST(features)
{
	char bits[65] = "";
	glob_t found;
	FILE *f;

	if (glob(FEATURES, 0, NULL, &found))
		SKIP(return, "no balloon device is bound");
	f = fopen(found.gl_pathv[0], "r");
	globfree(&found);
	ASSERT_NE(NULL, f);
	ASSERT_EQ(1, fscanf(f, "%64s", bits));
	fclose(f);
	if (bits[F_PAGE_BITMAP] == '1')
		EXPECT_EQ('1', bits[F_VERSION_1]);
}

/* Every page of the balloon is marked as offline, and no other page is. */
TEST(offline)
{
	long in = vm_event("balloon_inflate"), out = vm_event("balloon_deflate");
	long nr, mixed;

	if (in < 0 || out < 0)
		SKIP(return, "/proc/vmstat does not count balloon pages");
	if (count_pages(KPF_OFFLINE, 0, &nr, &mixed))
		SKIP(return, "/proc/kpageflags cannot be read");
	EXPECT_EQ(in - out, nr);
}

/* A page in the balloon is nobody else's. */
TEST(exclusive)
{
	static const uint64_t others = 1ULL << KPF_BUDDY | 1ULL << KPF_LRU |
		1ULL << KPF_SLAB | 1ULL << KPF_ANON | 1ULL << KPF_MMAP |
		1ULL << KPF_COMPOUND_HEAD | 1ULL << KPF_COMPOUND_TAIL;
	long nr, mixed;

	if (count_pages(KPF_OFFLINE, others, &nr, &mixed))
		SKIP(return, "/proc/kpageflags cannot be read");
	EXPECT_EQ(0, mixed);
}

TEST_HARNESS_MAIN
