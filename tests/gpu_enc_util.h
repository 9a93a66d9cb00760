/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A back end's encoder against the CPU: the same chunks, norms, scales, symbols, sums
 * and outliers, to the bit. Include cmocka.h first.
 */
#ifndef EQ_GPU_ENC_UTIL_H
#define EQ_GPU_ENC_UTIL_H

#include "encode_device.h"
#include "gpu_util.h"
#include "quant_util.h"

static const struct eq_backend *encoder_under_test;

static unsigned made[EQ_PART_DEPENDENT];        /* parts of each kind */
static unsigned spares;                         /* that took the spare table */

static void count_parts(const uint8_t *chunk, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		made[chunk[i * sizeof(struct eq_disk_part)]]++;
}

static void check_chunk(const char *name, const struct eq_encode_job *job, const uint8_t *want,
			size_t len)
{
	size_t i = 0;

	if (job->len == len && !memcmp(job->out, want, len))
		return;
	while (i < len && i < job->len && job->out[i] == want[i])
		i++;
	fail_msg("%s: %u units: byte %zu differs, %zu bytes instead of %zu", name, job->n_units, i,
		 job->len, len);
}

/* n units as a chunk of the coding, both ways. */
static void compare_planes(const char *name, const struct eq_coding *c, const void *units,
			   uint32_t n)
{
	struct eq_encode_job job = { .n_units = n, .units = units };
	uint8_t *want = must_alloc(eq_chunk_bound(c, 0)), *scratch = must_alloc(eq_chunk_scratch(c));
	size_t len = eq_chunk_encode_planes(c, 0, units, n, want, scratch);
	const struct eq_backend *be = encoder_under_test;
	struct eq_encode_plan plan;

	assert_int_equal(eq_device_plan(c, &plan), 0);
	eq_device_parts(c, 0, job.part);
	job.plan = &plan;
	job.out = must_alloc(eq_chunk_bound(c, 0));
	assert_int_equal(be->encoder->encode(be->ctx, &job, 1), 0);
	check_chunk(name, &job, want, len);
	count_parts(want, c->n_parts);
	for (unsigned i = 0; i < c->n_parts; i++)
		spares += want[i * sizeof(struct eq_disk_part)] == EQ_PART_RANS &&
			  want[i * sizeof(struct eq_disk_part) + 1] == c->part[i].spare;
	free((void *)(uintptr_t)plan.table);
	free(job.out);
	free(want);
	free(scratch);
}

/* With a coding made of a sample: symbols that it lacks take the spare table. */
static void compare_sampled(const char *name, const struct eq_coding *c, const uint8_t *units,
			    uint32_t n)
{
	uint64_t (*hist)[256] = calloc(8, sizeof(*hist));
	const struct eq_plane_hist h = { .hist = (const uint64_t (*)[256])hist, .n_runs = 1,
					 .run_chunks = 1, .sampled = true };
	struct eq_coding *s = must_alloc(sizeof(*s));

	assert_non_null(hist);
	eq_hist_planes(c->unit, c->transform, units + (size_t)(n / 3) * c->unit, n / 16 + 1, hist);
	eq_coding_runs(s, c->unit, c->transform, n, (uint32_t)eq_align(n, 128), &h);
	compare_planes(name, s, units, n);
	free(hist);
	free(s);
}

static void decode(const struct eq_decode_job *job, void *out)
{
	struct eq_decode_job cpu = *job;

	cpu.out = out;
	assert_int_equal(eq_backend_cpu()->decode(NULL, &cpu, 1), 0);
	assert_int_equal(cpu.status, 0);
}

static void compare_tensor(const struct gpu_case *g, uint64_t *s, uint32_t chunk_units)
{
	struct gpu_tensor t;

	gpu_tensor_make(g, s, chunk_units, &t);
	for (unsigned k = 0; k < t.n; k++) {
		uint8_t *units = must_alloc((size_t)t.job[k].n_units * g->unit);

		decode(&t.job[k], units);
		compare_planes(g->name, t.coding, units, t.job[k].n_units);
		compare_sampled(g->name, t.coding, units, t.job[k].n_units);
		/* Symbols that the table lacks, more escapes than are worth it. */
		for (uint32_t i = 0; i < t.job[k].n_units; i += 1 + (uint32_t)(rnd(s) % 200))
			units[(size_t)i * g->unit + g->unit - 1] ^= (uint8_t)(1 << rnd(s) % 8);
		compare_planes(g->name, t.coding, units, t.job[k].n_units);
		for (uint32_t i = 0; i < t.job[k].n_units; i += 1 + (uint32_t)(rnd(s) % 8))
			units[(size_t)i * g->unit + g->unit - 1] = (uint8_t)rnd(s);
		compare_planes(g->name, t.coding, units, t.job[k].n_units);
		memset(units, 0x40, (size_t)t.job[k].n_units * g->unit);
		compare_planes(g->name, t.coding, units, t.job[k].n_units);
		free(units);
	}
	gpu_tensor_free(&t);
}

static void test_planes(void **state)
{
	uint64_t s = 31;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		struct gpu_case g = gpu_cases[i];

		if (g.quant)
			continue;
		compare_tensor(&g, &s, GPU_CHUNK);
		for (g.n = 1; g.n < 700; g.n += 1 + (uint32_t)(rnd(&s) % 40))
			compare_tensor(&g, &s, 256);
	}
	for (unsigned kind = EQ_PART_RAW; kind <= EQ_PART_PAIR; kind++)
		if (!made[kind])
			fail_msg("no part of kind %u came about", kind);
	assert_in_range(spares, 10, 1000000);
}

/* Escapes around the number from which on a part is stored as it is. */
static void test_escapes(void **state)
{
	uint64_t s = 33, weight = 1000000, (*hist)[256] = calloc(2, sizeof(*hist));
	struct eq_coding *c = must_alloc(sizeof(*c));
	uint16_t *units = must_alloc(2 * GPU_CHUNK);
	uint8_t *high = must_alloc(GPU_CHUNK);
	unsigned pairs = made[EQ_PART_PAIR], rounds = 0;

	(void)state;
	assert_non_null(hist);
	for (unsigned i = 0; i < 256; i++)
		hist[0][i] = hist[1][i] = 1;
	for (unsigned i = 0; i < 15; i++, weight = weight * 3 / 5)
		hist[0][(i * 37 + 5) & 255] = weight; /* as rnd_symbols spreads them */
	eq_coding_planes(c, 2, EQ_TRANSFORM_ROTATED, GPU_CHUNK, GPU_CHUNK,
			 (const uint64_t (*)[256])hist);
	assert_int_equal(c->part[0].kind, EQ_PART_PAIR);
	for (unsigned n = 40; n < 300; n += 1 + (unsigned)(rnd(&s) % 4), rounds++) {
		rnd_symbols(&s, high, GPU_CHUNK, 15, 0.6);
		for (unsigned i = 0; i < n; i++)
			high[rnd(&s) % GPU_CHUNK] = 0xff;
		for (unsigned i = 0; i < GPU_CHUNK; i++) {
			uint32_t v = (uint32_t)high[i] << 8 | (rnd(&s) & 255);

			units[i] = (uint16_t)(v >> 1 | v << 15);
		}
		compare_planes("escapes", c, units, GPU_CHUNK);
	}
	assert_in_range(made[EQ_PART_PAIR] - pairs, 10, rounds - 10);
	free(hist);
	free(c);
	free(units);
	free(high);
}

/* ---- quantising -------------------------------------------------------------------- */

static int by_unit(const void *a, const void *b)
{
	const struct eq_quant_outlier *x = a, *y = b;

	return x->unit < y->unit ? -1 : x->unit > y->unit;
}

static void compare_norm(const struct matrix *m, struct eq_quantiser *q, double *l1)
{
	double *sum = must_alloc(m->t.rows * sizeof(*sum)), block = 0, total = 0;
	uint64_t block_rows = eq_quant_block_rows(m->t.k);
	bool finite, want;

	assert_int_equal(q->ops->norm(q, sum, &finite), 0);
	assert_int_equal(eq_quant_l1(&m->t, NULL, l1, &want), 0);
	assert_int_equal(finite, want);
	for (uint64_t i = 0; i < m->t.rows; i++) {
		block += sum[i];
		if ((i + 1) % block_rows && i + 1 < m->t.rows)
			continue;
		total += block;
		block = 0;
	}
	assert_memory_equal(&total, l1, sizeof(total));
	free(sum);
}

/* All symbols as one chunk. */
static void compare_symbols(const struct matrix *m, struct eq_quantiser *q, const uint8_t *sym,
			    const struct eq_quant_result *r)
{
	uint32_t n = (uint32_t)(m->t.rows * m->t.k);
	struct eq_encode_job job = { .n_units = n, .scales = m->scale,
				     .scale_bytes = 2 * m->t.rows };
	struct eq_coding *c = must_alloc(sizeof(*c));
	uint8_t *want, *scratch;
	struct eq_encode_plan plan;
	float value[256];
	size_t len;

	for (unsigned i = 0; i < 256; i++)
		value[i] = 1;
	eq_coding_quant(c, (unsigned)eq_quant_unit(m->t.dtype), EQ_SCALE_BF16, n, m->t.k,
			(uint32_t)eq_align(n, 128), r->hist, value, 0);
	want = must_alloc(eq_chunk_bound(c, 0));
	scratch = must_alloc(eq_chunk_scratch(c));
	len = eq_chunk_encode_quant(c, sym, n, m->scale, job.scale_bytes, NULL, 0, want, scratch);
	assert_int_equal(eq_device_plan(c, &plan), 0);
	eq_device_parts(c, 0, job.part);
	job.plan = &plan;
	job.out = must_alloc(eq_chunk_bound(c, 0));
	assert_int_equal(q->ops->encode(q, &job, 1), 0);
	check_chunk("symbols", &job, want, len);
	free((void *)(uintptr_t)plan.table);
	free(job.out);
	free(want);
	free(scratch);
	free(c);
}

static void compare_apply(const struct matrix *m, struct eq_quantiser *q, enum eq_qformat format,
			  const struct eq_quant_format *f)
{
	uint64_t n = m->t.rows * m->t.k, bytes = n * eq_quant_unit(m->t.dtype);
	struct eq_quantised r = { .n_outliers = 0 };
	uint8_t *sym = must_alloc(n), *recon = must_alloc(bytes);
	struct eq_quant_result want;
	double err = 0;

	r.sums = must_alloc(m->t.rows * sizeof(*r.sums));
	r.recon = must_alloc(bytes);
	r.outlier = must_alloc(n * sizeof(*r.outlier));
	assert_int_equal(eq_quant_apply(&m->t, format, m->scale, NULL, sym, recon, &want), 0);
	assert_int_equal(q->ops->apply(q, f, m->scale, &r), 0);
	compare_symbols(m, q, sym, &want);
	assert_memory_equal(r.recon, recon, bytes);
	assert_memory_equal(r.hist, want.hist, sizeof(want.hist));
	assert_int_equal(r.n_outliers, want.n_outliers);
	qsort(r.outlier, r.n_outliers, sizeof(r.outlier[0]), by_unit);
	for (size_t i = 0; i < r.n_outliers; i++) {
		assert_int_equal(r.outlier[i].unit, want.outlier[i].unit);
		assert_int_equal(r.outlier[i].bits, want.outlier[i].bits);
	}
	for (uint64_t i = 0; i < m->t.rows; i++)
		err += r.sums[i].err_sq;
	if (m->t.rows <= eq_quant_block_rows(m->t.k))
		assert_memory_equal(&err, &want.err_sq, sizeof(err));
	eq_quant_result_fini(&want);
	free(r.sums);
	free(r.recon);
	free(r.outlier);
	free(sym);
	free(recon);
}

static void compare_matrix(struct matrix *m, enum eq_qformat format, double lambda)
{
	struct eq_quantiser_tensor t = { m->t.dtype, m->t.rows, m->t.k, m->t.rows * m->t.k, m->t.w };
	uint16_t *scale = must_alloc(m->t.rows * sizeof(*scale));
	uint64_t n = m->t.rows * m->t.k;
	struct eq_quant_format f;
	const struct eq_backend *be = encoder_under_test;
	struct eq_quantiser *q;
	double l1;
	int rc;

	assert_int_equal(be->encoder->quantiser(be->ctx, &t, &q), 0);
	eq_quant_format_init(&f, format);
	compare_norm(m, q, &l1);
	assert_int_equal(eq_quant_search(&m->t, format, lambda, l1, n, NULL, m->scale), 0);
	rc = q->ops->search(q, &f, eq_quant_price(lambda, l1, n), scale);
	/* a few long rows may be too many for it */
	if (m->t.k < 10000 || m->t.rows > 13)
		assert_int_equal(rc, 0);
	else if (rc)
		assert_int_equal(rc, -ENOSPC);
	for (uint64_t i = 0; i < m->t.rows && !rc; i++)
		if (scale[i] != m->scale[i])
			fail_msg("dtype %d, format %d, lambda %g: row %d has scale %04x instead of %04x",
				 m->t.dtype, format, lambda, (int)i, scale[i], m->scale[i]);
	compare_apply(m, q, format, &f);
	q->ops->close(q);
	free(scale);
}

static void test_quantiser(void **state)
{
	static const double lambdas[] = { 0.05, 1, 3.9, 14.5, 58, 1000 };
	static const double sizes[] = { 0.02, 1e-38, 1e30 };

	(void)state;
	for (unsigned i = 0; i < 3 * 2 * KINDS * 6; i++) {
		int dtype = dtypes[i % 3];
		double size = sizes[i / 36 % 3];
		struct matrix m;

		if (dtype == EQ_F16)
			size = i & 64 ? 1e-5 : 0.5;
		matrix_make(&m, dtype, 7, 500 + 13 * (i % 5), i / 6 % KINDS, size);
		compare_matrix(&m, formats[i / 3 % 2], lambdas[i / 30]);
		matrix_free(&m);
	}
}

/* Rows that do not fit into a device's shared memory: many, and too few for it. */
static void test_long_rows(void **state)
{
	static const unsigned sizes[][2] = { { 3, 4096 }, { 14, 20000 }, { 2, 32767 } };

	(void)state;
	for (unsigned i = 0; i < 2 * 3; i++) {
		struct matrix m;

		matrix_make(&m, dtypes[1 + i % 2], sizes[i / 2][0], sizes[i / 2][1],
			    i & 2 ? OUTLIERS : GAUSS, 0.02);
		compare_matrix(&m, formats[i / 2 % 2], 3.9);
		matrix_free(&m);
	}
}

/* Rows of zeros, of one value, with one unit, of the greatest and least values. */
static void test_odd_rows(void **state)
{
	static const float odd[] = { 0, 1, -3, 1e-40f, 3.3e38f, 65504, 6e-8f };

	(void)state;
	for (unsigned d = 0; d < 3; d++) {
		for (unsigned f = 0; f < 2; f++) {
			struct matrix m;

			matrix_make(&m, dtypes[d], 49, 40, GAUSS, 0.02);
			for (unsigned i = 0; i < 49 * 40; i++) {
				float x = odd[i / 40 % 7];

				if (dtypes[d] == EQ_F16 && x > 65504)
					x = 60000;
				if (i / 40 / 7 >= 3 && i % 3)
					x = odd[i / 40 / 7] > 65504 ? 1 : odd[i / 40 / 7];
				matrix_set(&m, i, i % 40 > i / 40 ? x : -x);
			}
			compare_matrix(&m, formats[f], 3.9);
			matrix_free(&m);
			matrix_make(&m, dtypes[d], 30, 1, WIDE, 0.1);
			compare_matrix(&m, formats[f], 3.9);
			matrix_free(&m);
		}
	}
}

static void test_not_finite(void **state)
{
	struct eq_quantiser_tensor t = { .rows = 3, .k = 40 };
	const struct eq_backend *be = encoder_under_test;
	struct eq_quantiser *q;
	struct matrix m;
	double sum[3];
	bool finite;

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		matrix_make(&m, dtypes[i / 2], 3, 40, GAUSS, 1);
		if (m.t.dtype == EQ_F32)
			((uint32_t *)m.w)[77] = i & 1 ? 0x7f800000 : 0xffc00000;
		else
			((uint16_t *)m.w)[77] = i & 1 ? 0xff80 : 0x7fc0;
		t.dtype = m.t.dtype;
		t.units = m.w;
		assert_int_equal(be->encoder->quantiser(be->ctx, &t, &q), 0);
		assert_int_equal(q->ops->norm(q, sum, &finite), 0);
		assert_false(finite);
		q->ops->close(q);
		matrix_free(&m);
	}
}

#endif
