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
typedef uint16_t vr VECTOR(uint16_t, 2 * V);
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

/* Vectors of 32 bits to 16 and 8. One instruction with AVX-512; else many units at
 * a time let the compiler pack registers in pairs. */
#if V == 16
#define NARROW(out, i, u, type) \
	(*(type *)&(out)[i] = __builtin_convertvector(u, type))
#define NARROW_STRIP(out, n, type) ((void)0)
#else
#define NARROW(out, i, u, type) (*(vu *)&wide_##out[i] = (u))
#define NARROW_STRIP(out, n, type)                                 \
	do {                                                       \
		for (size_t n_ = 0; n_ < (n); n_++)                \
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
		     enum eq_qformat format, size_t n, size_t end, float inv, float scale)
{
	size_t unit = eq_quant_unit(dtype);
	uint8_t rest[4 * GROUP], *sym = s->sym;
	uint16_t *out = s->out;
#if V != 16
	uint32_t wide_sym[EQ_STRIP] __attribute__((aligned(64)));
	uint32_t wide_out[EQ_STRIP] __attribute__((aligned(64)));
#endif
	vu bad = { 0 };

	for (size_t i = 0; i < end; i += GROUP, w += GROUP * unit) {
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
	NARROW_STRIP(sym, end, uint8_t);
	if (dtype != EQ_F32)
		NARROW_STRIP(out, end, uint16_t);
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

/* Is a unit of magnitude *x below the level that begins at *m? Its product with inv
 * decides, and of a tie, which level is even (as are the lanes of even levels). */
INLINE void is_below(vu *below, const vf *x, const vf *m, float inv, const vu *even)
{
	vf t = *x * inv;

	*below = (vu)(t < *m) | ((vu)(t == *m) & ~*even);
}

INLINE void edges_any(const struct eq_quant_format *f, struct eq_quant_bins b, unsigned last,
		      float scale, float inv, struct eq_quant_edges *e)
{
	uint32_t mask = (1u << b.shift) - 1;
	vu behind = SPLAT(b.top + 1), before = SPLAT(b.base - 1), even = { 0 };

	for (int i = 0; i < V; i += 2)
		even[i] = ~0u;
	for (unsigned j = 0; j <= last; j += V) {
		vf m = *(const vf *)&f->mid[j], x = m * scale;
		vu u = (vu)x, v = (vu)(*(const vf *)&f->value[j] * scale), below;

		if (b.rests) {
			/* rounding moves it by two of a unit's last places at most */
			vu first = u -= 2;

#pragma GCC unroll 5
			for (unsigned i = 0; i < 5; i++) {
				x = (vf)(first + i);
				is_below(&below, &x, &m, inv, &even);
				u -= below;
			}
		} else {
			/* only a unit right on it can be on either side */
			is_below(&below, &x, &m, inv, &even);
			u = ((u + mask) >> b.shift) - ((vu)((u & mask) == 0) & below);
			u = SEL((vi)u < (vi)behind, u, behind) - before;
			v = (v + mask) >> b.shift;
			v = SEL((vi)v < (vi)behind, v, behind) - before;
			u += u;
			v += v;
		}
		*(vu *)&e->edge[j] = u;
		*(vu *)&e->centre[j] = v;
	}
}

static void edges(const struct eq_quant_format *f, const struct eq_quant_bins *b, unsigned last,
		  unsigned n, const float *scale, const float *inv, struct eq_quant_edges *e)
{
	for (unsigned i = 0; i < n; i++)
		edges_any(f, *b, last, scale[i], inv[i], &e[i]);
}

/* All lanes together, which is less than 2^32. */
INLINE uint32_t sum_of(const vu *x)
{
	vq pairs = (vq)*x;
	uint64_t all = 0;

	for (int i = 0; i < HALF; i++)
		all += (uint64_t)pairs[i];
	return (uint32_t)(all + (all >> 32));
}

/* Of n rests, those that are not below `least`: their sum, and their number times
 * 2^40 (so 2^23 at most). No branch depends on a rest, none could be foreseen. */
INLINE uint64_t rests_from(const uint16_t *rest, uint32_t n, uint32_t least)
{
	vr lane = { 0 }, from = lane + (uint16_t)least;
	uint64_t total = 0;
	uint32_t i = 0;

	for (int l = 0; l < 2 * V; l++)
		lane[l] = (uint16_t)l;
	do {
		uint16_t left = (uint16_t)(n - i < 2 * V ? n - i : 2 * V);
		vu y, one;
		vr x, in;
		uint32_t all;

		memcpy(&x, rest + i, sizeof(x));
		in = (vr)(x >= from) & (vr)(lane < (vr){ 0 } + left);
		/* in pairs; their number above 24 bits */
		y = (vu)(x & in);
		one = (vu)in & 0x00010001;
		y = (y & 0xffff) + (y >> 16) + (one << 24) + (one >> 16 << 24);
		all = sum_of(&y);
		total += (all & 0xffffff) | (uint64_t)(all >> 24) << 40;
		i += 2 * V;
	} while (i < n);
	return total;
}

#define RESTS_MOST (1u << 22)   /* at a time */

INLINE void tail_at(const struct eq_quant_bins *b, uint32_t bits, int64_t tail[2])
{
	uint32_t p = bits >> b->shift, bin, n;
	int64_t sum = 0, count = 0, above;
	const uint16_t *rest;

	p = p <= b->top ? p : b->top + 1;
	bin = p - b->base + 1;
	/* all that is behind the last bin is nothing, but is there */
	above = b->tail[bin + 1][1];
	rest = b->rest + above;
	n = b->count[bin];
	do {
		uint32_t some = n < RESTS_MOST ? n : RESTS_MOST;
		uint64_t t = rests_from(rest, some, bits & ((1u << b->shift) - 1));

		sum += (int64_t)(t & 0xffffffffff);
		count += (int64_t)(t >> 40);
		rest += some;
		n -= some;
	} while (n);
	tail[0] = b->tail[bin + 1][0] + eq_bins_sum(b, p, count, sum);
	tail[1] = above + count;
}

static void tails(const struct eq_quant_bins *b, struct eq_quant_edges *e, unsigned n,
		  unsigned last)
{
	e->tail[0][0] = e->tail[0][1] = 0;
	for (unsigned l = n + 1; l <= last; l++)
		e->edge[l] = e->centre[l] = 0;
	for (unsigned l = 1; l <= n; l++) {
		tail_at(b, e->edge[l], e->tail[l]);
		tail_at(b, e->centre[l], e->tail[EQ_QUANT_SLOTS + l]);
		e->edge[l] = 2 * l;
		e->centre[l] = 2 * (EQ_QUANT_SLOTS + l);
	}
}

const struct eq_quant_ops EQ_QUANT_OPS = {
	.isa = EQ_QUANT_ISA,
	.scan = scan,
	.widen = widen,
	.code = code,
	.sums = sums,
	.edges = edges,
	.tails = tails,
};
