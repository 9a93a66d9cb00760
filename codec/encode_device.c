/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encoding by the run's back end, if it does that. Whatever fails there is done
 * again by the CPU, with the same bytes, so nothing here is an error.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "encode_device.h"

/* A device that is lost is not asked again; -ENOSPC is about what was asked. */
static int device_result(struct eq_encoder *e, int rc)
{
	if (rc && rc != -ENOSPC)
		e->device = NULL;
	return rc;
}

static void table_fill(const struct eq_coding *c, unsigned i, struct eq_encode_table *t)
{
	const struct eq_freq *f = &c->freq[i];

	memcpy(t->entry, c->enc[i].entry, sizeof(t->entry));
	t->pad = c->enc[i].pad;
	if (f->mode != EQ_TABLE_PAIR)
		return;
	t->fill = f->nibble[0];
	eq_pair_index(f, t->index);
}

int eq_device_plan(const struct eq_coding *c, struct eq_encode_plan *plan)
{
	struct eq_encode_table *table = calloc(c->n_freq + 1, sizeof(*table));
	unsigned i;

	*plan = (struct eq_encode_plan){ .codec = c->codec, .unit = c->unit,
					 .transform = c->transform, .n_tables = c->n_freq,
					 .table = table };
	if (!table)
		return -ENOMEM;
	for (i = 0; i < c->n_freq; i++)
		table_fill(c, i, &table[i]);
	return 0;
}

void eq_device_parts(const struct eq_coding *c, uint32_t chunk, struct eq_encode_part part[8])
{
	bool quant = c->codec == EQ_CODEC_QUANT;
	unsigned n = quant ? 1 : c->n_parts, i;

	for (i = 0; i < n; i++) {
		unsigned of = quant ? 1 : i;

		part[i] = (struct eq_encode_part){ c->part[of].kind,
						   eq_coding_arg(c, of, quant ? 0 : chunk),
						   c->part[of].spare };
	}
}

bool eq_device_encode(struct eq_encoder *e, struct eq_encode_job *jobs, size_t n)
{
	return e->device && !device_result(e, e->device->encoder->encode(e->device->ctx, jobs, n));
}

/* ---- quantising ---------------------------------------------------------------- */

/* Outliers that a tensor of n units may have; more are for the CPU. */
static size_t outliers_room(uint64_t n)
{
	return n / 512 + 4096;
}

void eq_device_open(struct eq_encoder *e, const struct eq_quant_tensor *t, struct eq_quantiser **q)
{
	struct eq_quantiser_tensor qt = { .dtype = t->dtype, .rows = t->rows, .k = t->k,
					  .max_outliers = outliers_room(t->rows * t->k),
					  .units = t->w };

	*q = NULL;
	if (e->device && device_result(e, e->device->encoder->quantiser(e->device->ctx, &qt, q)))
		*q = NULL;
}

void eq_device_close(struct eq_quantiser **q)
{
	if (*q)
		(*q)->ops->close(*q);
	*q = NULL;
}

/* False after an error, after which the quantiser is gone. */
static bool quantiser_result(struct eq_encoder *e, struct eq_quantiser **q, int rc)
{
	if (device_result(e, rc))
		eq_device_close(q);
	return !rc;
}

bool eq_device_l1(struct eq_encoder *e, struct eq_quantiser **q, const struct eq_quant_tensor *t,
		  double *l1, bool *finite)
{
	uint64_t block_rows = eq_quant_block_rows(t->k), i, end;
	double *sum = *q ? malloc(t->rows * sizeof(*sum)) : NULL, block;
	bool done = false;

	*l1 = 0;
	if (!sum)
		eq_device_close(q);
	else
		done = quantiser_result(e, q, (*q)->ops->norm(*q, sum, finite));
	for (i = 0; done && i < t->rows; *l1 += block)
		for (block = 0, end = i + block_rows; i < end && i < t->rows; i++)
			block += sum[i];
	free(sum);
	return done;
}

bool eq_device_search(struct eq_encoder *e, struct eq_quantiser **q, double nu, uint16_t *scale)
{
	struct eq_quant_format f;
	int rc;

	if (!*q)
		return false;
	eq_quant_format_init(&f, e->policy->format);
	rc = (*q)->ops->search(*q, &f, nu, scale);
	return rc != -ENOSPC && quantiser_result(e, q, rc);
}

static int by_unit(const void *a, const void *b)
{
	const struct eq_quant_outlier *x = a, *y = b;

	return x->unit < y->unit ? -1 : x->unit > y->unit;
}

/* Sums of rows, added up as eq_quant_apply does: rows to blocks, blocks in order. */
static void add_rows(const struct eq_encode_sums *sum, const struct eq_quant_tensor *t,
		     struct eq_quant_result *r)
{
	uint64_t block_rows = eq_quant_block_rows(t->k), i = 0, end;

	while (i < t->rows) {
		struct eq_encode_sums b = { 0, 0, 0, 0 };

		for (end = i + block_rows; i < end && i < t->rows; i++) {
			b.abs += sum[i].abs;
			b.err_abs += sum[i].err_abs;
			b.sq += sum[i].sq;
			b.err_sq += sum[i].err_sq;
		}
		r->sum_abs += b.abs;
		r->err_abs += b.err_abs;
		r->sum_sq += b.sq;
		r->err_sq += b.err_sq;
	}
}

bool eq_device_apply(struct eq_encoder *e, struct eq_quantiser **q, const struct eq_quant_tensor *t,
		     const uint16_t *scale, void *recon, struct eq_quant_result *r)
{
	struct eq_quantised out = { .recon = recon };
	struct eq_quant_format f;
	bool done = false;

	memset(r, 0, sizeof(*r));
	if (!*q)
		return false;
	eq_quant_format_init(&f, e->policy->format);
	out.sums = malloc(t->rows * sizeof(out.sums[0]));
	out.outlier = malloc(outliers_room(t->rows * t->k) * sizeof(out.outlier[0]));
	if (out.sums && out.outlier)
		done = quantiser_result(e, q, (*q)->ops->apply(*q, &f, scale, &out));
	if (done) {
		memcpy(r->hist, out.hist, sizeof(r->hist));
		add_rows(out.sums, t, r);
		qsort(out.outlier, out.n_outliers, sizeof(out.outlier[0]), by_unit);
		r->outlier = out.outlier;
		r->n_outliers = out.n_outliers;
	} else {
		eq_device_close(q);
		free(out.outlier);
	}
	free(out.sums);
	return done;
}

bool eq_device_symbols(struct eq_encoder *e, struct eq_quantiser **q, struct eq_encode_job *jobs,
		       size_t n)
{
	return *q && quantiser_result(e, q, (*q)->ops->encode(*q, jobs, n));
}
