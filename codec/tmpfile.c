/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Temporary files beside their target, and their publication. The creator's
 * flock is how a later clean-up tells litter of a crash from work in progress:
 * the kernel drops it with the process.
 */
#include "config.h"

#include <dirent.h>
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
#include <unistd.h>

#include "archive_priv.h"

#define TMP_PREFIX ".eqfs-tmp."
#define TMP_PREFIX_LEN (sizeof(TMP_PREFIX) - 1)
#define TMP_DIGITS 16
#define TMP_TRIES 100

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

int eq_move_new(int fromfd, const char *from, int dirfd, const char *name)
{
	int rc = renameat2(fromfd, from, dirfd, name, RENAME_NOREPLACE) ? -errno : 0;

	if (rc == -EINVAL || rc == -ENOSYS) { /* not every filesystem can */
		rc = linkat(fromfd, from, dirfd, name, 0) ? -errno : 0;
		if (!rc)
			(void)!unlinkat(fromfd, from, 0);
	}
	return rc;
}

/* ---- aside ------------------------------------------------------------------ */

/* The directory with what is in it no more. */
static int aside_end(struct eq_aside *a, int rc)
{
	close(a->fd);
	if (unlinkat(a->dirfd, a->tmp, AT_REMOVEDIR) && !rc)
		rc = -errno;
	return rc;
}

int eq_aside_begin(struct eq_aside *a, int dirfd, const char *name)
{
	int rc = tmp_name(a->tmp);

	if (rc)
		return rc;
	a->dirfd = dirfd;
	a->name = name;
	if (mkdirat(dirfd, a->tmp, 0700))
		return -errno;
	a->fd = eq_open_in(dirfd, a->tmp, O_RDONLY | O_DIRECTORY);
	if (a->fd < 0) {
		unlinkat(dirfd, a->tmp, AT_REMOVEDIR);
		return a->fd;
	}
	return renameat(dirfd, name, a->fd, name) ? aside_end(a, -errno) : 0;
}

int eq_aside_back(struct eq_aside *a)
{
	return aside_end(a, eq_move_new(a->fd, a->name, a->dirfd, a->name));
}

int eq_aside_drop(struct eq_aside *a)
{
	return aside_end(a, unlinkat(a->fd, a->name, 0) ? -errno : 0);
}

/* The name of the only entry, which is no directory: 1. 0: there is none. */
static int only_entry(int dir, char name[NAME_MAX + 1])
{
	int fd = fcntl(dir, F_DUPFD_CLOEXEC, 0), rc = 0;
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	struct stat st;

	if (!d) {
		rc = -errno;
		if (fd >= 0)
			close(fd);
		return rc;
	}
	for (errno = 0; rc >= 0 && (e = readdir(d)); errno = 0) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		strcpy(name, e->d_name);
		if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
			rc = -errno;
		else
			rc = rc || S_ISDIR(st.st_mode) ? -ENOTEMPTY : 1;
	}
	if (rc >= 0 && errno)
		rc = -errno;
	closedir(d);
	return rc;
}

/* Put back what a crash has left aside, unless its name is taken, be it by an archive:
 * then it is litter. 1: done; 0: there was nothing to keep; or -errno. */
static int aside_sweep(int dirfd, const char *tmp)
{
	char name[NAME_MAX + 1], archive[NAME_MAX + sizeof(EQ_SUFFIX)];
	struct eq_aside a = { .dirfd = dirfd, .name = name };
	struct stat st;
	int rc;

	strcpy(a.tmp, tmp);
	a.fd = eq_open_in(dirfd, tmp, O_RDONLY | O_DIRECTORY);
	if (a.fd < 0)
		return a.fd;
	rc = only_entry(a.fd, name);
	if (rc <= 0)
		return aside_end(&a, rc);
	snprintf(archive, sizeof(archive), "%s" EQ_SUFFIX, name);
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) &&
	    fstatat(dirfd, archive, &st, AT_SYMLINK_NOFOLLOW)) {
		rc = eq_aside_back(&a);
		return rc ? rc : 1;
	}
	return eq_aside_drop(&a);
}

int eq_tmp_sweep(int dirfd, const char *name)
{
	struct stat st;
	int fd, rc = 0;

	if (!eq_tmp_is(name))
		return -EINVAL;
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode))
		return aside_sweep(dirfd, name);
	fd = eq_open_regular(dirfd, name, &st);
	if (fd < 0 && fd != -ELOOP && fd != -EINVAL) /* a link, a pipe: nobody's work */
		return fd;
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB))
		rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
	if (!rc && unlinkat(dirfd, name, 0))
		rc = -errno;
	if (fd >= 0)
		close(fd);
	return rc;
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

int eq_publish(int dirfd, int fd, const char *tmp, const char *final, bool replace)
{
	int rc;

	if (fsync(fd))
		return -errno;
	if (replace)
		rc = renameat(dirfd, tmp, dirfd, final) ? -errno : 0;
	else
		rc = eq_move_new(dirfd, tmp, dirfd, final);
	if (rc)
		return rc;
	/* A descriptor from O_PATH cannot be synced; "." can. */
	fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = fsync(fd) && errno != EINVAL ? -errno : 0; /* EINVAL: cannot be synced */
	close(fd);
	return rc;
}

void eq_withdraw(int dirfd, int fd, const char *final)
{
	struct stat ours, at;

	if (fstat(fd, &ours) == 0 && fstatat(dirfd, final, &at, AT_SYMLINK_NOFOLLOW) == 0 &&
	    at.st_ino == ours.st_ino && at.st_dev == ours.st_dev)
		unlinkat(dirfd, final, 0);
}
