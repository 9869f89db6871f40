/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What several of the KUnit suites of virtio_balloon use.
 */
#ifndef _VIRTIO_BALLOON_KUNIT_H
#define _VIRTIO_BALLOON_KUNIT_H

#include <linux/kmsg_dump.h>
#include <linux/string.h>

/* Lines of the log since the last call that contain a text. */
static inline unsigned int log_lines(struct kmsg_dump_iter *iter, const char *text)
{
	static char line[512];
	unsigned int nr = 0;
	size_t len;

	while (kmsg_dump_get_line(iter, false, line, sizeof(line) - 1, &len)) {
		line[len] = '\0';
		nr += !!strstr(line, text);
	}
	return nr;
}

#endif /* _VIRTIO_BALLOON_KUNIT_H */
