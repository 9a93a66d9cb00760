/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser: levels, reconstruction, the search against a grid, figures on
 * Gaussian weights, instruction sets and threads against each other. */
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
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "floats.h"
#include "quant_ops.h"

/* ---- weights ------------------------------------------------------------- */

static uint64_t seed;

static double uniform(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return ((double)(seed >> 11) + 0.5) * 0x1p-53;
}

static double gauss(void)
{
	return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

enum kind { GAUSS, LAPLACE, SPARSE, OUTLIERS, WIDE, KINDS };
static const char *const kind_name[] = { "Gaussian", "Laplace", "sparse", "outliers",
					 "wide" };

static double weight(enum kind kind)
{
	double u = uniform();

	switch (kind) {
	case LAPLACE:
		return u < 0.5 ? log(2 * u) : -log(2 - 2 * u);
	case SPARSE:
		return u < 0.1 ? gauss() : 0;
	case OUTLIERS:
		return gauss() * (u < 0.0005 ? 50 : 1);
	case WIDE:
		return gauss() * exp(2 * gauss());
	default:
		return gauss();
	}
}

struct matrix {
	struct eq_quant_tensor t;
	void *w;
	float *x;               /* the same as float32 */
	uint16_t *scale;
};

static void matrix_set(struct matrix *m, uint64_t i, float x)
{
	uint16_t h;

	if (m->t.dtype == EQ_F32) {
		memcpy((uint8_t *)m->w + 4 * i, &x, 4);
	} else {
		h = m->t.dtype == EQ_F16 ? eq_half_narrow(x) : eq_bf16_narrow(x);
		memcpy((uint8_t *)m->w + 2 * i, &h, 2);
	}
	m->x[i] = eq_f32_at(m->w, m->t.dtype, i);
}

static void matrix_make(struct matrix *m, int dtype, uint64_t rows, uint64_t k,
			enum kind kind, double scale)
{
	m->w = malloc(rows * k * 4);
	m->x = malloc(rows * k * sizeof(*m->x));
	m->scale = malloc(rows * sizeof(*m->scale));
	assert_non_null(m->w);
	assert_non_null(m->x);
	assert_non_null(m->scale);
	m->t = (struct eq_quant_tensor){ m->w, dtype, rows, k };
	seed = 88172645463325252u + kind;
	for (uint64_t i = 0; i < rows * k; i++)
		matrix_set(m, i, (float)(scale * weight(kind)));
}

static void matrix_free(struct matrix *m)
{
	free(m->w);
	free(m->x);
	free(m->scale);
}

static double matrix_norm(const struct matrix *m)
{
	double sum;
	bool finite;

	assert_int_equal(eq_quant_l1(&m->t, NULL, &sum, &finite), 0);
	assert_true(finite);
	return sum;
}

static float scale_of(uint16_t bits)
{
	return eq_f32_of_bf16(bits);
}

/* ---- levels -------------------------------------------------------------- */

/* The nearest of the format's levels by comparing, ties to the even code. */
static int nearest(const float *value, int top, double t)
{
	int best = 0;

	for (int i = 1; i <= top; i++) {
		double a = fabs(t - value[best]), b = fabs(t - value[i]);

		if (b < a || (b == a && i % 2 == 0))
			best = i;
	}
	return best;
}

static void test_levels(void **state)
{
	float fp8[256], int8[256];

	(void)state;
	eq_quant_values(EQ_Q_FP8, fp8);
	eq_quant_values(EQ_Q_INT8, int8);
	assert_true(fp8[0] == 0 && fp8[1] == 0x1p-9f && fp8[7] == 7 * 0x1p-9f);
	assert_true(fp8[8] == 0x1p-6f && fp8[0x38] == 1 && fp8[0x7e] == 448);
	assert_true(fp8[0xb8] == -1 && isnan(fp8[0x7f]) && isnan(fp8[0xff]) && isnan(fp8[0x80]));
	assert_true(int8[0] == 0 && int8[127] == 127 && int8[255] == -1 && int8[129] == -127);
	assert_true(isnan(int8[128]));
	seed = 7;
	for (int i = 0; i < 20000; i++) {
		double r = uniform() * 19 - 10.5;
		float t = (float)exp2(r);

		assert_int_equal(eq_level_fp8(t < 448 ? t : 448), nearest(fp8, 126, t < 448 ? t : 448));
		t = t < 127.4f ? t : 127.4f;
		assert_int_equal(eq_level_int8(t), nearest(int8, 127, t));
	}
	for (int i = 1; i <= 126; i++) {        /* the ties */
		float mid = (fp8[i - 1] + fp8[i]) / 2;

		assert_int_equal(eq_level_fp8(mid), i & ~1);
		assert_int_equal(eq_level_int8((float)i - 0.5f), i & ~1);
	}
	assert_int_equal(eq_level_int8(127.5f), 128);
	assert_true(eq_level_int8(INFINITY) > 127 && eq_level_int8(1e30f) > 127);
	assert_true(eq_level_fp8(INFINITY) > 126 && eq_level_fp8(465) > 126);
}

static void test_halves(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 65536; h++) {
		float f = eq_float_of(eq_half_widen((uint16_t)h));
		float want = eq_f32_of_f16((uint16_t)h);
		uint32_t a = eq_float_bits(f), b = eq_float_bits(want);

		if (a != b)
			fail_msg("half %04x widens to %08x, not %08x", h, a, b);
		if (isnan(want))
			continue;
		if (eq_half_narrow(want) != h)
			fail_msg("%g narrows to %04x, not %04x", (double)want,
				 eq_half_narrow(want), h);
		if ((h & 0x7fff) >= 0x7bff)
			continue;
		/* the tie above it, and its neighbours */
		want = (float)(((double)want + (double)eq_f32_of_f16((uint16_t)(h + 1))) / 2);
		assert_int_equal(eq_half_narrow(want), h + (h & 1));
		assert_int_equal(eq_half_narrow(nextafterf(want, 0)), h);
		assert_int_equal(eq_half_narrow(nextafterf(want, 2 * want)), h + 1);
	}
	assert_int_equal(eq_half_narrow(65519.99f), 0x7bff);
	assert_int_equal(eq_half_narrow(65520.0f), 0x7c00);
	assert_int_equal(eq_half_narrow(-1e30f), 0xfc00);
}

/* ---- reconstruction ------------------------------------------------------ */

static uint32_t bits_at(const void *w, int dtype, uint64_t i)
{
	uint32_t u = 0;

	memcpy(&u, (const uint8_t *)w + i * eq_quant_unit(dtype), eq_quant_unit(dtype));
	return u;
}

/* What eqar.5 says a decoder makes of a symbol. */
static uint32_t decoded(float v, float scale, int dtype)
{
	float p = v * scale;

	if (dtype == EQ_F32)
		return eq_float_bits(p);
	return dtype == EQ_F16 ? eq_half_narrow(p) : eq_bf16_narrow(p);
}

static void check_apply(struct matrix *m, enum eq_qformat format)
{
	uint64_t n = m->t.rows * m->t.k, hist[256] = { 0 };
	size_t unit = eq_quant_unit(m->t.dtype), out = 0;
	uint8_t *sym = malloc(n), *recon = malloc(n * unit);
	double a = 0, ea = 0, q = 0, eq = 0;
	struct eq_quant_result r, in_place, bare;
	float value[256];

	eq_quant_values(format, value);
	assert_int_equal(eq_quant_apply(&m->t, format, m->scale, NULL, sym, recon, &r), 0);
	assert_int_equal(eq_quant_apply(&m->t, format, m->scale, NULL, NULL, NULL, &bare), 0);
	for (uint64_t i = 0; i < n; i++) {
		float scale = scale_of(m->scale[i / m->t.k]), y;
		uint32_t want = decoded(value[sym[i]], scale, m->t.dtype);
		double x = m->x[i], e;

		assert_false(isnan(value[sym[i]]));
		if (out < r.n_outliers && r.outlier[out].unit == i) {
			want = r.outlier[out++].bits;
			assert_int_equal(want, bits_at(m->w, m->t.dtype, i));
		}
		if (bits_at(recon, m->t.dtype, i) != want)
			fail_msg("unit %llu: %08x, not %08x", (unsigned long long)i,
				 bits_at(recon, m->t.dtype, i), want);
		y = eq_f32_at(recon, m->t.dtype, i);
		assert_true(isfinite(y));
		e = x - (double)y;
		hist[sym[i]]++;
		a += fabs(x);
		ea += fabs(e);
		q += x * x;
		eq += e * e;
	}
	assert_int_equal(out, r.n_outliers);
	assert_memory_equal(hist, r.hist, sizeof(hist));
	assert_true(fabs(a - r.sum_abs) <= 1e-11 * a && fabs(ea - r.err_abs) <= 1e-11 * ea + 1e-300);
	assert_true(fabs(q - r.sum_sq) <= 1e-11 * q && fabs(eq - r.err_sq) <= 1e-11 * eq + 1e-300);
	/* without outputs, and over the input */
	assert_memory_equal(&r.sum_abs, &bare.sum_abs, 4 * sizeof(double));
	assert_memory_equal(r.hist, bare.hist, sizeof(hist));
	memset(sym, 0xaa, n);
	assert_int_equal(eq_quant_apply(&m->t, format, m->scale, NULL, sym, m->w, &in_place), 0);
	assert_memory_equal(m->w, recon, n * unit);
	assert_memory_equal(&r.sum_abs, &in_place.sum_abs, 4 * sizeof(double));
	assert_int_equal(r.n_outliers, in_place.n_outliers);
	for (size_t i = 0; i < r.n_outliers; i++)
		assert_true(r.outlier[i].unit == in_place.outlier[i].unit &&
			    r.outlier[i].bits == in_place.outlier[i].bits);
	eq_quant_result_fini(&r);
	eq_quant_result_fini(&bare);
	eq_quant_result_fini(&in_place);
	free(sym);
	free(recon);
}

static const int dtypes[] = { EQ_BF16, EQ_F16, EQ_F32 };
static const enum eq_qformat formats[] = { EQ_Q_FP8, EQ_Q_INT8 };

static void test_apply(void **state)
{
	static const uint64_t widths[] = { 1, 15, 16, 17, 255, 256, 257, 1000, 3000 };

	(void)state;
	for (size_t w = 0; w < sizeof(widths) / sizeof(*widths); w++)
		for (int d = 0; d < 3; d++)
			for (int f = 0; f < 2; f++)
				for (int kind = 0; kind < KINDS; kind++) {
					struct matrix m;

					matrix_make(&m, dtypes[d], 3, widths[w], kind, 0.02);
					assert_int_equal(eq_quant_search(&m.t, formats[f], 0.1,
						matrix_norm(&m), 3 * widths[w], NULL, m.scale), 0);
					check_apply(&m, formats[f]);
					matrix_free(&m);
				}
}

/* Rows at the ends of the range of numbers. */
static void test_extremes(void **state)
{
	static const float size[] = { 1e-45f, 1e-40f, 1e-38f, 6e-8f, 1, 6e4f, 1e38f, 3.38e38f };

	(void)state;
	for (int d = 0; d < 3; d++)
		for (int f = 0; f < 2; f++) {
			size_t n = sizeof(size) / sizeof(*size);
			struct matrix m;

			matrix_make(&m, dtypes[d], n + 2, 100, GAUSS, 1);
			for (size_t r = 0; r < n + 2; r++)
				for (int i = 0; i < 100; i++) {
					float s = size[r < n ? r : 0];
					float x = s * (float)(2 * uniform() - 1);

					if (dtypes[d] == EQ_F16 && s > 65504)
						x *= 65504 / s;
					/* zeros, negative zeros */
					x = r == n ? 0 : r == n + 1 ? -0.0f : x;
					matrix_set(&m, r * 100 + (uint64_t)i, x);
				}
			assert_int_equal(eq_quant_search(&m.t, formats[f], 1e-3, matrix_norm(&m),
							 m.t.rows * 100, NULL, m.scale), 0);
			for (size_t r = 0; r < n + 2; r++) {
				uint16_t s = m.scale[r];

				assert_true(s == 0 || (s >= 0x80 && s < 0x7f80));
				if (r >= n)
					assert_int_equal(s, 0);
			}
			check_apply(&m, formats[f]);
			matrix_free(&m);
		}
}

/* Scales that no search gives must not break the promise either: units that a
 * symbol cannot stand for are kept. */
static void test_any_scale(void **state)
{
	static const uint16_t scales[] = { 0, 0x0080, 0x3000, 0x3f80, 0x4780, 0x7f00 };

	(void)state;
	for (int d = 0; d < 3; d++)
		for (int f = 0; f < 2; f++) {
			struct matrix m;

			matrix_make(&m, dtypes[d], 6, 700, WIDE, 10);
			memcpy(m.scale, scales, sizeof(scales));
			check_apply(&m, formats[f]);
			matrix_free(&m);
		}
}

static void test_not_finite(void **state)
{
	static const float bad[] = { NAN, INFINITY, -INFINITY };

	(void)state;
	for (int d = 0; d < 3; d++)
		for (int i = 0; i < 3; i++) {
			struct matrix m;
			double sum;
			bool finite;

			matrix_make(&m, dtypes[d], 5, 333, GAUSS, 1);
			assert_int_equal(eq_quant_l1(&m.t, NULL, &sum, &finite), 0);
			assert_true(finite);
			if (dtypes[d] == EQ_F32)
				memcpy((uint8_t *)m.w + 4 * (4 * 333 + 332), &bad[i], 4);
			else    /* NaN, +Inf, -Inf */
				((uint16_t *)m.w)[4 * 333 + 332] =
					(uint16_t)((i == 2) << 15 | (i == 0) |
						   (dtypes[d] == EQ_F16 ? 0x7c00 : 0x7f80));
			assert_int_equal(eq_quant_l1(&m.t, NULL, &sum, &finite), 0);
			assert_false(finite);
			matrix_free(&m);
		}
}

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
	double sum = 0, sum_grid = 0, sum_fine = 0, l1;
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
		/* bfloat16 is searched exactly; the rest is the rounding of sums */
		if (dtype == EQ_BF16 && j > g * (1 + 1e-9))
			fail_msg("%s, format %d, k %llu, lambda %g, row %llu: %.9g, grid %.9g",
				 kind_name[kind], format, (unsigned long long)k, lambda,
				 (unsigned long long)r, j, g);
		sum += j;
		sum_grid += g;
		sum_fine += grid(x, k, format, lambda, l1, rows * k, false);
	}
	/* the tensor's objective, for all dtypes; also against scales that are not
	 * bfloat16 where rows are long enough not to turn on a single unit */
	if (sum > sum_grid * (1 + 1e-9) || (k >= 1024 && sum > sum_fine * (1 + 1e-6)))
		fail_msg("%s, dtype %d, format %d, k %llu, lambda %g: %.9g, grid %.9g, %.9g",
			 kind_name[kind], dtype, format, (unsigned long long)k, lambda, sum,
			 sum_grid, sum_fine);
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
					check_search(dtypes[d], formats[f], kind, 4, 1500, lambdas[l]);
				}
				check_search(EQ_BF16, formats[f], kind, 20, 1, lambdas[l]);
				check_search(EQ_BF16, formats[f], kind, 20, 7, lambdas[l]);
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

/* ---- one result ---------------------------------------------------------- */

static void test_threads(void **state)
{
	struct eq_pool *pool;

	(void)state;
	assert_int_equal(eq_pool_create(3, &pool), 0);
	for (int f = 0; f < 2; f++)
		for (int d = 0; d < 3; d++) {
			struct eq_quant_result a, b;
			uint16_t scale[700];
			double s1, s2;
			struct matrix m;
			bool finite;

			matrix_make(&m, dtypes[d], 700, 2000, OUTLIERS, 0.1);
			s1 = matrix_norm(&m);
			assert_int_equal(eq_quant_l1(&m.t, pool, &s2, &finite), 0);
			assert_memory_equal(&s1, &s2, sizeof(s1));
			assert_int_equal(eq_quant_search(&m.t, formats[f], 2, s1, 700 * 2000, NULL,
							 m.scale), 0);
			assert_int_equal(eq_quant_search(&m.t, formats[f], 2, s1, 700 * 2000, pool,
							 scale), 0);
			assert_memory_equal(m.scale, scale, sizeof(scale));
			assert_int_equal(eq_quant_apply(&m.t, formats[f], scale, NULL, NULL, NULL,
							&a), 0);
			assert_int_equal(eq_quant_apply(&m.t, formats[f], scale, pool, NULL, NULL,
							&b), 0);
			assert_memory_equal(&a.sum_abs, &b.sum_abs, 4 * sizeof(double));
			assert_memory_equal(a.hist, b.hist, sizeof(a.hist));
			assert_int_equal(a.n_outliers, b.n_outliers);
			for (size_t i = 0; i < a.n_outliers; i++)
				assert_int_equal(a.outlier[i].unit, b.outlier[i].unit);
			eq_quant_result_fini(&a);
			eq_quant_result_fini(&b);
			matrix_free(&m);
		}
	eq_pool_free(pool);
}

/* All operations of a table against the portable one, any bits, any length. */
static void check_ops(const struct eq_quant_ops *ops)
{
	struct eq_quant_strip a, b;
	struct eq_quant_format f;
	uint16_t w[2 * EQ_STRIP];

	seed = 99;
	for (int round = 0; round < 3000; round++) {
		int dtype = dtypes[round % 3];
		enum eq_qformat format = formats[round / 3 % 2];
		size_t n = round % 5 ? (size_t)(uniform() * EQ_STRIP) + 1 : EQ_STRIP;
		float scale = scale_of((uint16_t)(0x80 + uniform() * 0x7e00));
		struct eq_quant_sums sa = { 0 }, sb = { 0 };
		struct eq_quant_lanes la[3] = { 0 }, lb[3] = { 0 };
		struct eq_quant_edges ea, eb;
		uint32_t ta = 0, tb = 0, base, top, ua[EQ_STRIP], ub[EQ_STRIP];

		for (int i = 0; i < 2 * EQ_STRIP; i++)  /* finite float32, bfloat16, half */
			w[i] = (uint16_t)(uniform() * 65536) & (uint16_t)~(1u << (10 + round % 4));
		if (round & 8)
			scale = (float)exp2(floor(20 * uniform() - 10));
		ops->code(&a, w, dtype, format, n, 1 / scale, scale);
		eq_quant_ops_c.code(&b, w, dtype, format, n, 1 / scale, scale);
		assert_memory_equal(a.sym, b.sym, sizeof(a.sym));
		assert_memory_equal(a.x, b.x, sizeof(a.x));
		assert_memory_equal(a.y, b.y, sizeof(a.y));
		if (dtype != EQ_F32)
			assert_memory_equal(a.out, b.out, sizeof(a.out));
		assert_int_equal(a.bad, b.bad);
		ops->sums(&a, &sa);
		eq_quant_ops_c.sums(&b, &sb);
		assert_memory_equal(&sa, &sb, sizeof(sa));
		ops->scan(w, dtype, n, &ta, &la[0]);
		eq_quant_ops_c.scan(w, dtype, n, &tb, &lb[0]);
		assert_int_equal(ta, tb);
		ops->widen(ua, w, dtype, n);
		eq_quant_ops_c.widen(ub, w, dtype, n);
		assert_memory_equal(ua, ub, n * sizeof(*ua));
		ops->measure(w, dtype, format, n, 1 / scale, scale, &la[1], &la[2]);
		eq_quant_ops_c.measure(w, dtype, format, n, 1 / scale, scale, &lb[1], &lb[2]);
		assert_memory_equal(la, lb, sizeof(la));
		eq_quant_format_init(&f, format);
		top = eq_float_bits(scale) >> 16;
		base = top > 2000 ? top - 2000 : 0;
		memset(&ea, 0, sizeof(ea));
		memset(&eb, 0, sizeof(eb));
		ops->edges(&f, 127, round & 1, 1 / scale, scale, base, top, &ea);
		eq_quant_ops_c.edges(&f, 127, round & 1, 1 / scale, scale, base, top, &eb);
		assert_memory_equal(&ea, &eb, sizeof(ea));
	}
}

static void test_isa(void **state)
{
	const struct {
		unsigned flag;
		const struct eq_quant_ops *ops;
	} table[] = {
		{ 0, &eq_quant_ops_c },
#ifdef HAVE_AVX2
		{ EQ_CPU_AVX2, &eq_quant_ops_avx2 },
#endif
#ifdef HAVE_AVX512
		{ EQ_CPU_AVX512, &eq_quant_ops_avx512 },
#endif
	};
	unsigned flags = eq_cpu_flags(NULL);

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		if ((flags & table[i].flag) != table[i].flag) {
			print_message("no %s here\n", table[i].ops->isa);
			continue;
		}
		check_ops(table[i].ops);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_halves),
		cmocka_unit_test(test_apply),
		cmocka_unit_test(test_extremes),
		cmocka_unit_test(test_any_scale),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_search),
		cmocka_unit_test(test_int8_outliers),
		cmocka_unit_test(test_gauss),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_isa),
		cmocka_unit_test(test_sample_rows),
		cmocka_unit_test(test_rate),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
