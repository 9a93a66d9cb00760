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
	if (S_ISDIR(f->st.st_mode) && !inside(fs, f)) {
		close(f->fd);
		return -ESTALE;
	}
	return eq_node_take(&fs->nodes, f, NULL, NULL, kernel, out);
}

/* Is this entry of the directory a name of n? Then it is from now on where n is. */
static bool names(struct eq_fs *fs, struct eq_node *dir, const struct dirent *e, struct eq_node *n)
{
	char name[NAME_MAX + 1];
	struct eq_found f;

	if (e->d_ino != n->ino || strlen(e->d_name) > NAME_MAX)
		return false;
	strcpy(name, e->d_name);
	if (n->archive && eq_name_is_archive(name))
		name[strlen(name) - strlen(EQ_SUFFIX)] = '\0';
	return eq_name_stat(dir->fd, name, &f) == 0 && f.archive == n->archive &&
	       f.st.st_ino == n->ino && f.st.st_dev == n->dev &&
	       eq_node_move(&fs->nodes, n, dir, name) == 0;
}

static void search(struct eq_fs *fs, struct eq_node *dir, struct eq_node *n)
{
	int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!d && fd >= 0)
		close(fd);
	while (d && (e = readdir(d)) && !names(fs, dir, e, n))
		;
	if (d)
		closedir(d);
}

int eq_place_find(struct eq_fs *fs, struct eq_node *n, struct eq_node **parent,
		  char name[NAME_MAX + 1])
{
	struct eq_node *dir;
	struct eq_found f;
	int rc = eq_node_place(&fs->nodes, n, parent, name);

	if (!rc || eq_node_last_dir(&fs->nodes, n, &dir, &f))
		return rc;
	if (!dir && eq_place_take(fs, &f, false, &dir))
		return rc;
	pthread_rwlock_rdlock(&fs->names);
	if (S_ISDIR(dir->type))
		search(fs, dir, n);
	rc = eq_node_place(&fs->nodes, n, parent, name);
	pthread_rwlock_unlock(&fs->names);
	eq_node_unref(&fs->nodes, dir);
	return rc;
}
