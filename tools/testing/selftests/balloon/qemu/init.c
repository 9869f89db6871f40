// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the balloon lab's guests, or a service: runs shell commands for the host.
 *
 * The channel is the virtio-serial port "org.balloon.lab"; the console carries
 * kernel messages only. Both directions are a header line and its payload:
 *
 *	host to guest	run LENGTH\n, then LENGTH bytes of shell script
 *	guest to host	up 0\n			once, when the guest is ready
 *			out LENGTH\n, then LENGTH bytes of stdout and stderr
 *			end STATUS\n		exit status, or 128 + signal
 *
 * One script runs at a time. It ends when its shell does: a job that it leaves
 * in the background keeps running, but must have its output redirected. What only
 * shows a file needs no shell: without KVM that takes as long as much else.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME	"org.balloon.lab"
#define PORT_CLASS	"/sys/class/virtio-ports"
#define PORT_WAIT_MS	10000
#define RETRY_MS	50
#define SCRIPT_MAX	(256 * 1024)
#define CHUNK		4096

static void say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("init: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

static void power_off(const char *why)
{
	say("%s, powering off", why);
	sync();
	reboot(RB_POWER_OFF);
	/* Without ACPI: -no-reboot makes QEMU exit instead. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

static void mount_or_say(const char *type, const char *dir)
{
	mkdir(dir, 0755);
	if (mount(type, dir, type, 0, NULL))
		say("mount %s: %s", dir, strerror(errno));
}

static bool read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n < 0)
		return false;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

static int spawn(const char *const argv[], int out)
{
	sigset_t none;
	int null;
	pid_t pid = fork();

	if (pid)
		return pid;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (out >= 0) {
		null = open("/dev/null", O_RDONLY);
		dup2(null, STDIN_FILENO);
		dup2(out, STDOUT_FILENO);
		dup2(out, STDERR_FILENO);
	} else {
		ioctl(STDIN_FILENO, TIOCSCTTY, 1);
	}
	execv(argv[0], (char *const *)argv);
	_exit(127);
}

static void reap(pid_t want, int *status, bool *ended)
{
	int st;
	pid_t pid;

	while ((pid = waitpid(-1, &st, WNOHANG)) > 0) {
		if (pid != want)
			continue;
		*status = WIFSIGNALED(st) ? 128 + WTERMSIG(st) :
					    WEXITSTATUS(st);
		*ended = true;
	}
}

static int open_port(void)
{
	char path[512], name[64];
	struct dirent *de;
	int fd = -1, waited;
	DIR *dir;

	for (waited = 0; fd < 0 && waited < PORT_WAIT_MS; waited += RETRY_MS) {
		dir = opendir(PORT_CLASS);
		while (dir && fd < 0 && (de = readdir(dir))) {
			snprintf(path, sizeof(path), PORT_CLASS "/%s/name",
				 de->d_name);
			if (!read_file(path, name, sizeof(name)) ||
			    strcmp(name, PORT_NAME))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", de->d_name);
			fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		}
		if (dir)
			closedir(dir);
		if (fd < 0)
			sleep_ms(RETRY_MS);
	}
	return fd;
}

/* The host may be away for a while, e.g. between two ends of a migration. */
static void port_write(int port, const char *buf, size_t len)
{
	struct pollfd pfd = { .fd = port, .events = POLLOUT };
	ssize_t n;

	while (len) {
		n = write(port, buf, len);
		if (n > 0) {
			buf += n;
			len -= n;
			continue;
		}
		if (poll(&pfd, 1, RETRY_MS) > 0 && (pfd.revents & ~POLLOUT))
			sleep_ms(RETRY_MS);
	}
}

static void port_frame(int port, const char *kind, long n, const char *payload)
{
	char head[32];

	port_write(port, head, snprintf(head, sizeof(head), "%s %ld\n", kind, n));
	if (payload)
		port_write(port, payload, n);
}

/* Returns how much was passed on; 0 when the pipe is empty or closed. */
static ssize_t forward(int port, int from)
{
	char buf[CHUNK];
	ssize_t n = read(from, buf, sizeof(buf));

	if (n > 0)
		port_frame(port, "out", n, buf);
	return n > 0 ? n : 0;
}

/* Whether the script is "cat FILE", and that could be shown; a pattern must fit one. */
static bool show(int port, const char *script)
{
	const char *path = script + strlen("cat ");
	struct stat st;
	int fd = -1;
	glob_t found;

	if (strncmp(script, "cat /", 5) || strpbrk(path, " \t\n\"'\\$`<>|&;(){}#~") ||
	    glob(path, 0, NULL, &found))
		return false;
	if (found.gl_pathc == 1)
		fd = open(found.gl_pathv[0], O_RDONLY | O_CLOEXEC);
	globfree(&found);
	if (fd < 0)
		return false;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		return false;
	}
	while (forward(port, fd))
		;
	close(fd);
	port_frame(port, "end", 0, NULL);
	return true;
}

static void run(int port, const char *script)
{
	const char *argv[4] = { "/bin/sh", "-c", script, NULL };
	struct pollfd pfd = { .events = POLLIN };
	int fds[2], status = 127;
	bool ended = false;
	sigset_t none;
	pid_t pid = -1;

	if (show(port, script))
		return;
	sigemptyset(&none);
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0) {
		/* The reader's end alone must not block. */
		fcntl(fds[1], F_SETFL, 0);
		pid = spawn(argv, fds[1]);
		close(fds[1]);
	}
	if (pid < 0) {
		say("cannot start a command: %s", strerror(errno));
		port_frame(port, "end", status, NULL);
		return;
	}

	pfd.fd = fds[0];
	for (;;) {
		reap(pid, &status, &ended);
		if (ended)
			break;
		pfd.revents = 0;
		ppoll(&pfd, 1, NULL, &none);
		if (pfd.revents && !forward(port, fds[0]))
			pfd.fd = -1;	/* closed by the command */
	}
	while (forward(port, fds[0]))
		;
	close(fds[0]);
	port_frame(port, "end", status, NULL);
}

static void on_signal(int sig)
{
}

static void serve(int port)
{
	static char script[SCRIPT_MAX + 1];
	struct pollfd pfd = { .fd = port, .events = POLLIN };
	size_t have = 0, want = 0;
	char head[32], c;
	bool in_head = true, ended = false;
	sigset_t none;
	int status = 0;
	ssize_t n;

	sigemptyset(&none);
	port_frame(port, "up", 0, NULL);
	for (;;) {
		reap(-1, &status, &ended);
		n = in_head ? read(port, &c, 1) :
			      read(port, script + have, want - have);
		if (n <= 0) {
			pfd.revents = 0;
			ppoll(&pfd, 1, NULL, &none);
			/* Hung up: the host is not connected, poll returns at once. */
			if (pfd.revents & ~POLLIN)
				sleep_ms(RETRY_MS);
			continue;
		}
		if (in_head) {
			if (c != '\n') {
				head[have] = c;
				have = (have + 1) % (sizeof(head) - 1);
				continue;
			}
			head[have] = '\0';
			have = 0;
			if (sscanf(head, "run %zu", &want) != 1 ||
			    want > SCRIPT_MAX) {
				say("bad command header '%s'", head);
				continue;
			}
			in_head = false;
		} else {
			have += n;
		}
		if (have == want) {
			script[want] = '\0';
			run(port, script);
			have = 0;
			in_head = true;
		}
	}
}

static void install_applets(void)
{
	static const char *const argv[] = { "/bin/busybox", "--install", "-s", "/bin", NULL };
	pid_t pid = spawn(argv, STDERR_FILENO);
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		power_off("busybox cannot be installed");
}

/* What a system has that is more than an initramfs. */
static void set_up(void)
{
	int fd;

	mount_or_say("devtmpfs", "/dev");
	fd = open("/dev/console", O_RDWR);
	if (fd >= 0) {
		dup2(fd, STDIN_FILENO);
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		if (fd > STDERR_FILENO)
			close(fd);
	}
	mount_or_say("proc", "/proc");
	mount_or_say("sysfs", "/sys");
	mount_or_say("debugfs", "/sys/kernel/debug");
	mount_or_say("tmpfs", "/tmp");
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/", 1);
	install_applets();
}

int main(void)
{
	static const char *const shell[] = { "/bin/sh", "-c", "load_modules; exec sh -i", NULL };
	static const char *const early[] = { "/bin/load_modules", "early.order", NULL };
	struct sigaction sa = { .sa_handler = on_signal };
	char cmdline[4096] = "";
	int port, status;
	sigset_t chld;
	pid_t pid;

	/* Else a service of a system that has an init of its own. */
	if (getpid() == 1)
		set_up();

	/* SIGCHLD interrupts ppoll() and nothing else. */
	sigaction(SIGCHLD, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);

	/* A distribution's kernel has even the channel's driver as a module. */
	if (!access("/lib/modules/early.order", R_OK)) {
		pid = spawn(early, -1);
		while (pid > 0 && (wait(&status) != pid || errno == EINTR))
			;
	}

	read_file("/proc/cmdline", cmdline, sizeof(cmdline));
	if (strstr(cmdline, "lab.shell")) {
		pid = spawn(shell, -1);
		while (pid > 0 && (wait(&status) != pid || errno == EINTR))
			;
		power_off("shell ended");
	}

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);

	port = open_port();
	if (port < 0)
		power_off("no virtio-serial port " PORT_NAME);
	serve(port);
}
