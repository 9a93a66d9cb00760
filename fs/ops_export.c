/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel asks when it has a file handle and no name: a number that it may have
 * forgotten, or made up by whoever gave it the handle, and the parent of a directory.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <unistd.h>

#include "compact.h"
#include "ops.h"
#include "place.h"
#include "trim.h"

/* One more lookup of what has a node, or is a directory. Otherwise *n is NULL, and the file
 * is f. */
static int known(struct eq_fs *fs, fuse_ino_t ino, struct eq_node **n, struct eq_found *f)
{
	int rc;

	pthread_rwlock_rdlock(&fs->names);
	rc = eq_node_by_id(&fs->nodes, ino, n, f);
	if (!rc && *n)
		rc = eq_node_show(&fs->nodes, *n);
	else if (!rc && S_ISDIR(f->st.st_mode))
		rc = eq_place_take(fs, f, true, n);
	pthread_rwlock_unlock(&fs->names);
	return rc;
}

static int find(struct eq_fs *fs, fuse_ino_t ino, struct eq_node **n)
{
	struct eq_found f;
	unsigned tries;
	int rc;

	/* The first may miss a name that changes meanwhile; but then it has a node. */
	for (tries = 0; tries < 2; tries++) {
		rc = known(fs, ino, n, &f);
		if (rc || *n)
			return rc;
		rc = eq_place_take_file(fs, ino, &f, n);
		close(f.fd);
		if (!rc)
			break;
	}
	return rc;
}

int eq_export_self(struct eq_fs *fs, fuse_ino_t ino, struct eq_node **out)
{
	struct eq_node *n;
	int rc;

	*out = NULL;
	eq_trim_pace(fs);
	rc = find(fs, ino, &n);
	if (rc)
		return rc;
	if (!eq_node_answers(&fs->nodes, n, ino)) {
		eq_node_forget(&fs->nodes, n, 1);
		return -ESTALE;
	}
	if (eq_ino_of(fs, n) != ino) {
		pthread_mutex_lock(&n->lock);
		n->twice = true;
		pthread_mutex_unlock(&n->lock);
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
		rc = eq_place_up(n->fd, &f);
		if (!rc)
			rc = eq_place_take(fs, &f, true, out);
	}
	pthread_rwlock_unlock(&fs->names);
	return rc;
}
