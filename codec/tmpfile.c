/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Temporary files beside their target, what they take over from it, and their
 * publication. The creator's
 * flock is how a later clean-up tells litter of a crash from work in progress:
 * the kernel drops it with the process.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "eqcodec.h"

#define TMP_PREFIX ".eqfs-tmp."
#define TMP_PREFIX_LEN (sizeof(TMP_PREFIX) - 1)
#define TMP_DIGITS 16
#define TMP_TRIES 100
#define XATTR_OWN "user.eqfs."  /* what a mount says, not what a user set */
#define XATTR_ACL "system.posix_acl_access"
#define XATTR_ASIDE XATTR_OWN "aside." /* of a directory: + digits = the name that it had */

bool eq_tmp_is(const char *name)
{
	if (strncmp(name, TMP_PREFIX, TMP_PREFIX_LEN))
		return false;
	name += TMP_PREFIX_LEN;
	return strlen(name) == TMP_DIGITS &&
	       strspn(name, "0123456789abcdef") == TMP_DIGITS;
}

static int tmp_name(char name[EQ_TMP_NAME_SIZE])
{
	uint64_t id;

	if (getrandom(&id, sizeof(id), 0) != sizeof(id))
		return -EIO;
	snprintf(name, EQ_TMP_NAME_SIZE, TMP_PREFIX "%016" PRIx64, id);
	return 0;
}

int eq_tmp_create(int dirfd, char name[EQ_TMP_NAME_SIZE], int *out)
{
	struct stat st;
	int fd, tries, rc;

	*out = -1;
	for (tries = 0; tries < TMP_TRIES; tries++) {
		rc = tmp_name(name);
		if (rc)
			return rc;
		fd = openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (fd < 0) {
			if (errno == EEXIST)
				continue;
			return -errno;
		}
		/* A sweep may have come between creation and lock. */
		if (flock(fd, LOCK_EX) == 0 && fstat(fd, &st) == 0 && st.st_nlink > 0) {
			*out = fd;
			return 0;
		}
		rc = -errno;
		close(fd);
		if (unlinkat(dirfd, name, 0) == 0)
			return rc; /* it was there: the lock or fstat failed */
	}
	return -EEXIST;
}

/* The mark of a file that was moved aside. By way of /proc, because directories may
 * be open with O_PATH. */
struct mark {
	char dir[32], name[64];
};

static void mark_name(struct mark *m, int dirfd, const char *aside)
{
	snprintf(m->dir, sizeof(m->dir), "/proc/self/fd/%d", dirfd);
	snprintf(m->name, sizeof(m->name), XATTR_ASIDE "%s", aside + TMP_PREFIX_LEN);
}

int eq_tmp_aside(int dirfd, const char *name, char aside[EQ_TMP_NAME_SIZE])
{
	struct mark m;
	int rc = tmp_name(aside);

	if (rc)
		return rc;
	mark_name(&m, dirfd, aside);
	(void)!setxattr(m.dir, m.name, name, strlen(name), 0); /* where there are any */
	if (renameat(dirfd, name, dirfd, aside)) {
		rc = -errno;
		(void)!removexattr(m.dir, m.name);
	}
	return rc;
}

int eq_tmp_aside_back(int dirfd, const char *aside, const char *name)
{
	struct mark m;
	int rc = renameat2(dirfd, aside, dirfd, name, RENAME_NOREPLACE) ? -errno : 0;

	if (rc == -EINVAL || rc == -ENOSYS) { /* not every filesystem can */
		rc = linkat(dirfd, aside, dirfd, name, 0) ? -errno : 0;
		if (!rc)
			(void)!unlinkat(dirfd, aside, 0);
	}
	if (rc)
		return rc;
	mark_name(&m, dirfd, aside);
	(void)!removexattr(m.dir, m.name);
	return 0;
}

int eq_tmp_aside_drop(int dirfd, const char *aside)
{
	struct mark m;

	/* In this order, or a crash would leave a mark of nothing. */
	mark_name(&m, dirfd, aside);
	(void)!removexattr(m.dir, m.name);
	return unlinkat(dirfd, aside, 0) ? -errno : 0;
}

void eq_tmp_aside_forget(int dirfd)
{
	char *names = malloc(XATTR_LIST_MAX), aside[EQ_TMP_NAME_SIZE], *p;
	struct stat st;
	struct mark m;
	ssize_t len = -1;

	mark_name(&m, dirfd, TMP_PREFIX);
	if (names)
		len = listxattr(m.dir, names, XATTR_LIST_MAX);
	for (p = names; len > 0 && p < names + len; p += strlen(p) + 1) {
		if (strncmp(p, XATTR_ASIDE, sizeof(XATTR_ASIDE) - 1))
			continue;
		snprintf(aside, sizeof(aside), TMP_PREFIX "%s", p + sizeof(XATTR_ASIDE) - 1);
		if (fstatat(dirfd, aside, &st, AT_SYMLINK_NOFOLLOW) && errno == ENOENT)
			(void)!removexattr(m.dir, p);
	}
	free(names);
}

/* Put back what a crash has left aside, unless its name is taken, be it by an archive.
 * 1: done; 0: it is litter; or -errno: neither, so that it must stay. */
static int put_back(int dirfd, const char *aside)
{
	char name[NAME_MAX + 1], archive[NAME_MAX + sizeof(EQ_SUFFIX)];
	struct stat st;
	struct mark m;
	ssize_t len;
	int rc;

	mark_name(&m, dirfd, aside);
	len = getxattr(m.dir, m.name, name, sizeof(name) - 1);
	if (len <= 0)
		return !len || errno == ENODATA || errno == ENOTSUP ? 0 : -errno;
	name[len] = '\0';
	snprintf(archive, sizeof(archive), "%s" EQ_SUFFIX, name);
	if (strchr(name, '/') || fstatat(dirfd, archive, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return 0;
	rc = eq_tmp_aside_back(dirfd, aside, name);
	return rc == -EEXIST ? 0 : rc ? rc : 1;
}

int eq_tmp_sweep(int dirfd, const char *name)
{
	struct stat st;
	int fd, rc = 0;

	if (!eq_tmp_is(name))
		return -EINVAL;
	fd = eq_open_regular(dirfd, name, &st);
	if (fd < 0 && fd != -ELOOP && fd != -EINVAL) /* a link, a pipe: nobody's work */
		return fd;
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB))
		rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
	if (!rc)
		rc = put_back(dirfd, name);
	if (!rc)
		rc = eq_tmp_aside_drop(dirfd, name);
	if (fd >= 0)
		close(fd);
	return rc;
}

void eq_xattrs_copy(int from, int to)
{
	char path[32], *names = malloc(XATTR_LIST_MAX + XATTR_SIZE_MAX), *value, *p;
	ssize_t len = -1, n;

	/* By way of /proc, because `from` may be an O_PATH descriptor. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", from);
	if (names)
		len = listxattr(path, names, XATTR_LIST_MAX);
	value = names + XATTR_LIST_MAX;
	for (p = names; len > 0 && p < names + len; p += strlen(p) + 1) {
		if (strncmp(p, "user.", 5) || !strncmp(p, XATTR_OWN, sizeof(XATTR_OWN) - 1))
			continue;
		n = getxattr(path, p, value, XATTR_SIZE_MAX);
		if (n >= 0)
			(void)!fsetxattr(to, p, value, (size_t)n, 0);
	}
	/* What the directory gives to whatever is made in it is not of that file. */
	n = names ? getxattr(path, XATTR_ACL, value, XATTR_SIZE_MAX) : -1;
	if (n >= 0)
		(void)!fsetxattr(to, XATTR_ACL, value, (size_t)n, 0);
	else
		(void)!fremovexattr(to, XATTR_ACL);
	free(names);
}

int eq_store_probe(int dirfd)
{
	if (flock(dirfd, LOCK_SH | LOCK_NB))
		return errno == EWOULDBLOCK ? -EBUSY : 0;
	flock(dirfd, LOCK_UN);
	return 0;
}

int eq_store_above(int dirfd)
{
	struct stat at, up;
	int fd, last = dirfd, rc = 0;

	if (fstat(dirfd, &at))
		return 0;
	for (;;) {
		fd = openat(last, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (last != dirfd)
			close(last);
		if (fd < 0 || fstat(fd, &up) || (up.st_dev == at.st_dev && up.st_ino == at.st_ino))
			break;
		rc = eq_store_probe(fd);
		if (rc)
			break;
		at = up;
		last = fd;
	}
	if (fd >= 0)
		close(fd);
	return rc;
}

int eq_publish(int dirfd, int fd, const char *tmp, const char *final)
{
	int rc;

	if (fsync(fd))
		return -errno;
	if (renameat(dirfd, tmp, dirfd, final))
		return -errno;
	/* A descriptor from O_PATH cannot be synced; "." can. */
	fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = fsync(fd) && errno != EINVAL ? -errno : 0; /* EINVAL: cannot be synced */
	close(fd);
	return rc;
}
