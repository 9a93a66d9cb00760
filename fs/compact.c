/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "become.h"
#include "compact.h"
#include "notify.h"
#include "ops.h"
#include "place.h"
#include "thread.h"

#define RETRY_SECONDS 1.0       /* at least, before a file that changed is tried again */
#define FULL_SECONDS 60.0       /* before one is that the system had no room for */

#define ENCODE_SHARE 8500       /* of the progress; the rest is the comparison's */

/* Values of the mark. */
#define MARK_LOSSY "lossy"
#define MARK_LOSSLESS "lossless"

struct eq_compact {
	struct eq_fs *fs;
	struct eq_thread thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct eq_node *first, *last;   /* by due time */
	uint64_t files, bytes;          /* in the queue */
	struct eq_node *current;        /* being encoded */
	uint64_t current_bytes;
	_Atomic unsigned done;          /* of it, in 10,000ths */
	bool drain;                     /* end when nothing is due */
	_Atomic bool stop;
};

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
		eq_node_ref(&fs->nodes, n);
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

/* Under n->lock. Does the caller have to drop the reference of n to itself? */
static bool clear_locked(struct eq_node *n, const char *reason)
{
	bool pinned = n->pinned;
	char path[EQ_PROC_SIZE];

	n->dirty = n->pinned = false;
	free(n->reason);
	n->reason = reason ? strdup(reason) : NULL;
	eq_proc_path(path, n->fd);
	(void)!removexattr(path, EQ_XATTR_QUEUED);
	return pinned;
}

/* reason: why it stays plain, or NULL. The caller has a reference. */
static void dirty_clear(struct eq_fs *fs, struct eq_node *n, const char *reason)
{
	bool pinned;

	pthread_mutex_lock(&n->lock);
	pinned = clear_locked(n, reason);
	pthread_mutex_unlock(&n->lock);
	if (pinned)
		eq_node_unref(&fs->nodes, n);
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
		eq_node_unref(&fs->nodes, n);
	return nameless;
}

static void set_reason(struct eq_node *n, const char *reason)
{
	pthread_mutex_lock(&n->lock);
	free(n->reason);
	n->reason = reason ? strdup(reason) : NULL;
	pthread_mutex_unlock(&n->lock);
}

/* ---- the queue ------------------------------------------------------------ */

static bool queue_del(struct eq_compact *c, struct eq_node *n)
{
	if (!n->queued)
		return false;
	*(n->queue_prev ? &n->queue_prev->queue_next : &c->first) = n->queue_next;
	*(n->queue_next ? &n->queue_next->queue_prev : &c->last) = n->queue_prev;
	n->queue_prev = n->queue_next = NULL;
	n->queued = false;
	c->files--;
	c->bytes -= n->queued_bytes;
	return true;
}

/* Due `delay` seconds from now. Returns whether it was queued before. */
static bool queue_add(struct eq_compact *c, struct eq_node *n, double delay)
{
	struct eq_node *at;
	struct stat st;
	bool was;

	if (fstat(n->fd, &st))
		st.st_size = 0; /* of interest to statistics only */
	pthread_mutex_lock(&c->lock);
	was = queue_del(c, n);
	n->queued_bytes = (uint64_t)st.st_size;
	c->files++;
	c->bytes += n->queued_bytes;
	clock_gettime(CLOCK_MONOTONIC, &n->due);
	n->due.tv_sec += (time_t)delay;
	n->due.tv_nsec += (long)((delay - (double)(time_t)delay) * 1e9);
	if (n->due.tv_nsec >= 1000000000) {
		n->due.tv_sec++;
		n->due.tv_nsec -= 1000000000;
	}
	for (at = c->last; at && eq_time_compare(&at->due, &n->due) > 0; at = at->queue_prev)
		;
	n->queue_prev = at;
	n->queue_next = at ? at->queue_next : c->first;
	*(at ? &at->queue_next : &c->first) = n;
	*(n->queue_next ? &n->queue_next->queue_prev : &c->last) = n;
	n->queued = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
	return was;
}

static bool wanted(struct eq_node *n)
{
	bool yes;

	pthread_mutex_lock(&n->lock);
	yes = n->dirty && !n->writers && !n->swapped && !n->archive;
	pthread_mutex_unlock(&n->lock);
	return yes;
}

static void offer(struct eq_fs *fs, struct eq_node *n, double delay)
{
	if (!fs->compact || !wanted(n))
		return;
	eq_node_ref(&fs->nodes, n);
	if (queue_add(fs->compact, n, delay))
		eq_node_unref(&fs->nodes, n); /* it had one */
}

void eq_compact_offer(struct eq_fs *fs, struct eq_node *n)
{
	atomic_fetch_add(&n->changes, 1);
	set_reason(n, NULL); /* it may not hold any more */
	offer(fs, n, fs->m->settle);
}

void eq_compact_seen(struct eq_fs *fs, struct eq_node *n)
{
	struct eq_compact *c = fs->compact;
	bool waiting;

	if (!c || !wanted(n))
		return;
	pthread_mutex_lock(&c->lock);
	waiting = n->queued || c->current == n;
	pthread_mutex_unlock(&c->lock);
	if (!waiting)
		offer(fs, n, fs->m->settle);
}

static void withdraw(struct eq_fs *fs, struct eq_node *n)
{
	bool was;

	pthread_mutex_lock(&fs->compact->lock);
	was = queue_del(fs->compact, n);
	pthread_mutex_unlock(&fs->compact->lock);
	if (was)
		eq_node_unref(&fs->nodes, n);
}

void eq_compact_drop(struct eq_fs *fs, struct eq_node *n)
{
	atomic_fetch_add(&n->changes, 1);
	if (!fs->compact)
		return;
	withdraw(fs, n);
	if (!dirty_clear_nameless(fs, n)) /* linked in the last moment, and perhaps queued */
		offer(fs, n, fs->m->settle);
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
		free(n->reason);
		n->reason = NULL;
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
	out->files = c->files;
	out->bytes = c->bytes;
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
		queued = n->queued;
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

/* ---- the worker ------------------------------------------------------------- */

struct job {
	struct eq_compact *c;
	struct eq_node *node, *parent;
	char name[NAME_MAX + 1];
	uint64_t changes;       /* of the node when we began */
	struct stat was;        /* of the plain file */
	bool swapped;
	bool same;              /* the node is the archive now */
};

static int cancelled(void *arg, const char *what, uint64_t done, uint64_t total)
{
	struct job *j = arg;
	double part = total ? (double)done / (double)total : 0;

	/* Reading back is a small part of the time. */
	if (!strcmp(what, "encode"))
		j->c->done = (unsigned)(part * ENCODE_SHARE);
	else
		j->c->done = (unsigned)(ENCODE_SHARE + part * (1e4 - ENCODE_SHARE));
	return j->c->stop || atomic_load(&j->node->changes) != j->changes;
}

/* By a mapping of a file that is passed through, of which we do not hear. */
static bool written_past(void *arg)
{
	struct eq_node *n = ((struct job *)arg)->node;
	bool yes;

	pthread_mutex_lock(&n->lock);
	yes = n->written_past;
	pthread_mutex_unlock(&n->lock);
	return yes;
}

static int swap_enter(void *arg, int plain_fd)
{
	struct job *j = arg;
	struct eq_fs *fs = j->c->fs;
	char name[NAME_MAX + 1];
	struct eq_node *parent;
	int rc = 0;

	pthread_rwlock_wrlock(&fs->names);
	if (fstat(plain_fd, &j->was))
		rc = -errno;
	else if (j->was.st_ino != j->node->ino || j->was.st_dev != j->node->dev)
		rc = -EBUSY;
	else if (j->was.st_nlink > 1)
		rc = -EMLINK;
	else if (!wanted(j->node) || atomic_load(&j->node->changes) != j->changes || j->c->stop)
		rc = -EBUSY;
	if (!rc && eq_node_place(&fs->nodes, j->node, &parent, name))
		rc = -EBUSY;
	else if (!rc) {
		if (parent != j->parent || strcmp(name, j->name))
			rc = -EBUSY;
		eq_node_unref(&fs->nodes, parent);
	}
	if (rc)
		pthread_rwlock_unlock(&fs->names);
	return rc;
}

static void swap_leave(void *arg, bool swapped)
{
	struct job *j = arg;

	if (swapped)
		j->same = eq_become_archive(j->c->fs, j->node, j->parent, j->name);
	j->swapped = swapped;
	pthread_rwlock_unlock(&j->c->fs->names);
}

/* What to do with a file that was not encoded. */
static void not_encoded(struct job *j, int rc, const char *text)
{
	struct eq_fs *fs = j->c->fs;
	const char *why = eq_strerror(rc);
	struct stat st;

	if (fstat(j->node->fd, &st) == 0 && !st.st_nlink) {
		/* Perhaps it was deleted in the store, of which we do not hear. */
		eq_compact_drop(fs, j->node);
		return;
	}
	switch (rc) {
	case -ECANCELED:
	case -EBUSY:
	case -ENOENT:
		/* It changed or moved: from the beginning, unless its next writer
		 * or unlink has taken care of it. */
		eq_count(&fs->stats.put_off, 1);
		if (!j->c->stop && eq_node_place(&fs->nodes, j->node, &j->parent, j->name) == 0) {
			eq_node_unref(&fs->nodes, j->parent);
			offer(fs, j->node,
			      fs->m->settle > RETRY_SECONDS ? fs->m->settle : RETRY_SECONDS);
		}
		return;
	case EQ_ENOTST:
		eq_count(&fs->stats.skipped, 1);
		dirty_clear(fs, j->node, NULL);
		return;
	case -EMLINK: /* until the other links are gone */
		eq_count(&fs->stats.skipped, 1);
		set_reason(j->node, "has hard links");
		return;
	case -ENAMETOOLONG: /* until it has another; perhaps it is no model at all */
		eq_count(&fs->stats.skipped, 1);
		set_reason(j->node, why);
		return;
	case -ENOTSUP:
		eq_count(&fs->stats.skipped, 1);
		dirty_clear(fs, j->node, "the archive would not be smaller");
		eq_log(&fs->log, EQ_LOG_INFO, "not encoded: %s", text);
		return;
	case -EISDIR: /* NAME.eqar is one */
	case EQ_ELIMIT:
	case EQ_ECORRUPT:
	case EQ_EDIFFER:
		dirty_clear(fs, j->node, why);
		break;
	default: /* a full disk, say, that will not be full for ever */
		set_reason(j->node, why);
		offer(fs, j->node, FULL_SECONDS);
		break;
	}
	eq_count(&fs->stats.failed, 1);
	if (!eq_node_logged(j->node, text))
		eq_log(&fs->log, EQ_LOG_WARN, "not encoded: %s", text);
}

/* The plain file became an archive. */
static void count_encoded(struct eq_fs *fs, const struct stat *was, const struct eq_summary *sum,
			  const struct timespec *start)
{
	struct stat now = *was;
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	eq_count(&fs->stats.encoded, 1);
	eq_count(&fs->stats.encoded_in, sum->size);
	eq_count(&fs->stats.encoded_out, sum->stored);
	eq_count(&fs->stats.encoded_ns,
		 (uint64_t)((int64_t)(end.tv_sec - start->tv_sec) * 1000000000 + end.tv_nsec -
			    start->tv_nsec));
	atomic_fetch_add(&fs->stats.archives, 1);
	now.st_blocks = (blkcnt_t)((sum->stored + 511) / 512);
	eq_stats_store(&fs->stats, was, &now);
}

static void encode(struct eq_compact *c, struct eq_node *n)
{
	struct eq_fs *fs = c->fs;
	struct job j = { .c = c, .node = n, .changes = atomic_load(&n->changes) };
	struct eq_run run = { .pool = fs->pool, .backend = fs->m->backend,
			      .progress = cancelled, .progress_arg = &j };
	struct eq_shrink_hooks hooks = { written_past, swap_enter, swap_leave, &j };
	struct eq_summary sum;
	struct eq_error err = { "" };
	struct timespec start;
	struct eq_node *parent;
	char path[PATH_MAX];
	int rc;

	if (!wanted(n) || eq_place_find(fs, n, &j.parent, j.name))
		return;
	parent = j.parent;
	if (eq_name_is_partial(j.name))
		goto out; /* a rename will bring it back */
	eq_node_path(&fs->nodes, n, path, sizeof(path));
	eq_log(&fs->log, EQ_LOG_DEBUG, "encoding %s", path);
	clock_gettime(CLOCK_MONOTONIC, &start);
	rc = eq_shrink(parent->fd, j.name, fs->m->policy, &run, &hooks, &sum, &err);
	if (j.swapped) {
		count_encoded(fs, &j.was, &sum, &start);
		dirty_clear(fs, n, NULL);
		if (!c->stop)
			eq_become_tell(fs, n, j.same, parent, j.name);
		eq_log(&fs->log, EQ_LOG_INFO, "encoded %s: %llu to %llu bytes (%.1f%%)", path,
		       (unsigned long long)sum.size, (unsigned long long)sum.stored,
		       sum.size ? 100.0 * (double)sum.stored / (double)sum.size : 0.0);
	} else if (rc) {
		not_encoded(&j, rc, err.text[0] ? err.text : path);
		if (!c->stop) /* its mark has gone, which is a change to its inode */
			eq_notify_changed(fs, n);
	}
out:
	eq_node_unref(&fs->nodes, parent);
}

static void *worker(void *arg)
{
	struct eq_compact *c = arg;
	struct timespec now;
	struct eq_node *n;

	pthread_mutex_lock(&c->lock);
	while (!c->stop) {
		n = c->first;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (c->drain && (!n || eq_time_compare(&n->due, &now) > 0))
			break;
		if (!n) {
			pthread_cond_wait(&c->wake, &c->lock);
			continue;
		}
		if (eq_time_compare(&n->due, &now) > 0) {
			now = n->due; /* n may be gone when we wake up */
			pthread_cond_timedwait(&c->wake, &c->lock, &now);
			continue;
		}
		queue_del(c, n);
		c->current = n;
		c->current_bytes = n->queued_bytes;
		c->done = 0;
		pthread_mutex_unlock(&c->lock);
		encode(c, n);
		pthread_mutex_lock(&c->lock);
		c->current = NULL;
		pthread_mutex_unlock(&c->lock);
		eq_node_unref(&c->fs->nodes, n);
		pthread_mutex_lock(&c->lock);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

int eq_compact_create(struct eq_fs *fs)
{
	struct eq_compact *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return -ENOMEM;
	c->fs = fs;
	pthread_mutex_init(&c->lock, NULL);
	eq_cond_init_monotonic(&c->wake);
	rc = eq_thread_start(&c->thread, worker, c);
	if (rc) {
		eq_compact_free(c);
		return rc;
	}
	fs->compact = c;
	return 0;
}

void eq_compact_drain(struct eq_compact *c)
{
	pthread_mutex_lock(&c->lock);
	c->drain = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

void eq_compact_cancel(struct eq_compact *c)
{
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

bool eq_compact_ended(struct eq_compact *c)
{
	return eq_thread_ended(&c->thread);
}

void eq_compact_free(struct eq_compact *c)
{
	pthread_cond_destroy(&c->wake);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
