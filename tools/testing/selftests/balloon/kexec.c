// SPDX-License-Identifier: GPL-2.0
/*
 * Have another kernel ready, for a crash or to be started now; read the dump of
 * the one that crashed, in the way of the tools that save it.
 *
 *	balloon_kexec crash|boot KERNEL INITRD COMMAND-LINE
 *	balloon_kexec read	print the MiB of the dump, and how many are not zero
 */
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PIECE	(1024 * 1024UL)

/* Not every architecture has it. */
#ifndef SYS_kexec_file_load
#define SYS_kexec_file_load	-1
#endif

static int open_or_say(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		perror(path);
	return fd;
}

static int read_dump(void)
{
	int fd = open_or_say("/proc/vmcore");
	unsigned long used = 0, i;
	struct stat st;
	off_t at;

	if (fd < 0 || fstat(fd, &st))
		return 1;
	for (at = 0; at < st.st_size; at += PIECE) {
		size_t len = st.st_size - at < (off_t)PIECE ? st.st_size - at : PIECE;
		const uint64_t *words = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, at);
		uint64_t any = 0;

		if (words == MAP_FAILED) {
			perror("mmap");
			return 1;
		}
		for (i = 0; i < len / sizeof(*words); i++)
			any |= words[i];
		used += any != 0;
		munmap((void *)words, len);
	}
	printf("%lu %lu\n", (unsigned long)(st.st_size / PIECE), used);
	return 0;
}

int main(int argc, char **argv)
{
	int crash, kernel, initrd;

	if (argc == 2 && !strcmp(argv[1], "read"))
		return read_dump();
	if (argc != 5)
		return 2;
	crash = !strcmp(argv[1], "crash");
	kernel = open_or_say(argv[2]);
	initrd = open_or_say(argv[3]);
	if (kernel < 0 || initrd < 0)
		return 1;
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[4]) + 1, argv[4],
		    crash ? KEXEC_FILE_ON_CRASH : 0)) {
		perror("kexec_file_load");
		return 1;
	}
	if (crash)
		return 0;
	sync();
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	perror("reboot");
	return 1;
}
