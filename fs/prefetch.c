/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "prefetch.h"
#include "thread.h"

#define FIRST_WINDOW ((uint64_t)2 << 20)
/* The kernel reads ahead with several requests at once, which arrive in any
 * order: this far from the expected offset is still the same reader. */
#define TOLERANCE ((uint64_t)8 << 20)

struct eq_ahead {
	struct eq_arcs *arcs;
	struct eq_cache *cache;
	uint64_t window;
	pthread_mutex_t lock;   /* of the streams as well */
	pthread_cond_t work;
	bool stop;
	struct eq_stream *first, *last; /* with something to decode, in turns */
	unsigned n_threads;
	struct eq_thread thread[];
};

static void list_add(struct eq_ahead *a, struct eq_stream *s)
{
	s->after = NULL;
	s->before = a->last;
	*(a->last ? &a->last->after : &a->first) = s;
	a->last = s;
	s->listed = true;
}

static void list_del(struct eq_ahead *a, struct eq_stream *s)
{
	*(s->before ? &s->before->after : &a->first) = s->after;
	*(s->after ? &s->after->before : &a->last) = s->before;
	s->listed = false;
}

struct batch {
	struct eq_arc *arc;     /* with a reference */
	uint64_t off, end;
};

/* The next batch of this stream, not empty. It begins where the reader is: what he
 * has asked for meanwhile is his, and to decode it again would help nobody. */
static bool next_batch(struct eq_ahead *a, struct eq_stream *s, struct batch *b)
{
	struct eq_extent ext;
	size_t n;

	b->off = b->end = s->ahead > s->next ? s->ahead : s->next;
	for (n = 0; n < eq_cache_batch(a->cache) && b->end < s->to; n++) {
		if (eq_archive_locate(s->arc->archive, b->end, &ext))
			break;
		b->end = ext.begin + ext.len;
	}
	s->ahead = b->end;
	b->arc = s->arc;
	return n;
}

/* Take a batch from the stream whose turn it is. */
static bool take(struct eq_ahead *a, struct batch *b)
{
	struct eq_stream *s;
	bool found = false;

	while (!found && (s = a->first)) {
		list_del(a, s);
		found = next_batch(a, s, b);
		if (found && s->ahead < s->to)
			list_add(a, s);
	}
	if (found)
		eq_arc_ref(a->arcs, b->arc);
	return found;
}

static void *worker(void *arg)
{
	struct eq_ahead *a = arg;
	struct batch b;

	pthread_mutex_lock(&a->lock);
	while (!a->stop) {
		if (!take(a, &b)) {
			pthread_cond_wait(&a->work, &a->lock);
			continue;
		}
		if (a->first) /* for one more of us */
			pthread_cond_signal(&a->work);
		pthread_mutex_unlock(&a->lock);
		eq_cache_load(a->cache, b.arc, b.off, b.end);
		eq_arc_put(a->arcs, b.arc);
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
		rc = eq_thread_start(&a->thread[a->n_threads], worker, a);
		if (rc) {
			eq_ahead_cancel(a);
			while (a->n_threads) /* they have nothing to do yet */
				pthread_join(a->thread[--a->n_threads].id, NULL);
			eq_ahead_free(a);
			return rc;
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
	unsigned i;

	for (i = 0; i < a->n_threads; i++)
		if (!eq_thread_ended(&a->thread[i]))
			return false;
	return true;
}

void eq_ahead_free(struct eq_ahead *a)
{
	if (!a)
		return;
	pthread_cond_destroy(&a->work);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

void eq_ahead_note(struct eq_ahead *a, struct eq_stream *s, struct eq_arc *arc, uint64_t off,
		   size_t len)
{
	uint64_t end = off + len, from;

	pthread_mutex_lock(&a->lock);
	if (!s->next || off + TOLERANCE < s->next || off > s->next + TOLERANCE) {
		if (s->listed)
			list_del(a, s);
		s->next = s->ahead = s->to = end;
		s->window = 0;
	} else if (end > s->next) {
		s->next = end;
		s->window = s->window ? 2 * s->window : FIRST_WINDOW;
		if (s->window > a->window)
			s->window = a->window;
		s->to = end + s->window < arc->info->size ? end + s->window : arc->info->size;
		s->arc = arc;
		from = s->ahead > end ? s->ahead : end;
		/* In steps of some size, not an extent a request. */
		if (!s->listed && from < s->to &&
		    (s->to - from >= s->window / 4 || s->to == arc->info->size)) {
			list_add(a, s);
			pthread_cond_signal(&a->work);
		}
	}
	pthread_mutex_unlock(&a->lock);
}

void eq_ahead_forget(struct eq_ahead *a, struct eq_stream *s)
{
	pthread_mutex_lock(&a->lock);
	if (s->listed)
		list_del(a, s);
	pthread_mutex_unlock(&a->lock);
}
