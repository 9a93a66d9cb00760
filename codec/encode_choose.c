/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a tensor is coded without loss, from a sample: some units out of the middle
 * of each chunk, so that no part of the tensor goes unseen and no reader of a
 * large file has to read it twice.
 */
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "encode_priv.h"

/* Units sampled of a tensor, in pieces of PIECE_UNITS or more. */
#define SAMPLE_UNITS (2 * EQ_CHUNK_UNITS)
#define PIECE_UNITS 4096u
#define RUN_CHUNKS 4u           /* as many as a decoder works on at once */
#define ZSTD_LEVEL 3
/* Trial of zstd: pieces of the tensor, first a few, and many before it is taken. */
#define PIECE_BYTES 16384
#define PIECES_FEW 8
#define PIECES_MANY 128
/* Planes decode several times faster: zstd must be clearly smaller. */
#define ZSTD_MUST_SAVE 0.95
#define MUST_SAVE 0.995

uint8_t eq_transform_of(int dtype)
{
	switch (dtype) {
	case EQ_F16: case EQ_BF16: case EQ_F32: case EQ_C64: case EQ_F64:
		return EQ_TRANSFORM_ROTATED;
	default:
		return EQ_TRANSFORM_NONE;
	}
}

/* ---- sampling -------------------------------------------------------------- */

struct sampling {
	struct eq_encoder *e;
	const struct eq_st_tensor *t;
	const uint8_t *whole;
	struct eq_sample *s;
	uint64_t (*hist)[256];
	uint64_t n_bytes, chunk_bytes, piece_bytes;
	uint32_t n_chunks, step;        /* a piece out of each step-th chunk */
	unsigned unit;
	uint32_t run_chunks;
	atomic_bool varies;
	atomic_int status;
};

/* The piece of a chunk: where in the tensor, and how much. */
static uint64_t piece_of(const struct sampling *p, uint32_t chunk, uint64_t *at)
{
	uint64_t len = p->n_bytes - chunk * p->chunk_bytes, piece = p->piece_bytes;

	if (len > p->chunk_bytes)
		len = p->chunk_bytes;
	if (piece > len)
		piece = len;
	*at = chunk * p->chunk_bytes + (len - piece) / 2 / p->unit * p->unit;
	return piece;
}

static void sample_run(void *arg, size_t run)
{
	struct sampling *p = arg;
	uint64_t first = run * p->run_chunks, end = first + p->run_chunks, at, len, i;
	uint8_t *buf = p->whole ? NULL : malloc(p->piece_bytes);
	const uint8_t *d;
	int rc = 0;

	if (!buf && !p->whole)
		rc = -ENOMEM;
	for (i = first; i < end && i < p->n_chunks && !rc && !atomic_load(&p->status); i += p->step) {
		len = piece_of(p, (uint32_t)i, &at);
		d = p->whole ? p->whole + at : buf;
		if (!p->whole)
			rc = eq_input_read(p->e, buf, len, p->e->st->prefix_len + p->t->begin + at);
		if (!rc) /* a sample may be all of a tensor */
			rc = eq_encode_progress(p->e);
		if (rc)
			break;
		if (memcmp(d, p->s->first, p->unit) || memcmp(d, d + p->unit, len - p->unit))
			atomic_store_explicit(&p->varies, true, memory_order_relaxed);
		eq_hist_planes(p->unit, eq_transform_of(p->t->dtype), d, len / p->unit,
			       p->hist + run * p->unit);
	}
	if (rc)
		atomic_store_explicit(&p->status, rc, memory_order_relaxed);
	free(buf);
}

/* Which pieces make the sample. */
static void plan_sample(struct sampling *p, enum eq_sampling how)
{
	uint32_t pieces = p->n_chunks, units;

	p->step = 1;
	p->run_chunks = RUN_CHUNKS;
	if (how == EQ_SAMPLE_FEW) {
		p->step = (p->n_chunks - 1) / EQ_SAMPLE_PIECES + 1;
		pieces = (p->n_chunks - 1) / p->step + 1;
		p->run_chunks = p->n_chunks;
	}
	while ((p->n_chunks - 1) / p->run_chunks >= EQ_RUNS_MAX)
		p->run_chunks *= 2;
	units = SAMPLE_UNITS / pieces / PIECE_UNITS * PIECE_UNITS;
	if (units < PIECE_UNITS)
		units = PIECE_UNITS;
	if (units > EQ_CHUNK_UNITS || how == EQ_SAMPLE_ALL)
		units = EQ_CHUNK_UNITS;
	p->piece_bytes = (uint64_t)units * p->unit;
}

int eq_sample_tensor(struct eq_encoder *e, const struct eq_st_tensor *t, const uint8_t *whole,
		     enum eq_sampling how, struct eq_sample *s)
{
	struct sampling p = { .e = e, .t = t, .whole = whole, .s = s, .n_bytes = t->end - t->begin,
			      .chunk_bytes = eq_chunk_bytes_of(t), .unit = eq_dtype_unit(t->dtype) };
	int rc = 0;

	*s = (struct eq_sample){ .varies = false };
	p.n_chunks = (uint32_t)((p.n_bytes - 1) / p.chunk_bytes + 1);
	plan_sample(&p, how);
	s->h.n_runs = (p.n_chunks - 1) / p.run_chunks + 1;
	s->h.run_chunks = p.run_chunks;
	s->h.sampled = p.step > 1 || p.piece_bytes < p.chunk_bytes;
	p.hist = calloc((size_t)s->h.n_runs * p.unit, sizeof(p.hist[0]));
	if (!p.hist)
		return -ENOMEM;
	s->h.hist = (const uint64_t (*)[256])p.hist;
	if (whole)
		memcpy(s->first, whole, p.unit);
	else
		rc = eq_input_read(e, s->first, p.unit, e->st->prefix_len + t->begin);
	if (!rc) {
		eq_pool_for(e->run->pool, s->h.n_runs, sample_run, &p);
		rc = atomic_load(&p.status);
	}
	s->varies = atomic_load(&p.varies);
	if (rc)
		eq_sample_fini(s);
	return rc;
}

void eq_sample_fini(struct eq_sample *s)
{
	free((void *)(uintptr_t)s->h.hist);
	s->h.hist = NULL;
}

/* ---- choosing -------------------------------------------------------------- */

/* Bytes that zstd would make of the tensor, from pieces out of the middle of equal
 * parts. */
static int zstd_estimate(struct eq_encoder *e, const struct eq_st_tensor *t, unsigned pieces,
			 uint64_t *size)
{
	size_t bound = ZSTD_compressBound(PIECE_BYTES), in = 0, out = 0, n, len = PIECE_BYTES;
	uint64_t n_bytes = t->end - t->begin, part;
	uint8_t *buf = malloc(PIECE_BYTES + bound);
	int rc = buf ? 0 : -ENOMEM;
	unsigned i;

	if (n_bytes / pieces < PIECE_BYTES)
		pieces = (unsigned)(n_bytes / PIECE_BYTES) + 1;
	part = n_bytes / pieces;
	if (part < len)
		len = part;
	for (i = 0; !rc && i < pieces; i++) {
		rc = eq_input_read(e, buf, len, e->st->prefix_len + t->begin + i * part +
							(part - len) / 2);
		if (rc)
			break;
		n = ZSTD_compress(buf + PIECE_BYTES, bound, buf, len, ZSTD_LEVEL);
		if (ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation)
			rc = -ENOMEM;
		in += len;
		out += ZSTD_isError(n) || n > len ? len : n;
	}
	free(buf);
	*size = in ? (uint64_t)((double)n_bytes * (double)out / (double)in) : n_bytes;
	return rc;
}

int eq_choose_lossless(struct eq_encoder *e, const struct eq_st_tensor *t,
		       const struct eq_sample *s, struct eq_coding *c, enum eq_codec_id *codec,
		       uint64_t *size)
{
	uint64_t n_bytes = t->end - t->begin, zstd;
	unsigned unit = eq_dtype_unit(t->dtype);
	int rc = zstd_estimate(e, t, PIECES_FEW, &zstd);

	if (rc)
		return rc;
	*codec = EQ_CODEC_RAW;
	*size = n_bytes;
	eq_coding_runs(c, unit, eq_transform_of(t->dtype), n_bytes / unit, EQ_CHUNK_UNITS, &s->h);
	if ((double)c->size < MUST_SAVE * (double)n_bytes) {
		*codec = EQ_CODEC_PLANES;
		*size = c->size;
	}
	if ((double)zstd < ZSTD_MUST_SAVE * (double)*size)
		rc = zstd_estimate(e, t, PIECES_MANY, &zstd);
	if (!rc && (double)zstd < ZSTD_MUST_SAVE * (double)*size) {
		*codec = EQ_CODEC_ZSTD;
		*size = zstd;
	}
	return rc;
}

/* ---- chunks ---------------------------------------------------------------- */

size_t eq_lossless_bound(enum eq_codec_id codec, const struct eq_coding *c, size_t len)
{
	if (codec == EQ_CODEC_CONST)
		return 0;
	return codec == EQ_CODEC_PLANES ? eq_chunk_bound(c, 0) : ZSTD_compressBound(len);
}

size_t eq_lossless_chunk(enum eq_codec_id codec, const struct eq_coding *c, uint32_t chunk,
			 const uint8_t *data, size_t len, uint8_t *out, uint8_t *scratch)
{
	size_t n;

	if (codec == EQ_CODEC_PLANES)
		return eq_chunk_encode_planes(c, chunk, data, (uint32_t)(len / c->unit), out, scratch);
	if (codec == EQ_CODEC_ZSTD) {
		n = ZSTD_compress(out, ZSTD_compressBound(len), data, len, ZSTD_LEVEL);
		if (ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation)
			return 0;
		if (!ZSTD_isError(n) && n < len)
			return n;
	}
	memcpy(out, data, len);
	return len;
}

void eq_lossless_record(struct eq_disk_tensor *r, enum eq_codec_id codec, struct eq_coding *c,
			unsigned tables, const uint8_t first[8], uint8_t *params)
{
	memcpy(r->codec, eq_codec_name(codec), 8);
	r->snr_db = __builtin_inf();
	if (codec == EQ_CODEC_CONST) {
		memcpy(&r->const_value, first, r->unit);
		return;
	}
	r->chunk_units = EQ_CHUNK_UNITS;
	if (codec == EQ_CODEC_PLANES) {
		c->n_freq = tables;
		r->transform = c->transform;
		r->param_len = (uint32_t)eq_params_write(c, params);
	}
}
