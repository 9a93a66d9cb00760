/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lossless coding of a tensor: one pass for histograms and hashes, one to
 * encode. A tensor of moderate size stays in memory between them; a larger one is
 * read twice, and its second reading hashed as well, so that a file that changes
 * meanwhile is noticed.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "encode_priv.h"

#define KEEP_BYTES (UINT64_C(256) << 20)
#define ZSTD_LEVEL 3
/* Trial of zstd: pieces of the tensor, first a few, and many before it is taken. */
#define PIECE_BYTES 16384
#define PIECES_FEW 8
#define PIECES_MANY 128
/* Planes decode several times faster: zstd must be clearly smaller. */
#define ZSTD_MUST_SAVE 0.95
#define MUST_SAVE 0.995

struct lossless {
	struct eq_encoder *e;
	const struct eq_st_tensor *t;
	const uint8_t *whole;   /* in memory from the beginning, or NULL */
	bool keep;              /* the buffer holds all of it */
	bool again;             /* the second pass */
	uint32_t group;
	uint64_t n_bytes, chunk_bytes;
	unsigned unit;
	enum eq_codec_id codec;
	XXH3_state_t *xxh;
	pthread_mutex_t lock;
	uint64_t hist[8][256];
	uint8_t first[8];       /* the first unit */
	atomic_bool varies;
};

uint8_t eq_transform_of(int dtype)
{
	switch (dtype) {
	case EQ_F16: case EQ_BF16: case EQ_F32: case EQ_C64: case EQ_F64:
		return EQ_TRANSFORM_ROTATED;
	default:
		return EQ_TRANSFORM_NONE;
	}
}

static uint64_t group_bytes(const struct lossless *l, uint32_t g)
{
	uint64_t full = l->group * l->chunk_bytes, at = g * full;

	if (at >= l->n_bytes)
		return 0;
	return l->n_bytes - at < full ? l->n_bytes - at : full;
}

static uint8_t *group_buffer(const struct lossless *l, uint32_t g)
{
	return l->e->keep + (l->keep ? g : g % 2) * l->group * l->chunk_bytes;
}

static const uint8_t *group_data(const struct lossless *l, uint32_t g)
{
	return l->whole ? l->whole + g * l->group * l->chunk_bytes : group_buffer(l, g);
}

static const uint8_t *chunk_data(const struct lossless *l, uint32_t chunk, size_t *len)
{
	uint64_t left = l->n_bytes - chunk * l->chunk_bytes;

	*len = left < l->chunk_bytes ? left : l->chunk_bytes;
	return group_data(l, chunk / l->group) + chunk % l->group * l->chunk_bytes;
}

static int read_group(struct lossless *l, uint32_t g)
{
	uint64_t len = group_bytes(l, g);

	if (!len || l->whole || (l->keep && l->again))
		return 0;
	return eq_input_read(l->e, group_buffer(l, g), len,
			     l->e->st->prefix_len + l->t->begin + g * l->group * l->chunk_bytes);
}

static int read_next(void *arg, uint32_t g)
{
	return read_group(arg, g + 1);
}

static int hash_file(void *arg, uint32_t g)
{
	struct lossless *l = arg;

	if (l->whole)
		return 0;
	return EVP_DigestUpdate(l->e->sha, group_data(l, g), group_bytes(l, g)) == 1 ? 0 : -EIO;
}

static int hash_content(void *arg, uint32_t g)
{
	struct lossless *l = arg;

	if (!l->again || !(l->whole || l->keep))
		XXH3_64bits_update(l->xxh, group_data(l, g), group_bytes(l, g));
	return 0;
}

static void count_chunk(void *arg, uint32_t chunk)
{
	struct lossless *l = arg;
	uint64_t hist[8][256];
	unsigned p, s;
	size_t len;
	const uint8_t *d = chunk_data(l, chunk, &len);

	if (memcmp(d, l->first, l->unit) || memcmp(d, d + l->unit, len - l->unit))
		atomic_store_explicit(&l->varies, true, memory_order_relaxed);
	memset(hist, 0, l->unit * sizeof(hist[0]));
	eq_hist_planes(l->unit, eq_transform_of(l->t->dtype), d, len / l->unit, hist);
	pthread_mutex_lock(&l->lock);
	for (p = 0; p < l->unit; p++)
		for (s = 0; s < 256; s++)
			l->hist[p][s] += hist[p][s];
	pthread_mutex_unlock(&l->lock);
}

static size_t encode_chunk(void *arg, uint32_t chunk, uint8_t *out, uint8_t *scratch)
{
	struct lossless *l = arg;
	size_t len, n;
	const uint8_t *d = chunk_data(l, chunk, &len);

	if (l->codec == EQ_CODEC_PLANES)
		return eq_chunk_encode_planes(l->e->coding, d, (uint32_t)(len / l->unit), out, scratch);
	if (l->codec == EQ_CODEC_ZSTD) {
		n = ZSTD_compress(out, ZSTD_compressBound(l->chunk_bytes), d, len, ZSTD_LEVEL);
		if (!ZSTD_isError(n) && n < len)
			return n;
	}
	memcpy(out, d, len);
	return len;
}

/* Bytes that zstd would make of the tensor, from pieces out of the middle of equal
 * parts; n_bytes if that cannot be told. */
static uint64_t zstd_estimate(struct eq_encoder *e, const struct eq_st_tensor *t, unsigned pieces)
{
	size_t bound = ZSTD_compressBound(PIECE_BYTES), in = 0, out = 0, n, len = PIECE_BYTES;
	uint64_t n_bytes = t->end - t->begin, part;
	uint8_t *buf = malloc(PIECE_BYTES + bound);
	unsigned i;

	if (n_bytes / pieces < PIECE_BYTES)
		pieces = (unsigned)(n_bytes / PIECE_BYTES) + 1;
	part = n_bytes / pieces;
	if (part < len)
		len = part;
	for (i = 0; buf && i < pieces; i++) {
		if (!len || eq_read_full(e->fd, buf, len, e->st->prefix_len + t->begin + i * part +
								  (part - len) / 2))
			break;
		n = ZSTD_compress(buf + PIECE_BYTES, bound, buf, len, ZSTD_LEVEL);
		in += len;
		out += ZSTD_isError(n) || n > len ? len : n;
	}
	free(buf);
	return in ? (uint64_t)((double)n_bytes * (double)out / (double)in) : n_bytes;
}

enum eq_codec_id eq_choose_lossless(struct eq_encoder *e, const struct eq_st_tensor *t,
				    const uint64_t (*hist)[256], uint64_t *size)
{
	uint64_t n_bytes = t->end - t->begin, zstd = zstd_estimate(e, t, PIECES_FEW);
	unsigned unit = eq_dtype_unit(t->dtype);
	enum eq_codec_id codec = EQ_CODEC_RAW;

	*size = n_bytes;
	eq_coding_planes(e->coding, unit, eq_transform_of(t->dtype), n_bytes / unit, EQ_CHUNK_UNITS,
			 hist);
	if ((double)e->coding->size < MUST_SAVE * (double)n_bytes) {
		codec = EQ_CODEC_PLANES;
		*size = e->coding->size;
	}
	if ((double)zstd < ZSTD_MUST_SAVE * (double)*size)
		zstd = zstd_estimate(e, t, PIECES_MANY);
	if ((double)zstd < ZSTD_MUST_SAVE * (double)*size) {
		codec = EQ_CODEC_ZSTD;
		*size = zstd;
	}
	return codec;
}

static int write_const(struct lossless *l)
{
	struct eq_disk_tensor *r = eq_build_record(l->e->build);

	memcpy(r->codec, eq_codec_name(EQ_CODEC_CONST), 8);
	memcpy(&r->const_value, l->first, l->unit);
	l->e->done += l->n_bytes;
	return eq_build_tensor_end(l->e->build, NULL);
}

/* The second pass. */
static int write_chunks(struct lossless *l)
{
	struct eq_encoder *e = l->e;
	struct eq_disk_tensor *r = eq_build_record(e->build);
	struct eq_emit m = { .encode = encode_chunk, .serial = { read_next, hash_content },
			     .n_serial = 2, .arg = l, .t = l->t,
			     .bound = ZSTD_compressBound(l->chunk_bytes) };
	uint8_t params[EQ_PARAMS_MAX];
	int rc;

	if (l->codec == EQ_CODEC_PLANES) {
		m.bound = eq_chunk_bound(e->coding, 0);
		m.scratch = eq_chunk_scratch(e->coding);
	}
	l->again = true;
	XXH3_64bits_reset(l->xxh);
	rc = read_group(l, 0);
	if (!rc)
		rc = eq_emit_run(e, &m);
	if (rc)
		return rc;
	if (!l->whole && !l->keep && XXH3_64bits_digest(l->xxh) != r->content_xxh3)
		return eq_fail(e->err, -EBUSY, "%s: changed while it was read", e->name);
	memcpy(r->codec, eq_codec_name(l->codec), 8);
	r->chunk_units = EQ_CHUNK_UNITS;
	if (l->codec == EQ_CODEC_PLANES) {
		r->transform = eq_transform_of(l->t->dtype);
		r->param_len = (uint32_t)eq_params_write(e->coding, params);
	}
	return eq_build_tensor_end(e->build, params);
}

/* The first pass: hashes, histograms. */
static int read_all(struct lossless *l)
{
	struct eq_pass p = { .group = l->group, .serial = { read_next, hash_file, hash_content },
			     .n_serial = 3, .each = count_chunk, .arg = l };
	size_t need = l->keep ? l->n_bytes : 2 * l->group * l->chunk_bytes;
	int rc = 0;

	p.n_chunks = (uint32_t)((l->n_bytes + l->chunk_bytes - 1) / l->chunk_bytes);
	if (!l->whole)
		rc = eq_buffer_reserve(&l->e->keep, &l->e->keep_size, need);
	if (!rc)
		rc = read_group(l, 0);
	if (rc)
		return rc;
	memcpy(l->first, group_data(l, 0), l->unit);
	return eq_pass_run(l->e, &p);
}

static int lossless_run(struct lossless *l, uint16_t flags)
{
	struct eq_disk_tensor *r;
	uint64_t size;
	int rc;

	rc = read_all(l);
	if (rc)
		return rc;
	eq_build_tensor(l->e->build, l->t);
	r = eq_build_record(l->e->build);
	r->content_xxh3 = XXH3_64bits_digest(l->xxh);
	r->snr_db = __builtin_inf();
	r->flags = flags;
	if (!atomic_load(&l->varies))
		return write_const(l);
	l->codec = eq_choose_lossless(l->e, l->t, (const uint64_t (*)[256])l->hist, &size);
	return write_chunks(l);
}

static int encode_empty(struct eq_encoder *e, const struct eq_st_tensor *t)
{
	struct eq_disk_tensor *r = eq_build_record(e->build);

	eq_build_tensor(e->build, t);
	memcpy(r->codec, eq_codec_name(EQ_CODEC_RAW), 8);
	r->content_xxh3 = XXH3_64bits("", 0);
	r->snr_db = __builtin_inf();
	return eq_build_tensor_end(e->build, NULL);
}

int eq_encode_lossless(struct eq_encoder *e, const struct eq_st_tensor *t, const uint8_t *whole,
		       uint16_t flags)
{
	struct lossless *l;
	int rc;

	if (t->begin == t->end)
		return encode_empty(e, t);
	l = calloc(1, sizeof(*l));
	if (!l)
		return eq_encode_fail(e, -ENOMEM);
	l->e = e;
	l->t = t;
	l->whole = whole;
	l->n_bytes = t->end - t->begin;
	l->chunk_bytes = eq_chunk_bytes_of(t);
	l->group = (uint32_t)(EQ_GROUP_BYTES / l->chunk_bytes);
	l->keep = l->n_bytes <= KEEP_BYTES;
	l->unit = eq_dtype_unit(t->dtype);
	pthread_mutex_init(&l->lock, NULL);
	l->xxh = XXH3_createState();
	if (l->xxh) {
		XXH3_64bits_reset(l->xxh);
		rc = lossless_run(l, flags);
	} else {
		rc = -ENOMEM;
	}
	XXH3_freeState(l->xxh);
	pthread_mutex_destroy(&l->lock);
	free(l);
	return rc ? eq_encode_fail(e, rc) : 0;
}
