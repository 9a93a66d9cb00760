/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quantiser's inner loops in the vector extension of gcc and clang. Include
 * with EQ_QUANT_OPS (the name of the table), EQ_QUANT_ISA and EQ_QUANT_V (lanes
 * of 32 bits in a register: 4, 8 or 16) defined.
 */
#include <string.h>

#include "quant_ops.h"

#define V EQ_QUANT_V
#define GROUP 16                /* units that the lanes of sums go through once */
#define PARTS (GROUP / V)       /* vectors in a group */
#define HALF (V / 2)            /* doubles in a register */

#define VECTOR(type, n) \
	__attribute__((vector_size((n) * sizeof(type)), may_alias, aligned(4)))
typedef float vf VECTOR(float, V);
typedef uint32_t vu VECTOR(uint32_t, V);
typedef int32_t vi VECTOR(int32_t, V);
typedef uint16_t vh __attribute__((vector_size(V * 2), may_alias, aligned(1)));
typedef uint8_t vb __attribute__((vector_size(V), may_alias, aligned(1)));
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
#define DOUBLES(p) __builtin_convertvector(*(const vf2 *)(p), vd)

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
		memcpy(x, w, sizeof(*x));
		return;
	}
	memcpy(&h, w, sizeof(h));
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

/* The level of t >= 0, as eq_level_fp8 and eq_level_int8. */
INLINE void level(vu *q, const vf *t, enum eq_qformat format)
{
	vu u = (vu)*t;

	if (format == EQ_Q_FP8) {
		vu sub = (vu)(*t + 16384.0f) - 0x46800000;
		vu nor = ((u + 0x7ffff + (u >> 20 & 1)) >> 20) - 960;

		*q = SEL(*t < 0x1p-6f, sub, nor);
	} else {
		vu cap = SEL(*t < 200.0f, u, SPLAT(0x43480000));

		*q = (vu)((vf)cap + 8388608.0f) - 0x4b000000;
	}
}

/* Value of level q, which is within the format. */
INLINE void value(vf *v, const vu *q, enum eq_qformat format)
{
	vf count = (vf)(*q | 0x4b000000) - 8388608.0f;

	if (format == EQ_Q_FP8)
		*v = (vf)SEL(count < 8.0f, (vu)(count * 0x1p-9f), (*q + 960) << 20);
	else
		*v = count;
}

/* Quantise V magnitudes: their levels, those beyond the format (to a mask), and
 * the levels' values. */
INLINE void quantise(const vf *x, enum eq_qformat format, float inv, vu *q, vu *beyond,
		     vf *v)
{
	uint32_t most = format == EQ_Q_FP8 ? 126 : 127;
	vf t = *x * inv;

	level(q, &t, format);
	/* levels are far below 2^31: signed comparisons are cheaper */
	*beyond = (vu)((vi)*q > (int32_t)most);
	*q = SEL(*beyond, SPLAT(most), *q);
	value(v, q, format);
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

static void widen(uint32_t u[EQ_STRIP], const void *w, int dtype, size_t n)
{
	size_t unit = eq_quant_unit(dtype), i = 0;
	uint8_t rest[4 * GROUP];
	const uint8_t *p = w;

	for (; i < n; i += V, p += V * unit) {
		vf x;

		if (n - i < V)
			p = rest_of(rest, p, dtype, n - i);
		if (dtype == EQ_F16)
			load(&x, p, EQ_F16);
		else
			load(&x, p, dtype);
		*(vf *)&u[i] = ABS(x);
	}
}

/* Vectors of 32 bits to 16 and 8. One instruction with AVX-512; else a whole
 * strip at a time lets the compiler pack registers in pairs. */
#if V == 16
#define NARROW(out, i, u, type) \
	(*(type *)&(out)[i] = __builtin_convertvector(u, type))
#define NARROW_STRIP(out, type) ((void)0)
#else
#define NARROW(out, i, u, type) (*(vu *)&wide_##out[i] = (u))
#define NARROW_STRIP(out, type)                                    \
	do {                                                       \
		for (int n_ = 0; n_ < EQ_STRIP; n_++)              \
			out[n_] = (type)wide_##out[n_];            \
	} while (0)
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
		     enum eq_qformat format, size_t n, float inv, float scale)
{
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP], *sym = s->sym;
	uint16_t *out = s->out;
#if V != 16
	uint32_t wide_sym[EQ_STRIP] __attribute__((aligned(64)));
	uint32_t wide_out[EQ_STRIP] __attribute__((aligned(64)));
#endif
	vu bad = { 0 };

	for (size_t i = 0; i < EQ_STRIP; i += GROUP, w += GROUP * unit) {
		if (i + GROUP > n)
			w = rest_of(rest, w, dtype, i < n ? n - i : 0);
#pragma GCC unroll 4
		for (size_t p = 0; p < GROUP; p += V) {
			vu sign, q, beyond, bits;
			vf x, v;

			load(&x, w + p * unit, dtype);
			*(vf *)&s->x[i + p] = x;
			sign = (vu)x & 0x80000000;
			x = ABS(x);
			quantise(&x, format, inv, &q, &beyond, &v);
			sign &= (vu)(q != 0);
			if (format == EQ_Q_FP8)
				NARROW(sym, i + p, q | sign >> 24, vb);
			else    /* -q where the sign is set */
				NARROW(sym, i + p, ((q ^ -(sign >> 31)) + (sign >> 31)) & 255, vb);
			v = (vf)((vu)(v * scale) | sign);
			round_to(&v, &bits, dtype);
			if (dtype != EQ_F32)
				NARROW(out, i + p, bits, vh);
			*(vf *)&s->y[i + p] = v;
			bad |= beyond | (vu)(((vu)v & 0x7f800000) == 0x7f800000);
		}
	}
	NARROW_STRIP(sym, uint8_t);
	if (dtype != EQ_F32)
		NARROW_STRIP(out, uint16_t);
	s->bad = 0;
	for (int i = 0; i < V; i++)
		s->bad |= bad[i] != 0;
}

static void code(struct eq_quant_strip *s, const void *w, int dtype,
		 enum eq_qformat format, size_t n, float inv, float scale)
{
	if (format == EQ_Q_FP8) {
		if (dtype == EQ_BF16)
			code_any(s, w, EQ_BF16, EQ_Q_FP8, n, inv, scale);
		else if (dtype == EQ_F16)
			code_any(s, w, EQ_F16, EQ_Q_FP8, n, inv, scale);
		else
			code_any(s, w, EQ_F32, EQ_Q_FP8, n, inv, scale);
	} else {
		if (dtype == EQ_BF16)
			code_any(s, w, EQ_BF16, EQ_Q_INT8, n, inv, scale);
		else if (dtype == EQ_F16)
			code_any(s, w, EQ_F16, EQ_Q_INT8, n, inv, scale);
		else
			code_any(s, w, EQ_F32, EQ_Q_INT8, n, inv, scale);
	}
}

static void sums(const struct eq_quant_strip *s, struct eq_quant_sums *sum)
{
	for (int lane = 0; lane < GROUP; lane += HALF) {
		vd a = *(vd *)&sum->abs.v[lane], ea = *(vd *)&sum->err_abs.v[lane];
		vd q = *(vd *)&sum->sq.v[lane], eq = *(vd *)&sum->err_sq.v[lane];

		for (int i = lane; i < EQ_STRIP; i += GROUP) {
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

INLINE void measure_any(const uint8_t *w, int dtype, enum eq_qformat format, size_t n,
			float inv, float scale, struct eq_quant_lanes *dist,
			struct eq_quant_lanes *rate)
{
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP];
	struct acc d, r;

	acc_load(&d, dist);
	acc_load(&r, rate);
	for (size_t i = 0; i < n; i += GROUP, w += GROUP * unit) {
		if (n - i < GROUP)
			w = rest_of(rest, w, dtype, n - i);
#pragma GCC unroll 4
		for (int p = 0; p < PARTS; p++) {
			vu q, beyond;
			vf x, v;
			vd e;

			load(&x, w + (size_t)p * V * unit, dtype);
			x = ABS(x);
			quantise(&x, format, inv, &q, &beyond, &v);
			acc_add(&r, p, &v);
			x = (vf)((vu)x & ~beyond);
			v = (vf)((vu)v & ~beyond);
			e = DOUBLES(&x) - DOUBLES(&v) * (double)scale;
			d.v[2 * p] += DABS(e);
			e = DOUBLES((float *)&x + HALF) -
			    DOUBLES((float *)&v + HALF) * (double)scale;
			d.v[2 * p + 1] += DABS(e);
		}
	}
	acc_store(&d, dist);
	acc_store(&r, rate);
}

static void measure(const void *w, int dtype, enum eq_qformat format, size_t n,
		    float inv, float scale, struct eq_quant_lanes *dist,
		    struct eq_quant_lanes *rate)
{
	if (dtype == EQ_F16 && format == EQ_Q_FP8)
		measure_any(w, EQ_F16, EQ_Q_FP8, n, inv, scale, dist, rate);
	else if (dtype == EQ_F32 && format == EQ_Q_FP8)
		measure_any(w, EQ_F32, EQ_Q_FP8, n, inv, scale, dist, rate);
	else
		measure_any(w, dtype, format, n, inv, scale, dist, rate);
}

static void edges(const struct eq_quant_format *f, unsigned n, bool exact, float inv,
		  float scale, uint32_t base, uint32_t top, struct eq_quant_edges *e)
{
	uint32_t up = exact ? 0xffff : 0x8000;
	/* the levels' parity is that of their lane */
	vu even = { 0 };

	for (int i = 0; i < V; i += 2)
		even[i] = ~0u;
	for (unsigned j = 0; j <= n; j += V) {
		vf m = *(const vf *)&f->mid[j], b = m * scale, t = b * inv;
		vu u = (vu)b, p = (u + up) >> 16, below;

		/* a unit right on a boundary is below it when its product with
		 * inv is, or is the tie and the level above is odd */
		below = (vu)(t < m) | ((vu)(t == m) & ~even);
		if (exact)
			p += (vu)((u & 0xffff) == 0) & below & 1;
		*(vu *)&e->edge[j] = SEL((vi)p <= (vi)SPLAT(top), p, SPLAT(top + 1)) - base;
		u = (vu)(*(const vf *)&f->value[j] * scale);
		p = (u + up) >> 16;
		*(vu *)&e->centre[j] = SEL((vi)p <= (vi)SPLAT(top), p, SPLAT(top + 1)) - base;
	}
}

const struct eq_quant_ops EQ_QUANT_OPS = {
	.isa = EQ_QUANT_ISA,
	.scan = scan,
	.widen = widen,
	.code = code,
	.sums = sums,
	.measure = measure,
	.edges = edges,
};
