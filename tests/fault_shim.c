/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A preloaded library that counts what a program does to the files below one
 * directory, writes it down, and at the n-th of these events kills the program or
 * lets the call fail. Events come one at a time, so that the log has their order.
 *
 *   EQFS_FAULT_ROOT  the directory; without it nothing is counted
 *   EQFS_FAULT_LOG   file to append to: "number operation path result"
 *   EQFS_FAULT       before:N or after:N (killed), torn:N (killed after half of a
 *                    write), hang:N (never returns, nor does any event after it),
 *                    wait:N (writes a byte to EQFS_FAULT_GATE, a pipe that is open for
 *                    reading, and goes on when that is closed; wait:N:NUMBER:COUNT: the
 *                    COUNT events after that fail), or
 *                    errno:N:NUMBER:COUNT (COUNT events fail), or
 *                    short:N (reads and writes from there on do half of what they could)
 *   EQFS_FAULT_OPS   operations that count, as ",fsync,rename,"; all but read, pread and
 *                    flock without it
 *   EQFS_FAULT_OLD   the kernel is one without FUSE_NOTIFY_PRUNE
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NOTIFY_PRUNE 9

enum mode { NOTHING, BEFORE, AFTER, TORN, FAIL, HANG, WAIT, SHORT };

static struct {
	pthread_mutex_t lock;   /* of n, and held during an event */
	const char *root, *ops;
	size_t root_len;
	enum mode mode;
	long n, first, count;
	int error, log;
	char line[2 * PATH_MAX];
} fault = { .lock = PTHREAD_MUTEX_INITIALIZER, .log = -1 };

__attribute__((constructor)) static void fault_init(void)
{
	static const char *const names[] = { "", "before", "after", "torn", "errno",
					     "hang", "wait", "short" };
	const char *log = getenv("EQFS_FAULT_LOG"), *what = getenv("EQFS_FAULT");
	char name[8];
	int i;

	fault.root = getenv("EQFS_FAULT_ROOT");
	fault.root_len = fault.root ? strlen(fault.root) : 0;
	fault.ops = getenv("EQFS_FAULT_OPS");
	fault.count = 1;
	if (log)
		fault.log = (int)syscall(SYS_openat, AT_FDCWD, log,
					 O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (what && sscanf(what, "%7[a-z]:%ld:%d:%ld", name, &fault.first, &fault.error,
			   &fault.count) >= 2)
		for (i = BEFORE; i <= SHORT; i++)
			if (!strcmp(name, names[i]))
				fault.mode = (enum mode)i;
}

static void log_result(long rc, int error)
{
	char end[32];

	snprintf(end, sizeof(end), " %ld\n", rc < 0 ? -(long)error : rc);
	strcat(fault.line, end);
	if (fault.log >= 0)
		syscall(SYS_write, fault.log, fault.line, strlen(fault.line));
}

static void die(void)
{
	log_result(-1, 0);
	kill(getpid(), SIGKILL);
	pause();
}

static void wait_at_gate(void)
{
	struct pollfd p = { .fd = (int)syscall(SYS_openat, AT_FDCWD, getenv("EQFS_FAULT_GATE"),
					       O_WRONLY | O_CLOEXEC) };

	if (p.fd < 0 || syscall(SYS_write, p.fd, "", 1) != 1)
		abort();
	while (poll(&p, 1, -1) < 0) /* POLLERR: nobody reads any more */
		;
	close(p.fd);
}

/* Is the n-th event to fail? */
static int fails(void)
{
	long first = fault.mode == WAIT ? fault.first + 1 : fault.first;

	return (fault.mode == FAIL || (fault.mode == WAIT && fault.error)) && fault.n >= first &&
	       fault.n - first < fault.count;
}

/* 0: an event, and the lock is held; an errno: likewise, and it is to fail; -1: none. */
static int enter(const char *op, const char *path)
{
	char word[32];

	snprintf(word, sizeof(word), ",%s,", op);
	if (!fault.root || strncmp(path, fault.root, fault.root_len) ||
	    !strchr("/ ", path[fault.root_len]) ||
	    (fault.ops ? !strstr(fault.ops, word) : !!strstr(",read,pread,flock,", word)))
		return -1;
	pthread_mutex_lock(&fault.lock);
	fault.n++;
	snprintf(fault.line, sizeof(fault.line) - 32, "%ld %s %s", fault.n, op,
		 path + fault.root_len);
	if (fault.mode == BEFORE && fault.n == fault.first)
		die();
	if (fault.mode == HANG && fault.n == fault.first) {
		log_result(-1, 0);
		for (;;)
			pause();
	}
	if (fault.mode == WAIT && fault.n == fault.first)
		wait_at_gate();
	if (!fails())
		return 0;
	log_result(-1, fault.error);
	pthread_mutex_unlock(&fault.lock);
	return fault.error;
}

static void leave(long rc)
{
	int error = errno;

	if ((fault.mode == AFTER || fault.mode == TORN) && fault.n == fault.first)
		die();
	log_result(rc, error);
	pthread_mutex_unlock(&fault.lock);
	errno = error;
}

/* What a descriptor or a path stands for; "" if unknown. */
static const char *at_path(char buf[PATH_MAX], int dirfd, const char *name)
{
	char link[64];
	ssize_t n;

	if (name && name[0] == '/') {
		n = readlink(name, buf, PATH_MAX - 1);
		if (strncmp(name, "/proc/self/fd/", 14) || n < 0)
			return name;
		buf[n] = '\0';
		return buf;
	}
	snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
	n = readlink(link, buf, PATH_MAX - 1);
	buf[n > 0 ? n : 0] = '\0';
	if (n > 0 && name && name[0] && (size_t)n + strlen(name) + 2 < PATH_MAX) {
		buf[n] = '/';
		strcpy(buf + n + 1, name);
	}
	return buf;
}

#define REAL(name)                                                           \
	char buf_[PATH_MAX];                                                 \
	static __typeof__(&name) real;                                       \
	if (!real)                                                           \
		real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define EVENT(op, path, call)                                                \
	do {                                                                 \
		int err_ = enter(op, path);                                  \
		long rc_;                                                    \
		if (err_ > 0) {                                              \
			errno = err_;                                        \
			return -1;                                           \
		}                                                            \
		rc_ = (call);                                                \
		if (!err_)                                                   \
			leave(rc_);                                          \
		return (__typeof__(call))rc_;                                \
	} while (0)

/* A function of this type, name and arguments; the event's place; how to call it. */
#define WRAP(type, name, op, params, path, args)                             \
	type name params                                                     \
	{                                                                    \
		REAL(name);                                                  \
		EVENT(op, path, real args);                                  \
	}

#define AT(fd, name) at_path(buf_, fd, name)

/* As much of a transfer as is to be done. */
static size_t torn(size_t len)
{
	if (fault.mode == SHORT && fault.n >= fault.first)
		return len - len / 2;
	return fault.mode == TORN && fault.n == fault.first ? len / 2 : len;
}

WRAP(ssize_t, write, "write", (int fd, const void *p, size_t len), AT(fd, NULL),
     (fd, p, torn(len)))
WRAP(ssize_t, pwrite, "write", (int fd, const void *p, size_t len, off_t off), AT(fd, NULL),
     (fd, p, torn(len), off))
WRAP(ssize_t, read, "read", (int fd, void *p, size_t len), AT(fd, NULL), (fd, p, len))
WRAP(ssize_t, pread, "pread", (int fd, void *p, size_t len, off_t off), AT(fd, NULL),
     (fd, p, torn(len), off))
WRAP(ssize_t, copy_file_range, "write",
     (int in, off_t *in_off, int out, off_t *out_off, size_t len, unsigned flags), AT(out, NULL),
     (in, in_off, out, out_off, torn(len), flags))
WRAP(int, fallocate, "write", (int fd, int mode, off_t off, off_t len), AT(fd, NULL),
     (fd, mode, off, len))
WRAP(int, ftruncate, "truncate", (int fd, off_t len), AT(fd, NULL), (fd, len))
WRAP(int, flock, "flock", (int fd, int how), AT(fd, NULL), (fd, how))
WRAP(int, fsync, "fsync", (int fd), AT(fd, NULL), (fd))
WRAP(int, fdatasync, "fsync", (int fd), AT(fd, NULL), (fd))
WRAP(int, fchown, "chown", (int fd, uid_t u, gid_t g), AT(fd, NULL), (fd, u, g))
WRAP(int, fchownat, "chown", (int fd, const char *name, uid_t u, gid_t g, int flags),
     AT(fd, name), (fd, name, u, g, flags))
WRAP(int, fchmod, "chmod", (int fd, mode_t mode), AT(fd, NULL), (fd, mode))
WRAP(int, chmod, "chmod", (const char *name, mode_t mode), AT(AT_FDCWD, name), (name, mode))
WRAP(int, futimens, "utimens", (int fd, const struct timespec t[2]), AT(fd, NULL), (fd, t))
WRAP(int, utimensat, "utimens",
     (int fd, const char *name, const struct timespec t[2], int flags), AT(fd, name),
     (fd, name, t, flags))
WRAP(int, setxattr, "setxattr",
     (const char *name, const char *attr, const void *p, size_t len, int flags),
     AT(AT_FDCWD, name), (name, attr, p, len, flags))
WRAP(int, fsetxattr, "setxattr",
     (int fd, const char *attr, const void *p, size_t len, int flags), AT(fd, NULL),
     (fd, attr, p, len, flags))
WRAP(int, removexattr, "removexattr", (const char *name, const char *attr), AT(AT_FDCWD, name),
     (name, attr))
WRAP(int, unlinkat, "unlink", (int fd, const char *name, int flags), AT(fd, name),
     (fd, name, flags))
WRAP(int, mkdirat, "mkdir", (int fd, const char *name, mode_t mode), AT(fd, name),
     (fd, name, mode))
WRAP(int, symlinkat, "symlink", (const char *target, int fd, const char *name), AT(fd, name),
     (target, fd, name))
WRAP(int, linkat, "link", (int from, const char *old, int to, const char *name, int flags),
     AT(to, name), (from, old, to, name, flags))

ssize_t writev(int fd, const struct iovec *iov, int n)
{
	const struct fuse_out_header *h = iov->iov_base;
	REAL(writev);

	(void)buf_;
	if (getenv("EQFS_FAULT_OLD") && iov->iov_len >= sizeof(*h) && h->unique == 0 &&
	    h->error == NOTIFY_PRUNE) {
		errno = EINVAL;
		return -1;
	}
	return real(fd, iov, n);
}

/* Renames log both names. */
static const char *both(char buf[PATH_MAX], int from, const char *old, int to, const char *name)
{
	char second[PATH_MAX];
	const char *first = at_path(buf, from, old), *p;
	size_t n;

	if (first != buf)
		return first;
	n = strlen(buf);
	p = at_path(second, to, name);
	if (fault.root && strlen(p) > fault.root_len)
		p += fault.root_len;
	snprintf(buf + n, PATH_MAX - n, " %s", p);
	return buf;
}

WRAP(int, renameat, "rename", (int from, const char *old, int to, const char *name),
     both(buf_, from, old, to, name), (from, old, to, name))
WRAP(int, renameat2, "rename",
     (int from, const char *old, int to, const char *name, unsigned flags),
     both(buf_, from, old, to, name), (from, old, to, name, flags))

static mode_t mode_of(int flags, va_list ap)
{
	return flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;
}

/* Opening counts where it changes something. */
int openat(int fd, const char *name, int flags, ...)
{
	mode_t mode;
	va_list ap;
	REAL(openat);

	va_start(ap, flags);
	mode = mode_of(flags, ap);
	va_end(ap);
	if (!(flags & (O_CREAT | O_TRUNC)))
		return real(fd, name, flags);
	EVENT("create", at_path(buf_, fd, name), real(fd, name, flags, mode));
}

int open(const char *name, int flags, ...)
{
	mode_t mode;
	va_list ap;
	REAL(open);

	va_start(ap, flags);
	mode = mode_of(flags, ap);
	va_end(ap);
	if (!(flags & (O_CREAT | O_TRUNC)))
		return real(name, flags);
	EVENT("create", at_path(buf_, AT_FDCWD, name), real(name, flags, mode));
}
