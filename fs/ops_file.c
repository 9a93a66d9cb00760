/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "compact.h"
#include "ops.h"
#include "passthrough.h"

/* For so long after an encode the kernel may believe in the plain file: EQ_TIMEOUT, rounded up. */
#define SENT_ON_SECONDS 2

/* ---- handles ---------------------------------------------------------------- */

int eq_file_flags(int flags)
{
	/* Not O_APPEND: the kernel has made an offset of it. Not O_DIRECT: our
	 * buffers are not aligned for it. */
	return flags & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC);
}

static void file_free(struct eq_fs *fs, struct eq_file *f)
{
	eq_handle_del(fs, &f->handle);
	pthread_mutex_lock(&f->node->lock);
	f->node->files--;
	pthread_mutex_unlock(&f->node->lock);
	if (f->fd >= 0)
		close(f->fd);
	eq_hot_put(fs->hot, f->copy);
	eq_ahead_forget(fs->ahead, &f->stream);
	eq_arc_put(&fs->arcs, f->arc);
	pthread_mutex_destroy(&f->lock);
	eq_node_unref(&fs->nodes, f->node);
	free(f);
}

static void file_drop(struct eq_fs *fs, struct eq_handle *h)
{
	file_free(fs, (struct eq_file *)h);
}

static struct eq_file *file_new(struct eq_fs *fs, struct eq_node *n)
{
	struct eq_file *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->fd = -1;
	f->node = n;
	pthread_mutex_lock(&n->lock); /* from here on it does not become an archive */
	n->files++;
	pthread_mutex_unlock(&n->lock);
	pthread_mutex_init(&f->lock, NULL);
	eq_node_ref(&fs->nodes, n);
	eq_handle_add(fs, &f->handle, file_drop);
	return f;
}

/* Of a file whose writes do not come by us. Should eqfs be killed before it hears of
 * the end, such a file stays plain. */
static bool written(struct eq_node *n)
{
	struct stat now;
	bool yes;

	if (fstat(n->fd, &now))
		return true;
	pthread_mutex_lock(&n->lock);
	yes = now.st_size != n->unwritten.size ||
	      eq_time_compare(&now.st_mtim, &n->unwritten.mtime) != 0;
	pthread_mutex_unlock(&n->lock);
	return yes;
}

void eq_file_close(struct eq_fs *fs, struct eq_file *f)
{
	if (f->writer && f->passed && written(f->node))
		eq_dirty_set(fs, f->node);
	if (f->writer)
		eq_writer_end(fs, f->node);
	file_free(fs, f);
}

static int open_node(struct eq_node *n, int flags)
{
	char path[EQ_PROC_SIZE];
	int fd;

	eq_proc_path(path, n->fd);
	fd = open(path, eq_file_flags(flags) | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * Has the file lost its name to another one behind our back, as by an eqar in the
 * store? What would be written to it is lost. Upon ESTALE the kernel looks the name
 * up again.
 */
static bool replaced(struct eq_fs *fs, struct eq_node *n, int fd)
{
	char name[NAME_MAX + 1];
	struct eq_node *parent;
	struct stat st;

	if (fstat(fd, &st) || st.st_nlink > 0 || eq_node_place(&fs->nodes, n, &parent, name))
		return false;
	eq_node_unref(&fs->nodes, parent);
	return true;
}

/* Has nobody but us changed the file since it was last opened? */
static bool unchanged(struct eq_node *n, int fd)
{
	struct stat st;
	bool same;

	if (fstat(fd, &st))
		return false;
	pthread_mutex_lock(&n->lock);
	same = eq_time_compare(&n->seen, &st.st_mtim) == 0;
	n->seen = st.st_mtim;
	pthread_mutex_unlock(&n->lock);
	return same;
}

static int open_write(struct eq_fs *fs, struct eq_file *f, int flags)
{
	struct eq_node *n = f->node;
	int rc = 0, fd;

	pthread_mutex_lock(&n->change);
	if (n->archive)
		rc = eq_restore(fs, n, flags & O_TRUNC);
	if (rc)
		goto out;
	pthread_rwlock_rdlock(&fs->names);
	rc = eq_writer_begin(fs, n);
	pthread_rwlock_unlock(&fs->names);
	if (rc)
		goto out;
	fd = open_node(n, flags);
	if (fd >= 0 && replaced(fs, n, fd)) {
		close(fd);
		fd = -ESTALE;
	}
	if (fd < 0) {
		rc = fd;
		eq_writer_end(fs, n);
		goto out;
	}
	f->fd = fd;
	f->writer = true;
	if (flags & O_TRUNC)
		eq_dirty_set(fs, n);
out:
	pthread_mutex_unlock(&n->change);
	return rc;
}

int eq_file_open(struct eq_fs *fs, struct eq_node *n, int flags, struct eq_file **out, bool *keep)
{
	struct eq_file *f;
	int rc = 0;

	*out = NULL;
	*keep = true;
	if (!S_ISREG(n->type))
		return S_ISDIR(n->type) ? -EISDIR : -ENXIO;
	f = file_new(fs, n);
	if (!f)
		return -ENOMEM;
	if ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC) {
		rc = open_write(fs, f, flags);
	} else if (n->archive) {
		rc = eq_attr_archive(fs, n, &f->arc);
		if (rc && !n->archive) /* restored meanwhile */
			rc = 0;
	}
	if (!rc && f->fd < 0 && !f->arc) {
		rc = open_node(n, O_RDONLY);
		if (rc >= 0) {
			f->fd = rc;
			rc = 0;
		}
	}
	if (rc) {
		file_free(fs, f);
		return rc;
	}
	pthread_mutex_lock(&n->lock);
	*keep = !n->outdated && !n->twice;
	pthread_mutex_unlock(&n->lock);
	if (f->fd >= 0)
		*keep &= unchanged(n, f->fd);
	if (f->arc && fs->hot)
		f->copy = eq_hot_get(fs->hot, f->arc);
	*out = f;
	return 0;
}

int eq_file_made(struct eq_fs *fs, struct eq_node *n, int fd, int flags, struct eq_file **out)
{
	struct eq_file *f = file_new(fs, n);
	int rc;

	*out = f;
	if (!f)
		return -ENOMEM;
	if ((flags & O_ACCMODE) != O_RDONLY) {
		rc = eq_writer_begin(fs, n);
		if (rc) {
			file_free(fs, f);
			*out = NULL;
			return rc;
		}
		f->writer = true;
	}
	f->fd = fd;
	return 0;
}

/* The descriptor of the plain file, also of a file that was an archive when it
 * was opened. */
static int file_fd(struct eq_file *f)
{
	int fd = f->fd;

	if (fd >= 0)
		return fd;
	pthread_mutex_lock(&f->lock);
	fd = f->fd;
	if (fd < 0) {
		fd = open_node(f->node, O_RDONLY);
		if (fd >= 0)
			f->fd = fd;
	}
	pthread_mutex_unlock(&f->lock);
	return fd;
}

/*
 * For a moment the kernel still opens the plain file in place of the archive that has its
 * name by now, with other contents. Upon ESTALE it looks the name up at once. Who then
 * comes again had no name for it: /proc/self/fd, say.
 */
static bool send_on(struct eq_node *n, pid_t who)
{
	struct timespec now;
	bool known = false;
	unsigned i;

	if (!n->swapped)
		return false;
	clock_gettime(CLOCK_MONOTONIC, &now);
	now.tv_sec -= SENT_ON_SECONDS;
	pthread_mutex_lock(&n->lock);
	known = eq_time_compare(&n->swapped_at, &now) < 0; /* or the archive is the same */
	for (i = 0; i < EQ_NODE_SENT_ON && i < n->n_sent_on; i++)
		known |= n->sent_on[i] == who;
	if (!known)
		n->sent_on[n->n_sent_on++ % EQ_NODE_SENT_ON] = who;
	pthread_mutex_unlock(&n->lock);
	return !known;
}

void eq_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_node *n = eq_node_of(fs, ino);
	struct eq_file *f;
	bool keep;
	int rc;

	eq_session_tune(fs);
	rc = send_on(n, fuse_req_ctx(req)->pid) ? -ESTALE
						: eq_file_open(fs, n, fi->flags, &f, &keep);
	if (rc) {
		eq_reply(req, rc);
		return;
	}
	eq_file_answer(req, f, keep, fi);
	if (fuse_reply_open(req, fi) == -ENOENT) /* interrupted: no release comes */
		eq_file_unopened(fs, f);
}

void eq_file_answer(fuse_req_t req, struct eq_file *f, bool keep, struct fuse_file_info *fi)
{
	int fd = f->copy ? eq_hot_fd(f->copy) : f->arc ? -1 : (int)f->fd;

	fi->fh = (uintptr_t)f;
	fi->keep_cache = keep;
	eq_pass_open(req, eq_fs_of(req), f, fd, fi);
}

void eq_file_unopened(struct eq_fs *fs, struct eq_file *f)
{
	eq_pass_close(fs, f);
	eq_file_close(fs, f);
}

void eq_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	eq_pass_close(eq_fs_of(req), eq_file_of(fi));
	eq_file_close(eq_fs_of(req), eq_file_of(fi));
	eq_reply(req, 0);
}

/* ---- reading ------------------------------------------------------------------ */

/* The bytes are those of a file below, or of a decoded copy in memory. */
static void read_below(fuse_req_t req, int fd, enum eq_served what, size_t size, off_t off)
{
	struct eq_fs *fs = eq_fs_of(req);
	char *buf = eq_scratch(fs, size);
	size_t got = 0;
	ssize_t n;

	if (fd < 0 || !buf) {
		eq_reply(req, fd < 0 ? fd : -ENOMEM);
		return;
	}
	while (got < size) {
		n = pread(fd, buf + got, size - got, off + (off_t)got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			eq_stats_read(&fs->stats, what, -1);
			eq_reply(req, -errno);
			return;
		}
		if (n == 0)
			break;
		got += (size_t)n;
	}
	eq_stats_read(&fs->stats, what, (int64_t)got);
	fuse_reply_buf(req, buf, got);
}

static int get_pieces(struct eq_fs *fs, struct eq_file *f, uint64_t off, size_t len,
		      struct eq_piece *p)
{
	struct eq_error err = { "" };
	int n;

	do /* -EAGAIN: another reader has failed at it, and has said so */
		n = eq_cache_get(fs->cache, f->arc, off, len, p, &err);
	while (n == -EAGAIN);
	if (n < 0) {
		eq_attr_complain(fs, f->node, err.text);
		eq_stats_read(&fs->stats, EQ_SERVED_ARCHIVE, -1);
	}
	return n;
}

static size_t sum(const struct eq_piece *p, int n)
{
	size_t len = 0;

	while (n > 0)
		len += p[--n].len;
	return len;
}

static void read_archive(fuse_req_t req, struct eq_file *f, size_t size, off_t off, bool direct)
{
	struct eq_fs *fs = eq_fs_of(req);
	uint64_t end = f->arc->info->size, at = (uint64_t)off;
	struct eq_piece p[EQ_PIECES];
	struct iovec iov[EQ_PIECES];
	size_t len, got = 0;
	char *buf;
	int n, i;

	if (at >= end) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	len = size < end - at ? size : (size_t)(end - at);
	eq_ahead_note(fs->ahead, &f->stream, f->arc, at, len);
	n = get_pieces(fs, f, at, len, p);
	if (n < 0) {
		eq_reply(req, n);
		return;
	}
	if (sum(p, n) == len) {
		for (i = 0; i < n; i++) {
			iov[i].iov_base = (void *)(uintptr_t)p[i].data;
			iov[i].iov_len = p[i].len;
		}
		eq_stats_read(&fs->stats, EQ_SERVED_ARCHIVE, (int64_t)len);
		fuse_reply_iov(req, iov, n);
		eq_cache_release(fs->cache, p, n, !direct);
		return;
	}
	/* Many small tensors: together first. */
	buf = eq_scratch(fs, len);
	for (;;) {
		for (i = 0; buf && i < n; got += p[i++].len)
			memcpy(buf + got, p[i].data, p[i].len);
		eq_cache_release(fs->cache, p, n, !direct);
		if (!buf || got == len)
			break;
		n = get_pieces(fs, f, at + got, len - got, p);
		if (n < 0) {
			eq_reply(req, n);
			return;
		}
	}
	if (buf) {
		eq_stats_read(&fs->stats, EQ_SERVED_ARCHIVE, (int64_t)len);
		fuse_reply_buf(req, buf, len);
	} else {
		eq_reply(req, -ENOMEM);
	}
}

void eq_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct eq_file *f = eq_file_of(fi);

	(void)ino;
	if (f->copy && f->node->archive)
		read_below(req, eq_hot_fd(f->copy), EQ_SERVED_ARCHIVE, size, off);
	else if (f->arc && f->node->archive)
		read_archive(req, f, size, off, fi->flags & O_DIRECT);
	else
		read_below(req, file_fd(f), EQ_SERVED_PLAIN, size, off);
}

void eq_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct eq_file *f = eq_file_of(fi);
	off_t size;
	int fd;

	(void)ino;
	if (f->arc && f->node->archive) { /* no holes */
		size = (off_t)f->arc->info->size;
		if (off < 0 || off >= size)
			eq_reply(req, -ENXIO);
		else
			fuse_reply_lseek(req, whence == SEEK_HOLE ? size : off);
		return;
	}
	fd = file_fd(f);
	if (fd >= 0)
		off = lseek(fd, off, whence);
	if (fd < 0 || off < 0)
		eq_reply(req, fd < 0 ? fd : -errno);
	else
		fuse_reply_lseek(req, off);
}

/* ---- writing ------------------------------------------------------------------ */

void eq_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
		 struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_file *f = eq_file_of(fi);
	size_t done = 0;
	ssize_t n;

	(void)ino;
	eq_dirty_set(fs, f->node);
	while (done < size) {
		n = pwrite(f->fd, buf + done, size - done, off + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	if (!done && size) {
		eq_reply(req, -errno);
		return;
	}
	eq_count(&fs->stats.writes, 1);
	eq_count(&fs->stats.written_bytes, done);
	fuse_reply_write(req, done);
}

void eq_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct eq_file *f = eq_file_of(fi);
	int fd, rc = 0;

	(void)ino;
	if (f->writer) { /* some filesystems tell of write errors here only */
		fd = dup(f->fd);
		if (fd < 0 || close(fd))
			rc = -errno;
	}
	eq_reply(req, rc);
}

void eq_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct eq_file *f = eq_file_of(fi);
	int fd, rc = 0;

	(void)ino;
	if (!f->arc || !f->node->archive) { /* archives were synced when they were made */
		fd = file_fd(f);
		if (fd < 0)
			rc = fd;
		else if (datasync ? fdatasync(fd) : fsync(fd))
			rc = -errno;
	}
	eq_reply(req, rc);
}

void eq_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
		     struct fuse_file_info *fi)
{
	struct eq_file *f = eq_file_of(fi);

	(void)ino;
	eq_dirty_set(eq_fs_of(req), f->node);
	eq_reply(req, fallocate(f->fd, mode, off, len) ? -errno : 0);
}

void eq_op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
			   struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
			   struct fuse_file_info *fi_out, size_t len, int flags)
{
	struct eq_file *in = eq_file_of(fi_in), *out = eq_file_of(fi_out);
	ssize_t n;
	int fd;

	(void)ino_in, (void)ino_out;
	if (in->arc && in->node->archive) { /* the kernel then reads and writes */
		eq_reply(req, -EOPNOTSUPP);
		return;
	}
	fd = file_fd(in);
	if (fd < 0) {
		eq_reply(req, fd);
		return;
	}
	eq_dirty_set(eq_fs_of(req), out->node);
	n = copy_file_range(fd, &off_in, out->fd, &off_out, len, (unsigned)flags);
	if (n < 0)
		eq_reply(req, errno == EXDEV ? -EOPNOTSUPP : -errno);
	else
		fuse_reply_write(req, (size_t)n);
}
