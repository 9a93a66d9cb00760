/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "ids.h"

#define BLOCK_BITS 12
#define BLOCK_SIZE (UINT32_C(1) << BLOCK_BITS)
#define MAX_BLOCKS (UINT32_C(1) << 16)
#define FIRST_BUCKETS 1024
#define MAX_KEPT (UINT32_C(1) << 20)    /* beyond that the kernel hears of stale handles */
#define NONE UINT32_MAX

/* A number is the entry's index and, above it, a count of the entry's uses. */
struct eq_id {
	struct eq_node *_Atomic node;   /* NULL: kept, or not in use */
	ino_t ino;                      /* of a kept one, as handle and archive */
	uint32_t next;                  /* in its bucket, of those not in use, of a node's */
	uint32_t turn;
	uint32_t parent;                /* lower half of its number */
	struct eq_fh fh;                /* len 0: none */
	bool archive;
};

static struct eq_id *entry(const struct eq_ids *ids, uint32_t at)
{
	return &ids->block[at >> BLOCK_BITS][at & (BLOCK_SIZE - 1)];
}

static uint32_t index_of(uint64_t id)
{
	return (uint32_t)id - EQ_ID_FIRST;
}

static uint64_t number(const struct eq_ids *ids, uint32_t at)
{
	return (uint64_t)entry(ids, at)->turn << 32 | (at + EQ_ID_FIRST);
}

/* The entry of any number, also one that never was: then NULL. */
static struct eq_id *find(const struct eq_ids *ids, uint64_t id)
{
	uint32_t at = index_of(id);
	struct eq_id *e;

	if ((uint32_t)id < EQ_ID_FIRST || at >= ids->used)
		return NULL;
	e = entry(ids, at);
	return e->turn == id >> 32 ? e : NULL;
}

/* ---- the store's handles --------------------------------------------------------- */

union room {
	struct file_handle h;
	unsigned char bytes[sizeof(struct file_handle) + sizeof(((struct eq_fh *)NULL)->bytes)];
};

static bool fh_of(int fd, struct eq_fh *fh)
{
	union room u = { .h.handle_bytes = sizeof(fh->bytes) };
	int mount_id;

	if (name_to_handle_at(fd, "", &u.h, &mount_id, AT_EMPTY_PATH) || !u.h.handle_bytes ||
	    u.h.handle_type < 0 || u.h.handle_type > UINT8_MAX)
		return false;
	fh->type = (unsigned char)u.h.handle_type;
	fh->len = (unsigned char)u.h.handle_bytes;
	memcpy(fh->bytes, u.h.f_handle, u.h.handle_bytes);
	return true;
}

int eq_fh_open(const struct eq_ids *ids, const struct eq_fh *fh, struct eq_found *f)
{
	union room u = { .h = { .handle_bytes = fh->len, .handle_type = fh->type } };
	int rc = 0;

	memcpy(u.h.f_handle, fh->bytes, fh->len);
	f->fd = open_by_handle_at(ids->store_fd, &u.h, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (f->fd < 0 || fstat(f->fd, &f->st))
		rc = -errno;
	else if (!f->st.st_nlink || f->st.st_dev != ids->dev)
		rc = -ESTALE;
	if (rc && f->fd >= 0)
		close(f->fd);
	if (rc)
		f->fd = -1;
	return rc;
}

/* ---- the table ------------------------------------------------------------------- */

int eq_ids_init(struct eq_ids *ids, int store_fd)
{
	struct eq_found f;
	struct eq_fh fh;
	struct stat st;

	memset(ids, 0, sizeof(*ids));
	ids->store_fd = store_fd;
	ids->spare = NONE;
	if (fstat(store_fd, &st))
		return -errno;
	ids->dev = st.st_dev;
	while (!ids->generation) /* so that handles of another mount are none of this one */
		if (getrandom(&ids->generation, sizeof(ids->generation), 0) < 0 ||
		    getrandom(&ids->turn, sizeof(ids->turn), 0) < 0)
			return -errno;
	ids->turn /= 2; /* half of them are left */
	ids->block = calloc(MAX_BLOCKS, sizeof(*ids->block));
	ids->bucket = malloc(FIRST_BUCKETS * sizeof(*ids->bucket));
	if (!ids->block || !ids->bucket)
		return -ENOMEM;
	ids->n_buckets = FIRST_BUCKETS;
	memset(ids->bucket, 0xff, FIRST_BUCKETS * sizeof(*ids->bucket));
	ids->keeps = fh_of(store_fd, &fh) && eq_fh_open(ids, &fh, &f) == 0;
	if (ids->keeps)
		close(f.fd);
	return 0;
}

void eq_ids_fini(struct eq_ids *ids)
{
	uint32_t i;

	for (i = 0; ids->block && i < MAX_BLOCKS && ids->block[i]; i++)
		free(ids->block[i]);
	free(ids->block);
	free(ids->bucket);
}

struct eq_node *eq_id_node(const struct eq_ids *ids, uint64_t id)
{
	const struct eq_id *e = find(ids, id);

	return e ? e->node : NULL;
}

/* ---- kept ones ------------------------------------------------------------------- */

static bool is_kept(const struct eq_id *e)
{
	return !e->node && e->fh.len;
}

static uint32_t *bucket_of(const struct eq_ids *ids, ino_t ino)
{
	uint64_t h = (uint64_t)ino * UINT64_C(0x9e3779b97f4a7c15);

	return &ids->bucket[(uint32_t)(h >> 32) & (ids->n_buckets - 1)];
}

static void insert(struct eq_ids *ids, uint32_t at)
{
	uint32_t *b = bucket_of(ids, entry(ids, at)->ino);

	entry(ids, at)->next = *b;
	*b = at;
}

static void grow(struct eq_ids *ids)
{
	uint32_t n = ids->n_buckets, *old = ids->bucket, i, at, next;
	uint32_t *b = malloc(2 * n * sizeof(*b));

	if (!b)
		return; /* longer chains, nothing worse */
	memset(b, 0xff, 2 * n * sizeof(*b));
	ids->bucket = b;
	ids->n_buckets = 2 * n;
	for (i = 0; i < n; i++)
		for (at = old[i]; at != NONE; at = next) {
			next = entry(ids, at)->next;
			insert(ids, at);
		}
	free(old);
}

static void take_out(struct eq_ids *ids, uint32_t at)
{
	uint32_t *p = bucket_of(ids, entry(ids, at)->ino);

	while (*p != at)
		p = &entry(ids, *p)->next;
	*p = entry(ids, at)->next;
	entry(ids, at)->fh.len = 0;
	ids->kept--;
}

/* The number is not to be had again. */
static void retire(struct eq_ids *ids, uint32_t at)
{
	struct eq_id *e = entry(ids, at);

	e->node = NULL;
	e->fh.len = 0;
	e->parent = 0;
	if (++e->turn == UINT32_MAX)
		return;
	e->next = ids->spare;
	ids->spare = at;
}

static void give_up_one(struct eq_ids *ids)
{
	do
		ids->hand = (ids->hand + 1) % ids->used;
	while (!is_kept(entry(ids, ids->hand)));
	take_out(ids, ids->hand);
	retire(ids, ids->hand);
}

static bool fh_same(const struct eq_fh *a, const struct eq_fh *b)
{
	return a->type == b->type && a->len == b->len && !memcmp(a->bytes, b->bytes, a->len);
}

/* The numbers that are kept for this file become n's, and join the list. */
static void revive(struct eq_ids *ids, int fd, bool archive, struct eq_node *n, uint64_t *also)
{
	struct eq_fh fh = { .len = 0 };
	struct eq_id *e;
	struct stat st;
	uint32_t at, next;
	bool same;

	if (!ids->kept || fstat(fd, &st) || st.st_dev != ids->dev)
		return;
	for (at = *bucket_of(ids, st.st_ino); at != NONE; at = next) {
		e = entry(ids, at);
		next = e->next;
		if (e->ino != st.st_ino || e->archive != archive)
			continue;
		if (!fh.len && !fh_of(fd, &fh))
			return;
		same = fh_same(&fh, &e->fh);
		take_out(ids, at);
		if (same)
			eq_id_pass(ids, number(ids, at), n, also);
		else /* another file has its inode by now */
			retire(ids, at);
	}
}

static uint32_t fresh(struct eq_ids *ids)
{
	uint32_t at = ids->spare, block = ids->used >> BLOCK_BITS;

	if (at != NONE) {
		ids->spare = entry(ids, at)->next;
		return at;
	}
	if (block == MAX_BLOCKS)
		return NONE;
	if (!ids->block[block])
		ids->block[block] = calloc(BLOCK_SIZE, sizeof(**ids->block));
	if (!ids->block[block])
		return NONE;
	entry(ids, ids->used)->turn = ids->turn;
	return ids->used++;
}

uint64_t eq_id_take(struct eq_ids *ids, int fd, bool archive, struct eq_node *n, uint64_t *also)
{
	uint32_t at;

	revive(ids, fd, archive, n, also);
	if (*also)
		return eq_id_part(ids, also);
	at = fresh(ids);
	if (at == NONE)
		return 0;
	entry(ids, at)->node = n;
	return number(ids, at);
}

/* By what the file is found again. false: not at all. */
static bool describe(struct eq_ids *ids, struct eq_id *e, int fd, bool archive)
{
	struct stat st;

	if (!ids->keeps || fstat(fd, &st) || !st.st_nlink || st.st_dev != ids->dev ||
	    !fh_of(fd, &e->fh))
		return false;
	e->ino = st.st_ino;
	e->archive = archive;
	return true;
}

void eq_id_pass(struct eq_ids *ids, uint64_t id, struct eq_node *n, uint64_t *also)
{
	struct eq_id *e = entry(ids, index_of(id));

	e->node = n;
	e->next = (uint32_t)*also;
	*also = id;
}

uint64_t eq_id_part(const struct eq_ids *ids, uint64_t *also)
{
	uint64_t id = *also;
	uint32_t next = entry(ids, index_of(id))->next;

	*also = next ? number(ids, index_of(next)) : 0;
	return id;
}

void eq_id_leave(struct eq_ids *ids, uint64_t id, int fd, bool archive, uint64_t parent)
{
	uint32_t at = index_of(id);
	struct eq_id *e = entry(ids, at);

	if (!describe(ids, e, fd, archive)) {
		retire(ids, at);
		return;
	}
	e->node = NULL;
	eq_id_seen(ids, id, parent);
	if (ids->kept++ > ids->n_buckets)
		grow(ids);
	insert(ids, at);
	if (ids->kept > MAX_KEPT)
		give_up_one(ids);
}

uint64_t eq_id_parent(const struct eq_ids *ids, uint64_t id)
{
	const struct eq_id *e = find(ids, id);
	uint32_t parent = e ? e->parent : 0;

	return parent > EQ_ID_ROOT ? number(ids, index_of(parent)) : parent;
}

void eq_id_seen(struct eq_ids *ids, uint64_t id, uint64_t parent)
{
	if (parent)
		entry(ids, index_of(id))->parent = (uint32_t)parent;
}

int eq_id_kept(const struct eq_ids *ids, uint64_t id, struct eq_fh *fh, bool *archive)
{
	const struct eq_id *e = find(ids, id);

	if (!e || !is_kept(e))
		return -ESTALE;
	*fh = e->fh;
	*archive = e->archive;
	return 0;
}
