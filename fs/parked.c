/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compact_priv.h"

#define MAX_PARKED (1 << 20)    /* beyond that the next mount may find what was lost */

struct eq_parked {
	struct eq_wait wait;    /* first; in the queue, or it is lost until it is seen */
	struct eq_parked *chain;
	dev_t dev;
	ino_t ino;
	struct eq_node *parent; /* with a reference; NULL: nobody comes for it there */
	char *reason;           /* as the node's */
	char name[];
};

static struct eq_parked **bucket_of(struct eq_compact *c, dev_t dev, ino_t ino)
{
	uint64_t h = ((uint64_t)ino ^ ((uint64_t)dev << 40)) * UINT64_C(0x9e3779b97f4a7c15);

	return &c->parked[(h >> 32) % EQ_PARKED_BUCKETS];
}

/* Where the entry of this file is to be found; it may be none. Under the lock. */
static struct eq_parked **find(struct eq_compact *c, dev_t dev, ino_t ino)
{
	struct eq_parked **p = bucket_of(c, dev, ino);

	while (*p && ((*p)->ino != ino || (*p)->dev != dev))
		p = &(*p)->chain;
	return p;
}

static struct eq_parked *take_out(struct eq_compact *c, struct eq_parked **at)
{
	struct eq_parked *p = *at;

	*at = p->chain;
	eq_queue_del(&c->queue, &p->wait);
	c->n_parked--;
	return p;
}

/* Not under c->lock. NULL is fine. */
static void parked_free(struct eq_fs *fs, struct eq_parked *p)
{
	if (!p)
		return;
	eq_node_unref(&fs->nodes, p->parent);
	free(p->reason);
	free(p);
}

/* queued: it is; otherwise it takes no place, which would cost the directory's descriptor. */
static struct eq_parked *parked_new(struct eq_fs *fs, struct eq_node *n, bool queued)
{
	char name[NAME_MAX + 1] = "";
	struct eq_node *parent = NULL;
	struct eq_parked *p;

	if (queued)
		(void)eq_node_place(&fs->nodes, n, &parent, name);
	p = calloc(1, sizeof(*p) + strlen(name) + 1);
	if (!p) {
		eq_node_unref(&fs->nodes, parent);
		return NULL;
	}
	p->parent = parent;
	strcpy(p->name, name);
	p->dev = n->dev;
	p->ino = n->ino;
	return p;
}

/* Under n->lock. Does nobody hold n but what it is dirty for? */
static bool idle(struct eq_fs *fs, struct eq_node *n)
{
	return n->dirty && !n->files && !n->swapped && !n->archive &&
	       eq_node_waits_only(&fs->nodes, n) && eq_dirty_marked(fs, n);
}

/* Put p in the place of n, whose lock is held. *old: what had its place, of a file that has
 * gone, or NULL. *was: n was in the queue. false: it has to stay. */
static bool replace(struct eq_compact *c, struct eq_node *n, struct eq_parked *p,
		    struct eq_parked **old, bool *was)
{
	struct eq_parked **at;

	pthread_mutex_lock(&c->lock);
	if (n->wait.listed && !p->parent) {
		pthread_mutex_unlock(&c->lock);
		return false;
	}
	*was = eq_queue_del(&c->queue, &n->wait);
	at = find(c, p->dev, p->ino);
	*old = *at ? take_out(c, at) : NULL;
	p->chain = *at;
	*at = p;
	p->reason = n->reason;
	n->reason = NULL;
	p->wait.due = n->wait.due;
	p->wait.bytes = n->wait.bytes;
	if (*was)
		eq_queue_add(&c->queue, &p->wait);
	c->n_parked++;
	pthread_mutex_unlock(&c->lock);
	n->dirty = n->pinned = false;
	return true;
}

bool eq_compact_park(struct eq_fs *fs, struct eq_node *n)
{
	bool dirty, queued = false, was = false, done;
	struct eq_parked *p, *old = NULL;

	pthread_mutex_lock(&n->lock);
	dirty = n->dirty;
	if (dirty) {
		pthread_mutex_lock(&fs->compact->lock);
		queued = n->wait.listed;
		pthread_mutex_unlock(&fs->compact->lock);
	}
	pthread_mutex_unlock(&n->lock);
	p = dirty ? parked_new(fs, n, queued) : NULL;
	if (!p)
		return false;
	pthread_mutex_lock(&n->lock);
	done = idle(fs, n) && replace(fs->compact, n, p, &old, &was);
	pthread_mutex_unlock(&n->lock);
	parked_free(fs, done ? old : p);
	if (!done)
		return false;
	eq_node_unref_wait(&fs->nodes, n);
	if (was)
		eq_node_unref_wait(&fs->nodes, n);
	return true;
}

/* Under n->lock. n goes on where p was. */
static void revive(struct eq_fs *fs, struct eq_node *n, struct eq_parked *p, bool due)
{
	n->dirty = n->pinned = true;
	free(n->reason);
	n->reason = p->reason;
	p->reason = NULL;
	eq_node_ref_wait(&fs->nodes, n);
	if (due)
		eq_dirty_queue(fs, n, &p->wait.due);
}

void eq_parked_revive(struct eq_fs *fs, struct eq_node *n)
{
	struct eq_compact *c = fs->compact;
	struct eq_parked **at, *p = NULL;
	bool due = false;

	pthread_mutex_lock(&n->lock); /* it may be about to be parked */
	if (c->n_parked && S_ISREG(n->type) && !n->archive) {
		pthread_mutex_lock(&c->lock);
		at = find(c, n->dev, n->ino);
		if (*at) {
			due = (*at)->wait.listed;
			p = take_out(c, at);
		}
		pthread_mutex_unlock(&c->lock);
	}
	if (p && !n->dirty && eq_dirty_marked(fs, n))
		revive(fs, n, p, due);
	pthread_mutex_unlock(&n->lock);
	parked_free(fs, p);
}

void eq_parked_take(struct eq_compact *c, struct eq_wait *w, struct eq_parked_place *out)
{
	struct eq_parked *p = (struct eq_parked *)w;

	eq_queue_del(&c->queue, w);
	out->dev = p->dev;
	out->ino = p->ino;
	out->parent = p->parent;
	strcpy(out->name, p->name);
	eq_node_ref(&c->fs->nodes, out->parent);
}

/* It is not where it was, and may be seen elsewhere: one of so many. */
static void lose(struct eq_compact *c, const struct eq_parked_place *at)
{
	struct eq_parked **e, *p = NULL;
	struct eq_node *parent = NULL;

	pthread_mutex_lock(&c->lock);
	e = find(c, at->dev, at->ino);
	if (*e && c->n_parked > MAX_PARKED) {
		p = take_out(c, e);
	} else if (*e && !(*e)->wait.listed) {
		parent = (*e)->parent;
		(*e)->parent = NULL;
	}
	pthread_mutex_unlock(&c->lock);
	parked_free(c->fs, p);
	eq_node_unref(&c->fs->nodes, parent);
}

struct eq_node *eq_parked_find(struct eq_fs *fs, struct eq_parked_place *at)
{
	struct eq_node *n = NULL;
	struct eq_found f;
	bool found;

	pthread_rwlock_rdlock(&fs->names);
	found = eq_name_find(at->parent->fd, at->name, &f) == 0;
	if (found && (f.archive || f.st.st_ino != at->ino || f.st.st_dev != at->dev)) {
		close(f.fd);
		found = false;
	}
	if (found)
		(void)eq_node_take(&fs->nodes, &f, at->parent, at->name, false, &n);
	pthread_rwlock_unlock(&fs->names);
	eq_node_unref(&fs->nodes, at->parent);
	if (n)
		eq_parked_revive(fs, n);
	else
		lose(fs->compact, at);
	return n;
}

void eq_parked_free(struct eq_compact *c)
{
	struct eq_parked *p;
	size_t i;

	for (i = 0; i < EQ_PARKED_BUCKETS; i++)
		while ((p = c->parked[i])) {
			c->parked[i] = p->chain;
			parked_free(c->fs, p);
		}
}
