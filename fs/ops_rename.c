/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Renaming. Each side may be a plain file or an archive, and what has to happen
 * in the store are then several steps; the lock of the names makes them one for
 * all who look through the mount, and their order keeps a crash from leaving
 * less than one of the two files under the new name.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compact.h"
#include "ops.h"

#define ENCODED_MEANWHILE 8      /* times that one of two files to be exchanged may be */

struct side {
	struct eq_node *dir, *node; /* node: with a reference, or NULL */
	const char *name;
	struct eq_found f;
	bool there;
	char archive[NAME_MAX + 1]; /* "" when the name is too long for one */
};

static int look(struct eq_fs *fs, struct side *s)
{
	int rc = eq_name_stat(s->dir->fd, s->name, &s->f);

	if (eq_name_archive(s->name, s->archive))
		s->archive[0] = '\0';
	if (rc && rc != -ENOENT)
		return rc;
	s->there = !rc;
	if (s->there)
		s->node = eq_node_find(&fs->nodes, &s->f);
	return 0;
}

static int rename_disk(const struct side *from, const struct side *to, bool archive, unsigned flags)
{
	return renameat2(from->dir->fd, archive ? from->archive : from->name, to->dir->fd,
			 archive ? to->archive : to->name, flags) ? -errno : 0;
}

/* An archive takes the place of a plain file: that one goes first, because it
 * would win, and comes back if the rest fails. */
static int archive_over_plain(struct side *from, struct side *to)
{
	struct eq_aside aside;
	int rc;

	if (S_ISDIR(to->f.st.st_mode))
		return -EISDIR;
	rc = eq_name_bury(to->dir->fd, to->name);
	if (!rc)
		rc = eq_aside_begin(&aside, to->dir->fd, to->name);
	if (rc)
		return rc;
	rc = rename_disk(from, to, true, 0);
	if (rc) /* if this fails, too, the next mount does it */
		(void)eq_aside_back(&aside);
	else
		(void)eq_aside_drop(&aside);
	return rc;
}

static int move(struct side *from, struct side *to)
{
	int rc;

	if (from->f.archive) {
		if (!to->archive[0])
			return -ENAMETOOLONG;
		if (to->there && !to->f.archive)
			return archive_over_plain(from, to);
		return rename_disk(from, to, true, 0);
	}
	if (to->there && to->f.archive && S_ISDIR(from->f.st.st_mode))
		return -ENOTDIR;
	/* The archive that the plain file hides must not show up behind it. */
	rc = S_ISREG(from->f.st.st_mode) ? eq_name_bury(from->dir->fd, from->name) : 0;
	if (rc)
		return rc;
	if (to->there && to->f.archive && from->node)
		eq_stale_mark(from->node->fd, true);
	rc = rename_disk(from, to, false, 0);
	if (!rc && !S_ISDIR(from->f.st.st_mode) && eq_name_bury(to->dir->fd, to->name))
		return 0; /* hidden anyhow, and marked */
	if (to->there && to->f.archive && from->node)
		eq_stale_mark(from->node->fd, false);
	return rc;
}

static int exchange(struct side *from, struct side *to)
{
	int rc;

	if (!to->there)
		return -ENOENT;
	if (from->f.archive != to->f.archive) /* encoded meanwhile: once more */
		return -ESTALE;
	if (from->f.archive)
		return rename_disk(from, to, true, RENAME_EXCHANGE);
	rc = S_ISREG(from->f.st.st_mode) ? eq_name_bury(from->dir->fd, from->name) : 0;
	if (!rc && S_ISREG(to->f.st.st_mode))
		rc = eq_name_bury(to->dir->fd, to->name);
	return rc ? rc : rename_disk(from, to, false, RENAME_EXCHANGE);
}

/* n is now at this place; what was written to it may be worth encoding there. */
static void moved(struct eq_fs *fs, struct eq_node *n, const struct side *to)
{
	if (!n)
		return;
	eq_node_move(&fs->nodes, n, to->dir, to->name);
	if (!S_ISREG(n->type) || n->archive || !fs->compact)
		return;
	if (eq_dirty_marked(fs, n))
		eq_dirty_set(fs, n);
	eq_compact_offer(fs, n);
}

/* May each have the other's name? */
static int check_names(struct eq_fs *fs, const struct side *from, const struct side *to,
		       unsigned flags)
{
	int rc = eq_name_check(fs, to->name, from->f.st.st_mode);

	if (!rc && flags & RENAME_EXCHANGE && to->there)
		rc = eq_name_check(fs, from->name, to->f.st.st_mode);
	return rc;
}

static int do_rename(struct eq_fs *fs, struct side *from, struct side *to, unsigned flags)
{
	int rc;

	rc = look(fs, from);
	if (!rc && !from->there)
		rc = -ENOENT;
	if (!rc)
		rc = look(fs, to);
	if (!rc)
		rc = check_names(fs, from, to, flags);
	if (!rc && flags & RENAME_NOREPLACE && to->there)
		rc = -EEXIST;
	if (rc)
		return rc;
	/* Two names of one file: nothing happens, says POSIX. */
	if (to->there && from->f.st.st_ino == to->f.st.st_ino &&
	    from->f.st.st_dev == to->f.st.st_dev && from->f.archive == to->f.archive)
		return 0;
	rc = flags & RENAME_EXCHANGE ? exchange(from, to) : move(from, to);
	if (rc)
		return rc;
	if (to->node && flags & RENAME_EXCHANGE)
		moved(fs, to->node, from);
	else if (to->node)
		eq_name_gone(fs, to->node, to->dir, to->name);
	moved(fs, from->node, to);
	return 0;
}

/* Make the name a plain file's, if it is an archive's. */
static int restore_at(struct eq_fs *fs, struct eq_node *dir, const char *name)
{
	struct eq_node *n = NULL;
	struct eq_found f;
	int rc = 0;

	pthread_rwlock_rdlock(&fs->names);
	if (eq_name_stat(dir->fd, name, &f) == 0 && f.archive)
		n = eq_node_find(&fs->nodes, &f);
	pthread_rwlock_unlock(&fs->names);
	if (!n)
		return 0;
	pthread_mutex_lock(&n->change);
	if (n->archive)
		rc = eq_restore(fs, n, false);
	pthread_mutex_unlock(&n->change);
	eq_node_unref(&fs->nodes, n);
	return rc;
}

/*
 * An archive cannot have a name as long as a plain file can, nor change places with what
 * is none. A lossy one stays plain then: not for a rename that is refused anyhow.
 */
static int restore_for(struct eq_fs *fs, struct side *from, struct side *to, unsigned flags)
{
	char archive[NAME_MAX + 1];
	int rc;

	from->there = eq_name_stat(from->dir->fd, from->name, &from->f) == 0;
	to->there = eq_name_stat(to->dir->fd, to->name, &to->f) == 0;
	if (!from->there)
		return 0;
	rc = check_names(fs, from, to, flags);
	if (rc)
		return rc;
	if (strlen(to->name) <= NAME_MAX && eq_name_archive(to->name, archive))
		return restore_at(fs, from->dir, from->name);
	if (!(flags & RENAME_EXCHANGE) || !to->there || from->f.archive == to->f.archive)
		return 0;
	return from->f.archive ? restore_at(fs, from->dir, from->name)
			       : restore_at(fs, to->dir, to->name);
}

void eq_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
		  const char *newname, unsigned int flags)
{
	struct eq_fs *fs = eq_fs_of(req);
	struct side from = { .dir = eq_node_of(fs, parent), .name = name };
	struct side to = { .dir = eq_node_of(fs, newparent), .name = newname };
	unsigned tries = 0;
	int rc;

	if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) {
		eq_reply(req, -EINVAL);
		return;
	}
	do {
		from.node = to.node = NULL;
		rc = restore_for(fs, &from, &to, flags);
		if (!rc) {
			pthread_rwlock_wrlock(&fs->names);
			rc = do_rename(fs, &from, &to, flags);
			pthread_rwlock_unlock(&fs->names);
		}
		eq_node_unref(&fs->nodes, from.node);
		eq_node_unref(&fs->nodes, to.node);
	} while (rc == -ESTALE && ++tries < ENCODED_MEANWHILE);
	eq_reply(req, rc);
}
