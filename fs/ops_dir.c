/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories. A listing is read whole when it is begun, because whether an
 * archive is shown depends on the plain names; offsets are indices into it, so
 * they stay valid whatever happens to the directory meanwhile. (An NFS server opens
 * the directory anew for each reply, and goes on in a new listing.) An open directory
 * holds no descriptor: there may be as many as our clients may have together.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops.h"

struct entry {
	size_t name;            /* offset in names */
	ino_t ino;
	mode_t type;
	bool archive;           /* the name is without the suffix already */
};

struct eq_dir {
	struct eq_handle handle;
	pthread_mutex_t lock;
	char *names;
	size_t names_len, names_max;
	struct entry *entry;
	size_t n, max;
	bool loaded;
};

static struct eq_dir *dir_of(const struct fuse_file_info *fi)
{
	return (struct eq_dir *)(uintptr_t)fi->fh;
}

static void dir_free(struct eq_fs *fs, struct eq_dir *d)
{
	eq_handle_del(fs, &d->handle);
	pthread_mutex_destroy(&d->lock);
	free(d->names);
	free(d->entry);
	free(d);
}

static void dir_drop(struct eq_fs *fs, struct eq_handle *h)
{
	dir_free(fs, (struct eq_dir *)h);
}

static int add(struct eq_dir *d, const char *name, size_t len, const struct entry *e)
{
	size_t max;
	void *p;

	if (d->n == d->max) {
		max = d->max ? 2 * d->max : 64;
		p = realloc(d->entry, max * sizeof(*d->entry));
		if (!p)
			return -ENOMEM;
		d->entry = p;
		d->max = max;
	}
	while (d->names_len + len + 1 > d->names_max) {
		max = d->names_max ? 2 * d->names_max : 4096;
		p = realloc(d->names, max);
		if (!p)
			return -ENOMEM;
		d->names = p;
		d->names_max = max;
	}
	d->entry[d->n] = *e;
	d->entry[d->n++].name = d->names_len;
	memcpy(d->names + d->names_len, name, len);
	d->names[d->names_len + len] = '\0';
	d->names_len += len + 1;
	return 0;
}

static size_t hash(const char *s)
{
	size_t h = 5381;

	for (; *s; s++)
		h = h * 33 + (unsigned char)*s;
	return h;
}

/* Drop archives whose plain file is there as well. */
static int drop_hidden(struct eq_dir *d)
{
	size_t size = 64, i, k, out = 0, *table;
	const char *name;

	while (size < 2 * d->n)
		size *= 2;
	table = calloc(size, sizeof(*table)); /* index + 1 of plain entries */
	if (!table)
		return -ENOMEM;
	for (i = 0; i < d->n; i++) {
		if (d->entry[i].archive)
			continue;
		for (k = hash(d->names + d->entry[i].name) & (size - 1); table[k];)
			k = (k + 1) & (size - 1);
		table[k] = i + 1;
	}
	/* Entries move towards the front, so the table is asked before that. */
	for (i = 0; i < d->n; i++) {
		bool plain = false;

		if (!d->entry[i].archive)
			continue;
		name = d->names + d->entry[i].name;
		for (k = hash(name) & (size - 1); table[k] && !plain; k = (k + 1) & (size - 1))
			plain = !strcmp(d->names + d->entry[table[k] - 1].name, name);
		if (plain)
			d->entry[i].type = 0; /* to be dropped */
	}
	for (i = 0; i < d->n; i++)
		if (!d->entry[i].archive || d->entry[i].type)
			d->entry[out++] = d->entry[i];
	d->n = out;
	free(table);
	return 0;
}

static int open_dir(const struct eq_node *n)
{
	int fd = openat(n->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int load(struct eq_dir *d, const struct eq_node *n)
{
	int rc = 0, fd = open_dir(n);
	bool archives = false;
	struct dirent *de;
	struct stat st;
	DIR *dir;

	if (fd < 0)
		return fd;
	dir = fdopendir(fd);
	if (!dir) {
		rc = -errno;
		close(fd);
		return rc;
	}
	d->n = d->names_len = 0;
	while (!rc && (errno = 0, de = readdir(dir))) {
		struct entry e = { .ino = de->d_ino, .type = DTTOIF(de->d_type) };
		size_t len = strlen(de->d_name);

		if (eq_tmp_is(de->d_name))
			continue;
		if (de->d_type == DT_UNKNOWN) {
			if (fstatat(fd, de->d_name, &st, AT_SYMLINK_NOFOLLOW))
				continue; /* gone again */
			e.type = st.st_mode & S_IFMT;
		}
		if (S_ISREG(e.type) && eq_name_is_archive(de->d_name)) {
			len -= sizeof(EQ_SUFFIX) - 1;
			e.archive = archives = true;
		}
		rc = add(d, de->d_name, len, &e);
		errno = 0;
	}
	if (!rc)
		rc = -errno;
	closedir(dir);
	if (!rc && archives)
		rc = drop_hidden(d);
	return rc;
}

void eq_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_dir *d = calloc(1, sizeof(*d));

	(void)ino; /* the kernel has checked that it may be read */
	if (!d) {
		eq_reply(req, -ENOMEM);
		return;
	}
	eq_handle_add(fs, &d->handle, dir_drop);
	pthread_mutex_init(&d->lock, NULL);
	fi->fh = (uintptr_t)d;
	if (fuse_reply_open(req, fi) == -ENOENT)
		dir_free(fs, d);
}

void eq_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		   struct fuse_file_info *fi)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct eq_dir *d = dir_of(fi);
	char *buf = eq_scratch(fs, size);
	size_t used = 0, need, i;
	int rc = buf ? 0 : -ENOMEM;

	pthread_mutex_lock(&d->lock);
	if (!rc && (off == 0 || !d->loaded)) {
		pthread_rwlock_rdlock(&fs->names);
		rc = load(d, eq_node_of(fs, ino));
		pthread_rwlock_unlock(&fs->names);
		d->loaded = !rc;
	}
	for (i = (size_t)off; !rc && i < d->n; i++) {
		struct stat st = { .st_ino = d->entry[i].ino, .st_mode = d->entry[i].type };

		need = fuse_add_direntry(req, buf + used, size - used,
					 d->names + d->entry[i].name, &st, (off_t)i + 1);
		if (need > size - used)
			break;
		used += need;
	}
	pthread_mutex_unlock(&d->lock);
	if (rc)
		eq_reply(req, rc);
	else
		fuse_reply_buf(req, buf, used);
}

void eq_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	dir_free(eq_fs_of(req), dir_of(fi));
	eq_reply(req, 0);
}

void eq_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	int fd = open_dir(eq_node_of(eq_fs_of(req), ino)), rc = fd < 0 ? fd : 0;

	(void)fi;
	if (!rc && (datasync ? fdatasync(fd) : fsync(fd)))
		rc = -errno;
	if (fd >= 0)
		close(fd);
	eq_reply(req, rc);
}
