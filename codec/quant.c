/* SPDX-License-Identifier: Apache-2.0 */
/* Levels of the formats, norms, and quantisation with given scales. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "quant_ops.h"

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
	for (unsigned j = 0; j < EQ_QUANT_SLOTS; j++) {
		/* beyond the top: fp8 never gets there, int8 goes on by ones */
		f->value[j] = j <= f->top ? value[j] : f->value[j - 1] + 1;
		f->step[j] = (int64_t)(f->value[j] / f->unit);
		f->gap[j] = f->pair[j] = 0;
		if (!j)
			continue;
		f->gap[j] = f->step[j] - f->step[j - 1];
		f->pair[j] = f->step[j] + f->step[j - 1];
		f->mid[j] = (f->value[j - 1] + f->value[j]) / 2;
	}
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
	const struct eq_quant_ops *ops = eq_quant_ops_get();
	uint64_t row = index * job->block_rows, end = row + job->block_rows;
	size_t row_bytes = t->k * eq_quant_unit(t->dtype);
	uint32_t top = 0;
	double sum = 0;

	if (end > t->rows)
		end = t->rows;
	for (; row < end; row++) {
		struct eq_quant_lanes lanes = { { 0 } };

		ops->scan((const uint8_t *)t->w + row * row_bytes, t->dtype, t->k,
			  &top, &lanes);
		sum += eq_quant_lanes_sum(&lanes);
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

#define PENDING 16384   /* symbols counted at a time */

struct apply_block {
	uint64_t hist[256];
	uint8_t pending[PENDING];
	size_t n_pending;
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

static int outlier_add(struct apply_block *b, uint64_t unit, uint32_t bits)
{
	if (b->n_outliers == b->room) {
		size_t room = b->room ? 2 * b->room : 64;
		void *p = realloc(b->outlier, room * sizeof(*b->outlier));

		if (!p)
			return -ENOMEM;
		b->outlier = p;
		b->room = room;
	}
	b->outlier[b->n_outliers++] = (struct eq_quant_outlier){ unit, bits };
	return 0;
}

/* Units of a strip that their symbol does not stand for keep their bits. */
static int strip_outliers(struct eq_quant_strip *s, const struct apply_job *job,
			  float inv, uint64_t first, size_t n, struct apply_block *b)
{
	size_t unit = eq_quant_unit(job->t->dtype);
	const uint8_t *w = (const uint8_t *)job->t->w + first * unit;

	for (size_t i = 0; i < n; i++) {
		float t = fabsf(s->x[i]) * inv;
		bool beyond = job->format == EQ_Q_FP8 ? eq_level_fp8(t) > 126 :
							eq_level_int8(t) > 127;
		uint32_t bits = 0;
		int rc;

		if (!beyond && isfinite(s->y[i]))
			continue;
		memcpy(&bits, w + i * unit, unit);
		rc = outlier_add(b, first + i, bits);
		if (rc)
			return rc;
		s->out[i] = (uint16_t)bits;
		s->y[i] = s->x[i];
	}
	return 0;
}

/* sym NULL: count what is pending. */
static void count_symbols(struct apply_block *b, const uint8_t *sym, size_t n)
{
	if (!sym || b->n_pending + n > PENDING) {
		eq_kernels_get()->histogram(b->pending, b->n_pending, b->hist);
		b->n_pending = 0;
	}
	if (sym)
		memcpy(b->pending + b->n_pending, sym, n);
	b->n_pending += n;
}

static void apply_row(const struct apply_job *job, struct apply_block *b,
		      uint64_t row)
{
	const struct eq_quant_ops *ops = eq_quant_ops_get();
	const struct eq_quant_tensor *t = job->t;
	size_t unit = eq_quant_unit(t->dtype);
	float scale = eq_float_of((uint32_t)job->scale[row] << 16);
	float inv = scale > 0 ? 1.0f / scale : 0;
	struct eq_quant_sums sum = { 0 };

	for (uint64_t k = 0; k < t->k; k += EQ_STRIP) {
		size_t n = t->k - k < EQ_STRIP ? t->k - k : EQ_STRIP;
		uint64_t first = row * t->k + k;
		struct eq_quant_strip s;

		ops->code(&s, (const uint8_t *)t->w + first * unit, t->dtype,
			  job->format, n, inv, scale);
		if (s.bad && !b->status)
			b->status = strip_outliers(&s, job, inv, first, n, b);
		ops->sums(&s, n, &sum);
		count_symbols(b, s.sym, n);
		if (job->sym)
			memcpy(job->sym + first, s.sym, n);
		if (job->recon)
			memcpy(job->recon + first * unit,
			       unit == 2 ? (void *)s.out : (void *)s.y, n * unit);
	}
	b->sum_abs += eq_quant_lanes_sum(&sum.abs);
	b->err_abs += eq_quant_lanes_sum(&sum.err_abs);
	b->sum_sq += eq_quant_lanes_sum(&sum.sq);
	b->err_sq += eq_quant_lanes_sum(&sum.err_sq);
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
	count_symbols(b, NULL, 0);
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
			r->hist[s] += b->hist[s];
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
