/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors for the tests of the GPU back end: of every class of kernel, and ways
 * to damage their chunks. */
#ifndef EQ_GPU_UTIL_H
#define EQ_GPU_UTIL_H

#include <stdio.h>

#include "backend.h"
#include "codec_util.h"
#include "coding.h"
#include "eqcodec.h"

enum { GPU_CHUNK = 4096 };      /* units a chunk, of test tensors */

struct gpu_case {
	const char *name;
	int dtype;
	unsigned unit;
	bool quant, f32_scales;
	unsigned alphabet[8];   /* of each plane (or the symbols); 0: bytes at random, 1: constant */
	double ratio;           /* how fast probabilities fall */
	uint32_t row;           /* units a row, quantised */
	unsigned outliers;      /* a chunk */
	uint32_t n;
};

/* Alphabets up to 15 become pair mode; with 16 or so and a steep ratio, pair mode
 * with escapes. */
static const struct gpu_case gpu_cases[] = {
	{ "bf16 single", EQ_BF16, 2, false, false, { 40, 0 }, 0.8, 0, 0, 20000 },
	{ "bf16 pair", EQ_BF16, 2, false, false, { 9, 0 }, 0.6, 0, 0, 20001 },
	{ "bf16 pair, escapes", EQ_BF16, 2, false, false, { 24, 0 }, 0.55, 0, 0, 20100 },
	{ "f16, low plane coded", EQ_F16, 2, false, false, { 0, 30 }, 0.8, 0, 0, 9000 },
	{ "bf16, both coded", EQ_BF16, 2, false, false, { 40, 60 }, 0.8, 0, 0, 9137 },
	{ "bf16, pair and single", EQ_BF16, 2, false, false, { 24, 60 }, 0.55, 0, 0, 9137 },
	{ "f32 of bf16", EQ_F32, 4, false, false, { 30, 0, 1, 1 }, 0.8, 0, 0, 9001 },
	{ "f32 pair of bf16", EQ_F32, 4, false, false, { 24, 0, 1, 1 }, 0.55, 0, 0, 9001 },
	{ "f32, three coded", EQ_F32, 4, false, false, { 24, 200, 0, 90 }, 0.6, 0, 0, 9100 },
	{ "f64", EQ_F64, 8, false, false, { 30, 0, 0, 0, 1, 0, 0, 0 }, 0.8, 0, 0, 8800 },
	{ "f64 pair", EQ_F64, 8, false, false, { 9, 0, 0, 0, 1, 0, 0, 0 }, 0.6, 0, 0, 8800 },
	{ "f64, all coded", EQ_F64, 8, false, false, { 30, 24, 40, 9, 20, 50, 60, 70 }, 0.6, 0, 0, 8555 },
	{ "fp8", EQ_F8_E4M3, 1, false, false, { 90 }, 0.9, 0, 0, 13345 },
	{ "fp8 pair", EQ_F8_E4M3, 1, false, false, { 13 }, 0.6, 0, 0, 13345 },
	{ "quant bf16", EQ_BF16, 2, true, false, { 60 }, 0.85, 512, 0, 512 * 40 },
	{ "quant bf16 pair", EQ_BF16, 2, true, false, { 13 }, 0.7, 512, 3, 512 * 40 },
	{ "quant bf16 pair, escapes", EQ_BF16, 2, true, false, { 24 }, 0.55, 1000, 3, 21000 },
	{ "quant bf16, short rows", EQ_BF16, 2, true, true, { 60 }, 0.85, 12, 5, 12 * 1001 },
	{ "quant bf16 pair, short rows", EQ_BF16, 2, true, true, { 24 }, 0.55, 4, 5, 4 * 2600 },
	{ "quant f16", EQ_F16, 2, true, false, { 60 }, 0.85, 256, 2, 256 * 41 },
	{ "quant f16 pair", EQ_F16, 2, true, true, { 13 }, 0.7, 2600, 2, 2600 * 4 },
	{ "quant f32", EQ_F32, 4, true, true, { 60 }, 0.85, 5000, 2, 10000 },
	{ "quant f32 pair", EQ_F32, 4, true, false, { 13 }, 0.7, 4096, 2, 8192 },
	{ "quant, odd rows", EQ_BF16, 2, true, false, { 60 }, 0.85, 51, 2, 51 * 200 },
	{ "bytes at random", EQ_BF16, 2, false, false, { 0, 0 }, 1, 0, 0, 5000 },
};
enum { GPU_CASES = sizeof(gpu_cases) / sizeof(gpu_cases[0]) };

#define GPU_JOBS_MAX 8

struct gpu_tensor {
	struct eq_plan plan;
	struct eq_coding *coding;
	unsigned n;
	struct eq_decode_job job[GPU_JOBS_MAX];
	uint8_t *in[GPU_JOBS_MAX];
};

/* A copy of a chunk with exactly the slack behind it that is promised. */
static inline uint8_t *gpu_chunk_copy(const uint8_t *chunk, size_t len)
{
	uint8_t *p = aligned_alloc(16, (len + EQ_SLACK + 15) / 16 * 16);

	if (!p)
		abort();
	memcpy(p, chunk, len);
	memset(p + len, 0x5a, EQ_SLACK);
	return p;
}

static inline void gpu_tensor_add(struct gpu_tensor *t, const uint8_t *chunk, size_t len,
				  uint64_t first, uint32_t n)
{
	struct eq_decode_job *j = &t->job[t->n];

	t->in[t->n] = gpu_chunk_copy(chunk, len);
	j->plan = &t->plan;
	j->in = t->in[t->n++];
	j->in_len = len;
	j->first_unit = first;
	j->n_units = n;
}

static inline void gpu_tensor_plan(struct gpu_tensor *t, int dtype)
{
	uint8_t params[EQ_PARAMS_MAX] __attribute__((aligned(8)));
	const struct eq_coding *c = t->coding;

	memset(&t->plan, 0, sizeof(t->plan));
	t->plan.codec = c->codec;
	t->plan.unit = c->unit;
	t->plan.transform = c->transform;
	t->plan.scale_dtype = c->scale_dtype;
	t->plan.dtype = (uint8_t)dtype;
	t->plan.chunk_units = c->chunk_units;
	t->plan.n_units = c->n_units;
	t->plan.row_units = c->row_units;
	if (eq_plan_init(&t->plan, params, eq_params_write(c, params)))
		abort();
}

static inline void gpu_planes_make(const struct gpu_case *g, uint64_t *seed, uint32_t chunk_units,
				   struct gpu_tensor *t)
{
	unsigned transform = g->unit > 1 ? EQ_TRANSFORM_ROTATED : EQ_TRANSFORM_NONE;
	uint8_t *plane[8], *units = must_alloc((size_t)g->n * g->unit), *out, *scratch;
	uint64_t (*hist)[256] = calloc(8, sizeof(*hist));
	unsigned log2_unit = (unsigned)__builtin_ctz(g->unit);

	for (unsigned i = 0; i < g->unit; i++) {
		plane[i] = must_alloc(g->n);
		if (g->alphabet[i])
			rnd_symbols(seed, plane[i], g->n, g->alphabet[i], g->ratio);
		else
			for (uint32_t k = 0; k < g->n; k++)
				plane[i][k] = (uint8_t)rnd(seed);
	}
	if (g->unit == 1)
		memcpy(units, plane[0], g->n);
	else
		eq_kernels_get()->merge[log2_unit]((const uint8_t *const *)plane, g->n, transform,
						   units);
	eq_hist_planes(g->unit, transform, units, g->n, hist);
	eq_coding_planes(t->coding, g->unit, transform, g->n, chunk_units,
			 (const uint64_t (*)[256])hist);
	out = must_alloc(eq_chunk_bound(t->coding, 0));
	scratch = must_alloc(eq_chunk_scratch(t->coding));
	gpu_tensor_plan(t, g->dtype);
	for (uint32_t at = 0; at < g->n; at += chunk_units) {
		uint32_t n = g->n - at < chunk_units ? g->n - at : chunk_units;

		gpu_tensor_add(t, out, eq_chunk_encode_planes(t->coding, 0, units + (size_t)at * g->unit,
							      n, out, scratch), at, n);
	}
	for (unsigned i = 0; i < g->unit; i++)
		free(plane[i]);
	free(units);
	free(hist);
	free(out);
	free(scratch);
}

/* Symbols stand for small multiples of 1/8, exact in bfloat16. */
static inline void gpu_quant_make(const struct gpu_case *g, uint64_t *seed, uint32_t chunk_units,
				  struct gpu_tensor *t)
{
	uint8_t *sym = must_alloc(g->n), *scales = must_alloc(4 * (g->n / g->row)), *out, *scratch;
	unsigned size = g->f32_scales ? 4 : 2;
	uint64_t hist[256] = { 0 };
	struct eq_disk_outlier o[8];
	float value[256];

	rnd_symbols(seed, sym, g->n, g->alphabet[0], g->ratio);
	for (uint32_t i = 0; i < g->n; i++)
		hist[sym[i]]++;
	for (unsigned s = 0; s < 256; s++)
		value[s] = (float)((int)s - 100) / 8;
	for (uint32_t i = 0; i < g->n / g->row; i++) {
		float scale = (float)(0.01 + (double)(rnd(seed) >> 40) * 0x1p-28);
		uint32_t bits;

		memcpy(&bits, &scale, 4);
		if (size == 2)
			bits >>= 16;
		memcpy(scales + (size_t)size * i, &bits, size);
	}
	eq_coding_quant(t->coding, g->unit, g->f32_scales ? EQ_SCALE_F32 : EQ_SCALE_BF16, g->n, g->row,
			chunk_units, hist, value, g->outliers);
	out = must_alloc(eq_chunk_bound(t->coding, 8));
	scratch = must_alloc(eq_chunk_scratch(t->coding));
	gpu_tensor_plan(t, g->dtype);
	for (uint32_t at = 0; at < g->n; at += chunk_units) {
		uint32_t n = g->n - at < chunk_units ? g->n - at : chunk_units;
		uint32_t first = at / g->row, last = (at + n - 1) / g->row;

		for (unsigned i = 0; i < g->outliers; i++) {
			o[i].pos = n / (g->outliers + 1) * i + i;
			o[i].bits = g->unit == 4 ? 0x42280000 + i : 0x4228 + i;
		}
		gpu_tensor_add(t, out, eq_chunk_encode_quant(t->coding, sym + at, n,
							     scales + (size_t)size * first,
							     size * (size_t)(last - first + 1), o,
							     g->outliers, out, scratch), at, n);
	}
	free(sym);
	free(scales);
	free(out);
	free(scratch);
}

static inline void gpu_tensor_make(const struct gpu_case *g, uint64_t *seed, uint32_t chunk_units,
				   struct gpu_tensor *t)
{
	memset(t, 0, sizeof(*t));
	t->coding = must_alloc(sizeof(*t->coding));
	if (g->quant)
		gpu_quant_make(g, seed, chunk_units, t);
	else
		gpu_planes_make(g, seed, chunk_units, t);
}

static inline void gpu_tensor_free(struct gpu_tensor *t)
{
	for (unsigned i = 0; i < t->n; i++)
		free(t->in[i]);
	eq_plan_fini(&t->plan);
	free(t->coding);
}

/*
 * Damage a chunk, in one of the ways that matter: heads, states, words, scales or
 * escapes; a bit, a byte, a word, or a cut. The layout mostly stays right, so
 * that the damage reaches the kernels. Returns the new length.
 */
static inline size_t gpu_damage(uint64_t *seed, uint8_t *p, size_t len)
{
	size_t at = rnd(seed) % len;

	switch (rnd(seed) % 8) {
	case 0:                                 /* somewhere in the heads */
		p[rnd(seed) % (len < 48 ? len : 48)] ^= (uint8_t)(1 << rnd(seed) % 8);
		break;
	case 1:                                 /* zeros, as of a hole */
		memset(p + at, 0, len - at < 64 ? len - at : 64);
		break;
	case 2:                                 /* ones: states and escapes far off */
		memset(p + at, 0xff, len - at < 8 ? len - at : 8);
		break;
	case 3:
		return len > 16 ? len - 16 : len;
	case 4:                                 /* near the end: escapes, outliers */
		p[len - 1 - rnd(seed) % (len < 64 ? len : 64)] += (uint8_t)(1 + rnd(seed) % 255);
		break;
	case 5:                                 /* two 16-bit words change places */
		if (at > 2 && at + 2 < len) {
			uint8_t t = p[at];

			p[at] = p[at - 2];
			p[at - 2] = t;
		}
		break;
	default:
		p[at] ^= (uint8_t)(1 + rnd(seed) % 255);
	}
	return len;
}

#endif
