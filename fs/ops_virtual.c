/* SPDX-License-Identifier: Apache-2.0 */
/*
 * .eqfs/stats in the root of the mount: a layer above the other operations. The
 * directory is found by name and never listed, so that copies, backups and
 * rsync --delete do not meet it. A real .eqfs in the store comes first, and then
 * there are no statistics.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

#define DIRECTORY ".eqfs"
#define STATS "stats"

/* No node has these numbers, and no file these inode numbers. */
enum { INO_DIR = 2, INO_STATS = 3 };
#define SHOWN(ino) (UINT64_MAX - (ino))

struct text {
	struct eq_handle handle;
	size_t len;
	char *data;
};

static bool is_virtual(fuse_ino_t ino)
{
	return ino == INO_DIR || ino == INO_STATS;
}

/* Does the name in this directory belong to us, unless the store has it? */
static bool is_ours(fuse_ino_t parent, const char *name)
{
	return parent == FUSE_ROOT_ID && !strcmp(name, DIRECTORY);
}

/* ---- finding ------------------------------------------------------------------- */

static void fill(struct eq_fs *fs, fuse_ino_t ino, struct stat *st)
{
	struct stat root;

	memset(st, 0, sizeof(*st));
	st->st_ino = SHOWN(ino);
	st->st_mode = ino == INO_DIR ? S_IFDIR | 0555 : S_IFREG | 0444;
	st->st_nlink = ino == INO_DIR ? 2 : 1;
	/* The owner's, so that who may look into the store may ask; sized 0, as in
	 * /proc: the text is made when it is opened. */
	if (fstat(fs->nodes.root->fd, &root) == 0) {
		st->st_uid = root.st_uid;
		st->st_gid = root.st_gid;
	}
	clock_gettime(CLOCK_REALTIME, &st->st_mtim);
	st->st_atim = st->st_ctim = st->st_mtim;
}

static void reply_entry(fuse_req_t req, fuse_ino_t ino)
{
	struct fuse_entry_param e = { .ino = ino, .generation = 1, .entry_timeout = EQ_TIMEOUT };

	fill(eq_fs_of(req), ino, &e.attr);
	fuse_reply_entry(req, &e);
}

static bool store_has(struct eq_fs *fs)
{
	struct eq_found f;

	return eq_name_stat(fs->nodes.root->fd, DIRECTORY, &f) != -ENOENT;
}

void eq_virtual_check(struct eq_fs *fs)
{
	if (store_has(fs))
		eq_log(&fs->log, EQ_LOG_WARN, "%s: has an entry " DIRECTORY
		       ", which is shown in place of the statistics", fs->m->store);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (is_ours(parent, name) && !store_has(eq_fs_of(req)))
		reply_entry(req, INO_DIR);
	else if (is_virtual(parent) && !strcmp(name, "."))
		reply_entry(req, parent);
	else if (parent == INO_DIR && !strcmp(name, ".."))
		eq_ops.lookup(req, FUSE_ROOT_ID, ".");
	else if (parent == INO_DIR && !strcmp(name, STATS))
		reply_entry(req, INO_STATS);
	else if (is_virtual(parent))
		eq_reply(req, -ENOENT);
	else
		eq_ops.lookup(req, parent, name);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	if (is_virtual(ino))
		fuse_reply_none(req);
	else
		eq_ops.forget(req, ino, n);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	size_t i, n = 0;

	for (i = 0; i < count; i++)
		if (!is_virtual(forgets[i].ino))
			forgets[n++] = forgets[i];
	eq_ops.forget_multi(req, n, forgets);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	if (!is_virtual(ino)) {
		eq_ops.getattr(req, ino, fi);
		return;
	}
	fill(eq_fs_of(req), ino, &st);
	fuse_reply_attr(req, &st, 0);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	eq_ops.statfs(req, is_virtual(ino) ? FUSE_ROOT_ID : ino);
}

/* ---- reading ------------------------------------------------------------------- */

static struct text *text_of(const struct fuse_file_info *fi)
{
	return (struct text *)(uintptr_t)fi->fh;
}

static void text_drop(struct eq_fs *fs, struct eq_handle *h)
{
	struct text *t = (struct text *)h;

	eq_handle_del(fs, h);
	free(t->data);
	free(t);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct text *t;

	if (!is_virtual(ino)) {
		eq_ops.open(req, ino, fi);
		return;
	}
	if ((fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & O_TRUNC) {
		eq_reply(req, -EPERM);
		return;
	}
	t = calloc(1, sizeof(*t));
	if (t)
		t->data = eq_stats_text(fs, &t->len);
	if (!t || !t->data) {
		free(t);
		eq_reply(req, -ENOMEM);
		return;
	}
	eq_handle_add(fs, &t->handle, text_drop);
	fi->fh = (uintptr_t)t;
	fi->direct_io = 1;
	if (fuse_reply_open(req, fi) == -ENOENT)
		text_drop(fs, &t->handle);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	const struct text *t;
	size_t left;
	char *buf;

	if (!is_virtual(ino)) {
		eq_ops.read(req, ino, size, off, fi);
		return;
	}
	t = text_of(fi);
	left = (uint64_t)off < t->len ? t->len - (size_t)off : 0;
	if (size > left)
		size = left;
	/* The reader may have closed the file before the reply has returned to us. */
	buf = eq_scratch(eq_fs_of(req), size);
	if (!buf) {
		eq_reply(req, -ENOMEM);
		return;
	}
	memcpy(buf, t->data + t->len - left, size);
	fuse_reply_buf(req, buf, size);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (!is_virtual(ino)) {
		eq_ops.release(req, ino, fi);
		return;
	}
	text_drop(eq_fs_of(req), &text_of(fi)->handle);
	eq_reply(req, 0);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (is_virtual(ino))
		fuse_reply_open(req, fi);
	else
		eq_ops.opendir(req, ino, fi);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	static const struct {
		const char *name;
		fuse_ino_t ino;
		mode_t type;
	} entries[] = {
		{ ".", INO_DIR, S_IFDIR }, { "..", INO_DIR, S_IFDIR }, { STATS, INO_STATS, S_IFREG },
	};
	char buf[256];
	size_t used = 0, need, i;

	if (!is_virtual(ino)) {
		eq_ops.readdir(req, ino, size, off, fi);
		return;
	}
	if (size > sizeof(buf))
		size = sizeof(buf);
	for (i = (size_t)off; i < sizeof(entries) / sizeof(entries[0]); i++) {
		struct stat st = { .st_ino = SHOWN(entries[i].ino), .st_mode = entries[i].type };

		need = fuse_add_direntry(req, buf + used, size - used, entries[i].name, &st,
					 (off_t)i + 1);
		if (need > size - used)
			break;
		used += need;
	}
	fuse_reply_buf(req, buf, used);
}

/* ---- nothing else ---------------------------------------------------------------- */

/* An operation on what does not belong to us; RC is what ours answers. */
#define PASS(op, ours, rc, params, args)         \
	static void op_##op params               \
	{                                        \
		if (ours)                        \
			eq_reply(req, rc);       \
		else                             \
			eq_ops.op args;          \
	}

PASS(releasedir, is_virtual(ino), 0,
     (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi), (req, ino, fi))
PASS(fsyncdir, is_virtual(ino), 0,
     (fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi),
     (req, ino, datasync, fi))
PASS(flush, is_virtual(ino), 0,
     (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi), (req, ino, fi))
PASS(fsync, is_virtual(ino), 0,
     (fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi),
     (req, ino, datasync, fi))
PASS(lseek, is_virtual(ino), -EINVAL,
     (fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi),
     (req, ino, off, whence, fi))
PASS(copy_file_range, is_virtual(ino) || is_virtual(out), -EOPNOTSUPP,
     (fuse_req_t req, fuse_ino_t ino, off_t off_in, struct fuse_file_info *fi_in, fuse_ino_t out,
      off_t off_out, struct fuse_file_info *fi_out, size_t len, int flags),
     (req, ino, off_in, fi_in, out, off_out, fi_out, len, flags))
PASS(setattr, is_virtual(ino), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi),
     (req, ino, attr, to_set, fi))
PASS(getxattr, is_virtual(ino), -ENODATA,
     (fuse_req_t req, fuse_ino_t ino, const char *name, size_t size), (req, ino, name, size))
PASS(listxattr, is_virtual(ino), -ENOTSUP, (fuse_req_t req, fuse_ino_t ino, size_t size),
     (req, ino, size))
PASS(setxattr, is_virtual(ino), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
      int flags), (req, ino, name, value, size, flags))
PASS(removexattr, is_virtual(ino), -EPERM, (fuse_req_t req, fuse_ino_t ino, const char *name),
     (req, ino, name))
PASS(mknod, is_virtual(ino), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, const char *name, mode_t mode, dev_t rdev),
     (req, ino, name, mode, rdev))
PASS(mkdir, is_virtual(ino), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, const char *name, mode_t mode), (req, ino, name, mode))
PASS(symlink, is_virtual(ino), -EPERM,
     (fuse_req_t req, const char *target, fuse_ino_t ino, const char *name),
     (req, target, ino, name))
PASS(create, is_virtual(ino), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, const char *name, mode_t mode, struct fuse_file_info *fi),
     (req, ino, name, mode, fi))
#ifdef HAVE_FUSE_TMPFILE
PASS(tmpfile, is_virtual(ino), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, mode_t mode, struct fuse_file_info *fi),
     (req, ino, mode, fi))
#endif
PASS(link, is_virtual(ino) || is_virtual(parent), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name),
     (req, ino, parent, name))
PASS(unlink, is_virtual(ino), -EPERM, (fuse_req_t req, fuse_ino_t ino, const char *name),
     (req, ino, name))
PASS(rmdir, is_virtual(ino) || (is_ours(ino, name) && !store_has(eq_fs_of(req))), -EPERM,
     (fuse_req_t req, fuse_ino_t ino, const char *name), (req, ino, name))

static void op_rename(fuse_req_t req, fuse_ino_t from, const char *name, fuse_ino_t to,
		      const char *newname, unsigned flags)
{
	bool ours = is_virtual(from) || is_virtual(to);

	/* The kernel believes in it for a second, whatever the store has by now. */
	if (!ours && (is_ours(from, name) || is_ours(to, newname)))
		ours = !store_has(eq_fs_of(req));
	if (ours)
		eq_reply(req, -EPERM);
	else
		eq_ops.rename(req, from, name, to, newname, flags);
}

/* Of the operations, readlink, write and fallocate cannot come for ours. */
void eq_ops_layer(struct fuse_lowlevel_ops *ops)
{
	*ops = eq_ops;
	ops->lookup = op_lookup;
	ops->forget = op_forget;
	ops->forget_multi = op_forget_multi;
	ops->getattr = op_getattr;
	ops->setattr = op_setattr;
	ops->mknod = op_mknod;
	ops->mkdir = op_mkdir;
	ops->unlink = op_unlink;
	ops->rmdir = op_rmdir;
	ops->symlink = op_symlink;
	ops->rename = op_rename;
#ifdef HAVE_FUSE_TMPFILE
	ops->tmpfile = op_tmpfile;
#endif
	ops->link = op_link;
	ops->create = op_create;
	ops->open = op_open;
	ops->read = op_read;
	ops->flush = op_flush;
	ops->release = op_release;
	ops->fsync = op_fsync;
	ops->lseek = op_lseek;
	ops->copy_file_range = op_copy_file_range;
	ops->opendir = op_opendir;
	ops->readdir = op_readdir;
	ops->releasedir = op_releasedir;
	ops->fsyncdir = op_fsyncdir;
	ops->statfs = op_statfs;
	ops->getxattr = op_getxattr;
	ops->listxattr = op_listxattr;
	ops->setxattr = op_setxattr;
	ops->removexattr = op_removexattr;
}
