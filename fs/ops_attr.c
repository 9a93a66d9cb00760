/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "compact.h"
#include "ops.h"

static void reply_attr(fuse_req_t req, struct eq_node *n)
{
	struct stat st;
	int rc = eq_attr_get(eq_fs_of(req), n, &st);

	if (rc)
		eq_reply(req, rc);
	else
		fuse_reply_attr(req, &st, EQ_TIMEOUT);
}

void eq_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)fi;
	reply_attr(req, eq_node_of(eq_fs_of(req), ino));
}

static int set_size(struct eq_fs *fs, struct eq_node *n, off_t size, struct eq_file *f)
{
	struct eq_file *own = NULL;
	bool keep;
	int rc = 0;

	if (!f || !f->writer) {
		/* Truncating to nothing need not restore anything first. */
		rc = eq_file_open(fs, n, O_WRONLY | (size ? 0 : O_TRUNC), &own, &keep);
		if (rc)
			return rc;
		f = own;
	}
	eq_dirty_set(fs, n);
	if (ftruncate(f->fd, size))
		rc = -errno;
	if (own)
		eq_file_close(fs, own);
	return rc;
}

static int set_mode(struct eq_node *n, mode_t mode)
{
	char path[EQ_PROC_SIZE];

	if (S_ISLNK(n->type))
		return -EOPNOTSUPP;
	eq_proc_path(path, n->fd);
	return chmod(path, mode & 07777) ? -errno : 0;
}

static int set_owner(struct eq_node *n, const struct stat *attr, int to_set)
{
	uid_t uid = to_set & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
	gid_t gid = to_set & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;

	return fchownat(n->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

/* The inner time of an archive cannot be changed; this is shown in its place. */
static int set_archive_mtime(struct eq_node *n, const struct timespec *t)
{
	int rc = eq_mtime_set(n->fd, t);

	return rc == -ENOTSUP ? 0 : rc;
}

/* Setting times is no writing, for which a file that is passed through is looked at. */
static void not_written(struct eq_node *n, const struct timespec *was)
{
	struct stat now;

	if (fstat(n->fd, &now))
		return;
	pthread_mutex_lock(&n->lock);
	if (n->writers && eq_time_compare(&n->unwritten.mtime, was) == 0)
		n->unwritten.mtime = now.st_mtim;
	pthread_mutex_unlock(&n->lock);
}

static int set_times(struct eq_node *n, const struct stat *attr, int to_set)
{
	struct timespec t[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_nsec = UTIME_OMIT } }, now;
	char path[EQ_PROC_SIZE];
	struct stat was;
	bool known;
	int rc;

	clock_gettime(CLOCK_REALTIME, &now);
	if (to_set & FUSE_SET_ATTR_ATIME_NOW)
		t[0] = now;
	else if (to_set & FUSE_SET_ATTR_ATIME)
		t[0] = attr->st_atim;
	if (to_set & FUSE_SET_ATTR_MTIME_NOW)
		t[1] = now;
	else if (to_set & FUSE_SET_ATTR_MTIME)
		t[1] = attr->st_mtim;
	if (n->archive && t[1].tv_nsec != UTIME_OMIT) {
		rc = set_archive_mtime(n, &t[1]);
		if (rc)
			return rc;
	}
	if (S_ISLNK(n->type))
		return utimensat(n->fd, "", t, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
	eq_proc_path(path, n->fd);
	known = fstat(n->fd, &was) == 0;
	if (utimensat(AT_FDCWD, path, t, 0))
		return -errno;
	if (known)
		not_written(n, &was.st_mtim);
	return 0;
}

#define SET_OWNER (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)
#define SET_TIMES (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | \
		   FUSE_SET_ATTR_MTIME_NOW)

void eq_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		   struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n = eq_node_of(fs, ino);
	int rc = 0;

	pthread_rwlock_rdlock(&fs->names);
	if (n->swapped && !fi) /* meant for the archive that has its name now */
		rc = -ESTALE;
	if (!rc && to_set & FUSE_SET_ATTR_MODE)
		rc = set_mode(n, attr->st_mode);
	if (!rc && to_set & SET_OWNER)
		rc = set_owner(n, attr, to_set);
	if (!rc && to_set & SET_TIMES && !(to_set & FUSE_SET_ATTR_SIZE))
		rc = set_times(n, attr, to_set);
	pthread_rwlock_unlock(&fs->names);
	if (!rc && to_set & FUSE_SET_ATTR_SIZE) {
		rc = set_size(fs, n, attr->st_size, fi ? eq_file_of(fi) : NULL);
		if (!rc && to_set & SET_TIMES)
			rc = set_times(n, attr, to_set);
	}
	if (!rc && to_set & SET_TIMES)
		eq_compact_offer(fs, n); /* an encode that has begun has the old times */
	if (rc)
		eq_reply(req, rc);
	else
		reply_attr(req, n);
}

void eq_op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st;

	if (fstatvfs(eq_node_of(eq_fs_of(req), ino)->fd, &st))
		eq_reply(req, -errno);
	else
		fuse_reply_statfs(req, &st);
}
