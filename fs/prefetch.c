/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "prefetch.h"

#define QUEUE 256
#define FIRST_WINDOW ((uint64_t)2 << 20)
/* The kernel reads ahead with several requests at once, which arrive in any
 * order: this far from the expected offset is still the same reader. */
#define TOLERANCE ((uint64_t)8 << 20)

struct task {
	struct eq_arc *arc;     /* with a reference */
	uint64_t off, end;
};

struct eq_ahead {
	struct eq_arcs *arcs;
	struct eq_cache *cache;
	uint64_t window;
	pthread_mutex_t lock;
	pthread_cond_t work;
	bool stop;
	struct task task[QUEUE];        /* a ring */
	size_t first, count;
	unsigned n_threads, joined;
	pthread_t thread[];
};

static void *worker(void *arg)
{
	struct eq_ahead *a = arg;
	struct task t;

	pthread_mutex_lock(&a->lock);
	for (;;) {
		while (!a->count && !a->stop)
			pthread_cond_wait(&a->work, &a->lock);
		if (a->stop)
			break;
		t = a->task[a->first];
		a->first = (a->first + 1) % QUEUE;
		a->count--;
		pthread_mutex_unlock(&a->lock);
		eq_cache_load(a->cache, t.arc, t.off, t.end);
		eq_arc_put(a->arcs, t.arc);
		pthread_mutex_lock(&a->lock);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

int eq_ahead_create(struct eq_arcs *arcs, struct eq_cache *cache, unsigned n_threads,
		    uint64_t window, struct eq_ahead **out)
{
	struct eq_ahead *a = calloc(1, sizeof(*a) + n_threads * sizeof(a->thread[0]));
	int rc;

	*out = NULL;
	if (!a)
		return -ENOMEM;
	a->arcs = arcs;
	a->cache = cache;
	a->window = window;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->work, NULL);
	for (; a->n_threads < n_threads; a->n_threads++) {
		rc = pthread_create(&a->thread[a->n_threads], NULL, worker, a);
		if (rc) {
			eq_ahead_cancel(a);
			while (a->n_threads) /* they have nothing to do yet */
				pthread_join(a->thread[--a->n_threads], NULL);
			eq_ahead_free(a);
			return -rc;
		}
	}
	*out = a;
	return 0;
}

void eq_ahead_cancel(struct eq_ahead *a)
{
	pthread_mutex_lock(&a->lock);
	a->stop = true;
	pthread_cond_broadcast(&a->work);
	pthread_mutex_unlock(&a->lock);
}

bool eq_ahead_ended(struct eq_ahead *a)
{
	while (a->joined < a->n_threads && pthread_tryjoin_np(a->thread[a->joined], NULL) == 0)
		a->joined++;
	return a->joined == a->n_threads;
}

void eq_ahead_free(struct eq_ahead *a)
{
	if (!a)
		return;
	for (; a->count; a->count--) {
		eq_arc_put(a->arcs, a->task[a->first].arc);
		a->first = (a->first + 1) % QUEUE;
	}
	pthread_cond_destroy(&a->work);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

/* Queue the extents of [from, to), a batch a task; returns how far it got. */
static uint64_t push(struct eq_ahead *a, struct eq_arc *arc, uint64_t from, uint64_t to)
{
	struct eq_extent ext;
	struct task *t;
	size_t n;

	pthread_mutex_lock(&a->lock);
	while (from < to && a->count < QUEUE && !a->stop) {
		if (eq_archive_locate(arc->archive, from, &ext))
			break;
		t = &a->task[(a->first + a->count++) % QUEUE];
		eq_arc_ref(a->arcs, arc);
		t->arc = arc;
		t->off = ext.begin;
		for (n = 1; n < eq_cache_batch(a->cache); n++)
			if (ext.begin + ext.len >= to ||
			    eq_archive_locate(arc->archive, ext.begin + ext.len, &ext))
				break;
		t->end = from = ext.begin + ext.len;
		pthread_cond_signal(&a->work);
	}
	pthread_mutex_unlock(&a->lock);
	return from;
}

void eq_ahead_note(struct eq_ahead *a, struct eq_stream *s, struct eq_arc *arc, uint64_t off,
		   size_t len)
{
	uint64_t end = off + len, from, to;
	bool near;

	if (!a->n_threads)
		return;
	pthread_mutex_lock(&s->lock);
	near = s->next && off + TOLERANCE >= s->next && off <= s->next + TOLERANCE;
	if (!near) {
		s->next = s->ahead = end;
		s->window = 0;
		goto out;
	}
	if (end > s->next) {
		s->next = end;
		s->window = s->window ? 2 * s->window : FIRST_WINDOW;
		if (s->window > a->window)
			s->window = a->window;
	}
	to = end + s->window < arc->info->size ? end + s->window : arc->info->size;
	from = s->ahead > end ? s->ahead : end;
	/* In steps of some size, not an extent a request. */
	if (from < to && (to - from >= s->window / 4 || to == arc->info->size))
		s->ahead = push(a, arc, from, to);
out:
	pthread_mutex_unlock(&s->lock);
}
