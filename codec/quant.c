/* SPDX-License-Identifier: Apache-2.0 */
/* Levels of the formats, norms, and quantisation with given scales. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant.h"

#define STRIP 256       /* units worked on at a time, in the first-level cache */
#define LANES 16        /* of the sums, see struct lanes */

void eq_quant_values(enum eq_qformat format, float value[256])
{
	for (int i = 0; i < 256; i++) {
		int m = i & 7, e = i >> 3 & 15;

		if (format == EQ_Q_INT8)
			value[i] = i < 128 ? i : i - 256;
		else
			value[i] = (i & 128 ? -1 : 1) *
				   (e ? ldexpf(8 + m, e - 10) : ldexpf(m, -9));
	}
	value[128] = NAN;
	if (format == EQ_Q_FP8)
		value[127] = value[255] = NAN;
}

void eq_quant_format_init(struct eq_quant_format *f, enum eq_qformat format)
{
	float value[256];

	eq_quant_values(format, value);
	f->top = format == EQ_Q_FP8 ? 126 : 127;
	f->unit = format == EQ_Q_FP8 ? 0x1p-9f : 1;
	f->mid[0] = 0;
	for (unsigned j = 0; j < EQ_QUANT_LEVELS; j++) {
		/* beyond the top: fp8 never gets there, int8 goes on by ones */
		f->value[j] = j <= f->top ? value[j] : f->value[j - 1] + 1;
		f->step[j] = (int32_t)(f->value[j] / f->unit);
		if (j)
			f->mid[j] = (f->value[j - 1] + f->value[j]) / 2;
	}
}

/*
 * Sums are kept in 16 lanes, unit i of a row in lane i % 16, and the lanes of a
 * row are then added up in pairs; rows are added in order within a block, and
 * blocks in order. So the order of every addition is fixed, whatever the width
 * of the vectors and whichever thread does it.
 */
struct lanes {
	double v[LANES];
};

static double lanes_sum(struct lanes *l)
{
	for (int w = LANES / 2; w; w /= 2)
		for (int i = 0; i < w; i++)
			l->v[i] += l->v[i + w];
	return l->v[0];
}

/* Units [0, n) from w as float32, exactly; the rest of the strip is zero. */
static void strip_load(float x[STRIP], const void *w, int dtype, size_t n)
{
	const uint16_t *h = w;

	switch (dtype) {
	case EQ_BF16:
		for (size_t i = 0; i < n; i++)
			x[i] = eq_float_of((uint32_t)h[i] << 16);
		break;
	case EQ_F16:
		for (size_t i = 0; i < n; i++)
			x[i] = eq_float_of(eq_half_widen(h[i]));
		break;
	default:
		memcpy(x, w, n * 4);
	}
	if (n < STRIP)
		memset(x + n, 0, (STRIP - n) * sizeof(*x));
}

static size_t unit_size(int dtype)
{
	return dtype == EQ_F32 ? 4 : 2;
}

/* ---- norm ---------------------------------------------------------------- */

struct l1_block {
	double sum;
	bool finite;
};

struct l1_job {
	const struct eq_quant_tensor *t;
	uint64_t block_rows;
	struct l1_block *block;
};

static void l1_run(void *arg, size_t index)
{
	const struct l1_job *job = arg;
	const struct eq_quant_tensor *t = job->t;
	uint64_t row = index * job->block_rows, end = row + job->block_rows;
	size_t unit = unit_size(t->dtype);
	uint32_t top = 0;
	double sum = 0;

	if (end > t->rows)
		end = t->rows;
	for (; row < end; row++) {
		const uint8_t *w = (const uint8_t *)t->w + row * t->k * unit;
		struct lanes a = { { 0 } };

		for (uint64_t k = 0; k < t->k; k += STRIP) {
			uint64_t n = t->k - k < STRIP ? t->k - k : STRIP;
			float x[STRIP];

			strip_load(x, w + k * unit, t->dtype, n);
			for (int i = 0; i < STRIP; i++) {
				uint32_t u = eq_float_bits(x[i]) & 0x7fffffff;

				top = u > top ? u : top;
			}
			for (int i = 0; i < STRIP; i += LANES)
				for (int l = 0; l < LANES; l++)
					a.v[l] += (double)fabsf(x[i + l]);
		}
		sum += lanes_sum(&a);
	}
	job->block[index].sum = sum;
	job->block[index].finite = top < 0x7f800000;
}

int eq_quant_l1(const struct eq_quant_tensor *t, struct eq_pool *pool,
		double *sum_abs, bool *finite)
{
	struct l1_job job = { .t = t };
	size_t n;

	*sum_abs = 0;
	*finite = true;
	if (!t->rows || !t->k)
		return 0;
	job.block_rows = eq_quant_block_rows(t->k);
	n = (t->rows + job.block_rows - 1) / job.block_rows;
	job.block = calloc(n, sizeof(*job.block));
	if (!job.block)
		return -ENOMEM;
	eq_pool_for(pool, n, l1_run, &job);
	for (size_t i = 0; i < n; i++) {
		*sum_abs += job.block[i].sum;
		*finite &= job.block[i].finite;
	}
	free(job.block);
	return 0;
}

/* ---- quantisation -------------------------------------------------------- */

struct apply_block {
	uint32_t hist[4][256];  /* four, so that runs of a symbol do not wait */
	struct eq_quant_outlier *outlier;
	size_t n_outliers, room;
	double sum_abs, err_abs, sum_sq, err_sq;
	int status;
};

struct apply_job {
	const struct eq_quant_tensor *t;
	enum eq_qformat format;
	const uint16_t *scale;
	uint8_t *sym;
	uint8_t *recon;
	uint64_t block_rows;
	struct apply_block *block;
};

/* A strip on its way. Units past the end of a row are zero throughout. */
struct strip {
	float x[STRIP];         /* units */
	float y[STRIP];         /* reconstruction, as float32 */
	uint8_t sym[STRIP];
	uint16_t out16[STRIP];  /* reconstruction in the dtype, if 16 bits */
	uint32_t bad;           /* not 0: there are outliers */
};

/* Symbols, and v * scale rounded to float32. */
static void strip_fp8(struct strip *s, float inv, float scale)
{
	uint32_t bad = 0;

	for (int i = 0; i < STRIP; i++) {
		uint32_t u = eq_float_bits(s->x[i]), sign = u >> 31;
		uint32_t q = eq_level_fp8(eq_float_of(u & 0x7fffffff) * inv);
		float v;

		bad |= q > 126;
		q = q > 126 ? 126 : q;
		v = q < 8 ? (float)(int32_t)q * 0x1p-9f :
			    eq_float_of((q + 960) << 20);
		s->sym[i] = (uint8_t)(q ? q | sign << 7 : 0);
		v *= scale;
		s->y[i] = eq_float_of(eq_float_bits(v) | (q ? sign << 31 : 0));
	}
	s->bad = bad;
}

static void strip_int8(struct strip *s, float inv, float scale)
{
	uint32_t bad = 0;

	for (int i = 0; i < STRIP; i++) {
		uint32_t u = eq_float_bits(s->x[i]);
		int32_t q = (int32_t)eq_level_int8(eq_float_of(u & 0x7fffffff) * inv);

		bad |= q > 127;
		q = q > 127 ? 127 : q;
		q = u >> 31 ? -q : q;
		s->sym[i] = (uint8_t)q;
		s->y[i] = (float)q * scale;
	}
	s->bad = bad;
}

/* Round the reconstruction to the dtype. */
static void strip_round(struct strip *s, int dtype)
{
	uint32_t top = 0;

	if (dtype == EQ_BF16)
		for (int i = 0; i < STRIP; i++) {
			s->out16[i] = eq_bf16_narrow(s->y[i]);
			s->y[i] = eq_float_of((uint32_t)s->out16[i] << 16);
		}
	else if (dtype == EQ_F16)
		for (int i = 0; i < STRIP; i++) {
			s->out16[i] = eq_half_narrow(s->y[i]);
			s->y[i] = eq_float_of(eq_half_widen(s->out16[i]));
		}
	for (int i = 0; i < STRIP; i++) {
		uint32_t u = eq_float_bits(s->y[i]) & 0x7fffffff;

		top = u > top ? u : top;
	}
	s->bad |= top >= 0x7f800000;
}

/* Units that their symbol does not stand for keep their bits. */
static void strip_outliers(struct strip *s, enum eq_qformat format, int dtype,
			   float inv, const uint8_t *w, uint64_t first, size_t n,
			   struct apply_block *b)
{
	for (size_t i = 0; i < n; i++) {
		float t = fabsf(s->x[i]) * inv;
		bool beyond = format == EQ_Q_FP8 ? eq_level_fp8(t) > 126 :
						   eq_level_int8(t) > 127;
		struct eq_quant_outlier *o;

		if (!beyond && isfinite(s->y[i]))
			continue;
		if (b->n_outliers == b->room) {
			size_t room = b->room ? 2 * b->room : 64;

			o = realloc(b->outlier, room * sizeof(*o));
			if (!o) {
				b->status = -ENOMEM;
				return;
			}
			b->outlier = o;
			b->room = room;
		}
		o = &b->outlier[b->n_outliers++];
		o->unit = first + i;
		o->bits = 0;
		memcpy(&o->bits, w + i * unit_size(dtype), unit_size(dtype));
		if (dtype != EQ_F32)
			s->out16[i] = (uint16_t)o->bits;
		s->y[i] = s->x[i];
	}
}

struct apply_sums {
	struct lanes a, ea, q, eq;
};

static void strip_sums(const struct strip *s, struct apply_sums *sum)
{
	for (int i = 0; i < STRIP; i += LANES)
		for (int l = 0; l < LANES; l++) {
			double x = s->x[i + l], e = x - (double)s->y[i + l];

			sum->a.v[l] += fabs(x);
			sum->ea.v[l] += fabs(e);
			sum->q.v[l] += x * x;
			sum->eq.v[l] += e * e;
		}
}

static void apply_row(const struct apply_job *job, struct apply_block *b,
		      uint64_t row)
{
	const struct eq_quant_tensor *t = job->t;
	size_t unit = unit_size(t->dtype);
	float scale = eq_float_of((uint32_t)job->scale[row] << 16);
	float inv = scale > 0 ? 1.0f / scale : 0;
	struct apply_sums sum = { 0 };

	for (uint64_t k = 0; k < t->k; k += STRIP) {
		size_t n = t->k - k < STRIP ? t->k - k : STRIP;
		uint64_t first = row * t->k + k;
		const uint8_t *w = (const uint8_t *)t->w + first * unit;
		struct strip s;
		size_t i;

		strip_load(s.x, w, t->dtype, n);
		if (job->format == EQ_Q_FP8)
			strip_fp8(&s, inv, scale);
		else
			strip_int8(&s, inv, scale);
		strip_round(&s, t->dtype);
		if (s.bad)
			strip_outliers(&s, job->format, t->dtype, inv, w, first,
				       n, b);
		strip_sums(&s, &sum);
		for (i = 0; i + 4 <= n; i += 4) {
			b->hist[0][s.sym[i]]++;
			b->hist[1][s.sym[i + 1]]++;
			b->hist[2][s.sym[i + 2]]++;
			b->hist[3][s.sym[i + 3]]++;
		}
		for (; i < n; i++)
			b->hist[0][s.sym[i]]++;
		if (job->sym)
			memcpy(job->sym + first, s.sym, n);
		if (job->recon)
			memcpy(job->recon + first * unit,
			       unit == 2 ? (void *)s.out16 : (void *)s.y, n * unit);
	}
	b->sum_abs += lanes_sum(&sum.a);
	b->err_abs += lanes_sum(&sum.ea);
	b->sum_sq += lanes_sum(&sum.q);
	b->err_sq += lanes_sum(&sum.eq);
}

static void apply_run(void *arg, size_t index)
{
	const struct apply_job *job = arg;
	struct apply_block *b = &job->block[index];
	uint64_t row = index * job->block_rows, end = row + job->block_rows;

	if (end > job->t->rows)
		end = job->t->rows;
	for (; row < end && !b->status; row++)
		apply_row(job, b, row);
}

static int apply_gather(const struct apply_job *job, size_t n,
			struct eq_quant_result *r)
{
	size_t total = 0;

	for (size_t i = 0; i < n; i++) {
		const struct apply_block *b = &job->block[i];

		if (b->status)
			return b->status;
		total += b->n_outliers;
		for (int s = 0; s < 256; s++)
			for (int h = 0; h < 4; h++)
				r->hist[s] += b->hist[h][s];
		r->sum_abs += b->sum_abs;
		r->err_abs += b->err_abs;
		r->sum_sq += b->sum_sq;
		r->err_sq += b->err_sq;
	}
	if (!total)
		return 0;
	r->outlier = malloc(total * sizeof(*r->outlier));
	if (!r->outlier)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const struct apply_block *b = &job->block[i];

		if (b->n_outliers)
			memcpy(r->outlier + r->n_outliers, b->outlier,
			       b->n_outliers * sizeof(*b->outlier));
		r->n_outliers += b->n_outliers;
	}
	return 0;
}

int eq_quant_apply(const struct eq_quant_tensor *t, enum eq_qformat format,
		   const uint16_t *scale, struct eq_pool *pool, uint8_t *sym,
		   void *recon, struct eq_quant_result *r)
{
	struct apply_job job = { .t = t, .format = format, .scale = scale,
				 .sym = sym, .recon = recon };
	size_t n;
	int rc;

	memset(r, 0, sizeof(*r));
	if (!t->rows || !t->k)
		return 0;
	job.block_rows = eq_quant_block_rows(t->k);
	n = (t->rows + job.block_rows - 1) / job.block_rows;
	job.block = calloc(n, sizeof(*job.block));
	if (!job.block)
		return -ENOMEM;
	eq_pool_for(pool, n, apply_run, &job);
	rc = apply_gather(&job, n, r);
	for (size_t i = 0; i < n; i++)
		free(job.block[i].outlier);
	free(job.block);
	return rc;
}

void eq_quant_result_fini(struct eq_quant_result *r)
{
	free(r->outlier);
	r->outlier = NULL;
	r->n_outliers = 0;
}
