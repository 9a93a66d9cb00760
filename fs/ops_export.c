/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel asks when it has a file handle and no name: a number that it may have
 * forgotten, or made up by whoever gave it the handle, and the parent of a directory.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "compact.h"
#include "ops.h"
#include "trim.h"

static int open_up(int dirfd, struct eq_found *f)
{
	int rc = 0;

	f->archive = false;
	f->fd = openat(dirfd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (f->fd < 0 || fstat(f->fd, &f->st))
		rc = -errno;
	if (rc && f->fd >= 0)
		close(f->fd);
	return rc;
}

static bool same(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev;
}

/* Is the directory in the store still? Nobody but the root's owner could have moved it
 * out, but a handle must not lead there. */
static bool inside(struct eq_fs *fs, const struct eq_found *dir)
{
	struct eq_found at = *dir, up;
	struct stat root;
	bool is, end;

	if (fstat(fs->nodes.root->fd, &root))
		return false;
	for (;;) {
		is = same(&at.st, &root);
		end = is || open_up(at.fd, &up);
		if (at.fd != dir->fd)
			close(at.fd);
		if (end)
			return is;
		if (same(&at.st, &up.st)) { /* the root of all */
			close(up.fd);
			return false;
		}
		at = up;
	}
}

/* The node of what was opened without a name. Takes f->fd over. */
static int take_nameless(struct eq_fs *fs, struct eq_found *f, struct eq_node **out)
{
	if (S_ISDIR(f->st.st_mode) && !inside(fs, f)) {
		close(f->fd);
		return -ESTALE;
	}
	return eq_node_take(&fs->nodes, f, NULL, NULL, true, out);
}

int eq_export_self(struct eq_fs *fs, fuse_ino_t ino, struct eq_node **out)
{
	struct eq_node *n;
	struct eq_found f;
	int rc;

	*out = NULL;
	eq_trim_pace(fs);
	pthread_rwlock_rdlock(&fs->names);
	rc = eq_node_by_id(&fs->nodes, ino, &n, &f);
	if (!rc)
		rc = n ? eq_node_show(&fs->nodes, n) : take_nameless(fs, &f, &n);
	pthread_rwlock_unlock(&fs->names);
	if (rc)
		return rc;
	if (eq_ino_of(fs, n) != ino) {
		eq_node_forget(&fs->nodes, n, 1);
		return -ESTALE;
	}
	if (S_ISREG(n->type))
		eq_compact_seen(fs, n);
	*out = n;
	return 0;
}

int eq_export_parent(struct eq_fs *fs, struct eq_node *n, struct eq_node **out)
{
	char name[NAME_MAX + 1];
	struct eq_found f;
	int rc;

	*out = NULL;
	eq_trim_pace(fs);
	pthread_rwlock_rdlock(&fs->names);
	if (eq_node_place(&fs->nodes, n, out, name) == 0) {
		rc = eq_node_show(&fs->nodes, *out);
	} else {
		rc = open_up(n->fd, &f);
		if (!rc)
			rc = take_nameless(fs, &f, out);
	}
	pthread_rwlock_unlock(&fs->names);
	return rc;
}
