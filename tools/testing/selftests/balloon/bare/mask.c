// SPDX-License-Identifier: GPL-2.0
/*
 * To be preloaded into QEMU: KVM seems to be able to do no more of manual dirty
 * log protection than BALLOON_MASK says. 0 has none of it; 1 has the log cleared
 * late, but all clean when logging starts; 2 has all pages in it then, too.
 */
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int ioctl(int fd, unsigned long command, ...)
{
	const char *mask = getenv("BALLOON_MASK");
	void *argument;
	va_list ap;
	int ret;

	va_start(ap, command);
	argument = va_arg(ap, void *);
	va_end(ap);
	ret = syscall(SYS_ioctl, fd, command, argument);
	if (mask && ret > 0 && command == KVM_CHECK_EXTENSION &&
	    (unsigned long)argument == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
		ret &= atoi(mask);
	return ret;
}
