/* SPDX-License-Identifier: Apache-2.0 */
#define FUSE_USE_VERSION 314
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "become.h"
#include "compact_priv.h"
#include "notify.h"
#include "place.h"

#define RETRY_SECONDS 1.0       /* at least, before a file that changed is tried again */
#define FULL_SECONDS 60.0       /* before one is that the system had no room for */

#define TRIM_BYTES ((uint64_t)16 << 20) /* encoding such a file leaves much with malloc() */
#define ENCODE_SHARE 8500       /* of the progress; the rest is the comparison's */

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
	else if (!eq_dirty_wanted(j->node) || atomic_load(&j->node->changes) != j->changes || j->c->stop)
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

	if (swapped) {
		j->same = eq_become_archive(j->c->fs, j->node, j->parent, j->name);
		/* Whoever opens it for writing from here on makes it dirty again. */
		eq_dirty_clear(j->c->fs, j->node, NULL, NULL);
	}
	j->swapped = swapped;
	pthread_rwlock_unlock(&j->c->fs->names);
}

/*
 * Is it where we believe it to be? If not it was moved in the store, of which we do not
 * hear, and is nowhere until it is seen again: there is no use in trying again before.
 */
static bool in_place(struct eq_fs *fs, struct eq_node *n)
{
	char name[NAME_MAX + 1];
	struct eq_node *parent;
	struct eq_found f;
	bool is;

	pthread_rwlock_rdlock(&fs->names);
	is = eq_node_place(&fs->nodes, n, &parent, name) == 0;
	if (is) {
		is = eq_name_stat(parent->fd, name, &f) == 0 && f.st.st_ino == n->ino &&
		     f.st.st_dev == n->dev;
		if (!is)
			eq_node_remove(&fs->nodes, n, parent, name);
		eq_node_unref(&fs->nodes, parent);
	}
	pthread_rwlock_unlock(&fs->names);
	return is;
}

/* It changed or moved: from the beginning, unless its next writer or unlink has taken
 * care of it. */
static void put_off(struct job *j)
{
	struct eq_fs *fs = j->c->fs;

	eq_count(&fs->stats.put_off, 1);
	if (!j->c->stop && in_place(fs, j->node))
		eq_dirty_offer(fs, j->node,
			       fs->m->settle > RETRY_SECONDS ? fs->m->settle : RETRY_SECONDS);
}

/* It stays plain, for this reason or none; false: it is another file by now. */
static bool stays_plain(struct job *j, const char *why)
{
	if (eq_dirty_clear(j->c->fs, j->node, &j->changes, why))
		return true;
	put_off(j);
	return false;
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
		put_off(j);
		return;
	case EQ_ENOTST:
		if (stays_plain(j, NULL))
			eq_count(&fs->stats.skipped, 1);
		return;
	case -EMLINK: /* until the other links are gone */
		eq_count(&fs->stats.skipped, 1);
		eq_dirty_reason(j->node, "has hard links");
		return;
	case -ENAMETOOLONG: /* until it has another; perhaps it is no model at all */
		eq_count(&fs->stats.skipped, 1);
		eq_dirty_reason(j->node, why);
		return;
	case -ENOTSUP:
		why = "the archive would not be smaller";
		/* fall through */
	case EQ_EHOLES:
		if (!stays_plain(j, why))
			return;
		eq_count(&fs->stats.skipped, 1);
		eq_log(&fs->log, EQ_LOG_INFO, "not encoded: %s", text);
		return;
	case -EISDIR: /* NAME.eqar is one */
	case EQ_ELIMIT:
	case EQ_ECORRUPT:
	case EQ_EDIFFER:
		if (!stays_plain(j, why))
			return;
		break;
	default: /* a full disk, say, that will not be full for ever */
		eq_dirty_reason(j->node, why);
		eq_dirty_offer(fs, j->node, FULL_SECONDS);
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

	if (!eq_dirty_wanted(n) || eq_place_find(fs, n, &j.parent, j.name))
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
	if (!c->stop) /* its times have changed, and with some filesystems its size */
		eq_notify_changed(fs, parent);
out:
	eq_node_unref(&fs->nodes, parent);
}

/* Under the lock: take what is first and due, and encode it without the lock. */
static void encode_first(struct eq_compact *c)
{
	struct eq_wait *w = c->queue.first;
	struct eq_nodes *nodes = &c->fs->nodes;
	struct eq_parked_place at;
	struct eq_node *n = w->node;

	c->current = n;
	c->current_bytes = w->bytes;
	c->done = 0;
	if (n)
		eq_queue_del(&c->queue, w);
	else
		eq_parked_take(c, w, &at);
	pthread_mutex_unlock(&c->lock);
	if (n) {
		eq_node_ref(nodes, n); /* in place of the queue's, with which it could be parked */
		eq_node_unref_wait(nodes, n);
	} else {
		n = eq_parked_find(c->fs, &at);
		pthread_mutex_lock(&c->lock);
		c->current = n;
		pthread_mutex_unlock(&c->lock);
	}
	if (n) {
		encode(c, n);
		if (c->current_bytes >= TRIM_BYTES)
			malloc_trim(0);
	}
	pthread_mutex_lock(&c->lock);
	c->current = NULL;
	pthread_mutex_unlock(&c->lock);
	eq_node_unref(nodes, n);
	pthread_mutex_lock(&c->lock);
}

static void *worker(void *arg)
{
	struct eq_compact *c = arg;
	struct timespec now;
	struct eq_wait *w;

	pthread_mutex_lock(&c->lock);
	while (!c->stop) {
		w = c->queue.first;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (w && eq_wait_due(w, &now)) {
			encode_first(c);
		} else if (c->drain) {
			break;
		} else if (w) {
			now = w->due; /* w may be gone when we wake up */
			pthread_cond_timedwait(&c->wake, &c->lock, &now);
		} else {
			pthread_cond_wait(&c->wake, &c->lock);
		}
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
	eq_parked_free(c);
	pthread_cond_destroy(&c->wake);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
