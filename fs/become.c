/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <unistd.h>

#include "become.h"
#include "notify.h"

/* What has the name of n now gets a node of its own. Takes f->fd over. */
static int split(struct eq_fs *fs, struct eq_node *n, struct eq_found *f, struct eq_node *parent,
		 const char *name)
{
	struct eq_node *heir;
	int rc;

	eq_node_remove(&fs->nodes, n, NULL, NULL);
	if (f->fd < 0)
		return 0;
	rc = eq_node_take(&fs->nodes, f, parent, name, false, &heir);
	if (!rc)
		eq_node_bequeath(&fs->nodes, n, heir);
	return rc;
}

/* false: it must not, or cannot. */
static bool rebind(struct eq_fs *fs, struct eq_node *n, int fd)
{
	bool done;

	pthread_mutex_lock(&n->lock);
	done = fd >= 0 && !n->files && eq_node_rebind(&fs->nodes, n, fd, true) == 0;
	if (done) {
		n->outdated = eq_policy_lossy(fs->m->policy);
		n->written_past = false;
	}
	n->swapped = !done;
	if (n->swapped && eq_policy_lossy(fs->m->policy))
		clock_gettime(CLOCK_MONOTONIC, &n->swapped_at);
	pthread_mutex_unlock(&n->lock);
	return done;
}

bool eq_become_archive(struct eq_fs *fs, struct eq_node *n, struct eq_node *parent,
		       const char *name)
{
	struct eq_found f;

	if (eq_name_find(parent->fd, name, &f) == 0 && !f.archive) {
		close(f.fd); /* somebody is at work in the store */
		f.fd = -1;
	}
	if (rebind(fs, n, f.fd))
		return true;
	(void)split(fs, n, &f, parent, name); /* or its handles are stale one day */
	return false;
}

void eq_become_tell(struct eq_fs *fs, struct eq_node *n, bool same, struct eq_node *parent,
		    const char *name)
{
	if (!same) { /* it must look the name up again */
		eq_notify_replaced(fs, parent, name, n);
	} else if (n->outdated) {
		eq_notify_emptied(fs, n);
		pthread_mutex_lock(&n->lock);
		n->outdated = false;
		pthread_mutex_unlock(&n->lock);
	} else {
		eq_notify_changed(fs, n);
	}
}

int eq_become_plain(struct eq_fs *fs, struct eq_node *n, struct eq_node *parent, const char *name,
		    int fd, bool apart)
{
	struct eq_found f = { .fd = fd };
	int rc = 0;

	if (!apart) {
		pthread_mutex_lock(&n->lock);
		rc = eq_node_rebind(&fs->nodes, n, fd, false);
		pthread_mutex_unlock(&n->lock);
	} else if (fstat(fd, &f.st)) {
		rc = -errno;
	} else {
		return split(fs, n, &f, parent, name);
	}
	if (rc)
		close(fd);
	return rc;
}
