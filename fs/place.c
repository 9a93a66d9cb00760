/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "place.h"

int eq_place_up(int dirfd, struct eq_found *f)
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
		end = is || eq_place_up(at.fd, &up);
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

int eq_place_take(struct eq_fs *fs, struct eq_found *f, bool kernel, struct eq_node **out)
{
	if (!inside(fs, f)) {
		close(f->fd);
		return -ESTALE;
	}
	return eq_node_take(&fs->nodes, f, NULL, NULL, kernel, out);
}

/* The directory in which the file of that number was last seen, with a reference; or NULL. */
static struct eq_node *last_dir(struct eq_fs *fs, uint64_t id)
{
	struct eq_node *dir;
	struct eq_found f;

	if (eq_node_last_dir(&fs->nodes, id, &dir, &f))
		return NULL;
	if (!dir) {
		if (S_ISDIR(f.st.st_mode))
			return eq_place_take(fs, &f, false, &dir) ? NULL : dir;
		close(f.fd);
		return NULL;
	}
	f.fd = dir->fd;
	if (S_ISDIR(dir->type) && fstat(f.fd, &f.st) == 0 && inside(fs, &f))
		return dir;
	eq_node_unref(&fs->nodes, dir);
	return NULL;
}

/* Is this entry of the directory a name of the file? name: as the mount shows it. */
static bool names(int dirfd, const struct dirent *e, const struct eq_found *file,
		  char name[NAME_MAX + 1])
{
	struct eq_found f;

	if (e->d_ino != file->st.st_ino || strlen(e->d_name) > NAME_MAX)
		return false;
	strcpy(name, e->d_name);
	if (file->archive && eq_name_is_archive(name))
		name[strlen(name) - strlen(EQ_SUFFIX)] = '\0';
	return eq_name_stat(dirfd, name, &f) == 0 && f.archive == file->archive &&
	       same(&f.st, &file->st);
}

static int search(int dirfd, const struct eq_found *file, char name[NAME_MAX + 1])
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e = NULL;

	if (!d && fd >= 0)
		close(fd);
	while (d && (e = readdir(d)) && !names(dirfd, e, file, name))
		;
	if (d)
		closedir(d);
	return e ? 0 : -ENOENT;
}

int eq_place_take_file(struct eq_fs *fs, uint64_t id, const struct eq_found *file,
		       struct eq_node **out)
{
	struct eq_node *dir = last_dir(fs, id);
	char name[NAME_MAX + 1];
	struct eq_found f;
	int rc = -ESTALE;

	if (!dir)
		return rc;
	if (search(dir->fd, file, name) == 0) {
		pthread_rwlock_rdlock(&fs->names);
		if (eq_name_find(dir->fd, name, &f) == 0)
			rc = eq_node_take(&fs->nodes, &f, dir, name, true, out);
		pthread_rwlock_unlock(&fs->names);
	}
	eq_node_unref(&fs->nodes, dir);
	return rc;
}

int eq_place_find(struct eq_fs *fs, struct eq_node *n, struct eq_node **parent,
		  char name[NAME_MAX + 1])
{
	struct eq_found file = { .fd = -1, .archive = n->archive }, at;
	struct eq_node *dir;
	int rc = eq_node_place(&fs->nodes, n, parent, name);

	if (!rc)
		return rc;
	dir = last_dir(fs, n->id);
	if (!dir)
		return rc;
	file.st.st_dev = n->dev;
	file.st.st_ino = n->ino;
	if (search(dir->fd, &file, name) == 0) { /* which may take long; once more under the lock */
		pthread_rwlock_rdlock(&fs->names);
		if (eq_name_stat(dir->fd, name, &at) == 0 && at.archive == n->archive &&
		    at.st.st_ino == n->ino && at.st.st_dev == n->dev)
			(void)eq_node_move(&fs->nodes, n, dir, name);
		rc = eq_node_place(&fs->nodes, n, parent, name);
		pthread_rwlock_unlock(&fs->names);
	}
	eq_node_unref(&fs->nodes, dir);
	return rc;
}
