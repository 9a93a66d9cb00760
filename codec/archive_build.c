/* SPDX-License-Identifier: Apache-2.0 */
/* Writing an archive front to back: payloads as they come, then the index. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "archive_priv.h"
#include "direct.h"
#include "xxh3.h"

#define PREFIX_LEVEL 9
#define WRITE_CHUNKS 256       /* at once */
#define SYNC_BYTES (UINT64_C(2) << 20)

struct bytes {
	uint8_t *p;
	size_t len, cap;
};

struct eq_build {
	int fd;
	struct eq_direct *direct; /* or NULL */
	uint64_t pos;           /* end of what is written */
	uint64_t before;        /* and of that before the current tensor */
	uint64_t begun;         /* end of what is being stored */
	uint64_t cost;          /* of the last tensor */
	uint32_t n_tensors;
	struct bytes records;   /* finished ones */
	struct bytes chunks;    /* entries of the current tensor */
	struct eq_disk_tensor rec;
	const struct eq_st_tensor *tensor;
};

/* Room for n more bytes, zeroed. */
static uint8_t *bytes_grow(struct bytes *b, size_t n)
{
	size_t cap = b->cap ? b->cap : 4096;
	uint8_t *p;

	while (cap - b->len < n)
		if (__builtin_mul_overflow(cap, (size_t)2, &cap))
			return NULL;
	if (cap != b->cap) {
		p = realloc(b->p, cap);
		if (!p)
			return NULL;
		b->p = p;
		b->cap = cap;
	}
	p = b->p + b->len;
	memset(p, 0, n);
	b->len += n;
	return p;
}

int eq_build_create(int fd, bool direct, struct eq_build **out)
{
	struct eq_disk_header h = { .magic = EQ_MAGIC, .major = EQ_FORMAT_MAJOR,
				    .minor = EQ_FORMAT_MINOR };
	struct eq_build *b = calloc(1, sizeof(*b));
	int rc;

	*out = NULL;
	if (!b)
		return -ENOMEM;
	b->fd = fd;
	if (direct)
		(void)eq_direct_begin(fd, &b->direct);
	h.xxh3 = XXH3_64bits(&h, offsetof(struct eq_disk_header, xxh3));
	rc = b->direct ? eq_direct_put(b->direct, &h, sizeof(h), 0) :
			 eq_write_full(fd, &h, sizeof(h), 0);
	if (rc) {
		eq_build_free(b);
		return rc;
	}
	b->pos = sizeof(h);
	*out = b;
	return 0;
}

void eq_build_free(struct eq_build *b)
{
	if (!b)
		return;
	eq_direct_free(b->direct);
	free(b->records.p);
	free(b->chunks.p);
	free(b);
}

void eq_build_tensor(struct eq_build *b, const struct eq_st_tensor *t)
{
	b->tensor = t;
	b->before = b->pos;
	b->chunks.len = 0;
	b->rec = (struct eq_disk_tensor){
		.name_len = t->name_len, .n_bytes = t->end - t->begin, .dtype = t->dtype,
		.ndim = t->ndim, .unit = (uint8_t)eq_dtype_unit(t->dtype),
	};
}

int eq_build_restart(struct eq_build *b)
{
	b->pos = b->before;
	if (b->begun > b->pos)
		b->begun = b->pos;
	eq_build_tensor(b, b->tensor);
	if (b->direct)
		return eq_direct_back(b->direct, b->pos);
	/* The gap behind what stays must read as zero. */
	return ftruncate(b->fd, (off_t)b->pos) ? -errno : 0;
}

struct eq_disk_tensor *eq_build_record(struct eq_build *b)
{
	return &b->rec;
}

/* Chunks as the vectors of one write, the bytes between them included. */
static int write_chunks(int fd, const struct eq_built *c, size_t n, uint64_t at)
{
	static const uint8_t zero[EQ_PART_ALIGN];
	struct iovec v[2 * WRITE_CHUNKS];
	size_t len = 0, i, m = 0;
	ssize_t done;

	for (i = 0; i < n; i++) {
		v[m++] = (struct iovec){ (void *)(uintptr_t)c[i].data, c[i].len };
		v[m++] = (struct iovec){ (void *)(uintptr_t)zero,
					 eq_align(c[i].len, EQ_PART_ALIGN) - c[i].len };
		len += v[m - 2].iov_len + v[m - 1].iov_len;
	}
	m--; /* nothing behind the last one */
	len -= v[m].iov_len;
	done = pwritev(fd, v, (int)m, (off_t)at);
	if (done < 0 && errno != EINTR)
		return -errno;
	if (done == (ssize_t)len)
		return 0;
	for (i = 0; i < m; at += v[i++].iov_len) { /* interrupted, or no room */
		int rc = eq_write_full(fd, v[i].iov_base, v[i].iov_len, at);

		if (rc)
			return rc;
	}
	return 0;
}

static int put_chunks(struct eq_direct *d, const struct eq_built *c, size_t n, uint64_t at)
{
	size_t i;
	int rc = 0;

	for (i = 0; i < n && !rc; i++) {
		rc = eq_direct_put(d, c[i].data, c[i].len, at);
		at += eq_align(c[i].len, EQ_PART_ALIGN);
	}
	return rc;
}

/* Begin to store what will have to be synced in the end; not each of many small
 * tensors for itself. */
static void build_sync(struct eq_build *b)
{
	if (b->direct || b->pos - b->begun < SYNC_BYTES)
		return;
	sync_file_range(b->fd, (off_t)b->begun, (off_t)(b->pos - b->begun), SYNC_FILE_RANGE_WRITE);
	b->begun = b->pos;
}

int eq_build_chunks(struct eq_build *b, const struct eq_built *c, size_t n)
{
	for (; n; ) {
		size_t now = n < WRITE_CHUNKS ? n : WRITE_CHUNKS, i;
		uint64_t at;
		int rc;

		if (b->rec.n_chunks == 0)
			b->rec.payload_off = eq_align(b->pos, EQ_PAYLOAD_ALIGN);
		at = b->rec.payload_off + eq_align(b->rec.payload_len, EQ_PART_ALIGN);
		rc = b->direct ? put_chunks(b->direct, c, now, at) :
				 write_chunks(b->fd, c, now, at); /* gaps read as zero */
		if (rc)
			return rc;
		for (i = 0; i < now; i++) {
			struct eq_disk_chunk *d = (void *)bytes_grow(&b->chunks, sizeof(*d));

			if (!d || !c[i].len)
				return -ENOMEM;
			*d = (struct eq_disk_chunk){ .len = c[i].len, .xxh3 = c[i].xxh3 };
			at = eq_align(at, EQ_PART_ALIGN) + c[i].len;
		}
		b->rec.n_chunks += (uint32_t)now;
		b->rec.payload_len = at - b->rec.payload_off;
		b->pos = at;
		build_sync(b);
		c += now;
		n -= now;
	}
	return 0;
}

int eq_build_tensor_end(struct eq_build *b, const void *params)
{
	const struct eq_st_tensor *t = b->tensor;
	size_t name = eq_align(t->name_len, 8), dims = 8u * t->ndim;
	uint64_t len = sizeof(b->rec) + dims + name + b->rec.param_len + b->chunks.len;
	uint8_t *p;

	if (len > UINT32_MAX)
		return EQ_ELIMIT;
	b->rec.record_len = (uint32_t)len;
	p = bytes_grow(&b->records, len);
	if (!p)
		return -ENOMEM;
	memcpy(p, &b->rec, sizeof(b->rec));
	p += sizeof(b->rec);
	if (dims)
		memcpy(p, t->dims, dims);
	memcpy(p + dims, t->name, t->name_len);
	p += dims + name;
	if (b->rec.param_len)
		memcpy(p, params, b->rec.param_len);
	if (b->chunks.len)
		memcpy(p + b->rec.param_len, b->chunks.p, b->chunks.len);
	b->cost = b->rec.payload_len + len;
	b->n_tensors++;
	return 0;
}

uint64_t eq_build_tensor_cost(const struct eq_build *b)
{
	return b->cost;
}

/* Append a section; body may be NULL to fill it in by the returned pointer. */
static uint8_t *add_section(struct bytes *ix, uint32_t type, uint32_t flags, const void *body,
			    size_t len)
{
	struct eq_disk_section s = { .type = type, .flags = flags, .len = len };
	uint8_t *p = bytes_grow(ix, sizeof(s) + eq_align(len, 8));

	if (!p)
		return NULL;
	memcpy(p, &s, sizeof(s));
	p += sizeof(s);
	if (body)
		memcpy(p, body, len);
	return p;
}

/* The prefix, by zstd where the format lets it shrink that far. */
static int add_prefix(struct bytes *ix, const uint8_t *prefix, uint64_t len)
{
	struct eq_disk_prefix head = { .len = len, .method = EQ_PREFIX_ZSTD };
	size_t bound = ZSTD_compressBound(len), n;
	uint8_t *z = malloc(bound), *p;

	if (!z)
		return -ENOMEM;
	n = ZSTD_compress(z, bound, prefix, len, PREFIX_LEVEL);
	if (ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation) {
		free(z);
		return -ENOMEM;
	}
	if (ZSTD_isError(n) || n >= len || len > EQ_PREFIX_RATIO * n + EQ_PREFIX_FREE) {
		head.method = EQ_PREFIX_STORED;
		n = len;
	}
	p = add_section(ix, EQ_SEC_PREFIX, EQ_SEC_CRITICAL, NULL, sizeof(head) + n);
	if (p) {
		memcpy(p, &head, sizeof(head));
		memcpy(p + sizeof(head), head.method == EQ_PREFIX_ZSTD ? z : prefix, n);
	}
	free(z);
	return p ? 0 : -ENOMEM;
}

static int add_tensors(struct bytes *ix, const struct eq_build *b)
{
	uint8_t *p = add_section(ix, EQ_SEC_TENSORS, EQ_SEC_CRITICAL, NULL, 8 + b->records.len);

	if (!p)
		return -ENOMEM;
	memcpy(p, &b->n_tensors, 4);
	if (b->records.len)
		memcpy(p + 8, b->records.p, b->records.len);
	return 0;
}

int eq_build_finish(struct eq_build *b, const struct eq_disk_file *file, const uint8_t *prefix,
		    const char *provenance, uint64_t *stored)
{
	struct eq_disk_trailer t = { .major = EQ_FORMAT_MAJOR, .minor = EQ_FORMAT_MINOR,
				     .magic = EQ_MAGIC_END };
	struct bytes ix = { NULL, 0, 0 };
	int rc = b->direct ? eq_direct_end(b->direct) : 0;

	if (rc)
		return rc;
	rc = -ENOMEM;
	if (!add_section(&ix, EQ_SEC_FILE, EQ_SEC_CRITICAL, file, sizeof(*file)) ||
	    add_prefix(&ix, prefix, file->prefix_len) ||
	    !add_section(&ix, EQ_SEC_PROVENANCE, 0, provenance, strlen(provenance)) ||
	    add_tensors(&ix, b))
		goto out;
	rc = EQ_ELIMIT;
	if (ix.len > EQ_MAX_INDEX)
		goto out;
	t.index_off = eq_align(b->pos, 8);
	t.index_len = ix.len;
	t.index_xxh3 = XXH3_64bits(ix.p, ix.len);
	t.archive_len = t.index_off + t.index_len + sizeof(t);
	t.xxh3 = XXH3_64bits(&t, offsetof(struct eq_disk_trailer, xxh3));
	rc = eq_write_full(b->fd, ix.p, ix.len, t.index_off);
	if (!rc)
		rc = eq_write_full(b->fd, &t, sizeof(t), t.index_off + t.index_len);
	*stored = t.archive_len;
out:
	free(ix.p);
	return rc;
}
