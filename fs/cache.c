/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entries in use are pinned. The others are on one of two lists, in the order
 * in which they go: `spent`, whose bytes the kernel has already taken into its
 * page cache, and `kept`. A new entry takes over the buffer of a spent one as
 * soon as there are a few, long before the limit: a buffer that was in use a
 * moment ago is still in the processor's caches, and its pages exist.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cache.h"
#include "slab.h"

#define ALIGN 64
#define BUCKETS 4096
#define SPENT_BYTES ((size_t)4 << 20) /* kept of these before they are reused */
#define SPENT_MOST (4 * SPENT_BYTES)    /* and before they are freed: more is soon wanted again */
#define LEAST_HUGE (8 * EQ_SLAB_BYTES) /* a lower limit would do without most of a page */

enum state { LOADING, READY, FAILED };

struct eq_extent_entry {
	struct eq_extent_entry *next;           /* of the bucket */
	struct eq_extent_entry *before, *after; /* of a list, when not pinned */
	struct list *on;
	uint64_t arc;
	struct eq_extent ext;
	enum state state;
	unsigned pins;
	uint64_t taken;         /* bytes released with `once` */
	bool ahead;             /* loaded ahead, and no reader has come yet */
	struct eq_room room;
	pthread_cond_t done;    /* no longer LOADING */
};

struct list {
	struct eq_extent_entry *first, *last;
	size_t bytes;
};

struct eq_cache {
	pthread_mutex_t lock;
	struct eq_pool *pool;
	const struct eq_backend *backend;
	size_t batch;           /* extents to decode in one call */
	size_t limit;
	size_t entries;         /* that exist */
	struct list kept, spent;
	struct eq_slabs slabs;
	struct eq_cache_stats stats;
	struct eq_extent_entry *bucket[BUCKETS];
};

/* Memory that is taken, also by free places of huge pages. */
static size_t held(const struct eq_cache *c)
{
	return c->slabs.held + c->entries * sizeof(struct eq_extent_entry);
}

int eq_cache_create(size_t limit, struct eq_pool *pool, const struct eq_backend *backend,
		    struct eq_cache **out)
{
	struct eq_cache *c = calloc(1, sizeof(*c));

	*out = c;
	if (!c)
		return -ENOMEM;
	pthread_mutex_init(&c->lock, NULL);
	c->limit = limit;
	c->pool = pool;
	c->backend = backend;
	/* A device wants much at once; a core, as many as fill its pipelines: one chunk
	 * alone waits for its own results, and two or four hardly take longer. */
	c->batch = backend == eq_backend_cpu() ? eq_cpu_streams() : EQ_PIECES;
	return 0;
}

static void entry_free(struct eq_cache *c, struct eq_extent_entry *e)
{
	pthread_cond_destroy(&e->done);
	eq_slab_put(&c->slabs, &e->room);
	free(e);
	c->entries--;
}

void eq_cache_free(struct eq_cache *c)
{
	struct eq_extent_entry *e, *next;
	size_t i;

	if (!c)
		return;
	for (i = 0; i < BUCKETS; i++)
		for (e = c->bucket[i]; e; e = next) {
			next = e->next;
			entry_free(c, e);
		}
	pthread_mutex_destroy(&c->lock);
	free(c);
}

static struct eq_extent_entry **bucket(struct eq_cache *c, uint64_t arc, uint64_t begin)
{
	uint64_t h = (begin ^ arc << 48) * UINT64_C(0x9e3779b97f4a7c15);

	return &c->bucket[h >> 52 & (BUCKETS - 1)];
}

static void list_add(struct list *l, struct eq_extent_entry *e)
{
	e->on = l;
	e->after = NULL;
	e->before = l->last;
	*(l->last ? &l->last->after : &l->first) = e;
	l->last = e;
	l->bytes += e->room.size;
}

static void list_del(struct eq_extent_entry *e)
{
	struct list *l = e->on;

	*(e->before ? &e->before->after : &l->first) = e->after;
	*(e->after ? &e->after->before : &l->last) = e->before;
	l->bytes -= e->room.size;
	e->on = NULL;
}

static void unhash(struct eq_cache *c, struct eq_extent_entry *e)
{
	struct eq_extent_entry **p = bucket(c, e->arc, e->ext.begin);

	while (*p != e)
		p = &(*p)->next;
	*p = e->next;
}

static void pin(struct eq_extent_entry *e)
{
	if (e->pins++ == 0 && e->on)
		list_del(e);
}

static void unpin(struct eq_cache *c, struct eq_extent_entry *e)
{
	if (--e->pins)
		return;
	if (e->state == FAILED) /* off the table already */
		entry_free(c, e);
	else
		list_add(e->taken >= e->ext.len ? &c->spent : &c->kept, e);
}

static struct eq_extent_entry *find(struct eq_cache *c, uint64_t arc, uint64_t begin)
{
	struct eq_extent_entry *e;

	for (e = *bucket(c, arc, begin); e; e = e->next)
		if (e->ext.begin == begin && e->arc == arc)
			return e;
	return NULL;
}

static void evict(struct eq_cache *c, struct eq_extent_entry *e)
{
	list_del(e);
	unhash(c, e);
	c->stats.evictions++;
}

static bool idle(const void *owner)
{
	return ((const struct eq_extent_entry *)owner)->pins == 0;
}

/* Give back a huge page of which little is used, if there is one. */
static bool clear_spare(struct eq_cache *c)
{
	void *owner[EQ_SLAB_PLACES];
	unsigned n = eq_slab_spare(&c->slabs, idle, owner), i;

	for (i = 0; i < n; i++) {
		evict(c, owner[i]);
		entry_free(c, owner[i]);
	}
	return n > 0;
}

/* Would another entry with a buffer of `len` bytes be too much? 0: no other one. */
static bool over(const struct eq_cache *c, size_t len)
{
	size_t more = len ? eq_slab_growth(&c->slabs, len, c->limit >= LEAST_HUGE) +
			    sizeof(struct eq_extent_entry) : 0;

	return held(c) + more > c->limit;
}

/* Make room for `len` bytes. An entry with a buffer of that size, if one had to
 * go, is returned for reuse, pinned, off the table and all lists. */
static struct eq_extent_entry *recycle(struct eq_cache *c, size_t len)
{
	struct eq_extent_entry *e, *found = NULL;

	for (;;) {
		if (c->spent.bytes <= (found ? SPENT_MOST : SPENT_BYTES)) {
			if (!over(c, found ? 0 : len))
				break;
			if (clear_spare(c))
				continue;
		}
		e = c->spent.first ? c->spent.first : c->kept.first;
		if (!e)
			break;
		evict(c, e);
		if (!found && e->room.size == len) {
			found = e;
			found->pins = 1;
		} else {
			entry_free(c, e);
		}
	}
	return found;
}

/* A pinned entry in state LOADING. */
static struct eq_extent_entry *add(struct eq_cache *c, uint64_t arc, const struct eq_extent *ext)
{
	size_t cap = (ext->len + ALIGN - 1) / ALIGN * ALIGN;
	struct eq_extent_entry *e = recycle(c, cap), **b;

	if (!e) {
		e = calloc(1, sizeof(*e));
		if (!e)
			return NULL;
		/* Too much although nothing is left to go: no more than needed, then. */
		e->room = eq_slab_get(&c->slabs, cap,
				      c->limit >= LEAST_HUGE && !over(c, cap), e);
		if (!e->room.data) {
			free(e);
			return NULL;
		}
		c->entries++;
		pthread_cond_init(&e->done, NULL);
	}
	e->arc = arc;
	e->ext = *ext;
	e->state = LOADING;
	e->pins = 1;
	e->taken = 0;
	e->ahead = false;
	b = bucket(c, arc, ext->begin);
	e->next = *b;
	*b = e;
	return e;
}

/* The entry is decoded, or failed and leaves the table. */
static void finish(struct eq_cache *c, struct eq_extent_entry *e, int status)
{
	e->state = status ? FAILED : READY;
	if (status) {
		c->stats.failed++;
		unhash(c, e);
	} else {
		c->stats.decoded_bytes += e->ext.len;
	}
	pthread_cond_broadcast(&e->done);
}

struct decode {
	struct eq_cache *c;
	struct eq_archive *archive;
	struct eq_extent_entry *entry[EQ_PIECES];
	size_t n;
	int rc;                 /* of a failed one, under the cache's lock like err */
	struct eq_error *err;
};

static void decode_some(void *arg, size_t group)
{
	struct decode *d = arg;
	size_t from = group * d->c->batch, n = d->n - from, i;
	struct eq_extent_job jobs[EQ_PIECES];
	struct eq_error err = { "" };
	int rc;

	if (n > d->c->batch)
		n = d->c->batch;
	for (i = 0; i < n; i++)
		jobs[i] = (struct eq_extent_job){ .ext = d->entry[from + i]->ext,
						  .out = d->entry[from + i]->room.data };
	rc = eq_archive_decode(d->archive, d->c->backend, jobs, n, &err);
	pthread_mutex_lock(&d->c->lock);
	if (rc) {
		d->rc = rc;
		if (d->err)
			*d->err = err;
	}
	for (i = 0; i < n; i++)
		finish(d->c, d->entry[from + i], jobs[i].status);
	pthread_mutex_unlock(&d->c->lock);
}

static void decode(struct decode *d)
{
	eq_pool_for(d->c->pool, (d->n + d->c->batch - 1) / d->c->batch, decode_some, d);
}

int eq_cache_get(struct eq_cache *c, struct eq_arc *arc, uint64_t off, size_t len,
		 struct eq_piece pieces[EQ_PIECES], struct eq_error *err)
{
	struct decode d = { .c = c, .archive = arc->archive, .err = err };
	struct eq_extent ext;
	int n = 0, k, rc = 0;

	pthread_mutex_lock(&c->lock);
	for (; n < EQ_PIECES && len; n++) {
		struct eq_piece *p = &pieces[n];
		struct eq_extent_entry *e = NULL;
		size_t skip;

		rc = eq_archive_locate(arc->archive, off, &ext);
		if (rc) {
			eq_fail(err, rc, "no extent at offset %llu", (unsigned long long)off);
			break;
		}
		skip = (size_t)(off - ext.begin);
		p->len = ext.len - skip < len ? (size_t)(ext.len - skip) : len;
		if (ext.tensor < 0) {
			p->data = eq_archive_prefix(arc->archive) + off; /* in slices, but one */
		} else {
			e = find(c, arc->id, ext.begin);
			if (e) {
				c->stats.hits++;
				c->stats.ahead_hits += e->ahead;
				e->ahead = false;
				pin(e);
			} else {
				c->stats.misses++;
				e = add(c, arc->id, &ext);
				if (!e) {
					rc = eq_fail(err, -ENOMEM, "out of memory for an extent");
					break;
				}
				d.entry[d.n++] = e;
			}
			p->data = e->room.data + skip;
		}
		p->entry = e;
		off += p->len;
		len -= p->len;
	}
	pthread_mutex_unlock(&c->lock);
	/* What we promised to decode comes before waiting for others, who may be
	 * waiting for us. */
	decode(&d);
	if (d.rc)
		rc = d.rc;
	pthread_mutex_lock(&c->lock);
	for (k = 0; k < n; k++)
		while (pieces[k].entry && pieces[k].entry->state == LOADING)
			pthread_cond_wait(&pieces[k].entry->done, &c->lock);
	for (k = 0; !rc && k < n; k++)
		if (pieces[k].entry && pieces[k].entry->state == FAILED)
			rc = -EAGAIN;
	pthread_mutex_unlock(&c->lock);
	if (!rc)
		return n;
	eq_cache_release(c, pieces, n, false);
	return rc;
}

void eq_cache_release(struct eq_cache *c, struct eq_piece *pieces, int n, bool once)
{
	int k;

	pthread_mutex_lock(&c->lock);
	for (k = 0; k < n; k++) {
		if (!pieces[k].entry)
			continue;
		if (once)
			pieces[k].entry->taken += pieces[k].len;
		unpin(c, pieces[k].entry);
	}
	pthread_mutex_unlock(&c->lock);
}

void eq_cache_stats(struct eq_cache *c, struct eq_cache_stats *out)
{
	pthread_mutex_lock(&c->lock);
	*out = c->stats;
	out->bytes = held(c);
	out->limit = c->limit;
	pthread_mutex_unlock(&c->lock);
}

size_t eq_cache_batch(const struct eq_cache *c)
{
	return c->batch;
}

void eq_cache_load(struct eq_cache *c, struct eq_arc *arc, uint64_t off, uint64_t end)
{
	struct decode d = { .c = c, .archive = arc->archive };
	struct eq_extent_entry *e;
	struct eq_extent ext;
	size_t i;

	pthread_mutex_lock(&c->lock);
	for (; d.n < c->batch && off < end; off = ext.begin + ext.len) {
		if (eq_archive_locate(arc->archive, off, &ext))
			break;
		if (ext.tensor < 0 || find(c, arc->id, ext.begin))
			continue;
		e = add(c, arc->id, &ext);
		if (!e)
			break;
		e->ahead = true;
		c->stats.ahead++;
		d.entry[d.n++] = e;
	}
	pthread_mutex_unlock(&c->lock);
	if (!d.n)
		return;
	decode_some(&d, 0);
	pthread_mutex_lock(&c->lock);
	for (i = 0; i < d.n; i++)
		unpin(c, d.entry[i]);
	pthread_mutex_unlock(&c->lock);
}
