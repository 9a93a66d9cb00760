/* SPDX-License-Identifier: Apache-2.0 */
/* The search for scales against a grid, the figures on Gaussian weights, and
 * rate control. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>

#include "quant_util.h"

static const char *const kind_name[] = { "Gaussian", "Laplace", "sparse", "outliers",
					 "wide" };

/* ---- search -------------------------------------------------------------- */

/* A row's objective, from the definition. */
static double objective(const float *x, uint64_t k, enum eq_qformat format, double lambda,
			double l1, uint64_t n, float scale, uint64_t *outliers)
{
	float value[256], inv = 1.0f / scale;
	double d = 0, r = 0;

	eq_quant_values(format, value);
	*outliers = 0;
	for (uint64_t i = 0; i < k; i++) {
		float a = fabsf(x[i]), t = a * inv;
		uint32_t q;

		if (!(scale > 0)) {
			d += a;
			continue;
		}
		q = format == EQ_Q_FP8 ? eq_level_fp8(t) : eq_level_int8(t);
		if (q > (format == EQ_Q_FP8 ? 126u : 127u)) {
			++*outliers;
			r += format == EQ_Q_FP8 ? 448 : 127;
			continue;
		}
		d += fabs((double)a - (double)value[q] * (double)scale);
		r += value[q];
	}
	return d / l1 + lambda / (double)n * r * (format == EQ_Q_FP8 ? 4 : 1 / 128.0);
}

/* The least over 200 scales, from where nothing is clipped to where all is zero;
 * with `narrow` scales are rounded up to bfloat16. */
static double grid(const float *x, uint64_t k, enum eq_qformat format, double lambda,
		   double l1, uint64_t n, bool narrow)
{
	double top = 0, low, least, span;
	uint64_t outliers;

	for (uint64_t i = 0; i < k; i++)
		top = fabs((double)x[i]) > top ? fabs((double)x[i]) : top;
	least = objective(x, k, format, lambda, l1, n, 0, &outliers);
	low = format == EQ_Q_FP8 ? top / 448 : top / 127.4;
	span = log2(format == EQ_Q_FP8 ? 448 * 1024.0 : 254.8);
	for (int i = 0; top > 0 && i < 200; i++) {
		float s = (float)(low * exp2(span * i / 199));
		double j;

		if (narrow)
			s = eq_float_of((eq_float_bits(s) + 0xffff) & 0xffff0000);
		j = objective(x, k, format, lambda, l1, n, s, &outliers);
		if (outliers)
			continue;
		least = j < least ? j : least;
	}
	return least;
}

static void check_search(int dtype, enum eq_qformat format, enum kind kind, uint64_t rows,
			 uint64_t k, double lambda)
{
	double sum = 0, sum_fine = 0, l1;
	struct matrix m;

	matrix_make(&m, dtype, rows, k, kind, 0.03);
	l1 = matrix_norm(&m);
	assert_int_equal(eq_quant_search(&m.t, format, lambda, l1, rows * k, NULL, m.scale), 0);
	for (uint64_t r = 0; r < rows; r++) {
		const float *x = m.x + r * k;
		uint64_t outliers;
		double j = objective(x, k, format, lambda, l1, rows * k, scale_of(m.scale[r]),
				     &outliers);
		double g = grid(x, k, format, lambda, l1, rows * k, true);

		assert_true(format == EQ_Q_INT8 ? outliers <= k / 1024 : outliers == 0);
		/* the search is exact; the rest is the rounding of sums */
		if (j > g * (1 + 1e-9))
			fail_msg("%s, dtype %d, format %d, k %llu, lambda %g, row %llu: %.9g, grid %.9g",
				 kind_name[kind], dtype, format, (unsigned long long)k, lambda,
				 (unsigned long long)r, j, g);
		sum += j;
		sum_fine += grid(x, k, format, lambda, l1, rows * k, false);
	}
	/* also against scales that are not bfloat16 where rows are long enough not to
	 * turn on a single unit */
	if (k >= 1024 && sum > sum_fine * (1 + 1e-6))
		fail_msg("%s, dtype %d, format %d, k %llu, lambda %g: %.9g, grid %.9g",
			 kind_name[kind], dtype, format, (unsigned long long)k, lambda, sum,
			 sum_fine);
	matrix_free(&m);
}

static void test_search(void **state)
{
	static const double lambdas[] = { 0.1, 3.9, 14.5, 58 };

	(void)state;
	for (int f = 0; f < 2; f++)
		for (int kind = 0; kind < KINDS; kind++)
			for (int l = 0; l < 4; l++) {
				for (int d = 0; d < 3; d++) {
					check_search(dtypes[d], formats[f], kind, 8, 100, lambdas[l]);
					check_search(dtypes[d], formats[f], kind, 4, 384, lambdas[l]);
					check_search(dtypes[d], formats[f], kind, 4, 1500, lambdas[l]);
					check_search(dtypes[d], formats[f], kind, 20, 1, lambdas[l]);
					check_search(dtypes[d], formats[f], kind, 20, 7, lambdas[l]);
				}
			}
}

/* ---- every scale there is ------------------------------------------------- */

#define ODD_ROWS 12
#define ODD_K 60

/* Rows that are unlike each other, so that no row's scale is a hint for the next. */
static float odd_unit(unsigned row, unsigned i, int dtype)
{
	double g = gauss(), tiny = dtype == EQ_F16 ? 6e-8 : 1e-40;
	double huge = dtype == EQ_F16 ? 65504 : 3.38e38;

	switch (row) {
	case 0: return (float)(0.02 * g);
	case 1: return i == 17 ? 100 : (float)(1e-3 * g);       /* one outlier */
	case 2: return 0.3f;
	case 3: return i % 2 ? 0.0123f : -0.0123f;
	case 4: return 0;
	case 5: return (float)(tiny * (1 + i % 9));             /* subnormals */
	case 6: return (float)(huge * (i % 3 ? 1 : 0.01 * i));
	case 7: return i ? 0 : 1;
	case 8: return i % 2 ? 1.0f : 1 + 0x1p-10f;             /* of one bin, or two */
	case 9: return (float)(1 + 0x1p-23 * i);
	case 10: return (float)ldexp(1, -(int)(i % 20));        /* on boundaries */
	default: return (float)(0.1 * g * exp2(-20 * uniform()));
	}
}

/* The least cost of all bfloat16 scales that the search may choose. */
static double least_of_all(const float *x, enum eq_qformat format, double lambda, double l1,
			   uint64_t n)
{
	uint64_t outliers;
	double top = 0, least = objective(x, ODD_K, format, lambda, l1, n, 0, &outliers);

	for (uint64_t i = 0; i < ODD_K; i++)
		top = fabs((double)x[i]) > top ? fabs((double)x[i]) : top;
	for (uint32_t bits = 0x80; bits <= 0x7e80; bits++) {
		double s = (double)scale_of((uint16_t)bits), j;

		if (s * 448 < top || s > top * 1100 || (format == EQ_Q_INT8 && s * 127.6 < top))
			continue;
		j = objective(x, ODD_K, format, lambda, l1, n, (float)s, &outliers);
		if (!outliers && j < least)
			least = j;
	}
	return least;
}

static void check_all(int dtype, enum eq_qformat format, double lambda)
{
	struct matrix m;

	matrix_make(&m, dtype, ODD_ROWS, ODD_K, GAUSS, 1);
	for (unsigned r = 0; r < ODD_ROWS; r++)
		for (unsigned i = 0; i < ODD_K; i++)
			matrix_set(&m, r * ODD_K + i, odd_unit(r, i, dtype));
	for (unsigned r = 0; r < ODD_ROWS; r++) {
		const float *x = m.x + r * ODD_K;
		struct eq_quant_tensor row = m.t;
		uint64_t outliers, n = 5 * ODD_K;
		uint16_t alone;
		double l1, j, least;

		/* as a part of a tensor of five such rows: their sum is finite */
		row.w = (const uint8_t *)m.t.w + r * ODD_K * eq_quant_unit(dtype);
		row.rows = 1;
		assert_int_equal(eq_quant_l1(&row, NULL, &l1, &(bool){ 0 }), 0);
		l1 = l1 > 0 ? 5 * l1 : 1;
		assert_int_equal(eq_quant_search(&row, format, lambda, l1, n, NULL, &alone), 0);
		j = objective(x, ODD_K, format, lambda, l1, n, scale_of(alone), &outliers);
		least = least_of_all(x, format, lambda, l1, n);
		assert_int_equal(outliers, 0);
		if (j > least * (1 + 1e-9))
			fail_msg("dtype %d, format %d, lambda %g, row %u: %.12g with scale %04x, least %.12g",
				 dtype, format, lambda, r, j, alone, least);
	}
	matrix_free(&m);
}

static void test_every_scale(void **state)
{
	static const double lambdas[] = { 0, 0.3, 3.9, 58, 1e5 };

	(void)state;
	for (int f = 0; f < 2; f++)
		for (int d = 0; d < 3; d++)
			for (int l = 0; l < 5; l++)
				check_all(dtypes[d], formats[f], lambdas[l]);
}

/* What a row's scale is does not depend on the rows before, of any kind. */
static void check_hints(int dtype, enum eq_qformat format, double mean)
{
	double l1 = mean * ODD_ROWS * ODD_K;
	struct matrix m;

	matrix_make(&m, dtype, ODD_ROWS, ODD_K, GAUSS, 1);
	for (unsigned u = 0; u < ODD_ROWS * ODD_K; u++)
		matrix_set(&m, u, odd_unit(u / ODD_K * 5 % ODD_ROWS, u % ODD_K, dtype));
	assert_int_equal(eq_quant_search(&m.t, format, 3.9, l1, ODD_ROWS * ODD_K, NULL, m.scale), 0);
	for (unsigned r = 0; r < ODD_ROWS; r++) {
		struct eq_quant_tensor row = m.t;
		uint16_t alone;

		row.w = (const uint8_t *)m.t.w + r * ODD_K * eq_quant_unit(dtype);
		row.rows = 1;
		assert_int_equal(eq_quant_search(&row, format, 3.9, l1, ODD_ROWS * ODD_K, NULL,
						 &alone), 0);
		assert_int_equal(alone, m.scale[r]);
	}
	matrix_free(&m);
}

static void test_hints(void **state)
{
	static const double means[] = { 1e-38, 1e-7, 1e-3, 0.02, 0.5, 1e3, 1e37 };

	(void)state;
	for (int i = 0; i < 7; i++)
		for (int d = 0; d < 3; d++)
			for (int f = 0; f < 2; f++)
				check_hints(dtypes[d], formats[f], means[i]);
}

/*
 * The scales of short rows, whatever finds them: these come from quant_search.c alone,
 * since a row has no hint if all units of the one before are zero.
 */
static void check_short(int dtype, enum eq_qformat format, enum kind kind, uint64_t k, double lambda)
{
	const uint64_t rows = 24;
	struct matrix m, apart;
	uint16_t scale[24];
	double l1;

	matrix_make(&m, dtype, rows, k, kind, 0.02);
	matrix_make(&apart, dtype, 2 * rows, k, kind, 0);
	for (uint64_t i = 0; i < rows * k; i++) {
		uint64_t row = i / k;
		float x = m.x[i];

		/* all zero; one outlier; norms unlike each other; of one magnitude */
		x = row == 5 ? 0 : row == 7 && i % k == k / 2 ? 40 : x;
		x = row > 7 && row < 16 ? ldexpf(x, (int)(row % 5 * 3) - 6) : x;
		x = row == 17 ? copysignf(0.0123f, x) : x;
		matrix_set(&m, i, x);
		matrix_set(&apart, 2 * row * k + i % k, m.x[i]);
	}
	l1 = matrix_norm(&m);
	l1 = l1 > 0 ? l1 : 1;
	assert_int_equal(eq_quant_search(&m.t, format, lambda, l1, rows * k, NULL, scale), 0);
	assert_int_equal(eq_quant_search(&apart.t, format, lambda, l1, rows * k, NULL, apart.scale), 0);
	for (uint64_t row = 0; row < rows; row++)
		if (scale[row] != apart.scale[2 * row])
			fail_msg("%s, dtype %d, format %d, k %llu, lambda %g, row %llu: %04x, not %04x",
				 kind_name[kind], dtype, format, (unsigned long long)k, lambda,
				 (unsigned long long)row, scale[row], apart.scale[2 * row]);
	matrix_free(&m);
	matrix_free(&apart);
}

static void test_short(void **state)
{
	static const uint64_t odd[] = { 255, 256, 257, 383, 384, 385, 481, 482, 767, 768, 769, 1000,
					1023, 1024, 1025, 1819, 1820, 1821 };
	static const double lambdas[] = { 0.05, 0.3, 3.9, 58, 1e4 };

	(void)state;
	for (int f = 0; f < 2; f++)
		for (int l = 0; l < 5; l++) {
			for (uint64_t k = 1; k <= 1024; k += k < 64 ? 1 : 61)
				check_short(EQ_BF16, formats[f], k % KINDS, k, lambdas[l]);
			for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++)
				for (int kind = 0; kind < KINDS; kind++)
					check_short(EQ_BF16, formats[f], kind, odd[i], lambdas[l]);
		}
}

/* A row of one unit: all scales of which it is an outlier cost the same, and of these
 * the greatest is chosen. */
static void test_ties(void **state)
{
	const uint64_t k = 1 << 16;
	const float x = 1.0000123f;

	(void)state;
	for (int d = 0; d < 3; d++) {
		struct matrix m;

		matrix_make(&m, dtypes[d], 1, k, GAUSS, 0);
		for (uint64_t i = 0; i < k; i++)
			matrix_set(&m, i, i == 777 ? x : 0);
		assert_int_equal(eq_quant_search(&m.t, EQ_Q_INT8, 1e-30, x, k, NULL, m.scale), 0);
		/* else it is the scale itself */
		assert_int_equal(m.scale[0], dtypes[d] == EQ_F32 ? 0x3c00 : 0x3f80);
		matrix_free(&m);
	}
}

/* int8: a few huge units are kept, they do not set the scale of their row. */
static void test_int8_outliers(void **state)
{
	struct eq_quant_result r;
	struct matrix m;
	double l1;

	(void)state;
	matrix_make(&m, EQ_BF16, 4, 4096, GAUSS, 0.02);
	for (uint64_t row = 0; row < 4; row++)
		matrix_set(&m, row * 4096 + 17 * row, row % 2 ? -100.0f : 64.0f);
	l1 = matrix_norm(&m);
	assert_int_equal(eq_quant_search(&m.t, EQ_Q_INT8, 0.5, l1, 4 * 4096, NULL, m.scale), 0);
	assert_int_equal(eq_quant_apply(&m.t, EQ_Q_INT8, m.scale, NULL, NULL, NULL, &r), 0);
	assert_in_range(r.n_outliers, 4, 16);
	for (uint64_t row = 0; row < 4; row++) {
		bool found = false;

		for (size_t i = 0; i < r.n_outliers; i++)
			found |= r.outlier[i].unit == row * 4096 + 17 * row;
		assert_true(found);
	}
	/* and the others are coded well: 33 dB and more beside the outliers */
	assert_true(r.err_sq < 4 * 4096 * 0.0004 * 5e-3);
	eq_quant_result_fini(&r);
	matrix_free(&m);
}

/* ---- the published figures ----------------------------------------------- */

static double entropy(const uint64_t hist[256], double n)
{
	double h = 0;

	for (int s = 0; s < 256; s++)
		if (hist[s])
			h -= (double)hist[s] / n * log2((double)hist[s] / n);
	return h;
}

static void test_gauss(void **state)
{
	static const struct {
		double lambda, bits, snr, l1;
	} want[] = { { 3.9, 3.89, 21.86, 0.087 },
		     { 14.5, 2.950, 16.11, 0.169 },
		     { 58, 1.984, 9.96, 0.343 } };

	(void)state;
	for (int d = 0; d < 3; d++) {
		struct matrix m;
		double l1;

		matrix_make(&m, dtypes[d], 256, 4096, GAUSS, 1);
		l1 = matrix_norm(&m);
		for (int i = 0; i < 3; i++) {
			struct eq_quant_result r;
			double bits, snr, rel;

			assert_int_equal(eq_quant_search(&m.t, EQ_Q_FP8, want[i].lambda, l1,
							 256 * 4096, NULL, m.scale), 0);
			assert_int_equal(eq_quant_apply(&m.t, EQ_Q_FP8, m.scale, NULL, NULL, NULL,
							&r), 0);
			bits = entropy(r.hist, 256 * 4096);
			snr = 10 * log10(r.sum_sq / r.err_sq);
			rel = r.err_abs / r.sum_abs;
			if (fabs(bits - want[i].bits) > 0.04 || fabs(snr - want[i].snr) > 0.15 ||
			    fabs(rel - want[i].l1) > 0.005)
				fail_msg("dtype %d, lambda %g: %.3f bits, %.2f dB, %.4f", dtypes[d],
					 want[i].lambda, bits, snr, rel);
			eq_quant_result_fini(&r);
		}
		matrix_free(&m);
	}
}

/* ---- rate control -------------------------------------------------------- */

static void test_sample_rows(void **state)
{
	uint64_t rows[] = { 1000, 10, 1, 100000 }, k[] = { 1000, 1000, 64, 10 }, take[4];

	(void)state;
	eq_rate_sample_rows(4, rows, k, UINT64_C(1) << 40, take);
	assert_memory_equal(take, rows, sizeof(rows));
	eq_rate_sample_rows(4, rows, k, 201006, take);
	assert_int_equal(take[0], 100);
	assert_int_equal(take[1], 1);
	assert_int_equal(take[2], 1);
	assert_int_equal(take[3], 10000);
}

#define TENSORS 6

/* What a file of these tensors takes with lambda, every unit coded. */
static double coded_bits(const struct eq_rate_tensor *t, struct matrix *m,
			 enum eq_qformat format, double lambda)
{
	double bytes = 0, units = 0;

	for (int i = 0; i < TENSORS; i++) {
		uint64_t n = m[i].t.rows * m[i].t.k;
		struct eq_rate_tensor whole = t[i];
		struct eq_quant_result r;

		assert_int_equal(eq_quant_search(&m[i].t, format, lambda, matrix_norm(&m[i]), n,
						 NULL, m[i].scale), 0);
		assert_int_equal(eq_quant_apply(&m[i].t, format, m[i].scale, NULL, NULL, NULL, &r),
				 0);
		whole.sample = m[i].t;
		bytes += eq_rate_bytes(&whole, r.hist, r.n_outliers);
		units += (double)n;
		eq_quant_result_fini(&r);
	}
	return 8 * bytes / units;
}

static void test_rate(void **state)
{
	static const double want[] = { 1.5, 2.1, 3, 4, 5 };
	struct eq_rate_tensor t[TENSORS];
	struct matrix m[TENSORS];
	struct eq_rate_result r, again;
	struct eq_pool *pool;

	(void)state;
	assert_int_equal(eq_pool_create(2, &pool), 0);
	for (int i = 0; i < TENSORS; i++) {
		matrix_make(&m[i], EQ_BF16, 512, i % 2 ? 1024 : 1536, i % 2, 0.01 * (i + 1));
		t[i] = (struct eq_rate_tensor){ .sample = m[i].t, .rows = 512, .overhead = 200,
						.chunk_units = 131072 };
		t[i].sample.rows = 128;
	}
	for (int f = 0; f < 2; f++)
		for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
			double bits;

			assert_int_equal(eq_rate_find(t, TENSORS, formats[f], want[i], pool, &r), 0);
			assert_int_equal(eq_rate_find(t, TENSORS, formats[f], want[i], NULL, &again), 0);
			assert_memory_equal(&r, &again, sizeof(r));
			assert_int_equal(r.status, EQ_RATE_MET);
			assert_true(fabs(r.bits - want[i]) < 0.005);
			bits = coded_bits(t, m, formats[f], r.lambda);
			if (fabs(bits - want[i]) > 0.02)
				fail_msg("format %d: %g bits wanted, %.4f expected, %.4f coded",
					 formats[f], want[i], r.bits, bits);
		}
	/* out of reach: as close as can be, and said */
	assert_int_equal(eq_rate_find(t, TENSORS, EQ_Q_FP8, 8, pool, &r), 0);
	assert_int_equal(r.status, EQ_RATE_BELOW);
	assert_true(r.bits > 5.5 && r.bits < 8 && r.lambda > 0);
	assert_int_equal(eq_rate_find(t, TENSORS, EQ_Q_FP8, 0.001, pool, &r), 0);
	assert_int_equal(r.status, EQ_RATE_ABOVE);
	/* tensors that will not be quantised do not count */
	((uint16_t *)m[0].w)[5] = 0x7f80;
	assert_int_equal(eq_rate_find(t, 1, EQ_Q_FP8, 4, pool, &r), -EINVAL);
	assert_int_equal(eq_rate_find(t, 2, EQ_Q_FP8, 4, pool, &r), 0);
	assert_int_equal(eq_rate_find(t + 1, 1, EQ_Q_FP8, 4, pool, &again), 0);
	assert_memory_equal(&r, &again, sizeof(r));
	for (int i = 0; i < TENSORS; i++)
		matrix_free(&m[i]);
	eq_pool_free(pool);
}

/* Rows unlike each other, more than are coded to find lambda: those that are stand for
 * all, wherever in the tensor they lie. */
static void test_rate_rows(void **state)
{
	struct eq_quant_result q;
	struct eq_rate_tensor t;
	struct eq_rate_result r;
	struct matrix m;
	double bits;

	(void)state;
	matrix_make(&m, EQ_BF16, 4096, 700, GAUSS, 1);
	for (uint64_t i = 0; i < 4096 * 700; i++)
		matrix_set(&m, i, m.x[i] * (float)exp2((double)(i / 700) / 1024));
	t = (struct eq_rate_tensor){ .sample = m.t, .rows = 4096, .overhead = 200,
				     .chunk_units = 131072 };
	assert_int_equal(eq_rate_find(&t, 1, EQ_Q_FP8, 3, NULL, &r), 0);
	assert_int_equal(eq_quant_search(&m.t, EQ_Q_FP8, r.lambda, matrix_norm(&m), 4096 * 700, NULL,
					 m.scale), 0);
	assert_int_equal(eq_quant_apply(&m.t, EQ_Q_FP8, m.scale, NULL, NULL, NULL, &q), 0);
	bits = 8 * eq_rate_bytes(&t, q.hist, q.n_outliers) / (4096 * 700);
	if (fabs(bits - 3) > 0.02)
		fail_msg("3 bits wanted, %.4f expected, %.4f coded", r.bits, bits);
	eq_quant_result_fini(&q);
	matrix_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_search),
		cmocka_unit_test(test_every_scale),
		cmocka_unit_test(test_hints),
		cmocka_unit_test(test_short),
		cmocka_unit_test(test_ties),
		cmocka_unit_test(test_int8_outliers),
		cmocka_unit_test(test_gauss),
		cmocka_unit_test(test_sample_rows),
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_rate_rows),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
