/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which files are to be encoded, and when. Locks: n->lock, of what the node knows,
 * comes before c->lock, of the queue.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "compact_priv.h"

/* Values of the mark. */
#define MARK_LOSSY "lossy"
#define MARK_LOSSLESS "lossless"

/* ---- dirty files ---------------------------------------------------------- */

void eq_dirty_set(struct eq_fs *fs, struct eq_node *n)
{
	bool pin = false;

	atomic_fetch_add(&n->changes, 1);
	pthread_mutex_lock(&n->lock);
	if (!n->dirty && S_ISREG(n->type) && fs->compact) {
		n->dirty = n->pinned = pin = true;
		/* Without xattrs in the store only this mount knows. */
		eq_dirty_mark(fs, n->fd);
	}
	pthread_mutex_unlock(&n->lock);
	if (pin)
		eq_node_ref_wait(&fs->nodes, n);
}

void eq_dirty_mark(const struct eq_fs *fs, int fd)
{
	const char *what = eq_policy_lossy(fs->m->policy) ? MARK_LOSSY : MARK_LOSSLESS;
	char path[EQ_PROC_SIZE];

	eq_proc_path(path, fd);
	(void)!setxattr(path, EQ_XATTR_QUEUED, what, strlen(what), 0);
}

bool eq_dirty_marked(const struct eq_fs *fs, const struct eq_node *n)
{
	char path[EQ_PROC_SIZE], what[sizeof(MARK_LOSSLESS)];
	ssize_t len;

	eq_proc_path(path, n->fd);
	len = getxattr(path, EQ_XATTR_QUEUED, what, sizeof(what));
	if (len < 0)
		return false;
	return !eq_policy_lossy(fs->m->policy) ||
	       (len == sizeof(MARK_LOSSY) - 1 && !memcmp(what, MARK_LOSSY, (size_t)len));
}

/* Under n->lock. */
static void set_reason(struct eq_node *n, const char *reason)
{
	free(n->reason);
	n->reason = reason ? strdup(reason) : NULL;
}

/* Under n->lock. Does the caller have to drop the reference of n to itself? */
static bool clear_locked(struct eq_node *n, const char *reason)
{
	bool pinned = n->pinned;
	char path[EQ_PROC_SIZE];

	n->dirty = n->pinned = false;
	set_reason(n, reason);
	eq_proc_path(path, n->fd);
	(void)!removexattr(path, EQ_XATTR_QUEUED);
	return pinned;
}

bool eq_dirty_clear(struct eq_fs *fs, struct eq_node *n, const uint64_t *changes,
		    const char *reason)
{
	bool same, pinned = false;

	pthread_mutex_lock(&n->lock);
	/* Or eq_dirty_set has relied on n being dirty. */
	same = !changes || atomic_load(&n->changes) == *changes;
	if (same)
		pinned = clear_locked(n, reason);
	pthread_mutex_unlock(&n->lock);
	if (pinned)
		eq_node_unref_wait(&fs->nodes, n);
	return same;
}

/* Only if it has no name: whoever gives it one marks it after that, under n->lock. */
static bool dirty_clear_nameless(struct eq_fs *fs, struct eq_node *n)
{
	bool nameless, pinned = false;
	struct stat st;

	pthread_mutex_lock(&n->lock);
	nameless = fstat(n->fd, &st) || st.st_nlink == 0;
	if (nameless)
		pinned = clear_locked(n, NULL);
	pthread_mutex_unlock(&n->lock);
	if (pinned)
		eq_node_unref_wait(&fs->nodes, n);
	return nameless;
}

void eq_dirty_reason(struct eq_node *n, const char *reason)
{
	pthread_mutex_lock(&n->lock);
	set_reason(n, reason);
	pthread_mutex_unlock(&n->lock);
}

/* ---- the queue ------------------------------------------------------------ */

void eq_dirty_queue(struct eq_fs *fs, struct eq_node *n, const struct timespec *due)
{
	struct eq_compact *c = fs->compact;
	struct stat st;
	bool was;

	if (fstat(n->fd, &st))
		st.st_size = 0;
	eq_node_ref_wait(&fs->nodes, n); /* the queue's */
	pthread_mutex_lock(&c->lock);
	was = eq_queue_del(&c->queue, &n->wait);
	n->wait.node = n;
	n->wait.due = *due;
	n->wait.bytes = (uint64_t)st.st_size;
	eq_queue_add(&c->queue, &n->wait);
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
	if (was) /* it had one */
		eq_node_unref_wait(&fs->nodes, n);
}

bool eq_dirty_wanted(struct eq_node *n)
{
	bool yes;

	pthread_mutex_lock(&n->lock);
	yes = n->dirty && !n->writers && !n->swapped && !n->archive;
	pthread_mutex_unlock(&n->lock);
	return yes;
}

void eq_dirty_offer(struct eq_fs *fs, struct eq_node *n, double delay)
{
	struct timespec due;

	if (!fs->compact || !eq_dirty_wanted(n))
		return;
	clock_gettime(CLOCK_MONOTONIC, &due);
	due.tv_sec += (time_t)delay;
	due.tv_nsec += (long)((delay - (double)(time_t)delay) * 1e9);
	if (due.tv_nsec >= 1000000000) {
		due.tv_sec++;
		due.tv_nsec -= 1000000000;
	}
	eq_dirty_queue(fs, n, &due);
}

void eq_compact_offer(struct eq_fs *fs, struct eq_node *n)
{
	atomic_fetch_add(&n->changes, 1);
	eq_dirty_reason(n, NULL); /* it may not hold any more */
	eq_dirty_offer(fs, n, fs->m->settle);
}

void eq_compact_seen(struct eq_fs *fs, struct eq_node *n)
{
	struct eq_compact *c = fs->compact;
	bool waiting;

	if (!c)
		return;
	eq_parked_revive(fs, n);
	if (!eq_dirty_wanted(n))
		return;
	pthread_mutex_lock(&c->lock);
	waiting = n->wait.listed || c->current == n;
	pthread_mutex_unlock(&c->lock);
	if (!waiting)
		eq_dirty_offer(fs, n, fs->m->settle);
}

static void withdraw(struct eq_fs *fs, struct eq_node *n)
{
	bool was;

	pthread_mutex_lock(&fs->compact->lock);
	was = eq_queue_del(&fs->compact->queue, &n->wait);
	pthread_mutex_unlock(&fs->compact->lock);
	if (was)
		eq_node_unref_wait(&fs->nodes, n);
}

void eq_compact_drop(struct eq_fs *fs, struct eq_node *n)
{
	atomic_fetch_add(&n->changes, 1);
	if (!fs->compact)
		return;
	eq_parked_revive(fs, n);
	withdraw(fs, n);
	if (!dirty_clear_nameless(fs, n)) /* linked in the last moment, and perhaps queued */
		eq_dirty_offer(fs, n, fs->m->settle);
}

int eq_writer_begin(struct eq_fs *fs, struct eq_node *n)
{
	int rc = 0;

	pthread_mutex_lock(&n->lock);
	if (n->swapped) {
		rc = -ESTALE;
	} else {
		if (n->writers++ == 0) {
			if (fstat(n->fd, &n->counted))
				memset(&n->counted, 0, sizeof(n->counted));
			n->unwritten = (struct eq_version){ n->counted.st_size,
							    n->counted.st_mtim };
		}
		set_reason(n, NULL);
	}
	pthread_mutex_unlock(&n->lock);
	if (rc || !fs->compact)
		return rc;
	atomic_fetch_add(&n->changes, 1);
	withdraw(fs, n);
	return 0;
}

void eq_writer_end(struct eq_fs *fs, struct eq_node *n)
{
	bool nameless = false;
	struct stat now;

	pthread_mutex_lock(&n->lock);
	if (--n->writers == 0 && fstat(n->fd, &now) == 0) {
		nameless = now.st_nlink == 0;
		if (!nameless)
			eq_stats_store(&fs->stats, &n->counted, &now);
	}
	pthread_mutex_unlock(&n->lock);
	if (nameless) /* it is written in vain, or linked, and seen, later */
		eq_compact_drop(fs, n);
	else
		eq_compact_offer(fs, n);
}

void eq_compact_stats(struct eq_compact *c, struct eq_queue_stats *out)
{
	memset(out, 0, sizeof(*out));
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	out->files = c->queue.files;
	out->bytes = c->queue.bytes;
	if (c->current) {
		out->encoding = 1;
		out->current_bytes = c->current_bytes;
		out->progress = c->done / 1e4;
	}
	pthread_mutex_unlock(&c->lock);
}

void eq_compact_state(struct eq_fs *fs, struct eq_node *n, char buf[EQ_STATE_SIZE])
{
	struct eq_compact *c = fs->compact;
	bool queued = false, encoding = false, partial;

	if (c) {
		pthread_mutex_lock(&c->lock);
		encoding = c->current == n; /* until the kernel knows what came of it */
		queued = n->wait.listed;
		pthread_mutex_unlock(&c->lock);
	}
	if (n->archive && !encoding) {
		strcpy(buf, "archived");
		return;
	}
	partial = eq_node_partial(&fs->nodes, n);
	pthread_mutex_lock(&n->lock);
	if (encoding)
		strcpy(buf, "encoding");
	else if (n->reason)
		snprintf(buf, EQ_STATE_SIZE, "failed: %s", n->reason);
	else if (!n->swapped && !partial && (queued || n->dirty))
		strcpy(buf, "queued"); /* or will be when its writers are done */
	else
		strcpy(buf, "plain");
	pthread_mutex_unlock(&n->lock);
}
