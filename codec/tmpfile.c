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

bool eq_tmp_is(const char *name)
{
	if (strncmp(name, TMP_PREFIX, TMP_PREFIX_LEN))
		return false;
	name += TMP_PREFIX_LEN;
	return strlen(name) == TMP_DIGITS &&
	       strspn(name, "0123456789abcdef") == TMP_DIGITS;
}

int eq_tmp_create(int dirfd, char name[EQ_TMP_NAME_SIZE], int *out)
{
	struct stat st;
	uint64_t id;
	int fd, tries, rc;

	*out = -1;
	for (tries = 0; tries < TMP_TRIES; tries++) {
		if (getrandom(&id, sizeof(id), 0) != sizeof(id))
			return -EIO;
		snprintf(name, EQ_TMP_NAME_SIZE, TMP_PREFIX "%016" PRIx64, id);
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

int eq_tmp_sweep(int dirfd, const char *name)
{
	int fd, rc = 0;

	if (!eq_tmp_is(name))
		return -EINVAL;
	fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB))
		rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
	else if (unlinkat(dirfd, name, 0))
		rc = -errno;
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
