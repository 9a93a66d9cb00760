/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "compact.h"
#include "ops.h"
#include "scan.h"
#include "trim.h"

#define MAX_GROUPS 1024

/* ---- looking up ----------------------------------------------------------------- */

/* Fill in what the kernel is told of n, on which it gets a lookup in any case. */
static int entry_fill(struct eq_fs *fs, struct eq_node *n, struct fuse_entry_param *e)
{
	memset(e, 0, sizeof(*e));
	e->ino = eq_ino_of(fs, n);
	e->generation = n == fs->nodes.root ? 0 : fs->nodes.ids.generation;
	e->attr_timeout = e->entry_timeout = EQ_TIMEOUT;
	return eq_attr_get(fs, n, &e->attr);
}

/* as: the number by which the kernel wants to know it, or 0: by any. */
static void reply_entry(fuse_req_t req, struct eq_node *n, fuse_ino_t as, int rc)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct fuse_entry_param e;

	if (!rc) {
		rc = entry_fill(fs, n, &e);
		if (as)
			e.ino = as;
		if (!rc && fuse_reply_entry(req, &e) == 0)
			return;
		eq_node_forget(&fs->nodes, n, 1);
		if (!rc)
			return;
	}
	eq_reply(req, rc);
}

/* The node of a name, with one more lookup by the kernel. */
static int take(struct eq_fs *fs, struct eq_node *dir, const char *name, struct eq_node **out)
{
	struct eq_found f;
	int rc;

	*out = NULL;
	eq_trim_pace(fs);
	pthread_rwlock_rdlock(&fs->names);
	rc = eq_name_find(dir->fd, name, &f);
	if (!rc)
		rc = eq_node_take(&fs->nodes, &f, dir, name, true, out);
	pthread_rwlock_unlock(&fs->names);
	if (!rc && S_ISREG((*out)->type))
		eq_compact_seen(fs, *out);
	return rc;
}

void eq_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n;
	fuse_ino_t as = 0;
	int rc;

	/* Names that the kernel sends for file handles only. */
	if (!strcmp(name, "."))
		rc = eq_export_self(fs, as = parent, &n);
	else if (!strcmp(name, ".."))
		rc = eq_export_parent(fs, eq_node_of(fs, parent), &n);
	else
		rc = take(fs, eq_node_of(fs, parent), name, &n);
	reply_entry(req, n, as, rc);
}

void eq_op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct eq_fs *fs = eq_fs_of(req);
	char *buf = eq_scratch(fs, PATH_MAX + 1);
	ssize_t n = -1;

	errno = ENOMEM;
	if (buf)
		n = readlinkat(eq_node_of(fs, ino)->fd, "", buf, PATH_MAX);
	if (n < 0) {
		eq_reply(req, -errno);
		return;
	}
	buf[n] = '\0';
	fuse_reply_readlink(req, buf);
}

/* ---- making ----------------------------------------------------------------------- */

int eq_name_check(struct eq_fs *fs, const char *name, mode_t type)
{
	int rc = eq_name_allowed(name, type);

	if (rc)
		eq_log(&fs->log, EQ_LOG_WARN, "%s: this name is reserved in an eqfs store", name);
	return rc;
}

struct make {
	mode_t mode;            /* the type says what */
	dev_t rdev;
	const char *target;     /* of a symbolic link */
	int flags;              /* regular files: of open(2) */
	int fd;                 /* regular files: out */
};

/* name NULL: a regular file without one. */
static int make_once(struct make *m, int dirfd, const char *name)
{
	int flags = (m->flags & ~O_TRUNC) | O_CLOEXEC, rc;

	switch (m->mode & S_IFMT) {
	case S_IFREG:
		flags |= name ? O_CREAT | O_EXCL | O_NOFOLLOW : O_TMPFILE;
		rc = m->fd = openat(dirfd, name ? name : ".", flags, m->mode & 07777);
		break;
	case S_IFDIR:
		rc = mkdirat(dirfd, name, m->mode & 07777);
		break;
	case S_IFLNK:
		rc = symlinkat(m->target, dirfd, name);
		break;
	default:
		rc = mknodat(dirfd, name, m->mode, m->rdev);
		break;
	}
	return rc < 0 ? -errno : 0;
}

#ifdef SYS_setgroups32
#define SETGROUPS SYS_setgroups32
#else
#define SETGROUPS SYS_setgroups
#endif

/* Take on the caller's groups, or (req NULL) have none again: this thread alone, which
 * the C library's function would not do. Who cannot be asked has that of the directory,
 * by which the kernel let him in. */
static void take_groups(fuse_req_t req, const struct eq_node *dir)
{
	gid_t list[MAX_GROUPS];
	struct stat st;
	int n = req ? fuse_req_getgroups(req, MAX_GROUPS, list) : 0;

	if (n < 0 && fstat(dir->fd, &st) == 0) {
		list[0] = st.st_gid;
		n = 1;
	}
	if (n > MAX_GROUPS)
		n = MAX_GROUPS;
	if (n >= 0)
		(void)!syscall(SETGROUPS, (size_t)n, list);
}

static int make_as(const struct fuse_ctx *ctx, struct make *m, int dirfd, const char *name)
{
	int rc;

	setfsgid(ctx->gid);
	setfsuid(ctx->uid);
	rc = make_once(m, dirfd, name);
	setfsuid(0);
	setfsgid(0);
	return rc;
}

/* The mode without the caller's umask, unless the directory has a list of its own for
 * what is made in it, which the store's filesystem applies. */
static mode_t masked(const struct eq_node *dir, mode_t mode, mode_t mask)
{
	char path[EQ_PROC_SIZE];

	eq_proc_path(path, dir->fd);
	return getxattr(path, "system.posix_acl_default", NULL, 0) > 0 ? mode : mode & ~mask;
}

/* Make it as the caller, which also gives it owner and group by the rules of the
 * store's filesystem. Under fs->names. */
static int make(fuse_req_t req, struct eq_node *dir, const char *name, struct make *m)
{
	struct eq_fs *fs = eq_fs_of(req);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	bool other = fs->privileged && (ctx->uid != 0 || ctx->gid != 0);
	struct stat st;
	int rc;

	if ((m->mode & S_IFMT) != S_IFLNK)
		m->mode = masked(dir, m->mode, ctx->umask & 0777);
	rc = other ? make_as(ctx, m, dir->fd, name) : make_once(m, dir->fd, name);
	if (rc == -EACCES && other) { /* allowed by another of the caller's groups */
		take_groups(req, dir);
		rc = make_as(ctx, m, dir->fd, name);
		take_groups(NULL, dir);
	}
	if (!rc && m->fd >= 0 && name && fstat(m->fd, &st) == 0)
		eq_stats_store(&fs->stats, NULL, &st);
	return rc;
}

/* 0 when nothing has this name. */
static int check_free(struct eq_node *dir, const char *name)
{
	struct eq_found f;
	int rc = eq_name_stat(dir->fd, name, &f);

	if (!rc)
		return -EEXIST;
	return rc == -ENOENT ? 0 : rc;
}

static void make_entry(fuse_req_t req, fuse_ino_t parent, const char *name, struct make *m)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *dir = eq_node_of(fs, parent), *n = NULL;
	int rc;

	m->fd = -1;
	rc = eq_name_check(fs, name, m->mode);
	if (rc) {
		eq_reply(req, rc);
		return;
	}
	pthread_rwlock_rdlock(&fs->names);
	rc = check_free(dir, name);
	if (!rc)
		rc = make(req, dir, name, m);
	pthread_rwlock_unlock(&fs->names);
	if (m->fd >= 0)
		close(m->fd);
	if (!rc)
		rc = take(fs, dir, name, &n);
	reply_entry(req, n, 0, rc);
}

void eq_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	struct make m = { .mode = mode & S_IFMT ? mode : mode | S_IFREG, .rdev = rdev,
			  .flags = O_RDONLY };

	make_entry(req, parent, name, &m);
}

void eq_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	struct make m = { .mode = (mode & 07777) | S_IFDIR };

	make_entry(req, parent, name, &m);
}

void eq_op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	struct make m = { .mode = S_IFLNK | 0777, .target = target };

	make_entry(req, parent, name, &m);
}

/* Make a file and open it; name NULL: one without a name. -EEXIST when there is one. */
static int create_new(fuse_req_t req, struct eq_node *dir, const char *name, mode_t mode, int flags,
		      struct eq_node **n, struct eq_file **file)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct make m = { .mode = (mode & 07777) | S_IFREG, .flags = eq_file_flags(flags),
			  .fd = -1 };
	char path[EQ_PROC_SIZE];
	struct eq_found f = { .fd = -1 };
	int rc;

	*n = NULL;
	*file = NULL;
	eq_trim_pace(fs);
	pthread_rwlock_rdlock(&fs->names);
	rc = name ? check_free(dir, name) : 0;
	if (!rc)
		rc = make(req, dir, name, &m);
	if (rc)
		goto out;
	eq_proc_path(path, m.fd);
	f.fd = open(path, O_PATH | O_CLOEXEC);
	if (f.fd < 0 || fstat(f.fd, &f.st)) {
		rc = -errno;
		if (f.fd >= 0)
			close(f.fd);
	}
	if (!rc)
		rc = eq_node_take(&fs->nodes, &f, name ? dir : NULL, name, true, n);
	if (!rc)
		rc = eq_file_made(fs, *n, m.fd, flags, file);
	if (rc)
		close(m.fd);
out:
	pthread_rwlock_unlock(&fs->names);
	return rc;
}

/* Answer that n was made, or found, and opened as file; or upon an error, rc, undo that. */
static void reply_create(fuse_req_t req, int rc, struct eq_node *n, struct eq_file *file, bool keep,
			 struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct fuse_entry_param e;

	if (!rc)
		rc = entry_fill(fs, n, &e);
	if (rc) {
		if (file)
			eq_file_close(fs, file);
		if (n)
			eq_node_forget(&fs->nodes, n, 1);
		eq_reply(req, rc);
		return;
	}
	eq_file_answer(req, file, keep, fi);
	if (fuse_reply_create(req, &e, fi) == -ENOENT) {
		eq_file_unopened(fs, file);
		eq_node_forget(&fs->nodes, n, 1);
	}
}

void eq_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		  struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *dir = eq_node_of(fs, parent), *n = NULL;
	struct eq_file *file = NULL;
	bool keep = false;
	int rc;

	rc = eq_name_check(fs, name, S_IFREG);
	if (!rc)
		rc = create_new(req, dir, name, mode, fi->flags, &n, &file);
	if (rc == -EEXIST && !(fi->flags & O_EXCL)) { /* it came behind the kernel's back */
		rc = take(fs, dir, name, &n);
		if (!rc)
			rc = eq_file_open(fs, n, fi->flags, &file, &keep);
	}
	reply_create(req, rc, n, file, keep, fi);
}

void eq_op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
	struct eq_file *file = NULL;
	struct eq_node *n = NULL;
	int rc = create_new(req, eq_node_of(eq_fs_of(req), parent), NULL, mode, fi->flags, &n, &file);

	reply_create(req, rc, n, file, false, fi);
}

/* A file that was made without a name has got its first one, and is in the store now. */
static void count_named(struct eq_fs *fs, struct eq_node *n)
{
	struct stat st;

	if (fstat(n->fd, &st))
		return;
	pthread_mutex_lock(&n->lock);
	if (n->writers)
		st = n->counted; /* the rest is counted when they are done */
	pthread_mutex_unlock(&n->lock);
	eq_stats_store(&fs->stats, NULL, &st);
	eq_dirty_set(fs, n);
}

void eq_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n = eq_node_of(fs, ino), *dir = eq_node_of(fs, newparent), *same = NULL;
	char path[EQ_PROC_SIZE], archive[NAME_MAX + 1];
	const char *disk = newname;
	bool first;
	struct stat st;
	int rc;

	rc = eq_name_check(fs, newname, n->type);
	if (rc) {
		eq_reply(req, rc);
		return;
	}
	pthread_rwlock_rdlock(&fs->names);
	first = S_ISREG(n->type) && fstat(n->fd, &st) == 0 && !st.st_nlink;
	rc = n->swapped ? -ESTALE : check_free(dir, newname);
	if (!rc && n->archive) {
		rc = eq_name_archive(newname, archive);
		disk = archive;
	}
	eq_proc_path(path, n->fd);
	if (!rc && linkat(AT_FDCWD, path, dir->fd, disk, AT_SYMLINK_FOLLOW))
		rc = -errno;
	if (!rc && first)
		count_named(fs, n);
	pthread_rwlock_unlock(&fs->names);
	if (!rc)
		rc = take(fs, dir, newname, &same);
	reply_entry(req, same, 0, rc);
}

/* ---- removing ----------------------------------------------------------------------- */

/* A file that is being written was last counted as it was before that. */
static void count_gone(struct eq_fs *fs, struct eq_node *n)
{
	struct stat st;

	if (!S_ISREG(n->type) || eq_attr_get(fs, n, &st))
		return;
	pthread_mutex_lock(&n->lock);
	if (n->writers)
		st = n->counted;
	pthread_mutex_unlock(&n->lock);
	eq_stats_store(&fs->stats, &st, NULL);
	if (n->archive)
		atomic_fetch_sub(&fs->stats.archives, 1);
}

void eq_name_gone(struct eq_fs *fs, struct eq_node *n, struct eq_node *parent, const char *name)
{
	struct stat st;

	eq_node_remove(&fs->nodes, n, parent, name);
	if (fstat(n->fd, &st) == 0 && st.st_nlink > 0) {
		eq_compact_offer(fs, n); /* one link fewer may be what it waited for */
	} else {
		count_gone(fs, n);
		eq_compact_drop(fs, n);
		eq_hot_gone(fs->hot, n->dev, n->ino);
		eq_arcs_gone(&fs->arcs, n->dev, n->ino);
	}
}

static int do_unlink(struct eq_fs *fs, struct eq_node *dir, const char *name)
{
	char archive[NAME_MAX + 1];
	const char *disk = name;
	struct eq_found f;
	struct eq_node *n;
	int rc;

	rc = eq_name_stat(dir->fd, name, &f);
	if (!rc && f.archive) {
		rc = eq_name_archive(name, archive);
		disk = archive;
	} else if (!rc && S_ISREG(f.st.st_mode)) {
		rc = eq_name_bury(dir->fd, name); /* or it would rise now */
	}
	if (rc)
		return rc;
	n = eq_node_find(&fs->nodes, &f);
	if (unlinkat(dir->fd, disk, 0))
		rc = -errno;
	else if (n)
		eq_name_gone(fs, n, dir, name);
	eq_node_unref(&fs->nodes, n);
	return rc;
}

void eq_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct eq_fs *fs = eq_fs_of(req);
	int rc;

	pthread_rwlock_rdlock(&fs->names);
	rc = do_unlink(fs, eq_node_of(fs, parent), name);
	pthread_rwlock_unlock(&fs->names);
	eq_reply(req, rc);
}

static int do_rmdir(struct eq_node *dir, const char *name)
{
	long others;
	int fd;

	if (eq_tmp_is(name))
		return -ENOENT;
	if (unlinkat(dir->fd, name, AT_REMOVEDIR) == 0)
		return 0;
	if (errno != ENOTEMPTY && errno != EEXIST)
		return -errno;
	/* Perhaps it only looks so to us. */
	fd = eq_open_in(dir->fd, name, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	others = eq_scan_sweep(fd);
	close(fd);
	if (others)
		return others < 0 ? (int)others : -ENOTEMPTY;
	return unlinkat(dir->fd, name, AT_REMOVEDIR) ? -errno : 0;
}

void eq_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_found f;
	struct eq_node *dir = eq_node_of(fs, parent), *n = NULL;
	int rc;

	pthread_rwlock_rdlock(&fs->names);
	rc = eq_name_stat(dir->fd, name, &f);
	if (!rc)
		n = eq_node_find(&fs->nodes, &f);
	if (!rc)
		rc = f.archive ? -ENOTDIR : do_rmdir(dir, name);
	if (!rc && n)
		eq_node_remove(&fs->nodes, n, dir, name);
	pthread_rwlock_unlock(&fs->names);
	eq_node_unref(&fs->nodes, n);
	eq_reply(req, rc);
}
