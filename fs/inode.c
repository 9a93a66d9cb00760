/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eqcodec.h"
#include "inode.h"
#include "thread.h"

#define FIRST_BUCKETS 1024

static size_t bucket_of(const struct eq_nodes *t, dev_t dev, ino_t ino)
{
	uint64_t h = ((uint64_t)ino ^ ((uint64_t)dev << 40)) * UINT64_C(0x9e3779b97f4a7c15);

	return (size_t)(h >> 32) & (t->n_buckets - 1);
}

static void insert(struct eq_nodes *t, struct eq_node *n)
{
	struct eq_node **b = &t->bucket[bucket_of(t, n->dev, n->ino)];

	n->next = *b;
	*b = n;
	t->count++;
}

static void take_out(struct eq_nodes *t, struct eq_node *n)
{
	struct eq_node **p = &t->bucket[bucket_of(t, n->dev, n->ino)];

	while (*p != n)
		p = &(*p)->next;
	*p = n->next;
	t->count--;
}

static void grow(struct eq_nodes *t)
{
	size_t n = t->n_buckets, i;
	struct eq_node **old = t->bucket, **b = calloc(2 * n, sizeof(*b)), *node, *next;

	if (!b)
		return; /* longer chains, nothing worse */
	t->bucket = b;
	t->n_buckets = 2 * n;
	t->count = 0;
	for (i = 0; i < n; i++)
		for (node = old[i]; node; node = next) {
			next = node->next;
			insert(t, node);
		}
	free(old);
}

static struct eq_node *lookup(struct eq_nodes *t, dev_t dev, ino_t ino, bool archive)
{
	struct eq_node *n;

	for (n = t->bucket[bucket_of(t, dev, ino)]; n; n = n->next)
		if (n->ino == ino && n->dev == dev && n->archive == archive)
			return n;
	return NULL;
}

static struct eq_node *node_new(struct eq_nodes *t, const struct eq_found *f)
{
	struct eq_node *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->fd = f->fd;
	n->dev = f->st.st_dev;
	n->ino = f->st.st_ino;
	n->archive = f->archive;
	n->type = f->st.st_mode & S_IFMT;
	pthread_mutex_init(&n->lock, NULL);
	pthread_mutex_init(&n->change, NULL);
	insert(t, n);
	return n;
}

static void node_free(struct eq_node *n)
{
	close(n->fd);
	pthread_mutex_destroy(&n->lock);
	pthread_mutex_destroy(&n->change);
	free(n->reason);
	free(n->name);
	free(n);
}

static void leave_id(struct eq_nodes *t, struct eq_node *n, uint64_t id)
{
	if (n->heir)
		eq_id_pass(&t->ids, id, n->heir, &n->heir->also);
	else
		eq_id_leave(&t->ids, id, n->fd, n->archive, n->parent ? n->parent->id : 0);
}

static void leave_ids(struct eq_nodes *t, struct eq_node *n)
{
	while (n->also)
		leave_id(t, n, eq_id_part(&t->ids, &n->also));
	if (n->id)
		leave_id(t, n, n->id);
}

/* Under the table's lock; parents go with their last child. Returns what is to
 * be freed without the lock: closing the last descriptor of a removed file may
 * take as long as the file is large. */
static struct eq_node *unref(struct eq_nodes *t, struct eq_node *n)
{
	struct eq_node *dead = NULL, *parent;

	while (n && --n->refs == 0) {
		/* Who has an heir has no place. */
		parent = n->heir ? n->heir : n->parent;
		take_out(t, n);
		leave_ids(t, n);
		n->next = dead;
		dead = n;
		n = parent;
	}
	if (dead && t->count <= t->many)
		pthread_cond_broadcast(&t->room);
	return dead;
}

static void free_all(struct eq_node *n)
{
	struct eq_node *next;

	for (; n; n = next) {
		next = n->next;
		node_free(n);
	}
}

int eq_nodes_init(struct eq_nodes *t, int root_fd)
{
	struct eq_found f = { .fd = openat(root_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC) };
	int rc = -ENOMEM;

	memset(t, 0, sizeof(*t));
	if (f.fd < 0)
		return -errno;
	if (fstat(f.fd, &f.st)) {
		rc = -errno;
		goto err;
	}
	rc = eq_ids_init(&t->ids, root_fd);
	if (rc)
		goto err;
	rc = -ENOMEM;
	t->n_buckets = FIRST_BUCKETS;
	t->bucket = calloc(t->n_buckets, sizeof(*t->bucket));
	if (!t->bucket)
		goto err;
	t->root = node_new(t, &f);
	if (!t->root)
		goto err;
	t->root->refs = 1;
	t->root->id = EQ_ID_ROOT;
	pthread_mutex_init(&t->lock, NULL);
	eq_cond_init_monotonic(&t->crowded);
	eq_cond_init_monotonic(&t->room);
	return 0;
err:
	eq_ids_fini(&t->ids);
	free(t->bucket);
	close(f.fd);
	memset(t, 0, sizeof(*t)); /* of which eq_nodes_fini has nothing to free */
	return rc;
}

void eq_nodes_fini(struct eq_nodes *t)
{
	struct eq_node *n, *next;
	size_t i;

	/* The kernel forgets nothing one by one at unmount. */
	for (i = 0; i < t->n_buckets; i++)
		for (n = t->bucket[i]; n; n = next) {
			next = n->next;
			node_free(n);
		}
	free(t->bucket);
	eq_ids_fini(&t->ids);
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->crowded);
	pthread_cond_destroy(&t->room);
}

/* Under the table's lock. *dead: to be freed without it. */
static int move(struct eq_nodes *t, struct eq_node *n, struct eq_node *parent, const char *name,
		struct eq_node **dead)
{
	struct eq_node *old = n->parent;
	char *copy;

	*dead = NULL;
	if (old == parent && n->name && !strcmp(n->name, name))
		return 0;
	copy = strdup(name);
	free(n->name);
	n->name = copy;
	n->parent = copy ? parent : NULL;
	if (n->parent)
		parent->refs++;
	*dead = unref(t, old);
	return copy ? 0 : -ENOMEM;
}

/* One more lookup by the kernel; a node that has no reference then goes. */
static int lookup_add(struct eq_nodes *t, struct eq_node *n, struct eq_node **dead)
{
	if (!n->id) {
		n->id = n->also ? eq_id_part(&t->ids, &n->also)
				: eq_id_take(&t->ids, n->fd, n->archive, n, &n->also);
		if (!n->id) {
			n->refs++;
			*dead = unref(t, n);
			return -ENOMEM;
		}
	}
	if (n->lookups++ == 0) {
		n->refs++;
		t->known++;
	}
	return 0;
}

int eq_node_take(struct eq_nodes *t, struct eq_found *f, struct eq_node *parent, const char *name,
		 bool kernel, struct eq_node **out)
{
	struct eq_node *n, *dead = NULL;
	int rc = 0;

	*out = NULL;
	pthread_mutex_lock(&t->lock);
	n = lookup(t, f->st.st_dev, f->st.st_ino, f->archive);
	if (n) {
		close(f->fd); /* not the last one: n has its own */
	} else {
		if (t->count > t->n_buckets)
			grow(t);
		n = node_new(t, f);
		if (!n) {
			close(f->fd);
			rc = -ENOMEM;
			goto out;
		}
	}
	if (kernel)
		rc = lookup_add(t, n, &dead);
	else
		n->refs++;
	if (rc)
		goto out;
	n->used = true;
	if (t->many && t->count > t->many)
		pthread_cond_signal(&t->crowded);
	if (n != t->root && parent)
		(void)move(t, n, parent, name, &dead); /* without a place: not encoded */
	*out = n;
out:
	f->fd = -1;
	pthread_mutex_unlock(&t->lock);
	free_all(dead);
	return rc;
}

int eq_node_by_id(struct eq_nodes *t, uint64_t id, struct eq_node **out, struct eq_found *f)
{
	struct eq_fh fh;
	int rc = 0;

	f->fd = -1;
	pthread_mutex_lock(&t->lock);
	*out = eq_node_of_id(t, id);
	if (*out)
		(*out)->refs++;
	else
		rc = eq_id_kept(&t->ids, id, &fh, &f->archive);
	pthread_mutex_unlock(&t->lock);
	return *out || rc ? rc : eq_fh_open(&t->ids, &fh, f);
}

bool eq_node_answers(struct eq_nodes *t, struct eq_node *n, uint64_t id)
{
	bool yes;

	pthread_mutex_lock(&t->lock);
	yes = eq_node_of_id(t, id) == n;
	pthread_mutex_unlock(&t->lock);
	return yes;
}

void eq_node_bequeath(struct eq_nodes *t, struct eq_node *n, struct eq_node *heir)
{
	pthread_mutex_lock(&t->lock);
	n->heir = heir;
	pthread_mutex_unlock(&t->lock);
}

int eq_node_last_dir(struct eq_nodes *t, uint64_t id, struct eq_node **out, struct eq_found *f)
{
	pthread_mutex_lock(&t->lock);
	id = eq_id_parent(&t->ids, id);
	pthread_mutex_unlock(&t->lock);
	*out = NULL;
	return id ? eq_node_by_id(t, id, out, f) : -ESTALE;
}

int eq_node_show(struct eq_nodes *t, struct eq_node *n)
{
	struct eq_node *dead = NULL;
	int rc;

	pthread_mutex_lock(&t->lock);
	rc = lookup_add(t, n, &dead);
	n = unref(t, n);
	pthread_mutex_unlock(&t->lock);
	free_all(dead);
	free_all(n);
	return rc;
}

struct eq_node *eq_node_find(struct eq_nodes *t, const struct eq_found *f)
{
	struct eq_node *n;

	pthread_mutex_lock(&t->lock);
	n = lookup(t, f->st.st_dev, f->st.st_ino, f->archive);
	if (n)
		n->refs++;
	pthread_mutex_unlock(&t->lock);
	return n;
}

void eq_node_ref(struct eq_nodes *t, struct eq_node *n)
{
	pthread_mutex_lock(&t->lock);
	n->refs++;
	pthread_mutex_unlock(&t->lock);
}

void eq_node_unref(struct eq_nodes *t, struct eq_node *n)
{
	if (!n)
		return;
	pthread_mutex_lock(&t->lock);
	n = unref(t, n);
	pthread_mutex_unlock(&t->lock);
	free_all(n);
}

void eq_node_ref_wait(struct eq_nodes *t, struct eq_node *n)
{
	pthread_mutex_lock(&t->lock);
	n->refs++;
	n->waits++;
	pthread_mutex_unlock(&t->lock);
}

void eq_node_unref_wait(struct eq_nodes *t, struct eq_node *n)
{
	pthread_mutex_lock(&t->lock);
	n->waits--;
	n = unref(t, n);
	pthread_mutex_unlock(&t->lock);
	free_all(n);
}

bool eq_node_waits_only(struct eq_nodes *t, struct eq_node *n)
{
	bool yes;

	pthread_mutex_lock(&t->lock);
	yes = n->refs == n->waits + 1 && !n->lookups;
	pthread_mutex_unlock(&t->lock);
	return yes;
}

void eq_node_forget(struct eq_nodes *t, struct eq_node *node, uint64_t n)
{
	struct eq_node *dead = NULL;

	pthread_mutex_lock(&t->lock);
	if (node != t->root && node->lookups) {
		node->lookups -= n < node->lookups ? n : node->lookups;
		if (!node->lookups) {
			t->known--;
			dead = unref(t, node);
		}
	}
	pthread_mutex_unlock(&t->lock);
	free_all(dead);
}

size_t eq_nodes_idle(struct eq_nodes *t, struct eq_node **out, size_t max, size_t *left)
{
	struct eq_node *n;
	size_t got = 0;

	pthread_mutex_lock(&t->lock);
	for (; *left && got < max; --*left) {
		t->hand = (t->hand + 1) & (t->n_buckets - 1);
		for (n = t->bucket[t->hand]; n && got < max; n = n->next) {
			if (n == t->root || n->refs != n->waits + (n->lookups > 0))
				continue;
			if (!n->used) {
				n->refs++;
				out[got++] = n;
			}
			n->used = false;
		}
	}
	pthread_mutex_unlock(&t->lock);
	return got;
}

int eq_node_place(struct eq_nodes *t, struct eq_node *n, struct eq_node **parent,
		  char name[NAME_MAX + 1])
{
	int rc = -ENOENT;

	*parent = NULL;
	pthread_mutex_lock(&t->lock);
	if (n->parent && strlen(n->name) <= NAME_MAX) {
		*parent = n->parent;
		n->parent->refs++;
		strcpy(name, n->name);
		rc = 0;
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

int eq_node_move(struct eq_nodes *t, struct eq_node *n, struct eq_node *parent, const char *name)
{
	struct eq_node *dead;
	int rc;

	pthread_mutex_lock(&t->lock);
	rc = move(t, n, parent, name, &dead);
	pthread_mutex_unlock(&t->lock);
	free_all(dead);
	return rc;
}

void eq_node_remove(struct eq_nodes *t, struct eq_node *n, struct eq_node *parent,
		    const char *name)
{
	struct eq_node *old, *dead = NULL;

	pthread_mutex_lock(&t->lock);
	old = n->parent;
	if (old && (!parent || (old == parent && !strcmp(n->name, name)))) {
		if (n->id) /* it may have other names there */
			eq_id_seen(&t->ids, n->id, old->id);
		free(n->name);
		n->name = NULL;
		n->parent = NULL;
		dead = unref(t, old);
	}
	pthread_mutex_unlock(&t->lock);
	free_all(dead);
}

bool eq_node_partial(struct eq_nodes *t, struct eq_node *n)
{
	bool yes;

	pthread_mutex_lock(&t->lock);
	yes = n->name && eq_name_is_partial(n->name);
	pthread_mutex_unlock(&t->lock);
	return yes;
}

/* Where the kernel believes it to be in the store; "" if that is nowhere. */
static void path_below(struct eq_nodes *t, struct eq_node *n, char buf[PATH_MAX])
{
	char proc[EQ_PROC_SIZE], root[PATH_MAX];
	ssize_t len, top;
	struct stat st;

	buf[0] = '\0';
	eq_proc_path(proc, t->root->fd);
	top = readlink(proc, root, sizeof(root));
	eq_proc_path(proc, n->fd);
	len = readlink(proc, buf, PATH_MAX - 1);
	buf[len > 0 ? len : 0] = '\0';
	if (top > 0 && len > top + 1 && !memcmp(buf, root, (size_t)top) && buf[top] == '/' &&
	    fstat(n->fd, &st) == 0 && st.st_nlink > 0)
		memmove(buf, buf + top + 1, (size_t)(len - top));
	else
		buf[0] = '\0';
	if (n->archive && eq_name_is_archive(buf))
		buf[strlen(buf) - strlen(EQ_SUFFIX)] = '\0';
}

void eq_node_path(struct eq_nodes *t, struct eq_node *n, char *buf, size_t size)
{
	char below[PATH_MAX];
	size_t at = size - 1, len;
	const char *name;

	/* From the end of buf backwards, then to its beginning. */
	buf[at] = '\0';
	pthread_mutex_lock(&t->lock);
	for (; n != t->root; n = n->parent) {
		name = n->name;
		if (!n->parent) {
			path_below(t, n, below);
			name = below[0] ? below : "(removed)";
		}
		len = strlen(name);
		if (len + 1 > at)
			break;
		if (buf[at])
			buf[--at] = '/';
		at -= len;
		memcpy(buf + at, name, len);
		if (!n->parent)
			break;
	}
	pthread_mutex_unlock(&t->lock);
	memmove(buf, buf + at, size - at);
	if (!buf[0])
		strcpy(buf, ".");
}

int eq_node_rebind(struct eq_nodes *t, struct eq_node *n, int fd, bool archive)
{
	struct stat st;
	int rc = 0;

	if (fstat(fd, &st))
		return -errno;
	pthread_mutex_lock(&t->lock);
	/* The number stays, so that no other thread can be caught with a closed one. */
	if (dup3(fd, n->fd, O_CLOEXEC) < 0) {
		rc = -errno;
	} else {
		take_out(t, n);
		n->dev = st.st_dev;
		n->ino = st.st_ino;
		n->archive = archive;
		insert(t, n);
		close(fd);
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

bool eq_node_logged(struct eq_node *n, const char *text)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);
	bool known = false;
	unsigned i;

	for (; *text; text++)
		h = (h ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
	pthread_mutex_lock(&n->lock);
	for (i = 0; i < EQ_NODE_LOGGED && i < n->n_logged; i++)
		known |= n->logged[i] == h;
	if (!known)
		n->logged[n->n_logged++ % EQ_NODE_LOGGED] = h;
	pthread_mutex_unlock(&n->lock);
	return known;
}
