/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fs.h"
#include "memory.h"
#include "thread.h"

#define MAX_FAILED 64           /* archives remembered as not to be decoded */
#define LOOK_SECONDS 1          /* after which what is still mapped is looked at again */

enum state { WAITING, MAKING, READY, FAILED };

struct eq_hot_copy {
	struct eq_hot_copy *prev, *next; /* the last used first */
	dev_t dev;
	ino_t ino;
	off_t stored;
	struct timespec mtim;   /* of the archive, as all of the above */
	uint64_t bytes;         /* that it takes, or will */
	int fd;                 /* -1 until it is ready */
	enum state state;
	unsigned refs;          /* of open files, and one of the list */
	_Atomic bool gone;      /* nobody will ask for it again */
	struct eq_arc *arc;     /* while waiting; with a reference */
};

struct eq_hot {
	struct eq_fs *fs;
	uint64_t limit, bytes;
	uint64_t files, failed, made, dropped;
	struct eq_hot_copy *first, *last;
	struct eq_hot_copy *mapped; /* dropped, and held by nobody but the kernel */
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct eq_thread thread;
	_Atomic bool stop;
};

/* ---- the list, under the lock ------------------------------------------------- */

static void link_first(struct eq_hot *h, struct eq_hot_copy *c)
{
	c->prev = NULL;
	c->next = h->first;
	*(h->first ? &h->first->prev : &h->last) = c;
	h->first = c;
}

static void unlink_copy(struct eq_hot *h, struct eq_hot_copy *c)
{
	*(c->prev ? &c->prev->next : &h->first) = c->next;
	*(c->next ? &c->next->prev : &h->last) = c->prev;
}

static struct eq_hot_copy *find(struct eq_hot *h, const struct eq_arc *a)
{
	struct eq_hot_copy *c;

	for (c = h->first; c; c = c->next)
		if (c->ino == a->ino && c->dev == a->dev && c->stored == a->size &&
		    eq_time_compare(&c->mtim, &a->mtim) == 0)
			return c;
	return NULL;
}

/*
 * Does the kernel hold the memory for somebody? A mapping that was made by passthrough does
 * so until it goes, and the close of which we hear may come long before. Whoever else has a
 * file open, or mapped, keeps us from a lease for writing.
 */
static bool held(const struct eq_hot_copy *c)
{
	if (c->fd < 0)
		return false;
	if (fcntl(c->fd, F_SETLEASE, F_WRLCK))
		return errno == EAGAIN;
	fcntl(c->fd, F_SETLEASE, F_UNLCK);
	return false;
}

static void copy_free(struct eq_hot *h, struct eq_hot_copy *c)
{
	if (c->state == FAILED) {
		h->failed--;
	} else {
		h->bytes -= c->bytes;
		h->files--;
	}
	if (c->fd >= 0)
		close(c->fd);
	free(c);
}

/* What the copy takes is given back when nobody holds it any more. */
static void unref(struct eq_hot *h, struct eq_hot_copy *c)
{
	if (--c->refs)
		return;
	if (held(c)) {
		c->next = h->mapped;
		h->mapped = c;
		pthread_cond_signal(&h->work); /* to look at it from time to time */
	} else {
		copy_free(h, c);
	}
}

/* Give back what the kernel has let go of. */
static void reap(struct eq_hot *h)
{
	struct eq_hot_copy **p = &h->mapped, *c;

	while ((c = *p))
		if (held(c)) {
			p = &c->next;
		} else {
			*p = c->next;
			copy_free(h, c);
		}
}

/* Off the list, so that nobody finds it. Not one that is waiting or being made:
 * those the worker takes off. */
static void drop(struct eq_hot *h, struct eq_hot_copy *c)
{
	unlink_copy(h, c);
	h->dropped += c->state == READY;
	unref(h, c);
}

/* Drop what nobody uses, beginning with the longest unused, until there are so
 * many bytes to be had. */
static bool make_room(struct eq_hot *h, uint64_t bytes)
{
	struct eq_hot_copy *c, *prev;

	reap(h);
	for (c = h->last; c && h->bytes + bytes > h->limit; c = prev) {
		prev = c->prev;
		if (c->refs == 1 && c->state == READY && !held(c))
			drop(h, c);
	}
	return h->bytes + bytes <= h->limit;
}

static void forget_failures(struct eq_hot *h)
{
	struct eq_hot_copy *c, *prev;

	for (c = h->last; c && h->failed > MAX_FAILED; c = prev) {
		prev = c->prev;
		if (c->state == FAILED && c->refs == 1)
			drop(h, c);
	}
}

/* ---- making one ------------------------------------------------------------------ */

/* Bytes that a copy may take: room to spare, and for decoded data as far as cache= goes. */
static uint64_t room_for_copy(const struct eq_fs *fs)
{
	uint64_t room = eq_memory_available(""), growth;
	struct eq_cache_stats cache;

	eq_cache_stats(fs->cache, &cache);
	growth = cache.bytes < cache.limit ? cache.limit - cache.bytes : 0;
	room -= growth < room ? growth : room;
	return room / 4 * 3;
}

struct making {
	struct eq_hot *h;
	struct eq_hot_copy *c;
};

static int unwanted(void *arg, const char *what, uint64_t done, uint64_t total)
{
	struct making *m = arg;

	(void)what, (void)done, (void)total;
	return m->h->stop || m->c->gone;
}

static int make(struct eq_hot *h, struct eq_hot_copy *c, struct eq_arc *arc, int *out)
{
	struct making m = { h, c };
	struct eq_run run = { .pool = h->fs->pool, .backend = h->fs->m->backend,
			      .progress = unwanted, .progress_arg = &m };
	struct eq_error err = { "" };
	char path[EQ_PROC_SIZE];
	int fd, rc;

	/* Decoding it must not push everything else out of memory. */
	if (c->bytes >= room_for_copy(h->fs))
		return -ENOMEM;
	fd = memfd_create("eqfs-hot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	rc = eq_archive_unpack(arc->archive, fd, &run, &err);
	if (!rc && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		rc = -errno;
	if (!rc) { /* opened like any other file, for the kernel to count who has it */
		eq_proc_path(path, fd);
		*out = open(path, O_RDONLY | O_CLOEXEC);
		if (*out < 0)
			rc = -errno;
	}
	close(fd);
	if (rc && rc != -ECANCELED)
		eq_log(&h->fs->log, EQ_LOG_WARN, "not kept decoded: %s",
		       err.text[0] ? err.text : eq_strerror(rc));
	return rc;
}

/* Under the lock: rc is what became of c. */
static void made(struct eq_hot *h, struct eq_hot_copy *c, int rc, int fd)
{
	if (!rc) {
		c->fd = fd;
		c->state = READY;
		h->made++;
	}
	if (!rc && !c->gone)
		return;
	if (!rc || c->gone || (rc != EQ_ECORRUPT && rc != -EIO)) { /* may be tried again */
		drop(h, c);
		return;
	}
	h->bytes -= c->bytes;
	h->files--;
	c->state = FAILED;
	h->failed++;
	forget_failures(h);
}

static struct eq_hot_copy *next_waiting(struct eq_hot *h)
{
	struct eq_hot_copy *c;

	for (c = h->last; c && c->state != WAITING; c = c->prev)
		;
	return c;
}

/* Under the lock. */
static void wait_for_work(struct eq_hot *h)
{
	struct timespec until;

	if (!h->mapped) {
		pthread_cond_wait(&h->work, &h->lock);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += LOOK_SECONDS;
	pthread_cond_timedwait(&h->work, &h->lock, &until);
	reap(h);
}

static void *worker(void *arg)
{
	struct eq_hot *h = arg;
	struct eq_hot_copy *c;
	struct eq_arc *arc;
	int rc, fd = -1;

	pthread_mutex_lock(&h->lock);
	while (!h->stop) {
		c = next_waiting(h);
		if (!c) {
			wait_for_work(h);
			continue;
		}
		c->state = MAKING;
		arc = c->arc;
		c->arc = NULL;
		pthread_mutex_unlock(&h->lock);
		rc = make(h, c, arc, &fd);
		eq_arc_put(&h->fs->arcs, arc);
		pthread_mutex_lock(&h->lock);
		made(h, c, rc, fd);
	}
	pthread_mutex_unlock(&h->lock);
	return NULL;
}

/* ---- the interface --------------------------------------------------------------- */

int eq_hot_create(struct eq_fs *fs, uint64_t limit, struct eq_hot **out)
{
	struct eq_hot *h = calloc(1, sizeof(*h));
	int rc;

	*out = NULL;
	if (!h)
		return -ENOMEM;
	h->fs = fs;
	h->limit = limit;
	pthread_mutex_init(&h->lock, NULL);
	eq_cond_init_monotonic(&h->work);
	rc = eq_thread_start(&h->thread, worker, h);
	if (rc) {
		pthread_cond_destroy(&h->work);
		pthread_mutex_destroy(&h->lock);
		free(h);
		return rc;
	}
	*out = h;
	return 0;
}

void eq_hot_cancel(struct eq_hot *h)
{
	pthread_mutex_lock(&h->lock);
	h->stop = true;
	pthread_cond_signal(&h->work);
	pthread_mutex_unlock(&h->lock);
}

bool eq_hot_ended(struct eq_hot *h)
{
	return eq_thread_ended(&h->thread);
}

void eq_hot_free(struct eq_hot *h)
{
	struct eq_hot_copy *c;

	if (!h)
		return;
	while ((c = h->first)) {
		eq_arc_put(&h->fs->arcs, c->arc);
		drop(h, c);
	}
	while ((c = h->mapped)) {
		h->mapped = c->next;
		copy_free(h, c);
	}
	pthread_cond_destroy(&h->work);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

/* Under the lock. The registry of archives is locked within. */
static void want(struct eq_hot *h, struct eq_arc *arc)
{
	uint64_t bytes = arc->info->size;
	struct eq_hot_copy *c;

	if (bytes > h->limit || !make_room(h, bytes))
		return;
	c = calloc(1, sizeof(*c));
	if (!c)
		return;
	*c = (struct eq_hot_copy){ .dev = arc->dev, .ino = arc->ino, .stored = arc->size,
				   .mtim = arc->mtim, .bytes = bytes, .fd = -1,
				   .state = WAITING, .refs = 1, .arc = arc };
	eq_arc_ref(&h->fs->arcs, arc);
	link_first(h, c);
	h->bytes += bytes;
	h->files++;
	pthread_cond_signal(&h->work);
}

struct eq_hot_copy *eq_hot_get(struct eq_hot *h, struct eq_arc *arc)
{
	struct eq_hot_copy *c;

	pthread_mutex_lock(&h->lock);
	c = find(h, arc);
	if (!c) {
		want(h, arc);
	} else {
		unlink_copy(h, c);
		link_first(h, c);
		if (c->state == READY)
			c->refs++;
		else
			c = NULL;
	}
	pthread_mutex_unlock(&h->lock);
	return c;
}

void eq_hot_put(struct eq_hot *h, struct eq_hot_copy *copy)
{
	if (!copy)
		return;
	pthread_mutex_lock(&h->lock);
	unref(h, copy);
	pthread_mutex_unlock(&h->lock);
}

int eq_hot_fd(const struct eq_hot_copy *copy)
{
	return copy->fd;
}

void eq_hot_gone(struct eq_hot *h, dev_t dev, ino_t ino)
{
	struct eq_hot_copy *c, *next;

	if (!h)
		return;
	pthread_mutex_lock(&h->lock);
	for (c = h->first; c; c = next) {
		next = c->next;
		if (c->dev != dev || c->ino != ino)
			continue;
		c->gone = true;
		if (c->state == READY || c->state == FAILED)
			drop(h, c);
	}
	pthread_mutex_unlock(&h->lock);
}

void eq_hot_stats(struct eq_hot *h, struct eq_hot_stats *out)
{
	memset(out, 0, sizeof(*out));
	if (!h)
		return;
	pthread_mutex_lock(&h->lock);
	reap(h);
	out->files = h->files;
	out->bytes = h->bytes;
	out->limit = h->limit;
	out->made = h->made;
	out->dropped = h->dropped;
	pthread_mutex_unlock(&h->lock);
}
