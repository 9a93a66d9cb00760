/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quantiser's inner loops in the vector extension of gcc and clang. Include
 * with EQ_QUANT_OPS (the name of the table), EQ_QUANT_ISA and EQ_QUANT_V (lanes
 * of 32 bits in a register: 4, 8 or 16) defined.
 */
#include <math.h>
#include <string.h>

#include "quant_ops.h"

#define V EQ_QUANT_V
#if V > 4
#include <immintrin.h>
#endif
#define GROUP 16                /* units that the lanes of sums go through once */
#define PARTS (GROUP / V)       /* vectors in a group */
#define HALF (V / 2)            /* doubles in a register */

#define VECTOR(type, n) \
	__attribute__((vector_size((n) * sizeof(type)), may_alias, aligned(4)))
typedef float vf VECTOR(float, V);
typedef uint32_t vu VECTOR(uint32_t, V);
typedef int32_t vi VECTOR(int32_t, V);
typedef int16_t vs __attribute__((vector_size(V * 4), may_alias, aligned(1)));
typedef float vw __attribute__((vector_size(V * 4), may_alias, aligned(1)));
typedef uint16_t vh __attribute__((vector_size(V * 2), may_alias, aligned(1)));
typedef double vd VECTOR(double, HALF);
typedef int64_t vq VECTOR(int64_t, HALF);
typedef float vf2 VECTOR(float, HALF);

#define INLINE static inline __attribute__((always_inline))
/* m ? a : b, for the masks that comparisons give. Macros, since passing vectors
 * to functions is not the same for all flags. */
#define SEL(m, a, b) (((vu)(m) & (a)) | (~(vu)(m) & (b)))
#define SPLAT(x) ((vu){ 0 } + (uint32_t)(x))
#define ABS(x) ((vf)((vu)(x) & 0x7fffffff))
#define DABS(x) ((vd)((vq)(x) & INT64_MAX))
/* HALF floats, or V halves, at p; compilers split what they convert. */
#if V == 8
#define DOUBLES(p) ((vd)_mm256_cvtps_pd(_mm_loadu_ps((const float *)(p))))
#define HALVES(p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)(p))))
#elif V == 16
#define DOUBLES(p) ((vd)_mm512_cvtps_pd(_mm256_loadu_ps((const float *)(p))))
#define HALVES(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)(p))))
#else
#define DOUBLES(p) __builtin_convertvector(*(const vf2 *)(p), vd)
#endif

/* The 16 lanes of a sum in registers. */
struct acc {
	vd v[2 * PARTS];
};

INLINE void acc_load(struct acc *a, const struct eq_quant_lanes *l)
{
	memcpy(a, l, sizeof(*a));
}

INLINE void acc_store(const struct acc *a, struct eq_quant_lanes *l)
{
	memcpy(l, a, sizeof(*a));
}

/* Add V floats, part p of a group. */
INLINE void acc_add(struct acc *a, int p, const vf *x)
{
	a->v[2 * p] += DOUBLES(x);
	a->v[2 * p + 1] += DOUBLES((const float *)x + HALF);
}

/* V units as float32, exactly. */
INLINE void load(vf *x, const void *w, int dtype)
{
	vh h;
	vu u;

	if (dtype == EQ_F32) {
		*x = *(const vw *)w;
		return;
	}
#ifdef HALVES
	if (dtype == EQ_F16) {
		*x = HALVES(w);
		return;
	}
#endif
	h = *(const vh *)w;
	u = __builtin_convertvector(h, vu);
	if (dtype == EQ_BF16) {
		u <<= 16;
	} else {        /* see eq_half_widen */
		vu m = (u & 0x7fff) << 13, f = (vu)((vf)m * 0x1p112f);

		f = SEL((u & 0x7c00) == 0x7c00, m | 0x7f800000, f);
		u = f | (u & 0x8000) << 16;
	}
	*x = (vf)u;
}

/* The level of t >= 0, as eq_level_fp8 and eq_level_int8, and its value; if that is
 * beyond the format, of which there is no more than t = 200 for int8, then *v is of no
 * use. */
INLINE void level(vu *q, vf *v, const vf *t, enum eq_qformat format)
{
	vu u = (vu)*t;

	if (format == EQ_Q_FP8) {
		vu nor = u + 0x7ffff + (u >> 20 & 1), small = (vu)(*t < 0x1p-6f);
		vf sub = *t + 16384.0f;

		*q = SEL(small, (vu)sub - 0x46800000, (nor >> 20) - 960);
		*v = (vf)SEL(small, (vu)(sub - 16384.0f), nor & 0xfff00000);
	} else {
		vf all = (vf)SEL(*t < 200.0f, u, SPLAT(0x43480000)) + 8388608.0f;

		*q = (vu)all - 0x4b000000;
		*v = all - 8388608.0f;
	}
}

/* Quantise V magnitudes: their levels, those beyond the format (to a mask), and
 * the levels' values. */
INLINE void quantise(const vf *x, enum eq_qformat format, float inv, vu *q, vu *beyond,
		     vf *v)
{
	uint32_t most = format == EQ_Q_FP8 ? 126 : 127;
	vf t = *x * inv;

	level(q, v, &t, format);
	/* levels are far below 2^31: signed comparisons are cheaper */
	*beyond = (vu)((vi)*q > (int32_t)most);
	*q = SEL(*beyond, SPLAT(most), *q);
}

/* The last n < GROUP units of a row, and zeros. */
INLINE const void *rest_of(uint8_t rest[4 * GROUP], const uint8_t *w, int dtype, size_t n)
{
	memset(rest, 0, 4 * GROUP);
	return memcpy(rest, w, n * eq_quant_unit(dtype));
}

INLINE void scan_any(const uint8_t *w, int dtype, size_t n, uint32_t *top,
		     struct eq_quant_lanes *sum)
{
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP];
	vi most = { 0 };
	struct acc a;

	acc_load(&a, sum);
	for (size_t i = 0; i < n; i += GROUP, w += GROUP * unit) {
		if (n - i < GROUP)
			w = rest_of(rest, w, dtype, n - i);
#pragma GCC unroll 4
		for (int p = 0; p < PARTS; p++) {
			vf x;
			vi more;

			load(&x, w + (size_t)p * V * unit, dtype);
			x = ABS(x);
			more = (vi)x > most;
			most = (vi)SEL(more, (vu)x, (vu)most);
			acc_add(&a, p, &x);
		}
	}
	acc_store(&a, sum);
	for (int i = 0; i < V; i++)
		*top = (uint32_t)most[i] > *top ? (uint32_t)most[i] : *top;
}

/* Bits of 16-bit units are in order as they are. */
INLINE uint32_t most_16(const uint8_t *w, size_t n)
{
	vs top = { 0 };
	uint8_t rest[4 * GROUP];
	uint32_t most = 0;

	for (size_t i = 0; i < n; i += 2 * V, w += 4 * V) {
		vs x, more;

		if (n - i < 2 * V)
			w = rest_of(rest, w, EQ_BF16, n - i);
		x = *(const vs *)w & 0x7fff;
		more = x > top;
		top = (more & x) | (~more & top);
	}
	for (int i = 0; i < 2 * V; i++)
		most = (uint32_t)top[i] > most ? (uint32_t)top[i] : most;
	return most;
}

static void most(const void *w, int dtype, size_t n, uint32_t *top)
{
	const uint8_t *p = w;
	uint8_t rest[4 * GROUP];
	vi most = { 0 };

	if (dtype != EQ_F32) {
		uint32_t u = most_16(w, n);

		u = dtype == EQ_BF16 ? u << 16 : eq_half_widen((uint16_t)u);
		*top = u > *top ? u : *top;
		return;
	}
	for (size_t i = 0; i < n; i += V, p += 4 * V) {
		vi x;

		if (n - i < V)
			p = rest_of(rest, p, dtype, n - i);
		x = (vi)*(const vw *)p & 0x7fffffff;
		most = (vi)SEL(x > most, (vu)x, (vu)most);
	}
	for (int i = 0; i < V; i++)
		*top = (uint32_t)most[i] > *top ? (uint32_t)most[i] : *top;
}

static void scan(const void *w, int dtype, size_t n, uint32_t *top,
		 struct eq_quant_lanes *sum)
{
	if (dtype == EQ_BF16)
		scan_any(w, EQ_BF16, n, top, sum);
	else if (dtype == EQ_F16)
		scan_any(w, EQ_F16, n, top, sum);
	else
		scan_any(w, EQ_F32, n, top, sum);
}

INLINE void bins_any(const struct eq_quant_bins *b, const uint8_t *w, int dtype, size_t n,
		     uint32_t *bin, uint32_t *below)
{
	uint32_t mask = (1u << b->rest) - 1, cut = b->shift - b->rest;
	vi least = (vi)SPLAT(b->least);
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP];

	for (size_t i = 0; i < n; i += V, w += V * unit) {
		vu u, p;
		vf x;

		if (n - i < V)
			w = rest_of(rest, w, dtype, n - i);
		load(&x, w, dtype);
		x = ABS(x) * b->lift;
		u = (vu)x;
		p = u >> b->shift;
		p = SEL((vi)p > least, p, (vu)least) - b->off;
		*(vu *)&bin[i] = p;
		if (below)
			*(vu *)&below[i] = u >> cut & mask;
	}
}

static void bins(const struct eq_quant_bins *b, const void *w, int dtype, size_t n,
		 uint32_t bin[EQ_STRIP], uint32_t rest[EQ_STRIP])
{
	if (dtype == EQ_BF16)
		bins_any(b, w, EQ_BF16, n, bin, NULL);
	else if (dtype == EQ_F16)
		bins_any(b, w, EQ_F16, n, bin, rest);
	else
		bins_any(b, w, EQ_F32, n, bin, rest);
}

/* A group's 32 bits to 16 and 8. */
#if V == 16
INLINE void narrow_16(uint16_t out[GROUP], const vu x[PARTS])
{
	_mm256_storeu_si256((__m256i *)(void *)out, _mm512_cvtepi32_epi16((__m512i)x[0]));
}

INLINE void narrow_8(uint8_t out[GROUP], const vu x[PARTS])
{
	_mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8((__m512i)x[0]));
}
#elif V == 8
INLINE void narrow_16(uint16_t out[GROUP], const vu x[PARTS])
{
	__m256i pairs = _mm256_packus_epi32((__m256i)x[0], (__m256i)x[1]);

	_mm256_storeu_si256((__m256i *)(void *)out, _mm256_permute4x64_epi64(pairs, 0xd8));
}

INLINE void narrow_8(uint8_t out[GROUP], const vu x[PARTS])
{
	__m256i pairs = _mm256_packus_epi32((__m256i)x[0], (__m256i)x[1]);
	__m128i low = _mm256_castsi256_si128(pairs), high = _mm256_extracti128_si256(pairs, 1);

	/* fours of units: 0, 2 and 1, 3 */
	low = _mm_packus_epi16(low, high);
	_mm_storeu_si128((__m128i *)(void *)out, _mm_shuffle_epi32(low, 0xd8));
}
#else
INLINE void narrow_16(uint16_t out[GROUP], const vu x[PARTS])
{
	for (int i = 0; i < GROUP; i++)
		out[i] = (uint16_t)x[i / V][i % V];
}

INLINE void narrow_8(uint8_t out[GROUP], const vu x[PARTS])
{
	for (int i = 0; i < GROUP; i++)
		out[i] = (uint8_t)x[i / V][i % V];
}
#endif

/* x rounded to the dtype; the bits, if there are 16, to *bits. */
INLINE void round_to(vf *x, vu *bits, int dtype)
{
	vu u = (vu)*x;

	if (dtype == EQ_BF16) {
		u = (u + 0x7fff + (u >> 16 & 1)) >> 16;
		*bits = u;
		*x = (vf)(u << 16);
	} else if (dtype == EQ_F16) {   /* see eq_half_narrow, eq_half_widen */
		vu a = u & 0x7fffffff, m, f;
		vu sub = (vu)((vf)a + 0.5f) - 0x3f000000;
		vu nor = (a + 0xfff + (a >> 13 & 1) - (112u << 23)) >> 13;

		a = SEL((vi)a < 0x38800000, sub, SEL((vi)a < 0x477ff000, nor, SPLAT(0x7c00)));
		*bits = (u >> 16 & 0x8000) | a;
		m = a << 13;
		f = SEL(a == 0x7c00, m | 0x7f800000, (vu)((vf)m * 0x1p112f));
		*x = (vf)(f | (u & 0x80000000));
	}
}

INLINE void code_any(struct eq_quant_strip *s, const uint8_t *w, int dtype,
		     enum eq_qformat format, size_t n, size_t end, float inv, float scale)
{
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP];
	vu bad = { 0 };

	for (size_t i = 0; i < end; i += GROUP, w += GROUP * unit) {
		vu sym[PARTS], out[PARTS];

		if (i + GROUP > n)
			w = rest_of(rest, w, dtype, i < n ? n - i : 0);
#pragma GCC unroll 4
		for (size_t p = 0; p < GROUP; p += V) {
			vu sign, q, beyond;
			vf x, v;

			load(&x, w + p * unit, dtype);
			*(vf *)&s->x[i + p] = x;
			sign = (vu)x & 0x80000000;
			x = ABS(x);
			quantise(&x, format, inv, &q, &beyond, &v);
			sign &= (vu)(q != 0);
			if (format == EQ_Q_FP8)
				sym[p / V] = q | sign >> 24;
			else    /* -q where the sign is set */
				sym[p / V] = ((q ^ -(sign >> 31)) + (sign >> 31)) & 255;
			v = (vf)((vu)(v * scale) | sign);
			round_to(&v, &out[p / V], dtype);
			*(vf *)&s->y[i + p] = v;
			bad |= beyond | (vu)(((vu)v & 0x7f800000) == 0x7f800000);
		}
		narrow_8(&s->sym[i], sym);
		if (dtype != EQ_F32)
			narrow_16(&s->out[i], out);
	}
	s->bad = 0;
	for (int i = 0; i < V; i++)
		s->bad |= bad[i] != 0;
}

/* All of a strip or half of it: loops of a known length. */
INLINE void code_part(struct eq_quant_strip *s, const void *w, int dtype, enum eq_qformat format,
		      size_t n, float inv, float scale)
{
	if (n > EQ_STRIP / 2)
		code_any(s, w, dtype, format, n, EQ_STRIP, inv, scale);
	else
		code_any(s, w, dtype, format, n, EQ_STRIP / 2, inv, scale);
}

static void code(struct eq_quant_strip *s, const void *w, int dtype,
		 enum eq_qformat format, size_t n, float inv, float scale)
{
	if (format == EQ_Q_FP8) {
		if (dtype == EQ_BF16)
			code_part(s, w, EQ_BF16, EQ_Q_FP8, n, inv, scale);
		else if (dtype == EQ_F16)
			code_part(s, w, EQ_F16, EQ_Q_FP8, n, inv, scale);
		else
			code_part(s, w, EQ_F32, EQ_Q_FP8, n, inv, scale);
	} else {
		if (dtype == EQ_BF16)
			code_part(s, w, EQ_BF16, EQ_Q_INT8, n, inv, scale);
		else if (dtype == EQ_F16)
			code_part(s, w, EQ_F16, EQ_Q_INT8, n, inv, scale);
		else
			code_part(s, w, EQ_F32, EQ_Q_INT8, n, inv, scale);
	}
}

static void sums(const struct eq_quant_strip *s, size_t n, struct eq_quant_sums *sum)
{
	for (int lane = 0; lane < GROUP; lane += HALF) {
		vd a = *(vd *)&sum->abs.v[lane], ea = *(vd *)&sum->err_abs.v[lane];
		vd q = *(vd *)&sum->sq.v[lane], eq = *(vd *)&sum->err_sq.v[lane];

		for (size_t i = (size_t)lane; i < n + (size_t)lane; i += GROUP) {
			vd x = DOUBLES(&s->x[i]), e = x - DOUBLES(&s->y[i]);

			a += DABS(x);
			ea += DABS(e);
			q += x * x;
			eq += e * e;
		}
		*(vd *)&sum->abs.v[lane] = a;
		*(vd *)&sum->err_abs.v[lane] = ea;
		*(vd *)&sum->sq.v[lane] = q;
		*(vd *)&sum->err_sq.v[lane] = eq;
	}
}

/* n and n * value, of 32 bits each. */
#if V > 4
#define TAIL_OF(n, value) \
	((eq_quant_tail)_mm_mul_epu32(_mm_set1_epi64x((int64_t)(n)), (__m128i)(value)))
#else
#define TAIL_OF(n, value) ((eq_quant_tail){ (n) * (value)[EQ_TAIL_SUM], (n) })
#endif

INLINE void tails_any(const void *counts, bool exact, eq_quant_tail *tail, uint32_t low,
		      uint32_t to, uint32_t first, unsigned octave, unsigned rest)
{
	const eq_quant_tail one = { 1, 0 }, up = { octave + rest, 0 };
	eq_quant_tail value = { first, 1 }, sum = tail[low];

	for (uint32_t i = low; i-- > to; value -= one) {
		if (exact) {
			uint64_t n = ((const uint32_t *)counts)[i];

			sum += TAIL_OF(n, value) << up;
		} else {
			uint64_t n = ((const uint64_t *)counts)[i];

			sum += TAIL_OF(n >> 32, value) << up;
			sum += (eq_quant_tail){ (n & 0xffffffff) << octave, 0 };
		}
		tail[i] = sum;
	}
}

static void tails(const void *counts, bool exact, eq_quant_tail *tail, uint32_t low, uint32_t to,
		  uint32_t first, unsigned octave, unsigned rest)
{
	if (exact)
		tails_any(counts, true, tail, low, to, first, octave, 0);
	else
		tails_any(counts, false, tail, low, to, first, octave, rest);
}

INLINE void tally_any(const uint8_t *w, int dtype, enum eq_qformat format, size_t n, float inv,
		      float scale, struct eq_quant_tally *total)
{
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP];
	vd sum[2] = { { 0 }, { 0 } };
	vi signs = { 0 }, steps = { 0 }, outliers = { 0 };

	for (size_t i = 0; i < n; i += V, w += V * unit) {
		vf x, t, v, y;
		vi step, above;
		vu q;

		if (n - i < V)
			w = rest_of(rest, w, dtype, n - i);
		load(&x, w, dtype);
		x = ABS(x);
		t = x * inv;
		level(&q, &v, &t, format);
		if (format == EQ_Q_INT8) {
			vi beyond = (vi)(v > 127.0f);

			outliers -= beyond;
			v = (vf)SEL(beyond, (vu)((vf){ 0 } + 127.0f), (vu)v);
			step = __builtin_convertvector(v, vi);
			steps += step;
			step &= ~beyond;        /* and x is not below */
		} else {
			step = __builtin_convertvector(v * 512.0f, vi);
			steps += step;
		}
		y = v * scale;
		above = (vi)(x >= y);
		signs += (step ^ above) - above;
		y = (vf)((vi)x & ~above);
		sum[0] += DOUBLES(&y);
		sum[1] += DOUBLES((const float *)&y + HALF);
	}
	memset(total, 0, sizeof(*total));
	sum[0] += sum[1];
	for (int i = 0; i < HALF; i++)
		total->below += sum[0][i];
	for (int i = 0; i < V; i++) {
		total->signs += signs[i];
		total->steps += steps[i];
		total->outliers += outliers[i];
	}
}

static void tally(const void *w, int dtype, enum eq_qformat format, size_t n, float inv,
		  float scale, struct eq_quant_tally *total)
{
	/* others have a bin for each value */
	if (format == EQ_Q_FP8 && dtype == EQ_F32)
		tally_any(w, EQ_F32, EQ_Q_FP8, n, inv, scale, total);
	else if (format == EQ_Q_FP8)
		tally_any(w, dtype, EQ_Q_FP8, n, inv, scale, total);
	else
		tally_any(w, dtype, EQ_Q_INT8, n, inv, scale, total);
}

#if V > 4
#include "quant_eights.h"
#endif

const struct eq_quant_ops EQ_QUANT_OPS = {
	.isa = EQ_QUANT_ISA,
	.most = most,
	.scan = scan,
	.bins = bins,
	.code = code,
	.sums = sums,
	.tails = tails,
	.tally = tally,
#if V > 4
	.planes = planes,
	.eight = eight,
#endif
};
