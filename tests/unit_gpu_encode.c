/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encoding kernels of gpu/ on the host, lane by lane, against the CPU: the same
 * chunks, norms, scales, symbols, sums and outliers, to the bit.
 */
#include <config.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "encode_device.h"
#include "gpu_enc_host.h"
#include "gpu_util.h"
#include "quant_util.h"

static unsigned made[EQ_PART_DEPENDENT];        /* parts of each kind */

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
	struct eq_encode_plan plan;
	struct emulated x;

	emulated_init(&x, 0);
	assert_int_equal(eq_device_plan(c, &plan), 0);
	eq_device_parts(c, 0, job.part);
	job.plan = &plan;
	job.out = must_alloc(eq_chunk_bound(c, 0));
	assert_int_equal(x.be.encoder->encode(&x, &job, 1), 0);
	check_chunk(name, &job, want, len);
	count_parts(want, c->n_parts);
	free((void *)(uintptr_t)plan.table);
	free(job.out);
	free(want);
	free(scratch);
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
}

static void compare_quant(const struct gpu_case *g, uint64_t *s, uint32_t n)
{
	struct eq_disk_outlier o[3] = { { 0, 1 }, { n / 2, 2 }, { n - 1, 3 } };
	uint64_t hist[256] = { 0 };
	uint8_t *sym = must_alloc(n), *want, *scratch, scales[64];
	struct eq_encode_job job = { .n_units = n, .scales = scales, .scale_bytes = 2 * (rnd(s) % 30),
				     .outlier = o, .n_outliers = rnd(s) % 4 };
	struct eq_coding *c = must_alloc(sizeof(*c));
	struct eq_encode_plan plan;
	float value[256];
	size_t len;

	for (unsigned i = 0; i < 256; i++)
		value[i] = (float)i;
	rnd_symbols(s, sym, n, g->alphabet[0], g->ratio);
	for (uint32_t i = 0; i < n; i++)
		hist[sym[i]]++;
	memset(scales, 0x3c, sizeof(scales));
	eq_coding_quant(c, g->unit, EQ_SCALE_BF16, n, n, eq_align(n, 128), hist, value, 3);
	want = must_alloc(eq_chunk_bound(c, 3) + sizeof(scales));
	scratch = must_alloc(eq_chunk_scratch(c));
	len = eq_chunk_encode_quant(c, sym, n, scales, job.scale_bytes, o, job.n_outliers, want,
				    scratch);
	assert_int_equal(eq_device_plan(c, &plan), 0);
	eq_device_parts(c, 0, job.part);
	job.plan = &plan;
	job.out = must_alloc(eq_chunk_bound(c, 3) + sizeof(scales));
	emulate_chunk(&job, sym);
	check_chunk(g->name, &job, want, len);
	free((void *)(uintptr_t)plan.table);
	free(job.out);
	free(want);
	free(scratch);
	free(c);
	free(sym);
}

static void test_symbols(void **state)
{
	uint64_t s = 32;

	(void)state;
	for (unsigned i = 0; i < GPU_CASES; i++) {
		if (!gpu_cases[i].quant)
			continue;
		compare_quant(&gpu_cases[i], &s, 20000);
		for (uint32_t n = 2; n < 600; n += 1 + (uint32_t)(rnd(&s) % 20))
			compare_quant(&gpu_cases[i], &s, n);
	}
}

/* ---- quantising -------------------------------------------------------------------- */

static int by_unit(const void *a, const void *b)
{
	const struct eq_encode_outlier *x = a, *y = b;

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

static void compare_apply(const struct matrix *m, struct eq_quantiser *q, enum eq_qformat format,
			  const struct eq_quant_format *f)
{
	uint64_t n = m->t.rows * m->t.k, bytes = n * eq_quant_unit(m->t.dtype);
	struct emulated_quantiser *e = (void *)q;
	struct eq_quantised r = { .room = n };
	uint8_t *sym = must_alloc(n), *recon = must_alloc(bytes);
	struct eq_quant_result want;
	double err = 0;

	r.sums = must_alloc(m->t.rows * sizeof(*r.sums));
	r.recon = must_alloc(bytes);
	r.outlier = must_alloc(n * sizeof(*r.outlier));
	assert_int_equal(eq_quant_apply(&m->t, format, m->scale, NULL, sym, recon, &want), 0);
	assert_int_equal(q->ops->apply(q, f, m->scale, &r), 0);
	assert_memory_equal(e->r.symbols, sym, n);
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
	struct eq_quantiser_tensor t = { m->t.dtype, m->t.rows, m->t.k, m->t.w };
	uint16_t *scale = must_alloc(m->t.rows * sizeof(*scale));
	uint64_t n = m->t.rows * m->t.k;
	struct eq_quant_format f;
	struct eq_quantiser *q;
	struct emulated x;
	double l1;

	emulated_init(&x, 0);
	assert_int_equal(x.be.encoder->quantiser(&x, &t, &q), 0);
	eq_quant_format_init(&f, format);
	compare_norm(m, q, &l1);
	assert_int_equal(eq_quant_search(&m->t, format, lambda, l1, n, NULL, m->scale), 0);
	assert_int_equal(q->ops->search(q, &f, eq_quant_price(lambda, l1, n), scale), 0);
	for (uint64_t i = 0; i < m->t.rows; i++)
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
	struct eq_quantiser *q;
	struct emulated x;
	struct matrix m;
	double sum[3];
	bool finite;

	(void)state;
	emulated_init(&x, 0);
	for (unsigned i = 0; i < 6; i++) {
		matrix_make(&m, dtypes[i / 2], 3, 40, GAUSS, 1);
		if (m.t.dtype == EQ_F32)
			((uint32_t *)m.w)[77] = i & 1 ? 0x7f800000 : 0xffc00000;
		else
			((uint16_t *)m.w)[77] = i & 1 ? 0xff80 : 0x7fc0;
		t.dtype = m.t.dtype;
		t.units = m.w;
		assert_int_equal(x.be.encoder->quantiser(&x, &t, &q), 0);
		assert_int_equal(q->ops->norm(q, sum, &finite), 0);
		assert_false(finite);
		q->ops->close(q);
		matrix_free(&m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_planes),
		cmocka_unit_test(test_symbols),
		cmocka_unit_test(test_quantiser),
		cmocka_unit_test(test_odd_rows),
		cmocka_unit_test(test_not_finite),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
