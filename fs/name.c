/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "eqcodec.h"
#include "name.h"

#define PARTIAL ".incomplete"
#define XATTR_STALE "user.eqfs.stale"   /* the archive of this name is out of date */

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), k = strlen(suffix);

	return n > k && !strcmp(name + n - k, suffix);
}

void eq_proc_path(char buf[EQ_PROC_SIZE], int fd)
{
	snprintf(buf, EQ_PROC_SIZE, "/proc/self/fd/%d", fd);
}

bool eq_name_is_archive(const char *name)
{
	return has_suffix(name, EQ_SUFFIX);
}

bool eq_name_is_partial(const char *name)
{
	return has_suffix(name, PARTIAL);
}

int eq_name_archive(const char *name, char out[NAME_MAX + 1])
{
	int n = snprintf(out, NAME_MAX + 1, "%s" EQ_SUFFIX, name);

	return n < 0 || n > NAME_MAX ? -ENAMETOOLONG : 0;
}

int eq_name_allowed(const char *name, mode_t type)
{
	if (eq_tmp_is(name) || (S_ISREG(type) && eq_name_is_archive(name)))
		return -EPERM;
	return 0;
}

/* Names the mount never shows, whatever they are. */
static bool invisible(const char *name)
{
	return eq_tmp_is(name) || !strcmp(name, ".") || !strcmp(name, "..");
}

static int open_one(int dirfd, const char *name, struct eq_found *f)
{
	int rc;

	f->fd = eq_open_in(dirfd, name, O_PATH);
	if (f->fd < 0) {
		rc = f->fd;
		f->fd = -1;
		return rc;
	}
	if (fstat(f->fd, &f->st)) {
		rc = -errno;
		close(f->fd);
		f->fd = -1;
		return rc;
	}
	return 0;
}

static int stat_one(int dirfd, const char *name, struct eq_found *f)
{
	f->fd = -1;
	return fstatat(dirfd, name, &f->st, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int find(int dirfd, const char *name, struct eq_found *f,
		int (*one)(int dirfd, const char *name, struct eq_found *f))
{
	char archive[NAME_MAX + 1];
	int rc;

	f->fd = -1;
	f->archive = false;
	if (invisible(name))
		return -ENOENT;
	rc = one(dirfd, name, f);
	if (!rc && !(S_ISREG(f->st.st_mode) && eq_name_is_archive(name)))
		return 0;
	if (!rc && f->fd >= 0) {
		close(f->fd); /* an archive under its own name: hidden */
		f->fd = -1;
	}
	if (rc && rc != -ENOENT)
		return rc;
	if (eq_name_archive(name, archive))
		return -ENOENT;
	rc = one(dirfd, archive, f);
	if (rc)
		return rc;
	if (!S_ISREG(f->st.st_mode)) {
		if (f->fd >= 0)
			close(f->fd);
		f->fd = -1;
		return -ENOENT;
	}
	f->archive = true;
	return 0;
}

int eq_name_find(int dirfd, const char *name, struct eq_found *f)
{
	return find(dirfd, name, f, open_one);
}

int eq_name_stat(int dirfd, const char *name, struct eq_found *f)
{
	return find(dirfd, name, f, stat_one);
}

int eq_name_bury(int dirfd, const char *name)
{
	char archive[NAME_MAX + 1];
	struct stat st;

	if (eq_name_archive(name, archive) ||
	    fstatat(dirfd, archive, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
		return 0;
	return unlinkat(dirfd, archive, 0) ? -errno : 0;
}

void eq_stale_mark(int fd, bool on)
{
	char path[EQ_PROC_SIZE];

	eq_proc_path(path, fd);
	if (on)
		(void)!setxattr(path, XATTR_STALE, "1", 1, 0);
	else
		(void)!removexattr(path, XATTR_STALE);
}

void eq_stale_bury(int dirfd, const char *name, int fd)
{
	char path[EQ_PROC_SIZE];

	eq_proc_path(path, fd);
	if (getxattr(path, XATTR_STALE, NULL, 0) >= 0 && eq_name_bury(dirfd, name) == 0)
		eq_stale_mark(fd, false);
}
