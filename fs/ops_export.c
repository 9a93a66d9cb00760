/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel asks when it has a file handle and no name: a number that it may have
 * forgotten, or made up by whoever gave it the handle, and the parent of a directory.
 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>

#include "compact.h"
#include "ops.h"
#include "place.h"
#include "trim.h"

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
		rc = n ? eq_node_show(&fs->nodes, n) : eq_place_take(fs, &f, true, &n);
	pthread_rwlock_unlock(&fs->names);
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
