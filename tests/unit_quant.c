/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser: levels, reconstruction, and instruction sets and threads
 * against each other. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu.h"
#include "quant_util.h"

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
	uniform_state = 7;
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

/* By the definition of binary16, not by the trick that is under test. */
static float half_value(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;

	if (e == 31)
		return eq_float_of(sign | 0x7f800000 | m << 13);
	if (e == 0)
		return eq_float_of(sign | eq_float_bits((float)m * 0x1p-24f));
	return eq_float_of(sign | (e + 112) << 23 | m << 13);
}

static void test_halves(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 65536; h++) {
		float f = eq_float_of(eq_half_widen((uint16_t)h));
		float want = half_value((uint16_t)h);
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
		want = (float)(((double)want + (double)half_value((uint16_t)(h + 1))) / 2);
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
		y = eq_float_at(recon, m->t.dtype, i);
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

/* A unit's bin and rest are its bits; what is too small is in the first bin. */
static void check_bins(const struct eq_quant_ops *ops, const void *w, int dtype, size_t n)
{
	struct eq_quant_bins b = { .lift = uniform() < 0.5 ? 1 : 0x1p64f, .shift = 16, .off = 1000 };
	uint32_t at[EQ_STRIP], rest[EQ_STRIP];

	b.shift = dtype == EQ_F16 ? 13 : dtype == EQ_F32 ? 14 : 16;
	b.rest = dtype == EQ_F32 ? (unsigned)(uniform() * 15) : 0;
	b.least = b.off + (uint32_t)(uniform() * 100 * 128);
	ops->bins(&b, w, dtype, n, at, dtype == EQ_F32 ? rest : NULL);
	for (size_t i = 0; i < n; i++) {
		uint32_t u = eq_float_bits(fabsf(eq_float_at(w, dtype, i)) * b.lift), p = u >> b.shift;

		assert_int_equal(at[i], (p < b.least ? b.least : p) - b.off);
		if (dtype == EQ_F32)
			assert_int_equal(rest[i], (u & ((1u << 14) - 1)) >> (14 - b.rest));
	}
}

#define TAILS 200

static void check_tails(const struct eq_quant_ops *ops, bool exact)
{
	uint32_t count[TAILS], to = (uint32_t)(uniform() * TAILS), first = 1000 + TAILS;
	unsigned octave = (unsigned)(uniform() * 20), rest = exact ? 0 : (unsigned)(uniform() * 14);
	uint64_t both[TAILS], sum = 12345, n = 678;
	eq_quant_tail tail[TAILS + 1];

	memset(tail, 0, sizeof(tail));
	tail[TAILS] = (eq_quant_tail){ sum, n };
	for (int i = 0; i < TAILS; i++) {
		count[i] = (uint32_t)(uniform() * (i % 9 ? 40 : 1e6));
		both[i] = (uint64_t)count[i] << 32 | (uint32_t)(uniform() * 0xffffffff);
	}
	ops->tails(exact ? (void *)count : (void *)both, exact, tail, TAILS, to, first, octave, rest);
	for (uint32_t i = TAILS; i-- > 0;) {
		n += count[i];
		sum += ((uint64_t)(first - (TAILS - 1 - i)) * count[i] << (octave + rest)) +
		       (exact ? 0 : (both[i] & 0xffffffff) << octave);
		assert_int_equal(tail[i][EQ_TAIL_SUM], i < to ? 0 : sum);
		assert_int_equal(tail[i][EQ_TAIL_COUNT], i < to ? 0 : n);
	}
}

/* What units add to the cost of a scale, by the definition. */
static void check_tally(const struct eq_quant_ops *ops, int dtype, enum eq_qformat format)
{
	size_t n = uniform() < 0.5 ? EQ_TALLY : (size_t)(uniform() * EQ_TALLY) + 1;
	float scale = scale_of((uint16_t)(0x3f80 + uniform() * 128)), inv = 1 / scale, value[256];
	uint32_t top = format == EQ_Q_FP8 ? 126 : 127;
	float unit = format == EQ_Q_FP8 ? 0x1p-9f : 1;
	struct eq_quant_tally t, want = { 0 };
	uint64_t state = uniform_state;
	struct matrix m;

	matrix_make(&m, dtype, 1, n, WIDE, 1);
	uniform_state = state;
	eq_quant_values(format, value);
	for (size_t i = 0; i < n; i++) {
		float x;
		uint32_t q;

		/* boundaries too; int8: beyond the top */
		matrix_set(&m, i, (float)((i % 4 ? 30 : (int)(uniform() * 260)) *
					  (i % 4 ? weight(WIDE) : (double)scale / 2)));
		if (format == EQ_Q_FP8 && !(fabsf(m.x[i]) <= 448 * scale))
			matrix_set(&m, i, 448 * scale);
		x = fabsf(m.x[i]);
		q = format == EQ_Q_FP8 ? eq_level_fp8(x * inv) : eq_level_int8(x * inv);
		want.outliers += q > top;
		want.steps += (int64_t)(value[q > top ? top : q] / unit);
		if (q > top)
			continue;
		want.signs += (int64_t)(value[q] / unit) * (x < value[q] * scale ? 1 : -1);
		want.below += x < value[q] * scale ? (double)x : 0;
	}
	ops->tally(m.w, dtype, format, n, inv, scale, &t);
	assert_int_equal(t.outliers, want.outliers);
	assert_int_equal(t.steps, want.steps);
	assert_int_equal(t.signs, want.signs);
	assert_true(t.below == want.below);
	matrix_free(&m);
}

/* Of bins and those above: how many units there are, and what they weigh. */
static void check_planes(const struct eq_quant_ops *ops)
{
	static struct eq_quant_planes p;
	static uint16_t count[EQ_PLANE_END], copy[EQ_PLANE_END];
	uint32_t off = 128 * 32 + 16 * (uint32_t)(uniform() * 100), lowest, to, n = 0, weight = 0;

	lowest = (off + EQ_PLANE_END - 16) / 128 * 128 - 128 * (uint32_t)(uniform() * 13);
	to = lowest > off ? (lowest - off) / 16 * 16 : 0;
	to += (EQ_PLANE_END - to) / 16 * (uint32_t)(uniform() * 4) / 4 * 16;
	for (uint32_t i = 0; i < EQ_PLANE_END; i++)
		copy[i] = count[i] = uniform() < 0.1 ? (uint16_t)(uniform() * 6) : 0;
	memset(&p, 0x55, sizeof(p));
	ops->planes(&p, count, to, off, lowest);
	for (uint32_t i = EQ_PLANE_END; i-- > to;) {
		uint32_t pattern = off + i - lowest;

		n += copy[i];
		weight += copy[i] * (128 + pattern % 128) << pattern / 128;
		assert_int_equal(count[i], 0);
		assert_int_equal(p.count[i], n);
		assert_int_equal(p.fine[i], weight & EQ_PLANE_FINE);
		assert_int_equal(p.coarse[i], weight >> EQ_PLANE_BITS);
	}
	if (to)
		assert_memory_equal(count, copy, to * sizeof(*count));
	assert_int_equal(p.count[EQ_PLANE_END], 0x5555);
}

/* What a level's lower end (0) or value (1) looks up for scale i, among 16 bins. */
struct look {
	unsigned bin[2][8];
};

static void look_make(struct look *l, uint8_t mask[2][32], uint32_t at[2])
{
	for (int value = 0; value < 2; value++) {
		unsigned first = (unsigned)(uniform() * 600), to = 0;

		at[value] = 2 * first;
		memset(mask[value], 0x80, 32);
		for (int i = 0; i < 8; i++) {
			mask[value][to / 8 * 16 + 2 * i] = (uint8_t)(to % 8 * 2);
			mask[value][to / 8 * 16 + 2 * i + 1] = (uint8_t)(to % 8 * 2 + 1);
			l->bin[value][i] = first + to;
			to += uniform() < 0.5 ? 1 : 2;
		}
	}
}

/* Eight scales by the definition, one by one. */
static void check_eight_scale(const struct eq_quant_eight *e, const struct look *look, int i,
			      const struct eq_quant_costs *c)
{
	int64_t edges = 0, values = 0, pairs = 0;
	uint32_t ds = 0;
	double step = (e->first + i) * e->width;

	for (unsigned o = 0; o <= e->more; o++)
		for (unsigned j = o ? 8 : 0; j < e->levels; j++) {
			const struct eq_quant_planes *p = e->planes;
			int64_t edge = e->bin + 128 * o + look[j].bin[0][i];
			int64_t value = e->bin + 128 * o + look[j].bin[1][i];
			int64_t size = (int64_t)(j + 1) << o, gap = (int64_t)1 << o;

			edges += gap * p->count[edge];
			pairs += (2 * size - gap) * p->count[edge];
			values += size * p->count[value];
			ds += p->fine[value] + ((uint32_t)p->coarse[value] << EQ_PLANE_BITS);
			ds -= p->fine[edge] + ((uint32_t)p->coarse[edge] << EQ_PLANE_BITS);
		}
	ds = -ds & EQ_PLANE_SUMS;
	assert_true(c->rate[i] == e->nu * (double)edges);
	assert_true(c->dist[i] == -2 * (double)ds * e->unit + (double)(pairs - 2 * values) * step);
	assert_int_equal(c->crossed[i], values);
}

static void check_eight(const struct eq_quant_ops *ops)
{
	static struct eq_quant_planes p;
	static uint8_t mask[128][2][32] __attribute__((aligned(32)));
	static uint32_t at[128][2];
	static struct look look[128];
	struct eq_quant_eight e = { .planes = &p, .mask = mask, .at = at,
				    .first = 128 + 8 * floor(uniform() * 16), .width = 0x1p-20,
				    .unit = 0x1p-30, .nu = 0.3 };
	double least = INFINITY, got;
	struct eq_quant_costs c;

	e.run = uniform() < 0.5 ? 8 : 16;
	e.bin = (int64_t)(uniform() * 300);
	e.levels = uniform() < 0.5 ? 16 : (unsigned)(1 + uniform() * 128);
	e.more = e.levels == 16 ? (unsigned)(uniform() * 8) : 0;
	for (unsigned j = 0; j < e.levels; j++)
		look_make(&look[j], mask[j], at[j]);
	for (int i = 0; i < EQ_PLANE_BINS; i++) {
		/* as great as may be: in runs of 8 and 16, times 1 to so many */
		p.count[i] = (uint16_t)(uniform() * (e.run == 8 ? 1821 : 482));
		p.fine[i] = (uint16_t)(uniform() * (EQ_PLANE_FINE + 1));
		p.coarse[i] = (uint16_t)(uniform() * 65536);
	}
	got = ops->eight(&e, &c);
	for (int i = 0; i < 8; i++) {
		check_eight_scale(&e, look, i, &c);
		least = fmin(least, c.dist[i] + c.rate[i]);
	}
	assert_true(got == least);
}

/* All operations of a table against the portable one, any bits, any length. */
static void check_ops(const struct eq_quant_ops *ops)
{
	struct eq_quant_strip a, b;
	uint16_t w[2 * EQ_STRIP];

	uniform_state = 99;
	for (int round = 0; round < 3000; round++) {
		int dtype = dtypes[round % 3];
		enum eq_qformat format = formats[round / 3 % 2];
		size_t n = round % 5 ? (size_t)(uniform() * EQ_STRIP) + 1 : EQ_STRIP;
		float scale = scale_of((uint16_t)(0x80 + uniform() * 0x7e00));
		struct eq_quant_sums sa = { 0 }, sb = { 0 };
		struct eq_quant_lanes la = { 0 }, lb = { 0 };
		uint32_t ta = 0, tb = 0;

		for (int i = 0; i < 2 * EQ_STRIP; i++)  /* finite float32, bfloat16, half */
			w[i] = (uint16_t)(uniform() * 65536) & (uint16_t)~(1u << (10 + round % 4));
		if (round & 8)
			scale = (float)exp2(floor(20 * uniform() - 10));
		memset(&a, 0, sizeof(a));
		memset(&b, 0, sizeof(b));
		ops->code(&a, w, dtype, format, n, 1 / scale, scale);
		eq_quant_ops_c.code(&b, w, dtype, format, n, 1 / scale, scale);
		assert_memory_equal(a.sym, b.sym, sizeof(a.sym));
		assert_memory_equal(a.x, b.x, sizeof(a.x));
		assert_memory_equal(a.y, b.y, sizeof(a.y));
		if (dtype != EQ_F32)
			assert_memory_equal(a.out, b.out, sizeof(a.out));
		assert_int_equal(a.bad, b.bad);
		ops->sums(&a, n, &sa);
		eq_quant_ops_c.sums(&b, n, &sb);
		assert_memory_equal(&sa, &sb, sizeof(sa));
		ops->scan(w, dtype, n, &ta, &la);
		eq_quant_ops_c.scan(w, dtype, n, &tb, &lb);
		assert_int_equal(ta, tb);
		assert_memory_equal(&la, &lb, sizeof(la));
		tb = 0;
		ops->most(w, dtype, n, &tb);
		assert_int_equal(ta, tb);
		check_bins(ops, w, dtype, n);
		check_tails(ops, dtype != EQ_F32);
		check_tally(ops, dtype, format);
		if (ops->eight) {
			check_planes(ops);
			check_eight(ops);
		}
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_halves),
		cmocka_unit_test(test_apply),
		cmocka_unit_test(test_extremes),
		cmocka_unit_test(test_any_scale),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_isa),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
