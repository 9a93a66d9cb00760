/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quantiser's inner loops in the vector extension of gcc and clang: 16 lanes
 * of 32 bits, which the compiler maps to what the object's flags allow. Include
 * with EQ_QUANT_OPS (the name of the table) and EQ_QUANT_ISA defined.
 */
#include <string.h>

#include "quant_ops.h"

typedef float vf __attribute__((vector_size(64), may_alias));
typedef float vf8 __attribute__((vector_size(32), may_alias));
typedef uint32_t vu __attribute__((vector_size(64), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), may_alias));
typedef uint8_t vb __attribute__((vector_size(16), may_alias));
typedef double vd __attribute__((vector_size(64), may_alias));
typedef int64_t vq __attribute__((vector_size(64), may_alias));

/* m ? a : b, for the masks that comparisons give. Macros, since passing vectors
 * to functions is not the same for all flags. */
#define SEL(m, a, b) (((vu)(m) & (a)) | (~(vu)(m) & (b)))
#define SPLAT(x) ((vu){ 0 } + (uint32_t)(x))
#define ABS(x) ((vf)((vu)(x) & 0x7fffffff))
#define LOW(x) __builtin_convertvector(__builtin_shufflevector(x, x, 0, 1, 2, 3, \
							       4, 5, 6, 7), vd)
#define HIGH(x) __builtin_convertvector(__builtin_shufflevector(x, x, 8, 9, 10, 11, \
								12, 13, 14, 15), vd)
#define DABS(x) ((vd)((vq)(x) & INT64_MAX))

/* Add 16 floats to 16 lanes of doubles. */
static inline void lanes_add(struct eq_quant_lanes *l, const vf *x)
{
	*(vd *)&l->v[0] += LOW(*x);
	*(vd *)&l->v[8] += HIGH(*x);
}

/* 16 units as float32, exactly. */
static inline __attribute__((always_inline)) void load16(vf *x, const void *w, int dtype)
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
static inline __attribute__((always_inline)) void level16(vu *q, const vf *t,
							  enum eq_qformat format)
{
	vu u = (vu)*t;

	if (format == EQ_Q_FP8) {
		vu sub = (vu)(*t + 16384.0f) - 0x46800000;
		vu nor = ((u + 0x7ffff + (u >> 20 & 1)) >> 20) - 960;

		*q = SEL(u < 0x3c800000, sub, nor);
	} else {
		vu cap = SEL(u < 0x43480000, u, SPLAT(0x43480000)); /* 200 */

		*q = (vu)((vf)cap + 8388608.0f) - 0x4b000000;
	}
}

/* Value of level q, which is within the format. */
static inline __attribute__((always_inline)) void value16(vf *v, const vu *q,
							  enum eq_qformat format)
{
	vf count = (vf)(*q | 0x4b000000) - 8388608.0f;

	if (format == EQ_Q_FP8)
		*v = (vf)SEL(*q < 8, (vu)(count * 0x1p-9f), (*q + 960) << 20);
	else
		*v = count;
}

static inline __attribute__((always_inline)) void scan_any(const uint8_t *w, int dtype,
							   size_t n, uint32_t *top,
							   struct eq_quant_lanes *sum)
{
	size_t unit = eq_quant_unit(dtype), i;
	vu most = SPLAT(*top);
	vf x;

	for (i = 0; i + 16 <= n; i += 16) {
		load16(&x, w + i * unit, dtype);
		x = ABS(x);
		most = SEL((vu)x > most, (vu)x, most);
		lanes_add(sum, &x);
	}
	if (i < n) {
		uint8_t rest[64] = { 0 };

		memcpy(rest, w + i * unit, (n - i) * unit);
		load16(&x, rest, dtype);
		x = ABS(x);
		most = SEL((vu)x > most, (vu)x, most);
		lanes_add(sum, &x);
	}
	for (i = 0; i < 16; i++)
		*top = most[i] > *top ? most[i] : *top;
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

/* y = x rounded to the dtype, and its bits if there are 16. */
static inline __attribute__((always_inline)) void round16(vf *y, vh *out, const vf *x,
							  int dtype)
{
	vu u = (vu)*x;

	if (dtype == EQ_BF16) {
		u = (u + 0x7fff + (u >> 16 & 1)) >> 16;
		*out = __builtin_convertvector(u, vh);
		*y = (vf)(u << 16);
	} else if (dtype == EQ_F16) {   /* see eq_half_narrow */
		vu a = u & 0x7fffffff, sign = u >> 16 & 0x8000;
		vu sub = (vu)((vf)a + 0.5f) - 0x3f000000;
		vu nor = (a + 0xfff + (a >> 13 & 1) - (112u << 23)) >> 13;

		nor = SEL(a >= 0x477ff000, SPLAT(0x7c00), nor);
		*out = __builtin_convertvector(sign | SEL(a < 0x38800000, sub, nor), vh);
		load16(y, out, EQ_F16);
	} else {
		*y = *x;
	}
}

static inline __attribute__((always_inline)) void code_any(struct eq_quant_strip *s,
							   const uint8_t *w, int dtype,
							   enum eq_qformat format,
							   size_t n, float inv,
							   float scale)
{
	size_t unit = eq_quant_unit(dtype);
	uint32_t most = format == EQ_Q_FP8 ? 126 : 127;
	vu bad = { 0 };

	for (size_t i = 0; i < EQ_STRIP; i += 16) {
		vu sign, q, beyond, sym;
		vf x, t, v;
		vb b;

		if (i + 16 <= n) {
			load16(&x, w + i * unit, dtype);
		} else {
			uint8_t rest[64] = { 0 };

			if (i < n)
				memcpy(rest, w + i * unit, (n - i) * unit);
			load16(&x, rest, dtype);
		}
		*(vf *)&s->x[i] = x;
		t = ABS(x) * inv;
		level16(&q, &t, format);
		beyond = (vu)(q > most);
		bad |= beyond;
		q = SEL(beyond, SPLAT(most), q);
		value16(&v, &q, format);
		sign = (vu)x & 0x80000000 & (vu)(q != 0);
		if (format == EQ_Q_FP8)
			sym = q | sign >> 24;
		else
			sym = SEL(sign != 0, -q, q);
		b = __builtin_convertvector(sym, vb);
		memcpy(&s->sym[i], &b, sizeof(b));
		v = (vf)((vu)(v * scale) | sign);
		round16(&v, (vh *)&s->out[i], &v, dtype);
		*(vf *)&s->y[i] = v;
		bad |= (vu)(((vu)v & 0x7f800000) == 0x7f800000);
	}
	s->bad = 0;
	for (int i = 0; i < 16; i++)
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
	for (int half = 0; half < 2; half++) {
		vd a = { 0 }, ea = { 0 }, q = { 0 }, eq = { 0 };

		a = *(vd *)&sum->abs.v[8 * half];
		ea = *(vd *)&sum->err_abs.v[8 * half];
		q = *(vd *)&sum->sq.v[8 * half];
		eq = *(vd *)&sum->err_sq.v[8 * half];
		for (int i = 8 * half; i < EQ_STRIP; i += 16) {
			vd x = __builtin_convertvector(*(const vf8 *)&s->x[i], vd);
			vd e = x - __builtin_convertvector(*(const vf8 *)&s->y[i], vd);

			a += DABS(x);
			ea += DABS(e);
			q += x * x;
			eq += e * e;
		}
		*(vd *)&sum->abs.v[8 * half] = a;
		*(vd *)&sum->err_abs.v[8 * half] = ea;
		*(vd *)&sum->sq.v[8 * half] = q;
		*(vd *)&sum->err_sq.v[8 * half] = eq;
	}
}

static void measure(const void *w, int dtype, enum eq_qformat format, size_t n,
		    float inv, float scale, struct eq_quant_lanes *dist,
		    struct eq_quant_lanes *rate)
{
	size_t unit = eq_quant_unit(dtype);
	uint32_t most = format == EQ_Q_FP8 ? 126 : 127;

	for (size_t i = 0; i < n; i += 16) {
		uint8_t rest[64] = { 0 };
		const uint8_t *p = (const uint8_t *)w + i * unit;
		vu q, beyond;
		vf x, t, v;
		vd d;

		if (i + 16 > n)
			p = memcpy(rest, p, (n - i) * unit);
		load16(&x, p, dtype);
		x = ABS(x);
		t = x * inv;
		level16(&q, &t, format);
		beyond = (vu)(q > most);
		q = SEL(beyond, SPLAT(most), q);
		value16(&v, &q, format);
		lanes_add(rate, &v);
		x = (vf)((vu)x & ~beyond);
		v = (vf)((vu)v & ~beyond);
		d = LOW(x) - LOW(v) * (double)scale;
		*(vd *)&dist->v[0] += DABS(d);
		d = HIGH(x) - HIGH(v) * (double)scale;
		*(vd *)&dist->v[8] += DABS(d);
	}
}

static void edges(const struct eq_quant_format *f, unsigned n, bool exact, float inv,
		  float scale, uint32_t base, uint32_t top, struct eq_quant_edges *e)
{
	const vu lane = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
	uint32_t up = exact ? 0xffff : 0x8000;
	vu last = SPLAT(top + 1);

	for (unsigned j = 0; j <= n; j += 16) {
		vf m = *(const vf *)&f->mid[j], b = m * scale, t = b * inv;
		vu u = (vu)b, p = (u + up) >> 16, below;

		/* a unit right on a boundary is below it when its product with
		 * inv is, or is the tie and the level above is odd */
		below = (vu)(t < m) | ((vu)(t == m) & (vu)((lane & 1) == 1));
		if (exact)
			p += (vu)((u & 0xffff) == 0) & below & 1;
		*(vu *)&e->edge[j] = SEL(p < last, p, last) - base;
		u = (vu)(*(const vf *)&f->value[j] * scale);
		p = (u + up) >> 16;
		*(vu *)&e->centre[j] = SEL(p < last, p, last) - base;
	}
}

const struct eq_quant_ops EQ_QUANT_OPS = {
	.isa = EQ_QUANT_ISA,
	.scan = scan,
	.code = code,
	.sums = sums,
	.measure = measure,
	.edges = edges,
};
